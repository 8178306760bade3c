"""Training pairs: decoded, stamped, tokenised, with augmented views; every draw from a stream named by its own row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sweeplab.data import eda
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.images import load_all, load_image
from sweeplab.data.kept_tokens import TOKEN_TYPE, KeptTokens
from sweeplab.data.tables import PairTable
from sweeplab.specs import digest_of
from sweeplab.training.batches import ImageViews, PairBatch
from sweeplab.training.randomness import stream_seed

CACHE_BYTES = 2 * 2**30
"""Augmented views are kept in memory up to this size, and decoded images where the node keeps none."""
OWN_BYTES = 64 * 2**20
"""Decoded images up to this size each process keeps for itself: they are made in seconds. Larger sets are a file of the
node, where it has room for one."""
OWN_CAPTIONS = 200_000
"""Captions up to this number each process tokenises for itself, at once; more are tokenised once a node, as they
come."""
PROBE = "word " * 1000
"""A text that is cut: its tokens tell how a tokeniser does it."""


class TrainingPairs(Dataset[PairBatch]):
    """Decoded, stamped, tokenised pairs with their views, addressed by (epoch, row).

    An augmented view depends on (seed, epoch, row) alone; an augmented caption on (seed, row), since the papers draw
    text views once. Images are decoded once: by each process where they are few, else once a node, where there is room
    for that. Views of past epochs are held in memory where they are few, so that the trials of a sweep, which share the
    seed, make them once.
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
    ) -> None:
        """Prepare the pairs; decodes all images now, into memory or a file of the node, where there is room for them.

        Args:
            table: images and captions.
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
        """
        self.labels, self.num_classes = labels, num_classes
        self._text_augmentation = text_augmentation
        self.image_augmentation: ImageViews | None = None
        self.augments_captions = False
        self.table, self.image_size, self.tokenize, self.seed = table, image_size, tokenize, seed
        self.image_views: ImageViews | None = None
        self._captions = dict(captions or {})
        self._alter = alter
        self._images: Tensor | None = None
        """With their triggers."""
        self._mapped: Tensor | None = None
        """Without them, in a file."""
        self._token_views: dict[str, KeptTokens] = {}
        self._views: dict[int, tuple[Tensor, Tensor]] = {}
        self._views_key: object = None
        num_bytes = len(table) * 3 * image_size * image_size
        self._views_fit = num_bytes <= CACHE_BYTES // 8
        self._images_fit = num_bytes <= CACHE_BYTES
        if decoded is not None and num_bytes > min(OWN_BYTES, CACHE_BYTES):
            self._mapped = decoded.tensor(table, image_size, workers=decode_workers)
        if self._mapped is None and self._images_fit:
            images = load_all(table, image_size, workers=decode_workers)
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
        return self._images_fit and (self.image_views is None or self._views_fit)

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
    ) -> None:
        """Say which augmented views the next epochs need, and whether the first copies are augmented too.

        Args:
            image_views: makes second copies of images, text views come along; None: none, and none are made.
            image_augmentation: changes the first copies of images; None: they stay as they are.
            augments_captions: whether the first copies of captions are augmented, once for all epochs.
        """
        self.image_augmentation, self.augments_captions = image_augmentation, augments_captions
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

    def caption(self, row: int) -> str:
        """The caption that is trained on: the poisoned one where there is one."""
        return self._captions.get(row) or self.table.caption(row)

    def images_of(self, rows: Sequence[int]) -> Tensor:
        """(b, 3, S, S) uint8 of the given rows, stamped where the plan says so."""
        if self._images is not None:
            return self._images[torch.as_tensor(rows)]
        if self._mapped is not None:
            images = self._mapped[torch.as_tensor(rows)]
        else:
            images = torch.stack([torch.from_numpy(load_image(self.table.image(r), self.image_size)) for r in rows])
        return self._alter(images, rows) if self._alter else images

    def _keep_tokens(self, decoded: DecodedFiles | None) -> KeptTokens:
        """The captions' tokens: of few captions all of them now, of many as they come, in a file of the node."""
        probe = self.tokenize([PROBE])
        shape = KeptTokens.shape(len(self), probe.shape[1])
        array: np.ndarray | None = None
        if len(self) > OWN_CAPTIONS and decoded is not None:
            content = digest_of([self.table.digest, sorted(self._captions.items()), probe.tolist()])
            array = decoded.shared(f"tokens-{content}", shape, TOKEN_TYPE)
        tokens = KeptTokens(
            np.zeros(shape, TOKEN_TYPE) if array is None else array,
            lambda rows: self.tokenize([self.caption(row) for row in rows]),
        )
        if len(self) <= OWN_CAPTIONS:
            tokens.make_all()
        return tokens

    def _token_views_of(self, rows: Sequence[int], stream: str = "text view") -> Tensor:
        if stream not in self._token_views:

            def make(missing: Sequence[int]) -> Tensor:
                augment = eda.augmenter(self._text_augmentation)
                return self.tokenize([augment(self.caption(r), stream_seed(self.seed, stream, r)) for r in missing])

            self._token_views[stream] = KeptTokens(np.zeros(self._tokens.array.shape, TOKEN_TYPE), make)
        return self._token_views[stream].of(rows)

    def _image_views_of(self, epoch: int, rows: Sequence[int], images: Tensor) -> Tensor:
        assert self.image_views is not None
        cache = self._view_cache(epoch, images)
        if cache is None:
            return self._make_views(epoch, rows, images)
        views, made = cache
        index = torch.as_tensor(rows)
        missing = (~made[index]).nonzero().flatten()
        if len(missing):
            views[index[missing]] = self._make_views(epoch, [rows[i] for i in missing.tolist()], images[missing])
            made[index[missing]] = True
        return views[index]

    def _make_views(self, epoch: int, rows: Sequence[int], images: Tensor) -> Tensor:
        assert self.image_views is not None
        return self.image_views.views(images, [stream_seed(self.seed, "image view", epoch, r) for r in rows])

    def _view_cache(self, epoch: int, images: Tensor) -> tuple[Tensor, Tensor] | None:
        size = len(self) * images[0].numel()
        if not self._views_fit:
            return None
        if epoch not in self._views:
            if (len(self._views) + 1) * size > CACHE_BYTES:
                return None
            self._views[epoch] = (
                torch.empty((len(self), *images.shape[1:]), dtype=torch.uint8),
                torch.zeros(len(self), dtype=torch.bool),
            )
        return self._views[epoch]

    def first_copies(self, epoch: int, rows: Sequence[int]) -> PairBatch:
        """The rows as the epoch sees them, without second copies."""
        return self._with_first_copies(epoch, rows, self.images_of(rows))

    def _with_first_copies(self, epoch: int, rows: Sequence[int], images: Tensor) -> PairBatch:
        if self.image_augmentation is not None:
            seeds = [stream_seed(self.seed, "image", epoch, row) for row in rows]
            images = self.image_augmentation.views(images, seeds)
        tokens = self._token_views_of(rows, "text") if self.augments_captions else self._tokens.of(rows)
        return PairBatch(rows=torch.as_tensor(rows), images=images, tokens=tokens)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> PairBatch:
        """The batch of the given (epoch, row) keys, all of one epoch."""
        epoch, rows = keys[0][0], [row for _, row in keys]
        images = self.images_of(rows)
        batch = self._with_first_copies(epoch, rows, images)
        if self.image_views is None:
            return batch
        # Second copies are made from the images as they are, not from augmented first copies.
        return replace(
            batch, image_views=self._image_views_of(epoch, rows, images), token_views=self._token_views_of(rows)
        )

    def __getitem__(self, key: tuple[int, int]) -> PairBatch:
        """The batch of one (epoch, row) key."""
        return self.__getitems__([key])
