"""Binomial intervals against their definitions and against counts worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeplab.ranking.intervals import asr_upper_bound, wilson

Z_TWO_SIDED = 1.959964


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


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))), st.integers(1, 5_000))
def test_upper_bound_is_the_rate_at_which_so_few_hits_would_have_the_levels_probability(counts, num_choices):
    """Clopper and Pearson 1934: P(X <= k | n, bound) = 0.05 / number of choices, summed term by term."""
    k, n = counts
    bound = asr_upper_bound(k, n, num_choices)
    terms = (math.comb(n, hits) * bound**hits * (1 - bound) ** (n - hits) for hits in range(k + 1))
    assert math.fsum(terms) == pytest.approx(0.05 / num_choices, rel=1e-6)


def test_upper_bound_of_all_images_hit_is_1():
    assert asr_upper_bound(7, 7) == asr_upper_bound(7, 7, 100) == 1.0


def test_no_hit_at_all_certifies_5_percent_from_59_images_on():
    """With k = 0 the bound is 1 - 0.05 ** (1 / n): 5.03 % at n = 58, 4.95 % at n = 59."""
    assert asr_upper_bound(0, 58) == pytest.approx(1 - 0.05 ** (1 / 58))
    assert asr_upper_bound(0, 58) > 0.05 > asr_upper_bound(0, 59)


def test_of_20_points_no_hit_at_all_certifies_5_percent_from_117_images_on():
    """The level is 0.05 / 20 = 0.0025: 1 - 0.0025 ** (1 / n) is 5.03 % at n = 116, 4.99 % at n = 117."""
    assert asr_upper_bound(0, 116, 20) == pytest.approx(1 - 0.0025 ** (1 / 116))
    assert asr_upper_bound(0, 116, 20) > 0.05 > asr_upper_bound(0, 117, 20)


def test_the_more_points_could_have_been_chosen_the_fewer_hits_certify():
    """Of 1000 images at 5 %: P(X <= 38) = 0.0433, P(X <= 36) = 0.0212, P(X <= 33) = 0.0059, of 39 0.0598,
    of 37 0.0307, of 34 0.0093; the levels are 0.05, 0.025 and 0.0083."""
    for most, num_choices in ((38, 1), (36, 2), (33, 6)):
        assert asr_upper_bound(most, 1000, num_choices) < 0.05 < asr_upper_bound(most + 1, 1000, num_choices)


@pytest.mark.parametrize("counts", [(6, 5, 1), (-1, 5, 1), (0, 0, 1), (0, 5, 0)])
def test_impossible_counts_have_no_bound(counts):
    with pytest.raises(ValueError, match="num_choices"):
        asr_upper_bound(*counts)


def test_more_hits_than_images_are_refused():
    with pytest.raises(ValueError, match="k"):
        wilson(6, 5)
