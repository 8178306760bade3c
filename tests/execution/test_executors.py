"""Executors: the same trials on Ray Tune, on Ray Train and in one process; a bad trial harms no other."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import MARKS, descendants

from sweeplab.experiment import CleaningSweep
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import TrialRecord
from sweeplab.storage.files import read_lines
from sweeplab.sweep import run
from sweeplab.sweep.run import Options
from sweeplab.sweep_folder import SweepFolder

pytestmark = [pytest.mark.slow, pytest.mark.alone]

HEAD = """
from quickstart import SWEEP as QUICKSTART
from sweeplab.cli import main
from sweeplab.experiment import Resources, smoke_sweep
from sweeplab.search_space import Grid

SMALL = smoke_sweep(QUICKSTART)
"""


def board_of(folder: SweepFolder) -> dict[str, Any]:
    """What `leaderboard --json` prints, without times."""
    board = rank_trials(folder.record(), folder.outcomes).to_json()
    for row in board["trials"]:
        del row["seconds"]
    return board


# --- one seed, one result

SEEDED = (
    HEAD
    + """
main(SMALL.replace(name="seeded", epochs=1, resources=Resources(concurrent_trials=1, gpus_per_worker=0)))
"""
)


def run_inline(sweep: CleaningSweep, home: Path) -> SweepFolder:
    run.run_sweep(sweep, home, Options(inline=True))
    return SweepFolder(home / "sweeps" / sweep.name)


@pytest.fixture(scope="module")
def seeded(smoke: CleaningSweep, victim_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The board of a sweep run in this process."""
    home = tmp_path_factory.mktemp("seeded") / "home"
    shutil.copytree(victim_home, home)
    return board_of(run_inline(smoke.replace(name="seeded", epochs=1), home))


def test_the_same_seed_gives_the_same_leaderboard(
    seeded: dict[str, Any], smoke: CleaningSweep, victim_home: Path, tmp_path: Path
):
    shutil.copytree(victim_home, tmp_path / "home")
    assert board_of(run_inline(smoke.replace(name="seeded", epochs=1), tmp_path / "home")) == seeded


def test_tune_gives_the_leaderboard_that_one_process_gives(
    seeded: dict[str, Any], new_workplace: Callable[..., Any], victim_home: Path
):
    place = new_workplace(SEEDED, victim_home)
    result = place.run()
    assert result.returncode == 0, result.stderr[-3000:]
    assert board_of(place.sweep("seeded")) == seeded


# --- trials that fail, and a method of the user's own

OWN_METHOD = (
    """
from typing import Literal

import torch

from sweeplab.specs import Spec
from sweeplab.losses import mmcl
from sweeplab.training.objective import Loss

"""
    + HEAD
    + '''

class Plain(Spec):
    """The contrastive loss alone, and a second part that may be no number."""

    kind: Literal["plain"] = "plain"
    strange: bool = False

    def loss(self, state, batch):
        total = mmcl(batch.images, batch.texts, batch.logit_scale)
        return Loss(total, {"second": total * float("nan") if self.strange else total})


main(
    SMALL.replace(
        name="own-method",
        epochs=1,
        method=Plain(),
        space=SMALL.space.replace(dimensions={"learning_rate": {"kind": "log-uniform", "low": 1e-4, "high": 1e-2}}),
        grid=Grid(axes={"learning_rate": (1e-3, 1e30), "strange": (False, True)}, source="made up"),
        search=SMALL.search.replace(sampler="grid"),
    )
)
'''
)


@pytest.fixture(scope="module")
def own_method(new_workplace: Callable[..., Any], victim_home: Path) -> Any:
    """The workplace, and how the command ended."""
    place = new_workplace(OWN_METHOD, victim_home)
    return place, place.run()


def trial(place: Any, **params: Any) -> TrialRecord:
    (found,) = (t for t in place.sweep("own-method").record().trials if t.params == params)
    return found


def test_a_sweep_with_failed_trials_ends_well(own_method: Any):
    place, result = own_method
    assert result.returncode == 0, result.stderr[-3000:]
    assert place.sweep("own-method").record().state == "finished"


def test_a_method_that_the_script_defines_runs_in_rays_processes(own_method: Any):
    place, _ = own_method
    assert trial(place, learning_rate=1e-3, strange=False).state == "finished"


def test_a_loss_that_is_not_finite_fails_its_trial_at_once_with_the_step(own_method: Any):
    place, _ = own_method
    failed = trial(place, learning_rate=1e30, strange=False)
    assert (failed.state, failed.attempts) == ("failed", 1)
    assert failed.reason.startswith("FloatingPointError: the loss is not finite at step ")
    assert "with learning_rate=1e+30" in failed.reason


def test_a_part_that_is_not_a_number_is_left_out_of_the_records(own_method: Any):
    place, _ = own_method
    usual, strange = (trial(place, learning_rate=1e-3, strange=value).points[1].train for value in (False, True))
    assert usual.keys() - strange.keys() == {"second"}
    assert usual["loss"] == strange["loss"]


def test_the_traceback_of_a_failed_trial_is_in_its_log(own_method: Any):
    place, _ = own_method
    number = trial(place, learning_rate=1e30, strange=False).number
    assert "Traceback" in (place.sweep("own-method").trial(number).path / "log.txt").read_text()


# --- processes that die

ONE_TRIAL = (
    HEAD
    + """
main(SMALL.replace(name="one", epochs=3, search=SMALL.search.replace(trials=1)))
"""
)


def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(
    new_workplace: Callable[..., Any], victim_home: Path
):
    place = new_workplace(ONE_TRIAL, victim_home)
    folder = place.sweep("one")

    def points() -> list[dict[str, Any]]:
        return read_lines(folder.trial(0).path / "history.jsonl")

    process = place.start()
    place.wait_until(process, lambda: len(points()) > 1)
    (actor,) = (number for number, line in descendants(process.pid).items() if MARKS["actor"] in line)
    os.kill(actor, signal.SIGKILL)
    assert process.wait(timeout=600) == 0, (place.path / "output.txt").read_text()[-3000:]
    (record,) = folder.record().trials
    assert (record.state, record.attempts) == ("finished", 2)
    assert [point.index for point in record.points] == [0, 1, 2, 3]
    assert {point.attempt for point in record.points} == {1, 2}
    (failure,) = (e for e in read_lines(folder.path / "events.jsonl") if e["event"] == "attempt failed")
    assert failure["reason"].startswith("the trial's process died: The actor is dead because its worker process has")


# --- several workers a trial

TWO_WORKERS = (
    HEAD
    + """
main(
    SMALL.replace(
        name="two-workers",
        epochs=1,
        search=SMALL.search.replace(trials=1),
        resources=Resources(workers=2, gpus_per_worker=0),
    )
)
"""
)


def test_a_trial_of_two_workers_is_finished(new_workplace: Callable[..., Any], victim_home: Path):
    place = new_workplace(TWO_WORKERS, victim_home)
    result = place.run()
    assert result.returncode == 0, result.stderr[-3000:]
    (record,) = place.sweep("two-workers").record().trials
    assert (record.state, record.attempts) == ("finished", 1)
    assert [point.index for point in record.points] == [0, 1]
