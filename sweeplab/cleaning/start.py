"""Start: what is done to the victim before the first step: shrink and perturb, BatchNorm statistics taken anew."""

from collections.abc import Iterable

import torch
from pydantic import Field, model_validator
from torch import nn

from sweeplab.clip_model import Architecture, as_clip, build, evaluation_mode, normalise_pixels
from sweeplab.specs import Spec


class Start(Spec):
    """The victim as it is, or shrunk and perturbed (Ash & Adams 2020; Verma et al., Sec. 5 and App. D.13)."""

    shrink_perturb: bool = False
    """Whether the weights change at all; then `shrink` and `perturb` apply."""
    shrink: float = Field(default=1.0, ge=0, le=1)
    """lambda: the share of the victim's weights that is kept."""
    perturb: float = Field(default=0.0, ge=0)
    """p: the factor of the fresh initialisation that is added."""

    recalibrate_batch_norm: bool = False
    """Whether BatchNorm's running statistics are taken anew over the cleaning images before the first step, weights
    untouched. With `epochs=0` it is a cleaning method of its own: Verma et al.'s runs at rates of 1e-9 and below change
    little else, and lower the ASR of the CC6M victim by four points."""

    @property
    def changes_victim(self) -> bool:
        """Whether the start is another model than the victim, so that it counts as a result."""
        return self.shrink_perturb or self.recalibrate_batch_norm

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


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Take BatchNorm's running statistics anew: the plain average over all batches of images.

    Args:
        model: left in the mode it is in; no weight changes. A model without BatchNorm stays as it is.
        batches: (b, 3, H, W) uint8 each, on the model's device.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    with evaluation_mode(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for the plain average
            layer.train()
        try:
            for images in batches:
                as_clip(model).encode_image(normalise_pixels(images))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
