"""Housekeeping: stop a sweep, read its logs, try a trial again, and find what takes disk space and may go."""

import contextlib
import os
import shutil
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sweeplab.orchestration.bringing import kept_copies, remove_copy
from sweeplab.orchestration.files import RAY_FOLDER, UPLOAD_FOLDER, abandoned_folders, write_json
from sweeplab.orchestration.ledger import SweepFolder, making_lock, sweep_folders
from sweeplab.specs import InvalidInput

STOP_SECONDS = 60.0
"""So long `stop` waits for the driver to let go."""
SETTLE_SECONDS = 0.2
"""Between two looks at the lock, so that nothing is stopped but the process that holds it for good."""


def stop(folder: SweepFolder, *, wait_seconds: float = STOP_SECONDS) -> str:
    """Ask the driver of a sweep to end, as SIGTERM does, and wait until it has let go of the lock.

    Raises:
        InvalidInput: if nobody runs the sweep, the driver is on another host, or it does not end in time.
    """
    folder.header()
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
    folder.stop_mark.touch()  # who supervises the driver does not start it again
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(holder["process"]), signal.SIGTERM)
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


def sweep_log(folder: SweepFolder) -> list[str]:
    """A sweep's events, a line each."""
    folder.header()
    return [event_line(event) for event in folder.events()]


def event_line(event: dict[str, Any]) -> str:
    """When, what, and the facts."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time_ms"] / 1000))
    facts = "  ".join(f"{name}={value}" for name, value in event.items() if name not in ("time_ms", "event"))
    return f"{when}  {event['event']:16s} {facts}".rstrip()


def trial_log(folder: SweepFolder, number: int) -> list[str]:
    """A trial's events, its points and what its failed attempts printed.

    Raises:
        InvalidInput: if there is no such trial.
    """
    _check_trial(folder, number)
    record = folder.trial_record(number, is_driven=folder.is_locked())
    lines = [f"trial {number}: {record.state}" + (f" ({record.reason})" if record.reason else "")]
    lines += [f"  {name} = {value}" for name, value in record.params.items()]
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


def request_reruns(folder: SweepFolder, numbers: list[int]) -> None:
    """Have the next start of the sweep try trials' settings once more, as trials of their own; the old ones stay.

    Raises:
        InvalidInput: if a trial does not exist or is not over, or a driver is at work; then none is asked for.
    """
    if "imported" in folder.header():
        raise InvalidInput(f"sweep {folder.name!r} was imported; its trials cannot be run here")
    for number in numbers:
        _check_trial(folder, number)
        if folder.trial(number).result() is None:
            raise InvalidInput(f"trial {number} is not over yet; resuming the sweep goes on with it")
    with folder.lock():
        header = folder.header()
        asked = [*header.get("reruns", []), *numbers]
        more = {"reruns": asked, "planned_trials": header["planned_trials"] + len(numbers)}
        write_json(folder.path / "sweep.json", {**header, **more})
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
    rows = [
        {"what": f"{kind}/{path.name}", "bytes": size_of(path)}
        for kind in ("sweeps", "victims", "data")
        for path in sorted((home / kind).glob("*"))
        if not path.name.startswith(".")
    ]
    rows += [
        {"what": path.name, "bytes": size_of(path)}
        for path in (home / "mlflow.db", home / "mlartifacts", home / "ray")
        if path.exists()
    ]
    rows += [{"what": f"{path} (this node)", "bytes": num_bytes} for path, num_bytes, _ in kept_copies()]
    return sorted(rows, key=lambda row: -row["bytes"])


def find_rubbish(home: Path, *, set_aside: bool = False, victims: bool = False, copies: bool = False) -> list[Rubbish]:
    """What may go: leftovers of killed commands always; on request sweeps that `--fresh` set aside, unused victims, and
    what this node keeps for later.

    Sweeps that someone runs now are left alone, and so is everything younger than an hour among the leftovers.

    Args:
        home: the home.
        set_aside: sweeps that were begun anew under the same name too.
        victims: victims that no sweep of the home names too.
        copies: decoded images, and copies of another node's files, that this node did not use for a day too.
    """
    found: list[Rubbish] = []
    old = time.time() - 3600
    folders = sweep_folders(home)
    if not any(folder.is_locked() for folder in folders):
        found += [
            Rubbish(path, size_of(path), "state of Ray that is never read again")
            for path in (home / "ray").glob("*")
            if path.lstat().st_mtime < old
        ]
    found += [
        Rubbish(path, size_of(path), "a temporary folder of a killed command")
        for prefix in (RAY_FOLDER, UPLOAD_FOLDER)
        for path in abandoned_folders(prefix)
    ]
    for path in home.rglob(".*.part"):
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
            known = {point.checkpoint for point in run.points()}
            for name in sorted(run.storage.names() - known):
                path = Path(run.storage.location) / name
                found.append(Rubbish(path, size_of(path), "a checkpoint that no point names"))
    if victims:
        named = {_victim_of(folder) for folder in folders}
        for path in sorted((home / "victims").glob("[!.]*")):
            if path.name not in named and not _is_being_made(path):
                found.append(Rubbish(path, size_of(path), "a victim that no sweep names"))
    return found + (_old_copies() if copies else [])


def _old_copies() -> list[Rubbish]:
    return [
        Rubbish(path, num_bytes, "kept by this node, not used for a day", is_copy=True)
        for path, num_bytes, seconds in kept_copies()
        if seconds > 86_400
    ]


def is_set_aside(folder: SweepFolder) -> bool:
    """Whether `--fresh` renamed the sweep: its folder no longer has the sweep's name."""
    return bool(folder.header()["name"] != folder.name)


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
