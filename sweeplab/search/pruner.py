"""Pruner: what a sweep knows when a stopping rule is asked. Sweeps and replays share it."""

from dataclasses import dataclass

from sweeplab.ranking.stopping import Pruning, Situation, Stop, Trajectory
from sweeplab.records import Measurement


@dataclass(frozen=True)
class Goal:
    """What trials are measured against; fractions."""

    victim_accuracy: float
    victim_asr: float
    asr_ceiling: float

    @classmethod
    def of(cls, victim: Measurement, asr_ceiling: float) -> "Goal":
        """That of a sweep whose victim was measured with a trigger."""
        assert victim.asr is not None
        return cls(victim.accuracy, victim.asr, asr_ceiling)


class Pruner:
    """Keeps the trajectories that the rules learn from, and asks the rules, if there are any; writes nothing."""

    def __init__(self, pruning: Pruning | None, goal: Goal) -> None:
        self.pruning, self.goal = pruning, goal
        self.best_accuracy: float | None = None
        self.lowest_asr: float | None = None
        self._completed: dict[int, Trajectory] = {}

    def saw(self, number: int, trajectory: Trajectory, *, is_complete: bool) -> None:
        """Take in a trial's points so far; rules learn from one that ran to its end."""
        best = trajectory.best_accuracy(self.goal.asr_ceiling)
        if best is not None and (self.best_accuracy is None or best > self.best_accuracy):
            self.best_accuracy = best
        if trajectory.asr and (self.lowest_asr is None or min(trajectory.asr) < self.lowest_asr):
            self.lowest_asr = min(trajectory.asr)
        if is_complete and self.pruning is not None:
            self._completed[number] = trajectory

    def judge(self, trajectory: Trajectory) -> Stop | None:
        """The first rule's reason to stop a trial after its last point; None: go on."""
        if self.pruning is None:
            return None
        situation = Situation(
            victim_accuracy=self.goal.victim_accuracy,
            victim_asr=self.goal.victim_asr,
            asr_ceiling=self.goal.asr_ceiling,
            best_accuracy=self.best_accuracy,
            lowest_asr=self.lowest_asr,
            completed=tuple(self._completed.values()),
        )
        return self.pruning.decide(trajectory, situation)
