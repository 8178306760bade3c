"""The losses by hand, against the papers' formulas in slow loops, and their properties."""

import doctest
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sweeplab import losses
from sweeplab.losses import in_modal_ssl, info_nce, mmcl

LN_3 = torch.tensor(math.log(3.0))
EYE = torch.eye(2)
SAME = torch.tensor([[1.0, 0.0], [1.0, 0.0]])


def unit_rows(seed: int, count: int = 5, width: int = 7) -> Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


def test_the_examples_in_the_docstrings_hold():
    ran = doctest.testmod(losses)
    assert ran.failed == 0
    assert ran.attempted >= 7


def test_info_nce_by_hand():
    """Two orthogonal pairs at scale ln 3: each row's softmax is 3/(3+1), so the loss is ln(4/3)."""
    assert_close(info_nce(EYE, EYE, LN_3), torch.tensor(4 / 3).log())


def test_info_nce_takes_queries_as_rows_by_hand():
    """Both keys are e1. Queries e1, e2 see equal keys: ln 2. The other way round, query 1 (e1) finds key e1 with 3/4
    and query 2 (e1) finds key e2 with 1/4: (ln(4/3) + ln 4) / 2."""
    assert_close(info_nce(EYE, SAME, LN_3), torch.tensor(2.0).log())
    assert_close(info_nce(SAME, EYE, LN_3), torch.tensor((math.log(4 / 3) + math.log(4)) / 2))


def test_mmcl_averages_both_directions_by_hand():
    """Images e1, e2 and texts e1, e1: images find texts with ln 2, texts find images with (ln(4/3) + ln 4) / 2."""
    expected = (math.log(2) + (math.log(4 / 3) + math.log(4)) / 2) / 2
    assert_close(mmcl(EYE, SAME, LN_3), torch.tensor(expected))


def test_in_modal_ssl_averages_images_and_texts_by_hand():
    """Images find their views at ln(4/3); both text views are e1, so texts e1, e2 see equal keys: ln 2."""
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert_close(in_modal_ssl(EYE, EYE, EYE, SAME, LN_3), torch.tensor(expected))


def mmcl_in_loops(images: Tensor, texts: Tensor, temperature: float) -> float:
    """Verma et al., eq. 1: -1/2N (sum_j log softmax over texts + sum_k log softmax over images)."""
    count, total = len(images), 0.0
    similarity = [[float(images[j] @ texts[k]) / temperature for k in range(count)] for j in range(count)]
    for j in range(count):
        total += math.log(math.exp(similarity[j][j]) / sum(math.exp(similarity[j][k]) for k in range(count)))
    for k in range(count):
        total += math.log(math.exp(similarity[k][k]) / sum(math.exp(similarity[j][k]) for j in range(count)))
    return -total / (2 * count)


def ssl_in_loops(images: Tensor, image_views: Tensor, texts: Tensor, text_views: Tensor, temperature: float) -> float:
    """CleanCLIP, eq. 3: -1/2N (sum over images + sum over texts), each original against all augmented views."""
    count, total = len(images), 0.0
    for originals, views in ((images, image_views), (texts, text_views)):
        for j in range(count):
            own = math.exp(float(originals[j] @ views[j]) / temperature)
            total += math.log(own / sum(math.exp(float(originals[j] @ views[k]) / temperature) for k in range(count)))
    return -total / (2 * count)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_mmcl_is_the_formula_of_the_paper(temperature: float):
    images, texts = unit_rows(0), unit_rows(1)
    expected = mmcl_in_loops(images, texts, temperature)
    assert float(mmcl(images, texts, torch.tensor(1 / temperature, dtype=torch.float64))) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
def test_in_modal_ssl_is_the_formula_of_the_paper(temperature: float):
    rows = [unit_rows(seed) for seed in range(4)]
    loss = in_modal_ssl(*rows, torch.tensor(1 / temperature, dtype=torch.float64))
    assert float(loss) == pytest.approx(ssl_in_loops(*rows, temperature))


def test_mmcl_is_the_mean_of_info_nce_in_both_directions():
    images, texts, scale = unit_rows(0), unit_rows(1), torch.tensor(10.0, dtype=torch.float64)
    assert_close(mmcl(images, texts, scale), (info_nce(images, texts, scale) + info_nce(texts, images, scale)) / 2)


def test_mmcl_treats_images_and_texts_alike():
    images, texts, scale = unit_rows(0), unit_rows(1), torch.tensor(10.0, dtype=torch.float64)
    assert_close(mmcl(images, texts, scale), mmcl(texts, images, scale))


def test_in_modal_ssl_tells_originals_from_views():
    images, image_views, texts, text_views = (unit_rows(seed) for seed in range(4))
    scale = torch.tensor(10.0, dtype=torch.float64)
    forward = in_modal_ssl(images, image_views, texts, text_views, scale)
    assert abs(float(forward - in_modal_ssl(image_views, images, text_views, texts, scale))) > 1e-3


def test_in_modal_ssl_never_compares_images_with_texts():
    """Another coordinate system for the texts and their views leaves all their inner products, and so the loss."""
    images, image_views, texts, text_views = (unit_rows(seed) for seed in range(4))
    turn = torch.linalg.qr(unit_rows(9, 7, 7))[0]
    scale = torch.tensor(10.0, dtype=torch.float64)
    before = in_modal_ssl(images, image_views, texts, text_views, scale)
    assert_close(in_modal_ssl(images, image_views, texts @ turn, text_views @ turn, scale), before)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_keys_that_cannot_be_told_apart_cost_log_b(count: int):
    queries, keys = unit_rows(0, count), unit_rows(1, 1).expand(count, -1)
    scale = torch.tensor(100.0, dtype=torch.float64)
    assert float(info_nce(queries, keys, scale)) == pytest.approx(math.log(count))
    assert float(mmcl(keys, keys, scale)) == pytest.approx(math.log(count))
    assert float(in_modal_ssl(queries, keys, queries, keys, scale)) == pytest.approx(math.log(count))


def test_the_order_of_the_pairs_does_not_matter():
    images, texts, scale = unit_rows(0), unit_rows(1), torch.tensor(10.0, dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert_close(mmcl(images[order], texts[order], scale), mmcl(images, texts, scale))


def test_gradients_reach_both_sides_and_the_scale():
    images, texts = unit_rows(0).requires_grad_(), unit_rows(1).requires_grad_()
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    mmcl(images, texts, scale).backward()
    assert all(float(tensor.grad.abs().sum()) > 0 for tensor in (images, texts, scale))


@pytest.mark.parametrize("loss", [info_nce, mmcl])
@pytest.mark.parametrize("keys", [torch.ones(3, 7), torch.ones(5, 6), torch.ones(5)])
def test_rows_that_do_not_pair_up_are_refused(loss, keys: Tensor):
    with pytest.raises(ValueError, match="must be two equal"):
        loss(torch.ones(5, 7), keys, torch.tensor(1.0))


def test_views_that_do_not_pair_up_are_refused():
    rows = torch.ones(5, 7)
    with pytest.raises(ValueError, match="must be two equal"):
        in_modal_ssl(rows, rows, rows, rows[:4], torch.tensor(1.0))
