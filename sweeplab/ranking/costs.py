"""Costs: what a sweep took, and what of it was wasted, told from its events and points."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeplab.records import TrialColumns, TrialRecord, duration, number_of


@dataclass(frozen=True)
class Costs:
    """Worker-seconds are wall seconds of attempts times the workers of each."""

    trial_epochs: float
    """Epochs of all points that stand."""
    worker_seconds: float
    """Of all attempts, from the moment a job was handed out to its end. Where a driver was killed, its attempts end
    with its last heartbeat, which may be ten seconds old."""
    gpu_seconds: float
    """The same times the GPUs of each worker; 0 where there were none."""
    useful_seconds: float
    """Worker-seconds of training and evaluation behind the points of finished trials."""
    wasted_by_failure: float
    """Worker-seconds of trials that failed for good."""
    wasted_by_pruning: float
    """Worker-seconds of trials that were pruned: the price of finding out."""
    wasted_by_repetition: float
    """Worker-seconds of other trials' attempts after the last point that stands: what the next attempt did again."""

    def to_json(self) -> dict[str, float]:
        """Plain JSON values, not rounded: who shows them in words rounds once."""
        return dataclasses.asdict(self)

    def in_words(self, trial_seconds: float | None) -> str:
        """What it took, as terminal and page say it: `6,000 trial-epochs, 21 h 52 min in trials`.

        Args:
            trial_seconds: of training and evaluation, over all trials; said of tables from elsewhere, which have no
                attempts. 0 or None: not known.
        """
        words = number_of(self.trial_epochs, "trial-epoch")
        if self.worker_seconds:
            gpus = f", {duration(self.gpu_seconds)} of GPUs" if self.gpu_seconds else ""
            words += f", {duration(self.worker_seconds)} of workers{gpus}"
        elif trial_seconds:
            words += f", {duration(trial_seconds)} in trials"
        elif self.trial_epochs:
            words += "; how long they took is not known"
        wasted = {
            "failure": self.wasted_by_failure,
            "pruning": self.wasted_by_pruning,
            "repetition": self.wasted_by_repetition,
        }
        lost = ", ".join(f"{duration(seconds)} by {cause}" for cause, seconds in wasted.items() if seconds >= 1)
        return words + (f"; lost {lost}" if lost else "")


@dataclass
class Attempt:
    """One attempt of one trial, in milliseconds since 1970."""

    trial: int
    began: int
    ended: int | None = None
    is_broken: bool = False
    """Whether it ended without ending its trial."""
    workers: int = 1
    gpus: float = 0.0


def seconds_left(left: int, made: int, *, seconds: float, since: float) -> float | None:
    """Time until a sweep is finished, at its command's rate of points; None before the first of them.

    Args:
        left: points that are still to be made of trials that are not over. A trial's start is none of them.
        made: points since the command began.
        seconds: from then to the latest of them.
        since: seconds since then.
    """
    return max(0.0, left * seconds / made - since) if made else None


OUTSIDE = ("rerun asked", "mlflow behind")
"""Events that are no sign of a driver's life. Nor are ends that a later driver made up for (`made_up_for`)."""


def is_sign_of_life(event: Mapping[str, Any]) -> bool:
    """Whether a driver lived at an event's time."""
    return event["event"] not in OUTSIDE and not event.get("made_up_for")


def last_sign_of_life(events: Sequence[Mapping[str, Any]]) -> int:
    """When a driver is last known to have lived by its events, milliseconds since 1970; 0 where there are none."""
    return next((int(event["time_ms"]) for event in reversed(events) if is_sign_of_life(event)), 0)


def attempts_of(events: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """The attempts that events tell of; those of a killed driver end with its last event or other heartbeat."""
    done: list[Attempt] = []
    running: dict[int, Attempt] = {}
    workers, gpus, last = 1, 0.0, 0

    def close(trial: int, when: int, *, is_broken: bool) -> None:
        attempt = running.pop(trial, None)
        if attempt is not None:
            attempt.ended, attempt.is_broken = max(when, attempt.began), is_broken
            done.append(attempt)

    for event in events:
        now, kind = int(event["time_ms"]), event["event"]
        if kind in ("driver began", "driver ended"):
            until = now if kind == "driver ended" else min(now, max(last, int(event.get("before_until_ms", 0))))
            for trial in list(running):
                close(trial, until, is_broken=True)
            workers, gpus = int(event.get("workers", workers)), float(event.get("gpus_per_worker", gpus))
        elif kind == "fewer trials per GPU":
            gpus = float(event.get("gpus_per_worker", gpus))
        elif kind == "trial began":
            close(event["trial"], last, is_broken=True)
            running[event["trial"]] = Attempt(event["trial"], now, workers=workers, gpus=gpus)
        elif kind == "attempt failed":
            close(event["trial"], now, is_broken=True)
        elif kind == "trial ended":
            close(event["trial"], last if event.get("made_up_for") else now, is_broken=False)
        if is_sign_of_life(event):
            last = now
    return done + list(running.values())


def costs_of(events: Iterable[Mapping[str, Any]], trials: Iterable[TrialRecord], until_ms: int) -> Costs:
    """Add up a sweep.

    Args:
        events: lines of events.jsonl, in order.
        trials: all trials.
        until_ms: the end of attempts that no event ends, milliseconds since 1970; see `SweepFolder.lived_until`.
    """
    known = {trial.number: trial for trial in trials}

    def stamps_of(number: int) -> list[int]:
        return [point.timestamp_ms for point in known[number].points]

    return costs_of_columns(events, TrialColumns.of(known.values()), stamps_of, until_ms)


def costs_of_columns(
    events: Iterable[Mapping[str, Any]], trials: TrialColumns, stamps_of: Callable[[int], list[int]], until_ms: int
) -> Costs:
    """Add up a sweep without a record of every trial.

    Args:
        events: lines of events.jsonl, in order.
        trials: all trials.
        stamps_of: gives the times of the points of a trial, milliseconds since 1970.
        until_ms: the end of attempts that no event ends, likewise; see `SweepFolder.lived_until`.
    """
    states = dict(zip(trials.trial.tolist(), trials.state.tolist(), strict=True))
    total = gpu = failed = pruned = repeated = 0.0
    workers_of: dict[int, int] = {}
    for attempt in attempts_of(events):
        ended = attempt.ended if attempt.ended is not None else until_ms
        seconds = max(0, ended - attempt.began) / 1000 * attempt.workers
        total += seconds
        gpu += seconds * attempt.gpus
        workers_of[attempt.trial] = attempt.workers
        state = states.get(attempt.trial)
        if state == "failed":
            failed += seconds
        elif state == "pruned":
            pruned += seconds
        elif attempt.is_broken:
            stands = stamps_of(attempt.trial) if state is not None else []
            last = max((stamp for stamp in stands if attempt.began <= stamp <= ended), default=attempt.began)
            repeated += max(0, ended - last) / 1000 * attempt.workers
    is_finished = trials.state == "finished"
    workers = [workers_of.get(number, 1) for number in trials.trial[is_finished].tolist()]
    useful = float(trials.seconds[is_finished] @ np.array(workers, dtype=np.int64))
    epochs = float(np.nansum(trials.last_epoch))
    return Costs(epochs, total, gpu, useful, failed, pruned, repeated)
