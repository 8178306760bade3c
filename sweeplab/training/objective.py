"""What the loop asks of an objective or a cleaning method, and what it hands them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class EmbeddedBatch:
    """The global batch, embedded: rows of all ranks in rank order, gradients flow through the gathering."""

    images: Tensor
    """(B, D), rows of unit norm."""
    texts: Tensor
    """(B, D), rows of unit norm; row i belongs to image i."""
    logit_scale: Tensor
    """Scalar, 1 / temperature."""
    image_views: Tensor | None = None
    """(B, D), embeddings of augmented images; None unless the objective asked for views."""
    text_views: Tensor | None = None
    """(B, D), embeddings of augmented captions; None unless the objective asked for views."""


@dataclass(frozen=True)
class Loss:
    """A loss and what it is made of."""

    total: Tensor
    """Scalar in nats: what is minimised."""
    parts: Mapping[str, Tensor]
    """Unweighted parts by name, for the records."""


class Objective(Protocol):
    """A frozen value: fields are hyperparameters; what must be remembered lives in a state that the loop owns."""

    @property
    def image_views(self) -> Any | None:
        """Makes augmented images (`views(images, seeds)`), or None where the loss needs no views."""
        ...

    def init_state(self, model: nn.Module) -> nn.Module | None:
        """What this run remembers beside the model; None where nothing. Its state dict is checkpointed."""
        ...

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """The loss of one global batch."""
        ...
