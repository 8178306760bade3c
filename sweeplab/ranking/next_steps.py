"""What to try next, told from a sweep's own results."""

import shlex
from collections.abc import Iterator
from typing import Any

from sweeplab.ranking.leaderboard import WHAT_NEXT, Leaderboard, LeaderboardRow, column_words
from sweeplab.records import SweepRecord

FEWEST_VALUES = 5
"""Below so many values of a parameter its lowest or highest says little of where to look."""

LATE = 0.75
"""A best that comes after this share of the trials may not be the last improvement."""


def next_steps(sweep: SweepRecord, leaderboard: Leaderboard) -> tuple[str, ...]:
    """Sentences with commands between back quotes; none where nothing was measured yet."""
    measured = [row for row in leaderboard.rows if row.min_asr is not None]
    winner = leaderboard.winner
    if not measured:
        return ()
    if winner is None:
        more = f"; or more trials of the same, `{command}`" if (command := more_trials(sweep)) else ""
        return (f"{WHAT_NEXT[0].upper()}{WHAT_NEXT[1:]}{more}.",)
    return (
        *_ends(sweep, leaderboard, measured, winner),
        *_more_trials(sweep, measured, winner),
        *_other_seeds(sweep, leaderboard, winner),
        *_more_images(leaderboard, winner),
    )


def _ends(
    sweep: SweepRecord, leaderboard: Leaderboard, measured: list[LeaderboardRow], winner: LeaderboardRow
) -> Iterator[str]:
    """Parameters of which the best has the lowest or highest value that was tried."""
    for name in sweep.parameters:
        values: list[Any] = [row.params.get(name) for row in measured]
        if not all(type(value) in (int, float) for value in values) or len(set(values)) < FEWEST_VALUES:
            continue
        best = winner.params[name]
        if best in (min(values), max(values)):
            end, place = ("lowest", "below") if best == min(values) else ("highest", "above")
            word = column_words([row.params.get(name) for row in leaderboard.rows])[leaderboard.rows.index(winner)]
            yield f"The best has the {end} {name} that was tried, {word}: search {place} it too."


def _more_trials(sweep: SweepRecord, measured: list[LeaderboardRow], winner: LeaderboardRow) -> Iterator[str]:
    """More of the same, where the best came late; of a grid, which was run in order, other settings."""
    if sweep.state != "finished":
        return
    if sweep.origin.sampler == "grid":
        yield "Every setting of the grid was run: others need a wider grid or space, under another name."
        return
    place, num = sum(row.trial <= winner.trial for row in measured), len(measured)
    if (command := more_trials(sweep)) and num > 1 and place > LATE * num:
        yield f"The best came late, as number {place} of {num} trials: more of them may find a better one, `{command}`."


def more_trials(sweep: SweepRecord) -> str:
    """The command that adds as many trials to a sweep as it has; empty where none can: of a grid, which is complete, of
    a table from elsewhere, and of a sweep that is closed."""
    made = sweep.origin
    if not made.has_spec or made.sampler == "grid" or made.is_closed:
        return ""
    seeds = made.seeds
    num = -(-2 * max(made.asked_trials, sweep.planned_trials) // seeds) * seeds
    if made.has_own_code:
        return f"python {shlex.quote(made.script or 'SCRIPT')} --only {shlex.quote(sweep.name)} search.trials={num}"
    return f"sweeplab resume {shlex.quote(sweep.name)} search.trials={num}"


def _other_seeds(sweep: SweepRecord, leaderboard: Leaderboard, winner: LeaderboardRow) -> Iterator[str]:
    if sum(row.configuration == winner.configuration for row in leaderboard.rows) == 1:
        how = "`search.seeds_per_configuration=3`, under another name" if sweep.origin.has_spec else "other seeds"
        yield (
            "The best was run with one seed, which does not tell how far chance carries: run the best settings with "
            f"{how}."
        )


def _more_images(leaderboard: Leaderboard, winner: LeaderboardRow) -> Iterator[str]:
    if leaderboard.has_backdoor and not winner.certified and winner.asr_low is not None:
        yield "Its ASR is not certified: measure it on more triggered test images."
