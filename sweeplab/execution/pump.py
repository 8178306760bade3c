"""Pump: takes what workers say out of the mailbox, in order, and passes it on to the controller."""

import dataclasses
from queue import SimpleQueue
from typing import Any

from sweeplab.execution.cluster import is_private, resources_per_worker, share_of_cores
from sweeplab.execution.controller import Controller, Workload
from sweeplab.execution.mailbox import Ended, FoundBroken, Mailbox, Ready, Report
from sweeplab.execution.node_data import packed
from sweeplab.execution.nodes import on_node
from sweeplab.execution.watchdog import Watchdog
from sweeplab.specs import Unfinished
from sweeplab.storage.checkpoint_store import MARK
from sweeplab.storage.node_cache import content_of
from sweeplab.worker.failures import most_telling, root_cause
from sweeplab.worker.input_paths import input_paths_of
from sweeplab.worker.jobs import Job, Machine, Weights


class Pump:
    """Between one controller and the workers that do its jobs, whatever started them."""

    def __init__(self, controller: Controller, workload: Workload, watchdog: Watchdog) -> None:
        self.controller, self.watchdog = controller, watchdog
        self.resources = controller.resources
        self.per_worker = resources_per_worker(self.resources)
        self.mailbox = open_mailbox(workload.reads)
        self._input_paths = input_paths_of(workload.reads)
        self._weights = weights_of(workload.weights)
        self._attempts: dict[int, int] = {}
        """The attempt that runs, of each job that does."""
        self._deaths: SimpleQueue[Ended] = SimpleQueue()
        self._heartbeats = 0

    def next_job(self) -> Job | None:
        """The controller's next job, with what this cluster's workers need to know."""
        job = self.controller.next_job() if self.controller.resources == self.resources else None
        if job is None:
            return None
        self._attempts[job.number] = job.attempt
        self.watchdog.moved()
        machine = machine_of_worker(job.machine, self.per_worker)
        return dataclasses.replace(job, machine=machine, input_paths=self._input_paths, weights=self._weights)

    def is_done(self) -> bool:
        """Whether no more jobs come from here: none is left, or each takes something else from now on."""
        return self.controller.is_done() or self.controller.resources != self.resources

    def died(self, death: Ended) -> None:
        """Have an attempt's death heard after all that its worker has said before; any thread may call this."""
        self._deaths.put(death)

    def take(self, seconds: float) -> list[Ready]:
        """Pass on all messages so far; waits a while for the first.

        Returns:
            The slots that ask for jobs.

        Raises:
            Unfinished: if the mailbox's process died.
        """
        import ray

        # Taken before the messages: what a worker said before it died is in the mailbox by now.
        deaths = [self._deaths.get() for _ in range(self._deaths.qsize())]  # nobody else takes any
        try:
            # With a death to tell, there is no waiting for messages.
            messages, heartbeats = ray.get(self.mailbox.take.remote(0.0 if deaths else seconds))
        except ray.exceptions.RayActorError as error:
            raise Unfinished(f"the mailbox's process died ({root_cause(error)}); the same command goes on") from None
        # A heartbeat alone keeps the watchdog quiet: a long epoch says nothing else.
        if messages or deaths or heartbeats != self._heartbeats:
            self._heartbeats = heartbeats
            self.watchdog.moved()
        asking = []
        for message, question in [*messages, *((death, None) for death in deaths)]:
            if isinstance(message, Ready):
                # Handed out by the caller, once everything that may end trials was heard.
                asking.append(message)
                continue
            answer = self._pass_on(message)
            if question is not None:
                self.mailbox.answer.remote(question, answer)
        return asking

    def _pass_on(self, message: Report | FoundBroken | Ended) -> bool:
        """Tell the controller; whether the worker is to stop."""
        number = message.number
        if self._attempts.get(number) != message.attempt:  # from a worker that was given up
            return True
        if isinstance(message, Report):
            self.controller.point(number, message.point, message.outcomes)
            return self.controller.should_stop(number)
        if isinstance(message, FoundBroken):
            self.controller.found_broken(number, message.rows)
            return False
        del self._attempts[number]
        if message.failures:
            failure = most_telling([failure for failure, _ in message.failures])
            self.controller.log(number, next(log for known, log in message.failures if known is failure))
            self.controller.failed(number, failure)
        else:
            self.controller.finished(number)
        return True

    def runs(self, job: Job) -> bool:
        """Whether this attempt has not said yet how it ended."""
        return self._attempts.get(job.number) == job.attempt


def machine_of_worker(machine: Machine, per_worker: dict[str, float]) -> Machine:
    """With what one worker takes of this cluster."""
    use_cuda = per_worker.get("GPU", 0) > 0
    return dataclasses.replace(machine, use_cuda=use_cuda, share_of_cores=share_of_cores(per_worker) if use_cuda else 0)


def open_mailbox(reads: list[Any]) -> Any:
    """A mailbox on this node; `reads`: parts of specs that say what files the workers read."""
    import ray

    options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": on_node()}
    return ray.remote(**options)(Mailbox).remote(packed(reads))


def weights_of(checkpoint: str | None) -> Weights:
    """A checkpoint's digest, and its bytes where other nodes may need them."""
    import ray

    if checkpoint is None:
        return Weights()
    if MARK in checkpoint or is_private():  # a URL is read by every node, and a private cluster is one node
        return Weights(content_of(checkpoint))
    with open(checkpoint, "rb") as file:
        return Weights(content_of(checkpoint), ray.put(file.read()))
