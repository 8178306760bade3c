"""What to try next, told from a sweep's own results."""

from collections.abc import Iterator
from typing import Any

from sweeplab.ranking.leaderboard import WHAT_NEXT, Leaderboard, LeaderboardRow, parameter_words
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
        return (f"{WHAT_NEXT[0].upper()}{WHAT_NEXT[1:]}.",)
    return (
        *_ends(sweep, leaderboard, measured, winner),
        *_more_trials(sweep, measured, winner),
        *_other_seeds(leaderboard, winner),
        *_more_images(leaderboard, winner),
    )


def _ends(
    sweep: SweepRecord, leaderboard: Leaderboard, measured: list[LeaderboardRow], winner: LeaderboardRow
) -> Iterator[str]:
    """Parameters of which the best has the lowest or highest value that was tried."""
    for name in sweep.parameters:
        values: list[Any] = [row.params.get(name) for row in measured]
        if len(set(values)) < FEWEST_VALUES or not all(type(value) in (int, float) for value in values):
            continue
        best = winner.params[name]
        if best in (min(values), max(values)):
            end, place = ("lowest", "below") if best == min(values) else ("highest", "above")
            word = parameter_words(leaderboard.rows)[name][leaderboard.rows.index(winner)]
            yield f"The best has the {end} {name} that was tried, {word}: search {place} it too."


def _more_trials(sweep: SweepRecord, measured: list[LeaderboardRow], winner: LeaderboardRow) -> Iterator[str]:
    """More of the same, where the best came late."""
    place, num = sum(row.trial <= winner.trial for row in measured), len(measured)
    if sweep.state == "finished" and sweep.origin.script and num > 1 and place > LATE * num:
        command = f"`sweeplab resume {sweep.name} search.trials={2 * sweep.planned_trials}`"
        yield f"The best came late, as number {place} of {num} trials: more of them may find a better one, {command}."


def _other_seeds(leaderboard: Leaderboard, winner: LeaderboardRow) -> Iterator[str]:
    if sum(row.configuration == winner.configuration for row in leaderboard.rows) == 1:
        yield (
            "The best was run with one seed, which does not tell how far chance carries: run the best settings with "
            "`search.seeds_per_configuration=3`, under another name."
        )


def _more_images(leaderboard: Leaderboard, winner: LeaderboardRow) -> Iterator[str]:
    if leaderboard.has_backdoor and not winner.certified and winner.asr_low is not None:
        yield "Its ASR is not certified: measure it on more triggered test images."
