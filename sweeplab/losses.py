"""Losses: functions of embeddings. No model, no process group, no state."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """One rank's rows of a global batch of B: its loss is taken over these b rows and all B columns.

    Values are scaled so that their mean over the ranks is the loss of the whole batch, and the mean of their gradients
    its gradient, however many rows each rank has.
    """

    start: int
    stop: int
    """Behind the last row."""
    num_ranks: int

    def of(self, rows: Tensor) -> Tensor:
        """(B, D) to (b, D), a view."""
        return rows[self.start : self.stop]

    def among(self, chosen: Tensor) -> "Share":
        """The share of a batch that keeps some of its rows alone: (B,) bool. It may be empty."""
        start = int(chosen[: self.start].sum())
        return Share(start, start + int(self.of(chosen).sum()), self.num_ranks)


def info_nce(queries: Tensor, keys: Tensor, logit_scale: Tensor, *, share: Share | None = None) -> Tensor:
    """Cross-entropy of finding each query's own key among all keys of the batch.

    Args:
        queries: (B, D), rows of unit norm.
        keys: (B, D), rows of unit norm; row i is the positive of query i, the rest its negatives.
        logit_scale: scalar, 1 / temperature (not its logarithm).
        share: of the queries, those of this rank; None: all.

    Returns:
        Scalar in nats, averaged over the batch: log(B) when the keys cannot be told apart.

    Raises:
        ValueError: if queries and keys do not pair up row by row.

    Two orthogonal pairs at scale ln 3: each row's softmax is 3 / (3 + 1), so the loss is ln(4/3).

    >>> pairs = torch.eye(2)
    >>> round(float(info_nce(pairs, pairs, torch.tensor(3.0).log())), 4)
    0.2877
    """
    if queries.shape != keys.shape or queries.ndim != 2:
        raise ValueError(f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} must be two equal (B, D)")
    if share is None:
        logits = logit_scale * queries @ keys.T  # (B, B), positives on the diagonal
        return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device))
    logits = logit_scale * share.of(queries) @ keys.T  # (b, B)
    own = torch.arange(share.start, share.stop, device=queries.device)
    return F.cross_entropy(logits, own, reduction="sum") * (share.num_ranks / len(keys))


def mmcl(images: Tensor, texts: Tensor, logit_scale: Tensor, *, share: Share | None = None) -> Tensor:
    """Image-text contrastive loss, both directions averaged (Radford et al. 2021; Verma et al., eq. 1).

    Args:
        images: (B, D), rows of unit norm.
        texts: (B, D), rows of unit norm; row i belongs to image i.
        logit_scale: scalar, 1 / temperature.
        share: the rows of this rank, of either direction; None: all.

    Returns:
        Scalar in nats.

    Both texts are alike, at scale ln 3: images find theirs with ln 2, texts find theirs with (ln(4/3) + ln 4) / 2.

    >>> images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> round(float(mmcl(images, texts, torch.tensor(3.0).log())), 4)
    0.7651
    """
    if images.shape != texts.shape or images.ndim != 2:
        raise ValueError(f"images {tuple(images.shape)} and texts {tuple(texts.shape)} must be two equal (B, D)")
    if share is not None:
        directions = ((images, texts), (texts, images))
        return torch.stack([info_nce(*pair, logit_scale, share=share) for pair in directions]).mean()
    logits = logit_scale * images @ texts.T  # one matrix product serves both directions
    own = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def in_modal_ssl(
    images: Tensor,
    image_views: Tensor,
    texts: Tensor,
    text_views: Tensor,
    logit_scale: Tensor,
    *,
    share: Share | None = None,
) -> Tensor:
    """In-modal loss of CleanCLIP: each original finds its own augmented view, images and texts averaged.

    Asymmetric as in the paper (Bansal et al. 2023, eq. 3) and its code: rows are originals, columns are augmented
    views; the reverse direction is not trained, and the temperature is the model's own. Not SLIP's SSL, which has a
    projection head and a fixed temperature.

    Args:
        images, image_views, texts, text_views: (B, D), rows of unit norm, paired row by row.
        logit_scale: scalar, 1 / temperature, the same learnable one as in `mmcl`.
        share: the rows of this rank; None: all.

    Returns:
        Scalar in nats.

    At scale ln 3, images find their own views with ln(4/3), and texts, whose views are alike, with ln 2.

    >>> rows, alike = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> round(float(in_modal_ssl(rows, rows, rows, alike, torch.tensor(3.0).log())), 4)
    0.4904
    """
    found = info_nce(images, image_views, logit_scale, share=share)
    return (found + info_nce(texts, text_views, logit_scale, share=share)) / 2


def nearest_rows(queries: Tensor, pool: Tensor) -> Tensor:
    """Each query's nearest row of a pool by inner product; of equals the first.

    Args:
        queries: (B, D), rows of unit norm.
        pool: (P, D), rows of unit norm; they are returned as they stand, so no gradient reaches them.

    Returns:
        (B, D), rows of the pool.

    >>> nearest_rows(torch.tensor([[0.6, 0.8]]), torch.eye(2)).tolist()
    [[0.0, 1.0]]
    """
    return pool[(queries.detach() @ pool.T).argmax(dim=1)].detach()


def mean_squared_distance(current: Tensor, reference: Tensor) -> Tensor:
    """Mean over the batch of the squared Euclidean distance of paired rows, in [0, 4] for rows of unit norm.

    Args:
        current, reference: (B, D), paired row by row.

    The first rows are equal, the second ones orthogonal: (0 + 2) / 2.

    >>> float(mean_squared_distance(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])))
    1.0
    """
    return (current - reference).square().sum(dim=1).mean()


def perturbation(current: Tensor, reference: Tensor, tau: float) -> Tensor:
    """PAR's bounded distance: the mean squared distance up to tau, and exactly 0 (no gradient) above it.

    The bound is on the batch's mean, not on single pairs, and a mean above it counts nothing instead of tau (PAR,
    `losses.py`).

    Args:
        current: (B, D), rows of unit norm, of the model that is cleaned.
        reference: (B, D), rows of unit norm, of its frozen copy.
        tau: bound, >= 0; 4 and more never binds.

    Returns:
        Scalar in [0, tau].

    A mean squared distance of 1 is within a bound of 1 and above one of 0.9.

    >>> current, reference = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> float(perturbation(current, reference, tau=1.0)), float(perturbation(current, reference, tau=0.9))
    (1.0, 0.0)
    """
    distance = mean_squared_distance(current, reference)
    return torch.where(distance <= tau, distance, torch.zeros_like(distance))


def unlearning(images: Tensor, texts: Tensor, target: float) -> Tensor:
    """Mean of (cosine + target)^2 over pairs that are to be unlearned; 0 where there are none.

    Target 0 drives such pairs apart until they are unrelated, which is the paper's loss (CleanCLIP, App. H). The
    authors' default of -1 pulls them together.

    Args:
        images, texts: (n, D), rows of unit norm, paired row by row; n may be 0.
        target: the negative of the cosine that is aimed at.

    Returns:
        Scalar >= 0.

    Of pairs of cosine 1, target 0 asks to part and target -1 to stay.

    >>> pairs = torch.eye(2)
    >>> float(unlearning(pairs, pairs, target=0.0)), float(unlearning(pairs, pairs, target=-1.0))
    (1.0, 0.0)
    """
    if not len(images):
        return images.new_zeros(())
    return ((images * texts).sum(dim=1) + target).square().mean()
