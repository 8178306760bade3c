"""Pre-training as a Ray Train run (DDP); the driver commits every point as it arrives."""

import dataclasses
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from sweeplab.execution.cluster import resources_per_worker, scratch_folder
from sweeplab.execution.loops import torch_trainer, train_loop
from sweeplab.execution.mailbox import mailbox_callback
from sweeplab.execution.open_mailbox import HeartbeatCount, open_mailbox
from sweeplab.execution.watchdog import Watchdog, run_watched
from sweeplab.records import Point
from sweeplab.specs import Unfinished
from sweeplab.storage.node_cache import content_of
from sweeplab.storage.run_folder import RunFolder
from sweeplab.worker.failures import Failure, root_cause, train_failure
from sweeplab.worker.input_paths import input_paths_of
from sweeplab.worker.jobs import PretrainingJob


def pretrain_on_ray(
    job: PretrainingJob,
    run: RunFolder,
    on_point: Callable[[Point], None],
    home: Path,
    watchdog: Watchdog,
    reads: list[Any],
) -> Failure | None:
    """Pre-train in a Ray Train run; the driver commits every point as it arrives.

    Args:
        job: what is trained.
        run: where points are committed.
        on_point: called with every one.
        home: the home.
        watch: notices when nothing moves.
        reads: parts of specs that say what the command reads in all, the victim's data among it: they are brought to
            nodes together.

    Returns:
        None when training came to its end, else why it did not.
    """
    import ray
    from ray import cloudpickle

    resources = job.victim.resources
    per_worker = resources_per_worker(resources)
    machine = dataclasses.replace(job.machine, use_cuda=per_worker.get("GPU", 0) > 0)
    scratch = scratch_folder(home) / f"pretrain-{uuid4().hex[:8]}"
    weights = content_of(job.initial) if job.initial else ""
    job = dataclasses.replace(job, input_paths=input_paths_of(reads), weights=weights)
    mailbox = open_mailbox(*([job.initial] if job.initial else []), reads=reads)
    trainer = torch_trainer(
        train_loop,
        {"job": cloudpickle.dumps(dataclasses.replace(job, machine=machine)), "mailbox": mailbox},
        num_workers=resources.workers,
        per_worker=per_worker,
        storage=str(scratch),
        callback=mailbox_callback(mailbox),
    )
    failures: list[Failure] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - becomes the recorded failure of this attempt
            failures.append(train_failure(error))

    def deliver() -> None:
        try:
            messages, _ = ray.get(mailbox.take.remote(0.0))
        except ray.exceptions.RayActorError as error:
            raise Unfinished(f"the mailbox's process died ({root_cause(error)}); the same command goes on") from None
        for message in messages:
            _, point, outcomes = pickle.loads(message)
            if run.commit(point, outcomes):
                on_point(point)

    def work() -> None:
        training = threading.Thread(target=fit, name="pre-training", daemon=True)
        training.start()
        while training.is_alive():
            training.join(0.3)
            deliver()
        deliver()

    watchdog.listen(HeartbeatCount(mailbox))
    try:
        run_watched(work, watchdog)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return failures[0] if failures else None
