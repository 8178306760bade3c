"""Words for numbers."""

import numpy as np
import pytest

from sweeplab.records import number_of


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 trials"),
        (1, "1 trial"),
        (1.0, "1 trial"),
        (np.int64(1), "1 trial"),
        (0.5, "0.5 trials"),
        (1_234_567, "1,234,567 trials"),
    ],
)
def test_one_of_a_thing_is_singular(count: float, text: str):
    assert number_of(count, "trial") == text
