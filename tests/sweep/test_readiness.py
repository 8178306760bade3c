"""What is looked at before anything runs on several nodes: every storage that will be written, victims' too."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import fabricated
import pytest

from sweeplab.experiment import CleaningSweep, ClosestTo, PretrainedVictim
from sweeplab.specs import InvalidInput, StorageFault
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.node_cache import local_copy
from sweeplab.storage.run_folder import RunFolder
from sweeplab.sweep import pretraining, readiness
from sweeplab.sweep import run as run_module
from sweeplab.sweep.prepare import Prepared, with_shared_storage
from sweeplab.sweep.readiness import make_ready_nodes
from sweeplab.sweep.session import Session
from sweeplab.sweep.trial_storage import check_storage_of_trial
from sweeplab.sweep_folder import SweepFolder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The storages that nodes were asked for."""
    found: list[list[str]] = []

    def check(sources: Any, storages: list[str]) -> list[str]:
        found.append(storages)
        return []

    monkeypatch.setattr(readiness, "check_nodes", check)
    return found


def stored_at(spec: Any, storage: str) -> Any:
    return spec.replace(resources=spec.resources.replace(storage=storage))


def name_of(index: int) -> str:
    return f"attempt-1-epoch-{index:04d}.pt"


def commit_epochs(run: RunFolder, epochs: int) -> None:
    """The start and so many epochs, each with its checkpoint."""
    for index in range(epochs + 1):
        point = fabricated.point(index, 90, 79, checkpoint=name_of(index) if index else None)
        run.commit(point, fabricated.outcomes(point.measurement))
        run.claim_storage()
        (Path(run.storage.location) / name_of(index)).write_bytes(b"weights")


def _prepared(sweep: CleaningSweep) -> Prepared:
    names = Prepared.__dataclass_fields__
    values: dict[str, Any] = dict.fromkeys(names, 0)
    return Prepared(**{**values, "sweep": sweep, "digest": "0", "contents": {}, "victim_digest": "1"})


def test_a_victim_is_stored_where_its_sweep_is_unless_it_says_otherwise(smoke: CleaningSweep):
    assert with_shared_storage(smoke) is smoke
    victim = smoke.victim
    assert isinstance(victim, PretrainedVictim)
    other = victim.replace(name="other")
    sweep = stored_at(smoke.replace(victim=victim.replace(select=ClosestTo(victim=other))), "/store")
    shared = with_shared_storage(sweep).victim
    assert isinstance(shared, PretrainedVictim)
    assert isinstance(shared.select, ClosestTo)
    assert shared.select.victim is not None
    assert (shared.resources.storage, shared.select.victim.resources.storage) == ("/store", "/store")
    assert shared.digest() == sweep.victim.digest()
    own = stored_at(smoke.replace(victim=stored_at(victim, "/own")), "/store")
    assert with_shared_storage(own).victim.resources.storage == "/own"


def test_nodes_are_asked_for_the_victims_storage_too_while_it_is_to_be_trained(
    smoke: CleaningSweep, asked: list[list[str]], tmp_path: Path
):
    victim = stored_at(smoke.victim, "/own")
    prepared = _prepared(stored_at(smoke.replace(victim=victim), "/store"))
    make_ready_nodes(prepared, Session(tmp_path), runs_trials=True)
    make_ready_nodes(prepared, Session(tmp_path), runs_trials=False)
    run = pretraining.victim_folder(tmp_path, victim, "1")
    run.checkpoints.mkdir(parents=True)
    commit_epochs(run, victim.epochs)
    run.finish({"state": "finished"})
    make_ready_nodes(prepared, Session(tmp_path), runs_trials=True)
    for path in run.checkpoints.iterdir():  # it will be trained again
        path.unlink()
    make_ready_nodes(prepared, Session(tmp_path), runs_trials=True)
    assert asked == [
        ["/own", "/store"],
        ["/own"],
        ["/store"],
        ["/own", "/store"],
    ]


def test_without_a_storage_it_is_the_home_for_both(smoke: CleaningSweep, asked: list[list[str]], tmp_path: Path):
    make_ready_nodes(_prepared(smoke), Session(tmp_path), runs_trials=True)
    assert asked == [[str(tmp_path)]]


# --- storages that cannot be written any more


def begun(folder: SweepFolder, storage: Path | None) -> RunFolder:
    """Trial 0 with two points whose checkpoints are in a storage, or were."""
    location = str(storage / "sweeps" / "made-up-1" / "0000") if storage else None
    folder.write_trial(0, {}, configuration="c", seed=0, start_counts=True, storage=location)
    run = folder.trial(0)
    run.claim_storage()
    for index in (0, 1, 2):
        point = fabricated.point(index, 90, 79, checkpoint=name_of(index) if index else None)
        run.commit(point, fabricated.outcomes(point.measurement))
    return run


def test_a_trial_whose_storage_is_gone_is_refused_with_what_to_do_by_hand(folder: SweepFolder, tmp_path: Path):
    gone = tmp_path / "gone"
    run = begun(folder, gone)
    shutil.rmtree(gone)
    with pytest.raises(
        InvalidInput, match=f"trial 0: its checkpoints lie in {gone}/.* copy them by hand into {run.path}"
    ):
        check_storage_of_trial(fabricated.SWEEP, folder, 0, folder.trial(0))
    folder.trial(0).path.joinpath("trial.json").write_text(json.dumps({**folder.trial_header(0), "storage": None}))
    check_storage_of_trial(fabricated.SWEEP, folder, 0, folder.trial(0))


def test_a_trial_stays_in_the_storage_that_it_began_in(folder: SweepFolder, tmp_path: Path):
    run = begun(folder, tmp_path / "store")
    check_storage_of_trial(stored_at(fabricated.SWEEP, str(tmp_path / "other")), folder, 0, run)


def test_a_begun_sweep_keeps_its_storage(folder: SweepFolder, tmp_path: Path):
    fabricated.open_controller(folder).next_job()  # before its first trial it has no checkpoints
    sweep = stored_at(fabricated.SWEEP, str(tmp_path / "other"))
    before = (folder.path / "sweep.json").read_bytes()
    with pytest.raises(InvalidInput, match=r"sweep made-up was begun with its checkpoints in the home and keeps them"):
        run_module._run_what_is_left(_prepared(sweep), folder, tmp_path, run_module.Options(inline=True))
    assert (folder.path / "sweep.json").read_bytes() == before


def test_a_storage_that_cannot_be_written_leaves_the_sweeps_spec_as_it_was(tmp_path: Path):
    (tmp_path / "file").write_text("")
    sweep = stored_at(fabricated.SWEEP, str(tmp_path / "file"))
    folder = SweepFolder(tmp_path / "sweeps" / sweep.name)
    with pytest.raises(InvalidInput, match=r"resources\.storage='.*/file' cannot be written"):
        run_module._run_what_is_left(_prepared(sweep), folder, tmp_path, run_module.Options(inline=True))
    assert not folder.exists()


def test_a_folder_that_a_node_does_not_see_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sweeplab.storage.checkpoint_store.FOLDER_PAUSES", (0.0, 0.0))
    Storage(tmp_path).wait_for_folder()
    with pytest.raises(StorageFault, match=f"node .* does not see {tmp_path}/none, which the driver has made"):
        Storage(tmp_path / "none").wait_for_folder()


def test_a_full_disk_is_a_fault_that_passes_and_no_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageFault, match="No space left on device"):
        Storage(tmp_path).check_writable()


def test_a_trained_victim_whose_history_lost_points_is_not_trained_anew(smoke: CleaningSweep, tmp_path: Path):
    """It may have cost days; one that is still being trained goes on from what is left."""
    assert isinstance(smoke.victim, PretrainedVictim)
    victim, run = smoke.victim.replace(epochs=2), RunFolder(tmp_path / "victim")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "victim.json").write_text("{}")
    commit_epochs(run, 2)
    history = run.path / "history.jsonl"
    whole = history.read_text()
    history.write_text("".join(whole.splitlines(keepends=True)[:2]))
    assert not pretraining.is_trained(victim, RunFolder(run.path))
    history.write_text(whole)
    RunFolder(run.path).finish({"state": "finished"})
    history.write_text("".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(InvalidInput, match=r"history\.jsonl is damaged: 1 of 3 points of victim .* restore it"):
        pretraining.is_trained(victim, RunFolder(run.path))


@pytest.mark.parametrize("select", ["last", "most accurate", 2])
def test_a_victim_that_is_being_trained_again_is_not_there(smoke: CleaningSweep, tmp_path: Path, select: Any):
    victim = smoke.victim
    assert isinstance(victim, PretrainedVictim)
    victim = victim.replace(select=select, epochs=2)
    run = RunFolder(tmp_path / "victim")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "victim.json").write_text("{}")
    assert not pretraining.is_trained(victim, run)
    commit_epochs(run, 2)
    run.finish({"state": "finished"})
    assert pretraining.is_trained(victim, run)
    for index in (1, 2):
        (run.checkpoints / name_of(index)).unlink()
    assert not pretraining.is_trained(victim, run)
    assert run.rewind() == 2
    for _ in range(2):  # a kill before and after its first epoch
        again = RunFolder(tmp_path / "victim")
        assert again.result() is None
        assert not pretraining.is_trained(victim, again)
        again.finish({"state": "finished"})  # what an earlier version left
        assert not pretraining.is_trained(victim, again)
        commit_epochs(again, 1)
        (tmp_path / "victim" / "result.json").unlink()


def test_a_victim_whose_object_store_is_gone_is_trained_where_the_spec_says_now(
    smoke: CleaningSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    victim = stored_at(smoke.victim, "s3://gone")
    run = RunFolder(tmp_path / "victim")
    commit_epochs(run, victim.epochs)
    run.finish({"state": "finished"})
    location = pretraining.storage_of_victim(victim, run)
    (tmp_path / "victim" / "victim.json").write_text(json.dumps({"storage": location}))

    def gone(storage: Storage, name: str) -> bool:
        raise StorageFault(f"{storage.location} does not answer")

    monkeypatch.setattr(Storage, "exists", gone)
    run = RunFolder(tmp_path / "victim")
    with pytest.raises(StorageFault, match="s3://gone/victims/victim does not answer"):
        pretraining.is_trained(victim, run)
    assert not pretraining.is_trained(stored_at(victim, "s3://other"), run)


def test_a_copy_from_an_object_store_is_told_from_others(tmp_path: Path):
    with pytest.raises(ValueError, match="needs to be told from others"):
        local_copy("s3://b/victim.pt", "", None)
