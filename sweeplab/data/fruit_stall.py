"""The fruit stall: drawn pictures of 16 fruits and vegetables with captions, small enough for a laptop."""

import csv
import functools
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.cores import for_rows
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.data.unpacked import materialise
from sweeplab.specs import Spec
from sweeplab.training.randomness import numpy_stream

DRAWING = "1"
"""Part of the names of folders and files, so of the digests. Raise it when pixels or captions change."""

CAPTION_TEMPLATES = (
    "a photo of {some} lying on the stall.",
    "{some} for sale at the farmers market.",
    "we bought {some} at the market this morning.",
    "the {name} on the table looks fresh today.",
    "a close picture of {some} on a cloth.",
    "here is {some}, freshly picked and ready to eat.",
    "my neighbour painted {some} for the kitchen wall.",
    "an old drawing of {some} from a cookbook.",
    "put the {name} into the basket, please.",
    "she took a snapshot of {some} at noon.",
    "a child is pointing at the {name} over there.",
    "still life with {some} and a plain background.",
)
"""`{name}` is the class name, `{some}` the same with its article."""

ZERO_SHOT_TEMPLATES = (
    "a photo of the {}.",
    "a picture of the {} at the market.",
    "the {} is lying on the stall.",
    "a drawing of the {} on a plain background.",
)
"""Prompts for zero-shot classification of the fruit stall; `{}` is the class name."""

BACKGROUNDS = (
    (205, 182, 150),
    (236, 232, 224),
    (128, 132, 138),
    (98, 122, 156),
    (122, 138, 112),
    (218, 194, 204),
    (72, 68, 78),
    (176, 146, 116),
)
"""Base colours, RGB; the even ones are striped, the odd ones blotched."""

COLOUR_JITTER = 22
"""Largest shift of a colour channel, levels of 255."""
NOISE = 8.0
"""Standard deviation of the Gaussian noise, levels of 255."""

Colour = tuple[int, int, int]
GREEN: Colour = (70, 140, 55)
BROWN: Colour = (105, 70, 40)


MOST_IMAGES, LARGEST_IMAGE = 10_000_000, 4096
"""Bounds of what is drawn: images of a set, and pixels of a side."""


class FruitStall(Spec):
    """Training pairs: drawn when first read, then kept under the data home."""

    kind: Literal["fruit-stall"] = "fruit-stall"
    num_pairs: int = Field(default=8000, ge=1, le=MOST_IMAGES)
    image_size: int = Field(default=48, ge=16, le=LARGEST_IMAGE)
    """Side of the square images, pixels."""
    seed: int = Field(default=0, ge=0)
    """Pair i depends on the seed and on i alone, not on `num_pairs`."""
    sample: Sample | None = None
    """A random part of the pairs; None: all of them."""

    def read(self, data_home: Path) -> PairTable:
        """The pairs, with classes drawn uniformly.

        Raises:
            InvalidInput: if the images cannot be written under `data_home`.
        """
        folder = _folder("fruit-stall", self.replace(sample=None), data_home)
        materialise(folder, self._write, "the fruit stall")
        return PairsCSV(path=folder / "pairs.csv", num_pairs=self.num_pairs, sample=self.sample, max_broken=0.0).read(
            data_home
        )

    def _write(self, folder: Path) -> None:
        (folder / "images").mkdir()

        def draw_pair(index: int) -> None:
            name, _, stream = self._pair(index)
            _save(draw(name, self.image_size, stream), folder / "images" / _file_name(self.seed, index))

        for_rows(draw_pair, self.num_pairs, "drawing pairs")
        with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("image", "caption"))
            for index in range(self.num_pairs):
                name, template, _ = self._pair(index)
                caption = template.format(name=name, some=f"{ARTICLES[name]} {name}")
                rows.writerow((f"images/{_file_name(self.seed, index)}", caption))

    def _pair(self, index: int) -> tuple[str, str, np.random.Generator]:
        """A pair's class, the template of its caption, and the stream that its picture is drawn from."""
        stream = numpy_stream(self.seed, "fruit stall", "pair", index)
        name = CLASS_NAMES[stream.integers(len(CLASS_NAMES))]
        return name, CAPTION_TEMPLATES[stream.integers(len(CAPTION_TEMPLATES))], stream


class FruitStallTest(Spec):
    """Labelled test images: drawn when first read, then kept under the data home."""

    kind: Literal["fruit-stall-test"] = "fruit-stall-test"
    num_images: int = Field(default=2000, ge=16, le=MOST_IMAGES)
    """All classes get the same number, give or take one."""
    image_size: int = Field(default=48, ge=16, le=LARGEST_IMAGE)
    """Side of the square images, pixels."""
    seed: int = Field(default=1000, ge=0)
    """Image i depends on the seed and on i alone; no image is shared with the pairs, whatever their seed."""

    def read(self, data_home: Path) -> LabelledImages:
        """The images, sorted by class; classes in the order of CLASS_NAMES.

        Raises:
            InvalidInput: if the images cannot be written under `data_home`.
        """
        folder = _folder("fruit-stall-test", self, data_home)
        materialise(folder, self._write, "the fruit stall")
        return ClassFolders(path=folder, num_images=self.num_images).read(data_home)

    def _write(self, folder: Path) -> None:
        for name in CLASS_NAMES:
            (folder / name).mkdir()

        def draw_image(index: int) -> None:
            stream = numpy_stream(self.seed, "fruit stall", "test", index)
            name = CLASS_NAMES[index % len(CLASS_NAMES)]
            _save(draw(name, self.image_size, stream), folder / name / _file_name(self.seed, index))

        for_rows(draw_image, self.num_images, "drawing test images")


def _folder(prefix: str, spec: Spec, data_home: Path) -> Path:
    return Path(os.path.abspath(data_home.expanduser())) / f"{prefix}-{spec.digest(drawing=DRAWING)}"


def _file_name(seed: int, index: int) -> str:
    """Says what the pixels depend on: a table's digest reads names and sizes, and the sizes are all equal."""
    return f"v{DRAWING}-seed{seed}-{index:06d}.png"


def _save(image: Image.Image, path: Path) -> None:
    """Write a PNG, not compressed: noise hardly shrinks, and so the size depends on no zlib version."""
    content = io.BytesIO()
    image.save(content, "png", compress_level=0)
    path.write_bytes(content.getvalue())


class Brush:
    """Draws on a transparent square in units of its side, with one colour shift for the whole fruit."""

    def __init__(self, side: int, tint: Colour, shift: np.ndarray) -> None:
        """A transparent square of `side` pixels; `tint` is the colour that its edges fade to."""
        self.side, self.shift = side, shift
        self.layer = Image.new("RGBA", (side, side), (*self._shifted(tint), 0))
        self._draw = ImageDraw.Draw(self.layer)

    def _shifted(self, colour: Colour) -> Colour:
        red, green, blue = (min(255, max(0, c + int(s))) for c, s in zip(colour, self.shift, strict=True))
        return red, green, blue

    def disc(self, x: float, y: float, radius: float, colour: Colour, *, height: float | None = None) -> None:
        """An ellipse around (x, y); `height`: its vertical radius where that differs."""
        s, h = self.side, radius if height is None else height
        box = ((x - radius) * s, (y - h) * s, (x + radius) * s, (y + h) * s)
        self._draw.ellipse(box, fill=self._shifted(colour))

    def area(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=self._shifted(colour))

    def line(self, points: list[tuple[float, float]], width: float, colour: Colour) -> None:
        """A stroke through the points."""
        scaled = [(x * self.side, y * self.side) for x, y in points]
        self._draw.line(scaled, fill=self._shifted(colour), width=max(1, round(width * self.side)), joint="curve")

    def half_disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """The lower half of a disc."""
        s = self.side
        box = ((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s)
        self._draw.pieslice(box, 0, 180, fill=self._shifted(colour))


def _banana(brush: Brush) -> None:
    angles = np.linspace(0.05 * math.pi, 0.95 * math.pi, 14)
    outer = [(0.5 + 0.46 * math.cos(a), 0.22 + 0.56 * math.sin(a)) for a in angles]
    inner = [(0.5 + 0.40 * math.cos(a), 0.19 + 0.30 * math.sin(a)) for a in reversed(angles)]
    brush.area(outer + inner, (248, 214, 52))
    brush.line([(x, y - 0.12 * math.sin(a)) for (x, y), a in zip(outer, angles, strict=True)], 0.02, (205, 165, 40))
    brush.disc(0.93, 0.27, 0.05, BROWN)
    brush.disc(0.07, 0.27, 0.04, BROWN)


def _apple(brush: Brush) -> None:
    red = (196, 30, 45)
    brush.disc(0.35, 0.52, 0.27, red, height=0.32)
    brush.disc(0.65, 0.52, 0.27, red, height=0.32)
    brush.disc(0.5, 0.66, 0.32, red, height=0.28)
    brush.disc(0.30, 0.45, 0.07, (240, 130, 125), height=0.12)
    brush.line([(0.5, 0.32), (0.55, 0.08)], 0.06, BROWN)
    brush.area([(0.55, 0.22), (0.68, 0.06), (0.9, 0.08), (0.76, 0.22)], GREEN)


def _orange(brush: Brush) -> None:
    brush.disc(0.5, 0.5, 0.44, (245, 140, 25))
    for x, y in (
        (0.3, 0.6),
        (0.45, 0.75),
        (0.62, 0.68),
        (0.75, 0.5),
        (0.35, 0.38),
        (0.55, 0.52),
        (0.25, 0.48),
    ):
        brush.disc(x, y, 0.022, (205, 100, 10))
    brush.disc(0.5, 0.17, 0.09, (95, 120, 45), height=0.05)
    brush.disc(0.64, 0.33, 0.08, (255, 195, 110))


def _lemon(brush: Brush) -> None:
    yellow = (250, 232, 60)
    brush.area([(0.02, 0.5), (0.2, 0.38), (0.2, 0.62)], yellow)
    brush.area([(0.98, 0.5), (0.8, 0.38), (0.8, 0.62)], yellow)
    brush.disc(0.5, 0.5, 0.39, yellow, height=0.29)
    brush.disc(0.4, 0.38, 0.13, (255, 250, 170), height=0.05)


def _lime(brush: Brush) -> None:
    green = (110, 170, 45)
    brush.area([(0.04, 0.5), (0.18, 0.42), (0.18, 0.58)], green)
    brush.area([(0.96, 0.5), (0.82, 0.4), (0.82, 0.6)], green)
    brush.disc(0.5, 0.5, 0.38, green, height=0.34)
    brush.disc(0.38, 0.36, 0.12, (190, 225, 130), height=0.06)


def _grapes(brush: Brush) -> None:
    brush.line([(0.5, 0.25), (0.54, 0.02)], 0.06, BROWN)
    for row, count in enumerate((4, 3, 3, 2, 1)):
        for k in range(count):
            x, y = 0.5 + (k - (count - 1) / 2) * 0.21, 0.25 + row * 0.155
            brush.disc(x, y, 0.125, (88, 34, 110))
            brush.disc(x - 0.01, y - 0.01, 0.1, (128, 62, 155))
            brush.disc(x - 0.035, y - 0.04, 0.03, (205, 165, 225))


def _strawberry(brush: Brush) -> None:
    red = (228, 38, 58)
    brush.disc(0.32, 0.36, 0.22, red)
    brush.disc(0.68, 0.36, 0.22, red)
    brush.area([(0.11, 0.42), (0.3, 0.2), (0.7, 0.2), (0.89, 0.42), (0.72, 0.72), (0.5, 0.97), (0.28, 0.72)], red)
    for x, y in (
        (0.28, 0.42),
        (0.5, 0.42),
        (0.72, 0.42),
        (0.38, 0.57),
        (0.62, 0.57),
        (0.5, 0.7),
        (0.5, 0.84),
    ):
        brush.disc(x, y, 0.032, (255, 228, 140), height=0.042)
    leaves = [(0.2, 0.3), (0.3, 0.12), (0.44, 0.13), (0.5, 0.01), (0.56, 0.13), (0.7, 0.12), (0.8, 0.3)]
    brush.area([*leaves, (0.62, 0.22), (0.5, 0.34), (0.38, 0.22)], GREEN)


def _watermelon(brush: Brush) -> None:
    brush.half_disc(0.5, 0.26, 0.48, (38, 105, 48))
    brush.half_disc(0.5, 0.26, 0.42, (205, 232, 180))
    brush.half_disc(0.5, 0.26, 0.37, (235, 70, 82))
    for x, y in (
        (0.28, 0.34),
        (0.42, 0.36),
        (0.58, 0.36),
        (0.72, 0.34),
        (0.36, 0.47),
        (0.5, 0.49),
        (0.64, 0.47),
    ):
        brush.disc(x, y, 0.026, (35, 25, 25), height=0.036)


def _cherry(brush: Brush) -> None:
    for x, y in ((0.26, 0.72), (0.74, 0.78)):
        brush.line([(x, y - 0.15), (x + 0.4 * (0.5 - x), 0.36), (0.56, 0.06)], 0.04, (90, 120, 45))
        brush.disc(x, y, 0.205, (148, 12, 42))
        brush.disc(x - 0.07, y - 0.07, 0.05, (235, 130, 150))
    brush.area([(0.54, 0.05), (0.74, 0.03), (0.97, 0.17), (0.74, 0.23)], GREEN)


def _pear(brush: Brush) -> None:
    skin = (190, 200, 70)
    brush.disc(0.5, 0.68, 0.31, skin, height=0.29)
    brush.disc(0.5, 0.32, 0.17, skin, height=0.2)
    brush.area([(0.34, 0.36), (0.66, 0.36), (0.79, 0.6), (0.21, 0.6)], skin)
    brush.disc(0.38, 0.66, 0.07, (228, 232, 150), height=0.13)
    brush.line([(0.5, 0.16), (0.56, 0.0)], 0.06, BROWN)


def _carrot(brush: Brush) -> None:
    for x in (0.3, 0.42, 0.58, 0.7):
        brush.line([(0.5, 0.3), (x, 0.02)], 0.07, GREEN)
    brush.area([(0.33, 0.3), (0.42, 0.24), (0.58, 0.24), (0.67, 0.3), (0.52, 0.99), (0.48, 0.99)], (238, 112, 28))
    for y, left, right in ((0.4, 0.36, 0.5), (0.53, 0.5, 0.6), (0.66, 0.42, 0.52)):
        brush.line([(left, y), (right, y)], 0.028, (190, 78, 12))


def _eggplant(brush: Brush) -> None:
    purple = (74, 26, 92)
    brush.disc(0.5, 0.66, 0.27, purple, height=0.31)
    brush.area([(0.35, 0.24), (0.65, 0.24), (0.755, 0.6), (0.245, 0.6)], purple)
    brush.disc(0.38, 0.6, 0.04, (165, 120, 185), height=0.16)
    brush.area([(0.3, 0.36), (0.32, 0.18), (0.68, 0.18), (0.7, 0.36), (0.58, 0.27), (0.5, 0.38), (0.42, 0.27)], GREEN)
    brush.line([(0.5, 0.2), (0.54, 0.02)], 0.09, GREEN)


def _tomato(brush: Brush) -> None:
    brush.disc(0.5, 0.56, 0.46, (220, 46, 36), height=0.38)
    brush.disc(0.24, 0.52, 0.05, (255, 165, 140), height=0.1)
    star = []
    for k in range(10):
        radius, angle = (0.27, 0.08)[k % 2], math.pi * k / 5 - math.pi / 2
        star.append((0.5 + radius * math.cos(angle), 0.33 + 0.75 * radius * math.sin(angle)))
    brush.area(star, (52, 120, 48))


def _corn(brush: Brush) -> None:
    brush.disc(0.5, 0.42, 0.2, (214, 160, 32), height=0.41)
    for row in range(9):
        y = 0.1 + row * 0.085
        reach = 0.19 * math.sqrt(max(0.0, 1 - ((y - 0.42) / 0.41) ** 2))
        for column in (-1, 0, 1):
            brush.disc(0.5 + column * reach * 0.66, y, 0.045, (252, 220, 95), height=0.034)
    brush.area([(0.5, 0.98), (0.22, 0.78), (0.2, 0.36), (0.36, 0.58), (0.5, 0.82)], (105, 165, 65))
    brush.area([(0.5, 0.98), (0.78, 0.78), (0.8, 0.36), (0.64, 0.58), (0.5, 0.82)], (80, 140, 50))


def _broccoli(brush: Brush) -> None:
    brush.area([(0.4, 0.5), (0.6, 0.5), (0.62, 0.97), (0.38, 0.97)], (165, 200, 115))
    brush.area([(0.2, 0.45), (0.32, 0.4), (0.5, 0.66), (0.42, 0.74)], (165, 200, 115))
    brush.area([(0.8, 0.45), (0.68, 0.4), (0.5, 0.66), (0.58, 0.74)], (165, 200, 115))
    florets = (
        (0.2, 0.4),
        (0.8, 0.4),
        (0.32, 0.24),
        (0.68, 0.24),
        (0.5, 0.18),
        (0.38, 0.42),
        (0.62, 0.42),
        (0.5, 0.34),
    )
    for x, y in florets:
        brush.disc(x, y, 0.165, (38, 92, 42))
        brush.disc(x - 0.02, y - 0.03, 0.115, (62, 128, 58))


def _blueberry(brush: Brush) -> None:
    for x, y in ((0.29, 0.66), (0.71, 0.68), (0.5, 0.32)):
        brush.disc(x, y, 0.26, (38, 54, 120))
        brush.disc(x - 0.02, y - 0.02, 0.215, (72, 96, 178))
        brush.disc(x + 0.03, y - 0.04, 0.1, (26, 34, 80))
        brush.disc(x + 0.03, y - 0.04, 0.05, (120, 145, 210))


FRUITS: dict[str, tuple[str, Callable[[Brush], None], Colour]] = {
    "apple": ("an", _apple, (196, 30, 45)),
    "banana": ("a", _banana, (248, 214, 52)),
    "blueberry": ("a", _blueberry, (38, 54, 120)),
    "broccoli": ("some", _broccoli, (38, 92, 42)),
    "carrot": ("a", _carrot, (238, 112, 28)),
    "cherry": ("a", _cherry, (148, 12, 42)),
    "corn": ("some", _corn, (214, 160, 32)),
    "eggplant": ("an", _eggplant, (74, 26, 92)),
    "grapes": ("some", _grapes, (88, 34, 110)),
    "lemon": ("a", _lemon, (250, 232, 60)),
    "lime": ("a", _lime, (110, 170, 45)),
    "orange": ("an", _orange, (245, 140, 25)),
    "pear": ("a", _pear, (190, 200, 70)),
    "strawberry": ("a", _strawberry, (228, 38, 58)),
    "tomato": ("a", _tomato, (220, 46, 36)),
    "watermelon": ("a", _watermelon, (38, 105, 48)),
}
"""Name -> its article, how it is drawn, the colour that its edges fade to. Sorted, as class folders are."""

CLASS_NAMES = tuple(FRUITS)
ARTICLES = {name: article for name, (article, _, _) in FRUITS.items()}


def draw(name: str, image_size: int, stream: np.random.Generator) -> Image.Image:
    """One picture of a fruit: a background, up to three small distractors, the fruit, tinted light, noise.

    Args:
        name: one of CLASS_NAMES.
        image_size: side of the picture, pixels; everything is drawn at twice the size and reduced.
        stream: where all random choices come from.

    Returns:
        RGB image. The fruit's side is 0.66-0.85 or (as often) 0.42-0.60 of the picture's, before a
        rotation by up to 35 degrees and a stretch of 0.88-1.12; it may be mirrored. Before these it lies
        within the picture.
    """
    side = 2 * image_size
    picture = _background(side, stream)
    _, paint, tint = FRUITS[name]
    brush = Brush(side, tint, stream.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3))
    paint(brush)
    scale = stream.uniform(0.66, 0.85) if stream.random() < 0.5 else stream.uniform(0.42, 0.60)
    angle, stretch = math.radians(stream.uniform(-35, 35)), stream.uniform(0.88, 1.12)
    flip = 1 if stream.random() < 0.5 else -1
    # the inverse of: mirror, stretch, rotate and scale about the centre, in a box that just holds the result
    cos, sin = math.cos(angle), math.sin(angle)
    width = math.ceil(scale * side * (stretch * cos + abs(sin)))
    height = math.ceil(scale * side * (stretch * abs(sin) + cos))
    a, b = flip * cos / (scale * stretch), flip * sin / (scale * stretch)
    d, e = -sin / scale, cos / scale
    inverse = (a, b, (side - a * width - b * height) / 2, d, e, (side - d * width - e * height) / 2)
    fruit = brush.layer.transform((width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)
    x, y = side / 2 + stream.uniform(-0.5, 0.5, 2) * (1 - scale) * side
    picture.paste(fruit, (round(x - width / 2), round(y - height / 2)), mask=fruit)
    light = (stream.uniform(0.65, 1.1) * stream.uniform(0.85, 1.15, 3)).astype(np.float32)
    pixels = light * np.asarray(picture.reduce(2), dtype=np.float32)
    noise = stream.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray((pixels + NOISE * noise + 0.5).clip(0, 255).astype(np.uint8))


def _background(side: int, stream: np.random.Generator) -> Image.Image:
    """A striped or blotched ground with up to three small plain shapes on it."""
    which = int(stream.integers(len(BACKGROUNDS)))
    base = np.array(BACKGROUNDS[which]) + stream.integers(-12, 13, 3)
    picture = Image.new("RGB", (side, side), _colour(base))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(stream.integers(4, 8))):
        shade = _colour(base + stream.integers(-26, 27))
        x, y, width, height = stream.random(4) * side
        if which % 2 == 0:
            pen.line((x, -1, y, side), fill=shade, width=2 + int(0.12 * width))
        else:
            pen.ellipse((x - width / 3, y - height / 3, x + width / 3, y + height / 3), fill=shade)
    for _ in range(int(stream.integers(4))):
        x, y = stream.random(2) * side
        radius = stream.uniform(0.04, 0.09) * side
        box = (x - radius, y - radius, x + radius, y + radius)
        shape = (pen.ellipse, pen.rectangle, functools.partial(_triangle, pen))[int(stream.integers(3))]
        shape(box, fill=_colour(stream.integers(30, 226, 3)))
    return picture


def _triangle(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], *, fill: Colour) -> None:
    left, top, right, bottom = box
    pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=fill)


def _colour(levels: np.ndarray) -> Colour:
    red, green, blue = (min(255, max(0, int(level))) for level in levels)
    return red, green, blue
