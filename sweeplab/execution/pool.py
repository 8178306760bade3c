"""Executor `pool`: long-lived Ray Train runs (DDP) that serve trials one after the other."""

import dataclasses
import pickle
import shutil
import threading
from pathlib import Path
from uuid import uuid4

from sweeplab.execution.cluster import concurrent_trials, raylet_is_gone, resources_per_worker, scratch_folder
from sweeplab.execution.controller import Controller
from sweeplab.execution.loops import pool_loop, torch_trainer
from sweeplab.execution.open_mailbox import open_mailbox
from sweeplab.execution.watchdog import RAYLET_DIED, Watchdog, run_watched
from sweeplab.specs import ClusterLost, Unfinished
from sweeplab.worker.failures import Failure, most_telling, root_cause
from sweeplab.worker.input_paths import input_paths_of
from sweeplab.worker.jobs import CleaningJob


@dataclasses.dataclass
class _Slot:
    """One long-lived Ray Train run, and what it is at."""

    number: int
    thread: threading.Thread | None = None
    error: BaseException | None = None
    key: tuple[int, str, int] | None = None
    """Of the job that its ranks work on; None between jobs."""
    job: CleaningJob | None = None
    asking: tuple[int, str, int] | None = None
    """Waits for a job under this key."""
    is_over: bool = False
    starts_without_a_point: int = 0


MAX_IDLE_STARTS = 3
"""So often in a row may a slot's run die without bringing a point before it is given up."""

RANK_RESTARTS = 1000
"""Restarts of a slot's ranks that Ray Train makes by itself; each costs its trial one of its few attempts."""


class Pool:
    """Slots that serve trials one after the other: Ray Train workers carry cleaning without starting anew."""

    def __init__(self, controller: Controller, home: Path, watchdog: Watchdog) -> None:
        self.controller, self.watchdog = controller, watchdog
        resources = controller.sweep.resources
        self.per_worker = resources_per_worker(resources)
        self.workers = resources.workers
        controller.machine = dataclasses.replace(controller.machine, use_cuda=self.per_worker.get("GPU", 0) > 0)
        self.scratch = scratch_folder(home) / f"pool-{uuid4().hex[:8]}"
        controller.input_paths = input_paths_of(controller.reads)
        self.mailbox = open_mailbox(controller.victim.checkpoint, reads=controller.reads)
        self.heartbeats = 0
        self.slots = [_Slot(number) for number in range(concurrent_trials(resources, self.per_worker))]

    def run(self) -> None:
        """Until the controller has nothing more to hand out."""
        try:
            for slot in self.slots:
                self._start(slot)
            while not all(slot.is_over for slot in self.slots):
                self._take_messages()
                self._mind_runs()
                self._hand_out()
                if self.controller.is_done() and all(slot.asking is None and slot.job is None for slot in self.slots):
                    return  # a slot that is still being started is not needed any more
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _start(self, slot: _Slot) -> None:
        trainer = torch_trainer(
            pool_loop,
            {"mailbox": self.mailbox, "slot": slot.number},
            num_workers=self.workers,
            per_worker=self.per_worker,
            storage=str(self.scratch),
            max_failures=RANK_RESTARTS,
        )
        slot.error = None

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # noqa: BLE001 - `_mind_runs` judges it
                slot.error = error

        slot.thread = threading.Thread(target=fit, name=f"slot {slot.number}", daemon=True)
        slot.thread.start()

    def _take_messages(self) -> None:
        import ray

        try:
            messages, heartbeats = ray.get(self.mailbox.take.remote(0.2))
        except ray.exceptions.RayActorError as error:
            raise Unfinished(f"the mailbox's process died ({root_cause(error)}); the same command goes on") from None
        if messages or heartbeats != self.heartbeats:
            self.heartbeats = heartbeats
            self.watchdog.moved()
        for kind, number, session, index, *content in messages:
            slot, key = self.slots[number], (number, session, index)
            if kind == "ready" and slot.is_over:
                continue  # it was given up before its ranks were there
            if kind == "ready":
                self._ranks_began_anew(slot, key)
                slot.asking = key
            elif key != slot.key or slot.job is None:  # from ranks that were given up
                if kind == "point":
                    self.mailbox.answer.remote(content[1], True)
            elif kind == "point":
                slot.starts_without_a_point = 0
                self.controller.point(slot.job.number, *pickle.loads(content[0]))
                self.mailbox.answer.remote(content[1], self.controller.should_stop(slot.job.number))
            elif kind == "done":
                job, slot.job, slot.key = slot.job, None, None
                self.controller.finished(job.number)
            else:
                self._failed(slot, [pickle.loads(said) for said in content[0]])

    def _ranks_began_anew(self, slot: _Slot, key: tuple[int, str, int]) -> None:
        # Within a session another rank may ask for the next job before rank 0 has said that this one is done.
        if slot.job is not None and slot.key is not None and slot.key[1] != key[1]:
            self._failed(slot, [(Failure("the trial's process died", False), "a worker of the pool died")])

    def _failed(self, slot: _Slot, said: list[tuple[Failure, str]]) -> None:
        assert slot.job is not None
        job, slot.job, slot.key = slot.job, None, None
        failure = most_telling([failure for failure, _ in said])
        self.controller.log(job.number, next(log for known, log in said if known is failure))
        self.controller.failed(job.number, failure)

    def _mind_runs(self) -> None:
        """Start a slot's run anew where its controller died; do without the slot where that does not help."""
        for slot in self.slots:
            if slot.thread is None or slot.thread.is_alive() or slot.is_over:
                continue
            if raylet_is_gone():
                raise ClusterLost(f"{RAYLET_DIED}; everything committed is kept, and the same command goes on")
            reason = root_cause(slot.error) if slot.error is not None else "it ended too early"
            slot.asking = None
            if slot.job is not None:
                self._failed(slot, [(Failure(f"the slot's Ray Train run died: {reason}", False), f"{reason}")])
            slot.starts_without_a_point += 1
            if slot.starts_without_a_point <= MAX_IDLE_STARTS:
                self._start(slot)
                continue
            slot.is_over = True
            told = f"slot {slot.number} of the pool died {slot.starts_without_a_point} times without a point: {reason}"
            self.controller.folder.event("slot given up", slot=slot.number, reason=reason)
            needs = " and ".join(f"{need:g} {word}" for word, need in self.per_worker.items())
            if all(other.is_over for other in self.slots):
                raise Unfinished(
                    f"{told}; see whether {self.workers} x {needs} find room on the cluster's nodes "
                    "(resources.concurrent_trials, resources.workers, resources.cpus_per_worker); the same command "
                    "goes on"
                )

    def _hand_out(self) -> None:
        from ray import cloudpickle

        for slot in self.slots:
            if slot.asking is None or slot.job is not None:
                continue
            job = self.controller.next_job()
            if job is not None:
                slot.key, slot.job, slot.asking = slot.asking, job, None
                self.mailbox.hand.remote(slot.key, cloudpickle.dumps(job))
            elif self.controller.is_done():
                self.mailbox.hand.remote(slot.asking, b"")
                slot.asking, slot.is_over = None, True


def run_trials_in_pool(controller: Controller, home: Path, watchdog: Watchdog) -> None:
    """Trials on long-lived Ray Train runs (DDP), one a slot."""
    run_watched(Pool(controller, home, watchdog).run, watchdog)
