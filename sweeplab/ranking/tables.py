"""Tables of a sweep, one row a point or one row a trial: what is exported, and what an import reads back."""

from pathlib import Path

import pandas as pd

from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.records import SweepRecord


def epochs_table(sweep: SweepRecord) -> pd.DataFrame:
    """One row a point: trial, epoch, accuracy and ASR (fractions, and as counts), seed, and every parameter."""
    rows = [
        {
            "trial": trial.number,
            "epoch": point.epoch,
            "accuracy": point.measurement.accuracy,
            "asr": point.measurement.asr,
            "accuracy_k": point.measurement.accuracy_k,
            "accuracy_n": point.measurement.accuracy_n,
            "asr_k": point.measurement.asr_k,
            "asr_n": point.measurement.asr_n,
            "seed": trial.seed,
            "step": point.step,
            "train_loss": point.train.get("loss"),
            "learning_rate_now": point.train.get("learning_rate"),
            "seconds": point.train_seconds + point.evaluate_seconds,
            **{name: trial.params.get(name) for name in sweep.parameters},
        }
        for trial in sweep.trials
        for point in trial.points
    ]
    return pd.DataFrame(rows)


def trials_table(leaderboard: Leaderboard) -> pd.DataFrame:
    """One row a trial, in the order of the leaderboard."""
    rows = []
    for row in leaderboard.rows:
        values = row.to_json()
        params = values.pop("params")
        rows.append({**values, **params})
    return pd.DataFrame(rows)


def export(sweep: SweepRecord, leaderboard: Leaderboard, folder: Path) -> list[Path]:
    """Write both tables as CSV and Parquet; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, table in (("epochs", epochs_table(sweep)), ("trials", trials_table(leaderboard))):
        table.to_csv(folder / f"{name}.csv", index=False)
        table.to_parquet(folder / f"{name}.parquet", index=False)
        files += [folder / f"{name}.csv", folder / f"{name}.parquet"]
    return files
