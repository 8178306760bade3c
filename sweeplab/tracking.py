"""The only door to MLflow: copies the ledger into flat runs. Everything here can be thrown away and made again."""

import base64
import contextlib
import functools
import json
import logging
import os
import re
import socket
import sqlite3
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, unquote

from sweeplab.evaluation.retention import best_cleaned_point, is_cleaned, lowest_asr, retention
from sweeplab.records import OVER, Point, SweepRecord, TrialRecord, now_ms, promote_command
from sweeplab.specs import Failed, InvalidInput, first_line
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.sweep_records import original_victim, section

KEY = "sweeplab.key"
"""Tag by which a trial's run is found again: sweep name, digest, identity of the folder and trial number."""
STATE = "sweeplab.state"
TERMINATED = ("FINISHED", "FAILED")
NOTES = "sweeplab.notes"
"""The experiment's tag that holds the sweep's notes."""
DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow's page shows as the experiment's description."""
EPOCH = "time/epoch"
"""The metric of a point's epoch: under this name it does not lead MLflow's page of compared runs."""
VIEW = "sweeplab"
"""Key of the saved view."""


class Tracker:
    """One MLflow experiment a sweep, one run a trial, one batch a point.

    MLflow's integer `step` is the point's index, except under the keys `curve/...` (the loss and its parts, where the
    sweep sets `log_every`): there it is the optimizer's step.

    A run says whether its trial is feasible, never that it is certified: that depends on how many points the whole
    sweep has in the end, so leaderboard and page alone say it.

    Points carry the ledger's timestamps, and MLflow's store drops an equal (key, step, timestamp, value): logging a
    point twice changes nothing, so every start may replay what a kill left out.
    """

    def __init__(self, home: Path, sweep: SweepRecord, spec: Mapping[str, Any], *, write_ahead: bool = False) -> None:
        """Open the store.

        Args:
            home: where it lies.
            sweep: as the ledger holds it.
            spec: what sweep.json says.
            write_ahead: let SQLite write ahead, which is faster and needs a disk of this machine.

        Raises:
            sqlite3.DatabaseError: if the store's file is no database.
        """
        if write_ahead:
            _write_ahead(os.path.realpath(home / "mlflow.db"))
        self.client = _client(home)
        self.sweep, self.identity, self.home = sweep, spec["identity"], home
        self._origin = _origin(sweep.name, spec)
        self.experiment = self._experiment(home)
        self._tell_notes()
        self._offer_view()
        self._runs = self._known_runs()
        self._logged: dict[int, tuple[int, ...]] = {}
        """Times of the points that are known to be logged, by trial under way."""
        self._log_victim(spec)

    def sync(self, settings: Mapping[int, Mapping[str, Any]], trials: tuple[TrialRecord, ...]) -> None:
        """Replay what MLflow lacks of the ledger.

        Args:
            settings: full setting by trial number.
            trials: all trials of the ledger.
        """
        for trial in trials:
            _, state = self._runs.get(self._key(trial.number), (None, None))
            # The run of a trial that is over is complete; without run and points there is nothing to bring yet.
            is_lacking = trial.state != state if trial.state in OVER else bool(state or trial.points)
            if is_lacking:
                self.bring(trial, settings[trial.number])

    def bring(self, trial: TrialRecord, setting: Mapping[str, Any]) -> None:
        """Make the trial's run where there is none, and bring it up to the record: points, and the end if it is over.

        Args:
            trial: as the ledger holds it now.
            setting: every parameter of the trial by name.
        """
        from mlflow.entities import Param, RunTag

        key = self._key(trial.number)
        self._drop_if_rewound(key, trial)
        is_over = trial.state in OVER
        changed: dict[str, str] = {}
        if key not in self._runs:
            run_id = self._create_run(key, trial)
        else:
            run_id, state = self._runs[key]
            changed = {"sweeplab.attempts": str(trial.attempts), STATE: "running"}
            if state != "running" and not is_over:
                self.client.update_run(run_id, status="RUNNING")
        self._runs[key] = (run_id, "running")
        # After a start nothing is known to be logged, and all points go again: MLflow's store drops equal ones.
        first = len(self._logged.get(trial.number, ()))
        metrics = [metric for point in trial.points[first:] for metric in self._metrics(point)]
        params = {**setting, "seed": trial.seed} if trial.number not in self._logged else {}
        if is_over:
            values = self._summary(trial)
            ended, step = (trial.points[-1].timestamp_ms, trial.points[-1].index) if trial.points else (now_ms(), 0)
            metrics += _metrics_at(ended, step, values)
            changed |= {
                "sweeplab.feasible": str("best/retention" in values).lower(),
                **({"sweeplab.reason": trial.reason} if trial.reason else {}),
                STATE: trial.state,
                **self._where_its_weights_are(trial),
            }
        self.client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(name, _text(value)) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in changed.items()],
        )
        self._logged[trial.number] = _times(trial)
        if is_over:  # last: a run that is terminated is complete
            status = "FAILED" if trial.state == "failed" else "FINISHED"
            self.client.set_terminated(run_id, status=status, end_time=ended)
            self._runs[key] = (run_id, trial.state)
            del self._logged[trial.number]

    def _create_run(self, key: str, trial: TrialRecord) -> str:
        """A run for the trial, which begins with its first point; its id."""
        run = self.client.create_run(
            self.experiment,
            start_time=trial.points[0].timestamp_ms if trial.points else now_ms(),
            tags={
                KEY: key,
                STATE: "running",
                **self._origin,
                "sweeplab.trial": str(trial.number),
                "sweeplab.kind": "trial",
                "sweeplab.configuration": trial.configuration,
                "sweeplab.method": self.sweep.method,
                "sweeplab.victim": self.sweep.victim_name,
                "sweeplab.protocol": self.sweep.protocol,
                "sweeplab.attempts": str(trial.attempts),
            },
            run_name=f"trial {trial.number:04d}",
        )
        return str(run.info.run_id)

    def _drop_if_rewound(self, key: str, trial: TrialRecord) -> None:
        """Set aside a run that holds points which the trial lost with their checkpoint, and made, or will make, again.

        MLflow takes no metric back, so the trial gets another run; the old one goes to MLflow's trash.
        """
        if key not in self._runs:
            return
        run_id, times = self._runs[key][0], _times(trial)
        if trial.number in self._logged:
            logged = set(enumerate(self._logged[trial.number]))
        else:
            history = self.client.get_metric_history(run_id, "eval/accuracy")
            logged = {(metric.step, metric.timestamp) for metric in history}
        if logged <= set(enumerate(times)):
            return
        self.client.set_tag(run_id, KEY, f"{key}/rewound")
        self.client.delete_run(run_id)
        del self._runs[key]
        self._logged.pop(trial.number, None)

    def _summary(self, trial: TrialRecord) -> dict[str, float]:
        """The best cleaned point's numbers; nothing but `min/asr` and `best/feasible` where there is none."""
        if trial.state == "failed":
            return {}
        best = self._best(trial)
        values = {
            "min/asr": lowest_asr(trial.points, start_counts=trial.start_counts),
            "best/feasible": float(best is not None),
        }
        if best is not None:
            assert best.measurement.asr is not None
            values["best/accuracy"] = best.measurement.accuracy
            values["best/asr"] = best.measurement.asr
            values["best/retention"] = retention(best.measurement.accuracy, self.sweep.victim.accuracy)
            values["best/epoch"] = best.epoch
        return values

    def _best(self, trial: TrialRecord) -> Point | None:
        return best_cleaned_point(trial.points, self.sweep.asr_ceiling, start_counts=trial.start_counts)

    def _where_its_weights_are(self, trial: TrialRecord) -> dict[str, str]:
        """Tags of a cleaned trial: the weights of its best point, and the command that takes them away. They may go
        later, when enough better trials have ended; the command then says what is left."""
        best = self._best(trial) if trial.state != "failed" else None
        if best is None or best.checkpoint is None:
            return {}
        return {
            "sweeplab.checkpoint": (Storage(trial.storage) / best.checkpoint).location,
            "sweeplab.promote": promote_command(self.sweep.name, trial.number),
        }

    def _metrics(self, point: Point) -> list[Any]:
        measurement = point.measurement
        values = {
            EPOCH: point.epoch,
            "eval/accuracy": measurement.accuracy,
            "eval/retention": retention(measurement.accuracy, self.sweep.victim.accuracy),
            "time/train_seconds": point.train_seconds,
            "time/evaluate_seconds": point.evaluate_seconds,
            **{f"train/{name}": value for name, value in point.train.items()},
        }
        if measurement.asr is not None:
            values["eval/asr"] = measurement.asr
            values["eval/cleaned"] = float(is_cleaned(measurement, self.sweep.asr_ceiling))
        metrics = _metrics_at(point.timestamp_ms, point.index, values)
        # The losses recorded since the last point have the time of this one, so that a replay adds nothing.
        for entry in point.curve:
            losses = {f"curve/{name}": value for name, value in entry.items() if name != "step"}
            metrics += _metrics_at(point.timestamp_ms, int(entry["step"]), losses)
        return metrics

    def _experiment(self, home: Path) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.sweep.name)
        if found is None:
            artifacts = (home / "mlartifacts" / self.sweep.name).as_uri()
            with contextlib.suppress(MlflowException):  # another driver made it in this moment
                return str(self.client.create_experiment(self.sweep.name, artifact_location=artifacts))
            found = self.client.get_experiment_by_name(self.sweep.name)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _tell_notes(self) -> None:
        """The sweep's notes as a tag of the experiment, and as its description unless the user wrote one."""
        tags, text = self.client.get_experiment(self.experiment).tags, "\n\n".join(self.sweep.notes)
        before = tags.get(NOTES, "")
        if text == before:
            return
        if tags.get(DESCRIPTION, "") in ("", before):
            self.client.set_experiment_tag(self.experiment, DESCRIPTION, text)
        self.client.set_experiment_tag(self.experiment, NOTES, text)

    def _offer_view(self) -> None:
        """A saved view of the runs page: ranked by retention, with the columns that matter.

        MLflow keeps saved views in experiment tags, in a form of its own that may change; a view that it cannot read is
        not offered, and nothing else depends on it.
        """
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            self.client.set_experiment_tag(self.experiment, "mlflow.experimentKind", "custom_model_development")
            self.client.set_experiment_tag(
                self.experiment, f"mlflow.sharedViewState.{VIEW}", _view("Ranked by retention", self.sweep.parameters)
            )

    def _known_runs(self) -> dict[str, tuple[str, str]]:
        runs: dict[str, tuple[str, str]] = {}
        token = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=1000, page_token=token)
            for run in page:
                if KEY in run.data.tags:
                    state = run.data.tags.get(STATE, "running") if run.info.status in TERMINATED else "running"
                    runs[run.data.tags[KEY]] = (run.info.run_id, state)
            token = page.token
            if not token:
                return runs

    def _key(self, trial: int | str) -> str:
        return _key(self.sweep, self.identity, trial)

    def _log_victim(self, spec: Mapping[str, Any]) -> None:
        """One run for the victim, with how it was made, which also holds the sweep's full spec as an artifact."""
        from mlflow.entities import Param

        key = self._key("victim")
        run_id, state = self._runs.get(key, (None, "running"))
        if state == "finished":
            return
        if run_id is None:
            tags = {KEY: key, "sweeplab.kind": "victim", STATE: "running", **self._origin}
            created = self.client.create_run(self.experiment, tags=tags, run_name=f"victim {self.sweep.victim_name}")
            run_id = created.info.run_id
        run, victim = self.client.get_run(run_id).info, self.sweep.victim
        values = {"eval/accuracy": victim.accuracy, "eval/retention": 1.0, EPOCH: self.sweep.victim_epoch}
        if victim.asr is not None:
            values["eval/asr"] = victim.asr
        # A fixed time, so that a second attempt after a kill adds no second point.
        self.client.log_batch(
            run_id,
            metrics=_metrics_at(run.start_time, 0, values),
            params=[Param(name, _text(value)) for name, value in _victim_facts(spec).items()],
        )
        if _is_of_home(run.artifact_uri, self.home):
            with contextlib.suppress(OSError):
                self.client.log_dict(run_id, dict(spec), "sweep.json")
        self.client.set_tag(run_id, STATE, "finished")
        self.client.set_terminated(run_id)  # last: a run that is terminated is complete


def _origin(sweep: str, spec: Mapping[str, Any]) -> dict[str, str]:
    """Tags that say what made a run."""
    version, script = section(spec, "environment").get("sweeplab"), spec.get("script")
    found = {"sweeplab.sweep": sweep, "sweeplab.version": version}
    if script:
        found |= {"mlflow.source.name": script, "mlflow.source.type": "LOCAL"}
    return {name: value for name, value in found.items() if value}


def _victim_facts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """How a victim was made, as parameters by name: architecture, poison and training; a given checkpoint's trigger.

    Args:
        spec: what sweep.json says, of any version: what it does not say is left out.
    """
    victim = original_victim(section(spec, "spec").get("victim"))
    poisoning, training = section(victim, "poisoning") or victim, section(victim, "optimization")
    facts = {
        "architecture": section(victim, "architecture").get("name"),
        "objective": section(victim, "objective").get("kind"),
        "attack": section(poisoning, "attack").get("kind"),
        "target": poisoning.get("target"),
        "poison_rate": poisoning.get("rate"),
        "num_poisons": poisoning.get("count"),
        "pretraining_epochs": victim.get("epochs"),
        "pretraining_learning_rate": training.get("learning_rate"),
        "pretraining_batch_size": training.get("global_batch_size"),
        "pretraining_seed": victim.get("seed"),
    }
    return {name: value for name, value in facts.items() if value is not None}


ALIAS = re.compile(r"(?!latest$|v\d+$)[\w-]{1,255}", re.ASCII | re.IGNORECASE)
"""What MLflow takes for an alias."""


@dataclass(frozen=True)
class Registration:
    """Under which name a model is registered in MLflow."""

    name: str
    alias: str | None = None
    """Moves to the new version; None: none does."""

    def __post_init__(self) -> None:
        if not self.name.strip() or set("/:") & set(self.name) or not self.name.isprintable() or len(self.name) > 256:
            raise InvalidInput(
                f"--register {self.name!r} is no name of a model in MLflow: it has at most 256 characters, and neither "
                "'/' nor ':'"
            )
        if self.alias is not None and not ALIAS.fullmatch(self.alias):
            raise InvalidInput(
                f"--alias {self.alias!r} is no alias in MLflow: it has letters, digits, '_' and '-', and is neither "
                "'latest' nor a 'v' with a number"
            )


class Registry:
    """Registers models in the home's MLflow store, as versions of a name, each with the run of its trial."""

    def __init__(self, home: Path, sweep: SweepRecord, identity: str, trial: int) -> None:
        """Find the trial's run.

        Raises:
            InvalidInput: if MLflow has none, its store is damaged, or the store came from elsewhere.
        """
        from mlflow.exceptions import MlflowException

        self.sweep, self.trial = sweep, trial
        store, what = home / "mlflow.db", f"trial {trial} of {sweep.name}"
        runs: list[Any] = []
        try:
            if store.exists():
                self.client = _client(home)
                experiment = self.client.get_experiment_by_name(sweep.name)
                wanted = f"tags.`{KEY}` = '{_key(sweep, identity, trial)}'"
                runs = self.client.search_runs([experiment.experiment_id], wanted) if experiment is not None else []
        except (MlflowException, sqlite3.DatabaseError) as error:
            raise InvalidInput(f"--register: MLflow's store {store} fails: {first_line(error)}") from error
        if not runs:
            raise InvalidInput(
                f"--register: MLflow holds no run of {what}; the sweep's command brings MLflow up to date"
            )
        self.run = runs[0].info
        if not _is_of_home(self.run.artifact_uri, home):
            raise InvalidInput(
                f"--register: the run of {what} keeps its files in {self.run.artifact_uri}, which is not this home's; "
                "promote in the home that ran the sweep"
            )

    def register(self, folder: Path, registration: Registration, facts: Mapping[str, str]) -> int:
        """Copy a folder among the run's files, and make it the newest version of a model.

        Args:
            folder: of the model.
            registration: its name, and the alias that moves to it.
            facts: tags of the version.

        Returns:
            The version's number.

        Raises:
            Failed: if MLflow does not take it.
        """
        from mlflow.exceptions import ErrorCode, MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

        place = f"promoted/{facts['sweeplab.weights']}"
        try:
            self.client.log_artifacts(self.run.run_id, str(folder), place)
            try:
                self.client.create_registered_model(registration.name)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
            made = self.client.create_model_version(
                registration.name,
                source=f"{self.run.artifact_uri}/{place}",
                run_id=self.run.run_id,
                tags=dict(facts),
                description=f"Trial {self.trial} of {self.sweep.name}; README.md among the files is its card.",
            )
            if registration.alias is not None:
                self.client.set_registered_model_alias(registration.name, registration.alias, made.version)
        except (MlflowException, OSError) as error:
            raise Failed(
                f"{folder} is written and measured, but MLflow did not take it: {first_line(error)}"
            ) from error
        return int(made.version)


def _client(home: Path) -> Any:
    """MLflow's client of a home's store.

    Raises:
        sqlite3.DatabaseError: if the store's file is no database.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow.tracking import MlflowClient

    check_store(home)
    # What the store raises is raised to the caller, who tells it in a line; MLflow would print each as a traceback.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=store_uri(home))


def _key(sweep: SweepRecord, identity: str, trial: int | str) -> str:
    return f"{sweep.name}/{sweep.digest}/{identity}/{trial}"


def _is_of_home(artifact_uri: str | None, home: Path) -> bool:
    """Whether a run keeps its files in the home: the store of one that was copied names the old one's folders."""
    return (artifact_uri or "").startswith(f"{(home / 'mlartifacts').as_uri()}/")


def _times(trial: TrialRecord) -> tuple[int, ...]:
    return tuple(point.timestamp_ms for point in trial.points)


def _metrics_at(timestamp_ms: int, step: int, values: Mapping[str, float]) -> list[Any]:
    """MLflow's metrics of one time and step."""
    from mlflow.entities import Metric

    return [Metric(name, value, timestamp_ms, step) for name, value in values.items()]


VIEW_METRICS = ("best/feasible", "best/retention", "best/accuracy", "best/asr", "min/asr")
"""Columns of the saved view, before the parameters."""


def _view(name: str, parameters: Sequence[str]) -> str:
    """A saved view of MLflow's runs page (3.15 and later): by retention, largest first, with three charts."""
    metrics = [f"metrics.`{metric}`" for metric in VIEW_METRICS]
    columns = [*metrics, *(f"params.`{parameter}`" for parameter in parameters)]
    state = {
        "searchFilter": "",
        "orderByKey": "metrics.`best/retention`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict.fromkeys(columns, 120),
        "compareRunCharts": _charts(parameters),
        "compareRunSections": [
            {
                "uuid": SECTION,
                "name": "Accuracy and ASR",
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "isAccordionReordered": True,
        "runsHiddenMode": "FIRST_20_RUNS",
        "runsPinned": [],
        "runsHidden": [],
        "groupBy": None,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    made = 0  # a fixed time: writing the view again changes nothing
    return json.dumps({"name": name, "createdAt": made, "updatedAt": made, "state": f"deflate;{packed}"})


SECTION = "sweeplab-accuracy-and-asr"


def _charts(parameters: Sequence[str]) -> list[dict[str, Any]]:
    """Charts of the saved view: accuracy against ASR over a trial's epochs, its end points, and all parameters."""

    def chart(kind: str, title: str, **fields: Any) -> dict[str, Any]:
        place = {"uuid": f"sweeplab-{kind.lower()}", "metricSectionId": SECTION, "isGenerated": False, "deleted": False}
        return {"type": kind, "displayName": title, **place, **fields}

    def axis(metric: str) -> dict[str, str]:
        return {"key": metric, "type": "METRIC"}

    return [
        chart("SCATTER", "Best cleaned point", xaxis=axis("best/asr"), yaxis=axis("best/accuracy")),
        chart(
            "LINE",
            "Accuracy against ASR, epoch by epoch",
            metricKey="eval/accuracy",
            selectedMetricKeys=["eval/accuracy"],
            xAxisKey="metric",
            selectedXAxisMetricKey="eval/asr",
        ),
        chart(
            "PARALLEL",
            "Parameters and retention of cleaned trials",
            selectedParams=list(parameters),
            selectedMetrics=["best/retention"],
            showAllRuns=True,
        ),
    ]


@functools.cache
def _write_ahead(store: str) -> None:
    """Connections to a store, a resolved path, write ahead and leave the waiting for the disk to the system.

    A kill loses nothing; what a power failure takes is derived from the ledger again.
    """
    # MLflow makes its engine itself, so that every engine has to be listened to.
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        is_sqlite = type(connection).__module__.startswith("sqlite3")
        if is_sqlite and (0, "main", store) in connection.execute("PRAGMA database_list"):
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")


def page_address(home: Path, sweep: str) -> str:
    """Where the sweep's saved view lies once the server runs; the server's first page where the store does not tell.

    The store's file is asked itself: to import MLflow takes seconds.
    """
    found = None
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"{(home / 'mlflow.db').absolute().as_uri()}?mode=ro", uri=True)) as store,
    ):
        found = store.execute("SELECT experiment_id FROM experiments WHERE name = ?", (sweep,)).fetchone()
    # Without the workflow MLflow opens its pages for language models, which show no runs.
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    place = f"/#/experiments/{found[0]}/runs?{query}" if found is not None else ""
    return f"http://{LOOPBACK}:{PORT}{place}"


def check_store(home: Path) -> None:
    """Raise sqlite3.DatabaseError where the store's file is no database, or a damaged one, over which MLflow would
    try for minutes. A locked one, which MLflow waits for, passes."""
    path = home / "mlflow.db"
    if not path.exists():
        return
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(path, timeout=0.1)) as store,
    ):
        store.execute("PRAGMA schema_version").fetchone()


def store_uri(home: Path) -> str:
    """The home's MLflow store, as a URL in which a path's blanks, `%`, `?`, `#` and quotes are escaped."""
    path = quote(str(home / "mlflow.db"))
    # Of `sqlite:///` MLflow makes the folder that the escaped path would name.
    return f"{'sqlite' if unquote(path) == path else 'sqlite+pysqlite'}:///{path}"


LOOPBACK, PORT = "127.0.0.1", 5000
SERVER_COMMAND = "sweeplab mlflow"


def serve(home: Path, port: int) -> NoReturn:
    """Turn this process into MLflow's server over the home: one worker, on loopback, no jobs, no telemetry.

    Raises:
        InvalidInput: if there is no store yet, it is damaged, or the port is taken.
    """
    if not (home / "mlflow.db").is_file():
        raise InvalidInput(
            f"{home} holds no mlflow.db: no sweep has run there yet, or SWEEPLAB_HOME names another home"
        )
    try:
        check_store(home)
    except sqlite3.DatabaseError as error:
        raise InvalidInput(
            f"{home / 'mlflow.db'} is damaged ({error}); remove it, and the next run makes it again"
        ) from None
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise InvalidInput(f"--port={port} cannot be used ({error.strerror}); choose another one") from None
    words = ["-m", "mlflow", "server", "--backend-store-uri", store_uri(home), "--workers", "1"]
    words += ["--host", LOOPBACK, "--port", str(port)]
    lean = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.execve(sys.executable, [sys.executable, *words], os.environ | lean)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
