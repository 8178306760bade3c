"""Node cache: copies that a node keeps of what processes read, each made once and removed when unused."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from filelock import Timeout

from sweeplab.specs import InvalidInput, StorageFault, digest_of, file_digest
from sweeplab.storage.checkpoint_store import MARK
from sweeplab.storage.files import write_atomically
from sweeplab.storage.locks import file_lock, is_pinned, lock_path
from sweeplab.storage.remote_files import fetch

COMPLETE = "complete"
"""File in a folder that a node keeps: all is there; its time says when it was used last."""
KEPT_DAYS = 14
"""Copies that were not used for so long are removed by the next process that keeps something."""


def content_of(location: str) -> str:
    """Tells the content of a file: its digest, or that of its URL, as no name is used twice in an object store.

    Raises:
        OSError: if it cannot be read.
    """
    if MARK in location:
        return digest_of(location)
    found = os.stat(location)
    return _digest_at(location, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _digest_at(path: str, size: int, time_ns: int) -> str:
    return file_digest(Path(path))


def local_copy(location: str, content: str, read: Callable[[], bytes] | None) -> Path:
    """The file itself where this node sees it, else a copy that is made once a node.

    Args:
        location: absolute path on the driver's node, or a URL.
        content: see `content_of`; a file of another content at that path is not the one.
        read: gives the file's bytes; None: every node sees it.

    Raises:
        FileNotFoundError: if there is neither the file nor a way to get it.
        StorageFault: if the disk of this node, or the object store, fails.
    """
    if MARK not in location:
        # A file of the same path on another node may be another file: its content decides.
        is_here = Path(location).exists()
        if is_here and (read is None or content_of(location) == content):
            return Path(location)
        if read is None:
            raise FileNotFoundError(f"{location} does not exist")
    if not content:
        raise ValueError(f"a copy of {location} needs to be told from others")

    def make(copy: Path) -> None:
        if MARK in location:
            fetch(location, copy)
        else:
            assert read is not None
            write_atomically(copy, read())

    return kept_file(f"weights-{content}{Path(location).suffix}", make)


def kept_file(name: str, make: Callable[[Path], object]) -> Path:
    """A file that this node keeps, made once; its time says when it was used last.

    Args:
        name: tells its content.
        make: writes it to the path that it is given, whole or not at all.
    """
    copy = node_cache() / name
    # Many processes of a node ask at once, and only the first one fetches.
    with file_lock(lock_path(copy)):
        if copy.exists():
            # Copies are removed by the time of their last use.
            os.utime(copy)
        else:
            make(copy)
    return copy


def node_cache() -> Path:
    """This user's folder for copies on this node; nobody else may write there."""
    folder = Path(tempfile.gettempdir()) / f"sweeplab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StorageFault(f"{folder} belongs to someone else; remove it, or set TMPDIR to a folder of yours")
    return folder


def remove_old_copies() -> None:
    """Remove what this node keeps, copies of files and decoded images, that was not used for KEPT_DAYS and that nobody
    makes now."""
    for copy, seconds in _kept():
        if seconds > 86_400 * KEPT_DAYS:
            remove_copy(copy)


def remove_copy(copy: Path) -> None:
    """Remove something that this node keeps, unless a process makes it now, or reads there."""
    with contextlib.suppress(OSError, Timeout, InvalidInput), file_lock(lock_path(copy)).acquire(timeout=0):
        if not copy.is_dir():
            copy.unlink()
        elif not is_pinned(copy):
            shutil.rmtree(copy)


def kept_copies() -> list[tuple[Path, int, float]]:
    """What this node keeps: where, bytes on the disk, and seconds since it was used last."""
    found = []
    for copy, seconds in _kept():
        with contextlib.suppress(OSError):  # another process removes it now
            paths = [path for path in copy.rglob("*") if path.is_file()] if copy.is_dir() else [copy]
            found.append((copy, sum(512 * path.stat().st_blocks for path in paths), seconds))
    return found


def _kept() -> Iterator[tuple[Path, float]]:
    for copy in sorted(node_cache().iterdir()):
        with contextlib.suppress(OSError):
            if copy.suffix != ".lock":
                mark = copy / COMPLETE
                yield copy, time.time() - (mark if mark.exists() else copy).stat().st_mtime
