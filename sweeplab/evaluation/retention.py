"""When a point is cleaned, how much accuracy it kept, and the one number a search maximises."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from sweeplab.records import Measurement, Point, TrialColumns, TrialRecord, percent


def is_cleaned(measurement: Measurement, asr_ceiling: float) -> bool:
    """Whether the ASR lies strictly below the ceiling (Verma et al., Sec. 4, count `<=`; here it is out).

    Raises:
        ValueError: if no ASR was measured: nothing can be said about cleaning without a trigger.
    """
    if measurement.asr is None:
        raise ValueError("no trigger was measured, so no point can be called cleaned; name the attack")
    return measurement.asr < asr_ceiling


def retention(accuracy: float, victim_accuracy: float) -> float:
    """Accuracy as a fraction of the victim's on the same images; above 1 where cleaning gained accuracy.

    Raises:
        ValueError: if the victim classifies nothing correctly, which leaves nothing to retain.
    """
    if victim_accuracy <= 0:
        raise ValueError(f"victim_accuracy={victim_accuracy} must be positive; the victim has learned nothing")
    return accuracy / victim_accuracy


HALF = 0.5
"""Of the victim's accuracy: a cleaned model that keeps less is hardly a model any more."""


@dataclass(frozen=True)
class CleanedTrials:
    """How many trials of a sweep are cleaned, and how many of these keep little."""

    trials: int
    """Those with a point that may win."""
    cleaned: int
    below_half: int
    """Cleaned ones that keep less than half of the victim's accuracy: the trigger went with all else."""

    @classmethod
    def of(cls, retentions: Iterable[float | None]) -> Self:
        """Count.

        Args:
            retentions: of the trials that have a point that may win; None, or NaN in a table, where none is cleaned.
        """
        found = list(retentions)
        kept = [value for value in found if value is not None and not math.isnan(value)]
        return cls(len(found), len(kept), sum(value < HALF for value in kept))

    def in_words(self, what: str = "cleaned") -> str:
        """Such as `6 of 12 cleaned, 1 of them keeps less than half of the accuracy`."""
        return ", ".join(filter(None, [f"{self.cleaned:,} of {self.trials:,} {what}", self.destroyed()]))

    def destroyed(self) -> str:
        """The second half of that; empty where there is none."""
        verb = "keeps" if self.below_half == 1 else "keep"
        return f"{self.below_half:,} of them {verb} less than half of the accuracy" if self.below_half else ""


def counted(points: Iterable[Point], *, start_counts: bool = False) -> list[Point]:
    """The points that may win: all after epoch 0, the start only if `start_counts`.

    An untouched victim is not a result of cleaning, even if its ASR lies below the ceiling; what shrink and
    perturb or another start made of it is one (`TrialRecord.start_counts`).
    """
    return [point for point in points if start_counts or point.epoch > 0]


def num_choices(trials: Iterable[TrialRecord]) -> int:
    """The number of a sweep's points that could have been chosen as its result.

    All that were evaluated and may win (see `counted`), cleaned or not, of trials in every state: pruned, failed and
    running ones are ranked too.
    """
    return sum(
        trial.summary.num_choices if trial.summary else len(counted(trial.points, start_counts=trial.start_counts))
        for trial in trials
    )


def missing_backdoor(victim: Measurement, asr_ceiling: float, num_classes: int | None = None) -> str | None:
    """Why the victim's ASR shows no backdoor that could be cleaned; None: it shows one, or no trigger was measured.

    It lies below the ceiling as it is, or not above chance: a share of 1 / `num_classes` of the images would be
    classified as the target label anyway (one-sided binomial test at 0.05, where counts are known).

    Args:
        victim: measured under the sweep's evaluation.
        asr_ceiling: a fraction.
        num_classes: of the test set; None: not known, so nothing is said about chance.
    """
    if victim.asr is None:
        return None
    rule = ""
    if is_cleaned(victim, asr_ceiling):
        rule = f"lies below the ceiling of {percent(asr_ceiling, None)} before any cleaning"
    elif num_classes and victim.is_counted and not _is_above(victim.asr_k, victim.asr_n, 1 / num_classes):
        rule = f"is not above chance, 1 of {num_classes} classes"
    if not rule:
        return None
    return (
        f"the victim's own ASR of {percent(victim.asr, ceiling=asr_ceiling)} {rule}: there is no backdoor to clean, or "
        "it has another trigger or target than was named; no trial is certified"
    )


def _is_above(k: int, n: int, rate: float) -> bool:
    """Whether k of n are significantly more than a rate gives (one-sided binomial test at 0.05)."""
    share = k / n
    if rate < share < 1:
        # Chernoff's bound of the p value: where it suffices, SciPy, which takes a second to import, is not asked.
        divergence = share * math.log(share / rate) + (1 - share) * math.log((1 - share) / (1 - rate))
        if math.exp(-n * divergence) <= 0.05:
            return True
    from scipy.stats import binomtest

    return bool(binomtest(k, n, rate, alternative="greater").pvalue <= 0.05)


def best_cleaned_point(points: Iterable[Point], asr_ceiling: float, *, start_counts: bool = False) -> Point | None:
    """The most accurate cleaned point, of equals the one of lower ASR, then the earlier; None: there is none.

    Args:
        points: of one trial.
        asr_ceiling: a fraction.
        start_counts: whether epoch 0 may win.
    """
    candidates = counted(points, start_counts=start_counts)
    cleaned = [point for point in candidates if is_cleaned(point.measurement, asr_ceiling)]
    if not cleaned:
        return None
    return min(cleaned, key=lambda point: (*preference(point), point.index))


def preference(point: Point) -> tuple[float, float]:
    """What orders cleaned points, the smallest first: the most accurate, of equals the one of lower ASR."""
    assert point.measurement.asr is not None
    return -point.measurement.accuracy, point.measurement.asr


def best_of_trials(best: Mapping[int, Point]) -> tuple[int, Point] | None:
    """The best of several trials and its best cleaned point, of equals the lower number; None: there is none.

    Args:
        best: the best cleaned point by number of trial.
    """
    return min(best.items(), key=lambda pair: (*preference(pair[1]), pair[0]), default=None)


def best_row(trials: TrialColumns, among: np.ndarray) -> int | None:
    """The row of the trial that `best_of_trials` would name; None: none of them is cleaned.

    Args:
        trials: summarized.
        among: (T,) boolean.
    """
    rows = np.flatnonzero(among & ~np.isnan(trials.best_accuracy))
    if not len(rows):
        return None
    return int(rows[np.lexsort((trials.trial[rows], trials.best_asr[rows], -trials.best_accuracy[rows]))[0]])


def lowest_asr(points: Iterable[Point], *, start_counts: bool = False) -> float:
    """The lowest ASR over the points that may win, a fraction.

    Raises:
        ValueError: if there is none: no point after the start yet, or no trigger was measured.
    """
    candidates = counted(points, start_counts=start_counts)
    rates = [point.measurement.asr for point in candidates if point.measurement.asr is not None]
    if not rates:
        raise ValueError("no point after the start has a measured ASR; evaluate at least one epoch with the trigger")
    return min(rates)


def score(points: Iterable[Point], victim_accuracy: float, asr_ceiling: float, *, start_counts: bool = False) -> float:
    """What the search maximises over a whole trajectory.

    Returns:
        The retention of the best cleaned point where there is one (>= 0), else `asr_ceiling - lowest ASR`
        (<= 0): every cleaned trial beats every other, and of the others the one closest to it is best.

    Raises:
        ValueError: if no point may win (see `lowest_asr`), so there is nothing to score.
    """
    points = list(points)
    best = best_cleaned_point(points, asr_ceiling, start_counts=start_counts)
    if best is None:
        return asr_ceiling - lowest_asr(points, start_counts=start_counts)
    return retention(best.measurement.accuracy, victim_accuracy)
