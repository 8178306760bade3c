"""What Ray Tune calls in the driver: a searcher and a callback over the book."""

import pickle
from pathlib import Path
from typing import Any, Literal

import ray
from ray import cloudpickle
from ray.tune import Callback
from ray.tune.search import Searcher

from sweeplab.orchestration.book import TrialBook
from sweeplab.orchestration.cluster import raylet_is_gone
from sweeplab.orchestration.remote import Failure, says_out_of_memory
from sweeplab.orchestration.watch import Watch


class BookSearch(Searcher):
    """Hands the book's jobs to Tune; nothing is remembered here that a new session needs."""

    def __init__(self, book: TrialBook) -> None:
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

    def __init__(self, book: TrialBook, search: BookSearch, watch: Watch, desk: Any) -> None:
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
