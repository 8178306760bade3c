"""One checkpoint on several test sets: each number as it is measured alone, means by hand, faults before the model."""

import json
from pathlib import Path

import pytest
import torch
from fabricated import ARCHITECTURE, SWEEP
from torch import nn

from sweeplab.clip_model import architecture_json, build
from sweeplab.commands.evaluate import EvaluationRequest
from sweeplab.commands.examine import examine_checkpoint
from sweeplab.commands.several_sets import SetResult, measure_sets, render_sets, sets_values
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.fruit_stall import FruitStallTest
from sweeplab.ranking.intervals import wilson
from sweeplab.specs import InvalidInput

FIRST = SWEEP.evaluation.replace(probe=FruitStallTest(num_images=48, image_size=32, seed=2))
SECOND = SWEEP.evaluation.replace(test=FruitStallTest(num_images=32, image_size=32, seed=3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights with BatchNorm's statistics of noise, so that the model does not say the same of everything."""
    model: nn.Module = build(ARCHITECTURE, seed=0).train()
    with torch.no_grad():
        for seed in range(20):
            model.encode_image(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    config = json.dumps({"architecture": json.loads(architecture_json(ARCHITECTURE))})
    torch.save({"model": model.state_dict(), "config": config}, path)
    return path


def test_each_set_has_the_numbers_that_it_has_alone(checkpoint: Path):
    first, second = measure_sets(EvaluationRequest(checkpoint), {"first": FIRST, "second": SECOND})
    alone = examine_checkpoint(SWEEP.replace(evaluation=FIRST), checkpoint, ["panel", "probe"])
    assert (first.name, first.accuracy, first.probe_accuracy) == (
        *("first", alone["panel"]["accuracy"]),
        alone["probe"]["accuracy"],
    )
    other = examine_checkpoint(SWEEP.replace(evaluation=SECOND), checkpoint, ["panel"])
    assert (second.accuracy, second.accuracy_n, second.probe_k) == (other["panel"]["accuracy"], 32, None)


def test_means_count_each_set_once():
    """Zero-shot 10/40 and 6/8: (0.25 + 0.75) / 2 = 0.5; the one probe 30/40."""
    found = [SetResult("a", 10, 40, 30), SetResult("b", 6, 8)]
    values = sets_values(found)
    assert values["mean"] == {"accuracy": 0.5, "probe_accuracy": 0.75}
    assert values["sets"][0]["probe_interval"] == list(wilson(30, 40))
    assert values["sets"][1]["probe_interval"] is None
    assert json.loads(json.dumps(values)) == values
    cells = [list(column.cells) for column in render_sets(found).columns]
    assert [str(cell) for cell in cells[0]] == ["a", "b", "mean"]
    assert (cells[2], cells[4]) == (["25.0", "75.0", "50.0"], ["75.0", "–", "75.0"])


def test_sets_that_are_missing_are_named_before_a_model_is_looked_for(tmp_path: Path):
    gone = SWEEP.evaluation.replace(test=ClassFolders(path=tmp_path / "gone"))
    half = SWEEP.evaluation.replace(probe=ClassFolders(path=tmp_path / "half"))
    with pytest.raises(InvalidInput) as told:
        measure_sets(EvaluationRequest(tmp_path / "no.pt"), {"a": gone, "b": SWEEP.evaluation, "c": half})
    lines = str(told.value).splitlines()
    assert lines[0] == "2 of 3 sets cannot be measured:"
    assert [line[:5] for line in lines[1:]] == ["  a: ", "  c: "]
    assert "gone" in lines[1]
    assert "half" in lines[2]
