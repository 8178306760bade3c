"""Kept tokens: made once, by whoever needs them first, and again where they were lost."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sweeplab.data import training_pairs
from sweeplab.data.augmentation import AutoAugmentView
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.kept_tokens import TOKEN_TYPE, KeptTokens
from sweeplab.data.tables import PairTable
from sweeplab.data.training_pairs import TrainingPairs

LENGTHS = (3, 5, 4, 2)


def tokens_of(row: int) -> list[int]:
    return [49406, *range(7, 5 + LENGTHS[row]), 49407]


class Making:
    """Makes rows of tokens and remembers which."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, rows: Sequence[int]) -> Tensor:
        self.rows += rows
        return torch.tensor([tokens_of(row) + [0] * (8 - LENGTHS[row]) for row in rows])


@pytest.fixture
def array() -> np.ndarray:
    return np.zeros(KeptTokens.shape(4, 8), TOKEN_TYPE)


def test_rows_are_made_once_and_trimmed_to_the_longest(array: np.ndarray):
    making = Making()
    kept = KeptTokens(array, making)
    assert kept.of([2, 0]).tolist() == [tokens_of(2), [*tokens_of(0), 0]]
    assert kept.of([0, 1, 0]).tolist() == [[*tokens_of(0), 0, 0], tokens_of(1), [*tokens_of(0), 0, 0]]
    assert kept.of([2]).dtype == torch.int64
    kept.make_all()
    assert sorted(making.rows) == [0, 1, 2, 3]


def test_another_process_finds_what_was_made_and_makes_what_was_lost(array: np.ndarray):
    KeptTokens(array, Making()).make_all()
    array[1, 3:] = 0  # a page that never reached the disk
    array[2, 0] = 0  # killed before the check
    making = Making()
    found = KeptTokens(array, making).of([0, 1, 2, 3])
    assert making.rows == [1, 2]
    assert found.tolist() == [tokens_of(row) + [0] * (5 - LENGTHS[row]) for row in range(4)]


def test_the_last_token_of_the_vocabulary_survives(array: np.ndarray):
    kept = KeptTokens(array, lambda rows: torch.full((len(rows), 8), 49407))
    assert kept.of([3]).tolist() == [[49407] * 8]
    assert kept.of([3]).tolist() == [[49407] * 8]


def counting(tokenize: Callable[[list[str]], Tensor], texts: list[str]) -> Callable[[list[str]], Tensor]:
    def count(batch: list[str]) -> Tensor:
        texts.extend(text for text in batch if text != training_pairs.PROBE)
        return tokenize(batch)

    return count


def test_many_captions_are_tokenised_once_a_node_and_no_sooner_than_asked_for(
    tokenize: Callable[[list[str]], Tensor],
    stall_pairs: PairTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    texts: list[str] = []
    few = TrainingPairs(stall_pairs, 32, tokenize=counting(tokenize, texts), seed=0)
    assert len(texts) == 64
    monkeypatch.setattr(training_pairs, "OWN_CAPTIONS", 63)
    texts.clear()
    files = DecodedFiles(tmp_path / "node", max_bytes=1e9)

    def many(**fields: object) -> TrainingPairs:
        return TrainingPairs(stall_pairs, 32, tokenize=counting(tokenize, texts), seed=0, decoded=files, **fields)

    first, keys = many(), [(1, row) for row in range(40)]
    assert texts == []
    assert torch.equal(first.__getitems__(keys).tokens, few.__getitems__(keys).tokens)
    assert len(texts) == 40
    again = [(1, row) for row in range(20, 64)]
    assert torch.equal(many().__getitems__(again).tokens, few.__getitems__(again).tokens)
    assert len(texts) == 64
    assert many(captions={5: "a poison"}).__getitems__([(1, 5)]).tokens.shape == (1, 4)
    assert texts[64:] == ["a poison"]
    (kept, _) = sorted(files.folder.glob("tokens-*"))
    assert (kept / "pixels").stat().st_size == 64 * 2 * 17


def test_without_a_file_many_captions_are_tokenised_once_a_process(
    tokenize: Callable[[list[str]], Tensor], stall_pairs: PairTable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training_pairs, "OWN_CAPTIONS", 63)
    texts: list[str] = []
    pairs = TrainingPairs(stall_pairs, 32, tokenize=counting(tokenize, texts), seed=0)
    for _ in range(2):
        pairs.__getitems__([(1, 3), (1, 4)])
    assert len(texts) == 2


def test_without_an_array_rows_are_made_whenever_they_are_asked_for():
    making = Making()
    kept = KeptTokens(None, making)
    for _ in range(2):
        assert kept.of([2, 0]).tolist() == [tokens_of(2), [*tokens_of(0), 0]]
    kept.forget([2])
    assert making.rows == [2, 0, 2, 0]


def test_tokens_of_more_captions_than_a_process_keeps_are_the_same(
    stall_pairs: PairTable, tokenize: Callable[[list[str]], Tensor], monkeypatch: pytest.MonkeyPatch
):
    """Plain and augmented ones: neither is kept where the node keeps nothing."""
    rows, found = [5, 63, 0, 5], []
    for limit in (64 * 17 * 2, 64 * 17 * 2 - 1):
        monkeypatch.setattr(training_pairs, "OWN_CAPTIONS", 63)
        monkeypatch.setattr(training_pairs, "OWN_TOKEN_BYTES", limit)
        pairs = TrainingPairs(stall_pairs, 32, tokenize=tokenize, seed=3)
        assert (pairs._tokens.array is not None) == (limit == 64 * 17 * 2)
        pairs.use_views(AutoAugmentView())
        found += [pairs.__getitems__([(1, row) for row in rows]) for _ in range(2)]
    for other in found[1:]:
        assert torch.equal(other.tokens, found[0].tokens)
        assert other.token_views is not None
        assert found[0].token_views is not None
        assert torch.equal(other.token_views, found[0].token_views)
