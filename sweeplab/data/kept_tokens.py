"""Tokens of captions, made when they are first asked for and kept: to tokenise takes a tenth of a millisecond."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sweeplab.clip_model import trimmed

TOKEN_TYPE = np.dtype(np.uint16)
"""CLIP's 49,408 tokens fit into it."""
CHUNK = 4096
"""Captions that are tokenised at a time where all are."""


class KeptTokens:
    """The tokens of a table's captions in an array that starts as zeros.

    Where the array is a file, the processes of a node share it without locks: whoever misses a row makes it, to the
    same tokens as any other, and a row counts as made once its check is there.
    """

    def __init__(self, array: np.ndarray | None, make: Callable[[Sequence[int]], Tensor]) -> None:
        """Take the array over.

        Args:
            array: (N, 1 + context_length) uint16, zeros or what others have made; the first column is the check. None:
                nothing is kept.
            make: rows -> (b, context_length) int64, the same tokens of a row every time.
        """
        self.array, self.make = array, make

    @staticmethod
    def shape(num_rows: int, context_length: int) -> tuple[int, int]:
        """Of the array."""
        return num_rows, 1 + context_length

    def of(self, rows: Sequence[int]) -> Tensor:
        """(b, l) int64, l tokens in the longest text."""
        if self.array is None:
            return trimmed(self.make(list(rows)))
        wanted = np.asarray(rows, dtype=np.int64)
        found = self.array[wanted]
        missing = np.flatnonzero(found[:, 0] != _check(found[:, 1:]))
        if len(missing):
            made = self.make(wanted[missing].tolist()).numpy().astype(TOKEN_TYPE)
            found[missing, 1:] = made
            # First the tokens, then the check: another process may read between the two.
            self.array[wanted[missing], 1:] = made
            self.array[wanted[missing], 0] = _check(made)
        return trimmed(torch.from_numpy(found[:, 1:].astype(np.int64)))

    def forget(self, rows: Sequence[int]) -> None:
        """Make these rows anew when they are asked for."""
        if self.array is not None:
            self.array[list(rows)] = 0

    def make_all(self) -> None:
        """Make all rows that are missing."""
        assert self.array is not None
        for start in range(0, len(self.array), CHUNK):
            self.of(range(start, min(start + CHUNK, len(self.array))))


def _check(tokens: np.ndarray) -> np.ndarray:
    """(b,) uint16 from 1 of (b, l) tokens: a row of which a part was lost has another one, and so has an empty row."""
    places = np.arange(1, 1 + tokens.shape[1], dtype=np.int64)
    return (1 + (tokens * places).sum(axis=1) % 65_521).astype(TOKEN_TYPE)
