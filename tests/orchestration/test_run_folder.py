"""A run's folder: points, outcomes, checkpoints and result, whatever was interrupted."""

import errno
import os
from pathlib import Path

import fabricated
import numpy as np
import pytest

from sweeplab.orchestration import run_folder
from sweeplab.orchestration.run_folder import RunFolder
from sweeplab.records import Outcomes
from sweeplab.specs import InvalidInput, StorageFault


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
    assert reopened(run).latest_checkpoint() == str(run.checkpoints / name_of(2))


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
    assert run.latest_checkpoint() == str(run.checkpoints / name_of(1))


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
    assert reopened(run).result() == {"state": "finished"}


@pytest.mark.parametrize("file", ["result.json", "attempts.json"])
def test_a_damaged_file_is_bad_input(file: str, run: RunFolder):
    (run.path / file).write_text('{"sta')
    with pytest.raises(InvalidInput, match=f"{file} is damaged"):
        (run.result if file == "result.json" else run.attempts)()


def test_a_history_with_a_hole_is_bad_input(run: RunFolder):
    lines = (run.path / "history.jsonl").read_text().splitlines()
    (run.path / "history.jsonl").write_text("\n".join([lines[0], "\x00" * 40, lines[2]]) + "\n")
    with pytest.raises(InvalidInput, match=r"history\.jsonl is damaged"):
        reopened(run).points()
