"""Node cache: what a node keeps for its processes, each thing made once: decoded images, tables, copies of files and
weights. All of it has one budget; beyond that, what was unused longest is removed."""

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from filelock import Timeout

from sweeplab.specs import InvalidInput, StorageFault, digest_of, file_digest
from sweeplab.storage.checkpoint_store import MARK
from sweeplab.storage.files import write_atomically
from sweeplab.storage.locks import file_lock, is_pinned, lock_path, pin, unpinned
from sweeplab.storage.remote_files import fetch

COMPLETE = "complete"
"""File in a folder that a node keeps: all is there; its time says when it was used last, and it may hold the bytes of
the whole folder."""
KEPT_DAYS = 14
"""What was not used for so long is removed by the next process that keeps something."""

_pinned: dict[Path, int] = {}
"""Descriptors of what this process uses: it pins it for the rest of its life."""
_budget = math.inf
"""Bytes of all that this node keeps, as this process has been told."""


@dataclass(frozen=True)
class Kept:
    """Something that a node keeps: a file or a folder."""

    path: Path
    bytes: int
    """On the disk."""
    unused_seconds: float
    """Since it was used last."""


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

    return kept_file(f"weights-{content}{Path(location).suffix}", make, pinned=True)


def kept_file(name: str, make: Callable[[Path], object], *, pinned: bool = False) -> Path:
    """A file that this node keeps, made once; its time says when it was used last. It may exceed the budget, and other
    things then make room for it.

    Args:
        name: tells its content.
        make: writes it to the path that it is given, whole or not at all.
        pinned: whether this process pins it, see `use`; a file that is not may be gone before it is opened.
    """
    copy = node_cache() / name
    # Many processes of a node ask at once, and only the first one fetches.
    with file_lock(lock_path(copy)):
        if not copy.exists():
            make(copy)
            make_room(0, budget=_budget)
        os.utime(copy)
        if pinned:
            use(copy)
    return copy


def node_cache() -> Path:
    """This user's folder for copies on this node; nobody else may write there."""
    folder = Path(tempfile.gettempdir()) / f"sweeplab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StorageFault(f"{folder} belongs to someone else; remove it, or set TMPDIR to a folder of yours")
    return folder


def use(place: Path) -> bool:
    """Say that something which the node keeps is used now, and pin it for the rest of this process's life: as long as
    that lasts, nobody removes it to make room.

    Returns:
        Whether it is there.
    """
    try:
        descriptor = pin(place)
    except FileNotFoundError:
        return False
    if not place.exists() or not os.path.samestat(place.stat(), os.fstat(descriptor)):
        os.close(descriptor)  # it was removed before it was pinned
        return False
    if place in _pinned:  # of the same thing, or of one that the system has tidied away
        os.close(_pinned[place])
    _pinned[place] = descriptor
    mark = place / COMPLETE
    os.utime(mark if mark.exists() else place)
    return True


def let_go(place: Path) -> None:
    """Pin something no longer."""
    if (descriptor := _pinned.pop(place, None)) is not None:
        os.close(descriptor)


def remove_old_copies() -> None:
    """Remove what was not used for KEPT_DAYS and no process uses, or makes now."""
    for copy in kept_copies():
        if copy.unused_seconds > 86_400 * KEPT_DAYS:
            remove_copy(copy.path)


def tidy(budget: float) -> None:
    """Remove what was not used for KEPT_DAYS, and then, what was unused longest first, what exceeds the budget; nothing
    that a process uses, or makes now.

    Args:
        budget: bytes of all that this node keeps; from now on, files that this process fetches are kept within it too.
    """
    global _budget
    _budget = budget
    remove_old_copies()
    make_room(0, budget=budget)


def make_room(num_bytes: float, *, budget: float = math.inf, share: float = 1.0, folder: Path | None = None) -> bool:
    """Have so many bytes more fit in, removing what was unused longest first; nothing that a process uses, or makes
    now, and nothing at all where that does not help.

    Args:
        num_bytes: that are needed.
        budget: bytes of all that this node keeps.
        share: of the free space that may be taken.
        folder: where the node keeps things; None: `node_cache()`.

    Returns:
        Whether they fit.
    """
    folder = folder or node_cache()
    kept = kept_copies(folder)
    taken, free = sum(copy.bytes for copy in kept), shutil.disk_usage(folder).free

    def fits(freed: int) -> bool:
        return taken - freed + num_bytes <= budget and num_bytes <= share * (free + freed)

    oldest = sorted(kept, key=lambda copy: -copy.unused_seconds)
    removable = [copy for copy in oldest if copy.path.name[0] != "." and _is_free(copy.path)]
    if num_bytes and not fits(sum(copy.bytes for copy in removable)):
        return False
    freed = 0
    for copy in removable:
        if fits(freed):
            break
        freed += copy.bytes if remove_copy(copy.path) else 0
    return fits(freed)


def _is_free(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return not is_pinned(path)
    return False


def remove_copy(copy: Path) -> bool:
    """Remove something that this node keeps, unless a process makes it now, or uses it; whether it is gone."""
    with (
        contextlib.suppress(OSError, Timeout, InvalidInput),
        file_lock(lock_path(copy)).acquire(timeout=0),
        unpinned(copy) as is_free,
    ):
        if is_free and copy.is_dir():
            shutil.rmtree(copy)
        elif is_free:
            copy.unlink()
    return not copy.exists()


def kept_copies(folder: Path | None = None) -> list[Kept]:
    """What this node keeps, by name; in `folder`, if not in `node_cache()`."""
    found = []
    for path in sorted((folder or node_cache()).iterdir()):
        with contextlib.suppress(OSError):  # another process removes it now
            if path.suffix != ".lock":
                mark = path / COMPLETE
                used = (mark if mark.exists() else path).stat().st_mtime
                found.append(Kept(path, _bytes_of(path), time.time() - used))
    return found


def _bytes_of(path: Path) -> int:
    """On the disk; of a folder of millions of files its mark says it."""
    if not path.is_dir():
        return 512 * path.stat().st_blocks
    with contextlib.suppress(OSError, ValueError):
        return int((path / COMPLETE).read_text())
    return sum(512 * file.stat().st_blocks for file in path.rglob("*") if file.is_file())
