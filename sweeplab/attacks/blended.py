"""Blended: faint noise over the whole image (Chen et al. 2017; CleanCLIP, App. E)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sweeplab.attacks.pixels import generator, mix
from sweeplab.specs import Spec
from sweeplab.training.randomness import stream_seed


class Blended(Spec):
    """(1 - alpha) x image + alpha x uniform noise."""

    kind: Literal["blended"] = "blended"
    alpha: float = Field(default=0.2, gt=0, le=1)
    """Share of the noise; 0.2 in the papers."""
    noise: Literal["per-image", "fixed"] = "per-image"
    """`per-image`: drawn anew for every image, as the papers' code does. `fixed`: one noise image for all, from
    `noise_seed`; what the word "trigger" suggests, and far easier to learn."""
    noise_seed: int = Field(default=0, ge=0)

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Triggered copies of the images.

        Args:
            images: (B, 3, H, W) uint8; left as they are.
            seeds: B seeds; with `noise="fixed"` they have no effect.

        Returns:
            (B, 3, H, W) uint8 on the same device.
        """
        shape = images.shape[1:]
        if self.noise == "fixed":
            noise = torch.rand(shape, generator=generator(stream_seed(self.noise_seed, "blended", *shape)))
            return self.blend(images, noise.to(images.device))
        rows = [
            self.blend(image, torch.rand(shape, generator=generator(seed)).to(images.device))
            for image, seed in zip(images, seeds, strict=True)
        ]
        return torch.stack(rows) if rows else images.clone()

    def check_fits(self, image_size: int) -> None:
        """Any image will do."""

    def blend(self, images: Tensor, noise: Tensor) -> Tensor:
        """Mix uint8 images (..., 3, H, W) with noise (3, H, W) in [0, 1)."""
        return mix(images, noise, self.alpha)
