"""Synonyms, on a database of two synsets made here and on WordNet itself where it is installed."""

from pathlib import Path

import pytest

from sweeplab.data import eda
from sweeplab.data.eda import augment, resolve
from sweeplab.data.wordnet import PARTS, Synonyms, find_wordnet
from sweeplab.specs import InvalidInput

NOUNS = """  1 This line is the licence.
00000100 06 n 03 picture 0 photo 0 photographic_print 1 001 @ 00000200 n 0000 | a picture
00000200 06 n 02 man 0 Adult-Male 0 000 | a man
00000300 06 n 02 leaf 0 foliage 0 000 | a leaf
00000400 06 n 02 leave 0 holiday 0 000 | a time away
00000500 06 n 02 scarf 0 shawl 0 000 | a scarf
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    for part in PARTS:
        (tmp_path / f"data.{part}").write_text(NOUNS if part == "noun" else "")
        (tmp_path / f"{part}.exc").write_text("leaves leaf\nmenfolk man\n" if part == "noun" else "")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "synonyms"),
    [
        ("photo", ("photographic print", "picture")),
        ("photos", ("photo", "photographic print", "picture")),
        ("man", ("adult male",)),
        ("men", ("adult male", "man")),
        ("menfolk", ("adult male", "man")),
        ("leaves", ("foliage", "leaf")),
        ("leave", ("holiday",)),
        ("scarves", ("scarf", "shawl")),
        ("photoses", ("photo", "photographic print", "picture")),
        ("table", ()),
    ],
)
def test_synonyms_by_hand(word: str, synonyms: tuple[str, ...], database: Path):
    """Plural and irregular forms lead to their base form, which then is a synonym itself; a listed form to the listed
    base alone; where one ending leads to no known word, the next is detached."""
    assert Synonyms(database).of(word) == synonyms


def test_the_four_operations_are_equally_likely(database: Path):
    """Over 400 draws of a caption of six words: deletion shortens or keeps, insertion lengthens, replacement brings a
    new word, a swap keeps the words. Each about 100 times; the bound is five standard deviations (43)."""
    synonyms = Synonyms(database)
    caption = "photo table chair lamp door window"
    views = [augment(caption, seed, synonyms=synonyms).split() for seed in range(400)]
    known = {"photographic", "print", "picture"}
    # An insertion gives up where nine draws of six words miss the only one with synonyms: (5/6)^9 = 0.19 of the time.
    replaced = sum("photo" not in view and bool(known & set(view)) for view in views)
    inserted = sum("photo" in view and bool(known & set(view)) for view in views)
    assert abs(replaced - 100) < 43
    assert abs(inserted - 81) < 43


def test_stop_words_are_not_replaced(database: Path):
    synonyms = Synonyms(database)
    synonyms._known["the"] = ("thee",)
    for seed in range(50):
        assert augment("the the the", seed, synonyms=synonyms).split().count("thee") <= 1  # by insertion alone


def test_views_repeat(database: Path):
    for seed in range(20):
        first = augment("a photo of a man", seed, synonyms=Synonyms(database))
        assert first == augment("a photo of a man", seed, synonyms=Synonyms(database))


def test_without_wordnet_auto_means_swap_and_delete(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eda, "find_wordnet", lambda: None)
    assert resolve("auto") == "swap+delete"
    with pytest.raises(InvalidInput, match="apt-get install wordnet-base"):
        resolve("wordnet")


def test_swap_and_delete_can_be_chosen_where_wordnet_is(monkeypatch: pytest.MonkeyPatch, database: Path):
    monkeypatch.setenv("WNSEARCHDIR", str(database))
    assert find_wordnet() == database
    assert resolve("swap+delete") == "swap+delete"
    assert resolve("auto") == "wordnet"


@pytest.mark.skipif(find_wordnet() is None, reason="WordNet is not installed")
def test_wordnet_itself_knows_bananas():
    folder = find_wordnet()
    assert folder is not None
    assert "banana tree" in Synonyms(folder).of("bananas")
