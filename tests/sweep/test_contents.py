"""Data that change while a sweep runs, or are others on a node, end it with a reason; no trial trains on them."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import save_file

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.exchange import ImportedPoison
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.clip_checkpoints import load_weights
from sweeplab.clip_model import Architecture
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStall, FruitStallTest
from sweeplab.data.img2dataset import Img2Dataset
from sweeplab.data.pairs import PairsCSV
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.specs import InvalidInput, StorageFault, Unfinished
from sweeplab.sweep import prepare, pretraining, run, victims
from sweeplab.sweep.checks import digest_of_victim
from sweeplab.sweep.resume import check_same_spec
from sweeplab.sweep.run import Options
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.inputs import Inputs
from sweeplab.worker.jobs import check_same_data

pytestmark = pytest.mark.usefixtures("drawn")


def test_data_that_are_the_same_or_unknown_pass():
    check_same_data("pairs", "a", "a")
    check_same_data("pairs", "", "a")


def test_other_data_are_named_with_both_digests():
    with pytest.raises(StorageFault, match=r"the pairs on node .* \(digest a -> b\).*restore them"):
        check_same_data("pairs", "a", "b")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """32 pictures with captions."""
    for number in range(32):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [f"{number}.png,a photo of apple {number}" for number in range(32)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *lines]))
    return tmp_path / "pairs.csv"


@pytest.fixture
def sweep(sweep: CleaningSweep, pairs: Path) -> CleaningSweep:
    """One trial of one epoch on them."""
    return sweep.replace(data=PairsCSV(path=pairs), epochs=1, search=sweep.search.replace(trials=1))


def test_data_that_moved_and_changed_are_refused_for_the_change(sweep: CleaningSweep, pairs: Path, tmp_path: Path):
    """The move alone is no difference, and is not listed."""
    folder, moved = SweepFolder(tmp_path / "home" / "sweeps" / sweep.name), tmp_path / "moved"
    before = prepare.prepare(sweep, tmp_path / "home")
    folder.write_header(sweep, before.digest, before.contents)
    shutil.copytree(pairs.parent, moved, ignore=shutil.ignore_patterns("home", "moved"))
    elsewhere = sweep.replace(data=PairsCSV(path=moved / "pairs.csv"))
    check_same_spec(folder, prepare.prepare(elsewhere, tmp_path / "home"))
    (moved / "pairs.csv").write_text(pairs.read_text().replace("apple 7", "pear 7"))
    with pytest.raises(InvalidInput) as refused:
        check_same_spec(folder, prepare.prepare(elsewhere.replace(epochs=3), tmp_path / "home"))
    lines = str(refused.value).splitlines()
    assert lines[0] == "sweep 'made-up' exists with another spec:"
    assert lines[1].startswith("  content of `pairs` changed (digest ")
    assert lines[2:3] == ["  epochs: 1 -> 3"]
    assert "moved" not in str(refused.value)


def test_a_victims_digest_is_of_the_classes_that_captions_mention(sweep: CleaningSweep, pairs: Path, tmp_path: Path):
    """A lime and some corn, which are to be apples; the file may lie elsewhere, and other words make another victim."""
    inputs = Inputs(tmp_path / "home" / "data")

    def digest(mentioned_in: Path) -> str:
        targeted = TargetedImages(
            images=FruitStall(num_pairs=2, image_size=32, seed=4),
            num_targets=2,
            classes=CLASS_NAMES,
            mentioned_in=PairsCSV(path=mentioned_in),
        )
        victim = PretrainedVictim(
            name="targeted",
            architecture=sweep.victim.architecture,
            data=FruitStall(num_pairs=64, image_size=32),
            poisoning=targeted,
            optimization=sweep.optimization,
            epochs=1,
            evaluation=sweep.evaluation,
        )
        return digest_of_victim(victim, inputs)

    here = digest(pairs)
    moved = shutil.copytree(pairs.parent, tmp_path / "moved", ignore=shutil.ignore_patterns("home", "moved"))
    assert digest(moved / "pairs.csv") == here
    (moved / "others.csv").write_text(pairs.read_text().replace("apple", "pear"))
    assert digest(moved / "others.csv") != here


def test_rows_that_a_source_leaves_out_are_noted_before_anything_runs(sweep: CleaningSweep, tmp_path: Path):
    """Of cleaning pairs and of a victim's, once."""
    (tmp_path / "set" / "00000").mkdir(parents=True)
    for number in range(32):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "set" / "00000" / f"{number:09d}.jpg")
    statuses = ["success"] * 32 + ["failed_to_download"] * 3
    table = {"key": [f"{number:09d}" for number in range(35)], "status": statuses, "caption": ["a photo of apple"] * 35}
    pq.write_table(pa.table(table), tmp_path / "set" / "00000.parquet")
    source = Img2Dataset(path=tmp_path / "set")
    victim = PretrainedVictim(
        name="own",
        architecture=sweep.victim.architecture,
        data=source,
        poisoning={"attack": {"kind": "badnet", "patch_size": 4}, "rate": 0.25},
        optimization=sweep.optimization.replace(global_batch_size=16, warmup_steps=0),
        epochs=1,
        evaluation=sweep.evaluation,
    )
    for changes in ({"data": source}, {"data": source, "victim": victim}, {"victim": victim}):
        notes = prepare.prepare(sweep.replace(**changes), tmp_path / "home").notes
        assert [note for note in notes if note.startswith("3 of the 35 rows of ")] == list(notes)
        assert len(notes) == 1


@pytest.mark.usefixtures("mlflow_is_there")
def test_a_sweep_whose_data_change_stops_and_goes_on_once_they_are_restored(
    sweep: CleaningSweep, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measured, original = victims.GivenVictim.ensure, pairs.read_text()

    def change_meanwhile(*arguments: Any, **named: Any) -> Any:
        victim = measured(*arguments, **named)
        pairs.write_text(original.replace("apple 7", "pear 7"))
        return victim

    monkeypatch.setattr(victims.GivenVictim, "ensure", change_meanwhile)
    with pytest.raises(Unfinished, match=r"the training pairs on node .* differ from what the command read"):
        run.run_sweep(sweep, tmp_path / "home", Options(inline=True))
    (trial,) = SweepFolder(tmp_path / "home" / "sweeps" / sweep.name).record().trials
    assert (trial.state, trial.points) == ("waiting", ())
    monkeypatch.setattr(victims.GivenVictim, "ensure", measured)
    pairs.write_text(original)
    record = run.run_sweep(sweep, tmp_path / "home", Options(inline=True))
    assert [(trial.state, len(trial.points)) for trial in record.trials] == [("finished", 2)]


def test_what_is_odd_about_a_test_set_is_said_before_anything_runs(
    sweep: CleaningSweep,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    news: Callable[[], list[str]],
):
    for folder in ("airplane", "bird"):
        (tmp_path / "test" / folder).mkdir(parents=True)
        shutil.copy(pairs.parent / "1.png", tmp_path / "test" / folder)
    test = ClassFolders(path=tmp_path / "test", class_names=("banana", "airplane"))
    odd = sweep.replace(evaluation=sweep.evaluation.replace(test=test))

    def stop(*arguments: Any, **named: Any) -> None:
        logging.getLogger("sweeplab").info("begun")
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_run_what_is_left", stop)
    with pytest.raises(KeyboardInterrupt):
        run.run_sweep(odd, tmp_path / "home", Options(inline=True))
    (note,) = [line for line in news() if line.startswith("note: 2 of 2 class_names differ from their folders")]
    assert "airplane -> banana, bird -> airplane;" in note
    assert news()[-1] == "begun"


def test_a_victim_in_a_folder_of_open_clip_is_the_one_in_its_file(sweep: CleaningSweep, tmp_path: Path):
    weights = load_weights(sweep.victim.path)
    (tmp_path / "model").mkdir()
    save_file(weights, tmp_path / "model" / "open_clip_model.safetensors")
    content = {"model_cfg": sweep.victim.architecture.resolved()}
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(content))
    by_file, by_folder = (
        prepare.prepare(sweep.replace(victim=sweep.victim.replace(path=path)), tmp_path / "home")
        for path in (tmp_path / "model" / "open_clip_model.safetensors", tmp_path / "model")
    )
    assert by_folder.digest == by_file.digest
    other = Architecture(config={**content["model_cfg"], "quick_gelu": True})
    victim = sweep.victim.replace(path=tmp_path / "model", architecture=other)
    with pytest.raises(InvalidInput, match="was trained with GELU, and the architecture has QuickGELU"):
        prepare.prepare(sweep.replace(victim=victim), tmp_path / "home")


@pytest.mark.parametrize(("flags", "touched"), [("01", False), ("ny", True)])
def test_a_victim_is_another_one_where_its_poisons_were_told_otherwise(
    smoke: CleaningSweep, pairs: Path, tmp_path: Path, flags: str, touched: bool
):
    """A first release took neither `n` nor `y` for a flag; row 0 says 1 to have one poison that it knew."""
    rows = pairs.read_text().splitlines()
    marked = [f"{row},{flags[row in (rows[2], rows[3])]}" for row in rows]
    pairs.write_text("\n".join([f"{rows[0]},is_backdoor", f"{rows[1]},1", *marked[2:]]))
    assert isinstance(smoke.victim, PretrainedVictim)
    data = PairsCSV(path=pairs)
    victim = smoke.victim.replace(
        data=data,
        poisoning=ImportedPoison(path=pairs, attack=BadNet(patch_size=4), target="banana"),
        optimization=fabricated.SWEEP.optimization,
    )
    prepared = prepare.prepare(smoke.replace(victim=victim), tmp_path / "home")
    test = victim.evaluation.load(tmp_path / "home" / "data")
    first = victim.digest(pairs=data.read(tmp_path).digest, test=test.digest)
    assert (prepared.victim_digest != first) == touched
    assert prepared.inputs is not None
    assert len(prepared.inputs.victim_table(victim)[1].indices) == 3


def test_a_start_reads_each_input_once(
    smoke: CleaningSweep, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of a sweep that trains its victim on the pairs that it cleans with, and tests both on the same images."""
    reads: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        read = getattr(owner, name)

        def counting(spec: Any, *arguments: Any, **named: Any) -> Any:
            reads[f"{owner.__name__}.{name}"] += 1
            return read(spec, *arguments, **named)

        monkeypatch.setattr(owner, name, counting)

    victim = smoke.victim
    assert isinstance(victim, PretrainedVictim)
    data = PairsCSV(path=pairs)
    optimization = smoke.optimization.replace(global_batch_size=4, warmup_steps=0)
    victim = victim.replace(data=data, optimization=victim.optimization.replace(global_batch_size=4, warmup_steps=0))
    sweep = smoke.replace(name="counted", victim=victim, data=data, optimization=optimization)
    for owner, name in ((PairsCSV, "read"), (FruitStallTest, "read"), (Poisoning, "plan")):
        counted(owner, name)

    def begin(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "run_inline", begin)
    with pytest.raises(KeyboardInterrupt):
        run.run_sweep(sweep, tmp_path / "home", Options(inline=True))
    assert reads == {"PairsCSV.read": 1, "FruitStallTest.read": 1, "Poisoning.plan": 1}
