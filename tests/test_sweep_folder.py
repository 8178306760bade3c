"""A sweep's folder: its lock, its state, and the record that everything downstream reads."""

import dataclasses
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import fabricated
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from sweeplab import cli, sweep_folder
from sweeplab.attacks import ATTACKS
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.data.fruit_stall import FruitStall
from sweeplab.evaluation.retention import missing_backdoor
from sweeplab.experiment import CleaningSweep
from sweeplab.ranking.kept_weights import find_weights
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import MeasuredImages, Measurement
from sweeplab.specs import InvalidInput
from sweeplab.storage.files import read_json, read_lines, write_json
from sweeplab.storage.home import home_folder
from sweeplab.sweep.resume import set_aside
from sweeplab.sweep_folder import SweepFolder, sweeps_of

HOLD = """
import sys, time
from pathlib import Path
from sweeplab.sweep_folder import SweepFolder
with SweepFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(folder: SweepFolder):
    """Another process that holds the sweep's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_holder_is_refused_and_the_first_is_named(folder: SweepFolder, holder: subprocess.Popen):
    message = rf"'made-up' is being run by process {holder.pid} on \S+ since \d{{4}}-.*; wait for it, or `sweeplab stop"
    with pytest.raises(InvalidInput, match=message), folder.lock():
        pass


def test_a_refused_holder_leaves_the_first_ones_name(folder: SweepFolder, holder: subprocess.Popen):
    for _ in range(2):
        with pytest.raises(InvalidInput, match=f"process {holder.pid} "), folder.lock():
            pass


def test_the_lock_is_free_after_its_holder_was_killed(folder: SweepFolder, holder: subprocess.Popen):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not folder.is_locked()
    with folder.lock():
        assert folder.is_locked()


def test_the_lock_of_a_folder_that_may_only_be_read_is_seen_too(
    folder: SweepFolder, holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert folder.is_locked()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not folder.is_locked()
    (folder.path / "lock").unlink()
    assert not folder.is_locked()


def test_looking_at_the_lock_does_not_take_it(folder: SweepFolder):
    assert not folder.is_locked()
    with folder.lock():
        pass


def test_the_lock_is_free_after_an_error(folder: SweepFolder):
    with pytest.raises(RuntimeError), folder.lock():
        raise RuntimeError
    assert not folder.is_locked()


def test_a_sweep_with_work_left_is_interrupted_without_a_driver_and_running_with_one(folder: SweepFolder):
    assert folder.record().state == "interrupted"
    with folder.lock():
        assert folder.record().state == "running"


def test_a_begun_trial_waits_without_a_driver_and_runs_with_one(folder: SweepFolder):
    player = fabricated.Player(fabricated.open_controller(folder))
    player.play(player.controller.next_job(), num_points=2)
    assert [trial.state for trial in folder.record().trials] == ["waiting"]
    with folder.lock():
        assert [trial.state for trial in folder.record().trials] == ["running"]


def test_a_sweep_is_finished_when_every_planned_trial_is_over(tmp_path: Path):
    record = fabricated.finished_sweep(tmp_path).record()
    assert record.state == "finished"
    assert {trial.state for trial in record.trials} == {"finished"}
    assert len(record.trials) == record.planned_trials == 6


def test_a_sweep_that_was_set_aside_is_closed(tmp_path: Path):
    folder = fabricated.finished_sweep(tmp_path)
    assert not folder.record().origin.is_closed
    other = folder.path.rename(folder.path.with_name("made-up.20260101-000000"))
    assert SweepFolder(other).record().origin.is_closed


def test_the_record_says_what_the_sweep_cleans_with_as_far_as_it_knows(tmp_path: Path):
    header = json.loads((fabricated.prepared_folder(tmp_path).path / "sweep.json").read_text())

    def told(**data: object) -> tuple[str, int | None]:
        slipped = {"slipped": {"count": 25}} if data.pop("has_poisons", False) else {}
        spec = {name: value for name, value in header["spec"].items() if name != "slipped"}
        origin = sweep_folder.origin_of({**header, "spec": {**spec, "data": data, **slipped}})
        return origin.cleaning_pairs, origin.cleaning_poisons

    assert sweep_folder.origin_of(header).cleaning_pairs == "64 (fruit-stall)"
    assert sweep_folder.origin_of(header).cleaning_poisons == 0
    assert told(kind="clean-sample", num_pairs=2000, num_poisons=5) == ("2,000 (clean-sample)", 5)
    assert told(kind="csv", num_pairs=9000, sample={"num": 500}, has_poisons=True) == ("500 (csv)", 25)
    assert told(kind="csv", num_pairs=None) == ("csv", None)
    assert told() == ("", None)


def test_an_attack_in_words_leaves_out_what_is_usual(tmp_path: Path):
    header = json.loads((fabricated.prepared_folder(tmp_path).path / "sweep.json").read_text())
    assert sweep_folder.origin_of(header).attack == "badnet (patch_size 4, pattern gaussian, location random)"
    header["spec"]["victim"]["attack"] |= {"noise": "fixed", "noise_seed": 3, "overflow": "wrap"}
    assert sweep_folder.origin_of(header).attack.endswith("noise fixed, noise_seed 3, location random, overflow wrap)")
    fields = [field for attack in ATTACKS for field in attack.model_fields.items() if field[0] in sweep_folder.USUAL]
    assert {name: field.default for name, field in fields} == sweep_folder.USUAL


def test_the_record_says_what_the_sweep_is(tmp_path: Path):
    record = fabricated.finished_sweep(tmp_path).record()
    assert (record.name, record.method, record.target, record.protocol) == ("made-up", "cleanclip", "banana", "paper")
    assert (record.victim, record.victim_name) == (fabricated.VICTIM.measurement, "made-up-victim")
    assert (record.epochs, record.asr_ceiling) == (2, 0.05)
    assert (record.parameters, record.log_parameters) == (("learning_rate", "ssl_weight"), ("learning_rate",))
    assert record.ends == {"learning_rate": (1e-4, 1e-1), "ssl_weight": (0.0, 4.0)}


def test_ends_are_those_of_the_grid_where_it_is_run_and_of_numbers_alone(tmp_path: Path):
    header = json.loads((fabricated.prepared_folder(tmp_path).path / "sweep.json").read_text())
    spec = header["spec"]
    grid = {**spec, "search": {"sampler": "grid"}}
    assert sweep_folder.searched_ends({"spec": grid}) == {"ssl_weight": (1.0, 2.0), "learning_rate": (1e-3, 1e-1)}
    words = {**grid, "grid": {"axes": {"optimizer": ["sgd", "adamw"], "shrink_perturb": [False, True]}}}
    choice = {**spec, "space": {"dimensions": {"optimizer": {"kind": "choice", "values": [1, 2]}}}}
    for other in (words, choice, {"search": {"asr_ceiling": 0.05}}):
        assert sweep_folder.searched_ends({"spec": other}) == {}


def test_the_record_says_which_test_images_have_a_triggered_copy(folder: SweepFolder):
    assert folder.record().images == fabricated.IMAGES
    folder.write_header(fabricated.SWEEP, "0" * 16, {})
    assert folder.record().images == fabricated.IMAGES


def test_the_record_names_the_script_that_ran_the_sweep_from_any_folder(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Commands of SweepLab's own are no script; a job's copy of its script is removed, so its path stays as given."""

    def recorded(started: str) -> str:
        monkeypatch.setattr(sys, "argv", [started])
        folder.write_header(fabricated.SWEEP, "0" * 16, {})
        return folder.record().origin.script

    monkeypatch.chdir(tmp_path)
    assert recorded("sweeps/toy.py") == f"{tmp_path}/sweeps/toy.py"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for own in ("/usr/bin/sweeplab", str(Path(cli.__file__).with_name("__main__.py"))):
        assert recorded(own) == f"{tmp_path}/sweeps/toy.py"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert recorded("sweeps/other.py") == "sweeps/other.py"


def as_older(folder: SweepFolder) -> SweepFolder:
    """The same as it was before the header said anything of the test images."""
    header = folder.header()
    del header["images"]
    (folder.path / "sweep.json").write_text(json.dumps(header))
    return folder


def test_an_older_sweep_has_no_halves_and_says_why(tmp_path: Path):
    """Of 100 test images 80 were triggered; nothing says which."""
    known = fabricated.finished_sweep(tmp_path)
    assert any(row.asr_report is not None for row in rank_trials(known.record(), known.outcomes).rows)
    folder = as_older(known)
    record = folder.record()
    assert record.images is None
    assert "an older version ran it and did not write down which test images" in record.notes[-1]
    rows = rank_trials(record, folder.outcomes).rows
    assert any(row.feasible for row in rows)
    assert {(row.accuracy_report, row.asr_report) for row in rows} == {(None, None)}


def measured_as(path: Path, measurement: Measurement, sweep: CleaningSweep = fabricated.SWEEP) -> SweepFolder:
    """A sweep whose victim has this measurement."""
    folder = SweepFolder(path / sweep.name)
    folder.write_header(sweep, sweep.digest(), {}, fabricated.IMAGES)
    outcomes = fabricated.outcomes(measurement)
    folder.commit_victim(dataclasses.replace(fabricated.VICTIM, measurement=measurement, outcomes=outcomes))
    return folder


def test_of_an_older_sweep_it_is_known_where_every_test_image_was_triggered(tmp_path: Path):
    folder = as_older(measured_as(tmp_path, Measurement(90, 100, 99, 100, "evaluation")))
    assert folder.record().images == MeasuredImages(())
    assert folder.record().notes == ()


def test_of_an_older_sweep_it_is_known_that_target_images_are_no_test_images(tmp_path: Path):
    attack = TargetedImages(images=FruitStall(num_pairs=64, image_size=32))
    victim = fabricated.SWEEP.victim.replace(attack=attack, target=None)
    sweep = fabricated.SWEEP.replace(victim=victim)
    folder = as_older(measured_as(tmp_path, Measurement(90, 100, 16, 16, "evaluation"), sweep))
    assert folder.record().images == MeasuredImages(())


def test_a_victim_below_the_ceiling_is_noted_wherever_the_sweep_is_looked_at(tmp_path: Path):
    """3 of 80 triggered images are 3.75 %; 497 of 10,000 would read 5.0 % with one decimal, which is not below."""
    (note,) = measured_as(tmp_path, fabricated.measurement(90, 3)).record().notes
    assert note.startswith("the victim's own ASR of 3.8 % lies below the ceiling of 5 % before any cleaning")
    assert note.endswith("no trial is certified")
    assert "ASR of 4.97 % lies below" in str(missing_backdoor(Measurement(1, 1, 497, 10_000, ""), 0.05))


def test_a_victim_at_chance_is_noted(tmp_path: Path):
    """6 of 80 are 7.5 %, where 1 of 16 classes is 6.25 %."""
    (note,) = measured_as(tmp_path, fabricated.measurement(90, 6)).record().notes
    assert note.startswith("the victim's own ASR of 7.5 % is not above chance, 1 of 16 classes")


def test_a_victim_that_was_planted_with_another_target_is_noted(folder: SweepFolder):
    for planted, notes in (("banana", ()), (None, ()), ("apple", ("apple",))):
        folder.commit_victim(fabricated.VICTIM, planted_target=planted)
        found = folder.record().notes
        assert len(found) == len(notes)
        assert all("poisoned towards 'apple'; the ASR is measured towards 'banana'" in note for note in found)


def test_what_is_cleaned_of_another_target_than_was_planted_is_not_certified(tmp_path: Path):
    """Of 1,875 triggered images none is hit any more, so that but for the other target all would be."""
    many = dataclasses.replace(fabricated.measurement(90, 0), asr_k=1800, asr_n=1875)
    folder = fabricated.finished_sweep(tmp_path / "sweeps")
    record = dataclasses.replace(
        folder.record(),
        victim=many,
        trials=tuple(
            dataclasses.replace(
                trial,
                points=tuple(
                    dataclasses.replace(p, measurement=dataclasses.replace(many, asr_k=0 if p.index else 1800))
                    for p in trial.points
                ),
            )
            for trial in folder.record().trials
        ),
    )
    for planted, certified in ((None, True), ("banana", True), ("apple", False)):
        board = rank_trials(dataclasses.replace(record, planted_target=planted), lambda number, index: None)
        assert [row.certified for row in board.rows] == [certified] * 6


@pytest.mark.parametrize("text", ["[1]", "{}", '{"name": "made-up", "planned_trials": "x"}', "null", "no JSON"])
def test_a_damaged_sweep_hides_no_other(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch):
    fabricated.finished_sweep(tmp_path / "sweeps")
    (tmp_path / "sweeps" / "broken").mkdir()
    (tmp_path / "sweeps" / "broken" / "sweep.json").write_text(text)
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path))
    found = CliRunner().invoke(cli.app, ["list", "--json"])
    assert [(row["sweep"], row["state"]) for row in json.loads(found.stdout)] == [
        ("made-up", "finished"),
        ("broken", "damaged"),
    ]
    assert "broken" in CliRunner().invoke(cli.app, ["list"]).stdout
    gone = CliRunner().invoke(cli.app, ["gc"])
    assert (gone.exit_code, "broken: it came from elsewhere or is damaged" in gone.stdout) == (0, True)
    assert CliRunner().invoke(cli.app, ["status", "broken"]).exit_code == 2


def test_a_trials_record_holds_its_points_and_their_seconds(tmp_path: Path):
    trial = fabricated.finished_sweep(tmp_path).record().trials[0]
    assert [point.epoch for point in trial.points] == [0.0, 1.0, 2.0]
    assert (trial.number, trial.attempts, trial.seconds) == (0, 1, 9.0)


def test_an_unknown_sweep_is_refused_with_the_known_ones(tmp_path: Path):
    fabricated.finished_sweep(tmp_path / "sweeps")
    with pytest.raises(InvalidInput, match=r"no sweep named 'other' in .*; known: made-up"):
        SweepFolder(tmp_path / "sweeps" / "other").header()


def test_a_home_without_sweeps_says_so(tmp_path: Path):
    with pytest.raises(InvalidInput, match="known: none yet"):
        SweepFolder(tmp_path / "sweeps" / "other").header()


def test_a_sweep_without_a_measured_victim_has_no_record_yet(tmp_path: Path):
    folder = SweepFolder(tmp_path / "made-up")
    folder.write_header(fabricated.SWEEP, "0" * 16, {})
    with pytest.raises(InvalidInput, match="no measured victim"):
        folder.record()


def test_a_resume_keeps_the_sweeps_identity(folder: SweepFolder):
    before = folder.header()["identity"]
    folder.write_header(fabricated.SWEEP, "0" * 16, {})
    assert folder.header()["identity"] == before


def test_a_sweep_that_is_begun_anew_has_another_identity(folder: SweepFolder):
    before = folder.header()["identity"]
    old = set_aside(folder)
    folder.write_header(fabricated.SWEEP, "0" * 16, {})
    assert folder.header()["identity"] != before
    assert SweepFolder(old).header()["identity"] == before


def test_sweeps_are_listed_by_name(tmp_path: Path):
    for name in ("b", "a"):
        fabricated.prepared_folder(tmp_path / "sweeps", fabricated.SWEEP.replace(name=name))
    (tmp_path / "sweeps" / "not-a-sweep").mkdir()
    assert [folder.name for folder in sweeps_of(tmp_path)[0]] == ["a", "b"]


@pytest.mark.parametrize("file", ["sweep.json", "trials/0003/trial.json", "trials/0003/result.json"])
def test_a_damaged_file_is_bad_input_that_names_it(file: str, tmp_path: Path):
    folder = fabricated.finished_sweep(tmp_path)
    (folder.path / file).write_bytes(b'{"dig')
    with pytest.raises(InvalidInput, match=f"{re.escape(file)} is damaged"):
        folder.record()


def test_events_are_told_in_order_with_their_time(folder: SweepFolder):
    folder.event("driver began", process=1)
    folder.event("trial began", trial=0)
    events = read_lines(folder.path / "events.jsonl")
    assert [event["event"] for event in events] == ["driver began", "trial began"]
    assert events[0]["time_ms"] <= events[1]["time_ms"]


def test_a_driver_leaves_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweep_folder, "HEARTBEAT_SECONDS", 0.01)
    folder = fabricated.prepared_folder(tmp_path)
    assert folder.last_heartbeat() == 0
    began = time.time_ns() // 1_000_000
    with folder.heartbeats():
        while not folder.last_heartbeat():
            time.sleep(0.01)
    assert began <= folder.last_heartbeat() <= time.time_ns() // 1_000_000
    for thread in threading.enumerate():
        if thread.name == "heartbeats":
            thread.join()
    (folder.path / "alive.json").write_text("{")
    assert folder.last_heartbeat() == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_home_without_locks_is_refused_in_one_message(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InvalidInput, match=r"lock cannot be locked .*its file system has no locks"), folder.lock():
        pass
    assert not folder.is_locked()  # nothing can run there, so nothing is said to


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_new_home_without_locks_is_refused_in_the_same_message(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path / "new"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # filelock's own words on a lock that is none
        with pytest.raises(InvalidInput, match=r"home\.key\.lock cannot be locked .*its file system has no locks"):
            home_folder()
        ran = CliRunner().invoke(cli.app, ["doctor"])
    assert ran.exit_code == 2
    assert "its file system has no locks" in ran.stdout


def test_another_users_lock_is_named(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, flags: int, mode: int = 0) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (folder.path / "lock").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidInput, match=rf"lock belongs to another user \(uid {os.getuid()}\)"), folder.lock():
        pass


def test_the_weights_of_a_finished_sweep_are_found_where_they_lie(tmp_path: Path):
    folder = fabricated.finished_sweep(tmp_path)
    record = folder.record()
    kept = find_weights(record)
    there = sorted(str(path) for path in folder.path.glob("trials/*/checkpoints/*.pt"))
    assert kept
    assert sorted(one.location for one in kept) == there
    Path(kept[0].location).unlink()
    assert [one.location for one in find_weights(record)] == [one.location for one in kept[1:]]


def test_weights_in_an_object_store_are_named_without_asking_it(tmp_path: Path):
    folder = fabricated.finished_sweep(tmp_path)
    for number in folder.trial_numbers():
        path = folder.trial(number).path / "trial.json"
        write_json(path, read_json(path) | {"storage": f"s3://nowhere/{number}"})
    locations = [one.location for one in find_weights(folder.record())]
    assert locations
    assert all(place.startswith("s3://nowhere/") for place in locations)
