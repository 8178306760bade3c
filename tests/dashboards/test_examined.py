"""Figures of examined checkpoints: histograms and maps, by hand."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from test_views import faint_marks, figures_of

from dashboards import style
from dashboards.examined import MOST_PANELS, Examined, render_examined
from dashboards.histograms import describe_histograms, draw_histograms, histogram_bars, histogram_summary
from dashboards.maps import describe_maps, draw_maps, map_points
from sweeplab.evaluation.similarity import histogram

WEAK = histogram(np.array([0.114, 0.126, 0.314, 0.314, 0.126, 0.334]), np.array([0, 0, 0, 0, 1, 1], dtype=bool))
"""Of the clean pairs half lie near 0.1 and half near 0.3, and so do the two poisons."""
STRONG = histogram(np.array([-0.2, 0.1, 0.85]), np.array([0, 0, 1], dtype=bool))
CLEAN = histogram(np.array([0.2, 0.4]), np.zeros(2, dtype=bool))

MAP = pd.DataFrame(
    {
        "group": ["clean", "clean", "triggered", "target"],
        "row": [0, 1, 0, 0],
        "x": [10.0, 14.0, 20.0, 18.0],
        "y": [0.0, 2.0, -6.0, 2.0],
    }
)
DISTANCES = pd.DataFrame(
    {
        "group": ["clean", "triggered", "target"],
        "num_images": [2, 1, 1],
        "cosine_distance": [0.9, 0.125, 0.25],
        "plane_distance": [6.0, 8.25, 0.0],
    }
)


def test_bins_of_all_checkpoints_have_one_width_and_hold_all_pairs():
    """From -0.2 to 0.86 lie 106 bins of 0.01: three are joined to one, from -1 on."""
    bars = histogram_bars([("weak", WEAK), ("strong", STRONG)])
    assert set(np.round(bars["to"] - bars["from"], 9)) == {0.03}
    assert np.allclose((bars["from"] + 1) / 0.03, ((bars["from"] + 1) / 0.03).round())
    counts = bars.groupby(["checkpoint", "kind"])["pairs"].sum()
    assert counts.to_dict() == {
        ("weak", "clean"): 4,
        ("weak", "poisoned"): 2,
        ("strong", "clean"): 2,
        ("strong", "poisoned"): 1,
    }
    assert bars.groupby(["checkpoint", "kind"])["share"].sum().to_numpy() == pytest.approx(np.ones(4))
    (poison,) = bars[(bars["checkpoint"] == "strong") & (bars["kind"] == "poisoned")].to_dict("records")
    assert poison["from"] <= 0.85 < poison["to"]


def test_how_often_a_poisoned_pair_lies_above_a_clean_one():
    """Bins of 0.01. The poison near 0.12 lies above one of four clean pairs, in a bin with another: 1.5. That near
    0.33 lies above all four: 5.5 of 8."""
    (row,) = histogram_summary(histogram_bars([("weak", WEAK)])).to_dict("records")
    assert (row["num_clean"], row["num_poisoned"]) == (4, 2)
    assert row["above"] == pytest.approx(5.5 / 8)
    assert row["clean"] == pytest.approx((0.115 + 0.125 + 0.315 + 0.315) / 4)
    assert row["poisoned"] == pytest.approx((0.125 + 0.335) / 2)


def test_the_histograms_are_told_by_the_first_and_the_last_checkpoint():
    summary = histogram_summary(histogram_bars([("a", STRONG), ("b", WEAK), ("c", CLEAN)]))
    text = describe_histograms(summary)
    assert text.startswith("a: the mean cosine is 0.8")
    assert "above a clean one in 100.0" in text
    assert text.endswith("c: no pair is poisoned; the mean cosine is 0.31.")
    assert np.isnan(summary["above"].iloc[2])


def test_histograms_share_their_axes():
    figure = draw_histograms(histogram_bars([("a", WEAK), ("b", STRONG), ("c", CLEAN)]))
    assert figure.layout.xaxis.range == figure.layout.xaxis2.range == figure.layout.xaxis3.range
    assert figure.layout.yaxis.range == figure.layout.yaxis3.range
    assert [trace.name for trace in figure.data if trace.showlegend] == ["clean pairs", "poisoned pairs"]


def test_maps_are_shifted_to_their_middle_and_never_scaled():
    """From 10 to 20 the middle is 15, from -6 to 2 it is -2."""
    points = map_points([("a", MAP), ("b", MAP.assign(x=2 * MAP["x"]))])
    first = points[points["place"] == 0]
    assert first["x"].tolist() == [-5, -1, 5, 3]
    assert first["y"].tolist() == [2, 4, -4, 4]
    assert points[points["place"] == 1]["x"].tolist() == [-10, -2, 10, 6]
    figure = draw_maps(points)
    assert figure.layout.xaxis.range == figure.layout.yaxis2.range == pytest.approx((-10.6, 10.6))
    assert (figure.layout.yaxis.scaleanchor, figure.layout.yaxis2.scaleanchor) == ("x", "x2")


def test_maps_are_told_by_their_distances():
    both = pd.concat([DISTANCES.assign(place=0, checkpoint="a"), DISTANCES.assign(place=1, checkpoint="a")])
    assert describe_maps(both) == (
        "Mean distance of triggered images from those of the target class, as 1 - cosine: 0.12 in a (without the "
        "trigger 0.90, those of the class 0.25); 0.12 in a (without the trigger 0.90, those of the class 0.25)."
    )


def test_a_page_has_the_figures_of_what_was_examined():
    name = "<b>x</b>, epoch 1"
    text = render_examined("a <sweep>", [Examined(name, WEAK, MAP, DISTANCES), Examined("y", STRONG)])
    assert "<h1>a &lt;sweep&gt;: 2 checkpoints examined</h1>" in text
    assert 'id="cosines-section"' in text
    assert 'id="maps-section"' in text
    assert "<b>x</b>" not in text
    assert faint_marks(figures_of(text)) == []
    assert 'id="maps-section"' not in render_examined("s", [Examined("y", STRONG)])


def test_of_many_checkpoints_evenly_chosen_ones_are_drawn():
    text = render_examined("s", [Examined(f"epoch {epoch}", WEAK) for epoch in range(23)])
    drawn = [epoch for epoch in range(23) if f">epoch {epoch}<" in text]
    assert len(drawn) == MOST_PANELS
    assert drawn == list(range(0, 23, 2))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("short", "<b>short</b>"),
        (
            "par-tab-rn50-cleanclip-blended-text, trial 0",
            "<b>par-tab-rn50-</b><br><b>cleanclip-blended-text</b><br>trial 0",
        ),
        ("a" * 50, f"<b>{'a' * 22}</b><br><b>{'a' * 21}…</b>"),
        ("<i>, epoch 1", "<b>&lt;i&gt;</b><br>epoch 1"),
    ],
)
def test_a_long_name_above_a_panel_is_broken_and_then_cut(name: str, text: str):
    figure = go.Figure()
    style.name_panel(figure, name, 1)
    (annotation,) = figure.layout.annotations
    assert annotation.text == text
    assert annotation.xref == "x2 domain"
