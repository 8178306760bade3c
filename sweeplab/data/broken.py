"""Broken pairs: how many a source tolerates, and which row stands in for one."""

import math
from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import Field

from sweeplab.data.images import first_faults
from sweeplab.specs import InvalidInput
from sweeplab.training.randomness import numpy_stream

MaxBroken = Annotated[float, Field(ge=0, le=1)]
"""The share of a source's pairs, a fraction, that may be broken: their image is missing, empty or cannot be decoded, or
they have no caption. Others stand in for them; beyond that share the source is refused."""


def num_tolerated(max_broken: float, num_rows: int) -> int:
    """How many of so many rows may be broken."""
    return math.floor(max_broken * num_rows + 1e-9)  # 0.29 * 100 is a little less than 29


def refuse_too_many(broken: Mapping[int, str], num_rows: int, max_broken: float, what: str) -> None:
    """Refuse a table of which more is broken than its source tolerates; see `too_many`."""
    if len(broken) > num_tolerated(max_broken, num_rows):
        raise too_many(broken, len(broken), num_rows, max_broken, what)


def too_many(
    shown: Mapping[int, str], count: int, num_rows: int, max_broken: float, what: str, places: str = ""
) -> InvalidInput:
    """The error for a table of which more is broken than its source tolerates.

    Args:
        shown: why, by row from 0; of more than some the first are named.
        count: of all rows that are broken.
        num_rows: of the table.
        max_broken: of the source.
        what: names the table.
        places: where its images are looked for.
    """
    return InvalidInput(
        f"{what}: {count:,} of {num_rows:,} pairs are broken, and max_broken={max_broken:g} tolerates "
        f"{num_tolerated(max_broken, num_rows):,}:\n{first_faults(shown, count)}\n"
        f"{places}mend them, remove their rows, or raise max_broken so that other pairs stand in for them"
    )


class StandIns:
    """Which row of a table stands in for a broken one: drawn by (seed, row) alone, and neither broken nor poisoned."""

    def __init__(self, num_rows: int, broken: Mapping[int, str], poisoned: Collection[int] = ()) -> None:
        self.broken: set[int] = set()
        self.poisoned = frozenset(poisoned)
        self._num_rows = num_rows
        self._drawn: dict[tuple[int, int], int] = {}
        self.add(broken)

    def refuse_poisoned(self, broken: Mapping[int, str]) -> None:
        """Refuse broken rows that are poisoned: a poison is one of a kind.

        Raises:
            InvalidInput: naming them.
        """
        if hit := {row: reason for row, reason in broken.items() if row in self.poisoned}:
            raise InvalidInput(
                f"{len(hit):,} poisoned pairs are broken, and no other pair can stand in for a poison:\n"
                f"{first_faults(hit)}\nmend the files or remove their rows"
            )

    def add(self, broken: Mapping[int, str]) -> None:
        """Count rows as broken from now on.

        Raises:
            InvalidInput: if one is poisoned, or no row is left to stand in.
        """
        self.refuse_poisoned(broken)
        self.broken.update(broken)
        self._drawn.clear()
        if self.broken and len(self.broken) + len(self.poisoned) >= self._num_rows:
            raise InvalidInput(
                f"{len(self.broken):,} of {self._num_rows:,} pairs are broken, and none of the others can stand in for "
                f"them ({len(self.poisoned):,} are poisoned); mend the files"
            )

    def of(self, seed: int, row: int) -> int:
        """The row that is used where `row` is asked for: itself unless it is broken."""
        if row not in self.broken:
            return row
        if (seed, row) not in self._drawn:
            draw = numpy_stream(seed, "stand-in", row)
            other = row
            while other in self.broken or other in self.poisoned:
                other = int(draw.integers(self._num_rows))
            self._drawn[seed, row] = other
        return self._drawn[seed, row]
