"""EDA: easy data augmentation of captions (Wei & Zou 2019), as CleanCLIP's in-modal text views use it."""

import random
import re
from collections.abc import Callable
from typing import Literal

from sweeplab.data.wordnet import Synonyms, find_wordnet, synonyms_in
from sweeplab.specs import InvalidInput

TextAugmentation = Literal["auto", "wordnet", "swap+delete"]
"""`wordnet`: the papers' four operations (replace by a synonym, insert a synonym, swap, delete). `swap+delete`: what
remains without a synonym table. `auto`: WordNet where it is installed. Results record which one was used."""
TRIES = 9
"""Words that are looked up for one insertion before it is given up. (The authors look up ten and throw the tenth
away.)"""
REDRAWS = 3
"""Draws of a swap's second position until it differs from the first; then the words stay as they are. (The authors
draw four and throw the fourth away.) Of 2, 3 and 4 words that is 1/8, 1/27 and 1/64 of the swaps."""
CHANGE = (
    "augmented captions: a swap that drew one position twice draws again; stop words and base forms of words are EDA's "
    "and NLTK's"
)
"""What the captions of specs that augment them have come to be since the first release; see `Spec.CHANGES`."""


def resolve(wanted: TextAugmentation) -> Literal["wordnet", "swap+delete"]:
    """Decide `auto`, and refuse what is not there.

    Raises:
        InvalidInput: if WordNet is asked for and not installed.
    """
    found = find_wordnet()
    if wanted == "wordnet" and found is None:
        raise InvalidInput(
            "text_augmentation='wordnet' needs WordNet's files: apt-get install wordnet-base, or set WNSEARCHDIR to "
            "their folder; 'swap+delete' does without"
        )
    return "swap+delete" if wanted == "swap+delete" or found is None else "wordnet"


def augmenter(wanted: TextAugmentation) -> Callable[[str, int], str]:
    """What augments captions: (caption, seed) -> caption."""
    if resolve(wanted) == "swap+delete":
        return augment
    folder = find_wordnet()
    assert folder is not None
    synonyms = synonyms_in(folder)
    return lambda caption, seed: augment(caption, seed, synonyms=synonyms)


def normalise(caption: str) -> str:
    """EDA's text: lower case, letters and single blanks only, apostrophes dropped, hyphens as blanks."""
    text = caption.lower().replace("’", "").replace("'", "")
    text = re.sub(r"[^a-z ]", " ", text)
    return re.sub(r" +", " ", text).strip()


def augment(caption: str, seed: int, share: float = 0.1, *, synonyms: Synonyms | None = None) -> str:
    """One augmented copy of a caption, by one operation, each equally likely.

    The operations are: replace words by synonyms, insert synonyms of words, swap words, delete words; without synonyms
    the last two.

    Args:
        caption: any text.
        seed: of this caption's own draw.
        share: share of the words that change; at least one word is replaced, inserted or swapped.
        synonyms: where they come from; None: no synonyms.

    Returns:
        The augmented caption; the caption itself where normalising leaves no word.
    """
    words = normalise(caption).split()
    if not words:
        return caption
    draw = random.Random(seed)
    if synonyms is None:
        operation = draw.choice((_swap, _delete))
        return " ".join(operation(words, share, draw))
    chosen = draw.randrange(4)
    if chosen == 0:
        return " ".join(_replace(words, share, draw, synonyms))
    if chosen == 1:
        return " ".join(_insert(words, share, draw, synonyms))
    return " ".join((_swap if chosen == 2 else _delete)(words, share, draw))


def _replace(words: list[str], share: float, draw: random.Random, synonyms: Synonyms) -> list[str]:
    """Every occurrence of some words, stop words left out, becomes one drawn synonym."""
    candidates = sorted(set(words) - STOP_WORDS)
    draw.shuffle(candidates)
    left = max(1, int(share * len(words)))
    for word in candidates:
        known = synonyms.of(word)
        if known:
            new = draw.choice(known)
            words = [new if old == word else old for old in words]
            left -= 1
        if left == 0:
            break
    return words


def _insert(words: list[str], share: float, draw: random.Random, synonyms: Synonyms) -> list[str]:
    """Synonyms of drawn words, at drawn places."""
    words = list(words)
    for _ in range(max(1, int(share * len(words)))):
        for _ in range(TRIES):
            known = synonyms.of(draw.choice(words))
            if known:
                words.insert(draw.randrange(len(words)), draw.choice(known))
                break
    return words


def _swap(words: list[str], share: float, draw: random.Random) -> list[str]:
    words = list(words)
    for _ in range(max(1, int(share * len(words)))):
        first = draw.randrange(len(words))
        for _ in range(REDRAWS):
            second = draw.randrange(len(words))
            if second != first:
                break
        words[first], words[second] = words[second], words[first]
    return words


def _delete(words: list[str], share: float, draw: random.Random) -> list[str]:
    kept = [word for word in words if len(words) == 1 or draw.random() > share]
    return kept or [draw.choice(words)]


STOP_WORDS = frozenset(
    """
    a about above after again against all am an and any are as at be because been before being below between both but
    by can could did do does doing don down during each few for from further had has have having he her here hers him
    his how i if in into is it its itself just me more most my no nor not now of off on once only or other our out over
    own same s she should so some such t than that the their them then there these they this those through to too under
    until up very was we were what when where which while who whom why will with would you your
    """.split()  # noqa: SIM905 - words are easier to read than a list of strings
)
"""English function words, which are never replaced: of the words that WordNet has synonyms for, EDA's own."""
