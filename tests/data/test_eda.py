"""Augmented captions."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeplab.data.eda import augment, normalise

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


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40), st.integers(0, 2**63))
def test_any_text_has_a_view_of_its_own_words(caption: str, seed: int):
    view = augment(caption, seed)
    if normalise(caption):
        assert view
        assert Counter(view.split()) <= Counter(normalise(caption).split())
    else:
        assert view == caption
