"""Image-caption pairs in a CSV or TSV file, one row a pair; every fault is found before training starts."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv
from pydantic import Field, model_validator

from sweeplab.data.broken import MaxBroken
from sweeplab.data.class_folders import IMAGE_SUFFIXES
from sweeplab.data.delimited import SEPARATORS, Dialect, find_dialect, refuse_swallowed
from sweeplab.data.pair_columns import PairColumns, absolute, below, texts
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import PairTable, image_path
from sweeplab.specs import InvalidInput, Spec


class PairsCSV(Spec):
    """A CSV or TSV file with a column of image paths and one of captions (UTF-8, quoted where needed, or packed: .gz).

    Of open_clip's default layout the columns are `filepath` and `title`, separated by tabs.
    """

    NOT_IN_DIGEST = frozenset({"path", "root", "absolute_below", "separator", "columns", "quoted", "max_broken"})

    kind: Literal["csv"] = "csv"
    path: Path
    """The file."""
    root: Path | None = None
    """Folder that relative image paths are in; None: the file's own."""
    absolute_below: Path | None = None
    """Folder below which absolute image paths are looked up, for a file that was written on another machine: with
    /mnt/copy, /data/1.jpg is /mnt/copy/data/1.jpg. None: as they are."""
    separator: Literal[",", "\t", ";", "|"] | None = None
    """Between cells; None: found in the first line."""
    columns: tuple[str, ...] | None = None
    """Names of all columns where the file has no header, as CC3M's and CC12M's have none; None: the first row names
    them."""
    quoted: bool | None = None
    """Whether a cell that begins with a quote ends with one, as pandas, spreadsheets and open_clip write and read it.
    None: in all files but those that are separated by tabs and have no header, where quotes are plain characters."""
    image_column: str = "image"
    caption_column: str = "caption"
    num_pairs: int | None = Field(default=None, ge=1)
    """Rows to use, from the top; None: all."""
    sample: Sample | None = None
    """A random part of these rows; None: all of them."""
    max_broken: MaxBroken = 0.01
    """Share of these rows, a fraction, that may be broken (no caption, or an image that is missing, empty or cannot be
    decoded): others stand in for them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in (self.image_column, self.caption_column):
            if self.columns is not None and self.columns.count(name) != 1:
                raise ValueError(f"columns={self.columns} must name {name!r} once; set image_column and caption_column")
        return self

    def read(self, data_home: Path) -> PairTable:
        """Read the pairs; looks up every image file, decodes none.

        Args:
            data_home: not used, the file lies where `path` says.

        Raises:
            InvalidInput: if the file cannot be read, a column is missing, there are fewer rows than
                `num_pairs` or the sample, more than `max_broken` of them has no caption, or an image file that is
                missing or empty, or a quote that is not closed swallows rows. Rows count from 1 after the header,
                without blank lines.
        """
        columns = self._columns()
        return columns.table(columns.used(self.num_pairs, self.sample), self.max_broken)

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs: the file, and the images of the rows that are used.

        Raises:
            InvalidInput: as `read` does.
        """
        table = self.read(Path())
        return [str(absolute(self.path)), *table.files()]

    def example(self) -> str:
        """Absolute path of the first image that is used; without a sample, reads no more of the file than that takes.

        Raises:
            InvalidInput: if the file cannot be read, a column is missing, or there is no row.
        """
        if self.sample is not None:
            columns = self._columns()
            return columns.example(columns.used(self.num_pairs, self.sample))
        path = absolute(self.path)
        with self._options(path) as (options, _), pyarrow.csv.open_csv(path, **options) as reader:
            first = next((batch for batch in reader if len(batch)), None)
        if first is None:
            raise InvalidInput(_no_rows(path))
        columns = self._located(path, pa.Table.from_batches([first]))
        return columns.example(np.arange(len(first)))

    def below(self, root: Path) -> Self:
        """The same pairs in a copy of all files that lies below `root`: /data/1.jpg at root/data/1.jpg."""
        return self.replace(
            path=below(root, self.path),
            root=None if self.root is None else below(root, self.root),
            absolute_below=root if self.absolute_below is None else below(root, self.absolute_below),
        )

    def _columns(self) -> PairColumns:
        """All rows of the two columns."""
        path = absolute(self.path)
        with self._options(path) as (options, dialect):
            table = pyarrow.csv.read_csv(path, **options)
        folder, elsewhere = str(self._folder(path)), self._elsewhere()
        doubtful: list[str] = []

        def is_row(cells: dict[str, str]) -> bool:
            """Whether a line names an image that is there; of one that is not, nobody knows."""
            name = cells.get(self.image_column, "")
            if os.path.isfile(image_path(folder, name, elsewhere)):
                return True
            if name.lower().endswith(IMAGE_SUFFIXES):
                doubtful.append(name)
            return False

        refuse_swallowed(path, len(table), self.num_pairs, is_row, dialect)
        if not len(table):
            raise InvalidInput(_no_rows(path))
        return dataclasses.replace(self._located(path, table), notes=tuple(_doubts(path, doubtful)))

    def _located(self, path: Path, table: pa.Table) -> PairColumns:
        return PairColumns(
            path,
            texts(table[self.image_column].chunks),
            texts(table[self.caption_column].chunks),
            self._folder(path),
            self.absolute_below,
            (self.image_column, self.caption_column),
        )

    def _folder(self, path: Path) -> Path:
        return path.parent if self.root is None else absolute(self.root)

    def _elsewhere(self) -> str:
        return "" if self.absolute_below is None else str(absolute(self.absolute_below)).rstrip("/")

    def _dialect(self, path: Path) -> Dialect:
        wanted = (self.image_column, self.caption_column)
        return find_dialect(path, wanted, self.columns, self.separator, self.quoted)

    @contextmanager
    def _options(self, path: Path) -> Iterator[tuple[dict[str, Any], Dialect]]:
        """What pyarrow has to be told to read the two columns; says what is wrong with a file that cannot be read."""
        if not os.path.isfile(path):  # False too where it cannot be seen
            wanted = f"{self.image_column!r} and {self.caption_column!r}"
            raise InvalidInput(f"path={path} is no file; give a CSV file with the columns {wanted}")
        dialect = Dialect(columns=self.columns)
        try:
            dialect = self._dialect(path)
            yield self._arrow_options(path, dialect), dialect
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            refuse_swallowed(path, -1, dialect=dialect)  # says more where that is the reason
            word, name = SEPARATORS[dialect.separator], "TSV" if dialect.separator == "\t" else "CSV"
            header = "with a header and as many cells" if self.columns is None else f"with {len(self.columns)} cells"
            raise InvalidInput(
                f"path={path} is not readable as {name} ({str(error).strip()}); "
                f"save it as {word}-separated UTF-8 {header} in each row"
            ) from None
        except OSError as error:
            raise InvalidInput(
                f"path={path} cannot be read ({error}); check its permissions, and that it is whole if it is packed"
            ) from None

    def _arrow_options(self, path: Path, dialect: Dialect) -> dict[str, Any]:
        wanted = (self.image_column, self.caption_column)
        options: dict[str, Any] = {
            "parse_options": pyarrow.csv.ParseOptions(
                delimiter=dialect.separator,
                quote_char='"' if dialect.quoted else False,
                newlines_in_values=dialect.quoted,
            ),
            "read_options": pyarrow.csv.ReadOptions(column_names=self.columns),
        }
        with pyarrow.csv.open_csv(path, **options) as reader:
            found = reader.schema.names
        for column in wanted:
            if found.count(column) != 1:
                raise InvalidInput(
                    f"{path} has {'no' if column not in found else 'more than one'} column {column!r}; "
                    f"columns found: {', '.join(map(repr, found))}; set image_column and caption_column, or mend the "
                    "header; where the file has none, name all columns: columns=('caption', 'image')"
                )
        convert = pyarrow.csv.ConvertOptions(
            include_columns=list(wanted),
            column_types={name: pa.large_string() for name in wanted},
            strings_can_be_null=False,
        )
        return {**options, "convert_options": convert}


def _doubts(path: Path, doubtful: list[str]) -> Iterator[str]:
    """What a user should look at, where quoted captions hold lines that look like rows."""
    if doubtful:
        yield (
            f"{path}: {len(doubtful)} lines inside quoted captions look like rows of images that are missing, the "
            f"first {doubtful[0]!r}; where a quote there is not closed, rows are lost"
        )


def _no_rows(path: Path) -> str:
    return f"path={path} has a header but no rows; give one row for each pair"
