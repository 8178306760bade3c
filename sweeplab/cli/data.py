"""Commands on data: what a script's sweep would read, looked at before it runs."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import typer
from rich.console import Console
from rich.progress import track

from sweeplab.cli.program import AsJson, Only, Overrides, Smoke, app, command, say, say_json
from sweeplab.cli.running import check_sources
from sweeplab.cli.scripts import one_sweep
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder

T = TypeVar("T")

data_app = typer.Typer(no_args_is_help=True, help="Look at the data that a script's sweep would read.")
app.add_typer(data_app, name="data")


@command(data_app, "check")
def data_check(
    script: Path, overrides: Overrides = None, only: Only = None, smoke: Smoke = False, as_json: AsJson = False
) -> None:
    """Decode every image that a sweep names, over all cores: broken files, repeated ones, sizes, captions."""
    from sweeplab.commands.data_check import check_data

    sweep = one_sweep(script, only, overrides or [], smoke)
    check_sources([sweep])
    reports = check_data(sweep, home_folder() / "data", _bar)
    if as_json:
        say_json([report.to_json() for report in reports])
    else:
        for line in [line for report in reports for line in report.lines()]:
            say(line)
    if count := sum(len(report.broken) for report in reports):
        raise InvalidInput(f"{count:,} images cannot be decoded, see above; replace the files or remove their rows")


def _bar(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """The items, with a progress bar where somebody looks."""
    return track(items, what, total=total, console=Console(stderr=True), disable=not sys.stderr.isatty())
