"""Executor `tune`: trials in reused Ray Tune actors. Tune is disposable; nothing that it writes is read again."""

import dataclasses
import pickle
import shutil
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import ray
from ray import cloudpickle
from ray.tune import Callback
from ray.tune.search import Searcher

from sweeplab.execution.cluster import (
    concurrent_trials,
    keep_credentials_out_of_logs,
    raylet_is_gone,
    resources_per_worker,
    scratch_folder,
)
from sweeplab.execution.controller import Controller
from sweeplab.execution.loops import train_trainable, tune_trainable
from sweeplab.execution.open_mailbox import _Beats, new_desk
from sweeplab.execution.watchdog import Watch, attend
from sweeplab.worker.failures import Failure, says_out_of_memory
from sweeplab.worker.input_paths import sources_of


def run_trials_on_tune(book: Controller, home: Path, watch: Watch, *, through_train: bool) -> None:
    """Trials on Ray Tune, each in a reused actor, or each a Ray Train run of several workers.

    Tune is disposable here: every call begins a fresh experiment with what the book hands out, and nothing that Tune
    writes is read again.
    """
    from ray import tune

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
            tune.with_parameters(train_trainable, settings=settings, desk=desk), {"CPU": 0, "memory": 1}
        )
    else:
        trainable = tune.with_resources(tune.with_parameters(tune_trainable, desk=desk), dict(per_worker))
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


class BookSearch(Searcher):
    """Hands the book's jobs to Tune; nothing is remembered here that a new session needs."""

    def __init__(self, book: Controller) -> None:
        super().__init__(metric="score", mode="max")
        self.book = book
        self.numbers: dict[str, int] = {}
        """Our trial number by Tune's trial id, of this session."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a file that is never read; the book stays with the driver."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """The book knows the space and the objective."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next attempt; None while only running trials may bring more; FINISHED when all is over."""
        job = self.book.next_job()
        if job is None:
            return Searcher.FINISHED if self.book.is_done() else None
        self.numbers[trial_id] = job.number
        return {"job": cloudpickle.dumps(job)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback below takes the results in."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class BookCallback(Callback):
    """Passes what Tune's trials say on to the book; runs in the driver process."""

    def __init__(self, book: Controller, search: BookSearch, watch: Watch, desk: Any) -> None:
        self.book, self.search, self.watch, self.desk = book, search, watch, desk
        self._ended: set[str] = set()
        """Tune's ids of trials that have said how they ended."""

    def __getstate__(self) -> dict[str, Any]:
        """As in BookSearch."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A message of a worker: a point, or a failure."""
        number = self.search.numbers[trial.trial_id]
        kind, *content = pickle.loads(result["message"])
        self.watch.moved()
        if kind == "point":
            self.book.point(number, *content)
            if self.book.should_stop(number):
                ray.get(self.desk.stop.remote(number))  # before the worker, which waits for this callback, asks
            return
        self._ended.add(trial.trial_id)
        failure, log = content
        self.book.log(number, log)
        self.book.failed(number, failure)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's function returned: the trial is done, unless it said that it failed."""
        number = self.search.numbers.pop(trial.trial_id)
        if trial.trial_id not in self._ended:
            self.watch.moved()
            self.book.finished(number)
        self._ended.discard(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's process died."""
        if trial.trial_id in self._ended or raylet_is_gone():  # the latter is no fault of the trial's
            return
        number = self.search.numbers[trial.trial_id]
        # Not `trial.get_error()`: it looks into the storage, where the file arrives later.
        text = (Path(trial.error_file).read_text().strip() if trial.error_file else "") or "no reason given"
        self.watch.moved()
        self.book.log(number, text)
        kind: Literal["memory", ""] = "memory" if says_out_of_memory(text) else ""
        self.book.failed(number, Failure(f"the trial's process died: {text.splitlines()[-1][:300]}", False, kind))
