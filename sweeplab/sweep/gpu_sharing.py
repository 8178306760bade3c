"""GPU sharing: fewer trials on a GPU once its memory did not hold as many as were asked for."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sweeplab.experiment import SMALLEST_SHARE, Resources

FEWER = "fewer trials per GPU"
"""The event's name in events.jsonl."""


def trials_per_gpu(resources: Resources) -> int:
    """Trials that may share a GPU; 1 where each has a whole one, or none."""
    if not resources.gpus_per_worker:
        return 1
    fits = max(1, int(1 / resources.gpus_per_worker + 1e-9))
    return min(fits, resources.concurrent_trials or fits)


def with_fewer(resources: Resources) -> Resources:
    """Half as many trials on a GPU, at least 1: each takes a larger share of it, so that it is so on every GPU."""
    steps = round(1 / SMALLEST_SHARE)
    share = math.floor(steps / max(1, trials_per_gpu(resources) // 2)) / steps  # rounded down: all find room
    return resources.replace(gpus_per_worker=share)


def resources_now(asked: Resources, events: Iterable[Mapping[str, Any]]) -> Resources:
    """What is asked for, with the share of a GPU that earlier commands arrived at where they asked for the same.

    Args:
        asked: of the spec.
        events: lines of the sweep's events.jsonl.
    """
    shares = [event["gpus_per_worker"] for event in events if _is_about(asked, event)]
    return asked.replace(gpus_per_worker=max(shares)) if shares else asked


def _is_about(asked: Resources, event: Mapping[str, Any]) -> bool:
    return event["event"] == FEWER and event.get("asked") == asked.gpus_per_worker and "gpus_per_worker" in event
