"""The cluster: folders that killed drivers leave, and nodes that do not see what they need."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeplab.orchestration import cluster
from sweeplab.orchestration.cluster import FOLDER_PREFIX, OWNER, check_nodes, remove_abandoned_folders
from sweeplab.orchestration.remote import missing_here
from sweeplab.specs import InvalidInput


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_folders_of_dead_processes_are_removed_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name, owner in (("dead", str(dead.pid)), ("alive", str(os.getpid())), ("unknown", "not a number")):
        (tmp_path / f"{FOLDER_PREFIX}{name}").mkdir()
        (tmp_path / f"{FOLDER_PREFIX}{name}" / OWNER).write_text(owner)
    (tmp_path / f"{FOLDER_PREFIX}bare").mkdir()
    remove_abandoned_folders()
    left = sorted(path.name.removeprefix(FOLDER_PREFIX) for path in tmp_path.iterdir())
    assert left == ["alive", "bare", "unknown"]


# --- what every node has to see


def test_a_node_names_what_it_does_not_see(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mark").write_text("seen")
    paths, store = [str(tmp_path / "data"), str(tmp_path / "gone")], str(tmp_path / "store")
    assert missing_here(paths, store, "mark")[1] == [str(tmp_path / "gone")]
    assert missing_here(paths[:1], store, "other mark")[1] == [store]
    assert missing_here([], f"file://{store}", "mark")[1] == []


class Answers:
    """Stands in for Ray: two nodes, whose task gives what a function of the node's number says; None is no answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, says: Callable[[int, str, str], Any]) -> None:
        import ray

        self.nodes = [{"NodeID": f"{n}{'a' * 20}", "NodeManagerHostname": f"host-{n}", "Alive": True} for n in (1, 2)]
        self.says, self.mark = says, ""
        monkeypatch.setattr(ray, "nodes", lambda: self.nodes)
        monkeypatch.setattr(ray, "remote", lambda **options: lambda function: self)
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "get", self.get)
        monkeypatch.setattr("ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy", lambda node, soft: node)
        monkeypatch.setattr(cluster, "NODE_SECONDS", 0.5)

    def options(self, *, scheduling_strategy: str) -> "Answers":
        self.asked = int(scheduling_strategy[0])
        return self

    def remote(self, paths: list[str], storage: str, mark: str) -> tuple[int, Any]:
        return self.asked, repr(self.says(self.asked, storage, mark))

    def wait(self, asked: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return [a for a in asked if a[1] != "None"], [a for a in asked if a[1] == "None"]

    def get(self, answer: tuple[int, str]) -> Any:
        return f"host-{answer[0]}", eval(answer[1])


def test_a_cluster_whose_nodes_all_see_the_storage_passes_and_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Answers(monkeypatch, lambda node, storage, mark: missing_here([], storage, mark)[1])
    check_nodes([], str(tmp_path / "store"))
    assert list((tmp_path / "store").iterdir()) == []


def test_nodes_that_do_not_see_the_storage_or_do_not_answer_are_named_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = str(tmp_path / "store")
    Answers(monkeypatch, lambda node, storage, mark: [storage] if node == 1 else None)
    with pytest.raises(InvalidInput) as refusal:
        check_nodes([], store)
    assert str(refusal.value).splitlines() == [
        "not every node of the cluster can take part:",
        f"  node 1aaaaaaa (host-1) does not see {store}",
        "  node 2aaaaaaa did not answer within 0.5 s",
        "put data on a path that all nodes share, and set resources.storage to a shared folder, s3:// or gs://",
    ]
    assert list((tmp_path / "store").iterdir()) == []


def test_one_node_needs_no_shared_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answers = Answers(monkeypatch, lambda node, storage, mark: [storage])
    answers.nodes[1]["Alive"] = False
    check_nodes([], str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_storage_that_cannot_be_written_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Answers(monkeypatch, lambda node, storage, mark: [])
    (tmp_path / "store").write_text("a file")
    with pytest.raises(InvalidInput, match=r"resources\.storage='.*store' cannot be written"):
        check_nodes([], str(tmp_path / "store"))
