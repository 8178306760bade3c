"""Check a finished smoke sweep's leaderboard (standard input), page, tables and MLflow runs against each other."""

import json
import sqlite3
import sys
from pathlib import Path

home, sweep = Path(sys.argv[1]), sys.argv[2]
board = json.load(sys.stdin)
trials = board["trials"]
assert [row["rank"] for row in trials] == list(range(1, len(trials) + 1)), "ranks have gaps"
assert [row["state"] for row in trials] == ["finished"] * 2, "not every trial finished"
folder = home / "sweeps" / sweep
spec = json.loads((folder / "sweep.json").read_text())["spec"]
expected = 1 + spec["epochs"] * (1 + len(spec["measure_at"]))
for row in trials:
    points = (folder / "trials" / f"{row['trial']:04d}" / "history.jsonl").read_text().splitlines()
    assert len(points) == expected, "a trial has its start, every epoch's end, and the points inside"
page = (folder / "report.html").read_text()
assert "Plotly.newPlot" in page, "the page lacks its figures"
assert sweep in page, "the page lacks the sweep's name"
runs = sqlite3.connect(f"file:{home / 'mlflow.db'}?mode=ro", uri=True).execute(
    "select t.value, r.status from tags t join runs r using (run_uuid) where t.key = 'sweeplab.key'"
)
mine = sorted(row for row in runs if row[0].startswith(f"{sweep}/"))
assert [status for _, status in mine] == ["FINISHED"] * 3, f"MLflow has {mine}"
print(f"{sweep}: leaderboard, ledger, page and MLflow agree on {len(trials)} trials")
