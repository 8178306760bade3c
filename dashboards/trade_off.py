"""Accuracy against ASR of every epoch: the field's figure (Verma et al., Fig. 1)."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.records import SweepRecord, number_of

DENSITY_ABOVE = 4_000
"""More points than this are drawn as densities, and as markers where the reader zooms in."""

MOST_OTHERS = 10_000
"""Points in the page beside those that are cleaned, on the frontier, or a trial's last; an even sample of the rest."""

MOST_BEST = 200
"""Best points drawn, the most accurate ones."""

LABEL_SHARE = 0.08
"""Of a panel's height, what a label takes with some room."""

PANEL = 360
"""Pixels, height of a panel beside another."""

DROPS = (54, 84, 114, 144, 174)
"""Pixels from the best point down to its label; the first that covers the fewest best points of other trials."""


def trade_off_points(sweep: SweepRecord, leaderboard: Leaderboard) -> pd.DataFrame:
    """One row for every point that may win, one for the victim.

    Columns: `kind` (`victim`, `epoch`, `best` of its trial, `winner` of the sweep), `trial` (-1 for the
    victim), `epoch`, `accuracy`, `asr` (fractions), `cleaned`, `frontier` (no point of lower or equal ASR is
    as accurate). Points without a measured ASR are left out.
    """
    columns = sweep.columns()
    chosen = columns.may_win & (columns.asr_n > 0)
    frame = pd.DataFrame(
        {
            "kind": "epoch",
            "trial": columns.trial[chosen],
            "epoch": columns.epoch[chosen],
            "accuracy": columns.accuracy[chosen],
            "asr": columns.asr[chosen],
        }
    )
    best = {row.trial: row for row in leaderboard.rows if row.feasible}
    places = pd.Series({row.trial: row.epoch for row in best.values()}, dtype=float)
    is_best = (frame["trial"].map(places) == frame["epoch"]).to_numpy(dtype=bool)
    frame.loc[is_best, "kind"] = "best"
    if best and leaderboard.rows[0].feasible:
        frame.loc[is_best & (frame["trial"] == leaderboard.rows[0].trial), "kind"] = "winner"
    if sweep.victim.asr is not None:
        victim = {"kind": "victim", "trial": -1, "epoch": 0.0}
        rates = {"accuracy": sweep.victim.accuracy, "asr": sweep.victim.asr}
        frame = pd.concat([frame, pd.DataFrame([victim | rates])], ignore_index=True)
    frame["cleaned"] = frame["asr"] < sweep.asr_ceiling
    frame["frontier"] = _on_frontier(frame)
    return frame


def _on_frontier(frame: pd.DataFrame) -> np.ndarray:
    """(rows,) boolean; the victim has no part in it."""
    on_frontier = np.zeros(len(frame), dtype=bool)
    points = np.flatnonzero((frame["kind"] != "victim").to_numpy())
    on_frontier[points] = on_frontier_of(frame["asr"].to_numpy()[points], frame["accuracy"].to_numpy()[points])
    return on_frontier


def on_frontier_of(asr: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """(N,) boolean: no point of lower or equal ASR is as accurate.

    Args:
        asr, accuracy: (N,) fractions.
    """
    order = np.lexsort((-accuracy, asr))
    ordered = accuracy[order]
    highest_before = np.concatenate([[-np.inf], np.maximum.accumulate(ordered)[:-1]])
    found = np.zeros(len(asr), dtype=bool)
    found[order[ordered > highest_before]] = True
    return found


def kept_points(frame: pd.DataFrame, most: int = MOST_OTHERS) -> pd.DataFrame:
    """The points that the page holds: every cleaned one, those on the frontier, each trial's last, and of the rest at
    most `most`, evenly spread."""
    points = frame[frame["kind"] != "victim"]
    is_last = ~points.duplicated("trial", keep="last")
    needed = points["cleaned"] | points["frontier"] | is_last | (points["kind"] != "epoch")
    rest = np.flatnonzero(~needed.to_numpy())
    chosen = needed.to_numpy(dtype=bool, copy=True)
    if len(rest):
        chosen[rest[np.linspace(0, len(rest) - 1, min(most, len(rest))).round().astype(int)]] = True
    return points[chosen]


def describe_trade_off(frame: pd.DataFrame, asr_ceiling: float) -> str:
    """The figure in one sentence."""
    points = frame[frame["kind"] != "victim"]
    cleaned = points[points["cleaned"]]
    ceiling = style.ceiling_text(asr_ceiling)
    epochs = number_of(len(points), "evaluated epoch")
    trials = number_of(points["trial"].nunique(), "trial")
    if cleaned.empty:
        lowest = style.percent(points["asr"].min(), ceiling=asr_ceiling)
        return f"None of {epochs} lies below {ceiling} ASR; the lowest is {lowest}."
    return (
        f"{len(cleaned):,} of {epochs} ({trials}) {'lies' if len(cleaned) == 1 else 'lie'} below {ceiling} ASR; "
        f"the most accurate of them has {style.percent(cleaned['accuracy'].max())} accuracy."
    )


def frontier_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The frontier, by ASR: what accuracy is to be had at or below it, and by which trial and epoch."""
    frontier = frame[frame["frontier"]].sort_values("asr")
    return frontier[["trial", "epoch", "asr", "accuracy", "cleaned"]].reset_index(drop=True)


def draw_trade_off(frame: pd.DataFrame, *, asr_ceiling: float, density_above: int = DENSITY_ABOVE) -> go.Figure:
    """Two panels: all ASRs, and those up to twice the ceiling with the accuracies that are found there.

    Args:
        frame: of `trade_off_points`, not empty.
        asr_ceiling: a fraction.
        density_above: number of points from which on they are drawn as densities.
    """
    figure = go.Figure()
    points = frame[frame["kind"] != "victim"]
    victim = frame[frame["kind"] == "victim"]
    zoom = style.zoomed_asr(asr_ceiling)
    near = points[100 * points["asr"] <= zoom]
    shown_near = near if len(near) else points
    heights = [
        style.accuracy_range(frame["accuracy"].to_numpy()),
        style.focused_range(
            shown_near["accuracy"].to_numpy(),
            best_accuracies(points, "trial"),
            victim["accuracy"].max() if len(victim) else None,
        ),
    ]
    dense = len(points) > density_above
    kept = kept_points(frame)
    for index, (right, shown) in enumerate(((102.0, points), (zoom, near))):
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        mine = kept if not index else kept[100 * kept["asr"] <= zoom]
        if dense:
            _add_density(figure, shown, heights[index], right=right, index=index)
        _add_markers(figure, mine[mine["kind"] == "epoch"], index=index, on_zoom=dense)
        _add_frontier(figure, points, x=x, y=y, right=right, first=not index)
        _add_best(figure, points, x=x, y=y, first=not index)
        add_victim(figure, victim, index=index, labelled_in=heights[index] if index else None)
    style.asr_panels(figure, asr_ceiling, *heights)
    for index, shown in enumerate((points, near)):
        style.note_below(figure, 100 * shown["accuracy"].to_numpy(dtype=float), heights[index][0], index)
    _label_winner(figure, points, heights[1], zoom=zoom)
    # The winner's label is wider than a narrow panel.
    label = f"annotations[{len(figure.layout.annotations) - 1}].visible" if (points["kind"] == "winner").any() else None
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18, "autoexpand": False})
    title = "accuracy (%)"
    return style.responsive(
        figure,
        wide={**style.panels(2, 2, panel=PANEL, y_title=title), **({label: True} if label else {})},
        narrow={**style.panels(2, 1, panel=300, top=30, y_title=title), **({label: False} if label else {})},
    )


def _add_markers(figure: go.Figure, points: pd.DataFrame, *, index: int, on_zoom: bool) -> None:
    """Markers of single epochs.

    Args:
        figure: drawn on.
        points: rows of the frame.
        index: of the panel.
        on_zoom: whether the page draws them only where the reader has zoomed in on few.
    """
    for cleaned, name, colour, symbol in (
        (False, "epoch, not cleaned", style.FAINT, "circle-open"),
        (True, "epoch, cleaned", style.BLUE, "circle"),
    ):
        chosen = points[points["cleaned"] == cleaned]
        figure.add_scatter(
            x=100 * chosen["asr"].to_numpy(),
            y=100 * chosen["accuracy"].to_numpy(),
            xaxis=style.axis_id("x", index),
            yaxis=style.axis_id("y", index),
            customdata=chosen["trial"].to_numpy(),
            meta={"epoch": chosen["epoch"].to_numpy(), "on_zoom": on_zoom},
            mode="markers",
            marker={"symbol": symbol, "size": 6, "color": colour},
            name=name,
            legendgroup=name,
            showlegend=index == 0 and not chosen.empty and not on_zoom,
            hovertemplate=style.HOVER,
        )


def _add_density(
    figure: go.Figure, points: pd.DataFrame, accuracy: tuple[float, float], *, right: float, index: int
) -> None:
    """Two densities, of cleaned epochs and of the others, the darker the more; a cell's number is under the pointer."""
    if points.empty:
        return
    x_edges = cell_edges(100 * points["asr"].to_numpy(), 0.0, min(right, 100.0), most=120)
    y_edges = cell_edges(100 * points["accuracy"].to_numpy(), *accuracy, most=90)
    for cleaned, name, colours in (
        (False, "epochs, not cleaned (the stronger, the more)", style.OTHER_DENSITY),
        (True, "epochs, cleaned (the stronger, the more)", style.CLEANED_DENSITY),
    ):
        chosen = points[points["cleaned"] == cleaned]
        counts, _, _ = np.histogram2d(100 * chosen["asr"], 100 * chosen["accuracy"], bins=(x_edges, y_edges))
        most = int(counts.max(initial=0))
        if not most:
            continue
        figure.add_heatmap(
            x=((x_edges[:-1] + x_edges[1:]) / 2).round(6),
            y=((y_edges[:-1] + y_edges[1:]) / 2).round(6),
            z=np.log10(np.where(counts > 0, counts, np.nan)).T.astype(np.float32),
            xaxis=style.axis_id("x", index),
            yaxis=style.axis_id("y", index),
            zmin=0,
            zmax=max(0.5, float(np.log10(most))),
            colorscale=[list(stop) for stop in colours],
            showscale=False,
            name=name,
            legendgroup=name,
            showlegend=index == 0,
            meta={"density": True, "colour": colours[1][1]},
            hovertemplate="%{text} " + name.partition(" (")[0] + "<br>accuracy %{y:.1f} %<br>ASR %{x:.1f} %"
            "<br>zoom in to see them one by one<extra></extra>",
        )


def cell_edges(values: np.ndarray, low: float, high: float, *, most: int) -> np.ndarray:
    """Edges of at most `most` + 1 equal cells from `low` to past `high`.

    Rates of n images are multiples of 1 / n; each cell holds equally many of them, else stripes appear.
    """
    distinct = np.unique(values)
    width = (high - low) / most
    if len(distinct) > 1:
        quantum = float(np.diff(distinct).min())
        if quantum > width / 20:
            width = np.ceil(width / quantum - 1e-9) * quantum
            low = (np.floor(low / quantum) - 0.5) * quantum
    return low + width * np.arange(int(np.ceil((high - low) / width - 1e-9)) + 1)


def _add_frontier(figure: go.Figure, points: pd.DataFrame, *, x: str, y: str, right: float, first: bool) -> None:
    frontier = points[points["frontier"]].sort_values("asr")
    if frontier.empty:
        return
    asr = [*(100 * frontier["asr"]), max(right, 100.0)]
    accuracy = [*(100 * frontier["accuracy"]), 100 * frontier["accuracy"].max()]
    figure.add_scatter(
        x=asr,
        y=accuracy,
        xaxis=x,
        yaxis=y,
        mode="lines",
        line={"shape": "hv", "color": style.INK, "width": 1.4},
        name="frontier: best accuracy at or below an ASR",
        legendgroup="frontier",
        showlegend=first,
        hoverinfo="skip",
    )


def _add_best(figure: go.Figure, points: pd.DataFrame, *, x: str, y: str, first: bool) -> None:
    best = points[points["kind"] == "best"].nlargest(MOST_BEST, "accuracy")
    winner = points[points["kind"] == "winner"]
    num_feasible = int((points["kind"] == "best").sum())
    which = "best cleaned epoch of a trial" + (f" (first {MOST_BEST})" if num_feasible > MOST_BEST else "")
    is_crowded = len(best) > 100
    for chosen, name, symbol, size, colour, outline in (
        (best, which, "square", 5 if is_crowded else 9, style.SKY, 0.4 if is_crowded else 1.2),
        (winner, "best of the sweep", "diamond", 15, style.ORANGE, 1.2),
    ):
        if chosen.empty:
            continue
        figure.add_scatter(
            x=100 * chosen["asr"].to_numpy(),
            y=100 * chosen["accuracy"].to_numpy(),
            xaxis=x,
            yaxis=y,
            customdata=chosen["trial"].to_numpy(),
            meta={"epoch": chosen["epoch"].to_numpy()},
            mode="markers",
            marker={
                "symbol": symbol,
                "size": size,
                "color": colour,
                "line": {"width": outline, "color": style.INK},
            },
            name=name,
            legendgroup=name,
            showlegend=first,
            hovertemplate=style.HOVER,
        )


def best_accuracies(points: pd.DataFrame, by: str) -> np.ndarray:
    """Of each trial with a cleaned epoch, the highest accuracy among these."""
    return points[points["cleaned"]].groupby(by)["accuracy"].max().to_numpy()


def add_victim(
    figure: go.Figure, victim: pd.DataFrame, *, index: int, labelled_in: tuple[float, float] | None = None
) -> None:
    """The victim as a star in the panel `index`, its accuracy as a dotted line.

    Args:
        figure: drawn on.
        victim: its row, or none.
        index: of the panel.
        labelled_in: ends of the accuracy axis, where the line is labelled.
    """
    x, y = style.axis_id("x", index), style.axis_id("y", index)
    for asr, accuracy in _percentages(victim):
        figure.add_scatter(
            x=[asr],
            y=[accuracy],
            xaxis=x,
            yaxis=y,
            mode="markers",
            marker={
                "symbol": "star",
                "size": 17,
                "color": style.BLACK,
                "line": {"width": 1, "color": style.PAPER},
            },
            name="victim",
            legendgroup="victim",
            legendrank=10_000,
            showlegend=index == 0,
            cliponaxis=False,
            hovertemplate="victim<br>accuracy %{y:.1f} %<br>ASR %{x:.3~f} %<extra></extra>",
        )
        style.dotted_line(figure, accuracy, index)
        if labelled_in is not None:
            low, high = labelled_in
            # Above the panel's upper end stands the label of the ceiling.
            below = high - accuracy < LABEL_SHARE * (high - low)
            figure.add_annotation(
                xref=f"{x} domain",
                yref=y,
                x=1,
                y=accuracy,
                xanchor="right",
                yanchor="top" if below else "bottom",
                text=f"victim's accuracy {style.percent(accuracy / 100)}",
                showarrow=False,
                bgcolor=style.LABEL_PAPER,
                borderpad=0,
                font={"size": 12, "color": style.MUTED},
            )


def _percentages(points: pd.DataFrame) -> list[tuple[float, float]]:
    """ASR and accuracy of each row, percent."""
    asr, accuracy = 100 * points["asr"].to_numpy(dtype=float), 100 * points["accuracy"].to_numpy(dtype=float)
    return list(zip(asr.tolist(), accuracy.tolist(), strict=True))


def label_drop(points: pd.DataFrame, ends: tuple[float, float], *, zoom: float) -> int:
    """How far below the winner its label stands, pixels, so that it hides no other trial's best point.

    Args:
        points: of `trade_off_points`, a winner among them.
        ends: of the axis of accuracy, percent.
        zoom: end of that of ASR, percent.
    """
    winner, best = (points[points["kind"] == kind] for kind in ("winner", "best"))
    # A label takes little more than half of the narrowest panel on both sides of its point.
    near = best[(100 * (best["asr"] - winner["asr"].iloc[0])).abs() < 0.6 * zoom]
    pixel = (ends[1] - ends[0]) / PANEL
    below = 100 * (winner["accuracy"].iloc[0] - near["accuracy"]).to_numpy() / pixel
    # At the panel's lower end stands how many points lie below it.
    room = (100 * winner["accuracy"].iloc[0] - ends[0]) / pixel - 30
    return min((drop for drop in DROPS if drop <= max(room, DROPS[0])), key=lambda drop: (abs(below - drop) < 15).sum())


def _label_winner(figure: go.Figure, points: pd.DataFrame, ends: tuple[float, float], *, zoom: float) -> None:
    winner = points[points["kind"] == "winner"]
    for trial, epoch, (asr, accuracy) in zip(winner["trial"], winner["epoch"], _percentages(winner), strict=True):
        # The label takes half of a panel of a page of 800 pixels.
        side, shift = ("left", 26) if asr < 0.3 * zoom else ("center", 0)
        figure.add_annotation(
            xref="x2",
            yref="y2",
            x=asr,
            y=accuracy,
            text=f"<b>trial {trial}</b>, epoch {epoch:g}: {accuracy:.1f}\u00a0%",
            xanchor=side,
            ax=shift,
            ay=label_drop(points, ends, zoom=zoom),
            arrowcolor=style.MUTED,
            arrowwidth=1,
            arrowhead=0,
            standoff=8,
            bgcolor=style.LABEL_PAPER,
            font={"size": 12, "color": style.INK},
        )
