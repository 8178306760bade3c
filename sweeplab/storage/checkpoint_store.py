"""Checkpoint store: where checkpoints lie, a folder that all nodes see or an object store, and how they get there."""

import contextlib
import errno
import os
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from sweeplab.specs import InvalidInput, StorageFault, check_storage_url, first_line
from sweeplab.storage.locks import UPLOAD_FOLDER, OwnFolder

MARK = "://"
"""Tells a URL from a path."""

REFUSALS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
"""What a folder answers that is none to write to."""

FOLDER_PAUSES = (0.0, 0.5, 5.0, 30.0)
"""Seconds before a node looks again for a folder that the driver has made."""


class Storage:
    """A flat folder of checkpoint files: a path, or a URL such as s3://bucket/folder or gs://bucket/folder.

    Credentials come from the environment, as pyarrow's file systems read them; never from the URL.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self.is_remote = MARK in self.location

    @property
    def parent(self) -> str:
        """Path or URL of the folder that it lies in: storages of one place fail together."""
        return self.location.rstrip("/").rpartition("/")[0]

    def __truediv__(self, name: str) -> "Storage":
        return Storage(f"{self.location.rstrip('/')}/{name}" if self.is_remote else Path(self.location) / name)

    @contextmanager
    def _opened(self, name: str | None = None) -> Iterator[tuple[Any, str]]:
        """pyarrow's file system and the folder's path in it; faults meanwhile are the storage's, or those of a file."""
        from pyarrow import fs

        try:
            check_storage_url(self.location)
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        try:
            with _faults(self.location):  # S3's region is asked for
                system, path = fs.FileSystem.from_uri(self.location)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise InvalidInput(
                f"storage {self.location!r} is none that pyarrow opens ({error}); use a path, s3://, gs:// or abfs://"
            ) from error
        with _faults(self.location if name is None else f"{self.location}/{name}"):
            yield system, path

    def leave_mark(self, name: str, text: str = "SweepLab looks whether this folder can be written and seen") -> None:
        """Write a small file, whose presence tells who sees the storage, or whose content whose it is.

        Raises:
            InvalidInput: if the folder is none that may be written, or the URL is none.
            StorageFault: if the disk is full or fails, or the object store does not take it, however often it is
                asked.
        """
        if not self.is_remote:
            try:
                Path(self.location).mkdir(parents=True, exist_ok=True)
                (Path(self.location) / name).write_text(text + "\n")
            except OSError as error:
                if error.errno not in REFUSALS:  # a full disk, a share that hangs: it may be mended
                    raise StorageFault(f"storage {self.location} failed: {error.strerror}; mend it") from error
                raise InvalidInput(
                    f"resources.storage={self.location!r} cannot be written ({error.strerror}); give a folder that "
                    "can, or mend its permissions"
                ) from error
            return
        # An object store takes whole files.
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_text(text + "\n")
            self.upload_with_patience(Path(folder) / name, time.sleep)

    def check_writable(self) -> None:
        """Write a small file and remove it again.

        Raises:
            InvalidInput: as `leave_mark` does.
            StorageFault: as `leave_mark` does.
        """
        mark = f".writable-{uuid4().hex[:12]}.part"
        self.leave_mark(mark)
        with contextlib.suppress(StorageFault):
            self.remove(mark)

    def wait_for_folder(self) -> None:
        """Wait until this node sees a folder, no URL, that the driver has made: a network file system may take time.

        Raises:
            StorageFault: if it does not.
        """
        for pause in FOLDER_PAUSES:
            time.sleep(pause)
            if Path(self.location).is_dir():
                return
        raise StorageFault(
            f"node {socket.gethostname()} does not see {self.location}, which the driver has made for checkpoints; set "
            "resources.storage to a folder that all nodes share, s3:// or gs://"
        )

    def read(self, name: str) -> bytes | None:
        """A small file's content; None where there is no such file, or a link in its place."""
        if not self.is_remote:
            path = Path(self.location) / name
            with _faults(self.location):
                return path.read_bytes() if path.is_file() and not path.is_symlink() else None
        if not self.exists(name):
            return None
        with self._opened(name) as (system, there), system.open_input_stream(f"{there}/{name}") as stream:
            return bytes(stream.read())

    def names(self) -> set[str]:
        """Files that are there, no links; empty where the folder is not."""
        if not self.is_remote:
            folder = Path(self.location)
            with _faults(self.location):
                if not folder.exists():
                    return set()
                with os.scandir(folder) as entries:
                    return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        from pyarrow import fs

        with self._opened() as (system, there):
            found = system.get_file_info(fs.FileSelector(there, allow_not_found=True))
        return {info.base_name for info in found if info.type == fs.FileType.File}

    def exists(self, name: str) -> bool:
        """Whether a file is there, whole."""
        if not self.is_remote:
            return (Path(self.location) / name).exists()
        from pyarrow import fs

        with self._opened() as (system, there):
            return bool(system.get_file_info(f"{there}/{name}").type == fs.FileType.File)

    def version(self, name: str) -> str | None:
        """Tells a file's content from an earlier one of the same name: bytes, and what the object store calls it or,
        where it says nothing, the time of its change; None where there is no such file."""
        from pyarrow import fs

        with self._opened(name) as (system, there):
            found = system.get_file_info(f"{there}/{name}")
            if found.type != fs.FileType.File:
                return None
            with system.open_input_stream(f"{there}/{name}") as stream:
                tag = (stream.metadata() or {}).get("ETag")
        return f"{found.size} {tag or found.mtime_ns}"

    def remove(self, name: str) -> None:
        """Remove a file; nothing where it is not there."""
        if not self.is_remote:
            with _faults(f"{self.location}/{name}"):
                (Path(self.location) / name).unlink(missing_ok=True)
            return
        with self._opened() as (system, there), contextlib.suppress(FileNotFoundError):
            system.delete_file(f"{there}/{name}")

    def upload(self, source: Path, name: str) -> None:
        """Copy a file there; it appears whole or not at all.

        Raises:
            StorageFault: if the store does not take it.
        """
        from pyarrow import fs

        with self._opened(name) as (system, path):
            if isinstance(system, (fs.LocalFileSystem, fs.SubTreeFileSystem)):
                system.create_dir(path, recursive=True)
                fs.copy_files(str(source), f"{path}/.{name}.part", fs.LocalFileSystem(), system)
                system.move(f"{path}/.{name}.part", f"{path}/{name}")
            else:  # an object is visible once its upload is complete
                fs.copy_files(str(source), f"{path}/{name}", fs.LocalFileSystem(), system)

    def upload_with_patience(self, source: Path, wait: Callable[[float], bool | None]) -> None:
        """Upload a file under its own name; a store refuses one now and then, and only the last refusal counts.

        Args:
            source: the file.
            wait: sleeps for so many seconds; whether to give up.

        Raises:
            StorageFault: if the store does not take it, or the file is gone.
        """
        for pause in (*UPLOAD_PAUSES, None):
            try:
                return self.upload(source, source.name)
            except StorageFault:
                if pause is None or not source.exists() or wait(pause):
                    raise

    def download(self, name: str, to: Path) -> None:
        """Copy a file from there.

        Raises:
            StorageFault: if it is not there or the store does not answer.
        """
        from pyarrow import fs

        # Under another name first: no reader may take half a file for the checkpoint.
        to.parent.mkdir(parents=True, exist_ok=True)
        with self._opened(name) as (system, there):
            fs.copy_files(f"{there}/{name}", str(to.with_name(f".{to.name}.part")), system, fs.LocalFileSystem())
            to.with_name(f".{to.name}.part").replace(to)


@contextmanager
def _faults(place: str) -> Iterator[None]:
    """Turns what a store answers into StorageFault."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageFault(f"storage {place} has no such file ({error})") from error
    except OSError as error:
        raise StorageFault(f"storage {place} failed: {first_line(error)}") from error


MOST_WAITING = 2
"""Files that may wait for their upload: where training is faster than the network for long, it waits for it."""

UPLOAD_PAUSES = (1.0, 5.0, 20.0)
"""Seconds before an upload that failed is tried again."""


class Uploads:
    """Brings files to a storage in a thread of its own, in order, so that training does not wait."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._scratch = OwnFolder(UPLOAD_FOLDER)
        self.folder = self._scratch.path
        """Where files are written first."""
        self._queue: queue.Queue[tuple[Path, str | None] | None] = queue.Queue(MOST_WAITING)
        self._is_closed = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)
        self._thread.start()

    def add(self, path: Path, replaced: str | None = None) -> None:
        """Upload a file, and remove it afterwards; its name stays. `replaced` is then removed from the storage.

        Raises:
            StorageFault: if an earlier upload failed.
        """
        if self._fault is not None:
            raise self._fault
        self._queue.put((path, replaced))

    def finish(self) -> None:
        """Wait for all uploads.

        Raises:
            StorageFault: if one failed.
        """
        self._queue.put(None)
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Remove the scratch folder; what has not been uploaded by now is given up."""
        self._is_closed.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._scratch.remove()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None and not self._is_closed.is_set():
            path, replaced = item
            try:
                if self._fault is None:
                    self._upload(path)
                    if replaced is not None:
                        self.storage.remove(replaced)
                # After a fault too: files that wait in vain would fill the node's disk.
                path.unlink(missing_ok=True)
            except Exception as error:  # noqa: BLE001 - raised again where the next file is added
                self._fault = error

    def _upload(self, path: Path) -> None:
        """Upload a file; one that is gone meanwhile was replaced by a newer one before its turn came."""
        try:
            if path.exists():
                self.storage.upload_with_patience(path, self._is_closed.wait)
        except StorageFault:
            if path.exists():
                raise
