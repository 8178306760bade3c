"""Experiment scripts: `main`, which they end with, and how commands load their sweeps."""

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeplab.cli.program import (
    SWEEPS,
    Adopt,
    Inline,
    Overrides,
    Plan,
    Quiet,
    Script,
    Smoke,
    Supervise,
    Verbose,
    app,
    command,
    say,
    say_notes,
    set_volume,
)
from sweeplab.cli.running import start
from sweeplab.specs import DONE, InvalidInput

if TYPE_CHECKING:
    from sweeplab.experiment import CleaningSweep


def main(*sweeps: "CleaningSweep") -> None:
    """Run a script's sweeps one after the other, and exit with the worst of their codes: 2 over 1 over 75."""
    if _handed is not None:  # a command reads the script's sweeps; see `_handed_to_main`
        _handed.extend(sweeps)
        raise SystemExit(DONE)

    def script(
        overrides: Overrides = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print the plan and its costs; needs no data.")
        ] = False,
        smoke: Smoke = False,
        resume: Annotated[
            bool, typer.Option("--resume", help="Refuse to start where there is nothing to resume.")
        ] = False,
        fresh: Annotated[
            bool, typer.Option("--fresh", help="Set an existing sweep of this name aside and start over.")
        ] = False,
        search: Annotated[str | None, typer.Option(help="Sampler: tpe, gp, nsga2, random, qmc or grid.")] = None,
        inline: Inline = False,
        only: Annotated[
            list[str] | None, typer.Option(help="Run only the sweep of this name; may be repeated.")
        ] = None,
        plan: Plan = False,
        supervise: Supervise = False,
        adopt: Adopt = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> int:
        set_volume(quiet=quiet, verbose=verbose)
        if resume and fresh:
            raise InvalidInput("--resume and --fresh exclude each other; give one")
        # Overrides are resolved for all sweeps first: a wrong one is refused before any sweep begins.
        chosen = [resolve(sweep, overrides or [], search, smoke) for sweep in select(sweeps, only or [])]
        if dry_run:
            from sweeplab.commands import estimate

            for sweep in chosen:  # without a look at data or home
                say("\n".join(estimate.plan(sweep)))
            return DONE
        from sweeplab.sweep.run import Options

        options = Options(resume=resume, fresh=fresh, inline=inline, adopt=adopt)
        return start(chosen, options, plan=plan, supervised=supervise)

    script_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command(script_app, help=sys.modules["__main__"].__doc__ or "Run this script's sweeps.")(script)
    script_app()


@command(app, rich_help_panel=SWEEPS, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(context: typer.Context, script: Script) -> None:
    """Run an experiment script: the same as `python SCRIPT`."""
    _check_exists(script)
    sys.argv = [str(script), *context.args]
    sys.path.insert(0, str(script.parent.resolve()))
    runpy.run_path(str(script), run_name="__main__")


def load_script(path: Path) -> "tuple[CleaningSweep, ...]":
    """The sweeps that a script defines, in order, without running them.

    Where the script has a tuple `SWEEPS`, those in it. Else the sweeps that its variables hold, without those that it
    imported from other modules. Where there are none, the sweeps that it hands to `main`.
    """
    from sweeplab.experiment import CleaningSweep

    _check_exists(path)
    sys.path.insert(0, str(path.parent.resolve()))
    variables = runpy.run_path(str(path), run_name="sweeplab_script")
    found = [value for value in variables.get("SWEEPS", variables.values()) if isinstance(value, CleaningSweep)]
    if "SWEEPS" not in variables:
        modules = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
        # `isinstance` would read each object's `__class__`, at which some, such as torch's, warn of their deprecation.
        others = {id(v) for names in modules for v in list(names.values()) if issubclass(type(v), CleaningSweep)}
        found = [value for value in found if id(value) not in others] or _handed_to_main(path) or found
    sweeps = {value.name: value for value in found}
    if not sweeps:
        raise InvalidInput(f"script {path} defines no CleaningSweep")
    return tuple(sweeps.values())


def _check_exists(script: Path) -> None:
    if not script.is_file():
        raise InvalidInput(f"script {script} does not exist")


def _handed_to_main(path: Path) -> "list[CleaningSweep]":
    """The sweeps that a script hands to `main`: it runs as if by `python SCRIPT`, and `main` only takes them down."""
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
"""Where `main` puts a script's sweeps instead of running them; None: it runs them."""


def select(sweeps: "tuple[CleaningSweep, ...]", only: list[str]) -> "list[CleaningSweep]":
    """The sweeps of a script that were asked for."""
    names = [sweep.name for sweep in sweeps]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InvalidInput(f"--only {unknown[0]}: the script has no such sweep; it has {', '.join(names)}")
    return [sweep for sweep in sweeps if not only or sweep.name in only]


def resolve(sweep: "CleaningSweep", overrides: list[str], search: str | None, smoke: bool) -> "CleaningSweep":
    """A sweep with a command's changes. A sampler other than the script's gives it a name of its own."""
    from sweeplab.experiment import apply_overrides, smoke_sweep

    sweep = apply_overrides(sweep, overrides)
    if search is not None and search != sweep.search.sampler:
        changes: dict[str, Any] = {"search": sweep.search.replace(sampler=search)}
        if not any(override.startswith("name=") for override in overrides):
            changes["name"] = f"{sweep.name}-{search}"
        sweep = sweep.replace(**changes)
    if not smoke:
        return sweep
    # The miniature has its own values of these fields, so the user's are applied again.
    small = smoke_sweep(sweep)
    again = ("epochs=", "search.", "resources.", *(("victim.epochs=",) if hasattr(small.victim, "epochs") else ()))
    small = apply_overrides(small, [text for text in overrides if text.startswith(again)])
    lost = [text for text in overrides if not text.startswith("name=") and not _is_in(small, text)]
    if lost:
        say_notes([f"--smoke sets these fields itself, and leaves out {', '.join(lost)}"])
    return small


def _is_in(sweep: "CleaningSweep", override: str) -> bool:
    """Whether a sweep has the value of an override."""
    from sweeplab.experiment import apply_overrides

    try:
        return apply_overrides(sweep, [override]) == sweep
    except InvalidInput:  # the miniature has no such field
        return False


def one_sweep(script: Path, only: str | None, overrides: list[str], smoke: bool) -> "CleaningSweep":
    """The sweep of a script that a command works on, with the command's changes.

    Raises:
        InvalidInput: if the script has several and `only` names none.
    """
    sweeps = select(load_script(script), [only] if only else [])
    if len(sweeps) > 1:
        raise InvalidInput(f"{script} has several sweeps; choose with --only: {', '.join(s.name for s in sweeps)}")
    return resolve(sweeps[0], overrides, None, smoke)
