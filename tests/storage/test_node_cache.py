"""What a node keeps: one budget, in which what was unused longest makes room, and what a process uses stays."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweeplab.storage import node_cache
from sweeplab.storage.locks import file_lock, is_pinned, lock_path
from sweeplab.storage.node_cache import COMPLETE, kept_copies, kept_file, let_go, local_copy, make_room, tidy, use

BLOCK = 4096
"""Bytes of each thing that is kept here: a block of the disk."""


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """A function that has the node keep a file of a block, or a folder with one, used some days ago."""
    monkeypatch.setattr(node_cache, "node_cache", lambda: tmp_path)
    before = set(node_cache._pinned)

    def keep(name: str, days: float = 0.0, *, is_folder: bool = False) -> Path:
        place = tmp_path / name
        if is_folder:
            place.mkdir()
        file = place / "pixels" if is_folder else place
        file.write_bytes(b"x" * BLOCK)
        mark = place / COMPLETE if is_folder else place
        mark.touch()
        then = time.time() - 86_400 * days
        os.utime(mark, (then, then))
        return place

    yield keep
    for place in set(node_cache._pinned) - before:
        let_go(place)


def names() -> list[str]:
    return [copy.path.name for copy in kept_copies()]


def test_what_was_unused_longest_makes_room_and_no_more_than_that(keep: Callable[..., Path]):
    """Three blocks of four are taken: for two more, one has to go, for three, two."""
    for name, days in (("b", 2), ("c", 1), ("a", 3)):
        keep(name, days, is_folder=name == "a")
    assert make_room(BLOCK, budget=4 * BLOCK)
    assert names() == ["a", "b", "c"]
    assert make_room(2 * BLOCK, budget=4 * BLOCK)
    assert names() == ["b", "c"]
    assert make_room(3 * BLOCK, budget=4 * BLOCK)
    assert names() == ["c"]


def test_what_a_process_uses_stays(keep: Callable[..., Path]):
    old, older = keep("old", 2, is_folder=True), keep("older", 3)
    assert use(old)
    assert make_room(BLOCK, budget=2 * BLOCK)
    assert names() == [old.name]
    assert not make_room(2 * BLOCK, budget=2 * BLOCK)
    let_go(old)
    assert make_room(2 * BLOCK, budget=2 * BLOCK)
    assert (names(), older.exists()) == ([], False)


def test_what_another_process_uses_stays_until_it_ends(keep: Callable[..., Path]):
    place = keep("theirs", 20)
    code = f"import sys; from pathlib import Path; from sweeplab.storage.node_cache import use; \
use(Path({str(place)!r})); print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert kept_copies()[0].unused_seconds < 60
        tidy(0)
        assert names() == ["theirs"]
        process.kill()
    tidy(0)
    assert names() == []


def test_nothing_goes_in_vain(keep: Callable[..., Path]):
    keep("free", 3)
    use(keep("used", 2))
    assert not make_room(2 * BLOCK, budget=2 * BLOCK)
    assert names() == ["free", "used"]


def test_what_is_made_now_stays(keep: Callable[..., Path]):
    """It is locked, or has a name that its maker will change."""
    locked = keep("locked", 3)
    keep(".data.7.part", 3)
    with file_lock(lock_path(locked)):
        assert not make_room(BLOCK, budget=2 * BLOCK)
    assert names() == [".data.7.part", "locked"]
    assert make_room(BLOCK, budget=2 * BLOCK)
    assert names() == [".data.7.part"]


def test_only_a_share_of_the_free_space_is_taken(keep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    """Half of 3 free blocks is less than 2; a block that goes is free afterwards, and half of 4 is 2."""
    keep("old", 1)
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 3 * BLOCK}))
    assert make_room(1.5 * BLOCK, share=0.5)
    assert names() == ["old"]
    assert make_room(2 * BLOCK, share=0.5)
    assert names() == []


def test_what_is_old_goes_first_and_then_what_exceeds_the_budget(keep: Callable[..., Path]):
    for days in (1, 2, 3, 13, 15):
        keep(f"{days:02d}", days)
    tidy(math.inf)
    assert names() == ["01", "02", "03", "13"]
    tidy(2 * BLOCK)
    assert names() == ["01", "02"]


def test_what_is_gone_is_not_used(keep: Callable[..., Path]):
    place = keep("gone")
    place.unlink()
    assert not use(place)


def test_what_the_system_tidied_away_is_pinned_again_once_it_is_made_anew(keep: Callable[..., Path]):
    place = keep("tidied")
    use(place)
    place.unlink()
    keep("tidied")
    assert not is_pinned(place)
    assert use(place)
    assert is_pinned(place)


def test_a_folders_bytes_are_those_that_its_mark_says(keep: Callable[..., Path]):
    """To look at millions of files would take minutes."""
    place = keep("data-1", is_folder=True)
    assert [copy.bytes for copy in kept_copies()] == [BLOCK]
    (place / COMPLETE).write_text("123456")
    assert [copy.bytes for copy in kept_copies()] == [123456]


@pytest.mark.usefixtures("keep")
def test_a_copy_of_weights_is_in_use():
    copy = local_copy("/elsewhere/victim.pt", "1" * 16, lambda: b"weights")
    assert copy.read_bytes() == b"weights"
    assert is_pinned(copy)


def test_a_file_that_is_fetched_has_others_make_room_and_stays_itself(keep: Callable[..., Path]):
    """Tars of shards are not pinned: there may be thousands of them. The budget is what the process was told last."""
    keep("a", 2)
    tidy(BLOCK)
    try:
        kept = kept_file("b", lambda place: keep(place.name))
    finally:
        tidy(math.inf)
    assert names() == ["b"]
    assert not is_pinned(kept)
