"""The search: every sampler draws the same whatever is interrupted, and sees each configuration once."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import fabricated
import optuna
import pytest
from fabricated import SWEEP, Player, open_controller
from optuna.trial import TrialState

from sweeplab.experiment import CleaningSweep, Search, chosen_startup_trials
from sweeplab.search.pruner import Goal
from sweeplab.search.samplers import CONSTRAINT, UNUSED, Plan, Sobol, ask, by_configuration, tell
from sweeplab.search_space import Choice, LogUniform, SearchSpace, Uniform
from sweeplab.specs import InvalidInput, changes_of
from sweeplab.sweep_folder import SweepFolder

CONDITIONAL = SearchSpace(
    dimensions={
        "learning_rate": LogUniform(low=1e-4, high=1e-1),
        "shrink_perturb": Choice(values=(False, True)),
        "shrink": Uniform(low=0.5, high=1.0, when={"shrink_perturb": True}),
    },
    source="made up",
)


def searching(sampler: str, trials: int = 6, **search: object) -> CleaningSweep:
    return SWEEP.replace(
        space=CONDITIONAL, search=SWEEP.search.replace(sampler=sampler, trials=trials, startup_trials=3, **search)
    )


def params_of(path: Path, sweep: CleaningSweep) -> list[dict[str, object]]:
    folder = fabricated.finished_sweep(path, sweep)
    return [folder.trial_header(number)["params"] for number in folder.trial_numbers()]


Undisturbed = Callable[[str, int], list[dict[str, object]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What a sweep draws that nothing interrupts, by its sampler and its seeds of a configuration."""

    @cache
    def drawn(sampler: str, seeds: int) -> list[dict[str, object]]:
        return params_of(tmp_path_factory.mktemp("undisturbed"), searching(sampler, seeds_per_configuration=seeds))

    return drawn


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "nsga2"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_resumed_sweep_draws_what_an_uninterrupted_one_does(
    sampler: str, seeds: int, undisturbed: Undisturbed, tmp_path: Path
):
    sweep = searching(sampler, seeds_per_configuration=seeds)
    folder = fabricated.prepared_folder(tmp_path / "resumed", sweep)
    for _ in range(6):
        controller = open_controller(folder, sweep)
        Player(controller).play(controller.next_job())
    found = [folder.trial_header(number)["params"] for number in folder.trial_numbers()]
    assert found == undisturbed(sampler, seeds)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "nsga2", "grid"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_kill_between_a_draw_and_its_record_changes_no_draw(
    sampler: str, seeds: int, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sweep = searching(sampler, seeds_per_configuration=seeds)
    folder = fabricated.prepared_folder(tmp_path / "killed", sweep)
    controller = open_controller(folder, sweep)
    for _ in range(4):
        Player(controller).play(controller.next_job())
    with monkeypatch.context() as patch:
        patch.setattr(SweepFolder, "write_trial", kill)
        with pytest.raises(Killed):
            controller.next_job()
    Player(open_controller(folder, sweep)).play_all()
    found = [folder.trial_header(number)["params"] for number in folder.trial_numbers()]
    assert found == undisturbed(sampler, seeds)


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


def kill(*arguments: object, **named: object) -> None:
    raise Killed


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc", "nsga2"])
def test_conditional_and_logarithmic_parameters_stay_in_their_space(sampler: str, undisturbed: Undisturbed):
    sweep, drawn = searching(sampler), undisturbed(sampler, 1)
    assert [sweep.space.fault_of(params) for params in drawn] == [None] * 6
    assert len({str(params) for params in drawn}) == 6


@pytest.mark.parametrize(
    ("sampler", "trials"), [("tpe", 40), pytest.param("gp", 12, marks=pytest.mark.slow), ("nsga2", 60)]
)
def test_samplers_that_know_the_constraint_follow_it(sampler: str, trials: int):
    """Every value is the same; where low rates violate the constraint, the later draws lie higher than where high ones
    do."""
    plan = Plan.of(SWEEP.replace(search=SWEEP.search.replace(sampler=sampler, startup_trials=6)))

    def mean_rate_of_later_draws(sign: float) -> float:
        study, rates = optuna.create_study(direction="maximize"), []
        for number in range(trials):
            trial = ask(study, plan, number)
            rates.append(math.log10(plan.space.suggest(trial)["learning_rate"]))
            trial.set_constraint(CONSTRAINT, sign * (rates[-1] + 2.5))
            study.tell(trial, 1.0)
        later = rates[trials // 2 :]
        return sum(later) / len(later)

    assert mean_rate_of_later_draws(1.0) < mean_rate_of_later_draws(-1.0) - 0.3


BRANCHES = SearchSpace(
    dimensions={
        "learning_rate": LogUniform(low=1e-4, high=1e-1),
        "shrink_perturb": Choice(values=(False, True)),
        "shrink": Uniform(low=0.0, high=1.0, when={"shrink_perturb": True}),
    },
    source="made up",
)


def branches(sampler: str, seed: int, trials: int, startup_trials: int) -> list[dict[str, object]]:
    """Settings that are drawn where the conditional branch is the better one (.95 at a shrink of .3, else .7), and the
    worse one over most of its width."""
    search = SWEEP.search.replace(sampler=sampler, startup_trials=startup_trials, seed=seed)
    study, plan = optuna.create_study(direction="maximize"), Plan.of(SWEEP.replace(space=BRANCHES, search=search))
    for number in range(trials):
        params = plan.space.suggest(ask(study, plan, number))
        value = 0.95 - 4 * (params["shrink"] - 0.3) ** 2 if params["shrink_perturb"] else 0.7
        study.tell(number, value)
    return [trial.params for trial in study.get_trials()]


def test_the_gaussian_process_models_parameters_with_a_condition():
    """Told of six shrinks from 0 to 1, it draws beside the best one; at random one draw of five would lie so near."""
    shrinks = []
    for seed in range(4):
        search = SWEEP.search.replace(sampler="gp", startup_trials=8, seed=seed)
        study, plan = optuna.create_study(direction="maximize"), Plan.of(SWEEP.replace(space=BRANCHES, search=search))
        tried = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
        told: list[tuple[dict[str, object], float]] = [
            *(({"shrink_perturb": True, "shrink": x}, 0.95 - 4 * (x - 0.3) ** 2) for x in tried),
            *(({"shrink_perturb": False}, 0.7) for _ in tried),
        ]
        for number, (params, value) in enumerate(told):
            study.enqueue_trial({"learning_rate": 10 ** -(1 + number % 4), **params})
            plan.space.suggest(study.ask())
            study.tell(number, value)
        shrinks.append(plan.space.suggest(ask(study, plan, len(told))).get("shrink"))
    assert sum(shrink is not None and abs(shrink - 0.3) <= 0.1 for shrink in shrinks) >= 3, shrinks


def test_nsga2_passes_on_parameters_with_a_condition():
    """A child has a parent's value of each parameter, but where it is drawn anew, one in three."""
    passed_on = children = 0
    for seed in range(5):
        drawn = [params["shrink"] for params in branches("nsga2", seed, 24, 6) if params["shrink_perturb"]]
        passed_on += len(drawn) - len(set(drawn))
        children += len(drawn)
    assert passed_on > 0.25 * children


@pytest.mark.parametrize("sampler", ["gp", "nsga2"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_every_configuration_has_a_coordinate_in_every_dimension(sampler: str, seeds: int):
    """Of what was drawn and does not apply the drawn one; of a given setting one of its own, the same each time."""
    sweep = searching(sampler, seeds_per_configuration=seeds)
    study, plan = optuna.create_study(direction="maximize"), Plan.of(sweep)
    for number in range(6):
        plan.space.suggest(ask(study, plan, number))
        study.tell(number, float(number))
    study.enqueue_trial({"learning_rate": 1e-2, "shrink_perturb": False})
    plan.space.suggest(study.ask())
    seen, again = (by_configuration(study, plan).get_trials() for _ in range(2))
    assert [trial.params for trial in seen] == [trial.params for trial in again]
    assert {tuple(sorted(trial.params)) for trial in seen} == {("learning_rate", "shrink", "shrink_perturb")}
    drawn = study.get_trials()[:6:seeds]
    assert not all(trial.params["shrink_perturb"] for trial in drawn)
    for trial, shown in zip(drawn, seen, strict=False):
        assert shown.params == trial.params | trial.user_attrs.get(UNUSED, {})
        assert plan.space.fault_of(trial.params) is None


def test_nsga2_with_one_parameter_is_a_random_search():
    """A child changes one of its parameters in the mean, here the only one, by drawing it anew: each generation is
    drawn like the first."""
    space = SearchSpace(dimensions={"learning_rate": LogUniform(low=1e-4, high=1e-1)}, source="made up")

    def drawn(population: int) -> list[dict[str, object]]:
        search = SWEEP.search.replace(sampler="nsga2", startup_trials=population)
        study, plan = optuna.create_study(direction="maximize"), Plan.of(SWEEP.replace(space=space, search=search))
        for number in range(12):
            study.tell(number, plan.space.suggest(ask(study, plan, number))["learning_rate"])
        return [trial.params for trial in study.get_trials()]

    assert drawn(3) == drawn(12)


def test_nsga2_learns_from_the_grid_that_comes_first(tmp_path: Path):
    """Six settings of the grid are two generations of three; a child has the values of two parents, but where one is
    drawn anew."""
    sweep = GRID_FIRST.replace(search=GRID_FIRST.search.replace(sampler="nsga2", trials=12, startup_trials=3))
    drawn = params_of(tmp_path, sweep)
    known = [set(params.values()) for params in drawn[:6]]
    assert any(set(params.values()) & set.union(*known) for params in drawn[6:9])


def test_a_finite_space_is_run_through_before_anything_repeats(tmp_path: Path):
    space = SearchSpace(dimensions={"learning_rate": Choice(values=(1e-4, 1e-3, 1e-2, 1e-1))}, source="made up")
    for sampler in ("tpe", "random", "nsga2"):
        sweep = searching(sampler, trials=4).replace(space=space)
        assert {params["learning_rate"] for params in params_of(tmp_path / sampler, sweep)} == {1e-4, 1e-3, 1e-2, 1e-1}


def test_an_unknown_sampler_lists_the_known_ones():
    with pytest.raises(InvalidInput, match="'tpe', 'gp', 'random', 'qmc', 'grid' or 'nsga2'"):
        searching("cmaes")


# --- Sobol


def test_sobol_points_are_those_of_one_scrambled_sequence():
    """The first eight points of a Sobol sequence fill every eighth of every axis once."""
    places = [Sobol(CONDITIONAL, 5, index).place for index in range(8)]
    for name in CONDITIONAL.dimensions:
        assert sorted(int(8 * place[name]) for place in places) == list(range(8))


def test_sobol_scales_each_kind_of_dimension():
    """A place of .5 is the geometric mean of a logarithmic range, the middle of a plain one, the later of two
    choices."""
    sampler = Sobol(CONDITIONAL, 5, 0)
    sampler.place = dict.fromkeys(CONDITIONAL.dimensions, 0.5)
    study = optuna.create_study(sampler=sampler)
    params = CONDITIONAL.suggest(study.ask())
    assert params == {"learning_rate": pytest.approx(10**-2.5), "shrink_perturb": True, "shrink": pytest.approx(0.75)}


# --- the grid first


GRID_FIRST = SWEEP.replace(search=SWEEP.search.replace(trials=8, grid_first=True))


def test_the_grid_comes_first_where_that_is_asked_for(tmp_path: Path):
    drawn = params_of(tmp_path, GRID_FIRST)
    assert drawn[:6] == [dict(point) for point in GRID_FIRST.grid.points()]
    assert drawn[6] not in drawn[:6]


def test_what_the_grid_leaves_out_keeps_the_sweeps_own_value(tmp_path: Path):
    space = SearchSpace(
        dimensions={**SWEEP.space.dimensions, "weight_decay": LogUniform(low=1e-2, high=1.0)}, source="made up"
    )
    sweep = GRID_FIRST.replace(space=space, optimization=SWEEP.optimization.replace(weight_decay=0.3))
    assert {params["weight_decay"] for params in params_of(tmp_path, sweep)[:6]} == {0.3}


def test_a_grid_outside_the_space_is_refused_when_it_is_to_come_first():
    space = SearchSpace(
        dimensions={"ssl_weight": Uniform(low=0, high=4), "learning_rate": LogUniform(low=1e-4, high=1e-2)}, source=""
    )
    with pytest.raises(InvalidInput, match=r"learning_rate=0\.1 lies outside the space"):
        GRID_FIRST.replace(space=space)


def test_the_grid_first_needs_a_grid():
    with pytest.raises(InvalidInput, match="grid_first=true needs a `grid`"):
        GRID_FIRST.replace(grid=None)


# --- seeds


TWO_SEEDS = SWEEP.replace(search=SWEEP.search.replace(trials=8, seeds_per_configuration=2))


def test_every_configuration_is_run_with_each_seed(tmp_path: Path):
    folder = fabricated.finished_sweep(tmp_path, TWO_SEEDS)
    headers = [folder.trial_header(number) for number in range(8)]
    assert [header["seed"] for header in headers] == [0, 1] * 4
    for one, other in zip(headers[::2], headers[1::2], strict=True):
        assert one["params"] == other["params"]
        assert one["configuration"] == other["configuration"]
    assert len({header["configuration"] for header in headers}) == 4


def test_a_job_carries_its_trials_seed(tmp_path: Path):
    controller = open_controller(fabricated.prepared_folder(tmp_path, TWO_SEEDS), TWO_SEEDS)
    jobs = [controller.next_job() for _ in range(2)]
    assert [job.sweep.seed for job in jobs] == [0, 1]


def test_a_grid_runs_every_setting_with_each_seed(tmp_path: Path):
    sweep = SWEEP.replace(search=SWEEP.search.replace(sampler="grid", seeds_per_configuration=2))
    assert sweep.num_trials() == 12
    drawn = params_of(tmp_path, sweep)
    assert drawn[::2] == drawn[1::2] == [dict(point) for point in sweep.grid.points()]


def test_trials_must_be_a_multiple_of_the_seeds():
    with pytest.raises(InvalidInput, match="trials=6 must be a multiple of seeds_per_configuration=4; choose 4 or 8"):
        SWEEP.replace(search=SWEEP.search.replace(seeds_per_configuration=4))


def test_the_sampler_sees_a_configuration_as_one():
    """Scores .8 and -.2, constraints -.01 and .2: one trial of value .3 that is not cleaned; the second is under way;
    the third failed with both seeds."""
    study = optuna.create_study(direction="maximize")
    distributions = {"ssl_weight": optuna.distributions.FloatDistribution(0, 4)}

    def add(weight: float, **facts: object) -> None:
        study.add_trial(optuna.trial.create_trial(params={"ssl_weight": weight}, distributions=distributions, **facts))

    add(1.0, value=0.8, constraints={CONSTRAINT: -0.01})
    add(1.0, value=-0.2, constraints={CONSTRAINT: 0.2})
    add(2.0, value=0.9, constraints={CONSTRAINT: -0.01})
    add(2.0, state=TrialState.RUNNING)
    add(3.0, state=TrialState.FAIL)
    add(3.0, state=TrialState.FAIL)
    seen = by_configuration(study, Plan.of(TWO_SEEDS)).get_trials()
    assert [trial.state for trial in seen] == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL]
    assert seen[0].value == pytest.approx(0.3)
    assert seen[0].constraints == {CONSTRAINT: 0.2}


# --- digests


def test_new_fields_at_their_defaults_leave_digests_alone(monkeypatch: pytest.MonkeyPatch):
    """Taken before `grid_first`, `seeds_per_configuration` and `pruning` existed, and before captions were augmented
    otherwise."""
    monkeypatch.setattr(CleaningSweep, "CHANGES", ())
    assert SWEEP.digest() == "73cbc2531fa38461"
    assert SWEEP.search.replace(grid_first=True).canonical() != SWEEP.search.canonical()


def test_start_up_trials_left_out_leave_the_digest_of_the_first_default(monkeypatch: pytest.MonkeyPatch):
    """Taken while the default was 8, and before captions were augmented otherwise."""
    monkeypatch.setattr(CleaningSweep, "CHANGES", ())
    assert SWEEP.replace(search=Search()).digest() == "6b56d4ef83577393"
    assert SWEEP.replace(search=Search(startup_trials=8)).digest() == "6b56d4ef83577393"
    assert SWEEP.replace(search=Search(startup_trials=7)).digest() != "6b56d4ef83577393"


@pytest.mark.parametrize(
    ("sampler", "space", "before", "is_changed"),
    [
        ("tpe", SWEEP.space, "73cbc2531fa38461", False),
        ("tpe", CONDITIONAL, "04287ea73ab89f91", False),
        ("gp", SWEEP.space, "1b03259c99466724", False),
        ("gp", CONDITIONAL, "40949b9ce91f2139", True),
        ("random", SWEEP.space, "73525bebe0902aa7", False),
        ("random", CONDITIONAL, "8e8acdda1d59b472", False),
        ("qmc", SWEEP.space, "ae6d1c2409f8b694", False),
        ("qmc", CONDITIONAL, "33bfcefdda2a9a0c", False),
        ("nsga2", SWEEP.space, "638b99e8d287f506", False),
        ("nsga2", CONDITIONAL, "d780816387516540", True),
        ("grid", SWEEP.space, "af30ee426a5a89bb", False),
        ("grid", CONDITIONAL, "0917002119d92323", False),
    ],
)
def test_only_digests_of_searches_that_draw_otherwise_have_changed(
    sampler: str, space: SearchSpace, before: str, is_changed: bool, monkeypatch: pytest.MonkeyPatch
):
    """Taken while conditional parameters were drawn at random, and before captions were augmented otherwise."""
    monkeypatch.setattr(CleaningSweep, "CHANGES", ())
    sweep = SWEEP.replace(space=space, search=Search(sampler=sampler, startup_trials=3))
    assert (sweep.digest() != before) == is_changed
    assert bool(changes_of(sweep)) == is_changed


# --- start-up trials


@pytest.mark.parametrize(
    ("configurations", "dimensions", "number"),
    [
        (12, 1, 2),
        (16, 1, 2),
        (16, 2, 4),
        (96, 2, 4),
        (12, 6, 6),
        (16, 6, 8),
        (48, 6, 8),
        (1000, 20, 8),
        (3, 2, 1),
        (1, 1, 1),
    ],
)
def test_two_start_up_trials_a_dimension_and_no_more_than_half_nor_eight(
    configurations: int, dimensions: int, number: int
):
    assert chosen_startup_trials(configurations, dimensions) == number


def test_start_up_trials_are_chosen_by_configurations_and_dimensions_that_vary():
    """Sixteen trials of two seeds are eight configurations; of three dimensions one has a single value."""
    fixed = SearchSpace(dimensions={**SWEEP.space.dimensions, "weight_decay": Choice(values=(0.1,))}, source="made up")
    assert Search(trials=16).active_startup_trials(fixed) == 4
    assert Search(trials=16, seeds_per_configuration=4).active_startup_trials(fixed) == 2
    assert Search(trials=16, startup_trials=0).active_startup_trials(fixed) == 0
    assert Search(trials=16, sampler="random").active_startup_trials(fixed) is None


def test_a_sweep_draws_with_the_chosen_number(tmp_path: Path):
    left_out = SWEEP.replace(search=Search(trials=6))
    given = SWEEP.replace(search=Search(trials=6, startup_trials=3))
    assert params_of(tmp_path / "left out", left_out) == params_of(tmp_path / "given", given)


# --- what viewers of the study see


def test_a_told_trial_says_its_deciding_point_and_its_course():
    """Victim 90 %, ceiling 5 %. Points of 80 % accuracy at 50 % ASR, 72 % at 2.5 %, 70 % at 0: by itself the first is
    worth 0.05 - 0.5, the others 72 / 90 and 70 / 90; the untouched start may not win and is not shown."""
    study = optuna.create_study(direction="maximize")
    goal = Goal(victim_accuracy=0.9, victim_asr=0.99, asr_ceiling=0.05)
    courses = {"cleaned": [(90, 0), (80, 40), (72, 2), (70, 0)], "not cleaned": [(90, 79), (80, 60), (85, 40)]}
    for course in courses.values():
        points = tuple(fabricated.point(index, *rates) for index, rates in enumerate(course))
        tell(study, study.ask().number, points, goal, start_counts=False)
    cleaned, other = study.get_trials()
    assert cleaned.user_attrs == {"feasible": True, "accuracy": 0.72, "asr": 0.025, "epoch": 2.0}
    assert cleaned.intermediate_values == pytest.approx({1: 0.05 - 0.5, 2: 0.8, 3: 70 / 90})
    assert other.user_attrs == {"feasible": False, "accuracy": 0.85, "asr": 0.5, "epoch": 2.0}
    assert (cleaned.value, other.value) == (pytest.approx(0.8), pytest.approx(0.05 - 0.5))
