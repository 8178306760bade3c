"""MLflow sync: passes the controller's events on to MLflow beside the sweep; it may lag behind and catch up."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from sweeplab.attacks.preview import drawn_preview
from sweeplab.experiment import CleaningSweep, Setting
from sweeplab.live_line import phase
from sweeplab.records import TrialRecord
from sweeplab.specs import InvalidInput
from sweeplab.storage.files import NETWORK, file_system
from sweeplab.sweep.session import Session
from sweeplab.sweep.tracking_process import Ledger, Tracking, TrackingHere, TrackingProcess, trouble_of
from sweeplab.sweep_folder import SweepFolder
from sweeplab.tracking.runs import VictimFacts
from sweeplab.tracking.store import Place, tracking_store

logger = logging.getLogger("sweeplab")

PAUSES = (0.2, 1.0, 5.0)
"""Seconds before MLflow's store, busy or out of reach, is tried again."""

REST_SECONDS = 60.0
"""After those pauses it is left alone for so long."""


class MLflowSync:
    """Keeps the newest record of every trial that MLflow has not seen yet.

    The ledger is the truth: whatever MLflow misses is brought up to it later, at the latest when the next command
    starts. So a store that is locked, full or gone delays nothing and ends nothing.
    """

    def __init__(self, tracking: Tracking, setting: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        self.tracking, self.setting = tracking, setting
        self.trouble: str | None = None
        """Why MLflow is behind; None while all is well."""
        self._dirty: dict[int, TrialRecord] = {}
        self._news = threading.Condition()
        self._is_over, self._deadline = False, inf
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def hear(self, trial: TrialRecord) -> None:
        """Have MLflow take in a trial as it is now."""
        with self._news:
            self._dirty[trial.number] = trial
            self._news.notify()

    def close(self, seconds: float) -> bool:
        """Let it catch up for so long; whether it did."""
        with self._news:
            self._is_over, self._deadline = True, time.monotonic() + seconds
            self._news.notify()
        self._thread.join(seconds)
        has_ended = not self._thread.is_alive()
        self.tracking.close()
        return has_ended and self.trouble is None

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._dirty or self._is_over)
                if not self._dirty:
                    return
                # Only the newest record of a trial counts: a store that is slow is asked less often.
                trial = self._dirty.pop(next(iter(self._dirty)))
            if not self._bring(trial):
                with self._news:
                    self._dirty.setdefault(trial.number, trial)  # unless a newer record has come meanwhile
                    if self._is_over:
                        return
                    self._news.wait(REST_SECONDS)

    def _bring(self, trial: TrialRecord) -> bool:
        for pause in (*PAUSES, None):
            try:
                self.tracking.bring(trial, self.setting(trial.params))
            except Exception as error:  # noqa: BLE001 - MLflow's store raises many kinds; told, and made up for later
                trouble = trouble_of(error)
            else:
                if self.trouble is not None:
                    self.trouble = None
                    logger.info("MLflow answers again and catches up")
                return True
            if pause is None or time.monotonic() + pause > self._deadline:
                break
            time.sleep(pause)
        if self.trouble is None and not self._is_over:
            logger.info(f"note: MLflow takes nothing in ({trouble}); the sweep goes on, and MLflow catches up later")
        self.trouble = trouble
        return False


SYNC_SECONDS = 120.0
"""So long may MLflow catch up at the end of a sweep; what it lacks then is brought by the next command."""

LEAVING_SECONDS = 1.0
"""The same where the command was interrupted."""

UNUSABLE = "its store could not be used at the start"


def synced_tracking(sweep: CleaningSweep, folder: SweepFolder, session: Session) -> Tracking | None:
    """MLflow brought up to the ledger; None where its store does not answer.

    Raises:
        InvalidInput: if the environment names a store that MLflow cannot use.
    """
    home = session.home
    store = tracking_store(home)
    before = Place.read(folder.path)

    def ledger() -> Ledger:
        record = folder.record()
        settings = {trial.number: full_setting(sweep.setting(trial.params)) for trial in record.trials}
        trigger = drawn_preview(sweep.trigger().attack, sweep.victim.architecture.image_size)
        victim = VictimFacts(tuple(folder.pretraining_points()), trigger)
        writes_ahead = file_system(home) not in NETWORK
        return Ledger(home, folder.path, record, folder.header(), settings, victim, writes_ahead)

    try:
        with phase("bringing MLflow up to the ledger"):
            tracking = TrackingHere(ledger()) if session.inline else TrackingProcess(ledger)
    except InvalidInput:  # of a record, not of MLflow's store
        raise
    except Exception as error:  # noqa: BLE001 - MLflow's store raises many kinds; the ledger does without, and says so
        remedy = "Restore or remove the file, and the same" if store.path else "Once that is mended, the same"
        logger.info(
            f"note: MLflow's store {store} cannot be used ({trouble_of(error)}); the sweep runs without it. {remedy} "
            "command brings MLflow up to date"
        )
        return None
    if folder.trial_numbers() and store.address != (was := before.store if before else ""):
        logger.info(f"MLflow: the whole sweep is now in {store} too; before, it went to {was or 'the home itself'}")
    return tracking


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
