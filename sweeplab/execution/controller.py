"""What executors ask of whoever hands out jobs, which `sweep` provides: they know no more of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sweeplab.experiment import Resources
from sweeplab.records import Outcomes, Point
from sweeplab.storage.broken_rows import BrokenRow
from sweeplab.worker.failures import Failure
from sweeplab.worker.jobs import Job


@dataclass(frozen=True)
class Workload:
    """What the jobs of one controller have in common."""

    reads: list[Any]
    """Parts of specs that say what files the command reads."""
    weights: str | None
    """Path or URL of the checkpoint that every job starts from; None: of none."""
    home: Path


class Controller(Protocol):
    """Hands out attempts of jobs and takes in what becomes of them, in the driver's process; a job is told by its
    number."""

    @property
    def resources(self) -> Resources:
        """What each job takes; where it changes, jobs that run come to their end, and executors start anew."""

    def next_job(self) -> Job | None:
        """The next attempt to run; None when nothing is left to start now."""

    def point(self, number: int, point: Point, outcomes: Outcomes) -> None:
        """Commit a point."""

    def found_broken(self, number: int, rows: tuple[BrokenRow, ...]) -> None:
        """Record training pairs that turned out to be broken; ends the work where they are too many."""

    def should_stop(self, number: int) -> bool:
        """Whether the attempt is to end after its last point."""

    def finished(self, number: int) -> None:
        """An attempt came to its end."""

    def failed(self, number: int, failure: Failure) -> None:
        """An attempt ended early."""

    def log(self, number: int, text: str) -> None:
        """Keep an attempt's traceback."""

    def is_done(self) -> bool:
        """Whether nothing runs, nothing waits and nothing new is to be begun."""
