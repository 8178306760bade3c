"""A picture of what an attack does: clean, triggered and magnified difference side by side."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sweeplab.attacks.poisoning import Attack
from sweeplab.data.images import load_image
from sweeplab.specs import InvalidInput
from sweeplab.training.randomness import stream_seed

GAP = 8
"""White pixels between the pictures."""


def preview(attack: Attack, paths: Sequence[Path], *, image_size: int = 224, seed: int = 0) -> Image.Image:
    """One row an image: clean, triggered, and their difference around mid grey, magnified to fill the range.

    Args:
        attack: what stamps.
        paths: image files, at least one.
        image_size: side at which the model sees them, pixels.
        seed: of the triggers' draws.
    """
    if not paths:
        raise InvalidInput("no image was given; name at least one file")
    for path in paths:
        if not path.is_file():
            raise InvalidInput(f"{path} is no file; name image files")
    attack.check_fits(image_size)
    clean = torch.stack([torch.from_numpy(load_image(str(path), image_size)) for path in paths])
    triggered = attack.stamp(clean, [stream_seed(seed, "preview", row) for row in range(len(paths))])
    rows = [_row([a, b, magnified(a, b)]) for a, b in zip(clean, triggered, strict=True)]
    return tv.to_pil_image(_join(rows, dim=1))


def magnified(clean: Tensor, triggered: Tensor) -> Tensor:
    """The difference of two uint8 images around 128, scaled so that the largest change reaches 0 or 255."""
    difference = triggered.float() - clean.float()
    largest = float(difference.abs().max())
    return (128 + difference * (127 / largest if largest else 0)).round().to(torch.uint8)


def _row(images: list[Tensor]) -> Tensor:
    return _join(images, dim=2)


def _join(images: list[Tensor], dim: int) -> Tensor:
    shape = list(images[0].shape)
    shape[dim] = GAP
    gap = torch.full(shape, 255, dtype=torch.uint8)
    parts = [part for image in images for part in (image, gap)][:-1]
    return torch.cat(parts, dim=dim)
