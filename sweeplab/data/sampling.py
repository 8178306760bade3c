"""Samples: a seeded random part of any source of pairs, and a class-balanced one of any labelled images."""

import numpy as np
from pydantic import Field

from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.randomness import numpy_stream


class Sample(Spec):
    """How many rows to draw, and by which seed; the rows keep their order.

    Of the same rows and seed, a smaller sample is part of every larger one, so that sizes can be compared.
    """

    num: int = Field(ge=1)
    """Rows of the sample."""
    seed: int = Field(default=0, ge=0)

    def rows(self, available: int) -> np.ndarray:
        """Which of the rows 0 ... `available` - 1 are drawn, each as likely as any other.

        Returns:
            (num,) int64, ascending.

        Raises:
            InvalidInput: if there are fewer rows than `num`.
        """
        if self.num > available:
            raise InvalidInput(f"sample.num={self.num} exceeds the {available} rows there are; choose at most as many")
        return np.sort(numpy_stream(self.seed, "sample").permutation(available)[: self.num])

    def balanced_rows(self, labels: np.ndarray, class_names: tuple[str, ...]) -> np.ndarray:
        """Which rows are drawn where every class gives the same number; where `num` does not divide by the number of
        classes, some classes, drawn too, give one more.

        Args:
            labels: (N,) int64, indices into `class_names`.
            class_names: (C,).

        Returns:
            (num,) int64, ascending.

        Raises:
            InvalidInput: if a class has fewer rows than it has to give; all such classes are counted.
        """
        each, remainder = divmod(self.num, len(class_names))
        counts = np.full(len(class_names), each)
        counts[numpy_stream(self.seed, "balanced sample").permutation(len(class_names))[:remainder]] += 1
        found = np.bincount(labels, minlength=len(class_names))
        if (short := np.flatnonzero(found < counts)).size:
            label = int(short[0])
            raise InvalidInput(
                f"sample.num={self.num} takes {counts[label]} images of class {class_names[label]!r}, which has "
                f"{found[label]}; {len(short)} of {len(class_names)} classes have too few: choose a smaller num"
            )
        drawn = [
            numpy_stream(self.seed, "balanced sample", label).permutation(np.flatnonzero(labels == label))[:count]
            for label, count in enumerate(counts)
        ]
        return np.sort(np.concatenate(drawn)).astype(np.int64)
