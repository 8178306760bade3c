"""The order of trials, the halves of the test images, and what scripts read."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sweeplab.evaluation.retention import score
from sweeplab.ranking.configurations import group_by_configuration, render_configurations
from sweeplab.ranking.intervals import asr_upper_bound
from sweeplab.ranking.kept_weights import KeptPoint
from sweeplab.ranking.leaderboard import (
    column_words,
    even_images,
    rank_trials,
    render_table,
    result_lines,
    short_value,
)
from sweeplab.records import MeasuredImages, Measurement, Outcomes, Point, SweepRecord, TrialRecord

N = 1000


def point(index, accuracy_k, asr_k):
    """accuracy_k and asr_k of 1000 images at epoch `index`."""
    measurement = Measurement(accuracy_k, N, asr_k, N, "evaluation")
    return Point(index, float(index), 10 * index, 1, measurement, train_seconds=3.0, evaluate_seconds=1.0)


def trial(number, *rates, state="finished", params=None, start_counts=False):
    """One point a pair (correct, hit) of 1000, from epoch 0 on."""
    points = tuple(point(index, *rate) for index, rate in enumerate(rates))
    params = {"learning_rate": 1e-4} if params is None else params
    return TrialRecord(number, state, params, f"c{number}", 7, 1, points, start_counts=start_counts)


def sweep(*trials, epochs=2):
    """A victim of 40 % accuracy and 99 % ASR."""
    return SweepRecord(
        name="toy",
        digest="0" * 16,
        state="finished",
        asr_ceiling=0.05,
        epochs=epochs,
        protocol="paper",
        method="CleanCLIP",
        victim_name="toy-victim",
        victim=Measurement(400, N, 990, N, "evaluation"),
        victim_epoch=10,
        target="banana",
        trials=trials,
        planned_trials=len(trials),
        parameters=("learning_rate",),
        log_parameters=("learning_rate",),
    )


def no_outcomes(trial_number, index):
    return None


START = (400, 990)


def order(*trials):
    return [row.trial for row in rank_trials(sweep(*trials), no_outcomes).rows]


def test_a_row_by_hand():
    """Best cleaned is epoch 1: 300 / 400 = 75 % retention at 2 %; three points took 3 + 1 seconds each."""
    (row,) = rank_trials(sweep(trial(4, START, (300, 20), (280, 10))), no_outcomes).rows
    assert (row.rank, row.trial, row.state, row.feasible) == (1, 4, "finished", True)
    assert (row.epoch, row.accuracy, row.asr) == (1.0, 0.3, 0.02)
    assert row.retention == pytest.approx(0.75)
    assert (row.min_asr, row.epochs, row.seconds) == (0.01, 2.0, 12.0)
    assert row.retention_low < 0.75 < row.retention_high


def test_cleaned_trials_come_by_retention_then_the_others_by_lowest_asr_then_those_without_points():
    failed = trial(0, state="failed")
    waiting = trial(1, state="waiting")
    never_clean = trial(2, START, (399, 200))
    almost_clean = trial(3, START, (100, 51))
    clean = trial(4, START, (200, 1))
    better = trial(5, START, (300, 49))
    assert order(failed, waiting, never_clean, almost_clean, clean, better) == [5, 4, 3, 2, 0, 1]


def test_of_equal_retention_the_lower_asr_wins_then_the_lower_number():
    assert order(trial(0, START, (300, 20)), trial(1, START, (300, 10)), trial(2, START, (300, 10))) == [
        1,
        2,
        0,
    ]


def test_asr_equal_to_the_ceiling_is_not_feasible():
    """50 of 1000 is 5 %, the ceiling itself."""
    (row,) = rank_trials(sweep(trial(0, START, (300, 50))), no_outcomes).rows
    assert not row.feasible
    assert row.retention is None
    assert row.min_asr == 0.05


def test_a_cleaned_trial_is_certified_only_if_the_upper_bound_is_below_the_ceiling_too():
    """Two points could be chosen: at 0.05 / 2 the bound of 36 of 1000 lies below 5 %, that of 37 above."""
    rows = rank_trials(sweep(trial(0, START, (300, 36)), trial(1, START, (300, 37))), no_outcomes).rows
    assert [(row.feasible, row.certified) for row in rows] == [(True, True), (True, False)]


def test_the_best_certified_trial_is_named_where_the_winner_is_another():
    """30 of 1000 is certified where four points may win, 45 is not; 300 of 400 is 75 %, failed trials are not named."""
    uncertain, failed = trial(0, START, (350, 45)), trial(1, START, (340, 30), state="failed")
    sure, less = trial(2, START, (300, 30)), trial(3, START, (200, 0))
    board = rank_trials(sweep(uncertain, failed, sure, less), no_outcomes)
    assert result_lines(board) == ["the best certified is trial 2: keeps 75.0 % at 3.0 % ASR"]
    assert result_lines(rank_trials(sweep(uncertain), no_outcomes)) == []


def test_every_point_that_may_win_could_have_been_chosen_whatever_became_of_its_trial():
    """Six may: 1 + 2 + 1 after the starts, and the shrunk start and its epoch. Of 1000 images 33 hits are certified
    then, 34 are not (38 were, had there been no choice)."""
    more = (
        trial(1, START, (390, 600), (390, 500), state="pruned"),
        trial(2, START, (390, 600), state="failed"),
        trial(3, (350, 400), (360, 300), start_counts=True),
        trial(4, state="waiting"),
    )
    for hits, certified in ((33, True), (34, False)):
        board = rank_trials(sweep(trial(0, START, (300, hits)), *more), no_outcomes)
        assert (board.num_choices, board.rows[0].trial, board.rows[0].certified) == (6, 0, certified)


def test_of_20_points_at_5_and_a_quarter_percent_hardly_one_sweep_in_20_has_a_certified_one():
    """1,875 triggered images, none of the 20 points below 5 % in truth; whichever is picked, marked or not is what is
    counted. A bound without regard to the choice marks one in about 23 % of such sweeps."""
    generator, repetitions, marked, marked_alone = np.random.default_rng(0), 400, 0, 0
    for _ in range(repetitions):
        hits = generator.binomial(1875, 0.0525, size=20).tolist()
        trials = [
            TrialRecord(number, "finished", {}, "c", 0, 1, (Point(0, 1.0, 1, 1, Measurement(300, N, k, 1875, "e")),))
            for number, k in enumerate(hits)
        ]
        marked += any(row.certified for row in rank_trials(sweep(*trials), no_outcomes).rows)
        marked_alone += asr_upper_bound(min(hits), 1875) < 0.05
    assert marked <= 0.05 * repetitions < 0.15 * repetitions < marked_alone


def victim_of(asr_k, n=N):
    return Measurement(400, N, asr_k, n, "evaluation")


def test_nothing_is_certified_where_the_victims_own_asr_lies_below_the_ceiling():
    """10 of 1000 hit would be certified, had the victim a backdoor: 1 % is its own ASR already."""
    record = dataclasses.replace(sweep(trial(0, START, (300, 10))), victim=victim_of(10))
    board = rank_trials(record, no_outcomes)
    assert (board.has_backdoor, board.rows[0].feasible, board.rows[0].certified) == (False, True, False)


def test_nothing_is_certified_where_the_victims_own_asr_is_not_above_chance():
    """Of 16 classes 62.5 of 1000 images are hit by chance, sd 7.7: 70 hits are within it (p = 0.18), 90 are not."""
    for hits, has_backdoor in ((70, False), (90, True)):
        record = dataclasses.replace(
            sweep(trial(0, START, (300, 10))), victim=victim_of(hits), images=MeasuredImages((), 16)
        )
        board = rank_trials(record, no_outcomes)
        assert (board.has_backdoor, board.rows[0].certified) == (has_backdoor, has_backdoor)


NOTES = ("the first [note]", "the second one")


def test_table_configurations_and_json_carry_the_sweeps_notes():
    board = rank_trials(dataclasses.replace(sweep(trial(0, START, (300, 10))), notes=NOTES), no_outcomes)
    assert board.to_json()["notes"] == list(NOTES)
    for table in (render_table(board), render_configurations(board, group_by_configuration(board))):
        text = table.title.plain
        assert "note: the first [note]\nnote: the second one" in text


@pytest.mark.parametrize("width", [80, 200])
def test_notes_are_as_wide_as_the_terminal_not_as_the_table(width: int):
    note = " ".join(["the victim has no backdoor"] * 7)
    board = rank_trials(dataclasses.replace(sweep(trial(0, START, (300, 10))), notes=(note,)), no_outcomes)
    lines = [line.rstrip() for line in text_of(render_table(board, width=width), width).splitlines()]
    assert (f"note: {note}" in lines) == (width == 200)
    assert max(map(len, lines)) <= width
    assert note in " ".join(" ".join(lines).split())  # lines that go on are indented


def test_running_and_failed_trials_are_ranked_by_the_points_they_have():
    running = trial(0, START, (310, 10), state="running")
    failed = trial(1, START, (300, 10), state="failed")
    rows = rank_trials(sweep(running, failed), no_outcomes).rows
    assert [(row.state, row.feasible) for row in rows] == [("running", True), ("failed", True)]


def test_an_untouched_start_below_the_ceiling_does_not_win_but_another_start_may():
    """Both starts have 0 % ASR and more accuracy than epoch 1; only the one that counts may be best."""
    untouched = trial(0, (400, 0), (300, 10))
    shrunk = trial(1, (350, 0), (300, 10), start_counts=True)
    rows = rank_trials(sweep(untouched, shrunk), no_outcomes).rows
    assert [(row.trial, row.epoch) for row in rows] == [(1, 0.0), (0, 1.0)]


def test_a_trial_with_nothing_but_an_untouched_start_ranks_among_those_without_points():
    (first, second) = rank_trials(sweep(trial(0, (400, 0)), trial(1, START, (300, 900))), no_outcomes).rows
    assert (first.trial, second.trial) == (1, 0)
    assert (second.min_asr, second.epochs) == (None, 0.0)


def halves(even_correct, odd_correct, even_hits, odd_hits, *, n=200):
    """Outcomes with so many of the n / 2 even and the n / 2 odd images correct and hit."""
    masks = []
    for even, odd in ((even_correct, odd_correct), (even_hits, odd_hits)):
        mask = np.zeros(n, dtype=bool)
        mask[0 : 2 * even : 2] = True
        mask[1 : 2 * odd : 2] = True
        masks.append(mask)
    return Outcomes.of(*masks)


def halved(one, n=200, target_rows=()):
    """A sweep of one trial, measured on n test images, of which those rows have no triggered copy."""
    victim = Measurement(n, n, n - len(target_rows), n - len(target_rows), "evaluation")
    return dataclasses.replace(sweep(one), victim=victim, images=MeasuredImages(tuple(target_rows)))


def measured(index, outcomes):
    correct, hits = outcomes.correct_mask(), outcomes.hit_mask()
    measurement = Measurement(int(correct.sum()), correct.size, int(hits.sum()), hits.size, "evaluation")
    return Point(index, float(index), index, 1, measurement)


def test_the_epoch_is_chosen_on_the_even_images_and_reported_on_the_odd_ones():
    """Even half: epoch 1 has 50 %, epoch 2 has 40 %, both clean, so epoch 1: 10 % at 7 % on the odd half.

    Over all images epoch 2 is best: (40 + 38) / 200 = 39 % against (50 + 10) / 200 = 30 %.
    """
    kept = {1: halves(50, 10, 2, 7), 2: halves(40, 38, 2, 2)}
    one = TrialRecord(0, "finished", {}, "c", 1, 1, tuple(measured(i, kept[i]) for i in (1, 2)))
    (row,) = rank_trials(halved(one), lambda number, index: kept[index]).rows
    assert (row.epoch, row.accuracy) == (2.0, 0.39)
    assert (row.accuracy_report, row.asr_report) == (0.10, 0.07)


def test_there_is_no_report_where_the_even_half_is_not_cleaned():
    """5 of 100 even images hit is the ceiling itself, though all images together have 5 / 200 = 2.5 %."""
    kept = halves(50, 50, 5, 0)
    one = TrialRecord(0, "finished", {}, "c", 1, 1, (measured(1, kept),))
    (row,) = rank_trials(halved(one), lambda number, index: kept).rows
    assert row.feasible
    assert (row.accuracy_report, row.asr_report) == (None, None)


def test_outcomes_that_cannot_be_cleaned_on_either_half_are_not_read():
    """990 of 1000 hit leaves at least 490 of the 500 even images hit."""

    def refuse(trial_number, index):
        raise AssertionError("read")

    rank_trials(halved(trial(0, START, (300, 990)), n=N), refuse)


def test_an_odd_number_of_images_gives_the_even_half_one_more():
    """Of 3 images the even half has images 0 and 2 (both correct), the odd half image 1 (wrong)."""
    kept = Outcomes.of(np.array([True, False, True]), np.array([False, True, False]))
    one = TrialRecord(0, "finished", {}, "c", 1, 1, (measured(1, kept),))
    (row,) = rank_trials(halved(one, n=3), lambda number, index: kept).rows
    assert (row.accuracy_report, row.asr_report) == (0.0, 1.0)


def test_a_picture_and_its_triggered_copy_lie_on_the_same_side_by_hand():
    """Rows 1, 2, 3 of six are of the target class: copies 0, 1, 2 are of rows 0, 4, 5, on sides even, odd, even; the
    target class alternates by itself: 1 even, 2 odd, 3 even."""
    assert even_images(MeasuredImages((1, 2, 3)), 6).tolist() == [True, True, False, True, False, True]
    assert even_images(MeasuredImages(()), 5).tolist() == [True, False, True, False, True]


def test_no_picture_that_helped_to_choose_the_epoch_reports_on_it():
    """Rows 1, 2, 3 of six are of the target class. Correct are exactly the pictures that report, rows 2 and 4, and hit
    is exactly the copy of row 4, which is copy 1: 2 of 2 and 1 of 1 on the reporting half."""
    kept = Outcomes.of(np.isin(np.arange(6), (2, 4)), np.array([False, True, False]))
    one = TrialRecord(0, "finished", {}, "c", 1, 1, (measured(1, kept),))
    (row,) = rank_trials(halved(one, n=6, target_rows=(1, 2, 3)), lambda number, index: kept).rows
    assert (row.accuracy_report, row.asr_report) == (1.0, 1.0)


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_halves_are_even_in_pictures_of_the_target_class_and_of_the_others(is_target):
    rows = np.flatnonzero(is_target)
    even = even_images(MeasuredImages(tuple(rows.tolist())), len(is_target))
    copies = np.delete(even, rows)
    assert copies.tolist() == [place % 2 == 0 for place in range(len(copies))]
    assert abs(int(even[rows].sum()) - int((~even[rows]).sum())) <= 1


def test_target_images_that_are_no_test_images_are_halved_by_themselves():
    """Targeted poisoning: 5 target images beside 4 test images. Even: images 0, 2, 4 and rows 0, 2, all right and none
    hit; odd: images 1, 3, of which 3 is hit, and rows 1, 3, of which 1 is correct."""
    kept = Outcomes.of(np.array([True, True, True, False]), np.array([False, False, False, True, False]))
    one = TrialRecord(0, "finished", {}, "c", 1, 1, (measured(1, kept),))
    (row,) = rank_trials(halved(one, n=4), lambda number, index: kept).rows
    assert (row.accuracy_report, row.asr_report) == (0.5, 0.5)


def test_there_is_no_report_where_it_is_not_known_which_pictures_were_triggered():
    kept = halves(50, 50, 0, 0)
    one = TrialRecord(0, "finished", {}, "c", 1, 1, (measured(1, kept),))
    known = halved(one)
    assert rank_trials(known, lambda number, index: kept).rows[0].accuracy_report == 0.5
    (row,) = rank_trials(dataclasses.replace(known, images=None), lambda number, index: kept).rows
    assert row.feasible
    assert (row.accuracy_report, row.asr_report) == (None, None)


def test_json_has_the_promised_keys_and_null_instead_of_nan():
    params = {"learning_rate": math.nan, "layers": (1, math.inf), "name": "a"}
    board = rank_trials(sweep(trial(0, START, (300, 60), params=params)), no_outcomes)
    values = json.loads(json.dumps(board.to_json(), allow_nan=False))
    assert values["sweep"] == "toy"
    assert values["asr_ceiling"] == 0.05
    assert values["victim"] == {"accuracy": 0.4, "asr": 0.99}
    (row,) = values["trials"]
    promised = (
        "rank trial state feasible certified epoch accuracy asr retention min_asr configuration seed params "
        "epochs seconds accuracy_report asr_report"
    )
    assert set(promised.split()) <= set(row)
    assert row["epoch"] is row["retention"] is row["accuracy_report"] is None
    assert row["params"] == {"learning_rate": None, "layers": [1, None], "name": "a"}


RATES = st.lists(st.tuples(st.integers(1, N), st.integers(0, N)), max_size=4)


@given(st.lists(RATES, max_size=6))
def test_the_order_is_that_of_the_search_objective(trajectories):
    """Whoever ranks above another has at least its score, which is what the search maximised."""
    trials = [trial(number, START, *rates) for number, rates in enumerate(trajectories)]
    rows = rank_trials(sweep(*trials), no_outcomes).rows
    assert sorted(row.trial for row in rows) == list(range(len(trials)))
    assert [row.rank for row in rows] == list(range(1, len(trials) + 1))
    scores = [score(trials[row.trial].points, 0.4, 0.05) for row in rows if len(trials[row.trial].points) > 1]
    assert scores == sorted(scores, reverse=True)


def text_of(table, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def printed(board, width=100, **options):
    return text_of(render_table(board, width=width, **options), width)


NAMES = ("learning_rate", "ssl_weight", "warmup_steps", "max_gradient_norm", "an_uncommonly_long_name_of_a_parameter")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("state", ["finished", "running"])
def test_no_number_of_a_table_is_broken_at_any_width(width: int, count: int, state: str):
    """Each number stands whole in one line, and no line is longer than the terminal is wide."""
    params = {name: 1.25e-7 * 3**place for place, name in enumerate(NAMES[:count])}
    trials = [trial(0, START, (3, 20), params=params, state=state), trial(1, START, (300, 20), state=state)]
    lines = printed(rank_trials(sweep(*trials), no_outcomes), width).splitlines()
    words = [word for line in lines for word in re.split("[ =]+", line)]
    for value in params.values():
        assert column_words([value])[0] in words
    for name in params:
        assert name in "".join(lines).replace(" ", "") or all(part in "".join(lines) for part in name.split("_"))
    assert {"0.8", "75.0", "30.0"} <= set(words)
    assert max(len(line.rstrip()) for line in lines) <= width


def test_parameters_that_do_not_fit_in_columns_stand_whole_in_one():
    params = dict.fromkeys(NAMES, 0.25)
    text = printed(rank_trials(sweep(trial(0, START, (300, 20), params=params)), no_outcomes), 100)
    assert "learning_rate=0.25 ssl_weight=0.25" in text
    assert "parameters" in printed(rank_trials(sweep(trial(0, START, (300, 20), params=params)), no_outcomes), 80)


def test_the_state_has_a_column_where_it_says_something():
    over = rank_trials(sweep(trial(0, START, (300, 20))), no_outcomes)
    assert "state" not in printed(over)
    assert "1 trial, finished; 1 of 1 below 5 % ASR; ✓" in printed(over)
    assert "running" in printed(rank_trials(sweep(trial(0, START, (300, 20), state="running")), no_outcomes))


def test_the_terminal_table_fits_100_columns_and_shows_the_first_rows():
    names = ("learning_rate", "ssl_weight", "warmup_steps", "weight_decay")
    trials = [trial(number, START, (300 - number, 20), params=dict.fromkeys(names, 1.234e-3)) for number in range(30)]
    text = printed(rank_trials(sweep(*trials), no_outcomes), limit=5)
    assert "75.0" in text
    assert "the first 5 of 30 trials" in " ".join(text.split())
    assert "0.00123" in text
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100


def test_many_parameters_share_a_column_and_brackets_are_no_markup():
    params = {f"parameter_{index}": "[red]" for index in range(6)}
    text = printed(rank_trials(sweep(trial(0, START, (300, 20), params=params)), no_outcomes))
    assert "parameter_5=[red]" in text


@pytest.mark.parametrize(
    ("value", "short"),
    [
        (0.0012, "0.0012"),
        (0.00012, "1.2e-04"),
        (0.05, "0.05"),
        (0.0, "0"),
        (123456.5, "1.23e+05"),
        (0.285, "0.285"),
        (7, "7"),
        (True, "yes"),
        (None, "–"),
    ],
)
def test_values_are_short(value, short):
    assert short_value(value) == short


# --- where the weights are


def kept(number, made, place="weights.pt"):
    return KeptPoint(number, dataclasses.replace(made, checkpoint="weights.pt"), f"/home/{number}/{place}")


def test_the_winner_names_its_weights_and_the_command_that_takes_them_away():
    first, second = trial(0, START, (280, 10)), trial(1, START, (300, 20))
    board = rank_trials(sweep(first, second), no_outcomes, [kept(0, first.points[1]), kept(1, second.points[1])])
    assert board.to_json()["promote"] == "sweeplab promote toy 1 --to FOLDER"
    assert [row["checkpoint"] for row in board.to_json()["trials"]] == ["/home/1/weights.pt", "/home/0/weights.pt"]
    assert result_lines(board) == [
        "best:   trial 1, epoch 1: /home/1/weights.pt",
        "        sweeplab promote toy 1 --to FOLDER",
    ]


def test_weights_of_another_point_than_the_best_cleaned_one_are_not_named():
    only = trial(0, START, (300, 20), (280, 10))
    board = rank_trials(sweep(only), no_outcomes, [kept(0, only.points[2])])
    assert board.rows[0].checkpoint is None
    assert board.to_json()["promote"] is None
    assert result_lines(board) == []


def test_a_failed_trial_is_ranked_first_and_wins_nothing():
    failed, second = trial(0, START, (350, 10), state="failed"), trial(1, START, (300, 20))
    board = rank_trials(sweep(failed, second), no_outcomes, [kept(1, second.points[1])])
    assert board.rows[0].trial == 0
    assert board.winner is not None
    assert board.winner.trial == 1


def test_a_destroyed_trial_is_told_from_the_cleaned_ones():
    """Of 40 % accuracy one keeps 75 % and one 5 %; the third is not cleaned, the fourth has no point that may win."""
    trials = (trial(0, START, (300, 20)), trial(1, START, (20, 0)), trial(2, START, (390, 900)), trial(3, START))
    board = rank_trials(sweep(*trials), no_outcomes)
    assert board.cleaned.in_words() == "2 of 3 cleaned, 1 of them keeps less than half of the accuracy"
    said = " ".join(printed(board).split())
    assert "4 trials, finished; 2 of 3 below 5 % ASR, 1 of them keeps less than half of the accuracy; ✓" in said


def test_where_nothing_is_cleaned_what_came_closest_is_named_with_what_to_try():
    low, accurate = trial(0, START, (200, 60)), trial(1, START, (350, 90))
    board = rank_trials(sweep(low, accurate), no_outcomes, [kept(0, low.points[1]), kept(1, accurate.points[1])])
    lines = result_lines(board)
    assert lines[:3] == [
        "no trial lies below 5 % ASR; these came closest, and their weights are kept:",
        "  trial 0, epoch 1: ASR 6.0 %, accuracy 20.0 %: /home/0/weights.pt",
        "  trial 1, epoch 1: ASR 9.0 %, accuracy 35.0 %: /home/1/weights.pt",
    ]
    assert lines[3].startswith("try next: higher learning rates")
    assert board.to_json()["promote"] is None
    assert board.to_json()["closest"] == [
        {"trial": 0, "epoch": 1.0, "accuracy": 0.2, "asr": 0.06, "checkpoint": "/home/0/weights.pt"},
        {"trial": 1, "epoch": 1.0, "accuracy": 0.35, "asr": 0.09, "checkpoint": "/home/1/weights.pt"},
    ]


def test_where_nothing_is_cleaned_and_no_weights_are_kept_that_is_said():
    first, *others = result_lines(rank_trials(sweep(trial(3, START, (200, 60))), no_outcomes))
    assert first == "no trial lies below 5 % ASR; trial 3 came closest with 6.0 %, and no weights are kept"
    assert [line[:9] for line in others] == ["try next:"]
    assert result_lines(rank_trials(sweep(), no_outcomes)) == []
