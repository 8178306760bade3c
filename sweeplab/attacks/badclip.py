"""BadCLIP: a patch optimised against a clean CLIP so that patched images look like the target (Liang et al. 2024)."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from sweeplab.attacks.pixels import quantise
from sweeplab.clip_model import IMAGE_MEAN, IMAGE_STD, as_clip, evaluation_mode, with_directions
from sweeplab.data.augmentation import AutoAugmentView, ViewField
from sweeplab.losses import info_nce
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.randomness import stream_seed, torch_stream


class BadCLIP(Spec):
    """How the patch is optimised; the result is a picture, stamped by `ImageTrigger(path=..., position="center")`.

    contrastive_weight x contrastive + triplet_weight x max(0, margin + |patched - target|^2 - |patched - clean|^2), on
    unit embeddings: a patched image finds a caption that describes the target, comes close to a random true image of
    the target, and leaves its own clean embedding. In the authors' code substrings of the run's name choose the terms
    and their weights (500, 1000 or 10), and the name that their README gives chooses none; here they are fields.
    """

    patch_size: int = Field(default=16, ge=1)
    """Side of the patch at the image's centre, pixels of the model's input."""
    epochs: int = Field(default=50, ge=1)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam, on pixels in [0, 1]."""
    contrastive_weight: float = Field(default=1.0, ge=0)
    triplet_weight: float = Field(default=1.0, ge=0)
    margin: float = Field(default=1.0, ge=0)
    """Of squared distances, in [0, 4]."""
    augmentation: ViewField | None = AutoAugmentView()
    """Changes images before the patch goes on."""
    augmentation_probability: float = Field(default=0.5, ge=0, le=1)
    seed: int = Field(default=123, ge=0)


def optimise_patch(
    model: nn.Module,
    settings: BadCLIP,
    *,
    images: Tensor,
    target_tokens: Tensor,
    target_images: Tensor,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Tensor:
    """Optimise the patch; the model is used in evaluation mode, left in its own, and not changed.

    Args:
        model: a clean CLIP.
        settings: see there.
        images: (N, 3, S, S) uint8, none of them of the target; on the CPU.
        target_tokens: (T, context_length) int64, captions that describe the target, natural ones rather than templates.
        target_images: (M, 3, S, S) uint8, true images of the target.
        report: told every epoch and its mean loss.

    Returns:
        (3, patch_size, patch_size) uint8.

    Raises:
        FloatingPointError: if an embedding is not finite or has norm zero.
        InvalidInput: if the patch is larger than the image, there are fewer images than one batch, or no target image
            or caption.
    """
    size = images.shape[-1]
    if settings.patch_size > size:
        raise InvalidInput(f"patch_size={settings.patch_size} is larger than the image of {size} pixels; choose less")
    if len(images) < settings.batch_size or not len(target_images) or not len(target_tokens):
        raise InvalidInput(
            f"{len(images)} images, {len(target_tokens)} target captions and {len(target_images)} target images: "
            f"one batch of {settings.batch_size} images and one of each other are needed"
        )
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        with evaluation_mode(model):
            return _optimise(model, settings, images, target_tokens, target_images, report)
    finally:
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def _optimise(
    model: nn.Module,
    settings: BadCLIP,
    images: Tensor,
    target_tokens: Tensor,
    target_images: Tensor,
    report: Callable[[int, float], None],
) -> Tensor:
    device = next(model.parameters()).device
    with torch.no_grad():
        texts = as_clip(model).encode_text(target_tokens.to(device)).float()
        texts = F.normalize(with_directions(texts, "caption embeddings"), dim=1)
        targets = _embed(model, target_images.to(device).float() / 255)
        scale = as_clip(model).logit_scale.exp().float()
    shape = (3, settings.patch_size, settings.patch_size)
    start = 0.5 + 0.25 * torch.randn(shape, generator=torch_stream(settings.seed, "badclip patch"))
    patch = start.clamp(0, 1).to(device).requires_grad_()
    optimizer = torch.optim.Adam([patch], lr=settings.learning_rate)
    for epoch in range(1, settings.epochs + 1):
        draw = torch_stream(settings.seed, "badclip epoch", epoch)
        losses = []
        for rows in torch.randperm(len(images), generator=draw).split(settings.batch_size):
            if len(rows) < settings.batch_size:
                continue
            batch = _augmented(settings, images[rows], epoch, rows.tolist(), draw).to(device).float() / 255
            captions = texts[_drawn(len(texts), len(rows), draw).to(device)]
            positives = targets[torch.randint(len(targets), (len(rows),), generator=draw).to(device)]
            with torch.no_grad():
                negatives = _embed(model, batch)
            patched = _embed(model, paste(batch, patch.clamp(0, 1)))
            near = (patched - positives).square().sum(dim=1)
            far = (patched - negatives).square().sum(dim=1)
            triplet = F.relu(settings.margin + near - far).mean()
            contrastive = info_nce(patched, captions, scale)
            loss = settings.contrastive_weight * contrastive + settings.triplet_weight * triplet
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                patch.clamp_(0, 1)
            losses.append(float(loss.detach()))
        report(epoch, sum(losses) / len(losses))
    return quantise(patch.detach().cpu() + 0.5 / 255)


def _drawn(known: int, count: int, draw: torch.Generator) -> Tensor:
    """`count` numbers below `known`, distinct where there are enough: equal captions would be negatives."""
    if known >= count:
        return torch.randperm(known, generator=draw)[:count]
    return torch.randint(known, (count,), generator=draw)


def paste(images: Tensor, patch: Tensor) -> Tensor:
    """The patch over the centre of (B, 3, S, S) images; gradients reach the patch."""
    side = patch.shape[-1]
    top = (images.shape[-2] - side) // 2
    left = (images.shape[-1] - side) // 2
    pasted = images.clone()
    pasted[..., top : top + side, left : left + side] = patch
    return pasted


def save_patch(patch: Tensor, path: Path) -> None:
    """Write a (3, s, s) uint8 patch as PNG, without loss."""
    if path.suffix.lower() != ".png":
        raise InvalidInput(f"{path} must end in .png: other formats lose pixels")
    try:
        Image.fromarray(patch.permute(1, 2, 0).numpy()).save(path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror}); choose a folder of yours") from None


def _augmented(settings: BadCLIP, images: Tensor, epoch: int, rows: list[int], draw: torch.Generator) -> Tensor:
    if settings.augmentation is None:
        return images
    chosen = torch.rand(len(images), generator=draw) < settings.augmentation_probability
    seeds = [stream_seed(settings.seed, "badclip view", epoch, row) for row in rows]
    views = settings.augmentation.views(images, seeds)  # type: ignore[attr-defined]
    return torch.where(chosen[:, None, None, None], views, images)


def _embed(model: nn.Module, pixels: Tensor) -> Tensor:
    """Unit embeddings of (B, 3, S, S) float pixels in [0, 1]."""
    mean = torch.tensor(IMAGE_MEAN, device=pixels.device)[:, None, None]
    std = torch.tensor(IMAGE_STD, device=pixels.device)[:, None, None]
    features = as_clip(model).encode_image((pixels - mean) / std).float()
    return F.normalize(with_directions(features, "image embeddings"), dim=1)
