"""Mailbox: the Ray actor between the driver and the workers, the messages in it, and a worker's side of it.

Imports next to nothing, since Ray loads it into processes that need no more.
"""

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from sweeplab.records import Outcomes, Point
    from sweeplab.storage.broken_rows import BrokenRow
    from sweeplab.worker.failures import Failure
    from sweeplab.worker.jobs import Weights

HEARTBEAT_SECONDS = 5.0
"""At most so often does a worker say that it is alive."""


@dataclass(frozen=True)
class Ready:
    """The ranks of a slot want their next job."""

    slot: int
    session: str
    """Of the slot's ranks, which begin anew where one of them died."""
    index: int
    """Of the job in the session, from 0."""


@dataclass(frozen=True)
class Report:
    """A point of an attempt; the answer says whether the attempt is to end."""

    number: int
    """The job's: of the trial."""
    attempt: int
    point: "Point"
    outcomes: "Outcomes"


@dataclass(frozen=True)
class FoundBroken:
    """Training pairs of an attempt turned out to be broken; the answer says that they are recorded."""

    number: int
    attempt: int
    rows: "tuple[BrokenRow, ...]"


@dataclass(frozen=True)
class Ended:
    """An attempt came to its end, or ended early."""

    number: int
    attempt: int
    failures: "tuple[tuple[Failure, str], ...]" = ()
    """What each rank met: the failure, and its traceback. Empty: the attempt came to its end."""


Message = Ready | Report | FoundBroken | Ended


class MailboxContext:
    """A worker's context: rank 0 speaks of points, and waits until the driver has taken in what it says. Where the
    mailbox's process is gone nobody hears, so the attempt is to end; the driver notices by itself."""

    def __init__(self, mailbox: Any, number: int, attempt: int, rank: int = 0) -> None:
        self.attempt = attempt
        self._mailbox, self._number, self._rank = mailbox, number, rank
        self._stop = False
        self._last_heartbeat = time.monotonic()

    def report(self, point: "Point", outcomes: "Outcomes") -> None:
        """Bring the point; the answer says whether to go on."""
        if self._rank == 0:
            self._stop = self._ask(Report(self._number, self.attempt, point, outcomes))
            self._last_heartbeat = time.monotonic()

    def found_broken(self, rows: "tuple[BrokenRow, ...]") -> None:
        """Tell of broken pairs, whatever the rank: each meets others."""
        self._ask(FoundBroken(self._number, self.attempt, rows))
        self._last_heartbeat = time.monotonic()

    def should_stop(self) -> bool:
        """What the driver answered to the last point; rank 0 knows."""
        return self._stop

    def done(self) -> None:
        """Say that the job came to its end."""
        if self._rank == 0:
            self._ask(Ended(self._number, self.attempt))

    def failed(self, failure: "Failure", log: str, size: int = 1) -> bool:
        """Say why the job ended early; returns whether all of `size` ranks did."""
        return self._heard(self._mailbox.meet, (self._number, self.attempt), self._rank, size, (failure, log))

    def heartbeat(self) -> None:
        """Say that this worker is alive, now and then."""
        if time.monotonic() - self._last_heartbeat > HEARTBEAT_SECONDS:
            self._last_heartbeat = time.monotonic()
            self._mailbox.heartbeat.remote()

    def bring(self, location: str, weights: "Weights") -> "Path":
        """A checkpoint's file on this node; see `local_copy`."""
        import ray

        from sweeplab.storage.node_cache import local_copy

        reference = weights.reference
        return local_copy(location, weights.digest, None if reference is None else lambda: ray.get(reference))

    def node_copy(self) -> "Path":
        """The folder of this node below which copies of all files that the experiment reads lie; see
        `node_data.node_copy`."""
        import ray

        from sweeplab.execution.node_data import node_copy

        return node_copy(ray.get(self._mailbox.sender.remote()), self.heartbeat)

    def _ask(self, message: Message) -> bool:
        return self._heard(self._mailbox.ask, message)

    def _heard(self, method: Any, *words: Any) -> bool:
        """The mailbox's answer; True where it is gone."""
        import ray

        try:
            return bool(ray.get(method.remote(*words)))
        except ray.exceptions.RayActorError:
            return True


@dataclass
class Meeting:
    """Where the ranks of a job gather after a failure."""

    here: "dict[int, tuple[Failure, str]]"
    """What each rank says."""
    complete: asyncio.Event


class Mailbox:
    """A Ray actor on the driver's node: jobs go one way, messages the other; the driver takes them in order."""

    def __init__(self, parts: bytes = b"") -> None:
        self._parts = parts
        """Of the specs, those that read files, for a sender."""
        self._sender: Any = None
        self._sender_is_made = asyncio.Lock()
        self._messages: list[tuple[Message, int | None]] = []
        self._news = asyncio.Event()
        self._numbers = itertools.count(1)
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._jobs: dict[Ready, asyncio.Future[bytes]] = {}
        self._meetings: dict[tuple[int, int], Meeting] = {}
        self._heartbeats = 0

    # --- for the driver

    async def take(self, seconds: float) -> tuple[list[tuple[Message, int | None]], int]:
        """All messages so far, in order, each with the number of its question if it waits for an answer, and how many
        heartbeats there were; waits a while for the first."""
        if not self._messages:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), seconds)
        messages, self._messages = self._messages, []
        self._news.clear()
        return messages, self._heartbeats

    async def answer(self, question: int, value: Any) -> None:
        """The answer to a message that waits for one."""
        future = self._questions.pop(question, None)
        if future is not None and not future.done():
            future.set_result(value)

    async def hand(self, ready: Ready, job: bytes) -> None:
        """The job that all ranks of a slot asked for; nothing where all is over."""
        future = self._jobs.get(ready)
        if future is not None and not future.done():
            future.set_result(job)

    # --- for workers

    async def ask(self, message: Message) -> Any:
        """Leave a message that waits for the driver's answer."""
        question = next(self._numbers)
        future = self._questions[question] = asyncio.get_running_loop().create_future()
        self._put(message, question)
        return await future

    async def job(self, ready: Ready) -> bytes:
        """A slot's next job, the same for all its ranks."""
        if ready not in self._jobs:
            # Ranks are never more than one job apart: every report of a point is a barrier.
            self._jobs = {
                known: future
                for known, future in self._jobs.items()
                if known.slot != ready.slot or (known.session == ready.session and known.index > ready.index - 4)
            }
            self._jobs[ready] = asyncio.get_running_loop().create_future()
            self._put(ready)
        # Shielded: a rank that dies while it waits would cancel the job that the others wait for.
        return await asyncio.shield(self._jobs[ready])

    async def meet(self, key: tuple[int, int], rank: int, size: int, said: "tuple[Failure, str]") -> bool:
        """Ranks that failed come here; whether all of them did within two seconds. The first tells the driver, and
        waits until it has heard."""
        is_first = key not in self._meetings
        meeting = self._meetings.setdefault(key, Meeting({}, asyncio.Event()))
        meeting.here[rank] = said
        if len(meeting.here) == size:
            meeting.complete.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(meeting.complete.wait(), 2.0)
        # A rank that met no error waits in a collective and never comes, so the first tells of those that did.
        if is_first:
            del self._meetings[key]
            await self.ask(Ended(*key, tuple(meeting.here[known] for known in sorted(meeting.here))))
        return len(meeting.here) == size

    async def sender(self) -> Any:
        """Who sends the experiment's data to nodes that do not see them; made when first asked for."""
        async with self._sender_is_made:
            if self._sender is None:
                self._sender = await asyncio.to_thread(_open_sender, self._parts)
            return self._sender

    async def heartbeat(self) -> None:
        """A worker is alive."""
        self._heartbeats += 1

    def _put(self, message: Message, question: int | None = None) -> None:
        self._messages.append((message, question))
        self._news.set()


def _open_sender(parts: bytes) -> Any:
    from sweeplab.execution.node_data import open_sender

    return open_sender(parts)
