"""MLflow beside the driver: the many small writes of its store happen in a process of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sweeplab.records import SweepRecord, TrialRecord
from sweeplab.storage.locks import file_lock, lock_path
from sweeplab.tracking.runs import Tracker, VictimFacts
from sweeplab.tracking.store import environment_kept, redacted

LOCK_SECONDS = 30.0
"""So long a new command waits for the MLflow process of a killed one, which ends within `PARENT_SECONDS` as a rule."""

PARENT_SECONDS = 0.5
"""Between two looks whether the driver is still there."""

ENDING_SECONDS = 2.0
"""The process is killed if it takes longer to end; the ledger makes up for what it leaves undone."""

MOST_STARTS = 3
"""So often is it started where it dies while it opens MLflow's store."""


@dataclass(frozen=True)
class Ledger:
    """What MLflow is brought up to."""

    home: Path
    folder: Path
    """The sweep's."""
    record: SweepRecord
    header: Mapping[str, Any]
    settings: Mapping[int, Mapping[str, Any]]
    """Full setting by trial."""
    victim: VictimFacts
    writes_ahead: bool


class TrackingFault(RuntimeError):
    """MLflow's store failed, or the process that writes to it."""


class ProcessEnded(TrackingFault):
    """The process that writes to MLflow died."""


class TrackingHere:
    """A sweep in MLflow, written by this process; another command's process that still writes is awaited.

    MLflow's variables stand in the environment until it is closed.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._open = contextlib.ExitStack()
        self._open.enter_context(file_lock(ledger.folder / "mlflow.lock").acquire(timeout=LOCK_SECONDS))
        self._open.enter_context(environment_kept())
        mask = os.umask(0o077)  # MLflow makes its files here; they hold what the ledger does, for this user alone
        try:
            # Sweeps that begin together make the tables once.
            with file_lock(lock_path(ledger.home / "mlflow.db")).acquire(timeout=LOCK_SECONDS):
                self.tracker = Tracker(
                    ledger.home,
                    ledger.record,
                    ledger.header,
                    victim=ledger.victim,
                    writes_ahead=ledger.writes_ahead,
                )
            self.tracker.sync(ledger.settings, ledger.record.trials)
            self.tracker.place.write(ledger.folder)
        except BaseException:
            self._open.close()
            raise
        finally:
            os.umask(mask)

    def bring(self, trial: TrialRecord, setting: Mapping[str, Any]) -> None:
        """See `Tracker.bring`."""
        self.tracker.bring(trial, setting)

    def close(self) -> None:
        """Let another process write."""
        self._open.close()


class TrackingProcess:
    """The same in a process of its own, which ends with this one, however this one ends.

    A process that died is started again where the next trial is brought.
    """

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        """Start the process, and bring MLflow up to the ledger.

        Args:
            ledger: reads it; asked again where the process died.

        Raises:
            TrackingFault: if MLflow's store does not answer.
        """
        self._ledger = ledger
        self._gate = threading.Lock()
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        with self._gate:
            for _ in range(MOST_STARTS - 1):
                try:
                    return self._start()
                except ProcessEnded:
                    continue
            self._start()

    def bring(self, trial: TrialRecord, setting: Mapping[str, Any]) -> None:
        """See `Tracker.bring`; raises TrackingFault for whatever went wrong."""
        with self._gate:
            if self._is_closed:
                raise TrackingFault("MLflow's process was ended")
            if self._pipe is None:
                self._start()  # which brings all that the ledger holds, and it may hold more than this record by now
            else:
                self._ask("bring", trial, setting)

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._is_closed = True
        process = self._process
        if process is None:
            return
        if self._gate.acquire(blocking=False):  # nobody waits for an answer
            try:
                self._end()
            finally:
                self._gate.release()
        else:
            process.kill()

    def _start(self) -> None:
        ours, theirs = Pipe()
        program = "from sweeplab.sweep.tracking_process import serve; serve()"
        packages = str(Path(__file__).parents[2])
        known = os.environ.get("PYTHONPATH")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": f"{packages}{os.pathsep}{known}" if known else packages,
                "OMP_NUM_THREADS": "1",  # it computes nothing, and the cores are the trials'
            },
            start_new_session=True,  # Ctrl-C is for the driver
        )
        theirs.close()
        self._pipe = ours
        if self._is_closed:  # while it started; `close` has not seen it
            self._process.kill()
        try:
            self._ask("open", self._ledger())
        except BaseException as error:
            if not isinstance(error, TrackingFault):  # a signal, while the process is at work: nobody waits for it
                self._process.kill()
            self._end()
            raise

    def _ask(self, *message: Any) -> None:
        assert self._pipe is not None
        try:
            self._pipe.send(message)
            answer: str | None = self._pipe.recv()
        except (EOFError, OSError):
            self._end()
            raise ProcessEnded("MLflow's process ended") from None
        if answer is not None:
            raise TrackingFault(answer)

    def _end(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            try:
                self._process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


Tracking = TrackingHere | TrackingProcess
"""A sweep in MLflow."""


def serve() -> None:
    """What the process runs: opens MLflow's store and takes trials in, until the driver is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the driver, whose end ends this too
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    pipe = Connection(int(sys.argv[1]))
    tracking: TrackingHere | None = None
    while True:
        try:
            kind, *content = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        answer = None
        try:
            if kind == "open":
                tracking = TrackingHere(*content)
            else:
                assert tracking is not None
                tracking.bring(*content)
        except Exception as error:  # noqa: BLE001 - MLflow's store raises many kinds; the driver tells of it
            answer = trouble_of(error)
        with contextlib.suppress(OSError):  # the driver is gone: noticed above
            pipe.send(answer)


def trouble_of(error: BaseException) -> str:
    """An error in one line, without the passwords of MLflow's store."""
    line = redacted(error)
    return line if isinstance(error, TrackingFault) else f"{type(error).__name__}: {line}"


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(0)
