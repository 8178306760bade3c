"""Executors: how the worker functions are run. `inline` in this process, `tune` and `train` on Ray."""

import dataclasses
import pickle
import shutil
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from sweeplab.orchestration import remote, workers
from sweeplab.orchestration.book import TrialBook
from sweeplab.orchestration.cluster import concurrent_trials, resources_per_worker, scratch_folder
from sweeplab.orchestration.remote import Failure
from sweeplab.orchestration.run_folder import RunFolder
from sweeplab.orchestration.workers import MeasuringJob, PretrainingJob
from sweeplab.records import Measurement, Outcomes, Point

# --- inline


class InlineContext:
    """Commits points directly: the worker is the driver."""

    def __init__(
        self,
        attempt: int,
        commit: Callable[[Point, Outcomes], Any],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.attempt = attempt
        self._commit, self._should_stop = commit, should_stop

    def report(self, point: Point, outcomes: Outcomes) -> None:
        """Commit the point."""
        self._commit(point, outcomes)

    def should_stop(self) -> bool:
        """What the driver decided after the last point; pre-training goes to its end."""
        return self._should_stop()


def run_trials_inline(book: TrialBook) -> None:
    """One trial after the other in this process."""
    while (job := book.next_job()) is not None:
        number = job.number

        def commit(point: Point, outcomes: Outcomes, number: int = number) -> None:
            book.point(number, point, outcomes)

        try:
            workers.clean(job, InlineContext(job.attempt, commit, partial(book.should_stop, number)))
        except remote.DETERMINISTIC_ERRORS as error:
            book.log(number, traceback.format_exc())
            book.failed(number, remote.failure_of(error))
        else:
            book.finished(number)


# --- Ray Tune


def run_trials_on_ray(book: TrialBook, home: Path, *, through_train: bool) -> None:
    """Trials on Ray Tune, each in a reused actor, or each a Ray Train run of several workers.

    Tune is disposable here: every call begins a fresh experiment with what the book hands out, and nothing that Tune
    writes is read again.
    """
    from ray import tune

    from sweeplab.orchestration.tune_bridge import BookCallback, BookSearch

    resources = book.sweep.resources
    per_worker = resources_per_worker(resources)
    at_a_time = concurrent_trials(resources, per_worker)
    book.machine = dataclasses.replace(book.machine, use_cuda=per_worker.get("GPU", 0) > 0)
    scratch = scratch_folder(home) / f"tune-{uuid4().hex[:8]}"
    trainable: Any
    if through_train:
        settings = {"workers": resources.workers, "per_worker": per_worker, "scratch": str(scratch)}
        trainable = tune.with_resources(
            tune.with_parameters(remote.train_trainable, settings=settings), {"CPU": 0, "memory": 1}
        )
    else:
        trainable = tune.with_resources(remote.tune_trainable, dict(per_worker))
    search = BookSearch(book)
    try:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=search,
                num_samples=-1,
                max_concurrent_trials=at_a_time,
                reuse_actors=not through_train,
            ),
            run_config=tune.RunConfig(
                name=scratch.name,
                storage_path=str(scratch.parent),
                callbacks=[BookCallback(book, search)],
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# --- pre-training and measuring


def pretrain_inline(job: PretrainingJob, run: RunFolder, on_point: Callable[[Point], None]) -> None:
    """Pre-train in this process."""

    def commit(point: Point, outcomes: Outcomes) -> None:
        run.commit(point, outcomes)
        on_point(point)

    workers.pretrain(job, InlineContext(job.attempt, commit))


def pretrain_on_ray(
    job: PretrainingJob, run: RunFolder, on_point: Callable[[Point], None], home: Path
) -> Failure | None:
    """Pre-train in a Ray Train run; the driver commits every point as it arrives.

    Returns:
        None when training came to its end, else why it did not.
    """
    import ray
    from ray import cloudpickle

    resources = job.victim.resources
    per_worker = resources_per_worker(resources)
    machine = dataclasses.replace(job.machine, use_cuda=per_worker.get("GPU", 0) > 0)
    scratch = scratch_folder(home) / f"pretrain-{uuid4().hex[:8]}"
    mailbox = ray.remote(num_cpus=0)(remote.Mailbox).remote()
    trainer = remote.torch_trainer(
        cloudpickle.dumps(dataclasses.replace(job, machine=machine)),
        num_workers=resources.workers,
        per_worker=per_worker,
        storage=str(scratch),
        callback=remote.mail_callback(mailbox),
    )
    failures: list[Failure] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - becomes the recorded failure of this attempt
            failures.append(remote.train_failure(error))

    def deliver() -> None:
        for message in ray.get(mailbox.take.remote()):
            _, point, outcomes = pickle.loads(message)
            if run.commit(point, outcomes):
                on_point(point)

    # Not in the main thread: there Train would take over Ctrl-C and end the process as if all were well.
    training = threading.Thread(target=fit, name="pre-training", daemon=True)
    training.start()
    while training.is_alive():
        training.join(0.3)
        deliver()
    deliver()
    shutil.rmtree(scratch, ignore_errors=True)
    return failures[0] if failures else None


def measure_on_ray(job: MeasuringJob, per_worker: dict[str, float]) -> tuple[Measurement, Outcomes]:
    """Measure weights in a Ray task."""
    import ray

    machine = dataclasses.replace(job.machine, use_cuda=per_worker.get("GPU", 0) > 0)
    task = ray.remote(num_cpus=per_worker["CPU"], num_gpus=per_worker.get("GPU", 0), max_retries=2)(
        workers.measure_checkpoint
    )
    try:
        result: tuple[Measurement, Outcomes] = ray.get(task.remote(dataclasses.replace(job, machine=machine)))
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from None
    return result
