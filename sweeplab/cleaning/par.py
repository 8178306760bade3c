"""PAR: perturb and recover (Singh et al. 2025, "Perturb and Recover: Fine-tuning for Effective Backdoor Removal")."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from sweeplab.data.augmentation import PARView, ViewField
from sweeplab.losses import Share, mmcl, perturbation
from sweeplab.specs import Spec
from sweeplab.training.objective import EmbeddedBatch, Loss, TrainingFacts
from sweeplab.training.optimisation import Optimization

PAR_OPTIMIZATION = Optimization(
    learning_rate=3e-5,
    schedule="fall-cosine",
    weight_decay=1e-4,
    global_batch_size=2048,
    beta1=0.9,
    beta2=0.98,
    epsilon=1e-8,
    batch_norm="frozen",
)
"""The paper's optimisation: the rate falls from 3e-5 to 3e-6 over the first half, then by a cosine to 1e-9; 250,000
pairs, 10 epochs. A sweep states it, with a batch of its own where data are few:
`PAR_OPTIMIZATION.replace(global_batch_size=64)`. (PerturbAndRecover, `train.py`.)"""


class PAR(Spec):
    """MMCL minus the distance to the victim's own embeddings, as long as that distance is at most tau.

    The model leaves the poisoned solution (perturb) while MMCL holds it at clean pairs (recover). Both copies see the
    same augmented image and the same caption. L = MMCL - (d_images + d_texts) / 2 with d the batch's mean squared
    distance between the model's and the victim's unit embeddings, 0 where it exceeds tau.

    The defaults are the paper's, and `PAR_OPTIMIZATION` is its optimisation. BatchNorm belongs to the method: with
    statistics of the batch (`batch_norm="local"`) model and copy differ before anything is learned, at batch 16, 64 and
    256 by 0.34, 0.22 and 0.09 of the distance that tau = 2.15, tuned with frozen BatchNorm, is to bound.
    """

    FIRST_DEFAULTS: ClassVar[Mapping[str, Any]] = {"augmentation": None}

    kind: Literal["par"] = "par"
    tau: float = Field(default=2.15, ge=0)
    """Bound of the mean squared distance, in [0, 4]; 2.15 was tuned on RN50 with BadNet-Stripes and kept."""
    perturbation_weight: float = Field(default=1.0, ge=0)
    """Factor of the distances; 1 in the paper, 0 is MMCL cleaning with PAR's augmentation."""
    learns_temperature: bool = False
    """Whether the logit scale is trained; the authors' loss reads it as a plain number."""
    augmentation: ViewField | None = PARView()
    """What changes the images: the authors' noise and erasing; None leaves them as they are."""

    recipe: ClassVar[Optimization] = PAR_OPTIMIZATION
    """What a plan compares a sweep's optimisation with."""

    authors_optimization: ClassVar[dict[str, str]] = {"batch_norm": "frozen"}
    """What protocol `authors` changes in `Optimization`: an evaluation inside their loop leaves the model in evaluation
    mode, so BatchNorm is frozen for all but the first step of each epoch."""

    shares_cleanclips_trainer: ClassVar[bool] = False
    """Under protocol `authors`, whether the schedule runs an epoch ahead and the victim's optimizer is carried over, as
    in CleanCLIP's trainer: PAR's own starts at step 0 with a fresh optimizer."""

    @property
    def image_augmentation(self) -> Spec | None:
        """Of the first and only copies."""
        return self.augmentation

    def init_state(self, model: nn.Module, facts: TrainingFacts) -> nn.Module:
        """A frozen copy of the model as it starts."""
        return FrozenCopy(model)

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """MMCL minus the bounded distances."""
        assert isinstance(state, FrozenCopy)
        assert batch.embed_with is not None
        images, texts = batch.embed_with(state.model)
        scale = batch.logit_scale if self.learns_temperature else batch.logit_scale.detach()
        return perturb_and_recover(
            (batch.images, batch.texts),
            (images, texts),
            scale,
            tau=self.tau,
            weight=self.perturbation_weight,
            share=batch.share,
        )


def perturb_and_recover(
    current: tuple[Tensor, Tensor],
    victim: tuple[Tensor, Tensor],
    logit_scale: Tensor,
    *,
    tau: float,
    weight: float,
    share: Share | None = None,
) -> Loss:
    """PAR's loss of one batch.

    Args:
        current: (B, D) image and (B, D) text embeddings of the model, rows of unit norm.
        victim: the same of its frozen copy.
        logit_scale: scalar, 1 / temperature.
        tau: bound of each distance.
        weight: factor of their mean.
        share: the rows of this rank in MMCL; the distances, whose bound is on their mean, are the whole batch's.
    """
    together = mmcl(*current, logit_scale, share=share)
    images, texts = (perturbation(mine, theirs, tau) for mine, theirs in zip(current, victim, strict=True))
    away = (images + texts) / 2
    parts = {"mmcl": together, "perturbation": away, "perturbation_images": images, "perturbation_texts": texts}
    return Loss(together - weight * away, parts)


class FrozenCopy(nn.Module):
    """A model that stays as it was. It is no part of the state dict: the run's start makes it again."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        held = copy.deepcopy(model).eval().requires_grad_(False)
        self._held = [held]  # in a list, so that it is neither a submodule nor in the checkpoint

    @property
    def model(self) -> nn.Module:
        """The copy."""
        return self._held[0]

    def _apply(self, fn, recurse: bool = True) -> "FrozenCopy":  # type: ignore[no-untyped-def]
        self._held[0]._apply(fn, recurse)
        return self
