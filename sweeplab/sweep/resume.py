"""Resume: what of a sweep is there, what is reused and repeated, and whether it is the same sweep."""

import os
import time
from pathlib import Path

from sweeplab.clip_model import has_batch_norm
from sweeplab.experiment import CleaningSweep
from sweeplab.records import OVER, number_of
from sweeplab.specs import InvalidInput, Spec
from sweeplab.sweep.comparison import compare
from sweeplab.sweep.prepare import Prepared
from sweeplab.sweep.victims import victim_of
from sweeplab.sweep_folder import SweepFolder
from sweeplab.training.optimisation import Optimization
from sweeplab.versions import version_of


def check_is_there(folder: SweepFolder) -> None:
    """Raise InvalidInput where there is no sweep to resume."""
    if not folder.exists():
        raise InvalidInput(
            f"--resume: there is no sweep {folder.name!r} in {folder.path.parent}; leave the flag out to start it"
        )


def resume_plan(folder: SweepFolder, prepared: Prepared, home: Path) -> list[str]:
    """What will be reused, repeated and run, and why."""
    sweep = prepared.sweep
    records = [folder.trial_record(number, is_driven=False) for number in folder.trial_numbers()]
    over = [record for record in records if record.state in OVER]
    begun = [record for record in records if record.state == "waiting"]
    trials, epochs = number_of(sweep.num_trials(), "trial"), number_of(sweep.epochs, "epoch")
    text = f"{sweep.name}: {trials} of {epochs} on {prepared.num_pairs:,} pairs"
    if sweep.num_trials() < len(records):
        text += f" (search.trials={sweep.num_trials()}, but {len(records):,} were begun and stay)"
    search = f"  search: {search_in_words(sweep)}"
    warnings = [f"  warning: {line}" for line in warnings_of(sweep)]
    if not records:
        return [text, search, *warnings]
    again = folder.reruns()
    for number in folder.begun_reruns().values():
        again.remove(number)
    new = folder.num_planned(sweep) - len(records) - len(again)
    if begun or new or again:
        sweep.resources.resolved_executor()  # which refuses one that only older records name
    lines = [f"{text}; {len(over):,} are done and stay, {len(begun):,} go on, {new:,} are new", *warnings]
    if new > 0:
        lines.append(search)
    if again:
        lines.append(f"  tried once more as asked: trial{'s' * (len(again) > 1)} {', '.join(map(str, again))}")
    if (line := victim_of(sweep).plan_line(prepared.victim_digest, home)) is not None:
        lines.append(line)
    lines += [
        f"  trial {record.number}: failed for good ({record.reason}); `sweeplab rerun` tries it again"
        for record in records
        if record.state == "failed"
    ]
    for record in begun:
        run = folder.trial(record.number)
        place, points = run.latest_checkpoint(), len(record.points)
        kept = points if place is not None else run.num_kept()
        lost = f"; its newest checkpoint is gone, so {_again(points - kept)}" if kept < points else ""
        if num_lost := run.num_lost():
            lost = f"; its history is damaged, so {_again(points - kept + num_lost)}"
        if place is None and kept <= 1:
            lines.append(f"  trial {record.number}: starts again{lost or ' (has no epoch yet)'}")
            continue
        epoch = record.points[kept - 1].epoch
        inside = " and inside the next epoch" if place and place.is_inside_an_epoch else ""
        lines.append(
            f"  trial {record.number}: goes on after epoch {epoch:g}{inside}{lost}; steps after that run again "
            f"(attempt {record.attempts + 1})"
        )
    return lines


def set_aside(folder: SweepFolder) -> Path:
    """Rename a sweep's folder, so that its name is free; nothing is deleted."""
    with folder.lock():
        place = folder.path.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}")
        folder.path.rename(place)
    return place


def check_same_spec(folder: SweepFolder, prepared: Prepared) -> None:
    """Refuse to continue a sweep under another spec, or under another recipe behind the same spec.

    Raises:
        InvalidInput: with what an older version did otherwise, the fields that differ, and the remedies.
    """
    header = folder.header()
    if header["digest"] == prepared.digest:
        return
    found = compare(header, prepared.sweep)
    listed = []
    for name in sorted(set(header["contents"]) | set(prepared.contents)):  # first: no field shows it
        before, now = header["contents"].get(name), prepared.contents.get(name)
        if before != now and not (name == "victim" and any(line.startswith("victim.") for line in found.fields)):
            listed.append(f"content of `{name}` changed (digest {before} -> {now})")
    listed += [*found.since, *found.defaults, *found.fields]
    version, why = version_of(header), "exists with another spec"
    if found.since or found.defaults:
        why = f"was made by an older version ({version}), and this version would run it differently"
    lines = "\n  ".join(listed[:12] or [f"(the same fields, as version {version} took them)"])
    remedies = "use --fresh to set the old one aside, or give this one another name"
    if found.defaults and not found.since and not found.fields:
        by_record = "" if header.get("own_code") else f", or use `sweeplab resume {folder.name}`,"
        remedies = f"state the old value{by_record} to go on as it was begun; {remedies}"
    raise InvalidInput(f"sweep {folder.name!r} {why}:\n  {lines}\n{remedies}")


def warnings_of(sweep: CleaningSweep) -> list[str]:
    """What runs, and is probably not meant: BatchNorm in another mode than the method's recipe has it.

    A sweep that searches the mode compares modes, and means it.
    """
    recipe, kind, chosen = getattr(sweep.method, "recipe", None), _kind(sweep.method), _optimization(sweep).batch_norm
    if recipe is None or chosen == recipe.batch_norm or "batch_norm" in sweep.parameters():
        return []
    if not sweep.epochs or not has_batch_norm(sweep.victim.architecture):
        return []
    return [
        f"optimization.batch_norm={chosen!r}: method {kind!r} was tuned with {recipe.batch_norm!r}, and its settings "
        f"mean something else here; set optimization.batch_norm={recipe.batch_norm}"
    ]


def _optimization(sweep: CleaningSweep) -> Optimization:
    """As trials take it: protocol `authors` changes what the method's authors' code does."""
    changes = getattr(sweep.method, "authors_optimization", {}) if sweep.protocol == "authors" else {}
    return sweep.optimization.replace(**changes)


def _kind(spec: Spec) -> str:
    return str(getattr(spec, "kind", type(spec).__name__))


def search_in_words(sweep: CleaningSweep) -> str:
    """How a sweep's settings are drawn, and what of it is a random search under another name."""
    search, space = sweep.search, sweep.space
    if search.sampler == "grid":
        return "grid, in order" + ("; it is run whole, without search.pruning" if search.pruning else "")
    if space.num_settings() == 1:
        return f"{search.sampler}, of one setting: nothing is drawn"
    given, configurations = len(sweep.first_settings()), search.trials // search.seeds_per_configuration
    if given >= configurations:
        return "the grid's settings alone: search.trials leaves none to draw"
    first = f"the grid's {given} settings first, then " if given else ""
    startup = search.active_startup_trials(space)
    if startup is None:
        return first + search.sampler
    text = f"{first}{search.sampler}, search.startup_trials={startup}"
    if search.startup_trials is None:
        text += (
            f" (chosen for {number_of(configurations, 'configuration')} of {number_of(space.num_free(), 'parameter')})"
        )
    if configurations <= max(startup, 2 if search.sampler == "nsga2" else 0):
        text += (
            f": no more than that are tried, so every draw is random; give search.startup_trials below "
            f"{configurations}, or more trials"
        )
    elif search.sampler == "nsga2" and space.num_free() == 1:
        text += ": it changes a parameter by drawing it anew, so with one parameter every draw is random; choose tpe"
    return text


def _again(num_points: int) -> str:
    return f"{number_of(num_points, 'point')} {'is' if num_points == 1 else 'are'} made again"
