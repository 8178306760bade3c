"""Jobs: what a worker is asked to do, as frozen values that travel to its process."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch

from sweeplab.clip_model import Architecture
from sweeplab.data.cores import usable_cores
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.table_files import TableFiles
from sweeplab.evaluation.measure import Evaluation, Trigger
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.protocol import Protocol
from sweeplab.records import Victim
from sweeplab.specs import StorageFault
from sweeplab.storage.broken_rows import BrokenRow, BrokenRows
from sweeplab.storage.checkpoint_names import Checkpoint
from sweeplab.storage.node_cache import node_cache, tidy
from sweeplab.training.loop import Context
from sweeplab.worker.input_paths import NO_PATHS, InputPaths

MOST_DECODERS = 16
"""Of a process, unless more are asked for: a GPU whose node has hundreds of cores needs no hundreds of them."""


@dataclass(frozen=True)
class Machine:
    """What a worker process may use."""

    data_home: Path
    """Where made and cached data lie."""
    threads: int
    """Of torch, in this process, where there are so many cores."""
    use_cuda: bool
    node_cache_gigabytes: float = 0.0
    """What the node may keep for its processes on its disk: tables, decoded images."""
    share_of_cores: int = 0
    """Of the node's cores, those for this process where it trains on a GPU; 0: its threads' alone."""

    @property
    def cores(self) -> int:
        """Those of the threads that have a core: more of them spin while they wait for each other."""
        return min(self.threads, usable_cores())

    @property
    def decoders(self) -> int:
        """Threads, or processes beside this one, that decode and make views: more than its own threads where a GPU
        does the rest, and the node has cores for them."""
        return min(max(self.threads, min(self.share_of_cores, MOST_DECODERS)), usable_cores())

    @property
    def share_of_node(self) -> float:
        """Of what the node's processes share, the part of this one, as of the cores: 0 .. 1; alone, all."""
        if not self.share_of_cores:
            return 1.0
        return min(1.0, max(self.threads, self.share_of_cores) / usable_cores())

    @property
    def node_cache_bytes(self) -> float:
        """The node's budget."""
        return 1e9 * self.node_cache_gigabytes

    def decoded_files(self, heartbeat: Callable[[], None]) -> DecodedFiles | None:
        """Where decoded images are kept, None: nowhere; `heartbeat` is called while they are being made."""
        if not self.node_cache_gigabytes:
            return None
        _tidy_node(self.node_cache_bytes)
        return DecodedFiles(node_cache(), self.node_cache_bytes, heartbeat)

    def table_files(self) -> TableFiles | None:
        """Where tables of pairs are kept; None: nowhere."""
        if not self.node_cache_gigabytes:
            return None
        _tidy_node(self.node_cache_bytes)
        return TableFiles(node_cache(), self.node_cache_bytes)


@cache
def _tidy_node(budget: float) -> None:
    """Once a process: what this node keeps and did not use for long goes, and so does what exceeds the budget."""
    tidy(budget)


class WorkerContext(Context, Interface):
    """What a worker function is given beside its job."""

    def bring(self, location: str, weights: "Weights") -> Path:
        """A path on this node to a checkpoint of the driver's node or of an object store; see `local_copy`."""

    def node_copy(self) -> Path:
        """The folder of this node below which copies of the driver's data lie."""

    def found_broken(self, rows: tuple[BrokenRow, ...]) -> None:
        """Training pairs turned out to be broken: on every rank, for those that this rank met. Returns once they are
        recorded; where they are too many, the driver ends the work."""


def whole_machine(home: Path) -> Machine:
    """This machine for one process: as many threads as torch chose, which minds OMP_NUM_THREADS, and a GPU if any.

    More threads than free cores are many times slower than one: they spin while they wait for each other.
    """
    return Machine(home / "data", torch.get_num_threads(), use_cuda=torch.cuda.is_available())


@dataclass(frozen=True)
class Weights:
    """The checkpoint that a job starts from, for nodes that do not see the driver's file."""

    digest: str = ""
    """Tells its content."""
    reference: Any = None
    """Ray's, to its bytes; None where every node sees the file, or reads the URL."""


@dataclass(frozen=True)
class DataDigests:
    """What the driver has read, by content; empty where nobody has."""

    pairs: str = ""
    """Digest of the table of training pairs, poisons that come with the data included."""
    evaluation: str = ""
    """Of the evaluation: see `evaluation_digest`."""
    training: str = ""
    """Names the training set that the driver has put together, see `TrainingSet.state`; empty where every process reads
    it for itself."""
    broken: Mapping[str, BrokenRows] = field(default_factory=dict)
    """What is recorded of broken rows, by who recorded it: see `Inputs.settled`."""
    targets: tuple[str, ...] = ()
    """The classes that were drawn for the images of targeted poisoning: no worker looks through captions again."""


NO_DIGESTS = DataDigests()


def check_same_data(what: str, known: str, found: str) -> None:
    """Refuse to work on other data than the driver has read.

    Args:
        what: names them.
        known: digest of what the driver has read; empty where nobody has.
        found: digest of what this process has read.

    Raises:
        StorageFault: if they differ: no trial is at fault, and the same command goes on once the files are restored.
    """
    if known and found != known:
        raise StorageFault(
            f"the {what} on node {socket.gethostname()} differ from what the command read (digest {known} -> {found}): "
            "they changed, or this node has other files; restore them, then run the same command again"
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker needs beside the specs of what it is asked to do."""

    weights: Weights = Weights()
    input_paths: InputPaths = NO_PATHS
    """The data, which another node may not see."""
    contents: DataDigests = DataDigests()
    """The data as they were when the command began."""


@dataclass(frozen=True, kw_only=True)
class Job(Task):
    """One attempt to train something."""

    number: int
    attempt: int
    machine: Machine
    checkpoints: str
    """Folder or URL."""
    resume_from: Checkpoint | None
    work: Callable[[Any, Any], None]
    """What a worker does with the job and its `WorkerContext`."""


@dataclass(frozen=True, kw_only=True)
class PretrainingJob(Job):
    """Everything that a pre-training worker needs."""

    victim: PretrainedVictim
    initial: str | None = None
    """Absolute path, on the driver's node, of the checkpoint from which training starts."""


@dataclass(frozen=True)
class MeasuringJob(Task):
    """Measure weights under an evaluation."""

    architecture: Architecture
    checkpoint: str
    """Path or URL."""
    evaluation: Evaluation
    trigger: Trigger | None
    machine: Machine
    protocol: Protocol = "paper"


@dataclass(frozen=True, kw_only=True)
class CleaningJob(Job):
    """Everything that a worker needs for one attempt of one trial."""

    sweep: CleaningSweep
    victim: Victim
    params: dict[str, Any]
