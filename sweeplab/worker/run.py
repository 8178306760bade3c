"""Run: where the stages are joined. data -> attacks -> pre-training or cleaning -> evaluation, one job at a time."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sweeplab.cleaning.start import recalibrate_batch_norm
from sweeplab.clip_checkpoints import load_into, load_weights
from sweeplab.clip_model import Architecture, build
from sweeplab.evaluation.measure import Measure
from sweeplab.experiment import CleaningSweep, PretrainedVictim, Resources
from sweeplab.records import Measurement, Outcomes
from sweeplab.specs import InvalidInput
from sweeplab.storage.checkpoint_names import attempt_prefix
from sweeplab.storage.checkpoint_store import Storage, Uploads
from sweeplab.training.loop import Run, train
from sweeplab.training.randomness import stream_seed
from sweeplab.worker.inputs import (
    checkpoint_config,
    cleaning_pairs,
    has_cleanclips_trainer,
    load_optimizer_state,
    measure_for,
    plain_images,
    victim_model,
    victim_pairs,
)
from sweeplab.worker.jobs import CleaningJob, Job, Machine, MeasuringJob, PretrainingJob, WorkerContext

logger = logging.getLogger("sweeplab")

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps what processes hand to each other without a copy: batches of loaders among it."""


@contextmanager
def checkpoint_target(job: Job, minutes: float | None) -> Iterator[dict[str, Any]]:
    """Fields of a Run that say when and where its checkpoints are written and where it goes on from.

    With an object store, files are written on this node first and uploaded while training goes on.
    """
    storage = Storage(job.checkpoints)
    fields = {"checkpoint_prefix": attempt_prefix(job.attempt), "checkpoint_minutes": minutes}
    if not storage.is_remote:
        storage.wait_for_folder()
        resume = Path(job.resume_from.location) if job.resume_from else None
        yield {**fields, "checkpoint_folder": Path(job.checkpoints), "resume_from": resume}
        return
    uploads = Uploads(storage)
    try:
        resume = None
        if job.resume_from is not None:
            resume = uploads.folder / "resume.pt"
            storage.download(job.resume_from.name, resume)
        yield {**fields, "checkpoint_folder": uploads.folder, "resume_from": resume, "saved": uploads.add}
        uploads.finish()
    finally:
        uploads.close()


def loader_workers(resources: Resources, machine: Machine, *, global_batch_size: int, image_size: int) -> int:
    """Processes that make batches beside this one: as asked for, else as many as may decode where a GPU trains and
    whose batches find room in this process's share of shared memory, none where not one does; on a CPU they would take
    the cores that train."""
    if resources.loader_workers is not None:
        return resources.loader_workers
    if not machine.use_cuda:
        return 0
    # Images and views, two batches that wait and one that is being made. A loader without room would wait for ever.
    num_bytes = 3 * (global_batch_size // resources.workers) * 2 * 3 * image_size**2
    room = int(shutil.disk_usage(SHARED_MEMORY).free * machine.share_of_node) // num_bytes
    if not room:
        logger.warning(
            f"{SHARED_MEMORY} has no room for a loader's three batches of {num_bytes // 3:,} bytes, so that the GPU "
            "waits for each batch to be made; give it more (docker run --shm-size)"
        )
    return min(machine.decoders, room)


def pretrain(job: PretrainingJob, context: WorkerContext) -> None:
    """data -> attack -> pre-training -> evaluation: train a victim, reporting every epoch."""
    # The files may lie elsewhere on this node; checkpoints still record the spec as it was written.
    victim, device = job.input_paths.on_this_node(job.victim, context.node_copy), prepare_process(job.machine)
    pairs = victim_pairs(
        victim, job.machine, known=job.contents, heartbeat=context.heartbeat, report=context.found_broken
    )
    measure = _measure_of(victim, victim.architecture, job, context)
    model = build(victim.architecture, stream_seed(victim.seed, "initial weights"))
    if job.initial is not None:
        initial = context.bring(job.initial, job.weights)
        load_into(model, load_weights(initial), str(victim.initial))
    model.to(device)
    with checkpoint_target(job, victim.resources.checkpoint_minutes) as places:
        run = Run(
            objective=victim.objective,  # type: ignore[arg-type]
            optimization=victim.optimization,
            epochs=victim.epochs,
            stop_after=victim.select if isinstance(victim.select, int) else None,
            seed=victim.seed,
            config=checkpoint_config(victim.architecture, {"victim": job.victim.to_json()}),
            loader_workers=loader_workers(
                victim.resources,
                job.machine,
                global_batch_size=victim.optimization.global_batch_size,
                image_size=victim.architecture.image_size,
            ),
            activation_checkpointing=victim.resources.activation_checkpointing,
            compile=victim.resources.compile,
            schedule_shift=1 if victim.protocol == "authors" else 0,
            poisoned_rows=pairs.poisoned_rows,
            **places,
        )
        train(model, pairs, run, measure=measure, context=context)


def clean(job: CleaningJob, context: WorkerContext) -> None:
    """victim -> cleaning -> evaluation: run one attempt of one trial, reporting the start and every epoch."""
    # 1. The inputs. Files may lie elsewhere on this node; checkpoints record the spec as it was written.
    sweep, device = job.input_paths.on_this_node(job.sweep, context.node_copy), prepare_process(job.machine)
    setting = sweep.setting(job.params)
    pairs = cleaning_pairs(
        sweep, job.machine, known=job.contents, heartbeat=context.heartbeat, report=context.found_broken
    )
    measure = _measure_of(sweep, sweep.victim.architecture, job, context)
    # 2. The model to start from: the victim, changed as the setting says.
    checkpoint = context.bring(job.victim.checkpoint, job.weights)
    model = victim_model(sweep.victim.architecture, checkpoint).to(device)
    # On a resumed run too: what a method remembers of its start (PAR's frozen copy) is made from it again.
    setting.start.apply(model, sweep.victim.architecture, stream_seed(sweep.seed, "perturbation"))
    if setting.start.recalibrate_batch_norm:
        recalibrate_batch_norm(model, plain_images(pairs, setting.optimization.global_batch_size, device))
    # 3. The start's point. An untouched victim has been measured once for all trials of the sweep.
    is_victim = job.victim.is_start and not setting.start.changes_victim
    known_start = (job.victim.measurement, job.victim.outcomes) if is_victim else None
    # 4. Optimisation, with what the authors' code fixes regardless of the setting.
    optimization = setting.optimization
    if sweep.protocol == "authors":
        optimization = optimization.replace(**getattr(setting.method, "authors_optimization", {}))
    as_cleanclip = has_cleanclips_trainer(sweep)
    facts = {"sweep": job.sweep.to_json(), "trial": job.number, "params": job.params}
    with checkpoint_target(job, sweep.resources.checkpoint_minutes) as places:
        run = Run(
            objective=setting.method,  # type: ignore[arg-type]
            optimization=optimization,
            epochs=sweep.epochs,
            seed=sweep.seed,
            config=checkpoint_config(sweep.victim.architecture, facts),
            start=known_start,
            keep_start=sweep.start_counts(setting),
            loader_workers=loader_workers(
                sweep.resources,
                job.machine,
                global_batch_size=optimization.global_batch_size,
                image_size=sweep.victim.architecture.image_size,
            ),
            activation_checkpointing=sweep.resources.activation_checkpointing,
            compile=sweep.resources.compile,
            measure_at=sweep.measure_at,
            log_every=sweep.log_every,
            schedule_shift=1 if as_cleanclip else 0,
            optimizer_state=load_optimizer_state(checkpoint) if as_cleanclip else None,
            **places,
        )
        train(model, pairs, run, measure=measure, context=context)


def _measure_of(
    spec: PretrainedVictim | CleaningSweep, architecture: Architecture, job: Job, context: WorkerContext
) -> Measure:
    known, heartbeat = job.contents, context.heartbeat
    return measure_for(
        architecture, spec.evaluation, spec.trigger(), job.machine, spec.protocol, known=known, heartbeat=heartbeat
    )


def measure_checkpoint(job: MeasuringJob, heartbeat: Callable[[], None] = lambda: None) -> tuple[Measurement, Outcomes]:
    """checkpoint -> evaluation; `heartbeat` is called with every batch."""
    device = prepare_process(job.machine)
    model = victim_model(job.architecture, Path(job.checkpoint))
    measure = measure_for(
        job.architecture,
        job.evaluation,
        job.trigger,
        job.machine,
        job.protocol,
        known=job.contents,
        heartbeat=heartbeat,
    )
    with blaming(job.checkpoint):
        return measure(model.to(device))


@contextmanager
def blaming(checkpoint: str | Path) -> Iterator[None]:
    """Numbers that are none are the fault of the checkpoint that is measured.

    Raises:
        InvalidInput: naming it, for a FloatingPointError.
    """
    try:
        yield
    except FloatingPointError as error:
        raise InvalidInput(
            f"checkpoint {checkpoint} cannot be measured: {error}; its training diverged or the file is damaged: give "
            "another checkpoint"
        ) from error


def prepare_process(machine: Machine) -> torch.device:
    """Threads and device of this process."""
    torch.set_num_threads(machine.cores)
    if not machine.use_cuda:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidInput(
            "a GPU was asked for and torch sees none; set resources.gpus_per_worker=0 or mend the driver"
        )
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
