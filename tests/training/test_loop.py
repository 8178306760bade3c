"""The training loop on a tiny model: it learns, repeats itself, resumes exactly, and says when it cannot go on."""

import copy
import io
import math
import multiprocessing
import os
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

import pytest
import torch
from fabricated import OF_FEW_WORDS, VIT, number_words
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR
from sweeplab.clip_model import MAX_LOG_SCALE, Architecture, Encoder, build
from sweeplab.data.augmentation import AutoAugmentView, SimCLRView
from sweeplab.data.fruit_stall import ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.data.pairs_shards import PairsShards
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.data.tar_members import content_at
from sweeplab.data.training_pairs import TrainingPairs
from sweeplab.evaluation.measure import Evaluation, Measure
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL
from sweeplab.records import Measurement, Outcomes, Point
from sweeplab.specs import Spec, StorageFault
from sweeplab.storage.run_folder import RunFolder
from sweeplab.training import checkpoints, loop
from sweeplab.training.batches import EpochBatches
from sweeplab.training.loop import Run, set_training_mode, train, train_step
from sweeplab.training.objective import EmbeddedBatch, EpochFacts, Loss, Objective, TrainingFacts
from sweeplab.training.optimisation import Optimization, build_optimizer, learning_rate_at

OPTIMIZATION = Optimization(learning_rate=1e-3, warmup_steps=2, global_batch_size=16)
NO_OUTCOMES = Outcomes(b"", 0, b"", 0)


class Notebook:
    """Keeps what the loop reports; asks it to stop after a number of points."""

    attempt = 1

    def __init__(self, stop_at: int | None = None) -> None:
        self.points: list[Point] = []
        self.num_heartbeats = 0
        self.stop_at = stop_at

    def report(self, point: Point, outcomes: Outcomes) -> None:
        self.points.append(point)

    def should_stop(self) -> bool:
        return self.stop_at is not None and len(self.points) >= self.stop_at

    def heartbeat(self) -> None:
        self.num_heartbeats += 1


def measure(model: nn.Module, classifier: object = None) -> tuple[Measurement, Outcomes]:
    """Stands in for the evaluation, which has tests of its own."""
    return Measurement(1, 2, 0, 2, "evaluation"), NO_OUTCOMES


@pytest.fixture(scope="module")
def tiny() -> Architecture:
    """For what holds of every model."""
    return VIT


@pytest.fixture(scope="module")
def resnet() -> Architecture:
    """For what BatchNorm may have a part in."""
    return OF_FEW_WORDS


@pytest.fixture(scope="module")
def pairs(stall_pairs: PairTable) -> TrainingPairs:
    """64 pairs: four steps of 16."""
    return TrainingPairs(stall_pairs, 32, tokenize=number_words, seed=0)


@pytest.fixture(scope="module")
def in_tars(stall_pairs: PairTable, tmp_path_factory: pytest.TempPathFactory) -> TrainingPairs:
    """The same pairs in 32 tars of two, more than one window."""
    folder = tmp_path_factory.mktemp("tars")
    for number in range(32):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for row in (2 * number, 2 * number + 1):
                image = content_at(stall_pairs.image(row))
                for name, content in ((f"{row}.png", image), (f"{row}.txt", stall_pairs.caption(row).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    table = PairsShards(path=folder).read(folder / "home")
    return TrainingPairs(table, 32, tokenize=number_words, seed=0)


def trained(tiny: Architecture, pairs: TrainingPairs, **fields: object) -> tuple[nn.Module, list[Point]]:
    """A model of seed 0 after a run, and its points."""
    stop_at = fields.pop("stop_at", None)
    model = fields.pop("model", None) or build(tiny, seed=0)
    notebook = Notebook(stop_at)
    defaults = {"objective": MMCL(), "optimization": OPTIMIZATION, "epochs": 2, "seed": 0}
    train(model, pairs, Run(**{**defaults, **fields}), measure=measure, context=notebook)
    return model, notebook.points


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in first.state_dict().items())


def test_the_loss_falls_over_20_steps_on_a_fixed_batch(resnet: Architecture, pairs: TrainingPairs):
    """16 pairs start near ln 16 = 2.77 nats; 20 steps on them alone take more than half of it away."""
    model = build(resnet, seed=0)
    optimization = OPTIMIZATION.replace(learning_rate=5e-3)
    optimizer, encoder = build_optimizer(model, optimization), Encoder(model)
    pairs.use_views(None)
    batch = pairs.__getitems__([(1, row) for row in range(16)])
    set_training_mode(model, optimization)
    losses = [
        float(train_step(encoder, model, optimizer, MMCL(), None, batch, optimization)["loss"]) for _ in range(20)
    ]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("objective", [MMCL(), CleanCLIP()], ids=["mmcl", "cleanclip"])
def test_the_same_seed_gives_the_same_weights(tiny: Architecture, pairs: TrainingPairs, objective: Spec):
    first, _ = trained(tiny, pairs, objective=objective)
    second, _ = trained(tiny, pairs, objective=objective)
    assert same_weights(first, second)


def test_another_seed_gives_other_weights(tiny: Architecture, pairs: TrainingPairs):
    assert not same_weights(trained(tiny, pairs, seed=0)[0], trained(tiny, pairs, seed=1)[0])


def test_the_global_random_stream_does_not_matter(tiny: Architecture, pairs: TrainingPairs):
    first, _ = trained(tiny, pairs, objective=CleanCLIP())
    torch.manual_seed(99)
    assert same_weights(first, trained(tiny, pairs, objective=CleanCLIP())[0])


def test_every_step_is_a_heartbeat(tiny: Architecture, pairs: TrainingPairs):
    """An epoch may take longer than a worker may be silent: two epochs of four steps."""
    notebook = Notebook()
    run = Run(objective=MMCL(), optimization=OPTIMIZATION, epochs=2, seed=0)
    train(build(tiny, seed=0), pairs, run, measure=measure, context=notebook)
    assert notebook.num_heartbeats == 8


def test_a_point_is_reported_for_the_start_and_after_every_epoch(tiny: Architecture, pairs: TrainingPairs):
    _, points = trained(tiny, pairs, epochs=3)
    assert [(point.index, point.epoch, point.step) for point in points] == [(0, 0, 0), (1, 1, 4), (2, 2, 8), (3, 3, 12)]
    assert all(point.checkpoint is None for point in points)
    assert points[0].train == {}


def test_a_point_holds_means_of_the_epoch_and_the_last_rate(tiny: Architecture, pairs: TrainingPairs):
    model, points = trained(tiny, pairs, objective=MMCLWithSSL(ssl_weight=2.0))
    numbers = points[-1].train
    assert numbers["loss"] == pytest.approx(numbers["mmcl"] + 2 * numbers["ssl"], rel=1e-5)
    assert 0 < numbers["mmcl"] < 2 * math.log(16)
    assert numbers["learning_rate"] == learning_rate_at(7, 1e-3, 2, 8)
    assert numbers["logit_scale"] == pytest.approx(float(model.logit_scale.detach().exp()))


def test_no_epochs_report_the_start_and_leave_the_model(tiny: Architecture, pairs: TrainingPairs, tmp_path: Path):
    model, points = trained(tiny, pairs, epochs=0, checkpoint_folder=tmp_path)
    assert [point.epoch for point in points] == [0]
    assert same_weights(model, build(tiny, seed=0))
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_may_be_the_result_has_a_checkpoint(tiny: Architecture, pairs: TrainingPairs, tmp_path: Path):
    model, points = trained(tiny, pairs, epochs=0, checkpoint_folder=tmp_path, keep_start=True)
    assert [point.checkpoint for point in points] == ["epoch-0000.pt"]
    weights = checkpoints.load(tmp_path / "epoch-0000.pt")["model"]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    _, none = trained(tiny, pairs, epochs=0, checkpoint_folder=tmp_path / "other")
    assert none[0].checkpoint is None


def test_a_run_goes_on_from_its_start(tiny: Architecture, pairs: TrainingPairs, tmp_path: Path):
    whole, _ = trained(tiny, pairs, epochs=1, checkpoint_folder=tmp_path, keep_start=True)
    again, points = trained(tiny, pairs, epochs=1, resume_from=tmp_path / "epoch-0000.pt")
    assert [point.index for point in points] == [1]
    assert same_weights(whole, again)


def test_a_start_that_was_measured_is_not_measured_again(tiny: Architecture, pairs: TrainingPairs):
    known = Measurement(2, 2, 1, 2, "evaluation")
    _, points = trained(tiny, pairs, epochs=1, start=(known, NO_OUTCOMES))
    assert points[0].measurement == known
    assert points[1].measurement == measure(None)[0]


def test_it_stops_after_the_point_at_which_it_is_asked_to(tiny: Architecture, pairs: TrainingPairs):
    _, points = trained(tiny, pairs, epochs=5, stop_at=2)
    assert [point.epoch for point in points] == [0, 1]


def test_it_stops_after_the_last_epoch_that_is_needed_on_the_full_schedule(tiny: Architecture, pairs: TrainingPairs):
    _, points = trained(tiny, pairs, epochs=3, stop_after=1)
    assert [point.epoch for point in points] == [0, 1]
    assert points[-1].train["learning_rate"] == learning_rate_at(3, 1e-3, 2, 12)


# --- resuming -------------------------------------------------------------------------------------------------------


class Memory(nn.Module):
    """Counts the steps that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))


class Remembering(Spec):
    """MMCL that weighs each step by what it remembers and by a draw from the global random stream."""

    kind: Literal["remembering"] = "remembering"

    def init_state(self, model: nn.Module, facts: TrainingFacts) -> nn.Module:
        return Memory()

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        state.steps += 1
        value = MMCL().loss(None, batch).total * (1 + state.steps / 10 + torch.rand(()))
        return Loss(value, {"steps": state.steps.clone()})


@pytest.mark.parametrize(
    ("objective", "batch_norm"),
    [(MMCL(), "local"), (CleanCLIP(), "local"), (Remembering(), "frozen")],
    ids=["mmcl", "cleanclip", "remembering"],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    objective: Spec, batch_norm: str, resnet: Architecture, pairs: TrainingPairs, tmp_path: Path
):
    common = {"objective": objective, "optimization": OPTIMIZATION.replace(batch_norm=batch_norm), "epochs": 3}
    torch.manual_seed(5)
    whole, points = trained(resnet, pairs, **common)
    torch.manual_seed(5)
    trained(resnet, pairs, checkpoint_folder=tmp_path / "cut", stop_at=2, **common)
    torch.manual_seed(6)
    resumed, later = trained(
        resnet,
        pairs,
        model=build(resnet, seed=77),
        checkpoint_folder=tmp_path / "cut",
        resume_from=tmp_path / "cut" / "epoch-0001.pt",
        **common,
    )
    assert same_weights(resumed, whole)
    assert [(point.index, point.epoch, point.step) for point in later] == [(2, 2, 8), (3, 3, 12)]
    assert [point.train for point in later] == [point.train for point in points[2:]]


def test_a_finished_run_that_is_resumed_does_nothing(tiny: Architecture, pairs: TrainingPairs, tmp_path: Path):
    whole, _ = trained(tiny, pairs, checkpoint_folder=tmp_path)
    again, points = trained(tiny, pairs, model=build(tiny, seed=1), resume_from=tmp_path / "epoch-0002.pt")
    assert points == []
    assert same_weights(again, whole)


def test_a_checkpoint_holds_the_state_of_its_point(tiny: Architecture, pairs: TrainingPairs, tmp_path: Path):
    model, points = trained(
        tiny, pairs, objective=Remembering(), checkpoint_folder=tmp_path, checkpoint_prefix="a1-", config='{"x": 1}'
    )
    assert points[-1].checkpoint == "a1-epoch-0002.pt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1-epoch-0001.pt", "a1-epoch-0002.pt"]
    held = checkpoints.load(tmp_path / "a1-epoch-0002.pt")
    assert (held["epoch"], held["step"], held["point"], held["config"]) == (2, 8, 2, '{"x": 1}')
    assert float(held["state"]["steps"]) == 8
    assert all(torch.equal(tensor, held["model"][name]) for name, tensor in model.state_dict().items())


# --- resuming inside an epoch


class Cut(Exception):
    """Stands for a kill."""


def cut_after(step: int) -> tuple[list[Path], Callable[[Path, str | None], None]]:
    """A place for the checkpoints that were written, and a hook that dies once one inside an epoch reaches the step."""
    written: list[Path] = []

    def saved(path: Path, replaced: str | None) -> None:
        written.append(path)
        if path.name.endswith(f"-step-{step:010d}.pt"):
            raise Cut

    return written, saved


EAGER = 1e-9
"""Minutes between checkpoints: one after every step."""


@pytest.mark.parametrize("objective", [CleanCLIP(), Remembering()], ids=["cleanclip", "remembering"])
def test_a_run_that_was_cut_inside_an_epoch_ends_as_an_undisturbed_one(
    objective: Spec, resnet: Architecture, pairs: TrainingPairs, tmp_path: Path
):
    """Four steps an epoch: cut in the first and in the second one. Weights, means and curve are the same to the bit."""
    common = {"objective": objective, "log_every": 1, "checkpoint_minutes": EAGER}
    torch.manual_seed(5)
    whole, points = trained(resnet, pairs, **common)
    for step in (2, 7):
        torch.manual_seed(5)
        written, saved = cut_after(step)
        cut = {"checkpoint_folder": tmp_path / f"cut-{step}"}
        with pytest.raises(Cut):
            trained(resnet, pairs, checkpoint_prefix="a1-", saved=saved, **cut, **common)
        last = written[-1]
        assert last.name == f"a1-after-point-{(step - 1) // 4:04d}-step-{step:010d}.pt"
        torch.manual_seed(6)
        model = build(resnet, seed=77)
        resumed, later = trained(resnet, pairs, model=model, checkpoint_prefix="a2-", resume_from=last, **cut, **common)
        assert same_weights(resumed, whole)
        expected = points[1 + (step - 1) // 4 :]
        for found, wanted in zip(later, expected, strict=True):
            assert (found.index, found.epoch, found.step) == (wanted.index, wanted.epoch, wanted.step)
            assert found.train == wanted.train
            assert found.curve == wanted.curve
            assert len(found.curve) == 4


WHILE_KILLED = {"objective": Remembering(), "checkpoint_minutes": EAGER, "epochs": 2}


def train_until_killed(tiny: Architecture, data: Path, run: RunFolder, torn: str) -> None:
    """Train and commit points, until half of the named checkpoint is written: then the process is killed."""
    written = torch.save

    def write_half(content: dict, file: BinaryIO) -> None:
        if f".{torn}." not in file.name:
            return written(content, file)
        whole = io.BytesIO()
        written(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    class Committing(Notebook):
        def report(self, point: Point, outcomes: Outcomes) -> None:
            run.commit(point, outcomes)

    torch.save = write_half
    torch.set_num_threads(1)
    torch.manual_seed(5)
    pairs = TrainingPairs(FruitStall(num_pairs=64, image_size=32).read(data), 32, tokenize=number_words, seed=0)
    fields = {"checkpoint_folder": run.checkpoints, "checkpoint_prefix": "attempt-1-", **WHILE_KILLED}
    settings = Run(optimization=OPTIMIZATION, seed=0, **fields)
    train(build(tiny, seed=0), pairs, settings, measure=measure, context=Committing())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("torn", "last"),
    [("after-point-0001-step-0000000006.pt", 5), ("epoch-0002.pt", 7)],
    ids=["inside an epoch", "of a point"],
)
def test_a_run_that_is_killed_while_a_checkpoint_is_written_goes_on_from_the_last_whole_one(
    torn: str, last: int, resnet: Architecture, pairs: TrainingPairs, home: Path, tmp_path: Path
):
    """Four steps an epoch and a checkpoint after each of them; what follows is the same to the bit."""
    torch.manual_seed(5)
    whole, points = trained(resnet, pairs, **WHILE_KILLED)
    run, torn = RunFolder(tmp_path), f"attempt-1-{torn}"
    worker = multiprocessing.get_context("spawn").Process(
        target=train_until_killed, args=(resnet, home / "data", run, torn)
    )
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    (part,) = run.checkpoints.glob(f".{torn}.*.part")
    assert part.stat().st_size > 100_000
    assert not (run.checkpoints / torn).exists()

    again = RunFolder(tmp_path)
    newest = again.latest_checkpoint()
    assert newest.name == f"attempt-1-after-point-0001-step-{last:010d}.pt"
    again.clear_abandoned()
    assert {path.name for path in run.checkpoints.iterdir()} == {"attempt-1-epoch-0001.pt", newest.name}
    torch.manual_seed(6)
    resumed, later = trained(
        resnet, pairs, model=build(resnet, seed=77), resume_from=Path(newest.location), **WHILE_KILLED
    )
    assert same_weights(resumed, whole)
    assert [(point.index, point.step, point.train) for point in later] == [(2, 8, points[2].train)]


def test_a_cut_between_points_inside_an_epoch_goes_on_between_them(
    tiny: Architecture, pairs: TrainingPairs, tmp_path: Path
):
    """Points after steps 2 and 4 of each epoch; cut after step 7, the first one after the third point."""
    common = {"measure_at": (2,), "log_every": 1, "checkpoint_minutes": EAGER}
    whole, points = trained(tiny, pairs, **common)
    written, saved = cut_after(7)
    with pytest.raises(Cut):
        trained(tiny, pairs, checkpoint_folder=tmp_path / "cut", saved=saved, **common)
    assert written[-1].name == "after-point-0003-step-0000000007.pt"
    resumed, later = trained(tiny, pairs, model=build(tiny, seed=77), resume_from=written[-1], **common)
    assert same_weights(resumed, whole)
    assert [(p.index, p.epoch, p.train, p.curve) for p in later] == [
        (p.index, p.epoch, p.train, p.curve) for p in points[4:]
    ]


def test_a_run_on_pairs_in_tars_that_was_cut_inside_an_epoch_goes_on_with_the_same_step(
    tiny: Architecture, in_tars: TrainingPairs, tmp_path: Path
):
    common = {"log_every": 1, "checkpoint_minutes": EAGER}
    whole, points = trained(tiny, in_tars, **common)
    written, saved = cut_after(6)
    with pytest.raises(Cut):
        trained(tiny, in_tars, checkpoint_folder=tmp_path / "cut", saved=saved, **common)
    resumed, later = trained(tiny, in_tars, model=build(tiny, seed=77), resume_from=written[-1], **common)
    assert same_weights(resumed, whole)
    assert [(point.step, point.train, point.curve) for point in later] == [
        (point.step, point.train, point.curve) for point in points[2:]
    ]


def test_pairs_in_tars_take_the_order_of_their_tars(tiny: Architecture, in_tars: TrainingPairs, pairs: TrainingPairs):
    """Their pixels are the same, so that another order alone makes another model."""
    rows = list(range(64))
    assert torch.equal(in_tars.images_of(rows), pairs.images_of(rows))
    assert not same_weights(trained(tiny, in_tars, epochs=1)[0], trained(tiny, pairs, epochs=1)[0])


def test_of_the_checkpoints_inside_an_epoch_only_the_newest_stays_and_is_named_to_the_uploads(
    tiny: Architecture, pairs: TrainingPairs, tmp_path: Path
):
    told: list[tuple[str, str | None]] = []

    def saved(path: Path, replaced: str | None) -> None:
        told.append((path.name, replaced))

    trained(tiny, pairs, epochs=1, checkpoint_folder=tmp_path, checkpoint_minutes=EAGER, saved=saved)
    inside = [f"after-point-0000-step-{step:010d}.pt" for step in (1, 2, 3)]
    assert told == [(inside[0], None), (inside[1], inside[0]), (inside[2], inside[1]), ("epoch-0001.pt", None)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [inside[2], "epoch-0001.pt"]


def test_no_checkpoint_is_written_inside_an_epoch_before_it_is_due(
    tiny: Architecture, pairs: TrainingPairs, tmp_path: Path
):
    trained(tiny, pairs, epochs=1, checkpoint_folder=tmp_path, checkpoint_minutes=10.0)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001.pt"]


# --- BatchNorm, clamp, precision ------------------------------------------------------------------------------------


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "running_" in name}


@pytest.mark.parametrize(("batch_norm", "is_kept"), [("frozen", True), ("local", False)])
def test_frozen_batch_norm_keeps_its_running_statistics(
    batch_norm: str, is_kept: bool, resnet: Architecture, pairs: TrainingPairs
):
    before = running_statistics(build(resnet, seed=0))
    model, _ = trained(resnet, pairs, epochs=1, optimization=OPTIMIZATION.replace(batch_norm=batch_norm))
    after = running_statistics(model)
    assert all(torch.equal(before[name], after[name]) is is_kept for name in before)


def test_batch_norm_mixes_originals_and_views_in_one_forward(resnet: Architecture, pairs: TrainingPairs):
    """One step counts one batch in every layer; originals and views apart would count two."""
    model = build(resnet, seed=0)
    optimization = OPTIMIZATION
    pairs.use_views(CleanCLIP().image_views)
    batch = pairs.__getitems__([(1, row) for row in range(16)])
    train_step(Encoder(model), model, build_optimizer(model, optimization), CleanCLIP(), None, batch, optimization)
    counts = [int(tensor) for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert set(counts) == {1}


class OnDevice(TrainingPairs):
    """Has views made on the device, as pairs do where a GPU trains."""

    def use_views(self, *views: object, **named: object) -> None:
        super().use_views(*views, **{**named, "on_device": True})


def made_before(view: Spec, images: Tensor, seeds: list[int]) -> Tensor:
    raise AssertionError("a view was made on the CPU")


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize(
    ("objective", "tolerance"),
    [(CleanCLIP(), 0.0), (CleanCLIP(views=SimCLRView()), 1e-3), (PAR(augmentation=AutoAugmentView()), 0.0)],
    ids=["second copies", "SimCLR's", "first copies"],
)
def test_a_run_takes_the_same_steps_whether_views_are_made_on_its_device_or_before(
    objective: Objective,
    tolerance: float,
    num_chunks: int,
    tiny: Architecture,
    pairs: TrainingPairs,
    stall_pairs: PairTable,
    monkeypatch: pytest.MonkeyPatch,
):
    """AutoAugment's views are equal to the last bit; a few pixels of SimCLR's lie a level apart."""
    run = {"epochs": 1, "objective": objective, "optimization": OPTIMIZATION.replace(num_chunks=num_chunks)}
    _, expected = trained(tiny, pairs, **run)
    for view in (AutoAugmentView, SimCLRView):
        monkeypatch.setattr(view, "views", made_before)
    there = OnDevice(stall_pairs, 32, tokenize=number_words, seed=0)
    _, found = trained(tiny, there, **run)
    assert found[-1].train == pytest.approx(expected[-1].train, rel=tolerance, abs=0)


def test_the_logit_scale_is_clamped_after_every_step(tiny: Architecture, pairs: TrainingPairs):
    model = build(tiny, seed=0)
    model.logit_scale.data.fill_(9.0)
    _, points = trained(tiny, pairs, model=model, epochs=1)
    assert float(model.logit_scale.detach()) <= MAX_LOG_SCALE + 1e-6
    assert points[-1].train["logit_scale"] <= 100.001


def test_gradients_are_clipped_to_the_given_norm(tiny: Architecture, pairs: TrainingPairs):
    optimization = OPTIMIZATION.replace(max_gradient_norm=1e-3)
    model = build(tiny, seed=0)
    pairs.use_views(None)
    batch = pairs.__getitems__([(1, row) for row in range(16)])
    train_step(Encoder(model), model, build_optimizer(model, optimization), MMCL(), None, batch, optimization)
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert_close(norm, torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_weight_decay_shrinks_the_decayed_weights_of_a_run(resnet: Architecture, pairs: TrainingPairs):
    """Same steps, decay 0 against 100: at rate 1e-3 each of four steps takes up to a tenth off."""
    light, _ = trained(resnet, pairs, epochs=1, optimization=OPTIMIZATION.replace(weight_decay=0.0))
    heavy, _ = trained(resnet, pairs, epochs=1, optimization=OPTIMIZATION.replace(weight_decay=100.0))
    for name in ("visual.conv1.weight", "token_embedding.weight"):
        assert heavy.state_dict()[name].norm() < 0.9 * light.state_dict()[name].norm()
    assert heavy.state_dict()["visual.bn1.weight"].norm() > 0.9 * light.state_dict()["visual.bn1.weight"].norm()


def test_bfloat16_stays_close_to_float32(tiny: Architecture, pairs: TrainingPairs):
    _, full = trained(tiny, pairs, epochs=1)
    _, half = trained(tiny, pairs, epochs=1, optimization=OPTIMIZATION.replace(precision="bfloat16"))
    assert half[-1].train["loss"] == pytest.approx(full[-1].train["loss"], rel=0.05)


def test_a_step_encodes_no_more_tokens_than_its_longest_caption_or_view_has(tiny: Architecture, pairs: TrainingPairs):
    """Four steps of 16 pairs and 16 views; the context of 16 tokens is longer than most batches."""
    model, lengths = build(tiny, seed=0), []
    model.token_embedding.register_forward_pre_hook(lambda module, inputs: lengths.append(tuple(inputs[0].shape)))
    trained(tiny, pairs, epochs=1, objective=CleanCLIP(), model=model)
    batches = [pairs.__getitems__(keys) for keys in EpochBatches(64, global_batch_size=16, epoch=1, seed=0)]
    longest = [max(batch.tokens.shape[1], batch.token_views.shape[1]) for batch in batches]
    pairs.use_views(None)
    assert lengths[1:] == [(32, length) for length in longest]  # the first looks how wide an embedding is
    assert max(longest) < 16


def test_tf32_holds_in_the_steps_and_not_after_them(tiny: Architecture, pairs: TrainingPairs):
    seen: list[str] = []

    class Watching(Notebook):
        def heartbeat(self) -> None:
            seen.append(torch.get_float32_matmul_precision())

    for precision in ("tf32", "float32"):
        run = Run(MMCL(), OPTIMIZATION.replace(precision=precision), epochs=1, seed=0)
        train(build(tiny, seed=0), pairs, run, measure=measure, context=Watching())
    half = len(seen) // 2
    assert (set(seen[:half]), set(seen[half:])) == ({"high"}, {"highest"})
    assert torch.get_float32_matmul_precision() == "highest"


# --- what is refused ------------------------------------------------------------------------------------------------


class Broken(Spec):
    """Not a number from its third step on."""

    kind: Literal["broken"] = "broken"

    def init_state(self, model: nn.Module, facts: TrainingFacts) -> nn.Module:
        return Memory()

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        state.steps += 1
        value = MMCL().loss(None, batch).total
        return Loss(value * math.nan if state.steps >= 3 else value, {})


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    tiny: Architecture, pairs: TrainingPairs, tmp_path: Path
):
    with pytest.raises(FloatingPointError, match=r"not finite at step 3 with learning_rate=0.001; lower the learning"):
        trained(tiny, pairs, objective=Broken(), checkpoint_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


ONE_STEP = Optimization(global_batch_size=64, warmup_steps=0)


def test_weights_that_overflow_in_the_last_step_are_no_result(
    resnet: Architecture, pairs: TrainingPairs, tmp_path: Path
):
    """The only step's loss is finite; AdamW then moves every weight by about the rate, which float32 cannot hold."""
    with pytest.raises(
        FloatingPointError,
        match=r"weights are not finite \(.*\) at step 1 with learning_rate=1e\+39; lower the learning",
    ):
        trained(resnet, pairs, epochs=1, optimization=ONE_STEP.replace(learning_rate=1e39), checkpoint_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_embeddings_that_overflow_in_the_last_step_are_no_result(
    resnet: Architecture, pairs: TrainingPairs, stall_test: LabelledImages, tmp_path: Path
):
    """The weights are finite, about 1e36; what they make of an image is not."""
    evaluation = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
    measured = Measure(evaluation, stall_test, 32, tokenize=number_words, trigger=None)
    run = Run(
        objective=MMCL(),
        optimization=ONE_STEP.replace(learning_rate=1e36),
        epochs=1,
        seed=0,
        checkpoint_folder=tmp_path,
    )
    notebook = Notebook()
    with pytest.raises(FloatingPointError, match=r"embeddings are not finite .* at step 1 with learning_rate=1e\+36"):
        train(build(resnet, seed=0), pairs, run, measure=measured, context=notebook)
    assert [point.epoch for point in notebook.points] == [0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["logit_scale", "visual.layer1.0.bn1.running_var", "token_embedding.weight"])
def test_no_start_is_measured_whose_weights_are_not_finite(name: str, resnet: Architecture, pairs: TrainingPairs):
    """BatchNorm's variances and weights that the loss has not seen count too."""
    model = build(resnet, seed=0)
    model.state_dict()[name].fill_(math.inf)
    with pytest.raises(FloatingPointError, match=f"not finite \\({name}\\) at step 0 .*; choose another start"):
        trained(resnet, pairs, model=model)


class Looking(Spec):
    """Looks at all pairs before the second epoch, with weights that have grown too large meanwhile."""

    def start_epoch(self, state: nn.Module | None, facts: EpochFacts) -> None:
        if facts.epoch == 2:
            facts.cosines()

    def loss(self, state: nn.Module | None, batch: EmbeddedBatch) -> Loss:
        return MMCL().loss(None, batch)


def test_a_look_at_all_pairs_says_that_it_goes_on(
    tiny: Architecture, pairs: TrainingPairs, monkeypatch: pytest.MonkeyPatch
):
    """Of millions it takes longer than a worker may be silent: here four parts, beside two epochs of four steps."""
    monkeypatch.setattr(loop, "EMBED_BATCH", 16)
    notebook = Notebook()
    run = Run(objective=Looking(), optimization=OPTIMIZATION, epochs=2, seed=0)
    train(build(tiny, seed=0), pairs, run, measure=measure, context=notebook)
    assert notebook.num_heartbeats == 2 * 4 + 4


def test_an_objective_is_not_shown_embeddings_that_are_not_finite(resnet: Architecture, pairs: TrainingPairs):
    with pytest.raises(FloatingPointError, match=r"embeddings are not finite .* at step 1 with learning_rate=1e\+36"):
        trained(resnet, pairs, objective=Looking(), optimization=ONE_STEP.replace(learning_rate=1e36))


def test_a_batch_larger_than_the_data_is_refused(tiny: Architecture, pairs: TrainingPairs):
    with pytest.raises(ValueError, match="global_batch_size=65 exceeds the 64 pairs; choose at most 64"):
        trained(tiny, pairs, optimization=OPTIMIZATION.replace(global_batch_size=65))


def test_a_batch_of_all_pairs_is_one_step(tiny: Architecture, pairs: TrainingPairs):
    _, points = trained(tiny, pairs, epochs=1, optimization=Optimization(global_batch_size=64, warmup_steps=0))
    assert points[-1].step == 1


def test_a_warmup_longer_than_the_run_is_refused(tiny: Architecture, pairs: TrainingPairs):
    with pytest.raises(ValueError, match="warmup_steps=8 must be below the total of 8 steps"):
        trained(tiny, pairs, optimization=OPTIMIZATION.replace(warmup_steps=8))


def test_the_data_are_not_changed_by_training(tiny: Architecture, pairs: TrainingPairs):
    before = copy.deepcopy(pairs.images_of(range(64)))
    trained(tiny, pairs, epochs=1, objective=CleanCLIP())
    assert torch.equal(pairs.images_of(range(64)), before)


# --- checkpoints are written beside the work


def test_a_points_checkpoint_is_written_while_the_model_is_measured_and_is_whole_before_the_report(
    tiny: Architecture, pairs: TrainingPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The disk waits for the measurement: one after the other, this would wait for ever."""
    measured, written = threading.Event(), checkpoints.save

    def slow(checkpoint: checkpoints.Checkpoint, path: Path) -> None:
        assert measured.wait(30)
        written(checkpoint, path)

    def measure_and_tell(model: nn.Module, classifier: object = None) -> tuple[Measurement, Outcomes]:
        measured.set()
        return measure(model)

    class Looking(Notebook):
        def report(self, point: Point, outcomes: Outcomes) -> None:
            assert point.index == 0 or (tmp_path / str(point.checkpoint)).is_file()
            super().report(point, outcomes)

    monkeypatch.setattr(checkpoints, "save", slow)
    run = Run(MMCL(), OPTIMIZATION, epochs=1, seed=0, checkpoint_folder=tmp_path)
    notebook = Looking()
    train(build(tiny, seed=0), pairs, run, measure=measure_and_tell, context=notebook)
    assert len(notebook.points) == 2


def test_steps_taken_while_a_checkpoint_is_written_are_not_in_it(
    tiny: Architecture, pairs: TrainingPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run whose disk is so slow that each rolling checkpoint is written during the next steps resumes exactly."""
    undisturbed, _ = trained(tiny, pairs, epochs=1)
    written, kept = checkpoints.save, []

    def slow(checkpoint: checkpoints.Checkpoint, path: Path) -> None:
        time.sleep(0.05)
        written(checkpoint, path)

    def keep(path: Path, replaced: str | None) -> None:
        kept.append(shutil.copy(path, tmp_path / f"kept-{len(kept)}.pt"))

    monkeypatch.setattr(checkpoints, "save", slow)
    folder = tmp_path / "checkpoints"
    trained(tiny, pairs, epochs=1, checkpoint_folder=folder, checkpoint_minutes=0.0, saved=keep)
    assert len(kept) >= 3
    for path in kept[:-1]:
        assert checkpoints.load(path)["step_in_epoch"] > 0
        resumed, _ = trained(tiny, pairs, model=build(tiny, seed=1), epochs=1, resume_from=path)
        assert same_weights(resumed, undisturbed)


def test_a_disk_that_fails_beside_the_work_ends_the_run_before_the_point_is_reported(
    tiny: Architecture, pairs: TrainingPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(checkpoint: checkpoints.Checkpoint, path: Path) -> None:
        raise StorageFault("no space")

    monkeypatch.setattr(checkpoints, "save", full)
    notebook, run = Notebook(), Run(MMCL(), OPTIMIZATION, epochs=1, seed=0, checkpoint_folder=tmp_path)
    with pytest.raises(StorageFault, match="no space"):
        train(build(tiny, seed=0), pairs, run, measure=measure, context=notebook)
    assert [point.index for point in notebook.points] == [0]


def test_a_measurement_that_fails_leaves_no_checkpoint_of_its_point(
    tiny: Architecture, pairs: TrainingPairs, tmp_path: Path
):
    def fails(model: nn.Module, classifier: object = None) -> tuple[Measurement, Outcomes]:
        raise FloatingPointError("scores are not finite")

    run = Run(MMCL(), OPTIMIZATION, epochs=1, seed=0, checkpoint_folder=tmp_path, start=measure(nn.Identity()))
    with pytest.raises(FloatingPointError, match="scores are not finite"):
        train(build(tiny, seed=0), pairs, run, measure=fails, context=Notebook())
    assert list(tmp_path.iterdir()) == []
