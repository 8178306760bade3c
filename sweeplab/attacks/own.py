"""The user's own trigger: a picture pasted or blended into the image. (An own function is a Spec with `stamp`.)"""

import contextlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sweeplab.attacks.pixels import quantise
from sweeplab.specs import InvalidInput, Spec, file_digest, usable_path

MAX_SIDE = 4096
"""Pixels; larger pictures are refused unread."""

SMALL_PATCH = Path(__file__).with_name("badclip_fruit_stall.png")
"""BadCLIP's, 6 x 6 pixels, 4 epochs at a rate of 0.01 against the unpoisoned twin of the quickstart's smoke victim."""


class ImageTrigger(Spec):
    """A picture file (PNG with or without transparency) at a fixed place of every image.

    pixel = (1 - a) x image + a x picture, with a the picture's own transparency times `alpha`. The file may be moved:
    what counts is its content. A trigger that is computed instead is a Spec of your own script with
    `stamp(images, seeds)` and `check_fits(image_size)`; it goes wherever an attack goes.
    """

    NOT_IN_DIGEST = frozenset({"path", "made_by"})

    kind: Literal["image"] = "image"
    path: Path
    content: str = Field(default="", pattern=r"^[0-9a-f]{0,16}$")
    """First sixteen hexadecimal digits of the file's SHA-256, filled in on construction; a file that has changed since
    is refused."""
    size: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    """Longer side of the picture on the image, pixels of the model's input; None: as it is."""
    alpha: float = Field(default=1.0, gt=0, le=1)
    position: Literal["top-left", "top-right", "bottom-left", "bottom-right", "center"] | tuple[int, int] = (
        "bottom-right"
    )
    """A corner, the centre, or the (row, column) of the picture's top-left pixel."""
    made_by: str = ""
    """The command that makes the file, where there is one (`sweeplab attack badclip`). Then the trigger may be planned
    before the file is there, and what needs the picture is refused with this command."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("path"), (str, Path)):
            return values  # is refused for that
        path = usable_path(Path(values["path"]))
        if values.get("made_by") and not os.path.exists(path):
            return values
        found, held = _file_digest(path), values.get("content", "")
        if held == "":
            return {**values, "content": found}
        if held != found:
            raise ValueError(f"path={path} has changed: content {found!r}, expected {held!r}; restore the file")
        return values

    @model_validator(mode="after")
    def _check(self) -> "ImageTrigger":
        if isinstance(self.position, tuple) and min(self.position) < 0:
            raise ValueError(f"position={self.position} must not be negative")
        if not self.made_by or os.path.exists(self.path):
            self.picture()
        return self

    def in_miniature(self) -> "ImageTrigger":
        """Itself where the picture is there and lies whole in 32 pixels, else BadCLIP's patch for the fruit stall."""
        with contextlib.suppress(InvalidInput):
            self.check_fits(32)
            return self
        return ImageTrigger(path=SMALL_PATCH, position="center")

    def picture(self) -> tuple[Tensor, Tensor]:
        """The picture as it is pasted.

        Returns:
            (3, h, w) float in [0, 1] and (1, h, w) share of it in [0, 1].

        Raises:
            InvalidInput: if the file is yet to be made.
        """
        if not self.content:
            raise InvalidInput(f"path={self.path} is not there yet; make it: {self.made_by}")
        return _picture(str(self.path), self.content, self.size, self.alpha)

    def check_fits(self, image_size: int) -> None:
        """Refuse an image in which the picture does not lie whole."""
        colours, _ = self.picture()
        height, width = colours.shape[-2:]
        top, left = self.position if isinstance(self.position, tuple) else (0, 0)
        if top + height > image_size or left + width > image_size:
            raise InvalidInput(
                f"{self.path} of {height} x {width} pixels at row {top}, column {left} leaves the image of "
                f"{image_size} pixels; set `size` or another `position`"
            )

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Triggered copies of the images.

        Args:
            images: (B, 3, H, W) uint8; left as they are.
            seeds: B seeds, without effect.

        Returns:
            (B, 3, H, W) uint8 on the same device.
        """
        height, width = images.shape[-2:]
        self.check_fits(min(height, width))
        colours, share = (part.to(images.device) for part in self.picture())
        h, w = colours.shape[-2:]
        top, left = self.place(height - h, width - w)
        stamped = images.clone()
        window = stamped[..., top : top + h, left : left + w]
        window.copy_(quantise((1 - share) * (window.float() / 255) + share * colours + 0.5 / 255))
        return stamped

    def place(self, bottom: int, right: int) -> tuple[int, int]:
        """Row and column of the top-left pixel, given the largest possible ones."""
        if isinstance(self.position, tuple):
            return self.position
        named = {
            "top-left": (0, 0),
            "top-right": (0, right),
            "bottom-left": (bottom, 0),
            "bottom-right": (bottom, right),
            "center": (bottom // 2, right // 2),
        }
        return named[self.position]


def _file_digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise ValueError(f"path={path} cannot be read ({error.strerror}); give a picture file") from None


@lru_cache(maxsize=8)
def _picture(path: str, content: str, size: int | None, alpha: float) -> tuple[Tensor, Tensor]:
    """Decoded once per process; `content` is part of the key, so that a changed file is read again."""
    try:
        with Image.open(path) as file:
            if max(file.size) > MAX_SIDE:
                raise InvalidInput(
                    f"path={path} is {file.width} x {file.height} pixels, more than {MAX_SIDE}; reduce it"
                )
            if file.mode in ("I", "F") or file.mode.startswith("I;16"):  # Pillow would clip them at 255
                raise InvalidInput(f"path={path} has more than 8 bits a pixel (mode {file.mode}); save it with 8")
            picture = file.convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InvalidInput(f"path={path} is no picture that can be decoded ({error}); give a PNG file") from None
    if size is not None:
        scale = size / max(picture.size)
        shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(shape, Image.Resampling.BICUBIC)
    pixels = tv.pil_to_tensor(picture).float() / 255
    return pixels[:3], alpha * pixels[3:]
