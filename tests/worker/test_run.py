"""What of a spec reaches the run that a worker trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sweeplab.experiment import CleaningSweep
from sweeplab.training.loop import Run
from sweeplab.worker import run as worker_run


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
        machine=None,
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
