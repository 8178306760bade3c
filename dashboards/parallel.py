"""Parallel coordinates: every trial as a line through its setting, to what it kept."""

import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from dashboards.parameters import thinned
from sweeplab.records import number_of

MOST_LINES = 300
"""Trials drawn: the better half by rank, and an even sample of the others."""

BANDS = 4
"""Of retention, each with a colour of its own."""

NONE = -0.12
"""The place, below an axis, of trials without the parameter or without a cleaned epoch."""


def parallel_points(points: pd.DataFrame) -> pd.DataFrame:
    """One row a trial and axis: the searched parameters, then the outcome.

    Columns: `trial`, `rank`, `axis` (its name; the last is `retention`), `place` (0 at the axis' lower end, 1 at its
    upper one, `NONE` below it), `word`, `band` (0: not cleaned; 1 to 4: a quarter of the cleaned trials each, the last
    the best).

    Args:
        points: of `parameters.parameter_points`.
    """
    trials = points.drop_duplicates("trial")
    kept = trials.dropna(subset="retention").sort_values("rank", ascending=False)
    behind = np.arange(len(kept))[::-1]  # trials that are better
    bands = dict(zip(kept["trial"], BANDS - behind * BANDS // max(len(kept), 1), strict=True))
    pieces = []
    for name, side in points.groupby("parameter", sort=False):
        along = np.log10(side["value"]) if side["scale"].iloc[0] == "log" else side["value"]
        span = along.max() - along.min()
        place = (along - along.min()) / span if span else along * 0 + 0.5
        placed = side[["trial", "word"]].assign(place=place)
        everyone = trials[["trial", "rank"]].merge(placed, on="trial", how="left")
        pieces.append(everyone.fillna({"word": "none", "place": NONE}).assign(axis=name))
    low, high = kept["retention"].min(), kept["retention"].max()
    ends = ((trials["retention"] - low) / (high - low if high > low else 1)).fillna(NONE)
    digits = 1 if style.percent(low) != style.percent(high) or low == high else 2
    words = [style.percent(value if value == value else None, digits) for value in trials["retention"]]
    pieces.append(trials[["trial", "rank"]].assign(word=words, axis="retention", place=ends))
    result = pd.concat(pieces, ignore_index=True)
    return result.assign(band=result["trial"].map(bands).fillna(0).astype(int))


def describe_parallel(frame: pd.DataFrame) -> str:
    """The figure in a sentence or two: where the best quarter lies closer together than all trials, and whether all
    trials are drawn."""
    num = frame["trial"].nunique()
    sentence = _where_the_best_lie(frame)
    if num <= MOST_LINES:
        return sentence
    half = MOST_LINES // 2
    return f"{sentence} {MOST_LINES} of {num:,} trials are drawn: the best {half} and a sample of the others."


def _where_the_best_lie(frame: pd.DataFrame) -> str:
    """Of the parameters that every trial of the best quarter has."""
    counts = frame[frame["place"] >= 0].groupby("axis", sort=False)["place"].nunique()
    best = frame[frame["band"] == BANDS]
    lowest = best.groupby("axis")["place"].min()
    names = [str(name) for name in counts[counts > 1].index if name != "retention" and lowest.get(name, NONE) >= 0]
    if best["trial"].nunique() < 3 or not names:
        return f"{number_of(frame['trial'].nunique(), 'trial')}; too few are cleaned to tell where the good ones lie."
    widths = {name: best.loc[best["axis"] == name, "place"] for name in names}
    spans = {name: float(places.max() - places.min()) for name, places in widths.items()}
    narrow = min(spans, key=lambda name: spans[name])
    if spans[narrow] > 0.8:
        return "The best quarter of the cleaned trials is spread over the whole range of every parameter."
    side = best[best["axis"] == narrow].sort_values("place")
    return (
        f"The best quarter of the cleaned trials lies closest together in {narrow}: from {side['word'].iloc[0]} to "
        f"{side['word'].iloc[-1]}, {100 * spans[narrow]:.0f}\u00a0% of its range."
    )


def _in_lines(name: str) -> str:
    """A name broken after its marks, each line as wide as an axis has room for."""
    return "<br>".join(style.label(part, 13) for part in re.findall("[^_]*_|[^_]+", name))


def _write_ends(figure: go.Figure, side: pd.DataFrame, axis: int) -> None:
    """The values at both ends of an axis, and what stands below it."""
    along = side[side["place"] >= 0].sort_values("place")
    below = side[side["place"] < 0].assign(word="none" if side["axis"].iloc[0] != "retention" else "not cleaned")
    ends = [(along.head(1), "top"), (along.tail(1), "bottom")]
    for end, anchor in [*(ends if along["place"].nunique() > 1 else ends[:1]), (below.head(1), "top")]:
        for word, place in zip(end["word"], end["place"], strict=True):
            figure.add_annotation(
                x=axis,
                y=place,
                yshift=-6 if anchor == "top" else 6,
                text=style.label(str(word), 12),
                showarrow=False,
                yanchor=anchor,
                bgcolor=style.LABEL_PAPER,
                font={"size": 11, "color": style.MUTED},
            )


def draw_parallel(frame: pd.DataFrame) -> go.Figure:
    """A line a trial, of `MOST_LINES` trials at most, the best quarter on top.

    Args:
        frame: of `parallel_points`, not empty.
    """
    figure = go.Figure()
    names = list(dict.fromkeys(frame["axis"]))
    drawn = frame[frame["trial"].isin(thinned(frame.drop_duplicates("trial"), MOST_LINES)["trial"])]
    order = {name: place for place, name in enumerate(names)}
    colours = (style.OTHERS, style.SKY, style.GREEN, style.BLUE, style.ORANGE)
    shares = ("not cleaned", "lowest quarter of the cleaned", "second quarter", "third quarter", "best quarter")
    for band, (colour, name) in enumerate(zip(colours, shares, strict=True)):
        mine = drawn[drawn["band"] == band].assign(order=lambda part: part["axis"].map(order))
        mine = mine.sort_values(["trial", "order"])
        if mine.empty:
            continue
        # One trace a band, its trials told apart by gaps.
        gaps = mine.drop_duplicates("trial").assign(order=len(names), place=np.nan)
        line = pd.concat([mine, gaps]).sort_values(["trial", "order"])
        figure.add_scatter(
            x=line["order"].clip(upper=len(names) - 1).to_numpy(dtype=float),
            y=line["place"].to_numpy(dtype=float),
            customdata=line["trial"].to_numpy(),
            mode="lines+markers",
            line={"color": colour, "width": 2 if band == BANDS else 1},
            marker={"color": colour, "size": 4},
            name=name,
            hovertemplate="%{hovertext}<extra></extra>",
        )
    for name in names:
        _write_ends(figure, frame[frame["axis"] == name], order[name])
    figure.update_layout(
        template=style.TEMPLATE,
        margin={"l": 40, "r": 40},
        xaxis={
            "tickvals": list(range(len(names))),
            "ticktext": [_in_lines(name) for name in names],
            "range": [-0.4, len(names) - 0.6],
            "tickangle": 0,
        },
        yaxis={"visible": False, "range": [-0.22, 1.12]},
    )
    layout = {"margin.t": 24, "margin.b": 70}
    # A narrow page shows the axes from the top down, for which there is room.
    return style.responsive(figure, wide={**layout, "height": 420}, narrow={**layout, "height": 420})
