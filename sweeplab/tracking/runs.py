"""The runs: copies the ledger into flat runs of MLflow. Everything here can be thrown away and made again."""

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeplab.evaluation.retention import best_cleaned_point, is_cleaned, lowest_asr, retention
from sweeplab.records import OVER, Point, SweepRecord, TrialRecord, now_ms, number_of, percent, promote_command
from sweeplab.specs import digest_of
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.sweep_records import original_victim, section
from sweeplab.tracking.store import VIEW, Place, redacted, tracking_store, write_ahead
from sweeplab.tracking.view import saved_view

logger = logging.getLogger("sweeplab")

KEY = "sweeplab.key"
"""Tag by which a trial's run is found again: sweep name, digest, identity of the folder and trial number."""
STATE = "sweeplab.state"
TERMINATED = ("FINISHED", "FAILED")
NOTES = "sweeplab.notes"
"""The experiment's tag that holds what was written last as its description."""
DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow's page shows as the experiment's description."""
EPOCH = "time/epoch"
"""The metric of a point's epoch."""


@dataclass(frozen=True)
class VictimFacts:
    """What MLflow is told of a victim beside what the sweep's record holds."""

    points: Sequence[Point] = ()
    """Of its own training, under its own evaluation."""
    trigger: bytes = b""
    """A picture of what its trigger does, as PNG; empty: none."""


class Tracker:
    """One MLflow experiment a sweep, one run a trial, one batch a point.

    MLflow's integer `step` is the point's index, except under the keys `curve/...` (the loss and its parts, where the
    sweep sets `log_every`): there it is the optimizer's step.

    A run says whether its trial is feasible, never that it is certified: that depends on how many points the whole
    sweep has in the end, so leaderboard and page alone say it.

    Points carry the ledger's timestamps, and MLflow's store drops an equal (key, step, timestamp, value): logging a
    point twice changes nothing, so every start may replay what a kill left out.
    """

    def __init__(
        self,
        home: Path,
        sweep: SweepRecord,
        spec: Mapping[str, Any],
        *,
        victim: VictimFacts = VictimFacts(),
        writes_ahead: bool = False,
    ) -> None:
        """Open the store that the environment names, or the home's own.

        Args:
            home: of the sweep.
            sweep: as the ledger holds it.
            spec: what sweep.json says.
            victim: the sweep's.
            writes_ahead: let the home's SQLite write ahead, which is faster and needs a disk of this machine.

        Raises:
            InvalidInput: if the environment names a store that MLflow cannot use.
            sqlite3.DatabaseError: if the home's own store is no database.
        """
        self.store = tracking_store(home)
        if writes_ahead and self.store.path is not None:
            write_ahead(os.path.realpath(self.store.path))
        self.client = self.store.client()
        self.sweep, self.identity = sweep, spec["identity"]
        self._origin = _origin(sweep.name, spec)
        self.experiment = self._experiment()
        self._describe()
        self._offer_view()
        self._runs = self._known_runs()
        self._logged: dict[int, tuple[int, ...]] = {}
        """Times of the points that are known to be logged, by trial under way."""
        self.place = self._log_victim(spec, victim)
        """Where the sweep is."""
        self._datasets = _datasets(spec)

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
        if trial.number not in self._logged:
            self.client.log_inputs(run_id, [self._datasets[name] for name in ("cleaning", "evaluation")])
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
                "sweeplab.victim_run": self.place.run,
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
        place = {"sweeplab.checkpoint": (Storage(trial.storage) / best.checkpoint).location}
        if not self.sweep.is_promotable:
            return place
        return {**place, "sweeplab.promote": promote_command(self.sweep.name, trial.number)}

    def _metrics(self, point: Point) -> list[Any]:
        measurement = point.measurement
        # In this order MLflow gives them back; its page of compared runs draws the first.
        values = {
            "eval/retention": retention(measurement.accuracy, self.sweep.victim.accuracy),
            "eval/accuracy": measurement.accuracy,
            EPOCH: point.epoch,
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

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.sweep.name)
        if found is None:
            files = self.store.files_of(self.sweep.name)
            try:
                return str(self.client.create_experiment(self.sweep.name, artifact_location=files))
            except MlflowException:
                found = self.client.get_experiment_by_name(self.sweep.name)
                if found is None:  # no other driver made it in this moment
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _describe(self) -> None:
        """What the sweep is and its notes, as the experiment's description unless the user wrote one."""
        tags, text = self.client.get_experiment(self.experiment).tags, _description(self.sweep)
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
        try:
            self.client.set_experiment_tag(self.experiment, "mlflow.experimentKind", "custom_model_development")
            view = saved_view("Ranked by retention", self.sweep.parameters)
            self.client.set_experiment_tag(self.experiment, f"mlflow.sharedViewState.{VIEW}", view)
        except Exception as error:  # noqa: BLE001 - of a form that nobody promises; a store that fails fails right after
            logger.warning(f"MLflow has no saved view of the sweep ({type(error).__name__}: {redacted(error)})")

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
        return key_of(self.sweep, self.identity, trial)

    def _log_victim(self, spec: Mapping[str, Any], facts: VictimFacts) -> Place:
        """One run for the victim: how it was made, its training, and the files that the whole sweep shares.

        Returns:
            Where that run, and so the sweep, is.
        """
        from mlflow.entities import Param

        key = self._key("victim")
        run_id, state = self._runs.get(key, (None, "running"))
        if run_id is None:
            tags = {KEY: key, "sweeplab.kind": "victim", STATE: "running", **self._origin}
            created = self.client.create_run(self.experiment, tags=tags, run_name=f"victim {self.sweep.victim_name}")
            run_id = str(created.info.run_id)
        run, victim = self.client.get_run(run_id).info, self.sweep.victim
        place = Place(self.store.address, self.experiment, run_id, run.artifact_uri)
        if state == "finished":
            return place
        values = {"eval/retention": 1.0, "eval/accuracy": victim.accuracy, EPOCH: self.sweep.victim_epoch}
        if victim.asr is not None:
            values["eval/asr"] = victim.asr
        # Fixed times, so that a second attempt after a kill adds no second point.
        self.client.log_batch(
            run_id,
            metrics=[
                *_metrics_at(run.start_time, 0, values),
                *(metric for point in facts.points for metric in _pretraining_metrics(point)),
            ],
            params=[Param(name, _text(value)) for name, value in _victim_facts(spec).items()],
        )
        self.client.log_inputs(run_id, [made for name, made in _datasets(spec).items() if name != "cleaning"])
        if self._put_files(run, spec, facts.trigger):
            self.client.set_tag(run_id, STATE, "finished")
        self.client.set_terminated(run_id)  # last: a run that is terminated is complete
        return place

    def _put_files(self, run: Any, spec: Mapping[str, Any], trigger: bytes) -> bool:
        """The files that the whole sweep shares, with the victim's run: they are not copied into every trial's.

        Returns:
            Whether nothing is left to be put there.
        """
        from mlflow.exceptions import MlflowException

        if not self.store.takes_files(run.artifact_uri):
            return True
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "sweep.json").write_text(json.dumps(dict(spec), indent=2), encoding="utf-8")
            (place / "packages.txt").write_text(_packages(), encoding="utf-8")
            if trigger:
                (place / "trigger.png").write_bytes(trigger)
            with contextlib.suppress(OSError, MlflowException):  # the next start tries again
                self.client.log_artifacts(run.run_id, folder)
                return True
        return False


@functools.cache
def _packages() -> str:
    """Name and version of everything that is installed, as pip writes them; read once, for hundreds of files are."""
    found = {f"{made.metadata['Name']}=={made.version}" for made in importlib.metadata.distributions()}
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def _description(sweep: SweepRecord) -> str:
    """What a sweep is, in Markdown."""
    made, names = sweep.origin, ", ".join(f"`{name}`" for name in sweep.parameters)
    rate = f", {percent(made.poison_rate, None)} of the pairs" if made.poison_rate is not None else ""
    attack = f" The victim: {made.attack}, target {sweep.target}{rate}." if made.attack else ""
    poisons = f", {made.cleaning_poisons:,} of them poisons" if made.cleaning_poisons else ""
    pairs = f" Cleaning pairs: {made.cleaning_pairs}{poisons}." if made.cleaning_pairs else ""
    accuracy, ceiling = percent(sweep.victim.accuracy), percent(sweep.asr_ceiling, None)
    paragraphs = [
        f"`{sweep.method}` on `{sweep.victim_name}`: {number_of(sweep.planned_trials, 'trial')} of "
        f"{number_of(sweep.epochs, 'epoch')} over {names or 'no parameter'}.{attack}{pairs}",
        f"`best/...` is a trial's most accurate epoch with an ASR below {ceiling}, retention its accuracy over the "
        f"victim's, {accuracy}. The victim's run holds the files of the whole sweep: page, spec, packages, trigger.",
        *sweep.notes,
    ]
    return "\n\n".join(paragraphs)


def _datasets(spec: Mapping[str, Any]) -> dict[str, Any]:
    """MLflow's data sets of a sweep, by what they serve for: pretraining, cleaning, evaluation.

    Args:
        spec: what sweep.json says.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    resolved, contents = section(spec, "spec"), section(spec, "contents")
    parts = {
        "pretraining": (section(original_victim(resolved.get("victim")), "data"), None),
        "cleaning": (section(resolved, "data"), contents.get("pairs")),
        "evaluation": (section(section(resolved, "evaluation"), "test"), contents.get("test")),
    }
    found = {}
    for use, (part, digest) in parts.items():
        kind = str(part.get("kind", use))
        name = Path(str(part["path"])).name if part.get("path") else kind
        dataset = Dataset(name, digest or digest_of(part), kind, json.dumps(part))
        found[use] = DatasetInput(dataset, [InputTag("mlflow.data.context", use)])
    return found


def _pretraining_metrics(point: Point) -> list[Any]:
    """A point of the victim's own training, under keys of its own: it is measured by the victim's own evaluation."""
    values = {"accuracy": point.measurement.accuracy, "asr": point.measurement.asr, **point.train}
    known = {f"pretraining/{name}": value for name, value in values.items() if value is not None}
    return _metrics_at(point.timestamp_ms, point.index, known)


def _origin(sweep: str, spec: Mapping[str, Any]) -> dict[str, str]:
    """Tags that say what made a run."""
    version, script = section(spec, "environment").get("sweeplab"), spec.get("script")
    found = {"sweeplab.sweep": sweep, "sweeplab.version": version, "mlflow.source.git.commit": spec.get("commit")}
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


def key_of(sweep: SweepRecord, identity: str, trial: int | str) -> str:
    """Value of the tag by which a run is found again."""
    return f"{sweep.name}/{sweep.digest}/{identity}/{trial}"


def _times(trial: TrialRecord) -> tuple[int, ...]:
    return tuple(point.timestamp_ms for point in trial.points)


def _metrics_at(timestamp_ms: int, step: int, values: Mapping[str, float]) -> list[Any]:
    """MLflow's metrics of one time and step."""
    from mlflow.entities import Metric

    return [Metric(name, value, timestamp_ms, step) for name, value in values.items()]


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
