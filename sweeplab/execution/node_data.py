"""Node data: files of the driver's node reach every other node once, as tars, where no shared folder holds them."""

import contextlib
import hashlib
import io
import logging
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeplab.execution.nodes import is_alive, on_node
from sweeplab.execution.watchdog import Watchdog, run_watched
from sweeplab.specs import InvalidInput, StorageFault, Unfinished
from sweeplab.storage.files import storage_faults
from sweeplab.storage.locks import lock_path, locked_with_retry
from sweeplab.storage.node_cache import COMPLETE, make_room, node_cache, remove_old_copies, use
from sweeplab.worker.failures import root_cause
from sweeplab.worker.input_paths import absolute_path, files_of, with_paths

logger = logging.getLogger("sweeplab")

TAR_BYTES = 256 * 2**20
"""Files of about so many bytes go into one tar; a larger file has one to itself."""

BLOCK_BYTES = 4096
"""Of a disk: what a small file may take beyond its size."""

WAIT_SECONDS = 5.0
"""At most so long does a node wait for a tar without saying that it is alive."""


@dataclass(frozen=True)
class Listing:
    """The files to be sent."""

    tars: tuple[tuple[tuple[str, int], ...], ...]
    """Absolute path and bytes of each file, by tar."""
    digest: str
    """Sixteen hexadecimal digits of paths, sizes and times of change."""

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(size for tar in self.tars for _, size in tar)

    @property
    def num_files(self) -> int:
        """In all tars."""
        return sum(map(len, self.tars))


def listing_of(paths: Iterable[str]) -> Listing:
    """The listing of these files, sorted, each once.

    Raises:
        InvalidInput: if one is gone.
    """
    tars: list[list[tuple[str, int]]] = []
    content, filled = hashlib.sha256(), 0
    for name in sorted({os.path.normpath(path) for path in paths}):
        try:
            status = os.stat(name)
        except OSError as error:
            raise InvalidInput(f"{name} cannot be read ({error.strerror}), so other nodes cannot get it") from None
        content.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
        if not tars or filled + status.st_size > TAR_BYTES:
            tars.append([])
            filled = 0
        tars[-1].append((name, status.st_size))
        filled += status.st_size
    return Listing(tuple(map(tuple, tars)), content.hexdigest()[:16])


class DataSender:
    """A Ray actor on the driver's node that sends an experiment's files; it looks for them when it is asked first."""

    def __init__(self, parts: bytes) -> None:
        self._parts: list[Any] = pickle.loads(parts)
        self._listing: Listing | None = None
        self._lock = threading.Lock()
        self._sent = 0

    def listing(self) -> Listing:
        """What there is to send."""
        with self._lock:
            if self._listing is None:
                self._listing = listing_of(path for part in self._parts for path in files_of(part))
            return self._listing

    def tar(self, number: int) -> tuple[bytes, str]:
        """One tar of the listing, complete by itself, and its SHA-256 as hexadecimal digits.

        Raises:
            InvalidInput: if a file is gone, or shorter than it was.
        """
        content = io.BytesIO()
        try:
            with tarfile.open(fileobj=content, mode="w", dereference=True) as tar:
                for name, size in self.listing().tars[number]:
                    with open(name, "rb") as file:
                        member = tar.gettarinfo(arcname=name.lstrip("/"), fileobj=file)
                        # As listed: what a file has grown by since is left out, and one that has shrunk is an error.
                        member.size = size
                        tar.addfile(member, file)
        except OSError as error:
            raise InvalidInput(
                f"{name} cannot be read any more ({error}), and other nodes need it; restore it"
            ) from None
        self._sent += 1
        packed = content.getvalue()
        return packed, hashlib.sha256(packed).hexdigest()

    def sent(self) -> int:
        """Tars so far."""
        return self._sent


def packed(parts: list[Any]) -> bytes:
    """Parts of specs with absolute paths, pickled, for a process that was started elsewhere."""
    from ray import cloudpickle

    return cloudpickle.dumps([with_paths(part, lambda path: Path(absolute_path(path))) for part in parts])


def open_sender(parts: bytes) -> Any:
    """A `DataSender` on this node."""
    import ray

    options = {"num_cpus": 0, "max_concurrency": 8, "max_restarts": -1, "max_task_retries": 3}
    return ray.remote(**options, scheduling_strategy=on_node())(DataSender).remote(parts)


_brought: set[Path] = set()
"""Copies that this process reads."""


def node_copy(sender: Any, heartbeat: Callable[[], None] = lambda: None) -> Path:
    """The folder below which copies of all files lie, made once a node: /data/1.jpg at FOLDER/data/1.jpg.

    A process that is killed is followed by another, which goes on with the next tar.

    Args:
        sender: the `DataSender`'s handle.
        heartbeat: called now and then.

    Raises:
        StorageFault: if the disk of this node is too small, or fails.
    """
    listing: Listing = _get(sender.listing.remote(), heartbeat)
    folder = node_cache() / f"data-{listing.digest}"
    if folder in _brought:
        return folder / "files"
    with storage_faults(f"{folder} of node {socket.gethostname()}"), locked_with_retry(lock_path(folder), heartbeat):
        _fill(folder, listing, lambda number: _get(sender.tar.remote(number), heartbeat))
        use(folder)
    _brought.add(folder)
    return folder / "files"


def _get(answer: Any, heartbeat: Callable[[], None]) -> Any:
    import ray

    while not ray.wait([answer], timeout=WAIT_SECONDS)[0]:
        heartbeat()
    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from None


def _fill(folder: Path, listing: Listing, tar_of: Callable[[int], tuple[bytes, str]]) -> None:
    """Have every file there: those of tars that an earlier process has unpacked are looked at, since the system may
    have removed some."""
    root = folder / "files"
    root.mkdir(parents=True, exist_ok=True)
    lacking: dict[int, list[tuple[str, int]]] = {}
    for number, tar in enumerate(listing.tars):
        is_unpacked = (folder / f"unpacked-{number}").exists()
        files = [(name, size) for name, size in tar if not is_unpacked or _size_of(root / name.lstrip("/")) != size]
        if files:
            lacking[number] = files
    needed = sum(size + BLOCK_BYTES for files in lacking.values() for _, size in files)
    if not make_room(needed):  # this node cannot work without: the budget is kept by what it can do without
        free = shutil.disk_usage(folder).free
        raise StorageFault(
            f"{folder.parent} of node {socket.gethostname()} has {free / 1e9:.1f} GB free, and the data that it lacks "
            f"are {needed / 1e9:.1f} GB; free space, start that node's Ray with TMPDIR on a larger disk, or put the "
            "data on a path that all nodes share"
        )
    for number, files in lacking.items():
        wanted = {name.lstrip("/") for name, _ in files}
        content, digest = tar_of(number)
        if hashlib.sha256(content).hexdigest() != digest:
            raise StorageFault(f"tar {number} of the data reached node {socket.gethostname()} damaged")
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(root, [member for member in archive if member.name in wanted], filter="data")
        os.sync()  # before the marker, which must not outlive what it speaks of
        (folder / f"unpacked-{number}").touch()
    (folder / COMPLETE).write_text(str(listing.num_bytes + BLOCK_BYTES * listing.num_files))


def _size_of(path: Path) -> int:
    """Bytes; -1 where there is no such file."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return -1


def receive_data(sender: Any) -> None:
    """A Ray task: have this node get its copies of all files."""
    remove_old_copies()
    node_copy(sender)


def send_data(reads: list[Any], nodes: list[str], watchdog: Watchdog) -> None:
    """Have nodes get copies of the data that they do not see, all at a time, before anything is trained.

    A node that is lost meanwhile is done without.

    Raises:
        InvalidInput: if a node's disk is too small, or it does not get them.
    """
    import ray

    began = time.monotonic()

    def work() -> None:
        sender = open_sender(packed(reads))
        task = ray.remote(num_cpus=0, max_retries=2)(receive_data)
        try:
            listing = ray.get(sender.listing.remote())
            receivers = "1 node does" if len(nodes) == 1 else f"{len(nodes)} nodes do"
            logger.info(
                f"{receivers} not see all data: sending what is lacking of {listing.num_files:,} files "
                f"({listing.num_bytes / 1e9:.2f} GB)"
            )
            # Pinned to the node: its copies are of no use to another one.
            asked = {task.options(scheduling_strategy=on_node(node)).remote(sender): node for node in nodes}
            sent = 0
            while asked:
                ready, _ = ray.wait(list(asked), timeout=WAIT_SECONDS)
                # A node takes long over all its tars: one more that was sent counts as a heartbeat.
                if not ready and (now := ray.get(sender.sent.remote())) != sent:
                    sent = now
                    watchdog.moved()
                for answer in ready:
                    watchdog.moved()
                    _check_received(answer, asked.pop(answer))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, StorageFault):
                raise InvalidInput(str(error.cause)) from None
            raise error.cause or error from None

    run_watched(work, watchdog)
    logger.info(f"  done in {time.monotonic() - began:.0f} s")


def _check_received(answer: Any, node: str) -> None:
    import ray

    try:
        ray.get(answer)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        if is_alive(node):
            raise Unfinished(f"node {node[:8]} did not get the data ({root_cause(error)})") from error
        logger.info(f"  node {node[:8]} was lost meanwhile; going on without it")
