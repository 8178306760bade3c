"""Search spaces and grids: draws, conditions, counts, and what is refused."""

import json

import optuna
import pytest

from searchspaces import cleanclip, verma
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cleaning.start import Start
from sweeplab.search_space import Choice, Grid, LogUniform, SearchSpace, Uniform, check_names
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.optimisation import Optimization

SPACE = SearchSpace(
    dimensions={
        "rate": LogUniform(low=1e-6, high=1e-2),
        "weight": Uniform(low=-1.0, high=3.0),
        "shrunk": Choice(values=(False, True)),
        "share": Uniform(low=0.5, high=1.0, when={"shrunk": True}),
    },
    source="made for these tests",
)


def test_a_space_of_choices_has_so_many_settings():
    """3 x 2; a range holds no number of them."""
    choices = {"rate": Choice(values=(1.0, 2.0, 3.0)), "word": Choice(values=("a", "b"))}
    assert SearchSpace(dimensions=choices, source="").num_settings() == 6
    assert SPACE.num_settings() is None


def draws(space: SearchSpace, count: int, seed: int = 0) -> list[dict[str, object]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.suggest(study.ask()) for _ in range(count)]


def test_draws_lie_in_their_ranges():
    for chosen in draws(SPACE, 50):
        assert 1e-6 <= chosen["rate"] <= 1e-2
        assert -1.0 <= chosen["weight"] <= 3.0
        assert chosen["shrunk"] in (False, True)


def test_a_logarithmic_dimension_is_even_over_its_decades():
    """Of four decades 1e-6 .. 1e-2, half of the draws lie below the middle 1e-4; uniformly it would be 1 in 100."""
    below = sum(chosen["rate"] < 1e-4 for chosen in draws(SPACE, 200))
    assert 70 <= below <= 130


def test_a_conditional_dimension_is_drawn_exactly_where_its_condition_holds():
    chosen = draws(SPACE, 50)
    assert {("share" in each) == each["shrunk"] for each in chosen} == {True}
    assert {each["shrunk"] for each in chosen} == {False, True}


def test_a_condition_on_a_dimension_that_was_not_drawn_does_not_hold():
    space = SearchSpace(
        dimensions={
            "outer": Choice(values=(False,)),
            "inner": Choice(values=(True,), when={"outer": True}),
            "leaf": Uniform(low=0.0, high=1.0, when={"inner": True}),
        },
        source="made for this test",
    )
    assert draws(space, 3) == [{"outer": False}] * 3


def test_the_same_seed_draws_the_same_settings():
    assert draws(SPACE, 5, seed=3) == draws(SPACE, 5, seed=3)
    assert draws(SPACE, 5, seed=3) != draws(SPACE, 5, seed=4)


def test_a_condition_on_a_later_dimension_is_refused():
    dimensions = {
        "share": Uniform(low=0.5, high=1.0, when={"shrunk": True}),
        "shrunk": Choice(values=(False, True)),
    }
    with pytest.raises(InvalidInput, match=r"share.when names shrunk, which no earlier dimension draws; earlier: none"):
        SearchSpace(dimensions=dimensions, source="made for this test")


@pytest.mark.parametrize("kind", [Uniform, LogUniform])
@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (1.0, 1.0)])
def test_an_empty_range_is_refused(kind, low: float, high: float):
    with pytest.raises(InvalidInput, match=f"low={low} must be below high={high}"):
        kind(low=low, high=high)


def test_a_logarithm_needs_positive_numbers():
    with pytest.raises(InvalidInput, match="low=0"):
        LogUniform(low=0.0, high=1.0)


def test_a_choice_needs_values():
    with pytest.raises(InvalidInput, match="values"):
        Choice(values=())


def test_a_space_needs_dimensions_and_a_source():
    with pytest.raises(InvalidInput, match=r"(?s)2 faults.*dimensions.*source"):
        SearchSpace(dimensions={})


@pytest.mark.parametrize("space", [SPACE, cleanclip.CC6M, cleanclip.FRUIT_STALL])
def test_a_space_goes_through_json_and_back(space: SearchSpace):
    again = SearchSpace.model_validate(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert list(again.dimensions) == list(space.dimensions)


def test_a_choice_keeps_the_types_of_its_values_through_json():
    values = (True, 1, 1.0, "1")
    again = Choice.model_validate(json.loads(json.dumps(Choice(values=values).to_json()))).values
    assert [type(value) for value in again] == [bool, int, float, str]


def test_the_source_does_not_change_the_digest():
    assert SPACE.replace(source="somewhere else").digest() == SPACE.digest()


def test_log_parameters_are_the_logarithmic_dimensions():
    assert SPACE.log_parameters() == ("rate",)


GRID = Grid(axes={"weight": (1.0, 4.0), "rate": (1e-4, 1e-3, 1e-2)}, source="made for these tests")


def test_grid_points_by_hand_the_last_axis_runs_fastest():
    assert GRID.points() == (
        {"weight": 1.0, "rate": 1e-4},
        {"weight": 1.0, "rate": 1e-3},
        {"weight": 1.0, "rate": 1e-2},
        {"weight": 4.0, "rate": 1e-4},
        {"weight": 4.0, "rate": 1e-3},
        {"weight": 4.0, "rate": 1e-2},
    )


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        (GRID, 6),
        (cleanclip.CC6M_MMCL_GRID, 12),
        (cleanclip.CC6M_MMCL_SSL_GRID, 23),
        (cleanclip.FRUIT_STALL_GRID, 12),
        (verma.CC3M_MMCL, 13),
        (verma.CC3M_MMCL_SSL, 13),
        (verma.FINETUNED_MMCL, 69),
        (verma.FINETUNED_MMCL_SSL, 62),
        (verma.LABEL_CONSISTENT_MMCL, 44),
        (verma.LABEL_CONSISTENT_MMCL_SSL, 71),
        (verma.NON_IDEAL_CC3M, 8),
        (verma.NON_IDEAL_CC6M, 17),
        (verma.DEEP_CLUSTERING, 9 * 8),
        (verma.HEAVY_REGULARISATION, 8 * 9),
        (verma.SHRINK_PERTURB_STARTS, 17 * 15),
        (verma.SHRINK_PERTURB_RATES, 9),
        (verma.LARGER_CLEANING_SET, 14),
        (verma.LONGER, 13),
        (verma.SSL_WEIGHTS, 4 * 4),
    ],
    ids=lambda value: value.source if isinstance(value, Grid) else None,
)
def test_grid_size_is_the_number_of_points(grid: Grid, size: int):
    assert grid.grid_size() == len(grid.points()) == size


def test_numeric_axes_over_a_factor_of_ten_are_logarithmic():
    """4 / 1 is below ten, 1e-2 / 1e-4 is a hundred; words, truth values and zeros have no logarithm."""
    axes = {"flag": (False, True), "word": ("a", "b"), "zero": (0.0, 100.0), "tenfold": (1, 10)}
    assert GRID.log_parameters() == ("rate",)
    assert Grid(axes=axes, source="made for this test").log_parameters() == ("tenfold",)


def test_every_section_of_appendix_d_has_its_grids():
    assert list(verma.APPENDIX_D) == [f"D.{section}" for section in range(1, 17)]
    for section, grids in verma.APPENDIX_D.items():
        assert {grid.source for grid in grids} == {f"Verma et al., App. {section}"}


@pytest.mark.parametrize("grid", [grid for grids in verma.APPENDIX_D.values() for grid in grids])
def test_the_grids_of_appendix_d_name_fields_and_legal_values(grid: Grid):
    method = DeepClustering() if "clustering_weight" in grid.axes else CleanCLIP()
    check_names(grid.axes, {**OWNERS, "method": type(method)})
    for point in grid.points():
        for owner in (method, Start(), Optimization()):
            mine = {name: value for name, value in point.items() if name in type(owner).model_fields}
            assert owner.replace(**mine).to_json().items() >= mine.items()


def test_a_repeated_value_is_refused():
    with pytest.raises(InvalidInput, match=r"axis rate repeats 0.1; every setting is run once"):
        Grid(axes={"rate": (0.1, 0.2, 0.1)}, source="made for this test")


def test_an_axis_without_values_is_refused():
    with pytest.raises(InvalidInput, match="axis rate has no values"):
        Grid(axes={"rate": ()}, source="made for this test")


OWNERS: dict[str, type[Spec]] = {"method": CleanCLIP, "start": Start, "optimization": Optimization}


@pytest.mark.parametrize("space", [cleanclip.CC6M, cleanclip.FRUIT_STALL])
def test_the_spaces_name_fields_of_cleanclip_sweeps(space: SearchSpace):
    check_names(space.dimensions, OWNERS)


@pytest.mark.parametrize(
    "grid", [cleanclip.CC6M_MMCL_GRID, cleanclip.CC6M_MMCL_SSL_GRID, cleanclip.FRUIT_STALL_GRID], ids=lambda g: g.source
)
def test_the_grids_name_fields_of_cleanclip_sweeps(grid: Grid):
    check_names(grid.axes, OWNERS)


def test_an_unknown_name_lists_the_fields_of_every_owner():
    expected = r"unknown parameter 'lr' .*method: mmcl_weight, .*optimization: learning_rate"
    with pytest.raises(ValueError, match=expected):
        check_names(["lr"], OWNERS)


def test_the_kind_is_no_parameter():
    with pytest.raises(ValueError, match="unknown parameter 'kind'"):
        check_names(["kind"], OWNERS)


def test_a_name_of_two_owners_is_refused():
    class Other(Spec):
        learning_rate: float = 1.0

    with pytest.raises(ValueError, match="'learning_rate' is a field of method and of optimization; rename one"):
        check_names(["learning_rate"], {**OWNERS, "method": Other})
