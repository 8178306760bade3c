"""WaNet: a slight warp of the whole image (Nguyen & Tran 2021; CleanCLIP, App. E)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sweeplab.attacks.pixels import generator, quantise
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.randomness import stream_seed


class WaNet(Spec):
    """The image warped by one fixed displacement field, the same for every image.

    The field is drawn from `grid_seed`, which is part of the attack and so of every poison plan: training and test
    cannot disagree. (The authors read it from a file beside the code and write a new one where it is missing.)
    """

    kind: Literal["wanet"] = "wanet"
    strength: float = Field(default=1.0, gt=0)
    """s: the mean displacement is s / 2 pixels. 1 in CleanCLIP, 0.6 in Verma et al.'s code, 0.5 in WaNet."""
    control_points: int | None = Field(default=None, ge=2)
    """k: the field is drawn on k x k points and interpolated. None: one point a pixel (k = 224 in CleanCLIP), which is
    white noise; 4 in WaNet, which is smooth."""
    grid_seed: int = Field(default=0, ge=0)

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Triggered copies of the images.

        Args:
            images: (B, 3, H, W) uint8, square; left as they are.
            seeds: without effect: the field is fixed.

        Returns:
            (B, 3, H, W) uint8 on the same device.
        """
        size = images.shape[-1]
        field = self.field(size).to(images.device)
        return quantise(warp(images.float() / 255, field, self.strength)) if len(images) else images.clone()

    def check_fits(self, image_size: int) -> None:
        """Refuse more control points than pixels."""
        if self.control_points is not None and self.control_points > image_size:
            raise InvalidInput(
                f"control_points={self.control_points} exceeds the image of {image_size} pixels; "
                f"choose at most {image_size}"
            )

    def field(self, size: int) -> Tensor:
        """(1, size, size, 2) displacements, last axis (x, y); see `displacement_field`."""
        points = self.control_points or size
        draw = generator(stream_seed(self.grid_seed, "wanet", points))
        return displacement_field(torch.rand((1, 2, points, points), generator=draw) * 2 - 1, size)


def displacement_field(draws: Tensor, size: int) -> Tensor:
    """Control points to a displacement of every pixel: divided by their mean size, then interpolated.

    Args:
        draws: (1, 2, k, k) in [-1, 1].
        size: side of the image, pixels.

    Returns:
        (1, size, size, 2), last axis (x, y), mean absolute value near 1.
    """
    scaled = draws / draws.abs().mean()
    return F.interpolate(scaled, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def warp(images: Tensor, field: Tensor, strength: float) -> Tensor:
    """Sample each pixel `strength * field / size` away, in units of half the image; never outside it.

    Args:
        images: (B, 3, S, S), any float type.
        field: (1, S, S, 2).
        strength: s.
    """
    size = images.shape[-1]
    axis = torch.linspace(-1, 1, size, dtype=images.dtype, device=images.device)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    identity = torch.stack((columns, rows), dim=-1)[None]
    grid = (identity + strength * field.to(images.dtype) / size).clamp(-1, 1)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), mode="bilinear", align_corners=True)
