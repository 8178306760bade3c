"""Tables: image-caption pairs and labelled images as compact, picklable columns with a digest by content."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sweeplab.data.images import NEVER_DEEP, holds_deep_grey
from sweeplab.data.tar_members import ImagePlace, Members, TarMember
from sweeplab.storage.broken_rows import BrokenRow, BrokenRows

CHUNK_ROWS = 65_536
"""Rows whose paths are Python strings at the same time while the files are looked up."""


@dataclass(frozen=True, eq=False)
class PairTable:
    """Images and captions that belong together, row by row; a few hundred MB for millions of rows."""

    root: str
    """Absolute folder that relative images are in."""
    images: pa.LargeStringArray
    """(N,) paths relative to `root`, or absolute; SHARD/MEMBER where the image lies in a tar."""
    captions: pa.LargeStringArray
    """(N,) texts."""
    sizes: np.ndarray
    """(N,) int64, bytes of each image file."""
    digest: str
    """Sixteen hexadecimal digits of captions, image paths and file sizes, and of `deep_grey` and of which rows share a
    tar where there is any; independent of the two folders, and of where tars lie."""
    deep_grey: np.ndarray
    """(N,) bool, files of greys of more than 8 bits. What is decoded of them has changed since the first release: they
    were white."""
    absolute_below: str = ""
    """Absolute folder below which absolute images are in; empty: they are where they say."""
    notes: tuple[str, ...] = ()
    """What a user should look at before anything runs, such as rows that are left out."""
    members: Members | None = None
    """Which images lie in tars; None: none of them."""
    times: np.ndarray | None = None
    """(N,) int64, nanoseconds since 1970, when each file was changed last before it was looked up; None: not known. No
    part of the digest: a copy of the files is as good as they are."""
    broken: tuple[BrokenRow, ...] = ()
    """Rows, ascending, that others stand in for, as far as that is known; no part of the digest."""

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
        members: Members | None = None,
        times: np.ndarray | None = None,
    ) -> Self:
        """The table of these columns, with its digest; looks into the files where `deep_grey` does not tell."""
        deep = _deep_grey(root, images, sizes, absolute_below) if deep_grey is None else deep_grey
        # The order of an epoch goes by tars, so that two tables that are cut into tars differently are not the same.
        cut = [] if members is None else [pa.array(["tars"], pa.large_string()), members.numbers]
        digest = _content_digest(images, captions, sizes, *_rows_of(deep), *cut)
        return cls(root, images, captions, sizes, digest, deep, absolute_below, notes, members, times)

    @property
    def is_looked_up(self) -> bool:
        """Whether the table knows of every image as of what time it is: tars have versions, and files times."""
        return self.times is not None or (self.members is not None and bool((self.members.numbers >= 0).all()))

    @property
    def state(self) -> str:
        """Sixteen hexadecimal digits of all that the table says, places and times of its files among it: names what a
        node keeps of it."""
        tars = [] if self.members is None else [[shard.location, shard.version] for shard in self.members.shards]
        plain = [self.digest, self.root, self.absolute_below, self.notes, self.times is not None, tars]
        numbers = [] if self.members is None else [self.members.numbers, self.members.offsets]
        columns = _content_digest(*numbers, *([] if self.times is None else [self.times]))
        return hashlib.sha256(json.dumps([*plain, columns]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.images)

    def image(self, i: int) -> ImagePlace:
        """Absolute path of image i, or the member of a tar that it is."""
        name = self.images[i].as_py()
        member = None if self.members is None else self.members.member(i, name, int(self.sizes[i]))
        return member or image_path(self.root, name, self.absolute_below)

    def holds_any(self, places: Iterable[ImagePlace]) -> bool:
        """Whether one of these images, by its place, is one of the table's."""
        sought, prefix = set(places), self.root.rstrip("/") + "/"
        paths = (place for place in sought if isinstance(place, str))
        names = [name for path in paths for name in {path, path.removeprefix(prefix)}]
        if pc.any(pc.is_in(self.images, value_set=pa.array(names, pa.large_string()))).as_py():
            return True
        packed = [place.offset for place in sought if isinstance(place, TarMember)]
        rows = np.flatnonzero(np.isin(self.members.offsets, packed)) if self.members is not None and packed else ()
        return any(self.image(int(row)) in sought for row in rows)

    def files(self) -> list[str]:
        """Absolute paths of the images, without those that were missing."""
        return [str(self.image(row)) for row in np.flatnonzero(self.sizes).tolist()]

    def caption(self, i: int) -> str:
        """Caption i."""
        text: str = self.captions[i].as_py()
        return text

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The rows `indices`, in that order, with the digest that a file of these rows alone would have."""
        rows = np.asarray(indices, dtype=np.int64)
        taken = self.of(
            self.root,
            self.images.take(rows),
            self.captions.take(rows),
            self.sizes[rows],
            self.absolute_below,
            self.deep_grey[rows],
            notes=self.notes,
            members=None if self.members is None else self.members.take(rows),
            times=None if self.times is None else self.times[rows],
        )
        known = self.reasons()
        places = np.flatnonzero(np.isin(rows, list(known))) if known else ()
        return taken.with_broken({int(place): known[int(rows[place])] for place in places})

    def with_broken(self, reasons: Mapping[int, str]) -> Self:
        """The table in which these rows are broken too; the digest stays."""
        known = {one.row: one for one in self.broken}
        known |= {row: self.broken_row(row, reason) for row, reason in reasons.items() if row not in known}
        return dataclasses.replace(self, broken=tuple(known[row] for row in sorted(known)))

    def reasons(self) -> dict[int, str]:
        """Why, by row, ascending, of the rows that are known to be broken."""
        return {one.row: one.reason for one in self.broken}

    def broken_row(self, row: int, reason: str) -> BrokenRow:
        """What is to be recorded of a broken row."""
        image, size, deep = self.images[row].as_py(), int(self.sizes[row]), bool(self.deep_grey[row])
        return BrokenRow(row, image, self.caption(row), size, deep, reason)

    def frozen(self, record: BrokenRows) -> Self | None:
        """The table in which recorded rows are broken and are as they were then, whatever has become of them.

        Returns:
            None where the record is of another table.
        """
        then = {one.row: one for one in record.rows}
        if len(self) != record.num_rows or not all(0 <= row < len(self) for row in then):
            return None
        table = self
        if self.digest != record.table:  # some have changed since
            rows, sizes, deep = list(then), self.sizes.copy(), self.deep_grey.copy()
            sizes[rows] = [one.size for one in then.values()]
            deep[rows] = [one.deep_grey for one in then.values()]
            unnamed = {row: "" for row, one in then.items() if not one.image}
            table = self.of(
                self.root,
                _with_texts(self.images, unnamed),
                _with_texts(self.captions, {row: one.caption for row, one in then.items()}),
                sizes,
                self.absolute_below,
                deep,
                notes=self.notes,
                members=self.members,
                times=self.times,
            )
        if table.digest != record.table:
            return None
        known = {one.row: one for one in self.broken} | then
        return dataclasses.replace(table, broken=tuple(known[row] for row in sorted(known)))

    def joined(self, other: Self) -> Self:
        """These rows and then those of another table, which may lie in another folder (its images become absolute).

        The digest is that of the two tables, so that it stays independent of where they lie.
        """
        theirs = other._absolute_images()
        ours = self._absolute_images() if self.absolute_below else self.images
        content = hashlib.sha256(f"{self.digest}+{other.digest}".encode()).hexdigest()[:16]
        members = times = None
        if self.members is not None or other.members is not None:
            first, second = (table.members or Members.none(len(table)) for table in (self, other))
            members = first.followed_by(second)
        if self.is_looked_up and other.is_looked_up:
            known = [table.times for table in (self, other)]
            both = zip(known, (len(self), len(other)), strict=True)
            times = np.concatenate([np.zeros(count, np.int64) if one is None else one for one, count in both])
        return type(self)(
            self.root,
            pa.concat_arrays([ours, theirs]),
            pa.concat_arrays([self.captions, other.captions]),
            np.concatenate([self.sizes, other.sizes]),
            content,
            np.concatenate([self.deep_grey, other.deep_grey]),
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
            members=members,
            times=times,
            broken=(*self.broken, *(dataclasses.replace(one, row=len(self) + one.row) for one in other.broken)),
        )

    def _absolute_images(self) -> pa.LargeStringArray:
        """Names of members stay: they are no paths."""
        places = ((row, self.image(row)) for row in range(len(self)))
        names = [place if isinstance(place, str) else self.images[row].as_py() for row, place in places]
        return pa.array(names, pa.large_string())


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


def _with_texts(column: pa.LargeStringArray, texts: Mapping[int, str]) -> pa.LargeStringArray:
    """A column in which some rows have other texts."""
    if not texts:
        return column
    mask = np.zeros(len(column), dtype=bool)
    mask[list(texts)] = True
    return pc.replace_with_mask(column, mask, pa.array([texts[row] for row in sorted(texts)], pa.large_string()))


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
