"""What holds for every pre-training objective and every cleaning method, run by the real loop on a tiny model."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fabricated import OF_FEW_WORDS, number_words
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from sweeplab.cleaning import METHODS
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cleaning.par import PAR
from sweeplab.clip_model import Architecture, Encoder, build, normalise_pixels
from sweeplab.data.augmentation import SimCLRView
from sweeplab.data.tables import PairTable
from sweeplab.data.training_pairs import TrainingPairs
from sweeplab.pretraining import OBJECTIVES
from sweeplab.pretraining.abl import ABL
from sweeplab.pretraining.roclip import RoCLIP
from sweeplab.pretraining.safeclip import SafeCLIP
from sweeplab.records import Measurement, Outcomes, Point
from sweeplab.specs import Spec
from sweeplab.training import checkpoints, loop
from sweeplab.training import objective as hooks
from sweeplab.training.batches import PairBatch
from sweeplab.training.loop import Run, Training, train, train_step
from sweeplab.training.optimisation import Optimization

OPTIMIZATION = Optimization(learning_rate=2e-3, warmup_steps=2, global_batch_size=16)
SETTINGS = {
    "safeclip": SafeCLIP(warmup_epochs=1, slow_epochs=1, pool_size=32, augmentation=SimCLRView()),
    "safeclip-top": SafeCLIP(
        warmup_epochs=0, slow_epochs=0, safe_rule="top-share", first_share=0.5, nearest_neighbours=False
    ),
    "safeclip-sum": SafeCLIP(
        warmup_epochs=0,
        slow_epochs=0,
        safe_rule="top-share",
        first_share=0.5,
        mixing="sum",
        rescore_every=2,
        rescore_share=0.5,
        pool_size=32,
    ),
    "roclip": RoCLIP(pool_size=40),
    "roclip-both": RoCLIP(pool_size=40, break_every=1, lookups="both"),
    "abl": ABL(detect_at=2, num_flagged=20, remove_at=(2,), remove_share=0.1),
    "deep-clustering": DeepClustering(num_clusters=5),
}
EVERY = {member().kind: SETTINGS.get(member().kind, member()) for member in (*OBJECTIVES, *METHODS)}
EVERY |= {name: SETTINGS[name] for name in ("safeclip-top", "safeclip-sum", "roclip-both")}
every = pytest.mark.parametrize("objective", EVERY.values(), ids=EVERY.keys())


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


@pytest.fixture(scope="module")
def tiny() -> Architecture:
    return OF_FEW_WORDS


@pytest.fixture(scope="module")
def pairs(stall_pairs: PairTable) -> TrainingPairs:
    """64 pairs of five classes: four steps of 16."""
    labels = torch.arange(64) % 5
    return TrainingPairs(stall_pairs, 32, tokenize=number_words, seed=0, labels=labels, num_classes=5)


def ready(objective: Spec, tiny: Architecture, pairs: TrainingPairs, epoch: int = 1, rate: float = 2e-3) -> Training:
    """A run at the start of an epoch."""
    optimization = OPTIMIZATION.replace(learning_rate=rate)
    run = Run(objective=objective, optimization=optimization, epochs=3, seed=0)
    training = Training(build(tiny, seed=0), pairs, run, measure, Notebook())
    training.encoder = Encoder(training.model)
    hooks.start_epoch(objective, training.state, training.epoch_facts(epoch))
    training.set_mode()
    return training


def step(training: Training, batch: PairBatch, stage: str) -> dict[str, Tensor]:
    return train_step(
        training.encoder,
        training.model,
        training.optimizer,
        training.objective,
        training.state,
        batch,
        training.optimization,
        stage=stage,
    )


def stages(training: Training, epoch: int) -> list[str]:
    return [walk.stage for walk in hooks.passes(training.objective, training.state, epoch, 64)]


@every
def test_it_reads_back_from_json_as_an_equal_value(objective: Spec):
    assert type(objective).model_validate(json.loads(json.dumps(objective.to_json()))) == objective


@every
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_step_gives_finite_named_parts_and_leaves_its_inputs(
    objective: Spec, epoch: int, tiny: Architecture, pairs: TrainingPairs
):
    training = ready(objective, tiny, pairs, epoch)
    batch = pairs.__getitems__([(epoch, row) for row in range(16)])
    before = [tensor.clone() for tensor in (batch.images, batch.tokens)]
    for stage in stages(training, epoch):
        parts = step(training, batch, stage)
        assert len(parts) >= 2
        assert all(part.shape == () and part.isfinite() for part in parts.values())
    assert torch.equal(batch.images, before[0])
    assert torch.equal(batch.tokens, before[1])


@every
def test_8_steps_on_one_batch_lower_the_stated_loss(objective: Spec, tiny: Architecture, pairs: TrainingPairs):
    """Each stage by itself; neighbours come from a pool that moves on, so a moving mean of the end is compared."""
    for stage in set(stages(ready(objective, tiny, pairs), 1)):
        training = ready(objective, tiny, pairs)
        batch = pairs.__getitems__([(1, row) for row in range(16)])
        losses = [float(step(training, batch, stage)["loss"]) for _ in range(8)]
        assert sum(losses[-3:]) / 3 < losses[0] - 0.2


@dataclass(frozen=True)
class Finished:
    """A run of three epochs, measured after their first step and at their end."""

    objective: Spec
    tiny: Architecture
    pairs: TrainingPairs
    weights: dict[str, Tensor]
    points: list[Point]
    checkpoints: Path | None

    @classmethod
    def run(
        cls, objective: Spec, tiny: Architecture, pairs: TrainingPairs, checkpoints: Path | None, **fields: object
    ) -> "Finished":
        model, notebook = build(tiny, seed=0), Notebook()
        common = {"epochs": 3, "seed": 0, "measure_at": (1,), "checkpoint_folder": checkpoints}
        run = Run(objective=objective, optimization=OPTIMIZATION, **{**common, **fields})
        train(model, pairs, run, measure=measure, context=notebook)
        return cls(objective, tiny, pairs, model.state_dict(), notebook.points, checkpoints)

    def again(self, **fields: object) -> "Finished":
        """The same run a second time, but for these fields; it writes no checkpoint."""
        return Finished.run(self.objective, self.tiny, self.pairs, None, **fields)


@pytest.fixture(scope="module", params=EVERY.values(), ids=EVERY.keys())
def finished(
    request: pytest.FixtureRequest, tiny: Architecture, pairs: TrainingPairs, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    return Finished.run(request.param, tiny, pairs, tmp_path_factory.mktemp("finished"))


def test_the_same_seed_gives_the_same_weights(finished: Finished):
    """After two of the three epochs, whatever the global random stream."""
    torch.manual_seed(1234)
    again = finished.again(stop_after=2)
    first = checkpoints.load(finished.checkpoints / "epoch-0002.pt")["model"]
    assert again.weights.keys() == first.keys()
    assert all(torch.equal(first[name], again.weights[name]) for name in first)


def test_a_run_resumed_inside_an_epoch_takes_the_same_next_steps(finished: Finished):
    """Killed after the first step of the third epoch, where every objective has its state in use."""
    resumed = finished.again(resume_from=finished.checkpoints / "epoch-0002-step-000001.pt")
    assert all(torch.equal(finished.weights[name], resumed.weights[name]) for name in finished.weights)
    assert [(point.index, point.epoch, point.step) for point in resumed.points] == [
        (point.index, point.epoch, point.step) for point in finished.points[-1:]
    ]


def test_points_inside_epochs_have_fractional_epochs(tiny: Architecture, pairs: TrainingPairs):
    notebook = Notebook()
    run = Run(objective=EVERY["mmcl"], optimization=OPTIMIZATION, epochs=2, seed=0, measure_at=(1, 3))
    train(build(tiny, seed=0), pairs, run, measure=measure, context=notebook)
    assert [(p.index, p.epoch, p.step) for p in notebook.points] == [
        (0, 0.0, 0),
        (1, 0.25, 1),
        (2, 0.75, 3),
        (3, 1.0, 4),
        (4, 1.25, 5),
        (5, 1.75, 7),
        (6, 2.0, 8),
    ]


def test_measuring_inside_an_epoch_changes_no_weight(tiny: Architecture, pairs: TrainingPairs):
    def weights(measure_at: tuple[int, ...]) -> dict[str, Tensor]:
        model = build(tiny, seed=0)
        run = Run(objective=EVERY["cleanclip"], optimization=OPTIMIZATION, epochs=2, seed=0, measure_at=measure_at)
        train(model, pairs, run, measure=measure, context=Notebook())
        return model.state_dict()

    plain, measured = weights(()), weights((1, 2))
    assert all(torch.equal(plain[name], measured[name]) for name in plain)


def test_a_run_computes_blocks_again_where_it_is_asked_to(tiny: Architecture, pairs: TrainingPairs):
    """Four steps of 16 pairs: the first convolution of a block is taken four times, or eight."""
    found = []
    for again in (False, True):
        model, calls = build(tiny, seed=0), []
        model.visual.layer1[0].conv1.register_forward_hook(lambda *call, calls=calls: calls.append(call))
        run = Run(EVERY["mmcl"], OPTIMIZATION, epochs=1, seed=0, activation_checkpointing=again)
        train(model, pairs, run, measure=measure, context=Notebook())
        assert len(calls) == (8 if again else 4)
        found.append(model.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.slow
def test_a_run_compiles_its_passes_where_it_is_asked_to(
    tiny: Architecture, pairs: TrainingPairs, monkeypatch: pytest.MonkeyPatch
):
    """By torch's front end alone, which needs no compiler: the graphs run as they were recorded."""
    graphs, found = CompileCounter(), []
    monkeypatch.setattr(Encoder, "compile", lambda encoder: nn.Module.compile(encoder, backend=graphs))
    monkeypatch.setattr(loop, "check_compiler", lambda for_gpu: None)
    for compiles in (False, True):
        model = build(tiny, seed=0)
        run = Run(EVERY["mmcl"], OPTIMIZATION, epochs=1, seed=0, compile=compiles)
        train(model, pairs, run, measure=measure, context=Notebook())
        assert (graphs.frame_count > 0) == compiles
        found.append(model.state_dict())
    torch._dynamo.reset()
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        assert_close(found[1][name], tensor, rtol=1e-5, atol=1e-5)


def test_the_curve_records_the_parts_every_few_steps(tiny: Architecture, pairs: TrainingPairs):
    notebook = Notebook()
    run = Run(objective=EVERY["par"], optimization=OPTIMIZATION, epochs=2, seed=0, log_every=2)
    train(build(tiny, seed=0), pairs, run, measure=measure, context=notebook)
    assert [entry["step"] for point in notebook.points for entry in point.curve] == [2, 4, 6, 8]
    assert {"loss", "mmcl", "perturbation"} <= set(notebook.points[1].curve[0])


@pytest.mark.parametrize(("batch_norm", "apart"), [("frozen", False), ("local", True)])
def test_pars_model_and_copy_begin_apart_where_batchnorm_is_not_frozen(
    batch_norm: str, apart: bool, tiny: Architecture, pairs: TrainingPairs
):
    """Equal weights: what sets them apart before the first step is the batch's own statistics alone."""
    optimization = OPTIMIZATION.replace(batch_norm=batch_norm)
    run = Run(objective=PAR(), optimization=optimization, epochs=3, seed=0)
    training = Training(build(tiny, seed=0), pairs, run, measure, Notebook())
    training.encoder = Encoder(training.model)
    training.set_mode()
    parts = step(training, pairs.__getitems__([(1, row) for row in range(16)]), "")
    assert (float(parts["perturbation_images"]) > 0.01) is apart
    assert float(parts["perturbation_texts"]) == pytest.approx(0, abs=1e-6)


def test_the_authors_schedule_runs_one_epoch_ahead(tiny: Architecture, pairs: TrainingPairs):
    """Four steps an epoch, two epochs, warm-up 2: the first step has cosine position (4 - 2) / (8 - 2) = 1/3, so
    0.5 x (1 + cos 60 deg) = 0.75 of the peak; it never warms up."""
    training = ready(EVERY["mmcl"], tiny, pairs)
    training.settings = Run(objective=EVERY["mmcl"], optimization=OPTIMIZATION, epochs=2, seed=0, schedule_shift=1)
    walk = hooks.passes(EVERY["mmcl"], None, 1, 64)[0]
    training.step(1, walk, pairs.__getitems__([(1, row) for row in range(16)]))
    assert training.rate == pytest.approx(0.75 * 2e-3)


def test_cosines_are_those_of_the_embeddings_in_the_pairs_order(tiny: Architecture, pairs: TrainingPairs):
    training = ready(EVERY["mmcl"], tiny, pairs)
    facts = training.epoch_facts(1)
    images, texts = facts.embed()
    assert images.shape == texts.shape == (64, 16)
    assert torch.allclose(facts.cosines(), (images * texts).sum(dim=1), atol=1e-6)
    other = build(tiny, seed=5)
    assert not torch.allclose(facts.cosines(other), facts.cosines(), atol=1e-3)
    assert training.model.training
    pixels = pairs.first_copies(1, [63]).images
    alone = training.model.eval().encode_image(normalise_pixels(pixels), normalize=True)
    assert torch.allclose(images[63], alone[0], atol=1e-5)


@every
def test_an_optimizer_is_carried_over_from_mmcl_pretraining(objective: Spec, tiny: Architecture, pairs: TrainingPairs):
    """As protocol `authors` has it. What an objective trains beside the model (clustering's head) is new and fresh."""
    before = ready(EVERY["mmcl"], tiny, pairs)
    step(before, pairs.__getitems__([(1, row) for row in range(16)]), "")
    state = before.optimizer.state_dict()
    run = Run(objective=objective, optimization=OPTIMIZATION, epochs=3, seed=0, optimizer_state=state)
    training = Training(build(tiny, seed=0), pairs, run, measure, Notebook())
    steps = {float(training.optimizer.state[parameter]["step"]) for parameter in training.model.parameters()}
    assert steps == {1.0}
    assert all(parameter not in training.optimizer.state for parameter in hooks.trained_parameters(training.state))
