"""Run: start a sweep or go on with it, from its inputs to its last trial."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sweeplab.adoption import adopt_sweep, adopt_victim
from sweeplab.execution.cluster import cluster_fault, ray_session, resources_per_worker
from sweeplab.execution.controller import Workload
from sweeplab.execution.inline import run_inline
from sweeplab.execution.pool import run_in_pool
from sweeplab.execution.watchdog import Watchdog
from sweeplab.experiment import CleaningSweep, PretrainedVictim, SelectedTrial, measured_alone
from sweeplab.records import SweepRecord, Victim, number_of
from sweeplab.search.quiet import quiet_optuna
from sweeplab.specs import Failed, InvalidInput, StorageFault, Unfinished
from sweeplab.storage.broken_rows import sweep_owner
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep.broken_ledger import begin_record
from sweeplab.sweep.checks import digest_of_victim, machine_for
from sweeplab.sweep.controller import SweepController
from sweeplab.sweep.gpu_sharing import resources_now
from sweeplab.sweep.mlflow_sync import (
    LEAVING_SECONDS,
    SYNC_SECONDS,
    UNUSABLE,
    MLflowSync,
    full_setting,
    synced_tracking,
)
from sweeplab.sweep.page_writer import PageWriter
from sweeplab.sweep.prepare import Prepared, prepare
from sweeplab.sweep.pretraining import check_same_storage, pretrain_victim, victim_folder
from sweeplab.sweep.progress import SweepProgress
from sweeplab.sweep.readiness import check_machine, check_storages, make_ready_nodes
from sweeplab.sweep.resume import check_is_there, check_same_spec, resume_plan, set_aside
from sweeplab.sweep.session import Session
from sweeplab.sweep.trial_storage import check_storage_of_trial
from sweeplab.sweep.victims import check_weights, victim_of
from sweeplab.sweep_folder import SweepFolder
from sweeplab.tracking.store import Place, tracking_store
from sweeplab.worker.input_paths import parts_of
from sweeplab.worker.inputs import Inputs

logger = logging.getLogger("sweeplab")


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


def open_sweep(sweep: CleaningSweep, home: Path, options: Options) -> tuple[SweepFolder, Prepared]:
    """The sweep's folder, which need not be there yet, and all that a start reads before it changes anything.

    Raises:
        InvalidInput: for bad input, one that came from elsewhere, one to resume that is not there, or an MLflow store
            that cannot be.
    """
    folder = SweepFolder.of(home, sweep.name)
    if options.resume:
        check_is_there(folder)
    if not options.adopt:
        folder.check_own()
    tracking_store(home)  # an address that MLflow cannot use is refused before anything is read
    logger.info(f"{sweep.name}: reading and checking its data")
    return folder, prepare(sweep, home, fresh=options.fresh)


def run_sweep(sweep: CleaningSweep, home: Path, options: Options = Options()) -> SweepRecord:
    """Start a sweep, or go on with it; the same command does either.

    Raises:
        InvalidInput: for bad input, a sweep of the same name with another spec, one that came from elsewhere, or one
            that someone else runs.
        Unfinished: when interrupted, or when the storage fails.
        Failed: if its victim could not be made: pre-training failed, or every trial of the sweep that it is taken from.
    """
    folder, prepared = open_sweep(sweep, home, options)
    for note in prepared.notes:
        logger.info(f"note: {note}")
    sweep = prepared.sweep
    if options.adopt:
        adopt_with_victims(folder, prepared, home)
    if options.fresh and folder.exists():
        logger.info(f"set the old sweep aside as {set_aside(folder).name}")
    with folder.lock():
        if folder.exists():
            check_same_spec(folder, prepared)
        is_finished = folder.exists() and _is_finished(folder, sweep)
        limit = None
        if is_finished:
            _show_finished(prepared, folder, home)
        else:
            limit = _run_what_is_left(prepared, folder, home, options)
    record = folder.record()  # once the lock is free: of a sweep that is locked it says that it runs
    if record.state == "finished" or is_finished:
        return record
    if limit is None:
        raise Unfinished(f"{sweep.name}: not finished; everything so far is kept, and the same command goes on")
    planned = number_of(record.planned_trials, "trial")
    logger.info(
        f"{sweep.name}: {limit} after {len(record.trials):,} of {planned}; to go on, raise it: the same command with "
        f"`{raised(limit)}`"
    )
    return record


def raised(limit: str) -> str:
    """Twice the bound that a sweep has reached, as an override; see `SweepController.limit_reached`."""
    field, _, value = limit.split()[0].partition("=")
    return f"{field}={2 * float(value):g}"


def open_victim(victim: PretrainedVictim, home: Path, options: Options) -> tuple[RunFolder, Prepared]:
    """The folder of a victim that is trained alone, and all that a start reads before it changes anything.

    Raises:
        InvalidInput: for bad input, or where there is nothing to resume.
    """
    prepared = prepare(measured_alone(victim), home, fresh=True)
    assert isinstance(prepared.sweep.victim, PretrainedVictim)
    run = victim_folder(home, prepared.sweep.victim, prepared.victim_digest)
    if options.resume and not (run.path / "victim.json").exists():
        raise InvalidInput(f"--resume: there is no victim {run.path}; leave the flag out to train it")
    return run, prepared


def run_victim(victim: PretrainedVictim, home: Path, options: Options = Options()) -> RunFolder:
    """Train and measure a victim, or go on with it, or find it there; the same command does either.

    `options.fresh` sets no victim aside: sweeps go on from its weights. To train one anew, remove its folder.

    Raises:
        InvalidInput: for bad input, or a victim of that digest that came from elsewhere.
        Unfinished: when the storage fails.
        Failed: if its training failed.
    """
    _, prepared = open_victim(victim, home, options)
    for note in prepared.notes:
        logger.info(f"note: {note}")
    spec = prepared.sweep.victim
    assert isinstance(spec, PretrainedVictim)
    if options.adopt:
        adopt_victims(prepared, home)
    inline = options.inline or spec.resources.resolved_executor() == "inline"
    if not victim_of(prepared.sweep).is_to_be_trained(prepared.victim_digest, home):
        inline = True  # it is looked at, for which no Ray is needed
    with storage_faults_as_unfinished(prepared.sweep):
        check_storages(prepared, home, runs_trials=False)
    with workplace(prepared.sweep, inline):
        session = Session(home, inline, parts_of(prepared.sweep), prepared.inputs)
        if not inline:
            check_machine(prepared.sweep)
            make_ready_nodes(prepared, session, runs_trials=False)
        return pretrain_victim(spec, prepared.victim_digest, session)


def _is_finished(folder: SweepFolder, sweep: CleaningSweep) -> bool:
    if folder.victim_point() is None:
        return False
    numbers = folder.trial_numbers()
    is_over = all(folder.trial(number).result() is not None for number in numbers)
    return is_over and len(numbers) >= folder.num_planned(sweep)


def _may_be_behind(folder: SweepFolder) -> bool:
    """Whether Optuna or MLflow may be behind: no driver has said that it ended, or MLflow did not answer."""
    kinds = [event["event"] for event in folder.events()]
    drivers = [kind for kind in kinds if kind in ("driver began", "driver ended", "mlflow behind")]
    return drivers[-1:] in (["driver began"], ["mlflow behind"])


def _show_finished(prepared: Prepared, folder: SweepFolder, home: Path) -> None:
    """Say that nothing is left to run, and mend what a kill after the last trial, or an older version, has left."""
    header = folder.header()
    # Another number of trials was asked for, or an older version did not say which test images it measured.
    if header["planned_trials"] != folder.num_planned(prepared.sweep) or "images" not in header:
        folder.write_header(prepared.sweep, prepared.digest, prepared.contents, prepared.images)
    count = len(folder.trial_numbers())
    what = "its one trial is" if count == 1 else f"all {count:,} trials are"
    logger.info(f"{folder.name}: {what} there already; nothing to run")
    store, place = tracking_store(home), Place.read(folder.path)
    is_elsewhere = store.address != (place.store if place else "")
    is_lacking = not folder.journal.exists() or (store.path is not None and not store.path.exists())
    if not is_elsewhere and not is_lacking and not _may_be_behind(folder):
        return
    # Tell Optuna and MLflow of the last trial, where the driver was killed between its result and that.
    sweep, point = prepared.sweep, folder.victim_point()
    assert point is not None
    victim = Victim(sweep.victim.name, prepared.victim_digest, "", 0.0, *point)
    SweepController(sweep, folder, victim, machine_for(sweep, home))
    tracking = synced_tracking(sweep, folder, Session(home, inline=True))
    folder.event("driver ended", finished=True, reason="brought up to the ledger")
    if tracking is None:
        folder.event("mlflow behind", reason=UNUSABLE)
    else:
        tracking.close()


def adopt_with_victims(folder: SweepFolder, prepared: Prepared, home: Path) -> None:
    """Take over a sweep's folder, and those of the victims that it is to train on, where they came from elsewhere."""
    if adopt_sweep(folder):
        logger.info(f"{folder.name}: adopted; it is this home's own from now on")
    adopt_victims(prepared, home)


def adopt_victims(prepared: Prepared, home: Path) -> None:
    """Take over the folders of the victims that a sweep trains, where they came from elsewhere."""
    for spec in victim_of(prepared.sweep).specs():
        run = victim_folder(home, spec, digest_of_victim(spec, prepared.inputs or Inputs(home / "data")))
        if adopt_victim(run):
            logger.info(f"victim {run.path.name}: adopted; it is this home's own from now on")


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
        f"{record.name}: every trial failed ({len(record.failures):,} of {record.planned_trials:,}), the first with: "
        f"{first.reason}; `sweeplab status {record.name}` lists the reasons"
    )


def _run_what_is_left(prepared: Prepared, folder: SweepFolder, home: Path, options: Options) -> str | None:
    """The sweep's victim and its trials, under its lock; the limit that ended it early, if one did."""
    sweep = prepared.sweep
    # Whatever can be refused is refused before the first file is written.
    inline = options.inline or sweep.resources.resolved_executor() == "inline"
    if folder.exists() and folder.trial_numbers():  # whose checkpoints lie there
        begun = folder.header()["spec"].get("resources", {}).get("storage")
        check_same_storage(f"sweep {sweep.name}", begun, sweep.resources.storage)
    with storage_faults_as_unfinished(sweep):
        check_storages(prepared, home)
        begin_record(folder.path, sweep_owner(sweep.name), prepared.expected)
        folder.write_header(sweep, prepared.digest, prepared.contents, prepared.images)
    if isinstance(sweep.victim, SelectedTrial):
        logger.info(f"{sweep.name} cleans the best trial of {sweep.victim.sweep.name}")
        inner = sweep.victim.sweep
        record = run_sweep(inner, home, Options(inline=options.inline, adopt=options.adopt))
        try:
            check_some_succeeded(record)
        except Failed as error:
            raise Failed(f"{sweep.name} has no trial to start from: {error}") from None
        if not _is_finished(SweepFolder(home / "sweeps" / inner.name), inner):  # its best trial may yet be another
            raise Unfinished(f"{sweep.name} begins once {inner.name} is finished")
    for number in folder.trial_numbers():
        if (run := folder.trial(number)).result() is None:
            check_storage_of_trial(sweep, folder, number, run)
    for line in resume_plan(folder, prepared, home):
        logger.info(line)
    # From here on processes start: the victim's first, then the trials'.
    victim_kind = victim_of(sweep)
    trains_victim = victim_kind.is_to_be_trained(prepared.victim_digest, home)
    session = Session(home, inline, parts_of(sweep, trains_victim=trains_victim), prepared.inputs)
    with workplace(sweep, inline):
        if not inline:
            check_machine(sweep)
            make_ready_nodes(prepared, session, runs_trials=True)
        victim = victim_kind.ensure(prepared.victim_digest, prepared.expected, folder, session)
        for note in folder.victim_notes():
            logger.info(f"  note: {note}")
        check_weights(victim, victim_kind.weights_remedy)
        session.inputs.forget()  # millions of rows need not lie in the driver's memory while trials run
        return _run_trials(prepared, folder, victim, session)


@contextmanager
def storage_faults_as_unfinished(sweep: CleaningSweep) -> Iterator[None]:
    """A storage that fails interrupts the sweep."""
    try:
        yield
    except StorageFault as fault:
        raise Unfinished(f"{sweep.name}: {fault}") from fault


@contextmanager
def workplace(sweep: CleaningSweep, inline: bool) -> Iterator[None]:
    """A Ray session, or nothing where everything runs in this process; failing storage ends it in order."""
    needs_train = isinstance(sweep.victim, PretrainedVictim) or sweep.resources.resolved_executor() != "tune"
    with storage_faults_as_unfinished(sweep), nullcontext() if inline else ray_session(needs_train=needs_train):
        yield


def _run_trials(prepared: Prepared, folder: SweepFolder, victim: Victim, session: Session) -> str | None:
    """Run what is missing; returns the bound that left trials unbegun, if one did."""
    sweep, record = prepared.sweep, folder.record()
    tracking = synced_tracking(sweep, folder, session)
    progress = SweepProgress(
        total=int(folder.header()["planned_trials"]),
        points_per_trial=sweep.num_points() - 1,
        victim_accuracy=victim.measurement.accuracy,
        asr_ceiling=sweep.search.asr_ceiling,
        trials=record.trials,
        ends=record.ends,
    )
    sync = MLflowSync(tracking, lambda params: full_setting(sweep.setting(params))) if tracking is not None else None
    page = PageWriter(folder)
    listeners = (progress.hear, page.hear) if sync is None else (progress.hear, page.hear, sync.hear)
    resources = resources_now(sweep.resources, folder.events())
    folder.event(
        "driver began",
        process=os.getpid(),
        host=socket.gethostname(),
        digest=prepared.digest,
        executor="inline" if session.inline else resources.resolved_executor(),
        workers=1 if session.inline else resources.workers,
        gpus_per_worker=0.0 if session.inline else resources_per_worker(resources).get("GPU", 0.0),
        before_until_ms=folder.last_heartbeat(),
    )
    controller = SweepController(  # which may tell of events itself
        sweep, folder, victim, machine_for(sweep, session.home), listeners, contents=prepared.expected
    )
    reason, patience = "finished", LEAVING_SECONDS
    try:
        with progress, folder.heartbeats(), page:
            execute(controller, session)
        patience = SYNC_SECONDS
    except BaseException as error:
        reason = str(controller.fault or error) or type(error).__name__
        raise
    finally:
        controller.close()
        behind = UNUSABLE if sync is None else None
        if sync is not None and not sync.close(patience) and patience == SYNC_SECONDS:
            logger.info("note: MLflow is behind the ledger; the same command brings it up to date")
            behind = sync.trouble or "slow"
        # Where these cannot be written, the next command takes this one for killed, and looks after both.
        with contextlib.suppress(StorageFault):
            folder.event("driver ended", finished=controller.is_complete(), reason=reason)
            if behind is not None:
                folder.event("mlflow behind", reason=behind)
    return controller.limit_reached()


def execute(controller: SweepController, session: Session) -> None:
    """Run what the controller hands out, on the executor that its sweep names.

    Raises:
        Unfinished: where nothing moves any more, the cluster is gone, or the storage fails.
        Interrupted: on a signal.
    """
    resources = controller.sweep.resources
    with quiet_optuna():
        if session.inline:
            run_inline(controller)
        else:
            workload = Workload(session.reads or [], controller.victim.checkpoint, session.home)
            watchdog = Watchdog(
                stall_minutes=resources.stall_minutes,
                cluster_fault=cluster_fault,
                controller_fault=lambda: controller.fault,
            )
            if resources.resolved_executor() == "pool":
                run_in_pool(controller, workload, watchdog)
            else:
                # Imports Ray, whose settings must stand before that: `ray_session` has made them by now.
                from sweeplab.execution.tune import run_on_tune

                run_on_tune(controller, workload, watchdog)
    if controller.fault is not None:
        raise controller.fault
