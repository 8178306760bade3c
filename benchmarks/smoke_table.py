"""Run every sweep and victim of scripts in miniature, one after the other, and print a table of minutes and outcomes.

    python benchmarks/smoke_table.py                           # all of the papers' scripts
    python benchmarks/smoke_table.py sweeps/par.py --only 'par-fig*'

A home of its own, in a temporary folder unless SWEEPLAB_HOME names one; what is there already is not run again.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeplab.cli import guarded, load_script, say, select
from sweeplab.commands.papers import ROWS

ROOT = Path(__file__).parents[1]
SCRIPTS = [ROOT / "sweeps" / f"{name}.py" for name in dict.fromkeys(run.script for row in ROWS for run in row.runs)]
RESULT = re.compile(r"error: |: finished|epoch \d+/\d+: accuracy|is there already")


def run_in_miniature(script: Path, name: str) -> str:
    """One sweep or victim; a row of the table."""
    began = time.perf_counter()
    words = [sys.executable, str(script), "--smoke", "--inline", "--only", name]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    minutes = (time.perf_counter() - began) / 60
    told = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if RESULT.search(line)]
    return f"| {script.name} | {name} | {minutes:.1f} | {ran.returncode} | {told[-1] if told else ''} |"


def main() -> int:
    """The command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", type=Path, default=SCRIPTS)
    parser.add_argument("--only", action="append", default=[], help="names or patterns; may be repeated")
    arguments = parser.parse_args()

    def work() -> int:
        os.environ.setdefault("SWEEPLAB_HOME", tempfile.mkdtemp(prefix="smoke-table-"))
        say(f"home: {os.environ['SWEEPLAB_HOME']}\n")
        say("| script | name | minutes | exit code | last |\n|---|---|---|---|---|")
        codes = []
        for script in arguments.scripts:
            for experiment in select(load_script(script), arguments.only):
                row = run_in_miniature(script, experiment.name)
                codes.append(row.split(" | ")[3])
                say(row)
        return int(any(code != "0" for code in codes))

    return guarded(work)


if __name__ == "__main__":
    raise SystemExit(main())
