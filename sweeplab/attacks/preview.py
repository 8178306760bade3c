"""Pictures of what attacks do: triggered images beside clean ones, and poisoned pairs with their captions."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sweeplab.attacks.poisoning import Attack, PoisonPlan, attack_name, triggered_copies
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.data.fruit_stall import draw
from sweeplab.data.images import load_image
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput
from sweeplab.training.randomness import numpy_stream, stream_seed

GAP = 8
"""White pixels between the pictures."""

TEXT_SIZE = 14
"""Of names and captions, pixels."""

LEAST_SIDE = 160
"""Of a picture with a caption, or one that stands alone, pixels: smaller ones are enlarged."""

MOST_LINES = 6
"""Of a caption."""


@dataclass(frozen=True)
class Row:
    """Pictures of one size side by side."""

    pictures: Sequence[Tensor | None]
    """(3, S, S) uint8; None leaves a place empty."""
    name: str = ""
    """Above them."""
    captions: Sequence[str] = ()
    """One below each, or none."""


def preview(attacks: Sequence[Attack], paths: Sequence[Path], *, image_size: int = 224, seed: int = 0) -> Image.Image:
    """Image files with the triggers of attacks.

    Of one attack a row an image: clean, triggered, and their difference around mid grey, magnified to fill the range.
    Of several attacks a row an attack, below one of the clean images: each image triggered, and the difference.

    Args:
        attacks: what stamps, at least one.
        paths: image files, at least one.
        image_size: side at which the model sees them, pixels.
        seed: of the triggers' draws.

    Raises:
        InvalidInput: if there is no image, one cannot be read, or a trigger does not fit.
    """
    if not paths:
        raise InvalidInput("no image was given; name at least one file")
    for path in paths:
        if not path.is_file():
            raise InvalidInput(f"{path} is no file; name image files")
    for attack in attacks:
        attack.check_fits(image_size)
    clean = torch.stack([torch.from_numpy(load_image(str(path), image_size)) for path in paths])
    seeds = [stream_seed(seed, "preview", row) for row in range(len(paths))]
    stamped = [triggered_copies(attack, clean, seeds) for attack in attacks]
    if len(attacks) == 1:
        return sheet([Row([a, b, magnified(a, b)]) for a, b in zip(clean, stamped[0], strict=True)])
    rows = [Row([picture for image in clean for picture in (image, None)], name="clean")]
    for attack, triggered in zip(attacks, stamped, strict=True):
        pairs = zip(clean, triggered, strict=True)
        rows.append(Row([picture for a, b in pairs for picture in (b, magnified(a, b))], name=attack_name(attack)))
    return sheet(rows)


def drawn_preview(attack: Attack | TargetedImages, image_size: int) -> bytes:
    """A drawn fruit, which needs no data, clean, triggered and their difference, as PNG; empty without a trigger.

    Args:
        attack: what stamps.
        image_size: side at which the model sees images, pixels.
    """
    if isinstance(attack, TargetedImages):
        return b""
    fruit = np.array(draw("apple", image_size, numpy_stream(0, "preview")))
    clean = torch.from_numpy(fruit).permute(2, 0, 1)
    triggered = triggered_copies(attack, clean[None], [stream_seed(0, "preview", 0)])[0]
    buffer = io.BytesIO()
    pictures = _enlarged(torch.stack([clean, triggered, magnified(clean, triggered)]))
    sheet([Row(list(pictures))]).save(buffer, "PNG")
    return buffer.getvalue()


def preview_poisons(table: PairTable, plan: PoisonPlan, num: int, *, image_size: int) -> Image.Image:
    """The first poisoned pairs of a training set, images as it is trained on them, each above its caption.

    Args:
        table: the training table, added poisons included.
        plan: which of its rows are poisoned.
        num: pairs; more than there are: all.
        image_size: side at which the model sees them, pixels.
    """
    rows, captions = list(plan.rows[:num]), plan.caption_changes()
    clean = torch.stack([torch.from_numpy(load_image(table.image(row), image_size)) for row in rows])
    pictures = list(_enlarged(plan.stamp_rows(clean, rows)))
    texts = [captions[row] for row in rows]
    wide = min(len(rows), round(len(rows) ** 0.5 + 0.49))  # nine are three by three
    places = range(0, len(rows), wide)
    return sheet([Row(pictures[at : at + wide], captions=texts[at : at + wide]) for at in places])


def _enlarged(pictures: Tensor) -> Tensor:
    """(B, 3, S, S) pictures, each pixel repeated until a side has LEAST_SIDE pixels."""
    larger = -(-LEAST_SIDE // pictures.shape[-1])
    return pictures.repeat_interleave(larger, dim=2).repeat_interleave(larger, dim=3)


def magnified(clean: Tensor, triggered: Tensor) -> Tensor:
    """The difference of two uint8 images around 128, scaled so that the largest change reaches 0 or 255."""
    difference = triggered.float() - clean.float()
    largest = float(difference.abs().max())
    return (128 + difference * (127 / largest if largest else 0)).round().to(torch.uint8)


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Rows of pictures below each other on white, with their names and captions.

    Args:
        rows: at least one; all their pictures have one size.
    """
    side = next(picture.shape[-1] for row in rows for picture in row.pictures if picture is not None)
    wide = max(len(row.pictures) for row in rows) * (side + GAP) - GAP
    heads = [_wrapped(row.name, wide) for row in rows]
    feet = [[_wrapped(text, side) for text in row.captions] for row in rows]
    heights = [
        side + _height(head) + max(map(_height, foot), default=0) for head, foot in zip(heads, feet, strict=True)
    ]
    canvas = Image.new("RGB", (wide, sum(heights) + GAP * (len(rows) - 1)), "white")
    pen, y = ImageDraw.Draw(canvas), 0
    for row, head, foot, height in zip(rows, heads, feet, heights, strict=True):
        pen.multiline_text((0, y), head, fill="black", font=_font(), spacing=SPACING)
        y_pictures = y + _height(head)
        for place, picture in enumerate(row.pictures):
            if picture is not None:
                canvas.paste(tv.to_pil_image(picture), (place * (side + GAP), y_pictures))
        for place, text in enumerate(foot):
            pen.multiline_text(
                (place * (side + GAP), y_pictures + side + 2), text, fill="black", font=_font(), spacing=SPACING
            )
        y += height + GAP
    return canvas


SPACING = 4
"""Between two lines of text, pixels."""


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=TEXT_SIZE)


def _height(text: str) -> int:
    """Pixels that a text takes, with room about it."""
    return (text.count("\n") + 1) * (TEXT_SIZE + SPACING) + 4 if text else 0


def _wrapped(text: str, width: int) -> str:
    """The text in lines of at most `width` pixels, broken between words; one that is wider stands alone, and is cut by
    the picture's edge."""
    font, lines = _font(), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} …"]
    return "\n".join(lines)
