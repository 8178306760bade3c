"""What to try next: the best lies at an end, came late, has one seed, is not certified; nothing is cleaned."""

from dataclasses import replace
from typing import Any

from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.next_steps import more_trials, next_steps
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
        origin=Origin(script="sweeps/toy.py"),
    )


def steps(sweep: SweepRecord) -> tuple[str, ...]:
    return next_steps(sweep, rank_trials(sweep, lambda *_: None))


def test_a_best_in_the_middle_that_is_certified_and_repeated_leaves_nothing_to_say():
    assert steps(sweep_with_best(2, hits=1, seeds=2)) == ()


def test_a_best_at_an_end_that_came_late_says_so():
    found = steps(sweep_with_best(5, hits=1, seeds=2))
    assert found == (
        "The best has the highest rate that was tried, 6: search above it too.",
        "The best came late, as number 6 of 6 trials: more of them may find a better one, "
        "`sweeplab resume toy search.trials=12`.",
    )


def test_a_suggested_number_of_trials_is_more_than_the_sweep_asks_for_and_a_multiple_of_its_seeds():
    """Seven trials, one of them a rerun, of 6 asked for with 3 seeds: 14, so 15. Of 64 asked for: 128."""
    sweep = replace(sweep_with_best(5), planned_trials=7, origin=Origin(asked_trials=6, seeds=3))
    assert more_trials(sweep) == "sweeplab resume toy search.trials=15"
    asked = replace(sweep.origin, asked_trials=64, seeds=1)
    assert more_trials(replace(sweep, origin=asked)) == "sweeplab resume toy search.trials=128"
    assert more_trials(replace(sweep, origin=replace(asked, is_closed=True))) == ""
    own = replace(asked, has_own_code=True, script="sweeps/my own.py")
    assert more_trials(replace(sweep, origin=own)) == "python 'sweeps/my own.py' --only toy search.trials=128"


def test_a_grid_and_a_table_from_elsewhere_get_no_command_that_adds_nothing():
    for best in (5, -1):
        grid = replace(sweep_with_best(best), origin=Origin(sampler="grid", asked_trials=16))
        table = replace(grid, origin=Origin(script="imported from table.csv", has_spec=False))
        assert more_trials(grid) == more_trials(table) == ""
        assert "search.trials" not in " ".join(steps(grid))
        assert "`" not in " ".join(steps(table))
    assert "Every setting of the grid was run" in " ".join(steps(replace(grid, trials=sweep_with_best(5).trials)))


def test_one_seed_and_an_asr_that_is_not_certified_are_told():
    (seeds, images) = steps(sweep_with_best(2, hits=1, images=40))
    assert "with one seed" in seeds
    assert images == "Its ASR is not certified: measure it on more triggered test images."


def test_a_sweep_that_cleaned_nothing_says_what_to_change():
    sweep = sweep_with_best(-1)
    assert steps(sweep)[0].startswith("Higher learning rates or more weight")
    assert steps(sweep)[0].endswith("or more trials of the same, `sweeplab resume toy search.trials=12`.")
    assert steps(replace(sweep, trials=())) == ()
