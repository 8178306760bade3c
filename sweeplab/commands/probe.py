"""Probe: what a step of a sweep's training takes on the hardware that is here, measured on noise."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sweeplab.clip_model import Architecture, build_unfilled, evaluation_mode, normalise_pixels, num_parameters
from sweeplab.data.cores import usable_cores
from sweeplab.experiment import Resources
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL
from sweeplab.specs import InvalidInput
from sweeplab.training.objective import Objective, image_views
from sweeplab.training.optimisation import Optimization
from sweeplab.training.precision import Precision, float32_products, forward_pass
from sweeplab.training.probe import ProbeStep, noise_batch
from sweeplab.worker.failures import says_out_of_memory

CPU_SECONDS = 15.0
"""That the steps of a probe may take on a CPU; no further one begins after it."""
CORE_FLOPS = 3e10
"""Of a core in a second, float32: a slow one's."""
STEPS = 3
"""That are measured, after one in which memory is laid out; fewer where the time is up."""
TOO_SLOW = f"steps on this CPU would take more than {CPU_SECONDS:.0f} s"
STATUS = Path("/proc/self/status")


class NoProbe(Exception):
    """Nothing was measured; says why."""


@dataclass(frozen=True)
class Probe:
    """What was measured of one worker."""

    hardware: str
    pairs: int
    """Of a measured step."""
    batch: int
    """Pairs of a worker's step in the sweep; more than `pairs` where those are all that a CPU does in the time."""
    step_seconds: float
    """Of a step of `batch` pairs."""
    image_seconds: float
    """Of a test image, which is embedded alone."""
    gigabytes: float | None
    """At the peak of a step of `batch` pairs, without data; None: unknown on this system."""

    def to_words(self) -> str:
        """For the plan."""
        scaled = f", from steps of {self.pairs}" if self.pairs < self.batch else ""
        memory = "" if self.gigabytes is None else f", {self.gigabytes:.1f} GB"
        return f"{self.hardware}: {self.step_seconds:.3g} s a step of {self.batch} pairs{scaled}{memory} a worker"


def probe(
    architecture: Architecture,
    objective: Objective,
    optimization: Optimization,
    resources: Resources,
    precision: Precision = "float32",
) -> Probe:
    """A few steps on noise, one worker's share of the batch, on a GPU where there is one.

    An objective that prepares each epoch by a look at all pairs is stood in for by MMCL, with views where it has some.
    What it takes to compile a step is not counted.

    Args:
        architecture: of the model.
        objective: of the steps.
        optimization: of the sweep; its batch is shared by the workers.
        resources: of the sweep.
        precision: in which test images are embedded.

    Raises:
        NoProbe: if the model does not fit, steps would take too long on this CPU, or what compiles them is not here.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = min(resources.cpus_per_worker, usable_cores())
    views = image_views(objective) is not None
    if hasattr(objective, "start_epoch"):
        objective = MMCLWithSSL() if views else MMCL()
    batch = optimization.global_batch_size // resources.workers
    pairs = batch if device.type == "cuda" else min(batch, _affordable(architecture, cores, views=views))
    if not (pairs := pairs - pairs % optimization.num_chunks):
        raise NoProbe(TOO_SLOW)
    needed, free = 16 * num_parameters(architecture) / 1e9, _free_gigabytes(device)
    if free is not None and needed > 0.8 * free:
        raise NoProbe(f"weights, gradients and moments take {needed:.1f} GB, and {free:.1f} GB are free here")
    # One process has nobody to share statistics with.
    batch_norm = "local" if optimization.batch_norm == "sync" else optimization.batch_norm
    own = optimization.replace(global_batch_size=pairs, warmup_steps=0, batch_norm=batch_norm)
    threads = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        with float32_products(optimization.precision):
            noise = noise_batch(architecture, pairs, views=views)
            ways = {"activation_checkpointing": resources.activation_checkpointing, "compile": resources.compile}
            step = ProbeStep(architecture, objective, own, noise, device, **ways)
            if resources.compile:
                step()
            return _measured(step, architecture, batch, _name(device, cores), device, precision)
    except InvalidInput as error:
        raise NoProbe(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not says_out_of_memory(f"{type(error).__name__}: {error}"):
            raise
        raise NoProbe(f"a step of {pairs} pairs runs out of memory on {_name(device, cores)}") from error
    finally:
        torch.set_num_threads(threads)


def _affordable(architecture: Architecture, cores: int, *, views: bool) -> int:
    """Pairs of a step such that a CPU does the steps in the time.

    Raises:
        NoProbe: if these are fewer than two.
    """
    with torch.device("meta"):
        model = build_unfilled(architecture).eval()
        inputs = torch.empty(1, 3, architecture.image_size, architecture.image_size)
        words = torch.zeros(1, architecture.context_length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model.encode_image(inputs)  # type: ignore[operator]
            model.encode_text(words)  # type: ignore[operator]
    # A backward pass takes twice a forward pass.
    flops = 3 * counter.get_total_flops() * (2 if views else 1) * (1 + STEPS)
    pairs = int(CPU_SECONDS * cores * CORE_FLOPS / flops)
    if pairs < 2:
        raise NoProbe(TOO_SLOW)
    return pairs


def _measured(
    step: ProbeStep, architecture: Architecture, batch: int, hardware: str, device: torch.device, precision: Precision
) -> Probe:
    pairs, before = len(step.batch.rows), _reset_peak(device)
    seconds = _seconds(step, device)
    if device.type == "cpu" and seconds > CPU_SECONDS:
        raise NoProbe(f"a step of {pairs} pairs takes {seconds:.0f} s on {hardware}")
    peak = _peak_gigabytes(device)
    fixed = 12 * num_parameters(architecture) / 1e9  # gradients and moments, whatever the batch
    memory = None
    if peak is not None and before is not None:
        memory = before + fixed + max(0.0, peak - before - fixed) * batch / pairs
    model, images = step.training.model, normalise_pixels(step.batch.images.to(device))

    def embed() -> None:
        with torch.inference_mode(), forward_pass(device, precision):
            model.encode_image(images)  # type: ignore[operator]

    with evaluation_mode(model), float32_products(precision):
        image_seconds = _seconds(embed, device) / pairs
    return Probe(hardware, pairs, batch, seconds * batch / pairs, image_seconds, memory)


def _seconds(turn: Callable[[], object], device: torch.device) -> float:
    """Of a turn: the mean of some, without the first unless that took all of the time."""
    taken: list[float] = []
    while len(taken) <= STEPS and sum(taken) < CPU_SECONDS:
        began = time.perf_counter()
        turn()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    counted = taken[1:] or taken
    return sum(counted) / len(counted)


def _name(device: torch.device, cores: int) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {cores} thread{'s' * (cores > 1)}"


def _free_gigabytes(device: torch.device) -> float | None:
    """Memory that is free; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _reset_peak(device: torch.device) -> float | None:
    """Gigabytes that are taken now; the peak counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e9
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _kilobytes(STATUS, "VmRSS")


def _peak_gigabytes(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return _kilobytes(STATUS, "VmHWM")


def _kilobytes(path: Path, name: str) -> float | None:
    """A line of a file of /proc, in gigabytes."""
    with suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / 1e9
    return None
