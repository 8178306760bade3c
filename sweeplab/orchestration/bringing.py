"""Bringing: files of the driver's node reach every other node once, where no shared folder holds them."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from sweeplab.orchestration.storage import MARK, Storage
from sweeplab.specs import StorageFault

CHUNK_BYTES = 32 * 2**20
"""Of a file, in one message."""

Read = Callable[[str, int, int], bytes]
"""Path, offset and size to bytes of a file of the driver's node."""


def local_copy(location: str, name: str, read: Read | None) -> Path:
    """The file itself where this node sees it, else a copy that is made once a node.

    Args:
        location: absolute path on the driver's node, or a URL.
        name: tells the content: equal names are equal files.
        read: asks the driver's node; None: there is only this one.

    Raises:
        FileNotFoundError: if there is neither the file nor a way to get it.
        StorageFault: if the disk of this node, or the object store, fails.
    """
    if MARK not in location and Path(location).exists():
        return Path(location)
    if MARK not in location and read is None:
        raise FileNotFoundError(f"{location} does not exist")
    folder = node_cache()
    copy = folder / f"{name}{Path(location).suffix}"
    with FileLock(folder / f".{copy.name}.lock"):
        if not copy.exists():
            if MARK in location:
                parent, _, file = location.rpartition("/")
                Storage(parent).download(file, copy)
            else:
                assert read is not None
                _receive(location, copy, read)
    return copy


def _receive(location: str, copy: Path, read: Read) -> None:
    part = copy.with_name(f".{copy.name}.part")
    try:
        with part.open("wb") as file:
            while chunk := read(location, file.tell(), CHUNK_BYTES):
                file.write(chunk)
        part.replace(copy)
    except OSError as error:
        raise StorageFault(f"cannot write {copy} ({error.strerror}); free space in {copy.parent}") from error


def node_cache() -> Path:
    """This user's folder for copies on this node; nobody else may write there."""
    folder = Path(tempfile.gettempdir()) / f"sweeplab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StorageFault(f"{folder} belongs to someone else; remove it, or set TMPDIR to a folder of yours")
    return folder
