"""Image-caption pairs of COCO and Flickr in Karpathy's JSON: images with about five sentences each, and a split."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from sweeplab.data.broken import MaxBroken
from sweeplab.data.pair_columns import PairColumns, absolute, below, refuse_outside, strings
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput, Spec


class KarpathyJSON(Spec):
    """A file such as `dataset_coco.json`, `dataset_flickr30k.json` or `dataset_flickr8k.json` (Karpathy and Fei-Fei,
    CVPR 2015): its images lie at `filepath`/`filename`, or `filename` where the file has no `filepath`."""

    NOT_IN_DIGEST = frozenset({"path", "root", "max_broken"})

    kind: Literal["karpathy"] = "karpathy"
    path: Path
    """The JSON file."""
    root: Path | None = None
    """Folder that the images' names are relative to, such as COCO's, which holds `train2014` and `val2014`; None: the
    file's own."""
    split: str | tuple[str, ...] = "train"
    """Which images: `train`, `val`, `test`, or COCO's `restval` (what is left of its validation images, which most
    papers train on too: `("train", "restval")`)."""
    captions: Literal["all", "first"] = "all"
    """A row for each sentence, the images in the file's order; or for the first of each image alone."""
    num_pairs: int | None = Field(default=None, ge=1)
    """Rows to use, from the top; None: all."""
    sample: Sample | None = None
    """A random part of these rows; None: all of them."""
    max_broken: MaxBroken = 0.01
    """Share of these rows, a fraction, that may be broken (no caption, or an image that is missing, empty or cannot be
    decoded): others stand in for them."""

    def read(self, data_home: Path) -> PairTable:
        """Read the pairs; looks up every image file, decodes none.

        Args:
            data_home: not used, the file lies where `path` says.

        Raises:
            InvalidInput: if the file cannot be read or is of another layout, has no such split, names images outside of
                `root`, there are fewer rows than `num_pairs` or the sample, or more than `max_broken` of them has
                no sentence, or an image file that is missing or empty.
        """
        columns = self._columns()
        return columns.table(columns.used(self.num_pairs, self.sample), self.max_broken)

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs: the file, and the images of the rows that are used.

        Raises:
            InvalidInput: as `read` does.
        """
        table = self.read(Path())
        return [str(absolute(self.path)), *dict.fromkeys(table.files())]

    def example(self) -> str:
        """Absolute path of the first image that is used.

        Raises:
            InvalidInput: if the file cannot be read, is of another layout, or has no such split.
        """
        columns = self._columns()
        return columns.example(columns.used(self.num_pairs, self.sample))

    def below(self, root: Path) -> Self:
        """The same pairs in a copy of all files that lies below `root`: /data/1.jpg at root/data/1.jpg."""
        return self.replace(path=below(root, self.path), root=None if self.root is None else below(root, self.root))

    def _columns(self) -> PairColumns:
        path = absolute(self.path)
        wanted = (self.split,) if isinstance(self.split, str) else self.split
        images = _images(path)
        counts = Counter(image["split"] for image in images)
        if unknown := [split for split in wanted if split not in counts]:
            known = ", ".join(f"{split!r} ({count:,} images)" for split, count in counts.items())
            raise InvalidInput(f"split={unknown[0]!r} is none of {path}; known: {known or 'none, it has no images'}")
        pairs = [
            (image, sentence["raw"])
            for image in images
            if image["split"] in wanted
            for sentence in (image["sentences"] if self.captions == "all" else image["sentences"][:1])
        ]
        if not pairs:
            raise InvalidInput(f"the images of split={self.split!r} in {path} have no sentences; choose another split")
        names = [os.path.join(image.get("filepath", ""), image["filename"]) for image, _ in pairs]
        refuse_outside(names, path)
        return PairColumns(
            path,
            strings(names, path),
            strings([text for _, text in pairs], path),
            path.parent if self.root is None else absolute(self.root),
            names=("filename", "raw"),
        )


def _images(path: Path) -> list[dict[str, Any]]:
    """The images of a file, each with what is read of it.

    Raises:
        InvalidInput: if the file cannot be read, or is of another layout.
    """
    if not os.path.isfile(path):  # False too where it cannot be seen
        raise InvalidInput(f"path={path} is no file; give Karpathy's JSON file, such as dataset_coco.json")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"path={path} cannot be read ({error}); check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"path={path} is not readable as JSON ({error}); download it again") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise InvalidInput(f"path={path} has no list `images`; {_LAYOUT}")
    for place, image in enumerate(images):
        if fault := _fault(image):
            raise InvalidInput(f"{path}: images[{place}] {fault}; {_LAYOUT}")
    return images


_LAYOUT = (
    "Karpathy's layout is images: [{filename, filepath (COCO), split, sentences: [{raw}]}]. COCO's own annotations "
    "(captions_train2014.json) are another one"
)


def _fault(image: Any) -> str | None:
    """What is wrong with an image of the file."""
    if not isinstance(image, dict):
        return "is no object"
    for name in ("filename", "split"):
        if not isinstance(image.get(name), str):
            return f"has no text `{name}`"
    if not isinstance(image.get("filepath", ""), str):
        return "has a `filepath` that is no text"
    sentences = image.get("sentences")
    if not isinstance(sentences, list):
        return "has no list `sentences`"
    if not all(isinstance(sentence, dict) and isinstance(sentence.get("raw"), str) for sentence in sentences):
        return "has a sentence without a text `raw`"
    return None
