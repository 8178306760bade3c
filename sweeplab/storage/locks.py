"""Locks: whether a living process makes or needs what lies on the disk, or has left it behind."""

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.storage.files import make_private, read_object, write_json

logger = logging.getLogger("sweeplab")

ABANDONED_SECONDS = 60.0
"""A folder is looked at only so long after it was made: its process needs a moment to lock it."""

RAY_FOLDER = "sweeplab-ray-"
"""Prefix of the folder in which a private cluster keeps its sockets and logs."""

UPLOAD_FOLDER = "sweeplab-checkpoints-"
"""Prefix of the folder in which checkpoints wait for their upload."""


OWN_MARK = ".sweeplab-temporary"
"""File in every such folder: a folder of that name that somebody else made is left alone."""


class OwnFolder:
    """A new temporary folder of this process; what killed processes have left under the prefix is removed first."""

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        for folder in abandoned_folders(prefix, parent):
            shutil.rmtree(folder, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        (self.path / OWN_MARK).touch()
        self._lock = pin(self.path)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def ray_parent() -> Path:
    """Where a private cluster's folder goes: the system's temporary folder, or a shorter one, since the paths of Ray's
    sockets may have no more than 107 bytes.

    Raises:
        InvalidInput: if none is short enough.
    """
    chosen = Path(tempfile.gettempdir())
    for folder in (chosen, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
        if len(os.fsencode(folder)) <= LONGEST_PARENT and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise InvalidInput(
        f"TMPDIR={chosen} has {len(os.fsencode(chosen))} bytes, and the sockets of Ray need one of at most "
        f"{LONGEST_PARENT}; /tmp cannot be written either: set TMPDIR to a shorter path"
    )


LONGEST_PARENT = 21
"""Bytes of the folder above Ray's: what its own sockets add has up to 86."""


def abandoned_folders(prefix: str, parent: Path | None = None) -> list[Path]:
    """This user's folders of that prefix whose processes are dead, below `parent` or the system's temporary folder:
    those that `OwnFolder` made, and empty ones, which Ray's agents make again once all is over."""
    found = []
    for folder in (parent or Path(tempfile.gettempdir())).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            is_mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            is_ours = is_mine and ((folder / OWN_MARK).exists() or not any(folder.iterdir()))
            if is_ours and time.time() - status.st_mtime > ABANDONED_SECONDS and not is_pinned(folder):
                found.append(folder)
    return found


def pin(folder: Path) -> int:
    """Have others know that this process needs a folder, or a file, until the descriptor is closed or the process dies;
    a system that tidies temporary folders minds it too (systemd-tmpfiles)."""
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_pinned(folder: Path) -> bool:
    """Whether a living process needs it."""
    with unpinned(folder) as is_free:
        return not is_free


@contextmanager
def unpinned(folder: Path) -> Iterator[bool]:
    """Whether no living process needs it; if so, none can pin it until the context ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks, too: what nobody can be asked about is left alone
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def lock_path(path: Path) -> Path:
    """The lock of whoever makes what lies, or will lie, at a path: a victim's folder, MLflow's tables, a copy."""
    return path.with_name(f".{path.name}.lock")


def file_lock(path: Path) -> FileLock:
    """The lock of a file, once it is known that it can be locked.

    Raises:
        InvalidInput: see `check_locks`.
    """
    check_locks(path)
    return FileLock(path)


def check_locks(path: Path) -> None:
    """Make sure that a lock file can be locked at all; it is made if needed. Where it cannot, filelock takes the mere
    file for a lock.

    Raises:
        InvalidInput: if its file system has no locks, or it is another user's.
        StorageFault: if the disk fails.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        with contextlib.suppress(OSError):
            owner = path.stat().st_uid
            if owner != os.geteuid():
                raise InvalidInput(
                    f"{path} belongs to another user (uid {owner}), whose commands hold it; work in a home of your own"
                ) from error
        raise InvalidInput(f"{path} cannot be opened ({error.strerror}); mend its permissions") from error
    except OSError as error:
        raise StorageFault(f"{path} cannot be opened ({error.strerror}); mend it, then run the same command") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # somebody holds it
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be locked ({error.strerror}): its file system has no locks, and two commands could write "
            "one file; set SWEEPLAB_HOME (for the node's copies TMPDIR) to a folder of another (NFS: start its lock "
            "daemon)"
        ) from error
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file now. Nobody does where there are no locks: nothing can be run there."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # which needs no more than to read
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def process_facts(process: int) -> dict[str, str] | None:
    """When a process was started and its command line, which tell it from a later one of the same number; None where
    there is no such process, or the system does not say."""
    place = Path("/proc") / str(process)
    try:
        if place.parent.joinpath("self").exists():
            ticks = (place / "stat").read_text().rpartition(")")[2].split()[19]
            command = (place / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
            return {"started": ticks, "command": command.decode(errors="replace")}
        ask = ["ps", "-p", str(process), "-o", "lstart=", "-o", "command="]
        line = subprocess.run(ask, capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout.strip()
        return {"started": line[:24], "command": line[24:].strip()}
    except (OSError, IndexError, subprocess.CalledProcessError):
        return None


@dataclass(frozen=True)
class Work:
    """What one command at a time works on, a sweep or a victim: who does, and whether it was asked to end."""

    what: str
    """In words, such as `sweep 'quickstart'`."""
    lock: Path
    """File that its command locks."""
    holder_file: Path
    """Process, host and time of whoever holds the lock."""
    stop_mark: Path
    """A file that is there from `sweeplab stop` to the next start."""

    def is_locked(self) -> bool:
        """Whether a command is at work now; of a folder that may only be read, as far as can be seen."""
        return is_held(self.lock)

    def holder(self) -> dict[str, Any] | None:
        """Process, host and time of whoever holds the lock; None where nobody wrote them yet."""
        return read_object(self.holder_file) if self.holder_file.exists() else None

    @contextmanager
    def held_by_this_process(self) -> Iterator[None]:
        """Say that this process holds the lock, which it does, until the context ends."""
        self.stop_mark.unlink(missing_ok=True)
        facts = process_facts(os.getpid()) or {}
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        write_json(self.holder_file, {"process": os.getpid(), "host": socket.gethostname(), "since": since, **facts})
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a folder that has turned read-only; what ended the work counts
                self.holder_file.unlink(missing_ok=True)


def victim_work(folder: Path) -> Work:
    """The training of a victim, whose files lie beside its folder: one that came from elsewhere brings none."""
    holder, stop_mark = folder.with_name(f".{folder.name}.holder.json"), folder.with_name(f".{folder.name}.stop")
    return Work(f"victim {folder.name!r}", lock_path(folder), holder, stop_mark)


def exclusively(path: Path, what: str) -> AbstractContextManager[Any]:
    """Hold `path` alone until the context ends; says so before it waits for the process that holds it."""
    make_private(path.parent)
    lock = file_lock(lock_path(path))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info(f"waiting for another process that makes {what}")
        return lock.acquire()


LOCK_SECONDS = 5.0
"""So often does whoever waits for a copy that another process makes say that it is alive."""


def locked_with_retry(path: Path, heartbeat: Callable[[], None]) -> AbstractContextManager[Any]:
    """Hold a lock file until the context ends; `heartbeat` is called now and then while another process holds it."""
    lock = file_lock(path)
    while True:
        try:
            return lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            heartbeat()
