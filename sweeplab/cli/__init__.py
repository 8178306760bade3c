"""The command line: parses, calls, prints. Scripts end with `main`; `app` is the `sweeplab` command."""

# In the order in which `sweeplab --help` lists the commands.
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

__all__ = ["app", "guarded", "load_script", "main", "resolve", "say", "say_error", "select"]
