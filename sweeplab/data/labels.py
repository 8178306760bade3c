"""Labels: class names as prompts need them, and the checks that all sources of labelled images share."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sweeplab.data.images import SHOWN, first_faults
from sweeplab.specs import InvalidInput

WORDNET_ID = re.compile(r"\s*n\d{8}\s*", re.IGNORECASE)
"""A class folder of ImageNet and its relatives."""


def imagenet_names() -> dict[str, str]:
    """OpenAI's ImageNet class names by WordNet id, see `sweeplab.clip_model.imagenet_names`."""
    from sweeplab.clip_model import imagenet_names as names  # open_clip takes seconds to import

    return names()


def names_of_ids(labels: Sequence[str]) -> dict[str, str]:
    """ImageNet's names by id, if any label looks like an id; else nothing."""
    return imagenet_names() if any(map(WORDNET_ID.fullmatch, labels)) else {}


def lines_of(file: Path) -> tuple[str, ...]:
    """The lines of a text file without blanks around them; blank ones at its end are left out.

    Raises:
        InvalidInput: if it cannot be read.
    """
    try:
        return tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").strip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read ({error}); save it in UTF-8 or check its permissions") from None


def check_class_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names, each of which a prompt can hold and which tell the classes apart; ImageNet's own thousand, which say
    `missile` and `sunglasses` twice, are let through.

    Raises:
        InvalidInput: if there is none, one is blank or a WordNet id, or two are the same.
    """
    if not names:
        raise InvalidInput(f"{where} holds no class names; give one for each class")
    blank = [number for number, name in enumerate(names, start=1) if not name.strip()]
    if blank:
        raise InvalidInput(f"{where}: class name {blank[0]} of {len(names):,} is blank; give a name for each class")
    if ids := [name for name in names if WORDNET_ID.fullmatch(name)]:
        raise InvalidInput(
            f"{where} holds the WordNet id {ids[0]!r}, of which a text encoder knows nothing; give words, or "
            "class_names='imagenet' for ImageNet's classes"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice and tuple(names) != tuple(imagenet_names().values()):
        raise InvalidInput(
            f"{where} gives {len(twice):,} class names more than once ({some(twice)}); zero-shot classification needs "
            "distinct names: rename one of each"
        )
    return tuple(names)


def check_numbers(labels: np.ndarray, num_classes: int, where: str) -> np.ndarray:
    """The labels, int64, each the number of a class.

    Args:
        labels: (N,) whole numbers.
        num_classes: C; labels count from 0.
        where: names their source in the message.

    Raises:
        InvalidInput: if one is below 0 or above C - 1.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise InvalidInput(
            f"{where}: {len(bad):,} of {len(labels):,} labels are outside of 0 ... {num_classes - 1}, the numbers of "
            f"the {num_classes} class names, the first is {labels[bad[0]]} in row {bad[0] + 1}; labels count from 0: "
            "mend them, or give all class names"
        )
    return labels.astype(np.int64)


def check_count(num_images: int | None, found: int, where: str) -> None:
    """Refuse a source that holds none, or not the number that is declared, if any is.

    Raises:
        InvalidInput: naming both numbers.
    """
    if not found:
        raise InvalidInput(f"{where} holds no images; a test set needs at least one")
    if num_images not in (None, found):
        raise InvalidInput(
            f"num_images={num_images}, but {where} holds {found:,} images; set num_images={found} or mend the files"
        )


def empty_classes(labels: np.ndarray, names: Sequence[str], where: str) -> tuple[str, ...]:
    """A note where classes have no image: prompts name them all the same, and a list of names may be another set's."""
    lacking = [names[number] for number in np.setdiff1d(np.arange(len(names)), labels)]
    if not lacking:
        return ()
    return (f"{len(lacking):,} of the {len(names):,} classes of {where} have no image ({some(lacking)})",)


def file_sizes(root: str, names: Sequence[str], where: str) -> np.ndarray:
    """(N,) int64, bytes of the files that a source names.

    Args:
        root: folder that the names are relative to.
        names: (N,) paths.
        where: the source, for messages.

    Raises:
        InvalidInput: if some are missing or empty.
    """
    paths = [os.path.join(root, name) for name in names]
    sizes = np.array([os.stat(path).st_size if os.path.isfile(path) else 0 for path in paths], dtype=np.int64)
    missing = np.flatnonzero(sizes == 0)
    if len(missing):
        shown = {int(row): f"{paths[row]} is missing or empty" for row in missing[:SHOWN]}
        raise InvalidInput(
            f"{where}: {len(missing):,} of {len(names):,} images are broken, and none may be:\n"
            f"{first_faults(shown, len(missing))}\n"
            f"mend the paths, which are relative to {root}, or copy the files there"
        )
    return sizes


def some(names: Sequence[str]) -> str:
    """The first five, separated by commas."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
