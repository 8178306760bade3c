"""What holds for every attack, and each attack's pixels by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sweeplab.attacks import ATTACKS
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.attacks.own import ImageTrigger
from sweeplab.attacks.pixels import quantise
from sweeplab.attacks.sig import SIG
from sweeplab.attacks.structured import BlendedText, BlendedTriangles
from sweeplab.attacks.wanet import WaNet
from sweeplab.specs import InvalidInput, Spec, kinds

VARIANTS = (
    BadNet(patch_size=5, pattern="binary"),
    BadNet(overflow="wrap"),
    BadNet(noise="fixed"),
    BadNet(noise="fixed", location="four-corners"),
    Blended(alpha=0.5),
    Blended(noise="fixed", noise_seed=3),
)
LOGO = Path(__file__).parent / "logo.png"
"""7 x 9 pixels of noise, the right half faint."""
EVERY_ATTACK = [*(attack() for attack in ATTACKS if attack is not ImageTrigger), ImageTrigger(path=LOGO), *VARIANTS]


def label(attack: Spec) -> str:
    return "-".join([attack.kind, *(str(value) for name, value in attack.canonical().items() if name != "kind")])


every_attack = pytest.mark.parametrize("attack", EVERY_ATTACK, ids=label)


def photos(count: int = 3, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(256, (count, 3, height, width), generator=torch.Generator().manual_seed(8), dtype=torch.uint8)


SAME_FOR_EVERY_SEED = {WaNet, SIG, BlendedTriangles, BlendedText, ImageTrigger}
"""Attacks whose trigger is one fixed pattern at one place."""


def is_the_same_for_every_seed(attack: Spec) -> bool:
    if isinstance(attack, BadNet):
        return attack.noise == "fixed" and attack.location != "random"
    return type(attack) in SAME_FOR_EVERY_SEED or getattr(attack, "noise", None) == "fixed"


# --- every attack ---------------------------------------------------------------------------------------------------


@every_attack
@pytest.mark.parametrize("size", [32, 48, 224, 336])
def test_a_triggered_copy_has_shape_and_type_of_the_image(attack: Spec, size: int):
    images = photos(2, size, size)
    stamped = attack.stamp(images, [1, 2])
    assert (stamped.shape, stamped.dtype) == (images.shape, torch.uint8)
    assert not torch.equal(stamped, images)


@every_attack
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"))],
)
def test_a_trigger_is_the_same_on_every_device(attack: Spec, device: str):
    """Where the pixels lie they stay, and they agree with the CPU's to one level of 255 (rounding of products)."""
    stamped = attack.stamp(photos().to(device), [1, 2, 3])
    assert stamped.device.type == device
    difference = stamped.cpu().int() - attack.stamp(photos(), [1, 2, 3]).int()
    assert int(difference.abs().max()) <= (1 if device == "cuda" else 0)


@every_attack
def test_every_image_of_a_batch_is_triggered(attack: Spec):
    changed = (attack.stamp(photos(), [1, 2, 3]) != photos()).flatten(1).any(dim=1)
    assert changed.all()


@every_attack
def test_stamping_leaves_the_images_as_they_are(attack: Spec):
    images = photos()
    attack.stamp(images, [1, 2, 3])
    assert torch.equal(images, photos())


@every_attack
def test_the_same_seed_gives_the_same_pixels(attack: Spec):
    assert torch.equal(attack.stamp(photos(), [1, 2, 3]), attack.stamp(photos(), [1, 2, 3]))


@every_attack
def test_another_seed_gives_other_pixels_unless_the_trigger_is_fixed(attack: Spec):
    is_same = torch.equal(attack.stamp(photos(1), [1]), attack.stamp(photos(1), [2]))
    assert is_same is is_the_same_for_every_seed(attack)


@every_attack
def test_a_trigger_depends_on_its_own_seed_alone(attack: Spec):
    images, seeds = photos(), [11, 2**62, 5]
    together = attack.stamp(images, seeds)
    for row, seed in enumerate(seeds):
        assert torch.equal(attack.stamp(images[row : row + 1], [seed])[0], together[row])
    assert torch.equal(attack.stamp(images.flip(0), seeds[::-1]), together.flip(0))


@every_attack
def test_no_global_random_stream_moves(attack: Spec):
    before = torch.random.get_rng_state()
    attack.stamp(photos(), [1, 2, 3])
    assert torch.equal(torch.random.get_rng_state(), before)


@every_attack
def test_two_attacks_with_equal_fields_give_the_same_pixels(attack: Spec):
    twin = type(attack).model_validate(attack.to_json())
    assert twin == attack
    assert torch.equal(twin.stamp(photos(), [1, 2, 3]), attack.stamp(photos(), [1, 2, 3]))


@every_attack
def test_an_empty_batch_stays_empty(attack: Spec):
    assert attack.stamp(photos()[:0], []).shape == (0, 3, 32, 32)


@every_attack
@pytest.mark.parametrize("seeds", [[1, 2], [1, 2, 3, 4]], ids=["too few", "too many"])
def test_no_image_is_left_clean_for_want_of_a_seed(attack: Spec, seeds: list[int]):
    if is_the_same_for_every_seed(attack) and not isinstance(attack, BadNet):
        assert (attack.stamp(photos(3), seeds) != photos(3)).flatten(1).any(dim=1).all()
    else:
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is"):
            attack.stamp(photos(3), seeds)


@every_attack
@pytest.mark.parametrize("size", [32, 224, 336])
def test_an_attack_fits_images_of_usual_sizes(attack: Spec, size: int):
    attack.check_fits(size)


def test_kinds_are_distinct():
    assert len(set(kinds(ATTACKS))) == len(ATTACKS)


# --- quantise -------------------------------------------------------------------------------------------------------


def test_quantise_truncates_by_hand():
    """254.9 / 255 of white is level 254, not 255; half of white is 127.5, level 127."""
    assert quantise(torch.tensor([0.0, 254.9 / 255, 0.5, 1.0]), "clip").tolist() == [0, 254, 127, 255]


def test_quantise_clips_or_wraps_by_hand():
    """1.5 is 382.5: clipped 255, wrapped 382 - 256 = 126. -0.5 is -127.5: clipped 0, wrapped -127 + 256 = 129. -1 is
    -255: wrapped 1. 5 is 1275: wrapped 1275 - 4 x 256 = 251."""
    pixels = torch.tensor([1.5, -0.5, -1.0, 5.0])
    assert quantise(pixels, "clip").tolist() == [255, 0, 0, 255]
    assert quantise(pixels, "wrap").tolist() == [126, 129, 1, 251]


# --- BadNet ---------------------------------------------------------------------------------------------------------


def changed_box(stamped: Tensor, image: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of the rows and columns that differ."""
    differs = (stamped != image).any(dim=0)
    rows, columns = differs.any(dim=1).nonzero().flatten(), differs.any(dim=0).nonzero().flatten()
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


def test_badnet_changes_one_square_and_nothing_else():
    """On grey 7, which a binary patch never has, every pixel of the patch differs."""
    images = torch.full((20, 3, 32, 40), 7, dtype=torch.uint8)
    for stamped in BadNet(patch_size=6, pattern="binary").stamp(images, range(20)):
        top, left, height, width = changed_box(stamped, images[0])
        assert (height, width) == (6, 6)
        patch = stamped[:, top : top + 6, left : left + 6]
        assert set(patch.unique().tolist()) == {0, 255}
        assert (stamped != 7).sum() == 3 * 6 * 6


def test_badnet_reaches_every_legal_place():
    """A patch of 31 in 32 pixels has two rows and two columns to start from."""
    images = torch.full((40, 3, 32, 32), 7, dtype=torch.uint8)
    stamped = BadNet(patch_size=31, pattern="binary").stamp(images, range(40))
    assert {changed_box(each, images[0])[:2] for each in stamped} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_badnet_patch_may_be_as_large_as_the_image():
    stamped = BadNet(patch_size=32, pattern="binary").stamp(torch.full((1, 3, 32, 32), 7, dtype=torch.uint8), [0])
    assert set(stamped.unique().tolist()) == {0, 255}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64), (64, 32)])
def test_a_badnet_patch_larger_than_the_image_is_refused(height: int, width: int):
    attack = BadNet(patch_size=33)
    with pytest.raises(InvalidInput, match="patch_size=33 is larger than the image of 32 pixels; choose at most 32"):
        attack.stamp(photos(1, height, width), [0])
    with pytest.raises(InvalidInput, match="choose at most 32"):
        attack.check_fits(32)


@pytest.mark.parametrize(
    ("location", "places"),
    [
        ("top-left", {(0, 0)}),
        ("top-right", {(0, 42)}),
        ("bottom-left", {(26, 0)}),
        ("bottom-right", {(26, 42)}),
        ("center", {(13, 21)}),
        ("four-corners", {(0, 0), (0, 42), (26, 0), (26, 42)}),
    ],
)
def test_a_fixed_place_by_hand(location: str, places: set[tuple[int, int]]):
    """A patch of 6 in 32 x 48 pixels: the last row to start from is 26, the last column 42, the middle 13 and 21."""
    image = torch.full((3, 32, 48), 7, dtype=torch.uint8)
    attack = BadNet(patch_size=6, pattern="binary", location=location)
    (stamped,) = attack.stamp(image[None], [5])
    expected = image.clone()
    patch = attack.draw_patch(image, torch.Generator().manual_seed(5))
    for top, left in places:
        expected[:, top : top + 6, left : left + 6] = patch
    assert torch.equal(stamped, expected)


def test_a_yellow_patch_is_yellow():
    stamped = BadNet(patch_size=4, pattern="yellow", location="top-left").stamp(photos(1), [0])
    assert stamped[0, :, :4, :4].flatten(1).unique(dim=1).flatten().tolist() == [255, 255, 0]


def test_a_fixed_patch_is_the_same_for_all_seeds_up_to_its_place():
    images = torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
    stamped = BadNet(patch_size=5, pattern="binary", noise="fixed").stamp(images, [1, 2])
    patches = []
    for each in stamped:
        top, left, *_ = changed_box(each, images[0])
        patches.append(each[:, top : top + 5, left : left + 5])
    assert torch.equal(*patches)
    other = BadNet(patch_size=5, pattern="binary", noise="fixed", noise_seed=1).stamp(images, [1, 2])
    assert not torch.equal(other, stamped)


def test_the_badnet_patch_has_the_colour_of_its_image_plus_noise_of_unit_variance():
    """On colours 0.2, 0.5, 0.8 the clipped patch keeps noise within [-mean, 1 - mean]; where nothing is clipped, the
    level is 255 (mean + n), so (level / 255 - mean) is the drawn n up to truncation."""
    image = torch.tensor([51, 128, 204], dtype=torch.uint8)[:, None, None].expand(3, 40, 40)
    patch = BadNet(patch_size=40).draw_patch(image, torch.Generator().manual_seed(4)).float()
    noise = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(4))
    expected = 255 * (image.float() / 255 + noise)
    inside = (expected >= 0) & (expected < 255)
    assert 0.3 < float(inside.float().mean()) < 0.45  # P(0 <= mean + n < 1) is 0.37 to 0.38
    assert ((expected - patch)[inside] >= -1e-3).all()
    assert ((expected - patch)[inside] < 1.001).all()
    assert set(patch[~inside].unique().tolist()) == {0.0, 255.0}


def test_a_wrapped_badnet_patch_is_nearly_uniform():
    """Uniform levels 0 .. 255 have mean 127.5 and standard deviation 73.9; clipped ones pile up at the ends."""
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    draw = torch.Generator().manual_seed(0)
    wrapped = BadNet(patch_size=64, overflow="wrap").draw_patch(image, draw).float()
    assert float(wrapped.mean()) == pytest.approx(127.5, abs=3)
    assert float(wrapped.std()) == pytest.approx(73.9, abs=2)


@pytest.mark.parametrize("size", [0, -1])
def test_a_badnet_patch_has_a_size(size: int):
    with pytest.raises(InvalidInput, match=f"patch_size={size}"):
        BadNet(patch_size=size)


# --- Blended --------------------------------------------------------------------------------------------------------


def test_blended_by_hand():
    """alpha 0.2, level 100, noise 0.5: 0.8 x 100 + 0.2 x 127.5 = 105.5, truncated 105. Noise 0 leaves 80, and 240 with
    noise 1 is 192 + 51 = 243."""
    images = torch.tensor([100, 100, 240], dtype=torch.uint8)[:, None, None]
    noise = torch.tensor([0.5, 0.0, 1.0])[:, None, None]
    assert Blended().blend(images, noise).flatten().tolist() == [105, 80, 243]


def test_blended_with_alpha_1_is_the_noise_alone():
    stamped = Blended(alpha=1.0).stamp(photos(1), [9])
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(9))
    assert torch.equal(stamped[0], (255 * noise).to(torch.uint8))


def test_blended_moves_a_pixel_by_at_most_alpha_of_the_range():
    difference = Blended(alpha=0.2).stamp(photos(), [1, 2, 3]).int() - photos().int()
    assert difference.abs().max() <= 0.2 * 255 + 1


def test_fixed_noise_is_one_pattern_for_all_images_and_seeds():
    same = photos(1).expand(3, -1, -1, -1)
    stamped = Blended(noise="fixed").stamp(same, [1, 2, 3])
    assert torch.equal(stamped[0], stamped[1])
    assert torch.equal(stamped[0], stamped[2])
    assert not torch.equal(stamped, Blended(noise="fixed", noise_seed=1).stamp(same, [1, 2, 3]))


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1])
def test_a_share_of_noise_outside_0_to_1_is_refused(alpha: float):
    with pytest.raises(InvalidInput, match=f"alpha={alpha}"):
        Blended(alpha=alpha)


# --- the user's own picture -----------------------------------------------------------------------------------------


def picture(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_an_own_picture_by_hand(tmp_path: Path):
    """A red pixel at half transparency beside an opaque blue one, on grey 100: 0.5 x 100 + 0.5 x 255 = 177.5."""
    red_blue = np.array([[[255, 0, 0, 128], [0, 0, 255, 255]]], dtype=np.uint8)
    attack = ImageTrigger(path=picture(tmp_path / "t.png", red_blue), position=(1, 2))
    stamped = attack.stamp(torch.full((1, 3, 4, 5), 100, dtype=torch.uint8), [0])[0]
    assert stamped[:, 1, 2].tolist() == [178, 50, 50]
    assert stamped[:, 1, 3].tolist() == [0, 0, 255]
    assert int((stamped != 100).any(dim=0).sum()) == 2


@pytest.mark.parametrize(
    ("position", "place"), [("top-left", (0, 0)), ("bottom-right", (5, 6)), ("center", (2, 3)), ((1, 4), (1, 4))]
)
def test_an_own_picture_lies_where_it_is_put(position: object, place: tuple[int, int], tmp_path: Path):
    path = picture(tmp_path / "dot.png", np.zeros((1, 1, 3), dtype=np.uint8))
    stamped = ImageTrigger(path=path, position=position).stamp(torch.full((1, 3, 6, 7), 9, dtype=torch.uint8), [0])
    assert (stamped[0, 0] == 0).nonzero().tolist() == [list(place)]


def test_an_own_picture_is_known_by_its_content_and_not_by_its_place(tmp_path: Path):
    (tmp_path / "b").mkdir()
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    first = ImageTrigger(path=picture(tmp_path / "a.png", pixels))
    second = ImageTrigger(path=picture(tmp_path / "b" / "c.png", pixels))
    other = ImageTrigger(path=picture(tmp_path / "d.png", pixels + 1))
    assert first.canonical() == second.canonical() != other.canonical()


def test_an_own_picture_that_changed_is_refused(tmp_path: Path):
    path = picture(tmp_path / "a.png", np.zeros((2, 2, 3), dtype=np.uint8))
    held = ImageTrigger(path=path).to_json()
    picture(path, np.ones((2, 2, 3), dtype=np.uint8))
    with pytest.raises(InvalidInput, match="restore the file"):
        ImageTrigger.model_validate(held)


def test_an_own_picture_of_more_than_8_bits_is_refused(tmp_path: Path):
    """Pillow would stamp it white."""
    path = picture(tmp_path / "deep.png", np.full((2, 2), 300, dtype=np.uint16))
    with pytest.raises(InvalidInput, match=r"deep\.png has more than 8 bits a pixel \(mode I;16\); save it with 8"):
        ImageTrigger(path=path)


def test_an_own_picture_that_is_missing_or_no_picture_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="cannot be read"):
        ImageTrigger(path=tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InvalidInput, match="no picture that can be decoded"):
        ImageTrigger(path=tmp_path / "text.png")


def test_a_picture_that_a_command_makes_is_planned_before_it_is_there(tmp_path: Path):
    """Made or not, it is the same trigger but for its content; smoke runs have a picture of their own until then."""
    path = tmp_path / "patch.png"
    planned = ImageTrigger(path=path, position="center", made_by="make a patch")
    for needs_it in (planned.picture, lambda: planned.check_fits(224), lambda: planned.stamp(photos(1, 8, 8), [0])):
        with pytest.raises(InvalidInput, match=r"patch\.png is not there yet; make it: make a patch"):
            needs_it()
    assert planned.in_miniature().picture()[0].shape == (3, 6, 6)
    made = ImageTrigger(path=picture(path, np.zeros((8, 8, 3), dtype=np.uint8)), position="center")
    assert planned.replace().canonical() == made.canonical() != planned.canonical()
    assert made.in_miniature() is made
    assert made.replace(size=64).in_miniature() == planned.in_miniature()


def test_a_text_of_blanks_is_refused():
    with pytest.raises(InvalidInput, match="a text of blanks alone leaves no trace"):
        BlendedText(text="  ")


def test_an_own_picture_larger_than_the_image_is_refused():
    with pytest.raises(InvalidInput, match="leaves the image of 8 pixels"):
        ImageTrigger(path=LOGO).check_fits(8)
    assert ImageTrigger(path=LOGO, size=6).stamp(photos(1, 8, 8), [0]).shape == (1, 3, 8, 8)
