"""Shrink and perturb: what is done to the victim's weights before the first step."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sweeplab.cleaning.start import Start, recalibrate_batch_norm, shrink_and_perturb
from sweeplab.clip_model import Architecture, SmallCLIP, build, normalise_pixels
from sweeplab.specs import InvalidInput


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_shrink_and_perturb_by_hand():
    """0.5 x 4 + 0.1 x 10 = 3 for the weight, 0.5 x 2 + 0.1 x (-10) = 0 for the bias."""
    model, fresh = nn.Linear(1, 1), nn.Linear(1, 1)
    for layer, weight, bias in ((model, 4.0, 2.0), (fresh, 10.0, -10.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    shrink_and_perturb(model, fresh, shrink=0.5, perturb=0.1)
    assert model.weight.item() == pytest.approx(3.0)
    assert model.bias.item() == pytest.approx(0.0, abs=1e-6)
    assert fresh.weight.item() == 10.0


def test_every_parameter_changes_the_temperature_and_the_norms_included(tiny: Architecture):
    model, fresh = build(tiny, seed=0), build(tiny, seed=1)
    before, noise = parameters(model), parameters(fresh)
    shrink_and_perturb(model, fresh, shrink=0.7, perturb=0.2)
    after = parameters(model)
    for name in before:
        assert torch.allclose(after[name], 0.7 * before[name] + 0.2 * noise[name], atol=1e-7), name
    assert_close(after["logit_scale"], 0.9 * before["logit_scale"])
    assert_close(after["visual.bn1.weight"], torch.full_like(after["visual.bn1.weight"], 0.9))


def test_running_statistics_stay(tiny: Architecture):
    model = build(tiny, seed=0)
    model.visual.bn1.running_mean.fill_(0.25)
    before = buffers(model)
    shrink_and_perturb(model, build(tiny, seed=1), shrink=0.5, perturb=0.5)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_shrink_1_and_perturb_0_change_nothing(tiny: Architecture):
    model = build(tiny, seed=0)
    before = parameters(model)
    Start(shrink_perturb=True, shrink=1.0, perturb=0.0).apply(model, tiny, seed=3)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_shrink_0_and_perturb_1_are_a_fresh_model(tiny: Architecture):
    model = build(tiny, seed=0)
    Start(shrink_perturb=True, shrink=0.0, perturb=1.0).apply(model, tiny, seed=3)
    fresh = parameters(build(tiny, seed=3))
    assert all(torch.equal(fresh[name], parameter) for name, parameter in model.named_parameters())


def test_a_plain_start_leaves_the_victim_as_it_is(tiny: Architecture):
    model = build(tiny, seed=0)
    before = parameters(model)
    Start().apply(model, tiny, seed=3)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_the_same_seed_gives_the_same_start(tiny: Architecture):
    start = Start(shrink_perturb=True, shrink=0.5, perturb=0.5)
    starts = []
    for seed in (3, 3, 4):
        model = build(tiny, seed=0)
        start.apply(model, tiny, seed)
        starts.append(model.visual.conv1.weight.detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_a_start_leaves_the_parameters_trainable(tiny: Architecture):
    model = build(tiny, seed=0)
    Start(shrink_perturb=True, shrink=0.5, perturb=0.5).apply(model, tiny, seed=3)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


def test_a_fresh_model_of_another_architecture_is_refused(tiny: Architecture):
    deeper = SmallCLIP(image_size=32, width=8, layers=(2, 1, 1, 1), embed_dim=16, text_width=16, text_layers=1)
    with pytest.raises(ValueError, match=r"faces .*; fresh must be of the model's architecture"):
        shrink_and_perturb(build(tiny, seed=0), build(deeper.architecture(), seed=0), shrink=0.5, perturb=0.5)


@pytest.mark.parametrize("fields", [{"shrink": 0.5}, {"perturb": 0.1}], ids=["shrink", "perturb"])
def test_values_without_effect_are_refused(fields: dict[str, float]):
    with pytest.raises(InvalidInput, match="have no effect without shrink_perturb=True; set it"):
        Start(**fields)


@pytest.mark.parametrize("fields", [{"shrink": 1.1}, {"shrink": -0.1}, {"perturb": -0.1}], ids=str)
def test_values_out_of_range_are_refused(fields: dict[str, float]):
    (name, value), *_ = fields.items()
    with pytest.raises(InvalidInput, match=f"{name}={value}"):
        Start(shrink_perturb=True, **fields)


def test_new_batch_norm_statistics_are_those_of_the_images(tiny: Architecture):
    """The first layer's running mean becomes the mean of its input over all images, whatever it was; weights stay."""
    model = build(tiny, seed=0).eval()
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.visual.bn1.running_mean.fill_(7.0)
    images = torch.randint(256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    recalibrate_batch_norm(model, images.split(4))
    expected = model.visual.conv1(normalise_pixels(images)).mean(dim=(0, 2, 3))
    assert_close(model.visual.bn1.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert not model.training
    assert model.visual.bn1.momentum == 0.1
