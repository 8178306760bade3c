"""Checkpoint names: how checkpoints are called, and what a checkpoint of a run is: a storage and a name in it."""

import re
from dataclasses import dataclass

from sweeplab.storage.checkpoint_store import Storage

ROLLING = re.compile(r"attempt-\d+-after-point-(\d+)-step-(\d+)\.pt")
"""Names of checkpoints that are written inside a long epoch, beside those of points."""

CHECKPOINT = re.compile(rf"attempt-\d+-epoch-\d+(-step-\d+)?\.pt|{ROLLING.pattern}")
"""Names of all checkpoints. No other file is ever removed where checkpoints lie, but for their unfinished writes."""

UNFINISHED = re.compile(rf"\.({CHECKPOINT.pattern})(\.\d+)?\.part")


def attempt_prefix(attempt: int) -> str:
    """How all names of an attempt begin, which no other attempt of the run uses."""
    return f"attempt-{attempt}-"


def point_name(prefix: str, epoch: int, step_in_epoch: int) -> str:
    """Name of a point's checkpoint; `step_in_epoch` is 0 at an epoch's end."""
    inside = f"-step-{step_in_epoch:06d}" if step_in_epoch else ""
    return f"{prefix}epoch-{epoch:04d}{inside}.pt"


def rolling_name(prefix: str, point: int, step: int) -> str:
    """Name of a checkpoint that is written at a step of the run after a point."""
    return f"{prefix}after-point-{point:04d}-step-{step:010d}.pt"


@dataclass(frozen=True)
class Checkpoint:
    """One file of a storage."""

    storage: str
    """Path or URL of the folder."""
    name: str

    @classmethod
    def at(cls, location: str) -> "Checkpoint":
        """That of a path or URL."""
        storage, _, name = location.rpartition("/")
        return cls(storage, name)

    @property
    def location(self) -> str:
        """Path or URL of the file."""
        return (Storage(self.storage) / self.name).location

    @property
    def is_inside_an_epoch(self) -> bool:
        """Whether it is no point's."""
        return bool(ROLLING.fullmatch(self.name))
