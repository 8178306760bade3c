"""A run's folder: points, outcomes, checkpoints and result, whatever was interrupted."""

import errno
import os
from pathlib import Path

import fabricated
import numpy as np
import pytest

from sweeplab.records import Outcomes
from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.storage import run_folder
from sweeplab.storage.checkpoint_names import Checkpoint
from sweeplab.storage.files import write_json
from sweeplab.storage.ownership import MARK
from sweeplab.storage.run_folder import RunFolder


def name_of(index: int, attempt: int = 1) -> str:
    return f"attempt-{attempt}-epoch-{index:04d}.pt"


def commit(run: RunFolder, index: int, *, attempt: int = 1, accuracy_k: int = 80) -> bool:
    """Commit epoch `index` with a checkpoint file, as a worker and the driver do."""
    checkpoint = None
    if index:
        checkpoint = name_of(index, attempt)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        (run.checkpoints / checkpoint).write_bytes(b"weights")
    made = fabricated.point(index, accuracy_k, 10, attempt=attempt, checkpoint=checkpoint)
    return run.commit(made, fabricated.outcomes(made.measurement))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with points 0, 1 and 2."""
    run = RunFolder(tmp_path / "run")
    for index in range(3):
        commit(run, index)
    return run


def reopened(run: RunFolder) -> RunFolder:
    return RunFolder(run.path)


def checkpoints_of(run: RunFolder) -> list[str]:
    return sorted(os.listdir(run.checkpoints))


def test_committed_points_are_read_back_by_another_process(run: RunFolder):
    assert reopened(run).points() == run.points()
    assert [point.index for point in reopened(run).points()] == [0, 1, 2]


def test_committing_a_point_again_changes_nothing(run: RunFolder):
    before = (run.path / "history.jsonl").read_bytes()
    assert not commit(reopened(run), 1, attempt=2, accuracy_k=1)
    assert (run.path / "history.jsonl").read_bytes() == before
    assert reopened(run).outcomes(1) == fabricated.outcomes(fabricated.measurement(80, 10))


def test_a_point_that_skips_one_is_refused(run: RunFolder):
    with pytest.raises(ValueError, match=r"point 4 of .* arrived before point 3"):
        commit(run, 4)


def test_a_kill_between_outcomes_and_history_leaves_the_point_uncommitted(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    def killed(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "append_line", killed)
        with pytest.raises(KeyboardInterrupt):
            commit(run, 3)
    assert len(reopened(run).points()) == 3
    assert commit(reopened(run), 3, attempt=2, accuracy_k=70)
    assert reopened(run).outcomes(3) == fabricated.outcomes(fabricated.measurement(70, 10))


def test_a_full_disk_leaves_the_committed_points(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFault, match="No space left"):
            commit(run, 3)
    assert len(run.points()) == len(reopened(run).points()) == 3


@pytest.mark.parametrize("sizes", [(13, 11), (16, 8), (1, 1), (5, 0)])
def test_outcomes_come_back_image_by_image(sizes: tuple[int, int], tmp_path: Path):
    draw = np.random.default_rng(0)
    correct, hits = (draw.random(size) < 0.5 for size in sizes)
    run = RunFolder(tmp_path)
    run.commit(fabricated.point(0, 80, 10), Outcomes.of(correct, hits))
    found = reopened(run).outcomes(0)
    assert found is not None
    assert found.correct_mask().tolist() == correct.tolist()
    assert found.hit_mask().tolist() == hits.tolist()


def test_outcomes_of_a_point_that_is_not_there_are_none(run: RunFolder):
    assert run.outcomes(7) is None


def test_the_next_attempt_goes_on_from_the_newest_checkpoint(run: RunFolder):
    assert reopened(run).latest_checkpoint() == Checkpoint(str(run.checkpoints), name_of(2))


def test_a_run_that_has_only_its_start_begins_at_the_beginning(tmp_path: Path):
    run = RunFolder(tmp_path)
    commit(run, 0)
    assert run.latest_checkpoint() is None


def test_points_whose_checkpoint_is_gone_are_forgotten_down_to_one_that_is_there(run: RunFolder):
    commit(run, 3)
    for index in (2, 3):
        (run.checkpoints / name_of(index)).unlink()
    run.rewind()
    assert [point.index for point in reopened(run).points()] == [0, 1]
    assert run.latest_checkpoint() == Checkpoint(str(run.checkpoints), name_of(1))


def test_without_any_checkpoint_only_the_start_stays(run: RunFolder):
    run.keep_checkpoints(set())
    run.rewind()
    assert [point.index for point in reopened(run).points()] == [0]


def test_rewind_changes_nothing_where_the_newest_checkpoint_is_there(run: RunFolder):
    (run.checkpoints / name_of(1)).unlink()
    run.rewind()
    assert len(reopened(run).points()) == 3


def test_forgotten_points_can_be_made_again(run: RunFolder):
    (run.checkpoints / name_of(2)).unlink()
    run.rewind()
    assert commit(run, 2, attempt=2, accuracy_k=60)
    assert [(p.index, p.attempt) for p in reopened(run).points()] == [(0, 1), (1, 1), (2, 2)]


def test_what_a_dead_attempt_never_reported_is_removed_and_the_rest_stays(run: RunFolder):
    for stray in (name_of(3), f".{name_of(3)}.4711.part"):
        (run.checkpoints / stray).write_bytes(b"half")
    run.clear_abandoned()
    assert checkpoints_of(run) == [name_of(1), name_of(2)]


def test_keeping_some_checkpoints_spares_what_is_not_reported_yet(run: RunFolder):
    (run.checkpoints / name_of(3)).write_bytes(b"being reported")
    run.keep_checkpoints({name_of(2)})
    assert checkpoints_of(run) == [name_of(2), name_of(3)]


def test_attempts_count_up(run: RunFolder):
    assert [run.begin_attempt(), reopened(run).begin_attempt()] == [1, 2]
    assert reopened(run).attempts() == 2


def test_the_first_result_stands(run: RunFolder):
    assert run.result() is None
    run.finish({"state": "finished"})
    reopened(run).finish({"state": "failed", "reason": "late"})
    assert reopened(run).result() == {"state": "finished", "points": 3}


@pytest.mark.parametrize("content", ['{"sta', "[]", "null", '{"attempts": "two", "points": NaN}'])
@pytest.mark.parametrize("file", ["result.json", "attempts.json"])
def test_a_damaged_file_is_bad_input(file: str, content: str, run: RunFolder):
    (run.path / file).write_text(content)
    with pytest.raises(InvalidInput, match=f"{file} is damaged"):
        (run.result if file == "result.json" else run.attempts)()


DAMAGES = {
    "torn": lambda lines: [*lines[:2], lines[2][:30]],
    "emptied": lambda lines: [],
    "zeros": lambda lines: [lines[0], "\x00" * 40, lines[2]],
    "NaN": lambda lines: [*lines[:2], lines[2].replace('"accuracy_k": 80', '"accuracy_k": NaN')],
    "null": lambda lines: [lines[0], "null", lines[2]],
    "impossible": lambda lines: [*lines[:2], lines[2].replace('"accuracy_k": 80', '"accuracy_k": 80000')],
    "another type": lambda lines: [*lines[:2], lines[2].replace('"index": 2', '"index": [2]')],
    "nested": lambda lines: [*lines[:2], "[" * 100_000],
    "removed": None,
}
KEPT = {"emptied": 0, "removed": 0, "zeros": 1, "null": 1}
"""Points before the first that is lost; 2 in the other cases."""


def damage(run: RunFolder, how: str) -> None:
    history, change = run.path / "history.jsonl", DAMAGES[how]
    if change is None:
        history.unlink()
    else:
        history.write_text("".join(f"{line}\n" for line in change(history.read_text().splitlines())))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_result_counts_only_with_the_whole_history(how: str, run: RunFolder):
    run.finish({"state": "finished"})
    damage(run, how)
    left = reopened(run)
    assert (len(left.points()), left.num_lost()) == (KEPT.get(how, 2), 3 - KEPT.get(how, 2))
    assert left.result() is None
    assert left.rewind() == 3 - len(left.points())
    again = reopened(run)
    assert (again.num_lost(), again.result()) == (0, None)
    for index in range(len(again.points()), 3):
        assert commit(again, index, attempt=2)
    again.finish({"state": "finished"})
    assert reopened(run).result() == {"state": "finished", "points": 3}


def test_of_an_older_result_the_outcomes_tell_how_many_points_there_were(run: RunFolder):
    write_json(run.path / "result.json", {"state": "finished"})
    assert reopened(run).result() == {"state": "finished"}
    damage(run, "torn")
    assert (reopened(run).num_lost(), reopened(run).result()) == (1, None)


def test_what_stands_behind_a_hole_is_made_again(run: RunFolder):
    """The run is not over: points 1 and 2 are lost, though the line of 2 is whole."""
    damage(run, "zeros")
    left = reopened(run)
    assert (len(left.points()), left.num_lost()) == (1, 2)
    left.clear_abandoned()
    assert left.rewind() == 2
    assert commit(left, 1, attempt=2)
    assert [(point.index, point.attempt) for point in reopened(run).points()] == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 cut", b"\x93NUMPY", bytes(200)], ids=["empty", "cut", "npy", "zeros"]
)
def test_damaged_outcomes_are_bad_input_that_names_the_file(content: bytes, run: RunFolder):
    (run.path / "outcomes" / "0001.npz").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"0001\.npz is damaged .*or remove it"):
        run.outcomes(1)


@pytest.mark.parametrize(("place", "value"), [(8, 1), (8, 32), (10, 1), (10, 8), (-4, 1)])
def test_outcomes_whose_list_of_arrays_is_damaged_are_too(place: int, value: int, run: RunFolder):
    """Of the first entry the flags (byte 8: encrypted, patched) and the method (byte 10: shrunk, stored); and where the
    list begins (fourth byte from the end): before the file does."""
    path = run.path / "outcomes" / "0001.npz"
    content = bytearray(path.read_bytes())
    content[place if place < 0 else content.index(b"PK\x01\x02") + place] ^= value
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"0001\.npz is damaged .*or remove it"):
        run.outcomes(1)


# --- checkpoints inside an epoch


def rolling(run: RunFolder, after: int, step: int, attempt: int = 1) -> str:
    """Write a checkpoint as a worker does inside an epoch; the fabricated epochs have four steps."""
    name = f"attempt-{attempt}-after-point-{after:04d}-step-{step:010d}.pt"
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    (run.checkpoints / name).write_bytes(b"weights")
    return name


def test_a_checkpoint_inside_the_epoch_after_the_last_point_is_gone_on_from(run: RunFolder):
    name = rolling(run, 2, 10)
    assert reopened(run).latest_checkpoint() == Checkpoint(str(run.checkpoints), name)


def test_of_several_the_one_furthest_on_counts_whichever_attempt_wrote_it(run: RunFolder):
    rolling(run, 2, 9, attempt=2)
    name = rolling(run, 2, 11, attempt=1)
    assert reopened(run).latest_checkpoint() == Checkpoint(str(run.checkpoints), name)


@pytest.mark.parametrize(("after", "step"), [(1, 7), (1, 8), (3, 13), (2, 8)])
def test_a_checkpoint_that_does_not_follow_the_last_point_is_not(after: int, step: int, run: RunFolder):
    """Behind it, of a point that was never committed, or of the point's own step."""
    rolling(run, after, step)
    assert reopened(run).latest_checkpoint() == Checkpoint(str(run.checkpoints), name_of(2))


def test_inside_the_first_epoch_a_run_goes_on_too(tmp_path: Path):
    run = RunFolder(tmp_path)
    commit(run, 0)
    name = rolling(run, 0, 3)
    assert reopened(run).latest_checkpoint() == Checkpoint(str(run.checkpoints), name)


def test_nothing_counts_before_the_start_was_committed(tmp_path: Path):
    run = RunFolder(tmp_path)
    rolling(run, 0, 3)
    assert run.latest_checkpoint() is None
    run.clear_abandoned()
    assert checkpoints_of(run) == []


def test_with_a_checkpoint_inside_the_epoch_no_point_is_forgotten(run: RunFolder):
    rolling(run, 2, 10)
    run.keep_checkpoints(set())
    assert checkpoints_of(run) == [f"attempt-1-after-point-0002-step-{10:010d}.pt"]
    assert run.rewind() == 0
    assert len(reopened(run).points()) == 3


def test_clearing_keeps_the_newest_and_removes_stale_ones(run: RunFolder):
    for after, step in ((1, 7), (2, 9), (3, 13)):
        rolling(run, after, step)
    newest = rolling(run, 2, 11, attempt=2)
    run.clear_abandoned()
    assert checkpoints_of(run) == sorted([name_of(1), name_of(2), newest])


def test_a_committed_point_makes_those_before_it_superfluous(run: RunFolder):
    rolling(run, 2, 11)
    under_way = rolling(run, 3, 13)
    commit(run, 3)
    run.keep_checkpoints({name_of(3)})
    assert checkpoints_of(run) == sorted([name_of(3), under_way])


def test_a_run_that_is_over_keeps_none(run: RunFolder):
    rolling(run, 2, 11)
    run.finish({"state": "failed", "reason": "no"})
    run.keep_checkpoints(set())
    assert checkpoints_of(run) == []


def test_weights_in_a_folder_of_their_own_are_found_there(tmp_path: Path):
    storage = tmp_path / "shared" / "0000"
    run = RunFolder(tmp_path / "run")
    run_folder.write_json(run.path / "trial.json", {"storage": str(storage)})
    point = fabricated.point(1, 80, 10, checkpoint=name_of(1))
    assert run.checkpoint_path(point) is None
    storage.mkdir(parents=True)
    (storage / name_of(1)).write_bytes(b"weights")
    assert run.checkpoint_path(point) == storage / name_of(1)


def test_of_a_store_that_lags_behind_the_newest_that_arrived_stays(tmp_path: Path):
    """Points 1 to 3 are committed while only the first one's checkpoint has arrived: a restart goes on from it."""
    store = tmp_path / "store"
    store.mkdir()
    run = RunFolder(tmp_path / "run")
    write_json(run.path / "trial.json", {"storage": store.as_uri()})
    run.claim_storage()
    for index in range(4):
        made = fabricated.point(index, 80, 10, checkpoint=name_of(index) if index else None)
        run.commit(made, fabricated.outcomes(made.measurement))
        if index == 1:
            (store / name_of(1)).write_bytes(b"weights")
        run.keep_checkpoints({name_of(index)})
        assert sorted(os.listdir(store)) == [MARK, *([name_of(1)] if index else [])]
    assert run.num_kept() == 2
    for index in (2, 3):
        (store / name_of(index)).write_bytes(b"weights")
        run.keep_checkpoints({name_of(3)})
        assert sorted(os.listdir(store)) == [MARK, name_of(index)]


def test_a_stripped_checkpoint_is_not_gone_on_from_and_an_earlier_whole_one_is(run: RunFolder):
    run.note_stripped(name_of(2))
    again = reopened(run)
    assert (again.latest_checkpoint(), again.num_kept()) == (None, 2)
    assert again.has_checkpoint(again.points()[2])  # it still is the point's weights
    assert again.rewind() == 1
    assert again.latest_checkpoint() == Checkpoint(str(run.checkpoints), name_of(1))
    again.clear_abandoned()
    assert checkpoints_of(run) == [name_of(1)]


def test_where_all_are_stripped_the_run_starts_again(run: RunFolder):
    for index in (1, 2):
        run.note_stripped(name_of(index))
    assert (run.rewind(), run.latest_checkpoint()) == (2, None)
    assert [point.index for point in run.points()] == [0]


def test_what_a_killed_strip_left_goes_with_the_superfluous(run: RunFolder):
    (run.checkpoints / f".{name_of(2)}.4711.part").write_bytes(b"half")
    run.finish({"state": "finished"})
    run.keep_checkpoints({name_of(2)})
    assert checkpoints_of(run) == [name_of(2)]


def test_only_a_checkpoint_that_this_home_wrote_may_be_stripped(run: RunFolder, tmp_path: Path):
    last = run.points()[2]
    assert run.strippable(last) == run.checkpoints / name_of(2)
    (run.checkpoints / name_of(2)).rename(tmp_path / "mine.pt")
    assert run.strippable(last) is None
    (run.checkpoints / name_of(2)).symlink_to(tmp_path / "mine.pt")
    assert run.strippable(last) is None
    write_json(run.path / "trial.json", {"storage": str(tmp_path / "theirs")})
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name_of(2)).write_bytes(b"weights")
    assert reopened(run).strippable(last) is None
