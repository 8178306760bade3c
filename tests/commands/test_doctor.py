"""Doctor: what a good machine shows, and what of bad ones is named before a sweep meets it."""

import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.storage import locks


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good one, whatever this one is."""
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path / "home"))
    for name in ("RAY_ADDRESS", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.setattr(locks, "LONGEST_PARENT", 200)


def told(monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, str]]:
    """Exit code, and each finding's line by its subject."""
    ran = CliRunner().invoke(cli.app, ["doctor"])
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("[")]
    return ran.exit_code, {line[8:].split()[0]: line for line in lines if "2.60" not in line}


@pytest.mark.usefixtures("machine")
def test_a_good_machine_has_no_faults(monkeypatch: pytest.MonkeyPatch):
    code, found = told(monkeypatch)
    assert code == 0
    assert not [line for line in found.values() if line.startswith("[fault]")]
    assert found["cores"].endswith(" 8")
    assert "the home's file system has them" in found["locks"]
    assert not {"host", "proxy", "user", "encoding"} & set(found)


def unknown_user(number: int) -> None:
    raise KeyError(number)


def unresolved(*arguments: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


BAD: dict[str, tuple[Callable[[pytest.MonkeyPatch, Path], None], str, str, int]] = {
    "an address without Ray": (
        lambda patch, path: patch.setenv("RAY_ADDRESS", "127.0.0.1:1"),
        "ray",
        "RAY_ADDRESS=127.0.0.1:1 does not answer as Ray does",
        2,
    ),
    "no short folder": (
        lambda patch, path: patch.setattr(locks, "LONGEST_PARENT", 1),
        "ray",
        "and the sockets of Ray need one of at most 1;",
        2,
    ),
    "a home below a file": (
        lambda patch, path: patch.setenv("SWEEPLAB_HOME", __file__ + "/home"),
        "home",
        "test_doctor.py is a file; set it to a folder",
        2,
    ),
    "fewer cores": (
        lambda patch, path: patch.setattr(os, "sched_getaffinity", lambda process: {3}),
        "cores",
        "1 of 8, as this process may use (taskset, a cpuset)",
        0,
    ),
    "a proxy": (
        lambda patch, path: patch.setenv("https_proxy", "http://user:secret@proxy:3128"),
        "proxy",
        "https_proxy set: requests to object stores go through it",
        0,
    ),
    "a host without a name": (
        lambda patch, path: patch.setattr(socket, "getaddrinfo", unresolved),
        "host",
        "localhost does not resolve: add it to /etc/hosts",
        0,
    ),
    "a user without an entry": (
        lambda patch, path: patch.setattr(pwd, "getpwuid", unknown_user),
        "user",
        "has no passwd entry: set HOME, below which",
        0,
    ),
}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("what", BAD)
def test_what_may_hinder_a_sweep_is_named(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    change, subject, text, exit_code = BAD[what]
    change(monkeypatch, tmp_path)
    code, found = told(monkeypatch)
    assert text in found[subject]
    assert code == exit_code
    assert "secret" not in "".join(found.values())
