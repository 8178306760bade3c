"""The page as a browser shows it, opened from the disk: figures are drawn, and nothing is asked of a network."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from dashboards.build import build_page
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import Measurement, Point, SweepRecord, TrialRecord

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]

BROWSERS_OWN = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com", "googleusercontent.com")
"""Hosts that Chromium asks of itself at its start, page or no page."""

RECORD = SweepRecord(
    name="toy",
    digest="0" * 16,
    state="finished",
    asr_ceiling=0.05,
    epochs=2,
    protocol="paper",
    method="cleanclip",
    victim_name="toy-victim",
    victim=Measurement(400, 1000, 990, 1000, "evaluation"),
    victim_epoch=10,
    target="banana",
    trials=(),
    planned_trials=3,
    parameters=("learning_rate",),
    log_parameters=("learning_rate",),
)


def trial(number: int, *rates: tuple[int, int]) -> TrialRecord:
    points = tuple(
        Point(index, float(index), index, 1, Measurement(correct, 1000, hit, 1000, "evaluation"))
        for index, (correct, hit) in enumerate(rates)
    )
    return TrialRecord(number, "finished", {"learning_rate": 10.0 ** -(number + 3)}, "c", 1, 1, points)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The document after its scripts have run, and what the browser logged, requests included."""
    folder: Path = tmp_path_factory.mktemp("page")
    trials = (
        trial(0, (400, 990), (390, 200), (380, 30)),
        trial(1, (400, 990), (399, 950), (398, 900)),
        trial(2, (400, 990), (300, 20), (250, 10)),
    )
    record = dataclasses.replace(RECORD, trials=trials)
    page = build_page(record, rank_trials(record, lambda number, index: None), folder / "report.html")
    log = folder / "net.json"
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={folder / 'profile'}", "--window-size=1280,2400", "--virtual-time-budget=8000"),
        *("--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    requests = log.read_text() if log.exists() else ""
    hosts = {url.split("/")[2] for url in requests.split('"') if url.startswith(("http://", "https://"))}
    foreign = {f"host {host}" for host in hosts if not host.split(" ")[0].split(":")[0].endswith(BROWSERS_OWN)}
    return done.stdout, "\n".join([console, *sorted(foreign)])


def test_every_figure_is_drawn(shown: tuple[str, str]):
    document, _ = shown
    assert document.count("main-svg") >= 3
    assert "trial 0" in document


def test_scripts_raise_no_error(shown: tuple[str, str]):
    _, log = shown
    assert "CONSOLE" not in log


def test_nothing_is_fetched(shown: tuple[str, str]):
    _, log = shown
    assert [line for line in log.splitlines() if line.startswith("host")] == []
