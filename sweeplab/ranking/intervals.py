"""Binomial intervals of accuracy and ASR."""

from scipy.stats import binomtest


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's two-sided score interval of a proportion.

    Args:
        k: images counted, 0 <= k <= n.
        n: images in all, at least 1.
        confidence: in (0, 1).

    Returns:
        Low and high end, fractions in [0, 1] with low <= k / n <= high.
    """
    interval = binomtest(k, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def asr_upper_bound(k: int, n: int) -> float:
    """Upper end of Wilson's one-sided 95 % interval of an ASR of k out of n triggered images, a fraction."""
    interval = binomtest(k, n, alternative="less").proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.high)
