"""What many tests share: one thread, a home of their own, a tiny CLIP, a few drawn fruits, made-up sweep folders, and
whole sweeps as processes of their own."""

import contextlib
import functools
import gc
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

# Nothing heavy is imported here: the process that hands tests out to the others needs none of it.
if TYPE_CHECKING:
    from torch import Tensor

    from sweeplab.clip_model import Architecture
    from sweeplab.data.tables import LabelledImages, PairTable
    from sweeplab.experiment import CleaningSweep
    from sweeplab.sweep_folder import SweepFolder

SWEEPS = Path(__file__).parents[1] / "sweeps"

for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
    os.environ.pop(name, None)  # nothing of the tests goes to whatever server their user has

MOST_WORKERS = 4
"""Each of them imports torch and the rest, ten seconds of one core."""

os.environ["OMP_NUM_THREADS"] = "1"  # before anybody imports torch, and for the commands that tests start


def pytest_configure() -> None:
    """Signals that whoever started pytest ignores (`nohup`, a background job) would be ignored by every command."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes for `-n auto`: 0, which is this one, for single files and for slow tests, which time each other out."""
    whole_folders = any(Path(name.partition("::")[0]).is_dir() for name in config.args)
    if config.option.markexpr != "not slow" or not whole_folders:
        return 0
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST_WORKERS)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects tests without garbage collection: a third of that time went into looking at modules, which all stay.
    Later, too, garbage is looked for less often: hundreds of thousands of objects of modules stay that tests import."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(5_000, 20, 20)
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for this test run, so that no test reads or writes the user's own."""
    import torch

    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEPLAB_HOME", str(folder))
        torch.set_num_threads(1)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Has this process not wait until files are on the disk, which only a power failure could tell. Faults of `fsync`
    are raised by the tests that are about them; one of a file that is closed is still refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_parser() -> Iterator[None]:
    """Has commands that are run in this process share one parser, which takes as long to make as many of them run."""
    import typer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def volume() -> Iterator[None]:
    """What a command said by -q or -v ends with the test."""
    logger = logging.getLogger("sweeplab")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def drawn(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives homes of this test's own copies of the fruit stalls that this process has drawn; for tests that are about
    other things than drawing."""
    from sweeplab.data import fruit_stall

    draw = fruit_stall.materialise

    def copied(folder: Path, write: Callable[[Path], None], what: str) -> None:
        original = home / "data" / folder.name  # the name holds all that the pictures depend on
        draw(original, write, what)
        draw(folder, lambda partial: shutil.copytree(original, partial, dirs_exist_ok=True), what)

    monkeypatch.setattr(fruit_stall, "materialise", copied)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a sweep's page without charts, which take four fifths of its time; its tables and sentences are made of
    the same rows, after all files are read. For tests of what pages are made from, and of commands that write one."""
    from plotly.graph_objects import Figure

    from dashboards import build

    for name, function in vars(build).items():
        if getattr(function, "__annotations__", {}).get("return") is Figure:
            monkeypatch.setattr(build, name, lambda *values, **settings: None)


@pytest.fixture(scope="session")
def tiny() -> "Architecture":
    """A ResNet CLIP of 1.1 million parameters, most of them token embeddings; 32 pixels, 16 tokens."""
    from sweeplab.clip_model import SmallCLIP

    sizes = SmallCLIP(image_size=32, width=8, embed_dim=16, text_width=16, text_layers=1, context_length=16)
    return sizes.architecture()


@pytest.fixture(scope="session")
def tokenize(tiny: "Architecture") -> "Callable[[list[str]], Tensor]":
    """The tiny CLIP's tokeniser, which takes a tenth of a second to make."""
    from sweeplab.clip_model import tokenizer

    return tokenizer(tiny)


@pytest.fixture(scope="session")
def stall_pairs(home: Path) -> "PairTable":
    """64 pairs of 32 pixels."""
    from sweeplab.data.fruit_stall import FruitStall

    return FruitStall(num_pairs=64, image_size=32).read(home / "data")


@pytest.fixture(scope="session")
def stall_test(home: Path) -> "LabelledImages":
    """48 test images of 32 pixels, three a class."""
    from sweeplab.data.fruit_stall import FruitStallTest

    return FruitStallTest(num_images=48, image_size=32).read(home / "data")


@pytest.fixture
def folder(tmp_path: Path) -> "SweepFolder":
    """The folder of a sweep whose first trial may start."""
    import fabricated

    return fabricated.prepared_folder(tmp_path / "sweeps")


@pytest.fixture
def news(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Gives what the steps of a command have told of their progress so far."""
    caplog.set_level(logging.INFO, logger="sweeplab")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "sweeplab"]


@pytest.fixture(scope="session")
def smoke() -> "CleaningSweep":
    """The quickstart in miniature."""
    from sweeplab.experiment import smoke_sweep

    quickstart: CleaningSweep = runpy.run_path(str(SWEEPS / "quickstart.py"))["SWEEP"]
    return smoke_sweep(quickstart)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of the made-up sweep's architecture."""
    import fabricated
    import torch

    from sweeplab.clip_model import build

    path = tmp_path_factory.mktemp("checkpoint") / "victim.pt"
    torch.save(build(fabricated.ARCHITECTURE, seed=0).state_dict(), path)
    return path


@pytest.fixture
def sweep(checkpoint: Path) -> "CleaningSweep":
    """A sweep with nothing wrong, of a model that has not been trained."""
    from fabricated import SWEEP

    return SWEEP.replace(victim=SWEEP.victim.replace(path=checkpoint))


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that only this test uses; it is not there yet."""
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """MLflow's store without a run, to be copied: its tables take seconds, so one process makes them for all."""
    from filelock import FileLock
    from mlflow.tracking import MlflowClient

    from sweeplab.tracking.store import store_uri

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "mlflow-tables"
    made = folder / "mlflow.db"
    with FileLock(f"{folder}.lock"):
        if not made.exists():
            partial = folder.with_name("mlflow-tables-partial")
            partial.mkdir()
            MlflowClient(tracking_uri=store_uri(partial)).search_experiments()
            partial.rename(folder)
    return made


@pytest.fixture
def mlflow_is_there(tmp_path: Path, mlflow_tables: Path) -> None:
    """Has the test's own home begin with MLflow's tables."""
    (tmp_path / "home").mkdir(exist_ok=True)
    shutil.copy(mlflow_tables, tmp_path / "home")


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs sweeps as a script of the given flags does; returns the exit code."""
    from sweeplab.cli import main

    def run(flags: list[str], *sweeps: "CleaningSweep") -> int:
        monkeypatch.setattr(sys, "argv", ["script.py", *flags])
        with pytest.raises(SystemExit) as ended:
            main(*sweeps)
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.fixture(scope="session")
def victim_home(tmp_path_factory: pytest.TempPathFactory, smoke: "CleaningSweep", mlflow_tables: Path) -> Path:
    """A home that holds the smoke sweep's data, its victim, and MLflow's tables; to be copied."""
    from sweeplab.experiment import PretrainedVictim
    from sweeplab.sweep import prepare, pretraining
    from sweeplab.sweep.session import Session

    home = tmp_path_factory.mktemp("victim-home")
    shutil.copy(mlflow_tables, home)
    assert isinstance(smoke.victim, PretrainedVictim)
    prepared = prepare.prepare(smoke, home)
    pretraining.pretrain_victim(smoke.victim, prepared.victim_digest, Session(home, inline=True))
    return home


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket in an S3 server of this process, which the environment names, to children too."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    known = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "name", "SECRET_ACCESS_KEY": "secret"}
    for name, value in {**known, "REGION": "us-east-1", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    name = f"bucket-{uuid4().hex[:8]}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}"
    server.stop()


@dataclass
class Workplace:
    """A folder with a script and a home, in which commands run as a user's would."""

    path: Path

    @property
    def home(self) -> Path:
        return self.path / "home"

    def sweep(self, name: str) -> "SweepFolder":
        """A sweep's folder."""
        from sweeplab.sweep_folder import SweepFolder

        return SweepFolder(self.home / "sweeps" / name)

    def write_script(self, text: str) -> None:
        """The experiment; `quickstart` can be imported."""
        (self.path / "experiment.py").write_text(text)

    def environment(self, ray_address: str | None) -> dict[str, str]:
        own = {"SWEEPLAB_HOME": str(self.home), "PYTHONPATH": f"{SWEEPS}{os.pathsep}{SWEEPS.parent}"}
        others = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return {**others, **own, **({"RAY_ADDRESS": ray_address} if ray_address else {})}

    def start(self, *words: str, ray_address: str | None = None) -> subprocess.Popen[bytes]:
        """Begin a command in a process group of its own; its output goes to a file."""
        with (self.path / "output.txt").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, *(words or ("experiment.py",))],
                cwd=self.path,
                env=self.environment(ray_address),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        """What the command begun last has printed."""
        return (self.path / "output.txt").read_text()

    def run(self, *words: str, ray_address: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, *(words or ("experiment.py",))],
            cwd=self.path,
            env=self.environment(ray_address),
            capture_output=True,
            text=True,
            timeout=900,
        )

    def wait_until(self, process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
        """Wait for something to show in the files of a running command."""
        deadline = time.monotonic() + 600
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"ended or stuck too early:\n{(self.path / 'output.txt').read_text()[-3000:]}")
            time.sleep(0.02)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL the driver alone; what Ray does with its own processes is Ray's matter."""
        process.kill()
        process.wait()

    def processes(self) -> list[int]:
        """What the commands started and still runs, told by its environment (where the system has /proc)."""
        found, mark = [], f"SWEEPLAB_HOME={self.home}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def end_leftovers(self) -> None:
        """End what killed commands left running."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def new_workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Workplace]]:
    """Makes workplaces; with `home`, the new one begins with a copy of it."""
    made: list[Workplace] = []

    def make(script: str, home: Path | None = None) -> Workplace:
        place = Workplace(tmp_path_factory.mktemp("workplace"))
        if home is not None:
            shutil.copytree(home, place.home)
        place.write_script(script)
        made.append(place)
        return place

    yield make
    for place in made:
        place.end_leftovers()
