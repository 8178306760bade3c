"""Files of the home survive kills and full disks."""

import errno
import json
import os
from pathlib import Path

import pytest

from sweeplab.data.wordnet import find_wordnet
from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.storage import files
from sweeplab.storage.home import home_folder


def full_disk(*arguments: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_content_and_no_litter(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "result.json"
    files.write_json(path, {"state": "old"})
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(StorageFault, match=r"cannot write .*result\.json \(No space left on device\); free space"):
        files.write_json(path, {"state": "new"})
    assert files.read_json(path) == {"state": "old"}
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageFault, match="No space left"):
        files.write_atomically(tmp_path / "deep" / "result.json", b"{}")
    assert os.listdir(tmp_path / "deep") == []


def test_a_write_below_a_regular_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFault, match=r"cannot write .*free space or mend permissions"):
        files.write_json(tmp_path / "file" / "result.json", {})


def test_json_comes_back_as_it_was_written(tmp_path: Path):
    value = {"name": "größe", "numbers": [1, 2.5, None, True], "inner": {"a": 1e-9}}
    files.write_json(tmp_path / "value.json", value)
    assert files.read_json(tmp_path / "value.json") == value


def test_nan_is_refused_and_the_old_content_stays(tmp_path: Path):
    files.write_json(tmp_path / "value.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "value.json", float("nan"))
    assert files.read_json(tmp_path / "value.json") == 1


@pytest.mark.parametrize("content", [b"", b'{"state": "fin', b"\xff\xfe\x00", b"\x00" * 40])
def test_damaged_json_is_bad_input(content: bytes, tmp_path: Path):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"result\.json is damaged .*; restore it from a backup"):
        files.read_json(tmp_path / "result.json")


def test_a_torn_last_line_is_passed_over(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3, "b')
    assert files.read_lines(path) == [{"a": 1}, {"a": 2}]


def test_a_line_after_a_torn_one_starts_anew(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"a": 1}\n{"a": 2, "b')
    files.append_line(path, {"a": 3})
    assert files.read_lines(path) == [{"a": 1}, {"a": 3}]


def test_lines_are_appended_in_order(tmp_path: Path):
    for number in range(3):
        files.append_line(tmp_path / "events.jsonl", {"a": number})
    assert [json.loads(line)["a"] for line in (tmp_path / "events.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_an_append_on_a_full_disk_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageFault, match=r"cannot write .*events\.jsonl \(No space left"):
        files.append_line(tmp_path / "events.jsonl", {})


def test_lines_of_a_missing_file_are_none(tmp_path: Path):
    assert files.read_lines(tmp_path / "events.jsonl") == []


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b""), (b"one\n", b"one\n"), (b"one\ntwo", b"one\n"), (b"torn", b""), (b"one\n\ntw", b"one\n\n")],
)
def test_only_a_last_line_without_end_is_dropped(before: bytes, after: bytes, tmp_path: Path):
    path = tmp_path / "study.journal"
    path.write_bytes(before)
    files.drop_torn_line(path)
    assert path.read_bytes() == after


def test_the_home_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path / "new" / "home"))
    assert home_folder() == tmp_path / "new" / "home"
    assert [name for name in os.listdir(tmp_path / "new" / "home") if name[0] != "."] == ["home.key"]


def test_a_home_below_a_regular_file_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(InvalidInput, match=r"SWEEPLAB_HOME=.*/file is a file; set it to a folder"):
        home_folder()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_without_write_permission_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path))
    with pytest.raises(InvalidInput, match="Permission denied"):
        home_folder()


def test_a_value_may_hold_any_line_end(tmp_path: Path):
    """U+2028 and U+0085 end a line elsewhere, and JSON leaves them as they are."""
    value = {"reason": "one\u2028two\u0085three\rfour"}
    for _ in range(2):
        files.append_line(tmp_path / "events.jsonl", value)
    assert files.read_lines(tmp_path / "events.jsonl") == [value, value]


def test_a_home_that_is_a_file_or_nobodys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match="is a file; set it to a folder"):
        home_folder(to_read=True)
    monkeypatch.setenv("SWEEPLAB_HOME", "~nosuchuser/x")
    with pytest.raises(InvalidInput, match=r"SWEEPLAB_HOME=~nosuchuser/x: .*the absolute path of a folder"):
        home_folder(to_read=True)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch):
    """A container's user without a passwd entry: nothing says where its home is."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SWEEPLAB_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(InvalidInput, match=r"^neither SWEEPLAB_HOME nor HOME is set; set SWEEPLAB_HOME to"):
        home_folder()
    find_wordnet()  # which looks below a home, where there is one
