"""Housekeeping: stop a sweep, read its logs, try a trial again, and find what takes disk space and may go."""

import contextlib
import os
import re
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sweeplab.orchestration.bringing import kept_copies, remove_copy
from sweeplab.orchestration.files import RAY_FOLDER, UPLOAD_FOLDER, abandoned_folders, read_json
from sweeplab.orchestration.ledger import (
    SweepFolder,
    adopt_sweep,
    is_own_victim,
    is_set_aside,
    made_by_older_version,
    making_lock,
    process_facts,
    sweep_folders,
)
from sweeplab.orchestration.ownership import write_signed
from sweeplab.orchestration.run_folder import CHECKPOINT, RunFolder
from sweeplab.specs import InvalidInput
from sweeplab.terminal import printable

STOP_SECONDS = 60.0
"""So long `stop` waits for the driver to let go."""
SETTLE_SECONDS = 0.2
"""Between two looks at the lock, so that nothing is stopped but the process that holds it for good."""


def stop(folder: SweepFolder, *, wait_seconds: float = STOP_SECONDS) -> str:
    """Ask the driver of a sweep to end, as SIGTERM does, and wait until it has let go of the lock.

    Raises:
        InvalidInput: if nobody runs the sweep, the driver is on another host, the process that the sweep's record names
            is another one by now, or it does not end in time.
    """
    if not folder.is_own():
        raise InvalidInput(f"sweep {folder.name!r} came from elsewhere; no command of this home runs it")
    for _ in range(2):  # `status` holds the lock for a moment too, and the holder's file may be a killed driver's
        if not folder.is_locked():
            raise InvalidInput(f"sweep {folder.name!r} is not running; nothing to stop")
        time.sleep(SETTLE_SECONDS)
    holder = folder.holder()
    if holder is None:
        raise InvalidInput(f"sweep {folder.name!r} is only just being begun or ended; try again in a moment")
    if holder["host"] != socket.gethostname():
        raise InvalidInput(
            f"sweep {folder.name!r} is run by process {holder['process']} on {holder['host']}; run this command there, "
            "or `ray job stop` its job"
        )
    _end_driver(folder, holder)
    deadline = time.monotonic() + wait_seconds
    while folder.is_locked():
        if time.monotonic() > deadline:
            raise InvalidInput(
                f"process {holder['process']} did not end within {wait_seconds:g} s; `kill -9 {holder['process']}` "
                "loses no more than the epochs that run"
            )
        time.sleep(0.2)
    return (
        f"sweep {folder.name!r} stopped; everything so far is kept, and the same command, or `sweeplab resume`, goes on"
    )


def _end_driver(folder: SweepFolder, holder: dict[str, Any]) -> None:
    """Signal the process that a record names, if it is the very one that wrote it: a file may name any process."""
    process = holder["process"]
    refusal = InvalidInput(
        f"process {process!r} is not, or no longer, the one that began to run sweep {folder.name!r} "
        f"({folder.path / 'holder.json'} names its start and command line); look who runs the sweep, and end that"
    )
    if type(process) is not int or process <= 1 or "started" not in holder:
        raise refusal
    try:
        os.kill(process, 0)
        if process_facts(process) != {name: holder.get(name) for name in ("started", "command")}:
            raise refusal
        folder.stop_mark.touch()  # who supervises the driver does not start it again
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return  # it has just ended
    except PermissionError:
        raise refusal from None


def sweep_log(folder: SweepFolder) -> list[str]:
    """A sweep's events, a line each."""
    folder.header()
    return [event_line(event) for event in folder.events()]


def event_line(event: dict[str, Any]) -> str:
    """When, what, and the facts, in one line."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time_ms"] / 1000))
    facts = "  ".join(f"{name}={value}" for name, value in event.items() if name not in ("time_ms", "event"))
    return printable(f"{when}  {event['event']:16s} {facts}", keep="").rstrip()


def trial_log(folder: SweepFolder, number: int) -> list[str]:
    """A trial's events, its points and what its failed attempts printed.

    Raises:
        InvalidInput: if there is no such trial.
    """
    _check_trial(folder, number)
    record = folder.trial_record(number, is_driven=folder.is_locked())
    lines = [f"trial {number}: {record.state}" + (f" ({printable(record.reason, keep='')})" if record.reason else "")]
    lines += [printable(f"  {name} = {value}", keep="") for name, value in record.params.items()]
    lines += [event_line(event) for event in folder.events() if event.get("trial") == number]
    for point in record.points:
        asr = point.measurement.asr
        loss = point.train.get("loss")
        lines.append(
            f"epoch {point.epoch:g}: accuracy {point.measurement.accuracy:.2%}"
            + (f", ASR {asr:.2%}" if asr is not None else "")
            + (f", loss {loss:.4f}" if loss is not None else "")
            + f" (attempt {point.attempt}, {point.train_seconds + point.evaluate_seconds:.1f} s)"
        )
    log = folder.trial(number).path / "log.txt"
    return lines + (log.read_text(errors="replace").splitlines() if log.exists() else [])


def request_reruns(folder: SweepFolder, numbers: list[int], *, adopt: bool = False) -> None:
    """Have the next start of the sweep try trials' settings once more, as trials of their own; the old ones stay.

    Args:
        folder: the sweep's.
        numbers: of the trials.
        adopt: take the sweep over where it came from elsewhere.

    Raises:
        InvalidInput: if a trial does not exist or is not over, a driver is at work, or the sweep came from elsewhere;
            then none is asked for.
    """
    if "imported" in folder.header():
        raise InvalidInput(f"sweep {folder.name!r} was imported; its trials cannot be run here")
    folder.check_is_continued()
    for number in numbers:
        _check_trial(folder, number)
        if folder.trial(number).result() is None:
            raise InvalidInput(f"trial {number} is not over yet; resuming the sweep goes on with it")
    if adopt:
        adopt_sweep(folder)
    with folder.lock():
        header = folder.header()
        asked = [*header.get("reruns", []), *numbers]
        more = {"reruns": asked, "planned_trials": header["planned_trials"] + len(numbers)}
        write_signed(folder.path / "sweep.json", {**header, **more}, folder.home)
        for number in numbers:
            folder.event("rerun asked", durable=True, trial=number)


def pruned_trials(folder: SweepFolder) -> list[int]:
    """Trials that a rule has stopped and that have not been asked for again, or whose reruns have failed."""
    asked = Counter(folder.reruns())
    results = {number: folder.trial(number).result() or {} for number in folder.trial_numbers()}
    for number, result in results.items():
        if result.get("state") == "failed" and (again := folder.trial_header(number).get("rerun_of")) is not None:
            asked[again] -= 1
    return [n for n, result in results.items() if result.get("state") == "pruned" and asked[n] <= 0]


def _check_trial(folder: SweepFolder, number: int) -> None:
    folder.header()
    known = folder.trial_numbers()
    if number not in known:
        shown = f"0 to {known[-1]}" if known else "none yet"
        raise InvalidInput(f"sweep {folder.name!r} has no trial {number}; known: {shown}")


# --- disk space


@dataclass(frozen=True)
class Rubbish:
    """Something that takes space and that nothing needs."""

    path: Path
    bytes: int
    why: str
    is_copy: bool = False
    """Whether this node keeps it for its processes, one of which may read it now."""


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
    rows: list[dict[str, Any]] = [
        {"what": f"{kind}/{path.name}", "bytes": size_of(path)}
        for kind in ("sweeps", "victims", "data")
        for path in sorted((home / kind).glob("*"))
        if not path.name.startswith(".")
    ]
    for row in rows:  # so that it is clear which of two victims of one name is no longer used
        if (older := older_victim(home / row["what"])) is not None:
            row["what"] += f" ({older})"
    rows += [
        {"what": path.name, "bytes": size_of(path)}
        for path in (home / "mlflow.db", home / "mlartifacts", home / "ray")
        if path.exists()
    ]
    rows += [{"what": f"{path} (this node)", "bytes": num_bytes} for path, num_bytes, _ in kept_copies()]
    return sorted(rows, key=lambda row: -row["bytes"])


def older_victim(path: Path) -> str | None:
    """By which older version a victim was made, and what has changed since; None where nothing has, where its record
    cannot tell (its script defines classes of its own), and for what is no victim."""
    if path.parent.name != "victims" or not (path / "victim.json").is_file():
        return None
    try:
        return made_by_older_version(read_json(path / "victim.json"), "PretrainedVictim")
    except InvalidInput:
        return None


def find_rubbish(home: Path, *, set_aside: bool = False, victims: bool = False, copies: bool = False) -> list[Rubbish]:
    """What may go: leftovers of killed commands always; on request sweeps that `--fresh` set aside, unused victims, and
    what this node keeps for later.

    Of sweeps and victims that came from elsewhere, and of what their files name, nothing goes (`foreign_folders`).
    Sweeps that someone runs now are left alone, and so is everything younger than an hour among the leftovers.

    Args:
        home: the home.
        set_aside: sweeps that were begun anew under the same name too.
        victims: victims that no sweep of the home names too.
        copies: decoded images, and copies of another node's files, that this node did not use for a day too.
    """
    found: list[Rubbish] = []
    old = time.time() - 3600
    known = sweep_folders(home)
    folders = [folder for folder in known if folder.is_own()]
    if not any(folder.is_locked() for folder in known):
        found += [
            Rubbish(path, size_of(path), "state of Ray that is never read again")
            for path in (home / "ray").glob("*")
            if RAY_STATE.fullmatch(path.name) and path.lstat().st_mtime < old
        ]
    found += [
        Rubbish(path, size_of(path), "a temporary folder of a killed command")
        for prefix in (RAY_FOLDER, UPLOAD_FOLDER)
        for path in abandoned_folders(prefix)
    ]
    for path in _unfinished_writes(home, folders):
        with contextlib.suppress(FileNotFoundError):  # its write is finished now
            if path.stat().st_mtime < old:
                found.append(Rubbish(path, size_of(path), "an unfinished write of a killed command"))
    for folder in folders:
        if folder.is_locked():
            continue
        aside = is_set_aside(folder)
        if aside and set_aside:
            found.append(Rubbish(folder.path, size_of(folder.path), "a sweep that was begun anew"))
            continue
        for number in folder.trial_numbers():
            run = folder.trial(number)
            if run.result() is None or run.storage.is_remote:
                continue
            committed = {point.checkpoint for point in run.points()}
            stray = sorted(filter(CHECKPOINT.fullmatch, run.storage.names() - committed))
            for name in stray if stray and run.owns_storage() else ():
                path = Path(run.storage.location) / name
                found.append(Rubbish(path, size_of(path), "a checkpoint that no point names"))
    if victims:
        named = {_victim_of(folder) for folder in known}
        for path in sorted((home / "victims").glob("[!.]*")):
            if path.name not in named and is_own_victim(RunFolder(path)) and not _is_being_made(path):
                found.append(Rubbish(path, size_of(path), "a victim that no sweep names"))
    return found + (_old_copies() if copies else [])


RAY_STATE = re.compile(r"(tune|pool|pretrain)-[0-9a-f]+")
"""Names of the folders that executors have Ray keep its state in."""
PART = re.compile(r"\..+\.part")


def _unfinished_writes(home: Path, folders: list[SweepFolder]) -> Iterator[Path]:
    """What killed commands left half written among the home's own files."""
    own = [folder.path for folder in folders]
    own += [path for path in (home / "victims").glob("[!.]*") if is_own_victim(RunFolder(path))]
    for place in (*own, home / "data"):
        yield from (path for path in place.rglob("*.part") if PART.fullmatch(path.name))
    for place in (home, home / "sweeps"):
        yield from (path for path in place.glob("*.part") if PART.fullmatch(path.name))


def foreign_folders(home: Path) -> list[Path]:
    """Sweeps and victims that came from elsewhere, of which nothing is removed."""
    victims = (path for path in sorted((home / "victims").glob("[!.]*")) if (path / "victim.json").exists())
    return [folder.path for folder in sweep_folders(home) if not folder.is_own()] + [
        path for path in victims if not is_own_victim(RunFolder(path))
    ]


def _old_copies() -> list[Rubbish]:
    return [
        Rubbish(path, num_bytes, "kept by this node, not used for a day", is_copy=True)
        for path, num_bytes, seconds in kept_copies()
        if seconds > 86_400
    ]


def _victim_of(folder: SweepFolder) -> str | None:
    """Name of the folder of a sweep's victim, which may not be finished yet; None where it is not pre-trained here."""
    header = folder.header()
    digest = header["contents"].get("victim")
    return f"{header['victim_name']}-{digest}" if digest else None


def _is_being_made(victim: Path) -> bool:
    """Whether a command pre-trains the victim now."""
    lock = FileLock(making_lock(victim))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def remove(rubbish: list[Rubbish]) -> int:
    """Remove it; returns the bytes that were freed."""
    freed = 0
    for item in rubbish:
        if item.is_copy:
            remove_copy(item.path)
        elif item.path.is_dir():
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
