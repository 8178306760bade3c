"""Retention against each searched parameter."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.ranking.leaderboard import Leaderboard, short_value
from sweeplab.records import SweepRecord

MOST_MARKERS = 6_000
"""Markers over all panels; with more trials a panel shows the best ones and an even sample of the others."""


def parameter_points(sweep: SweepRecord, leaderboard: Leaderboard) -> pd.DataFrame:
    """One row for every searched parameter of every trial that has a point that may win.

    Columns: `parameter`, `scale` (`log`, `linear`, `category`), `value` (the number, or the position among
    the sorted words), `word` (the value in short form), `trial`, `rank`, `feasible`, `retention`, `min_asr`
    (fractions). A parameter that a trial does not have, or that is None there, leaves no row.
    """
    columns = ["parameter", "scale", "value", "word", "trial", "rank", "feasible", "retention", "min_asr"]
    pieces: list[pd.DataFrame] = []
    measured = [row for row in leaderboard.rows if row.min_asr is not None]
    for name in sweep.parameters:
        rows = [row for row in measured if row.params.get(name) is not None]
        if not rows:
            continue
        values = [row.params[name] for row in rows]
        words = [short_value(value) for value in values]
        scale = _scale(values, is_log=name in sweep.log_parameters)
        if scale == "category":
            positions = {word: position for position, word in enumerate(sorted(set(words)))}
            values = [positions[word] for word in words]
        pieces.append(
            pd.DataFrame(
                {
                    "parameter": name,
                    "scale": scale,
                    "value": np.asarray(values, dtype=float),
                    "word": words,
                    "trial": [row.trial for row in rows],
                    "rank": [row.rank for row in rows],
                    "feasible": [row.feasible for row in rows],
                    "retention": np.asarray([row.retention for row in rows], dtype=float),
                    "min_asr": np.asarray([row.min_asr for row in rows], dtype=float),
                }
            )
        )
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=columns)


def _scale(values: list[object], *, is_log: bool) -> str:
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(values) or not all(math.isfinite(number) for number in numbers):
        return "category"
    return "log" if is_log and min(numbers) > 0 else "linear"


def describe_parameters(frame: pd.DataFrame) -> str:
    """The figure in one sentence."""
    trials = frame.drop_duplicates("trial")
    feasible = trials[trials["feasible"]]
    names = frame["parameter"].nunique()
    plural = "" if len(trials) == 1 else "s"
    head = f"{names} searched parameter{'s' if names != 1 else ''}, {len(trials):,} trial{plural}"
    if feasible.empty:
        return f"{head}, none of them cleaned."
    best = frame[frame["rank"] == feasible["rank"].min()]
    values = ", ".join(f"{row.parameter} {row.word}" for row in best.itertuples())
    return f"{head}, {len(feasible):,} of them cleaned; the best has {values}."


def draw_parameters(frame: pd.DataFrame, *, most_markers: int = MOST_MARKERS) -> go.Figure:
    """One panel a parameter; trials without a cleaned epoch stand as a rug below the axis' lowest tick.

    Args:
        frame: of `parameter_points`, not empty.
        most_markers: over all panels.
    """
    figure = go.Figure()
    names = list(dict.fromkeys(frame["parameter"]))
    kept = 100 * frame.loc[frame["feasible"], "retention"]
    low, high = style.accuracy_range([*(kept / 100), 1.0] if len(kept) else [0.0, 1.0])
    rug = low - 0.1 * (high - low)
    for index, name in enumerate(names):
        points = thinned(frame[frame["parameter"] == name], max(2, most_markers // len(names)))
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        for chosen, kind in (
            (points[~points["feasible"]], "rug"),
            (points[points["feasible"] & (points["rank"] > 1)], "cleaned"),
            (points[points["feasible"] & (points["rank"] == 1)], "best"),
        ):
            _add_trials(figure, chosen, kind, x=x, y=y, rug=rug)
        style.dotted_line(figure, 100.0, index)
        figure.update_layout(
            {
                style.axis_name("x", index): {"anchor": y, **_x_axis(points)}
                | {"title": {"text": style.label(name), "font": {"color": style.INK}}},
                style.axis_name("y", index): {
                    "anchor": x,
                    "range": [rug - 0.06 * (high - low), high + 0.02 * (high - low)],
                    "nticks": 6,
                    "tick0": 0,
                },
            }
        )
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18})
    title = "retention (%)"
    columns = len(names) if len(names) <= 3 else 2 if len(names) == 4 else 3
    return style.responsive(
        figure,
        wide=style.panels(len(names), columns, panel=230, y_title=title),
        narrow=style.panels(len(names), 1, panel=210, top=30, y_title=title),
    )


def thinned(points: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most `most` rows: the better half by rank, the other half an even sample of what is left."""
    if len(points) <= most:
        return points
    ordered = points.sort_values("rank")
    head = ordered.iloc[: most // 2]
    rest = ordered.iloc[most // 2 :]
    sample = np.linspace(0, len(rest) - 1, most - len(head)).astype(int)
    return pd.concat([head, rest.iloc[sample]])


_MARKERS: dict[str, tuple[str, dict[str, object]]] = {
    "rug": (
        "no cleaned epoch (rug)",
        {"symbol": "line-ns-open", "size": 11, "color": style.MUTED, "line": {"width": 1.4}},
    ),
    "cleaned": (
        "cleaned trial",
        {"symbol": "circle", "size": 8, "color": style.BLUE, "line": {"width": 0.8, "color": style.PAPER}},
    ),
    "best": (
        "best of the sweep",
        {"symbol": "diamond", "size": 14, "color": style.ORANGE, "line": {"width": 1.2, "color": style.INK}},
    ),
}


def _add_trials(figure: go.Figure, points: pd.DataFrame, kind: str, *, x: str, y: str, rug: float) -> None:
    if points.empty:
        return
    name, marker = _MARKERS[kind]
    if kind == "cleaned" and len(points) > 300:
        marker = marker | {"size": 5, "opacity": 0.6, "line": {"width": 0}}
    if kind == "rug" and len(points) > 100:
        marker = marker | {"opacity": 0.3}
    values = points["value"].to_numpy(dtype=float)
    if (points["scale"] == "category").all():
        # Trials with one word would lie on top of each other: the golden ratio of their number spreads them.
        values = values + 0.44 * ((points["trial"].to_numpy() * 0.618034) % 1 - 0.5)
    heights = np.full(len(points), rug) if kind == "rug" else 100 * points["retention"].to_numpy()
    figure.add_scatter(
        x=values,
        y=heights,
        xaxis=x,
        yaxis=y,
        customdata=points["trial"].to_numpy(),
        mode="markers",
        marker=marker,
        name=name,
        legendgroup=kind,
        showlegend=not any(trace.legendgroup == kind for trace in figure.data),
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _x_axis(points: pd.DataFrame) -> dict[str, object]:
    scale = points["scale"].iloc[0]
    if scale == "log":
        return style.log_ticks(float(points["value"].min()), float(points["value"].max()))
    if scale == "linear":
        return {"type": "linear", "nticks": 7}
    words = points.drop_duplicates("word").sort_values("value")
    return {
        "type": "linear",
        "tickvals": words["value"].tolist(),
        "ticktext": [style.label(word, 14) for word in words["word"]],
        "range": [-0.6, float(words["value"].max()) + 0.6],
    }
