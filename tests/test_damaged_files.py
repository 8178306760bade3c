"""Garbage in any file of a home: every command names the file, or goes on without it; never a traceback."""

import json
import shutil
from pathlib import Path

import fabricated
import pytest
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.storage.ownership import write_signed
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
    assert "Traceback" not in result.output, result.output
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


FEW = {(file, list(GARBAGE)[(number + step) % len(GARBAGE)]) for number, file in enumerate(FILES) for step in (0, 4)}
"""Two sorts of garbage a file, every sort several times; the slow tests try more of them."""
CASES = sorted(FEW | {(file, garbage) for file in FILES for garbage in ("torn", "object", "null", "nested")})


@pytest.mark.parametrize(
    ("file", "garbage"), [pytest.param(*case, marks=() if case in FEW else pytest.mark.slow) for case in CASES]
)
@pytest.mark.usefixtures("undrawn")
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


# --- one wrong value in a record that is whole otherwise

WRONG = ("null", '"x"', "{}", "-1")
RECORDS = ("sweep.json", "victim/victim.json", "trials/0003/trial.json", "trials/0003/result.json")
READERS = (
    ["list"],
    ["status", "made-up"],
    ["leaderboard", "made-up", "--json"],
    ["report", "made-up"],
    ["logs", "made-up"],
)


def fields(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every field of a record, and of the objects in it."""
    if not isinstance(value, dict) or len(path) > 1:
        return []
    return [place for name, held in value.items() for place in ((*path, name), *fields(held, (*path, name)))]


def wrong(text: str, place: tuple[str, ...], value: str) -> str:
    """A record with another value at a place."""
    record = json.loads(text)
    holder = record
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = "the wrong value"
    return json.dumps(record).replace('"the wrong value"', value)


def check_readers(what: object) -> None:
    for words in READERS:
        code, output = told(words)
        assert code in (0, 2), (what, words, output)


@pytest.mark.slow
@pytest.mark.parametrize("file", RECORDS)
@pytest.mark.usefixtures("undrawn")
def test_a_wrong_value_anywhere_in_a_record_is_named_or_plays_no_part(file: str, home: Path):
    record = home / "sweeps" / "made-up" / file
    text = record.read_text()
    for place in fields(json.loads(text)):
        for value in WRONG:
            record.write_text(wrong(text, place, value))
            check_readers((place, value))


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        ("sweep.json", ("spec", "search"), "{}"),
        ("sweep.json", ("protocol",), "null"),
        ("sweep.json", ("log_parameters",), "null"),
        ("sweep.json", ("spec", "epochs"), "1e400"),
        ("victim/victim.json", ("epoch",), '"x"'),
        ("trials/0003/trial.json", ("seed",), "null"),
        ("trials/0003/result.json", ("points",), '"x"'),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_a_wrong_value_is_named(file: str, place: tuple[str, ...], value: str, home: Path):
    record = home / "sweeps" / "made-up" / file
    record.write_text(wrong(record.read_text(), place, value))
    check_readers((place, value))
    code, output = told(["leaderboard", "made-up"])
    assert (code, Path(file).name in output.replace("\n", "")) == (2, True), output


@pytest.mark.usefixtures("undrawn")
def test_events_of_the_wrong_shape_are_passed_over(home: Path):
    folder = SweepFolder(home / "sweeps" / "made-up")
    before = folder.events()
    for line in (
        '{"event": "attempt failed", "time_ms": 1e400}',
        '{"event": "attempt failed", "time_ms": 1}',
        '{"event": "x", "time_ms": "x"}',
        '{"event": 5, "time_ms": 1}',
        '{"event": "driver began", "time_ms": 1, "before_until_ms": "z"}',
        '{"event": "trial began", "time_ms": 1, "trial": [1]}',
        '{"event": "stop decided", "time_ms": 1, "trial": 3}',
    ):
        with (folder.path / "events.jsonl").open("a") as file:
            file.write(line + "\n")
        assert folder.events() == before, line
    check_readers("events")
    fabricated.open_controller(folder)


@pytest.mark.parametrize("content", [b"", b"short", bytes(64)])
def test_a_damaged_home_key_is_named(content: bytes, home: Path):
    """Else everything would be taken for another home's."""
    (home / "home.key").write_bytes(content)
    code, output = told(["gc"])
    assert code == 2
    assert "home.key, by which the home knows what it made, is damaged" in output.replace("\n", "")
    assert "home.key" in told(["doctor"])[1]


@pytest.mark.parametrize("content", [b"", b'{"sta', b"[1]", b"null", b"{}", bytes(range(128, 256))])
def test_a_damaged_victim_keeps_nothing_else_from_being_removed(content: bytes, home: Path):
    write_signed(home / "victims" / "sound-d1" / "victim.json", {"spec": {}, "digest": "d1"}, home)
    (home / "victims" / "broken-d2").mkdir()
    (home / "victims" / "broken-d2" / "victim.json").write_bytes(content)
    code, output = told(["gc", "--dry-run", "--victims", "--set-aside"])
    assert code == 0
    assert "sound-d1: a victim that no sweep names" in output
    assert "broken-d2: it came from elsewhere or is damaged" in output
