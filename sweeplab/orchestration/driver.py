"""The driver: prepares a sweep, makes sure of its victim, runs what is missing, and leaves table and page behind."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from sweeplab.attacks.exchange import ImportedPoison
from sweeplab.attacks.poisoning import PoisonPlan, load_plan
from sweeplab.attacks.targeted import Targets
from sweeplab.clip_model import Architecture, check_prompts, load_weights
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.evaluation.measure import Trigger, evaluation_digest, triggered_rows, wanted_classes
from sweeplab.evaluation.retention import best_cleaned_point
from sweeplab.experiment import (
    CheckpointVictim,
    CleaningSweep,
    CleanSample,
    ClosestTo,
    PretrainedVictim,
    Resources,
    Search,
    SelectedTrial,
    Setting,
)
from sweeplab.orchestration import executors
from sweeplab.orchestration.book import Listener, TrialBook, storage_of_trial
from sweeplab.orchestration.bringing import content_of, local_copy, parts_of, sources_of
from sweeplab.orchestration.cluster import check_nodes, cluster_fault, ray_session, resources_per_worker
from sweeplab.orchestration.doctor import NETWORK, file_system
from sweeplab.orchestration.files import append_line, make_private, read_json, read_lines, write_json
from sweeplab.orchestration.ledger import (
    SweepFolder,
    adopt_sweep,
    adopt_victim,
    check_own_victim,
    environment,
    making_lock,
    num_changes,
    version_of,
    victim_folder,
    write_victim,
)
from sweeplab.orchestration.mirror import Mirror
from sweeplab.orchestration.ownership import write_signed
from sweeplab.orchestration.planning import search_in_words, warnings_of
from sweeplab.orchestration.progress import SweepProgress
from sweeplab.orchestration.remote import Failure, failure_of
from sweeplab.orchestration.run_folder import ROLLING, RunFolder
from sweeplab.orchestration.search import quiet_optuna
from sweeplab.orchestration.storage import Storage
from sweeplab.orchestration.tracking_process import Ledger, Tracking, TrackingHere, TrackingProcess, trouble_of
from sweeplab.orchestration.watch import Interrupted, Watch, signals_as_interrupts
from sweeplab.orchestration.workers import (
    Contents,
    Machine,
    MeasuringJob,
    PretrainingJob,
    cleaning_poison,
    cleaning_table,
    has_cleanclips_trainer,
    load_optimizer_state,
    measure_checkpoint,
    planted_target,
    victim_model,
    victim_table,
)
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import MeasuredImages, Point, SweepRecord, Victim
from sweeplab.specs import (
    DamagedCheckpoint,
    Failed,
    InvalidInput,
    Spec,
    StorageFault,
    Unfinished,
    changes_since,
    digest_of,
    file_digest,
)
from sweeplab.training import objective as hooks
from sweeplab.training.batches import steps_per_epoch
from sweeplab.training.objective import TrainingFacts
from sweeplab.training.optimisation import Optimization, build_optimizer, check_schedule, warmup_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A sweep whose inputs have been read and checked."""

    sweep: CleaningSweep
    digest: str
    contents: dict[str, str]
    """Digests of the data by content, which are part of the sweep's own."""
    expected: Contents
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
) -> Contents:
    evaluation = evaluation_digest(
        spec.evaluation, test, architecture.image_size, spec.trigger(), spec.protocol, targets
    )
    return Contents(pairs.digest, evaluation)


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
        facts = TrainingFacts(
            num_pairs=num_pairs,
            steps_per_epoch=steps_per_epoch(num_pairs, optimization.global_batch_size),
            epochs=epochs,
            global_batch_size=optimization.global_batch_size,
            embed_dim=int(sweep.victim.architecture.resolved()["embed_dim"]),
            seed=sweep.seed,
            labels=torch.from_numpy(labelled.labels) if labelled is not None else None,
            num_classes=len(labelled.class_names) if labelled is not None else 0,
        )
        hooks.check(objective, facts)


@dataclass(frozen=True)
class Options:
    """What a command asks for beside the sweep itself."""

    resume: bool = False
    """Insist that there is something to resume."""
    fresh: bool = False
    """Set an existing sweep of that name aside and begin anew."""
    inline: bool = False
    """One process, no Ray."""
    adopt: bool = False
    """Take over a sweep, and its victim, that came from elsewhere."""


def check_is_there(folder: SweepFolder) -> None:
    """Raise InvalidInput where there is no sweep to resume."""
    if not folder.exists():
        raise InvalidInput(
            f"--resume: there is no sweep {folder.name!r} in {folder.path.parent}; leave the flag out to start it"
        )


def run_sweep(sweep: CleaningSweep, home: Path, options: Options, say: Say) -> SweepRecord:
    """Start a sweep, or go on with it; the same command does either.

    Raises:
        InvalidInput: for bad input, a sweep of the same name with another spec, one that came from elsewhere, or one
            that someone else runs.
        Unfinished: when interrupted, or when the storage fails.
        Failed: if its victim could not be made: pre-training failed, or every trial of the sweep that it is taken from.
    """
    folder = SweepFolder.of(home, sweep.name)
    if options.resume:
        check_is_there(folder)
    if not options.adopt:
        folder.check_own()
    prepared = prepare(sweep, home, fresh=options.fresh)
    for note in prepared.notes:
        say(f"note: {note}")
    sweep = prepared.sweep
    if options.adopt:
        adopt_with_victims(folder, prepared, home, say)
    if options.fresh and folder.exists():
        say(f"set the old sweep aside as {set_aside(folder).name}")
    with folder.lock():
        if folder.exists():
            check_same(folder, prepared)
        is_finished = folder.exists() and _is_finished(folder, sweep)
        if is_finished and _lacks_facts(folder, sweep):
            folder.write_header(sweep, prepared.digest, prepared.contents, prepared.images)
        if is_finished:
            say(f"{sweep.name}: all {len(folder.trial_numbers())} trials are there already; nothing to run")
            if _driver_was_killed(folder):
                _bring_up_to_the_ledger(prepared, folder, home, say)
        else:
            limit = _run_what_is_left(prepared, folder, home, options, say)
    record = folder.record()  # of a sweep that is locked it would say that it runs
    if is_finished:
        return record
    if record.state != "finished" and limit is not None:
        say(
            f"{sweep.name}: {limit} after {len(record.trials)} of {record.planned_trials} trials; raise it to go on: "
            f"`sweeplab resume {sweep.name} {limit.partition('=')[0]}=...`"
        )
    elif record.state != "finished":
        raise Unfinished(f"{sweep.name}: not finished; everything so far is kept, and the same command goes on")
    return record


def adopt_with_victims(folder: SweepFolder, prepared: Prepared, home: Path, say: Say) -> None:
    """Take over a sweep's folder, and those of the victims that it is to train on, where they came from elsewhere."""
    if adopt_sweep(folder):
        say(f"{folder.name}: adopted; it is this home's own from now on")
    victim = prepared.sweep.victim if isinstance(prepared.sweep.victim, PretrainedVictim) else None
    while victim is not None:
        run = victim_folder(home, victim, _digest_here(victim, home))
        if adopt_victim(run):
            say(f"victim {run.path.name}: adopted; it is this home's own from now on")
        victim = victim.reference()


def check_some_succeeded(record: SweepRecord) -> None:
    """Say so where every trial that was begun failed.

    Raises:
        Failed: with the reason of one trial, or where to find those of several.
    """
    if record.num_succeeded or not record.failures:
        return
    first = record.failures[0]
    if len(record.failures) == 1:
        raise Failed(f"{record.name}: its trial failed: {first.reason}; `sweeplab logs {record.name} {first.number}`")
    raise Failed(
        f"{record.name}: every trial failed ({len(record.failures)} of {record.planned_trials}), the first with: "
        f"{first.reason}; `sweeplab status {record.name}` lists the reasons"
    )


def _run_what_is_left(prepared: Prepared, folder: SweepFolder, home: Path, options: Options, say: Say) -> str | None:
    """The sweep's victim and its trials, under its lock; the limit that ended it early, if one did."""
    sweep = prepared.sweep
    with storage_faults_as_unfinished(sweep):
        check_storages(prepared, home)
        folder.write_header(sweep, prepared.digest, prepared.contents, prepared.images)
    if isinstance(sweep.victim, SelectedTrial):
        say(f"{sweep.name} cleans the best trial of {sweep.victim.sweep.name}")
        inner = sweep.victim.sweep
        record = run_sweep(inner, home, Options(inline=options.inline, adopt=options.adopt), say)
        try:
            check_some_succeeded(record)
        except Failed as error:
            raise Failed(f"{sweep.name} has no trial to start from: {error}") from None
        if not _is_finished(SweepFolder(home / "sweeps" / inner.name), inner):  # its best trial may yet be another
            raise Unfinished(f"{sweep.name} begins once {inner.name} is finished")
    with storage_faults_as_unfinished(sweep):
        _settle_storages(sweep, folder, say)
    for line in resume_plan(folder, prepared, home):
        say(line)
    inline = options.inline or sweep.resources.resolved_executor() == "inline"
    with workplace(sweep, inline):
        reads = parts_of(sweep, trains_victim=_trains_victim(prepared, home))
        if not inline:
            check_batch_norm(sweep)
            make_ready_nodes(prepared, reads, folder, home, say)
        victim = ensure_victim(prepared, reads, folder, home, inline=inline, say=say)
        for note in folder.notes():
            say(f"  note: {note}")
        check_weights(victim, is_pretrained=isinstance(sweep.victim, PretrainedVictim))
        return _run_trials(prepared, reads, folder, victim, home, inline=inline, say=say)


@contextmanager
def storage_faults_as_unfinished(sweep: CleaningSweep) -> Iterator[None]:
    """A storage that fails interrupts the sweep."""
    try:
        yield
    except StorageFault as fault:
        raise Unfinished(f"{sweep.name}: {fault}") from fault


@contextmanager
def workplace(sweep: CleaningSweep, inline: bool) -> Iterator[None]:
    """A Ray session, or nothing where everything runs in this process; signals and failing storage end it in order."""
    try:
        if inline:
            with storage_faults_as_unfinished(sweep), signals_as_interrupts():
                yield
            return
        needs_train = isinstance(sweep.victim, PretrainedVictim) or sweep.resources.resolved_executor() != "tune"
        # Ray puts handlers of its own there when it starts, hence twice.
        with (
            storage_faults_as_unfinished(sweep),
            signals_as_interrupts(),
            ray_session(needs_train=needs_train),
            signals_as_interrupts(),
        ):
            yield
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        raise Interrupted("SIGTERM") from None  # Ray's handler, which stands while it starts, says it so


def check_batch_norm(sweep: CleaningSweep) -> None:
    """Refuse `sync` where several workers have no GPU; torch has no such layer for the CPU.

    Raises:
        InvalidInput: naming the run.
    """
    runs: list[tuple[str, Any, Any]] = [(sweep.name, sweep.optimization, sweep.resources)]
    victim = sweep.original_victim()
    if isinstance(victim, PretrainedVictim):
        runs.append((victim.name, victim.optimization, victim.resources))
    for name, optimization, resources in runs:
        has_gpu = resources_per_worker(resources).get("GPU", 0.0) > 0
        if optimization.batch_norm == "sync" and resources.workers > 1 and not has_gpu:
            raise InvalidInput(
                f"{name}: optimization.batch_norm='sync' runs on CUDA only, and its workers have no GPU; "
                "choose 'local' or 'frozen'"
            )


def storage_of(sweep: CleaningSweep | PretrainedVictim, home: Path) -> str:
    """Where checkpoints go."""
    return sweep.resources.storage or str(home)


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


def check_storages(prepared: Prepared, home: Path, *, runs_trials: bool = True) -> None:
    """Refuse storages that cannot be written, before anything is written that names them.

    Args:
        prepared: the sweep.
        home: the home.
        runs_trials: whether trials are run, or the victim alone is trained.

    Raises:
        InvalidInput: naming the storage.
        StorageFault: if an object store does not answer.
    """
    sweep = prepared.sweep
    roots = {sweep.resources.storage} if runs_trials else set()
    if isinstance(sweep.victim, PretrainedVictim) and _trains_victim(prepared, home):
        roots.add(sweep.victim.resources.storage)
        if (reference := sweep.victim.reference()) is not None:
            roots.add(reference.resources.storage)
    for root in sorted(filter(None, roots)):
        Storage(root).check_writable()


def _trains_victim(prepared: Prepared, home: Path) -> bool:
    """Whether the sweep's victim is still to be trained: not all of it is there, or its weights are gone."""
    victim = prepared.sweep.victim
    if not isinstance(victim, PretrainedVictim):
        return False
    return not _is_trained(victim, victim_folder(home, victim, prepared.victim_digest))


def _settle_storages(sweep: CleaningSweep, folder: SweepFolder, say: Say) -> None:
    """Trials that are not over go on where their checkpoints lie; those of a storage that cannot be written any more go
    where the spec says now."""
    faults: dict[str, Exception | None] = {}
    for number in folder.trial_numbers():
        run = folder.trial(number)
        if run.result() is None:
            _settle_storage(run, storage_of_trial(sweep, folder, number), f"trial {number}", faults, say)


def _settle_storage(
    run: RunFolder, wanted: str | None, name: str, faults: dict[str, Exception | None], say: Say
) -> None:
    """Move a run's checkpoints if need be.

    Args:
        run: a run that is not over.
        wanted: its storage by the spec.
        name: of the run.
        faults: what is known of storages, by the folder that several runs have in common.
        say: prints what is moved.

    Raises:
        InvalidInput: if neither storage can be written.
        StorageFault: if an object store does not answer, and the spec names no other.
    """
    is_wanted = wanted == run.facts().get("storage")
    place = run.storage.location.rpartition("/")[0]
    fault = faults.get(place)
    if fault is None:
        try:
            if not is_wanted and not run.owns_storage():  # a path in a file is not enough to write there
                fault = InvalidInput(run.foreign_storage())
            elif place not in faults:
                run.storage.check_writable()
                faults[place] = None
        except (InvalidInput, StorageFault) as error:
            fault = faults[place] = error
    if fault is None:
        return
    if is_wanted:
        raise fault
    count = run.move_storage(wanted)
    say(f"{name}: {fault}; from now on its checkpoints lie in {run.storage.location}, {count} could be brought along")


def make_ready_nodes(prepared: Prepared, reads: list[Any], folder: SweepFolder | None, home: Path, say: Say) -> None:
    """Make sure that every node of the cluster sees the storages, and bring it the data that it does not see.

    Args:
        prepared: the sweep.
        reads: parts of specs that say what the command reads.
        folder: the sweep's, where its trials are run and not the victim alone is trained.
        home: the home.
        say: prints progress.

    Raises:
        InvalidInput: naming the nodes that cannot take part, and why.
    """
    sweep = prepared.sweep
    storages: list[str] = []
    if folder is not None:
        begun = (folder.trial(number) for number in folder.trial_numbers())
        storages += [storage_of(sweep, home), *(_root_of(run, home, 3) for run in begun if run.result() is None)]
    if isinstance(sweep.victim, PretrainedVictim) and _trains_victim(prepared, home):
        run = victim_folder(home, sweep.victim, prepared.victim_digest)
        storages.append(_root_of(run, home, 2) if run.facts() else storage_of(sweep.victim, home))
        if (reference := sweep.victim.reference()) is not None:
            storages.append(storage_of(reference, home))
    blind = check_nodes(sources_of(reads), sorted(set(storages)), say)
    if blind:
        watch = Watch(stall_minutes=sweep.resources.stall_minutes, cluster_fault=cluster_fault)
        executors.bring_data(reads, blind, watch, say)


def _root_of(run: RunFolder, home: Path, depth: int) -> str:
    """The `resources.storage` under which a run was begun, whose own one lies so many folders below."""
    location = run.facts().get("storage")
    return location.rsplit("/", depth)[0] if location else str(home)


def _is_finished(folder: SweepFolder, sweep: CleaningSweep) -> bool:
    if folder.victim_point() is None:
        return False
    numbers = folder.trial_numbers()
    is_over = all(folder.trial(number).result() is not None for number in numbers)
    return is_over and len(numbers) >= folder.num_planned(sweep)


def _lacks_facts(folder: SweepFolder, sweep: CleaningSweep) -> bool:
    """Whether the header of a finished sweep is to be written anew: another number of trials was asked for, or an older
    version did not say which test images it measured."""
    header = folder.header()
    return header["planned_trials"] != folder.num_planned(sweep) or "images" not in header


def _driver_was_killed(folder: SweepFolder) -> bool:
    """Whether Optuna or MLflow may be behind: no driver has said that it ended, or MLflow did not answer."""
    kinds = [event["event"] for event in read_lines(folder.path / "events.jsonl")]
    drivers = [kind for kind in kinds if kind in ("driver began", "driver ended", "mlflow behind")]
    return drivers[-1:] in (["driver began"], ["mlflow behind"])


def _bring_up_to_the_ledger(prepared: Prepared, folder: SweepFolder, home: Path, say: Say) -> None:
    """Tell Optuna and MLflow of the last trial, where the driver was killed between its result and that."""
    sweep, point = prepared.sweep, folder.victim_point()
    assert point is not None
    victim = Victim(sweep.victim.name, prepared.victim_digest, "", 0.0, *point)
    TrialBook(sweep, folder, victim, machine_for(sweep, home), ())
    tracking, _ = _synced_tracking(sweep, folder, home, say, inline=True)
    folder.event("driver ended", finished=True, reason="brought up to the ledger")
    if tracking is None:
        folder.event("mlflow behind", reason=UNUSABLE)
    else:
        tracking.close()


def resume_plan(folder: SweepFolder, prepared: Prepared, home: Path) -> list[str]:
    """What will be reused, repeated and run, and why."""
    sweep = prepared.sweep
    numbers = folder.trial_numbers() if folder.exists() else []
    records = [folder.trial_record(number, is_driven=False) for number in numbers]
    over = [record for record in records if record.state in ("finished", "pruned", "failed")]
    begun = [record for record in records if record.state == "waiting"]
    text = f"{sweep.name}: {sweep.num_trials()} trials of {sweep.epochs} epochs on {prepared.num_pairs} pairs"
    if sweep.num_trials() < len(records):
        text += f" (search.trials={sweep.num_trials()}, but {len(records)} were begun and stay)"
    search = f"  search: {search_in_words(sweep)}"
    warnings = [f"  warning: {line}" for line in warnings_of(sweep)]
    if not records:
        return [text, search, *warnings]
    again = folder.reruns()
    for number in folder.begun_reruns().values():
        again.remove(number)
    new = folder.num_planned(sweep) - len(records) - len(again)
    lines = [f"{text}; {len(over)} are done and stay, {len(begun)} go on, {new} are new", *warnings]
    if new > 0:
        lines.append(search)
    if again:
        lines.append(f"  tried once more as asked: trial{'s' * (len(again) > 1)} {', '.join(map(str, again))}")
    if isinstance(sweep.victim, PretrainedVictim):
        run = victim_folder(home, sweep.victim, prepared.victim_digest)
        epochs = max(0, len(run.points()) - 1)
        there = f"goes on after epoch {epochs}"
        if not _trains_victim(prepared, home):
            there = "is there and is reused"
        elif run.result() is not None:
            there = "is trained again, as its weights are gone"
        lines.append(f"  victim {sweep.victim.name}: {there}")
    for record in records:
        if record.state == "failed":
            lines.append(f"  trial {record.number}: failed for good ({record.reason}); `sweeplab rerun` tries it again")
    for record in begun:
        run = folder.trial(record.number)
        place, points = run.latest_checkpoint(), len(record.points)
        kept = points if place is not None else run.num_kept()
        lost = f"; its newest checkpoint is gone, so {points - kept} points are made again" if kept < points else ""
        if place is None and kept <= 1:
            lines.append(f"  trial {record.number}: starts again{lost or ' (has no epoch yet)'}")
            continue
        epoch = record.points[kept - 1].epoch
        inside = " and inside the next epoch" if place and ROLLING.fullmatch(place.rpartition("/")[2]) else ""
        lines.append(
            f"  trial {record.number}: goes on after epoch {epoch:g}{inside}{lost}; what ran after that is repeated "
            f"(attempt {record.attempts + 1})"
        )
    return lines


def set_aside(folder: SweepFolder) -> Path:
    """Rename a sweep's folder, so that its name is free; nothing is deleted."""
    with folder.lock():
        place = folder.path.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}")
        folder.path.rename(place)
    return place


def check_same(folder: SweepFolder, prepared: Prepared) -> None:
    """Refuse to continue a sweep under another spec, or under another recipe behind the same spec.

    Raises:
        InvalidInput: with what an older version did otherwise, the fields that differ, and the remedies.
    """
    header = folder.header()
    if header["digest"] == prepared.digest:
        return
    found = compare(header, prepared.sweep)
    listed = [*found.since, *found.defaults, *found.fields]
    for name in sorted(set(header["contents"]) | set(prepared.contents)):
        before, now = header["contents"].get(name), prepared.contents.get(name)
        if before != now and not listed:
            listed.append(f"data of `{name}` changed (digest {before} -> {now})")
    version, why = version_of(header), "exists with another spec"
    if found.since or found.defaults:
        why = f"was made by an older version ({version}), and this one would go on with it otherwise"
    lines = "\n  ".join(listed[:12] or [f"(the same fields, as version {version} took them)"])
    remedies = "use --fresh to set the old one aside, or give this one another name"
    if found.defaults and not found.since and not found.fields:
        remedies = f"state the old value, or use `sweeplab resume {folder.name}`, to go on as it was begun; {remedies}"
    raise InvalidInput(f"sweep {folder.name!r} {why}:\n  {lines}\n{remedies}")


@dataclass(frozen=True)
class Comparison:
    """How a spec differs from that of a record."""

    since: tuple[str, ...]
    """What has changed in the behaviour of what it holds since the record was made."""
    defaults: list[str]
    """Fields that have today's default, and in the record the one of an older version."""
    fields: list[str]
    """All other fields that differ."""


def compare(record: dict[str, Any], spec: Spec) -> Comparison:
    """Compare a spec with that of sweep.json or victim.json."""
    try:
        before = type(spec).model_validate(record["spec"]).to_json()  # with the fields that are new since then
    except InvalidInput:
        before = record["spec"]
    lines = differences(before, spec.to_json(), type(spec))
    moved = tuple(f"{path}{end}" for path in changed_defaults(before, spec) for end in (":", "."))
    return Comparison(
        changes_since(spec, record.get("changes", {})),
        [f"{line} (the default has changed)" for line in lines if line.startswith(moved)],
        [line for line in lines if not line.startswith(moved)],
    )


def changed_defaults(before: Any, spec: Any, path: str = "") -> list[str]:
    """Paths of fields that have today's default, where plain JSON values of before have the first one."""
    if not isinstance(spec, (Spec, Mapping)) or not isinstance(before, dict):
        return []
    values = {name: getattr(spec, name) for name in type(spec).model_fields} if isinstance(spec, Spec) else spec
    found = []
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if isinstance(spec, Spec) and name in spec.FIRST_DEFAULTS:
            first, field = spec.FIRST_DEFAULTS[name], type(spec).model_fields[name]
            was_first = before.get(name) == (first.to_json() if isinstance(first, Spec) else first)
            if was_first and value == field.get_default(call_default_factory=True) != first:
                found.append(where)
                continue
        found += changed_defaults(before.get(name), value, where)
    return found


def differences(old: Any, new: Any, spec: type[Spec] | None = None, path: str = "") -> list[str]:
    """Paths at which two JSON values differ, with both values; fields outside the digest are left out at the top."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for name in sorted(set(old) | set(new)):
            if spec is not None and name in spec.NOT_IN_DIGEST:
                continue
            if path.rpartition(".")[2] == "resources" and name in Resources.NOT_IN_DIGEST:
                continue
            if path == "search" and name in Search.NOT_IN_DIGEST:
                continue
            where = f"{path}.{name}" if path else name
            lines += differences(old.get(name), new.get(name), None, where)
        return lines
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


# --- victims


def ensure_victim(
    prepared: Prepared, reads: list[Any], folder: SweepFolder, home: Path, *, inline: bool, say: Say
) -> Victim:
    """The sweep's victim, pre-trained if it is not there yet, and measured once under the sweep's evaluation."""
    sweep = prepared.sweep
    if isinstance(sweep.victim, SelectedTrial):
        return selected_victim(sweep, prepared.victim_digest, folder, home, say)
    if isinstance(sweep.victim, PretrainedVictim):
        run = pretrain_victim(sweep.victim, prepared.victim_digest, home, inline=inline, say=say, reads=reads)
        selected = select_epoch(sweep.victim, run)
        assert selected.checkpoint is not None
        checkpoint, epoch = (run.storage / selected.checkpoint).location, selected.epoch
        measured = (selected, run.outcomes(selected.index))
    else:
        checkpoint, epoch, measured = str(sweep.victim.path.absolute()), 0.0, None
    point = folder.victim_point()
    if point is None:
        if measured and measured[1] and measured[0].measurement.evaluation_digest == prepared.expected.evaluation:
            point = (measured[0].measurement, measured[1])
        else:
            job = MeasuringJob(
                sweep.victim.architecture,
                checkpoint,
                sweep.evaluation,
                sweep.trigger(),
                machine_for(sweep, home),
                sweep.protocol,
                contents=prepared.expected,
            )
            if inline:
                here = local_copy(checkpoint, content_of(checkpoint), None)
                point = measure_checkpoint(replace(job, checkpoint=str(here)))
            else:
                watch = Watch(stall_minutes=sweep.resources.stall_minutes, cluster_fault=cluster_fault)
                point = executors.measure_on_ray(job, reads, resources_per_worker(sweep.resources), watch)
        victim = Victim(sweep.victim.name, prepared.victim_digest, checkpoint, epoch, *point)
        planted = planted_target(sweep.victim.path) if isinstance(sweep.victim, CheckpointVictim) else None
        write_victim(folder, victim, planted_target=planted)
        stamp = time.time_ns() // 1_000_000
        folder.victim_run().commit(Point(0, epoch, 0, 1, point[0], timestamp_ms=stamp), point[1])
    victim = Victim(sweep.victim.name, prepared.victim_digest, checkpoint, epoch, *point)
    asr = victim.measurement.asr
    say(
        f"victim {victim.name}: accuracy {victim.measurement.accuracy:.1%}, ASR {asr:.1%} (epoch {victim.epoch:g})"
        if asr is not None
        else f"victim {victim.name}: no trigger known"
    )
    if victim.measurement.accuracy_k == 0:
        raise InvalidInput(f"victim {victim.name!r} classifies no test image correctly; nothing could be retained")
    return victim


def check_weights(victim: Victim, *, is_pretrained: bool) -> None:
    """Read the victim's weights once, before every trial meets what is wrong with them. Those of an object store are
    read by the workers alone.

    Raises:
        InvalidInput: if they are damaged or gone.
    """
    path = Path(victim.checkpoint)
    if Storage(victim.checkpoint).is_remote:
        return
    try:
        load_weights(path)
    except (InvalidInput, OSError) as error:
        remedy = "restore the file"
        if is_pretrained and path.exists():
            remedy = "remove the file, and the same command trains it again"
        raise InvalidInput(f"the weights of victim {victim.name!r} cannot be read: {error}; {remedy}") from error


def selected_victim(sweep: CleaningSweep, digest: str, folder: SweepFolder, home: Path, say: Say) -> Victim:
    """The weights of another sweep's best trial, beside the measurement of the victim that it started from.

    A sweep that was begun goes on from the trial that was the best then, should a rerun have found a better one since.

    Raises:
        InvalidInput: if that sweep has no trial below its ceiling, or its weights are gone.
    """
    assert isinstance(sweep.victim, SelectedTrial)
    other = SweepFolder(home / "sweeps" / sweep.victim.sweep.name)
    record, original = other.record(), other.victim_point()
    assert original is not None
    trial, point = _best_start(record, other)
    is_begun = folder.victim_point() is not None
    chosen = read_json(folder.victim_run().path / "victim.json").get("selected") if is_begun else None
    if chosen is not None and chosen != [trial, point.index]:
        say(
            f"note: trial {trial} of {other.name} is better now; {sweep.name} goes on from trial {chosen[0]}, with "
            "which it was begun, and --fresh begins anew"
        )
        trial, point = chosen[0], other.trial(chosen[0]).points()[chosen[1]]
    run = other.trial(trial)
    if point.checkpoint is None or not run.has_checkpoint(point):
        raise InvalidInput(
            f"the weights of trial {trial} of {other.name} are gone; run that sweep anew with --fresh, or raise "
            "its resources.keep_checkpoints"
        )
    weights = (run.storage / point.checkpoint).location
    victim = Victim(sweep.victim.name, digest, weights, record.victim_epoch, *original, is_start=False)
    if not is_begun:
        write_victim(folder, victim, selected=[trial, point.index])
        stamp = time.time_ns() // 1_000_000
        folder.victim_run().commit(Point(0, victim.epoch, 0, 1, original[0], timestamp_ms=stamp), original[1])
    say(
        f"victim {record.victim_name}: accuracy {original[0].accuracy:.1%}, ASR {original[0].asr or 0:.1%}; "
        f"trials start from trial {trial} of {other.name}, epoch {point.epoch:g}: accuracy "
        f"{point.measurement.accuracy:.1%}, ASR {point.measurement.asr or 0:.1%}"
    )
    return victim


def _best_start(record: SweepRecord, folder: SweepFolder) -> tuple[int, Point]:
    """A sweep's best trial and its best cleaned point."""
    rows = rank_trials(record, folder.outcomes).rows
    best = next(row for row in rows if row.state != "failed")  # a failed trial keeps no weights
    trial = next(trial for trial in record.trials if trial.number == best.trial)
    point = best_cleaned_point(trial.points, record.asr_ceiling, start_counts=trial.start_counts)
    if point is None:
        raise InvalidInput(
            f"no trial of {record.name} lies below its ASR ceiling of {record.asr_ceiling:.1%} (the lowest ASR is "
            f"{best.min_asr:.1%}); raise search.asr_ceiling of that sweep, or search further"
        )
    return trial.number, point


def pretrain_victim(
    victim: PretrainedVictim,
    digest: str,
    home: Path,
    *,
    inline: bool,
    say: Say,
    reads: list[Any] | None = None,
) -> RunFolder:
    """Pre-train a victim, or go on with it, or find it finished; waits where another process is at it already.

    Args:
        victim: what is trained.
        digest: its own.
        home: the home.
        inline: whether in this process.
        say: prints progress.
        reads: parts of specs whose data were made ready on every node; None: the victim's alone.
    """
    run = victim_folder(home, victim, digest)
    if not _is_trained(victim, run):
        check_own_victim(run)
    if isinstance(victim.select, ClosestTo) and not (run.path / REFERENCE).exists():
        accuracy = victim.select.accuracy or _accuracy_of(
            victim.select.victim, home, inline=inline, say=say, reads=reads
        )
        write_json(run.path / REFERENCE, {"accuracy": accuracy})
    with exclusively(run.path, f"victim {victim.name}", say):
        return _pretrain_victim(victim, digest, run, home, inline=inline, say=say, reads=reads)


REFERENCE = "reference.json"
"""In a victim's folder: the accuracy that its selected epoch comes closest to."""


def _accuracy_of(
    other: PretrainedVictim | None, home: Path, *, inline: bool, say: Say, reads: list[Any] | None
) -> float:
    """Pre-train another victim where it is not there yet; the accuracy of its selected epoch."""
    assert other is not None
    run = pretrain_victim(other, _digest_here(other, home), home, inline=inline, say=say, reads=reads)
    return select_epoch(other, run).measurement.accuracy


def _digest_here(victim: PretrainedVictim, home: Path) -> str:
    """A victim's digest, over the data as they are now."""
    machine = machine_for(victim, home)
    table, _ = victim_table(victim, machine)
    return _digest_of_victim(victim, table, victim.evaluation.load(machine.data_home))


@contextmanager
def exclusively(path: Path, what: str, say: Say) -> Iterator[None]:
    """Hold `path` alone; says so before it waits for the process that holds it."""
    make_private(path.parent)
    lock = FileLock(making_lock(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that makes {what}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _pretrain_victim(
    victim: PretrainedVictim,
    digest: str,
    run: RunFolder,
    home: Path,
    *,
    inline: bool,
    say: Say,
    reads: list[Any] | None,
) -> RunFolder:
    if _is_trained(victim, run):
        say(f"victim {victim.name} is there already ({run.path})")
        return run
    machine = machine_for(victim, home)
    table, plan = victim_table(victim, machine)
    plan_file = run.path / "poison.json"
    if plan_file.exists() and load_plan(plan_file, plan.attack, plan.source).digest != plan.digest:
        raise InvalidInput(f"{plan_file} differs from the plan that the spec and the data give; remove {run.path}")
    if not (run.path / "victim.json").exists():
        for line in older_victims(victim, run):
            say(line)
        write_json(plan_file, {**plan.to_json(), "digest": plan.digest})
        write_signed(
            run.path / "victim.json",
            {
                "spec": victim.to_json(),
                "digest": digest,
                "changes": num_changes(victim),
                "environment": environment(),
                "num_pairs": len(table),
                **_storage_fact(victim, run),
            },
            home,
        )
    else:
        _settle_storage(run, _storage_fact(victim, run).get("storage"), f"victim {victim.name}", {}, say)
    run.claim_storage()
    say(f"pre-training victim {victim.name}: {victim.epochs} epochs, {_poison_text(plan)}")
    test, targets = victim.evaluation.load(machine.data_home), victim.trigger().targets(machine.data_home)
    contents = _contents(victim, victim.architecture, table, test, targets)

    def on_point(point: Point) -> None:
        _keep_victim_checkpoints(victim, run)
        asr = point.measurement.asr
        numbers = f"accuracy {point.measurement.accuracy:.1%}" + (f", ASR {asr:.1%}" if asr is not None else "")
        say(
            f"  epoch {point.epoch:g}/{victim.epochs}: {numbers} ({point.train_seconds + point.evaluate_seconds:.1f} s)"
        )

    failed: list[Failure] = []
    while True:
        run.clear_abandoned()
        run.rewind()
        job = PretrainingJob(
            victim,
            machine,
            run.storage.location,
            run.begin_attempt(),
            run.latest_checkpoint(),
            contents=contents,
            initial=str(victim.initial.expanduser().absolute()) if victim.initial is not None else None,
        )
        failure: Failure | None = None
        if inline:
            try:
                executors.pretrain_inline(job, run, on_point)
            except (FloatingPointError, DamagedCheckpoint) as error:  # any other is shown in full
                failure = failure_of(error)
        else:
            watch = Watch(stall_minutes=victim.resources.stall_minutes, cluster_fault=cluster_fault)
            failure = executors.pretrain_on_ray(job, run, on_point, home, watch, reads or parts_of(victim))
        if failure is None:
            break
        append_line(
            run.path / "events.jsonl",
            {"time_ms": time.time_ns() // 1_000_000, "event": "attempt failed", "reason": failure.reason},
        )
        if failure.kind == "storage":
            raise StorageFault(failure.reason)
        if failure.kind == "checkpoint" and job.resume_from is not None:
            say(f"  {failure.reason}; going on from an earlier one")
            run.remove_checkpoint(job.resume_from.rpartition("/")[2])
            continue
        if failure.is_deterministic:
            kind = InvalidInput if failure.kind == "input" else Failed
            raise kind(f"pre-training victim {victim.name} failed: {failure.reason}")
        failed.append(failure)
        if len(failed) >= victim.resources.max_attempts:
            break
        say(f"  attempt {job.attempt} ended: {failure.reason}; trying again")
    stop = _last_epoch(victim)
    if len(run.points()) < stop + 1:
        where = f"after {len(run.points()) - 1} of {stop} epochs"
        if failed:
            raise Failed(
                f"pre-training victim {victim.name} failed {where} ({len(failed)} attempts, last: "
                f"{failed[-1].reason}); the same command tries again"
            )
        raise Unfinished(f"pre-training victim {victim.name} stopped {where}; the same command goes on")
    selected = select_epoch(victim, run)
    run.finish({"state": "finished", "selected_epoch": selected.epoch})
    run.keep_checkpoints({name for name in {selected.checkpoint} | _kept_epochs(victim, run) if name is not None})
    return run


def older_victims(victim: PretrainedVictim, run: RunFolder) -> list[str]:
    """A line for every folder of the same victim as an older version made it: its weights are another recipe's."""
    lines = []
    for path in sorted(run.path.parent.glob(f"{victim.name}-*/victim.json")):
        record = read_json(path)
        if path.parent == run.path or path.parent.name != f"{victim.name}-{record['digest']}":
            continue
        found = compare(record, victim)
        what = "; ".join([*found.since, *found.defaults])
        if what and not found.fields:
            lines.append(
                f"victim {victim.name} was made by an older version ({version_of(record)}: {what}); "
                "it is not reused and is trained anew"
            )
    return lines


def _storage_fact(victim: PretrainedVictim, run: RunFolder) -> dict[str, str]:
    """Where the victim's checkpoints go, if not beside its records."""
    root = victim.resources.storage
    return {"storage": (Storage(root) / "victims" / run.path.name).location} if root else {}


def select_epoch(victim: PretrainedVictim, run: RunFolder) -> Point:
    """The point that becomes the victim, by the victim's rule; of equally accurate epochs the earlier."""
    trained = [point for point in run.points() if point.epoch > 0]
    if victim.select == "last":
        return trained[-1]
    if victim.select == "most accurate":
        return max(trained, key=lambda point: (point.measurement.accuracy, -point.index))
    if isinstance(victim.select, ClosestTo):
        wanted = float(read_json(run.path / REFERENCE)["accuracy"])
        return min(trained, key=lambda point: (abs(point.measurement.accuracy - wanted), point.index))
    return next(point for point in trained if point.epoch == victim.select)


def _is_trained(victim: PretrainedVictim, run: RunFolder) -> bool:
    """Whether a victim is there, weights and all; those of a storage that is gone, and that the spec does not name any
    more, are not."""
    if run.result() is None or len(run.points()) <= _last_epoch(victim):  # weights that were gone are being made again
        return False
    try:
        return run.has_checkpoint(select_epoch(victim, run))
    except StorageFault:
        if run.facts().get("storage") == _storage_fact(victim, run).get("storage"):
            raise
        return False


def _last_epoch(victim: PretrainedVictim) -> int:
    """After which the training may stop."""
    return victim.select if isinstance(victim.select, int) else victim.epochs


def _kept_epochs(victim: PretrainedVictim, run: RunFolder) -> set[str | None]:
    """Checkpoints that `keep_epochs` asks for."""
    wanted = victim.keep_epochs
    return {point.checkpoint for point in run.points() if wanted == "all" or point.epoch in wanted}


def _keep_victim_checkpoints(victim: PretrainedVictim, run: RunFolder) -> None:
    points = run.points()
    keep = {points[-1].checkpoint} | _kept_epochs(victim, run)
    if (victim.select == "most accurate" or isinstance(victim.select, ClosestTo)) and len(points) > 1:
        keep.add(select_epoch(victim, run).checkpoint)
    run.keep_checkpoints({name for name in keep if name is not None})


def _poison_text(plan: PoisonPlan) -> str:
    if not plan.indices:
        return "no pair poisoned"
    share = f"{len(plan.indices)} of {plan.num_training_pairs} pairs poisoned ({plan.rate:.3%})"
    return f"{share} towards {plan.aim}"


# --- trials


MIRROR_SECONDS = 120.0
"""So long may MLflow catch up at the end of a sweep; what it lacks then is brought by the next command."""
LEAVING_SECONDS = 1.0
"""The same where the command was interrupted."""
UNUSABLE = "its store could not be used at the start"


def _run_trials(
    prepared: Prepared, reads: list[Any], folder: SweepFolder, victim: Victim, home: Path, *, inline: bool, say: Say
) -> str | None:
    """Run what is missing; returns the bound that left trials unbegun, if one did."""
    sweep = prepared.sweep
    tracking, record = _synced_tracking(sweep, folder, home, say, inline=inline)
    assert victim.measurement.asr is not None
    progress = SweepProgress(
        total=int(folder.header()["planned_trials"]),
        points_per_trial=sweep.num_points() - 1,
        victim_accuracy=victim.measurement.accuracy,
        asr_ceiling=sweep.search.asr_ceiling,
    )
    progress.known(record.trials)
    del record
    mirror = None
    if tracking is not None:
        mirror = Mirror(tracking, lambda params: full_setting(sweep.setting(params)), say)
    listeners: tuple[Listener, ...] = (progress,) if mirror is None else (progress, mirror)
    resources = sweep.resources
    folder.event(
        "driver began",
        process=os.getpid(),
        host=socket.gethostname(),
        digest=prepared.digest,
        executor="inline" if inline else resources.resolved_executor(),
        workers=1 if inline else resources.workers,
        gpus_per_worker=0.0 if inline else resources_per_worker(resources).get("GPU", 0.0),
        before_until_ms=folder.last_sign_of_life(),
    )
    book = TrialBook(sweep, folder, victim, machine_for(sweep, home), listeners)  # which may tell of events itself
    book.contents, book.reads, book.weights = prepared.expected, reads, content_of(victim.checkpoint)
    reason, patience = "finished", LEAVING_SECONDS
    try:
        with progress, folder.signs_of_life():
            execute(book, home, inline=inline)
        patience = MIRROR_SECONDS
    except BaseException as error:
        reason = str(book.fault or error) or type(error).__name__
        raise
    finally:
        book.close()
        folder.event("driver ended", finished=book.is_complete(), reason=reason)
        if mirror is None:  # said again after the driver's end, so that the next command knows
            folder.event("mlflow behind", reason=UNUSABLE)
        elif not mirror.close(patience) and patience == MIRROR_SECONDS:
            say("note: MLflow is behind the ledger; the same command brings it up to date")
            folder.event("mlflow behind", reason=mirror.trouble or "slow")
    return book.limit_reached()


def execute(book: TrialBook, home: Path, *, inline: bool = False) -> None:
    """Run what the book hands out, on the executor that its sweep names.

    Raises:
        Unfinished: where nothing moves any more, the cluster is gone, or the storage fails.
        Interrupted: on a signal.
    """
    with quiet_optuna():
        if inline:
            executors.run_trials_inline(book)
            if book.fault is not None:
                raise book.fault
            return
        resources = book.sweep.resources
        watch = Watch(
            stall_minutes=resources.stall_minutes, cluster_fault=cluster_fault, storage_fault=lambda: book.fault
        )
        executor = resources.resolved_executor()
        if executor == "pool":
            executors.run_trials_in_pool(book, home, watch)
        else:
            executors.run_trials_on_tune(book, home, watch, through_train=executor == "train")
        if book.fault is not None:
            raise book.fault


def _synced_tracking(
    sweep: CleaningSweep, folder: SweepFolder, home: Path, say: Say, *, inline: bool
) -> tuple[Tracking | None, SweepRecord]:
    """MLflow brought up to the ledger, and what the ledger holds; None where MLflow's store does not answer."""
    record = folder.record()
    write_ahead = file_system(home) not in NETWORK

    def ledger(record: SweepRecord | None = None) -> Ledger:
        record = record or folder.record()
        settings = {trial.number: full_setting(sweep.setting(trial.params)) for trial in record.trials}
        return Ledger(home, folder.path, record, folder.header(), settings, write_ahead)

    try:
        return TrackingHere(ledger(record)) if inline else TrackingProcess(ledger), record
    except Exception as error:  # noqa: BLE001 - MLflow's store raises many kinds; the ledger does without, and says so
        say(
            f"note: MLflow's store {home / 'mlflow.db'} cannot be used ({trouble_of(error)}); the sweep runs without "
            "it, and the same command brings MLflow up to date once it is mended"
        )
        return None, record


def full_setting(setting: Setting) -> dict[str, Any]:
    """Every scalar field of method, start and optimization by name: the same names for every trial of a sweep."""
    values: dict[str, Any] = {}
    for part in (setting.method, setting.start, setting.optimization):
        for name, value in part.to_json().items():
            if name == "kind":
                values["method"] = value
            elif not isinstance(value, (dict, list)):
                values[name] = value
    return values
