"""Broken ledger: what a run records of its broken pairs, when it begins and as workers find more."""

import dataclasses
import logging
from pathlib import Path

from sweeplab.data.broken import refuse_too_many
from sweeplab.experiment import CleaningSweep, CleanSample, PretrainedVictim
from sweeplab.storage.broken_rows import (
    FILE,
    BrokenRow,
    add_broken,
    in_words,
    read_broken,
    sweep_owner,
    victim_owner,
    write_broken,
)
from sweeplab.worker.jobs import DataDigests

logger = logging.getLogger("sweeplab")


def begin_record(folder: Path, owner: str, contents: DataDigests) -> None:
    """Record what a run begins with, unless it has begun: from here on this is what its data are.

    Raises:
        StorageFault: if it cannot be written.
    """
    if (found := contents.broken.get(owner)) is None:
        return
    if (known := read_broken(folder)) is None or known.table != found.table:
        write_broken(folder, found)


class BrokenLedger:
    """The broken pairs of a run that is under way."""

    def __init__(self, folder: Path, spec: CleaningSweep | PretrainedVictim, contents: DataDigests) -> None:
        self.contents = contents
        """What workers must find, with all that is recorded by now."""
        self._folder = folder
        self._owner, self._max_broken = _tolerance_of(spec)

    def add(self, rows: tuple[BrokenRow, ...]) -> None:
        """Record what a worker has found.

        Raises:
            InvalidInput: if too much is broken with it; then nothing is recorded.
            StorageFault: if it cannot be written.
        """
        record = self.contents.broken[self._owner]
        known = {one.row for one in record.rows}
        new = tuple(one for one in rows if one.row not in known)
        if not new:
            return
        record = dataclasses.replace(record, rows=(*record.rows, *new))
        reasons = {one.row: one.reason for one in sorted(record.rows, key=lambda one: one.row)}
        refuse_too_many(reasons, record.num_rows, self._max_broken, in_words(self._owner))
        add_broken(self._folder, new)
        self.contents = dataclasses.replace(self.contents, broken={**self.contents.broken, self._owner: record})
        logger.info(f"  {in_words(self._owner)}: {record.summary()} ({self._folder / FILE})")


def _tolerance_of(spec: CleaningSweep | PretrainedVictim) -> tuple[str, float]:
    """Who records what is broken of the pairs that a spec trains on, and which share of them may be."""
    if isinstance(spec, PretrainedVictim):
        return victim_owner(spec.name), getattr(spec.data, "max_broken", 0.0)
    source, victim = spec.data, spec.original_victim()
    if isinstance(source, CleanSample) and isinstance(victim, PretrainedVictim):
        source = victim.data
    return sweep_owner(spec.name), getattr(source, "max_broken", 0.0)
