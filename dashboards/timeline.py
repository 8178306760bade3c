"""When each attempt of a trial ran, and what the sweep cost."""

import heapq
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.ranking.costs import Attempt, Costs
from sweeplab.records import number_of

MOST_BARS = 2_000
"""Attempts drawn, the last ones."""


def attempt_bars(attempts: Sequence[Attempt], states: Mapping[int, str], until_ms: int) -> pd.DataFrame:
    """One row an attempt, by its beginning.

    Columns: `trial`, `began`, `ended` (hours since the first of all), `lane` (from 1 on; attempts that run at the same
    time have different ones), `workers`, `outcome` (`broken`: it ended without ending its trial; else the state
    of the trial).

    Args:
        attempts: of the sweep.
        states: of the trials, by number.
        until_ms: the end of attempts that no event ends, milliseconds since 1970.
    """
    ordered = sorted(attempts, key=lambda attempt: (attempt.began, attempt.trial))
    first = ordered[0].began if ordered else 0
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    rows = []
    for attempt in ordered:
        while busy and busy[0][0] <= attempt.began:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy) + 1
        ended = attempt.ended if attempt.ended is not None else max(until_ms, attempt.began)
        heapq.heappush(busy, (ended, lane))
        outcome = "broken" if attempt.is_broken else states.get(attempt.trial, "waiting")
        hours = ((attempt.began - first) / 3_600_000, (ended - first) / 3_600_000)
        rows.append((attempt.trial, *hours, lane, attempt.workers, outcome))
    return pd.DataFrame(rows, columns=["trial", "began", "ended", "lane", "workers", "outcome"])


def cost_table(costs: Costs) -> pd.DataFrame:
    """What was spent by workers and GPUs. Columns: `what`, `time` (in words), `hours`."""
    rows = {
        "all attempts, workers": costs.worker_seconds,
        "all attempts, GPUs": costs.gpu_seconds,
        "behind points of finished trials, workers": costs.useful_seconds,
        "lost with failed trials": costs.wasted_by_failure,
        "spent on trials that were stopped early": costs.wasted_by_pruning,
        "repeated after interruptions": costs.wasted_by_repetition,
    }
    cells = [(what, style.duration(seconds), seconds / 3600) for what, seconds in rows.items()]
    return pd.DataFrame(cells, columns=["what", "time", "hours"])


def describe_timeline(frame: pd.DataFrame, costs: Costs) -> str:
    """The figure in one sentence."""
    lanes = int(frame["lane"].max())
    together = f"up to {lanes}" if lanes > 1 else "one"
    lost = costs.wasted_by_failure + costs.wasted_by_repetition
    gpus = f", {style.duration(costs.gpu_seconds)} of GPUs" if costs.gpu_seconds else ""
    share = style.percent(lost / costs.worker_seconds, 0) if lost else "nothing"
    return (
        f"{number_of(len(frame), 'attempt')} within {style.duration(3600 * frame['ended'].max())}, {together} at a "
        f"time: {style.duration(costs.worker_seconds)} of workers{gpus}; {share} of it lost to failures and repetition."
    )


def draw_timeline(frame: pd.DataFrame) -> go.Figure:
    """A bar an attempt.

    Args:
        frame: of `attempt_bars`, not empty.
    """
    figure = go.Figure()
    shown = frame.tail(MOST_BARS)
    last = float(shown["ended"].max())
    unit, per_hour = style.time_unit(last)
    colours = {
        "finished": style.BLUE,
        "pruned": style.SKY,
        "running": style.GREEN,
        "broken": style.ORANGE,
        "failed": style.VERMILLION,
    }
    for outcome, colour in colours.items():
        mine = shown[shown["outcome"] == outcome]
        if mine.empty:
            continue
        figure.add_bar(
            x=per_hour * (mine["ended"] - mine["began"]).to_numpy(),
            base=per_hour * mine["began"].to_numpy(),
            y=mine["lane"].to_numpy(),
            orientation="h",
            marker={"color": colour, "line": {"width": 1, "color": style.PAPER}},
            customdata=mine["trial"].to_numpy(),
            name=f"{outcome}: the next attempt went on" if outcome == "broken" else outcome,
            hovertemplate="%{hovertext}<br>%{base:.3g} to %{x:.3g} " + unit + "<extra></extra>",
        )
    lanes = int(shown["lane"].max())
    figure.update_layout(
        template=style.TEMPLATE,
        margin={"l": 58, "r": 18},
        barmode="overlay",
        bargap=0.15,
        xaxis={"title": {"text": f"{unit} since the first attempt"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "at a time"}, "range": [lanes + 0.6, 0.4], "dtick": max(1, lanes // 10)},
    )
    layout = {"margin.t": 30, "margin.b": 56, "height": min(560, 150 + 30 * lanes)}
    return style.responsive(figure, wide=layout, narrow=layout)
