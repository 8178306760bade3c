"""SafeCLIP: contrastive pre-training that holds back risky pairs (Yang et al. 2024, "Better Safe than Sorry")."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sweeplab.data.augmentation import SimCLRView, ViewField
from sweeplab.losses import info_nce, nearest_rows
from sweeplab.pretraining.pool import Pool
from sweeplab.specs import Spec
from sweeplab.training.objective import EmbeddedBatch, EpochFacts, Loss, Pass, TrainingFacts
from sweeplab.training.randomness import stream_seed


class SafeCLIP(Spec):
    """Unimodal warm-up, one slow CLIP epoch, then CLIP on pairs that look safe and unimodal loss on the others.

    1. `warmup_epochs`: each modality alone; an augmented view finds the nearest neighbour, in a pool of past
       embeddings, of its other view. No image meets its caption, so no poison is learned.
    2. `slow_epochs`: CLIP on all pairs at a small constant rate, so that images and captions can be compared at all.
    3. To the end, every epoch: pairs are scored by the cosine of image and caption; one pass of the unimodal loss
       over the risky pairs, then one pass of CLIP over the safe ones.

    Paper (Alg. 1, eq. 4) and released code differ: the paper takes the top share of scores as safe and adds both
    losses; the code fits a mixture of two Gaussians and alternates passes. `safe_rule` and `mixing` offer both: the
    defaults are the code's, `SafeCLIP(safe_rule="top-share", mixing="sum")` is the paper's. The learning rate follows
    the stated schedule through all phases; in the authors' code the mixed phase enters its schedule in the middle, so
    that the rate oscillates.
    """

    CHANGES: ClassVar[tuple[str, ...]] = ("safe sets: pairs of equal posterior are ordered by their cosine",)

    kind: Literal["safeclip"] = "safeclip"
    reaches_every_parameter: ClassVar[bool] = True
    warmup_epochs: int = Field(default=5, ge=0)
    slow_epochs: int = Field(default=1, ge=0)
    slow_learning_rate: float = Field(default=5e-6, gt=0)
    """Constant rate of the slow epochs."""
    safe_rule: Literal["mixture", "top-share"] = "mixture"
    """`mixture`: the first safe set is where a mixture of two Gaussians over the scores gives the higher one a
    posterior above `safe_posterior` (code); later ones are the top of that posterior, equal ones by their score.
    `top-share`: the top `first_share` of the scores (paper). Both grow by `share_step` an epoch."""
    safe_posterior: float = Field(default=0.9, gt=0, lt=1)
    first_share: float = Field(default=0.15, gt=0, le=1)
    """For `top-share`."""
    share_step: float = Field(default=0.01, ge=0)
    """Growth of the safe share, a fraction of all pairs, at every later scoring."""
    max_share: float = Field(default=0.85, gt=0, le=1)
    rescore_every: int = Field(default=1, ge=1)
    """Epochs between two scorings of all pairs; 1 in the code, several in the paper."""
    rescore_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the pairs that is scored in the epochs between, those of the highest last scores; the others keep
    theirs. 0: none, and the safe set stays as it is until all are scored."""
    mixing: Literal["alternate", "sum"] = "alternate"
    """`alternate`: a mixed epoch walks over the risky pairs by the unimodal loss, then over the safe ones by CLIP's
    (code). `sum`: it walks over all pairs once, and every step minimises CLIP's loss over the safe pairs of its batch
    plus the unimodal loss over the risky ones (paper, eq. 4)."""
    pool_size: int = Field(default=256, ge=1)
    """Past embeddings of each modality among which neighbours are looked up; 256, one batch, in the code."""
    nearest_neighbours: bool = True
    """Whether the warm-up looks up neighbours; without, a view's positive is its other view (paper, Fig. 3a)."""
    unimodal_on_risky: bool = True
    """Whether risky pairs are trained on at all (paper, Fig. 3c)."""
    augmentation: ViewField = SimCLRView()
    """Makes both views of an image; captions are augmented along."""

    def changes(self) -> tuple[str, ...]:
        """That of the mixture's safe sets; scores themselves are hardly ever equal."""
        return self.CHANGES if self.safe_rule == "mixture" else ()

    def in_miniature(self) -> "SafeCLIP":
        """All phases within four epochs."""
        return self.replace(warmup_epochs=1, slow_epochs=1)

    @property
    def image_augmentation(self) -> Spec:
        """First copies are views too."""
        return self.augmentation

    @property
    def image_views(self) -> Spec:
        """Second copies."""
        return self.augmentation

    augments_captions: bool = True
    """Whether first copies of captions are augmented as well."""

    def init_state(self, model: nn.Module, facts: TrainingFacts) -> nn.Module:
        """Pools, and which pairs are safe."""
        return SafeCLIPState(self.pool_size, facts, keeps_scores=self._scores_in_part())

    def _scores_in_part(self) -> bool:
        """Whether some scorings are of a part of the pairs."""
        return self.rescore_share > 0 and self.rescore_every > 1

    def start_epoch(self, state: nn.Module | None, facts: EpochFacts) -> None:
        """Score the pairs where a mixed epoch asks for it."""
        assert isinstance(state, SafeCLIPState)
        mixed = facts.epoch - self.warmup_epochs - self.slow_epochs  # 1 is the first mixed epoch
        in_part = (mixed - 1) % self.rescore_every > 0
        if mixed < 1 or (in_part and not self._scores_in_part()):
            return
        if in_part:
            scores = state.scores.cpu()
            rows = top_share(scores, self.rescore_share).nonzero().flatten()
            scores[rows] = facts.cosines(rows=rows)
        else:
            scores = facts.cosines()
        if self._scores_in_part():
            state.scores.copy_(scores)
        first = float(state.share) < 0
        share = None if first else min(self.max_share, float(state.share) + self.share_step)
        if self.safe_rule == "top-share":
            safe = top_share(scores, self.first_share if share is None else share)
        else:
            posterior = mixture_posterior(scores, stream_seed(facts.run.seed, "safeclip mixture", facts.epoch))
            safe = posterior > self.safe_posterior if share is None else top_share(posterior, share, ties=scores)
        state.safe.copy_(safe)
        state.share.fill_(float(safe.float().mean()) if share is None else share)

    def passes(self, state: nn.Module | None, epoch: int) -> Sequence[Pass]:
        """What the epoch walks over."""
        assert isinstance(state, SafeCLIPState)
        everything = torch.arange(len(state.safe))
        if epoch <= self.warmup_epochs:
            return (Pass(everything, "unimodal"),)
        if epoch <= self.warmup_epochs + self.slow_epochs:
            return (Pass(everything, "clip", self.slow_learning_rate),)
        safe = state.safe.cpu()
        if self.mixing == "sum":
            return (Pass(everything if self.unimodal_on_risky else everything[safe], "sum"),)
        risky = (Pass(everything[~safe], "unimodal"),) if self.unimodal_on_risky else ()
        return (*risky, Pass(everything[safe], "clip"))

    def chosen(self, state: nn.Module | None) -> Mapping[str, Tensor]:
        """The safe set, from the first scoring on."""
        assert isinstance(state, SafeCLIPState)
        return {"safe": state.safe} if float(state.share) >= 0 else {}

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """The unimodal or the cross-modal loss, or both over their shares of the batch, as the pass says."""
        assert isinstance(state, SafeCLIPState)
        if batch.stage == "clip":
            value = cross_modal(batch)
            return Loss(value, {"clip": value})
        if batch.stage != "sum":
            value = self._unimodal(state, batch)
            return Loss(value, {"unimodal": value})
        assert batch.rows is not None
        safe = state.safe[batch.rows]
        parts = {}
        if bool(safe.any()):
            parts["clip"] = cross_modal(some_of(batch, safe))
        if not bool(safe.all()):
            parts["unimodal"] = self._unimodal(state, some_of(batch, ~safe))
        return Loss(torch.stack([*parts.values()]).sum(), parts)

    def _unimodal(self, state: "SafeCLIPState", batch: EmbeddedBatch) -> Tensor:
        """Second views against the first ones, or against their nearest neighbours in the pools."""
        assert batch.image_views is not None
        assert batch.text_views is not None
        if self.nearest_neighbours:
            image_keys = nearest_rows(batch.images, state.images.rows)
            text_keys = nearest_rows(batch.texts, state.texts.rows)
            state.images.push(batch.images)
            state.texts.push(batch.texts)
        else:
            image_keys, text_keys = batch.images, batch.texts
        scale, share = batch.logit_scale, batch.share
        found = info_nce(batch.image_views, image_keys, scale, share=share)
        return (found + info_nce(batch.text_views, text_keys, scale, share=share)) / 2


def cross_modal(batch: EmbeddedBatch) -> Tensor:
    """CLIP's loss of first views against second views of the other modality, both ways averaged."""
    assert batch.image_views is not None
    assert batch.text_views is not None
    scale, share = batch.logit_scale, batch.share
    found = info_nce(batch.images, batch.text_views, scale, share=share)
    return (found + info_nce(batch.texts, batch.image_views, scale, share=share)) / 2


def some_of(batch: EmbeddedBatch, chosen: Tensor) -> EmbeddedBatch:
    """The batch with some of its pairs alone.

    Args:
        batch: B pairs with their views.
        chosen: (B,) bool.
    """
    assert batch.image_views is not None
    assert batch.text_views is not None
    return EmbeddedBatch(
        batch.images[chosen],
        batch.texts[chosen],
        batch.logit_scale,
        image_views=batch.image_views[chosen],
        text_views=batch.text_views[chosen],
        share=None if batch.share is None else batch.share.among(chosen),
    )


class SafeCLIPState(nn.Module):
    """Pools of both modalities, the safe set and its planned share, and the last scores where they are needed."""

    safe: Tensor
    """(N,) bool."""
    share: Tensor
    """Planned share of safe pairs; -1 before the first scoring."""
    scores: Tensor
    """(N,) float32, where a part of the pairs is scored between two scorings of all."""

    def __init__(self, pool_size: int, facts: TrainingFacts, *, keeps_scores: bool = False) -> None:
        super().__init__()
        self.images = Pool(pool_size, facts.embed_dim, seed=facts.seed, name="images")
        self.texts = Pool(pool_size, facts.embed_dim, seed=facts.seed, name="texts")
        self.register_buffer("safe", torch.zeros(facts.num_pairs, dtype=torch.bool))
        self.register_buffer("share", torch.tensor(-1.0))
        if keeps_scores:
            self.register_buffer("scores", torch.zeros(facts.num_pairs))


def top_share(scores: Tensor, share: float, *, ties: Tensor | None = None) -> Tensor:
    """Which scores are among the top share.

    Args:
        scores: (N,).
        share: fraction in [0, 1]; the count is rounded down.
        ties: (N,), by which equal scores are ordered, largest first; of what is equal then, or without, the earlier.

    Returns:
        (N,) bool, on the CPU.
    """
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    # Posteriors saturate: thousands may be 1.0, and the order of the rows, poisons last, must not choose among them.
    # (The authors' code sorts by cosine before it sorts by posterior, too.)
    order = torch.arange(len(scores)) if ties is None else ties.cpu().argsort(descending=True, stable=True)
    order = order[scores.cpu()[order].argsort(descending=True, stable=True)]
    # A sum of steps such as 0.15 + 0.01 must not lose a pair to rounding.
    chosen[order[: int(share * len(scores) + 1e-9)]] = True
    return chosen


def mixture_posterior(scores: Tensor, seed: int) -> Tensor:
    """How likely each score belongs to the higher of two Gaussians fitted to all of them.

    Scores close to each other need a small regularisation: 1e-8 is added to the variances, where the authors keep
    scikit-learn's 1e-6, which drowns scores of a standard deviation below 1e-3 (then no pair is safe at first).

    Args:
        scores: (N,), N >= 2.
        seed: of the fit's start.

    Returns:
        (N,) float64 in [0, 1], on the CPU.
    """
    from sklearn.mixture import GaussianMixture  # scikit-learn takes a second to import

    values = scores.cpu().double().numpy().reshape(-1, 1)
    fitted = GaussianMixture(n_components=2, reg_covar=1e-8, random_state=seed % 2**32).fit(values)
    higher = int(np.argmax(fitted.means_.ravel()))
    return torch.from_numpy(fitted.predict_proba(values)[:, higher])
