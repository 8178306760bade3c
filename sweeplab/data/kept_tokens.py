"""Tokens of captions, made when they are first asked for and kept: to tokenise takes a tenth of a millisecond."""

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sweeplab.clip_model import trimmed

INDEX_TYPE = np.dtype(np.uint64)
"""Of a row: where its tokens begin (36 bits), their number (12) and their check (16); 0: not made yet."""
HEAD = 2
"""Places before a row's tokens, which hold its number, 16 bits each: where tokens were lost, an index that was left
would lead to those of other rows."""
CHUNK = 4096
"""Captions that are tokenised at a time where all are."""


def token_type(vocabulary_size: int) -> np.dtype[Any]:
    """The smallest that holds every token: two bytes for CLIP's 49,408, four for SigLIP's 256,000."""
    return np.dtype(np.uint16 if vocabulary_size <= 2**16 else np.uint32)


class Words(Protocol):
    """Tokens of many captions, one behind the other."""

    kind: np.dtype[Any]

    def append(self, tokens: np.ndarray) -> int | None:
        """Put tokens behind the others; returns where they begin, or None where there is no room for them."""

    def until(self, end: int) -> np.ndarray:
        """All tokens up to some place, or as many as there are."""


class OwnWords:
    """In the memory of this process."""

    def __init__(self, kind: np.dtype[Any], max_bytes: float) -> None:
        """`max_bytes`: what they may take."""
        self.kind, self.max_bytes = kind, max_bytes
        self._array, self._used = np.empty(0, kind), 0

    def append(self, tokens: np.ndarray) -> int | None:
        """See `Words`."""
        start, end = self._used, self._used + len(tokens)
        if end * self.kind.itemsize > self.max_bytes:
            return None
        if end > len(self._array):
            larger = np.empty(max(end, len(self._array) * 3 // 2), self.kind)
            larger[:start] = self._array[:start]
            self._array = larger
        self._array[start:end] = tokens
        self._used = end
        return start

    def until(self, end: int) -> np.ndarray:
        """See `Words`."""
        return self._array[: self._used]


class SharedWords:
    """In a file that the processes of a node append to and map."""

    def __init__(self, kind: np.dtype[Any], path: Path) -> None:
        """`path`: of the file, which need not be there."""
        self.kind, self.path = kind, path
        self._array: np.ndarray = np.empty(0, kind)

    def append(self, tokens: np.ndarray) -> int | None:
        """See `Words`. A full disk has no room."""
        try:
            with self.path.open("ab", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                end = file.seek(0, os.SEEK_END)
                torn = -end % self.kind.itemsize  # of what a killed process was writing
                content = bytes(torn) + tokens.tobytes()
                if file.write(content) < len(content):
                    file.truncate(end)  # the disk took a part
                    return None
                return (end + torn) // self.kind.itemsize
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return None
            raise

    def until(self, end: int) -> np.ndarray:
        """See `Words`."""
        if end > len(self._array):
            try:
                there = self.path.stat().st_size // self.kind.itemsize
            except FileNotFoundError:
                there = 0
            if there > len(self._array):
                self._array = np.memmap(self.path, self.kind, mode="r", shape=(there,))
        return self._array


class KeptTokens:
    """The tokens of a table's captions, each row as long as its text, and an index of where they lie.

    Where these are files, the processes of a node share them: whoever misses a row makes it, to the same tokens as any
    other, and a row counts as made once the index has its check.
    """

    def __init__(self, index: np.ndarray | None, words: Words, make: Callable[[Sequence[int]], Tensor]) -> None:
        """Take both over.

        Args:
            index: (N,) uint64, zeros or what others have made. None: nothing is kept.
            words: the tokens.
            make: rows -> (b, context_length) int64, the same tokens of a row every time.
        """
        self.index, self.words, self.make = index, words, make

    def of(self, rows: Sequence[int]) -> Tensor:
        """(b, l) int64, l tokens in the longest text."""
        if self.index is None:
            return trimmed(self.make(list(rows)))
        wanted = np.asarray(rows, dtype=np.int64)
        found, is_there = self._read(wanted)
        if is_there.all():
            return torch.from_numpy(found)
        made = trimmed(self.make(wanted[~is_there].tolist())).numpy()
        self._write(wanted[~is_there], made)
        both = np.zeros((len(wanted), max(found.shape[1], made.shape[1])), np.int64)
        both[is_there, : found.shape[1]] = found[is_there]
        both[~is_there, : made.shape[1]] = made
        return trimmed(torch.from_numpy(both))

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(b, l) int64 tokens of the rows that are there, and (b,) bool of which are."""
        assert self.index is not None
        entries = self.index[rows]
        starts = (entries >> np.uint64(28)).astype(np.int64)
        lengths = ((entries >> np.uint64(16)) & np.uint64(0xFFF)).astype(np.int64)
        words = self.words.until(int((starts + lengths).max(initial=0)))
        lengths[starts + lengths > len(words)] = 0
        known = np.flatnonzero(lengths)
        heads = words[starts[known, None] - np.arange(HEAD, 0, -1)]
        lengths[known[(heads != _heads(rows[known])).any(axis=1)]] = 0
        columns = np.arange(max(1, lengths.max(initial=0)))
        inside = columns < lengths[:, None]
        tokens = np.zeros(inside.shape, np.int64)
        tokens[inside] = words[(starts[:, None] + columns)[inside]]
        return tokens, (lengths > 0) & (_check(tokens) == entries & np.uint64(0xFFFF))

    def _write(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Keep (b, l) tokens of some rows, if there is room."""
        assert self.index is not None
        lengths = tokens.shape[1] - (tokens[:, ::-1] != 0).argmax(axis=1)
        whole = np.concatenate([_heads(rows), tokens], axis=1)
        flat = whole[np.arange(whole.shape[1]) < HEAD + lengths[:, None]]
        # First the tokens, then the index: another process may read between the two.
        start = self.words.append(flat.astype(self.words.kind))
        if start is not None:
            ends = start + (HEAD + lengths).cumsum()
            starts = (ends - lengths).astype(INDEX_TYPE)
            self.index[rows] = starts << np.uint64(28) | lengths.astype(INDEX_TYPE) << np.uint64(16) | _check(tokens)

    def forget(self, rows: Sequence[int]) -> None:
        """Make these rows anew when they are asked for."""
        if self.index is not None:
            self.index[list(rows)] = 0

    def make_all(self) -> None:
        """Make all rows that are missing."""
        assert self.index is not None
        for start in range(0, len(self.index), CHUNK):
            self.of(range(start, min(start + CHUNK, len(self.index))))


def _heads(rows: np.ndarray) -> np.ndarray:
    """(b, HEAD) what stands before the tokens of rows."""
    return np.stack([rows & 0xFFFF, rows >> 16 & 0xFFFF], axis=1)


def _check(tokens: np.ndarray) -> np.ndarray:
    """(b,) uint64 from 1 to 65,521 of (b, l) tokens: a row of which a part was lost has another one, mostly."""
    places = np.arange(1, 1 + tokens.shape[1], dtype=np.int64)
    return (1 + tokens @ places % 65_521).astype(INDEX_TYPE)
