"""What each series came to, as bars: accuracy and ASR by group, and what is counted of pairs (PAR, Fig. 1)."""

import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.evaluation.retention import CleanedTrials
from sweeplab.ranking.compared import VICTIM, ComparedTable, ComparedVictim, Comparison, best_results, result_table

QUANTITIES = {
    "accuracy": "accuracy (%)",
    "asr": "ASR (%)",
    "recall_highest@0.1": "poisons among the top 10 % of cosines (%)",
    "recall_highest@0.3": "poisons among the top 30 % of cosines (%)",
    "safe_poison_share": "poisons among the safe pairs (%)",
}
"""Shares, as fractions; the last three of tables over checkpoints, at the last one."""

RATES = (QUANTITIES["asr"], "PSR (%)")
"""What a ceiling is drawn for."""


def bar_rows(comparison: Comparison) -> pd.DataFrame:
    """One row a bar. Columns: `group`, `series`, `quantity` (its title), `value` (percent, or pairs).

    Of several sweeps with one series and victim the better one. A victim alone also has the pairs that its objective
    treats apart and the poisons among them, at its selected epoch.
    """
    results = best_results(result_table(comparison))
    rows: list[tuple[str, str, str, float]] = []
    for quantity in ("accuracy", "asr"):
        known = results.dropna(subset=quantity)
        titles = f"{quantity} (%)" if quantity == "accuracy" else known["measures"] + " (%)"
        bars = known.assign(title=titles)[["group", "series", "title", quantity]]
        rows += [(group, series, title, 100 * value) for group, series, title, value in bars.itertuples(index=False)]
    for item in comparison.others:
        head = comparison.group(item), comparison.label(item, {})
        if isinstance(item, ComparedVictim):
            rows += [(*head, f"{name.replace('_', ' ')}", count) for name, count in item.row.found.items()]
        elif isinstance(item, ComparedTable):
            last = item.table.iloc[-1]
            shares = [name for name in QUANTITIES if name in last and pd.notna(last[name])]
            rows += [(*head, QUANTITIES[name], 100 * float(last[name])) for name in shares]
    return pd.DataFrame(rows, columns=["group", "series", "quantity", "value"])


def describe_bars(comparison: Comparison) -> str:
    """The figure in one sentence."""
    results = result_table(comparison)
    trials = results.dropna(subset="trial")
    if trials.empty:
        return "Victims at their selected epoch; tables over checkpoints at the last one."
    cleaned = CleanedTrials.of(trials["retention"].tolist())
    return (
        "The most accurate cleaned epoch of each series, of each victim; where there is none, that of the lowest ASR: "
        f"{cleaned.in_words()}."
    )


def draw_bars(frame: pd.DataFrame, series: tuple[str, ...], *, asr_ceiling: float | None = None) -> go.Figure:
    """A panel a quantity, a group of bars a victim, a colour a series.

    Args:
        frame: of `bar_rows`, not empty.
        series: all labels, in order.
        asr_ceiling: a fraction; None: nothing was to be cleaned.
    """
    figure = go.Figure()
    groups = list(dict.fromkeys(frame["group"]))
    names = [style.label(name, 20) for name in without_beginning(groups)]
    quantities, places = list(dict.fromkeys(frame["quantity"])), list(range(len(groups)))
    shown: set[str] = set()
    for index, quantity in enumerate(quantities):
        mine = frame[frame["quantity"] == quantity]
        for place, name in enumerate((VICTIM, *series)):
            part = mine[mine["series"] == name]
            if part.empty:
                continue
            colour = style.look_of(place - 1)[0] if place else style.FAINT
            figure.add_bar(
                x=[groups.index(group) for group in part["group"]],
                y=part["value"].to_numpy(),
                xaxis=style.axis_id("x", index),
                yaxis=style.axis_id("y", index),
                marker={"color": colour},
                name=style.label(name, 60),
                legendgroup=name,
                legendrank=place,
                showlegend=name not in shown,
                hovertext=[style.label(group, 60) for group in part["group"]],
                hovertemplate=f"%{{hovertext}}<br>{style.label(name, 60)}: %{{y:.4g}}<extra></extra>",
            )
            shown.add(name)
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        figure.update_layout(
            {
                style.axis_name("x", index): {"anchor": y, "tickvals": places, "ticktext": names},
                style.axis_name("y", index): {"anchor": x, "rangemode": "tozero", "nticks": 6},
            }
        )
        figure.add_annotation(
            xref=f"{x} domain",
            yref=f"{y} domain",
            x=0,
            y=1,
            xanchor="left",
            yanchor="bottom",
            yshift=4,
            text=quantity,
            showarrow=False,
            font={"size": 13, "color": style.INK},
        )
        if quantity in RATES and asr_ceiling is not None:
            style.dotted_line(figure, 100 * asr_ceiling, index)
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.05, hovermode="closest")
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18})
    count = len(quantities)
    columns = min(count, 1 if frame.groupby("quantity").size().max() > 16 or len(groups) > 4 else 2)
    angles = {f"{style.axis_name('x', index)}.tickangle": -35 if len(groups) > 2 else 0 for index in range(count)}
    flat = dict.fromkeys(angles, 0)
    return style.responsive(
        figure,
        wide={**style.panels(count, columns, panel=230, gap=80, y_title=""), **flat},
        narrow={**style.panels(count, 1, panel=200, top=30, gap=130, y_title=""), "margin.b": 110, **angles},
    )


def short_names(comparison: Comparison) -> dict[str, str]:
    """The names of the sweeps, without what all begin with."""
    names = [item.name for item in comparison.sweeps]
    return dict(zip(names, without_beginning(names), strict=True))


def without_beginning(names: list[str]) -> list[str]:
    """Names without the words, ended by hyphens, with which all of them begin."""
    words = [name.split("-") for name in names]
    shared = 0
    for beginnings in zip(*(name[:-1] for name in words), strict=False):
        if len(names) < 2 or len(set(beginnings)) > 1:
            break
        shared += 1
    return ["-".join(name[shared:]) for name in words]
