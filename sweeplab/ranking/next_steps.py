"""What to try next, told from a sweep's own results."""

import math
import shlex
from collections.abc import Iterator

from sweeplab.evaluation.retention import HALF
from sweeplab.ranking.leaderboard import WHAT_NEXT, Leaderboard, LeaderboardRow, column_words
from sweeplab.records import OVER, Purpose, SweepRecord, is_miniature, name_with

FEWEST_VALUES = 5
"""Below so many values of a parameter its lowest or highest says little of where to look."""

NEAR = 0.05
"""A value this share of the space away from its end lies at the end."""

LATE = 0.75
"""A best that comes after this share of the trials may not be the last improvement."""

NO_CHANCE = 3
"""So many good trials do not all end with their best epoch by chance."""

FEWEST, BEST = 5, 0.25
"""Which parameter matters is asked of so many trials that are cleaned and as many that are not, and of as many in this
share of the cleaned ones, the best; see `search.importance`."""

MARGIN = 1.5
"""So many times the trials that would do if as many were cleaned as before: it may be fewer."""


def next_steps(sweep: SweepRecord, leaderboard: Leaderboard) -> tuple[str, ...]:
    """Sentences with commands between back quotes; where nothing was measured yet, none but how to go on."""
    measured = [row for row in leaderboard.rows if row.min_asr is not None]
    winner = leaderboard.winner
    rest = _rest(sweep)
    if not measured:
        return (*rest,)
    if leaderboard.lacks_backdoor:
        return (_no_backdoor(sweep),)
    if winner is None:
        more = f"; or more trials of the same, {command}" if (command := more_trials(sweep)) else ""
        return (*rest, f"{WHAT_NEXT[0].upper()}{WHAT_NEXT[1:]}{more}.")
    return (
        *rest,
        *_ends(sweep, leaderboard, measured, winner),
        *_more_epochs(sweep, measured),
        *_more_trials(sweep, measured, winner),
        *_other_seeds(sweep, leaderboard, winner),
        *_more_images(leaderboard, winner),
    )


def _rest(sweep: SweepRecord) -> Iterator[str]:
    """How an interrupted sweep goes on, where it can."""
    made = sweep.origin
    if sweep.state == "interrupted" and made.has_spec and not made.is_closed:
        how = how_to_go_on(sweep.name, has_own_code=made.has_own_code, is_foreign=made.is_foreign)
        yield f"It is not finished: {how if made.has_own_code else f'`{how}` goes on'}."


def how_to_go_on(name: str, *, has_own_code: bool, is_foreign: bool) -> str:
    """The command that continues a sweep, or whose command does.

    Args:
        name: of the sweep.
        has_own_code: whether its script defines a part of it.
        is_foreign: whether another home made it.
    """
    if has_own_code:
        return "the command of its script goes on"
    return f"sweeplab resume {shlex.quote(name)}{' --adopt' if is_foreign else ''}"


def _no_backdoor(sweep: SweepRecord) -> str:
    """What to change where there was nothing to clean."""
    what = "Nothing was cleaned, because the victim has no backdoor to clean"
    if is_miniature(sweep.victim_name) or is_miniature(sweep.name):
        return f"{what}: it is a miniature's victim; run the sweep without `--smoke`."
    if sweep.origin.objective:
        return f"{what}: train the victim longer or with more poisons."
    return f"{what}: take another victim, or name the trigger and target that it was poisoned with."


def _ends(
    sweep: SweepRecord, leaderboard: Leaderboard, measured: list[LeaderboardRow], winner: LeaderboardRow
) -> Iterator[str]:
    """Parameters of which the best lies at an end of the space; an extreme of the trials alone is chance."""
    for name, (low, high) in sweep.ends.items():
        best = winner.params.get(name)
        scale = math.log if name in sweep.log_parameters else float
        # A record may hold anything, where somebody wrote into it.
        if isinstance(best, bool) or not isinstance(best, (int, float)) or (scale is math.log and best <= 0):
            continue
        if low == high or len({str(row.params.get(name)) for row in measured}) < FEWEST_VALUES:
            continue
        place = (scale(best) - scale(low)) / (scale(high) - scale(low))
        end, side, limit = ("lower", "below", low) if place < 0.5 else ("upper", "above", high)
        # 0 and 1 are the ends of what most fields may be.
        if min(place, 1 - place) <= NEAR and limit not in (0, 1):
            word = column_words([row.params.get(name) for row in leaderboard.rows])[leaderboard.rows.index(winner)]
            yield (
                f"The best has {name} {word}, at the {end} end of what was searched, {low:g} to {high:g}: "
                f"search {side} it too."
            )


def _more_epochs(sweep: SweepRecord, measured: list[LeaderboardRow]) -> Iterator[str]:
    """Where every good trial was still at its best at its end."""
    good = [row for row in measured if row.state == "finished" and row.retention is not None and row.retention >= HALF]
    if sweep.epochs < 2 or len(good) < NO_CHANCE or any(row.epoch != row.epochs for row in good):
        return
    command = run_anew(sweep, "longer", f"epochs={2 * sweep.epochs}")
    yield (
        f"All {len(good)} trials that keep half of the accuracy or more are best at the last epoch: train longer"
        + (f", {command}." if sweep.origin.has_spec else ".")
    )


def _more_trials(sweep: SweepRecord, measured: list[LeaderboardRow], winner: LeaderboardRow) -> Iterator[str]:
    """More of the same, where the best came late; of a grid, which was run in order, other settings; of one setting,
    nothing."""
    if sweep.state != "finished":
        return
    if sweep.origin.sampler == "grid":
        if len({row.configuration for row in measured}) > 1:
            yield "Every setting of the grid was run: others need a wider grid or space, under another name."
        return
    place, num = sum(row.trial <= winner.trial for row in measured), len(measured)
    if (command := more_trials(sweep)) and num > 1 and place > LATE * num:
        yield f"The best came late, as number {place} of {num} trials: more of them may find a better one, {command}."


def more_trials(sweep: SweepRecord, num: int | None = None) -> str:
    """What adds trials to a sweep, see `by_record`; empty where nothing can: of a grid, which is complete, of a table
    from elsewhere, and of a sweep that is closed or only read.

    Args:
        sweep: of any state.
        num: how many it then has; None: twice as many as now.
    """
    made = sweep.origin
    if not made.has_spec or made.sampler == "grid" or made.is_closed or made.is_foreign:
        return ""
    return by_record(sweep, "resume", trials_setting(sweep, 2 * _asked(sweep) if num is None else num))


def trials_setting(sweep: SweepRecord, num: int) -> str:
    """The change of a sweep to so many trials, or to the next multiple of its seeds."""
    seeds = sweep.origin.seeds
    return f"search.trials={-(-num // seeds) * seeds}"


def _asked(sweep: SweepRecord) -> int:
    """Trials that a sweep has or asks for."""
    return max(sweep.origin.asked_trials, sweep.planned_trials)


def trials_for_importance(leaderboard: Leaderboard) -> int:
    """How many trials a sweep should have, for it to tell which parameter matters.

    The share that will be cleaned is estimated by Laplace's rule, (cleaned + 1) / (measured + 2). Trials that ended
    without a measurement tell nothing, and do not count.
    """
    cleaned = leaderboard.cleaned
    share = (cleaned.cleaned + 1) / (cleaned.trials + 2)
    enough = MARGIN * min(FEWEST / min(share, 1 - share), FEWEST / BEST / share)
    return math.ceil(enough) + sum(row.state in OVER and row.min_asr is None for row in leaderboard.rows)


def by_record(sweep: SweepRecord, command: str, *changes: str) -> str:
    """A command over a sweep of the home as it was run, in whatever way that was asked for, between back quotes. Where
    its script defines a part of it, or another home made it, the changes alone, for the script's own command.

    Args:
        sweep: whose record says what is run.
        command: of `sweeplab`, that takes the sweep's name and changes.
        changes: one at least where the record does not serve.
    """
    if sweep.origin.has_own_code or sweep.origin.is_foreign:
        return f"`{shlex.join(changes)}` behind the command of its script"
    return f"`{shlex.join(['sweeplab', command, sweep.name, *changes])}`"


def run_anew(sweep: SweepRecord, purpose: Purpose, *changes: str) -> str:
    """What runs a sweep once more with changes, see `by_record`, under a name that ends in what it is for."""
    return by_record(sweep, "run", f"name={name_with(sweep.name, f'-{purpose}')}", *changes)


THREE_SEEDS = ("search.seeds_per_configuration=3",)
"""The change; the number of trials is a multiple of it (see `three_times_as_many`)."""


def three_times_as_many(sweep: SweepRecord) -> tuple[str, ...]:
    """The change of a search that runs as many settings with three seeds; a grid's settings are what they are."""
    trials = _asked(sweep) // sweep.origin.seeds
    return () if sweep.origin.sampler == "grid" else (f"search.trials={3 * trials}",)


def _other_seeds(sweep: SweepRecord, leaderboard: Leaderboard, winner: LeaderboardRow) -> Iterator[str]:
    if sum(row.configuration == winner.configuration for row in leaderboard.rows) > 1:
        return
    what = "The best was run with one seed, which does not tell how far chance carries"
    if not sweep.origin.has_spec:
        yield f"{what}: run its setting with other seeds too."
        return
    setting = f"setting={sweep.name}/{winner.trial}"
    if sweep.origin.has_own_code or sweep.origin.is_foreign:
        yield f"{what}: run its setting with other seeds too; `{shlex.quote(setting)}` names it for `clean`."
        return
    yield f"{what}: {by_record(sweep, 'clean', setting, *THREE_SEEDS)} runs its setting with three."


def _more_images(leaderboard: Leaderboard, winner: LeaderboardRow) -> Iterator[str]:
    if leaderboard.has_backdoor and not winner.certified and winner.asr_low is not None:
        yield "Its ASR is not certified: measure it on more triggered test images."
