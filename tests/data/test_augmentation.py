"""Augmented views of images."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from sweeplab.clip_model import IMAGE_MEAN
from sweeplab.data.augmentation import VIEWS, AutoAugmentView, PARView, SimCLRView, blur, shift_hue
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
    with pytest.raises(ValueError, match=r"zip\(\) argument 2|2 images and 1 seeds do not pair up"):
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


# --- PAR's and SimCLR's ----------------------------------------------------------------------------------------------


def test_pars_noise_only_brightens_half_of_the_images():
    """A mid-grey image: noise reaches it in half of 200 draws (standard deviation 7), and no pixel gets darker."""
    grey = torch.full((200, 3, 16, 16), 100, dtype=torch.uint8)
    made = PARView(probability=0.5).views(grey, range(200))
    mean = torch.tensor([round(255 * channel) for channel in IMAGE_MEAN], dtype=torch.uint8)
    kept = ~(made == mean[None, :, None, None]).all(dim=1, keepdim=True).expand_as(made)
    assert (made[kept] >= 100).all()
    noisy = (made > 130).flatten(1).any(dim=1).sum()
    assert 65 <= int(noisy) <= 135


def test_pars_square_has_half_to_one_percent_of_the_area():
    """Of 224 x 224: a side of 16 to 22 pixels, in CLIP's mean colour, on black images without noise."""
    view = PARView(noise=0.0, probability=1.0)
    black = torch.zeros((20, 3, 224, 224), dtype=torch.uint8)
    mean = torch.tensor([round(255 * channel) for channel in IMAGE_MEAN], dtype=torch.uint8)
    for image in view.views(black, range(20)):
        erased = (image != 0).all(dim=0)
        side = int(erased.sum()) ** 0.5
        assert side == int(side)
        assert 16 <= side <= 22
        assert torch.equal(image[:, erased].T.unique(dim=0), mean[None])


def test_simclr_blurs_always():
    """A single white pixel on black never stays alone where crop and colours are switched off."""
    dot = torch.zeros((1, 3, 33, 33), dtype=torch.uint8)
    dot[..., 16, 16] = 255
    view = SimCLRView(smallest_crop=1.0, jitter=0.0)
    spread = [int((view.views(dot, [seed])[0, 0] > 0).sum()) for seed in range(20)]
    assert sum(count > 1 for count in spread) >= 15  # sigma below about 0.3 leaves the neighbours at zero


def test_an_unknown_view_is_refused_with_the_known_ones():
    from sweeplab.cleaning.cleanclip import CleanCLIP

    with pytest.raises(InvalidInput, match="unknown augmentation kind='mixup'; known: autoaugment, simclr, par"):
        CleanCLIP(views={"kind": "mixup"})
    assert CleanCLIP(views={"kind": "simclr"}).views == SimCLRView()
    assert CleanCLIP(views=AutoAugmentView()).canonical() == CleanCLIP().canonical()


# --- Against the library's own operations -----------------------------------------------------------------------------


def noise(size: int = 40) -> Tensor:
    return torch.randint(256, (3, size, size + 6), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


PICTURES = {
    "noise": noise(),
    "dim": 90 + noise() // 8,
    "one colour": torch.full((3, 20, 26), 70, dtype=torch.uint8),
    "fewer pixels than values": noise(9),
    "two values": (noise() > 250).to(torch.uint8) * 200,
}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_autoaugment_is_torchvisions_on_pil_images_bit_for_bit(policy: str, picture: str):
    """Enough draws that every operation of the policy comes up; pictures that are not square."""
    draws = 200 if picture == "noise" else 60
    images = PICTURES[picture].expand(draws, -1, -1, -1)
    transform = v2.AutoAugment(v2.AutoAugmentPolicy(policy), interpolation=InterpolationMode.NEAREST)
    made = AutoAugmentView(policy=policy).views(images, range(draws))
    for seed in range(draws):
        torch.manual_seed(seed)
        assert torch.equal(made[seed], tv.pil_to_tensor(transform(tv.to_pil_image(images[seed])))), seed


def test_a_hue_is_shifted_by_hand():
    """A third of the circle turns red into green, half of it turns yellow into blue; grey, black and white stay."""
    colours = torch.tensor([[200, 0, 0], [200, 200, 0], [90, 90, 90], [0, 0, 0], [255, 255, 255]], dtype=torch.uint8)
    image = colours.T[:, :, None]
    assert shift_hue(image, 1 / 3)[:, :, 0].T.tolist()[0] == [0, 200, 0]
    assert shift_hue(image, 0.5)[:, :, 0].T.tolist()[1:] == [[0, 0, 200], [90, 90, 90], [0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("share", [-0.5, -0.1, 0.0, 0.03, 0.5])
def test_a_shifted_hue_is_torchvisions(share: float):
    """One level apart where a sum of floats ends at a whole number."""
    ours, theirs = shift_hue(noise(), share).int(), tv.adjust_hue(noise(), share).int()
    assert (ours - theirs).abs().max() <= 1
    assert (ours != theirs).float().mean() < 0.001


@pytest.mark.parametrize(("kernel", "sigma"), [(3, 0.1), (3, 2.0), (21, 0.3), (21, 1.0), (21, 2.0)])
def test_a_blur_is_torchvisions(kernel: int, sigma: float):
    ours = blur(noise(), kernel, sigma).int()
    theirs = tv.gaussian_blur(noise(), [kernel, kernel], [sigma, sigma]).int()
    assert (ours - theirs).abs().max() <= 1
    assert (ours != theirs).float().mean() < 0.002


def test_simclrs_view_is_that_of_torchvisions_operations():
    """Flip, crop, jitter, grey and blur in a row, by the same draws: a level apart in a few of a thousand pixels."""
    view, images = SimCLRView(), noise(64).expand(40, -1, -1, -1)
    size = [64, 70]
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=InterpolationMode.BILINEAR, antialias=True),
            v2.RandomApply([v2.ColorJitter(0.5, 0.5, 0.5, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.GaussianBlur(5, (0.1, 2.0)),
        ]
    )
    made = view.views(images, range(40))
    for seed in range(40):
        torch.manual_seed(seed)
        apart = (made[seed].int() - transform(images[seed]).int()).abs()
        assert apart.max() <= 2
        assert apart.float().mean() < 0.003
