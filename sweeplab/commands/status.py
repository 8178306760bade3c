"""The state of a sweep: what `status` and `list` say of it, and what came out so far."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sweeplab.evaluation.retention import CleanedTrials, best_of_trials, retention
from sweeplab.ranking.costs import costs_of
from sweeplab.ranking.summary import summarize
from sweeplab.records import OVER, TrialRecord, now_ms
from sweeplab.specs import InvalidInput, first_line
from sweeplab.storage.summary_file import uncollected
from sweeplab.sweep_folder import SweepFolder


@uncollected()
def sweep_status(folder: SweepFolder) -> dict[str, Any]:
    """What `status --json` prints."""
    header, locked = folder.header(), folder.is_locked()
    trials, losses = folder.trial_records(is_driven=locked)
    states = [trial.state for trial in trials]
    counts = {state: states.count(state) for state in ("finished", "running", "waiting", "pruned", "failed")}
    over = counts["finished"] + counts["pruned"] + counts["failed"]
    counts["waiting"] += max(0, header["planned_trials"] - len(trials))
    done = over >= header["planned_trials"]
    events = folder.events()
    costs = costs_of(events, trials, now_ms()).to_json()
    state = "running" if locked else "finished" if done else "interrupted"
    return {
        "sweep": folder.name,
        "state": state,
        "planned_trials": header["planned_trials"],
        "asr_ceiling": header["spec"]["search"]["asr_ceiling"],
        "notes": [*folder.notes(), *losses],
        "older": folder.older(),
        "damage": losses,
        "trials": counts,
        **_best_so_far(folder, header, trials),
        "trial_epochs": costs["trial_epochs"],
        "seconds": sum(trial.seconds for trial in trials),
        "seconds_left": _seconds_left(header, trials, events) if locked else None,
        "last_ms": max((trial.last_ms for trial in trials), default=0),
        "attempts": sum(trial.attempts for trial in trials),
        "costs": costs,
        "holder": folder.work.holder() if locked else None,
        "failures": [{"trial": t.number, "reason": t.reason} for t in trials if t.state == "failed"],
        "own": folder.is_own(to_read=True),
        "folder": str(folder.path),
        "next": _next_command(folder.name, header, state),
    }


def _best_so_far(folder: SweepFolder, header: dict[str, Any], trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """The victim, the best cleaned point of all trials, the lowest ASR, and how many are cleaned; each None where there
    is none."""
    point = folder.victim_point()
    if point is None:
        return {"victim": None, "best": None, "min_asr": None, "cleaned": None}
    victim, ceiling = point[0], header["spec"]["search"]["asr_ceiling"]
    found = [(trial, trial.summary or summarize(trial, ceiling, lambda *_: None, None)) for trial in trials]
    sound = [(trial.number, one) for trial, one in found if trial.state != "failed"]
    retentions = [
        None if one.best is None else retention(one.best.measurement.accuracy, victim.accuracy)
        for _, one in found
        if one.lowest_asr is not None
    ]
    best: dict[str, Any] | None = None
    if (chosen := best_of_trials({number: one.best for number, one in sound if one.best is not None})) is not None:
        number, top = chosen
        kept = retention(top.measurement.accuracy, victim.accuracy)
        best = {"trial": number, "epoch": top.epoch, "retention": kept, "asr": top.measurement.asr}
    return {
        "victim": {"name": header["victim_name"], "accuracy": victim.accuracy, "asr": victim.asr},
        "best": best,
        "min_asr": min((one.lowest_asr for _, one in sound if one.lowest_asr is not None), default=None),
        "cleaned": dataclasses.asdict(CleanedTrials.of(retentions)),
    }


def _seconds_left(
    header: dict[str, Any], trials: Sequence[TrialRecord], events: Sequence[dict[str, Any]]
) -> float | None:
    """Of a sweep that runs, at the rate of trials since its command began; None before the first of them is over."""
    began = max((event["time_ms"] for event in events if event["event"] == "driver began"), default=None)
    if began is None:
        return None
    ended = sum(event["event"] == "trial ended" and event["time_ms"] >= began for event in events)
    left = header["planned_trials"] - sum(trial.state in OVER for trial in trials)
    return None if not ended else max(0, left) * (now_ms() - began) / 1000 / ended


def _next_command(name: str, header: dict[str, Any], state: str) -> str:
    """What a user would type next."""
    if state == "running":
        return f"sweeplab logs {name} --follow"
    if state == "finished" or "imported" in header:
        return f"sweeplab leaderboard {name}"
    return f"sweeplab resume {name}"


def status_or_damage(folder: SweepFolder) -> dict[str, Any]:
    """A sweep's status; where its records cannot be read, what is wrong: one such sweep hides no other."""
    try:
        return sweep_status(folder)
    except (InvalidInput, ValueError, LookupError, TypeError, AttributeError) as error:
        return {"sweep": folder.name, "state": "damaged", "reason": first_line(error)}
