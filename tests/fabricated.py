"""Made-up sweeps for the tests of ledger, search, tracking and commands: everything but the training is real."""

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweeplab.attacks.badnet import BadNet
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.clip_model import SmallCLIP
from sweeplab.data.fruit_stall import ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import CheckpointVictim, CleaningSweep, Resources, Search
from sweeplab.records import MeasuredImages, Measurement, Outcomes, Point, Victim
from sweeplab.search_space import Grid, LogUniform, SearchSpace, Uniform
from sweeplab.sweep.controller import Listener, SweepController
from sweeplab.sweep_folder import SweepFolder
from sweeplab.training.optimisation import Optimization
from sweeplab.worker.jobs import CleaningJob, Machine

NUM_IMAGES, NUM_TRIGGERED = 100, 80
IMAGES = MeasuredImages(target_rows=tuple(range(20)), num_classes=16)

ARCHITECTURE = SmallCLIP(
    image_size=32, width=8, embed_dim=16, text_width=16, text_layers=1, context_length=16
).architecture()

OF_FEW_WORDS = ARCHITECTURE.replace(
    config={**ARCHITECTURE.resolved(), "text_cfg": {**ARCHITECTURE.resolved()["text_cfg"], "vocab_size": 64}}
)
"""For tests that train and save a model often: three quarters of the other's parameters are vectors of words."""

VIT = OF_FEW_WORDS.replace(
    config={
        **OF_FEW_WORDS.resolved(),
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    }
)
"""A step or a checkpoint of it takes two fifths of the time: it has 38 tensors, not 141, and none of BatchNorm's."""


def number_words(texts: list[str]) -> torch.Tensor:
    """(N, 16) int64, the tokens of 61 words, told by their checksums; 62 begins a text, 63 ends it, then come zeros."""
    numbers = [[62, *(1 + zlib.crc32(word.encode()) % 61 for word in text.split()[:14]), 63] for text in texts]
    return torch.tensor([row + [0] * (16 - len(row)) for row in numbers])


SWEEP = CleaningSweep(
    name="made-up",
    victim=CheckpointVictim(
        name="made-up-victim",
        path=Path("victim.pt"),
        architecture=ARCHITECTURE,
        attack=BadNet(patch_size=4),
        target="banana",
    ),
    method=CleanCLIP(),
    optimization=Optimization(warmup_steps=0, global_batch_size=16),
    epochs=2,
    data=FruitStall(num_pairs=64, image_size=32),
    evaluation=Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES),
    space=SearchSpace(
        dimensions={"learning_rate": LogUniform(low=1e-4, high=1e-1), "ssl_weight": Uniform(low=0.0, high=4.0)},
        source="made up",
    ),
    grid=Grid(axes={"ssl_weight": (1.0, 2.0), "learning_rate": (1e-3, 1e-2, 1e-1)}, source="made up"),
    search=Search(trials=6, startup_trials=3),
    resources=Resources(concurrent_trials=1),
)

MACHINE = Machine(Path("data"), threads=1, use_cuda=False)


def measurement(accuracy_k: int, asr_k: int) -> Measurement:
    """So many of 100 images correct, so many of 80 triggered ones hit."""
    return Measurement(accuracy_k, NUM_IMAGES, asr_k, NUM_TRIGGERED, "evaluation")


def outcomes(values: Measurement) -> Outcomes:
    """The first k images count."""
    return Outcomes.of(
        np.arange(values.accuracy_n) < values.accuracy_k,
        np.arange(values.asr_n) < values.asr_k,
    )


def point(index: int, accuracy_k: int, asr_k: int, *, attempt: int = 1, checkpoint: str | None = None) -> Point:
    """Epoch `index`, with a time that depends on index and attempt alone."""
    return Point(
        index=index,
        epoch=float(index),
        step=4 * index,
        attempt=attempt,
        measurement=measurement(accuracy_k, asr_k),
        train={"loss": 1.5, "learning_rate": 1e-3, "logit_scale": 14.0} if index else {},
        train_seconds=2.0,
        evaluate_seconds=1.0,
        timestamp_ms=1_700_000_000_000 + 1000 * index + 10 * attempt,
        checkpoint=checkpoint,
    )


VICTIM_POINT = point(0, 90, 79)

VICTIM = Victim(
    "made-up-victim", "0" * 16, "victim.pt", 0.0, VICTIM_POINT.measurement, outcomes(VICTIM_POINT.measurement)
)


def prepared_folder(path: Path, sweep: CleaningSweep = SWEEP) -> SweepFolder:
    """A sweep's folder as it is when the first trial may start."""
    folder = SweepFolder(path / sweep.name)
    folder.write_header(sweep, sweep.digest(), {}, IMAGES)
    folder.commit_victim(VICTIM)
    return folder


def open_controller(
    folder: SweepFolder, sweep: CleaningSweep = SWEEP, *listeners: Listener, **named: Any
) -> SweepController:
    """A driver's controller over the folder, as a new process would open it."""
    return SweepController(sweep, folder, VICTIM, MACHINE, listeners, **named)


Rates = Callable[[dict[str, Any], int], tuple[int, int]]


def rates_by_learning_rate(params: dict[str, Any], index: int) -> tuple[int, int]:
    """Correct and hit images: the higher the rate, the cleaner and the less accurate."""
    strength = (math.log10(params["learning_rate"]) + 4) / 3 * index / 2
    return round(90 - 40 * strength), round(79 * max(0.0, 1 - 1.5 * strength))


@dataclass
class Player:
    """Stands in for an executor: makes points and checkpoint files where a worker would train."""

    controller: SweepController
    rates: Rates = rates_by_learning_rate
    asks: bool = True
    """Whether it asks after every point if it should stop."""

    def points(self, job: CleaningJob) -> Iterable[Point]:
        """The points that a worker with this job reports, each with its checkpoint written before."""
        first = 0 if job.resume_from is None else int(Path(job.resume_from.name).stem[-4:]) + 1
        for index in range(first, self.controller.sweep.epochs + 1):
            name = None
            if index:
                name = f"attempt-{job.attempt}-epoch-{index:04d}.pt"
                folder = Path(job.checkpoints)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(b"weights")
            yield point(index, *self.rates(job.params, index), attempt=job.attempt, checkpoint=name)

    def play(self, job: CleaningJob, *, num_points: int | None = None) -> None:
        """Run an attempt as long as the controller lets it; with `num_points`, only so many points, and no end."""
        for made in itertools.islice(self.points(job), num_points):
            self.controller.point(job.number, made, outcomes(made.measurement))
            if self.asks and self.controller.should_stop(job.number):
                break
        if num_points is None:
            self.controller.finished(job.number)

    def play_all(self) -> list[CleaningJob]:
        """Run whatever the controller hands out, one after the other."""
        jobs = []
        while (job := self.controller.next_job()) is not None:
            self.play(job)
            jobs.append(job)
        return jobs


def finished_sweep(path: Path, sweep: CleaningSweep = SWEEP) -> SweepFolder:
    """A sweep that has run to its end."""
    folder = prepared_folder(path, sweep)
    Player(open_controller(folder, sweep)).play_all()
    return folder


def run_on_ray(script: str, folder: Path, **environment: str) -> dict[str, Any]:
    """Run a script of a test in a process of its own, outside any cluster, with a home in the folder as its argument.

    Returns:
        Its last line, which is JSON.
    """
    (folder / "script.py").write_text(script)
    tests = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="sl-", ignore_cleanup_errors=True) as scratch:
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        own = {"TMPDIR": scratch, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", **environment}
        command = [sys.executable, str(folder / "script.py"), str(folder / "home")]
        ran = subprocess.run(command, env=inherited | own, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found
