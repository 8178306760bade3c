"""Readers that leave, while the work goes on and ends with its own code; and texts that would command a terminal."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import fabricated
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeplab import cli
from sweeplab.cli import program, sweeps
from sweeplab.specs import InvalidInput
from sweeplab.terminal import FramedTable, PatientConsole, encodable, printable, wrapped

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys
from sweeplab.cli import say, say_error
from sweeplab.terminal import PatientConsole
console = PatientConsole(file=sys.stdout)
print("first", flush=True)
sys.stdin.read()
for _ in range(3):
    {does}
sys.exit(7)
"""


@pytest.mark.parametrize("does", ['say("more")', 'console.print("more")', 'say("more"); console.print("more")'])
def test_a_reader_that_leaves_does_not_end_the_work(does: str):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(does=does)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        process.stdin.close()  # only now does it go on
        errors = process.stderr.read()
        assert process.wait(60) == 7
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


def test_a_table_s_title_and_caption_are_broken_before_no_unit():
    """In 23 columns there is room for `95` behind `certified below: at`, but not for `95 %`."""
    text = "certified below: at 95 % for all"
    written = io.StringIO()
    PatientConsole(file=written, width=23).print(FramedTable(title=Text(text), caption=Text(text)))
    assert [line.strip() for line in written.getvalue().splitlines() if line.strip()] == [
        "certified below: at", "95 % for all"
    ] * 2  # fmt: skip


@pytest.mark.parametrize("does", ['say("more")', 'console.print("more")'])
def test_a_terminal_that_is_closed_does_not_end_the_work(does: str):
    """Its stream answers EIO from then on."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(does=does)],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        os.close(theirs)
        seen = b""
        while not seen.endswith(b"\n"):
            seen += os.read(ours, 100)
        os.close(ours)
        process.stdin.close()  # only now does it go on
        assert process.stderr is not None
        errors = process.stderr.read()
        assert errors.decode() == ""
        assert process.wait(60) == 7


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


ROW = ("fruit-stall_mmcl-lr-1e-3-smoke-tpe-x", "running, 2 h 13 min left", "4 of 1,200", "y" * 40, "10 min 07 s")


@pytest.mark.parametrize(
    ("width", "names", "state"),
    [
        (80, ["fruit-stall_mmcl-", "lr-1e-3-smoke-tpe-", "x"], ["running,", "2 h 13 min left"]),
        (200, [ROW[0]], [ROW[1]]),
    ],
)
def test_a_name_in_a_table_is_broken_behind_its_parts_and_no_number_is(width: int, names: list[str], state: list[str]):
    """One without parts is broken anywhere, and whole all the same."""
    written = io.StringIO()
    table = sweeps._table(("sweep", "state", "trials", "victim", "ago"), [ROW], right=("trials", "ago"))
    Console(width=width, file=written).print(table)
    first, *others = cells_of(written.getvalue().splitlines()[1:])
    found = {start: [text, *(more[start] for more in others if start in more)] for start, text in first.items()}
    name, when, trials, victim, ago = found.values()
    assert (name, when, trials, ago) == (names, state, [ROW[2]], [ROW[4]])
    assert "".join(victim) == ROW[3]


def cells_of(lines: list[str]) -> list[dict[int, str]]:
    """The cells of each line of a table by the column at which they begin."""
    return [{cell.start(): cell[0] for cell in re.finditer(r"\S+(?: \S+)*", line)} for line in lines]


def rows_of(lines: list[str], columns: int) -> list[list[str]]:
    """The rows of a table, whose first line alone has text in every column; pieces of names are joined again."""
    rows: list[dict[int, str]] = []
    for cells in cells_of(lines):
        if len(cells) == columns:
            rows.append(cells)
        else:
            for start, text in cells.items():
                rows[-1][start] += ("" if rows[-1][start].endswith(("-", "_")) else " ") + text
    return [list(row.values()) for row in rows]


def test_a_narrow_terminal_is_told_in_the_same_words_as_a_wide_one(own_home: Path, monkeypatch: pytest.MonkeyPatch):
    """No line is longer than the terminal is wide, but for a path that has no room; no number is broken."""
    name = "fruit-stall_mmcl-and-ssl-cleanclip-smoke-tpe"
    victim = fabricated.SWEEP.victim.replace(name="fruit-stall_mmcl-and-ssl-at-0.05-of-8000-pairs-victim")
    fabricated.finished_sweep(own_home / "sweeps", fabricated.SWEEP.replace(name=name, victim=victim))
    folder = fabricated.prepared_folder(own_home / "sweeps", fabricated.SWEEP.replace(victim=victim))
    fabricated.Player(fabricated.open_controller(folder)).play_all()

    def lines_at(width: int, height: int, *words: str) -> list[str]:
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("LINES", str(height))
        assert cli.app(words, standalone_mode=False) in (0, None)
        lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
        assert [line for line in lines if cell_len(line.rstrip()) > width and " " in line.strip()] == []
        return lines

    for words in (["leaderboard", name], ["status", name]):
        narrow, wide = lines_at(80, 24, *words), lines_at(200, 50, *words)
        assert " ".join(narrow).split() == " ".join(wide).split()
        assert len(narrow) > len(wide)
    (*narrow, next_narrow), (*wide, next_wide) = lines_at(80, 24, "list"), lines_at(200, 50, "list")
    assert rows_of(narrow[2:], 6) == rows_of(wide[2:], 6)
    assert len(wide) == 4 < len(narrow)
    assert next_narrow == next_wide == f"next: sweeplab leaderboard {name}"


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
