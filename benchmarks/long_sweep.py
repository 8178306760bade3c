"""A day-long sweep in miniature: many real trials in one go; how the driver's memory and the files grow.

    python benchmarks/long_sweep.py                 # 200 trials of two epochs on the embedded data, minutes on 2 cores
    python benchmarks/long_sweep.py --trials 50

The sweep is the quickstart's smoke version with more trials. The driver's resident memory is read from /proc after each
tenth trial; its growth is the slope of a line through the readings after the twentieth, when all caches are warm.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]

EXPERIMENT = """
import sys
from quickstart import SWEEP as QUICKSTART
from sweeplab.cli import main
from sweeplab.experiment import smoke_sweep

TRIALS, EXECUTOR = int(sys.argv.pop(1)), sys.argv.pop(1)
SMALL = smoke_sweep(QUICKSTART)
if __name__ == "__main__":
    main(
        SMALL.replace(
            name="long",
            search=SMALL.search.replace(trials=TRIALS, startup_trials=8),
            resources=SMALL.resources.replace(executor=EXECUTOR),
        )
    )
"""


def resident_mb(process: int) -> float:
    """A process's resident memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def size_kb(path: Path) -> float:
    """A file's size, or that of all files below a folder."""
    if path.is_file():
        return path.stat().st_size / 1024
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1024


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--executor", default="tune", choices=["tune", "pool"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweeplab-long-", ignore_cleanup_errors=True) as place:
        home = Path(place) / "home"
        (Path(place) / "experiment.py").write_text(EXPERIMENT)
        path = os.pathsep.join([str(ROOT), str(ROOT / "sweeps")])
        environment = {**os.environ, "SWEEPLAB_HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "experiment.py", str(arguments.trials), arguments.executor]
        began = time.monotonic()
        with (Path(place) / "output.txt").open("wb") as output:
            process = subprocess.Popen(words, cwd=place, env=environment, stdout=output, stderr=output)
        folder = home / "sweeps" / "long"
        readings: dict[int, float] = {}
        while process.poll() is None:
            done = len(list((folder / "trials").glob("*/result.json")))
            if done and done % 10 == 0 and done not in readings:
                readings[done] = resident_mb(process.pid)
                print(f"{done:4d} trials: driver {readings[done]:.0f} MB, {time.monotonic() - began:.0f} s", flush=True)
            time.sleep(0.05)
        if process.returncode:
            sys.exit((Path(place) / "output.txt").read_text()[-3000:])
        counts, memory = np.array(list(readings)), np.array(list(readings.values()))
        late = counts > 20
        if late.sum() >= 2:
            slope = np.polyfit(counts[late], memory[late], 1)[0]
            print(f"the driver grows by {100 * slope:.1f} MB per 100 trials")
        print(f"{arguments.trials} trials in {time.monotonic() - began:.0f} s, start and victim included")
        rows = {
            "trials/ (records and kept weights)": folder / "trials",
            "study.journal": folder / "study.journal",
            "events.jsonl": folder / "events.jsonl",
            "report.html": folder / "report.html",
            "mlflow.db": home / "mlflow.db",
        }
        for name, file in rows.items():
            print(f"{name:36s} {size_kb(file):10.0f} KB, {size_kb(file) / arguments.trials:8.1f} KB a trial")
        weights = sum(size_kb(file) for file in (folder / "trials").glob("*/checkpoints/*"))
        print(f"{'of trials/, kept weights':36s} {weights:10.0f} KB")


if __name__ == "__main__":
    main()
