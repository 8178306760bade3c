"""Labelled images in one folder per class, such as ImageNet's validation set."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from sweeplab.data.tables import LabelledImages
from sweeplab.specs import InvalidInput, Spec

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""Files with other suffixes (case ignored) are not read."""


class ClassFolders(Spec):
    """A folder with one folder per class: classes in the order of the sorted folders, then images sorted."""

    NOT_IN_DIGEST = frozenset({"path", "num_images"})

    kind: Literal["class-folders"] = "class-folders"
    path: Path
    """ROOT of ROOT/<class folder>/<image>."""
    class_names: Literal["folders", "imagenet"] | tuple[str, ...] = "folders"
    """`folders`: the folder names with `_` as a space; `imagenet`: OpenAI's names of the 1,000 WordNet ids;
    or one name for each folder, in the order of the sorted folder names. Names must be distinct, except that
    `imagenet` says `missile` (657, 744) and `sunglasses` (836, 837) twice, as open_clip does."""
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
        found = [_images_in(root, folder) for folder in folders]
        names = self._names(root, folders)
        for folder, images in zip(folders, found, strict=True):
            if not images:
                raise InvalidInput(_no_images(root / folder))
        total = sum(map(len, found))
        if self.num_images not in (None, total):
            raise InvalidInput(
                f"num_images={self.num_images}, but {root} holds {total} images; "
                f"set num_images={total} or mend the folder"
            )
        return LabelledImages.of(
            str(root),
            pa.array([image for images in found for image, _ in images], pa.large_string()),
            sizes=np.array([size for images in found for _, size in images], dtype=np.int64),
            labels=np.repeat(np.arange(len(folders)), [len(images) for images in found]),
            class_names=names,
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
        images = _images_in(root, folders[0])
        if not images:
            raise InvalidInput(_no_images(root / folders[0]))
        return str(root / images[0][0])

    def _folders(self) -> tuple[Path, list[str]]:
        """The root, absolute, and the names of its class folders, sorted."""
        root = Path(os.path.abspath(self.path.expanduser()))
        if not root.is_dir():
            raise InvalidInput(f"path={root} is no folder; give the folder that holds one folder per class")
        try:
            folders = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
        except OSError as error:
            raise InvalidInput(_unreadable(root, error)) from None
        if not folders:
            raise InvalidInput(f"path={root} holds no class folders; put the images into one folder per class")
        return root, folders

    def _names(self, root: Path, folders: list[str]) -> tuple[str, ...]:
        if self.class_names == "imagenet":
            from sweeplab.clip_model import imagenet_class_names  # open_clip takes seconds to import

            names = imagenet_class_names()
            stray = next((folder for folder in folders if not re.fullmatch(r"n\d{8}", folder)), None)
            if stray or len(folders) != len(names):
                raise InvalidInput(
                    f"class_names='imagenet' needs the {len(names)} WordNet-id folders (n01440764 ...), "
                    f"but {root} holds {len(folders)} folders{f', one {stray!r}' if stray else ''}; "
                    "point path at ImageNet's validation set, or set class_names='folders'"
                )
            return names  # with duplicates: the list says `missile` and `sunglasses` for two classes each
        if self.class_names == "folders":
            names = tuple(folder.replace("_", " ") for folder in folders)
        else:
            names = self.class_names
            if len(names) != len(folders):
                raise InvalidInput(
                    f"class_names has {len(names)} names, but {root} holds {len(folders)} class folders "
                    f"({', '.join(folders[:5])}{', ...' if len(folders) > 5 else ''}); "
                    "give one name for each folder, in sorted order"
                )
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            holders = [folder for folder, name in zip(folders, names, strict=True) if name == twice[0]]
            raise InvalidInput(
                f"class name {twice[0]!r} stands for {len(holders)} folders of {root} "
                f"({', '.join(holders)}); zero-shot classification needs distinct names: "
                "rename a folder or give class_names"
            )
        return names


def _images_in(root: Path, folder: str) -> list[tuple[str, int]]:
    """Path relative to the root and bytes of every image, sorted."""
    try:
        return sorted(
            (f"{folder}/{entry.name}", entry.stat().st_size)
            for entry in os.scandir(root / folder)
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
        )
    except OSError as error:
        raise InvalidInput(_unreadable(root, error)) from None


def _unreadable(root: Path, error: OSError) -> str:
    return f"path={root} cannot be read ({error}); check its permissions"


def _no_images(folder: Path) -> str:
    return (
        f"{folder} holds no images ({' '.join(IMAGE_SUFFIXES)}); every class needs one: add images or remove the folder"
    )
