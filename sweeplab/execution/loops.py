"""Loops: what Ray's own processes run: trainables, Train's loops and tasks.

Imports next to nothing, since Ray loads it into controllers too, which need no torch.
"""

import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sweeplab.execution.mailbox import MailboxContext, SendingContext
from sweeplab.worker.failures import failure_of, train_failure

if TYPE_CHECKING:
    from sweeplab.worker.input_paths import InputPaths


def tune_trainable(config: dict[str, Any], mailbox: Any = None) -> None:
    """One attempt of one trial in a Tune actor. An error becomes a message, so that the actor serves the next trial; to
    return without one is to be done."""
    from ray import tune

    job = pickle.loads(config["job"])

    def send(message: bytes) -> None:
        tune.report({"message": message})

    try:
        job.work(job, SendingContext(job.attempt, send, mailbox, job.number))
    except Exception as error:  # noqa: BLE001 - the driver records it as the trial's failure
        send(pickle.dumps(("failed", failure_of(error), traceback.format_exc())))


def train_trainable(config: dict[str, Any], settings: dict[str, Any], mailbox: Any = None) -> None:
    """One attempt of one trial as a Ray Train run of several workers, started from a Tune actor."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    try:
        torch_trainer(
            train_loop,
            {"job": config["job"], "mailbox": mailbox},
            num_workers=settings["workers"],
            per_worker=settings["per_worker"],
            storage=settings["scratch"],
            callback=TuneReportCallback(),
        ).fit()
    except Exception as error:  # noqa: BLE001 - the driver records it as the trial's failure
        tune.report({"message": pickle.dumps(("failed", train_failure(error), traceback.format_exc()))})


def torch_trainer(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    num_workers: int,
    per_worker: dict[str, float],
    storage: str,
    callback: Any = None,
    max_failures: int = 0,
) -> Any:
    """A Ray Train run of a loop, DDP over its workers; its own state is never read again."""
    import ray.train
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        loop,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            resources_per_worker=per_worker,
            use_gpu=per_worker.get("GPU", 0) > 0,
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{uuid4().hex[:8]}",  # Train resumes silently where a name is used again
            storage_path=storage,
            callbacks=[] if callback is None else [callback],
            failure_config=ray.train.FailureConfig(max_failures=max_failures, controller_failure_limit=2),
        ),
    )


def train_loop(config: dict[str, Any]) -> None:
    """What every worker of a run for one job does."""
    import ray.train

    job = pickle.loads(config["job"])

    def send(message: bytes) -> None:
        ray.train.report({"message": message})

    job.work(job, SendingContext(job.attempt, send, config["mailbox"], getattr(job, "number", None)))


def pool_loop(config: dict[str, Any]) -> None:
    """What every worker of a pool's slot does: one job after the other, until the mailbox says that all is over.

    An error that another attempt would meet again, met by every rank, ends the trial and not the slot. After any other
    the ranks may no longer be in step, so the error ends this process and Ray Train starts the slot's ranks anew.
    """
    import ray
    import ray.train

    from sweeplab.training import ranks

    mailbox, slot = config["mailbox"], config["slot"]
    rank, size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    session = ranks.broadcast_object(uuid4().hex)
    index = 0
    while content := ray.get(mailbox.job.remote(slot, session, index)):
        job = pickle.loads(content)
        key = (slot, session, index)
        try:
            job.work(job, MailboxContext(key, job.attempt, rank, mailbox))
        except Exception as error:
            failure, log = failure_of(error), traceback.format_exc()
            together = ray.get(mailbox.meet.remote(key, rank, size, pickle.dumps((failure, log))))
            if not (together and failure.is_deterministic):
                raise
        else:
            if rank == 0:
                mailbox.put.remote(("done", *key))  # a mailbox that died is noticed by the next question
        index += 1


def measure_task(job: Any, mailbox: Any) -> Any:
    """A Ray task: measure the job's checkpoint, brought to this node if need be."""
    from dataclasses import replace

    from sweeplab.worker.run import measure_checkpoint, on_this_node

    context = SendingContext(1, lambda message: None, mailbox)
    place = context.bring(job.checkpoint, job.weights)
    evaluation, trigger = on_this_node(job.evaluation, job.input_paths, context), job.trigger
    if trigger is not None:
        trigger = replace(trigger, attack=on_this_node(trigger.attack, job.input_paths, context))
    here = replace(job, checkpoint=str(place), evaluation=evaluation, trigger=trigger)
    return measure_checkpoint(here, context.heartbeat)


def receive_data(mailbox: Any) -> None:
    """A Ray task: have this node get its copies of all files."""
    from sweeplab.storage.node_cache import remove_old_copies

    remove_old_copies()
    SendingContext(1, lambda message: None, mailbox).node_copy()


def missing_here(
    input_paths: "InputPaths | None", digests: dict[str, str], storages: list[str], mark: str
) -> tuple[str, list[str], list[str]]:
    """A Ray task: this node's name, the data that it does not see, and what else is wrong with it: storages where it
    sees no marker, and files that are others than the driver's."""
    import socket

    from sweeplab.specs import InvalidInput, StorageFault
    from sweeplab.storage.checkpoint_store import Storage

    faults = []
    for storage in storages:
        try:
            if not Storage(storage).exists(mark):
                faults.append(f"does not see {storage}")
        except (StorageFault, InvalidInput, OSError) as error:
            faults.append(f"does not see {storage} ({error})")
    missing = input_paths.missing() if input_paths is not None else []
    if not missing:  # else it reads copies of the driver's
        faults += [fault for path, digest in digests.items() if (fault := _fault_of_file(path, digest))]
    return socket.gethostname(), missing, faults


def _fault_of_file(path: str, digest: str) -> str | None:
    from sweeplab.specs import file_digest

    try:
        return None if file_digest(Path(path)) == digest else f"has another {path}"
    except OSError as error:
        return f"cannot read {path} ({error.strerror})"
