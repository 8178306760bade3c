"""Delimited text: which character separates the cells of a CSV or TSV file, and quotes that swallow rows."""

import contextlib
import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from sweeplab.specs import InvalidInput

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
"""Characters between cells, and how messages call them."""
BY_EVIDENCE = ("\t", ",", ";", "|")
"""Which separator wins where several fit: captions hold commas, and hardly ever tabs."""
LONGEST_LINE = 2**20
"""Characters of the first line that are looked at."""


@dataclass(frozen=True)
class Dialect:
    """How the cells of a file are written."""

    separator: str = ","
    quoted: bool = True
    """Whether a cell that begins with a quote ends with one."""
    columns: tuple[str, ...] | None = None
    """Names of the columns where the file has no header."""


def open_text(path: Path) -> TextIO:
    """A UTF-8 file, unpacked where its suffix says that it is packed (.gz, .bz2, .zst)."""
    return io.TextIOWrapper(pa.input_stream(str(path)), encoding="utf-8-sig", errors="surrogateescape", newline="")


def find_dialect(
    path: Path,
    wanted: tuple[str, ...],
    columns: tuple[str, ...] | None = None,
    separator: str | None = None,
    quoted: bool | None = None,
) -> Dialect:
    """How a file is written, as far as that is not given.

    The separator is the one by which the first line has the wanted columns, or, without a header, as many cells as
    columns; where none does, the one that cuts the line into most cells. Cells are taken for quoted, but where tabs
    separate them and there is no header: such files (CC3M's, CC12M's) come from no library that would quote them.

    Raises:
        OSError: if the file cannot be read.
    """
    known = [
        Dialect(mark, not (mark == "\t" and columns) if quoted is None else quoted, columns)
        for mark in ((separator,) if separator else BY_EVIDENCE)
    ]
    with open_text(path) as text:
        lines = iter(lambda: text.readline(LONGEST_LINE), "")
        line = next((line for line in lines if line.strip("\r\n")), "").rstrip("\r\n")
    for dialect in known:
        cells = _cells(line, dialect)
        if set(wanted) <= set(cells) if columns is None else len(columns) == len(cells):
            return dialect
    return max(known, key=lambda dialect: (len(_cells(line, dialect)), dialect.separator == ","))


def refuse_swallowed(
    path: Path,
    num_rows: int,
    num_used: int | None = None,
    is_row: Callable[[dict[str, str]], bool] | None = None,
    dialect: Dialect = Dialect(),
) -> None:
    """Refuse a file in which a quote that is not closed makes one cell of several rows; readers do that in silence.

    Args:
        path: the file.
        num_rows: that were read from it; where it has as many lines, no cell holds two, and nothing more is done.
        num_used: rows that count, from the top; None: all.
        is_row: whether a line inside a cell, read by itself, is a row of the file; None: none is. A caption may have
            several lines.
        dialect: how the file is written.

    Raises:
        InvalidInput: naming the row in which the cell begins.
    """
    if not dialect.quoted:
        return
    hint = ", or set quoted=False if quotes are plain characters" if dialect.separator == "\t" else ""
    num_lines, last = _lines(path)
    if num_lines == num_rows + (dialect.columns is None):
        if (num_used is None or num_used >= num_rows) and _is_open(last, dialect):
            raise InvalidInput(
                f"{path}: a quote in the last row, line {num_lines}, is not closed; close it, or write a quote inside "
                f'a cell twice (""){hint}'
            )
        return
    with open_text(path) as lines:
        rows = csv.reader(lines, strict=True, delimiter=dialect.separator)
        header: list[str] = list(dialect.columns or ())
        count, line = (1 if header else 0), 0
        while num_used is None or count <= num_used:
            try:
                row: list[str] | None = next(rows, None)
                if row is None:
                    return
                held = [text for cell in row for text in cell.splitlines()[1:]] if rows.line_num > line + 1 else []
                swallowed = is_row is not None and any(
                    is_row(dict(zip(header, _cells(text, dialect), strict=False))) for text in held
                )
            except csv.Error:  # what follows the closing quote is no separator, or there is none to the end
                row, swallowed = ["?"], rows.line_num > line + 1
            if swallowed:
                raise InvalidInput(
                    f"{path}: row {count}, which begins in line {line + 1}, runs on to line {rows.line_num}: a quote "
                    "there is not closed, or is closed by a later row's, and the rows between are lost; close it, or "
                    f'write a quote inside a cell twice (""){hint}'
                )
            line = rows.line_num
            header = header or row
            count += bool(row)


def _lines(path: Path) -> tuple[int, str]:
    """How many lines a file has, and its last one, or the end of it."""
    with pa.input_stream(str(path)) as content:
        ends, tail = 0, b""
        while chunk := content.read(2**20):
            ends, tail = ends + chunk.count(b"\n"), (tail + chunk)[-LONGEST_LINE:]
    last = tail.removesuffix(b"\n").rpartition(b"\n")[2]
    return ends + (not tail.endswith(b"\n") and bool(tail)), last.decode(errors="surrogateescape")


def _is_open(line: str, dialect: Dialect) -> bool:
    """Whether a quote that begins a cell of a line is not closed in it."""
    rows = csv.reader([line, ""], delimiter=dialect.separator)
    with contextlib.suppress(csv.Error):
        next(rows, None)
    return rows.line_num > 1


def _cells(line: str, dialect: Dialect) -> list[str]:
    """The cells of a line by itself; none where it is no row."""
    if not dialect.quoted:
        return line.split(dialect.separator)
    try:
        return next(csv.reader([line], delimiter=dialect.separator), [])
    except csv.Error:
        return []
