"""Watchdog: runs a sweep's work beside the main thread, which ends it on a signal, or when nothing moves any more."""

import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sweeplab.specs import ClusterLost, InvalidInput, StorageFault, Unfinished

POLL_SECONDS = 0.1

CLUSTER_SECONDS = 1.0
"""Between two looks at the cluster."""

GONE_SECONDS = 8.0
"""So long may the cluster lack this command's node, or not answer, before the work ends."""

ASK_SECONDS = 6.0
"""So long after an error is the cluster asked whether it is the reason: it notices a dead node with a delay."""

RAYLET_DIED = "this command's Ray node (its raylet) died"
"""A fault that is certain, and so is not waited out."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP: what is committed stays, and the command ends with exit code 75."""


def heeded_signals() -> list[signal.Signals]:
    """Signals that end a command: those that are not ignored already, as `nohup` and background jobs have it."""
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """The first signal interrupts the main thread; a second one ends the process at once, with exit code 75 too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if seen:
            with contextlib.suppress(OSError):
                os.write(2, b"ended at once; everything committed is kept, and the same command goes on\n")
            os._exit(75)
        seen.append(number)
        raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


PATIENCE_SECONDS = 1.0
"""So long after a signal may foreign code keep the main thread."""

SIGACTION_BYTES = 512
"""More than any system's `struct sigaction` takes."""


@contextmanager
def prompt_signals() -> Iterator[None]:
    """Have signals heeded while the main thread is in foreign code that does not return for seconds, as while Ray
    starts: a thread beside it ends the process with exit code 75 where the main thread does not react in time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = set(heeded_signals())
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.settimeout(POLL_SECONDS)
    is_over = threading.Event()

    def mind() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, heeded)  # they are the main thread's
        while not is_over.is_set():
            with contextlib.suppress(TimeoutError):
                if heeded & set(reader.recv(64)) and not is_over.wait(PATIENCE_SECONDS):
                    with contextlib.suppress(OSError):
                        os.write(2, b"error: interrupted; everything so far is kept, and the same command goes on\n")
                    os._exit(75)

    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    minding = threading.Thread(target=mind, name="signals", daemon=True)
    minding.start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(before)
        minding.join()
        reader.close()
        writer.close()


@contextmanager
def waiting_signals() -> Iterator[None]:
    """Have signals wait for a moment, and for the handlers that stand now, should foreign code put others there.

    Ray's core puts one in C there for SIGTERM, which prints a stack and aborts, before Ray puts its own in Python.
    """
    libc = ctypes.CDLL(None)
    actions = {number: ctypes.create_string_buffer(SIGACTION_BYTES) for number in heeded_signals()}
    for number, action in actions.items():
        libc.sigaction(int(number), None, action)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, actions)
    try:
        yield
    finally:
        for number, action in actions.items():
            libc.sigaction(int(number), action, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Watchdog:
    """Knows when something last moved, and whether the cluster is still there."""

    def __init__(
        self,
        *,
        stall_minutes: float,
        cluster_fault: Callable[[], str | None] | None = None,
        storage_fault: Callable[[], StorageFault | InvalidInput | None] = lambda: None,
    ) -> None:
        self.stall_minutes = stall_minutes
        self._cluster_fault, self._storage_fault = cluster_fault, storage_fault
        self._moved = time.monotonic()
        self._heartbeats: Callable[[], int] = lambda: 0
        self._known_heartbeats = 0
        self._fault: str | None = None
        self._fault_since: float | None = None
        self._looking = False
        self._looked = time.monotonic()

    def moved(self) -> None:
        """Something progressed: a point, a step, a job handed out."""
        self._moved = time.monotonic()

    def listen(self, heartbeats: Callable[[], int]) -> None:
        """Count the workers' heartbeats as movement: `heartbeats` says, at once, how many there were."""
        self._heartbeats, self._known_heartbeats = heartbeats, heartbeats()

    def check(self) -> None:
        """Raise Unfinished, StorageFault or InvalidInput, with the reason, where waiting on would be in vain."""
        storage_fault = self._storage_fault()
        if storage_fault is not None:
            raise storage_fault
        heartbeats = self._heartbeats()
        if heartbeats != self._known_heartbeats:
            self._known_heartbeats = heartbeats
            self.moved()
        still = time.monotonic() - self._moved
        if still > 60 * self.stall_minutes:
            raise Unfinished(
                f"nothing has moved for {still / 60:.1f} minutes (resources.stall_minutes={self.stall_minutes:g}): "
                "a worker hangs, or the cluster lost its resources; everything committed is kept, and the same command "
                "goes on"
            )
        self._look()
        if self._fault_since is not None and time.monotonic() - self._fault_since > GONE_SECONDS:
            raise ClusterLost(f"{self._fault}; everything committed is kept, and the same command goes on")

    def explain(self, error: BaseException) -> None:
        """Raise what is behind an error of the work: StorageFault for a disk, ClusterLost for the cluster's end."""
        storage_fault = self._storage_fault() or full_disk_behind(error)
        if storage_fault is not None:
            raise storage_fault from error
        faults: list[str] = []

        def ask() -> None:
            assert self._cluster_fault is not None
            if (fault := self._cluster_fault()) is not None:
                faults.append(fault)

        if self._cluster_fault is None:
            return
        deadline = time.monotonic() + ASK_SECONDS
        while not faults and time.monotonic() < deadline:
            thread = threading.Thread(target=ask, name="cluster", daemon=True)
            thread.start()
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                faults.append("the Ray cluster does not answer")
            elif not faults:
                time.sleep(0.5)
        if faults:
            raise ClusterLost(f"{faults[0]}; everything committed is kept, and the same command goes on") from error

    def _look(self) -> None:
        """Ask for the cluster's state beside this thread: with the cluster gone, the question may hang."""
        now = time.monotonic()
        if self._cluster_fault is None or now - self._looked < CLUSTER_SECONDS:
            return
        if self._looking:  # the last question has no answer yet
            if now - self._looked > GONE_SECONDS:
                self._fault, self._fault_since = "the Ray cluster does not answer", 0.0
            return
        self._looking, self._looked = True, now

        def ask() -> None:
            assert self._cluster_fault is not None
            fault = self._cluster_fault()
            if fault is None:
                self._fault_since = None
            elif fault == RAYLET_DIED:
                self._fault_since = 0.0
            elif self._fault_since is None:
                self._fault_since = time.monotonic()
            self._fault, self._looking = fault, False

        threading.Thread(target=ask, name="cluster", daemon=True).start()


FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def full_disk_behind(error: BaseException) -> StorageFault | None:
    """A full disk that Ray met while it wrote its own state; it passes on no more than the text of what it met."""
    for line in str(error).splitlines():
        if any(text in line for text in FULL):
            return StorageFault(f"{line.strip()[:300]}; free space, then run the same command again")
    return None


def run_watched(work: Callable[[], None], watchdog: Watchdog) -> None:
    """Run the work in a thread of its own, so that this one can always react; returns or raises as the work does.

    Raises:
        Unfinished: where the watch gives up; the work's thread is left behind, and ends with the process.
        Interrupted: on a signal, likewise.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            raised.append(error)

    thread = threading.Thread(target=run, name="work", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        watchdog.check()
    if raised:
        if not isinstance(raised[0], (InvalidInput, Unfinished, StorageFault)):
            watchdog.explain(raised[0])
        raise raised[0]


_hurry = threading.Event()


def skip_teardown() -> None:
    """This process is to end without the interpreter's and Ray's own goodbyes, which take seconds."""
    _hurry.set()


def skips_teardown() -> bool:
    """Whether someone said so."""
    return _hurry.is_set()


def exit_now(code: int) -> None:
    """End the process now, where that was asked for, or where threads were left behind that would keep it or crash it
    on the way out."""
    if skips_teardown() or any(thread.name == "work" and thread.is_alive() for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
