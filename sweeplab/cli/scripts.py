"""Experiment scripts: `main`, which they end with, and how commands load their sweeps."""

import contextlib
import runpy
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeplab.cli.program import (
    EXPLAINED,
    SWEEPS,
    Adopt,
    AsJson,
    Inline,
    Overrides,
    Plan,
    Script,
    Smoke,
    Supervise,
    app,
    command,
    say,
    say_notes,
)
from sweeplab.cli.running import NO_JSON, list_of_results, start
from sweeplab.records import name_with
from sweeplab.specs import DONE, InvalidInput, first_line
from sweeplab.storage.home import home_folder
from sweeplab.storage.ownership import storages_in_words
from sweeplab.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from sweeplab.evaluation.measure import Evaluation
    from sweeplab.experiment import CleaningSweep, E, Experiment, PretrainedVictim


def main(*experiments: "Experiment") -> None:
    """Run a script's sweeps, and victims alone, one after the other; exit with the worst of their codes: 2 over 1 over
    75.

    Args:
        experiments: sweeps; a victim among them is trained and measured for its own sake.
    """
    if _handed is not None:  # a command reads the script's sweeps; see `_taken_down`
        _handed.extend(experiments)
        raise SystemExit(DONE)
    _program(experiments, sys.modules["__main__"].__doc__ or "Run this script's sweeps.")()


def _program(experiments: "Sequence[Experiment]", text: str) -> typer.Typer:
    """The command line of a script, with its help text."""

    def script(
        overrides: Overrides = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print the plan and its costs; needs no data.")
        ] = False,
        probe: Annotated[
            bool, typer.Option("--probe", help="With --dry-run: hours and memory from a few steps on this machine.")
        ] = False,
        smoke: Smoke = False,
        resume: Annotated[
            bool, typer.Option("--resume", help="Refuse to start where there is nothing to resume.")
        ] = False,
        fresh: Annotated[
            bool, typer.Option("--fresh", help="Set an existing sweep of this name aside and start over; victims stay.")
        ] = False,
        search: Annotated[str | None, typer.Option(help="Sampler: tpe, gp, nsga2, random, qmc or grid.")] = None,
        inline: Inline = False,
        only: Annotated[
            list[str] | None,
            typer.Option(help="Run only the sweep or victim of this name, or all that match (`verma-*`); repeatable."),
        ] = None,
        plan: Plan = False,
        supervise: Supervise = False,
        adopt: Adopt = False,
        as_json: AsJson = False,
    ) -> int:
        if resume and fresh:
            raise InvalidInput("--resume and --fresh exclude each other; give one")
        if as_json and (dry_run or plan):
            raise InvalidInput(f"--{'dry-run' if dry_run else 'plan'} {NO_JSON}")
        if probe and not dry_run:
            raise InvalidInput("--probe belongs to --dry-run; give both, or neither")
        # Overrides are resolved for all of them first: a wrong one is refused before any begins.
        chosen = resolve_all(select(experiments, only or []), overrides or [], search, smoke)
        if dry_run:
            from sweeplab.commands import estimate

            for experiment in chosen:  # without a look at data or home
                say("\n".join(estimate.plan(experiment, probes=probe)))
            return DONE
        from sweeplab.sweep.run import Options

        options = Options(resume=resume, fresh=fresh, inline=inline, adopt=adopt)
        json_of = list_of_results if as_json else None
        return start(chosen, options, plan=plan, supervised=supervise, json_of=json_of)

    script_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command(script_app, help=text)(script)
    return script_app


@command(
    app,
    rich_help_panel=SWEEPS,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},  # what follows is the script's
)
def run(
    script: Script,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FLAGS AND OVERRIDES",
            help="The script's own, such as --smoke, --json or epochs=10; `sweeplab run SCRIPT --help` lists them.",
        ),
    ] = None,
) -> None:
    """Run an experiment script: the same as `python SCRIPT`.

    Or run a sweep of the home as it was run, with changes under another name: `sweeplab run quickstart name=other
    epochs=6`.
    """
    if is_of_home(script):
        _program(load_script(script), f"Run sweep {script} of the home.")(
            words or [], prog_name=f"sweeplab run {script}"
        )
        return
    _check_exists(script)
    sys.argv = [str(script), *(words or [])]
    sys.path.insert(0, str(script.parent.resolve()))
    with _own_faults(script):
        runpy.run_path(str(script), run_name="__main__")  # which `main` ends
    raise InvalidInput(f"script {script} calls no `main`, so nothing was run; end it with `main(SWEEP)`")


def is_of_home(path: Path) -> bool:
    """Whether what a command was given for a script is no file, but the name of a sweep of the home."""
    is_name = path.name == str(path)
    return is_name and not path.is_file() and SweepFolder(home_folder(to_read=True) / "sweeps" / path).exists()


def sweep_of_home(name: str) -> "CleaningSweep":
    """What a sweep's record says was run.

    Raises:
        InvalidInput: if there is none of the name, or its record does not say all of it.
    """
    from sweeplab.worker.input_paths import recorded_sweep

    header = SweepFolder.of(home_folder(to_read=True), name).header()
    if "imported" in header:
        raise InvalidInput(
            f"sweep {name!r} was imported from {header['imported']['file']}, a table that does not say what was run; "
            "name another sweep, or a script"
        )
    if own := header.get("own_code"):
        raise InvalidInput(
            f"sweep {name!r} uses {', '.join(own)}, which its script defines and its record does not hold; give that "
            "script instead, and with --only the name that the sweep has in it"
        )
    return recorded_sweep(header)


def load_script(path: Path) -> "tuple[Experiment, ...]":
    """The sweeps that a script defines, and the victims that it runs alone, in order, without running them. Where there
    is no such file and the home has a sweep of that name, that sweep, as it was run.

    Where the script has a tuple `EXPERIMENTS` (or `SWEEPS`), those in it. Else the sweeps that its variables hold,
    without those that it imported from other modules. Where there are none, what it hands to `main`.
    """
    from sweeplab.experiment import CleaningSweep, PretrainedVictim

    if is_of_home(path):
        folder = SweepFolder(home_folder(to_read=True) / "sweeps" / path)
        if not folder.is_own():
            raise InvalidInput(
                f"sweep {folder.name!r} came from elsewhere, and stands for no script before it is adopted; give its "
                f"script, or run `sweeplab resume {shlex.quote(folder.name)} --adopt` first"
                f"{storages_in_words(folder.path)}"
            )
        return (sweep_of_home(str(path)),)
    _check_exists(path)
    sys.path.insert(0, str(path.parent.resolve()))
    variables, handed = _taken_down(path, "sweeplab_script")
    if handed:  # by a `main` that no `if __name__ == "__main__"` guards
        return tuple(handed)
    named = variables.get("EXPERIMENTS", variables.get("SWEEPS"))
    found: list[Experiment]
    if named is not None:
        found = [value for value in named if isinstance(value, (CleaningSweep, PretrainedVictim))]
    else:
        modules = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
        # `isinstance` would read each object's `__class__`, at which some, such as torch's, warn of their deprecation.
        others = {id(v) for names in modules for v in list(names.values()) if issubclass(type(v), CleaningSweep)}
        every = [value for value in variables.values() if isinstance(value, CleaningSweep)]
        found = [value for value in every if id(value) not in others] or _taken_down(path, "__main__")[1] or [*every]
    by_name = {(type(value), value.name): value for value in found}
    if not by_name:
        raise InvalidInput(f"script {path} defines no CleaningSweep, and hands no victim to `main`")
    return tuple(by_name.values())


def sets_of(path: Path) -> "dict[str, Evaluation]":
    """The test sets that a script names: its variable `SETS`.

    Raises:
        InvalidInput: if it has none, or is not there.
    """
    from sweeplab.evaluation.measure import Evaluation

    what = "a variable SETS, a dict of `Evaluation` by the name of the set"
    if not path.is_file():
        raise InvalidInput(f"--sets: there is no file {path}; give a script with {what}")
    sys.path.insert(0, str(path.parent.resolve()))
    named = _taken_down(path, "sweeplab_script")[0].get("SETS")
    if not isinstance(named, dict) or not named or not all(isinstance(one, Evaluation) for one in named.values()):
        raise InvalidInput(f"--sets: {path} has no variable SETS; give a script with {what}")
    return {str(name): evaluation for name, evaluation in named.items()}


def _check_exists(script: Path) -> None:
    if not script.is_file():
        raise InvalidInput(
            f"script {script} does not exist, and no sweep of the home has that name; `sweeplab list --scripts` shows "
            "the scripts in ./sweeps, `sweeplab list` the sweeps"
        )


def _taken_down(path: Path, name: str) -> "tuple[dict[str, Any], list[Experiment]]":
    """A script's variables, and what it hands to `main`, which takes that down and runs nothing. Where `main` is called
    the script ends there, without its variables.

    Args:
        path: the script.
        name: that it runs under; `__main__`: as if by `python SCRIPT`.
    """
    global _handed
    before, words = _handed, sys.argv
    _handed, sys.argv = [], [str(path)]
    variables: dict[str, Any] = {}
    try:
        with _own_faults(path):
            variables = runpy.run_path(str(path), run_name=name)
    except SystemExit:
        if not _handed and name != "__main__":
            raise
    finally:
        found, _handed, sys.argv = _handed, before, words
    return variables, found


@contextlib.contextmanager
def _own_faults(script: Path) -> Iterator[None]:
    """Have an error that ends a script's own code be bad input, with its line; with -v the traceback is shown too.

    Raises:
        InvalidInput: for any error but those that have an exit code of their own.
    """
    try:
        yield
    except EXPLAINED:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
        line = f", line {lines[-1]}" if lines else ""  # of a syntax error the message names it
        raise InvalidInput(
            f"script {script}{line}: {type(error).__name__}: {first_line(error)}; -v shows the traceback"
        ) from error


_handed: "list[Experiment] | None" = None
"""Where `main` puts a script's sweeps and victims instead of running them; None: it runs them."""


def select(experiments: "Sequence[Experiment]", only: Sequence[str]) -> "list[Experiment]":
    """Those of a script that were asked for, by name or by a pattern such as `verma-fig6-*`."""
    names = [experiment.name for experiment in experiments]
    unknown = [pattern for pattern in only if not any(fnmatchcase(name, pattern) for name in names)]
    if unknown:
        raise InvalidInput(
            f"--only {unknown[0] or repr('')}: the script has no such sweep or victim; it has {', '.join(names)}"
        )
    return [e for e in experiments if not only or any(fnmatchcase(e.name, pattern) for pattern in only)]


def resolve_all(
    experiments: "Sequence[Experiment]", overrides: list[str], search: str | None, smoke: bool
) -> "list[Experiment]":
    """Sweeps and victims with a command's changes. Of a victim alone, too, the fields are `victim.FIELD`.

    Raises:
        InvalidInput: also where there are victims alone, and a change that none of them can have, and where two sweeps
            would have one name.
    """
    from sweeplab.experiment import CleaningSweep

    lost = [text for text in overrides if not text.startswith("victim.")]
    if lost and not any(isinstance(experiment, CleaningSweep) for experiment in experiments):
        name = experiments[0].name
        raise InvalidInput(f"override {lost[0]!r}: {name} is a victim, whose fields are written victim.{lost[0]}")
    found = [
        resolve(experiment, overrides, search, smoke)
        if isinstance(experiment, CleaningSweep)
        else resolve_victim(experiment, overrides, smoke)
        for experiment in experiments
    ]
    taken: dict[str, str] = {}
    for before, sweep in zip(experiments, found, strict=True):
        if isinstance(sweep, CleaningSweep) and taken.setdefault(sweep.name, before.name) != before.name:
            raise InvalidInput(
                f"name={sweep.name!r} would be that of {taken[sweep.name]} and of {before.name}; choose one with --only"
            )
    return found


def resolve_victim(victim: "PretrainedVictim", overrides: list[str], smoke: bool) -> "PretrainedVictim":
    """A victim that runs alone, with those of a command's changes that name its fields."""
    from sweeplab.experiment import apply_overrides, smoke_victim

    own = [text.removeprefix("victim.") for text in overrides if text.startswith("victim.")]
    victim = apply_overrides(victim, own)
    if not smoke:
        return victim
    again = [text for text in own if text.startswith(("epochs=", "resources."))]
    small = apply_overrides(smoke_victim(victim, victim.seed), again)
    _say_lost([f"victim.{text}" for text in own if not text.startswith("name=") and not _is_in(small, text)])
    return small


def _say_lost(lost: list[str]) -> None:
    if lost:
        say_notes([f"--smoke sets these fields itself, and leaves out {', '.join(lost)}"])


def resolve(sweep: "CleaningSweep", overrides: list[str], search: str | None, smoke: bool) -> "CleaningSweep":
    """A sweep with a command's changes. A sampler other than the script's gives it a name of its own, and, in a space
    of finitely many settings, no more trials than these unless an override says how many.
    """
    from sweeplab.experiment import apply_overrides, searched_parameter, smoke_sweep

    sweep = apply_overrides(sweep, overrides)
    if search is not None and search != sweep.search.sampler:
        trials, settings = sweep.search.trials, sweep.space.num_settings()
        if settings is not None and not any(text.startswith(("search.trials=", "search=")) for text in overrides):
            trials = min(trials, settings * sweep.search.seeds_per_configuration)
        changes: dict[str, Any] = {"search": sweep.search.replace(sampler=search, trials=trials)}
        if not any(override.startswith("name=") for override in overrides):
            changes["name"] = name_with(sweep.name, f"-{search}")
        sweep = sweep.replace(**changes)
    say_notes(
        [
            f"override {text!r}: the search of {sweep.name} sets {name} in every trial, so that none has this value; "
            f"fix {name} in the space or grid, or leave the override out"
            for text in overrides
            if (name := searched_parameter(sweep, text.partition("=")[0]))
        ]
    )
    if not smoke:
        return sweep
    # The miniature has its own values of these fields, so the user's are applied again.
    small = smoke_sweep(sweep)
    again = ("epochs=", "search.", "resources.", *(("victim.epochs=",) if hasattr(small.victim, "epochs") else ()))
    small = apply_overrides(small, [text for text in overrides if text.startswith(again)])
    _say_lost([text for text in overrides if not text.startswith("name=") and not _is_in(small, text)])
    return small


def _is_in(experiment: "E", override: str) -> bool:
    """Whether a sweep, or a victim, has the value of an override."""
    from sweeplab.experiment import apply_overrides

    try:
        return apply_overrides(experiment, [override]) == experiment
    except InvalidInput:  # the miniature has no such field
        return False


def one_experiment(script: Path, only: str | None, overrides: list[str], smoke: bool) -> "Experiment":
    """The sweep of a script, or its victim, that a command works on, with the command's changes.

    Raises:
        InvalidInput: if the script has several and `only` names none.
    """
    found = select(load_script(script), [only] if only else [])
    if len(found) > 1:
        names = ", ".join(experiment.name for experiment in found)
        raise InvalidInput(f"{script} has several sweeps; choose with --only: {names}")
    return resolve_all(found, overrides, None, smoke)[0]


def one_sweep(script: Path, only: str | None, overrides: list[str], smoke: bool) -> "CleaningSweep":
    """The same as a sweep: of a victim that runs alone the one that measures it and trains nothing."""
    from sweeplab.experiment import PretrainedVictim, measured_alone

    found = one_experiment(script, only, overrides, smoke)
    return measured_alone(found) if isinstance(found, PretrainedVictim) else found
