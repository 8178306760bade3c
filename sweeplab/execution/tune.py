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
from sweeplab.execution.open_mailbox import HeartbeatCount, open_mailbox
from sweeplab.execution.watchdog import Watchdog, run_watched
from sweeplab.worker.failures import Failure, says_out_of_memory
from sweeplab.worker.input_paths import input_paths_of


def run_trials_on_tune(controller: Controller, home: Path, watchdog: Watchdog, *, through_train: bool) -> None:
    """Trials on Ray Tune, each in a reused actor, or each a Ray Train run of several workers.

    Every call begins a fresh experiment with what the controller hands out; nothing that Tune writes is read again.
    """
    from ray import tune

    resources = controller.sweep.resources
    per_worker = resources_per_worker(resources)
    at_a_time = concurrent_trials(resources, per_worker)
    controller.machine = dataclasses.replace(controller.machine, use_cuda=per_worker.get("GPU", 0) > 0)
    scratch = scratch_folder(home) / f"tune-{uuid4().hex[:8]}"
    controller.input_paths = input_paths_of(controller.reads)
    mailbox = open_mailbox(controller.victim.checkpoint, reads=controller.reads)
    trainable: Any
    if through_train:
        settings = {"workers": resources.workers, "per_worker": per_worker, "scratch": str(scratch)}
        trainable = tune.with_resources(
            tune.with_parameters(train_trainable, settings=settings, mailbox=mailbox), {"CPU": 0, "memory": 1}
        )
    else:
        trainable = tune.with_resources(tune.with_parameters(tune_trainable, mailbox=mailbox), dict(per_worker))
    search = ControllerSearch(controller)

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
                callbacks=[ControllerCallback(controller, search, watchdog, mailbox)],
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        ).fit()

    watchdog.listen(HeartbeatCount(mailbox))
    try:
        run_watched(fit, watchdog)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class ControllerSearch(Searcher):
    """Hands the controller's jobs to Tune; nothing is remembered here that a new session needs."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(metric="score", mode="max")
        self.controller = controller
        self.numbers: dict[str, int] = {}
        """Our trial number by Tune's trial id, of this session."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a file that is never read; the controller stays with the driver."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """The controller knows the space and the objective."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next attempt; None while only running trials may bring more; FINISHED when all is over."""
        job = self.controller.next_job()
        if job is None:
            return Searcher.FINISHED if self.controller.is_done() else None
        self.numbers[trial_id] = job.number
        return {"job": cloudpickle.dumps(job)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback below takes the results in."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class ControllerCallback(Callback):
    """Passes what Tune's trials say on to the controller; runs in the driver process."""

    def __init__(self, controller: Controller, search: ControllerSearch, watchdog: Watchdog, mailbox: Any) -> None:
        self.controller, self.search, self.watchdog, self.mailbox = controller, search, watchdog, mailbox
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
        self.watchdog.moved()
        if kind == "point":
            self.controller.point(number, *content)
            if self.controller.should_stop(number):
                ray.get(self.mailbox.stop.remote(number))  # before the worker, which waits for this callback, asks
            return
        self._ended.add(trial.trial_id)
        failure, log = content
        self.controller.log(number, log)
        self.controller.failed(number, failure)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's function returned: the trial is done, unless it said that it failed."""
        number = self.search.numbers.pop(trial.trial_id)
        if trial.trial_id not in self._ended:
            self.watchdog.moved()
            self.controller.finished(number)
        self._ended.discard(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's process died."""
        if trial.trial_id in self._ended or raylet_is_gone():  # the latter is no fault of the trial's
            return
        number = self.search.numbers[trial.trial_id]
        # Not `trial.get_error()`: it looks into the storage, where the file arrives later.
        text = (Path(trial.error_file).read_text().strip() if trial.error_file else "") or "no reason given"
        self.watchdog.moved()
        self.controller.log(number, text)
        kind: Literal["memory", ""] = "memory" if says_out_of_memory(text) else ""
        self.controller.failed(number, Failure(f"the trial's process died: {text.splitlines()[-1][:300]}", False, kind))
