"""Training pairs: decoded, stamped, tokenised, with augmented views; every draw from a stream named by its own row."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from sweeplab.clip_model import tokeniser_versions
from sweeplab.data import eda
from sweeplab.data.broken import StandIns
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.images import BrokenImage, decode_all, load_image, refuse_broken
from sweeplab.data.kept_tokens import HEAD, INDEX_TYPE, KeptTokens, OwnWords, SharedWords, token_type
from sweeplab.data.tables import PairTable
from sweeplab.specs import digest_of
from sweeplab.storage.broken_rows import BrokenRow
from sweeplab.training.batches import DeviceViews, ImageViews, PairBatch, as_device_views
from sweeplab.training.randomness import stream_seed

CACHE_BYTES = 2 * 2**30
"""Augmented views are kept in memory up to this size, and decoded images where the node keeps none."""
OWN_BYTES = 4 * 2**20
"""Decoded images up to this size each process keeps for itself: they are made in a moment. Larger sets are a file of
the node, where it has room for one."""
SHARED_CAPTIONS = 20_000
"""More captions than these, which take a second, are tokenised once a node, as they come, where it keeps them."""
OWN_CAPTIONS = 200_000
"""Where it does not, each process tokenises so many for itself, at once, and more as they come."""
OWN_TOKEN_BYTES = 128 * 2**20
"""Tokens up to this size each process keeps for itself: of augmented captions, and of others where the node keeps none.
More are made whenever they are asked for: of millions of captions every decoding process would hold all."""
PROBE = "word " * 1000
"""A text that is cut: its tokens tell how a tokeniser does it."""


class TrainingPairs(Dataset[PairBatch]):
    """Decoded, stamped, tokenised pairs with their views, addressed by (epoch, row).

    An augmented view depends on (seed, epoch, row) alone; an augmented caption on (seed, row), since the papers draw
    text views once. Images are decoded once: by each process where they are few, else once a node, where there is room
    for that. Views of past epochs are held in memory where they are few, so that the trials of a sweep, which share the
    seed, make them once.

    Another pair stands in for one that is broken, image and caption, in its place of every batch. Which one depends on
    (seed, row) alone, so that all ranks and attempts take the same, whoever of them finds the broken one first.
    """

    def __init__(
        self,
        table: PairTable,
        image_size: int,
        *,
        tokenize: Callable[[list[str]], Tensor],
        seed: int,
        captions: Mapping[int, str] | None = None,
        alter: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
        labels: Tensor | None = None,
        num_classes: int = 0,
        text_augmentation: eda.TextAugmentation = "swap+delete",
        decode_workers: int = 1,
        decoded: DecodedFiles | None = None,
        poisoned: Collection[int] = (),
        broken: Sequence[BrokenRow] = (),
        report: Callable[[tuple[BrokenRow, ...]], None] | None = None,
        vocabulary_size: int = 49_408,
    ) -> None:
        """Prepare the pairs; decodes all images now, into memory or a file of the node, where there is room for them.

        Args:
            table: images and captions, and which rows are known to be broken.
            image_size: side of the square model input, pixels.
            tokenize: list of texts -> (N, context_length) int64.
            seed: of the views.
            captions: captions that replace the table's, by row.
            alter: changes the images of given rows (the trigger); same result for the same row every time.
            labels: (N,) int64, each pair's class, where the pairs come from labelled images.
            num_classes: classes of those labels.
            text_augmentation: how captions are augmented where that is asked for.
            decode_workers: threads that decode.
            decoded: where the node keeps decoded images; None: nowhere, and those that do not fit into memory are
                decoded anew in every epoch.
            poisoned: rows that never stand in for another, and for which none stands in.
            broken: what is recorded beside what the table knows; rows that are poisoned are others by now, and sound.
            report: told of rows that turn out to be broken; None: they are refused.
            vocabulary_size: of the tokeniser; its tokens are smaller.

        Raises:
            InvalidInput: if a poisoned row is broken, or any that is not known to be and nobody is told of.
        """
        self.labels, self.num_classes = labels, num_classes
        self._text_augmentation = text_augmentation
        self.image_augmentation: ImageViews | None = None
        self.augments_captions = False
        self.table, self.image_size, self.tokenize, self.seed = table, image_size, tokenize, seed
        self.image_views: ImageViews | None = None
        self._device_first: DeviceViews | None = None
        """Draws what changes first copies, where that is done on the device."""
        self._device_second: DeviceViews | None = None
        self._captions = dict(captions or {})
        self.report = report
        poisons = frozenset(poisoned)
        recorded = {one.row: one.reason for one in broken if one.row not in poisons}
        self._stand_ins = StandIns(len(table), table.reasons() | recorded, poisons)
        self._untold: list[BrokenRow] = []
        """Rows that a process which makes batches has found to be broken, and the main one does not know of."""
        self._alter = alter
        self._images: Tensor | None = None
        """With their triggers."""
        self._mapped: Tensor | None = None
        """Without them, in a file."""
        self._token_kind = token_type(vocabulary_size)
        self._token_views: dict[str, KeptTokens] = {}
        self._views: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        """By epoch: (N, 3, S, S) uint8 and (N,) bool, which of them are made."""
        self._views_key: object = None
        num_bytes = len(table) * 3 * image_size * image_size
        self._views_fit = num_bytes <= CACHE_BYTES // 8
        self._images_fit = num_bytes <= CACHE_BYTES
        mapped = None
        if decoded is not None and num_bytes > min(OWN_BYTES, CACHE_BYTES):
            mapped = decoded.decoded(table, image_size, workers=decode_workers)
        if mapped is not None:
            self._mapped, faults = mapped
            self._found(faults)
        if self._mapped is None and self._images_fit:
            images, faults = decode_all(table, image_size, decode_workers, skip=self._stand_ins.broken)
            self._found(faults)
            self._images = alter(images, range(len(table))) if alter else images
        self._tokens = self._keep_tokens(decoded)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.table)

    @property
    def poisoned_rows(self) -> Tensor:
        """(P,) int64, ascending: the rows that a poison plan gave their captions."""
        return torch.tensor(sorted(self._captions), dtype=torch.int64)

    @property
    def is_in_memory(self) -> bool:
        """Whether batches come without waiting for a disk or making views."""
        makes_no_first = self.image_augmentation is None or self._device_first is not None
        makes_no_second = self.image_views is None or self._device_second is not None or self._views_fit
        return self._images_fit and makes_no_first and makes_no_second

    @property
    def shards(self) -> Tensor | None:
        """(N,) int64, see `Pairs`."""
        members = self.table.members
        return None if members is None else torch.tensor(members.numbers, dtype=torch.long)

    def use_views(
        self,
        image_views: ImageViews | None,
        *,
        image_augmentation: ImageViews | None = None,
        augments_captions: bool = False,
        on_device: bool = False,
    ) -> None:
        """Say which augmented views the next epochs need, and whether the first copies are augmented too.

        Args:
            image_views: makes second copies of images, text views come along; None: none, and none are made.
            image_augmentation: changes the first copies of images; None: they stay as they are.
            augments_captions: whether the first copies of captions are augmented, once for all epochs.
            on_device: whether images are changed only when a batch comes to its device, as far as their makers can;
                what is to be done to them travels with the batch, and no views are held in memory.
        """
        self.image_augmentation, self.augments_captions = image_augmentation, augments_captions
        first, second = (as_device_views(one) for one in (image_augmentation, image_views))
        self._device_first = first if on_device else None
        # First copies that are changed here leave no images as they are to make second ones of there.
        sends_images = image_augmentation is None or self._device_first is not None
        self._device_second = second if on_device and sends_images else None
        if image_views != self._views_key:
            self._views.clear()
            self._views_key = image_views
        self.image_views = image_views

    def use_seed(self, seed: int) -> None:
        """Make the views of another seed from now on; what was decoded stays."""
        if seed != self.seed:
            self.seed = seed
            self._views.clear()
            self._token_views.clear()

    def use_broken(self, rows: Sequence[BrokenRow], report: Callable[[tuple[BrokenRow, ...]], None] | None) -> None:
        """Have others stand in for what is recorded by now, and tell somebody else of what is not."""
        self.report = report
        self._count(one for one in rows if one.row not in self._stand_ins.poisoned)  # a poison from elsewhere is sound

    def found_broken(self, rows: Sequence[BrokenRow]) -> None:
        """Have others stand in for these rows from now on, and tell of them.

        Raises:
            InvalidInput: if one is poisoned, or nobody is told.
        """
        if self.report is None:
            refuse_broken({one.row: one.reason for one in rows}, len(self))
        new = tuple(one for one in rows if one.row not in self._stand_ins.broken)
        self._stand_ins.refuse_poisoned({one.row: one.reason for one in new})
        if get_worker_info() is not None:
            self._untold += new
        elif new and self.report is not None:
            self.report(new)  # which ends the work where they are too many
        self._count(new)

    def _count(self, rows: Iterable[BrokenRow]) -> None:
        """Have others stand in for these rows."""
        new = [one for one in rows if one.row not in self._stand_ins.broken]
        if new:
            self._stand_ins.add({one.row: one.reason for one in new})
            self._views.clear()
            for views in self._token_views.values():
                views.forget(list(self._stand_ins.broken))  # one of the new rows may have stood in for an old one

    def _found(self, broken: Mapping[int, str]) -> None:
        self.found_broken([self.table.broken_row(row, reason) for row, reason in broken.items()])

    def _sources(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows whose pairs are used in the places of these."""
        return [self._stand_ins.of(self.seed, row) for row in rows] if self._stand_ins.broken else rows

    def caption(self, row: int) -> str:
        """The caption that is trained on: the poisoned one where there is one."""
        return self._own_caption(self._stand_ins.of(self.seed, row))

    def _own_caption(self, row: int) -> str:
        return self._captions.get(row) or self.table.caption(row)

    def images_of(self, rows: Sequence[int]) -> Tensor:
        """(b, 3, S, S) uint8 of the given rows, stamped where the plan says so."""
        if self._images is not None:
            return self._images.index_select(0, torch.as_tensor(self._sources(rows)))
        if self._mapped is not None:
            images = self._mapped.index_select(0, torch.as_tensor(self._sources(rows)))
        else:
            images = torch.stack([self._decoded(row) for row in rows])
        return self._alter(images, rows) if self._alter else images

    def _decoded(self, row: int) -> Tensor:
        """(3, S, S) uint8 of one row, or of the first one in its stead that can be decoded."""
        while True:
            source = self._stand_ins.of(self.seed, row)
            try:
                return torch.from_numpy(load_image(self.table.image(source), self.image_size))
            except BrokenImage as error:
                self._found({source: error.args[0]})

    def _keep_tokens(self, decoded: DecodedFiles | None) -> KeptTokens:
        """The captions' tokens: of few captions all of them now, of many as they come, in a file of the node."""

        def make(rows: Sequence[int]) -> Tensor:
            return self.tokenize([self._own_caption(row) for row in rows])

        if len(self) > min(SHARED_CAPTIONS, OWN_CAPTIONS) and decoded is not None:
            probe, kind = self.tokenize([PROBE]), self._token_kind
            made_by = [*tokeniser_versions(), probe.tolist(), str(kind)]
            content = digest_of([self.table.digest, sorted(self._captions.items()), *made_by])
            most = len(self) * (HEAD + probe.shape[1]) * kind.itemsize
            if (shared := decoded.shared(f"tokens-{content}", len(self), INDEX_TYPE, growth=most)) is not None:
                index, place = shared
                (place / "words").touch()  # a tidy system removes what seems unused
                return KeptTokens(index, SharedWords(kind, place / "words"), make)
        tokens = self._own_tokens(make)
        if len(self) <= OWN_CAPTIONS:
            tokens.make_all()
        return tokens

    def _own_tokens(self, make: Callable[[Sequence[int]], Tensor]) -> KeptTokens:
        """Tokens that this process keeps for itself, as far as they find room."""
        left = OWN_TOKEN_BYTES - len(self) * INDEX_TYPE.itemsize
        index = np.zeros(len(self), INDEX_TYPE) if left > 0 else None
        return KeptTokens(index, OwnWords(self._token_kind, left), make)

    def _token_views_of(self, rows: Sequence[int], stream: str = "text view") -> Tensor:
        if stream not in self._token_views:

            def make(missing: Sequence[int]) -> Tensor:
                augment = eda.augmenter(self._text_augmentation)
                return self.tokenize([augment(self.caption(r), stream_seed(self.seed, stream, r)) for r in missing])

            self._token_views[stream] = self._own_tokens(make)
        return self._token_views[stream].of(rows)

    def _seeds(self, stream: str, epoch: int, rows: Sequence[int]) -> list[int]:
        return [stream_seed(self.seed, stream, epoch, row) for row in rows]

    def _image_views_of(self, epoch: int, rows: Sequence[int], images: Tensor) -> Tensor:
        assert self.image_views is not None
        kept = self._kept_views(epoch, images)
        if kept is None:
            return self._make_views(epoch, rows, images)
        views, made = kept
        index = np.asarray(rows)
        missing = np.flatnonzero(~made[index])
        if len(missing):
            some = images.index_select(0, torch.from_numpy(missing))
            views[index[missing]] = self._make_views(epoch, [rows[i] for i in missing.tolist()], some).numpy()
            made[index[missing]] = True
        return torch.from_numpy(views[index])

    def _make_views(self, epoch: int, rows: Sequence[int], images: Tensor) -> Tensor:
        assert self.image_views is not None
        return _views(self.image_views, images, self._seeds("image view", epoch, rows))

    def _kept_views(self, epoch: int, images: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
        """See `_views`; None where they do not fit. (NumPy moves whole rows in a tenth of torch's time.)"""
        size = len(self) * images[0].numel()
        if not self._views_fit:
            return None
        if epoch not in self._views:
            if (len(self._views) + 1) * size > CACHE_BYTES:
                return None
            self._views[epoch] = np.empty((len(self), *images.shape[1:]), np.uint8), np.zeros(len(self), bool)
        return self._views[epoch]

    def first_copies(self, epoch: int, rows: Sequence[int]) -> PairBatch:
        """The rows as the epoch sees them, without second copies."""
        return self._with_first_copies(epoch, rows, self.images_of(rows))

    def _with_first_copies(self, epoch: int, rows: Sequence[int], images: Tensor) -> PairBatch:
        changes = None
        if self._device_first is not None:
            changes = self._device_first.drawn(images.shape[-2:], self._seeds("image", epoch, rows))
        elif self.image_augmentation is not None:
            images = _views(self.image_augmentation, images, self._seeds("image", epoch, rows))
        sources = self._sources(rows)
        tokens = self._token_views_of(rows, "text") if self.augments_captions else self._tokens.of(sources)
        return PairBatch(rows=torch.as_tensor(sources), images=images, tokens=tokens, image_changes=changes)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> PairBatch:
        """The batch of the given (epoch, row) keys, all of one epoch."""
        epoch, rows = keys[0][0], [row for _, row in keys]
        images = self.images_of(rows)
        batch = self._with_first_copies(epoch, rows, images)
        if self._untold:
            batch, self._untold = replace(batch, broken=tuple(self._untold)), []
        if self.image_views is None:
            return batch
        batch = replace(batch, token_views=self._token_views_of(rows))
        # Second copies are made from the images as they are, not from augmented first copies.
        if self._device_second is not None:
            seeds = self._seeds("image view", epoch, rows)
            return replace(batch, view_changes=self._device_second.drawn(images.shape[-2:], seeds))
        return replace(batch, image_views=self._image_views_of(epoch, rows, images))

    def __getitem__(self, key: tuple[int, int]) -> PairBatch:
        """The batch of one (epoch, row) key."""
        return self.__getitems__([key])


def _views(maker: ImageViews, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Made of copies: first and second ones are of the same images, and a user's own maker may write into those."""
    return maker.views(images.clone(), seeds)
