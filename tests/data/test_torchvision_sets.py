import hashlib
import json
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.clip_prompts import CALTECH101, FLOWERS102, NUMBERED, TEMPLATES
from sweeplab.data.images import load_all
from sweeplab.data.labelled_sources import source_at
from sweeplab.data.torchvision_sets import LAYOUTS, TorchvisionSet
from sweeplab.specs import InvalidInput

STREAM = np.random.default_rng(0)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def jpegs(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (50, 60, 70)).save(folder / name)


def cifar(root: Path, patch: pytest.MonkeyPatch, made_by: Any, key: str, count: int) -> None:
    """Batches of `count` images of 32 x 32, whose checksums torchvision is told."""
    folder = root / made_by.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: Any) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return md5(folder / name)

    for listed in ("train_list", "test_list"):
        known = []
        for name, _ in getattr(made_by, listed):
            pixels = STREAM.integers(0, 256, (count, 3072), dtype=np.uint8)
            known.append([name, write(name, {"data": pixels, key: list(range(count))})])
        patch.setattr(made_by, listed, known)
    names = [name.replace(" ", "_") for name in NUMBERED["cifar10" if made_by is datasets.CIFAR10 else "cifar100"]]
    meta = dict(made_by.meta)
    patch.setattr(made_by, "meta", {**meta, "md5": write(meta["filename"], {meta["key"]: names})})


def cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    cifar(root, patch, datasets.CIFAR10, "labels", 3)


def cifar100(root: Path, patch: pytest.MonkeyPatch) -> None:
    cifar(root, patch, datasets.CIFAR100, "fine_labels", 3)


def stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for listed in ("train_list", "test_list"):
        known = []
        for name, _ in getattr(datasets.STL10, listed):
            is_images = "X" in name
            content = STREAM.integers(0, 256, 3 * 3 * 96 * 96, dtype=np.uint8) if is_images else np.array([1, 2, 10])
            content.astype(np.uint8).tofile(folder / name)
            known.append([name, md5(folder / name)])
        patch.setattr(datasets.STL10, listed, known)
    (folder / "class_names.txt").write_text("\n".join(NUMBERED["stl10"]))


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    """The digit 0 has the label 10."""
    known = {}
    for split, (url, name, _) in datasets.SVHN.split_list.items():
        pixels = STREAM.integers(0, 256, (32, 32, 3, 3), dtype=np.uint8)
        savemat(root / name, {"X": pixels, "y": np.array([[1], [10], [9]], dtype=np.uint8)})
        known[split] = [url, name, md5(root / name)]
    patch.setattr(datasets.SVHN, "split_list", known)


def food101(root: Path, patch: pytest.MonkeyPatch) -> None:
    meta = {
        "train": {"pad_thai": ["pad_thai/1"], "pho": ["pho/2"]},
        "test": {"pad_thai": ["pad_thai/3"], "pho": ["pho/4"]},
    }
    jpegs(
        root / "food-101" / "images", [f"{name}.jpg" for kinds in meta.values() for k in kinds.values() for name in k]
    )
    (root / "food-101" / "meta").mkdir()
    for split, listed in meta.items():
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(listed))


def pets(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "oxford-iiit-pet"
    rows = ["Abyssinian_1 1 1 1", "american_bulldog_2 2 2 1"]
    jpegs(
        folder / "images", ["Abyssinian_1.jpg", "american_bulldog_2.jpg", "Abyssinian_3.jpg", "american_bulldog_4.jpg"]
    )
    (folder / "annotations").mkdir()
    (folder / "annotations" / "trainval.txt").write_text("\n".join(rows) + "\n")
    (folder / "annotations" / "test.txt").write_text("Abyssinian_3 1 1 1\namerican_bulldog_4 2 2 1\n")


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Images 1 to 6: two of each part; the 16th class is the one that torchvision spells `globe-flower`."""
    folder = root / "flowers-102"
    jpegs(folder / "jpg", [f"image_{number:05d}.jpg" for number in range(1, 7)])
    savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    savemat(folder / "imagelabels.mat", {"labels": [[1, 2, 3, 4, 16, 102]]})
    known = dict(datasets.Flowers102._file_dict)
    for name in ("label", "setid"):
        known[name] = (known[name][0], md5(folder / known[name][0]))
    patch.setattr(datasets.Flowers102, "_file_dict", known)


def dtd(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        names = [f"banded/banded_{number}.jpg", f"polka-dotted/polka-dotted_{number}.jpg"]
        jpegs(folder / "images", names)
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")


def caltech101(root: Path, patch: pytest.MonkeyPatch) -> None:
    names = ["Faces/image_0001.jpg", "car_side/image_0001.jpg", "car_side/image_0002.jpg", "ant/image_0001.jpg"]
    jpegs(root / "caltech101" / "101_ObjectCategories", [*names, "BACKGROUND_Google/image_0001.jpg"])


def fgvc_aircraft(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    jpegs(folder / "images", [f"{number:07d}.jpg" for number in range(4)])
    (folder / "variants.txt").write_text("707-320\nF-16A/B\n")
    (folder / "images_variant_trainval.txt").write_text("0000000 707-320\n0000001 F-16A/B\n")
    (folder / "images_variant_test.txt").write_text("0000002 F-16A/B\n0000003 707-320\n")


EXPECTED: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], None], dict[str, list[str]]]] = {
    "cifar10": (cifar10, {"test": ["airplane", "automobile", "bird"], "train": ["airplane", "automobile", "bird"] * 5}),
    "cifar100": (cifar100, {"test": ["apple", "aquarium fish", "baby"], "train": ["apple", "aquarium fish", "baby"]}),
    "stl10": (stl10, {"test": ["airplane", "bird", "truck"], "train": ["airplane", "bird", "truck"]}),
    "svhn": (svhn, {"test": ["one", "zero", "nine"], "train": ["one", "zero", "nine"]}),
    "food101": (food101, {"test": ["pad thai", "pho"], "train": ["pad thai", "pho"]}),
    "pets": (pets, {"test": ["Abyssinian", "American Bulldog"], "train": ["Abyssinian", "American Bulldog"]}),
    "flowers102": (
        flowers102,
        {
            "test": ["globe flower", "blackberry lily"],
            "train": ["pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea"],
        },
    ),
    "dtd": (dtd, {"test": ["banded", "polka-dotted"], "train": ["banded", "polka-dotted"] * 2}),
    "caltech101": (caltech101, {"all": ["off-center face", "ant", "side of a car", "side of a car"]}),
    "fgvc-aircraft": (fgvc_aircraft, {"test": ["F-16A/B", "707-320"], "train": ["707-320", "F-16A/B"]}),
}
"""How each is made, and the class of every row of its splits."""
CASES = [(name, split) for name, (_, splits) in EXPECTED.items() for split in splits]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The root of a small data set of that name, alone in it."""

    def make(name: str) -> Path:
        root = tmp_path / f"root of {name}"
        root.mkdir()
        EXPECTED[name][0](root, monkeypatch)
        return root

    return make


@pytest.mark.parametrize(("name", "split"), CASES)
def test_rows_and_names_are_torchvisions(name: str, split: str, made, tmp_path: Path):
    """And the pixels of every row, compared with what torchvision's class gives for it."""
    root = made(name)
    images = TorchvisionSet(dataset=name, path=root, split=split).read(tmp_path / "home")
    assert [images.class_names[label] for label in images.labels] == EXPECTED[name][1][split]
    parts = [
        getattr(datasets, LAYOUTS[name].name)(root=str(root), **arguments) for arguments in LAYOUTS[name].splits[split]
    ]
    theirs = [part[row][0].convert("RGB") for part in parts for row in range(len(part))]
    ours = [Image.open(images.image(row)).convert("RGB") for row in range(len(images))]
    assert [image.tobytes() for image in ours] == [image.tobytes() for image in theirs]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_read_needs_is_in_files(name: str, made, tmp_path: Path):
    """A copy of these files alone is read to the same digest, though the home is another."""
    root, split = made(name), next(iter(EXPECTED[name][1]))
    spec = TorchvisionSet(dataset=name, path=root, split=split)
    assert spec.example() in spec.files()
    for file in spec.files():
        copy = tmp_path / "copy" / Path(file).relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Path(file).read_bytes())
    there = spec.replace(path=tmp_path / "copy")
    assert there.digest() == spec.digest()
    assert there.read(tmp_path / "there").digest == spec.read(tmp_path / "home").digest


@pytest.mark.parametrize("split", ["train", "test"])
def test_stl10_is_read_without_its_unlabelled_images(split: str, made, tmp_path: Path):
    """2.6 GB of which nothing is read; what is read keeps its checksums."""
    root = made("stl10")
    spec = TorchvisionSet(dataset="stl10", path=root, split=split)
    digest = spec.read(tmp_path / "home").digest
    assert not [file for file in spec.files() if "unlabeled" in file]
    (root / "stl10_binary" / "unlabeled_X.bin").unlink()
    assert spec.read(tmp_path / "other home").digest == digest
    with (root / "stl10_binary" / f"{split}_y.bin").open("ab") as file:
        file.write(b"\1")
    with pytest.raises(InvalidInput, match="damaged where they have checksums"):
        spec.read(tmp_path / "third home")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_path_of_a_data_set_is_told_from_its_folder(name: str, made):
    root, split = made(name), next(iter(EXPECTED[name][1]))
    expected = TorchvisionSet(dataset=name, path=root, split=split)
    assert source_at(root) == expected
    if name != "svhn":
        assert source_at(root / LAYOUTS[name].folder) == expected


def test_of_several_data_sets_none_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dtd(tmp_path, monkeypatch)
    pets(tmp_path, monkeypatch)
    with pytest.raises(InvalidInput, match=r"2 data sets; give the folder of one: .*oxford-iiit-pet, .*dtd"):
        source_at(tmp_path)
    assert source_at(tmp_path / "dtd", split="train").split == "train"


def test_class_folders_named_after_data_sets_stay_class_folders(tmp_path: Path):
    jpegs(tmp_path, ["dtd/1.jpg", "caltech101/1.jpg", "food-101/1.jpg"])
    assert source_at(tmp_path) == ClassFolders(path=tmp_path)


@pytest.mark.parametrize("name", sorted(NUMBERED))
def test_a_file_of_another_checksum_is_not_opened(name: str, made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """CIFAR's files are pickles: one that was changed would run as code."""
    spec = TorchvisionSet(dataset=name, path=made(name))
    file = Path(spec.example())
    file.write_bytes(file.read_bytes() + b"x")
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("unpickled"))
    with pytest.raises(InvalidInput, match=r"is not \w+ as torchvision knows it .* download=True"):
        spec.read(tmp_path / "home")
    assert list((tmp_path / "home").glob(f"{name}-*")) == []


def test_what_was_unpacked_tells_pixels_of_equal_size_apart(made, tmp_path: Path):
    root = made("svhn")
    test, train = (TorchvisionSet(dataset="svhn", path=root, split=split) for split in ("test", "train"))
    first, second = test.read(tmp_path / "home"), train.read(tmp_path / "home")
    assert first.sizes.tolist() == second.sizes.tolist()
    assert first.labels.tolist() == second.labels.tolist()
    assert first.digest != second.digest
    assert load_all(first, 32).shape == (3, 3, 32, 32)


def test_the_command_of_a_remedy_is_one_for_a_shell():
    """Whatever the folder is called."""
    root = Path("/a \"b\" $c 'd'")
    program, flag, code = shlex.split(LAYOUTS["dtd"].remedy(root).partition("download it: ")[2])
    assert (program, flag) == ("python", "-c")
    assert code == f"from torchvision.datasets import DTD; DTD({str(root)!r}, download=True)"


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_missing_is_named_with_its_remedy(name: str, tmp_path: Path):
    split = next(iter(EXPECTED[name][1]))
    with pytest.raises(InvalidInput, match=rf"from torchvision.datasets import {LAYOUTS[name].name}; .*download=True"):
        TorchvisionSet(dataset=name, path=tmp_path, split=split).read(tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_missing_is_named(made, tmp_path: Path):
    root = made("dtd")
    (root / "dtd" / "dtd" / "images" / "banded" / "banded_2.jpg").unlink()
    with pytest.raises(InvalidInput, match=r"1 of 2 images are broken.*\n  row 1: .*banded_2\.jpg"):
        TorchvisionSet(dataset="dtd", path=root).read(tmp_path)


def test_a_list_that_leads_out_of_its_folder_is_refused(made, tmp_path: Path):
    root = made("food101")
    jpegs(root, ["secret.jpg"])
    (root / "food-101" / "meta" / "test.json").write_text(json.dumps({"pho": ["../../secret"]}))
    with pytest.raises(InvalidInput, match=r"names the image .*secret\.jpg, which lies outside of it"):
        TorchvisionSet(dataset="food101", path=root).read(tmp_path)


def test_splits_are_those_that_there_are():
    with pytest.raises(InvalidInput, match=r"split='test' is none of caltech101's; known: all"):
        TorchvisionSet(dataset="caltech101", path=Path("x"))
    with pytest.raises(InvalidInput, match="split='all' is none of dtd's; known: train, test"):
        TorchvisionSet(dataset="dtd", path=Path("x"), split="all")


def test_names_of_ones_own_are_one_for_each_class(made, tmp_path: Path):
    spec = TorchvisionSet(dataset="dtd", path=made("dtd"), class_names=("stripes", "dots"))
    assert spec.read(tmp_path).class_names == ("stripes", "dots")
    with pytest.raises(InvalidInput, match=r"class_names has 1 names, but dtd has 2 classes \(banded, polka-dotted\)"):
        spec.replace(class_names=("stripes",)).read(tmp_path)
    with pytest.raises(InvalidInput, match=r"num_images=1880, but .* holds 2 images"):
        spec.replace(num_images=1880).read(tmp_path)


def test_the_papers_prompts_are_counted():
    """As listed in CLIP's data/prompts.md; the names that differ from a folder's or torchvision's are among its 102."""
    assert {name: len(prompts) for name, prompts in TEMPLATES.items()} == {
        **{"cifar10": 18, "cifar100": 18, "food101": 1, "pets": 1, "stl10": 2},
        **{"flowers102": 1, "dtd": 8, "caltech101": 34, "fgvc-aircraft": 2},
    }
    assert all(prompt.count("{}") == 1 for prompts in TEMPLATES.values() for prompt in prompts)
    assert {name: len(set(names)) for name, names in NUMBERED.items()} == {
        **{"cifar10": 10, "cifar100": 100, "stl10": 10, "svhn": 10}
    }
    assert set(FLOWERS102) <= set(datasets.Flowers102.classes)
    assert len(CALTECH101) == 12
