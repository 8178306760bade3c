"""The command line: parses, calls, prints. Scripts end with `main`; `app` is the `sweeplab` command."""

import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console

from sweeplab.specs import Failed, InvalidInput, Spec, StorageFault, Unfinished
from sweeplab.terminal import PatientConsole, printable, without_reader

if TYPE_CHECKING:
    from sweeplab.experiment import CleaningSweep
    from sweeplab.ranking.leaderboard import Leaderboard
    from sweeplab.records import SweepRecord
    from sweeplab.sweep_folder import SweepFolder

P = ParamSpec("P")
"""Parameters of a command."""

DONE, FAULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75
FROM_BEST_TO_WORST = (DONE, INTERRUPTED, FAULT, BAD_INPUT)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Clean backdoored CLIP models in sweeps, ranked by the accuracy they keep below 5 % ASR.",
)


def _explain(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Bad input while a script builds its specs: the message alone, and exit code 2."""
    if not issubclass(kind, InvalidInput):
        sys.__excepthook__(kind, error, trace)
        return
    say_error(str(error))
    sys.stdout.flush()
    os._exit(BAD_INPUT)  # an exception hook cannot set the exit code otherwise


sys.excepthook = _explain


def say(text: str) -> None:
    """A line of news, seen at once in a job's log. Where nobody reads on (`| head`), it is dropped, and so is the
    rest: a sweep does not end because its reader did."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        without_reader(sys.stdout)


def say_error(text: str) -> None:
    """A message about bad input."""
    try:
        print(f"error: {printable(text)}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        without_reader(sys.stderr)


def say_notes(notes: Sequence[str]) -> None:
    """What to look at before anything runs; beside the output, which may be JSON."""
    for note in notes:
        try:
            print(f"note: {note}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            without_reader(sys.stderr)


def guarded(work: Callable[[], int | None]) -> int:
    """Run a command; returns its exit code, which is what `work` returns (None: 0) or what its error means: 2 bad
    input, 75 interrupted and resumable, 1 anything else."""
    from sweeplab.execution.watchdog import signals_as_interrupts

    try:
        with signals_as_interrupts():
            return exit_code(work)
    except KeyboardInterrupt:
        return interrupted()


def exit_code(work: Callable[[], int | None]) -> int:
    """The same but for signals, which end more than one piece of a command's work."""
    try:
        return work() or DONE
    except InvalidInput as error:
        say_error(str(error))
        return BAD_INPUT
    except (Unfinished, StorageFault) as error:
        say_error(str(error))
        return INTERRUPTED
    except (Failed, FloatingPointError) as error:
        say_error(str(error))
        return FAULT
    except Exception:  # noqa: BLE001 - the last resort: shown in full, exit code 1
        sys.stderr.write(printable(traceback.format_exc()))
        return FAULT


def interrupted() -> int:
    """Say that a signal ended the command; returns its exit code."""
    say_error("interrupted; everything so far is kept, and the same command goes on")
    return INTERRUPTED


def worst(codes: list[int]) -> int:
    """The exit code of several pieces of work: 2 over 1 over 75."""
    return max(codes, key=FROM_BEST_TO_WORST.index, default=DONE)


def end(code: int) -> None:
    """End the process with an exit code, also where threads are left behind."""
    from sweeplab.execution.watchdog import exit_now

    exit_now(code)
    raise typer.Exit(code)


def command(
    to: typer.Typer, name: str | None = None, **settings: Any
) -> Callable[[Callable[P, int | None]], Callable[P, int | None]]:
    """Make a function a command of a typer app, and leave the function itself as it is.

    Its parameters are the command's and its docstring is the help text. The process ends with the exit code that it
    returns (None: 0), or that its error means.
    """

    def register(work: Callable[P, int | None]) -> Callable[P, int | None]:
        @wraps(work)
        def run_and_end(*arguments: P.args, **named: P.kwargs) -> None:
            end(guarded(partial(work, *arguments, **named)))

        to.command(name, **settings)(run_and_end)
        return work

    return register


# --- scripts


def main(*sweeps: "CleaningSweep") -> None:
    """Run a script's sweeps, one after the other, and exit with the worst code of them: 2 over 1 over 75."""
    if _handed is not None:
        _handed.extend(sweeps)
        raise SystemExit(DONE)

    def script(
        overrides: Annotated[list[str] | None, typer.Argument(help="field.subfield=value")] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; needs no data.")] = False,
        smoke: Annotated[bool, typer.Option("--smoke", help="The same in miniature, on embedded data.")] = False,
        resume: Annotated[bool, typer.Option("--resume", help="Insist that there is something to resume.")] = False,
        fresh: Annotated[bool, typer.Option("--fresh", help="Set an existing sweep aside and begin anew.")] = False,
        search: Annotated[str | None, typer.Option(help="tpe, gp, nsga2, random, qmc or grid.")] = None,
        inline: Annotated[bool, typer.Option("--inline", help="One process, no Ray: for a debugger.")] = False,
        only: Annotated[list[str] | None, typer.Option(help="Only the sweep of this name; may be repeated.")] = None,
        plan: Annotated[bool, typer.Option("--plan", help="Say what would be reused, repeated and run.")] = False,
        supervise: Annotated[bool, typer.Option("--supervise", help="Start again until all is finished.")] = False,
        adopt: Annotated[bool, typer.Option("--adopt", help=ADOPT_HELP)] = False,
    ) -> int:
        flags = ScriptCommand(
            tuple(overrides or ()),
            *(dry_run, smoke, resume, fresh, search, inline, tuple(only or ()), plan, supervise, adopt),
        )
        return _run_script(sweeps, flags)

    # `ray job submit -- python script.py` and `python script.py` alike.
    script_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command(script_app, help=sys.modules["__main__"].__doc__ or "Run this script's sweeps.")(script)
    script_app()


@dataclass(frozen=True)
class ScriptCommand:
    """What a script was asked for."""

    overrides: tuple[str, ...] = ()
    dry_run: bool = False
    smoke: bool = False
    resume: bool = False
    fresh: bool = False
    search: str | None = None
    inline: bool = False
    only: tuple[str, ...] = ()
    plan: bool = False
    supervise: bool = False
    adopt: bool = False


ADOPT_HELP = "Take over a sweep that was made elsewhere and copied here."


def _run_script(sweeps: "tuple[CleaningSweep, ...]", command: ScriptCommand) -> int:
    if command.resume and command.fresh:
        raise InvalidInput("--resume and --fresh exclude each other; give one")
    chosen = [
        resolve(sweep, list(command.overrides), command.search, command.smoke)
        for sweep in select(sweeps, list(command.only))
    ]
    if command.dry_run:
        from sweeplab.commands.estimate import plan

        for sweep in chosen:
            say("\n".join(plan(sweep).lines()))
        return DONE
    if command.plan:
        return say_plans(chosen, resume=command.resume, fresh=command.fresh, adopt=command.adopt)
    if command.supervise and not _is_supervised():
        return _supervise(chosen, fresh=command.fresh)
    return run_all(chosen, resume=command.resume, fresh=command.fresh, inline=command.inline, adopt=command.adopt)


def _is_supervised() -> bool:
    """Whether this is a start of a command under `--supervise`."""
    return "SWEEPLAB_SUPERVISED" in os.environ


def _supervise(sweeps: "list[CleaningSweep]", *, fresh: bool = False) -> int:
    """Run this very command again and again, without the flag, until it is done; returns its exit code."""
    from sweeplab.commands.supervise import committed, supervise
    from sweeplab.storage.files import home_folder
    from sweeplab.sweep_folder import SweepFolder

    words = [word for word in sys.argv if word != "--supervise"]
    if fresh:  # once is enough: each start would set the last one's work aside
        raise InvalidInput("--supervise and --fresh exclude each other; run once with --fresh, then supervise")
    home = home_folder()
    names = [name for sweep in sweeps for name in _names_within(sweep)]
    folders = [SweepFolder.of(home, name) for name in names]

    def was_stopped() -> bool:
        return any(folder.stop_mark.exists() for folder in folders)

    for folder in folders:
        if "--adopt" not in words:
            folder.check_own()
        folder.stop_mark.unlink(missing_ok=True)
    command = [sys.executable, *words]
    return supervise(command, lambda: committed(home, names), say, was_stopped=was_stopped)


def _names_within(sweep: "CleaningSweep") -> list[str]:
    """The sweep's name, and that of the sweep whose best trial it starts from, and so on."""
    inner = getattr(sweep.victim, "sweep", None)
    return [sweep.name, *(_names_within(inner) if inner is not None else [])]


def say_plans(sweeps: "list[CleaningSweep]", *, resume: bool = False, fresh: bool = False, adopt: bool = False) -> int:
    """What a start would reuse, repeat and run of each sweep; starts nothing. Returns the worst exit code."""
    from sweeplab.sweep.prepare import prepare
    from sweeplab.sweep.resume import check_is_there, check_same_spec, resume_plan
    from sweeplab.sweep_folder import SweepFolder

    def say_plan(sweep: "CleaningSweep", home: Path) -> None:
        folder = SweepFolder.of(home, sweep.name)
        if resume:
            check_is_there(folder)
        if not adopt:
            folder.check_own()
        prepared = prepare(sweep, home, fresh=fresh)
        say_notes(prepared.notes)
        if folder.exists() and fresh:
            say(f"{sweep.name}: what is there would be set aside, and nothing of its trials be used")
            folder = SweepFolder(folder.path.with_name(f".{sweep.name}.fresh"))
        if folder.exists():
            check_same_spec(folder, prepared)
            if folder.is_locked():
                who = folder.holder() or {}
                say(f"{sweep.name}: process {who.get('process', '?')} on {who.get('host', '?')} runs it now")
        for line in resume_plan(folder, prepared, home):
            say(line)

    return _each(sweeps, say_plan)


def _each(sweeps: "list[CleaningSweep]", work: "Callable[[CleaningSweep, Path], None]") -> int:
    """Do a command's work for every sweep whose inputs are there. One that fails, in whatever way, keeps none of the
    others from its turn; a signal ends them all. Returns the worst exit code."""
    from sweeplab.storage.files import home_folder

    codes = [exit_code(lambda: check_sources(sweeps))]  # what all of them lack, in one message
    ready = [sweep for sweep in sweeps if not _missing([sweep])]
    if not ready:
        return worst(codes)
    home = home_folder()
    say(f"home: {home}")
    try:
        for place, sweep in enumerate(ready, start=1):
            codes.append(exit_code(partial(work, sweep, home)))
            if codes[-1] != DONE and place < len(ready):
                say(f"{sweep.name} ended with exit code {codes[-1]}; going on with {ready[place].name}")
    except KeyboardInterrupt:
        return worst([*codes, interrupted()])
    say(f"home: {home}")
    if _is_supervised() and INTERRUPTED in codes:
        return INTERRUPTED  # what can still be finished is to be begun again, whatever became of the others
    return worst(codes)


def select(sweeps: "tuple[CleaningSweep, ...]", only: list[str]) -> "list[CleaningSweep]":
    """The sweeps of a script that were asked for."""
    names = [sweep.name for sweep in sweeps]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InvalidInput(f"--only {unknown[0]}: the script has no such sweep; it has {', '.join(names)}")
    return [sweep for sweep in sweeps if not only or sweep.name in only]


def resolve(sweep: "CleaningSweep", overrides: list[str], search: str | None, smoke: bool) -> "CleaningSweep":
    """A sweep with a command's changes; another sampler than the script's gives it a name of its own."""
    from sweeplab.experiment import apply_overrides, smoke_sweep

    sweep = apply_overrides(sweep, overrides)
    if search is not None and search != sweep.search.sampler:
        changes: dict[str, Any] = {"search": sweep.search.replace(sampler=search)}
        if not any(override.startswith("name=") for override in overrides):
            changes["name"] = f"{sweep.name}-{search}"
        sweep = sweep.replace(**changes)
    if not smoke:
        return sweep
    # Of these the miniature has values of its own, and what was asked for stands; all else was in what it was made of.
    small = smoke_sweep(sweep)
    again = ("epochs=", "search.", "resources.", *(("victim.epochs=",) if hasattr(small.victim, "epochs") else ()))
    return apply_overrides(small, [text for text in overrides if text.startswith(again)])


def run_all(
    sweeps: "list[CleaningSweep]",
    *,
    resume: bool = False,
    fresh: bool = False,
    inline: bool = False,
    adopt: bool = False,
) -> int:
    """Run sweeps one after the other; each ends with its leaderboard, page and the way to MLflow. Returns the worst
    exit code."""
    from sweeplab.sweep.run import Options, run_sweep

    def run_one(sweep: "CleaningSweep", home: Path) -> None:
        try:
            record = run_sweep(sweep, home, Options(resume=resume, fresh=fresh, inline=inline, adopt=adopt), say)
        except (Unfinished, StorageFault, KeyboardInterrupt):
            if fresh:
                say("note: leave --fresh out to go on; it would set this work aside again")
            raise
        show_results(home, sweep.name)
        say_end(record)

    return _each(sweeps, run_one)


def say_end(record: "SweepRecord") -> None:
    """How many of a sweep's trials succeeded.

    Raises:
        Failed: if every one failed.
    """
    from sweeplab.sweep.run import check_some_succeeded

    check_some_succeeded(record)
    if record.state == "finished":
        failed = len(record.failures)
        why = f"; {failed} failed, and `sweeplab status {record.name}` says why" if failed else ""
        say(f"{record.name}: finished, {record.num_succeeded} of {record.planned_trials} succeeded{why}")


def check_sources(sweeps: "list[CleaningSweep]") -> None:
    """All paths that sweeps name and that do not exist, in one message.

    Raises:
        InvalidInput: with every missing path and what belongs there.
    """
    missing = _missing(sweeps)
    if missing:
        listed = "\n".join(f"  {path}: {what}" for path, what in missing.items())
        raise InvalidInput(
            f"{len(missing)} input(s) missing:\n{listed}\n"
            "put them there, or name other places with field.path=...; --smoke runs without them, --dry-run plans"
        )


def _missing(sweeps: "list[CleaningSweep]") -> dict[str, str]:
    """What belongs where nothing is, by path."""
    missing: dict[str, str] = {}
    for sweep in sweeps:
        for field, owner, path in _paths(sweep):
            if not os.path.exists(path):  # False too where that cannot be seen
                missing.setdefault(str(path), f"{_what_belongs(owner)}; field `{field}` of {sweep.name}")
    return missing


def _paths(spec: Any, place: str = "") -> "Iterator[tuple[str, Spec, Path]]":
    """Every path in a spec and its parts, with its field and the part that has it."""
    if isinstance(spec, Spec):
        for name in type(spec).model_fields:
            value, field = getattr(spec, name), f"{place}.{name}".removeprefix(".")
            if isinstance(value, Path):
                yield field, spec, value
            else:
                yield from _paths(value, field)


def _what_belongs(owner: Spec) -> str:
    return {
        "csv": "a CSV file with the columns image (a path relative to the file) and caption",
        "class-folders": "a folder with one folder of images per class",
        "imported": "the CSV file of poisoned pairs that victim.data reads",
        "checkpoint": "a checkpoint of the poisoned model (.pt or .safetensors)",
        "pretrained": "a checkpoint of the same architecture (.pt or .safetensors)",
        "deep-clustering": "a .npy file with one label for each pair",
    }.get(getattr(owner, "kind", ""), "a file")


def show_results(home: Path, name: str) -> None:
    """Print the leaderboard, write the page, say how to open MLflow."""
    from dashboards.build import build_page
    from sweeplab.ranking.leaderboard import render_table
    from sweeplab.sweep_folder import SweepFolder
    from sweeplab.tracking import page_address, server_command

    folder = SweepFolder.of(home, name)
    record, board = _ranked(folder)
    _console().print(render_table(board))
    page = build_page(record, board, folder.page)
    say(f"page:   {page}")
    say(f"MLflow: {server_command(home)}")
    say(f"        then open {page_address(home, name)}")


def _console() -> Console:
    width = None if sys.stdout.isatty() else 120
    return PatientConsole(width=width, highlight=False)


def load_script(path: Path) -> "tuple[CleaningSweep, ...]":
    """The sweeps that a script defines, in order, without running them.

    Those of its tuple `SWEEPS` where it has one, else every variable that holds a sweep of its own, not one that it
    imported; else what it would run: the sweeps that it hands to `main`.
    """
    from sweeplab.experiment import CleaningSweep

    if not path.is_file():
        raise InvalidInput(f"script {path} does not exist")
    sys.path.insert(0, str(path.parent.resolve()))
    variables = runpy.run_path(str(path), run_name="sweeplab_script")
    found = [value for value in variables.get("SWEEPS", variables.values()) if isinstance(value, CleaningSweep)]
    if "SWEEPS" not in variables:
        modules = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
        # By type: to ask an object for its class makes some of them, such as torch's, warn of their own end.
        others = {id(v) for names in modules for v in list(names.values()) if issubclass(type(v), CleaningSweep)}
        found = [value for value in found if id(value) not in others] or _handed_to_main(path) or found
    sweeps = {value.name: value for value in found}
    if not sweeps:
        raise InvalidInput(f"script {path} defines no CleaningSweep")
    return tuple(sweeps.values())


def _handed_to_main(path: Path) -> "list[CleaningSweep]":
    """The sweeps that a script hands to `main`, which does not run them here."""
    global _handed
    before, words = _handed, sys.argv
    _handed, sys.argv = [], [str(path)]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit:
        pass
    finally:
        found, _handed, sys.argv = _handed, before, words
    return found


_handed: "list[CleaningSweep] | None" = None
"""Where `main` leaves a script's sweeps instead of running them; None: it runs them."""


# --- sweeps


@command(app, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(context: typer.Context, script: Path) -> None:
    """Run an experiment script: the same as `python SCRIPT`."""

    if not script.is_file():
        raise InvalidInput(f"script {script} does not exist")
    sys.argv = [str(script), *context.args]
    sys.path.insert(0, str(script.parent.resolve()))
    runpy.run_path(str(script), run_name="__main__")


@command(app)
def resume(
    sweep: str,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="search.trials=64, search.hours=8, resources.concurrent_trials=2, ...")
    ] = None,
    inline: Annotated[bool, typer.Option("--inline", help="One process, no Ray.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be reused, repeated and run.")] = False,
    supervise: Annotated[bool, typer.Option("--supervise", help="Start again until all is finished.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help=ADOPT_HELP)] = False,
) -> int:
    """Go on with a sweep from its own record, without its script; trials, hours and resources may be changed."""

    from sweeplab.experiment import CleaningSweep, apply_overrides
    from sweeplab.sweep_folder import is_set_aside

    folder = _folder(sweep, to_read=False)
    header = folder.header()
    if is_set_aside(folder):
        raise InvalidInput(
            f"{sweep!r} is what --fresh set aside of sweep {header['name']!r}, and cannot go on; `sweeplab resume "
            f"{header['name']}` goes on with that sweep itself"
        )
    if header["name"] != sweep:
        raise InvalidInput(f"sweep {sweep!r} calls itself {header['name']!r}; rename its folder to that first")
    if "imported" in header:
        raise InvalidInput(f"sweep {sweep!r} was imported from {header['imported']['file']}; nothing can go on")
    if not adopt:
        folder.check_own()
    if own := header.get("own_code"):
        raise InvalidInput(
            f"sweep {sweep!r} uses {', '.join(own)} of its own script, which its record does not hold; run that "
            "script again, which goes on with it"
        )
    _folder(sweep).check_is_continued()
    chosen = [apply_overrides(CleaningSweep.model_validate(header["spec"]), overrides or [])]
    if plan:
        return say_plans(chosen, adopt=adopt)
    if supervise and not _is_supervised():
        return _supervise(chosen)
    return run_all(chosen, resume=True, inline=inline, adopt=adopt)


@command(app)
def stop(sweep: str) -> None:
    """End the command that runs a sweep, keeping everything that is committed."""

    from sweeplab.commands import logs as logs_module

    say(logs_module.stop(_folder(sweep)))


@command(app)
def logs(
    sweep: str,
    trial: Annotated[int | None, typer.Argument(help="Only this trial, with its points and tracebacks.")] = None,
) -> None:
    """What happened in a sweep, or in one of its trials."""

    from sweeplab.commands.logs import sweep_log, trial_log

    folder = _folder(sweep)
    say("\n".join(sweep_log(folder) if trial is None else trial_log(folder, trial)))


@command(app)
def rerun(
    sweep: str,
    trials: Annotated[list[int] | None, typer.Argument(help="Their numbers.")] = None,
    pruned: Annotated[bool, typer.Option("--pruned", help="All that rules have stopped, for `audit`.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help=ADOPT_HELP)] = False,
) -> None:
    """Have the next start of a sweep try trials' settings once more, as new trials; the old ones stay on record.

    What a stopping rule had ended is then run to its end.
    """

    from sweeplab.commands.logs import pruned_trials, request_reruns

    if bool(trials) == pruned:
        raise InvalidInput("give either numbers of trials or --pruned")
    folder = _folder(sweep, to_read=False)
    wanted = pruned_trials(folder) if pruned else trials or []
    request_reruns(folder, wanted, adopt=adopt)
    if not wanted:
        say(f"no trial of {sweep} was stopped by a rule and not run to its end since")
        return
    named = f"trial{'s' if len(wanted) > 1 else ''} {', '.join(map(str, wanted))}"
    say(f"{named} will be tried again as new; now `sweeplab resume {sweep}` or the script's command")


@command(app)
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    set_aside: Annotated[bool, typer.Option("--set-aside", help="Sweeps that --fresh set aside too.")] = False,
    victims: Annotated[bool, typer.Option("--victims", help="Victims that no sweep names too.")] = False,
    copies: Annotated[bool, typer.Option("--copies", help="What this node keeps, unused for a day, too.")] = False,
) -> None:
    """Show what takes disk space, and remove what killed commands left behind."""

    from sweeplab.commands.disk import disk_table, find_removable, foreign_folders, readable, remove
    from sweeplab.storage.files import home_folder

    home = home_folder()
    for row in disk_table(home):
        say(f"{readable(row['bytes']):>10}  {row['what']}")
    removable = find_removable(home, set_aside=set_aside, victims=victims, copies=copies)
    for item in removable:
        say(f"{'would go' if dry_run else 'goes':10}  {readable(item.bytes):>10}  {item.path}: {item.why}")
    for path in foreign_folders(home):
        say(f"{'stays':10}  {'':>10}  {path}: it came from elsewhere, so nothing of it and nothing it names goes")
    total = sum(item.bytes for item in removable)
    if dry_run:
        say(f"{len(removable)} things of {readable(total)} would go; run without --dry-run to remove them")
    else:
        say(f"{len(removable)} things removed, {readable(remove(removable))} freed")


@command(app)
def leaderboard(
    sweep: str,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    limit: Annotated[int, typer.Option(help="Rows of the table.")] = 20,
    by: Annotated[
        str, typer.Option(help="`trial`, or `configuration`: mean, deviation and worst over its seeds.")
    ] = "trial",
) -> None:
    """Rank a sweep's trials by the accuracy they keep below the ASR ceiling."""

    from sweeplab.ranking.configurations import group_by_configuration, render_configurations
    from sweeplab.ranking.leaderboard import render_table

    if by not in ("trial", "configuration"):
        raise InvalidInput(f"--by={by!r} is unknown; known: trial, configuration")
    _, board = _ranked(_folder(sweep))
    groups = group_by_configuration(board)
    if as_json:
        values = {**board.to_json(), "configurations": [group.to_json() for group in groups]}
        say(json.dumps(values, indent=1, allow_nan=False))
    elif by == "configuration":
        _console().print(render_configurations(board, groups, limit))
    else:
        _console().print(render_table(board, limit))


@command(app)
def status(sweep: str, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Where a sweep is: finished, running, waiting, failed trials; epochs and seconds spent."""

    values = sweep_status(_folder(sweep))
    if as_json:
        say(json.dumps(values, indent=1, allow_nan=False))
        return
    trials = "  ".join(f"{state} {count}" for state, count in values["trials"].items())
    state = values["state"]
    if state == "finished":
        succeeded = values["trials"]["finished"] + values["trials"]["pruned"]
        state += f", {succeeded} of {values['planned_trials']} succeeded"
    say(f"{values['sweep']}: {state}\n  trials: {trials} (of {values['planned_trials']})")
    say(f"  {values['trial_epochs']:g} trial-epochs in {values['seconds']:.0f} s of work")
    for note in values["notes"]:
        say(f"  {note}")
    costs = values["costs"]
    say(
        f"  {costs['worker_seconds']:.0f} worker-seconds, {costs['gpu_seconds']:.0f} GPU-seconds; "
        f"wasted by failure {costs['wasted_by_failure']:.0f}, by pruning {costs['wasted_by_pruning']:.0f}, "
        f"by repetition {costs['wasted_by_repetition']:.0f}"
    )
    for failure in values["failures"]:
        say(f"  trial {failure['trial']} failed: {failure['reason']}")
    if not values["own"]:
        say("  it came from elsewhere: it is read, and nothing of it is written or removed; --adopt takes it over")


def sweep_status(folder: "SweepFolder") -> dict[str, Any]:
    """What `status --json` prints."""
    from sweeplab.ranking.costs import costs_of

    header, locked = folder.header(), folder.is_locked()
    trials = [folder.trial_record(number, is_driven=locked) for number in folder.trial_numbers()]
    counts = {
        state: sum(t.state == state for t in trials) for state in ("finished", "running", "waiting", "pruned", "failed")
    }
    over = counts["finished"] + counts["pruned"] + counts["failed"]
    counts["waiting"] += max(0, header["planned_trials"] - len(trials))
    done = over >= header["planned_trials"]
    from sweeplab.records import now_ms

    costs = costs_of(folder.events(), trials, now_ms()).to_json()
    return {
        "sweep": folder.name,
        "state": "running" if locked else "finished" if done else "interrupted",
        "planned_trials": header["planned_trials"],
        "notes": list(folder.notes()),
        "older": folder.older(),
        "trials": counts,
        "trial_epochs": costs["trial_epochs"],
        "seconds": sum(trial.seconds for trial in trials),
        "attempts": sum(trial.attempts for trial in trials),
        "costs": costs,
        "holder": folder.holder() if locked else None,
        "failures": [{"trial": t.number, "reason": t.reason} for t in trials if t.state == "failed"],
        "own": folder.is_own(to_read=True),
        "folder": str(folder.path),
    }


@command(app, "list")
def list_(
    as_json: Annotated[bool, typer.Option("--json")] = False,
    scripts: Annotated[bool, typer.Option("--scripts", help="Experiment scripts in ./sweeps instead.")] = False,
) -> None:
    """List the home's sweeps, or the experiment scripts here."""

    if scripts:
        rows: list[dict[str, Any]] = list_scripts(Path("sweeps"))
    else:
        from sweeplab.storage.files import home_folder
        from sweeplab.sweep_folder import sweep_folders

        rows = [sweep_status(folder) for folder in sweep_folders(home_folder(to_read=True))]
    if as_json:
        say(json.dumps(rows, indent=1, allow_nan=False))
    for row in [] if as_json else rows:
        if scripts:
            say(f"{row['script']:40s} {row['title']}")
        else:
            done = f"{row['trials']['finished']}/{row['planned_trials']} trials"
            origin = "" if row["own"] else ", from elsewhere"
            say(f"{row['sweep']:40s} {row['state']:12s} {done}{origin}")
            if row["older"] is not None:
                say(f"  {row['older']}")


def list_scripts(folder: Path) -> list[dict[str, Any]]:
    """Scripts and the first line of their docstring, read without running them."""
    import ast

    rows = []
    for path in sorted(folder.glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        rows.append({"script": str(path), "title": doc.split("\n")[0]})
    return rows


@command(app)
def export(sweep: str, to: Annotated[Path, typer.Option("--to", help="A folder.")]) -> None:
    """Write a sweep's points and trials as CSV and Parquet."""

    from sweeplab.ranking import tables

    try:
        files = tables.export(*_ranked(_folder(sweep)), to)
    except OSError as error:
        raise InvalidInput(f"cannot write to {to} ({error.strerror}); choose another folder") from error
    for path in files:
        say(str(path))


@command(app)
def report(sweep: str) -> None:
    """Write the sweep's page and name it."""

    from dashboards.build import build_page

    folder = _folder(sweep, to_read=False)
    say(str(build_page(*_ranked(folder), folder.page)))


# --- tables: import, replay, audit


@command(app, "import")
def import_(
    file: Annotated[Path, typer.Argument(help="A .csv, .json or .parquet table, one row a point.")],
    sweep: Annotated[str, typer.Option("--sweep", help="Name of the sweep that it becomes.")],
    victim_accuracy: Annotated[float | None, typer.Option(help="A fraction; else epoch 0 says it.")] = None,
    victim_asr: Annotated[float | None, typer.Option(help="A fraction; else epoch 0 says it.")] = None,
    asr_ceiling: Annotated[float, typer.Option(help="A point is cleaned strictly below it.")] = 0.05,
) -> None:
    """Make a sweep of a table that was measured elsewhere.

    Columns: trial, epoch, accuracy, asr (fractions); optional accuracy_k, accuracy_n, asr_k, asr_n, seed; every other
    one is a parameter.
    """

    from sweeplab.commands.import_table import import_table
    from sweeplab.storage.files import home_folder

    folder = import_table(
        file,
        home_folder(),
        sweep,
        victim_accuracy=victim_accuracy,
        victim_asr=victim_asr,
        asr_ceiling=asr_ceiling,
    )
    record = folder.record()
    points = sum(len(trial.points) for trial in record.trials)
    names = ", ".join(record.parameters) or "none"
    say(f"{sweep}: {len(record.trials)} trials, {points} points, parameters {names}")
    say(f"{folder.path}")


PRUNING_HELP = '`default`, or JSON such as {"rules": [{"kind": "backdoor-stays", "after_epochs": 3}]}.'


def pruning_of(text: str) -> Any:
    """Stopping rules from a command's text.

    Raises:
        InvalidInput: for text that is no JSON object, or rules that do not exist.
    """
    from sweeplab.ranking.stopping import Pruning

    if text == "default":
        return Pruning()
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"--pruning={text!r} is neither `default` nor JSON ({error})") from None
    return Pruning.model_validate(values)


@command(app)
def replay(
    sweep: str,
    sampler: Annotated[
        list[str] | None,
        typer.Option(help="tpe, gp, random, qmc, nsga2, grid, shuffled-grid, tpe-unconstrained; may be repeated."),
    ] = None,
    pruning: Annotated[str | None, typer.Option(help=PRUNING_HELP)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Searches of each kind.")] = 20,
    startup_trials: Annotated[
        int | None, typer.Option(min=0, help="As in a search; chosen where it is left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """How many trial-epochs a search would have needed to find the best of a finished or imported sweep.

    Beside it stand the table's own configurations in random order, under the same rules, and random search and TPE
    without constraint, both without rules. A grid is never pruned.
    """

    from sweeplab.search.replay import SHUFFLED, UNCONSTRAINED, Contender, compare, replay_table

    rules = pruning_of(pruning) if pruning is not None else None
    contenders = [Contender(name, rules, startup_trials) for name in sampler or ["tpe"]]
    beside = [Contender(SHUFFLED, rules, startup_trials)]
    beside += [Contender(name, None, startup_trials) for name in ("random", UNCONSTRAINED)]
    contenders += [contender for contender in beside if contender not in contenders]
    found = compare(replay_table(_folder(sweep)), contenders, seeds)
    if as_json:
        say(json.dumps(found, indent=1, allow_nan=False))
        return
    table = found["table"]
    size = f"{table['configurations']} configurations, {table['trial_epochs']:g} trial-epochs"
    say(f"{sweep}: {size}; {found['target']}")
    for row in found["results"]:
        costs = [row["trial_epochs"][name] for name in ("median", "lower_quartile", "upper_quartile")]
        median, low, high = ("never" if cost is None else f"{cost:g}" for cost in costs)
        share = row["share_of_table"]["median"]
        name = row["sampler"] + (" + pruning" if row["pruning"] else "")
        say(
            f"  {name:30s} {median} trial-epochs [{low}, {high}]"
            + ("" if share is None else f", {share:.0%} of the table")
            + f"; {row['arrived']} of {row['seeds']} arrived"
        )


@command(app)
def audit(
    sweep: str,
    pruning: Annotated[str, typer.Option(help=PRUNING_HELP)] = "default",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What stopping rules cost and saved: of a pruned sweep what its stopped trials became in reruns, of another what
    the rules would have done."""

    from sweeplab.search import audit as audit_module

    record = _folder(sweep).record()
    is_pruned = audit_module.was_pruned(record)
    if is_pruned and pruning != "default":
        raise InvalidInput(
            f"--pruning={pruning}: trials of sweep {sweep!r} were stopped by its own rules, whose decisions are "
            "what can be audited; leave the flag out, or audit a sweep without pruning"
        )
    found = audit_module.audit_decisions(record) if is_pruned else audit_module.audit(record, pruning_of(pruning))
    if as_json:
        say(json.dumps(found, indent=1, allow_nan=False))
        return
    if is_pruned:
        _say_decisions(found)
        return
    say(f"{sweep}: {found['pruned']} of {found['trials']} trials would have been stopped early")
    say(
        f"  of those, {found['would_have_been_feasible']} would have become cleaned later on, and "
        f"{found['would_have_become_best']} would have become the best"
    )
    say(f"  trial-epochs saved: {found['trial_epochs_saved']:g} of {found['trial_epochs']:g}")
    best, kept = found["best_retention"], found["best_retention_with_pruning"]
    say(f"  best retention {_share(best)}, with pruning {_share(kept)}")


def _say_decisions(found: dict[str, Any]) -> None:
    name, left = found["sweep"], found["pruned"] - found["run_to_their_end"]
    say(
        f"{name}: {found['pruned']} of {found['trials']} trials were stopped early, "
        f"{found['trial_epochs_saved']:g} trial-epochs saved; best retention {_share(found['best_retention'])}"
    )
    if found["run_to_their_end"]:
        say(
            f"  of the {found['run_to_their_end']} that were run to their end since, "
            f"{found['would_have_been_feasible']} became cleaned later on, and "
            f"{found['would_have_become_best']} became better than the best"
        )
    for row in found["decisions"]:
        ending = "not run to its end"
        if row["rerun"] is not None:
            ending = f"trial {row['rerun']} " + (
                f"keeps {row['retention']:.1%}" if row["retention"] is not None else "was never cleaned"
            )
            ending += "" if row["same_until_stop"] else " (and differs before the stop: this machine is not exact)"
        say(f"  trial {row['trial']}: {row['reason']} (epoch {row['epoch']:g}); {ending}")
    if left:
        say(f"  {left} could still become anything: `sweeplab rerun {name} --pruned` runs them to their end")


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _ranked(folder: "SweepFolder") -> "tuple[SweepRecord, Leaderboard]":
    from sweeplab.ranking.leaderboard import rank_trials

    record = folder.record()
    return record, rank_trials(record, folder.outcomes)


def _folder(sweep: str, *, to_read: bool = True) -> "SweepFolder":
    from sweeplab.storage.files import home_folder
    from sweeplab.sweep_folder import SweepFolder

    return SweepFolder.of(home_folder(to_read=to_read), sweep)


# --- single runs

Overrides = Annotated[list[str] | None, typer.Argument(help="field.subfield=value")]
Only = Annotated[str | None, typer.Option(help="Which sweep of the script; needed where it has several.")]


def _one_sweep(script: Path, only: str | None, overrides: list[str], smoke: bool) -> "CleaningSweep":
    sweeps = select(load_script(script), [only] if only else [])
    if len(sweeps) > 1:
        raise InvalidInput(f"{script} has several sweeps; choose with --only: {', '.join(s.name for s in sweeps)}")
    return resolve(sweeps[0], overrides, None, smoke)


@command(app)
def pretrain(
    script: Path,
    overrides: Overrides = None,
    only: Only = None,
    smoke: Annotated[bool, typer.Option("--smoke")] = False,
    inline: Annotated[bool, typer.Option("--inline")] = False,
) -> None:
    """Pre-train the victim of a script's sweep, and nothing else. `victim.poisoning.rate=0` makes its unpoisoned
    twin."""

    from sweeplab.experiment import PretrainedVictim, SelectedTrial
    from sweeplab.storage.files import home_folder
    from sweeplab.sweep import prepare as prepare_module
    from sweeplab.sweep import readiness
    from sweeplab.sweep import run as run_module
    from sweeplab.sweep import victims as victims_module
    from sweeplab.worker.input_paths import parts_of

    sweep = _one_sweep(script, only, overrides or [], smoke)
    while isinstance(sweep.victim, SelectedTrial):
        sweep = sweep.victim.sweep
    if not isinstance(sweep.victim, PretrainedVictim):
        raise InvalidInput(f"{sweep.name}: its victim is a given checkpoint, {sweep.victim.path}; nothing to pre-train")
    check_sources([sweep])
    home = home_folder()
    prepared = prepare_module.prepare(sweep, home)
    say_notes(prepared.notes)
    sweep = prepared.sweep
    assert isinstance(sweep.victim, PretrainedVictim)
    readiness.check_storages(prepared, home, runs_trials=False)
    with run_module.workplace(sweep, inline):
        reads = parts_of(sweep)
        if not inline:
            readiness.make_ready_nodes(prepared, reads, None, home, say)
        run = victims_module.pretrain_victim(
            sweep.victim, prepared.victim_digest, home, inline=inline, say=say, reads=reads
        )
    selected = victims_module.select_epoch(sweep.victim, run)
    _say_measurement(selected.measurement)
    say(f"weights: {run.checkpoint_path(selected)}")


@command(app)
def clean(
    script: Path,
    settings: Annotated[list[str] | None, typer.Argument(help="parameter=value, field.subfield=value")] = None,
    only: Only = None,
    smoke: Annotated[bool, typer.Option("--smoke")] = False,
    inline: Annotated[bool, typer.Option("--inline")] = False,
) -> int:
    """Clean a script's victim with one setting, no search: `sweeplab clean sweeps/quickstart.py learning_rate=6e-3`."""

    from sweeplab.experiment import CleaningSweep
    from sweeplab.search_space import Grid
    from sweeplab.specs import digest_of

    given = settings or []
    fields = [s for s in given if "." in s.partition("=")[0] or s.partition("=")[0] in CleaningSweep.model_fields]
    sweep = _one_sweep(script, only, fields, smoke)
    params = dict(_parameter(text) for text in given if text not in fields)
    axes = {name: (value,) for name, value in params.items()} or {"learning_rate": (sweep.optimization.learning_rate,)}
    single = sweep.replace(
        grid=Grid(axes=axes, source="given on the command line"), search=sweep.search.replace(sampler="grid")
    )
    name = f"{sweep.name[:60]}-single-{digest_of(single.canonical())[:8]}"
    return run_all([single.replace(name=name)], inline=inline)


def _parameter(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise InvalidInput(f"{text!r} is not of the form parameter=value")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):  # also of a number of thousands of digits
        return name, value


CLASSES = "`folders`: ImageNet's ids by their names, others as they are; `imagenet`: ids alone, others are refused."


@command(app)
def evaluate(
    checkpoint: Path,
    script: Annotated[
        Path | None, typer.Option(help="Take architecture, test set, trigger and target from it.")
    ] = None,
    only: Only = None,
    architecture: Annotated[str | None, typer.Option(help="open_clip name, for checkpoints that do not say.")] = None,
    test: Annotated[Path | None, typer.Option(help="Folder with one folder of images per class.")] = None,
    classes: Annotated[str, typer.Option(help=CLASSES)] = "folders",
    attack: Annotated[str | None, typer.Option(help="By kind: badnet, blended, wanet, ...")] = None,
    attack_fields: Annotated[str, typer.Option(help='Such as {"patch_size": 16}.')] = "{}",
    target: Annotated[str | None, typer.Option(help="Target label, by name.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Accuracy and ASR of one checkpoint, with 95 % intervals."""

    from sweeplab.commands.evaluate import EvaluationRequest, evaluate_checkpoint, notes_of

    request = EvaluationRequest(
        checkpoint=checkpoint,
        sweep=_one_sweep(script, only, [], False) if script else None,
        architecture=architecture,
        test=test,
        classes=classes,
        attack=attack,
        attack_fields=attack_fields,
        target=target,
    )
    say_notes(notes_of(request))
    _say_measurement(evaluate_checkpoint(request), as_json=as_json)


@command(app)
def examine(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints, or folders of a victim or a trial.")],
    script: Annotated[
        Path | None, typer.Option(help="Take architecture, test set, trigger and pairs from its sweep.")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(
            help="panel, probe, pairs, retrieval or map; may be repeated. If left out: of one checkpoint all for which "
            "the script has what they need, pairs of several, panel without a script."
        ),
    ] = None,
    only: Only = None,
    smoke: Annotated[bool, typer.Option("--smoke")] = False,
    architecture: Annotated[str | None, typer.Option(help="open_clip name; without a script.")] = None,
    test: Annotated[Path | None, typer.Option(help="Folder with one folder per class; without a script.")] = None,
    classes: Annotated[str, typer.Option(help=CLASSES)] = "folders",
    train: Annotated[
        Path | None, typer.Option(help="Folder with one folder per class, on which the linear probe is fitted.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for tables (detection, map, dynamics).")] = None,
) -> None:
    """Measure more of checkpoints: a panel of triggers, a linear probe, CLIPScores and detection, retrieval, a map.

    Several checkpoints, or a folder that holds some, give CLIPScores, detection, safe sets and modality gap over the
    epochs. Without a script, for a model whose attack nobody knows: accuracy, and a panel that guesses the targets.
    Prints JSON.
    """

    from sweeplab.commands import examine as examine_module
    from sweeplab.commands.evaluate import EvaluationRequest, notes_of
    from sweeplab.data.class_folders import ClassFolders

    found: dict[str, Any]
    if script is None:
        if train is not None:
            raise InvalidInput("--train is for the linear probe, which needs a sweep's test set; give --script SCRIPT")
        if len(checkpoints) > 1 or checkpoints[0].is_dir():
            raise InvalidInput("several checkpoints are compared on a sweep's pairs; give --script SCRIPT")
        request = EvaluationRequest(checkpoints[0], None, architecture, test, classes, None, "{}", None)
        say_notes(notes_of(request))
        found = examine_module.examine_unknown(request, what or ["panel"])
        say(json.dumps(found, indent=1))
        return
    if architecture is not None or test is not None:
        raise InvalidInput("--architecture and --test go without --script, which names both; leave them out")
    sweep = _one_sweep(script, only, [], smoke)
    check_sources([sweep])
    # Folders are named as those of the test set are.
    names = getattr(sweep.evaluation.test, "class_names", "folders")
    own = ClassFolders(path=train, class_names=names) if train is not None else None
    if len(checkpoints) == 1 and not checkpoints[0].is_dir():
        found = examine_module.examine_checkpoint(sweep, checkpoints[0], what, to, own)
    else:
        found = examine_module.examine_checkpoints(sweep, checkpoints, what or ["pairs"], to, own)
    say(json.dumps(found, indent=1))


def _say_measurement(measurement: Any, *, as_json: bool = False) -> None:
    from sweeplab.ranking.intervals import wilson

    low, high = wilson(measurement.accuracy_k, measurement.accuracy_n)
    values: dict[str, Any] = {
        "accuracy": measurement.accuracy,
        "accuracy_interval": [low, high],
        "asr": measurement.asr,
    }
    if measurement.top5_accuracy is not None:
        values["top5_accuracy"] = measurement.top5_accuracy
    counts = f"({measurement.accuracy_k}/{measurement.accuracy_n})"
    text = f"accuracy {measurement.accuracy:.2%}  [{low:.2%}, {high:.2%}]  {counts}"
    if measurement.asr is not None:
        low, high = wilson(measurement.asr_k, measurement.asr_n)
        values["asr_interval"] = [low, high]
        text += f"\nASR      {measurement.asr:.2%}  [{low:.2%}, {high:.2%}]  ({measurement.asr_k}/{measurement.asr_n})"
    else:
        text += "\nASR      not measured: no attack was named, so nothing is certified"
    values["counts"] = {name: getattr(measurement, name) for name in ("accuracy_k", "accuracy_n", "asr_k", "asr_n")}
    say(json.dumps(values, indent=1) if as_json else text)


@command(app)
def doctor(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Check this machine: versions, cores, GPUs, memory, disk, home, Ray, browser."""

    from sweeplab.commands.doctor import examine

    findings = examine()
    if as_json:
        say(json.dumps([finding.to_json() for finding in findings], indent=1))
    else:
        for finding in findings:
            say(f"{finding.mark} {finding.subject:14s} {finding.text}")
    if any(finding.level == "fault" for finding in findings):
        raise InvalidInput("the faults above stop sweeps from running")


# --- attacks

attack_app = typer.Typer(no_args_is_help=True, help="Look at triggers, and exchange poison plans.")
app.add_typer(attack_app, name="attack")


@command(attack_app, "preview")
def attack_preview(
    attack: Annotated[str, typer.Argument(help="A kind (badnet, wanet, ...), or a JSON object with `kind`.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    fields: Annotated[list[str] | None, typer.Option("--set", help="field=value; may be repeated.")] = None,
    to: Annotated[Path, typer.Option("--to", help="The picture to write.")] = Path("preview.png"),
    image_size: Annotated[int, typer.Option(help="Side at which the model sees images, pixels.")] = 224,
    seed: int = 0,
) -> None:
    """Write clean, triggered and magnified difference side by side."""

    from sweeplab.attacks.preview import preview

    picture = preview(attack_of(attack, fields or []), images, image_size=image_size, seed=seed)
    try:
        picture.save(to)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"--to={to} cannot be written ({error}); give a .png file in a folder of yours") from None
    say(f"clean, triggered, difference: {to}")


@command(attack_app, "list")
def attack_list() -> None:
    """All attacks, with their fields and defaults; `targeted-images` stands in place of a whole poisoning."""

    from sweeplab.attacks import ATTACKS
    from sweeplab.attacks.targeted import TargetedImages

    for member in (*ATTACKS, TargetedImages):
        fields = ", ".join(
            f"{name}={'required' if field.is_required() else field.default}"
            for name, field in member.model_fields.items()
            if name != "kind"
        )
        say(f"{member.model_fields['kind'].default:18} {fields}")


@command(attack_app, "badclip")
def attack_badclip(
    script: Annotated[Path, typer.Argument(help="Its sweep names architecture, pairs and target.")],
    checkpoint: Annotated[Path, typer.Argument(help="A clean model of that architecture.")],
    to: Annotated[Path, typer.Option("--to", help="The patch, a .png file.")],
    fields: Annotated[list[str] | None, typer.Option("--set", help="field=value of the optimisation.")] = None,
    only: Only = None,
    smoke: Annotated[bool, typer.Option("--smoke")] = False,
) -> None:
    """Optimise BadCLIP's patch against a clean model; stamp it with the attack `image` at position `center`."""

    from sweeplab.attacks.badclip import BadCLIP
    from sweeplab.commands.badclip_patch import optimise_for

    sweep = _one_sweep(script, only, [], smoke)
    check_sources([sweep])
    settings = BadCLIP.model_validate(dict(_parameter(field) for field in fields or []))
    optimise_for(sweep, checkpoint, settings, to, say)
    say(f"patch: {to}; stamp it with ImageTrigger(path={str(to)!r}, position='center')")


@command(attack_app, "export")
def attack_export(
    script: Path,
    to: Annotated[Path, typer.Option("--to", help="A folder that does not exist yet.")],
    overrides: Overrides = None,
    only: Only = None,
    smoke: Annotated[bool, typer.Option("--smoke")] = False,
) -> None:
    """Write the poisoned pairs of a script's victim in the layout of CleanCLIP's scripts."""

    from sweeplab.attacks.exchange import export_poisoned_csv
    from sweeplab.experiment import PretrainedVictim
    from sweeplab.storage.files import home_folder
    from sweeplab.sweep.prepare import machine_for
    from sweeplab.worker.inputs import victim_table

    sweep = _one_sweep(script, only, overrides or [], smoke)
    victim = sweep.original_victim()
    if not isinstance(victim, PretrainedVictim):
        raise InvalidInput(f"{sweep.name}: its victim is a given checkpoint, which has no poison plan")
    check_sources([sweep])
    table, plan = victim_table(victim, machine_for(sweep, home_folder()))
    written = export_poisoned_csv(table, plan, to, image_size=sweep.victim.architecture.image_size)
    say(f"{len(plan.indices)} poisoned and {len(table) - len(plan.indices)} clean pairs: {written}")


def attack_of(text: str, fields: list[str]) -> Any:
    """An attack from its kind or JSON and `field=value` texts."""
    from sweeplab.attacks import ATTACKS
    from sweeplab.specs import kinds

    try:
        values = json.loads(text) if text.lstrip().startswith("{") else {"kind": text}
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"attack {text!r} is no JSON object ({error})") from None
    values |= dict(_parameter(field) for field in fields)
    for member in ATTACKS:
        if member.model_fields["kind"].default == values.get("kind"):
            return member.model_validate(values)
    raise InvalidInput(f"attack {values.get('kind')!r} is unknown; known: {', '.join(kinds(ATTACKS))}")


if __name__ == "__main__":
    app()
