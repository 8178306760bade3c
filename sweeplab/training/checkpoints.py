"""Checkpoints: written whole or not at all, read without executing anything, stripped once their run is over."""

import pickle
import threading
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, TypeVar

import torch
from torch import Tensor

from sweeplab.specs import DamagedCheckpoint, StorageFault, first_line
from sweeplab.storage.files import replace_atomically
from sweeplab.training.page_locked import say_not_locked


class Checkpoint(TypedDict):
    """Everything from which training goes on; tensors and plain values only."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Tensor]
    """State dict of what the objective remembers; empty where nothing."""
    epoch: int
    """Whole epochs done."""
    step_in_epoch: int
    """Steps done of the epoch after those; 0 at an epoch's end."""
    step: int
    """Optimizer updates done."""
    point: int
    """Index of the point that was measured in this state."""
    random: Tensor
    """The global random state of rank 0. Every draw of ours has a stream of its own; this covers a user's method."""
    tally: dict[str, Any] | None
    """Sums, counts and curve since the last point, and seconds; None where the checkpoint is a point's own."""
    config: str
    """JSON of what made it: architecture, objective, optimization, seed."""


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint so that the name exists only once all of it is on the disk.

    Raises:
        StorageFault: if the disk is full or the folder cannot be written.
    """
    _write(dict(checkpoint), path)


class Writing:
    """A checkpoint on its way to the disk, in a thread of its own: what is trained or measured meanwhile does not wait.

    What is written was copied before, so that the next step may change it. From a GPU it is copied into page-locked
    memory, for which nobody waits but the thread: the GPU copies before it takes the next step.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path) -> None:
        self.path = path
        self._fault: BaseException | None = None
        content = copied(checkpoint)
        self._copied = torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(target=self._run, args=(content,), name="checkpoint", daemon=True)
        self._thread.start()

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return once the file is there.

        Raises:
            StorageFault: if the disk is full or the folder cannot be written.
            BaseException: whatever else kept the file from being written.
        """
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def abandon(self) -> None:
        """Leave no file behind."""
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _run(self, content: Checkpoint) -> None:
        try:
            if self._copied is not None:
                self._copied.synchronize()
            save(content, self.path)
        except BaseException as fault:  # noqa: BLE001 - `wait` raises it where it can be heard
            self._fault = fault


C = TypeVar("C")


def copied(value: C) -> C:
    """Containers with copies of their tensors on the CPU; those from a GPU have come once its stream is there."""
    if isinstance(value, Tensor):
        try:
            place = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        except RuntimeError as error:
            say_not_locked(first_line(error))
            return value.detach().to("cpu", copy=True)  # type: ignore[return-value]
        return place.copy_(value.detach(), non_blocking=True)  # type: ignore[return-value]
    if isinstance(value, dict):
        return type(value)((key, copied(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(map(copied, value))
    return value


def _write(content: dict[str, Any], path: Path) -> None:
    def opened(temporary: Path) -> BinaryIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        return temporary.open("wb")

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # It turns what the system said into an error about positions in the file; that is behind it.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    try:
        replace_atomically(path, opened, write)
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise StorageFault(f"cannot write checkpoint {path}: {reason}; free space or choose another storage") from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that `save` wrote.

    Raises:
        DamagedCheckpoint: if the file is missing or damaged.
    """
    try:
        content: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"checkpoint {path} does not exist") from error
    except Exception as error:
        reason = first_line(error)[:100]  # torch goes on to advise unsafe loading
        raise DamagedCheckpoint(
            f"checkpoint {path} is damaged ({reason}); remove it, and the run repeats its epochs"
        ) from error
    if isinstance(content, dict):
        content.setdefault("step_in_epoch", 0)  # checkpoints were once written at the ends of epochs alone
        content.setdefault("tally", None)
    missing = set(Checkpoint.__annotations__) - set(content if isinstance(content, dict) else ())
    if missing:
        raise DamagedCheckpoint(
            f"checkpoint {path} lacks {', '.join(sorted(missing))}; it was stripped, or not written by "
            "SweepLab, and no training goes on from it"
        )
    return content


WEIGHTS = ("model", "epoch", "step_in_epoch", "step", "point", "config")
"""Entries of a checkpoint that stay when it is stripped."""


def is_whole(path: Path) -> bool:
    """Whether a file is a checkpoint with its optimizer; False for what cannot be read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
        return False
    return isinstance(content, dict) and {"model", "optimizer"} <= set(content)


def strip(path: Path, *, keep_state: bool) -> None:
    """Replace a checkpoint by its weights, and what they are, in one step.

    The optimizer's moments, which are two thirds of it, and what is needed only to go on are left out.

    Args:
        path: of a whole one.
        keep_state: whether what the objective remembers stays, for one that classifies by it.

    Raises:
        StorageFault: if the disk is full or the folder cannot be written; the whole one stays.
    """
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    kept = (*WEIGHTS, "state") if keep_state else WEIGHTS
    _write({name: content[name] for name in kept if name in content}, path)
