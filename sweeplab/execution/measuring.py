"""A measurement of one checkpoint as a Ray task."""

import dataclasses
from typing import Any

from sweeplab.execution.loops import measure_task
from sweeplab.execution.open_mailbox import HeartbeatCount, open_mailbox
from sweeplab.execution.watchdog import Watchdog, run_watched
from sweeplab.records import Measurement, Outcomes
from sweeplab.storage.node_cache import content_of
from sweeplab.worker.input_paths import input_paths_of
from sweeplab.worker.jobs import MeasuringJob


def measure_on_ray(
    job: MeasuringJob, reads: list[Any], per_worker: dict[str, float], watchdog: Watchdog
) -> tuple[Measurement, Outcomes]:
    """Measure weights under an evaluation in a Ray task; `reads`: see `pretrain_on_ray`."""
    import ray

    machine = dataclasses.replace(job.machine, use_cuda=per_worker.get("GPU", 0) > 0)
    job = dataclasses.replace(job, input_paths=input_paths_of(reads), weights=content_of(job.checkpoint))
    mailbox = open_mailbox(job.checkpoint, reads=reads)
    task = ray.remote(num_cpus=per_worker["CPU"], num_gpus=per_worker.get("GPU", 0), max_retries=2)(measure_task)
    results: list[tuple[Measurement, Outcomes]] = []

    def work() -> None:
        try:
            results.append(ray.get(task.remote(dataclasses.replace(job, machine=machine), mailbox)))
        except ray.exceptions.RayTaskError as error:
            raise error.cause or error from None

    watchdog.listen(HeartbeatCount(mailbox))
    run_watched(work, watchdog)
    return results[0]
