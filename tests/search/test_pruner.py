"""Pruning in the controller: decisions are recorded, acted on, and outlive kills; no training here."""

from pathlib import Path

import pytest
from fabricated import SWEEP, Player, open_controller, outcomes, point, prepared_folder
from optuna.trial import TrialState

from sweeplab.evaluation.retention import score
from sweeplab.experiment import CleaningSweep
from sweeplab.ranking.stopping import BackdoorStays, FallsBehind, Pruning
from sweeplab.records import TrialRecord
from sweeplab.sweep.controller import SweepController
from sweeplab.sweep_folder import SweepFolder

PRUNED = SWEEP.replace(
    epochs=4, search=SWEEP.search.replace(pruning=Pruning(rules=(BackdoorStays(after_epochs=2, share=0.9),)))
)
STAYS = [(90, 79), (90, 79), (90, 78), (90, 20), (90, 1)]
"""Correct and hit images of a trial whose ASR stays at the top for two epochs."""


def give(controller: SweepController, number: int, rates: list[tuple[int, int]], first: int = 0) -> None:
    """Report points as a worker does: until told to stop."""
    for index, (correct, hits) in enumerate(rates[first:], start=first):
        name = f"attempt-1-epoch-{index}.pt"
        checkpoints = controller.folder.trial(number).checkpoints
        checkpoints.mkdir(parents=True, exist_ok=True)
        if index:
            (checkpoints / name).write_bytes(b"weights")
        made = point(index, correct, hits, checkpoint=name if index else None)
        controller.point(number, made, outcomes(made.measurement))
        if controller.should_stop(number):
            return


def stopped(path: Path, sweep: CleaningSweep = PRUNED) -> tuple[SweepController, SweepFolder]:
    """A controller whose trial 0 was told to stop after its third point, and has not ended yet."""
    folder = prepared_folder(path, sweep)
    controller = open_controller(folder, sweep)
    give(controller, controller.next_job().number, STAYS)
    return controller, folder


def test_a_decision_is_recorded_with_its_reason_and_numbers(tmp_path: Path):
    controller, folder = stopped(tmp_path)
    decisions = [event for event in folder.events() if event["event"] == "stop decided"]
    assert [(event["trial"], event["point"], event["rule"]) for event in decisions] == [(0, 2, "backdoor-stays")]
    assert decisions[0]["saw"] == pytest.approx({"epoch": 2.0, "lowest_asr": 78 / 80, "limit": 0.9 * 79 / 80})
    assert "victim's" in decisions[0]["reason"]
    assert controller.should_stop(0)


def test_a_trial_that_stops_where_decided_is_pruned_with_the_reason(tmp_path: Path):
    controller, folder = stopped(tmp_path)
    controller.finished(0)
    record = folder.record().trials[0]
    assert (record.state, len(record.points)) == ("pruned", 3)
    assert "lowest ASR" in record.reason


def test_optuna_sees_a_pruned_trial_as_complete_with_its_score_so_far(tmp_path: Path):
    controller, _ = stopped(tmp_path)
    controller.finished(0)
    trial = controller.study.get_trials()[0]
    record = controller.record(0)
    assert trial.state == TrialState.COMPLETE
    assert trial.value == score(record.points, 0.9, 0.05) == pytest.approx(0.05 - 78 / 80)
    assert trial.constraints["asr"] > 0


def test_a_worker_that_does_not_stop_finishes_the_trial(tmp_path: Path):
    controller, folder = stopped(tmp_path)
    for index in (3, 4):
        made = point(index, 90, 1)
        controller.point(0, made, outcomes(made.measurement))
    controller.finished(0)
    assert folder.record().trials[0].state == "finished"


def test_ending_early_without_a_decision_is_no_end(tmp_path: Path):
    controller = open_controller(prepared_folder(tmp_path, PRUNED), PRUNED)
    give(controller, controller.next_job().number, [(90, 79), (90, 30)])
    with pytest.raises(RuntimeError, match="2 of 5 points"):
        controller.finished(0)


def test_no_decision_is_made_on_the_last_point(tmp_path: Path):
    sweep = PRUNED.replace(epochs=2)
    controller = open_controller(prepared_folder(tmp_path, sweep), sweep)
    give(controller, controller.next_job().number, STAYS[:3])
    assert not controller.should_stop(0)
    controller.finished(0)
    assert controller.record(0).state == "finished"


def test_a_kill_between_decision_and_end_forgets_neither(tmp_path: Path):
    """The next driver ends the trial before it hands out another one, and says so."""
    _, folder = stopped(tmp_path)
    heard: list[TrialRecord] = []
    resumed = open_controller(folder, PRUNED, heard.append)
    assert resumed.should_stop(0)
    assert resumed.next_job().number == 1
    assert [(trial.number, trial.state) for trial in heard] == [(0, "pruned"), (1, "running")]
    assert resumed.study.get_trials()[0].state == TrialState.COMPLETE


def test_a_pruned_trial_whose_history_lost_points_is_made_again_up_to_its_decision(tmp_path: Path):
    controller, folder = stopped(tmp_path)
    controller.finished(0)
    before = folder.record().trials[0]
    history = folder.trial(0).path / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:2]))
    resumed = open_controller(folder, PRUNED)
    job = resumed.next_job()
    assert (job.number, folder.record().trials[0].state) == (0, "waiting")
    assert not resumed.should_stop(0)
    give(resumed, 0, STAYS[len(folder.trial(0).points()) :], first=len(folder.trial(0).points()))
    resumed.finished(0)
    after = folder.record().trials[0]
    assert (after.state, after.reason, len(after.points)) == ("pruned", before.reason, 3)


def test_a_decided_trial_whose_process_dies_is_pruned_not_retried(tmp_path: Path):
    from sweeplab.worker.failures import Failure

    controller, _ = stopped(tmp_path)
    controller.failed(0, Failure("the process died", False))
    assert controller.next_job().number == 1
    assert controller.record(0).state == "pruned"


def test_a_kill_between_the_point_and_the_decision_lets_the_trial_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException): ...

    def kill(*arguments: object, **named: object) -> None:
        raise Killed

    folder = prepared_folder(tmp_path, PRUNED)
    controller = open_controller(folder, PRUNED)
    number = controller.next_job().number
    with monkeypatch.context() as patch:
        patch.setattr(SweepController, "_judge", kill)
        with pytest.raises(Killed):
            give(controller, number, STAYS)
    resumed = open_controller(folder, PRUNED)
    assert not resumed.should_stop(0)
    assert resumed.next_job().number == 0


def test_rules_compare_with_the_best_of_the_whole_sweep_after_a_resume(tmp_path: Path):
    """Trial 0 keeps 80 of 100 images; trial 1 falls to 70, below 80 - .05 * 90."""
    sweep = PRUNED.replace(search=PRUNED.search.replace(pruning=Pruning(rules=(FallsBehind(margin=0.05),))))
    folder = prepared_folder(tmp_path, sweep)
    controller = open_controller(folder, sweep)
    give(controller, controller.next_job().number, [(90, 79), (82, 3), (80, 1), (80, 1), (80, 1)])
    controller.finished(0)
    resumed = open_controller(folder, sweep)
    give(resumed, resumed.next_job().number, [(90, 79), (78, 40), (70, 30), (60, 30), (50, 30)])
    assert resumed.should_stop(1)
    assert folder.events()[-1]["saw"]["limit"] == pytest.approx(0.82 - 0.05 * 0.9)


def test_nothing_is_pruned_by_default_nor_in_a_grid(tmp_path: Path):
    plain = PRUNED.replace(search=SWEEP.search)
    grid = PRUNED.replace(search=PRUNED.search.replace(sampler="grid"))
    for name, sweep in (("plain", plain), ("grid", grid)):
        controller, _ = stopped(tmp_path / name, sweep)
        assert not controller.should_stop(0)
        controller.finished(0)
        assert controller.record(0).state == "finished"


def test_a_pruned_sweep_is_complete_and_ranked(tmp_path: Path):
    from sweeplab.ranking.leaderboard import rank_trials

    folder = prepared_folder(tmp_path, PRUNED)
    controller = open_controller(folder, PRUNED)
    while (job := controller.next_job()) is not None:
        give(controller, job.number, STAYS if job.number % 2 else [(90, 79), (80, 2), (80, 2), (80, 2), (80, 2)])
        controller.finished(job.number)
    record = folder.record()
    assert record.state == "finished"
    board = rank_trials(record, folder.outcomes)
    assert [row.state for row in board.rows] == ["finished"] * 3 + ["pruned"] * 3


def test_weights_of_a_pruned_trial_that_leads_are_kept(tmp_path: Path):
    sweep = PRUNED.replace(search=PRUNED.search.replace(pruning=Pruning(rules=(FallsBehind(margin=0.05),))))
    controller = open_controller(prepared_folder(tmp_path, sweep), sweep)
    give(controller, controller.next_job().number, [(90, 79), (89, 1), (60, 1), (50, 1), (50, 1)])
    controller.finished(0)
    assert controller.record(0).state == "pruned"
    assert [path.name for path in controller.folder.trial(0).checkpoints.iterdir()] == ["attempt-1-epoch-1.pt"]


def test_a_player_that_asks_nothing_still_completes_the_sweep(tmp_path: Path):
    folder = prepared_folder(tmp_path, PRUNED)
    Player(open_controller(folder, PRUNED), asks=False).play_all()
    assert {trial.state for trial in folder.record().trials} == {"finished"}
    assert Player(open_controller(folder, PRUNED)).play_all() == []


def test_a_sweep_with_rules_reads_back_from_its_own_record(tmp_path: Path):
    folder = prepared_folder(tmp_path, PRUNED)
    assert CleaningSweep.model_validate(folder.header()["spec"]).digest() == PRUNED.digest()


def test_rules_are_part_of_a_sweeps_identity():
    assert PRUNED.digest() != PRUNED.replace(search=SWEEP.search).digest()
