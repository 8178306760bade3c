"""Labelled images in a table: CSV, TSV or Parquet with one row an image, as a path or as the bytes of its file."""

import csv
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from pydantic import Field

from sweeplab.data.delimited import Dialect, refuse_swallowed
from sweeplab.data.labels import (
    check_class_names,
    check_count,
    check_numbers,
    empty_classes,
    file_sizes,
    imagenet_names,
    names_of_ids,
    some,
)
from sweeplab.data.pair_columns import splits_among
from sweeplab.data.tables import LabelledImages
from sweeplab.data.unpacked import PackedImage, unpacked
from sweeplab.specs import InvalidInput, Spec

SEPARATORS = {".csv": ",", ".tsv": "\t", ".parquet": None}
"""Of cells, by the file's suffix; Parquet needs none."""
BATCH_ROWS = 256
"""Rows of a Parquet file whose images are in memory at the same time."""


class LabelledTable(Spec):
    """A table with a column of images and one of labels.

    Images are paths or, in Parquet, bytes of image files, bare or as Hugging Face keeps them (`bytes` and `path` in one
    column); bytes are written once into the home. Labels are names, WordNet ids or numbers from 0.
    """

    NOT_IN_DIGEST = frozenset({"path", "root", "absolute_below", "num_images"})

    kind: Literal["labelled-table"] = "labelled-table"
    path: Path
    """A .csv (commas), .tsv (tabs) or .parquet file, the first two with a header and in UTF-8; or a folder that holds
    the Parquet files of one table."""
    root: Path | None = None
    """Folder that all images are in, and that paths are relative to; None: the file's."""
    absolute_below: Path | None = None
    """Folder below which absolute image paths are looked up, for a table that was written on another machine: with
    /mnt/copy, /data/1.jpg is /mnt/copy/data/1.jpg. None: as they are."""
    image_column: str = "image"
    label_column: str = "label"
    class_names: Literal["labels", "imagenet"] | tuple[str, ...] = "labels"
    """`labels`: the labels themselves, sorted (WordNet ids by OpenAI's names), or the names that a Hugging Face table
    holds for its numbers; `imagenet`: ImageNet's thousand, for WordNet ids, and for numbers that count the sorted ids;
    or names in the order of the numbers."""
    num_images: int | None = Field(default=None, ge=1)
    """Images that are expected, for planning; None: whatever is found."""

    def read(self, data_home: Path) -> LabelledImages:
        """List the images in the order of the rows; decodes none.

        Args:
            data_home: where images that lie in the table itself are written to, once.

        Raises:
            InvalidInput: if the table cannot be read, a column or a file is missing, a path leads out of the root, or
                labels and class names do not fit.
        """
        files = self._files()
        if self._is_packed():
            columns = (self.image_column, self.label_column)
            found = unpacked(data_home, "table-images", files, lambda: self._packed(files), columns)
            root, images, sizes, labels = found.root, found.images, found.sizes, found.labels
        else:
            root, names, labels = self._paths(files)
            images, sizes = pa.array(names, pa.large_string()), file_sizes(root, names, str(self._place()))
        check_count(self.num_images, len(images), str(self._place()))
        numbers, class_names = self._classes(labels, files)
        notes = empty_classes(numbers, class_names, str(self._place()))
        return LabelledImages.of(root, images, sizes=sizes, labels=numbers, class_names=class_names, notes=notes)

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs: the table, and the images that lie outside of it.

        Raises:
            InvalidInput: as `read` does.
        """
        files = self._files()
        root, names, _ = ("", [], []) if self._is_packed() else self._paths(files)
        return [*map(str, files), *(os.path.join(root, name) for name in names)]

    def example(self) -> str:
        """Absolute path of the first row's image, or of the table where it holds the images itself.

        Raises:
            InvalidInput: as `files` does.
        """
        files = self.files()
        return files[0] if self._is_packed() else files[len(self._files())]

    def below(self, root: Path) -> Self:
        """The same images in a copy of all files that lies below `root`: /data/1.jpg at root/data/1.jpg."""

        def inside(path: Path) -> Path:
            return root / os.path.relpath(_absolute(path), "/")

        elsewhere = root if self.absolute_below is None else inside(self.absolute_below)
        own = None if self.root is None else inside(self.root)
        return self.replace(path=inside(self.path), root=own, absolute_below=elsewhere)

    def _place(self) -> Path:
        return _absolute(self.path)

    def _files(self) -> list[Path]:
        """The table's files, in order."""
        place = self._place()
        if os.path.isdir(place):
            files = sorted(place.glob("*.parquet"))
            splits = splits_among([file.name for file in files])
            if not files or len(splits) > 1:
                there = f"Parquet files of several tables ({some(splits)})" if files else "no Parquet file"
                raise InvalidInput(f"path={place} holds {there}; give one file, or a folder with those of one table")
            return files
        if not os.path.isfile(place):
            raise InvalidInput(f"path={place} does not exist; give a .csv, .tsv or .parquet file of images and labels")
        if place.suffix.lower() not in SEPARATORS:
            raise InvalidInput(f"path={place} is no table; known: {', '.join(SEPARATORS)}")
        return [place]

    def _is_packed(self) -> bool:
        """Whether the table holds the bytes of image files; else their paths.

        Raises:
            InvalidInput: if its files do not hold the same.
        """
        files = self._files()
        kinds = [self._holds_bytes(file) for file in files]
        names = [_kept_names(file, self.label_column) for file in files]
        odd = next(
            (file for file, *found in zip(files, kinds, names, strict=True) if found != [kinds[0], names[0]]), None
        )
        if odd is not None:
            raise InvalidInput(
                f"{odd} holds its images otherwise than {files[0]} (paths or bytes), or keeps other names of labels; "
                "give files of one table"
            )
        return kinds[0]

    def _holds_bytes(self, file: Path) -> bool:
        """Of one of its files."""
        if file.suffix.lower() != ".parquet":
            return False
        with _readable(file):
            schema = pyarrow.parquet.read_schema(file)
        self._check_columns(file, schema.names)
        found = schema.field(self.image_column).type
        if pa.types.is_string(found) or pa.types.is_large_string(found):
            return False
        inner = (
            found.field("bytes").type if pa.types.is_struct(found) and found.get_field_index("bytes") >= 0 else found
        )
        if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
            raise InvalidInput(
                f"{file}: column {self.image_column!r} is of type {found}; give paths, or the bytes of image files"
            )
        return True

    def _check_columns(self, file: Path, found: list[str]) -> None:
        for column in (self.image_column, self.label_column):
            if found.count(column) != 1:
                raise InvalidInput(
                    f"{file} has {'no' if column not in found else 'more than one'} column {column!r}; columns found: "
                    f"{', '.join(map(repr, found[:20]))}; set image_column and label_column, or mend the header"
                )

    def _columns(self, file: Path) -> tuple[list[Any], list[str]]:
        """Paths and labels of all rows of a file."""
        with _readable(file):
            if file.suffix.lower() == ".parquet":
                table = pyarrow.parquet.read_table(file, columns=[self.image_column, self.label_column])
            else:
                table = self._read_text(file)
            return table[self.image_column].to_pylist(), _texts(table[self.label_column], file, self.label_column)

    def _read_text(self, file: Path) -> pa.Table:
        separator = SEPARATORS[file.suffix.lower()] or ","
        with file.open(newline="", encoding="utf-8-sig") as lines:
            self._check_columns(file, next(csv.reader(lines, delimiter=separator), []))
        columns = [self.image_column, self.label_column]
        table = pyarrow.csv.read_csv(
            file,
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.large_string()),
                strings_can_be_null=False,
            ),
        )
        dialect = Dialect(separator)
        folder = _absolute(self.root) if self.root is not None else file.parent

        def is_row(row: dict[str, str]) -> bool:
            """Whether a line inside a cell, read by itself, names an image and a label."""
            name = row.get(self.image_column)
            return bool(name and row.get(self.label_column)) and os.path.isfile(os.path.join(folder, str(name)))

        refuse_swallowed(file, len(table), is_row=is_row, dialect=dialect)
        return table

    def _paths(self, files: list[Path]) -> tuple[str, list[str], list[str]]:
        """The folder of all images, their paths relative to it, and the labels."""
        paths, labels = [], []
        for file in files:
            found = self._columns(file)
            paths += found[0]
            labels += found[1]
        check_count(None, len(paths), str(self._place()))
        root = str(_absolute(self.root) if self.root is not None else files[0].parent)
        below = str(_absolute(self.absolute_below)).rstrip("/") if self.absolute_below is not None else ""
        return root, [self._inside(root, below, path, row) for row, path in enumerate(paths, start=1)], labels

    def _inside(self, root: str, below: str, path: Any, row: int) -> str:
        """The path of an image relative to the root."""
        where = f"{self._place()}: row {row}"
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise InvalidInput(f"{where} has no {self.image_column!r}; every row needs the path of an image")
        name = os.path.relpath(os.path.join(root, below + path if path.startswith("/") else path), root)
        if name == ".." or name.startswith("../"):
            raise InvalidInput(
                f"{where}: image {path} lies outside of root={root}; set root to the folder that holds all images"
            )
        return name

    def _packed(self, files: list[Path]) -> Iterator[PackedImage]:
        """The images that lie in the table itself."""
        for file in files:
            with _readable(file), pyarrow.parquet.ParquetFile(file) as table:
                # First, and all at once: a message counts the rows of the file.
                labels = _texts(table.read([self.label_column])[self.label_column], file, self.label_column)
                row = 0
                for batch in table.iter_batches(BATCH_ROWS, columns=[self.image_column]):
                    for held in batch.column(self.image_column).to_pylist():
                        row += 1
                        content = held.get("bytes") if isinstance(held, dict) else held
                        if not content:
                            raise InvalidInput(
                                f"{file}: row {row} holds no bytes of an image in {self.image_column!r}; every row "
                                "needs them: mend the row or remove it"
                            )
                        yield PackedImage.of_file(content, labels[row - 1])

    def _classes(self, labels: list[str], files: list[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
        """The number of each image's class, and the names."""
        where, are_numbers = str(self._place()), all(re.fullmatch(r"-?\d{1,9}", label) for label in labels)
        names = self.class_names if isinstance(self.class_names, tuple) else _kept_names(files[0], self.label_column)
        keys: dict[str, int] = {}
        if self.class_names == "imagenet":
            names = tuple(imagenet_names().values())
            keys = {name: number for number, name in enumerate(imagenet_names())}
        elif names:
            keys = {name: number for number, name in enumerate(names)}
        elif are_numbers:
            raise InvalidInput(
                f"{where}: the labels in {self.label_column!r} are numbers ({some(sorted(set(labels)))}), which are no "
                "names for prompts; give class_names in the order of the numbers"
            )
        else:
            keys = {label: number for number, label in enumerate(sorted(set(labels)))}
            known = names_of_ids(list(keys))
            names = tuple(known.get(label, label) for label in keys)
        names = check_class_names(names, "class_names" if isinstance(self.class_names, tuple) else where)
        if are_numbers:
            return check_numbers(np.array(labels, dtype=np.int64), len(names), where), names
        strange = sorted(set(labels) - set(keys))
        if strange:
            raise InvalidInput(
                f"{where}: {len(strange):,} labels in {self.label_column!r} are none of the {len(names):,} classes "
                f"({some(strange)}); mend them, or give all class_names"
            )
        return np.array([keys[label] for label in labels], dtype=np.int64), names


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Says what is wrong with a table that cannot be read."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, csv.Error) as error:
        how = "save it anew" if file.suffix == ".parquet" else "save it in UTF-8, with as many cells in each row"
        raise InvalidInput(f"path={file} cannot be read as {file.suffix[1:]} ({str(error).strip()}); {how}") from None
    except OSError as error:
        raise InvalidInput(f"path={file} cannot be read ({error}); copy it again or check its permissions") from None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _texts(column: Any, file: Path, name: str) -> list[str]:
    """Labels as text, blanks around them removed.

    Raises:
        InvalidInput: if they are neither text nor whole numbers, or one is missing.
    """
    if not (
        pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        raise InvalidInput(f"{file}: column {name!r} is of type {column.type}; labels are names or whole numbers")
    texts = ["" if value is None else str(value).strip() for value in column.to_pylist()]
    if "" in texts:
        raise InvalidInput(
            f"{file}: {texts.count(''):,} of {len(texts):,} rows have no {name!r}, the first is row "
            f"{texts.index('') + 1}; every row needs a label: fill it in or remove the row"
        )
    return texts


def _kept_names(file: Path, column: str) -> tuple[str, ...]:
    """The names that Hugging Face's datasets keep beside a column of numbers (`ClassLabel`); empty where none are."""
    if file.suffix.lower() != ".parquet":
        return ()
    held = (pyarrow.parquet.read_schema(file).metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(held)["info"]["features"][column]["names"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
