"""Labelled images in one folder per class, such as ImageNet's validation set."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from sweeplab.data.labels import WORDNET_ID, imagenet_names, names_of_ids, some
from sweeplab.data.tables import LabelledImages
from sweeplab.specs import InvalidInput, Spec

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".qoi"),
    *(".tga", ".icb", ".vda", ".vst", ".pcx", ".dcx", ".sgi", ".bw", ".rgb", ".rgba", ".ras", ".xbm", ".xpm"),
    *(".ico", ".icns", ".cur", ".dds", ".psd", ".im", ".msp", ".pcd", ".pxr", ".blp", ".ftc", ".ftu", ".fli", ".flc"),
)
"""Files with other suffixes (case ignored) are left out: these are what Pillow reads, but for documents (EPS and WMF,
which other programs would draw) and measurements (FITS, HDF5, GRIB, BUFR, PFM)."""


class ClassFolders(Spec):
    """A folder with one folder per class: classes in the order of the sorted folders, then images sorted.

    Folders sort by name; those that differ in one number alone (0 ... 15, class1 ... class12) by that number.
    """

    NOT_IN_DIGEST = frozenset({"path", "num_images"})

    kind: Literal["class-folders"] = "class-folders"
    path: Path
    """ROOT of ROOT/<class folder>/<image>."""
    class_names: Literal["folders", "imagenet"] | tuple[str, ...] = "folders"
    """`folders`: the folder names with `_` as a space, ImageNet's WordNet ids by OpenAI's names; `imagenet`: the same,
    for all or some of ImageNet's classes, and other folders are refused; or one name for each folder, in the order of
    the sorted folders. Names must be distinct, except that ImageNet's say `missile` (n03773504, n04008634) and
    `sunglasses` (n04355933, n04356056) twice, as open_clip does."""
    num_images: int | None = Field(default=None, ge=1)
    """Images that are expected, for planning; None: whatever is found."""

    def read(self, data_home: Path) -> LabelledImages:
        """List the images; decodes none.

        Args:
            data_home: not used, the folder lies where `path` says.

        Raises:
            InvalidInput: if the folder is missing, a class has no images or no name of its own, or the
                numbers differ from what is declared.
        """
        root, folders = self._folders()
        names = self._names(root, folders)
        found, left_out = [], _stray_images(root)
        for folder in folders:
            images, others = _images_in(root, folder)
            if not images:
                raise InvalidInput(_no_images(root / folder, others))
            found.append(images)
            left_out += others
        total = sum(map(len, found))
        if self.num_images not in (None, total):
            raise InvalidInput(
                f"num_images={self.num_images}, but {root} holds {total:,} images; "
                f"set num_images={total} or mend the folder"
            )
        return LabelledImages.of(
            str(root),
            pa.array([image for images in found for image, _ in images], pa.large_string()),
            sizes=np.array([size for images in found for _, size in images], dtype=np.int64),
            labels=np.repeat(np.arange(len(folders)), [len(images) for images in found]),
            class_names=names,
            notes=(*self._odd_names(root, folders, names), *_left_out(root, left_out)),
        )

    def files(self) -> list[str]:
        """Absolute paths of all images.

        Raises:
            InvalidInput: as `read` does.
        """
        images = self.read(Path())
        return [images.image(row) for row in range(len(images))]

    def example(self) -> str:
        """Absolute path of the first image of the first class; lists no other class.

        Raises:
            InvalidInput: if there is none.
        """
        root, folders = self._folders()
        images, others = _images_in(root, folders[0])
        if not images:
            raise InvalidInput(_no_images(root / folders[0], others))
        return str(root / images[0][0])

    def _folders(self) -> tuple[Path, list[str]]:
        """The root, absolute, and the names of its class folders, sorted."""
        root = Path(os.path.abspath(self.path.expanduser()))
        if not os.path.isdir(root):  # False too where it cannot be seen
            raise InvalidInput(f"path={root} is no folder; give the folder that holds one folder per class")
        try:
            folders = _sorted([e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")])
        except OSError as error:
            raise InvalidInput(_unreadable(root, error)) from None
        if not folders:
            raise InvalidInput(f"path={root} holds no class folders; put the images into one folder per class")
        return root, folders

    def _names(self, root: Path, folders: list[str]) -> tuple[str, ...]:
        if isinstance(self.class_names, tuple):
            names = self.class_names
            if len(names) != len(folders):
                raise InvalidInput(
                    f"class_names has {len(names):,} names, but {root} holds {len(folders):,} class folders "
                    f"({some(folders)}); give one name for each folder, in sorted order"
                )
            if ids := [name for name in names if WORDNET_ID.fullmatch(name)]:
                raise InvalidInput(
                    f"class_names holds the WordNet id {ids[0]!r}, of which a text encoder knows nothing; give words, "
                    "or class_names='imagenet' for folders that are named after ImageNet's ids"
                )
        else:
            known = names_of_ids(folders) if self.class_names == "folders" else imagenet_names()
            stray = [folder for folder in folders if folder not in known]
            if self.class_names == "imagenet" and stray:
                raise InvalidInput(
                    f"class_names='imagenet' needs folders named after ImageNet's 1,000 WordNet ids (n01440764 ...), "
                    f"all or some of them, but {len(stray):,} of the {len(folders):,} folders of {root} are others "
                    f"({some(stray)}); point path at ImageNet's images, or set class_names to one name for each "
                    "folder, or to 'folders' where folders are named after their classes"
                )
            if ids := [folder for folder in stray if WORDNET_ID.fullmatch(folder)]:
                raise InvalidInput(
                    f"{len(ids):,} of the {len(folders):,} folders of {root} are WordNet ids that are not among "
                    f"ImageNet's 1,000 ({some(ids)}), and an id is no name for a prompt; set class_names to one "
                    "name for each folder, in sorted order"
                )
            names = tuple(known.get(folder, folder.replace("_", " ")) for folder in folders)
        twice = [name for name, count in Counter(names).items() if count > 1]
        for name in twice:
            holders = [folder for folder, own in zip(folders, names, strict=True) if own == name]
            if isinstance(self.class_names, tuple) or not all(map(WORDNET_ID.fullmatch, holders)):
                raise InvalidInput(
                    f"class name {name!r} stands for {len(holders):,} folders of {root} "
                    f"({', '.join(holders)}); zero-shot classification needs distinct names: "
                    "rename a folder or give class_names"
                )
        return names

    def _odd_names(self, root: Path, folders: list[str], names: tuple[str, ...]) -> list[str]:
        """What to look at: names of one's own that are not their folders', and numbers in place of names."""
        if isinstance(self.class_names, tuple):
            known = names_of_ids(folders)
            pairs = [
                f"{folder} -> {name}"
                for folder, name in zip(folders, names, strict=True)
                if _letters(known.get(folder, folder)) != _letters(name)
            ]
            if pairs:
                return [
                    f"{len(pairs):,} of {len(names):,} class_names differ from their folders in {root}: {some(pairs)}; "
                    "see that each name belongs to its folder"
                ]
        elif all(folder.isdecimal() for folder in folders):
            return [
                f"the class folders of {root} are numbers, and prompts name the classes so ({some(folders)}); where "
                "they stand for names, give these as class_names, in the order of the numbers"
            ]
        return []


def _sorted(folders: list[str]) -> list[str]:
    """By name; folders that differ in one number alone by that number."""
    parts = [re.fullmatch(r"(\D*)(\d+)(\D*)", folder) for folder in folders]
    if all(parts) and len({(part[1], part[3]) for part in parts if part}) == 1:
        return sorted(folders, key=lambda folder: (int("".join(filter(str.isdecimal, folder))), folder))
    return sorted(folders)


def _letters(name: str) -> str:
    """A name without what folders spell differently: case, blanks, hyphens, underscores."""
    return re.sub(r"[\W_]", "", name).casefold()


def _images_in(root: Path, folder: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Path relative to the root and bytes of every image, sorted; and what else is there, hidden files aside."""
    images, others = [], []
    try:
        for entry in os.scandir(root / folder):
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                images.append((f"{folder}/{entry.name}", entry.stat().st_size))
            else:
                others.append(f"{folder}/{entry.name}{'/' if entry.is_dir() else ''}")
    except OSError as error:
        raise InvalidInput(_unreadable(root, error)) from None
    return sorted(images), sorted(others)


def _stray_images(root: Path) -> list[str]:
    """Images that lie beside the class folders."""
    return sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
    )


def _left_out(root: Path, names: list[str]) -> list[str]:
    """How many files are not read, of which kinds, and the first."""
    if not names:
        return []
    return [
        f"{len(names):,} files or folders in {root} are no images in a class folder and are left out "
        f"({_kinds(names)}), the first: {names[0]}"
    ]


def _kinds(names: list[str]) -> str:
    """Counts by suffix; a link that leads nowhere counts by its suffix too."""
    kinds = Counter(
        "folders" if name.endswith("/") else os.path.splitext(name)[1].lower() or "without suffix" for name in names
    )
    return ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(5)) + (", ..." if len(kinds) > 5 else "")


def _unreadable(root: Path, error: OSError) -> str:
    return f"path={root} cannot be read ({error}); check its permissions"


def _no_images(folder: Path, others: list[str]) -> str:
    there = f", only others ({_kinds(others)})" if others else ""
    return (
        f"{folder} holds no images{there}; every class needs one directly in its folder: add images "
        f"({' '.join(IMAGE_SUFFIXES[:9])} ...) or remove the folder"
    )
