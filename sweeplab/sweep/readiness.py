"""Readiness: storages that can be written, nodes that see them, layers that run on the machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeplab.execution.cluster import cluster_fault, resources_per_worker
from sweeplab.execution.node_data import send_data
from sweeplab.execution.nodes import check_nodes
from sweeplab.execution.watchdog import Watchdog
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.specs import InvalidInput, StorageFault, Unfinished
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.sweep.prepare import Prepared
from sweeplab.sweep.session import Session
from sweeplab.sweep.victims import victim_of
from sweeplab.worker.input_paths import input_paths_of


@contextmanager
def storage_faults_as_unfinished(sweep: CleaningSweep) -> Iterator[None]:
    """A storage that fails interrupts the sweep."""
    try:
        yield
    except StorageFault as fault:
        raise Unfinished(f"{sweep.name}: {fault}") from fault


def check_batch_norm(sweep: CleaningSweep) -> None:
    """Refuse `sync` where several workers have no GPU; torch has no such layer for the CPU.

    Raises:
        InvalidInput: naming the run.
    """
    runs: list[tuple[str, Any, Any]] = [(sweep.name, sweep.optimization, sweep.resources)]
    victim = sweep.original_victim()
    if isinstance(victim, PretrainedVictim):
        runs.append((victim.name, victim.optimization, victim.resources))
    for name, optimization, resources in runs:
        has_gpu = resources_per_worker(resources).get("GPU", 0.0) > 0
        if optimization.batch_norm == "sync" and resources.workers > 1 and not has_gpu:
            raise InvalidInput(
                f"{name}: optimization.batch_norm='sync' runs on CUDA only, and its workers have no GPU; "
                "choose 'local' or 'frozen'"
            )


def storage_of(sweep: CleaningSweep | PretrainedVictim, home: Path) -> str:
    """Where checkpoints go."""
    return sweep.resources.storage or str(home)


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
    sweep = prepared.sweep
    roots = {sweep.resources.storage} if runs_trials else set()
    if victim_of(sweep).is_to_be_trained(prepared.victim_digest, home):
        roots |= {spec.resources.storage for spec in victim_of(sweep).specs()}
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
    sweep = prepared.sweep
    home, reads = session.home, session.reads or []
    storages = [storage_of(sweep, home)] if runs_trials else []
    if victim_of(sweep).is_to_be_trained(prepared.victim_digest, home):
        storages += [storage_of(spec, home) for spec in victim_of(sweep).specs()]
    blind = check_nodes(input_paths_of(reads), sorted(set(storages)))
    if blind:
        watchdog = Watchdog(stall_minutes=sweep.resources.stall_minutes, cluster_fault=cluster_fault)
        send_data(reads, blind, watchdog)
