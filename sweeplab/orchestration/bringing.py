"""Bringing: files of the driver's node reach every other node once, where no shared folder holds them."""

import contextlib
import hashlib
import os
import pickle
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from sweeplab.data.decoded import COMPLETE
from sweeplab.experiment import CleaningSweep, CleanSample, PretrainedVictim
from sweeplab.orchestration.files import hold, is_held, storage_faults, write_atomically
from sweeplab.orchestration.storage import MARK, Storage
from sweeplab.specs import InvalidInput, Spec, StorageFault, digest_of, file_digest

CHUNK_BYTES = 32 * 2**20
"""In one message."""

LOCK_SECONDS = 5.0
"""So often does whoever waits for a copy that another process makes say that it is alive."""
BLOCK_BYTES = 4096
"""Of a disk: what a small file may take beyond its size."""
KEPT_DAYS = 14
"""Copies that were not used for so long are removed by the next process that keeps something."""

S = TypeVar("S")

Read = Callable[[str, int, int], bytes]
"""Path, offset and size to bytes of a file of the driver's node."""


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


def local_copy(location: str, content: str, read: Read | None) -> Path:
    """The file itself where this node sees it, else a copy that is made once a node.

    Args:
        location: absolute path on the driver's node, or a URL.
        content: see `content_of`; a file of another content at that path is not the one.
        read: asks the driver's node; None: there is only this one.

    Raises:
        FileNotFoundError: if there is neither the file nor a way to get it.
        StorageFault: if the disk of this node, or the object store, fails.
    """
    if MARK not in location:
        is_here = Path(location).exists()
        if is_here and (read is None or content_of(location) == content):
            return Path(location)
        if read is None:
            raise FileNotFoundError(f"{location} does not exist")
    if not content:
        raise ValueError(f"a copy of {location} needs to be told from others")
    copy = node_cache() / f"weights-{content}{Path(location).suffix}"
    with FileLock(_lock_of(copy)):
        if copy.exists():
            os.utime(copy)
        elif MARK in location:
            parent, _, file = location.rpartition("/")
            Storage(parent).download(file, copy)
        else:
            assert read is not None
            _receive(location, copy, read)
    return copy


def _receive(location: str, copy: Path, read: Read) -> None:
    part = copy.with_name(f".{copy.name}.part")
    part.unlink(missing_ok=True)
    position = 0
    while chunk := read(location, position, CHUNK_BYTES):
        with storage_faults(f"{copy} of node {socket.gethostname()}"), part.open("ab") as file:
            file.write(chunk)
        position += len(chunk)
    with storage_faults(f"{copy} of node {socket.gethostname()}"):
        part.replace(copy)


def node_cache() -> Path:
    """This user's folder for copies on this node; nobody else may write there."""
    folder = Path(tempfile.gettempdir()) / f"sweeplab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StorageFault(f"{folder} belongs to someone else; remove it, or set TMPDIR to a folder of yours")
    return folder


def _lock_of(copy: Path) -> Path:
    return copy.with_name(f".{copy.name}.lock")


# --- the files that an experiment reads


@dataclass(frozen=True)
class Sources:
    """Paths that an experiment reads, as the driver's node sees them."""

    places: dict[str, str]
    """Absolute path of every path in the specs, which may be relative to where the driver was started."""
    probes: tuple[str, ...]
    """Some of the files, absolute: a node that sees these is taken to see all."""

    def missing(self) -> list[str]:
        """Those of the probes that this node does not see."""
        return [path for path in self.probes if not os.path.exists(path)]

    def on_this_node(self, spec: S, mirror: Callable[[], Path]) -> S:
        """The spec with the paths under which this node has the files.

        Args:
            spec: one of those that the sources were made of.
            mirror: gives the folder below which copies of all files lie; called where this node does not see them.
        """
        spec = _replaced(spec, lambda path: Path(self.places.get(str(path), path)))
        if not self.missing():
            return spec
        root, known = mirror(), set(self.places.values())
        return _replaced(spec, lambda path: root / str(path)[1:] if str(path) in known else path, below=root)


def parts_of(spec: CleaningSweep | PretrainedVictim, *, trains_victim: bool = True) -> list[Any]:
    """What of a spec names files to be read: data, test images, pictures of triggers, files of a method. Not the
    weights of victims, which are brought by themselves, nor the linear probe's images, which no worker reads.

    Args:
        spec: a sweep or a victim.
        trains_victim: whether a sweep's victim is to be trained; else its data are needed for a clean sample alone.
    """
    if isinstance(spec, PretrainedVictim):
        parts: list[Any] = [spec.data, spec.evaluation.replace(probe=None), spec.poisoning, spec.objective]
        if (reference := spec.reference()) is not None:
            parts += parts_of(reference)
        return parts
    victim = spec.original_victim()
    parts = [spec.data, spec.evaluation.replace(probe=None), spec.method, victim.trigger().attack]
    if isinstance(victim, PretrainedVictim) and (trains_victim or isinstance(spec.data, CleanSample)):
        parts += parts_of(victim)
    return parts


def sources_of(parts: list[Any]) -> Sources | None:
    """The files that parts of a spec read; None where there is none. They have been looked at before: a fault is a
    bug."""
    places = {str(path): _absolute(path) for part in parts for path in _paths_in(part)}
    examples = {example for part in parts for spec in _specs_in(part) for example in _examples_of(spec)}
    return Sources(places, tuple(sorted({*places.values(), *examples}))) if places else None


def _examples_of(spec: Any) -> Iterator[str]:
    """One file of each kind that a spec reads, not of its parts: a folder may be there and be an empty mount point."""
    if hasattr(spec, "example"):
        yield spec.example()
        return
    for path in _own_paths(spec):
        if os.path.isdir(_absolute(path)):
            yield from islice(files_of(path), 1)


def packed(parts: list[Any]) -> bytes:
    """The parts with absolute paths, pickled, for a process that was started elsewhere."""
    from ray import cloudpickle

    return cloudpickle.dumps([_replaced(part, lambda path: Path(_absolute(path))) for part in parts])


def _absolute(path: Path) -> str:
    return os.path.abspath(path.expanduser())


def _specs_in(value: Any) -> Iterator[Any]:
    """A spec and all those inside it."""
    if isinstance(value, Spec):
        yield value
        for name in type(value).model_fields:
            yield from _specs_in(getattr(value, name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _specs_in(item)


def _paths_in(value: Any) -> Iterator[Path]:
    for spec in _specs_in(value):
        yield from _own_paths(spec)


def _own_paths(spec: Spec) -> Iterator[Path]:
    for name in type(spec).model_fields:
        held = getattr(spec, name)
        for item in held if isinstance(held, (tuple, list)) else [held]:
            if isinstance(item, Path):
                yield item


def _replaced(value: Any, where: Callable[[Path], Path], below: Path | None = None) -> Any:
    """A copy of a spec with other paths; what names further files in its own way has a method `below`."""
    if isinstance(value, Path):
        return where(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(item, where, below) for item in value)
    if not isinstance(value, Spec):
        return value
    if below is not None and hasattr(value, "below"):
        return value.below(below)
    held = {name: getattr(value, name) for name in type(value).model_fields}
    changed = {name: new for name, old in held.items() if (new := _replaced(old, where, below)) != old}
    return value.replace(**changed) if changed else value


def files_of(value: Any) -> Iterator[str]:
    """Absolute paths of all files that a spec reads: what its parts with a method `files` say, else its paths, folders
    with all that is in them."""
    if isinstance(value, Spec) and hasattr(value, "files"):
        yield from value.files()
    elif isinstance(value, Spec):
        for name in type(value).model_fields:
            yield from files_of(getattr(value, name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from files_of(item)
    elif isinstance(value, Path):
        path = _absolute(value)
        if not os.path.isdir(path):
            yield path
        for folder, _, names in os.walk(path, followlinks=True):
            yield from (os.path.join(folder, name) for name in names)


# --- from the driver's node


@dataclass(frozen=True)
class Listing:
    """The files to be brought, one after the other as if they were a single long one."""

    names: pa.LargeStringArray
    """(N,) absolute paths, normalised, sorted, each once."""
    sizes: np.ndarray
    """(N,) int64, bytes."""
    digest: str
    """Sixteen hexadecimal digits of names, sizes and times of change."""

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return int(self.sizes.sum())

    @property
    def num_chunks(self) -> int:
        """Messages that bring them."""
        return -(-self.num_bytes // CHUNK_BYTES)

    def pieces(self, chunk: int) -> Iterator[tuple[int, int, int]]:
        """File, offset in it and bytes of each piece of a chunk, in order."""
        ends = self._ends
        start, stop = chunk * CHUNK_BYTES, min((chunk + 1) * CHUNK_BYTES, self.num_bytes)
        file = int(np.searchsorted(ends, start, side="right"))  # past those that end here: empty ones have no piece
        while start < stop:
            size = min(stop, int(ends[file])) - start
            if size:
                yield file, start - int(ends[file] - self.sizes[file]), size
            start, file = start + size, file + 1

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.sizes)


def listing_of(paths: Iterable[str]) -> Listing:
    """The listing of these files.

    Raises:
        InvalidInput: if one is gone.
    """
    names = sorted({os.path.normpath(path) for path in paths})
    try:
        found = [os.stat(name) for name in names]
    except OSError as error:
        raise InvalidInput(
            f"{error.filename} cannot be read ({error.strerror}) and so not be brought to nodes"
        ) from None
    sizes = np.array([status.st_size for status in found], dtype=np.int64)
    times = np.array([status.st_mtime_ns for status in found], dtype=np.int64)
    content = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    content.update(sizes.tobytes())
    content.update(times.tobytes())
    return Listing(pa.array(names, pa.large_string()), sizes, content.hexdigest()[:16])


class Porter:
    """A Ray actor on the driver's node that reads an experiment's files to nodes that do not see them; it looks for
    them when it is asked first."""

    def __init__(self, parts: bytes) -> None:
        self._parts: list[Any] = pickle.loads(parts)
        self._listing: Listing | None = None
        self._lock = threading.Lock()
        self._served = 0

    def listing(self) -> Listing:
        """What there is to bring."""
        with self._lock:
            if self._listing is None:
                self._listing = listing_of(path for part in self._parts for path in files_of(part))
            return self._listing

    def digest(self) -> str:
        """Of the listing."""
        return self.listing().digest

    def chunk(self, number: int) -> bytes:
        """The bytes of one chunk.

        Raises:
            InvalidInput: if a file is gone, or shorter than it was.
        """
        listing, content = self.listing(), bytearray()
        for file, offset, size in listing.pieces(number):
            path = listing.names[file].as_py()
            try:
                with open(path, "rb") as opened:
                    opened.seek(offset)
                    piece = opened.read(size)
            except OSError as error:
                raise InvalidInput(
                    f"{path} cannot be read any more ({error.strerror}), and other nodes need it; restore it"
                ) from None
            if len(piece) != size:
                raise InvalidInput(f"{path} became shorter while it was brought to other nodes; start again")
            content += piece
        self._served += 1
        return bytes(content)

    def beats(self) -> int:
        """Chunks so far."""
        return self._served


# --- to a node


class Carrier(Protocol):
    """What a node asks the driver's: a `Porter`, or what calls one."""

    def digest(self) -> str:
        """See `Porter.digest`."""
        ...

    def listing(self) -> Listing:
        """See `Porter.listing`."""
        ...

    def chunk(self, number: int) -> bytes:
        """See `Porter.chunk`."""
        ...


ARRIVED = "arrived"
"""In a mirror's folder: how many chunks have, and since which start of the machine."""
_held: dict[Path, int] = {}
"""Descriptors of the mirrors that this process reads: it holds them for the rest of its life."""


def mirror(carrier: Carrier, alive: Callable[[], None] = lambda: None, *, verify: bool = False) -> Path:
    """The folder below which copies of all files lie, made once a node: /data/1.jpg at FOLDER/data/1.jpg.

    Whoever is killed is followed by another process, which goes on where it was.

    Args:
        carrier: gives the files.
        alive: called now and then.
        verify: look whether all files of a mirror that is there are still there, as a tidy system may have removed
            some.

    Raises:
        StorageFault: if the disk of this node is too small, or fails.
    """
    folder = node_cache() / f"data-{carrier.digest()}"
    root = folder / "files"
    with storage_faults(f"{folder} of node {socket.gethostname()}"), _patiently_locked(_lock_of(folder), alive):
        if (folder / COMPLETE).exists():
            if verify:
                _make_whole(root, carrier, alive)
            os.utime(folder / COMPLETE)
        else:
            _fill(folder, root, carrier, alive)
        if folder not in _held:
            _held[folder] = hold(folder)
    return root


def _fill(folder: Path, root: Path, carrier: Carrier, alive: Callable[[], None]) -> None:
    listing = carrier.listing()
    root.mkdir(parents=True, exist_ok=True)
    arrived = _arrived(folder, root, listing)
    needed = listing.num_bytes + BLOCK_BYTES * len(listing.names) - _there(root, listing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageFault(
            f"{folder.parent} of node {socket.gethostname()} has {free / 1e9:.1f} GB free, and the data to be brought "
            f"there are {listing.num_bytes / 1e9:.1f} GB; free space, start that node's Ray with TMPDIR on a larger "
            "disk, or put the data on a path that all nodes share"
        )
    for chunk in range(arrived, listing.num_chunks):
        _write_chunk(chunk, root, listing, carrier)
        write_atomically(folder / ARRIVED, f"{chunk + 1} {_boot()}".encode(), durable=False)
        alive()
    _write_empty(np.flatnonzero(listing.sizes == 0).tolist(), root, listing)
    os.sync()  # once for all files: COMPLETE must not outlive what it speaks of
    (folder / COMPLETE).touch()


def _arrived(folder: Path, root: Path, listing: Listing) -> int:
    """Chunks that an earlier process has brought and that are whole: none where the machine was started anew since,
    since what was not on its disk yet is lost, and those before the first file that lacks something."""
    try:
        count, boot = (folder / ARRIVED).read_text().split()
    except (FileNotFoundError, ValueError):
        return 0
    if boot != _boot():
        return 0
    for chunk in range(int(count)):
        for file, offset, size in listing.pieces(chunk):
            if _size_of(_place(root, listing.names[file].as_py())) < offset + size:
                return chunk
    return int(count)


def _there(root: Path, listing: Listing) -> int:
    """Bytes that need no more room, since their files are there already."""
    if not any(root.iterdir()):
        return 0
    sizes = (_size_of(_place(root, name)) for name in listing.names.to_pylist())
    return sum(size + BLOCK_BYTES for size in sizes if size >= 0)


def _boot() -> str:
    """Tells the starts of this machine apart, where it says so."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def _write_chunk(
    chunk: int, root: Path, listing: Listing, carrier: Carrier, wanted: Callable[[int], bool] = lambda file: True
) -> None:
    content = memoryview(carrier.chunk(chunk))
    for file, offset, size in listing.pieces(chunk):
        if wanted(file):
            _write(_place(root, listing.names[file].as_py()), offset, content[:size])
        content = content[size:]


def _write_empty(empty: Iterable[int], root: Path, listing: Listing) -> None:
    """Files without a byte, which no chunk brings."""
    for file in empty:
        _write(_place(root, listing.names[file].as_py()), 0, memoryview(b""))


def _make_whole(root: Path, carrier: Carrier, alive: Callable[[], None]) -> None:
    """Bring again what a tidy system has removed, and touch nothing else: other processes may be reading."""
    listing = carrier.listing()
    lacking = {
        file
        for file, (name, size) in enumerate(zip(listing.names.to_pylist(), listing.sizes.tolist(), strict=True))
        if _size_of(_place(root, name)) != size
    }
    if not lacking:
        return
    for chunk in range(listing.num_chunks):
        if any(file in lacking for file, _, _ in listing.pieces(chunk)):
            _write_chunk(chunk, root, listing, carrier, lacking.__contains__)
            alive()
    _write_empty((file for file in lacking if not listing.sizes[file]), root, listing)
    os.sync()


def _size_of(path: Path) -> int:
    """Bytes; -1 where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _place(root: Path, name: str) -> Path:
    if not name.startswith("/") or os.path.normpath(name) != name:
        raise StorageFault(f"{name!r} is no absolute path that a file could be brought to")
    return root / name.lstrip("/")


def _write(path: Path, offset: int, content: memoryview) -> None:
    if offset and _size_of(path) < offset:
        raise StorageFault(f"{path} has lost what was brought; the same command brings it again")
    try:
        file = path.open("r+b" if offset else "wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    with file:
        file.seek(offset)
        file.write(content)


@contextmanager
def _patiently_locked(path: Path, alive: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=LOCK_SECONDS)
            break
        except Timeout:
            alive()
    try:
        yield
    finally:
        lock.release()


def remove_old_copies() -> None:
    """Remove what this node keeps, copies of files and decoded images, that was not used for KEPT_DAYS and that nobody
    makes now."""
    for copy, seconds in _kept():
        if seconds > 86_400 * KEPT_DAYS:
            remove_copy(copy)


def remove_copy(copy: Path) -> None:
    """Remove something that this node keeps, unless a process makes it now, or reads there."""
    with contextlib.suppress(OSError, Timeout), FileLock(_lock_of(copy), timeout=0):
        if not copy.is_dir():
            copy.unlink()
        elif not is_held(copy):
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
