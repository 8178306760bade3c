"""Seeds: how far trials of one setting lie apart."""

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.ranking.configurations import group_by_configuration
from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.records import number_of

MOST_SETTINGS = 20
"""Settings drawn, from the best on."""


def seed_points(leaderboard: Leaderboard) -> pd.DataFrame:
    """One row a trial of every setting that was run with two seeds at least, the best setting first.

    Columns: `place` (1 is the best setting), `setting` (its first trial, in words), `trial`, `seed`, `retention`
    (missing where it is not cleaned), `lowest_asr`, `mean` and `sd` (of the setting's cleaned trials).
    """
    by_number = {row.trial: row for row in leaderboard.rows}
    counts = Counter(row.configuration for row in leaderboard.rows)
    repeated = tuple(row for row in leaderboard.rows if counts[row.configuration] > 1)
    board = dataclasses.replace(leaderboard, rows=repeated)
    groups = [group for group in group_by_configuration(board) if len(group.trials) > 1 and group.measured > 1]
    rows = [
        {
            "place": place,
            "setting": f"as trial {group.trials[0]}",
            "trial": number,
            "seed": by_number[number].seed,
            "retention": by_number[number].retention,
            "lowest_asr": by_number[number].min_asr,
            "mean": group.retention_mean,
            "sd": group.retention_sd,
        }
        for place, group in enumerate(groups, start=1)
        for number in group.trials
    ]
    columns = ["place", "setting", "trial", "seed", "retention", "lowest_asr", "mean", "sd"]
    return pd.DataFrame(rows, columns=columns).astype(
        {"retention": float, "lowest_asr": float, "mean": float, "sd": float}
    )


def describe_seeds(frame: pd.DataFrame) -> str:
    """The figure in one sentence."""
    settings = frame.drop_duplicates("place")
    spreads = settings["sd"].dropna()
    mixed = frame.groupby("place")["retention"].apply(lambda kept: 0 < kept.notna().sum() < len(kept)).sum()
    some = f"{number_of(len(settings), 'setting')} with two seeds or more"
    flips = f"; {mixed} of them cleaned with one seed and not with another" if mixed else ""
    if spreads.empty:
        return f"{some}; none is cleaned with two seeds{flips}."
    return (
        f"{some}: between seeds the retention varies by {100 * spreads.median():.1f} points (median standard deviation)"
        f", at most by {100 * spreads.max():.1f}{flips}."
    )


def draw_seeds(frame: pd.DataFrame) -> go.Figure:
    """A row a setting, a marker a seed.

    Args:
        frame: of `seed_points`, not empty.
    """
    figure = go.Figure()
    shown = frame[frame["place"] <= MOST_SETTINGS]
    kept = shown.dropna(subset="retention")
    # Left of every trial that is cleaned.
    low = 100 * kept["retention"].min() - max(0.5, 8 * np.ptp(kept["retention"])) if len(kept) else 0.0
    for chosen, name, values, colour, symbol in (
        (kept, "trial of one seed", 100 * kept["retention"], style.BLUE, "circle"),
        (shown[shown["retention"].isna()], "not cleaned with this seed", low, style.FAINT, "circle-open"),
        (
            kept.drop_duplicates("place"),
            "mean",
            100 * kept.drop_duplicates("place")["mean"],
            style.ORANGE,
            "line-ns-open",
        ),
    ):
        if chosen.empty:
            continue
        figure.add_scatter(
            x=values if isinstance(values, pd.Series) else [values] * len(chosen),
            y=chosen["place"].to_numpy(),
            customdata=chosen["trial"].to_numpy(),
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 18 if name == "mean" else 9, "line": {"width": 2}},
            name=name,
            hovertemplate="mean %{x:.1f} %<extra></extra>" if name == "mean" else "%{hovertext}<extra></extra>",
        )
    labels = shown.drop_duplicates("place")
    figure.update_layout(
        template=style.TEMPLATE,
        margin={"l": 104, "r": 18},
        xaxis={"title": {"text": "retention (%)"}},
        yaxis={
            "tickvals": labels["place"].tolist(),
            "ticktext": labels["setting"].tolist(),
            "range": [len(labels) + 0.6, 0.4],
        },
    )
    layout = {"margin.t": 30, "margin.b": 56, "height": 110 + 28 * len(labels)}
    return style.responsive(figure, wide=layout, narrow=layout)
