"""Binomial intervals against the closed form and against counts worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeplab.ranking.intervals import asr_upper_bound, wilson

Z_TWO_SIDED = 1.959964
Z_ONE_SIDED = 1.644854


def wilson_by_formula(k, n, z):
    """Wilson 1927: (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)."""
    p = k / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


COUNTS = st.integers(1, 5_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS)
def test_wilson_is_the_closed_form(counts):
    assert wilson(*counts) == pytest.approx(wilson_by_formula(*counts, Z_TWO_SIDED), abs=1e-6)


@given(COUNTS)
def test_wilson_holds_the_measured_rate_and_stays_between_0_and_1(counts):
    low, high = wilson(*counts)
    assert -1e-12 <= low <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= high <= 1 + 1e-12


def test_more_confidence_is_a_wider_interval():
    narrow, wide = wilson(20, 100, 0.8), wilson(20, 100, 0.99)
    assert wide[0] < narrow[0]
    assert narrow[1] < wide[1]


@given(COUNTS)
def test_upper_bound_is_the_closed_form(counts):
    assert asr_upper_bound(*counts) == pytest.approx(wilson_by_formula(*counts, Z_ONE_SIDED)[1], abs=1e-6)


def test_no_hit_at_all_certifies_5_percent_from_52_images_on():
    """With k = 0 the bound is z² / (n + z²) = 2.7055 / (n + 2.7055): 5.04 % at n = 51, 4.95 % at n = 52."""
    assert asr_upper_bound(0, 51) > 0.05
    assert asr_upper_bound(0, 52) < 0.05


def test_38_of_1000_is_the_most_that_certifies_5_percent():
    assert asr_upper_bound(38, 1000) < 0.05 < asr_upper_bound(39, 1000)


def test_more_hits_than_images_are_refused():
    with pytest.raises(ValueError, match="k"):
        wilson(6, 5)
