"""The terminal: whoever reads may leave, as `| head` does, and the work goes on; and no file's text commands it."""

import contextlib
import os
import re
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, begin escape sequences, or have text read in another order than it is written."""


def printable(text: str, *, keep: str = "\n\t") -> str:
    """A text with a replacement character in place of every control character but those of `keep`, as a terminal would
    take them for commands: logs, names and reasons come from files, which others may have written."""
    return CONTROLS.sub(lambda found: found[0] if found[0] in keep else "\N{REPLACEMENT CHARACTER}", text)


def without_reader(stream: TextIO) -> None:
    """Drop what is written to a stream from now on."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class PatientConsole(Console):
    """A console that falls silent where rich's own would end the process, and that prints no control characters but its
    own."""

    def on_broken_pipe(self) -> None:
        """The reader is gone."""
        self.quiet = True
        without_reader(self.file)  # type: ignore[arg-type]

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments to print."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
