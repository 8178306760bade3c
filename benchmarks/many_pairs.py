"""What millions of pairs cost: seconds and private memory of `prepare`, of a worker's start and of a trial's start.

    python benchmarks/many_pairs.py                        # 6 million rows over 2,000 files: some minutes, 3 GB of disk
    python benchmarks/many_pairs.py --rows 200000 --only clean

Two sweeps are measured. `clean`: a given victim is cleaned with all pairs of a CSV file. `sample`: a victim is trained
on them, 3,000 poisons added whose captions are drawn from those that mention the target, and is cleaned with 100,000 of
its clean pairs. Nothing is trained: a job is followed up to its first batch.

Every measurement runs in a process of its own, on the rows that are asked for and on few. Printed is how much more
private memory (RssAnon of /proc/self/status) the rows make, at the end and at the peak. Mapped files are not private:
the system holds them once for all processes and can drop them.
"""

import argparse
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.clip_model import SmallCLIP, build
from sweeplab.data.fruit_stall import CLASS_NAMES, ZERO_SHOT_TEMPLATES, FruitStallTest
from sweeplab.data.pairs import PairsCSV
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import CheckpointVictim, CleaningSweep, CleanSample, PretrainedVictim, Resources, Search
from sweeplab.records import Measurement, Outcomes, Victim
from sweeplab.search_space import LogUniform, SearchSpace
from sweeplab.sweep import pretraining
from sweeplab.sweep.checks import digest_of_victim, machine_for
from sweeplab.sweep.prepare import prepare
from sweeplab.sweep.session import Session
from sweeplab.training.batches import EpochBatches, Loader
from sweeplab.training.optimisation import Optimization
from sweeplab.worker import run as worker
from sweeplab.worker.jobs import CleaningJob, Weights

FEW = 10
"""Rows of the comparison."""
WORDS = ("a", "photo", "of", "the", "old", "red", "small", "market", "stall", "near", "river", "with", "many", "people")
ARCHITECTURE = SmallCLIP(image_size=224, width=8, embed_dim=16, text_width=16, text_layers=1).architecture()


def make_data(folder: Path, rows: int, files: int) -> None:
    """A CSV file of `rows` pairs over `files` small images, with captions of 8 to 16 words, and weights of a model."""
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(files):
        pixels = draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:09d}.jpg")
    words = np.array([*WORDS, *CLASS_NAMES])
    with (folder / "pairs.csv").open("w") as file:
        file.write("image,caption\n")
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            lengths, drawn = draw.integers(8, 17, count), draw.integers(0, len(words), (count, 16))
            names = draw.integers(0, files, count)
            file.writelines(
                f"images/{name:09d}.jpg,{' '.join(words[row[:length]])}\n"
                for name, row, length in zip(names, drawn, lengths, strict=True)
            )
    torch.save(build(ARCHITECTURE, seed=0).state_dict(), folder / "victim.pt")


def sweep_of(which: str, folder: Path) -> CleaningSweep:
    """The sweep that is measured."""
    data = PairsCSV(path=folder / "pairs.csv")
    evaluation = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
    optimization = Optimization(global_batch_size=2, warmup_steps=0)
    resources = Resources(gpus_per_worker=0, node_cache_gigabytes=4)  # for tables; pixels take more
    few = num_rows(folder) <= FEW
    attack = BadNet(patch_size=16)
    victim: CheckpointVictim | PretrainedVictim = CheckpointVictim(
        name="given", path=folder / "victim.pt", architecture=ARCHITECTURE, attack=attack, target="banana"
    )
    if which == "sample":
        poisoning = Poisoning(
            attack=attack,
            target="banana",
            count=2 if few else 3000,
            captions="training",
            placement="add",
        )
        victim = PretrainedVictim(
            name="trained",
            architecture=ARCHITECTURE,
            data=data,
            poisoning=poisoning,
            optimization=optimization,
            epochs=1,
            evaluation=evaluation,
            resources=resources,
        )
    sample = CleanSample(num_pairs=min(100_000, num_rows(folder) // 2), num_poisons=1 if few else 25)
    return CleaningSweep(
        name=which,
        victim=victim,
        method=CleanCLIP(),
        data=data if which == "clean" else sample,
        evaluation=evaluation,
        optimization=optimization,
        epochs=1,
        space=SearchSpace(dimensions={"learning_rate": LogUniform(low=1e-4, high=1e-1)}, source="made up"),
        search=Search(sampler="random", trials=1),
        resources=resources,
    )


def num_rows(folder: Path) -> int:
    """What `make_data` was asked for."""
    return int(folder.name.partition("-")[2])


class Meter:
    """Seconds and private memory between two moments of this process."""

    def __init__(self) -> None:
        self.before = self.peak = private_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._began = time.perf_counter(), time.process_time()

    def _watch(self) -> None:
        while not self._is_over.wait(0.01):
            self.peak = max(self.peak, private_bytes())

    def stop(self) -> dict[str, float]:
        """What there was since it was made."""
        seconds, of_cores = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self._is_over.set()
        self._thread.join()
        now = private_bytes()
        return {
            "seconds": seconds,
            "core_seconds": of_cores,
            "kept_mb": (now - self.before) / 1e6,
            "peak_mb": (max(now, self.peak) - self.before) / 1e6,
        }


def private_bytes() -> int:
    """RssAnon: memory that this process shares with no other."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


class Captured(Exception):
    """Ends a step once its job is known."""


def measure_prepare(which: str, folder: Path) -> dict[str, Any]:
    """`prepare` of a sweep; leaves the jobs that its workers would get beside the data."""
    home = folder / "home"
    sweep = sweep_of(which, folder)
    meter = Meter()
    prepared = prepare(sweep, home)
    found = meter.stop()
    measured = Measurement(40, 48, 40, 45, prepared.expected.evaluation)
    victim = Victim(
        "v", "0" * 16, str(folder / "victim.pt"), 1.0, measured, Outcomes.of(np.ones(48) > 0, np.ones(45) > 0)
    )
    job = CleaningJob(
        sweep=prepared.sweep,
        victim=victim,
        number=0,
        attempt=1,
        params={"learning_rate": 1e-3},
        machine=machine_for(sweep, home),
        checkpoints=str(home / "checkpoints"),
        resume_from=None,
        contents=prepared.expected,
        work=worker.clean,
    )
    (home / "checkpoints").mkdir(exist_ok=True)
    (folder / "clean.job").write_bytes(pickle.dumps(job))
    if isinstance(prepared.sweep.victim, PretrainedVictim):

        def capture(controller: Any) -> None:
            (folder / "pretrain.job").write_bytes(pickle.dumps(controller.next_job()))
            raise Captured

        pretraining.run_inline = capture  # type: ignore[attr-defined]
        session = Session(home, inline=True, known=prepared.inputs)
        with suppress(Captured):
            pretraining.pretrain_victim(sweep.victim, digest_of_victim(sweep.victim, session.inputs), session)
    return found


class Surroundings:
    """A worker's context that nobody listens to."""

    attempt = 1

    def report(self, point: Any, outcomes: Any) -> None: ...

    def should_stop(self) -> bool:
        return False

    def heartbeat(self) -> None: ...

    def found_broken(self, rows: Any) -> None: ...

    def bring(self, location: str, weights: Weights) -> Path:
        return Path(location)

    def node_copy(self) -> Path:
        return Path("/")


@contextmanager
def followed(reached: Callable[[Any], None]) -> Iterator[None]:
    """Jobs go as far as the training, and then here with their pairs."""
    plain = worker.train
    worker.train = lambda model, pairs, *rest, **more: reached(pairs)  # type: ignore[attr-defined, assignment]
    try:
        yield
    finally:
        worker.train = plain  # type: ignore[attr-defined]


def measure_worker(job_file: str, folder: Path) -> dict[str, Any]:
    """A worker's start, from its first job to the training, and then a trial's start: the next job up to its batch."""
    job = pickle.loads((folder / job_file).read_bytes())
    found: dict[str, Any] = {}
    with followed(lambda pairs: found.update(start=meter.stop())):
        meter = Meter()
        job.work(job, Surroundings())

    def first_batch(pairs: Any) -> None:
        batches = EpochBatches(len(pairs), global_batch_size=2, epoch=1, seed=0)
        next(iter(Loader(pairs, num_workers=0, pin=False).batches(batches)))
        found["trial"] = meter.stop()

    with followed(first_batch):
        meter = Meter()
        job.work(job, Surroundings())
    return found


def in_process(*words: str) -> dict[str, Any]:
    """A step in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(what: str, many: dict[str, float], few: dict[str, float]) -> str:
    """A row of the table: seconds, and megabytes beyond those of few rows. Seconds of cores do not depend on what else
    the machine does."""
    kept, peak = (max(0.0, many[name] - few[name]) for name in ("kept_mb", "peak_mb"))
    seconds = [f"{one[name]:.1f}" for name in ("seconds", "core_seconds") for one in (many, few)]
    return f"| {what} | {' | '.join(seconds)} | {kept:.0f} | {peak:.0f} |"


def main() -> None:
    """Make the data, run every step on many rows and on few, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=6_000_000)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--only", choices=("clean", "sample"))
    parser.add_argument("--folder", type=Path, help="where the data are made and kept; without it they go at the end")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step, what, folder = options.step
        measured = measure_prepare(what, Path(folder)) if step == "prepare" else measure_worker(what, Path(folder))
        print(json.dumps(measured))
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = (options.folder or Path(temporary)).absolute()
        os.environ["TMPDIR"] = str(place / "tmp")  # of the node's copies
        (place / "tmp").mkdir(parents=True, exist_ok=True)
        folders = [place / f"rows-{count}" for count in (options.rows, FEW)]
        for folder in folders:
            if not folder.exists():
                make_data(folder, num_rows(folder), min(options.files, num_rows(folder)))
        print(f"{options.rows:,} rows over {options.files:,} files; {os.cpu_count()} cores, {platform.processor()}")
        print("| step | s | s of 10 rows | core s | core s of 10 rows | MB more, kept | MB more, peak |")
        print("|---|---|---|---|---|---|---|")
        for which in ("clean", "sample") if options.only is None else (options.only,):
            for again in ("", ", again"):
                found = [in_process("--step", "prepare", which, str(folder)) for folder in folders]
                print(line(f"{which}: prepare{again}", *found), flush=True)
            for name in ("pretrain.job", "clean.job") if which == "sample" else ("clean.job",):
                told = f"{which}: {name.partition('.')[0]}"
                for again in ("first worker's", "next worker's"):
                    found = [in_process("--step", "worker", name, str(folder)) for folder in folders]
                    print(line(f"{told}, {again} start", *(one["start"] for one in found)), flush=True)
                print(line(f"{told}, trial's start", *(one["trial"] for one in found)), flush=True)


if __name__ == "__main__":
    main()
