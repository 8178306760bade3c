"""How each trial moves through accuracy and ASR, epoch by epoch."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.records import SweepRecord

MOST_TRIALS = 30
"""Trials drawn, from the top of the leaderboard."""

HIGHLIGHTED = (
    (style.ORANGE, "diamond"),
    (style.BLUE, "circle"),
    (style.GREEN, "square"),
    (style.PURPLE, "triangle-up"),
    (style.SKY, "pentagon"),
)
"""Colour and symbol of the first trials; the others are grey."""

PANEL, LABEL = (270, 290), (26, 20)
"""Pixels, width and height: of the smallest panel, and of an epoch's number."""

UNSTABLE_RISE = 0.05
"""A trial is unstable when its ASR rises by more than this (a fraction) after its minimum."""


def trajectory_points(sweep: SweepRecord, leaderboard: Leaderboard, most: int = MOST_TRIALS) -> pd.DataFrame:
    """Every evaluated point, the start too, of the first `most` trials that have one.

    Columns: `rank`, `trial`, `epoch`, `accuracy`, `asr`, `retention` (of the trial; missing where none),
    `unstable` (of the trial), `relapse` (the point of highest ASR after the minimum of an unstable trial).
    """
    columns = ["rank", "trial", "epoch", "accuracy", "asr", "retention", "unstable", "relapse"]
    rows: list[tuple[int, int, float, float, float, float | None, bool, bool]] = []
    trials = {trial.number: trial for trial in sweep.trials}
    drawn = 0
    for row in leaderboard.rows:
        measured = [
            (point.epoch, point.measurement.accuracy, point.measurement.asr)
            for point in sorted(trials[row.trial].points, key=lambda point: point.index)
            if point.measurement.asr is not None
        ]
        if not measured:
            continue
        if drawn == most:
            break
        drawn += 1
        relapse = relapse_index([asr for _, _, asr in measured])
        for index, (epoch, accuracy, asr) in enumerate(measured):
            unstable = relapse is not None
            rows.append((row.rank, row.trial, epoch, accuracy, asr, row.retention, unstable, index == relapse))
    return pd.DataFrame(rows, columns=columns)


def relapse_index(rates: list[float]) -> int | None:
    """Where the ASR is highest after its last minimum, if more than `UNSTABLE_RISE` above it; else None."""
    values = np.asarray(rates)
    lowest = len(values) - 1 - int(np.argmin(values[::-1]))
    highest = lowest + int(np.argmax(values[lowest:]))
    return highest if values[highest] - values[lowest] > UNSTABLE_RISE else None


def describe_trajectories(frame: pd.DataFrame) -> str:
    """The figure in one sentence."""
    trials = frame.drop_duplicates("trial")
    unstable = int(trials["unstable"].sum())
    rise = f"{100 * UNSTABLE_RISE:g} points"
    if len(trials) == 1:
        verb = "rises" if unstable else "never rises"
        return f"The only trial so far; its ASR {verb} by more than {rise} again."
    return (
        f"The first {len(trials)} trials of the leaderboard; in {unstable or 'none'} of them the ASR rises "
        f"by more than {rise} again."
    )


def draw_trajectories(frame: pd.DataFrame, *, asr_ceiling: float) -> go.Figure:
    """One line a trial, markers growing with the epoch, which is named where there is room.

    Args:
        frame: of `trajectory_points`, not empty.
        asr_ceiling: a fraction.
    """
    figure = go.Figure()
    last_epoch = max(float(frame["epoch"].max()), 1.0)
    ranks = sorted(frame["rank"].unique())
    highlighted = list(zip(ranks, HIGHLIGHTED, strict=False))
    relapses = frame[frame["relapse"]]
    near = frame[100 * frame["asr"] <= style.zoomed_asr(asr_ceiling)]
    shown = frame, near if len(near) else frame
    good = frame[frame["asr"] < asr_ceiling].groupby("trial")["accuracy"].max().to_numpy()
    heights = [style.accuracy_range(frame["accuracy"].to_numpy())]
    heights.append(style.focused_range(shown[1]["accuracy"].to_numpy(), good))
    of_first = frame[frame["rank"].isin(ranks[: len(HIGHLIGHTED)])]
    for index, right in enumerate((102.0, style.zoomed_asr(asr_ceiling))):
        named = numbered_points(of_first, right, heights[index]).index
        _add_others(figure, frame[frame["rank"].isin(ranks[len(HIGHLIGHTED) :])], last_epoch, index=index)
        for rank, (colour, symbol) in reversed(highlighted):
            points = frame[frame["rank"] == rank]
            texts = [f"{epoch:g}" if row in named else "" for row, epoch in points["epoch"].items()]
            _add_line(figure, points, texts, last_epoch, colour=colour, symbol=symbol, index=index)
        if not relapses.empty:
            _add_relapses(figure, relapses, index=index)
    style.asr_panels(figure, asr_ceiling, *heights)
    for index, part in enumerate(shown):
        style.note_below(figure, 100 * part["accuracy"].to_numpy(dtype=float), heights[index][0], index)
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18, "autoexpand": False})
    title = "accuracy (%)"
    return style.responsive(
        figure,
        wide=style.panels(2, 2, panel=360, y_title=title),
        narrow=style.panels(2, 1, panel=300, top=30, y_title=title),
    )


def numbered_points(frame: pd.DataFrame, right: float, heights: tuple[float, float]) -> pd.DataFrame:
    """The points beside which a panel has room for their epoch: the best trial's first, of each its last, its first and
    then the others; no number stands on another.

    Args:
        frame: rows of `trajectory_points`.
        right: end of the axis of ASR, percent.
        heights: ends of that of accuracy, percent.
    """
    low, high = heights
    x = PANEL[0] * 100 * frame["asr"].to_numpy() / right
    y = PANEL[1] * (100 * frame["accuracy"].to_numpy() - low) / (high - low)
    rows = [np.asarray(found) for _, found in sorted(frame.groupby("rank").indices.items())]
    order = [row for found in rows for row in dict.fromkeys((found[-1], found[0], *found))]
    kept: list[int] = []
    for row in order:
        is_inside = x[row] <= PANEL[0] and 0 <= y[row] <= PANEL[1]
        # In the lower right corner stands how many points lie below the panel.
        is_free = y[row] > LABEL[1] or x[row] < PANEL[0] / 3
        if is_inside and is_free and all(abs(x[row] - x[k]) > LABEL[0] or abs(y[row] - y[k]) > LABEL[1] for k in kept):
            kept.append(row)
    return frame.iloc[sorted(kept)]


def _sizes(epochs: pd.Series, last_epoch: float) -> np.ndarray:
    """(points,) pixels, 4 at the start to 11 at the last epoch."""
    return 4 + 7 * epochs.to_numpy(dtype=float) / last_epoch


def _add_line(
    figure: go.Figure,
    points: pd.DataFrame,
    texts: list[str],
    last_epoch: float,
    *,
    colour: str,
    symbol: str,
    index: int,
) -> None:
    first = points.iloc[0]
    kept = "not cleaned" if pd.isna(first["retention"]) else f"keeps {style.percent(first['retention'])}"
    figure.add_scatter(
        **_coordinates(points, index),
        mode="lines+markers+text",
        text=texts,
        textposition="top center",
        textfont={"size": 11, "color": style.MUTED},
        line={"color": colour, "width": 2},
        marker={
            "symbol": symbol,
            "size": _sizes(points["epoch"], last_epoch),
            "color": colour,
            "opacity": 1,
            "line": {"width": 0.8, "color": style.PAPER},
        },
        name=f"trial {int(first['trial'])}, {kept}",
        legendgroup=f"rank {int(first['rank'])}",
        legendrank=int(first["rank"]),
        showlegend=index == 0,
        hovertemplate=style.HOVER,
    )


def _add_others(figure: go.Figure, frame: pd.DataFrame, last_epoch: float, *, index: int) -> None:
    """All trials below the highlighted ones as one grey trace with gaps."""
    if frame.empty:
        return
    gap = pd.DataFrame([{"epoch": 0.0}])
    pieces = [part for _, points in frame.groupby("rank") for part in (points, gap)]
    points = pd.concat(pieces, ignore_index=True)
    figure.add_scatter(
        **_coordinates(points, index),
        mode="lines+markers",
        connectgaps=False,
        line={"color": style.OTHERS, "width": 1},
        marker={"size": 0.7 * _sizes(points["epoch"], last_epoch), "color": style.OTHERS, "opacity": 1},
        name=f"{frame['trial'].nunique()} more",
        legendgroup="others",
        legendrank=100_000,
        showlegend=index == 0,
        hovertemplate=style.HOVER,
    )


def _add_relapses(figure: go.Figure, relapses: pd.DataFrame, *, index: int) -> None:
    figure.add_scatter(
        **_coordinates(relapses, index),
        mode="markers",
        marker={"symbol": "x-open", "size": 12, "color": style.VERMILLION, "line": {"width": 2}},
        name=f"unstable: ASR up by more than {100 * UNSTABLE_RISE:g} points again",
        legendgroup="unstable",
        legendrank=100_001,
        showlegend=index == 0,
        hovertemplate="unstable<br>" + style.HOVER,
    )


def _coordinates(points: pd.DataFrame, index: int) -> dict[str, object]:
    """Trace arguments: where the points lie in the panel `index`, and what they show under the pointer."""
    return {
        "x": 100 * points["asr"].to_numpy(dtype=float),
        "y": 100 * points["accuracy"].to_numpy(dtype=float),
        "customdata": points["trial"].fillna(-1).to_numpy(dtype=int),
        "meta": {"epoch": points["epoch"].to_numpy(dtype=float)},
        "xaxis": style.axis_id("x", index),
        "yaxis": style.axis_id("y", index),
    }
