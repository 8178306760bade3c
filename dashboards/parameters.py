"""Retention against each searched parameter."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.evaluation.retention import CleanedTrials
from sweeplab.ranking.leaderboard import Leaderboard, parameter_words
from sweeplab.records import SweepRecord, number_of

MOST_TICKS = 6
"""Values of a parameter that are ticks themselves; of more, round numbers are."""

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
    known = parameter_words(leaderboard.rows)
    measured = [(place, row) for place, row in enumerate(leaderboard.rows) if row.min_asr is not None]
    for name in sweep.parameters:
        places = [place for place, row in measured if row.params.get(name) is not None]
        if not places:
            continue
        rows = [leaderboard.rows[place] for place in places]
        values = [row.params[name] for row in rows]
        words = [known[name][place] for place in places]
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
    """The figure in a sentence or two: what the best trial has, and whether the panels show every trial."""
    trials = frame.drop_duplicates("trial")
    most = _markers_a_panel(frame)
    is_thinned = frame["parameter"].value_counts().max() > most
    shown = f" A panel shows the best {most // 2:,} of its trials and {most - most // 2:,} of the others."
    return _what_the_best_has(frame, trials) + (shown if is_thinned else "")


def _markers_a_panel(frame: pd.DataFrame) -> int:
    return max(2, MOST_MARKERS // frame["parameter"].nunique())


def _what_the_best_has(frame: pd.DataFrame, trials: pd.DataFrame) -> str:
    cleaned = CleanedTrials.of(trials["retention"].tolist())
    head = f"{number_of(frame['parameter'].nunique(), 'searched parameter')}; {cleaned.in_words()}"
    if not cleaned.cleaned:
        return f"{head}."
    best = frame[frame["rank"] == trials.loc[trials["feasible"], "rank"].min()]
    values = ", ".join(f"{row.parameter} {row.word}" for row in best.itertuples())
    return f"{head}; the best has {values}."


def value_table(frame: pd.DataFrame) -> pd.DataFrame:
    """What came of each value of a parameter, or of each quarter of the trials where it has more than eight.

    Columns: `parameter`, `values` (in words), `trials`, `cleaned` (trials), `retention` (the best; missing where
    nothing is cleaned), `lowest_asr` (fractions).
    """
    rows = []
    for name, side in frame.groupby("parameter", sort=False):
        is_few = side["value"].nunique() <= 8
        groups = side["value"] if is_few else pd.qcut(side["value"], 4, duplicates="drop")
        for _, part in side.groupby(groups, observed=True):
            ends = part.sort_values("value")["word"]
            words = ends.iloc[0] if is_few or len(part) == 1 else f"{ends.iloc[0]} to {ends.iloc[-1]}"
            counts = (len(part), int(part["feasible"].sum()))
            rows.append((name, words, *counts, part["retention"].max(), part["min_asr"].min()))
    return pd.DataFrame(rows, columns=["parameter", "values", "trials", "cleaned", "retention", "lowest_asr"])


def draw_parameters(frame: pd.DataFrame, *, asr_ceiling: float) -> go.Figure:
    """One panel a parameter; trials without a cleaned epoch stand in a strip below, by their lowest ASR.

    Cleaned trials that keep far less than the others stand at the lower end of the axis of retention, and a note says
    how many they are.

    Args:
        frame: of `parameter_points`, not empty.
        asr_ceiling: a fraction; the upper end of the strip, whose lower one is an ASR of 100 %.
    """
    figure = go.Figure()
    names = list(dict.fromkeys(frame["parameter"]))
    kept = frame.loc[frame["feasible"], "retention"].tolist()
    fence, high = style.accuracy_range([*kept, 1.0] if kept else [0.0, 1.0])
    frame = frame.assign(is_low=100 * frame["retention"] < fence)
    # A lane for those below the fence and for the note of them.
    low = fence - 0.1 * (high - fence) if frame["is_low"].any() else fence
    height = high - low
    strip = None if frame["feasible"].all() else (low - 0.34 * height, low - 0.08 * height)
    bottom = low if strip is None else strip[0] - 0.05 * height
    columns = len(names) if len(names) <= 3 else 2 if len(names) == 4 else 3
    for index, name in enumerate(names):
        side = frame[frame["parameter"] == name]
        points = thinned(side, _markers_a_panel(frame))
        cleaned = points["feasible"] & (points["rank"] > 1)
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        for chosen, kind in (
            (points[~points["feasible"]], "strip"),
            (points[cleaned & ~points["is_low"]], "cleaned"),
            (points[cleaned & points["is_low"]], "low"),
            (points[points["feasible"] & (points["rank"] == 1)], "best"),
        ):
            heights = 100 * chosen["retention"].to_numpy()
            if kind == "low":
                heights = np.full(len(chosen), low)
            if kind == "strip" and strip is not None:
                heights = strip_heights(chosen["min_asr"].to_numpy(), strip, asr_ceiling)
            _add_trials(figure, chosen, kind, x=x, y=y, heights=heights)
        style.dotted_line(figure, 100.0, index)
        style.note_below(figure, 100 * side["retention"].dropna().to_numpy(), fence, index, height=low)
        y_axis: dict[str, object] = {"anchor": x, "range": [bottom, high + 0.02 * height], "nticks": 6}
        if strip is not None:
            y_axis |= _strip_ticks((fence, high), strip, asr_ceiling)
            figure.add_shape(
                type="rect",
                xref=f"{x} domain",
                yref=y,
                x0=0,
                x1=1,
                y0=bottom,
                y1=strip[1] + 0.03 * height,
                fillcolor=style.STRIP,
                line_width=0,
                layer="below",
            )
        x_axis = _x_axis(points, 160 if columns == 3 else 220) | {
            "title": {"text": style.label(name), "font": {"color": style.INK}}
        }
        figure.update_layout(
            {style.axis_name("x", index): {"anchor": y, **x_axis}, style.axis_name("y", index): y_axis}
        )
    figure.update_layout(template=style.TEMPLATE, margin={"l": 76, "r": 18})
    title = "retention (%)"
    return style.responsive(
        figure,
        wide=style.panels(len(names), columns, panel=250, between=0.075, y_title=title),
        narrow=style.panels(len(names), 1, panel=230, top=30, y_title=title),
    )


def strip_heights(lowest_asr: np.ndarray, strip: tuple[float, float], asr_ceiling: float) -> np.ndarray:
    """(trials,) where trials without a cleaned epoch stand: the higher in the strip, the closer to the ceiling."""
    share = (lowest_asr - asr_ceiling) / (1 - asr_ceiling)
    return np.asarray(strip[1] - share.clip(0, 1) * (strip[1] - strip[0]))


def _strip_ticks(ends: tuple[float, float], strip: tuple[float, float], asr_ceiling: float) -> dict[str, object]:
    """Ticks of retention above the strip, and of the lowest ASR at its ends."""
    low, high = ends
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / step <= 5)
    values = [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
    texts = ["ASR 100", f"ASR {100 * asr_ceiling:g}", *(f"{value:g}" for value in values)]
    return {"tickvals": [*strip, *values], "ticktext": texts}


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
    "strip": (
        "no cleaned epoch: by its lowest ASR",
        {"symbol": "circle-open", "size": 7, "color": style.FAINT, "line": {"width": 1.2}},
    ),
    "cleaned": (
        "cleaned trial",
        {"symbol": "circle", "size": 8, "color": style.BLUE, "line": {"width": 0.8, "color": style.PAPER}},
    ),
    "low": (
        "cleaned trial, keeps less than the axis shows",
        {"symbol": "triangle-down", "size": 9, "color": style.BLUE, "line": {"width": 0.8, "color": style.PAPER}},
    ),
    "best": (
        "best of the sweep",
        {"symbol": "diamond", "size": 14, "color": style.ORANGE, "line": {"width": 1.2, "color": style.INK}},
    ),
}


def _add_trials(figure: go.Figure, points: pd.DataFrame, kind: str, *, x: str, y: str, heights: np.ndarray) -> None:
    if points.empty:
        return
    name, marker = _MARKERS[kind]
    if kind == "cleaned" and len(points) > 300:
        marker = marker | {"size": 5, "line": {"width": 0}}
    if kind == "strip" and len(points) > 300:
        marker = marker | {"size": 5}
    values = points["value"].to_numpy(dtype=float)
    if (points["scale"] == "category").all():
        # Trials with one word would lie on top of each other: the golden ratio of their number spreads them.
        values = values + 0.44 * ((points["trial"].to_numpy() * 0.618034) % 1 - 0.5)
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


def _x_axis(points: pd.DataFrame, width: float) -> dict[str, object]:
    """Type and ticks of a panel's horizontal axis, which is so many pixels wide at least."""
    scale = points["scale"].iloc[0]
    tried = sorted(set(points["value"]))
    if scale != "category" and len(tried) <= MOST_TICKS:
        texts = style.spaced(tried, is_log=scale == "log", width=width)
        return {"type": scale, "tickvals": tried, "ticktext": texts, "tickangle": 0}
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
