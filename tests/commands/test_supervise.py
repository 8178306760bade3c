"""Supervising: a command is started again until it is done, with made-up commands."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sweeplab.commands import supervise as supervise_module
from sweeplab.commands.supervise import MAX_FRUITLESS, PAUSES, committed, supervise

ROOT = Path(__file__).parents[2]

SCRIPTED = """
import os, sys
from pathlib import Path
diary = Path(sys.argv[1])
codes = sys.argv[2:]
start = len(diary.read_text().splitlines()) if diary.exists() else 0
with diary.open("a") as file:
    file.write(os.environ["SWEEPLAB_SUPERVISED"] + "\\n")
code = int(codes[min(start, len(codes) - 1)])
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
"""Ends with the codes of its command line, one a start; a negative one is the signal of which it dies."""


class Supervised:
    """A supervised command, what was said, and how long it paused."""

    def __init__(self, diary: Path, *codes: int, brings: bool = True) -> None:
        self.diary, self.pauses = diary, []  # type: ignore[var-annotated]
        handler = logging.Handler()
        self.said: list[str] = []
        handler.emit = lambda record: self.said.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("sweeplab")
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        command = [sys.executable, "-S", "-c", SCRIPTED, str(diary), *map(str, codes)]
        progress = self.starts if brings else lambda: 0
        self.code = supervise(command, progress, pause=self.pauses.append)
        logger.removeHandler(handler)

    def starts(self) -> int:
        return len(self.diary.read_text().splitlines()) if self.diary.exists() else 0


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_what_is_done_or_failed_or_refused_is_not_started_again(code: int, diary: Path):
    ran = Supervised(diary, code)
    assert (ran.code, ran.starts(), ran.said, ran.pauses) == (code, 1, [], [])


def test_an_interrupted_command_is_started_again_until_it_is_done(diary: Path):
    ran = Supervised(diary, 75, 75, 0)
    assert (ran.code, ran.starts()) == (0, 3)
    assert ran.said == [
        "supervise: start 1 ended with exit code 75; starting again in 1 s",
        "supervise: start 2 ended with exit code 75; starting again in 1 s",
    ]
    assert diary.read_text() == "1\n" * 3  # the child knows that it is supervised


def test_a_command_that_was_killed_is_started_again(diary: Path):
    ran = Supervised(diary, -signal.SIGKILL, 0)
    assert (ran.code, ran.starts()) == (0, 2)
    assert "ended with signal 9" in ran.said[0]


def test_starts_that_bring_nothing_are_given_up_after_growing_pauses(diary: Path):
    ran = Supervised(diary, 75, brings=False)
    assert (ran.code, ran.starts()) == (75, MAX_FRUITLESS)
    assert ran.said[-1] == "supervise: ended with exit code 75, and 3 starts in a row brought nothing new; giving up"
    assert ran.pauses == [PAUSES[1], PAUSES[2]]


def test_all_starts_have_a_bound(diary: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervise_module, "MAX_STARTS", 4)
    ran = Supervised(diary, 75)
    assert (ran.code, ran.starts()) == (75, 4)
    assert ran.said[-1] == "supervise: 4 starts did not finish the work; giving up"


TOLD = '''
import sys
from sweeplab.commands.supervise import supervise
child = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
print("ready", flush=True)
time.sleep(600)
"""
sys.exit(supervise([sys.executable, "-S", "-c", child], lambda: 0))
'''


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command_and_ends_the_supervision(number: signal.Signals):
    process = subprocess.Popen(
        [sys.executable, "-c", TOLD],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, "")


def test_progress_counts_points_of_the_sweeps_trials_and_of_victims(tmp_path: Path):
    for folder, lines in (("sweeps/mine/trials/0000", 3), ("sweeps/other/trials/0000", 5), ("victims/v", 2)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "history.jsonl").write_text('{"index": 0}\n' * lines + '{"torn')
    assert committed(tmp_path, ["mine"]) == 5
    assert committed(tmp_path, ["none"]) == 2


def test_a_command_that_was_asked_to_stop_is_not_started_again(diary: Path):
    command = [sys.executable, "-S", "-c", SCRIPTED, str(diary), "75"]
    assert supervise(command, lambda: 0, was_stopped=lambda: True) == 75
    assert len(diary.read_text().splitlines()) == 1


GROUP = """
import signal, sys, time
from sweeplab.commands.supervise import supervise
child = '''
import signal, sys, time
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
print("up", flush=True)
while not seen:
    time.sleep(0.01)
time.sleep(0.5)  # a second one would come at the same time
print(len(seen), "signals", flush=True)
sys.exit(75)
'''
sys.exit(supervise([sys.executable, "-S", "-c", child], lambda: 0))
"""


@pytest.mark.slow
@pytest.mark.alone
def test_a_signal_to_the_whole_group_reaches_the_command_once():
    """As `timeout`, schedulers and `ray job stop` send it: a second signal would end it at once."""
    with subprocess.Popen(
        [sys.executable, "-c", GROUP], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "up\n"
        os.killpg(supervisor.pid, signal.SIGTERM)
        assert supervisor.stdout.readline() == "1 signals\n"
        assert supervisor.wait(60) == 75
