"""Many nodes: a cluster of three on this machine, one of which dies; and a node that does not see the storage."""

import contextlib
import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import MARKS, descendants
from test_faults import faults, is_under_way, num_finished, num_points, one_message, script

from sweeplab.data.fruit_stall import FruitStall, FruitStallTest
from sweeplab.sweep_folder import SweepFolder

pytestmark = [pytest.mark.slow, pytest.mark.alone]

Make = Callable[..., Any]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head node of one CPU; more can be added.

    Under a temporary folder of its own: Ray writes the address there, and commands that are told of no cluster would
    join the one that Ray's default folder names.
    """
    scratch = tempfile.mkdtemp(prefix="sl-")  # sockets have short names
    monkeypatch.setenv("RAY_TMPDIR", scratch)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": free_port()})
    yield made
    made.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)


def actors_on(node: Any) -> list[int]:
    """Tune's actors on a node: its raylet's descendants."""
    raylet = node.all_processes["raylet"][0].process.pid
    return [number for number, line in descendants(raylet).items() if MARKS["actor"] in line]


def test_a_sweep_runs_on_all_nodes_and_survives_the_loss_of_one(cluster: Any, new_workplace: Make, victim_home: Path):
    lost, other = (cluster.add_node(num_cpus=1) for _ in range(2))
    place = new_workplace(script(executor="tune"), victim_home)
    folder = place.sweep("faulty")
    # Of six trials one runs on each node even where another's worker took so long to start that its first is over.
    process = place.start("experiment.py", "search.trials=6", ray_address=cluster.address)
    nodes = (cluster.head_node, lost, other)
    place.wait_until(process, lambda: all(actors_on(node) for node in nodes) and is_under_way(folder))
    cluster.remove_node(lost, allow_graceful=False)
    assert process.wait(timeout=600) == 0, place.output()[-3000:]
    assert num_finished(folder) == 6
    assert num_points(folder) == 24
    assert faults(place) == []


@pytest.fixture
def blind_node(cluster: Any) -> Iterator[Callable[..., None]]:
    """Adds a node of one CPU to the cluster, which sees empty folders where this one has files."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("needs root and unshare")
    nodes: list[subprocess.Popen[bytes]] = []

    def add(place: Any, *hidden: Path, scratch: Path) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=1"]
        hide = " && ".join(f"mount -t tmpfs none {folder}" for folder in hidden)
        scratch.mkdir()
        nodes.append(
            subprocess.Popen(
                ["unshare", "-m", "sh", "-c", f'{hide} && exec "$@"', "sh", *ray, "--block"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
            )
        )
        count = "import ray; ray.init(log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        deadline = time.monotonic() + 240
        while place.run("-c", count, ray_address=cluster.address).stdout.split()[-1:] != ["2"]:
            assert time.monotonic() < deadline, "the second node did not come"

    yield add
    for node in nodes:
        end(node)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it with all its descendants."""
    for number in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()


def test_a_node_that_does_not_see_the_storage_is_named_before_anything_runs(
    cluster: Any, blind_node: Callable[..., None], new_workplace: Make, victim_home: Path, tmp_path: Path
):
    store = tmp_path / "store"
    store.mkdir()
    place = new_workplace(script(executor="tune", storage=str(store)), victim_home)
    blind_node(place, store, scratch=tmp_path / "scratch")
    refused = place.run(ray_address=cluster.address)
    assert refused.returncode == 2, refused.stderr[-3000:]
    assert f"does not see {store}" in refused.stderr
    assert one_message(refused.stderr).startswith("error: not every node of the cluster can take part")
    assert num_points(place.sweep("faulty")) == 0


OWN_DATA = """
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.pairs import PairsCSV

SWEEP = SWEEP.replace(
    data=PairsCSV(path="pairs/pairs.csv"),
    evaluation=SWEEP.evaluation.replace(test=ClassFolders(path="test")),
    search=SWEEP.search.replace(sampler="random"),  # whose draws no order of events can change
)
"""


def own_data(folder: Path, home: Path) -> None:
    """Pairs in a CSV file and test images in class folders, of drawn fruits."""
    pairs = FruitStall(num_pairs=320, image_size=32, seed=1).read(home / "data")
    (folder / "pairs").mkdir(parents=True)
    with (folder / "pairs" / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for row in range(len(pairs)):
            shutil.copy(pairs.image(row), folder / "pairs" / f"{row}.png")
            writer.writerow([f"{row}.png", pairs.caption(row)])
    images = FruitStallTest(num_images=160, image_size=32).read(home / "data")
    for row, label in enumerate(images.labels):
        place = folder / "test" / images.class_names[label].replace(" ", "_") / f"{row:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images.image(row), place)


def test_data_are_brought_once_to_a_node_that_does_not_see_them(
    cluster: Any, blind_node: Callable[..., None], new_workplace: Make, victim_home: Path, tmp_path: Path
):
    text = script(executor="tune").replace("if __name__", f"{OWN_DATA}\nif __name__")
    place = new_workplace(text, victim_home)
    own_data(place.path, place.home)
    scratch = tmp_path / "scratch"
    blind_node(place, place.path / "pairs", place.path / "test", scratch=scratch)
    done = place.run(ray_address=cluster.address)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 node does not see all data: sending what is lacking of 481 files" in done.stdout
    copies = list(scratch.glob("sweeplab-*/data-*"))
    assert [(node_copy / "complete").exists() for node_copy in copies] == [True]
    assert len(list((copies[0] / "files" / str(place.path)[1:]).rglob("*.png"))) == 480
    assert faults(place) == []
    one_node = place.run("experiment.py", "--fresh", "resources.executor=inline")  # the numbers of one process
    assert one_node.returncode == 0, one_node.stderr[-3000:]
    sweeps = [SweepFolder(path) for path in (place.home / "sweeps").glob("faulty*") if path.is_dir()]
    assert len(sweeps) == 2
    first, second = ([point.measurement for t in s.record().trials for point in t.points] for s in sweeps)
    assert first == second


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_job_that_is_stopped_in_mid_epoch_goes_on_when_it_is_submitted_again(new_workplace: Make, victim_home: Path):
    place = new_workplace(script(executor="tune", concurrent_trials=1, checkpoint_minutes=0.001), victim_home)
    folder = place.sweep("faulty")
    scratch = Path("/tmp") / f"sl-{os.getpid()}"  # sockets have short names
    port, page = free_port(), free_port()
    environment = {**place.environment(None), "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    environment["RAY_JOB_STOP_WAIT_TIME_S"] = "60"  # else 3, of a machine that may be busy with other things
    words = [sys.executable, "-m", "ray.scripts.scripts"]
    places = [f"--port={port}", f"--dashboard-port={page}", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    # Another cluster of this machine may hold the agent's usual port, and without its agent a node takes no job.
    places += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    head = subprocess.Popen(
        [*words, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={scratch}", *places],
        env=environment,
        cwd=place.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def job(*arguments: str) -> subprocess.CompletedProcess[str]:
        address = f"--address=http://127.0.0.1:{page}"
        command = [*words, "job", arguments[0], address, *arguments[1:]]
        return subprocess.run(command, env=environment, cwd=place.path, capture_output=True, text=True, timeout=900)

    def submit(name: str, trials: int, *flags: str) -> subprocess.CompletedProcess[str]:
        command = ["--", sys.executable, str(place.path / "experiment.py"), f"search.trials={trials}"]
        return job("submit", f"--submission-id={name}", *flags, *command)

    try:
        deadline = time.monotonic() + 300
        while (begun := submit("first", 100, "--no-wait")).returncode:
            assert time.monotonic() < deadline, begun.stdout + begun.stderr
            time.sleep(1)
        while not is_under_way(folder):
            assert time.monotonic() < deadline, job("logs", "first").stdout[-2000:]
            time.sleep(0.05)
        assert job("stop", "first").returncode == 0
        assert not folder.is_locked()
        at_stop, trials = num_points(folder), len(folder.trial_numbers()) + 1
        reasons = [event for event in folder.events() if event["event"] == "driver ended"]
        assert [event["finished"] for event in reasons] == [False]  # it ended in order, before it was killed
        again = submit("second", trials)
        assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-1000:]
        assert num_points(folder) == 4 * trials > at_stop
        assert faults(place) == []
    finally:
        end(head)
        shutil.rmtree(scratch, ignore_errors=True)
