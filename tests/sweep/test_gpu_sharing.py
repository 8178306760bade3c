"""GPU sharing: a GPU whose memory does not hold several trials gets fewer, and no trial is blamed."""

import weakref
from pathlib import Path
from typing import Any

import pytest
from fabricated import SWEEP, Player, open_controller, prepared_folder, run_on_ray

from sweeplab.experiment import CleaningSweep, Resources
from sweeplab.ranking.costs import costs_of
from sweeplab.sweep.controller import SweepController
from sweeplab.sweep.gpu_sharing import FEWER, trials_per_gpu, with_fewer
from sweeplab.sweep.retries import MORE_MEMORY
from sweeplab.worker.failures import Failure, release_memory
from sweeplab.worker.jobs import CleaningJob

FULL = Failure("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", False, "memory")


def sharing(share: float | None) -> CleaningSweep:
    return SWEEP.replace(resources=Resources(executor="tune", gpus_per_worker=share))


def started(path: Path, share: float | None, trials: int) -> tuple[SweepController, list[CleaningJob]]:
    """A sweep whose first trials are under way."""
    sweep = sharing(share)
    controller = open_controller(prepared_folder(path, sweep), sweep)
    return controller, [controller.next_job() for _ in range(trials)]


def events_of(controller: SweepController, kind: str) -> list[dict[str, Any]]:
    return [event for event in controller.folder.events() if event["event"] == kind]


@pytest.mark.parametrize(
    ("asked", "trials", "fewer"),
    [
        ({"gpus_per_worker": 0.25}, 4, 0.5),
        ({"gpus_per_worker": 0.5}, 2, 1.0),
        ({"gpus_per_worker": 0.1429}, 6, 0.3333),  # three of 0.3333 find room, three of 0.3334 do not
        ({"gpus_per_worker": 0.1, "concurrent_trials": 4}, 4, 0.5),
        ({"gpus_per_worker": 1.0}, 1, 1.0),
        ({"gpus_per_worker": 2.0}, 1, 1.0),
        ({"gpus_per_worker": 0.0}, 1, 1.0),
        ({}, 1, 1.0),
    ],
)
def test_shares_by_hand(asked: dict[str, Any], trials: int, fewer: float):
    resources = Resources(**asked)
    assert trials_per_gpu(resources) == trials
    assert with_fewer(resources) == resources.replace(gpus_per_worker=fewer)


def test_out_of_memory_beside_others_halves_the_trials_and_costs_no_attempt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "sweeplab")
    controller, _ = started(tmp_path, 0.25, 4)
    for number in (1, 2):  # the second one is of the same crowd
        controller.failed(number, FULL)
    assert controller.resources.gpus_per_worker == 0.5
    (event,) = events_of(controller, FEWER)
    assert (event["trial"], event["before"], event["after"], event["gpus_per_worker"]) == (1, 4, 2, 0.5)
    assert caplog.text.count("trial 1 ran out of memory with up to 4 trials on a GPU; 2 at a time from here on") == 1
    assert [event["blameless"] for event in events_of(controller, "attempt failed")] == [True, True]


def test_nothing_begins_until_the_trials_that_share_the_gpu_are_over(tmp_path: Path):
    controller, jobs = started(tmp_path, 0.5, 2)
    controller.failed(1, FULL)
    assert controller.next_job() is None
    assert not controller.is_done()
    Player(controller).play(jobs[0])
    again = controller.next_job()
    assert (again.number, again.attempt) == (1, 2)


def test_a_trial_alone_on_its_gpu_counts_its_attempts_as_ever(tmp_path: Path):
    controller, jobs = started(tmp_path, 0.5, 2)
    controller.failed(1, FULL)
    Player(controller).play(jobs[0])
    for attempt in (2, 3):
        assert controller.resources.gpus_per_worker == 1.0
        assert controller.next_job().attempt == attempt
        controller.failed(1, FULL)
    result = controller.folder.trial(1).result()
    assert result is not None
    assert result["reason"].startswith(f"{FULL.reason} (2 attempts); {MORE_MEMORY}")


@pytest.mark.parametrize(
    ("share", "trials", "failure"),
    [
        (1.0, 2, FULL),  # a whole GPU each
        (0.5, 1, FULL),  # the only trial
        (None, 2, FULL),
        (0.5, 2, Failure("MemoryError: no message", False, "memory")),  # of the host
    ],
)
def test_other_wants_of_memory_change_no_share(tmp_path: Path, share: float | None, trials: int, failure: Failure):
    controller, jobs = started(tmp_path, share, trials)
    controller.failed(jobs[-1].number, failure)
    assert controller.resources.gpus_per_worker == share
    assert not any("blameless" in event for event in events_of(controller, "attempt failed"))


def test_the_next_command_keeps_to_fewer_trials_and_says_so_unless_it_asks_for_another_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    controller, _ = started(tmp_path, 0.25, 4)
    controller.failed(1, FULL)
    controller.close()
    caplog.set_level("INFO", "sweeplab")
    caplog.clear()
    assert open_controller(controller.folder, sharing(0.25)).resources.gpus_per_worker == 0.5
    assert [message for message in caplog.messages if "on a GPU" in message] == [
        f"{SWEEP.name}: at most 2 at a time on a GPU, since its memory did not hold 4 trials before; another "
        "resources.gpus_per_worker starts from that"
    ]
    caplog.clear()
    assert open_controller(controller.folder, sharing(0.2)).resources.gpus_per_worker == 0.2
    assert not any("on a GPU" in message for message in caplog.messages)


def test_gpu_time_is_counted_by_the_share_that_an_attempt_had():
    """10 s at a quarter of a GPU, then 10 s at a half: 7.5 s."""
    events = [
        {"time_ms": 0, "event": "driver began", "workers": 1, "gpus_per_worker": 0.25},
        {"time_ms": 0, "event": "trial began", "trial": 0},
        {"time_ms": 10_000, "event": "attempt failed", "trial": 0},
        {"time_ms": 10_000, "event": FEWER, "gpus_per_worker": 0.5},
        {"time_ms": 10_000, "event": "trial began", "trial": 0},
        {"time_ms": 20_000, "event": "trial ended", "trial": 0},
    ]
    assert costs_of(events, (), 0).gpu_seconds == 7.5


class Tensors:
    """Stands for what an attempt holds on its GPU."""


def test_what_a_failed_attempt_holds_is_let_go_of_before_anyone_hears_of_it():
    """The calls that the error, and the one behind it, came through held tensors."""
    held = []

    def allocate() -> None:
        mine = Tensors()
        held.append(weakref.ref(mine))
        raise RuntimeError("CUDA out of memory")

    def train() -> None:
        mine = Tensors()
        held.append(weakref.ref(mine))
        try:
            allocate()
        except RuntimeError as error:
            raise ValueError("a wrapper") from error

    try:
        train()
    except ValueError as error:
        assert all(tensors() is not None for tensors in held)
        release_memory(error)
        assert all(tensors() is None for tensors in held)
    assert len(held) == 2


CROWDED = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace

import fabricated
import torch
from sweeplab.execution import cluster
from sweeplab.execution.controller import Workload
from sweeplab.execution.watchdog import Watchdog
from sweeplab.experiment import Resources

home = Path(sys.argv[1])
here, events = home / "here", home / "sweeps" / fabricated.SWEEP.name / "events.jsonl"
here.mkdir(parents=True)

def wait_until(condition):
    began = time.monotonic()
    while not condition() and time.monotonic() - began < 60:
        time.sleep(0.05)

def work(job, context):
    mine = here / f"{job.number}-{job.attempt}"
    mine.touch()
    if (job.number, job.attempt) == (0, 1):  # it is there until the other one's failure is recorded
        wait_until(lambda: '"fewer trials per GPU"' in events.read_text())
    if (job.number, job.attempt) == (1, 1):
        wait_until((here / "0-1").exists)
        mine.unlink()
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for point in fabricated.Player(SimpleNamespace(sweep=job.sweep)).points(job):
        context.report(point, fabricated.outcomes(point.measurement))
    beside = sorted(path.name for path in here.iterdir() if path != mine)
    mine.unlink()
    (home / f"beside-{job.number}-{job.attempt}").write_text(json.dumps(beside))

sweep = fabricated.SWEEP.replace(
    resources=Resources(executor="tune", gpus_per_worker=0.5), search=fabricated.SWEEP.search.replace(trials=3)
)
folder = fabricated.prepared_folder(home / "sweeps", sweep)
with cluster.ray_session(needs_train=False):
    from sweeplab.execution import tune  # imports Ray, once its settings stand

    controller = fabricated.open_controller(folder, sweep, work=work)
    tune.run_on_tune(controller, Workload([], None, home), Watchdog(stall_minutes=5))
print(json.dumps({
    "states": [folder.trial(number).result()["state"] for number in folder.trial_numbers()],
    "shares": [event["gpus_per_worker"] for event in folder.events() if event["event"] == "fewer trials per GPU"],
    "beside": {path.name: json.loads(path.read_text()) for path in home.glob("beside-*")},
}))
"""


@pytest.mark.slow
@pytest.mark.alone
def test_workers_that_share_a_gpu_on_ray_and_run_out_of_its_memory_get_one_each(tmp_path: Path):
    """Ray is told of a GPU; no worker touches it. The last trial, and the second attempt, find nobody beside them."""
    found = run_on_ray(CROWDED, tmp_path, RAY_OVERRIDE_RESOURCES='{"GPU": 1}')
    assert found["states"] == ["finished"] * 3
    assert found["shares"] == [1.0]
    assert {name: beside for name, beside in found["beside"].items() if name != "beside-0-1"} == {
        "beside-1-2": [],
        "beside-2-1": [],
    }
