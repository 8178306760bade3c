"""The one loop that pre-training and cleaning share. It knows nothing of Ray, MLflow or files of a sweep."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sweeplab.clip_checkpoints import not_finite
from sweeplab.clip_model import Encoder, embedding_width, evaluation_mode, normalise_pixels, stacked, with_directions
from sweeplab.records import Measurement, Outcomes, Point, now_ms
from sweeplab.storage.checkpoint_names import point_name, rolling_name
from sweeplab.training import checkpoints, ranks
from sweeplab.training import objective as hooks
from sweeplab.training.batches import EpochBatches, Loader, PairBatch, Pairs, steps_per_epoch
from sweeplab.training.compilation import check_compiler
from sweeplab.training.objective import EmbeddedBatch, EpochFacts, Objective, Pass, TrainingFacts
from sweeplab.training.optimisation import (
    Optimization,
    build_optimizer,
    check_schedule,
    clamp_logit_scale,
    pairs_per_chunk,
    scheduled_rate,
    warmup_of,
)
from sweeplab.training.precision import float32_products, forward_pass
from sweeplab.training.recomputation import Chunks, recompute_blocks

CHECK_EVERY = 20
"""Steps between two looks at the loss on a GPU, where every look waits for the device."""


EMBED_BATCH = 256
"""Pairs per forward pass and rank where an objective looks at all pairs."""


class Context(Protocol):
    """What the loop tells its surroundings, and asks of them, on every rank; what rank 0 says counts."""

    @property
    def attempt(self) -> int:
        """Which attempt this is; 1 is the first."""
        ...

    def report(self, point: Point, outcomes: Outcomes) -> None:
        """A point was measured, and its checkpoint is on the disk."""
        ...

    def should_stop(self) -> bool:
        """Whether to end after this point."""
        ...

    def heartbeat(self) -> None:
        """It still works: called in every step, which may be far more often than points come."""
        ...


@dataclass(frozen=True)
class Run:
    """One training run: what to train, on what, for how long."""

    objective: Objective
    optimization: Optimization
    epochs: int
    """Epochs of the schedule; 0: only the start is measured."""
    seed: int
    stop_after: int | None = None
    """Last epoch that is run, where the rest of the schedule is not needed."""
    config: str = "{}"
    """JSON stored in every checkpoint."""
    checkpoint_folder: Path | None = None
    """Where checkpoints are written; None: none are."""
    checkpoint_prefix: str = ""
    """Starts every checkpoint's file name; no other attempt uses it."""
    checkpoint_minutes: float | None = None
    """Minutes after which a checkpoint is written inside an epoch, where no point was made meanwhile; None: never."""
    saved: Callable[[Path, str | None], None] = lambda path, replaced: None
    """Told on rank 0 of every checkpoint written, and of the name of the one that it makes superfluous."""
    resume_from: Path | None = None
    """A checkpoint of an earlier attempt."""
    start: tuple[Measurement, Outcomes] | None = None
    """The start's measurement where it is known already; None: it is measured."""
    keep_start: bool = False
    """Whether the start gets a checkpoint too: where it may be the result."""
    loader_workers: int = 0
    """Processes that decode images which do not fit into memory."""
    activation_checkpointing: bool = False
    """Whether blocks are computed again for their gradients."""
    compile: bool = False
    """Whether torch.compile makes the training's forward and backward passes."""
    measure_at: tuple[int, ...] = ()
    """Steps inside each epoch after which a point is measured too, beside the epoch's end."""
    log_every: int | None = None
    """Steps between two records of the loss and its parts (`Point.curve`); None: means over the epoch alone."""
    schedule_shift: int = 0
    """Epochs by which the schedule runs ahead: 1 is what the authors' code does, 0 what the papers state."""
    poisoned_rows: Tensor | None = None
    """(P,) int64, rows of the pairs that are poisons, where that is known. They are counted among the pairs that the
    objective treats apart, and nothing else looks at them."""
    optimizer_state: dict[str, Any] | None = None
    """An optimizer's state dict that replaces the fresh optimizer's, hyperparameters included, as in the authors'
    code; None: a fresh optimizer, as the papers state."""


class MeasureModel(Protocol):
    """What measures a model; the loop knows nothing of test sets."""

    def __call__(
        self, model: nn.Module, classifier: Callable[[Tensor], Tensor] | None = None, /
    ) -> tuple[Measurement, Outcomes]:
        """Measure the model zero-shot, or its image features by a classifier."""
        ...


def train(
    model: nn.Module,
    pairs: Pairs,
    run: Run,
    *,
    measure: MeasureModel,
    context: Context,
) -> None:
    """Train the model in place; report the start, and a point after every epoch and at the steps asked for.

    Resume order: 1. the run's own checkpoint, 2. the model as it was given.

    Raises:
        FloatingPointError: if the loss, the weights or an embedding that is looked at is not finite; the message names
            the step and the learning rate.
        ValueError: if the batch does not split over the ranks, or the data hold less than one batch.
    """
    with float32_products(run.optimization.precision):
        training = Training(model, pairs, run, measure, context)
        try:
            training.run()
            training.end_save()
        except BaseException:
            training.abandon_save()  # the last whole one counts
            raise


@dataclass
class Position:
    """How far a run has come."""

    epoch: int = 0
    """Whole epochs done."""
    step_in_epoch: int = 0
    """Steps done of the epoch after those."""
    step: int = 0
    """Optimizer updates done."""
    point: int = 0
    """Index of the last point."""


@dataclass
class RunningMeans:
    """What was seen since the last point."""

    began: float
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    curve: list[dict[str, float]] = field(default_factory=list)

    def add(self, parts: dict[str, Tensor]) -> None:
        """Count one step's losses, without waiting for the device."""
        for name, value in parts.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] += 1

    def to_plain(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        seconds = time.perf_counter() - self.began
        return {"sums": self.sums, "counts": dict(self.counts), "curve": self.curve, "seconds": seconds}

    @classmethod
    def restored(cls, plain: dict[str, Any], device: torch.device) -> "RunningMeans":
        """The inverse of `to_plain`."""
        tally = cls(time.perf_counter() - plain["seconds"])
        tally.sums = {name: value.to(device) for name, value in plain["sums"].items()}
        tally.counts.update(plain["counts"])
        tally.curve = list(plain["curve"])
        return tally

    def means(self) -> dict[str, float]:
        """Of every part over the steps that had it."""
        return {name: float(value) / self.counts[name] for name, value in self.sums.items()}


class Training:
    """One run under way."""

    def __init__(self, model: nn.Module, pairs: Pairs, run: Run, measure: MeasureModel, context: Context) -> None:
        self.device = next(model.parameters()).device
        self.pairs, self.settings, self.measure, self.context = pairs, run, measure, context
        self.optimization, self.objective = run.optimization, run.objective
        pairs_per_chunk(self.optimization, ranks.world_size())
        if run.compile:
            check_compiler(for_gpu=self.device.type == "cuda")
        pairs.use_views(
            hooks.image_views(self.objective),
            image_augmentation=hooks.image_augmentation(self.objective),
            augments_captions=hooks.augments_captions(self.objective),
            on_device=self.device.type == "cuda",
        )
        self.model = prepare_batch_norm(model, self.optimization).to(memory_format=torch.channels_last)
        self.per_epoch = steps_per_epoch(len(pairs), self.optimization.global_batch_size) if run.epochs else 0
        self.facts = TrainingFacts(
            num_pairs=len(pairs),
            steps_per_epoch=self.per_epoch,
            epochs=run.epochs,
            global_batch_size=self.optimization.global_batch_size,
            embed_dim=embedding_width(self.model),
            seed=run.seed,
            labels=pairs.labels,
            num_classes=pairs.num_classes,
        )
        hooks.check(self.objective, self.facts)
        self.state = hooks.init_state(self.objective, self.model, self.facts)
        if run.activation_checkpointing:
            recompute_blocks(self.model)
        beside = hooks.trained_parameters(self.state)
        self.optimizer = build_optimizer(self.model, self.optimization, beside, carried=run.optimizer_state)
        self.loader = Loader(pairs, num_workers=run.loader_workers, pin=self.device.type == "cuda")
        self.place = Position()
        self.rate = 0.0
        self.saved_at = time.perf_counter()
        self.rolling: Path | None = None
        """The checkpoint inside this epoch."""
        self.writing: checkpoints.Writing | None = None
        """The checkpoint on its way to the disk."""
        self.replaces: Path | None = None
        """The one that goes once it is there."""
        self.tally: RunningMeans | None = None
        """What was seen since the last point before this attempt began."""

    def run(self) -> None:
        """From where the run stands to its end, or until the context asks to stop."""
        run = self.settings
        if run.resume_from is not None:
            self.restore(run.resume_from)
        else:
            began = time.perf_counter()
            measurement, outcomes = run.start or self.measured()
            seconds = time.perf_counter() - began
            name = self.begin_checkpoint() if run.keep_start else None
            self.end_save()
            first = Point(0, 0.0, 0, self.context.attempt, measurement, {}, 0.0, seconds, now_ms(), name)
            report(self.context, first, outcomes)
        last = min(run.epochs, run.stop_after or run.epochs)
        if self.place.epoch >= last:
            return
        check_schedule(warmup_of(self.optimization), self.per_epoch * run.epochs)
        encoder = Encoder(self.model)
        if run.compile:
            encoder.compile()  # in place, so that parameters keep their names; measurements do not pass it
        self.encoder = on_all_ranks(encoder, self.objective, self.optimization)
        while self.place.epoch < last and not ranks.broadcast_object(self.context.should_stop()):
            self.run_epoch(self.place.epoch + 1)

    def restore(self, path: Path) -> None:
        """Go back to where a checkpoint was written."""
        checkpoint = checkpoints.load(path)
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.state is not None:
            self.state.load_state_dict(checkpoint["state"])
        torch.random.set_rng_state(checkpoint["random"])
        self.place = Position(checkpoint["epoch"], checkpoint["step_in_epoch"], checkpoint["step"], checkpoint["point"])
        if checkpoint["tally"] is not None:
            self.tally = RunningMeans.restored(checkpoint["tally"], self.device)

    def run_epoch(self, epoch: int) -> None:
        """The rest of an epoch, its points included; ends early where the context asks to stop inside it."""
        run, place = self.settings, self.place
        tally, self.tally = self.tally or RunningMeans(time.perf_counter()), None
        if place.step_in_epoch == 0:
            hooks.start_epoch(self.objective, self.state, self.epoch_facts(epoch))
        passes = hooks.passes(self.objective, self.state, epoch, len(self.pairs))
        size = self.optimization.global_batch_size
        steps = sum(len(walk.rows) // size for walk in passes)
        if not steps:
            raise ValueError(
                f"epoch {epoch} has no batch: its passes hold {[len(walk.rows) for walk in passes]} pairs and "
                f"global_batch_size={size}; choose a smaller batch"
            )
        self.set_mode()
        for walk, batch in self.batches(epoch, passes):
            parts = self.step(epoch, walk, batch)
            place.step += 1
            place.step_in_epoch += 1
            tally.add(parts)
            if run.log_every is not None and place.step % run.log_every == 0:
                tally.curve.append({"step": place.step, **{name: float(value) for name, value in parts.items()}})
            if self.device.type == "cpu" or place.step % CHECK_EVERY == 0:
                check_finite(tally.sums["loss"], place.step, run)
            self.context.heartbeat()
            if self.writing is not None and self.writing.is_done():
                self.end_save()
            if self.is_time_to_save() and place.step_in_epoch < steps:
                self.save_inside(tally)
            if place.step_in_epoch in run.measure_at and place.step_in_epoch < steps:
                self.make_point(epoch - 1 + place.step_in_epoch / steps, tally)
                if ranks.broadcast_object(self.context.should_stop()):
                    return
                self.set_mode()
                tally = RunningMeans(time.perf_counter())
        place.epoch, place.step_in_epoch = epoch, 0
        self.make_point(float(epoch), tally)

    def batches(self, epoch: int, passes: Iterable[Pass]) -> Iterator[tuple[Pass, PairBatch]]:
        """The epoch's batches from where it stands."""
        skip = self.place.step_in_epoch
        for index, walk in enumerate(passes):
            order = EpochBatches(
                len(self.pairs),
                global_batch_size=self.optimization.global_batch_size,
                epoch=epoch,
                seed=self.settings.seed,
                rank=ranks.rank(),
                world_size=ranks.world_size(),
                rows=walk.rows,
                shards=self.pairs.shards,
                index=index,
            )
            steps = len(order)
            order.skip = min(skip, steps)
            skip -= order.skip
            if len(order):
                for batch in self.loader.batches(order):
                    if batch.broken:
                        self.pairs.found_broken(batch.broken)
                    yield walk, batch

    def step(self, epoch: int, walk: Pass, batch: PairBatch) -> dict[str, Tensor]:
        """One optimizer update at the schedule's rate."""
        if walk.learning_rate is not None:
            self.rate = walk.learning_rate
        else:
            within = min(self.place.step_in_epoch, self.per_epoch - 1)
            self.rate = scheduled_rate(
                (epoch - 1 + self.settings.schedule_shift) * self.per_epoch + within,
                self.optimization,
                self.per_epoch * self.settings.epochs,
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        return train_step(
            self.encoder,
            self.model,
            self.optimizer,
            self.objective,
            self.state,
            batch.to(self.device),
            self.optimization,
            stage=walk.stage,
        )

    def make_point(self, epoch: float, tally: RunningMeans) -> None:
        """Measure, write a checkpoint, report."""
        run, place = self.settings, self.place
        check_finite(tally.sums["loss"], place.step, run)
        ranks.broadcast_buffers(self.model)  # one model is measured and kept: rank 0's
        place.point += 1
        trained = time.perf_counter()
        name = self.begin_checkpoint()  # written while the model is measured, whole before the point is reported
        began = time.perf_counter()
        try:
            measurement, outcomes = self.measured()
        except FloatingPointError:
            self.abandon_save()
            raise
        seconds = time.perf_counter() - began
        self.end_save()
        numbers = tally.means() | {"learning_rate": self.rate, "logit_scale": logit_scale(self.model)}
        numbers |= self.counts()
        report(
            self.context,
            Point(
                index=place.point,
                epoch=epoch,
                step=place.step,
                attempt=self.context.attempt,
                measurement=measurement,
                # A part of a user's method may be no number though the loss is one; no record can hold it.
                train={name: value for name, value in numbers.items() if math.isfinite(value)},
                train_seconds=trained - tally.began,
                evaluate_seconds=seconds,
                timestamp_ms=now_ms(),
                checkpoint=name,
                curve=tuple({k: v for k, v in entry.items() if math.isfinite(v)} for entry in tally.curve),
            ),
            outcomes,
        )

    def counts(self) -> dict[str, float]:
        """How many pairs the objective treats apart, `NAME_pairs`, and how many of them are poisons, `NAME_poisons`."""
        counts, poisoned = {}, self.settings.poisoned_rows
        for name, chosen in hooks.chosen(self.objective, self.state).items():
            counts[f"{name}_pairs"] = float(chosen.sum())
            if poisoned is not None:
                counts[f"{name}_poisons"] = float(chosen.cpu()[poisoned].sum())
        return counts

    def begin_checkpoint(self) -> str | None:
        """Begin to write where the run stands; the file's name, or None where no checkpoints are written."""
        run, place = self.settings, self.place
        if run.checkpoint_folder is None:
            return None
        name = point_name(run.checkpoint_prefix, place.epoch, place.step_in_epoch)
        if ranks.rank() == 0:
            self.begin_save(name, None)
            self.rolling = None
        return name

    def is_time_to_save(self) -> bool:
        """Whether a checkpoint is due before the next point; of rank 0's business alone."""
        run = self.settings
        if run.checkpoint_minutes is None or run.checkpoint_folder is None or ranks.rank() != 0:
            return False
        return time.perf_counter() - self.saved_at > 60 * run.checkpoint_minutes

    def save_inside(self, tally: RunningMeans) -> None:
        """Write a checkpoint inside an epoch, without a point.

        It holds rank 0's BatchNorm statistics, as the epoch's end does: other ranks' are not used before.
        """
        name = rolling_name(self.settings.checkpoint_prefix, self.place.point, self.place.step)
        self.rolling = self.begin_save(name, tally, replaces=self.rolling)

    def begin_save(self, name: str, tally: RunningMeans | None, replaces: Path | None = None) -> Path:
        """Begin to write a checkpoint under the name, once the last one is there; `end_save` ends it."""
        assert self.settings.checkpoint_folder is not None
        self.end_save()
        path = self.settings.checkpoint_folder / name
        self.writing, self.replaces = checkpoints.Writing(self.checkpoint(tally), path), replaces
        self.saved_at = time.perf_counter()
        return path

    def end_save(self) -> None:
        """Wait until the checkpoint that is being written is there, if one is, and say so; remove what it replaces."""
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        writing.wait()
        self.settings.saved(writing.path, None if self.replaces is None else self.replaces.name)
        if self.replaces is not None:
            self.replaces.unlink(missing_ok=True)

    def abandon_save(self) -> None:
        """Leave nothing of a checkpoint that is being written: no point will name it."""
        if self.writing is not None:
            self.writing.abandon()
            self.writing = None

    def checkpoint(self, tally: RunningMeans | None = None) -> checkpoints.Checkpoint:
        """Everything from which the run goes on."""
        return {
            "tally": tally.to_plain() if tally is not None else None,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": self.state.state_dict() if self.state is not None else {},
            "epoch": self.place.epoch,
            "step_in_epoch": self.place.step_in_epoch,
            "step": self.place.step,
            "point": self.place.point,
            "random": torch.random.get_rng_state(),
            "config": self.settings.config,
        }

    def measured(self) -> tuple[Measurement, Outcomes]:
        """The model as it is, by prompts or by the objective's own classifier.

        What an epoch's last step did to the weights, no loss has seen yet.
        """
        step = self.place.step
        if names := not_finite(self.model.state_dict()):
            raise diverged(f"the weights are not finite ({names[0]})", step, self.settings)
        classifier = hooks.classifier(self.objective, self.state)
        try:
            return self.measure(self.model) if classifier is None else self.measure(self.model, classifier)
        except FloatingPointError as error:
            raise diverged(str(error), step, self.settings) from error

    def set_mode(self) -> None:
        """Training mode, for the model and for what the objective trains beside it."""
        set_training_mode(self.model, self.optimization)

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the optimizer's moments of parameters that were made anew."""
        for parameter in parameters:
            self.optimizer.state.pop(parameter, None)

    def epoch_facts(self, epoch: int) -> EpochFacts:
        """What the objective may know and do at the start of an epoch."""
        return EpochFacts(
            epoch,
            self.facts,
            embed=lambda other=None: self.embed_all(epoch, other),
            cosines=lambda other=None, rows=None: self.cosines_of(epoch, other, rows),
            forget=self.forget,
        )

    def embed_all(self, epoch: int, other: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """All pairs as the epoch sees them, embedded in evaluation mode; the ranks share the work.

        Returns:
            (N, D) image embeddings and (N, D) text embeddings, unit norm, float32, on the CPU.
        """
        images, texts = zip(*self.over_pairs(epoch, other, lambda images, texts: (images, texts)), strict=True)
        return torch.cat(images), torch.cat(texts)

    def cosines_of(self, epoch: int, other: nn.Module | None = None, rows: Tensor | None = None) -> Tensor:
        """The cosine of image and caption as the epoch sees them, of all pairs or of some rows, (N,) on the CPU; as
        `embed_all`."""
        scores = self.over_pairs(epoch, other, lambda images, texts: ((images * texts).sum(dim=1),), rows)
        return torch.cat([score for (score,) in scores])

    @torch.no_grad()
    def over_pairs(
        self,
        epoch: int,
        other: nn.Module | None,
        keep: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        wanted: Tensor | None = None,
    ) -> list[tuple[Tensor, ...]]:
        """What `keep` makes of every chunk's unit embeddings, in the order of the wanted rows (None: of all pairs), on
        the CPU of every rank."""
        model = self.model if other is None else other.to(self.device)
        wanted = torch.arange(len(self.pairs)) if wanted is None else wanted.cpu()
        share = wanted.tensor_split(ranks.world_size())[ranks.rank()]

        def of_share() -> list[tuple[Tensor, ...]]:
            rows: list[tuple[Tensor, ...]] = []
            with evaluation_mode(model):
                for chunk in share.split(EMBED_BATCH):
                    batch = self.pairs.first_copies(epoch, chunk.tolist()).to(self.device)
                    images, texts, _ = encode(Encoder(model), batch.images, batch.tokens, self.optimization)
                    with_directions(images, "image embeddings")
                    with_directions(texts, "caption embeddings")
                    kept = keep(F.normalize(images, dim=-1), F.normalize(texts, dim=-1))
                    rows.append(tuple(tensor.cpu() for tensor in kept))
                    self.context.heartbeat()
            return rows

        try:
            return [part for one in ranks.gather_computed(of_share) for part in one]
        except FloatingPointError as error:
            raise diverged(str(error), self.place.step, self.settings) from error


def on_all_ranks(encoder: nn.Module, objective: Objective, optimization: Optimization) -> nn.Module:
    """The encoder with its gradients averaged over the ranks; itself where there is one."""
    if not ranks.is_distributed():
        return encoder
    every = hooks.reaches_every_parameter(objective)
    # Buffers stay local during an epoch (the papers' BatchNorm is per rank) and follow rank 0 at its end. torch 2.14
    # warns of the old word; under the new one ranks take rank 0's at the beginning too, where all have the same.
    new, old = "forward_sync_buffers", "broadcast_buffers"
    word = new if new in signature(DistributedDataParallel.__init__).parameters else old
    stay_local: dict[str, Any] = {word: False}
    return DistributedDataParallel(
        encoder,
        **stay_local,
        gradient_as_bucket_view=True,
        static_graph=every and optimization.num_chunks == 1,
        find_unused_parameters=not every,
    )


def train_step(
    encoder: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    state: nn.Module | None,
    batch: PairBatch,
    optimization: Optimization,
    *,
    stage: str = "",
) -> dict[str, torch.Tensor]:
    """One optimizer update on this rank's share of a batch.

    Originals and views pass the network in one forward, so that BatchNorm's statistics mix both, as in CleanCLIP.

    Returns:
        `loss` and the objective's parts, detached, of the global batch.
    """
    chunks = None
    if optimization.num_chunks == 1:
        features = encode_pairs(encoder, batch, optimization)
    else:
        parts = batch.chunks(optimization.num_chunks)
        chunks = Chunks(encoder, [partial(encode_pairs, batch=part, optimization=optimization) for part in parts])
        features = chunks.outputs
    loss = objective.loss(state, gathered(features, batch, optimization, stage=stage))
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    if chunks is not None:
        chunks.backward()
    ranks.average_gradients(hooks.trained_parameters(state))
    if optimization.max_gradient_norm is not None:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(trained, optimization.max_gradient_norm)
    optimizer.step()
    clamp_logit_scale(model)
    return ranks.means({"loss": loss.total.detach(), **{name: part.detach() for name, part in loss.parts.items()}})


def encode_pairs(encoder: nn.Module, batch: PairBatch, optimization: Optimization) -> tuple[Tensor, ...]:
    """Features of this rank's images and texts, then of the views of both where there are any, (b, D) each and not of
    unit norm; last the logit scale."""
    images, tokens = batch.images, batch.tokens
    if batch.image_views is not None and batch.token_views is not None:
        images, tokens = torch.cat([images, batch.image_views]), stacked(tokens, batch.token_views)
    image_rows, text_rows, scale = encode(encoder, images, tokens, optimization)
    size = len(batch.rows)
    pairs = zip(image_rows.split(size), text_rows.split(size), strict=True)
    return (*(rows for pair in pairs for rows in pair), scale)


def gathered(
    features: tuple[Tensor, ...], batch: PairBatch, optimization: Optimization, *, stage: str = ""
) -> EmbeddedBatch:
    """The batch of all ranks from what `encode_pairs` gives for this rank's share."""
    *rows, scale = features
    image_features, *image_views = (ranks.gather_rows(each) for each in rows[::2])
    texts, *text_views = (ranks.gather_rows(F.normalize(each, dim=-1)) for each in rows[1::2])

    def embed_with(other: nn.Module) -> tuple[Tensor, Tensor]:
        parts, encoder = batch.chunks(optimization.num_chunks), Encoder(other)
        with torch.no_grad():
            theirs = [encode(encoder, part.images, part.tokens, optimization)[:2] for part in parts]
            images, texts = (
                ranks.gather_rows(F.normalize(torch.cat(rows), dim=-1)) for rows in zip(*theirs, strict=True)
            )
        return images, texts

    return EmbeddedBatch(
        images=F.normalize(image_features, dim=-1),
        texts=texts,
        logit_scale=scale,
        image_views=F.normalize(image_views[0], dim=-1) if image_views else None,
        text_views=text_views[0] if text_views else None,
        share=ranks.own_share(len(batch.rows)),
        find_rows=lambda: ranks.gather_rows(batch.rows),
        image_features=image_features,
        stage=stage,
        embed_with=embed_with,
    )


def encode(
    encoder: nn.Module, images: Tensor, tokens: Tensor, optimization: Optimization
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of uint8 images and of tokens, not yet of unit norm, and the logit scale, in the run's precision."""
    pixels = normalise_pixels(images)
    with forward_pass(images.device, optimization.precision):
        image_rows, text_rows, scale = encoder(pixels, tokens)
    return image_rows, text_rows, scale


def prepare_batch_norm(model: nn.Module, optimization: Optimization) -> nn.Module:
    """Convert BatchNorm layers where statistics are taken over all ranks.

    Raises:
        ValueError: for `sync` on the CPU, where torch has no such layer.
    """
    if optimization.batch_norm != "sync" or not ranks.is_distributed():
        return model
    if next(model.parameters()).device.type != "cuda":
        raise ValueError("batch_norm='sync' runs on CUDA only; choose 'local' or 'frozen'")
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


def set_training_mode(model: nn.Module, optimization: Optimization) -> None:
    """Training mode; with `batch_norm="frozen"` BatchNorm layers use their running statistics and keep them."""
    model.train()
    if optimization.batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def check_finite(loss_sum: torch.Tensor, step: int, run: Run) -> None:
    """Raise FloatingPointError where the sum of losses is not a finite number."""
    if not math.isfinite(float(loss_sum)):
        raise diverged("the loss is not finite", step, run)


def diverged(what: str, step: int, run: Run) -> FloatingPointError:
    """The error of a run in which something is not finite after so many steps."""
    remedy = "lower the learning rate or clip gradients (max_gradient_norm)" if step else "choose another start"
    return FloatingPointError(f"{what} at step {step} with learning_rate={run.optimization.learning_rate:g}; {remedy}")


def logit_scale(model: nn.Module) -> float:
    """1 / temperature of the model now."""
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            return float(parameter.detach().exp())
    return math.nan


def report(context: Context, point: Point, outcomes: Outcomes) -> None:
    """Report on every rank (Ray Train's report is a barrier over them) once rank 0's checkpoint is on the disk."""
    ranks.barrier()
    context.report(point, outcomes)
