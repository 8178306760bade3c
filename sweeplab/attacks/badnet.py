"""BadNet: a small patch of noise at a random place (Gu et al. 2017; Verma et al., Sec. 3.2; CleanCLIP, App. E)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sweeplab.specs import InvalidInput, Spec


class BadNet(Spec):
    """A square patch of noise, drawn anew for every image, pasted at a place drawn anew for every image.

    The attacker's pattern is therefore "a square of noise", not one fixed picture.
    """

    kind: Literal["badnet"] = "badnet"
    patch_size: int = Field(default=16, ge=1)
    """Side of the patch, pixels of the model's input; 16 of 224 in the papers."""
    pattern: Literal["gaussian", "binary"] = "gaussian"
    """`gaussian`: the image's mean colour plus N(0, 1) per pixel and channel, pixels in [0, 1] (the papers state only
    N(0, 1); their code adds the mean). `binary`: every channel of every pixel 0 or 255, which small images learn
    better."""
    overflow: Literal["clip", "wrap"] = "clip"
    """Values outside [0, 255]: `clip` to the range, as an image file can only hold it; `wrap` modulo 256 as the
    authors' unchecked cast does on x86, which makes the patch nearly uniform noise."""

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
        height, width = images.shape[-2:]
        self.check_fits(min(height, width))
        stamped = images.clone()
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            patch = self.draw_patch(images[row].cpu(), generator)
            # The papers' code never draws the last legal place; here all places are equally likely.
            top = int(torch.randint(height - self.patch_size + 1, (), generator=generator))
            left = int(torch.randint(width - self.patch_size + 1, (), generator=generator))
            stamped[row, :, top : top + self.patch_size, left : left + self.patch_size] = patch.to(images.device)
        return stamped

    def check_fits(self, image_size: int) -> None:
        """Refuse an image smaller than the patch."""
        if self.patch_size > image_size:
            raise InvalidInput(
                f"patch_size={self.patch_size} is larger than the image of {image_size} pixels; "
                f"choose at most {image_size}"
            )

    def draw_patch(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A (3, patch_size, patch_size) uint8 patch for a (3, H, W) uint8 image."""
        shape = (3, self.patch_size, self.patch_size)
        if self.pattern == "binary":
            return torch.randint(2, shape, generator=generator, dtype=torch.uint8) * 255
        noise = torch.randn(shape, generator=generator)
        mean = (image.float() / 255).mean(dim=(1, 2))
        return quantise(mean[:, None, None] + noise, self.overflow)


def quantise(pixels: Tensor, overflow: Literal["clip", "wrap"]) -> Tensor:
    """Float pixels (1.0 is white) to uint8, truncating toward zero as torchvision's ToPILImage does."""
    scaled = pixels * 255
    if overflow == "clip":
        return scaled.clamp(0, 255).to(torch.uint8)
    return (scaled.to(torch.int64) & 255).to(torch.uint8)
