"""Whose weights stay, whatever the order in which trials end."""

import itertools
from typing import Any

import fabricated
import pytest

from sweeplab.ranking.kept_weights import KeptPoint, KeptWeights, closest_points, kept_points
from sweeplab.records import TrialRecord


def trial(number: int, *rates: tuple[int, int], state: Any = "finished") -> TrialRecord:
    """Points of so many correct of 100 images, and so many hit of 80; the ceiling of 5 % is 4 of 80."""
    points = [fabricated.point(index, *values, checkpoint=f"{index}.pt") for index, values in enumerate(rates, start=1)]
    return TrialRecord(number, state, {}, "c", 0, 1, tuple(points))


def kept_after(order: tuple[TrialRecord, ...], most: int) -> set[tuple[int, int]]:
    rule, kept = KeptWeights(0.05, most), {}
    for one in order:
        changed = rule.take(one)
        assert one.number in changed
        kept |= changed
    return {(number, point.index) for number, points in kept.items() for point in points}


CLOSE = (trial(0, (89, 70), (88, 60)), trial(1, (85, 7), (70, 6)), trial(2, (80, 9), (30, 5)), trial(3, (84, 7)))
CLEANED = (trial(4, (60, 3), (55, 0)), trial(5, (70, 50), (65, 2)), trial(6, (65, 1)))
FAILED = (trial(7, (99, 0), state="failed"),)


@pytest.mark.parametrize(
    ("trials", "kept"),
    [
        (CLOSE, {(1, 1), (2, 2)}),
        ((*CLOSE[:2], *CLEANED), {(6, 1), (5, 2)}),
        ((CLOSE[0], *FAILED), {(0, 2)}),
        (FAILED, set()),
    ],
    ids=["nothing cleaned", "cleaned", "far from it", "failed"],
)
def test_what_stays_does_not_depend_on_the_order_in_which_trials_end(trials: Any, kept: set[tuple[int, int]]):
    assert all(kept_after(order, most=2) == kept for order in itertools.permutations(trials))


def test_a_point_with_the_lowest_asr_may_be_the_most_accurate_one_too():
    (only,) = closest_points([KeptPoint(0, point) for point in trial(0, (80, 5), (70, 7)).points], 0.05)
    assert only.point.index == 1


def test_twice_the_ceiling_itself_is_not_close():
    """8 / 80 is 10 %."""
    kept = closest_points([KeptPoint(0, point) for point in trial(0, (50, 7), (90, 8)).points], 0.05)
    assert [one.point.index for one in kept] == [1]


def test_points_without_weights_keep_none():
    assert closest_points([KeptPoint(0, fabricated.point(1, 80, 5))], 0.05) == []


def test_a_running_trial_keeps_its_own_beside_those_that_are_over():
    trials = (CLOSE[0], trial(1, (60, 7), state="running"))
    assert [(kept.trial, kept.point.index) for kept in kept_points(trials, 0.05, 5)] == [(0, 2), (1, 1)]
