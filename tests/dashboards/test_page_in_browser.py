"""The page as a browser shows it, opened from the disk: everything is drawn, nothing is cut, nothing asks a network."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import test_examined as tables
import test_more_views as views
from browser import CHROMIUM, Browser

from dashboards import examined
from dashboards.build import Extras, build_page
from dashboards.reproduction import build_reproduction
from dashboards.several import build_comparison
from sweeplab.ranking.compared import ComparedSweep, Comparison
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.reproduction import Number, Ours, Reproduction, Row, Run, Sizes
from sweeplab.records import Measurement, Origin, Outcomes, Point, SweepRecord, TrialRecord
from sweeplab.search.importance import importances

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]

RECORD = SweepRecord(
    name="toy-sweep-with-quite-a-long-name-that-has-to-break",
    digest="0" * 16,
    state="finished",
    asr_ceiling=0.05,
    epochs=3,
    protocol="paper",
    method="cleanclip",
    victim_name="toy-victim",
    victim=Measurement(400, 1000, 990, 1000, "evaluation"),
    victim_epoch=10,
    target="banana",
    trials=(),
    planned_trials=40,
    parameters=("learning_rate", "optimizer", "ssl_weight", "text_augmentation"),
    log_parameters=("learning_rate",),
    origin=Origin("badnet (patch_size 6)", 0.05, "mmcl", "sweeps/toy.py", 0, (("python", "3.11"), ("torch", "2.14"))),
)
WIDTHS = (1440, 800, 390)


def trial(number: int, *rates: tuple[int, int], optimizer: str = "adamw") -> TrialRecord:
    points = tuple(
        Point(index, float(index), 10 * index, 1, Measurement(correct, 1000, hit, 1000, "evaluation"))
        for index, (correct, hit) in enumerate(rates)
    )
    setting = {"learning_rate": 10.0 ** -(3 + number / 10), "optimizer": optimizer, "ssl_weight": number % 4 / 2}
    setting["text_augmentation"] = "swap+delete"
    return TrialRecord(number, "finished", setting, f"c{number}", 1, 1, points)


def toy(num_trials: int = 40, epochs: int = 3) -> SweepRecord:
    generator = np.random.default_rng(0)
    trials = []
    for number in range(num_trials):
        share = number / num_trials
        rates = [
            (400 - int(60 * share), int(990 * share**epoch + generator.integers(0, 9)))
            for epoch in range(1, epochs + 1)
        ]
        rates[-1] = (60, rates[-1][1]) if number % 9 == 3 else rates[-1]
        made = trial(number, (400, 990), *rates, optimizer=("adamw", "sgd")[number % 2])
        if number == 0:  # the only one with a recorded loss
            curve = ({"step": 10, "loss": 2.5, "mmcl": 2.0}, {"step": 20, "loss": 2.0, "mmcl": 1.5})
            made = dataclasses.replace(
                made, points=(*made.points[:-1], dataclasses.replace(made.points[-1], curve=curve))
            )
        elif number == num_trials - 1:
            made = dataclasses.replace(made, state="pruned", reason="its lowest ASR is at least 0.9 of the victim's")
        trials.append(dataclasses.replace(made, configuration=f"c{number // 2}", seed=number % 2))
    return dataclasses.replace(RECORD, trials=tuple(trials), planned_trials=num_trials, epochs=epochs)


def page_of(record: SweepRecord, folder: Path) -> str:
    """With all that a page may show: every view has something to draw."""
    board = rank_trials(record, lambda number, index: None)
    winner = board.rows[0]
    extras = Extras(
        mlflow_command="sweeplab mlflow",
        mlflow_address="http://127.0.0.1:5000/#/experiments/1",
        importances=importances(board, record.log_parameters),
        attempts=views.TestTimeline.ATTEMPTS,
        costs=views.TestTimeline.COSTS,
        until_ms=4 * views.HOUR,
        pretraining=views.TestPretraining.POINTS,
        outcomes=lambda number, index: Outcomes.of(np.arange(1000) < 300 + number, np.arange(1000) < 10),
        gallery={**views.GALLERY, "trial": winner.trial, "epoch": winner.epoch},
    )
    return build_page(record, board, folder / "report.html", extras).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(toy(), tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """2,000 trials of 4 epochs: more points than are drawn one by one."""
    return page_of(toy(2000, 4), tmp_path_factory.mktemp("large"))


CUT = """(() => {
  const found = [];
  const inside = (outer, inner) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1
    && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
  for (const chart of document.querySelectorAll(".chart"))
    for (const text of chart.querySelectorAll("svg text")) {
      const own = text.getBoundingClientRect();
      const isShown = own.width && text.textContent.trim();
      if (isShown && !inside(chart.getBoundingClientRect(), own)) found.push(`${chart.id}: ${text.textContent}`);
    }
  const parts = ".legend button, .tile, .facts > div, .answers dd, h1, h2, .summary, .lead, .empty, pre";
  for (const part of document.querySelectorAll(parts)) {
    const own = part.getBoundingClientRect();
    const isCut = own.left < 0 || own.right > innerWidth + 1 || part.scrollWidth > part.clientWidth + 1;
    if (isCut) found.push(part.textContent);
  }
  const wide = document.documentElement.scrollWidth;
  return wide > innerWidth ? [...found, `the page is ${wide} pixels wide`] : found;
})()"""
"""Texts that do not lie within their chart, or within the window."""

OVERLAPS = """(() => {
  const found = [];
  for (const chart of document.querySelectorAll(".chart")) {
    const texts = [...chart.querySelectorAll("svg text")].filter((text) => text.textContent.trim());
    const boxes = texts.map((text) => text.getBoundingClientRect());
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      const other = texts[i + 1 + j].textContent;
      if (a.width && b.width && width > 2 && height > 4) found.push(`${chart.id}: ${texts[i].textContent} | ${other}`);
    }));
  }
  return found;
})()"""
"""Pairs of texts of a chart that cover each other."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_chart_is_drawn_and_no_text_is_cut(browser: Browser, page: str, width: int, dark: bool):
    browser.open(page, width=width, dark=dark)
    browser.show_all()
    assert browser.run("[...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('.main-svg'))")
    assert browser.run("document.querySelectorAll('.chart').length") == 14
    assert "ceiling (5\u00a0%)" not in browser.run("document.querySelector('header').innerText")
    browser.run("document.querySelector('.words').open = true")
    assert "ceiling (5\u00a0%)" in browser.run("document.querySelector('header').innerText")
    assert browser.run(CUT) == []
    assert browser.run(OVERLAPS) == []
    assert browser.run("[...document.querySelectorAll('.number')].every((e) => e.getClientRects().length === 1)")
    assert browser.complaints() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_ticks_and_notes_of_the_parameter_view_have_room(browser: Browser, tmp_path: Path, width: int):
    """Three panels beside each other, values that lie close together, and a trial that keeps 6 %."""
    record = toy(24)
    settings = [
        {"learning_rate": (1.94e-5, 2e-4, 0.02)[n % 3], "ssl_weight": (0.5, 1.0, 2.0, 4.0)[n % 4]} for n in range(24)
    ]
    trials = [
        dataclasses.replace(one, params={**setting, "warmup_steps": (0, 50, 500)[one.number % 3]})
        for one, setting in zip(record.trials, settings, strict=True)
    ]
    low = dataclasses.replace(trial(5, (400, 990), (24, 10)), params=trials[5].params)
    trials[5] = low
    names = ("learning_rate", "ssl_weight", "warmup_steps")
    browser.open(page_of(dataclasses.replace(record, trials=tuple(trials), parameters=names), tmp_path), width=width)
    browser.show_all()
    texts = "[...document.querySelectorAll('#parameters :is(.xtick, .x2tick, .x3tick) text')]"
    shown = browser.run(f"{texts}.map((text) => text.textContent)")
    assert shown == ["1.94e-5", "2e-4", "2e-2", "0.5", "1", "2", "4", "0", "50", "500"]
    assert (
        browser.run(f"Math.max(...{texts}.map((text) => text.getBoundingClientRect().height))") < 20
    )  # none is turned
    assert "▾ 1 below, down to 6.0\u00a0%" in browser.run("$('parameters').textContent")
    assert browser.run(CUT) == browser.run(OVERLAPS) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_views_that_have_nothing_to_draw_are_not_cut(browser: Browser, tmp_path: Path, width: int):
    """One trial, commands with a sweep's name that has no room in a line, and a script in a long path."""
    name, script = "_".join(["a_sweep"] * 10), "/".join(["", *["a_folder_with_quite_a_long_name"] * 6, "toy.py"])
    record = dataclasses.replace(toy(1), name=name, origin=dataclasses.replace(RECORD.origin, script=script))
    page = build_page(record, rank_trials(record, lambda *_: None), tmp_path / "report.html").as_uri()
    browser.open(page, width=width)
    browser.show_all()
    assert name in browser.run("[...document.querySelectorAll('.empty code')].map((e) => e.textContent).join()")
    assert browser.run(CUT) == []


def test_the_leaderboard_of_a_sweep_that_runs_is_not_cut(browser: Browser, tmp_path: Path):
    """Fourteen columns, states and times among them, in a window of 1,280 pixels."""
    trials = [
        dataclasses.replace(
            one,
            state="interrupted" if one.number % 9 == 1 else one.state,
            points=tuple(dataclasses.replace(point, train_seconds=65.0) for point in one.points),
        )
        for one in toy().trials
    ]
    browser.open(page_of(dataclasses.replace(RECORD, trials=tuple(trials), state="running"), tmp_path), width=1280)
    room = "$('leaderboard').closest('.scroll')"
    assert browser.run("$('leaderboard').querySelectorAll('thead th').length") == 14
    assert browser.run(f"{room}.scrollWidth - {room}.clientWidth") == 0


@pytest.mark.parametrize("hits", [0, 29, 31, 49])
def test_the_winners_label_is_not_cut_wherever_it_lies_below_the_ceiling(browser: Browser, tmp_path: Path, hits: int):
    record = toy(10)
    winner = dataclasses.replace(trial(0, (400, 990), (450, hits)), number=1234)
    record = dataclasses.replace(record, trials=(winner, *record.trials[1:]))
    browser.open(page_of(record, tmp_path), width=800)
    browser.show_all()
    assert "trial 1234, epoch 1: 45.0\u00a0%" in browser.run("$('trade-off').textContent")
    assert browser.run(CUT) == browser.run(OVERLAPS) == []


def test_a_comparison_is_drawn_whole_and_names_its_trials(browser: Browser, tmp_path: Path):
    """Two sweeps of ten trials: bars, scatter, lines, panels."""
    items = []
    for number in range(2):
        record = dataclasses.replace(toy(10), name=f"compared-sweep-{number}")
        board = rank_trials(record, lambda *_: None)
        items.append(ComparedSweep(name=record.name, victim=record.victim_name, record=record, board=board))
    page = build_comparison(Comparison.of(items, "ssl_weight"), tmp_path / "compare.html").as_uri()
    for width, dark in ((1440, False), (390, True)):
        browser.open(page, width=width, dark=dark)
        browser.show_all()
        assert browser.run("[...document.querySelectorAll('.chart')].map((chart) => chart.id)") == [
            "results", "series", "against", "cleaning", "panels"
        ]  # fmt: skip
        assert browser.run(CUT) == browser.run(OVERLAPS) == []
        assert browser.run(CONTRASTS) == []
        assert browser.complaints() == []
    # Trial 3 of the second sweep is not that of the first.
    browser.run("$('series').emit('plotly_click', { points: [{ customdata: 13 }] })")
    assert browser.run("$('chosen').textContent").startswith("compared-sweep-1, trial 3: ")


SMALL = Run(
    "toy-figure-with-a-name-that-has-to-break",
    "toy-figure-with-a-name-that-has-to-break-smoke",
    False,
    "running",
    1,
    2,
    12,
    is_miniature=True,
    sizes=Sizes(1280, 320, 16, 160),
    result="best keeps 90.0 % at ASR 1.0 %",
    changed=("1,280 pairs instead of 6,000,000", "epochs 2 instead of 20"),
    notes=("one of its histories is damaged",),
)
NUMBERS = (
    Number(
        "5 poisons, MMCL",
        "change",
        "~-80",
        "%",
        "Sec. 4",
        "at a step of its own",
        SMALL.name,
        ours=Ours(-10.0, -20.0, 1.0),
        label=SMALL.label,
        is_preliminary=True,
    ),
    Number("10 poisons", "lowest ASR", "30..50", "%", "secondary source", "", "other", missing="not run"),
)
PAPER = Reproduction(
    "toy",
    "Toy et al.: a title that is as long as titles of papers are",
    (
        Row(
            "toy-fig1",
            "what it shows",
            "running, 1 of 2 trials, in miniature",
            (SMALL,),
            NUMBERS,
            ("python sweeps/toy.py --only 'toy-figure-*'", "sweeplab compare 'toy-figure-*'"),
            "`its` rates",
            "a figure",
        ),
        Row("toy-fig2", "another", "not run", (), NUMBERS[1:], ("python sweeps/toy.py --only other",), "", ""),
    ),
)


CONTRASTS = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const paper = (element) => {
    for (let place = element; place; place = place.parentElement) {
      const colour = numbers(getComputedStyle(place).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) continue;
    // Plotly itself chooses the colour of what stands on a bar or a cell.
    if (!element.getClientRects().length || element.closest(".heatmap-label, .bartext")) continue;
    const style = getComputedStyle(element), colour = element instanceof SVGElement ? style.fill : style.color;
    const [one, other] = [luminance(numbers(colour)), luminance(paper(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) found.add(`${contrast.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  return [...found];
})()"""
"""Texts that stand out from what is behind them by less than 4.5 to 1."""


def test_a_papers_rows_are_shown_whole_where_a_window_is_wide_or_narrow(browser: Browser, tmp_path: Path):
    page = build_reproduction(PAPER, tmp_path / "paper.html").as_uri()
    for width, dark in ((1440, False), (390, True), (390, False), (1440, True)):
        browser.open(page, width=width, dark=dark, has_charts=False)
        browser.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        assert browser.run(CUT) == []
        assert (
            browser.run("[...document.querySelectorAll('td, .mark')].filter((e) => e.scrollWidth > e.clientWidth + 1)")
            == []
        )
        assert browser.run(CONTRASTS) == []
        assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_its_paper(browser: Browser, page: str, dark: bool):
    browser.open(page, dark=dark)
    browser.show_all()
    assert browser.run(CONTRASTS) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_of_checkpoints_are_drawn_and_not_cut(browser: Browser, tmp_path: Path, width: int):
    name = "a-sweep-with-quite-a-long-name-that-has-no-room-in-a-panel, trial 12, epoch 10"
    one = examined.Examined(name, tables.WEAK, tables.MAP, tables.DISTANCES)
    (tmp_path / "figures.html").write_text(examined.render_examined("sweep", [one] * 3))
    browser.open((tmp_path / "figures.html").as_uri(), width=width, dark=width == WIDTHS[0])
    browser.show_all()
    assert browser.run("[...document.querySelectorAll('.chart')].map((chart) => chart.id)") == ["cosines", "maps"]
    assert browser.run("document.querySelectorAll('#maps .cartesianlayer > .subplot').length") == 3
    assert browser.run(CUT) == browser.run(CONTRASTS) == browser.complaints() == []


def test_a_chart_that_is_hidden_and_shown_again_is_no_error(browser: Browser, page: str):
    browser.open(page)
    browser.show_all()
    for display in ("none", ""):
        browser.run(f"document.querySelector('main').style.display = '{display}'")
        browser.steady("document.querySelector('#trade-off').clientWidth")
    assert browser.complaints() == []
    assert browser.run("document.querySelector('#trade-off .main-svg').getBoundingClientRect().width") > 0


def test_charts_are_drawn_when_they_come_into_view(browser: Browser, page: str):
    browser.open(page)
    browser.wait("drawn.get($('trade-off'))")
    assert not browser.run("$('parameters').querySelector('.main-svg')")
    browser.run("$('parameters').scrollIntoView()")
    browser.wait("drawn.get($('parameters'))")


def test_the_table_is_sorted_and_trials_are_chosen_by_keys(browser: Browser, page: str):
    browser.open(page)
    browser.run("document.querySelector('#leaderboard th:nth-child(2) button').focus()")
    browser.press("Enter")
    first = "[...document.querySelectorAll('#leaderboard tbody th')].slice(0, 3).map((cell) => cell.textContent)"
    assert browser.run(first) == ["0", "1", "2"]
    browser.press("Enter")
    assert browser.run(first) == ["39", "38", "37"]
    browser.run("document.querySelector('#leaderboard tbody th').focus()")
    browser.press("Enter")
    assert browser.run("new URLSearchParams(location.hash.slice(1)).get('trial')") == "39"
    assert browser.run("$('chosen').textContent").startswith("trial 39: ")
    browser.wait("drawn.get($('trade-off'))")
    # Its three epochs are ringed in the first panel.
    assert browser.run("$('trade-off').figure.rings.map((ring) => $('trade-off').data[ring.index].x.length)[0]") == 3


def test_a_point_chooses_its_trial_and_tells_its_setting(browser: Browser, page: str):
    browser.open(page)
    browser.wait("drawn.get($('trade-off'))")
    text = browser.run("$('trade-off').data.find((trace) => trace.name === 'best of the sweep').hovertext[0]")
    assert re.match(r"<b>trial \d+, epoch \d</b>: keeps [\d.]+\u00a0%<br>learning_rate .*optimizer (adamw|sgd)", text)
    browser.run("$('trade-off').emit('plotly_click', { points: [{ customdata: 7 }] })")
    assert browser.run("document.querySelector('tr.chosen th').textContent") == "7"


FILTER = """(() => {
  const field = document.querySelector(".filter input");
  field.value = "sgd";
  field.dispatchEvent(new Event("input"));
  return document.querySelector(".filter output").textContent;
})()"""


def test_what_the_reader_has_set_outlives_a_reload(browser: Browser, page: str):
    browser.open(page)
    browser.wait("drawn.get($('trade-off'))")
    browser.run("Plotly.relayout('trade-off', { 'xaxis.range[0]': 1, 'xaxis.range[1]': 3 }).then(() => null)")
    browser.click("#trade-off-legend button")
    assert browser.run(FILTER) == "20 of 40 rows"
    browser.run("window.isOld = true")
    browser.call("Page.reload")
    browser.wait("!window.isOld && typeof drawn !== 'undefined' && drawn.get($('trade-off'))")
    assert browser.run("$('trade-off').layout.xaxis.range") == [1, 3]
    assert browser.run("document.querySelector('#trade-off-legend button').getAttribute('aria-pressed')") == "false"
    rows = "[...document.querySelectorAll('#leaderboard tbody tr')].filter((row) => !row.hidden).length"
    assert browser.run(rows) == 20


def test_the_colours_follow_the_system(browser: Browser, page: str):
    browser.open(page)
    browser.wait("drawn.get($('trade-off'))")
    light = browser.run("$('trade-off').layout.template.layout.paper_bgcolor")
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", features=[scheme])
    browser.wait("drawn.get($('trade-off'))?.layout.template.layout.paper_bgcolor !== " + repr(light))


MARKERS = """$('trade-off').data.filter((trace) => trace.name?.startsWith("epoch,") && (trace.xaxis ?? "x") === "x")
  .flatMap((trace) => [...trace.x])"""


def test_densities_become_markers_where_the_reader_zooms_in(browser: Browser, large_page: str):
    browser.open(large_page)
    browser.wait("drawn.get($('trade-off'))")
    assert browser.run(MARKERS) == []
    browser.run("Plotly.relayout('trade-off', { 'xaxis.range[0]': 20, 'xaxis.range[1]': 21 }).then(() => null)")
    browser.wait(f"{MARKERS}.length > 0")
    assert all(20 <= asr <= 21 for asr in browser.run(MARKERS))
    assert browser.complaints() == []
