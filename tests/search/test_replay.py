"""Replay and audit over small tables: the search's own code, costs by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import fabricated
import numpy as np
import pytest
from fabricated import SWEEP, Player, open_controller

from sweeplab.commands.import_table import import_table
from sweeplab.ranking.stopping import BackdoorStays, FallsBehind, Pruning
from sweeplab.records import Measurement, Point, SweepRecord, TrialRecord
from sweeplab.search.audit import audit, audit_decisions
from sweeplab.search.pruner import Goal
from sweeplab.search.replay import (
    SAMPLERS,
    Contender,
    Row,
    Table,
    compare,
    replay_table,
    spanned_space,
    table_of,
)
from sweeplab.search_space import Choice, LogUniform, SearchSpace, Uniform
from sweeplab.specs import InvalidInput

SPACE = SearchSpace(
    dimensions={"rate": LogUniform(low=1e-4, high=1e-1), "weight": Uniform(low=0.0, high=4.0)}, source="made up"
)


def points(*rates: tuple[int, int]) -> tuple[Point, ...]:
    """Correct and hit images of 100 at epochs 1, 2, ...; the victim (90, 80) at epoch 0."""
    return tuple(
        Point(index, float(index), index, 1, Measurement(correct, 100, hits, 100, "made up"))
        for index, (correct, hits) in enumerate([(90, 80), *rates])
    )


STAYS = points((90, 80), (90, 80), (90, 80), (90, 80))
CLEAN = points((80, 4), (70, 3), (60, 2), (50, 1))
BEST = points((90, 60), (89, 30), (88, 4), (87, 3))


def table(*rows: tuple[float, float, tuple[Point, ...]]) -> Table:
    return Table(
        "made up", Goal(0.9, 0.8, 0.05), SPACE,
        tuple(Row({"rate": rate, "weight": weight}, made, False) for rate, weight, made in rows),
    )  # fmt: skip


SMALL = table((1e-4, 0.0, STAYS), (1e-2, 1.0, CLEAN), (1e-3, 1.0, BEST), (1e-1, 4.0, STAYS))


# --- tables


def test_a_table_knows_what_it_cost_and_its_best():
    """88 of 90 at the third epoch of the third row; the lowest ASR, 1 %, in the second."""
    assert SMALL.trial_epochs == 16
    assert SMALL.best_retention == pytest.approx(88 / 90)
    assert SMALL.lowest_asr == 0.01


def test_the_nearest_row_is_found_on_the_logarithmic_scale():
    """3e-3 lies nearer to 1e-2 than to 1e-3 on the logarithmic scale, and nearer to 1e-3 on the plain one."""
    free = np.zeros(4, dtype=bool)
    assert SMALL.nearest({"rate": 3.5e-3, "weight": 1.0}, free) == 1
    assert SMALL.nearest({"rate": 2.5e-3, "weight": 1.0}, free) == 2


def test_rows_that_were_run_are_passed_over():
    assert SMALL.nearest({"rate": 1e-2, "weight": 1.0}, np.array([False, True, False, False])) == 2


def test_absent_parameters_and_other_choices_are_one_apart():
    space = SearchSpace(
        dimensions={
            "kind": Choice(values=("a", "b", "c")),
            "x": Uniform(low=0, high=1, when={"kind": "a"}),
        },
        source="made up",
    )
    rows = ({"kind": "a", "x": 0.0}, {"kind": "b"}, {"kind": "c"})
    made = Table("made up", Goal(0.9, 0.8, 0.05), space, tuple(Row(dict(row), STAYS, False) for row in rows))
    free = np.zeros(3, dtype=bool)
    assert made.nearest({"kind": "a", "x": 1.0}, free) == 0  # 1 away; the others are sqrt(2) away
    assert made.nearest({"kind": "c"}, free) == 2
    assert made.nearest({"kind": "c"}, np.array([False, False, True])) == 1


def test_a_spanned_space_has_ranges_and_choices_and_leaves_out_what_is_constant():
    settings = [{"rate": 1e-4, "loss": "a", "same": 1}, {"rate": 1e-2, "loss": "b", "same": 1}]
    space = spanned_space(settings, ("rate",))
    assert space.dimensions == {"rate": LogUniform(low=1e-4, high=1e-2), "loss": Choice(values=("a", "b"))}


def test_a_parameter_that_is_sometimes_missing_needs_the_sweeps_space():
    with pytest.raises(InvalidInput, match="'x' is missing in 1 of 2 configurations"):
        spanned_space([{"x": 1.0}, {"y": 1.0}], ())


def test_a_table_takes_one_seed_of_a_configuration_and_only_whole_trials(tmp_path: Path):
    sweep = SWEEP.replace(search=SWEEP.search.replace(seeds_per_configuration=2))
    folder = fabricated.prepared_folder(tmp_path, sweep)
    controller = open_controller(folder, sweep)
    for _ in range(4):
        Player(controller).play(controller.next_job())
    Player(controller).play(controller.next_job(), num_points=2)
    assert len(replay_table(folder).rows) == 2


def test_a_sweep_of_one_configuration_cannot_be_replayed(tmp_path: Path):
    folder = fabricated.prepared_folder(tmp_path)
    Player(controller := open_controller(folder)).play(controller.next_job())
    with pytest.raises(InvalidInput, match="has 1 configuration"):
        replay_table(folder)


# --- replays


def test_the_grid_costs_its_epochs_up_to_the_point_that_arrives():
    """Four epochs of the first row, four of the second, three of the third: 11."""
    assert Contender("grid").replay(SMALL, 0).arrived_after == 11


def test_pruned_trials_cost_the_epochs_that_they_ran():
    """Random order, all four run: the two rows whose ASR stays end after two epochs, and 16 - 2 x 2 are spent."""
    contender = Contender("random", Pruning(rules=(BackdoorStays(after_epochs=2),)))
    run = contender.replay(SMALL, 0, trials=4)
    assert (run.spent, run.pruned, run.trials) == (12, 2, 4)


def test_a_grid_is_never_pruned():
    contender = Contender("grid", Pruning(rules=(BackdoorStays(after_epochs=1),)))
    assert contender.replay(SMALL, 0, trials=4).pruned == 0


def test_a_shuffled_grid_is_pruned_like_any_search():
    """All four rows, in whatever order: the two whose ASR stays end after two epochs of four."""
    rules = Pruning(rules=(BackdoorStays(after_epochs=2),))
    orders = [Contender("shuffled-grid", rules).replay(SMALL, seed, trials=4) for seed in range(3)]
    assert [(run.spent, run.pruned, run.trials) for run in orders] == [(12, 2, 4)] * 3


def test_a_table_has_the_start_up_that_a_sweep_of_its_size_would_have():
    """65 configurations of two parameters, and four of them."""
    for made, number in ((many(), 4), (SMALL, 2)):
        (row,) = compare(made, [Contender("tpe")], 2)["results"]
        assert row["startup_trials"] == number
        assert row == compare(made, [Contender("tpe", startup_trials=number)], 2)["results"][0]


def test_a_rule_that_stops_the_best_trial_never_arrives():
    """BEST is at .6 of ASR after its first epoch, three quarters of the victim's."""
    contender = Contender("random", Pruning(rules=(BackdoorStays(after_epochs=1, share=0.7),)))
    run = contender.replay(SMALL, 0)
    assert run.arrived_after is None
    assert run.trials == 4


def test_where_nothing_is_cleaned_the_lowest_asr_is_the_goal():
    infeasible = table((1e-4, 0.0, STAYS), (1e-2, 1.0, points((80, 40), (80, 20))))
    assert infeasible.best_retention is None
    assert Contender("grid").replay(infeasible, 0).arrived_after == 6


def many() -> Table:
    """A ridge: the nearer to a rate of 1e-2, the more is kept; cleaned above 10^-2.3 only."""
    rows = []
    for weight in (0.0, 1.0, 2.0, 3.0, 4.0):
        for place in np.linspace(-4, -1, 13):
            kept = round(90 - 20 * abs(place + 2) - 2 * weight)
            hits = 3 if place > -2.3 else round(20 - 20 * (place + 2.3))
            rows.append((float(10**place), weight, points((kept, 60), (kept, hits))))
    return table(*rows)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_every_sampler_runs_every_configuration_once_and_repeats_under_its_seed(sampler: str):
    made = many()
    runs = [Contender(sampler, startup_trials=4).replay(made, 1, trials=65) for _ in range(2)]
    assert runs[0] == runs[1]
    assert (runs[0].spent, runs[0].trials) == (made.trial_epochs, 65)
    assert runs[0].arrived_after is not None


@pytest.mark.slow
def test_the_gaussian_process_replays_too():
    assert Contender("gp", startup_trials=4).replay(many(), 0, trials=8).trials == 8


def test_tpe_needs_fewer_epochs_than_random_search_on_a_ridge():
    found = compare(many(), [Contender("tpe", startup_trials=4), Contender("random")], 15)
    tpe, random = (row["trial_epochs"]["median"] for row in found["results"])
    assert tpe < 0.8 * random


def test_a_summary_says_never_where_most_runs_do_not_arrive():
    rules = Pruning(rules=(BackdoorStays(after_epochs=1, share=0.7),))
    row = compare(SMALL, [Contender("random", rules)], 3)["results"][0]
    assert (row["arrived"], row["trial_epochs"]["median"], row["share_of_table"]["median"]) == (0, None, None)


def test_a_shuffled_grid_takes_half_of_the_table_to_find_one_row():
    """One row of 64 does: half of the runs find it in the first half, whatever their seeds are."""
    rows = [(float(10**place), 1.0, STAYS) for place in np.linspace(-4, -1, 63)]
    row = compare(table(*rows, (1e-3, 2.0, BEST)), [Contender("shuffled-grid")], 60)["results"][0]
    assert row["arrived"] == 60
    assert 0.35 < row["share_of_table"]["median"] < 0.65


def test_an_unknown_sampler_lists_the_known_ones():
    with pytest.raises(InvalidInput, match="'cmaes' is unknown; known: tpe, gp, random, qmc, nsga2, grid, shuffled"):
        compare(SMALL, [Contender("cmaes")], 1)


def test_replay_and_book_draw_the_same(tmp_path: Path):
    """A table that holds exactly what a sweep drew is run in the order in which the sweep ran it."""
    sweep = SWEEP.replace(search=SWEEP.search.replace(trials=8))
    record = fabricated.finished_sweep(tmp_path, sweep).record()
    made = table_of(record, sweep.space)
    order: list[int] = []
    nearest = Table.nearest

    def spy(self: Table, setting: dict[str, float], taken: np.ndarray) -> int:
        order.append(nearest(self, setting, taken))
        return order[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Table, "nearest", spy)
        Contender("tpe", startup_trials=3).replay(made, sweep.search.seed, trials=8)
    assert order == list(range(8))


# --- audit


def audited(*made: tuple[Point, ...], state: str = "finished") -> SweepRecord:
    trials = tuple(
        TrialRecord(number, state, {"rate": float(number)}, str(number), 0, 1, row) for number, row in enumerate(made)
    )
    victim = Measurement(90, 100, 80, 100, "made up")
    return SweepRecord("made up", "0", "finished", 0.05, 4, "paper", "m", "v", victim, 0.0, "banana", trials,
                       len(trials), "", ("rate",))  # fmt: skip


def test_an_audit_counts_what_rules_would_have_lost_and_saved():
    """The first trial is right to be stopped after two of four epochs; the third would have been cleaned at its third
    epoch, and best."""
    late = points((90, 80), (90, 79), (89, 4), (89, 4))
    found = audit(audited(STAYS, CLEAN, late), Pruning(rules=(BackdoorStays(after_epochs=2),)))
    assert (found["trials"], found["pruned"]) == (3, 2)
    assert (found["would_have_been_feasible"], found["would_have_become_best"]) == (1, 1)
    assert (found["trial_epochs"], found["trial_epochs_saved"]) == (12, 4)
    assert found["best_retention"] == pytest.approx(89 / 90)
    assert found["best_retention_with_pruning"] == pytest.approx(80 / 90)
    assert [(row["trial"], row["epoch"], row["rule"]) for row in found["decisions"]] == [
        (0, 2.0, "backdoor-stays"),
        (2, 2.0, "backdoor-stays"),
    ]


def test_an_audit_without_a_decision_saves_nothing():
    found = audit(audited(CLEAN, BEST), Pruning(rules=(FallsBehind(margin=0.9),)))
    assert (found["pruned"], found["trial_epochs_saved"]) == (0, 0)
    assert found["best_retention"] == found["best_retention_with_pruning"]


def test_what_other_rules_would_do_in_a_pruned_sweep_is_not_known():
    with pytest.raises(InvalidInput, match="was pruned itself"):
        audit(audited(CLEAN[:2], state="pruned"), Pruning())


def with_states(sweep: SweepRecord, **changes: dict[str, Any]) -> SweepRecord:
    """The sweep with other fields of some trials: `t3={...}`."""
    trials = tuple(replace(trial, **changes.get(f"t{trial.number}", {})) for trial in sweep.trials)
    return replace(sweep, trials=trials)


LATE = points((90, 80), (90, 79), (89, 4), (89, 4))
"""Cleaned at its third epoch, better than CLEAN."""


def test_an_audit_of_own_decisions_counts_what_stopped_trials_became_when_they_were_run_to_their_end():
    """Trials 0, 2 and 3 were stopped after one epoch of four; 4 and 5 are 0 and 2 to their end, and 2 became best."""
    made = audited(STAYS[:2], CLEAN, LATE[:2], STAYS[:2], STAYS, LATE)
    stopped = {"state": "pruned", "reason": "no hope"}
    found = audit_decisions(
        with_states(made, t0=stopped, t2=stopped, t3=stopped, t4={"rerun_of": 0}, t5={"rerun_of": 2})
    )
    assert (found["trials"], found["pruned"], found["run_to_their_end"]) == (4, 3, 2)
    assert (found["would_have_been_feasible"], found["would_have_become_best"]) == (1, 1)
    assert found["best_retention"] == pytest.approx(80 / 90)
    assert (found["trial_epochs_saved"], found["trial_epochs_of_reruns"]) == (9, 8)
    rows = {row["trial"]: row for row in found["decisions"]}
    assert [rows[n]["rerun"] for n in (0, 2, 3)] == [4, 5, None]
    assert [rows[n]["would_have_been_feasible"] for n in (0, 2, 3)] == [False, True, None]
    assert [rows[n]["same_until_stop"] for n in (0, 2, 3)] == [True, True, None]
    assert rows[2]["retention"] == pytest.approx(89 / 90)
    assert rows[0]["reason"] == "no hope"


def test_a_rerun_that_differs_before_the_stop_is_told():
    made = audited(LATE[:2], points((88, 80), (90, 79), (89, 4), (89, 4)))
    found = audit_decisions(with_states(made, t0={"state": "pruned"}, t1={"rerun_of": 0}))
    assert found["decisions"][0]["same_until_stop"] is False


def test_a_rerun_of_a_failed_rerun_counts_for_the_trial_that_was_stopped():
    made = audited(LATE[:2], LATE[:1], LATE)
    found = audit_decisions(
        with_states(made, t0={"state": "pruned"}, t1={"state": "failed", "rerun_of": 0}, t2={"rerun_of": 1})
    )
    assert found["decisions"][0]["rerun"] == 2


def test_a_book_stops_where_the_audit_says(tmp_path: Path):
    """The same trials with and without pruning: the same decisions, one after the other."""
    rules = Pruning(rules=(BackdoorStays(after_epochs=1, share=0.7), FallsBehind(after_epochs=1, margin=0.0)))
    plain = fabricated.finished_sweep(tmp_path / "plain", SWEEP.replace(search=SWEEP.search.replace(sampler="random")))
    pruned = SWEEP.replace(search=SWEEP.search.replace(sampler="random", pruning=rules))
    controller = open_controller(fabricated.prepared_folder(tmp_path / "pruned", pruned), pruned)
    Player(controller).play_all()
    decided = [(e["trial"], e["rule"]) for e in controller.folder.events() if e["event"] == "stop decided"]
    assert decided
    assert [(row["trial"], row["rule"]) for row in audit(plain.record(), rules)["decisions"]] == decided


def test_an_imported_table_is_replayed_over_what_it_spans(tmp_path: Path):
    (tmp_path / "table.csv").write_text(
        "trial,epoch,accuracy,asr,rate\n" + "".join(
            f"{trial},{epoch},{0.9 - 0.1 * epoch * trial},{0.8 - 0.3 * epoch * trial},{rate}\n"
            for trial, rate in enumerate((1e-4, 1e-3, 1e-2))
            for epoch in (0, 1)
        )
    )  # fmt: skip
    made = replay_table(import_table(tmp_path / "table.csv", tmp_path, "elsewhere"))
    assert made.space.dimensions == {"rate": LogUniform(low=1e-4, high=1e-2)}
