"""Kills of a real sweep's processes, judged by the independent checker; and that checker, which must see faults."""

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import pytest

from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.sweep.mlflow_sync import full_setting
from sweeplab.sweep_folder import SweepFolder
from sweeplab.tracking.runs import Tracker

sys.path.insert(0, str(Path(__file__).parent))

import harness
from checker import Checker, exit_fault, look

NAME = fabricated.SWEEP.name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Path:
    """A home with a finished sweep whose records all agree."""
    home = tmp_path_factory.mktemp("chaos") / "home"
    folder = fabricated.finished_sweep(home / "sweeps")
    record = folder.record()
    shutil.copy(mlflow_tables, home)
    tracker = Tracker(home, record, folder.header())
    settings = {t.number: full_setting(fabricated.SWEEP.setting(t.params)) for t in record.trials}
    tracker.sync(settings, record.trials)
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    shutil.copytree(finished, tmp_path / "home")
    return tmp_path / "home"


def board_of(home: Path) -> dict[str, Any]:
    folder = SweepFolder(home / "sweeps" / NAME)
    return rank_trials(folder.record(), folder.outcomes).to_json()


def test_records_that_agree_have_no_faults(finished: Path):
    checker = Checker(finished, NAME)
    assert checker.check(look(checker.folder), is_finished=True) == []
    assert checker.check_leaderboard(board_of(finished)) == []


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def drop_a_point(home: Path) -> None:
    path = home / "sweeps" / NAME / "trials" / "0002" / "history.jsonl"
    path.write_text("\n".join(lines_of(path)[:-1]) + "\n")


def repeat_a_point(home: Path) -> None:
    path = home / "sweeps" / NAME / "trials" / "0002" / "history.jsonl"
    path.write_text("\n".join([*lines_of(path), lines_of(path)[-1]]) + "\n")


def change_a_point(home: Path) -> None:
    path = home / "sweeps" / NAME / "trials" / "0003" / "history.jsonl"
    *first, last = lines_of(path)
    point = json.loads(last)
    point["measurement"]["accuracy_k"] -= 1
    path.write_text("\n".join([*first, json.dumps(point)]) + "\n")


def lose_a_result(home: Path) -> None:
    (home / "sweeps" / NAME / "trials" / "0001" / "result.json").unlink()


def lose_a_trial(home: Path) -> None:
    shutil.rmtree(home / "sweeps" / NAME / "trials" / "0004")


def run_a_trial_again(home: Path) -> None:
    SweepFolder(home / "sweeps" / NAME).event("trial began", trial=0, attempt=2, points=3)


def end_a_trial_twice(home: Path) -> None:
    SweepFolder(home / "sweeps" / NAME).event("trial ended", trial=0, state="finished")


def forget_the_journals_end(home: Path) -> None:
    path = home / "sweeps" / NAME / "study.journal"
    path.write_text("\n".join(lines_of(path)[:-1]) + "\n")


def leave_weights(home: Path) -> None:
    folder = home / "sweeps" / NAME / "trials" / "0000" / "checkpoints"
    folder.mkdir(exist_ok=True)
    (folder / "attempt-9-epoch-0001.pt").write_bytes(b"weights")


def in_mlflow(statement: str) -> Callable[[Path], None]:
    def change(home: Path) -> None:
        with sqlite3.connect(home / "mlflow.db") as store:
            assert store.execute(statement).rowcount > 0

    return change


def stand_for_more(home: Path) -> None:
    path = home / "sweeps" / NAME / "trials" / "0002" / "result.json"
    path.write_text(path.read_text().replace('"points": 3', '"points": 4'))


def lose_outcomes(home: Path) -> None:
    (home / "sweeps" / NAME / "trials" / "0002" / "outcomes" / "0001.npz").unlink()


BREAKS: dict[str, Callable[[Path], None]] = {
    "a point is gone": drop_a_point,
    "a point is there twice": repeat_a_point,
    "a point has other numbers": change_a_point,
    "a result is gone": lose_a_result,
    "a trial is gone": lose_a_trial,
    "a result stands for more points": stand_for_more,
    "a point has no outcomes": lose_outcomes,
    "a finished trial began again": run_a_trial_again,
    "a trial ended twice": end_a_trial_twice,
    "Optuna does not know an end": forget_the_journals_end,
    "weights that no point names": leave_weights,
    "MLflow lacks a point": in_mlflow("delete from metrics where key = 'eval/asr' and step = 1"),
    "MLflow has a point twice": in_mlflow(
        "insert into metrics select key, value, timestamp + 1, run_uuid, step, is_nan from metrics"
        " where key = 'eval/accuracy' and step = 2"
    ),
    "MLflow's run is not over": in_mlflow("update runs set status = 'RUNNING' where name = 'trial 0001'"),
    "MLflow has another best point": in_mlflow("update metrics set value = value + 1 where key = 'best/retention'"),
    "a trial has two runs": in_mlflow("update tags set value = replace(value, '/3', '/2') where key = 'sweeplab.key'"),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_the_checker_sees_every_broken_invariant(fault: str, home: Path):
    before = look(home / "sweeps" / NAME)
    BREAKS[fault](home)
    assert Checker(home, NAME).check(before, is_finished=True)


def test_the_checker_sees_a_wrong_leaderboard(home: Path):
    board = board_of(home)
    first, second = board["trials"][:2]
    first["rank"], second["rank"] = second["rank"], first["rank"]
    assert Checker(home, NAME).check_leaderboard(board)


@pytest.mark.parametrize(
    ("code", "lost", "is_complete", "is_right"),
    [
        (0, None, True, True),
        (0, None, False, False),
        (75, None, False, False),
        (1, None, True, False),
        (-9, "driver", False, True),
        (75, "raylet", False, True),
        (75, "mailbox", False, True),
        (0, "mailbox", True, True),
        (0, "mailbox", False, False),
        (1, "raylet", False, False),
        (75, "worker", False, False),
    ],
)
def test_the_checker_knows_the_right_exit_code(code: int, lost: str | None, is_complete: bool, is_right: bool):
    assert (exit_fault(code, lost, is_complete=is_complete) is None) == is_right


def test_until_ray_is_up_a_lost_raylet_may_end_the_command_with_rays_own_code():
    assert exit_fault(1, "raylet", is_complete=False, is_up=False) is None
    assert exit_fault(1, "mailbox", is_complete=False, is_up=False) is not None


@pytest.mark.slow
@pytest.mark.alone
def test_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path):
    """Two of them; `just chaos` makes a hundred, over both executors and every process."""
    tally = harness.run(2, ["pool"], 1, tmp_path, ["worker", "controller"])
    assert tally.faults == []
    assert sum(tally.kills.values()) == 2
    assert tally.finished_sweeps >= 1
