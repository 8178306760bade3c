"""Progress: done, running, best so far, time left; a live line on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from typing import Any, TextIO

from rich.live import Live
from rich.text import Text

from sweeplab.evaluation.retention import best_cleaned_point, retention
from sweeplab.records import Point, TrialRecord
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
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.points_per_trial = total, points_per_trial
        self.victim_accuracy, self.asr_ceiling = victim_accuracy, asr_ceiling
        self.stream = stream or sys.stdout
        self.console = PatientConsole(file=self.stream, highlight=False, soft_wrap=True)
        self.trials: dict[int, TrialRecord] = {}
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

    def known(self, trials: tuple[TrialRecord, ...]) -> None:
        """Trials that earlier commands have finished or begun."""
        self.trials.update({trial.number: trial for trial in trials})

    def trial_began(self, trial: TrialRecord) -> None:
        """An attempt starts."""
        self.trials[trial.number] = trial
        self._refresh()

    def point_made(self, trial: TrialRecord, point: Point) -> None:
        """A point was committed."""
        self.trials[trial.number] = trial
        if point.index > 0:
            self._points_now += 1
        self._refresh()

    def trial_ended(self, trial: TrialRecord) -> None:
        """A trial is over."""
        self.trials[trial.number] = trial
        best = self._best_of(trial)
        if trial.state == "failed":
            outcome = f"failed: {trial.reason}"
        elif best is None:
            lowest = min(p.measurement.asr or 0.0 for p in trial.points)
            outcome = f"not cleaned, lowest ASR {lowest:.1%}"
        else:
            kept = retention(best.measurement.accuracy, self.victim_accuracy)
            outcome = f"keeps {kept:.1%} at ASR {best.measurement.asr:.1%} (epoch {best.epoch:g})"
        if trial.state == "pruned":
            outcome += f"; stopped: {trial.reason}"
        params = "  ".join(f"{name}={short(value)}" for name, value in trial.params.items())
        self.console.print(f"[{time.strftime('%H:%M:%S')}] trial {trial.number}: {outcome}  |  {params}", markup=False)
        self._refresh(force=True)

    def line(self) -> str:
        """The state in one line."""
        states = [trial.state for trial in self.trials.values()]
        over = sum(state in ("finished", "pruned", "failed") for state in states)
        failed = states.count("failed")
        running = states.count("running")
        best = max(
            ((self._kept(trial), trial) for trial in self.trials.values() if self._best_of(trial) is not None),
            key=lambda pair: pair[0],
            default=None,
        )
        best_text = "none cleaned yet"
        if best is not None:
            point = self._best_of(best[1])
            assert point is not None
            best_text = f"best keeps {best[0]:.1%} at ASR {point.measurement.asr:.1%} (trial {best[1].number})"
        parts = [f"{over}/{self.total} trials done", f"{running} running"]
        parts += [f"{failed} failed"] if failed else []
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

    def _kept(self, trial: TrialRecord) -> float:
        best = self._best_of(trial)
        return retention(best.measurement.accuracy, self.victim_accuracy) if best else -1.0

    def _refresh(self, force: bool = False) -> None:
        if self._live is not None:
            self._live.update(Text(self.line()))
        elif force or time.monotonic() - self._last_line > 30:
            self._last_line = time.monotonic()
            self.console.print(f"[{time.strftime('%H:%M:%S')}] {self.line()}", markup=False)
            with contextlib.suppress(OSError):  # its reader is gone
                self.stream.flush()


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def short(value: Any) -> str:
    """A parameter's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
