"""Replay: a finished or imported sweep as a simulated objective, for the same search and pruning that a sweep uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import optuna

from sweeplab.evaluation.retention import counted, retention
from sweeplab.experiment import Search
from sweeplab.ranking.stopping import Pruning, Trajectory
from sweeplab.records import Point, SweepRecord, TrialRecord
from sweeplab.search.pruner import Goal, Pruner
from sweeplab.search.quiet import quiet_optuna
from sweeplab.search.samplers import Plan, ask, tell
from sweeplab.search_space import Choice, Dimension, LogUniform, SearchSpace, Uniform
from sweeplab.specs import InvalidInput
from sweeplab.sweep_folder import SweepFolder

UNCONSTRAINED = "tpe-unconstrained"
"""TPE that maximises retention and knows nothing of the constraint: a trial that is not cleaned is worth 0. For
comparison only. (With the score that `tell` gives otherwise, which is negative by how far a trial is from being
cleaned, TPE orders trials as the constraint does, and the two draw alike.)"""

SHUFFLED = "shuffled-grid"
"""The table's own configurations in random order; for comparison only. Random search draws from the space instead, and
where a grid is dense it comes by seldom. Unlike `grid`, whose table is complete, it can be pruned: what is left
between it and a sampler under the same rules is what the sampler does."""

SAMPLERS = ("tpe", "gp", "random", "qmc", "nsga2", "grid", SHUFFLED, UNCONSTRAINED)

WITHIN = 0.01
"""A search has arrived when its best retention is this close to the table's (or its lowest ASR, where none is)."""


@dataclass(frozen=True)
class Row:
    """One configuration of a table."""

    setting: dict[str, Any]
    points: tuple[Point, ...]
    start_counts: bool

    @cached_property
    def prefixes(self) -> tuple[tuple[tuple[Point, ...], Trajectory], ...]:
        """What a sweep has seen of the trial after each point that may win, and at least after the last one."""
        first = 0 if self.start_counts else 1
        return tuple(
            (self.points[:count], Trajectory.of(self.points[:count], start_counts=self.start_counts))
            for count in range(first + 1, len(self.points) + 1)
        )


@dataclass(frozen=True)
class Table:
    """Measured trajectories over a space; every configuration once."""

    name: str
    goal: Goal
    space: SearchSpace
    rows: tuple[Row, ...]

    @cached_property
    def trial_epochs(self) -> float:
        """What measuring all of it cost."""
        return sum(row.points[-1].epoch for row in self.rows)

    @cached_property
    def best_retention(self) -> float | None:
        """Of all cleaned points; None: there is none."""
        best = [
            accuracy
            for row in self.rows
            if (accuracy := row.prefixes[-1][1].best_accuracy(self.goal.asr_ceiling)) is not None
        ]
        return retention(max(best), self.goal.victim_accuracy) if best else None

    @cached_property
    def lowest_asr(self) -> float:
        """Of all points that may win."""
        return min(min(row.prefixes[-1][1].asr) for row in self.rows)

    def shuffled(self, seed: int) -> "Table":
        """The same rows in another order."""
        order = np.random.default_rng(seed).permutation(len(self.rows))
        return replace(self, rows=tuple(self.rows[index] for index in order))

    @cached_property
    def _places(self) -> np.ndarray:
        return np.array([self._place(row.setting) for row in self.rows])

    def _place(self, setting: Mapping[str, Any]) -> list[float]:
        return [place_of(dimension, setting.get(name)) for name, dimension in self.space.dimensions.items()]

    def nearest(self, setting: Mapping[str, Any], taken: np.ndarray) -> int:
        """The row closest to a setting among those not taken, of equally close ones the first.

        Distances are Euclidean over the parameters, each scaled to [0, 1]; two unequal choices are 1 apart, and so are
        a parameter that applies and one that does not.
        """
        place = np.array(self._place(setting))
        absent, other_absent = np.isnan(place), np.isnan(self._places)
        apart = np.abs(self._places - place)
        is_choice = [isinstance(dimension, Choice) for dimension in self.space.dimensions.values()]
        apart = np.where(is_choice, apart > 0, apart)
        apart = np.where(absent | other_absent, absent != other_absent, apart)
        distances = np.where(taken, np.inf, (apart.astype(float) ** 2).sum(axis=1))
        return int(np.argmin(distances))


def place_of(dimension: Dimension, value: Any) -> float:
    """A value on its dimension's scale: 0 at the low end, 1 at the high end; of a choice its index; NaN: absent."""
    if value is None:
        return float("nan")
    if isinstance(dimension, Choice):
        return float(dimension.values.index(value))
    if isinstance(dimension, LogUniform):
        low, high = np.log(dimension.low), np.log(dimension.high)
        return float((np.log(value) - low) / (high - low))
    return float((value - dimension.low) / (dimension.high - dimension.low))


def table_of(sweep: SweepRecord, space: SearchSpace | None) -> Table:
    """A sweep's finished trials as a table; of a configuration's seeds the first.

    Args:
        sweep: from the ledger.
        space: that it was drawn from; None: spanned by the values that were measured.

    Raises:
        InvalidInput: if fewer than two configurations ran to their end, or no ASR was measured.
    """
    chosen: dict[str, TrialRecord] = {}
    for trial in sweep.trials:
        if trial.state == "finished" and counted(trial.points, start_counts=trial.start_counts):
            chosen.setdefault(repr(sorted(trial.params.items())), trial)
    if len(chosen) < 2:
        raise InvalidInput(
            f"sweep {sweep.name!r} has {len(chosen):,} configuration(s) that ran to their end; a replay needs 2 or more"
        )
    if sweep.victim.asr is None:
        raise InvalidInput(f"sweep {sweep.name!r} measured no ASR, so nothing in it can be called cleaned")
    trials = list(chosen.values())
    space = space or spanned_space([trial.params for trial in trials], sweep.log_parameters)
    rows = [
        Row({name: trial.params[name] for name in space.dimensions if name in trial.params}, tuple(trial.points),
            trial.start_counts)
        for trial in trials
    ]  # fmt: skip
    return Table(sweep.name, Goal.of(sweep.victim, sweep.asr_ceiling), space, tuple(rows))


def spanned_space(settings: Sequence[Mapping[str, Any]], log_parameters: Sequence[str]) -> SearchSpace:
    """The smallest space that holds all settings: ranges of the numbers, choices of the rest.

    Raises:
        InvalidInput: if the settings do not differ, or if a parameter is missing in some of them: only the space of the
            sweep can say when it applies.
    """
    dimensions: dict[str, Dimension] = {}
    for name in dict.fromkeys(name for setting in settings for name in setting):
        missing = sum(name not in setting for setting in settings)
        if missing:
            raise InvalidInput(
                f"parameter {name!r} is missing in {missing:,} of {len(settings):,} configurations; fill the column, "
                "or replay a sweep whose space says when the parameter applies"
            )
        values = [setting[name] for setting in settings]
        if len(set(values)) == 1:
            continue
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            kind = LogUniform if name in log_parameters else Uniform
            dimensions[name] = kind(low=min(values), high=max(values))
        else:
            dimensions[name] = Choice(values=tuple(dict.fromkeys(values)))
    if not dimensions:
        raise InvalidInput("all configurations have the same parameters; there is nothing to search")
    return SearchSpace(dimensions=dimensions, source="spanned by what was measured")


@dataclass(frozen=True)
class Replayed:
    """One search over a table, to its end."""

    arrived_after: float | None
    """Trial-epochs spent when it came within `WITHIN` of the table's best; None: it never did."""
    spent: float
    """Trial-epochs of all its trials."""
    pruned: int
    trials: int


def has_arrived(table: Table, pruner: Pruner) -> bool:
    """Whether the best retention so far is within `WITHIN` of the table's; its lowest ASR, where nothing is cleaned."""
    if table.best_retention is None:
        return pruner.lowest_asr is not None and pruner.lowest_asr <= table.lowest_asr + WITHIN
    if pruner.best_accuracy is None:
        return False
    return retention(pruner.best_accuracy, table.goal.victim_accuracy) >= table.best_retention - WITHIN


@dataclass(frozen=True)
class Contender:
    """A way to search, by name."""

    sampler: str
    """One of `SAMPLERS`."""
    pruning: Pruning | None = None
    startup_trials: int | None = None
    """None: chosen for the table, as a sweep of so many configurations would."""

    def search(self, seed: int) -> Search:
        """As a spec."""
        sampler: Any = {UNCONSTRAINED: "tpe", SHUFFLED: "random"}.get(self.sampler, self.sampler)
        return Search(sampler=sampler, pruning=self.pruning, startup_trials=self.startup_trials, seed=seed)

    @quiet_optuna()
    def replay(self, table: Table, seed: int, *, trials: int | None = None) -> Replayed:
        """Search a table until it arrives or everything was tried.

        Args:
            table: what may be measured.
            seed: of the search.
            trials: go on for so many trials even when it has arrived; None: end there.
        """
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler())
        search, in_order = self.search(seed), self.sampler in ("grid", SHUFFLED)
        table = table.shuffled(seed) if self.sampler == SHUFFLED else table
        search = search.replace(startup_trials=search.active_startup_trials(table.space, len(table.rows)))
        plan = Plan(search, table.space, tuple(row.setting for row in table.rows) if in_order else ())
        pruner = Pruner(search.active_pruning(), table.goal)
        taken = np.zeros(len(table.rows), dtype=bool)
        spent, arrived, pruned = 0.0, None, 0
        count = min(trials or len(table.rows), len(table.rows))
        for number in range(count):
            found = number

            def adjust(setting: dict[str, Any]) -> dict[str, Any]:
                nonlocal found
                # The table holds no more than its rows: the one nearest to what was sampled is measured instead.
                found = table.nearest(setting, taken)
                return table.rows[found].setting

            trial = ask(study, plan, number, None if in_order else adjust)
            plan.space.suggest(trial)
            row = table.rows[found]
            taken[found] = True
            points = row.points
            for points, trajectory in row.prefixes:
                is_complete = len(points) == len(row.points)
                pruner.saw(number, trajectory, is_complete=is_complete)
                if arrived is None and has_arrived(table, pruner):
                    arrived = spent + points[-1].epoch
                if not is_complete and pruner.judge(trajectory):
                    pruned += 1
                    break
            spent += points[-1].epoch
            if arrived is not None and trials is None:
                return Replayed(arrived, spent, pruned, number + 1)
            is_constrained = self.sampler != UNCONSTRAINED
            tell(study, number, points, table.goal, start_counts=row.start_counts, constrained=is_constrained)
        return Replayed(arrived, spent, pruned, count)


def replay_table(folder: SweepFolder) -> Table:
    """A sweep's table, over the space that it was drawn from, or over what a grid or an imported table spans."""
    spec = folder.header()["spec"]
    was_drawn = "space" in spec and spec["search"]["sampler"] != "grid"
    return table_of(folder.record(), SearchSpace.model_validate(spec["space"]) if was_drawn else None)


def compare(table: Table, contenders: Sequence[Contender], seeds: int) -> dict[str, Any]:
    """Replay every contender with the seeds 0, 1, ...; what `sweeplab replay --json` prints.

    Raises:
        InvalidInput: for an unknown sampler; the message lists the known ones.
    """
    for contender in contenders:
        if contender.sampler not in SAMPLERS:
            raise InvalidInput(f"sampler={contender.sampler!r} is unknown; known: {', '.join(SAMPLERS)}")
    results = []
    for contender in contenders:
        runs = [contender.replay(table, seed) for seed in range(1 if contender.sampler == "grid" else seeds)]
        results.append(summary(table, contender, runs))
    return {
        "sweep": table.name,
        "asr_ceiling": table.goal.asr_ceiling,
        "victim": {"accuracy": table.goal.victim_accuracy, "asr": table.goal.victim_asr},
        "table": {
            "configurations": len(table.rows),
            "trial_epochs": table.trial_epochs,
            "best_retention": table.best_retention,
            "lowest_asr": table.lowest_asr,
        },
        "target": f"best retention within {WITHIN}" if table.best_retention else f"lowest ASR within {WITHIN}",
        "results": results,
    }


def summary(table: Table, contender: Contender, runs: Sequence[Replayed]) -> dict[str, Any]:
    """Median and quartiles of the trial-epochs to arrival; null where that many runs never arrived.

    Rules and start-up trials are those that the runs had: a grid is never pruned, and some samplers have no start-up.
    """
    search = contender.search(0)
    pruning = search.active_pruning()
    costs = sorted(float("inf") if run.arrived_after is None else run.arrived_after for run in runs)
    # Order statistics, not interpolated: a run that never arrives has no finite cost.
    quartiles = {
        name: costs[min(len(costs) - 1, int(share * len(costs)))]
        for name, share in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75))
    }
    return {
        "sampler": contender.sampler,
        "pruning": pruning.to_json() if pruning else None,
        "startup_trials": search.active_startup_trials(table.space, len(table.rows)),
        "seeds": len(runs),
        "arrived": sum(run.arrived_after is not None for run in runs),
        "trial_epochs": {name: _finite(value) for name, value in quartiles.items()},
        "share_of_table": {name: _finite(value / table.trial_epochs) for name, value in quartiles.items()},
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
