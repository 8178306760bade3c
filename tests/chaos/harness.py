"""Kill a real sweep's processes at random moments, start it again, and check every invariant after every start.

    python tests/chaos/harness.py --kills 100                                  # the long run, about an hour on 2 cores
    python tests/chaos/harness.py --each 10                                    # until every target was hit ten times
    python tests/chaos/harness.py --kills 6 --executors pool --targets worker controller

Targets: `driver`, `actor` (Tune's trial), `worker` (a Ray Train rank), `controller` (Ray Train's), `raylet`, `mailbox`,
`mlflow` (the driver's process that writes there). A kill of driver, raylet or mailbox ends the command, which is then
started again; after any other it has to go on by itself. Each executor begins without a victim, so that its first kills
meet pre-training.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from checker import ENDS_WITH, Checker, Seen, exit_fault, look

REPOSITORY = Path(__file__).parents[2]

TRIALS = 8
"""Of each sweep."""
EXPERIMENT = """
import sys
from quickstart import SWEEP as QUICKSTART
from sweeplab.cli import main
from sweeplab.experiment import smoke_sweep

SMALL = smoke_sweep(QUICKSTART)

def sweep(executor, workers, round_number):
    return SMALL.replace(
        name=f"chaos-{executor}-{round_number}",
        epochs=3,
        # One hit of 150 triggered images is cleaned, two are not: some trials are feasible and some are not.
        search=SMALL.search.replace(trials=TRIALS, startup_trials=4, asr_ceiling=0.01),
        resources=SMALL.resources.replace(
            executor=executor, workers=workers, max_attempts=1000, keep_checkpoints=3, checkpoint_minutes=0.02
        ),
    )

if __name__ == "__main__":
    executor, workers, round_number = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))
    main(sweep(executor, workers, round_number))
"""

MARKS = {
    "actor": "ImplicitFunc",
    "worker": "RayTrainWorker",
    "controller": "TrainController",
    "raylet": "raylet/raylet",
    "mailbox": "ray::Mailbox",
    "mlflow": "tracking_process",
}
TARGETS = {
    "tune": ("driver", "actor", "raylet", "mailbox", "mlflow"),
    "pool": ("driver", "worker", "controller", "raylet", "mailbox", "mlflow"),
}
WEIGHTS = {"driver": 3, "raylet": 1, "actor": 3, "worker": 3, "controller": 2, "mailbox": 1, "mlflow": 1}


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    checks: int = 0
    finished_trials: int = 0
    finished_sweeps: int = 0
    exit_codes: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def descendants(root: int) -> dict[int, str]:
    """Command lines of a process's descendants by number."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parents[int(entry.name)] = parent  # it is still there
    found: dict[int, str] = {}
    frontier = [root]
    while frontier:
        parent = frontier.pop()
        for child, of in parents.items():
            if of == parent and child not in found:
                found[child] = lines[child]
                frontier.append(child)
    return found


class Chaos:
    """One executor's sweeps, one after the other, in a home of their own."""

    def __init__(self, executor: str, workers: int, home: Path, place: Path, rng: random.Random, tally: Tally) -> None:
        self.executor, self.workers, self.home, self.place = executor, workers, home, place
        self.rng, self.tally = rng, tally
        self.round = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.leftovers: dict[int, str] = {}
        self.victims_known: dict[Path, list[str]] = {}
        """Committed points of every victim's pre-training, as they were last seen."""

    @property
    def name(self) -> str:
        return f"chaos-{self.executor}-{self.round}"

    @property
    def folder(self) -> Path:
        return self.home / "sweeps" / self.name

    def start(self) -> None:
        """The same command as ever."""
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "sweeps")])
        environment = {**os.environ, "SWEEPLAB_HOME": str(self.home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "experiment.py", self.executor, str(self.workers), str(self.round)]
        with (self.place / f"{self.name}.txt").open("ab") as output:
            self.process = subprocess.Popen(
                words, cwd=self.place, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.tally.starts += 1

    def drivers_begun(self) -> int:
        path = self.folder / "events.jsonl"
        return path.read_bytes().count(b'"driver began"') if path.exists() else 0

    def failed_attempts(self) -> int:
        path = self.folder / "events.jsonl"
        return path.read_bytes().count(b'"attempt failed"') if path.exists() else 0

    def violated(self, text: str) -> None:
        """Note a violation."""
        self.tally.faults.append(f"{self.name}: {text}")
        print(f"  VIOLATION in {self.tally.faults[-1]}", flush=True)

    def check_exit(self, code: int, lost: str | None, *, is_up: bool = True) -> None:
        """The exit code says what became of the sweep."""
        is_complete = len(look(self.folder).results) == TRIALS
        fault = exit_fault(code, lost, is_complete=is_complete, is_up=is_up)
        if fault is not None:
            self.violated(fault)

    def check_victims(self) -> None:
        """What pre-training has committed stays as it is, and goes on."""
        for path, before in self.victims_known.items():
            now = path.read_text().splitlines()[: len(before)] if path.exists() else []
            if now != before:
                self.violated(f"committed points of pre-training changed in {path}")
        self.tally.checks += 1
        for path in self.home.glob("victims/*/history.jsonl"):
            self.victims_known[path] = [line for line in path.read_text().splitlines() if line.endswith("}")]

    def wait_for(self, condition, seconds: float) -> bool:
        """Whether the condition came true while the command lived."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.05)
        return False

    def check(self, before: Seen | None, *, is_finished: bool, has_been_started: bool) -> None:
        """Every invariant; violations are kept, with the place."""
        if not (self.folder / "sweep.json").exists() or not (self.folder / "victim" / "history.jsonl").exists():
            return
        checker = Checker(self.home, self.name)
        faults = checker.check(before, is_finished=is_finished, has_been_started=has_been_started)
        if is_finished:
            words = ["-c", "from sweeplab.cli import app; app()", "leaderboard", self.name, "--json"]
            environment = {**os.environ, "SWEEPLAB_HOME": str(self.home), "PYTHONPATH": str(REPOSITORY)}
            board = subprocess.run(
                [sys.executable, *words], env=environment, capture_output=True, text=True, check=True, cwd=self.place
            ).stdout
            faults = checker.check_leaderboard(json.loads(board))
        self.tally.checks += 1
        for fault in faults:
            self.violated(fault)

    def end(self) -> int:
        """Wait for the command's end."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout=180)
        except subprocess.TimeoutExpired:
            self.violated("the command neither went on nor ended within 180 s")
            self.process.kill()
            code = self.process.wait()
        self.tally.exit_codes[code] += 1
        self.sweep_up()
        self.process = None
        return code

    def sweep_up(self) -> None:
        """End what a killed driver left: its Ray processes notice by themselves, but not at once."""
        time.sleep(self.rng.uniform(0.0, 3.0))  # the next start may well meet them
        for number in self.leftovers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        self.leftovers = {}

    def victims(self, target: str) -> list[int]:
        """Processes of a kind."""
        assert self.process is not None
        if target == "driver":
            return [self.process.pid]
        return [number for number, line in descendants(self.process.pid).items() if MARKS[target] in line]

    def one_kill(self, target: str) -> None:
        """Run until a random moment, and kill."""
        if self.process is None:
            self.start()
        assert self.process is not None
        pause = self.rng.uniform(0.0, 25.0) if target in ENDS_WITH else self.rng.uniform(0.0, 6.0)
        self.wait_for(lambda: False, pause)
        appeared = self.wait_for(lambda: bool(self.victims(target)), 90)
        if self.process.poll() is not None:
            self.finish_round(self.end())
            return
        if not appeared:
            return
        self.check_victims()
        before, begun, failures = look(self.folder), self.drivers_begun(), self.failed_attempts()
        self.leftovers = descendants(self.process.pid)
        is_up = any("ray::" in line for line in self.leftovers.values())  # Ray's workers follow the command's joining
        victims = self.victims(target)
        if not victims:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.rng.choice(victims), signal.SIGKILL)
        self.tally.kills[f"{self.executor}/{target}"] += 1
        done = sum("finished" in str(result) for result in before.results.values())
        points = sum(len(p) for p in before.points.values())
        print(
            f"[{time.strftime('%H:%M:%S')}] {sum(self.tally.kills.values()):3d} {self.name}: killed {target} at "
            f"{done} trials, {points} points" + ("" if begun else ", before any trial"),
            flush=True,
        )
        if target in ENDS_WITH:
            code = self.end()
            self.check_exit(code, target, is_up=is_up)
            if target != "driver" and self.failed_attempts() > failures:
                self.violated(f"a lost {target} was counted as a trial's failed attempt")
            before = look(self.folder)
            self.check(before, is_finished=False, has_been_started=False)
            self.start()
            if self.wait_for(lambda: self.drivers_begun() > begun, 120):
                self.check(before, is_finished=False, has_been_started=True)
        elif begun:
            # It goes on by itself: something new is committed, or the sweep ends.
            count = sum(len(p) for p in before.points.values())
            went_on = self.wait_for(lambda: sum(len(p) for p in look(self.folder).points.values()) > count, 150)
            if not went_on and self.process.poll() is None:
                self.violated(f"nothing new within 150 s after the {target} was killed")
            self.check(before, is_finished=False, has_been_started=False)
        if self.process is not None and self.process.poll() is not None:
            self.finish_round(self.end())

    def finish_round(self, code: int) -> None:
        """The command ended by itself: a finished sweep is checked strictly, and the next round gets a new one."""
        self.check_victims()
        self.check_exit(code, None)
        if code == 0:
            self.check(None, is_finished=True, has_been_started=True)
            self.tally.finished_trials += len(look(self.folder).results)
            self.tally.finished_sweeps += 1
            self.round += 1

    def to_the_end(self) -> None:
        """No more kills: the sweep has to finish."""
        for _ in range(4):
            if self.process is None:
                self.start()
            assert self.process is not None
            try:
                code = self.process.wait(timeout=400)
            except subprocess.TimeoutExpired:
                self.violated("does not finish")
                self.leftovers = descendants(self.process.pid)
                self.process.kill()
            code = self.end()
            self.finish_round(code)
            if code == 0:
                return
        self.violated("four starts without a kill did not finish it")


def prepare_home(place: Path) -> Path:
    """A home with data, a victim, and MLflow's tables."""
    home = place / "prepared"
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "sweeps")])
    environment = {**os.environ, "SWEEPLAB_HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    program = "from sweeplab.cli import app; app()"
    script = str(REPOSITORY / "sweeps" / "quickstart.py")
    subprocess.run(
        [sys.executable, "-c", program, "pretrain", script, "--smoke", "--inline"],
        env=environment,
        check=True,
        cwd=place,
        stdout=subprocess.DEVNULL,
    )
    return home


def run(
    kills: int,
    executors: list[str],
    seed: int,
    place: Path,
    targets: list[str] | None = None,
    *,
    pretraining: bool = False,
    each: int = 1,
) -> Tally:
    """Spread the kills over the executors and their targets; with `pretraining` the first of each meet that, and more
    are made until every target was hit `each` times."""
    (place / "experiment.py").write_text(EXPERIMENT.replace("TRIALS", str(TRIALS)))
    prepared, tally = prepare_home(place), Tally()
    for index, executor in enumerate(executors):
        rng = random.Random(f"{seed}/{executor}")
        home = place / f"home-{executor}"
        shutil.copytree(prepared, home)
        if pretraining:
            shutil.rmtree(home / "victims")
        share = kills // len(executors) + (index < kills % len(executors))
        chaos = Chaos(executor, 2 if executor == "pool" else 1, home, place, rng, tally)
        allowed = [target for target in TARGETS[executor] if targets is None or target in targets]
        wanted = sum(tally.kills.values()) + share
        for _ in range(4 * max(share, each * len(allowed)) + 20):  # not every try finds its target alive
            # Every target once, then by weight, then those that were hit too seldom.
            seldom = [target for target in allowed if tally.kills[f"{executor}/{target}"] < each]
            unseen = [target for target in seldom if not tally.kills[f"{executor}/{target}"]]
            if sum(tally.kills.values()) < wanted and not unseen:
                seldom = allowed
            if not seldom:
                break
            chaos.one_kill(unseen[0] if unseen else rng.choices(seldom, [WEIGHTS[t] for t in seldom])[0])
        chaos.to_the_end()
    return tally


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--each", type=int, default=1, help="go on until every target was hit that often")
    parser.add_argument("--executors", nargs="+", default=["tune", "pool"], choices=list(TARGETS))
    parser.add_argument("--targets", nargs="+", choices=list(WEIGHTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, help="folder for homes and outputs; a temporary one if left out")
    arguments = parser.parse_args()
    place = arguments.place or Path(tempfile.mkdtemp(prefix="sweeplab-chaos-"))
    place.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    tally = run(
        arguments.kills,
        arguments.executors,
        arguments.seed,
        place,
        arguments.targets,
        pretraining=True,
        each=arguments.each,
    )
    print(
        f"\n{sum(tally.kills.values())} kills in {time.monotonic() - began:.0f} s: {dict(sorted(tally.kills.items()))}"
    )
    print(f"{tally.starts} starts, exit codes {dict(tally.exit_codes)}, {tally.checks} checks")
    print(f"{tally.finished_sweeps} sweeps finished with {tally.finished_trials} trials")
    print(f"{len(tally.faults)} violations; homes and outputs in {place}")
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
