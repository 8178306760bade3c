"""Readers that leave: the work goes on, and ends with its own exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys, time
from sweeplab.cli import say, say_error
from sweeplab.terminal import PatientConsole
console = PatientConsole(file=sys.stdout)
print("first", flush=True)
time.sleep(0.5)
for _ in range(3):
    {does}
sys.exit(7)
"""


@pytest.mark.parametrize("does", ['say("more")', 'console.print("more")', 'say("more"); console.print("more")'])
def test_a_reader_that_leaves_does_not_end_the_work(does: str):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(does=does)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(30) == 7
        assert errors == b""
