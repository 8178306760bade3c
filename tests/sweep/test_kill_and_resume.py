"""Drivers are killed without warning; the same command goes on, and nothing is lost or done twice."""

import json
import os
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.search.study import open_study
from sweeplab.storage.files import read_lines
from sweeplab.sweep_folder import SweepFolder

pytestmark = [pytest.mark.slow, pytest.mark.alone]

EXPERIMENT = """
from quickstart import SWEEP as QUICKSTART
from sweeplab.cli import main
from sweeplab.experiment import smoke_sweep

SMALL = smoke_sweep(QUICKSTART)
SWEEP = SMALL.replace(
    name="interrupted",
    epochs=3,
    search=SMALL.search.replace(trials=3),
    resources=SMALL.resources.replace(executor="{executor}"),
)
if __name__ == "__main__":
    main(SWEEP)
"""

NOWHERE = "127.0.0.1:1"
"""An address at which no Ray answers: whoever wants Ray fails."""


def history(path: Path) -> list[dict[str, Any]]:
    return read_lines(path / "history.jsonl")


def events(folder: SweepFolder, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(folder.path / "events.jsonl") if event["event"] == kind]


def finished_trials(folder: SweepFolder) -> set[int]:
    return {number for number in folder.trial_numbers() if folder.trial(number).result() is not None}


def trials_under_way(folder: SweepFolder) -> set[int]:
    """Trials that have an epoch and are not over."""
    begun = {number for number in folder.trial_numbers() if len(history(folder.trial(number).path)) > 1}
    return begun - finished_trials(folder)


@dataclass
class Story:
    """A sweep that was killed after its first finished trial, run again to its end, and run once more."""

    folder: SweepFolder
    home: Path
    at_kill: dict[int, list[dict[str, Any]]]
    """Committed points by trial when the driver was killed."""
    finished_at_kill: set[int]
    again: subprocess.CompletedProcess[str]
    once_more: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module", params=["tune", "inline"])
def story(request: pytest.FixtureRequest, new_workplace: Callable[..., Any], victim_home: Path) -> Story:
    place = new_workplace(EXPERIMENT.format(executor=request.param), victim_home)
    folder = place.sweep("interrupted")
    first = place.start()
    place.wait_until(first, lambda: bool(finished_trials(folder) and trials_under_way(folder)))
    place.kill(first)
    at_kill = {number: history(folder.trial(number).path) for number in folder.trial_numbers()}
    finished_at_kill = finished_trials(folder)
    again = place.run()
    once_more = place.run(ray_address=NOWHERE)
    return Story(folder, place.home, at_kill, finished_at_kill, again, once_more)


def test_the_same_command_finishes_the_sweep(story: Story):
    assert story.again.returncode == 0, story.again.stderr[-3000:]
    assert story.folder.record().state == "finished"


def test_it_says_what_is_reused(story: Story):
    done = len(story.finished_at_kill)
    assert f"3 trials of 3 epochs on 320 pairs; {done} are done and stay" in story.again.stdout


def test_points_from_before_the_kill_stay_as_they_were(story: Story):
    for number, points in story.at_kill.items():
        assert history(story.folder.trial(number).path)[: len(points)] == points


def test_a_finished_trial_is_not_run_again(story: Story):
    begun = Counter(event["trial"] for event in events(story.folder, "trial began"))
    assert story.finished_at_kill
    assert all(begun[number] == 1 for number in story.finished_at_kill)


def test_an_interrupted_trial_goes_on_where_it_was(story: Story):
    interrupted = set(story.at_kill) - story.finished_at_kill
    assert interrupted
    for number in interrupted:
        attempts = [point["attempt"] for point in history(story.folder.trial(number).path)]
        before = len(story.at_kill[number])
        assert attempts == [1] * before + [2] * (4 - before)


def test_every_trial_has_every_point_once(story: Story):
    for trial in story.folder.record().trials:
        assert [point.epoch for point in trial.points] == [0.0, 1.0, 2.0, 3.0]


def test_two_drivers_were_at_work(story: Story):
    assert len(events(story.folder, "driver began")) == 2
    assert [event["finished"] for event in events(story.folder, "driver ended")] == [True]


def test_mlflow_has_one_run_a_trial_and_every_point_once(story: Story):
    with sqlite3.connect(story.home / "mlflow.db") as store:
        runs = store.execute(
            "select t.value, r.run_uuid, r.status from tags t join runs r using (run_uuid)"
            " where t.key = 'sweeplab.key' and t.value not like '%/victim'"
        ).fetchall()
        assert sorted(key.rsplit("/", 1)[1] for key, _, _ in runs) == ["0", "1", "2"]
        assert {status for _, _, status in runs} == {"FINISHED"}
        query = "select step from metrics where key = 'eval/accuracy' and run_uuid = ? order by step"
        for _, run, _ in runs:
            assert store.execute(query, (run,)).fetchall() == [(0,), (1,), (2,), (3,)]


def test_optuna_has_every_trial_complete(story: Story):
    study: optuna.Study = open_study(story.folder, "interrupted")
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 3


def test_the_leaderboard_has_every_trial(story: Story):
    board = rank_trials(story.folder.record(), story.folder.outcomes)
    assert sorted(row.trial for row in board.rows) == [0, 1, 2]
    assert {row.epochs for row in board.rows} == {3.0}


def test_once_more_there_is_nothing_to_run_and_no_ray_is_needed(story: Story):
    assert story.once_more.returncode == 0, story.once_more.stderr[-3000:]
    assert "interrupted: all 3 trials are there already; nothing to run" in story.once_more.stdout


def test_nothing_unreported_is_left_among_the_checkpoints(story: Story):
    kept, named = set(), set()
    for trial in story.folder.record().trials:
        kept |= {(trial.number, path.name) for path in story.folder.trial(trial.number).checkpoints.iterdir()}
        named |= {(trial.number, point.checkpoint) for point in trial.points}
    assert kept
    assert kept <= named


# --- pre-training

PRETRAIN = ("-c", "from sweeplab.cli import app; app()", "pretrain", "experiment.py", "--only", "interrupted")


@pytest.mark.parametrize("flags", [[], ["--inline"]], ids=["train", "inline"])
def test_pre_training_goes_on_from_its_last_epoch(
    flags: list[str], new_workplace: Callable[..., Any], victim_home: Path
):
    place = new_workplace(EXPERIMENT.format(executor="auto"))
    first = place.start(*PRETRAIN, *flags)

    def runs() -> list[Path]:
        return [path.parent for path in (place.home / "victims").glob("*/history.jsonl")]

    place.wait_until(first, lambda: any(len(history(run)) > 1 for run in runs()))
    place.kill(first)
    (run,) = runs()
    before = history(run)
    again = place.run(*PRETRAIN, *flags)
    assert again.returncode == 0, again.stderr[-3000:]
    after = history(run)
    assert after[: len(before)] == before
    assert [(p["index"], p["attempt"]) for p in after] == [(n, 1 if n < len(before) else 2) for n in range(5)]
    assert json.loads((run / "result.json").read_text())["state"] == "finished"
    (undisturbed,) = (victim_home / "victims").glob("*/history.jsonl")
    assert [(p["measurement"], p["train"]) for p in after] == [
        (p["measurement"], p["train"]) for p in history(undisturbed.parent)
    ]


# --- polite interruptions


def press_ctrl_c(process: subprocess.Popen[bytes]) -> None:
    """As a terminal does: every process of the group hears of it, Ray's own too."""
    os.killpg(process.pid, signal.SIGINT)


def terminate(process: subprocess.Popen[bytes]) -> None:
    """As a scheduler does before it takes a machine away."""
    process.terminate()


# SIGTERM ends a Tune sweep in `test_faults.py`, where `sweeplab stop` sends it.
@pytest.mark.parametrize(("executor", "interrupt"), [("tune", press_ctrl_c), ("inline", terminate)])
def test_an_interrupted_command_says_how_to_go_on_and_ends_with_75(
    executor: str,
    interrupt: Callable[[subprocess.Popen[bytes]], None],
    new_workplace: Callable[..., Any],
    victim_home: Path,
):
    place = new_workplace(EXPERIMENT.format(executor=executor), victim_home)
    folder = place.sweep("interrupted")
    process = place.start()
    place.wait_until(process, lambda: bool(trials_under_way(folder)))
    interrupt(process)
    assert process.wait(timeout=600) == 75
    output = (place.path / "output.txt").read_text()
    assert "the same command goes on" in output
    assert "Traceback" not in output
    assert folder.record().state == "interrupted"
