"""The papers' experiments: which rows this home holds, and our numbers beside the published ones."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeplab.cli.program import RESULTS, AsJson, app, check_page, command, say, say_json, say_table
from sweeplab.cli.scripts import load_script, resolve, select
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder

if TYPE_CHECKING:
    from sweeplab.commands.papers import PaperRun
    from sweeplab.experiment import Experiment


def experiments_in(scripts: Path) -> "Callable[[PaperRun], list[Experiment]]":
    """A function that gives the sweeps and victims that a command of the papers' rows runs; each script is loaded once.

    Args:
        scripts: the folder that they lie in.

    Raises:
        InvalidInput: where it is none.
    """
    from sweeplab.experiment import CleaningSweep

    if not scripts.is_dir():
        raise InvalidInput(
            f"{scripts.absolute()} is no folder: the papers' scripts lie in a repository; go to its root"
        )
    loaded: dict[str, tuple[Experiment, ...]] = {}

    def experiments_of(run: "PaperRun") -> "list[Experiment]":
        if run.script not in loaded:
            loaded[run.script] = load_script(scripts / f"{run.script}.py")
        search = "grid" if "--search grid" in run.flags else None
        chosen = select(loaded[run.script], run.only)
        return [resolve(one, [], search, False) if isinstance(one, CleaningSweep) else one for one in chosen]

    return experiments_of


@command(app, rich_help_panel=RESULTS)
def reproduce(
    paper: Annotated[str, typer.Argument(help="verma, cleanclip, safeclip or par.")],
    rows: Annotated[list[str] | None, typer.Argument(help="Rows of docs/experiments.md, such as verma-tab1.")] = None,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    to: Annotated[Path | None, typer.Option(help="Write a page instead: a file that ends in .html.")] = None,
) -> None:
    """Set a paper's rows beside what this home holds: their states, our numbers beside the published ones, and the
    commands that make what is missing.

    It loads the papers' scripts from ./sweeps, and says where a run differs from its script.
    """
    from sweeplab.commands import reproduce as reproduce_module
    from sweeplab.ranking import reproduction

    if (as_json + markdown + (to is not None)) > 1:
        raise InvalidInput("--json, --markdown and --to exclude each other; give one")
    if to is not None:
        check_page(to)
    name, chosen = reproduce_module.chosen(paper, rows or [])
    home = home_folder(to_read=True)
    found = reproduce_module.reproduce(home, name, chosen, experiments_in(Path("sweeps")))
    if as_json:
        say_json(found.to_json())
    elif markdown:
        say(reproduction.markdown(found))
    elif to is not None:
        from dashboards.reproduction import build_reproduction

        say(str(build_reproduction(found, to)))
    else:
        say_table(lambda _: reproduction.render_rows(found))
        shown = reproduction.shown(found, all_rows=bool(rows))
        if any(row.numbers for row in shown):
            say("\n".join(["", *reproduction.printed_lines(shown)]))
            say_table(lambda _: reproduction.render_numbers(found, all_rows=bool(rows)))
        for line in reproduction.detail_lines(found, all_rows=bool(rows)):
            say(line)
        say(f"home: {home}")
