"""The leaderboard by configuration, by hand: victim accuracy .4, so .38 is a retention of .95."""

import io
import json

import pytest
from rich.console import Console

from sweeplab.ranking.configurations import group_by_configuration, render_configurations
from sweeplab.ranking.leaderboard import Leaderboard, rank_trials
from sweeplab.records import Measurement, Point, SweepRecord, TrialRecord

START = (400, 990)


def trial(number: int, configuration: str, seed: int, *rates: tuple[int, int], state: str = "finished") -> TrialRecord:
    points = tuple(
        Point(index, float(index), index, 1, Measurement(k, 1000, hits, 1000, "made up"))
        for index, (k, hits) in enumerate(rates)
    )
    return TrialRecord(number, state, {"rate": configuration}, configuration, seed, 1, points)  # type: ignore[arg-type]


def board(*trials: TrialRecord) -> Leaderboard:
    victim = Measurement(*START[:1], 1000, START[1], 1000, "made up")
    record = SweepRecord("toy", "0", "finished", 0.05, 1, "paper", "m", "v", victim, 0.0, "banana", trials,
                         len(trials), "", ("rate",))  # fmt: skip
    return rank_trials(record, lambda number, index: None)


TRIALS = (
    trial(0, "steady", 0, START, (360, 10)),
    trial(1, "steady", 1, START, (380, 20)),
    trial(2, "lucky", 0, START, (400, 10)),
    trial(3, "lucky", 1, START, (390, 300)),
    trial(4, "hopeless", 0, START, (390, 900)),
    trial(5, "begun", 0, START, state="running"),
)


def test_mean_deviation_and_worst_over_the_seeds():
    """.9 and .95: mean .925, deviation .05 / sqrt(2)."""
    row = group_by_configuration(board(*TRIALS))[0]
    assert (row.configuration, row.trials, row.seeds, row.measured, row.feasible) == ("steady", (0, 1), (0, 1), 2, 2)
    assert row.retention_mean == pytest.approx(0.925)
    assert row.retention_sd == pytest.approx(0.05 / 2**0.5)
    assert row.retention_worst == pytest.approx(0.9)
    assert row.min_asr_worst == pytest.approx(0.02)


def test_a_configuration_that_one_seed_does_not_clean_ranks_below_one_that_all_do():
    """`lucky` keeps all of the accuracy with one seed, and has no worst retention: the other seed has none."""
    rows = group_by_configuration(board(*TRIALS))
    assert [row.configuration for row in rows] == ["steady", "lucky", "hopeless", "begun"]
    assert [row.rank for row in rows] == [1, 2, 3, 4]
    assert (rows[1].retention_mean, rows[1].retention_sd, rows[1].retention_worst) == (1.0, None, None)
    assert rows[1].min_asr_worst == pytest.approx(0.3)


def test_trials_without_a_point_that_may_win_do_not_count():
    row = group_by_configuration(board(TRIALS[0], trial(1, "steady", 1, START, state="running")))[0]
    assert (row.measured, row.feasible, row.retention_worst) == (1, 1, pytest.approx(0.9))


def test_grouping_does_not_depend_on_the_order_of_the_trials():
    forwards = group_by_configuration(board(*TRIALS))
    assert group_by_configuration(board(*reversed(TRIALS))) == forwards


def test_every_trial_stands_in_one_configuration():
    rows = group_by_configuration(board(*TRIALS))
    assert sorted(number for row in rows for number in row.trials) == list(range(6))


def test_json_has_no_nan():
    values = [row.to_json() for row in group_by_configuration(board(*TRIALS))]
    assert json.loads(json.dumps(values, allow_nan=False))[0]["retention"]["mean"] == pytest.approx(0.925)


def test_the_table_for_people_shows_how_many_seeds_were_cleaned():
    leaderboard = board(*TRIALS)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_configurations(leaderboard, group_by_configuration(leaderboard)))
    text = console.export_text()
    assert "1 of 2" in text
    assert "92.5" in text
