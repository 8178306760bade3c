"""Executor `inline`: one trial after the other in this process, without Ray."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeplab.execution.controller import Controller
from sweeplab.records import Outcomes, Point
from sweeplab.storage.node_cache import local_copy
from sweeplab.storage.run_folder import RunFolder
from sweeplab.worker.failures import failure_of
from sweeplab.worker.jobs import PretrainingJob


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

    def heartbeat(self) -> None:
        """Nobody watches: the worker is the driver."""

    def bring(self, location: str, content: str) -> Path:
        """The file itself: the worker is on the driver's node."""
        return local_copy(location, content, None)

    def node_copy(self) -> Path:
        """The files themselves."""
        return Path("/")


def run_trials_inline(controller: Controller) -> None:
    """One trial after the other in this process."""
    while not controller.is_done():
        job = controller.next_job()
        if job is None:  # a trial waits before it is tried again
            time.sleep(0.1)
            continue
        number = job.number

        def commit(point: Point, outcomes: Outcomes, number: int = number) -> None:
            controller.point(number, point, outcomes)

        def should_stop(number: int = number) -> bool:
            return controller.should_stop(number)

        try:
            job.work(job, InlineContext(job.attempt, commit, should_stop))
        except Exception as error:  # noqa: BLE001 - recorded as the trial's failure
            controller.log(number, traceback.format_exc())
            controller.failed(number, failure_of(error))
        else:
            controller.finished(number)


def pretrain_inline(job: PretrainingJob, run: RunFolder, on_point: Callable[[Point], None]) -> None:
    """Pre-train in this process."""

    def commit(point: Point, outcomes: Outcomes) -> None:
        run.commit(point, outcomes)
        on_point(point)

    job.work(job, InlineContext(job.attempt, commit))
