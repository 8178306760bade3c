"""Readiness: storages that can be written, nodes that see them, layers that run on the machine."""

from pathlib import Path

from sweeplab.execution.cluster import cluster_fault, resources_per_worker
from sweeplab.execution.node_data import send_data
from sweeplab.execution.nodes import check_nodes
from sweeplab.execution.watchdog import Watchdog
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.specs import InvalidInput
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.sweep.prepare import Prepared
from sweeplab.sweep.session import Session
from sweeplab.sweep.victims import victim_of
from sweeplab.training.compilation import check_compiler
from sweeplab.worker.input_paths import input_paths_of


def check_machine(sweep: CleaningSweep) -> None:
    """Refuse `batch_norm="sync"` where several workers have no GPU, since torch has no such layer for the CPU, and
    compiled steps without a compiler on this machine.

    Raises:
        InvalidInput: naming the run or the compiler.
    """
    for spec in (sweep, sweep.original_victim()):
        if not isinstance(spec, (CleaningSweep, PretrainedVictim)):
            continue
        has_gpu = resources_per_worker(spec.resources).get("GPU", 0.0) > 0
        if spec.resources.compile and not has_gpu:  # workers with a GPU look for theirs themselves
            check_compiler(for_gpu=False)
        if spec.optimization.batch_norm == "sync" and spec.resources.workers > 1 and not has_gpu:
            raise InvalidInput(
                f"{spec.name}: optimization.batch_norm='sync' runs on CUDA only, and its workers have no GPU; "
                "choose 'local' or 'frozen'"
            )


def _with_checkpoints(prepared: Prepared, home: Path, *, runs_trials: bool) -> list[CleaningSweep | PretrainedVictim]:
    """What writes checkpoints: the sweep, if trials are run, and the victims that are to be trained."""
    victim = victim_of(prepared.sweep)
    trains = victim.is_to_be_trained(prepared.victim_digest, home)
    return [*([prepared.sweep] if runs_trials else []), *(victim.specs() if trains else [])]


def check_storages(prepared: Prepared, home: Path, *, runs_trials: bool = True) -> None:
    """Refuse storages that cannot be written, before anything is written that names them.

    Args:
        prepared: the sweep.
        home: the home.
        runs_trials: whether trials are run, or the victim alone is trained.

    Raises:
        InvalidInput: naming the storage.
        StorageFault: if an object store does not answer.
    """
    roots = {spec.resources.storage for spec in _with_checkpoints(prepared, home, runs_trials=runs_trials)}
    for root in sorted(filter(None, roots)):
        Storage(root).check_writable()


def make_ready_nodes(prepared: Prepared, session: Session, *, runs_trials: bool) -> None:
    """Make sure that every node of the cluster sees the storages, and bring it the data that it does not see.

    Args:
        prepared: the sweep.
        session: where, and what the command reads.
        runs_trials: whether trials are run, or the victim alone is trained.

    Raises:
        InvalidInput: naming the nodes that cannot take part, and why.
    """
    home, reads = session.home, session.reads or []
    specs = _with_checkpoints(prepared, home, runs_trials=runs_trials)
    storages = sorted({spec.resources.storage or str(home) for spec in specs})
    if blind := check_nodes(input_paths_of(reads), storages):
        watchdog = Watchdog(stall_minutes=prepared.sweep.resources.stall_minutes, cluster_fault=cluster_fault)
        send_data(reads, blind, watchdog)
