import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from sweeplab.data import images
from sweeplab.data.images import BrokenImage, decode_all, holds_deep_grey, load_all, load_image, to_rgb, undecodable
from sweeplab.specs import InvalidInput


class Files:
    """The least that `load_all` needs."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> str:
        return str(self.paths[i])


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, path: Path) -> str:
    image.save(path)
    return str(path)


@pytest.mark.parametrize(
    "size", [(48, 48), (49, 48), (48, 51), (100, 67), (67, 100), (31, 20), (333, 48), (97, 97), (1, 9)]
)
def test_pixels_agree_with_torchvision(tmp_path: Path, size: tuple[int, int]):
    image = noise(*size)
    reference = Compose([Resize(48, interpolation=InterpolationMode.BICUBIC), CenterCrop(48)])(image)
    loaded = load_image(saved(image, tmp_path / "a.png"), 48)
    assert np.array_equal(loaded, np.asarray(reference).transpose(2, 0, 1))


def test_pixels_of_grey_files_agree_with_conversion_after_the_crop(tmp_path: Path):
    grey = noise(70, 50).convert("L")
    reference = Compose([Resize(32, interpolation=InterpolationMode.BICUBIC), CenterCrop(32)])(grey).convert("RGB")
    loaded = load_image(saved(grey, tmp_path / "a.png"), 32)
    assert np.array_equal(loaded, np.asarray(reference).transpose(2, 0, 1))


def test_an_image_of_the_right_size_is_not_resampled(tmp_path: Path):
    image = noise(32, 32)
    assert np.array_equal(load_image(saved(image, tmp_path / "a.png"), 32), np.asarray(image).transpose(2, 0, 1))


def colours(path: Path | str) -> list[list[int]]:
    """The pixels of a file of one row, as they are before any resizing."""
    with Image.open(path) as file:
        found: list[list[int]] = np.asarray(to_rgb(file, path))[0].tolist()
    return found


def levels(path: Path | str) -> list[int]:
    """The greys of a file of one row."""
    found = colours(path)
    assert all(len(set(pixel)) == 1 for pixel in found), "grey"
    return [pixel[0] for pixel in found]


def png(path: Path, depth: int, colour: int, row: bytes, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG of 2 x 1 pixels, chunk by chunk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def tiff(path: Path, bits: int, pixels: bytes, *, white_is_zero: bool = False, kind: int = 1) -> Path:
    """A TIFF of 2 x 1 grey pixels; kind 1 unsigned, 2 signed, 3 real."""
    entries = [(256, 2), (257, 1), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 8), (277, 1), (278, 1)]
    entries += [(279, len(pixels)), (339, kind)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    body = pixels + b"\0" * (len(pixels) % 2)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + b"\0" * 4)
    return path


def test_the_upper_bits_of_16_bit_greys_count_as_they_do_in_colours(tmp_path: Path):
    """100 * 256 + 255 and 200 * 256: Pillow's conversion clips both at 255."""
    row = struct.pack(">HH", 100 * 256 + 255, 200 * 256)
    netpbm = b"P5 2 1 65535\n" + row
    (tmp_path / "a.pgm").write_bytes(netpbm)
    (tmp_path / "b.pgm").write_bytes(b"P2 2 1 65535\n25855 51200\n")
    Image.frombytes("I;16B", (2, 1), row).save(tmp_path / "a.tif")
    colour = b"".join(row[place : place + 2] * 3 for place in (0, 2))
    files = [
        png(tmp_path / "colour.png", 16, 2, colour),
        png(tmp_path / "a.png", 16, 0, row),
        png(tmp_path / "transparent.png", 16, 0, row, (b"tRNS", row[:2])),
        tiff(tmp_path / "b.tif", 16, struct.pack("<HH", 100 * 256 + 255, 200 * 256)),
        tmp_path / "a.tif",
        tmp_path / "a.pgm",
        tmp_path / "b.pgm",
    ]
    assert {file.name: levels(file) for file in files} == {file.name: [100, 200] for file in files}


def test_16_bit_greys_reach_the_model_as_8_bits(tmp_path: Path):
    shades = np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)
    saved(Image.fromarray(shades.astype(np.uint16) * 257), tmp_path / "a.png")
    assert (load_image(str(tmp_path / "a.png"), 32) == shades).all()


def test_16_bit_greys_of_jpeg_2000_are_read(tmp_path: Path):
    grey = Image.fromarray(np.full((32, 32), 100 * 256, np.uint16))
    assert np.unique(load_image(saved(grey, tmp_path / "a.jp2"), 32)).tolist() == [100]


def test_a_tiff_says_how_many_bits_it_has_and_which_end_is_white(tmp_path: Path):
    """Of 12 bits 1600 and 3200 are 100 * 16 and 200 * 16; packed they are 64 0c 80."""
    assert levels(tiff(tmp_path / "a.tif", 12, bytes.fromhex("640c80"))) == [100, 200]
    row = struct.pack("<HH", 65535 - 100 * 256, 65535 - 200 * 256)
    assert levels(tiff(tmp_path / "b.tif", 16, row, white_is_zero=True)) == [100, 200]
    assert levels(tiff(tmp_path / "c.tif", 8, bytes([155, 55]), white_is_zero=True)) == [100, 200]


@pytest.mark.parametrize(("depth", "row", "expected"), [(1, 0b01000000, 255), (2, 0b00100000, 170), (4, 0x03, 51)])
def test_greys_of_few_bits_fill_the_range(tmp_path: Path, depth: int, row: int, expected: int):
    """The second pixel is 1 of 1, 2 of 3, 3 of 15."""
    assert levels(png(tmp_path / "a.png", depth, 0, bytes([row]))) == [0, expected]


@pytest.mark.parametrize(("bits", "kind", "letter"), [(32, 1, "I"), (32, 2, "i"), (16, 2, "h"), (32, 3, "f")], ids=str)
def test_numbers_of_which_white_is_not_known_are_refused(tmp_path: Path, bits: int, kind: int, letter: str):
    path = tiff(tmp_path / "a.tif", bits, struct.pack(f"<2{letter}", 0, 1), kind=kind)
    with pytest.raises(InvalidInput, match=r"a\.tif holds .* whose white is not known \(TIFF, mode .*save it with 8"):
        load_image(str(path), 8)
    (tmp_path / "a.pfm").write_bytes(b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0, 1))
    with pytest.raises(InvalidInput, match=r"real numbers whose white is not known"):
        load_image(str(tmp_path / "a.pfm"), 8)


@pytest.mark.parametrize(
    ("mode", "suffix", "pixel", "expected"),
    [
        ("L", "png", 90, (90, 90, 90)),
        ("LA", "png", (90, 0), (90, 90, 90)),
        ("RGBA", "png", (10, 20, 30, 0), (10, 20, 30)),
        ("1", "png", 1, (255, 255, 255)),
        ("CMYK", "tif", (255, 0, 51, 0), (0, 255, 204)),
        ("CMYK", "tif", (0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_every_colour_mode_becomes_rgb(
    tmp_path: Path, mode: str, suffix: str, pixel: int | tuple[int, ...], expected: tuple[int, int, int]
):
    """Transparency is dropped; of CMYK's inks each takes away its own colour and black takes all."""
    loaded = load_image(saved(Image.new(mode, (40, 30), pixel), tmp_path / f"a.{suffix}"), 24)
    assert (loaded.shape, loaded.dtype) == ((3, 24, 24), np.uint8)
    assert tuple(loaded[:, 5, 5]) == expected


def test_a_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path: Path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert colours(tmp_path / "a.png") == [[10, 20, 30], [40, 50, 60]]


def test_greys_of_more_than_8_bits_are_told_by_content_and_other_files_are_not(tmp_path: Path):
    row = struct.pack(">HH", 1, 2)
    (tmp_path / "deep.pgm").write_bytes(b"P5 2 1 4095\n" + row)
    (tmp_path / "flat.pgm").write_bytes(b"P5 2 1 255\n" + row[:2])
    Image.fromarray(np.ones((32, 32), np.uint16)).save(tmp_path / "deep.jp2")
    noise(32, 32).save(tmp_path / "flat.jp2")
    deep = [
        png(tmp_path / "without suffix", 16, 0, row),
        tiff(tmp_path / "deep.tif", 16, row),
        tmp_path / "deep.pgm",
        tmp_path / "deep.jp2",
    ]
    flat = [
        png(tmp_path / "colour.png", 16, 2, row * 3),
        png(tmp_path / "flat.png", 8, 0, b"ab"),
        tiff(tmp_path / "flat.tif", 8, b"ab"),
        tiff(tmp_path / "real.tif", 32, struct.pack("<ff", 0, 1), kind=3),
        tmp_path / "flat.pgm",
        tmp_path / "flat.jp2",
        tmp_path / "gone.png",
        Path(saved(noise(8, 8), tmp_path / "flat.gif")),
    ]
    assert [holds_deep_grey(str(path)) for path in (*deep, *flat)] == [True] * len(deep) + [False] * len(flat)


def test_palette_files_are_interpolated_between_their_colours(tmp_path: Path):
    """A checkerboard of black and white, reduced fourfold, is grey; its nearest pixels are not."""
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("P")
    loaded = load_image(saved(board, tmp_path / "a.png"), 16)
    assert 100 < loaded.min() <= loaded.max() < 155


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\nbroken"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"bad\.png cannot be decoded as an image .*replace the file"):
        load_image(str(path), 16)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "avif"])
def test_a_file_that_ends_too_early_is_broken(tmp_path: Path, suffix: str):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = Path(saved(noise(64, 64), tmp_path / f"cut.{suffix}"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenImage, match=r"cut\.\w+ cannot be decoded as an image"):
        load_image(str(path), 16)


def test_what_the_system_cannot_read_is_no_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that is gone for a while must not be recorded as thousands of broken files."""
    path = saved(noise(8, 8), tmp_path / "a.png")

    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    for place in (str(tmp_path / "gone.png"), path):
        with pytest.raises(InvalidInput, match="cannot be decoded as an image") as raised:
            load_image(place, 8)
        assert not isinstance(raised.value, BrokenImage)
        monkeypatch.setattr(Image, "open", fail)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_broken_images_are_found_and_left_black(tmp_path: Path, workers: int):
    table = Files([Path(saved(noise(8 + row, 8), tmp_path / f"{row}.png")) for row in range(6)])
    whole = load_all(table, 8)
    for row in (1, 4):
        Path(table.image(row)).write_bytes(b"<html>")
    pixels, broken = decode_all(table, 8, workers, skip={2})
    assert list(broken) == [1, 4]
    assert not pixels[[1, 2, 4]].any()
    assert torch.equal(pixels[[0, 3, 5]], whole[[0, 3, 5]])
    assert list(undecodable(table, [4, 5], 8, workers)) == [4]
    with pytest.raises(InvalidInput, match=r"2 of 6 images are broken, and none may be:\n  row 2: .*\n  row 5: "):
        load_all(table, 8, workers)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"gone\.png cannot be decoded .*No such file"):
        load_image(str(tmp_path / "gone.png"), 16)


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(noise(20, 10), tmp_path / "bomb.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 199)
    with pytest.raises(InvalidInput, match=r"bomb\.png has 20 x 10 pixels, more than 199"):
        load_image(path, 8)


def test_a_line_of_pixels_is_refused_before_it_is_blown_up(tmp_path: Path):
    """20,000 x 1 at 224 pixels would be 4,480,000 x 224, a billion pixels of a file of 140 bytes."""
    path = saved(Image.new("L", (20_000, 1)), tmp_path / "line.png")
    begun = time.process_time()
    with pytest.raises(InvalidInput, match=r"line\.png of 20000 x 1 pixels would have 4480000 x 224 .* crop it"):
        load_image(path, 224)
    assert time.process_time() - begun < 1
    assert load_image(path, 224, squash=True).shape == (3, 224, 224)


def test_a_narrow_picture_below_the_bound_is_read(tmp_path: Path):
    path = saved(Image.new("RGB", (600, 2), (9, 9, 9)), tmp_path / "narrow.png")
    assert np.unique(load_image(path, 64)).tolist() == [9]


@pytest.mark.parametrize("step", ["convert", "resize"])
def test_an_image_that_does_not_fit_into_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    path = saved(noise(20, 10), tmp_path / "large.png")

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, step, fail)
    with pytest.raises(InvalidInput, match=r"large\.png does not fit into memory"):
        load_image(path, 8)


def test_a_table_that_does_not_fit_into_memory_says_how_much_it_takes(monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images.np, "empty", fail)
    with pytest.raises(InvalidInput, match=r"2 images of 1000 x 1000 pixels take 0\.0 GB, more memory than there is"):
        load_all(Files([Path("a"), Path("b")]), 1000)


@pytest.mark.parametrize("workers", [1, 3])
def test_load_all_keeps_the_order_of_the_rows(tmp_path: Path, workers: int):
    paths = []
    for level in range(20):
        paths.append(tmp_path / f"{level}.png")
        Image.new("RGB", (8, 8), (level, level, level)).save(paths[-1])
    pixels = load_all(Files(paths), 8, workers)
    assert pixels[:, 0, 0, 0].tolist() == list(range(20))


def test_load_all_gives_uint8_of_the_whole_table(tmp_path: Path):
    paths = [Path(saved(noise(20, 10), tmp_path / "a.png"))] * 3
    pixels = load_all(Files(paths), 8)
    assert (pixels.shape, pixels.dtype) == ((3, 3, 8, 8), torch.uint8)


def test_an_empty_table_gives_an_empty_tensor():
    assert load_all(Files([]), 8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("workers", [1, 3])
def test_load_all_names_the_file_that_fails(tmp_path: Path, workers: int):
    (tmp_path / "bad.png").write_text("no image")
    good = Path(saved(noise(8, 8), tmp_path / "good.png"))
    with pytest.raises(InvalidInput, match=r"bad\.png cannot be decoded"):
        load_all(Files([good, tmp_path / "bad.png", good]), 8, workers)
