"""The linear probe on features whose classes are known."""

import numpy as np
import pytest

from sweeplab.evaluation.linear_probe import linear_probe


def blobs(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    return np.eye(3)[classes] * 4 + 0.3 * draw.standard_normal((count, 3)), classes


def test_separate_classes_are_told_apart():
    found = linear_probe(blobs(0), blobs(1))
    assert (found.accuracy_k, found.accuracy_n, found.asr_n) == (60, 60, 0)


def test_asr_counts_images_of_other_classes_alone():
    """All triggered features lie where class 2 lies: 40 of 40 images of classes 0 and 1 are hits."""
    triggered = np.tile([0.0, 0.0, 4.0], (60, 1))
    found = linear_probe(blobs(0), blobs(1), triggered=triggered, target=2)
    assert (found.asr_k, found.asr_n) == (40, 40)


def test_a_trigger_needs_its_target():
    with pytest.raises(ValueError, match="go together"):
        linear_probe(blobs(0), blobs(1), target=2)


def test_one_class_is_refused():
    features, classes = blobs(0)
    with pytest.raises(ValueError, match="fewer than two"):
        linear_probe((features, classes * 0), blobs(1))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("where", ["train", "test", "triggered"])
def test_features_without_a_direction_are_refused(where: str, value: float):
    parts = {"train": blobs(0), "test": blobs(1), "triggered": blobs(2)}
    parts[where][0][3] = value
    with pytest.raises(FloatingPointError, match=r"1 of .* image embeddings are not finite or have norm zero"):
        linear_probe(parts["train"], parts["test"], triggered=parts["triggered"][0], target=1)
