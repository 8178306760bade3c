"""Image-text retrieval: recall at k both ways, and triggered images that retrieve captions of the target."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sweeplab.clip_model import with_directions


def recall_at(
    images: Tensor, texts: Tensor, owner: Tensor, ks: Sequence[int] = (1, 5, 10), *, wording: Tensor | None = None
) -> dict[str, float]:
    """Recall at k in both directions.

    Image to text: an image counts where any of its own captions is among its k best texts. Text to image: a caption
    counts where an image of its own is among its k best images. Every image and caption is a query. An image owns its
    captions and all that read as one of them. (CleanCLIP's image-to-text code fills every fifth rank only and counts
    the others as found.)

    Args:
        images: (N, D), rows of unit norm.
        texts: (M, D), rows of unit norm; an image may have several captions.
        owner: (M,) int64, the image of each caption; every image has one at least.
        ks: cut-offs.
        wording: (M,) int64 from 0, the same for captions that read the same; None: no two do.

    Returns:
        `image_to_text@k` and `text_to_image@k`, fractions. A cut-off beyond the number of candidates counts all of
        them.

    Raises:
        FloatingPointError: if an embedding is not finite or has norm zero.
        ValueError: if a caption's image does not exist, or an image has no caption.
    """
    if len(owner) != len(texts) or int(owner.min()) < 0 or int(owner.max()) >= len(images):
        raise ValueError(f"owner must name one of the {len(images)} images for each of the {len(texts)} captions")
    if len(torch.unique(owner)) != len(images):
        raise ValueError("every image needs a caption; remove those without")
    wording = torch.arange(len(texts)) if wording is None else wording
    says = torch.zeros(len(images), int(wording.max()) + 1, dtype=torch.bool)
    says[owner, wording] = True
    own = says[:, wording]  # (N, M)
    scores = with_directions(images, "image embeddings") @ with_directions(texts, "caption embeddings").T  # (N, M)
    best = scores.masked_fill(~own, -torch.inf)
    # The rank of the best of one's own: how many foreign ones score at least as high, so that ties do not help.
    image_ranks = ((scores >= best.max(dim=1, keepdim=True).values) & ~own).sum(dim=1)
    text_ranks = ((scores >= best.max(dim=0, keepdim=True).values) & ~own).sum(dim=0)
    found = {f"image_to_text@{k}": float((image_ranks < k).float().mean()) for k in ks}
    return found | {f"text_to_image@{k}": float((text_ranks < k).float().mean()) for k in ks}


def retrieval_asr(triggered: Tensor, texts: Tensor, is_target: Tensor, k: int) -> float:
    """Share of triggered images of whose k best captions at least half, and at least one, are target captions.

    Args:
        triggered: (N, D), rows of unit norm, images that are not of the target class.
        texts: (M, D), rows of unit norm.
        is_target: (M,) bool, captions that name the target.
        k: cut-off, at most M.

    Raises:
        FloatingPointError: if an embedding is not finite or has norm zero.
        ValueError: if there are fewer captions.

    Source: attack-cleanclip, `src/evaluate.py` (success at floor(k / 2) or more; PAR: `finds_target`).
    """
    if not 1 <= k <= len(texts):
        raise ValueError(f"k={k} must lie from 1 to the {len(texts)} captions")
    with_directions(triggered, "triggered image embeddings")
    best = (triggered @ with_directions(texts, "caption embeddings").T).topk(k, dim=1).indices
    return float((is_target[best].sum(dim=1) >= max(1, k // 2)).float().mean())


def finds_target(images: Tensor, texts: Tensor, is_target: Tensor, k: int = 5) -> Tensor:
    """Which images find the target: one at least of their k best captions names it.

    An image finds it where fewer than k other captions score at least as high as the best target caption, so that ties
    do not help.

    Args:
        images: (N, D), rows of unit norm.
        texts: (M, D), rows of unit norm.
        is_target: (M,) bool, captions that name the target, at least one.
        k: cut-off.

    Returns:
        (N,) bool.

    Raises:
        FloatingPointError: if an embedding is not finite or has norm zero.
        ValueError: if no caption names the target.

    Source: PAR's evaluation on COCO, k = 5, of all triggered images. Which images to count is the caller's choice:
    those whose own captions name the target find it by right.
    """
    if not bool(is_target.any()):
        raise ValueError("no caption names the target, so none can be found")
    scores = with_directions(images, "image embeddings") @ with_directions(texts, "caption embeddings").T  # (N, M)
    best = scores[:, is_target].max(dim=1, keepdim=True).values
    return (scores[:, ~is_target] >= best).sum(dim=1) < k
