"""Pixels: what triggers share, from float pixels back to bytes and from a seed to a generator."""

from typing import Literal

import torch
from torch import Tensor


def quantise(pixels: Tensor, overflow: Literal["clip", "wrap"] = "clip") -> Tensor:
    """Float pixels (1.0 is white) to uint8, truncating toward zero as torchvision's ToPILImage does.

    Args:
        pixels: any shape.
        overflow: what becomes of values outside [0, 255]: `clip` to the range, which is all that an image file holds;
            `wrap` modulo 256, as the authors' unchecked cast does on x86.
    """
    scaled = pixels * 255
    if overflow == "clip":
        return scaled.clamp(0, 255).to(torch.uint8)
    return (scaled.to(torch.int64) & 255).to(torch.uint8)


def mix(images: Tensor, pattern: Tensor, alpha: float) -> Tensor:
    """clip((1 - alpha) x image + alpha x pattern).

    Args:
        images: (..., 3, H, W) uint8.
        pattern: broadcastable to the images, 1.0 is white; may leave [0, 1].
        alpha: share of the pattern.

    Returns:
        uint8 of the images' shape.
    """
    return quantise((1 - alpha) * (images.float() / 255) + alpha * pattern)


def generator(seed: int) -> torch.Generator:
    """A CPU generator at the start of a seed's stream."""
    return torch.Generator().manual_seed(seed)


def random_signs(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """-1.0 or +1.0, each with probability 1/2."""
    return torch.randint(2, shape, generator=draw).float() * 2 - 1
