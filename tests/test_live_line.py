"""The live line of a terminal: phases from the first second, a bar and the time left, and nothing in a log."""

import io
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.text import Text

from sweeplab import live_line as module
from sweeplab.live_line import Phase, live_line, phase
from sweeplab.terminal import PatientConsole

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be set."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_phase_without_an_end_shows_how_long_it_has_taken(clock: list[float]):
    one = Phase("starting Ray")
    clock[0] = 12.0
    assert one.line().plain == "starting Ray, 12 s"


def test_the_bar_moves_on_at_the_known_pace_and_the_time_left_falls(clock: list[float]):
    """Of 4 epochs one took 10 s: 30 s are left, 5 s later 25; then the bar is at 1.5 of 4, 9 of 24 characters."""
    one = Phase("pre-training victim a", 4, "epoch")
    clock[0] = 3.0
    assert one.line().plain == f"pre-training victim a  {'░' * 24}  epoch 0/4, 3 s so far"
    clock[0] = 10.0
    one.reached(1)
    assert one.line().plain.endswith("epoch 1/4, 30 s left")
    clock[0] = 15.0
    assert one.line().plain == f"pre-training victim a  {'█' * 9}{'░' * 15}  epoch 1/4, 25 s left"
    clock[0] = 900.0  # an epoch that takes long: the bar waits where the next report is due
    assert one.line().plain == f"pre-training victim a  {'█' * 12}{'░' * 12}  epoch 1/4, 0 s left"


def test_an_epochs_own_seconds_count_where_they_are_known(clock: list[float]):
    """What goes on after epoch 3 of 10 knows its pace at once: 7 epochs of 20 s."""
    one = Phase("pre-training", 10, "epoch")
    one.reached(3, 20.0)
    assert one.line().plain.endswith("epoch 3/10, 2 min 20 s left")


@pytest.mark.parametrize("width", [20, 40, 80])
def test_the_line_fits_the_terminal(width: int):
    stream = io.StringIO()
    console = PatientConsole(file=stream, force_terminal=True, width=width)
    one = Phase("pre-training victim with-a-long-name", 4, "epoch")
    with live_line(lambda: one.line(width), console, in_thread=False):
        pass
    shown = [line for line in Text.from_ansi(stream.getvalue()).plain.splitlines() if line.strip()]
    assert shown
    assert all(len(line.rstrip()) <= width for line in shown)


def test_of_several_phases_the_innermost_is_shown():
    console = PatientConsole(file=io.StringIO(), force_terminal=True, width=80)
    with live_line(lambda: Text("outer"), console, in_thread=False) as draw:
        with live_line(lambda: Text("inner"), console):
            draw()
        draw()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("outer") < text.index("inner") < text.rindex("outer")


def test_without_a_thread_there_is_none():
    """Where processes are forked, a thread would forbid it."""
    before = threading.active_count()
    console = PatientConsole(file=io.StringIO(), force_terminal=True)
    with live_line(lambda: Text("drawing"), console, in_thread=False):
        assert threading.active_count() == before


def test_a_log_holds_nothing_of_it(capsys: pytest.CaptureFixture[str]):
    with phase("starting Ray"), phase("pre-training", 4, "epoch") as shown:
        shown.reached(1)
    assert capsys.readouterr() == ("", "")


PROGRAM = """
import logging, sys
from types import SimpleNamespace
from sweeplab import live_line
from sweeplab.cli.program import guarded
live_line.time = SimpleNamespace(monotonic=lambda: 0.0)  # a slow machine shows the same seconds
def work():
    with live_line.phase("pre-training victim a", 2, "epoch") as shown:
        sys.stdin.readline()
        logging.getLogger("sweeplab").info("  epoch 1/2: accuracy 50.0 %")
        shown.reached(1, 30.0)
        sys.stdin.readline()
raise SystemExit(guarded(work))
"""


def test_news_stand_above_the_line():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment
    ) as process:
        assert process.stdin is not None
        os.close(theirs)
        read = b""
        for shown in (b"epoch 0/2", b"epoch 1/2, "):
            while shown not in read:
                read += os.read(ours, 4096)
            process.stdin.write(b"\n")
            process.stdin.flush()
        try:
            while part := os.read(ours, 4096):
                read += part
        except OSError:  # the program has closed the terminal
            pass
        assert process.wait(60) == 0
    text = read.decode()
    assert text.index("epoch 0/2, 0 s so far") < text.index("accuracy 50.0 %") < text.index("epoch 1/2, 30 s left")
    assert "epoch 1/2: accuracy 50.0 %\r\n" in text
    assert "\x1b[?25h" in text.rpartition("left")[2]  # the cursor is shown again
