"""The best trials compared image by image: on how many images does one succeed where the other fails?"""

import itertools
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from sweeplab.evaluation.retention import HALF
from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.ranking.paired import holm, paired
from sweeplab.ranking.summary import ReadOutcomes
from sweeplab.records import SweepRecord, number_of

MOST_OTHERS = 5
"""Trials that the best one is compared with."""


def compared_trials(
    sweep: SweepRecord, leaderboard: Leaderboard, outcomes: ReadOutcomes, most: int = MOST_OTHERS
) -> pd.DataFrame:
    """One row a trial that follows the best one, at the best cleaned point of each.

    Columns: `best`, `trial` (numbers), `images` (clean test images), `only_best`, `only_other` (images that one alone
    classifies correctly), `p_accuracy` (McNemar's exact test, two-sided, corrected by Holm over the rows),
    `hits_only_best`, `hits_only_other` (triggered images that hit in one alone), `p_asr` (likewise). Trials that keep
    less than half of the victim's accuracy have no part in it: the bars of one that was destroyed would squeeze all
    others. Empty where outcomes of two others are not there. The trials were chosen on these images, which no
    correction undoes.
    """
    columns = ["best", "trial", "images", "only_best", "only_other", "p_accuracy"]
    columns += ["hits_only_best", "hits_only_other", "p_asr"]
    trials = {trial.number: trial for trial in sweep.trials}
    found = []
    for row in leaderboard.rows[: most + 1]:
        if row.retention is None or row.retention < HALF:
            break
        index = next(point.index for point in trials[row.trial].points if point.epoch == row.epoch)
        if (kept := outcomes(row.trial, index)) is not None and kept.num_images:
            found.append((row.trial, kept))
    rows = []
    for trial, other in found[1:]:
        best, first = found[0]
        if (first.num_images, first.num_triggered) != (other.num_images, other.num_triggered):
            continue
        accuracy = paired(first.correct_mask(), other.correct_mask())
        hits = paired(first.hit_mask(), other.hit_mask())
        rows.append((best, trial, first.num_images, *accuracy, *hits))
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(p_accuracy=holm(frame["p_accuracy"].tolist()), p_asr=holm(frame["p_asr"].tolist()))


def describe_comparison(frame: pd.DataFrame, below_half: int = 0) -> str:
    """The figure in a sentence or two.

    Args:
        frame: of `compared_trials`, not empty.
        below_half: how many cleaned trials keep less than half of the victim's accuracy.
    """
    keep, are = ("keeps", "is") if below_half == 1 else ("keep", "are")
    destroyed = (
        f" {number_of(below_half, 'cleaned trial')} {keep} less than half of the accuracy and {are} not compared."
    )
    return _told_apart(frame) + (destroyed if below_half else "")


def _told_apart(frame: pd.DataFrame) -> str:
    told = frame[frame["p_accuracy"] < 0.05]
    best = frame["best"].iloc[0]
    following = "one" if len(frame) == 1 else str(len(frame))
    if told.empty:
        return (
            f"On these images trial {best} cannot be told apart from the next {following} by accuracy "
            f"({_test(frame)} ≥ 0.05): choose among them by ASR or cost."
        )
    same = len(frame) - len(told)
    rest = f"; from {number_of(same, 'other')} it cannot" if same else ""
    apart = f"By accuracy trial {best} can be told apart from {len(told)} of the next {following}"
    return f"{apart} ({_test(frame)} < 0.05){rest}. The same images chose the trials."


def _test(frame: pd.DataFrame) -> str:
    """How the p values of a figure were made."""
    return "McNemar, p" if len(frame) == 1 else f"McNemar, corrected by Holm for {len(frame)} comparisons, p"


def _ticks(most: int) -> dict[str, list[Any]]:
    """Round numbers of images on both sides of 0, two a side at most, which a narrow window has room for."""
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    step = next(step for step in steps if most // step <= 2)
    values = [step * place for place in range(-(most // step), most // step + 1)]
    return {"tickvals": values, "ticktext": [f"{abs(value):,}" for value in values]}


def draw_comparison(frame: pd.DataFrame) -> go.Figure:
    """Two bars a trial: the images that only the best one, and only it, classifies correctly.

    Args:
        frame: of `compared_trials`, not empty.
    """
    figure = go.Figure()
    names = [f"trial {number}" for number in frame["trial"]]
    for column, name, colour, sign in (
        ("only_best", f"correct only in trial {frame['best'].iloc[0]}, the best", style.ORANGE, -1),
        ("only_other", "correct only in the other", style.BLUE, 1),
    ):
        figure.add_bar(
            y=names,
            x=(sign * frame[column]).tolist(),
            text=frame[column].tolist(),
            texttemplate="%{text:,}",
            orientation="h",
            marker={"color": colour},
            customdata=frame["trial"].to_numpy(),
            name=name,
            hovertemplate="images: %{text:,}<br>%{hovertext}<extra></extra>",
        )
    most = max(1, int(frame[["only_best", "only_other"]].to_numpy().max()))
    figure.update_layout(
        template=style.TEMPLATE,
        margin={"l": 84, "r": 18},
        barmode="relative",
        xaxis={"title": {"text": "images"}, "range": [-1.15 * most, 1.15 * most], **_ticks(most)},
        yaxis={"autorange": "reversed"},
    )
    layout = {"margin.t": 30, "margin.b": 46, "height": 110 + 40 * len(frame)}
    return style.responsive(figure, wide=layout, narrow=layout)
