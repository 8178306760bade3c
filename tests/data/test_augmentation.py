"""Augmented views of images."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from sweeplab.data.augmentation import VIEWS, AutoAugmentView
from sweeplab.specs import InvalidInput, Spec

every_view = pytest.mark.parametrize(
    "view",
    [*(view() for view in VIEWS), AutoAugmentView(policy="cifar10"), AutoAugmentView(policy="svhn")],
    ids=lambda view: "-".join(map(str, view.canonical().values())),
)


def photos(count: int = 12, size: int = 32) -> Tensor:
    """Smooth pictures: noise has no edges that a shear could move."""
    draw = torch.Generator().manual_seed(8)
    small = torch.randint(256, (count, 3, 4, 4), generator=draw).float()
    return torch.nn.functional.interpolate(small, size=size, mode="bilinear").to(torch.uint8)


@every_view
def test_a_view_has_shape_and_type_of_the_image(view: Spec):
    made = view.views(photos(3, 48), [1, 2, 3])
    assert (made.shape, made.dtype) == ((3, 3, 48, 48), torch.uint8)


@every_view
def test_many_views_differ_from_their_image_and_from_each_other(view: Spec):
    same = photos(1).expand(12, -1, -1, -1)
    made = view.views(same, range(12))
    assert (made != same).flatten(1).any(dim=1).sum() >= 6
    assert len(made.flatten(1).unique(dim=0)) > 2


@every_view
def test_a_view_depends_on_its_own_seed_alone(view: Spec):
    seeds = [2**62 + row for row in range(12)]
    together = view.views(photos(), seeds)
    for row in (0, 5, 11):
        assert torch.equal(view.views(photos()[row : row + 1], seeds[row : row + 1])[0], together[row])
    assert torch.equal(view.views(photos().flip(0), seeds[::-1]), together.flip(0))


@every_view
def test_the_global_random_streams_neither_move_nor_matter(view: Spec):
    torch.manual_seed(1)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = view.views(photos(), range(12))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    torch.manual_seed(2)
    random.seed(3)
    np.random.seed(4)
    assert torch.equal(view.views(photos(), range(12)), first)


@every_view
def test_the_global_stream_comes_back_after_a_fault(view: Spec):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"zip\(\) argument 2"):
        view.views(photos(2), [1])
    assert torch.equal(torch.random.get_rng_state(), before)


@every_view
def test_images_are_left_as_they_are(view: Spec):
    images = photos()
    view.views(images, range(12))
    assert torch.equal(images, photos())


@every_view
def test_no_images_have_no_views(view: Spec):
    assert view.views(photos()[:0], []).shape == (0, 3, 32, 32)


def test_an_unknown_policy_is_refused():
    with pytest.raises(InvalidInput, match="policy='mnist'"):
        AutoAugmentView(policy="mnist")
