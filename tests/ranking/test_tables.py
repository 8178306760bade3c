"""What is exported beside points and trials."""

import dataclasses
from pathlib import Path

import fabricated
import pandas as pd
import pytest

from sweeplab.orchestration.ledger import SweepFolder
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.tables import curve_table, epochs_table, export
from sweeplab.records import Point, SweepRecord


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A finished sweep, made up."""
    return fabricated.finished_sweep(tmp_path / "sweeps")


def with_curves(sweep: SweepRecord) -> SweepRecord:
    """The last point of every trial has two recorded steps."""
    curve = ({"step": 5, "loss": 2.0, "mmcl": 1.5}, {"step": 10, "loss": 1.0, "mmcl": 0.5})
    trials = [
        dataclasses.replace(trial, points=(*trial.points[:-1], dataclasses.replace(trial.points[-1], curve=curve)))
        for trial in sweep.trials
    ]
    return dataclasses.replace(sweep, trials=tuple(trials))


def test_curves_are_one_row_a_recorded_step(folder: SweepFolder):
    sweep = with_curves(folder.record())
    table = curve_table(sweep)
    assert len(table) == 2 * len(sweep.trials)
    assert table["step"].tolist()[:2] == [5, 10]
    assert set(table.columns) == {"trial", "step", "loss", "mmcl"}


def test_curves_are_exported_where_there_are_any(folder: SweepFolder, tmp_path: Path):
    sweep = folder.record()
    board = rank_trials(sweep, folder.outcomes)
    assert "curves.csv" not in [path.name for path in export(sweep, board, tmp_path / "without")]
    names = [path.name for path in export(with_curves(sweep), board, tmp_path / "with")]
    assert "curves.csv" in names
    assert len(pd.read_csv(tmp_path / "with" / "curves.csv")) == 2 * len(sweep.trials)


def test_points_of_records_from_before_top_5_was_counted_are_read(folder: SweepFolder):
    point = folder.record().trials[0].points[0]
    values = point.to_json()
    del values["measurement"]["top5_k"], values["curve"]
    assert Point.from_json(values) == point
    assert epochs_table(folder.record())["top5_accuracy"].isna().all()
