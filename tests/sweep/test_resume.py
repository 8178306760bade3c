"""What a resume says before it starts: what is reused, repeated and run, and why."""

from pathlib import Path

import fabricated
import pytest
from fabricated import IMAGES, SWEEP, Player, open_controller

from sweeplab.commands.logs import request_reruns
from sweeplab.experiment import CleaningSweep
from sweeplab.sweep.prepare import Prepared
from sweeplab.sweep.resume import resume_plan
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.failures import Failure
from sweeplab.worker.jobs import DataDigests


def plan(folder: SweepFolder, sweep: CleaningSweep = SWEEP) -> list[str]:
    prepared = Prepared(
        sweep,
        sweep.digest(),
        {},
        DataDigests(),
        "0" * 16,
        num_pairs=64,
        images=IMAGES,
    )
    return resume_plan(folder, prepared, folder.path.parent.parent)


@pytest.fixture
def begun(folder: SweepFolder) -> SweepFolder:
    """Trial 0 is finished, 1 failed, 2 has an epoch, 3 has its start, 4 has nothing; the driver is gone."""
    controller = open_controller(folder)
    jobs = [controller.next_job() for _ in range(5)]
    Player(controller).play(jobs[0])
    controller.failed(1, Failure("ValueError: no", True))
    Player(controller).play(jobs[2], num_points=2)
    Player(controller).play(jobs[3], num_points=1)
    return folder


def test_a_sweep_that_is_not_there_yet_says_what_it_will_do(tmp_path: Path):
    assert plan(SweepFolder(tmp_path / "sweeps" / "made-up")) == [
        "made-up: 6 trials of 2 epochs on 64 pairs",
        "  search: tpe, search.startup_trials=3",
    ]


def test_every_trial_that_is_not_simply_done_has_a_line_with_the_reason(begun: SweepFolder):
    assert plan(begun) == [
        "made-up: 6 trials of 2 epochs on 64 pairs; 2 are done and stay, 3 go on, 1 are new",
        "  search: tpe, search.startup_trials=3",
        "  trial 1: failed for good (ValueError: no); `sweeplab rerun` tries it again",
        "  trial 2: goes on after epoch 1; steps after that run again (attempt 2)",
        "  trial 3: starts again (has no epoch yet)",
        "  trial 4: starts again (has no epoch yet)",
    ]


def test_a_checkpoint_inside_an_epoch_is_named(begun: SweepFolder):
    (begun.trial(2).checkpoints / "attempt-1-after-point-0001-step-0000000006.pt").write_bytes(b"weights")
    assert "  trial 2: goes on after epoch 1 and inside the next epoch; steps after that run again (attempt 2)" in (
        plan(begun)
    )


def test_a_checkpoint_that_is_gone_is_named(begun: SweepFolder):
    (begun.trial(2).checkpoints / "attempt-1-epoch-0001.pt").unlink()
    assert "  trial 2: starts again; its newest checkpoint is gone, so 1 point is made again" in plan(begun)


def test_planning_changes_nothing(begun: SweepFolder):
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in begun.path.rglob("*") if path.is_file()}

    before = content()
    plan(begun)
    assert content() == before


def test_more_trials_are_new_and_reruns_are_named(begun: SweepFolder):
    request_reruns(begun, [1])
    more = SWEEP.replace(search=SWEEP.search.replace(trials=9))
    first, second, third, *_ = plan(begun, more)
    assert first.endswith("2 are done and stay, 3 go on, 4 are new")
    assert second == "  search: tpe, search.startup_trials=3"
    assert third == "  tried once more as asked: trial 1"


def test_a_pruned_trial_is_done(folder: SweepFolder):
    folder.write_trial(0, {"learning_rate": 1e-3, "ssl_weight": 1.0}, configuration="c", seed=0, start_counts=False)
    folder.trial(0).finish({"state": "pruned", "reason": "its ASR stays"})
    assert plan(folder) == [
        "made-up: 6 trials of 2 epochs on 64 pairs; 1 are done and stay, 0 go on, 5 are new",
        "  search: tpe, search.startup_trials=3",
    ]


def test_reruns_are_told_apart_from_new_trials(tmp_path: Path):
    folder = fabricated.finished_sweep(tmp_path / "sweeps")
    request_reruns(folder, [2, 5])
    assert plan(folder)[0].endswith("6 are done and stay, 0 go on, 0 are new")
    assert plan(folder)[1:] == ["  tried once more as asked: trials 2, 5"]
    Player(open_controller(folder)).play_all()
    request_reruns(folder, [1])
    more = SWEEP.replace(search=SWEEP.search.replace(trials=7))
    assert plan(folder, more)[0].endswith("8 are done and stay, 0 go on, 1 are new")
    assert plan(folder, more)[2:] == ["  tried once more as asked: trial 1"]
