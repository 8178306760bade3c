"""Probe: steps of the training loop on noise, where data need not be there, to see what they take."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sweeplab.clip_model import Architecture, Encoder, build
from sweeplab.records import Measurement, Outcomes, Point
from sweeplab.training import objective as hooks
from sweeplab.training.batches import ImageViews, PairBatch
from sweeplab.training.loop import Run, Training
from sweeplab.training.objective import Objective
from sweeplab.training.optimisation import Optimization

CLASSES = 10
"""Of the noise's labels, for objectives that need some."""


class ProbeStep:
    """A step of the loop, schedule and clamp included, on one batch that lies ready; call it again and again."""

    def __init__(
        self,
        architecture: Architecture,
        objective: Objective,
        optimization: Optimization,
        batch: PairBatch,
        device: torch.device,
        *,
        activation_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        """Build the model on the device; `optimization.global_batch_size` is the batch's.

        Raises:
            InvalidInput: if steps are to be compiled and no compiler is here.
        """
        run = Run(
            objective,
            optimization,
            epochs=1,
            seed=0,
            activation_checkpointing=activation_checkpointing,
            compile=compile,
        )
        pairs, model = _Pairs(1000 * len(batch.rows)), build(architecture, 0).to(device)
        self.training, self.batch = Training(model, pairs, run, not_measured, Nobody()), batch
        encoder = Encoder(self.training.model)
        if compile:
            encoder.compile()
        self.training.encoder = encoder
        self.training.set_mode()
        self._walk = hooks.passes(objective, self.training.state, 1, len(pairs))[0]

    def __call__(self) -> dict[str, Tensor]:
        """Losses, on the device."""
        return self.training.step(1, self._walk, self.batch)


def noise_batch(architecture: Architecture, size: int, *, views: bool) -> PairBatch:
    """Noise, and captions as long as those of CC3M: 17 tokens on average, one of 38.

    Args:
        architecture: whose inputs they are.
        size: pairs.
        views: whether there are second copies.
    """
    draw = np.random.default_rng(0)
    side, longest = architecture.image_size, min(38, architecture.context_length)
    lengths = np.clip(np.round(draw.lognormal(2.75, 0.4, size)).astype(np.int64), 4, longest)
    lengths[0] = longest
    tokens = draw.integers(320, 49_406, (size, longest))
    tokens[np.arange(longest) >= lengths[:, None]] = 0
    tokens[:, 0], tokens[np.arange(size), lengths - 1] = 49_406, 49_407  # CLIP's marks of begin and end
    images = torch.from_numpy(draw.integers(256, size=(size, 3, side, side), dtype=np.uint8))
    words, rows = torch.from_numpy(tokens), torch.arange(size)
    if not views:
        return PairBatch(rows, images, words)
    return PairBatch(rows, images, words, images.flip(3), words.clone())


class _Pairs:
    """So many pairs, of which the loop asks nothing but their number and labels."""

    is_in_memory, shards, num_classes = True, None, CLASSES

    def __init__(self, count: int) -> None:
        self.labels = torch.arange(count) % CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    def use_views(self, image_views: ImageViews | None, **named: object) -> None:
        """They are in the batch."""

    def found_broken(self, rows: object) -> None:
        """None is."""

    def first_copies(self, epoch: int, rows: Sequence[int]) -> PairBatch:
        """Nobody asks."""
        raise NotImplementedError

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> PairBatch:
        """Nobody asks."""
        raise NotImplementedError


class Nobody:
    """Stands in for a worker's surroundings: points are dropped."""

    attempt = 1

    def report(self, point: Point, outcomes: Outcomes) -> None:
        """Nothing comes of it."""

    def should_stop(self) -> bool:
        """Never."""
        return False

    def heartbeat(self) -> None:
        """Nobody listens."""


def not_measured(model: nn.Module, classifier: object = None) -> tuple[Measurement, Outcomes]:
    """Stands in for an evaluation."""
    return Measurement(1, 2, 0, 2, "none"), Outcomes(b"", 0, b"", 0)
