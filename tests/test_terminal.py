"""Readers that leave, while the work goes on and ends with its own code; and texts that would command a terminal."""

import io
import logging
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from sweeplab import cli
from sweeplab.cli import program
from sweeplab.specs import InvalidInput
from sweeplab.terminal import PatientConsole, encodable, printable, wrapped

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


HOSTILE = "\x1b]0;owned\x07 \x1b[2J \x9b1A \r \x08 \u202e"
"""Sets the window's title, clears the screen, moves the cursor up, back, and turns the reading order."""
HARMLESS = "\ufffd]0;owned\ufffd \ufffd[2J \ufffd1A \ufffd \ufffd \ufffd"


def test_control_characters_become_visible_and_all_others_stay():
    assert printable(HOSTILE) == HARMLESS
    assert printable("ÄÖ ✓\tfoo\nbar 火") == "ÄÖ ✓\tfoo\nbar 火"
    assert printable("one\ntwo", keep="") == "one\ufffdtwo"


def test_no_text_of_a_file_commands_the_terminal_whichever_way_it_is_printed(capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise RuntimeError(HOSTILE)

    def refuse() -> None:
        raise InvalidInput(HOSTILE)

    cli.say(HOSTILE)
    assert (cli.guarded(fail), cli.guarded(refuse)) == (1, 2)
    table = Table(title=Text(HOSTILE))
    table.add_column(Text(HOSTILE))
    table.add_row(Text(HOSTILE))
    written = io.StringIO()
    console = PatientConsole(file=written, width=200)
    console.print(table)
    console.print(HOSTILE, markup=False)
    out, err = capsys.readouterr()
    assert HARMLESS in out
    assert HARMLESS in err
    for text in (out, err, written.getvalue()):
        assert not set(text) & set("\x1b\x07\x9b\r\x08\u202e")


def test_colours_of_our_own_still_reach_a_terminal():
    written = io.StringIO()
    PatientConsole(file=written, force_terminal=True).print(Text("bold", style="bold"))
    assert "\x1b[1mbold" in written.getvalue()


def test_news_for_a_terminal_that_is_gone_are_dropped(monkeypatch: pytest.MonkeyPatch):
    def gone(text: str) -> None:
        raise OSError("broken pipe")

    monkeypatch.setattr(program, "say", gone)
    program.NewsHandler().emit(logging.makeLogRecord({"msg": "epoch 1/4"}))


def test_marks_that_an_encoding_lacks_become_plain_ones():
    assert encodable("✓ 5 % → trial 3 — Ä", "ascii") == "* 5 % -> trial 3 - ?"
    assert encodable("✓ Ä 火", None) == "✓ Ä 火"


def test_a_log_in_ascii_ends_nothing():
    program = """
import sys
from sweeplab.cli import say
from sweeplab.terminal import PatientConsole
say("keeps 99 % \\u2713")
PatientConsole(file=sys.stdout).print("best \\u2713 \\u706b")
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout) == (0, "keeps 99 % *\nbest * ?\n"), done.stderr


@pytest.mark.parametrize("does", ['say("more")', 'console.print("more")'])
def test_a_terminal_that_is_closed_does_not_end_the_work(does: str):
    """Its stream answers EIO from then on."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(does=does)], stdout=theirs, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        os.close(theirs)
        seen = b""
        while not seen.endswith(b"\n"):
            seen += os.read(ours, 100)
        time.sleep(0.2)  # that line is done with
        os.close(ours)
        assert process.stderr is not None
        errors = process.stderr.read()
        assert errors.decode() == ""
        assert process.wait(30) == 7


def test_a_line_is_broken_between_words_and_below_its_column():
    """Not within `67.8 %`, `1.5 GB` and a command to copy; a path that has no room is left whole."""
    line = "  disk      about 1.5 GB and 67.8 % of it; `sweeplab gc --copies` frees it"
    assert wrapped(line, 27).splitlines() == [
        "  disk      about 1.5 GB",
        "            and 67.8 % of",
        "            it;",
        "            `sweeplab gc --copies`",
        "            frees it",
    ]
    assert wrapped("made: /a/path/that/is/longer/than/that", 20) == "made:\n  /a/path/that/is/longer/than/that"
    assert wrapped("fits\n  as it  is", 20) == "fits\n  as it  is"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_broken_lines_and_whole_json(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    program.say("a line of more than twenty columns")
    program.say_json(["a text of more than twenty columns"])
    assert terminal.getvalue().splitlines() == [
        *("a line of more than", "  twenty columns"),
        *("[", ' "a text of more than twenty columns"', "]"),
    ]


def test_help_fits_any_width_and_keeps_code_and_lists():
    text = "One\ntwo.\n\n    python a.py  # so\n    python b.py\n\nThree:\n- a\n  b\n- c\n"
    assert program.paragraphs(text) == "One two.\n\npython a.py  # so\npython b.py\n\nThree:\n- a\n  b\n- c"
