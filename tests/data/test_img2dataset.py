"""Files as img2dataset's `FilesSampleWriter` writes them (img2dataset/writer.py)."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeplab.data.img2dataset import Img2Dataset
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput

Row = tuple[str, str, str | None]
"""Key, status, caption."""


def write_shard(folder: Path, name: str, rows: list[Row], *, suffix: str = ".jpg", save_caption: bool = True) -> None:
    """A shard; captions are saved where `caption_col` was given."""
    (folder / name).mkdir(parents=True)
    held: dict[str, list[str | None]] = {"key": [], "status": [], "error_message": []}
    if save_caption:
        held["caption"] = []
    for key, status, caption in rows:
        facts = {"key": key, "status": status, "error_message": None, "caption": caption}
        for column in held:
            held[column].append(facts[column])
        if status == "success":
            (folder / name / f"{key}{suffix}").write_bytes(b"x")
            (folder / name / f"{key}.json").write_text(json.dumps({column: facts[column] for column in held}))
            if save_caption:
                (folder / name / f"{key}.txt").write_text(caption or "")
    types = {column: pa.array(values, pa.string()) for column, values in held.items()}
    pq.write_table(pa.table(types), folder / f"{name}.parquet")
    (folder / f"{name}_stats.json").write_text("{}")


def rows(table: PairTable) -> list[tuple[str, str]]:
    return [(table.images[row].as_py(), table.caption(row)) for row in range(len(table))]


GOOD: list[Row] = [
    ("000000002", "success", "two"),
    ("000000000", "success", "zero"),
    ("000000001", "failed_to_download", "one"),
]


def test_pairs_come_in_the_order_of_shards_and_keys(tmp_path: Path):
    write_shard(tmp_path, "00001", [("000010000", "success", "ten")], suffix=".webp")
    write_shard(tmp_path, "00000", GOOD)
    (tmp_path / "_tmp").mkdir()
    found = [("00000/000000000.jpg", "zero"), ("00000/000000002.jpg", "two"), ("00001/000010000.webp", "ten")]
    assert rows(Img2Dataset(path=tmp_path).read(tmp_path)) == found


def test_what_is_left_out_is_counted_in_notes(tmp_path: Path):
    others: list[Row] = [("5", "failed_to_resize", "x"), ("6", "failed_to_download", "x"), ("7", "success", None)]
    write_shard(tmp_path, "00000", [*GOOD, *others])
    failed, blank = Img2Dataset(path=tmp_path).read(tmp_path).notes
    assert failed.startswith("3 of the 6 rows of ")
    assert failed.endswith("were not downloaded and are left out (failed_to_download 2, failed_to_resize 1)")
    assert blank.startswith("1 of the 6 rows of ")
    assert blank.endswith("have no caption and are left out")


def test_where_all_is_there_nothing_is_noted(tmp_path: Path):
    write_shard(tmp_path, "00000", GOOD[:2])
    assert Img2Dataset(path=tmp_path).read(tmp_path).notes == ()


@pytest.mark.parametrize("kept", [".txt", ".json"])
def test_without_the_table_of_statuses_files_tell(tmp_path: Path, kept: str):
    write_shard(tmp_path, "00000", GOOD)
    (tmp_path / "00000.parquet").unlink()
    for path in (tmp_path / "00000").iterdir():
        if path.suffix not in (".jpg", kept):
            path.unlink()
    data = Img2Dataset(path=tmp_path)
    assert rows(data.read(tmp_path)) == [("00000/000000000.jpg", "zero"), ("00000/000000002.jpg", "two")]
    assert len(data.files()) == 4


def test_an_image_that_is_gone_is_missing(tmp_path: Path):
    write_shard(tmp_path, "00000", GOOD)
    (tmp_path / "00000" / "000000002.jpg").unlink()
    with pytest.raises(InvalidInput, match=r"1 of 2 pairs .*\n  row 2: .*00000/000000002\.jpg is missing or empty"):
        Img2Dataset(path=tmp_path).read(tmp_path)


def test_a_shard_of_an_interrupted_download_is_named(tmp_path: Path):
    write_shard(tmp_path, "00000", GOOD)
    (tmp_path / "00000.parquet").write_bytes((tmp_path / "00000.parquet").read_bytes()[:50])
    with pytest.raises(InvalidInput, match=r"00000\.parquet is not readable as Parquet .*run img2dataset again"):
        Img2Dataset(path=tmp_path).read(tmp_path)


def test_pairs_without_captions_are_refused_with_the_option_that_takes_them(tmp_path: Path):
    write_shard(tmp_path, "00000", GOOD, save_caption=False)
    with pytest.raises(InvalidInput, match=r"holds no image with a caption: 1 of the 3 rows .* with caption_col"):
        Img2Dataset(path=tmp_path).read(tmp_path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("00000.tar", r"holds tar shards, img2dataset's layout `webdataset`; use PairsShards"),
        ("train/1.jpg", r"holds no folder of a shard \(00000\); give the output of img2dataset"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, made: str, message: str):
    (tmp_path / made).parent.mkdir(exist_ok=True)
    (tmp_path / made).write_bytes(b"x")
    with pytest.raises(InvalidInput, match=message):
        Img2Dataset(path=tmp_path).read(tmp_path)


def test_keys_that_lead_out_of_the_shard_are_refused(tmp_path: Path):
    write_shard(tmp_path, "00000", GOOD)
    table = {"key": ["../../secret"], "status": ["success"], "caption": ["a"]}
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    with pytest.raises(InvalidInput, match=r"'\.\./\.\./secret', which is not inside the folder of the images"):
        Img2Dataset(path=tmp_path).read(tmp_path)


@pytest.mark.parametrize("columns", [{"key": [1], "status": ["success"]}, {"url": ["http://x"]}])
def test_a_table_of_other_columns_is_refused(tmp_path: Path, columns: dict):
    write_shard(tmp_path, "00000", GOOD)
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    with pytest.raises(InvalidInput, match=r"has no texts `key`, `status` and `caption`"):
        Img2Dataset(path=tmp_path).read(tmp_path)


def test_a_caption_that_is_not_text_is_named(tmp_path: Path):
    write_shard(tmp_path, "00000", GOOD)
    os.unlink(tmp_path / "00000.parquet")
    (tmp_path / "00000" / "000000000.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidInput, match=r"the caption of .*000000000 cannot be read"):
        Img2Dataset(path=tmp_path).read(tmp_path)
