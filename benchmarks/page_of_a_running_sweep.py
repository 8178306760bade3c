"""What the page of a sweep that runs costs its points: the same inline sweep with pages all the time, and with none.

    python benchmarks/page_of_a_running_sweep.py    # the quickstart in miniature, some minutes on 2 cores

The command writes a page every few minutes, and for at most a twentieth of the time; here one is begun two seconds
after the last one was done. Runs take turns, with the victim there already. CPU seconds are those of the sweep's own
process, user and system; a point's seconds by the clock are those since the one before it in its trial.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]

EXPERIMENT = """
import resource, sys
import sweeplab.sweep.page_writer as pages
from quickstart import SWEEP as QUICKSTART
from sweeplab.cli import guarded
from sweeplab.experiment import smoke_sweep
from sweeplab.storage.home import home_folder
from sweeplab.sweep.run import Options, run_sweep

mode, trials = sys.argv[1], int(sys.argv[2])
write, written = pages.PageWriter._write, []
def counted(self):
    written.append(write(self))
    return written[-1]
pages.PageWriter._write, pages.SHARE = counted, 1e9
pages.PageWriter.__init__.__kwdefaults__["seconds"] = 2.0 if mode == "on" else 1e9
small = smoke_sweep(QUICKSTART)
search = small.search.replace(trials=trials, startup_trials=trials)
sweep = small.replace(name="measured", search=search)
code = guarded(lambda: run_sweep(sweep, home_folder(), Options(inline=True)) and 0)
used = resource.getrusage(resource.RUSAGE_SELF)
print("USED", used.ru_utime + used.ru_stime, len(written), flush=True)
sys.exit(code)
"""


def run(home: Path, mode: str, trials: int) -> tuple[float, list[float], int]:
    """CPU seconds of a sweep's process, seconds by the clock between the points of its trials, and pages written."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "sweeps")])
    environment = {**os.environ, "SWEEPLAB_HOME": str(home), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", EXPERIMENT, mode, str(trials)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(ran.stdout[-1000:] + ran.stderr[-3000:])
    cpu, pages = next(line.split()[1:] for line in ran.stdout.splitlines() if line.startswith("USED"))
    waits = []
    for history in (home / "sweeps" / "measured" / "trials").glob("*/history.jsonl"):
        times = [json.loads(line)["timestamp_ms"] for line in history.read_text().splitlines()]
        waits += [(after - before) / 1000 for before, after in pairwise(times)]
    return float(cpu), waits, int(pages)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, list[float], int]]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory(prefix="sweeplab-pages-") as place:
        home = Path(place) / "home"
        run(home, "off", 1)
        for turn in range(arguments.rounds):
            for mode in ("off", "on") if turn % 2 == 0 else ("on", "off"):
                shutil.rmtree(home / "sweeps")
                found[mode].append(run(home, mode, arguments.trials))
                cpu, waits, pages = found[mode][-1]
                print(f"{mode:4s}{cpu:8.1f} CPU s, {statistics.median(waits):.3f} s a point, {pages} pages", flush=True)
    for mode, runs in found.items():
        cpu = statistics.median(cpu / len(waits) for cpu, waits, _ in runs)
        waits = [wait for _, own, _ in runs for wait in own]
        longest = statistics.quantiles(waits, n=20)[-1]
        print(
            f"{mode:4s} {cpu:.3f} CPU s a point of the whole process; a point {statistics.median(waits):.3f} s by the "
            f"clock, one in twenty above {longest:.3f} s; {sum(pages for *_, pages in runs)} pages"
        )


if __name__ == "__main__":
    main()
