"""Listener: what the tracker and the display are told of a sweep's progress."""

from typing import Protocol

from sweeplab.records import Point, TrialRecord


class Listener(Protocol):
    """Who hears of a sweep's progress: the tracker, the display."""

    def trial_began(self, trial: TrialRecord) -> None:
        """An attempt starts."""
        ...

    def point_made(self, trial: TrialRecord, point: Point) -> None:
        """A point was committed."""
        ...

    def trial_ended(self, trial: TrialRecord) -> None:
        """A trial is over: finished or failed."""
        ...
