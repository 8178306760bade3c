"""What the loop asks of an objective or a cleaning method, and what it hands them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sweeplab.losses import Share


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
    share: Share | None = None
    """This rank's rows, where there are several ranks; None: one rank has all. What compares each row with each is
    taken over these rows alone, so that no rank holds B x B numbers."""
    find_rows: "Callable[[], Tensor] | None" = None
    """Gathers `rows`; None outside the loop."""
    image_features: Tensor | None = None
    """(B, D), `images` before they were brought to unit norm; None outside the loop."""
    stage: str = ""
    """Name of the pass that the batch belongs to; empty where the objective names none."""
    embed_with: "Callable[[nn.Module], tuple[Tensor, Tensor]] | None" = None
    """Embeds the same images and captions (not the views) with another model, in the mode that it is in and without
    gradients: two (B, D) of unit norm. None outside the loop."""

    @cached_property
    def rows(self) -> Tensor | None:
        """(B,) int64, row numbers of the pairs, gathered where an objective asks, on every rank alike; None outside the
        loop."""
        return None if self.find_rows is None else self.find_rows()


@dataclass(frozen=True)
class Loss:
    """A loss and what it is made of."""

    total: Tensor
    """Scalar in nats: what is minimised."""
    parts: Mapping[str, Tensor]
    """Unweighted parts by name, for the records."""


@dataclass(frozen=True)
class TrainingFacts:
    """What an objective may know of its run before the first step."""

    num_pairs: int
    steps_per_epoch: int
    epochs: int
    global_batch_size: int
    embed_dim: int
    """D, width of the joint embedding."""
    seed: int
    """Of the run; draws of an objective come from streams named after it."""
    labels: Tensor | None = None
    """(num_pairs,) int64, each pair's class, where the pairs come from labelled images."""
    num_classes: int = 0
    """Classes of those labels; 0 where there are none."""
    pairs_digest: str = ""
    """Of the table of pairs, where the driver checks them before a run; empty in the run itself."""


@dataclass(frozen=True)
class EpochFacts:
    """What an objective may know and do at the start of an epoch."""

    epoch: int
    """From 1."""
    run: TrainingFacts
    embed: Callable[..., tuple[Tensor, Tensor]]
    """`embed()` embeds all pairs with the model as it is, `embed(other)` with another model: image and text
    embeddings, (num_pairs, D) each, unit norm, float32, on the CPU, the same on every rank. Evaluation mode, no
    gradients; images and captions as this epoch will see them. Takes 8 x num_pairs x D bytes on every rank."""
    cosines: Callable[..., Tensor]
    """`cosines()` or `cosines(other)`: the cosine of each pair, (num_pairs,), in the same way, without keeping the
    embeddings: 4 x num_pairs bytes. `cosines(rows=...)`: of these pairs alone, in their order."""
    forget: Callable[[Iterable[nn.Parameter]], None]
    """Drops the optimizer's moments of parameters that were made anew."""


@dataclass(frozen=True)
class Pass:
    """A walk over some of the pairs, in a drawn order, within one epoch."""

    rows: Tensor
    """(n,) int64 row numbers; fewer than one batch make no step."""
    stage: str = ""
    """Handed to the loss with every batch."""
    learning_rate: float | None = None
    """Constant rate of this pass; None: the schedule's."""


class Objective(Protocol):
    """A frozen value: fields are hyperparameters; what must be remembered lives in a state that the loop owns.

    Only `loss` is needed. What else the loop asks for, where an objective has it:

    - `image_views`: makes augmented second copies (`views(images, seeds)`; what has `drawn(size, seeds)` too, see
      `batches.DeviceViews`, makes them on a GPU that trains); text views come along.
    - `image_augmentation`: changes the first copies of the images too, `augments_captions` (bool) the captions.
    - `check(facts: TrainingFacts)`: refuses (InvalidInput) what does not fit the run; asked before any process starts.
    - `init_state(model, facts) -> nn.Module | None`: what this run remembers beside the model. Parameters of it that
      need gradients are trained, without weight decay, on the mean of the ranks' gradients; its state dict is
      checkpointed. The model comes as it is before the first step, on a resumed run too.
    - `start_epoch(state, facts: EpochFacts)`: changes the state at the start of an epoch.
    - `passes(state, epoch) -> sequence of Pass`: which pairs the epoch walks over; asked again when an epoch is
      resumed, so it depends on the state and the epoch alone.
    - `chosen(state) -> mapping of (num_pairs,) bool by name`: pairs that it treats apart now, such as those that look
      safe; each point counts them, and the poisons among them.
    - `reaches_every_parameter`: True promises that every step's loss depends on all parameters of the model and on the
      temperature, which makes several ranks a little faster. Without it each step finds out.
    - `classifier(state) -> (features -> scores) | None`: classifies un-normalised image features where the result is
      not a zero-shot model.
    """

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """The loss of one global batch: on several ranks all of it on each, or parts whose mean over the ranks it is
        (see `sweeplab.losses.Share`)."""
        ...


def image_views(objective: Objective) -> Any | None:
    """What makes the objective's second copies of images; None: it needs none."""
    return getattr(objective, "image_views", None)


def image_augmentation(objective: Objective) -> Any | None:
    """What changes the first copies; None: they stay as they are."""
    return getattr(objective, "image_augmentation", None)


def augments_captions(objective: Objective) -> bool:
    """Whether the first copies of captions are augmented."""
    return bool(getattr(objective, "augments_captions", False))


def reaches_every_parameter(objective: Objective) -> bool:
    """Whether every step gives all parameters a gradient."""
    return bool(getattr(objective, "reaches_every_parameter", False))


def check(objective: Objective, facts: TrainingFacts) -> None:
    """Let the objective refuse a run that it does not fit."""
    refuse = getattr(objective, "check", None)
    if refuse is not None:
        refuse(facts)


def init_state(objective: Objective, model: nn.Module, facts: TrainingFacts) -> nn.Module | None:
    """The objective's state, on the model's device; None where it remembers nothing."""
    make = getattr(objective, "init_state", None)
    state: nn.Module | None = make(model, facts) if make is not None else None
    return None if state is None else state.to(next(model.parameters()).device)


def trained_parameters(state: nn.Module | None) -> list[nn.Parameter]:
    """Parameters of the state that are trained beside the model."""
    return [] if state is None else [parameter for parameter in state.parameters() if parameter.requires_grad]


def start_epoch(objective: Objective, state: nn.Module | None, facts: EpochFacts) -> None:
    """Let the objective prepare an epoch."""
    prepare = getattr(objective, "start_epoch", None)
    if prepare is not None:
        prepare(state, facts)


def passes(objective: Objective, state: nn.Module | None, epoch: int, num_pairs: int) -> Sequence[Pass]:
    """The epoch's walks over the pairs: one over all of them unless the objective says otherwise."""
    choose = getattr(objective, "passes", None)
    chosen: Sequence[Pass] | None = choose(state, epoch) if choose is not None else None
    return (Pass(torch.arange(num_pairs)),) if chosen is None else chosen


def chosen(objective: Objective, state: nn.Module | None) -> Mapping[str, Tensor]:
    """Pairs that the objective treats apart at the moment, by name; empty where it treats all alike."""
    choose = getattr(objective, "chosen", None)
    found: Mapping[str, Tensor] = choose(state) if choose is not None else {}
    return found


def has_classifier(objective: object) -> bool:
    """Whether the result is classified by what the objective remembers, and not by prompts."""
    return getattr(objective, "classifier", None) is not None


def classifier(objective: Objective, state: nn.Module | None) -> Callable[[Tensor], Tensor] | None:
    """What classifies image features in place of prompts; None: the model is zero-shot."""
    make = getattr(objective, "classifier", None)
    made: Callable[[Tensor], Tensor] | None = make(state) if make is not None else None
    return made
