"""What came out of a paper's experiments here beside what the paper says: rows, runs and numbers, as values."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from sweeplab.ranking.intervals import wilson
from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.ranking.victims import VictimRow
from sweeplab.records import Measurement, SweepRecord, number_of, percent

SIZE_WORDS = ("pairs", "to clean with", "classes", "test images")
"""Of the fields of `Sizes`."""


@dataclass(frozen=True)
class Sizes:
    """How much a run trains and measures on; None: not known."""

    pairs: int | None = None
    """That the victim is trained on."""
    cleaning_pairs: int | None = None
    classes: int | None = None
    test_images: int | None = None

    def in_words(self) -> str:
        """Such as `1,280 pairs, 320 to clean with, 16 classes, 160 test images`."""
        counts = zip(dataclasses.astuple(self), SIZE_WORDS, strict=True)
        return ", ".join(f"{count:,} {word}" for count, word in counts if count is not None) or "sizes not known"

    def differences(self, whole: "Sizes") -> list[str]:
        """Those that are not what they should be, such as `160 test images instead of 50,000`."""
        triples = zip(dataclasses.astuple(self), dataclasses.astuple(whole), SIZE_WORDS, strict=True)
        known = ((own, other, word) for own, other, word in triples if None not in (own, other))
        return [f"{own:,} {word} instead of {other:,}" for own, other, word in known if own != other]

    def is_miniature_of(self, whole: "Sizes") -> bool:
        """Whether any of the sizes is less than half of what it should be."""
        both = zip(dataclasses.astuple(self), dataclasses.astuple(whole), strict=True)
        return any(own is not None and other is not None and 2 * own < other for own, other in both)


@dataclass(frozen=True)
class Run:
    """A sweep or a victim that belongs to a row, as the home holds it."""

    name: str
    """In the script."""
    found: str
    """In the home, where a miniature has a name of its own; empty: it holds none."""
    is_victim: bool
    state: str
    """`not run`, `running`, `interrupted`, `finished` or `damaged`."""
    num_over: int
    """Trials that are over, or 1 for a victim that is finished."""
    num_planned: int
    num_in_script: int
    """Trials that the script plans; 1 for a victim."""
    num_failed: int = 0
    is_miniature: bool = False
    """By its name, or by its sizes."""
    is_imported: bool = False
    """From a table that was measured elsewhere."""
    protocol: str = ""
    """Empty: not known."""
    sizes: Sizes = Sizes()
    result: str = ""
    """What came out so far, in words."""
    changed: tuple[str, ...] = ()
    """How it differs from its script, a phrase each."""
    notes: tuple[str, ...] = ()
    """Sentences without which its results could be misread."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing of it is left to be run, and it is what its script has."""
        is_whole = not self.is_miniature and not self.changed
        return self.state == "finished" and is_whole and self.num_over >= self.num_in_script

    @property
    def kind(self) -> str:
        """That it is imported or a miniature, with its sizes; empty for a run in full size that was made here."""
        kinds = [word for word, holds in (("imported", self.is_imported), ("miniature", self.is_miniature)) if holds]
        return f"{', '.join(kinds)}: {self.sizes.in_words()}" if kinds else ""

    @property
    def label(self) -> str:
        """What has to stand beside each of its numbers; empty for its script's run in full size that was made here."""
        if self.is_miniature or not self.changed:
            return self.kind
        more = f" and {len(self.changed) - 1} more" if len(self.changed) > 1 else ""
        return "; ".join(filter(None, [self.kind, f"differs: {self.changed[0]}{more}"]))


@dataclass(frozen=True)
class Ours:
    """A quantity as it was measured here, in the unit of the published number."""

    value: float
    low: float | None = None
    """Wilson's 95 % interval; of a change with the victim's accuracy held fixed. None: no counts of images are known,
    or none are meant."""
    high: float | None = None


@dataclass(frozen=True)
class Number:
    """A published number, and ours."""

    setting: str
    quantity: str
    published: str
    """As it is printed; with `~` for about, and `..` between the ends of a range."""
    unit: str
    place: str
    remark: str
    run: str
    """What measures it here, in the script's words; empty: nothing."""
    is_printed: bool = False
    """Whether the row's last command prints ours, which is not read back."""
    ours: Ours | None = None
    missing: str = ""
    """Why there is none of ours."""
    label: str = ""
    """Of its runs; see `Run.label`."""
    is_preliminary: bool = False
    """Whether a run of it is not finished."""

    def published_in_words(self) -> str:
        """With its unit."""
        return f"{self.published.replace('~', 'about ').replace('..', ' to ')} {self.unit}".rstrip()

    def ours_parts(self) -> tuple[str, str]:
        """Our value with its unit, and its interval; each empty where there is none.

        Rates have as many decimals as the published one, and one at least; differences have a sign.
        """
        if self.ours is None:
            return "", ""
        form = ".4g"
        if self.unit:
            decimals = 1 if ".." in self.published else max(1, len(self.published.partition(".")[2]))
            form = f"{'+' if self.quantity == 'change' or self.unit == 'points' else ''}.{decimals}f"
        value, low, high = self.ours.value, self.ours.low, self.ours.high
        interval = "" if low is None or high is None else f"{low:{form}} to {high:{form}}"
        return f"{value:{form}} {self.unit}".rstrip(), interval

    def ours_in_words(self) -> str:
        """Ours with its interval, or why there is none."""
        value, interval = self.ours_parts()
        if not value:
            return self.missing
        return value + (f" ({interval})" if interval else "") + (" so far" if self.is_preliminary else "")


@dataclass(frozen=True)
class Row:
    """A table, figure or ablation of a paper."""

    id: str
    shows: str
    state: str
    runs: tuple[Run, ...]
    numbers: tuple[Number, ...]
    commands: tuple[str, ...]
    """Those that make what is missing; then, where it has one, the command that measures or draws the rest."""
    chosen: str
    """What is chosen here, or done otherwise than in the paper."""
    lacks: str
    """What of it cannot be made yet."""

    @property
    def is_in_miniature(self) -> bool:
        """Whether something of it was run, and nothing in full size."""
        begun = [run for run in self.runs if run.found]
        return bool(begun) and all(run.is_miniature for run in begun)


@dataclass(frozen=True)
class Reproduction:
    """Rows of one paper."""

    paper: str
    title: str
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """What `sweeplab reproduce --json` prints; `ours` has the unit of the published number beside it."""
        return dataclasses.asdict(self)


NOTHING_TO_RUN, NO_RECORD, NOT_THERE, NOT_RUN, DONE = "nothing to run", "no record", "not there yet", "not run", "done"


def state_of(runs: Sequence[Run]) -> str:
    """The state of a row that has runs: `not run`, `running`, how many trials or victims are over, or `done`.

    Miniatures count only where nothing in full size was begun, and are named so. What is over counts against what the
    scripts plan, and a run that differs from its script makes no row done.
    """
    begun = [run for run in runs if run.state != NOT_RUN]
    if not begun:
        return NOT_RUN
    full = [run for run in begun if not run.is_miniature]
    counted = {run.name for run in full or begun}
    over, planned = Counter[bool](), Counter[bool]()
    for run in runs:
        planned[run.is_victim] += run.num_in_script
        over[run.is_victim] += min(run.num_over, run.num_in_script) if run.name in counted else 0
    failed = sum(run.num_failed for run in runs if run.name in counted)
    differing = sum(bool(run.changed) for run in full)
    words = DONE
    if over != planned or differing:
        kinds = ((True, "victim"), (False, "trial"))
        words = ", ".join(f"{over[kind]} of {number_of(planned[kind], word)}" for kind, word in kinds if planned[kind])
    if any(run.state == "running" for run in runs if run.name in counted):
        words = f"running, {words}"
    if differing:
        words += f", {differing} differing"
    if failed:
        words += f", {failed} failed"
    if damaged := sum(run.state == "damaged" for run in runs):
        words += f", {damaged} damaged"
    if any(run.is_imported for run in begun if run.name in counted):
        words += ", imported"
    return words if full else f"{words}, in miniature"


def of_victim(row: VictimRow, quantity: str, of: str) -> Ours | str:
    """A quantity of a victim at its selected epoch, or at its first, or why there is none."""
    measured = row.measurement
    if of == "first epoch":
        measured = next((point.measurement for point in row.points if point.epoch > 0), None)
    if quantity == "flagged poisons" and "flagged_poisons" in row.found:
        return Ours(row.found["flagged_poisons"])
    return _rate(measured, quantity) if measured is not None else "nothing measured yet"


def of_sweep(record: SweepRecord, board: Leaderboard, quantity: str, of: str) -> Ours | str:
    """A quantity of a sweep, or why there is none.

    Args:
        record: of the sweep.
        board: of the same.
        quantity: see `Published`; another one is a parameter of the best trial.
        of: see `Published`.
    """
    if of == "victim":
        return _rate(record.victim, quantity)
    lowest = min((row.min_asr for row in board.rows if row.min_asr is not None), default=None)
    if lowest is None:
        return "nothing measured yet"
    if of == "all":
        return _interval(round(lowest * record.victim.asr_n), record.victim.asr_n, record.victim.is_counted)
    if of == "only":
        trial = next((one for one in record.trials if one.number == board.rows[0].trial and len(one.points) > 1), None)
        return _rate(trial.points[-1].measurement, quantity) if trial is not None else "nothing measured yet"
    best = board.winner
    if best is None or best.retention is None or best.accuracy is None or best.asr is None:
        return f"none below {percent(board.asr_ceiling, None)} ASR, lowest {percent(lowest, ceiling=board.asr_ceiling)}"
    if quantity == "change":
        ends = (best.retention_low, best.retention_high)
        low, high = (None if end is None else 100 * (end - 1) for end in ends)
        return Ours(100 * (best.retention - 1), low, high)
    if quantity in ("accuracy", "ASR", "PSR"):
        point = next(trial for trial in record.trials if trial.number == best.trial)
        found = next(one for one in point.points if one.epoch == best.epoch)
        return _rate(found.measurement, quantity)
    value = best.params.get(quantity)
    return Ours(float(value)) if isinstance(value, (int, float)) else f"not searched: {quantity}"


def _rate(measured: Measurement, quantity: str) -> Ours | str:
    if quantity == "accuracy":
        return _interval(measured.accuracy_k, measured.accuracy_n, measured.is_counted)
    if quantity in ("ASR", "PSR") and measured.asr_n:
        return _interval(measured.asr_k, measured.asr_n, measured.is_counted)
    return f"not measured: {quantity}"


def _interval(k: int, n: int, is_counted: bool) -> Ours:
    """A share in percent; without an interval where only fractions are known."""
    low, high = wilson(k, n) if is_counted else (None, None)
    return Ours(100 * k / n, *(None if end is None else 100 * end for end in (low, high)))


def counts(found: Reproduction) -> list[tuple[str, int, str]]:
    """How many rows are in which state, each with a name and a remark."""
    to_run = [row for row in found.rows if row.runs]
    small = sum(row.is_in_miniature for row in to_run)
    done = sum(all(run.is_complete for run in row.runs) for row in to_run)
    not_run = sum(row.state == NOT_RUN for row in to_run)
    numbers = [number for row in found.rows for number in row.numbers]
    ours = [number for number in numbers if number.ours is not None]
    whole = sum(not number.label for number in ours)
    return [
        ("Rows done", done, f"of {len(to_run)} that {'has' if len(to_run) == 1 else 'have'} runs"),
        ("Begun", len(to_run) - done - small - not_run, "not all of it is over"),
        ("In miniature alone", small, "nothing in full size"),
        ("Not run", not_run, f"and {len(found.rows) - len(to_run)} without a run"),
        ("Numbers beside ours", whole, f"of {len(numbers)}; {len(ours) - whole} more by runs that say how they differ"),
    ]


def summary(found: Reproduction) -> str:
    """How many rows are in which state, in one sentence."""
    (_, done, of), (_, begun, _), (_, small, _), (_, not_run, rest), _ = counts(found)
    return f"{number_of(done, 'row')} done {of}, {begun} begun, {small} in miniature alone, {not_run} not run ({rest})"


def shown(found: Reproduction, *, all_rows: bool) -> list[Row]:
    """The rows whose numbers and runs are shown: all, or those of which the home holds something."""
    return [row for row in found.rows if all_rows or any(run.found for run in row.runs)]


def render_rows(found: Reproduction) -> Table:
    """The rows with their states, for the terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False, title=found.title, title_justify="left")
    table.add_column("row", no_wrap=True)
    table.add_column("state")
    table.add_column("shows")
    for row in found.rows:
        table.add_row(row.id, row.state, row.shows, style="" if any(run.found for run in row.runs) else "dim")
    return table


def render_numbers(found: Reproduction, *, all_rows: bool) -> Table:
    """Published numbers and ours, for the terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("row", "setting", "quantity"):
        table.add_column(name)
    for name in ("published", "ours (95 %)"):
        table.add_column(name, justify="right")
    table.add_column("place; remark")
    for row in shown(found, all_rows=all_rows):
        for number in row.numbers:
            ours = number.ours_in_words() + (f"\n{number.label}" if number.label else "")
            place = f"{number.place}; {number.remark}" if number.remark else number.place
            cells = (row.id, number.setting, number.quantity, number.published_in_words(), ours, place)
            table.add_row(*map(Text, cells))
    return table


def detail_lines(found: Reproduction, *, all_rows: bool) -> list[str]:
    """What else is to be said of rows: their runs, how these differ, what is chosen here, and the commands."""
    lines = []
    for row in shown(found, all_rows=all_rows):
        lines += ["", f"{row.id}: {row.state}"]
        for run in row.runs:
            lines += [f"  {line}" for line in run_lines(run)]
        lines += [f"  ours: {row.chosen}"] if row.chosen else []
        lines += [f"  not yet: {row.lacks}"] if row.lacks else []
        lines += [f"  run: {command}" for command in row.commands]
    hint = (
        "" if all_rows else f"; `sweeplab reproduce {found.paper} ROW` says all of a row, and the command that makes it"
    )
    return [*lines, "", *protocol_lines(found), summary(found) + hint]


def printed_lines(rows: Sequence[Row]) -> list[str]:
    """How many of the rows' published numbers never have ours beside them here; none where all may have it."""
    numbers = [number for row in rows for number in row.numbers]
    ids = [row.id for row in rows if any(number.is_printed for number in row.numbers)]
    if not ids:
        return []
    count = f"{sum(number.is_printed for number in numbers)} of {number_of(len(numbers), 'published number')}"
    return [f"{count}, of {', '.join(ids)}: ours is printed by the row's last command, and is not read back here"]


def protocol_lines(found: Reproduction) -> list[str]:
    """Under which protocol the runs are, and that the published numbers are under neither; none where none is known."""
    known = sorted({run.protocol for row in found.rows for run in row.runs if run.protocol})
    if not known:
        return []
    return [
        f"ours: protocol {' and '.join(known)}; the published numbers come from the authors' code, which differs in "
        "what sweeplab/protocol.py lists (docs/methods.md, Two protocols)"
    ]


def run_lines(run: Run) -> list[str]:
    """A run in words: its state and result; what has to stand beside its numbers; how it differs from its script."""
    if not run.found:
        return [f"{run.name}: {run.state}"]
    over = "" if run.is_victim else f", {run.num_over} of {number_of(run.num_planned, 'trial')}"
    head = f"{run.found}: {run.state}{over}" + (f"; {run.result}" if run.result else "")
    differs = [f"  differs: {', '.join(run.changed)}"] if run.changed else []
    return [head, *([f"  {run.kind}"] if run.kind else []), *differs, *(f"  note: {note}" for note in run.notes)]


def markdown(found: Reproduction) -> str:
    """The rows, the numbers and the runs as Markdown tables."""
    lines = [*printed_lines(found.rows), *protocol_lines(found)]
    parts = [
        "".join(f"{line}\n" for line in (f"# {found.title}\n", f"{summary(found)}.", *(f"{one}." for one in lines))),
        _table(
            ("row", "shows", "state", "commands"),
            [
                (f"`{row.id}`", row.shows, row.state, "<br>".join(f"`{one}`" for one in row.commands))
                for row in found.rows
            ],
        ),
    ]
    numbers = [
        (
            *(f"`{row.id}`", number.setting, number.quantity, number.published_in_words()),
            "<br>".join(filter(None, (number.ours_in_words(), number.label))),
            "; ".join(filter(None, (number.place, number.remark))),
        )
        for row in found.rows
        for number in row.numbers
    ]
    if numbers:
        heads = ("row", "setting", "quantity", "published", "ours (95 %)", "place; remark")
        parts.append("## Published numbers and ours\n\n" + _table(heads, numbers))
    runs = {run.name: run for row in found.rows for run in row.runs if run.found}
    if runs:
        parts.append(
            "## Runs of this home\n\n"
            + "".join(f"- {'; '.join(map(str.strip, run_lines(run)))}\n" for run in runs.values())
        )
    return "\n".join(parts)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
