"""A real tracking server: a sweep's runs and files go through it, its password nowhere, and nothing waits for it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import fabricated
import pytest
from browser import CHROMIUM, Browser
from mlflow.tracking import MlflowClient

from sweeplab.sweep.mlflow_sync import synced_tracking
from sweeplab.sweep.session import Session
from sweeplab.sweep.tracking_process import Tracking
from sweeplab.sweep_folder import SweepFolder
from sweeplab.tracking.registry import Registration, Registry
from sweeplab.tracking.store import Place, front_address, page_of, put_page

PASSWORD = "not-to-be-seen"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Iterator[str]:
    """The address of a server that keeps the files itself."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_tables, folder / "runs.db")
    words = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    words += ["--host", "127.0.0.1", "--port", "0", "--workers", "1"]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    told = folder / "log.txt"
    with (
        told.open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=folder,
            env={**os.environ, **settings},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        until = time.monotonic() + 240
        while (listens := re.search(r"running on http://(127\.0\.0\.1:\d+)", told.read_text())) is None:
            assert process.poll() is None, told.read_text()[-3000:]
            assert time.monotonic() < until, told.read_text()[-3000:]
            time.sleep(0.1)
        yield listens[1]
        os.killpg(process.pid, signal.SIGTERM)
    assert PASSWORD.encode() not in b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def bring(folder: SweepFolder, uri: str, *, inline: bool = True) -> Tracking | None:
    """Bring a sweep to a store, as the start of a command does; what that sets of MLflow's environment goes again."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRACKING_USERNAME", "TRACKING_PASSWORD", "HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_TIMEOUT"):
            patch.setenv(f"MLFLOW_{name}", "")
            patch.delenv(f"MLFLOW_{name}")
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        tracking = synced_tracking(fabricated.SWEEP, folder, Session(folder.home, inline=inline))
        if tracking is not None:
            tracking.close()
        return tracking


@pytest.fixture(scope="module")
def folder(server: str, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A finished sweep that the server was told of."""
    made = fabricated.finished_sweep(tmp_path_factory.mktemp("home") / "sweeps")
    assert bring(made, f"http://me:{PASSWORD}@{server}", inline=False) is not None
    return made


@pytest.mark.slow
def test_a_sweep_goes_to_the_server_and_elsewhere_later(
    server: str, folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, news: Callable[[], list[str]]
):
    home, address = folder.home, f"http://{server}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert not (home / "mlflow.db").exists()
    client = MlflowClient(address)
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
    assert page_of(home, folder.path)[1].startswith(f"{address}/#/experiments/{experiment.experiment_id}/runs?")

    # Another store gets the whole sweep; one that does not answer costs it nothing.
    assert bring(folder, "http://127.0.0.1:9") is None
    assert bring(folder, "") is not None
    assert (home / "mlflow.db").exists()
    assert bring(folder, f"http://me:{PASSWORD}@{server}") is not None
    unreachable, there, back = news()
    assert unreachable.startswith("note: MLflow's store http://127.0.0.1:9 cannot be used (")
    assert there == f"MLflow: the whole sweep is now in {home}/mlflow.db too; before, it went to {address}"
    assert back == f"MLflow: the whole sweep is now in {address} too; before, it went to the home itself"
    assert PASSWORD not in unreachable
    holders = [path for path in home.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert holders == []


def in_order(place: str, text: str, axis: str) -> str:
    """Different texts that begin so, of the elements that a selector finds, by where they stand; as JavaScript."""
    found = f"[...document.querySelectorAll('{place}')].filter((e) => e.innerText?.trim().startsWith('{text}'))"
    by_place = f".sort((a, b) => a.getBoundingClientRect().{axis} - b.getBoundingClientRect().{axis})"
    return f"[...new Set({found}{by_place}.map((e) => e.innerText.trim()))]"


SHOWN = "document.body?.innerText ?? ''"
DRAWN = "[...document.querySelectorAll('.js-plotly-plot text')].map((text) => text.textContent)"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_mlflows_pages_show_runs_by_retention_charts_and_what_is_compared(
    server: str, folder: SweepFolder, tmp_path: Path
):
    """Everything is waited for: the parts of these pages come in any order."""
    address = page_of(folder.home, folder.path)[1]
    client = MlflowClient(f"http://{server}")
    experiment = client.get_experiment_by_name(folder.name).experiment_id
    browser = Browser(tmp_path)
    try:
        browser.open(front_address(f"http://{server}"), until="document.body")
        browser.wait_for(SHOWN, lambda shown: "Model training" in shown and folder.name in shown)
        assert "Start Demo" not in browser.run(SHOWN)
        browser.open(address, until="document.body")
        browser.wait_for(SHOWN, lambda shown: "Ranked by retention" in shown)
        browser.wait_for(SHOWN, lambda shown: "cleanclip on made-up-victim: 6 trials of 2 epochs" in shown)
        columns = ["best/feasible", "best/retention", "best/accuracy"]
        browser.wait_for(in_order("[role=columnheader]", "best/", "x"), lambda names: names[:3] == columns)
        best = ["trial 0001", "trial 0002"]
        browser.wait_for(in_order("a", "trial ", "y"), lambda names: names[:2] == best)
        browser.open(f"{address}&compareRunsMode=CHART", until="document.body")
        browser.wait_for(DRAWN, lambda names: "eval/asr" in names)
        browser.wait_for(SHOWN, lambda shown: re.search(r"Accuracy and ASR\s*\(3\)", shown) is not None)
        runs = [run.info.run_id for run in client.search_runs([experiment], "tags.`sweeplab.kind` = 'trial'")]
        query = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"
        browser.open(f"http://{server}/#/compare-runs?{query}", until="document.body")
        # The chart of parameters and metrics draws all its axes at once.
        browser.wait_for(DRAWN, lambda names: "learning_rate" in names and "eval/retention" in names)
        assert "time/epoch" not in browser.run(DRAWN)
        asked = [
            e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"
        ]
        assert [url for url in asked if not url.startswith((f"http://{server}/", "data:", "blob:", "about:"))] == []
    finally:
        browser.close()
