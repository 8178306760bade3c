"""The cluster: folders that killed drivers leave, and nodes that do not see what they need."""

import itertools
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated import run_on_ray

from sweeplab.execution import cluster, watchdog
from sweeplab.execution import nodes as nodes_module
from sweeplab.execution.nodes import check_nodes, missing_here
from sweeplab.experiment import Resources
from sweeplab.specs import ClusterLost, InvalidInput, StorageFault, Unfinished, file_digest
from sweeplab.storage import locks
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.locks import RAY_FOLDER, OwnFolder, abandoned_folders
from sweeplab.worker.input_paths import NO_PATHS, InputPaths


def test_folders_of_dead_processes_are_removed_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make = "import os; from sweeplab.storage.locks import OwnFolder; print(OwnFolder('sweeplab-ray-').path.name); "
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = [sys.executable, "-c", make + "os._exit(0)"]
    dead = subprocess.run(killed, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    alive = OwnFolder(RAY_FOLDER).path
    (tmp_path / f"{RAY_FOLDER}bare").mkdir()  # made anew by Ray's agents once all was over
    (tmp_path / f"{RAY_FOLDER}young").mkdir()
    (tmp_path / "another").mkdir()
    (tmp_path / f"{RAY_FOLDER}of-a-user").mkdir()
    (tmp_path / f"{RAY_FOLDER}of-a-user" / "thesis.txt").touch()
    assert {path.name for path in tmp_path.iterdir()} > {dead}
    for name in (dead, alive.name, f"{RAY_FOLDER}bare", "another", f"{RAY_FOLDER}of-a-user"):
        os.utime(tmp_path / name, (1, 1))
    assert {path.name for path in abandoned_folders(RAY_FOLDER)} == {dead, f"{RAY_FOLDER}bare"}
    OwnFolder(RAY_FOLDER).remove()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {alive.name, f"{RAY_FOLDER}young", "another", f"{RAY_FOLDER}of-a-user"}


# --- what every node has to see


def test_a_long_temporary_folder_is_no_place_for_sockets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", "/scratch/slurm/job-1234567/node-12")
    assert locks.ray_parent() == Path("/tmp")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InvalidInput, match=r"TMPDIR=/scratch/slurm.* has 34 bytes.* at most 21"):
        locks.ray_parent()


def test_a_process_that_may_not_use_all_cores_says_so_to_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert cluster.fewer_cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert cluster.fewer_cores() is None


def test_a_cluster_that_does_not_answer_is_named_at_once(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(InvalidInput, match=f"RAY_ADDRESS=127.0.0.1:{port} does not answer"):
        cluster._attach({})


def test_what_listens_and_is_no_ray_is_named_at_once(monkeypatch: pytest.MonkeyPatch):
    """Given such an address, Ray tries for minutes."""
    monkeypatch.setattr(socket.socket, "recv", lambda *arguments: b"HTTP/1.1 400 Bad Request")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InvalidInput, match=f"RAY_ADDRESS={address} does not answer as Ray does"):
            cluster._attach({})


@pytest.mark.parametrize(
    ("asked", "recorded", "message"),
    [
        ("auto", None, "RAY_ADDRESS=auto, and no cluster of `ray start` answers on this machine"),
        ("auto", "127.0.0.1:1", "RAY_ADDRESS=auto, and no cluster of `ray start` answers on this machine"),
        ("ray://127.0.0.1:10001", None, "is Ray Client's, through which no sweep runs"),
        ("127.0.0.1", None, "RAY_ADDRESS=127.0.0.1 does not answer as Ray does"),
        ("nohost.invalid:6379", None, "RAY_ADDRESS=nohost.invalid:6379 does not answer as Ray does"),
    ],
)
def test_an_address_at_which_no_cluster_is_says_what_to_do(
    asked: str, recorded: str | None, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", asked)
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda: recorded)
    with pytest.raises(InvalidInput, match=re.escape(message)):
        cluster._attach({})


def test_a_user_without_a_home_is_told_to_set_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with (
        pytest.raises(InvalidInput, match=r"has no home, .*; set HOME to a folder of yours"),
        cluster.ray_session(needs_train=False),
    ):
        pass


def test_a_cluster_that_is_gone_is_no_reason_to_start_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda: "127.0.0.1:1")
    assert not cluster._attach({})


def test_a_node_names_what_it_does_not_see(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mark").write_text("seen")
    store, input_paths = str(tmp_path / "store"), InputPaths({}, (str(tmp_path / "data"), str(tmp_path / "gone")))
    assert missing_here(input_paths, {}, [store], "mark")[1:] == ([str(tmp_path / "gone")], [])
    assert missing_here(NO_PATHS, {}, [store], "other mark")[1:] == ([], [f"does not see {store}"])
    assert missing_here(NO_PATHS, {}, [f"file://{store}"], "mark")[1:] == ([], [])


def test_a_node_without_credentials_is_named_with_what_the_store_answered(monkeypatch: pytest.MonkeyPatch):
    def denied(storage: Storage, name: str) -> bool:
        raise StorageFault(f"storage {storage.location} failed: ACCESS_DENIED")

    monkeypatch.setattr(Storage, "exists", denied)
    fault = "does not see s3://b (storage s3://b failed: ACCESS_DENIED)"
    assert missing_here(NO_PATHS, {}, ["s3://b"], "mark")[2] == [fault]


def test_a_node_names_files_that_are_not_those_of_the_driver(tmp_path: Path):
    pairs, test = tmp_path / "pairs.csv", tmp_path / "1.png"
    for path in (pairs, test):
        path.write_text(path.name)
    input_paths = InputPaths({}, (str(pairs), str(test)))
    digests = {str(path): file_digest(path) for path in (pairs, test)}
    assert missing_here(input_paths, digests, [], "mark")[2] == []
    pairs.write_text("pairs.CSV")
    assert missing_here(input_paths, digests, [], "mark")[2] == [f"has another {pairs}"]
    test.unlink()  # then it gets copies of all files
    assert missing_here(input_paths, digests, [], "mark")[1:] == ([str(test)], [])
    test.mkdir()
    assert missing_here(input_paths, digests, [], "mark")[2][1] == f"cannot read {test} (not a regular file)"


class Answers:
    """Stands in for Ray: two nodes, whose task gives what a function of the node's number says; None is no answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, says: Callable[[int, str, str], Any]) -> None:
        import ray

        self.nodes = [{"NodeID": f"{n}{'a' * 20}", "NodeManagerHostname": f"host-{n}", "Alive": True} for n in (1, 2)]
        self.says, self.blind = says, 0
        monkeypatch.setattr(ray, "nodes", lambda: self.nodes)
        monkeypatch.setattr(ray, "remote", lambda **options: lambda function: self)
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "get", self.get)
        monkeypatch.setattr("ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy", lambda node, soft: node)
        monkeypatch.setattr(nodes_module, "NODE_SECONDS", 0.5)

    def options(self, *, scheduling_strategy: str) -> "Answers":
        self.asked = int(scheduling_strategy[0])
        return self

    def remote(
        self, input_paths: InputPaths, digests: dict[str, str], storages: list[str], mark: str
    ) -> tuple[int, Any]:
        return self.asked, repr(self.says(self.asked, storages[0], mark))

    def wait(self, asked: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return [a for a in asked if a[1] != "None"], [a for a in asked if a[1] == "None"]

    def get(self, answer: tuple[int, str]) -> Any:
        return f"host-{answer[0]}", ["/data"] if answer[0] == self.blind else [], eval(answer[1])


def test_a_cluster_whose_nodes_all_see_the_storage_passes_and_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Answers(monkeypatch, lambda node, storage, mark: missing_here(NO_PATHS, {}, [storage], mark)[2])
    check_nodes(NO_PATHS, [str(tmp_path / "store")])
    assert list((tmp_path / "store").iterdir()) == []


def test_nodes_that_do_not_see_the_storage_are_named_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = str(tmp_path / "store")
    Answers(monkeypatch, lambda node, storage, mark: [f"does not see {storage}"])
    with pytest.raises(InvalidInput) as refusal:
        check_nodes(NO_PATHS, [store])
    assert str(refusal.value).splitlines() == [
        "not every node of the cluster can take part:",
        f"  node 1aaaaaaa (host-1) does not see {store}",
        f"  node 2aaaaaaa (host-2) does not see {store}",
        "resources.storage must be a folder that all nodes share, s3:// or gs://, with credentials in the "
        "environment of each node's `ray start` or on the node itself; a file must be identical on all nodes, or "
        "exist only here: it is then copied",
    ]
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("how", ["is late", "raises"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_a_node_that_does_not_answer_is_done_without_if_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str, is_lost: bool
):
    import ray

    answers = Answers(monkeypatch, lambda node, storage, mark: None if (node, how) == (2, "is late") else [])
    known = answers.get

    def get(answer: tuple[int, str]) -> Any:
        if (answer[0], how) == (2, "raises"):
            raise ray.exceptions.TaskUnschedulableError("its node is gone")
        return known(answer)

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(nodes_module, "LOST_SECONDS", 0.5)
    nodes, looks = answers.nodes, itertools.count()

    def now() -> list[Any]:  # the cluster notices the loss at the third look
        return [nodes[0], {**nodes[1], "Alive": not is_lost or next(looks) < 3}]

    monkeypatch.setattr(ray, "nodes", now)
    if is_lost:
        caplog.set_level("INFO")
        assert check_nodes(NO_PATHS, [str(tmp_path / "store")]) == []
        assert caplog.messages == ["  node 2aaaaaaa was lost meanwhile; going on without it"]
    else:
        with pytest.raises(Unfinished, match="node 2aaaaaaa did not say what it sees"):
            check_nodes(NO_PATHS, [str(tmp_path / "store")])


def test_nodes_that_do_not_see_the_data_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answers = Answers(monkeypatch, lambda node, storage, mark: [])
    assert check_nodes(NO_PATHS, [str(tmp_path / "store")]) == []
    answers.blind = 2
    assert check_nodes(NO_PATHS, [str(tmp_path / "store")]) == [f"2{'a' * 20}"]


def test_one_node_needs_no_shared_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    answers = Answers(monkeypatch, lambda node, storage, mark: [storage])
    answers.nodes[1]["Alive"] = False
    check_nodes(NO_PATHS, [str(tmp_path / "store")])
    assert not (tmp_path / "store").exists()


def test_a_storage_that_cannot_be_written_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Answers(monkeypatch, lambda node, storage, mark: [])
    (tmp_path / "store").write_text("a file")
    with pytest.raises(InvalidInput, match=r"resources\.storage='.*store' cannot be written"):
        check_nodes(NO_PATHS, [str(tmp_path / "store")])


def test_a_port_that_another_process_takes_while_ray_starts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ray

    def fail(**options: Any) -> None:
        host, _, port = os.environ["RAY_ADDRESS"].partition(":")
        taken.bind((host, int(port)))
        taken.listen()
        raise RuntimeError("Failed to start GCS.")

    monkeypatch.setattr(ray, "init", fail)
    with (
        socket.socket() as taken,
        pytest.raises(Unfinished, match=r"another process took 127\.0\.0\.1:\d+ just before"),
    ):
        cluster._start(str(tmp_path), {}, needs_train=False)
    monkeypatch.setattr(ray, "init", lambda **options: exec("raise RuntimeError('Failed to start GCS.')"))
    with pytest.raises(RuntimeError, match="Failed to start GCS"):
        cluster._start(str(tmp_path), {}, needs_train=False)


@pytest.mark.parametrize("error", [Unfinished("the mailbox's process died"), RuntimeError("no GCS")], ids=repr)
def test_an_error_of_a_session_whose_raylet_is_dead_is_the_clusters(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also one that was taken for something else, such as the death of the mailbox, which dies with its node."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cluster, "_attach", lambda quiet: True)
    monkeypatch.setattr(cluster, "_find_raylet", lambda: None)
    ended: list[threading.Event] = []
    monkeypatch.setattr(cluster, "_shut_down", ended.append)
    monkeypatch.setattr(cluster, "raylet_is_gone", lambda: False)
    monkeypatch.setattr(watchdog, "_under_way", set())
    with pytest.raises(type(error), match=str(error)), cluster.ray_session(needs_train=False):
        raise error
    assert (len(ended), watchdog.is_left_behind()) == (1, False)
    monkeypatch.setattr(cluster, "raylet_is_gone", lambda: True)
    with pytest.raises(ClusterLost, match="its raylet"), cluster.ray_session(needs_train=False):
        raise error
    # With its node gone, Ray's own goodbye would hang, or end the process with a code of its own.
    assert (len(ended), watchdog.is_left_behind()) == (1, True)


def test_a_session_in_which_work_is_left_behind_is_not_shut_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A thread that uses Ray while it is shut down has Ray end the process with 1."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cluster, "_attach", lambda quiet: True)
    monkeypatch.setattr(cluster, "_find_raylet", lambda: None)
    ended: list[threading.Event] = []
    monkeypatch.setattr(cluster, "_shut_down", ended.append)
    monkeypatch.setattr(watchdog, "_under_way", set())
    still_asks = threading.Event()

    def look() -> None:
        raise StorageFault("full")

    with pytest.raises(StorageFault, match="full"), cluster.ray_session(needs_train=False):
        watchdog.run_beside(still_asks.wait, look)
    assert ended == []
    still_asks.set()


# --- what finds room


class Nodes:
    """Stands in for a cluster of nodes with so many CPUs and GPUs each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *nodes: tuple[float, float]) -> None:
        import ray

        resources = [{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes]
        total = {word: sum(node[word] for node in resources) for word in ("CPU", "GPU")}
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in resources])
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)


@pytest.mark.parametrize(
    ("nodes", "resources", "trials"),
    [
        ([(8, 0)], {"cpus_per_worker": 2}, 4),
        ([(3, 0), (3, 0)], {"cpus_per_worker": 2}, 2),  # six CPUs hold three, two nodes of three hold two
        ([(4, 0), (4, 0)], {"workers": 4, "cpus_per_worker": 1}, 2),
        ([(16, 2)], {"gpus_per_worker": 0.4}, 4),  # two on each GPU, though 2 / 0.4 is five
        ([(16, 2)], {"gpus_per_worker": 0.6}, 2),
        ([(16, 2), (16, 1)], {"gpus_per_worker": 0.25}, 12),
        ([(4, 8)], {"gpus_per_worker": 1}, 4),
        ([(8, 0)], {"concurrent_trials": 3}, 3),
    ],
)
def test_trials_at_a_time_are_what_the_nodes_hold(
    nodes: list[tuple[float, float]], resources: dict[str, Any], trials: int, monkeypatch: pytest.MonkeyPatch
):
    Nodes(monkeypatch, *nodes)
    asked = Resources(**{"gpus_per_worker": 0, **resources})
    assert cluster.concurrent_trials(asked, cluster.resources_per_worker(asked)) == trials


@pytest.mark.parametrize(
    ("nodes", "resources", "cores"),
    [
        ([(16, 1)], {"gpus_per_worker": 1}, 16),
        ([(16, 1)], {"gpus_per_worker": 0.5}, 8),
        ([(64, 8)], {"gpus_per_worker": 1, "workers": 8}, 8),
        ([(64, 8)], {"gpus_per_worker": 1, "cpus_per_worker": 16}, 16),  # room for four
        ([(96, 4), (64, 8), (128, 0)], {"gpus_per_worker": 1}, 8),  # of the poorest node that has a GPU
    ],
)
def test_a_worker_has_its_share_of_the_nodes_cores(
    nodes: list[tuple[float, float]], resources: dict[str, Any], cores: int, monkeypatch: pytest.MonkeyPatch
):
    Nodes(monkeypatch, *nodes)
    assert cluster.share_of_cores(cluster.resources_per_worker(Resources(**resources))) == cores


@pytest.mark.parametrize(
    ("nodes", "resources", "message"),
    [
        ([(4, 0), (4, 0)], {"cpus_per_worker": 6}, "exceeds the 4 CPUs of the cluster's largest node"),
        ([(4, 0), (2, 0)], {"workers": 2, "cpus_per_worker": 3}, "find no room: the cluster's 2 nodes hold 1 of them"),
        ([(16, 2)], {"workers": 3, "gpus_per_worker": 0.6}, "find no room: the cluster's 1 nodes hold 2 of them"),
        ([(4, 0)], {"workers": 5}, "exceeds the cluster's 4 CPUs"),
    ],
)
def test_what_no_nodes_hold_is_refused(
    nodes: list[tuple[float, float]], resources: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    Nodes(monkeypatch, *nodes)
    asked = Resources(**{"gpus_per_worker": 0, **resources})
    with pytest.raises(InvalidInput, match=message):
        cluster.concurrent_trials(asked, cluster.resources_per_worker(asked))


@pytest.mark.slow
@pytest.mark.alone
def test_a_group_that_no_worker_lives_in_is_freed_at_the_second_look():
    """In a process of its own, with a real cluster."""
    program = """
from sweeplab.execution import cluster, watchdog

with cluster.ray_session(needs_train=True):
    import ray
    from ray.util.placement_group import placement_group, placement_group_table
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In

    @ray.remote(num_cpus=1)
    class Worker:
        def works(self):
            return True

    used, empty = (placement_group([{"CPU": 1}]) for _ in range(2))
    ray.get([used.ready(), empty.ready()])
    worker = Worker.options(scheduling_strategy=In(placement_group=used)).remote()
    assert ray.get(worker.works.remote())
    seen = cluster.free_abandoned_groups(set())
    assert seen == {empty.id.hex()}, seen
    assert placement_group_table(empty)["state"] == "CREATED"
    assert cluster.free_abandoned_groups(seen) == set()
    assert placement_group_table(empty)["state"] == "REMOVED"
    assert ray.get(worker.works.remote())
    print("freed")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900, env=environment)
    assert ran.stdout.strip().endswith("freed"), ran.stderr[-3000:]


def test_a_session_that_is_over_is_not_looked_after(monkeypatch: pytest.MonkeyPatch):
    """Else a question to Ray would begin a cluster of its own."""
    looks: list[set[str]] = []
    monkeypatch.setattr(cluster, "GROUP_SECONDS", 0.05)
    monkeypatch.setattr(cluster, "free_abandoned_groups", lambda seen: looks.append(seen) or seen)
    is_over = threading.Event()
    thread = threading.Thread(target=cluster._free_abandoned_groups, args=(is_over,))
    thread.start()
    while not looks:
        time.sleep(0.01)
    is_over.set()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.alone
def test_outside_a_session_nothing_begins_a_cluster():
    code = (
        "from sweeplab.execution.cluster import ray_session\n"
        "with ray_session(needs_train=False): pass\n"
        "import ray\n"
        "try: ray.get_runtime_context().get_node_id()\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print(ray.is_initialized())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.stdout.split()[-1:] == ["False"], done.stdout + done.stderr


SECRET = "planted-secret-7f3a"

PLANTED = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
import fabricated
from sweeplab.experiment import Resources
from sweeplab.execution import cluster, watchdog
from sweeplab.execution.controller import Workload
from sweeplab.execution.watchdog import Watchdog
from sweeplab.storage.locks import RAY_FOLDER, ray_parent

home = Path(sys.argv[1])
seen = home / "seen"
home.mkdir(exist_ok=True)
seen.write_text("not yet")

def work(job, context):
    seen.write_text(os.environ.get("AWS_SECRET_ACCESS_KEY", "none"))
    for point in fabricated.Player(SimpleNamespace(sweep=job.sweep)).points(job):
        context.report(point, fabricated.outcomes(point.measurement))

sweep = fabricated.SWEEP.replace(resources=Resources(executor="tune"), search=fabricated.SWEEP.search.replace(trials=1))
folder = fabricated.prepared_folder(home / "sweeps", sweep)
with cluster.ray_session(needs_train=False):
    from sweeplab.execution import tune  # imports Ray, once its settings stand

    controller = fabricated.open_controller(folder, sweep, work=work)
    workload = Workload([], str(seen), home)
    tune.run_on_tune(controller, workload, Watchdog(stall_minutes=5))
    (ray,) = ray_parent().glob(f"{RAY_FOLDER}*")
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for root in (ray, home) for path in root.rglob("*") if path.is_file() and path != seen]
    print(json.dumps({
        "seen": seen.read_text(),
        "files": len(files),
        "logs": len([path for path in files if path.suffix in (".log", ".out", ".err")]),
        "told": [str(path) for path in files if secret in path.read_bytes()],
        "open": oct(ray.stat().st_mode & 0o777),
        "state": folder.trial(0).result()["state"],
    }))
"""


@pytest.mark.slow
@pytest.mark.alone
def test_credentials_reach_the_workers_and_no_file_of_ray_or_the_home(tmp_path: Path):
    """Tune would copy them into its actors' runtime environments, and those stand in Ray's logs."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    found = run_on_ray(PLANTED, tmp_path, **dict.fromkeys(names, SECRET))
    assert found["seen"] == SECRET
    assert found["state"] == "finished"
    assert found["logs"] > 5
    assert found["told"] == []
    assert found["open"] == "0o700"
