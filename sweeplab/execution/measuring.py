"""A measurement of one checkpoint as a Ray task."""

import dataclasses
from typing import Any

from sweeplab.execution.loops import measure_task
from sweeplab.execution.pump import machine_of_worker, open_mailbox, weights_of
from sweeplab.execution.watchdog import Watchdog, run_watched
from sweeplab.records import Measurement, Outcomes
from sweeplab.worker.input_paths import input_paths_of
from sweeplab.worker.jobs import MeasuringJob


def measure_on_ray(
    job: MeasuringJob, reads: list[Any], per_worker: dict[str, float], watchdog: Watchdog
) -> tuple[Measurement, Outcomes]:
    """Measure weights under an evaluation in a Ray task; `reads`: parts of specs that say what files are read."""
    import ray

    machine = machine_of_worker(job.machine, per_worker)
    task = ray.remote(num_cpus=per_worker["CPU"], num_gpus=per_worker.get("GPU", 0), max_retries=2)(measure_task)

    def work() -> tuple[Measurement, Outcomes]:
        weights = weights_of(job.checkpoint)
        whole = dataclasses.replace(job, machine=machine, input_paths=input_paths_of(reads), weights=weights)
        mailbox, known = open_mailbox(reads), 0
        answer = task.remote(whole, mailbox)
        while not ray.wait([answer], timeout=1.0)[0]:
            _, heartbeats = ray.get(mailbox.take.remote(0.0))
            if heartbeats != known:
                known = heartbeats
                watchdog.moved()
        try:
            return ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise error.cause or error from None

    return run_watched(work, watchdog)
