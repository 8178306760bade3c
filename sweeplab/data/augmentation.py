"""Augmented views of images: torchvision's policies under one seed an image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from sweeplab.clip_model import IMAGE_MEAN
from sweeplab.specs import AnySpec, Spec, one_of


class AutoAugmentView(Spec):
    """AutoAugment's ImageNet policy on the cropped image (CleanCLIP, Sec. 3: the in-modal views)."""

    kind: Literal["autoaugment"] = "autoaugment"
    policy: Literal["imagenet", "cifar10", "svhn"] = Field(default="imagenet")

    def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """One augmented copy of each image.

        Args:
            images: (B, 3, H, W) uint8, on the CPU; left as they are.
            seeds: B seeds; a view depends on its own seed alone, and the global random stream does not move.

        Returns:
            (B, 3, H, W) uint8.
        """
        transform = v2.AutoAugment(v2.AutoAugmentPolicy(self.policy), interpolation=InterpolationMode.NEAREST)
        # PIL's operations are what the papers used, and faster than tensor ones on one image.
        return _each(images, seeds, lambda image: tv.pil_to_tensor(transform(tv.to_pil_image(image))))


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
        size = [int(side) for side in images.shape[-2:]]
        kernel = max(3, 2 * round((21 / 224 * min(size) - 1) / 2) + 1)
        colours = v2.ColorJitter(self.jitter, self.jitter, self.jitter, min(0.5, self.jitter / 5))
        transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(0.5),
                v2.RandomResizedCrop(
                    size, scale=(self.smallest_crop, 1.0), interpolation=InterpolationMode.BILINEAR, antialias=True
                ),
                v2.RandomApply([colours], 0.8),
                v2.RandomGrayscale(0.2),
                v2.GaussianBlur(kernel, (0.1, 2.0)),
            ]
        )
        return _each(images, seeds, transform)


class PARView(Spec):
    """PAR's light augmentation: brightening noise and one small erased square, each with probability 1/2.

    Noise is N(0, noise^2) cut to [0, 1], so it only brightens, and the sum is cut to [0, 1] again. The square covers
    0.5 to 1 % of the image and takes CLIP's mean colour, 0 after normalisation. (PerturbAndRecover, `data.py`.)
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


def _each(images: Tensor, seeds: Sequence[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change every image under its own seed; torchvision draws from the global stream, so it is set and restored."""
    rows = []
    with _global_stream_kept():
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            rows.append(change(image))
    return torch.stack(rows) if rows else images.clone()


VIEWS = (AutoAugmentView, SimCLRView, PARView)
"""Makers of augmented images."""
ViewField = Annotated[AnySpec, one_of(lambda: VIEWS, "views", "augmentation")]
"""A spec field that holds a maker of augmented images: a member of VIEWS, or a user's own Spec with `views`."""
