"""Progress: done, running, best so far, time left; a live line on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from typing import Any

from rich.live import Live
from rich.text import Text

from sweeplab.evaluation.retention import best_cleaned_point, retention
from sweeplab.records import OVER, Point, TrialRecord, percent
from sweeplab.terminal import PatientConsole


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
    ) -> None:
        """Begin with the trials that earlier commands have finished or begun."""
        self.total, self.points_per_trial = total, points_per_trial
        self.victim_accuracy, self.asr_ceiling = victim_accuracy, asr_ceiling
        self.console = PatientConsole(file=sys.stdout, highlight=False, soft_wrap=True)
        self.trials = {trial.number: trial for trial in trials}
        self.began = time.monotonic()
        self._points_now = 0
        self._live: Live | None = None
        self._last_line = 0.0

    def __enter__(self) -> "SweepProgress":
        """Begin to show."""
        if self.console.is_terminal:
            self._live = Live(Text(self.line()), console=self.console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End the live line."""
        if self._live is not None:
            self._live.__exit__(*error)
            self._live = None

    def hear(self, trial: TrialRecord) -> None:
        """Take in a trial as it is now; of one that is over, say what came of it."""
        before = self.trials.get(trial.number)
        if before is not None and len(trial.points) > max(1, len(before.points)):
            self._points_now += 1
        self.trials[trial.number] = trial
        is_over = trial.state in OVER
        if is_over:
            params = "  ".join(f"{name}={short(value)}" for name, value in trial.params.items())
            self._say(f"trial {trial.number}: {outcome(trial, self.victim_accuracy, self.asr_ceiling)}  |  {params}")
        self._refresh(force=is_over)

    def line(self) -> str:
        """The state in one line."""
        states = [trial.state for trial in self.trials.values()]
        over = sum(state in OVER for state in states)
        parts = [f"{over}/{self.total} trials done", f"{states.count('running')} running"]
        if failed := states.count("failed"):
            parts.append(f"{failed} failed")
        found = [(point, trial) for trial in self.trials.values() if (point := self._best_of(trial)) is not None]
        best_text = "none cleaned yet"
        if found:
            point, trial = max(found, key=lambda pair: pair[0].measurement.accuracy)
            best_text = f"best {worth(point, self.victim_accuracy)} (trial {trial.number})"
        return " | ".join([*parts, best_text, f"ETA {self.eta()}"])

    def eta(self) -> str:
        """Time left at this command's rate of points."""
        if not self._points_now:
            return "..."
        done = sum(
            self.points_per_trial if trial.state == "pruned" else max(0, len(trial.points) - 1)
            for trial in self.trials.values()
            if trial.state != "failed"
        )
        failed = sum(trial.state == "failed" for trial in self.trials.values())
        left = max(0, (self.total - failed) * self.points_per_trial - done)
        seconds = left * (time.monotonic() - self.began) / self._points_now
        return duration(seconds)

    def _best_of(self, trial: TrialRecord) -> Point | None:
        return best_cleaned_point(trial.points, self.asr_ceiling, start_counts=trial.start_counts)

    def _say(self, text: str) -> None:
        self.console.print(f"[{time.strftime('%H:%M:%S')}] {text}", markup=False)

    def _refresh(self, force: bool = False) -> None:
        if self._live is not None:
            self._live.update(Text(self.line()))
        elif force or time.monotonic() - self._last_line > 30:
            self._last_line = time.monotonic()
            self._say(self.line())
            with contextlib.suppress(OSError):  # its reader is gone
                sys.stdout.flush()


def outcome(trial: TrialRecord, victim_accuracy: float, asr_ceiling: float) -> str:
    """What came of a trial that is over."""
    best = best_cleaned_point(trial.points, asr_ceiling, start_counts=trial.start_counts)
    if trial.state == "failed":
        text = f"failed: {trial.reason}"
    elif best is None:
        text = f"not cleaned, lowest ASR {percent(min(p.measurement.asr or 0.0 for p in trial.points))}"
    else:
        text = f"{worth(best, victim_accuracy)} (epoch {best.epoch:g})"
    return f"{text}; stopped: {trial.reason}" if trial.state == "pruned" else text


def worth(point: Point, victim_accuracy: float) -> str:
    """What a cleaned point keeps, and at which ASR."""
    kept = retention(point.measurement.accuracy, victim_accuracy)
    return f"keeps {percent(kept)} at ASR {percent(point.measurement.asr)}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def short(value: Any) -> str:
    """A parameter's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
