"""Records of broken rows: what was written is read, and a home knows whose they are."""

import dataclasses
from pathlib import Path

import pytest

from sweeplab.specs import InvalidInput
from sweeplab.storage.broken_rows import BrokenRow, BrokenRows, add_broken, read_broken, recorded_in, write_broken

ROW = BrokenRow(3, "a/3.png", "eine Banane – gelb", 17, False, "cut short")
RECORD = BrokenRows("0123456789abcdef", 1000, (ROW,))


def test_a_record_is_read_as_it_was_written_and_added_to(tmp_path: Path):
    assert read_broken(tmp_path) is None
    write_broken(tmp_path / "new", RECORD)
    assert read_broken(tmp_path / "new") == RECORD
    more = tuple(dataclasses.replace(ROW, row=row) for row in (900, 4))
    add_broken(tmp_path / "new", more)
    assert read_broken(tmp_path / "new") == dataclasses.replace(RECORD, rows=(ROW, *more))


def test_a_row_counts_once_as_it_was_found_first(tmp_path: Path):
    write_broken(tmp_path, RECORD)
    add_broken(tmp_path, (dataclasses.replace(ROW, size=0),))
    assert read_broken(tmp_path) == RECORD


def test_a_line_that_a_kill_has_torn_is_passed_over(tmp_path: Path):
    write_broken(tmp_path, RECORD)
    with (tmp_path / "broken.jsonl").open("a") as file:
        file.write('{"row": 5, "ima')
    assert read_broken(tmp_path) == RECORD


@pytest.mark.parametrize("content", ["", "nonsense\n", '{"row": 5}\n', '{"table": "a", "num_rows": 2}\n{"row": 1}\n'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str):
    (tmp_path / "broken.jsonl").write_text(content)
    with pytest.raises(InvalidInput, match=r"broken\.jsonl is damaged; restore it"):
        read_broken(tmp_path)


def test_one_and_several_are_summed_up_in_words():
    assert RECORD.summary() == "1 of 1,000 pairs is broken; another stands in for it"
    several = dataclasses.replace(RECORD, rows=(ROW,) * 1200)
    assert several.summary() == "1,200 of 1,000 pairs are broken; others stand in for them"


def test_a_home_knows_the_records_of_a_sweep_and_of_all_victims_of_a_name(tmp_path: Path):
    assert recorded_in(tmp_path, "sweeps/a") == recorded_in(tmp_path, "victims/a") == []
    write_broken(tmp_path / "sweeps" / "a", RECORD)
    for number, name in enumerate(("a-0000000000000002", "a-0000000000000001", "a-b-0000000000000001")):
        write_broken(tmp_path / "victims" / name, dataclasses.replace(RECORD, num_rows=number))
    assert recorded_in(tmp_path, "sweeps/a") == [RECORD]
    found = recorded_in(tmp_path, "victims/a")
    assert found is not None
    assert [record.num_rows for record in found] == [1, 0]


@pytest.mark.parametrize(("owner", "file"), [("sweeps/a", "a/sweep.json"), ("victims/a", f"a-{'0' * 16}/victim.json")])
def test_what_an_older_version_has_begun_has_no_record(tmp_path: Path, owner: str, file: str):
    path = tmp_path / owner.split("/")[0] / file
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert recorded_in(tmp_path, owner) is None
    write_broken(path.parent, RECORD)
    assert recorded_in(tmp_path, owner) == [RECORD]
