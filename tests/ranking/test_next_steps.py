"""What to try next: the best lies at an end, came late, has one seed, is not certified; nothing is cleaned."""

import shlex
from dataclasses import replace
from typing import Any

import pytest
from fabricated import SWEEP

from sweeplab.experiment import Search, apply_overrides
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.next_steps import (
    THREE_SEEDS,
    by_record,
    more_trials,
    next_steps,
    run_anew,
    three_times_as_many,
    trials_for_importance,
)
from sweeplab.records import Measurement, Origin, Point, SweepRecord, TrialRecord

NUM = 6


def sweep_with_best(best: int, *, hits: int = 0, seeds: int = 1, images: int = 1000) -> SweepRecord:
    """Six trials with rates 1 to 6; `best` alone is cleaned."""

    def trial(number: int) -> TrialRecord:
        asr = (images, hits if number == best else images // 2)
        points = tuple(
            Point(index, float(index), index, 1, Measurement(images * 4 // 5, images, asr[index], images, "e"))
            for index in range(2)
        )
        params: dict[str, Any] = {"rate": float(number + 1)}
        return TrialRecord(number, "finished", params, f"c{number // seeds}", number % seeds, 1, points)

    return SweepRecord(
        name="toy",
        digest="",
        state="finished",
        asr_ceiling=0.05,
        epochs=1,
        protocol="paper",
        method="cleanclip",
        victim_name="victim",
        victim=Measurement(images * 4 // 5, images, images, images, "e"),
        victim_epoch=1,
        target="banana",
        trials=tuple(map(trial, range(NUM))),
        planned_trials=NUM,
        parameters=("rate",),
        ends={"rate": (1.0, 6.0)},
        origin=Origin(script="sweeps/toy.py"),
    )


def steps(sweep: SweepRecord) -> tuple[str, ...]:
    return next_steps(sweep, rank_trials(sweep, lambda *_: None))


def test_the_first_step_of_an_interrupted_sweep_is_to_go_on():
    """Also where nothing was measured yet; not where nothing can continue it."""
    begun = replace(sweep_with_best(3), state="interrupted")
    goes_on = "It is not finished: `sweeplab resume toy` goes on."
    assert steps(begun) == (goes_on, *steps(replace(begun, state="running")))
    assert steps(replace(begun, trials=())) == (goes_on,)
    adopts = steps(replace(begun, origin=replace(begun.origin, is_foreign=True)))[0]
    assert adopts == "It is not finished: `sweeplab resume toy --adopt` goes on."
    by_script = steps(replace(begun, origin=replace(begun.origin, has_own_code=True)))[0]
    assert by_script == "It is not finished: the command of its script goes on."
    for origin in (replace(begun.origin, is_closed=True), replace(begun.origin, has_spec=False)):
        assert not any(step.startswith("It is not finished") for step in steps(replace(begun, origin=origin)))


def test_a_best_in_the_middle_that_is_certified_and_repeated_leaves_nothing_to_say():
    assert steps(sweep_with_best(2, hits=1, seeds=2)) == ()


def test_a_best_at_an_end_that_came_late_says_so():
    found = steps(sweep_with_best(5, hits=1, seeds=2))
    assert found == (
        "The best has rate 6, at the upper end of what was searched, 1 to 6: search above it too.",
        "The best came late, as number 6 of 6 trials: more of them may find a better one, "
        "`sweeplab resume toy search.trials=12`.",
    )


@pytest.mark.parametrize(
    ("ends", "is_log", "end"),
    [
        ((1.0, 6.25), False, "upper"),  # 4.76 % of the space from its end
        ((1.0, 6.3), False, None),  # 5.7 %
        ((0.01, 8.0), True, "upper"),  # 4.3 % on the logarithmic scale, 25 % on the linear one
        ((0.01, 9.0), True, None),  # 6.0 %
        ((6.0, 20.0), False, "lower"),
        ((-3.0, 6.0), False, "upper"),
    ],
)
def test_a_best_lies_at_an_end_of_the_space_and_not_of_what_was_drawn(
    ends: tuple[float, float], is_log: bool, end: str | None
):
    sweep = replace(sweep_with_best(5, hits=1, seeds=2), ends={"rate": ends}, state="running")
    found = steps(replace(sweep, log_parameters=("rate",) if is_log else ()))
    assert [step.partition("at the ")[2].partition(" end")[0] for step in found] == ([] if end is None else [end])


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_nothing_is_searched_past_0_or_1(limit: float):
    """The best has the lowest rate, 1, in a space that begins there, or just below it."""
    sweep = replace(sweep_with_best(0, hits=1, seeds=2), ends={"rate": (limit, 30.0)})
    assert steps(sweep) == ()
    assert len(steps(replace(sweep, ends={"rate": (0.5, 30.0)}))) == 1
    assert steps(replace(sweep, ends={})) == ()


def test_the_best_setting_is_run_with_three_seeds_by_its_place_in_the_record():
    """However many digits its parameters have."""
    sweep = sweep_with_best(2, hits=1)
    command = "sweeplab clean toy setting=toy/2 search.seeds_per_configuration=3"
    (found,) = steps(sweep)
    assert found.endswith(f"how far chance carries: `{command}` runs its setting with three.")
    (copied,) = steps(replace(sweep, name="my copy"))
    assert "`sweeplab clean 'my copy' 'setting=my copy/2' search.seeds_per_configuration=3`" in copied


@pytest.mark.parametrize("changes", [{"has_own_code": True}, {"is_foreign": True}])
def test_where_the_record_does_not_serve_the_changes_are_named_for_the_scripts_command(changes: dict[str, bool]):
    sweep = replace(sweep_with_best(2, hits=1), origin=Origin(**changes))
    (found,) = steps(sweep)
    assert found.endswith("carries: run its setting with other seeds too; `setting=toy/2` names it for `clean`.")
    assert by_record(sweep, "run", "--dry-run") == "`--dry-run` behind the command of its script"
    named = "`name=toy-more search.trials=12` behind the command of its script"
    assert run_anew(sweep, "more", "search.trials=12") == named
    assert run_anew(replace(sweep, origin=Origin()), "more", "a=b c") == "`sweeplab run toy name=toy-more 'a=b c'`"


@pytest.mark.parametrize(("trials", "seeds", "asked"), [(16, 1, 48), (16, 2, 24), (1, 1, 3)])
def test_three_seeds_of_every_setting_are_a_number_of_trials_that_a_search_takes(trials: int, seeds: int, asked: int):
    made = Origin(asked_trials=trials, seeds=seeds, sampler="tpe")
    sweep = replace(sweep_with_best(2, hits=1), origin=made, planned_trials=trials)
    changes = [*THREE_SEEDS, *three_times_as_many(sweep)]
    assert changes == ["search.seeds_per_configuration=3", f"search.trials={asked}"]
    fields = dict(change.removeprefix("search.").split("=") for change in changes)
    assert Search(**{name: int(value) for name, value in fields.items()}).trials == asked
    assert three_times_as_many(replace(sweep, origin=replace(made, sampler="grid"))) == ()


def test_a_suggested_number_of_trials_is_more_than_the_sweep_asks_for_and_a_multiple_of_its_seeds():
    """Seven trials, one of them a rerun, of 6 asked for with 3 seeds: 14, so 15. Of 64 asked for: 128."""
    sweep = replace(sweep_with_best(5), planned_trials=7, origin=Origin(asked_trials=6, seeds=3))
    assert more_trials(sweep) == "`sweeplab resume toy search.trials=15`"
    asked = replace(sweep.origin, asked_trials=64, seeds=1)
    assert more_trials(replace(sweep, origin=asked)) == "`sweeplab resume toy search.trials=128`"
    for left_alone in ({"is_closed": True}, {"is_foreign": True}):
        assert more_trials(replace(sweep, origin=replace(asked, **left_alone))) == ""
    own = replace(asked, has_own_code=True)
    assert more_trials(replace(sweep, origin=own)) == "`search.trials=128` behind the command of its script"


def rising(kept: dict[int, tuple[float, ...]], **changes: Any) -> SweepRecord:
    """Trials by number, of these retentions at epochs 1, 2, ... below the ceiling; the middle rate is best."""

    def points(shares: tuple[float, ...]) -> tuple[Point, ...]:
        accuracies = (1.0, *shares)
        return tuple(
            Point(index, float(index), index, 1, Measurement(round(800 * share), 1000, 0 if index else 990, 1000, "e"))
            for index, share in enumerate(accuracies)
        )

    sweep = sweep_with_best(2, hits=1, seeds=2)
    trials = [replace(trial, points=points(kept[trial.number])) for trial in sweep.trials if trial.number in kept]
    return replace(sweep, epochs=3, trials=tuple(trials), planned_trials=len(trials), **changes)


ENDING = {0: (0.7, 0.8, 0.9), 1: (0.7, 0.9, 0.91), 2: (0.9, 0.95, 0.96), 3: (0.06, 0.05, 0.05)}
"""Three good trials that end with their best, and a destroyed one that does not."""


def test_where_every_good_trial_ends_with_its_best_more_epochs_are_the_advice():
    found = steps(rising(ENDING))
    assert found[0] == (
        "All 3 trials that keep half of the accuracy or more are best at the last epoch: train longer, "
        "`sweeplab run toy name=toy-longer epochs=6`."
    )
    changed = apply_overrides(SWEEP, shlex.split(found[0].split("`")[1])[3:])
    assert (changed.name, changed.epochs) == ("toy-longer", 6)
    assert steps(rising(ENDING, origin=Origin(has_spec=False)))[0].endswith("at the last epoch: train longer.")


@pytest.mark.parametrize(
    "changes",
    [
        {3: (0.8, 0.79, 0.7)},  # a good trial that was at its best before
        {2: (0.4, 0.41, 0.42)},  # two good ones may end so by chance
        dict.fromkeys(range(4), (0.9,)),  # of one epoch
    ],
)
def test_more_epochs_are_no_advice_where_a_good_trial_was_better_before_or_few_are_good(changes: dict):
    kept = ENDING | changes
    sweep = replace(rising(kept), epochs=len(kept[0]))
    assert "train longer" not in " ".join(steps(sweep))


@pytest.mark.parametrize(
    ("cleaned", "others", "useless", "enough"),
    [
        (1, 1, 0, 15),  # a half: 5 of each side are 10, and half as many again
        (0, 2, 0, 30),  # a quarter: 20
        (4, 0, 0, 36),  # 5 in 6: 5 of the others are 30, but 20 cleaned ones are 24
        (1, 1, 2, 17),  # two failed before they were measured
    ],
)
def test_it_takes_trials_on_both_sides_of_the_ceiling_to_tell_which_parameter_matters(
    cleaned: int, others: int, useless: int, enough: int
):
    trials = [
        TrialRecord(number, "finished", {"rate": number}, f"c{number}", 0, 1, points)
        for number, points in enumerate([point_of(0)] * cleaned + [point_of(500)] * others + [()] * useless)
    ]
    board = rank_trials(replace(sweep_with_best(2), trials=tuple(trials)), lambda *_: None)
    assert trials_for_importance(board) == enough


def point_of(hits: int) -> tuple[Point, ...]:
    return (Point(1, 1.0, 1, 1, Measurement(700, 1000, hits, 1000, "e")),)


def test_a_grid_and_a_table_from_elsewhere_get_no_command_that_adds_nothing():
    for best in (5, -1):
        grid = replace(sweep_with_best(best), origin=Origin(sampler="grid", asked_trials=16))
        table = replace(grid, origin=Origin(script="imported from table.csv", has_spec=False))
        assert more_trials(grid) == more_trials(table) == ""
        assert "sweeplab resume" not in " ".join(steps(grid))
        assert "`" not in " ".join(steps(table))
    assert "Every setting of the grid was run" in " ".join(steps(replace(grid, trials=sweep_with_best(5).trials)))


def test_one_setting_is_no_grid_that_could_be_wider():
    """As `sweeplab clean` makes it: one setting with six seeds."""
    one = replace(sweep_with_best(2, hits=1, seeds=NUM), origin=Origin(sampler="grid", seeds=NUM))
    assert steps(one) == ()


def test_one_seed_and_an_asr_that_is_not_certified_are_told():
    (seeds, images) = steps(sweep_with_best(2, hits=1, images=40))
    assert "with one seed" in seeds
    assert images == "Its ASR is not certified: measure it on more triggered test images."


@pytest.mark.parametrize(
    ("changes", "origin", "end"),
    [
        ({}, Origin(objective="mmcl"), "train the victim longer or with more poisons."),
        ({}, Origin(), "take another victim, or name the trigger and target that it was poisoned with."),
        (
            {"name": "toy-smoke"},
            Origin(objective="mmcl"),
            "it is a miniature's victim; run the sweep without `--smoke`.",
        ),
        (
            {"name": "toy-smoke-single-4c4e6260", "victim_name": "victim-smoke"},
            Origin(objective="mmcl"),
            "it is a miniature's victim; run the sweep without `--smoke`.",
        ),
    ],
)
def test_of_a_victim_without_a_backdoor_the_only_step_is_another_one(changes: dict[str, str], origin: Origin, end: str):
    """Its ASR is 1 of 100; the best at an end, which came late with one seed, is not spoken of."""
    sweep = replace(sweep_with_best(5), victim=Measurement(80, 100, 1, 100, "e"), origin=origin)
    (found,) = steps(replace(sweep, **changes))
    assert found == f"Nothing was cleaned, because the victim has no backdoor to clean: {end}"


def test_a_sweep_that_cleaned_nothing_says_what_to_change():
    sweep = sweep_with_best(-1)
    assert steps(sweep)[0].startswith("Higher learning rates or more weight")
    assert steps(sweep)[0].endswith("or more trials of the same, `sweeplab resume toy search.trials=12`.")
    assert steps(replace(sweep, trials=())) == ()
