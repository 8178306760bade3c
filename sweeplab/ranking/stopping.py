"""Stopping rules: when a trial's points so far say that the rest of it is not worth its epochs.

Rules are pure: they see the trial's own points and what the sweep knew at that moment, and give the reason with the
numbers that they saw. A rule may be wrong; `sweeplab audit` replays it over a sweep whose trials all ran to their end.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from sweeplab.evaluation.retention import counted
from sweeplab.records import Point, percent
from sweeplab.specs import AnySpec, Spec, one_of

SMALLEST_ASR = 1e-4
"""ASRs are compared as ratios; smaller ones, which a test set can hardly measure, count as this one."""


@dataclass(frozen=True)
class Trajectory:
    """The points of one trial that may win, as three rows of equal length; rates are fractions."""

    epochs: tuple[float, ...]
    accuracy: tuple[float, ...]
    asr: tuple[float, ...]

    @classmethod
    def of(cls, points: Iterable[Point], *, start_counts: bool) -> "Trajectory":
        """Of a trial's points; those without a measured ASR cannot be judged and are left out."""
        rows = [
            (point.epoch, point.measurement.accuracy, point.measurement.asr)
            for point in counted(points, start_counts=start_counts)
            if point.measurement.asr is not None
        ]
        return cls(tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows))

    def best_accuracy(self, asr_ceiling: float) -> float | None:
        """Of the cleaned points; None where there is none."""
        cleaned = [a for a, asr in zip(self.accuracy, self.asr, strict=True) if asr < asr_ceiling]
        return max(cleaned, default=None)

    @cached_property
    def outlook(self) -> dict[float, "Outlook"]:
        """By epoch: where the trial stood, and the best that came of it from there on."""
        highest, lowest, found = 0.0, 1.0, {}
        for epoch, accuracy, asr in reversed(list(zip(self.epochs, self.accuracy, self.asr, strict=True))):
            highest, lowest = max(highest, accuracy), min(lowest, asr)
            found[epoch] = Outlook(accuracy, asr, highest, lowest)
        return found


class Outlook(NamedTuple):
    """A trial at one epoch; fractions."""

    accuracy: float
    asr: float
    highest_accuracy: float
    """From this epoch on."""
    lowest_asr: float
    """From this epoch on."""

    @property
    def fall(self) -> float:
        """The lowest later ASR as a share of the ASR here, in (0, 1]."""
        return max(self.lowest_asr, SMALLEST_ASR) / max(self.asr, SMALLEST_ASR)


@dataclass(frozen=True)
class Situation:
    """What a sweep knows when a rule is asked; rates are fractions."""

    victim_accuracy: float
    victim_asr: float
    asr_ceiling: float
    best_accuracy: float | None
    """Of all cleaned points of the sweep so far; None: there is none yet."""
    lowest_asr: float | None
    """Of all points of the sweep so far that may win."""
    completed: Sequence[Trajectory] = ()
    """Trials that ran to their end, in the order in which they did."""


@dataclass(frozen=True)
class Stop:
    """A decision to end a trial early."""

    rule: str
    reason: str
    saw: dict[str, float]
    """The numbers behind it."""


class BackdoorStays(Spec):
    """The ASR has hardly moved: the setting is too weak to clean."""

    kind: Literal["backdoor-stays"] = "backdoor-stays"
    after_epochs: float = Field(default=2, gt=0)
    """Not before this epoch."""
    share: float = Field(default=0.9, gt=0, le=1)
    """Stop where the lowest ASR so far is at least this share of the victim's, and not cleaned."""

    def judge(self, trial: Trajectory, situation: Situation) -> Stop | None:
        """Whether to stop after the trial's last point."""
        lowest, limit = min(trial.asr), self.share * situation.victim_asr
        if trial.epochs[-1] < self.after_epochs or lowest < max(limit, situation.asr_ceiling):
            return None
        return Stop(
            self.kind,
            f"after epoch {trial.epochs[-1]:g} its lowest ASR, {percent(lowest, 2)}, is at least {self.share:g} of the "
            f"victim's {percent(situation.victim_asr, 2)}",
            {"epoch": trial.epochs[-1], "lowest_asr": lowest, "limit": limit},
        )


class FallsBehind(Spec):
    """The accuracy lies below what another point kept while cleaned, and is still falling."""

    kind: Literal["falls-behind"] = "falls-behind"
    after_epochs: float = Field(default=2, gt=0)
    """Not before this epoch."""
    margin: float = Field(default=0.1, ge=0, lt=1)
    """How far below the best cleaned accuracy of the sweep, as a fraction of the victim's accuracy."""

    def judge(self, trial: Trajectory, situation: Situation) -> Stop | None:
        """Whether to stop after the trial's last point."""
        best = situation.best_accuracy
        if best is None or trial.epochs[-1] < self.after_epochs or len(trial.accuracy) < 2:
            return None
        before, now = trial.accuracy[-2:]
        limit = best - self.margin * situation.victim_accuracy
        if now >= limit or now >= before:
            return None
        return Stop(
            self.kind,
            f"after epoch {trial.epochs[-1]:g} its accuracy, {percent(now, 2)}, is falling and more than "
            f"{self.margin:g} of the victim's below the best cleaned one, {percent(best, 2)}",
            {"epoch": trial.epochs[-1], "accuracy": now, "accuracy_before": before, "limit": limit},
        )


class LearnedBound(Spec):
    """What completed trials made of the same epoch says that this one cannot become good enough.

    Accuracy: of the completed trials that were no better at this epoch, none came above the best cleaned accuracy.
    Where too few were as bad, nothing is concluded: after a steep fall accuracy often comes back as the learning rate
    decays, and a trial that fell deeper than all before it may rise further than all before it. ASR: even the deepest
    later fall of any completed trial, as a share, would not bring this one below the ceiling.
    """

    kind: Literal["learned-bound"] = "learned-bound"
    after_epochs: float = Field(default=1, gt=0)
    """Not before this epoch."""
    learn_from: int = Field(default=5, ge=1)
    """Completed trials that were no better (accuracy), or completed trials (ASR), are needed."""
    accuracy_slack: float = Field(default=0.05, ge=0, lt=1)
    """A trial this much better, as a fraction of the victim's accuracy, still counts as no better; added to what came
    of them, too."""
    asr_slack: float = Field(default=0.5, gt=0, le=1)
    """The deepest fall is multiplied by it: 0.5 allows for a fall twice as deep."""

    def judge(self, trial: Trajectory, situation: Situation) -> Stop | None:
        """Whether to stop after the trial's last point."""
        epoch = trial.epochs[-1]
        if epoch < self.after_epochs:
            return None
        known = [other.outlook[epoch] for other in situation.completed if epoch in other.outlook]
        return self._by_accuracy(trial, situation, known) or self._by_asr(trial, situation, known)

    def _by_accuracy(self, trial: Trajectory, situation: Situation, known: "list[Outlook]") -> Stop | None:
        epoch, accuracy, best = trial.epochs[-1], trial.accuracy[-1], situation.best_accuracy
        slack = self.accuracy_slack * situation.victim_accuracy
        risen = [other.highest_accuracy for other in known if other.accuracy <= accuracy + slack]
        if best is None or len(risen) < self.learn_from:
            return None
        bound = max(accuracy, *risen) + slack
        if bound >= best:
            return None
        return Stop(
            self.kind,
            f"after epoch {epoch:g} its accuracy is {percent(accuracy, 2)}; of {len(risen)} completed trials "
            f"that were no better none came above {percent(bound, 2)} (slack included), and the best cleaned one is "
            f"{percent(best, 2)}",
            {"epoch": epoch, "learned_from": len(risen), "accuracy": accuracy, "bound": bound, "best": best},
        )

    def _by_asr(self, trial: Trajectory, situation: Situation, known: "list[Outlook]") -> Stop | None:
        epoch, asr, limit = trial.epochs[-1], trial.asr[-1], situation.asr_ceiling
        if len(known) < self.learn_from:
            return None
        # Without a cleaned point anywhere the lowest ASR ranks, and a trial that may still reach it goes on.
        if situation.best_accuracy is None and situation.lowest_asr is not None:
            limit = max(limit, situation.lowest_asr)
        bound = asr * min(other.fall for other in known) * self.asr_slack
        if bound < limit:
            return None
        return Stop(
            self.kind,
            f"after epoch {epoch:g} its ASR, {percent(asr, 2)}, would fall to {percent(bound, 2)} if it fell as "
            f"{len(known)} completed trials did at most (slack included), and the limit is {percent(limit, 2)}",
            {"epoch": epoch, "learned_from": len(known), "asr": asr, "bound": bound, "limit": limit},
        )


RULES = (BackdoorStays, FallsBehind, LearnedBound)


class Pruning(Spec):
    """Ends trials early, after a point, by the first rule that fires; off unless a search names it."""

    rules: tuple[Annotated[AnySpec, one_of(lambda: RULES, "judge", "stopping rule")], ...] = Field(
        default=(BackdoorStays(), FallsBehind(), LearnedBound()), min_length=1
    )

    def decide(self, trial: Trajectory, situation: Situation) -> Stop | None:
        """The first rule's reason to stop after the trial's last point; None: go on."""
        if not trial.epochs:
            return None
        for rule in self.rules:
            stop: Stop | None = rule.judge(trial, situation)  # type: ignore[attr-defined]
            if stop is not None:
                return stop
        return None
