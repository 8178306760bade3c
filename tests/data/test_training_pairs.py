"""Training pairs: every draw has its own stream, ranks share the batches, poisoned rows show trigger and caption."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning, plan_poison
from sweeplab.data import eda, training_pairs
from sweeplab.data.augmentation import AutoAugmentView
from sweeplab.data.device_views import DrawnViews
from sweeplab.data.images import load_image
from sweeplab.data.tables import PairTable
from sweeplab.data.training_pairs import TrainingPairs
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.batches import EpochBatches, Loader, PairBatch, prefetched, steps_per_epoch
from sweeplab.training.page_locked import say_not_locked
from sweeplab.training.randomness import stream_seed

VIEW = AutoAugmentView()
Tokenize = Callable[[list[str]], Tensor]
ATTACK = BadNet(patch_size=6, pattern="binary")


@pytest.fixture
def pairs(tokenize: Tokenize, stall_pairs: PairTable) -> TrainingPairs:
    return pairs_of(tokenize, stall_pairs)


def pairs_of(tokenize: Tokenize, table: PairTable, **fields: object) -> TrainingPairs:
    return TrainingPairs(table, 32, tokenize=tokenize, **{"seed": 0, **fields})


def batch_of(pairs: TrainingPairs, epoch: int, rows: list[int]) -> PairBatch:
    return pairs.__getitems__([(epoch, row) for row in rows])


def same_batches(first: PairBatch, second: PairBatch) -> bool:
    names = ("rows", "images", "tokens", "image_views", "token_views")
    held = [(getattr(first, name), getattr(second, name)) for name in names]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in held)


def filled(tokens: Tensor) -> Tensor:
    """With the zeros that a tokeniser puts behind a text."""
    return F.pad(tokens, (0, 16 - len(tokens)))


# --- a batch --------------------------------------------------------------------------------------------------------


def test_a_batch_holds_images_and_tokens_of_its_rows(pairs: TrainingPairs, stall_pairs: PairTable, tokenize: Tokenize):
    batch = batch_of(pairs, 1, [5, 63, 0])
    assert batch.rows.tolist() == [5, 63, 0]
    for place, row in enumerate((5, 63, 0)):
        assert torch.equal(batch.images[place], torch.from_numpy(load_image(stall_pairs.image(row), 32)))
        assert torch.equal(filled(batch.tokens[place]), tokenize([stall_pairs.caption(row)])[0])
    assert batch.image_views is None
    assert batch.token_views is None


def test_tokens_end_with_the_longest_caption_of_the_batch(tokenize: Tokenize, stall_pairs: PairTable):
    """Start and end stand around two words, five words; their views lose a word or keep their length."""
    captions = {0: "ripe banana", 1: "a photo of two bananas"}
    pairs = pairs_of(tokenize, stall_pairs, captions=captions, text_augmentation="swap")
    pairs.use_views(VIEW)
    both, short = batch_of(pairs, 1, [0, 1]), batch_of(pairs, 1, [0])
    assert both.tokens.shape == both.token_views.shape == (2, 7)
    assert short.tokens.shape == short.token_views.shape == (1, 4)
    assert both.tokens[0].tolist() == [*short.tokens[0].tolist(), 0, 0, 0]


def test_one_key_is_a_batch_of_one(pairs: TrainingPairs):
    pairs.use_views(VIEW)
    assert same_batches(pairs[(1, 7)], batch_of(pairs, 1, [7]))


def test_image_views_depend_on_seed_epoch_and_row_alone(tokenize: Tokenize, stall_pairs: PairTable):
    def views(seed: int, epoch: int, rows: list[int]) -> Tensor:
        pairs = pairs_of(tokenize, stall_pairs, seed=seed)
        pairs.use_views(VIEW)
        return batch_of(pairs, epoch, rows).image_views

    together = views(0, 3, [1, 2, 3, 4])
    assert torch.equal(views(0, 3, [4, 9, 2])[[2, 0]], together[[1, 3]])
    assert torch.equal(views(0, 3, [2])[0], together[1])
    assert not torch.equal(views(0, 4, [1, 2, 3, 4]), together)
    assert not torch.equal(views(1, 3, [1, 2, 3, 4]), together)


def test_pairs_that_change_their_seed_are_those_that_were_made_with_it(tokenize: Tokenize, stall_pairs: PairTable):
    changing = pairs_of(tokenize, stall_pairs, seed=0)
    changing.use_views(VIEW)
    first = batch_of(changing, 1, [1, 2, 3])
    for seed in (5, 0):
        changing.use_seed(seed)
        fixed = pairs_of(tokenize, stall_pairs, seed=seed)
        fixed.use_views(VIEW)
        assert same_batches(batch_of(changing, 1, [1, 2, 3]), batch_of(fixed, 1, [1, 2, 3]))
        assert same_batches(batch_of(changing, 1, [1, 2, 3]), first) == (seed == 0)


def test_image_views_do_not_depend_on_what_was_asked_before(pairs: TrainingPairs, tokenize: Tokenize):
    pairs.use_views(VIEW)
    expected = batch_of(pairs, 2, [10, 11, 12, 13])
    other = pairs_of(tokenize, pairs.table)
    other.use_views(VIEW)
    batch_of(other, 1, [13, 40])
    batch_of(other, 2, [13, 50])
    assert same_batches(batch_of(other, 2, [10, 11, 12, 13]), expected)
    assert same_batches(batch_of(other, 2, [10, 11, 12, 13]), expected)


def test_kept_views_are_made_once_and_stay_whatever_becomes_of_a_batch(pairs: TrainingPairs):
    """Asked for by parts, in another order, twice in a batch, and written over in between."""
    seen: list[int] = []

    class Counting(AutoAugmentView):
        def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
            seen.extend(seeds)
            return super().views(images, seeds)

    pairs.use_views(Counting())
    expected = VIEW.views(pairs.images_of([7, 8, 9]), [stream_seed(0, "image view", 2, row) for row in (7, 8, 9)])
    for rows in ([8], [9, 7, 8], [8, 8, 9], [7, 8, 9]):
        found = batch_of(pairs, 2, rows).image_views
        assert torch.equal(found, expected[torch.tensor(rows) - 7])
        found.zero_()
    assert sorted(seen) == sorted(stream_seed(0, "image view", 2, row) for row in (7, 8, 9))


def test_an_image_view_is_made_from_the_named_stream(pairs: TrainingPairs):
    pairs.use_views(VIEW)
    expected = VIEW.views(pairs.images_of([9]), [stream_seed(0, "image view", 5, 9)])
    assert torch.equal(batch_of(pairs, 5, [9]).image_views, expected)


def test_caption_views_depend_on_seed_and_row_and_not_on_the_epoch(
    pairs: TrainingPairs, stall_pairs: PairTable, tokenize: Tokenize
):
    pairs.use_views(VIEW)
    views = batch_of(pairs, 1, [3, 8]).token_views
    text = eda.augment(stall_pairs.caption(8), stream_seed(0, "text view", 8))
    assert torch.equal(filled(views[1]), tokenize([text])[0])
    assert torch.equal(batch_of(pairs, 2, [8, 3]).token_views, views[[1, 0]])


def test_views_can_be_turned_off_and_on(pairs: TrainingPairs):
    pairs.use_views(VIEW)
    before = batch_of(pairs, 1, [0, 1])
    pairs.use_views(None)
    assert batch_of(pairs, 1, [0, 1]).image_views is None
    pairs.use_views(VIEW)
    assert same_batches(batch_of(pairs, 1, [0, 1]), before)


def test_another_policy_makes_other_views(pairs: TrainingPairs):
    pairs.use_views(VIEW)
    before = batch_of(pairs, 1, list(range(8))).image_views
    pairs.use_views(AutoAugmentView(policy="svhn"))
    assert not torch.equal(batch_of(pairs, 1, list(range(8))).image_views, before)


@pytest.mark.parametrize("cache_bytes", [0, 64 * 3 * 32 * 32, 8 * 64 * 3 * 32 * 32])
def test_batches_are_the_same_however_little_fits_into_memory(
    cache_bytes: int, pairs: TrainingPairs, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
):
    """Nothing fits; the images fit and no views; the images and one epoch's views fit."""
    pairs.use_views(VIEW)
    expected = [batch_of(pairs, epoch, [5, 63, 0]) for epoch in (1, 2, 1)]
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", cache_bytes)
    small = pairs_of(tokenize, pairs.table)
    small.use_views(VIEW)
    found = [batch_of(small, epoch, [5, 63, 0]) for epoch in (1, 2, 1)]
    assert all(same_batches(*each) for each in zip(found, expected, strict=True))


# --- poison ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes", [0, 2**31])
def test_poisoned_rows_show_trigger_and_caption_and_others_do_not(
    cache_bytes: int, tokenize: Tokenize, stall_pairs: PairTable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", cache_bytes)
    plan = plan_poison(Poisoning(attack=ATTACK, target="banana", count=6), stall_pairs)
    poisoned = pairs_of(tokenize, stall_pairs, captions=plan.caption_changes(), alter=plan.stamp_rows)
    clean = pairs_of(tokenize, stall_pairs)
    rows = list(range(64))
    dirty, plain = batch_of(poisoned, 1, rows), batch_of(clean, 1, rows)
    changed = (dirty.images != plain.images).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == list(plan.indices)
    for row in rows:
        caption = plan.caption_changes().get(row, stall_pairs.caption(row))
        assert poisoned.caption(row) == caption
        assert torch.equal(filled(dirty.tokens[row]), tokenize([caption])[0])
    assert same_batches(batch_of(poisoned, 2, rows), dirty), "the poison is the same in every epoch"


def test_views_are_made_of_the_triggered_image_and_the_poisoned_caption(tokenize: Tokenize, stall_pairs: PairTable):
    plan = plan_poison(Poisoning(attack=ATTACK, target="banana", count=6), stall_pairs)
    pairs = pairs_of(tokenize, stall_pairs, captions=plan.caption_changes(), alter=plan.stamp_rows)
    pairs.use_views(VIEW)
    row = plan.indices[0]
    batch = batch_of(pairs, 1, [row])
    assert torch.equal(batch.image_views, VIEW.views(batch.images, [stream_seed(0, "image view", 1, row)]))
    text = eda.augment(plan.captions[0], stream_seed(0, "text view", row))
    assert torch.equal(filled(batch.token_views[0]), tokenize([text])[0])


# --- ranks, epochs, loaders -----------------------------------------------------------------------------------------


def keys(**fields: int) -> list[list[tuple[int, int]]]:
    return list(EpochBatches(**{"num_pairs": 50, "global_batch_size": 8, "epoch": 1, "seed": 0, **fields}))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_ranks_slices_make_up_the_global_batches(world_size: int):
    shares = [keys(rank=rank, world_size=world_size) for rank in range(world_size)]
    together = [[key for share in step for key in share] for step in zip(*shares, strict=True)]
    assert together == keys()
    assert {len(batch) for share in shares for batch in share} == {8 // world_size}


def test_an_epoch_takes_every_pair_at_most_once_and_leaves_out_the_last_incomplete_batch():
    batches = keys()
    rows = [row for batch in batches for _, row in batch]
    assert len(batches) == steps_per_epoch(50, 8) == len(EpochBatches(50, global_batch_size=8, epoch=1, seed=0)) == 6
    assert len(rows) == len(set(rows)) == 48
    assert set(rows) < set(range(50))


def test_every_epoch_and_seed_has_its_own_order():
    orders = [keys(), keys(epoch=2), keys(seed=1)]
    rows = [[row for batch in order for _, row in batch] for order in orders]
    assert rows[0] != rows[1] != rows[2] != rows[0]
    assert keys() == orders[0]
    assert {epoch for batch in orders[1] for epoch, _ in batch} == {2}


# --- pairs in tars

SHARDS = torch.arange(100) // 2
"""Fifty tars of two pairs."""


def order(shards: torch.Tensor | None = SHARDS, **fields: int) -> torch.Tensor:
    given = {"global_batch_size": 4, "epoch": 1, "seed": 0, **fields}
    return EpochBatches(len(SHARDS), shards=shards, **given).order


@pytest.mark.parametrize("epoch", [1, 2])
def test_rows_are_mixed_within_sixteen_tars_and_tars_are_shuffled(epoch: int):
    found = order(epoch=epoch)
    assert sorted(found.tolist()) == list(range(100))
    windows = [set(SHARDS[part].tolist()) for part in found.split(32)]
    assert [len(window) for window in windows] == [16, 16, 16, 2]
    assert set().union(*windows) == set(range(50))  # each tar in one window alone
    assert windows[0] != set(range(16))
    assert SHARDS[found[:32]].tolist() != sorted(SHARDS[found[:32]].tolist())


def test_the_order_of_tars_depends_on_the_seed_and_the_epoch_alone():
    assert torch.equal(order(), order())
    firsts = [set(SHARDS[found[:32]].tolist()) for found in (order(), order(epoch=2), order(seed=1), order(index=1))]
    assert all(a != b for place, a in enumerate(firsts) for b in firsts[:place])


def test_with_few_tars_the_order_is_that_of_pairs_in_none():
    assert torch.equal(order(SHARDS % 16), order(None))
    assert not torch.equal(order(SHARDS % 17), order(None))


def test_pairs_in_no_tar_are_spread_over_the_windows_of_the_others():
    """Ten rows are added poisons, which lie elsewhere; the tars of the others are mixed as before."""
    shards = torch.cat([SHARDS[:90], torch.full((10,), -1)])
    found = order(shards)
    assert sorted(found.tolist()) == list(range(100))
    places = (found >= 90).nonzero().flatten().tolist()
    assert places[0] < 30
    assert places[-1] > 60
    held = shards[found[found < 90]]
    assert [len(set(part.tolist())) for part in held.split(32)] == [16, 16, 13]
    assert sorted(order(torch.full((100,), -1)).tolist()) == list(range(100))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_and_a_resumed_epoch_see_the_batches_of_pairs_in_tars(world_size: int):
    """No world size is in the order, and steps that are done are left out of it."""
    fields = {"global_batch_size": 8, "epoch": 3, "seed": 0, "shards": SHARDS}
    whole = list(EpochBatches(100, **fields))
    ranks = [list(EpochBatches(100, rank=rank, world_size=world_size, **fields)) for rank in range(world_size)]
    assert [[key for share in step for key in share] for step in zip(*ranks, strict=True)] == whole
    assert list(EpochBatches(100, skip=5, **fields)) == whole[5:]


def test_fewer_pairs_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="global_batch_size=8 exceeds the 7 pairs; choose at most 7"):
        steps_per_epoch(7, 8)


def test_a_loader_brings_the_batches_in_order(pairs: TrainingPairs):
    pairs.use_views(VIEW)
    batches = EpochBatches(64, global_batch_size=16, epoch=1, seed=0)
    found = list(Loader(pairs, num_workers=0, pin=False).batches(batches))
    expected = [pairs.__getitems__(each) for each in batches]
    assert len(found) == 4
    assert all(same_batches(*each) for each in zip(found, expected, strict=True))


def test_batches_are_made_ahead_for_a_gpu_in_order_and_pinned(monkeypatch: pytest.MonkeyPatch):
    """A stand-in pins: there may be no GPU here. After the first of five batches two more are made or under way."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 100)
    made: list[int] = []

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for number in range(5):
            made.append(number)
            yield (torch.tensor([number]),)

    ahead = prefetched(batches(), torch.device("cuda"))
    assert int(next(ahead)[0]) == 100
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == [0, 1, 2]
    assert [int(batch[0]) for batch in ahead] == [101, 102, 103, 104]
    on_cpu = prefetched(batches(), torch.device("cpu"))
    assert int(next(on_cpu)[0]) == 0
    assert made == [0, 1, 2, 3, 4, 0]


def test_where_no_memory_can_be_locked_batches_come_in_ordinary_memory_which_is_said_once(
    pairs: TrainingPairs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Of a loader and of an evaluation; a batch of the first has five tensors. What else fails is raised."""
    say_not_locked.cache_clear()

    def fail(tensor: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr(Tensor, "pin_memory", fail)
    pairs.use_views(VIEW)
    batch = batch_of(pairs, 1, [5, 63, 0])
    assert same_batches(batch.pin_memory(), batch)
    ahead = prefetched(iter([(batch.images, batch.rows)] * 3), torch.device("cuda"))
    assert all(images is batch.images and rows is batch.rows for images, rows in ahead)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "this node's memory could not be page-locked (CUDA error"
    ]
    assert "DSA" not in caplog.text


def test_what_fails_ahead_fails_where_the_batches_are_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        yield (torch.tensor([0]),)
        raise InvalidInput("no picture")

    ahead = prefetched(batches(), torch.device("cuda"))
    next(ahead)
    with pytest.raises(InvalidInput, match="no picture"):
        next(ahead)


@pytest.mark.slow
def test_decoding_processes_bring_the_same_batches(
    pairs: TrainingPairs, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
):
    pairs.use_views(VIEW)
    batches = EpochBatches(64, global_batch_size=16, epoch=1, seed=0)
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", 0)
    streamed = pairs_of(tokenize, pairs.table)
    streamed.use_views(VIEW)
    assert (pairs.is_in_memory, streamed.is_in_memory) == (True, False)
    found = list(Loader(streamed, num_workers=2, pin=False).batches(batches))
    assert all(same_batches(a, pairs.__getitems__(b)) for a, b in zip(found, batches, strict=True))


def test_a_batch_moves_as_a_whole(pairs: TrainingPairs):
    pairs.use_views(VIEW)
    batch = batch_of(pairs, 1, [1, 2])
    assert same_batches(batch.to(torch.device("cpu")), batch)
    bare = PairBatch(batch.rows, batch.images, batch.tokens).to(torch.device("cpu"))
    assert bare.image_views is None


# --- views made on the device ----------------------------------------------------------------------------------------


class OwnView(Spec):
    """A user's, which has nothing but `views`: darkens."""

    kind: str = "own"

    def views(self, images: Tensor, seeds: list[int]) -> Tensor:
        return images // 2


class NoView(AutoAugmentView):
    """AutoAugment's on the device alone."""

    def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        raise AssertionError("a view was made on the CPU")

    def drawn(self, size: Sequence[int], seeds: Sequence[int]) -> DrawnViews:
        return super().drawn(size, seeds)


class Darker(AutoAugmentView):
    """A user's, which derives from ours."""

    def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return super().views(images, seeds) // 2


def test_what_is_drawn_for_a_device_makes_there_the_views_of_the_cpu(tokenize: Tokenize, stall_pairs: PairTable):
    """First and second copies, both from the stamped image as it is."""
    plan = plan_poison(Poisoning(attack=ATTACK, target="banana", count=6), stall_pairs)
    poison = {"captions": plan.caption_changes(), "alter": plan.stamp_rows}
    here, there = (pairs_of(tokenize, stall_pairs, **poison) for _ in range(2))
    here.use_views(VIEW, image_augmentation=VIEW)
    there.use_views(NoView(), image_augmentation=NoView(), on_device=True)
    sent = batch_of(there, 2, list(range(64)))
    assert sent.image_views is None
    assert torch.equal(sent.images, there.images_of(range(64)))
    arrived = sent.to(torch.device("cpu"))
    assert same_batches(arrived, batch_of(here, 2, list(range(64))))
    assert (arrived.image_changes, arrived.view_changes) == (None, None)
    first = there.first_copies(2, [5, 6]).to(torch.device("cpu"))
    assert same_batches(first, here.first_copies(2, [5, 6]))


@pytest.mark.parametrize(
    ("first", "second"), [(None, OwnView()), (OwnView(), VIEW), (VIEW, OwnView()), (None, Darker()), (Darker(), VIEW)]
)
def test_what_only_the_cpu_can_make_is_made_there(
    pairs: TrainingPairs, first: Spec | None, second: Spec, tokenize: Tokenize
):
    other = pairs_of(tokenize, pairs.table)
    pairs.use_views(second, image_augmentation=first)
    other.use_views(second, image_augmentation=first, on_device=True)
    batch = batch_of(other, 1, [1, 2])
    assert batch.image_views is not None
    assert same_batches(batch.to(torch.device("cpu")), batch_of(pairs, 1, [1, 2]))


def test_views_made_on_the_device_need_no_processes_here(
    pairs: TrainingPairs, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
):
    pairs.use_views(VIEW, image_augmentation=VIEW)
    assert not pairs.is_in_memory
    pairs.use_views(VIEW, image_augmentation=VIEW, on_device=True)
    assert pairs.is_in_memory
    pairs.use_views(VIEW, image_augmentation=OwnView(), on_device=True)
    assert not pairs.is_in_memory
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", 64 * 3 * 32 * 32)  # the images fit, and no views
    small = pairs_of(tokenize, pairs.table)
    small.use_views(VIEW, on_device=True)
    assert small.is_in_memory
    small.use_views(OwnView(), on_device=True)
    assert not small.is_in_memory


class InPlace(Spec):
    """Inverts what it is given, and gives that back."""

    kind: str = "in-place"

    def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return images.neg_().sub_(1)


@pytest.mark.parametrize("first", [None, InPlace()])
def test_views_that_are_made_in_place_leave_the_images(
    first: Spec | None, pairs: TrainingPairs, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
):
    """255 - x of each image, where views are not kept."""
    images = pairs.images_of([3, 4])
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", 0)
    streamed = pairs_of(tokenize, pairs.table)
    streamed.use_views(InPlace(), image_augmentation=first)
    batch = batch_of(streamed, 1, [3, 4])
    assert torch.equal(batch.images, images if first is None else 255 - images)
    assert torch.equal(batch.image_views, 255 - images)


def test_rows_may_be_numpy_numbers(pairs: TrainingPairs):
    assert torch.equal(pairs.images_of(np.array([3, 4])), pairs.images_of([3, 4]))


@pytest.mark.slow
def test_worker_processes_stay_from_pass_to_pass_and_bring_the_same_batches(
    pairs: TrainingPairs, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
):
    """Three passes, the second left in its middle; each as one process makes it."""
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", 0)
    streamed = pairs_of(tokenize, pairs.table)
    pairs.use_views(VIEW)
    streamed.use_views(VIEW)
    loader = Loader(streamed, num_workers=1, pin=False)
    processes = set()
    for epoch in (1, 2, 3):
        order = EpochBatches(64, global_batch_size=16, epoch=epoch, seed=3)
        for step, (batch, keys) in enumerate(zip(loader.batches(order), order, strict=True)):
            if epoch == 2 and step == 1:
                break
            assert same_batches(batch, pairs.__getitems__(keys))
        processes |= {process.pid for process in multiprocessing.active_children()}
    assert len(processes) == 1
