"""MLflow's own process: it writes what this one would, dies with it, and is started again where it died alone."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fabricated
import pytest
from filelock import FileLock

from sweeplab.sweep import tracking_process
from sweeplab.sweep.mlflow_sync import full_setting
from sweeplab.sweep.tracking_process import Ledger, TrackingFault, TrackingHere, TrackingProcess
from sweeplab.sweep_folder import SweepFolder
from sweeplab.tracking.runs import VictimFacts


def ledger_of(folder: SweepFolder) -> Ledger:
    record = folder.record()
    settings = {trial.number: full_setting(fabricated.SWEEP.setting(trial.params)) for trial in record.trials}
    return Ledger(folder.path.parents[1], folder.path, record, folder.header(), settings, VictimFacts(), False)


def bring_all(tracking: TrackingHere | TrackingProcess, folder: SweepFolder) -> None:
    ledger = ledger_of(folder)
    for trial in ledger.record.trials:
        tracking.bring(trial, ledger.settings[trial.number])


def content(home: Path) -> dict[str, list[tuple[object, ...]]]:
    """What MLflow holds, without what differs from store to store."""
    queries = {
        "metrics": "select name, key, step, value, timestamp from metrics join runs using (run_uuid)"
        " where name like 'trial%'",
        "params": "select name, key, value from params join runs using (run_uuid)",
        "states": "select name, status, value from tags join runs using (run_uuid) where key = 'sweeplab.state'",
    }
    with sqlite3.connect(home / "mlflow.db") as store:
        return {what: sorted(store.execute(query)) for what, query in queries.items()}


@pytest.fixture
def folder(tmp_path: Path, mlflow_tables: Path) -> SweepFolder:
    shutil.copy(mlflow_tables, tmp_path)
    return fabricated.finished_sweep(tmp_path / "sweeps")


@pytest.fixture
def apart(folder: SweepFolder) -> Iterator[TrackingProcess]:
    tracking = TrackingProcess(lambda: ledger_of(folder))
    yield tracking
    tracking.close()


def process_of(tracking: TrackingProcess) -> int:
    assert tracking._process is not None
    return tracking._process.pid


def test_it_writes_what_this_process_would(
    folder: SweepFolder, apart: TrackingProcess, tmp_path: Path, mlflow_tables: Path
):
    bring_all(apart, folder)
    apart.close()
    other = SweepFolder(tmp_path / "other" / "sweeps" / folder.name)
    other.path.parent.mkdir(parents=True)
    other.path.symlink_to(folder.path)
    shutil.copy(mlflow_tables, tmp_path / "other")
    here = TrackingHere(ledger_of(other))
    bring_all(here, folder)
    here.close()
    assert content(tmp_path) == content(tmp_path / "other")
    assert len(content(tmp_path)["states"]) == 7  # six trials and the victim


def test_here_mlflows_variables_are_set_until_it_is_closed(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    before = dict(os.environ)
    here = TrackingHere(ledger_of(folder))
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    here.close()
    assert dict(os.environ) == before


@pytest.mark.slow
def test_one_that_was_killed_is_started_again_and_brings_what_it_missed(folder: SweepFolder, apart: TrackingProcess):
    first = process_of(apart)
    os.kill(first, signal.SIGKILL)
    trial, setting = folder.record().trials[0], ledger_of(folder).settings[0]
    with pytest.raises(TrackingFault, match="MLflow's process ended"):
        apart.bring(trial, setting)
    apart.bring(trial, setting)
    assert process_of(apart) != first
    apart.close()
    assert len(content(folder.path.parents[1])["states"]) == 7


@pytest.mark.slow
def test_one_that_is_killed_while_it_opens_the_store_is_started_again(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
):
    """The first is killed as soon as it is there, before it can answer."""
    popen, started = subprocess.Popen, []

    def start(*arguments: object, **named: object) -> object:
        process = popen(*arguments, **named)  # type: ignore[call-overload]
        started.append(process)
        if len(started) == 1:
            process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    tracking = TrackingProcess(lambda: ledger_of(folder))
    tracking.close()
    assert len(started) == 2
    assert len(content(folder.path.parents[1])["states"]) == 7


@pytest.mark.slow
def test_signals_that_are_meant_for_the_driver_do_not_end_it(folder: SweepFolder, apart: TrackingProcess):
    first = process_of(apart)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(first, number)
    bring_all(apart, folder)
    assert process_of(apart) == first


def test_a_store_that_cannot_be_used_is_told_in_one_line_and_leaves_no_process(tmp_path: Path, folder: SweepFolder):
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(TrackingFault, match=r"^DatabaseError: file is not a database$"):
        TrackingProcess(lambda: ledger_of(folder))
    FileLock(folder.path / "mlflow.lock").acquire(timeout=0)


@pytest.mark.slow
def test_after_its_end_nothing_is_brought_and_no_process_is_left(folder: SweepFolder, apart: TrackingProcess):
    number = process_of(apart)
    apart.close()
    apart.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    with pytest.raises(TrackingFault, match="was ended"):
        apart.bring(folder.record().trials[0], {})


DRIVER = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from test_tracking_process import ledger_of, process_of
from sweeplab.sweep_folder import SweepFolder
from sweeplab.sweep.tracking_process import TrackingProcess
folder = SweepFolder(Path({folder!r}))
tracking = TrackingProcess(lambda: ledger_of(folder))
print(process_of(tracking), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_it_ends_with_a_driver_that_is_killed_and_the_next_takes_over(folder: SweepFolder):
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = DRIVER.format(paths=paths, folder=str(folder.path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        number = int(driver.stdout.readline())
        driver.kill()
    TrackingProcess(lambda: ledger_of(folder)).close()  # waits for the other's lock
    deadline = time.monotonic() + 60
    while is_running(number):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(number: int) -> bool:
    """Whether there is such a process, which has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_two_never_write_at_once(folder: SweepFolder, apart: TrackingProcess, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking_process, "LOCK_SECONDS", 0.1)
    with pytest.raises(TimeoutError):
        TrackingHere(ledger_of(folder))
    apart.close()
    TrackingHere(ledger_of(folder)).close()
