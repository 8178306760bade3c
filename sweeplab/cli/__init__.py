"""The command line: parses, calls, prints. Scripts end with `main`; `app` is the `sweeplab` command."""

import atexit
import gc
import os

# The threads that NumPy's OpenBLAS starts would wait busily for work at first: 0.03 s of each core.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
gc.disable()  # modules are no garbage, and to look for some among them takes a third of the time of `sweeplab list`

# In the order in which `sweeplab --help` lists the commands.
# ruff: noqa: E402
# isort: off
from sweeplab.cli.program import app, guarded, say, say_error
from sweeplab.cli.scripts import load_script, main, resolve, select
import sweeplab.cli.sweeps
import sweeplab.cli.tables
import sweeplab.cli.comparing
import sweeplab.cli.papers
import sweeplab.cli.models
import sweeplab.cli.data
import sweeplab.cli.attacks  # noqa: F401
# isort: on

gc.freeze()
gc.enable()
atexit.register(gc.freeze)  # nor is there any to be looked for when the process ends

__all__ = ["app", "guarded", "load_script", "main", "resolve", "say", "say_error", "select"]
