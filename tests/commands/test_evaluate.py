"""A checkpoint is measured as the sweep that is named measures it, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fabricated import SWEEP

from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.commands import evaluate
from sweeplab.commands.evaluate import EvaluationRequest, evaluate_checkpoint
from sweeplab.data.fruit_stall import FruitStallTest
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.search_space import LogUniform, SearchSpace
from sweeplab.specs import InvalidInput
from sweeplab.worker.jobs import MeasuringJob


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[MeasuringJob]:
    """Measuring jobs, taken in place of being done."""
    taken: list[MeasuringJob] = []
    monkeypatch.setattr(evaluate, "measure_checkpoint", lambda job: (taken.append(job), None))
    return taken


def checkpoint(folder: Path, **facts: Any) -> Path:
    """That says of itself what SweepLab's do."""
    torch.save({"config": json.dumps({"architecture": {}, **facts}), "weights": {}}, folder / "made.pt")
    return folder / "made.pt"


@pytest.mark.parametrize("protocol", ["paper", "authors"])
def test_trigger_and_protocol_are_the_sweeps(protocol: str, tmp_path: Path, jobs: list[MeasuringJob]):
    sweep = SWEEP.replace(protocol=protocol)
    evaluate_checkpoint(EvaluationRequest(checkpoint(tmp_path, sweep={}), sweep))
    (job,) = jobs
    assert (job.protocol, job.trigger, job.evaluation) == (protocol, sweep.trigger(), sweep.evaluation)
    assert (sweep.trigger() == sweep.victim.trigger()) == (protocol == "paper")


def test_without_a_sweep_it_is_the_papers(tmp_path: Path, jobs: list[MeasuringJob]):
    request = EvaluationRequest(checkpoint(tmp_path), architecture="RN50", test=tmp_path)
    (tmp_path / "apple").mkdir()
    evaluate_checkpoint(request)
    assert [(job.protocol, job.trigger) for job in jobs] == [("paper", None)]


def test_a_trial_that_is_a_classifier_is_not_asked_by_prompts(tmp_path: Path, jobs: list[MeasuringJob]):
    """Its victim is: that was measured so."""
    images = LabelledPairs(images=FruitStallTest(num_images=48, image_size=32), per_class=2)
    space = SearchSpace(dimensions={"learning_rate": LogUniform(low=1e-5, high=1e-3)}, source="made up")
    labelled = SWEEP.replace(method=SupervisedFinetuning(), data=images, space=space, grid=None)
    with pytest.raises(InvalidInput, match="'supervised', is measured by the classifier that it trains"):
        evaluate_checkpoint(EvaluationRequest(checkpoint(tmp_path, sweep={}), labelled))
    assert jobs == []
    evaluate_checkpoint(EvaluationRequest(checkpoint(tmp_path, victim={}), labelled))
    assert len(jobs) == 1
