"""Words for numbers, and names."""

import numpy as np
import pytest

from sweeplab.records import is_miniature, name_with, number_of


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


@pytest.mark.parametrize(
    ("name", "ending", "whole"),
    [
        ("toy", "-seeds", "toy-seeds"),
        ("toy-smoke", "-seeds", "toy-smoke-seeds"),
        ("a" * 74, "-seeds", "a" * 74 + "-seeds"),
        ("a" * 75, "-seeds", "a" * 74 + "-seeds"),
        ("a" * 74 + "-smoke", "-seeds", "a" * 68 + "-smoke-seeds"),
        ("a" * 80, "-smoke", "a" * 74 + "-smoke"),
    ],
)
def test_a_name_with_an_ending_has_room_for_it_and_stays_a_miniatures(name: str, ending: str, whole: str):
    assert name_with(name, ending) == whole
    assert is_miniature(whole) == ("smoke" in whole)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a-smoke", True),
        ("a-smoke-single-4c4e6260", True),
        ("a-smokeless", False),
        ("smoke", False),
        ("a.smoke", False),
    ],
)
def test_a_miniature_is_told_by_its_name(name: str, expected: bool):
    assert is_miniature(name) == expected
