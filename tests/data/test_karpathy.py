import json
from pathlib import Path
from typing import Any

import pytest

from sweeplab.data.karpathy import KarpathyJSON
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput


def image(name: str, split: str, *texts: str, **fields: Any) -> dict[str, Any]:
    """An image with its sentences, as in Karpathy's files."""
    sentences = [{"tokens": text.split(), "raw": text, "imgid": 0, "sentid": n} for n, text in enumerate(texts)]
    return {"sentids": [0], "imgid": 0, "sentences": sentences, "split": split, "filename": name, **fields}


def write(folder: Path, *images: Any) -> KarpathyJSON:
    for held in images:
        if isinstance(held, dict) and isinstance(held.get("filename"), str) and ".." not in held["filename"]:
            path = folder / str(held.get("filepath", "")) / held["filename"].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "made"}))
    return KarpathyJSON(path=folder / "dataset.json")


def rows(table: PairTable) -> list[tuple[str, str]]:
    return [(table.images[row].as_py(), table.caption(row)) for row in range(len(table))]


FLICKR = (image("1.jpg", "train", "one", "two"), image("2.jpg", "test", "three"), image("3.jpg", "train", "four"))
COCO = (
    image("a.jpg", "train", "one", filepath="train2014"),
    image("b.jpg", "restval", "two", "three", filepath="val2014"),
    image("c.jpg", "val", "four", filepath="val2014"),
)


def test_every_sentence_of_the_split_is_a_row(tmp_path: Path):
    data = write(tmp_path, *FLICKR)
    assert rows(data.read(tmp_path)) == [("1.jpg", "one"), ("1.jpg", "two"), ("3.jpg", "four")]
    assert data.files() == [str(tmp_path / name) for name in ("dataset.json", "1.jpg", "3.jpg")]


def test_the_first_sentence_of_each_image_alone(tmp_path: Path):
    assert rows(write(tmp_path, *FLICKR).replace(captions="first").read(tmp_path)) == [
        ("1.jpg", "one"),
        ("3.jpg", "four"),
    ]


def test_splits_may_be_joined_and_folders_stand_before_names(tmp_path: Path):
    data = write(tmp_path, *COCO).replace(split=("train", "restval"))
    found = [("train2014/a.jpg", "one"), ("val2014/b.jpg", "two"), ("val2014/b.jpg", "three")]
    assert rows(data.read(tmp_path)) == found


def test_a_split_that_is_not_there_lists_the_known_ones(tmp_path: Path):
    data = write(tmp_path, *FLICKR).replace(split=("train", "restval"))
    with pytest.raises(InvalidInput, match=r"split='restval' is none of .* known: 'train' \(2 images\), 'test' \(1 im"):
        data.read(tmp_path)


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/passwd", "a/../../b.jpg", "nul\0.jpg"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str):
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [image(name, "train", "one")]}))
    with pytest.raises(InvalidInput, match=r"which is not inside the folder of the images"):
        KarpathyJSON(path=tmp_path / "dataset.json").read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is not readable as JSON .*download it again"),
        ("[" * 100_000, r"is not readable as JSON"),
        ("[]", r"has no list `images`; Karpathy's layout is"),
        ('{"images": [], "annotations": []}', r"split='train' is none of .* known: none"),
        ('{"images": [{"id": 1, "file_name": "1.jpg"}]}', r"images\[0\] has no text `filename`; .*COCO's own annot"),
        ('{"images": [{"filename": "1.jpg", "split": 5}]}', r"images\[0\] has no text `split`"),
        ('{"images": [{"filename": "1.jpg", "split": "train"}]}', r"images\[0\] has no list `sentences`"),
        ('{"images": [{"filename": "1", "split": "train", "sentences": [{}]}]}', r"a sentence without a text `raw`"),
        ('{"images": [{"filename": "1", "split": "train", "sentences": []}]}', r"have no sentences"),
        ('{"images": [{"filename": "1", "split": "train", "filepath": 5}]}', r"has a `filepath` that is no text"),
        ('{"images": [7]}', r"images\[0\] is no object"),
        (
            '{"images": [{"filename": "1", "split": "train", "sentences": [{"raw": "\\ud800"}]}]}',
            r"holds the text '\\ud800', which is not Unicode",
        ),
    ],
)
def test_files_of_another_layout_are_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InvalidInput, match=message):
        KarpathyJSON(path=tmp_path / "dataset.json").read(tmp_path)


def test_an_empty_sentence_is_refused_with_its_row(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"1 of 2 pairs are broken.*\n  row 2: .*1\.jpg has no 'raw'"):
        write(tmp_path, image("1.jpg", "train", "one", " ")).read(tmp_path)
