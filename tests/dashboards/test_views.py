"""The tables behind the report's views, and the page as a whole."""

import base64
import dataclasses
import gzip
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest
from rich.console import Console

from dashboards import style
from dashboards.build import Extras, best_sentence, build_page, render_page
from dashboards.columns import Columns
from dashboards.curves import curve_points, describe_curves, draw_curves
from dashboards.curves import thinned as thinned_curve
from dashboards.parameters import describe_parameters, draw_parameters, parameter_points, thinned
from dashboards.style import CONFIG, accuracy_range
from dashboards.table import draw_table, leaderboard_table
from dashboards.trade_off import (
    add_victim,
    cell_edges,
    describe_trade_off,
    draw_trade_off,
    frontier_table,
    kept_points,
    label_drop,
    trade_off_points,
)
from dashboards.trajectories import (
    describe_trajectories,
    draw_trajectories,
    numbered_points,
    relapse_index,
    trajectory_points,
)
from sweeplab.ranking.kept_weights import KeptPoint
from sweeplab.ranking.leaderboard import column_words, rank_trials, render_table
from sweeplab.records import Measurement, Origin, Point, SweepRecord, TrialRecord

START = (400, 990)
PARAMS = {"learning_rate": 1e-4, "optimizer": "adamw", "warmup_steps": 50}


def trial(number, *rates, state="finished", start_counts=False, **params):
    """One point a pair (correct, hit) of 1000, from epoch 0 on."""
    points = tuple(
        Point(index, float(index), index, 1, Measurement(correct, 1000, hit, 1000, "evaluation"))
        for index, (correct, hit) in enumerate(rates)
    )
    return TrialRecord(number, state, PARAMS | params, "c", 1, 1, points, start_counts=start_counts)


def sweep(*trials, **changes):
    """A victim of 40 % accuracy and 99 % ASR."""
    record = SweepRecord(
        name="toy",
        digest="0" * 16,
        state="finished",
        asr_ceiling=0.05,
        epochs=2,
        protocol="paper",
        method="CleanCLIP",
        victim_name="toy-victim",
        victim=Measurement(400, 1000, 990, 1000, "evaluation"),
        victim_epoch=10,
        target="banana",
        trials=trials,
        planned_trials=len(trials),
        parameters=("learning_rate", "optimizer", "warmup_steps"),
        log_parameters=("learning_rate",),
    )
    return dataclasses.replace(record, **changes)


def without_spans(page):
    """A page without what keeps its numbers and flags in one line."""
    return re.sub('<span class="number">(.*?)</span>', r"\1", page)


def ranked(record):
    return rank_trials(record, lambda number, index: None)


def mixed():
    """Trial 0 is best, 1 is cleaned, 2 never, 3 failed after its start, 4 has not begun."""
    return sweep(
        trial(0, START, (380, 30), (370, 10)),
        trial(1, START, (300, 200), (350, 40), learning_rate=1e-3),
        trial(2, START, (390, 300), (380, 400), optimizer="sgd"),
        trial(3, START, state="failed"),
        trial(4, state="waiting"),
    )


class TestTradeOff:
    def table(self, record):
        return trade_off_points(record, ranked(record))

    def test_one_row_a_point_after_the_start_and_one_for_the_victim(self):
        frame = self.table(mixed())
        assert len(frame) == 7
        assert frame["kind"].tolist() == ["winner", "epoch", "epoch", "best", "epoch", "epoch", "victim"]
        assert frame["cleaned"].tolist() == [True, True, False, True, False, False, False]

    def test_frontier_by_hand(self):
        """By ASR: 1 % 37, 3 % 38, 4 % 35, 20 % 30, 30 % 39, 40 % 38. The new maxima are 37, 38, 39."""
        frame = self.table(mixed())
        assert sorted(frame.loc[frame["frontier"], "accuracy"]) == [0.37, 0.38, 0.39]

    def test_of_points_with_equal_asr_only_the_more_accurate_is_on_the_frontier(self):
        frame = self.table(sweep(trial(0, START, (300, 10), (310, 10))))
        assert frame.loc[frame["frontier"], "accuracy"].tolist() == [0.31]

    def test_a_start_that_counts_is_a_point(self):
        frame = self.table(sweep(trial(0, (380, 10), (370, 10), start_counts=True)))
        assert frame.loc[frame["kind"] == "winner", "epoch"].tolist() == [0.0]

    def test_numbers_are_those_of_the_leaderboard(self):
        record = mixed()
        best = ranked(record).rows[0]
        winner = self.table(record).query("kind == 'winner'").iloc[0]
        assert (winner["trial"], winner["epoch"], winner["accuracy"], winner["asr"]) == (
            best.trial,
            best.epoch,
            best.accuracy,
            best.asr,
        )

    def test_summary_counts_the_cleaned_epochs(self):
        text = describe_trade_off(self.table(mixed()), 0.05)
        assert text.startswith("3 of 6 evaluated epochs (3 trials)")

    @pytest.mark.parametrize(("kept", "drop"), [((400, 398), 54), ((400, 391), 84), ((400, 391, 386), 114)])
    def test_the_winners_label_stands_where_it_hides_no_other_trials_best(self, kept, drop):
        """60 pixels a point on an axis of 6 points: 0.9 points below the winner are 54 pixels, 1.4 are 84."""
        frame = self.table(sweep(*(trial(n, START, (correct, 10)) for n, correct in enumerate(kept))))
        assert label_drop(frame, (35.0, 41.0), zoom=10.0) == drop

    def test_markers_give_way_to_a_density(self):
        frame = self.table(mixed())
        markers = draw_trade_off(frame, asr_ceiling=0.05)
        density = draw_trade_off(frame, asr_ceiling=0.05, density_above=5)
        assert not [trace for trace in markers.data if trace.type == "heatmap"]
        assert [trace.name.partition(" (")[0] for trace in density.data if trace.type == "heatmap"] == [
            "epochs, not cleaned",
            "epochs, cleaned",
            "epochs, cleaned",  # the second panel holds no other
        ]

    def test_the_page_keeps_what_matters_of_many_points(self):
        """Of 40 trials whose middle points are neither cleaned, on the frontier nor last, 5 such points stay."""
        record = sweep(*(trial(n, START, (300 - n, 500 + n), (200, 40), (100, 900)) for n in range(40)))
        frame = self.table(record)
        kept = kept_points(frame, most=5)
        points = frame[frame["kind"] != "victim"]
        dropped = points[~points.index.isin(kept.index)]
        assert kept["cleaned"].sum() == points["cleaned"].sum() == 40
        assert kept["frontier"].sum() == points["frontier"].sum()
        assert (kept["epoch"] == 3).sum() == 40
        assert (dropped["epoch"] == 1).all()
        assert len(kept) - len(points[points["cleaned"] | points["frontier"] | (points["epoch"] == 3)]) == 5

    def test_the_table_below_is_the_frontier_by_asr(self):
        """As above: 37 % at 1 %, 38 % at 3 %, 39 % at 30 %."""
        table = frontier_table(self.table(mixed()))
        assert table[["asr", "accuracy"]].to_numpy().tolist() == [[0.01, 0.37], [0.03, 0.38], [0.3, 0.39]]

    def test_each_cell_of_a_density_holds_equally_many_possible_rates(self):
        """Rates of 30 images are multiples of 3.33 %; 12 cells from 0 to 100 would hold 2 or 3 of them."""
        rates = 100 * np.arange(31) / 30
        edges = cell_edges(rates, 0.0, 100.0, most=12)
        counts, _ = np.histogram(rates, edges)
        assert len(edges) <= 13
        assert set(counts[:-1]) == {3}
        assert counts.sum() == 31


class TestTrajectories:
    def test_epochs_are_named_where_there_is_room_the_first_and_the_last_before_others(self):
        """Both start as the victim: one 0. Epochs 2 and 3 of trial 0 are one place: its last is named."""
        record = sweep(trial(0, START, (300, 500), (350, 10), (350, 12)), trial(1, START, (200, 20)))
        frame = trajectory_points(record, ranked(record))
        named = numbered_points(frame, 102.0, (0.0, 50.0))
        assert named[["trial", "epoch"]].to_numpy().tolist() == [[0, 0], [0, 1], [0, 3], [1, 1]]

    def test_a_trajectory_starts_at_epoch_0_and_keeps_the_order_of_the_leaderboard(self):
        record = mixed()
        frame = trajectory_points(record, ranked(record))
        assert frame["trial"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
        assert frame.query("trial == 0")["epoch"].tolist() == [0, 1, 2]

    def test_only_the_first_trials_are_drawn(self):
        record = mixed()
        assert trajectory_points(record, ranked(record), most=2)["trial"].unique().tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("rates", "index"),
        [
            ([0.99, 0.02, 0.10, 0.08], 2),
            ([0.99, 0.10, 0.12], None),
            ([0.0, 0.05], None),
            ([0.0, 0.0625], 1),
            ([0.3], None),
            ([0.2, 0.9, 0.1], None),
        ],
    )
    def test_a_relapse_is_a_rise_of_more_than_5_points_after_the_minimum(self, rates, index):
        assert relapse_index(rates) == index

    def test_an_unstable_trial_is_flagged_at_its_relapse(self):
        """Trial 2 goes from 30 % up to 40 %."""
        record = mixed()
        frame = trajectory_points(record, ranked(record))
        assert frame.loc[frame["unstable"], "trial"].unique().tolist() == [2]
        assert frame.loc[frame["relapse"], "asr"].tolist() == [0.4]
        assert "in 1 of them" in describe_trajectories(frame)

    def test_drawing_names_the_relapse(self):
        record = mixed()
        figure = draw_trajectories(trajectory_points(record, ranked(record)), asr_ceiling=0.05)
        assert any("unstable" in (trace.name or "") for trace in figure.data)


class TestParameters:
    def table(self, record):
        return parameter_points(record, ranked(record))

    def test_one_row_a_parameter_and_trial_with_a_point_that_may_win(self):
        frame = self.table(mixed())
        assert len(frame) == 9
        assert frame.query("parameter == 'learning_rate'")["trial"].tolist() == [0, 1, 2]
        assert frame.query("trial == 2")["feasible"].tolist() == [False] * 3

    def test_scales_follow_the_space_and_the_values(self):
        scales = self.table(mixed()).drop_duplicates("parameter").set_index("parameter")["scale"]
        assert scales.to_dict() == {"learning_rate": "log", "optimizer": "category", "warmup_steps": "linear"}

    def test_a_zero_makes_a_logarithmic_axis_linear(self):
        record = sweep(trial(0, START, (300, 10), learning_rate=0.0), trial(1, START, (300, 10)))
        assert set(self.table(record).query("parameter == 'learning_rate'")["scale"]) == {"linear"}

    def test_words_stand_at_their_place_in_the_alphabet(self):
        words = self.table(mixed()).query("parameter == 'optimizer'").set_index("word")["value"]
        assert words.to_dict() == {"adamw": 0.0, "sgd": 1.0}

    def test_a_parameter_that_a_trial_lacks_leaves_no_row(self):
        record = sweep(trial(0, START, (300, 10), optimizer=None))
        assert "optimizer" not in set(self.table(record)["parameter"])

    def test_thinning_keeps_the_best(self):
        record = sweep(*(trial(number, START, (300 + number, 10)) for number in range(40)))
        points = self.table(record).query("parameter == 'learning_rate'")
        kept = thinned(points, 10)
        assert len(kept) == 10
        assert kept["rank"].tolist()[:5] == [1, 2, 3, 4, 5]
        assert kept["rank"].max() == 40

    def test_drawing_has_one_panel_a_parameter_and_a_legend_without_repeats(self):
        frame = self.table(mixed())
        figure = draw_parameters(frame, asr_ceiling=0.05)
        assert {trace.xaxis for trace in figure.data} == {"x", "x2", "x3"}
        shown = [trace.name for trace in figure.data if trace.showlegend]
        assert len(shown) == len(set(shown)) == 3
        assert figure.layout.xaxis.type == "log"
        assert "the best has learning_rate" in describe_parameters(frame)
        assert "A panel shows" not in describe_parameters(frame)

    def test_panels_that_show_some_of_the_trials_say_so(self, monkeypatch):
        """30 markers in three panels: ten of the twelve trials in each."""
        monkeypatch.setattr("dashboards.parameters.MOST_MARKERS", 30)
        frame = self.table(sweep(*(trial(number, START, (300 + number, 10)) for number in range(12))))
        assert describe_parameters(frame).endswith(" A panel shows the best 5 of its trials and 5 of the others.")
        figure = draw_parameters(frame, asr_ceiling=0.05)
        assert sum(len(trace.x) for trace in figure.data if trace.xaxis == "x") == 10

    def test_a_cleaned_trial_that_kept_little_stands_above_the_strip_and_is_counted(self):
        """Eight trials are cleaned: six keep 99.5 to 97 %, the others 86 and 6 %. Two are not."""
        kept = (398, 396, 394, 392, 390, 388, 344, 24)
        cleaned = [trial(number, START, (correct, 10)) for number, correct in enumerate(kept)]
        record = sweep(*cleaned, trial(8, START, (390, 300)), trial(9, START, (380, 900)))
        figure = draw_parameters(self.table(record), asr_ceiling=0.05)
        strip_top = figure.layout.shapes[1].y1
        assert figure.layout.shapes[1].fillcolor == style.STRIP
        drawn = {}
        for trace in figure.data:
            if trace.xaxis == "x":
                drawn |= dict(zip(trace.customdata.tolist(), trace.y.tolist(), strict=True))
        assert all(drawn[number] > strip_top for number in range(8))
        assert all(drawn[number] < strip_top for number in (8, 9))
        assert figure.layout.yaxis.range[0] < min(drawn.values())
        assert {"▾ 2 below, down to 6.0\u00a0%"} == {note.text for note in figure.layout.annotations}


def curved(record, parts, steps=3):
    """The sweep with `steps` recorded steps before each trial's last point; value = step x place of the part."""
    trials = []
    for number, each in enumerate(record.trials):
        if len(each.points) < 2:
            trials.append(each)
            continue
        curve = tuple(
            {"step": float(step), **{part: step * place + number for place, part in enumerate(parts, 1)}}
            for step in range(1, steps + 1)
        )
        trials.append(
            dataclasses.replace(each, points=(*each.points[:-1], dataclasses.replace(each.points[-1], curve=curve)))
        )
    return dataclasses.replace(record, trials=tuple(trials))


class TestCurves:
    def test_without_recorded_steps_there_is_no_view(self):
        assert curve_points(mixed(), ranked(mixed())).empty
        assert 'id="curves-data"' not in render_page(mixed(), ranked(mixed()))

    def test_one_row_a_step_and_part_of_the_best_trials(self):
        record = curved(mixed(), ("loss", "mmcl"))
        frame = curve_points(record, ranked(record), most=2)
        assert frame["rank"].unique().tolist() == [1, 2]
        assert frame.columns.tolist() == ["rank", "trial", "step", "part", "value"]
        first = frame[(frame["rank"] == 1) & (frame["part"] == "mmcl")]
        assert (first["step"].tolist(), first["value"].tolist()) == ([1, 2, 3], [2, 4, 6])

    def test_the_sentence_by_hand(self):
        record = curved(mixed(), ("loss", "mmcl", "perturbation"))
        assert describe_curves(curve_points(record, ranked(record))) == (
            "The first 3 trials of the leaderboard, to step 3: the loss, and mmcl, perturbation, of which it is made."
        )

    def test_the_drawing_has_a_panel_a_part_and_a_line_a_trial(self):
        record = curved(mixed(), ("loss", "mmcl", "<b>own</b>"))
        figure = draw_curves(curve_points(record, ranked(record)))
        assert len(figure.data) == 9
        assert sum(bool(trace.showlegend) for trace in figure.data) == 3
        page = render_page(record, ranked(record))
        assert 'id="curves-data"' in page
        assert "<b>own" not in page

    def test_long_curves_are_thinned_and_keep_their_ends(self):
        record = curved(mixed(), ("loss",), steps=4000)
        frame = curve_points(record, ranked(record), most=1)
        kept = thinned_curve(frame, 100)
        assert len(kept) == 100
        assert kept["step"].tolist()[::99] == [1, 4000]


class TestTable:
    def test_rows_are_those_of_the_leaderboard_with_a_column_a_parameter(self):
        board = ranked(mixed())
        frame = leaderboard_table(board)
        assert frame["trial"].tolist() == [row.trial for row in board.rows]
        assert frame["params.optimizer"].tolist()[2] == "sgd"
        assert len(leaderboard_table(board, most=2)) == 2

    def test_missing_values_are_dashes_without_a_sort_key(self):
        board = ranked(sweep(trial(0, state="waiting")))
        frame = leaderboard_table(board)
        html = draw_table(frame, board, caption="c")
        assert "nan" not in html.lower()
        assert "None" not in html
        assert "<td><strong>–</strong></td>" in html

    def test_every_heading_is_a_button_and_one_column_is_sorted(self):
        board = ranked(mixed())
        html = draw_table(leaderboard_table(board), board, caption="c")
        assert html.count("<button") == html.count('scope="col"')
        assert html.count('aria-sort="ascending"') == 1


class Tags(HTMLParser):
    """Collects elements, addresses and the text outside scripts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.words.append(data)


SWEEPS = {
    "all kinds of trials": mixed,
    "nothing cleaned": lambda: sweep(trial(0, START, (300, 60))),
    "one trial": lambda: sweep(trial(0, START, (300, 10))),
    "one trial, epoch 0 only": lambda: sweep(trial(0, START, state="failed")),
    "start alone": lambda: sweep(trial(0, (300, 10), start_counts=True), epochs=0),
    "no points": lambda: sweep(trial(0, state="waiting"), state="running"),
    "no trials": lambda: sweep(),
    "no parameters": lambda: sweep(trial(0, START, (300, 10)), parameters=(), log_parameters=()),
    "accuracy 0": lambda: sweep(trial(0, START, (0, 10))),
}


@pytest.fixture(scope="module")
def mixed_page():
    record = mixed()
    return render_page(record, ranked(record))


@pytest.mark.parametrize("make", SWEEPS.values(), ids=SWEEPS.keys())
def test_every_kind_of_sweep_makes_a_page(make):
    record = make()
    page = Tags(render_page(record, ranked(record)))
    sections = [attributes["aria-label"] for tag, attributes in page.tags if tag == "section"]
    assert len(sections) == len(set(sections)) == 16
    assert ("html", {"lang": "en"}) in page.tags
    links = [address for address in page.addresses if address.startswith("#")]
    assert page.addresses == links
    assert {link[1:] for link in links} == {attributes["id"] for tag, attributes in page.tags if tag == "section"}


def test_the_page_forbids_the_network_and_scripts_from_elsewhere(mixed_page):
    page = Tags(mixed_page)
    (policy,) = [
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    script = re.search(r"script-src ([^;]*);", policy)[1]
    assert re.fullmatch(r"('sha256-[A-Za-z0-9+/=]+' ?)+", script)


def test_charts_have_no_button_that_sends_data_away():
    assert CONFIG["showSendToCloud"] is False
    assert CONFIG["plotlyServerURL"] == ""
    assert CONFIG["displaylogo"] is False


def test_text_from_outside_is_never_markup():
    nasty = '<img src=x onerror="alert(1)"></script><script>alert(1)</script>'
    record = sweep(
        trial(0, START, (300, 10), optimizer=nasty, **{nasty: nasty}),
        name=nasty,
        method=nasty,
        target=nasty,
        victim_name=nasty,
        protocol=nasty,
        parameters=(nasty, "optimizer"),
    )
    page = render_page(record, ranked(record))
    found = Tags(page)
    assert "img" not in [tag for tag, _ in found.tags]
    # plotly.js and the page's own script; the rest is data.
    assert len([tag for tag, attributes in found.tags if tag == "script" and "type" not in attributes]) == 2
    assert nasty in "".join(found.words)


def figures_of(page):
    """Every chart's figure by its name, its columns not filled in."""
    blocks = re.findall(r'<script type="application/json" id="([a-z-]+)-data">(.*?)</script>', page, flags=re.DOTALL)
    return {name: json.loads(block, parse_constant=pytest.fail) for name, block in blocks}


def test_the_figures_data_are_json_without_nan(mixed_page):
    figures = figures_of(mixed_page)
    assert list(figures) == ["trade-off", "ceilings", "trajectories", "parameters", "pair", "parallel", "budget"]
    for figure in figures.values():
        assert {"wide", "narrow"} <= set(figure["layout"]["meta"])


def unpacked(columns):
    """What page.js makes of the columns: bytes of one significance lie together."""
    heads, _, rest = gzip.decompress(base64.b64decode(columns.packed())).partition(b"\n")
    found = []
    for kind, scale, size in json.loads(heads):
        body, rest = rest[:size], rest[size:]
        width = int(kind[1])
        values = np.frombuffer(np.frombuffer(body, np.uint8).reshape(width, -1).T.tobytes(), f"<{kind}")
        found.append((kind, values * scale))
    return found


class TestColumns:
    def test_fractions_of_known_images_are_exact_and_short(self):
        """7 of 20,000 is 0.035 %; a third of the same column in other units is no such fraction."""
        columns = Columns((20_000,))
        assert columns.add(100 * np.array([7, 19_999]) / 20_000) == 0
        assert columns.add(np.array([1 / 3, np.nan])) == 1
        (kind, exact), (other, rounded) = unpacked(columns)
        assert (kind, other) == ("u2", "f4")
        np.testing.assert_allclose(exact, [0.035, 99.995], rtol=1e-12)
        np.testing.assert_allclose(rounded, [1 / 3, np.nan], rtol=1e-7)

    def test_equal_columns_are_one(self):
        columns = Columns()
        assert [columns.add(np.array(values)) for values in ([1, 2], [3, 300], [1, 2])] == [0, 1, 0]
        assert [values.tolist() for _, values in unpacked(columns)] == [[1, 2], [3, 300]]

    @pytest.mark.parametrize("values", [[], [-1, 70_000], [0, 2**16], [True, False]])
    def test_whole_numbers_come_back(self, values):
        columns = Columns()
        columns.add(np.array(values, dtype=bool if True in values else int))
        assert unpacked(columns)[0][1].tolist() == values

    def test_a_figures_arrays_are_named_and_matrices_know_their_width(self):
        columns = Columns()
        figure = {"x": {"dtype": "i1", "bdata": "AQID"}, "z": {"dtype": "i1", "bdata": "AQIDBA==", "shape": "2, 2"}}
        assert columns.figure([figure]) == [{"x": {"column": 0}, "z": {"column": 1, "width": 2}}]


class TestStyle:
    def test_every_colour_of_a_mark_stands_out_by_3_to_1_in_both_schemes(self):
        """WCAG 2.1, 1.4.11; text by 4.5 to 1."""
        marks = ("BLUE", "ORANGE", "GREEN", "PURPLE", "SKY", "VERMILLION", "BLACK", "FAINT", "OTHERS")
        texts = ("INK", "MUTED", "CLEANED_LINE")
        for names, least in ((marks, 3.0), (texts, 4.5)):
            for name in names:
                colour = getattr(style, name)
                assert contrast(colour, style.PAPER) >= least, name
                assert contrast(style.DARK[colour], style.DARK[style.PAPER]) >= least, f"{name}, dark"

    def test_every_colour_of_a_figure_has_a_dark_one(self, mixed_page):
        def texts(value):
            if isinstance(value, str):
                yield value
            elif isinstance(value, (dict, list)):
                for item in value.values() if isinstance(value, dict) else value:
                    yield from texts(item)

        found = {text for figure in figures_of(mixed_page).values() for text in texts(figure["data"])}
        colours = {text for text in found if re.fullmatch(r"#[0-9a-fA-F]{3,8}|rgba?\(.*\)|white|black", text)}
        assert colours
        assert colours <= set(style.DARK)

    def test_no_mark_is_fainter_than_its_colour(self, mixed_page):
        """A mark that lets its paper through has less contrast than `style` gives it."""
        assert faint_marks(figures_of(mixed_page)) == []

    def test_the_accuracy_axis_passes_over_a_destroyed_epoch_and_says_so(self):
        """Of 40 accuracies from 90 % to 99 % and one of 6 %: the axis begins near 90 %."""
        rates = [*np.linspace(0.9, 0.99, 40), 0.06]
        assert accuracy_range(rates)[0] > 85
        record = sweep(trial(0, START, *((int(1000 * rate), 10) for rate in rates)))
        figure = draw_trade_off(trade_off_points(record, ranked(record)), asr_ceiling=0.05)
        notes = [note.text for note in figure.layout.annotations if "below, down to" in note.text]
        assert notes == ["▾ 1 below, down to 6.0\u00a0%"] * 2

    def test_the_second_panel_tells_the_best_epochs_apart(self):
        """Two trials end at 97.0 and 96.5 %, and passed through 60 and 80 % on their way; the victim has 98 %."""
        record = sweep(trial(0, START, (600, 10), (970, 10)), trial(1, START, (800, 20), (965, 20)))
        record = dataclasses.replace(record, victim=Measurement(980, 1000, 900, 1000, "evaluation"))
        figure = draw_trade_off(trade_off_points(record, ranked(record)), asr_ceiling=0.05)
        low, high = figure.layout.yaxis2.range
        assert 94 < low < 96.5
        assert 98 < high < 100
        notes = [note.text for note in figure.layout.annotations if note.xref == "x2 domain" and "below" in note.text]
        assert notes == ["▾ 2 below, down to 60.0\u00a0%"]

    def test_the_victims_label_lies_below_its_line_where_it_would_meet_the_ceilings(self):
        frame = trade_off_points(mixed(), ranked(mixed()))
        for accuracy, anchor in ((0.9, "bottom"), (0.99, "top")):
            figure = go.Figure()
            victim = frame[frame["kind"] == "victim"].assign(accuracy=accuracy)
            add_victim(figure, victim, index=1, labelled_in=(0.0, 100.0))
            assert figure.layout.annotations[0].yanchor == anchor

    @pytest.mark.parametrize(
        ("values", "is_log", "texts"),
        [
            ([64, 128, 256, 1024], True, ["64", "128", "256", "1024"]),
            ([0.5, 1.0, 2.0, 4.0], False, ["0.5", "1", "2", "4"]),
            ([0, 50, 500], False, ["0", "50", "500"]),
            ([0.0, 0.05, 1.0], False, ["0", "", "1"]),  # 8 pixels apart
            ([1.94e-5, 2e-4, 0.02], True, ["1.94e-5", "2e-4", "2e-2"]),
            ([0.0, 1e-4, 0.123], False, ["0", "", "1.23e-1"]),
            ([7.0], False, ["7"]),
        ],
    )
    def test_few_values_are_the_ticks_and_their_texts_stand_where_they_fit(self, values, is_log, texts):
        assert style.spaced(values, is_log=is_log) == texts

    def test_every_value_of_a_few_has_a_tick_in_the_notation_of_all_axes(self):
        rates = (1.94e-5, 2e-4, 2.1e-4, 2e-2)
        record = sweep(*(trial(number, START, (300, 10), learning_rate=rate) for number, rate in enumerate(rates)))
        axis = draw_parameters(parameter_points(record, ranked(record)), asr_ceiling=0.05).layout.xaxis
        assert (axis.tickvals, axis.ticktext) == (rates, ("1.94e-5", "2e-4", "", "2e-2"))

    @pytest.mark.parametrize(
        ("low", "high", "texts"),
        [
            (1e-6, 1e-2, ["1e-6", "1e-5", "1e-4", "1e-3", "1e-2"]),
            (2e-4, 1e-3, ["2e-4", "5e-4", "1e-3"]),
            (0.0236, 0.0528, ["0.03", "0.04", "0.05"]),
            (3.0, 3.0, ["2", "5"]),
        ],
    )
    def test_log_ticks_have_one_notation(self, low, high, texts):
        found = style.log_ticks(low, high)
        assert [text for text in found["ticktext"] if text in texts] == texts
        assert len(found["ticktext"]) <= 9

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ([4.213e-05, 0.5, 2.0], ["4.21e-05", "5.00e-01", "2.00e+00"]),
            ([1e-4, 1e-3], ["1e-04", "1e-03"]),
            ([0.5, 1.0, 2], ["0.5", "1.0", "2.0"]),
            ([0.1234567, 12.5], ["0.123", "12.500"]),
            ([64, 128], ["64", "128"]),
            (["sgd", None, True], ["sgd", "–", "yes"]),
            ([0.25, None], ["0.25", "–"]),
            ([None, None], ["–", "–"]),
        ],
    )
    def test_a_column_has_one_notation(self, values, words):
        assert column_words(values) == words


def faint_marks(figures):
    """Traces of markers, lines and bars that stand out from their paper by less than 3 to 1, or let it through."""
    found = []
    for name, figure in figures.items():
        for trace in (trace for trace in figure["data"] if trace["type"] != "heatmap"):
            parts = [trace[part] for part in ("marker", "line") if part in trace.get("mode", "markers")]
            # Plotly's own opacity of markers of several sizes is 0.7.
            own = [1 if isinstance(part.get("size", 0), (int, float)) else 0.7 for part in parts]
            opacity = min(part.get("opacity", usual) for part, usual in zip(parts, own, strict=True))
            colours = [part["color"] for part in parts]
            pairs = [(colour, style.PAPER) for colour in colours]
            pairs += [(style.DARK[colour], style.DARK[style.PAPER]) for colour in colours]
            if min(opacity, trace.get("opacity", 1)) < 1 or any(contrast(*pair) < 3 for pair in pairs):
                found.append((name, trace.get("name"), colours))
    return found


def contrast(one, other):
    """WCAG's contrast of two colours #rrggbb."""

    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_is_written_whole_and_replaces_the_old_one(tmp_path):
    record = mixed()
    path = tmp_path / "reports" / "report.html"
    assert build_page(record, ranked(record), path) == path
    path.write_text("old")
    build_page(record, ranked(record), path)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_best_sentence_by_hand():
    """Trial 0 at epoch 1: 38 % of 40 % is 95 %; 30 of 1000 is certified, six points having been there to choose."""
    text = best_sentence(ranked(mixed())).replace("\u00a0", " ")
    assert text.startswith(
        "Trial 0 is best: at epoch 1 it keeps 95.0 % of the victim's accuracy (38.0 % of 40.0 %) "
        "at 3.0 % ASR, and its upper bound, at 95 % for all 6 points together, lies below 5 % too."
    )


@pytest.mark.usefixtures("undrawn")
def test_the_page_tells_a_destroyed_trial_from_the_cleaned_ones():
    """One keeps 350 of 400, one 20 of 400; the third is not cleaned, the fourth has not begun."""
    record = sweep(trial(0, START, (350, 40)), trial(1, START, (20, 0)), trial(2, START, (390, 900)), trial(3))
    board = ranked(record)
    page = render_page(record, board)
    assert '<dd>2<small> of 3</small></dd><dd class="note">1 of them keeps less than half of the accuracy; ' in page
    words = "2 of 3 cleaned, 1 of them keeps less than half of the accuracy; the best has"
    assert words in describe_parameters(parameter_points(record, board))


def test_the_best_sentence_says_why_nothing_is_certified():
    """40 of 1000 are too many for three points; fractions have no bound; without a backdoor the notes say it."""
    many = sweep(trial(0, START, (350, 40), (340, 400), (330, 400)))
    text = best_sentence(ranked(many)).replace("\u00a0", " ")
    assert text.endswith(
        "at 4.0 % ASR, but its upper bound, at 95 % for all 3 points together, does not lie below 5 %."
    )
    sure = trial(1, START, (300, 30))
    text = best_sentence(ranked(sweep(*many.trials, sure))).replace("\u00a0", " ")
    assert text.endswith("does not lie below 5 %; the best certified is trial 1: keeps 75.0 % at 3.0 % ASR.")
    fractions = Point(0, 1.0, 1, 1, Measurement.of_fractions(0.35, 0.0, "table"))
    text = best_sentence(ranked(sweep(TrialRecord(0, "finished", PARAMS, "c", 1, 1, (fractions,)))))
    assert text.endswith("ASR, which is not certified, as no counts of images are known.")
    clean = sweep(trial(0, (400, 7), (350, 0)), victim=Measurement(400, 1000, 7, 1000, "evaluation"))
    assert best_sentence(ranked(clean)).replace("\u00a0", " ").endswith("at 0.0 % ASR.")


def test_the_best_sentence_gives_the_mean_over_the_seeds_of_the_setting():
    """350, 330 and 310 of 400: 87.5 %, 82.5 % and 77.5 %, in the mean 82.5 %; without the last, 85 %."""
    kept = [trial(n, START, (350 - 20 * n, 10)) for n in range(3)]
    kept = [dataclasses.replace(one, seed=one.number) for one in kept]
    text = best_sentence(ranked(sweep(*kept))).replace("\u00a0", " ")
    assert text.endswith(" Over the 3 seeds of its setting, the mean retention is 82.5 %, at worst 77.5 %.")
    lost = dataclasses.replace(trial(2, START, (310, 500)), seed=2)
    text = best_sentence(ranked(sweep(*kept[:2], lost))).replace("\u00a0", " ")
    assert text.endswith(" the mean retention is 85.0 %, over the 2 that were cleaned.")


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_whose_script_is_not_recorded_gets_commands_all_the_same():
    one = dataclasses.replace(trial(0, START, (350, 40)), params={"learning_rate": 1e-3})
    kept = [dataclasses.replace(one, number=n, seed=n) for n in range(3)]
    record = sweep(*kept, origin=Origin(sampler="grid", objective="mmcl", seeds=3))
    page = re.sub("(?s)<script.*?</script>", "", render_page(record, ranked(record)))
    for text in ("SCRIPT", "--only"):
        assert text not in page
    for text in ("<dt>Script</dt><dd>not recorded<", "<code>sweeplab run toy name=toy-losses log_every=10</code> rec"):
        assert text in page


@pytest.mark.usefixtures("undrawn")
def test_of_a_victim_without_a_backdoor_the_page_praises_nothing():
    """7 of 1000 lie below the ceiling; the trial keeps 350 of 400."""
    clean = sweep(trial(0, (400, 7), (350, 0)), victim=Measurement(400, 1000, 7, 1000, "evaluation"))
    assert best_sentence(ranked(clean)).replace("\u00a0", " ") == (
        "The victim has no backdoor to clean: its own ASR is 0.7 %. "
        "Trial 0 at epoch 1 keeps 87.5 % of the victim's accuracy (35.0 % of 40.0 %) at 0.0 % ASR."
    )
    page = render_page(clean, ranked(clean))
    assert "no backdoor to clean; 95\u00a0% interval" in page
    assert "<dt>Most accurate</dt>" in page
    for text in ("Best retention", "Best setting", "Cleaned trials", "is best"):
        assert text not in page.partition("<nav")[0]
    other = dataclasses.replace(clean, planted_target="apple")  # its backdoor may lead there
    assert best_sentence(ranked(other)).startswith("Trial 0 is best")


@pytest.mark.usefixtures("undrawn")
def test_the_page_names_the_winners_weights_and_the_command_that_takes_them_away():
    record = sweep(trial(0, START, (350, 40)))
    best = dataclasses.replace(record.trials[0].points[1], checkpoint="<1>.pt")
    board = rank_trials(record, lambda number, index: None, [KeptPoint(0, best, "/home/<1>.pt")])
    page = without_spans(render_page(record, board))
    for text in ("trial 0, epoch 1<", "/home/&lt;1&gt;.pt<", "sweeplab promote toy 0 --to FOLDER<"):
        assert text in page


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_was_attacked_how_and_where_to_go_on():
    origin = Origin("badnet (patch_size 6)", 0.05, "mmcl", "sweeps/<mine>.py", 3, (("torch", "2.14"),))
    record = sweep(trial(0, START, (350, 40)), origin=origin)
    best = dataclasses.replace(record.trials[0].points[1], checkpoint="1.pt")
    board = rank_trials(record, lambda number, index: None, [KeptPoint(0, best, "/home/1.pt")])
    page = without_spans(render_page(record, board, Extras("mlflow server", "http://127.0.0.1:5000/#/experiments/1")))
    for text in ("badnet (patch_size 6)", "5\u00a0% of the pairs", "trained with mmcl", "torch 2.14", "mlflow server"):
        assert text in page
    assert "sweeplab evaluate /home/1.pt --sweep toy<" in page
    own = dataclasses.replace(record, origin=dataclasses.replace(origin, has_own_code=True))
    page_of_own = without_spans(render_page(own, board))
    assert "does not hold: <code>evaluate</code> takes that script<" in page_of_own
    assert "sweeplab evaluate" not in page_of_own
    addresses = [address for address in Tags(page).addresses if not address.startswith("#")]
    assert addresses == ["http://127.0.0.1:5000/#/experiments/1"]


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_the_sweep_cleaned_with_where_that_is_known():
    origin = Origin(cleaning_pairs="2,000 (fruit-stall)", cleaning_poisons=25)
    record = sweep(trial(0, START, (350, 40)), origin=origin)
    page = render_page(record, ranked(record))
    for fact in ("<dt>Cleaning pairs</dt><dd>2,000 (fruit-stall)<", "<dt>Poisons among them</dt><dd>25<"):
        assert fact in page
    old = dataclasses.replace(record, origin=Origin())
    assert "Cleaning pairs" not in (page := render_page(old, ranked(old)))
    assert "Poisons among them" not in page


@pytest.mark.usefixtures("undrawn")
def test_a_table_without_counts_says_that_they_are_not_known_and_gets_no_refused_command():
    fractions = Point(0, 1.0, 1, 1, Measurement.of_fractions(0.35, 0.0, "table"))
    record = sweep(
        TrialRecord(0, "finished", PARAMS, "c", 1, 1, (fractions,)),
        victim=Measurement.of_fractions(0.4, 0.9, "table"),
        origin=Origin(script="imported from table.csv", has_spec=False),
    )
    page = render_page(record, ranked(record))
    for text in ("no interval: counts not known", "none can be certified: counts not known", "<dd>not known<"):
        assert text in page
    for text in ("no epoch below", "sweeplab resume", "--gallery", "search.seeds", "0 s in trials"):
        assert text not in page


@pytest.mark.usefixtures("undrawn")
def test_no_number_and_no_flag_is_broken_behind_its_minus():
    """The best setting, the sentence below a heading, and commands."""
    trials = [trial(n, START, (350 - n, 40), learning_rate=10.0 ** -(n + 5)) for n in range(6)]
    made = (dataclasses.replace(one, configuration=f"c{one.number}") for one in trials)
    record = sweep(*made, origin=Origin())
    page = render_page(record, ranked(record))
    number = '<span class="number">1e-05</span>'
    for text in (
        f"<dd>learning_rate\u00a0{number}, ",
        f"the best has learning_rate {number},",
        '<span class="number">--dry-run</span></code> shows this sweep',
    ):
        assert text in page


@pytest.mark.usefixtures("undrawn")
def test_a_view_that_is_empty_names_the_command_that_fills_it():
    """One trial, cleaned: at two thirds it takes 15 trials for five that are not, and half as many again."""
    one = dataclasses.replace(trial(0, START, (350, 40)), params={"learning_rate": 1e-3})
    record = sweep(one, origin=Origin(asked_trials=1, objective="mmcl"))
    for origin, texts in (
        (
            record.origin,
            (
                "<code>sweeplab resume toy search.trials=23</code> runs enough, if about",
                "<code>sweeplab run toy --dry-run</code> shows this sweep&#x27;s.",
                "<code>sweeplab run toy name=toy-seeds search.seeds_per_configuration=3 search.trials=3</code> runs",
                "<code>sweeplab run toy name=toy-losses log_every=10</code> records",
                "<code>sweeplab pretrain toy</code> trains it here.",
            ),
        ),
        (
            dataclasses.replace(record.origin, is_closed=True),
            ("<code>sweeplab run toy name=toy-more search.trials=23</code> runs enough",),
        ),
        (
            dataclasses.replace(record.origin, has_own_code=True),
            (
                "<code>search.trials=23</code> behind the command of its script runs enough",
                "<code>--dry-run</code> behind the command of its script shows this sweep&#x27;s.",
                "<code>name=toy-losses log_every=10</code> behind the command of its script records",
                "A victim that is trained here has its epochs here.",
            ),
        ),
        (
            Origin(script="imported from table.csv", has_spec=False),
            ("A table with more trials can tell.", "a table in which trials have equal parameters."),
        ),
    ):
        changed = dataclasses.replace(record, origin=origin)
        page = without_spans(render_page(changed, ranked(changed)))
        for text in texts:
            assert text in page
        assert "SCRIPT" not in re.sub("(?s)<script.*?</script>", "", page)


@pytest.mark.usefixtures("undrawn")
def test_where_no_parameter_varies_none_is_said_to_lack_trials():
    """Thirty seeds of one setting; a single trial of a space without a parameter; one trial of two in a space."""
    seeds = sweep(*(trial(n, START, (350, 40)) for n in range(30)))
    alone = sweep(trial(0, START, (350, 40)), parameters=())
    begun = sweep(trial(0, START, (350, 40)), planned_trials=2)
    for record, is_alike in ((seeds, True), (alone, True), (begun, False)):
        page = render_page(record, ranked(record))
        found = ("No parameter takes two values, so none" in page, "Too few trials: at least five" in page)
        assert found == (is_alike, not is_alike)


@pytest.mark.usefixtures("undrawn")
def test_while_enough_trials_are_left_no_more_of_them_are_asked_for():
    record = sweep(trial(0, START, (350, 40)), planned_trials=40, state="running", origin=Origin(asked_trials=40))
    assert "The trials that are left may tell." in render_page(record, ranked(record))


@pytest.mark.usefixtures("undrawn")
def test_the_page_carries_the_sweeps_notes():
    record = sweep(trial(0, START, (350, 40)), notes=("weights say <banana> at 5 %", "`sweeplab status` says more"))
    page = render_page(record, ranked(record))
    assert "Note: weights say &lt;banana&gt; at 5\u00a0%." in page
    assert "Note: <code>sweeplab status</code> says more." in page
    assert "Note: " not in render_page(mixed(), ranked(mixed()))


def test_the_best_sentence_without_a_cleaned_trial_names_the_closest():
    text = best_sentence(ranked(SWEEPS["nothing cleaned"]())).replace("\u00a0", " ")
    assert text == "No trial lies below 5 % ASR; trial 0 comes closest with 6.0 %."


@pytest.mark.usefixtures("undrawn")
def test_a_rate_next_to_the_ceiling_reads_the_same_on_page_and_terminal_and_never_as_the_ceiling():
    """497 of 10,000 triggered images are 4.97 %, 503 are 5.03 %: both would be 5.0 %."""
    rates = {0: (4000, 497), 1: (3900, 503)}
    start = Point(0, 0.0, 0, 1, Measurement(4000, 10_000, 9900, 10_000, "evaluation"))
    trials = [
        TrialRecord(
            number, "finished", PARAMS, "c", 1, 1, (start, Point(1, 1.0, 1, 1, Measurement(k, 10_000, h, 10_000, "e")))
        )
        for number, (k, h) in rates.items()
    ]
    board = ranked(record := sweep(*trials, victim=start.measurement))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_table(board))
    page = re.sub("(?s)<script.*?</script>", "", render_page(record, board))
    table_of_ceilings = page[page.index('id="ceilings-section"') : page.index('id="trajectories-section"')]
    assert table_of_ceilings.count("<td>5.0</td>") == 1
    for text in (console.export_text(), page.replace("<td>5.0</td>", "", 1)):
        assert "4.97" in text
        assert "5.03" in text
        assert not re.search(r"\b5\.0\b", text)


def test_the_accuracy_axis_starts_at_zero_unless_all_values_are_close():
    assert accuracy_range([0.1, 0.4])[0] == 0.0
    low, high = accuracy_range([0.35, 0.4])
    assert 30 < low < 35
    assert 40 < high < 45


def test_a_large_sweep_stays_small():
    """1,010 trials of 20 epochs are 20,200 points, drawn as a density: the page stays within 6 MB."""
    generator = np.random.default_rng(0)
    trials = [
        trial(
            number,
            START,
            *zip(
                generator.integers(100, 400, 20).tolist(),
                generator.integers(0, 1000, 20).tolist(),
                strict=True,
            ),
            learning_rate=float(10 ** generator.uniform(-6, -3)),
        )
        for number in range(1010)
    ]
    record = sweep(*trials, epochs=20)
    page = render_page(record, ranked(record))
    assert len(page.encode()) < 6_000_000


def test_a_destroyed_trial_squeezes_no_good_ones():
    """Six cleaned trials, one of which keeps 6 %: the axis tells the other ones apart."""
    good = np.array([0.059, 0.86, 0.971, 0.972, 0.98, 0.99])
    low, high = style.focused_range(np.concatenate([good, [0.4, 0.93]]), good, 0.995)
    assert 95 < low < 97.1
    assert 99.5 < high < 101
