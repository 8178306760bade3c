"""What is looked at before anything runs on several nodes: every storage that will be written, victims' too."""

import signal
from pathlib import Path
from typing import Any

import pytest

from sweeplab.experiment import CleaningSweep, ClosestTo, PretrainedVictim
from sweeplab.orchestration import driver
from sweeplab.orchestration.driver import Prepared, make_ready_nodes, with_shared_storage, workplace
from sweeplab.orchestration.ledger import victim_folder
from sweeplab.orchestration.watch import Interrupted


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The storages that nodes were asked for."""
    found: list[list[str]] = []

    def check(sources: Any, storages: list[str]) -> list[str]:
        found.append(storages)
        return []

    monkeypatch.setattr(driver, "check_nodes", check)
    return found


def stored_at(spec: Any, storage: str) -> Any:
    return spec.replace(resources=spec.resources.replace(storage=storage))


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
    make_ready_nodes(prepared, tmp_path, print)
    make_ready_nodes(prepared, tmp_path, print, runs_trials=False)
    run = victim_folder(tmp_path, victim, "1")
    run.path.mkdir(parents=True)
    run.finish({"state": "finished"})
    make_ready_nodes(prepared, tmp_path, print)
    assert asked == [["/own", "/store"], ["/own"], ["/store"]]


def test_without_a_storage_it_is_the_home_for_both(smoke: CleaningSweep, asked: list[list[str]], tmp_path: Path):
    make_ready_nodes(_prepared(smoke), tmp_path, print)
    assert asked == [[str(tmp_path)]]


def test_a_sigterm_that_rays_own_handler_takes_is_an_interruption(smoke: CleaningSweep):
    with pytest.raises(Interrupted, match="SIGTERM"), workplace(smoke, inline=True):
        raise SystemExit(int(signal.SIGTERM))
    with pytest.raises(SystemExit), workplace(smoke, inline=True):
        raise SystemExit(3)
