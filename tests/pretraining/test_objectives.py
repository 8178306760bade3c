"""What holds for every pre-training objective, and the two of the papers."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from sweeplab.clip_model import Architecture, build
from sweeplab.losses import in_modal_ssl, mmcl
from sweeplab.pretraining import OBJECTIVES
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL, weighted_mmcl_ssl
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.objective import EmbeddedBatch

every_objective = pytest.mark.parametrize(
    "objective", [objective() for objective in OBJECTIVES], ids=lambda objective: objective.kind
)


def embedded(*, with_views: bool) -> EmbeddedBatch:
    """Six pairs of unit rows at scale 5, all of them leaves."""
    draw = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(6, 4, generator=draw), dim=1).requires_grad_() for _ in range(4)]
    return EmbeddedBatch(rows[0], rows[1], torch.tensor(5.0, requires_grad=True), *(rows[2:] if with_views else ()))


def needed(objective: Spec) -> EmbeddedBatch:
    """The batch that the loop would hand to the objective."""
    return embedded(with_views=objective.image_views is not None)


@pytest.fixture(scope="module")
def model(tiny: Architecture) -> nn.Module:
    return build(tiny, seed=0)


@every_objective
def test_the_loss_is_a_finite_scalar_with_named_parts(objective: Spec, model: nn.Module):
    loss = objective.loss(objective.init_state(model), needed(objective))
    assert loss.total.shape == ()
    assert loss.total.isfinite()
    assert loss.parts
    assert "loss" not in loss.parts, "the loop records the total under that name"
    assert all(part.shape == () for part in loss.parts.values())


@every_objective
def test_gradients_reach_images_texts_and_temperature(objective: Spec, model: nn.Module):
    batch = needed(objective)
    objective.loss(objective.init_state(model), batch).total.backward()
    for rows in (batch.images, batch.texts, batch.logit_scale):
        assert float(rows.grad.abs().sum()) > 0
        assert rows.grad.isfinite().all()


@every_objective
def test_equal_objectives_have_equal_losses(objective: Spec, model: nn.Module):
    twin = type(objective).model_validate(json.loads(json.dumps(objective.to_json())))
    assert twin == objective
    first = objective.loss(objective.init_state(model), needed(objective)).total
    assert torch.equal(twin.loss(twin.init_state(model), needed(objective)).total, first)


@every_objective
def test_the_state_is_a_module_or_nothing(objective: Spec, model: nn.Module):
    state = objective.init_state(model)
    assert state is None or isinstance(state, nn.Module)


def test_kinds_are_distinct():
    assert len({objective().kind for objective in OBJECTIVES}) == len(OBJECTIVES)


def test_mmcl_is_the_contrastive_loss_alone_and_needs_no_views():
    batch = embedded(with_views=False)
    loss = MMCL().loss(None, batch)
    assert MMCL().image_views is None
    assert_close(loss.total, mmcl(batch.images, batch.texts, batch.logit_scale))
    assert loss.parts == {"mmcl": loss.total}


@pytest.mark.parametrize("ssl_weight", [1.0, 0.25])
def test_mmcl_with_ssl_sums_its_parts(ssl_weight: float):
    batch = embedded(with_views=True)
    together = mmcl(batch.images, batch.texts, batch.logit_scale)
    views = in_modal_ssl(batch.images, batch.image_views, batch.texts, batch.text_views, batch.logit_scale)
    loss = MMCLWithSSL(ssl_weight=ssl_weight).loss(None, batch)
    assert_close(loss.total, together + ssl_weight * views)
    assert loss.parts == {"mmcl": together, "ssl": views}


def test_mmcl_with_ssl_needs_views():
    with pytest.raises(ValueError, match="needs augmented views, and the batch has none"):
        MMCLWithSSL().loss(None, embedded(with_views=False))


def test_mmcl_with_ssl_of_no_weight_is_refused():
    with pytest.raises(InvalidInput, match=r"ssl_weight=0.0"):
        MMCLWithSSL(ssl_weight=0.0)


def test_a_part_of_weight_0_is_not_computed():
    loss = weighted_mmcl_ssl(embedded(with_views=False), mmcl_weight=2.0, ssl_weight=0.0)
    assert list(loss.parts) == ["mmcl"]
    assert_close(loss.total, 2 * loss.parts["mmcl"])
