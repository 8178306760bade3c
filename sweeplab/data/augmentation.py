"""Augmented views of images: torchvision's policies under one seed an image."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from sweeplab.specs import Spec


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
        state = torch.random.get_rng_state()
        try:
            rows = []
            for image, seed in zip(images, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                # PIL's operations are what the papers used, and faster than tensor ones on one image.
                rows.append(tv.pil_to_tensor(transform(tv.to_pil_image(image))))
        finally:
            torch.random.set_rng_state(state)
        return torch.stack(rows) if rows else images.clone()


VIEWS = (AutoAugmentView,)
