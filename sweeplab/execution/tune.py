"""Executor `tune`: trials in reused Ray Tune actors. Tune is disposable; nothing that it writes is read again."""

import shutil
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from ray import cloudpickle, tune
from ray.tune.execution import class_cache
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from sweeplab.execution.cluster import concurrent_trials, raylet_is_gone, scratch_folder
from sweeplab.execution.controller import Controller, Workload
from sweeplab.execution.loops import tune_trainable
from sweeplab.execution.mailbox import Ended
from sweeplab.execution.pump import Pump
from sweeplab.execution.watchdog import Watchdog, run_beside, run_watched
from sweeplab.worker.failures import Failure, says_out_of_memory
from sweeplab.worker.jobs import Job


def run_on_tune(controller: Controller, workload: Workload, watchdog: Watchdog) -> None:
    """Trials on Ray Tune, each in a reused actor.

    Every call begins a fresh experiment with what the controller hands out, and another one where what a trial takes
    changes. Tune starts actors and notices their death; what workers say goes through the mailbox.
    """
    _keep_credentials_out_of_logs()
    served = None
    while served != controller.resources:
        served = controller.resources
        _run_experiment(controller, workload, watchdog)


def _run_experiment(controller: Controller, workload: Workload, watchdog: Watchdog) -> None:
    scratch = scratch_folder(workload.home) / f"tune-{uuid4().hex[:8]}"

    def work() -> None:
        pump = Pump(controller, workload, watchdog)
        search = JobSearch(pump)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(tune_trainable, mailbox=pump.mailbox), dict(pump.per_worker)),
            tune_config=tune.TuneConfig(
                search_alg=search,
                # As many as `suggest` gives.
                num_samples=-1,
                max_concurrent_trials=concurrent_trials(pump.resources, pump.per_worker),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=scratch.name,
                storage_path=str(scratch.parent),
                callbacks=[DeathCallback(pump, search)],
                # Retries are the controller's: a new attempt is a new job.
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        # Tune's loop blocks its thread; messages are taken in beside it.
        run_beside(tuner.fit, lambda: pump.take(0.2))
        # The last messages may have come between the last look and the end of Tune's thread.
        pump.take(0.0)

    try:
        run_watched(work, watchdog)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep_credentials_out_of_logs() -> None:
    """Have Tune not copy this command's AWS variables into its actors' runtime environments, which Ray writes into its
    logs in clear text.

    In a private cluster the workers inherit them all the same; in an attached one, credentials come from the
    environment of its `ray start` or from the nodes, as `check_nodes` has made sure.
    """
    copied = class_cache.ENV_VARS_TO_PROPAGATE
    copied.difference_update([name for name in copied if name.startswith("AWS_")])


class JobSearch(Searcher):
    """Hands the controller's jobs to Tune; nothing is remembered here that the next command needs."""

    def __init__(self, pump: Pump) -> None:
        super().__init__(metric="score", mode="max")
        self.pump = pump
        self.jobs: dict[str, Job] = {}
        """Of the trials that run, by Tune's id."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a file that is never read; the controller stays with the driver."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """The controller knows the space and the objective."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next attempt; None while only running trials may bring more; FINISHED when all is over."""
        job = self.pump.next_job()
        if job is None:
            return Searcher.FINISHED if self.pump.is_done() else None
        self.jobs[trial_id] = job
        return {"job": cloudpickle.dumps(job)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The worker has told the mailbox."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class DeathCallback(TrialProgressCallback):
    """Says which attempts ended because their process died; in the driver, in place of Tune's callback that
    prints results."""

    def __init__(self, pump: Pump, search: JobSearch) -> None:
        super().__init__()
        self.pump, self.search = pump, search

    def __getstate__(self) -> dict[str, Any]:
        """As in JobSearch."""
        return {}

    def on_trial_result(self, *arguments: Any, **info: Any) -> None:
        """The worker tells the mailbox."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It has told it; its job is not needed any more."""
        self.search.jobs.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's process died."""
        if raylet_is_gone():  # which is no fault of the trial's
            return
        job = self.search.jobs[trial.trial_id]
        # Not `trial.get_error()`: it looks into the storage, where the file arrives later.
        text = (Path(trial.error_file).read_text().strip() if trial.error_file else "") or "no reason given"
        kind: Literal["memory", ""] = "memory" if says_out_of_memory(text) else ""
        failure = Failure(f"the trial's process died: {text.splitlines()[-1][:300]}", False, kind)
        self.pump.died(Ended(job.number, job.attempt, ((failure, text),)))
