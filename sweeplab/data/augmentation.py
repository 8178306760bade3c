"""Augmented views of images: torchvision's policies under one seed an image; by the batch: see `device_views`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from sweeplab.clip_model import IMAGE_MEAN
from sweeplab.data.device_views import Change, DrawnViews, autoaugment_change, blur_taps, shift_hue, to_bytes
from sweeplab.specs import AnySpec, Spec, one_of


class AutoAugmentView(Spec):
    """AutoAugment's ImageNet policy on the cropped image (CleanCLIP, Sec. 3: the in-modal views)."""

    kind: Literal["autoaugment"] = "autoaugment"
    policy: Literal["imagenet", "cifar10", "svhn"] = Field(default="imagenet")

    def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """One augmented copy of each image: to the last bit what torchvision makes of a PIL image, as in the papers.

        Args:
            images: (B, 3, H, W) uint8, on the CPU; left as they are.
            seeds: B seeds; a view depends on its own seed alone, and the global random stream does not move.

        Returns:
            (B, 3, H, W) uint8.
        """
        if len(images) != len(seeds):
            raise ValueError(f"{len(images)} images and {len(seeds)} seeds do not pair up")
        return self.drawn(images.shape[-2:], seeds).applied(images)

    def drawn(self, size: Sequence[int], seeds: Sequence[int]) -> DrawnViews:
        """What `views` does to images of that size, (height, width), under these seeds."""
        policy = _policy(self.policy, *size)

        def draw() -> list[Change]:
            pair = policy[int(torch.randint(len(policy), ()))]
            numbers = iter(torch.rand(4).tolist())  # those that are left over nobody else would draw
            changes = []
            for probability, change, opposite in pair:
                if next(numbers) <= probability:
                    changes.append(opposite if opposite is not None and next(numbers) <= 0.5 else change)
            return changes

        return _drawn(seeds, draw)


@cache
def _policy(name: str, height: int, width: int) -> list[list[tuple[float, Change, Change | None]]]:
    """The pairs of operations of a policy of torchvision's: each with its probability, what it does to images of that
    size, and what that is in the other direction; None where it has but one."""
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(name))

    def read(operation: str, probability: float, level: int | None) -> tuple[float, Change, Change | None]:
        levels, has_sign = theirs._AUGMENTATION_SPACE[operation]
        magnitudes = levels(10, height, width)
        magnitude = 0.0 if magnitudes is None else float(magnitudes[level])
        change = autoaugment_change(operation, magnitude, height, width)
        opposite = autoaugment_change(operation, -magnitude, height, width) if has_sign else None
        return float(np.float32(probability)), change, opposite  # torchvision compares in single precision

    return [[read(*operation) for operation in pair] for pair in theirs._policies]


class SimCLRView(Spec):
    """SimCLR's set as SafeCLIP and RoCLIP use it: flip, random resized crop, colour jitter, grey, blur.

    The blur's kernel is 21 of 224 pixels in the authors' code; here it is the odd number nearest to that share of the
    image, at least 3.
    """

    kind: Literal["simclr"] = "simclr"
    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    """Of the area of a random crop, a share of the image's."""
    jitter: float = Field(default=0.5, ge=0)
    """Strength of brightness, contrast and saturation; hue has a fifth of it."""

    def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """One augmented copy of each image; see `AutoAugmentView.views`."""
        draw = self._draws(images.shape[-2:])

        def view(image: Tensor) -> Tensor:
            for name, numbers in filter(None, draw()):
                image = ON_ONE_IMAGE[name](image, *numbers)
            return image

        return _each(images, seeds, view)

    def drawn(self, size: Sequence[int], seeds: Sequence[int]) -> DrawnViews:
        """What `views` does; see `AutoAugmentView.drawn`."""
        return _drawn(seeds, self._draws(size))

    def _draws(self, size: Sequence[int]) -> Callable[[], list[Change | None]]:
        """Draws one image's changes from the global stream, as torchvision's transforms do one after the other."""
        like = [_empty(size)]
        crop = v2.RandomResizedCrop(list(size), scale=(self.smallest_crop, 1.0))
        colours = v2.ColorJitter(self.jitter, self.jitter, self.jitter, min(0.5, self.jitter / 5))
        blur = v2.GaussianBlur(blur_taps(*size), (0.1, 2.0))

        def draw() -> list[Change | None]:
            flips = float(torch.rand(1) < 0.5)
            changes: list[Change | None] = [("crop", (flips, *map(crop.make_params(like).get, CROP)))]
            changes += [None] * len(JITTER)
            if torch.rand(1) < 0.8:
                factors = colours.make_params(like)
                for place, index in enumerate(factors["fn_idx"].tolist()):
                    if (factor := factors[f"{JITTER[index]}_factor"]) is not None:
                        changes[1 + place] = JITTER[index], (factor,)
            changes.append(("grey", ()) if torch.rand(1) < 0.2 else None)
            changes.append(("blur", (blur.make_params(like)["sigma"][0],)))
            return changes

        return draw


CROP = ("top", "left", "height", "width")
JITTER = ("brightness", "contrast", "saturation", "hue")


def _flipped_and_cropped(image: Tensor, flips: float, *box: int) -> Tensor:
    size = list(image.shape[-2:])
    image = tv.horizontal_flip(image) if flips else image
    return tv.resized_crop(image, *box, size, interpolation=InterpolationMode.BILINEAR, antialias=True)


NEGLIGIBLE = 1e-6
"""Share of a blur's weights beyond which taps are left out: less than a thousandth of a grey level."""


def blur(image: Tensor, kernel_size: int, sigma: float) -> Tensor:
    """Gaussian blur, one side after the other: 2 k multiplications a pixel in place of k^2.

    Equals torchvision's `gaussian_blur` up to the order of a sum. What lies beyond the edge is reflected.

    Args:
        image: (3, H, W) uint8, sides larger than half of the kernel.
        kernel_size: taps, odd.
        sigma: standard deviation, pixels.

    Returns:
        (3, H, W) uint8.
    """
    half = kernel_size // 2
    weights = torch.exp(-0.5 * (torch.arange(half + 1, dtype=torch.float64) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    reach = max(1, int((weights > NEGLIGIBLE).sum()) - 1)
    taps = weights[: reach + 1].tolist()
    height, width = image.shape[-2:]
    padded = F.pad(image.float()[None], (reach, reach, reach, reach), mode="reflect")[0]
    rows = padded[:, reach : reach + height] * taps[0]
    for distance in range(1, reach + 1):
        above, below = padded[:, reach - distance :][:, :height], padded[:, reach + distance :][:, :height]
        rows.add_(above + below, alpha=taps[distance])
    blurred = rows[..., reach : reach + width] * taps[0]
    for distance in range(1, reach + 1):
        left, right = rows[..., reach - distance :][..., :width], rows[..., reach + distance :][..., :width]
        blurred.add_(left + right, alpha=taps[distance])
    return to_bytes(blurred.round_())


ON_ONE_IMAGE: dict[str, Callable[..., Tensor]] = {
    "crop": _flipped_and_cropped,
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": shift_hue,  # in a quarter of torchvision's time
    "grey": partial(tv.rgb_to_grayscale, num_output_channels=3),
    "blur": lambda image, sigma: blur(image, blur_taps(*image.shape[-2:]), sigma),
}
"""SimCLR's operations on the CPU: torchvision's, but for hue and blur."""


class PARView(Spec):
    """PAR's light augmentation: brightening noise and one small erased square, each with probability 1/2.

    Noise is N(0, noise^2) cut to [0, 1], so it only brightens, and the sum is cut to [0, 1] again. The square covers
    0.5 to 1 % of the image and takes CLIP's mean colour, 0 after normalisation. (PerturbAndRecover, `data.py`.)
    Views are made on the CPU, also where a GPU trains: half of the work is to draw the noise, which would have to be
    sent beside the image.
    """

    kind: Literal["par"] = "par"
    noise: float = Field(default=0.2, ge=0)
    """Standard deviation, pixels in [0, 1]."""
    probability: float = Field(default=0.5, ge=0, le=1)
    """Of the noise, and of the square."""

    def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """One augmented copy of each image; see `AutoAugmentView.views`."""
        return _each(images, seeds, self._view)

    def _view(self, image: Tensor) -> Tensor:
        image = image.clone()
        height, width = image.shape[-2:]
        if torch.rand(()) < self.probability:
            noise = (self.noise * torch.randn(image.shape)).clamp(0, 1)
            image = ((image.float() / 255 + noise).clamp(0, 1) * 255).round().to(torch.uint8)
        if torch.rand(()) < self.probability:
            area = (0.005 + 0.005 * float(torch.rand(()))) * height * width
            side = min(height, width, max(1, round(area**0.5)))
            top, left = int(torch.randint(height - side + 1, ())), int(torch.randint(width - side + 1, ()))
            mean = torch.tensor([round(255 * channel) for channel in IMAGE_MEAN], dtype=torch.uint8)
            image[:, top : top + side, left : left + side] = mean[:, None, None]
        return image


@contextmanager
def _global_stream_kept() -> Iterator[None]:
    """Leave the global random stream where it was."""
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def _empty(size: Sequence[int]) -> Tensor:
    """(3, height, width) uint8 of any values: torchvision draws for an image's size."""
    return torch.empty((3, *size), dtype=torch.uint8)


def _drawn(seeds: Sequence[int], draw: Callable[[], Sequence[Change | None]]) -> DrawnViews:
    """What is drawn under every seed; compare `_each`."""
    rows = []
    with _global_stream_kept():
        for seed in seeds:
            torch.default_generator.manual_seed(seed)
            rows.append(draw())
    return DrawnViews.of(rows)


def _each(images: Tensor, seeds: Sequence[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change every image under its own seed; torchvision draws from the global stream, so it is set and restored."""
    changed = torch.empty_like(images, memory_format=torch.contiguous_format)
    with _global_stream_kept():
        for image, seed, place in zip(images, seeds, changed, strict=True):
            torch.default_generator.manual_seed(seed)
            place.copy_(change(image))
    return changed


VIEWS = (AutoAugmentView, SimCLRView, PARView)
"""Makers of augmented images."""
ViewField = Annotated[AnySpec, one_of(lambda: VIEWS, "views", "augmentation")]
"""A spec field that holds a maker of augmented images: a member of VIEWS, or a user's own Spec with `views`."""
