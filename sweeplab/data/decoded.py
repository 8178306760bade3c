"""Decoded and stamped images, and what else a node keeps in files that all its processes map, made once."""

import fcntl
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from sweeplab.data.images import Images, decode_all, refuse_broken
from sweeplab.data.tables import PairTable
from sweeplab.data.tar_members import ImagePlace, TarMember
from sweeplab.specs import StorageFault, digest_of
from sweeplab.storage.files import append_line, read_lines
from sweeplab.storage.locks import lock_path, locked_with_retry
from sweeplab.storage.node_cache import COMPLETE, make_room, use

CHUNK_BYTES = 16 * 2**20
"""Pixels that a process decodes at a time."""
WAIT_SECONDS = 0.2
"""Between two looks whether the others have finished what they decode."""
BROKEN = "broken.jsonl"
"""Beside the pixels: the rows that could not be decoded, and why."""
DECODING = 2
"""Counts up when files come to be decoded differently: what a node keeps from before is then made anew."""


@dataclass(frozen=True)
class DecodedFiles:
    """Where files of pixels lie on this node, and how large they may be.

    To decode an ImageNet image takes milliseconds and to copy it out of the system's page cache some ten microseconds:
    where every trial measures 50,000 test images after every epoch, decoding them each time would cost more than the
    training.
    """

    folder: Path
    """On a disk of this node."""
    max_bytes: float
    """Of all that the node keeps; see `make_room`. At most half of the free space is taken too. Sets for which that
    leaves no room are decoded anew every time."""
    heartbeat: Callable[[], None] = lambda: None
    """Called now and then while images are decoded."""

    def tensor(self, images: Images, size: int, *, squash: bool = False, workers: int = 1) -> Tensor | None:
        """All images of a table, mapped from the file; the processes of a node that ask for it make it together.

        What a killed process was decoding is decoded by another, or by the next one that asks.

        Args:
            images: N rows.
            size: side of the result, pixels.
            squash: see `load_image`.
            workers: threads that decode.

        Returns:
            (N, 3, size, size) uint8, not to be written to; None where there is no room for it.

        Raises:
            InvalidInput: if a file cannot be decoded; all are looked at, and several named.
            StorageFault: if the disk fails.
        """
        if (found := self.decoded(images, size, squash=squash, workers=workers)) is None:
            return None
        refuse_broken(found[1], len(images))
        return found[0]

    def decoded(
        self, images: Images, size: int, *, squash: bool = False, workers: int = 1
    ) -> tuple[Tensor, dict[int, str]] | None:
        """As `tensor`, where images may be broken.

        Returns:
            The pixels, and by row, ascending, why an image could not be decoded; it is black.
        """

        def decode(rows: range, place: Path) -> Tensor:
            some = _Rows(images, rows.start, rows.stop)
            pixels, broken = decode_all(some, size, workers, squash=squash)
            for row, reason in broken.items():
                append_line(place / BROKEN, {"row": rows.start + row, "reason": reason}, durable=False)
            return pixels

        shape = (len(images), 3, size, size)
        found = self._mapped(lambda: f"decoded-{_key(images, size, squash)}", shape, decode)
        if found is None:
            return None
        pixels, place = found
        broken = {line["row"]: line["reason"] for line in read_lines(place / BROKEN)}
        return pixels, dict(sorted(broken.items()))

    def changed(
        self, images: Images, size: int, count: int, *, how: str, make: Callable[[range], Tensor]
    ) -> Tensor | None:
        """Pixels made of a table's images, mapped from a file as those of `tensor` are.

        Args:
            images: what they are made of.
            size: side of the result, pixels.
            count: how many are made.
            how: tells what is made of the images.
            make: (b, 3, size, size) uint8 of some of them; the same however they are asked for.
        """
        shape = (count, 3, size, size)
        found = self._mapped(
            lambda: f"changed-{digest_of([_key(images, size, False), how])}", shape, lambda rows, place: make(rows)
        )
        return None if found is None else found[0]

    def no_room(self, count: int, size: int, cost: str) -> str:
        """Where a file of so many images has found no room: why, what that costs, and what to do."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return (
            f"{self.folder} has no room for {count:,} images of {size} pixels, {count * 3 * size**2 / 1e9:.1f} GB: "
            f"{shutil.disk_usage(self.folder).free / 1e9:.1f} GB are free, of which half may be taken, and "
            f"resources.node_cache_gigabytes={self.max_bytes / 1e9:g} holds for all that the node keeps; {cost}; free "
            "space, set TMPDIR to a larger disk of the node, or raise node_cache_gigabytes"
        )

    def shared(self, name: str, count: int, kind: np.dtype[Any], *, growth: int) -> tuple[np.ndarray, Path] | None:
        """Numbers in a file that all processes of the node read and write, zeros at first, and room beside them.

        Args:
            name: tells what they are for.
            count: of the numbers, at least 1.
            kind: of the numbers.
            growth: bytes that other files in the folder may come to.

        Returns:
            (count,) numbers, and the folder; None where there is no room for it.
        """
        place = self._allocated(name, count * kind.itemsize, growth)
        if place is None:
            return None
        (place / COMPLETE).touch()
        os.utime(place / "pixels")
        return np.memmap(place / "pixels", dtype=kind, mode="r+", shape=(count,)), place

    def _allocated(self, name: str, num_bytes: int, growth: int = 0) -> Path | None:
        """The folder of that name with a file of that size, filled or not; None where there is no room for it and for
        what it is to grow by."""
        if num_bytes + growth > self.max_bytes:
            return None
        place = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked_with_retry(lock_path(place), self.heartbeat):
            if place.exists() and not _is_whole(place, num_bytes):
                _remove(place)
            return place if _allocate(place, num_bytes, self.max_bytes, growth) and use(place) else None

    def _mapped(
        self, name: Callable[[], str], shape: tuple[int, ...], make: Callable[[range, Path], Tensor]
    ) -> tuple[Tensor, Path] | None:
        """The file of that name as a tensor (count, ...) of uint8, and its folder; None where there is no room for it.
        The name, which asks for the state of every image's file, is taken only where there may be."""
        num_bytes = math.prod(shape)
        if not num_bytes or num_bytes > self.max_bytes or (place := self._allocated(name(), num_bytes)) is None:
            return None
        if not (place / COMPLETE).exists():
            making = _Making(place, shape[0], num_bytes // shape[0], make, self.heartbeat)
            try:
                making.run()
                (place / COMPLETE).touch()
            except OSError as error:
                raise StorageFault(f"cannot write {place} ({error.strerror}); free space, or set TMPDIR") from error
        for used in (COMPLETE, "pixels"):  # a tidy system removes what seems unused
            os.utime(place / used)
        pixels = torch.from_file(str(place / "pixels"), shared=False, size=num_bytes, dtype=torch.uint8)
        return pixels.view(shape), place


def _key(images: Images, size: int, squash: bool) -> str:
    """Sixteen hexadecimal digits of the files, as they lie there now or as the table knows them, and of what is made of
    them."""
    content = hashlib.sha256(f"{DECODING} {size} {squash} {PIL.__version__}".encode())
    if isinstance(images, PairTable) and images.is_looked_up:  # to look up all files again may take minutes
        content.update(images.state.encode())
        return content.hexdigest()[:16]
    for row in range(len(images)):
        path = images.image(row)
        if isinstance(path, TarMember):
            content.update(f"\0{path}\0{path.shard.version} {path.offset}".encode(errors="surrogateescape"))
            continue
        try:
            found = os.stat(path)
            content.update(f"\0{path}\0{found.st_size} {found.st_mtime_ns}".encode(errors="surrogateescape"))
        except OSError:  # to decode it will say what is wrong
            content.update(f"\0{path}\0gone".encode(errors="surrogateescape"))
    return content.hexdigest()[:16]


def _is_whole(place: Path, num_bytes: int) -> bool:
    """Whether the file has its size, filled or not. (A tidy system may have removed it and left the rest.)"""
    try:
        return (place / "pixels").stat().st_size == num_bytes
    except FileNotFoundError:
        return False


def _remove(place: Path) -> None:
    """Remove a folder in one step for those that look at it."""
    aside = place.with_name(f".{place.name}.{os.getpid()}.part")
    place.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _allocate(place: Path, num_bytes: int, budget: float, growth: int) -> bool:
    """Make the file at its full size, so that a full disk shows now; whether there is room for it."""
    if (place / "pixels").exists():
        return True
    if not make_room(num_bytes + growth, budget=budget, share=0.5, folder=place.parent):
        return False
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        unfinished.mkdir(exist_ok=True)
        with (unfinished / "pixels").open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            else:
                file.truncate(num_bytes)
        unfinished.rename(place)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        return False  # the disk took less than it promised
    return True


class _Making:
    """One process's part in making a file of pixels: chunk by chunk, each under a lock that the kernel frees when its
    process dies."""

    def __init__(
        self,
        place: Path,
        count: int,
        row_bytes: int,
        make: Callable[[range, Path], Tensor],
        heartbeat: Callable[[], None],
    ) -> None:
        self.place, self.count, self.row_bytes, self.make, self.heartbeat = place, count, row_bytes, make, heartbeat
        self.rows = max(1, CHUNK_BYTES // row_bytes)
        """Of a chunk."""
        self.num_chunks = -(-count // self.rows)

    def run(self) -> None:
        """Return when all chunks are there, whoever made them."""
        with _opened(self.place / "pixels") as pixels, _opened(self.place / "done") as done:
            left = list(range(self.num_chunks))
            while left:
                left = [chunk for chunk in left if not self._make(chunk, pixels, done)]
                self.heartbeat()
                if left:
                    time.sleep(WAIT_SECONDS)

    def _make(self, chunk: int, pixels: int, done: int) -> bool:
        """Whether the chunk is there now; False while another process is at it."""
        if os.pread(done, 1, chunk) == b"1":
            return True
        try:
            fcntl.lockf(done, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, chunk)
        except OSError:
            return False
        try:
            if os.pread(done, 1, chunk) == b"1":
                return True
            rows = range(chunk * self.rows, min(self.count, (chunk + 1) * self.rows))
            _write(pixels, self.make(rows, self.place).numpy(), rows.start * self.row_bytes)
            os.fsync(pixels)
            os.pwrite(done, b"1", chunk)
            self.heartbeat()
            return True
        finally:
            fcntl.lockf(done, fcntl.LOCK_UN, 1, chunk)


@dataclass(frozen=True)
class _Rows:
    """Some consecutive rows."""

    images: Images
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def image(self, i: int) -> ImagePlace:
        return self.images.image(self.start + i)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor to read and write at any place."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: np.ndarray, offset: int) -> None:
    view = memoryview(content).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
