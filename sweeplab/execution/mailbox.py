"""Mailbox: the Ray actor between the driver and the workers, and the contexts in which workers talk to it.

Imports next to nothing, since Ray loads it into processes that need no more.
"""

import asyncio
import contextlib
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from sweeplab.records import Outcomes, Point

HEARTBEAT_SECONDS = 5.0
"""At most so often does a worker say that it is alive."""

LOOK_SECONDS = 600.0
"""So long does a process trust that nobody has removed files of a node copy."""

_looked: float | None = None
"""When this process looked, in seconds of the monotonic clock."""

Send = Callable[[bytes], None]


class _RemoteContext:
    """What contexts in Ray's processes share."""

    def __init__(self, attempt: int, mailbox: Any) -> None:
        self.attempt = attempt
        self._mailbox = mailbox
        self._last_heartbeat = time.monotonic()

    def heartbeat(self) -> None:
        """Say so, now and then."""
        if time.monotonic() - self._last_heartbeat > HEARTBEAT_SECONDS:
            self._last_heartbeat = time.monotonic()
            self._mailbox.heartbeat.remote()

    def bring(self, location: str, content: str) -> "Path":
        """A copy on this node of a file of the driver's; see `bringing.local_copy`."""
        import ray

        from sweeplab.storage.node_cache import local_copy

        def read(path: str, offset: int, size: int) -> bytes:
            chunk: bytes = ray.get(self._mailbox.read.remote(path, offset, size))
            return chunk

        return local_copy(location, content, read)

    def node_copy(self) -> "Path":
        """The folder of this node below which copies of all files that the experiment reads lie; see
        `bringing.node_copy`. Now and then it looks whether all are still there."""
        import ray

        from sweeplab.execution.node_data import node_copy

        global _looked
        now = time.monotonic()
        verify = _looked is None or now - _looked > LOOK_SECONDS
        porter = _Caller(ray.get(self._mailbox.porter.remote()), self.heartbeat)
        root = node_copy(porter, self.heartbeat, verify=verify)
        _looked = now if verify else _looked
        return root


class _Caller:
    """Calls a `Porter` in another process; the next chunk is on its way while one is being written."""

    def __init__(self, porter: Any, heartbeat: Callable[[], None] = lambda: None) -> None:
        self._porter, self._heartbeat = porter, heartbeat
        self._next: tuple[int, Any] | None = None

    def digest(self) -> str:
        """See `Porter.digest`."""
        return str(self._get(self._porter.digest.remote()))

    def listing(self) -> Any:
        """See `Porter.listing`."""
        return self._get(self._porter.listing.remote())

    def chunk(self, number: int) -> bytes:
        """See `Porter.chunk`; the one after it is asked for too, which past the last one is empty."""
        asked = self._next[1] if self._next and self._next[0] == number else self._porter.chunk.remote(number)
        self._next = (number + 1, self._porter.chunk.remote(number + 1))
        content: bytes = self._get(asked)
        return content

    def _get(self, answer: Any) -> Any:
        """Wait for an answer, saying that this process is alive: of millions of files, a listing takes a while."""
        import ray

        while not ray.wait([answer], timeout=HEARTBEAT_SECONDS)[0]:
            self._heartbeat()
        try:
            return ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise error.cause or error from None


class SendingContext(_RemoteContext):
    """A worker's context that sends every point to the driver, and asks the mailbox whether to go on."""

    def __init__(self, attempt: int, send: Send, mailbox: Any, number: int | None = None) -> None:
        super().__init__(attempt, mailbox)
        self._send, self._number = send, number

    def report(self, point: "Point", outcomes: "Outcomes") -> None:
        """Send the point; every rank does, and the driver listens to rank 0."""
        self._send(pickle.dumps(("point", point, outcomes)))

    def should_stop(self) -> bool:
        """Whether the driver has decided to end this trial."""
        import ray

        return self._number is not None and bool(ray.get(self._mailbox.is_stopped.remote(self._number)))


class MailboxContext(_RemoteContext):
    """A pool worker's context: rank 0 brings every point to the mailbox and waits until the driver has committed it."""

    def __init__(self, key: tuple[int, str, int], attempt: int, rank: int, mailbox: Any) -> None:
        super().__init__(attempt, mailbox)
        self._key, self._rank = key, rank
        self._stop = False

    def report(self, point: "Point", outcomes: "Outcomes") -> None:
        """Bring the point; the answer says whether to go on."""
        import ray

        if self._rank == 0:
            content = pickle.dumps((point, outcomes))
            self._stop = bool(ray.get(self._mailbox.ask.remote(("point", *self._key, content))))
            self._last_heartbeat = time.monotonic()

    def should_stop(self) -> bool:
        """What the driver answered to the last point; rank 0 knows."""
        return self._stop


@dataclass
class Meeting:
    """Where the ranks of a slot gather after a failure."""

    key: tuple[int, str, int]
    here: dict[int, bytes]
    """What each rank says, pickled."""
    complete: asyncio.Event


class Mailbox:
    """A Ray actor between the driver and the workers: jobs go one way, points and endings the other.

    Messages are tuples of plain values and pickled bytes; the driver takes them in order. It lives on the driver's
    node.
    """

    def __init__(self, files: tuple[str, ...] = (), parts: bytes = b"") -> None:
        self._files = files
        """Paths that workers may read."""
        self._parts = parts
        """Of the specs, those that read files, for a porter."""
        self._porter: Any = None
        self._porter_is_made = asyncio.Lock()
        self._messages: list[Any] = []
        self._news = asyncio.Event()
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._jobs: dict[tuple[int, str, int], asyncio.Future[bytes]] = {}
        self._meetings: dict[int, Meeting] = {}
        self._stopped: set[int] = set()
        self._heartbeats = 0

    # --- for the driver

    async def take(self, seconds: float) -> tuple[list[Any], int]:
        """All messages so far, in order, and how many heartbeats there were; waits a while for the first."""
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

    async def hand(self, key: tuple[int, str, int], job: bytes) -> None:
        """The job that all ranks of a slot asked for; nothing where all is over."""
        future = self._jobs.get(key)
        if future is not None and not future.done():
            future.set_result(job)

    async def heartbeats(self) -> int:
        """How many heartbeats there were."""
        return self._heartbeats

    async def stop(self, number: int) -> None:
        """The trial is to end after its current point."""
        self._stopped.add(number)

    # --- for workers

    async def put(self, message: Any) -> None:
        """Leave a message."""
        self._messages.append(message)
        self._news.set()

    async def ask(self, message: tuple[Any, ...]) -> Any:
        """Leave a message that waits for the driver's answer."""
        question = id(message)
        while question in self._questions:
            question += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._questions[question] = future
        await self.put((*message, question))
        return await future

    async def job(self, slot: int, session: str, index: int) -> bytes:
        """A slot's next job, the same for all its ranks."""
        key = (slot, session, index)
        if key not in self._jobs:
            # Ranks are never more than one job apart: every report of a point is a barrier.
            others = {known: future for known, future in self._jobs.items() if known[0] != slot}
            mine = {
                known: future for known, future in self._jobs.items() if known[:2] == key[:2] and known[2] > index - 4
            }
            self._jobs = {**others, **mine, key: asyncio.get_running_loop().create_future()}
            await self.put(("ready", *key))
        return await asyncio.shield(self._jobs[key])

    async def meet(self, key: tuple[int, str, int], rank: int, size: int, content: bytes) -> bool:
        """Ranks that failed come here; whether all of them did within two seconds. The first sends word."""
        meeting = self._meetings.get(key[0])
        first = meeting is None or meeting.key != key
        if meeting is None or first:
            meeting = self._meetings[key[0]] = Meeting(key, {}, asyncio.Event())
        meeting.here[rank] = content
        if len(meeting.here) == size:
            meeting.complete.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(meeting.complete.wait(), 2.0)
        if first:
            await self.put(("failed", *key, [meeting.here[known] for known in sorted(meeting.here)]))
        return len(meeting.here) == size

    async def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes of one of the files that the driver offers; empty at its end."""
        if path not in self._files:
            raise FileNotFoundError(f"{path} is none of the files that the driver offers")
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    async def porter(self) -> Any:
        """Who reads the experiment's data to nodes that do not see them; made when first asked for."""
        async with self._porter_is_made:
            if self._porter is None:
                self._porter = await asyncio.to_thread(_new_porter, self._parts)
            return self._porter

    async def is_stopped(self, number: int) -> bool:
        """Whether the trial is to end."""
        return number in self._stopped

    async def heartbeat(self) -> None:
        """A worker is alive."""
        self._heartbeats += 1


def _new_porter(parts: bytes) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from sweeplab.execution.node_data import Porter

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": 8, "max_restarts": -1, "max_task_retries": 3}
    return ray.remote(**options, scheduling_strategy=here)(Porter).remote(parts)


def mailbox_callback(mailbox: Any) -> Any:
    """A Ray Train callback that leaves rank 0's reports on the mailbox; it runs in Train's controller."""
    import ray
    from ray.train import UserCallback

    class DeskCallback(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            ray.get(mailbox.put.remote(metrics[0]["message"]))

    return DeskCallback()
