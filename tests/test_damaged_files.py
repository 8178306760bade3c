"""Garbage in any file of a home: every command names the file, or goes on without it; never a traceback."""

import json
import shutil
from pathlib import Path

import fabricated
import pytest
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.sweep_folder import SweepFolder

GARBAGE = {
    "empty": b"",
    "torn": b'{"sta',
    "object": b"{}",
    "list": b"[1]",
    "null": b"null\n",
    "text": b"garbage\n",
    "bytes": bytes(range(128, 256)),
    "NaN": b'{"number": NaN}\n',
    "nested": b"[" * 50_000,
}

FILES = (
    "sweep.json",
    "events.jsonl",
    "study.journal",
    "alive.json",
    "holder.json",
    "victim/victim.json",
    "victim/history.jsonl",
    "victim/outcomes/0000.npz",
    "trials/0003/trial.json",
    "trials/0003/history.jsonl",
    "trials/0003/outcomes/0001.npz",
    "trials/0003/result.json",
    "trials/0003/attempts.json",
    "trials/0003/log.txt",
)

OF_ALL = (["list"], ["list", "--json"], ["gc"], ["gc", "--dry-run", "--set-aside", "--victims"])
"""Commands that look at every sweep: one that is damaged keeps no other from being told of."""

OF_ONE = (
    ["status", "made-up"],
    ["leaderboard", "made-up", "--json"],
    ["report", "made-up"],
    ["export", "made-up", "--to", "out"],
    ["logs", "made-up"],
    ["logs", "made-up", "3"],
    ["replay", "made-up", "--seeds", "1"],
    ["audit", "made-up"],
    ["stop", "made-up"],
    ["rerun", "made-up", "3"],
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two finished sweeps."""
    home = tmp_path_factory.mktemp("damage") / "home"
    for name in ("made-up", "sound"):
        sweep = fabricated.SWEEP.replace(name=name)
        fabricated.finished_sweep(home / "sweeps", sweep)
        folder = SweepFolder(home / "sweeps" / name)
        for number in folder.trial_numbers():
            folder.trial(number).begin_attempt()
            folder.trial(number).append_log("a traceback")
        folder.commit_victim(fabricated.VICTIM)
    return home


@pytest.fixture
def home(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "home"
    shutil.copytree(original, copy)
    monkeypatch.setenv("SWEEPLAB_HOME", str(copy))
    monkeypatch.chdir(tmp_path)
    return copy


def told(words: list[str]) -> tuple[int, str]:
    """Exit code and all output of a command, which shows no traceback."""
    result = CliRunner().invoke(cli.app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{words} ended with {result.exception!r}") from result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_all_files_are_there_and_all_commands_work_before(home: Path):
    present = {
        path.relative_to(home / "sweeps" / "made-up").as_posix()
        for path in (home / "sweeps" / "made-up").rglob("*")
        if path.is_file()
    }
    assert set(FILES) - present <= {"alive.json", "holder.json"}
    for words in (*OF_ALL, *OF_ONE):
        assert told(words)[0] == 0, words


CASES = [(file, garbage) for file in FILES for garbage in GARBAGE]
FEW = {(file, list(GARBAGE)[(number + step) % len(GARBAGE)]) for number, file in enumerate(FILES) for step in (0, 4)}
"""Two sorts of garbage a file, every sort several times; the slow tests try all of them."""


@pytest.mark.parametrize(
    ("file", "garbage"), [pytest.param(*case, marks=() if case in FEW else pytest.mark.slow) for case in CASES]
)
def test_garbage_in_a_file_is_named_or_passed_over(file: str, garbage: str, home: Path):
    (home / "sweeps" / "made-up" / file).write_bytes(GARBAGE[garbage])
    for words in OF_ALL:
        code, output = told(words)
        assert code == 0
        if words == ["list", "--json"]:
            rows = {row["sweep"]: row["state"] for row in json.loads(output)}
            assert rows["sound"] == "finished"
            if file == "trials/0003/history.jsonl":
                assert rows["made-up"] == "interrupted"
                assert "0003/history.jsonl is damaged: 3 of 3 points are lost" in told(["list"])[1]
            assert set(rows) == {"made-up", "sound"}
    for words in OF_ONE:
        code, output = told(words)
        assert code in (0, 2)
        if code == 2:
            is_no_trial = file.endswith("trial.json") and garbage == "empty"  # as a power failure may leave it
            assert is_no_trial or Path(file).name in output.replace("\n", ""), (words, output)
