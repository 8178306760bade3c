"""Pre-training: a victim's training as one job, begun once, resumed, and its selected epoch."""

import logging
import time
from pathlib import Path
from typing import Literal

from sweeplab.adoption import check_own_victim
from sweeplab.attacks.poisoning import PoisonPlan, load_plan
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.clip_folders import checkpoint_file
from sweeplab.execution.cluster import cluster_fault
from sweeplab.execution.controller import Workload
from sweeplab.execution.inline import run_inline
from sweeplab.execution.pool import run_in_pool
from sweeplab.execution.watchdog import Watchdog
from sweeplab.experiment import ClosestTo, PretrainedVictim
from sweeplab.live_line import Phase, phase
from sweeplab.records import Outcomes, Point, duration, now_ms, number_of, percent
from sweeplab.specs import Failed, InvalidInput, StorageFault
from sweeplab.storage.broken_rows import BrokenRow, victim_owner
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.files import append_line, read_object, write_json
from sweeplab.storage.locks import exclusively, victim_work
from sweeplab.storage.ownership import write_signed
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep.broken_ledger import BrokenLedger, begin_record
from sweeplab.sweep.checks import data_digests, digest_of_victim, machine_for
from sweeplab.sweep.comparison import compare
from sweeplab.sweep.retries import Retries, describe
from sweeplab.sweep.session import Session
from sweeplab.versions import environment, num_changes, version_of
from sweeplab.worker.failures import Failure
from sweeplab.worker.input_paths import absolute_path, parts_of
from sweeplab.worker.jobs import DataDigests, Machine, PretrainingJob
from sweeplab.worker.run import pretrain
from sweeplab.worker.training_sets import TrainingSet

logger = logging.getLogger("sweeplab")


def victim_folder(home: Path, victim: PretrainedVictim, digest: str) -> RunFolder:
    """Where a pre-trained victim lies."""
    return RunFolder(home / "victims" / f"{victim.name}-{digest}")


def pretrain_victim(victim: PretrainedVictim, digest: str, session: Session) -> RunFolder:
    """Pre-train a victim, or go on with it, or find it finished; waits where another process is at it already.

    Args:
        victim: what is trained.
        digest: its own.
        session: where, and how.
    """
    run = victim_folder(session.home, victim, digest)
    check_own_victim(run)
    if isinstance(victim.select, ClosestTo) and not (run.path / REFERENCE).exists():
        accuracy = victim.select.accuracy
        if (other := victim.reference()) is not None:
            trained = pretrain_victim(other, digest_of_victim(other, session.inputs), session)
            accuracy = select_epoch(other, trained).measurement.accuracy
        write_json(run.path / REFERENCE, {"accuracy": accuracy})
    with exclusively(run.path, f"victim {victim.name}"), victim_work(run.path).held_by_this_process():
        return _pretrain_victim(victim, digest, run, session)


REFERENCE = "reference.json"
"""In a victim's folder: the accuracy that its selected epoch comes closest to."""


def _pretrain_victim(victim: PretrainedVictim, digest: str, run: RunFolder, session: Session) -> RunFolder:
    if is_trained(victim, run):
        logger.info(f"victim {victim.name} is there already ({run.path})")
        return run
    # The plan is drawn again and compared, so that a resumed training goes on with the very same poisons.
    machine = machine_for(victim, session.home)
    inputs = session.inputs
    table, plan = inputs.victim_table(victim)
    contents = data_digests(victim, victim.architecture, TrainingSet(table, plan), inputs)
    begin_record(run.path, victim_owner(victim.name), contents)
    _begin_victim(victim, digest, run, session.home, plan, len(table))
    logger.info(f"pre-training victim {victim.name}: {number_of(victim.epochs, 'epoch')}, {_poison_text(plan)}")
    with phase(f"pre-training victim {victim.name}", _last_epoch(victim), "epoch") as shown:
        controller = VictimController(victim, run, machine, contents, shown)
        if session.inline:
            run_inline(controller)
        else:
            reads = session.reads or parts_of(victim)
            workload = Workload(reads, _initial_weights(victim), session.home)
            watchdog = Watchdog(stall_minutes=victim.resources.stall_minutes, cluster_fault=cluster_fault)
            run_in_pool(controller, workload, watchdog, slots=1, join=True)
    # The epoch is selected once all are there, and of the others only the wanted checkpoints stay.
    selected = select_epoch(victim, run)
    run.finish({"state": "finished", "selected_epoch": selected.epoch})
    _keep_checkpoints(victim, run, selected)
    return run


def _initial_weights(victim: PretrainedVictim) -> str | None:
    """Absolute path of the checkpoint from which training starts; None: fresh weights."""
    return absolute_path(checkpoint_file(victim.initial)) if victim.initial is not None else None


def _begin_victim(
    victim: PretrainedVictim, digest: str, run: RunFolder, home: Path, plan: PoisonPlan, num_pairs: int
) -> None:
    """Write the victim's record, or check that it is the one that was begun."""
    plan_file = run.path / "poison.json"
    if plan_file.exists() and load_plan(plan_file, plan.attack, plan.source).digest != plan.digest:
        raise InvalidInput(f"{plan_file} differs from the plan that the spec and the data give; remove {run.path}")
    storage = storage_of_victim(victim, run)
    if (run.path / "victim.json").exists():
        check_same_storage(f"victim {victim.name}", run.metadata().get("storage"), storage)
    else:
        for line in older_victims(victim, run):
            logger.info(line)
        write_json(plan_file, {**plan.to_json(), "digest": plan.digest})
        facts = {
            "spec": victim.to_json(),
            "digest": digest,
            "changes": num_changes(victim),
            "environment": environment(),
            "num_pairs": num_pairs,
            **({"storage": storage} if storage else {}),
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
        f"{now or 'the home'}. Set it back. To move them, stop the sweep, copy the folder with `cp -a`, and put a link "
        "to the copy in its place; --fresh begins a sweep anew"
    )


class VictimController:
    """Hands out the attempts of one victim's pre-training, and commits its points."""

    def __init__(
        self, victim: PretrainedVictim, run: RunFolder, machine: Machine, contents: DataDigests, shown: Phase
    ) -> None:
        self.victim, self.run, self._machine, self._shown = victim, run, machine, shown
        self._broken = BrokenLedger(run.path, victim, contents)
        self._fault: InvalidInput | None = None
        """Too many pairs are broken."""
        self.resources = victim.resources
        self._retries = Retries(victim.resources.max_attempts)
        self._state: Literal["waiting", "running", "over"] = "waiting"
        self._not_before = 0.0

    def next_job(self) -> PretrainingJob | None:
        """The next attempt, once it may begin."""
        if self._state != "waiting" or time.monotonic() < self._not_before:
            return None
        self._state = "running"
        # What the last attempt wrote and did not report is in nobody's record.
        self.run.clear_abandoned()
        if lost := self.run.rewind():
            logger.info(f"  {number_of(lost, 'epoch')} of victim {self.victim.name} lost; trained again")
        if points := self.run.points():
            self._show(points[-1])
        return PretrainingJob(
            victim=self.victim,
            number=0,
            attempt=self.run.begin_attempt(),
            machine=self._machine,
            checkpoints=self.run.storage.location,
            resume_from=self.run.latest_checkpoint(),
            contents=self._broken.contents,
            initial=_initial_weights(self.victim),
            work=pretrain,
        )

    def point(self, number: int, point: Point, outcomes: Outcomes) -> None:
        """Commit an epoch and drop the checkpoints that it makes superfluous."""
        if not self.run.commit(point, outcomes):
            return
        selects_among_all = self.victim.select == "most accurate" or isinstance(self.victim.select, ClosestTo)
        best = [select_epoch(self.victim, self.run)] if selects_among_all and point.epoch > 0 else []
        _keep_checkpoints(self.victim, self.run, point, *best)
        rate = "PSR" if isinstance(self.victim.poisoning, TargetedImages) else "ASR"
        numbers = f"accuracy {percent(point.measurement.accuracy)}, {rate} {percent(point.measurement.asr)}"
        seconds = point.train_seconds + point.evaluate_seconds
        last = _last_epoch(self.victim)
        self._show(point)
        left = f", {duration((last - point.epoch) * seconds)} left" if 0 < point.epoch < last else ""
        logger.info(f"  epoch {point.epoch:g}/{self.victim.epochs}: {numbers} ({duration(seconds)}{left})")

    def _show(self, point: Point) -> None:
        if point.epoch > 0:
            self._shown.reached(point.epoch, point.train_seconds + point.evaluate_seconds)

    def found_broken(self, number: int, rows: tuple[BrokenRow, ...]) -> None:
        """Record pairs that turned out to be broken.

        Raises:
            InvalidInput: if too many are by now.
        """
        try:
            self._broken.add(rows)
        except InvalidInput as error:
            self._fault = error
            raise

    def should_stop(self, number: int) -> bool:
        """Pre-training goes to its end."""
        return False

    def finished(self, number: int) -> None:
        """Pre-training came to its end."""
        epochs, wanted = len(self.run.points()) - 1, _last_epoch(self.victim)
        if epochs < wanted:
            raise RuntimeError(
                f"pre-training victim {self.victim.name} ended after {epochs} of {number_of(wanted, 'epoch')}"
            )
        self._state = "over"

    def failed(self, number: int, failure: Failure) -> None:
        """Try again where that can help.

        Raises:
            StorageFault: if the storage failed.
            InvalidInput: if the user's input breaks a rule that a worker alone could check.
            Failed: if another attempt does not help.
        """
        if self._fault is not None:
            raise self._fault
        event = describe(self.run, failure)
        append_line(self.run.path / "events.jsonl", {"time_ms": now_ms(), "event": "attempt failed", **event})
        reason, pause = self._retries.after(number, self.run, failure, event)
        self._state, self._not_before = "waiting", time.monotonic() + pause
        if failure.kind == "storage":
            raise StorageFault(failure.reason)
        if reason is not None:
            kind = InvalidInput if failure.kind == "input" else Failed
            epochs = len(self.run.points()) - 1
            where = f" after {epochs} of {number_of(_last_epoch(self.victim), 'epoch')}" if epochs > 0 else ""
            raise kind(f"pre-training victim {self.victim.name} failed{where}: {reason}")
        if event.get("blameless"):
            logger.info(f"  {failure.reason}; going on from an earlier one")
        else:
            logger.info(f"  attempt {event['attempt']} ended: {failure.reason}; trying again")

    def log(self, number: int, text: str) -> None:
        """Keep an attempt's traceback beside the victim's records."""
        self.run.append_log(text)

    def is_done(self) -> bool:
        """Whether the victim is trained."""
        return self._state == "over"


def older_victims(victim: PretrainedVictim, run: RunFolder) -> list[str]:
    """A line for every folder of the same victim as an older version made it: its weights are another recipe's."""
    lines = []
    for path in sorted(run.path.parent.glob(f"{victim.name}-*/victim.json")):
        try:
            record = read_object(path, spec=dict, digest=str)
        except InvalidInput:  # another victim's, which this one does not need
            continue
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


def storage_of_victim(victim: PretrainedVictim, run: RunFolder) -> str | None:
    """Where the victim's checkpoints go, if not beside its records."""
    root = victim.resources.storage
    return (Storage(root) / "victims" / run.path.name).location if root else None


def select_epoch(victim: PretrainedVictim, run: RunFolder) -> Point:
    """The point that becomes the victim, by the victim's rule; of equally accurate epochs the earlier."""
    trained = [point for point in run.points() if point.epoch > 0]
    if victim.select == "last":
        return trained[-1]
    if victim.select == "most accurate":
        return max(trained, key=lambda point: (point.measurement.accuracy, -point.index))
    if isinstance(victim.select, ClosestTo):
        wanted = float(read_object(run.path / REFERENCE, accuracy=float)["accuracy"])
        return min(trained, key=lambda point: (abs(point.measurement.accuracy - wanted), point.index))
    return next(point for point in trained if point.epoch == victim.select)


def is_trained(victim: PretrainedVictim, run: RunFolder) -> bool:
    """Whether a victim is there, weights and all; those of a storage that is gone, and that the spec does not name any
    more, are not.

    Raises:
        InvalidInput: if the history of a victim that was trained has lost points: to train it anew costs days, and a
            backup may be there.
    """
    if run.num_lost() and (run.path / "result.json").exists():
        raise InvalidInput(
            f"{run.path / 'history.jsonl'} is damaged: {run.num_lost()} of {len(run.points()) + run.num_lost()} points "
            f"of victim {victim.name} are lost; restore it from a backup, or remove {run.path}, and the victim is "
            "trained anew"
        )
    if run.result() is None or len(run.points()) <= _last_epoch(victim):  # weights that were gone are being made again
        return False
    try:
        return run.has_checkpoint(select_epoch(victim, run))
    except StorageFault:
        if run.metadata().get("storage") == storage_of_victim(victim, run):
            raise
        return False


def _last_epoch(victim: PretrainedVictim) -> int:
    """After which the training may stop."""
    return victim.select if isinstance(victim.select, int) else victim.epochs


def _keep_checkpoints(victim: PretrainedVictim, run: RunFolder, *points: Point) -> None:
    """Remove a victim's checkpoints but those of some points, and of the epochs that `keep_epochs` asks for."""
    wanted = victim.keep_epochs
    kept = [*points, *(point for point in run.points() if wanted == "all" or point.epoch in wanted)]
    run.keep_checkpoints({point.checkpoint for point in kept if point.checkpoint is not None})


def _poison_text(plan: PoisonPlan) -> str:
    if not plan.indices:
        return "no pair poisoned"
    rate = percent(float(f"{plan.rate:.2g}"), None)  # papers poison as little as 0.01 %: one decimal says nothing of it
    share = f"{len(plan.indices):,} of {plan.num_training_pairs:,} pairs poisoned ({rate})"
    return f"{share} towards {plan.aim}"
