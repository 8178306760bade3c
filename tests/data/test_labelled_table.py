import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from sweeplab.clip_model import imagenet_class_names
from sweeplab.data import labelled_table
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.images import load_all
from sweeplab.data.labelled_sources import source_at
from sweeplab.data.labelled_table import LabelledTable
from sweeplab.data.tables import LabelledImages
from sweeplab.specs import InvalidInput

LABELS = ["pear", "banana", "hot dog", "banana"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images in class folders."""
    for number, name in enumerate(LABELS):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 10), (60 * number, 0, 9)).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


def rows(folder: Path) -> pd.DataFrame:
    images = [f"{name}/{number}.png" for number, name in enumerate(LABELS)]
    return pd.DataFrame({"image": images, "label": LABELS, "note": ["a,b", "", "c", 'd"e']})


def as_csv(folder: Path) -> Path:
    rows(folder).to_csv(folder / "test.csv", index=False)
    return folder / "test.csv"


def as_tsv(folder: Path) -> Path:
    rows(folder).to_csv(folder / "test.tsv", index=False, sep="\t")
    return folder / "test.tsv"


def as_parquet(folder: Path) -> Path:
    rows(folder).to_parquet(folder / "test.parquet", index=False)
    return folder / "test.parquet"


def as_hugging_face_writes(folder: Path, *, names: bool = True, bare: bool = False) -> Path:
    """Bytes and paths in one column, numbers in the other, and their names in the schema's metadata."""
    table = rows(folder)
    contents = [(folder / image).read_bytes() for image in table["image"]]
    classes = sorted(set(LABELS))
    held = contents if bare else [{"bytes": content, "path": "x.png"} for content in contents]
    columns = pa.table({"image": pa.array(held), "label": pa.array(map(classes.index, LABELS), pa.int64())})
    features = {"label": {"names": classes, "_type": "ClassLabel"}} if names else {}
    columns = columns.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(columns, folder / "test-00000-of-00001.parquet")
    return folder / "test-00000-of-00001.parquet"


def content(images: LabelledImages) -> list[tuple[str, int]]:
    """Name and colour of every row."""
    pixels = load_all(images, 8)
    return [(images.class_names[label], int(pixels[row, 0].max())) for row, label in enumerate(images.labels)]


@pytest.mark.parametrize("write", [as_csv, as_tsv, as_parquet, as_hugging_face_writes])
def test_rows_come_back_as_they_were_written(write, folder: Path, tmp_path: Path):
    images = LabelledTable(path=write(folder)).read(tmp_path / "home")
    assert images.class_names == ("banana", "hot dog", "pear")
    assert content(images) == [("pear", 0), ("banana", 60), ("hot dog", 120), ("banana", 180)]


@pytest.mark.parametrize("write", [as_csv, as_tsv, as_parquet, as_hugging_face_writes])
def test_a_table_gives_the_pixels_and_labels_of_the_class_folders(write, folder: Path, tmp_path: Path):
    folders = ClassFolders(path=folder).read(tmp_path)
    table = LabelledTable(path=write(folder)).read(tmp_path / "home")
    order = np.argsort(table.labels, kind="stable")
    assert table.class_names == folders.class_names
    assert table.labels[order].tolist() == folders.labels.tolist()
    assert load_all(table, 8)[order].equal(load_all(folders, 8))


def test_the_three_tables_of_paths_have_one_digest(folder: Path, tmp_path: Path):
    assert len({LabelledTable(path=write(folder)).read(tmp_path).digest for write in (as_csv, as_tsv, as_parquet)}) == 1


@pytest.mark.parametrize("absolute", [False, True])
def test_the_digest_does_not_depend_on_the_place(absolute: bool, folder: Path, tmp_path: Path):
    table = rows(folder)
    before = LabelledTable(path=as_csv(folder)).read(tmp_path).digest
    shutil.move(folder, tmp_path / "moved")
    if absolute:
        table["image"] = [f"{tmp_path}/moved/{image}" for image in table["image"]]
    table.to_csv(tmp_path / "elsewhere.csv", index=False)
    moved = LabelledTable(path=tmp_path / "elsewhere.csv", root=tmp_path / "moved")
    assert moved.read(tmp_path).digest == before
    assert moved.digest() == LabelledTable(path=folder / "test.csv").digest()


def test_absolute_paths_are_found_in_a_copy_below_another_root(folder: Path, tmp_path: Path):
    table = rows(folder)
    table["image"] = [str(folder / image) for image in table["image"]]
    table.to_csv(folder / "test.csv", index=False)
    spec = LabelledTable(path=folder / "test.csv", root=folder)
    here, copy = spec.read(tmp_path), tmp_path / "copy"
    for file in spec.files():
        (copy / file[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy / file[1:])
    shutil.rmtree(folder)
    there = spec.below(copy).read(tmp_path)
    assert there.digest == here.digest
    assert Image.open(there.image(3)).size == (8, 10)


def test_files_and_example(folder: Path, tmp_path: Path):
    paths, packed = LabelledTable(path=as_csv(folder)), LabelledTable(path=as_hugging_face_writes(folder))
    assert paths.files() == [str(folder / "test.csv"), *(str(folder / image) for image in rows(folder)["image"])]
    assert paths.example() == str(folder / "pear" / "0.png")
    assert packed.files() == [packed.example()] == [str(packed.path)]


def test_bytes_are_written_once_and_named_by_content(folder: Path, tmp_path: Path):
    spec, home = LabelledTable(path=as_hugging_face_writes(folder)), tmp_path / "home"
    first = spec.read(home)
    (made,) = home.glob("table-images-*")
    stamps = {file: file.stat().st_mtime_ns for file in made.rglob("*")}
    again = spec.read(home)
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*")} == stamps
    assert again.digest == first.digest
    # Read elsewhere, the digest is the same; with other pixels of the same size it is another.
    assert spec.read(tmp_path / "other home").digest == first.digest
    Image.new("RGB", (8, 10), (61, 0, 9)).save(folder / "banana" / "1.png")
    assert LabelledTable(path=as_hugging_face_writes(folder)).read(home).digest != first.digest


def test_a_folder_of_the_home_that_was_touched_is_named(folder: Path, tmp_path: Path):
    spec = LabelledTable(path=as_hugging_face_writes(folder))
    Path(spec.read(tmp_path / "home").image(1)).write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"table-images-\w+ is damaged .*remove this folder, and it is made again"):
        spec.read(tmp_path / "home")


def test_shards_of_one_table_lie_in_one_folder(folder: Path, tmp_path: Path):
    file = as_hugging_face_writes(folder)
    (tmp_path / "data").mkdir()
    for number in range(2):
        shutil.copy(file, tmp_path / "data" / f"test-0000{number}-of-00002.parquet")
    images = source_at(tmp_path / "data").read(tmp_path / "home")
    assert images.labels.tolist() == [2, 0, 1, 0, 2, 0, 1, 0]
    shutil.copy(file, tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(InvalidInput, match=r"several tables \(test, train\)"):
        source_at(tmp_path / "data").read(tmp_path / "home")


def test_numbers_take_their_names_from_class_names(folder: Path, tmp_path: Path):
    table = rows(folder)
    table["label"] = [3, 0, 2, 0]
    table.to_csv(folder / "test.csv", index=False)
    names = ("banana", "kiwi", "hot dog", "pear")
    images = LabelledTable(path=folder / "test.csv", class_names=names).read(tmp_path)
    assert images.class_names == names
    assert [images.class_names[label] for label in images.labels] == LABELS


def test_names_may_be_given_in_an_order_of_ones_own(folder: Path, tmp_path: Path):
    names = ("pear", "kiwi", "hot dog", "banana")
    images = LabelledTable(path=as_csv(folder), class_names=names).read(tmp_path)
    assert images.labels.tolist() == [0, 3, 2, 3]
    (note,) = images.notes
    assert "1 of the 4 classes of" in note
    assert "have no image (kiwi)" in note


@pytest.mark.parametrize("labels", [["n02123045", "n01440764", "n02123045", "n01440764"], [281, 0, 281, 0]])
def test_imagenets_ids_and_numbers_are_its_thousand_classes(labels: list, folder: Path, tmp_path: Path):
    rows(folder).assign(label=labels).to_csv(folder / "test.csv", index=False)
    images = LabelledTable(path=folder / "test.csv", class_names="imagenet").read(tmp_path)
    assert images.class_names == imagenet_class_names()
    assert images.labels.tolist() == [281, 0, 281, 0]


def test_ids_become_names_without_a_word(folder: Path, tmp_path: Path):
    rows(folder).assign(label=["n02123045", "n01440764"] * 2).to_csv(folder / "test.csv", index=False)
    assert LabelledTable(path=folder / "test.csv").read(tmp_path).class_names == ("tench", "tabby cat")


def edited(change):
    def write(folder: Path) -> Path:
        table = rows(folder)
        change(table)
        table.to_csv(folder / "test.csv", index=False)
        return folder / "test.csv"

    return write


def outside(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder.parent / "secret.png")
    return edited(lambda table: table.__setitem__("image", ["../secret.png"] * 4))(folder)


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (edited(lambda t: t.pop("label")), "has no column 'label'; columns found: 'image', 'note'"),
        (
            edited(lambda t: t.__setitem__("label", ["a", "", "b", "b"])),
            "1 of 4 rows have no 'label', the first is row 2",
        ),
        (edited(lambda t: t.__setitem__("label", [0, 1, 2, 1])), r"numbers \(0, 1, 2\), .* give class_names"),
        (edited(lambda t: t.__setitem__("label", ["n00000000"] * 4)), "WordNet id 'n00000000'"),
        (
            edited(lambda t: t.__setitem__("image", ["x.png", "pear/0.png"] * 2)),
            r"2 of 4 images are broken, .*\n  row 1: .*x\.png is missing or empty\n  row 3: ",
        ),
        (edited(lambda t: t.__setitem__("image", ["", "pear/0.png"] * 2)), "row 1 has no 'image'"),
        (outside, r"row 1: image \.\./secret\.png lies outside of root="),
        (lambda folder: as_hugging_face_writes(folder, names=False, bare=True), "are numbers"),
        (lambda folder: folder / "none.csv", "does not exist"),
        (lambda folder: folder / "pear", "holds no Parquet file"),
        (lambda folder: folder / "pear" / "0.png", "is no table; known: .csv, .tsv, .parquet"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(write, match: str, folder: Path, tmp_path: Path):
    with pytest.raises(InvalidInput, match=match):
        LabelledTable(path=write(folder)).read(tmp_path / "home")


@pytest.mark.parametrize("name", ["test.csv", "test.parquet"])
def test_damaged_files_are_refused(name: str, folder: Path, tmp_path: Path):
    (folder / name).write_bytes(b"image,label\n\xff\xfe,b\n,\x00")
    with pytest.raises(InvalidInput, match=rf"path=.*{name} cannot be read as"):
        LabelledTable(path=folder / name).read(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_quote_that_swallows_rows_is_refused(suffix: str, folder: Path, tmp_path: Path):
    mark = {".csv": ",", ".tsv": "\t"}[suffix]
    rows = [("image", "label"), ("pear/0.png", '"pear'), ("banana/1.png", 'banana"')]
    (folder / f"test{suffix}").write_text("".join(f"{image}{mark}{label}\n" for image, label in rows))
    with pytest.raises(InvalidInput, match="a quote there is not closed"):
        LabelledTable(path=folder / f"test{suffix}").read(tmp_path)


def test_labels_beside_the_class_names_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"1 labels in 'label' are none of the 2 classes \(pear\)"):
        LabelledTable(path=as_csv(folder), class_names=("banana", "hot dog")).read(tmp_path)
    with pytest.raises(InvalidInput, match=r"1 of 4 labels are outside of 0 \.\.\. 1, .* the first is 2 in row 1"):
        LabelledTable(path=as_hugging_face_writes(folder), class_names=("a", "b")).read(tmp_path / "home")


def test_a_row_without_bytes_is_refused_and_leaves_nothing(folder: Path, tmp_path: Path):
    table = pa.table({"image": pa.array([b"x", None]), "label": ["a", "b"]})
    pyarrow.parquet.write_table(table, folder / "bad.parquet")
    with pytest.raises(InvalidInput, match="row 2 holds no bytes of an image"):
        LabelledTable(path=folder / "bad.parquet").read(tmp_path / "home")
    assert list((tmp_path / "home").glob("*table-images-*[!k]")) == []


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([b"x"] * 5, ["a", "a", "a", None, None], "2 of 5 rows have no 'label', the first is row 4"),
        ([b"x", b"x", b"x", None, b"x"], ["a"] * 5, "row 4 holds no bytes of an image"),
    ],
)
def test_rows_count_within_their_file(
    images: list[Any], labels: list[Any], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second of two files, read three rows at a time."""
    monkeypatch.setattr(labelled_table, "BATCH_ROWS", 3)
    (folder / "parts").mkdir()
    for number, (held, told) in enumerate([([b"x"] * 4, ["a"] * 4), (images, labels)]):
        table = pa.table({"image": pa.array(held, pa.binary()), "label": pa.array(told, pa.string())})
        pyarrow.parquet.write_table(table, folder / "parts" / f"{number}.parquet")
    with pytest.raises(InvalidInput, match=f"1.parquet: {message}"):
        LabelledTable(path=folder / "parts").read(tmp_path / "home")


def test_a_path_of_a_table_is_told_from_its_suffix(folder: Path):
    assert source_at(as_csv(folder)) == LabelledTable(path=folder / "test.csv")
    assert source_at(folder / "test.csv", ("a", "b")).class_names == ("a", "b")
    assert source_at(folder) == ClassFolders(path=folder)


def test_lines_inside_a_cell_that_are_no_rows_are_taken(folder: Path):
    """A comment of two lines beside the label is no sign of a quote that is not closed."""
    frame = rows(folder).assign(comment="nice,\nsoft, furry")
    frame.to_csv(folder / "commented.csv", index=False)
    source = LabelledTable(path=folder / "commented.csv")
    assert len(source.read(folder)) == len(frame)


def test_a_second_file_that_holds_images_otherwise_is_named(folder: Path):
    parts = folder / "parts"
    parts.mkdir()
    as_parquet(folder).rename(parts / "a.parquet")
    names = rows(folder)["image"].tolist()
    contents = pa.array([(folder / name).read_bytes() for name in names], pa.binary())
    labels = pa.array(rows(folder)["label"].astype(str).tolist())
    pyarrow.parquet.write_table(pa.table({"image": contents, "label": labels}), parts / "b.parquet")
    with pytest.raises(InvalidInput, match=r"b\.parquet holds its images otherwise than .*a\.parquet"):
        LabelledTable(path=parts, root=folder).read(folder)
