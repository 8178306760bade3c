"""Colours, type, sizes and the plotly configuration that all views share."""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from sweeplab import records

# Okabe and Ito's palette, which stays distinct under every common colour blindness.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
VERMILLION = "#D55E00"
BLACK = "#000000"

INK = "#1d2733"
MUTED = "#56616e"
FAINT = "#98a2ae"
GRID = "#e8ebef"
PAPER = "#ffffff"
CLEANED_FILL = "rgba(0, 158, 115, 0.09)"
CLEANED_LINE = "#00724f"
DENSITY = ((0.0, "#dbe9f4"), (0.5, "#6a9fca"), (1.0, "#0b3c66"))

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
        "hoverlabel": {"bgcolor": "white", "bordercolor": FAINT, "font": {"family": FONT, "color": INK}},
        "legend": {"font": {"size": 12, "color": INK}, "bgcolor": "rgba(0,0,0,0)"},
        "hovermode": "closest",
        "dragmode": "zoom",
    }
)


def percent(fraction: float | None, digits: int | None = 1) -> str:
    """As `sweeplab.records.percent`, with a no-break space."""
    return records.percent(fraction, digits).replace(" ", "\u00a0")


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
    count: int, columns: int, *, panel: int, top: int = 52, legend: int = 0, gap: int = 84, y_title: str
) -> dict[str, Any]:
    """Where the axes of `count` panels lie, as plotly relayout paths.

    Args:
        count: panels, filled row by row.
        columns: panels in a row.
        panel: pixels, height of one panel's plot area.
        top: pixels above the first row: plotly's buttons and the label of the ceiling.
        legend: pixels for a legend below the last row's axis title; 0 where it stands elsewhere.
        gap: pixels between two rows (tick labels and axis title).
        y_title: on the first panel of each row.
    """
    rows = -(-count // columns)
    area = rows * panel + (rows - 1) * gap
    between = 0.055 if columns > 1 else 0.0
    width = (1 - between * (columns - 1)) / columns
    bottom = 56 + legend
    height = area + top + bottom
    layout: dict[str, Any] = {"height": height, "margin.t": top, "margin.b": bottom}
    if legend:
        layout["legend.y"] = legend / height
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
    layout: dict[str, Any] = {"meta": {"wide": {"dragmode": "zoom", **wide}, "narrow": {"dragmode": False, **narrow}}}
    for path, value in wide.items():
        *outer, last = path.split(".")
        place = layout
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    figure.update_layout(layout)
    return figure


def shade_cleaned(figure: go.Figure, asr_ceiling: float, indices: Sequence[int] = (0,)) -> None:
    """Shade the region below the ceiling in the panels `indices`, with a dashed line and a label at its edge.

    The label stands beside the region in the first panel, where it is narrow, and above it in the others.
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
            xanchor="right" if index else "left",
            yanchor="bottom",
            text=text if index else f"◂ {text}",
            showarrow=False,
            xshift=0 if index else -4,
            font={"size": 12, "color": CLEANED_LINE},
        )


LEGEND_BELOW: dict[str, Any] = {
    "orientation": "h",
    "xanchor": "left",
    "x": 0,
    "yanchor": "top",
    "yref": "container",
    "y": 0.1,
}


def asr_panels(figure: go.Figure, asr_ceiling: float, accuracy: tuple[float, float]) -> None:
    """Two panels with one accuracy axis: all ASRs, and those up to twice the ceiling; both shaded below it.

    Args:
        asr_ceiling: a fraction.
        accuracy: ends of the accuracy axis, percent.
    """
    zoom = zoomed_asr(asr_ceiling)
    for index, right in enumerate((102.0, zoom)):
        title = f"ASR (%), up to {zoom:g}\u00a0%" if index else "ASR (%)"
        x_axis = {"anchor": axis_id("y", index), "range": [-0.015 * right, right], "title": {"text": title}}
        y_axis = {"anchor": axis_id("x", index), "range": list(accuracy), "nticks": 8}
        if index:
            y_axis["matches"] = "y"
        figure.update_layout({axis_name("x", index): x_axis, axis_name("y", index): y_axis})
    shade_cleaned(figure, asr_ceiling, (0, 1))


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


def accuracy_range(accuracies: Sequence[float]) -> tuple[float, float]:
    """Ends of an accuracy axis, percent: from 0, unless all values lie in the upper part; with headroom."""
    low, high = 100 * min(accuracies), 100 * max(accuracies)
    if low < 0.5 * high or high == 0:
        return 0.0, max(1.0, 1.07 * high)
    room = max(0.08 * (high - low), 0.01 * high)
    return low - room, high + room
