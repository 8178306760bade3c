"""A run's folder: its points, outcomes, checkpoints and result. Victims and trials have the same one."""

import contextlib
import io
import itertools
import json
import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload
from zipfile import BadZipFile

import numpy as np

from sweeplab.records import Outcomes, Point
from sweeplab.specs import InvalidInput
from sweeplab.storage.checkpoint_names import CHECKPOINT, ROLLING, UNFINISHED, Checkpoint
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.files import (
    append_line,
    open_private,
    read_lines,
    read_object,
    storage_faults,
    write_atomically,
    write_json,
)
from sweeplab.storage.ownership import MARK, Owner

STRIPPED = "stripped.json"
"""In a run's folder: the checkpoints that hold weights alone, or are about to."""

WORKED_OUT = "restore it, or remove it: the run then ends once more"


ALONE = "alone"
"""Name of the empty file that marks a victim's folder; see `RunFolder.was_run_alone`."""


class RunFolder:
    """Files of one training run. Only the driver writes here, except checkpoints, whose names no other attempt uses.

    Checkpoints lie in `checkpoints`, unless trial.json or victim.json names another storage.

    A point exists once its line in history.jsonl does; outcomes are written before it. A result exists once result.json
    does. Committing a point or a result again changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._points: list[Point] | None = None
        self._num_lost = 0
        self._storage: Storage | None = None
        self._facts: dict[str, Any] | None = None
        self._is_own_storage = False

    @property
    def storage(self) -> Storage:
        """Where the run's checkpoints lie."""
        if self._storage is None:
            location = self.metadata().get("storage")
            self._storage = Storage(location or self.checkpoints)
        return self._storage

    def metadata(self) -> dict[str, Any]:
        """What was written about the run before it began, if anything."""
        if self._facts is not None:
            return self._facts
        for name in ("trial.json", "victim.json"):
            if (self.path / name).exists():
                metadata = read_object(self.path / name)
                if name == "trial.json":
                    self._facts = metadata
                return metadata
        return {}

    def _owner(self) -> Owner:
        """The sweep or the victim that the run belongs to."""
        sweep = self.path.parent.parent / "sweep.json"
        if sweep.exists():
            return Owner(sweep.parent.parent.parent, str(read_object(sweep, identity=str)["identity"]))
        return Owner(self.path.parent.parent, self.path.name)

    def owns_storage(self) -> bool:
        """Whether checkpoints may be written and removed where the run's lie: in its own folder, or in a storage that
        this home has marked for it. What else trial.json names is only read.

        Raises:
            StorageFault: if an object store does not answer.
        """
        if not self._is_own_storage:
            if self.metadata().get("storage"):
                self._is_own_storage = self._owner().holds(self.storage)
            else:
                self._is_own_storage = not self.checkpoints.is_symlink()
        return self._is_own_storage

    def is_marked_by_others(self) -> bool:
        """Whether another home, or another sweep, puts checkpoints where the run's lie.

        Raises:
            StorageFault: if an object store does not answer.
        """
        return self.storage.read(MARK) is not None and not self.owns_storage()

    def foreign_storage(self) -> str:
        """What is said of checkpoints that lie where this home did not put them."""
        return (
            f"its checkpoints lie in {self.storage.location}, which is gone or holds no mark of this home; restore it, "
            f'or copy them by hand into {self.checkpoints} and take "storage" out of {self.path}/trial.json'
        )

    def claim_storage(self) -> None:
        """Make the folder of its checkpoints, by which a worker knows that its node sees it; outside the home it is
        marked. Only for a storage that the spec that is run names, or that the run owns already.

        Raises:
            InvalidInput: if it cannot be written.
            StorageFault: if the disk or the object store fails.
        """
        if self.metadata().get("storage"):
            self._owner().claim(self.storage)
        else:
            with storage_faults(self.storage.location):
                Path(self.storage.location).mkdir(parents=True, exist_ok=True)

    def remove_checkpoint(self, name: str) -> None:
        """Remove a checkpoint, or what is left of an unfinished write of one; nothing else, and nowhere else than where
        this home wrote it."""
        if (CHECKPOINT.fullmatch(name) or UNFINISHED.fullmatch(name)) and self.owns_storage():
            self.storage.remove(name)

    def points(self) -> list[Point]:
        """The committed points by index, up to the first that a damaged history has lost (see `num_lost`).

        Raises:
            InvalidInput: if the history names a checkpoint outside the storage.
        """
        if self._points is None:
            path = self.path / "history.jsonl"
            found: dict[int, Point] = {}
            for line in read_lines(path):
                # A line that is no point's is one that a torn write, or a disk, has damaged.
                with contextlib.suppress(ValueError):
                    point = Point.from_json(line)
                    found.setdefault(point.index, point)
            num_kept = next(index for index in itertools.count() if index not in found)
            points = [found[index] for index in range(num_kept)]
            for point in points:
                if point.checkpoint is not None and "/" in point.checkpoint:
                    raise InvalidInput(
                        f"{path} names checkpoint {point.checkpoint!r}, which must be a file's name without a folder; "
                        "restore it or remove its folder"
                    )
            self._points = points
            self._num_lost = max(max(found, default=-1) + 1, self._num_finished()) - num_kept
        return self._points

    def _num_finished(self) -> int:
        """Points that the run had when its result was written; 0 before that.

        Older results do not say it: of one that ran to its end there are as many points as outcomes.
        """
        result = self._read_result() or {}
        if "points" in result or result.get("state") != "finished":
            return int(result.get("points", 0))
        return len(list((self.path / "outcomes").glob("[0-9]*.npz")))

    def num_lost(self) -> int:
        """Points that the history once held and that are to be made again, because its file was damaged."""
        self.points()
        return self._num_lost

    def losses(self) -> list[str]:
        """A sentence on a damaged history, if this run's is."""
        if not self.num_lost():
            return []
        kept = len(self.points())
        return [
            f"{self.path / 'history.jsonl'} is damaged: {self._num_lost:,} of {kept + self._num_lost} points are lost; "
            "restore it, or run the sweep's command, which makes them again"
        ]

    def commit(self, point: Point, outcomes: Outcomes) -> bool:
        """Make a point durable; False where it was committed before.

        Raises:
            ValueError: if the point does not follow the last one.
        """
        points = self.points()
        if point.index < len(points):
            return False
        if point.index > len(points):
            raise ValueError(f"point {point.index} of {self.path} arrived before point {len(points)}")
        buffer = io.BytesIO()
        np.savez(
            buffer,
            correct=np.frombuffer(outcomes.correct, np.uint8),
            num_images=outcomes.num_images,
            hits=np.frombuffer(outcomes.hits, np.uint8),
            num_triggered=outcomes.num_triggered,
        )
        # First, so that every point that the history names has its outcomes.
        write_atomically(self._outcomes_path(point.index), buffer.getvalue())
        append_line(self.path / "history.jsonl", point.to_json())
        points.append(point)
        return True

    def write_points(self, points: list[Point], *, durable: bool = True) -> None:
        """Write a whole history anew; outcomes per image stay as they are."""
        lines = "".join(json.dumps(point.to_json(), allow_nan=False) + "\n" for point in points)
        write_atomically(self.path / "history.jsonl", lines.encode(), durable=durable)
        self._points, self._num_lost = list(points), 0

    def outcomes(self, index: int) -> Outcomes | None:
        """Outcomes per image of a committed point; None where there are none."""
        path = self._outcomes_path(index)
        if not path.exists():
            return None
        try:
            # From memory, where an offset that is damaged is no error of the disk's.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                found = Outcomes(
                    arrays["correct"].tobytes(),
                    int(arrays["num_images"]),
                    arrays["hits"].tobytes(),
                    int(arrays["num_triggered"]),
                )
                found.correct_mask(), found.hit_mask()
        except (ValueError, KeyError, EOFError, TypeError, BadZipFile, zlib.error, RuntimeError) as error:
            raise InvalidInput(
                f"{path} is damaged ({type(error).__name__}); restore it, or remove it: what is computed image by "
                "image leaves this point out"
            ) from error
        return found

    def _outcomes_path(self, index: int) -> Path:
        return self.path / "outcomes" / f"{index:04d}.npz"

    def begin_attempt(self) -> int:
        """Count one more attempt; returns its number, 1 for the first."""
        attempt = self.attempts() + 1
        write_json(self.path / "attempts.json", {"attempts": attempt})
        return attempt

    def attempts(self) -> int:
        """Attempts so far; a trial's folder is made together with its first one."""
        path = self.path / "attempts.json"
        if path.exists():
            return int(read_object(path, attempts=int)["attempts"])
        return int(self.metadata().get("attempts", 0))

    def finish(self, result: dict[str, Any], *, durable: bool = True) -> None:
        """Write the result: the run is over for good."""
        if self.result() is None:
            write_json(self.path / "result.json", {**result, "points": len(self.points())}, durable=durable)

    def result(self) -> dict[str, Any] | None:
        """The result; None while the run is not over, and where its history has lost points since."""
        result = self._read_result()
        return result if result is not None and not self.num_lost() else None

    def _read_result(self) -> dict[str, Any] | None:
        path = self.path / "result.json"
        if not path.exists():
            return None
        result = read_object(path, WORKED_OUT, state=str)
        if type(result.get("points", 0)) is not int:
            raise InvalidInput(f"{path} is damaged (points={result['points']!r}); {WORKED_OUT}")
        return result

    def mark_run_alone(self) -> None:
        """Remember that a script ran this victim for its own sake."""
        write_atomically(self.path / ALONE, b"")

    def was_run_alone(self) -> bool:
        """Whether a script ran this victim for its own sake: then it stays, even where no sweep names it."""
        return (self.path / ALONE).exists()

    def append_log(self, text: str) -> None:
        """Keep an attempt's traceback.

        Raises:
            StorageFault: if it cannot be written.
        """
        path = self.path / "log.txt"
        with storage_faults(path), open(open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as file:
            file.write(text.rstrip() + "\n")

    def has_checkpoint(self, point: Point) -> bool:
        """Whether the point's checkpoint is still there."""
        return point.checkpoint is not None and self.storage.exists(point.checkpoint)

    def _goes_on_from(self, point: Point) -> bool:
        """Whether training can go on from the point's checkpoint: it is there, with its optimizer."""
        return self.has_checkpoint(point) and point.checkpoint not in self._stripped()

    def _stripped(self) -> list[str]:
        path = self.path / STRIPPED
        if not path.exists():
            return []
        return list(read_object(path, "remove it: what it names is looked at then", names=list)["names"])

    def strippable(self, point: Point) -> Path | None:
        """The point's checkpoint where it lies in a folder, and this home wrote it there: only then may it be written
        anew.

        Raises:
            StorageFault: if the folder cannot be looked at.
        """
        name = point.checkpoint
        if name is None or self.storage.is_remote or name not in self.storage.names() or not CHECKPOINT.fullmatch(name):
            return None
        return Path(self.storage.location) / name if self.owns_storage() else None

    def note_stripped(self, name: str) -> None:
        """Note that a checkpoint holds weights alone. Before it is stripped: should a kill come between the two, a
        whole checkpoint is not gone on from, which costs time, and no other is."""
        if name not in (known := self._stripped()):
            write_json(self.path / STRIPPED, {"names": [*known, name]})

    def checkpoint_path(self, point: Point) -> Path | None:
        """The point's checkpoint if it is still on the disk, or in the object store: then it is fetched first."""
        if point.checkpoint is None or not self.storage.exists(point.checkpoint):
            return None
        if not self.storage.is_remote:
            return Path(self.storage.location) / point.checkpoint
        path = self.checkpoints / point.checkpoint
        if not path.exists():
            if self.checkpoints.is_symlink() or not CHECKPOINT.fullmatch(point.checkpoint):
                return None
            self.storage.download(point.checkpoint, path)
        return path

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest state from which the next attempt goes on: inside an epoch, else of the newest point.

        None where the newest point has none, or one without its optimizer: the run then starts again at its beginning.
        """
        points = self.points()
        if not points:
            return None
        name = self._rolling() or (points[-1].checkpoint if self._goes_on_from(points[-1]) else None)
        return Checkpoint(self.storage.location, name) if name else None

    def _rolling(self) -> str | None:
        """The checkpoint that was written last inside the epoch after the newest point."""
        points, found = self.points(), []
        for name in self.storage.names():
            match = ROLLING.fullmatch(name)
            if match and points and int(match[1]) == points[-1].index and int(match[2]) > points[-1].step:
                found.append((int(match[2]), name))
        return max(found)[1] if found else None

    def num_kept(self) -> int:
        """Points from which the run can go on: all, or those up to the newest whose checkpoint is left whole."""
        points = self.points()
        kept = len(points)
        if self._rolling():
            return kept
        while kept and points[kept - 1].index > 0 and not self._goes_on_from(points[kept - 1]):
            kept -= 1
        return kept

    def rewind(self) -> int:
        """Forget points whose state cannot be continued, because no whole checkpoint of the last one is left, and what
        is left of a damaged history behind those that it has lost; how many are to be made again."""
        points, kept = self.points(), self.num_kept()
        lost = len(points) - kept + self._num_lost
        if lost:
            (self.path / "result.json").unlink(missing_ok=True)  # it stands for points that are gone
            self.write_points(points[:kept])
        return lost

    def keep_checkpoints(self, keep: set[str]) -> None:
        """Remove the committed points' checkpoints but those in `keep`; what a worker is about to report stays.

        In an object store the newest that has arrived stays too until the run is over: the last ones may still be under
        way.
        """
        points, is_over, names = self.points(), self.result() is not None, self.storage.names()
        if self.storage.is_remote and not is_over:
            keep = keep | {next((point.checkpoint for point in reversed(points) if point.checkpoint in names), "")}
        stale = {point.checkpoint for point in points if point.checkpoint is not None} - keep
        for name in names:
            match = ROLLING.fullmatch(name)
            is_torn = is_over and UNFINISHED.fullmatch(name)  # a kill came while it was stripped
            if name in stale or is_torn or (match and (is_over or int(match[1]) < points[-1].index)):
                self.remove_checkpoint(name)

    def clear_abandoned(self) -> None:
        """Remove what an attempt that died wrote and never reported. Only before the next attempt starts."""
        known = {point.checkpoint for point in self.points()} | {self._rolling()}
        for name in self.storage.names() - known:
            self.remove_checkpoint(name)


class StoredPoints(Sequence[Point]):
    """A run's points, read where somebody asks for one of them."""

    def __init__(self, path: str, count: int) -> None:
        """Of the run in folder `path`, its first `count`: more may have come since they were counted."""
        self._path, self._count = path, count

    @cached_property
    def _points(self) -> tuple[Point, ...]:
        return tuple(RunFolder(Path(self._path)).points()[: self._count])

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Point, ...]: ...
    def __getitem__(self, index: int | slice) -> Point | tuple[Point, ...]:
        """One or several of them."""
        return self._points[index]

    def __len__(self) -> int:
        """Their number, for which none is read."""
        return self._count

    def __eq__(self, other: object) -> bool:
        """As a tuple of the same points."""
        return isinstance(other, Sequence) and self._points == tuple(other)

    def __hash__(self) -> int:
        """As a tuple of the same points."""
        return hash(self._points)
