"""What a sweep tells of itself while it runs: a line for each trial in a log, one live line on a terminal."""

import io
import re

import pytest
from fabricated import point

from sweeplab.records import TrialRecord, TrialState
from sweeplab.sweep import progress
from sweeplab.sweep.progress import SweepProgress
from sweeplab.terminal import PatientConsole


def trial(number: int, *rates: tuple[int, int], state: TrialState = "finished", name: str = "rate") -> TrialRecord:
    """One point a pair (correct of 100, hit of 80), after a start of 40 % accuracy and 100 % ASR."""
    points = tuple(point(index, *rate) for index, rate in enumerate([(40, 80), *rates]))
    return TrialRecord(number, state, {name: 1e-3}, f"c{number}", 7, 1, points)


def showing(total: int = 3, *, width: int | None = None) -> tuple[SweepProgress, io.StringIO]:
    shown, stream = (
        SweepProgress(total=total, points_per_trial=2, victim_accuracy=0.4, asr_ceiling=0.05, trials=(), ends={}),
        io.StringIO(),
    )
    shown.console = PatientConsole(
        file=stream, highlight=False, soft_wrap=width is None, force_terminal=width is not None, width=width
    )
    return shown, stream


def test_a_log_has_one_line_for_each_trial_with_what_came_of_it_and_the_best_so_far():
    """Accuracies of 30 and 36 % at no ASR are 75 and 90 % of 40 %; 40 of 80 hits are 50 %."""
    shown, stream = showing()
    with shown:
        for one in (trial(0, (30, 0)), trial(1, (20, 0), (36, 0)), trial(2, (20, 40), (30, 60))):
            shown.hear(one)
    lines = [re.sub(r"^\[[\d:]+\] ", "", line) for line in stream.getvalue().splitlines()]
    assert [line.partition("  |  ")[0] for line in lines] == [
        "1/3  trial 0: keeps 75.0 % at ASR 0.0 % (epoch 1) (best so far)",
        "2/3  trial 1: keeps 90.0 % at ASR 0.0 % (epoch 2) (best so far)",
        "3/3  trial 2: not cleaned, lowest ASR 50.0 %",
    ]
    assert "rate=0.001" in lines[0]
    assert lines[0].endswith("ETA ...")
    assert "ETA" not in lines[2]


def test_a_parameter_has_one_notation_in_all_lines():
    """By itself 0.0017 would be written 0.00170."""
    shown, stream = showing()
    shown.ends = {"rate": (1e-5, 1e-2)}
    for number, rate in enumerate((2.14e-4, 1.704e-3)):
        shown.hear(TrialRecord(**{**vars(trial(number, (30, 0))), "params": {"rate": rate}}))
    assert re.findall(r"rate=(\S+)", stream.getvalue()) == ["2.14e-04", "1.70e-03"]


def test_a_worse_trial_is_not_marked_and_a_stopped_or_failed_one_says_why():
    shown, stream = showing()
    for one in (trial(0, (36, 0)), trial(1, (30, 0), state="pruned"), trial(2, state="failed")):
        shown.hear(TrialRecord(**{**vars(one), "reason": "because" if one.number else None}))
    first, second, third = stream.getvalue().splitlines()
    assert "(best so far)" in first
    assert "keeps 75.0 % at ASR 0.0 % (epoch 1); stopped: because  |" in second
    assert "trial 2: failed: because  |" in third


def test_points_of_running_trials_add_no_line_until_the_log_was_quiet_for_long(monkeypatch: pytest.MonkeyPatch):
    shown, stream = showing()
    for rates in ([(30, 0)], [(30, 0), (36, 0)]):
        shown.hear(trial(0, *rates, state="running"))
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    shown.hear(trial(0, (30, 0), (36, 0), state="running"))
    (line,) = stream.getvalue().splitlines()
    assert "0/3 trials done | 1 running | best keeps 90.0 % at ASR 0.0 % (trial 0) | ETA" in line


def test_the_time_left_falls_between_two_points(monkeypatch: pytest.MonkeyPatch):
    """The first of 6 points took 10 s: 50 s are left, and 8 s later 42."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown, _ = showing()
    shown.hear(trial(0, state="running"))
    now = 10.0
    shown.hear(trial(0, (30, 0), state="running"))
    assert shown.eta() == "50 s"
    now = 18.0
    assert shown.eta() == "42 s"


@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_live_line_fits_the_terminal(width: int):
    shown, stream = showing(width=width)
    with shown:
        shown.hear(trial(0, (36, 0), state="running"))
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n")
    lines = [line for line in plain.splitlines() if line.strip()]
    assert lines
    assert all(line.startswith("0/3 trials done"[:15]) and len(line.rstrip()) <= width for line in lines)


def test_a_quiet_command_shows_no_progress(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]):
    with caplog.at_level("WARNING", "sweeplab"):
        shown = SweepProgress(total=1, points_per_trial=1, victim_accuracy=0.4, asr_ceiling=0.05, trials=(), ends={})
    with shown:
        shown.hear(trial(0, (36, 0)))
    assert capsys.readouterr().out == ""
