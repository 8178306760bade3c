"""Colours, type, sizes and the plotly configuration that all views share."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from sweeplab import records

# Okabe and Ito's palette, which stays distinct under every common colour blindness; orange and sky are darker than
# theirs, so that every mark stands out from white by 3:1 at least (WCAG 2.1, 1.4.11).
BLUE = "#0072B2"
ORANGE = "#C77700"
GREEN = "#008F68"
PURPLE = "#C2649A"
SKY = "#3490CC"
VERMILLION = "#D55E00"
BLACK = "#000000"

INK = "#1d2733"
MUTED = "#56616e"
FAINT = "#7b8794"
OTHERS = "#8a95a1"
"""Lines and markers of trials that stand in the background."""
GRID = "#e8ebef"
PAPER = "#ffffff"
CLEANED_FILL = "rgba(0, 158, 115, 0.09)"
CLEANED_LINE = "#00724f"
LABEL_PAPER = "rgba(255,255,255,0.88)"
"""Behind labels that stand in a panel."""
CLEANED_DENSITY = ((0.0, "#8dbde0"), (0.5, "#2f86c1"), (1.0, "#0a3f66"))
STRIP = "rgba(120, 130, 142, 0.10)"
"""Behind what stands below an axis of retention."""
CELL = "#d9dde2"
"""Of a cell of a heat map in which nothing was cleaned."""
OTHER_DENSITY = ((0.0, "#d5d9de"), (0.5, "#a3abb4"), (1.0, "#5d6873"))

DARK = {
    BLUE: "#58ace6",
    ORANGE: "#f0a63a",
    GREEN: "#2fc597",
    PURPLE: "#e39ac4",
    SKY: "#9bd4f7",
    VERMILLION: "#f5874b",
    BLACK: "#fefefe",
    INK: "#e7ecf2",
    MUTED: "#aab4bf",
    FAINT: "#8593a1",
    OTHERS: "#76828f",
    GRID: "#2a323b",
    PAPER: "#161b21",
    CLEANED_FILL: "rgba(47, 197, 151, 0.12)",
    CLEANED_LINE: "#4fd6aa",
    LABEL_PAPER: "rgba(22,27,33,0.88)",
    STRIP: "rgba(150, 162, 175, 0.13)",
    CELL: "#39434d",
    "#8dbde0": "#1d4f77",
    "#2f86c1": "#3f94d1",
    "#0a3f66": "#c4e4fa",
    "#d5d9de": "#333c46",
    "#a3abb4": "#5c6772",
    "#5d6873": "#a7b1bb",
}
"""What the page draws instead of each colour where the reader's system is dark."""

HOVER = "%{hovertext}<br>accuracy %{y:.1f} %<br>ASR %{x:.3~f} %<extra></extra>"
"""Of a point of accuracy over ASR, which has the digits that tell it from the ceiling. The page puts trial, epoch and
parameters in the place of the hovertext."""

SERIES_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
SERIES_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon")
SERIES_DASHES = ("solid", "dash", "dot", "dashdot")

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"

CONFIG: dict[str, Any] = {
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "displaylogo": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    "toImageButtonOptions": {"format": "svg"},
}
"""No button that sends data away, no logo; the camera saves SVG."""

_AXIS = {
    "gridcolor": GRID,
    "linecolor": FAINT,
    "tickcolor": FAINT,
    "ticks": "outside",
    "ticklen": 4,
    "showline": True,
    "zeroline": False,
    "title": {"font": {"size": 13, "color": MUTED}, "standoff": 8},
    "tickfont": {"size": 12, "color": MUTED},
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "colorway": [BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, BLACK],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": FAINT, "font": {"family": FONT, "color": INK}},
        "showlegend": False,  # the page writes legends as text, which breaks into lines and is never cut
        "hovermode": "closest",
        "dragmode": "zoom",
    }
)


def look_of(place: int) -> tuple[str, str, str]:
    """Colour, symbol and dash of a series by its place: 60 differ, neighbours in all three."""
    colours, symbols, dashes = SERIES_COLOURS, SERIES_SYMBOLS, SERIES_DASHES
    return colours[place % len(colours)], symbols[place % len(symbols)], dashes[place % len(dashes)]


def percent(fraction: float | None, digits: int | None = 1, *, ceiling: float | None = None) -> str:
    """As `sweeplab.records.percent`, with a no-break space."""
    return records.percent(fraction, digits, ceiling=ceiling).replace(" ", "\u00a0")


def duration(seconds: float) -> str:
    """As `sweeplab.records.duration`, with no-break spaces."""
    return records.duration(seconds).replace(" ", "\u00a0")


def ceiling_text(asr_ceiling: float) -> str:
    """The ceiling as a percentage without trailing zeros: 0.05 is `5 %`."""
    return percent(asr_ceiling, None)


def label(text: str, most: int = 40) -> str:
    """User-supplied text made safe for plotly, which reads labels as HTML; cut to `most` characters."""
    return escape(text if len(text) <= most else text[: most - 1] + "…")


def axis_name(letter: str, index: int) -> str:
    """Plotly's layout key of the axis `index` (0 is the first): xaxis, xaxis2, ..."""
    return f"{letter}axis{index + 1 if index else ''}"


def axis_id(letter: str, index: int) -> str:
    """Plotly's reference to the axis `index` (0 is the first): x, x2, ..."""
    return f"{letter}{index + 1 if index else ''}"


def panels(
    count: int, columns: int, *, panel: int, top: int = 52, gap: int = 84, between: float = 0.055, y_title: str
) -> dict[str, Any]:
    """Where the axes of `count` panels lie, as plotly relayout paths.

    Args:
        count: panels, filled row by row.
        columns: panels in a row.
        panel: pixels, height of one panel's plot area.
        top: pixels above the first row: plotly's buttons and the label of the ceiling.
        gap: pixels between two rows (tick labels and axis title).
        between: two panels of a row, a share of the whole width.
        y_title: on the first panel of each row.
    """
    rows = -(-count // columns)
    area = rows * panel + (rows - 1) * gap
    between = between if columns > 1 else 0.0
    width = (1 - between * (columns - 1)) / columns
    bottom = 56
    height = area + top + bottom
    layout: dict[str, Any] = {"height": height, "margin.t": top, "margin.b": bottom}
    for index in range(count):
        row, column = divmod(index, columns)
        left = column * (width + between)
        high = 1 - row * (panel + gap) / area
        layout[f"{axis_name('x', index)}.domain"] = [left, min(1.0, left + width)]
        layout[f"{axis_name('y', index)}.domain"] = [max(0.0, high - panel / area), high]
        layout[f"{axis_name('y', index)}.title.text"] = "" if column else y_title
    return layout


def responsive(figure: go.Figure, *, wide: dict[str, Any], narrow: dict[str, Any]) -> go.Figure:
    """Give a figure two layouts, relayout paths: `wide` is applied; the page applies `narrow` if needed."""
    as_drawn = {path.replace(".", "_"): value for path, value in wide.items() if "[" not in path}  # not parts of a list
    meta = {"wide": {"dragmode": "zoom", **wide}, "narrow": {"dragmode": False, **narrow}}
    figure.update_layout({"meta": meta, **as_drawn})
    return figure


def shade_cleaned(
    figure: go.Figure, asr_ceiling: float, indices: Sequence[int] = (0,), *, zoomed: Sequence[int] = (1,)
) -> None:
    """Shade the region below the ceiling in the panels `indices`, with a dashed line and a label at its edge.

    The label stands beside the region, and above it in the panels `zoomed`, where it is wide.
    """
    for index in indices:
        x, y = axis_id("x", index), axis_id("y", index)
        text = f"cleaned: ASR below {ceiling_text(asr_ceiling)}"
        figure.add_shape(
            type="rect",
            xref=x,
            yref=f"{y} domain",
            x0=0,
            x1=100 * asr_ceiling,
            y0=0,
            y1=1,
            fillcolor=CLEANED_FILL,
            line_width=0,
            layer="below",
        )
        figure.add_shape(
            type="line",
            xref=x,
            yref=f"{y} domain",
            x0=100 * asr_ceiling,
            x1=100 * asr_ceiling,
            y0=0,
            y1=1,
            line={"color": CLEANED_LINE, "width": 1.3, "dash": "dash"},
            layer="below",
        )
        figure.add_annotation(
            xref=x,
            yref=f"{y} domain",
            x=100 * asr_ceiling,
            y=1,
            xanchor="right" if index in zoomed else "left",
            yanchor="bottom",
            text=text if index in zoomed else f"◂ {text}",
            showarrow=False,
            xshift=0 if index in zoomed else -4,
            font={"size": 12, "color": CLEANED_LINE},
        )


def asr_panels(
    figure: go.Figure, asr_ceiling: float, accuracy: tuple[float, float], zoomed: tuple[float, float]
) -> None:
    """Two panels, shaded below the ceiling: all ASRs, and those up to twice the ceiling with an accuracy axis of
    their own.

    Args:
        figure: with traces in both panels.
        asr_ceiling: a fraction.
        accuracy: ends of the accuracy axis, percent.
        zoomed: ends of that of the second panel.
    """
    zoom = zoomed_asr(asr_ceiling)
    for index, (right, heights) in enumerate(((102.0, accuracy), (zoom, zoomed))):
        title = f"ASR (%), up to {zoom:g}\u00a0%" if index else "ASR (%)"
        x_axis = {"anchor": axis_id("y", index), "range": [-0.015 * right, right], "title": {"text": title}}
        y_axis = {"anchor": axis_id("x", index), "range": list(heights), "nticks": 8}
        figure.update_layout({axis_name("x", index): x_axis, axis_name("y", index): y_axis})
    shade_cleaned(figure, asr_ceiling, (0, 1))


def note_below(
    figure: go.Figure, values: np.ndarray, lowest: float, index: int, *, height: float | None = None
) -> None:
    """Say in the panel `index` how many values lie below its axis, and how deep; nothing where none does.

    Args:
        figure: drawn on.
        values: of the panel, percent.
        lowest: of the axis.
        index: of the panel.
        height: of the marks that stand for them, above which the note stands; None: there are none, and it stands at
            the bottom.
    """
    below = values[values < lowest]
    if not len(below):
        return
    figure.add_annotation(
        xref=f"{axis_id('x', index)} domain",
        yref=f"{axis_id('y', index)} domain" if height is None else axis_id("y", index),
        x=0.99,
        y=0.01 if height is None else height,
        yshift=0 if height is None else 6,
        xanchor="right",
        yanchor="bottom",
        text=f"▾ {len(below):,} below, down to {below.min():.1f}\u00a0%",
        showarrow=False,
        bgcolor=LABEL_PAPER,
        borderpad=1,
        font={"size": 12, "color": MUTED},
    )


def zoomed_asr(asr_ceiling: float) -> float:
    """Right end of the second panel, percent."""
    return min(100.0, 200 * asr_ceiling)


def dotted_line(figure: go.Figure, height: float, index: int) -> None:
    """A dotted line through the panel `index` at `height`, in units of its vertical axis."""
    figure.add_shape(
        type="line",
        xref=f"{axis_id('x', index)} domain",
        yref=axis_id("y", index),
        x0=0,
        x1=1,
        y0=height,
        y1=height,
        line={"color": FAINT, "width": 1, "dash": "dot"},
        layer="below",
    )


def upright_line(figure: go.Figure, place: float, index: int) -> None:
    """The ceiling as a dashed line in the panel `index` at `place`, in units of its horizontal axis."""
    figure.add_shape(
        type="line",
        xref=axis_id("x", index),
        yref=f"{axis_id('y', index)} domain",
        x0=place,
        x1=place,
        y0=0,
        y1=1,
        line={"color": CLEANED_LINE, "width": 1.3, "dash": "dash"},
        layer="below",
    )


NAME_WIDTH = 22
"""Letters in a line above a panel: what three panels beside each other have room for."""


def name_panel(figure: go.Figure, name: str, index: int) -> None:
    """Write a name above the panel `index`, in two lines; what stands in it after the first comma, in a third."""
    first, _, rest = name.partition(", ")
    head, tail = _halves(first)
    lines = [f"<b>{label(head, NAME_WIDTH)}</b>", f"<b>{label(tail, NAME_WIDTH)}</b>", label(rest, NAME_WIDTH)]
    figure.add_annotation(
        xref=f"{axis_id('x', index)} domain",
        yref=f"{axis_id('y', index)} domain",
        x=0,
        y=1,
        xanchor="left",
        yanchor="bottom",
        align="left",
        text="<br>".join(line for line, text in zip(lines, (head, tail, rest), strict=True) if text),
        showarrow=False,
        font={"size": 12, "color": INK},
    )


def _halves(name: str) -> tuple[str, str]:
    """A name as what fits into a line, broken after a mark that may stand in names, and the rest."""
    if len(name) <= NAME_WIDTH:
        return name, ""
    ends = [place + 1 for place, letter in enumerate(name[:NAME_WIDTH]) if letter in "-_/. "] or [NAME_WIDTH]
    return name[: ends[-1]], name[ends[-1] :]


def side_by_side(figure: go.Figure, *, count: int = 2, panel: int = 270, y_title: str = "") -> go.Figure:
    """Lay a figure's `count` panels out beside each other, and below each other where it is narrow.

    Args:
        figure: whose axes have titles of their own, or one for each row's first.
        count: panels.
        panel: pixels, height of one.
        y_title: on the first panel of each row; empty: each axis keeps its own.
    """
    figure.update_layout(template=TEMPLATE, margin={"l": 58, "r": 18})
    wide = panels(count, min(count, 2), panel=panel, between=0.055 if y_title else 0.11, y_title=y_title)
    narrow = panels(count, 1, panel=220, top=30, y_title=y_title)
    if not y_title:
        wide, narrow = ({key: value for key, value in one.items() if ".title" not in key} for one in (wide, narrow))
    return responsive(figure, wide=wide, narrow=narrow)


def accuracy_range(accuracies: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Ends of an accuracy axis, percent: from 0, unless all values lie in the upper part; with headroom.

    Values far below the others (Tukey's fence: the lower quartile less 1.5 times the distance of the quartiles) have no
    part in it: one destroyed epoch would else squeeze all others together. `note_below` says that they are there.
    """
    values = 100 * np.asarray(accuracies, dtype=float)
    first, third = np.quantile(values, (0.25, 0.75))
    fence = first - 1.5 * max(third - first, 0.01 * third)
    low, high = float(values[values >= fence].min()), float(values.max())
    if low < 0.5 * high or high == 0:
        return 0.0, max(1.0, 1.07 * high)
    room = max(0.08 * (high - low), 0.01 * high)
    return low - room, high + room


def time_unit(hours: float) -> tuple[str, int]:
    """The unit in which an axis of so many hours is read, and how many of it an hour has."""
    return ("hours", 1) if hours >= 2 else ("minutes", 60) if hours >= 2 / 60 else ("seconds", 3600)


def focused_range(
    accuracies: np.ndarray, good: Sequence[float] | np.ndarray, victim: float | None = None
) -> tuple[float, float]:
    """Ends of an accuracy axis, percent, on which the good values can be told apart: what lies below the best three
    quarters of them has no part in it, since one of a destroyed model would squeeze all others together.
    `accuracy_range` of all where fewer than two are good.

    Args:
        accuracies: all of the panel, not empty.
        good: those of them that matter.
        victim: its accuracy, which is in the panel too where that does not squeeze the others.
    """
    values = accuracies if len(good) < 2 else accuracies[accuracies >= np.quantile(good, 0.25)]
    if victim is not None and abs(victim - values.max()) <= max(np.ptp(values), 0.02):
        values = np.append(values, victim)
    return accuracy_range(values)


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks of a logarithmic axis in one notation: powers of ten, with 2 and 5 between them below two decades.

    Args:
        low: the smallest value on the axis, above 0.
        high: the largest.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > 2 else (1, 2, 5)
    values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    # The ticks on both sides of the data stay, so that an axis has two at least.
    inside = [value for value in values if low / 1.3 <= value <= high * 1.3]
    if len(inside) < 3 and high > 1.5 * low:
        digits = [step * 10.0**power for power in range(first, last) for step in range(1, 10)]
        inside = [value for value in digits if low / 1.1 <= value <= high * 1.1]
    while len(inside) > 7:
        inside = inside[::2]
    chosen = inside if len(inside) > 1 else values
    shown = [value for value, text in zip(chosen, spaced(chosen, is_log=True), strict=True) if text]
    return {"type": "log", "tickvals": shown, "ticktext": number_texts(shown)}


def spaced(values: Sequence[float], *, is_log: bool, width: float = 160) -> list[str]:
    """The texts of some ascending ticks, empty where there is no room between the one before and the next; the first
    one stays.

    Args:
        values: of the ticks.
        is_log: whether the axis is logarithmic.
        width: pixels between the first and the last tick, at least; of three panels beside each other by default.
    """
    places = np.log10(values) if is_log else np.asarray(values, dtype=float)
    scale = width / (np.ptp(places) or 1.0)
    texts = number_texts(values)
    last = 0
    for index in range(1, len(texts)):
        room = LETTER * (len(texts[last]) + len(texts[index])) / 2 + 4
        if scale * (places[index] - places[last]) < room:
            texts[index] = ""
        else:
            last = index
    return texts


LETTER = 7.0
"""Pixels, of a tick's text."""


def number_texts(values: Sequence[float]) -> list[str]:
    """The numbers of an axis in one notation: 0.05 and 20, or 5e-2 and 1e-5; of broken ones three digits."""
    sizes = [abs(value) for value in values if value]
    if sizes and (min(sizes) < 0.001 or max(sizes) >= 100_000):
        return [_in_powers(value) if value else "0" for value in values]
    return [f"{value if value == round(value) else float(f'{value:.3g}'):.10g}" for value in values]


def _in_powers(value: float) -> str:
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"
