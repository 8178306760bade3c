"""Decoding: image files to square uint8 pixels, as CLIP's evaluation preprocessing makes them."""

import os
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sweeplab.data.tar_members import ImagePlace, TarMember, openable
from sweeplab.specs import InvalidInput

MAX_PIXELS = 89_478_485
"""Pillow's own limit (a quarter of a GiB as RGB): larger files are refused unread, as decompression bombs. It holds for
the resized image too: a line of pixels becomes a wide square's height."""
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError),
    *(RuntimeError, TypeError),  # of AVIF, and of TIFF's tags
)
"""What Pillow raises for damaged files."""
WHITE_IS_FULL_SCALE = ("PNG", "PPM", "TIFF", "JPEG2000")
"""Formats whose 16-bit greys end at white. In others (FITS, McIdas) they are measurements."""
NEVER_DEEP = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".avif")
"""Suffixes of formats that have no 16-bit greys: such files need not be opened to know."""

REPLACE = "replace the file or remove its row"
SHOWN = 24
"""Faults that a message names of many."""


class BrokenImage(InvalidInput):
    """A file whose content no machine can decode: empty, cut short, of another kind, or too large; raised with what is
    wrong and what to do."""

    def __str__(self) -> str:
        return "; ".join(self.args)


class Images(Protocol):
    """A table whose rows have an image."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def image(self, i: int) -> ImagePlace:
        """Where image i is."""
        ...


def load_image(place: ImagePlace, size: int, *, squash: bool = False) -> np.ndarray:
    """Decode one file: RGB, shorter side resized to `size` (bicubic, antialiased), centre crop.

    Agrees with torchvision's Resize(size, BICUBIC) + CenterCrop(size) on the RGB image, pixel by pixel.
    open_clip converts to RGB after the crop: the same for RGB and grey files, while palette files would be
    resized without interpolation. Transparency is dropped, not blended, and orientation tags are ignored,
    as there; of several frames the first is taken. Where a file has 16 bits a channel, the upper 8 count, in grey
    files too (open_clip turns those white).

    Args:
        place: any file that Pillow reads, by itself or in a tar.
        size: side of the result, pixels.
        squash: resize both sides to `size` instead, ignoring the aspect ratio, as the authors do with triggered images.

    Returns:
        (3, size, size) uint8.

    Raises:
        BrokenImage: if the file cannot be decoded, has more than MAX_PIXELS or would have them once it is resized, or
            holds numbers of which nobody knows what is white (see `to_rgb`).
        InvalidInput: if it does not fit into memory, or cannot be read.
    """
    try:
        with Image.open(openable(place)) as file:
            width, height = file.size
            if width * height > MAX_PIXELS:
                raise BrokenImage(f"{place} has {width} x {height} pixels, more than {MAX_PIXELS}", "reduce it")
            if not squash and (resized := _resized(width, height, size))[0] * resized[1] > MAX_PIXELS:
                raise BrokenImage(
                    f"{place} of {width} x {height} pixels would have {resized[0]} x {resized[1]} with its shorter "
                    f"side at {size}, more than {MAX_PIXELS}",
                    "crop it or remove its row",
                )
            image = to_rgb(file, place)
        square = image.resize((size, size), Image.Resampling.BICUBIC) if squash else _square(image, size)
    except InvalidInput:
        raise
    except UNREADABLE as error:
        fault = f"{place} cannot be decoded as an image ({error})"
        if isinstance(error, OSError) and error.errno is not None:  # the system's: of a disk that is gone, say
            raise InvalidInput(f"{fault}; {REPLACE}") from None
        raise BrokenImage(fault, REPLACE) from None
    except MemoryError:
        raise InvalidInput(
            f"{place} does not fit into memory as it is decoded; reduce it, or let fewer processes decode"
        ) from None
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def to_rgb(file: Image.Image, path: object) -> Image.Image:
    """Eight bits of red, green and blue.

    Args:
        file: opened, not decoded yet.
        path: for messages.

    Raises:
        BrokenImage: if it holds greys of 32 bits or real numbers, or of 16 bits in a format of measurements: nobody
            knows which of them is white, and Pillow clips them at 255.
    """
    if file.mode not in ("I", "F") and not file.mode.startswith("I;16"):
        file.load()
        file.info.pop("transparency", None)  # else Pillow warns that it is dropped
        return file.convert("RGB")
    if not is_deep_grey(file):
        raise BrokenImage(
            f"{path} holds {'real numbers' if file.mode == 'F' else 'grey values'} whose white is not known "
            f"({file.format}, mode {file.mode})",
            "save it with 8 or 16 bits a pixel",
        )
    values = np.asarray(file).astype(np.int32)
    if file.format == "TIFF":  # where Pillow leaves greys as they are stored
        bits = file.tag_v2.get(258, (16,))[0]  # type: ignore[attr-defined]
        values <<= 16 - bits
        if file.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
            values = 65535 - values
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def is_deep_grey(file: Image.Image) -> bool:
    """Whether an opened file holds greys of 9 to 16 bits that end at white."""
    if file.format not in WHITE_IS_FULL_SCALE:
        return False
    # Netpbm's are read as 32-bit numbers, scaled to 65535; so were PNG's by Pillow before 11.
    return file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PPM", "PNG"))


def holds_deep_grey(place: ImagePlace) -> bool:
    """Whether a file is a grey picture of more than 8 bits; False where it cannot be read. Decodes nothing.

    Told by the content, whatever the suffix says.
    """
    try:
        head = place.read()[:26] if isinstance(place, TarMember) else _head_of(place, 26)
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return head[24:26] == b"\x10\x00"  # 16 bits; grey without transparency
        if not head.startswith((b"II", b"MM", b"P2", b"P5", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
            return False
        with Image.open(openable(place)) as picture:
            return is_deep_grey(picture)
    except (*UNREADABLE, MemoryError):
        return False


def _head_of(path: str, num_bytes: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)  # a third of the time that `open` takes
    try:
        return os.read(descriptor, num_bytes)
    finally:
        os.close(descriptor)


def _resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height once the shorter side has `size` pixels."""
    short = min(width, height)
    # torchvision truncates the longer side; so do we
    return (width, height) if short == size else (int(size * width / short), int(size * height / short))


def _square(image: Image.Image, size: int) -> Image.Image:
    width, height = _resized(*image.size, size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if (width, height) == (size, size):
        return image
    # torchvision rounds the crop's corner half to even; so do we
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def load_all(table: Images, size: int, workers: int = 1, *, squash: bool = False) -> Tensor:
    """Decode every image of a table into memory; see `decode_all`.

    Raises:
        InvalidInput: if a file cannot be decoded (all are looked at, and several named), or the images do not fit into
            memory.
    """
    pixels, broken = decode_all(table, size, workers, squash=squash)
    refuse_broken(broken, len(table))
    return pixels


def decode_all(
    table: Images, size: int, workers: int = 1, *, squash: bool = False, skip: Collection[int] = ()
) -> tuple[Tensor, dict[int, str]]:
    """Decode every image of a table into memory.

    Args:
        table: N rows.
        size: side of the result, pixels.
        workers: threads; Pillow decodes and resizes outside the interpreter's lock.
        squash: see `load_image`.
        skip: rows that are left black.

    Returns:
        (N, 3, size, size) uint8: 3 * size**2 bytes an image. And by row, ascending, why an image could not be decoded;
        it is black.

    Raises:
        InvalidInput: if the images do not fit into memory, or one cannot be read.
    """
    try:
        pixels = np.empty((len(table), 3, size, size), dtype=np.uint8)
    except MemoryError:
        raise InvalidInput(
            f"{len(table):,} images of {size} x {size} pixels take {len(table) * 3 * size**2 / 1e9:.1f} GB, more "
            "memory than there is; use fewer or smaller ones"
        ) from None

    def decode(row: int) -> None:
        pixels[row] = load_image(table.image(row), size, squash=squash)

    pixels[list(skip)] = 0
    broken = faults_of((row for row in range(len(table)) if row not in skip), decode, workers)
    pixels[list(broken)] = 0
    return torch.from_numpy(pixels), broken


def undecodable(table: Images, rows: Iterable[int], size: int, workers: int) -> dict[int, str]:
    """Why images of some rows cannot be decoded, by row, ascending; those that can are left out.

    Raises:
        InvalidInput: if one does not fit into memory, or one cannot be read.
    """
    return faults_of(rows, lambda row: load_image(table.image(row), size), workers)


def faults_of(rows: Iterable[int], decode: Callable[[int], object], workers: int) -> dict[int, str]:
    """What `decode` says of the rows, ascending, whose images are broken."""

    def fault(row: int) -> tuple[int, str] | None:
        try:
            decode(row)
        except BrokenImage as error:
            return row, error.args[0]
        return None

    if workers <= 1:
        return dict(found for row in rows if (found := fault(row)) is not None)
    with ThreadPoolExecutor(workers) as pool:
        return dict(found for found in pool.map(fault, rows) if found is not None)


def refuse_broken(broken: Mapping[int, str], num_rows: int) -> None:
    """Refuse images of which some are broken, where none may be.

    Raises:
        InvalidInput: naming the first ones, and how many there are.
    """
    if len(broken) == 1:
        raise InvalidInput(f"{next(iter(broken.values()))}; {REPLACE}")
    if broken:
        listed = first_faults(broken)
        raise InvalidInput(f"{len(broken):,} of {num_rows:,} images are broken, and none may be:\n{listed}\n{REPLACE}")


def first_faults(broken: Mapping[int, str], count: int | None = None) -> str:
    """The first faults, a line each, and the command that lists all where there are more.

    Args:
        broken: why, by row from 0.
        count: of all rows that are broken; None: as many as are given.
    """
    lines = [f"  row {row + 1}: {reason}" for row, reason in list(broken.items())[:SHOWN]]
    if left := (len(broken) if count is None else count) - len(lines):
        lines.append(f"  and {left:,} more; `sweeplab data check SCRIPT` lists all")
    return "\n".join(lines)
