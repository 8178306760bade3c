import io
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sweeplab.data import pictures
from sweeplab.data.img2dataset import Img2Dataset
from sweeplab.data.pairs_parquet import PairsParquet
from sweeplab.specs import InvalidInput

HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(number: int, kind: str = "png") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 9 + number), (number, 0, 0)).save(content, kind)
    return content.getvalue()


def write(path: Path, images: pa.Array, **columns: object) -> PairsParquet:
    """A file with these images, and captions unless they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"image": images, "caption": [f"caption {n}" for n in range(len(images))], **columns}), path
    )
    return PairsParquet(path=path)


def held(contents: list[bytes | None]) -> pa.Array:
    return pa.array([{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(contents)], HUGGING_FACE)


def names(home: Path) -> list[str]:
    """Suffixes of the unpacked images."""
    return sorted(path.suffix for path in (home / "pictures").glob("??/*"))


@pytest.mark.parametrize("kind", [HUGGING_FACE, pa.binary(), pa.large_binary()], ids=["struct", "binary", "large"])
def test_bytes_become_files_of_their_format(tmp_path: Path, kind: pa.DataType):
    contents = [encoded(n, form) for n, form in enumerate(("png", "jpeg", "webp", "gif", "bmp", "tiff"))]
    images = held(contents) if kind == HUGGING_FACE else pa.array(contents, kind)
    table = write(tmp_path / "a.parquet", images).read(tmp_path)
    assert [Path(table.image(row)).read_bytes() for row in range(6)] == contents
    assert names(tmp_path) == ["", ".bmp", ".gif", ".jpg", ".png", ".webp"]


def test_an_image_that_is_there_twice_is_kept_once(tmp_path: Path):
    table = write(tmp_path / "a.parquet", held([encoded(1), encoded(2), encoded(1)])).read(tmp_path)
    assert table.image(0) == table.image(2)
    assert len(names(tmp_path)) == 2


def test_rows_that_are_not_used_are_not_unpacked(tmp_path: Path):
    data = write(tmp_path / "a.parquet", held([encoded(n) for n in range(600)]))
    table = data.replace(sample={"num": 5}).read(tmp_path)
    assert len(names(tmp_path)) == 5
    assert table.digest == data.read(tmp_path).subset([int(table.caption(n).split()[1]) for n in range(5)]).digest


def test_images_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = write(tmp_path / "a.parquet", held([encoded(1), encoded(2)]))
    first = data.read(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(pictures.Pictures, "_write", lambda self, content: pytest.fail("unpacked again"))
        assert data.read(tmp_path).digest == first.digest
    Path(first.image(1)).write_bytes(b"cut short")
    assert data.read(tmp_path).digest == first.digest
    assert Path(first.image(1)).read_bytes() == encoded(2)


def test_a_file_that_was_written_anew_is_unpacked_anew(tmp_path: Path):
    data = write(tmp_path / "a.parquet", held([encoded(1)]))
    first = data.read(tmp_path)
    write(tmp_path / "a.parquet", held([encoded(3)]))
    os.utime(tmp_path / "a.parquet", (time.time() + 5, time.time() + 5))
    assert Path(data.read(tmp_path).image(0)).read_bytes() == encoded(3)
    assert data.read(tmp_path).digest != first.digest


def test_structs_without_bytes_name_files(tmp_path: Path):
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(encoded(n))
    table = write(tmp_path / "a.parquet", held([None, None])).read(tmp_path)
    assert table.image(1) == str(tmp_path / "1.png")


def test_rows_without_an_image_do_not_tell_how_images_are_held(tmp_path: Path):
    contents = [None] * 300 + [encoded(n) for n in range(3)]
    images = pa.array([None if c is None else {"bytes": c, "path": "gone.png"} for c in contents], HUGGING_FACE)
    table = write(tmp_path / "a.parquet", images).replace(max_broken=0.999).read(tmp_path)
    assert [Path(table.image(row)).read_bytes() for row in range(300, 303)] == contents[300:]
    assert [one.row for one in table.broken] == list(range(300))


def test_columns_may_have_other_names_and_types(tmp_path: Path):
    (tmp_path / "1.png").write_bytes(encoded(1))
    columns = {"file.name": pa.array(["1.png"]).dictionary_encode(), "file": pa.array([5]), "text": ["a fruit"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    table = PairsParquet(path=tmp_path / "a.parquet", image_column="file.name", caption_column="text").read(tmp_path)
    assert (table.image(0), table.caption(0)) == (str(tmp_path / "1.png"), "a fruit")


def test_a_row_without_bytes_is_named(tmp_path: Path):
    data = write(tmp_path / "a.parquet", held([encoded(1), None, b""]))
    with pytest.raises(InvalidInput, match=r"2 of 3 pairs are broken.*\n  row 2: it has no 'image'\n  row 3: "):
        data.read(tmp_path)


def test_a_null_caption_is_an_empty_one(tmp_path: Path):
    data = write(tmp_path / "a.parquet", held([encoded(1), encoded(2)]), caption=["a fruit", None])
    with pytest.raises(InvalidInput, match=r"1 of 2 pairs are broken.*\n  row 2: it has no 'caption'"):
        data.read(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"img": ["1.png"], "caption": ["a"]},
            r"has no column 'image'; columns found: 'img', 'caption'; set image_col",
        ),
        ({"image": ["1.png"], "caption": [["a", "b"]]}, r"column 'caption' holds list<.*>, not texts"),
        ({"image": [5], "caption": ["a"]}, r"column 'image' holds int64, neither paths nor bytes nor structs"),
        ({"image": [{"data": b"x"}], "caption": ["a"]}, r"column 'image' holds struct<.*>, neither paths"),
        ({"image": pa.array([], pa.string()), "caption": pa.array([], pa.string())}, r"has no rows"),
    ],
)
def test_columns_of_another_layout_are_refused(tmp_path: Path, columns: dict, message: str):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=message):
        PairsParquet(path=tmp_path / "a.parquet").read(tmp_path)


def test_files_of_different_types_are_refused(tmp_path: Path):
    write(tmp_path / "set" / "a.parquet", held([encoded(1)]))
    write(tmp_path / "set" / "b.parquet", pa.array(["1.png"]))
    with pytest.raises(InvalidInput, match=r"hold 'image' in different types \(struct, text\)"):
        PairsParquet(path=tmp_path / "set").read(tmp_path)


def test_texts_of_different_types_are_one_column(tmp_path: Path):
    """As files of one data set that several programs wrote."""
    (tmp_path / "1.png").write_bytes(encoded(1))
    types = (
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.string()),
    )
    for n, kind in enumerate(types):
        write(tmp_path / "set" / f"{n}.parquet", pa.array(["1.png"], kind), caption=pa.array([f"caption {n}"], kind))
    table = PairsParquet(path=tmp_path / "set", root=tmp_path).read(tmp_path)
    assert [table.caption(row) for row in range(len(table))] == ["caption 0", "caption 1", "caption 2", "caption 3"]


def test_texts_that_are_no_utf8_are_refused(tmp_path: Path):
    text = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\x04\0\0\0"), pa.py_buffer(b"caf\xe9"))
    data = write(tmp_path / "a.parquet", held([encoded(1)]), caption=text)
    with pytest.raises(InvalidInput, match=r"a\.parquet is not readable as Parquet \(.*UTF"):
        data.read(tmp_path)


def test_empty_captions_are_found_before_anything_is_unpacked(tmp_path: Path):
    data = write(tmp_path / "a.parquet", held([encoded(1), encoded(2)]), caption=["a", ""])
    with pytest.raises(InvalidInput, match=r"\n  row 2: it has no .caption."):
        data.read(tmp_path)
    assert names(tmp_path) == []


def test_a_damaged_file_is_named(tmp_path: Path):
    data = write(tmp_path / "a.parquet", held([encoded(1)]))
    data.path.write_bytes(data.path.read_bytes()[:-20])
    with pytest.raises(InvalidInput, match=r"a\.parquet is not readable as Parquet .*; write or copy it again"):
        data.read(tmp_path)


def test_a_folder_without_tables_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"holds no file '\*\.parquet'; give the folder that holds them, or pattern"):
        PairsParquet(path=tmp_path).read(tmp_path)


def test_a_pattern_chooses_a_split(tmp_path: Path):
    """As Hugging Face names the files of a data set with several splits."""
    for name in ("train-00001-of-00002", "train-00000-of-00002", "validation-00000-of-00001"):
        write(tmp_path / "data" / f"{name}.parquet", held([encoded(1)]), caption=[name])
    table = PairsParquet(path=tmp_path / "data", pattern="train-*.parquet").read(tmp_path)
    assert [table.caption(row) for row in range(len(table))] == ["train-00000-of-00002", "train-00001-of-00002"]


def test_a_home_that_cannot_hold_images_is_named(tmp_path: Path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(InvalidInput, match=r"data_home=.*home cannot hold images .*SWEEPLAB_HOME"):
        write(tmp_path / "a.parquet", held([encoded(1)])).read(tmp_path / "home")


def test_several_splits_in_one_folder_are_not_read_together(tmp_path: Path):
    for name in ("test-00000-of-00001", "train-00000-of-00001"):
        write(tmp_path / f"{name}.parquet", held([encoded(1)]), text=["an apple"])
    both = PairsParquet(path=tmp_path, caption_column="text")
    with pytest.raises(
        InvalidInput, match=r"Parquet files of several splits \(test, train\); give pattern, such as 'train-"
    ):
        both.files()
    assert [Path(file).name for file in both.replace(pattern="train-*.parquet").files()] == [
        "train-00000-of-00001.parquet"
    ]


def test_what_img2dataset_did_not_download_is_left_out(tmp_path: Path):
    """Its layout `parquet`: a failed download is a row with a caption and without an image."""
    statuses = ["success", "failed_to_download", "success", "failed_to_resize", "failed_to_download", "success"]
    contents = [encoded(n, "jpeg") if status == "success" else None for n, status in enumerate(statuses)]
    for shard in (0, 1):
        some = slice(3 * shard, 3 * shard + 3)
        columns = {
            "url": [f"https://example.org/{n}.jpg" for n in range(6)][some],
            "caption": [f"caption {n}" for n in range(6)][some],
            "key": [f"{n:09d}" for n in range(6)][some],
            "status": statuses[some],
            "jpg": pa.array(contents[some], pa.binary()),
        }
        pq.write_table(pa.table(columns), tmp_path / f"{shard:05d}.parquet")
    data = PairsParquet(path=tmp_path, image_column="jpg", max_broken=0.0)
    table = data.read(tmp_path / "home")
    assert [table.caption(row) for row in range(len(table))] == ["caption 0", "caption 2", "caption 5"]
    assert [Path(table.image(row)).read_bytes() for row in range(3)] == [contents[0], contents[2], contents[5]]
    assert table.notes == (
        f"3 of the 6 rows of {tmp_path} were not downloaded and are left out "
        "(failed_to_download 2, failed_to_resize 1)",
    )
    part = data.replace(sample={"num": 2}).read(tmp_path / "home")
    assert {(part.caption(row), Path(part.image(row)).read_bytes()) for row in range(2)} < {
        (table.caption(row), Path(table.image(row)).read_bytes()) for row in range(3)
    }
    with pytest.raises(InvalidInput, match=r"read by PairsParquet\(path=\.\.\., image_column='jpg'\)"):
        Img2Dataset(path=tmp_path).read(tmp_path / "home")
