"""Estimate: what a sweep will cost, before any data is there: trials, steps, hours, disk."""

from dataclasses import dataclass
from typing import Any

from sweeplab.clip_model import num_parameters
from sweeplab.data.training_pairs import CACHE_BYTES
from sweeplab.experiment import CleaningSweep, CleanSample, PretrainedVictim, SelectedTrial
from sweeplab.specs import Spec
from sweeplab.sweep.resume import _kind, _optimization, search_in_words, warnings_of
from sweeplab.training.objective import image_views

PAIRS_PER_SECOND = 500.0
"""Pairs that one GPU trains on per second: CLIP RN50 at 224 pixels, from Verma et al., App. A (CC6M, 64 epochs in 24
to 28 hours on 8 A100 of 40 GB). A rough figure for planning; loading the images was part of it."""


@dataclass(frozen=True)
class Estimate:
    """A sweep's size."""

    name: str
    trials: int
    epochs: int
    victim_steps: int | None
    """Optimizer updates of pre-training; None where the victim is a checkpoint or its data's size is not declared."""
    search: str
    """How settings are drawn, in words."""
    victim: str
    """What is cleaned, in words."""
    steps_per_trial: int | None
    """Optimizer updates of a trial; None where the size of the cleaning data is not declared."""
    victim_gpu_hours: float | None
    """At PAIRS_PER_SECOND; None for own small architectures, for which there is no such figure."""
    sweep_gpu_hours: float | None
    disk_gigabytes: float
    """Weights kept at the end, plus one checkpoint with optimizer state for every trial that runs."""
    decoded_gigabytes: float
    """Decoded images that do not fit into memory, of every node; sets whose size is not declared are left out."""
    method: str
    """The method's fields, in words."""
    optimization: str
    """Those of the optimisation of trials."""
    warnings: tuple[str, ...] = ()
    """See `warnings_of`."""

    def lines(self) -> list[str]:
        """For people."""

        def count(value: int | None) -> str:
            return f"{value:,}" if value is not None else "unknown (declare num_pairs)"

        hours = [h for h in (self.victim_gpu_hours, self.sweep_gpu_hours) if h is not None]
        return [
            f"{self.name}",
            f"  trials            {self.trials}, {self.epochs} epochs each",
            f"  search            {self.search}",
            f"  victim            {self.victim}",
            f"  method            {self.method}",
            f"  optimization      {self.optimization}",
            f"  steps per trial   {count(self.steps_per_trial)}",
            f"  GPU-hours         about {sum(hours):,.0f} (victim {self.victim_gpu_hours or 0:,.0f}, "
            f"trials {self.sweep_gpu_hours or 0:,.0f}, at {PAIRS_PER_SECOND:.0f} pairs a second)"
            if hours
            else "  hours             known after the first trial (own architecture)",
            f"  disk              about {self.disk_gigabytes:,.1f} GB of checkpoints"
            + (
                f", and {self.decoded_gigabytes:,.1f} GB of decoded images in each node's temporary folder"
                if self.decoded_gigabytes
                else ""
            ),
            *(f"  warning           {line}" for line in self.warnings),
        ]


def plan(sweep: CleaningSweep) -> Estimate:
    """Plan from the declared sizes alone."""
    victim = sweep.victim
    pretraining_pairs = _declared(victim.data) if isinstance(victim, PretrainedVictim) else None
    cleaning_pairs = sweep.data.num_pairs if isinstance(sweep.data, CleanSample) else _declared(sweep.data)
    victim_epochs = 0
    if isinstance(victim, PretrainedVictim):
        victim_epochs = victim.select if isinstance(victim.select, int) else victim.epochs
    views = 2 if image_views(sweep.method) is not None else 1  # type: ignore[arg-type]
    victim_views = 2 if isinstance(victim, PretrainedVictim) and image_views(victim.objective) is not None else 1  # type: ignore[arg-type]
    victim_steps = None
    if pretraining_pairs is not None and isinstance(victim, PretrainedVictim):
        victim_steps = pretraining_pairs // victim.optimization.global_batch_size * victim_epochs
    # The rate was measured on the papers' architectures; of an own configuration nothing is known.
    known_rate = victim.architecture.name is not None
    size = 3 * 4 * num_parameters(victim.architecture)  # weights and AdamW's two moments, float32
    trials = sweep.num_trials()
    kept = sweep.resources.keep_checkpoints + (sweep.resources.concurrent_trials or 1) * 2 + 2
    return Estimate(
        name=sweep.name,
        trials=trials,
        epochs=sweep.epochs,
        victim_steps=victim_steps,
        search=search_in_words(sweep),
        victim=_in_words(sweep, victim_steps),
        steps_per_trial=None
        if cleaning_pairs is None
        else cleaning_pairs // sweep.optimization.global_batch_size * sweep.epochs,
        victim_gpu_hours=pretraining_pairs * victim_epochs * victim_views / PAIRS_PER_SECOND / 3600
        if known_rate and pretraining_pairs
        else None,
        sweep_gpu_hours=cleaning_pairs * sweep.epochs * trials * views / PAIRS_PER_SECOND / 3600
        if known_rate and cleaning_pairs
        else None,
        disk_gigabytes=kept * size / 1e9,
        decoded_gigabytes=_decoded_gigabytes(sweep, (pretraining_pairs, cleaning_pairs)),
        method=f"{_kind(sweep.method)}: {_fields(sweep.method, sweep) or 'no fields'}",
        optimization=_fields(_optimization(sweep), sweep),
        warnings=tuple(warnings_of(sweep)),
    )


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
    """Of the sets that are decoded once a node: too large for memory, and no larger than is allowed."""
    each = 3 * sweep.victim.architecture.image_size**2
    test = getattr(sweep.evaluation.test, "num_images", None)
    sizes = [each * count for count in pairs if count is not None and each * count > CACHE_BYTES]
    if test is not None and 2 * each * test > CACHE_BYTES:
        sizes.append(each * test)
    return sum(size / 1e9 for size in sizes if size <= 1e9 * sweep.resources.decoded_gigabytes)


def _in_words(sweep: CleaningSweep, steps: int | None) -> str:
    if isinstance(sweep.victim, SelectedTrial):
        return f"rank 1 of {sweep.victim.sweep.name}, a sweep that is planned by itself"
    if isinstance(sweep.victim, PretrainedVictim):
        return f"{steps:,} steps" if steps is not None else "steps unknown (declare num_pairs)"
    return "a given checkpoint"


def _declared(source: Any) -> int | None:
    count: int | None = getattr(source, "num_pairs", None)
    return count
