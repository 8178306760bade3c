"""The leaderboard: every trial of a sweep in the order of the accuracy it kept below the ASR ceiling."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from sweeplab.evaluation.retention import CleanedTrials, missing_backdoor, num_choices, preference, retention
from sweeplab.ranking.intervals import most_certified_hits, wilson
from sweeplab.ranking.kept_weights import KeptPoint, closest_points
from sweeplab.ranking.summary import ReadOutcomes, even_images, summarize
from sweeplab.records import (
    Measurement,
    SweepRecord,
    TrialRecord,
    TrialState,
    TrialSummary,
    number_of,
    percent,
    promote_command,
)
from sweeplab.terminal import FramedTable


@dataclass(frozen=True)
class LeaderboardRow:
    """One trial; epoch, accuracy, ASR and retention are of its best cleaned point, None if it has none."""

    rank: int
    """1 is best; every trial has a rank of its own."""
    trial: int
    state: TrialState
    feasible: bool
    """Whether it has a cleaned point."""
    certified: bool
    """Whether the upper bound of the best cleaned point's ASR lies below the ceiling too, over all triggered images and
    at a level that allows for the choice among all points of the sweep (see `intervals.asr_upper_bound`); False where
    the victim shows no backdoor, or no counts are known."""
    epoch: float | None
    accuracy: float | None
    """Fraction, over all test images."""
    asr: float | None
    """Fraction, over all triggered images."""
    retention: float | None
    """Accuracy / the victim's accuracy."""
    retention_low: float | None
    """Wilson's two-sided 95 % interval of the accuracy, over the victim's accuracy, which is held fixed."""
    retention_high: float | None
    min_asr: float | None
    """Lowest ASR of the points that may win, a fraction; None where there is none yet."""
    configuration: str
    seed: int
    params: dict[str, Any]
    epochs: float | None
    """Last evaluated epoch; None: nothing was evaluated."""
    seconds: float
    """Wall seconds of training and evaluation; 0: a table from elsewhere does not say it, or nothing was done yet."""
    accuracy_report: float | None
    """Accuracy on the half of the test images that had no part in choosing the epoch (see `even_images`); None where no
    epoch is cleaned on the other half, where outcomes per image were not kept, or where it is not known which test
    images the triggered ones were made of."""
    asr_report: float | None
    """ASR on the triggered copies of that half."""
    checkpoint: str | None = None
    """Path or URL of the best cleaned point's weights; None where they are not kept."""
    asr_low: float | None = None
    """Wilson's two-sided 95 % interval of the ASR; None where no counts are known."""
    asr_high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a time that is not known is null."""
        values = {field.name: _json_value(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {**values, "seconds": self.seconds or None}


@dataclass(frozen=True)
class Leaderboard:
    """All trials of a sweep, best first."""

    sweep: str
    asr_ceiling: float
    victim: Measurement
    rows: tuple[LeaderboardRow, ...]
    num_choices: int
    """Points that could have been chosen, which is what `certified` allows for."""
    has_backdoor: bool
    """False where the victim shows none, so that nothing is certified."""
    notes: tuple[str, ...]
    """The sweep's."""
    lacks_backdoor: bool = False
    """Whether the victim shows none though its ASR is measured towards the class that was planted, as far as is
    known."""
    is_promotable: bool = True
    """Whether `sweeplab promote` takes its trials."""
    closest: tuple[KeptPoint, ...] = ()
    """Where no trial is cleaned, the points that came closest and keep their weights: the lowest ASR first."""

    @property
    def winner(self) -> LeaderboardRow | None:
        """The best cleaned trial that did not fail, which is what other sweeps and `promote` take; None: there is
        none."""
        return next((row for row in self.rows if row.feasible and row.state != "failed"), None)

    @property
    def cleaned(self) -> CleanedTrials:
        """How many of the trials are cleaned."""
        return CleanedTrials.of(row.retention for row in self.rows if row.min_asr is not None)

    @property
    def promote(self) -> str | None:
        """The command that takes the winner away; None where there is none, its weights are not kept, or it would be
        refused."""
        winner = self.winner
        if winner is None or winner.checkpoint is None or not self.is_promotable:
            return None
        return promote_command(self.sweep, winner.trial)

    def to_json(self) -> dict[str, Any]:
        """What `sweeplab leaderboard --json` prints; holds no NaN and no infinity."""
        return {
            "sweep": self.sweep,
            "asr_ceiling": self.asr_ceiling,
            "victim": {"accuracy": self.victim.accuracy, "asr": self.victim.asr},
            "num_choices": self.num_choices,
            "notes": list(self.notes),
            "promote": self.promote,
            "closest": [kept.to_json() for kept in self.closest],
            "trials": [row.to_json() for row in self.rows],
        }


def rank_trials(sweep: SweepRecord, outcomes: ReadOutcomes, weights: Sequence[KeptPoint] = ()) -> Leaderboard:
    """Rank every trial of a sweep, whatever its state, by the points evaluated so far.

    Cleaned trials come first, by retention (of equals the lower ASR, then the lower number); then trials
    without a cleaned point, by lowest ASR; then those without a point that may win, by number.

    Args:
        sweep: the ledger's record.
        outcomes: gives a point's outcomes per image. The best cleaned epoch is chosen on one half of the images and
            reported on the other (see `even_images`); points without outcomes cannot be chosen.
        weights: the points whose weights are kept.

    Raises:
        ValueError: if no trigger was measured, or if the victim classifies nothing correctly.
    """
    choices = num_choices(sweep.trials)
    classes = sweep.images.num_classes if sweep.images else None
    fault = missing_backdoor(sweep.victim, sweep.asr_ceiling, classes)
    has_backdoor = fault is None and sweep.measures_what_was_planted
    lacks_backdoor = fault is not None and sweep.measures_what_was_planted
    chooses = even_images(sweep.images, sweep.victim.accuracy_n) if sweep.images else None
    places = {(kept.trial, kept.point.epoch): kept.location for kept in weights}
    found = [(t, t.summary or summarize(t, sweep.asr_ceiling, outcomes, chooses)) for t in sweep.trials]
    found.sort(key=lambda one: _order(*one))
    rows = []
    for rank, (trial, summary) in enumerate(found, start=1):
        place = None if summary.best is None else places.get((trial.number, summary.best.epoch))
        rows.append(_row(sweep, trial, summary, choices if has_backdoor else None, rank=rank, checkpoint=place))
    ranked = tuple(rows)
    nothing_cleaned = not any(row.feasible for row in rows)
    closest = tuple(closest_points(weights, sweep.asr_ceiling)) if nothing_cleaned else ()
    return Leaderboard(
        sweep=sweep.name,
        asr_ceiling=sweep.asr_ceiling,
        victim=sweep.victim,
        rows=ranked,
        num_choices=choices,
        has_backdoor=has_backdoor,
        lacks_backdoor=lacks_backdoor,
        notes=sweep.notes,
        is_promotable=sweep.is_promotable,
        closest=closest,
    )


def _order(trial: TrialRecord, summary: TrialSummary) -> tuple[int, float, float, int]:
    best = summary.best
    if best is not None:
        return 0, *preference(best), trial.number
    if summary.lowest_asr is not None:
        return 1, summary.lowest_asr, 0.0, trial.number
    return 2, 0.0, 0.0, trial.number


def _row(
    sweep: SweepRecord,
    trial: TrialRecord,
    summary: TrialSummary,
    choices: int | None,
    *,
    rank: int,
    checkpoint: str | None,
) -> LeaderboardRow:
    """A trial's row; with `choices` None nothing is certified."""
    best, reported = summary.best, summary.report
    low = high = asr_low = asr_high = None
    if best is not None and best.measurement.is_counted:
        low, high = wilson(best.measurement.accuracy_k, best.measurement.accuracy_n)
        asr_low, asr_high = wilson(best.measurement.asr_k, best.measurement.asr_n)
    victim_accuracy = sweep.victim.accuracy
    return LeaderboardRow(
        rank=rank,
        trial=trial.number,
        state=trial.state,
        feasible=best is not None,
        certified=best is not None
        and choices is not None
        and best.measurement.is_counted
        and best.measurement.asr_k <= _most_hits(sweep, best.measurement.asr_n, choices),
        epoch=best.epoch if best else None,
        accuracy=best.measurement.accuracy if best else None,
        asr=best.measurement.asr if best else None,
        retention=retention(best.measurement.accuracy, victim_accuracy) if best else None,
        retention_low=None if low is None else retention(low, victim_accuracy),
        retention_high=None if high is None else retention(high, victim_accuracy),
        min_asr=summary.lowest_asr,
        configuration=trial.configuration,
        seed=trial.seed,
        params=dict(trial.params),
        epochs=summary.last_epoch,
        seconds=summary.seconds,
        accuracy_report=reported.accuracy if reported else None,
        asr_report=reported.asr if reported else None,
        checkpoint=checkpoint,
        asr_low=asr_low,
        asr_high=asr_high,
    )


def _most_hits(sweep: SweepRecord, n: int, choices: int) -> int:
    """See `most_certified_hits`; a sweep's record may know it already."""
    known = sweep.certified_hits.get((n, choices))
    return most_certified_hits(n, choices, sweep.asr_ceiling) if known is None else known


def _json_value(value: object) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_json_value(item) for item in value]
    return str(value)


def result_lines(leaderboard: Leaderboard) -> list[str]:
    """Where the winner's weights are and how to take them away, and which trial is the best certified one where that is
    another; where nothing was cleaned, which points came closest, where their weights are, and what to try next."""
    winner, command = leaderboard.winner, leaderboard.promote
    if winner is not None:
        best = f"best:   trial {winner.trial}, epoch {winner.epoch:g}: {winner.checkpoint}"
        certified = best_certified(leaderboard)
        return [*([best, f"        {command}"] if command is not None else []), *filter(None, [certified])]
    if not leaderboard.rows or leaderboard.rows[0].min_asr is None or leaderboard.rows[0].feasible:
        return []  # nothing was measured yet, or the cleaned trials have all failed since
    ceiling, first = leaderboard.asr_ceiling, leaderboard.rows[0]
    nothing, lowest = f"no trial lies below {percent(ceiling, None)} ASR", percent(first.min_asr, ceiling=ceiling)
    found = [f"{nothing}; trial {first.trial} came closest with {lowest}, and no weights are kept"]
    if leaderboard.closest:
        closest = [_line(kept, ceiling) for kept in leaderboard.closest]
        found = [f"{nothing}; these came closest, and their weights are kept:", *closest]
    return [*found, f"try next: {WHAT_NEXT}"]


def best_certified(leaderboard: Leaderboard) -> str:
    """Which trial is the best certified one, and what it keeps; empty where it is the winner, or there is none."""
    rows = [row for row in leaderboard.rows if row.certified and row.state != "failed"]
    if not rows or rows[0] == leaderboard.winner:
        return ""
    kept, asr = percent(rows[0].retention), percent(rows[0].asr, ceiling=leaderboard.asr_ceiling)
    return f"the best certified is trial {rows[0].trial}: keeps {kept} at {asr} ASR"


WHAT_NEXT = (
    "higher learning rates or more weight on the loss that unlearns, more epochs, a start with shrink_perturb=true or "
    "another method, or a wider space, under another name"
)


def _line(kept: KeptPoint, asr_ceiling: float) -> str:
    values = kept.point.measurement
    return (
        f"  trial {kept.trial}, epoch {kept.point.epoch:g}: ASR {percent(values.asr, ceiling=asr_ceiling)}, accuracy "
        f"{percent(values.accuracy)}: {kept.location}"
    )


def short_value(value: object) -> str:
    """A parameter's value that stands alone, in few characters: three digits."""
    return column_words([value])[0]


def parameter_words(rows: Sequence[LeaderboardRow]) -> dict[str, list[str]]:
    """The parameters of trials in words, one a row.

    Args:
        rows: all of a leaderboard, also where a few are shown: they choose the notation, so that a setting reads the
            same in every place.
    """
    names = dict.fromkeys(name for row in rows for name in row.params)
    return {name: column_words([row.params.get(name) for row in rows]) for name in names}


def _word(value: object) -> str:
    """A value that is shown as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def column_words(values: Sequence[object]) -> list[str]:
    """The values of one parameter in few characters and in one notation, so that they compare at a glance.

    Numbers have as many decimals as tell three digits of the smallest of them, or are all written as 1.2e-03 where they
    span more than that shows.
    """
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    whole = all(number.is_integer() and abs(number) < 1e6 for number in numbers)
    sizes = [abs(number) for number in numbers if number]
    if whole or not all(map(math.isfinite, numbers)) or any(isinstance(value, str) for value in values):
        return [_word(value) for value in values]
    if min(sizes) < 0.001 or max(sizes) >= 100_000:
        digits = next(d for d in (0, 1, 2) if d == 2 or all(float(f"{n:.{d}e}") == n for n in sizes))
        return [f"{value:.{digits}e}" if _is_number(value) else _word(value) for value in values]
    most = min(5, 2 - math.floor(math.log10(min(sizes))))
    decimals = next(d for d in range(most + 1) if d == most or all(round(n, d) == n for n in sizes))
    return [f"{value:.{decimals}f}" if _is_number(value) else _word(value) for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def first_of(shown: int, total: int, word: str) -> str:
    """How many rows a table has, and of how many, of what one such as `trial` or `configuration`."""
    all_of_them = number_of(total, word)
    return all_of_them if shown == total else f"the first {shown:,} of {all_of_them}"


def render_table(leaderboard: Leaderboard, limit: int = 20, *, width: int = 100) -> Table:
    """The first `limit` rows for a terminal of so many columns; percentages with one decimal."""
    ceiling = percent(leaderboard.asr_ceiling, None)
    victim = leaderboard.victim
    victim_asr = "" if victim.asr is None else f", ASR {percent(victim.asr, ceiling=leaderboard.asr_ceiling)}"
    shown = leaderboard.rows[:limit]
    title = with_notes(f"{leaderboard.sweep}: victim accuracy {percent(victim.accuracy)}{victim_asr}", leaderboard)
    all_finished = all(row.state == "finished" for row in shown)  # then the column would only take space
    counts = first_of(len(shown), len(leaderboard.rows), "trial")
    counts += ", finished" if all_finished else ""
    caption = (
        f"{counts}; {leaderboard.cleaned.in_words(f'below {ceiling} ASR')}; ✓ its upper bound, "
        f"{bound_text(leaderboard)}, lies below {ceiling} too"
    )
    columns: dict[str, Sequence[str]] = {
        "rank": [str(row.rank) for row in shown],
        "trial": [str(row.trial) for row in shown],
        **({"state": [row.state for row in shown]} if not all_finished else {}),
        "kept %": [in_percent(row.retention) for row in shown],
        "acc. %": [in_percent(row.accuracy) for row in shown],
        "ASR %": [in_percent(row.asr, leaderboard.asr_ceiling) + (" ✓" if row.certified else "  ") for row in shown],
        "epoch": ["–" if row.epoch is None else f"{row.epoch:g}" for row in shown],
        "lowest\nASR %": [in_percent(row.min_asr, leaderboard.asr_ceiling) for row in shown],
    }
    is_dim = [not row.feasible for row in shown]
    params = [row.params for row in leaderboard.rows]
    return parameter_table(title, caption, columns, params, is_dim=is_dim, width=width)


def parameter_table(
    title: Text,
    caption: str,
    columns: Mapping[str, Sequence[str]],
    params: Sequence[Mapping[str, Any]],
    *,
    is_dim: Sequence[bool],
    width: int,
) -> Table:
    """A table of numbers and parameters: a column a parameter where that fits into the width, else one for all.

    No number is cut or broken: what does not fit into a line goes on in the next one, between two parameters, or
    between two parts of a name.

    Args:
        title: above it.
        caption: below it.
        columns: cells of N rows by their heading, each no wider than it has to be.
        params: settings, of which the first N are shown; all of them choose the notation.
        is_dim: N, which rows are printed faintly.
        width: of the terminal, characters.
    """
    shown = params[: len(is_dim)]
    names = list(dict.fromkeys(name for one in shown for name in one))
    words = {name: column_words([one.get(name) for one in params])[: len(shown)] for name in names}
    each = {name.replace("_", "_\n"): words[name] for name in names}
    apart = 2
    taken = sum(_column_width(heading, cells) + apart for heading, cells in columns.items())
    if names and taken + sum(_column_width(heading, cells) + apart for heading, cells in each.items()) - apart > width:
        room = max(12, width - taken)
        cells = [[f"{name}={words[name][row]}" for name in one] for row, one in enumerate(shown)]
        each = {"parameters": [_folded(cell, room) for cell in cells]}
    table = FramedTable(title=title, caption=Text(caption), box=None, header_style="bold", pad_edge=False)
    for heading in (*columns, *each):
        left = heading in ("state", "parameters")
        table.add_column(Text(heading), justify="left" if left else "right", no_wrap=True)
    for row, dim in zip(zip(*columns.values(), *each.values(), strict=True), is_dim, strict=True):
        table.add_row(*(Text(cell) for cell in row), style="dim" if dim else None)
    return table


def _column_width(heading: str, cells: Sequence[str]) -> int:
    return max(cell_len(line) for text in (heading, *cells) for line in text.split("\n"))


def _folded(words: Sequence[str], width: int) -> str:
    """Words in lines of at most so many characters; a longer one is broken before `=` and after `_`, where it has
    these."""
    lines = [""]
    for word in words:
        glue = " " if lines[-1] else ""
        if lines[-1] and cell_len(lines[-1] + glue + word) > width:
            lines.append("")
            glue = ""
        pieces = [word] if cell_len(word) <= width else re.findall("[^_=]*_|=.*|[^_=]+", word)
        for piece in pieces:
            if lines[-1] and cell_len(lines[-1] + glue + piece) > width:
                lines.append("")
                glue = ""
            lines[-1] += glue + piece
            glue = ""
    return "\n".join(lines)


def with_notes(title: str, leaderboard: Leaderboard) -> Text:
    """A table's title, and below it the sweep's notes."""
    return Text("\n".join([title, *(f"note: {note}" for note in leaderboard.notes)]))


def bound_text(leaderboard: Leaderboard) -> str:
    """What the bound behind `certified` holds for, in words."""
    if leaderboard.num_choices <= 1:
        return "at 95 %"
    return f"at 95 % for all {leaderboard.num_choices:,} points together"


def in_percent(value: float | None, ceiling: float | None = None) -> str:
    """A cell of a column whose head says `%`; see `percent`."""
    return percent(value, ceiling=ceiling).removesuffix(" %")
