"""PAR by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.cleaning.par import PAR, PAR_OPTIMIZATION, FrozenCopy, perturb_and_recover
from sweeplab.data.augmentation import PARView
from sweeplab.losses import mmcl, perturbation
from sweeplab.specs import InvalidInput
from sweeplab.training.optimisation import scheduled_rate

EAST, NORTH, WEST = (torch.tensor([row]) for row in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]))
SCALE = torch.tensor(5.0)


@pytest.mark.parametrize(
    ("current", "tau", "expected"),
    [(EAST, 2.15, 0.0), (NORTH, 2.15, 2.0), (WEST, 2.15, 0.0), (WEST, 4.0, 4.0), (NORTH, 2.0, 2.0), (NORTH, 1.9, 0.0)],
)
def test_the_distance_counts_up_to_tau_and_not_beyond(current: Tensor, tau: float, expected: float):
    """East to north is sqrt 2 apart, squared 2; east to west 4."""
    assert float(perturbation(current, EAST, tau)) == pytest.approx(expected)


def test_the_bound_is_on_the_batch_mean():
    """Squared distances 0 and 4 have mean 2, which counts as a whole."""
    assert float(perturbation(torch.cat([EAST, WEST]), torch.cat([EAST, EAST]), 2.15)) == pytest.approx(2.0)


def test_a_term_beyond_tau_has_no_gradient():
    current = WEST.clone().requires_grad_()
    perturbation(current, EAST, 2.15).backward()
    assert torch.equal(current.grad, torch.zeros_like(WEST))


def test_the_loss_by_hand():
    """Images moved by 2, texts not at all: MMCL - (2 + 0) / 2."""
    texts = torch.cat([EAST, NORTH])
    images, victim = torch.cat([NORTH, EAST]), torch.cat([EAST, NORTH])
    loss = perturb_and_recover((images, texts), (victim, texts), SCALE, tau=2.15, weight=1.0)
    assert_close(loss.total, mmcl(images, texts, SCALE) - 1.0)
    assert float(loss.parts["perturbation"]) == pytest.approx(1.0)


def test_the_frozen_copy_stays_and_is_not_stored():
    model = nn.Linear(2, 2)
    state = FrozenCopy(model)
    before = state.model.weight.clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(state.model.weight, before)
    assert state.state_dict() == {}
    assert list(state.parameters()) == []


def test_a_negative_tau_is_refused():
    with pytest.raises(InvalidInput, match=r"tau=-1.0"):
        PAR(tau=-1.0)


def test_an_unknown_augmentation_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match="unknown augmentation kind='cutmix'; known: autoaugment, simclr, par"):
        PAR(augmentation={"kind": "cutmix"})


def test_as_it_comes_it_augments_like_the_paper():
    assert PAR().augmentation == PARView(noise=0.2, probability=0.5)


def test_a_par_without_augmentation_keeps_the_digest_that_it_had_by_default():
    """Digests of `PAR()` and of `PAR(augmentation=PARView())` before the default changed."""
    assert PAR(augmentation=None).digest() == "0e5390dea53a28ab"
    assert PAR().digest() == "98d9470bff4716d8"
    stored = {**PAR(augmentation=None).to_json()}
    assert PAR.model_validate(stored).digest() == "0e5390dea53a28ab"


def test_the_papers_optimisation():
    """250,000 pairs are 122 steps of 2,048 an epoch: 3e-5 to 3e-6 over five of ten epochs, then to 1e-9."""
    rates = [scheduled_rate(step, PAR_OPTIMIZATION, 1220) for step in (0, 609, 610, 1219)]
    assert rates[:3] == pytest.approx([3e-5, 3e-6, 3e-6])
    assert 1e-9 < rates[3] < 1.1e-9
    assert (PAR_OPTIMIZATION.batch_norm, PAR_OPTIMIZATION.weight_decay) == ("frozen", 1e-4)
    assert (PAR_OPTIMIZATION.beta1, PAR_OPTIMIZATION.beta2, PAR_OPTIMIZATION.epsilon) == (0.9, 0.98, 1e-8)
