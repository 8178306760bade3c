"""Audit: what a sweep's early stopping cost, or would have cost."""

from typing import Any

from sweeplab.evaluation.retention import counted, retention
from sweeplab.ranking.stopping import Pruning, Stop, Trajectory
from sweeplab.records import SweepRecord, TrialRecord
from sweeplab.search.pruner import Goal, Pruner
from sweeplab.search.replay import Row
from sweeplab.specs import InvalidInput


def audit(sweep: SweepRecord, pruning: Pruning) -> dict[str, Any]:
    """What rules would have cost and saved in a sweep whose trials ran to their end, taken in order of their numbers.

    Raises:
        InvalidInput: if the sweep was pruned itself (see `audit_decisions`); if no trial ran to its end; if no ASR was
            measured.
    """
    # Where a trial was stopped, nobody knows what would have become of it.
    if was_pruned(sweep):
        raise InvalidInput(f"sweep {sweep.name!r} was pruned itself; its own decisions can be audited")
    trials = [
        trial
        for trial in sweep.trials
        if trial.state == "finished" and counted(trial.points, start_counts=trial.start_counts)
    ]
    if not trials or sweep.victim.asr is None:
        raise InvalidInput(f"sweep {sweep.name!r} has no finished trial with a measured ASR; nothing to audit")
    # One pruner for all trials: what it learns from one decides about those that follow, as in a sweep.
    pruner = Pruner(pruning, Goal.of(sweep.victim, sweep.asr_ceiling))
    ended = [_replayed(trial, pruner) for trial in trials]
    accuracy, reached = sweep.victim.accuracy, pruner.best_accuracy
    # Only now: whether a stopped trial would have become the best is asked of what all the others reached.
    rows = []
    for trial, (cut, stop) in zip(trials, ended, strict=True):
        if stop is not None:
            rows.append(
                {
                    "trial": trial.number,
                    "epoch": cut.epochs[-1],
                    "rule": stop.rule,
                    "reason": stop.reason,
                    "saw": stop.saw,
                    **_missed(cut, _trajectory(trial), reached, sweep),
                }
            )
    best_of_all = max((best for trial in trials if (best := _best(trial, sweep)) is not None), default=None)
    total = sum(_trajectory(trial).epochs[-1] for trial in trials)
    return {
        "sweep": sweep.name,
        "pruning": pruning.to_json(),
        "trials": len(trials),
        "pruned": len(rows),
        **_counts(rows),
        "best_retention": _retention(best_of_all, accuracy),
        "best_retention_with_pruning": _retention(reached, accuracy),
        "trial_epochs": total,
        "trial_epochs_saved": total - sum(cut.epochs[-1] for cut, _ in ended),
        "decisions": rows,
    }


def _replayed(trial: TrialRecord, pruner: Pruner) -> tuple[Trajectory, Stop | None]:
    """Show a whole trial to the pruner point by point; what the trial had made when it was stopped, or at its end."""
    row = Row(trial.params, tuple(trial.points), trial.start_counts)
    for points, trajectory in row.prefixes:
        is_complete = len(points) == len(row.points)
        pruner.saw(trial.number, trajectory, is_complete=is_complete)
        stop = None if is_complete else pruner.judge(trajectory)
        if stop is not None:
            return trajectory, stop
    return row.prefixes[-1][1], None


def was_pruned(sweep: SweepRecord) -> bool:
    """Whether rules have ended trials of the sweep."""
    return any(trial.state == "pruned" for trial in sweep.trials)


def audit_decisions(sweep: SweepRecord) -> dict[str, Any]:
    """What became of a pruned sweep's stopped trials where they were tried once more, which no rule then ends.

    The rerun has the setting and the seed of the stopped trial, so up to the stop it is the same trial, as far as the
    machine is deterministic (`same_until_stop` says so).
    """
    trials = {trial.number: trial for trial in sweep.trials}
    whole: dict[int, TrialRecord] = {}
    for trial in sweep.trials:
        # A rerun may itself have been rerun: go back to the trial that the rules stopped.
        first = trial
        while first.rerun_of is not None:
            first = trials[first.rerun_of]
        if first.state == "pruned" and trial.state == "finished":
            whole[first.number] = trial
    # What the stopped trials are compared with is what the sweep had without their reruns.
    reruns = {trial.number for trial in whole.values()}
    best = max(
        (found for trial in sweep.trials if trial.number not in reruns and (found := _best(trial, sweep)) is not None),
        default=None,
    )
    pruned = [trial for trial in sweep.trials if trial.state == "pruned"]
    rows = []
    for stopped in pruned:
        row: dict[str, Any] = {
            "trial": stopped.number,
            "epoch": stopped.points[-1].epoch,
            "reason": stopped.reason,
            "rerun": None,
            "same_until_stop": None,
            "would_have_been_feasible": None,
            "retention": None,
            "would_have_become_best": None,
        }
        if (end := whole.get(stopped.number)) is not None:
            both = zip(stopped.points, end.points, strict=False)
            row |= {
                "rerun": end.number,
                "same_until_stop": all(before.measurement == after.measurement for before, after in both),
                **_missed(_trajectory(stopped), _trajectory(end), best, sweep),
            }
        rows.append(row)
    return {
        "sweep": sweep.name,
        "trials": len(sweep.trials) - len(reruns),
        "pruned": len(rows),
        "run_to_their_end": len(whole),
        **_counts(rows),
        "best_retention": _retention(best, sweep.victim.accuracy),
        "trial_epochs_saved": sum(sweep.epochs - trial.points[-1].epoch for trial in pruned),
        "trial_epochs_of_reruns": sum(trial.points[-1].epoch for trial in whole.values()),
        "decisions": rows,
    }


def _missed(stopped: Trajectory, whole: Trajectory, best: float | None, sweep: SweepRecord) -> dict[str, Any]:
    """What a trial reached that was stopped; `best`: the highest accuracy of cleaned points of all the others."""
    reached = whole.best_accuracy(sweep.asr_ceiling)
    return {
        "would_have_been_feasible": stopped.best_accuracy(sweep.asr_ceiling) is None and reached is not None,
        "retention": _retention(reached, sweep.victim.accuracy),
        "would_have_become_best": reached is not None and (best is None or reached > best),
    }


def _counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many decisions cost a feasible trial, and how many the best one."""
    return {
        name: sum(bool(row[name]) for row in rows) for name in ("would_have_been_feasible", "would_have_become_best")
    }


def _trajectory(trial: TrialRecord) -> Trajectory:
    return Trajectory.of(trial.points, start_counts=trial.start_counts)


def _best(trial: TrialRecord, sweep: SweepRecord) -> float | None:
    return _trajectory(trial).best_accuracy(sweep.asr_ceiling)


def _retention(accuracy: float | None, victim_accuracy: float) -> float | None:
    return None if accuracy is None else retention(accuracy, victim_accuracy)
