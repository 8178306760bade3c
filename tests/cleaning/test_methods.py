"""What holds for every cleaning method, and CleanCLIP by hand."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.cleaning import METHODS
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.clip_model import Architecture, build
from sweeplab.data.augmentation import AutoAugmentView
from sweeplab.losses import in_modal_ssl, mmcl
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.objective import EmbeddedBatch

every_method = pytest.mark.parametrize("method", [method() for method in METHODS], ids=lambda method: method.kind)


def embedded(*, with_views: bool, seed: int = 0) -> EmbeddedBatch:
    """Six pairs of unit rows at scale 5, all of them leaves."""
    draw = torch.Generator().manual_seed(seed)
    rows = [F.normalize(torch.randn(6, 4, generator=draw), dim=1).requires_grad_() for _ in range(4)]
    scale = torch.tensor(5.0, requires_grad=True)
    return EmbeddedBatch(rows[0], rows[1], scale, *(rows[2:] if with_views else ()))


def needed(method: Spec, seed: int = 0) -> EmbeddedBatch:
    """The batch that the loop would hand to the method."""
    return embedded(with_views=method.image_views is not None, seed=seed)


@pytest.fixture(scope="module")
def model(tiny: Architecture) -> nn.Module:
    return build(tiny, seed=0)


@every_method
def test_the_loss_is_a_finite_scalar_with_named_parts(method: Spec, model: nn.Module):
    loss = method.loss(method.init_state(model), needed(method))
    assert loss.total.shape == ()
    assert loss.total.isfinite()
    assert loss.parts
    for name, part in loss.parts.items():
        assert name
        assert name != "loss", "the loop records the total under that name"
        assert part.shape == ()


@every_method
def test_gradients_reach_images_texts_and_temperature(method: Spec, model: nn.Module):
    batch = needed(method)
    method.loss(method.init_state(model), batch).total.backward()
    for rows in (batch.images, batch.texts, batch.logit_scale):
        assert rows.grad is not None
        assert float(rows.grad.abs().sum()) > 0
        assert rows.grad.isfinite().all()


@every_method
def test_the_loss_leaves_the_batch_as_it_is(method: Spec, model: nn.Module):
    batch, twin = needed(method), needed(method)
    method.loss(method.init_state(model), batch)
    for field in dataclasses.fields(EmbeddedBatch):
        held = getattr(batch, field.name)
        assert held is None or torch.equal(held, getattr(twin, field.name))


@every_method
def test_equal_methods_have_equal_losses(method: Spec, model: nn.Module):
    twin = type(method).model_validate(json.loads(json.dumps(method.to_json())))
    assert twin == method
    first = method.loss(method.init_state(model), needed(method)).total
    assert torch.equal(twin.loss(twin.init_state(model), needed(method)).total, first)


@every_method
def test_the_state_is_a_module_or_nothing(method: Spec, model: nn.Module):
    state = method.init_state(model)
    assert state is None or isinstance(state, nn.Module)


def test_kinds_are_distinct():
    assert len({method().kind for method in METHODS}) == len(METHODS)


# --- CleanCLIP ------------------------------------------------------------------------------------------------------


def parts_of(batch: EmbeddedBatch) -> tuple[Tensor, Tensor]:
    together = mmcl(batch.images, batch.texts, batch.logit_scale)
    views = in_modal_ssl(batch.images, batch.image_views, batch.texts, batch.text_views, batch.logit_scale)
    return together, views


@pytest.mark.parametrize(("mmcl_weight", "ssl_weight"), [(1.0, 1.0), (1.0, 8.0), (0.5, 0.25)])
def test_cleanclip_sums_its_weighted_parts(mmcl_weight: float, ssl_weight: float):
    batch = embedded(with_views=True)
    together, views = parts_of(batch)
    loss = CleanCLIP(mmcl_weight=mmcl_weight, ssl_weight=ssl_weight).loss(None, batch)
    assert_close(loss.total, mmcl_weight * together + ssl_weight * views)
    assert loss.parts == {"mmcl": together, "ssl": views}


def test_mmcl_cleaning_needs_no_views():
    method, batch = CleanCLIP(ssl_weight=0.0), embedded(with_views=False)
    assert method.image_views is None
    loss = method.loss(None, batch)
    assert_close(loss.total, mmcl(batch.images, batch.texts, batch.logit_scale))
    assert list(loss.parts) == ["mmcl"]


def test_ssl_cleaning_never_compares_images_with_texts():
    loss = CleanCLIP(mmcl_weight=0.0).loss(None, embedded(with_views=True))
    assert_close(loss.total, parts_of(embedded(with_views=True))[1])
    assert list(loss.parts) == ["ssl"]


def test_ssl_without_views_is_refused():
    with pytest.raises(ValueError, match=r"ssl_weight=2.0 needs augmented views"):
        CleanCLIP(ssl_weight=2.0).loss(None, embedded(with_views=False))


def test_cleanclip_augments_with_autoaugment():
    assert CleanCLIP().image_views == AutoAugmentView(policy="imagenet")


def test_two_weights_of_zero_are_refused():
    with pytest.raises(InvalidInput, match="leave no loss; make one of them positive"):
        CleanCLIP(mmcl_weight=0.0, ssl_weight=0.0)


@pytest.mark.parametrize("name", ["mmcl_weight", "ssl_weight"])
def test_a_negative_weight_is_refused(name: str):
    with pytest.raises(InvalidInput, match=f"{name}=-1.0"):
        CleanCLIP(**{name: -1.0})
