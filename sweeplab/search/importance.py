"""Which parameters decide whether a trial is cleaned, and how much accuracy a cleaned one keeps: PED-ANOVA.

Watanabe, Bansal, Hutter (IJCAI 2023): a parameter matters as far as its values among the best trials are distributed
otherwise than among all. It sees no interactions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from sweeplab.ranking.leaderboard import Leaderboard, LeaderboardRow
from sweeplab.ranking.next_steps import BEST, FEWEST
from sweeplab.search.quiet import quiet_optuna

MOST = 500
"""Trials that are looked at, an even sample of all."""

CLEANED, RETENTION = "being cleaned", "retention"


def importances(leaderboard: Leaderboard, log_parameters: Sequence[str]) -> dict[str, dict[str, float]]:
    """Importances of the searched parameters, by question and parameter.

    `being cleaned`: for having a cleaned point, among all trials. `retention`: for belonging to the best quarter, among
    the cleaned ones. Each adds up to 1. A question is left out where fewer than five trials are on either side of it,
    or where no parameter has two values; a parameter is left out that not all trials have.

    Args:
        leaderboard: of the sweep.
        log_parameters: those that were searched on a logarithmic scale.
    """
    rows = [row for row in leaderboard.rows if row.min_asr is not None]
    cleaned = [row for row in rows if row.feasible]
    found = {}
    share = len(cleaned) / len(rows) if rows else 0.0
    if min(len(cleaned), len(rows) - len(cleaned)) >= FEWEST:
        # Lower is better; every cleaned trial is better than every other.
        values = [-1.0 if row.feasible else float(row.min_asr or 0.0) for row in rows]
        found[CLEANED] = _importances(rows, values, share, log_parameters)
    if BEST * len(cleaned) >= FEWEST:  # which PED-ANOVA wants at least
        values = [-float(row.retention or 0.0) for row in cleaned]
        found[RETENTION] = _importances(cleaned, values, BEST, log_parameters)
    return {question: parameters for question, parameters in found.items() if parameters}


def _importances(
    rows: Sequence[LeaderboardRow], values: Sequence[float], share: float, log_parameters: Sequence[str]
) -> dict[str, float]:
    """By parameter, for belonging to the `share` of trials of lowest value."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(int)
    chosen = [(rows[place], values[place]) for place in places]
    names = [name for name in chosen[0][0].params if all(row.params.get(name) is not None for row, _ in chosen)]
    distributions = {
        name: distribution
        for name in names
        if (distribution := _distribution([row.params[name] for row, _ in chosen], name in log_parameters)) is not None
    }
    if not distributions:
        return {}
    with quiet_optuna():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.add_trials(
            optuna.create_trial(
                value=value,
                params={name: _value(row.params[name], distributions[name]) for name in distributions},
                distributions=distributions,
            )
            for row, value in chosen
        )
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        result = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in result.items()}


def _distribution(values: Sequence[Any], is_log: bool) -> BaseDistribution | None:
    """What a parameter was drawn from, as far as its values tell; None where they are all the same."""
    if len(set(map(str, values))) == 1:
        return None
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return FloatDistribution(min(values), max(values), log=is_log and min(values) > 0)
    return CategoricalDistribution(tuple(dict.fromkeys(map(str, values))))


def _value(value: Any, distribution: BaseDistribution) -> Any:
    return str(value) if isinstance(distribution, CategoricalDistribution) else float(value)
