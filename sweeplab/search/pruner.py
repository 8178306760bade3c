"""Pruner: what a sweep knows when a stopping rule is asked. Sweeps and replays share it."""

from sweeplab.experiment import Search
from sweeplab.ranking.stopping import Pruning, Situation, Stop, Trajectory
from sweeplab.records import Measurement, TrialRecord


class Pruner:
    """Keeps the trajectories that the rules learn from, and asks the rules; writes nothing."""

    def __init__(self, pruning: Pruning, *, victim_accuracy: float, victim_asr: float, asr_ceiling: float) -> None:
        self.pruning = pruning
        self.victim_accuracy, self.victim_asr, self.asr_ceiling = victim_accuracy, victim_asr, asr_ceiling
        self.best_accuracy: float | None = None
        self.lowest_asr: float | None = None
        self._completed: dict[int, Trajectory] = {}

    @classmethod
    def of(cls, search: Search, victim: Measurement) -> "Pruner | None":
        """A search's; None where it prunes nothing, or where no ASR was measured."""
        pruning = search.active_pruning()
        if pruning is None or victim.asr is None:
            return None
        return cls(pruning, victim_accuracy=victim.accuracy, victim_asr=victim.asr, asr_ceiling=search.asr_ceiling)

    def saw(self, trial: TrialRecord) -> None:
        """Take in a trial's points so far; one that has finished is learned from."""
        self.saw_trajectory(
            trial.number,
            Trajectory.of(trial.points, start_counts=trial.start_counts),
            is_complete=trial.state == "finished",
        )

    def saw_trajectory(self, number: int, trajectory: Trajectory, *, is_complete: bool) -> None:
        """The same, for a replay."""
        best = trajectory.best_accuracy(self.asr_ceiling)
        if best is not None and (self.best_accuracy is None or best > self.best_accuracy):
            self.best_accuracy = best
        if trajectory.asr and (self.lowest_asr is None or min(trajectory.asr) < self.lowest_asr):
            self.lowest_asr = min(trajectory.asr)
        if is_complete:
            self._completed[number] = trajectory

    def judge(self, trial: TrialRecord) -> Stop | None:
        """The first rule's reason to stop the trial after its last point; None: go on."""
        return self.judge_trajectory(Trajectory.of(trial.points, start_counts=trial.start_counts))

    def judge_trajectory(self, trajectory: Trajectory) -> Stop | None:
        """The same, for a replay."""
        situation = Situation(
            victim_accuracy=self.victim_accuracy,
            victim_asr=self.victim_asr,
            asr_ceiling=self.asr_ceiling,
            best_accuracy=self.best_accuracy,
            lowest_asr=self.lowest_asr,
            completed=tuple(self._completed.values()),
        )
        return self.pruning.decide(trajectory, situation)
