"""Folders that others have made: they are read, and nothing that their files name is written or removed."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import pytest
from fabricated import Player, open_controller
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.adoption import adopt_sweep, adopt_victim, is_own_victim
from sweeplab.cli import running
from sweeplab.commands.disk import find_removable, foreign_folders, remove
from sweeplab.commands.logs import request_reruns
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.storage import locks
from sweeplab.storage.files import write_json
from sweeplab.storage.home import home_folder
from sweeplab.storage.ownership import KEY, MARK, home_key, write_signed
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep import prepare, pretraining
from sweeplab.sweep import run as sweep_run
from sweeplab.sweep.session import Session
from sweeplab.sweep.trial_storage import check_storage_of_trial
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.jobs import DataDigests

NAME = fabricated.SWEEP.name
LIKE_OURS = "attempt-9-epoch-0001.pt"


def stored_at(storage: Path | str) -> CleaningSweep:
    return fabricated.SWEEP.replace(resources=fabricated.SWEEP.resources.replace(storage=str(storage)))


def content(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of the user's, which no sweep of the user's has anything to do with."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("thesis.tex", "best.pt", LIKE_OURS, "attempt-1-after-point-0000-step-0000000002.pt", ".x.7.part"):
        (folder / name).write_text(name)
        os.utime(folder / name, (1, 1))
    return folder


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder of its own."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    monkeypatch.setattr(locks, "LONGEST_PARENT", 1000)  # for Ray's folder too: nobody makes sockets here


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home, in use."""
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path / "home"))
    home_key(tmp_path / "home")
    return tmp_path / "home"


def received(
    home: Path, tmp_path: Path, change: Callable[[SweepFolder], None], *, finished: bool = True
) -> SweepFolder:
    """A sweep that another home has made, copied into this one, with changes that its maker has made to its files."""
    made = tmp_path / "elsewhere" / "sweeps"
    if finished:
        fabricated.finished_sweep(made)
    else:
        controller = open_controller(fabricated.prepared_folder(made))
        Player(controller).play(controller.next_job(), num_points=2)
    shutil.copytree(made / NAME, home / "sweeps" / NAME)
    folder = SweepFolder(home / "sweeps" / NAME)
    change(folder)
    return folder


def naming(place: Path | str, number: int = 0) -> Callable[[SweepFolder], None]:
    """Have a trial name a storage."""

    def change(folder: SweepFolder) -> None:
        file = folder.trial(number).path / "trial.json"
        write_json(file, {**json.loads(file.read_text()), "storage": str(place)})

    return change


def command(*words: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    result = CliRunner().invoke(cli.app, list(words))
    return result.exit_code, result.output


# --- what is received is read only


@pytest.mark.parametrize("as_url", [False, True], ids=["path", "url"])
def test_gc_removes_nothing_that_a_received_sweep_names(home: Path, tmp_path: Path, mine: Path, as_url: bool):
    folder = received(home, tmp_path, naming(mine.as_uri() if as_url else mine))
    before = content(mine), content(folder.path)
    assert find_removable(home, set_aside=True, victims=True) == []
    code, output = command("gc", "--set-aside", "--victims")
    assert code == 0
    assert (
        f"{folder.path}: it came from elsewhere or is damaged, so neither it nor anything it names is removed" in output
    )
    assert (content(mine), content(folder.path)) == before


@pytest.mark.parametrize(
    "words", [["resume", NAME, "--inline"], ["rerun", NAME, "0"], ["resume", NAME, "--plan"]], ids=" ".join
)
def test_a_received_sweep_is_not_gone_on_with(home: Path, tmp_path: Path, mine: Path, words: list[str]):
    folder = received(home, tmp_path, naming(mine))
    before = content(mine), content(folder.path)
    code, output = command(*words)
    assert code == 2
    assert f"sweep {NAME!r} came from elsewhere" in output
    assert f"give --adopt, after a look at where it puts checkpoints: {mine}" in output
    assert (content(mine), content(folder.path)) == before


@pytest.mark.parametrize("flags", [["--inline"], ["--fresh", "--inline"], ["--supervise"], ["--plan"]], ids=" ".join)
def test_a_script_does_not_go_on_with_a_received_sweep_of_its_name_nor_sets_it_aside(
    home: Path,
    tmp_path: Path,
    mine: Path,
    flags: list[str],
    run_script: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    folder = received(home, tmp_path, naming(mine))
    monkeypatch.setattr(running, "_missing", lambda sweeps: {})
    before = content(mine), content(folder.path)
    assert run_script(flags, fabricated.SWEEP) == 2
    assert "came from elsewhere" in capsys.readouterr().err
    assert (content(mine), content(folder.path)) == before


def test_a_received_sweep_is_listed_ranked_reported_and_exported_as_it_is(home: Path, tmp_path: Path, mine: Path):
    folder = received(home, tmp_path, naming(mine))
    before = content(folder.path)
    for words in (
        ["list"],
        ["status", NAME],
        ["leaderboard", NAME],
        ["logs", NAME],
        ["logs", NAME, "0"],
        ["report", NAME],
        ["export", NAME, "--to", str(tmp_path / "tables")],
    ):
        code, output = command(*words)
        assert code == 0, output
    assert f"note: {NAME}: from elsewhere" in command("list")[1].splitlines()
    assert "  note: it came from elsewhere: it is read" in command("status", NAME)[1]
    assert json.loads(command("status", NAME, "--json")[1])["own"] is False
    assert content(folder.path).pop("report.html", None) is not None
    assert {name: text for name, text in content(folder.path).items() if name != "report.html"} == before


def test_no_process_is_signalled_for_a_received_sweep(home: Path, tmp_path: Path):
    received(home, tmp_path, lambda folder: None)
    code, output = command("stop", NAME)
    assert code == 2
    assert "no command of this home runs it" in output


def test_a_received_sweep_under_another_name_is_not_taken_for_one_that_was_set_aside(home: Path, tmp_path: Path):
    folder = received(home, tmp_path, lambda folder: None)
    folder.path.rename(folder.path.with_name("from-bob"))
    assert find_removable(home, set_aside=True) == []
    assert command("resume", "from-bob")[0] == 2
    assert "calls itself 'made-up'; rename its folder" in command("resume", "from-bob", "--adopt")[1]


def test_a_copy_of_an_own_sweep_under_another_name_is_not_removed_as_set_aside(home: Path):
    folder = fabricated.finished_sweep(home / "sweeps")
    shutil.copytree(folder.path, folder.path.with_name("backup"))
    assert find_removable(home, set_aside=True) == []


def test_trials_without_a_sweeps_record_are_not_gone_on_with(home: Path, tmp_path: Path, mine: Path):
    folder = received(home, tmp_path, naming(mine))
    (folder.path / "sweep.json").unlink()
    with pytest.raises(InvalidInput, match=r"holds trials and no sweep\.json"), folder.lock():
        pass


# --- adopting


@pytest.mark.parametrize("as_url", [False, True], ids=["path", "url"])
def test_an_adopted_sweep_still_writes_and_removes_nothing_where_its_files_say(
    home: Path, tmp_path: Path, mine: Path, as_url: bool
):
    folder = received(home, tmp_path, naming(mine.as_uri() if as_url else mine), finished=False)
    before = content(mine)
    assert adopt_sweep(folder)
    assert folder.is_own()
    with pytest.raises(InvalidInput, match="mine, which is gone or holds no mark of this home; restore it, or copy"):
        Player(open_controller(folder)).play_all()
    for number in folder.trial_numbers():  # as the message says
        header = {name: value for name, value in folder.trial_header(number).items() if name != "storage"}
        write_json(folder.trial(number).path / "trial.json", header)
    Player(open_controller(folder)).play_all()
    assert folder.record().state == "finished"
    remove(find_removable(home, set_aside=True, victims=True))
    request_reruns(folder, [0])
    Player(open_controller(folder)).play_all()
    assert content(mine) == before


def test_an_ended_trial_of_an_adopted_sweep_loses_no_file_that_its_record_names(home: Path, tmp_path: Path, mine: Path):
    """The controller drops the checkpoints of all but the best trials when it opens, wherever records say they lie."""
    folder = received(home, tmp_path, lambda folder: None)
    for number in folder.trial_numbers():
        naming(mine, number)(folder)
        for point in folder.trial(number).points():
            (mine / (point.checkpoint or "none")).write_text("mine")
    before = content(mine)
    adopt_sweep(folder)
    open_controller(folder, fabricated.SWEEP.replace(resources=fabricated.SWEEP.resources.replace(keep_checkpoints=1)))
    assert find_removable(home) == []
    assert content(mine) == before


@pytest.mark.usefixtures("mlflow_is_there")
def test_resume_and_rerun_adopt_where_they_are_asked_to(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = received(home, tmp_path, lambda folder: None)
    assert command("rerun", NAME, "0", "--adopt")[0] == 0
    assert folder.is_own()
    assert folder.reruns() == [0]
    shutil.rmtree(folder.path)
    folder = received(home, tmp_path / "again", lambda folder: None)
    monkeypatch.setattr(running, "_missing", lambda sweeps: {})
    prepared = prepare.Prepared(
        fabricated.SWEEP, folder.header()["digest"], {}, DataDigests(), "", 1, fabricated.IMAGES
    )
    monkeypatch.setattr(sweep_run, "prepare", lambda sweep, home, fresh=False: prepared)
    code, output = command("resume", NAME, "--adopt", "--inline")
    assert code == 0, output
    assert "made-up: adopted; it is this home's own from now on" in output
    assert command("resume", NAME, "--inline")[0] == 0


def test_a_sweep_that_another_home_still_stores_gets_an_identity_of_its_own(home: Path, tmp_path: Path):
    """Both homes go on with it, and neither touches the other's checkpoints."""
    sweep = stored_at(tmp_path / "shared")
    theirs = fabricated.prepared_folder(tmp_path / "elsewhere" / "sweeps", sweep)
    controller = open_controller(theirs, sweep)
    Player(controller).play(controller.next_job(), num_points=2)
    shutil.copytree(theirs.path, home / "sweeps" / NAME)
    folder = SweepFolder(home / "sweeps" / NAME)
    before = content(tmp_path / "shared")
    assert adopt_sweep(folder)
    assert folder.header()["identity"] != theirs.header()["identity"]
    with pytest.raises(InvalidInput, match=r"trial 0: its checkpoints lie in .*shared"):
        Player(open_controller(folder, sweep)).play_all()
    theirs_stay = folder.trial(0).storage.location
    shutil.copytree(theirs_stay, folder.trial(0).checkpoints)
    (folder.trial(0).checkpoints / MARK).unlink()
    header = {name: value for name, value in folder.trial_header(0).items() if name != "storage"}
    write_json(folder.trial(0).path / "trial.json", header)
    assert folder.trial(0).num_kept() == 2, "what was copied is found"
    Player(open_controller(folder, sweep)).play_all()
    assert find_removable(home) == []
    kept = {name: data for name, data in content(tmp_path / "shared").items() if theirs.header()["identity"] in name}
    assert kept == before


def test_an_identity_that_is_a_path_is_not_kept(home: Path, tmp_path: Path):
    def change(folder: SweepFolder) -> None:
        write_json(folder.path / "sweep.json", {**folder.header(), "identity": "../../../mine"})

    folder = received(home, tmp_path, change)
    adopt_sweep(folder)
    assert len(folder.header()["identity"]) == 8


# --- what comes back changed


def test_a_storage_in_an_own_trials_record_is_not_enough(home: Path, mine: Path):
    """The sweep was sent away, and came back with another trial.json."""
    folder = fabricated.finished_sweep(home / "sweeps")
    naming(mine)(folder)
    assert folder.is_own()
    before = content(mine)
    assert find_removable(home) == []
    open_controller(folder)
    assert content(mine) == before


def test_a_sweeps_record_that_was_changed_elsewhere_is_none_of_this_home(home: Path, mine: Path):
    folder = fabricated.finished_sweep(home / "sweeps")
    header = folder.header()
    header["spec"]["resources"]["storage"] = str(mine)
    write_json(folder.path / "sweep.json", header)
    with pytest.raises(InvalidInput, match=f"came from elsewhere.*puts checkpoints: {mine}"):
        folder.check_own()


def test_a_mark_is_good_for_its_own_place_and_its_own_sweep_alone(home: Path, tmp_path: Path, mine: Path):
    sweep = stored_at(tmp_path / "shared")
    folder = fabricated.finished_sweep(home / "sweeps", sweep)
    place = Path(folder.trial(0).storage.location)
    assert folder.trial(0).owns_storage()
    shutil.copy(place / MARK, mine / MARK)
    naming(mine)(folder)
    assert not folder.trial(0).owns_storage()
    other = fabricated.finished_sweep(home / "sweeps", sweep.replace(name="other"))
    naming(place)(other)
    assert not other.trial(0).owns_storage()
    with pytest.raises(InvalidInput, match="holds no mark of this home"):
        check_storage_of_trial(sweep.replace(name="other"), other, 0, other.trial(0))


def test_of_an_own_sweep_only_files_of_our_names_go(home: Path):
    folder = fabricated.finished_sweep(home / "sweeps")
    stray, mine = folder.trial(0).checkpoints / LIKE_OURS, folder.trial(0).checkpoints / "my-favourite.pt"
    for path in (stray, mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("weights")
    assert [item.path for item in find_removable(home)] == [stray]
    assert command("gc")[0] == 0
    assert (stray.exists(), mine.exists()) == (False, True)


# --- links


def test_a_link_in_a_sweeps_folder_leads_no_command_elsewhere(home: Path, mine: Path):
    folder = fabricated.finished_sweep(home / "sweeps")
    before = content(mine)
    shutil.rmtree(folder.trial(0).checkpoints, ignore_errors=True)
    folder.trial(0).checkpoints.symlink_to(mine)
    assert find_removable(home) == []
    folder.trial(0).remove_checkpoint(LIKE_OURS)
    with pytest.raises(InvalidInput, match="checkpoints is a symbolic link"), folder.lock():
        pass
    assert content(mine) == before


@pytest.mark.parametrize("level", ["trials", "trials/0000"])
def test_gc_leaves_a_sweep_alone_that_holds_a_link(home: Path, tmp_path: Path, level: str):
    """As one may that was lent out: its trials' folders are not signed."""
    folder = fabricated.finished_sweep(home / "sweeps")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder.path / level, elsewhere)
    (folder.path / level).symlink_to(elsewhere)
    (folder.trial(0).checkpoints / LIKE_OURS).write_text("mine")
    assert find_removable(home) == []
    assert folder.path in foreign_folders(home)


def test_files_are_not_written_through_links_of_their_names(home: Path, tmp_path: Path, mine: Path):
    folder = received(home, tmp_path, lambda folder: None)
    for name in ("report.html", "lock", "events.jsonl", "holder.json", "stop"):
        (folder.path / name).unlink(missing_ok=True)
        (folder.path / name).symlink_to(mine / "thesis.tex")
    before = content(mine)
    assert command("report", NAME)[0] == 0
    assert command("status", NAME)[0] in (0, 1)
    with pytest.raises(StorageFault):
        folder.event("one")
    assert content(mine) == before


@pytest.mark.parametrize("name", ["../../best.pt", "/etc/passwd"])
def test_a_checkpoint_that_is_a_path_is_refused(home: Path, name: str):
    folder = fabricated.prepared_folder(home / "sweeps")
    run = folder.trial(0)
    run.path.mkdir(parents=True)
    made = fabricated.point(0, 90, 79, checkpoint=name)
    (run.path / "history.jsonl").write_text(json.dumps(made.to_json()) + "\n")
    with pytest.raises(InvalidInput, match="must be a file's name without a folder"):
        run.points()


# --- homes


def test_what_a_home_holds_when_it_gets_its_key_is_its_own_but_for_storages_elsewhere(tmp_path: Path):
    """As homes were before they had a key."""
    home = tmp_path / "home"
    plain = fabricated.finished_sweep(home / "sweeps")
    stored = fabricated.finished_sweep(home / "sweeps", stored_at(tmp_path / "shared").replace(name="stored"))
    for folder in (plain, stored):
        header = {name: value for name, value in folder.header().items() if name != "signature"}
        write_json(folder.path / "sweep.json", header)
    for mark in (tmp_path / "shared").rglob(MARK):
        mark.unlink()
    (home / KEY).unlink()
    stray = Path(stored.trial(0).storage.location) / LIKE_OURS
    stray.write_bytes(b"x")
    assert plain.is_own(to_read=True)
    assert not (home / KEY).exists(), "a command that reads makes none"
    assert plain.is_own()
    assert not stored.is_own()
    assert find_removable(home) == []
    with pytest.raises(InvalidInput, match=f"give --adopt.*{tmp_path}/shared"):
        stored.check_own()
    identity = stored.header()["identity"]
    assert adopt_sweep(stored)
    assert stored.header()["identity"] == identity
    assert [item.path for item in find_removable(home)] == [stray]


def test_the_first_command_that_may_write_makes_the_homes_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So that what is copied into the home afterwards is told from what it holds, though it has run no sweep yet."""
    home = tmp_path / "new"
    monkeypatch.setenv("SWEEPLAB_HOME", str(home))
    assert command("list")[0] == 0
    assert not home.exists()
    assert command("gc")[0] == 0
    assert (home / KEY).stat().st_mode & 0o777 == 0o600
    assert not received(home, tmp_path, lambda folder: None).is_own()


def test_a_home_that_was_moved_whole_stays_its_own(tmp_path: Path):
    folder = fabricated.finished_sweep(tmp_path / "home" / "sweeps")
    assert folder.is_own()
    (tmp_path / "home").rename(tmp_path / "moved")
    moved = SweepFolder(tmp_path / "moved" / "sweeps" / NAME)
    assert moved.is_own()
    with moved.lock():
        pass


def test_a_home_of_another_user_is_read_and_not_run(home: Path, monkeypatch: pytest.MonkeyPatch):
    folder = fabricated.finished_sweep(home / "sweeps")
    monkeypatch.setattr(os, "access", lambda *arguments, **named: False)

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert folder.is_own(to_read=True)
    with pytest.raises(InvalidInput, match=r"home\.key cannot be read \(Permission denied\).*set SWEEPLAB_HOME"):
        folder.is_own()


def test_gc_leaves_alone_what_others_keep_beside_a_home(home: Path, mine: Path):
    """The home may be a folder with other things in it, such as the user's own."""
    shutil.copytree(mine, home / "ray" / "my-project")
    shutil.copytree(mine, home / "downloads")
    for path in home.rglob("*"):
        os.utime(path, (1, 1))
    assert find_removable(home) == []


# --- victims


def victim_of(smoke: CleaningSweep, home: Path, metadata: dict[str, Any], points: int) -> Path:
    """A victim's folder with so many points, made by nobody known."""
    assert isinstance(smoke.victim, PretrainedVictim)
    run = pretraining.victim_folder(home, smoke.victim, "d1")
    write_json(run.path / "victim.json", {"spec": {}, "digest": "d1", **metadata})
    for index in range(points):
        made = fabricated.point(index, 90, 79, checkpoint=f"attempt-1-epoch-{index:04d}.pt" if index else None)
        run.commit(made, fabricated.outcomes(made.measurement))
    return run.path


def test_a_received_victim_that_is_not_finished_is_not_trained_on(
    smoke: CleaningSweep, home: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
):
    path = victim_of(smoke, home, {"storage": str(mine)}, 2)
    before = content(mine), content(path)
    assert isinstance(smoke.victim, PretrainedVictim)
    with pytest.raises(InvalidInput, match=f"victim {path.name} came from elsewhere.*puts checkpoints: {mine}"):
        pretraining.pretrain_victim(smoke.victim, "d1", Session(home, inline=True))
    assert find_removable(home, victims=True) == []
    assert path in foreign_folders(home)
    assert (content(mine), content(path)) == before


def test_a_damaged_victim_is_not_adopted(smoke: CleaningSweep, home: Path):
    """Signed, it would be the home's own for good."""
    path = victim_of(smoke, home, {}, points=2)
    (path / "victim.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"victim\.json is damaged \(spec=None\)"):
        adopt_victim(RunFolder(path))
    assert (path / "victim.json").read_text() == "{}"


def test_an_adopted_victim_removes_nothing_where_its_record_says(smoke: CleaningSweep, home: Path, mine: Path):
    victim_of(smoke, home, {"storage": str(mine)}, 2)
    before = content(mine)
    assert isinstance(smoke.victim, PretrainedVictim)
    run = pretraining.victim_folder(home, smoke.victim, "d1")
    assert adopt_victim(run)
    assert is_own_victim(run)
    with pytest.raises(InvalidInput, match=f"victim v was begun with its checkpoints in {mine} and keeps them there"):
        pretraining.check_same_storage("victim v", run.metadata().get("storage"), None)
    run.clear_abandoned()
    run.keep_checkpoints(set())
    assert content(mine) == before


def test_a_received_victim_that_is_finished_is_no_baseline(smoke: CleaningSweep, home: Path):
    """Its history says how accurate the victim was, and every retention hangs on that."""
    path = victim_of(smoke, home, {}, 3)
    assert isinstance(smoke.victim, PretrainedVictim)
    write_json(path / "result.json", {"state": "finished", "selected_epoch": 2})
    with pytest.raises(InvalidInput, match=f"victim {path.name} came from elsewhere.* give --adopt"):
        pretraining.pretrain_victim(smoke.victim, "d1", Session(home, inline=True))


def test_no_victim_goes_while_a_damaged_sweep_may_name_it(smoke: CleaningSweep, home: Path):
    path = victim_of(smoke, home, {}, 1)
    write_signed(path / "victim.json", {"spec": {}, "digest": "d1"}, home)
    assert [item.path for item in find_removable(home, victims=True)] == [path]
    (home / "sweeps" / "broken").mkdir(parents=True)
    (home / "sweeps" / "broken" / "sweep.json").write_text("[1]")
    assert find_removable(home, victims=True) == []


def test_a_received_victim_goes_with_no_gc_and_an_own_one_does(smoke: CleaningSweep, home: Path):
    path = victim_of(smoke, home, {}, 1)
    assert find_removable(home, victims=True) == []
    write_signed(path / "victim.json", {"spec": {}, "digest": "d1"}, home)
    assert [item.path for item in find_removable(home, victims=True)] == [path]


# --- names


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep outside the home."""
    return fabricated.finished_sweep(tmp_path_factory.mktemp("outside")).path


@pytest.mark.parametrize(
    "words",
    [
        *(["status"], ["report"], ["stop"], ["logs"], ["leaderboard"], ["replay"], ["audit"]),
        *(["export", "--to", "tables"], ["resume", "--plan"], ["rerun", "0"]),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("kind", ["upwards", "absolute", "hidden", "empty", "control"])
def test_what_is_no_name_of_a_sweep_is_refused_by_every_command(home: Path, outside: Path, words: list[str], kind: str):
    before = content(outside)
    name = {
        "upwards": os.path.relpath(outside, home / "sweeps"),
        "absolute": str(outside),
        "hidden": ".importing-x",
        "empty": "",
        "control": "made-up\x1b[2J",
    }[kind]
    code, output = command(words[0], name, *words[1:])
    assert code == 2
    assert "is no sweep's name" in output
    assert "\x1b" not in output
    assert content(outside) == before


# --- privacy


def test_records_and_logs_are_for_this_user_alone_and_checkpoints_in_a_shared_storage_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = os.umask(0o022)
    try:
        home, shared = tmp_path / "home", tmp_path / "shared"
        monkeypatch.setenv("SWEEPLAB_HOME", str(home))
        home_folder()
        folder = fabricated.finished_sweep(home / "sweeps", stored_at(shared))
        open_controller(folder, stored_at(shared)).log(0, "Traceback: somewhere")
        for path in (home, *home.rglob("*")):
            is_lock = path.name.endswith("lock")
            assert is_lock or path.stat().st_mode & 0o077 == 0, f"{path} {oct(path.stat().st_mode)}"
        assert (folder.trial(0).path / "log.txt").exists()
        assert all(path.stat().st_mode & 0o044 == 0o044 for path in (shared, *shared.rglob("*")))
    finally:
        os.umask(before)


def test_records_of_an_older_home_are_for_this_user_alone_from_its_first_use(tmp_path: Path):
    """Older versions made them for all to read."""
    for name in ("sweeps", "victims"):
        (tmp_path / name).mkdir(mode=0o755)
    home_key(tmp_path)
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("sweeps", "victims")] == ["0o700", "0o700"]
