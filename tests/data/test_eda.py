"""Augmented captions."""

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeplab.data.eda import _swap, augment, normalise

CAPTION = "a photo of two ripe bananas and one green apple on a wooden table in the kitchen"
WORDS = CAPTION.split()


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's hat -- 2 dogs!", "a mans hat dogs"),
        ("well-known", "well known"),
        ("tab\tand\nnewline", "tab and newline"),
        ("it’s", "its"),
        ("  x  ", "x"),
        ("123", ""),
        ("", ""),
    ],
)
def test_normalising_by_hand(caption: str, words: str):
    assert normalise(caption) == words


@pytest.mark.parametrize("seed", range(30))
def test_a_view_swaps_words_or_deletes_some(seed: int):
    view = augment(CAPTION, seed).split()
    swapped = Counter(view) == Counter(WORDS)
    rest = iter(WORDS)
    deleted = all(word in rest for word in view)  # the words that are left stand in their old order
    assert swapped or deleted


def test_one_swap_exchanges_at_most_two_words():
    """16 words at a share of 0.1 make one swap."""
    for seed in range(30):
        view = augment(CAPTION, seed).split()
        if len(view) == len(WORDS):
            assert sum(new != old for new, old in zip(view, WORDS, strict=True)) in (0, 2)


class Given:
    """Draws that are given, in place of random ones."""

    def __init__(self, draws: tuple[int, ...]) -> None:
        self._draws: Iterator[int] = iter(draws)

    def randrange(self, stop: int) -> int:
        return next(self._draws)


@pytest.mark.parametrize("num_words", [1, 2, 3, 4])
def test_a_swap_fails_where_three_draws_repeat_the_first(num_words: int):
    """All draws of a first position and three further ones: (1 / n)^3 of them leave the words as they are, .125, .037
    and .016 of 2, 3 and 4 words; the others exchange two."""
    words = list("abcd"[:num_words])
    views = [_swap(words, 0.1, Given(draws)) for draws in itertools.product(range(num_words), repeat=4)]  # type: ignore[arg-type]
    moved = [sum(new != old for new, old in zip(view, words, strict=True)) for view in views]
    assert Fraction(moved.count(0), len(moved)) == Fraction(1, num_words) ** 3
    assert set(moved) <= {0, 2}


def test_swaps_of_two_words_seldom_leave_them_as_they_are():
    """1/2 of 4,000 views swap, of which 1/8 fail; of the others each word stays with probability .9 and both words with
    .81: (1/8 + .81) / 2 = .4675, standard deviation .0079; the bound is five of them. (With a single draw: .655.)"""
    same = sum(augment("ripe banana", seed) == "ripe banana" for seed in range(4000))
    assert abs(same / 4000 - 0.4675) < 0.04


def test_deletion_takes_about_a_tenth_of_the_words():
    """Half of 400 views delete, each word with probability 0.1: 320 of 6,400 words, standard deviation about 18."""
    missing = sum(len(WORDS) - len(augment(CAPTION, seed).split()) for seed in range(400))
    assert 240 < missing < 400


def test_the_same_seed_gives_the_same_view():
    assert [augment(CAPTION, seed) for seed in range(20)] == [augment(CAPTION, seed) for seed in range(20)]
    assert len({augment(CAPTION, seed) for seed in range(20)}) > 10


@pytest.mark.parametrize("caption", ["", "123", "!?", "été 2"])
def test_a_caption_without_words_stays_as_it_is_or_keeps_what_is_left(caption: str):
    assert augment(caption, 0) == (caption if not normalise(caption) else normalise(caption))


@pytest.mark.parametrize("seed", range(10))
def test_a_single_word_is_never_deleted(seed: int):
    assert augment("Banana!", seed) == "banana"


@pytest.mark.parametrize("seed", range(10))
def test_something_is_left_when_every_word_is_deleted(seed: int):
    assert set(augment("ripe banana", seed, share=1.0).split()) <= {"ripe", "banana"}
    assert augment("ripe banana", seed, share=1.0)


@settings(max_examples=30)
@given(st.text(max_size=40), st.integers(0, 2**63))
def test_any_text_has_a_view_of_its_own_words(caption: str, seed: int):
    view = augment(caption, seed)
    if normalise(caption):
        assert view
        assert Counter(view.split()) <= Counter(normalise(caption).split())
    else:
        assert view == caption
