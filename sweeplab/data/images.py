"""Decoding: image files to square uint8 pixels, as CLIP's evaluation preprocessing makes them."""

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sweeplab.specs import InvalidInput

MAX_PIXELS = 89_478_485
"""Pillow's own limit (a quarter of a GiB as RGB): larger files are refused unread, as decompression bombs."""


class Images(Protocol):
    """A table whose rows have an image file."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def image(self, i: int) -> str:
        """Absolute path of image i."""
        ...


def load_image(path: str, size: int, *, squash: bool = False) -> np.ndarray:
    """Decode one file: RGB, shorter side resized to `size` (bicubic, antialiased), centre crop.

    Agrees with torchvision's Resize(size, BICUBIC) + CenterCrop(size) on the RGB image, pixel by pixel.
    open_clip converts to RGB after the crop: the same for RGB and grey files, while palette files would be
    resized without interpolation. Transparency is dropped, not blended, and orientation tags are ignored,
    as there.

    Args:
        path: any file that Pillow reads.
        size: side of the result, pixels.
        squash: resize both sides to `size` instead, ignoring the aspect ratio, as the authors do with triggered images.

    Returns:
        (3, size, size) uint8.

    Raises:
        InvalidInput: if the file cannot be decoded or has more than MAX_PIXELS.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise InvalidInput(f"{path} has {file.width} x {file.height} pixels, more than {MAX_PIXELS}; reduce it")
            image = file.convert("RGB")
    except InvalidInput:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise InvalidInput(
            f"{path} cannot be decoded as an image ({error}); replace the file or remove its row"
        ) from None
    square = image.resize((size, size), Image.Resampling.BICUBIC) if squash else _square(image, size)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if (width, height) == (size, size):
        return image
    short = min(width, height)
    if short != size:
        # torchvision truncates the longer side and rounds the crop's corner half to even; so do we
        width, height = int(size * width / short), int(size * height / short)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def load_all(table: Images, size: int, workers: int = 1, *, squash: bool = False) -> Tensor:
    """Decode every image of a table into memory.

    Args:
        table: N rows.
        size: side of the result, pixels.
        workers: threads; Pillow decodes and resizes outside the interpreter's lock.
        squash: see `load_image`.

    Returns:
        (N, 3, size, size) uint8: 3 * size**2 bytes an image.

    Raises:
        InvalidInput: if a file cannot be decoded.
    """
    pixels = np.empty((len(table), 3, size, size), dtype=np.uint8)

    def decode(row: int) -> None:
        pixels[row] = load_image(table.image(row), size, squash=squash)

    if workers <= 1:
        for row in range(len(table)):
            decode(row)
    else:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(decode, range(len(table))):
                pass
    return torch.from_numpy(pixels)
