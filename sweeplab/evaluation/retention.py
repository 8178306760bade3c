"""When a point is cleaned, how much accuracy it kept, and the one number a search maximises."""

from collections.abc import Iterable

from sweeplab.records import Measurement, Point


def is_cleaned(measurement: Measurement, asr_ceiling: float) -> bool:
    """Whether the ASR lies strictly below the ceiling (Verma et al., Sec. 4, count `<=`; here the line itself is out).

    Raises:
        ValueError: if no ASR was measured: nothing can be said about cleaning without a trigger.
    """
    if measurement.asr is None:
        raise ValueError("no trigger was measured, so no point can be called cleaned; name the attack")
    return measurement.asr < asr_ceiling


def retention(accuracy: float, victim_accuracy: float) -> float:
    """Accuracy as a fraction of the victim's on the same images; above 1 where cleaning gained accuracy.

    Raises:
        ValueError: if the victim classifies nothing correctly, which leaves nothing to retain.
    """
    if victim_accuracy <= 0:
        raise ValueError(f"victim_accuracy={victim_accuracy} must be positive; the victim has learned nothing")
    return accuracy / victim_accuracy


def best_cleaned_point(points: Iterable[Point], asr_ceiling: float) -> Point | None:
    """The most accurate cleaned point; of equals the one with the lower ASR, then the earlier one. None: there is none."""
    cleaned = [point for point in points if is_cleaned(point.measurement, asr_ceiling)]
    if not cleaned:
        return None
    return min(cleaned, key=lambda point: (-point.measurement.accuracy, point.measurement.asr, point.index))


def lowest_asr(points: Iterable[Point]) -> float:
    """The lowest ASR over the points, a fraction."""
    return min(point.measurement.asr for point in points if point.measurement.asr is not None)


def score(points: Iterable[Point], victim_accuracy: float, asr_ceiling: float) -> float:
    """What the search maximises over a whole trajectory.

    Returns:
        The retention of the best cleaned point where there is one (>= 0), else `asr_ceiling - lowest ASR` (<= 0): every
        cleaned trial beats every other, and among the others the one closest to the ceiling is best.
    """
    points = list(points)
    best = best_cleaned_point(points, asr_ceiling)
    if best is None:
        return asr_ceiling - lowest_asr(points)
    return retention(best.measurement.accuracy, victim_accuracy)
