"""Batches: which pairs form which step on which rank, and the loader that brings them."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sweeplab.storage.broken_rows import BrokenRow
from sweeplab.training.page_locked import pinned
from sweeplab.training.randomness import torch_stream


class ImageViews(Protocol):
    """Makes augmented copies of images, one seed an image."""

    def views(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B, 3, H, W) uint8 to the same shape."""
        ...


class Changes(Protocol):
    """What is to be done to each image of a batch, and travels with it."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Changes":
        """With its tensors elsewhere."""
        ...

    def applied(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, on any device, to the same shape."""
        ...


@runtime_checkable
class DeviceViews(ImageViews, Protocol):
    """Makes its views on the device that trains, too: the same changes, drawn on the CPU."""

    def drawn(self, size: Sequence[int], seeds: Sequence[int]) -> Changes:
        """What `views` would do to images of that size, (height, width)."""
        ...


def as_device_views(maker: ImageViews | None) -> DeviceViews | None:
    """The maker, where it makes its views on the device too; None: on the CPU alone.

    A class whose `views` are its own, and its `drawn` those of the class that it derives from, makes other views than
    are drawn.
    """
    for cls in type(maker).__mro__:
        if "drawn" in vars(cls):
            return maker if isinstance(maker, DeviceViews) else None
        if "views" in vars(cls):
            break
    return None


@dataclass(frozen=True)
class PairBatch:
    """One rank's share of a batch, on the CPU until `to` brings it to the device."""

    rows: Tensor
    """(b,) int64 row numbers of the pair table: where others stand in for broken pairs, theirs."""
    images: Tensor
    """(b, 3, S, S) uint8."""
    tokens: Tensor
    """(b, l) int64, l up to the context length: that of the longest text (see `clip_model.trimmed`)."""
    image_views: Tensor | None = None
    """(b, 3, S, S) uint8, augmented copies; None where no method asks for views."""
    token_views: Tensor | None = None
    """(b, l) int64 of augmented captions."""
    broken: tuple[BrokenRow, ...] = ()
    """Rows that turned out to be broken as the batch was made in another process."""
    image_changes: Changes | None = None
    """Make augmented first copies of `images` on the device; None: they are what they shall be."""
    view_changes: Changes | None = None
    """Make `image_views` of `images` there."""

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PairBatch":
        return PairBatch(
            change(self.rows),
            change(self.images),
            change(self.tokens),
            None if self.image_views is None else change(self.image_views),
            None if self.token_views is None else change(self.token_views),
            self.broken,
            None if self.image_changes is None else self.image_changes.each(change),
            None if self.view_changes is None else self.view_changes.each(change),
        )

    def chunks(self, count: int) -> list["PairBatch"]:
        """So many equal parts, in order; `count` divides the batch, which is on its device."""
        assert self.image_changes is None
        assert self.view_changes is None
        size = len(self.rows) // count

        def part(start: int) -> PairBatch:
            return self._each(lambda tensor: tensor[start : start + size])

        return [part(index * size) for index in range(count)]

    def pin_memory(self) -> "PairBatch":
        """In page-locked memory, as far as that is to be had; DataLoader calls this."""
        return self._each(pinned)

    def to(self, device: torch.device) -> "PairBatch":
        """On the device, with the views that are made there."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(
            moved,
            # Both from the images as they are: second copies are not made from augmented first copies.
            images=moved.images if moved.image_changes is None else moved.image_changes.applied(moved.images),
            image_views=moved.image_views if moved.view_changes is None else moved.view_changes.applied(moved.images),
            image_changes=None,
            view_changes=None,
        )


WINDOW_SHARDS = 16
"""Tars whose rows are mixed with each other. A tar of img2dataset has 10,000 pairs and some 300 MB; the pages of so
many stay in a node's memory, and so many are fetched at a time where they are remote."""


class Pairs(Protocol):
    """Training pairs, addressed by (epoch, row)."""

    @property
    def is_in_memory(self) -> bool:
        """Whether batches come without decoding, so that worker processes would only cost."""
        ...

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    @property
    def shards(self) -> Tensor | None:
        """(N,) int64, number of the tar that each pair lies in, -1 for those that lie in none; None where no pair
        does."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64, each pair's class, where the pairs come from labelled images."""
        ...

    @property
    def num_classes(self) -> int:
        """Classes of those labels; 0 where there are none."""
        ...

    def use_views(
        self,
        image_views: ImageViews | None,
        *,
        image_augmentation: ImageViews | None = None,
        augments_captions: bool = False,
        on_device: bool = False,
    ) -> None:
        """Say which augmented views the next epochs need, whether the first copies are augmented too, and whether
        images are changed on the device, by makers that can."""
        ...

    def first_copies(self, epoch: int, rows: Sequence[int]) -> PairBatch:
        """The rows as the epoch sees them, without second copies."""
        ...

    def found_broken(self, rows: Sequence[BrokenRow]) -> None:
        """Rows turned out to be broken, in this process or in one that makes batches."""
        ...

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> PairBatch:
        """The batch of the given (epoch, row) keys, all of one epoch."""
        ...


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """One pass's (epoch, row) keys in batches: a seeded permutation, the last incomplete batch left out.

    Pairs in tars are drawn tar by tar, so that a disk or network reads few at a time: the tars are shuffled, then the
    rows of each WINDOW_SHARDS of them. Rows that lie in none are spread over all. With no more tars than that, the
    order is the same as without.

    Every rank walks the same global batches and takes its own slice of each, so that R ranks see exactly the batches of
    one process.
    """

    def __init__(
        self,
        num_pairs: int,
        *,
        global_batch_size: int,
        epoch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        rows: Tensor | None = None,
        shards: Tensor | None = None,
        index: int = 0,
        skip: int = 0,
    ) -> None:
        """Draw the order.

        Args:
            num_pairs: all pairs of the data.
            global_batch_size: pairs a step over all ranks.
            epoch: from 1.
            seed: of the run.
            rank: this process.
            world_size: processes.
            rows: (n,) int64, the pairs of this pass; None: all.
            shards: (num_pairs,) int64, see `Pairs`; None: no pair lies in a tar.
            index: number of the pass within its epoch; each has an order of its own.
            skip: steps that are done already.
        """
        names = ("order", epoch, index) if index else ("order", epoch)
        order = torch.randperm(num_pairs, generator=torch_stream(seed, *names))
        if shards is not None:
            windows = _windows(shards, torch_stream(seed, "shards", *names))
            order = order[windows[order].argsort(stable=True)]
        if rows is not None and len(rows) != num_pairs:
            wanted = torch.zeros(num_pairs, dtype=torch.bool)
            wanted[rows.cpu()] = True
            order = order[wanted[order]]
        self.order = order
        self.epoch, self.global_batch_size, self.skip = epoch, global_batch_size, skip
        self.share = global_batch_size // world_size
        self.first = rank * self.share

    def __len__(self) -> int:
        """Steps that are left of the pass."""
        return max(0, len(self.order) // self.global_batch_size - self.skip)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """This rank's keys, batch by batch."""
        for step in range(self.skip, self.skip + len(self)):
            start = step * self.global_batch_size + self.first
            yield [(self.epoch, row) for row in self.order[start : start + self.share].tolist()]


def _windows(shards: Tensor, draw: torch.Generator) -> Tensor:
    """(N,) int64, in which window of tars each row comes.

    Args:
        shards: (N,) int64, see `Pairs`.
        draw: shuffles the tars.
    """
    num_shards = int(shards.max()) + 1
    num_windows = max(1, math.ceil(num_shards / WINDOW_SHARDS))
    window = torch.randperm(num_shards, generator=draw) // WINDOW_SHARDS
    anywhere = torch.randint(num_windows, shards.shape, generator=draw)
    return torch.where(shards < 0, anywhere, torch.cat([window, window.new_zeros(1)])[shards])


def steps_per_epoch(num_pairs: int, global_batch_size: int) -> int:
    """Optimizer updates of one epoch.

    Raises:
        ValueError: if there are fewer pairs than one batch takes.
    """
    steps = math.floor(num_pairs / global_batch_size)
    if steps == 0:
        raise ValueError(
            f"global_batch_size={global_batch_size} exceeds the {num_pairs:,} pairs; choose at most {num_pairs}"
        )
    return steps


class Loader:
    """Brings the batches of one pass after the other; its worker processes stay from pass to pass.

    Where the pairs are held in memory there are none: they would only cost.
    """

    def __init__(self, pairs: Pairs, *, num_workers: int, pin: bool) -> None:
        """Start nothing yet.

        Args:
            pairs: as they are when the first batch is asked for; views are said before.
            num_workers: processes that make batches.
            pin: whether batches come in page-locked memory, for a GPU.
        """
        workers = 0 if pairs.is_in_memory else num_workers
        self._order = _Order()
        self._loader = DataLoader(
            cast(Dataset[PairBatch], pairs),
            batch_sampler=self._order,
            collate_fn=_first,  # the data set makes whole batches
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0,
            # Else every pass draws a seed from the global stream, and one more where a run goes on inside an epoch.
            generator=torch.Generator(),
        )

    def batches(self, order: EpochBatches) -> Iterator[PairBatch]:
        """The batches of a pass, in order."""
        self._order.batches = order
        yield from self._loader


class _Order(Sampler[list[tuple[int, int]]]):
    """The order of the pass that is under way."""

    batches: EpochBatches

    def __init__(self) -> None:
        """None is under way yet."""

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)


AHEAD = 2
"""Batches that wait for a GPU."""


def prefetched(batches: Iterator[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The batches, made by a thread in page-locked memory while a GPU works on others; for the CPU, as they are."""
    if device.type != "cuda":
        yield from batches
        return

    def make() -> tuple[Tensor, ...] | None:
        batch = next(batches, None)
        return None if batch is None else tuple(map(pinned, batch))

    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(make) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(make))
            yield batch


def _first(batch: Any) -> Any:
    return batch
