"""The schedule, the decay rule, AdamW and the clamp."""

import math

import pytest
import torch
from torch import nn

from sweeplab.clip_model import Architecture, build
from sweeplab.specs import InvalidInput
from sweeplab.training.optimisation import (
    Optimization,
    build_optimizer,
    check_schedule,
    clamp_logit_scale,
    is_decayed,
    learning_rate_at,
    parameter_groups,
)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0), (6, 0.5 * (1 + math.cos(math.pi / 3))), (7, 0.5), (10, 0.0)],
)
def test_learning_rate_by_hand(step: int, rate: float):
    """Peak 1, four warm-up steps of ten: 1/4, 2/4, 3/4, 1; then half a cosine over six steps, from 1 at step 4 over
    1/2 at step 7 to 0 at step 10."""
    assert learning_rate_at(step, 1.0, 4, 10) == pytest.approx(rate, abs=1e-12)


def test_without_warmup_the_first_step_has_the_peak_rate():
    assert learning_rate_at(0, 3e-4, 0, 10) == 3e-4


def test_every_step_of_a_run_has_a_positive_rate_up_to_the_peak():
    rates = [learning_rate_at(step, 2.0, 5, 40) for step in range(40)]
    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_the_rate_scales_with_its_peak():
    for step in range(40):
        assert learning_rate_at(step, 6.0, 5, 40) == pytest.approx(3 * learning_rate_at(step, 2.0, 5, 40))


@pytest.mark.parametrize("warmup_steps", [10, 11])
def test_a_warmup_as_long_as_the_training_is_refused(warmup_steps: int):
    with pytest.raises(ValueError, match=f"warmup_steps={warmup_steps} must be below the total of 10 steps"):
        check_schedule(warmup_steps, 10)


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(9, 10), (0, 1), (50, 0)])
def test_a_shorter_warmup_and_no_training_at_all_pass(warmup_steps: int, total_steps: int):
    check_schedule(warmup_steps, total_steps)


@pytest.mark.parametrize(
    "fields",
    [{"learning_rate": 0.0}, {"weight_decay": -0.1}, {"global_batch_size": 1}, {"beta1": 1.0}, {"epsilon": 0.0}],
    ids=lambda fields: next(iter(fields)),
)
def test_values_out_of_range_are_refused(fields: dict[str, float]):
    with pytest.raises(InvalidInput, match=f"Optimization: {next(iter(fields))}="):
        Optimization(**fields)


@pytest.fixture(scope="module")
def model(tiny: Architecture) -> nn.Module:
    return build(tiny, seed=0)


def test_norms_biases_and_the_temperature_are_exempt(model: nn.Module):
    exempt = {name for name, parameter in model.named_parameters() if not is_decayed(name, parameter)}
    norms = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm))
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert exempt == norms | biases | {"logit_scale"}


def test_a_vits_class_embedding_is_exempt_and_decayed_by_cleanclips_rule_of_names():
    with torch.device("meta"):
        named = dict(build(Architecture(name="ViT-B-32-quickgelu"), seed=0).named_parameters())
    theirs = {name for name in named if not any(word in name for word in ("bn", "ln", "bias", "logit_scale"))}
    ours = {name for name, parameter in named.items() if is_decayed(name, parameter)}
    assert theirs ^ ours == {"visual.class_embedding"}
    assert "visual.class_embedding" in theirs
    assert {"visual.positional_embedding", "positional_embedding", "token_embedding.weight"} <= ours & theirs


def test_a_temperature_with_dimensions_is_exempt_too():
    assert not is_decayed("module.logit_scale", torch.zeros(1, 1))


def test_parameters_that_do_not_train_are_in_no_group(tiny: Architecture):
    frozen = build(tiny, seed=0)
    frozen.visual.requires_grad_(False)
    held = {id(parameter) for group in parameter_groups(frozen, 0.1) for parameter in group["params"]}
    assert held == {id(parameter) for parameter in frozen.parameters() if parameter.requires_grad}


def test_the_optimizer_takes_the_chosen_hyperparameters(model: nn.Module):
    chosen = Optimization(learning_rate=2e-3, weight_decay=0.3, beta1=0.8, beta2=0.98, epsilon=1e-6)
    optimizer = build_optimizer(model, chosen)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert all(group["lr"] == 2e-3 for group in optimizer.param_groups)
    assert all((group["betas"], group["eps"]) == ((0.8, 0.98), 1e-6) for group in optimizer.param_groups)
    assert optimizer.state == {}


def test_weight_decay_applies_to_the_decayed_group_alone(tiny: Architecture):
    """With zero gradients AdamW only decays: w <- w - learning_rate x weight_decay x w = 0.95 w at 0.5 x 0.1."""
    model = build(tiny, seed=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, Optimization(learning_rate=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if is_decayed(name, parameter) else 1.0
        assert torch.allclose(parameter.detach(), factor * before[name]), name


@pytest.mark.parametrize(("before", "after"), [(-3.0, 0.0), (2.5, 2.5), (9.0, math.log(100))])
def test_the_logarithm_of_the_scale_is_clamped_to_0_and_ln_100(tiny: Architecture, before: float, after: float):
    model = build(tiny, seed=0)
    model.logit_scale.data.fill_(before)
    clamp_logit_scale(model)
    assert float(model.logit_scale.detach()) == pytest.approx(after)
