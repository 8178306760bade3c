"""Probes: a few steps on noise, and what a plan makes of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fabricated import SWEEP
from torch import nn

from sweeplab.cleaning import METHODS
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.clip_model import Architecture, SmallCLIP
from sweeplab.commands import estimate
from sweeplab.commands import probe as probe_module
from sweeplab.commands.probe import NoProbe, Probe, probe
from sweeplab.data.pairs import PairsCSV
from sweeplab.experiment import Resources
from sweeplab.pretraining import OBJECTIVES
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.search_space import Choice, SearchSpace
from sweeplab.specs import Spec
from sweeplab.training import loop as training_loop
from sweeplab.training.optimisation import Optimization
from sweeplab.training.probe import ProbeStep, noise_batch

TINY = SmallCLIP(image_size=32, width=8, embed_dim=16, text_width=16, text_layers=1).architecture()
OPTIMIZATION = Optimization(global_batch_size=16, warmup_steps=2)
MADE_UP = Probe("CPU, 1 thread", pairs=8, batch=16, step_seconds=9.0, image_seconds=0.25, gigabytes=1.25)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(probe_module, "STEPS", 1)
    monkeypatch.setattr(estimate, "_probes", {})


def test_noise_has_captions_that_begin_and_end_as_captions_do():
    batch = noise_batch(SmallCLIP(context_length=77).architecture(), 64, views=True)
    lengths = (batch.tokens != 0).sum(dim=1)
    assert batch.token_views is not None
    assert batch.tokens.shape == batch.token_views.shape == (64, 38)
    assert 14 < float(lengths.float().mean()) < 20
    assert set(batch.tokens[:, 0].tolist()) == {49_406}
    assert torch.equal(batch.tokens.argmax(dim=1), lengths - 1)


@pytest.mark.parametrize(
    "objective", [member() for member in dict.fromkeys((*OBJECTIVES, *METHODS))], ids=lambda value: value.kind
)
def test_every_objective_is_probed_with_its_defaults(objective: Spec):
    found = probe(TINY, objective, OPTIMIZATION, Resources())
    assert (found.pairs, found.batch, found.hardware) == (16, 16, "CPU, 1 thread")
    assert found.step_seconds > 0
    assert found.image_seconds > 0


@pytest.mark.parametrize(
    ("resources", "fields", "wanted"),
    [
        ({"activation_checkpointing": True}, {}, (16, True, "local", 1)),
        ({"workers": 2}, {"batch_norm": "sync"}, (8, False, "local", 1)),  # of one process
        ({}, {"batch_norm": "frozen", "num_chunks": 4}, (16, False, "frozen", 4)),
    ],
)
def test_a_probe_trains_as_the_sweep_does(
    resources: dict[str, Any], fields: dict[str, Any], wanted: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
):
    steps: list[ProbeStep] = []

    def keep(*arguments: Any, **named: Any) -> ProbeStep:
        steps.append(ProbeStep(*arguments, **named))
        return steps[-1]

    monkeypatch.setattr(probe_module, "ProbeStep", keep)
    probe(TINY, CleanCLIP(), OPTIMIZATION.replace(**fields), Resources(**resources))
    training = steps[0].training
    run, used = training.settings, training.optimization
    assert (used.global_batch_size, run.activation_checkpointing, used.batch_norm, used.num_chunks) == wanted


def test_chunks_divide_the_pairs_of_a_probe(monkeypatch: pytest.MonkeyPatch):
    """Of 7 pairs that a CPU affords 4 are the largest multiple of 4; of 3, none is."""
    chunked = OPTIMIZATION.replace(num_chunks=4)
    monkeypatch.setattr(probe_module, "_affordable", lambda *arguments, **named: 7)
    assert probe(TINY, CleanCLIP(), chunked, Resources()).pairs == 4
    monkeypatch.setattr(probe_module, "_affordable", lambda *arguments, **named: 3)
    with pytest.raises(NoProbe, match="more than 15 s"):
        probe(TINY, CleanCLIP(), chunked, Resources())


def test_a_probe_trains_on_its_batch():
    """Steps at a constant batch of noise are learned by heart."""
    optimization = OPTIMIZATION.replace(learning_rate=1e-2, warmup_steps=0)
    step = ProbeStep(TINY, MMCL(), optimization, noise_batch(TINY, 16, views=False), torch.device("cpu"))
    losses = [float(step()["loss"]) for _ in range(10)]
    assert losses[-1] < losses[0] - 0.1


def test_a_batch_that_takes_too_long_is_told_from_a_part_of_it(monkeypatch: pytest.MonkeyPatch):
    """Four of 16 pairs: four times the seconds; of the memory that a step took, beside 12 bytes a parameter, too."""
    monkeypatch.setattr(probe_module, "_affordable", lambda *arguments, **named: 4)
    monkeypatch.setattr(probe_module, "_seconds", lambda turn, device: 2.0)
    monkeypatch.setattr(probe_module, "num_parameters", lambda architecture: 1e9 / 12)
    monkeypatch.setattr(probe_module, "_free_gigabytes", lambda device: None)
    monkeypatch.setattr(probe_module, "_reset_peak", lambda device: 3.0)
    monkeypatch.setattr(probe_module, "_peak_gigabytes", lambda device: 4.5)
    found = probe(TINY, CleanCLIP(), OPTIMIZATION.replace(global_batch_size=32), Resources(workers=2))
    assert found == Probe("CPU, 1 thread", 4, 16, 8.0, 0.5, 3.0 + 1.0 + 4 * 0.5)
    assert found.to_words() == "CPU, 1 thread: 8 s a step of 16 pairs, from steps of 4, 6.0 GB a worker"


def test_views_halve_the_pairs_that_a_cpu_affords():
    pairs, with_views = (probe_module._affordable(TINY, 2, views=views) for views in (False, True))
    assert with_views == pairs // 2
    assert probe_module._affordable(TINY, 4, views=False) == pytest.approx(2 * pairs, abs=1)


def test_test_images_are_embedded_in_the_evaluations_precision(monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.dtype] = []

    def spy(turn: Callable[[], object], device: torch.device) -> float:
        def note(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                seen.append(output.dtype)

        with nn.modules.module.register_module_forward_hook(note):
            turn()
        return 1.0

    monkeypatch.setattr(probe_module, "_seconds", spy)
    probe(TINY, MMCL(), OPTIMIZATION, Resources(), "bfloat16")
    assert torch.bfloat16 in seen


def test_a_compiled_sweep_is_probed_in_compiled_steps(monkeypatch: pytest.MonkeyPatch):
    """One goes before those that are measured, in which torch compiles."""
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr(training_loop, "check_compiler", lambda **named: None)
    turns: list[object] = []
    monkeypatch.setattr(ProbeStep, "__call__", lambda step: turns.append(step.training.encoder))
    monkeypatch.setattr(probe_module, "_seconds", lambda turn, device: 1.0)
    probe(TINY, MMCL(), OPTIMIZATION, Resources(compile=True))
    assert turns == compiled
    assert len(turns) == 1


def test_without_a_compiler_a_compiled_sweep_is_not_probed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoProbe, match="no-such-compiler is not on the PATH"):
        probe(TINY, MMCL(), OPTIMIZATION, Resources(compile=True))


class OutOfMemory(nn.Module):
    def __init__(self, *arguments: object, **named: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("CORE_FLOPS", 1.0, "steps on this CPU would take more than 15 s"),
        (
            "_free_gigabytes",
            lambda device: 1e-6,
            r"weights, gradients and moments take .* GB, and 0\.0 GB are free here",
        ),
        ("_seconds", lambda turn, device: 40.0, "a step of 16 pairs takes 40 s on CPU, 1 thread"),
        ("ProbeStep", OutOfMemory, "a step of 16 pairs runs out of memory on CPU, 1 thread"),
    ],
)
def test_what_cannot_be_probed_is_said(name: str, value: object, why: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe_module, name, value)
    with pytest.raises(NoProbe, match=why):
        probe(TINY, CleanCLIP(), OPTIMIZATION, Resources())
    monkeypatch.undo()


def test_an_error_of_the_objective_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(probe_module, "ProbeStep", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        probe(TINY, CleanCLIP(), OPTIMIZATION, Resources())


def test_hours_of_a_plan_by_hand(monkeypatch: pytest.MonkeyPatch):
    """6 trials x 2 epochs x 4 steps x 9 s, and 6 x 2 measurements of 2 x 48 images x 0.25 s: 720 s, 0.2 hours."""
    monkeypatch.setattr(estimate, "probe", lambda *arguments: MADE_UP)
    lines = estimate.plan(SWEEP, probes=True)
    assert lines[7:9] == [
        "  probe             trials, CPU, 1 thread: 9 s a step of 16 pairs, from steps of 8, 1.2 GB a worker",
        "  worker-hours      about 0.2 (trials 0.2), from the probe; data, views, prompts come on top",
    ]


def test_a_plan_probes_the_sweeps_precision_and_says_what_the_probe_leaves_out(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(estimate, "probe", lambda *arguments: asked.append(arguments) or MADE_UP)
    precise = SWEEP.evaluation.replace(precision="bfloat16")
    space = SearchSpace(dimensions={"global_batch_size": Choice(values=(8, 16))}, source="made up")
    other = SWEEP.replace(evaluation=precise, space=space, grid=None, resources=Resources(compile=True))
    for sweep in (SWEEP, other):
        lines = estimate.plan(sweep, probes=True)
    assert [arguments[-1] for arguments in asked] == ["float32", "bfloat16"]
    assert lines[7].endswith("1.2 GB a worker (searched, probed at global_batch_size=16)")
    assert lines[8].endswith("from the probe; data, views, prompts, compilation come on top")


def test_alike_sweeps_are_probed_once(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []
    monkeypatch.setattr(estimate, "probe", lambda *arguments: asked.append(arguments) or MADE_UP)
    other_rate = SWEEP.replace(optimization=SWEEP.optimization.replace(beta1=0.5), name="other")
    for sweep in (SWEEP, other_rate, SWEEP.replace(method=CleanCLIP(mmcl_weight=0.5))):
        estimate.plan(sweep, probes=True)
    assert len(asked) == 2


def test_without_a_probe_the_formula_says_why_it_serves(monkeypatch: pytest.MonkeyPatch):
    def none(*arguments: object) -> Probe:
        raise NoProbe("it is too large")

    monkeypatch.setattr(estimate, "probe", none)
    known = SWEEP.replace(victim=SWEEP.victim.replace(architecture=Architecture(name="RN50-quickgelu")))
    lines = estimate.plan(known, probes=True)
    assert lines[7] == "  probe             trials: none, since it is too large; hours are the formula's"
    assert lines[8:] == estimate.plan(known)[7:]
    assert "at 500 pairs a second" in lines[8]


def test_without_a_number_of_pairs_a_probe_gives_no_hours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "probe", lambda *arguments: MADE_UP)
    lines = estimate.plan(SWEEP.replace(data=PairsCSV(path=Path("pairs.csv"))), probes=True)
    assert lines[8] == "  hours             unknown (declare num_pairs)"


def test_a_plan_probes_only_where_it_is_asked_to(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(estimate, "probe", lambda *arguments: MADE_UP)
    assert run_script(["--dry-run"], SWEEP) == 0
    assert "probe" not in capsys.readouterr().out
    assert run_script(["--dry-run", "--probe"], SWEEP) == 0
    assert "worker-hours      about 0.2" in capsys.readouterr().out
    assert run_script(["--probe"], SWEEP) == 2
    assert "--probe belongs to --dry-run" in capsys.readouterr().err
