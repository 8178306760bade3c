"""The book of a sweep: hands out trials, takes in their points, and keeps ledger, Optuna and MLflow in step."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf, nextafter
from typing import Any, Protocol

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import TrialState as OptunaState

from sweeplab.evaluation.retention import best_cleaned_point, lowest_asr, score
from sweeplab.experiment import CleaningSweep
from sweeplab.orchestration.files import drop_torn_line
from sweeplab.orchestration.ledger import SweepFolder
from sweeplab.orchestration.remote import Failure
from sweeplab.orchestration.workers import CleaningJob, Machine
from sweeplab.records import Outcomes, Point, TrialRecord, Victim
from sweeplab.specs import digest_of
from sweeplab.training.randomness import stream_seed


class Listener(Protocol):
    """Who hears of a sweep's progress: the tracker, the display."""

    def trial_began(self, trial: TrialRecord) -> None:
        """An attempt starts."""
        ...

    def point_made(self, trial: TrialRecord, point: Point) -> None:
        """A point was committed."""
        ...

    def trial_ended(self, trial: TrialRecord) -> None:
        """A trial is over: finished or failed."""
        ...


class _NoLock(BaseJournalFileLock):
    """The sweep's own lock covers the journal; Optuna's would outlive a killed process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def open_study(folder: SweepFolder, name: str) -> optuna.Study:
    """The sweep's Optuna study, in its journal file; made if needed. Call with the sweep's lock held."""
    drop_torn_line(folder.journal)
    with quiet_optuna():
        storage = JournalStorage(JournalFileBackend(str(folder.journal), lock_obj=_NoLock()))
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's log lines."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class TrialBook:
    """What executors talk to, in the driver process only.

    The study is the list of trials. A trial is over when its folder holds a result. Everything is written in the order
    ledger, Optuna, MLflow, and a start brings the later ones up to the ledger: a kill between any two writes is mended.
    """

    def __init__(
        self,
        sweep: CleaningSweep,
        folder: SweepFolder,
        victim: Victim,
        machine: Machine,
        listeners: tuple[Listener, ...],
    ) -> None:
        self.sweep, self.folder, self.victim, self.machine = sweep, folder, victim, machine
        self.listeners = listeners
        self.study = open_study(folder, sweep.name)
        self.deadline = time.monotonic() + sweep.search.hours * 3600 if sweep.search.hours else None
        self._waiting: deque[int] = deque()
        self._running: set[int] = set()
        self.reconcile()

    # --- start: bring everything up to the ledger

    def reconcile(self) -> None:
        """Tell Optuna what the ledger knows and it does not; queue the trials that were begun and are not over."""
        ended = {event["trial"] for event in self.folder.events() if event["event"] == "trial ended"}
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == OptunaState.WAITING:
                continue
            if not (self.folder.trial(trial.number).path / "trial.json").exists():
                self.study.sampler = self._sampler(trial.number)
                self._write_trial(optuna.Trial(self.study, trial._trial_id))
            result = self.folder.trial(trial.number).result()
            if result is None:
                self._waiting.append(trial.number)
                continue
            if not trial.state.is_finished():
                self._tell(trial.number)
            if trial.number not in ended:
                self.folder.event("trial ended", trial=trial.number, **result)
        self._keep_best_checkpoints()

    # --- handing out

    def next_job(self) -> CleaningJob | None:
        """The next attempt to run; None when nothing is left to start now (see `is_done`)."""
        if self._waiting:
            number = self._waiting.popleft()
        elif self.may_ask():
            number = self._ask()
        else:
            return None
        run = self.folder.trial(number)
        run.clear_abandoned()
        run.rewind()
        attempt = run.begin_attempt()
        self._running.add(number)
        record = self.record(number)
        self.folder.event("trial began", trial=number, attempt=attempt, points=len(record.points))
        for listener in self.listeners:
            listener.trial_began(record)
        return CleaningJob(
            sweep=self.sweep,
            victim=self.victim,
            number=number,
            attempt=attempt,
            params=record.params,
            machine=self.machine,
            checkpoints=run.checkpoints,
            resume_from=run.latest_checkpoint(),
        )

    def may_ask(self) -> bool:
        """Whether new trials are still to be begun."""
        in_time = self.deadline is None or time.monotonic() < self.deadline
        return in_time and self.num_begun() < self.sweep.num_trials()

    def num_begun(self) -> int:
        """Trials with parameters."""
        return sum(t.state != OptunaState.WAITING for t in self.study.get_trials(deepcopy=False))

    def is_done(self) -> bool:
        """Whether nothing runs, nothing waits and nothing new is to be begun."""
        return not self._running and not self._waiting and not self.may_ask()

    def _ask(self) -> int:
        number = self.num_begun()
        search = self.sweep.search
        # A sampler of its own for every trial: the draw depends on the seed, the number and the trials told so far,
        # not on how often the sweep was interrupted.
        seed = stream_seed(search.seed, "sampler", number) % 2**32
        if search.sampler == "tpe":
            with quiet_optuna():
                self.study.sampler = optuna.samplers.TPESampler(
                    n_startup_trials=search.startup_trials, constant_liar=True, seed=seed
                )
        else:
            self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
        if search.sampler == "grid":
            assert self.sweep.grid is not None
            if not any(t.state == OptunaState.WAITING for t in self.study.get_trials(deepcopy=False)):
                with quiet_optuna():
                    self.study.enqueue_trial(dict(self.sweep.grid.points()[number]))
        trial = self.study.ask()
        if trial.number != number:
            raise RuntimeError(f"Optuna numbered trial {number} as {trial.number}; the journal has another writer")
        self._write_trial(trial)
        return number

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A sampler of its own for every trial: the draw depends on the seed, the number and the trials told so far,
        not on how often the sweep was interrupted.
        """
        search = self.sweep.search
        seed = stream_seed(search.seed, "sampler", number) % 2**32
        if search.sampler != "tpe":
            return optuna.samplers.RandomSampler(seed=seed)
        with quiet_optuna():
            return optuna.samplers.TPESampler(n_startup_trials=search.startup_trials, constant_liar=True, seed=seed)

    def _write_trial(self, trial: optuna.Trial) -> None:
        if self.sweep.search.sampler == "grid":
            assert self.sweep.grid is not None
            params: dict[str, Any] = {
                name: trial.suggest_categorical(name, list(values)) for name, values in self.sweep.grid.axes.items()
            }
        else:
            params = self.sweep.space.suggest(trial)
        setting = self.sweep.setting(params)  # a value that a field refuses is refused here, before anything runs
        self.folder.write_trial(
            trial.number,
            params,
            configuration=digest_of(setting.canonical()),
            seed=self.sweep.seed,
            start_counts=self.sweep.start_counts(setting),
        )

    # --- taking in

    def point(self, number: int, point: Point, outcomes: Outcomes) -> None:
        """Commit a point, then drop the checkpoints that it makes superfluous."""
        run = self.folder.trial(number)
        if not run.commit(point, outcomes):
            return
        record = self.record(number)
        best = self.best_point(record)
        keep = {p.checkpoint for p in (record.points[-1], best) if p is not None and p.checkpoint is not None}
        run.keep_checkpoints(keep)
        for listener in self.listeners:
            listener.point_made(record, point)

    def finished(self, number: int) -> None:
        """A trial has run all its epochs."""
        record = self.record(number)
        if len(record.points) != self.sweep.num_points():
            raise RuntimeError(
                f"trial {number} ended with {len(record.points)} of {self.sweep.num_points()} points; "
                "it is not finished"
            )
        self._end(number, {"state": "finished"})

    def failed(self, number: int, failure: Failure) -> None:
        """An attempt ended early: try again where that can help, else end the trial as failed, with the reason."""
        attempts = self.folder.trial(number).attempts()
        self.folder.event("attempt failed", trial=number, attempt=attempts, reason=failure.reason)
        failed = self.folder.failed_attempts(number)
        if not failure.is_deterministic and failed < self.sweep.resources.max_attempts:
            self._running.discard(number)
            self._waiting.append(number)
            return
        tries = "" if failure.is_deterministic else f" ({failed} attempts)"
        self._end(number, {"state": "failed", "reason": failure.reason + tries})

    def _end(self, number: int, result: dict[str, Any]) -> None:
        run = self.folder.trial(number)
        run.finish(result)
        self._tell(number)
        self._running.discard(number)
        record = self.record(number)
        self.folder.event("trial ended", trial=number, **result)
        self._keep_best_checkpoints()
        for listener in self.listeners:
            listener.trial_ended(record)

    def _tell(self, number: int) -> None:
        record = self.record(number)
        ceiling = self.sweep.search.asr_ceiling
        with quiet_optuna():
            if record.state == "failed":
                self.study.tell(number, state=OptunaState.FAIL, skip_if_finished=True)
                return
            frozen = self.study.get_trials(deepcopy=False)[number]
            lowest = lowest_asr(record.points, start_counts=record.start_counts)
            # Optuna calls a value of 0 feasible, and an ASR equal to the ceiling is not: hence the next float.
            if "asr" not in frozen.constraints:  # a kill may have come between this and what follows
                constraint = nextafter(lowest - ceiling, inf)
                optuna.Trial(self.study, frozen._trial_id).set_constraint("asr", constraint)
            value = score(record.points, self.victim.measurement.accuracy, ceiling, start_counts=record.start_counts)
            self.study.tell(number, value, skip_if_finished=True)

    def _keep_best_checkpoints(self) -> None:
        """Of all ended trials, only the best few keep weights: those of their best cleaned point."""
        ended = [self.record(n) for n in self.folder.trial_numbers() if self.folder.trial(n).result() is not None]
        ranked = sorted(
            (record for record in ended if record.state == "finished" and self.best_point(record) is not None),
            key=self._place,
        )
        kept = {record.number for record in ranked[: self.sweep.resources.keep_checkpoints]}
        for record in ended:
            best = self.best_point(record) if record.number in kept else None
            keep = {best.checkpoint} if best is not None and best.checkpoint is not None else set()
            self.folder.trial(record.number).keep_checkpoints(keep)

    def _place(self, record: TrialRecord) -> tuple[float, float, int]:
        """The order of the leaderboard among cleaned trials."""
        best = self.best_point(record)
        assert best is not None
        return -best.measurement.accuracy, best.measurement.asr or 0.0, record.number

    # --- reading

    def record(self, number: int) -> TrialRecord:
        """A trial as the ledger holds it."""
        return self.folder.trial_record(number, is_driven=number in self._running)

    def best_point(self, record: TrialRecord) -> Point | None:
        """The trial's best cleaned point so far."""
        return best_cleaned_point(record.points, self.sweep.search.asr_ceiling, start_counts=record.start_counts)

    def is_over(self, number: int) -> bool:
        """Whether the trial has a result."""
        return self.folder.trial(number).result() is not None

    def log(self, number: int, text: str) -> None:
        """Keep an attempt's traceback in the trial's log."""
        with (self.folder.trial(number).path / "log.txt").open("a") as file:
            file.write(text.rstrip() + "\n")

    def running(self) -> tuple[int, ...]:
        """Numbers of the trials that run now."""
        return tuple(sorted(self._running))
