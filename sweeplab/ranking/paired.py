"""Paired comparison of models on the same images: McNemar's exact test, and Holm's correction of several of them."""

from collections.abc import Sequence

import numpy as np


def paired(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Count what one alone does, and how likely so uneven a split is if both were equally good.

    Args:
        first: (N,) boolean, one an image.
        second: (N,) boolean, of the same images.

    Returns:
        Images of the first alone, images of the second alone, and the two-sided p value of McNemar's exact test (1
        where they differ on no image).
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    if not differing:
        return 0, 0, 1.0
    from scipy.stats import binomtest

    return only_first, only_second, float(binomtest(only_first, differing, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number: a level bounds how often any of them falls below it by chance (Holm, 1979).

    Of m values the smallest is multiplied by m, the next one by m - 1, and so on; none comes below a smaller one.
    """
    found, highest = list(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(found) - rank) * p_values[place]))
        found[place] = highest
    return found
