"""Reproduce: every row of a paper with its state in a home, and our numbers beside the published ones."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeplab.commands.estimate import declared_pairs
from sweeplab.commands.papers import PAPERS, ROWS, Paper, PaperRow, PaperRun
from sweeplab.commands.published import Published, published_numbers
from sweeplab.commands.status import status_or_damage
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStallTest
from sweeplab.data.imagenet_flat import ImageNetFlat
from sweeplab.experiment import CleaningSweep, Experiment, PretrainedVictim, smoke_name
from sweeplab.ranking.leaderboard import Leaderboard, rank_trials
from sweeplab.ranking.reproduction import (
    NO_RECORD,
    NOT_RUN,
    NOT_THERE,
    NOTHING_TO_RUN,
    Number,
    Ours,
    Reproduction,
    Row,
    Run,
    Sizes,
    of_sweep,
    of_victim,
    state_of,
)
from sweeplab.ranking.victims import VictimRow, found_in_words, victims_of
from sweeplab.records import Point, SweepRecord, percent
from sweeplab.specs import InvalidInput
from sweeplab.storage.files import read_object
from sweeplab.sweep.comparison import differences
from sweeplab.sweep_folder import SweepFolder

MOST_CHANGES = 6
"""Fields in which a run differs from its script that are named."""

ELSEWHERE = {"": "printed by the last command", "page": "at the victim's accuracy: read it off the page"}
"""Where numbers stand that are not read here; see `Published.of`."""


def chosen(paper: str, wanted: Sequence[str] = ()) -> tuple[Paper, list[PaperRow]]:
    """A paper, and its rows or those of them that were asked for, in the paper's order.

    Args:
        paper: of `papers.PAPERS`.
        wanted: ids of rows, with or without the paper's name in front.

    Raises:
        InvalidInput: for a paper or a row that there is none of; the message lists the known ones.
    """
    if paper not in PAPERS:
        raise InvalidInput(f"paper {paper!r} is unknown; known: {', '.join(PAPERS)}")
    rows = {row.id: row for row in ROWS if row.paper == paper}
    ids = [name if name in rows else f"{paper}-{name}" for name in wanted]
    for name, found in zip(wanted, ids, strict=True):
        if found not in rows:
            raise InvalidInput(f"paper {paper!r} has no row {name!r}; it has {', '.join(rows)}")
    return paper, [row for name, row in rows.items() if not ids or name in ids]


def reproduce(
    home: Path, paper: Paper, rows: Sequence[PaperRow], experiments_of: Callable[[PaperRun], Sequence[Experiment]]
) -> Reproduction:
    """Rows of a paper as a home holds them.

    Args:
        home: that is looked through; it is only read.
        paper: whose rows they are.
        rows: of `chosen`.
        experiments_of: gives the sweeps and victims that a command of a row runs.
    """
    holdings = _Holdings(home)
    return Reproduction(paper, PAPERS[paper], tuple(_row(holdings, row, experiments_of) for row in rows))


@dataclass(frozen=True)
class _Found:
    """What the home holds of a sweep or victim of a row."""

    run: Run
    sweep: tuple[SweepRecord, Leaderboard] | None = None
    victim: VictimRow | None = None


class _Holdings:
    """A home's sweeps and victims, each read once."""

    def __init__(self, home: Path) -> None:
        self.home = home
        rows, damaged = victims_of(home)
        self._victims: dict[str, list[VictimRow]] = {}
        for row in rows:
            self._victims.setdefault(row.victim, []).append(row)
        self._damaged = {path.name.rpartition("-")[0]: why for path, why in damaged.items()}
        self._found: dict[tuple[bool, str], _Found] = {}

    def of(self, experiment: Experiment) -> _Found:
        """What there is of a script's sweep or victim: under its own name, else under that of its miniature."""
        is_victim = isinstance(experiment, PretrainedVictim)
        key = (is_victim, experiment.name)
        if key not in self._found:
            look = self._victim if is_victim else self._sweep
            names = (experiment.name, smoke_name(experiment.name))
            found = next((one for name in names if (one := look(name, experiment)) is not None), None)
            planned = _planned(experiment)
            self._found[key] = found or _Found(Run(experiment.name, "", is_victim, NOT_RUN, 0, planned, planned))
        return self._found[key]

    def _victim(self, name: str, experiment: Experiment) -> _Found | None:
        rows = self._victims.get(name)
        if rows is None:
            return _damaged(experiment, name, self._damaged[name]) if name in self._damaged else None
        row, spec = max(
            ((row, _recorded(experiment, read_object(row.folder / "victim.json"))) for row in rows),
            key=lambda pair: _rank(pair[0], pair[1], experiment),
        )
        measured = row.measurement
        sizes, result = sizes_of(spec), "nothing measured yet"
        if measured is not None:
            sizes = dataclasses.replace(sizes, test_images=measured.accuracy_n)
            sizes = _counted_by_steps(sizes, "pairs", row.points, spec)
            words = [f"accuracy {percent(measured.accuracy)}", f"{row.measures} {percent(measured.asr)}"]
            result = ", ".join(filter(None, [*words, f"epoch {row.epoch:g}", found_in_words(row.found)]))
        run = Run(
            experiment.name,
            name,
            True,
            row.state,
            int(row.state == "finished"),
            1,
            1,
            sizes=sizes,
            result=result,
        )
        return _Found(_beside_script(run, experiment, spec), victim=row)

    def _sweep(self, name: str, experiment: Experiment) -> _Found | None:
        folder = SweepFolder.of(self.home, name)
        if not folder.exists():
            return None
        status = status_or_damage(folder)
        if status["state"] == "damaged":
            return _damaged(experiment, name, status["reason"])
        header, trials, ranked = folder.header(), status["trials"], None
        spec = _recorded(experiment, header)
        sizes = sizes_of(spec)
        if (classes := header.get("images", {}).get("num_classes")) is not None:
            sizes = dataclasses.replace(sizes, classes=classes)
        if status["victim"] is not None:
            record = folder.record()
            ranked = record, rank_trials(record, folder.outcomes)
            if record.victim.is_counted:
                sizes = dataclasses.replace(sizes, test_images=record.victim.accuracy_n)
            if isinstance(spec, CleaningSweep):
                points = next((trial.points for trial in record.trials if len(trial.points) > 1), ())
                sizes = _counted_by_steps(sizes, "cleaning_pairs", points, spec)
                sizes = _counted_by_steps(sizes, "pairs", folder.pretraining_points(), spec.original_victim())
        run = Run(
            experiment.name,
            name,
            False,
            status["state"],
            trials["finished"] + trials["pruned"] + trials["failed"],
            status["planned_trials"],
            _planned(experiment),
            trials["failed"],
            is_imported="imported" in header,
            sizes=sizes,
            result=_result_of(status),
            notes=tuple(status["notes"]),
        )
        return _Found(_beside_script(run, experiment, spec), sweep=ranked)


def _rank(row: VictimRow, spec: Experiment | None, script: Experiment) -> tuple[bool, float, int]:
    """Of several victims of one name the script's own goes first, then the one of most epochs, then the latest."""
    is_scripts = spec is not None and not differences(script.to_json(), spec.to_json(), script)
    return is_scripts, row.trained_epochs, row.points[-1].timestamp_ms if row.points else 0


def _damaged(experiment: Experiment, found: str, why: str) -> _Found:
    """What there is of a sweep or victim whose records cannot be read."""
    is_victim, planned = isinstance(experiment, PretrainedVictim), _planned(experiment)
    return _Found(Run(experiment.name, found, is_victim, "damaged", 0, planned, planned, notes=(why,)))


def _planned(experiment: Experiment) -> int:
    """Trials that a script plans; 1 for a victim."""
    return 1 if isinstance(experiment, PretrainedVictim) else experiment.num_trials()


def _recorded(experiment: Experiment, record: dict[str, Any]) -> Experiment | None:
    """The spec of a record; None for an imported table, and where an older version's is refused today."""
    try:
        return type(experiment).model_validate(record["spec"])
    except InvalidInput:
        return None


def sizes_of(spec: Experiment | None) -> Sizes:
    """What a spec says of its sizes; nothing where there is none."""
    if spec is None:
        return Sizes()
    test, sample = spec.evaluation.test, spec.evaluation.sample
    names = getattr(test, "class_names", CLASS_NAMES if isinstance(test, FruitStallTest) else None)
    is_imagenet = names == "imagenet" or isinstance(test, ImageNetFlat)
    victim = spec.original_victim() if isinstance(spec, CleaningSweep) else spec
    return Sizes(
        pairs=declared_pairs(victim.data) if isinstance(victim, PretrainedVictim) else None,
        cleaning_pairs=declared_pairs(spec.data) if isinstance(spec, CleaningSweep) else None,
        classes=1000 if is_imagenet else len(names) if isinstance(names, tuple) else None,
        test_images=getattr(test, "num_images", None) if sample is None else sample.num,
    )


def _counted_by_steps(sizes: Sizes, field: str, points: Sequence[Point], spec: Any) -> Sizes:
    """With a number of pairs that the spec does not declare: the steps of an epoch, times the pairs of a step.

    Args:
        sizes: so far.
        field: of `Sizes`.
        points: of a run that was trained on the pairs.
        spec: with its optimization; another is passed over.
    """
    if getattr(sizes, field) is not None or not points or not points[-1].epoch or not hasattr(spec, "optimization"):
        return sizes
    steps = points[-1].step / points[-1].epoch
    return dataclasses.replace(sizes, **{field: round(steps * spec.optimization.global_batch_size)})


def _beside_script(run: Run, experiment: Experiment, spec: Experiment | None) -> Run:
    """A run with what tells it from its script's: that it is a miniature, and the fields that differ."""
    whole = sizes_of(experiment)
    is_miniature = run.found != run.name or run.sizes.is_miniature_of(whole)
    if spec is None:
        changed = [] if run.is_imported else ["a spec that is refused today"]
    else:
        changed = _changes(experiment, spec, only_first=is_miniature)
    changed = [*run.sizes.differences(whole), *changed]
    protocol = "" if spec is None else spec.protocol
    return dataclasses.replace(run, is_miniature=is_miniature, protocol=protocol, changed=tuple(changed))


def _changes(script: Experiment, spec: Experiment, *, only_first: bool) -> list[str]:
    """How a spec differs from the script's: model and epochs first, then field by field.

    Args:
        script: what the script has.
        spec: what was run.
        only_first: leave all other fields out: those of a miniature are all others.
    """
    first = [
        f"{name} {own} instead of {other}"
        for (name, other), (_, own) in zip(_facts(script), _facts(spec), strict=False)
        if own != other
    ]
    if only_first:
        return first
    shown = re.compile(r"(victim\.)?(architecture|epochs|data\.num_pairs)\b")  # and sizes, which are said beside them
    lines = [line for line in differences(script.to_json(), spec.to_json(), script) if not shown.match(line)]
    left = len(lines) - MOST_CHANGES
    return [*first, *lines[:MOST_CHANGES], *([f"{left} more fields"] if left > 0 else [])]


def _facts(spec: Experiment) -> list[tuple[str, str]]:
    victim = spec.original_victim() if isinstance(spec, CleaningSweep) else spec
    model = victim.architecture
    facts = [("model", model.name or f"of its own, {model.image_size} pixels")]
    if isinstance(spec, CleaningSweep):
        facts.append(("epochs", f"{spec.epochs}"))
    if isinstance(victim, PretrainedVictim):
        facts.append(("epochs of pre-training", f"{victim.epochs}"))
    return facts


def _result_of(status: dict[str, Any]) -> str:
    """What came out of a sweep so far."""
    victim, best, lowest = status["victim"], status["best"], status["min_asr"]
    if victim is None:
        return "nothing measured yet"
    ceiling = status["asr_ceiling"]
    words = f"victim {percent(victim['accuracy'])} at ASR {percent(victim['asr'])}"
    if best is not None:
        return f"{words}; best keeps {percent(best['retention'])} at ASR {percent(best['asr'], ceiling=ceiling)}"
    return words if lowest is None else f"{words}; none cleaned, lowest ASR {percent(lowest, ceiling=ceiling)}"


def _row(holdings: _Holdings, row: PaperRow, experiments_of: Callable[[PaperRun], Sequence[Experiment]]) -> Row:
    by_run = [(run, [holdings.of(experiment) for experiment in experiments_of(run)]) for run in row.runs]
    found = {one.run.name: one for _, several in by_run for one in several}
    runs = tuple(one.run for one in found.values())
    missing = [run.command for run, several in by_run if not all(one.run.is_complete for one in several)]
    state = NOTHING_TO_RUN if row.is_nothing else NO_RECORD if row.then else NOT_THERE
    numbers = (_number(one, found) for one in published_numbers() if one.row == row.id)
    return Row(
        row.id,
        row.shows,
        state_of(runs) if runs else state,
        runs,
        tuple(numbers),
        (*missing, *([row.then] if row.then else [])),
        row.ours,
        row.lacks,
    )


def _number(published: Published, found: Mapping[str, _Found]) -> Number:
    """A published number with ours."""
    sources = [found[name] for name in published.runs]
    number = Number(
        published.setting,
        published.quantity,
        published.published,
        published.unit,
        published.place,
        published.remark,
        published.run,
        is_printed=bool(published.run) and not published.of,
    )
    if not sources or any(one.run.state == NOT_RUN for one in sources):
        return dataclasses.replace(number, missing=NOT_RUN)
    if published.of in ELSEWHERE:
        return dataclasses.replace(number, missing=ELSEWHERE[published.of])
    values = [_measured(one, published) for one in sources]
    known = [value for value in values if isinstance(value, Ours)]
    labels = dict.fromkeys(one.run.label for one in sources)
    if len(known) < len(values):
        ours, missing = None, next(value for value in values if isinstance(value, str))
    else:
        ours, missing = known[0] if len(known) == 1 else Ours(known[0].value - known[1].value), ""
    return dataclasses.replace(
        number,
        ours=ours,
        missing=missing,
        label="; ".join(filter(None, labels)),
        is_preliminary=any(one.run.state != "finished" for one in sources),
    )


def _measured(found: _Found, published: Published) -> Ours | str:
    if found.victim is not None:
        return of_victim(found.victim, published.quantity, published.of)
    if found.sweep is not None:
        return of_sweep(*found.sweep, published.quantity, published.of)
    return "nothing measured yet"
