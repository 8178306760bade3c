"""The figures of examined checkpoints in one page: histograms of their pairs' cosines, maps of their images."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from dashboards.columns import Columns
from dashboards.histograms import describe_histograms, draw_histograms, histogram_bars, histogram_summary
from dashboards.maps import describe_maps, draw_maps, map_points
from dashboards.page import Page, View
from dashboards.table import small_table
from sweeplab.records import number_of

MOST_PANELS = 12
"""Checkpoints in a figure: of more, evenly chosen ones, the first and the last among them."""


@dataclass(frozen=True)
class Examined:
    """The tables of one checkpoint, as `sweeplab examine` writes them; None: it was not asked for."""

    name: str
    """Of the checkpoint; what follows a comma stands in a second line of the figures."""
    cosines: pd.DataFrame | None = None
    points: pd.DataFrame | None = None
    """Of its map."""
    distances: pd.DataFrame | None = None
    """Of the map's groups to the target class."""


def render_examined(sweep: str, checkpoints: Sequence[Examined]) -> str:
    """The page as text.

    Args:
        sweep: name of the sweep whose data and trigger they were measured with.
        checkpoints: at least one, with tables.
    """
    count = number_of(len(checkpoints), "checkpoint")
    header = f"""<header>
<p class="kicker">SweepLab figures</p>
<h1>{escape(sweep)}: {count} examined</h1>
</header>"""
    footer = """<footer>
<p><b>Cosine</b>: of the embeddings of a pair's image and caption. <b>Map</b>: t-SNE of image embeddings, fitted to each
checkpoint by itself; all maps are drawn on one scale, yet directions mean nothing, and distances little between two
maps. <b>Distance from the target class</b>: the mean of 1 - the cosine of two embeddings, over all pairs of an image
and one of the target class; those of the class itself say how widely it is spread.</p>
<p>The tables lie beside this page, which is one file and loads nothing from a network.</p>
</footer>"""
    page = Page(title=f"{sweep} · SweepLab figures", header=header, views=_views(checkpoints), footer=footer)
    return page.html(Columns())


def _views(checkpoints: Sequence[Examined]) -> list[View]:
    views = []
    if cosines := [(one.name, one.cosines) for one in _few(checkpoints) if one.cosines is not None]:
        bars = histogram_bars(cosines)
        summary = histogram_summary(bars)
        heads = {"checkpoint": "Checkpoint", "num_clean": "Clean pairs", "num_poisoned": "Poisoned pairs"}
        heads |= {"clean": "Mean cosine, clean", "poisoned": "Poisoned", "above": "Poisoned above clean %"}
        table = small_table(summary, heads)
        head = ("cosines", "Cosines of clean and of poisoned pairs", "Cosines")
        views.append(View(*head, describe_histograms(summary), draw_histograms(bars), table))
    if maps := [(one.name, one.points) for one in _few(checkpoints) if one.points is not None]:
        points = map_points(maps)
        measured = enumerate(one for one in checkpoints if one.distances is not None)
        distances = pd.concat(
            [
                one.distances.assign(place=place, checkpoint=one.name)
                for place, one in measured
                if one.distances is not None
            ],
            ignore_index=True,
        )
        heads = {"checkpoint": "Checkpoint", "group": "Images", "num_images": "Count"}
        heads |= {"cosine_distance": "From the target: 1 - cosine", "plane_distance": "in the map"}
        table = small_table(distances, heads)
        head = ("maps", "Target class and triggered images", "Maps")
        views.append(View(*head, describe_maps(distances), draw_maps(points), table))
    return views


def _few(checkpoints: Sequence[Examined]) -> list[Examined]:
    last, most = len(checkpoints) - 1, min(len(checkpoints), MOST_PANELS)
    return [checkpoints[round(step * last / max(1, most - 1))] for step in range(most)]
