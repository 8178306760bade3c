"""The best retention against what was spent until then: trial-epochs, and hours."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.records import SweepRecord, number_of


def budget_points(sweep: SweepRecord) -> pd.DataFrame:
    """One row a point at which the best retention so far rose, and one for the end, in the order of time.

    Columns: `spent` (trial-epochs until then), `hours` (since the first point of any trial; 0 in tables without
    times), `retention` (the best so far; missing before the first cleaned point), `trial`, `epoch`.
    """
    columns = sweep.columns()
    order = np.argsort(columns.timestamp_ms, kind="stable")
    frame = pd.DataFrame(
        {
            name: getattr(columns, name)[order]
            for name in ("trial", "epoch", "may_win", "accuracy", "asr", "timestamp_ms")
        }
    )
    if not frame["may_win"].any():
        return pd.DataFrame(columns=["spent", "hours", "retention", "trial", "epoch"])
    # What a point cost: the epochs since the trial's last one.
    steps = frame.groupby("trial")["epoch"].diff().fillna(frame["epoch"]).clip(lower=0)
    frame["spent"] = steps.cumsum()
    frame["hours"] = (frame["timestamp_ms"] - frame["timestamp_ms"].min()) / 3_600_000
    cleaned = frame["may_win"] & (frame["asr"] < sweep.asr_ceiling)
    frame["retention"] = frame["accuracy"].where(cleaned).cummax().ffill() / sweep.victim.accuracy
    rises = frame["retention"].notna() & (frame["retention"] != frame["retention"].shift())
    rises.iloc[-1] = True
    return frame.loc[rises, ["spent", "hours", "retention", "trial", "epoch"]].reset_index(drop=True)


def describe_budget(frame: pd.DataFrame) -> str:
    """The figure in one sentence."""
    total, known = frame["spent"].iloc[-1], frame.dropna(subset="retention")
    if known.empty:
        return f"Nothing was cleaned in {number_of(round(total), 'trial-epoch')}."
    best = known["retention"].max()
    arrived = known[known["retention"] == best].iloc[0]
    near = known[known["retention"] >= best - 0.01].iloc[0]
    share = f"{100 * near['spent'] / total:.0f}\u00a0%" if total else "–"
    return (
        f"Within one point of the best retention, {style.percent(best)}, after {near['spent']:,.0f} of "
        f"{number_of(round(total), 'trial-epoch')} ({share}); at the best itself after {arrived['spent']:,.0f}."
    )


def draw_budget(frame: pd.DataFrame) -> go.Figure:
    """Two panels, over trial-epochs and over time; one where no times are known.

    Args:
        frame: of `budget_points`, not empty.
    """
    figure = go.Figure()
    known = frame.dropna(subset="retention")
    hours = float(frame["hours"].iloc[-1])
    unit, per_hour = style.time_unit(hours)
    scales = [("spent", "trial-epochs", 1)]
    if per_hour * hours > 1:
        scales.append(("hours", f"{unit} since the first point", per_hour))
    heights = style.accuracy_range(known["retention"].to_numpy()) if len(known) else (0.0, 100.0)
    for index, (column, title, scale) in enumerate(scales):
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        figure.add_scatter(
            x=scale * known[column].to_numpy(dtype=float),
            y=100 * known["retention"].to_numpy(),
            xaxis=x,
            yaxis=y,
            mode="lines+markers",
            line={"color": style.BLUE, "width": 2, "shape": "hv"},
            marker={"color": style.BLUE, "size": 5},
            customdata=known["trial"].to_numpy(),
            meta={"epoch": known["epoch"].to_numpy()},
            name="best retention so far",
            showlegend=not index,
            hovertemplate="%{y:.1f} % after %{x:,.4g}<br>%{hovertext}<extra></extra>",
        )
        figure.update_layout(
            {
                style.axis_name("x", index): {
                    "anchor": y,
                    "title": {"text": title},
                    "range": [0, 1.02 * max(scale * float(frame[column].iloc[-1]), 0.01)],
                },
                style.axis_name("y", index): {"anchor": x, "range": list(heights), "nticks": 6},
            }
        )
        style.note_below(figure, 100 * known["retention"].to_numpy(), heights[0], index)
    return style.side_by_side(figure, count=len(scales), y_title="best retention (%)")
