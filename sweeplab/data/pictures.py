"""Pictures: images that a table holds as bytes, written once into the data home as ordinary files."""

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sweeplab.specs import InvalidInput
from sweeplab.storage.files import storage_faults, write_atomically
from sweeplab.storage.locks import file_lock, lock_path

logger = logging.getLogger("sweeplab")

FOLDER = "pictures"
"""Below the data home."""
FIRST_BYTES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"))
"""How files of a format begin. (WebP has its name in bytes 8 to 12.)"""


NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{32}(\.[a-z0-9]+)?|")
"""Of a picture, by its content; empty for a row without one."""


class Pictures:
    """Files named by their content, so that an image lies there once however often and from wherever it came.

    Whatever decodes images takes a path, and the node's cache of decoded images goes by paths too: files keep one way
    of reading for all sources, at the price of the images' size on the home's disk.
    """

    def __init__(self, data_home: Path) -> None:
        self.folder = Path(os.path.abspath(data_home.expanduser())) / FOLDER

    def unpacked(self, key: str, contents: Callable[[], Iterable[bytes | None]], what: str) -> pa.LargeStringArray:
        """The names of a source's images, in order; they are written where they are not there yet.

        Args:
            key: of the source as it is now, and of the rows: what was unpacked under it is not unpacked again, unless
                a file is gone or cut short.
            contents: gives the bytes of all images; None where a row has none.
            what: the source, for the log.

        Returns:
            (N,) paths relative to `folder`; empty where a row has no image.

        Raises:
            InvalidInput: if the folder may not be written.
            StorageFault: if the disk is full.
        """
        index = self.folder / f"{key}.parquet"
        if (known := self._known(index)) is not None:
            return known
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"data_home={self.folder.parent} cannot hold images ({error}); mend the permissions there, or choose "
                "another home with SWEEPLAB_HOME"
            ) from None
        with file_lock(lock_path(index)):
            if (known := self._known(index)) is not None:  # another process was quicker
                return known
            logger.info(f"unpacking the images of {what} into {self.folder}")
            written = [self._write(content) for content in contents()]
            names = pa.array([name for name, _ in written], pa.large_string())
            sink = io.BytesIO()
            pq.write_table(pa.table({"name": names, "size": [size for _, size in written]}), sink)
            write_atomically(index, sink.getvalue())
        return names

    def _known(self, index: Path) -> pa.LargeStringArray | None:
        """The names in an index whose files are all there at their full size; an index of another shape, which a home
        that was copied here may hold, is none."""
        try:
            table = pq.read_table(index)
            names, sizes = table["name"].combine_chunks(), table["size"].to_numpy()
            if not all(name is not None and (not name or NAME.fullmatch(name)) for name in names.to_pylist()):
                return None
            found = np.fromiter((self._size(name) for name in names.to_pylist()), np.int64)
        except (OSError, pa.ArrowInvalid, KeyError, TypeError):
            return None
        return names.cast(pa.large_string()) if np.array_equal(found, sizes) else None

    def _size(self, name: str) -> int:
        return os.stat(self.folder / name).st_size if name else 0

    def _write(self, content: bytes | None) -> tuple[str, int]:
        """Name and bytes of one image."""
        if not content:
            return "", 0
        digest = hashlib.sha256(content).hexdigest()[:32]
        name = f"{digest[:2]}/{digest}{_suffix(content)}"
        path = self.folder / name
        with storage_faults(path):
            is_there = path.exists() and path.stat().st_size == len(content)
        if not is_there:
            # Not durable each by itself, which would take a second for every hundred: sizes are compared later.
            write_atomically(path, content, durable=False)
        return name, len(content)


def _suffix(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for first, suffix in FIRST_BYTES if content.startswith(first)), "")
