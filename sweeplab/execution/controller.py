"""What executors ask of whoever hands out trials, which `sweep` provides: they know no more of it."""

from typing import Any, Protocol

from sweeplab.experiment import CleaningSweep
from sweeplab.records import Outcomes, Point, Victim
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.failures import Failure
from sweeplab.worker.input_paths import InputPaths
from sweeplab.worker.jobs import CleaningJob, Machine


class Controller(Protocol):
    """Hands out attempts of trials and takes in what becomes of them, in the driver's process."""

    sweep: CleaningSweep
    folder: SweepFolder
    victim: Victim
    machine: Machine
    """What workers may use; an executor adds what its cluster has."""
    reads: list[Any]
    """Parts of specs that say what the command reads."""
    input_paths: InputPaths | None
    """What workers on other nodes may not see; the executor knows."""

    def next_job(self) -> CleaningJob | None:
        """The next attempt to run; None when nothing is left to start now."""
        ...

    def point(self, number: int, point: Point, outcomes: Outcomes) -> None:
        """Commit a trial's point."""
        ...

    def should_stop(self, number: int) -> bool:
        """Whether the trial is to end after its last point."""
        ...

    def finished(self, number: int) -> None:
        """A trial came to its end."""
        ...

    def failed(self, number: int, failure: Failure) -> None:
        """An attempt ended early."""
        ...

    def log(self, number: int, text: str) -> None:
        """Keep an attempt's traceback."""
        ...

    def is_done(self) -> bool:
        """Whether nothing runs, nothing waits and nothing new is to be begun."""
        ...
