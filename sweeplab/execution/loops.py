"""Loops: what Ray's own processes run: trainables, Train's loops and tasks.

Imports next to nothing, since Ray loads it into controllers too, which need no torch.
"""

import pickle
import traceback
from itertools import count
from typing import Any
from uuid import uuid4

from sweeplab.execution.mailbox import MailboxContext, Ready
from sweeplab.worker.failures import failure_of, release_memory


def tune_trainable(config: dict[str, Any], mailbox: Any = None) -> None:
    """One attempt of one trial in a Tune actor. An error becomes a message, so that the actor serves the next trial."""
    job = pickle.loads(config["job"])
    context = MailboxContext(mailbox, job.number, job.attempt)
    try:
        job.work(job, context)
    except Exception as error:  # noqa: BLE001 - the driver records it as the trial's failure
        log = traceback.format_exc()
        release_memory(error)
        context.failed(failure_of(error), log)
    else:
        context.done()


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
    # Ranks that Ray Train has started anew are told from those before them: their jobs died with them.
    session = ranks.broadcast_object(uuid4().hex)
    for index in count():
        content = ray.get(mailbox.job.remote(Ready(slot, session, index)))
        if not content:
            return
        job = pickle.loads(content)
        context = MailboxContext(mailbox, job.number, job.attempt, rank)
        try:
            job.work(job, context)
        except Exception as error:
            failure = failure_of(error)
            together = context.failed(failure, traceback.format_exc(), size)
            # An error that one rank alone has met leaves the others waiting in a collective for ever.
            if not (together and failure.is_deterministic):
                raise
        else:
            context.done()


def measure_task(job: Any, mailbox: Any) -> Any:
    """A Ray task: measure the job's checkpoint, brought to this node if need be."""
    from dataclasses import replace

    from sweeplab.worker.run import measure_checkpoint

    context = MailboxContext(mailbox, 0, 1)
    place = context.bring(job.checkpoint, job.weights)
    # Test images and the trigger's own files may lie elsewhere on this node.
    evaluation, trigger = job.input_paths.on_this_node(job.evaluation, context.node_copy), job.trigger
    if trigger is not None:
        trigger = replace(trigger, attack=job.input_paths.on_this_node(trigger.attack, context.node_copy))
    here = replace(job, checkpoint=str(place), evaluation=evaluation, trigger=trigger)
    return measure_checkpoint(here, context.heartbeat)
