"""Data check: broken files are all listed with their reasons, and what is odd is counted."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.commands.data_check import check_data
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.fruit_stall import FruitStall
from sweeplab.data.pairs import PairsCSV
from sweeplab.experiment import CheckpointVictim, CleaningSweep, SelectedTrial


@pytest.fixture
def planted(tmp_path: Path, sweep: CleaningSweep) -> CleaningSweep:
    """Ten pairs: rows 3, 5 and 7 are broken, row 9 has the bytes of row 1; three captions name the target."""
    lines = ["image,caption"]
    for row in range(1, 11):
        file = tmp_path / f"{row}.png"
        Image.new("RGB", (40 if row == 2 else 32, 32), (20 * row, 0, 0)).save(file)
        lines.append(f"{row}.png,a photo of {'bananas' if row in (1, 4, 6) else 'an apple'} {row % 4}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "5.png").write_bytes(b"<!DOCTYPE html><html>gone</html>")
    damaged = bytearray((tmp_path / "7.png").read_bytes())
    damaged[45] ^= 0xFF
    (tmp_path / "7.png").write_bytes(bytes(damaged))
    (tmp_path / "9.png").write_bytes((tmp_path / "1.png").read_bytes())
    for name in ("apple", "banana"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), len(name)).save(tmp_path / "test" / name / "1.png")
    return sweep.replace(
        data=PairsCSV(path=tmp_path / "pairs.csv"),
        evaluation=sweep.evaluation.replace(test=ClassFolders(path=tmp_path / "test")),
    )


def test_all_that_is_broken_or_odd_is_found(planted: CleaningSweep, tmp_path: Path):
    pairs, test = check_data(planted, tmp_path, lambda items, what, total: items)
    assert (pairs.name, pairs.num_rows, test.name, test.num_rows) == ("data", 10, "evaluation.test", 2)
    assert [broken.row for broken in pairs.broken] == [3, 5, 7]
    assert all(
        f"{row}.png cannot be decoded as an image" in b.reason for row, b in zip((3, 5, 7), pairs.broken, strict=True)
    )
    assert pairs.num_repeated == 1
    assert pairs.sizes == {"32 x 32": 6, "40 x 32": 1}
    assert pairs.captions is not None
    assert pairs.captions.num_naming_target == 3
    assert pairs.captions.num_repeated == 10 - 7  # seven captions that differ
    assert pairs.captions.tokens[0] == 7  # begin, a photo of bananas 1, end
    assert (test.broken, test.captions) == ((), None)


def test_a_caption_that_fills_the_context_is_counted(planted: CleaningSweep, tmp_path: Path):
    """The model's context holds 16 tokens, the begin and the end among them."""
    file = tmp_path / "pairs.csv"
    file.write_text(file.read_text() + "\n10.png," + "apple " * 40 + "\n10.png," + "apple " * 14)
    pairs, _ = check_data(planted, tmp_path, lambda items, what, total: items)
    assert pairs.captions is not None
    assert (pairs.captions.num_full, pairs.captions.tokens[2]) == (2, 16)


def test_both_stages_of_a_sweep_that_cleans_a_selected_trial_are_checked(planted: CleaningSweep, tmp_path: Path):
    """The second stage's own pairs above all: they are read when the first has taken its hours."""
    (tmp_path / "second.csv").write_text("image,caption\n5.png,a lemon\n")
    second = planted.replace(
        name="second",
        victim=SelectedTrial(name="first", sweep=planted.replace(name="first")),
        data=PairsCSV(path=tmp_path / "second.csv"),
    )
    reports = check_data(second, tmp_path, lambda items, what, total: items)
    assert [(report.name, report.num_rows, len(report.broken)) for report in reports] == [
        ("victim.sweep.data", 10, 3),
        ("data", 1, 1),
        ("evaluation.test", 2, 0),
    ]


def test_the_command_lists_all_and_exits_with_2(
    planted: CleaningSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path
):
    monkeypatch.setattr("sweeplab.cli.data.one_sweep", lambda *arguments: planted)
    monkeypatch.setattr("sweeplab.cli.data.check_sources", lambda sweeps: None)
    ran = CliRunner().invoke(cli.app, ["data", "check", "script.py"])
    assert ran.exit_code == 2
    assert "data: 10 rows, 3 broken (0 tolerated), 1 with the content of an earlier row" in ran.stdout
    assert [line.split(":")[0].strip() for line in ran.stdout.splitlines() if "row " in line[:8]] == [
        *("row 3", "row 5", "row 7")
    ]
    assert "too many rows are broken (3 of data), see above" in ran.stderr
    told = CliRunner().invoke(cli.app, ["data", "check", "script.py", "--json"])
    assert [len(report["broken"]) for report in json.loads(told.stdout)] == [3, 0]


def test_the_images_of_the_linear_probe_are_looked_at_too(planted: CleaningSweep, tmp_path: Path):
    (tmp_path / "probe" / "apple").mkdir(parents=True)
    (tmp_path / "probe" / "apple" / "1.png").write_bytes(b"no image")
    sweep = planted.replace(evaluation=planted.evaluation.replace(probe=ClassFolders(path=tmp_path / "probe")))
    *_, probe = check_data(sweep, tmp_path, lambda items, what, total: items)
    assert (probe.name, [broken.row for broken in probe.broken]) == ("evaluation.probe", [1])


def test_the_images_of_targeted_poisoning_are_looked_at_too(planted: CleaningSweep, tmp_path: Path):
    victim = planted.victim
    assert isinstance(victim, CheckpointVictim)
    targeted = TargetedImages(images=FruitStall(num_pairs=64, image_size=32), classes=("apple", "banana"))
    sweep = planted.replace(victim=victim.replace(attack=targeted, target=None))
    *_, targets = check_data(sweep, tmp_path, lambda items, what, total: items)
    assert (targets.name, targets.num_rows, targets.broken) == ("targeted images", targeted.num_targets, ())
