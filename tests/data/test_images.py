from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from sweeplab.data import images
from sweeplab.data.images import load_all, load_image
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


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "1", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str):
    path = saved(noise(40, 30).convert(mode), tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    loaded = load_image(path, 24)
    assert (loaded.shape, loaded.dtype) == ((3, 24, 24), np.uint8)


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


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif"])
def test_a_file_that_ends_too_early_is_named(tmp_path: Path, suffix: str):
    path = Path(saved(noise(64, 64), tmp_path / f"cut.{suffix}"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidInput, match=r"cut\.\w+ cannot be decoded as an image"):
        load_image(str(path), 16)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"gone\.png cannot be decoded .*No such file"):
        load_image(str(tmp_path / "gone.png"), 16)


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(noise(20, 10), tmp_path / "bomb.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 199)
    with pytest.raises(InvalidInput, match=r"bomb\.png has 20 x 10 pixels, more than 199"):
        load_image(path, 8)


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
