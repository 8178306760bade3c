"""Lines over epochs or steps: the training of victims, tables over checkpoints, and cleaning (PAR, Fig. 4)."""

from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go

from dashboards import style
from dashboards.bars import QUANTITIES, RATES, short_names
from dashboards.curves import thinned
from sweeplab.ranking.compared import (
    ComparedSweep,
    ComparedTable,
    ComparedVictim,
    Comparison,
    best_results,
    result_table,
)
from sweeplab.ranking.victims import found_in
from sweeplab.records import Point, TrialRecord

COLUMNS = ("line", "part", "quantity", "x", "value")

SCORES = "mean cosine of image and caption"
SHARES = {"safe_share": "safe pairs, of all pairs (%)", **QUANTITIES}

MOST_LINES = 12
"""Lines in a panel, the first ones."""


def training_points(comparison: Comparison) -> pd.DataFrame:
    """What victims and tables hold, over the epochs of training.

    Columns: `line` (name of the victim or table), `part` (`clean` or `poisoned` pairs, where both stand in a panel),
    `quantity` (title of the panel), `x` (epoch), `value` (percent, nats, pairs or cosine).
    """
    rows: list[tuple[str, str, str, float, float]] = []
    for item in comparison.others[:MOST_LINES]:
        if isinstance(item, ComparedVictim):
            for point in item.row.points:
                rows += [(item.name, "", quantity, point.epoch, value) for quantity, value in _of_point(point, item)]
        elif isinstance(item, ComparedTable):
            for entry in item.table.dropna(subset="epoch").to_dict("records"):
                shares = [(title, "", 100 * entry[name]) for name, title in SHARES.items() if name in entry]
                scores = [(SCORES, part, entry.get(f"{part}_score")) for part in ("clean", "poisoned")]
                rows += [(item.name, part, title, entry["epoch"], value) for title, part, value in [*scores, *shares]]
    return _frame(rows)


def _of_point(point: Point, victim: ComparedVictim) -> Iterator[tuple[str, float]]:
    yield "accuracy (%)", 100 * point.measurement.accuracy
    if point.measurement.asr is not None:
        yield f"{victim.row.measures} (%)", 100 * point.measurement.asr
    if "loss" in point.train:
        yield "loss (nats)", point.train["loss"]
    for name, count in found_in(point).items():
        yield name.replace("_", " "), count


def cleaning_points(comparison: Comparison, trials: Sequence[int] = ()) -> pd.DataFrame:
    """Accuracy, ASR and loss of each sweep's best trial in each series, over steps where losses were recorded at some,
    else over epochs. Columns as in `training_points`.

    Args:
        comparison: what is compared.
        trials: numbers of others to show; empty: the best.
    """
    chosen = chosen_trials(comparison, trials)
    over_steps = any(trial.has_curve for _, trial in chosen)
    names = short_names(comparison)
    rows: list[tuple[str, str, str, float, float]] = []
    for item, trial in chosen[:MOST_LINES]:
        line = f"{names[item.name]}, trial {trial.number}"
        for point in trial.points:
            x = point.step if over_steps else point.epoch
            rows.append((line, "", "accuracy (%)", x, 100 * point.measurement.accuracy))
            if point.measurement.asr is not None:
                rows.append((line, "", f"{item.measures} (%)", x, 100 * point.measurement.asr))
            if not over_steps and "loss" in point.train:
                rows.append((line, "", "loss (nats)", x, point.train["loss"]))
            for entry in point.curve:
                parts = ((f"{part} (nats or distance)", value) for part, value in entry.items() if part != "step")
                rows += [(line, "", title, entry["step"], value) for title, value in parts]
    frame = _frame(rows)
    frame.attrs["x"] = "step" if over_steps else "epoch"
    return frame


def chosen_trials(comparison: Comparison, trials: Sequence[int] = ()) -> list[tuple[ComparedSweep, TrialRecord]]:
    """The trials of these numbers of every sweep; without any, the best of each series."""
    results = best_results(result_table(comparison))
    best = set(zip(results["name"], results["trial"], strict=True))
    return [
        (item, trial)
        for item in comparison.sweeps
        for trial in item.record.trials
        if (trial.number in trials if trials else (item.name, trial.number) in best)
    ]


def _frame(rows: list[tuple[str, str, str, float, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=COLUMNS).dropna(subset="value").astype({"x": float, "value": float})
    frame.attrs["x"] = "epoch"
    return frame


def describe_lines(frame: pd.DataFrame) -> str:
    """The figure in one sentence: what each line ends at, of the first panel that has ends worth naming."""
    titles = list(dict.fromkeys(frame["quantity"]))
    quantity = next((title for title in titles if title.startswith(("ASR", "PSR", "poisons", SCORES))), titles[0])
    digits = ".1f" if quantity.endswith("(%)") else ".3g"
    first_and_last = f"from {{0:{digits}}} to {{1:{digits}}}"
    ends = [
        f"{line}{f', {part}' if part else ''} {first_and_last.format(*points['value'].iloc[[0, -1]])}"
        for (line, part), points in frame[frame["quantity"] == quantity].groupby(["line", "part"], sort=False)
    ]
    more = f" and {len(ends) - 6} more" if len(ends) > 6 else ""
    what = quantity[0].upper() + quantity[1:]
    return f"{what}, first and last {frame.attrs['x']}: {'; '.join(ends[:6])}{more}."


def draw_lines(frame: pd.DataFrame, *, asr_ceiling: float | None = None) -> go.Figure:
    """A panel a quantity, a line for each that has it.

    Args:
        frame: of `training_points` or `cleaning_points`, not empty.
        asr_ceiling: a fraction, drawn in the panel of the ASR; None: nothing was to be cleaned.
    """
    figure = go.Figure()
    quantities, lines = list(dict.fromkeys(frame["quantity"])), list(dict.fromkeys(frame["line"]))
    shown: set[str] = set()
    for index, quantity in enumerate(quantities):
        x, y = style.axis_id("x", index), style.axis_id("y", index)
        mine = frame[frame["quantity"] == quantity]
        for (line, part), points in mine.groupby(["line", "part"], sort=False):
            colour, symbol, dash = style.look_of(lines.index(line))
            name = f"{line}, {part} pairs" if part else line
            few = thinned(points.sort_values("x"))
            figure.add_scatter(
                x=few["x"].to_numpy(),
                y=few["value"].to_numpy(),
                xaxis=x,
                yaxis=y,
                mode="lines+markers" if len(few) <= 40 else "lines",
                line={"color": colour, "width": 1.8, "dash": {"clean": "solid", "poisoned": "dot"}.get(part, dash)},
                marker={"color": colour, "size": 6, "symbol": f"{symbol}-open" if part == "poisoned" else symbol},
                name=style.label(name, 60),
                legendgroup=name,
                legendrank=2 * lines.index(line) + (part == "poisoned"),
                showlegend=name not in shown,
                hovertemplate=f"{style.label(name, 60)}, {frame.attrs['x']} %{{x:g}}: %{{y:.4g}}<extra></extra>",
            )
            shown.add(name)
        title = {"text": f"{style.label(quantity, 60)}, over {frame.attrs['x']}s", "font": {"color": style.INK}}
        is_rate = quantity.endswith("(%)")
        figure.update_layout(
            {
                style.axis_name("x", index): {"anchor": y, "nticks": 6, "title": title},
                style.axis_name("y", index): {
                    "anchor": x,
                    "nticks": 6,
                    "rangemode": "tozero" if is_rate else "normal",
                },
            }
        )
        if quantity in RATES and asr_ceiling is not None:
            style.dotted_line(figure, 100 * asr_ceiling, index)
    figure.update_layout(template=style.TEMPLATE, margin={"l": 58, "r": 18})
    columns = min(len(quantities), 3) if len(quantities) != 4 else 2
    return style.responsive(
        figure,
        wide=style.panels(len(quantities), columns, panel=230, y_title=""),
        narrow=style.panels(len(quantities), 1, panel=210, top=30, y_title=""),
    )
