"""Samplers: which setting comes next, and what Optuna is told of a trial. Sweeps and replays share it."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, log, nextafter
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from sweeplab.evaluation.retention import best_cleaned_point, counted, lowest_asr, score
from sweeplab.experiment import CleaningSweep, Search, models_conditions
from sweeplab.records import Point
from sweeplab.search.pruner import Goal
from sweeplab.search.quiet import quiet_optuna
from sweeplab.search_space import Choice, SearchSpace
from sweeplab.training.randomness import stream_seed

CONSTRAINT = "asr"
"""Its name in the study: positive where no point of the trial is cleaned."""

UNUSED = "unused"
"""User attribute of a trial: the coordinates that were drawn with its setting and do not apply in it."""

Adjust = Callable[[dict[str, Any]], dict[str, Any]]
"""A drawn setting to the one that is run; a replay takes the nearest one that was measured."""


@dataclass(frozen=True)
class Plan:
    """What the draws depend on beside the results."""

    search: Search
    space: SearchSpace
    first: tuple[dict[str, Any], ...] = ()
    """Settings that are run before anything is drawn, in order: the grid, or nothing."""
    reruns: dict[int, int] = field(default_factory=dict)
    """Trials that try another one once more, and so take no place among the settings; with the number of the other."""

    @classmethod
    def of(cls, sweep: CleaningSweep) -> "Plan":
        """A sweep's."""
        if sweep.search.sampler == "grid":
            assert sweep.grid is not None
            return cls(sweep.search, sweep.grid.as_space(), sweep.grid.points())
        return cls(sweep.search, sweep.space, sweep.first_settings())

    @property
    def startup_trials(self) -> int:
        """Configurations before the sampler models anything."""
        return self.search.active_startup_trials(self.space) or 0

    @property
    def fills_in(self) -> bool:
        """Whether the sampler needs a coordinate in every dimension of every configuration."""
        return models_conditions(self.search, self.space)

    @property
    def draws_in_view(self) -> bool:
        """Whether settings are drawn in a view of the study (`by_configuration`), not in the study itself."""
        # Optuna puts a trial whose setting is given into no generation.
        lacks_generations = self.search.sampler == "nsga2" and bool(self.first)
        return self.search.seeds_per_configuration > 1 or self.fills_in or lacks_generations

    def configuration_of(self, number: int) -> int:
        """Which configuration a trial runs: trials in consecutive places share one, with a seed each."""
        return self.place_of(number) // self.search.seeds_per_configuration

    def place_of(self, number: int) -> int:
        """A trial's place among those that are no reruns."""
        return number - sum(rerun < number for rerun in self.reruns)

    def seed_of(self, number: int) -> int:
        """Which of its configuration's seeds a trial has, from 0."""
        return self.place_of(number) % self.search.seeds_per_configuration

    def original_of(self, number: int) -> int:
        """The trial that a rerun repeats, in the end; the trial itself where it is none."""
        while number in self.reruns:
            number = self.reruns[number]
        return number


def ask(study: optuna.Study, plan: Plan, number: int, adjust: Adjust | None = None) -> optuna.Trial:
    """Begin trial `number` in the study; `plan.space.suggest` gives its setting.

    Raises:
        RuntimeError: if Optuna gives it another number, because something else writes to the study.
    """
    with quiet_optuna():
        if not any(trial.state == OptunaState.WAITING for trial in study.get_trials(deepcopy=False)[number:]):
            given = _given(study, plan, number, adjust)
            if given is not None:
                setting, unused = given
                study.enqueue_trial(setting, user_attrs={UNUSED: unused} if unused else None)
        study.sampler = _sampler_for(study, plan, number, adjust)
        trial = study.ask()
    if trial.number != number:
        raise RuntimeError(f"Optuna numbered trial {number} as {trial.number}; the journal has another writer")
    return trial


def _given(
    study: optuna.Study, plan: Plan, number: int, adjust: Adjust | None
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The setting of a trial that draws none of its own in this study, and the coordinates that do not apply in it.

    None: it is drawn here.
    """
    configuration = plan.configuration_of(number)
    if plan.seed_of(number):
        before = next(n for n in reversed(range(number)) if n not in plan.reruns)
        return dict(study.get_trials(deepcopy=False)[before].params), {}
    if configuration < len(plan.first):
        return plan.first[configuration], {}
    if not plan.draws_in_view:
        return None
    view = by_configuration(study, plan)
    view.sampler = _sampler_for(study, plan, number, adjust)
    asked = view.ask()
    setting = plan.space.suggest(asked)
    return setting, plan.space.suggest_rest(asked, setting) if plan.fills_in else {}


MOST_REDRAWS = 64


def _without_repeats(study: optuna.Study, plan: Plan, number: int) -> Adjust | None:
    """In place of a setting that was run before, which would give the same result again, a random one.

    None where that cannot happen. A finite space whose settings have all been run repeats them.
    """
    is_finite = all(isinstance(dimension, Choice) for dimension in plan.space.dimensions.values())
    if plan.search.sampler == "grid" or not (is_finite or plan.search.sampler == "nsga2"):
        return None
    known = [trial.params for trial in study.get_trials(deepcopy=False)[:number]]
    seed = stream_seed(plan.search.seed, "instead of a repeat", number) % 2**32

    def adjust(setting: dict[str, Any]) -> dict[str, Any]:
        for index in range(MOST_REDRAWS):
            if setting not in known:
                return setting
            setting = plan.space.suggest(optuna.create_study(sampler=Sobol(plan.space, seed, index)).ask())
        return setting

    return adjust


def by_configuration(study: optuna.Study, plan: Plan) -> optuna.Study:
    """A study in which every configuration is one trial, so that a sampler sees it once, whatever its seeds.

    Its value is the mean score over the seeds, its constraint the worst: it counts as cleaned where every seed is. It
    is under way until all its seeds are over; seeds that failed do not count. A rerun stands for what it repeats.
    """
    seeds = plan.search.seeds_per_configuration
    with quiet_optuna():
        view = optuna.create_study(direction="maximize", sampler=RandomSampler())
    # A waiting trial has no parameters yet.
    known = [trial for trial in study.get_trials(deepcopy=False) if trial.state != OptunaState.WAITING]
    # A rerun counts in place of the trial that it repeats, at that trial's place among the seeds.
    instead = {
        plan.original_of(t.number): t for t in known if t.number in plan.reruns and t.state == OptunaState.COMPLETE
    }
    firsts = [trial for trial in known if trial.number not in plan.reruns]
    for start in range(0, len(firsts), seeds):
        first = firsts[start]
        members = [instead.get(trial.number, trial) for trial in firsts[start : start + seeds]]
        over = [trial for trial in members if trial.state.is_finished()]
        told = [trial for trial in over if trial.state == OptunaState.COMPLETE]
        facts: dict[str, Any] = {"state": OptunaState.RUNNING}
        if len(over) == seeds and told:
            # The setting is only clean if it is so under every seed.
            worst = max(told, key=lambda trial: trial.constraints.get(CONSTRAINT, -inf))
            value = float(np.mean([trial.value for trial in told]))
            facts = {"state": OptunaState.COMPLETE, "value": value, "constraints": worst.constraints}
        elif len(over) == seeds:
            facts = {"state": OptunaState.FAIL}
        if plan.search.sampler == "nsga2":
            # NSGA-II reads a trial's generation from its attributes, which a study made anew lacks.
            generation = start // seeds // _population(plan)
            facts["system_attrs"] = {NSGAIISampler._get_generation_key(): generation}
        params, distributions = dict(members[0].params), dict(members[0].distributions)
        # A sampler that models the whole box needs a coordinate in every dimension.
        if plan.fills_in and params:
            params = _filled_in(plan, start // seeds, params, first.user_attrs.get(UNUSED, {}))
            distributions = {name: dimension.distribution() for name, dimension in plan.space.dimensions.items()}
        view.add_trial(create_trial(params=params, distributions=distributions, **facts))
    return view


def _filled_in(plan: Plan, configuration: int, setting: dict[str, Any], unused: dict[str, Any]) -> dict[str, Any]:
    """A setting with a coordinate in every dimension: what was drawn with it; of a given setting those of a Sobol
    point."""
    whole = {**unused, **setting}
    if len(whole) < len(plan.space.dimensions):
        point = Sobol(plan.space, stream_seed(plan.search.seed, "coordinates") % 2**32, configuration)
        for name, dimension in plan.space.dimensions.items():
            whole.setdefault(name, point.value(name, dimension.distribution()))
    return whole


def tell(
    study: optuna.Study,
    number: int,
    points: Sequence[Point],
    goal: Goal,
    *,
    start_counts: bool,
    constrained: bool = True,
) -> None:
    """Tell Optuna of an ended trial, finished or pruned, by all its points; again changes nothing.

    A pruned trial is told as complete, with the score that it had when it was stopped, so that samplers learn from it.

    Args:
        study: where the trial was asked for.
        number: the trial's.
        points: all of them, in order.
        goal: what the score is relative to.
        start_counts: whether epoch 0 may win.
        constrained: False is for comparison: no constraint, and a trial without a cleaned point is worth 0, however
            far from one it was.
    """
    frozen = study.get_trials(deepcopy=False)[number]
    # A resume tells all ended trials again, since a kill may have come before any of them.
    if frozen.state.is_finished():
        return
    trial = optuna.Trial(study, frozen._trial_id)
    with quiet_optuna():
        # Optuna calls a value of 0 feasible, and an ASR equal to the ceiling is not: hence the next float.
        if constrained and CONSTRAINT not in frozen.constraints:  # a kill may have come between this and what follows
            lowest = lowest_asr(points, start_counts=start_counts)
            trial.set_constraint(CONSTRAINT, nextafter(lowest - goal.asr_ceiling, inf))
        if constrained:
            # After a kill in between, some are there.
            _tell_viewers(trial, frozen.intermediate_values, points, goal, start_counts=start_counts)
        value = score(points, goal.victim_accuracy, goal.asr_ceiling, start_counts=start_counts)
        study.tell(number, value if constrained else max(0.0, value), skip_if_finished=True)


def _tell_viewers(
    trial: optuna.Trial, known: Container[int], points: Sequence[Point], goal: Goal, *, start_counts: bool
) -> None:
    """What those see who open the study in Optuna Dashboard; no sampler reads it.

    The point that decides (the best cleaned one, else that of lowest ASR) as attributes, and as a value of each point
    what the trial would have scored by it alone.
    """
    candidates = counted(points, start_counts=start_counts)
    best = best_cleaned_point(candidates, goal.asr_ceiling, start_counts=start_counts)
    shown = best or min(candidates, key=lambda point: point.measurement.asr or 0.0)
    facts = {"feasible": best is not None, "accuracy": shown.measurement.accuracy, "asr": shown.measurement.asr}
    for name, value in (*facts.items(), ("epoch", shown.epoch)):
        trial.set_user_attr(name, value)
    for point in (point for point in candidates if point.index not in known):
        trial.report(score([point], goal.victim_accuracy, goal.asr_ceiling, start_counts=start_counts), point.index)


def ask_again(study: optuna.Study, plan: Plan, number: int) -> optuna.Trial:
    """A trial that was asked for by a driver that was killed before it wrote the setting down: it draws the same."""
    with quiet_optuna():
        study.sampler = _sampler_for(study, plan, number)
        return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def _sampler_for(study: optuna.Study, plan: Plan, number: int, adjust: Adjust | None = None) -> BaseSampler:
    """The sampler of one trial alone."""
    inner = SAMPLERS[plan.search.sampler](plan, number, stream_seed(plan.search.seed, "sampler", number) % 2**32)
    adjust = adjust or _without_repeats(study, plan, number)
    return inner if adjust is None else _Adjusted(inner, plan.space, adjust)


def _gp(plan: Plan, number: int, seed: int) -> BaseSampler:
    # One completed trial is the least that it can be fitted to.
    startup = max(1, plan.startup_trials)
    return GPSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)


def _population(plan: Plan) -> int:
    return max(2, plan.startup_trials)  # a crossover has two parents


def _qmc(plan: Plan, number: int, seed: int) -> BaseSampler:
    index = plan.configuration_of(number) - len(plan.first)
    return Sobol(plan.space, stream_seed(plan.search.seed, "sobol") % 2**32, max(0, index))


SAMPLERS: Mapping[str, Callable[[Plan, int, int], BaseSampler]] = {
    "tpe": lambda plan, number, seed: TPESampler(n_startup_trials=plan.startup_trials, constant_liar=True, seed=seed),
    "gp": _gp,
    "random": lambda plan, number, seed: RandomSampler(seed=seed),
    "qmc": _qmc,
    "nsga2": lambda plan, number, seed: NSGAIISampler(population_size=_population(plan), seed=seed),
    "grid": lambda plan, number, seed: RandomSampler(seed=seed),  # every trial's setting is given
}
"""By name: from the plan, the trial's number and a seed."""


class Sobol(BaseSampler):
    """Point `index` of a scrambled Sobol sequence over all dimensions of a space.

    Optuna's own keeps its place in the study, where a kill between two writes skips a point, and draws conditional
    parameters at random. Here a conditional parameter has its coordinate whether it applies or not.
    """

    def __init__(self, space: SearchSpace, seed: int, index: int) -> None:
        from scipy.stats import qmc  # takes a second to import

        engine = qmc.Sobol(len(space.dimensions), scramble=True, seed=seed)
        if index:
            engine.fast_forward(index)
        self.place = dict(zip(space.dimensions, engine.random(1)[0], strict=True))
        """By parameter, in [0, 1)."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every parameter by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The parameter's coordinate on its own scale."""
        return self.value(param_name, param_distribution)

    def value(self, name: str, distribution: BaseDistribution) -> Any:
        """The point's coordinate in one dimension, on its own scale."""
        place = float(self.place[name])
        if isinstance(distribution, FloatDistribution):
            low, high = distribution.low, distribution.high
            value = exp(log(low) + place * (log(high) - log(low))) if distribution.log else low + place * (high - low)
            return min(max(value, low), high)
        assert isinstance(distribution, optuna.distributions.CategoricalDistribution)
        return distribution.choices[int(place * len(distribution.choices))]


class _Adjusted(BaseSampler):
    """Draws a whole setting with another sampler and puts what `adjust` makes of it in its place."""

    def __init__(self, inner: BaseSampler, space: SearchSpace, adjust: Adjust) -> None:
        self.inner, self.space, self.adjust = inner, space, adjust
        self._inner_space: dict[str, BaseDistribution] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._inner_space = self.inner.infer_relative_search_space(study, trial)
        return {name: dimension.distribution() for name, dimension in self.space.dimensions.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = self.inner.sample_relative(study, trial, self._inner_space)
        chosen: dict[str, Any] = {}
        for name, dimension in self.space.dimensions.items():
            if dimension.is_active(chosen):
                independent = self.inner.sample_independent
                known = name in drawn
                chosen[name] = drawn[name] if known else independent(study, trial, name, dimension.distribution())
        return {**drawn, **self.adjust(chosen)}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Of what does not apply in the adjusted setting."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: OptunaState, values: Any) -> None:
        self.inner.after_trial(study, trial, state, values)
