"""The state of a sweep: what `status` and `list` say of it, and what came out so far."""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeplab.evaluation.retention import CleanedTrials, best_row, retention
from sweeplab.ranking.costs import costs_of_columns, seconds_left
from sweeplab.ranking.next_steps import how_to_go_on
from sweeplab.records import OVER, PointColumns, TrialColumns, now_ms
from sweeplab.specs import InvalidInput, first_line
from sweeplab.storage.summary_file import uncollected
from sweeplab.sweep_folder import SweepFolder


@uncollected()
def sweep_status(folder: SweepFolder) -> dict[str, Any]:
    """What `status --json` prints."""
    header, locked = folder.header(), folder.is_locked()
    found = folder.trials(is_driven=locked)
    trials = found.columns(header["spec"]["search"]["asr_ceiling"])
    counts = {
        state: int(np.count_nonzero(trials.state == state))
        for state in ("finished", "running", "waiting", "pruned", "failed")
    }
    over = counts["finished"] + counts["pruned"] + counts["failed"]
    counts["waiting"] += max(0, header["planned_trials"] - len(trials.trial))
    done = over >= header["planned_trials"]
    events = folder.events()

    def stamps_of(number: int) -> list[int]:
        return [point.timestamp_ms for point in found.record(number).points]

    costs = costs_of_columns(events, trials, stamps_of, folder.lived_until(events, is_driven=locked)).to_json()
    state = "running" if locked else "finished" if done else "interrupted"
    seconds = float(trials.seconds.sum())
    failed = trials.trial[trials.state == "failed"].tolist()
    is_own, older = folder.is_own(to_read=True), folder.older()
    is_closed = header["name"] != folder.name or older is not None
    return {
        "sweep": folder.name,
        "state": state,
        "planned_trials": header["planned_trials"],
        "asr_ceiling": header["spec"]["search"]["asr_ceiling"],
        "notes": [*folder.notes(), *found.losses],
        "older": older,
        "damage": found.losses,
        "trials": counts,
        **_best_so_far(folder, header, trials),
        "trial_epochs": costs["trial_epochs"],
        "seconds": seconds if seconds or not costs["trial_epochs"] else None,  # a table from elsewhere may not say it
        "seconds_left": _seconds_left(header, trials, found.points(), events) if locked else None,
        "last_ms": int(trials.last_ms.max(initial=0)),
        "attempts": int(trials.attempts.sum()),
        "costs": costs,
        "holder": folder.work.holder() if locked else None,
        "failures": [{"trial": number, "reason": found.record(number).reason} for number in failed],
        "own": is_own,
        "folder": str(folder.path),
        "next": _next_command(folder, header, state, is_own=is_own, is_closed=is_closed),
    }


def _best_so_far(folder: SweepFolder, header: dict[str, Any], trials: TrialColumns) -> dict[str, Any]:
    """The victim, the best cleaned point of all trials, the lowest ASR, and how many are cleaned; each None where there
    is none."""
    point = folder.victim_point()
    if point is None:
        return {"victim": None, "best": None, "min_asr": None, "cleaned": None}
    victim, best = point[0], None
    counts = trials.state != "failed"
    if (row := best_row(trials, counts)) is not None:
        best = {
            "trial": int(trials.trial[row]),
            "epoch": float(trials.best_epoch[row]),
            "retention": retention(float(trials.best_accuracy[row]), victim.accuracy),
            "asr": float(trials.best_asr[row]),
        }
    may_win = ~np.isnan(trials.lowest_asr)
    rates = trials.lowest_asr[counts & may_win]
    accuracies = trials.best_accuracy[may_win].tolist()
    retentions = [None if math.isnan(one) else retention(one, victim.accuracy) for one in accuracies]
    return {
        "victim": {"name": header["victim_name"], "accuracy": victim.accuracy, "asr": victim.asr},
        "best": best,
        "min_asr": float(rates.min()) if len(rates) else None,
        "cleaned": dataclasses.asdict(CleanedTrials.of(retentions)),
    }


def _seconds_left(
    header: dict[str, Any], trials: TrialColumns, points: PointColumns, events: Sequence[dict[str, Any]]
) -> float | None:
    """Of a sweep that runs, as its own log tells it; None before its command has measured a point."""
    began = max((event["time_ms"] for event in events if event["event"] == "driver began"), default=None)
    if began is None:
        return None
    spec, is_over = header["spec"], np.isin(trials.state, OVER)
    new = (points.epoch > 0) & (points.timestamp_ms >= began)
    latest = int(points.timestamp_ms[new].max(initial=began))
    per_trial = spec["epochs"] * (1 + len(spec.get("measure_at", ())))
    begun = np.count_nonzero((points.epoch > 0) & np.isin(points.trial, trials.trial[~is_over]))
    left = max(0, header["planned_trials"] - int(is_over.sum())) * per_trial - int(begun)
    return seconds_left(left, int(new.sum()), seconds=(latest - began) / 1000, since=(now_ms() - latest) / 1000)


def _next_command(folder: SweepFolder, header: dict[str, Any], state: str, *, is_own: bool, is_closed: bool) -> str:
    """What a user would type next, or whose command it is."""
    name = shlex.quote(folder.name)
    if state == "running":
        return f"sweeplab logs {name} --follow"
    if state == "finished" or "imported" in header or is_closed:
        return f"sweeplab {'leaderboard' if folder.victim_point() is not None else 'logs'} {name}"
    return how_to_go_on(folder.name, has_own_code=bool(header.get("own_code")), is_foreign=not is_own)


def status_or_damage(folder: SweepFolder) -> dict[str, Any]:
    """A sweep's status; where its records cannot be read, what is wrong: one such sweep hides no other."""
    try:
        return sweep_status(folder)
    except (InvalidInput, ValueError, LookupError, TypeError, AttributeError) as error:
        return {"sweep": folder.name, "state": "damaged", "reason": first_line(error)}
