"""Broken rows: pairs whose image or caption cannot be used, as a sweep or a victim records them once and for all."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeplab.specs import InvalidInput
from sweeplab.storage.files import append_line, make_private, read_lines, write_atomically

FILE = "broken.jsonl"
"""In the folder of a sweep, for its cleaning pairs, and of a victim, for its training pairs."""


@dataclass(frozen=True)
class BrokenRow:
    """A pair that another one stands in for, as it was when it was found."""

    row: int
    """Of the table, from 0."""
    image: str
    """As the table names it."""
    caption: str
    size: int
    """Bytes of the file; 0: it was missing or empty."""
    deep_grey: bool
    """See `PairTable`."""
    reason: str


@dataclass(frozen=True)
class BrokenRows:
    """The broken rows of one table."""

    table: str
    """The table's digest, which holds what is recorded of these rows and not what became of them later."""
    num_rows: int
    """Of the table."""
    rows: tuple[BrokenRow, ...] = ()
    """In the order in which they were found."""

    def summary(self) -> str:
        """How many there are, in words."""
        what = "is broken; another stands in for it" if len(self.rows) == 1 else "are broken; others stand in for them"
        return f"{len(self.rows):,} of {self.num_rows:,} pairs {what}"


def write_broken(folder: Path, broken: BrokenRows) -> None:
    """Record what a run begins with.

    Raises:
        StorageFault: if it cannot be written.
    """
    lines: list[dict[str, Any]] = [{"table": broken.table, "num_rows": broken.num_rows}, *map(asdict, broken.rows)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    make_private(folder)
    write_atomically(folder / FILE, text.encode())


def add_broken(folder: Path, rows: tuple[BrokenRow, ...]) -> None:
    """Record rows that were found later.

    Raises:
        StorageFault: if they cannot be written.
    """
    for row in rows:
        append_line(folder / FILE, asdict(row), durable=row is rows[-1])


def read_broken(folder: Path) -> BrokenRows | None:
    """The record of a folder; None where there is none.

    Raises:
        InvalidInput: if it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    lines = read_lines(path)
    try:
        begun = BrokenRows(**lines[0])
        found = {row.row: row for row in (BrokenRow(**line) for line in reversed(lines[1:]))}
    except (IndexError, TypeError):
        raise InvalidInput(f"{path} is damaged; restore it from a backup, or remove {folder} to begin anew") from None
    return BrokenRows(begun.table, begun.num_rows, tuple(reversed(found.values())))


def sweep_owner(name: str) -> str:
    """Who records the broken rows of a sweep's cleaning pairs."""
    return f"sweeps/{name}"


def victim_owner(name: str) -> str:
    """Who records the broken rows of a victim's training pairs."""
    return f"victims/{name}"


def in_words(owner: str) -> str:
    """The pairs of an owner, in messages."""
    kind, name = owner.split("/", 1)
    return f"the training pairs of victim {name}" if kind == "victims" else f"the cleaning pairs of {name}"


def recorded_in(home: Path, owner: str) -> list[BrokenRows] | None:
    """The records that a home holds of a sweep, or of all victims of a name.

    Returns:
        None where there are none and such a one was begun all the same, by a version that recorded nothing.

    Raises:
        InvalidInput: if one is damaged.
    """
    kind, name = owner.split("/", 1)
    folders = [home / owner]
    if kind == "victims":  # whose digests are not known before their tables are
        given = re.compile(re.escape(name) + "-[0-9a-f]{16}")
        folders = sorted(path for path in (home / kind).glob("*") if given.fullmatch(path.name))
    found = [record for folder in folders if (record := read_broken(folder)) is not None]
    is_begun = any((folder / f"{kind[:-1]}.json").exists() for folder in folders)
    return None if is_begun and not found else found
