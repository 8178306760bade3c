"""Controller: hands out trials, takes in their points, keeps ledger and Optuna in step, and tells listeners."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from sweeplab.evaluation.retention import best_cleaned_point
from sweeplab.experiment import CleaningSweep
from sweeplab.ranking.costs import costs_of
from sweeplab.ranking.kept_weights import KeptWeights, worth_keeping
from sweeplab.ranking.stopping import Trajectory
from sweeplab.records import Outcomes, Point, TrialRecord, Victim, now_ms
from sweeplab.search.pruner import Goal, Pruner
from sweeplab.search.samplers import Plan, ask, ask_again, tell
from sweeplab.search.study import BegunTrial, add_lost_trial, ask_for, begun_trials, open_study, tell_failed
from sweeplab.specs import InvalidInput, StorageFault, digest_of
from sweeplab.storage.broken_rows import BrokenRow
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep.broken_ledger import BrokenLedger
from sweeplab.sweep.gpu_sharing import FEWER, resources_now, trials_per_gpu, with_fewer
from sweeplab.sweep.retries import Retries, describe
from sweeplab.sweep.trial_storage import check_storage_of_trial, storage_of_trial
from sweeplab.sweep_folder import SweepFolder
from sweeplab.training import checkpoints
from sweeplab.training.objective import has_classifier
from sweeplab.worker.failures import Failure
from sweeplab.worker.jobs import CleaningJob, DataDigests, Machine
from sweeplab.worker.run import clean

logger = logging.getLogger("sweeplab")

Listener = Callable[[TrialRecord], None]
"""Hears of a trial whenever an attempt begins, a point was committed or the trial is over: the tracker, the display."""

ALIKE = 5
"""So many settings in a row may fail with the same words before they train."""

GPU_SECONDS = 10.0
"""Between two looks at the GPU time spent."""


class SweepController:
    """What executors talk to, in the driver process only.

    The study is the list of trials. A trial is over when its folder holds a result. The ledger is written first, then
    Optuna, then listeners hear of it, MLflow's among them; a start brings Optuna up to the ledger, and
    `synced_tracking` MLflow: a kill between any two writes is mended.
    """

    def __init__(
        self,
        sweep: CleaningSweep,
        folder: SweepFolder,
        victim: Victim,
        machine: Machine,
        listeners: tuple[Listener, ...] = (),
        *,
        contents: DataDigests = DataDigests(),  # noqa: B008 - frozen
        work: Callable[[CleaningJob, Any], None] = clean,
    ) -> None:
        """Open the folder's ledger and study, and bring them up to each other.

        Args:
            sweep: the spec.
            folder: its folder, locked by this process.
            victim: what trials start from.
            machine: what a worker may use.
            listeners: hear of progress.
            contents: the data that workers must find.
            work: what a worker does with a job.
        """
        self.sweep, self.folder, self.victim, self.machine = sweep, folder, victim, machine
        self.listeners = listeners
        self._broken, self._work = BrokenLedger(folder.path, sweep, contents), work
        self.fault: StorageFault | InvalidInput | None = None
        """Why the controller takes nothing in any more: the storage failed, or every trial meets the same."""
        self.study = open_study(folder, sweep.name)
        self.deadline = time.monotonic() + sweep.search.hours * 3600 if sweep.search.hours else None
        self.plan = Plan.of(sweep)
        self._goal = Goal.of(victim.measurement, sweep.search.asr_ceiling)
        self._pruner = Pruner(sweep.search.active_pruning(), self._goal)
        self._stops: dict[int, tuple[int, str]] = {}
        """The recorded decisions to end a trial early, by trial: the index of the point that led to it, and why."""
        self._whole: set[int] = set()
        """Reruns of pruned trials, which no rule ends."""
        self._reruns = folder.reruns()
        """Trials whose setting is still to be tried once more."""
        self._gpu_asked, self._gpu_seconds = -inf, 0.0
        self._gate = threading.RLock()
        self._closed = False
        self._num_begun = 0
        self._runs: dict[int, RunFolder] = {}
        """Folders of the trials that are not over; each remembers its points."""
        self._waiting: dict[int, float] = {}
        """Trials that wait for an attempt, and when it may begin, in seconds of the monotonic clock."""
        self._running: set[int] = set()
        self._unheeded: set[str] = set()
        """Storages that did not answer when checkpoints of trials were to be removed."""
        self._kept_weights = KeptWeights(sweep.search.asr_ceiling, sweep.resources.keep_checkpoints)
        """Of the trials that are over."""
        self._alike: dict[str, dict[int, str]] = {}
        """The last trials in a row that failed alike before their first epoch, with their configurations, by the one
        reason."""
        self._retries = Retries(sweep.resources.max_attempts)
        self.resources = sweep.resources
        """What a trial that begins now takes."""
        self._makes_room = False
        """Trials that shared a GPU with too many still run, and none begins beside them."""
        self.reconcile()

    # --- start: bring everything up to the ledger

    def reconcile(self) -> None:
        """Tell Optuna what the ledger knows and it does not; queue the trials that were begun and are not over."""
        ended, events = set(), self.folder.events()
        asked, self.resources = self.sweep.resources, resources_now(self.sweep.resources, events)
        if self.resources != asked:
            logger.info(
                f"{self.sweep.name}: at most {trials_per_gpu(self.resources)} at a time on a GPU, since its memory did "
                f"not hold {trials_per_gpu(asked)} trials before; another resources.gpus_per_worker starts from that"
            )
        for event in events:
            if event["event"] == "trial ended":
                ended.add(event["trial"])
            elif event["event"] == "attempt failed":
                self._retries.remember(event["trial"], event)
            elif event["event"] == "stop decided":
                self._stops[event["trial"]] = event["point"], event["reason"]
        # Trials that the ledger has and the journal lost (power failure) come back with the ledger's parameters.
        written, known = set(self.folder.trial_numbers()), len(self.study.get_trials(deepcopy=False))
        for number in sorted(number for number in written if number >= known):
            add_lost_trial(self.study, self.plan.space, self.folder.trial_header(number)["params"])
        for trial in begun_trials(self.study):
            if trial.number not in written:  # a kill came before that
                self._write_trial(ask_again(self.study, self.plan, trial.number))
            self._take_up(trial.number)
            self._show(self.record(trial.number))
            result = self.folder.trial(trial.number).result()
            if result is None:
                # A kill may lie between its last failure and its result.
                if reason := self._retries.verdict(trial.number):
                    self._end(trial.number, {"state": "failed", "reason": reason})
                else:
                    self._waiting[trial.number] = 0.0
                continue
            # A kill may lie between the result and any of what follows it.
            if not trial.state.is_finished():
                self._tell(self.record(trial.number))
            if trial.number not in ended:
                self.folder.event("trial ended", trial=trial.number, made_up_for=True, **result)
            if self._may_keep(record := self.record(trial.number)):
                self._settle_checkpoints(record)

    def _take_up(self, number: int) -> None:
        """Count a trial that was begun, and note whose rerun it is."""
        self._num_begun += 1
        again = self._run(number).metadata().get("rerun_of")
        if again is None:
            return
        self._reruns.remove(again)
        self.plan.reruns[number] = again
        result = self.folder.trial(again).result()
        if again in self._whole or (result is not None and result["state"] == "pruned"):
            self._whole.add(number)

    def _show(self, record: TrialRecord) -> Trajectory:
        """Let the pruner see a trial so far."""
        trajectory = Trajectory.of(record.points, start_counts=record.start_counts)
        self._pruner.saw(record.number, trajectory, is_complete=record.state == "finished")
        return trajectory

    # --- handing out

    def next_job(self) -> CleaningJob | None:
        """The next attempt to run; None when nothing is left to start now (see `is_done`)."""
        with self._intake():
            self._makes_room = self._makes_room and bool(self._running)
            if self._makes_room:
                return None
            # What was begun goes first: a resumed sweep then asks the sampler what an uninterrupted one would have.
            number = self._next_waiting()
            is_new = number is None
            if number is None:
                if not self.may_ask():
                    return None
                number = self._ask()
            run = self._run(number)
            if not is_new:
                # The attempt before may have lost a checkpoint that it had, or written one that it never reported.
                lost = run.rewind()
                if lost:
                    self.folder.event("points lost", trial=number, points=lost)
                run.clear_abandoned()
            check_storage_of_trial(self.sweep, self.folder, number, run)
            run.claim_storage()
            attempt = 1 if is_new else run.begin_attempt()
            self._running.add(number)
            record = self.record(number)
            self.folder.event("trial began", trial=number, attempt=attempt, points=len(record.points))
            for hear in self.listeners:
                hear(record)
            return CleaningJob(
                sweep=self.sweep if record.seed == self.sweep.seed else self.sweep.replace(seed=record.seed),
                victim=self.victim,
                number=number,
                attempt=attempt,
                params=record.params,
                machine=self.machine,
                checkpoints=run.storage.location,
                resume_from=run.latest_checkpoint(),
                contents=self._broken.contents,
                work=self._work,
            )

    def _next_waiting(self) -> int | None:
        """The next of the trials that were begun and may go on now; ends those whose early end was decided before they
        were interrupted."""
        if self._closed:
            return None
        for number in [number for number in self._waiting if self._reason_to_stop(number)]:
            del self._waiting[number]
            self.finished(number)
        now = time.monotonic()
        ready = next((number for number, begins in self._waiting.items() if begins <= now), None)
        if ready is not None:
            del self._waiting[ready]
        return ready

    def may_ask(self) -> bool:
        """Whether new trials are still to be begun."""
        return not self._closed and self._num_begun < self.num_trials() and self.limit_reached() is None

    def limit_reached(self) -> str | None:
        """The bound that keeps new trials from being begun, in words; None: there is none."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return f"search.hours={self.sweep.search.hours:g} of this command are used up"
        limit, now = self.sweep.search.gpu_hours, time.monotonic()
        if limit is None:
            return None
        if now - self._gpu_asked > GPU_SECONDS:  # all events are read for it
            self._gpu_asked = now
            self._gpu_seconds = costs_of(self.folder.events(), (), now_ms()).gpu_seconds
        return f"search.gpu_hours={limit:g} of this sweep are used up" if self._gpu_seconds >= 3600 * limit else None

    def num_trials(self) -> int:
        """Trials that the sweep will have, those that are tried once more included."""
        begun_reruns = len(self.plan.reruns)
        return max(self.sweep.num_trials(), self._num_begun - begun_reruns) + begun_reruns + len(self._reruns)

    def is_done(self) -> bool:
        """Whether nothing runs, nothing waits and nothing new is to be begun."""
        with self._gate:
            return not self._running and not self._waiting and not self.may_ask()

    def is_complete(self) -> bool:
        """Whether every trial of the sweep is over."""
        return not self._running and not self._waiting and self._num_begun >= self.num_trials()

    def close(self) -> None:
        """Take nothing in and hand nothing out any more; returns once nothing is being written."""
        self._closed = True
        with self._gate:  # whoever is writing now comes to its end
            pass

    @contextmanager
    def _intake(self) -> Iterator[None]:
        """One event at a time, none after `close`; a storage that fails closes the controller."""
        with self._gate:
            if self.fault is not None:
                raise self.fault
            try:
                yield
            except StorageFault as fault:
                self.fault, self._closed = fault, True
                raise

    def _ask(self) -> int:
        number = self._num_begun
        if self._is_rerun(number):
            params = self.folder.trial_header(self._reruns[0])["params"]
            self._write_trial(ask_for(self.study, params, number))
        else:
            self._write_trial(ask(self.study, self.plan, number))
        self._take_up(number)
        return number

    def _is_rerun(self, number: int) -> bool:
        """Whether a trial that is begun now tries another once more: these come after all others, whose numbers say
        what they are."""
        return bool(self._reruns) and number - len(self.plan.reruns) >= self.sweep.num_trials()

    def _write_trial(self, trial: BegunTrial) -> None:
        rerun_of = self._reruns[0] if self._is_rerun(trial.number) else None
        params = self.plan.space.suggest(trial)
        setting = self.sweep.setting(params)  # a value that a field refuses is refused here, before anything runs
        seed = self.sweep.seed + self.plan.seed_of(trial.number)
        self.folder.write_trial(
            trial.number,
            params,
            configuration=digest_of(setting.canonical()),
            seed=seed if rerun_of is None else self.folder.trial_header(rerun_of)["seed"],
            start_counts=self.sweep.start_counts(setting),
            storage=storage_of_trial(self.sweep, self.folder, trial.number),
            rerun_of=rerun_of,
        )

    # --- taking in

    def point(self, number: int, point: Point, outcomes: Outcomes) -> None:
        """Commit a point, then drop the checkpoints that it makes superfluous."""
        if self._closed:
            return
        with self._intake():
            run = self._run(number)
            if not run.commit(point, outcomes):
                return
            record = self.record(number)
            # The newest state is what a killed attempt goes on from, the best one what the sweep is run for.
            self._keep(run, record.points[-1], *worth_keeping(record, self.sweep.search.asr_ceiling))
            self._judge(record)
            for hear in self.listeners:
                hear(record)

    def found_broken(self, number: int, rows: tuple[BrokenRow, ...]) -> None:
        """Record pairs that turned out to be broken.

        Raises:
            InvalidInput: if too many are by now; the controller is closed, since every trial would meet them.
        """
        with self._intake():
            try:
                self._broken.add(rows)
            except InvalidInput as error:
                self.fault, self._closed = error, True
                raise

    def _judge(self, record: TrialRecord) -> None:
        """Decide whether the trial ends early, and record the decision before anyone acts on it."""
        trajectory = self._show(record)
        is_spared = record.number in self._whole or len(record.points) >= self.sweep.num_points()
        if record.number in self._stops or is_spared:
            return
        stop = self._pruner.judge(trajectory)
        if stop is not None:
            metadata = {"point": record.points[-1].index, "rule": stop.rule, "reason": stop.reason, "saw": stop.saw}
            self.folder.event("stop decided", durable=True, trial=record.number, **metadata)
            self._stops[record.number] = record.points[-1].index, stop.reason

    def should_stop(self, number: int) -> bool:
        """Whether the trial is to end after its last point: that was decided, or the controller is closed."""
        return self._closed or self._reason_to_stop(number) is not None

    def _reason_to_stop(self, number: int) -> str | None:
        """Why the trial is to end early, once it has the point that led to it: a damaged history may have lost that."""
        index, reason = self._stops.get(number, (0, None))
        return reason if index < len(self._run(number).points()) else None

    def finished(self, number: int) -> None:
        """A trial has run all its epochs, or has stopped early where that was decided: then it is pruned."""
        if self._closed:
            return
        with self._intake():
            record = self.record(number)
            self._alike = {}
            if len(record.points) == self.sweep.num_points():
                self._end(number, {"state": "finished"})
            elif reason := self._reason_to_stop(number):
                self._end(number, {"state": "pruned", "reason": reason})
            else:
                raise RuntimeError(
                    f"trial {number} ended with {len(record.points)} of {self.sweep.num_points()} points; "
                    "it is not finished"
                )

    def failed(self, number: int, failure: Failure) -> None:
        """An attempt ended early: try again where that can help, else end the trial as failed, with the reason."""
        if self._closed:
            return
        with self._intake():
            run = self._run(number)
            is_crowded = self._is_crowded(number, failure)
            event = {**describe(run, failure), **({"blameless": True} if is_crowded else {})}
            self.folder.event("attempt failed", durable=True, trial=number, **event)
            reason, pause = self._retries.after(number, run, failure, event)
            if is_crowded and not self._makes_room:
                self._make_room(number)
            if reason is None:
                self._again(number, pause)
            else:
                self._end(number, {"state": "failed", "reason": reason})
                self._same_failure_streak(number, failure)
            if failure.kind == "storage":  # every other trial would meet it too: the sweep ends as interrupted
                raise StorageFault(failure.reason)

    def _is_crowded(self, number: int, failure: Failure) -> bool:
        """Whether an attempt lacked GPU memory because others share its GPU, which is no fault of the trial's."""
        has_company = trials_per_gpu(self.resources) > 1 and bool(self._running - {number})
        return failure.is_of_gpu_memory and (has_company or self._makes_room)

    def _make_room(self, number: int) -> None:
        """Halve the trials on a GPU: those that run come to their end first, and executors then start anew."""
        before, self.resources = trials_per_gpu(self.resources), with_fewer(self.resources)
        after, self._makes_room = trials_per_gpu(self.resources), True
        shares = {"asked": self.sweep.resources.gpus_per_worker, "gpus_per_worker": self.resources.gpus_per_worker}
        self.folder.event(FEWER, durable=True, trial=number, before=before, after=after, **shares)
        logger.info(
            f"{self.sweep.name}: trial {number} ran out of memory with up to {before} trials on a GPU; {after} at a "
            "time from here on, once those that run are over, and the trial is tried again"
        )

    def _same_failure_streak(self, number: int, failure: Failure) -> None:
        """Hand out nothing more once so many settings in a row failed alike before they trained: it is something that
        all share, and the rest of the sweep would be lost to it too. To diverge, or to need too much memory, as
        neighbours in a grid do one after the other, is a matter of settings."""
        of_settings = failure.kind == "memory" or failure.reason.startswith("FloatingPointError")
        if of_settings or len(self.folder.trial(number).points()) > 1:
            self._alike = {}
            return
        trials = {**self._alike.get(failure.reason, {}), number: self.folder.trial_header(number)["configuration"]}
        self._alike = {failure.reason: trials}
        if len(set(trials.values())) >= ALIKE and not self.is_complete():
            self._closed = True
            self.fault = InvalidInput(
                f"{ALIKE} settings in a row failed alike before their first epoch, last trial {number}: "
                f"{failure.reason}; no new trial starts. If a machine or a library is at fault, mend it, "
                f"`sweeplab rerun {self.sweep.name} {' '.join(map(str, sorted(trials)))}`, and run the same command "
                "again. To change the spec or the data, use another name or --fresh"
            )

    def _again(self, number: int, seconds: float) -> None:
        """Queue a trial for another attempt, not before so many seconds."""
        self._running.discard(number)
        self._waiting[number] = time.monotonic() + seconds

    def _end(self, number: int, result: dict[str, Any]) -> None:
        run = self._run(number)
        run.finish(result)  # from here on the trial is over, whatever is killed; the rest is made up for at a start
        record = self.record(number)
        self._tell(record)
        self._running.discard(number)
        self._show(record)
        self.folder.event("trial ended", trial=number, **result)
        self._settle_checkpoints(record)
        for hear in self.listeners:
            hear(record)

    def _tell(self, record: TrialRecord) -> None:
        if record.state == "failed":
            tell_failed(self.study, record.number)
        else:
            tell(self.study, record.number, record.points, self._goal, start_counts=record.start_counts)

    def _settle_checkpoints(self, record: TrialRecord) -> None:
        """Of all ended trials, only those that `KeptWeights` names keep weights, and no optimizer beside them."""
        changed = self._kept_weights.take(record)
        for number, points in changed.items():
            run = self._run(number) if number == record.number else self.folder.trial(number)
            self._keep(run, *points)
            self._strip(run, *points)
        self._runs.pop(record.number, None)

    def _may_keep(self, record: TrialRecord) -> bool:
        """Whether an earlier command's trial is cleaned, or has weights: of trials that are not, older versions kept
        none, and those must not push out weights that are there."""
        goal = self._goal
        if best_cleaned_point(record.points, goal.asr_ceiling, start_counts=record.start_counts) is not None:
            return True
        try:
            return bool(self.folder.trial(record.number).storage.names())
        except StorageFault:
            return True

    def _keep(self, run: RunFolder, *points: Point) -> None:
        """Remove a run's checkpoints but those of some points; a storage that does not let go of them is no reason to
        end a sweep."""
        place = run.storage.parent
        if place in self._unheeded and run.result() is not None:
            return
        try:
            run.keep_checkpoints({point.checkpoint for point in points if point.checkpoint is not None})
        except StorageFault as fault:
            self._unheeded.add(place)
            self.folder.event("checkpoints left", storage=place, reason=str(fault))

    def _strip(self, run: RunFolder, *points: Point) -> None:
        """Leave only the weights of an ended run's checkpoints, where they lie in a folder.

        Under protocol `authors` all stay whole: a sweep that starts from one of them carries its optimizer over. In an
        object store they stay whole too: each would have to come here and go back.
        """
        if self.sweep.protocol == "authors":
            return
        try:
            for point in points:
                place = run.strippable(point)
                if place is not None and checkpoints.is_whole(place):
                    run.note_stripped(place.name)
                    checkpoints.strip(place, keep_state=has_classifier(self.sweep.method))
        except StorageFault as fault:  # a full disk, say: they stay as they are
            self.folder.event("checkpoints not stripped", trial=int(run.path.name), reason=str(fault))

    # --- reading

    def record(self, number: int) -> TrialRecord:
        """A trial as the ledger holds it."""
        return self.folder.trial_record(number, is_driven=number in self._running, run=self._run(number))

    def _run(self, number: int) -> RunFolder:
        if number not in self._runs:
            self._runs[number] = self.folder.trial(number)
        return self._runs[number]

    def log(self, number: int, text: str) -> None:
        """Keep an attempt's traceback in the trial's log."""
        with self._intake():
            self._run(number).append_log(text)
