"""Large batches: rows of one rank against all columns, chunks, blocks that are recomputed, compiled steps."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import perturb_and_recover
from sweeplab.clip_model import Architecture, Encoder, build
from sweeplab.losses import Share, in_modal_ssl, info_nce, mmcl
from sweeplab.pretraining.abl import unlearning_loss
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.pretraining.safeclip import cross_modal, some_of
from sweeplab.training import ranks
from sweeplab.training.batches import PairBatch
from sweeplab.training.loop import embed
from sweeplab.training.objective import EmbeddedBatch
from sweeplab.training.optimisation import Optimization

# --- rows of one rank against all columns ---------------------------------------------------------------------------

SOME = torch.tensor([False, False, True, True, True, False, True, True])
"""Of eight pairs; of two ranks they leave two and three, of four the first none."""

LOSSES: dict[str, Callable[[EmbeddedBatch], Tensor]] = {
    "mmcl": lambda batch: MMCL().loss(None, batch).total,
    "cleanclip": lambda batch: CleanCLIP(ssl_weight=2.0).loss(None, batch).total,
    "par": lambda batch: (
        perturb_and_recover(
            (batch.images, batch.texts),
            (batch.image_views.detach(), batch.text_views.detach()),
            batch.logit_scale,
            tau=4.0,
            weight=1.0,
            share=batch.share,
        ).total
    ),
    "safeclip": cross_modal,
    "safeclip's safe pairs": lambda batch: cross_modal(some_of(batch, SOME)),
    "abl": lambda batch: unlearning_loss(batch, ~SOME, weight=2.0, target=0.0).total,
}


def leaves() -> list[Tensor]:
    """Images, texts, views of both, eight of width 5 each, and the scale."""
    drawn = torch.randn(4, 8, 5, generator=torch.Generator().manual_seed(0))
    return [tensor.requires_grad_() for tensor in (*drawn.unbind(), torch.tensor(5.0))]


def value_and_gradients(loss: Callable[[EmbeddedBatch], Tensor], share: Share | None) -> list[Tensor]:
    *rows, scale = found = leaves()
    images, texts, image_views, text_views = (F.normalize(each, dim=1) for each in rows)
    value = loss(EmbeddedBatch(images, texts, scale, image_views, text_views, share=share))
    value.backward()
    return [value.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in found)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_the_ranks_shares_have_the_loss_and_the_gradients_of_the_whole_as_their_mean(loss: str, num_ranks: int):
    size = 8 // num_ranks
    shares = [Share(rank * size, (rank + 1) * size, num_ranks) for rank in range(num_ranks)]
    found = zip(*(value_and_gradients(LOSSES[loss], share) for share in shares), strict=True)
    for parts, whole in zip(found, value_and_gradients(LOSSES[loss], None), strict=True):
        assert_close(torch.stack(parts).mean(dim=0), whole, rtol=1e-5, atol=1e-6)


def test_a_share_by_hand():
    """Two orthogonal pairs at scale ln 3: each row's share is its own ln(4/3), of two ranks one row each."""
    pairs, scale = torch.eye(2), torch.tensor(3.0).log()
    for rank in range(2):
        assert_close(info_nce(pairs, pairs, scale, share=Share(rank, rank + 1, 2)), torch.tensor(4 / 3).log())


def test_a_share_of_some_rows_by_hand():
    """Of rows 2, 3, 4, 6 and 7 the rank of rows 2 to 5 has the first three; the one of rows 0 and 1 has none."""
    assert Share(2, 6, 2).among(SOME) == Share(0, 3, 2)
    assert Share(0, 2, 4).among(SOME) == Share(0, 0, 4)


class Shapes(TorchDispatchMode):
    """Notes the number of elements of every tensor that is made, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.sizes += [each.numel() for each in (made if isinstance(made, tuple) else (made,)) if torch.is_tensor(each)]
        return made


@pytest.mark.parametrize("loss", [mmcl, info_nce, in_modal_ssl])
def test_a_rank_makes_its_rows_of_the_logits_and_never_all_of_them(loss: Callable[..., Tensor]):
    rows = [tensor.requires_grad_() for tensor in torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(0))]
    taken = rows if loss is in_modal_ssl else rows[:2]
    for share, largest in ((None, 64 * 64), (Share(8, 16, 8), 8 * 64)):
        with Shapes() as made:
            loss(*taken, torch.tensor(3.0), share=share).backward()
        assert max(made.sizes) == largest


def batch_of(architecture: Architecture, size: int = 8) -> PairBatch:
    """Noise, with views."""
    draw = torch.Generator().manual_seed(0)
    side, length = architecture.image_size, architecture.context_length
    images = torch.randint(256, (2, size, 3, side, side), generator=draw, dtype=torch.uint8)
    tokens = torch.randint(1, 49000, (2, size, length), generator=draw)
    return PairBatch(torch.arange(size), images[0], tokens[0], images[1], tokens[1])


def test_row_numbers_are_gathered_where_they_are_asked_for(tiny: Architecture, monkeypatch: pytest.MonkeyPatch):
    gathered: list[Tensor] = []
    monkeypatch.setattr(ranks, "gather_rows", lambda rows: gathered.append(rows) or rows)
    batch = batch_of(tiny)
    embedded = embed(Encoder(build(tiny, seed=0)), batch, Optimization())
    MMCL().loss(None, embedded)
    assert not any(rows is batch.rows for rows in gathered)
    assert embedded.rows is embedded.rows is batch.rows
    assert sum(rows is batch.rows for rows in gathered) == 1
