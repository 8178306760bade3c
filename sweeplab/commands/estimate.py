"""Estimate: what a sweep will cost, before any data is there: trials, steps, hours, disk."""

from dataclasses import dataclass
from typing import Any

from sweeplab.clip_model import Architecture, has_batch_norm, num_parameters
from sweeplab.commands.probe import NoProbe, Probe, probe
from sweeplab.data.training_pairs import OWN_BYTES
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import CleaningSweep, Experiment, PretrainedVictim, Resources, SelectedTrial
from sweeplab.records import number_of
from sweeplab.specs import Spec, digest_of
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.sweep.resume import _kind, _optimization, search_in_words, warnings_of
from sweeplab.training.objective import image_views
from sweeplab.training.optimisation import Optimization, pairs_per_chunk
from sweeplab.training.precision import Precision

PAIRS_PER_SECOND = 500.0
"""Pairs that one GPU trains on per second: CLIP RN50 at 224 pixels, from Verma et al., App. A (CC6M, 64 epochs in 24
to 28 hours on 8 A100 of 40 GB). A rough figure for planning; loading the images was part of it."""


def plan(experiment: Experiment, *, probes: bool = False) -> list[str]:
    """What a sweep, or a victim alone, will do and cost, in lines for people, from the declared sizes alone.

    GPU-hours are those at PAIRS_PER_SECOND; with `probes`, hours are those of a few steps that are taken here and now,
    where they can be. Disk space is the most that checkpoints take at a time.
    """
    if isinstance(experiment, PretrainedVictim):
        return _plan_of_victim(experiment, probes=probes)
    return _plan_of_sweep(experiment, probes=probes)


@dataclass(frozen=True)
class _Part:
    """What is trained: the victim, or all trials."""

    name: str
    architecture: Architecture
    objective: Any
    optimization: Optimization
    resources: Resources
    steps: int | None
    """Of all of it; None where the number of pairs is not declared."""
    images: int
    """That are measured, as far as their number is declared."""
    precision: Precision
    """In which they are."""
    searched: tuple[str, ...] = ()
    """What trials have other values of, and a step's seconds depend on."""


_probes: dict[str, Probe] = {}
"""Of this process, by what they depend on: the sweeps of a script are often alike."""


def _probe_of(part: _Part) -> Probe:
    asked, resources = part.optimization, part.resources
    sizes = [asked.global_batch_size, resources.workers, resources.cpus_per_worker]
    ways = [asked.precision, asked.batch_norm, asked.num_chunks, resources.activation_checkpointing]
    ways += [resources.compile, part.precision]
    key = digest_of([part.architecture.to_json(), part.objective.to_json(), *ways, *sizes])
    if key not in _probes:
        _probes[key] = probe(part.architecture, part.objective, asked, resources, part.precision)
    return _probes[key]


def _probed(parts: list[_Part], formula: str) -> list[str]:
    """Lines of costs from probes, or why they are the formula's."""
    lines: list[str] = []
    hours: list[tuple[str, float]] = []
    for part in parts:
        try:
            found = _probe_of(part)
        except NoProbe as error:
            return [*lines, f"  probe             {part.name}: none, since {error}; hours are the formula's", formula]
        values = [f"{name}={getattr(part.optimization, name)}" for name in part.searched]
        default = f" (searched, probed at {', '.join(values)})" if values else ""
        lines.append(f"  probe             {part.name}, {found.to_words()}{default}")
        if part.steps is not None:
            seconds = part.steps * found.step_seconds + part.images * found.image_seconds / part.resources.workers
            hours.append((part.name, seconds * part.resources.workers / 3600))
    if len(hours) < len(parts):
        return [*lines, f"  hours             {UNKNOWN}"]
    each = ", ".join(f"{name} {value:,.3g}" for name, value in hours)
    total = sum(value for _, value in hours)
    left = "data, views, prompts" + (", compilation" if any(part.resources.compile for part in parts) else "")
    return [*lines, f"  worker-hours      about {total:,.3g} ({each}), from the probe; {left} come on top"]


def _measured_images(evaluation: Evaluation) -> int:
    """Clean and triggered ones of one measurement; 0 where their number is not declared."""
    sample = evaluation.sample
    count = getattr(evaluation.test, "num_images", None) if sample is None else sample.num
    return 2 * (count or 0)


def _victims_part(victim: PretrainedVictim) -> _Part:
    steps = _steps(declared_pairs(victim.data), victim.optimization, _epochs(victim))
    images = _epochs(victim) * _measured_images(victim.evaluation)
    precision = victim.evaluation.precision
    return _Part(
        "victim", victim.architecture, victim.objective, victim.optimization, victim.resources, steps, images, precision
    )


def _plan_of_victim(victim: PretrainedVictim, *, probes: bool) -> list[str]:
    pairs, epochs = declared_pairs(victim.data), _epochs(victim)
    hours, steps = _hours_of_victim(victim), _steps(pairs, victim.optimization, epochs)
    selected = f"epoch {victim.select}" if isinstance(victim.select, int) else f"{_kind_or_word(victim.select)} epoch"
    costs = "  hours             known after the first epoch"
    if hours is not None:
        costs = f"  GPU-hours         about {hours:,.0f}, at {PAIRS_PER_SECOND:.0f} pairs a second"
    return [
        victim.name,
        f"  victim alone      {number_of(epochs, 'epoch')} of a schedule of {victim.epochs}, {selected} is selected",
        f"  poisoning         {_fields(victim.poisoning)}",
        f"  objective         {_kind(victim.objective)}: {_fields(victim.objective) or 'no fields'}",
        f"  optimization      {_fields(victim.optimization)}",
        f"  steps             {f'{steps:,}' if steps is not None else UNKNOWN}",
        *_chunk_lines(victim),
        *(_probed([_victims_part(victim)], costs) if probes else [costs]),
        f"  disk              about {(_num_kept(victim) + 2) * _checkpoint_bytes(victim) / 1e9:,.1f} GB of checkpoints",
    ]


def _epochs(victim: PretrainedVictim) -> int:
    """Those that are trained: a victim whose epoch is given ends with it."""
    return victim.select if isinstance(victim.select, int) else victim.epochs


def _hours_of_victim(victim: PretrainedVictim) -> float | None:
    return _gpu_hours(victim.architecture, declared_pairs(victim.data), _epochs(victim), victim.objective)


def _checkpoint_bytes(spec: PretrainedVictim | CleaningSweep) -> int:
    """Weights and AdamW's two moments, float32."""
    victim = spec.victim if isinstance(spec, CleaningSweep) else spec
    return 3 * 4 * num_parameters(victim.architecture)


def _num_kept(victim: PretrainedVictim) -> int:
    """Epochs of which the victim's checkpoints stay: the selected one, and those that are asked for."""
    return _epochs(victim) if victim.keep_epochs == "all" else len(victim.keep_epochs) + 1


def _most_bytes(sweep: CleaningSweep) -> float:
    """The most that the checkpoints of a sweep take at a time, while its last trials run: the victim's; of a trial that
    runs the newest, the best and the one that is being written; of those that are over the best ones, stripped of
    their optimizer where they can be. Where the number of concurrent trials is the cluster's, one runs."""
    resources, trials, whole = sweep.resources, sweep.num_trials(), _checkpoint_bytes(sweep)
    is_stripped = sweep.protocol == "paper" and not Storage(resources.storage or "").is_remote
    running = min(resources.concurrent_trials or 1, trials)
    kept = min(resources.keep_checkpoints, trials - running)
    of_victim = _num_kept(sweep.victim) if isinstance(sweep.victim, PretrainedVictim) else 0
    num_whole = of_victim + running * min(3, sweep.num_points())
    return num_whole * whole + kept * (whole / 3 if is_stripped else whole)


def _kind_or_word(value: Any) -> str:
    return _kind(value) if isinstance(value, Spec) else str(value)


def _plan_of_sweep(sweep: CleaningSweep, *, probes: bool) -> list[str]:
    victim, trials = sweep.victim, sweep.num_trials()
    pairs = declared_pairs(sweep.data)
    victim_pairs, victim_hours, victim_words = None, None, "a given checkpoint"
    if isinstance(victim, SelectedTrial):
        victim_words = f"rank 1 of {victim.sweep.name}, a sweep that is planned by itself"
    elif isinstance(victim, PretrainedVictim):
        victim_pairs, victim_hours = declared_pairs(victim.data), _hours_of_victim(victim)
        victim_steps = _steps(victim_pairs, victim.optimization, _epochs(victim))
        victim_words = f"{victim_steps:,} steps" if victim_steps is not None else f"steps {UNKNOWN}"
    hours = _gpu_hours(victim.architecture, pairs, sweep.epochs * trials, sweep.method)
    steps = _steps(pairs, sweep.optimization, sweep.epochs)
    resources = sweep.resources
    disk = f"about {_most_bytes(sweep) / 1e9:,.1f} GB of checkpoints"
    if (decoded := _decoded_gigabytes(sweep, (victim_pairs, pairs))) >= 0.05:
        disk += f", and {decoded:,.1f} GB of decoded images in each node's temporary folder"
    why = "own architecture" if victim.architecture.name is None else "num_pairs is not declared"
    costs = f"  hours             known after the first trial ({why})"
    if victim_hours is not None or hours is not None:
        costs = (
            f"  GPU-hours         about {(victim_hours or 0) + (hours or 0):,.0f} (victim {victim_hours or 0:,.0f}, "
            f"trials {hours or 0:,.0f}, at {PAIRS_PER_SECOND:.0f} pairs a second)"
        )
    parts = [_victims_part(victim)] if isinstance(victim, PretrainedVictim) else []
    images = trials * (sweep.num_points() - 1) * _measured_images(sweep.evaluation)
    of_trials = None if steps is None else steps * trials
    optimization = _optimization(sweep)
    searched = tuple(name for name in ("global_batch_size", "num_chunks") if name in sweep.parameters())
    work = optimization, resources, of_trials, images, sweep.evaluation.precision, searched
    parts.append(_Part("trials", victim.architecture, sweep.method, *work))
    return [
        sweep.name,
        f"  trials            {trials}, {number_of(sweep.epochs, 'epoch')} each",
        f"  search            {search_in_words(sweep)}",
        f"  victim            {victim_words}",
        f"  method            {_kind(sweep.method)}: {_fields(sweep.method, sweep) or 'no fields'}",
        f"  optimization      {_fields(optimization, sweep)}",
        f"  steps per trial   {f'{steps:,}' if steps is not None else UNKNOWN}",
        *_chunk_lines(sweep),
        *(_probed(parts, costs) if probes else [costs]),
        f"  disk              {disk}",
        *(f"  warning           {line}" for line in warnings_of(sweep)),
    ]


def _chunk_lines(spec: PretrainedVictim | CleaningSweep) -> list[str]:
    """What chunks make of a batch, where there are several and no trial may have others."""
    optimization, workers = spec.optimization, spec.resources.workers
    searched = spec.parameters() if isinstance(spec, CleaningSweep) else ()
    if optimization.num_chunks == 1 or {"num_chunks", "global_batch_size", "batch_norm"} & set(searched):
        return []
    size = pairs_per_chunk(optimization, workers)
    words = f"{optimization.num_chunks} chunks of {size:,} pairs on each of {workers} workers"
    architecture = spec.architecture if isinstance(spec, PretrainedVictim) else spec.victim.architecture
    batch_norm = _optimization(spec).batch_norm if isinstance(spec, CleaningSweep) else optimization.batch_norm
    if batch_norm != "frozen" and has_batch_norm(architecture):
        words += ", of which BatchNorm takes its statistics" + (" over all workers" if batch_norm == "sync" else "")
    return [f"  a step            {words}"]


UNKNOWN = "unknown (declare num_pairs)"


def _steps(pairs: int | None, optimization: Optimization, epochs: int) -> int | None:
    """Optimizer updates; None where the number of pairs is not declared."""
    return None if pairs is None else pairs // optimization.global_batch_size * epochs


def _gpu_hours(architecture: Architecture, pairs: int | None, epochs: int, objective: Any) -> float | None:
    """None where the number of pairs is not declared, and for own architectures: the rate was measured on the papers'
    alone."""
    if architecture.name is None or not pairs:
        return None
    views = 1 if image_views(objective) is None else 2
    return pairs * epochs * views / PAIRS_PER_SECOND / 3600


def _fields(spec: Spec, sweep: CleaningSweep | None = None) -> str:
    """Every field with its value; of a spec in a field its kind; of one that a sweep searches that it is searched."""
    shown, searched = [], sweep.parameters() if sweep is not None else ()
    for name in type(spec).model_fields:
        word = _kind_or_word(getattr(spec, name))
        if name == "warmup_steps" and spec.schedule == "fall-cosine":  # type: ignore[attr-defined]
            continue  # which has none
        if name != "kind":
            shown.append(f"{name} {'searched' if name in searched else word}")
    return ", ".join(shown)


def _decoded_gigabytes(sweep: CleaningSweep, pairs: tuple[int | None, ...]) -> float:
    """Of the files of pixels that a node keeps: training images, test images, and these with their triggers, where
    there are many of them, and together within the node's budget. Sets whose size is not declared are left out."""
    each = 3 * sweep.victim.architecture.image_size**2
    test = _measured_images(sweep.evaluation)
    sizes = [each * count for count in pairs if count is not None and each * count > OWN_BYTES]
    if each * test > OWN_BYTES:
        sizes += [each * test // 2, each * test // 2]
    kept = 0
    for size in sizes:
        kept += size if kept + size <= 1e9 * sweep.resources.node_cache_gigabytes else 0
    return kept / 1e9


def declared_pairs(source: Any) -> int | None:
    """Pairs of a source, where its spec says how many; those of its sample, if it has one."""
    sample = getattr(source, "sample", None)
    count: int | None = getattr(source, "num_pairs", None) if sample is None else sample.num
    return count
