"""The command over several sweeps, victims and tables at once."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from sweeplab.cli.program import RESULTS, AsJson, app, check_page, command, say, say_json, say_notes, say_table
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder


@command(app, rich_help_panel=RESULTS)
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Sweeps and victims of the home, patterns too ('verma-fig6-*'; miniatures by '*-smoke*' alone), and "
            "folders that `sweeplab examine --to` wrote."
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            help="Make a series of each value of this field or searched parameter (slipped.count, epochs, ssl_weight); "
            "by default of each sweep, or of the field that tells apart what several victims have in common."
        ),
    ] = None,
    marks: Annotated[str | None, typer.Option(help="Draw only `points`, `frontier` or `line`; all by default.")] = None,
    trial: Annotated[
        list[int] | None,
        typer.Option(help="Number of a trial whose way is shown; may be repeated. The best by default."),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="File to write the page to, .html; compare.html of the home.")] = None,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set sweeps, victims and tables beside each other: a table, and a page with every figure that they allow.

    What was measured on other test images is refused.
    """
    from sweeplab.commands.compare import gather
    from sweeplab.ranking.compared import MARKS, Comparison, notes_of, render_results

    if marks not in MARKS:
        raise InvalidInput(f"--marks {marks} is unknown; known: points, frontier, line")
    if to is not None:
        check_page(to)
    from dashboards.several import build_comparison, tables_of

    found, left_out = gather(home_folder(to_read=True), names)
    say_notes(left_out)
    comparison = Comparison.of(found, by)
    comparison.check_trials(trial or [])
    if as_json:
        say_json(
            {
                "by": comparison.by,
                "notes": [*left_out, *notes_of(comparison)],
                **tables_of(comparison, marks, trial or []),
            }
        )
    elif (table := render_results(comparison)).row_count:  # none of tables over checkpoints alone
        say_table(lambda _: table)
    if to is None and as_json and not opens:
        return
    page = build_comparison(comparison, to or home_folder() / "compare.html", marks, trial or [])
    if as_json:
        say_notes([f"the page is {page}"])
    else:
        say(str(page))
    if opens and not webbrowser.open(page.absolute().as_uri()):
        say_notes([f"no browser was found; open {page}"])
