"""Tar members: images that lie in tar files, read where they are, and the rules that members must keep."""

import contextlib
import errno
import io
import os
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from sweeplab.specs import InvalidInput, StorageFault, digest_of
from sweeplab.storage.checkpoint_store import MARK
from sweeplab.storage.node_cache import kept_file, node_cache
from sweeplab.storage.remote_files import fetch, remote_version

TRIES = 3
"""Times that a tar is fetched which is gone before it is opened."""
IMAGE_MEMBERS = ("webp", "png", "jpg", "jpeg")
"""Extensions of images."""


@dataclass(frozen=True)
class Shard:
    """One tar file of samples, as it was when it was looked at."""

    location: str
    """Absolute path, or URL."""
    version: str
    """Tells it from another one at the same place."""

    @classmethod
    def at(cls, location: str) -> Self:
        """The shard that is there now.

        Raises:
            InvalidInput: if there is none.
            StorageFault: if the object store or server does not answer.
        """
        if MARK in location:
            return cls(location, remote_version(location))
        try:
            found = os.stat(location)
        except OSError as error:
            raise InvalidInput(f"{location} cannot be read ({error.strerror}); restore it, or leave it out") from None
        return cls(location, f"{found.st_size} {found.st_mtime_ns}")

    @property
    def name(self) -> str:
        """Of the file."""
        return self.location.rpartition("/")[2]

    def open(self) -> BinaryIO:
        """Open the tar. One that is not on this node is fetched first, once a node.

        Raises:
            OSError: if it cannot be read.
            StorageFault: if it cannot be fetched, or this node does not keep it for long enough to open it.
        """
        if MARK not in self.location:
            return open(self.location, "rb", buffering=0)
        name = f"shard-{digest_of([self.location, self.version])}.tar"
        with contextlib.suppress(FileNotFoundError):  # not fetched yet, or removed to make room
            file = open(node_cache() / name, "rb", buffering=0)  # noqa: SIM115 - whoever asked closes it
            os.utime(node_cache() / name)
            return file
        for _ in range(TRIES):
            with contextlib.suppress(FileNotFoundError):  # another process has made room before it was opened
                return open(kept_file(name, lambda copy: fetch(self.location, copy)), "rb", buffering=0)
        raise StorageFault(f"{node_cache()} has no room for {self.location}; raise resources.node_cache_gigabytes")


@dataclass(frozen=True)
class TarMember:
    """An image in a tar: stands where the path of an image file stands."""

    shard: Shard
    name: str
    offset: int
    """Bytes before its content."""
    size: int
    """Bytes of its content."""

    def __str__(self) -> str:
        return f"{self.shard.location}/{self.name}"

    def read(self) -> bytes:
        """The image file's content.

        Raises:
            OSError: if the tar cannot be read, or has become shorter.
            StorageFault: if it cannot be fetched.
        """
        with self.shard.open() as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(errno.EIO, f"{self.shard.location} breaks off")
        return content


ImagePlace = str | TarMember
"""Where an image is: the absolute path of its file, or a member of a tar."""


def content_at(place: ImagePlace) -> bytes:
    """The bytes of an image file, wherever it is."""
    return place.read() if isinstance(place, TarMember) else Path(place).read_bytes()


def openable(place: ImagePlace) -> str | io.BytesIO:
    """What Pillow opens."""
    return io.BytesIO(place.read()) if isinstance(place, TarMember) else place


@dataclass(frozen=True, eq=False)
class Members:
    """Which of a table's images lie in which tars."""

    shards: tuple[Shard, ...]
    """Each once, in the order in which the rows name them first."""
    numbers: np.ndarray
    """(N,) int32, places among `shards`; -1 for an image that is a file of its own."""
    offsets: np.ndarray
    """(N,) int64, bytes before each image in its tar."""

    @classmethod
    def none(cls, num_rows: int) -> Self:
        """Of images that all are files of their own."""
        return cls((), np.full(num_rows, -1, np.int32), np.zeros(num_rows, np.int64))

    @classmethod
    def of(cls, shards: Iterable[Shard], numbers: np.ndarray, offsets: np.ndarray) -> Self:
        """With the shards that rows name, each once, numbered as rows name them.

        Args:
            shards: may be more than the rows name, and name one twice.
            numbers: (N,) places among these; -1 for files.
            offsets: (N,) int64.
        """
        given = tuple(shards)
        used, first = np.unique(numbers[numbers >= 0], return_index=True)
        places: dict[Shard, int] = {}
        renumbered = np.full(len(given) + 1, -1, np.int32)  # its last place is that of -1
        for number in used[np.argsort(first)].tolist():
            renumbered[number] = places.setdefault(given[number], len(places))
        return cls(tuple(places), renumbered[numbers], offsets)

    def member(self, row: int, name: str, size: int) -> TarMember | None:
        """A row's image where it lies in a tar.

        Args:
            row: its number.
            name: SHARD/MEMBER, as the table names it.
            size: bytes.
        """
        number = int(self.numbers[row])
        if number < 0:
            return None
        return TarMember(self.shards[number], name.partition("/")[2], int(self.offsets[row]), size)

    def take(self, rows: np.ndarray) -> Self:
        """Those of some rows, in that order."""
        return self.of(self.shards, self.numbers[rows], self.offsets[rows])

    def followed_by(self, other: Self) -> Self:
        """These and then those of another table."""
        theirs = np.where(other.numbers < 0, -1, other.numbers + len(self.shards))
        numbers = np.concatenate([self.numbers, theirs])
        return self.of((*self.shards, *other.shards), numbers, np.concatenate([self.offsets, other.offsets]))


def check_member(member: tarfile.TarInfo, shard: object) -> None:
    """Refuse what an honest writer of samples does not write.

    Raises:
        InvalidInput: for a name that leads out of the tar, a link, a device, or a file with holes.
    """
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise InvalidInput(f"{shard}: member {member.name!r} leads out of the tar; take the tar from its source again")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise InvalidInput(
            f"{shard}: member {member.name!r} is a link or something else that is no plain file; take the tar from its "
            "source again"
        )


def check_end(tar: tarfile.TarFile) -> None:
    """tarfile takes a tar that breaks off between two members, or inside a header, for a whole one: look for the block
    of zeros that ends it.

    Raises:
        tarfile.ReadError: if it is not there.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it breaks off before its end")


def key_and_extension(name: str) -> tuple[str, str]:
    """A member's sample, which is its path up to the first dot of the last part, and what follows, in small letters."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def in_number_order(name: str) -> list[str | int]:
    """Sorts 2.tar before 10.tar: a name cut into numbers and what stands between them, which is first."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
