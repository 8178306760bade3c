"""Sweeps and victims of older versions: named, ranked and shown, and never continued under another recipe.

First over made-up ledgers, then over a home that version 0.1.0 made (`old_homes/make_home.py`).
"""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import pytest
from fabricated import SWEEP
from old_homes import make_home
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR
from sweeplab.commands.disk import disk_table
from sweeplab.data.augmentation import PARView
from sweeplab.data.fruit_stall import FruitStall
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.records import MeasuredImages
from sweeplab.specs import InvalidInput
from sweeplab.storage.files import write_json
from sweeplab.storage.ownership import write_signed
from sweeplab.sweep import comparison, prepare, pretraining, resume
from sweeplab.sweep_folder import SweepFolder
from sweeplab.versions import installed_version, num_changes
from sweeplab.worker.jobs import DataDigests

pytestmark = pytest.mark.usefixtures("drawn")

ARCHIVE = Path(__file__).parent / "old_homes" / "home-0.1.0.tar.xz"
CHANGED = "made by an older version (0.0.9): CleanCLIP: views are drawn otherwise"


def as_of_before(folder: SweepFolder, **changes: Any) -> SweepFolder:
    """The folder as version 0.0.9 would have left it, with the changes that are known as it is made."""
    header = folder.header()
    environment = {**header["environment"], "sweeplab": "0.0.9"}
    write_signed(folder.path / "sweep.json", {**header, "environment": environment, **changes}, folder.home)
    return folder


def command(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a `sweeplab` command."""
    result = CliRunner().invoke(cli.app, list(words))
    return result.exit_code, result.stdout, result.stderr


def refusal(*words: str) -> str:
    """The one message with which a command refuses."""
    code, _, said = command(*words)
    assert (code, said.count("error: ")) == (2, 1), said
    return said


@pytest.fixture
def views_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version in which CleanCLIP, the made-up sweep's method, has come to do something else."""
    monkeypatch.setattr(CleanCLIP, "CHANGES", (*CleanCLIP.CHANGES, "views are drawn otherwise"))


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """A finished sweep of version 0.0.9 in the home that commands find."""
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path))
    return as_of_before(fabricated.finished_sweep(tmp_path / "sweeps"))


# --- over made-up ledgers


def test_a_sweep_that_was_begun_before_a_change_is_named_with_it(begun: SweepFolder, views_changed: None):
    assert begun.record().notes == (CHANGED,)
    status = json.loads(command("status", "made-up", "--json")[1])
    assert (status["state"], status["notes"]) == ("finished", [CHANGED])
    assert json.loads(command("list", "--json")[1])[0]["notes"] == [CHANGED]
    assert f"\n  note: {CHANGED}\n" in command("status", "made-up")[1]
    assert f"\nnote: made-up: {CHANGED}\n" in command("list")[1]


def test_without_a_change_of_what_it_holds_nothing_is_named(begun: SweepFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PAR, "CHANGES", (*PAR.CHANGES, "something"))
    assert begun.record().notes == ()


def test_a_sweep_that_was_begun_after_a_change_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CleanCLIP, "CHANGES", ("one",))
    folder = as_of_before(fabricated.prepared_folder(tmp_path))
    assert folder.header()["changes"]["CleanCLIP"] == 1
    assert folder.record().notes == ()
    monkeypatch.setattr(CleanCLIP, "CHANGES", ("one", "two"))
    assert folder.record().notes == ("made by an older version (0.0.9): CleanCLIP: two",)


def test_the_version_that_made_a_sweep_does_not_read_its_spec_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views_changed: None
):
    """It would import torch, which takes `list` seconds."""
    folder = fabricated.prepared_folder(tmp_path)
    monkeypatch.setattr(CleaningSweep, "model_validate", None)
    assert folder.header()["environment"]["sweeplab"] == installed_version("sweeplab")
    assert folder.record().notes == ()


def test_a_sweep_of_an_older_version_is_not_continued(begun: SweepFolder, views_changed: None):
    before = (begun.path / "sweep.json").read_bytes()
    for words in (("resume", "made-up"), ("resume", "made-up", "--plan"), ("rerun", "made-up", "0")):
        message = refusal(*words)
        assert f"sweep 'made-up' was {CHANGED}\n" in message
        assert "--fresh" in message
        assert "another name" in message
    assert (begun.path / "sweep.json").read_bytes() == before


def checked(folder: SweepFolder, sweep: CleaningSweep) -> str:
    """With which message a script's start refuses to go on; empty where it goes on."""
    prepared = prepare.Prepared(sweep, sweep.digest(), {}, DataDigests(), "0" * 16, 64, MeasuredImages(()))
    try:
        resume.check_same_spec(folder, prepared)
    except InvalidInput as error:
        return str(error)
    return ""


def test_the_same_script_does_not_continue_it_either(begun: SweepFolder, views_changed: None):
    assert checked(begun, SWEEP) == (
        "sweep 'made-up' was made by an older version (0.0.9), and this version would run it differently:\n"
        "  CleanCLIP: views are drawn otherwise\n"
        "use --fresh to set the old one aside, or give this one another name"
    )


def test_the_same_script_continues_what_no_change_touches(begun: SweepFolder):
    assert checked(begun, SWEEP) == ""


@pytest.fixture
def par_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version in which PAR's augmentation, None at first, is `PARView()` where it is left out."""
    monkeypatch.setattr(PAR, "FIRST_DEFAULTS", {"augmentation": None})
    monkeypatch.setattr(PAR.model_fields["augmentation"], "default", PARView())


def old_par(path: Path) -> SweepFolder:
    """A sweep of PAR without augmentation, as it was begun when that was the default."""
    sweep = SWEEP.replace(method=PAR(augmentation=None), space=make_home.sweep("x").space, grid=None)
    return as_of_before(fabricated.finished_sweep(path / "sweeps", sweep))


def test_a_script_that_left_a_changed_default_out_is_another_recipe(tmp_path: Path, par_changed: None):
    folder = old_par(tmp_path)
    sweep = CleaningSweep.model_validate(folder.header()["spec"])
    message = checked(folder, sweep.replace(method=PAR(augmentation=PARView())))
    assert "was made by an older version (0.0.9)" in message
    assert "\n  method.augmentation: None -> {'kind': 'par'" in message
    assert "(the default has changed)\n" in message
    assert "`sweeplab resume made-up`" in message


def test_a_record_says_its_recipe_in_full_and_goes_on_when_a_default_has_changed(tmp_path: Path, par_changed: None):
    folder = old_par(tmp_path)
    sweep = CleaningSweep.model_validate(folder.header()["spec"])
    assert sweep.digest() == folder.header()["digest"]
    assert folder.record().notes == ()
    assert checked(folder, sweep) == ""


def test_a_spec_that_is_refused_now_is_shown_with_the_reason(begun: SweepFolder):
    spec = begun.header()["spec"]
    as_of_before(begun, spec={**spec, "epochs": -1})
    (note,) = begun.record().notes
    assert note.startswith("made by an older version (0.0.9), and this one refuses it: CleaningSweep: epochs=-1")
    assert note in refusal("resume", "made-up")


def test_of_an_imported_table_nothing_can_have_changed(begun: SweepFolder, views_changed: None):
    as_of_before(begun, imported={"file": "table.csv"})
    assert begun.record().notes == ()


def test_a_script_with_classes_of_its_own_is_judged_at_its_start(begun: SweepFolder, views_changed: None):
    """Its record does not hold them, so that its spec cannot be read."""
    as_of_before(begun, own_code={"Own": {"module": "script", "code": "0" * 16}})
    assert begun.record().notes == ()
    assert "CleanCLIP: views are drawn otherwise" in checked(begun, SWEEP)


def test_fields_that_are_new_are_no_difference(begun: SweepFolder, views_changed: None):
    """A record of before a field existed has what its default gives."""
    spec = begun.header()["spec"]
    del spec["measure_at"], spec["method"]["mmcl_weight"]
    as_of_before(begun, spec=spec)
    assert comparison.compare(begun.header(), SWEEP).fields == []


VICTIM = PretrainedVictim(
    name="made-up-victim",
    architecture=fabricated.ARCHITECTURE,
    data=FruitStall(num_pairs=64, image_size=32),
    poisoning=make_home.POISON,
    optimization=SWEEP.optimization,
    epochs=1,
    evaluation=SWEEP.evaluation,
)


def old_victim(home: Path, victim: PretrainedVictim = VICTIM) -> Path:
    """The folder of a victim as version 0.0.9 left it."""
    run = pretraining.victim_folder(home, victim, victim.digest())
    write_json(
        run.path / "victim.json",
        {
            "spec": victim.to_json(),
            "digest": victim.digest(),
            "changes": num_changes(victim),
            "environment": {"sweeplab": "0.0.9"},
        },
    )
    return run.path


def test_a_victim_of_an_older_version_is_named_and_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = old_victim(tmp_path)
    assert pretraining.older_victims(VICTIM, pretraining.victim_folder(tmp_path, VICTIM, VICTIM.digest())) == []
    monkeypatch.setattr(MMCL, "CHANGES", (*MMCL.CHANGES, "the scale is trained"))
    run = pretraining.victim_folder(tmp_path, VICTIM, VICTIM.digest())
    assert run.path != old
    assert pretraining.older_victims(VICTIM, run) == [
        "victim made-up-victim was made by an older version (0.0.9: MMCL: the scale is trained); "
        "it is not reused and is trained anew"
    ]


def test_a_victim_of_another_spec_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old_victim(tmp_path)
    monkeypatch.setattr(MMCL, "CHANGES", (*MMCL.CHANGES, "the scale is trained"))
    other = VICTIM.replace(epochs=2)
    assert pretraining.older_victims(other, pretraining.victim_folder(tmp_path, other, other.digest())) == []


def test_what_takes_disk_space_names_a_victim_of_an_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = old_victim(tmp_path)
    assert [row["what"] for row in disk_table(tmp_path) if "victim" in row["what"]] == [f"victims/{path.name}"]
    monkeypatch.setattr(MMCL, "CHANGES", (*MMCL.CHANGES, "the scale is trained"))
    assert [row["what"] for row in disk_table(tmp_path) if "victim" in row["what"]] == [
        f"victims/{path.name} (made by an older version (0.0.9): MMCL: the scale is trained)"
    ]


# --- over a home of version 0.1.0

CHANGES = {
    "mmcl-cleaning": (),
    "cleanclip": ("CleaningSweep: augmented captions: ",),
    "par": (),
    "over-safeclip": ("PretrainedVictim: augmented captions: ", "SafeCLIP: safe sets: "),
    "gp-conditional": ("CleaningSweep: the Gaussian process and NSGA-II model parameters with a condition",),
    "gp-plain": (),
    "tpe-startup": (),
}
"""What has changed since in each of the home's sweeps, as the beginnings of sentences."""
RANKS = {
    "mmcl-cleaning": [(0, 1.0, 39, 3), (1, 1.0, 26, 1)],
    "cleanclip": [(1, 1.0, 33, 4), (0, None, None, 12)],
    "par": [(0, None, None, 9)],
    "over-safeclip": [(1, 1.0, 43, 7), (0, 1.0, 36, 3)],
    "gp-conditional": [(0, 1.0, 16, 0)],
    "gp-plain": [(0, None, None, 10)],
    "tpe-startup": [(0, None, None, 10)],
}
"""What version 0.1.0 printed, best first: trial, epoch and correct images of 160 of its best cleaned point (None: there
is none), and hits of 150 at its lowest ASR."""
SAME = [name for name, changes in CHANGES.items() if not changes]
OTHER = [name for name, changes in CHANGES.items() if changes]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home, in another place than it was made in."""
    home = tmp_path_factory.mktemp("old") / "home"
    with tarfile.open(ARCHIVE) as file:
        file.extractall(home, filter="data")
    return home


@pytest.fixture
def old_home(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home where commands find it, and from where its weights' relative path leads to them: not to be changed."""
    monkeypatch.setenv("SWEEPLAB_HOME", str(unpacked))
    monkeypatch.chdir(unpacked)
    return unpacked


@pytest.fixture
def own_copy(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the home that may be changed."""
    home = shutil.copytree(unpacked, tmp_path / "home")
    monkeypatch.setenv("SWEEPLAB_HOME", str(home))
    monkeypatch.chdir(home)
    return home


def sweep_of_now(name: str) -> CleaningSweep:
    """What the script that began a sweep of the home makes with the code of now."""
    (sweep,) = [made() for made in make_home.SWEEPS if made().name == name]
    return sweep


def contents(folder: Path) -> dict[Path, Any]:
    """What a sweep's files hold, but for the signature of the home, which every command may add, and for its lock."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    header = json.loads(files.pop(folder / "sweep.json"))
    return {**files, folder: {name: value for name, value in header.items() if name != "signature"}}


def test_the_archive_stays_small():
    assert ARCHIVE.stat().st_size < 600_000


@pytest.mark.parametrize("name", CHANGES)
def test_every_old_sweep_is_listed_and_those_that_are_made_otherwise_now_are_named(name: str, old_home: Path):
    (row,) = [row for row in json.loads(command("list", "--json")[1]) if row["sweep"] == name]
    assert row["state"] == ("finished" if name in ("cleanclip", "over-safeclip") else "interrupted")
    notes = [note for note in row["notes"] if note.startswith("made by an older version (0.1.0): ")]
    if name in SAME:
        assert notes == []
        return
    (note,) = notes
    assert all(beginning in note for beginning in CHANGES[name])
    assert note in command("list")[1]
    assert note in command("status", name)[1]


@pytest.mark.parametrize("name", CHANGES)
def test_every_old_sweep_is_ranked_as_before_and_reported(name: str, old_home: Path):
    board = json.loads(command("leaderboard", name, "--json")[1])
    expected = [
        (trial, epoch, None if correct is None else correct / 160, hits / 150)
        for trial, epoch, correct, hits in RANKS[name]
    ]
    assert [(row["trial"], row["epoch"], row["accuracy"], row["min_asr"]) for row in board["trials"]] == expected
    code, page, _ = command("report", name)
    assert code == 0
    shown = (" ".join(board["notes"]), command("leaderboard", name)[1], Path(page.strip()).read_text())
    assert ["made by an older version (0.1.0): " in text for text in shown] == [name in OTHER] * 3


@pytest.mark.parametrize("name", OTHER)
def test_an_old_sweep_that_is_made_otherwise_now_is_not_continued(
    name: str, old_home: Path, run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    before = contents(old_home / "sweeps" / name)
    for words in (("resume", name, "--inline"), ("rerun", name, "0")):
        message = refusal(*words)
        assert f"sweep {name!r} was made by an older version (0.1.0): " in message
        assert all(beginning in message for beginning in CHANGES[name])
    assert run_script(["--inline"], sweep_of_now(name)) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    assert f"sweep {name!r} was made by an older version (0.1.0), and this version would run it differently" in message
    assert all(f"\n  {beginning}" in message for beginning in CHANGES[name])
    assert "--fresh" in message
    assert contents(old_home / "sweeps" / name) == before


@pytest.mark.parametrize("name", SAME)
def test_an_old_sweep_that_is_made_alike_now_would_go_on(name: str, old_home: Path):
    """From its record, which says its recipe in full: PAR without augmentation, TPE with eight start-up trials."""
    code, said, error = command("resume", name, "--plan")
    assert (code, error) == (0, "")
    done = "1 are done and stay, 1 go on, 1 are new" if name == "mmcl-cleaning" else "1 are done and stay, 0 go on, 1"
    assert done in said
    assert "victim mmcl-victim: is there and is reused" in said
    if name == "mmcl-cleaning":
        assert "trial 1: goes on after epoch 1;" in said


@pytest.mark.parametrize("name", ["mmcl-cleaning", "gp-plain", "tpe-startup"])
def test_the_script_of_an_old_sweep_that_is_made_alike_now_would_go_on(
    name: str, old_home: Path, run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    assert run_script(["--plan"], sweep_of_now(name)) == 0
    assert "1 are done and stay" in capsys.readouterr().out


def test_a_script_that_leaves_pars_augmentation_out_does_not_go_on_with_an_old_sweep(
    old_home: Path, run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    """It was None, and is the paper's now."""
    assert run_script(["--inline"], sweep_of_now("par")) == 2
    message = capsys.readouterr().err
    assert "\n  method.augmentation: None -> {'kind': 'par'" in message
    assert "(the default has changed)" in message
    assert "`sweeplab resume par`" in message


def test_a_victim_of_the_old_home_that_is_made_otherwise_now_is_named(old_home: Path):
    said = command("gc", "--dry-run")[1]
    (old,) = [line for line in said.splitlines() if "victims/safeclip-victim-" in line]
    assert "(made by an older version (0.1.0): " in old
    assert "SafeCLIP: safe sets: " in old
    (same,) = [line for line in said.splitlines() if "victims/mmcl-victim-" in line]
    assert "older" not in same


def test_a_sweep_that_needs_a_victim_of_the_old_home_says_that_it_is_trained_anew(old_home: Path):
    """Its folder is another one, by the victim's digest."""
    victim = make_home.over_safeclip().victim
    assert isinstance(victim, PretrainedVictim)
    prepared = prepare.prepare(make_home.over_safeclip().replace(name="new"), old_home)
    run = pretraining.victim_folder(old_home, victim, prepared.victim_digest)
    assert not run.path.exists()
    (line,) = pretraining.older_victims(victim, run)
    assert line.startswith("victim safeclip-victim was made by an older version (0.1.0: ")
    assert line.endswith("; it is not reused and is trained anew")


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_an_old_sweep_that_is_made_alike_now_runs_to_its_end(name: str, own_copy: Path):
    folder = SweepFolder(own_copy / "sweeps" / name)
    before = [folder.trial_record(number, is_driven=False).points for number in folder.trial_numbers()]
    code, said, error = command("resume", name, "--inline")
    assert code == 0, error
    assert "victim mmcl-victim is there already" in said
    record = SweepFolder(folder.path).record()
    assert record.state == "finished"
    assert [trial.state for trial in record.trials] == ["finished"] * record.planned_trials
    for points, trial in zip(before, record.trials, strict=False):
        assert trial.points[: len(points)] == points
    if name == "mmcl-cleaning":
        assert [trial.attempts for trial in record.trials] == [1, 2, 1]
