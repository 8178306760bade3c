"""What of a spec reaches the run that a worker trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sweeplab.experiment import CleaningSweep, Resources
from sweeplab.training.loop import Run
from sweeplab.worker import jobs
from sweeplab.worker import run as worker_run
from sweeplab.worker.jobs import Machine


@pytest.mark.parametrize("field", ["activation_checkpointing", "compile"])
@pytest.mark.parametrize("kind", ["pretrain", "clean"])
def test_switches_of_the_resources_reach_the_run(
    smoke: CleaningSweep, kind: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs: list[Run] = []
    monkeypatch.setattr(worker_run, "train", lambda model, pairs, run, **others: runs.append(run))
    monkeypatch.setattr(worker_run, "prepare_process", lambda machine: torch.device("cpu"))
    nothing = SimpleNamespace(poisoned_rows=None)
    for name in ("victim_pairs", "cleaning_pairs", "measure_for"):
        monkeypatch.setattr(worker_run, name, lambda *values, **named: nothing)
    monkeypatch.setattr(worker_run, "victim_model", lambda *values: torch.nn.Linear(1, 1))
    resources = smoke.resources.replace(**{field: True})
    context: Any = SimpleNamespace(node_copy=None, heartbeat=None, found_broken=None, bring=lambda *values: tmp_path)
    job: Any = SimpleNamespace(
        victim=smoke.victim.replace(resources=resources),
        sweep=smoke.replace(resources=resources),
        params={},
        number=0,
        attempt=1,
        input_paths=SimpleNamespace(on_this_node=lambda spec, copy: spec),
        machine=SimpleNamespace(use_cuda=False),
        contents=SimpleNamespace(evaluation=None),
        initial=None,
        weights=None,
        checkpoints=str(tmp_path),
        resume_from=None,
    )
    if kind == "clean":
        record = SimpleNamespace(checkpoint=None, is_start=True, measurement=None, outcomes=None)
        job.victim = record
    getattr(worker_run, kind)(job, context)
    assert [getattr(run, field) for run in runs] == [True]


@pytest.mark.parametrize(
    ("asked", "use_cuda", "share", "threads", "workers"),
    [
        (None, True, 8, 1, 8),
        (None, True, 8, 12, 12),  # never fewer than its own cores,
        (None, True, 30, 32, 24),  # or more than there are
        (None, True, 20, 1, 16),
        (None, True, 0, 1, 1),
        (None, False, 0, 8, 0),
        (0, True, 8, 4, 0),
        (40, True, 8, 4, 40),
        (3, False, 0, 1, 3),
    ],
)
def test_beside_a_gpu_batches_are_made_on_a_workers_share_of_the_nodes_cores(
    asked: int | None, use_cuda: bool, share: int, threads: int, workers: int, monkeypatch: pytest.MonkeyPatch
):
    """On a node of 24 cores."""
    monkeypatch.setattr(jobs, "usable_cores", lambda: 24)
    machine = Machine(Path("data"), threads, use_cuda=use_cuda, share_of_cores=share)
    assert worker_run.loader_workers(Resources(loader_workers=asked), machine, **BATCH) == workers


@pytest.mark.parametrize(
    ("free", "workers"),
    [(10**12, 8), (3 * 8 * 18 * 512, 8), (3 * 8 * 18 * 512 - 1, 7), (3 * 18 * 512, 1), (3 * 18 * 512 - 1, 0), (0, 0)],
)
def test_no_more_loaders_than_shared_memory_has_room_for(
    free: int, workers: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Three batches each, of 2 images of 16 x 16 x 3 bytes and their views, in a third of what is free, as of the
    cores: a loader in a full /dev/shm waits for ever."""
    monkeypatch.setattr(jobs, "usable_cores", lambda: 24)
    monkeypatch.setattr(worker_run.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    machine = Machine(Path("data"), 1, use_cuda=True, share_of_cores=8)
    assert worker_run.loader_workers(Resources(), machine, **BATCH) == workers
    assert ("/dev/shm has no room" in caplog.text) == (workers == 0)
    assert worker_run.loader_workers(Resources(loader_workers=9), machine, **BATCH) == 9


@pytest.mark.parametrize(("share", "cores", "part"), [(128, 128, 1), (28, 224, 1 / 8), (0, 64, 1), (40, 32, 1)])
def test_shared_memory_is_divided_as_the_cores_are(
    share: int, cores: int, part: float, monkeypatch: pytest.MonkeyPatch
):
    """Not as the loaders, of which a large node has no more than 16; a process alone has all."""
    monkeypatch.setattr(jobs, "usable_cores", lambda: cores)
    assert Machine(Path("data"), 1, use_cuda=True, share_of_cores=share).share_of_node == part


def test_ranks_hold_their_own_part_of_a_batch_in_shared_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "usable_cores", lambda: 8)
    monkeypatch.setattr(worker_run.shutil, "disk_usage", lambda place: SimpleNamespace(free=4 * 18 * 512))
    machine = Machine(Path("data"), 1, use_cuda=True, share_of_cores=8)
    assert worker_run.loader_workers(Resources(), machine, **BATCH) == 4
    assert worker_run.loader_workers(Resources(workers=2), machine, **BATCH) == 8


BATCH = {"global_batch_size": 2, "image_size": 16}


def test_beside_a_gpu_images_are_decoded_on_that_share_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "usable_cores", lambda: 24)
    alone, beside = (Machine(Path("data"), 2, use_cuda=share > 0, share_of_cores=share) for share in (0, 8))
    assert (alone.decoders, alone.cores, beside.decoders, beside.cores) == (2, 2, 8, 2)
