"""PAR's structured triggers: stripes, triangles and text (PerturbAndRecover, Figs. 2, 6 and 7, and its code)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field, field_validator
from torch import Tensor

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.pixels import generator, mix, random_signs
from sweeplab.specs import Spec


class BadNetStripes(Spec):
    """A square patch of vertical one-pixel stripes in saturated colours, stripes and place drawn anew for every
    image."""

    kind: Literal["badnet-stripes"] = "badnet-stripes"
    patch_size: int = Field(default=16, ge=1)
    """Side of the patch, pixels of the model's input; 16 of 224 in the paper."""

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Triggered copies of the images.

        Args:
            images: (B, 3, H, W) uint8; left as they are.
            seeds: B seeds; an image's trigger depends on its own seed alone.

        Returns:
            (B, 3, H, W) uint8 on the same device.

        Raises:
            InvalidInput: if the patch is larger than the image.
        """
        square = self._square()
        height, width = images.shape[-2:]
        square.check_fits(min(height, width))
        stamped = images.clone()
        size = self.patch_size
        for row, (_, seed) in enumerate(zip(images, seeds, strict=True)):
            draw = generator(seed)
            patch = self.patch(random_signs((3, size), draw)).to(images.device)
            ((top, left),) = square.places(height, width, draw)
            stamped[row, :, top : top + size, left : left + size] = patch
        return stamped

    def check_fits(self, image_size: int) -> None:
        """Refuse an image smaller than the patch."""
        self._square().check_fits(image_size)

    def patch(self, signs: Tensor) -> Tensor:
        """(3, patch_size, patch_size) uint8 from one sign per channel and column: 0 for -1, 255 for +1.

        (The authors' cast stores -1 as 1.)
        """
        return ((signs > 0).to(torch.uint8) * 255)[:, None, :].expand(3, self.patch_size, self.patch_size)

    def _square(self) -> BadNet:
        return BadNet(patch_size=self.patch_size)


class BlendedStripes(Spec):
    """Vertical one-pixel stripes over the whole image, mixed in faintly, drawn anew for every image."""

    kind: Literal["blended-stripes"] = "blended-stripes"
    alpha: float = Field(default=0.03, gt=0, le=1)
    """Share of the stripes, whose channels are -1 or +1 where white is 1."""

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Triggered copies of the images.

        Args:
            images: (B, 3, H, W) uint8; left as they are.
            seeds: B seeds; an image's trigger depends on its own seed alone.

        Returns:
            (B, 3, H, W) uint8 on the same device.
        """
        width = images.shape[-1]
        rows = [
            mix(image, random_signs((3, 1, width), generator(seed)).to(images.device), self.alpha)
            for image, seed in zip(images, seeds, strict=True)
        ]
        return torch.stack(rows) if rows else images.clone()

    def check_fits(self, image_size: int) -> None:
        """Any image will do."""


class BlendedTriangles(Spec):
    """A fixed pattern of grey triangles over the whole image, mixed in."""

    kind: Literal["blended-triangles"] = "blended-triangles"
    alpha: float = Field(default=0.15, gt=0, le=1)
    tile_size: int = Field(default=14, ge=2)
    """Side of a tile, pixels: half of it, below the diagonal, is darker."""

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Triggered copies of the images.

        Args:
            images: (B, 3, H, W) uint8; left as they are.
            seeds: without effect: the pattern is fixed.

        Returns:
            (B, 3, H, W) uint8 on the same device.
        """
        pattern = triangles(images.shape[-2], images.shape[-1], self.tile_size)
        return mix(images, pattern.to(images.device), self.alpha)

    def check_fits(self, image_size: int) -> None:
        """Any image will do; tiles are cut at its edge."""


def triangles(height: int, width: int, tile_size: int) -> Tensor:
    """(height, width): 0.4 where a tile's row is at least its column, else 0.8."""
    rows = torch.arange(height)[:, None] % tile_size
    columns = torch.arange(width)[None, :] % tile_size
    return torch.where(rows >= columns, 0.4, 0.8)


class BlendedText(Spec):
    """A word written across the image in red; only the red channel of the written pixels changes."""

    kind: Literal["blended-text"] = "blended-text"
    alpha: float = Field(default=0.5, gt=0, le=1)
    text: str = Field(default="Watermarked", max_length=40)

    @field_validator("text")
    @classmethod
    def _visible(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("a text of blanks alone leaves no trace on an image; give a word")
        return value

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Triggered copies of the images.

        Args:
            images: (B, 3, H, W) uint8; left as they are.
            seeds: without effect: the word is fixed.

        Returns:
            (B, 3, H, W) uint8 on the same device.
        """
        ink = written(self.text, images.shape[-2], images.shape[-1]).to(images.device)
        stamped = images.clone()
        red = images[:, 0]
        stamped[:, 0] = torch.where(ink > 0, mix(red, ink, self.alpha), red)
        return stamped

    def check_fits(self, image_size: int) -> None:
        """Any image will do."""


def written(text: str, height: int, width: int) -> Tensor:
    """(height, width) in [0, 1]: the text in Pillow's own font, centred, 7/8 of the image wide as in the paper."""
    font = ImageFont.load_default(size=height)
    left, top, right, bottom = font.getbbox(text)
    large = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(large).text((1 - left, 1 - top), text, fill=255, font=font)
    wide = max(1, width * 7 // 8)
    tall = min(height, max(1, round(large.height * wide / large.width)))
    canvas = Image.new("L", (width, height))
    canvas.paste(large.resize((wide, tall), Image.Resampling.BICUBIC), ((width - wide) // 2, (height - tall) // 2))
    return torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255)
