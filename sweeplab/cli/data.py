"""Commands on data and disk: what a sweep would read, looked at before it runs, and what takes space in the home."""

from pathlib import Path
from typing import Annotated

import typer

from sweeplab.cli.models import OwnArchitecture
from sweeplab.cli.program import SURROUNDINGS, AsJson, Only, Overrides, Script, Smoke, app, command, say, say_json
from sweeplab.cli.running import check_sources
from sweeplab.cli.scripts import one_sweep
from sweeplab.records import number_of
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder
from sweeplab.terminal import tracked

data_app = typer.Typer(no_args_is_help=True, help="Look at the data that a script's sweep would read, and label them.")
app.add_typer(data_app, name="data", rich_help_panel=SURROUNDINGS)


@command(data_app, "check")
def data_check(
    script: Script, overrides: Overrides = None, only: Only = None, smoke: Smoke = False, as_json: AsJson = False
) -> None:
    """Decode every image that a sweep names, over all cores: broken files, repeated ones, sizes, captions."""
    from sweeplab.commands.data_check import check_data

    sweep = one_sweep(script, only, overrides or [], smoke)
    check_sources([sweep])
    reports = check_data(sweep, home_folder() / "data", tracked)
    if as_json:
        say_json([report.to_json() for report in reports])
    else:
        for line in [line for report in reports for line in report.lines()]:
            say(line)
    if refused := [report for report in reports if report.is_refused]:
        counts = ", ".join(f"{len(report.broken):,} of {report.name}" for report in refused)
        raise InvalidInput(
            f"too many rows are broken ({counts}), see above; mend them, remove them or raise max_broken"
        )


@command(data_app, "label")
def data_label(
    script: Script,
    model: Annotated[
        Path, typer.Option(help="The labeller: a folder of open_clip's (local-dir:) or of CLIPModel, or its weights.")
    ],
    to: Annotated[Path, typer.Option(help="The .npy file to write, for method.pseudo_labels.")],
    overrides: Overrides = None,
    only: Only = None,
    architecture: OwnArchitecture = None,
    classes: Annotated[str, typer.Option(help="`imagenet`, or a text file of names, one a line.")] = "imagenet",
    templates: Annotated[
        str, typer.Option(help="`imagenet`: OpenAI's 80; or a text file, one a line, {} for the name.")
    ] = "imagenet",
    smoke: Smoke = False,
    as_json: AsJson = False,
) -> None:
    """Label a sweep's cleaning pairs by a zero-shot model, such as SigLIP, for deep clustering.

    All of it is read from local files. The model may be of any kind of open_clip's; one with a tokeniser of its own
    brings the tokeniser's files in its folder.
    """
    from sweeplab.commands.label import LabelRequest, label_pairs

    sweep = one_sweep(script, only, overrides or [], smoke)
    request = LabelRequest(sweep, model, to, architecture, classes, templates)
    report = label_pairs(request, home_folder(), tracked)
    if as_json:
        say_json(report.to_json())
    else:
        for line in report.lines():
            say(line)
        say(f"written: {report.path}; set method.pseudo_labels to it")


@command(app, rich_help_panel=SURROUNDINGS)
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
    set_aside: Annotated[bool, typer.Option("--set-aside", help="Also remove sweeps that --fresh set aside.")] = False,
    victims: Annotated[
        bool, typer.Option("--victims", help="Also remove victims that no sweep uses and no script ran alone.")
    ] = False,
    copies: Annotated[
        bool, typer.Option("--copies", help="Also remove this node's copies of data that were not used for a day.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what takes disk space, and remove what killed commands left behind."""
    from sweeplab.commands.disk import disk_table, find_removable, foreign_folders, readable, remove

    home = home_folder()
    table = disk_table(home)
    removable = find_removable(home, set_aside=set_aside, victims=victims, copies=copies)
    if as_json:
        found = [{"path": str(item.path), "bytes": item.bytes, "why": item.why} for item in removable]
        kept = [str(path) for path in foreign_folders(home)]
        freed = 0 if dry_run else remove(removable)
        say_json({"disk": table, "removable": found, "foreign": kept, "freed": freed})
        return
    for row in table:
        say(f"{readable(row['bytes']):>10}  {row['what']}")
    for item in removable:
        say(f"{readable(item.bytes):>10}  {'would be ' if dry_run else ''}removed: {item.path}: {item.why}")
    for path in foreign_folders(home):
        why = "it came from elsewhere or is damaged, so neither it nor anything it names is removed"
        say(f"{'':>10}  stays: {path}: {why}")
    num = number_of(len(removable), "item")
    if not removable:
        say("nothing to remove")
    elif dry_run:
        total = readable(sum(item.bytes for item in removable))
        say(f"{num} of {total} would be removed; run without --dry-run to remove them")
    else:
        say(f"{num} removed, {readable(remove(removable))} freed")
