"""The one loop that pre-training and cleaning share. It knows nothing of Ray, MLflow or files of a sweep."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sweeplab.clip_model import Encoder, normalise_pixels
from sweeplab.records import Measurement, Outcomes, Point
from sweeplab.training import checkpoints, ranks
from sweeplab.training.batches import EpochBatches, PairBatch, Pairs, epoch_loader, steps_per_epoch
from sweeplab.training.objective import EmbeddedBatch, Objective
from sweeplab.training.optimisation import (
    Optimization,
    build_optimizer,
    check_schedule,
    clamp_logit_scale,
    learning_rate_at,
)

CHECK_EVERY = 20
"""Steps between two looks at the loss on a GPU, where every look waits for the device."""


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
    resume_from: Path | None = None
    """A checkpoint of an earlier attempt."""
    start: tuple[Measurement, Outcomes] | None = None
    """The start's measurement where it is known already; None: it is measured."""
    loader_workers: int = 0
    """Processes that decode images which do not fit into memory."""


def train(
    model: nn.Module,
    pairs: Pairs,
    run: Run,
    *,
    measure: Callable[[nn.Module], tuple[Measurement, Outcomes]],
    context: Context,
) -> None:
    """Train the model in place; report the start, and a point after every epoch.

    Resume order: 1. the run's own checkpoint, 2. the model as it was given.

    Raises:
        FloatingPointError: if the loss is no longer finite; the message names the step.
        ValueError: if the batch does not split over the ranks, or the data hold less than one batch.
    """
    device = next(model.parameters()).device
    optimization = run.optimization
    share = ranks.per_rank(optimization.global_batch_size, ranks.world_size())
    pairs.use_views(run.objective.image_views)
    model = prepare_batch_norm(model, optimization).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, optimization)
    state = run.objective.init_state(model)
    epoch = step = point = 0
    if run.resume_from is not None:
        checkpoint = checkpoints.load(run.resume_from)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        if state is not None:
            state.load_state_dict(checkpoint["state"])
        torch.random.set_rng_state(checkpoint["random"])
        epoch, step, point = checkpoint["epoch"], checkpoint["step"], checkpoint["point"]
    else:
        began = time.perf_counter()
        measurement, outcomes = run.start or measure(model)
        first = Point(0, 0.0, 0, context.attempt, measurement, {}, 0.0, time.perf_counter() - began, now_ms())
        report(context, first, outcomes)

    last = min(run.epochs, run.stop_after or run.epochs)
    if epoch >= last:
        return
    per_epoch = steps_per_epoch(len(pairs), optimization.global_batch_size)
    total_steps = per_epoch * run.epochs
    check_schedule(optimization.warmup_steps, total_steps)
    encoder: nn.Module = Encoder(model)
    if ranks.is_distributed():
        # Buffers stay local during an epoch (the papers' BatchNorm is per rank) and follow rank 0 at its end.
        encoder = DistributedDataParallel(
            encoder, broadcast_buffers=False, gradient_as_bucket_view=True, static_graph=True
        )
    while epoch < last and not ranks.broadcast_object(context.should_stop()):
        epoch += 1
        began = time.perf_counter()
        set_training_mode(model, optimization)
        batches = EpochBatches(
            len(pairs),
            global_batch_size=optimization.global_batch_size,
            epoch=epoch,
            seed=run.seed,
            rank=ranks.rank(),
            world_size=ranks.world_size(),
        )
        loader = epoch_loader(pairs, batches, num_workers=run.loader_workers, pin=device.type == "cuda")
        sums: dict[str, torch.Tensor] = {}
        rate = 0.0
        for batch in loader:
            assert len(batch.rows) == share
            rate = learning_rate_at(step, optimization.learning_rate, optimization.warmup_steps, total_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = train_step(encoder, model, optimizer, run.objective, state, batch.to(device), optimization)
            step += 1
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value
            if device.type == "cpu" or step % CHECK_EVERY == 0:
                check_finite(sums["loss"], step, run)
        check_finite(sums["loss"], step, run)
        ranks.broadcast_buffers(model)
        trained = time.perf_counter()
        measurement, outcomes = measure(model)
        measured = time.perf_counter()
        point += 1
        checkpoint_name: str | None = None
        if run.checkpoint_folder is not None:
            checkpoint_name = f"{run.checkpoint_prefix}epoch-{epoch:04d}.pt"
            if ranks.rank() == 0:
                content: checkpoints.Checkpoint = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "state": state.state_dict() if state is not None else {},
                    "epoch": epoch,
                    "step": step,
                    "point": point,
                    "random": torch.random.get_rng_state(),
                    "config": run.config,
                }
                checkpoints.save(content, run.checkpoint_folder / checkpoint_name)
        train_numbers = {name: float(value) / per_epoch for name, value in sums.items()}
        train_numbers |= {"learning_rate": rate, "logit_scale": logit_scale(model)}
        report(
            context,
            Point(
                index=point,
                epoch=float(epoch),
                step=step,
                attempt=context.attempt,
                measurement=measurement,
                # A part of a user's method may be no number though the loss is one; no record can hold it.
                train={name: value for name, value in train_numbers.items() if math.isfinite(value)},
                train_seconds=trained - began,
                evaluate_seconds=measured - trained,
                timestamp_ms=now_ms(),
                checkpoint=checkpoint_name,
            ),
            outcomes,
        )


def train_step(
    encoder: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    state: nn.Module | None,
    batch: PairBatch,
    optimization: Optimization,
) -> dict[str, torch.Tensor]:
    """One optimizer update on this rank's share of a batch.

    Originals and views pass the network in one forward, so that BatchNorm's statistics mix both, as in CleanCLIP.

    Returns:
        `loss` and the objective's parts, detached, of the global batch.
    """
    embedded = embed(encoder, batch, optimization)
    loss = objective.loss(state, embedded)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    if optimization.max_gradient_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), optimization.max_gradient_norm)
    optimizer.step()
    clamp_logit_scale(model)
    return {"loss": loss.total.detach(), **{name: part.detach() for name, part in loss.parts.items()}}


def embed(encoder: nn.Module, batch: PairBatch, optimization: Optimization) -> EmbeddedBatch:
    """Embed this rank's share of a batch and gather the rows of all ranks."""
    has_views = batch.image_views is not None and batch.token_views is not None
    images, tokens = batch.images, batch.tokens
    if has_views:
        images = torch.cat([images, batch.image_views])  # type: ignore[list-item]
        tokens = torch.cat([tokens, batch.token_views])  # type: ignore[list-item]
    pixels = normalise_pixels(images).contiguous(memory_format=torch.channels_last)
    with autocast(images.device, optimization):
        image_rows, text_rows, scale = encoder(pixels, tokens)
    size = len(batch.rows)
    gathered = [ranks.gather_rows(rows) for rows in (*image_rows.split(size), *text_rows.split(size))]
    if has_views:
        return EmbeddedBatch(gathered[0], gathered[2], scale, gathered[1], gathered[3])
    return EmbeddedBatch(gathered[0], gathered[1], scale)


def autocast(device: torch.device, optimization: Optimization) -> AbstractContextManager[object]:
    """The forward pass's precision."""
    if optimization.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


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
        raise FloatingPointError(
            f"the loss is not finite at step {step} with learning_rate={run.optimization.learning_rate:g}; "
            "lower the learning rate or clip gradients (max_gradient_norm)"
        )


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


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000
