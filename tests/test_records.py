"""Words for numbers, and names."""

import numpy as np
import pytest

from sweeplab.records import is_miniature, name_with, number_of, percent


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
        ("a-smoke-single-4c4e6260-seeds-longer", True),
        ("a-smoke-more", True),
        ("a-smoke-losses", True),
        ("a-smoke-nsga2", True),
        ("a-smoke-test-smoke", True),
        ("a-smoke-test", False),
        ("a-smoke-1", False),
        ("a-smoke-single", False),
        ("a-smoke-tpe-1", False),
        ("a-smoke.20261130-101500.7", False),
        ("a-smokeless", False),
        ("smoke", False),
        ("a.smoke", False),
    ],
)
def test_a_miniature_is_told_by_its_name(name: str, expected: bool):
    assert is_miniature(name) == expected


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.004, "0.4 %"),
        (0.0494, "4.9 %"),
        (0.0496, "4.96 %"),  # 5.0 at one decimal
        (0.0497, "4.97 %"),
        (2499 / 50_000, "4.998 %"),  # 5.00 at two
        (0.05, "5.0 %"),  # the ceiling itself
        (0.0502, "5.02 %"),
        (0.0506, "5.1 %"),
        (0.95, "95.0 %"),
        (None, "–"),
    ],
)
def test_a_rate_beside_a_ceiling_is_not_rounded_onto_it(fraction: float | None, text: str):
    assert percent(fraction, ceiling=0.05) == text


def test_a_ceiling_of_any_number_of_digits_tells_rates_apart():
    """100 x 0.07 is 7.000000000000001 as a float; 0.055 is itself rounded to 5.5 or 5.6 without decimals."""
    assert [percent(rate, ceiling=0.07) for rate in (0.0698, 0.07, 0.0702)] == ["6.98 %", "7.0 %", "7.02 %"]
    assert [percent(rate, 0, ceiling=0.055) for rate in (0.0549, 0.0551)] == ["5 %", "6 %"]
    assert [percent(rate, 0, ceiling=0.055) for rate in (0.0451, 0.0649)] == ["5 %", "6 %"]


def test_digits_are_not_added_where_none_tell():
    assert percent(0.05 - 1e-12, ceiling=0.05) == "5.0 %"
