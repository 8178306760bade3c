"""Synonyms from WordNet's database files (Debian's `wordnet-base`, or NLTK's data), read without further software."""

import os
import re
from functools import lru_cache
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")
ENDINGS = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
"""Rules of detachment: WordNet's own (morphy(7WN)) and, as in NLTK, "ves" to "f"."""


class Synonyms:
    """Synonyms of a word over all its synsets and base forms."""

    def __init__(self, folder: Path) -> None:
        """Read the database, about a second.

        Args:
            folder: holds data.noun, noun.exc and so on.
        """
        self.folder = folder
        self._synsets: dict[str, dict[str, list[frozenset[str]]]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        for part in PARTS:
            self._synsets[part] = _read_synsets(folder / f"data.{part}")
            self._exceptions[part] = _read_exceptions(folder / f"{part}.exc")
        self._known: dict[str, tuple[str, ...]] = {}

    def of(self, word: str) -> tuple[str, ...]:
        """Synonyms of a lower-case word, sorted; letters and blanks only; the word itself is none."""
        if word not in self._known:
            found: set[str] = set()
            for part in PARTS:
                for form in self._forms(word, part):
                    for synset in self._synsets[part].get(form, ()):
                        found |= synset
            cleaned = {re.sub(r"[^a-z ]", "", name.replace("_", " ").replace("-", " ").lower()) for name in found}
            self._known[word] = tuple(sorted(name.strip() for name in cleaned if name.strip() not in ("", word)))
        return self._known[word]

    def _forms(self, word: str, part: str) -> set[str]:
        """Those of the word and its base forms that are known. As in NLTK 3.8, which the papers used: an irregular
        word has its listed base forms alone; of others endings are detached until some form is known."""
        known = self._synsets[part].keys()
        if word in self._exceptions[part]:
            return {word, *self._exceptions[part][word]} & known
        detached = self._detached({word}, part)
        found = ({word} | detached) & known
        while detached and not found:
            detached = self._detached(detached, part)
            found = detached & known
        return found

    @staticmethod
    def _detached(words: set[str], part: str) -> set[str]:
        return {word[: -len(end)] + base for word in words for end, base in ENDINGS[part] if word.endswith(end)}


def _read_synsets(path: Path) -> dict[str, list[frozenset[str]]]:
    """Synsets by lower-case word. A line: offset, file, type, number of words (hexadecimal), then word and id each."""
    synsets: dict[str, list[frozenset[str]]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith(" "):  # the licence
                continue
            fields = line.split(" ")
            words = frozenset(name.split("(")[0] for name in fields[4 : 4 + 2 * int(fields[3], 16) : 2])
            for word in words:
                synsets.setdefault(word.lower(), []).append(words)
    return synsets


def _read_exceptions(path: Path) -> dict[str, list[str]]:
    """Base forms by irregular form."""
    with path.open(encoding="utf-8") as lines:
        return {first: bases for first, *bases in (line.split() for line in lines if line.strip())}


def find_wordnet() -> Path | None:
    """The folder of WordNet's files: $WNSEARCHDIR, Debian's place, or NLTK's data; None where there is none."""
    nltk = [Path(entry) for entry in os.environ.get("NLTK_DATA", "").split(os.pathsep) if entry]
    nltk += [Path(os.path.expanduser("~/nltk_data")), Path("/usr/share/nltk_data"), Path("/usr/local/share/nltk_data")]
    named = [Path(os.environ["WNSEARCHDIR"])] if os.environ.get("WNSEARCHDIR") else []
    places = [*named, Path("/usr/share/wordnet"), *(folder / "corpora" / "wordnet" for folder in nltk)]
    needed = [f"data.{part}" for part in PARTS] + [f"{part}.exc" for part in PARTS]
    return next((place for place in places if all((place / name).is_file() for name in needed)), None)


@lru_cache(maxsize=1)
def synonyms_in(folder: Path) -> Synonyms:
    """The database, read once per process."""
    return Synonyms(folder)
