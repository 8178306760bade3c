"""Workers: where the stages are joined. What runs in a worker process, with or without Ray around it."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import nn

from sweeplab.attacks.poisoning import PoisonPlan
from sweeplab.cleaning.start import recalibrate_batch_norm
from sweeplab.clip_model import (
    Architecture,
    architecture_json,
    build,
    check_activation,
    check_prompts,
    checkpoint_facts,
    load_into,
    load_weights,
    tokenizer,
)
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.tables import PairTable
from sweeplab.data.training_pairs import TrainingPairs
from sweeplab.evaluation.measure import Evaluation, Measure, Trigger
from sweeplab.experiment import CleaningSweep, CleanSample, PretrainedVictim
from sweeplab.orchestration.bringing import S, Sources, node_cache, remove_old_copies
from sweeplab.orchestration.storage import Storage, Uploads
from sweeplab.protocol import Protocol
from sweeplab.records import Measurement, Outcomes, Victim
from sweeplab.specs import InvalidInput, StorageFault, digest_of
from sweeplab.training.loop import Context, Run, train
from sweeplab.training.randomness import numpy_stream, stream_seed


@dataclass(frozen=True)
class Machine:
    """What a worker process may use."""

    data_home: Path
    """Where made and cached data lie."""
    threads: int
    """Of torch, in this process."""
    use_cuda: bool
    decoded_gigabytes: float = 0.0
    """Decoded images that do not fit into memory are kept on the node's disk up to this size."""

    def decoded_files(self, alive: Callable[[], None]) -> DecodedFiles | None:
        """Where; `alive` is called while they are being made."""
        if not self.decoded_gigabytes:
            return None
        _tidy_node()
        return DecodedFiles(node_cache(), 1e9 * self.decoded_gigabytes, alive)


@cache
def _tidy_node() -> None:
    """Once a process: what this node keeps and did not use for long goes."""
    remove_old_copies()


class WorkerContext(Context, Interface):
    """What a worker function is given beside its job."""

    def alive(self) -> None:
        """Say that something moves."""
        ...

    def bring(self, location: str, content: str) -> Path:
        """A path on this node to a file of the driver's node or of an object store; see `local_copy`."""
        ...

    def mirror(self) -> Path:
        """The folder of this node below which copies of the driver's data lie."""
        ...


def whole_machine(home: Path) -> Machine:
    """This machine for one process: as many threads as torch chose, which minds OMP_NUM_THREADS, and a GPU if any.

    More threads than free cores are many times slower than one: they spin while they wait for each other.
    """
    return Machine(home / "data", torch.get_num_threads(), use_cuda=torch.cuda.is_available())


@dataclass(frozen=True)
class Contents:
    """What the driver has read, by content; empty where nobody has."""

    pairs: str = ""
    """Digest of the table of training pairs, poisons that come with the data included."""
    evaluation: str = ""
    """Of the evaluation: see `evaluation_digest`."""


def check_same(what: str, known: str, found: str) -> None:
    """Refuse to work on other data than the driver has read.

    Args:
        what: names them.
        known: digest of what the driver has read; empty where nobody has.
        found: digest of what this process has read.

    Raises:
        StorageFault: if they differ: no trial is at fault, and the same command goes on once the files are restored.
    """
    if known and found != known:
        raise StorageFault(
            f"the {what} that node {socket.gethostname()} sees are not those that the command has read (digest {known} "
            f"-> {found}): files were changed meanwhile, or are others there; restore them, then run the same command "
            "again"
        )


@dataclass(frozen=True)
class PretrainingJob:
    """Everything that a pre-training worker needs."""

    victim: PretrainedVictim
    machine: Machine
    checkpoints: str
    """Folder or URL."""
    attempt: int
    resume_from: str | None
    """A checkpoint's path or URL."""
    initial: str | None = None
    """Absolute path, on the driver's node, of the checkpoint from which training starts."""
    weights: str = ""
    """Tells its content to other nodes."""
    sources: Sources | None = None
    """The data, where another node may not see them."""
    contents: Contents = Contents()
    """The data as they were when the command began."""
    work: Callable[["PretrainingJob", WorkerContext], None] = field(default_factory=lambda: pretrain)

    def checkpoint_minutes(self) -> float | None:
        """Minutes between checkpoints inside an epoch."""
        return self.victim.resources.checkpoint_minutes


@dataclass(frozen=True)
class MeasuringJob:
    """Measure weights under an evaluation."""

    architecture: Architecture
    checkpoint: str
    """Path or URL."""
    evaluation: Evaluation
    trigger: Trigger | None
    machine: Machine
    protocol: Protocol = "paper"
    weights: str = ""
    """Tells the checkpoint's content to other nodes."""
    sources: Sources | None = None
    """The data, where another node may not see them."""
    contents: Contents = Contents()
    """The data as they were when the command began."""


@dataclass(frozen=True)
class CleaningJob:
    """Everything that a worker needs for one attempt of one trial."""

    sweep: CleaningSweep
    victim: Victim
    number: int
    attempt: int
    params: dict[str, Any]
    machine: Machine
    checkpoints: str
    """Folder or URL."""
    resume_from: str | None
    """A checkpoint's path or URL."""
    weights: str = ""
    """Tells the content of the victim's checkpoint to other nodes."""
    sources: Sources | None = None
    """The data, where another node may not see them."""
    contents: Contents = Contents()
    """The data as they were when the command began."""
    work: Callable[["CleaningJob", WorkerContext], None] = field(default_factory=lambda: clean)

    def checkpoint_minutes(self) -> float | None:
        """Minutes between checkpoints inside an epoch."""
        return self.sweep.resources.checkpoint_minutes


@contextmanager
def storing(job: PretrainingJob | CleaningJob) -> Iterator[dict[str, Any]]:
    """Fields of a Run that say where its checkpoints go and where it goes on from.

    With an object store, files are written on this node first and uploaded while training goes on.
    """
    storage = Storage(job.checkpoints)
    fields: dict[str, Any] = {
        "checkpoint_prefix": f"attempt-{job.attempt}-",
        "checkpoint_minutes": job.checkpoint_minutes(),
    }
    if not storage.is_remote:
        storage.wait_for_folder()
        resume = Path(job.resume_from) if job.resume_from else None
        yield {**fields, "checkpoint_folder": Path(job.checkpoints), "resume_from": resume}
        return
    uploads = Uploads(storage)
    try:
        resume = None
        if job.resume_from is not None:
            resume = uploads.folder / "resume.pt"
            storage.download(job.resume_from.rpartition("/")[2], resume)
        yield {**fields, "checkpoint_folder": uploads.folder, "resume_from": resume, "saved": uploads.add}
        uploads.finish()
    finally:
        uploads.close()


def pretrain(job: PretrainingJob, context: WorkerContext) -> None:
    """data -> attack -> pre-training -> evaluation: train a victim, reporting every epoch."""
    victim, device = on_this_node(job.victim, job.sources, context), prepare_process(job.machine)
    decoded = job.machine.decoded_files(context.alive)
    pairs = victim_pairs(victim, job.machine, decoded, job.contents.pairs)
    measure = measure_for(
        victim.architecture,
        victim.evaluation,
        victim.trigger(),
        job.machine,
        victim.protocol,
        decoded,
        job.contents.evaluation,
    )
    measure.alive = context.alive
    model = build(victim.architecture, stream_seed(victim.seed, "initial weights"))
    if job.initial is not None:
        initial = context.bring(job.initial, job.weights)
        load_into(model, load_weights(initial), str(victim.initial))
    model.to(device)
    with storing(job) as places:
        run = Run(
            objective=victim.objective,  # type: ignore[arg-type]
            optimization=victim.optimization,
            epochs=victim.epochs,
            stop_after=victim.select if isinstance(victim.select, int) else None,
            seed=victim.seed,
            config=checkpoint_config(victim.architecture, {"victim": job.victim.to_json()}),
            loader_workers=victim.resources.loader_workers,
            schedule_shift=1 if victim.protocol == "authors" else 0,
            **places,
        )
        train(model, pairs, run, measure=measure, context=context)


def clean(job: CleaningJob, context: WorkerContext) -> None:
    """victim -> cleaning -> evaluation: run one attempt of one trial, reporting the start and every epoch."""
    sweep, device = on_this_node(job.sweep, job.sources, context), prepare_process(job.machine)
    setting = sweep.setting(job.params)
    decoded = job.machine.decoded_files(context.alive)
    pairs = cleaning_pairs(sweep, job.machine, decoded, job.contents.pairs)
    measure = measure_for(
        sweep.victim.architecture,
        sweep.evaluation,
        sweep.trigger(),
        job.machine,
        sweep.protocol,
        decoded,
        job.contents.evaluation,
    )
    measure.alive = context.alive
    checkpoint = context.bring(job.victim.checkpoint, job.weights)
    model = victim_model(sweep.victim.architecture, checkpoint).to(device)
    # On a resumed run too: what a method remembers of its start (PAR's frozen copy) is made from it again.
    setting.start.apply(model, sweep.victim.architecture, stream_seed(sweep.seed, "perturbation"))
    if setting.start.recalibrate_batch_norm:
        recalibrate_batch_norm(model, plain_images(pairs, setting.optimization.global_batch_size, device))
    is_victim = job.victim.is_start and not setting.start.changes_victim
    known_start = (job.victim.measurement, job.victim.outcomes) if is_victim else None
    authors = sweep.protocol == "authors"
    optimization = setting.optimization
    if authors:
        optimization = optimization.replace(**getattr(setting.method, "authors_optimization", {}))
    as_cleanclip = has_cleanclips_trainer(sweep)
    facts = {"sweep": job.sweep.to_json(), "trial": job.number, "params": job.params}
    with storing(job) as places:
        run = Run(
            objective=setting.method,  # type: ignore[arg-type]
            optimization=optimization,
            epochs=sweep.epochs,
            seed=sweep.seed,
            config=checkpoint_config(sweep.victim.architecture, facts),
            start=known_start,
            keep_start=sweep.start_counts(setting),
            loader_workers=sweep.resources.loader_workers,
            measure_at=sweep.measure_at,
            log_every=sweep.log_every,
            schedule_shift=1 if as_cleanclip else 0,
            optimizer_state=load_optimizer_state(checkpoint) if as_cleanclip else None,
            **places,
        )
        train(model, pairs, run, measure=measure, context=context)


def measure_checkpoint(job: MeasuringJob, alive: Callable[[], None] = lambda: None) -> tuple[Measurement, Outcomes]:
    """checkpoint -> evaluation; `alive` is called with every batch."""
    device = prepare_process(job.machine)
    model = victim_model(job.architecture, Path(job.checkpoint))
    decoded = job.machine.decoded_files(alive)
    measure = measure_for(
        job.architecture,
        job.evaluation,
        job.trigger,
        job.machine,
        job.protocol,
        decoded,
        job.contents.evaluation,
    )
    measure.alive = alive
    with blaming(job.checkpoint):
        return measure(model.to(device))


@contextmanager
def blaming(checkpoint: str | Path) -> Iterator[None]:
    """Numbers that are none are the fault of the checkpoint that is measured.

    Raises:
        InvalidInput: naming it, for a FloatingPointError.
    """
    try:
        yield
    except FloatingPointError as error:
        raise InvalidInput(
            f"checkpoint {checkpoint} cannot be measured: {error}; its training diverged or the file is damaged: give "
            "another checkpoint"
        ) from error


def on_this_node(spec: S, sources: Sources | None, context: WorkerContext) -> S:
    """The spec with the paths under which this node has its files, which are brought here first if need be."""
    return spec if sources is None else sources.on_this_node(spec, context.mirror)


def prepare_process(machine: Machine) -> torch.device:
    """Threads and device of this process."""
    torch.set_num_threads(machine.threads)
    if not machine.use_cuda:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidInput(
            "a GPU was asked for and torch sees none; set resources.gpus_per_worker=0 or mend the driver"
        )
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


# Processes serve many trials of one sweep: what does not depend on the trial is made once and kept, by digest.
_pairs: dict[str, TrainingPairs] = {}
_measures: dict[str, Measure] = {}
_weights: dict[str, dict[str, torch.Tensor]] = {}


def victim_table(victim: PretrainedVictim, machine: Machine) -> tuple[PairTable, PoisonPlan]:
    """The victim's pre-training pairs, added poisons included, and which of them are poisoned."""
    table: PairTable = victim.data.read(machine.data_home)  # type: ignore[attr-defined]
    plan = victim.poisoning_under_protocol().plan(table, machine.data_home)
    return plan.training_table(table), plan


def victim_pairs(
    victim: PretrainedVictim, machine: Machine, decoded: DecodedFiles | None = None, known: str = ""
) -> TrainingPairs:
    """The victim's poisoned training pairs, which must have a known digest, if any."""
    table, plan = victim_table(victim, machine)
    check_same("training pairs", known, table.digest)
    key = digest_of(
        ["victim", plan.digest, victim.architecture.canonical(), victim.seed, victim.protocol, victim.text_augmentation]
    )
    if key not in _pairs:
        _pairs.clear()
        _pairs[key] = TrainingPairs(
            table,
            victim.architecture.image_size,
            tokenize=tokenizer(victim.architecture, victim.protocol),
            seed=victim.seed,
            captions=plan.caption_changes(),
            alter=plan.stamp_rows,
            text_augmentation=victim.text_augmentation,
            decode_workers=machine.threads,
            decoded=decoded,
        )
    return _pairs[key]


def cleaning_table(sweep: CleaningSweep, machine: Machine) -> PairTable:
    """The sweep's cleaning pairs."""
    if not isinstance(sweep.data, CleanSample):
        table: PairTable = sweep.data.read(machine.data_home)  # type: ignore[attr-defined]
        return table
    victim = sweep.original_victim()
    assert isinstance(victim, PretrainedVictim)
    table, plan = victim_table(victim, machine)
    poisoned = set(plan.rows)
    clean_rows = [row for row in range(len(table)) if row not in poisoned]
    if sweep.data.num_pairs > len(clean_rows):
        raise InvalidInput(
            f"data.num_pairs={sweep.data.num_pairs} exceeds the {len(clean_rows)} unpoisoned pairs of the victim; "
            "choose fewer"
        )
    order = numpy_stream(sweep.data.seed, "clean sample").permutation(len(clean_rows))[: sweep.data.num_pairs]
    return table.subset(sorted(clean_rows[i] for i in order))


def cleaning_poison(sweep: CleaningSweep, table: PairTable, machine: Machine) -> PoisonPlan | None:
    """Which cleaning pairs are poisoned: none, unless a slightly poisoned sample is asked for."""
    if not isinstance(sweep.data, CleanSample) or not sweep.data.num_poisons:
        return None
    victim = sweep.original_victim()
    assert isinstance(victim, PretrainedVictim)
    seed = stream_seed(sweep.data.seed, "cleaning poison")
    training, plan = victim_table(victim, machine)
    return victim.poisoning_under_protocol().few(table, training, plan, count=sweep.data.num_poisons, seed=seed)


def cleaning_pairs(
    sweep: CleaningSweep, machine: Machine, decoded: DecodedFiles | None = None, known: str = ""
) -> TrainingPairs:
    """The sweep's cleaning pairs, ready for training; made once per process and known digest."""
    key = digest_of(
        [
            "cleaning",
            sweep.data.canonical(),
            sweep.original_victim().canonical() if isinstance(sweep.data, CleanSample) else None,
            str(getattr(sweep.data, "path", "")),
            sweep.victim.architecture.canonical(),
            sweep.protocol,
            sweep.text_augmentation,
            known,
        ]
    )
    if key not in _pairs:
        _pairs.clear()
        labelled = sweep.data.labelled(machine.data_home) if isinstance(sweep.data, LabelledPairs) else None
        table = cleaning_table(sweep, machine)
        plan = cleaning_poison(sweep, table, machine)
        if plan is not None:
            table = plan.training_table(table)
        check_same("training pairs", known, table.digest)
        _pairs[key] = TrainingPairs(
            table,
            sweep.victim.architecture.image_size,
            tokenize=tokenizer(sweep.victim.architecture, sweep.protocol),
            seed=sweep.seed,
            captions=plan.caption_changes() if plan is not None else None,
            alter=plan.stamp_rows if plan is not None else None,
            labels=torch.from_numpy(labelled.labels) if labelled is not None else None,
            num_classes=len(labelled.class_names) if labelled is not None else 0,
            text_augmentation=sweep.text_augmentation,
            decode_workers=machine.threads,
            decoded=decoded,
        )
    _pairs[key].use_seed(sweep.seed)  # of trials that share their configuration: each has its own
    return _pairs[key]


def measure_for(
    architecture: Architecture,
    evaluation: Evaluation,
    trigger: Trigger | None,
    machine: Machine,
    protocol: Protocol = "paper",
    decoded: DecodedFiles | None = None,
    known: str = "",
) -> Measure:
    """The measure of an evaluation, test images decoded and stamped; made once per process and known digest.

    Raises:
        InvalidInput: if the prompts do not tell the classes apart, a target label is not among the classes, or the
            trigger does not fit the image.
    """
    key = digest_of(
        [
            architecture.canonical(),
            evaluation.canonical(),
            str(getattr(evaluation.test, "path", "")),
            trigger.attack.canonical() if trigger else None,  # type: ignore[union-attr]
            str(getattr(getattr(trigger.attack, "images", None), "path", "")) if trigger else None,
            trigger.target if trigger else None,
            protocol,
            known,
        ]
    )
    if key not in _measures:
        _measures.clear()
        images = evaluation.load(machine.data_home)
        check_prompts(architecture, images.class_names, evaluation.prompts(), protocol)
        measure = Measure(
            evaluation,
            images,
            architecture.image_size,
            tokenize=tokenizer(architecture, protocol),
            trigger=trigger,
            targets=trigger.targets(machine.data_home) if trigger else None,
            decode_workers=machine.threads,
            protocol=protocol,
            decoded=decoded,
        )
        check_same("test images, classes or trigger", known, measure.digest)
        _measures[key] = measure
    return _measures[key]


def victim_model(architecture: Architecture, checkpoint: Path) -> nn.Module:
    """A fresh model with the checkpoint's weights."""
    key = f"{checkpoint}:{checkpoint.stat().st_mtime_ns}" if checkpoint.is_file() else str(checkpoint)
    if key not in _weights:
        _weights.clear()
        check_activation(architecture, checkpoint)
        _weights[key] = load_weights(checkpoint)
    model = build(architecture, seed=0)
    load_into(model, _weights[key], str(checkpoint))
    return model


def plain_images(pairs: TrainingPairs, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """All images of the pairs as they are, in order, in batches on the device."""
    for rows in torch.arange(len(pairs)).split(batch_size):
        yield pairs.images_of(rows.tolist()).to(device)


def has_cleanclips_trainer(sweep: CleaningSweep) -> bool:
    """Whether the sweep trains as CleanCLIP's and attack-cleanclip's code does: under protocol `authors`, unless its
    method comes from a trainer of its own."""
    return sweep.protocol == "authors" and bool(getattr(sweep.method, "shares_cleanclips_trainer", True))


def load_optimizer_state(checkpoint: Path) -> dict[str, Any]:
    """The optimizer's state dict in a victim's checkpoint, which the authors' protocol carries into cleaning.

    Raises:
        InvalidInput: if the checkpoint holds none.
    """
    content = (
        torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.suffix != ".safetensors" else {}
    )
    state = content.get("optimizer")
    if not isinstance(state, dict) or "param_groups" not in state:
        raise InvalidInput(
            f"protocol='authors' goes on with the victim's optimizer, and {checkpoint} holds none; "
            "use protocol='paper' or a checkpoint with its optimizer"
        )
    return state


def checkpoint_config(architecture: Architecture, facts: dict[str, Any]) -> str:
    """What is stored in a checkpoint beside the weights."""
    return json.dumps({"architecture": json.loads(architecture_json(architecture)), **facts}, sort_keys=True)


def planted_target(checkpoint: Path) -> str | None:
    """The class towards which a checkpoint says that it was poisoned; None where it says none.

    Only checkpoints of SweepLab say it: a victim's own, or that of a trial that cleaned one.
    """
    facts = checkpoint_facts(checkpoint) or {}
    victim = facts.get("victim") or facts.get("sweep", {}).get("victim", {})
    while "sweep" in victim:
        victim = victim["sweep"]["victim"]
    target: str | None = victim.get("poisoning", victim).get("target")
    return target
