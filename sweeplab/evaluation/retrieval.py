"""Image-text retrieval: recall at k both ways, and the share of triggered images that retrieve target captions."""

from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at(images: Tensor, texts: Tensor, owner: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at k in both directions.

    Image to text: an image counts where any of its own captions is among its k best texts. Text to image: a caption
    counts where its own image is among its k best images. Every image and caption is a query. (CleanCLIP's
    image-to-text code fills every fifth rank only and counts the others as found.)

    Args:
        images: (N, D), rows of unit norm.
        texts: (M, D), rows of unit norm; an image may have several captions.
        owner: (M,) int64, the image of each caption; every image has one at least.
        ks: cut-offs.

    Returns:
        `image_to_text@k` and `text_to_image@k`, fractions. A cut-off beyond the number of candidates counts all of
        them.

    Raises:
        ValueError: if a caption's image does not exist, or an image has no caption.
    """
    if len(owner) != len(texts) or int(owner.min()) < 0 or int(owner.max()) >= len(images):
        raise ValueError(f"owner must name one of the {len(images)} images for each of the {len(texts)} captions")
    if len(torch.unique(owner)) != len(images):
        raise ValueError("every image needs a caption; remove those without")
    scores = images @ texts.T  # (N, M)
    own = owner[None, :] == torch.arange(len(images))[:, None]  # (N, M)
    # The rank of the best own caption: how many foreign captions score at least as high, so that ties do not help.
    best = scores.masked_fill(~own, -torch.inf).max(dim=1, keepdim=True).values
    image_ranks = ((scores >= best) & ~own).sum(dim=1)
    mine = scores.gather(0, owner[None, :])  # (1, M)
    text_ranks = (scores >= mine).sum(dim=0) - 1
    found = {f"image_to_text@{k}": float((image_ranks < k).float().mean()) for k in ks}
    return found | {f"text_to_image@{k}": float((text_ranks < k).float().mean()) for k in ks}


def retrieval_asr(triggered: Tensor, texts: Tensor, is_target: Tensor, k: int) -> float:
    """Share of triggered images of whose k best captions at least half, and at least one, are target captions.

    Args:
        triggered: (N, D), rows of unit norm, images that are not of the target class.
        texts: (M, D), rows of unit norm.
        is_target: (M,) bool, captions that name the target.
        k: cut-off, at most M.

    Source: attack-cleanclip, `src/evaluate.py` (success at floor(k / 2) or more; PAR asks for one of five).
    """
    if not 1 <= k <= len(texts):
        raise ValueError(f"k={k} must lie from 1 to the {len(texts)} captions")
    best = (triggered @ texts.T).topk(k, dim=1).indices
    return float((is_target[best].sum(dim=1) >= max(1, k // 2)).float().mean())
