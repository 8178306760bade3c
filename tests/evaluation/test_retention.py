"""When a point is cleaned, and what a trajectory scores."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeplab.evaluation.retention import (
    CleanedTrials,
    best_cleaned_point,
    best_of_trials,
    best_row,
    counted,
    is_cleaned,
    lowest_asr,
    retention,
    score,
)
from sweeplab.ranking.summary import summarize
from sweeplab.records import Measurement, Point, TrialColumns, TrialRecord

CEILING = 0.05
VICTIM_ACCURACY = 0.4


def point(index, accuracy_k, asr_k, *, asr_n=100):
    """Point `index` at that epoch: accuracy_k of 100 images correct, asr_k of asr_n hit."""
    measurement = Measurement(accuracy_k, 100, asr_k, asr_n, "evaluation")
    return Point(index, float(index), 10 * index, 1, measurement)


def test_asr_equal_to_the_ceiling_is_not_cleaned():
    """5 of 100 is the ceiling itself; 4 of 100 lies below."""
    assert not is_cleaned(point(1, 30, 5).measurement, CEILING)
    assert is_cleaned(point(1, 30, 4).measurement, CEILING)


def test_nothing_is_cleaned_without_a_trigger():
    with pytest.raises(ValueError, match="name the attack"):
        is_cleaned(point(1, 30, 0, asr_n=0).measurement, CEILING)


def test_retention_by_hand():
    """0.3 of 0.4 is three quarters; more accuracy than the victim's is above 1."""
    assert retention(0.3, VICTIM_ACCURACY) == pytest.approx(0.75)
    assert retention(0.44, VICTIM_ACCURACY) == pytest.approx(1.1)


def test_a_victim_that_classifies_nothing_leaves_nothing_to_retain():
    with pytest.raises(ValueError, match="must be positive"):
        retention(0.3, 0.0)


@pytest.mark.parametrize(
    ("retentions", "words"),
    [
        ([0.995, None, 0.06], "2 of 3 cleaned, 1 of them keeps less than half of the accuracy"),
        ([0.49, 0.06, None], "2 of 3 cleaned, 2 of them keep less than half of the accuracy"),
        ([0.5, 1.02, 0.9], "3 of 3 cleaned"),
        ([None, None], "0 of 2 cleaned"),
        ([], "0 of 0 cleaned"),
    ],
)
def test_cleaned_trials_that_keep_less_than_half_are_counted_apart(retentions, words):
    assert CleanedTrials.of(retentions).in_words() == words


def test_best_cleaned_point_is_the_most_accurate_one_below_the_ceiling():
    """Epoch 1 is more accurate but at the ceiling; of epochs 2 (30 %) and 3 (28 %) the former is best."""
    points = [point(0, 40, 99), point(1, 35, 5), point(2, 30, 4), point(3, 28, 0)]
    assert best_cleaned_point(points, CEILING) == points[2]


def test_of_equally_accurate_points_the_lower_asr_wins_then_the_earlier():
    points = [point(1, 30, 3), point(2, 30, 2), point(3, 30, 2)]
    assert best_cleaned_point(points, CEILING) == points[1]


def test_there_is_no_best_point_where_none_is_cleaned():
    assert best_cleaned_point([point(1, 30, 5), point(2, 30, 6)], CEILING) is None
    assert best_cleaned_point([], CEILING) is None


def test_the_start_wins_only_where_it_counts():
    """A start with 40 % accuracy at 0 % ASR beats epoch 1 (30 %, 2 %), if it may."""
    points = [point(0, 40, 0), point(1, 30, 2)]
    assert best_cleaned_point(points, CEILING) == points[1]
    assert best_cleaned_point(points, CEILING, start_counts=True) == points[0]
    assert lowest_asr(points) == pytest.approx(0.02)
    assert lowest_asr(points, start_counts=True) == 0.0
    assert score(points, VICTIM_ACCURACY, CEILING) == pytest.approx(0.75)
    assert score(points, VICTIM_ACCURACY, CEILING, start_counts=True) == pytest.approx(1.0)


def test_lowest_asr_needs_a_point_after_the_start():
    with pytest.raises(ValueError, match="at least one epoch"):
        lowest_asr([point(0, 40, 99)])


def test_score_of_a_trial_that_never_gets_clean_is_its_distance_to_the_ceiling():
    """The lowest ASR is 8 %, so the score is 0.05 - 0.08."""
    assert score([point(1, 30, 20), point(2, 20, 8)], VICTIM_ACCURACY, CEILING) == pytest.approx(-0.03)


def test_score_of_a_trial_at_the_ceiling_is_zero():
    assert score([point(1, 30, 5)], VICTIM_ACCURACY, CEILING) == 0.0


TRAJECTORIES = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100)), min_size=1, max_size=8).map(
    lambda rates: [point(index, *rate) for index, rate in enumerate(rates, start=1)]
)


@given(TRAJECTORIES)
def test_best_cleaned_point_is_cleaned_and_no_cleaned_point_is_more_accurate(points):
    best = best_cleaned_point(points, CEILING)
    cleaned = [one for one in points if is_cleaned(one.measurement, CEILING)]
    assert (best is None) == (not cleaned)
    if best is not None:
        assert best in cleaned
        assert best.measurement.accuracy == max(one.measurement.accuracy for one in cleaned)


@given(TRAJECTORIES, TRAJECTORIES)
def test_every_cleaned_trial_scores_above_every_other(first, second):
    scores = [score(points, VICTIM_ACCURACY, CEILING) for points in (first, second)]
    cleaned = [best_cleaned_point(points, CEILING) is not None for points in (first, second)]
    if cleaned == [True, False]:
        assert scores[0] > scores[1]


@given(TRAJECTORIES, st.tuples(st.integers(1, 100), st.integers(0, 100)))
def test_another_epoch_never_lowers_the_score(points, rate):
    longer = [*points, point(len(points) + 1, *rate)]
    assert score(longer, VICTIM_ACCURACY, CEILING) >= score(points, VICTIM_ACCURACY, CEILING)


def test_counted_keeps_the_order_and_drops_only_the_start():
    points = [point(0, 40, 99), point(1, 30, 2), point(2, 20, 1)]
    assert counted(points) == points[1:]
    assert counted(points, start_counts=True) == points


def test_of_trials_that_keep_the_same_the_lower_asr_and_then_the_lower_number_is_best():
    """As the leaderboard ranks them: 72 % accuracy thrice, at 2, 1 and 1 hits of 100."""
    best = {number: point(1, 72, hits) for number, hits in ((0, 2), (5, 1), (3, 1))}
    assert best_of_trials(best) == (3, best[3])
    assert best_of_trials({**best, 9: point(1, 73, 3)}) == (9, point(1, 73, 3))
    assert best_of_trials({}) is None


@pytest.mark.parametrize("left_out", [(), (3,), (3, 5), (0, 3, 5)])
def test_the_best_row_is_the_best_of_trials(left_out):
    """The trials of the test above and four that are not cleaned; some are left out, as failed ones are."""
    best = {number: point(1, 72, hits) for number, hits in ((0, 2), (5, 1), (3, 1))}
    trials = []
    for number in range(7):
        trial = TrialRecord(number, "finished", {}, "c", 0, 1, (best.get(number, point(1, 90, 50)),))
        trials.append(replace(trial, summary=summarize(trial, CEILING, lambda *_: None, None)))
    counts = np.array([number not in left_out for number in range(7)])
    expected = best_of_trials({number: one for number, one in best.items() if number not in left_out})
    row = best_row(TrialColumns.of(trials), counts)
    assert row == (None if expected is None else expected[0])
