"""Unpacked images: what lies in archives, arrays and tables becomes files of the home, once, named by content."""

import contextlib
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from sweeplab.specs import InvalidInput, StorageFault, digest_of, file_digest
from sweeplab.storage.files import read_object, write_json
from sweeplab.storage.locks import file_lock, lock_path

logger = logging.getLogger("sweeplab")

LAYOUT = 1
"""Of what is written here, part of the folders' names. Raise it when that changes."""

FOLDER_ROWS = 1000
"""Files in one folder."""

SUFFIXES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"))
"""By what an image file begins with."""

TABLE = "images.parquet"


@dataclass(frozen=True)
class PackedImage:
    """One image and its label, as they were packed."""

    content: bytes
    """Of the image file."""
    suffix: str
    name: str
    """Twelve hexadecimal digits of what is in it, part of the file's name and so of every digest."""
    label: str

    @classmethod
    def of_file(cls, content: bytes, label: str) -> Self:
        """An image that was packed as a file; the suffix follows from what it begins with."""
        other = ".webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else ".image"
        suffix = next((suffix for start, suffix in SUFFIXES if content.startswith(start)), other)
        return cls(content, suffix, hashlib.sha256(content).hexdigest()[:12], label)

    @classmethod
    def of_pixels(cls, image: Image.Image, label: str) -> Self:
        """An image that was packed as an array of pixels, as PNG: not compressed, so that the size depends on no zlib
        version, and named after its pixels."""
        content = io.BytesIO()
        image.save(content, "png", compress_level=0)
        pixels = repr((image.mode, image.size)).encode() + image.tobytes()
        return cls(content.getvalue(), ".png", hashlib.sha256(pixels).hexdigest()[:12], label)


@dataclass(frozen=True, eq=False)
class Unpacked:
    """Images that lie in the home as files."""

    root: str
    """Absolute folder that the images are in."""
    images: pa.LargeStringArray
    """(N,) paths relative to `root`."""
    sizes: np.ndarray
    """(N,) int64, bytes of each file."""
    labels: list[str]
    """(N,) as they were packed."""


def unpacked(
    data_home: Path,
    prefix: str,
    sources: Sequence[Path],
    images: Callable[[], Iterable[PackedImage]],
    settings: Sequence[str] = (),
) -> Unpacked:
    """The images of packed files, written into a folder of the home that is named after the sources' content.

    Args:
        data_home: the home's folder of data.
        prefix: of the folder's name: the kind of source.
        sources: all that `images` reads.
        images: gives the images in their order; called where the folder is not there yet.
        settings: what else the images depend on.

    Raises:
        InvalidInput: if a source cannot be read, the home cannot be written, or the folder is damaged.
        StorageFault: if the disk is full.
    """
    home = Path(os.path.abspath(data_home.expanduser()))
    try:
        contents = [_known_digest(path, home) for path in sources]
    except OSError as error:
        raise InvalidInput(f"{error.filename} cannot be read ({error.strerror}); check its permissions") from None
    folder = home / f"{prefix}-{digest_of([LAYOUT, *settings, *(one['digest'] for one in contents)])}"

    def write(partial: Path) -> None:
        _write(partial, images())
        for path, content in zip(sources, contents, strict=True):  # else other images lay under this digest for good
            if _facts(path).items() - content.items():
                raise InvalidInput(f"{path} has changed while it was unpacked; run the same command again")

    materialise(folder, write, f"the images of {sources[0]}")
    for path, content in zip(sources, contents, strict=True):
        _remember(path, home, content)
    return _read(folder)


def _known_digest(path: Path, home: Path) -> dict[str, Any]:
    """A file's digest by content, and what tells whether it has changed since; it is not read again while that stays,
    as large archives would be by every process."""
    facts = _facts(path)
    record = _record(path, home)
    known: dict[str, Any] = {}
    with contextlib.suppress(InvalidInput, OSError):  # a cache: a damaged one is made anew
        known = read_object(record, digest=str)
    if {name: known.get(name) for name in facts} == facts:
        return known
    return {**facts, "digest": file_digest(path)}


def _facts(path: Path) -> dict[str, Any]:
    status = os.stat(path)
    return {"size": status.st_size, "changed": status.st_mtime_ns, "inode": status.st_ino}


def _remember(path: Path, home: Path, known: dict[str, Any]) -> None:
    record = _record(path, home)
    with contextlib.suppress(InvalidInput, OSError):
        if read_object(record) == known:
            return
    write_json(record, known, durable=False)


def _record(path: Path, home: Path) -> Path:
    return home / ".digests" / f"{digest_of(os.path.abspath(path))}.json"


def _write(folder: Path, images: Iterable[PackedImage]) -> None:
    names, sizes, labels = [], [], []
    for row, image in enumerate(images):
        inner = f"{row // FOLDER_ROWS:04d}"
        if row % FOLDER_ROWS == 0:
            (folder / inner).mkdir()
        names.append(f"{inner}/{row:07d}-{image.name}{image.suffix}")
        (folder / names[-1]).write_bytes(image.content)
        sizes.append(len(image.content))
        labels.append(image.label)
    columns = {
        "image": pa.array(names, pa.large_string()),
        "size": pa.array(sizes, pa.int64()),
        "label": pa.array(labels, pa.large_string()),
    }
    pyarrow.parquet.write_table(pa.table(columns), folder / TABLE)


def _read(folder: Path) -> Unpacked:
    try:
        table = pyarrow.parquet.read_table(folder / TABLE).combine_chunks()
        names, sizes = table["image"].to_pylist(), table["size"].to_numpy().astype(np.int64)
        found = np.array([os.stat(folder / name).st_size for name in names], dtype=np.int64)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise InvalidInput(f"{folder} is damaged ({error}); remove this folder, and it is made again") from None
    if not np.array_equal(sizes, found):
        name = names[int(np.flatnonzero(sizes != found)[0])]
        raise InvalidInput(f"{folder} is damaged ({name} has changed); remove this folder, and it is made again")
    return Unpacked(str(folder), pa.array(names, pa.large_string()), sizes, table["label"].to_pylist())


def materialise(folder: Path, write: Callable[[Path], None], what: str) -> None:
    """Make a folder of the home's data unless it is there: whole or not at all, by one maker at a time.

    Args:
        folder: to be made.
        write: fills the folder that it is given, which then takes that place.
        what: names the content in messages.

    Raises:
        InvalidInput: if the home cannot be written.
        StorageFault: if the disk is full.
    """
    if folder.is_dir():
        return
    partial = folder.with_name(f".{folder.name}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(lock_path(folder)):
            if folder.is_dir():
                return
            if partial.exists():  # left by a maker that was killed: the lock says that it is gone
                shutil.rmtree(partial)
            partial.mkdir()
            logger.info(f"making {what}, once: {folder}")
            try:
                write(partial)
                os.replace(partial, folder)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        is_given = isinstance(error, (NotADirectoryError, FileExistsError, PermissionError))
        raise (InvalidInput if is_given else StorageFault)(
            f"data_home={folder.parent} cannot hold {what} ({error}); "
            "free some space or mend the permissions there, or choose another home with SWEEPLAB_HOME"
        ) from None
