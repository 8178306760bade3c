"""Supervise: run a command again until its sweeps are finished, with a bound."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sweeplab.execution.watchdog import heeded_signals
from sweeplab.specs import BAD_INPUT, DONE, FAULT, INTERRUPTED
from sweeplab.storage.files import read_lines

MAX_STARTS = 100
"""Starts in all."""

MAX_FRUITLESS = 3
"""Starts in a row that brought no point more."""

logger = logging.getLogger("sweeplab")

PAUSES = (1.0, 5.0, 30.0)
"""Seconds before a start, after one, two and more fruitless ones."""


def committed(home: Path, names: Sequence[str]) -> int:
    """Lines of all histories that the sweeps and the victims of the home hold: it grows with every point."""
    folders = [home / "victims", *(home / "sweeps" / name / "trials" for name in names)]
    return sum(len(read_lines(path)) for folder in folders for path in folder.glob("*/history.jsonl"))


def supervise(
    command: Sequence[str],
    progress: Callable[[], int],
    *,
    was_stopped: Callable[[], bool] = lambda: False,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Run the command until it is done, fails, refuses its input, or gets nowhere.

    Args:
        command: with its program.
        progress: counts what is committed; more of it after a start means that the start brought something.
        was_stopped: whether someone has asked for the end of what ran last (`sweeplab stop`).
        pause: waits so many seconds.

    Returns:
        The exit code of the last start: 0 done, 1 failed, 2 bad input, 75 where a signal came or nothing moved any
        more.
    """
    fruitless = 0
    for start in range(1, MAX_STARTS + 1):
        before = progress()
        code, was_told = _run(command)
        # Another start would end the same way, or was not wanted.
        if code in (DONE, FAULT, BAD_INPUT) or was_told or was_stopped():
            return code
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        # A start that has committed something has moved on, however it ended.
        fruitless = 0 if progress() > before else fruitless + 1
        if fruitless >= MAX_FRUITLESS:
            logger.info(f"supervise: ended with {how}, and {fruitless} starts in a row brought nothing new; giving up")
            return INTERRUPTED
        wait = PAUSES[min(fruitless, len(PAUSES) - 1)]
        logger.info(f"supervise: start {start} ended with {how}; starting again in {wait:g} s")
        pause(wait)
    logger.info(f"supervise: {MAX_STARTS} starts did not finish the work; giving up")
    return INTERRUPTED


def _run(command: Sequence[str]) -> tuple[int, bool]:
    """The command's exit code, and whether it ended because this process was told to end."""
    told: list[int] = []
    # In a session of its own, so that a signal to the whole group reaches it once, from here.
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: object) -> None:
        told.append(number)
        for child in children:
            child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    before = {number: signal.signal(number, forward) for number in heeded_signals()}
    try:
        child = subprocess.Popen(command, env={**os.environ, "SWEEPLAB_SUPERVISED": "1"}, start_new_session=True)
        children.append(child)
        if told:  # between the two lines above
            child.send_signal(signal.SIGTERM)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (INTERRUPTED if told and code < 0 else code), bool(told)
