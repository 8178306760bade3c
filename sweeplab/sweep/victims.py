"""Victims: pre-trained, measured or taken from another sweep, once, and reused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeplab.attacks.poisoning import PoisonPlan, load_plan
from sweeplab.clip_model import load_weights
from sweeplab.evaluation.retention import best_cleaned_point
from sweeplab.execution.cluster import cluster_fault, resources_per_worker
from sweeplab.execution.inline import pretrain_inline
from sweeplab.execution.measuring import measure_on_ray
from sweeplab.execution.pretraining import pretrain_on_ray
from sweeplab.execution.watchdog import Watchdog
from sweeplab.experiment import CheckpointVictim, CleaningSweep, ClosestTo, PretrainedVictim, SelectedTrial
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import Point, SweepRecord, Victim, now_ms
from sweeplab.specs import DamagedCheckpoint, Failed, InvalidInput, StorageFault, Unfinished
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.files import append_line, read_json, write_json
from sweeplab.storage.locks import Say, exclusively
from sweeplab.storage.node_cache import content_of, local_copy
from sweeplab.storage.ownership import write_signed
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep.comparison import compare
from sweeplab.sweep.prepare import Prepared, _contents, _digest_here, machine_for
from sweeplab.sweep_folder import (
    SweepFolder,
    adopt_sweep,
    adopt_victim,
    check_own_victim,
    environment,
    num_changes,
    version_of,
    victim_folder,
    write_victim,
)
from sweeplab.worker.failures import Failure, failure_of
from sweeplab.worker.input_paths import parts_of
from sweeplab.worker.inputs import planted_target, victim_table
from sweeplab.worker.jobs import MeasuringJob, PretrainingJob
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
    is_wanted = wanted == run.metadata().get("storage")
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
                pretrain_inline(job, run, on_point)
            except (FloatingPointError, DamagedCheckpoint) as error:  # any other is shown in full
                failure = failure_of(error)
        else:
            watchdog = Watchdog(stall_minutes=victim.resources.stall_minutes, cluster_fault=cluster_fault)
            failure = pretrain_on_ray(job, run, on_point, home, watchdog, reads or parts_of(victim))
        if failure is None:
            break
        append_line(
            run.path / "events.jsonl",
            {"time_ms": now_ms(), "event": "attempt failed", "reason": failure.reason},
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
