"""Stopping rules, by hand: victim of accuracy .9 and ASR .8, ceiling .05."""

import math

import fabricated
import pytest

from sweeplab.ranking.stopping import (
    SMALLEST_ASR,
    BackdoorStays,
    FallsBehind,
    LearnedBound,
    Pruning,
    Situation,
    Trajectory,
)
from sweeplab.specs import InvalidInput, Spec


def trial(*points: tuple[float, float]) -> Trajectory:
    """Accuracy and ASR at epochs 1, 2, ..."""
    accuracy, asr = zip(*points, strict=True)
    return Trajectory(tuple(float(n) for n in range(1, len(points) + 1)), accuracy, asr)


def situation(best: float | None = None, lowest: float | None = None, completed: tuple = ()) -> Situation:
    return Situation(0.9, 0.8, 0.05, best, lowest, completed)


# --- trajectories


def test_a_trajectory_leaves_out_the_start_unless_it_counts():
    points = [fabricated.point(0, 90, 79), fabricated.point(1, 80, 40)]
    assert Trajectory.of(points, start_counts=False) == Trajectory((1.0,), (0.8,), (0.5,))
    assert Trajectory.of(points, start_counts=True).epochs == (0.0, 1.0)


def test_the_best_cleaned_accuracy_lies_strictly_below_the_ceiling():
    assert trial((0.9, 0.05), (0.7, 0.04), (0.8, 0.01)).best_accuracy(0.05) == 0.8
    assert trial((0.9, 0.05)).best_accuracy(0.05) is None


def test_the_outlook_is_the_best_from_an_epoch_on():
    """Accuracy .5, .7, .6 and ASR .4, .1, .2: from epoch 1 up to .7 and down to .1, a quarter; from epoch 3 its own."""
    outlook = trial((0.5, 0.4), (0.7, 0.1), (0.6, 0.2)).outlook
    assert outlook[1.0] == (0.5, 0.4, 0.7, 0.1)
    assert outlook[1.0].fall == pytest.approx(0.25)
    assert outlook[3.0] == (0.6, 0.2, 0.6, 0.2)
    assert outlook[3.0].fall == 1


def test_an_asr_of_zero_counts_as_the_smallest_that_is_told_apart():
    assert trial((0.5, 0.5), (0.5, 0.0)).outlook[1.0].fall == pytest.approx(SMALLEST_ASR / 0.5)
    assert trial((0.5, 0.0), (0.5, 0.0)).outlook[1.0].fall == 1


# --- rules


def test_the_backdoor_stays_where_the_lowest_asr_is_the_share_of_the_victims():
    """.9 of .8 is .72."""
    rule = BackdoorStays(after_epochs=2, share=0.9)
    stop = rule.judge(trial((0.9, 0.8), (0.9, 0.73)), situation())
    assert stop is not None
    assert stop.saw == pytest.approx({"epoch": 2.0, "lowest_asr": 0.73, "limit": 0.72})
    assert rule.judge(trial((0.9, 0.8), (0.9, 0.71)), situation()) is None


def test_a_trial_that_is_cleaned_is_not_said_to_keep_the_backdoor():
    """The victim's ASR, .01, lies below the ceiling already: its share means nothing."""
    now = Situation(0.9, 0.01, 0.05, 0.9, 0.01)
    assert BackdoorStays(after_epochs=1).judge(trial((0.9, 0.04)), now) is None
    assert BackdoorStays(after_epochs=1).judge(trial((0.9, 0.05)), now) is not None


def test_an_asr_that_dipped_before_does_not_stay():
    assert BackdoorStays(after_epochs=2).judge(trial((0.9, 0.3), (0.9, 0.8)), situation()) is None


@pytest.mark.parametrize("rule", [BackdoorStays(after_epochs=2), FallsBehind(after_epochs=2, margin=0)])
def test_no_rule_fires_before_its_epoch(rule: Spec):
    assert rule.judge(trial((0.1, 0.8)), situation(best=0.9)) is None


def test_it_falls_behind_below_the_margin_and_only_while_it_falls():
    """Best .85, margin .1 of .9: the limit is .76."""
    rule = FallsBehind(after_epochs=2, margin=0.1)
    stop = rule.judge(trial((0.8, 0.5), (0.75, 0.5)), situation(best=0.85))
    assert stop is not None
    assert stop.saw["limit"] == pytest.approx(0.76)
    assert rule.judge(trial((0.8, 0.5), (0.765, 0.5)), situation(best=0.85)) is None
    assert rule.judge(trial((0.7, 0.5), (0.75, 0.5)), situation(best=0.85)) is None


def test_nothing_falls_behind_before_something_is_cleaned():
    assert FallsBehind(after_epochs=1).judge(trial((0.8, 0.5), (0.1, 0.5)), situation()) is None


def test_the_learned_bound_on_accuracy():
    """Two completed trials were at .5 or below after epoch 1, and came up to .7 at most: below .75. A third, which was
    better, says nothing."""
    completed = (
        trial((0.5, 0.1), (0.7, 0.01)),
        trial((0.4, 0.1), (0.6, 0.01)),
        trial((0.6, 0.1), (0.9, 0.01)),
    )
    rule = LearnedBound(learn_from=2, accuracy_slack=0)
    stop = rule.judge(trial((0.5, 0.1)), situation(best=0.75, completed=completed))
    assert stop is not None
    assert stop.saw == pytest.approx({"epoch": 1, "learned_from": 2, "accuracy": 0.5, "bound": 0.7, "best": 0.75})
    assert rule.judge(trial((0.5, 0.1)), situation(best=0.69, completed=completed)) is None


def test_a_trial_that_fell_deeper_than_all_before_it_goes_on():
    completed = (trial((0.5, 0.1), (0.7, 0.01)), trial((0.6, 0.1), (0.7, 0.01)))
    rule = LearnedBound(learn_from=1, accuracy_slack=0)
    assert rule.judge(trial((0.49, 0.1)), situation(best=0.9, completed=completed)) is None


def test_slack_on_accuracy_counts_on_both_sides():
    """.1 of .9 is .09: a trial at .58 is comparable to one at .5, which came up to .6; .6 + .09 stays below .7 only."""
    completed = (trial((0.58, 0.1), (0.6, 0.01)),)
    rule = LearnedBound(learn_from=1, accuracy_slack=0.1)
    assert rule.judge(trial((0.5, 0.1)), situation(best=0.7, completed=completed)) is not None
    assert rule.judge(trial((0.5, 0.1)), situation(best=0.68, completed=completed)) is None
    assert rule.judge(trial((0.48, 0.1)), situation(best=0.7, completed=completed)) is None


def test_the_learned_bound_on_asr():
    """The deepest fall after epoch 1 was to a tenth: .6 comes down to .06 at best, .4 to .04."""
    completed = (trial((0.9, 0.5), (0.9, 0.05)), trial((0.9, 0.1), (0.9, 0.09)))
    rule = LearnedBound(learn_from=2, accuracy_slack=0, asr_slack=1)
    stop = rule.judge(trial((0.9, 0.6)), situation(best=0.9, completed=completed))
    assert stop is not None
    assert stop.saw["bound"] == pytest.approx(0.06)
    assert rule.judge(trial((0.9, 0.4)), situation(best=0.9, completed=completed)) is None


def test_without_a_cleaned_trial_one_that_may_reach_the_lowest_asr_goes_on():
    """Nothing is cleaned and the lowest ASR is .3: .6 may still fall to .06."""
    completed = (trial((0.9, 0.5), (0.9, 0.05)), trial((0.9, 0.4), (0.9, 0.3)))
    rule = LearnedBound(learn_from=2, asr_slack=1)
    assert rule.judge(trial((0.9, 0.6)), situation(lowest=0.3, completed=completed)) is None


def test_nothing_is_learned_from_too_few_trials_or_from_other_epochs():
    rule, bad = LearnedBound(learn_from=2), trial((0.6, 0.8))
    one = trial((0.5, 0.1), (0.5, 0.1))
    assert rule.judge(bad, situation(best=0.9, completed=(one,))) is None
    other_epochs = Trajectory((0.5,), (0.5,), (0.1,))
    assert rule.judge(bad, situation(best=0.9, completed=(one, other_epochs))) is None
    assert rule.judge(bad, situation(best=0.9, completed=(one, one))) is not None


def test_rules_leave_their_input_alone_and_repeat():
    points, now = trial((0.8, 0.8), (0.7, 0.8)), situation(best=0.9, completed=(trial((0.5, 0.1)),) * 5)
    assert Pruning().decide(points, now) == Pruning().decide(points, now)
    assert points == trial((0.8, 0.8), (0.7, 0.8))


def test_the_first_rule_that_fires_decides():
    points = trial((0.8, 0.8), (0.1, 0.8))
    assert Pruning(rules=(BackdoorStays(), FallsBehind())).decide(points, situation(best=0.9)).rule == "backdoor-stays"
    assert Pruning(rules=(FallsBehind(), BackdoorStays())).decide(points, situation(best=0.9)).rule == "falls-behind"


def test_a_trial_without_a_point_that_may_win_goes_on():
    assert Pruning().decide(Trajectory((), (), ()), situation(best=0.9)) is None


def test_what_a_rule_saw_is_finite():
    stop = Pruning().decide(trial((0.8, 0.8), (0.1, 0.8)), situation(best=0.9))
    assert all(math.isfinite(value) for value in stop.saw.values())


def test_rules_read_back_from_json():
    pruning = Pruning(rules=(LearnedBound(learn_from=3),))
    assert Pruning.model_validate(pruning.to_json()) == pruning


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(InvalidInput, match="known: backdoor-stays, falls-behind, learned-bound"):
        Pruning.model_validate({"rules": [{"kind": "median"}]})
