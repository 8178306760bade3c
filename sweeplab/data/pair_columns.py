"""Pair columns: image paths and captions as a source holds them, and the checked table that is made of them."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sweeplab.data.sampling import Sample
from sweeplab.data.tables import CHUNK_ROWS, PairTable, image_path
from sweeplab.specs import InvalidInput

WEB_ADDRESS = ("http://", "https://", "ftp://")


@dataclass(frozen=True, eq=False)
class PairColumns:
    """All rows of a source, of which no image has been looked up yet."""

    path: Path
    """The source's file or folder, absolute."""
    images: pa.LargeStringArray
    """(N,) paths, absolute or relative to `folder`; empty where there is none."""
    captions: pa.LargeStringArray
    """(N,) texts."""
    folder: Path
    """Absolute folder that relative paths are in."""
    absolute_below: Path | None = None
    """Folder below which absolute paths are looked up; see `PairsCSV`."""
    names: tuple[str, str] = ("image", "caption")
    """How the source calls its images and captions."""
    notes: tuple[str, ...] = ()
    """See `PairTable`."""

    def used(self, num_pairs: int | None, sample: Sample | None) -> np.ndarray:
        """(n,) ascending rows: the first `num_pairs`, or a sample of them.

        Raises:
            InvalidInput: if there are fewer rows.
        """
        return used_rows(len(self.captions), self.path, num_pairs, sample)

    def table(self, rows: np.ndarray) -> PairTable:
        """The rows, ascending, as a table; looks up every image file, decodes none.

        Raises:
            InvalidInput: if a caption or path is empty, or an image is missing or an empty file; rows count from 1.
        """
        images, captions = self.images, self.captions
        if len(rows) < len(captions):  # to take all of them would copy hundreds of megabytes
            images, captions = images.take(rows), captions.take(rows)
        refuse_blank(images, rows, self.path, self.names[0], "the path of an image")
        refuse_blank(captions, rows, self.path, self.names[1], "a caption")
        root, images, below = self._placed(images)
        sizes, times = _looked_up(root, images, below)
        table = PairTable.of(root, images, captions, sizes, below, notes=self.notes, times=times)
        self._refuse_missing(table, rows)
        return table

    def image(self, row: int) -> str:
        """Absolute path of a row's image, which may not be there."""
        root, images, below = self._placed(self.images[row : row + 1])
        return image_path(root, images[0].as_py(), below)

    def _placed(self, images: pa.LargeStringArray) -> tuple[str, pa.LargeStringArray, str]:
        """The folder that the images are in, their paths relative to it where they have one (see `_relative`), and the
        folder below which the absolute ones are in, if not where they say."""
        folder = str(self.folder)
        if self.absolute_below is None:
            return *_relative(folder, images), ""
        below = os.path.abspath(self.absolute_below.expanduser()).rstrip("/")
        is_inside = self.folder.is_relative_to(below)  # then the file was moved together with its images
        origin = str(Path("/") / self.folder.relative_to(below)) if is_inside else folder
        root, images = _relative(origin, images)
        return (below + root if is_inside or root != origin else root), images, below

    def _refuse_missing(self, table: PairTable, rows: np.ndarray) -> None:
        missing = np.flatnonzero(table.sizes == 0)
        if not len(missing):
            return
        first = int(missing[0])
        name = table.images[first].as_py()
        if name.startswith(WEB_ADDRESS):
            raise InvalidInput(
                f"{self.path}: the images are web addresses, as in row {rows[first] + 1}: {name}; download them first "
                "(img2dataset does it, and Img2Dataset reads what it writes), or name the files in another column"
            )
        where = "" if self.absolute_below is None else f", which are below absolute_below={self.absolute_below}"
        raise InvalidInput(
            f"{self.path}: {len(missing)} of {len(table)} images are missing or empty files, the first in row "
            f"{rows[first] + 1}: {table.image(first)}; paths are relative to {self.folder} unless absolute{where}: "
            "mend the paths or remove the rows"
        )


def used_rows(available: int, path: Path | str, num_pairs: int | None, sample: Sample | None) -> np.ndarray:
    """See `PairColumns.used`; `available` rows are in `path`."""
    if num_pairs is not None and num_pairs > available:
        raise InvalidInput(
            f"num_pairs={num_pairs} exceeds the {available} rows of {path}; "
            f"choose num_pairs <= {available}, or leave it out to use all rows"
        )
    count = num_pairs or available
    try:
        return np.arange(count) if sample is None else sample.rows(count)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def below(root: Path, path: Path) -> Path:
    """Where a file lies in a copy of all files: of /data/1.jpg that is root/data/1.jpg."""
    return root / os.path.relpath(absolute(path), "/")


def absolute(path: Path) -> Path:
    """Absolute and normalised, `~` expanded; links stay."""
    return Path(os.path.abspath(path.expanduser()))


def refuse_outside(names: list[str], path: Path) -> None:
    """Refuse names, read from a file of somebody else's, that lead out of the folder that they are relative to.

    Raises:
        InvalidInput: naming the first.
    """
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise InvalidInput(
                f"{path} names the image {name!r}, which is not inside the folder of the images; names must be "
                "relative, without '..'"
            )


def texts(pieces: Iterable[pa.Array]) -> pa.LargeStringArray:
    """A column of texts as one array; nulls are empty texts."""
    arrays = [pc.fill_null(piece.cast(pa.large_string()), "") for piece in pieces]
    return pa.concat_arrays(arrays) if arrays else pa.array([], pa.large_string())


def strings(values: list[str], path: Path) -> pa.LargeStringArray:
    """Texts from a file of somebody else's, or names of files, as a column.

    Raises:
        InvalidInput: if one is no Unicode: half of a pair of surrogates, or a name of a file in another encoding.
    """
    try:
        return pa.array(values, pa.large_string())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{path} holds the text {error.object!r}, which is not Unicode; mend or remove it") from None


def refuse_blank(column: pa.LargeStringArray, rows: np.ndarray, path: Path, name: str, what: str) -> None:
    """Refuse empty texts.

    Args:
        column: (n,) texts.
        rows: (n,) their rows in the source, from 0.
        path: the source.
        name: of the column there.
        what: every row needs.

    Raises:
        InvalidInput: naming the first row.
    """
    blank = pc.equal(pc.utf8_trim_whitespace(column), "")
    if count := pc.sum(blank).as_py():
        first = int(rows[pc.index(blank, True).as_py()]) + 1
        raise InvalidInput(
            f"{path}: {count} of {len(column)} rows have no {name!r}, the first is row {first}; "
            f"every row needs {what}: fill it in or remove the row"
        )


def _relative(root: str, images: pa.LargeStringArray) -> tuple[str, pa.LargeStringArray]:
    """The folder and the paths relative to it, so that absolute paths do not tie the digest to one machine.

    Absolute paths below the folder become relative to it. Where all paths are absolute and others, the
    deepest folder that holds them all takes its place; a mixture stays as it is.
    """
    prefix = os.path.join(root, "")
    images = _without_prefix(images, prefix)
    if not pc.all(pc.starts_with(images, "/")).as_py():
        return root, images
    folders = pc.unique(pc.replace_substring_regex(images, pattern="[^/]*$", replacement=""))
    common = os.path.commonpath(folders.to_pylist())
    return common, _without_prefix(images, os.path.join(common, ""))


def _without_prefix(images: pa.LargeStringArray, prefix: str) -> pa.LargeStringArray:
    starts = pc.starts_with(images, prefix)
    if not pc.any(starts).as_py():
        return images
    return pc.if_else(starts, pc.utf8_slice_codeunits(images, len(prefix)), images)


def _looked_up(root: str, images: pa.LargeStringArray, absolute_below: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bytes of each file, 0 where there is none, and (N,) when it was changed last, nanoseconds since 1970.

    One stat a file: measured at 2.5-5 us, cheaper than a scan of the folder (which needs the
    stat for the size too) and than threads.
    """
    found = np.zeros((2, len(images)), dtype=np.int64)
    for start in range(0, len(images), CHUNK_ROWS):
        names = images[start : start + CHUNK_ROWS].to_pylist()
        found[:, start : start + len(names)] = np.array(list(_sizes_and_times(root, names, absolute_below))).T
    return found[0], found[1]


def _sizes_and_times(root: str, names: list[str], absolute_below: str) -> Iterator[tuple[int, int]]:
    for name in names:
        file = image_path(root, name, absolute_below)
        try:
            found = os.stat(file)
        except (OSError, ValueError):  # ValueError: a null character in the path
            yield 0, 0
        else:
            yield found.st_size if stat.S_ISREG(found.st_mode) else 0, found.st_mtime_ns


SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")
"""A file of a table that was written in parts, after the name of its split."""

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "restval")


def splits_among(names: Iterable[str]) -> list[str]:
    """The splits that Parquet files belong to, sorted: the names of tables in parts, and files named after a split. One
    table's files should not be read together with another's."""
    found = set()
    for name in names:
        if match := SHARD.fullmatch(name):
            found.add(match[1])
        elif (stem := name.removesuffix(".parquet").lower()) in SPLITS:
            found.add(stem)
    return sorted(found)
