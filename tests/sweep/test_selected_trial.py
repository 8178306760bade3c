"""A victim that is another sweep's selected trial, over made-up ledgers."""

from collections.abc import Callable
from pathlib import Path

import fabricated
import pytest
from fabricated import SWEEP, Player, Rates

from sweeplab.commands.logs import request_reruns
from sweeplab.experiment import CleaningSweep, SelectedTrial
from sweeplab.specs import InvalidInput
from sweeplab.sweep import victims
from sweeplab.sweep.session import Session
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.jobs import DataDigests


def starts_in(home: Path, rates: Rates, ceiling: float = 0.15) -> CleaningSweep:
    """A finished sweep `starts` with these rates; returns the one that cleans its best trial."""
    starts = SWEEP.replace(name="starts", search=SWEEP.search.replace(asr_ceiling=ceiling))
    folder = fabricated.prepared_folder(home / "sweeps", starts)
    Player(fabricated.open_controller(folder, starts), rates).play_all()
    return SWEEP.replace(name="outer", victim=SelectedTrial(name="selected", sweep=starts))


def selected(sweep: CleaningSweep, home: Path) -> tuple[victims.Victim, SweepFolder]:
    folder = SweepFolder(home / "sweeps" / sweep.name)
    return victims.victim_of(sweep).ensure("1" * 16, DataDigests(), folder, Session(home)), folder


def one_in_the_middle(params: dict[str, float], index: int) -> tuple[int, int]:
    """Epoch 1 has ASR 11 / 80 = 13.75 % and accuracy 70 %, epoch 2 has 0 % and 50 %; the start is never below."""
    return ((90, 79), (70, 11), (50, 0))[index]


def test_the_most_accurate_point_below_the_other_sweeps_ceiling_is_taken(tmp_path: Path, news: Callable[[], list[str]]):
    victim, folder = selected(starts_in(tmp_path, one_in_the_middle), tmp_path)
    starts = SweepFolder(tmp_path / "sweeps" / "starts")
    assert Path(victim.checkpoint).parent == starts.trial(0).checkpoints
    assert Path(victim.checkpoint).stem.endswith("epoch-0001")
    assert not victim.is_start
    assert "trials start from trial 0 of starts, epoch 1: accuracy 70.0 %, ASR 13.8 %" in news()[-1]
    # Retention is relative to the victim behind it: 90 % accuracy, 79 of 80 images.
    assert folder.victim_point() == starts.victim_point()
    assert (victim.measurement.accuracy, victim.measurement.asr_k) == (0.9, 79)


def test_a_lower_ceiling_takes_a_later_epoch(tmp_path: Path):
    victim, _ = selected(starts_in(tmp_path, one_in_the_middle, ceiling=0.05), tmp_path)
    assert Path(victim.checkpoint).stem.endswith("epoch-0002")


def test_no_trial_below_the_ceiling_is_no_victim(tmp_path: Path):
    sweep = starts_in(tmp_path, lambda params, index: (90, 40))
    with pytest.raises(InvalidInput, match=r"no trial of starts lies below its ASR ceiling of 15 % \(the lowest ASR"):
        selected(sweep, tmp_path)


def test_weights_that_are_gone_are_missed(tmp_path: Path):
    sweep = starts_in(tmp_path, one_in_the_middle)
    for path in (tmp_path / "sweeps" / "starts").rglob("*.pt"):
        path.unlink()
    with pytest.raises(InvalidInput, match="the weights of trial 0 of starts are gone; run that sweep anew"):
        selected(sweep, tmp_path)


def test_of_equally_accurate_trials_the_weights_of_the_leaderboards_first_stay(tmp_path: Path):
    """All trials end at 80 %; the last one has the lowest ASR, and is kept where only one is."""
    starts = SWEEP.replace(name="starts", resources=SWEEP.resources.replace(keep_checkpoints=1))
    folder = fabricated.prepared_folder(tmp_path / "sweeps", starts)
    controller = fabricated.open_controller(folder, starts)
    numbers: list[int] = []
    while (job := controller.next_job()) is not None:
        numbers.append(job.number)
        hits = 3 if job.number < 2 else 1
        Player(controller, lambda params, index, hits=hits: (80, hits) if index else (90, 79)).play(job)
    kept = {path.parents[1].name for path in folder.path.rglob("*.pt")}
    assert kept == {"0002"}


def test_a_sweep_that_was_begun_keeps_its_start_when_a_rerun_is_better(tmp_path: Path, news: Callable[[], list[str]]):
    sweep = starts_in(tmp_path, one_in_the_middle)
    first, _ = selected(sweep, tmp_path)
    starts = SweepFolder(tmp_path / "sweeps" / "starts")
    request_reruns(starts, [3])
    controller = fabricated.open_controller(starts, sweep.victim.sweep)
    Player(controller, lambda params, index: ((90, 79), (85, 1), (50, 0))[index]).play_all()
    told = len(news())
    again, _ = selected(sweep, tmp_path)
    assert again == first
    assert news()[told].startswith(
        "note: trial 6 of starts is now better. outer keeps starting from trial 0; --fresh switches"
    )
    fresh, _ = selected(sweep.replace(name="another"), tmp_path)
    assert Path(fresh.checkpoint).parent == starts.trial(6).checkpoints
