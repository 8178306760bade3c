"""Doctor: what of this machine helps or hinders a sweep, each finding with its remedy."""

import contextlib
import dataclasses
import os
import pwd
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sweeplab.data.cores import usable_cores
from sweeplab.execution.cluster import answers, cannot_attach
from sweeplab.specs import InvalidInput
from sweeplab.storage.files import file_system
from sweeplab.storage.home import home_folder
from sweeplab.storage.locks import check_locks, ray_parent
from sweeplab.terminal import encodable
from sweeplab.versions import environment

VANISHING = ("tmpfs", "overlay", "ramfs")
"""File systems that die with their machine or container."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    level: Literal["good", "note", "fault"]
    text: str

    @property
    def mark(self) -> str:
        """A sign that does not need colour."""
        return {"good": "[ok]   ", "note": "[note] ", "fault": "[fault]"}[self.level]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def examine() -> list[Finding]:
    """Look at everything, start nothing."""
    import torch

    findings = []
    for package, version in environment().items():
        level: Literal["good", "fault"] = "fault" if version == "not installed" else "good"
        findings.append(Finding(package, level, version))
    usable, cores = usable_cores(), os.cpu_count() or 1
    text = str(usable) if usable == cores else f"{usable} of {cores}, as this process may use (taskset, a cpuset)"
    findings.append(Finding("cores", "good", text))
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        findings.append(Finding("GPUs", "good", names))
    else:
        findings.append(Finding("GPUs", "note", "none seen by torch: sweeps run on the CPU; the papers' need GPUs"))
    findings += _home()
    findings.append(_ray())
    findings += _surroundings()
    findings.append(_port(5000))
    browser = shutil.which("chromium") or shutil.which("google-chrome") or os.environ.get("BROWSER_PATH")
    findings.append(
        Finding("browser", "good", browser)
        if browser
        else Finding("browser", "note", "no chromium: figures cannot be saved as PNG; pages are unaffected")
    )
    return findings


def _home() -> list[Finding]:
    try:
        home = home_folder()
    except InvalidInput as error:
        return [Finding("home", "fault", str(error))]
    kind = file_system(home)
    findings = [
        Finding("home", "note", f"{home} lies on {kind}, which dies with its container; set SWEEPLAB_HOME elsewhere")
        if kind in VANISHING
        else Finding("home", "good", f"{home} ({kind})")
    ]
    findings.append(_locks(home))
    free = shutil.disk_usage(home).free / 1e9
    level: Literal["good", "note", "fault"] = "good" if free > 20 else "note" if free > 1 else "fault"
    findings.append(Finding("disk", level, f"{free:.0f} GB free in the home"))
    return findings


def _locks(home: Path) -> Finding:
    path = home / ".doctor.lock"
    try:
        check_locks(path)
    except InvalidInput as error:
        return Finding("locks", "fault", str(error))
    finally:
        path.unlink(missing_ok=True)
    return Finding("locks", "good", "the home's file system has them")


def _ray() -> Finding:
    asked = os.environ.get("RAY_ADDRESS")
    if asked:
        if asked != "auto" and not answers(asked):
            return Finding("ray", "fault", cannot_attach(asked))
        return Finding("ray", "good", f"attaches to {asked}, RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'token')}")
    try:
        place = ray_parent()
    except InvalidInput as error:
        return Finding("ray", "fault", str(error))
    shm = Path("/dev/shm")
    if sys.platform == "linux" and shm.exists() and shutil.disk_usage(shm).total < 1e9:
        return Finding("ray", "note", "/dev/shm is below 1 GB: Ray's object store falls back to the disk")
    return Finding("ray", "good", f"starts on this machine, below {place}, on loopback but for torch's rendezvous")


def _surroundings() -> list[Finding]:
    """What sweeps put up with, and may explain what else goes wrong."""
    notes = []
    with contextlib.suppress(UnicodeError):
        try:
            socket.getaddrinfo(socket.gethostname(), None)
        except OSError:
            why = f"{socket.gethostname()} does not resolve: add it to /etc/hosts before you run several nodes"
            notes.append(Finding("host name", "note", why))
    proxies = sorted({name for name in os.environ if name.lower() in PROXIES and os.environ[name]})
    if proxies:
        why = f"{', '.join(proxies)} set: requests to object stores go through it; list other nodes in no_proxy"
        notes.append(Finding("proxy", "note", why))
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        why = f"uid {os.getuid()} has no passwd entry: set HOME, below which Ray keeps its access token"
        notes.append(Finding("user", "good" if "HOME" in os.environ else "fault", why))
    encoding = sys.stdout.encoding or "utf-8"
    if encodable("✓", encoding) != "✓":
        notes.append(Finding("encoding", "note", f"{encoding} lacks marks such as the tick: ASCII stands for them"))
    return notes


PROXIES = ("http_proxy", "https_proxy", "all_proxy")
"""Variables, in either case, that libraries of the web mind."""


def _port(number: int) -> Finding:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", number)) == 0:
            return Finding("port", "note", f"{number} is in use: `sweeplab mlflow --port` takes another one")
    return Finding("port", "good", f"{number} is free for MLflow")
