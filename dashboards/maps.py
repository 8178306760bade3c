"""Maps of images' embeddings side by side: the target class, and others with and without the trigger (CleanCLIP,
Fig. 6; PAR, Fig. 4 and 8)."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboards import style

GROUPS = (
    ("clean", "images of other classes", style.OTHERS, "circle"),
    ("triggered", "the same images with the trigger", style.VERMILLION, "diamond"),
    ("target", "images of the target class", style.GREEN, "square"),
)
"""Name in the tables, name in the legend, colour and symbol; drawn in this order."""


def map_points(tables: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """The points of all maps, each map shifted so that its middle lies at 0.

    Args:
        tables: the name of each checkpoint and its map: `group` (`clean`, `triggered`, `target`), `row`, `x`, `y`.

    Returns:
        Columns: `place` (of the checkpoint, from 0), `checkpoint`, `group`, `row`, `x`, `y`. Scale and distances are
        those of the tables.
    """
    parts = []
    for place, (name, table) in enumerate(tables):
        middles = {axis: (table[axis].min() + table[axis].max()) / 2 for axis in ("x", "y")}
        moved = table.assign(place=place, checkpoint=name, x=table["x"] - middles["x"], y=table["y"] - middles["y"])
        parts.append(moved[["place", "checkpoint", "group", "row", "x", "y"]])
    return pd.concat(parts, ignore_index=True)


def describe_maps(distances: pd.DataFrame) -> str:
    """How far the images lie from the target class, in one sentence.

    Args:
        distances: `place`, `checkpoint`, `group` (`clean`, `triggered`, `target`), `cosine_distance`.
    """
    found = distances.pivot(index="place", columns="group", values="cosine_distance")
    names = distances.groupby("place")["checkpoint"].first()
    said = [
        f"{found['triggered'][place]:.2f} in {names[place]} (without the trigger {found['clean'][place]:.2f}, those of "
        f"the class {found['target'][place]:.2f})"
        for place in (names.index if len(names) <= 3 else names.index[[0, -1]])
    ]
    return f"Mean distance of triggered images from those of the target class, as 1 - cosine: {'; '.join(said)}."


def draw_maps(frame: pd.DataFrame) -> go.Figure:
    """A panel a checkpoint, all on one scale.

    Args:
        frame: of `map_points`, not empty.
    """
    figure = go.Figure()
    reach = 1.06 * float(frame[["x", "y"]].abs().to_numpy().max())
    for place, name in enumerate(frame.groupby("place")["checkpoint"].first()):
        part = frame[frame["place"] == place]
        x, y = style.axis_id("x", place), style.axis_id("y", place)
        for group, words, colour, symbol in GROUPS:
            points = part[part["group"] == group]
            figure.add_scatter(
                x=points["x"].to_numpy(),
                y=points["y"].to_numpy(),
                marker={"color": colour, "symbol": symbol, "size": 6},
                name=words,
                showlegend=place == 0,
                xaxis=x,
                yaxis=y,
                mode="markers",
                legendgroup=group,
                hovertemplate=f"{words}<extra></extra>",
            )
        style.name_panel(figure, name, place)
        bare = {"range": [-reach, reach], "showticklabels": False, "ticks": "", "showgrid": False, "mirror": True}
        figure.update_layout(
            {
                style.axis_name("x", place): {"anchor": y, **bare},
                style.axis_name("y", place): {"anchor": x, "scaleanchor": x, **bare},
            }
        )
    figure.update_layout(template=style.TEMPLATE, margin={"l": 18, "r": 18})
    count = int(frame["place"].max()) + 1
    return style.responsive(
        figure,
        wide=style.panels(count, min(count, 3), panel=380, gap=60, between=0.02, y_title=""),
        narrow=style.panels(count, 1, panel=320, gap=60, y_title=""),
    )
