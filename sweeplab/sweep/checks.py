"""Checks: what can be refused before any process starts, and the digests of what was read."""

from pathlib import Path
from typing import Any

import torch

from sweeplab.attacks.exchange import ImportedPoison
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.clip_folders import checkpoint_file
from sweeplab.clip_model import Architecture
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.evaluation.measure import evaluation_digest
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.specs import InvalidInput, file_digest
from sweeplab.training import objective as hooks
from sweeplab.training.batches import steps_per_epoch
from sweeplab.training.objective import TrainingFacts
from sweeplab.training.optimisation import Optimization, check_schedule, warmup_of
from sweeplab.worker.inputs import Inputs, victim_model
from sweeplab.worker.jobs import DataDigests, Machine
from sweeplab.worker.training_sets import TrainingSet


def machine_for(sweep_or_victim: CleaningSweep | PretrainedVictim, home: Path) -> Machine:
    """What a worker process may use."""
    resources = sweep_or_victim.resources
    return Machine(
        home / "data", resources.cpus_per_worker, use_cuda=False, node_cache_gigabytes=resources.node_cache_gigabytes
    )


def data_digests(
    spec: CleaningSweep | PretrainedVictim,
    architecture: Architecture,
    training: TrainingSet,
    inputs: Inputs,
) -> DataDigests:
    """Digests of what workers must find; has this node keep the training set for them."""
    size, trigger, test = architecture.image_size, spec.trigger(), inputs.test(spec.evaluation)
    targets = inputs.targets(trigger)
    evaluation = evaluation_digest(spec.evaluation, test, size, trigger, spec.protocol, targets)
    labels = targets.labels if targets is not None else ()
    return DataDigests(training.table.digest, evaluation, inputs.keep(spec, training), dict(inputs.broken), labels)


def digest_of_victim(victim: PretrainedVictim, inputs: Inputs) -> str:
    """The victim's digest, of its data and its starting weights by content."""
    pairs, test = inputs.victim_table(victim)[0], inputs.test(victim.evaluation)
    initial = {}
    if victim.initial is not None:
        victim_model(victim.architecture, victim.initial)
        initial["initial"] = file_digest(checkpoint_file(victim.initial))
    words = {"captions": victim.text_augmentation} if victim.text_augmentation != "swap+delete" else {}
    poisoning = victim.poisoning
    poisons = poisoning.contents(len(pairs)) if isinstance(poisoning, ImportedPoison) else {}
    if isinstance(poisoning, TargetedImages) and poisoning.mentioned_in is not None:
        targets = inputs.targets(victim.trigger())
        assert targets is not None
        poisons["targets"] = targets.digest
    return victim.digest(pairs=pairs.digest, **victim.evaluation.contents(test), **initial, **words, **poisons)


def check_training(optimization: Any, num_pairs: int, epochs: int, name: str, measure_at: tuple[int, ...] = ()) -> None:
    """Refuse a batch larger than the data, a warm-up longer than the training, and points outside of an epoch."""
    if epochs:
        try:
            steps = steps_per_epoch(num_pairs, optimization.global_batch_size)
            check_schedule(warmup_of(optimization), steps * epochs)
            if measure_at and measure_at[-1] >= steps:
                raise ValueError(
                    f"measure_at={measure_at} must lie inside an epoch of {steps} steps; its end is measured anyway"
                )
        except ValueError as error:
            raise InvalidInput(f"{name}: {error}") from error


def check_objective(
    objective: Any,
    optimization: Optimization,
    pairs: PairTable,
    epochs: int,
    sweep: CleaningSweep,
    labelled: LabelledImages | None = None,
) -> None:
    """Let an objective or a method refuse its run now; in a worker it would only be heard after the victim's training.

    A start that is only measured (`epochs=0`) trains nothing that could not fit.
    """
    if epochs:
        metadata = TrainingFacts(
            num_pairs=len(pairs),
            pairs_digest=pairs.digest,
            steps_per_epoch=steps_per_epoch(len(pairs), optimization.global_batch_size),
            epochs=epochs,
            global_batch_size=optimization.global_batch_size,
            embed_dim=int(sweep.victim.architecture.resolved()["embed_dim"]),
            seed=sweep.seed,
            labels=torch.from_numpy(labelled.labels) if labelled is not None else None,
            num_classes=len(labelled.class_names) if labelled is not None else 0,
        )
        hooks.check(objective, metadata)
