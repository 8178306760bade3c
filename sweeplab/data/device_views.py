"""Augmented views by the batch: drawn on the CPU row by row, pixels changed many at a time, there or on a GPU.

AutoAugment's operations are PIL's in integers, or in floats rounded as PIL does; SimCLR's are torchvision's on uint8.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

Change = tuple[str, tuple[float, ...]]
"""An operation by its name in OPERATIONS, and its numbers."""
NUMBERS = 6
"""Of an operation, at most."""
PIECE = 128
"""Images that a GPU changes at a time: indices of a look-up take eight times the memory of their images."""
CPU_PIECE_BYTES = 2**19
"""Of images that a CPU changes at a time (at least one), so that what lies between stays in its cache."""


@dataclass(frozen=True)
class DrawnViews:
    """What is to be done to the images of a batch; a few hundred bytes an image, which travel with them."""

    steps: tuple[tuple[str, int], ...]
    """In order: the name of an operation, and how many images it changes."""
    rows: Tensor
    """(T,) int64, which images, step after step."""
    numbers: Tensor
    """(T, NUMBERS) float64, of the operations; those that have fewer leave the last ones at 0."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[Change | None]]) -> "DrawnViews":
        """Bring together what many images have in common.

        Args:
            rows: each image's changes in order; None keeps a place, so that what comes after it is done together.
        """
        found: dict[tuple[int, str], list[tuple[int, tuple[float, ...]]]] = defaultdict(list)
        for row, changes in enumerate(rows):
            for place, change in enumerate(changes):
                if change is not None:
                    found[place, change[0]].append((row, change[1]))
        steps = sorted(found)
        changed = [each for step in steps for each in found[step]]
        table = np.zeros((len(changed), NUMBERS))
        for line, (_, numbers) in zip(table, changed, strict=True):
            line[: len(numbers)] = numbers
        index = torch.tensor([row for row, _ in changed], dtype=torch.int64)
        return cls(tuple((step[1], len(found[step])) for step in steps), index, torch.from_numpy(table))

    def each(self, change: Callable[[Tensor], Tensor]) -> "DrawnViews":
        """With its tensors elsewhere."""
        return DrawnViews(self.steps, change(self.rows), change(self.numbers))

    def applied(self, images: Tensor) -> Tensor:
        """The views; nothing waits for the device.

        Args:
            images: (B, 3, H, W) uint8, on the device of the tensors; left as they are.

        Returns:
            (B, 3, H, W) uint8.
        """
        made, begin = images.clone(memory_format=torch.contiguous_format), 0
        piece = max(1, CPU_PIECE_BYTES // max(1, math.prod(images.shape[1:]))) if images.is_cpu else PIECE
        for name, count in self.steps:
            ends = slice(begin, begin + count)
            for rows, numbers in zip(self.rows[ends].split(piece), self.numbers[ends].split(piece), strict=True):
                changed = OPERATIONS[name](made.index_select(0, rows), numbers)
                if images.is_cpu:  # torch would move value by value
                    made.numpy()[rows.numpy()] = changed.numpy()
                else:
                    made[rows] = changed
            begin += count
        return made


# --- AutoAugment's ----------------------------------------------------------------------------------------------------


def autoaugment_change(name: str, magnitude: float, height: int, width: int) -> Change:
    """One of torchvision's operations, as it is done here.

    Args:
        name: torchvision's.
        magnitude: as torchvision draws it: signed, in pixels, degrees or shares as the operation has it.
        height: of the images, pixels.
        width: of the images, pixels.
    """
    match name:
        case "ShearX":
            return "Affine", _fixed_point(1, magnitude, 0, 0, 1, 0)
        case "ShearY":
            return "Affine", _fixed_point(1, 0, 0, magnitude, 1, 0)
        case "TranslateX":
            return "Affine", _fixed_point(1, 0, -int(magnitude), 0, 1, 0)
        case "TranslateY":
            return "Affine", _fixed_point(1, 0, 0, 0, 1, -int(magnitude))
        case "Rotate":  # about the middle
            cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
            x, y = width / 2, height / 2
            return "Affine", _fixed_point(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return name, (1 + magnitude,)
        case "Posterize":  # the bits that stay
            return name, (256 - (1 << (8 - int(magnitude))),)
        case "Solarize":
            return name, (math.ceil(255 * magnitude),)
        case "Invert":
            return "Solarize", (0,)
        case _:
            return name, ()


def _fixed_point(*matrix: float) -> tuple[float, ...]:
    """PIL's 16.16 numbers of a matrix (a, b, c, d, e, f) from the view's pixels to the image's, taken at their
    middles."""
    a, b, c, d, e, f = matrix
    return tuple(math.floor(65_536 * n + 0.5) for n in (a, b, c + a / 2 + b / 2, d, e, f + d / 2 + e / 2))


def _moved(images: Tensor, numbers: Tensor) -> Tensor:
    """Every pixel from the one that it comes from, black from outside: PIL's affine transform, nearest neighbour."""
    height, width = images.shape[-2:]
    a, b, c, d, e, f = (number[:, None, None] for number in numbers.int().unbind(1))
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    # What comes from outside is taken from a black margin.
    across = (a * x + c + b * y).bitwise_right_shift_(16).clamp_(-1, width)
    down = (d * x + f + e * y).bitwise_right_shift_(16).clamp_(-1, height)
    place = down.mul_(width + 2).add_(across).add_(width + 3).flatten(1).long()
    return F.pad(images, (1, 1, 1, 1)).flatten(2).gather(2, place[:, None].expand(-1, 3, -1)).view_as(images)


def _number(numbers: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
    """(n, 1, 1, 1), the only one of an operation."""
    return numbers[:, :1, None, None].to(kind)


def to_bytes(values: Tensor) -> Tensor:
    """Cut to [0, 255] and rounded down, in place; a CPU turns floats into bytes in a third of the time by int32."""
    return values.clamp_(0, 255).int().to(torch.uint8)


def _mixed(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """PIL's blend: `other` at factor 0, the image at 1, and beyond."""
    return to_bytes(images.float().sub_(other).mul_(factor).add_(other))


def _grey(images: Tensor) -> Tensor:
    """PIL's grey image, (n, 1, H, W) int32."""
    red, green, blue = images.int().unbind(1)
    return (19_595 * red).add_(38_470 * green).add_(7_471 * blue).add_(32_768).bitwise_right_shift_(16)[:, None]


def _brightened(images: Tensor, numbers: Tensor) -> Tensor:
    """PIL's and torchvision's."""
    return to_bytes(images.float().mul_(_number(numbers)))


def _coloured(images: Tensor, numbers: Tensor) -> Tensor:
    return _mixed(_grey(images).float(), images, _number(numbers))


def _contrasted(images: Tensor, numbers: Tensor) -> Tensor:
    size = images.shape[-2] * images.shape[-1]
    mean = (2 * _grey(images).sum(dim=(2, 3), keepdim=True) + size) // (2 * size)
    return _mixed(mean.float(), images, _number(numbers))


def _sharpened(images: Tensor, numbers: Tensor) -> Tensor:
    """Away from, or towards, the mean of 3 x 3 pixels of which the middle counts five times; the margin stays."""
    smooth = images.int()
    rows = smooth[..., :-2, :] + smooth[..., 1:-1, :] + smooth[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * smooth[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = _thirteenth(total)
    return _mixed(smooth.float(), images, _number(numbers))


def _thirteenth(total: Tensor) -> Tensor:
    """total / 13 rounded, half a level up, of int32 from 0 to 13 * 255: a CPU takes long to divide."""
    return (2 * total + 13).mul_(10_083).bitwise_right_shift_(18)  # 2**18 / 26 = 10,082.5


def _posterised(images: Tensor, numbers: Tensor) -> Tensor:
    return images & _number(numbers, torch.uint8)


def _solarised(images: Tensor, numbers: Tensor) -> Tensor:
    is_bright = images >= _number(numbers, torch.uint8)
    return is_bright.to(torch.uint8).mul_(255).bitwise_xor_(images)


def _looked_up(images: Tensor, tables: Tensor) -> Tensor:
    """Every value in its plane's table, (n, 3, 256)."""
    return (_translated if images.is_cpu else _gathered)(images, tables.to(torch.uint8))


def _gathered(images: Tensor, tables: Tensor) -> Tensor:
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _translated(images: Tensor, tables: Tensor) -> Tensor:
    """The same; no other look-up on a CPU is as fast as that of Python's byte arrays."""
    planes = zip(images.flatten(0, 1).numpy(), tables.flatten(0, 1).numpy(), strict=True)
    found = bytearray().join([bytearray(plane).translate(table.tobytes()) for plane, table in planes])
    return torch.frombuffer(found, dtype=torch.uint8).view_as(images)


def _equalised(images: Tensor, numbers: Tensor) -> Tensor:
    """PIL's `ImageOps.equalize`."""
    planes = images.flatten(2)
    counts = torch.zeros((*planes.shape[:2], 256), dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, planes.long(), torch.ones_like(counts[..., :1]).expand_as(planes))
    step = (planes.shape[2] - counts.gather(2, planes.amax(2, keepdim=True).long())) // 255
    tables = ((step // 2 + counts.cumsum(2) - counts) // step.clamp_min(1)).clamp(0, 255)
    return _looked_up(images, torch.where(step > 0, tables, torch.arange(256, device=images.device)))


def _stretched(images: Tensor, numbers: Tensor) -> Tensor:
    """PIL's `ImageOps.autocontrast`."""
    low, high = (edge(images.flatten(2), 2, keepdim=True).double() for edge in (torch.amin, torch.amax))
    values = torch.arange(256, device=images.device)
    scale = torch.full_like(low, 255) / (high - low).clamp_min(1)  # 255 / tensor is rounded twice
    return _looked_up(images, torch.where(high > low, (values * scale - low * scale).clamp(0, 255), values))


# --- SimCLR's ---------------------------------------------------------------------------------------------------------


def _cropped(images: Tensor, numbers: Tensor) -> Tensor:
    """A part, stretched to the whole: torchvision's `resized_crop` after a flip, bilinear in two passes of bytes."""
    is_flipped, top, left, height, width = numbers[:, :5].T[..., None]
    wide = _spread(images, left, width, mirrored=is_flipped > 0)
    return _spread(wide.mT, top, height).mT


def _spread(images: Tensor, begin: Tensor, length: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """So many columns from a first one, (n, 1) each, over the whole width; of the mirrored image where it says so."""
    width = images.shape[3]
    at = (torch.arange(width, dtype=torch.float64, device=images.device) + 0.5) * (length / width) - 0.5
    at = torch.minimum(at.clamp_min(0), length - 1)
    first = at.floor()
    # torch's kernel for bytes multiplies by weights of 14 bits.
    weights = [(16_384 * weight + 0.5).int()[:, None, None] for weight in (1 - (at - first), at - first)]
    total: Tensor | int = 8_192
    for place, weight in zip((first, torch.minimum(first + 1, length - 1)), weights, strict=True):
        column = (begin + place).long()
        column = column if mirrored is None else torch.where(mirrored, width - 1 - column, column)
        total = total + images.gather(3, column[:, None, None].expand(images.shape)) * weight
    return (total >> 14).to(torch.uint8)  # type: ignore[union-attr]


def _blended(images: Tensor, other: Tensor, ratio: Tensor) -> Tensor:
    """torchvision's blend: the image at ratio 1, `other` at 0, and beyond."""
    return (images * ratio).addcmul_(other, 1 - ratio).clamp_(0, 255).to(torch.uint8)


def _jittered_contrast(images: Tensor, numbers: Tensor) -> Tensor:
    mean = tv.rgb_to_grayscale(images.float()).floor_().mean(dim=(1, 2, 3), keepdim=True)
    return _blended(images, mean, _number(numbers))


def _jittered_saturation(images: Tensor, numbers: Tensor) -> Tensor:
    return _blended(images, tv.rgb_to_grayscale(images.float()).floor_(), _number(numbers))


def shift_hue(images: Tensor, share: float | Tensor) -> Tensor:
    """Turn every colour by a share of the colour circle; lightness and saturation (of HSV) stay.

    Equals torchvision's `adjust_hue`, which goes to HSV and back: a channel lies below the largest one by the range of
    the three, times a function of the hue alone that is moved by a third of the circle from channel to channel.

    Args:
        images: (..., 3, H, W) uint8.
        share: -0.5 to 0.5; one of all, or (n, 1, 1) of the images (n, 3, H, W).

    Returns:
        (..., 3, H, W) uint8.
    """
    red, green, blue = images.float().unbind(-3)
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    spread = high - low
    divisor = spread.clamp_min(1)  # a grey pixel has no hue, and none is seen
    sixths = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    ).add_(6 * share)
    turned = []
    for offset in (5, 3, 1):
        along = (sixths + offset).remainder_(6)
        lacking = torch.minimum(along, 4 - along).clamp_(0, 1).mul_(spread)
        # torchvision turns [0, 1] into bytes by 255.999, rounded down.
        turned.append(to_bytes((high - lacking).mul_(255.999 / 255)))
    return torch.stack(turned, dim=-3)


def blur_taps(height: int, width: int) -> int:
    """Of SimCLR's blur: the odd number nearest to 21 of 224 pixels, at least 3."""
    return max(3, 2 * round((21 / 224 * min(height, width) - 1) / 2) + 1)


def _blurred(images: Tensor, numbers: Tensor) -> Tensor:
    """torchvision's `gaussian_blur`, one side after the other."""
    height, width = images.shape[-2:]
    half = blur_taps(height, width) // 2
    distances = torch.arange(half + 1, dtype=torch.float64, device=images.device)
    weights = torch.exp(-0.5 * (distances / numbers[:, :1]) ** 2)
    weights = (weights / (2 * weights.sum(1, keepdim=True) - 1)).float()[:, :, None, None, None]
    blurred = images.float()
    for dim, size, margins in ((2, height, (0, 0, half, half)), (3, width, (half, half, 0, 0))):
        padded = F.pad(blurred, margins, mode="reflect")
        blurred = padded.narrow(dim, half, size) * weights[:, 0]
        for distance in range(1, half + 1):
            both = padded.narrow(dim, half - distance, size) + padded.narrow(dim, half + distance, size)
            blurred.addcmul_(both, weights[:, distance])
    return blurred.round_().to(torch.uint8)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Affine": _moved,
    "Brightness": _brightened,
    "Color": _coloured,
    "Contrast": _contrasted,
    "Sharpness": _sharpened,
    "Posterize": _posterised,
    "Solarize": _solarised,
    "Equalize": _equalised,
    "AutoContrast": _stretched,
    "crop": _cropped,
    "brightness": _brightened,
    "contrast": _jittered_contrast,
    "saturation": _jittered_saturation,
    "hue": lambda images, numbers: shift_hue(images, _number(numbers)[:, 0]),
    "grey": lambda images, numbers: tv.rgb_to_grayscale(images, num_output_channels=3),
    "blur": _blurred,
}
"""Of images (n, 3, H, W) uint8 and their numbers (n, NUMBERS) to new images, by name: AutoAugment's, then SimCLR's."""
