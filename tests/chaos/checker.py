"""An independent checker of a sweep: reads files, Optuna's journal and MLflow's database itself, without SweepLab.

python tests/chaos/checker.py HOME SWEEP            # strictly, for a sweep that is at rest and finished
"""

import json
import math
import sqlite3
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a torn one, which a later append has closed, is passed over."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


@dataclass
class Seen:
    """What the ledger held at one moment."""

    points: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """By trial, in the order of the file."""
    results: dict[int, dict[str, Any]] = field(default_factory=dict)


def look(folder: Path) -> Seen:
    """Read a sweep's ledger."""
    seen = Seen()
    for path in sorted((folder / "trials").glob("[0-9]*/trial.json")):
        number = int(path.parent.name)
        seen.points[number] = json_lines(path.parent / "history.jsonl")
        result = path.parent / "result.json"
        if result.exists():
            seen.results[number] = json.loads(result.read_text())
    return seen


def accuracy(point: dict[str, Any]) -> float:
    return float(point["measurement"]["accuracy_k"] / point["measurement"]["accuracy_n"])


def asr(point: dict[str, Any]) -> float:
    return float(point["measurement"]["asr_k"] / point["measurement"]["asr_n"])


ENDS_WITH = {"driver": -9, "raylet": 75, "mailbox": 75}
"""The exit code of a command that lost one of these; any other loss it has to survive."""


def exit_fault(code: int, lost: str | None, *, is_complete: bool, is_up: bool = True) -> str | None:
    """What is wrong with a command's exit code: 0 means that every trial is over, 75 that the same command goes on.

    Args:
        code: the command's; negative: the signal that ended it.
        lost: the process that was killed under it just before its end.
        is_complete: whether every planned trial has its result.
        is_up: whether Ray had come up; until then Ray ends a command that lost its raylet, with 1.
    """
    if (code == 0 and is_complete) or code == ENDS_WITH.get(lost or "") or (code, lost, is_up) == (1, "raylet", False):
        return None
    state = "every trial is over" if is_complete else "trials are left"
    return f"exit code {code} {f'after its {lost} was killed' if lost else 'without a kill'}, and {state}"


class Checker:
    """Collects every violation of: exactly once, nothing lost, and all records agree."""

    def __init__(self, home: Path, sweep: str) -> None:
        self.home, self.sweep = home, sweep
        self.folder = home / "sweeps" / sweep
        self.faults: list[str] = []
        self.header = json.loads((self.folder / "sweep.json").read_text())
        self.epochs = int(self.header["spec"]["epochs"])
        self.ceiling = float(self.header["spec"]["search"]["asr_ceiling"])
        self.victim = json_lines(self.folder / "victim" / "history.jsonl")[0]

    def expect(self, holds: bool, text: str) -> None:
        """Note a violation."""
        if not holds:
            self.faults.append(text)

    def check(self, before: Seen | None = None, *, is_finished: bool, has_been_started: bool = True) -> list[str]:
        """All violations.

        Args:
            before: what the ledger held before the last kill: nothing of it may be gone.
            is_finished: the sweep is over, and every record must be complete.
            has_been_started: a driver has begun since: Optuna and MLflow must have caught up with `before`.
        """
        seen = look(self.folder)
        self.check_ledger(seen, is_finished=is_finished)
        if before is not None:
            self.check_nothing_lost(before, seen)
        if has_been_started:
            wanted = seen if is_finished else (before or Seen())
            self.check_optuna(seen, wanted, is_finished=is_finished)
            self.check_mlflow(seen, wanted, is_finished=is_finished)
        return self.faults

    # --- the ledger by itself

    def check_ledger(self, seen: Seen, *, is_finished: bool) -> None:
        """Points without holes or repetitions, results only of whole trials, attempts and events that fit."""
        events = json_lines(self.folder / "events.jsonl")
        began = Counter(event["trial"] for event in events if event["event"] == "trial began")
        ended = Counter(event["trial"] for event in events if event["event"] == "trial ended")
        self.expect(
            sorted(seen.points) == list(range(len(seen.points))), f"trial numbers {sorted(seen.points)} have holes"
        )
        for number, points in seen.points.items():
            who = f"trial {number}"
            self.expect(
                [point["index"] for point in points] == list(range(len(points))),
                f"{who}: points {[point['index'] for point in points]}",
            )
            self.expect(len(points) <= self.epochs + 1, f"{who}: {len(points)} points of {self.epochs + 1}")
            epochs = [point["epoch"] for point in points]
            self.expect(epochs == [float(e) for e in range(len(points))], f"{who}: epochs {epochs}")
            attempts = [point["attempt"] for point in points]
            self.expect(attempts == sorted(attempts), f"{who}: attempts go back {attempts}")
            self.expect(max(attempts, default=0) <= max(1, began[number]), f"{who}: more attempts than were begun")
            result = seen.results.get(number)
            if result is not None and result["state"] == "finished":
                self.expect(len(points) == self.epochs + 1, f"{who}: finished with {len(points)} points")
            if result is not None:
                held = result["points"]
                self.expect(
                    held == len(points), f"{who}: its result stands for {held} points, and {len(points)} are there"
                )
            outcomes = self.folder / "trials" / f"{number:04d}" / "outcomes"
            lacking = [point["index"] for point in points if not (outcomes / f"{point['index']:04d}.npz").exists()]
            self.expect(not lacking, f"{who}: points {lacking} have no outcomes")
            self.expect(ended[number] <= 1, f"{who}: ended {ended[number]} times")
            over = next((i for i, e in enumerate(events) if e["event"] == "trial ended" and e["trial"] == number), None)
            if over is not None:
                again = [e for e in events[over:] if e["event"] == "trial began" and e["trial"] == number]
                self.expect(not again, f"{who}: begun again after its end")
                self.expect(result is not None, f"{who}: ended without a result")
            names = {point["checkpoint"] for point in points if point["checkpoint"]}
            if result is not None:
                kept = {path.name for path in (self.folder / "trials" / f"{number:04d}" / "checkpoints").glob("*.pt")}
                self.expect(kept <= names, f"{who}: unknown checkpoints {kept - names}")
        lost = [event for event in events if event["event"] == "points lost"]
        self.expect(not lost, f"points were forgotten: {lost}")
        if is_finished:
            planned = int(self.header["planned_trials"])
            self.expect(len(seen.results) == planned, f"{len(seen.results)} results of {planned} trials")
            self.expect(all(ended[number] == 1 for number in seen.points), "a trial ended without its event")
            weights = [
                number
                for number in seen.points
                if any((self.folder / "trials" / f"{number:04d}" / "checkpoints").glob("*.pt"))
            ]
            limit = int(self.header["spec"]["resources"]["keep_checkpoints"])
            self.expect(len(weights) <= limit, f"{len(weights)} trials keep weights, {limit} may")

    def check_nothing_lost(self, before: Seen, seen: Seen) -> None:
        """What was committed stands, byte for byte; what was finished is not run again."""
        for number, points in before.points.items():
            now = seen.points.get(number, [])
            self.expect(now[: len(points)] == points, f"trial {number}: committed points changed or are gone")
            if number in before.results:
                self.expect(now == points, f"trial {number}: was finished and was run again")
                self.expect(seen.results.get(number) == before.results[number], f"trial {number}: its result changed")

    # --- what the others must agree with

    def score(self, number: int, points: list[dict[str, Any]]) -> tuple[float, float]:
        """The value and the constraint that the definition gives: retention of the best cleaned epoch, else what the
        lowest ASR lacks."""
        header = json.loads((self.folder / "trials" / f"{number:04d}" / "trial.json").read_text())
        candidates = [point for point in points if point["epoch"] > 0 or header["start_counts"]]
        lowest = min(asr(point) for point in candidates)
        cleaned = [accuracy(point) for point in candidates if asr(point) < self.ceiling]
        value = max(cleaned) / accuracy(self.victim) if cleaned else self.ceiling - lowest
        return value, math.nextafter(lowest - self.ceiling, math.inf)

    def check_optuna(self, seen: Seen, wanted: Seen, *, is_finished: bool) -> None:
        """The study has the ledger's trials, with their parameters, and knows the ends that it must know."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        whole = self.folder / ".checker-copy.journal"  # the driver may write while this reads
        content = (self.folder / "study.journal").read_bytes()
        whole.write_bytes(content[: content.rfind(b"\n") + 1])
        try:
            storage = JournalStorage(JournalFileBackend(str(whole)))
            is_created = self.sweep in optuna.get_all_study_names(storage)  # a kill may lie between file and study
            trials = optuna.load_study(study_name=self.sweep, storage=storage).get_trials() if is_created else []
        finally:
            for path in self.folder.glob(".checker-copy*"):
                path.unlink(missing_ok=True)
        self.expect(len(trials) >= len(seen.points), f"Optuna has {len(trials)} trials, the ledger {len(seen.points)}")
        for number, result in wanted.results.items():
            trial = trials[number]
            state = "COMPLETE" if result["state"] in ("finished", "pruned") else "FAIL"
            self.expect(trial.state.name == state, f"Optuna: trial {number} is {trial.state.name}, not {state}")
            header = json.loads((self.folder / "trials" / f"{number:04d}" / "trial.json").read_text())
            self.expect(trial.params == header["params"], f"Optuna: trial {number} has other parameters")
            if state == "COMPLETE":
                value, constraint = self.score(number, seen.points[number])
                self.expect(trial.value == value, f"Optuna: trial {number} is worth {trial.value}, not {value}")
                found = trial.constraints.get("asr")
                self.expect(found == constraint, f"Optuna: trial {number} has the constraint {found}, not {constraint}")
        if is_finished:
            left = [trial.number for trial in trials if not trial.state.is_finished()]
            self.expect(not left, f"Optuna: trials {left} are not finished")

    def check_mlflow(self, seen: Seen, wanted: Seen, *, is_finished: bool) -> None:
        """One run a trial, every point once under its own time, the best point as the definition gives it."""
        with sqlite3.connect(f"file:{self.home / 'mlflow.db'}?mode=ro", uri=True, timeout=30) as store:
            mark = f"{self.sweep}/{self.header['digest']}/{self.header['identity']}/"
            rows = store.execute(
                "select t.value, r.run_uuid, r.status from tags t join runs r using (run_uuid)"
                " where t.key = 'sweeplab.key'"
            ).fetchall()
            runs: dict[int, list[tuple[str, str]]] = {}
            for key, run, status in rows:
                if key.startswith(mark) and key[len(mark) :].isdigit():
                    runs.setdefault(int(key[len(mark) :]), []).append((run, status))
            for number, found in runs.items():
                self.expect(len(found) == 1, f"MLflow: trial {number} has {len(found)} runs")
            for number, points in wanted.points.items():
                if not points:
                    continue
                if number not in runs:
                    self.faults.append(f"MLflow: trial {number} has no run")
                    continue
                run, status = runs[number][0]
                for name, value_of in (("eval/accuracy", accuracy), ("eval/asr", asr)):
                    logged = store.execute(
                        "select step, value, timestamp from metrics where run_uuid = ? and key = ? order by step",
                        (run, name),
                    ).fetchall()
                    truth = [(p["index"], value_of(p), p["timestamp_ms"]) for p in seen.points[number]]
                    least = len(points)
                    fits = least <= len(logged) <= len(truth) and all(
                        step == index and abs(value - wanted_value) < 1e-12 and time == wanted_time
                        for (step, value, time), (index, wanted_value, wanted_time) in zip(logged, truth, strict=False)
                    )
                    self.expect(fits, f"MLflow: trial {number} has {name} = {logged}, the ledger {truth}")
                result = wanted.results.get(number)
                if result is None:
                    continue
                right = "FAILED" if result["state"] == "failed" else "FINISHED"
                self.expect(status == right, f"MLflow: trial {number} is {status}, not {right}")
                value, _ = self.score(number, seen.points[number]) if right == "FINISHED" else (-1.0, 0.0)
                best = store.execute(
                    "select value from metrics where run_uuid = ? and key = 'best/retention'", (run,)
                ).fetchall()
                expected = [value] if value >= 0 and self.is_cleaned(number, seen) else []
                same = len(best) == len(expected) and all(
                    abs(b[0] - e) < 1e-12 for b, e in zip(best, expected, strict=True)
                )
                self.expect(same, f"MLflow: trial {number} has best/retention {best}, not {expected}")
            if is_finished:
                self.expect(sorted(runs) == sorted(seen.points), f"MLflow has runs of {sorted(runs)}")

    def is_cleaned(self, number: int, seen: Seen) -> bool:
        """Whether some point that may win lies below the ceiling."""
        header = json.loads((self.folder / "trials" / f"{number:04d}" / "trial.json").read_text())
        return any(
            asr(point) < self.ceiling for point in seen.points[number] if point["epoch"] > 0 or header["start_counts"]
        )

    def check_leaderboard(self, board: dict[str, Any]) -> list[str]:
        """What `sweeplab leaderboard --json` prints, against the points themselves."""
        seen = look(self.folder)
        rows = {row["trial"]: row for row in board["trials"]}
        self.expect(sorted(rows) == sorted(seen.points), f"the leaderboard has trials {sorted(rows)}")
        order = []
        for number, points in seen.points.items():
            header = json.loads((self.folder / "trials" / f"{number:04d}" / "trial.json").read_text())
            candidates = [point for point in points if point["epoch"] > 0 or header["start_counts"]]
            cleaned = [point for point in candidates if asr(point) < self.ceiling]
            row = rows[number]
            if cleaned:
                best = min(cleaned, key=lambda point: (-accuracy(point), asr(point), point["index"]))
                expected = (best["epoch"], accuracy(best), asr(best), accuracy(best) / accuracy(self.victim))
                found = (row["epoch"], row["accuracy"], row["asr"], row["retention"])
                order.append((0, -expected[3], expected[2], number))
            else:
                expected = found = (None,) * 4
                found = (row["epoch"], row["accuracy"], row["asr"], row["retention"])
                order.append((1, min((asr(point) for point in candidates), default=2.0), 0.0, number))
            self.expect(found == expected, f"the leaderboard has {found} for trial {number}, not {expected}")
        ranked = [number for *_, number in sorted(order)]
        shown = [row["trial"] for row in sorted(board["trials"], key=lambda row: row["rank"])]
        self.expect(shown == ranked, f"the leaderboard ranks {shown}, the points {ranked}")
        return self.faults


if __name__ == "__main__":
    found = Checker(Path(sys.argv[1]), sys.argv[2]).check(is_finished=True)
    print("\n".join(found) or "all records agree")
    sys.exit(1 if found else 0)
