"""Executor `pool`: long-lived Ray Train runs (DDP) that serve jobs one after the other."""

import dataclasses
import logging
import shutil
import threading
from uuid import uuid4

from sweeplab.execution.cluster import concurrent_trials, raylet_is_gone, scratch_folder
from sweeplab.execution.controller import Controller, Workload
from sweeplab.execution.loops import pool_loop
from sweeplab.execution.mailbox import Ended, Ready
from sweeplab.execution.pump import Pump
from sweeplab.execution.watchdog import Watchdog, cluster_lost, run_watched
from sweeplab.specs import Unfinished
from sweeplab.worker.failures import Failure, root_cause
from sweeplab.worker.jobs import Job

logger = logging.getLogger("sweeplab")


@dataclasses.dataclass
class _Slot:
    """One long-lived Ray Train run, and what it is at."""

    number: int
    thread: threading.Thread | None = None
    error: BaseException | None = None
    session: str | None = None
    """Of its ranks; None until they are there."""
    asking: Ready | None = None
    """Its ranks wait for a job."""
    job: Job | None = None
    """What they were handed last."""
    is_over: bool = False
    starts_without_a_job: int = 0


MAX_IDLE_STARTS = 3
"""So often in a row may a slot's run die without asking for a job before it is given up."""

RANK_RESTARTS = 1000
"""Restarts of a slot's ranks that Ray Train makes by itself; each costs its trial one of its few attempts."""

END_SECONDS = 60.0
"""So long may a run take to end once it has no more jobs, where its resources are needed again."""


class Pool:
    """Slots that serve jobs one after the other: Ray Train workers carry them without starting anew."""

    def __init__(self, controller: Controller, workload: Workload, watchdog: Watchdog, *, slots: int | None) -> None:
        self.controller = controller
        self.pump = Pump(controller, workload, watchdog)
        self.workers = self.pump.resources.workers
        self.scratch = scratch_folder(workload.home) / f"pool-{uuid4().hex[:8]}"
        slots = slots or concurrent_trials(self.pump.resources, self.pump.per_worker)
        self.slots = [_Slot(number) for number in range(slots)]

    def run(self) -> None:
        """Until the controller has nothing more to hand out."""
        try:
            for slot in self.slots:
                self._start(slot)
            while not all(slot.is_over for slot in self.slots):
                # In this order: what workers said counts before their death, and a dead slot gets no job.
                self._hear(self.pump.take(0.2))
                self._look_after_runs()
                self._hand_out()
                if self.controller.is_done() and all(slot.is_over or slot.session is None for slot in self.slots):
                    return  # a slot that is still being started is not needed any more
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def join(self) -> None:
        """Wait until the runs have ended and their workers' resources are free."""
        for slot in self.slots:
            if slot.thread is not None:
                slot.thread.join(END_SECONDS)

    def _start(self, slot: _Slot) -> None:
        import ray.train
        from ray.train.torch import TorchTrainer

        # DDP over its workers; its own state is never read again.
        trainer = TorchTrainer(
            pool_loop,
            train_loop_config={"mailbox": self.pump.mailbox, "slot": slot.number},
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.workers,
                resources_per_worker=self.pump.per_worker,
                use_gpu=self.pump.per_worker.get("GPU", 0) > 0,
            ),
            run_config=ray.train.RunConfig(
                name=f"train-{uuid4().hex[:8]}",  # Train resumes silently where a name is used again
                storage_path=str(self.scratch),
                failure_config=ray.train.FailureConfig(max_failures=RANK_RESTARTS, controller_failure_limit=2),
            ),
        )
        slot.error = slot.session = None

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # noqa: BLE001 - `_look_after_runs` judges it
                slot.error = error

        slot.thread = threading.Thread(target=fit, name=f"slot {slot.number}", daemon=True)
        slot.thread.start()

    def _hear(self, asking: list[Ready]) -> None:
        for ready in asking:
            slot = self.slots[ready.slot]
            if slot.is_over:
                continue  # it was given up before its ranks were there
            # Within a session another rank may ask for the next job before rank 0 has said that this one is done.
            if slot.session is not None and slot.session != ready.session:
                self._lost(slot, "a worker of the pool died")
            slot.session, slot.asking, slot.starts_without_a_job = ready.session, ready, 0

    def _lost(self, slot: _Slot, log: str, reason: str = "the trial's process died") -> None:
        """What the slot was at ended without a word."""
        if slot.job is not None and self.pump.runs(slot.job):
            self.pump.died(Ended(slot.job.number, slot.job.attempt, ((Failure(reason, False), log),)))
        slot.job = None

    def _look_after_runs(self) -> None:
        """Start a slot's run anew where its controller died; do without the slot where that does not help."""
        for slot in self.slots:
            if slot.thread is None or slot.thread.is_alive() or slot.is_over:
                continue
            if raylet_is_gone():
                raise cluster_lost()
            reason = root_cause(slot.error) if slot.error is not None else "it ended too early"
            slot.asking = None
            self._lost(slot, reason, f"the slot's Ray Train run died: {reason}")
            # One start in vain may be chance; several mean that the slot has no room on the cluster.
            slot.starts_without_a_job += 1
            if slot.starts_without_a_job <= MAX_IDLE_STARTS:
                self._start(slot)
                continue
            slot.is_over = True
            told = f"slot {slot.number} of the pool died {slot.starts_without_a_job} times without a job: {reason}"
            needs = " and ".join(f"{need:g} {word}" for word, need in self.pump.per_worker.items())
            if all(other.is_over for other in self.slots):
                raise Unfinished(
                    f"{told}; see whether {self.workers} x {needs} find room on the cluster's nodes "
                    "(resources.concurrent_trials, resources.workers, resources.cpus_per_worker); the same command "
                    "goes on"
                )
            logger.warning("%s; going on without it", told)

    def _hand_out(self) -> None:
        from ray import cloudpickle

        for slot in self.slots:
            # A rank may ask again before all ranks have said how the last job ended.
            if slot.asking is None or (slot.job is not None and self.pump.runs(slot.job)):
                continue
            job = self.pump.next_job()
            if job is not None:
                self.pump.mailbox.hand.remote(slot.asking, cloudpickle.dumps(job))
                slot.job, slot.asking = job, None
            elif self.pump.is_done():
                self.pump.mailbox.hand.remote(slot.asking, b"")
                slot.asking, slot.is_over = None, True


def run_in_pool(
    controller: Controller, workload: Workload, watchdog: Watchdog, *, slots: int | None = None, join: bool = False
) -> None:
    """Jobs on long-lived Ray Train runs (DDP), one a slot.

    Args:
        controller: hands out the jobs.
        workload: what they have in common.
        watchdog: ends the work where nothing moves.
        slots: jobs at a time; None: what `controller.resources` says, at most what the cluster holds.
        join: wait until the workers' resources are free again, for what follows on the same cluster.
    """

    def work() -> None:
        served = None
        while served != controller.resources:
            served = controller.resources
            pool = Pool(controller, workload, watchdog, slots=slots)
            pool.run()
            if join or served != controller.resources:
                pool.join()

    run_watched(work, watchdog)
