"""What is exported beside points and trials."""

import csv
import dataclasses
from pathlib import Path

import fabricated
import pandas as pd
import pytest

from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.tables import curve_table, epochs_table, export, with_formulas, without_formulas
from sweeplab.records import Point, SweepRecord
from sweeplab.sweep_folder import SweepFolder


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


TEXTS = ["=1+1", "+1+1", "-x", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''=1", "'plain", "plain", "-0.5", "+1e-3", "", "a=b"]
"""What a spreadsheet would run, what is told from it by quotes, and what it takes as it is."""
CELLS = ["'" + text for text in TEXTS[:8]] + TEXTS[8:]


def test_a_text_that_a_spreadsheet_would_run_gets_a_quote_and_a_number_does_not():
    table = pd.DataFrame({"note": TEXTS, "=cmd": range(len(TEXTS)), "rate": [-0.5] * len(TEXTS)})
    found = without_formulas(table)
    assert found["note"].tolist() == CELLS
    assert found.columns.tolist() == ["note", "'=cmd", "rate"]
    assert (found.dtypes.iloc[1:].to_numpy() == table.dtypes.iloc[1:].to_numpy()).all()
    assert with_formulas(found).to_dict("list") == table.to_dict("list")


def test_columns_of_whole_numbers_with_gaps_stay_whole():
    table = pd.DataFrame({"count": pd.array([1, None], "Int64"), "mixed": pd.Series([1, None], dtype=object)})
    assert without_formulas(table).to_csv(index=False) == "count,mixed\n1,1\n,\n"


def test_no_cell_of_an_exported_sweep_is_a_formula(folder: SweepFolder, tmp_path: Path):
    sweep = folder.record()
    trials = tuple(
        dataclasses.replace(trial, reason="=HYPERLINK(1)", params={"=x": -0.5, "words": "-cmd|calc"})
        for trial in sweep.trials
    )
    sweep = dataclasses.replace(sweep, trials=trials, parameters=("=x", "words"))
    export(sweep, rank_trials(sweep, folder.outcomes), tmp_path)
    for name in ("epochs.csv", "trials.csv"):
        with (tmp_path / name).open(newline="") as file:
            cells = {cell for row in csv.reader(file) for cell in row}
        assert not [cell for cell in cells if cell[:1] in ("=", "@", "\t", "\r")]
        assert {"'=x", "'-cmd|calc", "-0.5"} <= cells
    assert pd.read_parquet(tmp_path / "epochs.parquet")["words"].iloc[0] == "-cmd|calc"
