"""Commands on sweeps that a home holds."""

import ast
import contextlib
import shlex
import time
import webbrowser
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sweeplab.cli.program import (
    RESULTS,
    SWEEPS,
    Adopt,
    AsJson,
    Inline,
    Plan,
    Supervise,
    SweepName,
    app,
    command,
    say,
    say_json,
    say_notes,
    say_table,
)
from sweeplab.cli.running import NO_JSON, ranked, say_result, start_one, write_page
from sweeplab.commands import logs as logs_module
from sweeplab.commands.status import status_or_damage, sweep_status
from sweeplab.evaluation.retention import CleanedTrials
from sweeplab.ranking.costs import Costs
from sweeplab.ranking.leaderboard import in_percent, render_table
from sweeplab.ranking.victims import VictimRow, render_victims, victims_of
from sweeplab.records import SweepRecord, duration, now_ms, number_of, percent
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder
from sweeplab.storage.locks import victim_work
from sweeplab.sweep_folder import SweepFolder, is_set_aside, sweeps_of
from sweeplab.terminal import Name
from sweeplab.tracking.store import PORT, serve


@command(app, rich_help_panel=SWEEPS)
def resume(
    sweep: SweepName,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="search.trials=64, search.hours=8, resources.concurrent_trials=2, ...")
    ] = None,
    inline: Inline = False,
    plan: Plan = False,
    supervise: Supervise = False,
    adopt: Adopt = False,
    as_json: AsJson = False,
) -> int:
    """Continue a sweep from its own record, without its script. Trials, hours and resources may be changed."""
    from sweeplab.experiment import apply_overrides
    from sweeplab.sweep.run import Options
    from sweeplab.worker.input_paths import recorded_sweep

    if as_json and plan:
        raise InvalidInput(f"--plan {NO_JSON}")
    header = _header_to_continue(sweep, adopt=adopt)
    chosen = apply_overrides(recorded_sweep(header), overrides or [])
    options = Options(resume=True, inline=inline, adopt=adopt)
    return start_one(chosen, options, as_json=as_json, plan=plan, supervised=supervise)


def _header_to_continue(sweep: str, *, adopt: bool) -> dict[str, Any]:
    """What a sweep's sweep.json holds.

    Raises:
        InvalidInput: if the sweep cannot be continued from its record alone.
    """
    folder = folder_of(sweep, to_read=False)
    header = folder.header()
    if is_set_aside(folder):
        raise InvalidInput(
            f"{sweep!r} is what --fresh set aside of sweep {header['name']!r}, and cannot be continued; "
            f"`sweeplab resume {header['name']}` continues that sweep itself"
        )
    if header["name"] != sweep:
        raise InvalidInput(f"sweep {sweep!r} calls itself {header['name']!r}; rename its folder to that first")
    if "imported" in header:
        raise InvalidInput(f"sweep {sweep!r} was imported from {header['imported']['file']}; it cannot be continued")
    if not adopt:
        folder.check_own()
    if own := header.get("own_code"):
        raise InvalidInput(
            f"sweep {sweep!r} uses {', '.join(own)}, which its script defines and its record does not hold; "
            "run that script again to continue it"
        )
    folder.check_is_continued()
    return header


@command(app, rich_help_panel=SWEEPS)
def stop(sweep: SweepName, as_json: AsJson = False) -> None:
    """Stop the command that runs a sweep. Everything committed is kept.

    Where no sweep has the name, the command that trains the victim of that name.
    """
    folder = folder_of(sweep)
    works = [folder.work]
    if rows := _victims_named(folder):
        running = [row for row in rows if row.state == "running"]
        works = [victim_work(row.folder) for row in running or rows[:1]]
    elif not folder.is_own():
        raise InvalidInput(f"sweep {folder.name!r} came from elsewhere; no command of this home runs it")
    stopped = []
    for work in works:
        was_running = logs_module.stop(work)
        stopped.append({"what": work.what, "stopped": was_running})
        if not as_json:
            end = "stopped; everything so far is kept, and the same command goes on"
            say(f"{work.what} {end if was_running else 'is not running; nothing to stop'}")
    if as_json:
        say_json(stopped)


@command(app, rich_help_panel=SWEEPS)
def logs(
    sweep: SweepName,
    trial: Annotated[int | None, typer.Argument(help="Show only this trial, with its points and tracebacks.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with new lines while the sweep runs.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, help="Begin with so many of the last lines.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what happened in a sweep, or in one of its trials."""
    if as_json:
        if follow or tail is not None:
            raise InvalidInput("--json prints all that is there, once; leave --follow and --tail out")
        say_json(logs_module.log_values(folder_of(sweep), trial))
        return
    with contextlib.suppress(KeyboardInterrupt) if follow else contextlib.nullcontext():  # how one ends following
        for line in logs_module.log(folder_of(sweep), trial, tail=tail, follow=follow):
            say(line)


@command(app, rich_help_panel=SWEEPS)
def rerun(
    sweep: SweepName,
    trials: Annotated[list[int] | None, typer.Argument(help="Numbers of the trials.")] = None,
    pruned: Annotated[
        bool,
        typer.Option("--pruned", help="Rerun all trials that a stopping rule ended, so that `audit` can judge it."),
    ] = False,
    adopt: Adopt = False,
    as_json: AsJson = False,
) -> None:
    """Run trials' settings again, as new trials, when the sweep is started next. The old trials stay on record.

    A setting whose trial a stopping rule ended runs to its last epoch.
    """
    if bool(trials) == pruned:
        raise InvalidInput("give either the numbers of trials or --pruned")
    folder = folder_of(sweep, to_read=False)
    wanted = logs_module.pruned_trials(folder) if pruned else trials or []
    logs_module.request_reruns(folder, wanted, adopt=adopt)
    if as_json:
        say_json({"sweep": sweep, "trials": wanted})
        return
    if not wanted:
        say(f"{sweep} has no trial that a rule stopped and that was not run to its end since")
        return
    named = f"trial{'s' if len(wanted) > 1 else ''} {', '.join(map(str, wanted))}"
    by_record = "" if folder.header().get("own_code") else f" or `sweeplab resume {shlex.quote(sweep)}`"
    say(f"{named} will run again as new trials; start them with the script's command{by_record}")


@command(app, rich_help_panel=RESULTS)
def leaderboard(
    sweep: SweepName,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, help="Number of rows.")] = 20,
    by: Annotated[
        str, typer.Option(help="A row per `trial`, or per `configuration`: mean, deviation and worst over its seeds.")
    ] = "trial",
) -> None:
    """Rank a sweep's trials by the accuracy they keep below the ASR ceiling."""
    from sweeplab.ranking.configurations import group_by_configuration, render_configurations

    if by not in ("trial", "configuration"):
        raise InvalidInput(f"--by={by!r} is unknown; known: trial, configuration")
    _, board = ranked(folder_of(sweep))
    if as_json:
        say_json({**board.to_json(), "configurations": [group.to_json() for group in group_by_configuration(board)]})
    elif by == "configuration":
        groups = group_by_configuration(board)
        say_table(lambda width: render_configurations(board, groups, limit, width=width))
    else:
        say_table(lambda width: render_table(board, limit, width=width))
        say_result(board)


@command(app, rich_help_panel=SWEEPS)
def status(sweep: SweepName, as_json: AsJson = False) -> None:
    """Show how far a sweep is: its trials by state, why trials failed, epochs and seconds spent.

    Where no sweep has the name, the victims that have it.
    """
    folder = folder_of(sweep)
    if rows := _victims_named(folder):
        _show_victims(rows, as_json=as_json)
        return
    values = sweep_status(folder)
    if as_json:
        say_json(values)
        return
    for line in _status_lines(values):
        say(line)


def _status_lines(values: dict[str, Any]) -> list[str]:
    """How `status` shows what `sweep_status` gives."""
    name, state, trials, planned = values["sweep"], values["state"], values["trials"], values["planned_trials"]
    over = trials["finished"] + trials["pruned"] + trials["failed"]
    counts = [f"{trials['finished']:,} of {planned:,} finished"]
    counts += [f"{count:,} {kind}" for kind, count in trials.items() if count and kind != "finished"]
    head = f"{name}: {state}"
    if state == "finished" and trials["failed"]:
        head += f", {over - trials['failed']:,} of {planned:,} succeeded"
    if values["holder"] is not None:
        head += f" by process {values['holder']['process']} on {values['holder']['host']}"
    if values["seconds_left"] is not None:
        head += f", about {duration(values['seconds_left'])} left"
    victim, best = values["victim"], values["best"]
    lines = [head, f"  trials: {', '.join(counts)}"]
    if values["last_ms"]:
        lines.append(f"  last point: {_age(values)} ago")
    if victim is not None:
        lines.append(
            f"  victim: {victim['name']}, accuracy {percent(victim['accuracy'])}, ASR {percent(victim['asr'])}"
        )
    if best is not None:
        kept = f"keeps {percent(best['retention'])} at ASR {percent(best['asr'], ceiling=values['asr_ceiling'])}"
        cleaned = CleanedTrials(**values["cleaned"]).in_words()
        lines.append(f"  best: {kept} (trial {best['trial']}, epoch {best['epoch']:g}); {cleaned}")
    elif over:
        lowest = percent(values["min_asr"], ceiling=values["asr_ceiling"])
        lines.append(f"  best: none cleaned yet, lowest ASR {lowest}")
    lines.append(f"  cost: {Costs(**values['costs']).in_words(values['seconds'])}")
    notes = list(values["notes"])
    if not values["own"]:
        notes.append("it came from elsewhere: it is read, but not changed and not removed; --adopt takes it over")
    lines += [f"  note: {note}" for note in notes]
    lines += [f"  trial {failure['trial']} failed: {failure['reason']}" for failure in values["failures"]]
    return [*lines, f"  next: {values['next']}"]


def _age(values: dict[str, Any]) -> str:
    """How long ago a sweep's last point was measured; nothing where there is none."""
    return duration((now_ms() - values["last_ms"]) / 1000) if values["last_ms"] else ""


def _victims_named(folder: SweepFolder) -> list[VictimRow]:
    """The victims that have the name of a sweep which is not there."""
    return [] if folder.exists() else [row for row in victims_of(folder.home)[0] if folder.name in names_of(row)]


def names_of(row: VictimRow) -> tuple[str, str]:
    """What a victim is called: its name, which another digest may have too, and its folder's."""
    return row.victim, row.folder.name


def _show_victims(rows: list[VictimRow], *, as_json: bool) -> None:
    if as_json:
        say_json([row.to_json() for row in rows])
    else:
        say_table(lambda _: render_victims(rows))


@command(app, "list", rich_help_panel=SWEEPS)
def list_(
    as_json: AsJson = False,
    scripts: Annotated[
        bool, typer.Option("--scripts", help="List the experiment scripts in ./sweeps instead.")
    ] = False,
    victims: Annotated[
        bool, typer.Option("--victims", help="List the home's victims instead: accuracy, ASR, selected epoch.")
    ] = False,
) -> None:
    """List the home's sweeps, its victims, or the experiment scripts in ./sweeps."""
    if scripts and victims:
        raise InvalidInput("--scripts and --victims exclude each other; give one")
    if victims:
        known, broken = victims_of(home_folder(to_read=True))
        if known or as_json:
            _show_victims(known, as_json=as_json)
        else:
            say(f"no victims in {home_folder(to_read=True)}")
        say_notes([f"{path.name} is left out: {why}" for path, why in broken.items()])
        return
    if scripts:
        found = list_scripts(Path("sweeps"))
        if as_json:
            say_json(found)
        else:
            say_table(lambda _: _table(("script", "what it does"), [tuple(row.values()) for row in found]))
        return
    home = home_folder(to_read=True)
    sound, damaged = sweeps_of(home)
    rows = [status_or_damage(folder) for folder in sound]
    rows += [{"sweep": folder.name, "state": "damaged", "reason": why} for folder, why in damaged.items()]
    if as_json:
        say_json(rows)
        return
    if rows:
        headings = ("sweep", "state", "trials", "kept %", "victim", "last point,\nago")
        say_table(lambda _: _table(headings, map(_cells_of_list, rows), right=(*headings[2:4], headings[5])))
    elif num := sum(1 for _ in (home / "victims").glob("[!.]*/victim.json")):
        say(f"no sweeps; {number_of(num, 'victim')}: sweeplab list --victims")
    else:
        say(f"no sweeps in {home}; `sweeplab run SCRIPT` runs those of a script")
    for row in rows:
        for note in _notes_of_list(row):
            say(f"note: {row['sweep']}: {note}")
    if readable := [row for row in rows if row["state"] != "damaged"]:
        say(f"next: {max(readable, key=_urgency)['next']}")


def _urgency(row: dict[str, Any]) -> tuple[bool, int]:
    """Which sweep of a list comes next: one that is not finished before others, the latest of them."""
    return row["state"] != "finished", row["last_ms"]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """Columns of which those of words are broken where there is no room; `right` lists those of numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        is_number = heading in right
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in rows:
        table.add_row(*map(Name, row))
    return table


def _cells_of_list(row: dict[str, Any]) -> tuple[str, ...]:
    """How `list` shows a sweep's status."""
    if row["state"] == "damaged":
        return row["sweep"], "damaged"
    trials = row["trials"]
    over = trials["finished"] + trials["pruned"] + trials["failed"]
    return (
        row["sweep"],
        row["state"] + ("" if row["seconds_left"] is None else f", {duration(row['seconds_left'])} left"),
        f"{over:,} of {row['planned_trials']:,}",
        in_percent(row["best"]["retention"] if row["best"] is not None else None),
        row["victim"]["name"] if row["victim"] is not None else "",
        _age(row),
    )


def _notes_of_list(row: dict[str, Any]) -> list[str]:
    """What else `list` says of a sweep."""
    if row["state"] == "damaged":
        return [row["reason"]]
    origin = [] if row["own"] else ["from elsewhere"]
    return [*origin, *([row["older"]] if row["older"] is not None else []), *row["damage"]]


def list_scripts(folder: Path) -> list[dict[str, Any]]:
    """The scripts in a folder with the first line of their docstrings; none of them is run.

    Raises:
        InvalidInput: if the folder is not there.
    """
    if not folder.is_dir():
        raise InvalidInput(f"{folder.absolute()} is no folder: --scripts lists those of a repository; go to its root")
    trees = {path: ast.parse(path.read_text()) for path in sorted(folder.glob("*.py"))}
    docs = {str(path): ast.get_docstring(tree) or "" for path, tree in trees.items()}
    return [{"script": script, "title": doc.split("\n")[0]} for script, doc in docs.items()]


@command(app, rich_help_panel=RESULTS)
def export(
    sweep: SweepName, to: Annotated[Path, typer.Option(help="Folder to write to.")], as_json: AsJson = False
) -> None:
    """Write a sweep's points and trials as CSV and Parquet."""
    from sweeplab.ranking import tables

    try:
        files = tables.export(*ranked(folder_of(sweep)), to)
    except OSError as error:
        raise InvalidInput(f"cannot write to {to} ({error.strerror}); choose another folder") from error
    if as_json:
        say_json({"files": [str(file) for file in files]})
    else:
        say("\n".join(map(str, files)))


@command(app, rich_help_panel=RESULTS)
def report(
    sweep: SweepName,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="Ask victim and winner about a few test images, clean and triggered.")
    ] = False,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    png: Annotated[bool, typer.Option("--png", help="Write a picture of the page beside it; needs Chromium.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write the page again every half minute while the sweep runs.")
    ] = False,
) -> None:
    """Write a sweep's page and print its path."""
    folder = folder_of(sweep, to_read=False)
    record, board = ranked(folder, keep_summary=True)
    if gallery:
        from sweeplab.commands.gallery import make_gallery

        folder.check_own()
        make_gallery(folder, board)
    page = write_page(folder, record, board)
    say(str(page))
    if opens and not webbrowser.open(page.absolute().as_uri()):
        say_notes([f"no browser was found; open {page}"])
    if watch:
        with contextlib.suppress(KeyboardInterrupt):  # how one ends watching
            for points in watched(folder, record):
                say(f"{time.strftime('%H:%M:%S')} {number_of(points, 'point')}")
    if png:
        from sweeplab.commands.page_picture import take_picture

        say(str(take_picture(page, page.with_suffix(".png"))))


@command(app, rich_help_panel=RESULTS)
def mlflow(port: Annotated[int, typer.Option(min=1, max=65535, help="On this machine's loopback.")] = PORT) -> None:
    """Open MLflow's pages over the home's sweeps, on this machine alone; Ctrl-C ends it."""
    serve(home_folder(to_read=True), port, lambda address: say(f"{address}\nCtrl-C ends it."))


WATCH_SECONDS = 30.0
"""Between two looks at a sweep that runs."""


def watched(folder: SweepFolder, record: SweepRecord, seconds: float = WATCH_SECONDS) -> Iterator[int]:
    """Write a sweep's page again whenever it has changed, until it runs no more; gives the points of each page.

    Args:
        folder: of the sweep.
        record: what the page shows so far.
        seconds: between two looks.
    """
    shown = _progress_of(record)
    while record.state == "running":
        time.sleep(seconds)
        record, board = ranked(folder, keep_summary=True)
        if _progress_of(record) != shown:
            shown = _progress_of(record)
            write_page(folder, record, board)
            yield board.num_choices


def _progress_of(record: SweepRecord) -> list[Any]:
    """What changes while a sweep runs."""
    return [record.state, *((trial.state, len(trial.points)) for trial in record.trials)]


def folder_of(sweep: str, *, to_read: bool = True) -> SweepFolder:
    """A sweep of this home by its name, whether or not it exists.

    Args:
        to_read: whether the command only reads; else a home without a key gets one.
    """
    return SweepFolder.of(home_folder(to_read=to_read), sweep)
