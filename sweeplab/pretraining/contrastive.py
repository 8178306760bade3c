"""MMCL and MMCL + SSL: the two ways in which the papers pre-train their victims (Verma et al., Sec. 3.1)."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from sweeplab.data.augmentation import AutoAugmentView, ViewField
from sweeplab.losses import in_modal_ssl, mmcl
from sweeplab.specs import Spec
from sweeplab.training.objective import EmbeddedBatch, Loss


class MMCL(Spec):
    """CLIP's own objective: the image-text contrastive loss alone."""

    kind: Literal["mmcl"] = "mmcl"
    reaches_every_parameter: ClassVar[bool] = True

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """MMCL of the batch."""
        value = mmcl(batch.images, batch.texts, batch.logit_scale, share=batch.share)
        return Loss(value, {"mmcl": value})


class MMCLWithSSL(Spec):
    """MMCL plus the in-modal loss on augmented views; such victims are harder to clean (Verma et al., Sec. 4)."""

    kind: Literal["mmcl+ssl"] = "mmcl+ssl"
    reaches_every_parameter: ClassVar[bool] = True
    ssl_weight: float = Field(default=1.0, gt=0)
    views: ViewField = AutoAugmentView()
    """How image views are made."""

    @property
    def image_views(self) -> Spec:
        """The image views' maker."""
        return self.views

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """The weighted sum, as in the papers' code: not an average."""
        return weighted_mmcl_ssl(batch, mmcl_weight=1.0, ssl_weight=self.ssl_weight)


def weighted_mmcl_ssl(batch: EmbeddedBatch, *, mmcl_weight: float, ssl_weight: float) -> Loss:
    """mmcl_weight x MMCL + ssl_weight x SSL; a part of weight 0 is not computed."""
    parts = {}
    total = batch.logit_scale.new_zeros(())
    if mmcl_weight:
        parts["mmcl"] = mmcl(batch.images, batch.texts, batch.logit_scale, share=batch.share)
        total = total + mmcl_weight * parts["mmcl"]
    if ssl_weight:
        if batch.image_views is None or batch.text_views is None:
            raise ValueError(f"ssl_weight={ssl_weight} needs augmented views, and the batch has none")
        parts["ssl"] = in_modal_ssl(
            batch.images, batch.image_views, batch.texts, batch.text_views, batch.logit_scale, share=batch.share
        )
        total = total + ssl_weight * parts["ssl"]
    return Loss(total, parts)
