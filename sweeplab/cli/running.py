"""Running what a command names: one after the other, as plans, under supervision; and what each of them prints."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeplab.cli.program import exit_code, explained, interrupted, say, say_json, say_notes, say_table, worst
from sweeplab.commands.supervise import committed, supervise
from sweeplab.ranking.costs import attempts_of, costs_of
from sweeplab.ranking.kept_weights import find_weights
from sweeplab.ranking.leaderboard import Leaderboard, rank_trials, render_table, result_lines
from sweeplab.ranking.victims import VictimRow, read_victim, render_victims
from sweeplab.records import SweepRecord
from sweeplab.specs import DONE, INTERRUPTED, ClusterLost, InvalidInput, Spec, StorageFault, Unfinished
from sweeplab.storage.files import read_object
from sweeplab.storage.home import home_folder
from sweeplab.sweep_folder import SweepFolder
from sweeplab.tracking.store import page_of, put_page
from sweeplab.versions import IS_JOB

if TYPE_CHECKING:
    from sweeplab.experiment import CleaningSweep, Experiment
    from sweeplab.sweep.run import Options


Result = Leaderboard | VictimRow
"""What comes of a sweep, or of a victim alone."""

NO_JSON = "is a text for people, and --json prints the results of a run; give one"
"""How --json is refused beside another flag."""


def start(
    experiments: "Sequence[Experiment]",
    options: "Options",
    *,
    plan: bool = False,
    supervised: bool = False,
    json_of: Callable[[list[Result]], Any] | None = None,
) -> int:
    """Run sweeps, and victims alone, one after the other.

    After each sweep, print its leaderboard and where its page and MLflow are; at the end, a table of the victims.

    Args:
        experiments: of the command.
        options: of the command.
        plan: only print what a start would reuse, repeat and run of each of them, and start nothing.
        supervised: start this very command again and again, until it is done.
        json_of: print all that on stderr, and on stdout, if all went well, what this makes of the results, as JSON.

    Returns:
        The worst exit code.
    """
    if plan:
        return _each(experiments, partial(_say_plan, options=options))
    if supervised and not is_supervised():
        return _run_supervised(experiments, options)
    results: list[Result] = []
    with contextlib.redirect_stdout(sys.stderr) if json_of is not None else contextlib.nullcontext():
        code = _each(experiments, partial(_run, options=options, results=results))
        if victims := [row for row in results if isinstance(row, VictimRow)]:
            say_table(lambda _: render_victims(victims))
            say("`sweeplab list --victims` shows all victims of the home, with --json their counts and folders")
    if json_of is not None and code == DONE:
        say_json(json_of(results))
    return code


def list_of_results(results: list[Result]) -> list[dict[str, Any]]:
    """What a script prints as JSON: what `leaderboard --json` prints of each sweep, `list --victims --json` of each
    victim."""
    return [result.to_json() for result in results]


def start_one(sweep: "CleaningSweep", options: "Options", *, as_json: bool = False, **named: bool) -> int:
    """`start` one sweep; with `as_json` the JSON is its leaderboard."""
    return start([sweep], options, json_of=(lambda results: results[0].to_json()) if as_json else None, **named)


def _run(experiment: "Experiment", home: Path, options: "Options", results: list[Result]) -> None:
    """Run a sweep and print what came of it, or train a victim; adds the result to `results`.

    Raises:
        Failed: if every one of a sweep's trials failed.
    """
    from sweeplab.experiment import PretrainedVictim
    from sweeplab.sweep.run import check_some_succeeded, run_sweep, run_victim

    if isinstance(experiment, PretrainedVictim):
        if options.fresh:
            say(f"note: --fresh leaves victim {experiment.name} as it is, since sweeps go on from its weights")
        run = run_victim(experiment, home, options)
        run.mark_run_alone()
        results.append(read_victim(run.path))
        return
    sweep = experiment
    try:
        record = run_sweep(sweep, home, options)
    except (Unfinished, StorageFault, KeyboardInterrupt):
        if options.fresh:
            say("note: leave --fresh out to go on; it would set this work aside again")
        raise
    results.append(show_results(home, sweep.name))
    check_some_succeeded(record)
    if record.state == "finished":
        failed = len(record.failures)
        why = f"; {failed} failed, and `sweeplab status {record.name}` says why" if failed else ""
        say(f"{record.name}: finished, {record.num_succeeded:,} of {record.planned_trials:,} succeeded{why}")


def _say_plan(experiment: "Experiment", home: Path, options: "Options") -> None:
    """Print what a start would reuse, repeat and run of a sweep, or of a victim."""
    from sweeplab.experiment import PretrainedVictim
    from sweeplab.sweep.resume import check_same_spec, resume_plan
    from sweeplab.sweep.run import open_sweep, open_victim
    from sweeplab.sweep.victims import victim_of

    if isinstance(experiment, PretrainedVictim):
        _, opened = open_victim(experiment, home, options)
        say_notes(opened.notes)
        say(f"{victim_of(opened.sweep).plan_line(opened.victim_digest, home)}".lstrip())
        return
    sweep = experiment
    folder, prepared = open_sweep(sweep, home, options)
    say_notes(prepared.notes)
    if folder.exists() and options.fresh:
        say(f"{sweep.name}: the sweep that is there would be set aside, and none of its trials used")
        folder = SweepFolder(folder.path.with_name(f".{sweep.name}.fresh"))
    if folder.exists():
        check_same_spec(folder, prepared)
        if folder.is_locked():
            who = folder.work.holder() or {}
            say(f"{sweep.name}: process {who.get('process', '?')} on {who.get('host', '?')} runs it now")
    say("\n".join(resume_plan(folder, prepared, home)))


def _each(experiments: "Sequence[Experiment]", work: "Callable[[Experiment, Path], None]") -> int:
    """Do a command's work for every sweep, or victim, whose inputs are there; returns the worst exit code.

    One that fails, in whatever way, does not keep the others from their turn. A signal ends them all, and so does
    the loss of the Ray cluster, after which this process cannot start or reach another one.
    """
    codes = [exit_code(lambda: check_sources(experiments))]  # what all of them lack, in one message
    ready = [experiment for experiment in experiments if not _missing([experiment])]
    if not ready:
        return worst(codes)
    home = home_folder()
    say(f"home: {home}")
    try:
        for place, experiment in enumerate(ready, start=1):
            try:
                work(experiment, home)
            except Exception as error:  # noqa: BLE001 - said here, and the others have their turn
                codes.append(explained(error))
                ended, following = (
                    f"{experiment.name} ended with exit code {codes[-1]}",
                    [e.name for e in ready[place:]],
                )
                if following and isinstance(error, ClusterLost):
                    say(f"{ended}; the Ray cluster is lost, so not begun: {', '.join(following)}")
                    break
                if following:
                    say(f"{ended}; going on with {following[0]}")
    except KeyboardInterrupt:
        return worst([*codes, interrupted()])
    say(f"home: {home}")
    if is_supervised() and INTERRUPTED in codes:
        return INTERRUPTED  # whatever became of the others, this one can still be finished: start again
    return worst(codes)


def is_supervised() -> bool:
    """Whether a command under `--supervise` started this one."""
    return "SWEEPLAB_SUPERVISED" in os.environ


def _run_supervised(experiments: "Sequence[Experiment]", options: "Options") -> int:
    """Run this very command again and again, without its flag --supervise, until it is done; returns its exit code."""
    if options.fresh:  # each start would set the work of the last one aside
        raise InvalidInput("--supervise and --fresh exclude each other; run once with --fresh, then supervise")
    home = home_folder()
    names = [name for experiment in experiments for name in _sweeps_within(experiment)]
    if not options.adopt:
        for name in names:
            SweepFolder.of(home, name).check_own()
    for mark in _stop_marks(home, experiments):
        mark.unlink(missing_ok=True)
    return supervise(
        [sys.executable, *(word for word in sys.argv if word != "--supervise")],
        lambda: committed(home, names),
        was_stopped=lambda: bool(_stop_marks(home, experiments)),
    )


def _stop_marks(home: Path, experiments: "Sequence[Experiment]") -> list[Path]:
    """What `sweeplab stop` has left of a command's sweeps and of their victims' training."""
    from sweeplab.experiment import CleaningSweep

    names = [name for experiment in experiments for name in _sweeps_within(experiment)]
    marks = [SweepFolder.of(home, name).work.stop_mark for name in names]
    for experiment in experiments:
        victim = experiment.original_victim() if isinstance(experiment, CleaningSweep) else experiment
        marks += (home / "victims").glob(f".{victim.name}-{'?' * 16}.stop")  # its digest is of data not yet read
    return [mark for mark in marks if mark.exists()]


def _sweeps_within(experiment: "Experiment") -> list[str]:
    """The sweep's name, that of the sweep whose best trial it starts from, and so on; none of a victim alone."""
    from sweeplab.experiment import PretrainedVictim

    if isinstance(experiment, PretrainedVictim):
        return []
    inner = getattr(experiment.victim, "sweep", None)
    return [experiment.name, *(_sweeps_within(inner) if inner is not None else [])]


# --- results


def show_results(home: Path, name: str) -> Leaderboard:
    """Print a sweep's leaderboard, write its page, and say how to open MLflow; returns the leaderboard."""
    folder = SweepFolder.of(home, name)
    record, board = ranked(folder, keep_summary=True)  # read once: the table and the page then show the same
    say_table(lambda width: render_table(board, width=width))
    say_result(board)
    page = write_page(folder, record, board)
    say(f"page:   {page}")
    if fault := put_page(home, folder.path, page):
        say_notes([f"the page was not put among MLflow's files ({fault})"])
    command, address = page_of(home, folder.path)
    if address:
        say(f"MLflow: {f'{command}, then ' if command else ''}{address}")
    return board


def write_page(folder: SweepFolder, record: SweepRecord, board: Leaderboard) -> Path:
    """Write a sweep's page; returns its path."""
    from dashboards.build import Extras, build_page
    from sweeplab.search.importance import importances

    events = folder.events()
    until = folder.lived_until(events, is_driven=record.state == "running")
    command, address = page_of(folder.home, folder.path) if folder.journal.exists() else ("", "")
    extras = Extras(
        mlflow_command=command,
        mlflow_address=address,
        importances=importances(board, record.log_parameters),
        attempts=attempts_of(events),
        costs=costs_of(events, record.trials, until),
        until_ms=until,
        pretraining=folder.pretraining_points(),
        outcomes=folder.outcomes,
        gallery=read_object(folder.gallery, images=list) if folder.gallery.exists() else None,
    )
    return build_page(record, board, folder.page, extras)


def say_result(board: Leaderboard) -> None:
    """Print where the winner is, or what came closest, below a table."""
    for line in result_lines(board):
        say(line)


def ranked(folder: SweepFolder, *, keep_summary: bool = False) -> tuple[SweepRecord, Leaderboard]:
    """A sweep's record and the ranking of its trials.

    Args:
        folder: the sweep's.
        keep_summary: as in `SweepFolder.record`; for commands that write in the home.
    """
    record = folder.record(keep_summary=keep_summary)
    return record, rank_trials(record, folder.outcomes, find_weights(record))


# --- missing inputs


def check_sources(experiments: "Sequence[Experiment]") -> None:
    """Refuse sweeps and victims that name paths which do not exist.

    Raises:
        InvalidInput: with every missing path and what belongs there, in one message.
    """
    missing = _missing(experiments)
    if missing:
        listed = "\n".join(f"  {path}: {what}" for path, what in missing.items())
        remedy = "put them there, or name other places with field.path=..."
        if not all(map(os.path.isabs, missing)):
            remedy = f"relative paths are looked for in {os.getcwd()}; {remedy}"
            if IS_JOB in os.environ:
                remedy += (
                    ", absolute ones: that folder is the job's copy of its working directory, which Ray makes without "
                    "what .gitignore names, of at most 512 MiB, and removes"
                )
        raise InvalidInput(
            f"missing inputs ({len(missing)}):\n{listed}\n{remedy}; --smoke runs without them, --dry-run plans"
        )


def _missing(experiments: "Sequence[Experiment]") -> dict[str, str]:
    """The paths that do not exist, each with what belongs there."""
    from sweeplab.experiment import PretrainedVictim

    missing: dict[str, str] = {}
    for experiment in experiments:
        for field, owner, path in _paths(experiment, "victim" if isinstance(experiment, PretrainedVictim) else ""):
            is_pattern = getattr(owner, "kind", "") == "shards" and "{" in str(path)  # the source looks for its files
            if not os.path.exists(path) and not is_pattern:  # False too for a path that this user may not look at
                what = FOLDERS.get(field.rpartition(".")[2]) or WHAT_BELONGS.get(getattr(owner, "kind", ""), "a file")
                if command := getattr(owner, "made_by", ""):
                    what = f"a picture that `{command}` makes"
                missing.setdefault(str(path), f"{what}; field `{field}` of {experiment.name}")
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


WHAT_BELONGS = {
    "csv": "a CSV file (or TSV) with the columns image (a path relative to the file) and caption",
    "parquet": "a Parquet file, or a folder of them, with the columns image (a path, or bytes) and caption",
    "karpathy": "Karpathy's JSON file, such as dataset_coco.json",
    "img2dataset": "the output_folder of img2dataset with output_format='files'",
    "shards": "tar files of images and captions: a folder of them, or a pattern such as {00000..00331}.tar",
    "class-folders": "a folder with one folder of images per class",
    "imagenet-flat": "ImageNet's validation images in one folder, or the file of their labels",
    "labelled-table": "a .csv, .tsv or .parquet file with the columns image and label, or the folder of its images",
    "labelled-shards": "a folder with classnames.txt and a folder of .tar files for each split",
    "torchvision": "the root that torchvision's class of the data set is given, with the files in it",
    "imported": "the CSV file of poisoned pairs that victim.data reads",
    "checkpoint": "a checkpoint of the poisoned model (.pt, .safetensors, or a folder of open_clip or CLIPModel)",
    "pretrained": "a checkpoint of the same architecture (.pt or .safetensors)",
    "deep-clustering": "a .npy file with one label for each pair, as `sweeplab data label` writes it",
}
"""What a path in a spec names, by the spec's kind."""

FOLDERS = {
    "root": "the folder that the images are in",
    "absolute_below": "the folder below which absolute paths of images are looked up",
}
"""What a path in a field of that name names, whatever the spec's kind."""
