"""Retries: what follows an attempt that failed; one policy for trials and for victims' pre-training."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sweeplab.records import number_of
from sweeplab.storage.checkpoint_names import Checkpoint
from sweeplab.storage.run_folder import RunFolder
from sweeplab.worker.failures import Failure

BACKOFF_SECONDS = (0.0, 5.0, 30.0)
"""Wait before another attempt: none after the first failure, longer after the next ones."""

MORE_MEMORY = "set resources.activation_checkpointing=true, lower optimization.global_batch_size or give it more memory"
"""What to do where memory runs out again and again."""


class Retries:
    """The failed attempts of some runs, told by their numbers.

    A failure that another attempt would meet again ends a run, and so does the second lack of memory in a row at the
    same place. Any other may happen `max_attempts` times. A storage that fails and a damaged checkpoint are no fault of
    the run: they cost no attempt.
    """

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._failures: dict[int, list[Mapping[str, Any]]] = defaultdict(list)

    def remember(self, number: int, event: Mapping[str, Any]) -> None:
        """Count a failure that `describe` described, maybe of an earlier command."""
        if not event.get("blameless"):
            self._failures[number].append(event)

    def verdict(self, number: int) -> str | None:
        """Why the run is not tried again after its failed attempts so far; None: it is, or none failed."""
        failures = self._failures.get(number)
        if not failures:
            return None
        last = failures[-1]
        for_good = bool(last.get("for_good"))
        twice = len(failures) > 1 and all(
            (known.get("kind"), known.get("points")) == ("memory", last["points"]) for known in failures[-2:]
        )
        if not for_good and not twice and len(failures) < self._max_attempts:
            return None
        tries = "" if for_good else f" ({number_of(len(failures), 'attempt')})"
        advice = f"; {MORE_MEMORY}" if twice else ""
        return f"{last['reason']}{tries}{advice}"

    def after(
        self, number: int, run: RunFolder, failure: Failure, event: Mapping[str, Any]
    ) -> tuple[str | None, float]:
        """Count a failure that `describe` described as `event`, and remove the checkpoint that it found damaged.

        Returns:
            Why the run is not tried again, or None, and the seconds before its next attempt may begin.
        """
        self.remember(number, event)
        if event.get("blameless"):
            if damaged := _damaged_checkpoint(run, failure):
                run.remove_checkpoint(damaged.name)
            return None, 0.0
        failures = min(len(self._failures[number]), len(BACKOFF_SECONDS))
        return self.verdict(number), BACKOFF_SECONDS[failures - 1]


def describe(run: RunFolder, failure: Failure) -> dict[str, Any]:
    """A failed attempt as events tell of it."""
    is_blameless = failure.kind == "storage" or _damaged_checkpoint(run, failure) is not None
    return {
        "attempt": run.attempts(),
        "points": len(run.points()),
        "reason": failure.reason,
        **({"kind": failure.kind} if failure.kind else {}),
        **({"for_good": True} if failure.is_deterministic else {}),
        **({"blameless": True} if is_blameless else {}),
    }


def _damaged_checkpoint(run: RunFolder, failure: Failure) -> Checkpoint | None:
    """The checkpoint from which the attempt could not go on; an earlier one, or the beginning, serves."""
    return run.latest_checkpoint() if failure.kind == "checkpoint" else None
