"""The summary beside a sweep's ledger: what was worked out of each trial's files, so that they need not be read again.

It is derived and can be removed at any time. A trial's part is believed only while all its files are, by size, times
and place on the disk, those that it was made of.
"""

import dataclasses
import gc
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from pydantic_core import from_json

from sweeplab.records import Measurement, Point, PointColumns, TrialColumns, TrialRecord, TrialSummary
from sweeplab.specs import StorageFault
from sweeplab.storage.files import write_atomically

FILES = ("trial.json", "history.jsonl", "result.json", "attempts.json", "outcomes")
"""What a trial's part is made of, in its folder. Outcomes are written under names of their own, which changes their
folder, and never again."""

KINDS = (TrialSummary, TrialColumns, PointColumns, Measurement)

LAYOUT = [[field.name for field in dataclasses.fields(kind)] for kind in KINDS]
"""Part of the key: what was stored under other fields is worked out anew."""

TICK_NS = 50_000_000
"""Files that changed this shortly before they were looked at may change again without another time."""

COARSE_NS = 2_000_000_000
"""The same where a file system keeps whole seconds."""


def marks_of(trials: str, names: Sequence[str]) -> np.ndarray:
    """Size, time of the last change of content and of any change, and number on the disk, of each file of trials.

    Args:
        trials: the folder of all.
        names: T, of their own folders.

    Returns:
        (T, files, 4) integers; zeros where there is no such file.
    """
    marks: list[int] = []
    if names:
        folder = os.open(trials, os.O_RDONLY)  # paths from there on are short, which halves the time of looking at them
        try:
            for name in names:
                for file in FILES:
                    try:
                        found = os.stat(f"{name}/{file}", dir_fd=folder)
                    except FileNotFoundError:
                        marks += (0, 0, 0, 0)
                    else:
                        marks += (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        finally:
            os.close(folder)
    return np.array(marks, dtype=np.int64).reshape(len(names), len(FILES), 4)


def is_settled(marks: np.ndarray, taken_ns: int) -> np.ndarray:
    """(T,) boolean: whether a change after the marks were taken would have shown in them."""
    times = marks[:, :, 1:3]
    patience = np.where(times % 1_000_000_000 == 0, COARSE_NS, TICK_NS)
    return np.asarray((times + patience < taken_ns).all(axis=(1, 2)))


Columns = TypeVar("Columns", TrialColumns, PointColumns)

DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, RuntimeError)
"""What reading a damaged summary raises; RuntimeError: its list of parts calls one compressed or encrypted."""


@dataclass
class SummaryFile:
    """A stored summary. Its records and points, most of it, are made where somebody asks for them."""

    key: str
    """Digest of what all parts depend on beside their own files."""
    marks: np.ndarray
    """Of the trials' files, see `marks_of`."""
    trials: TrialColumns
    """T, ascending. A trial that is not over stands in some state of those."""
    text: bytes
    """T parts as JSON, see `part_of`."""
    certified_hits: dict[tuple[int, int], int]
    """See `SweepRecord.certified_hits`."""
    archive: Any = None
    """Holds the columns of their points."""

    @property
    def numbers(self) -> np.ndarray:
        """(T,), of the trials."""
        return self.trials.trial

    @cached_property
    def parts(self) -> list[list[Any]]:
        """T, what TrialRecord and TrialSummary hold."""
        found: list[list[Any]] = from_json(self.text)  # in half of the standard library's time
        return found

    @cached_property
    def points(self) -> PointColumns:
        """Of all points of its trials. Damage to them shows here alone, as one of `DAMAGED`."""
        return PointColumns.of(()) if self.archive is None else _columns_in(self.archive, PointColumns)

    @classmethod
    def empty(cls, key: str) -> "SummaryFile":
        """One of no trial."""
        return cls(key, np.zeros((0, len(FILES), 4), dtype=np.int64), TrialColumns.of(()), b"[]", {})

    def rows_of(self, numbers: Sequence[int], marks: np.ndarray) -> list[int]:
        """Which of its parts is each trial's; -1 where it has none that may be believed.

        Args:
            numbers: T, ascending.
            marks: theirs now.
        """
        if not len(self.numbers):
            return [-1] * len(numbers)
        rows = np.searchsorted(self.numbers, numbers).clip(max=len(self.numbers) - 1)
        same = (self.numbers[rows] == numbers) & (self.marks[rows] == marks).all(axis=(1, 2))
        found: list[int] = np.where(same, rows, -1).tolist()
        return found

    def trials_of(self, rows: Sequence[int], others: Sequence[TrialRecord]) -> TrialColumns:
        """Columns of all trials, in the order of their numbers.

        Args:
            rows: of `rows_of`.
            others: the trials that have no part.
        """
        return self._joined(self.trials, rows, TrialColumns.of(others))

    def points_of(self, rows: Sequence[int], others: Sequence[TrialRecord]) -> PointColumns:
        """Columns of the points of all trials, likewise."""
        return self._joined(self.points, rows, PointColumns.of(others))

    def _joined(self, stored: Columns, rows: Sequence[int], new: Columns) -> Columns:
        kept = [row for row in rows if row >= 0]
        if not len(new.trial) and len(kept) == len(self.numbers):
            return stored
        chosen = np.isin(stored.trial, self.numbers[kept])
        order = np.argsort(np.concatenate([stored.trial[chosen], new.trial]), kind="stable")
        names = [field.name for field in dataclasses.fields(stored)]
        return type(stored)(
            *(np.concatenate([getattr(stored, name)[chosen], getattr(new, name)])[order] for name in names)
        )

    def replaced(
        self,
        marks: np.ndarray,
        trials: Sequence[TrialRecord],
        keep: np.ndarray,
        certified_hits: dict[tuple[int, int], int],
    ) -> "SummaryFile":
        """What is to be stored now.

        Args:
            marks: of the trials' files.
            trials: T, all summarized.
            keep: T booleans, which of them may be stored.
            certified_hits: see there.
        """
        kept = [trial for trial, is_kept in zip(trials, keep, strict=True) if is_kept]
        text = json.dumps([part_of(trial) for trial in kept], separators=(",", ":"), allow_nan=False).encode()
        return SummaryFile(self.key, marks[keep], TrialColumns.of(kept), text, certified_hits)

    @classmethod
    def read(cls, path: Path, key: str) -> "SummaryFile | None":
        """A stored summary; None where there is none, or it is damaged or depends on something else."""
        try:
            archive = np.load(path, allow_pickle=False)
            head = from_json(archive["head"].tobytes())
            if head["key"] != key:
                return None
            hits = {(n, choices): most for n, choices, most in head["certified_hits"]}
            trials, text = _columns_in(archive, TrialColumns), archive["parts"].tobytes()
            found = cls(key, archive["marks"], trials, text, hits, archive)
            return found if len(found.numbers) == len(found.marks) else None
        except DAMAGED:
            return None

    def write(self, path: Path, points: PointColumns) -> None:
        """Store it; where that fails nothing is lost.

        Args:
            path: of the file.
            points: columns of the points of all trials, those among them that it has no part of.
        """
        hits = [[*of, most] for of, most in self.certified_hits.items()]
        head = json.dumps({"key": self.key, "certified_hits": hits}).encode()
        texts = {name: np.frombuffer(text, np.uint8) for name, text in (("head", head), ("parts", self.text))}
        chosen = np.isin(points.trial, self.numbers)
        arrays = {**_arrays_of(self.trials, slice(None)), **_arrays_of(points, chosen)}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, marks=self.marks, **texts, **arrays)
        try:
            write_atomically(path, buffer.getvalue(), durable=False)
        except StorageFault:
            path.unlink(missing_ok=True)


def _arrays_of(columns: TrialColumns | PointColumns, chosen: Any) -> dict[str, np.ndarray]:
    """Chosen rows of columns, as they are stored."""
    kind = type(columns)
    names = [field.name for field in dataclasses.fields(kind)]
    return {f"{kind.__name__}.{name}": _narrow(getattr(columns, name)[chosen]) for name in names}


def _columns_in(archive: Any, kind: type[Columns]) -> Columns:
    """The inverse of `_arrays_of`."""
    return kind(*(_wide(archive[f"{kind.__name__}.{field.name}"]) for field in dataclasses.fields(kind)))


def _narrow(values: np.ndarray) -> np.ndarray:
    """Whole numbers in 32 bits where they fit."""
    fits = values.dtype == np.int64 and (not len(values) or np.abs(values).max() < 2**31)
    return values.astype(np.int32) if fits else values


def _wide(values: np.ndarray) -> np.ndarray:
    """The inverse of `_narrow`."""
    return values.astype(np.int64) if values.dtype == np.int32 else values


def part_of(trial: TrialRecord) -> list[Any]:
    """A summarized trial as plain JSON values."""
    summary = trial.summary
    assert summary is not None
    kept = [_point_values(point) for point in summary.worth_keeping]
    report = None if summary.report is None else list(vars(summary.report).values())
    known = [*list(vars(summary).values())[:-2], kept, report]
    over = trial.state if trial.state not in ("running", "waiting") else None
    head = [trial.params, trial.configuration, trial.seed, trial.attempts, trial.reason, trial.start_counts]
    return [over, *head, trial.rerun_of, trial.storage, known]


def _point_values(point: Point) -> list[Any]:
    measurement = list(vars(point.measurement).values())
    return [point.index, point.epoch, point.step, point.attempt, measurement, point.timestamp_ms, point.checkpoint]


def _point(values: Sequence[Any]) -> Point:
    index, epoch, step, attempt, measurement, timestamp_ms, checkpoint = values
    return Point(
        index, epoch, step, attempt, Measurement(*measurement), timestamp_ms=timestamp_ms, checkpoint=checkpoint
    )


def record_of(number: int, part: Sequence[Any], points: Sequence[Point], *, is_driven: bool) -> TrialRecord:
    """The inverse of `part_of`.

    Args:
        number: of the trial.
        part: its part.
        points: its own.
        is_driven: whether a driver is at work on it, should it not be over.
    """
    over, params, configuration, seed, attempts, reason, start_counts, rerun_of, storage, known = part
    *plain, kept, report = known
    return TrialRecord(
        number=number,
        state=over or ("running" if is_driven else "waiting"),
        params=params,
        configuration=configuration,
        seed=seed,
        attempts=attempts,
        points=points,
        reason=reason,
        start_counts=start_counts,
        rerun_of=rerun_of,
        storage=storage,
        summary=TrialSummary(*[*plain, tuple(map(_point, kept)), None if report is None else Measurement(*report)]),
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's garbage collector, which is called by the number of new objects, away from thousands of records
    that all stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def num_points(part: Sequence[Any]) -> int:
    """Of a trial, by its part."""
    count: int = part[-1][0]
    return count


def now_ns() -> int:
    """Nanoseconds since 1970, as marks have them."""
    return time.time_ns()
