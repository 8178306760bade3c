"""Sweeps, victims and tables beside each other: what tells them apart, whether they compare, and what each came to."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from sweeplab.evaluation.retention import counted
from sweeplab.ranking.leaderboard import Leaderboard, LeaderboardRow, column_words, in_percent
from sweeplab.ranking.victims import VictimRow
from sweeplab.records import SweepRecord, percent
from sweeplab.specs import InvalidInput
from sweeplab.terminal import FramedTable, Name

HIDDEN = (
    *("name", "space", "grid", "search", "resources", "notes", "measure_at", "log_every", "text_augmentation"),
    *("victim.name", "victim.resources", "victim.keep_epochs", "victim.text_augmentation"),
)
"""Parts of a spec that are no reason for another result, or say how it was searched for."""


TEST_IMAGES, TEST_SETS = "test images", "test sets"
"""In `Compared.measured`: the digest of the images themselves, and that of the spec that names them."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What the three kinds of things that are compared have in common."""

    name: str
    victim: str
    """Name of the victim that it cleans, or is, or was made of; empty: not known."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The values of its spec by their path, `victim.poisoning.rate`; of a victim alone they begin with `victim.` too.
    Empty where no spec is known."""
    measured: Mapping[str, str] = field(default_factory=dict)
    """What its accuracy was measured on, by what has to be equal. What is not known is left out."""

    @property
    def settings(self) -> Sequence[Mapping[str, Any]]:
        """The parameters of a sweep's trials; of anything else none, once."""
        return [{}]

    @property
    def measures(self) -> str:
        """What stands in the place of the ASR: `PSR` under targeted poisoning."""
        attacks = {self.fields.get("victim.poisoning.kind"), self.fields.get("victim.attack.kind")}
        return "PSR" if "targeted-images" in attacks else "ASR"

    def value(self, by: str, params: Mapping[str, Any]) -> Any:
        """The value of a field, or of a searched parameter in a trial's `params`; where a parameter is not searched,
        that of its field. None: it has none."""
        places = (by, *(f"{part}.{by}" for part in ("method", "start", "optimization")))
        return params[by] if by in params else next((self.fields[p] for p in places if p in self.fields), None)


@dataclass(frozen=True, kw_only=True)
class ComparedSweep(Compared):
    """A sweep and the ranking of its trials."""

    record: SweepRecord
    board: Leaderboard
    is_imported: bool = False
    """Whether it is a table from elsewhere, of whose images nothing is known but, at most, their numbers."""

    @property
    def settings(self) -> Sequence[Mapping[str, Any]]:
        """One a trial."""
        return [trial.params for trial in self.record.trials] or [{}]


@dataclass(frozen=True, kw_only=True)
class ComparedVictim(Compared):
    """A victim that was trained for its own sake, or one behind a sweep."""

    row: VictimRow

    @property
    def measures(self) -> str:
        """As its folder says."""
        return self.row.measures


@dataclass(frozen=True, kw_only=True)
class ComparedTable(Compared):
    """What `sweeplab examine` found over checkpoints."""

    table: pd.DataFrame
    """See `examine.dynamics_table`."""


def fields_of(spec: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values in a spec's JSON by their path; without those in `HIDDEN`, lists in one piece as JSON.

    Args:
        spec: JSON values.
        path: where they stand; `victim` for a victim alone.
    """
    if path in HIDDEN:
        return
    if isinstance(spec, Mapping):
        for name, value in spec.items():
            yield from fields_of(value, f"{path}.{name}" if path else name)
    else:
        yield path, spec if spec is None or isinstance(spec, (str, int, float)) else json.dumps(spec)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and by what it is told apart: the series of the figures."""

    items: tuple[Compared, ...]
    by: str | None = None
    """Path of a field, or a searched parameter; None: each item is a series of its own, by its name."""

    @classmethod
    def of(cls, items: Sequence[Compared], by: str | None = None) -> "Comparison":
        """Compare what was measured on the same images.

        Args:
            items: one or more.
            by: end of a field's path (`rate`, `poisoning.rate`), or a searched parameter; None: chosen, where a field
                tells the sweeps of each victim, or the victims, apart.

        Raises:
            InvalidInput: for measurements that do not compare, or a field that there is not, or is several.
        """
        check_same_images(items)
        return cls(tuple(items), telling_field(items) if by is None else full_path(items, by))

    @property
    def sweeps(self) -> list[ComparedSweep]:
        """The items that are sweeps."""
        return [item for item in self.items if isinstance(item, ComparedSweep)]

    @property
    def others(self) -> list[Compared]:
        """Victims alone, and tables."""
        return [item for item in self.items if not isinstance(item, ComparedSweep)]

    @property
    def rate(self) -> str:
        """What is measured beside the accuracy: `ASR`, `PSR` or `ASR or PSR`."""
        measured = {item.measures for item in self.items if not isinstance(item, ComparedTable)}
        return " or ".join(sorted(measured)) or "ASR"

    @property
    def asr_ceiling(self) -> float:
        """Of all sweeps, a fraction."""
        return self.sweeps[0].record.asr_ceiling

    @cached_property
    def _words(self) -> dict[Any, str]:
        """What each value of the field is called, in the order of the series."""
        if self.by is None:
            return {}
        told_apart = self.sweeps or self.others  # beside sweeps, victims are what they were made of
        values = dict.fromkeys(item.value(self.by, params) for item in told_apart for params in item.settings)
        ordered = sorted(values) if all(map(is_number, values)) else list(values)
        return {value: in_words(self.by, word) for value, word in zip(ordered, column_words(ordered), strict=True)}

    @cached_property
    def series(self) -> tuple[str, ...]:
        """Their labels, in order."""
        return tuple(dict.fromkeys(item.name for item in self.items) if self.by is None else self._words.values())

    def value(self, item: Compared, params: Mapping[str, Any]) -> Any:
        """That of the field which makes the series; None: it has none, or none makes them."""
        return None if self.by is None else item.value(self.by, params)

    def label(self, item: Compared, params: Mapping[str, Any]) -> str:
        """The series that a trial of an item belongs to; of a victim or a table, which have no trials, `params` is
        empty."""
        if self.by is None:
            return item.name
        value = item.value(self.by, params)
        return VICTIM if value is None and self.sweeps and item in self.others else self._words[value]

    def trial_ids(self) -> dict[str, int]:
        """What is added to a trial's number so that no trial of another sweep has the same one, by the sweep's name."""
        first, found = 0, {}
        for item in self.sweeps:
            found[item.name] = first
            first += 1 + max((trial.number for trial in item.record.trials), default=0)
        return found

    def check_trials(self, numbers: Sequence[int]) -> None:
        """Refuse numbers of trials of which nothing can be shown.

        Raises:
            InvalidInput: for a number that no trial has which has begun, in any of the sweeps; with those that there
                are.
        """
        known = sorted({trial.number for item in self.sweeps for trial in item.record.trials if trial.points})
        for number in numbers:
            if not self.sweeps:
                raise InvalidInput(f"--trial {number}: no sweep is compared, and nothing else has trials")
            if number not in known:
                raise InvalidInput(f"--trial {number}: no trial of that number has begun; known: {_runs(known)}")

    @cached_property
    def _other_fields(self) -> list[str]:
        """Those in which victims and tables of one series differ."""
        fields = differing([item.fields for item in self.others])
        return [path for path in fields if path != self.by and not follows(path, self.by, self.others)]

    def group(self, item: Compared) -> str:
        """The panel, or group of bars, that an item stands in: its victim; where victims and tables alone are compared,
        the fields beside the series."""
        if self.sweeps:
            return item.victim
        if self.by is None:
            return ""
        shown = [(path, [other.fields.get(path) for other in self.others]) for path in self._other_fields]
        place = self.others.index(item)
        return ", ".join(in_words(path, column_words(values)[place]) for path, values in shown)


def _runs(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: 0 to 3, 7."""
    starts = [place for place, number in enumerate(numbers) if not place or number > numbers[place - 1] + 1]
    runs = [numbers[start:end] for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True)]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs) or "none"


def is_number(value: Any) -> bool:
    """Whether it lies on an axis."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def short_path(path: str) -> str:
    """The field's own name."""
    return path.rpartition(".")[2]


def in_words(path: str, word: str) -> str:
    """A field and its value; of a kind the value says it all."""
    return word if short_path(path) == "kind" and word != "–" else f"{short_path(path)} {word}"


def differing(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """Paths that do not have one value in all; a field that some do not have differs. Where a part is of different
    kinds, its kind stands for its other fields."""
    paths = dict.fromkeys(path for one in fields for path in one)
    found = [path for path in paths if len({one.get(path) for one in fields}) > 1]
    parts = tuple(path.removesuffix("kind") for path in found if path.endswith(".kind"))
    return [path for path in found if path.endswith(".kind") or not path.startswith(parts)]


def follows(path: str, by: str | None, items: Sequence[Compared]) -> bool:
    """Whether the value of a field is decided by that of another one."""
    pairs = {(item.fields.get(by or ""), item.fields.get(path)) for item in items}
    return by is not None and len(pairs) == len({first for first, _ in pairs})


def notes_of(comparison: Comparison) -> list[str]:
    """What the sweeps' own tables say beside their numbers, and what is not known of whether they compare, each once,
    with the sweeps that it is said of."""
    said: dict[str, list[str]] = {}
    for item in comparison.sweeps:
        for note in item.board.notes:
            said.setdefault(note, []).append(item.name)
        if item.is_imported and not item.measured and len(comparison.items) > 1:
            said.setdefault("the table has no counts, so it may be measured on another number of images", []).append(
                item.name
            )
    return [f"{', '.join(names)}: {note}" for note, names in said.items()]


def telling_field(items: Sequence[Compared]) -> str | None:
    """The field by which the sweeps of each victim are told apart, where several victims have the same ones; or by
    which the most victims are. Kinds come first. None: there is none, or but one victim is cleaned."""
    sweeps = [item for item in items if isinstance(item, ComparedSweep)]
    compared: Sequence[Compared] = sweeps or items
    if sweeps and len({item.victim for item in sweeps}) < 2:
        return None
    paths = [path for path in differing([item.fields for item in compared]) if not (sweeps and is_of_victim(path))]
    for path in sorted(paths, key=lambda path: short_path(path) != "kind"):
        values = [item.fields.get(path) for item in compared]
        places = {(item.victim, value) for item, value in zip(compared, values, strict=True)}
        if len(set(values)) < len(compared) and (not sweeps or len(places) == len(compared)):
            return path
    return None


def is_of_victim(path: str) -> bool:
    """Whether a field belongs to the victim."""
    return path.startswith("victim.")


def full_path(items: Sequence[Compared], by: str) -> str:
    """The field, or the searched parameter, that a user names.

    Raises:
        InvalidInput: if there is none of that name, or several; the message lists those that differ.
    """
    if any(by in params for item in items for params in item.settings):
        return by
    paths = dict.fromkeys(path for item in items for path in item.fields)
    found = [path for path in paths if path == by] or [path for path in paths if f".{path}".endswith(f".{by}")]
    if len(found) > 1:  # such as a field of every method
        found = [path for path in differing([item.fields for item in items]) if path in found] or found
    if len(found) != 1:
        searched = dict.fromkeys(name for item in items for params in item.settings for name in params)
        known = ", ".join([*searched, *differing([item.fields for item in items])])
        what = f"is one of {', '.join(found)}; give more of its path" if found else "is no field and no parameter"
        raise InvalidInput(f"--by {by} {what}; these take several values: {known or 'none'}")
    return found[0]


def check_same_images(items: Sequence[Compared]) -> None:
    """Refuse what was measured otherwise: numbers of different images do not stand in one figure.

    Raises:
        InvalidInput: with what differs, and in which items.
    """
    facts = dict.fromkeys(name for item in items for name in item.measured)
    if all(TEST_IMAGES in item.measured for item in items if TEST_SETS in item.measured):
        facts.pop(TEST_SETS, None)  # the same images may be read from another place
    for what in facts:
        known = {item.name: item.measured[what] for item in items if what in item.measured}
        _refuse_different(f"they were measured on other {what}", known)
    sweeps = [item for item in items if isinstance(item, ComparedSweep)]
    _refuse_different(
        "their ASR ceilings differ", {item.name: percent(item.board.asr_ceiling, None) for item in sweeps}
    )
    for victim in dict.fromkeys(item.victim for item in sweeps):
        digests = {item.name: item.record.victim.evaluation_digest for item in sweeps
                   if item.victim == victim and item.measured and not item.is_imported}  # fmt: skip
        _refuse_different(f"of victim {victim}, other triggers, targets or draws of them were measured", digests)


def _refuse_different(what: str, known: Mapping[str, str]) -> None:
    values = dict.fromkeys(known.values())
    if len(values) > 1:
        words = [f"{', '.join(name for name in known if known[name] == value)}: {value}" for value in values]
        raise InvalidInput(f"these do not compare, since {what}:\n  " + "\n  ".join(words))


MARKS = (None, "points", "frontier", "line")
"""What a series may be drawn as; None: all that applies."""

# --- what each came to


def result_table(comparison: Comparison) -> pd.DataFrame:
    """The best of each sweep in each series: its most accurate cleaned point, else the one of lowest ASR.

    Columns: `group`, `series`, `value` (of the field that makes the series), `name` (of the sweep or victim), `trial`
    (missing for a victim), `epoch`, `accuracy`, `asr` (fractions), `measures` (what `asr` is: `ASR` or `PSR`),
    `retention`, `cleaned`, `lowest_asr`, `trials` (missing for victims). A sweep's victim stands before its group, its
    series is `victim`; a victim alone is at its selected epoch.
    """
    rows: list[dict[str, Any]] = []
    places = {series: place for place, series in enumerate(comparison.series)}
    for group in dict.fromkeys(comparison.group(item) for item in comparison.sweeps):
        members = [item for item in comparison.sweeps if comparison.group(item) == group]
        first = members[0].record
        victim = {"accuracy": first.victim.accuracy, "asr": first.victim.asr, "epoch": first.victim_epoch}
        head = {"group": group, "series": VICTIM, "name": members[0].victim, "measures": members[0].measures}
        rows.append(head | victim)
        found = [row for item in members for row in _results(comparison, item)]
        rows += sorted(({"group": group, **row} for row in found), key=lambda row: places[row["series"]])
    for one in comparison.others:
        is_shown = any(row["group"] == one.victim for row in rows)  # as the victim of a sweep
        if isinstance(one, ComparedVictim) and (known := one.row.measurement) is not None and not is_shown:
            head = {"group": comparison.group(one), "series": comparison.label(one, {}), "name": one.name}
            rates = {"accuracy": known.accuracy, "asr": known.asr, "measures": one.measures, "epoch": one.row.epoch}
            rows.append({**head, "value": comparison.value(one, {}), **rates})
    frame = pd.DataFrame(rows, columns=RESULT_COLUMNS, dtype=object)  # whole numbers stay whole where some are missing
    return frame.where(frame.notna(), None)


def best_results(results: pd.DataFrame) -> pd.DataFrame:
    """One row a group and series of `result_table`: of several sweeps the better one."""
    worth = np.where(results["cleaned"].eq(True), -results["accuracy"].astype(float), results["asr"].astype(float))
    return results.iloc[np.argsort(worth, kind="stable")].drop_duplicates(["group", "series"]).sort_index()


RESULT_COLUMNS = ("group", "series", "value", "name", "trial", "epoch", "accuracy", "asr", "measures", "retention",
                  "cleaned", "lowest_asr", "trials")  # fmt: skip


def _results(comparison: Comparison, item: ComparedSweep) -> list[dict[str, Any]]:
    """The best of a sweep's trials in each series; nothing of trials without a point that may win."""
    best: dict[str, LeaderboardRow] = {}
    trials: Counter[str] = Counter()
    lowest: dict[str, float] = {}
    for row in item.board.rows:  # best first
        series = comparison.label(item, row.params)
        trials[series] += 1
        if row.min_asr is not None:
            best.setdefault(series, row)
            lowest[series] = min(lowest.get(series, 1.0), row.min_asr)
    return [
        {"series": series, "value": comparison.value(item, row.params), "name": item.name, "trials": trials[series]}
        | {"lowest_asr": lowest[series], "measures": item.measures, **_point_of(item, row)}
        for series, row in best.items()
    ]


VICTIM = "victim"
"""Series of a victim before it is cleaned."""


def _point_of(item: ComparedSweep, row: LeaderboardRow) -> dict[str, Any]:
    """A trial's best cleaned point, else that of its lowest ASR."""
    found: dict[str, Any] = {"trial": row.trial, "cleaned": row.feasible, "retention": row.retention}
    if row.feasible:
        return found | {"epoch": row.epoch, "accuracy": row.accuracy, "asr": row.asr}
    trial = next(trial for trial in item.record.trials if trial.number == row.trial)
    lowest = [p for p in counted(trial.points, start_counts=trial.start_counts) if p.measurement.asr == row.min_asr]
    best = max(lowest, key=lambda point: point.measurement.accuracy)
    return found | {"epoch": best.epoch, "accuracy": best.measurement.accuracy, "asr": row.min_asr}


MOST_ROWS = 60
"""Of the table in the terminal."""


def render_results(comparison: Comparison) -> Table:
    """The first rows of `result_table` for the terminal; percentages with one decimal."""
    title = "\n".join(f"note: {note}" for note in notes_of(comparison))
    table = FramedTable(box=None, header_style="bold", pad_edge=False, title=Text(title) if title else None)
    frame = result_table(comparison)
    ceiling = comparison.asr_ceiling if comparison.sweeps else None
    several = frame["group"].nunique() > 1
    for heading in (*(("victim",) if several else ()), "series", "trial"):
        table.add_column(heading)
    rate = comparison.rate
    for heading in ("epoch", "acc. %", f"{rate} %", "kept %", f"lowest {rate} %"):
        table.add_column(heading, justify="right", no_wrap=True)
    if len(frame) > MOST_ROWS:
        table.caption = f"the first {MOST_ROWS} of {len(frame):,} rows; --json gives all of them"
    for row in frame.head(MOST_ROWS).to_dict("records"):
        trial = "" if row["trial"] is None else f"{row['trial']}" + ("" if row["cleaned"] else " (not cleaned)")
        rates = [in_percent(row["accuracy"]), in_percent(row["asr"], ceiling)]
        rates += [in_percent(row["retention"]), in_percent(row["lowest_asr"], ceiling)]
        if row["measures"] != rate:  # of both
            rates[1] += f" ({row['measures']})"
        group = [Name(row["group"])] if several else []
        table.add_row(*group, Name(row["series"]), trial, f"{row['epoch']:g}", *rates)
    return table
