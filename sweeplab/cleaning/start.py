"""Start: what is done to the victim's weights before the first step (shrink and perturb)."""

import torch
from pydantic import Field, model_validator
from torch import nn

from sweeplab.clip_model import Architecture, build
from sweeplab.specs import Spec


class Start(Spec):
    """The victim as it is, or shrunk and perturbed (Ash & Adams 2020; Verma et al., Sec. 5 and App. D.13)."""

    shrink_perturb: bool = False
    """Whether the weights change at all; then `shrink` and `perturb` apply."""
    shrink: float = Field(default=1.0, ge=0, le=1)
    """lambda: the share of the victim's weights that is kept."""
    perturb: float = Field(default=0.0, ge=0)
    """p: the factor of the fresh initialisation that is added."""

    @model_validator(mode="after")
    def _check(self) -> "Start":
        if not self.shrink_perturb and (self.shrink != 1.0 or self.perturb != 0.0):
            raise ValueError(
                f"shrink={self.shrink} and perturb={self.perturb} have no effect without shrink_perturb=True; set it"
            )
        return self

    def apply(self, model: nn.Module, architecture: Architecture, seed: int) -> None:
        """Change the model's weights in place."""
        if self.shrink_perturb:
            shrink_and_perturb(model, build(architecture, seed), shrink=self.shrink, perturb=self.perturb)


@torch.no_grad()
def shrink_and_perturb(model: nn.Module, fresh: nn.Module, *, shrink: float, perturb: float) -> None:
    """theta <- shrink * theta + perturb * theta_fresh, for every parameter, the logit scale and norm weights included.

    `fresh` is a newly initialised model of the same architecture, which is what the paper and its code mean by
    perturbation (not Gaussian noise of scale p). BatchNorm's running statistics stay as they are.
    """
    for (name, parameter), (fresh_name, noise) in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        if name != fresh_name:
            raise ValueError(f"parameter {name} faces {fresh_name}; fresh must be of the model's architecture")
        parameter.mul_(shrink).add_(noise.to(parameter.device), alpha=perturb)
