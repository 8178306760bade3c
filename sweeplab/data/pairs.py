"""Image-caption pairs in a CSV file, one row a pair; every fault is found before training starts."""

import csv
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from pydantic import Field

from sweeplab.data.tables import CHUNK_ROWS, PairTable, image_path
from sweeplab.specs import InvalidInput, Spec


class PairsCSV(Spec):
    """A CSV file with a header, a column of image paths and one of captions (UTF-8, quoted where needed)."""

    NOT_IN_DIGEST = frozenset({"path", "absolute_below"})

    kind: Literal["csv"] = "csv"
    path: Path
    """The file; images are relative to its folder unless absolute."""
    absolute_below: Path | None = None
    """Folder below which absolute image paths are looked up, for a file that was written on another machine: with
    /mnt/copy, /data/1.jpg is /mnt/copy/data/1.jpg. None: as they are."""
    image_column: str = "image"
    caption_column: str = "caption"
    num_pairs: int | None = Field(default=None, ge=1)
    """Rows to use, from the top; None: all."""

    def read(self, data_home: Path) -> PairTable:
        """Read the pairs; looks up every image file, decodes none.

        Args:
            data_home: not used, the file lies where `path` says.

        Raises:
            InvalidInput: if the file cannot be read, a column is missing, there are fewer rows than
                `num_pairs`, a caption is empty, an image file is missing or empty, or a quote that is not closed
                swallows rows. Rows count from 1 after the header, without blank lines.
        """
        path = self._file()
        images, captions = self._columns(path)
        below = os.path.abspath(self.absolute_below.expanduser()).rstrip("/") if self.absolute_below else ""
        refuse_swallowed(
            path,
            len(images),
            self.num_pairs,
            lambda row: os.path.isfile(image_path(str(path.parent), row.get(self.image_column, ""), below)),
        )
        if self.num_pairs is not None and self.num_pairs > len(images):
            raise InvalidInput(
                f"num_pairs={self.num_pairs} exceeds the {len(images)} rows of {path}; "
                f"choose num_pairs <= {len(images)}, or leave it out to use all rows"
            )
        if not len(images):
            raise InvalidInput(_no_rows(path))
        rows = np.arange(self.num_pairs or len(images))
        images, captions = images.take(rows), captions.take(rows)
        _refuse_blank(images, path, self.image_column, "the path of an image")
        _refuse_blank(captions, path, self.caption_column, "a caption")
        root, images, below = self._placed(path, images)
        table = PairTable.of(root, images, captions, _file_sizes(root, images, below), below)
        self._refuse_missing(table, path)
        return table

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs: the file, and the images of the rows that are used.

        Raises:
            InvalidInput: as `read` does.
        """
        table = self.read(Path())
        return [str(self._file()), *(table.image(row) for row in range(len(table)))]

    def example(self) -> str:
        """Absolute path of the first row's image; reads no more of the file than that takes.

        Raises:
            InvalidInput: if the file cannot be read, a column is missing, or there is no row.
        """
        path = self._file()
        with self._options(path) as options, pyarrow.csv.open_csv(path, **options) as reader:
            images = next((batch.column(self.image_column) for batch in reader if len(batch)), None)
        if images is None:
            raise InvalidInput(_no_rows(path))
        root, images, below = self._placed(path, images[:1])
        return image_path(root, images[0].as_py(), below)

    def below(self, root: Path) -> Self:
        """The same pairs in a copy of all files that lies below `root`: /data/1.jpg at root/data/1.jpg."""
        elsewhere = _below(root, self.absolute_below) if self.absolute_below is not None else root
        return self.replace(path=_below(root, self.path), absolute_below=elsewhere)

    def _file(self) -> Path:
        return Path(os.path.abspath(self.path.expanduser()))

    def _placed(self, path: Path, images: pa.LargeStringArray) -> tuple[str, pa.LargeStringArray, str]:
        """The folder that the images are in, their paths relative to it where they have one (see `_relative`), and the
        folder below which the absolute ones are in, if not where they say."""
        folder = str(path.parent)
        if self.absolute_below is None:
            return *_relative(folder, images), ""
        below = os.path.abspath(self.absolute_below.expanduser()).rstrip("/")
        is_inside = path.parent.is_relative_to(below)  # then the file was moved together with its images
        origin = str(Path("/") / path.parent.relative_to(below)) if is_inside else folder
        root, images = _relative(origin, images)
        return (below + root if is_inside or root != origin else root), images, below

    def _refuse_missing(self, table: PairTable, path: Path) -> None:
        missing = np.flatnonzero(table.sizes == 0)
        if len(missing):
            row = int(missing[0])
            below = self.absolute_below
            where = "" if below is None else f", which are below absolute_below={below}"
            raise InvalidInput(
                f"{path}: {len(missing)} of {len(table)} images are missing or empty files, the first in row "
                f"{row + 1}: {table.image(row)}; paths are relative to the CSV's folder unless "
                f"absolute{where}: mend the paths or remove the rows"
            )

    def _columns(self, path: Path) -> tuple[pa.LargeStringArray, pa.LargeStringArray]:
        """All rows of the two columns."""
        with self._options(path) as options:
            table = pyarrow.csv.read_csv(path, **options)
        images, captions = (_one_array(table[name]) for name in (self.image_column, self.caption_column))
        return images, captions

    @contextmanager
    def _options(self, path: Path) -> Iterator[dict[str, Any]]:
        """What pyarrow has to be told to read the two columns; says what is wrong with a file that cannot be read."""
        if not os.path.isfile(path):  # False too where it cannot be seen
            raise InvalidInput(f"path={path} is no file; give a CSV file with the columns {self._wanted()}")
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        convert = pyarrow.csv.ConvertOptions(
            include_columns=[self.image_column, self.caption_column],
            column_types={name: pa.large_string() for name in (self.image_column, self.caption_column)},
            strings_can_be_null=False,
        )
        try:
            with pyarrow.csv.open_csv(path, parse_options=parse) as reader:
                found = reader.schema.names
            for column in (self.image_column, self.caption_column):
                if found.count(column) != 1:
                    raise InvalidInput(
                        f"{path} has {'no' if column not in found else 'more than one'} column {column!r}; "
                        f"columns found: {', '.join(map(repr, found))}; "
                        "set image_column and caption_column, or mend the header"
                    )
            yield {"parse_options": parse, "convert_options": convert}
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            refuse_swallowed(path, -1)  # says more where that is the reason
            raise InvalidInput(
                f"path={path} is not readable as CSV ({str(error).strip()}); "
                "save it as comma-separated UTF-8 with a header and as many cells in each row"
            ) from None
        except OSError as error:
            raise InvalidInput(f"path={path} cannot be read ({error}); check its permissions") from None

    def _wanted(self) -> str:
        return f"{self.image_column!r} and {self.caption_column!r}"


def refuse_swallowed(
    path: Path, num_rows: int, num_used: int | None = None, is_row: Callable[[dict[str, str]], bool] | None = None
) -> None:
    """Refuse a CSV in which a quote that is not closed makes one cell of several rows; readers do that in silence.

    Args:
        path: the file.
        num_rows: that were read from it; where it has as many lines, no cell holds two, and nothing more is done.
        num_used: rows that count, from the top; None: all.
        is_row: whether a line inside a cell, read by itself, is a row of the file; None: none is. A caption may have
            several lines.

    Raises:
        InvalidInput: naming the row in which the cell begins.
    """
    with path.open("rb") as lines:
        ends, last = 0, b"\n"
        while content := lines.read(2**20):
            ends, last = ends + content.count(b"\n"), content[-1:]
    if ends + (last != b"\n") == 1 + num_rows:
        return
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        rows = csv.reader(lines, strict=True)
        header: list[str] = []
        count = line = 0
        while num_used is None or count <= num_used:
            try:
                row: list[str] | None = next(rows, None)
                if row is None:
                    return
                held = [text for cell in row for text in cell.splitlines()[1:]] if rows.line_num > line + 1 else []
                swallowed = is_row is not None and any(is_row(_cells(header, text)) for text in held)
            except csv.Error:  # what follows the closing quote is no comma, or there is none to the end
                row, swallowed = ["?"], rows.line_num > line + 1
            if swallowed:
                raise InvalidInput(
                    f"{path}: row {count}, which begins in line {line + 1}, runs on to line {rows.line_num}: a quote "
                    "there is not closed, or is closed by a later row's, and the rows between are lost; close it, or "
                    'write a quote inside a cell twice ("")'
                )
            line = rows.line_num
            header = header or row
            count += bool(row)


def _cells(header: list[str], line: str) -> dict[str, str]:
    """A line by itself as a row; empty where it is none."""
    try:
        return dict(zip(header, next(csv.reader([line])), strict=False))
    except (csv.Error, StopIteration):
        return {}


def _no_rows(path: Path) -> str:
    return f"path={path} has a header but no rows; give one row for each pair"


def _below(root: Path, path: Path) -> Path:
    return root / os.path.relpath(os.path.abspath(path.expanduser()), "/")


def _one_array(column: pa.ChunkedArray) -> pa.LargeStringArray:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.large_string())


def _refuse_blank(texts: pa.LargeStringArray, path: Path, column: str, what: str) -> None:
    blank = pc.equal(pc.utf8_trim_whitespace(texts), "")
    if count := pc.sum(blank).as_py():
        first = pc.index(blank, True).as_py() + 1
        raise InvalidInput(
            f"{path}: {count} of {len(texts)} rows have no {column!r}, the first is row {first}; "
            f"every row needs {what}: fill it in or remove the row"
        )


def _relative(root: str, images: pa.LargeStringArray) -> tuple[str, pa.LargeStringArray]:
    """The folder and the paths relative to it, so that absolute paths do not tie the digest to one machine.

    Absolute paths below the CSV's folder become relative to it. Where all paths are absolute and others, the
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


def _file_sizes(root: str, images: pa.LargeStringArray, absolute_below: str) -> np.ndarray:
    """(N,) bytes of each file, 0 where there is none.

    One stat a file: measured at 2.5-5 us, cheaper than a scan of the folder (which needs the
    stat for the size too) and than threads.
    """
    sizes = np.zeros(len(images), dtype=np.int64)
    for start in range(0, len(images), CHUNK_ROWS):
        names = images[start : start + CHUNK_ROWS].to_pylist()
        sizes[start : start + len(names)] = list(_sizes_in(root, names, absolute_below))
    return sizes


def _sizes_in(root: str, names: list[str], absolute_below: str) -> Iterator[int]:
    for name in names:
        file = image_path(root, name, absolute_below)
        try:
            found = os.stat(file)
        except (OSError, ValueError):  # ValueError: a null character in the path
            yield 0
        else:
            yield found.st_size if stat.S_ISREG(found.st_mode) else 0
