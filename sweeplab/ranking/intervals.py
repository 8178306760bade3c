"""Binomial intervals of accuracy and ASR. SciPy is imported late: it takes half a second."""

import functools
import math
from statistics import NormalDist

LEVEL = 0.05
"""How often an ASR at or above the ceiling may be certified nevertheless, over all points of a sweep together."""


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's two-sided score interval of a proportion.

    Args:
        k: images counted, 0 <= k <= n.
        n: images in all, at least 1.
        confidence: in (0, 1).

    Returns:
        Low and high end, fractions in [0, 1] with low <= k / n <= high.

    Raises:
        ValueError: if the counts are impossible.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"k={k} of n={n} images: 0 <= k <= n, and n from 1 on")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = k + z * z / 2
    half = z * math.sqrt(k * (n - k) / n + z * z / 4)
    low, high = (centre - half) / (n + z * z), (centre + half) / (n + z * z)
    # At the ends the interval ends there, too, but for rounding.
    return (0.0 if k == 0 else max(0.0, low)), (1.0 if k == n else min(1.0, high))


def asr_upper_bound(k: int, n: int, num_choices: int = 1) -> float:
    """Upper end of the one-sided Clopper-Pearson interval of an ASR, at level 0.05 / `num_choices` (Bonferroni).

    Taken of whichever of `num_choices` points, chosen by whatever rule, it falls short of that point's true ASR in at
    most 5 % of all sweeps. That is exact for settings laid down beforehand; a sampler that adapts to earlier points has
    seen a few numbers of the same images, which no bound from these images can allow for.

    Args:
        k: triggered images classified as the target label, 0 <= k <= n.
        n: triggered images, at least 1.
        num_choices: points that could have been chosen, at least 1; see `evaluation.retention.num_choices`.

    Returns:
        A fraction in (k / n, 1]; 1 where k == n. With k = 0 it is 1 - (0.05 / num_choices) ** (1 / n).

    Raises:
        ValueError: if the counts are impossible.
    """
    if not (0 <= k <= n and n >= 1 and num_choices >= 1):
        raise ValueError(f"k={k} of n={n} images at num_choices={num_choices}: 0 <= k <= n, and both others from 1 on")
    from scipy.stats import beta

    return 1.0 if k == n else float(beta.isf(LEVEL / num_choices, k + 1, n - k))


@functools.cache
def most_certified_hits(n: int, num_choices: int, asr_ceiling: float) -> int:
    """The most of n triggered images that may be hits where `asr_upper_bound` lies below the ceiling; -1: not even
    none."""
    low, high = -1, n  # the bound grows with the hits, and is 1 where all are
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if asr_upper_bound(middle, n, num_choices) < asr_ceiling else (low, middle)
    return low
