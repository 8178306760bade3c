"""Two parameters together: the best retention in each cell of a grid."""

from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.ranking.leaderboard import in_percent
from sweeplab.records import percent

MOST_CELLS = 8
"""Cells along a parameter of more values than that."""


def pair_cells(points: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    """One row a cell in which a trial lies.

    Columns: `x`, `y` (the cell's place along either parameter), `x_word`, `y_word` (its values, in words), `trials`,
    `cleaned` (trials), `retention`, `worst` (the best and the worst of the cleaned ones; missing where there is none),
    `lowest_asr` (fractions).

    Args:
        points: of `parameters.parameter_points`.
        names: of the two.
    """
    sides = [points[points["parameter"] == name].set_index("trial") for name in names]
    both = sides[0].join(sides[1][["scale", "value", "word"]], rsuffix="_y", how="inner")
    x_place, x_words = _cells(both["value"], both["word"], both["scale"])
    y_place, y_words = _cells(both["value_y"], both["word_y"], both["scale_y"])
    frame = both.assign(x=x_place, y=y_place)
    rows = []
    for _, cell in frame.groupby(["x", "y"]):
        x, y = int(cell["x"].iloc[0]), int(cell["y"].iloc[0])
        kept = cell["retention"]
        counts = (len(cell), int(cell["feasible"].sum()))
        rows.append((x, y, x_words[x], y_words[y], *counts, kept.max(), kept.min(), cell["min_asr"].min()))
    columns = ["x", "y", "x_word", "y_word", "trials", "cleaned", "retention", "worst", "lowest_asr"]
    return pd.DataFrame(rows, columns=columns)


def _cells(values: pd.Series, words: pd.Series, scales: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Each value's cell, and the cells' words: one a value where there are few, else of equal width on its scale."""
    distinct = sorted(set(values))
    if scales.iloc[0] == "category":
        names = dict(zip(values, words, strict=True))
        return np.searchsorted(distinct, values), [str(names[value]) for value in distinct]
    if len(distinct) <= MOST_CELLS:
        return np.searchsorted(distinct, values), style.number_texts(distinct)
    is_log = scales.iloc[0] == "log"
    along = np.log10(values) if is_log else values.to_numpy(dtype=float)
    edges = np.linspace(along.min(), along.max(), MOST_CELLS + 1)
    place = np.clip(np.searchsorted(edges, along, side="right") - 1, 0, MOST_CELLS - 1)
    ends = style.number_texts([float(f"{10**edge if is_log else edge:.2g}") for edge in edges])
    return place, [f"{low} to {high}" for low, high in pairwise(ends)]


def most_telling_pair(points: pd.DataFrame, importances: dict[str, float]) -> tuple[str, str] | None:
    """The two most important parameters with two values at least; where nothing is known, the first two; None: there
    are not two.

    Args:
        points: of `parameters.parameter_points`.
        importances: by parameter.
    """
    counts = points.groupby("parameter", sort=False)["value"].nunique()
    names = sorted(counts[counts > 1].index, key=lambda name: -importances.get(name, 0.0))
    return next(iter(combinations(names[:2], 2)), None)


def describe_pair(frame: pd.DataFrame, names: tuple[str, str]) -> str:
    """The figure in one sentence."""
    cleaned = frame.dropna(subset="retention")
    if cleaned.empty:
        return f"No cell of {names[0]} and {names[1]} holds a cleaned trial."
    best = cleaned.sort_values("retention").iloc[-1]
    of = f"{best['cleaned']} of {best['trials']} trials" if best["trials"] > 1 else "its only trial"
    return (
        f"{len(cleaned)} of {len(frame)} cells that were tried hold a cleaned trial; the best is {names[0]} "
        f"{best['x_word']} with {names[1]} {best['y_word']}: {style.percent(best['retention'])} kept, "
        f"{of} cleaned."
    )


def _in_lines(word: str, letter: str) -> str:
    """A cell's values as its tick says them: below a cell in two lines."""
    text = style.label(word, 18)
    return text.replace(" to ", " to<br>") if letter == "x" else text


def draw_pair(frame: pd.DataFrame, names: tuple[str, str], *, asr_ceiling: float) -> go.Figure:
    """A cell for each pair of values, with the worst and the best retention of its cleaned trials; those without one
    are grey and say their lowest ASR.

    Args:
        frame: of `pair_cells`, not empty.
        names: of the parameters, along x and y.
        asr_ceiling: a fraction, from which the lowest ASR is told.
    """
    width, height = int(frame["x"].max()) + 1, int(frame["y"].max()) + 1
    kept = np.full((height, width), np.nan, dtype=np.float32)
    none = np.full((height, width), np.nan, dtype=np.float32)
    text = [["" for _ in range(width)] for _ in range(height)]
    for row in frame.to_dict("records"):
        x, y, count = row["x"], row["y"], f"{row['cleaned']} of {row['trials']}"
        if row["cleaned"]:
            kept[y, x] = 100 * row["retention"]
            words = dict.fromkeys(in_percent(row[end]) for end in ("worst", "retention"))
            text[y][x] = f"{'–'.join(words)}<br>{count}"
        else:
            none[y, x] = 100 * row["lowest_asr"]
            lowest = percent(row["lowest_asr"], 0, ceiling=asr_ceiling).removesuffix(" %")
            text[y][x] = f"ASR {lowest}<br>{count}"
    figure = go.Figure()
    best = frame["retention"].dropna().to_numpy()
    ends = style.focused_range(best, best) if len(best) else (0.0, 0.0)
    for values, colours, name, what in (
        (none, ((0.0, style.CELL), (1.0, style.CELL)), "no cleaned trial: lowest ASR, %", "lowest ASR %{z:.3~f} %"),
        (
            kept,
            style.CLEANED_DENSITY,
            "retention of the cleaned, % (the stronger, the higher the best); number cleaned of number tried",
            "best retention %{z:.1f} %",
        ),
    ):
        if not np.isfinite(values).any():
            continue
        figure.add_heatmap(
            z=values,
            zmin=ends[0] if values is kept else 0.0,
            zmax=ends[1] if values is kept else 100.0,
            colorscale=[list(stop) for stop in colours],
            showscale=False,
            xgap=2,
            ygap=2,
            name=name,
            showlegend=True,
            meta={"colour": colours[-1][1] if len(colours) < 3 else colours[1][1]},
            text=[
                [cell if np.isfinite(z) else "" for cell, z in zip(*row, strict=True)]
                for row in zip(text, values, strict=True)
            ],
            texttemplate="%{text}",  # plotly chooses light or dark, as the cell asks for
            textfont={"size": 11},
            hovertemplate=what + "<extra></extra>",
        )
    sides = [frame.drop_duplicates(axis).sort_values(axis) for axis in ("x", "y")]
    for letter, name, side in zip("xy", names, sides, strict=True):
        figure.update_layout(
            {
                f"{letter}axis": {
                    "tickvals": side[letter].tolist(),
                    "ticktext": [_in_lines(word, letter) for word in side[f"{letter}_word"]],
                    "title": {"text": style.label(name)},
                    "showgrid": False,
                    "automargin": True,
                    "range": [-0.5, (width if letter == "x" else height) - 0.5],
                }
            }
        )
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18})
    size = max(220, 46 * height)
    layout = {"margin.t": 30, "margin.b": 80}
    return style.responsive(figure, wide={**layout, "height": size + 110}, narrow={**layout, "height": size + 110})
