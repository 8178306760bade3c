"""The runs in MLflow: one run a trial, one batch a point, and replaying changes nothing."""

import base64
import dataclasses
import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import pytest
from mlflow.tracking import MlflowClient

from sweeplab.records import Origin, SweepRecord, TrialRecord
from sweeplab.specs import Failed, InvalidInput, digest_of
from sweeplab.sweep.mlflow_sync import full_setting
from sweeplab.tracking.registry import Registration, Registry
from sweeplab.tracking.runs import Tracker, VictimFacts
from sweeplab.tracking.store import check_store, page_address, serve, store_uri
from sweeplab.versions import commit_of

PARAMS = [{"learning_rate": 10.0**-exponent, "ssl_weight": 1.0} for exponent in (2, 3, 4)]


def trial(number: int, *rates: tuple[int, int], state: str = "finished", attempts: int = 1, **more: Any) -> TrialRecord:
    """One point a pair (correct of 100, hit of 80), from epoch 0 on."""
    points = tuple(fabricated.point(index, *rate) for index, rate in enumerate(rates))
    return TrialRecord(number, state, PARAMS[number], f"c{number}", 7, attempts, points, **more)  # type: ignore[arg-type]


START = (90, 79)
CLEANED = trial(0, START, (80, 2), (70, 1))
NOT_CLEANED = trial(1, START, (89, 70), (88, 60))
FAILED = trial(2, START, state="failed", reason="FloatingPointError: the loss is not finite")


def record(*trials: TrialRecord, digest: str = "0" * 16) -> SweepRecord:
    return SweepRecord(
        name="toy",
        digest=digest,
        state="running",
        asr_ceiling=0.05,
        epochs=2,
        protocol="paper",
        method="cleanclip",
        victim_name="toy-victim",
        victim=fabricated.VICTIM.measurement,
        victim_epoch=10,
        target="banana",
        trials=trials,
        planned_trials=3,
        parameters=("learning_rate", "ssl_weight"),
    )


PRUNED = trial(1, START, (89, 78), state="pruned", reason="its ASR stays")


HEADER = {"identity": "first", "spec": {"name": "toy"}}


def settings(*trials: TrialRecord) -> dict[int, dict[str, Any]]:
    return {t.number: full_setting(fabricated.SWEEP.setting(t.params)) for t in trials}


def sync(home: Path, *trials: TrialRecord) -> Tracker:
    """What a driver does at its start."""
    tracker = Tracker(home, record(*trials), HEADER)
    tracker.sync(settings(*trials), trials)
    return tracker


@pytest.fixture
def home(tmp_path: Path, mlflow_tables: Path) -> Path:
    """A home with an empty store."""
    shutil.copy(mlflow_tables, tmp_path / "mlflow.db")
    return tmp_path


Rows = Callable[..., list[tuple[Any, ...]]]


def asking(home: Path) -> Rows:
    """Ask the store itself."""

    def ask(query: str, *values: Any) -> list[tuple[Any, ...]]:
        with sqlite3.connect(home / "mlflow.db") as connection:
            return connection.execute(query, values).fetchall()

    return ask


@pytest.fixture
def rows(home: Path) -> Rows:
    """What the test's own store holds."""
    return asking(home)


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Rows:
    """What a store holds after one trial of each kind; for tests that only look."""
    folder = tmp_path_factory.mktemp("synced")
    shutil.copy(mlflow_tables, folder / "mlflow.db")
    sync(folder, CLEANED, NOT_CLEANED, FAILED)
    return asking(folder)


def run_of(rows: Rows, number: int) -> str:
    """The one run of a trial."""
    found = rows("select run_uuid from tags where key = 'sweeplab.trial' and value = ?", str(number))
    assert len(found) == 1
    return str(found[0][0])


def metrics_of(rows: Rows, number: int) -> dict[str, list[float]]:
    """Values by metric, in the order of the steps."""
    found: dict[str, list[float]] = {}
    query = "select key, value from metrics where run_uuid = ? order by step, timestamp"
    for key, value in rows(query, run_of(rows, number)):
        found.setdefault(key, []).append(value)
    return found


def test_every_trial_has_one_run_and_the_victim_one(synced: Rows):
    keys = sorted(value for (value,) in synced("select value from tags where key = 'sweeplab.key'"))
    assert keys == [f"toy/{'0' * 16}/first/{name}" for name in ("0", "1", "2", "victim")]
    assert synced("select count(*) from runs") == [(4,)]


def test_every_point_is_there_once_at_its_own_time(synced: Rows):
    query = "select step, value, timestamp from metrics where key = 'eval/accuracy' and run_uuid = ? order by step"
    times = [point.timestamp_ms for point in CLEANED.points]
    assert synced(query, run_of(synced, 0)) == [(0, 0.9, times[0]), (1, 0.8, times[1]), (2, 0.7, times[2])]


def test_the_experiments_description_says_what_the_sweep_is_unless_the_user_wrote_one(home: Path):
    """It follows the sweep's notes; a text of the user's stays."""

    def description(*notes: str, **origin: Any) -> str:
        tracker = Tracker(home, dataclasses.replace(record(), notes=notes, origin=Origin(**origin)), HEADER)
        return str(tracker.client.get_experiment(tracker.experiment).tags["mlflow.note.content"])

    first = description()
    assert first.startswith("`cleanclip` on `toy-victim`: 3 trials of 2 epochs over `learning_rate`, `ssl_weight`.")
    assert "with an ASR below 5 %, retention its accuracy over the victim's, 90.0 %" in first
    cleaned = description(cleaning_pairs="2,000 (fruit-stall)", cleaning_poisons=25)
    assert "`ssl_weight`. Cleaning pairs: 2,000 (fruit-stall), 25 of them poisons.\n" in cleaned
    assert description("no backdoor", "old") == f"{first}\n\nno backdoor\n\nold"
    assert description() == first
    tracker = Tracker(home, record(), HEADER)
    tracker.client.set_experiment_tag(tracker.experiment, "mlflow.note.content", "my own words")
    assert description("no backdoor") == "my own words"


def test_syncing_twice_changes_nothing(home: Path, rows: Rows):
    tables = ("metrics", "latest_metrics", "params", "tags", "runs")
    found = []
    for _ in range(2):
        sync(home, CLEANED, NOT_CLEANED, FAILED)
        found.append({table: sorted(map(str, rows(f"select * from {table}"))) for table in tables})
    assert found[0] == found[1]


def test_replaying_a_run_that_is_still_going_on_adds_no_second_point(home: Path, rows: Rows):
    running = dataclasses.replace(CLEANED, state="running", points=CLEANED.points[:2])
    for _ in range(3):
        sync(home, running)
    assert metrics_of(rows, 0)["eval/accuracy"] == [0.9, 0.8]


def test_points_that_a_kill_left_out_are_added_at_the_next_start(home: Path, rows: Rows):
    sync(home, dataclasses.replace(CLEANED, state="running", points=CLEANED.points[:1]))
    sync(home, CLEANED)
    assert metrics_of(rows, 0)["eval/accuracy"] == [0.9, 0.8, 0.7]


def test_a_resumed_trial_goes_on_in_its_run(home: Path, rows: Rows):
    waiting = dataclasses.replace(CLEANED, state="waiting", points=CLEANED.points[:2])
    sync(home, waiting)
    first = run_of(rows, 0)
    tracker = sync(home, waiting)
    for state, points in (("running", 2), ("running", 3), ("finished", 3)):
        now = dataclasses.replace(CLEANED, state=state, attempts=2, points=CLEANED.points[:points])
        tracker.bring(now, settings(CLEANED)[0])
    assert run_of(rows, 0) == first
    assert metrics_of(rows, 0)["eval/accuracy"] == [0.9, 0.8, 0.7]
    assert rows("select status from runs where run_uuid = ?", first) == [("FINISHED",)]
    assert rows("select value from tags where key = 'sweeplab.attempts' and run_uuid = ?", first) == [("2",)]


def at(record: TrialRecord, *times: int) -> TrialRecord:
    """The same trial with other times of its points."""
    made = [dataclasses.replace(point, timestamp_ms=time) for point, time in zip(record.points, times, strict=True)]
    return dataclasses.replace(record, points=tuple(made))


def test_a_clock_that_went_back_between_points_changes_nothing_but_times(home: Path, rows: Rows):
    """And a replay of it adds nothing."""
    back = at(CLEANED, 9_000, 5_000, 2_000)
    for state in ("running", "running", "finished", "finished"):
        sync(home, dataclasses.replace(back, state=state))
    query = "select step, value, timestamp from metrics where key = 'eval/accuracy' and run_uuid = ? order by step"
    assert rows(query, run_of(rows, 0)) == [(0, 0.9, 9_000), (1, 0.8, 5_000), (2, 0.7, 2_000)]
    assert metrics_of(rows, 0)["best/retention"] == [pytest.approx(80 / 90)]


@pytest.mark.parametrize("by", ["the same command", "the next command"])
def test_points_that_were_lost_with_their_checkpoint_and_made_again_are_there_once(by: str, home: Path, rows: Rows):
    """MLflow takes no metric back, so the trial gets another run, and the old one goes to its trash."""
    tracker = sync(home, dataclasses.replace(CLEANED, state="running"))
    times = [point.timestamp_ms for point in CLEANED.points]
    again = at(dataclasses.replace(CLEANED, attempts=2), times[0], times[1] + 7, times[2] + 7)
    if by == "the next command":
        tracker = sync(home)
    tracker.bring(dataclasses.replace(again, state="running", points=again.points[:2]), settings(CLEANED)[0])
    tracker.bring(again, settings(CLEANED)[0])
    key = f"toy/{'0' * 16}/first/0"
    ((run,),) = rows("select run_uuid from tags where key = 'sweeplab.key' and value = ?", key)
    query = "select step, timestamp from metrics where key = 'eval/accuracy' and run_uuid = ? order by step"
    assert rows(query, run) == [(0, times[0]), (1, times[1] + 7), (2, times[2] + 7)]
    active = rows("select run_uuid from runs where lifecycle_stage = 'active' and name like 'trial%'")
    assert active == [(run,)]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_home_of_any_name_holds_its_store(is_there: bool, tmp_path: Path, mlflow_tables: Path):
    name = "ü 100% a %20b?c#d\"e'f"
    home = tmp_path / "homes" / name
    home.mkdir(parents=True)
    if is_there:
        shutil.copy(mlflow_tables, home / "mlflow.db")
    folder = fabricated.finished_sweep(home / "sweeps")
    record = folder.record()
    tracker = Tracker(home, record, folder.header(), writes_ahead=True)
    tracker.sync({t.number: full_setting(fabricated.SWEEP.setting(t.params)) for t in record.trials}, record.trials)
    assert (home / "mlflow.db").is_file()
    assert [path.name for path in (tmp_path / "homes").iterdir()] == [name]
    with sqlite3.connect(home / "mlflow.db") as store:
        assert store.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store.execute("select count(*) from runs").fetchone() == (7,)


def test_a_store_that_is_no_database_is_refused_at_once(home: Path):
    (home / "mlflow.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        sync(home, CLEANED)
    assert page_address(home, "toy") == "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"


def test_a_store_that_is_locked_or_not_there_yet_is_left_to_mlflow(home: Path, tmp_path: Path):
    check_store(tmp_path / "nowhere")
    with sqlite3.connect(home / "mlflow.db", isolation_level=None) as store:
        store.execute("begin exclusive")
        check_store(home)
        store.execute("rollback")


CURVE = tuple({"step": 25.0 * step, "loss": 3.0 / step, "mmcl": 4.0 / step} for step in range(1, 4))


def with_curve(record: TrialRecord) -> TrialRecord:
    """The same trial with three recorded steps before its second point."""
    first, second, *others = record.points
    return dataclasses.replace(record, points=(first, dataclasses.replace(second, curve=CURVE), *others))


def test_a_loss_curve_has_the_optimizers_steps(home: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch):
    """In batches of two metrics here, and the same after a replay."""
    monkeypatch.setattr("mlflow.tracking._tracking_service.client.MAX_METRICS_PER_BATCH", 2)
    for _ in range(2):
        sync(home, dataclasses.replace(with_curve(CLEANED), state="running"))
    query = "select key, step, value, timestamp from metrics where key like 'curve/%' order by key, step"
    time = CLEANED.points[1].timestamp_ms
    assert rows(query) == [
        ("curve/loss", 25, 3.0, time),
        ("curve/loss", 50, 1.5, time),
        ("curve/loss", 75, 1.0, time),
        ("curve/mmcl", 25, 4.0, time),
        ("curve/mmcl", 50, 2.0, time),
        ("curve/mmcl", 75, pytest.approx(4 / 3), time),
    ]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


def kill(*arguments: object, **named: object) -> None:
    raise Killed


@pytest.mark.parametrize("call", ["create_run", "log_batch", "set_terminated"])
def test_a_kill_at_any_call_leaves_a_store_that_the_next_start_completes(
    call: str, home: Path, rows: Rows, synced: Rows, monkeypatch: pytest.MonkeyPatch
):
    from mlflow.tracking import MlflowClient

    tracker = sync(home)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, kill)
        with pytest.raises(Killed):
            tracker.sync(settings(CLEANED), (CLEANED,))
    sync(home, CLEANED)
    assert metrics_of(rows, 0) == metrics_of(synced, 0)
    for query in (
        "select key, value from params where run_uuid = ? order by key",
        "select value from tags where key = 'sweeplab.state' and run_uuid = ?",
        "select status, end_time from runs where run_uuid = ?",
    ):
        assert rows(query, run_of(rows, 0)) == synced(query, run_of(synced, 0))


def test_a_run_that_begins_without_points_is_running(home: Path, rows: Rows):
    tracker = sync(home)
    tracker.bring(dataclasses.replace(CLEANED, state="running", points=()), settings(CLEANED)[0])
    assert rows("select status from runs where run_uuid = ?", run_of(rows, 0)) == [("RUNNING",)]


def test_a_cleaned_trial_shows_its_best_cleaned_point(synced: Rows):
    found = metrics_of(synced, 0)
    best = {name: values for name, values in found.items() if name.startswith(("best/", "min/"))}
    assert best == {
        "best/accuracy": [0.8],
        "best/asr": [0.025],
        "best/retention": [pytest.approx(80 / 90)],
        "best/epoch": [1.0],
        "best/feasible": [1.0],
        "min/asr": [0.0125],
    }


def test_a_cleaned_trial_names_its_weights_and_the_command_that_takes_them_away(home: Path, rows: Rows):
    points = tuple(dataclasses.replace(made, checkpoint=f"{made.index}.pt") for made in CLEANED.points)
    kept = dataclasses.replace(CLEANED, points=points, storage="s3://bucket/0")
    sync(home, kept, dataclasses.replace(NOT_CLEANED, storage="s3://bucket/1"))
    tags = rows("select value from tags where key in ('sweeplab.checkpoint', 'sweeplab.promote') order by key")
    assert tags == [("s3://bucket/0/1.pt",), ("sweeplab promote toy 0 --to FOLDER",)]


def test_a_trial_that_is_not_cleaned_has_no_retention_of_a_best_point(synced: Rows):
    found = metrics_of(synced, 1)
    assert "best/retention" not in found
    assert (found["best/feasible"], found["min/asr"]) == ([0.0], [0.75])


def test_a_failed_trial_is_failed_with_its_reason_and_no_best_point(synced: Rows):
    run = run_of(synced, 2)
    assert synced("select status from runs where run_uuid = ?", run) == [("FAILED",)]
    assert synced("select value from tags where key = 'sweeplab.reason' and run_uuid = ?", run) == [(FAILED.reason,)]
    assert not [name for name in metrics_of(synced, 2) if name.startswith(("best/", "min/"))]


def test_a_trial_that_failed_before_its_first_point_is_failed_too(home: Path, rows: Rows):
    tracker = sync(home)
    empty = dataclasses.replace(FAILED, points=())
    tracker.bring(dataclasses.replace(empty, state="running"), settings(FAILED)[2])
    tracker.bring(empty, settings(FAILED)[2])
    assert rows("select status from runs where run_uuid = ?", run_of(rows, 2)) == [("FAILED",)]


def test_no_value_is_infinite_or_not_a_number(synced: Rows):
    assert synced("select count(*) from metrics where is_nan") == [(0,)]
    assert all(math.isfinite(value) and abs(value) < 1e300 for (value,) in synced("select value from metrics"))


def test_every_run_has_the_same_parameters(synced: Rows):
    names = [
        [name for (name,) in synced("select key from params where run_uuid = ? order by key", run_of(synced, number))]
        for number in range(3)
    ]
    assert names[0] == names[1] == names[2]
    assert {"learning_rate", "ssl_weight", "method", "seed", "weight_decay", "shrink_perturb"} <= set(names[0])


def test_parameters_are_those_of_the_trial(synced: Rows):
    query = "select value from params where key = 'learning_rate' and run_uuid = ?"
    assert [synced(query, run_of(synced, number)) for number in (0, 1)] == [[("0.01",)], [("0.001",)]]


def test_a_run_has_at_most_twenty_metrics(synced: Rows):
    assert len(metrics_of(synced, 0)) <= 20


def test_the_victims_run_holds_its_measurement_and_the_whole_spec(home: Path, rows: Rows):
    sync(home)
    (run,) = rows("select run_uuid from tags where key = 'sweeplab.kind' and value = 'victim'")
    values = dict(rows("select key, value from metrics where run_uuid = ?", *run))
    assert values == {
        "eval/accuracy": 0.9,
        "eval/asr": pytest.approx(79 / 80),
        "eval/retention": 1.0,
        "time/epoch": 10.0,
    }
    assert list((home / "mlartifacts" / "toy").rglob("sweep.json"))


def test_the_victims_run_holds_its_training_under_keys_of_its_own(home: Path, rows: Rows):
    """It is measured by the victim's own evaluation, which need not be the sweep's."""
    points = tuple(fabricated.point(index, 10 * index, 8 * index) for index in range(4))
    Tracker(home, record(), HEADER, victim=VictimFacts(points))
    found = rows("select key, step, value, timestamp from metrics where key like 'pretraining/a%' order by key, step")
    assert found == [
        *(("pretraining/accuracy", index, index / 10, points[index].timestamp_ms) for index in range(4)),
        *(("pretraining/asr", index, index / 10, points[index].timestamp_ms) for index in range(4)),
    ]
    assert rows("select count(*) from metrics where key = 'eval/accuracy'") == [(1,)]


def test_files_that_the_whole_sweep_shares_lie_with_the_victims_run_alone(home: Path, rows: Rows):
    Tracker(home, record(), HEADER, victim=VictimFacts(trigger=b"picture"))
    tracker = sync(home, CLEANED, NOT_CLEANED)
    files = sorted((home / "mlartifacts").rglob("*.*"))
    assert [path.name for path in files] == ["packages.txt", "sweep.json", "trigger.png"]
    assert files[2].read_bytes() == b"picture"
    assert f"pytest=={pytest.__version__}" in files[0].read_text().splitlines()
    (place,) = {path.parent for path in files}
    assert place.as_uri() == tracker.place.files
    assert rows("select distinct value from tags where key = 'sweeplab.victim_run'") == [(tracker.place.run,)]


def test_files_that_could_not_be_written_are_brought_by_the_next_start(home: Path):
    (home / "mlartifacts").write_text("in the way")
    sync(home)
    (home / "mlartifacts").unlink()
    sync(home)
    assert list((home / "mlartifacts").rglob("packages.txt"))


def test_runs_name_their_data_by_content(home: Path, rows: Rows):
    """A source without a path has its kind for a name."""
    spec = {
        "data": {"kind": "csv", "path": "/some/cc3m.csv"},
        "evaluation": {"test": {"kind": "fruit-stall-test", "seed": 1000}},
        "victim": {"data": {"kind": "parquet", "path": "/some/cc6m"}},
    }
    header = {**HEADER, "spec": spec, "contents": {"pairs": "p" * 16, "test": "t" * 16}}
    Tracker(home, record(CLEANED), header).sync(settings(CLEANED), (CLEANED,))
    found = rows(
        "select runs.name, datasets.name, digest, dataset_source_type, dataset_source, value from datasets"
        " join inputs on inputs.source_id = dataset_uuid join runs on runs.run_uuid = inputs.destination_id"
        " join input_tags using (input_uuid) order by runs.name, value"
    )
    parts: list[Any] = [spec["evaluation"]["test"], spec["data"], spec["victim"]["data"]]
    test, pairs, trained = map(json.dumps, parts)
    assert found == [
        ("trial 0000", "cc3m.csv", "p" * 16, "csv", pairs, "cleaning"),
        ("trial 0000", "fruit-stall-test", "t" * 16, "fruit-stall-test", test, "evaluation"),
        ("victim toy-victim", "fruit-stall-test", "t" * 16, "fruit-stall-test", test, "evaluation"),
        ("victim toy-victim", "cc6m", digest_of(spec["victim"]["data"]), "parquet", trained, "pretraining"),
    ]


def test_no_tag_is_empty(synced: Rows):
    for table in ("tags", "experiment_tags", "input_tags"):
        assert synced(f"select * from {table} where value is null or value = ''") == []


def test_runs_name_the_script_and_its_commit(home: Path, rows: Rows):
    made = {**HEADER, "script": "sweeps/toy.py", "commit": "0123456789abcdef"}
    Tracker(home, record(CLEANED), made).sync(settings(CLEANED), (CLEANED,))
    found = rows("select distinct key, value from tags where key like 'mlflow.source.%' order by key")
    assert found == [
        ("mlflow.source.git.commit", "0123456789abcdef"),
        ("mlflow.source.name", "sweeps/toy.py"),
        ("mlflow.source.type", "LOCAL"),
    ]


def test_a_scripts_commit_is_that_of_its_repository(tmp_path: Path):
    assert commit_of(str(tmp_path / "script.py")) == ""
    here = Path(__file__)
    known = subprocess.run(["git", "-C", str(here.parent), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert commit_of(str(here)) == known.stdout.strip()


def test_of_a_home_that_was_copied_nothing_is_written_where_its_store_says(home: Path, tmp_path: Path):
    """The store names the folder of artifacts by its whole path, which is the first home's."""
    sync(home, CLEANED)
    shutil.rmtree(home / "mlartifacts")
    shutil.copytree(home, tmp_path / "copy")
    other = record(CLEANED, digest="1" * 16)
    Tracker(tmp_path / "copy", other, HEADER).sync(settings(CLEANED), (CLEANED,))
    assert not (home / "mlartifacts").exists()


def test_a_sweep_of_another_digest_has_runs_of_its_own(home: Path, rows: Rows):
    sync(home, CLEANED)
    other = record(CLEANED, digest="1" * 16)
    Tracker(home, other, HEADER).sync(settings(CLEANED), (CLEANED,))
    assert len(rows("select run_uuid from tags where key = 'sweeplab.trial' and value = '0'")) == 2


def test_a_sweep_that_was_begun_anew_has_runs_of_its_own(home: Path, rows: Rows):
    sync(home, CLEANED)
    Tracker(home, record(CLEANED), {**HEADER, "identity": "second"}).sync(settings(CLEANED), (CLEANED,))
    runs = rows("select run_uuid from tags where key = 'sweeplab.trial' and value = '0'")
    query = "select count(*) from metrics where key = 'eval/accuracy' and run_uuid = ?"
    assert [rows(query, *run) for run in runs] == [[(3,)], [(3,)]]


def test_an_experiment_that_was_deleted_in_mlflow_comes_back(home: Path, rows: Rows):
    tracker = sync(home, CLEANED)
    tracker.client.delete_experiment(tracker.experiment)
    sync(home, CLEANED)
    assert rows("select lifecycle_stage from experiments where name = 'toy'") == [("active",)]
    assert metrics_of(rows, 0)["eval/accuracy"] == [0.9, 0.8, 0.7]


def test_a_pruned_trial_is_finished_with_its_reason_and_what_it_reached(home: Path):
    tracker = sync(home, PRUNED)
    (run,) = [r for r in tracker.client.search_runs([tracker.experiment]) if r.data.tags["sweeplab.kind"] == "trial"]
    assert run.info.status == "FINISHED"
    assert (run.data.tags["sweeplab.state"], run.data.tags["sweeplab.reason"]) == ("pruned", "its ASR stays")
    assert run.data.metrics["min/asr"] == 78 / 80


def test_only_the_homes_own_store_writes_ahead(home: Path, tmp_path: Path):
    import sqlalchemy

    def mode(path: Path) -> Any:
        with sqlalchemy.create_engine(f"sqlite:///{path}").connect() as connection:
            return connection.exec_driver_sql("PRAGMA journal_mode").scalar()

    Tracker(home, record(CLEANED), HEADER, writes_ahead=True)
    assert (mode(home / "mlflow.db"), mode(tmp_path / "other.db")) == ("wal", "delete")


@pytest.mark.parametrize("is_behind_another_sweep", [False, True])
def test_the_victims_run_says_how_the_victim_was_made(is_behind_another_sweep: bool, home: Path, rows: Rows):
    victim: dict[str, Any] = {
        "architecture": {"name": "RN50"},
        "objective": {"kind": "mmcl", "views": None},
        "poisoning": {
            "attack": {"kind": "badnet", "patch_size": 16},
            "target": "banana",
            "rate": 0.0005,
            "count": None,
        },
        "optimization": {"learning_rate": 1e-3, "global_batch_size": 256},
        "epochs": 64,
        "seed": 0,
    }
    if is_behind_another_sweep:
        victim = {"kind": "selected trial", "sweep": {"victim": victim}}
    made = {**HEADER, "spec": {"victim": victim}, "script": "/work/sweeps/toy.py", "environment": {"sweeplab": "0.2.0"}}
    Tracker(home, record(CLEANED), made).sync(settings(CLEANED), (CLEANED,))
    (run,) = rows("select run_uuid from tags where key = 'sweeplab.kind' and value = 'victim'")
    assert dict(rows("select key, value from params where run_uuid = ?", *run)) == {
        "architecture": "RN50",
        "objective": "mmcl",
        "attack": "badnet",
        "target": "banana",
        "poison_rate": "0.0005",
        "pretraining_epochs": "64",
        "pretraining_learning_rate": "0.001",
        "pretraining_batch_size": "256",
        "pretraining_seed": "0",
    }
    sources = rows("select distinct value from tags where key = 'mlflow.source.name'")
    assert sources == [("/work/sweeps/toy.py",)]
    assert rows("select distinct value from tags where key = 'sweeplab.version'") == [("0.2.0",)]


def test_the_saved_view_begins_with_what_decides_and_has_charts(home: Path, rows: Rows):
    sync(home, CLEANED)
    ((value,),) = rows("select value from experiment_tags where key = 'mlflow.sharedViewState.sweeplab'")
    view = json.loads(zlib.decompress(base64.b64decode(json.loads(value)["state"].removeprefix("deflate;"))))
    assert [name.split("`")[1] for name in view["selectedColumns"][:5]] == [
        "best/feasible",
        "best/retention",
        "best/accuracy",
        "best/asr",
        "min/asr",
    ]
    assert [name.split("`")[1] for name in view["selectedColumns"][5:]] == list(record().parameters)
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`best/retention`", False)
    assert {chart["type"] for chart in view["compareRunCharts"]} == {"SCATTER", "LINE", "PARALLEL"}
    assert len(value) < 20_000


def test_a_view_that_fails_costs_nothing_else(
    home: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*words: Any) -> str:
        raise TypeError("of another form")

    monkeypatch.setattr("sweeplab.tracking.runs.saved_view", fail)
    with caplog.at_level("WARNING", "sweeplab"):
        sync(home, CLEANED)
    assert rows("select count(*) from tags where key = 'sweeplab.trial'") == [(1,)]
    assert caplog.messages == ["MLflow has no saved view of the sweep (TypeError: of another form)"]


def test_the_address_opens_the_runs_and_not_the_pages_for_language_models(home: Path):
    sync(home, CLEANED)
    address = page_address(home, "toy")
    assert address.startswith("http://127.0.0.1:5000/#/experiments/")
    assert address.endswith("/runs?workflowType=machine_learning&viewStateShareKey=sweeplab")


def test_the_server_is_refused_without_a_store_over_a_damaged_one_and_at_a_taken_port(
    home: Path, tmp_path: Path, mlflow_tables: Path
):
    with pytest.raises(InvalidInput, match=r"holds no mlflow\.db"):
        serve(tmp_path / "nowhere", 5000)
    (home / "mlflow.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(InvalidInput, match="is damaged"):
        serve(home, 5000)
    shutil.copy(mlflow_tables, home / "mlflow.db")
    sync(home, CLEANED)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"--port={port} cannot be used"):
            serve(home, port)


def test_the_server_is_lean_and_on_loopback(home: Path, monkeypatch: pytest.MonkeyPatch):
    sync(home, CLEANED)
    started: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *words: started.extend(words))
    serve(home, 0)
    program, words, environment = started
    assert program == sys.executable
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--workers") + 1] == "1"
    assert words[words.index("--uvicorn-opts") + 1] == "--log-level warning"  # else a line for every request
    assert environment["MLFLOW_BACKEND_STORE_URI"] == environment["MLFLOW_REGISTRY_STORE_URI"] == store_uri(home)
    assert "starlette.middleware.wsgi is deprecated" in environment["PYTHONWARNINGS"]
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"] == (home / "mlartifacts").as_uri()
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


# --- registered models


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """What `promote` has written."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights")
    return folder


FACTS = {"sweeplab.weights": "0123456789abcdef", "accuracy": "80/100"}


def test_a_model_is_registered_as_a_version_of_its_trials_run(home: Path, model_folder: Path, rows: Rows):
    """The second one of the name takes its alias over; the files lie in the home, and the folder may go."""
    sync(home, CLEANED, NOT_CLEANED)
    registration = Registration("our clip", "cleaned")
    registry = Registry(home, record(CLEANED), "first", 0)
    assert registry.register(model_folder, registration, FACTS) == 1
    assert registry.register(model_folder, registration, FACTS) == 2
    shutil.rmtree(model_folder)
    client = MlflowClient(tracking_uri=store_uri(home))
    found = client.get_model_version_by_alias("our clip", "cleaned")
    assert (int(found.version), found.run_id, found.tags) == (2, run_of(rows, 0), FACTS)
    files = Path(found.source.removeprefix("file://"))
    assert files.is_relative_to(home / "mlartifacts")
    assert (files / "weights.safetensors").read_bytes() == b"weights"


def test_a_trial_without_a_run_is_not_registered(home: Path, tmp_path: Path):
    sync(home, CLEANED)
    message = r"MLflow holds no run of trial 1 of toy; the sweep's command brings MLflow up to date"
    for where, identity, number in ((home, "first", 1), (home, "second", 1), (tmp_path / "none", "first", 1)):
        with pytest.raises(InvalidInput, match=message):
            Registry(where, record(CLEANED), identity, number)
    assert not (tmp_path / "none").exists()


def test_nothing_is_written_beside_the_store_of_another_home(home: Path, tmp_path: Path):
    sync(home, CLEANED)
    (tmp_path / "moved").mkdir()
    shutil.copy(home / "mlflow.db", tmp_path / "moved")
    with pytest.raises(InvalidInput, match="which is not this home's; promote in the home that ran the sweep"):
        Registry(tmp_path / "moved", record(CLEANED), "first", 0)


def test_a_store_that_is_none_is_named(home: Path):
    (home / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(InvalidInput, match=r"MLflow's store .*mlflow\.db fails") as refused:
        Registry(home, record(CLEANED), "first", 0)
    assert refused.value.__suppress_context__  # the chain would show passwords


def test_what_mlflow_does_not_take_is_said_and_the_folder_stays(home: Path, model_folder: Path):
    sync(home, CLEANED)
    registry = Registry(home, record(CLEANED), "first", 0)
    (home / "mlartifacts").rename(home / "elsewhere")
    (home / "mlartifacts").write_text("in the way")
    with pytest.raises(Failed, match="is written and measured, but MLflow did not take it") as refused:
        registry.register(model_folder, Registration("clip"), FACTS)
    assert refused.value.__suppress_context__
    assert model_folder.exists()


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a\nb", "x" * 257])
def test_a_name_that_mlflow_would_refuse_is_refused_first(name: str):
    with pytest.raises(InvalidInput, match="is no name of a model in MLflow"):
        Registration(name)


@pytest.mark.parametrize("alias", ["", "latest", "Latest", "v2", "a b", "x" * 256])
def test_an_alias_that_mlflow_would_refuse_is_refused_first(alias: str):
    with pytest.raises(InvalidInput, match="is no alias in MLflow"):
        Registration("clip", alias)
    assert Registration("clip", "v2-cleaned").alias == "v2-cleaned"
