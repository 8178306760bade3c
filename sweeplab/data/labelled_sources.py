"""The sources of labelled images, and which of them a path on the command line is."""

import os
from pathlib import Path
from typing import Any, Literal

from sweeplab.data.class_folders import IMAGE_SUFFIXES, ClassFolders
from sweeplab.data.fruit_stall import FruitStallTest
from sweeplab.data.imagenet_flat import IMAGE, ImageNetFlat
from sweeplab.data.labelled_shards import LabelledShards
from sweeplab.data.labelled_table import SEPARATORS, LabelledTable
from sweeplab.data.torchvision_sets import LAYOUTS, TorchvisionSet
from sweeplab.specs import InvalidInput, Spec

LABELLED_SOURCES: tuple[type[Spec], ...] = (
    *(ClassFolders, FruitStallTest, ImageNetFlat),
    *(LabelledTable, LabelledShards, TorchvisionSet),
)
"""What can stand as a test set, or where labelled images are trained on."""


def source_at(
    path: Path, class_names: Literal["folders", "imagenet"] | tuple[str, ...] = "folders", split: str = "test"
) -> Any:
    """The source that a path names, told from the files that are there.

    Args:
        path: a table, or a folder of tars, of one of torchvision's data sets (or above it), of ImageNet's validation
            images, or else of class folders.
        class_names: names of one's own; `folders`: those that the source has.
        split: of sources that have splits.

    Raises:
        InvalidInput: if several data sets are there, or the source has no use for the names.
    """
    place = Path(os.path.abspath(path.expanduser()))
    own: dict[str, Any] = {"class_names": class_names} if class_names != "folders" else {}
    if place.suffix.lower() in SEPARATORS and not place.is_dir():
        return LabelledTable(path=path, **own)
    if not place.is_dir() or class_names == "imagenet":
        return _flat(path, place) or ClassFolders(path=path, class_names=class_names)
    # An archive, or a table, may have stayed beside the folders that were unpacked from it.
    holds_classes = any(_holds_images(folder) for folder in sorted(place.iterdir()) if folder.is_dir())
    if not holds_classes and (any(place.glob("*.tar")) or any((place / split).glob("*.tar"))):
        return LabelledShards(path=path, split=split, **own)
    if not holds_classes and any(place.glob("*.parquet")):
        return LabelledTable(path=path, **own)
    if (flat := _flat(path, place)) is not None:
        if own:
            raise InvalidInput(f"{path} holds ImageNet's validation images, whose classes have names; give none")
        return flat
    if found := _torchvision_sets(place):
        if len(found) > 1:
            folders = ", ".join(str(path / LAYOUTS[name].folder) for name, _ in found)
            raise InvalidInput(f"{path} holds {len(found)} data sets; give the folder of one: {folders}")
        name, root = found[0]
        return TorchvisionSet(dataset=name, path=root, split=split if name != "caltech101" else "all", **own)
    return ClassFolders(path=path, class_names=class_names)


def _holds_images(folder: Path) -> bool:
    return any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in os.scandir(folder))


def _flat(path: Path, place: Path) -> ImageNetFlat | None:
    is_flat = place.is_dir() and any(IMAGE.fullmatch(entry.name) for entry in os.scandir(place))
    return ImageNetFlat(path=path) if is_flat else None


def _torchvision_sets(place: Path) -> list[tuple[Any, Path]]:
    """Names and roots of the data sets whose folder this is, or lies in it."""
    inside = [(name, place) for name in LAYOUTS if _is_in(name, place)]
    itself = [(name, place.parent) for name, layout in LAYOUTS.items() if layout.folder == place.name]
    return [(name, root) for name, root in itself if _is_in(name, root)] or inside


def _is_in(name: str, root: Path) -> bool:
    if name == "svhn":
        return any((root / file).is_file() for file in ("train_32x32.mat", "test_32x32.mat"))
    # A class folder may have one of these names, but not what is in it.
    marks = {"dtd": "dtd/dtd/labels", "caltech101": "caltech101/101_ObjectCategories", "food101": "food-101/meta"}
    return (root / marks.get(name, LAYOUTS[name].folder)).is_dir()
