"""The figures of several sweeps: what is compared, by what it is told apart, and the tables behind each figure."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from test_views import START, faint_marks, ranked, sweep, trial

from dashboards.against import against_points, describe_against, draw_against
from dashboards.bars import bar_rows, draw_bars, without_beginning
from dashboards.lines import cleaning_points, describe_lines, draw_lines, training_points
from dashboards.series import describe_series, draw_series, drawn_points, series_points
from dashboards.several import render_comparison, tables_of, views_of
from dashboards.small_panels import describe_panels, draw_panels, panel_points
from sweeplab.ranking.compared import (
    TEST_IMAGES,
    TEST_SETS,
    Compared,
    ComparedSweep,
    ComparedTable,
    ComparedVictim,
    Comparison,
    best_results,
    fields_of,
    full_path,
    render_results,
    result_table,
)
from sweeplab.ranking.victims import VictimRow, found_in
from sweeplab.records import Measurement, Point
from sweeplab.specs import InvalidInput


def compared(name, *trials, victim="a", fields=None, measured=None, **changes):
    record = sweep(*trials, name=name, victim_name=victim, **changes)
    return ComparedSweep(
        name=name, victim=victim, fields=fields or {}, measured=measured or {}, record=record, board=ranked(record)
    )


def two_methods():
    """PAR cleans victim a (37 % at 1 %) and not b (lowest 20 %); CleanCLIP cleans both (35 %, 30 %)."""
    return Comparison.of(
        [
            compared("par-a", trial(0, START, (380, 300), (370, 10)), fields={"method.kind": "par"}),
            compared("par-b", trial(0, START, (390, 200)), victim="b", fields={"method.kind": "par"}),
            compared("cc-a", trial(0, START, (350, 20)), fields={"method.kind": "cleanclip"}),
            compared("cc-b", trial(0, START, (300, 49)), victim="b", fields={"method.kind": "cleanclip"}),
        ]
    )


def test_notes_stand_at_the_left_above_the_table():
    long = "a note that is longer than its terminal is wide"
    console = Console(width=30)
    with console.capture() as captured:
        console.print(render_results(Comparison.of([compared("s", trial(0, START, (300, 10)), notes=(long,))])))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    assert lines[:2] == ["note: s: a note that is longer", "  than its terminal is wide"]


class TestWhatTellsThemApart:
    def test_of_several_victims_the_field_that_their_sweeps_share(self):
        assert two_methods().by == "method.kind"
        assert two_methods().series == ("par", "cleanclip")

    def test_of_one_victim_its_sweeps(self):
        comparison = Comparison.of(two_methods().items[::2])
        assert (comparison.by, comparison.series) == (None, ("par-a", "cc-a"))

    def test_a_field_that_leaves_two_sweeps_of_a_victim_alike_tells_nothing(self):
        """Both fields take two values, but of victim b two sweeps have the same epochs."""
        fields = (
            {"epochs": 1, "seed": 0},
            {"epochs": 2, "seed": 1},
            {"epochs": 1, "seed": 0},
            {"epochs": 1, "seed": 1},
        )
        items = [compared(f"s{n}", trial(0, START, (1, 1)), victim="aabb"[n], fields=fields[n]) for n in range(4)]
        assert Comparison.of(items).by == "seed"

    def test_the_end_of_a_path_names_a_field(self):
        items = [Compared(name=f"v{rate}", victim="", fields={"victim.poisoning.rate": rate}) for rate in (0.1, 0.2)]
        assert Comparison.of(items, "rate").series == ("rate 0.1", "rate 0.2")
        assert full_path(items, "poisoning.rate") == "victim.poisoning.rate"

    def test_a_searched_parameter_makes_series_of_trials(self):
        item = compared("s", trial(0, START, (350, 20)), trial(1, START, (300, 20), learning_rate=1e-3))
        comparison = Comparison.of([item], "learning_rate")
        assert comparison.series == ("learning_rate 1e-04", "learning_rate 1e-03")
        assert result_table(comparison)["accuracy"].tolist() == [0.4, 0.35, 0.3]

    def test_a_sweep_that_does_not_search_a_parameter_has_the_value_of_its_field(self):
        """It is one series more, in the order of the values: SSL weight 1 of D.4 beside the weights of D.16."""
        searched = compared("s", trial(0, START, ssl_weight=4.0), fields={"method.ssl_weight": 1.0})
        fixed = compared("t", trial(0, START), fields={"method.ssl_weight": 1.0})
        assert Comparison.of([searched, fixed], "ssl_weight").series == ("ssl_weight 1", "ssl_weight 4")

    def test_an_unknown_field_is_refused_with_those_that_differ(self):
        items = [Compared(name=f"v{n}", victim="", fields={"seed": n, "epochs": 3}) for n in range(2)]
        with pytest.raises(InvalidInput, match="no field and no parameter; these take several values: seed"):
            Comparison.of(items, "rate")

    def test_a_field_of_several_parts_is_refused_with_their_paths(self):
        items = [Compared(name=f"v{n}", victim="", fields={"a.rate": n, "b.rate": n}) for n in range(2)]
        with pytest.raises(InvalidInput, match=r"is one of a.rate, b.rate; give more of its path"):
            Comparison.of(items, "rate")

    def test_names_and_machines_are_no_fields(self):
        spec = {"name": "s", "seed": 1, "resources": {"workers": 2}, "victim": {"name": "v", "epochs": 3}, "list": [1]}
        assert dict(fields_of(spec)) == {"seed": 1, "victim.epochs": 3, "list": "[1]"}

    def test_victims_stand_in_groups_by_what_the_series_leaves(self):
        """With and without neighbours, at 100 and at 500 poisons."""
        items = [
            Compared(name=f"{near}{count}", victim="", fields={"victim.near": near, "victim.poisons": count})
            for near in (True, False)
            for count in (100, 500)
        ]
        comparison = Comparison.of(items)
        assert comparison.series == ("near yes", "near no")
        assert [comparison.group(item) for item in items] == ["poisons 100", "poisons 500"] * 2


class TestRefusals:
    @pytest.mark.parametrize("measured", [{TEST_IMAGES: "other"}, {"protocols": "authors"}])
    def test_measurements_on_other_images_do_not_compare(self, measured):
        known = {TEST_IMAGES: "one", "protocols": "paper"}
        items = [
            Compared(name="a", victim="", measured=known),
            Compared(name="b", victim="", measured=known | measured),
        ]
        with pytest.raises(InvalidInput, match=r"they were measured on other (test images|protocols):\n  a: .*\n  b: "):
            Comparison.of(items)

    def test_the_same_images_read_from_another_place_compare(self):
        both = [Compared(name=n, victim="", measured={TEST_IMAGES: "one", TEST_SETS: n}) for n in "ab"]
        assert len(Comparison.of(both).items) == 2
        without = dataclasses.replace(both[1], measured={TEST_SETS: "b"})
        with pytest.raises(InvalidInput, match="other test sets"):
            Comparison.of([both[0], without])

    def test_of_one_victim_the_trigger_is_the_same(self):
        known = {TEST_IMAGES: "one"}
        other = Measurement(400, 1000, 990, 1000, "another evaluation")
        first, second = (compared(name, trial(0, START), measured=known) for name in "st")
        items = [first, dataclasses.replace(second, record=dataclasses.replace(second.record, victim=other))]
        with pytest.raises(InvalidInput, match="of victim a, other triggers, targets or draws"):
            Comparison.of(items)

    def test_ceilings_are_the_same(self):
        items = [compared("s", trial(0, START)), compared("t", trial(0, START), asr_ceiling=0.15)]
        with pytest.raises(InvalidInput, match=r"ceilings differ:\n  s: 5 %\n  t: 15 %"):
            Comparison.of(items)

    def test_trials_that_have_not_begun_are_refused_with_those_that_have(self):
        item = compared("s", *(trial(number, START) for number in (0, 1, 2, 5)), trial(3))
        Comparison.of([item]).check_trials([5])
        with pytest.raises(InvalidInput, match="--trial 3: no trial of that number has begun; known: 0 to 2, 5"):
            Comparison.of([item]).check_trials([5, 3])
        with pytest.raises(InvalidInput, match="--trial 0: no sweep is compared, and nothing else has trials"):
            Comparison.of([victim("v", (1, 1))]).check_trials([0])


class TestResults:
    def test_the_best_of_each_by_hand(self):
        """PAR on b has no cleaned epoch: the one of 20 % ASR stands for it."""
        table = result_table(two_methods())
        shown = table[["group", "series", "accuracy", "asr", "retention", "cleaned"]]
        assert shown.to_numpy().tolist() == [
            ["a", "victim", 0.4, 0.99, None, None],
            ["a", "par", 0.37, 0.01, pytest.approx(0.37 / 0.4), True],
            ["a", "cleanclip", 0.35, 0.02, pytest.approx(0.875), True],
            ["b", "victim", 0.4, 0.99, None, None],
            ["b", "par", 0.39, 0.2, None, False],
            ["b", "cleanclip", 0.3, 0.049, pytest.approx(0.75), True],
        ]

    def test_of_two_sweeps_in_one_series_the_better_one(self):
        """Cleaned at 30 % beats cleaned at 20 %, and both beat 39 % that is not cleaned."""
        items = [
            compared(name, trial(0, START, rates), fields={"method.kind": "par"})
            for name, rates in (("low", (200, 10)), ("high", (300, 10)), ("poisoned", (390, 100)))
        ]
        results = best_results(result_table(Comparison.of(items, "method.kind")))
        assert results["name"].tolist() == ["a", "high"]

    def test_bars_have_a_group_a_victim_and_the_victim_first(self):
        rows = bar_rows(two_methods())
        assert rows["quantity"].unique().tolist() == ["accuracy (%)", "ASR (%)"]
        asr = rows[rows["quantity"] == "ASR (%)"]
        assert asr[["group", "series"]].to_numpy().tolist()[:3] == [["a", "victim"], ["a", "par"], ["a", "cleanclip"]]
        assert asr["value"].tolist() == pytest.approx([99, 1, 2, 99, 20, 4.9])
        drawn = draw_bars(rows, two_methods().series, asr_ceiling=0.05)
        assert [bar.name for bar in drawn.data] == ["victim", "par", "cleanclip"] * 2

    def test_names_of_groups_lose_what_all_begin_with(self):
        assert without_beginning(["par-victim-badnet", "par-victim-blended-text"]) == ["badnet", "blended-text"]
        assert without_beginning(["par-x", "par"]) == ["par-x", "par"]
        assert without_beginning(["par-x"]) == ["par-x"]


class TestSeries:
    def test_every_point_that_may_win_and_a_star_for_each_victim(self):
        frame = series_points(two_methods())
        assert frame["kind"].value_counts().to_dict() == {"best": 4, "victim": 2, "epoch": 1}
        assert frame[frame["kind"] == "victim"]["group"].tolist() == ["a", "b"]
        assert frame["id"].tolist() == [0, 0, 1, 2, 3, -1, -1]  # one trial each, told apart

    def test_each_series_of_each_victim_has_a_frontier_of_its_own(self):
        """PAR on a: 37 % at 1 %, then 38 % at 30 %; CleanCLIP's 35 % at 2 % lies below and is on its own."""
        frame = series_points(two_methods())
        assert sorted(frame.loc[frame["frontier"] & (frame["group"] == "a"), "accuracy"]) == [0.35, 0.37, 0.38]

    def test_the_sentence_names_what_each_keeps(self):
        one = Comparison.of(two_methods().items[::2])
        assert describe_series(series_points(one), 0.05) == (
            "Highest accuracy below 5\u00a0% ASR: par-a 37.0\u00a0%, cc-a 35.0\u00a0%; 3 evaluated epochs."
        )
        both = describe_series(series_points(two_methods()), 0.05)
        assert both.startswith("Victims with an epoch below 5\u00a0% ASR: par 1 of 2, cleanclip 2 of 2; ")
        items = [compared(f"{name}-{on}", trial(0, START, (360, 20)), victim=on, fields={"method.kind": name})
                 for name in ("par", "cleanclip") for on in "ab"]  # fmt: skip
        equal = describe_series(series_points(Comparison.of(items)), 0.05)
        assert equal == "Victims with an epoch below 5\u00a0% ASR: each of 2 series 2 of 2; 4 evaluated epochs."

    def test_one_victim_has_a_second_panel_near_the_ceiling(self):
        one = Comparison.of(two_methods().items[::2])
        figure = draw_series(series_points(one), one.series, asr_ceiling=0.05)
        assert {trace.xaxis for trace in figure.data} == {"x", "x2"}
        assert figure.layout.xaxis2.range[1] == 10
        both = draw_series(series_points(two_methods()), two_methods().series, asr_ceiling=0.05)
        assert both.layout.xaxis2.title.text == "ASR (%): b"

    @pytest.mark.parametrize(("marks", "modes"), [("points", {"markers"}), ("frontier", {"lines"})])
    def test_marks_may_be_chosen(self, marks, modes):
        comparison = two_methods()
        figure = draw_series(series_points(comparison), comparison.series, asr_ceiling=0.05, marks=marks)
        assert {trace.mode for trace in figure.data if trace.name != "victim"} == modes

    def test_of_many_points_the_frontier_and_an_even_sample_are_drawn(self):
        """40 trials of one epoch: the frontier is trial 0, the best too; 10 of the other 39 are drawn."""
        many = compared("s", *(trial(n, START, (390 - n, 20 + n)) for n in range(40)))
        frame = series_points(Comparison.of([many]))
        figure = draw_series(frame, Comparison.of([many]).series, asr_ceiling=0.05)
        assert faint_marks({"series": figure.to_plotly_json()}) == []
        drawn = drawn_points(frame, most=10)
        assert drawn["trial"].tolist()[:2] == [0, 1]
        assert len(drawn) == 11
        assert drawn["trial"].max() == 39


class TestAgainst:
    def by_rate(self):
        """PAR's ASR falls from 20 to 1 % with the rate, CleanCLIP's from 30 to 2 %; the victims' own are 99 %."""
        found = []
        for method, hits in (("par", (200, 10)), ("cleanclip", (300, 20))):
            for rate, hit in zip((0.001, 0.1), hits, strict=True):
                fields = {"method.kind": method, "victim.poisoning.rate": rate}
                point = trial(0, START, (350, hit))
                found.append(compared(f"{method}-{rate}", point, victim=f"v-{rate}", fields=fields))
        return Comparison.of(found, "rate")

    def test_a_line_holds_what_differs_in_the_field_alone(self):
        frame = against_points(self.by_rate())
        assert frame[["line", "x", "asr"]].to_numpy().tolist() == [
            ["victim", 0.001, 0.99],
            ["victim", 0.1, 0.99],
            ["par", 0.001, 0.2],
            ["par", 0.1, 0.01],
            ["cleanclip", 0.001, 0.3],
            ["cleanclip", 0.1, 0.02],
        ]
        text = describe_against(frame, "victim.poisoning.rate")
        assert "par from 20.0\u00a0% to 1.0\u00a0%" in text
        figure = draw_against(frame, "victim.poisoning.rate", asr_ceiling=0.05)
        assert figure.layout.xaxis.type == "log"
        par = next(trace for trace in figure.data if trace.name == "par")
        assert list(par.marker.symbol) == ["circle-open", "circle"]  # the first is not cleaned

    def test_a_searched_parameter_makes_a_line_a_sweep(self):
        items = [
            compared(name, *(trial(n, START, (300 + n, 10), warmup_steps=n) for n in range(2))) for name in ("s", "t")
        ]
        frame = against_points(Comparison.of(items, "warmup_steps"))
        assert frame[frame["line"] != "victim"][["line", "x"]].to_numpy().tolist() == [
            ["s", 0.0], ["s", 1.0], ["t", 0.0], ["t", 1.0]
        ]  # fmt: skip

    def test_many_values_of_a_search_are_not_joined(self):
        item = compared("s", *(trial(n, START, (300, 10), warmup_steps=n) for n in range(70)))
        figure = draw_against(against_points(Comparison.of([item], "warmup_steps")), "warmup_steps")
        assert {trace.mode for trace in figure.data} == {"markers"}
        assert render_results(Comparison.of([item], "warmup_steps")).row_count == 60

    def test_its_accuracies_fill_their_axis_and_a_destroyed_one_is_noted(self):
        """Twenty from 38.0 to 39.9 %, the victim's 40 %, and one of 0.1 %, which has no part in the axis."""
        kept = [trial(n, START, (380 + n, 10), warmup_steps=n) for n in range(20)]
        item = compared("s", *kept, trial(20, START, (1, 10), warmup_steps=20))
        layout = draw_against(against_points(Comparison.of([item], "warmup_steps")), "warmup_steps").layout
        low, high = layout.yaxis.range
        assert 37 < low < 38 < 40 < high < 41
        assert any("0.1" in note.text for note in layout.annotations)

    def test_words_make_no_axis(self):
        assert against_points(two_methods()).empty


def victim(name, *rates, **fields):
    """One epoch a pair (correct, hit) of 1000, 30 pairs called safe from epoch 1 on, an epoch's number of poisons."""
    points = tuple(
        Point(n, float(n), n, 1, Measurement(*known, "e"), train={"loss": 3.0 - n, "safe_pairs": 30, "safe_poisons": n})
        for n, known in enumerate((correct, 1000, hit, 1000) for correct, hit in rates)
    )
    known = points[-1].measurement
    row = VictimRow(
        name, "0", "finished", points[-1].epoch, 1, 1, known, "PSR", found_in(points[-1]), 1.0, points, Path()
    )
    return ComparedVictim(name=name, victim=name, fields={f"victim.{k}": v for k, v in fields.items()}, row=row)


def scores(name, **fields):
    """Poisons score low after epoch 1 and high after epoch 2; 80 % of them then stand among the top tenth."""
    table = pd.DataFrame(
        {
            "epoch": [1.0, 2.0],
            "clean_score": [0.2, 0.3],
            "poisoned_score": [0.1, 0.5],
            "recall_highest@0.1": [0.0, 0.8],
            "recall_highest@0.3": [0.1, 0.9],
            "safe_poison_share": [0.0, 0.02],
        }
    )
    return ComparedTable(name=name, victim=name, fields={f"victim.{k}": v for k, v in fields.items()}, table=table)


class TestLines:
    def test_training_of_victims_by_epoch_with_what_was_found(self):
        frame = training_points(Comparison.of([victim("v", (100, 0), (300, 900))]))
        assert frame["quantity"].unique().tolist() == [
            "accuracy (%)", "PSR (%)", "loss (nats)", "safe pairs", "safe poisons"
        ]  # fmt: skip
        assert frame[frame["quantity"] == "PSR (%)"][["x", "value"]].to_numpy().tolist() == [[0, 0], [1, 90]]
        assert frame[frame["quantity"] == "safe poisons"]["value"].tolist() == [0, 1]
        assert describe_lines(frame) == "PSR (%), first and last epoch: v from 0.0 to 90.0."

    def test_scores_over_checkpoints_have_two_lines_in_one_panel(self):
        frame = training_points(Comparison.of([scores("t")]))
        cosines = frame[frame["quantity"] == "mean cosine of image and caption"]
        assert cosines[["part", "x", "value"]].to_numpy().tolist() == [
            ["clean", 1, 0.2], ["poisoned", 1, 0.1], ["clean", 2, 0.3], ["poisoned", 2, 0.5]
        ]  # fmt: skip
        top = frame[frame["quantity"] == "poisons among the top 10 % of cosines (%)"]
        assert top["value"].tolist() == [0, 80]
        figure = draw_lines(frame)
        assert [trace.name for trace in figure.data][:2] == ["t, clean pairs", "t, poisoned pairs"]

    def test_cleaning_is_shown_by_the_best_trial_over_epochs(self):
        """Trial 1 keeps 37 %, trial 0 only 35 %."""
        item = compared("s", trial(0, START, (350, 20)), trial(1, START, (370, 10)))
        frame = cleaning_points(Comparison.of([item]))
        assert set(frame["line"]) == {"s, trial 1"}
        assert frame[frame["quantity"] == "ASR (%)"]["value"].tolist() == [99, 1]
        assert set(cleaning_points(Comparison.of([item]), [0])["line"]) == {"s, trial 0"}

    def test_cleaning_is_shown_over_steps_where_losses_were_recorded(self):
        """Ten steps an epoch; the loss and its part at step 5 stand beside the rates of steps 0 and 10."""
        one = trial(0, START, (350, 20))
        start, end = one.points
        end = dataclasses.replace(end, step=10, curve=({"step": 5, "loss": 2.0, "mmcl": 1.5},))
        frame = cleaning_points(Comparison.of([compared("s", dataclasses.replace(one, points=(start, end)))]))
        assert frame.attrs["x"] == "step"
        shown = {title: part[["x", "value"]].to_numpy().tolist() for title, part in frame.groupby("quantity")}
        assert shown == {
            "accuracy (%)": [[0, 40], [10, 35]],
            "ASR (%)": [[0, 99], [10, 2]],
            "loss (nats or distance)": [[5, 2]],
            "mmcl (nats or distance)": [[5, 1.5]],
        }


class TestBarsOfVictims:
    def test_with_and_without_by_the_number_of_poisons(self):
        """PSR 90 with and 30 without at 100 poisons: a group for the 100, bars of both."""
        items = [
            victim("with", (1, 1), (300, 900), near=True, poisons=100),
            victim("without", (1, 1), (300, 300), near=False, poisons=100),
            victim("more", (1, 1), (300, 950), near=True, poisons=500),
        ]
        rows = bar_rows(Comparison.of(items, "near"))
        asr = rows[rows["quantity"] == "PSR (%)"]
        assert asr[["group", "series", "value"]].to_numpy().tolist() == [
            ["poisons 100", "near yes", 90], ["poisons 100", "near no", 30], ["poisons 500", "near yes", 95]
        ]  # fmt: skip
        assert rows[rows["quantity"] == "safe poisons"]["value"].tolist() == [1, 1, 1]

    def test_the_rate_is_called_what_it_is(self):
        """Victims of targeted poisoning measure the PSR; beside sweeps that measure the ASR each says which."""
        alone = Comparison.of([victim("v", (1, 1), (300, 900), rate=0.1), victim("w", (1, 1), (300, 800), rate=0.2)])
        assert [column.header for column in render_results(alone).columns][3:6] == ["acc. %", "PSR %", "kept %"]
        assert result_table(alone)["measures"].tolist() == ["PSR", "PSR"]
        page = render_comparison(Comparison.of(alone.items, "rate"))
        assert page.count('<th scope="col">PSR %</th>') == 2
        assert '<th scope="col">ASR %</th>' not in page
        assert "PSR, as rate goes from 0.1 to 0.2" in page
        both = Comparison.of([compared("s", trial(0, START, (350, 20))), *alone.items])
        rates = next(column for column in render_results(both).columns if column.header == "ASR or PSR %")
        assert [*rates.cells] == ["99.0 (ASR)", "2.0 (ASR)", "90.0 (PSR)", "80.0 (PSR)"]
        assert bar_rows(both).groupby("quantity")["value"].max()[["ASR (%)", "PSR (%)"]].tolist() == [99, 90]

    def test_a_sweep_over_a_victim_of_targeted_poisoning_measures_the_psr(self):
        item = compared("s", trial(0, START, (350, 20)), fields={"victim.poisoning.kind": "targeted-images"})
        assert result_table(Comparison.of([item]))["measures"].tolist() == ["PSR", "PSR"]
        assert "PSR (%)" in cleaning_points(Comparison.of([item]))["quantity"].tolist()

    def test_of_tables_the_last_checkpoint(self):
        rows = bar_rows(Comparison.of([scores("a", near=True), scores("b", near=False)], "near"))
        assert rows[["quantity", "value"]].drop_duplicates().to_numpy().tolist() == [
            ["poisons among the top 10 % of cosines (%)", 80],
            ["poisons among the top 30 % of cosines (%)", 90],
            ["poisons among the safe pairs (%)", 2],
        ]

    def test_a_victim_beside_its_sweeps_stands_once(self):
        items = [*two_methods().items, victim("a", (1, 1), (400, 990))]
        results = result_table(Comparison.of(items))
        assert results[["group", "series"]].duplicated().sum() == 0


class TestSmallPanels:
    def rates(self):
        numbers = {0: 1e-3, 1: 1e-4, 2: 1e-2}
        return compared("s", *(trial(n, START, (350, 20 + 300 * n), learning_rate=v) for n, v in numbers.items()))

    def test_a_panel_for_each_rate_in_their_order(self):
        frame = panel_points(Comparison.of([self.rates()]))
        assert list(dict.fromkeys(zip(frame["panel"], frame["trial"], strict=True))) == [
            ("learning_rate 1e-04", 1), ("learning_rate 1e-03", 0), ("learning_rate 1e-02", 2)
        ]  # fmt: skip
        assert frame["epoch"].tolist() == [0, 1] * 3
        assert "3 trials, " in describe_panels(frame, 0.05)
        assert "; 1 of the 3 shown comes below 5\u00a0% ASR" in describe_panels(frame, 0.05)
        assert len(draw_panels(frame, ("s",), asr_ceiling=0.05).data) == 3

    def test_trials_may_be_chosen(self):
        frame = panel_points(Comparison.of([self.rates()]), [2])
        assert frame["trial"].unique().tolist() == [2]

    def test_of_many_trials_the_best_are_shown(self):
        many = [compared(name, *(trial(n, START, (390 - n, 10)) for n in range(30))) for name in ("x-s", "x-t")]
        frame = panel_points(Comparison.of(many))
        assert frame.groupby("name")["trial"].nunique().to_dict() == {"x-s": 12, "x-t": 12}
        assert frame["trial"].max() == 11
        said = describe_panels(frame, 0.05)
        assert said.startswith("Each sweep's best, 24 of 60 trials, accuracy over")
        assert "; 24 of the 24 shown come below" in said
        assert frame["panel"].iloc[0] == "s\ntrial 0"


class TestPage:
    def test_the_page_holds_every_figure_that_applies(self):
        always = ["results", "series"], ["cleaning", "panels"]
        assert [view.name for view in views_of(two_methods())] == [*always[0], *always[1]]
        assert [view.name for view in views_of(TestAgainst().by_rate())] == [*always[0], "against", *always[1]]
        assert [view.name for view in views_of(Comparison.of([scores("t")]))] == ["results", "training"]
        assert [view.name for view in views_of(TestAgainst().by_rate(), "line")] == ["results", "against"]
        page = render_comparison(two_methods())
        assert 'id="series-data"' in page
        assert "par-a" in page

    def test_text_from_outside_is_no_markup(self):
        items = [compared("<b>s</b>", trial(0, START, (300, 10)), notes=("<i>note</i>",))]
        page = render_comparison(Comparison.of(items))
        assert "<b>s</b>" not in page
        assert "<i>note</i>" not in page

    def test_the_tables_are_plain_values(self):
        tables = tables_of(two_methods())
        assert set(tables) == {"results", "series", "cleaning", "panels"}
        assert tables["results"][1]["trial"] == 0
        assert tables["results"][0]["trial"] is None
