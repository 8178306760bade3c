"""EDA: easy data augmentation of captions (Wei & Zou 2019), as CleanCLIP's in-modal text views use it."""

import random
import re

OPERATIONS = "swap+delete"
"""The operations in use, recorded with every result. The papers also replace and insert WordNet synonyms; these two are
what remains without a synonym table."""


def normalise(caption: str) -> str:
    """EDA's text: lower case, letters and single blanks only, apostrophes dropped, hyphens as blanks."""
    text = caption.lower().replace("’", "").replace("'", "")
    text = re.sub(r"[^a-z ]", " ", text)
    return re.sub(r" +", " ", text).strip()


def augment(caption: str, seed: int, share: float = 0.1) -> str:
    """One augmented copy of a caption: words swapped or words deleted, either with probability 1/2.

    Args:
        caption: any text.
        seed: of this caption's own draw.
        share: share of the words that change; at least one swap is made.

    Returns:
        The augmented caption; the caption itself where normalising leaves no word.
    """
    words = normalise(caption).split()
    if not words:
        return caption
    draw = random.Random(seed)
    operation = draw.choice((_swap, _delete))
    return " ".join(operation(words, share, draw))


def _swap(words: list[str], share: float, draw: random.Random) -> list[str]:
    words = list(words)
    for _ in range(max(1, int(share * len(words)))):
        first, second = draw.randrange(len(words)), draw.randrange(len(words))
        words[first], words[second] = words[second], words[first]
    return words


def _delete(words: list[str], share: float, draw: random.Random) -> list[str]:
    kept = [word for word in words if len(words) == 1 or draw.random() > share]
    return kept or [draw.choice(words)]
