"""ABL for CLIP: detect suspicious pairs and unlearn them while training (Li et al. 2021; CleanCLIP, App. H and I)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sweeplab.clip_checkpoints import load_model, load_weights
from sweeplab.clip_model import Architecture
from sweeplab.losses import mmcl, unlearning
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.objective import EmbeddedBatch, EpochFacts, Loss, Pass, TrainingFacts


class Detector(Spec):
    """A clean CLIP whose cosine says which pairs do not belong together."""

    NOT_IN_DIGEST = frozenset({"path"})

    path: Path
    architecture: Architecture
    weights_digest: str | None = None
    """Of the weights, where they are to be checked; part of a spec's digest, unlike the path."""


class ABL(Spec):
    """MMCL on unflagged pairs + unlearn_weight x mean (cosine + unlearn_target)^2 over flagged ones.

    At the start of epoch `detect_at` the `num_flagged` most suspicious pairs are flagged once: with a `detector` the
    pairs of the lowest cosine under that clean model (App. H), without one those of the highest cosine under the model
    that is trained (App. I.3: epoch 8; poisoned pairs are learned first). Before, and with `remove_at`, training is
    MMCL: at the start of each epoch in `remove_at` the `remove_share` of the remaining pairs with the highest cosine is
    dropped for good.
    """

    kind: Literal["abl"] = "abl"
    detect_at: int = Field(default=8, ge=1)
    num_flagged: int = Field(default=5_000, ge=0)
    """Pairs to unlearn: 10,000 by a detector, 5,000 by the model itself in the paper. 0: none."""
    detector: Detector | None = None
    unlearn_weight: float = Field(default=1.0, ge=0)
    unlearn_target: float = Field(default=0.0, ge=-1, le=1)
    """0 as the paper states. The authors' command line says -1, which pulls flagged pairs together."""
    remove_at: tuple[int, ...] = ()
    remove_share: float = Field(default=0.02, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> "ABL":
        if any(epoch < 1 for epoch in self.remove_at):
            raise ValueError(f"remove_at={self.remove_at} counts epochs from 1")
        return self

    def in_miniature(self) -> "ABL":
        """Detection by the model itself, in the second epoch."""
        return self.replace(detect_at=2, num_flagged=min(self.num_flagged, 16), detector=None, remove_at=())

    def check(self, facts: TrainingFacts) -> None:
        """Refuse more flags than pairs, a detection after the end, and a detector that cannot be read."""
        if self.num_flagged > facts.num_pairs:
            raise InvalidInput(f"num_flagged={self.num_flagged} exceeds the {facts.num_pairs:,} pairs; choose fewer")
        if self.num_flagged and self.detect_at > facts.epochs:
            raise InvalidInput(
                f"detect_at={self.detect_at} lies behind epochs={facts.epochs}; detect earlier or train longer"
            )
        if self.num_flagged and self.detector is not None:
            detector_model(self.detector)

    def init_state(self, model: nn.Module, facts: TrainingFacts) -> nn.Module:
        """No pair is flagged or removed yet."""
        return ABLState(facts.num_pairs)

    def start_epoch(self, state: nn.Module | None, facts: EpochFacts) -> None:
        """Flag and remove."""
        assert isinstance(state, ABLState)
        detects = facts.epoch == self.detect_at and self.num_flagged > 0
        if detects and self.detector is not None:
            cosines = facts.cosines(detector_model(self.detector))
            state.flagged[cosines.argsort(stable=True)[: self.num_flagged]] = True
        if not (facts.epoch in self.remove_at or (detects and self.detector is None)):
            return
        cosines = facts.cosines()
        if detects and self.detector is None:
            state.flagged[cosines.argsort(descending=True, stable=True)[: self.num_flagged]] = True
        if facts.epoch in self.remove_at:
            left = (~state.removed.cpu()).nonzero().flatten()
            order = cosines[left].argsort(descending=True, stable=True)
            state.removed[left[order[: int(self.remove_share * len(left))]]] = True

    def passes(self, state: nn.Module | None, epoch: int) -> Sequence[Pass]:
        """All pairs that are left."""
        assert isinstance(state, ABLState)
        return (Pass((~state.removed.cpu()).nonzero().flatten()),)

    def chosen(self, state: nn.Module | None) -> Mapping[str, Tensor]:
        """The flagged pairs, and the removed ones, once there are any."""
        assert isinstance(state, ABLState)
        sets = {"flagged": state.flagged, "removed": state.removed}
        return {name: chosen for name, chosen in sets.items() if bool(chosen.any())}

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """MMCL of the unflagged rows and the unlearning of the flagged ones."""
        assert isinstance(state, ABLState)
        assert batch.rows is not None
        return unlearning_loss(batch, state.flagged[batch.rows], weight=self.unlearn_weight, target=self.unlearn_target)


def unlearning_loss(batch: EmbeddedBatch, flagged: Tensor, *, weight: float, target: float) -> Loss:
    """MMCL of the unflagged pairs + weight x mean (cosine + target)^2 over the flagged ones.

    Args:
        batch: B embedded pairs.
        flagged: (B,) bool.
        weight: alpha of the paper.
        target: see `sweeplab.losses.unlearning`.
    """
    kept = ~flagged
    share = None if batch.share is None else batch.share.among(kept)
    together = (
        mmcl(batch.images[kept], batch.texts[kept], batch.logit_scale, share=share)
        if bool(kept.any())
        else batch.logit_scale.new_zeros(())
    )
    apart = unlearning(batch.images[flagged], batch.texts[flagged], target)
    return Loss(together + weight * apart, {"mmcl": together, "unlearning": apart})


class ABLState(nn.Module):
    """Which pairs are unlearned and which are gone."""

    flagged: Tensor
    """(N,) bool."""
    removed: Tensor
    """(N,) bool."""

    def __init__(self, num_pairs: int) -> None:
        super().__init__()
        self.register_buffer("flagged", torch.zeros(num_pairs, dtype=torch.bool))
        self.register_buffer("removed", torch.zeros(num_pairs, dtype=torch.bool))


def detector_model(detector: Detector) -> nn.Module:
    """The clean CLIP, loaded weights only."""
    return load_model(detector.architecture, load_weights(detector.path), str(detector.path))
