"""Ranks: the identity in one process; two processes take the step of one with the whole batch."""

import warnings
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.attacks.badnet import BadNet
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cleaning.par import PAR
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.clip_model import Encoder, SmallCLIP, build, tokenizer, trimmed
from sweeplab.data.augmentation import AutoAugmentView
from sweeplab.data.fruit_stall import ZERO_SHOT_TEMPLATES, FruitStallTest
from sweeplab.evaluation.measure import Evaluation, Measure, Trigger
from sweeplab.evaluation.zero_shot import class_weights
from sweeplab.losses import mmcl
from sweeplab.pretraining.abl import ABL
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL
from sweeplab.pretraining.roclip import RoCLIP
from sweeplab.pretraining.safeclip import SafeCLIP
from sweeplab.records import Measurement, Outcomes, Point
from sweeplab.specs import Spec
from sweeplab.training import loop, ranks
from sweeplab.training import objective as hooks
from sweeplab.training.batches import ImageViews, PairBatch
from sweeplab.training.loop import Run, Training, on_all_ranks, prepare_batch_norm, train, train_step
from sweeplab.training.objective import EmbeddedBatch, Loss, TrainingFacts
from sweeplab.training.optimisation import Optimization


class OwnHead(Spec):
    """A head of which each rank takes its own rows, a number that only the rank of the first pair needs, and one that
    nothing depends on."""

    kind: Literal["own-head"] = "own-head"

    def init_state(self, model: nn.Module, facts: TrainingFacts) -> nn.Module:
        state = nn.Module()
        state.head = nn.Linear(facts.embed_dim, facts.embed_dim)
        with torch.no_grad():
            state.head.weight.copy_(torch.eye(facts.embed_dim) + 0.1)
            state.head.bias.fill_(0.05)
        state.of_first, state.unused = (nn.Parameter(torch.tensor(0.5)) for _ in range(2))
        return state

    def loss(self, state: nn.Module, batch: EmbeddedBatch) -> Loss:
        projected = F.normalize(state.head(batch.images), dim=-1)
        total = mmcl(projected, batch.texts, batch.logit_scale, share=batch.share)
        if batch.share is None or batch.share.start == 0:
            total = total + state.of_first * batch.texts[0, 0] * ranks.world_size()
        return Loss(total, {})


class MeanOfTexts(Spec):
    """Captions and their views are added, so that autograd hands one gradient to both."""

    kind: Literal["mean-of-texts"] = "mean-of-texts"

    @property
    def image_views(self) -> AutoAugmentView:
        return AutoAugmentView()

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        assert batch.text_views is not None
        texts = F.normalize(batch.texts + batch.text_views, dim=-1)
        return Loss(mmcl(batch.images, texts, batch.logit_scale, share=batch.share), {})


OBJECTIVES = {
    "mmcl": MMCL(),
    "mmcl+ssl": MMCLWithSSL(ssl_weight=0.5),
    "cleanclip": CleanCLIP(ssl_weight=2.0),
    "par": PAR(learns_temperature=True),
    "deep-clustering": DeepClustering(num_clusters=3),
    "supervised": SupervisedFinetuning(),
    "roclip": RoCLIP(break_every=2, pool_size=32),
    "roclip-both": RoCLIP(break_every=1, pool_size=32, lookups="both"),
    "safeclip-unimodal": SafeCLIP(warmup_epochs=1, pool_size=32),
    "safeclip-sum": SafeCLIP(
        warmup_epochs=0, slow_epochs=0, safe_rule="top-share", first_share=0.5, mixing="sum", pool_size=32
    ),
    "safeclip-clip": SafeCLIP(warmup_epochs=0, slow_epochs=2, pool_size=32),
    "abl": ABL(detect_at=1, num_flagged=6),
    "own-head": OwnHead(),
    "mean-of-texts": MeanOfTexts(),
}
ON_FOUR_RANKS = ("mmcl+ssl", "par", "roclip-both", "safeclip-sum", "abl", "own-head")
IN_CHUNKS = ("mmcl+ssl", "supervised", "par", "own-head")  # every parameter reached, the text tower not, no promise
ARCHITECTURE = SmallCLIP(image_size=32, width=8, embed_dim=16, text_width=16, text_layers=1).architecture()
# A large epsilon keeps AdamW's first step smooth where a gradient is zero but for rounding. Clipping acts on all of it.
OPTIMIZATION = Optimization(
    learning_rate=1e-2, warmup_steps=1, global_batch_size=8, epsilon=1e-2, batch_norm="frozen", max_gradient_norm=1.0
)


# --- one process ----------------------------------------------------------------------------------------------------


def test_one_process_is_rank_0_of_1():
    assert not ranks.is_distributed()
    assert (ranks.rank(), ranks.world_size()) == (0, 1)


def test_without_a_process_group_every_helper_is_the_identity():
    rows, box = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), object()
    model = nn.BatchNorm1d(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert ranks.gather_rows(rows) is rows
    assert ranks.gather_objects(box) == [box]
    assert ranks.broadcast_object(box) is box
    ranks.broadcast_buffers(model)
    ranks.barrier()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("batch", "num_ranks", "share"), [(64, 1, 64), (64, 8, 8), (8, 8, 1)])
def test_the_batch_is_split_evenly(batch: int, num_ranks: int, share: int):
    assert ranks.per_rank(batch, num_ranks) == share


@pytest.mark.parametrize(("batch", "num_ranks"), [(100, 8), (2, 3)])
def test_a_batch_that_does_not_split_is_refused(batch: int, num_ranks: int):
    match = f"global_batch_size={batch} does not split over world_size={num_ranks}; choose a multiple of {num_ranks}"
    with pytest.raises(ValueError, match=match):
        ranks.per_rank(batch, num_ranks)


# --- two processes --------------------------------------------------------------------------------------------------


class DrawnPairs:
    """16 pairs of noise, captions of 1 to 16 tokens; a row's pixels and tokens depend on the row alone."""

    is_in_memory = True
    shards = None
    labels = torch.arange(16) % 3
    num_classes = 3

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.images, self.image_views = torch.randint(256, (2, 16, 3, 32, 32), generator=draw, dtype=torch.uint8)
        drawn = torch.randint(1, 49000, (2, 16, 16), generator=draw)
        self.tokens, self.token_views = torch.where(torch.arange(16) <= torch.arange(16)[:, None], drawn, 0)
        self.has_views = False

    def __len__(self) -> int:
        return 16

    def use_views(self, image_views: ImageViews | None, **augmentation: object) -> None:
        self.has_views = image_views is not None

    def first_copies(self, epoch: int, rows: Sequence[int]) -> PairBatch:
        index = torch.as_tensor(rows)
        return PairBatch(index, self.images[index], trimmed(self.tokens[index]))

    def __getitems__(self, keys: list[tuple[int, int]]) -> PairBatch:
        rows = torch.tensor([row for _, row in keys])
        if not self.has_views:
            return PairBatch(rows, self.images[rows], trimmed(self.tokens[rows]))
        images, tokens = self.image_views[rows], trimmed(self.token_views[rows])
        return PairBatch(rows, self.images[rows], trimmed(self.tokens[rows]), images, tokens)


class Notebook:
    attempt = 1

    def __init__(self) -> None:
        self.points: list[Point] = []

    def report(self, point: Point, outcomes: Outcomes) -> None:
        self.points.append(point)

    def should_stop(self) -> bool:
        return False

    def heartbeat(self) -> None:
        pass


def measure(model: nn.Module, classifier: object = None) -> tuple[Measurement, Outcomes]:
    return Measurement(1, 2, 0, 2, "evaluation"), Outcomes(b"", 0, b"", 0)


def one_step(objective: Spec, num_chunks: int = 1) -> dict[str, Tensor]:
    """Loss, gradients and weights of one step on this rank's half of eight pairs (all of them in one process).

    The step is the first of an epoch that the objective has prepared from all sixteen pairs.
    """
    unclipped = OPTIMIZATION.replace(max_gradient_norm=None, num_chunks=num_chunks)
    run = Run(objective=objective, optimization=unclipped, epochs=2, seed=0)
    pairs = DrawnPairs()
    training = Training(build(ARCHITECTURE, seed=0), pairs, run, measure, Notebook())
    model = training.model
    with torch.no_grad():  # away from where PAR's distance has no gradient
        model.visual.attnpool.c_proj.weight.mul_(1.3).add_(0.02)
    encoder = on_all_ranks(Encoder(model), objective, unclipped)
    share = 8 // ranks.world_size()
    hooks.start_epoch(objective, training.state, training.epoch_facts(1))
    stage = hooks.passes(objective, training.state, 1, 16)[0].stage
    batch = pairs.__getitems__([(1, row) for row in range(ranks.rank() * share, (ranks.rank() + 1) * share)])
    training.set_mode()
    parts = train_step(encoder, model, training.optimizer, objective, training.state, batch, unclipped, stage=stage)
    found = {f"loss {name}": value for name, value in parts.items()}
    state = [] if training.state is None else training.state.named_parameters()
    for name, parameter in [*model.named_parameters(), *state]:
        if parameter.requires_grad and parameter.grad is not None:
            found[f"gradient {name}"] = parameter.grad
        found[f"weight {name}"] = parameter.detach()
    return found


def two_epochs(objective: Spec, batch_norm: str, num_chunks: int = 1, *, compiles: bool = False) -> dict[str, Tensor]:
    """Weights, buffers and recorded losses after two epochs of the loop."""
    model, notebook = build(ARCHITECTURE, seed=0), Notebook()
    optimization = OPTIMIZATION.replace(batch_norm=batch_norm, num_chunks=num_chunks)
    run = Run(objective, optimization, epochs=2, seed=0, compile=compiles)
    train(model, DrawnPairs(), run, measure=measure, context=notebook)
    found = {f"weight {name}": tensor.detach() for name, tensor in model.state_dict().items()}
    for point in notebook.points:
        found |= {f"epoch {point.epoch} {name}": torch.tensor(value) for name, value in point.train.items()}
    return found


def buffers_at_points() -> list[Tensor]:
    """What is measured of the model's buffers at the start, inside an epoch and at its end."""
    seen = []

    def look(model: nn.Module, classifier: object = None) -> tuple[Measurement, Outcomes]:
        seen.append(torch.cat([buffer.flatten().float() for buffer in model.buffers()]))
        return measure(model)

    run = Run(MMCL(), OPTIMIZATION.replace(batch_norm="local"), epochs=1, seed=0, measure_at=(1,))
    train(build(ARCHITECTURE, seed=0), DrawnPairs(), run, measure=look, context=Notebook())
    return seen


def refused_batch_norm() -> str:
    try:
        prepare_batch_norm(build(ARCHITECTURE, seed=0), OPTIMIZATION.replace(batch_norm="sync"))
    except ValueError as error:
        return str(error)
    return ""


def helpers() -> dict[str, object]:
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(ranks.rank() + 1.0)
    ranks.broadcast_buffers(model)
    rows = torch.full((2, 1), float(ranks.rank()), requires_grad=True)
    gathered = ranks.gather_rows(rows)
    # Each rank weighs the rows by another factor; what comes back for a rank's rows is the sum over ranks.
    (gathered.flatten() * torch.tensor([1.0, 2.0, 3.0, 4.0]) * 10.0 ** ranks.rank()).sum().backward()
    return {
        "rank": (ranks.rank(), ranks.world_size()),
        "objects": ranks.gather_objects(f"rank {ranks.rank()}"),
        "broadcast": ranks.broadcast_object(f"rank {ranks.rank()}"),
        "buffer": model.running_mean.tolist(),
        "gathered": gathered.flatten().tolist(),
        "gradient": rows.grad.flatten().tolist(),
    }


def zero_shot_weights() -> Tensor:
    """Of three classes with five prompts each; one of two ranks encodes two of them."""
    tokens = trimmed(DrawnPairs().tokens[:15]).view(3, 5, -1)
    return class_weights(build(ARCHITECTURE, seed=0).eval(), tokens, device=torch.device("cpu"), batch_size=4)


def measured(folder: Path) -> dict[str, object]:
    """Of 31 images, 29 of which are no strawberries and carry a trigger: neither number splits over two ranks."""
    model = build(ARCHITECTURE, seed=0).train()
    with torch.no_grad():  # running statistics of some images, so that not all get the same class
        for noise in torch.randn(20, 16, 3, 32, 32, generator=torch.Generator().manual_seed(0)):
            model.encode_image(noise)
    test = FruitStallTest(num_images=32, image_size=32)
    evaluation = Evaluation(test=test, templates=ZERO_SHOT_TEMPLATES, batch_size=4)
    trigger = Trigger(BadNet(patch_size=8), "strawberry")
    images = test.read(folder).subset(range(31))
    measure = Measure(evaluation, images, 32, tokenize=tokenizer(ARCHITECTURE), trigger=trigger)
    measurement, outcomes = measure(model)
    counts = (measurement.accuracy_k, measurement.accuracy_n, measurement.asr_k, measurement.asr_n, measurement.top5_k)
    return {"counts": counts, "correct": outcomes.correct_mask().tolist(), "hits": outcomes.hit_mask().tolist()}


def no_number_on_rank_1() -> str:
    def compute() -> int:
        if ranks.rank() == 1:
            raise FloatingPointError("no number")
        return 1

    try:
        return str(ranks.gather_computed(compute))
    except FloatingPointError as error:
        return str(error)


def no_embedding_on_rank_1() -> str:
    run = Run(objective=MMCL(), optimization=OPTIMIZATION, epochs=1, seed=0)
    training = Training(build(ARCHITECTURE, seed=0), DrawnPairs(), run, measure, Notebook())
    if ranks.rank() == 1:
        training.model.text_projection.detach().fill_(torch.nan)
    try:
        training.embed_all(epoch=1)
    except FloatingPointError as error:
        return str(error)
    return ""


def warnings_of_ddp() -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        on_all_ranks(Encoder(build(ARCHITECTURE, seed=0)), MMCL(), OPTIMIZATION)
    return [str(warning.message) for warning in told]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous, patience = f"file://{folder}/rendezvous", timedelta(minutes=2)  # with a rank that does not come
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=patience)
    found = {
        "steps": {name: one_step(objective) for name, objective in OBJECTIVES.items()},
        "epochs": {name: two_epochs(objective, "frozen") for name, objective in OBJECTIVES.items()},
        "steps in chunks": {name: one_step(OBJECTIVES[name], num_chunks=2) for name in IN_CHUNKS},
        "epochs in chunks": two_epochs(MMCLWithSSL(ssl_weight=0.5), "frozen", num_chunks=2),
        "local": two_epochs(MMCL(), "local"),
        "buffers at points": buffers_at_points(),
        "sync": refused_batch_norm(),
        "helpers": helpers(),
        "computed": ranks.gather_computed(lambda: ranks.rank()),
        "no number": no_number_on_rank_1(),
        "no embedding": no_embedding_on_rank_1(),
        "warnings": warnings_of_ddp(),
        "class weights": zero_shot_weights(),
        "measured": measured(Path(folder) / f"data-{rank}"),
    }
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two gloo processes found; they are started once for all tests of this file."""
    folder = tmp_path_factory.mktemp("two-ranks")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def work_of_four(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4)
    found = {name: one_step(OBJECTIVES[name]) for name in ON_FOUR_RANKS}
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


def work_compiled(rank: int, folder: str) -> None:
    """By torch's graphs of both passes, without the C++ compiler: to build kernels takes minutes on a busy machine."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    compiled: list[Encoder] = []

    def compile_graphs(encoder: Encoder) -> None:
        compiled.append(encoder)
        nn.Module.compile(encoder, backend="aot_eager")

    loop.check_compiler = lambda for_gpu: None
    Encoder.compile = compile_graphs
    found = {}
    for num_chunks in (1, 2):
        for compiles in (False, True):
            name = f"{num_chunks} {'compiled' if compiles else 'plain'}"
            found[name] = two_epochs(MMCLWithSSL(ssl_weight=0.5), "frozen", num_chunks, compiles=compiles)
        found[f"{num_chunks} graphs"] = dict(torch._dynamo.utils.counters["stats"])
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    found["compiled"] = len(compiled)
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


def check_close(found: dict[str, Tensor], expected: dict[str, Tensor], word: str, relative: float = 1e-4) -> None:
    names = [name for name in expected if name.startswith(word)]
    assert names
    assert found.keys() == expected.keys()
    for name in names:
        difference = (found[name].float() - expected[name].float()).norm()
        # Two halves are summed in another order than one whole; element by element that shows where sums cancel.
        assert float(difference) <= relative * float(expected[name].float().norm()) + 5e-6, name


@cache
def step_of_one_process(objective: str) -> dict[str, Tensor]:
    """`one_step` in this process, which several tests compare with."""
    return one_step(OBJECTIVES[objective])


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("word", ["loss", "gradient", "weight"])
def test_two_ranks_take_the_step_of_one_process(objective: str, word: str, two_ranks: list[dict]):
    for found in two_ranks:
        check_close(found["steps"][objective], step_of_one_process(objective), word, relative=1e-5)


@pytest.mark.slow
def test_four_ranks_take_the_step_of_one_process(tmp_path: Path):
    torch.multiprocessing.spawn(work_of_four, args=(str(tmp_path),), nprocs=4)
    for rank in range(4):
        for objective, found in torch.load(tmp_path / f"rank-{rank}.pt").items():
            for word in ("loss", "gradient", "weight"):
                check_close(found, step_of_one_process(objective), word, relative=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "supervised"])  # it has no temperature
def test_the_temperature_has_the_gradient_of_one_process(objective: str, two_ranks: list[dict]):
    found, expected = two_ranks[1]["steps"][objective], step_of_one_process(objective)
    assert abs(float(expected["gradient logit_scale"])) > 1e-4
    assert_close(found["gradient logit_scale"], expected["gradient logit_scale"], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_ranks_run_the_epochs_of_one_process(objective: str, two_ranks: list[dict]):
    expected = two_epochs(OBJECTIVES[objective], "frozen")
    for found in two_ranks:
        check_close(found["epochs"][objective], expected, "epoch")
        for name in expected:
            if name.startswith("weight"):
                assert_close(found["epochs"][objective][name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_ranks_in_chunks_take_the_steps_of_one_process_in_one_piece(two_ranks: list[dict]):
    expected = two_epochs(OBJECTIVES["mmcl+ssl"], "frozen")
    for found in two_ranks:
        for objective, step in found["steps in chunks"].items():
            for word in ("loss", "gradient", "weight"):
                check_close(step, step_of_one_process(objective), word, relative=1e-5)
        check_close(found["epochs in chunks"], expected, "epoch")


@pytest.mark.slow
def test_two_ranks_in_compiled_steps_find_the_losses_of_plain_ones_whole_and_in_chunks(tmp_path: Path):
    torch.multiprocessing.spawn(work_compiled, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank-{rank}.pt")
        assert found["compiled"] == 2
        for num_chunks in (1, 2):
            assert found[f"{num_chunks} graphs"]["unique_graphs"] > 0
            compiled, plain = found[f"{num_chunks} compiled"], found[f"{num_chunks} plain"]
            assert any(name.startswith("epoch 2") for name in plain)
            assert compiled.keys() == plain.keys()
            for name, value in plain.items():
                assert_close(compiled[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
def test_local_batch_norm_ends_every_epoch_with_rank_0s_statistics(two_ranks: list[dict]):
    first, second = (found["local"] for found in two_ranks)
    moved = [name for name in first if "running_" in name]
    assert moved
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(float(first[name].abs().sum()) not in (0.0, float(first[name].numel())) for name in moved)


@pytest.mark.slow
def test_at_every_point_all_ranks_measure_rank_0s_statistics(two_ranks: list[dict]):
    first, second = (found["buffers at points"] for found in two_ranks)
    assert len(first) == 3
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1])


@pytest.mark.slow
def test_synchronous_batch_norm_is_refused_without_a_gpu(two_ranks: list[dict]):
    assert all("choose 'local' or 'frozen'" in found["sync"] for found in two_ranks)


@pytest.mark.slow
def test_the_helpers_by_hand(two_ranks: list[dict]):
    """Rank r weighs row k by 10^r (k + 1): rank 0's rows get 1 + 10 and 2 + 20, rank 1's 3 + 30 and 4 + 40."""
    for rank, found in enumerate(two_ranks):
        assert found["helpers"] == {
            "rank": (rank, 2),
            "objects": ["rank 0", "rank 1"],
            "broadcast": "rank 0",
            "buffer": [1.0, 1.0],
            "gathered": [0.0, 0.0, 1.0, 1.0],
            "gradient": [[11.0, 22.0], [33.0, 44.0]][rank],
        }


@pytest.mark.slow
def test_two_ranks_share_the_prompts_and_find_the_class_weights_of_one(two_ranks: list[dict]):
    for found in two_ranks:
        assert_close(found["class weights"], zero_shot_weights(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_ranks_measure_every_images_outcome_as_one_process_does(two_ranks: list[dict], tmp_path: Path):
    """Rank 0 takes 16 and 15 of the images, rank 1 takes 15 and 14."""
    expected = measured(tmp_path)
    assert (len(expected["correct"]), len(expected["hits"])) == (31, 29)
    assert 0 < sum(expected["correct"]) < 31
    assert 0 < sum(expected["hits"]) < 29
    for found in two_ranks:
        assert found["measured"] == expected


@pytest.mark.slow
def test_what_one_rank_cannot_compute_fails_on_all(two_ranks: list[dict]):
    assert [found["computed"] for found in two_ranks] == [[0, 1], [0, 1]]
    assert [found["no number"] for found in two_ranks] == ["no number", "no number"]


@pytest.mark.slow
def test_an_embedding_that_is_no_number_on_one_rank_ends_the_look_at_all_pairs_on_all(two_ranks: list[dict]):
    """Rank 1 embeds the last eight captions."""
    expected = "8 of 8 caption embeddings are not finite or have norm zero at step 0 with learning_rate=0.01"
    assert [found["no embedding"].partition(";")[0] for found in two_ranks] == [expected, expected]


@pytest.mark.slow
def test_several_ranks_begin_without_a_warning(two_ranks: list[dict]):
    assert [found["warnings"] for found in two_ranks] == [[], []]
