"""Pruner: what a sweep knows when a stopping rule is asked. Sweeps and replays share it."""

from sweeplab.experiment import Search
from sweeplab.ranking.stopping import Pruning, Situation, Stop, Trajectory
from sweeplab.records import Measurement


class Pruner:
    """Keeps the trajectories that the rules learn from, and asks the rules, if there are any; writes nothing."""

    def __init__(
        self, pruning: Pruning | None, *, victim_accuracy: float, victim_asr: float, asr_ceiling: float
    ) -> None:
        self.pruning = pruning
        self.victim_accuracy, self.victim_asr, self.asr_ceiling = victim_accuracy, victim_asr, asr_ceiling
        self.best_accuracy: float | None = None
        self.lowest_asr: float | None = None
        self._completed: dict[int, Trajectory] = {}

    @classmethod
    def of(cls, search: Search, victim: Measurement) -> "Pruner":
        """A search's."""
        assert victim.asr is not None  # a sweep's victim names its trigger
        accuracy, asr = victim.accuracy, victim.asr
        return cls(search.active_pruning(), victim_accuracy=accuracy, victim_asr=asr, asr_ceiling=search.asr_ceiling)

    def saw(self, number: int, trajectory: Trajectory, *, is_complete: bool) -> None:
        """Take in a trial's points so far; rules learn from one that ran to its end."""
        best = trajectory.best_accuracy(self.asr_ceiling)
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
            victim_accuracy=self.victim_accuracy,
            victim_asr=self.victim_asr,
            asr_ceiling=self.asr_ceiling,
            best_accuracy=self.best_accuracy,
            lowest_asr=self.lowest_asr,
            completed=tuple(self._completed.values()),
        )
        return self.pruning.decide(trajectory, situation)
