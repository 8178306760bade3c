"""The watch: a main thread that reacts to signals, standstill, a lost cluster and a failing storage."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeplab.execution import watchdog
from sweeplab.execution.watchdog import (
    RAYLET_DIED,
    Interrupted,
    Watchdog,
    run_beside,
    run_watched,
    signals_as_interrupts,
)
from sweeplab.specs import ClusterLost, InvalidInput, StorageFault, Unfinished

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watchdog that looks often, and gives a cluster that does not answer as much time as a slow machine may need."""
    for name, value in (("POLL_SECONDS", 0.01), ("CLUSTER_SECONDS", 0.02), ("GONE_SECONDS", 60), ("ASK_SECONDS", 0.2)):
        monkeypatch.setattr(watchdog, name, value)


@pytest.fixture
def impatient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gives a cluster no more than a moment."""
    monkeypatch.setattr(watchdog, "GONE_SECONDS", 0.1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The watchdog's seconds, to be set."""
    now = [0.0]
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_work_that_ends_is_over_and_ran_in_another_thread(quick: None):
    ran: list[str] = []
    run_watched(lambda: ran.append(threading.current_thread().name), Watchdog(stall_minutes=1))
    assert ran == ["work"]


def test_an_error_of_the_work_is_raised_here(quick: None):
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_watched(work, Watchdog(stall_minutes=1))


def test_standstill_ends_the_work_with_a_reason(quick: None):
    done = threading.Event()
    with pytest.raises(Unfinished, match=r"nothing has moved for .*stall_minutes=0.002") as raised:
        run_watched(lambda: done.wait(60), Watchdog(stall_minutes=0.002))  # type: ignore[arg-type,return-value]
    assert not isinstance(raised.value, ClusterLost)  # a worker hangs, perhaps
    done.set()


def test_movement_keeps_the_work_going(clock: list[float]):
    watchdog = Watchdog(stall_minutes=1)
    for _ in range(3):
        clock[0] += 59
        watchdog.check()
        watchdog.settle()
        watchdog.moved()
    clock[0] += 61
    with pytest.raises(Unfinished, match=r"nothing has moved for 1\.0 minutes"):
        watchdog.check()


def test_a_lost_cluster_ends_the_work(impatient: None):
    done = threading.Event()
    watchdog = Watchdog(stall_minutes=1, cluster_fault=lambda: "this command's Ray node died")
    with pytest.raises(ClusterLost, match="Ray node died; everything committed is kept"):
        run_watched(lambda: done.wait(60), watchdog)  # type: ignore[arg-type,return-value]
    done.set()


def test_a_raylet_that_is_known_to_be_dead_is_not_waited_for(quick: None):
    done = threading.Event()
    with pytest.raises(ClusterLost, match="its raylet"):
        run_watched(lambda: done.wait(60), Watchdog(stall_minutes=1, cluster_fault=lambda: RAYLET_DIED))  # type: ignore[arg-type,return-value]
    done.set()


def test_signals_that_are_ignored_already_stay_ignored():
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_cluster_that_does_not_answer_ends_the_work(impatient: None):
    done = threading.Event()

    def hang() -> None:
        done.wait(60)

    with pytest.raises(ClusterLost, match="does not answer"):
        run_watched(hang, Watchdog(stall_minutes=1, cluster_fault=hang))  # type: ignore[arg-type]
    done.set()


def test_a_cluster_that_comes_back_is_forgiven(clock: list[float]):
    """It may be away for 8 s: asked after 7 it is, after 14 it is back, and so nothing ends after 21."""
    answers = iter(["the cluster is busy", None, None])
    watchdog = Watchdog(stall_minutes=1, cluster_fault=lambda: next(answers))
    for _ in range(3):
        clock[0] += 7
        watchdog.check()
        watchdog.settle()


def test_an_error_behind_which_the_cluster_is_lost_counts_as_interruption(quick: None):
    def work() -> None:
        raise RuntimeError("actor died")

    with pytest.raises(ClusterLost, match="node died"):
        run_watched(work, Watchdog(stall_minutes=1, cluster_fault=lambda: "the node died"))
    with pytest.raises(RuntimeError, match="actor died"):
        run_watched(work, Watchdog(stall_minutes=1, cluster_fault=lambda: None))


def test_a_cluster_that_still_answers_when_the_time_to_ask_is_over_is_not_lost(quick: None):
    def work() -> None:
        raise RuntimeError("actor died")

    with pytest.raises(RuntimeError, match="actor died"):
        run_watched(work, Watchdog(stall_minutes=1, cluster_fault=lambda: time.sleep(0.5)))


def test_bad_input_is_not_blamed_on_the_cluster(quick: None):
    def work() -> None:
        raise InvalidInput("no")

    with pytest.raises(InvalidInput):
        run_watched(work, Watchdog(stall_minutes=1, cluster_fault=lambda: "the node died"))


def test_a_storage_that_failed_ends_the_work(quick: None):
    done = threading.Event()
    watchdog = Watchdog(stall_minutes=1, controller_fault=lambda: StorageFault("the disk is full"))
    with pytest.raises(StorageFault, match="full"):
        run_watched(lambda: done.wait(60), watchdog)  # type: ignore[arg-type,return-value]
    done.set()


def test_a_storage_that_failed_is_named_where_the_work_raises_something_else_because_of_it(quick: None):
    """Ray Tune wraps what its callbacks raise; and it writes files of its own."""

    def work() -> None:
        raise RuntimeError("callback failed")

    with pytest.raises(StorageFault, match="the controller's disk is full"):
        run_watched(
            work, Watchdog(stall_minutes=1, controller_fault=lambda: StorageFault("the controller's disk is full"))
        )

    def write() -> None:
        raise RuntimeError("Traceback\n  OSError: [Errno 28] No space left on device: 'state'\nmore")

    with pytest.raises(StorageFault, match=r"^OSError: \[Errno 28\] No space left on device: 'state'; free space"):
        run_watched(write, Watchdog(stall_minutes=1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_the_main_thread(number: signal.Signals):
    with pytest.raises(Interrupted, match=number.name), signals_as_interrupts():
        signal.raise_signal(number)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with signals_as_interrupts():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


STUBBORN = """
import time
from sweeplab.execution.watchdog import Interrupted, signals_as_interrupts
with signals_as_interrupts():
    try:
        print("ready", flush=True)
        time.sleep(600)
    except Interrupted:
        print("ending", flush=True)
        time.sleep(600)
"""


def test_a_second_signal_ends_the_process_at_once_with_75():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "the same command goes on" in errors


def test_a_thread_stays_as_long_as_the_children_that_it_has_made_need_it():
    """As Ray's processes: Linux ends them with the thread that has started them."""
    stay, program = (
        threading.Event(),
        "import ctypes, time; ctypes.CDLL(None).prctl(1, 9); print(1, flush=True); time.sleep(600)",
    )
    children = []

    def start() -> None:
        child = subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        children.append(child)

    run_beside(start, lambda: None, stay=stay)
    time.sleep(0.3)
    assert children[0].poll() is None
    stay.set()
    assert children[0].wait(60) == -9


FOREIGN_HANDLER = """
import ctypes, os, signal, threading
from sweeplab.execution.watchdog import Interrupted, exit_now, rearm_signals, run_beside, signals_as_interrupts

def start():
    ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(0))  # in C: to die of it
    has_started.set()
    threading.Event().wait()  # foreign code that does not return

has_started, told = threading.Event(), []

def look():
    is_after_start = has_started.is_set()
    rearm_signals()
    if is_after_start and not told:
        told.append(print("armed", flush=True))

try:
    with signals_as_interrupts():
        run_beside(start, look)
except Interrupted as end:
    print(end)
    exit_now(75)
"""


def test_a_signal_ends_a_process_that_starts_foreign_code_with_handlers_of_its_own():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", FOREIGN_HANDLER], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "armed\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, "SIGTERM\n")
