"""Session: what the steps of one command share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Session:
    """Where a command works, and how."""

    home: Path
    inline: bool = False
    """One process, no Ray."""
    reads: list[Any] | None = None
    """Parts of specs that say what files the whole command reads, which every node sees by now; None: only those of the
    step itself."""
