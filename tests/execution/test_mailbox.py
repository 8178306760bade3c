"""The mailbox between driver and workers, without Ray around it: jobs, answers, meetings after a failure."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle

from sweeplab.execution.loops import tune_trainable
from sweeplab.execution.mailbox import Ended, FoundBroken, Mailbox, MailboxContext, Ready
from sweeplab.execution.pump import Pump
from sweeplab.specs import DamagedCheckpoint, InvalidInput, StorageFault
from sweeplab.storage.broken_rows import BrokenRow
from sweeplab.worker.failures import Failure, failure_of, most_telling


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(story, 10))


def test_all_ranks_of_a_slot_get_the_same_job_and_the_driver_is_asked_once():
    async def story() -> tuple[list[bytes], list[Any]]:
        mailbox = Mailbox()
        asks = [asyncio.create_task(mailbox.job(Ready(0, "session", 0))) for _ in range(3)]
        messages, _ = await mailbox.take(1.0)
        await mailbox.hand(Ready(0, "session", 0), b"job")
        return await asyncio.gather(*asks), messages

    jobs, messages = run(story())
    assert jobs == [b"job"] * 3
    assert messages == [(Ready(0, "session", 0), None)]


def test_a_rank_that_comes_late_gets_the_job_that_the_others_have_begun():
    async def story() -> bytes:
        mailbox = Mailbox()
        for index in range(3):
            ask = asyncio.create_task(mailbox.job(Ready(0, "session", index)))
            await mailbox.take(1.0)
            await mailbox.hand(Ready(0, "session", index), f"job {index}".encode())
            await ask
        return await mailbox.job(Ready(0, "session", 1))

    assert run(story()) == b"job 1"


def test_a_new_session_of_a_slot_forgets_the_old_one_and_leaves_other_slots_alone():
    async def story() -> list[Any]:
        mailbox = Mailbox()
        other = asyncio.create_task(mailbox.job(Ready(1, "b", 0)))
        old = asyncio.create_task(mailbox.job(Ready(0, "a", 0)))
        await asyncio.sleep(0)
        new = asyncio.create_task(mailbox.job(Ready(0, "c", 0)))
        await asyncio.sleep(0)
        messages, _ = await mailbox.take(1.0)
        await mailbox.hand(Ready(0, "c", 0), b"new")
        await mailbox.hand(Ready(1, "b", 0), b"other")
        await mailbox.hand(Ready(0, "a", 0), b"nobody asks any more")
        old.cancel()
        return [await new, await other, messages]

    new, other, messages = run(story())
    assert (new, other) == (b"new", b"other")
    assert len(messages) == 3


def test_a_question_waits_for_the_drivers_answer():
    async def story() -> tuple[Any, Any]:
        mailbox = Mailbox()
        asking = asyncio.create_task(mailbox.ask(Ended(0, 1)))
        messages, _ = await mailbox.take(1.0)
        message, question = messages[0]
        await mailbox.answer(question, True)
        await mailbox.answer(question, False)  # a second answer changes nothing
        return message, await asking

    message, answer = run(story())
    assert message == Ended(0, 1)
    assert answer is True


def met(ranks: list[int], size: int) -> tuple[list[bool], list[Any]]:
    """What ranks of a job that failed are told when they meet, and what the driver hears."""

    async def story() -> tuple[list[bool], list[Any]]:
        mailbox = Mailbox()
        said = [Failure(f"rank {rank}", False) for rank in range(size)]
        meeting = asyncio.gather(*(mailbox.meet((7, 2), rank, size, (said[rank], "log")) for rank in ranks))
        messages: list[Any] = []
        while not messages:
            messages, _ = await mailbox.take(3.0)
        for _, question in messages:
            await mailbox.answer(question, True)
        return await meeting, [message for message, _ in messages]

    together, messages = run(story())
    return together, messages


def test_ranks_that_all_failed_know_it_and_the_driver_hears_of_it_once():
    both = ((Failure("rank 0", False), "log"), (Failure("rank 1", False), "log"))
    assert met([1, 0], 2) == ([True, True], [Ended(7, 2, both)])


def test_a_rank_that_failed_alone_is_told_so():
    assert met([1], 2) == ([False], [Ended(7, 2, ((Failure("rank 1", False), "log"),))])


def test_taking_without_news_comes_back_empty_after_a_while():
    async def story() -> tuple[list[Any], int]:
        mailbox = Mailbox()
        await mailbox.heartbeat()
        return await mailbox.take(0.01)

    assert run(story()) == ([], 1)


@pytest.mark.parametrize(
    ("error", "kind", "is_deterministic"),
    [
        (ValueError("no"), "", True),
        (FloatingPointError("the loss is not finite"), "", True),
        (InvalidInput("no"), "input", True),
        (RuntimeError("connection closed by peer"), "", False),
        (MemoryError(), "memory", False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory", False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory", False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory", False),
        (StorageFault("cannot write"), "storage", False),
        (DamagedCheckpoint("is damaged"), "checkpoint", False),
    ],
)
def test_failures_are_told_apart(error: Exception, kind: str, is_deterministic: bool):
    failure = failure_of(error)
    assert (failure.kind, failure.is_deterministic) == (kind, is_deterministic)
    assert failure.reason.startswith(type(error).__name__)


def test_of_what_ranks_say_the_deterministic_failure_tells_most():
    lost = Failure("RuntimeError: connection closed", False)
    full = Failure("StorageFault: cannot write", False, "storage")
    bad = Failure("ValueError: no", True)
    assert most_telling([lost, full, bad]) == bad
    assert most_telling([lost, full]) == full
    assert most_telling([lost]) == lost


def test_a_worker_whose_mailbox_has_died_ends_without_a_word(monkeypatch: pytest.MonkeyPatch):
    def gone(*_: Any) -> Any:
        raise ray.exceptions.ActorDiedError

    class Work:
        number, attempt = 4, 2

        @staticmethod
        def work(job: Any, context: MailboxContext) -> None:
            context.report(None, None)  # type: ignore[arg-type]
            assert context.should_stop()
            raise ValueError("met on the way out")

    monkeypatch.setattr(ray, "get", gone)
    mailbox = SimpleNamespace(**{name: SimpleNamespace(remote=lambda *_: None) for name in ("ask", "meet")})
    tune_trainable({"job": cloudpickle.dumps(Work())}, mailbox)


ROWS = (BrokenRow(3, "3.png", "a fruit", 17, False, "cut short"),)


class Asking(MailboxContext):
    """Keeps what it would ask the driver."""

    def __init__(self, rank: int) -> None:
        super().__init__(None, 4, 2, rank)
        self.asked: list[Any] = []

    def _ask(self, message: Any) -> bool:
        self.asked.append(message)
        return False


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_tells_of_the_broken_pairs_that_it_meets(rank: int):
    context = Asking(rank)
    context.found_broken(ROWS)
    assert context.asked == [FoundBroken(4, 2, ROWS)]


def test_broken_pairs_reach_the_controller_but_from_a_worker_that_was_given_up():
    told: list[Any] = []
    pump = object.__new__(Pump)  # without Ray
    pump.controller = SimpleNamespace(found_broken=lambda *words: told.append(words))  # type: ignore[assignment]
    pump._attempts = {4: 2}
    assert pump._pass_on(FoundBroken(4, 2, ROWS)) is False
    assert pump._pass_on(FoundBroken(4, 1, ROWS)) is True
    assert told == [(4, ROWS)]
