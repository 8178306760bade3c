"""Node data: files of the driver's node reach every other node once, where no shared folder holds them."""

import contextlib
import hashlib
import os
import pickle
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sweeplab.execution.loops import receive_data
from sweeplab.execution.nodes import is_alive
from sweeplab.execution.open_mailbox import HeartbeatCount, open_mailbox
from sweeplab.execution.watchdog import Watchdog, run_watched
from sweeplab.specs import InvalidInput, StorageFault, Unfinished
from sweeplab.storage.files import storage_faults, write_atomically
from sweeplab.storage.locks import locked_with_retry, pin
from sweeplab.storage.node_cache import CHUNK_BYTES, COMPLETE, _lock_of, node_cache
from sweeplab.worker.failures import root_cause
from sweeplab.worker.input_paths import files_of

BLOCK_BYTES = 4096
"""Of a disk: what a small file may take beyond its size."""


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

    def heartbeats(self) -> int:
        """Chunks so far."""
        return self._served


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
"""In a node copy's folder: how many chunks have, and since which start of the machine."""

_held: dict[Path, int] = {}
"""Descriptors of the node copies that this process reads: it holds them for the rest of its life."""


def node_copy(carrier: Carrier, heartbeat: Callable[[], None] = lambda: None, *, verify: bool = False) -> Path:
    """The folder below which copies of all files lie, made once a node: /data/1.jpg at FOLDER/data/1.jpg.

    Whoever is killed is followed by another process, which goes on where it was.

    Args:
        carrier: gives the files.
        alive: called now and then.
        verify: look whether all files of a node copy that is there are still there, as a tidy system may have removed
            some.

    Raises:
        StorageFault: if the disk of this node is too small, or fails.
    """
    folder = node_cache() / f"data-{carrier.digest()}"
    root = folder / "files"
    with storage_faults(f"{folder} of node {socket.gethostname()}"), locked_with_retry(_lock_of(folder), heartbeat):
        if (folder / COMPLETE).exists():
            if verify:
                _make_whole(root, carrier, heartbeat)
            os.utime(folder / COMPLETE)
        else:
            _fill(folder, root, carrier, heartbeat)
        if folder not in _held:
            _held[folder] = pin(folder)
    return root


def _fill(folder: Path, root: Path, carrier: Carrier, heartbeat: Callable[[], None]) -> None:
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
        heartbeat()
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


def _make_whole(root: Path, carrier: Carrier, heartbeat: Callable[[], None]) -> None:
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
            heartbeat()
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


def bring_data(reads: list[Any], nodes: list[str], watchdog: Watchdog, say: Callable[[str], None]) -> None:
    """Have nodes get copies of the data that they do not see, all at a time, before anything is trained.

    A node that is lost meanwhile is done without.

    Raises:
        InvalidInput: if a node's disk is too small, or it does not get them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mailbox = open_mailbox(reads=reads)
    task = ray.remote(num_cpus=0, max_retries=2)(receive_data)
    began = time.monotonic()

    def bring(node: str) -> Any:
        return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(mailbox)

    def work() -> None:
        try:
            listing = ray.get(ray.get(mailbox.porter.remote()).listing.remote())
            receivers = "1 node does" if len(nodes) == 1 else f"{len(nodes)} nodes do"
            say(
                f"{receivers} not see all data: bringing what is lacking of {len(listing.names)} files "
                f"({listing.num_bytes / 1e9:.2f} GB)"
            )
            del listing
            asked = {bring(node): node for node in nodes}
            while asked:
                ready = ray.wait(list(asked))[0][0]
                node = asked.pop(ready)
                try:
                    ray.get(ready)
                except ray.exceptions.RayTaskError:
                    raise
                except ray.exceptions.RayError as error:
                    if is_alive(node):
                        raise Unfinished(f"node {node[:8]} did not get the data ({root_cause(error)})") from error
                    say(f"  node {node[:8]} was lost meanwhile; going on without it")
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, StorageFault):
                raise InvalidInput(str(error.cause)) from None
            raise error.cause or error from None

    watchdog.listen(HeartbeatCount(mailbox))
    run_watched(work, watchdog)
    say(f"  done in {time.monotonic() - began:.0f} s")
