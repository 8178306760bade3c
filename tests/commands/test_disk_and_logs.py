"""Housekeeping: logs, stopping what runs, and what takes disk space and may go."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fabricated
import pytest
from fabricated import Player, open_controller
from filelock import FileLock

from sweeplab.commands import logs
from sweeplab.commands.disk import disk_table, find_removable, readable, remove, size_of
from sweeplab.commands.logs import log, log_values, stop, trial_log
from sweeplab.ranking.leaderboard import rank_trials, short_value
from sweeplab.records import percent
from sweeplab.specs import InvalidInput
from sweeplab.storage import locks, node_cache
from sweeplab.storage.files import write_json
from sweeplab.storage.locks import Work, lock_path, process_facts
from sweeplab.storage.ownership import write_signed
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.failures import Failure

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of its own."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    monkeypatch.setattr(locks, "LONGEST_PARENT", 1000)  # for Ray's folder too: nobody makes sockets here
    return tmp_path / "node"


@pytest.fixture
def used(tmp_path: Path, node: Path) -> Path:
    """A home with one finished sweep."""
    fabricated.finished_sweep(tmp_path / "sweeps")
    return tmp_path


@pytest.fixture
def folder(used: Path) -> SweepFolder:
    return SweepFolder(used / "sweeps" / fabricated.SWEEP.name)


def write(path: Path, size: int, *, hours: float = 2.0) -> Path:
    """A file so many hours old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))
    return path


# --- logs


def test_a_sweeps_log_has_a_line_for_every_event_with_its_facts(folder: SweepFolder):
    lines = list(log(folder))
    assert len(lines) == len(folder.events())
    assert lines[0].endswith("trial began      trial 0")


def test_a_log_says_what_came_of_a_trial_and_nothing_internal(folder: SweepFolder):
    """The winner's numbers are the leaderboard's; the last trial was never cleaned."""
    folder.event("driver began", process=1, digest="0123", before_until_ms=5)
    board = rank_trials(folder.record(), folder.outcomes)
    best, last = board.winner, next(row for row in board.rows if row.trial == 5)
    assert best is not None
    *lines, began = log(folder)
    worth = f"keeps {percent(best.retention)} at ASR {percent(best.asr)} (epoch {best.epoch:g})"
    assert any(line.endswith(f"trial ended      trial {best.trial}: {worth}") for line in lines)
    assert lines[-1].endswith(f"trial ended      trial 5: not cleaned, lowest ASR {percent(last.min_asr)}")
    assert began.endswith("driver began     process 1")


def test_the_tail_of_a_log_is_its_end(folder: SweepFolder):
    assert list(log(folder, tail=2)) == list(log(folder))[-2:]
    assert list(log(folder, tail=0)) == []
    assert list(log(folder, 0, tail=1)) == trial_log(folder, 0)[-1:]


def test_a_followed_log_goes_on_while_the_sweep_runs_and_shows_its_last_lines(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
):
    """Between two looks something happens; with the last event the command ends."""
    for trial in (None, 0):
        state = {"runs": True, "looks": 0}

        def meanwhile(seconds: float, state: dict[str, Any] = state) -> None:
            state["looks"] += 1
            folder.event("attempt failed", trial=0, reason=f"look {state['looks']} of {trial}")  # noqa: B023
            state["runs"] = state["looks"] < 3

        monkeypatch.setattr(logs.time, "sleep", meanwhile)
        monkeypatch.setattr(SweepFolder, "is_locked", lambda self, state=state: state["runs"])
        lines = list(log(folder, trial, tail=0, follow=True))
        assert [line[line.index("look") :] for line in lines] == [f"look {n} of {trial}" for n in (1, 2, 3)]


def test_a_trials_log_has_its_setting_its_points_and_what_it_printed(tmp_path: Path):
    """The setting in three digits, as a run tells it; to the last digit in JSON."""
    folder = fabricated.prepared_folder(tmp_path)
    controller = open_controller(folder)
    for _ in range(2):
        job = controller.next_job()
    Player(controller, lambda params, index: (90 - index, 40)).play(job, num_points=2)
    controller.log(1, "Traceback: somewhere")
    controller.failed(1, Failure("ValueError: no", True))
    lines = trial_log(folder, 1)
    assert lines[0] == "trial 1: failed (ValueError: no)"
    assert f"  learning_rate = {short_value(job.params['learning_rate'])}" in lines
    assert "epoch 1: accuracy 89.0 %, ASR 50.0 %, loss 1.5000 (attempt 1, 3 s)" in lines
    assert lines[-1] == "Traceback: somewhere"
    values = log_values(folder, 1)
    assert (values["params"], values["log"]) == (job.params, ["Traceback: somewhere"])
    assert [event["event"] for event in values["events"]] == ["trial began", "attempt failed", "trial ended"]
    assert [point["measurement"]["accuracy_k"] for point in values["points"]] == [90, 89]
    assert [point["accuracy"] for point in values["points"]] == [0.9, 0.89]
    assert not any("trial 0" in line for line in lines)


def test_logs_of_what_is_not_there_are_refused(folder: SweepFolder):
    with pytest.raises(InvalidInput, match="has no trial 9; known: 0 to 5"):
        trial_log(folder, 9)
    nowhere = SweepFolder(folder.path.with_name("other"))
    for ask in (lambda: list(log(nowhere)), lambda: trial_log(nowhere, 0)):
        with pytest.raises(InvalidInput, match="no sweep named 'other'"):
            ask()


# --- stop


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SETTLE_SECONDS", 0.02)


def test_a_sweep_that_nobody_runs_is_not_stopped_whatever_a_killed_driver_left(folder: SweepFolder):
    """The number in the file may belong to another process by now."""
    bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    holder = {"process": bystander.pid, "host": socket.gethostname(), "since": "long ago"}
    write_json(folder.path / "holder.json", holder)
    try:
        assert stop(folder.work) is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_look_at_the_lock_is_not_taken_for_a_driver(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch):
    """`sweeplab status` holds it for a moment, while a killed driver's file still names a process."""
    answers = iter([True, False])
    monkeypatch.setattr(Work, "is_locked", lambda work: next(answers))
    write_json(folder.path / "holder.json", {"process": os.getpid(), "host": socket.gethostname(), "since": ""})
    assert stop(folder.work) is False


def test_a_driver_on_another_host_is_not_stopped_from_here(folder: SweepFolder):
    with folder.lock():
        write_json(folder.path / "holder.json", {"process": 1, "host": "elsewhere", "since": ""})
        with pytest.raises(InvalidInput, match="run by process 1 on elsewhere; run this command there, or `ray job st"):
            stop(folder.work)


@pytest.mark.parametrize(
    "change",
    [{"started": "1"}, {"command": "python other.py"}, {"started": None, "command": None}, {"process": -1}],
    ids=lambda change: " ".join(change),
)
def test_a_process_that_is_not_the_one_that_began_the_sweep_is_not_signalled(
    folder: SweepFolder, change: dict[str, Any]
):
    """The record may have been written by anybody, or its process be dead and the number another's."""
    bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    metadata = process_facts(bystander.pid)
    assert metadata is not None
    holder = {"process": bystander.pid, "host": socket.gethostname(), "since": "", **metadata}
    try:
        with folder.lock():
            written = {name: value for name, value in {**holder, **change}.items() if value is not None}
            write_json(folder.path / "holder.json", written)
            with pytest.raises(InvalidInput, match="is not the process that started sweep 'made-up'"):
                stop(folder.work)
            assert not folder.work.stop_mark.exists()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_is_told_from_others_by_its_start_and_its_command_line():
    program, pipe = "print(1, flush=True); input()", subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-S", "-c", program, word], stdin=pipe, stdout=pipe) for word in "ab"
    ]
    try:
        for process in processes:  # until both are what they were asked to be
            assert process.stdout is not None
            process.stdout.readline()
        metadata = [process_facts(process.pid) for process in processes]
        assert metadata == [process_facts(process.pid) for process in processes]
        assert metadata[0] is not None
        assert metadata[0]["command"] == f"{sys.executable} -S -c {program} a"
        assert metadata[0] != metadata[1]
    finally:
        for process in processes:
            process.communicate(b"\n")
    assert process_facts(processes[0].pid) is None


def test_what_a_file_says_commands_no_terminal(folder: SweepFolder):
    folder.event("attempt failed", trial=0, reason="no\x1b]0;owned\x07\nforged line\x9b2J")
    (line,) = [line for line in log(folder) if "owned" in line]
    assert line.endswith("trial 0, no\ufffd]0;owned\ufffd\ufffdforged line\ufffd2J")
    assert line in trial_log(folder, 0)


HOLDER = """
import signal, sys, time
from pathlib import Path
from sweeplab.sweep_folder import SweepFolder
ends = sys.argv[2] == "polite"
signal.signal(signal.SIGTERM, (lambda *_: sys.exit(75)) if ends else signal.SIG_IGN)
with SweepFolder(Path(sys.argv[1])).lock():
    print("ready", flush=True)
    time.sleep(600)
"""


def holding(folder: SweepFolder, manner: str) -> subprocess.Popen[str]:
    """A process that holds the sweep's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path), manner],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_driver_is_asked_to_end_as_sigterm_does(folder: SweepFolder):
    process = holding(folder, "polite")
    assert stop(folder.work, wait_seconds=60) is True
    assert process.wait(timeout=60) == 75
    assert folder.work.holder() is None


def test_a_driver_that_does_not_end_is_named(folder: SweepFolder):
    process = holding(folder, "stubborn")
    try:
        with pytest.raises(InvalidInput, match=f"process {process.pid} did not end within 0.3 s; `kill -9 "):
            stop(folder.work, wait_seconds=0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not folder.is_locked()


# --- disk space


def test_sizes_add_up_and_are_sorted(used: Path):
    write(used / "victims" / "v-1" / "checkpoints" / "a.pt", 3_000_000)
    write(used / "data" / "set" / "part", 2_000_000)
    write(used / "mlflow.db", 1_000_000)
    rows = {row["what"]: row["bytes"] for row in disk_table(used)}
    assert [name for name in rows if not name.startswith("sweeps")] == ["victims/v-1", "data/set", "mlflow.db"]
    assert [rows[name] for name in ("victims/v-1", "data/set", "mlflow.db")] == [3_000_000, 2_000_000, 1_000_000]
    assert rows["sweeps/made-up"] == size_of(used / "sweeps" / "made-up") > 0


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2_500_000, "2.5 MB"), (10**13, "10.0 TB")]
)
def test_bytes_for_people(count: int, text: str):
    assert readable(count) == text


def test_a_tidy_home_has_no_rubbish(used: Path):
    assert find_removable(used, set_aside=True, victims=True) == []


def test_old_leftovers_go_and_young_ones_stay(used: Path, folder: SweepFolder):
    checkpoints = folder.trial(0).checkpoints
    old = [
        write(used / "ray" / "tune-1234" / "state", 10),
        write(folder.path / ".sweep.json.77.part", 20),
        write(checkpoints / "attempt-7-epoch-0001.pt", 30),
    ]
    then = time.time() - 7200
    os.utime(used / "ray" / "tune-1234", (then, then))
    young = [
        write(used / "ray" / "tune-5678" / "state", 10, hours=0),
        write(folder.path / ".other.78.part", 10, hours=0),
    ]
    found = find_removable(used)
    assert sorted((item.path, item.bytes) for item in found) == sorted(
        [(used / "ray" / "tune-1234", 10), (old[1], 20), (old[2], 30)]
    )
    kept = set(used.rglob("*")) - {*old, used / "ray" / "tune-1234"}
    assert remove(found) == 60
    assert set(used.rglob("*")) == kept >= set(young)


def test_nothing_of_a_sweep_that_runs_goes(used: Path, folder: SweepFolder):
    write(folder.trial(0).checkpoints / "attempt-7-epoch-0001.pt", 30)
    write(used / "ray" / "tune-1234", 10)
    with folder.lock():
        assert find_removable(used, set_aside=True) == []


def test_what_the_node_keeps_is_shown_and_goes_on_request_after_a_day(used: Path, node: Path):
    cache = node_cache.node_cache()
    for name, hours in (("decoded-1", 25), ("data-2", 1)):
        write(cache / name / "pixels", 10_000)
        mark = write(cache / name / "complete", 0)
        os.utime(mark, (time.time() - 3600 * hours,) * 2)
    shown = {row["what"]: row["bytes"] for row in disk_table(used)}
    assert shown[f"{cache} (this node: 1 data, 1 decoded)"] >= 20_000
    assert find_removable(used) == []
    (item,) = find_removable(used, copies=True)
    assert (item.path, item.why) == (cache, "kept by this node, not used for a day (1 decoded)")
    assert 10_000 <= item.bytes < 20_000
    assert remove([item]) == item.bytes
    assert [path.name for path in cache.iterdir() if path.name[0] != "."] == ["data-2"]


def test_checkpoints_of_trials_that_go_on_stay(tmp_path: Path):
    folder = fabricated.prepared_folder(tmp_path / "sweeps")
    job = open_controller(folder).next_job()
    write(Path(job.checkpoints) / "attempt-1-after-point-0000-step-0000000002.pt", 30)
    assert find_removable(tmp_path) == []


def test_a_checkpoint_in_a_storage_of_its_own_is_found_there(tmp_path: Path):
    storage = tmp_path / "shared"
    resources = fabricated.SWEEP.resources.replace(storage=str(storage))
    folder = fabricated.finished_sweep(tmp_path / "home" / "sweeps", fabricated.SWEEP.replace(resources=resources))
    place = Path(folder.trial(0).storage.location)
    assert place.is_relative_to(storage)
    stray = write(place / "attempt-7-epoch-0001.pt", 30)
    found = find_removable(tmp_path / "home")
    assert [(item.path, item.bytes) for item in found] == [(stray, 30)]
    assert remove(found) == 30
    assert not stray.exists()


def test_a_sweep_that_was_set_aside_goes_on_request(used: Path, folder: SweepFolder):
    aside = folder.path.with_name("made-up.20260101-000000.7")
    folder.path.rename(aside)
    assert find_removable(used) == []
    (item,) = find_removable(used, set_aside=True)
    assert (item.path, item.why) == (aside, "a sweep that was begun anew")
    assert remove([item]) == item.bytes > 0
    assert not aside.exists()


def test_a_victim_goes_only_where_no_sweep_names_it_and_nobody_makes_it(used: Path, folder: SweepFolder):
    """A sweep names its victim from its beginning, long before the victim is finished and measured."""
    write_signed(folder.path / "sweep.json", {**folder.header(), "contents": {"victim": "d1"}}, used)
    (folder.path / "victim" / "victim.json").unlink()
    for name in ("made-up-victim-d1", "made-up-victim-d2", "under-way-d3", "run-alone-d4"):
        write_signed(used / "victims" / name / "victim.json", {"spec": {}, "digest": name[-2:]}, used)
    RunFolder(used / "victims" / "run-alone-d4").mark_run_alone()
    with FileLock(lock_path(used / "victims" / "under-way-d3")):
        found = find_removable(used, victims=True)
    assert [item.path.name for item in found] == ["made-up-victim-d2"]
    assert find_removable(used) == []
