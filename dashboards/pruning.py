"""Trials that a rule stopped: when, and what that saved."""

import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.records import SweepRecord, number_of


def pruned_trials(sweep: SweepRecord, leaderboard: Leaderboard) -> pd.DataFrame:
    """One row a trial that a rule stopped, in the order of their numbers.

    Columns: `trial`, `epoch` (its last), `saved` (epochs that were left), `lowest_asr`, `retention` (fractions; until
    then, missing where it was not cleaned), `reason`.
    """
    rows = {row.trial: row for row in leaderboard.rows}
    found = [
        {
            "trial": trial.number,
            "epoch": trial.last_epoch or 0.0,
            "saved": sweep.epochs - (trial.last_epoch or 0.0),
            "lowest_asr": rows[trial.number].min_asr,
            "retention": rows[trial.number].retention,
            "reason": trial.reason or "",
        }
        for trial in sweep.trials
        if trial.state == "pruned"
    ]
    columns = ["trial", "epoch", "saved", "lowest_asr", "retention", "reason"]
    return pd.DataFrame(found, columns=columns).astype({"lowest_asr": float, "retention": float})


def describe_pruning(frame: pd.DataFrame, sweep: SweepRecord) -> str:
    """The figure in one sentence."""
    saved, spent = frame["saved"].sum(), sum(trial.last_epoch or 0.0 for trial in sweep.trials)
    share = style.percent(saved / (saved + spent), 0) if saved + spent else "–"
    cleaned = int(frame["retention"].notna().sum())
    already = f"; {cleaned} of them were cleaned already" if cleaned else ""
    return (
        f"Stopped early: {len(frame):,} of {number_of(len(sweep.trials), 'trial')}; saved: "
        f"{number_of(round(saved), 'trial-epoch')} "
        f"({share}){already}. What would have become of them says `sweeplab audit {sweep.name}`."
    )


def draw_pruning(frame: pd.DataFrame, *, epochs: int) -> go.Figure:
    """How many trials were stopped after each epoch.

    Args:
        frame: of `pruned_trials`, not empty.
        epochs: of a whole trial.
    """
    counts = frame["epoch"].value_counts().sort_index()
    figure = go.Figure()
    figure.add_bar(
        x=counts.index.to_numpy(dtype=float),
        y=counts.to_numpy(),
        marker={"color": style.BLUE},
        name="trials stopped after this epoch",
        hovertemplate="after epoch %{x:g}: %{y:,}<extra></extra>",
    )
    figure.update_layout(
        template=style.TEMPLATE,
        margin={"l": 58, "r": 18},
        xaxis={"title": {"text": "epoch"}, "range": [0, epochs + 0.5]},
        yaxis={"title": {"text": "trials"}, "nticks": 6},
    )
    layout = {"margin.t": 30, "margin.b": 56, "height": 300}
    return style.responsive(figure, wide=layout, narrow=layout)
