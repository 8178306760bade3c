"""The victim's training: accuracy and ASR by epoch, and which epoch was taken."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.records import Point, number_of


def pretraining_points(points: Sequence[Point]) -> pd.DataFrame:
    """One row an epoch of the victim's training.

    Columns: `epoch`, `accuracy`, `asr` (fractions, under the victim's own evaluation; `asr` is missing where no trigger
    was measured), `loss` (nats, mean since the last epoch; missing at the start).
    """
    rows = [
        (point.epoch, point.measurement.accuracy, point.measurement.asr, point.train.get("loss")) for point in points
    ]
    return pd.DataFrame(rows, columns=["epoch", "accuracy", "asr", "loss"], dtype=float)


def describe_pretraining(frame: pd.DataFrame, selected: float) -> str:
    """The figure in one sentence."""
    taken = frame[frame["epoch"] == selected]
    if taken.empty:
        return f"{number_of(len(frame), 'epoch')}; none of them is the victim's."
    row = taken.iloc[0]
    last_below = frame.loc[frame["asr"] <= 0.5, "epoch"].max()  # nan where there is none
    planted = frame[(frame["asr"] > 0.5) & ~(frame["epoch"] <= last_below)]
    when = f"; above 50\u00a0% ASR from epoch {planted['epoch'].iloc[0]:g} on" if len(planted) else ""
    rates = f"{style.percent(row['accuracy'])} accuracy at {style.percent(row['asr'])} ASR"
    return f"Epoch {selected:g} was taken: {rates}{when}."


def draw_pretraining(frame: pd.DataFrame, selected: float) -> go.Figure:
    """Two panels: the rates, and the loss.

    Args:
        frame: of `pretraining_points`, not empty.
        selected: the victim's epoch.
    """
    figure = go.Figure()
    for column, name, colour, dash in (
        ("accuracy", "accuracy", style.BLUE, "solid"),
        ("asr", "ASR", style.VERMILLION, "dash"),
    ):
        figure.add_scatter(
            x=frame["epoch"].to_numpy(),
            y=100 * frame[column].to_numpy(),
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"color": colour, "size": 6},
            name=name,
            hovertemplate=f"epoch %{{x:g}}: {name} %{{y:.1f}} %<extra></extra>",
        )
    lost = frame.dropna(subset="loss")
    figure.add_scatter(
        x=lost["epoch"].to_numpy(),
        y=lost["loss"].to_numpy(),
        xaxis="x2",
        yaxis="y2",
        mode="lines+markers",
        line={"color": style.GREEN, "width": 2},
        marker={"color": style.GREEN, "size": 6},
        name="loss",
        hovertemplate="epoch %{x:g}: loss %{y:.4g}<extra></extra>",
    )
    for index, title in enumerate(("rate (%)", "loss (nats)")):
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        figure.update_layout(
            {
                style.axis_name("x", index): {"anchor": y, "title": {"text": "epoch of the victim's training"}},
                style.axis_name("y", index): {"anchor": x, "title": {"text": title}, "nticks": 6},
            }
        )
        style.upright_line(figure, selected, index)
    figure.update_layout(yaxis={"range": [-2, 102]})
    return style.side_by_side(figure)
