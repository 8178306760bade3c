"""Estimate: what a sweep will cost, before any data is there: trials, steps, hours, disk."""

from typing import Any

from sweeplab.clip_model import num_parameters
from sweeplab.data.training_pairs import CACHE_BYTES
from sweeplab.experiment import CleaningSweep, PretrainedVictim, SelectedTrial
from sweeplab.specs import Spec
from sweeplab.sweep.resume import _kind, _optimization, search_in_words, warnings_of
from sweeplab.training.objective import image_views
from sweeplab.training.optimisation import Optimization

PAIRS_PER_SECOND = 500.0
"""Pairs that one GPU trains on per second: CLIP RN50 at 224 pixels, from Verma et al., App. A (CC6M, 64 epochs in 24
to 28 hours on 8 A100 of 40 GB). A rough figure for planning; loading the images was part of it."""


def plan(sweep: CleaningSweep) -> list[str]:
    """What a sweep will do and cost, in lines for people, from the declared sizes alone.

    GPU-hours are those at PAIRS_PER_SECOND. Disk space is that of the weights kept at the end, plus one checkpoint with
    optimizer state for every trial that runs.
    """
    victim, trials = sweep.victim, sweep.num_trials()
    pairs = _declared(sweep.data)
    victim_pairs, victim_hours, victim_words = None, None, "a given checkpoint"
    if isinstance(victim, SelectedTrial):
        victim_words = f"rank 1 of {victim.sweep.name}, a sweep that is planned by itself"
    elif isinstance(victim, PretrainedVictim):
        victim_pairs = _declared(victim.data)
        epochs = victim.select if isinstance(victim.select, int) else victim.epochs
        victim_hours = _gpu_hours(sweep, victim_pairs, epochs, victim.objective)
        victim_steps = _steps(victim_pairs, victim.optimization, epochs)
        victim_words = f"{victim_steps:,} steps" if victim_steps is not None else f"steps {UNKNOWN}"
    hours = _gpu_hours(sweep, pairs, sweep.epochs * trials, sweep.method)
    steps = _steps(pairs, sweep.optimization, sweep.epochs)
    size = 3 * 4 * num_parameters(victim.architecture)  # weights and AdamW's two moments, float32
    kept = sweep.resources.keep_checkpoints + (sweep.resources.concurrent_trials or 1) * 2 + 2
    disk = f"about {kept * size / 1e9:,.1f} GB of checkpoints"
    if decoded := _decoded_gigabytes(sweep, (victim_pairs, pairs)):
        disk += f", and {decoded:,.1f} GB of decoded images in each node's temporary folder"
    costs = "  hours             known after the first trial (own architecture)"
    if victim_hours is not None or hours is not None:
        costs = (
            f"  GPU-hours         about {(victim_hours or 0) + (hours or 0):,.0f} (victim {victim_hours or 0:,.0f}, "
            f"trials {hours or 0:,.0f}, at {PAIRS_PER_SECOND:.0f} pairs a second)"
        )
    return [
        sweep.name,
        f"  trials            {trials}, {sweep.epochs} epochs each",
        f"  search            {search_in_words(sweep)}",
        f"  victim            {victim_words}",
        f"  method            {_kind(sweep.method)}: {_fields(sweep.method, sweep) or 'no fields'}",
        f"  optimization      {_fields(_optimization(sweep), sweep)}",
        f"  steps per trial   {f'{steps:,}' if steps is not None else UNKNOWN}",
        costs,
        f"  disk              {disk}",
        *(f"  warning           {line}" for line in warnings_of(sweep)),
    ]


UNKNOWN = "unknown (declare num_pairs)"


def _steps(pairs: int | None, optimization: Optimization, epochs: int) -> int | None:
    """Optimizer updates; None where the number of pairs is not declared."""
    return None if pairs is None else pairs // optimization.global_batch_size * epochs


def _gpu_hours(sweep: CleaningSweep, pairs: int | None, epochs: int, objective: Any) -> float | None:
    """None where the number of pairs is not declared, and for own architectures: the rate was measured on the papers'
    alone."""
    if sweep.victim.architecture.name is None or not pairs:
        return None
    views = 1 if image_views(objective) is None else 2
    return pairs * epochs * views / PAIRS_PER_SECOND / 3600


def _fields(spec: Spec, sweep: CleaningSweep) -> str:
    """Every field with its value; of a spec in a field its kind; of a searched one that it is searched."""
    shown = []
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        word = _kind(value) if isinstance(value, Spec) else value
        if name == "warmup_steps" and spec.schedule == "fall-cosine":  # type: ignore[attr-defined]
            continue  # which has none
        if name != "kind":
            shown.append(f"{name} {'searched' if name in sweep.parameters() else word}")
    return ", ".join(shown)


def _decoded_gigabytes(sweep: CleaningSweep, pairs: tuple[int | None, ...]) -> float:
    """Of the sets that are decoded once a node: too large for memory, and no larger than is allowed. Sets whose size is
    not declared are left out."""
    each = 3 * sweep.victim.architecture.image_size**2
    sample = sweep.evaluation.sample
    test = getattr(sweep.evaluation.test, "num_images", None) if sample is None else sample.num
    sizes = [each * count for count in pairs if count is not None and each * count > CACHE_BYTES]
    if test is not None and 2 * each * test > CACHE_BYTES:
        sizes.append(each * test)
    return sum(size / 1e9 for size in sizes if size <= 1e9 * sweep.resources.decoded_gigabytes)


def _declared(source: Any) -> int | None:
    """Pairs of a source, where its spec says how many; those of its sample, if it has one."""
    sample = getattr(source, "sample", None)
    count: int | None = getattr(source, "num_pairs", None) if sample is None else sample.num
    return count
