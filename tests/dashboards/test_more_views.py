"""The tables behind the views that answer one question each; for each a case whose answer is visible."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from test_views import PARAMS, START, faint_marks, figures_of, ranked, sweep, trial, without_spans

from dashboards.budget import budget_points, describe_budget, draw_budget
from dashboards.build import Extras, render_page
from dashboards.ceilings import ceiling_points, describe_ceilings, draw_ceilings
from dashboards.gallery import describe_gallery, draw_gallery, gallery_table
from dashboards.image_by_image import compared_trials, describe_comparison, draw_comparison
from dashboards.importance import describe_importance, draw_importance, importance_table
from dashboards.pairs import describe_pair, draw_pair, most_telling_pair, pair_cells
from dashboards.parallel import describe_parallel, draw_parallel, parallel_points
from dashboards.parameters import draw_parameters, parameter_points, strip_heights, value_table
from dashboards.pretraining import describe_pretraining, draw_pretraining, pretraining_points
from dashboards.pruning import describe_pruning, draw_pruning, pruned_trials
from dashboards.seeds import describe_seeds, draw_seeds, seed_points
from dashboards.timeline import attempt_bars, cost_table, describe_timeline, draw_timeline
from sweeplab.ranking.costs import Attempt, Costs
from sweeplab.ranking.paired import holm, paired
from sweeplab.records import Measurement, Outcomes, Point
from sweeplab.search.importance import CLEANED, RETENTION, importances

HOUR = 3_600_000


def plain(text):
    return text.replace("\u00a0", " ")


def points_of(record):
    return parameter_points(record, ranked(record))


class TestCeilings:
    RECORD = sweep(trial(0, START, (380, 30), (300, 9)), trial(1, START, (390, 120), (395, 250)))

    def test_a_laxer_ceiling_keeps_more(self):
        """30 % at 0.9 % ASR, 38 % at 3 %, 39 % at 12 %, of a victim of 40 %; strictly below, so 12 % is not enough."""
        frame = ceiling_points(self.RECORD).set_index("ceiling")
        assert frame.loc[[0.01, 0.03, 0.035, 0.05, 0.12, 0.125], "retention"].tolist() == pytest.approx(
            [0.75, 0.75, 0.95, 0.95, 0.95, 0.975]
        )
        assert frame.loc[[0.01, 0.12, 0.125], "cleaned"].tolist() == [1, 1, 2]
        assert frame.loc[0.2, ["trial", "epoch"]].tolist() == [1, 1]

    def test_at_the_sweeps_ceiling_it_is_the_leaderboards_best(self):
        frame = ceiling_points(self.RECORD)
        best = ranked(self.RECORD).rows[0]
        row = frame[frame["ceiling"] == 0.05].iloc[0]
        assert (row["retention"], row["trial"], row["epoch"]) == (best.retention, best.trial, best.epoch)

    def test_the_sentence(self):
        text = plain(describe_ceilings(ceiling_points(self.RECORD), 0.05))
        assert text == (
            "Below 1 % ASR the best point keeps 75.0 %; below 5 % it keeps 95.0 %; below 20 % it keeps 97.5 %."
        )
        nothing = ceiling_points(sweep(trial(0, START, (300, 900))))
        assert plain(describe_ceilings(nothing, 0.05)) == "No trial lies below 20 % ASR."
        draw_ceilings(nothing, asr_ceiling=0.05)

    def test_both_panels_have_one_range(self):
        layout = draw_ceilings(ceiling_points(self.RECORD), asr_ceiling=0.05).layout
        assert layout.xaxis.range == layout.xaxis2.range == (0, pytest.approx(20.4))


class TestParameters:
    def test_trials_without_a_cleaned_epoch_stand_the_higher_the_lower_their_asr(self):
        """At the ceiling the upper end of the strip, at 100 % the lower one, at 52.5 % the middle."""
        assert strip_heights(np.array([0.05, 0.525, 1.0]), (50.0, 60.0), 0.05).tolist() == [60.0, 55.0, 50.0]

    def test_few_values_have_a_row_each_and_many_a_quarter(self):
        trials = [
            trial(n, START, (300 + n, 10 if n < 8 else 500), warmup_steps=n, optimizer="ab"[n % 2]) for n in range(16)
        ]
        table = value_table(points_of(sweep(*trials)))
        words = table[table["parameter"] == "optimizer"]
        assert words[["values", "trials", "cleaned"]].to_numpy().tolist() == [["a", 8, 4], ["b", 8, 4]]
        steps = table[table["parameter"] == "warmup_steps"]
        assert steps["values"].tolist() == ["0 to 3", "4 to 7", "8 to 11", "12 to 15"]
        assert steps["cleaned"].tolist() == [4, 4, 0, 0]
        assert steps["retention"].tolist()[:2] == pytest.approx([303 / 400, 307 / 400])

    def test_there_is_no_strip_where_all_are_cleaned(self):
        cleaned = points_of(sweep(trial(0, START, (300, 10)), trial(1, START, (310, 10))))
        assert len(draw_parameters(cleaned, asr_ceiling=0.05).layout.yaxis.tickvals or ()) == 0
        both = points_of(sweep(trial(0, START, (300, 10)), trial(1, START, (310, 400))))
        ticks = draw_parameters(both, asr_ceiling=0.05).layout.yaxis.ticktext
        assert list(ticks[:2]) == ["ASR 100", "ASR 5"]


class TestImportance:
    @staticmethod
    def board():
        """Forty trials: the learning rate alone decides about being cleaned, the warm-up alone about what is kept."""
        return ranked(
            sweep(
                *(
                    trial(
                        n,
                        START,
                        (200 + 15 * (n % 10), 10 if n < 24 else 300 + n),
                        learning_rate=10.0 ** (-2 - n / 10),
                        warmup_steps=10 * (n % 10),
                        optimizer=("adamw", "sgd")[n // 2 % 2],
                    )
                    for n in range(40)
                )
            )
        )

    def test_each_question_has_its_parameter(self):
        found = importances(self.board(), ("learning_rate",))
        assert max(found[CLEANED], key=found[CLEANED].get) == "learning_rate"
        assert max(found[RETENTION], key=found[RETENTION].get) == "warmup_steps"
        for question in found.values():
            assert sum(question.values()) == pytest.approx(1)
            assert question["optimizer"] < 0.2
        table = importance_table(found)
        assert set(table["parameter"][:2]) == {"learning_rate", "warmup_steps"}
        text = describe_importance(table)
        assert text.startswith("learning_rate decides most about being cleaned (")
        assert len(draw_importance(table).data) == 2

    def test_too_few_trials_say_nothing(self):
        assert importances(ranked(sweep(*(trial(n, START, (300, 10)) for n in range(19)))), ()) == {}

    def test_a_parameter_that_does_not_vary_or_some_lack_is_left_out(self):
        trials = [
            trial(n, START, (200 + n, 10), warmup_steps=n, optimizer=None if n == 3 else "sgd") for n in range(30)
        ]
        assert list(importances(ranked(sweep(*trials)), ())[RETENTION]) == ["warmup_steps"]


class TestPair:
    RECORD = sweep(
        trial(0, START, (380, 30), optimizer="adamw", warmup_steps=10),
        trial(1, START, (360, 30), optimizer="adamw", warmup_steps=10),
        trial(2, START, (390, 300), optimizer="sgd", warmup_steps=10),
        trial(3, START, (320, 20), optimizer="sgd", warmup_steps=50),
    )

    def test_a_cell_holds_the_best_of_its_trials(self):
        frame = pair_cells(points_of(self.RECORD), ("warmup_steps", "optimizer"))
        assert frame[["x_word", "y_word", "trials", "cleaned"]].to_numpy().tolist() == [
            ["10", "adamw", 2, 2],
            ["10", "sgd", 1, 0],
            ["50", "sgd", 1, 1],
        ]
        np.testing.assert_allclose(frame["retention"], [0.95, np.nan, 0.8])
        np.testing.assert_allclose(frame["worst"], [0.9, np.nan, 0.8])
        assert plain(describe_pair(frame, ("warmup_steps", "optimizer"))) == (
            "2 of 3 cells that were tried hold a cleaned trial; the best is warmup_steps 10 with optimizer adamw: "
            "95.0 % kept, 2 of 2 trials cleaned."
        )
        none, cleaned = draw_pair(frame, ("warmup_steps", "optimizer"), asr_ceiling=0.05).data
        assert [list(row) for row in cleaned.text] == [["90.0–95.0<br>2 of 2", ""], ["", "80.0<br>1 of 1"]]
        assert [list(row) for row in none.text] == [["", ""], ["ASR 30<br>0 of 1", ""]]

    def colours(self, *correct):
        """Where the cells of trials with so many correct images lie between the ends of the colours, 0 to 1."""
        made = [trial(n, START, (k, 10), warmup_steps=n, optimizer="ab"[n % 2]) for n, k in enumerate(correct)]
        frame = pair_cells(points_of(sweep(*made)), ("warmup_steps", "optimizer"))
        (cells,) = draw_pair(frame, ("warmup_steps", "optimizer"), asr_ceiling=0.05).data
        values = np.nanmax(cells.z, axis=0)
        return ((values - cells.zmin) / (cells.zmax - cells.zmin)).clip(0, 1)

    def test_nearly_equal_cells_have_nearly_equal_colours(self):
        """95.0 and 95.25 % kept."""
        first, second = self.colours(380, 381)
        assert first < second < first + 0.2

    def test_a_destroyed_cell_does_not_squeeze_the_good_ones_into_one_colour(self):
        """97.5 and 99.5 % kept, beside 86 and 6 %."""
        destroyed, poor, *good = self.colours(24, 344, 390, 390, 394, 398)
        assert destroyed == poor == 0
        assert good[-1] - good[0] > 0.4
        assert good[0] > 0.1

    def test_many_values_fall_into_cells_of_equal_width_on_their_scale(self):
        """Learning rates from 1e-9 to 1e-1 in eight cells: a decade each."""
        trials = [trial(n, START, (300, 10), learning_rate=10.0 ** (-9 + n / 2), warmup_steps=n % 2) for n in range(17)]
        frame = pair_cells(points_of(sweep(*trials)), ("learning_rate", "warmup_steps"))
        words = frame.drop_duplicates("x")["x_word"].tolist()
        assert words[0] == "1e-9 to 1e-8"
        assert words[-1] == "1e-2 to 1e-1"
        assert frame.groupby("x")["trials"].sum().tolist() == [2] * 7 + [3]

    def test_the_pair_is_that_of_the_two_most_important_parameters(self):
        points = points_of(self.RECORD)
        assert most_telling_pair(points, {}) == ("optimizer", "warmup_steps")
        assert most_telling_pair(points, {"warmup_steps": 0.9}) == ("warmup_steps", "optimizer")
        assert most_telling_pair(points[points["parameter"] == "optimizer"], {}) is None


class TestParallel:
    def test_the_best_quarter_lies_where_it_was_put(self):
        """Sixteen cleaned trials: the four best have warm-ups of 0 to 3 of 15 and any learning rate."""
        rates = (1e-4, 1e-2, 1e-6, 1e-3)
        trials = [trial(n, START, (390 - n, 10), warmup_steps=n, learning_rate=rates[n % 4]) for n in range(16)]
        frame = parallel_points(points_of(sweep(*trials)))
        assert frame.loc[frame["band"] == 4, "trial"].unique().tolist() == [0, 1, 2, 3]
        assert plain(describe_parallel(frame)) == (
            "The best quarter of the cleaned trials lies closest together in warmup_steps: from 0 to 3, 20 % of its "
            "range."
        )
        first = frame[frame["trial"] == 0].set_index("axis")
        assert first["place"].to_dict() == pytest.approx(
            {"learning_rate": 0.5, "optimizer": 0.5, "warmup_steps": 0.0, "retention": 1.0}
        )

    def test_of_few_cleaned_trials_the_best_is_of_the_best_band_and_equal_looking_ends_get_a_digit(self):
        """38,000 and 37,996 of 100,000: both keep 95.0 % of the victim's accuracy; 95.00 and 94.99 %."""
        rates = [Measurement(k, 100_000, 1000, 100_000, "evaluation") for k in (38_000, 37_996)]
        made = [dataclasses.replace(trial(n), points=(Point(1, 1.0, 1, 1, rate),)) for n, rate in enumerate(rates)]
        frame = parallel_points(points_of(sweep(*made)))
        ends = frame[frame["axis"] == "retention"].set_index("trial")
        assert ends["band"].to_dict() == {0: 4, 1: 2}
        assert [plain(word) for word in ends["word"]] == ["95.00 %", "94.99 %"]

    def test_trials_without_a_cleaned_epoch_end_below_the_axis(self):
        frame = parallel_points(points_of(sweep(trial(0, START, (300, 10)), trial(1, START, (390, 500)))))
        ends = frame[frame["axis"] == "retention"].set_index("trial")
        assert ends.loc[1, ["place", "word", "band"]].tolist() == [-0.12, "–", 0]
        texts = [note.text for note in draw_parallel(frame).layout.annotations]
        assert texts.count("not cleaned") == 1

    def test_the_quarters_are_of_all_trials_where_only_some_are_drawn(self):
        """Of 400 cleaned trials the best hundred have warm-ups of 0 to 99 of 399, 25 % of the range; 150 are drawn of
        the better end, so both upper quarters, and 150 of the other 250."""
        trials = [trial(n, START, (990 - n, 10), warmup_steps=n, learning_rate=10.0 ** -(n % 9)) for n in range(400)]
        frame = parallel_points(points_of(sweep(*trials)))
        best = frame[frame["band"] == 4]["trial"].unique()
        assert sorted(best) == list(range(100))
        assert plain(describe_parallel(frame)) == (
            "The best quarter of the cleaned trials lies closest together in warmup_steps: from 0 to 99, 25 % of its "
            "range. 300 of 400 trials are drawn: the best 150 and a sample of the others."
        )
        figure = draw_parallel(frame)
        drawn = {trace.name: set(trace.customdata) for trace in figure.data}
        assert sum(map(len, drawn.values())) == 300
        assert drawn["best quarter"] == set(range(100))
        assert set(range(150)) <= set().union(*drawn.values())
        assert "399" in [note.text for note in figure.layout.annotations]

    def test_trials_without_a_parameter_pass_below_its_axis(self):
        """Warm-ups of 0 and 10 steps; the third trial has none, which is no value between them."""
        steps = ({"warmup_steps": 0}, {"warmup_steps": 10}, {"warmup_steps": None})
        made = [trial(n, START, (390 - n, 10), **setting) for n, setting in enumerate(steps)]
        frame = parallel_points(points_of(sweep(*made)))
        side = frame[frame["axis"] == "warmup_steps"].set_index("trial")
        assert side["place"].to_dict() == {0: 0.0, 1: 1.0, 2: -0.12}
        assert side["word"].to_dict() == {0: "0", 1: "10", 2: "none"}
        assert [note.text for note in draw_parallel(frame).layout.annotations].count("none") == 1

    def test_a_parameter_that_some_of_the_best_do_not_have_is_not_said_to_hold_them_together(self):
        """Sixteen trials of which the best four have rates of 1e-6 to 1e-5; one of them has no warm-up."""
        rates = [1e-6, 2e-6, 5e-6, 1e-5, *(10.0 ** -(n % 4) for n in range(12))]
        steps = [0, 0, 0, None, *range(12)]
        made = [
            trial(n, START, (390 - n, 10), learning_rate=rate, warmup_steps=step)
            for n, (rate, step) in enumerate(zip(rates, steps, strict=True))
        ]
        assert "closest together in learning_rate" in describe_parallel(parallel_points(points_of(sweep(*made))))


class TestSeeds:
    RECORD = sweep(
        *(
            dataclasses.replace(trial(n, START, (kept, hit)), configuration=setting, seed=seed)
            for n, (setting, seed, kept, hit) in enumerate(
                [("a", 1, 380, 10), ("a", 2, 360, 10), ("b", 1, 390, 10), ("b", 2, 390, 300), ("c", 1, 395, 10)]
            )
        )
    )

    def test_settings_with_two_seeds_are_compared(self):
        """Setting a keeps 95 and 90 %: mean 92.5, deviation 3.54 points. Setting b is cleaned with one seed of two."""
        frame = seed_points(ranked(self.RECORD))
        assert frame["trial"].tolist() == [0, 1, 2, 3]
        assert frame["mean"].iloc[0] == pytest.approx(0.925)
        assert frame["sd"].iloc[0] == pytest.approx(0.05 / 2**0.5)
        assert plain(describe_seeds(frame)) == (
            "2 settings with two seeds or more: between seeds the retention varies by 3.5 points (median standard "
            "deviation), at most by 3.5; 1 of them cleaned with one seed and not with another."
        )
        draw_seeds(frame)

    def test_a_trial_that_is_not_cleaned_stands_left_of_all_that_are(self):
        """Of eight cleaned trials one keeps 25 %."""
        kept = (100, 380, 382, 384, 386, 388, 390, 392)
        made = [trial(n, START, (correct, 10)) for n, correct in enumerate(kept)] + [trial(8, START, (390, 300))]
        record = sweep(*(dataclasses.replace(one, configuration=f"{n // 3}", seed=n) for n, one in enumerate(made)))
        cleaned, missed, _ = draw_seeds(seed_points(ranked(record))).data
        assert max(missed.x) < min(cleaned.x) == pytest.approx(25)

    def test_one_seed_each_tells_nothing(self):
        one_each = [dataclasses.replace(trial(n, START, (300, 10)), configuration=f"{n}") for n in range(3)]
        assert seed_points(ranked(sweep(*one_each))).empty


class TestImageByImage:
    def test_mcnemar_by_hand(self):
        """Nine images differ, eight of them for the first: 2 (1 + 9) / 2^9."""
        first, second = np.array([True] * 8 + [False, True]), np.array([False] * 8 + [True, True])
        assert paired(first, second) == (8, 1, pytest.approx(20 / 512))
        assert paired(first, first) == (0, 0, 1.0)

    def test_holm_by_hand(self):
        """0.01 three times, 0.03 twice; 0.04 once would come below 0.06; no p value is above 1."""
        assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
        assert holm([0.7, 0.6]) == [1.0, 1.0]
        assert (holm([0.02]), holm([])) == ([0.02], [])

    def test_the_best_trial_is_told_from_one_and_not_from_another(self):
        record = sweep(trial(0, START, (390, 10)), trial(1, START, (389, 12)), trial(2, START, (200, 10)))
        correct = {0: np.arange(1000) < 390, 1: np.arange(1000) % 1000 < 389, 2: np.arange(1000) < 200}
        hits = np.arange(1000) < 10

        def outcomes(number, index):
            assert index == 1
            return Outcomes.of(correct[number], hits)

        frame = compared_trials(record, ranked(record), outcomes)
        assert frame[["best", "trial", "only_best", "only_other"]].to_numpy().tolist() == [[0, 1, 1, 0], [0, 2, 190, 0]]
        assert frame["p_accuracy"].tolist() == pytest.approx([1.0, 2 * 2.0**-189])
        assert describe_comparison(frame) == (
            "By accuracy trial 0 can be told apart from 1 of the next 2 (McNemar, corrected by Holm for 2 comparisons, "
            "p < 0.05); from 1 other it cannot. The same images chose the trials."
        )
        axis = draw_comparison(frame).layout.xaxis
        assert (axis.tickvals, axis.ticktext) == ((-100, 0, 100), ("100", "0", "100"))

    def test_a_destroyed_trial_is_not_compared_and_is_counted(self):
        """400 of the victim's 1000: the third trial keeps 199, less than half."""
        record = sweep(*(trial(n, START, (correct, 10)) for n, correct in enumerate((390, 389, 199))))
        correct = {n: record.trials[n].points[1].measurement.accuracy_k for n in range(3)}
        board = ranked(record)

        def outcomes(number, index):
            return Outcomes.of(np.arange(1000) < correct[number], np.arange(1000) < 10)

        frame = compared_trials(record, board, outcomes)
        assert frame["trial"].tolist() == [1]
        assert describe_comparison(frame, board.cleaned.below_half) == (
            "On these images trial 0 cannot be told apart from the next one by accuracy (McNemar, p ≥ 0.05): choose "
            "among them by ASR or cost. 1 cleaned trial keeps less than half of the accuracy and is not compared."
        )

    @pytest.mark.parametrize(
        ("most", "texts"),
        [(1, "1 0 1"), (2, "2 1 0 1 2"), (8, "5 0 5"), (225, "200 100 0 100 200"), (1505, "1,000 0 1,000")],
    )
    def test_both_sides_of_its_axis_count_images(self, most, texts):
        row = {"best": 0, "trial": 1, "only_best": most, "only_other": 0}
        assert " ".join(draw_comparison(pd.DataFrame([row])).layout.xaxis.ticktext) == texts

    def test_without_outcomes_there_is_nothing_to_compare(self):
        record = sweep(trial(0, START, (390, 10)), trial(1, START, (389, 12)))
        assert compared_trials(record, ranked(record), lambda number, index: None).empty


def timed(number, *points):
    """A trial of points (epoch, correct, hits, hours)."""
    made = tuple(
        Point(
            index, epoch, index, 1, Measurement(correct, 1000, hit, 1000, "evaluation"), timestamp_ms=int(when * HOUR)
        )
        for index, (epoch, correct, hit, when) in enumerate(points)
    )
    return dataclasses.replace(trial(number), points=made)


class TestBudget:
    RECORD = sweep(
        timed(0, (0, 400, 990, 0), (1, 300, 10, 1), (2, 360, 10, 2)),
        timed(1, (0, 400, 990, 0.5), (1, 390, 600, 1.5), (2, 380, 20, 4)),
    )

    def test_the_best_so_far_rises_with_the_epochs_of_all_trials(self):
        """In time: epoch 1 of trial 0 (75 %), of trial 1 (not cleaned), epoch 2 of trial 0 (90 %), of 1 (95 %)."""
        frame = budget_points(self.RECORD)
        assert frame[["spent", "hours", "trial", "epoch"]].to_numpy().tolist() == [
            [1, 1, 0, 1],
            [3, 2, 0, 2],
            [4, 4, 1, 2],
        ]
        assert frame["retention"].tolist() == pytest.approx([0.75, 0.9, 0.95])
        assert plain(describe_budget(frame)) == (
            "Within one point of the best retention, 95.0 %, after 4 of 4 trial-epochs (100 %); at the best itself "
            "after 4."
        )
        assert len(draw_budget(frame).data) == 2

    def test_an_axis_that_begins_above_the_first_best_says_so(self):
        """The best so far is 10 %, then 95 to 99.5 %."""
        record = sweep(trial(0, START, *((correct, 10) for correct in (40, 380, 390, 396, 398))))
        figure = draw_budget(budget_points(record))
        assert figure.layout.yaxis.range[0] > 90
        assert [note.text for note in figure.layout.annotations] == ["▾ 1 below, down to 10.0\u00a0%"]

    def test_a_short_sweep_is_drawn_over_seconds(self):
        record = sweep(timed(0, (0, 400, 990, 0), (1, 300, 10, 0.002), (2, 360, 10, 0.005)))
        figure = draw_budget(budget_points(record))
        assert figure.layout.xaxis2.title.text == "seconds since the first point"
        assert list(figure.data[1].x) == pytest.approx([7.2, 18.0], abs=1e-6)

    def test_tables_without_times_have_one_panel(self):
        record = sweep(trial(0, START, (300, 10), (310, 10)))
        assert len(draw_budget(budget_points(record)).data) == 1
        nothing = budget_points(sweep(trial(0, START, (300, 900))))
        assert describe_budget(nothing) == "Nothing was cleaned in 1 trial-epoch."


class TestPruning:
    def test_what_was_stopped_and_saved(self):
        """Of two epochs each: one trial stopped after one, one ran to its end: one of four epochs was saved."""
        stopped = dataclasses.replace(trial(1, START, (300, 900), state="pruned"), reason="<b>weak</b>")
        record = sweep(trial(0, START, (390, 20), (380, 10)), stopped)
        frame = pruned_trials(record, ranked(record))
        assert frame[["trial", "epoch", "saved", "lowest_asr"]].to_numpy().tolist() == [[1, 1.0, 1.0, 0.9]]
        assert plain(describe_pruning(frame, record)).startswith(
            "Stopped early: 1 of 2 trials; saved: 1 trial-epoch (25 %)."
        )
        draw_pruning(frame, epochs=2)
        assert "<b>weak" not in render_page(record, ranked(record))

    @pytest.mark.usefixtures("undrawn")
    def test_where_nothing_was_stopped_the_command_that_audits_is_named(self):
        record = sweep(trial(0, START, (390, 20)))
        page = without_spans(render_page(record, ranked(record)))
        assert "<code>sweeplab audit toy --pruning default</code>" in page


class TestPretraining:
    POINTS = tuple(
        Point(
            index,
            float(index),
            index,
            1,
            Measurement(correct, 100, hit, 90, "e"),
            {"loss": 3.0 - index} if index else {},
        )
        for index, (correct, hit) in enumerate([(6, 0), (50, 18), (90, 63), (95, 81)])
    )

    def test_the_epoch_that_was_taken_is_named(self):
        frame = pretraining_points(self.POINTS)
        assert frame["loss"].tolist()[1:] == [2.0, 1.0, 0.0]
        text = "Epoch 3 was taken: 95.0 % accuracy at 90.0 % ASR; above 50 % ASR from epoch 2 on."
        assert plain(describe_pretraining(frame, 3.0)) == text
        assert len(draw_pretraining(frame, 3.0).data) == 3

    def test_an_asr_that_falls_again_is_not_above_from_its_first_epoch_on(self):
        frame = pretraining_points(self.POINTS)
        assert "from epoch 3 on" in describe_pretraining(frame.assign(asr=[0.0, 0.7, 0.5, 0.9]), 3.0)
        assert "from epoch 0 on" in describe_pretraining(frame.assign(asr=[0.6, 0.7, 0.8, 0.9]), 3.0)
        assert "above" not in describe_pretraining(frame.assign(asr=[0.0, 0.7, 0.9, 0.2]), 3.0)


class TestTimeline:
    ATTEMPTS = (
        Attempt(0, 0, HOUR, is_broken=True),
        Attempt(1, 0, 3 * HOUR),
        Attempt(0, HOUR, 2 * HOUR),
        Attempt(2, 2 * HOUR, None, workers=2),
    )
    COSTS = Costs(10, 7 * 3600, 0, 4 * 3600, 0, 0, 0.7 * 3600)

    def test_attempts_at_the_same_time_lie_in_different_lanes(self):
        frame = attempt_bars(self.ATTEMPTS, {0: "finished", 1: "finished", 2: "running"}, 4 * HOUR)
        assert frame[["trial", "began", "ended", "lane", "outcome"]].to_numpy().tolist() == [
            [0, 0, 1, 1, "broken"],
            [1, 0, 3, 2, "finished"],
            [0, 1, 2, 1, "finished"],
            [2, 2, 4, 1, "running"],
        ]
        assert plain(describe_timeline(frame, self.COSTS)) == (
            "4 attempts within 4 h 00 min, up to 2 at a time: 7 h 00 min of workers; 10 % of it lost to "
            "failures and repetition."
        )
        assert len(draw_timeline(frame).data) == 3

    def test_the_costs_are_hours(self):
        assert cost_table(self.COSTS)["hours"].tolist() == [7.0, 0.0, 4.0, 0.0, 0.0, 0.7]


def said(*names):
    return [[name, share] for name, share in zip(names, (0.9, 0.06, 0.04), strict=True)]


PICTURE = "data:image/png;base64,AAAA"
GALLERY = {
    "trial": 0,
    "epoch": 1.0,
    "target": "banana",
    "images": [
        {
            "label": label,
            **dict.fromkeys(("clean", "triggered", "difference"), PICTURE),
            "victim_clean": said(label, "plum", "fig"),
            "victim_triggered": said("banana", label, "fig"),
            "winner_clean": said(label, "plum", "fig"),
            "winner_triggered": said(*winner),
        }
        for label, winner in (("apple", ("apple", "banana", "fig")), ("<pear>", ("banana", "<pear>", "fig")))
    ],
}


class TestGallery:
    RECORD = sweep(trial(0, START, (390, 10)))

    def test_the_sentence_counts_what_is_taken_for_the_target(self):
        frame = gallery_table(GALLERY)
        assert len(frame) == 8
        assert frame.loc[frame["is_target"], ["image", "model"]].to_numpy().tolist() == [
            [1, "victim"],
            [2, "victim"],
            [2, "winner"],
        ]
        assert describe_gallery(frame, GALLERY) == (
            "With the trigger the victim takes 2 of 2 images for banana; trial 0 (epoch 1) takes 1 of them for it."
        )

    def test_nothing_but_pictures_and_texts_come_of_the_file(self):
        images = [{**GALLERY["images"][1], "clean": 'x" onerror="alert(1)'}]
        html = draw_gallery(gallery_table({**GALLERY, "images": images}), {**GALLERY, "images": images})
        assert "onerror" not in html
        assert "<pear>" not in html
        assert html.count(PICTURE) == 2

    @pytest.mark.usefixtures("undrawn")
    def test_pictures_of_another_trial_than_the_best_are_not_shown(self):
        board = ranked(self.RECORD)
        assert PICTURE in render_page(self.RECORD, board, Extras(gallery=GALLERY))
        page = render_page(self.RECORD, board, Extras(gallery={**GALLERY, "trial": 7}))
        assert PICTURE not in page
        assert "<code>sweeplab report toy --gallery</code>" in without_spans(page)


def test_a_page_of_everything_draws_every_view():
    boards = TestImportance.board()
    trials = []
    for n in range(40):
        made = trial(n, START, (300 + n, 10 if n < 20 else 400), warmup_steps=n, optimizer=("adamw", "sgd")[n % 2])
        trials.append(dataclasses.replace(made, configuration=f"{n // 2}", seed=n % 2))
    trials.append(dataclasses.replace(trial(40, START, (200, 800), state="pruned"), configuration="x"))
    curve = ({"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5})
    first = trials[0]
    trials[0] = dataclasses.replace(
        first, points=(*first.points[:-1], dataclasses.replace(first.points[-1], curve=curve))
    )
    record = sweep(*trials)
    extras = Extras(
        importances=importances(boards, ("learning_rate",)),
        attempts=TestTimeline.ATTEMPTS,
        costs=TestTimeline.COSTS,
        until_ms=4 * HOUR,
        pretraining=TestPretraining.POINTS,
        outcomes=lambda number, index: Outcomes.of(np.arange(1000) < 300 + number, np.arange(1000) < 10),
    )
    page = render_page(record, ranked(record), extras)
    assert len(figures_of(page)) == 14  # all but the leaderboard
    assert faint_marks(figures_of(page)) == []
    assert page.count("<details>") == 14
    assert PARAMS["optimizer"] in page
