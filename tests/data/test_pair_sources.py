"""What all sources of pairs have in common, over `PAIR_SOURCES`: a new member is covered once its layout is written."""

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from sweeplab.cli.running import WHAT_BELONGS
from sweeplab.data import PAIR_SOURCES
from sweeplab.data.fruit_stall import FruitStall, FruitStallTest
from sweeplab.data.img2dataset import Img2Dataset
from sweeplab.data.karpathy import KarpathyJSON
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.pairs_parquet import PairsParquet
from sweeplab.data.pairs_shards import PairsShards
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import PairTable
from sweeplab.data.tar_members import content_at
from sweeplab.data.training_pairs import TrainingPairs
from sweeplab.specs import InvalidInput, Spec
from sweeplab.worker.input_paths import files_of, input_paths_of

CAPTIONS = [
    f'a {colour}, ripe fruit of "{number}" kinds' for number, colour in enumerate(("red", "blue", "old", "new"))
]
HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(number: int) -> bytes:
    """A PNG whose size in pixels tells which one it is."""
    content = io.BytesIO()
    Image.fromarray(np.full((40, 32 + number, 3), 50 * number, np.uint8)).save(content, "png")
    return content.getvalue()


def write_pictures(folder: Path) -> list[str]:
    """Files 0.png ... 3.png in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(CAPTIONS)):
        (folder / f"{number}.png").write_bytes(picture(number))
    return [f"{number}.png" for number in range(len(CAPTIONS))]


def write_csv(folder: Path) -> PairsCSV:
    rows = zip(write_pictures(folder), CAPTIONS, strict=True)
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return PairsCSV(path=folder / "pairs.csv")


def write_tsv(folder: Path) -> PairsCSV:
    """Without a header, images in a folder of their own."""
    names = write_pictures(folder / "images")
    lines = [f"{caption}\t{name}\n" for name, caption in zip(names, CAPTIONS, strict=True)]
    (folder / "train.tsv").write_text("".join(lines))
    return PairsCSV(path=folder / "train.tsv", columns=("caption", "image"), root=folder / "images")


def write_parquet(folder: Path) -> PairsParquet:
    """Absolute paths, in two files."""
    names = [str(folder / "far" / name) for name in write_pictures(folder / "far")]
    table = pa.table({"image": names, "caption": CAPTIONS})
    (folder / "tables").mkdir()
    for number, part in enumerate((table.slice(0, 3), table.slice(3))):
        pq.write_table(part, folder / "tables" / f"train-{number:05d}-of-00002.parquet")
    return PairsParquet(path=folder / "tables")


def write_bytes(folder: Path) -> PairsParquet:
    """As Hugging Face's `datasets` writes images."""
    folder.mkdir(parents=True)
    held = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(len(CAPTIONS))]
    table = pa.table({"image": pa.array(held, HUGGING_FACE), "caption": CAPTIONS})
    pq.write_table(table, folder / "train.parquet", row_group_size=3)
    return PairsParquet(path=folder / "train.parquet")


def write_karpathy(folder: Path) -> KarpathyJSON:
    """As dataset_coco.json; an image of another split stands between."""
    names = write_pictures(folder / "images" / "train2014")
    images = [
        {"filepath": "train2014", "filename": name, "split": "train", "sentences": [{"raw": caption, "tokens": []}]}
        for name, caption in zip(names, CAPTIONS, strict=True)
    ]
    images.insert(2, {"filepath": "val2014", "filename": "9.png", "split": "val", "sentences": [{"raw": "another"}]})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return KarpathyJSON(path=folder / "dataset_coco.json", root=folder / "images")


def write_img2dataset(folder: Path) -> Img2Dataset:
    """Two shards, whose rows came in any order, one of which failed."""
    rows = [("000000001", 1), ("000000000", 0), ("000000002", None)], [("000010001", 3), ("000010000", 2)]
    for name, shard in zip(("00000", "00001"), rows, strict=True):
        (folder / name).mkdir(parents=True)
        for key, number in shard:
            if number is not None:
                (folder / name / f"{key}.png").write_bytes(picture(number))
                (folder / name / f"{key}.txt").write_text(CAPTIONS[number])
                (folder / name / f"{key}.json").write_text(json.dumps({"caption": CAPTIONS[number], "key": key}))
        statuses = ["failed_to_download" if number is None else "success" for _, number in shard]
        texts = ["gone" if number is None else CAPTIONS[number] for _, number in shard]
        table = {"key": [key for key, _ in shard], "status": statuses, "caption": texts, "url": ["x"] * len(shard)}
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
        (folder / f"{name}_stats.json").write_text("{}")
    return Img2Dataset(path=folder)


def write_tar(file: Path, members: list[tuple[str, bytes]]) -> None:
    """As webdataset's TarWriter does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_shards(folder: Path) -> PairsShards:
    """Two tars as img2dataset writes them, a failed download in the first."""
    for name, numbers in (("00000", (0, 1)), ("00001", (2, 3))):
        members = []
        for number in numbers:
            key = f"{name}{number:04d}"
            members.append((f"{key}.json", json.dumps({"caption": CAPTIONS[number], "key": key}).encode()))
            members.append((f"{key}.png", picture(number)))
            members.append((f"{key}.txt", CAPTIONS[number].encode()))
        write_tar(folder / f"{name}.tar", members)
        (folder / f"{name}_stats.json").write_text(json.dumps({"failed_to_download": 1 - int(name)}))
    return PairsShards(path=folder)


def write_pattern(folder: Path) -> PairsShards:
    write_shards(folder / "deep")
    return PairsShards(path=folder / "deep" / "{00000..00001}.tar")


def of_stall(folder: Path) -> FruitStall:
    return FruitStall(num_pairs=4, image_size=32)


def of_labelled(folder: Path) -> LabelledPairs:
    return LabelledPairs(images=FruitStallTest(num_images=16, image_size=32))


WRITERS: dict[type[Spec], tuple[Callable[[Path], Spec], ...]] = {
    PairsCSV: (write_csv, write_tsv),
    PairsParquet: (write_parquet, write_bytes),
    KarpathyJSON: (write_karpathy,),
    Img2Dataset: (write_img2dataset,),
    PairsShards: (write_shards, write_pattern),
    FruitStall: (of_stall,),
    LabelledPairs: (of_labelled,),
}
ALL = [pytest.param(writer, id=writer.__name__) for source in PAIR_SOURCES for writer in WRITERS[source]]
OF_FILES = [
    pytest.param(writer, id=writer.__name__)
    for source in PAIR_SOURCES
    for writer in WRITERS[source]
    if "path" in source.model_fields
]
Write = Callable[[Path], Spec]


def captions(table: PairTable) -> list[str]:
    return [table.caption(row) for row in range(len(table))]


def pictures(table: PairTable) -> list[bytes]:
    return [content_at(table.image(row)) for row in range(len(table))]


@pytest.mark.parametrize("write", OF_FILES)
def test_rows_come_back_as_they_were_written(write: Write, tmp_path: Path):
    table = write(tmp_path / "data").read(tmp_path / "home")
    assert captions(table) == CAPTIONS
    assert pictures(table) == [picture(number) for number in range(len(CAPTIONS))]


@pytest.mark.parametrize("write", OF_FILES)
def test_the_same_rows_give_the_same_batches_in_every_layout(
    write: Write, tmp_path: Path, tokenize: Callable[[list[str]], Tensor]
):
    """Against a CSV file."""
    batches = []
    for source in (write_csv(tmp_path / "csv"), write(tmp_path / "other")):
        pairs = TrainingPairs(source.read(tmp_path / "home"), 32, tokenize=tokenize, seed=0)
        batches.append(pairs.__getitems__([(1, row) for row in (2, 0, 3, 1)]))
    assert torch.equal(batches[0].images, batches[1].images)
    assert torch.equal(batches[0].tokens, batches[1].tokens)


@pytest.mark.parametrize("write", ALL)
def test_a_sample_is_a_part_of_the_rows_in_their_order(write: Write, tmp_path: Path):
    source = write(tmp_path / "data")
    part = source.replace(sample=Sample(num=3))
    whole, table = source.read(tmp_path / "home"), part.read(tmp_path / "home")
    rows = [pictures(whole).index(content) for content in pictures(table)]
    assert len(rows) == 3
    assert rows == sorted(rows)
    assert table.digest == whole.subset(rows).digest
    assert part.digest() != source.digest()
    with pytest.raises(InvalidInput, match=r"sample\.num=5000 "):
        source.replace(sample=Sample(num=5000)).read(tmp_path / "home")


@pytest.mark.parametrize("write", ALL)
def test_a_source_survives_json(write: Write, tmp_path: Path):
    source = write(tmp_path / "data").replace(sample=Sample(num=2, seed=7))
    again = type(source).model_validate(json.loads(json.dumps(source.to_json())))
    assert again == source
    assert again.digest() == source.digest()


@pytest.mark.parametrize("write", OF_FILES)
def test_the_first_rows_alone_are_read_where_that_is_asked_for(write: Write, tmp_path: Path):
    source = write(tmp_path / "data")
    assert captions(source.replace(num_pairs=3).read(tmp_path / "home")) == CAPTIONS[:3]
    with pytest.raises(InvalidInput, match=r"num_pairs=5 exceeds the 4 rows of .* choose num_pairs <= 4"):
        source.replace(num_pairs=5).read(tmp_path / "home")


@pytest.mark.parametrize("write", OF_FILES)
@pytest.mark.parametrize("sample", [None, Sample(num=2)])
def test_what_files_names_is_enough_to_read_the_same_elsewhere(write: Write, sample: Sample | None, tmp_path: Path):
    source = write(tmp_path / "data").replace(sample=sample)
    here = source.read(tmp_path / "home").digest
    files = list(files_of(source))
    assert source.example() in files
    assert len(set(files)) == len(files)
    for file in files:
        copy = tmp_path / "copy" / file[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    found = input_paths_of([source])
    assert found.on_this_node(source, lambda: pytest.fail("nothing is lacking here")) == source
    shutil.rmtree(tmp_path / "data")
    moved = found.on_this_node(source, lambda: tmp_path / "copy")
    assert moved.read(tmp_path / "other").digest == here
    assert moved.canonical() == source.canonical()
    assert moved.digest() == source.digest()
    assert os.path.exists(moved.example())


@pytest.mark.parametrize("write", OF_FILES)
def test_the_digest_depends_on_the_content_and_not_on_the_place(write: Write, tmp_path: Path):
    first, second = write(tmp_path / "a"), write(tmp_path / "deeper" / "b")
    assert first.read(tmp_path / "home").digest == second.read(tmp_path / "home").digest
    assert first.replace(num_pairs=3).read(tmp_path / "home").digest != first.read(tmp_path / "home").digest


@pytest.mark.parametrize("write", OF_FILES)
def test_a_place_where_nothing_is_is_refused_with_what_belongs_there(write: Write, tmp_path: Path):
    source = write(tmp_path / "data").replace(path=tmp_path / "nowhere")
    for act in (lambda: source.read(tmp_path), source.files, source.example):
        with pytest.raises(InvalidInput, match=r"path=.*nowhere is .*; give "):
            act()
    assert source.kind in WHAT_BELONGS


PACKED = (write_bytes, write_shards, write_pattern)
"""Images that are no files of the user's."""


@pytest.mark.parametrize("write", [writer for writer in OF_FILES if writer.values[0] not in PACKED])
def test_a_missing_image_is_named_with_its_row(write: Write, tmp_path: Path):
    source = write(tmp_path / "data")
    Path(str(source.read(tmp_path).image(2))).unlink()
    with pytest.raises(InvalidInput, match=r"1 of 4 pairs are broken.*\n  row 3: .* is missing or empty"):
        source.read(tmp_path)
