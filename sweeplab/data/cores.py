"""Cores: how many this process may use, and work on rows that is split over them."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable

FEWEST_ROWS = 250
"""Of a process: fewer are done sooner than it starts."""


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_rows(work: Callable[[int], None], num_rows: int, what: str = "") -> None:
    """Do work on every row, in as many processes as there are usable cores; the order does not matter.

    Args:
        work: is told the row, and leaves what it makes on the disk: memory is not shared. It must not need threads or
            CUDA.
        num_rows: rows from 0.
        what: is done, for a terminal's live line.

    Raises:
        Exception: whatever `work` raises. What another process could not do is tried again in this one.
    """
    from sweeplab.live_line import phase

    num_processes = min(usable_cores(), num_rows // FEWEST_ROWS) if _may_fork() else 1
    shares = [range(first, num_rows, num_processes) for first in range(1, num_processes)]
    others = []
    try:
        for rows in shares:
            other = multiprocessing.get_context("fork").Process(
                target=_share, args=(work, rows, os.getpid()), daemon=True
            )
            with warnings.catch_warnings():
                # Python 3.12 warns of threads, also of those of libraries; they are idle, and the process uses none.
                warnings.simplefilter("ignore", DeprecationWarning)
                other.start()
            others.append(other)
        own = range(0, num_rows, max(1, num_processes))
        # Drawn by this process itself: with a thread it could not fork the next time.
        with phase(what, len(own), in_thread=False) as shown:
            for done, row in enumerate(own, start=1):
                work(row)
                shown.reached(done)
        for other, rows in zip(others, shares, strict=True):
            other.join()
            if other.exitcode:
                for row in rows:
                    work(row)
    finally:
        for other in others:
            other.kill()
            other.join()


def _may_fork() -> bool:
    """Whether a copy of this process can work: no other thread of Python holds a lock there for ever, and nothing
    forbids it to have children, as a loader's processes are forbidden."""
    is_alone = threading.active_count() == 1
    return sys.platform == "linux" and is_alone and not multiprocessing.current_process().daemon


def _share(work: Callable[[int], None], rows: Iterable[int], parent: int) -> None:
    """In another process: do a share of the rows, as long as the parent lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(Exception):  # the parent tries these rows again, and raises what comes of it
        for row in rows:
            if os.getppid() != parent:
                break
            work(row)
        else:
            os._exit(0)
    os._exit(1)
