"""A sweep's folder: its lock, its state, and the record that everything downstream reads."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fabricated
import pytest
from filelock import FileLock

from sweeplab.orchestration import ledger
from sweeplab.orchestration.driver import set_aside
from sweeplab.orchestration.files import read_lines
from sweeplab.orchestration.ledger import SweepFolder, sweep_folders
from sweeplab.specs import InvalidInput

HOLD = """
import sys, time
from pathlib import Path
from sweeplab.orchestration.ledger import SweepFolder
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
    player = fabricated.Player(fabricated.open_book(folder))
    player.play(player.book.next_job(), num_points=2)
    assert [trial.state for trial in folder.record().trials] == ["waiting"]
    with folder.lock():
        assert [trial.state for trial in folder.record().trials] == ["running"]


def test_a_sweep_is_finished_when_every_planned_trial_is_over(tmp_path: Path):
    record = fabricated.finished_sweep(tmp_path).record()
    assert record.state == "finished"
    assert {trial.state for trial in record.trials} == {"finished"}
    assert len(record.trials) == record.planned_trials == 6


def test_the_record_says_what_the_sweep_is(tmp_path: Path):
    record = fabricated.finished_sweep(tmp_path).record()
    assert (record.name, record.method, record.target, record.protocol) == ("made-up", "cleanclip", "banana", "paper")
    assert (record.victim, record.victim_name) == (fabricated.VICTIM.measurement, "made-up-victim")
    assert (record.epochs, record.asr_ceiling) == (2, 0.05)
    assert (record.parameters, record.log_parameters) == (("learning_rate", "ssl_weight"), ("learning_rate",))


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
    with pytest.raises(InvalidInput, match="no measured victim yet"):
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
    assert [folder.name for folder in sweep_folders(tmp_path)] == ["a", "b"]


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
    monkeypatch.setattr(ledger, "ALIVE_SECONDS", 0.01)
    folder = fabricated.prepared_folder(tmp_path)
    assert folder.last_sign_of_life() == 0
    began = time.time_ns() // 1_000_000
    with folder.signs_of_life():
        while not folder.last_sign_of_life():
            time.sleep(0.01)
    assert began <= folder.last_sign_of_life() <= time.time_ns() // 1_000_000
    for thread in threading.enumerate():
        if thread.name == "signs of life":
            thread.join()
    (folder.path / "alive.json").write_text("{")
    assert folder.last_sign_of_life() == 0
