"""The terminal: whoever reads may leave, as `| head` does, and the work goes on; and no file's text commands it."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any, TextIO, TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.containers import Lines
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, begin escape sequences, or have text read in another order than it is written."""


def printable(text: str, *, keep: str = "\n\t") -> str:
    """A text with a replacement character in place of every control character but those of `keep`, as a terminal would
    take them for commands: logs, names and reasons come from files, which others may have written."""
    return CONTROLS.sub(lambda found: found[0] if found[0] in keep else "\N{REPLACEMENT CHARACTER}", text)


PLAIN = str.maketrans(
    {"✓": "*", "–": "-", "—": "-", "…": "...", "→": "->", "×": "x", "·": "-", "’": "'"}
    | {"─": "-", "━": "-", "│": "|", "█": "#", "░": "."}
)
"""What stands for marks that an encoding lacks."""


def encodable(text: str, encoding: str | None) -> str:
    """A text in the characters of an encoding (None: UTF-8): of those that it lacks, marks become ASCII's nearest and
    others a question mark. A log in ASCII is no reason to end a sweep."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
    return text


WHOLE = re.compile(
    r"`[^`\n]+`|(?:epoch|trial) \d|\d (?:%|[kKMGT]?B)(?!\w)"
    r"|(?:\d (?:d|h|min) )?\d+ (?:d|h|min|s)(?: left)?(?!\w)"
)
"""Parts of a line that are not broken at their spaces: commands to copy, `epoch 2`, a number with its unit, and a
duration, `2 h 13 min left`."""

GLUE = "\ue000"
"""Stands for a space within such a part while a line is broken."""


def wrapped(text: str, width: int) -> str:
    """A text in lines of at most so many columns, broken between words alone.

    What does not fit goes on below the line's last column of text that begins in its first half, or two spaces further
    in than the line. A word that is wider than that, such as a path, is left whole: a terminal shows it in two lines,
    and copies it as one.
    """
    return "\n".join(part for line in text.split("\n") for part in _wrapped_line(line, width))


def _wrapped_line(line: str, width: int) -> Iterator[str]:
    if cell_len(line) <= width:
        yield line
        return
    indent = len(line) - len(line.lstrip()) + 2
    columns = [found.end() for found in re.finditer(r"\S  +(?=\S)", line) if found.end() <= width // 2]
    hang = " " * max(indent, *columns, 0)
    part = ""
    for word in re.findall(r"\s*\S+", WHOLE.sub(lambda found: found[0].replace(" ", GLUE), line)):
        if part.strip() and cell_len(part + word) > width:
            yield part.replace(GLUE, " ")
            part, word = hang, word.lstrip()
        part += word
    yield part.replace(GLUE, " ")


JOINTS = re.compile(r"(?<=\s)|(?<=[-_])(?<!\de-)(?=\w)")
"""Where a name may be broken: behind spaces, `-` and `_`, and not within 1e-3."""


class Name(Text):
    """A table's cell that is broken behind `-` and `_` too; within a word only where a part of it has no room."""

    def wrap(self, console: Console, width: int, **settings: Any) -> Lines:
        """Its lines, of at most so many columns."""
        lines = [""]
        for part in JOINTS.split(WHOLE.sub(lambda found: found[0].replace(" ", GLUE), self.plain)):
            if lines[-1] and cell_len(lines[-1] + part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
        whole = "\n".join(line.rstrip() for line in lines).replace(GLUE, " ")
        return Text(whole, self.style).wrap(console, width, **settings)


class FramedTable(Table):
    """A table whose title and caption are broken at the terminal's width; a plain one breaks them at its own."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What is printed."""
        bare = copy(self)
        bare.title = bare.caption = None
        if self.title:
            yield Text(wrapped(str(self.title), options.max_width))
        yield from Table.__rich_console__(bare, console, options)
        if self.caption:
            yield Text(wrapped(str(self.caption), options.max_width))


GONE = (errno.EPIPE, errno.EIO)
"""What a stream says whose reader has left: a closed pipe, a closed terminal."""


class PatientStream:
    """A stream that says in one way only that its reader has left, as rich understands it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; BrokenPipeError where nobody reads."""
        return int(self._patiently(lambda: self._stream.write(text)))

    def flush(self) -> None:
        """Flush, likewise."""
        self._patiently(self._stream.flush)

    def _patiently(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except OSError as error:
            if error.errno in GONE:
                raise BrokenPipeError(error.errno, error.strerror) from error
            raise


def without_reader(stream: TextIO) -> None:
    """Drop what is written to a stream from now on."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class PatientConsole(Console):
    """A console that falls silent where rich's own would end the process, and that prints no control characters but its
    own."""

    def __init__(self, *, file: TextIO | None = None, **settings: Any) -> None:
        super().__init__(file=PatientStream(file or sys.stdout), **settings)  # type: ignore[arg-type]

    def on_broken_pipe(self) -> None:
        """The reader is gone."""
        self.quiet = True
        without_reader(self.file)  # type: ignore[arg-type]

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments to print."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else encodable(printable(segment.text), self.encoding)
            yield Segment(text, segment.style, segment.control)


def tracked(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with a progress bar on stderr where that is a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    share = TextColumn("{task.percentage:.0f} %")
    columns = (TextColumn("{task.description}"), BarColumn(), share, TimeRemainingColumn())
    with Progress(*columns, console=PatientConsole(file=sys.stderr), disable=not sys.stderr.isatty()) as progress:
        yield from progress.track(items, total, description=what)
