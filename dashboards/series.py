"""Accuracy against ASR of several sweeps: a colour for each series, a panel for each victim, the victim as a star."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from dashboards.trade_off import add_victim, best_accuracies, on_frontier_of
from sweeplab.ranking.compared import VICTIM, Comparison, best_results, result_table
from sweeplab.records import number_of

MOST_POINTS = 12_000
"""Drawn in all, beside frontiers and best points: an even sample of each series in each panel."""


def series_points(comparison: Comparison) -> pd.DataFrame:
    """One row for every point that may win, of all sweeps, and one for each victim.

    Columns: `kind` (`victim`, `epoch`, `best` of its series and victim), `group` (the victim's name), `series`, `name`
    (of the sweep), `trial`, `id` (see `Comparison.trial_ids`; -1 for a victim), `epoch`, `accuracy`, `asr` (fractions),
    `cleaned`, `frontier` (of its series and victim). Points without a measured ASR are left out.
    """
    ids = comparison.trial_ids()
    parts = []
    for item in comparison.sweeps:
        columns = item.record.columns()
        labels = pd.Series({trial.number: comparison.label(item, trial.params) for trial in item.record.trials})
        chosen = columns.may_win & (columns.asr_n > 0)
        trial = columns.trial[chosen]
        rates = {"epoch": columns.epoch[chosen], "accuracy": columns.accuracy[chosen], "asr": columns.asr[chosen]}
        head = {"kind": "epoch", "group": comparison.group(item), "name": item.name, "trial": trial}
        series = labels.reindex(trial).to_numpy()
        parts.append(pd.DataFrame({**head, "id": ids[item.name] + trial, "series": series, **rates}))
    points = pd.concat(parts, ignore_index=True)
    results = result_table(comparison)
    winners = best_results(results)
    best = set(zip(winners["group"], winners["name"], winners["trial"], winners["epoch"], strict=True))
    places = zip(points["group"], points["name"], points["trial"], points["epoch"], strict=True)
    points.loc[[place in best for place in places], "kind"] = "best"
    on_frontier = np.zeros(len(points), dtype=bool)
    for rows in rows_by_series(points):
        part = points.iloc[rows]
        on_frontier[rows] = on_frontier_of(part["asr"].to_numpy(), part["accuracy"].to_numpy())
    victims = results[results["series"] == VICTIM].assign(kind="victim", trial=-1, id=-1, frontier=False)
    points["frontier"] = on_frontier
    frame = pd.concat([points, victims[[*points.columns]]], ignore_index=True)
    return frame.assign(cleaned=frame["asr"] < comparison.asr_ceiling)


def rows_by_series(points: pd.DataFrame) -> list[np.ndarray]:
    """Places of the rows of each series of each victim."""
    return [np.asarray(rows) for rows in points.groupby(["group", "series"], sort=False).indices.values()]


def drawn_points(frame: pd.DataFrame, most: int = MOST_POINTS) -> pd.DataFrame:
    """Of every series and victim the points on the frontier and the best one, and an even sample of the others."""
    points = frame[frame["kind"] != "victim"]
    needed = (points["frontier"] | (points["kind"] == "best")).to_numpy(dtype=bool, copy=True)
    parts = rows_by_series(points)
    for rows in parts:
        rest = rows[~needed[rows]]
        if len(rest):
            needed[rest[np.linspace(0, len(rest) - 1, min(most // len(parts), len(rest))).round().astype(int)]] = True
    return points[needed]


def describe_series(frame: pd.DataFrame, asr_ceiling: float) -> str:
    """The figure in one sentence: what each series keeps, best first; of several victims, how many it cleans."""
    points = frame[frame["kind"] != "victim"]
    ceiling = style.ceiling_text(asr_ceiling)
    victims = points["group"].nunique()
    found = []
    shares = set()
    for series, part in points.groupby("series", sort=False):
        cleaned = part[part["cleaned"]]
        best = float(cleaned["accuracy"].max()) if len(cleaned) else -1.0
        if victims > 1:
            share = f"{cleaned['group'].nunique()} of {part['group'].nunique()}"
            shares.add(share)
            text = f"{series} {share}"
        else:
            lowest = f"not cleaned (lowest ASR {style.percent(part['asr'].min(), ceiling=asr_ceiling)})"
            text = f"{series} {style.percent(best)}" if len(cleaned) else f"{series} {lowest}"
        found.append((best, text))
    if len(shares) == 1 and len(found) > 1:
        found = [(0.0, f"each of {len(found)} series {shares.pop()}")]
    found.sort(key=lambda pair: -pair[0])
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    what = f"Victims with an epoch below {ceiling} ASR" if victims > 1 else f"Highest accuracy below {ceiling} ASR"
    named = f"{what}: {', '.join(text for _, text in found[:MOST_NAMED])}{more}"
    num_drawn = len(drawn_points(frame))
    sample = f", of which an even sample of {num_drawn:,} is drawn" if num_drawn < len(points) else ""
    return f"{named}; {number_of(len(points), 'evaluated epoch')}{sample}."


MOST_NAMED = 8
"""Series named in the sentence."""


def draw_series(
    frame: pd.DataFrame, series: tuple[str, ...], *, asr_ceiling: float, marks: str | None = None
) -> go.Figure:
    """A panel a victim; of one victim a second one, up to twice the ceiling.

    Args:
        frame: of `series_points`, not empty.
        series: all labels, in order.
        asr_ceiling: a fraction.
        marks: `points` alone, or `frontier` alone; None: both.
    """
    figure = go.Figure()
    groups = list(dict.fromkeys(frame.loc[frame["kind"] != "victim", "group"]))
    zoom = style.zoomed_asr(asr_ceiling)
    panels = [(group, 102.0) for group in groups] + ([(groups[0], zoom)] if len(groups) == 1 else [])
    drawn = drawn_points(frame)
    shown: set[str] = set()
    for index, (group, right) in enumerate(panels):
        whole = frame[(frame["group"] == group) & (frame["kind"] != "victim")]
        near = whole[100 * whole["asr"] <= right]
        part = drawn[(drawn["group"] == group) & (100 * drawn["asr"] <= right)]
        for place, name in enumerate(series):
            mine = part[part["series"] == name]
            if not (whole["series"] == name).any():
                continue
            colour, symbol, dash = style.look_of(place)
            look = {"legendgroup": name, "legendrank": place, "name": style.label(name, 60)}
            if marks != "frontier":
                _add_points(figure, mine, index, colour, symbol, {**look, "showlegend": name not in shown})
                shown.add(name)
            if marks != "points":
                on_frontier = whole[whole["frontier"] & (whole["series"] == name)].sort_values("asr")
                _add_frontier(figure, on_frontier, index, colour, dash, {**look, "showlegend": name not in shown})
                shown.add(name)
        victim = frame[(frame["group"] == group) & (frame["kind"] == "victim")]
        x, y = style.axis_name("x", index), style.axis_name("y", index)
        values = (near if len(near) else whole)["accuracy"].to_numpy()
        of_victim = victim["accuracy"].max() if len(victim) else None
        heights = style.focused_range(values, best_accuracies(whole, "id"), of_victim)
        add_victim(figure, victim, index=index, labelled_in=heights if right == zoom else None)
        of = f": {style.label(group, 34)}" if len(groups) > 1 else ""
        title = f"ASR (%), up to {zoom:g}\u00a0%" if right == zoom else f"ASR (%){of}"
        figure.update_layout(
            {
                x: {"anchor": style.axis_id("y", index), "range": [-0.015 * right, right], "title": {"text": title}},
                y: {"anchor": style.axis_id("x", index), "range": list(heights), "nticks": 8},
            }
        )
        style.note_below(figure, 100 * near["accuracy"].to_numpy(dtype=float), heights[0], index)
    style.shade_cleaned(figure, asr_ceiling, range(len(panels)), zoomed=(1,) if len(groups) == 1 else ())
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18, "autoexpand": False})
    title = "accuracy (%)"
    columns = min(len(panels), 3 if len(panels) != 4 else 2)
    return style.responsive(
        figure,
        wide=style.panels(len(panels), columns, panel=360 if columns < 3 else 300, gap=100, y_title=title),
        narrow=style.panels(len(panels), 1, panel=300, top=30, gap=100, y_title=title),
    )


def _add_points(
    figure: go.Figure, points: pd.DataFrame, index: int, colour: str, symbol: str, look: dict[str, object]
) -> None:
    is_best = (points["kind"] == "best").to_numpy()
    is_many = len(points) > 400
    for chosen, size, edge in ((points[~is_best], 4 if is_many else 6, 0.0), (points[is_best], 13, 1.4)):
        figure.add_scatter(
            x=100 * chosen["asr"].to_numpy(dtype=float),
            y=100 * chosen["accuracy"].to_numpy(dtype=float),
            xaxis=style.axis_id("x", index),
            yaxis=style.axis_id("y", index),
            customdata=chosen["id"].to_numpy(),
            meta={"epoch": chosen["epoch"].to_numpy(dtype=float)},
            mode="markers",
            marker={
                "symbol": symbol,
                "size": size,
                "color": colour,
                "line": {"width": edge, "color": style.INK},
            },
            hovertemplate=style.HOVER,
            **(look if not edge else {**look, "showlegend": False}),
        )


def _add_frontier(
    figure: go.Figure, frontier: pd.DataFrame, index: int, colour: str, dash: str, look: dict[str, object]
) -> None:
    if frontier.empty:
        return
    asr, accuracy = 100 * frontier["asr"].to_numpy(dtype=float), 100 * frontier["accuracy"].to_numpy(dtype=float)
    figure.add_scatter(
        x=[*asr, 102.0],
        y=[*accuracy, accuracy[-1]],
        xaxis=style.axis_id("x", index),
        yaxis=style.axis_id("y", index),
        mode="lines",
        line={"shape": "hv", "color": colour, "width": 2, "dash": dash},
        hoverinfo="skip",
        **look,
    )
