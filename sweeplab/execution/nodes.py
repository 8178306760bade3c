"""Nodes: what each node of the cluster sees of the storages and the data."""

import contextlib
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from sweeplab.specs import InvalidInput, StorageFault, Unfinished, file_digest
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.worker.input_paths import InputPaths

logger = logging.getLogger("sweeplab")

NODE_SECONDS = 120.0
"""So long may a node take to say what it sees."""

LOST_SECONDS = 15.0
"""So long may the cluster take to notice that a node is gone."""


def check_nodes(input_paths: InputPaths, storages: list[str]) -> list[str]:
    """Make sure that every node of the cluster sees the storages of checkpoints, and no other data than this one. A
    node that is lost meanwhile is done without.

    Returns:
        Ids of the nodes that do not see all the data.

    Raises:
        InvalidInput: naming the nodes and what they do not see.
        Unfinished: if a node does not answer.
    """
    import ray

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    places = [Storage(storage) for storage in storages]
    if len(nodes) < 2 and not any(place.is_remote for place in places):
        return []
    # Files that the driver has too are compared by content: another version would mix two data sets.
    digests = {path: file_digest(Path(path)) for path in input_paths.probes if os.path.isfile(path)}
    mark = f".seen-{uuid4().hex[:12]}.part"
    # A storage is shared where a node finds the mark that this process leaves: a path alone may name a local folder.
    try:
        for place in places:
            place.leave_mark(mark)
        answers, mute = _ask(nodes, input_paths, digests, storages, mark)
    finally:
        for place in places:
            with contextlib.suppress(StorageFault, OSError):
                place.remove(mark)
    faults = [f"node {node[:8]} ({host}) {fault}" for node, (host, _, found) in answers.items() for fault in found]
    if faults:
        listed = "\n  ".join(faults)
        raise InvalidInput(
            f"not every node of the cluster can take part:\n  {listed}\n"
            "resources.storage must be a folder that all nodes share, s3:// or gs://, with credentials in the "
            "environment of each node's `ray start` or on the node itself; a file must be identical on all nodes, or "
            "exist only here: it is then copied"
        )
    # Only a node that lives on and says nothing is in the way: without its answer a worker there might fail.
    for node, how in mute.items():
        if is_alive(node):
            raise Unfinished(f"node {node[:8]} did not say what it sees {how}; the same command asks again")
        logger.info(f"  node {node[:8]} was lost meanwhile; going on without it")
    return [node for node, (_, missing, _) in answers.items() if missing]


Answer = tuple[str, list[str], list[str]]
"""Of one node, as `missing_here` gives it: its host, the data that it lacks, and what is wrong with the rest."""


def _ask(
    nodes: list[str], input_paths: InputPaths, digests: dict[str, str], storages: list[str], mark: str
) -> tuple[dict[str, Answer], dict[str, str]]:
    """What every node sees, and of those that did not say it, in words how; both by the node's id."""
    import ray

    task = ray.remote(num_cpus=0, max_retries=1)(missing_here)
    question = (input_paths, digests, storages, mark)
    asked = {task.options(scheduling_strategy=on_node(node)).remote(*question): node for node in nodes}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    mute = {asked[answer]: f"within {NODE_SECONDS:g} s" for answer in late}
    answers: dict[str, Answer] = {}
    for answer in ready:
        try:
            answers[asked[answer]] = ray.get(answer)
        except ray.exceptions.RayError as error:
            mute[asked[answer]] = f"({type(error).__name__})"
    return answers, mute


def on_node(node: str | None = None) -> Any:
    """Ray's strategy that has a task or actor run on a node and on no other; None: on this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node or ray.get_runtime_context().get_node_id(), soft=False)


def is_alive(node: str) -> bool:
    """Whether the cluster counts on the node; of one that has just died, its head may take seconds to say so."""
    import ray

    deadline = time.monotonic() + LOST_SECONDS
    while any(known["NodeID"] == node and known["Alive"] for known in ray.nodes()):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.2)
    return False


def missing_here(
    input_paths: InputPaths, digests: dict[str, str], storages: list[str], mark: str
) -> tuple[str, list[str], list[str]]:
    """A Ray task: this node's name, the data that it does not see, and what else is wrong with it: storages where it
    sees no marker, and files that are others than the driver's."""
    faults = []
    for storage in storages:
        try:
            if not Storage(storage).exists(mark):
                faults.append(f"does not see {storage}")
        except (StorageFault, InvalidInput, OSError) as error:
            faults.append(f"does not see {storage} ({error})")
    missing = input_paths.missing()
    for path, digest in digests.items() if not missing else ():  # else it reads copies of the driver's
        try:
            if file_digest(Path(path)) != digest:
                faults.append(f"has another {path}")
        except OSError as error:
            faults.append(f"cannot read {path} ({error.strerror})")
    return socket.gethostname(), missing, faults
