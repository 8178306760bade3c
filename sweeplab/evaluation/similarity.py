"""Similarity of images and captions: CLIPScore, detection of poisoned pairs, safe sets, the modality gap.

All of them refuse embeddings that are not finite or have norm zero, and scores that are not finite, by a
FloatingPointError.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sweeplab.clip_model import with_directions


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each pair, in [-1, 1].

    CleanCLIP (App. I) multiplies by the model's temperature, which changes no order; scores of several epochs compare
    better without.

    Args:
        images, texts: (N, D), rows of unit norm, paired row by row.

    Returns:
        (N,).
    """
    return (with_directions(images, "image embeddings") * with_directions(texts, "caption embeddings")).sum(dim=1)


def histogram(scores: np.ndarray, is_poison: np.ndarray, bins: int = 200) -> pd.DataFrame:
    """How the cosines of clean and of poisoned pairs are spread (SafeCLIP, Fig. 2).

    Args:
        scores: (N,) cosines in [-1, 1].
        is_poison: (N,) bool.
        bins: of equal width over [-1, 1].

    Returns:
        A row per bin, from the lowest that holds a pair to the highest: `from`, `to` (the last bin holds its upper end
        too), `clean`, `poisoned` (counts).
    """
    edges = np.linspace(-1, 1, bins + 1)
    inside = np.clip(scores, -1, 1)  # rounding may lead a little out
    counts = {
        "clean": np.histogram(inside[~is_poison], edges)[0],
        "poisoned": np.histogram(inside[is_poison], edges)[0],
    }
    table = pd.DataFrame({"from": edges[:-1], "to": edges[1:], **counts})
    held = np.flatnonzero(counts["clean"] + counts["poisoned"])
    return table[held[0] : held[-1] + 1].reset_index(drop=True)


def detection_recall(
    scores: np.ndarray, is_poison: np.ndarray, shares: Sequence[float], suspicious: Literal["highest", "lowest"]
) -> pd.DataFrame:
    """The detection table: how many of all poisons rank among the most suspicious pairs.

    Args:
        scores: (N,) of the pairs.
        is_poison: (N,) bool, at least one true.
        shares: fractions of all pairs that are looked at; the count is rounded down.
        suspicious: `highest` where poisons are learned first (the trained model itself, CleanCLIP, App. I; SafeCLIP,
            Table 3), `lowest` under a clean model (App. H).

    Returns:
        A row per share: `share`, `num_flagged`, `num_found`, `recall` (found / all poisons), `precision` (found /
        flagged; 0 where none is flagged). Equal scores are taken in the order of the pairs.
    """
    if not is_poison.any():
        raise ValueError("no pair is poisoned, so nothing can be found")
    if not np.isfinite(scores).all():
        raise FloatingPointError(f"{int((~np.isfinite(scores)).sum())} of {len(scores):,} scores are not finite")
    order = np.argsort(-scores if suspicious == "highest" else scores, kind="stable")
    rows = []
    for share in shares:
        flagged = int(share * len(scores) + 1e-9)
        found = int(is_poison[order[:flagged]].sum())
        rows.append((share, flagged, found, found / int(is_poison.sum()), found / flagged if flagged else 0.0))
    return pd.DataFrame(rows, columns=["share", "num_flagged", "num_found", "recall", "precision"])


@dataclass(frozen=True)
class SafeSet:
    """What a rule calls safe."""

    size: int
    share: float
    """Of all pairs."""
    num_poisons: int
    poison_share: float
    """Of the safe pairs; 0 where there are none."""


def safe_set(safe: np.ndarray, is_poison: np.ndarray) -> SafeSet:
    """Size of a safe set and the poisons in it (SafeCLIP, Fig. 2 and 4)."""
    size, poisons = int(safe.sum()), int((safe & is_poison).sum())
    return SafeSet(size, size / len(safe), poisons, poisons / size if size else 0.0)


def modality_gap(images: Tensor, texts: Tensor) -> float:
    """Distance of the mean image embedding from the mean text embedding, in [0, 2].

    Args:
        images, texts: (N, D) and (M, D), rows of unit norm.
    """
    centre = with_directions(images, "image embeddings").mean(dim=0)
    return float((centre - with_directions(texts, "caption embeddings").mean(dim=0)).norm())


def target_distance(images: Tensor, target_images: Tensor) -> float:
    """Mean of 1 - cosine over all pairs of an image and an image of the target class, in [0, 2].

    Args:
        images: (N, D), rows of unit norm.
        target_images: (M, D), rows of unit norm.
    """
    centre = with_directions(images, "image embeddings").mean(dim=0)
    return float(1 - centre @ with_directions(target_images, "target image embeddings").mean(dim=0))


def target_distances(groups: dict[str, Tensor], points: pd.DataFrame) -> pd.DataFrame:
    """How far the images of each group lie from those of the group `target`, by their embeddings and in a map.

    Both are means over all pairs. That of `target` itself is how widely the class is spread: triggered images that an
    encoder cannot tell from the target class lie as far.

    CleanCLIP (App. F) states one distance, in the plane of a t-SNE map, and not how it is taken. A map's scale is that
    of its own fit, so that distances in two maps compare little; those of embeddings do.

    Args:
        groups: (n, D) rows of unit norm by the group's name, `target` among them.
        points: of `two_dimensions`; of the same groups, or of a part of each.

    Returns:
        A row a group: `group`, `num_images`, `cosine_distance` (see `target_distance`) and `plane_distance` (Euclidean,
        in units of the map).
    """
    planes = {name: torch.tensor(part[["x", "y"]].to_numpy()) for name, part in points.groupby("group")}
    rows = [
        (
            name,
            len(images),
            target_distance(images, groups["target"]),
            float(torch.cdist(planes[name], planes["target"]).mean()),
        )
        for name, images in groups.items()
    ]
    return pd.DataFrame(rows, columns=["group", "num_images", "cosine_distance", "plane_distance"])


def two_dimensions(groups: dict[str, Tensor], *, seed: int, perplexity: float = 10.0) -> pd.DataFrame:
    """A t-SNE map of several groups of embeddings at once (CleanCLIP, App. F: perplexity 10, 1,000 iterations).

    Args:
        groups: (n, D) rows of unit norm by the group's name, such as clean, triggered and target images.
        seed: of the map's start.
        perplexity: must be smaller than the number of all rows.

    Returns:
        Columns `group`, `row` (within the group), `x`, `y`.
    """
    from sklearn.manifold import TSNE  # scikit-learn takes a second to import

    rows = with_directions(torch.cat(list(groups.values())), "image embeddings").cpu().numpy()
    if len(rows) <= perplexity:
        raise ValueError(f"perplexity={perplexity} must be below the {len(rows)} embeddings; give more or lower it")
    fitted = TSNE(perplexity=perplexity, max_iter=1000, init="pca", random_state=seed).fit_transform(rows)
    names = [(name, row) for name, part in groups.items() for row in range(len(part))]
    table = pd.DataFrame(names, columns=["group", "row"])
    return table.assign(x=fitted[:, 0].astype(float), y=fitted[:, 1].astype(float))
