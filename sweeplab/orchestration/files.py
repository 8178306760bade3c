"""Files of the home: where things lie, and how they are written so that a kill at any moment loses nothing."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from sweeplab.specs import InvalidInput


def home_folder() -> Path:
    """`$SWEEPLAB_HOME`, else `~/sweeplab`; made if needed.

    Raises:
        InvalidInput: if it cannot be made or written.
    """
    home = Path(os.environ.get("SWEEPLAB_HOME") or Path.home() / "sweeplab").expanduser().absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise InvalidInput(
            f"SWEEPLAB_HOME={home} cannot be written ({error.strerror}); "
            "set SWEEPLAB_HOME to a folder on a lasting disk that you may write"
        ) from error
    return home


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content in one step that survives a crash: temporary file, fsync, rename, fsync of the folder.

    Raises:
        InvalidInput: if the disk is full or the folder cannot be written; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InvalidInput(
            f"cannot write {path} ({error.strerror}); free space or mend permissions, then run again"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; refuses NaN."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; InvalidInput where it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InvalidInput(f"{path} is damaged ({error}); restore it from a backup or remove its folder") from error


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line durably; a torn last line of a killed writer is closed first."""
    line = json.dumps(value, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InvalidInput(f"cannot write {path} ({error.strerror}); free space or mend permissions") from error


def read_lines(path: Path) -> list[Any]:
    """All whole JSON lines of a file; a torn line is passed over. Empty where there is no file."""
    if not path.exists():
        return []
    values = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            values.append(json.loads(line))
    return values


def drop_torn_line(path: Path) -> None:
    """Cut a last line without line end, which a killed writer left behind."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        write_atomically(path, content[: content.rfind(b"\n") + 1])
