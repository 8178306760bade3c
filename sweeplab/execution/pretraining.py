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
from sweeplab.execution.mailbox import desk_callback
from sweeplab.execution.open_mailbox import _Beats, new_desk
from sweeplab.execution.watchdog import Watch, attend
from sweeplab.records import Point
from sweeplab.specs import Unfinished
from sweeplab.storage.node_cache import content_of
from sweeplab.storage.run_folder import RunFolder
from sweeplab.worker.failures import Failure, _first_line, train_failure
from sweeplab.worker.input_paths import sources_of
from sweeplab.worker.jobs import PretrainingJob


def pretrain_on_ray(
    job: PretrainingJob,
    run: RunFolder,
    on_point: Callable[[Point], None],
    home: Path,
    watch: Watch,
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
    job = dataclasses.replace(job, sources=sources_of(reads), weights=weights)
    desk = new_desk(*([job.initial] if job.initial else []), reads=reads)
    trainer = torch_trainer(
        train_loop,
        {"job": cloudpickle.dumps(dataclasses.replace(job, machine=machine)), "desk": desk},
        num_workers=resources.workers,
        per_worker=per_worker,
        storage=str(scratch),
        callback=desk_callback(desk),
    )
    failures: list[Failure] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - becomes the recorded failure of this attempt
            failures.append(train_failure(error))

    def deliver() -> None:
        try:
            messages, _ = ray.get(desk.take.remote(0.0))
        except ray.exceptions.RayActorError as error:
            raise Unfinished(f"the desk's process died ({_first_line(error)}); the same command goes on") from None
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

    watch.listen(_Beats(desk))
    try:
        attend(work, watch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return failures[0] if failures else None
