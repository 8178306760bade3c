"""The best retention against the ASR ceiling: what a stricter or a laxer ceiling would cost or buy."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.evaluation.retention import retention
from sweeplab.records import SweepRecord

CEILINGS = tuple(round(0.005 * step, 3) for step in range(2, 41))
"""From 1 % to 20 %."""


def ceiling_points(sweep: SweepRecord) -> pd.DataFrame:
    """One row a ceiling, the sweep's own among them: what the sweep would have found under it.

    Columns: `ceiling` (a fraction), `cleaned` (trials with a point strictly below it), and of the most accurate such
    point `retention`, `accuracy`, `asr` (fractions; missing where there is none), `trial`, `epoch`. Empty where no ASR
    was measured.
    """
    columns = sweep.columns()
    chosen = columns.may_win & (columns.asr_n > 0)
    frame = pd.DataFrame({name: getattr(columns, name)[chosen] for name in ("trial", "epoch", "accuracy", "asr")})
    if frame.empty:
        return pd.DataFrame(columns=["ceiling", "cleaned", "retention", "accuracy", "asr", "trial", "epoch"])
    lowest = frame.groupby("trial")["asr"].min().to_numpy()
    best_first = frame.sort_values(["accuracy", "asr", "trial"], ascending=[False, True, True])
    rows = []
    for ceiling in sorted({*CEILINGS, sweep.asr_ceiling}):
        below = np.flatnonzero(best_first["asr"].to_numpy() < ceiling)
        row = {"ceiling": ceiling, "cleaned": int((lowest < ceiling).sum())}
        if len(below):
            best = best_first.iloc[below[0]]
            row |= best.to_dict() | {"retention": retention(best["accuracy"], sweep.victim.accuracy)}
        rows.append(row)
    return pd.DataFrame(rows, columns=["ceiling", "cleaned", "retention", "accuracy", "asr", "trial", "epoch"])


def describe_ceilings(frame: pd.DataFrame, asr_ceiling: float) -> str:
    """The figure in one sentence."""
    known = frame.dropna(subset="retention")
    if known.empty:
        return f"No trial lies below {style.ceiling_text(frame['ceiling'].max())} ASR."
    own = known[known["ceiling"] == asr_ceiling]
    first, last = known.iloc[0], known.iloc[-1]
    parts = [
        f"below {style.ceiling_text(first['ceiling'])} ASR the best point keeps {style.percent(first['retention'])}"
    ]
    if len(own) and asr_ceiling not in (first["ceiling"], last["ceiling"]):
        parts.append(f"below {style.ceiling_text(asr_ceiling)} it keeps {style.percent(own.iloc[0]['retention'])}")
    if last["ceiling"] > first["ceiling"]:
        parts.append(f"below {style.ceiling_text(last['ceiling'])} it keeps {style.percent(last['retention'])}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def draw_ceilings(frame: pd.DataFrame, *, asr_ceiling: float) -> go.Figure:
    """Two panels: the best retention, and the number of trials with a cleaned epoch.

    Args:
        frame: of `ceiling_points`, not empty.
        asr_ceiling: of the sweep, a fraction.
    """
    figure = go.Figure()
    known = frame.dropna(subset="retention")
    figure.add_scatter(
        x=100 * known["ceiling"].to_numpy(),
        y=100 * known["retention"].to_numpy(),
        mode="lines+markers",
        line={"color": style.BLUE, "width": 2, "shape": "hv"},
        marker={"color": style.BLUE, "size": 5},
        customdata=known["trial"].to_numpy(dtype=int),
        meta={"epoch": known["epoch"].to_numpy()},
        name="best retention",
        hovertemplate="ceiling %{x:g} %: %{y:.1f} %<br>%{hovertext}<extra></extra>",
    )
    figure.add_scatter(
        x=100 * frame["ceiling"].to_numpy(),
        y=frame["cleaned"].to_numpy(),
        mode="lines",
        line={"color": style.GREEN, "width": 2, "shape": "hv"},
        xaxis="x2",
        yaxis="y2",
        name="trials with an epoch below the ceiling",
        hovertemplate="trials below %{x:g} %: %{y:,}<extra></extra>",
    )
    kept = 100 * known["retention"].to_numpy() if len(known) else np.array([0.0, 100.0])
    room = max(0.5, 0.08 * float(np.ptp(kept)))
    heights = float(kept.min()) - room, float(kept.max()) + room
    for index, title in enumerate(("best retention (%)", "cleaned trials")):
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        figure.update_layout(
            {
                style.axis_name("x", index): {
                    "anchor": y,
                    "title": {"text": "ASR ceiling (%)"},
                    "nticks": 8,
                    "range": [0, 102 * float(frame["ceiling"].max())],
                },
                style.axis_name("y", index): {"anchor": x, "nticks": 6, "title": {"text": title}},
            }
        )
        style.upright_line(figure, 100 * asr_ceiling, index)
    figure.update_layout(yaxis={"range": list(heights)}, yaxis2={"rangemode": "tozero"})
    return style.side_by_side(figure)
