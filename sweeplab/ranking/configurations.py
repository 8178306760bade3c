"""The leaderboard by configuration: mean, deviation and worst over the seeds that a setting was run with."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from sweeplab.ranking.leaderboard import (
    Leaderboard,
    LeaderboardRow,
    first_of,
    in_percent,
    parameter_table,
    with_notes,
)


@dataclass(frozen=True)
class ConfigurationRow:
    """All trials of one setting; retentions are of their best cleaned points, as fractions of the victim's accuracy."""

    rank: int
    """1 is best."""
    configuration: str
    params: dict[str, Any]
    trials: tuple[int, ...]
    """Their numbers, ascending."""
    seeds: tuple[int, ...]
    """In the order of `trials`."""
    measured: int
    """Trials that have a point that may win; only these count below."""
    feasible: int
    """Trials with a cleaned point."""
    retention_mean: float | None
    """Over the feasible trials alone: read it beside `feasible`. None: there is none."""
    retention_sd: float | None
    """Sample standard deviation over the feasible trials; None with fewer than two."""
    retention_worst: float | None
    """The lowest; None where a measured trial is not feasible, which is worse than any retention."""
    min_asr_worst: float | None
    """The highest of the trials' lowest ASRs; None: nothing was measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "rank": self.rank,
            "configuration": self.configuration,
            "trials": list(self.trials),
            "seeds": list(self.seeds),
            "measured": self.measured,
            "feasible": self.feasible,
            "retention": {
                "mean": self.retention_mean,
                "sd": self.retention_sd,
                "worst": self.retention_worst,
            },
            "min_asr_worst": self.min_asr_worst,
            "params": self.params,
        }


def group_by_configuration(leaderboard: Leaderboard) -> tuple[ConfigurationRow, ...]:
    """One row a configuration, best first.

    Those whose every measured trial has a cleaned point come first, by mean retention; then the rest, by the share of
    their trials that have one, then by the worst of their lowest ASRs; then those without a measured trial.
    """
    members: dict[str, list[LeaderboardRow]] = {}
    for row in _one_a_seed(leaderboard.rows):
        members.setdefault(row.configuration, []).append(row)
    rows = [_row(sorted(group, key=lambda row: row.trial)) for group in members.values()]
    rows.sort(key=_order)
    return tuple(ConfigurationRow(**{**vars(row), "rank": rank}) for rank, row in enumerate(rows, start=1))


def _one_a_seed(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    """Of trials with the same setting and seed, the last that was measured: the others were tried once more."""
    chosen: dict[tuple[str, int], LeaderboardRow] = {}
    for row in sorted(rows, key=lambda row: (row.min_asr is not None, row.trial)):
        chosen[row.configuration, row.seed] = row
    return list(chosen.values())


def _row(group: Sequence[LeaderboardRow]) -> ConfigurationRow:
    measured = [row for row in group if row.min_asr is not None]
    kept = [row.retention for row in measured if row.retention is not None]
    return ConfigurationRow(
        rank=0,
        configuration=group[0].configuration,
        params=group[0].to_json()["params"],
        trials=tuple(row.trial for row in group),
        seeds=tuple(row.seed for row in group),
        measured=len(measured),
        feasible=len(kept),
        retention_mean=statistics.fmean(kept) if kept else None,
        retention_sd=statistics.stdev(kept) if len(kept) > 1 else None,
        retention_worst=min(kept) if kept and len(kept) == len(measured) else None,
        min_asr_worst=max((row.min_asr for row in measured if row.min_asr is not None), default=None),
    )


def _order(row: ConfigurationRow) -> tuple[int, float, float, int]:
    first = row.trials[0]
    if row.measured and row.feasible == row.measured:
        assert row.retention_mean is not None
        return 0, -row.retention_mean, 0.0, first
    if row.measured:
        assert row.min_asr_worst is not None
        return 1, -row.feasible / row.measured, row.min_asr_worst, first
    return 2, 0.0, 0.0, first


def render_configurations(
    leaderboard: Leaderboard, rows: Sequence[ConfigurationRow], limit: int = 20, *, width: int = 100
) -> Table:
    """The first `limit` configurations for a terminal of so many columns; percentages with one decimal."""
    shown = rows[:limit]
    counts = first_of(len(shown), len(rows), "configuration")
    columns = {
        "rank": [str(row.rank) for row in shown],
        "cleaned": [f"{row.feasible} of {row.measured}" for row in shown],
        "kept %\nmean": [in_percent(row.retention_mean) for row in shown],
        "\nsd": [in_percent(row.retention_sd) for row in shown],
        "\nworst": [in_percent(row.retention_worst) for row in shown],
        "lowest ASR %\nworst": [in_percent(row.min_asr_worst, leaderboard.asr_ceiling) for row in shown],
    }
    return parameter_table(
        with_notes(f"{leaderboard.sweep}: {counts}, over their seeds", leaderboard),
        "mean and deviation over the seeds that were cleaned; worst: – where one was not",
        columns,
        [row.params for row in rows],
        is_dim=[not row.feasible for row in shown],
        width=width,
    )
