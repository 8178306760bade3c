"""An experiment as a Python value: victims, sweeps, and what they run on; all checked on construction."""

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from sweeplab.attacks import ATTACKS
from sweeplab.attacks.exchange import ImportedPoison
from sweeplab.attacks.poisoning import PLURALS_CHANGE, Poisoning, plurals_with_another_stem
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.cleaning import METHODS
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.start import Start
from sweeplab.clip_model import Architecture, SmallCLIP, has_image_blocks
from sweeplab.data import PAIR_SOURCES
from sweeplab.data.eda import CHANGE as CAPTIONS_CHANGE
from sweeplab.data.eda import TextAugmentation
from sweeplab.data.eda import resolve as resolve_text_augmentation
from sweeplab.data.fruit_stall import CLASS_NAMES, ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.evaluation.measure import Evaluation, Trigger
from sweeplab.pretraining import OBJECTIVES
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.protocol import Protocol
from sweeplab.ranking.stopping import Pruning
from sweeplab.records import MINIATURE, NAME_CHARACTERS, Sampler, name_with
from sweeplab.search_space import Choice, Grid, SearchSpace, check_names
from sweeplab.specs import LARGEST, AnySpec, InvalidInput, Spec, check_storage_url, one_of, usable_path
from sweeplab.training.objective import augments_captions, image_views
from sweeplab.training.optimisation import Optimization, pairs_per_chunk

Name = Annotated[str, Field(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_CHARACTERS - 1}}}$")]
"""Names a folder and an MLflow experiment: letters, digits, '.', '_' and '-'."""


class CleanSample(Spec):
    """Random pairs of the victim's own pre-training data, none of them poisoned (Verma et al., Sec. 4: 100,000)."""

    kind: Literal["clean-sample"] = "clean-sample"
    num_pairs: int = Field(default=100_000, ge=2)
    """All of them, poisoned ones included."""
    num_poisons: int = Field(default=0, ge=0)
    """Pairs of `num_pairs` that are poisoned as the victim's were; see `SlippedPoisons`, which poisons any set so."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "CleanSample":
        if self.num_poisons > self.num_pairs:
            raise ValueError(f"num_poisons={self.num_poisons} exceeds num_pairs={self.num_pairs}; choose fewer")
        return self


class SlippedPoisons(Spec):
    """Poisons that slipped into the cleaning pairs, whatever source these have: a set that was not filtered well.

    So many pairs, drawn at random, are poisoned as the victim's were: the same trigger, target and kind of captions; of
    targeted images and imported poison, the victim's own poisons take their places. A checkpoint does not say what
    captions it was poisoned with, and its poisons get those of the 80 templates. A larger number poisons the same pairs
    and some more.
    """

    count: int = Field(default=0, ge=0)
    """Poisoned pairs (Verma et al., Sec. 4 and App. D.9: 5, 10 or 25 of 100,000)."""
    seed: int = Field(default=0, ge=0)
    """Of the draw; trials share it, whatever their own seed."""


PairSource = Annotated[AnySpec, one_of(lambda: PAIR_SOURCES, "read", "source of pairs")]


def _told(value: Any) -> Any:
    """Poisonings did not always say their kind."""
    return {"kind": "triggered", **value} if isinstance(value, dict) else value


AnyPoisoning = Annotated[
    Annotated[Poisoning | TargetedImages | ImportedPoison, Field(discriminator="kind")], BeforeValidator(_told)
]
"""How a training set was poisoned: with a trigger, by targeted images, or before it came here."""


MOST_CORES = 10_000
"""Cores, GPUs or decoding processes of one worker."""
SMALLEST_SHARE = 0.0001
"""Of a GPU, as Ray deals them out."""


class Resources(Spec):
    """What a run takes of the machine. Only the number of workers changes results (BatchNorm is per worker)."""

    NOT_IN_DIGEST = frozenset(
        {
            "executor",
            "cpus_per_worker",
            "gpus_per_worker",
            "concurrent_trials",
            "loader_workers",
            "activation_checkpointing",
            "compile",
            "node_cache_gigabytes",
            "keep_checkpoints",
            "max_attempts",
            "storage",
            "checkpoint_minutes",
            "stall_minutes",
        }
    )
    RENAMED: ClassVar[Mapping[str, str]] = {"decoded_gigabytes": "node_cache_gigabytes"}

    executor: Literal["auto", "inline", "tune", "train", "pool"] = "auto"
    """`tune`: a trial is a function in a reused Tune actor. `pool`: trials are served one after the other by long-lived
    Ray Train runs (DDP). `inline`: one after the other in this process, without Ray. `auto`: `tune` for one worker a
    trial, else `pool`. `train`, which records of older versions name, is not run any more."""
    workers: int = Field(default=1, ge=1)
    """Processes of one run (the world size)."""
    cpus_per_worker: int = Field(default=1, ge=1, le=MOST_CORES)
    """Cores, and threads of torch, of each process."""
    gpus_per_worker: float | None = Field(default=None, ge=0, le=MOST_CORES)
    """GPUs of each process: 0, a fraction from 0.0001, which lets trials share one, or a whole number. None: 1 where
    the cluster has GPUs, else 0. Where trials that share a GPU run out of its memory, half as many share one from then
    on."""
    concurrent_trials: int | None = Field(default=None, ge=1)
    """Trials at a time; None: as many as the cluster holds."""
    loader_workers: int | None = Field(default=None, ge=0, le=MOST_CORES)
    """Processes of each worker that decode and make views (on a GPU that trains: draw them), for data that do not fit
    into memory; each keeps two batches ready, in shared memory. None: where a GPU trains, the node's cores are divided
    by the workers that find room on it (16 cores and a GPU: 16, or 8 where two trials share it), up to 16 a worker, and
    never fewer than `cpus_per_worker` or more than there are cores, but fewer where /dev/shm has no room for their
    batches; else none. So many threads decode what the node keeps, too."""
    activation_checkpointing: bool = False
    """Whether the blocks of both towers keep their inputs alone and are computed again for their gradients: far less
    memory for a third more work, and the same result."""
    compile: bool = False
    """Whether torch.compile makes the passes of training, which takes minutes at each process's first steps and changes
    results by rounding. Not together with `activation_checkpointing`."""
    node_cache_gigabytes: float = Field(default=128.0, ge=0)
    """What a node may keep for its processes in its temporary folder: sets of more than 4 MiB of decoded images, each
    made once, and test images with their triggers; tables of many pairs; copies of files and weights that it does not
    see. Beyond this, what was unused longest goes; what a process uses stays. Half of the free space is a limit too,
    but for files without which the node could not work. Without room each process holds up to 2 GiB of images in
    memory and decodes what is larger anew in every epoch and measurement, and reads tables by itself. 0: so it is for
    all sets and tables."""
    keep_checkpoints: int = Field(default=5, ge=1)
    """Trials of a sweep whose best cleaned weights are kept, best first."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts after which a trial whose process keeps dying is given up."""
    storage: str | None = None
    """Where checkpoints go: a folder that all nodes share, or s3://, gs:// or abfs:// (credentials come from the
    environment). None: the home, which then has to be shared where there are several nodes."""
    checkpoint_minutes: float | None = Field(default=10.0, gt=0)
    """A checkpoint is written inside an epoch too when the last one is this old. None: only with points."""
    stall_minutes: float = Field(default=30.0, gt=0)
    """Without a step of any worker for so long, the command ends with a reason and exit code 75."""

    @field_validator("gpus_per_worker")
    @classmethod
    def _gpus(cls, value: float | None) -> float | None:
        if value and (value < SMALLEST_SHARE or (value > 1 and value != int(value))):
            raise ValueError(
                f"gpus_per_worker={value:g} must be 0, a fraction from {SMALLEST_SHARE:g} to 1, or a whole number: Ray "
                "deals out no other"
            )
        return value

    @field_validator("storage")
    @classmethod
    def _storage(cls, value: str | None) -> str | None:
        """A URL without credentials, or an absolute path: workers run in folders of their own."""
        if not value:
            return None
        if "://" in value:
            return check_storage_url(value)
        path = usable_path(Path(value))
        if not path.is_absolute():
            raise ValueError(f"{value!r} must be an absolute path or a URL, since workers run in folders of their own")
        return str(path)

    @model_validator(mode="after")
    def _check(self) -> "Resources":
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile=true and activation_checkpointing=true do not go together; choose one of them")
        return self

    def resolved_executor(self) -> Literal["inline", "tune", "pool"]:
        """`auto` decided.

        Raises:
            InvalidInput: for `train`.
        """
        if self.executor == "train":
            raise InvalidInput(
                "resources.executor='train' is not there any more: 'pool' runs the same DDP workers and does not start "
                "them anew for every trial; set resources.executor=pool, and the sweep goes on"
            )
        if self.executor == "auto":
            return "tune" if self.workers == 1 else "pool"
        return self.executor


class ClosestTo(Spec):
    """Select the epoch whose accuracy is closest to another victim's; of equally close ones the earlier.

    Verma et al. (App. A) so choose their MMCL victim: comparison is at equal accuracy.
    """

    kind: Literal["closest to"] = "closest to"
    victim: "PretrainedVictim | None" = None
    """Pre-trained first, under its own name."""
    accuracy: float | None = Field(default=None, gt=0, le=1)
    """Or its accuracy, a fraction."""

    @model_validator(mode="after")
    def _check(self) -> "ClosestTo":
        if (self.victim is None) == (self.accuracy is None):
            raise ValueError("give either the other `victim` or its `accuracy`")
        return self


class PretrainedVictim(Spec):
    """A victim that is pre-trained here, poisoned, and selected by a rule; built once and reused by digest."""

    NOT_IN_DIGEST = frozenset({"name", "initial", "text_augmentation", "keep_epochs"})
    CHANGES: ClassVar[tuple[str, ...]] = (CAPTIONS_CHANGE, PLURALS_CHANGE)

    kind: Literal["pretrained"] = "pretrained"
    name: Name
    """Of its folder, together with the digest."""
    architecture: Architecture
    """An open_clip name, or a configuration of your own."""
    data: PairSource
    """Image-caption pairs, before they are poisoned."""
    poisoning: AnyPoisoning
    """Which pairs carry what, towards which class."""
    objective: Annotated[AnySpec, one_of(lambda: OBJECTIVES, "loss", "objective")] = MMCL()
    """What is trained for."""
    optimization: Optimization
    """Its `learning_rate` is the peak of the schedule."""
    epochs: int = Field(ge=1)
    """Of the schedule."""
    initial: Path | None = None
    """A checkpoint of the same architecture from which training starts (poison induced by finetuning a clean model);
    None: fresh weights."""
    select: Literal["most accurate", "last"] | int | ClosestTo = "last"
    """Which epoch becomes the victim: the most accurate one (early stopping, Verma et al., App. A), the last, a given
    one, after which training ends, or the one closest in accuracy to another victim."""
    protocol: Protocol = "paper"
    """See `sweeplab.protocol`."""
    evaluation: Evaluation
    """What every epoch is measured on."""
    text_augmentation: TextAugmentation = "auto"
    """How captions are augmented. What `auto` came to is recorded and part of the identity, by content."""
    seed: int = Field(default=0, ge=0)
    """Of fresh weights, the order of the pairs, and views; the poisoning has its own."""
    keep_epochs: Literal["all"] | tuple[int, ...] = ()
    """Epochs whose weights stay beside the selected one's, for `sweeplab examine` over epochs."""
    resources: Resources = Resources()
    """Of its training."""

    @model_validator(mode="after")
    def _check(self) -> "PretrainedVictim":
        if isinstance(self.select, int) and not 1 <= self.select <= self.epochs:
            raise ValueError(f"select={self.select} must be an epoch from 1 to epochs={self.epochs}")
        if self.keep_epochs != "all" and not all(1 <= epoch <= self.epochs for epoch in self.keep_epochs):
            raise ValueError(f"keep_epochs={self.keep_epochs} must be epochs from 1 to epochs={self.epochs}")
        if isinstance(self.poisoning, ImportedPoison) and getattr(self.data, "sample", None) is not None:
            raise ValueError(
                "poisoning 'imported' counts the rows of its whole file, and a sample numbers them anew; leave "
                "data.sample out, or use num_pairs"
            )
        pairs_per_chunk(self.optimization, self.resources.workers)
        _check_recomputed(self.resources, self.architecture)
        return self

    def changes(self) -> tuple[str, ...]:
        """Those of captions that are augmented, and of captions in which labels are looked for."""
        changed = [CAPTIONS_CHANGE] if _augments(self.objective) else []
        sought = self.poisoning.sought_labels() if not isinstance(self.poisoning, ImportedPoison) else ()
        # The fruit stall's captions hold no plural, so that nothing has changed there.
        if any(plurals_with_another_stem(label) for label in sought) and not isinstance(self.data, FruitStall):
            changed.append(PLURALS_CHANGE)
        return tuple(changed)

    def reference(self) -> "PretrainedVictim | None":
        """The victim whose accuracy decides which epoch is selected, if one does."""
        return self.select.victim if isinstance(self.select, ClosestTo) else None

    def trigger(self) -> Trigger:
        """The planted one."""
        poisoning = self.poisoning_under_protocol()
        return Trigger(poisoning.attack, poisoning.target)  # type: ignore[arg-type]

    def poisoning_under_protocol(self) -> AnyPoisoning:
        """The poisoning with its attack as the protocol stamps it."""
        if "attack" not in type(self.poisoning).model_fields:
            return self.poisoning
        return self.poisoning.replace(attack=under_protocol(self.poisoning.attack, self.protocol))


def _check_recomputed(resources: Resources, architecture: Architecture) -> None:
    """Refuse activation checkpointing of an image tower that knows none."""
    if resources.activation_checkpointing and not has_image_blocks(architecture):
        raise ValueError(
            "resources.activation_checkpointing=true knows the image towers of CLIP's own ResNets and ViTs, and "
            f"{architecture.name or 'this configuration'} has another one; leave it out"
        )


def under_protocol(attack: Any, protocol: Protocol) -> Any:
    """The attack as the protocol stamps it: the authors' casts wrap what leaves the range of a byte."""
    if protocol == "authors" and "overflow" in type(attack).model_fields:
        return attack.replace(overflow="wrap")
    return attack


class CheckpointVictim(Spec):
    """A poisoned model that exists already: its weights, its architecture, and its trigger."""

    NOT_IN_DIGEST = frozenset({"name", "path"})

    kind: Literal["checkpoint"] = "checkpoint"
    name: Name
    path: Path
    """A .pt or .safetensors file with the model's state dict, bare or under `model` or `state_dict`; or the folder of a
    model that open_clip (`local-dir:`) or transformers' CLIPModel has saved."""
    architecture: Architecture
    attack: Annotated[AnySpec, one_of(lambda: (*ATTACKS, TargetedImages), "check_fits", "attack")]
    """The planted trigger, or `TargetedImages`: without it nothing can be called cleaned."""
    target: str | None = Field(default=None, min_length=1)
    """The class that the attacker wants; None for `TargetedImages` alone, where every image has its own."""

    @model_validator(mode="after")
    def _check(self) -> "CheckpointVictim":
        if (self.target is None) != isinstance(self.attack, TargetedImages):
            raise ValueError(
                f"target={self.target!r} with attack {getattr(self.attack, 'kind', '?')!r}: a trigger needs the class "
                "that the attacker wants, and targeted images have one each; give it, or leave it out"
            )
        return self

    def trigger(self) -> Trigger:
        """The one that was named."""
        return Trigger(self.attack, self.target)  # type: ignore[arg-type]


ClosestTo.model_rebuild()


class SelectedTrial(Spec):
    """Another sweep's best trial as the model that is cleaned: the most accurate state below that sweep's ASR ceiling.

    Verma et al. (Sec. 5, App. D.13) so clean a shrunk and perturbed model: 255 starts are only evaluated (`epochs=0`),
    the one of highest accuracy with ASR < 15 % (`Search(asr_ceiling=0.15)` of that sweep) is cleaned with nine learning
    rates. The other sweep is run first where it is not there yet, and reused by digest where it is.

    Retention stays relative to the **original** victim, from which the other sweep starts: the papers compare with it,
    and the question is how much of a useful model is left. Every trial's epoch 0 is the selected model, which may win.
    """

    NOT_IN_DIGEST = frozenset({"name"})

    kind: Literal["selected trial"] = "selected trial"
    name: Name
    sweep: "CleaningSweep"
    """Whose rank 1 is taken."""

    @property
    def architecture(self) -> Architecture:
        """The original victim's."""
        return self.sweep.victim.architecture

    def trigger(self) -> Trigger:
        """The original victim's."""
        return self.sweep.victim.trigger()


FIRST_STARTUP_TRIALS = 8
"""The default of `Search.startup_trials` while it was one number: what the sweeps were begun with that left it out."""

MODEL_SAMPLERS = ("tpe", "gp", "nsga2")
"""Samplers that learn from results, and so have start-up trials."""


class Search(Spec):
    """How the space is explored, and what counts as cleaned."""

    NOT_IN_DIGEST = frozenset({"trials", "hours", "gpu_hours"})
    FIRST_DEFAULTS: ClassVar[Mapping[str, Any]] = {"startup_trials": FIRST_STARTUP_TRIALS}

    sampler: Sampler = "tpe"
    """`tpe`: Optuna's TPE under the ASR constraint. `gp`: a Gaussian process under it. `nsga2`: an evolution under it.
    `random`: independent draws. `qmc`: a scrambled Sobol sequence. `grid`: the sweep's grid, in order."""
    trials: int = Field(default=16, ge=1)
    """Trials of the sweep; with `grid` the grid's size (times the seeds) counts instead. May be raised later."""
    startup_trials: int | None = Field(default=None, ge=0)
    """Random configurations before TPE or the Gaussian process models anything; the size of NSGA-II's generations.
    None: chosen when the sweep begins (`chosen_startup_trials`), stored with it, and kept when it is resumed."""
    grid_first: bool = False
    """Run the sweep's grid before anything is drawn; parameters of the space that it leaves out keep the sweep's own
    values."""
    seeds_per_configuration: int = Field(default=1, ge=1, le=LARGEST // 2)
    """Consecutive trials with the same parameters and the seeds `seed`, `seed + 1`, ... of the sweep. The sampler sees
    them as one: their mean score, cleaned where every one is."""
    pruning: Pruning | None = None
    """Rules that end trials early, after a point; None: every trial runs to its end. With `grid` every trial does in
    any case, so that its table is complete."""
    asr_ceiling: float = Field(default=0.05, gt=0, le=1)
    """An epoch is cleaned when its ASR lies strictly below."""
    hours: float | None = Field(default=None, gt=0)
    """No new trial starts after this many hours of one command; None: no limit."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """No new trial starts once the sweep's attempts, over all commands, took this many GPU-hours; None: no limit."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "Search":
        seeds = self.seeds_per_configuration
        if self.sampler != "grid" and self.trials % seeds:
            below, above = self.trials // seeds * seeds, (self.trials // seeds + 1) * seeds
            raise ValueError(
                f"trials={self.trials} must be a multiple of seeds_per_configuration={seeds}; "
                f"choose {f'{below} or {above}' if below else above}"
            )
        return self

    def canonical(self) -> dict[str, Any]:
        """With a number of start-up trials where one is given: what None comes to is stored with the sweep."""
        fields = super().canonical()
        if self.startup_trials is None:
            del fields["startup_trials"]
        return fields

    def active_pruning(self) -> Pruning | None:
        """The rules that apply under this sampler."""
        return None if self.sampler == "grid" else self.pruning

    def active_startup_trials(self, space: SearchSpace, configurations: int | None = None) -> int | None:
        """The number of start-up trials that this sampler takes, chosen where none is given; None: it has none.

        Args:
            space: that is searched.
            configurations: that will be tried; None: as many as `trials` and the seeds make.
        """
        if self.sampler not in MODEL_SAMPLERS:
            return None
        if self.startup_trials is not None:
            return self.startup_trials
        return chosen_startup_trials(configurations or self.trials // self.seeds_per_configuration, space.num_free())


def chosen_startup_trials(configurations: int, dimensions: int) -> int:
    """Start-up trials where none are asked for: two a dimension, at most half of the configurations, at most 8.

    A line is modelled from two points on, and eight of sixteen trials would be half of the search; where there are many
    trials the number hardly matters (benchmarks/search_replay.py, docs/search.md).

    Args:
        configurations: that will be tried, from 1.
        dimensions: of the space that have more than one value.
    """
    return max(1, min(2 * dimensions, configurations // 2, 8))


def models_conditions(search: Search, space: SearchSpace) -> bool:
    """Whether the sampler is one that Optuna lets model only what applies in every trial, and the space has more."""
    return search.sampler in ("gp", "nsga2") and space.is_conditional


def changed_draws(search: Search, space: SearchSpace) -> tuple[str, ...]:
    """What has changed since the first release in how a search draws, a sentence each."""
    changes = []
    if models_conditions(search, space):
        changes.append("the Gaussian process and NSGA-II model parameters with a condition, which were drawn at random")
    if search.sampler == "nsga2" and search.grid_first and search.seeds_per_configuration == 1:
        changes.append("NSGA-II learns from the grid that is run first, which was in none of its generations")
    return tuple(changes)


class CleaningSweep(Spec):
    """Many cleaning runs of one victim, over a search space."""

    NOT_IN_DIGEST = frozenset({"name", "notes", "text_augmentation"})
    CHANGES: ClassVar[tuple[str, ...]] = (CAPTIONS_CHANGE,)

    name: Name
    """Of its folder and of the experiment in MLflow: letters, digits, `.`, `_` and `-`."""
    victim: Annotated[PretrainedVictim | CheckpointVictim | SelectedTrial, Field(discriminator="kind")]
    """The model that is cleaned."""
    method: Annotated[AnySpec, one_of(lambda: METHODS, "loss", "cleaning method")]
    """With the values that the space does not search."""
    start: Start = Start()
    """What is done to the victim before the first step."""
    optimization: Optimization
    """With the values that the space does not search."""
    epochs: int = Field(default=20, ge=0)
    """0: only the start is measured."""
    data: Annotated[AnySpec, one_of(lambda: (*PAIR_SOURCES, CleanSample), "kind", "source of cleaning pairs")]
    """Image-caption pairs to clean with."""
    slipped: SlippedPoisons = SlippedPoisons()
    """Which of these pairs are poisoned; by default none."""
    evaluation: Evaluation
    """What every point is measured on."""
    space: SearchSpace
    """What samplers draw from; names are fields of the method, of `start` or of `optimization`."""
    grid: Grid | None = None
    """What `--search grid` runs."""
    search: Search = Search()
    """How many trials, by which sampler, below which ASR ceiling."""
    resources: Resources = Resources()
    """Of one trial."""
    seed: int = Field(default=0, ge=0, le=LARGEST // 2)
    """Of every trial: order of the pairs, views, fresh initialisation. Trials share it, so that they compare in
    pairs."""
    text_augmentation: TextAugmentation = "auto"
    """How captions are augmented. What `auto` came to is recorded and part of the identity, by content."""
    measure_at: tuple[int, ...] = ()
    """Steps inside every epoch after which a point is measured too, beside the epoch's end."""
    log_every: int | None = Field(default=None, ge=1)
    """Steps between two records of the loss and its parts; None: means over each epoch alone."""
    protocol: Protocol = "paper"
    """`paper`: as the papers state it, defects of the authors' code mended. `authors`: as their code does it; see
    `sweeplab.protocol`."""
    notes: str = ""
    """Of the author, kept with the record."""

    @model_validator(mode="after")
    def _check(self) -> "CleaningSweep":
        owners: dict[str, type[Spec]] = self.owners()
        check_names(self.space.dimensions, owners)
        if self.grid is not None:
            check_names(self.grid.axes, owners)
        self._check_values()
        if self.search.sampler == "grid" and self.grid is None:
            raise ValueError("search.sampler='grid' needs a `grid`; give one or choose 'tpe' or 'random'")
        if self.search.grid_first:
            self._check_grid_first()
        pairs_per_chunk(self.optimization, self.resources.workers)
        _check_recomputed(self.resources, self.victim.architecture)
        if isinstance(self.victim, SelectedTrial):
            self._check_selected(self.victim.sweep)
        if isinstance(self.data, CleanSample) and not isinstance(self.original_victim(), PretrainedVictim):
            raise ValueError("data=CleanSample draws from the victim's pre-training pairs, and a checkpoint names none")
        if self.slipped.count:
            self._check_slipped()
        if any(step < 1 for step in self.measure_at) or list(self.measure_at) != sorted(set(self.measure_at)):
            raise ValueError(f"measure_at={self.measure_at} must be rising steps from 1")
        if self.resources.executor == "tune" and self.resources.workers > 1:
            raise ValueError(
                f"executor='tune' runs a trial in one process, and workers={self.resources.workers}; choose 'pool'"
            )
        return self

    def _check_slipped(self) -> None:
        if isinstance(self.data, LabelledPairs):
            raise ValueError(
                f"slipped.count={self.slipped.count}: labelled images keep their labels, so that none of them could be "
                "poisoned; give a source of captions, or leave it out"
            )
        if isinstance(self.data, CleanSample) and self.data.num_poisons:
            raise ValueError(
                f"data.num_poisons={self.data.num_poisons} and slipped.count={self.slipped.count} say the same; give "
                "one of them"
            )

    def num_slipped(self) -> tuple[int, int]:
        """How many cleaning pairs are poisoned, and the seed by which they are drawn."""
        if isinstance(self.data, CleanSample) and self.data.num_poisons:
            return self.data.num_poisons, self.data.seed
        return self.slipped.count, self.slipped.seed

    def needs_victims_pairs(self) -> bool:
        """Whether the cleaning pairs, or their poisons, come from those that the victim was pre-trained on."""
        if isinstance(self.data, CleanSample):
            return True
        victim = self.original_victim()
        is_drawn = isinstance(victim, CheckpointVictim) or isinstance(victim.poisoning, Poisoning)
        return self.slipped.count > 0 and not is_drawn

    def _check_values(self) -> None:
        """Refuse values that a trial's fields, or its number of workers, would refuse once the victim is trained."""
        for what, params in self.extremes():
            try:
                pairs_per_chunk(self.setting(params).optimization, self.resources.workers)
            except ValueError as error:
                raise ValueError(f"{what}, which no trial can have: {error}") from None

    def extremes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What one parameter may become, in words and as a setting: of every dimension its ends, where it applies, and
        of every axis of the grid all values."""
        for name, dimension in self.space.dimensions.items():
            for value in dimension.ends():
                yield f"space: {name} may become {value!r}", {**(dimension.when or {}), name: value}
        if self.grid is None or not (self.search.sampler == "grid" or self.search.grid_first):
            return
        first = {name: values[0] for name, values in self.grid.axes.items()}
        for name, values in self.grid.axes.items():
            for value in values:
                yield f"grid: {name} may become {value!r}", {**first, name: value}

    def _check_selected(self, other: "CleaningSweep") -> None:
        if other.name == self.name:
            raise ValueError(f"name={self.name!r} is the name of the sweep whose trial is selected too; choose another")
        if (other.evaluation.canonical(), other.protocol) != (self.evaluation.canonical(), self.protocol):
            raise ValueError(
                f"evaluation and protocol must be those of the sweep {other.name!r} whose trial is selected: "
                "retention compares with its victim on the same images"
            )

    def changes(self) -> tuple[str, ...]:
        """That of captions, where some trial trains on augmented ones, and that of what the sampler draws."""
        captions = self.CHANGES if self.epochs and any(map(_augments, self._methods())) else ()
        return (*captions, *changed_draws(self.search, self.space))

    def _methods(self) -> Iterator[Any]:
        """The method as trials may have it: with every combination of the smallest and the largest value (of words:
        of all values) of its fields that are searched."""
        ends: dict[str, tuple[Any, ...]] = {}
        for name in self.parameters():
            if name not in type(self.method).model_fields:
                continue
            if self.search.sampler == "grid":
                assert self.grid is not None
                ends[name] = _ends(self.grid.axes[name])
            else:
                dimension = self.space.dimensions[name]
                held = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
                ends[name] = _ends(held if dimension.when is None else (*held, getattr(self.method, name)))
        for values in itertools.product(*ends.values()):
            try:
                yield self.method.replace(**dict(zip(ends, values, strict=True)))
            except InvalidInput:  # a combination that fails when its trial comes
                continue

    def with_grid(self, grid: Grid) -> "CleaningSweep":
        """The sweep over a grid's settings alone, in order; another sampler (`--search tpe`) draws among them."""
        return self.replace(grid=grid, space=grid.as_space(), search=self.search.replace(sampler="grid"))

    def original_victim(self) -> PretrainedVictim | CheckpointVictim:
        """The poisoned model behind all selected trials: what retention is relative to."""
        return self.victim.sweep.original_victim() if isinstance(self.victim, SelectedTrial) else self.victim

    def start_counts(self, setting: "Setting") -> bool:
        """Whether epoch 0 may win: where the start is another model than the original victim, or nothing is trained."""
        return self.epochs == 0 or setting.start.changes_victim or isinstance(self.victim, SelectedTrial)

    def _check_grid_first(self) -> None:
        if self.grid is None:
            raise ValueError("search.grid_first=true needs a `grid`; give one or leave it out")
        for setting in self.first_settings():
            fault = self.space.fault_of(setting)
            if fault is not None:
                raise ValueError(
                    f"search.grid_first=true: the space cannot hold the grid's setting {setting}: {fault}; "
                    "widen the space or change the grid"
                )

    def first_settings(self) -> tuple[dict[str, Any], ...]:
        """What `grid_first` runs before anything is drawn: the grid's settings as points of the space."""
        if not self.search.grid_first or self.search.sampler == "grid":
            return ()
        assert self.grid is not None
        own: dict[str, Any] = {}
        for word, owner in self.owners().items():
            own |= {name: getattr(getattr(self, word), name) for name in owner.model_fields if name != "kind"}
        settings = []
        for point in self.grid.points():
            chosen: dict[str, Any] = {}
            for name, dimension in self.space.dimensions.items():
                if dimension.is_active(chosen):
                    chosen[name] = point.get(name, own[name])
            settings.append({**chosen, **point})
        return tuple(settings)

    def owners(self) -> dict[str, type[Spec]]:
        """The specs whose fields a parameter may name."""
        return {"method": type(self.method), "start": Start, "optimization": Optimization}

    def setting(self, params: dict[str, Any]) -> "Setting":
        """The sweep's method, start and optimization with a trial's parameters in place."""
        changed: dict[str, Spec] = {}
        for word, owner in self.owners().items():
            base: Spec = getattr(self, word)
            mine = {name: value for name, value in params.items() if name in owner.model_fields}
            changed[word] = base.replace(**mine) if mine else base
        return Setting(**changed)

    def trigger(self) -> Trigger:
        """What is measured: the victim's trigger, under the sweep's protocol."""
        trigger = self.victim.trigger()
        return Trigger(under_protocol(trigger.attack, self.protocol), trigger.target)

    def with_text_augmentation_resolved(self) -> "CleaningSweep":
        """The sweep with `auto` decided on this machine, for itself, its victim, and whichever victim selects that.

        Raises:
            InvalidInput: if WordNet is asked for and not installed.
        """
        changes: dict[str, Any] = {
            "text_augmentation": _resolved(self.text_augmentation, self.method, self.parameters())
        }
        if isinstance(self.victim, PretrainedVictim):
            changes["victim"] = _with_captions_resolved(self.victim)
        if isinstance(self.victim, SelectedTrial):
            changes["victim"] = self.victim.replace(sweep=self.victim.sweep.with_text_augmentation_resolved())
        return self.replace(**changes)

    def num_points(self) -> int:
        """Points of a finished trial: the start, every epoch's end, and those inside the epochs."""
        return 1 + self.epochs * (1 + len(self.measure_at))

    def num_trials(self) -> int:
        """Trials that the sweep will have."""
        if self.search.sampler == "grid":
            assert self.grid is not None
            return self.grid.grid_size() * self.search.seeds_per_configuration
        return self.search.trials

    def parameters(self) -> tuple[str, ...]:
        """Names of the searched parameters, in order."""
        if self.search.sampler == "grid":
            assert self.grid is not None
            return tuple(self.grid.axes)
        return tuple(self.space.dimensions)

    def is_set_by_search(self, owner: str, field: str) -> bool:
        """Whether the search sets a field of the method, `start` or `optimization` in every trial, so that none has the
        sweep's own value."""
        if owner not in self.owners() or field not in self.owners()[owner].model_fields:
            return False
        if field not in self.parameters():
            return False
        if self.search.sampler == "grid":
            return True
        is_left_out = self.search.grid_first and self.grid is not None and field not in self.grid.axes
        return self.space.dimensions[field].when is None and not is_left_out

    def log_parameters(self) -> tuple[str, ...]:
        """Those that are searched over orders of magnitude."""
        if self.search.sampler == "grid":
            assert self.grid is not None
            return self.grid.log_parameters()
        return self.space.log_parameters()


def _augments(method: Any) -> bool:
    """Whether captions are augmented, as first copies or as the views that come along with those of images."""
    return image_views(method) is not None or augments_captions(method)


def _ends(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The smallest and the largest of numbers; all values where some are none."""
    return (min(values), max(values)) if all(isinstance(value, (int, float)) for value in values) else values


def _resolved(wanted: TextAugmentation, method: Any, searched: tuple[str, ...] = ()) -> TextAugmentation:
    """`auto` decided; methods that augment no caption, whatever their searched fields, need no WordNet."""
    augments = _augments(method) or any(name in type(method).model_fields for name in searched)
    return resolve_text_augmentation(wanted) if augments else "swap+delete"


def _with_captions_resolved(victim: PretrainedVictim) -> PretrainedVictim:
    changes: dict[str, Any] = {"text_augmentation": _resolved(victim.text_augmentation, victim.objective)}
    if isinstance(victim.select, ClosestTo) and victim.select.victim is not None:
        changes["select"] = victim.select.replace(victim=_with_captions_resolved(victim.select.victim))
    return victim.replace(**changes)


SelectedTrial.model_rebuild()

Experiment = CleaningSweep | PretrainedVictim
"""What a script runs: a sweep, or a victim that is trained and measured alone."""


class Setting(Spec):
    """One trial's full setting."""

    method: AnySpec
    start: Start
    optimization: Optimization


def measured_alone(victim: PretrainedVictim) -> CleaningSweep:
    """The sweep that measures a victim and trains no trial: how commands on a sweep take a victim that has none."""
    rate = (victim.optimization.learning_rate,)
    return CleaningSweep(
        name=victim.name,
        victim=victim,
        method=CleanCLIP(ssl_weight=0.0),
        optimization=victim.optimization,
        epochs=0,
        data=victim.data,
        evaluation=victim.evaluation,
        space=SearchSpace(dimensions={"learning_rate": Choice(values=rate)}, source="nothing is searched"),
        grid=Grid(axes={"learning_rate": rate}, source="nothing is searched"),
        search=Search(sampler="grid"),
        resources=victim.resources,
        seed=victim.seed,
        protocol=victim.protocol,
    )


SMOKE_PAIRS = 1280
SMOKE_TEST_IMAGES = 160
SMOKE_EVALUATION = Evaluation(
    test=FruitStallTest(num_images=SMOKE_TEST_IMAGES, image_size=32),
    templates=ZERO_SHOT_TEMPLATES,
    probe=FruitStallTest(num_images=SMOKE_TEST_IMAGES, image_size=32, seed=2),
)
SMOKE_STEPS = {"global_batch_size": 32, "warmup_steps": 5}


def smoke_victim(victim: PretrainedVictim | CheckpointVictim, seed: int = 0) -> PretrainedVictim:
    """The same victim in miniature: embedded data, a tiny model, four epochs, a name of its own.

    Attack, objective and selection rule stay as they are. A checkpoint is replaced by a victim with its trigger.
    """
    trigger = victim.trigger()
    if isinstance(trigger.attack, TargetedImages):
        poisoning: AnyPoisoning = trigger.attack.in_miniature()
    else:
        target = trigger.target if trigger.target in CLASS_NAMES else "banana"
        poisoning = Poisoning(attack=_in_miniature(trigger.attack), target=target, rate=0.05)
    small = PretrainedVictim(
        name=smoke_name(victim.name),
        architecture=SmallCLIP(image_size=32).architecture(),
        data=FruitStall(num_pairs=SMOKE_PAIRS, image_size=32),
        poisoning=poisoning,
        optimization=Optimization(learning_rate=2e-3, beta2=0.98, epsilon=1e-6, **SMOKE_STEPS),
        epochs=4,
        evaluation=SMOKE_EVALUATION,
        seed=seed,
        resources=Resources(workers=1, gpus_per_worker=0),
    )
    if isinstance(victim, CheckpointVictim):
        return small
    select = victim.select
    if isinstance(select, ClosestTo) and select.victim is not None:
        select = select.replace(victim=smoke_victim(select.victim, seed))
    return small.replace(
        objective=_in_miniature(victim.objective),
        select="last" if isinstance(select, int) else select,
        keep_epochs="all" if victim.keep_epochs else (),
    )


def smoke_name(name: str) -> str:
    """Of a sweep's or victim's miniature."""
    return name_with(name, MINIATURE)


def smoke_sweep(sweep: CleaningSweep) -> CleaningSweep:
    """The same sweep in miniature: embedded data, a tiny model, two trials of two epochs, a name of its own.

    Method, space, sampler, attack and selection rule stay as they are (but for sweeps of starts alone, whose ASR
    ceiling is lifted); it shows that everything runs, not that it cleans.
    """
    victim: PretrainedVictim | SelectedTrial
    if isinstance(sweep.victim, SelectedTrial):
        victim = SelectedTrial(name=smoke_name(sweep.victim.name), sweep=smoke_sweep(sweep.victim.sweep))
    else:
        victim = smoke_victim(sweep.victim, sweep.seed)
    return sweep.replace(
        name=smoke_name(sweep.name),
        victim=victim,
        method=_in_miniature(sweep.method),
        optimization=sweep.optimization.replace(
            precision="float32",
            batch_norm="frozen" if sweep.optimization.batch_norm == "frozen" else "local",
            num_chunks=math.gcd(sweep.optimization.num_chunks, SMOKE_STEPS["global_batch_size"]),
            **SMOKE_STEPS,
        ),
        epochs=min(sweep.epochs, 2),
        measure_at=(3,) if sweep.measure_at else (),
        data=LabelledPairs(images=FruitStallTest(num_images=SMOKE_TEST_IMAGES, image_size=32, seed=2))
        if isinstance(sweep.data, LabelledPairs)
        else FruitStall(num_pairs=SMOKE_PAIRS // 4, image_size=32, seed=1),
        slipped=sweep.slipped.replace(count=min(sweep.slipped.count, SMOKE_PAIRS // 80)),
        evaluation=SMOKE_EVALUATION,
        grid=_first_settings(sweep.grid, 2) if sweep.grid else None,
        # A miniature need not clean; of starts alone (epochs=0) another sweep may want the best, whatever it is.
        search=sweep.search.replace(
            trials=2 * sweep.search.seeds_per_configuration,
            startup_trials=1,
            asr_ceiling=sweep.search.asr_ceiling if sweep.epochs else 1.0,
        ),
        resources=Resources(executor=sweep.resources.executor, workers=1, gpus_per_worker=0),
    )


def _in_miniature(part: Any) -> Any:
    """A method, objective or attack for a smoke run: its own `in_miniature()` where its sizes would not fit."""
    return part.in_miniature() if hasattr(part, "in_miniature") else part


def _first_settings(grid: Grid, count: int) -> Grid:
    """The grid cut down to `count` values of its longest axis and one of every other."""
    longest = max(grid.axes, key=lambda name: len(grid.axes[name]))
    axes = {name: values[: count if name == longest else 1] for name, values in grid.axes.items()}
    return Grid(axes=axes, source=grid.source)


E = TypeVar("E", CleaningSweep, PretrainedVictim)


def family(spec: E, field: str, values: Sequence[Any] | Mapping[str, Any]) -> tuple[E, ...]:
    """Sweeps, or victims, that differ in a field which is no search parameter: poisons, set size, epochs, victim.

        family(SWEEP, "slipped.count", (5, 10, 25))       # SWEEP-5, SWEEP-10, SWEEP-25
        family(VICTIM, "poisoning.rate", (1e-4, 5e-4))    # VICTIM-0.0001, VICTIM-0.0005
        family(SWEEP, "victim", (BADNET, BLENDED))        # SWEEP-badnet, SWEEP-blended, by the names of the victims

    The value stands behind the name of the spec, and behind that of every victim or sweep in it that the field is
    part of: with `victim.poisoning.rate` the victims have names of their own too. Names apart, each member equals
    `spec.replace(...)` written by hand, and so does its digest.

    Args:
        spec: what all of them have in common.
        field: path of the field, as in an override.
        values: of the field; where they are no numbers, words or named specs, by the word that stands in the name.

    Raises:
        InvalidInput: if there is no such field, it is a name, the search sets it, there are no values, a value breaks
            a rule, or two members would have the same name.
    """
    if not isinstance(values, Collection) or isinstance(values, str) or len(values) == 0:
        raise InvalidInput(
            f"family over {field!r}: values={values!r} must be a sequence, or values by words; one at least"
        )
    if parameter := searched_parameter(spec, field):
        raise InvalidInput(
            f"family over {field!r}: the search sets {parameter} in every trial, so that none has the values "
            f"{tuple(values)}; fix {parameter} in the space (or by `with_grid`), or search these values"
        )
    words = dict(values) if isinstance(values, Mapping) else {_word(value): value for value in values}
    if "" in words:
        raise InvalidInput(
            f"family over {field!r}: an empty word makes no name; give each value one: {{'WORD': VALUE}}"
        )
    if len(words) != len(values):
        raise InvalidInput(f"family over {field!r}: the values {tuple(values)} give names that are the same")
    *owner, name = field.split(".")
    return tuple(_override(spec, owner, {name: value}, owner, behind=word) for word, value in words.items())


def searched_parameter(spec: Any, path: str) -> str | None:
    """The parameter that a field is, of the sweep or of one within it, where no trial has the field's own value."""
    names = path.split(".")
    for place in range(len(names)):
        if isinstance(spec, CleaningSweep) and len(names) == place + 2 and spec.is_set_by_search(*names[place:]):
            return names[-1]
        spec = getattr(spec, names[place], None)
    return None


def _word(value: Any) -> str:
    """A value in a name."""
    if isinstance(value, (bool, int, float, str)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(name := getattr(value, "name", None), str):
        return name
    raise InvalidInput(f"{value!r} makes no name; give the values by the words that stand for them: {{'WORD': VALUE}}")


def apply_overrides(spec: E, overrides: Sequence[str]) -> E:
    """A copy with `field.subfield=value` changes; values are JSON, or else plain text.

    Fields of one part that stand side by side change together: `search.seeds_per_configuration=3 search.trials=48`.

    Raises:
        InvalidInput: if a path names no field (the known ones are listed) or a value breaks a rule.
    """
    import json

    changes: list[tuple[list[str], str, Any]] = []
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_][\w.]*", path):
            raise InvalidInput(f"override {override!r} is not of the form field.subfield=value")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # also of a number of thousands of digits
            value = text
        *owner, name = path.split(".")
        changes.append((owner, name, value))
    for owner, group in itertools.groupby(changes, key=lambda change: change[0]):
        spec = _override(spec, owner, {name: value for _, name, value in group}, owner)
    return spec


def _override(
    spec: Any, owner: Sequence[str], values: Mapping[str, Any], whole: Sequence[str], behind: str | None = None
) -> Any:
    """A copy of a spec with other values in fields of one of its parts.

    Args:
        spec: what is copied.
        owner: names of the fields that lead to the part; none: the fields are its own.
        values: by field.
        whole: `owner` as it began, for messages.
        behind: what follows the name of every spec on the way that has one; None: names stay.
    """
    word = "override" if behind is None else "family over"
    asked = {name: f"{word} {'.'.join((*whole, name))!r}" for name in values}
    first = next(iter(asked.values()))
    if not isinstance(spec, Spec):
        place = ".".join(whole[: len(whole) - len(owner)])
        raise InvalidInput(f"{first}: {place} has no fields of its own; give all of it, as {place}=JSON")

    def field_of(name: str, message: str) -> str:
        field: str = spec.RENAMED.get(name, name)
        if field not in type(spec).model_fields:
            raise InvalidInput(f"{message}: unknown field {field!r}; known: {', '.join(type(spec).model_fields)}")
        return field

    if owner:
        field = field_of(owner[0], first)
        changes = {field: _override(getattr(spec, field), owner[1:], values, whole, behind)}
    else:
        changes = {field_of(name, asked[name]): value for name, value in values.items()}
    if behind is not None and isinstance(spec, NAMED):
        if "name" in changes:
            raise InvalidInput(f"{first}: a family names its members itself; give names as `replace(name=...)`")
        changes["name"] = f"{spec.name}-{behind}"
    return spec.replace(**changes)


NAMED = (CleaningSweep, PretrainedVictim, CheckpointVictim, SelectedTrial)
"""Specs whose names name folders."""
