"""Kept weights: whose weights a sweep keeps, decided by its records alone, and where they lie."""

import contextlib
import dataclasses
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sweeplab.evaluation.retention import best_cleaned_point, counted, is_cleaned
from sweeplab.records import OVER, Point, SweepRecord, TrialRecord
from sweeplab.specs import StorageFault
from sweeplab.storage.checkpoint_store import Storage

CLOSE = 2.0
"""Times the ASR ceiling: below that a point came close to being cleaned."""


@dataclass(frozen=True)
class KeptPoint:
    """A point whose weights a sweep keeps."""

    trial: int
    point: Point
    location: str = ""
    """Path or URL of the weights."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, by the names that a trial's have."""
        values = self.point.measurement
        numbers = {"epoch": self.point.epoch, "accuracy": values.accuracy, "asr": values.asr}
        return {"trial": self.trial, **numbers, "checkpoint": self.location}


def closest_points(candidates: Iterable[KeptPoint], asr_ceiling: float) -> list[KeptPoint]:
    """What to keep where nothing is cleaned: the point of lowest ASR, and the most accurate below twice the ceiling.

    Args:
        candidates: points of any trials, none of them cleaned.
        asr_ceiling: a fraction.

    Returns:
        Both, the one of lowest ASR first; one where they are the same or nothing lies below twice the ceiling; none
        where no candidate has weights and an ASR.
    """
    found = [(kept.point.measurement, kept) for kept in candidates if kept.point.checkpoint is not None]
    rated = [(values.asr, -values.accuracy, kept) for values, kept in found if values.asr is not None]
    if not rated:
        return []
    *_, lowest = min(rated, key=lambda one: (one[0], one[1], one[2].trial, one[2].point.index))
    close = [one for one in rated if one[0] < CLOSE * asr_ceiling]
    if not close:
        return [lowest]
    *_, accurate = min(close, key=lambda one: (one[1], one[0], one[2].trial, one[2].point.index))
    return [lowest] if accurate is lowest else [lowest, accurate]


def worth_keeping(trial: TrialRecord, asr_ceiling: float) -> tuple[Point, ...]:
    """The points of one trial for which the sweep may keep weights: its best cleaned one, else those that came closest.

    Args:
        trial: in any state.
        asr_ceiling: a fraction.
    """
    if trial.summary is not None:
        return trial.summary.worth_keeping
    best = best_cleaned_point(trial.points, asr_ceiling, start_counts=trial.start_counts)
    if best is not None:
        return (best,)
    candidates = counted(trial.points, start_counts=trial.start_counts)
    found = closest_points((KeptPoint(trial.number, point) for point in candidates), asr_ceiling)
    return tuple(kept.point for kept in found)


class KeptWeights:
    """Whose weights stay of the trials that are over, taken in one after the other.

    The best few cleaned trials keep those of their best cleaned point. While no trial is cleaned, the points that came
    closest keep theirs (see `closest_points`). Failed trials keep none. What stays in the end does not depend on the
    order in which trials are taken in.
    """

    def __init__(self, asr_ceiling: float, most: int) -> None:
        """Begin with none.

        Args:
            asr_ceiling: a fraction.
            most: so many cleaned trials keep weights.
        """
        self._asr_ceiling, self._most = asr_ceiling, most
        self._best: list[tuple[float, float, int]] = []
        """(-accuracy, ASR, number) of the cleaned trials that keep weights, best first."""
        self._closest: list[KeptPoint] = []

    def take(self, trial: TrialRecord) -> dict[int, tuple[Point, ...]]:
        """Take in a trial that is over.

        Returns:
            The points that keep their weights, of every trial that this may have changed; of the trial itself always.
        """
        if trial.state == "failed":
            return {trial.number: ()}
        points = worth_keeping(trial, self._asr_ceiling)
        if points and is_cleaned(points[0].measurement, self._asr_ceiling):
            return self._take_cleaned(trial.number, points[0])
        if self._best or not points:
            return {trial.number: ()}
        before = [*self._closest, *(KeptPoint(trial.number, point) for point in points)]
        self._closest = closest_points(before, self._asr_ceiling)
        return {kept.trial: self._closest_of(kept.trial) for kept in before}

    def _take_cleaned(self, number: int, best: Point) -> dict[int, tuple[Point, ...]]:
        # Once a trial is cleaned, what came close is no result any more.
        changed: dict[int, tuple[Point, ...]] = {kept.trial: () for kept in self._closest}
        self._closest = []
        changed[number] = (best,)
        insort(self._best, (-best.measurement.accuracy, best.measurement.asr or 0.0, number))
        changed |= {dropped: () for *_, dropped in self._best[self._most :]}
        del self._best[self._most :]
        return changed

    def _closest_of(self, number: int) -> tuple[Point, ...]:
        return tuple(kept.point for kept in self._closest if kept.trial == number)


def kept_points(trials: Iterable[TrialRecord], asr_ceiling: float, most: int) -> list[KeptPoint]:
    """The points of a sweep that keep their weights, by trial: of trials that are over as `KeptWeights` says, of others
    their own best.

    Args:
        trials: of the sweep.
        asr_ceiling: a fraction.
        most: so many cleaned trials keep weights.
    """
    rule = KeptWeights(asr_ceiling, most)
    kept: dict[int, tuple[Point, ...]] = {}
    for trial in trials:
        kept |= rule.take(trial) if trial.state in OVER else {trial.number: worth_keeping(trial, asr_ceiling)}
    return [KeptPoint(number, point) for number in sorted(kept) for point in kept[number] if point.checkpoint]


def find_weights(sweep: SweepRecord) -> list[KeptPoint]:
    """The points of a sweep that keep their weights, by trial, each with its path or URL.

    Files are looked for, and links are none; an object store is not asked.
    """
    places = {trial.number: trial.storage for trial in sweep.trials}
    found = []
    for kept in kept_points(sweep.trials, sweep.asr_ceiling, sweep.keep_checkpoints):
        storage, name = Storage(places[kept.trial]), str(kept.point.checkpoint)
        with contextlib.suppress(StorageFault):  # a folder of others, which this user may not look into
            if storage.is_remote or name in storage.names():
                found.append(dataclasses.replace(kept, location=(storage / name).location))
    return found
