"""The page of a sweep that runs: written every few minutes, by a process of its own, so that no point waits for it."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from sweeplab.records import TrialRecord
from sweeplab.sweep_folder import SweepFolder

PAGE_SECONDS = 180.0
"""Between two pages, at least."""

SHARE = 0.05
"""Of the time may go into writing pages, at most."""

NICENESS = 10
"""Above the sweep's own: where all cores are busy, it has nine times the time of the page."""


class PageWriter:
    """Hears of trials, and has the page written again where something has changed."""

    def __init__(
        self, folder: SweepFolder, *, command: Sequence[str] | None = None, seconds: float = PAGE_SECONDS
    ) -> None:
        """Of the sweep in `folder`.

        Args:
            folder: of the sweep.
            command: writes the page; None: `sweeplab report`.
            seconds: between two pages.
        """
        self._command = list(command or (sys.executable, "-m", "sweeplab.cli", "report", folder.name))
        self._environment = {**os.environ, "SWEEPLAB_HOME": str(folder.home)}
        self._seconds = seconds
        self._has_changed = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="page", daemon=True)

    def hear(self, trial: TrialRecord) -> None:
        """Take note that a trial has changed; nothing else, since a point waits for it."""
        self._has_changed = True

    def __enter__(self) -> "PageWriter":
        """Begin to write."""
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """End; a page that is being written is given up, since the command writes its own at the end."""
        self._is_over.set()
        self._thread.join()

    def _write_on(self) -> None:
        pause = self._seconds
        while not self._is_over.wait(pause):
            if self._has_changed:
                self._has_changed = False
                pause = max(self._seconds, self._write() / SHARE)

    def _write(self) -> float:
        """Have the page written once; returns the seconds that it took."""
        began = time.monotonic()
        try:
            process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A key on the terminal that interrupts the sweep is not for it. In a session of its own, Linux would
                # give it as much time as all of the sweep's, however nice it is (autogroups).
                process_group=0,
            )
        except OSError:  # no memory or no processes left: the sweep matters more
            return 0.0
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
        while process.poll() is None:
            if self._is_over.wait(0.1):
                process.kill()
                process.wait()
        return time.monotonic() - began
