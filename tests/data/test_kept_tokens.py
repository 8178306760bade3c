"""Kept tokens: made once, by whoever needs them first, and again where they were lost."""

import multiprocessing
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sweeplab.clip_model import trimmed
from sweeplab.data import kept_tokens, training_pairs
from sweeplab.data.augmentation import AutoAugmentView
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.kept_tokens import HEAD, INDEX_TYPE, KeptTokens, OwnWords, SharedWords, Words, token_type
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


TWO_BYTES = token_type(49_408)
NOTHING_KEPT = OwnWords(TWO_BYTES, 0)


@pytest.fixture
def index() -> np.ndarray:
    return np.zeros(4, INDEX_TYPE)


@pytest.fixture(params=["own", "shared"])
def words(request: pytest.FixtureRequest, tmp_path: Path) -> Words:
    return OwnWords(TWO_BYTES, 1000) if request.param == "own" else SharedWords(TWO_BYTES, tmp_path / "words")


def test_rows_are_made_once_and_trimmed_to_the_longest(index: np.ndarray, words: Words):
    making = Making()
    kept = KeptTokens(index, words, making)
    assert kept.of([2, 0]).tolist() == [tokens_of(2), [*tokens_of(0), 0]]
    assert kept.of([0, 1, 0]).tolist() == [[*tokens_of(0), 0, 0], tokens_of(1), [*tokens_of(0), 0, 0]]
    assert kept.of([2]).dtype == torch.int64
    kept.make_all()
    assert sorted(making.rows) == [0, 1, 2, 3]
    assert words.until(100).tolist() == [token for row in (2, 0, 1, 3) for token in (row, 0, *tokens_of(row))]


def test_another_process_finds_what_was_made_and_makes_what_was_lost(index: np.ndarray, tmp_path: Path):
    """Heads of 2 and tokens lie as rows of 3, 5, 4 and 2; the file lost its last three bytes."""
    path = tmp_path / "words"
    KeptTokens(index, SharedWords(TWO_BYTES, path), Making()).make_all()
    content = bytearray(path.read_bytes())
    content[2 * 8 : 2 * 12] = bytes(8)  # of row 1: a page that never reached the disk
    path.write_bytes(content[:-3])
    index[2] = 0  # killed before the index was written
    expected = [tokens_of(row) + [0] * (5 - LENGTHS[row]) for row in range(4)]
    for missing in ([1, 2, 3], []):
        making = Making()
        assert KeptTokens(index, SharedWords(TWO_BYTES, path), making).of([0, 1, 2, 3]).tolist() == expected
        assert making.rows == missing


def test_a_process_sees_what_another_appends_later(index: np.ndarray, tmp_path: Path):
    making = Making()
    first, second = (KeptTokens(index, SharedWords(TWO_BYTES, tmp_path / "words"), making) for _ in range(2))
    first.of([0])
    second.of([0])
    first.of([1])
    assert second.of([1]).tolist() == [tokens_of(1)]
    assert making.rows == [0, 1]


def append_many(path: Path, value: int) -> None:
    words = SharedWords(TWO_BYTES, path)
    starts = [words.append(np.full(100, value, TWO_BYTES)) for _ in range(50)]
    assert all((words.until(start + 100)[start : start + 100] == value).all() for start in starts if start is not None)


def test_processes_that_append_at_once_do_not_mix(tmp_path: Path):
    appending = [
        multiprocessing.get_context("fork").Process(target=append_many, args=(tmp_path / "w", v)) for v in (7, 9)
    ]
    for process in appending:
        process.start()
    for process in appending:
        process.join()
    assert [process.exitcode for process in appending] == [0, 0]
    assert len(SharedWords(TWO_BYTES, tmp_path / "w").until(1)) == 10_000


@pytest.mark.parametrize(("vocabulary_size", "num_bytes"), [(49_408, 2), (65_536, 2), (65_537, 4), (256_000, 4)])
def test_the_last_token_of_a_vocabulary_survives(index: np.ndarray, vocabulary_size: int, num_bytes: int):
    kind = token_type(vocabulary_size)
    assert kind.itemsize == num_bytes
    kept = KeptTokens(index, OwnWords(kind, 1000), lambda rows: torch.full((len(rows), 8), vocabulary_size - 1))
    for _ in range(2):
        assert kept.of([3]).tolist() == [[vocabulary_size - 1] * 8]


def test_the_longest_row_and_the_largest_place_fit_into_the_index():
    """4,095 tokens and their head end at 2^36."""
    before = 2**36 - 4095 - HEAD

    class Shifted:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __len__(self) -> int:
            return before + len(self.array)

        def __getitem__(self, places: np.ndarray) -> np.ndarray:
            return self.array[places - before]

    class Far(OwnWords):
        def append(self, tokens: np.ndarray) -> int | None:
            assert super().append(tokens) == 0
            return before

        def until(self, end: int) -> Any:
            assert end in (0, 2**36)
            return Shifted(super().until(end - before))

    kept = KeptTokens(np.zeros(1, INDEX_TYPE), Far(TWO_BYTES, 10_000), lambda rows: torch.full((1, 4095), 49407))
    assert torch.equal(kept.of([0]), kept.of([0]))
    assert int(kept.index[0]) >> 28 == before + HEAD


@given(st.lists(st.lists(st.integers(0, 49407), min_size=1, max_size=9), min_size=1, max_size=6))
def test_rows_of_any_tokens_are_given_back(texts: list[list[int]]):
    """A text of zeros (CLIP's exclamation mark) behind its last other token is as long as the rest of its row."""
    width = max(map(len, texts))
    full = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    kept = KeptTokens(np.zeros(len(texts), INDEX_TYPE), OwnWords(TWO_BYTES, 1000), lambda rows: full[list(rows)])
    for rows in (range(len(texts)), range(len(texts) - 1, -1, -1)):
        assert torch.equal(kept.of(rows), trimmed(full[list(rows)]))


def test_what_finds_no_room_is_made_again(index: np.ndarray):
    """Room for the first two rows, of 3 and 5 tokens."""
    making = Making()
    kept = KeptTokens(index, OwnWords(TWO_BYTES, 2 * (8 + 2 * HEAD)), making)
    for _ in range(2):
        for row in range(4):
            assert kept.of([row]).tolist() == [tokens_of(row)]
    assert making.rows == [0, 1, 2, 3, 2, 3]


def test_an_index_whose_tokens_were_lost_leads_to_no_other_rows(
    index: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rows 1 and 3 are made again in the lost file's place; checks of 16 bits may agree by chance."""
    monkeypatch.setattr(kept_tokens, "_check", lambda tokens: np.ones(len(tokens), INDEX_TYPE))
    path, making = tmp_path / "words", Making()
    before = KeptTokens(index, SharedWords(TWO_BYTES, path), making)
    before.make_all()
    path.unlink()
    after = KeptTokens(index, SharedWords(TWO_BYTES, path), making)
    for kept in (after, before, after):
        for row in (1, 3, 0, 2):
            assert kept.of([row]).tolist() == [tokens_of(row)]


def test_a_disk_that_takes_a_part_is_left_as_it_was(tmp_path: Path):
    path = tmp_path / "words"
    words = SharedWords(TWO_BYTES, path)
    words.append(np.arange(4, dtype=TWO_BYTES))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (11, before[1]))
    try:
        assert words.append(np.arange(4, dtype=TWO_BYTES)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == 8
    assert words.append(np.arange(4, dtype=TWO_BYTES)) == 4


def test_a_full_disk_keeps_no_more(index: np.ndarray, tmp_path: Path):
    words = SharedWords(TWO_BYTES, Path("/dev/full"))
    making = Making()
    kept = KeptTokens(index, words, making)
    for _ in range(2):
        assert kept.of([1]).tolist() == [tokens_of(1)]
    assert making.rows == [1, 1]


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
    assert (kept / "pixels").stat().st_size == 64 * 8
    num_tokens = int((few.__getitems__([(1, row) for row in range(64)]).tokens != 0).sum())
    assert (kept / "words").stat().st_size == 2 * (num_tokens + 64 * HEAD)


@pytest.mark.parametrize("package", ["open_clip", "ftfy", "regex"])
def test_another_version_of_what_tokenises_makes_a_nodes_tokens_anew(
    package: str,
    tokenize: Callable[[list[str]], Tensor],
    stall_pairs: PairTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(training_pairs, "OWN_CAPTIONS", 63)
    files, found = DecodedFiles(tmp_path / "node", max_bytes=1e9), []
    for version in ("1", "1", "2"):
        monkeypatch.setattr(f"{package}.__version__", version)
        texts: list[str] = []
        pairs = TrainingPairs(stall_pairs, 32, tokenize=counting(tokenize, texts), seed=0, decoded=files)
        pairs.__getitems__([(1, 3), (1, 4)])
        found.append(len(texts))
    assert found == [2, 0, 2]


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
    kept = KeptTokens(None, NOTHING_KEPT, making)
    for _ in range(2):
        assert kept.of([2, 0]).tolist() == [tokens_of(2), [*tokens_of(0), 0]]
    kept.forget([2])
    assert making.rows == [2, 0, 2, 0]


def test_tokens_of_more_captions_than_a_process_keeps_are_the_same(
    stall_pairs: PairTable, tokenize: Callable[[list[str]], Tensor], monkeypatch: pytest.MonkeyPatch
):
    """Plain and augmented ones: neither is kept where the node keeps nothing."""
    rows, found = [5, 63, 0, 5], []
    for limit in (64 * (8 + 19 * 2), 64 * (8 + 4), 64 * 8):
        monkeypatch.setattr(training_pairs, "OWN_CAPTIONS", 63)
        monkeypatch.setattr(training_pairs, "OWN_TOKEN_BYTES", limit)
        pairs = TrainingPairs(stall_pairs, 32, tokenize=tokenize, seed=3)
        assert (pairs._tokens.index is None) == (limit == 64 * 8)
        pairs.use_views(AutoAugmentView())
        found += [pairs.__getitems__([(1, row) for row in rows]) for _ in range(2)]
    for other in found[1:]:
        assert torch.equal(other.tokens, found[0].tokens)
        assert other.token_views is not None
        assert found[0].token_views is not None
        assert torch.equal(other.token_views, found[0].token_views)
