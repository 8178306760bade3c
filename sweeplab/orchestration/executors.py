"""Executors: how the worker functions are run. `inline` in this process, `tune`, `train` and `pool` on Ray."""

import contextlib
import dataclasses
import pickle
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from sweeplab.orchestration import remote
from sweeplab.orchestration.book import TrialBook
from sweeplab.orchestration.bringing import content_of, local_copy, packed, sources_of
from sweeplab.orchestration.cluster import (
    concurrent_trials,
    is_alive,
    keep_credentials_out_of_logs,
    raylet_is_gone,
    resources_per_worker,
    scratch_folder,
)
from sweeplab.orchestration.remote import Failure
from sweeplab.orchestration.run_folder import RunFolder
from sweeplab.orchestration.watch import RAYLET_DIED, Watch, attend
from sweeplab.orchestration.workers import CleaningJob, MeasuringJob, PretrainingJob
from sweeplab.records import Measurement, Outcomes, Point
from sweeplab.specs import InvalidInput, StorageFault, Unfinished

# --- inline


class InlineContext:
    """Commits points directly: the worker is the driver."""

    def __init__(
        self, attempt: int, commit: Callable[[Point, Outcomes], Any], should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.attempt = attempt
        self._commit, self._should_stop = commit, should_stop

    def report(self, point: Point, outcomes: Outcomes) -> None:
        """Commit the point."""
        self._commit(point, outcomes)

    def should_stop(self) -> bool:
        """What the driver decided after the last point; pre-training goes to its end."""
        return self._should_stop()

    def alive(self) -> None:
        """Nobody watches: the worker is the driver."""

    def bring(self, location: str, content: str) -> Path:
        """The file itself: the worker is on the driver's node."""
        return local_copy(location, content, None)

    def mirror(self) -> Path:
        """The files themselves."""
        return Path("/")


def run_trials_inline(book: TrialBook) -> None:
    """One trial after the other in this process."""
    while not book.is_done():
        job = book.next_job()
        if job is None:  # a trial waits before it is tried again
            time.sleep(0.1)
            continue
        number = job.number

        def commit(point: Point, outcomes: Outcomes, number: int = number) -> None:
            book.point(number, point, outcomes)

        def should_stop(number: int = number) -> bool:
            return book.should_stop(number)

        try:
            job.work(job, InlineContext(job.attempt, commit, should_stop))
        except Exception as error:  # noqa: BLE001 - recorded as the trial's failure
            book.log(number, traceback.format_exc())
            book.failed(number, remote.failure_of(error))
        else:
            book.finished(number)


# --- Ray


def new_desk(*files: str, reads: Sequence[Any] = ()) -> Any:
    """Where the workers of one command leave their messages, find the given files of this node, and ask for the data
    that parts of a spec read."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": here}
    return ray.remote(**options)(remote.Desk).remote(files, packed(list(reads)))


def bring_data(reads: list[Any], nodes: list[str], watch: Watch, say: Callable[[str], None]) -> None:
    """Have nodes get copies of the data that they do not see, all at a time, before anything is trained.

    A node that is lost meanwhile is done without.

    Raises:
        InvalidInput: if a node's disk is too small, or it does not get them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    desk = new_desk(reads=reads)
    task = ray.remote(num_cpus=0, max_retries=2)(remote.bring_data)
    began = time.monotonic()

    def bring(node: str) -> Any:
        return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(desk)

    def work() -> None:
        try:
            listing = ray.get(ray.get(desk.porter.remote()).listing.remote())
            receivers = "1 node does" if len(nodes) == 1 else f"{len(nodes)} nodes do"
            say(
                f"{receivers} not see all data: bringing what is lacking of {len(listing.names)} files "
                f"({listing.num_bytes / 1e9:.2f} GB)"
            )
            del listing
            asked = {bring(node): node for node in nodes}
            while asked:
                ready = ray.wait(list(asked))[0][0]
                node = asked.pop(ready)
                try:
                    ray.get(ready)
                except ray.exceptions.RayTaskError:
                    raise
                except ray.exceptions.RayError as error:
                    if is_alive(node):
                        raise Unfinished(f"node {node[:8]} did not get the data ({_first_line(error)})") from error
                    say(f"  node {node[:8]} was lost meanwhile; going on without it")
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, StorageFault):
                raise InvalidInput(str(error.cause)) from None
            raise error.cause or error from None

    watch.listen(_Beats(desk))
    attend(work, watch)
    say(f"  done in {time.monotonic() - began:.0f} s")


def run_trials_on_tune(book: TrialBook, home: Path, watch: Watch, *, through_train: bool) -> None:
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
    book.sources = sources_of(book.reads)
    desk = new_desk(book.victim.checkpoint, reads=book.reads)
    trainable: Any
    if through_train:
        settings = {"workers": resources.workers, "per_worker": per_worker, "scratch": str(scratch)}
        trainable = tune.with_resources(
            tune.with_parameters(remote.train_trainable, settings=settings, desk=desk), {"CPU": 0, "memory": 1}
        )
    else:
        trainable = tune.with_resources(tune.with_parameters(remote.tune_trainable, desk=desk), dict(per_worker))
    search = BookSearch(book)

    keep_credentials_out_of_logs()

    def fit() -> None:
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
                callbacks=[BookCallback(book, search, watch, desk)],
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        ).fit()

    watch.listen(_Beats(desk))
    try:
        attend(fit, watch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Beats:
    """How many signs of life the desk has counted; asked now and then, without waiting for the answer."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk
        self._known, self._asked = 0, time.monotonic()
        self._pending: Any = None

    def __call__(self) -> int:
        """The newest count that has arrived."""
        import ray

        if self._pending is None and time.monotonic() - self._asked > remote.BEAT_SECONDS:
            self._asked = time.monotonic()
            self._pending = self._desk.beats.remote()
        if self._pending is not None and ray.wait([self._pending], timeout=0)[0]:
            pending, self._pending = self._pending, None
            with contextlib.suppress(ray.exceptions.RayError):  # a desk that died is noticed where it is needed
                self._known = ray.get(pending)
        return self._known


# --- the pool


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

    def __init__(self, book: TrialBook, home: Path, watch: Watch) -> None:
        self.book, self.watch = book, watch
        resources = book.sweep.resources
        self.per_worker = resources_per_worker(resources)
        self.workers = resources.workers
        book.machine = dataclasses.replace(book.machine, use_cuda=self.per_worker.get("GPU", 0) > 0)
        self.scratch = scratch_folder(home) / f"pool-{uuid4().hex[:8]}"
        book.sources = sources_of(book.reads)
        self.desk = new_desk(book.victim.checkpoint, reads=book.reads)
        self.beats = 0
        self.slots = [_Slot(number) for number in range(concurrent_trials(resources, self.per_worker))]

    def run(self) -> None:
        """Until the book has nothing more to hand out."""
        try:
            for slot in self.slots:
                self._start(slot)
            while not all(slot.is_over for slot in self.slots):
                self._take_messages()
                self._mind_runs()
                self._hand_out()
                if self.book.is_done() and all(slot.asking is None and slot.job is None for slot in self.slots):
                    return  # a slot that is still being started is not needed any more
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _start(self, slot: _Slot) -> None:
        trainer = remote.torch_trainer(
            remote.pool_loop,
            {"desk": self.desk, "slot": slot.number},
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
            messages, beats = ray.get(self.desk.take.remote(0.2))
        except ray.exceptions.RayActorError as error:
            raise Unfinished(f"the desk's process died ({_first_line(error)}); the same command goes on") from None
        if messages or beats != self.beats:
            self.beats = beats
            self.watch.moved()
        for kind, number, session, index, *content in messages:
            slot, key = self.slots[number], (number, session, index)
            if kind == "ready" and slot.is_over:
                continue  # it was given up before its ranks were there
            if kind == "ready":
                self._ranks_began_anew(slot, key)
                slot.asking = key
            elif key != slot.key or slot.job is None:  # from ranks that were given up
                if kind == "point":
                    self.desk.answer.remote(content[1], True)
            elif kind == "point":
                slot.starts_without_a_point = 0
                self.book.point(slot.job.number, *pickle.loads(content[0]))
                self.desk.answer.remote(content[1], self.book.should_stop(slot.job.number))
            elif kind == "done":
                job, slot.job, slot.key = slot.job, None, None
                self.book.finished(job.number)
            else:
                self._failed(slot, [pickle.loads(said) for said in content[0]])

    def _ranks_began_anew(self, slot: _Slot, key: tuple[int, str, int]) -> None:
        # Within a session another rank may ask for the next job before rank 0 has said that this one is done.
        if slot.job is not None and slot.key is not None and slot.key[1] != key[1]:
            self._failed(slot, [(Failure("the trial's process died", False), "a worker of the pool died")])

    def _failed(self, slot: _Slot, said: list[tuple[Failure, str]]) -> None:
        assert slot.job is not None
        job, slot.job, slot.key = slot.job, None, None
        failure = remote.most_telling([failure for failure, _ in said])
        self.book.log(job.number, next(log for known, log in said if known is failure))
        self.book.failed(job.number, failure)

    def _mind_runs(self) -> None:
        """Start a slot's run anew where its controller died; do without the slot where that does not help."""
        for slot in self.slots:
            if slot.thread is None or slot.thread.is_alive() or slot.is_over:
                continue
            if raylet_is_gone():
                raise Unfinished(f"{RAYLET_DIED}; everything committed is kept, and the same command goes on")
            reason = _first_line(slot.error) if slot.error is not None else "it ended too early"
            slot.asking = None
            if slot.job is not None:
                self._failed(slot, [(Failure(f"the slot's Ray Train run died: {reason}", False), f"{reason}")])
            slot.starts_without_a_point += 1
            if slot.starts_without_a_point <= MAX_IDLE_STARTS:
                self._start(slot)
                continue
            slot.is_over = True
            told = f"slot {slot.number} of the pool died {slot.starts_without_a_point} times without a point: {reason}"
            self.book.folder.event("slot given up", slot=slot.number, reason=reason)
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
            job = self.book.next_job()
            if job is not None:
                slot.key, slot.job, slot.asking = slot.asking, job, None
                self.desk.hand.remote(slot.key, cloudpickle.dumps(job))
            elif self.book.is_done():
                self.desk.hand.remote(slot.asking, b"")
                slot.asking, slot.is_over = None, True


def _first_line(error: BaseException) -> str:
    """What went wrong: Ray Train wraps it, and its own first line says little."""
    while isinstance(inner := getattr(error, "controller_failure", None) or error.__cause__, BaseException):
        error = inner
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else 'no message'}"


def run_trials_in_pool(book: TrialBook, home: Path, watch: Watch) -> None:
    """Trials on long-lived Ray Train runs (DDP), one a slot."""
    attend(Pool(book, home, watch).run, watch)


# --- pre-training and measuring


def pretrain_inline(job: PretrainingJob, run: RunFolder, on_point: Callable[[Point], None]) -> None:
    """Pre-train in this process."""

    def commit(point: Point, outcomes: Outcomes) -> None:
        run.commit(point, outcomes)
        on_point(point)

    job.work(job, InlineContext(job.attempt, commit))


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
    trainer = remote.torch_trainer(
        remote.train_loop,
        {"job": cloudpickle.dumps(dataclasses.replace(job, machine=machine)), "desk": desk},
        num_workers=resources.workers,
        per_worker=per_worker,
        storage=str(scratch),
        callback=remote.desk_callback(desk),
    )
    failures: list[Failure] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - becomes the recorded failure of this attempt
            failures.append(remote.train_failure(error))

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


def measure_on_ray(
    job: MeasuringJob, reads: list[Any], per_worker: dict[str, float], watch: Watch
) -> tuple[Measurement, Outcomes]:
    """Measure weights under an evaluation in a Ray task; `reads`: see `pretrain_on_ray`."""
    import ray

    machine = dataclasses.replace(job.machine, use_cuda=per_worker.get("GPU", 0) > 0)
    job = dataclasses.replace(job, sources=sources_of(reads), weights=content_of(job.checkpoint))
    desk = new_desk(job.checkpoint, reads=reads)
    task = ray.remote(num_cpus=per_worker["CPU"], num_gpus=per_worker.get("GPU", 0), max_retries=2)(
        remote.measure_checkpoint
    )
    results: list[tuple[Measurement, Outcomes]] = []

    def work() -> None:
        try:
            results.append(ray.get(task.remote(dataclasses.replace(job, machine=machine), desk)))
        except ray.exceptions.RayTaskError as error:
            raise error.cause or error from None

    watch.listen(_Beats(desk))
    attend(work, watch)
    return results[0]
