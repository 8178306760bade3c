"""Faults of the world around a sweep: disks, databases, other commands, signals, hung workers. Nothing is lost."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabricated
import pytest
from checker import Checker
from harness import MARKS, descendants
from pyarrow import fs

from sweeplab.storage.files import read_lines
from sweeplab.storage.ownership import MARK
from sweeplab.sweep.retries import MORE_MEMORY
from sweeplab.sweep_folder import SweepFolder

pytestmark = [pytest.mark.slow, pytest.mark.alone]

EXPERIMENT = """
from quickstart import SWEEP as QUICKSTART
from sweeplab.cli import main
from sweeplab.experiment import smoke_sweep

SMALL = smoke_sweep(QUICKSTART)
SWEEP = SMALL.replace(
    name="faulty",
    epochs=3,
    search=SMALL.search.replace(trials=3),
    resources=SMALL.resources.replace({resources}),
)
if __name__ == "__main__":
    main(SWEEP)
"""

CLI = ("-c", "from sweeplab.cli import app; app()")
NOWHERE = "127.0.0.1:1"
"""An address at which no Ray answers: whoever wants Ray fails."""

Make = Callable[..., Any]


def script(**resources: Any) -> str:
    return EXPERIMENT.format(resources=", ".join(f"{name}={value!r}" for name, value in resources.items()))


def num_points(folder: SweepFolder) -> int:
    return sum(len(read_lines(path)) for path in (folder.path / "trials").glob("*/history.jsonl"))


def num_finished(folder: SweepFolder) -> int:
    return len(list((folder.path / "trials").glob("*/result.json")))


def is_under_way(folder: SweepFolder) -> bool:
    """Whether a trial has an epoch behind it and others before it."""
    histories = {path.parent: len(read_lines(path)) for path in (folder.path / "trials").glob("*/history.jsonl")}
    return any(1 < count < 4 and not (run / "result.json").exists() for run, count in histories.items())


def faults(place: Any) -> list[str]:
    """What the independent checker finds wrong with the finished sweep."""
    return Checker(place.home, "faulty").check(is_finished=True)


def one_message(text: str) -> str:
    """The only error that a command printed."""
    assert "Traceback" not in text, text[-3000:]
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text[-3000:]
    return errors[0]


# --- disks


def mount(*words: str) -> None:
    """Skips the test where this system does not let us."""
    found = subprocess.run(["mount", *words], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"mount is refused: {found.stderr.strip()}")


@pytest.fixture
def mounted(new_workplace: Make) -> Iterator[Callable[..., Any]]:
    """Makes a workplace whose home is a mount of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root and mount")
    places: list[Any] = []

    def make(text: str, *options: str) -> Any:
        place = new_workplace(text)
        place.home.mkdir()
        mount(*options, str(place.home))
        places.append(place)
        return place

    yield make
    for place in places:
        place.end_leftovers()
        for _ in range(20):
            if subprocess.run(["umount", str(place.home)], capture_output=True).returncode == 0:
                break
            time.sleep(0.2)
        else:
            subprocess.run(["umount", "-l", str(place.home)], check=True)


def fill(path: Path) -> None:
    """Take the rest of a disk, to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue


def test_a_disk_that_fills_up_ends_the_sweep_in_order_and_loses_nothing(mounted: Make, victim_home: Path):
    place = mounted(script(executor="tune"), "-t", "tmpfs", "-o", "size=200m", "none")
    shutil.copytree(victim_home, place.home, dirs_exist_ok=True)
    folder = place.sweep("faulty")
    process = place.start()
    place.wait_until(process, lambda: is_under_way(folder))
    fill(place.home / "filler")
    assert process.wait(timeout=600) == 75, place.output()[-3000:]
    assert "No space left" in one_message(place.output())
    before = num_points(folder)
    mount("-o", "remount,size=2g", str(place.home))
    again = place.run("experiment.py", "--inline")
    assert again.returncode == 0, again.stderr[-3000:]
    assert num_points(folder) == 12 >= before
    assert faults(place) == []


def test_a_home_that_cannot_be_written_is_refused_and_left_as_it_was(new_workplace: Make, mounted: Make):
    place = mounted(script(executor="tune"), "-t", "tmpfs", "none")
    mount("-o", "remount,ro", str(place.home))
    refused = place.run(ray_address=NOWHERE)
    assert refused.returncode == 2
    assert f"SWEEPLAB_HOME={place.home} cannot be written (Read-only file system)" in one_message(refused.stderr)
    assert list(place.home.iterdir()) == []


def test_what_only_reads_needs_no_home_that_can_be_written(mounted: Make):
    place = mounted(script(executor="tune"), "-t", "tmpfs", "none")
    folder = fabricated.finished_sweep(place.home / "sweeps")
    mount("-o", "remount,ro", str(place.home))
    for words in (["status"], ["leaderboard"], ["logs"], ["audit"], ["replay", "--seeds", "1"]):
        ran = place.run(*CLI, words[0], folder.name, *words[1:])
        assert ran.returncode == 0, ran.stderr[-3000:]
    listed = place.run(*CLI, "list")
    assert f"{folder.name} " in listed.stdout
    assert "finished" in listed.stdout
    refused = place.run(*CLI, "rerun", folder.name, "0")
    assert refused.returncode == 2
    assert "cannot be written (Read-only file system)" in one_message(refused.stderr)


# --- MLflow


def test_a_sweep_goes_on_without_mlflow_and_brings_it_up_to_date_later(new_workplace: Make, victim_home: Path):
    place = new_workplace(script(executor="inline"), victim_home)
    whole = (place.home / "mlflow.db").read_bytes()
    for leftover in place.home.glob("mlflow.db*"):
        leftover.unlink()
    (place.home / "mlflow.db").write_bytes(b"garbage" * 1000)
    ran = place.run()
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("note: MLflow's store") == 1
    assert num_finished(place.sweep("faulty")) == 3
    still = place.run(ray_address=NOWHERE)
    assert still.returncode == 0
    assert still.stdout.count("note: MLflow's store") == 1  # nobody forgets that it is behind
    (place.home / "mlflow.db").write_bytes(whole)
    again = place.run(ray_address=NOWHERE)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "nothing to run" in again.stdout
    assert faults(place) == []


def test_a_locked_mlflow_delays_no_trial(new_workplace: Make, victim_home: Path):
    place = new_workplace(script(executor="inline"), victim_home)
    folder = place.sweep("faulty")
    process = place.start()
    place.wait_until(process, lambda: num_points(folder) >= 1)
    with sqlite3.connect(place.home / "mlflow.db", isolation_level=None, timeout=30) as store:
        store.execute("begin exclusive")
        at_lock = num_points(folder)
        place.wait_until(process, lambda: num_points(folder) >= min(12, at_lock + 3))
        store.execute("rollback")
    assert process.wait(timeout=600) == 0, place.output()[-3000:]
    again = place.run(ray_address=NOWHERE)
    assert again.returncode == 0, again.stderr[-3000:]
    assert faults(place) == []


# --- checkpoints


def test_a_corrupt_checkpoint_costs_its_trial_what_it_held_and_no_more(new_workplace: Make, victim_home: Path):
    place = new_workplace(script(executor="inline"), victim_home)
    folder = place.sweep("faulty")
    process = place.start()
    place.wait_until(process, lambda: is_under_way(folder))
    place.kill(process)
    spoilt = []
    for number in folder.trial_numbers():
        if folder.trial(number).result() is None:
            for path in folder.trial(number).checkpoints.glob("*.pt"):
                path.write_bytes(b"garbage" * 1000)
                spoilt.append(path)
    assert spoilt
    again = place.run()
    assert again.returncode == 0, again.stderr[-3000:]
    assert any(event.get("kind") == "checkpoint" for event in folder.events())
    # The points of that trial were made again, which is told, and is the only thing to find.
    assert [fault for fault in faults(place) if not fault.startswith("points were forgotten")] == []


def files_of(url: str) -> list[str]:
    """Names of all files below a URL."""
    system, path = fs.FileSystem.from_uri(url)
    found = system.get_file_info(fs.FileSelector(path, recursive=True))
    return [info.base_name for info in found if info.type == fs.FileType.File]


def is_kept_under_way(folder: SweepFolder, store: str) -> bool:
    """Whether a trial is under way whose newest checkpoint has been uploaded, which comes after its point."""
    unfinished = [path for path in folder.path.glob("trials/*") if not (path / "result.json").exists()]
    histories = [read_lines(path / "history.jsonl") for path in unfinished]
    return any(1 < len(points) < 4 and points[-1]["checkpoint"] in files_of(store) for points in histories)


@pytest.mark.parametrize(("scheme", "executor"), [("file", "tune"), ("s3", "inline")])
def test_checkpoints_in_a_storage_by_url_serve_a_sweep_that_is_killed_and_goes_on(
    scheme: str, executor: str, new_workplace: Make, victim_home: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    store = request.getfixturevalue("bucket") if scheme == "s3" else (tmp_path / "store").as_uri()
    place = new_workplace(script(executor=executor, concurrent_trials=1, storage=f"{store}/mine"), victim_home)
    folder = place.sweep("faulty")
    process = place.start()
    place.wait_until(process, lambda: is_kept_under_way(folder, store))
    place.kill(process)
    at_kill = num_points(folder)
    again = place.run()
    assert again.returncode == 0, again.stderr[-3000:]
    assert at_kill < num_points(folder) == 12
    assert faults(place) == []
    kept = set(files_of(store)) - {MARK}
    named = {p["checkpoint"] for path in folder.path.glob("trials/*/history.jsonl") for p in read_lines(path)}
    assert kept <= named
    assert not list(folder.path.glob("trials/*/checkpoints/*.pt"))
    assert any("goes on after epoch" in line for line in again.stdout.splitlines())


# --- other commands


LISTEN = "0A"


def listening(processes: set[int]) -> set[str]:
    """Addresses, as in /proc/net/tcp, at which the processes wait for connections."""
    sockets = set()
    for number in processes:
        with contextlib.suppress(OSError):
            sockets |= {os.readlink(path) for path in Path(f"/proc/{number}/fd").iterdir()}
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == LISTEN and f"socket:[{inode}]" in sockets:
                addresses.add(address.partition(":")[0])
    return addresses


@dataclass
class UnderWay:
    """A supervised sweep on a cluster of its own, of which several tests look at something else."""

    place: Any
    process: subprocess.Popen[bytes]
    addresses: set[str]
    """At which it and all its processes listen."""


@pytest.fixture(scope="module")
def under_way(new_workplace: Make, victim_home: Path) -> UnderWay:
    """A sweep on Ray, behind proxies that do not answer: nothing of a private cluster goes through them."""
    place = new_workplace(script(executor="tune", concurrent_trials=1), victim_home)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        process = place.start("experiment.py", "search.trials=100", "--supervise")
    place.wait_until(process, lambda: is_under_way(place.sweep("faulty")))
    return UnderWay(place, process, listening({process.pid, *descendants(process.pid)}))


@pytest.mark.parametrize("seconds", [0.1, 0.6, 1.5])
def test_sigterm_while_a_command_is_imported_is_an_interruption_or_begins_nothing(
    seconds: float, new_workplace: Make, victim_home: Path
):
    place = new_workplace(script(executor="inline"), victim_home)
    process = place.start()
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    assert code in (75, -signal.SIGTERM)
    assert code == 75 or not place.sweep("faulty").exists()


def test_a_private_cluster_listens_on_loopback_alone(under_way: UnderWay):
    assert under_way.addresses
    assert under_way.addresses <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_a_second_driver_is_refused_and_a_stopped_sweep_goes_on_from_its_record(under_way: UnderWay):
    """The first one is supervised, and whoever stops it stops its supervisor."""
    place, process = under_way.place, under_way.process
    folder = place.sweep("faulty")
    holder = folder.work.holder()
    assert holder is not None
    second = place.run(ray_address=NOWHERE)
    assert second.returncode == 2
    text = one_message(second.stderr)
    assert f"'faulty' is being run by process {holder['process']} on {socket.gethostname()} since 20" in text
    assert process.poll() is None

    began = time.monotonic()
    stopper = place.run(*CLI, "stop", "faulty")
    print(f"`sweeplab stop`, its own start included: {time.monotonic() - began:.2f} s")
    assert stopper.returncode == 0, stopper.stderr
    assert "stopped" in stopper.stdout
    assert process.wait(timeout=60) == 75
    assert "the same command goes on" in one_message(place.output())
    assert "starting again" not in place.output()

    finished, points = num_finished(folder), num_points(folder)
    more = len(folder.trial_numbers()) + 1
    planned = place.run(*CLI, "resume", "faulty", "--plan", f"search.trials={more}", ray_address=NOWHERE)
    assert planned.returncode == 0, planned.stderr
    assert f"{more} trials of 3 epochs on 320 pairs; {finished} are done and stay" in planned.stdout
    assert num_points(folder) == points

    resumed = place.run(*CLI, "resume", "faulty", f"search.trials={more}")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert num_finished(folder) == more
    assert faults(place) == []


BREAKING = """
from typing import Literal
import torch
from sweeplab.cleaning.cleanclip import CleanCLIP

class Breaking(CleanCLIP):
    kind: Literal["breaking"] = "breaking"

    def loss(self, state, batch):
        {does}

SMALL = smoke"""


def breaking(does: str, **resources: Any) -> str:
    """A sweep whose method does something else than to return a loss."""
    text = script(**resources).replace("SMALL = smoke", BREAKING.format(does=does), 1)
    return text.replace('name="faulty",', 'name="faulty", method=Breaking(),', 1)


def test_a_worker_without_memory_fails_twice_at_the_same_place_and_for_good(new_workplace: Make, victim_home: Path):
    """A petabyte, which no machine gives; the allocator's own error, and the sweep goes on to its end."""
    place = new_workplace(breaking("torch.empty(10**15)", executor="tune"), victim_home)
    ran = place.run()
    assert ran.returncode == 1, ran.stderr[-3000:]
    assert "faulty: every trial failed (3 of 3), the first with: " in one_message(ran.stderr)
    record = place.sweep("faulty").record()
    assert [(trial.state, trial.attempts) for trial in record.trials] == [("failed", 2)] * 3
    for trial in record.trials:
        assert trial.reason is not None
        assert "memory" in trial.reason
        assert trial.reason.endswith(MORE_MEMORY)


def test_trials_that_raise_whatever_do_not_end_an_inline_sweep(new_workplace: Make, victim_home: Path):
    place = new_workplace(breaking('raise IndexError("no such thing")', executor="inline"), victim_home)
    ran = place.run()
    assert ran.returncode == 1, ran.stderr[-3000:]
    record = place.sweep("faulty").record()
    assert {(trial.state, trial.reason) for trial in record.trials} == {("failed", "IndexError: no such thing")}
    assert len(record.trials) == 3


def test_damaged_weights_of_the_victim_end_the_command_and_no_trial(new_workplace: Make, victim_home: Path):
    place = new_workplace(script(executor="tune"), victim_home)
    (weights,) = place.home.glob("victims/*/checkpoints/*.pt")
    weights.write_bytes(b"not weights")
    ran = place.run()
    assert ran.returncode == 2
    text = one_message(ran.stderr)
    assert str(weights) in text
    assert "remove the file, and the same command trains it again" in text
    assert place.sweep("faulty").trial_numbers() == []
    weights.unlink()
    again = place.run("experiment.py", "--inline")
    assert again.returncode == 0, again.stderr[-3000:]
    assert num_finished(place.sweep("faulty")) == 3


# --- signals and hung workers

POLITE_SECONDS = 3.0
"""What `ray job stop` leaves."""
SLACK = 1.5
"""Of a busy machine."""


def test_sigterm_ends_a_sweep_of_train_workers_in_time(new_workplace: Make, victim_home: Path):
    place = new_workplace(script(executor="pool", workers=2, concurrent_trials=1), victim_home)
    folder = place.sweep("faulty")
    process = place.start("experiment.py", "search.trials=100")
    place.wait_until(process, lambda: is_under_way(folder))
    began = time.monotonic()
    process.terminate()
    assert process.wait(timeout=60) == 75, place.output()[-3000:]
    took = time.monotonic() - began
    print(f"SIGTERM to exit: {took:.2f} s")
    assert took < SLACK * POLITE_SECONDS
    assert "the same command goes on" in one_message(place.output())


def kill(process: subprocess.Popen[bytes], mark: str) -> None:
    """SIGKILL what of a command's processes is marked so."""
    for number, line in descendants(process.pid).items():
        if MARKS[mark] in line:
            os.kill(number, signal.SIGKILL)


def blamed(place: Any, name: str) -> list[Any]:
    """Attempts that count against a sweep's trials."""
    return [event for event in place.sweep(name).events() if event["event"] == "attempt failed"]


def test_after_a_lost_raylet_no_further_sweep_of_the_script_begins(new_workplace: Make, victim_home: Path):
    text = script(executor="tune", concurrent_trials=1)
    place = new_workplace(text.replace("main(SWEEP)", "main(SWEEP, SWEEP.replace(name='second'))"), victim_home)
    process = place.start()
    place.wait_until(process, lambda: is_under_way(place.sweep("faulty")))
    kill(process, "raylet")
    assert process.wait(timeout=600) == 75, place.output()[-3000:]
    assert "the Ray cluster is lost, so not begun: second" in place.output()
    assert blamed(place, "faulty") == []
    assert not place.sweep("second").exists()
    one_message(place.output())


@pytest.mark.parametrize(("executor", "workers"), [("tune", 1), ("pool", 2)])
def test_the_death_of_the_mailbox_interrupts_the_sweep(
    executor: str, workers: int, new_workplace: Make, victim_home: Path
):
    place = new_workplace(script(executor=executor, workers=workers, concurrent_trials=1), victim_home)
    process = place.start()
    place.wait_until(process, lambda: is_under_way(place.sweep("faulty")))
    kill(process, "mailbox")
    assert process.wait(timeout=600) == 75, place.output()[-3000:]
    assert "the mailbox's process died" in one_message(place.output())
    assert blamed(place, "faulty") == []


WATCHED = """
from pathlib import Path
from sweeplab.execution.watchdog import Watchdog

check = Watchdog.check

def patient(watchdog):
    if not Path("hung").exists():  # workers may take long to start
        watchdog.moved()
    check(watchdog)

Watchdog.check = patient
"""


@pytest.mark.parametrize(("executor", "workers", "mark"), [("tune", 1, "actor"), ("pool", 2, "worker")])
def test_a_hung_worker_ends_the_sweep_with_the_reason(
    executor: str, workers: int, mark: str, new_workplace: Make, victim_home: Path
):
    minutes = 0.1
    resources = {"executor": executor, "workers": workers, "concurrent_trials": 1, "stall_minutes": minutes}
    place = new_workplace(WATCHED + script(**resources), victim_home)
    folder = place.sweep("faulty")
    process = place.start()
    place.wait_until(process, lambda: is_under_way(folder))
    (hung, *_) = [number for number, line in descendants(process.pid).items() if MARKS[mark] in line]
    began = time.monotonic()
    os.kill(hung, signal.SIGSTOP)
    (place.path / "hung").touch()
    assert process.wait(timeout=60 * minutes + 60) == 75, place.output()[-3000:]
    took = time.monotonic() - began
    print(f"hung {executor} worker to exit: {took:.1f} s")
    assert took < 60 * minutes + 20
    text = one_message(place.output())
    assert "nothing has moved" in text
    assert f"resources.stall_minutes={minutes:g}" in text
