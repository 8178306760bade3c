"""CleanCLIP by hand; what holds for every method is in tests/test_every_objective.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from sweeplab.cleaning import METHODS
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.clip_model import Architecture, build, tokenizer
from sweeplab.data.augmentation import AutoAugmentView
from sweeplab.data.tables import PairTable
from sweeplab.data.training_pairs import TrainingPairs
from sweeplab.losses import in_modal_ssl, mmcl
from sweeplab.records import Measurement, Outcomes, Point
from sweeplab.specs import InvalidInput
from sweeplab.training.loop import Run, train
from sweeplab.training.objective import EmbeddedBatch, EpochFacts, TrainingFacts
from sweeplab.training.optimisation import Optimization, is_decayed


def embedded(*, with_views: bool, seed: int = 0) -> EmbeddedBatch:
    """Six pairs of unit rows at scale 5, all of them leaves."""
    draw = torch.Generator().manual_seed(seed)
    rows = [F.normalize(torch.randn(6, 4, generator=draw), dim=1).requires_grad_() for _ in range(4)]
    scale = torch.tensor(5.0, requires_grad=True)
    return EmbeddedBatch(rows[0], rows[1], scale, *(rows[2:] if with_views else ()))


def test_kinds_are_distinct():
    assert len({method().kind for method in METHODS}) == len(METHODS)


# --- CleanCLIP ------------------------------------------------------------------------------------------------------


def parts_of(batch: EmbeddedBatch) -> tuple[Tensor, Tensor]:
    together = mmcl(batch.images, batch.texts, batch.logit_scale)
    views = in_modal_ssl(batch.images, batch.image_views, batch.texts, batch.text_views, batch.logit_scale)
    return together, views


@pytest.mark.parametrize(("mmcl_weight", "ssl_weight"), [(1.0, 1.0), (1.0, 8.0), (0.5, 0.25)])
def test_cleanclip_sums_its_weighted_parts(mmcl_weight: float, ssl_weight: float):
    batch = embedded(with_views=True)
    together, views = parts_of(batch)
    loss = CleanCLIP(mmcl_weight=mmcl_weight, ssl_weight=ssl_weight).loss(None, batch)
    assert_close(loss.total, mmcl_weight * together + ssl_weight * views)
    assert loss.parts == {"mmcl": together, "ssl": views}


def test_mmcl_cleaning_needs_no_views():
    method, batch = CleanCLIP(ssl_weight=0.0), embedded(with_views=False)
    assert method.image_views is None
    loss = method.loss(None, batch)
    assert_close(loss.total, mmcl(batch.images, batch.texts, batch.logit_scale))
    assert list(loss.parts) == ["mmcl"]


def test_ssl_cleaning_never_compares_images_with_texts():
    loss = CleanCLIP(mmcl_weight=0.0).loss(None, embedded(with_views=True))
    assert_close(loss.total, parts_of(embedded(with_views=True))[1])
    assert list(loss.parts) == ["ssl"]


def test_ssl_without_views_is_refused():
    with pytest.raises(ValueError, match=r"ssl_weight=2.0 needs augmented views"):
        CleanCLIP(ssl_weight=2.0).loss(None, embedded(with_views=False))


def test_cleanclip_augments_with_autoaugment():
    assert CleanCLIP().image_views == AutoAugmentView(policy="imagenet")


def test_two_weights_of_zero_are_refused():
    with pytest.raises(InvalidInput, match="leave no loss; make one of them positive"):
        CleanCLIP(mmcl_weight=0.0, ssl_weight=0.0)


@pytest.mark.parametrize("name", ["mmcl_weight", "ssl_weight"])
def test_a_negative_weight_is_refused(name: str):
    with pytest.raises(InvalidInput, match=f"{name}=-1.0"):
        CleanCLIP(**{name: -1.0})


# --- heavy regularisation -------------------------------------------------------------------------------------------


class Silent:
    """A context that wants nothing."""

    attempt = 1

    def report(self, point: Point, outcomes: Outcomes) -> None:
        pass

    def should_stop(self) -> bool:
        return False

    def heartbeat(self) -> None:
        pass


def after_one_step(method: CleanCLIP, decay: float, tiny: Architecture, table: PairTable) -> dict[str, Tensor]:
    """The parameters after one update on 16 pairs at rate 1e-3."""
    model = build(tiny, seed=0)
    pairs = TrainingPairs(table.subset(range(16)), 32, tokenize=tokenizer(tiny), seed=0)
    optimization = Optimization(learning_rate=1e-3, warmup_steps=0, global_batch_size=16, weight_decay=decay)
    nothing = (Measurement(1, 2, 0, 2, "none"), Outcomes(b"", 0, b"", 0))
    train(
        model, pairs, Run(method, optimization, 1, seed=0), measure=lambda model, other=None: nothing, context=Silent()
    )
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("mmcl_weight", "ssl_weight"), [(1, 0), (0, 1), (1, 1)], ids=["MMCL", "SSL", "MMCL + SSL"])
def test_heavy_decay_is_decoupled_and_really_applies_under_every_objective(
    mmcl_weight: float, ssl_weight: float, tiny: Architecture, stall_pairs: PairTable
):
    """One step of AdamW subtracts rate x decay x the weight itself, whatever the gradient: at 1e-3 and a decay of 100 a
    tenth of every decayed weight, and nothing of the others."""
    method = CleanCLIP(mmcl_weight=mmcl_weight, ssl_weight=ssl_weight)
    before = dict(build(tiny, seed=0).named_parameters())
    plain, heavy = (after_one_step(method, decay, tiny, stall_pairs) for decay in (0.0, 100.0))
    decayed = 0
    for name, parameter in before.items():
        lost = plain[name] - heavy[name]
        expected = 0.1 * parameter.detach() if is_decayed(name, parameter) else torch.zeros_like(parameter)
        assert_close(lost, expected, atol=1e-6, rtol=1e-4)
        decayed += is_decayed(name, parameter)
    assert decayed > 10


# --- deep clustering ------------------------------------------------------------------------------------------------

FACTS = TrainingFacts(num_pairs=4, steps_per_epoch=1, epochs=1, global_batch_size=2, embed_dim=3, seed=0)


def labels_file(folder: Path, labels: object) -> Path:
    np.save(folder / "labels.npy", np.asarray(labels))
    return folder / "labels.npy"


def test_labels_from_outside_stay_and_so_does_their_head(tmp_path: Path):
    """No clustering at the start of an epoch: what would embed the pairs is not even called."""
    method = DeepClustering(num_clusters=3, pseudo_labels=labels_file(tmp_path, [2, 0, 1, 1]))
    state = method.init_state(torch.nn.Identity(), FACTS)
    head = state.head.weight.clone()
    method.start_epoch(state, EpochFacts(2, FACTS, embed=None, cosines=None, forget=None))  # type: ignore[arg-type]
    assert state.labels.tolist() == [2, 0, 1, 1]
    assert torch.equal(state.head.weight, head)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "one whole number for each of the 4 pairs is needed"),
        ([0.0, 1.0, 2.0, 1.0], r"holds float64 \(4,\)"),
        ([0, 1, 3, 1], "ranges from 0 to 3, and num_clusters=3 allows 0 to 2; raise num_clusters"),
        ([0, -1, 2, 1], "ranges from -1 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[float], message: str, tmp_path: Path):
    with pytest.raises(InvalidInput, match=message):
        DeepClustering(num_clusters=3, pseudo_labels=labels_file(tmp_path, labels)).check(FACTS)


def test_a_file_that_is_no_array_is_refused(tmp_path: Path):
    (tmp_path / "labels.npy").write_text("0 1 2 1")
    with pytest.raises(InvalidInput, match=r"cannot be read as .npy .*; write it with numpy.save"):
        DeepClustering(num_clusters=3, pseudo_labels=tmp_path / "labels.npy").check(FACTS)


def test_more_clusters_than_pairs_are_refused():
    with pytest.raises(InvalidInput, match="num_clusters=5 exceeds the 4 cleaning pairs; choose fewer"):
        DeepClustering(num_clusters=5).check(FACTS)
