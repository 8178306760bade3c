"""Files of the home: written in one step or not at all, so that a kill at any moment loses nothing."""

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from sweeplab.specs import InvalidInput, StorageFault


def make_private(folder: Path) -> None:
    """Make a folder of records, and those above it that are lacking, for this user alone; what is there stays as it is.

    Records name paths, machines and processes, and logs hold whatever a program printed.
    """
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def open_private(path: Path, flags: int) -> int:
    """Open a record, for this user alone where it is made; never what a symbolic link of its name leads to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextmanager
def storage_faults(path: Path | str) -> Iterator[None]:
    """Turns the system's refusals to write a path into StorageFault."""
    try:
        yield
    except OSError as error:
        raise StorageFault(
            f"cannot write {path} ({error.strerror}); free space or mend permissions, then run the same command again"
        ) from error


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace a record's content in one step that survives a kill: temporary file, rename. This user alone reads it.

    Args:
        path: its folder is made if needed.
        content: all of it.
        durable: survive a power failure too: fsync of the file, and of the folder after the rename.

    Raises:
        StorageFault: if the disk is full or the folder cannot be written; the old content stays.
    """

    def opened(temporary: Path) -> BinaryIO:
        make_private(path.parent)
        return open(open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb")

    with storage_faults(path):
        replace_atomically(path, opened, lambda file: file.write(content), durable=durable)


def replace_atomically(
    path: Path, opened: Callable[[Path], BinaryIO], write: Callable[[BinaryIO], object], *, durable: bool = True
) -> None:
    """Have a file's name stand for a new content once all of it is written; faults that may pass are tried again.

    Args:
        path: of the file.
        opened: makes the temporary file, and its folder where that is lacking.
        write: writes the content.
        durable: see `write_atomically`.

    Raises:
        OSError: if the disk fails; the old content stays, and nothing is left beside it.
    """
    # In the same folder, since a rename is one step only within a file system; `gc` knows the name.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")

    def replace() -> None:
        with opened(temporary) as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            # Without it the file survives a power failure, and its name may not.
            sync_folder(path.parent)

    try:
        retry(replace)
    finally:
        with contextlib.suppress(OSError):  # written, it has its own name by now; or its folder never came to be
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write a JSON file atomically; refuses NaN."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode(), durable=durable)


ANOTHER_COPY = "restore it from a backup or remove its folder"


def read_json(path: Path, *, remedy: str = ANOTHER_COPY) -> Any:
    """Read a JSON file; InvalidInput where it is damaged."""
    try:
        return json.loads(path.read_text(), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is damaged ({error}); {remedy}") from error


def read_object(path: Path, remedy: str = ANOTHER_COPY, /, **fields: type) -> dict[str, Any]:
    """Read a record: a JSON object with at least the named fields.

    Args:
        path: of the file.
        remedy: what to do where it is damaged.
        fields: the type of each field that the reader cannot do without.

    Raises:
        InvalidInput: where it is damaged; the message names the file and the field.
    """
    value = read_json(path, remedy=remedy)
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} is damaged (no object); {remedy}")
    for name, kind in fields.items():
        if type(value.get(name)) is not kind:
            raise InvalidInput(f"{path} is damaged ({name}={value.get(name)!r}); {remedy}")
    return value


def append_line(path: Path, value: Any, *, durable: bool = True) -> None:
    """Append one JSON line; a torn last line of a killed writer is closed first.

    Args:
        path: its folder exists.
        value: plain JSON values, no NaN.
        durable: wait until the line is on the disk; else a power failure, though no kill, may take it.

    Raises:
        StorageFault: if the disk is full or the file cannot be written; what was there stays, and no half line.
    """
    line = json.dumps(value, allow_nan=False, ensure_ascii=False).encode() + b"\n"

    def write() -> None:
        with open(open_private(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                content = line
                if size:
                    file.seek(-1, os.SEEK_END)
                    # A killed writer may have left half a line: it stays a line of its own, which readers skip.
                    content = line if file.read(1) == b"\n" else b"\n" + line
                # Unbuffered, a write may be short where the disk is full, without an error.
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if durable:
                    os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    # Half a line of ours would otherwise stand before the next attempt's.
                    file.truncate(size)
                raise

    with storage_faults(path):
        retry(write)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All JSON objects of a file of lines; a line that is torn, or damaged, is passed over. Empty where there is no
    file."""
    if not path.exists():
        return []
    values = []
    for line in path.read_text(errors="replace").split("\n"):  # a value may hold other line ends
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line, parse_constant=_no_number)
            if isinstance(value, dict):
                values.append(value)
    return values


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text}: our records hold finite numbers alone")


def drop_torn_line(path: Path) -> None:
    """Cut a last line without line end, which a killed writer left behind."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        write_atomically(path, content[: content.rfind(b"\n") + 1])


T = TypeVar("T")

PASSING_ERRORS = (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.EINTR, errno.ENOLCK)
"""Faults of network file systems that often pass by themselves."""

PATIENCE_SECONDS = (0.1, 0.5, 2.0, 5.0, 10.0)
"""Pauses before a write that met one of them is tried again."""


def retry(write: Callable[[], T]) -> T:
    """Try a write again, after growing pauses, where the fault may pass by itself."""
    for pause in PATIENCE_SECONDS:
        try:
            return write()
        except OSError as error:
            if error.errno not in PASSING_ERRORS:
                raise
        time.sleep(pause)
    return write()


NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "gpfs", "ceph", "fuse.glusterfs", "beegfs", "9p")
"""File systems on which SQLite cannot share memory."""


def file_system(path: Path) -> str:
    """Type of the file system that holds a path; `unknown` where the system does not say."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    path, best, kind = path.resolve(), "", "unknown"
    for line in mounts.read_text().splitlines():
        _, place, name = line.split()[:3]
        inside = str(path) == place or str(path).startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):
            best, kind = place, name
    return kind
