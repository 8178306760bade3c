"""Ownership: which folders this home made, told by a signature that a received folder cannot forge."""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeplab.specs import InvalidInput
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.files import make_private, read_object, write_atomically, write_json
from sweeplab.storage.locks import file_lock, lock_path

KEY = "home.key"
"""In a home: its secret, by which it knows again what it made. It goes with a home that is moved or copied whole."""

MARK = ".sweeplab-owner"
"""In a folder of checkpoints outside the home: the signature of the home that made it."""

LINK_DEPTH = 3
"""The files of a trial lie so many levels below the sweep's folder."""


def home_key(home: Path) -> bytes:
    """The home's secret.

    At its first use it is made. What the home holds by then becomes its own, where its files lie in the home and name
    no storage elsewhere: it was made before homes had a secret, and to take it over can do no harm outside the home.

    Raises:
        InvalidInput: if it cannot be read: most often it belongs to another user.
    """
    path = home / KEY
    try:
        if not path.exists():
            make_private(home)
            with file_lock(lock_path(path)):
                if not path.exists():  # last, so that a kill before leaves everything to the next command
                    key = secrets.token_hex(32)
                    # A record that names a storage elsewhere, or a link, could have been planted: it stays foreign.
                    for file in _records(home):
                        value = _readable(file)
                        if value is not None and not named_storages(file) and link_in(file.parent) is None:
                            write_json(file, _signed(value, key.encode()))
                    for folder in (home / "sweeps", home / "victims"):  # older versions made them for all to read
                        if folder.is_dir() and not folder.is_symlink():
                            folder.chmod(0o700)
                    write_atomically(path, key.encode())
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read ({error.strerror}), by which the home knows what it made; another user's home can "
            "be read, and to run sweeps set SWEEPLAB_HOME to one of your own"
        ) from error


def _records(home: Path) -> Iterator[Path]:
    """sweep.json of every sweep, victim.json of every victim."""
    for pattern in ("sweeps/*/sweep.json", "victims/*/victim.json"):
        yield from sorted(path for path in home.glob(pattern) if not path.parent.is_symlink())


def _readable(file: Path) -> dict[str, Any] | None:
    try:
        return read_object(file)
    except (InvalidInput, OSError):
        return None


def _signature(value: dict[str, Any], key: bytes) -> str:
    content = {name: item for name, item in value.items() if name != "signature"}
    return _sign(json.dumps(content, sort_keys=True, separators=(",", ":")), key)


def _sign(text: str, key: bytes) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _signed(value: dict[str, Any], key: bytes) -> dict[str, Any]:
    return {**value, "signature": _signature(value, key)}


def write_signed(file: Path, value: dict[str, Any], home: Path) -> None:
    """Write sweep.json or victim.json as the home's own."""
    write_json(file, _signed(value, home_key(home)))


def is_signed(file: Path, home: Path, *, to_read: bool = False) -> bool:
    """Whether this home wrote a file as it is.

    Args:
        file: sweep.json or victim.json.
        home: the home.
        to_read: make no secret where there is none, and believe what cannot be told: nothing is written upon it.
    """
    if to_read and not os.access(home / KEY, os.R_OK):
        return True
    key = home_key(home)  # first: it may sign the file
    value = read_object(file)
    given = value.get("signature")
    return isinstance(given, str) and hmac.compare_digest(given.encode(), _signature(value, key).encode())


def link_in(folder: Path, depth: int = LINK_DEPTH) -> Path | None:
    """A symbolic link inside a folder, behind which files of others could lie; None: there is none."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                return Path(entry.path)
            if depth > 1 and entry.is_dir(follow_symlinks=False):
                found = link_in(Path(entry.path), depth - 1)
                if found is not None:
                    return found
    return None


def check_no_links(folder: Path) -> None:
    """Refuse to write in a folder whose links would lead the writing elsewhere.

    Raises:
        InvalidInput: naming the link.
    """
    link = link_in(folder) if folder.exists() else None
    if link is not None:
        raise InvalidInput(f"{link} is a symbolic link, and no folder that SweepLab makes holds one; remove it")


def named_storages(file: Path) -> list[str]:
    """Storages outside the home that a sweep's or victim's records name, those of its trials by their common folder."""
    value = _readable(file) or {}
    found = {str(value["storage"])} if value.get("storage") else set()
    found |= set(_storages_in(value.get("spec"))) if file.name == "sweep.json" else set()
    for trial in file.parent.glob("trials/*/trial.json"):
        storage = str((_readable(trial) or {}).get("storage") or "")
        if storage:
            found.add(storage.removesuffix(f"/{trial.parent.name}"))
    return sorted(found)


def storages_in_words(folder: Path) -> str:
    """For a message about --adopt: the storages outside the home that an adopted folder would have written too."""
    places = named_storages(folder / ("sweep.json" if (folder / "sweep.json").exists() else "victim.json"))
    return f", after a look at where it puts checkpoints: {', '.join(places)}" if places else ""


def _storages_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.get("storage"):
            yield str(value["storage"])
        for item in value.values():
            yield from _storages_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _storages_in(item)


@dataclass(frozen=True)
class Owner:
    """A sweep or victim of a home. A storage outside the home is its own where it holds a mark that only this home can
    write, and only for this place and this sweep: a path in a file is not enough."""

    home: Path
    identity: str
    """Tells the sweep or victim from all others."""

    def claim(self, storage: Storage) -> None:
        """Mark a storage, which is made if needed. Only what the spec that is run names is claimed, and what a user
        adopts.

        Raises:
            InvalidInput: if it cannot be written.
            StorageFault: if the disk or the object store fails.
        """
        if not self.holds(storage):
            storage.leave_mark(MARK, self._mark(storage))

    def holds(self, storage: Storage) -> bool:
        """Whether the storage holds this owner's mark.

        Raises:
            StorageFault: if an object store does not answer.
        """
        found = storage.read(MARK)
        return found is not None and hmac.compare_digest(found.strip(), self._mark(storage).encode())

    def _mark(self, storage: Storage) -> str:
        return _sign(f"storage\n{self.identity}\n{storage.location}", home_key(self.home))
