"""Views by the batch are those that are made image by image, from the same draws."""

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from sweeplab.data import device_views
from sweeplab.data.augmentation import AutoAugmentView, PARView, SimCLRView
from sweeplab.data.device_views import Change, DrawnViews, autoaugment_change, blur_taps
from sweeplab.training.batches import DeviceViews

HEIGHT, WIDTH = 33, 38
VIEWS = [*(AutoAugmentView(policy=policy) for policy in ("imagenet", "cifar10", "svhn")), SimCLRView()]
every_view = pytest.mark.parametrize("view", VIEWS, ids=lambda view: "-".join(map(str, view.canonical().values())))
SPACE = v2.AutoAugment._AUGMENTATION_SPACE


def pictures() -> Tensor:
    """(7, 3, HEIGHT, WIDTH): two smooth ones, two of noise, one of smooth parts with grain, dim noise, one colour."""
    draw = torch.Generator().manual_seed(8)
    small = torch.randint(256, (3, 3, 5, 5), generator=draw).float()
    smooth = F.interpolate(small, size=(HEIGHT, WIDTH), mode="bilinear")
    noise = torch.randint(256, (3, 3, HEIGHT, WIDTH), generator=draw).float()
    grainy = (smooth[2:] + noise[2:] / 16 - 8).clamp(0, 255)
    made = [smooth[:2], noise[:2], grainy, 90 + noise[2:] / 8, torch.full_like(grainy, 70)]
    return torch.cat(made).to(torch.uint8)


def changed(images: Tensor, change: Change) -> Tensor:
    return DrawnViews.of([[change]] * len(images)).applied(images)


# --- operation by operation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACE)
def test_an_operation_of_autoaugment_is_pils_bit_for_bit(name: str):
    """Under every magnitude that a policy can name, in both directions where it has a sign."""
    levels, has_sign = SPACE[name]
    drawn = levels(10, HEIGHT, WIDTH)
    magnitudes = [0.0] if drawn is None else [float(magnitude) for magnitude in drawn]
    magnitudes += [-magnitude for magnitude in magnitudes if has_sign]
    torchvisions = v2.AutoAugment()
    images = pictures()
    for magnitude in magnitudes:
        made = changed(images, autoaugment_change(name, magnitude, HEIGHT, WIDTH))
        for image, view in zip(images, made, strict=True):
            picture = torchvisions._apply_image_or_video_transform(
                tv.to_pil_image(image), name, magnitude, InterpolationMode.NEAREST, torchvisions._fill
            )
            assert torch.equal(view, tv.pil_to_tensor(picture)), magnitude


def test_every_mean_of_thirteen_pixels_is_rounded_as_pil_rounds_it():
    totals = torch.arange(13 * 255 + 1, dtype=torch.int32)
    expected = [int(total / 13 + 0.5) for total in range(13 * 255 + 1)]
    assert device_views._thirteenth(totals).tolist() == expected


def test_values_are_looked_up_on_a_gpu_as_on_the_cpu():
    """Each plane has a table of its own: of plane 2 of image 1, value 200 becomes 200 + 3 + 2, and 255 becomes 4."""
    images = pictures()[:2]
    tables = (torch.arange(256) + 3 * torch.arange(2)[:, None, None] + torch.arange(3)[:, None]).to(torch.uint8)
    images[1, 2, 0, :2] = torch.tensor([200, 255])
    made = device_views._translated(images, tables)
    assert made[1, 2, 0, :2].tolist() == [205, 4]
    assert torch.equal(device_views._gathered(images, tables), made)


def crop(images: Tensor, flips: float, *box: int) -> Tensor:
    return tv.resized_crop(images.flip(3) if flips else images, *box, [HEIGHT, WIDTH], antialias=True)


def blur(images: Tensor, sigma: float) -> Tensor:
    return tv.gaussian_blur(images, [blur_taps(HEIGHT, WIDTH)] * 2, [sigma, sigma])


SIMCLRS: list[tuple[str, Callable[..., Tensor], tuple[float, ...]]] = [
    *(
        ("crop", crop, box)
        for box in [(0, 0, 0, HEIGHT, WIDTH), (1, 3, 7, 11, 20), (0, 32, 37, 1, 1), (1, 5, 0, 28, 3)]
    ),
    *(("brightness", tv.adjust_brightness, (factor,)) for factor in (0.5, 0.93, 1.5)),
    *(("contrast", tv.adjust_contrast, (factor,)) for factor in (0.0, 0.51, 1.49)),
    *(("saturation", tv.adjust_saturation, (factor,)) for factor in (0.0, 0.51, 1.49)),
    *(("hue", tv.adjust_hue, (share,)) for share in (-0.1, 0.0, 0.03, 0.5)),
    ("grey", lambda images: tv.rgb_to_grayscale(images, 3), ()),
    *(("blur", blur, (sigma,)) for sigma in (0.1, 0.7, 2.0)),
]


@pytest.mark.parametrize(("name", "theirs", "numbers"), SIMCLRS)
def test_an_operation_of_simclr_is_torchvisions(name: str, theirs: Callable[..., Tensor], numbers: tuple[float, ...]):
    """One level apart in a few of a thousand values, where a sum of floats ends at a whole number."""
    images = pictures()
    apart = (changed(images, (name, numbers)).int() - theirs(images, *numbers).int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.004


# --- views ------------------------------------------------------------------------------------------------------------


@every_view
def test_views_by_the_batch_are_those_made_one_by_one_under_the_same_seeds(view: DeviceViews):
    """Equal draws: another flip, box, order or magnitude would show. AutoAugment's are equal to the last bit."""
    images, seeds = pictures().repeat(30, 1, 1, 1), [2**62 + row for row in range(210)]
    one_by_one = torch.cat([view.views(image[None], [seed]) for image, seed in zip(images, seeds, strict=True)])
    apart = (view.drawn((HEIGHT, WIDTH), seeds).applied(images).int() - one_by_one.int()).abs()
    assert apart.max() <= (1 if isinstance(view, SimCLRView) else 0)
    assert apart.float().mean() < 0.001


@every_view
def test_a_view_does_not_depend_on_the_others_of_the_batch(view: DeviceViews, monkeypatch: pytest.MonkeyPatch):
    images = pictures()
    together = view.drawn((HEIGHT, WIDTH), range(7)).applied(images)
    for row in range(7):
        assert torch.equal(view.drawn((HEIGHT, WIDTH), [row]).applied(images[row : row + 1])[0], together[row])
    for piece_bytes in (0, 2 * 3 * HEIGHT * WIDTH):  # one image at a time, two
        monkeypatch.setattr(device_views, "CPU_PIECE_BYTES", piece_bytes)
        assert torch.equal(view.drawn((HEIGHT, WIDTH), range(7)).applied(images), together)


@every_view
def test_drawing_leaves_the_global_stream_and_applying_the_images_as_they_are(view: DeviceViews):
    torch.manual_seed(1)
    before, images = torch.random.get_rng_state(), pictures()
    view.drawn((HEIGHT, WIDTH), range(7)).applied(images)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(images, pictures())


@every_view
def test_on_a_gpu_all_tensors_lie_there_and_nothing_waits_for_them(view: DeviceViews):
    """Tensors without values, said to be CUDA's: one of the CPU among them, or a look at a value, would raise."""
    drawn = view.drawn((HEIGHT, WIDTH), range(300))
    with FakeTensorMode():
        there = drawn.each(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
        made = there.applied(torch.empty((300, 3, HEIGHT, WIDTH), dtype=torch.uint8, device="cuda"))
    assert (made.device.type, made.shape, made.dtype) == ("cuda", (300, 3, HEIGHT, WIDTH), torch.uint8)


@every_view
def test_of_no_images_there_are_no_views(view: DeviceViews):
    drawn = view.drawn((HEIGHT, WIDTH), [])
    assert drawn.applied(pictures()[:0]).shape == (0, 3, HEIGHT, WIDTH)


@every_view
def test_what_is_drawn_is_little_beside_the_images(view: DeviceViews):
    """It goes from process to process, and to the device: less than 500 bytes an image of 150,528."""
    assert len(pickle.dumps(view.drawn((224, 224), range(64)))) < 500 * 64


def test_pars_views_are_made_on_the_cpu():
    assert not isinstance(PARView(), DeviceViews)
    assert all(isinstance(view, DeviceViews) for view in VIEWS)
