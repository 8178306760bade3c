"""How much each parameter matters, for being cleaned and for what a cleaned trial keeps."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from dashboards import style

COLOURS = (style.GREEN, style.BLUE)


def importance_table(importances: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """One row a parameter, the most important first; one column a question (fractions, missing where not known).

    Args:
        importances: by question and parameter, each adding up to 1 over the parameters.
    """
    frame = pd.DataFrame(importances, dtype=float)
    order = frame.max(axis=1).sort_values(ascending=False, kind="stable").index
    return frame.loc[order].rename_axis("parameter").reset_index()


def describe_importance(frame: pd.DataFrame) -> str:
    """The figure in one sentence."""
    parts = []
    for question in frame.columns[1:]:
        first = int(frame[question].argmax())
        share = style.percent(float(frame[question].iloc[first]), 0)
        parts.append(f"{frame['parameter'].iloc[first]} decides most about {question} ({share})")
    return f"{'; '.join(parts)}. PED-ANOVA: each parameter by itself, without interactions."


def draw_importance(frame: pd.DataFrame) -> go.Figure:
    """A bar a parameter and question.

    Args:
        frame: of `importance_table`.
    """
    figure = go.Figure()
    for question, colour in zip(frame.columns[1:], COLOURS, strict=False):
        figure.add_bar(
            y=[style.label(name, 22) for name in frame["parameter"]],
            x=(100 * frame[question]).tolist(),
            orientation="h",
            marker={"color": colour},
            name=f"for {question}",
            hovertemplate="%{y}: %{x:.0f} %<extra></extra>",
        )
    figure.update_layout(
        template=style.TEMPLATE,
        margin={"l": 140, "r": 18},
        barmode="group",
        xaxis={"title": {"text": "importance (%)"}, "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "automargin": True},
    )
    layout = {"margin.t": 30, "margin.b": 56, "height": 110 + 44 * len(frame)}
    return style.responsive(figure, wide=layout, narrow=layout)
