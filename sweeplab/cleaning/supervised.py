"""Supervised finetuning: the image encoder and a linear head on clean labelled images (CleanCLIP, App. C.3 and D)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.objective import EmbeddedBatch, Loss, TrainingFacts


class SupervisedFinetuning(Spec):
    """Cross-entropy of a linear head on un-normalised image features, the whole image encoder trained along.

    Needs labelled images as cleaning data. The result is measured as a classifier by its head, as in the paper, and
    not zero-shot. Paper: 10 epochs, batch 64, rate 1e-4, 500 warm-up steps, 50 images a class. (The authors' command
    takes its epochs and its batch of 80 from other flags.) The text encoder gets no gradient.
    """

    kind: Literal["supervised"] = "supervised"

    def check(self, facts: TrainingFacts) -> None:
        """Refuse cleaning data without labels."""
        if facts.labels is None:
            raise InvalidInput(
                "method 'supervised' needs labelled images; give data=LabelledPairs(images=ClassFolders(...))"
            )

    def init_state(self, model: nn.Module, facts: TrainingFacts) -> nn.Module:
        """A head of zeros, and the labels."""
        assert facts.labels is not None
        return SupervisedState(facts.labels, facts.embed_dim, facts.num_classes)

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """Cross-entropy over the classes."""
        assert isinstance(state, SupervisedState)
        assert batch.rows is not None
        assert batch.image_features is not None
        value = F.cross_entropy(state.head(batch.image_features), state.labels[batch.rows])
        return Loss(value, {"cross_entropy": value})

    def classifier(self, state: nn.Module | None) -> Callable[[Tensor], Tensor]:
        """The head."""
        assert isinstance(state, SupervisedState)
        head: Callable[[Tensor], Tensor] = state.head
        return head


class SupervisedState(nn.Module):
    """The head, and each image's class."""

    labels: Tensor
    """(N,) int64; the data know them, so they are not stored."""

    def __init__(self, labels: Tensor, width: int, num_classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.head = nn.Linear(width, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("labels", labels.clone(), persistent=False)
