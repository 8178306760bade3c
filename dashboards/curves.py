"""The loss and its parts over the steps of the best trials (PAR, Fig. 4 and 9: L_CLIP and L_PERT)."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.records import SweepRecord

MOST_TRIALS = 5
"""Trials drawn, from the top of the leaderboard."""
MOST_STEPS = 500
"""Steps drawn of each line; longer ones are thinned evenly, ends kept."""
LINES = (
    (style.ORANGE, "solid"),
    (style.BLUE, "dash"),
    (style.GREEN, "dot"),
    (style.PURPLE, "dashdot"),
    (style.SKY, "solid"),
)
"""Colour and dash of the trials."""


def curve_points(sweep: SweepRecord, leaderboard: Leaderboard, most: int = MOST_TRIALS) -> pd.DataFrame:
    """The recorded losses of the first `most` trials that have some.

    Columns: `rank`, `trial`, `step` (optimizer updates), `part` (`loss`, which is what is minimised, and its unweighted
    parts), `value`. Empty unless the sweep set `log_every`.
    """
    rows: list[tuple[int, int, int, str, float]] = []
    trials = {trial.number: trial for trial in sweep.trials}
    drawn = 0
    for row in leaderboard.rows:
        if not trials[row.trial].has_curve:
            continue
        entries = [entry for point in trials[row.trial].points for entry in point.curve]
        if drawn == most:
            break
        drawn += 1
        rows += [
            (row.rank, row.trial, int(entry["step"]), part, value)
            for entry in entries
            for part, value in entry.items()
            if part != "step"
        ]
    return pd.DataFrame(rows, columns=["rank", "trial", "step", "part", "value"])


def describe_curves(frame: pd.DataFrame) -> str:
    """The figure in one sentence."""
    parts = [part for part in dict.fromkeys(frame["part"]) if part != "loss"]
    trials = frame["trial"].nunique()
    who = "The only trial with a recorded loss" if trials == 1 else f"The first {trials} trials of the leaderboard"
    made = f", and {', '.join(parts)}, of which it is made" if parts else ""
    return f"{who}, to step {int(frame['step'].max()):,}: the loss{made}."


def draw_curves(frame: pd.DataFrame) -> go.Figure:
    """One panel for the loss and one for each of its parts, a line a trial.

    Args:
        frame: of `curve_points`, not empty.
    """
    figure = go.Figure()
    parts = list(dict.fromkeys(frame["part"]))
    for index, part in enumerate(parts):
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        mine = frame[frame["part"] == part]
        for (rank, trial), (colour, dash) in zip(
            sorted(set(zip(frame["rank"], frame["trial"], strict=True))), LINES, strict=False
        ):
            points = thinned(mine[mine["trial"] == trial].sort_values("step"))
            if points.empty:
                continue
            name = f"trial {trial}"
            figure.add_scatter(
                x=points["step"].to_numpy(),
                y=points["value"].to_numpy(),
                xaxis=x,
                yaxis=y,
                mode="lines" if len(points) > 1 else "markers",
                line={"color": colour, "dash": dash, "width": 1.6},
                name=name,
                legendgroup=name,
                legendrank=int(rank),
                showlegend=not any(trace.legendgroup == name for trace in figure.data),
                hovertemplate=f"{name}, step %{{x:,}}<br>{style.label(part)} %{{y:.4g}}<extra></extra>",
            )
        figure.update_layout(
            {
                style.axis_name("x", index): {
                    "anchor": y,
                    "nticks": 6,
                    "title": {"text": f"{style.label(part)}, over steps", "font": {"color": style.INK}},
                },
                style.axis_name("y", index): {"anchor": x, "nticks": 6},
            }
        )
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18})
    columns = min(len(parts), 3) if len(parts) != 4 else 2
    return style.responsive(
        figure,
        wide=style.panels(len(parts), columns, panel=230, y_title="nats or distance"),
        narrow=style.panels(len(parts), 1, panel=210, top=30, y_title="nats or distance"),
    )


def thinned(points: pd.DataFrame, most: int = MOST_STEPS) -> pd.DataFrame:
    """At most `most` rows, evenly spread, first and last kept."""
    if len(points) <= most:
        return points
    return points.iloc[np.linspace(0, len(points) - 1, most).round().astype(int)]
