"""`python -m sweeplab.cli`: the `sweeplab` command."""

from sweeplab.cli import app

app()
