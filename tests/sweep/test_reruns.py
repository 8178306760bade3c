"""Trials that are tried once more: trials of their own with the same setting and seed, whatever is killed when."""

from pathlib import Path

import fabricated
import optuna
import pytest
from fabricated import SWEEP, Player, open_controller

from sweeplab.commands import logs
from sweeplab.commands.logs import pruned_trials, request_reruns
from sweeplab.experiment import CleaningSweep
from sweeplab.ranking.configurations import group_by_configuration
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.stopping import BackdoorStays, Pruning
from sweeplab.search.audit import audit_decisions
from sweeplab.search.samplers import by_configuration
from sweeplab.specs import InvalidInput
from sweeplab.sweep import controller
from sweeplab.sweep.controller import SweepController
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.failures import Failure

GRID = SWEEP.replace(search=SWEEP.search.replace(sampler="grid"))
assert GRID.grid is not None


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


def kill(*arguments: object, **named: object) -> None:
    raise Killed


def play_all(folder: SweepFolder, sweep: CleaningSweep = SWEEP) -> list[int]:
    return [job.number for job in Player(open_controller(folder, sweep)).play_all()]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A finished sweep."""
    return fabricated.finished_sweep(tmp_path / "sweeps")


def test_a_rerun_is_a_new_trial_of_the_same_setting_and_seed_and_the_old_one_stays(folder: SweepFolder):
    before = folder.trial_record(2, is_driven=False)
    request_reruns(folder, [2])
    assert folder.record().state == "interrupted"
    assert play_all(folder) == [6]
    again = folder.trial_record(6, is_driven=False)
    assert (again.params, again.seed, again.configuration) == (before.params, before.seed, before.configuration)
    assert folder.trial_record(2, is_driven=False) == before
    assert folder.begun_reruns() == {6: 2}
    record = folder.record()
    assert (record.state, record.planned_trials) == ("finished", 7)


def test_a_failed_trial_may_succeed_the_second_time(tmp_path: Path):
    folder = fabricated.prepared_folder(tmp_path)
    controller = open_controller(folder)
    controller.next_job()
    controller.failed(0, Failure("ValueError: no", True))
    Player(controller).play_all()
    request_reruns(folder, [0])
    assert play_all(folder) == [6]
    assert [folder.record().trials[number].state for number in (0, 6)] == ["failed", "finished"]


def test_a_rerun_of_an_unfinished_grid_comes_after_the_grid_whose_numbers_stay(tmp_path: Path):
    folder = fabricated.prepared_folder(tmp_path, GRID)
    controller = open_controller(folder, GRID)
    for _ in range(2):
        Player(controller).play(controller.next_job())
    request_reruns(folder, [1])
    assert play_all(folder, GRID) == [2, 3, 4, 5, 6]
    points = GRID.grid.points()
    assert [folder.trial_header(n)["params"] for n in range(7)] == [*points, points[1]]
    assert folder.begun_reruns() == {6: 1}


def test_the_number_of_trials_may_be_raised_after_a_rerun(folder: SweepFolder):
    request_reruns(folder, [0])
    assert play_all(folder) == [6]
    more = SWEEP.replace(search=SWEEP.search.replace(trials=8))
    assert play_all(folder, more) == [7, 8]
    assert folder.begun_reruns() == {6: 0}


def test_a_rerun_is_made_where_fewer_trials_are_asked_for_than_were_begun(folder: SweepFolder):
    request_reruns(folder, [0])
    fewer = SWEEP.replace(search=SWEEP.search.replace(trials=3))
    folder.write_header(fewer, fewer.digest(), {})
    assert (folder.num_planned(fewer), folder.record().state) == (7, "interrupted")
    assert play_all(folder, fewer) == [6]
    assert folder.begun_reruns() == {6: 0}
    assert folder.num_planned(fewer) == 7
    assert play_all(folder, fewer) == []


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_a_rerun_before_the_number_of_trials_is_raised_takes_no_place_of_the_search(sampler: str, tmp_path: Path):
    """The grid comes first; trial 2 is a rerun, and still every grid point is run, in order."""
    points = GRID.grid.points()
    few = GRID.replace(search=SWEEP.search.replace(sampler=sampler, grid_first=True, trials=2))
    more = few.replace(search=few.search.replace(trials=len(points) + 2))
    folder = fabricated.prepared_folder(tmp_path / "with", few)
    play_all(folder, few)
    request_reruns(folder, [0])
    play_all(folder, few)
    play_all(folder, more)
    params = [folder.trial_header(number)["params"] for number in folder.trial_numbers()]
    assert folder.begun_reruns() == {2: 0}
    assert [*params[:2], *params[3 : len(points) + 1]] == [*points]
    if sampler == "qmc":
        without = fabricated.prepared_folder(tmp_path / "without", more)
        play_all(without, more)
        assert params[:2] + params[3:] == [without.trial_header(number)["params"] for number in without.trial_numbers()]


def test_a_seed_of_a_configuration_that_failed_is_tried_again_and_stands_for_it(tmp_path: Path):
    """Two seeds each: trial 1 fails, and its rerun, trial 6, is the seed that it was; what follows keeps its pairs."""
    sweep = SWEEP.replace(search=SWEEP.search.replace(seeds_per_configuration=2, startup_trials=1))
    folder = fabricated.prepared_folder(tmp_path, sweep)
    controller = open_controller(folder, sweep)
    Player(controller).play(controller.next_job())
    controller.next_job()
    controller.failed(1, Failure("ValueError: no", True))
    Player(controller).play_all()
    request_reruns(folder, [1])
    assert play_all(folder, sweep) == [6]
    more = sweep.replace(search=sweep.search.replace(trials=8))
    assert play_all(folder, more) == [7, 8]
    headers = [folder.trial_header(number) for number in range(9)]
    assert [header["seed"] for header in headers] == [sweep.seed + n for n in (0, 1, 0, 1, 0, 1, 1, 0, 1)]
    assert headers[6]["params"] == headers[1]["params"]
    assert headers[7]["params"] == headers[8]["params"]
    again = open_controller(folder, more)
    view = by_configuration(again.study, again.plan)
    assert [trial.state.name for trial in view.trials] == ["COMPLETE"] * 4
    values = [trial.value for trial in again.study.trials]
    assert view.trials[0].value == pytest.approx((values[0] + values[6]) / 2)
    board = rank_trials(folder.record(), folder.outcomes)
    rows = {row.trials for row in group_by_configuration(board)}
    assert rows == {(0, 6), (2, 3), (4, 5), (7, 8)}


def test_a_trial_may_be_tried_more_than_once_more(folder: SweepFolder):
    for number in (0, 0, 3):
        request_reruns(folder, [number])
    assert play_all(folder) == [6, 7, 8]
    assert folder.begun_reruns() == {6: 0, 7: 0, 8: 3}
    assert play_all(folder) == []


def test_the_drivers_header_keeps_the_reruns(folder: SweepFolder):
    request_reruns(folder, [0])
    folder.write_header(SWEEP, SWEEP.digest(), {})
    assert (folder.header()["reruns"], folder.header()["planned_trials"]) == ([0], 7)


MOMENTS = {
    "before anything": (controller, "ask_for"),
    "between enqueue and ask": (optuna.Study, "ask"),
    "between ask and trial": (SweepController, "_write_trial"),
    "between parameters and trial.json": (SweepFolder, "write_trial"),
    "between trial.json and event": (SweepFolder, "event"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_rerun_survives_a_kill_between_any_two_writes(
    moment: str, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
):
    """Two are asked for; the driver is killed while it begins the first, and each is still tried exactly once."""
    for number in (2, 4):
        request_reruns(folder, [number])
    controller = open_controller(folder)
    with monkeypatch.context() as patch:
        patch.setattr(*MOMENTS[moment], kill)
        with pytest.raises(Killed):
            controller.next_job()
    play_all(folder)
    assert folder.begun_reruns() == {6: 2, 7: 4}
    for again, old in ((6, 2), (7, 4)):
        assert folder.trial_header(again)["params"] == folder.trial_header(old)["params"]
    assert [trial.params for trial in open_controller(folder).study.get_trials()] == [
        folder.trial_header(number)["params"] for number in folder.trial_numbers()
    ]
    assert folder.record().state == "finished"


def test_a_rerun_that_was_interrupted_goes_on(folder: SweepFolder):
    request_reruns(folder, [2])
    controller = open_controller(folder)
    Player(controller).play(controller.next_job(), num_points=2)
    resumed = open_controller(folder)
    job = resumed.next_job()
    assert (job.number, job.attempt) == (6, 2)
    assert job.resume_from is not None


# --- what is refused


def test_a_trial_that_is_not_over_is_not_tried_again(tmp_path: Path):
    folder = fabricated.prepared_folder(tmp_path)
    Player(controller := open_controller(folder)).play(controller.next_job(), num_points=1)
    with pytest.raises(InvalidInput, match="trial 0 is not over yet; resuming the sweep goes on with it"):
        request_reruns(folder, [0])


def test_a_trial_that_is_not_there_is_refused_with_the_known_ones(folder: SweepFolder):
    with pytest.raises(InvalidInput, match="has no trial 6; known: 0 to 5"):
        request_reruns(folder, [6])


def test_a_sweep_that_is_not_there_is_refused_with_the_known_ones(folder: SweepFolder):
    with pytest.raises(InvalidInput, match=r"no sweep named 'mad-up' in .*; known: made-up"):
        request_reruns(SweepFolder(folder.path.with_name("mad-up")), [0])


def test_while_a_driver_is_at_work_nothing_is_added(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch):
    with folder.lock(), pytest.raises(InvalidInput, match="is being run by process"):
        request_reruns(SweepFolder(folder.path), [0])
    assert "reruns" not in folder.header()


def test_an_imported_sweep_cannot_run_its_trials(folder: SweepFolder):
    from sweeplab.storage.files import write_json

    write_json(folder.path / "sweep.json", {**folder.header(), "imported": {"file": "table.csv"}})
    with pytest.raises(InvalidInput, match="was imported; its trials cannot be run here"):
        logs.request_reruns(folder, [0])
    assert folder.record().state == "finished"


# --- GPU-hours


def test_gpu_hours_end_the_handing_out_of_new_trials_and_not_those_that_were_begun(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
):
    """Two finished attempts of 1 h with half a GPU are 1 GPU-hour."""
    more = SWEEP.replace(search=SWEEP.search.replace(trials=9))
    hour, now = 3_600_000, folder.events()[-1]["time_ms"]
    lines = [
        {"time_ms": now, "event": "driver began", "workers": 1, "gpus_per_worker": 0.5},
        {"time_ms": now, "event": "trial began", "trial": 0},
        {"time_ms": now, "event": "trial began", "trial": 1},
        {"time_ms": now + hour, "event": "trial ended", "trial": 0},
        {"time_ms": now + hour, "event": "trial ended", "trial": 1},
    ]
    monkeypatch.setattr(folder, "events", lambda: lines)
    assert not open_controller(folder, more.replace(search=more.search.replace(gpu_hours=1.0))).may_ask()
    controller = open_controller(folder, more.replace(search=more.search.replace(gpu_hours=1.01)))
    job = controller.next_job()
    assert job.number == 6
    lines += [
        {"time_ms": now + hour, "event": "trial began", "trial": 2},
        {"time_ms": now + hour + 100_000, "event": "trial ended", "trial": 2},
    ]
    again = open_controller(folder, more.replace(search=more.search.replace(gpu_hours=1.01)))
    assert not again.may_ask()
    assert again.next_job().number == 6
    assert again.next_job() is None
    Player(again).play(job)
    assert again.is_done()
    assert not again.is_complete()


# --- of trials that a rule has stopped


PRUNED = SWEEP.replace(
    search=SWEEP.search.replace(
        sampler="random", trials=8, pruning=Pruning(rules=(BackdoorStays(after_epochs=1, share=0.7),))
    )
)


@pytest.fixture
def pruned(tmp_path: Path) -> SweepFolder:
    """A sweep of eight trials, some of which a rule has stopped."""
    folder = fabricated.prepared_folder(tmp_path, PRUNED)
    play_all(folder, PRUNED)
    return folder


def states(folder: SweepFolder) -> list[str]:
    return [trial.state for trial in folder.record().trials]


def test_a_stopped_trial_runs_to_its_end_when_it_is_tried_again(pruned: SweepFolder):
    stopped = pruned_trials(pruned)
    assert 0 < len(stopped) < 8
    request_reruns(pruned, stopped)
    assert pruned_trials(pruned) == []
    play_all(pruned, PRUNED)
    assert states(pruned)[8:] == ["finished"] * len(stopped)
    assert pruned.begun_reruns() == {8 + place: number for place, number in enumerate(stopped)}
    found = audit_decisions(pruned.record())
    assert (found["pruned"], found["run_to_their_end"]) == (len(stopped), len(stopped))
    assert all(row["same_until_stop"] for row in found["decisions"])


def test_a_stopped_trial_whose_rerun_failed_may_be_tried_again(pruned: SweepFolder):
    first, *others = pruned_trials(pruned)
    request_reruns(pruned, [first])
    controller = open_controller(pruned, PRUNED)
    controller.next_job()
    controller.failed(8, Failure("ValueError: no", True))
    assert pruned_trials(pruned) == [first, *others]
    request_reruns(pruned, [first])
    assert pruned_trials(pruned) == others
    play_all(pruned, PRUNED)
    assert (states(pruned)[8:], pruned_trials(pruned)) == (["failed", "finished"], others)
    assert audit_decisions(pruned.record())["run_to_their_end"] == 1


def test_a_killed_driver_does_not_forget_that_no_rule_ends_it(pruned: SweepFolder):
    request_reruns(pruned, pruned_trials(pruned)[:1])
    player = Player(open_controller(pruned, PRUNED))
    player.play(
        player.controller.next_job(), num_points=2
    )  # the first epoch, after which the rule would stop it, is committed
    play_all(pruned, PRUNED)
    assert states(pruned)[8:] == ["finished"]


def test_a_rerun_of_such_a_rerun_is_spared_too(pruned: SweepFolder):
    request_reruns(pruned, pruned_trials(pruned)[:1])
    play_all(pruned, PRUNED)
    request_reruns(pruned, [8])
    play_all(pruned, PRUNED)
    assert states(pruned)[8:] == ["finished", "finished"]


def test_where_one_of_several_cannot_be_tried_again_none_is(pruned: SweepFolder):
    with pytest.raises(InvalidInput, match="has no trial 99"):
        request_reruns(pruned, [0, 99])
    assert "reruns" not in pruned.header()
