"""The `sweeplab` program: its exit codes, what it prints, and how a function becomes a command."""

import contextlib
import errno
import inspect
import json
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial, wraps
from inspect import Parameter
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, NoReturn, ParamSpec, TextIO

import typer
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from sweeplab.execution.watchdog import exit_now, is_left_behind, signals_as_interrupts
from sweeplab.specs import BAD_INPUT, DONE, FAULT, INTERRUPTED, Failed, InvalidInput, StorageFault, Unfinished
from sweeplab.terminal import PatientConsole, PatientStream, encodable, printable, without_reader, wrapped
from sweeplab.versions import environment, installed_version

logger = logging.getLogger("sweeplab")

# --- output


def say(text: str) -> None:
    """Print a line at once, so that a job's log shows it; on a terminal, lines are broken between words. Where nobody
    reads any more (`| head`), the line and all further output are dropped: the work goes on without a reader."""
    _print(text, sys.stdout)


def _print(text: str, stream: TextIO, *, wraps: bool = True) -> None:
    text = printable(text)
    if wraps and stream.isatty():
        text = wrapped(text, shutil.get_terminal_size().columns)
    try:
        print(encodable(text, stream.encoding), file=PatientStream(stream), flush=True)
    except BrokenPipeError:
        without_reader(stream)


class NewsHandler(logging.Handler):
    """Prints what the steps of a command tell of their progress."""

    is_beside_json = False
    """Whether stdout is for JSON alone; then news go to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message as a line."""
        with contextlib.suppress(ValueError, OSError):  # the terminal may be gone
            _print(record.getMessage(), sys.stderr if self.is_beside_json else sys.stdout)


NEWS = NewsHandler()


def say_json(values: Any) -> None:
    """Print a result as strict JSON, which has no NaN and no infinity."""
    _print(json.dumps(values, indent=1, allow_nan=False), sys.stdout, wraps=False)


def say_error(text: str) -> None:
    """Print an error message on stderr."""
    _print(f"error: {text}", sys.stderr)


def say_notes(notes: Sequence[str]) -> None:
    """Print what the user should see before anything runs; on stderr, because stdout may be JSON."""
    for note in notes:
        _print(f"note: {note}", sys.stderr)


def say_table(table_of: Callable[[int], Table]) -> None:
    """Print a table that is made for a width: the terminal's, or 120 columns where stdout is none."""
    console = PatientConsole(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table_of(console.width))


def check_page(to: Path) -> None:
    """Refuse a page's file that cannot be written, before the work for it is done; its folders may be missing.

    Raises:
        InvalidInput: for another ending than .html, a folder, or a place in which no file can be made.
    """
    if to.suffix != ".html":
        raise InvalidInput(f"--to={to} must be a file that ends in .html")
    if to.is_dir():
        raise InvalidInput(f"--to={to} is a folder; name a file in it")
    above = next(parent for parent in to.absolute().parents if os.path.lexists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "cannot be written to" if above.is_dir() else "is no folder"
        raise InvalidInput(f"--to={to}: {above} {what}; name another place")


# --- exit codes

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""Where the disk is full, or has failed or turned read-only, under whatever writes."""

EXPLAINED = (InvalidInput, Unfinished, StorageFault, Failed, FloatingPointError)
"""Errors whose message says it all, and which have an exit code; any other one is a defect."""


def worst(codes: list[int]) -> int:
    """The exit code of several pieces of work: 2 over 1 over 75."""
    return max(codes, key=(DONE, INTERRUPTED, FAULT, BAD_INPUT).index)


def guarded(work: Callable[[], int | None]) -> int:
    """Run a command and return its exit code: what `work` returns (None: 0), or what its error means. 2 is bad input,
    75 is interrupted and resumable, 1 is anything else."""
    # Have the progress of what this command does printed; a handler that is there already is not added again.
    logger.addHandler(NEWS)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    # After a signal nothing that was begun is waited for: a scheduler leaves seconds, and the ledger makes up for it.
    signals: list[int] = []
    try:
        with signals_as_interrupts() as signals:
            return exit_code(work)
    except KeyboardInterrupt:
        code = interrupted()
        return exit_now(code) if signals else code


def exit_code(work: Callable[[], int | None]) -> int:
    """Like `guarded`, but a signal passes through: it ends the whole command, and this may be one part of it."""
    try:
        return work() or DONE
    except Exception as error:  # noqa: BLE001 - the last resort: shown in full, exit code 1
        return explained(error)


def explained(error: Exception) -> int:
    """Print an error, with a traceback where it is a defect; returns the exit code that it means."""
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:  # of whatever was just being written
        error = StorageFault(
            f"{error.filename or 'a file'}: {error.strerror}; mend it, then run the same command again"
        )
    is_defect = not isinstance(error, EXPLAINED)
    if is_defect or logger.isEnabledFor(logging.DEBUG):
        sys.stderr.write(printable("".join(traceback.format_exception(error))))
    if is_defect:
        return FAULT
    say_error(str(error))
    if isinstance(error, InvalidInput):
        return BAD_INPUT
    return INTERRUPTED if isinstance(error, (Unfinished, StorageFault)) else FAULT


def interrupted() -> int:
    """Say that a signal ended the command; returns the exit code."""
    say_error("interrupted; everything so far is kept, and the same command goes on")
    return INTERRUPTED


def end(code: int) -> None:
    """End the process with an exit code, even where threads are left behind."""
    if is_left_behind():
        exit_now(code)
    raise typer.Exit(code)


_hook_before = sys.excepthook


def _explain(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print one message and exit with 2 where a script raised InvalidInput outside a command."""
    is_interactive = hasattr(sys, "ps1") or sys.flags.interactive
    if is_interactive or not issubclass(kind, InvalidInput):
        _hook_before(kind, error, trace)
        return
    say_error(str(error))
    sys.stdout.flush()
    os._exit(BAD_INPUT)  # an exception hook cannot set the exit code otherwise


# Set on import, not in `main`: a script builds its specs before it calls `main`, and bad input there, too, has to end
# with one message. Nothing but the import of `main` comes early enough.
sys.excepthook = _explain

# --- commands

UsageError = typer.BadParameter.__base__
"""What the parser raises; the copy of click that typer uses, which it may have within itself."""
assert UsageError is not None


def one_message(parse: Callable[[], Any]) -> NoReturn:
    """Have words parsed and run, and exit with the code; with one message, as of any other bad input, where they do not
    make a command."""
    try:
        code = parse()
    except UsageError as error:  # type: ignore[misc]
        context, rule = error.ctx, error.format_message()
        if not rule or context is None or "NoArgs" in type(error).__name__:
            error.show()
        else:
            path, rule = context.command_path, f"{rule[0].lower()}{rule[1:].rstrip('.')}"
            if rule in ("missing argument 'sweep'", "missing argument 'names'"):
                rule += ", of those that `sweeplab list` shows"
            say_error(f"{path}: {rule}{'' if rule.endswith('?') else ';'} `{path} --help` lists what there is")
        sys.exit(BAD_INPUT)
    except typer.Abort:
        sys.exit(FAULT)
    sys.exit(code if isinstance(code, int) else DONE)


class OneMessage:
    """What group and command have in common."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **named: Any) -> Any:
        """See `one_message`."""
        parse = partial(super().main, *arguments, standalone_mode=False, **named)  # type: ignore[misc]
        return one_message(parse) if standalone_mode else parse()


class OneMessageGroup(OneMessage, TyperGroup):
    """Commands, with errors of usage in one message."""


class OneMessageCommand(OneMessage, TyperCommand):
    """A command, with errors of usage in one message."""


def paragraphs(text: str) -> str:
    """A docstring as help that fits any width: a paragraph in one line, and code and lists in theirs."""
    parts = re.split(r"\n[ \t]*\n", inspect.cleandoc(text))
    return "\n\n".join(dedent(part) if part.startswith(" ") else re.sub(r"\n(?![ *-])", " ", part) for part in parts)


HELP = {"help_option_names": ["-h", "--help"]}
"""Settings of every command."""


class Program(typer.Typer):
    """Commands of which only the one that is asked for is made: for all of them typer takes 0.02 s."""

    def __call__(self, args: Sequence[str] | None = None, **settings: Any) -> Any:
        """Run a command line, the process's own where none is given; all are made unless it begins with a command."""
        words = sys.argv[1:] if args is None else args
        name = words[0] if words else None
        asked = copy(self)
        if found := [one for one in self.registered_commands if one.name == name]:
            asked.registered_commands, asked.registered_groups = found, []
        return typer.Typer.__call__(asked, args, **settings)


app = Program(
    cls=OneMessageGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    help="Clean backdoored CLIP models in sweeps, ranked by the accuracy they keep below 5 % ASR.",
    epilog="Everything lies in one folder, the home: $SWEEPLAB_HOME, or ~/sweeplab where that is not set.",
)

# The groups in which `sweeplab --help` lists the commands.
SWEEPS, RESULTS, MODELS, SURROUNDINGS = "Run sweeps", "Look at results", "Single models", "Data, attacks, machine"

P = ParamSpec("P")
"""Parameters of a command."""

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print results and errors, and no progress.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show where in the code an error arose, too.")]
VOLUME = {"quiet": Quiet, "verbose": Verbose}
"""Parameters that all commands have."""


def command(
    to: typer.Typer, name: str | None = None, *, prints_json: bool = False, **settings: Any
) -> Callable[[Callable[P, int | None]], Callable[P, int | None]]:
    """Make a function a command of a typer app, and leave the function itself as it is.

    Its parameters become the command's parameters, and its docstring the help text. The process ends with the exit
    code that the function returns (None: 0), or that its error means. Where stdout is JSON, because the command prints
    nothing else or was asked to by its parameter `as_json`, news go to stderr. Every command has -q and -v too.
    """

    def register(work: Callable[P, int | None]) -> Callable[P, int | None]:
        @wraps(work)
        def run_and_end(*arguments: P.args, **named: P.kwargs) -> None:
            volume = {name: bool(named.pop(name)) for name in VOLUME}
            NEWS.is_beside_json = prints_json or bool(named.get("as_json"))

            def run() -> int | None:
                if any(volume.values()):  # else that of the options before the command stays
                    set_volume(**volume)
                return work(*arguments, **named)

            end(guarded(run))

        own = inspect.signature(work)
        more = [Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=VOLUME[name]) for name in VOLUME]
        run_and_end.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
        settings["context_settings"] = {**HELP, **settings.get("context_settings", {})}
        settings["help"] = paragraphs(settings.get("help") or inspect.getdoc(work) or "")
        to.command(name or work.__name__, cls=OneMessageCommand, **settings)(run_and_end)
        return work

    return register


def set_volume(*, quiet: bool, verbose: bool) -> None:
    """Say how much a command tells of its progress.

    Raises:
        InvalidInput: if both are asked for.
    """
    if quiet and verbose:
        raise InvalidInput("-q and -v exclude each other; give one")
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def _say_version(wanted: bool) -> None:
    if wanted:
        others = ", ".join(f"{name} {version}" for name, version in environment().items() if name != "sweeplab")
        say(f"sweeplab {installed_version('sweeplab')} ({others})")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Print SweepLab's version and others."),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Take the options that stand before the command."""
    if code := guarded(partial(set_volume, quiet=quiet, verbose=verbose)):
        end(code)


# Parameters that several commands have.
SweepName = Annotated[str, typer.Argument(help="Name of a sweep of the home; `sweeplab list` shows them.")]
Script = Annotated[
    Path,
    typer.Argument(
        help="A script of sweeps, such as sweeps/quickstart.py; or the name of a sweep of the home, as it was run."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="field.subfield=value: other values for fields of the sweep.")
]
Only = Annotated[str | None, typer.Option(help="Which sweep of the script; needed where it has several.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Run the same in miniature, on built-in data.")]
Inline = Annotated[bool, typer.Option("--inline", help="Run in one process, without Ray: for a debugger.")]
Plan = Annotated[bool, typer.Option("--plan", help="Say what would be reused, repeated and run; run nothing.")]
Supervise = Annotated[bool, typer.Option("--supervise", help="Start again and again until all is finished.")]
Adopt = Annotated[bool, typer.Option("--adopt", help="Take over a sweep that was made elsewhere and copied here.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
