"""Image-caption pairs in Parquet files: paths of images, or the images themselves, as Hugging Face writes them."""

import fnmatch
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from sweeplab.data.broken import MaxBroken
from sweeplab.data.img2dataset import SUCCESS, left_out
from sweeplab.data.pair_columns import PairColumns, absolute, below, refuse_wordless, splits_among, texts, used_rows
from sweeplab.data.pictures import Pictures
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import CHUNK_ROWS, PairTable
from sweeplab.specs import InvalidInput, Spec, digest_of

BATCH_ROWS = 256
"""Rows whose images are in memory at the same time while they are unpacked."""


class PairsParquet(Spec):
    """A Parquet file, or a folder of them, read in the order of their names, with images and captions in two columns.

    The images are paths, bytes, or structs of `bytes` and `path`, as `datasets` of Hugging Face writes them (of the
    two the bytes count, where the first row with an image has any). Bytes are unpacked once, into the home's
    `data/pictures`.

    Of what img2dataset writes with `output_format="parquet"` (`image_column="jpg"`), rows that were not downloaded are
    left out, and counted in a note.
    """

    NOT_IN_DIGEST = frozenset({"path", "pattern", "root", "absolute_below", "max_broken"})

    kind: Literal["parquet"] = "parquet"
    path: Path
    """The file, or the folder that holds them."""
    pattern: str = "*.parquet"
    """Which files of the folder: where it holds several splits, `train-*.parquet`. Hidden ones are left out."""
    root: Path | None = None
    """Folder that relative image paths are in; None: the folder of the Parquet files."""
    absolute_below: Path | None = None
    """Folder below which absolute image paths are looked up; see `PairsCSV`."""
    image_column: str = "image"
    caption_column: str = "caption"
    num_pairs: int | None = Field(default=None, ge=1)
    """Rows to use, from the top; None: all."""
    sample: Sample | None = None
    """A random part of these rows; None: all of them."""
    max_broken: MaxBroken = 0.01
    """Share of these rows, a fraction, that may be broken (no caption, or an image that is missing, empty or cannot be
    decoded): others stand in for them."""

    def read(self, data_home: Path) -> PairTable:
        """Read the pairs; looks up every image file, or unpacks the images that are used, and decodes none.

        Args:
            data_home: where images that are held as bytes are unpacked.

        Raises:
            InvalidInput: if a file cannot be read, a column is missing or of another type, there are fewer rows than
                `num_pairs` or the sample, or more than `max_broken` of them has no caption or image. Rows count from 1,
                over all files.
            StorageFault: if the disk does not hold the unpacked images.
        """
        held, field = self._images()
        if held == "paths":
            columns = self._columns(field)
            return columns.table(columns.used(self.num_pairs, self.sample), self.max_broken)
        captions, names = self._texts(self.caption_column), (self.image_column, self.caption_column)
        kept, notes = self._downloaded(len(captions))
        captions = captions.take(kept)
        rows, pictures = self._used(len(captions)), Pictures(data_home)
        refuse_wordless(captions.take(rows), rows, self.max_broken, absolute(self.path), self.caption_column)
        found = pictures.unpacked(self._key(kept[rows]), lambda: self._contents(field, kept[rows]), str(self.path))
        images = pa.nulls(len(captions), pa.large_string()).fill_null("")
        images = pc.replace_with_mask(images, np.isin(np.arange(len(captions)), rows), found)
        columns = PairColumns(absolute(self.path), images, captions, pictures.folder, names=names, notes=notes)
        return columns.table(rows, self.max_broken)

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs: the Parquet files, and the images of the rows that are used.

        Raises:
            InvalidInput: as `read` does.
        """
        files = list(map(str, self._files()))
        if self._images()[0] == "bytes":
            return files
        table = self.read(Path())
        return [*files, *table.files()]

    def example(self) -> str:
        """Absolute path of the first image that is used; where images are bytes, of the first Parquet file.

        Raises:
            InvalidInput: if a file cannot be read, a column is missing, or there is no row.
        """
        held, field = self._images()
        if held == "bytes":
            return str(self._files()[0])
        columns = self._columns(field)
        return columns.example(columns.used(self.num_pairs, self.sample))

    def below(self, root: Path) -> Self:
        """The same pairs in a copy of all files that lies below `root`: /data/1.jpg at root/data/1.jpg."""
        return self.replace(
            path=below(root, self.path),
            root=None if self.root is None else below(root, self.root),
            absolute_below=root if self.absolute_below is None else below(root, self.absolute_below),
        )

    def _files(self) -> list[Path]:
        path = absolute(self.path)
        if os.path.isfile(path):
            return [path]
        try:
            names = sorted(name for name in fnmatch.filter(os.listdir(path), self.pattern) if name[0] not in "._")
        except OSError:
            raise InvalidInput(
                f"path={path} is neither a file nor a folder that can be read; give a Parquet file with the columns "
                f"{self.image_column!r} and {self.caption_column!r}, or the folder that holds such files"
            ) from None
        if not names:
            raise InvalidInput(
                f"path={path} holds no file {self.pattern!r}; give the folder that holds them, or pattern"
            )
        if self.pattern == "*.parquet" and len(splits := splits_among(names)) > 1:
            raise InvalidInput(
                f"path={path} holds Parquet files of several splits ({', '.join(splits)}); give pattern, such as "
                f"{splits[-1] + '-*.parquet'!r}, to say which are meant"
            )
        return [path / name for name in names]

    def _used(self, available: int) -> np.ndarray:
        return used_rows(available, absolute(self.path), self.num_pairs, self.sample)

    def _columns(self, field: str | None) -> PairColumns:
        """All rows, of images that are named by paths."""
        path = absolute(self.path)
        folder = self._files()[0].parent if self.root is None else absolute(self.root)
        images, names = self._texts(self.image_column, field), (self.image_column, self.caption_column)
        return PairColumns(path, images, self._texts(self.caption_column), folder, self.absolute_below, names)

    def _images(self) -> tuple[Literal["paths", "bytes"], str | None]:
        """How images are held, and in which field of their column where it holds structs.

        Raises:
            InvalidInput: if a file cannot be read, there is no row, or a column is missing or of another type.
        """
        found = [self._image_type(file) for file in self._files()]
        if len(set(found)) > 1:
            raise InvalidInput(
                f"the Parquet files of {self.path} hold {self.image_column!r} in different types "
                f"({', '.join(sorted(set(found)))}); give files of one data set"
            )
        if next(self._batches(self.caption_column, None, 1), None) is None:
            raise InvalidInput(f"path={self.path} has no rows; give one row for each pair")
        if found[0] == "struct":
            return ("bytes", "bytes") if self._holds_bytes() else ("paths", "path")
        return ("paths" if found[0] == "text" else "bytes"), None

    def _holds_bytes(self) -> bool:
        """Whether the first struct that holds anything has bytes; True where all are empty."""
        contents = self._batches(self.image_column, "bytes", BATCH_ROWS)
        paths = self._batches(self.image_column, "path", BATCH_ROWS)
        for some, names in zip(contents, paths, strict=True):
            given = pc.or_(some.is_valid(), names.is_valid())
            if (row := pc.index(given, True).as_py()) >= 0:
                return bool(some[row].is_valid)
        return True

    def _image_type(self, file: Path) -> Literal["text", "binary", "struct"]:
        """How a file holds images; checks both columns."""
        with _opened(file) as parquet:
            schema = parquet.schema_arrow
        for column in (self.image_column, self.caption_column):
            if len(schema.get_all_field_indices(column)) != 1:
                raise InvalidInput(
                    f"{file} has no column {column!r}; columns found: {', '.join(map(repr, schema.names))}; "
                    "set image_column and caption_column"
                )
        image, caption = (schema.field(name).type for name in (self.image_column, self.caption_column))
        if not _is_text(caption):
            raise InvalidInput(f"{file}: column {self.caption_column!r} holds {caption}, not texts; set caption_column")
        if _is_text(image):
            return "text"
        if pa.types.is_binary(image) or pa.types.is_large_binary(image):
            return "binary"
        if pa.types.is_struct(image) and {"bytes", "path"} <= {field.name for field in image}:
            return "struct"
        raise InvalidInput(
            f"{file}: column {self.image_column!r} holds {image}, neither paths nor bytes nor structs of bytes and "
            "path; set image_column"
        )

    def _downloaded(self, num_rows: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """Which rows are kept, ascending, and what to say of the others: all but those that img2dataset says it did not
        download."""
        for file in self._files():
            with _opened(file) as parquet:
                columns = parquet.schema_arrow
            if not {"key", "status"} <= set(columns.names) or not _is_text(columns.field("status").type):
                return np.arange(num_rows), ()
        statuses = self._texts("status")
        failed = Counter(statuses.filter(pc.not_equal(statuses, SUCCESS)).to_pylist())
        if not 0 < failed.total() < num_rows:
            return np.arange(num_rows), ()
        kept = np.flatnonzero(pc.equal(statuses, SUCCESS).to_numpy(zero_copy_only=False))
        return kept, (left_out(absolute(self.path), failed, num_rows),)

    def _texts(self, column: str, field: str | None = None) -> pa.LargeStringArray:
        """A column of texts, or a field of a column of structs, of all files."""
        return texts(self._batches(column, field, CHUNK_ROWS))

    def _batches(self, column: str, field: str | None, rows: int) -> Iterator[pa.Array]:
        """A column, or a field of it, of all files, piece by piece, none of them empty."""
        for file in self._files():
            with _opened(file) as parquet:
                for batch in parquet.iter_batches(rows, columns=[column if field is None else f"{column}.{field}"]):
                    held = batch.column(column)
                    held.validate(full=True)  # Parquet's readers take any bytes for UTF-8
                    if len(held):
                        yield held if field is None else pc.struct_field(held, field)

    def _contents(self, field: str | None, rows: np.ndarray) -> Iterator[bytes | None]:
        """The bytes of the images of ascending rows."""
        start = 0
        for batch in self._batches(self.image_column, field, BATCH_ROWS):
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            yield from batch.take(pa.array(rows[first:last] - start)).to_pylist()
            start += len(batch)

    def _key(self, rows: np.ndarray) -> str:
        """Of the files as they are now, and of the rows that are used."""
        found = [(str(file), os.stat(file)) for file in self._files()]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]
        return digest_of([files, self.image_column, hashlib.sha256(rows.astype("<i8")).hexdigest()])


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file; says what is wrong with one that cannot be read."""
    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{file} is not readable as Parquet ({str(error).strip()}); write or copy it again"
        ) from None


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value)
