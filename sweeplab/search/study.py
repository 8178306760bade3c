"""The sweep's Optuna study, kept in a journal file of the sweep's folder."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import TrialState

from sweeplab.records import now_ms
from sweeplab.search.quiet import quiet_optuna
from sweeplab.search_space import SearchSpace
from sweeplab.storage.files import drop_torn_line, open_private, storage_faults
from sweeplab.sweep_folder import SweepFolder

logger = logging.getLogger("sweeplab")

BegunTrial = optuna.Trial
"""A trial whose parameters may be drawn."""


class _NoLock(BaseJournalFileLock):
    """The sweep's own lock covers the journal; Optuna's would outlive a killed process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class _Journal(JournalFileBackend):
    """Optuna's journal, handed to the system at once and not awaited on the disk: a killed process loses nothing, and
    what a power failure takes is told again from the ledger (`SweepController.reconcile`).
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with (
            storage_faults(self._file_path),
            open(open_private(Path(self._file_path), flags), "ab") as file,
        ):
            file.write(lines.encode())


def open_study(folder: SweepFolder, name: str) -> optuna.Study:
    """The sweep's Optuna study, in its journal file; made if needed. Call with the sweep's lock held.

    A damaged journal is set aside: what it held is told again from the ledger (`SweepController.reconcile`).
    """
    drop_torn_line(folder.journal)
    try:
        return _open_study(folder, name)
    except (ValueError, TypeError, LookupError, AssertionError, AttributeError) as error:  # as Optuna's reader has it
        aside = folder.journal.with_name(f"{folder.journal.name}.damaged-{now_ms()}")
        logger.info(f"note: {folder.journal} is damaged ({error}); it is kept as {aside.name} and made again")
        with storage_faults(folder.journal):
            folder.journal.rename(aside)
        return _open_study(folder, name)


def _open_study(folder: SweepFolder, name: str) -> optuna.Study:
    with storage_faults(folder.journal):  # before Optuna makes it, for all to read
        os.close(open_private(folder.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    with quiet_optuna():
        storage = JournalStorage(_Journal(str(folder.journal), lock_obj=_NoLock()))
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )


def begun_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The study's trials that have parameters, in order."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]


def add_lost_trial(study: optuna.Study, space: SearchSpace, params: dict[str, Any]) -> None:
    """Give the study a running trial that its journal has lost, with the parameters that the ledger has."""
    fixed = optuna.trial.FixedTrial(params)
    space.suggest(fixed)
    with quiet_optuna():
        study.add_trial(
            optuna.create_trial(state=TrialState.RUNNING, params=fixed.params, distributions=fixed.distributions)
        )


def ask_for(study: optuna.Study, params: dict[str, Any], number: int) -> BegunTrial:
    """Begin trial `number` with a given setting."""
    with quiet_optuna():
        if not any(trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)[number:]):
            study.enqueue_trial(params)
        return study.ask()


def tell_failed(study: optuna.Study, number: int) -> None:
    """Tell the study that a trial failed; one that it knows to be over stays as it is."""
    with quiet_optuna():
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
