"""Failures: why an attempt ended early, and whether another one could help."""

import gc
import traceback
from dataclasses import dataclass
from typing import Literal

DETERMINISTIC_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    FileNotFoundError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""Errors that another attempt would meet again."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "OutOfMemory", "ALLOC_FAILED")
"""How torch, CUDA's libraries, Ray and the system say so."""


Kind = Literal["", "memory", "storage", "checkpoint", "input"]


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without finishing its trial."""

    reason: str
    """One line for people."""
    is_deterministic: bool
    """Whether another attempt would fail in the same way: a wrong value, a loss that is not finite."""
    kind: Kind = ""
    """`memory`: the worker ran out of it, which is deterministic where it happens twice at the same place. `storage`:
    the disk or object store took no checkpoint, which is not the trial's fault. `checkpoint`: the one to go on from is
    damaged, and an earlier one has to serve. `input`: the user's input breaks a rule, which a worker alone
    could check."""

    @property
    def is_of_gpu_memory(self) -> bool:
        """Whether it was a GPU's memory that did not suffice; torch says CUDA for every kind of GPU."""
        return self.kind == "memory" and any(word in self.reason for word in ("CUDA", "CUBLAS", "CUDNN", "HIP"))


def failure_of(error: BaseException) -> Failure:
    """A failure as it is recorded."""
    from sweeplab.specs import DamagedCheckpoint, InvalidInput, StorageFault

    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    kinds: dict[type[Exception], Kind]
    kinds = {StorageFault: "storage", DamagedCheckpoint: "checkpoint", InvalidInput: "input", MemoryError: "memory"}
    otherwise: Kind = "memory" if says_out_of_memory(reason) else ""
    kind = next((kind for known, kind in kinds.items() if isinstance(error, known)), otherwise)
    return Failure(reason, kind in ("", "input") and isinstance(error, DETERMINISTIC_ERRORS), kind)


def says_out_of_memory(text: str) -> bool:
    """Whether an error's text speaks of memory."""
    return any(words.lower() in text.lower() for words in OUT_OF_MEMORY)


def release_memory(error: BaseException) -> None:
    """Let go of what an attempt that failed still holds on its GPU, for those that share it: the tensors of the calls
    that the error came through, and what torch keeps of freed ones."""
    import torch

    behind: BaseException | None = error
    while behind is not None:
        traceback.clear_frames(behind.__traceback__)
        behind = behind.__cause__ or behind.__context__
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def most_telling(failures: list[Failure]) -> Failure:
    """Of what the ranks of one run say: a deterministic failure, else one of storage or memory, else the first.

    When one rank fails, the others report a lost connection.
    """
    return min(failures, key=lambda failure: (not failure.is_deterministic, not failure.kind))


def root_cause(error: BaseException) -> str:
    """What went wrong: Ray Train wraps it, and its own first line says little."""
    while isinstance(inner := getattr(error, "controller_failure", None) or error.__cause__, BaseException):
        error = inner
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else 'no message'}"
