"""Prepare: read and check all inputs of a sweep before any process starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweeplab.attacks.exchange import ImportedPoison
from sweeplab.attacks.targeted import Targets
from sweeplab.clip_model import Architecture, check_prompts
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.evaluation.measure import Trigger, evaluation_digest, triggered_rows, wanted_classes
from sweeplab.experiment import CleaningSweep, CleanSample, ClosestTo, PretrainedVictim, SelectedTrial
from sweeplab.records import MeasuredImages
from sweeplab.specs import InvalidInput, digest_of, file_digest
from sweeplab.sweep_folder import SweepFolder
from sweeplab.training import objective as hooks
from sweeplab.training.batches import steps_per_epoch
from sweeplab.training.objective import TrainingFacts
from sweeplab.training.optimisation import Optimization, build_optimizer, check_schedule, warmup_of
from sweeplab.worker.inputs import (
    cleaning_poison,
    cleaning_table,
    has_cleanclips_trainer,
    load_optimizer_state,
    victim_model,
    victim_table,
)
from sweeplab.worker.jobs import DataDigests, Machine


@dataclass(frozen=True)
class Prepared:
    """A sweep whose inputs have been read and checked."""

    sweep: CleaningSweep
    digest: str
    contents: dict[str, str]
    """Digests of the data by content, which are part of the sweep's own."""
    expected: DataDigests
    """What its workers must find."""
    victim_digest: str
    num_pairs: int
    """Cleaning pairs."""
    num_pretraining_pairs: int
    num_poisons: int
    images: MeasuredImages
    """Of the test set."""
    notes: tuple[str, ...] = ()
    """What a user should look at before anything runs; see `LabelledImages`."""


def machine_for(sweep_or_victim: CleaningSweep | PretrainedVictim, home: Path) -> Machine:
    """What a worker process may use."""
    resources = sweep_or_victim.resources
    return Machine(
        home / "data", resources.cpus_per_worker, use_cuda=False, decoded_gigabytes=resources.decoded_gigabytes
    )


def prepare(sweep: CleaningSweep, home: Path, *, fresh: bool = False) -> Prepared:
    """Read all inputs and check whatever can be checked before any process starts.

    Args:
        sweep: to be run.
        home: the home.
        fresh: a sweep of that name is set aside, and decides nothing.

    Raises:
        InvalidInput: for missing or damaged data, prompts that do not tell the classes apart, a target that is no
            class, a trigger that does not fit, a warm-up longer than the training, a batch larger than the data, an
            objective or method that does not fit its data, a checkpoint of another architecture, or without the
            optimizer that protocol `authors` carries over.
    """
    sweep = with_shared_storage(sweep.with_text_augmentation_resolved())
    sweep = with_startup_trials(sweep, None if fresh else SweepFolder(home / "sweeps" / sweep.name))
    machine = machine_for(sweep, home)
    test = sweep.evaluation.load(machine.data_home)
    notes = list(test.notes)
    trigger = sweep.trigger()
    targets = trigger.targets(machine.data_home)
    wanted_classes(test, trigger, targets)
    check_prompts(sweep.victim.architecture, test.class_names, sweep.evaluation.prompts(), sweep.protocol)
    trigger.attack.check_fits(sweep.victim.architecture.image_size)
    contents = {"test": test.digest}
    if targets is not None:
        contents["targets"] = targets.digest
    if sweep.text_augmentation != "swap+delete":
        contents["captions"] = sweep.text_augmentation
    num_pretraining_pairs = num_poisons = 0
    if isinstance(sweep.victim, PretrainedVictim):
        table, plan = victim_table(sweep.victim, machine)
        num_pretraining_pairs, num_poisons = len(table), len(plan.indices)
        victim_test = sweep.victim.evaluation.load(machine.data_home)
        notes += victim_test.notes
        wanted_classes(victim_test, trigger, targets)
        _check_prompts_of(sweep.victim, machine)
        _check_training(sweep.victim.optimization, len(table), sweep.victim.epochs, sweep.victim.name)
        _check_objective(sweep.victim.objective, sweep.victim.optimization, len(table), sweep.victim.epochs, sweep)
        victim_digest = _digest_of_victim(sweep.victim, table, victim_test)
        contents["victim"] = victim_digest
    elif isinstance(sweep.victim, SelectedTrial):
        other = prepare(sweep.victim.sweep, home)
        num_pretraining_pairs, num_poisons = other.num_pretraining_pairs, other.num_poisons
        notes += other.notes
        # More trials of the other sweep may select another one, so their number is part of what the victim is.
        victim_digest = digest_of([other.digest, other.sweep.num_trials()])
        contents["victim"] = victim_digest
    else:
        model = victim_model(sweep.victim.architecture, sweep.victim.path)
        if has_cleanclips_trainer(sweep) and sweep.epochs:
            build_optimizer(model, sweep.optimization, carried=load_optimizer_state(sweep.victim.path))
        victim_digest = file_digest(sweep.victim.path)
        contents["victim"] = victim_digest
    pairs = cleaning_table(sweep, machine)
    few = cleaning_poison(sweep, pairs, machine)
    trained = few.training_table(pairs) if few is not None else pairs
    expected = _contents(sweep, sweep.victim.architecture, trained, test, targets)
    labelled = sweep.data.labelled(machine.data_home) if isinstance(sweep.data, LabelledPairs) else None
    if not isinstance(sweep.data, CleanSample):
        contents["pairs"] = pairs.digest
    if labelled is not None:
        assert isinstance(sweep.data, LabelledPairs)
        notes += labelled.notes
        _check_classes(sweep, labelled, test)
        check_prompts(sweep.victim.architecture, test.class_names, (sweep.data.template,), sweep.protocol)
    for params in sweep.grid.points() if sweep.search.sampler == "grid" and sweep.grid else ({},):
        setting = sweep.setting(params)
        _check_training(setting.optimization, len(pairs), sweep.epochs, sweep.name, sweep.measure_at)
        if params or not _searches_counts(sweep):
            _check_objective(setting.method, setting.optimization, len(pairs), sweep.epochs, sweep, labelled)
    return Prepared(
        sweep,
        sweep.digest(**contents),
        contents,
        expected,
        victim_digest,
        len(pairs),
        num_pretraining_pairs,
        num_poisons,
        _measured_images(test, trigger),
        tuple(dict.fromkeys(notes)),
    )


def _measured_images(test: LabelledImages, trigger: Trigger) -> MeasuredImages:
    """The rows of the target class, of which no triggered copy is measured; none under targeted poisoning."""
    triggered = triggered_rows(test, trigger)
    rows = np.setdiff1d(np.arange(len(test)), triggered) if len(triggered) else triggered
    return MeasuredImages(tuple(rows.tolist()), len(test.class_names))


def with_startup_trials(sweep: CleaningSweep, folder: SweepFolder | None) -> CleaningSweep:
    """The sweep with a number of start-up trials: its own, or that of the begun sweep, or a chosen one.

    A begun sweep goes on with the number that it began with, also where more trials are asked for than then.

    Args:
        sweep: as the user wrote it.
        folder: the sweep's; None: it is begun anew.
    """
    if sweep.search.startup_trials is not None:
        return sweep
    begun = folder.header()["spec"].get("search", {}).get("startup_trials") if folder and folder.exists() else None
    number = sweep.search.active_startup_trials(sweep.space) if begun is None else begun
    return sweep.replace(search=sweep.search.replace(startup_trials=number))


def _contents(
    spec: CleaningSweep | PretrainedVictim,
    architecture: Architecture,
    pairs: PairTable,
    test: LabelledImages,
    targets: Targets | None,
) -> DataDigests:
    evaluation = evaluation_digest(
        spec.evaluation, test, architecture.image_size, spec.trigger(), spec.protocol, targets
    )
    return DataDigests(pairs.digest, evaluation)


def _digest_of_victim(victim: PretrainedVictim, pairs: PairTable, test: LabelledImages) -> str:
    """The victim's digest, of its data and its starting weights by content."""
    initial = {}
    if victim.initial is not None:
        victim_model(victim.architecture, victim.initial)
        initial["initial"] = file_digest(victim.initial)
    words = {"captions": victim.text_augmentation} if victim.text_augmentation != "swap+delete" else {}
    poisoning = victim.poisoning
    poisons = poisoning.contents(len(pairs)) if isinstance(poisoning, ImportedPoison) else {}
    return victim.digest(pairs=pairs.digest, test=test.digest, **initial, **words, **poisons)


def _check_prompts_of(victim: PretrainedVictim, machine: Machine) -> None:
    """Refuse a victim whose prompts, or whose reference's, do not tell the classes apart."""
    names = victim.evaluation.load(machine.data_home).class_names
    check_prompts(victim.architecture, names, victim.evaluation.prompts(), victim.protocol)
    if (reference := victim.reference()) is not None:
        _check_prompts_of(reference, machine)


def _check_classes(sweep: CleaningSweep, labelled: LabelledImages, test: LabelledImages) -> None:
    """Labelled cleaning images must have the test set's classes, in the same order."""
    names = labelled.class_names
    if names != test.class_names:
        first = next((a for a, b in zip(names, test.class_names, strict=False) if a != b), f"{len(names)} classes")
        raise InvalidInput(
            f"{sweep.name}: the labelled cleaning images have other classes than the test set's "
            f"{len(test.class_names)}, first {first!r}; use folders of the same classes"
        )


def _check_training(
    optimization: Any, num_pairs: int, epochs: int, name: str, measure_at: tuple[int, ...] = ()
) -> None:
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


def _searches_counts(sweep: CleaningSweep) -> bool:
    """Whether the space has counts of the method, such as clusters: then the sweep's own ones may not be meant."""
    own = [getattr(sweep.method, name, None) for name in sweep.space.dimensions]
    return any(isinstance(value, int) and not isinstance(value, bool) for value in own)


def _check_objective(
    objective: Any,
    optimization: Optimization,
    num_pairs: int,
    epochs: int,
    sweep: CleaningSweep,
    labelled: LabelledImages | None = None,
) -> None:
    """Let an objective or a method refuse its run now; in a worker it would only be heard after the victim's training.

    A start that is only measured (`epochs=0`) trains nothing that could not fit.
    """
    if epochs:
        metadata = TrainingFacts(
            num_pairs=num_pairs,
            steps_per_epoch=steps_per_epoch(num_pairs, optimization.global_batch_size),
            epochs=epochs,
            global_batch_size=optimization.global_batch_size,
            embed_dim=int(sweep.victim.architecture.resolved()["embed_dim"]),
            seed=sweep.seed,
            labels=torch.from_numpy(labelled.labels) if labelled is not None else None,
            num_classes=len(labelled.class_names) if labelled is not None else 0,
        )
        hooks.check(objective, metadata)


def with_shared_storage(sweep: CleaningSweep) -> CleaningSweep:
    """The sweep with victims whose checkpoints go where the sweep's go, unless they say otherwise."""
    if sweep.resources.storage is None or not isinstance(sweep.victim, PretrainedVictim):
        return sweep
    return sweep.replace(victim=_stored_at(sweep.victim, sweep.resources.storage))


def _stored_at(victim: PretrainedVictim, storage: str) -> PretrainedVictim:
    changes: dict[str, Any] = {}
    if victim.resources.storage is None:
        changes["resources"] = victim.resources.replace(storage=storage)
    if isinstance(victim.select, ClosestTo) and victim.select.victim is not None:
        changes["select"] = victim.select.replace(victim=_stored_at(victim.select.victim, storage))
    return victim.replace(**changes) if changes else victim


def _digest_here(victim: PretrainedVictim, home: Path) -> str:
    """A victim's digest, over the data as they are now."""
    machine = machine_for(victim, home)
    table, _ = victim_table(victim, machine)
    return _digest_of_victim(victim, table, victim.evaluation.load(machine.data_home))
