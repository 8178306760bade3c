"""What a process takes of its machine."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fabricated import ARCHITECTURE, SWEEP
from torch import Tensor

from sweeplab.attacks.poisoning import Poisoning
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR
from sweeplab.data.fruit_stall import FruitStall, FruitStallTest
from sweeplab.evaluation.measure import Evaluation, Trigger
from sweeplab.experiment import CleaningSweep, PretrainedVictim, SelectedTrial
from sweeplab.search_space import LogUniform, SearchSpace
from sweeplab.specs import Spec
from sweeplab.training.optimisation import Optimization
from sweeplab.worker.inputs import (
    checkpoint_config,
    has_cleanclips_trainer,
    measure_for,
    planted_target,
    victim_pairs,
)
from sweeplab.worker.jobs import Machine, whole_machine


def test_a_lone_process_takes_the_threads_that_torch_chose(tmp_path: Path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        machine = whole_machine(tmp_path)
    finally:
        torch.set_num_threads(before)
    assert (machine.data_home, machine.threads, machine.use_cuda) == (tmp_path / "data", 3, torch.cuda.is_available())


@pytest.mark.slow
def test_the_environment_can_ask_for_one_thread(tmp_path: Path):
    """In a process of its own, since torch reads it when it is imported."""
    code = (
        "from pathlib import Path; from sweeplab.worker.jobs import whole_machine;"
        "print(whole_machine(Path('.')).threads)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"


def test_an_attack_whose_class_is_defined_anew_is_trained_on_and_measured_as_it_is_now(tmp_path: Path):
    """As in an interactive session: of one name, with the same fields."""

    def triggered(shade: int) -> tuple[list[int], ...]:
        class Shaded(Spec):
            kind: Literal["shaded"] = "shaded"

            def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
                return torch.full_like(images, shade)

            def check_fits(self, image_size: int) -> None:
                return None

        evaluation = Evaluation(test=FruitStallTest(num_images=16, image_size=32), templates=("a {}",))
        machine = Machine(tmp_path / "data", threads=1, use_cuda=False)
        measure = measure_for(ARCHITECTURE, evaluation, Trigger(Shaded(), "banana"), machine)
        victim = PretrainedVictim(
            name="victim",
            architecture=ARCHITECTURE,
            data=FruitStall(num_pairs=16, image_size=32),
            poisoning=Poisoning(attack=Shaded(), target="banana", count=2),
            evaluation=evaluation,
            optimization=Optimization(global_batch_size=4),
            epochs=1,
        )
        pairs = victim_pairs(victim, machine)
        poisoned = pairs.images_of(pairs.poisoned_rows.tolist())
        return measure.triggered_pixels([0]).unique().tolist(), poisoned.unique().tolist()

    assert [triggered(shade) for shade in (255, 0)] == [([255], [255]), ([0], [0])]


@pytest.mark.parametrize("protocol", ["paper", "authors"])
def test_par_never_has_cleanclips_trainer(protocol: str):
    rates = SearchSpace(dimensions={"learning_rate": LogUniform(low=1e-4, high=1e-2)}, source="made up")
    sweep = SWEEP.replace(protocol=protocol, space=rates, grid=None)
    assert has_cleanclips_trainer(sweep.replace(method=CleanCLIP())) == (protocol == "authors")
    assert not has_cleanclips_trainer(sweep.replace(method=PAR()))


def test_a_checkpoint_of_sweeplabs_says_towards_what_it_was_poisoned(tmp_path: Path, smoke: CleaningSweep):
    """A victim's own, that of a trial that cleaned it, and of one that cleaned a selected trial."""
    twice = smoke.replace(name="twice", victim=SelectedTrial(name="selected", sweep=smoke))
    apple = smoke.victim.replace(poisoning=smoke.victim.poisoning.replace(target="apple"))
    made: list[tuple[dict[str, Any], str]] = [
        ({"victim": apple.to_json()}, "apple"),
        ({"sweep": smoke.to_json(), "trial": 3, "params": {}}, "banana"),
        ({"sweep": twice.to_json(), "trial": 3, "params": {}}, "banana"),
        ({"sweep": SWEEP.to_json(), "trial": 3, "params": {}}, "banana"),
    ]
    for facts, target in made:
        torch.save({"model": {}, "config": checkpoint_config(ARCHITECTURE, facts)}, tmp_path / "own.pt")
        assert planted_target(tmp_path / "own.pt") == target


@pytest.mark.parametrize("content", [{}, {"config": "model: RN50"}, {"config": "[1]"}, {"config": {"x": 1}}])
def test_other_checkpoints_say_nothing_of_their_poison(tmp_path: Path, content: dict[str, Any]):
    torch.save({"model": {}, **content}, tmp_path / "theirs.pt")
    assert planted_target(tmp_path / "theirs.pt") is None


@pytest.mark.parametrize(
    "config", [{"victim": "x"}, {"victim": {"poisoning": None}}, {"sweep": "x"}, {"sweep": {"victim": {"sweep": 1}}}]
)
def test_a_checkpoint_of_strange_words_says_no_target(tmp_path: Path, config: dict[str, Any]):
    torch.save({"model": {}, "config": json.dumps({"architecture": None, **config})}, tmp_path / "1.pt")
    assert planted_target(tmp_path / "1.pt") is None
