"""Disk: what takes space in a home and on this node, and what of it may go."""

import contextlib
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeplab.adoption import is_own_victim
from sweeplab.specs import InvalidInput
from sweeplab.storage.checkpoint_names import CHECKPOINT
from sweeplab.storage.files import read_object
from sweeplab.storage.locks import RAY_FOLDER, UPLOAD_FOLDER, abandoned_folders, is_held, lock_path, ray_parent
from sweeplab.storage.node_cache import Kept, kept_copies, node_cache, remove_copy
from sweeplab.storage.ownership import link_in
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep_folder import SweepFolder, is_set_aside, sweeps_of
from sweeplab.versions import made_by_older_version

logger = logging.getLogger("sweeplab")

RAY_STATE = re.compile(r"(tune|pool|pretrain)-[0-9a-f]+")
"""Names of the folders that executors have Ray keep its state in."""

PART = ".?*.part"
"""Pattern of the files that `write_atomically` renames once they are whole."""


@dataclass(frozen=True)
class Removable:
    """Something that takes space and that nothing needs."""

    path: Path
    bytes: int
    why: str
    copies: tuple[Kept, ...] = ()
    """What goes of the folder that this node keeps for its processes; empty: all that is at the path."""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def disk_table(home: Path) -> list[dict[str, Any]]:
    """Bytes by what they belong to, largest first."""
    places = [path for kind in ("sweeps", "victims", "data") for path in sorted((home / kind).glob("[!.]*"))]
    places += [path for path in (home / "mlflow.db", home / "mlartifacts", home / "ray") if path.exists()]
    rows: list[dict[str, Any]] = []
    for path in places:
        older = older_victim(path)  # so that it is clear which of two victims of one name is no longer used
        what = f"{path.relative_to(home)}" + (f" ({older})" if older is not None else "")
        rows.append({"what": what, "bytes": size_of(path)})
    if kept := kept_copies():
        rows.append({"what": f"{node_cache()} (this node: {_kinds(kept)})", "bytes": sum(copy.bytes for copy in kept)})
    return sorted(rows, key=lambda row: -row["bytes"])


def _kinds(kept: Sequence[Kept]) -> str:
    """How many of each kind a node keeps, by the beginning of their names: data, decoded, table."""
    counts = Counter(copy.path.name.lstrip(".").partition("-")[0] for copy in kept)
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))


def older_victim(path: Path) -> str | None:
    """By which older version a victim was made, and what has changed since; None where nothing has, where its record
    cannot tell (its script defines classes of its own), and for what is no victim."""
    if path.parent.name != "victims" or not (path / "victim.json").is_file():
        return None
    try:
        return made_by_older_version(read_object(path / "victim.json", spec=dict), "PretrainedVictim")
    except InvalidInput:
        return None


def find_removable(
    home: Path, *, set_aside: bool = False, victims: bool = False, copies: bool = False
) -> list[Removable]:
    """What may go: leftovers of killed commands always; on request sweeps that `--fresh` set aside, unused victims, and
    what this node keeps for later.

    Of sweeps and victims that came from elsewhere, and of what their files name, nothing goes (`foreign_folders`).
    Sweeps that someone runs now are left alone, and so are leftovers in the home younger than an hour and temporary
    folders younger than a minute.

    Args:
        home: the home.
        set_aside: sweeps that were begun anew under the same name too.
        victims: victims that no sweep of the home names too, but for those that a script ran alone; none where a
            sweep's record is damaged.
        copies: what this node keeps for its processes and did not use for a day too.
    """
    known, damaged = sweeps_of(home)
    # A link in a folder that was lent out may lead to files of others.
    folders = [folder for folder in known if folder.is_own() and link_in(folder.path) is None]
    is_idle = not any(folder.is_locked() for folder in [*known, *damaged])
    unneeded = list(_leftovers(home, folders, is_idle=is_idle))
    for folder in folders:
        if not folder.is_locked():
            unneeded += _of_sound_sweep(folder, set_aside)
    if victims and not damaged:  # which may name any of them
        named, why = {_victim_of(folder) for folder in known}, "a victim that no sweep names"
        unused = (path for path in _victims(home, own=True) if path.name not in named)
        unused = (path for path in unused if not RunFolder(path).was_run_alone())
        unneeded += [(path, why) for path in unused if not is_held(lock_path(path))]
    found = [Removable(path, size_of(path), why) for path, why in unneeded]
    if copies:
        old = tuple(copy for copy in kept_copies() if copy.unused_seconds > 86_400)
        why = f"kept by this node, not used for a day ({_kinds(old)})"
        found += [Removable(node_cache(), sum(copy.bytes for copy in old), why, old)] if old else []
    return found


def _leftovers(home: Path, folders: list[SweepFolder], *, is_idle: bool) -> Iterator[tuple[Path, str]]:
    """What killed commands have left in the home, if it is older than an hour, and among the temporary folders; each
    with a reason.

    Args:
        home: the home.
        folders: its own sweeps.
        is_idle: whether no sweep of the home runs now; Ray's state may belong to any of them.
    """
    old = time.time() - 3600
    for path in (home / "ray").glob("*") if is_idle else ():
        if RAY_STATE.fullmatch(path.name) and path.lstat().st_mtime < old:
            yield path, "state of Ray that is never read again"
    for prefix, parent in ((RAY_FOLDER, ray_parent()), (UPLOAD_FOLDER, None)):
        for path in abandoned_folders(prefix, parent):
            yield path, "a temporary folder of a killed command"
    deep = (*(folder.path for folder in folders), *_victims(home, own=True), home / "data")
    unfinished = [path for place in deep for path in place.rglob(PART)]
    unfinished += [path for place in (home, home / "sweeps") for path in place.glob(PART)]
    for path in unfinished:
        with contextlib.suppress(FileNotFoundError):  # its write is finished now
            if path.stat().st_mtime < old:
                yield path, "an unfinished write of a killed command"


def _of_sound_sweep(folder: SweepFolder, set_aside: bool) -> list[tuple[Path, str]]:
    """What may go of a sweep; nothing where one of its files is damaged."""
    try:
        return list(_of_sweep(folder, set_aside=set_aside))
    except InvalidInput as error:
        logger.info(f"note: nothing of sweep {folder.name!r} is removed: {error}")
        return []


def _of_sweep(folder: SweepFolder, *, set_aside: bool) -> Iterator[tuple[Path, str]]:
    """The whole sweep where it was set aside and such ones go; else checkpoints that no point of its trials names."""
    if set_aside and is_set_aside(folder):
        yield folder.path, "a sweep that was begun anew"
        return
    for number in folder.trial_numbers():
        run = folder.trial(number)
        # A trial without a result may go on, and needs its checkpoints then.
        if run.result() is None or run.storage.is_remote:
            continue
        committed = {point.checkpoint for point in run.points()}
        stray = sorted(filter(CHECKPOINT.fullmatch, run.storage.names() - committed))
        for name in stray if stray and run.owns_storage() else ():
            yield Path(run.storage.location) / name, "a checkpoint that no point names"


def _victims(home: Path, *, own: bool) -> list[Path]:
    """The victims of a home that it made itself, or those that came from elsewhere or are damaged, by name."""

    def is_own(path: Path) -> bool:
        with contextlib.suppress(InvalidInput):
            return is_own_victim(RunFolder(path))
        return False

    found = sorted(file.parent for file in (home / "victims").glob("[!.]*/victim.json"))
    return [path for path in found if is_own(path) == own]


def foreign_folders(home: Path) -> list[Path]:
    """Sweeps and victims that came from elsewhere, hold links or are damaged, of which nothing is removed."""
    known, damaged = sweeps_of(home)
    kept = (folder for folder in known if not folder.is_own() or link_in(folder.path) is not None)
    return [*(folder.path for folder in (*kept, *damaged)), *_victims(home, own=False)]


def _victim_of(folder: SweepFolder) -> str | None:
    """Name of the folder of a sweep's victim, which may not be finished yet; None where it is not pre-trained here."""
    header = folder.header()
    digest = header["contents"].get("victim")
    return f"{header['victim_name']}-{digest}" if digest else None


def remove(removable: list[Removable]) -> int:
    """Remove it; returns the bytes that were freed."""
    freed = 0
    for item in removable:
        if item.copies:
            freed += sum(copy.bytes for copy in item.copies if remove_copy(copy.path))
            continue
        if item.path.is_dir():
            shutil.rmtree(item.path, ignore_errors=True)
        else:
            item.path.unlink(missing_ok=True)
        freed += item.bytes if not item.path.exists() else 0
    return freed


def readable(count: int) -> str:
    """Bytes for people."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
