"""Tables that were measured elsewhere, as sweeps of the home: ranked, drawn, exported and replayed like any other."""

import json
import math
import numbers
import os
import re
import shutil
import sys
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd

from sweeplab.data.delimited import refuse_swallowed
from sweeplab.ranking.tables import NOT_PARAMETERS, with_formulas
from sweeplab.records import Measurement, Outcomes, Point, Victim
from sweeplab.search_space import spans_magnitudes
from sweeplab.specs import SCHEMA_VERSION, InvalidInput, digest_of, file_digest
from sweeplab.storage.files import make_private, sync_folder
from sweeplab.storage.ownership import write_signed
from sweeplab.sweep_folder import SweepFolder
from sweeplab.terminal import tracked
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
            (fractions; epoch 0 is the victim); optional counts, `seed`, `seconds` (wall time since the row before) and
            what else `sweeplab export` writes; every other column is a parameter.
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
    # Written aside and renamed: a kill leaves no half table that looks like a finished sweep. The disk is not awaited,
    # which takes minutes for thousands of trials: what a power failure takes is named, and the table is still there.
    stage = SweepFolder(home / "sweeps" / f".{name}.part")
    shutil.rmtree(stage.path, ignore_errors=True)
    make_private(stage.path)
    try:
        _write(stage, table, file, name, asr_ceiling)
        os.rename(stage.path, folder.path)
    except BaseException:
        shutil.rmtree(stage.path, ignore_errors=True)
        raise
    sync_folder(folder.path.parent)
    return folder


def _write(stage: SweepFolder, table: ImportedTable, file: Path, name: str, asr_ceiling: float) -> None:
    stage.commit_victim(Victim("imported", table.digest, "", 0.0, table.victim, Outcomes(b"", 0, b"", 0)))
    for trial in tracked(table.trials, "importing", len(table.trials)):
        stage.write_trial(
            trial.number,
            trial.params,
            configuration=digest_of(trial.params),
            seed=trial.seed,
            start_counts=trial.start_counts,
        )
        run = stage.trial(trial.number)
        run.write_points(list(trial.points), durable=False)
        run.finish({"state": "finished"}, durable=False)
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
    parameters = tuple(str(column) for column in frame.columns if column not in NOT_PARAMETERS)
    frame = _checked(file, frame, parameters)
    content = file_digest(file)
    given = _given_victim(victim_accuracy, victim_asr)
    victim = _victim(file, frame, given, f"imported-{content}")
    _check_constants(file, frame, parameters)
    rows_of: dict[int, list[dict[Hashable, Any]]] = {}
    for row in frame.sort_values(["trial", "epoch"], kind="stable").to_dict("records"):  # far faster than a frame each
        rows_of.setdefault(int(row["trial"]), []).append(row)
    trials = tuple(_trial(file, number, rows, parameters, victim) for number, rows in rows_of.items())
    return ImportedTable(victim, trials, parameters, content)


def _read(file: Path) -> pd.DataFrame:
    if file.suffix not in SUFFIXES:
        raise InvalidInput(f"{file}: a table is a file that ends in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise InvalidInput(
            f"table {file} does not exist; give the path of one with a row per point, as `sweeplab export` writes it"
        )
    try:
        if file.suffix == ".csv":
            frame = pd.read_csv(file)
            refuse_swallowed(file, len(frame), is_row=lambda row: set(REQUIRED) <= set(row))
            return with_formulas(frame)
        if file.suffix == ".json":
            records = json.loads(file.read_text())  # pandas' reader makes numbers of texts and booleans
            if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
                raise ValueError("it is no list of objects, one a row")
            return pd.DataFrame(records)
        return pd.read_parquet(file)
    except InvalidInput:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise InvalidInput(f"{file} cannot be read as {file.suffix[1:]} ({error})") from error


@dataclass(frozen=True)
class Rule:
    """What the numbers of a column may be."""

    text: str
    """How it is said."""
    lowest: float = -math.inf
    highest: float = sys.float_info.max
    is_whole: bool = False
    remedy: str = "leave such rows out"

    def breaks(self, numbers: pd.Series) -> pd.Series:
        """Which of a column's numbers break the rule; NaN breaks none."""
        wrong = (numbers < self.lowest) | (numbers > self.highest) | (numbers == -math.inf)
        return wrong | (numbers % 1 != 0) & numbers.notna() if self.is_whole else wrong


FRACTION = Rule("must be a fraction in [0, 1]", 0, 1, remedy="divide percentages by 100")
WHOLE = Rule("must be a whole number from 0", 0, 2**62, is_whole=True)
FROM_ZERO = Rule("must be a number from 0 to 1e12", 0, 1e12)
ANY_NUMBER = Rule("must be a finite number")

RULES = {
    "trial": Rule("must be a whole number from 0 to a million", 0, 1_000_000, is_whole=True),
    "epoch": FROM_ZERO,
    "accuracy": FRACTION,
    "asr": FRACTION,
    "top5_accuracy": FRACTION,
    **dict.fromkeys((*COUNTS, "seed", "step"), WHOLE),
    "seconds": FROM_ZERO,
    "train_loss": ANY_NUMBER,
    "learning_rate_now": ANY_NUMBER,
}
"""Of the columns with a meaning of their own."""

FLAGS = {"true": True, "false": False}

FILLED = (*REQUIRED, "seed")
"""Those of them whose cells may not be empty."""


def _checked(file: Path, frame: pd.DataFrame, parameters: tuple[str, ...]) -> pd.DataFrame:
    """The table with columns of numbers, once every value is one that its column may hold."""
    found = {column: _numbers(file, column, frame[column], rule) for column, rule in RULES.items() if column in frame}
    if "start_counts" in frame:
        given = frame["start_counts"]
        flags = given.map(lambda value: FLAGS.get(str(value).lower()))
        if flags.isna().any():
            raise _refusal(file, "start_counts", given, flags.isna(), "must be true or false", "mend it")
        found["start_counts"] = flags.astype(bool)
    for column in parameters:
        _check_scalars(file, column, frame[column])
    frame = frame.assign(**found)
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
    return frame


def _numbers(file: Path, column: str, values: pd.Series, rule: Rule) -> pd.Series:
    """A column of numbers, NaN where a cell that need not be filled is empty."""
    found = values.map(_as_float).astype(float)
    is_none = found.isna() if column in FILLED else found.isna() & ~values.map(_is_empty)
    if is_none.any():
        raise _refusal(file, column, values, is_none, "must be a number", "leave such rows out")
    is_wrong = rule.breaks(found)
    if is_wrong.any():
        raise _refusal(file, column, values, is_wrong, rule.text, rule.remedy)
    return found


def _as_float(value: Any) -> float:
    """A cell's number, also where CSV made texts of a column with a word in it; NaN where it is none."""
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def _check_scalars(file: Path, column: str, values: pd.Series) -> None:
    """Parameters are texts, booleans and finite numbers, or do not apply."""
    flags = values.map(lambda value: isinstance(value, (bool, np.bool_)))

    def is_wrong_one(value: Any) -> bool:
        if _is_empty(value) or isinstance(value, (str, bool, np.bool_)):
            return False
        return not isinstance(value, numbers.Real) or not abs(_as_float(value)) < 2**63

    # A flag among numbers would be taken for 1: nobody can tell which was meant.
    is_mixed = flags if flags.any() and not (flags | values.map(_is_empty)).all() else flags & False
    is_wrong = values.map(is_wrong_one) | is_mixed
    if is_wrong.any():
        rule, remedy = "must be a text, a finite number, true, false or empty", "give such a list one column a value"
        raise _refusal(file, column, values, is_wrong, rule, remedy)


def _refusal(file: Path, column: str, values: pd.Series, is_wrong: pd.Series, rule: str, remedy: str) -> InvalidInput:
    """Of the first wrong value of a column."""
    row = int(is_wrong.to_numpy().argmax())
    return InvalidInput(f"{file}: {column}={_plain(values.iloc[row])!r} in row {row + 1} {rule}; {remedy}")


def _check_constants(file: Path, frame: pd.DataFrame, parameters: tuple[str, ...]) -> None:
    """What belongs to a whole trial has one value in all its rows."""
    for column in (*parameters, *(name for name in ("seed", "start_counts") if name in frame)):
        counts = frame.groupby("trial")[column].nunique(dropna=False)
        if (counts > 1).any():
            number = counts.index[int((counts > 1).to_numpy().argmax())]
            one, other = (_plain(value) for value in frame.loc[frame["trial"] == number, column].unique()[:2])
            raise InvalidInput(
                f"{file}: {column} takes {counts[number]} values in trial {number:g} ({one!r}, {other!r}); a parameter "
                "belongs to a whole trial"
            )


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
    file: Path,
    number: int,
    rows: list[dict[Hashable, Any]],
    parameters: tuple[str, ...],
    victim: Measurement,
) -> ImportedTrial:
    params = {name: value for name in parameters if (value := _plain(rows[0][name])) is not None}
    points = [] if rows[0]["epoch"] == 0 else [Point(0, 0.0, 0, 1, victim)]
    for row in rows:
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
            )
        )
    seed, starts = _optional(rows[0], "seed") or 0, bool(rows[0].get("start_counts", False))
    return ImportedTrial(number, params, int(seed), tuple(points), starts)


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (not isinstance(value, (str, list, dict, np.ndarray)) and bool(pd.isna(value)))


def _plain(value: Any) -> Any:
    """A value of pandas or numpy as Python's own; None: the parameter does not apply."""
    if _is_empty(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _optional(row: dict[Hashable, Any], column: str) -> float | None:
    value = row.get(column)
    return None if value is None or pd.isna(value) else float(value)
