"""Table files: tables of millions of pairs, which a node keeps as Arrow files that all its processes map."""

import contextlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from sweeplab.data.tables import PairTable
from sweeplab.data.tar_members import Members, Shard
from sweeplab.storage.files import open_private, replace_atomically
from sweeplab.storage.node_cache import make_room, use

FEW_ROWS = 10_000
"""Tables of fewer rows are not kept: each process reads them in less than a second."""


@dataclass(frozen=True)
class TableFiles:
    """Where a node keeps tables. A mapped table takes next to no memory of its own: its columns are pages of the file,
    which the system reads when they are asked for, holds once for all processes, and drops when memory is short."""

    folder: Path
    """On a disk of this node."""
    budget: float
    """Bytes of all that the node keeps there; see `make_room`. At most half of the free space is taken too."""

    def mapped(self, table: PairTable) -> PairTable:
        """The same table, mapped from a file that is written where it is not there yet; the table itself where it has
        few rows, or there is no room for it."""
        if len(table) < FEW_ROWS:
            return table
        if (found := self.find(table.state)) is not None:
            return replace(found, broken=table.broken)
        batch = _batch_of(table)
        if not make_room(batch.nbytes, budget=self.budget, share=0.5, folder=self.folder):
            return table
        with contextlib.suppress(OSError):  # the disk took less than it promised
            replace_atomically(self._place(table.state), _opened, lambda file: _write(batch, file))
        found = self.find(table.state)
        return table if found is None else replace(found, broken=table.broken)

    def find(self, state: str) -> PairTable | None:
        """The table of that state; None where the node does not keep it, or what it keeps is damaged."""
        place = self._place(state)
        if not use(place):
            return None
        try:
            return _table_of(pa.ipc.open_file(pa.memory_map(str(place))).get_batch(0))
        except (OSError, ValueError, KeyError, TypeError):  # Arrow's own errors are among them
            return None

    def _place(self, state: str) -> Path:
        return self.folder / f"table-{state}.arrow"


def _opened(path: Path) -> BinaryIO:
    return open(open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb")


COLUMNS = ("images", "captions", "sizes", "deep_grey", "times")
"""Fields of a table that are columns of its file, where they are not None."""
PLAIN = ("root", "digest", "absolute_below", "notes")
"""The others, which stand in the file's metadata as JSON."""


def _batch_of(table: PairTable) -> pa.RecordBatch:
    """A table as one record batch."""
    columns = {name: getattr(table, name) for name in COLUMNS if getattr(table, name) is not None}
    columns["deep_grey"] = table.deep_grey.view(np.uint8)  # Arrow packs booleans, and to unpack them takes memory
    plain = {name: getattr(table, name) for name in PLAIN}
    if (members := table.members) is not None:
        columns |= {"numbers": members.numbers, "offsets": members.offsets}
        plain["shards"] = [[shard.location, shard.version] for shard in members.shards]
    arrays = {name: pa.array(column) if isinstance(column, np.ndarray) else column for name, column in columns.items()}
    return pa.RecordBatch.from_pydict(arrays, metadata={"table": json.dumps(plain)})


def _table_of(batch: pa.RecordBatch) -> PairTable:
    """The inverse of `_batch_of`; copies nothing."""
    plain = json.loads(batch.schema.metadata[b"table"])
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    fields: dict[str, Any] = {name: columns.pop(name) for name in ("images", "captions")}
    fields |= {name: column.to_numpy() for name, column in columns.items()} | plain
    if (shards := fields.pop("shards", None)) is not None:
        places = tuple(Shard(location, version) for location, version in shards)
        fields["members"] = Members(places, fields.pop("numbers"), fields.pop("offsets"))
    return PairTable(
        **{**fields, "deep_grey": fields["deep_grey"].view(np.bool_), "notes": tuple(fields["notes"])},
    )


def _write(batch: pa.RecordBatch, file: BinaryIO) -> None:
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
