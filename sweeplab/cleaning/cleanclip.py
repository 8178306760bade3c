"""CleanCLIP: finetuning on clean pairs with MMCL and an in-modal loss (Bansal et al. 2023; Verma et al., Sec. 4)."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from sweeplab.data.augmentation import AutoAugmentView, ViewField
from sweeplab.pretraining.contrastive import weighted_mmcl_ssl
from sweeplab.specs import Spec
from sweeplab.training.objective import EmbeddedBatch, Loss


class CleanCLIP(Spec):
    """mmcl_weight x MMCL + ssl_weight x SSL on clean pairs; originals and views pass the network in one forward.

    Both weights apply as they stand and the parts are summed, as in the papers' code. ssl_weight 0 is the papers'
    "MMCL cleaning", mmcl_weight 0 their "SSL cleaning".
    """

    kind: Literal["cleanclip"] = "cleanclip"
    reaches_every_parameter: ClassVar[bool] = True
    mmcl_weight: float = Field(default=1.0, ge=0)
    ssl_weight: float = Field(default=1.0, ge=0)
    views: ViewField = AutoAugmentView()
    """How image views are made."""

    @model_validator(mode="after")
    def _check(self) -> "CleanCLIP":
        if self.mmcl_weight == 0 and self.ssl_weight == 0:
            raise ValueError("mmcl_weight=0 and ssl_weight=0 leave no loss; make one of them positive")
        return self

    @property
    def image_views(self) -> Spec | None:
        """The image views' maker; none are made where they would have no weight."""
        return self.views if self.ssl_weight else None

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """The weighted sum."""
        return weighted_mmcl_ssl(batch, mmcl_weight=self.mmcl_weight, ssl_weight=self.ssl_weight)
