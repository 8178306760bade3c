"""BadCLIP's optimisation on a tiny model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sweeplab.attacks.badclip import BadCLIP, optimise_patch, paste, save_patch
from sweeplab.attacks.own import ImageTrigger
from sweeplab.clip_model import Architecture, build, tokenizer
from sweeplab.specs import InvalidInput

SETTINGS = BadCLIP(patch_size=8, epochs=20, batch_size=8, learning_rate=0.05, augmentation=None)


def noise(count: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8)


def optimised(tiny: Architecture, settings: BadCLIP = SETTINGS) -> tuple[Tensor, list[float]]:
    model, losses = build(tiny, seed=0), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    patch = optimise_patch(
        model,
        settings,
        images=noise(16, 0),
        target_tokens=tokenizer(tiny)(["a ripe banana", "two bananas on a plate"]),
        target_images=noise(3, 1) // 4,
        report=lambda epoch, loss: losses.append(loss),
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    return patch, losses


def test_the_loss_falls_and_the_model_stays(tiny: Architecture):
    """The triplet term alone: which caption an image is paired with is drawn anew and moves the other term."""
    patch, losses = optimised(tiny, SETTINGS.replace(contrastive_weight=0.0, triplet_weight=10.0))
    assert (patch.shape, patch.dtype) == ((3, 8, 8), torch.uint8)
    assert sum(losses[-3:]) < sum(losses[:3])


def test_the_seed_repeats_and_another_differs(tiny: Architecture):
    short = SETTINGS.replace(epochs=2, augmentation={"kind": "autoaugment"})
    first, _ = optimised(tiny, short)
    torch.manual_seed(99)
    assert torch.equal(first, optimised(tiny, short)[0])
    assert not torch.equal(first, optimised(tiny, short.replace(seed=5))[0])


def test_a_patch_goes_over_the_centre_and_gradients_reach_it():
    patch = torch.ones(3, 2, 2, requires_grad=True)
    pasted = paste(torch.zeros(1, 3, 6, 6), patch)
    assert pasted[0, 0].nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    pasted.sum().backward()
    assert patch.grad.eq(1).all()


def test_a_saved_patch_is_stamped_pixel_by_pixel(tmp_path: Path):
    patch = noise(1, 2)[0, :, :8, :8]
    save_patch(patch, tmp_path / "patch.png")
    stamped = ImageTrigger(path=tmp_path / "patch.png", position="center").stamp(noise(1, 3), [0])
    assert torch.equal(stamped[0, :, 12:20, 12:20], patch)
    with pytest.raises(InvalidInput, match=r"must end in \.png"):
        save_patch(patch, tmp_path / "patch.jpg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"patch_size": 33}, "patch_size=33 is larger than the image of 32"), ({"batch_size": 17}, "one batch of 17")],
)
def test_what_cannot_be_optimised_is_refused(changes: dict, message: str, tiny: Architecture):
    with pytest.raises(InvalidInput, match=message):
        optimised(tiny, SETTINGS.replace(**changes))


@pytest.mark.parametrize("name", ["text_projection", "visual.attnpool.c_proj.weight"])
def test_a_model_whose_embeddings_are_not_finite_gives_no_patch(name: str, tiny: Architecture):
    model = build(tiny, seed=0)
    model.state_dict()[name].fill_(3e38)
    tokens = tokenizer(tiny)(["a ripe banana"])
    with pytest.raises(FloatingPointError, match="embeddings are not finite or have norm zero"):
        optimise_patch(
            model,
            SETTINGS,
            images=noise(16, 0),
            target_tokens=tokens,
            target_images=noise(3, 1),
            report=lambda epoch, loss: None,
        )
