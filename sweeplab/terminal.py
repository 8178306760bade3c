"""The terminal: whoever reads may leave, as `| head` does, and the work goes on; and no file's text commands it."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, begin escape sequences, or have text read in another order than it is written."""


def printable(text: str, *, keep: str = "\n\t") -> str:
    """A text with a replacement character in place of every control character but those of `keep`, as a terminal would
    take them for commands: logs, names and reasons come from files, which others may have written."""
    return CONTROLS.sub(lambda found: found[0] if found[0] in keep else "\N{REPLACEMENT CHARACTER}", text)


PLAIN = str.maketrans(
    {"✓": "*", "–": "-", "—": "-", "…": "...", "→": "->", "×": "x", "·": "-", "’": "'", "─": "-", "━": "-", "│": "|"}
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
