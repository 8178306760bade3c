"""RoCLIP: robust contrastive pre-training against poisoned captions (Yang et al. 2023)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sweeplab.data.augmentation import ViewField
from sweeplab.losses import info_nce, mmcl
from sweeplab.pretraining.pool import Pool
from sweeplab.specs import Spec
from sweeplab.training.objective import EmbeddedBatch, EpochFacts, Loss, TrainingFacts


class RoCLIP(Spec):
    """MMCL; in every `break_every`-th epoch each image faces its nearest caption of a pool, not its own.

    That breaks the tie between a poisoned image and its planted caption. For pre-training, and as a cleaning method
    on clean pairs (PAR, Fig. 1). The released code, which is the default, queries the text pool with the image; the
    SafeCLIP paper describes lookups in both pools (`lookups="both"`).
    """

    kind: Literal["roclip"] = "roclip"
    break_every: int = Field(default=2, ge=1)
    """In epochs divisible by it captions are replaced; 2 in the release, 5 in the development fork."""
    pool_size: int = Field(default=21_845, ge=1)
    """Captions in the pool; as many images where both are looked up."""
    lookups: Literal["captions", "both"] = "captions"
    """`captions`: each image faces the pooled caption nearest to the image (code). `both`: each image faces the pooled
    caption nearest to its own caption, and each caption the pooled image nearest to its own image (as SafeCLIP's paper
    describes RoCLIP); both ways averaged."""
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
        """The pool of captions, and that of images where it is asked for."""
        names = ("texts", "images") if self.lookups == "both" else ("texts",)
        return RoCLIPState(*(Pool(self.pool_size, facts.embed_dim, seed=facts.seed, name=name) for name in names))

    def start_epoch(self, state: nn.Module | None, facts: EpochFacts) -> None:
        """Whether this epoch breaks pairs."""
        assert isinstance(state, RoCLIPState)
        state.breaks.fill_(facts.epoch % self.break_every == 0)

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """MMCL against own captions, or against what the pools hold."""
        assert isinstance(state, RoCLIPState)
        scale, share = batch.logit_scale, batch.share
        if not bool(state.breaks):
            value = mmcl(batch.images, batch.texts, scale, share=share)
        elif state.images is None:
            value = mmcl(batch.images, state.texts.nearest(batch.images, share), scale, share=share)
            state.texts.push(batch.texts)
        else:
            texts, images = state.texts.nearest(batch.texts, share), state.images.nearest(batch.images, share)
            value = info_nce(batch.images, texts, scale, share=share) + info_nce(
                batch.texts, images, scale, share=share
            )
            value = value / 2
            state.texts.push(batch.texts)
            state.images.push(batch.images)
        return Loss(value, {"mmcl": value})


class RoCLIPState(nn.Module):
    """The pools, and whether the epoch under way breaks pairs."""

    def __init__(self, texts: Pool, images: Pool | None = None) -> None:
        super().__init__()
        self.texts, self.images = texts, images
        self.register_buffer("breaks", torch.zeros((), dtype=torch.bool))

    breaks: Tensor
