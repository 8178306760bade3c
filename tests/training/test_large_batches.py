"""Large batches: rows of one rank against all columns, chunks, blocks that are recomputed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR, perturb_and_recover
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.clip_model import Architecture, Encoder, SmallCLIP, blocks, build
from sweeplab.losses import Share, in_modal_ssl, info_nce, mmcl
from sweeplab.pretraining.abl import unlearning_loss
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.pretraining.safeclip import cross_modal, some_of
from sweeplab.specs import Spec
from sweeplab.training import objective as hooks
from sweeplab.training import ranks
from sweeplab.training.batches import PairBatch
from sweeplab.training.loop import encode_pairs, gathered, set_training_mode, train_step
from sweeplab.training.objective import EmbeddedBatch, TrainingFacts
from sweeplab.training.optimisation import Optimization, build_optimizer, pairs_per_chunk
from sweeplab.training.recomputation import recompute_blocks

CLEANCLIP = CleanCLIP(ssl_weight=2.0)
FACTS = TrainingFacts(
    num_pairs=8,
    steps_per_epoch=1,
    epochs=1,
    global_batch_size=8,
    embed_dim=16,
    seed=0,
    labels=torch.arange(8) % 3,
    num_classes=3,
)

# --- rows of one rank against all columns ---------------------------------------------------------------------------

SOME = torch.tensor([False, False, True, True, True, False, True, True])
"""Of eight pairs; of two ranks they leave two and three, of four the first none."""

LOSSES: dict[str, Callable[[EmbeddedBatch], Tensor]] = {
    "mmcl": lambda batch: MMCL().loss(None, batch).total,
    "cleanclip": lambda batch: CLEANCLIP.loss(None, batch).total,
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
    """Images, texts, views of both, eight of width 6 each, and the scale."""
    drawn = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(0))
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
    """Notes the shape of every tensor that is made, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.shapes += [each.shape for each in (made if isinstance(made, tuple) else (made,)) if torch.is_tensor(each)]
        return made


@pytest.mark.parametrize("loss", [mmcl, info_nce, in_modal_ssl])
def test_a_rank_makes_its_rows_of_the_logits_and_never_all_of_them(loss: Callable[..., Tensor]):
    rows = [tensor.requires_grad_() for tensor in torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(0))]
    taken = rows if loss is in_modal_ssl else rows[:2]
    for share, largest in ((None, 64 * 64), (Share(8, 16, 8), 8 * 64)):
        with Shapes() as made:
            loss(*taken, torch.tensor(3.0), share=share).backward()
        assert max(shape.numel() for shape in made.shapes) == largest


@pytest.mark.parametrize("loss", LOSSES)
def test_an_objective_hands_the_ranks_share_to_its_losses(loss: str):
    """Logits of all eight pairs with each other, or of the five that are some, are square; those of a share are not."""
    for share, is_square in ((None, True), (Share(4, 8, 2), False)):
        with Shapes() as made:
            value_and_gradients(LOSSES[loss], share)
        assert bool({(8, 8), (5, 5)} & set(made.shapes)) is is_square


def batch_of(architecture: Architecture, size: int = 8) -> PairBatch:
    """Noise, with views."""
    draw = torch.Generator().manual_seed(0)
    side, length = architecture.image_size, architecture.context_length
    images = torch.randint(256, (2, size, 3, side, side), generator=draw, dtype=torch.uint8)
    tokens = torch.randint(1, 500, (2, size, length), generator=draw)
    return PairBatch(torch.arange(size), images[0], tokens[0], images[1], tokens[1])


def test_row_numbers_are_gathered_where_they_are_asked_for(tiny: Architecture, monkeypatch: pytest.MonkeyPatch):
    asked: list[Tensor] = []
    monkeypatch.setattr(ranks, "gather_rows", lambda rows: asked.append(rows) or rows)
    batch = batch_of(tiny)
    features = encode_pairs(Encoder(build(tiny, seed=0)), batch, Optimization())
    embedded = gathered(features, batch, Optimization())
    MMCL().loss(None, embedded)
    assert not any(rows is batch.rows for rows in asked)
    assert embedded.rows is embedded.rows is batch.rows
    assert sum(rows is batch.rows for rows in asked) == 1


# --- chunks ---------------------------------------------------------------------------------------------------------

VIT = Architecture(
    config={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 500, "width": 32, "heads": 2, "layers": 1},
    }
)
FORGETFUL = Architecture(config={**VIT.config, "vision_cfg": {**VIT.config["vision_cfg"], "patch_dropout": 0.5}})
"""Each image loses another half of its patches."""

PLAIN = Optimization(learning_rate=1e-2, warmup_steps=1, global_batch_size=8, epsilon=1e-2)


class CountedEncoder(Encoder):
    """Counts the images that pass, with a graph and without."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.counts = {"without": 0, "with": 0}
        self.largest = 0

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.counts["with" if torch.is_grad_enabled() else "without"] += len(images)
        self.largest = max(self.largest, len(images))
        return super().forward(images, tokens)


@dataclass
class Stepped:
    """A model after a step."""

    encoder: CountedEncoder
    losses: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Losses, gradients and weights."""
        model = self.encoder.model
        gradients = {f"{name}.grad": each.grad for name, each in model.named_parameters() if each.grad is not None}
        return {**self.losses, **gradients, **model.state_dict()}


def stepped(
    architecture: Architecture,
    optimization: Optimization,
    objective: Spec = CLEANCLIP,
    *,
    recomputes: bool = False,
    compiles: bool = False,
) -> Stepped:
    """One step on eight pairs with views."""
    model = build(architecture, seed=0)
    set_training_mode(model, optimization)
    state = hooks.init_state(objective, model, FACTS)
    if recomputes:
        recompute_blocks(model)
    encoder = CountedEncoder(model)
    if compiles:
        encoder.compile(backend="aot_eager")
    optimizer = build_optimizer(model, optimization, hooks.trained_parameters(state))
    torch.manual_seed(0)
    losses = train_step(encoder, model, optimizer, objective, state, batch_of(architecture), optimization)
    return Stepped(encoder, losses)


def assert_same_step(found: Stepped, expected: Stepped) -> None:
    assert found.tensors().keys() == expected.tensors().keys()
    for name, tensor in expected.tensors().items():
        assert_close(found.tensors()[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


FROZEN = PLAIN.replace(batch_norm="frozen")


@pytest.mark.parametrize("objective", [CLEANCLIP, PAR(), SupervisedFinetuning()], ids=lambda each: each.kind)
def test_chunks_take_the_step_of_one_piece_without_batch_norm_and_with_a_frozen_one(
    objective: Spec, tiny: Architecture
):
    for architecture, optimization in ((VIT, PLAIN), (tiny, FROZEN)):
        whole = stepped(architecture, optimization, objective)
        assert_same_step(stepped(architecture, optimization.replace(num_chunks=4), objective), whole)


def test_every_pair_is_embedded_twice_and_a_chunk_at_a_time():
    """Eight pairs with their views in four chunks."""
    encoder = stepped(VIT, PLAIN.replace(num_chunks=4)).encoder
    assert (encoder.counts, encoder.largest) == ({"without": 16, "with": 16}, 4)
    encoder = stepped(VIT, PLAIN).encoder
    assert (encoder.counts, encoder.largest) == ({"without": 0, "with": 16}, 16)


def chunks_in_one_graph(architecture: Architecture, optimization: Optimization) -> dict[str, Tensor]:
    """Gradients and buffers where the chunks are embedded one after the other and all their graphs are kept."""
    model = build(architecture, seed=0)
    set_training_mode(model, optimization)
    batch = batch_of(architecture)
    torch.manual_seed(0)
    passes = [encode_pairs(Encoder(model), part, optimization) for part in batch.chunks(optimization.num_chunks)]
    *rows, scales = zip(*passes, strict=True)
    features = (*map(torch.cat, rows), scales[0])
    CLEANCLIP.loss(None, gathered(features, batch, optimization)).total.backward()
    found = {f"{name}.grad": each.grad for name, each in model.named_parameters()}
    return found | {name: each for name, each in model.named_buffers() if name in model.state_dict()}


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param((FORGETFUL, PLAIN), id="patches dropped at random"),
        pytest.param((VIT, PLAIN.replace(precision="bfloat16")), id="bfloat16"),
        pytest.param((SmallCLIP(image_size=32, width=8).architecture(), PLAIN), id="local BatchNorm"),
    ],
)
def test_chunks_have_the_gradients_of_one_graph_over_all_and_count_their_statistics_once(setting):
    architecture, optimization = setting[0], setting[1].replace(num_chunks=4)
    found = stepped(architecture, optimization).tensors()
    for name, tensor in chunks_in_one_graph(architecture, optimization).items():
        assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        if name.endswith("num_batches_tracked"):
            assert int(tensor) == 4


def test_the_random_state_after_a_step_is_the_one_after_a_single_pass_of_all_chunks():
    stepped(FORGETFUL, PLAIN.replace(num_chunks=2))
    found = torch.random.get_rng_state()
    chunks_in_one_graph(FORGETFUL, PLAIN.replace(num_chunks=2))
    assert torch.equal(found, torch.random.get_rng_state())


@pytest.mark.slow
def test_compiled_chunks_with_a_local_batch_norm_take_the_step_of_plain_ones(tiny: Architecture):
    """By torch's graphs of both passes, without a compiler; the running statistics too."""
    chunked = PLAIN.replace(num_chunks=2)
    plain = stepped(tiny, chunked)
    torch._dynamo.utils.counters.clear()
    compiled = stepped(tiny, chunked, compiles=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()
    assert_same_step(compiled, plain)


def test_chunks_that_do_not_divide_a_ranks_share_are_refused():
    match = r"num_chunks=3 does not divide the 8 pairs of a rank .*global_batch_size=16, world_size=2.* a divisor of 8"
    with pytest.raises(ValueError, match=match):
        pairs_per_chunk(PLAIN.replace(global_batch_size=16, num_chunks=3), 2)
    assert pairs_per_chunk(PLAIN.replace(global_batch_size=16, num_chunks=4), 2) == 2


def test_one_chunk_leaves_the_digest_as_it_was_and_more_change_it():
    assert "num_chunks" not in PLAIN.canonical()
    assert PLAIN.replace(num_chunks=2).digest() != PLAIN.digest()


# --- blocks that are computed again ---------------------------------------------------------------------------------

DEEP = SmallCLIP(image_size=32, width=8, layers=(2, 1, 1, 1), text_layers=1).architecture()
"""Five blocks of a ResNet, and one of the text tower's."""


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param((VIT, PLAIN), id="ViT"),
        pytest.param((DEEP, PLAIN), id="local BatchNorm"),
        pytest.param((DEEP, PLAIN.replace(num_chunks=2)), id="local BatchNorm, in chunks"),
        pytest.param((DEEP, PLAIN.replace(batch_norm="frozen", precision="bfloat16")), id="frozen BatchNorm, bfloat16"),
    ],
)
def test_blocks_that_are_computed_again_change_no_gradient_and_no_running_statistics(setting):
    kept, again = (stepped(*setting, recomputes=recomputes).tensors() for recomputes in (False, True))
    assert kept.keys() == again.keys()
    for name, tensor in kept.items():
        assert_close(again[name], tensor, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        if "running_" in name or name.endswith("num_batches_tracked"):
            assert torch.equal(again[name], tensor)


@pytest.mark.parametrize(("architecture", "count"), [(VIT, 3), (DEEP, 6)], ids=["ViT", "ResNet"])
def test_each_block_is_computed_once_more_for_its_gradient(architecture: Architecture, count: int):
    model, calls = build(architecture, seed=0), []
    for block in blocks(model):
        next(block.children()).register_forward_hook(lambda module, inputs, output: calls.append(module))
    recompute_blocks(model)
    encoder, batch = Encoder(model), batch_of(architecture)
    with torch.no_grad():
        encode_pairs(encoder, batch, PLAIN)
    assert len(calls) == count
    features = encode_pairs(encoder, batch, PLAIN)
    assert len(calls) == 2 * count
    MMCL().loss(None, gathered(features, batch, PLAIN)).total.backward()
    assert len(calls) == 3 * count
    assert len(set(calls)) == count


def test_a_copy_of_a_model_computes_its_own_blocks_again():
    """As PAR's frozen copy, were it made later."""
    model = build(VIT, seed=0)
    recompute_blocks(model)
    twin = copy.deepcopy(model)
    batch = batch_of(VIT)
    encode_pairs(Encoder(twin), batch, PLAIN)[0].sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert twin.visual.conv1.weight.grad is not None
