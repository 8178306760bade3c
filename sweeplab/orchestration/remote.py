"""What runs in Ray's own processes. Imports next to nothing, since Ray loads it into controllers and mailboxes too."""

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from sweeplab.records import Outcomes, Point

DETERMINISTIC_ERRORS = (ValueError, TypeError, KeyError, AttributeError, FloatingPointError, FileNotFoundError)
"""Errors that another attempt would meet again."""

Send = Callable[[bytes], None]


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without finishing its trial."""

    reason: str
    """One line for people."""
    is_deterministic: bool
    """Whether another attempt would fail in the same way: a wrong value, a loss that is not finite."""


def failure_of(error: BaseException) -> Failure:
    """A failure as it is recorded."""
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return Failure(reason, isinstance(error, DETERMINISTIC_ERRORS))


def train_failure(error: BaseException) -> Failure:
    """The failure behind a Ray Train error: one that another attempt would meet again, where a rank raised such a one,
    else that of the lowest failed rank. (When one rank fails, the others report a lost connection.)
    """
    raised = getattr(error, "worker_failures", None) or {}
    failures = [failure_of(getattr(inner, "cause", None) or inner) for _, inner in sorted(raised.items())]
    failures.sort(key=lambda failure: not failure.is_deterministic)
    return failures[0] if failures else failure_of(error)


class SendingContext:
    """A worker's context that sends every point to the driver."""

    def __init__(self, attempt: int, send: Send) -> None:
        self.attempt = attempt
        self._send = send

    def report(self, point: "Point", outcomes: "Outcomes") -> None:
        """Send the point; every rank does, and the driver listens to rank 0."""
        self._send(pickle.dumps(("point", point, outcomes)))

    def should_stop(self) -> bool:
        """Runs go to their end."""
        return False


def tune_trainable(config: dict[str, Any]) -> None:
    """One attempt of one trial in a Tune actor. An error becomes a message, so that the actor serves the next trial."""
    from ray import tune

    from sweeplab.orchestration import workers

    job: workers.CleaningJob = pickle.loads(config["job"])

    def send(message: bytes) -> None:
        tune.report({"message": message})

    try:
        workers.clean(job, SendingContext(job.attempt, send))
    except Exception as error:  # noqa: BLE001 - the driver records it as the trial's failure
        send(pickle.dumps(("failed", failure_of(error), traceback.format_exc())))
    else:
        send(pickle.dumps(("done",)))


def train_trainable(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """One attempt of one trial as a Ray Train run of several workers, started from a Tune actor."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    try:
        torch_trainer(
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


def torch_trainer(job: bytes, *, num_workers: int, per_worker: dict[str, float], storage: str, callback: Any) -> Any:
    """A Ray Train run of the job, DDP over its workers; its own state is never read again."""
    import ray.train
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        train_loop,
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


def train_loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    import ray.train

    from sweeplab.orchestration import workers

    job: workers.CleaningJob | workers.PretrainingJob = pickle.loads(config["job"])

    def send(message: bytes) -> None:
        ray.train.report({"message": message})

    context = SendingContext(job.attempt, send)
    if isinstance(job, workers.PretrainingJob):
        workers.pretrain(job, context)
    else:
        workers.clean(job, context)


class Mailbox:
    """A Ray actor that holds messages until the driver takes them."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []

    def put(self, message: bytes) -> None:
        """Leave a message."""
        self._messages.append(message)

    def take(self) -> list[bytes]:
        """All messages so far, in order; they are the caller's now."""
        messages, self._messages = self._messages, []
        return messages


def mail_callback(mailbox: Any) -> Any:
    """A Ray Train callback that forwards rank 0's reports into a mailbox; it runs in Train's controller."""
    import ray
    from ray.train import UserCallback

    class MailCallback(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            ray.get(mailbox.put.remote(metrics[0]["message"]))

    return MailCallback()
