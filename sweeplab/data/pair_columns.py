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

from sweeplab.data.broken import num_tolerated, too_many
from sweeplab.data.images import SHOWN
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import CHUNK_ROWS, PairTable, image_path
from sweeplab.specs import InvalidInput

EXAMPLES = 256
"""Rows among which one with an image is looked for."""
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

    def table(self, rows: np.ndarray, max_broken: float) -> PairTable:
        """The rows, ascending, as a table; looks up every image file, decodes none.

        Raises:
            InvalidInput: if more than that share of the rows has no caption or path, or an image that is missing or an
                empty file; rows count from 1.
        """
        images, captions = self.images, self.captions
        if len(rows) < len(captions):  # to take all of them would copy hundreds of megabytes
            images, captions = images.take(rows), captions.take(rows)
        unnamed, wordless = _blank(images), _blank(captions)
        if unnamed.any():
            images = pc.if_else(pa.array(unnamed), "", images)
        root, images, below = self._placed(images)
        sizes, times = _looked_up(root, images, below)
        table = PairTable.of(root, images, captions, sizes, below, notes=self.notes, times=times)

        def reason(row: int) -> str:
            if unnamed[row]:
                return f"it has no {self.names[0]!r}"
            return f"{table.image(row)} {'is missing or empty' if not sizes[row] else f'has no {self.names[1]!r}'}"

        broken = np.flatnonzero(unnamed | wordless | (sizes == 0)).tolist()
        if len(broken) > num_tolerated(max_broken, len(table)):
            name = table.images[broken[0]].as_py()
            if name.startswith(WEB_ADDRESS):
                raise InvalidInput(
                    f"{self.path}: the images are web addresses, as in row {rows[broken[0]] + 1}: {name}; download "
                    "them first (img2dataset does it, and Img2Dataset reads what it writes), or name the files in "
                    "another column"
                )
            shown = {int(rows[row]): reason(row) for row in broken[:SHOWN]}
            raise too_many(shown, len(broken), len(table), max_broken, str(self.path), self._places())
        return table.with_broken({row: reason(row) for row in broken})

    def _places(self) -> str:
        where = "" if self.absolute_below is None else f", which are below absolute_below={self.absolute_below}"
        return f"paths are relative to {self.folder} unless absolute{where}; "

    def image(self, row: int) -> str:
        """Absolute path of a row's image, which may not be there."""
        root, images, below = self._placed(self.images[row : row + 1])
        return image_path(root, images[0].as_py(), below)

    def example(self, rows: np.ndarray) -> str:
        """Absolute path of the first image that is there, of the first rows of these; else of the first row."""
        paths = [self.image(int(row)) for row in rows[:EXAMPLES]]
        return next(filter(os.path.isfile, paths), paths[0])

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


def used_rows(available: int, path: Path | str, num_pairs: int | None, sample: Sample | None) -> np.ndarray:
    """See `PairColumns.used`; `available` rows are in `path`."""
    if num_pairs is not None and num_pairs > available:
        raise InvalidInput(
            f"num_pairs={num_pairs} exceeds the {available:,} rows of {path}; "
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


def refuse_wordless(captions: pa.LargeStringArray, rows: np.ndarray, max_broken: float, path: Path, name: str) -> None:
    """Refuse captions of which too many are empty, before anything is done for their images.

    Args:
        captions: (n,) texts.
        rows: (n,) their rows in the source, from 0.
        max_broken: of the source.
        path: of the source.
        name: how it calls its captions.

    Raises:
        InvalidInput: naming the first ones.
    """
    wordless = np.flatnonzero(_blank(captions))
    if len(wordless) > num_tolerated(max_broken, len(captions)):
        shown = {int(rows[row]): f"it has no {name!r}" for row in wordless[:SHOWN]}
        raise too_many(shown, len(wordless), len(captions), max_broken, str(path))


def _blank(column: pa.LargeStringArray) -> np.ndarray:
    """(N,) bool, which texts hold nothing but blanks."""
    blank: np.ndarray = pc.equal(pc.utf8_trim_whitespace(column), "").to_numpy(zero_copy_only=False)
    return blank


def _relative(root: str, images: pa.LargeStringArray) -> tuple[str, pa.LargeStringArray]:
    """The folder and the paths relative to it, so that absolute paths do not tie the digest to one machine.

    Absolute paths below the folder become relative to it. Where all paths are absolute and others, the
    deepest folder that holds them all takes its place; a mixture stays as it is.
    """
    prefix = os.path.join(root, "")
    images = _without_prefix(images, prefix)
    named = images.filter(pc.not_equal(images, ""))
    if not len(named) or not pc.all(pc.starts_with(named, "/")).as_py():
        return root, images
    folders = pc.unique(pc.replace_substring_regex(named, pattern="[^/]*$", replacement=""))
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
