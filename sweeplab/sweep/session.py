"""Session: what the steps of one command share."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeplab.worker.inputs import Inputs


@dataclass(frozen=True)
class Session:
    """Where a command works, and how."""

    home: Path
    inline: bool = False
    """One process, no Ray."""
    reads: list[Any] | None = None
    """Parts of specs that say what files the whole command reads, which every node sees by now; None: only those of the
    step itself."""
    known: Inputs | None = None
    """What the command has read so far, if anything."""

    @cached_property
    def inputs(self) -> Inputs:
        """Reads what specs name, each thing once."""
        return self.known or Inputs(self.home / "data")
