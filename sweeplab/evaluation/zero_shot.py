"""Zero-shot classification by prompt templates (Radford et al. 2021, Sec. 3.1.4)."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeplab.clip_model import as_clip, encode_text, normalise_pixels, trimmed, with_directions
from sweeplab.training import ranks

AVERAGED_OUT = 1e-6
"""Of a mean of unit vectors, a norm that is nothing but rounding in float32."""


def class_weights_from(text_embeddings: Tensor) -> Tensor:
    """Average each class's templates on the unit sphere.

    Args:
        text_embeddings: (C, T, D), any norm.

    Returns:
        (C, D), rows of unit norm: each template embedding is normalised, averaged over the templates, normalised again.

    Raises:
        FloatingPointError: if an embedding, or a class's average, is not finite or has norm zero.
    """
    templates = F.normalize(with_directions(text_embeddings, "prompt embeddings"), dim=-1)
    return F.normalize(with_directions(templates.mean(dim=1), "class weights", least=AVERAGED_OUT), dim=-1)


def prompt_tokens(
    tokenize: Callable[[list[str]], Tensor], class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """All prompts as tokens. ImageNet's 80,000 take seconds, so whoever measures often makes them once.

    Args:
        tokenize: list of texts -> (N, context_length) int64.
        class_names: C names.
        templates: T texts with one `{}` for the name.

    Returns:
        (C, T, l) int64, l tokens in the longest prompt.
    """
    texts = [template.format(name) for name in class_names for template in templates]
    return trimmed(tokenize(texts)).unflatten(0, (len(class_names), len(templates)))


@torch.inference_mode()
def class_weights(model: nn.Module, prompts: Tensor, *, device: torch.device, batch_size: int = 1024) -> Tensor:
    """One weight row per class from all its prompts.

    Prompts are encoded in large batches of similar length, each trimmed to its longest. The ranks share the classes.

    Args:
        model: an open_clip model in evaluation mode.
        prompts: (C, T, l) int64 on the CPU; see `prompt_tokens`.
        device: where the model lies.
        batch_size: texts per forward pass.

    Returns:
        (C, D), rows of unit norm, on the device; the same on every rank.

    Raises:
        FloatingPointError: as `class_weights_from` does, on every rank.
    """
    share = prompts.tensor_split(ranks.world_size())[ranks.rank()]
    parts = ranks.gather_computed(lambda: _class_weights(model, share, device, batch_size))
    return torch.cat([part for part in parts if part is not None]).to(device)


def _class_weights(model: nn.Module, prompts: Tensor, device: torch.device, batch_size: int) -> Tensor | None:
    """Of some classes, on the CPU; None where there are none."""
    if not len(prompts):
        return None
    tokens = prompts.flatten(0, 1)
    order = (tokens != 0).sum(dim=1).argsort(stable=True)
    embeddings = [encode_text(model, trimmed(tokens[rows]).to(device)).float() for rows in order.split(batch_size)]
    in_order = torch.cat(embeddings)[order.argsort().to(device)]
    return class_weights_from(in_order.unflatten(0, prompts.shape[:2])).cpu()


def zero_shot_classifier(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """Scores of image features by class weights (C, D): inner products; the features' norms do not change an order."""
    return lambda features: features @ weights.T


@torch.inference_mode()
def scores_of(
    model: nn.Module, images: Tensor, classify: Callable[[Tensor], Tensor], *, device: torch.device
) -> Tensor:
    """(B, C) scores of (B, 3, H, W) uint8 images.

    Raises:
        FloatingPointError: if an image's embedding is not finite or has norm zero, or a score is not finite: the
            largest of such scores would be that of some class all the same.
    """
    features = as_clip(model).encode_image(normalise_pixels(images.to(device))).float()
    scores = classify(with_directions(features, "image embeddings"))
    if not bool(scores.isfinite().all()):
        raise FloatingPointError(f"{int((~scores.isfinite()).sum())} of {scores.numel()} class scores are not finite")
    return scores


@torch.inference_mode()
def rank_of_own(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    classify: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
) -> Tensor:
    """Predicted class, and how many classes score above each image's own (0: top-1 correct, below 5: among the top 5).

    Args:
        model: an open_clip model in evaluation mode.
        batches: (B, 3, H, W) uint8 images and (B,) int64 labels each.
        classify: (B, D) un-normalised image features to (B, C) scores.
        device: where the model lies.

    Returns:
        (N, 2) int64 on the CPU. Equal scores do not count as above, so an image whose own score is tied for the first
        place has rank 0 and may still be predicted as a lower class number.
    """
    rows = []
    for images, labels in batches:
        scores = scores_of(model, images, classify, device=device)
        own = scores.gather(1, labels.to(device)[:, None])
        rows.append(torch.stack([scores.argmax(dim=1), (scores > own).sum(dim=1)], dim=1).cpu())
    return torch.cat(rows) if rows else torch.empty((0, 2), dtype=torch.int64)


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterator[Tensor], classify: Callable[[Tensor], Tensor], *, device: torch.device
) -> Tensor:
    """Top-1 classes of images.

    Args:
        model: an open_clip model in evaluation mode.
        batches: (B, 3, H, W) uint8 each.
        classify: (B, D) un-normalised image features to (B, C) scores.
        device: where the model lies.

    Returns:
        (N,) int64 on the CPU; of equal scores the lower class number.
    """
    predictions = [scores_of(model, images, classify, device=device).argmax(dim=1).cpu() for images in batches]
    return torch.cat(predictions) if predictions else torch.empty(0, dtype=torch.int64)
