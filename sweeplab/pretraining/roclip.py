"""RoCLIP: robust contrastive pre-training against poisoned captions (Yang et al. 2023)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sweeplab.data.augmentation import ViewField
from sweeplab.losses import mmcl, nearest_rows
from sweeplab.pretraining.pool import Pool
from sweeplab.specs import Spec
from sweeplab.training.objective import EmbeddedBatch, EpochFacts, Loss, TrainingFacts


class RoCLIP(Spec):
    """MMCL; in every `break_every`-th epoch each image faces its nearest caption of a pool, not its own.

    That breaks the tie between a poisoned image and its planted caption. For pre-training, and as a cleaning method
    on clean pairs (PAR, Fig. 1). The SafeCLIP paper describes lookups in both directions; the released code, which is
    followed here, queries the text pool with the image.
    """

    kind: Literal["roclip"] = "roclip"
    break_every: int = Field(default=2, ge=1)
    """In epochs divisible by it captions are replaced; 2 in the release, 5 in the development fork."""
    pool_size: int = Field(default=21_845, ge=1)
    """Captions in the pool."""
    augmentation: ViewField | None = None
    """What changes the images (the release's `--cross_aug` uses `SimCLRView()`); captions are then augmented too.
    None: both stay as they are."""

    @property
    def image_augmentation(self) -> Spec | None:
        """Of the first and only copies."""
        return self.augmentation

    @property
    def augments_captions(self) -> bool:
        """Together with the images."""
        return self.augmentation is not None

    def init_state(self, model: nn.Module, facts: TrainingFacts) -> nn.Module:
        """The pool of captions."""
        return RoCLIPState(Pool(self.pool_size, facts.embed_dim, seed=facts.seed, name="texts"))

    def start_epoch(self, state: nn.Module | None, facts: EpochFacts) -> None:
        """Whether this epoch breaks pairs."""
        assert isinstance(state, RoCLIPState)
        state.breaks.fill_(facts.epoch % self.break_every == 0)

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """MMCL against own or against pooled captions."""
        assert isinstance(state, RoCLIPState)
        texts = batch.texts
        if bool(state.breaks):
            texts = nearest_rows(batch.images, state.texts.rows)
            state.texts.push(batch.texts)
        value = mmcl(batch.images, texts, batch.logit_scale)
        return Loss(value, {"mmcl": value})


class RoCLIPState(nn.Module):
    """The pool, and whether the epoch under way breaks pairs."""

    def __init__(self, texts: Pool) -> None:
        super().__init__()
        self.texts = texts
        self.register_buffer("breaks", torch.zeros((), dtype=torch.bool))

    breaks: Tensor
