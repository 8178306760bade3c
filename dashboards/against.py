"""Accuracy and ASR of what was best, against a field: the poison rate, the SSL weight, the number of epochs."""

import json

import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from dashboards.curves import thinned
from sweeplab.ranking.compared import VICTIM, Comparison, differing, is_number, result_table, short_path
from sweeplab.search_space import spans_magnitudes

MOST_POINTS = 2000
"""Of a line; longer ones are thinned evenly."""
MOST_JOINED = 60
"""Points that are joined: many values of a search are no line."""


def against_points(comparison: Comparison) -> pd.DataFrame:
    """The rows of `result_table` whose field has a number, by it; a line holds what differs in nothing else.

    Columns: `line`, `x`, `name`, `trial`, `epoch`, `accuracy`, `asr` (fractions), `cleaned`; the line `victim` holds
    what they were before. Empty where the field takes fewer than two numbers.
    """
    results = result_table(comparison)
    numbers = results[results["value"].map(is_number).astype(bool)]
    if numbers["value"].nunique() < 2:
        return pd.DataFrame(columns=["line", "x", "name", "trial", "epoch", "accuracy", "asr", "cleaned"])
    lines = lines_of(comparison)
    found = numbers.assign(line=numbers["name"].map(lines), x=numbers["value"].astype(float))
    before = results[results["series"] == VICTIM].set_index("group")
    of_sweeps = found[found["group"].isin(before.index)].drop_duplicates(["group", "x"])
    rates = before.loc[of_sweeps["group"], ["name", "epoch", "accuracy", "asr"]]
    victims = rates.assign(line=VICTIM, x=of_sweeps["x"].to_numpy()).drop_duplicates(["x", "accuracy", "asr"])
    columns = ["line", "x", "name", "trial", "epoch", "accuracy", "asr", "cleaned"]
    # Lines in the order of the items, each from left to right.
    by_line = [found[found["line"] == line].sort_values("x") for line in dict.fromkeys(lines.values())]
    return pd.concat([victims.sort_values("x"), *by_line], ignore_index=True).reindex(columns=columns)


def lines_of(comparison: Comparison) -> dict[str, str]:
    """The line that each item belongs to, by its name: those that differ in the field alone make one."""
    keys: dict[str, list[str]] = {}
    for item in comparison.items:
        rest = {path: value for path, value in item.fields.items() if path != comparison.by}
        searched = comparison.by not in item.fields and bool(item.settings[0])
        keys.setdefault(json.dumps([rest, item.name if searched or not rest else ""]), []).append(item.name)
    by_name = {item.name: item for item in comparison.items}
    fields = [by_name[names[0]].fields for names in keys.values()]
    for path in sorted(differing(fields), key=lambda path: short_path(path) != "kind"):
        values = [one.get(path) for one in fields]
        if path != comparison.by and len(set(values)) == len(values):
            words = [f"{value}" if short_path(path) == "kind" else f"{short_path(path)} {value}" for value in values]
            return {name: word for word, names in zip(words, keys.values(), strict=True) for name in names}
    return {name: names[0] if len(names) == 1 else f"{names[0]} ..." for names in keys.values() for name in names}


def describe_against(frame: pd.DataFrame, by: str, rate: str = "ASR") -> str:
    """The figure in one sentence."""
    lines = frame[frame["line"] != VICTIM]
    low, high = lines["x"].min(), lines["x"].max()
    parts = [
        f"{line} from {style.percent(part['asr'].iloc[0])} to {style.percent(part['asr'].iloc[-1])}"
        for line, part in lines.groupby("line", sort=False)
    ]
    return f"{rate}, as {short_path(by)} goes from {low:g} to {high:g}: {', '.join(parts[:8])}."


def draw_against(frame: pd.DataFrame, by: str, *, rate: str = "ASR", asr_ceiling: float | None = None) -> go.Figure:
    """Two panels, accuracy and ASR, a line each; what is not cleaned is drawn open.

    Args:
        frame: of `against_points`, not empty.
        by: the field.
        rate: what stands in the second panel, `ASR`, `PSR` or both.
        asr_ceiling: a fraction; None: nothing was to be cleaned.
    """
    figure = go.Figure()
    heights = style.accuracy_range(frame["accuracy"].to_numpy(dtype=float))
    lines = [line for line in dict.fromkeys(frame["line"]) if line != VICTIM]
    for index, column in enumerate(("accuracy", "asr")):
        for line in dict.fromkeys(frame["line"]):
            part = thinned(frame[frame["line"] == line], MOST_POINTS)
            colour, symbol, dash = style.look_of(lines.index(line)) if line != VICTIM else (style.BLACK, "star", "dot")
            is_open = [line != VICTIM and cleaned is False for cleaned in part["cleaned"]]
            figure.add_scatter(
                x=part["x"].to_numpy(),
                y=100 * part[column].to_numpy(dtype=float),
                xaxis=style.axis_id("x", index),
                yaxis=style.axis_id("y", index),
                mode="lines+markers" if line != VICTIM and len(part) <= MOST_JOINED else "markers",
                line={"color": colour, "width": 2, "dash": dash},
                marker={
                    "symbol": [f"{symbol}-open" if one else symbol for one in is_open],
                    "color": colour,
                    "size": 12 if line == VICTIM else 9,
                },
                name=style.label(line, 60),
                legendgroup=line,
                showlegend=not index,
                hovertext=[style.label(name, 80) for name in part["name"]],
                hovertemplate=f"%{{hovertext}}<br>{style.label(short_path(by))} %{{x}}: %{{y:.1f}} %<extra></extra>",
            )
        xs = frame["x"].unique().tolist()
        ticks = style.log_ticks(min(xs), max(xs)) if spans_magnitudes(xs) and min(xs) > 0 else {"nticks": 7}
        title = {"text": style.label(short_path(by))}
        figure.update_layout(
            {
                style.axis_name("x", index): {"anchor": style.axis_id("y", index), "title": title, **ticks},
                style.axis_name("y", index): {
                    "anchor": style.axis_id("x", index),
                    "title": {"text": f"{rate} (%)" if index else "accuracy (%)"},
                    "nticks": 6,
                    **({"rangemode": "tozero"} if index else {"range": list(heights)}),
                },
            }
        )
    style.note_below(figure, 100 * frame["accuracy"].to_numpy(dtype=float), heights[0], 0)
    if asr_ceiling is not None:
        style.dotted_line(figure, 100 * asr_ceiling, 1)
    return style.side_by_side(figure)
