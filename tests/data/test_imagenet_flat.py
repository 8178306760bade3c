from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from sweeplab.clip_model import imagenet_class_names, imagenet_names
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.imagenet_flat import GROUND_TRUTH, META, ImageNetFlat
from sweeplab.data.labelled_sources import source_at
from sweeplab.specs import InvalidInput

IDS = ["n01440764", "n01443537", "n02123045", "n15075141"]
"""Tench, goldfish, tabby cat, toilet paper: the places 0, 1, 281 and 999 among the sorted ids."""
OF_IMAGE = [IDS[2], IDS[0], IDS[3], IDS[0], IDS[1]]
"""The class of images 1 to 5."""
PLACES = [281, 0, 999, 0, 1]
ILSVRC = {IDS[0]: 449, IDS[1]: 450, IDS[2]: 126, IDS[3]: 900}
"""The devkit's ids, in another order than the WordNet ids."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "imagenet" / "val"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
    return folder


def kaggles_table(folder: Path) -> Path:
    rows = [f"ILSVRC2012_val_{n:08d},{one} 1 2 3 4 {one} 5 6 7 8 " for n, one in enumerate(OF_IMAGE, start=1)]
    file = folder / "LOC_val_solution.csv"
    file.write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")
    return file


def caffes_list(folder: Path) -> Path:
    file = folder / "val.txt"
    file.write_text("".join(f"ILSVRC2012_val_{n:08d}.JPEG {place}\n" for n, place in enumerate(PLACES, start=1)))
    return file


def devkit(folder: Path) -> Path:
    """As ILSVRC's: an array of structs, children first, then the synsets above them, which no image has."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(number, one, "words", 0) for one, number in sorted(ILSVRC.items(), key=lambda item: item[1])]
    synsets = np.array([*rows, (1001, "n00001740", "entity", 3)], dtype=fields).reshape(-1, 1)
    savemat(folder / META, {"synsets": synsets})
    file = folder / GROUND_TRUTH
    file.write_text("".join(f"{ILSVRC[one]}\n" for one in OF_IMAGE))
    return file


@pytest.mark.parametrize(
    "labels",
    [kaggles_table, caffes_list, devkit, lambda folder: devkit(folder / "ILSVRC2012_devkit_t12" / "data")],
    ids=["kaggle", "caffe", "devkit", "unpacked devkit"],
)
@pytest.mark.parametrize("beside", [False, True])
def test_every_file_of_labels_says_the_same(labels, beside: bool, root: Path, tmp_path: Path):
    """The devkit's ids are in another order than the sorted ones, and Kaggle's rows in another than the images."""
    labels(root.parent if beside else root)
    images = ImageNetFlat(path=root).read(tmp_path)
    assert [Path(images.image(row)).stem[-1] for row in range(5)] == ["1", "2", "3", "4", "5"]
    assert images.labels.tolist() == PLACES
    assert images.class_names == imagenet_class_names()


def test_the_digest_tells_neither_place_nor_kind_of_the_labels(root: Path, tmp_path: Path):
    digests = {
        ImageNetFlat(path=root, labels=labels(tmp_path)).read(tmp_path).digest
        for labels in (kaggles_table, caffes_list, devkit)
    }
    root.rename(tmp_path / "moved")
    digests.add(ImageNetFlat(path=tmp_path / "moved", labels=tmp_path / "val.txt").read(tmp_path).digest)
    assert len(digests) == 1


def test_the_same_images_in_class_folders_have_the_same_names(root: Path, tmp_path: Path):
    caffes_list(root)
    flat = ImageNetFlat(path=root).read(tmp_path)
    for number, one in enumerate(OF_IMAGE, start=1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        (tmp_path / "folders" / one).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folders" / one / name).write_bytes((root / name).read_bytes())
    folders = ClassFolders(path=tmp_path / "folders").read(tmp_path)

    def named(images) -> dict[str, str]:
        rows = range(len(images))
        return {Path(images.image(row)).name: images.class_names[images.labels[row]] for row in rows}

    assert named(flat) == named(folders)


def test_a_list_may_hold_ids(root: Path, tmp_path: Path):
    (root / "val.txt").write_text("".join(f"ILSVRC2012_val_{n:08d} {one}\n" for n, one in enumerate(OF_IMAGE, 1)))
    assert ImageNetFlat(path=root).read(tmp_path).labels.tolist() == PLACES


def test_files_are_the_images_and_their_labels(root: Path, tmp_path: Path):
    file = devkit(tmp_path)
    (root / "notes.txt").touch()
    spec = ImageNetFlat(path=root, labels=file)
    assert sorted(spec.files()) == sorted([str(file), str(file.with_name(META)), *map(str, root.glob("*.JPEG"))])
    assert spec.example() == str(root / "ILSVRC2012_val_00000001.JPEG")


def test_a_path_of_flat_images_is_told_from_their_names(root: Path):
    assert source_at(root) == ImageNetFlat(path=root)
    assert source_at(root, "imagenet") == ImageNetFlat(path=root)


def test_several_files_of_labels_are_not_chosen_from(root: Path, tmp_path: Path):
    caffes_list(root)
    kaggles_table(root)
    with pytest.raises(InvalidInput, match=r"2 files of labels .*name one as labels"):
        ImageNetFlat(path=root).read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("val.txt", "ILSVRC2012_val_00000001 1\n", "4 of the 5 images .* have no label"),
        ("val.txt", "ILSVRC2012_val_00000001 1000\n", r"line 1 .* 0 \.\.\. 999, .*counts images and holds no classes"),
        ("val.txt", "".join(f"ILSVRC2012_val_{n:08d} 1\n" for n in range(1, 8)), "2 of the 7 images that .* names"),
        ("val.txt", b"\xff\xfe\x00", "is no text"),
        (
            "val.txt",
            "ILSVRC2012_val_00000001.JPEG 1\nILSVRC2012_val_00000001 2\n",
            "names ILSVRC2012_val_00000001 as n01443537 and as n01484850; keep the right one",
        ),
        ("LOC_val_solution.csv", "a,b\n", "lacks the columns ImageId and PredictionString"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nx,n01440764 1 2 3 4 n02123045 1 2 3 4\n",
            "names 2 classes",
        ),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nx,n01440764 1 2 3 4\nx,n02123045 1 2 3 4\n",
            "names x as n01440764 and as n02123045",
        ),
        (GROUND_TRUTH, "1\n2\n", r"meta\.mat does not exist, without which"),
    ],
)
def test_labels_that_do_not_belong_are_refused(name: str, text: str | bytes, match: str, root: Path, tmp_path: Path):
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInput, match=match):
        ImageNetFlat(path=root).read(tmp_path)


def test_a_devkit_of_other_classes_or_that_is_none_is_refused(root: Path, tmp_path: Path):
    file = devkit(tmp_path)
    file.write_text("7\n" * 5)
    with pytest.raises(InvalidInput, match=r"7, 7.* stand for no class in meta\.mat"):
        ImageNetFlat(path=root, labels=file).read(tmp_path)
    file.with_name(META).write_bytes(b"not a MAT file" * 20)
    with pytest.raises(InvalidInput, match="cannot be read as the devkit's table of classes"):
        ImageNetFlat(path=root, labels=file).read(tmp_path)


def test_what_is_missing_is_said(root: Path, tmp_path: Path):
    with pytest.raises(InvalidInput, match="has no file of labels in it or beside it"):
        ImageNetFlat(path=root).read(tmp_path)
    with pytest.raises(InvalidInput, match=r"holds no ILSVRC2012_val_00000001\.JPEG"):
        ImageNetFlat(path=tmp_path).read(tmp_path)
    caffes_list(root)
    with pytest.raises(InvalidInput, match=r"num_images=50000, but .* holds 5 images"):
        ImageNetFlat(path=root, num_images=50_000).read(tmp_path)


def test_the_ids_of_this_test_are_imagenets():
    assert [list(imagenet_names()).index(one) for one in OF_IMAGE] == PLACES
