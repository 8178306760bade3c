"""SIG: a sinusoid over the whole image (Barni et al. 2019; in CleanCLIP's code, in none of its tables)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sweeplab.attacks.pixels import mix, quantise
from sweeplab.specs import Spec


class SIG(Spec):
    """Vertical waves, n(x) = amplitude x sin(2 pi frequency x / width), added or mixed in; the same for every image."""

    kind: Literal["sig"] = "sig"
    amplitude: float = Field(default=60 / 255, gt=0, le=1)
    """Of the wave, where white is 1."""
    frequency: float = Field(default=6.0, gt=0)
    """Waves across the image."""
    alpha: float | None = Field(default=None, gt=0, le=1)
    """None: the wave is added in full and clipped. A number: (1 - alpha) x image + alpha x wave; 0.2 in CleanCLIP's
    code."""

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Triggered copies of the images.

        Args:
            images: (B, 3, H, W) uint8; left as they are.
            seeds: without effect: the wave is fixed.

        Returns:
            (B, 3, H, W) uint8 on the same device.
        """
        width = images.shape[-1]
        columns = torch.arange(width, device=images.device)
        wave = self.amplitude * torch.sin(2 * math.pi * self.frequency * columns / width)
        if self.alpha is not None:
            return mix(images, wave, self.alpha)
        return quantise(images.float() / 255 + wave)

    def check_fits(self, image_size: int) -> None:
        """Any image will do."""
