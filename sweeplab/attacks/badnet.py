"""BadNet: a small patch (Gu et al. 2017; Verma et al., Sec. 3.2; CleanCLIP, App. E)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sweeplab.attacks.pixels import generator, quantise
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.randomness import stream_seed

Location = Literal["random", "top-left", "top-right", "bottom-left", "bottom-right", "center", "four-corners"]


class BadNet(Spec):
    """A square patch. By default of noise, drawn anew for every image and pasted at a place drawn anew for every image.

    The attacker's pattern is then "a square of noise", not one fixed picture.
    """

    kind: Literal["badnet"] = "badnet"
    patch_size: int = Field(default=16, ge=1)
    """Side of the patch, pixels of the model's input; 16 of 224 in the papers."""
    pattern: Literal["gaussian", "binary", "yellow"] = "gaussian"
    """`gaussian`: the image's mean colour plus N(0, 1) per pixel and channel, pixels in [0, 1] (the papers state only
    N(0, 1); their code adds the mean). `binary`: every channel of every pixel 0 or 255, which small images learn
    better. `yellow`: plain yellow, in the authors' code only."""
    noise: Literal["per-image", "fixed"] = "per-image"
    """`per-image`: the noise is drawn anew for every image, as the papers' code does. `fixed`: one patch for all
    images, drawn from `noise_seed`."""
    noise_seed: int = Field(default=0, ge=0)
    location: Location = "random"
    """Where the patch goes; `four-corners` pastes the same patch four times."""
    overflow: Literal["clip", "wrap"] = "clip"
    """What becomes of noise outside [0, 255]: `wrap` is what the authors' cast does, and makes the patch nearly
    uniform."""

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
        for row, (image, seed) in enumerate(zip(images, seeds, strict=True)):
            draw = generator(seed)
            source = draw if self.noise == "per-image" else generator(stream_seed(self.noise_seed, "badnet patch"))
            patch = self.draw_patch(image.cpu(), source).to(images.device)
            for top, left in self.places(height, width, draw):
                stamped[row, :, top : top + self.patch_size, left : left + self.patch_size] = patch
        return stamped

    def check_fits(self, image_size: int) -> None:
        """Refuse an image smaller than the patch."""
        if self.patch_size > image_size:
            raise InvalidInput(
                f"patch_size={self.patch_size} is larger than the image of {image_size} pixels; "
                f"choose at most {image_size}"
            )

    def draw_patch(self, image: Tensor, draw: torch.Generator) -> Tensor:
        """A (3, patch_size, patch_size) uint8 patch for a (3, H, W) uint8 image."""
        shape = (3, self.patch_size, self.patch_size)
        if self.pattern == "binary":
            return torch.randint(2, shape, generator=draw, dtype=torch.uint8) * 255
        if self.pattern == "yellow":
            return torch.tensor([255, 255, 0], dtype=torch.uint8)[:, None, None].expand(shape)
        noise = torch.randn(shape, generator=draw)
        mean = (image.float() / 255).mean(dim=(1, 2))
        return quantise(mean[:, None, None] + noise, self.overflow)

    def places(self, height: int, width: int, draw: torch.Generator) -> list[tuple[int, int]]:
        """Top-left rows and columns of the patch."""
        bottom, right = height - self.patch_size, width - self.patch_size
        fixed = {
            "top-left": [(0, 0)],
            "top-right": [(0, right)],
            "bottom-left": [(bottom, 0)],
            "bottom-right": [(bottom, right)],
            "center": [(bottom // 2, right // 2)],
            "four-corners": [(0, 0), (0, right), (bottom, 0), (bottom, right)],
        }
        if self.location != "random":
            return fixed[self.location]
        # The papers' code never draws the last legal place; here all places are equally likely.
        top = int(torch.randint(bottom + 1, (), generator=draw))
        return [(top, int(torch.randint(right + 1, (), generator=draw)))]
