"""Tables of a sweep, one row a point or one row a trial: what is exported, and what an import reads back."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.records import SweepRecord

NOT_PARAMETERS = (
    *("trial", "epoch", "accuracy", "asr", "accuracy_k", "accuracy_n", "asr_k", "asr_n", "top5_accuracy"),
    *("seed", "step", "train_loss", "learning_rate_now", "seconds", "start_counts"),
)
"""Columns of `epochs_table` with a meaning of their own; every other one is a parameter."""


def epochs_table(sweep: SweepRecord) -> pd.DataFrame:
    """One row a point: trial, epoch, accuracy and ASR (fractions, and as counts), seed, and every parameter.

    `sweeplab import` reads these columns back; those that are no parameter are named in `NOT_PARAMETERS`.
    """
    counts = ("accuracy_k", "accuracy_n", "asr_k", "asr_n")
    rows = [
        {
            "trial": trial.number,
            "epoch": point.epoch,
            "accuracy": point.measurement.accuracy,
            "asr": point.measurement.asr,
            **{name: getattr(point.measurement, name) if point.measurement.is_counted else None for name in counts},
            "top5_accuracy": point.measurement.top5_accuracy,
            "seed": trial.seed,
            "step": point.step,
            "train_loss": point.train.get("loss"),
            "learning_rate_now": point.train.get("learning_rate"),
            "seconds": (point.train_seconds + point.evaluate_seconds) or None,
            "start_counts": trial.start_counts,
            **{name: trial.params.get(name) for name in sweep.parameters},
        }
        for trial in sweep.trials
        for point in trial.points
    ]
    table = pd.DataFrame(rows)
    if not rows:
        return table
    if table[list(counts)].isna().any(axis=None):
        table = table.astype(dict.fromkeys(counts, "Int64"))
    # A column without any number would be read back from CSV as another type than from Parquet.
    return table.astype({"top5_accuracy": float, "seconds": float})


def curve_table(sweep: SweepRecord) -> pd.DataFrame:
    """One row a recorded step: trial, step, the loss and its parts; empty unless the sweep set `log_every`."""
    return pd.DataFrame(
        [{"trial": trial.number, **entry} for trial in sweep.trials for point in trial.points for entry in point.curve]
    )


def trials_table(leaderboard: Leaderboard) -> pd.DataFrame:
    """One row a trial, in the order of the leaderboard."""
    rows = []
    for row in leaderboard.rows:
        values = row.to_json()
        params = values.pop("params")
        del values["checkpoint"]  # a place in this home, which says nothing where the table is read
        rows.append({**values, **params})
    table = pd.DataFrame(rows)
    return table.astype({"seconds": float}) if rows else table  # as in `epochs_table`


FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""How a text begins that a spreadsheet would take for a formula, or that is told from one by quotes."""


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """A table to be written as CSV: a quote stands before texts that a spreadsheet would run (`=`, `+`, `-`, `@`, tab,
    line ends), column names among them. Numbers, and texts that are numbers, stay: -0.5 is no formula.

    `with_formulas` takes the quotes away again.
    """

    def quoted(value: object) -> object:
        if not isinstance(value, str) or not FORMULA.match(value):
            return value
        try:
            float(value)
        except ValueError:
            return "'" + value
        return value

    return _with_texts(table, quoted)


def with_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """The table from which `without_formulas` was made."""

    def unquoted(value: object) -> object:
        return value[1:] if isinstance(value, str) and value.startswith("'") and FORMULA.match(value) else value

    return _with_texts(table, unquoted)


def _with_texts(table: pd.DataFrame, change: Callable[[object], object]) -> pd.DataFrame:
    """A copy with other texts and column names; columns of numbers are left alone, and so keep their types."""
    result = table.rename(columns=change)
    for position in range(table.shape[1]):
        column = table.iloc[:, position]
        if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
            result.isetitem(position, np.array([change(value) for value in column], dtype=object))
    return result


def export(sweep: SweepRecord, leaderboard: Leaderboard, folder: Path) -> list[Path]:
    """Write the tables as CSV and Parquet, the curves where there are any; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    tables = {"epochs": epochs_table(sweep), "trials": trials_table(leaderboard), "curves": curve_table(sweep)}
    for name, table in tables.items():
        if name == "curves" and table.empty:
            continue
        without_formulas(table).to_csv(folder / f"{name}.csv", index=False)
        table.to_parquet(folder / f"{name}.parquet", index=False)
        files += [folder / f"{name}.csv", folder / f"{name}.parquet"]
    return files
