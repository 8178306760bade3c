"""Commands on tables of results: import one, replay searches on it, audit stopping rules."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sweeplab.cli.program import RESULTS, AsJson, SweepName, app, command, say, say_json, say_table
from sweeplab.cli.sweeps import folder_of
from sweeplab.evaluation.retention import num_choices
from sweeplab.records import number_of, percent
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder


@command(app, "import", rich_help_panel=RESULTS)
def import_(
    file: Annotated[Path, typer.Argument(help="A .csv, .json or .parquet table with one row per point.")],
    sweep: Annotated[str, typer.Option(help="Name of the sweep to make.")],
    victim_accuracy: Annotated[float | None, typer.Option(help="A fraction; read from epoch 0 if left out.")] = None,
    victim_asr: Annotated[float | None, typer.Option(help="A fraction; read from epoch 0 if left out.")] = None,
    asr_ceiling: Annotated[
        float, typer.Option(help="A point counts as cleaned when its ASR is strictly below it.")
    ] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Make a sweep of a table of results that were measured elsewhere.

    Its columns are trial, epoch, accuracy and asr (fractions), and optionally accuracy_k, accuracy_n, asr_k, asr_n,
    seed, seconds (of training and measuring) and what else export writes. Every other column is a parameter. The points
    that are counted are those that may win: epoch 0 is the victim.
    """
    from sweeplab.commands.import_table import import_table

    folder = import_table(
        file,
        home_folder(),
        sweep,
        victim_accuracy=victim_accuracy,
        victim_asr=victim_asr,
        asr_ceiling=asr_ceiling,
    )
    record = folder.record(keep_summary=True)
    points = num_choices(record.trials)
    if as_json:
        counts = {"trials": len(record.trials), "points": points}
        say_json({"sweep": sweep, **counts, "parameters": list(record.parameters), "folder": str(folder.path)})
        return
    names = ", ".join(record.parameters) or "none"
    say(f"{sweep}: {number_of(len(record.trials), 'trial')}, {number_of(points, 'point')}, parameters {names}")
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


@command(app, rich_help_panel=RESULTS)
def replay(
    sweep: SweepName,
    sampler: Annotated[
        list[str] | None,
        typer.Option(help="tpe, gp, random, qmc, nsga2, grid, shuffled-grid, tpe-unconstrained; may be repeated."),
    ] = None,
    pruning: Annotated[str | None, typer.Option(help=PRUNING_HELP)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of searches with each sampler.")] = 20,
    startup_trials: Annotated[
        int | None,
        typer.Option(min=0, help="Random trials at the start of each search; chosen as in a search if left out."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay searches on a finished or imported sweep: how many trial-epochs does each need to find its best setting?

    For comparison, the sweep's own settings run in random order under the same stopping rules, and random search and
    TPE without constraint run without rules. A grid is never pruned.
    """
    from sweeplab.search.replay import SHUFFLED, UNCONSTRAINED, Contender, compare, replay_table

    rules = pruning_of(pruning) if pruning is not None else None
    contenders = [Contender(name, rules, startup_trials) for name in sampler or ["tpe"]]
    beside = [Contender(SHUFFLED, rules, startup_trials)]
    beside += [Contender(name, None, startup_trials) for name in ("random", UNCONSTRAINED)]
    contenders += [contender for contender in beside if contender not in contenders]
    found = compare(replay_table(folder_of(sweep)), contenders, seeds)
    if as_json:
        say_json(found)
    else:
        _say_replays(sweep, found)


def _say_replays(sweep: str, found: dict[str, Any]) -> None:
    size = f"{found['table']['configurations']:,} configurations, {found['table']['trial_epochs']:,g} trial-epochs"
    say(f"{sweep}: {size}; {found['target']}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("search", no_wrap=True)
    for heading in ("trial-epochs\nmedian", "\nquartiles", "share of\nthe table", "\narrived"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found["results"]:
        costs = [row["trial_epochs"][name] for name in ("median", "lower_quartile", "upper_quartile")]
        median, low, high = ("never" if cost is None else f"{cost:,g}" for cost in costs)
        share = row["share_of_table"]["median"]
        table.add_row(
            row["sampler"] + (" + pruning" if row["pruning"] else ""),
            median,
            f"{low} to {high}",
            "–" if share is None else percent(share, 0),
            f"{row['arrived']:,} of {row['seeds']:,}",
        )
    say_table(lambda _: table)


@command(app, rich_help_panel=RESULTS)
def audit(
    sweep: SweepName,
    pruning: Annotated[str, typer.Option(help=PRUNING_HELP)] = "default",
    as_json: AsJson = False,
) -> None:
    """Show what stopping rules saved and what they cost.

    For a sweep that was pruned: what its stopped trials reached in reruns. For any other: what the rules would have
    done.
    """
    from sweeplab.search import audit as audit_module

    record = folder_of(sweep).record()
    is_pruned = audit_module.was_pruned(record)
    if is_pruned and pruning != "default":
        raise InvalidInput(
            f"--pruning={pruning}: sweep {sweep!r} was pruned by its own rules, and only their decisions can be "
            "audited; leave the flag out, or audit a sweep without pruning"
        )
    found = audit_module.audit_decisions(record) if is_pruned else audit_module.audit(record, pruning_of(pruning))
    if as_json:
        say_json(found)
    elif is_pruned:
        _say_decisions(found)
    else:
        _say_audit(sweep, found)


def _say_audit(sweep: str, found: dict[str, Any]) -> None:
    """What rules would have done to a sweep that ran without them."""
    say(f"{sweep}: {found['pruned']:,} of {number_of(found['trials'], 'trial')} would have been stopped early")
    say(
        f"  of those, {found['would_have_been_feasible']:,} would have been cleaned later on, and "
        f"{found['would_have_become_best']:,} would have become the best"
    )
    say(f"  trial-epochs saved: {found['trial_epochs_saved']:,g} of {found['trial_epochs']:,g}")
    best, kept = found["best_retention"], found["best_retention_with_pruning"]
    say(f"  best retention {_share(best)}, with pruning {_share(kept)}")


def _say_decisions(found: dict[str, Any]) -> None:
    """What a sweep's own rules did, and what became of the trials that they stopped."""
    name, left = found["sweep"], found["pruned"] - found["run_to_their_end"]
    saved = number_of(found["trial_epochs_saved"], "trial-epoch")
    say(
        f"{name}: {found['pruned']:,} of {number_of(found['trials'], 'trial')} stopped early, {saved} saved; "
        f"best retention {_share(found['best_retention'])}"
    )
    if found["run_to_their_end"]:
        say(
            f"  {found['run_to_their_end']:,} of them were run to their end since: "
            f"{found['would_have_been_feasible']:,} were cleaned later on, and "
            f"{found['would_have_become_best']:,} became better than the best"
        )
    for row in found["decisions"]:
        ending = "not run to its end"
        if row["rerun"] is not None:
            ending = f"trial {row['rerun']} " + (
                f"keeps {percent(row['retention'])}" if row["retention"] is not None else "was never cleaned"
            )
            ending += "" if row["same_until_stop"] else " (and differs before the stop: this machine is not exact)"
        say(f"  trial {row['trial']}: {row['reason']} (epoch {row['epoch']:g}); {ending}")
    if left:
        say(f"  the outcome of {left} of them is unknown: `sweeplab rerun {name} --pruned` runs them to their end")


def _share(value: float | None) -> str:
    return "none" if value is None else percent(value)
