"""The page of several sweeps, victims and tables: every figure that they allow, in one HTML file."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from dashboards.against import against_points, describe_against, draw_against
from dashboards.bars import bar_rows, describe_bars, draw_bars
from dashboards.build import trials_of
from dashboards.columns import Columns
from dashboards.lines import cleaning_points, describe_lines, draw_lines, training_points
from dashboards.page import Page, View, with_code, words_html
from dashboards.series import describe_series, draw_series, series_points
from dashboards.small_panels import describe_panels, draw_panels, panel_points
from dashboards.table import small_table
from sweeplab.ranking.compared import Comparison, notes_of, result_table, short_path
from sweeplab.storage.files import write_atomically


def build_comparison(comparison: Comparison, path: Path, marks: str | None = None, trials: Sequence[int] = ()) -> Path:
    """Write the page as one self-contained file.

    Args:
        comparison: what it shows.
        path: file to write; its folder is made if it is missing.
        marks: of `compared.MARKS`: which figures of the series are wanted, and no others; None: all figures.
        trials: numbers of those whose cleaning is shown; empty: the best.

    Returns:
        The path itself.
    """
    write_atomically(path, render_comparison(comparison, marks, trials).encode(), durable=False)
    return path


def render_comparison(comparison: Comparison, marks: str | None = None, trials: Sequence[int] = ()) -> str:
    """The page as text."""
    ids = comparison.trial_ids()
    begun = [(item, row) for item in comparison.sweeps for row in item.board.rows if row.epochs is not None]
    ceiling = comparison.asr_ceiling if comparison.sweeps else None
    begun_trials = trials_of([row for _, row in begun], [ids[item.name] + row.trial for item, row in begun], ceiling)
    page = Page(
        title="Comparison · SweepLab report",
        header=_header(comparison),
        views=views_of(comparison, marks, trials),
        footer=_FOOTER,
        trials={**begun_trials, "labels": [f"{item.name}, trial {row.trial}" for item, row in begun]},
    )
    measured = [item.record.victim for item in comparison.sweeps]
    return page.html(Columns(tuple(n for victim in measured for n in (victim.accuracy_n, victim.asr_n))))


def tables_of(
    comparison: Comparison, marks: str | None = None, trials: Sequence[int] = ()
) -> dict[str, list[dict[str, Any]]]:
    """The rows behind every figure that the page has, by the figure's name: plain JSON values."""
    return {view.name: _plain(view.rows) for view in views_of(comparison, marks, trials) if view.rows is not None}


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def views_of(comparison: Comparison, marks: str | None = None, trials: Sequence[int] = ()) -> list[View]:
    """Those for which the compared items have what they need."""
    views = [_results_view(comparison)]
    if marks != "line":
        views.append(_series_view(comparison, marks))
    if marks in (None, "line"):
        views.append(_against_view(comparison))
    if marks is None:
        views += [_training_view(comparison), _cleaning_view(comparison, trials), _panels_view(comparison, trials)]
    return [view for view in views if view is not None]


MOST_SERIES = 24
"""More are no longer told apart by their colours and symbols."""


def _results_view(comparison: Comparison) -> View | None:
    rows, results = bar_rows(comparison), result_table(comparison)
    if rows.empty:
        return None
    heads = {"group": "Victim", "series": "Series", "name": "Sweep", "trial": "Trial", "epoch": "Epoch"}
    rate = comparison.rate
    heads |= {"accuracy": "Accuracy %", "asr": f"{rate} %", "measures": "Measured"}
    heads |= {"retention": "Retention %", "lowest_asr": f"Lowest {rate} %"}
    ceiling = comparison.asr_ceiling if comparison.sweeps else None
    if results.empty:  # tables alone
        table = small_table(
            rows, {"group": "Group", "series": "Series", "quantity": "What", "value": "Value"}, most=200
        )
    else:
        table = small_table(results, heads | {"trials": "Trials"}, most=200, asr_ceiling=ceiling)
    figure = draw_bars(rows, comparison.series, asr_ceiling=ceiling) if len(rows) <= MOST_BARS else None
    head = ("results", "What each came to", "Results")
    return View(*head, describe_bars(comparison), figure, table, rows=rows if results.empty else results)


MOST_BARS = 160


def _against_view(comparison: Comparison) -> View | None:
    frame = against_points(comparison)
    if frame.empty or comparison.by is None:
        return None
    ceiling = comparison.asr_ceiling if comparison.sweeps else None
    rate = comparison.rate
    figure = draw_against(frame, comparison.by, rate=rate, asr_ceiling=ceiling)
    name = short_path(comparison.by)
    heads = {"line": "Line", "x": name, "name": "Sweep", "trial": "Trial", "epoch": "Epoch"}
    heads |= {"accuracy": "Accuracy %", "asr": f"{rate} %"}
    table = small_table(frame, heads, most=200, asr_ceiling=ceiling)
    title, finding = f"Accuracy and {rate} against {name}", describe_against(frame, comparison.by, rate)
    return View("against", title, "Against a field", finding, figure, table, rows=frame)


def _series_view(comparison: Comparison, marks: str | None) -> View | None:
    if not comparison.sweeps or len(comparison.series) > MOST_SERIES:
        return None
    frame = series_points(comparison)
    if (frame["kind"] == "victim").all():
        return None
    figure = draw_series(frame, comparison.series, asr_ceiling=comparison.asr_ceiling, marks=marks)
    frontier = frame[frame["frontier"]].sort_values(["group", "series", "asr"])
    rows = frontier[["group", "series", "name", "trial", "epoch", "asr", "accuracy", "cleaned"]]
    heads = {"group": "Victim", "series": "Series", "asr": "At or below ASR %", "accuracy": "Best accuracy %"}
    heads |= {"trial": "Trial", "epoch": "Epoch"}
    table = small_table(rows.reset_index(drop=True), heads, most=200, asr_ceiling=comparison.asr_ceiling)
    finding = describe_series(frame, comparison.asr_ceiling)
    return View("series", "Accuracy against ASR", "Accuracy and ASR", finding, figure, table, rows=rows)


def _training_view(comparison: Comparison) -> View | None:
    frame = training_points(comparison)
    if frame.empty:
        return None
    return _lines_view("training", "Training, over epochs", "Training", frame, draw_lines(frame))


def _cleaning_view(comparison: Comparison, trials: Sequence[int]) -> View | None:
    frame = cleaning_points(comparison, trials)
    if frame.empty:
        return None
    title = f"Cleaning, over {frame.attrs['x']}s"
    return _lines_view("cleaning", title, "Cleaning", frame, draw_lines(frame, asr_ceiling=comparison.asr_ceiling))


def _lines_view(name: str, title: str, short: str, frame: pd.DataFrame, figure: go.Figure) -> View:
    ends = frame.groupby(["quantity", "line", "part"], as_index=False, sort=False).last()
    heads = {"quantity": "What", "line": "Line", "part": "Pairs", "x": f"Last {frame.attrs['x']}", "value": "There"}
    return View(name, title, short, describe_lines(frame), figure, small_table(ends, heads, most=200), rows=frame)


def _panels_view(comparison: Comparison, trials: Sequence[int]) -> View | None:
    frame = panel_points(comparison, trials)
    if frame.empty:
        return None
    figure = draw_panels(frame, comparison.series, asr_ceiling=comparison.asr_ceiling)
    heads = {"panel": "Panel", "name": "Sweep", "trial": "Trial", "epoch": "Epoch"}
    heads |= {"accuracy": "Accuracy %", "asr": "ASR %"}
    table = small_table(frame, heads, most=200, asr_ceiling=comparison.asr_ceiling)
    finding = describe_panels(frame, comparison.asr_ceiling)
    return View("panels", "A panel for each trial", "Trials", finding, figure, table, rows=frame)


def _header(comparison: Comparison) -> str:
    names = [item.name for item in comparison.items]
    by = f"told apart by <b>{escape(comparison.by)}</b>" if comparison.by else "a series each"
    ceiling = style.ceiling_text(comparison.asr_ceiling) if comparison.sweeps else "5\u00a0% by default"
    said = "".join(f'<p class="warning">Note: {with_code(note)}.</p>\n' for note in notes_of(comparison))
    return f"""<header>
<p class="kicker">SweepLab comparison</p>
<h1>{escape(_title(names))}</h1>
<p class="lead">{len(names)} compared, {by}: {escape(", ".join(names))}.</p>
{said}{words_html(ceiling)}</header>"""


def _title(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"


_FOOTER = """<footer>
<p>This page is one file and loads nothing from a network.</p>
</footer>"""
