"""Tables in files of the node: the same table, mapped, that takes no memory; whatever is damaged is written again."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sweeplab.data import table_files
from sweeplab.data.table_files import TableFiles
from sweeplab.data.tables import PairTable
from sweeplab.data.tar_members import Members, Shard
from sweeplab.storage.node_cache import let_go


@pytest.fixture(autouse=True)
def any_table_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "FEW_ROWS", 1)


@pytest.fixture
def files(tmp_path: Path) -> TableFiles:
    (tmp_path / "node").mkdir()
    return TableFiles(tmp_path / "node", 1e9)


def table_of(num_rows: int, **changes: Any) -> PairTable:
    """A table of which every field says something."""
    names = pa.array([f"/images/{row}.png" for row in range(num_rows)], pa.large_string())
    captions = pa.array([f"çaption, {row}\n" for row in range(num_rows)], pa.large_string())
    fields: dict[str, Any] = {
        "absolute_below": "/below",
        "deep_grey": np.arange(num_rows) % 2 == 1,
        "notes": ("one", "two"),
        "times": np.arange(num_rows) + 10**18,
        "members": Members(TARS, np.arange(num_rows, dtype=np.int32) % 3 - 1, 512 * np.arange(num_rows)),
    }
    return PairTable.of("/root", names, captions, np.arange(num_rows) + 7, **{**fields, **changes})


TARS = (Shard("/tars/0.tar", "1 2"), Shard("s3://bucket/1.tar", "3 4"))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Members):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else bool(one == other)


@pytest.mark.parametrize("changes", [{}, {"times": None}, {"notes": (), "absolute_below": ""}, {"members": None}])
def test_every_field_of_a_table_survives(files: TableFiles, changes: dict[str, Any]):
    table = table_of(5, **changes)
    mapped = files.mapped(table)
    assert mapped is not table
    for field in dataclasses.fields(PairTable):
        assert same(getattr(mapped, field.name), getattr(table, field.name)), field.name
        assert type(getattr(mapped, field.name)) is type(getattr(table, field.name)), field.name
    assert mapped.state == table.state


def test_parts_of_a_mapped_table_are_those_of_the_table(files: TableFiles):
    table, other = table_of(9), table_of(2, absolute_below="")
    mapped = files.mapped(table)
    assert mapped.subset([7, 1]).state == table.subset([7, 1]).state
    assert files.mapped(table.subset([7, 1])).caption(0) == table.caption(7)
    assert mapped.joined(other).state == table.joined(other).state
    assert [mapped.image(row) for row in range(9)] == [table.image(row) for row in range(9)]


def test_a_mapped_table_takes_no_memory(files: TableFiles):
    files.mapped(table_of(20_000))
    before = pa.total_allocated_bytes()
    found = files.find(table_of(20_000).state)
    assert found is not None
    assert pa.total_allocated_bytes() - before < 20_000
    assert not any(getattr(found, name).flags.owndata for name in ("sizes", "deep_grey", "times"))


def test_files_that_changed_since_are_another_state(files: TableFiles):
    table = table_of(5)
    assert table.times is not None
    files.mapped(table)
    assert table.members is not None
    again = dataclasses.replace(table.members, shards=(TARS[0], Shard(TARS[1].location, "3 5")))
    for changes in ({"times": table.times + 1}, {"times": None}, {"absolute_below": "/moved"}, {"members": again}):
        other = table_of(5, **changes)
        assert other.digest == table.digest
        assert files.find(other.state) is None


def test_a_table_of_few_rows_is_not_kept(files: TableFiles, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_files, "FEW_ROWS", 6)
    few, many = table_of(5), table_of(6)
    assert files.mapped(few) is few
    assert files.mapped(many) is not many


def test_without_room_a_table_stays_in_memory(files: TableFiles, monkeypatch: pytest.MonkeyPatch):
    table = table_of(500)
    assert TableFiles(files.folder, 5_000).mapped(table) is table

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_files, "_write", full)
    assert files.mapped(table) is table
    assert [path.name for path in files.folder.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("damage", [b"", b"ARROW1", None])
def test_a_damaged_file_is_written_again(files: TableFiles, damage: bytes | None):
    table = table_of(50)
    files.mapped(table)
    (place,) = files.folder.glob("table-*")
    content = place.read_bytes()
    let_go(place)
    place.unlink()
    place.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert files.find(table.state) is None
    assert files.mapped(table).captions == table.captions
    assert place.read_bytes() == content
