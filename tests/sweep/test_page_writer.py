"""The page of a sweep that runs is written by a process of its own, and never awaited."""

import os
import sys
import time
from pathlib import Path

import pytest

from sweeplab.records import TrialRecord
from sweeplab.sweep.page_writer import NICENESS, PageWriter
from sweeplab.sweep_folder import SweepFolder

TRIAL = TrialRecord(0, "running", {}, "c", 1, 1, ())

APPEND = "import os, sys; open(sys.argv[1], 'a').write(os.environ['SWEEPLAB_HOME'] + '\\n')"


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "home" / "sweeps" / "toy")


def lines(path: Path):
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_page_is_written_where_something_has_changed(folder, tmp_path):
    log = tmp_path / "log"
    with PageWriter(folder, command=[sys.executable, "-c", APPEND, str(log)], seconds=0.02) as writer:
        time.sleep(0.2)
        assert lines(log) == []  # nobody has heard of anything yet
        writer.hear(TRIAL)
        wait_for(lambda: lines(log))
    assert lines(log) == [str(folder.home)]


def test_a_page_yields_to_the_sweep_and_is_not_interrupted_with_it(folder, tmp_path):
    """Linux compares niceness within a session, and keys interrupt a terminal's foreground group."""
    log = tmp_path / "log"
    tell = "import os, sys, time\nwhile time.sleep(0.02) is None:\n    told = os.nice(0), os.getsid(0), os.getpgid(0)\n"
    tell += "    with open(sys.argv[1], 'a') as log: print(*told, file=log)"
    niceness = min(19, os.nice(0) + NICENESS)  # which it has from a moment after its start
    with PageWriter(folder, command=[sys.executable, "-c", tell, str(log)], seconds=0.02) as writer:
        writer.hear(TRIAL)
        wait_for(lambda: any(line.startswith(f"{niceness} ") for line in lines(log)))
    _, session, group = map(int, lines(log)[0].split())
    assert session == os.getsid(0)
    assert group != os.getpgid(0)


def test_the_end_of_a_sweep_waits_for_no_page(folder, tmp_path):
    sleep = f"open({str(tmp_path / 'began')!r}, 'w'); import time; time.sleep(600)"
    began = time.monotonic()
    with PageWriter(folder, command=[sys.executable, "-c", sleep], seconds=0.02) as writer:
        writer.hear(TRIAL)
        wait_for((tmp_path / "began").exists)
    assert time.monotonic() - began < 300


def test_a_page_that_cannot_be_written_ends_nothing(folder, tmp_path):
    with PageWriter(folder, command=[str(tmp_path / "no such program")], seconds=0.02) as writer:
        writer.hear(TRIAL)
        wait_for(lambda: not writer._has_changed)
        writer.hear(TRIAL)
        wait_for(lambda: not writer._has_changed)
