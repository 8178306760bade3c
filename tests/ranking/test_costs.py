"""Costs, by hand: what a sweep took and what of it was wasted, told from made-up events."""

from dataclasses import replace
from typing import Any

import fabricated
import pytest

from sweeplab.ranking.costs import Costs, attempts_of, costs_of
from sweeplab.records import Point, TrialRecord, TrialState

START_MS = 1_700_000_000_000


def event(second: float, kind: str, **facts: Any) -> dict[str, Any]:
    """A line of events.jsonl, so many seconds after the start."""
    return {"time_ms": START_MS + round(1000 * second), "event": kind, **facts}


def began(second: float, **facts: Any) -> dict[str, Any]:
    return event(second, "driver began", workers=facts.pop("workers", 1), gpus_per_worker=facts.pop("gpus", 0.0))


def point(index: int, second: float) -> Point:
    """Three seconds of training and evaluation."""
    return replace(fabricated.point(index, 80, 10), timestamp_ms=START_MS + round(1000 * second))


def trial(number: int, state: TrialState, *points: Point) -> TrialRecord:
    return TrialRecord(number, state, {}, "c", 0, 1, points)


def costs(events: list[dict[str, Any]], *trials: TrialRecord, now: float = 1000.0) -> Costs:
    return costs_of(events, trials, START_MS + round(1000 * now))


def test_a_sweep_that_has_not_begun_costs_nothing():
    assert costs([]) == Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_a_finished_trial_of_two_workers_with_half_a_gpu_each():
    """10 s of 2 workers are 20 worker-seconds, at half a GPU each 10 GPU-seconds; 2 x (3 + 3) s made its points."""
    events = [
        began(0, workers=2, gpus=0.5),
        event(5, "trial began", trial=0),
        event(15, "trial ended", trial=0, state="finished"),
        event(16, "driver ended"),
    ]
    found = costs(events, trial(0, "finished", point(0, 8), point(1, 15)))
    assert found == Costs(1.0, 20.0, 10.0, 12.0, 0.0, 0.0, 0.0)


def test_costs_in_words_say_no_time_that_is_not_known():
    nothing = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert nothing.in_words(0.0) == "0 trial-epochs"
    epochs = replace(nothing, trial_epochs=6000.0)
    assert epochs.in_words(0.0) == "6,000 trial-epochs; how long they took is not known"
    assert epochs.in_words(78_720.0) == "6,000 trial-epochs, 21 h 52 min in trials"
    spent = replace(epochs, worker_seconds=90.0, gpu_seconds=45.0, wasted_by_failure=30.0, wasted_by_pruning=0.4)
    assert spent.in_words(80.0) == ("6,000 trial-epochs, 1 min 30 s of workers, 45 s of GPUs; lost 30 s by failure")


@pytest.mark.parametrize(("state", "failure", "pruning"), [("failed", 7.0, 0.0), ("pruned", 0.0, 7.0)])
def test_a_trial_that_failed_or_was_pruned_is_wasted_whole(state: TrialState, failure: float, pruning: float):
    """One attempt of 4 s that died, another of 3 s."""
    events = [
        began(0),
        event(0, "trial began", trial=0),
        event(4, "attempt failed", trial=0, attempt=1),
        event(10, "trial began", trial=0),
        event(13, "trial ended", trial=0, state=state),
    ]
    found = costs(events, trial(0, state, point(0, 1)))
    assert (found.worker_seconds, found.wasted_by_failure, found.wasted_by_pruning) == (7.0, failure, pruning)
    assert found.wasted_by_repetition == found.useful_seconds == 0.0


def test_what_a_dead_attempt_did_after_its_last_point_is_repeated():
    """It died at second 9, its last point stands since second 7: 2 s are done again. A later point is another's."""
    events = [
        began(0),
        event(1, "trial began", trial=0),
        event(9, "attempt failed", trial=0, attempt=1),
        event(9, "trial began", trial=0),
        event(12, "trial ended", trial=0, state="finished"),
    ]
    found = costs(events, trial(0, "finished", point(0, 3), point(1, 7), point(2, 12)))
    assert found.wasted_by_repetition == 2.0
    assert found.worker_seconds == 11.0


def test_attempts_of_a_killed_driver_end_with_its_last_event_however_late_the_next_one_begins():
    events = [
        began(0),
        event(1, "trial began", trial=0),
        event(4, "trial began", trial=1),
        began(90_000),
        event(90_001, "trial began", trial=0),
        event(90_003, "trial ended", trial=0, state="finished"),
    ]
    found = costs(events, trial(0, "finished", point(0, 3), point(1, 90_003)), trial(1, "waiting"))
    assert found.worker_seconds == 3 + 0 + 2
    assert found.wasted_by_repetition == 1.0


def test_an_end_that_a_later_driver_made_up_for_lies_in_the_life_of_the_killed_one():
    """The driver was killed between a result and its event; a day later the next one writes it, before it begins."""
    events = [
        began(0),
        event(1, "trial began", trial=0),
        event(3, "trial began", trial=1),
        event(90_000, "trial ended", trial=0, state="finished", made_up_for=True),
        began(90_001),
    ]
    found = costs(events, trial(0, "finished", point(0, 3)), trial(1, "waiting"))
    assert found.worker_seconds == 2.0


def test_what_other_commands_write_is_no_sign_of_a_killed_drivers_life():
    events = [
        began(0),
        event(1, "trial began", trial=0),
        event(3, "attempt failed", trial=1, attempt=1),
        event(90_000, "rerun asked", trial=2),
        began(90_001),
    ]
    assert costs(events, trial(0, "waiting")).worker_seconds == 2.0


def test_an_attempt_that_runs_now_is_counted_to_now():
    assert costs([began(0), event(1, "trial began", trial=0)], trial(0, "running"), now=6).worker_seconds == 5.0


def test_an_ended_driver_ends_its_attempts():
    events = [began(0), event(1, "trial began", trial=0), event(3, "driver ended", finished=False)]
    (attempt,) = attempts_of(events)
    assert (attempt.ended, attempt.is_broken) == (START_MS + 3000, True)
    assert costs(events, trial(0, "waiting"), now=500).wasted_by_repetition == 2.0


def test_each_driver_counts_with_its_own_workers():
    events = [
        began(0, workers=1),
        event(0, "trial began", trial=0),
        event(5, "driver ended"),
        began(10, workers=4, gpus=1.0),
        event(10, "trial began", trial=0),
        event(12, "trial ended", trial=0, state="finished"),
    ]
    found = costs(events, trial(0, "finished", point(0, 1)))
    assert (found.worker_seconds, found.gpu_seconds) == (5 + 8, 8.0)


@pytest.mark.parametrize("state", ["finished", "failed", "pruned", "waiting"])
def test_a_clock_that_goes_back_makes_no_cost_negative(state: TrialState):
    events = [
        began(100),
        event(100, "trial began", trial=0),
        event(50, "attempt failed", trial=0, attempt=1),
        event(60, "trial began", trial=0),
        event(20, "driver ended"),
        began(10),
        event(12, "trial began", trial=0),
        event(5, "trial ended", trial=0, state=state),
        event(4, "trial began", trial=1),
    ]
    found = costs(events, trial(0, state, point(0, 110), point(1, 3)), trial(1, "running"), now=0)
    assert all(value >= 0 for value in found.to_json().values())
    assert found.worker_seconds == 0.0


def test_epochs_are_those_of_points_that_stand():
    assert costs([], trial(0, "finished", point(0, 1), point(1, 2)), trial(1, "waiting", point(0, 1))).trial_epochs == 1


@pytest.mark.parametrize(("sign", "seconds"), [(50, 45.0), (3, 10.0), (0, 10.0), (900, 95.0)])
def test_a_killed_drivers_attempts_end_with_its_last_sign_of_life(sign: float, seconds: float):
    """Begun at second 5, last event at 15, next driver at 100: a sign in between counts, and none from after it."""
    until = START_MS + 1000 * sign if sign else 0
    events = [
        began(0),
        event(5, "trial began", trial=0),
        event(15, "trial began", trial=1),
        {**began(100), "before_until_ms": until},
    ]
    first, second = attempts_of(events)
    assert (first.ended or 0) - first.began == 1000 * seconds
    assert (first.is_broken, second.is_broken) == (True, True)
