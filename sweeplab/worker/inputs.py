"""Inputs: tables, pairs, test images and weights that a worker reads, made once a process and kept by digest."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from sweeplab.attacks.poisoning import Poisoning, PoisonPlan
from sweeplab.attacks.targeted import TargetedImages, Targets
from sweeplab.clip_checkpoints import check_activation, checkpoint_facts, load_model, load_weights
from sweeplab.clip_folders import checkpoint_file
from sweeplab.clip_model import Architecture, architecture_json, check_prompts, tokenizer
from sweeplab.data.broken import StandIns, refuse_too_many
from sweeplab.data.cores import usable_cores
from sweeplab.data.images import undecodable
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.table_files import FEW_ROWS, TableFiles
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.data.training_pairs import CACHE_BYTES, TrainingPairs
from sweeplab.evaluation.measure import Evaluation, Measure, Trigger
from sweeplab.experiment import CleaningSweep, CleanSample, PretrainedVictim
from sweeplab.protocol import Protocol
from sweeplab.specs import InvalidInput, Spec, digest_of
from sweeplab.storage.broken_rows import BrokenRow, BrokenRows, in_words, recorded_in, sweep_owner, victim_owner
from sweeplab.storage.sweep_records import original_victim, section
from sweeplab.training.randomness import numpy_stream, stream_seed
from sweeplab.worker.input_paths import paths_of
from sweeplab.worker.jobs import NO_DIGESTS, DataDigests, Machine, check_same_data
from sweeplab.worker.training_sets import TrainingSet, keep_training_set, kept_training_set

T = TypeVar("T")

# Processes serve many trials of one sweep: what does not depend on the trial is made once and kept, by digest.
_pairs: dict[str, tuple[tuple[Any, ...], TrainingPairs]] = {}
"""With the specs that they were made of: a class that was defined anew, in an interactive session, reads as before."""

_measures: dict[str, Measure] = {}

_weights: dict[str, dict[str, torch.Tensor]] = {}


class Inputs:
    """Reads what specs name, each table, test set and poison plan once."""

    def __init__(
        self,
        data_home: Path,
        tables: TableFiles | None = None,
        heartbeat: Callable[[], None] = lambda: None,
        *,
        recorded: Mapping[str, BrokenRows] | None = None,
        anew: tuple[str, ...] = (),
    ) -> None:
        """Nothing is read yet.

        Args:
            data_home: the home's folder of data.
            tables: where this node keeps tables of many rows; None: they lie in this process's memory.
            heartbeat: called now and then while another process reads what this one waits for.
            recorded: what the driver knows of broken rows, by owner, in a worker; None: the home's records say it, and
                what is not recorded yet is looked for.
            anew: owners that begin anew, whatever is recorded of them.
        """
        self.data_home, self._tables, self._heartbeat = data_home, tables, heartbeat
        self._known: dict[str, Any] = {}
        self._recorded, self._anew = recorded, anew
        self.broken: dict[str, BrokenRows] = {}
        """What there is to record of the tables that were settled, by owner."""
        self._unlooked: dict[str, Any] = {}
        """Sources whose tables are too large to be looked at before workers are, by owner."""

    def pairs(self, source: Any) -> PairTable:
        """The table of a source of pairs, which is read, and its files looked up."""
        return self._once("pairs", [source], lambda: self._mapped(source.read(self.data_home)))

    def test(self, evaluation: Evaluation) -> LabelledImages:
        """The test images of an evaluation."""
        return self._once("test", [evaluation.test, evaluation.sample], lambda: evaluation.load(self.data_home))

    def labelled(self, source: LabelledPairs) -> LabelledImages:
        """Labelled pictures to clean with."""
        return self._once("labelled", [source], lambda: source.labelled(self.data_home))

    def targets(self, trigger: Trigger) -> Targets | None:
        """The target images of targeted poisoning."""
        return self._once("targets", [trigger.attack], lambda: trigger.targets(self.data_home))

    def victim_table(self, victim: PretrainedVictim) -> tuple[PairTable, PoisonPlan]:
        """The victim's pre-training pairs, added poisons included, and which of them are poisoned.

        Raises:
            InvalidInput: if a poisoned pair is broken, and the poisoning does not choose another one.
        """
        poisoning, size = victim.poisoning_under_protocol(), victim.architecture.image_size
        owner = victim_owner(victim.name)

        def read() -> tuple[PairTable, PoisonPlan]:
            table = self.settled(owner, victim.data, self.pairs(victim.data), size)
            table, plan = self.planned(owner, table, size, lambda whole: poisoning.plan(whole, self.data_home))
            training = plan.training_table(table)
            StandIns(len(training), training.reasons(), plan.rows)
            return training if training is table else self._mapped(training), plan

        return self._once("poisoned", [victim.data, poisoning, owner, size], read)

    def settled(self, owner: str, source: Any, table: PairTable, image_size: int) -> PairTable:
        """The table with its broken rows: as they were recorded when the run began, whatever has become of them since,
        else as they are now.

        What is not recorded yet is decoded now where that takes little, so that no GPU waits for it: sets that fit into
        memory. Of larger ones workers tell.

        Args:
            owner: who records them: a sweep, of its cleaning pairs, or a victim, of its training pairs.
            source: of the table; one without `max_broken` tolerates nothing, and is not looked at.
            table: as it was read.
            image_size: at which it is decoded, pixels.

        Raises:
            InvalidInput: if more is broken than the source tolerates.
        """
        if getattr(source, "max_broken", None) is None:
            return table
        records = self._records(owner)
        for record in records or ():
            if (frozen := table.frozen(record)) is not None:
                return self._noted(owner, source, self._mapped(frozen))
        if records is not None and len(table) * 3 * image_size**2 <= CACHE_BYTES:
            what = [source, table.digest, image_size]
            table = table.with_broken(self._once("looked", what, lambda: _all_undecodable(table, image_size)))
        elif records is not None:
            self._unlooked[owner] = source
        return self._noted(owner, source, table)

    def planned(
        self, owner: str, table: PairTable, image_size: int, plan: Callable[[PairTable], PoisonPlan]
    ) -> tuple[PairTable, PoisonPlan]:
        """A poison plan for a settled table, and the table with what was found to be broken on the way: none stands in
        for a poison, so of a table that was too large to be looked at, the poisons are, until the plan has sound ones.

        Args:
            owner: of the table.
            table: that is poisoned.
            image_size: at which it is decoded, pixels.
            plan: poisons a table, and passes over what is broken where it chooses the rows.
        """
        made = plan(table)
        while owner in self._unlooked and made.source is None:
            found = undecodable(table, made.indices, image_size, usable_cores())
            if not found.keys() - table.reasons().keys():
                break
            table = self._noted(owner, self._unlooked[owner], table.with_broken(found))
            made = plan(table)
        return table, made

    def _noted(self, owner: str, source: Any, table: PairTable) -> PairTable:
        refuse_too_many(table.reasons(), len(table), source.max_broken, in_words(owner))
        self.broken[owner] = BrokenRows(table.digest, len(table), table.broken)
        return table

    def _records(self, owner: str) -> list[BrokenRows] | None:
        """None where nothing is recorded, and nothing is to be looked for."""
        if self._recorded is not None:
            return [self._recorded[owner]] if owner in self._recorded else None
        return [] if owner in self._anew else recorded_in(self.data_home.parent, owner)

    def training_set(self, spec: PretrainedVictim | CleaningSweep, known: DataDigests = NO_DIGESTS) -> TrainingSet:
        """What a run trains on, poisons that come with the data included.

        Where the driver has put it together, and this node keeps tables, it is put together once a node, and the other
        processes map it: they neither read the source nor look up its files. Whether these are still what they were is
        asked once, when a command begins.

        Args:
            spec: of the run.
            known: what the driver has read, if anything.

        Raises:
            StorageFault: if it is not what the driver has read.
        """

        def make() -> TrainingSet:
            if isinstance(spec, PretrainedVictim):
                training = TrainingSet(*self.victim_table(spec))
            else:
                table = cleaning_table(spec, self)
                plan = cleaning_poison(spec, table, self)
                training = TrainingSet(plan.training_table(table) if plan is not None else table, plan)
            check_same_data("training pairs", known.pairs, training.table.digest)
            return training

        if self._tables is None or not known.training:
            return make()
        name, attack = self._name(spec, known.training), spec.trigger().attack
        return kept_training_set(self._tables, name, attack, make, self._heartbeat)  # type: ignore[arg-type]

    def keep(self, spec: PretrainedVictim | CleaningSweep, training: TrainingSet) -> str:
        """Have this node keep what a run trains on, for its workers; what names it to them (`DataDigests.training`)."""
        if self._tables is None or len(training.table) < FEW_ROWS:
            return ""
        keep_training_set(self._tables, self._name(spec, training.state), training)
        pa.default_memory_pool().release_unused()  # Arrow keeps what tables took before they were mapped
        return training.state

    def _name(self, spec: PretrainedVictim | CleaningSweep, state: str) -> str:
        """Of a training set on this node, which may have copies of the files in several places."""
        victim = spec if isinstance(spec, PretrainedVictim) else spec.original_victim()
        parts = [spec.data, *([victim.data, victim.poisoning] if isinstance(victim, PretrainedVictim) else [])]
        return digest_of([state, str(self.data_home), paths_of(parts)])

    def _mapped(self, table: PairTable) -> PairTable:
        return table if self._tables is None else self._tables.mapped(table)

    def forget(self) -> None:
        """Let go of all tables; what is asked for later is read again."""
        self._known.clear()

    def _once(self, what: str, specs: list[Any], read: Callable[[], T]) -> T:
        key = _key(what, *specs)
        if key not in self._known:
            self._known[key] = read()
        found: T = self._known[key]
        return found


def _all_undecodable(table: PairTable, image_size: int) -> dict[int, str]:
    known = table.reasons()
    rows = [row for row in range(len(table)) if row not in known]
    return undecodable(table, rows, image_size, usable_cores())


def _key(*values: Any) -> str:
    """Of specs and plain values, by all that they say: digests leave places out."""
    plain = [value.to_json() if isinstance(value, Spec) else value for value in values]
    return json.dumps(plain, sort_keys=True, default=str)


def victim_table(victim: PretrainedVictim, machine: Machine) -> tuple[PairTable, PoisonPlan]:
    """See `Inputs.victim_table`."""
    return Inputs(machine.data_home, machine.table_files()).victim_table(victim)


Report = Callable[[tuple[BrokenRow, ...]], None]
"""Told of pairs that turn out to be broken."""


def _inputs_of(machine: Machine, known: DataDigests, heartbeat: Callable[[], None]) -> Inputs:
    """A worker's; where no driver has read the data, those of a command that works alone."""
    recorded = known.broken if known.pairs else None
    return Inputs(machine.data_home, machine.table_files(), heartbeat, recorded=recorded)


def victim_pairs(
    victim: PretrainedVictim,
    machine: Machine,
    *,
    known: DataDigests = NO_DIGESTS,
    heartbeat: Callable[[], None] = lambda: None,
    report: Report | None = None,
) -> TrainingPairs:
    """The victim's poisoned training pairs, those that the driver knows, if any."""
    record = known.broken.get(victim_owner(victim.name))
    training = _inputs_of(machine, known, heartbeat).training_set(victim, known)
    specs = (victim.architecture, victim.seed, victim.protocol, victim.text_augmentation)
    key = _key("victim", training.state, *specs, victim.name if record and record.rows else "")
    made_of = (victim.data, victim.poisoning, victim.text_augmentation)
    if key not in _pairs or _pairs[key][0] != made_of:
        _pairs.clear()
        pairs = _training_pairs(victim, victim.architecture, training, None, machine, heartbeat, record, report)
        _pairs[key] = made_of, pairs
    pairs = _pairs[key][1]
    pairs.use_broken(record.rows if record else (), report if record is not None else None)
    return pairs


def _training_pairs(
    spec: PretrainedVictim | CleaningSweep,
    architecture: Architecture,
    training: TrainingSet,
    labelled: LabelledImages | None,
    machine: Machine,
    heartbeat: Callable[[], None],
    record: BrokenRows | None,
    report: Report | None,
) -> TrainingPairs:
    """The pairs of a training set, or with the labels of labelled pictures; `report` is told of what is broken and not
    recorded, where there is a record."""
    plan = training.plan
    return TrainingPairs(
        training.table,
        architecture.image_size,
        tokenize=tokenizer(architecture, spec.protocol),
        seed=spec.seed,
        captions=plan.caption_changes() if plan is not None else None,
        alter=plan.stamp_rows if plan is not None else None,
        labels=torch.from_numpy(labelled.labels) if labelled is not None else None,
        num_classes=len(labelled.class_names) if labelled is not None else 0,
        text_augmentation=spec.text_augmentation,
        decode_workers=machine.decoders,
        decoded=machine.decoded_files(heartbeat),
        poisoned=plan.rows if plan is not None else (),
        broken=record.rows if record is not None else (),
        report=report if record is not None else None,
        vocabulary_size=architecture.resolved()["text_cfg"].get("vocab_size", 49_408),
    )


def cleaning_table(sweep: CleaningSweep, inputs: Inputs) -> PairTable:
    """The sweep's cleaning pairs."""
    owner, size = sweep_owner(sweep.name), sweep.victim.architecture.image_size
    if not isinstance(sweep.data, CleanSample):
        return inputs.settled(owner, sweep.data, inputs.pairs(sweep.data), size)
    victim = sweep.original_victim()
    assert isinstance(victim, PretrainedVictim)
    table, plan = inputs.victim_table(victim)
    clean_rows = np.setdiff1d(np.arange(len(table)), plan.rows)
    if sweep.data.num_pairs > len(clean_rows):
        raise InvalidInput(
            f"data.num_pairs={sweep.data.num_pairs} exceeds the {len(clean_rows):,} unpoisoned pairs of the victim; "
            "choose fewer"
        )
    order = numpy_stream(sweep.data.seed, "clean sample").permutation(len(clean_rows))[: sweep.data.num_pairs]
    return inputs.settled(owner, victim.data, table.subset(np.sort(clean_rows[order])), size)


def cleaning_poison(sweep: CleaningSweep, table: PairTable, inputs: Inputs) -> PoisonPlan | None:
    """Which cleaning pairs are poisoned: none, unless some slipped in."""
    count, seed = sweep.num_slipped()
    if not count:
        return None
    victim, trigger = sweep.original_victim(), sweep.trigger()
    if isinstance(victim, PretrainedVictim):
        poisoning: Any = victim.poisoning_under_protocol()
    elif isinstance(trigger.attack, TargetedImages):
        poisoning = trigger.attack
    else:
        poisoning = Poisoning(attack=trigger.attack, target=trigger.target, count=count)

    def planted() -> tuple[PairTable, PoisonPlan]:
        if isinstance(victim, PretrainedVictim):
            return inputs.victim_table(victim)
        plan = poisoning.plan(table, inputs.data_home)  # of targeted images, which do not depend on the table
        return plan.training_table(table), plan

    def slip_into(clean: PairTable) -> PoisonPlan:
        plan: PoisonPlan = poisoning.subset_for_cleaning(
            clean, planted, count=count, seed=stream_seed(seed, "cleaning poison")
        )
        return plan

    owner, size = sweep_owner(sweep.name), sweep.victim.architecture.image_size
    return inputs.planned(owner, table, size, slip_into)[1]


def cleaning_pairs(
    sweep: CleaningSweep,
    machine: Machine,
    *,
    known: DataDigests = NO_DIGESTS,
    heartbeat: Callable[[], None] = lambda: None,
    report: Report | None = None,
) -> TrainingPairs:
    """The sweep's cleaning pairs, ready for training; made once per process and known digests."""
    architecture, record = sweep.victim.architecture, known.broken.get(sweep_owner(sweep.name))
    is_pure = sweep.num_slipped()[0] == 0 and not isinstance(sweep.data, CleanSample)
    victim = None if is_pure else sweep.original_victim()
    read = (known.pairs, known.training, sweep.name if record and record.rows else "")
    key = _key(
        "cleaning", sweep.data, sweep.slipped, victim, architecture, sweep.protocol, sweep.text_augmentation, read
    )
    made_of = (sweep.data, victim, sweep.text_augmentation)
    if key not in _pairs or _pairs[key][0] != made_of:
        _pairs.clear()
        inputs = _inputs_of(machine, known, heartbeat)
        labelled = inputs.labelled(sweep.data) if isinstance(sweep.data, LabelledPairs) else None
        # The driver digested the pairs before it began: a file changed since would mix two data sets in one sweep.
        training = inputs.training_set(sweep, known)
        pairs = _training_pairs(sweep, architecture, training, labelled, machine, heartbeat, record, report)
        _pairs[key] = made_of, pairs
    pairs = _pairs[key][1]
    pairs.use_seed(sweep.seed)  # of trials that share their configuration: each has its own
    pairs.use_broken(record.rows if record else (), report if record is not None else None)
    return pairs


def measure_for(
    architecture: Architecture,
    evaluation: Evaluation,
    trigger: Trigger | None,
    machine: Machine,
    protocol: Protocol = "paper",
    *,
    known: DataDigests = NO_DIGESTS,
    heartbeat: Callable[[], None] = lambda: None,
) -> Measure:
    """The measure of an evaluation, test images decoded and stamped; made once per process and known digest.

    Raises:
        InvalidInput: if the prompts do not tell the classes apart, a target label is not among the classes, or the
            trigger does not fit the image.
    """
    attack, target = (trigger.attack, trigger.target) if trigger else (None, None)
    key = _key("measure", architecture, evaluation, attack, target, protocol, known.evaluation)
    if key not in _measures or _measures[key].trigger != trigger:  # a class that was defined anew reads as before
        _measures.clear()
        # As for the pairs: one set of decoded images at a time.
        images = evaluation.load(machine.data_home)
        check_prompts(architecture, images.class_names, evaluation.prompts(images), protocol)
        measure = Measure(
            evaluation,
            images,
            architecture.image_size,
            tokenize=tokenizer(architecture, protocol),
            trigger=trigger,
            targets=trigger.targets(machine.data_home, known.targets) if trigger else None,
            decode_workers=machine.decoders,
            protocol=protocol,
            decoded=machine.decoded_files(heartbeat),
        )
        # Measured on other images, the points of one sweep could not be compared.
        check_same_data("test images, classes or trigger", known.evaluation, measure.digest)
        _measures[key] = measure
    _measures[key].heartbeat = heartbeat
    return _measures[key]


def victim_model(architecture: Architecture, checkpoint: Path) -> nn.Module:
    """A fresh model with the weights of a checkpoint's file, or of a folder of a model."""
    file = checkpoint_file(checkpoint)
    changed = file.stat().st_mtime_ns if file.is_file() else 0
    key = f"{checkpoint}:{changed}:{architecture.resolved().get('quick_gelu', False)}"
    if key not in _weights:
        _weights.clear()
        check_activation(architecture, checkpoint)  # of a folder its configuration says what its weights cannot
        _weights[key] = load_weights(file)
    return load_model(architecture, _weights[key], str(checkpoint))


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
    victim = original_victim(facts.get("victim") or section(facts, "sweep").get("victim"))
    target = (section(victim, "poisoning") or victim).get("target")  # which may be somebody else's words
    return target if isinstance(target, str) else None
