"""Watchdog: runs a sweep's work beside the main thread, which ends it on a signal, or when nothing moves any more."""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TypeVar

from sweeplab.specs import INTERRUPTED, ClusterLost, InvalidInput, StorageFault, Unfinished

T = TypeVar("T")

POLL_SECONDS = 0.1

CLUSTER_SECONDS = 1.0
"""Between two looks at the cluster."""

GONE_SECONDS = 8.0
"""So long may the cluster lack this command's node, or not answer, before the work ends."""

ASK_SECONDS = 6.0
"""So long after an error is the cluster asked whether it is the reason: it notices a dead node with a delay."""

RAYLET_DIED = "this command's Ray node (its raylet) died"
"""A fault that is certain, and so is not waited out."""


NO_ANSWER = "the Ray cluster does not answer"


def cluster_lost(fault: str = RAYLET_DIED) -> ClusterLost:
    """The error that names what is wrong with the cluster."""
    return ClusterLost(f"{fault}; everything committed is kept, and the same command goes on")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP: what is committed stays, and the command ends with exit code 75."""


def heeded_signals() -> list[signal.Signals]:
    """Signals that end a command: those that are not ignored already, as `nohup` and background jobs have it."""
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def signals_as_interrupts() -> Iterator[list[int]]:
    """The first signal interrupts the main thread; a second one ends the process at once, with exit code 75 too. Gives
    the list of signals so far."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if seen:
            with contextlib.suppress(OSError):
                os.write(2, b"ended at once; everything committed is kept, and the same command goes on\n")
            os._exit(INTERRUPTED)
        seen.append(number)
        raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in heeded_signals()}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rearm_signals() -> None:
    """Put this process's handlers back where Ray's core has put its own, in C, which print a stack and abort."""
    if threading.current_thread() is threading.main_thread():
        for number in heeded_signals():
            signal.signal(number, signal.getsignal(number))


class Watchdog:
    """Knows when something last moved, and whether the cluster is still there."""

    def __init__(
        self,
        *,
        stall_minutes: float,
        cluster_fault: Callable[[], str | None] = lambda: None,
        controller_fault: Callable[[], StorageFault | InvalidInput | None] = lambda: None,
    ) -> None:
        self.stall_minutes = stall_minutes
        self._cluster_fault, self._controller_fault = cluster_fault, controller_fault
        self._moved = time.monotonic()
        self._fault: str | None = None
        self._fault_since = 0.0
        self._looking = False
        self._asking: threading.Thread | None = None
        self._looked = time.monotonic()

    def moved(self) -> None:
        """Something progressed: a point, a job handed out, a worker's heartbeat."""
        self._moved = time.monotonic()

    def check(self) -> None:
        """Raise Unfinished, StorageFault or InvalidInput, with the reason, where waiting on would be in vain."""
        if (fault := self._controller_fault()) is not None:
            raise fault
        still = time.monotonic() - self._moved
        if still > 60 * self.stall_minutes:
            raise Unfinished(
                f"nothing has moved for {still / 60:.1f} minutes (resources.stall_minutes={self.stall_minutes:g}): "
                "a worker hangs, or the cluster lost its resources; everything committed is kept, and the same command "
                "goes on"
            )
        self._look()
        if self._fault is not None and time.monotonic() - self._fault_since > GONE_SECONDS:
            raise cluster_lost(self._fault)

    def explain(self, error: BaseException) -> None:
        """Raise what is behind an error of the work: what closed the controller, StorageFault for a disk, ClusterLost
        for the cluster's end."""
        behind = self._controller_fault() or full_disk_behind(error)
        if behind is not None:
            raise behind from error
        deadline, self._fault = time.monotonic() + ASK_SECONDS, None
        while self._fault is None and time.monotonic() < deadline:
            self._look()
            time.sleep(POLL_SECONDS)
        self.settle()  # the last question may have been asked just now
        fault = self._fault or (NO_ANSWER if self._looking else None)
        if fault is not None:
            raise cluster_lost(fault) from error

    def _look(self) -> None:
        """Ask for the cluster's state beside this thread: with the cluster gone, the question may hang."""
        now = time.monotonic()
        if now - self._looked < CLUSTER_SECONDS:
            return
        if self._looking:  # the last question has no answer yet
            if now - self._looked > GONE_SECONDS:
                self._fault, self._fault_since = NO_ANSWER, 0.0
            return
        self._looking, self._looked = True, now

        def ask() -> None:
            fault = self._cluster_fault()
            # Before the fault itself, which `check` looks at in another thread.
            if fault == RAYLET_DIED:
                self._fault_since = 0.0
            elif self._fault is None:
                self._fault_since = time.monotonic()
            self._fault, self._looking = fault, False

        self._asking = threading.Thread(target=ask, name="cluster", daemon=True)
        self._asking.start()

    def settle(self) -> None:
        """Wait for the answer to the last question: nobody may ask Ray while it is shut down."""
        if self._asking is not None:
            self._asking.join(GONE_SECONDS)


FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def full_disk_behind(error: BaseException) -> StorageFault | None:
    """A full disk that Ray met while it wrote its own state; it passes on no more than the text of what it met."""
    for line in str(error).splitlines():
        if any(text in line for text in FULL):
            return StorageFault(f"{line.strip()[:300]}; free space, then run the same command again")
    return None


def run_watched(work: Callable[[], T], watchdog: Watchdog) -> T:
    """Run the work beside this thread, see `run_beside`.

    Raises:
        Unfinished: where the watchdog gives up; the work's thread is left behind, and ends with the process.
        Interrupted: on a signal, likewise.
    """
    try:
        done = run_beside(work, watchdog.check)
        watchdog.settle()
        return done
    except (InvalidInput, Unfinished, StorageFault, Interrupted):
        raise
    except BaseException as error:
        watchdog.explain(error)
        raise


def run_beside(work: Callable[[], T], look: Callable[[], object], stay: threading.Event | None = None) -> T:
    """Run the work in a thread of its own, so that this one can always react to signals.

    Returns or raises as the work does, or raises as `look` does.

    Args:
        work: runs.
        look: called now and then.
        stay: the thread lives on until this is set: the kernel ends some children with the thread that has made them.
    """
    done: list[T] = []
    raised: list[BaseException] = []
    over = threading.Event()

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            raised.append(error)
        finally:
            _under_way.discard(over)
            over.set()
        if stay is not None:
            stay.wait()

    _under_way.add(over)
    threading.Thread(target=run, name="work", daemon=True).start()
    # Not `Thread.join`, which takes a thread for ended where a signal's handler raises while it waits (bpo-45274).
    while not over.wait(POLL_SECONDS):
        look()
    if raised:
        raise raised[0]
    return done[0]


_under_way: set[threading.Event] = set()
"""Of the works whose threads run, or were left behind."""


def leave_behind(work: threading.Event) -> None:
    """Count something that cannot be ended among the works that were left behind, until the event is set."""
    _under_way.add(work)


def is_left_behind() -> bool:
    """Whether work was left behind in a thread that would keep the process, or crash it on the way out."""
    return any(not over.is_set() for over in _under_way)


def exit_now(code: int) -> NoReturn:
    """End the process without the interpreter's and Ray's own goodbyes, which take seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
