"""The cosines of clean and of poisoned pairs as histograms, a panel a checkpoint (SafeCLIP, Fig. 2)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style

MOST_BINS = 50
"""Over the cosines of all checkpoints; finer ones are joined."""
KINDS = (("clean", style.BLUE, 1.0), ("poisoned", style.VERMILLION, 0.5))
"""Name, colour, and width of a bar as a share of its bin: the narrow ones hide no wide one."""


def histogram_bars(tables: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """One row a bin that holds a pair, kind and checkpoint, all in bins of one width.

    Args:
        tables: the name of each checkpoint and its histogram: `from`, `to`, `clean`, `poisoned` (counts), in bins of
            equal width from -1 on.

    Returns:
        Columns: `place` (of the checkpoint, from 0), `checkpoint`, `kind` (`clean`, `poisoned`), `from` and `to`
        (cosines), `pairs` (a count), `share` (of the checkpoint's pairs of the kind).
    """
    width = float(tables[0][1]["to"].iloc[0] - tables[0][1]["from"].iloc[0])
    low = min(float(table["from"].min()) for _, table in tables)
    high = max(float(table["to"].max()) for _, table in tables)
    joined = max(1, -(-round((high - low) / width) // MOST_BINS))
    parts = []
    for place, (name, table) in enumerate(tables):
        bins = np.round((table["from"].to_numpy() + 1) / width).astype(int) // joined
        for kind, *_ in KINDS:
            pairs = table.groupby(bins)[kind].sum()
            pairs = pairs[pairs > 0]
            starts = -1 + pairs.index.to_numpy() * joined * width
            parts.append(
                pd.DataFrame(
                    {
                        "place": place,
                        "checkpoint": name,
                        "kind": kind,
                        "from": starts,
                        "to": starts + joined * width,
                        "pairs": pairs.to_numpy(),
                        "share": pairs.to_numpy() / max(1, pairs.sum()),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def histogram_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a checkpoint: `place`, `checkpoint`, the counts `num_clean` and `num_poisoned`, the means `clean` and
    `poisoned` (of the middles of the bins; missing where there are no pairs), and `above`: how often a poisoned pair
    has the higher cosine of a poisoned and a clean pair, both drawn at random, where half of those in one bin count."""
    rows = []
    for place, name in enumerate(frame.groupby("place")["checkpoint"].first()):
        part = frame[frame["place"] == place]
        shares = part.pivot(index="from", columns="kind", values="share").reindex(columns=["clean", "poisoned"])
        means = shares.mul(shares.index + (part["to"] - part["from"]).iloc[0] / 2, axis=0).sum(min_count=1)
        clean, poisoned = (shares[kind].fillna(0).to_numpy() for kind in ("clean", "poisoned"))
        above = float(poisoned @ (clean.cumsum() - clean / 2)) if poisoned.any() and clean.any() else np.nan
        counts = part.groupby("kind")["pairs"].sum()
        numbers = [int(counts.get(kind, 0)) for kind in ("clean", "poisoned")]
        rows.append((place, name, *numbers, means["clean"], means["poisoned"], above))
    columns = ["place", "checkpoint", "num_clean", "num_poisoned", "clean", "poisoned", "above"]
    return pd.DataFrame(rows, columns=columns)


def describe_histograms(summary: pd.DataFrame) -> str:
    """The figure in one sentence, of its first and its last checkpoint."""
    sentences = []
    for row in summary.iloc[[0, -1] if len(summary) > 1 else [0]].to_dict("records"):
        if row["num_poisoned"]:
            sentences.append(
                f"{row['checkpoint']}: the mean cosine is {row['poisoned']:.2f} of poisoned pairs and "
                f"{row['clean']:.2f} of clean ones; a poisoned pair lies above a clean one in "
                f"{style.percent(row['above'])} of cases."
            )
        else:
            sentences.append(f"{row['checkpoint']}: no pair is poisoned; the mean cosine is {row['clean']:.2f}.")
    return " ".join(sentences)


def draw_histograms(frame: pd.DataFrame) -> go.Figure:
    """A panel a checkpoint, both kinds over each other, all on the same axes.

    Args:
        frame: of `histogram_bars`, not empty.
    """
    figure = go.Figure()
    for place, name in enumerate(frame.groupby("place")["checkpoint"].first()):
        part = frame[frame["place"] == place]
        x, y = style.axis_id("x", place), style.axis_id("y", place)
        for kind, colour, width in KINDS:
            bars = part[part["kind"] == kind]
            if bars.empty:
                continue
            figure.add_bar(
                x=(bars["from"] + bars["to"]).to_numpy() / 2,
                y=100 * bars["share"].to_numpy(),
                width=width * (bars["to"] - bars["from"]).to_numpy(),
                customdata=bars["pairs"].to_numpy(),
                xaxis=x,
                yaxis=y,
                marker={"color": colour, "line": {"width": 0}},
                name=f"{kind} pairs",
                legendgroup=kind,
                showlegend=not any(trace.legendgroup == kind for trace in figure.data),
                hovertemplate=f"{kind}, cosine %{{x:.3f}}<br>%{{y:.1f}} % (pairs: %{{customdata:,}})<extra></extra>",
            )
        style.name_panel(figure, name, place)
        figure.update_layout(
            {
                style.axis_name("x", place): {
                    "anchor": y,
                    "range": [frame["from"].min(), frame["to"].max()],
                    "nticks": 8,
                    "title": {"text": "cosine of image and caption"},
                },
                style.axis_name("y", place): {
                    "anchor": x,
                    "range": [0, 105 * frame["share"].max()],
                    "nticks": 6,
                },
            }
        )
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18}, barmode="overlay", bargap=0)
    count, title = int(frame["place"].max()) + 1, "pairs of the kind (%)"
    return style.responsive(
        figure,
        wide=style.panels(count, min(count, 3), panel=230, gap=112, y_title=title),
        narrow=style.panels(count, 1, panel=200, gap=112, y_title=title),
    )
