"""Zero-shot classification by prompt templates (Radford et al. 2021, Sec. 3.1.4)."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeplab.clip_model import as_clip, encode_text, have_direction, normalise_pixels, trimmed, with_directions
from sweeplab.training import ranks
from sweeplab.training.precision import Precision, forward_pass

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
def class_weights(
    model: nn.Module,
    prompts: Tensor,
    *,
    device: torch.device,
    precision: Precision = "float32",
    batch_size: int = 1024,
) -> Tensor:
    """One weight row per class from all its prompts.

    Prompts are encoded in large batches of similar length, each trimmed to its longest. The ranks share the classes.

    Args:
        model: an open_clip model in evaluation mode.
        prompts: (C, T, l) int64 on the CPU; see `prompt_tokens`.
        device: where the model lies.
        precision: of the forward pass.
        batch_size: texts per forward pass.

    Returns:
        (C, D), rows of unit norm, on the device; the same on every rank.

    Raises:
        FloatingPointError: as `class_weights_from` does, on every rank.
    """
    share = prompts.tensor_split(ranks.world_size())[ranks.rank()]
    parts = ranks.gather_computed(lambda: _class_weights(model, share, device, precision, batch_size))
    return torch.cat([part for part in parts if part is not None]).to(device)


def _class_weights(
    model: nn.Module, prompts: Tensor, device: torch.device, precision: Precision, batch_size: int
) -> Tensor | None:
    """Of some classes, on the CPU; None where there are none."""
    if not len(prompts):
        return None
    tokens = prompts.flatten(0, 1)
    order = (tokens != 0).sum(dim=1).argsort(stable=True)
    with forward_pass(device, precision):
        embeddings = [encode_text(model, trimmed(tokens[rows]).to(device)) for rows in order.split(batch_size)]
    in_order = torch.cat(embeddings).float()[order.argsort().to(device)]
    return class_weights_from(in_order.unflatten(0, prompts.shape[:2])).cpu()


def zero_shot_classifier(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """Scores of image features by class weights (C, D): inner products; the features' norms do not change an order."""
    return lambda features: features @ weights.T


class Faults:
    """Counts what is no number, or has no direction: the largest of such scores would be that of some class all the
    same. The counts stay on the device, since a look at every batch would make the host wait for it."""

    def __init__(self) -> None:
        self._counts: list[Tensor] = []
        self._embeddings = self._scores = 0

    def add(self, features: Tensor, scores: Tensor) -> None:
        """Look at (B, D) image embeddings and their (B, C) scores."""
        self._counts.append(torch.stack([(~have_direction(features)).sum(), (~scores.isfinite()).sum()]))
        self._embeddings += len(features)
        self._scores += scores.numel()

    def check(self) -> None:
        """Raise FloatingPointError where something was found."""
        if not self._counts:
            return
        embeddings, scores = torch.stack(self._counts).sum(dim=0).tolist()
        if embeddings:
            raise FloatingPointError(
                f"{embeddings} of {self._embeddings} image embeddings are not finite or have norm zero"
            )
        if scores:
            raise FloatingPointError(f"{scores} of {self._scores} class scores are not finite")


def scores_of(
    model: nn.Module,
    images: Tensor,
    classify: Callable[[Tensor], Tensor],
    faults: Faults,
    *,
    device: torch.device,
    precision: Precision = "float32",
) -> Tensor:
    """(B, C) scores of (B, 3, H, W) uint8 images, float32; what is wrong with them is added to the faults."""
    with forward_pass(device, precision):
        features = as_clip(model).encode_image(normalise_pixels(images.to(device, non_blocking=True)))
    features = features.float()
    scores = classify(features)
    faults.add(features, scores)
    return scores


@torch.inference_mode()
def rank_of_own(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    classify: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    precision: Precision = "float32",
) -> Tensor:
    """Predicted class, and how many classes score above each image's own (0: top-1 correct, below 5: among the top 5).

    Args:
        model: an open_clip model in evaluation mode.
        batches: (B, 3, H, W) uint8 images and (B,) int64 labels each.
        classify: (B, D) un-normalised image features to (B, C) scores.
        device: where the model lies.
        precision: of the forward pass.

    Returns:
        (N, 2) int64 on the CPU. Equal scores do not count as above, so an image whose own score is tied for the first
        place has rank 0 and may still be predicted as a lower class number.

    Raises:
        FloatingPointError: if an image's embedding is not finite or has norm zero, or a score is not finite.
    """
    rows, faults = [torch.empty((0, 2), dtype=torch.int64, device=device)], Faults()
    for images, labels in batches:
        scores = scores_of(model, images, classify, faults, device=device, precision=precision)
        own = scores.gather(1, labels.to(device, non_blocking=True)[:, None])
        rows.append(torch.stack([scores.argmax(dim=1), (scores > own).sum(dim=1)], dim=1))
    faults.check()
    return torch.cat(rows).cpu()


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[Tensor],
    classify: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    precision: Precision = "float32",
) -> Tensor:
    """Top-1 classes of images.

    Args:
        model: an open_clip model in evaluation mode.
        batches: (B, 3, H, W) uint8 each.
        classify: (B, D) un-normalised image features to (B, C) scores.
        device: where the model lies.
        precision: of the forward pass.

    Returns:
        (N,) int64 on the CPU; of equal scores the lower class number.

    Raises:
        FloatingPointError: as `rank_of_own` does.
    """
    predictions, faults = [torch.empty(0, dtype=torch.int64, device=device)], Faults()
    for images in batches:
        scores = scores_of(model, images, classify, faults, device=device, precision=precision)
        predictions.append(scores.argmax(dim=1))
    faults.check()
    return torch.cat(predictions).cpu()
