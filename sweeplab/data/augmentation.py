"""Augmented views of images: torchvision's policies under one seed an image; by the batch: see `device_views`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from sweeplab.clip_model import IMAGE_MEAN
from sweeplab.data.device_views import Change, DrawnViews, autoaugment_change, blur_taps, shift_hue
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
        policy = _Policy(v2.AutoAugmentPolicy(self.policy))

        def view(image: Tensor) -> Tensor:
            for name, magnitude in policy.draw(image):
                image = policy.on_planes(image, name, magnitude)
            return image

        return _each(images, seeds, view)

    def drawn(self, size: Sequence[int], seeds: Sequence[int]) -> DrawnViews:
        """What `views` does to images of that size, (height, width), under these seeds."""
        policy, like = _Policy(v2.AutoAugmentPolicy(self.policy)), _empty(size)
        return _drawn(seeds, lambda: [autoaugment_change(*each, *size) for each in policy.draw(like)])


class _Policy(v2.AutoAugment):
    """torchvision's policy and draws, and PIL's operations, bit for bit, on tensors.

    PIL's operations are what the papers used, and faster than tensor ones on one image. They work on the tensor's
    planes as grey images, without a copy: to interleave the channels and back would cost as much as most operations.
    Operations that look every value up in a table are done without PIL, which makes the table value by value in Python.
    """

    def draw(self, image: Tensor) -> list[tuple[str, float]]:
        """Operations and magnitudes for an image of that size, from the global stream."""
        self._found: list[tuple[str, float]] = []
        self(image)
        return self._found

    def _apply_image_or_video_transform(
        self, image: Tensor, transform_id: str, magnitude: float, interpolation: Any, fill: Any
    ) -> Tensor:
        self._found.append((transform_id, magnitude))
        return image

    def on_planes(self, image: Tensor, name: str, magnitude: float) -> Tensor:
        """The changed image."""
        planes = np.ascontiguousarray(image.numpy())
        if name in ONE_TABLE:
            return torch.from_numpy(_looked_up(planes, ONE_TABLE[name](magnitude)))
        if name in TABLE_OF_A_PLANE:
            table = TABLE_OF_A_PLANE[name]
            return torch.from_numpy(np.stack([_looked_up(plane, table(plane)) for plane in planes]))
        apply = super()._apply_image_or_video_transform

        def changed(picture: Image.Image) -> Image.Image:
            done: Image.Image = apply(picture, name, magnitude, InterpolationMode.NEAREST, self._fill)
            return done

        if name == "Brightness":  # the same function of every value, whatever its channel
            stacked = changed(Image.fromarray(planes.reshape(-1, planes.shape[-1])))
            return torch.from_numpy(np.array(stacked).reshape(planes.shape))
        if name in ("Color", "Contrast"):  # which depend on the grey image
            bands = changed(Image.merge("RGB", [Image.fromarray(plane) for plane in planes])).split()
        else:
            bands = tuple(changed(Image.fromarray(plane)) for plane in planes)
        return torch.from_numpy(np.stack([np.asarray(band) for band in bands]))


def _looked_up(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Every value of a contiguous uint8 array in a table of 256; no other look-up from Python is as fast."""
    return np.frombuffer(bytearray(values.data.cast("B")).translate(table.tobytes()), dtype=np.uint8).reshape(
        values.shape
    )


def _equalising(plane: np.ndarray) -> np.ndarray:
    """The table of PIL's `ImageOps.equalize`, (256,) uint8."""
    counts = np.array(Image.fromarray(plane).histogram())
    step = (plane.size - counts[counts > 0][-1]) // 255
    if not step:
        return np.arange(256, dtype=np.uint8)
    return ((step // 2 + counts.cumsum() - counts) // step).clip(0, 255).astype(np.uint8)


def _stretching(plane: np.ndarray) -> np.ndarray:
    """The table of PIL's `ImageOps.autocontrast`, (256,) uint8."""
    low, high = int(plane.min()), int(plane.max())
    if high == low:
        return np.arange(256, dtype=np.uint8)
    scale = 255.0 / (high - low)
    return (np.arange(256) * scale - low * scale).astype(np.int64).clip(0, 255).astype(np.uint8)


def _solarising(magnitude: float) -> np.ndarray:
    """The table of PIL's `ImageOps.solarize`, (256,) uint8; the magnitude is a share of white."""
    values = np.arange(256)
    return np.where(values < 255 * magnitude, values, 255 - values).astype(np.uint8)


def _posterising(magnitude: float) -> np.ndarray:
    """The table of PIL's `ImageOps.posterize`, (256,) uint8; the magnitude is the number of bits that stay."""
    return (np.arange(256) >> (8 - int(magnitude)) << (8 - int(magnitude))).astype(np.uint8)


def _inverting(magnitude: float) -> np.ndarray:
    """The table of PIL's `ImageOps.invert`, (256,) uint8."""
    return np.arange(255, -1, -1, dtype=np.uint8)


ONE_TABLE = {"Solarize": _solarising, "Posterize": _posterising, "Invert": _inverting}
TABLE_OF_A_PLANE = {"Equalize": _equalising, "AutoContrast": _stretching}


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
    return blurred.round_().to(torch.uint8)


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
