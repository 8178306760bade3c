"""Exit codes of what runs: every trial failed, several sweeps of a script, single runs, supervision."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import pytest
from fabricated import SWEEP, Player
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.cli import running
from sweeplab.experiment import CleaningSweep, PretrainedVictim, SelectedTrial
from sweeplab.records import SweepRecord
from sweeplab.specs import ClusterLost, Failed, InvalidInput, StorageFault, Unfinished
from sweeplab.storage import files
from sweeplab.sweep import prepare, pretraining, retries, victims
from sweeplab.sweep import run as run_module
from sweeplab.sweep.session import Session
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.failures import Failure
from sweeplab.worker.jobs import DataDigests

pytestmark = pytest.mark.usefixtures("drawn")

RunScript = Callable[..., int]

DIVERGED = "FloatingPointError: the loss is not finite at step 3"


@pytest.fixture
def home(own_home: Path) -> Path:
    return own_home


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The error messages that were printed; none is a traceback."""
    text = capsys.readouterr().err
    assert "Traceback" not in text, text
    return [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]


def finished(home: Path, sweep: CleaningSweep, failing: set[int]) -> SweepFolder:
    """The ledger of a sweep that has run to its end, in which some trials failed after their start."""
    prepared = prepare.prepare(sweep, home)
    folder = fabricated.prepared_folder(home / "sweeps", prepared.sweep)
    folder.write_header(prepared.sweep, prepared.digest, prepared.contents)
    controller = fabricated.open_controller(folder, prepared.sweep)
    while (job := controller.next_job()) is not None:
        if job.number in failing:
            Player(controller).play(job, num_points=1)
            controller.failed(job.number, Failure(DIVERGED, True))
        else:
            Player(controller).play(job)
    return folder


# --- trials that failed


@pytest.mark.usefixtures("mlflow_is_there")
def test_a_sweep_whose_trials_all_failed_exits_with_1_and_a_reason(
    sweep: CleaningSweep, home: Path, run_script: RunScript, capsys: pytest.CaptureFixture[str]
):
    folder = finished(home, sweep, set(range(6)))
    assert run_script(["--inline"], sweep) == 1
    assert errors(capsys) == [
        f"made-up: every trial failed (6 of 6), the first with: {DIVERGED}; `sweeplab status made-up` lists the reasons"
    ]
    assert folder.page.exists()  # leaderboard and page are there all the same
    assert CliRunner().invoke(cli.app, ["resume", "made-up"]).exit_code == 1


def test_status_says_how_many_succeeded_and_its_json_stays_as_it_was(sweep: CleaningSweep, home: Path):
    finished(home, sweep, set(range(6)))
    told = CliRunner().invoke(cli.app, ["status", "made-up"])
    assert told.exit_code == 0
    assert told.stdout.startswith("made-up: finished, 0 of 6 succeeded\n  trials: 0 of 6 finished, 6 failed\n")
    status = json.loads(CliRunner().invoke(cli.app, ["status", "made-up", "--json"]).stdout)
    assert (status["state"], status["trials"]["failed"], status["trials"]["finished"]) == ("finished", 6, 0)


@pytest.mark.usefixtures("mlflow_is_there")
@pytest.mark.usefixtures("undrawn")
def test_a_sweep_of_which_some_trials_failed_exits_with_0_and_says_so_at_its_end(
    sweep: CleaningSweep, home: Path, run_script: RunScript, capsys: pytest.CaptureFixture[str]
):
    finished(home, sweep, {0, 3})
    assert run_script(["--inline"], sweep) == 0
    *_, end, _home = capsys.readouterr().out.splitlines()
    assert end == "made-up: finished, 4 of 6 succeeded; 2 failed, and `sweeplab status made-up` says why"


@pytest.mark.usefixtures("mlflow_is_there")
@pytest.mark.usefixtures("undrawn")
def test_trials_that_a_rule_stopped_succeeded(sweep: CleaningSweep, home: Path, run_script: RunScript):
    stopping = sweep.replace(
        search=sweep.search.replace(pruning={"rules": [{"kind": "backdoor-stays", "after_epochs": 1}]})
    )
    folder = finished(home, stopping, {0, 1, 2, 4, 5})
    folder.trial(3).path.joinpath("result.json").write_text('{"state": "pruned", "reason": "the backdoor stays"}')
    assert run_script(["--inline"], stopping) == 0


@pytest.mark.usefixtures("mlflow_is_there")
def test_a_sweep_that_starts_from_the_best_trial_of_one_whose_trials_all_failed_fails_too(
    sweep: CleaningSweep, home: Path, run_script: RunScript, capsys: pytest.CaptureFixture[str]
):
    starts = sweep.replace(name="starts")
    finished(home, starts, set(range(6)))
    outer = sweep.replace(name="outer", victim=SelectedTrial(name="best", sweep=starts))
    assert run_script(["--inline"], outer) == 1
    (message,) = errors(capsys)
    assert message.startswith("outer has no trial to start from: starts: every trial failed (6 of 6), the first with: ")
    assert run_script(["--inline"], starts, outer) == 1
    assert len(errors(capsys)) == 2


def test_a_failed_trial_is_no_start_though_an_epoch_of_it_was_the_best(sweep: CleaningSweep, home: Path):
    """Trial 0 is cleaned at 60 % before it fails, and keeps no weights; of the others, trial 1 ranks first."""
    starts = sweep.replace(name="starts", search=sweep.search.replace(trials=2, startup_trials=0))
    folder = fabricated.prepared_folder(home / "sweeps", starts)
    controller = fabricated.open_controller(folder, starts)
    Player(controller, lambda params, index: (60, 0)).play(controller.next_job(), num_points=2)
    controller.failed(0, Failure(DIVERGED, True))
    Player(controller, lambda params, index: (50, 0)).play(controller.next_job())
    outer = sweep.replace(name="outer", victim=SelectedTrial(name="best", sweep=starts))
    outer_folder = SweepFolder(home / "sweeps" / "outer")
    victim = victims.victim_of(outer).ensure("1" * 16, DataDigests(), outer_folder, Session(home))
    assert Path(victim.checkpoint).parent == folder.trial(1).checkpoints


def test_five_trials_that_fail_alike_and_are_all_there_are_end_the_sweep_as_failed(
    sweep: CleaningSweep, home: Path, monkeypatch: pytest.MonkeyPatch
):
    """With more to come it would be exit code 2: nothing more is begun."""
    five = sweep.replace(search=sweep.search.replace(trials=5))
    folder = fabricated.prepared_folder(home / "sweeps", five)
    controller = fabricated.open_controller(folder, five)
    for number in range(5):
        controller.next_job()
        controller.failed(number, Failure("ValueError: no", True))
    assert controller.fault is None
    assert controller.is_complete()
    with pytest.raises(Failed, match=r"every trial failed \(5 of 5\), the first with: ValueError: no"):
        run_module.check_some_succeeded(folder.record())


# --- single runs


@pytest.mark.usefixtures("mlflow_is_there")
def test_a_single_setting_that_diverges_exits_with_1_and_its_reason(
    sweep: CleaningSweep, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "script.py").write_text(
        "from sweeplab.experiment import CleaningSweep\n"
        f"SWEEP = CleaningSweep.model_validate_json({sweep.model_dump_json()!r})\n"
    )
    ran = CliRunner().invoke(cli.app, ["clean", str(tmp_path / "script.py"), "learning_rate=1e30", "--inline"])
    assert ran.exit_code == 1, ran.output
    (message,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert message.startswith("error: made-up-single-")
    assert "its trial failed: FloatingPointError: " in message
    assert "Traceback" not in ran.stderr


def diverging(sweep: CleaningSweep) -> CleaningSweep:
    """The same with a victim whose pre-training diverges at once."""
    victim = PretrainedVictim(
        name="diverging",
        architecture=sweep.victim.architecture,
        data=sweep.data,
        poisoning={"attack": {"kind": "badnet", "patch_size": 4}, "rate": 0.25},
        optimization=sweep.optimization.replace(learning_rate=1e30),
        epochs=2,
        evaluation=sweep.evaluation,
    )
    return sweep.replace(victim=victim)


def test_pre_training_that_diverges_exits_with_1_and_its_reason(sweep: CleaningSweep, home: Path, tmp_path: Path):
    (tmp_path / "script.py").write_text(
        "from sweeplab.experiment import CleaningSweep\n"
        f"SWEEP = CleaningSweep.model_validate_json({diverging(sweep).model_dump_json()!r})\n"
    )
    ran = CliRunner().invoke(cli.app, ["pretrain", str(tmp_path / "script.py"), "--inline"])
    assert ran.exit_code == 1, ran.output
    assert ran.stderr.startswith("error: pre-training victim diverging failed: FloatingPointError: ")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("failure", "error", "match"),
    [
        (Failure("FloatingPointError: no", True), Failed, "failed: FloatingPointError: no"),
        (Failure("InvalidInput: no", True, "input"), InvalidInput, "failed: InvalidInput: no"),
        (Failure("StorageFault: full", False, "storage"), StorageFault, "full"),
        (Failure("its process died", False), Failed, r"failed: its process died \(3 attempts\)"),
    ],
    ids=["wrong value", "bad input", "full disk", "given up"],
)
def test_how_pre_training_ends(
    failure: Failure,
    error: type[Exception],
    match: str,
    sweep: CleaningSweep,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(controller: pretraining.VictimController, *arguments: Any, **named: Any) -> None:
        """Each attempt fails."""
        while not controller.is_done():
            if (job := controller.next_job()) is not None:
                controller.failed(job.number, failure)

    monkeypatch.setattr(pretraining, "run_in_pool", fail)
    monkeypatch.setattr(retries, "BACKOFF_SECONDS", (0.0, 0.01))
    with pytest.raises(error, match=match):
        pretraining.pretrain_victim(diverging(sweep).victim, "1" * 16, Session(home, reads=[sweep.data]))


# --- a disk that fails in the middle


@pytest.mark.usefixtures("mlflow_is_there")
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_home_that_takes_no_writes_any_more_is_told_in_one_message(
    number: int,
    sweep: CleaningSweep,
    home: Path,
    run_script: RunScript,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The end of the work writes and removes files too: none of that hides the reason, and nothing is lost."""
    prepared = prepare.prepare(sweep, home)
    folder = fabricated.prepared_folder(home / "sweeps", prepared.sweep)
    folder.write_header(prepared.sweep, prepared.digest, prepared.contents)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError(number, os.strerror(number))

    def turn_read_only(controller: Any) -> None:
        monkeypatch.setattr(files, "open_private", refuse)
        monkeypatch.setattr(files, "PATIENCE_SECONDS", ())
        monkeypatch.setattr(Path, "unlink", refuse)
        controller.next_job()

    monkeypatch.setattr(run_module, "run_inline", turn_read_only)
    assert run_script(["--inline"], sweep) == 75
    (message,) = errors(capsys)
    assert os.strerror(number) in message
    assert "then run the same command again" in message
    monkeypatch.undo()
    assert folder.trial_numbers() == []
    assert not folder.is_locked()


# --- several sweeps


ENDS: dict[str, tuple[BaseException | None, int]] = {
    "done": (None, 0),
    "defect": (RuntimeError("a defect"), 1),
    "failed": (Failed("every trial failed"), 1),
    "refused": (InvalidInput("another spec"), 2),
    "unfinished": (Unfinished("the cluster is gone"), 75),
    "full disk": (StorageFault("no space"), 75),
}
LOST = {"lost": (ClusterLost("this command's Ray node (its raylet) died"), 75)}
"""Ends the command: a process whose Ray cluster is lost cannot use another one."""


@pytest.fixture(scope="module")
def finished_record(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    return fabricated.finished_sweep(tmp_path_factory.mktemp("finished")).record()


@pytest.fixture
def played(
    home: Path, finished_record: SweepRecord, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, list[str]]]:
    """Runs sweeps whose names say how they end; exit code and the names of those that had their turn."""
    begun: list[str] = []

    def run_sweep(sweep: CleaningSweep, *arguments: Any) -> SweepRecord:
        begun.append(sweep.name)
        error, _ = {**ENDS, **LOST}.get(sweep.name.rstrip("-0123456789").replace("-", " "), (KeyboardInterrupt(), 75))
        if error is not None:
            raise error
        return finished_record

    monkeypatch.setattr(run_module, "run_sweep", run_sweep)
    monkeypatch.setattr(running, "show_results", lambda *arguments: None)

    def run(*ends: str) -> tuple[int, list[str]]:
        begun.clear()
        sweeps = [named(f"{end.replace(' ', '-')}-{number}") for number, end in enumerate(ends)]
        return run_script([], *sweeps), [name.rpartition("-")[0].replace("-", " ") for name in begun]

    return run


def named(name: str) -> CleaningSweep:
    """A sweep whose inputs are all there."""
    return SWEEP.replace(name=name, victim=SWEEP.victim.replace(path=Path(__file__)))


@pytest.mark.parametrize("first", ENDS)
def test_the_sweeps_after_one_that_fails_in_any_way_still_run(first: str, played):
    assert played(first, "done") == (ENDS[first][1], [first, "done"])


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (("unfinished", "failed", "refused", "done"), 2),
        (("refused", "unfinished"), 2),
        (("failed", "unfinished"), 1),
        (("unfinished", "defect"), 1),
        (("unfinished", "done"), 75),
        (("done", "done"), 0),
    ],
)
def test_the_worst_exit_code_counts_2_over_1_over_75(ends: tuple[str, ...], code: int, played):
    assert played(*ends) == (code, list(ends))


@pytest.mark.parametrize(
    ("ends", "code"),
    [(("done", "signal", "done"), 75), (("failed", "signal", "done"), 1), (("refused", "signal", "done"), 2)],
)
def test_a_signal_ends_all_sweeps_with_75_unless_something_worse_happened_before(
    ends: tuple[str, ...], code: int, played, capsys: pytest.CaptureFixture[str]
):
    assert played(*ends) == (code, list(ends[:2]))
    assert errors(capsys)[-1] == "interrupted; everything so far is kept, and the same command goes on"


@pytest.mark.parametrize(
    ("ends", "begun", "code"),
    [
        (("lost", "done"), 1, 75),
        (("done", "lost", "done", "failed"), 2, 75),
        (("failed", "lost", "done"), 2, 1),
        (("refused", "lost", "done"), 2, 2),
        (("done", "lost"), 2, 75),
    ],
)
def test_no_sweep_is_begun_after_the_cluster_was_lost(ends: tuple[str, ...], begun: int, code: int, played):
    assert played(*ends) == (code, list(ends[:begun]))


def test_the_sweeps_that_a_lost_cluster_leaves_unbegun_are_named_in_one_line(
    played, capsys: pytest.CaptureFixture[str]
):
    played("lost", "done", "failed")
    said = capsys.readouterr()
    assert "lost-0 ended with exit code 75; the Ray cluster is lost, so not begun: done-1, failed-2" in said.out
    assert said.err == "error: this command's Ray node (its raylet) died\n"


def test_a_supervised_command_asks_to_be_started_again_after_the_cluster_was_lost(
    played, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SWEEPLAB_SUPERVISED", "1")
    assert played("failed", "lost", "done") == (75, ["failed", "lost"])


def test_what_is_run_next_is_said(played, capsys: pytest.CaptureFixture[str]):
    played("failed", "done", "refused")
    said = capsys.readouterr().out.splitlines()
    assert "failed-0 ended with exit code 1; going on with done-1" in said
    assert sum("going on with" in line for line in said) == 1


def test_a_supervised_command_asks_to_be_started_again_while_a_sweep_can_go_on(played, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWEEPLAB_SUPERVISED", "1")
    assert played("refused", "failed", "unfinished")[0] == 75
    assert played("refused", "failed", "done")[0] == 2
    assert played("failed", "signal")[0] == 1


def test_a_sweep_whose_inputs_are_missing_keeps_the_others_from_nothing(
    home: Path,
    finished_record: SweepRecord,
    run_script: RunScript,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    ran: list[str] = []

    def run_sweep(sweep: CleaningSweep, *arguments: Any) -> SweepRecord:
        ran.append(sweep.name)
        return finished_record

    monkeypatch.setattr(run_module, "run_sweep", run_sweep)
    monkeypatch.setattr(running, "show_results", lambda *arguments: None)
    lacking = SWEEP.replace(name="lacking", victim=SWEEP.victim.replace(path=tmp_path / "gone.pt"))
    assert run_script([], lacking, named("whole"), lacking.replace(name="lacking-too")) == 2
    assert ran == ["whole"]
    (message,) = errors(capsys)
    assert message == "missing inputs (1):"


def test_a_plan_of_several_sweeps_goes_on_past_one_that_is_refused(
    sweep: CleaningSweep, home: Path, run_script: RunScript, capsys: pytest.CaptureFixture[str]
):
    bad = sweep.replace(name="bad", optimization=sweep.optimization.replace(warmup_steps=10_000))
    assert run_script(["--plan"], bad, sweep) == 2
    told = capsys.readouterr()
    assert "made-up: 6 trials of 2 epochs on 64 pairs" in told.out
    assert told.err.count("error: ") == 1
