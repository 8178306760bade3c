"""A run's folder: its points, outcomes, checkpoints and result. Victims and trials have the same one."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from sweeplab.orchestration.files import read_json, read_lines, write_atomically, write_json
from sweeplab.records import Outcomes, Point
from sweeplab.specs import InvalidInput


class RunFolder:
    """Files of one training run. Only the driver writes here, except checkpoints, whose names no other attempt uses.

    A point exists once its line in history.jsonl does; outcomes are written before it. A result exists once result.json
    does. Committing a point or a result again changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._points: list[Point] | None = None

    def points(self) -> list[Point]:
        """The committed points by index.

        Raises:
            InvalidInput: if the history has a hole, which only a damaged file can have.
        """
        if self._points is None:
            path = self.path / "history.jsonl"
            points = sorted((Point.from_json(line) for line in read_lines(path)), key=lambda point: point.index)
            if [point.index for point in points] != list(range(len(points))):
                raise InvalidInput(f"{path} is damaged: points are missing; restore it or remove its folder")
            self._points = points
        return self._points

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
        write_atomically(self._outcomes_path(point.index), buffer.getvalue())
        lines = [json.dumps(p.to_json(), allow_nan=False) for p in [*points, point]]
        write_atomically(self.path / "history.jsonl", ("\n".join(lines) + "\n").encode())
        self._points = [*points, point]
        return True

    def write_points(self, points: list[Point]) -> None:
        """Write a whole history that was measured elsewhere, without outcomes per image."""
        lines = "".join(json.dumps(point.to_json(), allow_nan=False) + "\n" for point in points)
        write_atomically(self.path / "history.jsonl", lines.encode())
        self._points = list(points)

    def outcomes(self, index: int) -> Outcomes | None:
        """Outcomes per image of a committed point; None where there are none."""
        path = self._outcomes_path(index)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return Outcomes(
                arrays["correct"].tobytes(),
                int(arrays["num_images"]),
                arrays["hits"].tobytes(),
                int(arrays["num_triggered"]),
            )

    def _outcomes_path(self, index: int) -> Path:
        return self.path / "outcomes" / f"{index:04d}.npz"

    def begin_attempt(self) -> int:
        """Count one more attempt; returns its number, 1 for the first."""
        attempt = self.attempts() + 1
        write_json(self.path / "attempts.json", {"attempts": attempt})
        return attempt

    def attempts(self) -> int:
        """Attempts so far."""
        path = self.path / "attempts.json"
        return int(read_json(path)["attempts"]) if path.exists() else 0

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result: the run is over for good."""
        if self.result() is None:
            write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any] | None:
        """The result, or None while the run is not over."""
        path = self.path / "result.json"
        value: dict[str, Any] | None = read_json(path) if path.exists() else None
        return value

    def checkpoint_path(self, point: Point) -> Path | None:
        """The point's checkpoint if it is still on the disk."""
        if point.checkpoint is None:
            return None
        path = self.checkpoints / point.checkpoint
        return path if path.exists() else None

    def latest_checkpoint(self) -> Path | None:
        """The newest committed point's checkpoint, from which the next attempt goes on.

        None where the newest point has none: the run then starts again at its beginning.
        """
        points = self.points()
        return self.checkpoint_path(points[-1]) if points else None

    def rewind(self) -> None:
        """Forget points whose state cannot be continued, because no checkpoint of the last one is left."""
        points = self.points()
        while points and points[-1].index > 0 and self.checkpoint_path(points[-1]) is None:
            points = points[:-1]
        if points == self.points():
            return
        lines = "".join(json.dumps(p.to_json(), allow_nan=False) + "\n" for p in points)
        write_atomically(self.path / "history.jsonl", lines.encode())
        self._points = points

    def keep_checkpoints(self, keep: set[str]) -> None:
        """Remove the committed points' checkpoints but those in `keep`; what a worker is about to report stays."""
        for point in self.points():
            if point.checkpoint is not None and point.checkpoint not in keep:
                (self.checkpoints / point.checkpoint).unlink(missing_ok=True)

    def clear_abandoned(self) -> None:
        """Remove what an attempt that died wrote and never reported. Only before the next attempt starts."""
        known = {point.checkpoint for point in self.points()}
        if self.checkpoints.exists():
            for path in self.checkpoints.iterdir():
                if path.name not in known:
                    path.unlink(missing_ok=True)
