"""Start-up trials that a script leaves out: chosen when the sweep begins, kept when it goes on."""

from pathlib import Path
from typing import Any

import pytest

from sweeplab.commands.estimate import plan
from sweeplab.experiment import CleaningSweep, Search, SelectedTrial
from sweeplab.search_space import SearchSpace, Uniform
from sweeplab.specs import InvalidInput
from sweeplab.sweep import prepare, resume
from sweeplab.sweep.resume import search_in_words
from sweeplab.sweep_folder import SweepFolder

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture
def left_out(sweep: CleaningSweep) -> CleaningSweep:
    """Sixteen trials of two parameters, for which four start-up trials are chosen."""
    return sweep.replace(search=Search(trials=16))


def searching(sweep: CleaningSweep, **changes: Any) -> CleaningSweep:
    return sweep.replace(search=sweep.search.replace(**changes))


def begin(sweep: CleaningSweep, home: Path) -> SweepFolder:
    """The folder as a start leaves it."""
    prepared = prepare.prepare(sweep, home)
    folder = SweepFolder(home / "sweeps" / sweep.name)
    folder.write_header(prepared.sweep, prepared.digest, prepared.contents)
    return folder


def begin_as_at_first(sweep: CleaningSweep, home: Path) -> SweepFolder:
    """The same, while the default was 8."""
    return begin(searching(sweep, startup_trials=8), home)


def goes_on(sweep: CleaningSweep, folder: SweepFolder, home: Path) -> CleaningSweep:
    """The sweep with which the folder is continued, where it is not refused."""
    prepared = prepare.prepare(sweep, home)
    resume.check_same_spec(folder, prepared)
    return prepared.sweep


def test_the_chosen_number_is_stored(left_out: CleaningSweep, tmp_path: Path):
    assert begin(left_out, tmp_path).header()["spec"]["search"]["startup_trials"] == 4


def test_a_begun_sweep_keeps_its_number_when_it_goes_on(left_out: CleaningSweep, tmp_path: Path):
    """Also from sweep.json alone, and where the number is written out; of 4 trials one would choose 2."""
    folder = begin(left_out, tmp_path)
    stored = CleaningSweep.model_validate(folder.header()["spec"])
    for again in (left_out, searching(left_out, trials=4), searching(left_out, startup_trials=4), stored):
        assert goes_on(again, folder, tmp_path).search.startup_trials == 4


def test_a_sweep_of_the_first_default_goes_on_with_eight(left_out: CleaningSweep, tmp_path: Path):
    """Also when trials are raised; its digest is the one of a sweep that says nothing."""
    folder = begin_as_at_first(left_out, tmp_path)
    contents = folder.header()["contents"]
    assert folder.header()["digest"] == left_out.digest(**contents)
    for again in (left_out, searching(left_out, trials=99)):
        assert goes_on(again, folder, tmp_path).search.startup_trials == 8


@pytest.mark.parametrize("sampler", ["random", "qmc", "grid"])
def test_samplers_without_start_up_choose_none_and_old_sweeps_of_them_go_on(
    sampler: str, left_out: CleaningSweep, tmp_path: Path
):
    sweep = searching(left_out, sampler=sampler)
    folder = begin_as_at_first(sweep, tmp_path / "old")
    assert goes_on(sweep, folder, tmp_path / "old").digest() == sweep.digest()
    assert prepare.prepare(sweep, tmp_path / "new").sweep.search.startup_trials is None


def test_another_number_is_refused(left_out: CleaningSweep, tmp_path: Path):
    folder = begin_as_at_first(left_out, tmp_path)
    with pytest.raises(InvalidInput, match=r"search\.startup_trials: 8 -> 5"):
        goes_on(searching(left_out, startup_trials=5), folder, tmp_path)


def test_another_difference_is_named_without_the_number_that_was_left_out(left_out: CleaningSweep, tmp_path: Path):
    folder = begin_as_at_first(left_out, tmp_path)
    with pytest.raises(InvalidInput, match=r"epochs: 2 -> 3") as refused:
        goes_on(left_out.replace(epochs=3), folder, tmp_path)
    assert "startup_trials" not in str(refused.value)


def test_a_sweep_that_begins_anew_chooses_for_itself(left_out: CleaningSweep, tmp_path: Path):
    begin_as_at_first(left_out, tmp_path)
    assert prepare.prepare(left_out, tmp_path, fresh=True).sweep.search.startup_trials == 4


def test_the_sweep_behind_a_selected_trial_keeps_its_number_too(left_out: CleaningSweep, tmp_path: Path):
    inner = left_out.replace(name="inner")
    outer = left_out.replace(name="outer", victim=SelectedTrial(name="selected", sweep=inner))
    begin_as_at_first(inner, tmp_path)
    folder = begin_as_at_first(outer, tmp_path)
    assert goes_on(outer, folder, tmp_path).search.startup_trials == 8


# --- the plan


def test_the_plan_says_what_was_chosen_and_for_what(left_out: CleaningSweep):
    words = "tpe, search.startup_trials=4 (chosen for 16 configurations of 2 parameters)"
    assert f"  search            {words}" in plan(left_out)
    assert search_in_words(searching(left_out, startup_trials=5)) == "tpe, search.startup_trials=5"
    assert search_in_words(searching(left_out, sampler="qmc")) == "qmc"


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_the_plan_says_where_a_sampler_is_a_random_search(sampler: str, left_out: CleaningSweep):
    """Eight trials are one generation of eight, or all of them start-up; a ninth is not."""
    sweep = searching(left_out, sampler=sampler, trials=8, startup_trials=8)
    assert search_in_words(sweep) == (
        f"{sampler}, search.startup_trials=8: no more than that are tried, so every draw is random; give "
        "search.startup_trials below 8, or more trials"
    )
    assert "random" not in search_in_words(searching(sweep, trials=9))
    assert "random" in search_in_words(searching(sweep, trials=16, seeds_per_configuration=2))


def test_the_plan_says_that_nsga2_draws_one_parameter_at_random(left_out: CleaningSweep):
    one = SearchSpace(dimensions={"ssl_weight": Uniform(low=0.0, high=4.0)}, source="made up")
    sweep = searching(left_out, sampler="nsga2").replace(space=one)
    assert "with one parameter every draw is random; choose tpe" in search_in_words(sweep)
    assert "random" not in search_in_words(searching(sweep, sampler="tpe"))


def test_the_plan_says_that_a_grid_is_run_without_rules(left_out: CleaningSweep):
    grid = searching(left_out, sampler="grid")
    assert search_in_words(grid) == "grid, in order"
    assert search_in_words(searching(grid, pruning={})) == "grid, in order; it is run whole, without search.pruning"


def test_the_plan_names_the_grid_that_comes_first(left_out: CleaningSweep):
    sweep = searching(left_out, grid_first=True, sampler="random")
    assert search_in_words(sweep) == "the grid's 6 settings first, then random"
    assert search_in_words(searching(sweep, trials=6)).startswith("the grid's settings alone")
