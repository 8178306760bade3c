"""A small panel for each trial: how it moves through accuracy and ASR (Verma et al., App. K)."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from dashboards.bars import short_names
from sweeplab.ranking.compared import ComparedSweep, Comparison, is_number
from sweeplab.ranking.leaderboard import column_words
from sweeplab.records import TrialRecord, number_of

MOST_PANELS = 24
"""Of more trials the best of each sweep are drawn, equally many."""


def panel_points(comparison: Comparison, trials: Sequence[int] = ()) -> pd.DataFrame:
    """Every point of the chosen trials, the start too, by sweep and by the first parameter that takes several values.

    Columns: `panel` (its title: the sweep, where there are several, and the setting), `name` (of the sweep), `trial`,
    `id` (see `Comparison.trial_ids`), `series`, `epoch`, `accuracy`, `asr` (fractions). The attribute `chosen_from` is
    the number of trials of which the best were chosen; 0: they were asked for.

    Args:
        comparison: what is compared.
        trials: numbers of the trials, of every sweep; empty: all of them, or the best.
    """
    ids = comparison.trial_ids()
    rows: list[tuple[str, str, int, int, str, float, float, float]] = []
    sweeps, names = [item for item in comparison.sweeps if item.record.trials], short_names(comparison)
    for item in sweeps:
        for trial, title in _titles(item, _chosen(item, trials, MOST_PANELS // len(sweeps))):
            head = f"{names[item.name]}\n{title}" if len(sweeps) > 1 else title
            series = comparison.label(item, trial.params)
            rows += [
                (head, item.name, trial.number, ids[item.name] + trial.number, series, point.epoch, accuracy, asr)
                for point in trial.points
                if (asr := point.measurement.asr) is not None
                for accuracy in (point.measurement.accuracy,)
            ]
    frame = pd.DataFrame(rows, columns=["panel", "name", "trial", "id", "series", "epoch", "accuracy", "asr"])
    frame.attrs["chosen_from"] = 0 if trials else sum(row.epochs is not None for s in sweeps for row in s.board.rows)
    return frame


def _chosen(item: ComparedSweep, trials: Sequence[int], most: int) -> list[TrialRecord]:
    ranked = [row.trial for row in item.board.rows if row.epochs is not None]
    wanted = set(trials) if trials else set(ranked[: max(1, most)])
    return [trial for trial in item.record.trials if trial.number in wanted]


def _titles(item: ComparedSweep, trials: Sequence[TrialRecord]) -> list[tuple[TrialRecord, str]]:
    """Trials in the order of their settings, each with those that take several values in words."""
    varied = [name for name in item.record.parameters if len({str(trial.params.get(name)) for trial in trials}) > 1]
    words = {name: column_words([trial.params.get(name) for trial in trials]) for name in varied[:2]}
    titles = {
        trial.number: ", ".join(f"{name} {word[place]}" for name, word in words.items()) or f"trial {trial.number}"
        for place, trial in enumerate(trials)
    }

    def setting(trial: TrialRecord) -> list[tuple[bool, Any, str]]:
        values = [trial.params.get(name) for name in varied]
        return [(False, 0.0, str(value)) if not is_number(value) else (True, value, "") for value in values]

    return [(trial, titles[trial.number]) for trial in sorted(trials, key=setting)]


def describe_panels(frame: pd.DataFrame, asr_ceiling: float) -> str:
    """The figure in one sentence."""
    cleaned = frame[(frame["epoch"] > 0) & (frame["asr"] < asr_ceiling)]["id"].nunique()
    count, chosen_from = frame["id"].nunique(), frame.attrs["chosen_from"]
    shown, verb = number_of(count, "trial"), "comes" if cleaned == 1 else "come"
    if count < chosen_from:
        shown = f"Each sweep's best, {count} of {number_of(chosen_from, 'trial')}"
    return (
        f"{shown}, accuracy over ASR (%), markers growing with the epoch; {cleaned} of the {count} shown {verb} below "
        f"{style.ceiling_text(asr_ceiling)} ASR (dashed line)."
    )


def draw_panels(frame: pd.DataFrame, series: tuple[str, ...], *, asr_ceiling: float) -> go.Figure:
    """A panel a trial, all with the same axes.

    Args:
        frame: of `panel_points`, not empty.
        series: all labels, in order.
        asr_ceiling: a fraction.
    """
    figure = go.Figure()
    low, high = 100 * float(frame["accuracy"].min()), 100 * float(frame["accuracy"].max())
    heights = low - 0.08 * (high - low) - 0.5, high + 0.08 * (high - low) + 0.5
    last_epoch = max(float(frame["epoch"].max()), 1.0)
    shown: set[str] = set()
    for index, (_, points) in enumerate(frame.groupby("id", sort=False)):
        label = points["series"].iloc[0]
        colour, symbol, _ = style.look_of(series.index(label))
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        figure.add_scatter(
            x=100 * points["asr"].to_numpy(dtype=float),
            y=100 * points["accuracy"].to_numpy(dtype=float),
            xaxis=x,
            yaxis=y,
            customdata=points["id"].to_numpy(),
            meta={"epoch": points["epoch"].to_numpy(dtype=float)},
            mode="lines+markers",
            line={"color": colour, "width": 1.4},
            marker={
                "symbol": symbol,
                "size": 4 + 6 * points["epoch"].to_numpy(dtype=float) / last_epoch,
                "color": colour,
                "opacity": 1,
                "line": {"width": 0.8, "color": style.PAPER},
            },
            name=style.label(label, 60),
            legendgroup=label,
            legendrank=series.index(label),
            showlegend=label not in shown,
            hovertemplate=style.HOVER,
        )
        shown.add(label)
        text = "<br>".join(style.label(line, 38) for line in str(points["panel"].iloc[0]).split("\n"))
        title = {"text": text, "font": {"size": 12, "color": style.INK}}
        figure.update_layout(
            {
                style.axis_name("x", index): {
                    "anchor": y,
                    "range": [-3, 103],
                    "tickvals": [0, 50, 100],
                    "title": title,
                },
                style.axis_name("y", index): {"anchor": x, "range": list(heights), "nticks": 4},
            }
        )
        style.upright_line(figure, 100 * asr_ceiling, index)
    count = frame["id"].nunique()
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18, "autoexpand": False})
    return style.responsive(
        figure,
        wide=style.panels(count, min(count, 4), panel=150, gap=84, between=0.04, y_title="accuracy (%)"),
        narrow=style.panels(count, 1, panel=110, top=30, gap=84, y_title="accuracy (%)"),
    )
