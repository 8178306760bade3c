"""Tables: image-caption pairs and labelled images as compact, picklable columns with a digest by content."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sweeplab.data.images import NEVER_DEEP, holds_deep_grey

CHUNK_ROWS = 65_536
"""Rows whose paths are Python strings at the same time while the files are looked up."""


@dataclass(frozen=True, eq=False)
class PairTable:
    """Images and captions that belong together, row by row; a few hundred MB for millions of rows."""

    root: str
    """Absolute folder that relative images are in."""
    images: pa.LargeStringArray
    """(N,) paths relative to `root`, or absolute."""
    captions: pa.LargeStringArray
    """(N,) texts."""
    sizes: np.ndarray
    """(N,) int64, bytes of each image file."""
    digest: str
    """Sixteen hexadecimal digits of captions, image paths and file sizes, and of `deep_grey` where there is any;
    independent of the two folders."""
    deep_grey: np.ndarray
    """(N,) bool, files of greys of more than 8 bits. What is decoded of them has changed since the first release: they
    were white."""
    absolute_below: str = ""
    """Absolute folder below which absolute images are in; empty: they are where they say."""
    notes: tuple[str, ...] = ()
    """What a user should look at before anything runs, such as rows that are left out."""

    @classmethod
    def of(
        cls,
        root: str,
        images: pa.LargeStringArray,
        captions: pa.LargeStringArray,
        sizes: np.ndarray,
        absolute_below: str = "",
        deep_grey: np.ndarray | None = None,
        *,
        notes: tuple[str, ...] = (),
    ) -> Self:
        """The table of these columns, with its digest; looks into the files where `deep_grey` does not tell."""
        deep = _deep_grey(root, images, sizes, absolute_below) if deep_grey is None else deep_grey
        digest = _content_digest(images, captions, sizes, *_rows_of(deep))
        return cls(root, images, captions, sizes, digest, deep, absolute_below, notes)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.images)

    def image(self, i: int) -> str:
        """Absolute path of image i."""
        return image_path(self.root, self.images[i].as_py(), self.absolute_below)

    def caption(self, i: int) -> str:
        """Caption i."""
        text: str = self.captions[i].as_py()
        return text

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The rows `indices`, in that order, with the digest that a file of these rows alone would have."""
        rows = np.asarray(indices, dtype=np.int64)
        return self.of(
            self.root,
            self.images.take(rows),
            self.captions.take(rows),
            self.sizes[rows],
            self.absolute_below,
            self.deep_grey[rows],
            notes=self.notes,
        )

    def joined(self, other: Self) -> Self:
        """These rows and then those of another table, which may lie in another folder (its images become absolute).

        The digest is that of the two tables, so that it stays independent of where they lie.
        """
        theirs = other._absolute_images()
        ours = self._absolute_images() if self.absolute_below else self.images
        content = hashlib.sha256(f"{self.digest}+{other.digest}".encode()).hexdigest()[:16]
        return type(self)(
            self.root,
            pa.concat_arrays([ours, theirs]),
            pa.concat_arrays([self.captions, other.captions]),
            np.concatenate([self.sizes, other.sizes]),
            content,
            np.concatenate([self.deep_grey, other.deep_grey]),
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    def _absolute_images(self) -> pa.LargeStringArray:
        return pa.array([self.image(row) for row in range(len(self))], pa.large_string())


def image_path(root: str, name: str, absolute_below: str = "") -> str:
    """The absolute path of an image as a table names it; see the fields of `PairTable`."""
    return absolute_below + name if name.startswith("/") else os.path.join(root, name)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with one class each."""

    root: str
    """Absolute folder that the images are in."""
    images: pa.LargeStringArray
    """(N,) paths relative to `root`, or absolute."""
    sizes: np.ndarray
    """(N,) int64, bytes of each image file."""
    labels: np.ndarray
    """(N,) int64, indices into `class_names`."""
    class_names: tuple[str, ...]
    """(C,) names as they appear in prompts."""
    digest: str
    """Sixteen hexadecimal digits of image paths, file sizes, labels and names, and of `deep_grey` where there is any;
    independent of `root`."""
    deep_grey: np.ndarray
    """(N,) bool, see `PairTable`."""
    notes: tuple[str, ...] = ()
    """What a user should look at before anything runs: files that are left out, names that look odd."""
    templates: tuple[str, ...] = ()
    """Prompts that come with the data set, one `{}` each; not in the digest, since an evaluation need not use them."""

    @classmethod
    def of(
        cls,
        root: str,
        images: pa.LargeStringArray,
        *,
        sizes: np.ndarray,
        labels: np.ndarray,
        class_names: tuple[str, ...],
        deep_grey: np.ndarray | None = None,
        notes: tuple[str, ...] = (),
        templates: tuple[str, ...] = (),
    ) -> Self:
        """The labelled images of these columns, with their digest; looks into the files where `deep_grey` does not
        tell."""
        names = pa.array(class_names, pa.large_string())
        deep = _deep_grey(root, images, sizes) if deep_grey is None else deep_grey
        digest = _content_digest(images, names, sizes, labels, *_rows_of(deep))
        return cls(root, images, sizes, labels, class_names, digest, deep, notes, templates)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def image(self, i: int) -> str:
        """Absolute path of image i."""
        return os.path.join(self.root, self.images[i].as_py())

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The rows `indices`, in that order; all class names stay."""
        rows = np.asarray(indices, dtype=np.int64)
        return self.of(
            self.root,
            self.images.take(rows),
            sizes=self.sizes[rows],
            labels=self.labels[rows],
            class_names=self.class_names,
            deep_grey=self.deep_grey[rows],
            notes=self.notes,
            templates=self.templates,
        )


def _deep_grey(root: str, images: pa.LargeStringArray, sizes: np.ndarray, absolute_below: str = "") -> np.ndarray:
    """(N,) bool, which files hold greys of more than 8 bits; opens those whose suffix does not rule it out. (To open
    them takes about as long as the look at their sizes did. What has no size may be a pipe, which would wait.)"""
    deep = np.zeros(len(images), dtype=bool)
    suffixes = "|".join(suffix[1:] for suffix in NEVER_DEEP)
    plain = pc.match_substring_regex(images, rf"\.({suffixes})$", ignore_case=True)
    rows = np.flatnonzero(~plain.to_numpy(zero_copy_only=False) & (sizes > 0))
    for start in range(0, len(rows), CHUNK_ROWS):
        some = rows[start : start + CHUNK_ROWS]
        names = images.take(pa.array(some)).to_pylist()
        deep[some] = [holds_deep_grey(image_path(root, name, absolute_below)) for name in names]
    return deep


def _rows_of(deep_grey: np.ndarray) -> list[np.ndarray]:
    """What a digest takes of `deep_grey`: nothing where no file is, so that digests of such tables stay."""
    return [np.flatnonzero(deep_grey)] if deep_grey.any() else []


def _content_digest(*columns: pa.LargeStringArray | np.ndarray) -> str:
    """Sixteen hexadecimal digits over columns and their lengths; how Arrow cut its buffers plays no part."""
    content = hashlib.sha256()
    for column in columns:
        content.update(len(column).to_bytes(8, "little"))
        if isinstance(column, np.ndarray):
            content.update(np.ascontiguousarray(column, dtype="<i8"))
            continue
        content.update(pc.binary_length(column).to_numpy().astype("<i8"))
        if len(column):
            first, last = np.frombuffer(column.buffers()[1], np.int64)[[column.offset, column.offset + len(column)]]
            text = column.buffers()[2]
            content.update(memoryview(text)[first:last] if text is not None else b"")
    return content.hexdigest()[:16]
