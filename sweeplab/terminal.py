"""The terminal: whoever reads may leave, as `| head` does, and the work goes on."""

import contextlib
import os
from typing import TextIO

from rich.console import Console


def without_reader(stream: TextIO) -> None:
    """Drop what is written to a stream from now on."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class PatientConsole(Console):
    """A console that falls silent where rich's own would end the process."""

    def on_broken_pipe(self) -> None:
        """The reader is gone."""
        self.quiet = True
        without_reader(self.file)  # type: ignore[arg-type]
