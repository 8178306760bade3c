"""A real tracking server: a sweep's runs and files go through it, its password nowhere, and nothing waits for it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import fabricated
import pytest
from mlflow.tracking import MlflowClient

from sweeplab.sweep.mlflow_sync import synced_tracking
from sweeplab.sweep.session import Session
from sweeplab.sweep.tracking_process import Tracking
from sweeplab.tracking.registry import Registration, Registry
from sweeplab.tracking.store import Place, page_of, put_page

PASSWORD = "not-to-be-seen"


@pytest.fixture
def server(tmp_path: Path, mlflow_tables: Path) -> Iterator[str]:
    """The address of a server that keeps the files itself."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(mlflow_tables, folder / "runs.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        (folder / "log.txt").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=folder,
            env={**os.environ, **settings},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
        os.killpg(process.pid, 15)


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set of MLflow's environment here goes with the test."""
    for name in ("URI", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    for name in ("MAX_RETRIES", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "1" if name == "MAX_RETRIES" else "10")


@pytest.mark.slow
@pytest.mark.usefixtures("restored")
def test_a_sweep_goes_to_the_server_and_elsewhere_later(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, news: Callable[[], list[str]]
):
    folder = fabricated.finished_sweep(tmp_path / "home" / "sweeps")
    home = folder.home

    def bring(uri: str, *, inline: bool = True) -> Tracking | None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        tracking = synced_tracking(fabricated.SWEEP, folder, Session(home, inline=inline))
        if tracking is not None:
            tracking.close()
        return tracking

    assert bring(f"http://me:{PASSWORD}@{server}", inline=False) is not None
    assert not (home / "mlflow.db").exists()
    client = MlflowClient(f"http://{server}")
    experiment = client.get_experiment_by_name(folder.name)
    runs = client.search_runs([experiment.experiment_id])
    place = Place.read(folder.path)
    assert place is not None
    assert {run.data.tags["sweeplab.kind"] for run in runs} == {"trial", "victim"}
    assert len(runs) == len(folder.trial_numbers()) + 1
    assert {run.data.tags.get("sweeplab.victim_run") for run in runs} == {None, place.run}
    assert {run.info.status for run in runs} == {"FINISHED"}

    # Files go through the server: those of the sweep, its page, and a promoted model.
    folder.page.write_text("the page")
    assert put_page(home, folder.path, folder.page) == ""
    names = [file.path for file in client.list_artifacts(place.run)]
    assert names == ["packages.txt", "report.html", "sweep.json", "trigger.png"]
    registry = Registry(home, folder.record(), folder.header()["identity"], 0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"weights")
    assert registry.register(tmp_path / "model", Registration("clip"), {"sweeplab.weights": "0123"}) == 1
    assert [file.path for file in client.list_artifacts(registry.run.run_id, "promoted/0123")] == [
        "promoted/0123/weights"
    ]
    assert page_of(home, folder.path)[1].startswith(f"http://{server}/#/experiments/{experiment.experiment_id}/runs?")

    # The password is in no file of the home or of the server, and in nothing that was said.
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert holders == []

    # Another store gets the whole sweep; one that does not answer costs it nothing.
    assert bring("http://127.0.0.1:9") is None
    assert bring("") is not None
    assert (home / "mlflow.db").exists()
    said = news()
    assert said[0] == f"MLflow: the whole sweep is now in http://{server} too; before, it went to the home itself"
    assert said[1].startswith("note: MLflow's store http://127.0.0.1:9 cannot be used (")
    assert said[2] == f"MLflow: the whole sweep is now in {home}/mlflow.db too; before, it went to http://{server}"
    assert PASSWORD not in "".join(said)
