"""The controller: every trial exactly once, whatever is killed when; no training here, points are made up."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from math import inf, nextafter
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import fabricated
import optuna
import pytest
import torch
from fabricated import SWEEP, Player, open_controller, prepared_folder, rates_by_learning_rate
from optuna.trial import TrialState

from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.evaluation.retention import best_cleaned_point, score
from sweeplab.experiment import CleaningSweep
from sweeplab.records import Point, TrialRecord
from sweeplab.search_space import SearchSpace
from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.storage import files
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep import retries
from sweeplab.sweep.controller import ALIKE, SweepController
from sweeplab.sweep.retries import MORE_MEMORY
from sweeplab.sweep.run import raised
from sweeplab.sweep_folder import SweepFolder
from sweeplab.training import checkpoints
from sweeplab.worker.failures import Failure
from sweeplab.worker.jobs import CleaningJob


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


def kill(*arguments: object, **named: object) -> None:
    raise Killed


def params_of(folder: SweepFolder) -> list[dict[str, Any]]:
    return [folder.trial_header(number)["params"] for number in folder.trial_numbers()]


def trials_of(controller: SweepController) -> list[optuna.trial.FrozenTrial]:
    return controller.study.get_trials()


def check_complete(controller: SweepController) -> None:
    """Ledger and Optuna agree, trial by trial, and nothing is missing or there twice."""
    sweep, folder = controller.sweep, controller.folder
    assert folder.trial_numbers() == list(range(sweep.num_trials()))
    known = trials_of(open_controller(folder, sweep))
    assert [trial.number for trial in known] == folder.trial_numbers()
    for trial, record in zip(known, folder.record().trials, strict=True):
        assert record.state == "finished"
        assert [point.index for point in record.points] == list(range(sweep.epochs + 1))
        assert trial.state == TrialState.COMPLETE
        assert trial.params == record.params
        assert trial.value == score(record.points, 0.9, 0.05, start_counts=record.start_counts)


# --- an undisturbed run


def test_every_trial_is_run_exactly_once(folder: SweepFolder):
    controller = open_controller(folder)
    jobs = Player(controller).play_all()
    assert [(job.number, job.attempt, job.resume_from) for job in jobs] == [(n, 1, None) for n in range(6)]
    assert controller.is_done()
    check_complete(controller)


def test_a_finished_sweep_hands_out_nothing(folder: SweepFolder):
    Player(open_controller(folder)).play_all()
    controller = open_controller(folder)
    assert controller.is_done()
    assert controller.next_job() is None


def test_more_trials_can_be_asked_for_later(folder: SweepFolder):
    Player(open_controller(folder)).play_all()
    more = SWEEP.replace(search=SWEEP.search.replace(trials=8))
    jobs = Player(open_controller(folder, more)).play_all()
    assert [job.number for job in jobs] == [6, 7]


def test_trials_that_run_at_the_same_time_are_different_ones(folder: SweepFolder):
    controller = open_controller(folder)
    jobs = [controller.next_job() for _ in range(6)]
    assert sorted(job.number for job in jobs) == list(range(6))
    assert controller.next_job() is None
    assert not controller.is_done()
    for job in reversed(jobs):
        Player(controller).play(job)
    check_complete(controller)


def test_a_job_has_the_parameters_of_its_trial(folder: SweepFolder):
    controller = open_controller(folder)
    job = controller.next_job()
    assert job.params == folder.trial_header(0)["params"] == trials_of(controller)[0].params


def test_a_point_that_arrives_twice_is_one_point(folder: SweepFolder):
    heard: list[TrialRecord] = []
    controller = open_controller(folder, SWEEP, heard.append)
    job = controller.next_job()
    for _ in range(2):
        controller.point(job.number, fabricated.point(0, 90, 79), fabricated.VICTIM.outcomes)
    assert [len(trial.points) for trial in heard] == [0, 1]


def test_a_trial_that_says_it_is_done_too_early_is_not_finished(folder: SweepFolder):
    controller = open_controller(folder)
    job = controller.next_job()
    Player(controller).play(job, num_points=2)
    with pytest.raises(RuntimeError, match="trial 0 ended with 2 of 3 points"):
        controller.finished(job.number)
    assert controller.folder.trial(0).result() is None


def test_no_new_trial_begins_after_the_hours_are_over(folder: SweepFolder):
    controller = open_controller(folder, SWEEP.replace(search=SWEEP.search.replace(hours=1.0)))
    job = controller.next_job()
    controller.deadline = time.monotonic()
    assert controller.next_job() is None
    assert not controller.is_done()
    Player(controller).play(job)
    assert controller.is_done()
    assert folder.record().state == "interrupted"


def test_begun_trials_go_on_after_the_hours_are_over(folder: SweepFolder):
    open_controller(folder).next_job()
    controller = open_controller(folder, SWEEP.replace(search=SWEEP.search.replace(hours=1e-9)))
    jobs = Player(controller).play_all()
    assert [(job.number, job.attempt) for job in jobs] == [(0, 2)]


def test_the_limit_that_was_reached_is_named(folder: SweepFolder):
    controller = open_controller(folder, SWEEP.replace(search=SWEEP.search.replace(hours=1e-9)))
    assert controller.limit_reached() == "search.hours=1e-09 of this command are used up"
    assert raised(controller.limit_reached()) == "search.hours=2e-09"
    assert open_controller(folder).limit_reached() is None


def test_trials_that_fail_alike_before_they_train_end_the_command(folder: SweepFolder):
    controller = open_controller(folder, SWEEP.replace(search=SWEEP.search.replace(trials=20)))
    for number in range(ALIKE):
        assert controller.next_job().number == number
        controller.failed(number, Failure("FileNotFoundError: pairs.csv", True))
    with pytest.raises(InvalidInput, match=r"5 settings in a row .*, last trial 4: FileNotFoundError") as told:
        controller.next_job()
    assert "`sweeplab rerun made-up 0 1 2 3 4`, and run the same command again" in str(told.value)
    assert len(folder.trial_numbers()) == ALIKE


@pytest.mark.parametrize(
    "between", ["another reason", "a trial that trained", "a trial that finished", "a loss that is not finite"]
)
def test_trials_that_fail_for_reasons_of_their_own_do_not(folder: SweepFolder, between: str):
    controller = open_controller(folder, SWEEP.replace(search=SWEEP.search.replace(trials=20)))
    for number in range(2 * ALIKE):
        job = controller.next_job()
        if number == ALIKE - 1 and between == "a trial that finished":
            Player(controller).play(job)
            continue
        if number == ALIKE - 1 and between == "a trial that trained":
            Player(controller).play(job, num_points=2)
        reason = "ValueError: b" if number == ALIKE - 1 and between == "another reason" else "ValueError: a"
        if between == "a loss that is not finite":
            reason = "FloatingPointError: the loss is not finite at step 1"
        controller.failed(number, Failure(reason, True))
        if number == 2 * ALIKE - 2:
            break
    assert controller.next_job() is not None


def test_a_kill_between_the_last_failure_and_the_result_gives_no_further_attempt(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
):
    one = SWEEP.replace(resources=SWEEP.resources.replace(max_attempts=1))
    controller = open_controller(folder, one)
    controller.next_job()
    with monkeypatch.context() as patch:
        patch.setattr(SweepController, "_end", lambda *arguments: None)
        controller.failed(0, Failure("RuntimeError: the process died", False))
    again = open_controller(folder, one)
    assert again.folder.trial(0).result() == {
        "state": "failed",
        "reason": "RuntimeError: the process died (1 attempt)",
        "points": 0,
    }
    assert again.next_job().number == 1


@pytest.mark.parametrize("kind", ["checkpoint", "storage"])
def test_failures_that_are_not_the_trials_do_not_count_after_a_restart_either(folder: SweepFolder, kind: str):
    two = SWEEP.replace(resources=SWEEP.resources.replace(max_attempts=2))
    controller = open_controller(folder, two)
    Player(controller).play(controller.next_job(), num_points=2)
    with contextlib.suppress(StorageFault):
        controller.failed(0, Failure("no", False, kind))  # type: ignore[arg-type]
    again = open_controller(folder, two)
    again.next_job()
    again.failed(0, Failure("RuntimeError: the process died", False))
    assert again.folder.trial(0).result() is None


def test_seeds_of_one_setting_that_fail_alike_count_once(tmp_path: Path):
    sweep = SWEEP.replace(search=SWEEP.search.replace(trials=20, seeds_per_configuration=ALIKE))
    controller = open_controller(prepared_folder(tmp_path, sweep), sweep)
    for number in range(ALIKE):
        controller.next_job()
        controller.failed(number, Failure("ValueError: no", True))
    assert controller.next_job() is not None


# --- kills

Kill = Callable[[pytest.MonkeyPatch, SweepController], None]


def while_begun(patch: pytest.MonkeyPatch, controller: SweepController) -> None:
    controller.next_job()


def mid_trial(patch: pytest.MonkeyPatch, controller: SweepController) -> None:
    Player(controller).play(controller.next_job(), num_points=2)


def two_at_a_time(patch: pytest.MonkeyPatch, controller: SweepController) -> None:
    jobs = [controller.next_job(), controller.next_job()]
    for num_points, job in enumerate(jobs, start=1):
        Player(controller).play(job, num_points=num_points)


def at(owner: object, name: str) -> Kill:
    """Run trials until the driver is killed as it enters a function."""

    def run_until_killed(patch: pytest.MonkeyPatch, controller: SweepController) -> None:
        patch.setattr(owner, name, kill)
        with pytest.raises(Killed):
            Player(controller).play_all()

    return run_until_killed


KILLS: dict[str, Kill] = {
    "after the trial began": while_begun,
    "mid-trial": mid_trial,
    "two trials under way": two_at_a_time,
    "between ask and the first parameter": at(SearchSpace, "suggest"),
    "between parameters and trial.json": at(SweepFolder, "write_trial"),
    "between trial.json and the first attempt": at(SweepController, "record"),
    "between outcomes and history": at(RunFolder, "keep_checkpoints"),
    "between the last point and the result": at(RunFolder, "finish"),
    "between result and constraint": at(SweepController, "_tell"),
    "between constraint and tell": at(optuna.Study, "tell"),
    "between tell and the checkpoints": at(SweepController, "_settle_checkpoints"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """The same sweep, never interrupted."""
    return fabricated.finished_sweep(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("first", [0, 4], ids=["in the random phase", "in the modelled phase"])
@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_at_any_moment_loses_and_repeats_no_trial(
    moment: str, first: int, folder: SweepFolder, undisturbed: SweepFolder, monkeypatch: pytest.MonkeyPatch
):
    controller = open_controller(folder)
    for _ in range(first):
        Player(controller).play(controller.next_job())
    with monkeypatch.context() as patch:
        KILLS[moment](patch, controller)
    resumed = open_controller(folder)
    Player(resumed).play_all()
    check_complete(resumed)
    if moment != "two trials under way":  # which Optuna knew less at the second ask
        assert params_of(folder) == params_of(undisturbed)


@pytest.mark.parametrize("moment", ["between result and constraint", "between constraint and tell"])
def test_a_result_that_optuna_does_not_know_is_told_at_the_next_start(
    moment: str, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        KILLS[moment](patch, open_controller(folder))
    controller = open_controller(folder)
    assert trials_of(controller)[0].state == TrialState.COMPLETE
    assert controller.next_job().number == 1


def test_suggestions_do_not_depend_on_how_often_the_sweep_was_interrupted(
    folder: SweepFolder, undisturbed: SweepFolder
):
    for _ in range(6):
        controller = open_controller(folder)
        Player(controller).play(controller.next_job())
    assert params_of(folder) == params_of(undisturbed)


def test_another_search_seed_draws_other_settings(tmp_path: Path, undisturbed: SweepFolder):
    other = fabricated.finished_sweep(tmp_path, SWEEP.replace(search=SWEEP.search.replace(seed=1)))
    assert all(a != b for a, b in zip(params_of(other), params_of(undisturbed), strict=True))


def test_interrupted_trials_come_first_with_their_number_parameters_and_next_attempt(folder: SweepFolder):
    controller = open_controller(folder)
    begun = [controller.next_job() for _ in range(3)]
    Player(controller).play(begun[1])
    again = open_controller(folder)
    jobs = [again.next_job() for _ in range(3)]
    assert [(job.number, job.attempt) for job in jobs] == [(0, 2), (2, 2), (3, 1)]
    assert [job.params for job in jobs[:2]] == [begun[0].params, begun[2].params]


def test_an_interrupted_trial_goes_on_from_its_last_committed_checkpoint(folder: SweepFolder):
    controller = open_controller(folder)
    job = controller.next_job()
    Player(controller).play(job, num_points=2)
    (Path(job.checkpoints) / "attempt-1-epoch-0002.pt").write_bytes(b"never reported")
    resumed = open_controller(folder).next_job()
    assert resumed.resume_from is not None
    assert resumed.resume_from.location == str(folder.trial(0).checkpoints / "attempt-1-epoch-0001.pt")
    assert [path.name for path in Path(job.checkpoints).iterdir()] == ["attempt-1-epoch-0001.pt"]


def test_points_of_both_attempts_make_one_trajectory(folder: SweepFolder):
    controller = open_controller(folder)
    Player(controller).play(controller.next_job(), num_points=2)
    Player(open_controller(folder)).play_all()
    assert [(p.index, p.attempt) for p in folder.record().trials[0].points] == [(0, 1), (1, 1), (2, 2)]


def test_a_trial_whose_checkpoint_is_gone_goes_back_to_its_start(folder: SweepFolder):
    controller = open_controller(folder)
    job = controller.next_job()
    Player(controller).play(job, num_points=2)
    (Path(job.checkpoints) / "attempt-1-epoch-0001.pt").unlink()
    resumed = open_controller(folder)
    job = resumed.next_job()
    assert (job.resume_from, len(folder.trial(0).points())) == (None, 1)
    Player(resumed).play(job)
    assert [p.attempt for p in folder.record().trials[0].points] == [1, 2, 2]


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_of_the_journal_is_survived(cut: int, folder: SweepFolder):
    """The last line is what Optuna was told of trial 2; its result is in the ledger."""
    controller = open_controller(folder)
    for _ in range(3):
        Player(controller).play(controller.next_job())
    whole = folder.journal.read_bytes()
    folder.journal.write_bytes(whole[:-cut])
    resumed = open_controller(folder)
    assert trials_of(resumed)[2].state == TrialState.COMPLETE
    Player(resumed).play_all()
    check_complete(resumed)


@pytest.mark.parametrize("garbage", [b"garbage", b"{}", b"[1]", b"null", b'{"op_code": 99}', bytes(range(128, 200))])
@pytest.mark.parametrize("line", [0, 7, -1])
def test_a_damaged_journal_is_set_aside_and_made_again(garbage: bytes, line: int, folder: SweepFolder):
    Player(open_controller(folder)).play_all()
    before = folder.record()
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    lines[line] = garbage + b"\n"
    folder.journal.write_bytes(b"".join(lines))
    resumed = open_controller(folder)
    check_complete(resumed)
    assert folder.record() == before
    assert len(list(folder.path.glob("study.journal.damaged-*"))) == 1


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_finished_trial_whose_history_lost_points_is_named_and_repeated(lost: int, folder: SweepFolder):
    Player(open_controller(folder)).play_all()
    before = folder.record()
    history = folder.trial(3).path / "history.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[: len(lines) - lost]))
    found = folder.record()
    assert (found.state, found.trials[3].state) == ("interrupted", "waiting")
    assert f"{history} is damaged: {lost} of 3 points are lost" in " ".join(found.notes)
    resumed = open_controller(folder)
    job = resumed.next_job()
    assert (job.number, job.attempt) == (3, 2)
    Player(resumed).play(job)
    check_complete(resumed)
    after = folder.record()
    assert [p.measurement for p in after.trials[3].points] == [p.measurement for p in before.trials[3].points]
    assert (after.state, after.notes) == ("finished", before.notes)
    assert after.trials[:3] == before.trials[:3]


# --- failures


def test_an_error_that_would_come_again_ends_the_trial_at_once(folder: SweepFolder):
    controller = open_controller(folder)
    job = controller.next_job()
    Player(controller).play(job, num_points=2)
    controller.failed(job.number, Failure("FloatingPointError: the loss is not finite at step 3", True))
    record = folder.record().trials[0]
    assert (record.state, record.reason) == ("failed", "FloatingPointError: the loss is not finite at step 3")
    assert trials_of(controller)[0].state == TrialState.FAIL
    assert controller.next_job().number == 1


def test_a_trial_whose_process_died_is_tried_again_from_its_checkpoint(folder: SweepFolder):
    controller = open_controller(folder)
    job = controller.next_job()
    Player(controller).play(job, num_points=2)
    controller.failed(job.number, Failure("the trial's process died", False))
    again = controller.next_job()
    assert (again.number, again.attempt) == (0, 2)
    assert again.resume_from is not None
    assert again.resume_from.location == f"{job.checkpoints}/attempt-1-epoch-0001.pt"
    Player(controller).play(again)
    assert folder.record().trials[0].state == "finished"


def test_a_trial_whose_process_keeps_dying_is_given_up(folder: SweepFolder, no_pauses: None):
    controller = open_controller(folder)
    for attempt in (1, 2, 3):
        job = controller.next_job()
        assert (job.number, job.attempt) == (0, attempt)
        controller.failed(0, Failure("the trial's process died", False))
    record = folder.record().trials[0]
    assert (record.state, record.reason) == ("failed", "the trial's process died (3 attempts)")
    assert controller.next_job().number == 1


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are tried again at once."""
    monkeypatch.setattr(retries, "BACKOFF_SECONDS", (0.0,))


def test_a_trial_waits_before_its_third_attempt_while_others_go_on(folder: SweepFolder):
    controller = open_controller(folder)
    for _ in range(2):
        assert controller.next_job().number == 0
        controller.failed(0, Failure("the trial's process died", False))
    assert controller.next_job().number == 1
    assert not controller.is_done()


MEMORY = Failure("OutOfMemoryError: CUDA out of memory", False, "memory")


def test_a_trial_that_runs_out_of_memory_twice_at_the_same_place_is_given_up(folder: SweepFolder, no_pauses: None):
    controller = open_controller(folder)
    for _ in range(2):
        assert controller.next_job().number == 0
        controller.failed(0, MEMORY)
    record = folder.record().trials[0]
    assert record.state == "failed"
    assert record.reason == (f"OutOfMemoryError: CUDA out of memory (2 attempts); {MORE_MEMORY}")


def test_a_trial_that_got_further_between_two_losses_of_memory_is_tried_again(folder: SweepFolder, no_pauses: None):
    controller = open_controller(folder)
    for num_points in (1, 2):
        Player(controller).play(controller.next_job(), num_points=num_points)
        controller.failed(0, MEMORY)
    assert controller.folder.trial(0).result() is None


def test_a_storage_that_fails_ends_the_session_and_not_the_trial(folder: SweepFolder):
    controller = open_controller(folder)
    controller.next_job()
    with pytest.raises(StorageFault, match="No space left"):
        controller.failed(
            0, Failure("StorageFault: cannot write checkpoint: No space left on device", False, "storage")
        )
    assert controller.fault is not None
    assert not controller.may_ask()
    assert not controller.is_complete()
    for _ in range(5):
        again = open_controller(folder)
        assert again.next_job().number == 0
        with pytest.raises(StorageFault):
            again.failed(0, Failure("full", False, "storage"))
    Player(open_controller(folder)).play_all()
    assert folder.record().state == "finished"


def test_a_damaged_checkpoint_is_removed_and_an_earlier_state_serves(folder: SweepFolder):
    controller = open_controller(folder)
    job = controller.next_job()
    Player(controller).play(job, num_points=2)
    controller.failed(0, Failure("the trial's process died", False))
    assert controller.next_job().resume_from is not None
    controller.failed(0, Failure("DamagedCheckpoint: attempt-1-epoch-0001.pt is damaged", False, "checkpoint"))
    again = controller.next_job()
    assert (again.number, again.resume_from) == (0, None)
    Player(controller).play(again)
    assert folder.record().trials[0].state == "finished"


def test_what_arrives_after_the_book_was_closed_changes_nothing(folder: SweepFolder):
    controller = open_controller(folder)
    job = controller.next_job()
    controller.close()
    Player(controller).play(job)
    assert folder.trial(0).points() == []
    assert controller.next_job() is None
    assert controller.should_stop(0)


def test_a_journal_that_lost_its_end_gets_the_ledgers_trials_back(folder: SweepFolder):
    """A power failure may take lines that a kill cannot: the last two trials are gone from the journal."""
    controller = open_controller(folder)
    for _ in range(2):
        Player(controller).play(controller.next_job())
    size = folder.journal.stat().st_size
    Player(controller).play(controller.next_job())
    Player(controller).play(controller.next_job(), num_points=2)
    with folder.journal.open("rb+") as file:
        file.truncate(size)
    wanted = params_of(folder)
    resumed = open_controller(folder)
    assert [trial.params for trial in trials_of(resumed)] == wanted
    Player(resumed).play_all()
    check_complete(resumed)
    assert params_of(folder)[:4] == wanted


def test_interruptions_of_the_sweep_do_not_count_as_deaths_of_the_trial(folder: SweepFolder):
    for _ in range(3):
        open_controller(folder).next_job()
    controller = open_controller(folder)
    controller.next_job()
    controller.failed(0, Failure("the trial's process died", False))
    assert controller.folder.trial(0).result() is None
    assert controller.next_job().number == 0


def test_deaths_count_across_interruptions(folder: SweepFolder):
    for _ in range(3):
        controller = open_controller(folder)
        assert controller.next_job().number == 0
        controller.failed(0, Failure("the trial's process died", False))
    assert folder.record().trials[0].state == "failed"


def test_a_failed_trial_stays_failed_after_a_restart(folder: SweepFolder):
    controller = open_controller(folder)
    controller.next_job()
    controller.failed(0, Failure("ValueError: no", True))
    jobs = Player(open_controller(folder)).play_all()
    assert [job.number for job in jobs] == [1, 2, 3, 4, 5]
    assert folder.record().state == "finished"


def test_a_failed_trial_that_optuna_does_not_know_of_is_told(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch):
    controller = open_controller(folder)
    controller.next_job()
    monkeypatch.setattr(optuna.Study, "tell", kill)
    with pytest.raises(Killed):
        controller.failed(0, Failure("ValueError: no", True))
    monkeypatch.undo()
    assert trials_of(open_controller(folder))[0].state == TrialState.FAIL


def test_a_tracebacks_text_is_kept_in_the_trials_log(folder: SweepFolder):
    controller = open_controller(folder)
    controller.next_job()
    controller.log(0, "Traceback: one\n\n")
    controller.log(0, "Traceback: two")
    assert (folder.trial(0).path / "log.txt").read_text() == "Traceback: one\nTraceback: two\n"


def test_a_log_that_the_disk_does_not_take_is_a_fault_of_the_storage(folder: SweepFolder):
    controller = open_controller(folder)
    controller.next_job()
    (folder.trial(0).path / "log.txt").mkdir()  # stands for whatever refuses the write
    with pytest.raises(StorageFault, match=r"log\.txt"):
        controller.log(0, "Traceback: one")
    assert controller.fault is not None


# --- what Optuna is told


@pytest.mark.parametrize(("asr_k", "feasible"), [(0, True), (3, True), (4, False), (5, False), (80, False)])
def test_optuna_calls_a_trial_feasible_exactly_when_it_is_cleaned(asr_k: int, feasible: bool, folder: SweepFolder):
    """4 / 80 = 0.05 is the ceiling itself, which is not below it."""
    controller = open_controller(folder)
    Player(controller, lambda params, index: (70, asr_k if index else 79)).play(controller.next_job())
    constraint = trials_of(controller)[0].constraints["asr"]
    assert constraint == nextafter(asr_k / 80 - 0.05, inf)
    assert (constraint <= 0) == feasible
    assert (best_cleaned_point(controller.record(0).points, 0.05) is not None) == feasible


def test_a_cleaned_trial_is_worth_its_retention(folder: SweepFolder):
    """Epochs 1 and 2 are cleaned with 72 and 63 of 100; the victim has 90."""
    controller = open_controller(folder)
    Player(controller, lambda params, index: [(90, 79), (72, 2), (63, 0)][index]).play(controller.next_job())
    assert trials_of(controller)[0].value == pytest.approx(72 / 90)


def test_a_trial_that_is_not_cleaned_is_worth_what_its_lowest_asr_lacks(folder: SweepFolder):
    """0.05 - 8 / 80 = -0.05."""
    controller = open_controller(folder)
    Player(controller, lambda params, index: [(90, 79), (72, 8), (63, 40)][index]).play(controller.next_job())
    assert trials_of(controller)[0].value == pytest.approx(-0.05)


def test_a_victim_below_the_ceiling_is_no_result_of_cleaning(folder: SweepFolder):
    controller = open_controller(folder)
    Player(controller, lambda params, index: (90, 0) if index == 0 else (80, 40)).play(controller.next_job())
    assert trials_of(controller)[0].constraints["asr"] > 0


def test_a_start_that_was_shrunk_may_win(tmp_path: Path):
    space = SearchSpace(dimensions={"shrink_perturb": {"kind": "choice", "values": (True,)}}, source="made up")
    sweep = SWEEP.replace(space=space)
    controller = open_controller(prepared_folder(tmp_path, sweep), sweep)
    Player(controller, lambda params, index: (85, 0) if index == 0 else (80, 40)).play(controller.next_job())
    assert trials_of(controller)[0].value == pytest.approx(85 / 90)


def test_a_sweep_without_epochs_measures_starts_alone(tmp_path: Path):
    sweep = SWEEP.replace(epochs=0)
    controller = open_controller(prepared_folder(tmp_path, sweep), sweep)
    assert len(Player(controller).play_all()) == 6
    check_complete(controller)


# --- grids

GRID = SWEEP.replace(search=SWEEP.search.replace(sampler="grid"))
assert GRID.grid is not None


@pytest.mark.parametrize("every", [1, 2, 6])
def test_a_grid_is_run_in_order_once_each(every: int, tmp_path: Path):
    """`every`: trials between two interruptions; 6 is none."""
    folder = prepared_folder(tmp_path, GRID)
    for _ in range(6 // every):
        controller = open_controller(folder, GRID)
        for _ in range(every):
            Player(controller).play(controller.next_job())
    assert controller.is_done()
    assert params_of(folder) == list(GRID.grid.points())


@pytest.mark.parametrize(
    "moment", ["between ask and trial", "between enqueue and ask", "between parameters and trial.json"]
)
def test_a_grid_survives_kills(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    owner, name = {
        "between ask and trial": (SweepController, "_write_trial"),
        "between enqueue and ask": (optuna.Study, "ask"),
        "between parameters and trial.json": (SweepFolder, "write_trial"),
    }[moment]
    folder = prepared_folder(tmp_path, GRID)
    controller = open_controller(folder, GRID)
    Player(controller).play(controller.next_job())
    with monkeypatch.context() as patch:
        at(owner, name)(patch, controller)
    resumed = open_controller(folder, GRID)
    Player(resumed).play_all()
    check_complete(resumed)
    assert params_of(folder) == list(GRID.grid.points())


def test_random_search_draws_within_the_space(tmp_path: Path):
    sweep = SWEEP.replace(search=SWEEP.search.replace(sampler="random"))
    folder = fabricated.finished_sweep(tmp_path, sweep)
    rates = [params["learning_rate"] for params in params_of(folder)]
    assert len(set(rates)) == 6
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)


# --- weights


def kept_checkpoints(folder: SweepFolder) -> dict[int, list[str]]:
    kept = {n: sorted(p.name for p in folder.trial(n).checkpoints.iterdir()) for n in folder.trial_numbers()}
    return {number: names for number, names in kept.items() if names}


def numbered(rates: dict[int, list[tuple[int, int]]], sweep: CleaningSweep, folder: SweepFolder) -> SweepController:
    """Play trials whose rates are given by number."""
    controller = open_controller(folder, sweep)
    for number, values in rates.items():
        job = controller.next_job()
        assert job.number == number
        Player(controller, lambda params, index, values=values: values[index]).play(job)
    return controller


def test_only_the_best_trials_keep_weights_those_of_their_best_cleaned_point(tmp_path: Path):
    sweep = SWEEP.replace(resources=SWEEP.resources.replace(keep_checkpoints=2))
    folder = prepared_folder(tmp_path, sweep)
    rates = {
        0: [(90, 79), (80, 1), (70, 1)],
        1: [(90, 79), (85, 40), (82, 2)],
        2: [(90, 79), (89, 70), (88, 60)],  # never cleaned
        3: [(90, 79), (60, 0), (50, 0)],
    }
    numbered(rates, sweep, folder)
    assert kept_checkpoints(folder) == {0: ["attempt-1-epoch-0001.pt"], 1: ["attempt-1-epoch-0002.pt"]}


def test_a_running_trial_keeps_its_last_and_its_best_weights(tmp_path: Path):
    sweep = SWEEP.replace(epochs=4)
    controller = open_controller(prepared_folder(tmp_path, sweep), sweep)
    rates = [(90, 79), (80, 1), (70, 1), (60, 1), (50, 1)]
    Player(controller, lambda params, index: rates[index]).play(controller.next_job(), num_points=4)
    assert kept_checkpoints(controller.folder) == {0: ["attempt-1-epoch-0001.pt", "attempt-1-epoch-0003.pt"]}


NOT_CLEANED = {
    0: [(90, 79), (89, 70), (88, 60)],
    1: [(90, 79), (85, 7), (70, 6)],  # 7 / 80 lies below twice the ceiling of 4 / 80
    2: [(90, 79), (80, 9), (30, 5)],
    3: [(90, 79), (84, 7), (31, 6)],
}


def test_where_nothing_was_cleaned_the_points_that_came_closest_keep_their_weights(folder: SweepFolder):
    """The lowest ASR, and the most accurate below twice the ceiling, of all trials."""
    numbered(NOT_CLEANED, SWEEP, folder)
    assert kept_checkpoints(folder) == {1: ["attempt-1-epoch-0001.pt"], 2: ["attempt-1-epoch-0002.pt"]}


def test_weights_that_came_close_go_once_a_trial_is_cleaned(folder: SweepFolder):
    numbered({**NOT_CLEANED, 4: [(90, 79), (60, 3), (50, 60)]}, SWEEP, folder)
    assert kept_checkpoints(folder) == {4: ["attempt-1-epoch-0001.pt"]}


@pytest.mark.parametrize("cleaned", [False, True])
def test_a_kill_before_weights_are_removed_changes_nothing_of_what_stays(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, cleaned: bool
):
    rates = {**NOT_CLEANED, 4: [(90, 79), (60, 3), (50, 60)]} if cleaned else NOT_CLEANED
    with monkeypatch.context() as patch:
        patch.setattr(SweepController, "_settle_checkpoints", lambda *arguments: None)
        numbered(rates, SWEEP, folder)
    assert len(kept_checkpoints(folder)) == len(rates)
    open_controller(folder)
    kept = (
        {4: ["attempt-1-epoch-0001.pt"]}
        if cleaned
        else {1: ["attempt-1-epoch-0001.pt"], 2: ["attempt-1-epoch-0002.pt"]}
    )
    assert kept_checkpoints(folder) == kept


class Trainer(Player):
    """Writes checkpoints as training does, of a tensor or two."""

    def points(self, job: CleaningJob) -> Iterable[Point]:
        for made in super().points(job):
            if made.checkpoint is not None:
                checkpoints.save(
                    {
                        "model": {"weight": torch.full((3,), float(made.index))},
                        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
                        "state": {"head": torch.ones(2)},
                        "epoch": made.index,
                        "step_in_epoch": 0,
                        "step": made.step,
                        "point": made.index,
                        "random": torch.random.get_rng_state(),
                        "tally": None,
                        "config": "{}",
                    },
                    Path(job.checkpoints) / made.checkpoint,
                )
            yield made


def one_cleaned(params: dict[str, Any], index: int) -> tuple[int, int]:
    """Epoch 1 is the best cleaned one."""
    return ((90, 79), (80, 1), (70, 1))[index]


def contents(folder: SweepFolder) -> dict[int, set[str]]:
    """The entries of the one checkpoint of every trial that has weights."""
    kept = {number: folder.trial(number).checkpoints / name for number, (name,) in kept_checkpoints(folder).items()}
    return {number: set(torch.load(path, weights_only=True)) for number, path in kept.items()}


def train_all(folder: SweepFolder, sweep: CleaningSweep = SWEEP) -> None:
    Trainer(open_controller(folder, sweep), one_cleaned).play_all()


ONE_TRIAL = SWEEP.replace(search=SWEEP.search.replace(trials=1, startup_trials=1))
WEIGHTS = {"model", "epoch", "step_in_epoch", "step", "point", "config"}
WHOLE = WEIGHTS | {"optimizer", "state", "random", "tally"}


def test_what_stays_of_a_trial_that_is_over_has_no_optimizer(tmp_path: Path):
    sweep = SWEEP.replace(resources=SWEEP.resources.replace(keep_checkpoints=2))
    folder = prepared_folder(tmp_path, sweep)
    train_all(folder, sweep)
    assert contents(folder) == {0: WEIGHTS, 1: WEIGHTS}
    path = folder.trial(0).checkpoints / "attempt-1-epoch-0001.pt"
    assert torch.equal(torch.load(path, weights_only=True)["model"]["weight"], torch.ones(3))


def test_a_running_trials_checkpoints_stay_whole(tmp_path: Path):
    folder = prepared_folder(tmp_path, ONE_TRIAL)
    controller = open_controller(folder, ONE_TRIAL)
    Trainer(controller, one_cleaned).play(controller.next_job(), num_points=2)
    assert contents(folder) == {0: WHOLE}


def test_under_authors_the_optimizer_stays_for_the_sweep_that_carries_it_over(tmp_path: Path):
    sweep = ONE_TRIAL.replace(protocol="authors")
    folder = prepared_folder(tmp_path, sweep)
    train_all(folder, sweep)
    assert contents(folder) == {0: WHOLE}


def test_what_a_method_classifies_by_stays(tmp_path: Path):
    labelled = LabelledPairs(images=SWEEP.evaluation.test, per_class=2)
    sweep = ONE_TRIAL.replace(
        method=SupervisedFinetuning(),
        data=labelled,
        space=SWEEP.space.replace(dimensions={"learning_rate": SWEEP.space.dimensions["learning_rate"]}),
        grid=None,
    )
    folder = prepared_folder(tmp_path, sweep)
    train_all(folder, sweep)
    assert contents(folder) == {0: WEIGHTS | {"state"}}


@pytest.mark.parametrize(
    "moment",
    [(RunFolder, "note_stripped"), (checkpoints, "strip"), (files.os, "replace")],
    ids=["before it is noted", "before it is stripped", "while it is written"],
)
def test_a_kill_while_a_checkpoint_is_stripped_loses_nothing(
    moment: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = prepared_folder(tmp_path, ONE_TRIAL)
    owner, name = moment
    with monkeypatch.context() as patch:
        real = getattr(owner, name)
        is_about_weights = lambda words: any(str(word).endswith("0001.pt") for word in words)  # noqa: E731
        is_over = folder.trial(0).path / "result.json"

        def killed(*words: Any, **named: Any) -> Any:
            return kill() if is_over.exists() and is_about_weights(words) else real(*words, **named)

        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            train_all(folder, ONE_TRIAL)
    assert contents(folder) == {0: WHOLE}
    assert open_controller(folder, ONE_TRIAL).is_complete()
    assert contents(folder) == {0: WEIGHTS}


def test_a_full_disk_leaves_checkpoints_whole_and_is_no_reason_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = prepared_folder(tmp_path, ONE_TRIAL)

    def full(*arguments: object, **named: object) -> None:
        raise StorageFault("cannot write checkpoint x: No space left on device")

    monkeypatch.setattr(checkpoints, "strip", full)
    train_all(folder, ONE_TRIAL)
    assert contents(folder) == {0: WHOLE}
    assert folder.record().state == "finished"
    assert "No space left" in folder.events()[-1]["reason"]


def test_a_trial_that_lost_history_behind_stripped_weights_is_run_again_from_its_start(tmp_path: Path):
    folder = prepared_folder(tmp_path, ONE_TRIAL)
    train_all(folder, ONE_TRIAL)
    history = folder.trial(0).path / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:2]))
    controller = open_controller(folder, ONE_TRIAL)
    job = controller.next_job()
    assert (job.attempt, job.resume_from) == (2, None)
    Trainer(controller, one_cleaned).play(job)
    assert kept_checkpoints(folder) == {0: ["attempt-2-epoch-0001.pt"]}
    assert (contents(folder), folder.record().state) == ({0: WEIGHTS}, "finished")


def test_a_failed_trial_keeps_no_weights(folder: SweepFolder):
    controller = open_controller(folder)
    Player(controller, rates_by_learning_rate).play(controller.next_job(), num_points=3)
    controller.failed(0, Failure("ValueError: no", True))
    assert kept_checkpoints(folder) == {}


def test_optuna_dashboard_opens_the_study(tmp_path: Path):
    """Through its own server application, as `optuna-dashboard study.journal` does."""
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    folder = fabricated.finished_sweep(tmp_path)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder.journal)))
    app = optuna_dashboard.wsgi(storage)

    def get(path: str) -> Any:
        codes: list[str] = []
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        body = app({**environ, "PATH_INFO": path}, lambda status, headers, *rest: codes.append(status))
        assert codes == ["200 OK"]
        return json.loads(b"".join(body))

    (study,) = get("/api/studies")["study_summaries"]
    assert study["study_name"] == folder.name
    trials = get(f"/api/studies/{study['study_id']}")["trials"]
    assert [trial["state"] for trial in trials] == ["Complete"] * len(folder.trial_numbers())
