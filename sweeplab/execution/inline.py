"""Executor `inline`: one job after the other in this process, without Ray."""

import time
import traceback
from pathlib import Path

from sweeplab.execution.controller import Controller
from sweeplab.records import Outcomes, Point
from sweeplab.storage.broken_rows import BrokenRow
from sweeplab.storage.node_cache import local_copy
from sweeplab.worker.failures import failure_of
from sweeplab.worker.jobs import Weights


class InlineContext:
    """A worker's context where the worker is the driver."""

    def __init__(self, controller: Controller, number: int, attempt: int) -> None:
        self.attempt = attempt
        self._controller, self._number = controller, number

    def report(self, point: Point, outcomes: Outcomes) -> None:
        """Commit the point."""
        self._controller.point(self._number, point, outcomes)

    def should_stop(self) -> bool:
        """What the controller decided after the last point."""
        return self._controller.should_stop(self._number)

    def found_broken(self, rows: tuple[BrokenRow, ...]) -> None:
        """Record them."""
        self._controller.found_broken(self._number, rows)

    def heartbeat(self) -> None:
        """Nobody watches."""

    def bring(self, location: str, weights: Weights) -> Path:
        """The file itself."""
        return local_copy(location, weights.digest, None)

    def node_copy(self) -> Path:
        """The files themselves."""
        return Path("/")


def run_inline(controller: Controller) -> None:
    """One job after the other in this process."""
    while not controller.is_done():
        job = controller.next_job()
        if job is None:  # one waits before it is tried again
            time.sleep(0.1)
            continue
        try:
            job.work(job, InlineContext(controller, job.number, job.attempt))
        except Exception as error:  # noqa: BLE001 - recorded as the attempt's failure
            controller.log(job.number, traceback.format_exc())
            controller.failed(job.number, failure_of(error))
        else:
            controller.finished(job.number)
