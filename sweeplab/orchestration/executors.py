"""Executors: how the worker functions are run. `inline` in this process, `tune` and `train` on Ray."""

import dataclasses
import pickle
import shutil
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from sweeplab.orchestration import workers
from sweeplab.orchestration.book import Failure, TrialBook
from sweeplab.orchestration.cluster import concurrent_trials, resources_per_worker, scratch_folder
from sweeplab.orchestration.run_folder import RunFolder
from sweeplab.orchestration.workers import CleaningJob, MeasuringJob, PretrainingJob
from sweeplab.records import Measurement, Outcomes, Point

DETERMINISTIC_ERRORS = (ValueError, TypeError, KeyError, AttributeError, FloatingPointError, FileNotFoundError)
"""Errors that another attempt would meet again."""

Send = Callable[[bytes], None]


def failure_of(error: BaseException) -> Failure:
    """A failure as it is recorded."""
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return Failure(reason, isinstance(error, DETERMINISTIC_ERRORS))


class SendingContext:
    """A worker's context that sends every point to the driver."""

    def __init__(self, attempt: int, send: Send) -> None:
        self.attempt = attempt
        self._send = send

    def report(self, point: Point, outcomes: Outcomes) -> None:
        """Send the point; every rank does, and the driver listens to rank 0."""
        self._send(pickle.dumps(("point", point, outcomes)))

    def should_stop(self) -> bool:
        """Runs go to their end."""
        return False


# --- inline


class InlineContext:
    """Commits points directly: the worker is the driver."""

    def __init__(self, attempt: int, commit: Callable[[Point, Outcomes], Any]) -> None:
        self.attempt = attempt
        self._commit = commit

    def report(self, point: Point, outcomes: Outcomes) -> None:
        """Commit the point."""
        self._commit(point, outcomes)

    def should_stop(self) -> bool:
        """Runs go to their end."""
        return False


def run_trials_inline(book: TrialBook) -> None:
    """One trial after the other in this process."""
    while (job := book.next_job()) is not None:
        number = job.number

        def commit(point: Point, outcomes: Outcomes, number: int = number) -> None:
            book.point(number, point, outcomes)

        try:
            workers.clean(job, InlineContext(job.attempt, commit))
        except DETERMINISTIC_ERRORS as error:
            book.log(number, traceback.format_exc())
            book.failed(number, failure_of(error))
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
            tune.with_parameters(_train_trainable, settings=settings), {"CPU": 0, "memory": 1}
        )
    else:
        trainable = tune.with_resources(_tune_trainable, dict(per_worker))
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


def _tune_trainable(config: dict[str, Any]) -> None:
    """One attempt of one trial in a Tune actor. An error becomes a message, so that the actor serves the next trial."""
    from ray import tune

    job: CleaningJob = pickle.loads(config["job"])

    def send(message: bytes) -> None:
        tune.report({"message": message})

    try:
        workers.clean(job, SendingContext(job.attempt, send))
    except Exception as error:  # noqa: BLE001 - the driver records it as the trial's failure
        send(pickle.dumps(("failed", failure_of(error), traceback.format_exc())))
    else:
        send(pickle.dumps(("done",)))


def _train_trainable(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """One attempt of one trial as a Ray Train run of several workers, started from a Tune actor."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    try:
        _torch_trainer(
            config["job"],
            num_workers=settings["workers"],
            per_worker=settings["per_worker"],
            storage=settings["scratch"],
            callback=TuneReportCallback(),
        ).fit()
    except Exception as error:  # noqa: BLE001 - the driver records it as the trial's failure
        message = pickle.dumps(("failed", train_failure(error), traceback.format_exc()))
    else:
        message = pickle.dumps(("done",))
    tune.report({"message": message})


def _torch_trainer(job: bytes, *, num_workers: int, per_worker: dict[str, float], storage: str, callback: Any) -> Any:
    import ray.train
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        _train_loop,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            resources_per_worker=per_worker,
            use_gpu=per_worker.get("GPU", 0) > 0,
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{uuid4().hex[:8]}",  # Train resumes silently where a name is used again
            storage_path=storage,
            callbacks=[callback],
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=2),
        ),
    )


def _train_loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    import ray.train

    job: CleaningJob | PretrainingJob = pickle.loads(config["job"])

    def send(message: bytes) -> None:
        ray.train.report({"message": message})

    context = SendingContext(job.attempt, send)
    if isinstance(job, PretrainingJob):
        workers.pretrain(job, context)
    else:
        workers.clean(job, context)


def train_failure(error: BaseException) -> Failure:
    """The failure behind a Ray Train error: that of its lowest failed rank where workers raised one."""
    failures = getattr(error, "worker_failures", None) or {}
    for _, inner in sorted(failures.items()):
        cause = getattr(inner, "cause", None) or inner
        return failure_of(cause)
    return failure_of(error)


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

    from sweeplab.orchestration.tune_bridge import Mailbox, MailCallback

    resources = job.victim.resources
    per_worker = resources_per_worker(resources)
    machine = dataclasses.replace(job.machine, use_cuda=per_worker.get("GPU", 0) > 0)
    scratch = scratch_folder(home) / f"pretrain-{uuid4().hex[:8]}"
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    over = threading.Event()

    def deliver() -> None:
        for message in ray.get(mailbox.take.remote()):
            _, point, outcomes = pickle.loads(message)
            if run.commit(point, outcomes):
                on_point(point)

    def listen() -> None:
        while not over.wait(0.3):
            deliver()

    listener = threading.Thread(target=listen, name="points of pre-training", daemon=True)
    listener.start()
    failure: Failure | None = None
    try:
        _torch_trainer(
            cloudpickle.dumps(dataclasses.replace(job, machine=machine)),
            num_workers=resources.workers,
            per_worker=per_worker,
            storage=str(scratch),
            callback=MailCallback(mailbox),
        ).fit()
    except Exception as error:  # noqa: BLE001 - becomes the recorded failure of this attempt
        failure = train_failure(error)
    finally:
        over.set()
        listener.join()
    deliver()
    shutil.rmtree(scratch, ignore_errors=True)
    return failure


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
