"""The summary of a trial: what ranking, status and page ask of its points, worked out once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sweeplab.evaluation.retention import best_cleaned_point, counted, lowest_asr
from sweeplab.ranking.kept_weights import worth_keeping
from sweeplab.records import MeasuredImages, Measurement, Outcomes, Point, TrialRecord, TrialSummary

VERSION = 1
"""Of what a summary says: stored ones of another version are worked out anew."""

WITHOUT: dict[str, Any] = {"train": {}, "curve": (), "train_seconds": 0.0, "evaluate_seconds": 0.0}
"""What the points of a summary do without."""

ReadOutcomes = Callable[[int, int], Outcomes | None]
"""Trial number and point index to the outcomes per image; None where they were not kept."""


def summarize(
    trial: TrialRecord, asr_ceiling: float, outcomes: ReadOutcomes, chooses: np.ndarray | None
) -> TrialSummary:
    """Summarize a trial's points so far.

    Args:
        trial: in any state.
        asr_ceiling: a fraction.
        outcomes: gives a point's outcomes per image; points without cannot be chosen on a half.
        chooses: of `even_images`; None: it is not known which images the triggered ones were made of.

    Raises:
        ValueError: if no trigger was measured.
    """
    candidates = counted(trial.points, start_counts=trial.start_counts)
    kept = worth_keeping(trial, asr_ceiling) if candidates else ()
    return TrialSummary(
        num_points=len(trial.points),
        num_choices=len(candidates),
        last_epoch=max((point.epoch for point in trial.points), default=None),
        last_ms=max((point.timestamp_ms for point in trial.points), default=0),
        seconds=sum(point.train_seconds + point.evaluate_seconds for point in trial.points),
        has_curve=any(point.curve for point in trial.points),
        lowest_asr=lowest_asr(candidates, start_counts=trial.start_counts) if candidates else None,
        is_cleaned=best_cleaned_point(candidates, asr_ceiling, start_counts=trial.start_counts) is not None,
        worth_keeping=tuple(dataclasses.replace(point, **WITHOUT) for point in kept),
        report=None if chooses is None else _report(candidates, trial, outcomes, asr_ceiling, chooses),
    )


def even_images(images: MeasuredImages, count: int) -> np.ndarray:
    """Which test images an epoch is chosen on; the others report on it.

    Triggered images alternate, and the picture behind each lies on its side, so that no picture takes part in both;
    the pictures of the target class alternate among themselves. Under targeted poisoning the target images are no test
    images: both sorts alternate, each by itself.

    Args:
        images: of the sweep.
        count: N, test images.

    Returns:
        (N,) boolean.
    """
    is_target = np.zeros(count, dtype=bool)
    is_target[list(images.target_rows)] = True
    even = np.empty(count, dtype=bool)
    for rows in (np.flatnonzero(is_target), np.flatnonzero(~is_target)):
        even[rows] = np.arange(len(rows)) % 2 == 0
    return even


def _report(
    candidates: list[Point], trial: TrialRecord, outcomes: ReadOutcomes, asr_ceiling: float, chooses: np.ndarray
) -> Measurement | None:
    """Choose the best cleaned point on the even images, measure it on the odd ones; None: there is none.

    Args:
        candidates: which are chosen among.
        trial: whose points they are.
        outcomes: see `summarize`.
        asr_ceiling: a fraction.
        chooses: of `even_images`.
    """
    even: list[Point] = []
    odd: dict[int, Measurement] = {}
    for point in candidates:
        if not _may_be_cleaned_on_half(point.measurement, asr_ceiling):
            continue
        kept = outcomes(trial.number, point.index)
        if kept is None or kept.num_images != len(chooses) or chooses.all() or kept.num_triggered < 2:
            continue
        correct, hits = kept.correct_mask(), kept.hit_mask()
        digest = point.measurement.evaluation_digest
        first = _measured(correct[chooses], hits[0::2], f"{digest}:even")
        even.append(dataclasses.replace(point, measurement=first))
        odd[point.index] = _measured(correct[~chooses], hits[1::2], f"{digest}:odd")
    best = best_cleaned_point(even, asr_ceiling, start_counts=trial.start_counts)
    return odd[best.index] if best else None


def _may_be_cleaned_on_half(measurement: Measurement, asr_ceiling: float) -> bool:
    """False where the even half is not cleaned even with every odd image hit: skip its outcomes."""
    num_odd = measurement.asr_n // 2
    num_even = measurement.asr_n - num_odd
    return num_even > 0 and (measurement.asr_k - num_odd) / num_even < asr_ceiling


def _measured(correct: np.ndarray, hits: np.ndarray, digest: str) -> Measurement:
    return Measurement(int(correct.sum()), correct.size, int(hits.sum()), hits.size, digest)
