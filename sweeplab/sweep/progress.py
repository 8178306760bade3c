"""Progress: done, running, best so far, time left; a live line on a terminal, plain lines in a log."""

import contextlib
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from sweeplab.evaluation.retention import best_cleaned_point, best_of_trials, retention
from sweeplab.live_line import live_line
from sweeplab.ranking.costs import seconds_left
from sweeplab.ranking.leaderboard import column_words
from sweeplab.records import OVER, Point, TrialRecord, duration, number_of, percent
from sweeplab.terminal import PatientConsole, wrapped

QUIET_SECONDS = 300.0
"""After so long without a line a log is told how far the sweep is."""


class SweepProgress:
    """Hears the controller's events and shows where the sweep is."""

    def __init__(
        self,
        *,
        total: int,
        points_per_trial: int,
        victim_accuracy: float,
        asr_ceiling: float,
        trials: tuple[TrialRecord, ...],
        ends: Mapping[str, Sequence[float]],
    ) -> None:
        """Begin with the trials that earlier commands have finished or begun.

        `ends` are those of `SweepRecord`: they choose a parameter's notation, so that it is the same in every line.
        """
        self.ends = ends
        self.total, self.points_per_trial = total, points_per_trial
        self.victim_accuracy, self.asr_ceiling = victim_accuracy, asr_ceiling
        is_quiet = not logging.getLogger("sweeplab").isEnabledFor(logging.INFO)
        self.console = PatientConsole(file=sys.stdout, highlight=False, soft_wrap=True, quiet=is_quiet)
        self.trials: dict[int, TrialRecord] = {}
        self._cleaned: dict[int, Point] = {}
        """The best cleaned point of each trial that has one."""
        for trial in trials:
            self._take(trial)
        self.began = time.monotonic()
        self._points_now, self._known_at = 0, self.began
        """Points since then, and when the latest of them was heard of."""
        self._live = contextlib.ExitStack()
        self._last_line = time.monotonic()

    def __enter__(self) -> "SweepProgress":
        """Begin to show."""
        self._live.enter_context(live_line(self._fitting, self.console))
        return self

    def __exit__(self, *error: Any) -> None:
        """End the live line."""
        self._live.close()

    def hear(self, trial: TrialRecord) -> None:
        """Take in a trial as it is now; of one that is over, say what came of it."""
        before = self.trials.get(trial.number)
        if before is not None and len(trial.points) > max(1, len(before.points)):
            self._points_now += 1
            self._known_at = time.monotonic()
        self._take(trial)
        if trial.state in OVER:
            self._say_end(trial)
        self._refresh()

    def _take(self, trial: TrialRecord) -> None:
        self.trials[trial.number] = trial
        best = best_cleaned_point(trial.points, self.asr_ceiling, start_counts=trial.start_counts)
        if best is not None:
            self._cleaned[trial.number] = best

    def _say_end(self, trial: TrialRecord) -> None:
        """One line for a trial that is over, which tells a log how far the sweep is, too."""
        over = sum(one.state in OVER for one in self.trials.values())
        best = self._best()
        mark = " (best so far)" if best is not None and best[0] == trial.number else ""
        words = {name: column_words([*self.ends.get(name, ()), value])[-1] for name, value in trial.params.items()}
        params = "  ".join(f"{name}={word}" for name, word in words.items())
        came_of_it = outcome(trial, self.victim_accuracy, self.asr_ceiling)
        left = f"  |  ETA {self.eta()}" if over < self.total else ""
        self._say(f"{over}/{self.total}  trial {trial.number}: {came_of_it}{mark}  |  {params}{left}")

    def line(self) -> str:
        """The state in one line."""
        states = [trial.state for trial in self.trials.values()]
        over = sum(state in OVER for state in states)
        parts = [f"{over}/{number_of(self.total, 'trial')} done", f"{states.count('running')} running"]
        if failed := states.count("failed"):
            parts.append(f"{failed} failed")
        best = self._best()
        best_text = "none cleaned yet"
        if best is not None:
            number, point = best
            best_text = f"best {worth(point, self.victim_accuracy, self.asr_ceiling)} (trial {number})"
        return " | ".join([*parts, best_text, f"ETA {self.eta()}"])

    def _best(self) -> tuple[int, Point] | None:
        """The best cleaned point of all trials so far, with its trial's number."""
        return best_of_trials(self._cleaned)

    def eta(self) -> str:
        """Time left at this command's rate of points."""
        begun = [max(0, len(trial.points) - 1) for trial in self.trials.values() if trial.state not in OVER]
        over = len(self.trials) - len(begun)
        left = seconds_left(
            max(0, self.total - over) * self.points_per_trial - sum(begun),
            self._points_now,
            seconds=self._known_at - self.began,
            since=time.monotonic() - self._known_at,
        )
        return "..." if left is None else duration(left)

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        line = f"[{time.strftime('%H:%M:%S')}] {text}"
        self.console.print(wrapped(line, self.console.width) if self.console.is_terminal else line, markup=False)
        with contextlib.suppress(OSError):  # its reader is gone
            sys.stdout.flush()

    def _refresh(self) -> None:
        if not self.console.is_terminal and time.monotonic() - self._last_line > QUIET_SECONDS:
            self._say(self.line())

    def _fitting(self) -> Text:
        """The state in one line of the terminal, cut at its end where there is no room."""
        return Text(self.line(), no_wrap=True, overflow="ellipsis")


def outcome(trial: TrialRecord, victim_accuracy: float, asr_ceiling: float) -> str:
    """What came of a trial that is over."""
    best = best_cleaned_point(trial.points, asr_ceiling, start_counts=trial.start_counts)
    if trial.state == "failed":
        text = f"failed: {trial.reason}"
    elif best is None:
        lowest = min(p.measurement.asr or 0.0 for p in trial.points)
        text = f"not cleaned, lowest ASR {percent(lowest, ceiling=asr_ceiling)}"
    else:
        text = f"{worth(best, victim_accuracy, asr_ceiling)} (epoch {best.epoch:g})"
    return f"{text}; stopped: {trial.reason}" if trial.state == "pruned" else text


def worth(point: Point, victim_accuracy: float, asr_ceiling: float) -> str:
    """What a cleaned point keeps, and at which ASR."""
    kept = retention(point.measurement.accuracy, victim_accuracy)
    return f"keeps {percent(kept)} at ASR {percent(point.measurement.asr, ceiling=asr_ceiling)}"
