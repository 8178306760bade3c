"""The pool's side of the driver, against a made-up mailbox: what messages of ranks mean, in any order."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import pytest
from fabricated import open_controller

from sweeplab.execution import pool as pool_module
from sweeplab.execution import pump as pump_module
from sweeplab.execution.controller import Workload
from sweeplab.execution.mailbox import Ended, Ready, Report
from sweeplab.execution.pool import Pool
from sweeplab.execution.watchdog import Watchdog
from sweeplab.specs import ClusterLost, Unfinished
from sweeplab.sweep.controller import SweepController
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.failures import Failure
from sweeplab.worker.jobs import Weights


class Remote:
    """Calls like a Ray actor's method, at once."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class MadeUpMailbox:
    """Holds the messages that a test writes, and what the driver did."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.handed: dict[Any, Any] = {}
        self.answers: dict[int, Any] = {}
        self.take = Remote(self._take)
        self.hand = Remote(lambda key, job: self.handed.__setitem__(key, job))
        self.answer = Remote(lambda question, value: self.answers.__setitem__(question, value))

    def _take(self, seconds: float) -> tuple[list[Any], int]:
        messages, self.messages = self.messages, []
        return messages, 0


@pytest.fixture
def controller(folder: SweepFolder) -> SweepController:
    return open_controller(folder)


@pytest.fixture
def pool(controller: SweepController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """One slot whose run never starts; its ranks are played by the test."""
    import ray

    mailbox = MadeUpMailbox()
    monkeypatch.setattr(pump_module, "resources_per_worker", lambda resources: {"CPU": 1.0})
    monkeypatch.setattr(pump_module, "open_mailbox", lambda reads: mailbox)
    monkeypatch.setattr(pump_module, "weights_of", lambda checkpoint: Weights())
    monkeypatch.setattr(ray, "get", lambda value: value)
    workload = Workload([], "victim.pt", tmp_path)
    return Pool(controller, workload, Watchdog(stall_minutes=1), slots=1)


READY = Ready(0, "a", 0)


def tell(pool: Pool, *messages: Any) -> None:
    """Have the driver hear messages, those of points as questions numbered by their place."""
    made_up: Any = pool.pump.mailbox
    made_up.messages += [(said, None if isinstance(said, Ready) else i) for i, said in enumerate(messages)]
    pool._hear(pool.pump.take(0.0))
    pool._look_after_runs()
    pool._hear(pool.pump.take(0.0))
    pool._hand_out()


def handed(pool: Pool, ready: Ready = READY) -> Any:
    made_up: Any = pool.pump.mailbox
    return pickle.loads(made_up.handed[ready])


def points_of(controller: SweepController, attempt: int = 1) -> list[Report]:
    """What a worker says of the whole of trial 0."""
    made = [
        fabricated.point(i, *fabricated.rates_by_learning_rate({"learning_rate": 1e-2}, i), attempt=attempt)
        for i in range(controller.sweep.num_points())
    ]
    return [Report(0, attempt, point, fabricated.outcomes(point.measurement)) for point in made]


def is_over(controller: SweepController, number: int = 0) -> bool:
    return controller.folder.trial(number).result() is not None


def test_a_slot_that_is_ready_gets_the_next_trial(pool: Pool):
    tell(pool, READY)
    assert (handed(pool).number, handed(pool).attempt) == (0, 1)


def test_points_are_committed_before_they_are_answered_and_done_ends_the_trial(pool: Pool, controller: SweepController):
    tell(pool, READY)
    tell(pool, *points_of(controller))
    assert pool.pump.mailbox.answers == {0: False, 1: False, 2: False}
    assert len(controller.folder.trial(0).points()) == 3
    tell(pool, Ended(0, 1))
    assert is_over(controller)


def test_another_rank_may_ask_for_the_next_job_before_rank_0_is_done(pool: Pool, controller: SweepController):
    """Rank 1 was quicker: that is no failure, and the next job waits until this one is over."""
    tell(pool, READY)
    tell(pool, *points_of(controller), Ready(0, "a", 1))
    assert not is_over(controller)
    assert Ready(0, "a", 1) not in pool.pump.mailbox.handed
    tell(pool, Ended(0, 1))
    assert controller.folder.trial(0).result() == {"state": "finished", "points": 3}
    assert handed(pool, Ready(0, "a", 1)).number == 1


def test_ranks_that_begin_anew_have_lost_their_attempt_and_go_on_with_it(pool: Pool, controller: SweepController):
    tell(pool, READY)
    tell(pool, *points_of(controller)[:1])
    tell(pool, Ready(0, "b", 0))
    again = handed(pool, Ready(0, "b", 0))
    assert (again.number, again.attempt) == (0, 2)


def test_words_of_ranks_that_were_given_up_change_nothing_and_stop_them(pool: Pool, controller: SweepController):
    tell(pool, READY)
    tell(pool, Ready(0, "b", 0))
    tell(pool, *points_of(controller), Ended(0, 1), Ended(0, 1, ((Failure("no", True), ""),)))
    assert controller.folder.trial(0).points() == []
    assert set(pool.pump.mailbox.answers.values()) == {True}
    assert not is_over(controller)


def test_what_a_worker_said_before_it_died_is_heard_first(pool: Pool, controller: SweepController):
    tell(pool, READY)
    pool.pump.died(Ended(0, 1, ((Failure("the trial's process died", False), "log"),)))
    tell(pool, *points_of(controller)[:2])
    assert len(controller.folder.trial(0).points()) == 2
    assert [event["points"] for event in controller.folder.events() if event["event"] == "attempt failed"] == [2]


def test_a_failure_of_all_ranks_ends_the_trial_with_the_most_telling_reason(pool: Pool, controller: SweepController):
    tell(pool, READY)
    closed = (Failure("RuntimeError: connection closed", False), "rank 0's traceback")
    diverged = (Failure("FloatingPointError: not finite", True), "rank 1's traceback")
    tell(pool, Ended(0, 1, (closed, diverged)))
    result = controller.folder.trial(0).result()
    assert result is not None
    assert (result["state"], result["reason"]) == ("failed", "FloatingPointError: not finite")
    assert "rank 1" in (controller.folder.trial(0).path / "log.txt").read_text()


def test_when_all_is_over_the_slot_is_let_go(pool: Pool, controller: SweepController):
    fabricated.Player(controller).play_all()
    tell(pool, READY)
    assert pool.pump.mailbox.handed == {READY: b""}
    assert pool.slots[0].is_over


def test_slots_are_let_go_where_a_trial_takes_something_else_from_now_on(pool: Pool, controller: SweepController):
    """A pool of the new resources serves what is left."""
    tell(pool, READY)
    controller.resources = controller.resources.replace(gpus_per_worker=0.5)
    tell(pool, *points_of(controller), Ended(0, 1), Ready(0, "a", 1))
    assert is_over(controller)
    assert pool.pump.mailbox.handed[Ready(0, "a", 1)] == b""
    assert not controller.is_done()


class Dead:
    def is_alive(self) -> bool:
        return False


def test_a_run_that_dies_is_started_again_but_not_for_ever(
    pool: Pool, controller: SweepController, monkeypatch: pytest.MonkeyPatch
):
    started: list[int] = []

    def start(slot: Any) -> None:
        started.append(slot.number)
        slot.thread, slot.error = Dead(), RuntimeError("controller died")

    monkeypatch.setattr(pool, "_start", start)
    start(pool.slots[0])
    for _ in range(pool_module.MAX_IDLE_STARTS):
        pool._look_after_runs()
    with pytest.raises(
        Unfinished,
        match=r"slot 0 of the pool died 4 times without a job: RuntimeError: controller died; see .* 1 x 1 CPU",
    ):
        pool._look_after_runs()
    assert len(started) == 1 + pool_module.MAX_IDLE_STARTS


def test_a_slot_that_finds_no_room_is_done_without_while_another_serves(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pool.slots.append(pool_module._Slot(1))

    def start(slot: Any) -> None:
        slot.thread, slot.error = Dead(), RuntimeError("no room")

    monkeypatch.setattr(pool, "_start", start)
    start(pool.slots[1])
    for _ in range(pool_module.MAX_IDLE_STARTS + 1):
        pool._look_after_runs()
    assert [slot.is_over for slot in pool.slots] == [False, True]
    assert "slot 1 of the pool died 4 times without a job: RuntimeError: no room; going on without it" in caplog.text
    tell(pool, READY)
    assert handed(pool).number == 0


def test_a_slot_that_is_still_starting_does_not_keep_a_finished_sweep_waiting(
    pool: Pool, controller: SweepController, monkeypatch: pytest.MonkeyPatch
):
    pool.slots.append(pool_module._Slot(1))
    fabricated.Player(controller).play_all()
    monkeypatch.setattr(pool, "_start", lambda slot: None)
    pool.pump.mailbox.messages += [(READY, None)]
    pool.run()
    assert [slot.is_over for slot in pool.slots] == [True, False]


def test_a_dead_raylet_is_no_fault_of_the_trial(
    pool: Pool, controller: SweepController, monkeypatch: pytest.MonkeyPatch
):
    tell(pool, READY)
    pool.slots[0].thread, pool.slots[0].error = Dead(), RuntimeError("connection lost")  # type: ignore[assignment]
    monkeypatch.setattr(pool_module, "raylet_is_gone", lambda: True)
    with pytest.raises(ClusterLost, match="its raylet"):
        pool._look_after_runs()
    assert not [event for event in controller.folder.events() if event["event"] == "attempt failed"]
