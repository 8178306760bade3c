"""Records: the frozen nouns that flow between stages and into the ledger; every field says its unit."""

import dataclasses
import functools
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast, get_args

import numpy as np
from pydantic import TypeAdapter

TrialState = Literal["waiting", "running", "finished", "pruned", "failed"]
OVER: tuple[TrialState, ...] = ("finished", "pruned", "failed")
"""States of trials that are over."""
SweepState = Literal["running", "interrupted", "finished"]


@dataclass(frozen=True)
class Outcomes:
    """What happened to each test image, one packed bit an image (numpy.packbits, big-endian in each byte).

    Kept so that two points can be compared image by image (paired intervals, McNemar, selection on one half). Which
    test images the triggered ones were made of says `MeasuredImages`.
    """

    correct: bytes
    """Bit i: clean test image i was classified as its own class."""
    num_images: int
    hits: bytes
    """Bit j: triggered test image j (target-class images left out, order kept) was classified as the target label.
    Under targeted poisoning: target image j was classified as its adversarial class."""
    num_triggered: int

    @classmethod
    def of(cls, correct: np.ndarray, hits: np.ndarray) -> Self:
        """Pack two boolean vectors."""
        return cls(
            np.packbits(correct.astype(bool)).tobytes(),
            int(correct.size),
            np.packbits(hits.astype(bool)).tobytes(),
            int(hits.size),
        )

    def correct_mask(self) -> np.ndarray:
        """(num_images,) boolean."""
        return np.unpackbits(np.frombuffer(self.correct, np.uint8), count=self.num_images).astype(bool)

    def hit_mask(self) -> np.ndarray:
        """(num_triggered,) boolean."""
        return np.unpackbits(np.frombuffer(self.hits, np.uint8), count=self.num_triggered).astype(bool)


@dataclass(frozen=True)
class Measurement:
    """Accuracy and ASR of one model state, as counts, so that intervals can be computed later.

    Under targeted poisoning the PSR stands in the place of the ASR, here and wherever an ASR is read: the share of the
    target images that are classified as their own adversarial class.
    """

    accuracy_k: int
    """Clean test images classified as their own class (top-1)."""
    accuracy_n: int
    """Clean test images."""
    asr_k: int
    """Triggered images classified as the target label."""
    asr_n: int
    """Triggered images: the test images that are not of the target class, or the target images of targeted poisoning.
    0 where no trigger is known."""
    evaluation_digest: str
    """Of images, classes, templates, trigger, target and seed: only measurements with equal digests compare."""
    top5_k: int | None = None
    """Clean test images whose own class is among the five of highest score; None with five classes or fewer."""
    is_counted: bool = True
    """False where a table gave fractions alone: k / n are those fractions, and no count of images is known, so nothing
    can be said about their uncertainty."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be.

        Raises:
            ValueError: where k of n are counted with k above n, below 0, or no clean image at all.
        """
        if self.accuracy_n < 1 or not 0 <= self.accuracy_k <= self.accuracy_n or not 0 <= self.asr_k <= self.asr_n:
            raise ValueError(
                f"accuracy {self.accuracy_k}/{self.accuracy_n} and ASR {self.asr_k}/{self.asr_n} are no counts"
            )

    @classmethod
    def of_fractions(cls, accuracy: float, asr: float, evaluation_digest: str) -> Self:
        """Where nothing but fractions in [0, 1] is known (an imported table)."""
        n = 2**62  # a fraction of two such integers is the float again (within 1e-19), and both fit into 64 bits
        return cls(round(accuracy * n), n, round(asr * n), n, evaluation_digest, is_counted=False)

    @property
    def accuracy(self) -> float:
        """Fraction in [0, 1]."""
        return self.accuracy_k / self.accuracy_n

    @property
    def top5_accuracy(self) -> float | None:
        """Fraction in [0, 1]; None with five classes or fewer, and in records from before it was counted."""
        return self.top5_k / self.accuracy_n if self.top5_k is not None else None

    @property
    def asr(self) -> float | None:
        """Fraction in [0, 1]; None where no trigger is known, so nothing was measured."""
        return self.asr_k / self.asr_n if self.asr_n else None


@dataclass(frozen=True)
class Point:
    """One evaluated state of one training run: the unit of evaluation and ranking."""

    index: int
    """0 for the start, then one more for every evaluation of this run."""
    epoch: float
    """Passes over the data behind this state; 0 is the start. Fractional inside an epoch."""
    step: int
    """Optimizer updates behind this state."""
    attempt: int
    """Which attempt of the trial produced it; 1 is the first."""
    measurement: Measurement
    train: dict[str, float] = field(default_factory=dict)
    """Means over the steps since the last point (losses in nats), `learning_rate` of the last step, `logit_scale`; of
    the pairs that the objective treats apart `NAME_pairs`, and `NAME_poisons` among them, as counts."""
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    timestamp_ms: int = 0
    """Milliseconds since 1970 (UTC) at which the point was made; fixed for ever, so that replays are idempotent."""
    checkpoint: str | None = None
    """Where this state's weights lie, relative to the storage; None when not kept."""
    curve: tuple[dict[str, int | float], ...] = ()
    """The loss and its parts at chosen steps since the last point, `step` among them; empty unless asked for."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: for values that no point has: a field that is lacking or of another type, counts that cannot be.
        """
        return cast(Self, _point_reader().validate_python(values))


@functools.cache
def _point_reader() -> TypeAdapter[Point]:
    return TypeAdapter(Point)


@dataclass(frozen=True)
class Victim:
    """A poisoned pre-trained model that a sweep tries to clean, ready to be loaded."""

    name: str
    digest: str
    checkpoint: str
    """Absolute path or URI of the weights."""
    epoch: float
    """The pre-training epoch that was selected; 0 for a checkpoint that was given."""
    measurement: Measurement
    """Under the sweep's own evaluation: what retention is relative to."""
    outcomes: Outcomes
    is_start: bool = True
    """Whether the weights are those that were measured; False where trials start from another sweep's selected trial,
    while retention stays relative to the victim behind it."""


@dataclass(frozen=True)
class TrialSummary:
    """What ranking, status and page ask of a trial's points, so that they need not be read again."""

    num_points: int
    num_choices: int
    """Points that may win."""
    last_epoch: float | None
    """Of all points; None: there is none."""
    last_ms: int
    """When the last point was made, milliseconds since 1970; 0: there is none."""
    seconds: float
    """Wall seconds spent in training and evaluation, over all points."""
    has_curve: bool
    """Whether the loss was recorded at some steps."""
    lowest_asr: float | None
    """Of the points that may win, a fraction; None where there is none, or no trigger was measured."""
    is_cleaned: bool
    """Whether one of them is cleaned."""
    worth_keeping: tuple[Point, ...]
    """The best cleaned point, else those that came closest; without losses and times."""
    report: Measurement | None
    """Of the point chosen on one half of the images, on the other half; None: there is none."""

    @property
    def best(self) -> Point | None:
        """The best cleaned point; None: there is none."""
        return self.worth_keeping[0] if self.is_cleaned else None


@dataclass(frozen=True)
class TrialRecord:
    """One hyperparameter setting of a sweep and everything that was measured for it."""

    number: int
    """Optuna's trial number: the trial's identity."""
    state: TrialState
    params: dict[str, Any]
    """Values by field name of the method, the start or the optimization."""
    configuration: str
    """Digest of the parameters: trials with equal configuration differ in their seed alone."""
    seed: int
    attempts: int
    points: Sequence[Point]
    reason: str | None = None
    """Why it failed or was pruned."""
    start_counts: bool = False
    """Whether epoch 0 may win: where shrink and perturb made the start, or the sweep has no epochs."""
    rerun_of: int | None = None
    """The trial whose setting and seed were tried once more."""
    storage: str = ""
    """Path or URL of the folder of its checkpoints; empty where none is known."""
    summary: TrialSummary | None = field(default=None, compare=False, repr=False)
    """Of its points, where it is known already."""

    @property
    def last_epoch(self) -> float | None:
        """Of its points; None: there is none."""
        return self.summary.last_epoch if self.summary else max((point.epoch for point in self.points), default=None)

    @property
    def last_ms(self) -> int:
        """When its last point was made, milliseconds since 1970; 0: there is none."""
        return self.summary.last_ms if self.summary else max((point.timestamp_ms for point in self.points), default=0)

    @property
    def has_curve(self) -> bool:
        """Whether the loss was recorded at some steps."""
        return self.summary.has_curve if self.summary else any(point.curve for point in self.points)

    @property
    def seconds(self) -> float:
        """Wall seconds spent in training and evaluation, over the points that were kept."""
        if self.summary:
            return self.summary.seconds
        return sum(point.train_seconds + point.evaluate_seconds for point in self.points)


def columns_of(rows: Sequence[tuple[Any, ...]], kinds: Sequence[Any]) -> list[np.ndarray]:
    """The columns of rows of equal length, (N,) each, of their kinds; where there is no row, empty ones."""
    values = zip(*rows, strict=True) if rows else [()] * len(kinds)
    return [np.array(column, dtype=kind) for column, kind in zip(values, kinds, strict=True)]


@dataclass(frozen=True)
class PointColumns:
    """The points of many trials, in order, as columns of equal length: (N,) each."""

    trial: np.ndarray
    epoch: np.ndarray
    may_win: np.ndarray
    """Boolean; see `evaluation.retention.counted`."""
    accuracy_k: np.ndarray
    accuracy_n: np.ndarray
    asr_k: np.ndarray
    asr_n: np.ndarray
    """0 where no trigger is known."""
    timestamp_ms: np.ndarray
    train_seconds: np.ndarray
    evaluate_seconds: np.ndarray

    @classmethod
    def of(cls, trials: "Iterable[TrialRecord]") -> Self:
        """The points of trials."""
        rows = [
            (
                *(trial.number, point.epoch, trial.start_counts or point.epoch > 0),
                *(point.measurement.accuracy_k, point.measurement.accuracy_n),
                *(point.measurement.asr_k, point.measurement.asr_n),
                *(point.timestamp_ms, point.train_seconds, point.evaluate_seconds),
            )
            for trial in trials
            for point in trial.points
        ]
        kinds = (np.int64, np.float64, bool, *[np.int64] * 5, np.float64, np.float64)
        return cls(*columns_of(rows, kinds))

    @property
    def accuracy(self) -> np.ndarray:
        """(N,) fractions."""
        return self.accuracy_k / self.accuracy_n

    @property
    def asr(self) -> np.ndarray:
        """(N,) fractions; NaN where no trigger is known."""
        return self.asr_k / np.where(self.asr_n > 0, self.asr_n, np.nan)


@dataclass(frozen=True)
class TrialColumns:
    """Many trials as columns of equal length: (T,) each. What status adds up, without a record of every trial."""

    trial: np.ndarray
    """Their numbers."""
    state: np.ndarray
    """Texts, of `TrialState`."""
    attempts: np.ndarray
    last_epoch: np.ndarray
    """NaN where a trial has no point."""
    last_ms: np.ndarray
    seconds: np.ndarray
    lowest_asr: np.ndarray
    """As of `TrialSummary`; NaN where that has None. The best cleaned point's columns below likewise."""
    best_accuracy: np.ndarray
    best_asr: np.ndarray
    best_epoch: np.ndarray

    @classmethod
    def of(cls, trials: "Iterable[TrialRecord]") -> Self:
        """Of trials; of those that are not summarized, the last four are not known and NaN."""
        rows = [
            (
                *(trial.number, trial.state, trial.attempts, trial.last_epoch, trial.last_ms, trial.seconds),
                trial.summary.lowest_asr if trial.summary else None,
                *((best.measurement.accuracy, best.measurement.asr, best.epoch) if best else (None, None, None)),
            )
            for trial in trials
            for best in [trial.summary.best if trial.summary else None]
        ]
        kinds = (np.dtype(int), np.dtype("U8"), *map(np.dtype, (int, float, int, *[float] * 5)))
        return cls(*columns_of(rows, kinds))


@dataclass(frozen=True)
class MeasuredImages:
    """What is known of the images behind a sweep's measurements: the same for all its points, so written once."""

    target_rows: tuple[int, ...]
    """Rows of the test set without a triggered copy, since they are of the target class; ascending. The pictures behind
    the triggered images are the other rows, in order. Empty under targeted poisoning, whose images are no test images.
    """
    num_classes: int | None = None
    """Of the test set; None: not known."""


@dataclass(frozen=True)
class Origin:
    """What a sweep was made of, as its record says it; empty where it does not."""

    attack: str = ""
    """Its kind and its fields, in words."""
    poison_rate: float | None = None
    """A fraction of the victim's training pairs; None: not known."""
    objective: str = ""
    """What the victim was trained with."""
    script: str = ""
    """Path of the script that started it last, absolute but for a submitted job."""
    seed: int | None = None
    versions: tuple[tuple[str, str], ...] = ()
    """Program and version, those that can change a result."""
    sampler: str = ""
    asked_trials: int = 0
    """What `search.trials` says; 0: not known."""
    seeds: int = 1
    """Of each setting."""
    cleaning_pairs: str = ""
    """How many, and of which kind of source."""
    cleaning_poisons: int | None = None
    """Poisoned pairs among them; None: not known."""
    has_spec: bool = True
    """False in tables from elsewhere, and where this version refuses the spec: no command can continue or measure."""
    has_own_code: bool = False
    """Whether its script defines a class that it uses, so that its record does not say all."""
    is_closed: bool = False
    """Whether it was set aside or made by an older version, so that no trial can be added."""
    is_foreign: bool = False
    """Whether it came from elsewhere and was not adopted, so that it is only read."""


OWN_CLASSIFIER = ("supervised",)
"""Methods whose models classify by a layer that they train, and not by prompts."""


@dataclass(frozen=True)
class SweepRecord:
    """A sweep as the ledger holds it: what ranking, tracking and dashboards read."""

    name: str
    digest: str
    state: SweepState
    asr_ceiling: float
    epochs: int
    protocol: str
    method: str
    victim_name: str
    victim: Measurement
    victim_epoch: float
    target: str
    trials: tuple[TrialRecord, ...]
    planned_trials: int
    parameters: tuple[str, ...]
    """Names of the searched parameters, in the order of the space."""
    log_parameters: tuple[str, ...] = ()
    """Those of them that were searched on a logarithmic scale."""
    ends: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest value of the space, or of the grid, that was searched, by parameter; none of choices and of
    what is no number. Empty in tables from elsewhere."""
    images: MeasuredImages | None = None
    """None: not known, in tables from elsewhere and in sweeps from before this was written."""
    planted_target: str | None = None
    """Towards which the victim's weights say that they were poisoned; None: they say nothing."""
    notes: tuple[str, ...] = ()
    """Sentences without which its results could be misread: leaderboard, page, JSON and MLflow carry them."""
    keep_checkpoints: int = 0
    """So many cleaned trials keep their weights; 0: not known, in tables from elsewhere."""
    origin: Origin = Origin()
    read_columns: Callable[[], PointColumns] | None = field(default=None, compare=False, repr=False)
    """Gives all its points, where they need not be made of the trials' own."""
    certified_hits: Mapping[tuple[int, int], int] = field(default_factory=dict, compare=False, repr=False)
    """By triggered images and choices: the most hits that are certified, as far as it is known already."""

    def __getstate__(self) -> dict[str, Any]:
        """Another process makes the columns of the trials' own points."""
        return {**self.__dict__, "read_columns": None}

    def columns(self) -> PointColumns:
        """All points of all trials, in the order of the trials."""
        return self.read_columns() if self.read_columns else PointColumns.of(self.trials)

    @property
    def measures_what_was_planted(self) -> bool:
        """Whether the ASR is not known to be measured towards another class than the victim was poisoned towards."""
        return self.planted_target in (None, self.target)

    @property
    def is_promotable(self) -> bool:
        """Whether `sweeplab promote` takes its trials: its record says all of it, and prompts classify."""
        made = self.origin
        return made.has_spec and not made.has_own_code and self.method not in OWN_CLASSIFIER

    @property
    def failures(self) -> tuple[TrialRecord, ...]:
        """The trials that failed for good."""
        return tuple(trial for trial in self.trials if trial.state == "failed")

    @property
    def num_succeeded(self) -> int:
        """Trials that ran to their end, or to where a rule stopped them."""
        return sum(trial.state in ("finished", "pruned") for trial in self.trials)


MINIATURE = "-smoke"
"""How the names of miniatures end, before what is put behind them."""

Sampler = Literal["tpe", "gp", "random", "qmc", "grid", "nsga2"]
Purpose = Literal["longer", "losses", "more", "seeds"]
"""What a sweep is run anew for."""

_WORDS = "|".join((*get_args(Sampler), *get_args(Purpose)))
_MINIATURE_NAME = re.compile(f"{MINIATURE}(-single-[0-9a-f]{{8}}|-({_WORDS}))*")
"""How a miniature's name ends, with what the program puts behind its mark."""

NAME_CHARACTERS = 80
"""That the name of a sweep or victim has at most."""


def name_with(name: str, ending: str) -> str:
    """A name with an ending, cut before that where both are too long; a miniature's keeps its mark."""
    base = name.removesuffix(MINIATURE)
    ending = name[len(base) :] + ending
    return base[: NAME_CHARACTERS - len(ending)] + ending


def is_miniature(name: str) -> bool:
    """Whether a sweep or victim of this name was made by `--smoke`, or from one that was."""
    mark = name.rfind(MINIATURE)
    return mark >= 0 and _MINIATURE_NAME.fullmatch(name, mark) is not None


def promote_command(sweep: str, trial: int) -> str:
    """The command that writes a trial's model to a folder from which open_clip loads it."""
    return f"sweeplab promote {shlex.quote(sweep)} {trial} --to FOLDER"


def percent(fraction: float | None, digits: int | None = 1, *, ceiling: float | None = None) -> str:
    """A fraction as people read it: 0.984 is `98.4 %`, None a dash.

    Args:
        fraction: in [0, 1].
        digits: behind the point: 1 for what was measured, wherever it stands; 2 where a rule compares two numbers
            that lie close together; None: as many as there are, for bounds such as 0.05.
        ceiling: a fraction; there are as many more digits as show on which side of it the other one lies: beside 0.05,
            0.0497 is `4.97 %`.
    """
    if fraction is None:
        return "–"
    if digits is None:
        return f"{100 * fraction:g} %"
    if ceiling is not None:
        limit, side = round(100 * ceiling, 9), fraction - ceiling
        digits = next((n for n in range(digits, 9) if (round(100 * fraction, n) - limit) * side > 0), digits)
    return f"{100 * fraction:.{digits}f} %"


def number_of(count: float, word: str) -> str:
    """A count and what is counted: `1 trial`, `2,000 trials`.

    Args:
        count: how many, fractions of an epoch too.
        word: in the singular, with a regular plural in -s.
    """
    return f"{count:,.10g} {word}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Days, days and hours, hours and minutes, minutes and seconds, or tenths of a second."""
    if 0 < seconds < 0.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds >= 10 * 86_400:
        return f"{seconds // 86_400:,} d"
    if seconds >= 86_400:
        return f"{seconds // 86_400} d {seconds % 86_400 // 3600:02d} h"
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def now_ms() -> int:
    """Milliseconds since 1970, as records carry them."""
    return time.time_ns() // 1_000_000
