"""CleanCLIP with a clustering head: pseudo-labels from k-means beside the contrastive losses (Verma et al., Sec. 5)."""

import io
import json
from pathlib import Path
from typing import ClassVar, Literal
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sweeplab.data.augmentation import AutoAugmentView, ViewField
from sweeplab.pretraining.contrastive import weighted_mmcl_ssl
from sweeplab.specs import InvalidInput, Spec, file_digest, regular_file
from sweeplab.storage.files import write_atomically, write_json
from sweeplab.training.objective import EmbeddedBatch, EpochFacts, Loss, TrainingFacts
from sweeplab.training.randomness import stream_seed, torch_stream


class DeepClustering(Spec):
    """mmcl_weight x MMCL + ssl_weight x SSL + clustering_weight x cross-entropy of a linear head on pseudo-labels.

    At the start of every epoch the unit image embeddings (evaluation mode) are clustered by k-means; a pair keeps its
    cluster for the epoch, as the paper states, and the head starts anew (W ~ N(0, 0.01^2), b = 0, no weight decay).
    The authors' code instead assigns each batch again to the nearest centroid and embeds in training mode, which moves
    BatchNorm's statistics. With `pseudo_labels` the labels come from outside and the head persists (the paper's
    upper bound with SigLIP's labels).
    """

    kind: Literal["deep-clustering"] = "deep-clustering"
    reaches_every_parameter: ClassVar[bool] = True
    mmcl_weight: float = Field(default=1.0, ge=0)
    ssl_weight: float = Field(default=1.0, ge=0)
    clustering_weight: float = Field(default=1.0, ge=0)
    """The paper tries 0.1 to 50."""
    num_clusters: int = Field(default=1_000, ge=2)
    kmeans_iterations: int = Field(default=20, ge=1)
    pseudo_labels: Path | None = None
    """A .npy file with one int64 label in 0 .. num_clusters - 1 for each cleaning pair, in order; None: k-means.
    `sweeplab data label` writes one by a zero-shot model, and beside it for which pairs it was made."""
    views: ViewField = AutoAugmentView()

    @model_validator(mode="after")
    def _check(self) -> "DeepClustering":
        if self.mmcl_weight == self.ssl_weight == self.clustering_weight == 0:
            raise ValueError("mmcl_weight=0, ssl_weight=0 and clustering_weight=0 leave no loss; make one positive")
        return self

    def in_miniature(self) -> "DeepClustering":
        """For a few hundred pairs."""
        return self.replace(num_clusters=min(self.num_clusters, 16), pseudo_labels=None)

    @property
    def image_views(self) -> Spec | None:
        """Needed where SSL has a weight."""
        return self.views if self.ssl_weight else None

    def check(self, facts: TrainingFacts) -> None:
        """Refuse more clusters than pairs, and pseudo-labels that do not fit."""
        if self.num_clusters > facts.num_pairs:
            raise InvalidInput(
                f"num_clusters={self.num_clusters} exceeds the {facts.num_pairs:,} cleaning pairs; choose fewer"
            )
        if self.pseudo_labels is not None:
            read_pseudo_labels(self.pseudo_labels, facts.num_pairs, self.num_clusters)
            known = pairs_of_labels(self.pseudo_labels)
            if known and facts.pairs_digest and known != facts.pairs_digest:
                raise InvalidInput(
                    f"pseudo_labels={self.pseudo_labels} was made for other cleaning pairs (digest {known}, and these "
                    f"have {facts.pairs_digest}), whose labels are others; make it anew with `sweeplab data label`"
                )

    def contents(self) -> dict[str, str]:
        """For a digest: labels by content, where it is said for which pairs they were made; of others the first release
        knew the place alone."""
        path = self.pseudo_labels
        return {"labels": file_digest(path)} if path is not None and pairs_of_labels(path) is not None else {}

    def init_state(self, model: nn.Module, facts: TrainingFacts) -> nn.Module:
        """The head, and each pair's cluster.

        Raises:
            InvalidInput: if the pseudo-labels do not fit.
        """
        state = ClusteringState(facts.num_pairs, facts.embed_dim, self.num_clusters)
        state.renew_head(facts.seed, 0)
        if self.pseudo_labels is not None:
            state.labels.copy_(read_pseudo_labels(self.pseudo_labels, facts.num_pairs, self.num_clusters))
        return state

    def start_epoch(self, state: nn.Module | None, facts: EpochFacts) -> None:
        """Cluster anew, and start the head anew with it."""
        assert isinstance(state, ClusteringState)
        if self.pseudo_labels is not None:
            return
        images, _ = facts.embed()
        seed = stream_seed(facts.run.seed, "k-means", facts.epoch)
        state.labels.copy_(cluster(images, self.num_clusters, iterations=self.kmeans_iterations, seed=seed))
        state.renew_head(facts.run.seed, facts.epoch)
        facts.forget(state.head.parameters())

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        """The weighted sum."""
        assert isinstance(state, ClusteringState)
        assert batch.rows is not None
        contrastive = weighted_mmcl_ssl(batch, mmcl_weight=self.mmcl_weight, ssl_weight=self.ssl_weight)
        clustering = F.cross_entropy(state.head(batch.images), state.labels[batch.rows])
        parts = {**contrastive.parts, "clustering": clustering}
        return Loss(contrastive.total + self.clustering_weight * clustering, parts)


class ClusteringState(nn.Module):
    """The head and the labels it learns."""

    labels: Tensor
    """(N,) int64."""

    def __init__(self, num_pairs: int, width: int, num_clusters: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.head = nn.Linear(width, num_clusters)
        self.register_buffer("labels", torch.zeros(num_pairs, dtype=torch.int64))

    @torch.no_grad()
    def renew_head(self, seed: int, epoch: int) -> None:
        """W ~ N(0, 0.01^2), b = 0."""
        drawn = torch.randn(self.head.weight.shape, generator=torch_stream(seed, "clustering head", epoch))
        self.head.weight.copy_(0.01 * drawn)
        self.head.bias.zero_()


def cluster(rows: Tensor, num_clusters: int, *, iterations: int, seed: int) -> Tensor:
    """K-means on unit rows.

    Args:
        rows: (N, D), unit norm, on the CPU.
        num_clusters: at most N.
        iterations: at most this many.
        seed: of the first centroids.

    Returns:
        (N,) int64, the nearest centroid of each row.
    """
    from sklearn.cluster import KMeans  # scikit-learn takes a second to import

    fitted = KMeans(num_clusters, init="random", n_init=1, max_iter=iterations, random_state=seed % 2**32)
    return torch.from_numpy(fitted.fit_predict(rows.numpy()).astype(np.int64))


def read_pseudo_labels(path: Path, num_pairs: int, num_labels: int) -> Tensor:
    """Labels from outside.

    Returns:
        (num_pairs,) int64.

    Raises:
        InvalidInput: if the file cannot be read, has another length, or a label is out of range.
    """
    try:
        labels = np.load(regular_file(path), allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InvalidInput(f"pseudo_labels={path} cannot be read as .npy ({error}); write it with numpy.save") from None
    if not isinstance(labels, np.ndarray):
        raise InvalidInput(f"pseudo_labels={path} is an archive, and no single array; write it with numpy.save")
    if labels.shape != (num_pairs,) or labels.dtype.kind not in "iu":
        raise InvalidInput(
            f"pseudo_labels={path} holds {labels.dtype} {labels.shape}; one whole number for each of the {num_pairs:,} "
            "pairs is needed"
        )
    if labels.min() < 0 or labels.max() >= num_labels:
        raise InvalidInput(
            f"pseudo_labels={path} ranges from {labels.min()} to {labels.max()}, and num_clusters={num_labels} allows "
            f"0 to {num_labels - 1}; raise num_clusters or mend the labels"
        )
    return torch.from_numpy(labels.astype(np.int64))


def write_pseudo_labels(path: Path, labels: np.ndarray, pairs_digest: str) -> None:
    """Write labels, (N,) int64, and beside them, in PATH.json, the digest of the pairs that they were made for."""
    content = io.BytesIO()
    np.save(content, labels)
    write_atomically(path, content.getvalue())
    write_json(_note_of(path), {"labels": file_digest(path), "pairs": pairs_digest})


def pairs_of_labels(path: Path) -> str | None:
    """The digest of the pairs that a file of labels was made for; None where nothing says it, or it changed."""
    try:
        note = json.loads(_note_of(path).read_text(encoding="utf-8"))
        return str(note["pairs"]) if note["labels"] == file_digest(path) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # none, or somebody else's file
        return None


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
