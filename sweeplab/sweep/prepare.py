"""Prepare: read and check all inputs of a sweep before any process starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweeplab.clip_model import check_prompts
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.tables import LabelledImages
from sweeplab.evaluation.measure import Trigger, triggered_rows, wanted_classes
from sweeplab.experiment import CleaningSweep, CleanSample, ClosestTo, PretrainedVictim
from sweeplab.records import MeasuredImages
from sweeplab.specs import InvalidInput
from sweeplab.storage.broken_rows import in_words, sweep_owner
from sweeplab.sweep.checks import check_objective, check_training, data_digests, machine_for
from sweeplab.sweep.victims import victim_of
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.inputs import Inputs, cleaning_poison, cleaning_table
from sweeplab.worker.jobs import DataDigests
from sweeplab.worker.training_sets import TrainingSet


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
    images: MeasuredImages
    """Of the test set."""
    notes: tuple[str, ...] = ()
    """What a user should look at before anything runs; see `LabelledImages`."""
    inputs: Inputs | None = None
    """What has been read."""


def prepare(sweep: CleaningSweep, home: Path, *, fresh: bool = False, inputs: Inputs | None = None) -> Prepared:
    """Read all inputs and check whatever can be checked before any process starts.

    Args:
        sweep: to be run.
        home: the home.
        fresh: a sweep of that name is set aside, and decides nothing.
        inputs: what has been read already, if anything.

    Raises:
        InvalidInput: for missing or damaged data, prompts that do not tell the classes apart, a target that is no
            class, a trigger that does not fit, a warm-up longer than the training, a batch larger than the data, an
            objective or method that does not fit its data, a checkpoint of another architecture, or without the
            optimizer that protocol `authors` carries over.
    """
    sweep = with_shared_storage(sweep.with_text_augmentation_resolved())
    sweep = with_startup_trials(sweep, None if fresh else SweepFolder(home / "sweeps" / sweep.name))
    # The test set comes first: every number depends on it, and a wrong class or prompt is the commonest fault.
    if inputs is None:
        anew = (sweep_owner(sweep.name),) if fresh else ()
        inputs = Inputs(home / "data", machine_for(sweep, home).table_files(), anew=anew)
    trigger = sweep.trigger()
    test, targets = inputs.test(sweep.evaluation), inputs.targets(trigger)
    wanted_classes(test, trigger, targets)
    prompts = sweep.evaluation.prompts(test)
    check_prompts(sweep.victim.architecture, test.class_names, prompts, sweep.protocol)
    trigger.attack.check_fits(sweep.victim.architecture.image_size)
    victim_digest, victim_notes = victim_of(sweep).read(inputs, lambda other: prepare(other, home, inputs=inputs))
    pairs = cleaning_table(sweep, inputs)
    poison = cleaning_poison(sweep, pairs, inputs)
    training = TrainingSet(poison.training_table(pairs) if poison is not None else pairs, poison)
    # What the digest is over beside the spec: data by content, so that files may be moved.
    contents = {**sweep.evaluation.contents(test), "victim": victim_digest}
    if targets is not None:
        contents["targets"] = targets.digest
    if hasattr(sweep.method, "contents"):  # labels from outside
        contents |= sweep.method.contents()
    if sweep.text_augmentation != "swap+delete":
        contents["captions"] = sweep.text_augmentation
    if not isinstance(sweep.data, CleanSample):
        contents["pairs"] = pairs.digest
    # A grid's settings are known now; those of a sampler are refused when they are drawn.
    labelled = _check_labelled(sweep, inputs, test)
    for params in sweep.grid.points() if sweep.search.sampler == "grid" and sweep.grid else ({},):
        setting = sweep.setting(params)
        check_training(setting.optimization, len(pairs), sweep.epochs, sweep.name, sweep.measure_at)
        if params or not _searches_counts(sweep):
            check_objective(setting.method, setting.optimization, training.table, sweep.epochs, sweep, labelled)
    is_begun = not fresh and SweepFolder(home / "sweeps" / sweep.name).exists()
    if sweep.search.sampler != "grid" and not is_begun:  # a begun one goes on, and such trials fail by themselves
        _check_extremes(sweep, len(pairs))
    notes = [*test.notes, *victim_notes, *pairs.notes, *(labelled.notes if labelled is not None else ())]
    unused = None if sweep.epochs else sweep_owner(sweep.name)  # where only a start is measured
    notes += [
        f"{in_words(owner)}: {found.summary()}"
        for owner, found in inputs.broken.items()
        if found.rows and owner != unused
    ]
    return Prepared(
        sweep,
        sweep.digest(**contents),
        contents,
        data_digests(sweep, sweep.victim.architecture, training, inputs),
        victim_digest,
        len(pairs),
        _measured_images(test, trigger),
        tuple(dict.fromkeys(notes)),
        inputs,
    )


def _check_extremes(sweep: CleaningSweep, num_pairs: int) -> None:
    """Refuse a space of which some values, such as a batch larger than the data, fit no training."""
    # Of the other counts that are searched the smallest: where that fits, some trial does.
    smallest = {
        name: min(dimension.ends())
        for name, dimension in sweep.space.dimensions.items()
        if name in ("global_batch_size", "warmup_steps") and dimension.when is None
    }
    for what, params in sweep.extremes():
        try:
            check_training(
                sweep.setting({**smallest, **params}).optimization,
                num_pairs,
                sweep.epochs,
                sweep.name,
                sweep.measure_at,
            )
        except InvalidInput as error:
            raise InvalidInput(f"{what}, which no trial can have: {error}") from None


def _check_labelled(sweep: CleaningSweep, inputs: Inputs, test: LabelledImages) -> LabelledImages | None:
    """The labelled pictures that a supervised method sees, of the test set's classes; None where there are none."""
    if not isinstance(sweep.data, LabelledPairs):
        return None
    labelled = inputs.labelled(sweep.data)
    names = labelled.class_names
    if names != test.class_names:
        first = next((a for a, b in zip(names, test.class_names, strict=False) if a != b), f"{len(names)} classes")
        raise InvalidInput(
            f"{sweep.name}: the labelled cleaning images have other classes than the test set's "
            f"{len(test.class_names)}, first {first!r}; use folders of the same classes"
        )
    check_prompts(sweep.victim.architecture, test.class_names, (sweep.data.template,), sweep.protocol)
    return labelled


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


def _searches_counts(sweep: CleaningSweep) -> bool:
    """Whether the space has counts of the method, such as clusters: then the sweep's own ones may not be meant."""
    own = [getattr(sweep.method, name, None) for name in sweep.space.dimensions]
    return any(isinstance(value, int) and not isinstance(value, bool) for value in own)


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
