"""The driver's side of a mailbox: it opens one, and counts the workers' heartbeats."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeplab.execution.mailbox import HEARTBEAT_SECONDS, Mailbox
from sweeplab.worker.input_paths import absolute_path, with_paths


def packed(parts: list[Any]) -> bytes:
    """The parts with absolute paths, pickled, for a process that was started elsewhere."""
    from ray import cloudpickle

    return cloudpickle.dumps([with_paths(part, lambda path: Path(absolute_path(path))) for part in parts])


def open_mailbox(*files: str, reads: Sequence[Any] = ()) -> Any:
    """Where the workers of one command leave their messages, find the given files of this node, and ask for the data
    that parts of a spec read."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": here}
    return ray.remote(**options)(Mailbox).remote(files, packed(list(reads)))


class HeartbeatCount:
    """How many heartbeats the mailbox has counted; asked now and then, without waiting for the answer."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._known, self._asked = 0, time.monotonic()
        self._pending: Any = None

    def __call__(self) -> int:
        """The newest count that has arrived."""
        import ray

        if self._pending is None and time.monotonic() - self._asked > HEARTBEAT_SECONDS:
            self._asked = time.monotonic()
            self._pending = self._mailbox.heartbeats.remote()
        if self._pending is not None and ray.wait([self._pending], timeout=0)[0]:
            pending, self._pending = self._pending, None
            with contextlib.suppress(ray.exceptions.RayError):  # a mailbox that died is noticed where it is needed
                self._known = ray.get(pending)
        return self._known
