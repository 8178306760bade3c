"""Victims: pre-trained, measured or taken from another sweep, once, and reused."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sweeplab.adoption import adopt_sweep, adopt_victim, check_own_victim
from sweeplab.attacks.poisoning import PoisonPlan, load_plan
from sweeplab.clip_checkpoints import load_weights
from sweeplab.evaluation.retention import best_cleaned_point
from sweeplab.execution.cluster import cluster_fault, resources_per_worker
from sweeplab.execution.controller import Workload
from sweeplab.execution.inline import run_inline
from sweeplab.execution.measuring import measure_on_ray
from sweeplab.execution.pool import run_in_pool
from sweeplab.execution.watchdog import Watchdog
from sweeplab.experiment import CheckpointVictim, CleaningSweep, ClosestTo, PretrainedVictim, SelectedTrial
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import Outcomes, Point, SweepRecord, Victim, now_ms
from sweeplab.specs import Failed, InvalidInput, StorageFault
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.files import append_line, open_private, read_json, storage_faults, write_json
from sweeplab.storage.locks import Say, exclusively
from sweeplab.storage.node_cache import content_of, local_copy
from sweeplab.storage.ownership import write_signed
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep.comparison import compare
from sweeplab.sweep.prepare import Prepared, _contents, _digest_here, machine_for
from sweeplab.sweep.retries import Retries, damaged_checkpoint, describe
from sweeplab.sweep_folder import SweepFolder, victim_folder, write_victim
from sweeplab.versions import environment, num_changes, version_of
from sweeplab.worker.failures import Failure
from sweeplab.worker.input_paths import parts_of
from sweeplab.worker.inputs import planted_target, victim_table
from sweeplab.worker.jobs import DataDigests, Machine, MeasuringJob, PretrainingJob
from sweeplab.worker.run import measure_checkpoint


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


def _trains_victim(prepared: Prepared, home: Path) -> bool:
    """Whether the sweep's victim is still to be trained: not all of it is there, or its weights are gone."""
    victim = prepared.sweep.victim
    if not isinstance(victim, PretrainedVictim):
        return False
    return not _is_trained(victim, victim_folder(home, victim, prepared.victim_digest))


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
                watchdog = Watchdog(stall_minutes=sweep.resources.stall_minutes, cluster_fault=cluster_fault)
                point = measure_on_ray(job, reads, resources_per_worker(sweep.resources), watchdog)
        victim = Victim(sweep.victim.name, prepared.victim_digest, checkpoint, epoch, *point)
        planted = planted_target(sweep.victim.path) if isinstance(sweep.victim, CheckpointVictim) else None
        write_victim(folder, victim, planted_target=planted)
        stamp = now_ms()
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
        stamp = now_ms()
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
    _begin_victim(victim, digest, run, home, plan, len(table), say)
    say(f"pre-training victim {victim.name}: {victim.epochs} epochs, {_poison_text(plan)}")
    test, targets = victim.evaluation.load(machine.data_home), victim.trigger().targets(machine.data_home)
    contents = _contents(victim, victim.architecture, table, test, targets)
    controller = VictimController(victim, run, machine, contents, say)
    if inline:
        run_inline(controller)
    else:
        weights = str(victim.initial.expanduser().absolute()) if victim.initial is not None else None
        workload = Workload(victim.resources, reads or parts_of(victim), weights, home)
        watchdog = Watchdog(stall_minutes=victim.resources.stall_minutes, cluster_fault=cluster_fault)
        run_in_pool(controller, workload, watchdog, slots=1, join=True)
    selected = select_epoch(victim, run)
    run.finish({"state": "finished", "selected_epoch": selected.epoch})
    run.keep_checkpoints({name for name in {selected.checkpoint} | _kept_epochs(victim, run) if name is not None})
    return run


def _begin_victim(
    victim: PretrainedVictim, digest: str, run: RunFolder, home: Path, plan: PoisonPlan, num_pairs: int, say: Say
) -> None:
    """Write the victim's record, or check that it is the one that was begun."""
    plan_file = run.path / "poison.json"
    if plan_file.exists() and load_plan(plan_file, plan.attack, plan.source).digest != plan.digest:
        raise InvalidInput(f"{plan_file} differs from the plan that the spec and the data give; remove {run.path}")
    storage = _storage_fact(victim, run)
    if (run.path / "victim.json").exists():
        check_same_storage(f"victim {victim.name}", run.metadata().get("storage"), storage.get("storage"))
    else:
        for line in older_victims(victim, run):
            say(line)
        write_json(plan_file, {**plan.to_json(), "digest": plan.digest})
        facts = {
            "spec": victim.to_json(),
            "digest": digest,
            "changes": num_changes(victim),
            "environment": environment(),
            "num_pairs": num_pairs,
            **storage,
        }
        write_signed(run.path / "victim.json", facts, home)
    run.claim_storage()


def check_same_storage(what: str, begun: str | None, now: str | None) -> None:
    """A run keeps the storage of checkpoints with which it was begun.

    Raises:
        InvalidInput: if the spec names another one now.
    """
    if begun == now:
        return
    place = begun or "the home"
    raise InvalidInput(
        f"{what} was begun with its checkpoints in {place} and keeps them there; now resources.storage gives "
        f"{now or 'the home'}. Set it back; where {place} has to go, stop the sweep, copy the folder with `cp -a`, and "
        "put a link to the copy in its place; --fresh begins a sweep anew"
    )


class VictimController:
    """Hands out the attempts of one victim's pre-training, and commits its points."""

    def __init__(
        self, victim: PretrainedVictim, run: RunFolder, machine: Machine, contents: DataDigests, say: Say
    ) -> None:
        self.victim, self.run, self._machine, self._contents, self._say = victim, run, machine, contents, say
        self._retries = Retries(victim.resources.max_attempts)
        self._state: Literal["waiting", "running", "over"] = "waiting"
        self._not_before = 0.0

    def next_job(self) -> PretrainingJob | None:
        """The next attempt, once it may begin."""
        if self._state != "waiting" or time.monotonic() < self._not_before:
            return None
        self._state = "running"
        self.run.clear_abandoned()
        self.run.rewind()
        initial = self.victim.initial
        return PretrainingJob(
            self.victim,
            self._machine,
            self.run.storage.location,
            self.run.begin_attempt(),
            self.run.latest_checkpoint(),
            contents=self._contents,
            initial=str(initial.expanduser().absolute()) if initial is not None else None,
        )

    def point(self, number: int, point: Point, outcomes: Outcomes) -> None:
        """Commit an epoch and drop the checkpoints that it makes superfluous."""
        if not self.run.commit(point, outcomes):
            return
        _keep_victim_checkpoints(self.victim, self.run)
        asr, seconds = point.measurement.asr, point.train_seconds + point.evaluate_seconds
        numbers = f"accuracy {point.measurement.accuracy:.1%}" + (f", ASR {asr:.1%}" if asr is not None else "")
        self._say(f"  epoch {point.epoch:g}/{self.victim.epochs}: {numbers} ({seconds:.1f} s)")

    def should_stop(self, number: int) -> bool:
        """Pre-training goes to its end."""
        return False

    def finished(self, number: int) -> None:
        """Pre-training came to its end."""
        epochs, wanted = len(self.run.points()) - 1, _last_epoch(self.victim)
        if epochs < wanted:
            raise RuntimeError(f"pre-training victim {self.victim.name} ended after {epochs} of {wanted} epochs")
        self._state = "over"

    def failed(self, number: int, failure: Failure) -> None:
        """Try again where that can help.

        Raises:
            StorageFault: if the storage failed.
            InvalidInput: if the user's input breaks a rule that a worker alone could check.
            Failed: if another attempt does not help.
        """
        damaged, event = damaged_checkpoint(self.run, failure), describe(self.run, failure)
        append_line(self.run.path / "events.jsonl", {"time_ms": now_ms(), "event": "attempt failed", **event})
        self._retries.remember(number, event)
        self._state = "waiting"
        if failure.kind == "storage":
            raise StorageFault(failure.reason)
        if damaged is not None:
            self.run.remove_checkpoint(damaged.rpartition("/")[2])
            self._say(f"  {failure.reason}; going on from an earlier one")
        elif reason := self._retries.verdict(number):
            kind = InvalidInput if failure.kind == "input" else Failed
            epochs = len(self.run.points()) - 1
            where = f" after {epochs} of {_last_epoch(self.victim)} epochs" if epochs > 0 else ""
            raise kind(f"pre-training victim {self.victim.name} failed{where}: {reason}")
        else:
            self._say(f"  attempt {event['attempt']} ended: {failure.reason}; trying again")
            self._not_before = time.monotonic() + self._retries.pause(number)

    def log(self, number: int, text: str) -> None:
        """Keep an attempt's traceback beside the victim's records."""
        path = self.run.path / "log.txt"
        with storage_faults(path), open(open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as file:
            file.write(text.rstrip() + "\n")

    def is_done(self) -> bool:
        """Whether the victim is trained."""
        return self._state == "over"


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
        if run.metadata().get("storage") == _storage_fact(victim, run).get("storage"):
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
