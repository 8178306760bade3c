"""Tables that were measured elsewhere, as sweeps of the home: ranked, drawn, exported and replayed like any other."""

import math
import os
import re
import shutil
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from sweeplab.data.pairs import refuse_swallowed
from sweeplab.ranking.tables import NOT_PARAMETERS, with_formulas
from sweeplab.records import Measurement, Outcomes, Point, Victim, now_ms
from sweeplab.search_space import spans_magnitudes
from sweeplab.specs import SCHEMA_VERSION, InvalidInput, digest_of, file_digest
from sweeplab.storage.files import make_private, sync_folder
from sweeplab.storage.ownership import write_signed
from sweeplab.sweep_folder import SweepFolder
from sweeplab.versions import environment

REQUIRED = ("trial", "epoch", "accuracy", "asr")

COUNTS = ("accuracy_k", "accuracy_n", "asr_k", "asr_n")

SUFFIXES = (".csv", ".json", ".parquet")


@dataclass(frozen=True)
class ImportedTrial:
    """One trial of a table."""

    number: int
    params: dict[str, Any]
    seed: int
    points: tuple[Point, ...]
    start_counts: bool


@dataclass(frozen=True)
class ImportedTable:
    """A table that was read and checked."""

    victim: Measurement
    trials: tuple[ImportedTrial, ...]
    parameters: tuple[str, ...]
    digest: str
    """Of the file's bytes."""


def import_table(
    file: Path,
    home: Path,
    name: str,
    *,
    victim_accuracy: float | None = None,
    victim_asr: float | None = None,
    asr_ceiling: float = 0.05,
) -> SweepFolder:
    """Write a table as a finished sweep of the home.

    Args:
        file: .csv, .json (records) or .parquet; one row a point. Columns `trial`, `epoch`, `accuracy`, `asr`
            (fractions; epoch 0 is the victim); optional counts, `seed`, and what `sweeplab export` writes; every other
            column is a parameter.
        home: of the sweeps.
        name: of the sweep; must be free.
        victim_accuracy: a fraction; None: epoch 0 says it.
        victim_asr: the same.
        asr_ceiling: a point is cleaned strictly below it.

    Raises:
        InvalidInput: for a table that breaks a rule, or a name that is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise InvalidInput(
            f"--sweep={name!r} must begin with a letter or digit and hold letters, digits, '.', '_', '-'"
        )
    folder = SweepFolder.of(home, name)
    if folder.path.exists():
        raise InvalidInput(f"sweep {name!r} exists in {folder.path.parent}; import under another name")
    if not 0 < asr_ceiling <= 1:
        raise InvalidInput(f"--asr-ceiling={asr_ceiling} must lie in (0, 1]")
    table = read_table(file, victim_accuracy=victim_accuracy, victim_asr=victim_asr)
    # Written aside and renamed: a kill leaves no half table that looks like a finished sweep.
    stage = SweepFolder(home / "sweeps" / f".importing-{name}")
    shutil.rmtree(stage.path, ignore_errors=True)
    make_private(stage.path)
    _write(stage, table, file, name, asr_ceiling)
    os.rename(stage.path, folder.path)
    sync_folder(folder.path.parent)
    return folder


def _write(stage: SweepFolder, table: ImportedTable, file: Path, name: str, asr_ceiling: float) -> None:
    stage.commit_victim(Victim("imported", table.digest, "", 0.0, table.victim, Outcomes(b"", 0, b"", 0)))
    for trial in table.trials:
        stage.write_trial(
            trial.number,
            trial.params,
            configuration=digest_of(trial.params),
            seed=trial.seed,
            start_counts=trial.start_counts,
        )
        run = stage.trial(trial.number)
        run.write_points(list(trial.points))
        run.finish({"state": "finished"})
    epochs = max(point.epoch for trial in table.trials for point in trial.points)
    values = {parameter: [t.params[parameter] for t in table.trials if parameter in t.params]
              for parameter in table.parameters}  # fmt: skip
    write_signed(
        stage.path / "sweep.json",
        {
            "schema": SCHEMA_VERSION,
            "name": name,
            "identity": uuid4().hex[:8],
            "digest": table.digest,
            "contents": {"table": table.digest},
            "imported": {"file": file.name, "sha256": table.digest},
            "protocol": "not known",
            "spec": {
                "name": name,
                "method": {"kind": "imported"},
                "epochs": math.ceil(epochs),
                "search": {"asr_ceiling": asr_ceiling},
            },
            "planned_trials": len(table.trials),
            "parameters": list(table.parameters),
            "log_parameters": [parameter for parameter in table.parameters if spans_magnitudes(values[parameter])],
            "target": "not known",
            "victim_name": "imported",
            "environment": environment(),
        },
        stage.home,
    )


def read_table(file: Path, *, victim_accuracy: float | None = None, victim_asr: float | None = None) -> ImportedTable:
    """Read and check a table; see `import_table`."""
    frame = _read(file)
    missing = [column for column in REQUIRED if column not in frame.columns]
    if missing:
        raise InvalidInput(
            f"{file} has no column {', '.join(missing)}; it needs {', '.join(REQUIRED)} and has "
            f"{', '.join(map(str, frame.columns))}"
        )
    if frame.empty:
        raise InvalidInput(f"{file} has no rows")
    _check_numbers(file, frame)
    content = file_digest(file)
    given = _given_victim(victim_accuracy, victim_asr)
    victim = _victim(file, frame, given, f"imported-{content}")
    parameters = tuple(str(column) for column in frame.columns if column not in NOT_PARAMETERS)
    by_trial = frame.sort_values(["trial", "epoch"], kind="stable").groupby("trial")
    trials = tuple(_trial(file, int(rows["trial"].iloc[0]), rows, parameters, victim) for _, rows in by_trial)
    return ImportedTable(victim, trials, parameters, content)


def _read(file: Path) -> pd.DataFrame:
    if file.suffix not in SUFFIXES:
        raise InvalidInput(f"{file}: a table is a file that ends in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise InvalidInput(f"table {file} does not exist")
    try:
        if file.suffix == ".csv":
            frame = pd.read_csv(file)
            refuse_swallowed(file, len(frame), is_row=lambda row: set(REQUIRED) <= set(row))
            return with_formulas(frame)
        if file.suffix == ".json":
            return pd.read_json(file, orient="records", precise_float=True, convert_dates=False)
        return pd.read_parquet(file)
    except InvalidInput:
        raise
    except (ValueError, OSError) as error:
        raise InvalidInput(f"{file} cannot be read as {file.suffix[1:]} ({error})") from error


def _check_numbers(file: Path, frame: pd.DataFrame) -> None:
    for column in REQUIRED:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        if numbers.isna().any():
            row = int(numbers.isna().to_numpy().argmax())
            value = _plain(frame[column].iloc[row])
            raise InvalidInput(f"{file}: {column}={value!r} in row {row + 1} must be a number; leave such rows out")
    for column in ("accuracy", "asr"):
        outside = ~frame[column].between(0, 1)
        if outside.any():
            row = int(outside.to_numpy().argmax())
            raise InvalidInput(
                f"{file}: {column}={frame[column].iloc[row]} in row {row + 1} must be a fraction in [0, 1]; "
                "divide percentages by 100"
            )
    for column, is_wrong, rule in (
        ("trial", (frame["trial"] < 0) | (frame["trial"] % 1 != 0), "a whole number from 0"),
        ("epoch", (frame["epoch"] < 0) | ~frame["epoch"].abs().lt(math.inf), "a number from 0"),
    ):
        if is_wrong.any():
            row = int(is_wrong.to_numpy().argmax())
            raise InvalidInput(f"{file}: {column}={frame[column].iloc[row]} in row {row + 1} must be {rule}")
    repeated = frame.duplicated(["trial", "epoch"])
    if repeated.any():
        first = frame[repeated].iloc[0]
        raise InvalidInput(
            f"{file} has two rows of trial {first['trial']:g}, epoch {first['epoch']:g}; every point stands there once"
        )
    some = [column for column in COUNTS if column in frame.columns]
    if some and len(some) < len(COUNTS):
        absent = [column for column in COUNTS if column not in some]
        raise InvalidInput(f"{file} has {', '.join(some)} and no {', '.join(absent)}; give all four counts or none")


def _given_victim(accuracy: float | None, asr: float | None) -> tuple[float, float] | None:
    if accuracy is None and asr is None:
        return None
    if accuracy is None or asr is None:
        raise InvalidInput("--victim-accuracy and --victim-asr belong together; give both, or neither")
    for name, value in (("--victim-accuracy", accuracy), ("--victim-asr", asr)):
        if not 0 <= value <= 1:
            raise InvalidInput(f"{name}={value} must be a fraction in [0, 1]; divide percentages by 100")
    return accuracy, asr


def _victim(file: Path, frame: pd.DataFrame, given: tuple[float, float] | None, digest: str) -> Measurement:
    if given is not None:
        victim = Measurement.of_fractions(*given, digest)
    else:
        starts = frame[frame["epoch"] == 0]
        if "start_counts" in frame.columns:
            starts = starts[~starts["start_counts"].astype(bool)]
        if starts.empty:
            raise InvalidInput(
                f"{file} has no row of epoch 0, so nothing says how accurate the victim was; add one, or give "
                "--victim-accuracy and --victim-asr"
            )
        different = starts[["accuracy", "asr"]].drop_duplicates()
        if len(different) > 1:
            one, other = different.iloc[0], different.iloc[1]
            raise InvalidInput(
                f"{file}: the rows of epoch 0 are the victim and disagree (accuracy {one['accuracy']:g} and ASR "
                f"{one['asr']:g}, accuracy {other['accuracy']:g} and ASR {other['asr']:g}); give --victim-accuracy "
                "and --victim-asr"
            )
        victim = _measurement(file, starts.iloc[0].to_dict(), digest)
    if victim.accuracy_k == 0:
        raise InvalidInput(f"{file}: the victim's accuracy is 0, so there is nothing to retain")
    return victim


def _measurement(file: Path, row: dict[Hashable, Any], digest: str) -> Measurement:
    accuracy, asr = float(row["accuracy"]), float(row["asr"])
    counts = [row[name] for name in COUNTS if name in row and not pd.isna(row[name])]
    if len(counts) < len(COUNTS):
        return Measurement.of_fractions(accuracy, asr, digest)
    accuracy_k, accuracy_n, asr_k, asr_n = (int(count) for count in counts)
    for name, rate, k, n in (("accuracy", accuracy, accuracy_k, accuracy_n), ("asr", asr, asr_k, asr_n)):
        if n < 1 or not 0 <= k <= n or abs(k / n - rate) > 1e-4:
            raise InvalidInput(
                f"{file}: trial {row['trial']:g}, epoch {row['epoch']:g}: {name}_k={k} of {name}_n={n} is not "
                f"{name}={rate:g}; mend the counts or leave their columns out"
            )
    top5 = row.get("top5_accuracy")
    top5_k = None if top5 is None or pd.isna(top5) else round(float(top5) * accuracy_n)
    return Measurement(accuracy_k, accuracy_n, asr_k, asr_n, digest, top5_k)


def _trial(
    file: Path, number: int, rows: pd.DataFrame, parameters: tuple[str, ...], victim: Measurement
) -> ImportedTrial:
    params = {name: _plain(_constant(file, number, rows, name)) for name in parameters}
    seed = _constant(file, number, rows, "seed") if "seed" in rows.columns else 0
    if pd.isna(seed) or seed < 0 or seed % 1:
        raise InvalidInput(f"{file}: seed={_plain(seed)!r} of trial {number} must be a whole number from 0")
    starts = _constant(file, number, rows, "start_counts") if "start_counts" in rows.columns else False
    points = [] if float(rows["epoch"].iloc[0]) == 0 else [Point(0, 0.0, 0, 1, victim, timestamp_ms=now_ms())]
    for row in rows.to_dict("records"):  # a dict a row: pandas makes a Series of each far more slowly
        points.append(
            Point(
                index=len(points),
                epoch=float(row["epoch"]),
                step=int(_optional(row, "step") or 0),
                attempt=1,
                measurement=_measurement(file, row, victim.evaluation_digest),
                train={
                    name: value
                    for name, column in (("loss", "train_loss"), ("learning_rate", "learning_rate_now"))
                    if (value := _optional(row, column)) is not None
                },
                train_seconds=_optional(row, "seconds") or 0.0,
                timestamp_ms=now_ms(),
            )
        )
    known = {name: value for name, value in params.items() if value is not None}
    return ImportedTrial(number, known, int(seed), tuple(points), bool(starts))


def _constant(file: Path, number: int, rows: pd.DataFrame, column: str) -> Any:
    values = rows[column].unique()
    if len(values) > 1:
        one, other = _plain(values[0]), _plain(values[1])
        raise InvalidInput(
            f"{file}: {column} takes {len(values)} values in trial {number} ({one!r}, {other!r}); a parameter belongs "
            "to a whole trial"
        )
    return values[0]


def _plain(value: Any) -> Any:
    """A value of pandas or numpy as Python's own; None: the parameter does not apply."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def _optional(row: dict[Hashable, Any], column: str) -> float | None:
    value = row.get(column)
    return None if value is None or pd.isna(value) else float(value)
