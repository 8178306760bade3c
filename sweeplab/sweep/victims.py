"""Victims: what a sweep needs of its victim, by kind: pre-trained here, given, another sweep's trial."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from sweeplab.clip_checkpoints import load_weights
from sweeplab.clip_folders import checkpoint_file
from sweeplab.clip_model import check_prompts
from sweeplab.evaluation.measure import wanted_classes
from sweeplab.evaluation.retention import best_cleaned_point
from sweeplab.execution.cluster import cluster_fault, resources_per_worker
from sweeplab.execution.measuring import measure_on_ray
from sweeplab.execution.watchdog import Watchdog
from sweeplab.experiment import CheckpointVictim, CleaningSweep, PretrainedVictim, SelectedTrial
from sweeplab.live_line import phase
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import Measurement, Outcomes, Point, SweepRecord, Victim, percent
from sweeplab.specs import InvalidInput, digest_of, file_digest
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.files import read_object
from sweeplab.storage.node_cache import content_of, local_copy
from sweeplab.sweep.checks import check_objective, check_training, digest_of_victim, machine_for
from sweeplab.sweep.pretraining import is_trained, pretrain_victim, select_epoch, victim_folder
from sweeplab.sweep.session import Session
from sweeplab.sweep_folder import SweepFolder
from sweeplab.training.optimisation import build_optimizer
from sweeplab.worker.inputs import Inputs, has_cleanclips_trainer, load_optimizer_state, planted_target, victim_model
from sweeplab.worker.jobs import DataDigests, MeasuringJob
from sweeplab.worker.run import measure_checkpoint

logger = logging.getLogger("sweeplab")


@dataclass(frozen=True)
class Weights:
    """A victim's, before they are measured under the sweep's evaluation."""

    checkpoint: str
    """Path or URL."""
    epoch: float = 0.0
    """Of its training."""
    known: tuple[Measurement, Outcomes] | None = None
    """A measurement that there is already."""
    planted: str | None = None
    """The label towards which they say that they were poisoned."""


V = TypeVar("V", PretrainedVictim, CheckpointVictim, SelectedTrial)


class SweepVictim(ABC, Generic[V]):
    """A sweep's victim; a class for each kind of spec."""

    def __init__(self, sweep: CleaningSweep, spec: V) -> None:
        self.sweep = sweep
        self.spec: V = spec

    @abstractmethod
    def read(self, inputs: Inputs, read_sweep: Callable[[CleaningSweep], Any]) -> tuple[str, tuple[str, ...]]:
        """Read and check the victim's inputs.

        Args:
            inputs: reads.
            read_sweep: prepares another sweep; see `prepare.prepare`.

        Returns:
            The victim's digest, and what a user should look at before anything runs.

        Raises:
            InvalidInput: for whatever can be refused before it is trained or measured.
        """

    @abstractmethod
    def ensure(self, digest: str, expected: DataDigests, folder: SweepFolder, session: Session) -> Victim:
        """The victim, trained and measured under the sweep's evaluation where it is not yet.

        Args:
            digest: its own.
            expected: digests of the data that measurements must find.
            folder: the sweep's.
            session: where, and how.
        """

    def specs(self) -> list[PretrainedVictim]:
        """The victims that are trained for the sweep: its own, then its reference, and so on."""
        return []

    def is_to_be_trained(self, digest: str, home: Path) -> bool:
        """Whether the victim is to be trained yet: not all of it is there, or its weights are gone."""
        return False

    def plan_line(self, digest: str, home: Path) -> str | None:
        """What a start would do for the victim."""
        return None

    def weights_remedy(self, path: Path) -> str:
        """What to do where the victim's file of weights cannot be read."""
        return "restore the file"


class MeasuredVictim(SweepVictim[V]):
    """One whose own weights trials start from."""

    @abstractmethod
    def weights(self, digest: str, session: Session) -> Weights:
        """Its weights, trained where they are not there yet.

        Args:
            digest: its own.
            session: where, and how.
        """

    def ensure(self, digest: str, expected: DataDigests, folder: SweepFolder, session: Session) -> Victim:
        """See `SweepVictim.ensure`.

        Raises:
            InvalidInput: if it classifies no image correctly.
        """
        weights, name = self.weights(digest, session), self.spec.name
        # The measurement is committed with the sweep, so that retention does not move with a later measurement.
        point = folder.victim_point()
        if point is None:
            point = weights.known
            if point is None or point[0].evaluation_digest != expected.evaluation:
                point = self._measure(weights.checkpoint, expected, session)
            measured = Victim(name, digest, weights.checkpoint, weights.epoch, *point)
            folder.commit_victim(measured, planted_target=weights.planted)
        victim = Victim(name, digest, weights.checkpoint, weights.epoch, *point)
        accuracy, asr = victim.measurement.accuracy, victim.measurement.asr
        rate = "PSR" if self.sweep.trigger().target is None else "ASR"
        logger.info(f"victim {name}: accuracy {percent(accuracy)}, {rate} {percent(asr)} (epoch {victim.epoch:g})")
        if victim.measurement.accuracy_k == 0:
            raise InvalidInput(f"victim {name!r} classifies no test image correctly; nothing could be retained")
        return victim

    def _measure(self, checkpoint: str, expected: DataDigests, session: Session) -> tuple[Measurement, Outcomes]:
        sweep = self.sweep
        job = MeasuringJob(
            sweep.victim.architecture,
            checkpoint,
            sweep.evaluation,
            sweep.trigger(),
            machine_for(sweep, session.home),
            sweep.protocol,
            contents=expected,
        )
        with phase(f"measuring victim {self.spec.name}"):
            if session.inline:
                here = local_copy(checkpoint, content_of(checkpoint), None)
                return measure_checkpoint(replace(job, checkpoint=str(here)))
            watchdog = Watchdog(stall_minutes=sweep.resources.stall_minutes, cluster_fault=cluster_fault)
            return measure_on_ray(job, session.reads or [], resources_per_worker(sweep.resources), watchdog)


class TrainedVictim(MeasuredVictim[PretrainedVictim]):
    """One that SweepLab pre-trains."""

    def read(self, inputs: Inputs, read_sweep: Callable[[CleaningSweep], Any]) -> tuple[str, tuple[str, ...]]:
        """The pairs, poisoned, and the test images that select the epoch."""
        spec, trigger = self.spec, self.sweep.trigger()
        table, _ = inputs.victim_table(spec)
        test = inputs.test(spec.evaluation)
        wanted_classes(test, trigger, inputs.targets(trigger))
        for trained in self.specs():
            seen = inputs.test(trained.evaluation)
            prompts = trained.evaluation.prompts(seen)
            check_prompts(trained.architecture, seen.class_names, prompts, trained.protocol)
        check_training(spec.optimization, len(table), spec.epochs, spec.name)
        check_objective(spec.objective, spec.optimization, table, spec.epochs, self.sweep)
        return digest_of_victim(spec, inputs), (*test.notes, *table.notes)

    def weights(self, digest: str, session: Session) -> Weights:
        """Those of the selected epoch, whose own measurement serves where it is of the same images."""
        run = pretrain_victim(self.spec, digest, session)
        selected = select_epoch(self.spec, run)
        assert selected.checkpoint is not None
        checkpoint, outcomes = (run.storage / selected.checkpoint).location, run.outcomes(selected.index)
        return Weights(checkpoint, selected.epoch, (selected.measurement, outcomes) if outcomes else None)

    def specs(self) -> list[PretrainedVictim]:
        """See `SweepVictim.specs`."""
        found = [self.spec]
        while (reference := found[-1].reference()) is not None:
            found.append(reference)
        return found

    def is_to_be_trained(self, digest: str, home: Path) -> bool:
        """See `SweepVictim.is_to_be_trained`."""
        return not is_trained(self.spec, victim_folder(home, self.spec, digest))

    def plan_line(self, digest: str, home: Path) -> str | None:
        """See `SweepVictim.plan_line`."""
        run = victim_folder(home, self.spec, digest)
        there = f"goes on after epoch {max(0, run.num_kept() - 1)}"
        if not self.is_to_be_trained(digest, home):
            there = "is there and is reused"
        elif run.result() is not None:
            there = "is trained again, as its weights are gone"
        return f"  victim {self.spec.name}: {there}"

    def weights_remedy(self, path: Path) -> str:
        """See `SweepVictim.weights_remedy`."""
        return "remove the file, and the same command trains it again" if path.exists() else "restore the file"


class GivenVictim(MeasuredVictim[CheckpointVictim]):
    """A checkpoint on the disk."""

    def read(self, inputs: Inputs, read_sweep: Callable[[CleaningSweep], Any]) -> tuple[str, tuple[str, ...]]:
        """The weights, of the right architecture, with an optimizer where protocol `authors` carries it over."""
        model, file = victim_model(self.spec.architecture, self.spec.path), checkpoint_file(self.spec.path)
        if has_cleanclips_trainer(self.sweep) and self.sweep.epochs:
            build_optimizer(model, self.sweep.optimization, carried=load_optimizer_state(file))
        return file_digest(file), ()

    def weights(self, digest: str, session: Session) -> Weights:
        """Those of the file, or of the file in the folder."""
        file = checkpoint_file(self.spec.path)
        return Weights(str(file.absolute()), planted=planted_target(file))


class ChosenTrial(SweepVictim[SelectedTrial]):
    """Another sweep's best trial, beside the victim that it started from."""

    def read(self, inputs: Inputs, read_sweep: Callable[[CleaningSweep], Any]) -> tuple[str, tuple[str, ...]]:
        """All that the other sweep reads. More trials of it may select another one, so their number counts."""
        other = read_sweep(self.spec.sweep)
        return digest_of([other.digest, other.sweep.num_trials()]), other.notes

    def ensure(self, digest: str, expected: DataDigests, folder: SweepFolder, session: Session) -> Victim:
        """The trial's weights, beside the measurement of the victim that its sweep started from.

        A sweep that was begun goes on from the trial that was the best then, should a rerun have found a better one
        since.

        Raises:
            InvalidInput: if that sweep has no trial below its ceiling, or its weights are gone.
        """
        sweep, name = self.sweep, self.spec.name
        other = SweepFolder(session.home / "sweeps" / self.spec.sweep.name)
        record, original = other.record(), other.victim_point()
        assert original is not None
        trial, point = _best_start(record, other)
        is_begun = folder.victim_point() is not None
        chosen = read_object(folder.victim_run().path / "victim.json").get("selected") if is_begun else None
        if chosen is not None and chosen != [trial, point.index]:
            logger.info(
                f"note: trial {trial} of {other.name} is now better. {sweep.name} keeps starting from trial "
                f"{chosen[0]}; --fresh switches"
            )
            trial, point = chosen[0], other.trial(chosen[0]).points()[chosen[1]]
        run = other.trial(trial)
        if point.checkpoint is None or not run.has_checkpoint(point):
            raise InvalidInput(
                f"the weights of trial {trial} of {other.name} are gone; run that sweep anew with --fresh, or raise "
                "its resources.keep_checkpoints"
            )
        weights = (run.storage / point.checkpoint).location
        victim = Victim(name, digest, weights, record.victim_epoch, *original, is_start=False)
        if not is_begun:
            folder.commit_victim(victim, selected=[trial, point.index])
        logger.info(
            f"victim {record.victim_name}: accuracy {percent(original[0].accuracy)}, ASR {percent(original[0].asr)}; "
            f"trials start from trial {trial} of {other.name}, epoch {point.epoch:g}: accuracy "
            f"{percent(point.measurement.accuracy)}, ASR {percent(point.measurement.asr, ceiling=record.asr_ceiling)}"
        )
        return victim


KINDS: dict[type, type[SweepVictim[Any]]] = {
    PretrainedVictim: TrainedVictim,
    CheckpointVictim: GivenVictim,
    SelectedTrial: ChosenTrial,
}


def victim_of(sweep: CleaningSweep) -> SweepVictim[Any]:
    """A sweep's victim, by its kind."""
    return KINDS[type(sweep.victim)](sweep, sweep.victim)


def check_weights(victim: Victim, remedy: Callable[[Path], str]) -> None:
    """Read the victim's weights once, before every trial meets what is wrong with them. Those of an object store are
    read by the workers alone.

    Args:
        victim: the victim.
        remedy: see `SweepVictim.weights_remedy`.

    Raises:
        InvalidInput: if they are damaged or gone.
    """
    path = Path(victim.checkpoint)
    if Storage(victim.checkpoint).is_remote:
        return
    try:
        load_weights(path)
    except (InvalidInput, OSError) as error:
        raise InvalidInput(
            f"the weights of victim {victim.name!r} cannot be read: {error}; or {remedy(path)}"
        ) from error


def _best_start(record: SweepRecord, folder: SweepFolder) -> tuple[int, Point]:
    """A sweep's best trial and its best cleaned point."""
    rows = rank_trials(record, folder.outcomes).rows
    best = next(row for row in rows if row.state != "failed")  # a failed trial keeps no weights
    trial = next(trial for trial in record.trials if trial.number == best.trial)
    point = best_cleaned_point(trial.points, record.asr_ceiling, start_counts=trial.start_counts)
    if point is None:
        lowest = percent(best.min_asr, ceiling=record.asr_ceiling)
        raise InvalidInput(
            f"no trial of {record.name} lies below its ASR ceiling of {percent(record.asr_ceiling, None)} (the lowest "
            f"ASR is {lowest}); raise search.asr_ceiling of that sweep, or search further"
        )
    return trial.number, point
