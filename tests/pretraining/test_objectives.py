"""MMCL and MMCL + SSL by hand; what holds for every objective is in tests/test_every_objective.py."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sweeplab.losses import in_modal_ssl, mmcl
from sweeplab.pretraining import OBJECTIVES
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL, weighted_mmcl_ssl
from sweeplab.specs import InvalidInput
from sweeplab.training.objective import EmbeddedBatch, image_views


def embedded(*, with_views: bool) -> EmbeddedBatch:
    """Six pairs of unit rows at scale 5, all of them leaves."""
    draw = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(6, 4, generator=draw), dim=1).requires_grad_() for _ in range(4)]
    return EmbeddedBatch(rows[0], rows[1], torch.tensor(5.0, requires_grad=True), *(rows[2:] if with_views else ()))


def test_kinds_are_distinct():
    assert len({objective().kind for objective in OBJECTIVES}) == len(OBJECTIVES)


def test_mmcl_is_the_contrastive_loss_alone_and_needs_no_views():
    batch = embedded(with_views=False)
    loss = MMCL().loss(None, batch)
    assert image_views(MMCL()) is None
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
