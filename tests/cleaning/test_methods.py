"""CleanCLIP by hand; what holds for every method is in tests/test_every_objective.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from sweeplab.cleaning import METHODS
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.data.augmentation import AutoAugmentView
from sweeplab.losses import in_modal_ssl, mmcl
from sweeplab.specs import InvalidInput
from sweeplab.training.objective import EmbeddedBatch


def embedded(*, with_views: bool, seed: int = 0) -> EmbeddedBatch:
    """Six pairs of unit rows at scale 5, all of them leaves."""
    draw = torch.Generator().manual_seed(seed)
    rows = [F.normalize(torch.randn(6, 4, generator=draw), dim=1).requires_grad_() for _ in range(4)]
    scale = torch.tensor(5.0, requires_grad=True)
    return EmbeddedBatch(rows[0], rows[1], scale, *(rows[2:] if with_views else ()))


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
