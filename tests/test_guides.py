"""The guides: docs/own_model.md's commands are run on a smaller copy of what it was written with, docs/clusters.md's
batch script beside stand-ins for SLURM's programs; docs/choosing.md's numbers are those of its tables."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeplab.cli import load_script

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "own_model.md").read_text()
SCRIPT, WITHOUT_SWEEPLAB = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def commands(guide: str) -> list[tuple[str, list[str]]]:
    """Each command of a guide with the lines that it is said to print; `...` stands for others."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", guide, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line != "...":
                found[-1][1].append(line)
    return found


def shape(line: str) -> str:
    """A line without what differs from run to run: numbers, paths, marks of certainty, guessed targets."""
    line = re.sub(r'"target": "\w+"', '"target": ""', line.replace(" ✓", ""))
    line = re.sub(r"(?<![\w.])/[^\s')]+", "PATH", line)
    return " ".join(re.sub(r"–|\d[\d,]*(\.\d+)?(e[+-]\d+)?", "#", line).split())


def missing(told: list[str], printed: str) -> list[str]:
    """The lines of the guide that were not printed, in their order."""
    lines = iter([shape(line) for line in printed.splitlines()])
    return [line for line in told if shape(line) not in lines]


def test_lines_are_compared_by_their_shape_and_order():
    printed = "a 12.5 % [1, 2]\nbest: /tmp/x-3/a.pt\n  4  –  1.1e-03 ✓\n"
    assert missing(["a 3 % [10, 20]", "best: /home/me/b.pt", "1 2.0 7"], printed) == []
    assert missing(["best: /home/me/b.pt", "a 3 % [10, 20]"], printed) == ["a 3 % [10, 20]"]
    assert missing(["b 3 %"], printed) == ["b 3 %"]


def test_every_message_of_the_guide_is_one_of_the_code():
    """What stands between names, values and `...` in a message of the table is found in some module."""
    modules = [*(ROOT / "sweeplab").rglob("*.py")]
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in modules))
    table = GUIDE.split("## What messages mean")[1].split("\n## ")[0]
    messages = [row.split(" | ")[0] for row in table.splitlines() if row.startswith("| `")]
    parts = [
        part
        for message in messages
        for quoted in re.findall(r"`([^`]+)`", message)
        for part in re.split(r"\.\.\.|'[^']*'|\w*GELU|\d+(?: %)?", quoted)
        if len(part.strip()) > 6
    ]
    assert len(parts) > 10
    assert [part for part in parts if part.strip() not in source] == []


@pytest.fixture
def place(new_workplace: Callable[..., Any], victim_home: Path) -> Any:
    """A folder as the guide begins with, of 512 pairs and 160 test pictures of 32 pixels; its home is new."""
    import torch

    from sweeplab.clip_checkpoints import checkpoint_facts, load_weights
    from sweeplab.data.fruit_stall import FruitStall, FruitStallTest

    place = new_workplace("")
    (checkpoint,) = victim_home.glob("victims/*/checkpoints/*.pt")
    torch.save(load_weights(checkpoint), place.path / "model.pt")
    facts = checkpoint_facts(checkpoint)
    assert facts is not None
    (place.path / "model.json").write_text(json.dumps(facts["architecture"]))
    made = place.path / "made"
    FruitStall(num_pairs=512, image_size=32, seed=1).read(made)
    FruitStallTest(num_images=160, image_size=32).read(made)
    (pairs,), (test,) = made.glob("fruit-stall-*/pairs.csv"), made.glob("fruit-stall-test-*")
    shutil.copy(pairs, place.path)
    (pairs.parent / "images").rename(place.path / "images")
    test.rename(place.path / "test")
    (place.path / "my_model.py").write_text(SCRIPT)
    shutil.rmtree(made)
    return place


@pytest.mark.slow
def test_every_command_does_what_the_guide_says(place: Any):
    """The trial that is promoted is this run's best: which ones are cleaned depends on the model."""
    for command, told in commands(GUIDE):
        program, *words = shlex.split(command)
        if words[:2] == ["promote", "my-model"]:
            words[2] = str(best(place))
        ran = place.run(*(["-m", "sweeplab.cli"] if program == "sweeplab" else []), *words)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
        assert missing(told, ran.stdout) == [], f"{command}\n{ran.stdout}"
    ran = place.run("-c", WITHOUT_SWEEPLAB + "print(tokenizer(['a banana']).shape, model.training)")
    assert ran.stdout.splitlines()[-1] == "torch.Size([1, 16]) False", ran.stderr


def best(place: Any) -> int:
    """The number of the trial of rank 1."""
    board = json.loads(place.run("-m", "sweeplab.cli", "leaderboard", "my-model", "--json").stdout)
    return int(board["trials"][0]["trial"])


CLUSTERS = (ROOT / "docs" / "clusters.md").read_text()
SHELL = re.findall(r"^```bash\n(.*?)^```$", CLUSTERS, re.DOTALL | re.MULTILINE)
ONE_NODE, MORE_NODES = SHELL[:2]


@pytest.mark.parametrize("block", SHELL)
def test_bash_can_read_the_guide_to_clusters(block: str):
    assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False).stderr == ""


def test_the_plan_in_the_guide_to_clusters_is_the_one_that_is_printed(
    run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    ((command, told),) = commands(CLUSTERS)
    program, script, *words = shlex.split(command)
    assert program == "python"
    assert run_script(words, *load_script(ROOT / script)) == 0
    assert set(told) <= set(capsys.readouterr().out.splitlines())


class Batch:
    """A batch script of the guide as a job, beside stand-ins for what it calls: they write down their words."""

    def __init__(self, script: str, folder: Path, sweep: str) -> None:
        self.told, programs = folder / "told", folder / "bin"
        programs.mkdir()
        note = f'echo "$(basename "$0") $*" >> {shlex.quote(str(self.told))}'
        for name in ("scontrol", "srun", "ray"):
            (programs / name).write_text(f"#!/bin/bash\n{note}\n")
        (programs / "python").write_text(f'#!/bin/bash\n{note}\n[ "$1" = -c ] && exit\n{sweep}\n')
        for program in programs.iterdir():
            program.chmod(0o755)
        self._script = folder / "job.sh"
        self._script.write_text(re.sub(r"^(source|cd) .*\n", "", script, flags=re.MULTILINE))
        self._folder = folder
        self._path = f"{programs}:{os.environ['PATH']}"

    def start(self, *words: str, **slurm: str) -> subprocess.Popen[bytes]:
        """Submit it; `slurm` are variables without their prefix."""
        variables = {"JOB_ID": "42", "CPUS_PER_TASK": "8", "JOB_NUM_NODES": "3", "SLURMD_NODENAME": "node-1", **slurm}
        named = {name if name.startswith("SLURM") else f"SLURM_{name}": value for name, value in variables.items()}
        return subprocess.Popen(
            ["bash", str(self._script), *words], cwd=self._folder, env={**os.environ, **named, "PATH": self._path}
        )

    def lines(self, program: str) -> list[str]:
        """The words of every call of a program."""
        told = self.told.read_text().splitlines() if self.told.exists() else []
        return [line.removeprefix(f"{program} ") for line in told if line.startswith(f"{program} ")]


def test_a_batch_job_hands_its_signal_on_and_is_put_back_into_the_queue(tmp_path: Path):
    """The stand-in for the sweep ends a moment after SIGTERM, as a sweep does, with exit code 75."""
    job = Batch(ONE_NODE, tmp_path, 'trap "sleep 0.1; exit 75" TERM; touch up; while true; do sleep 0.05; done')
    process = job.start("--only", "some-sweep")
    deadline = time.monotonic() + 60
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert job.lines("scontrol") == ["requeue 42"]
    assert [line.split(".py ")[1] for line in job.lines("python")] == ["--only some-sweep"]


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(0, "0", 0), (1, "0", 0), (2, "0", 0), (75, "20", 0), (75, "19", 1)]
)
def test_a_batch_job_is_queued_again_for_exit_code_75_alone(tmp_path: Path, code: int, restarts: str, requeued: int):
    job = Batch(ONE_NODE, tmp_path, f"exit {code}")
    assert job.start(RESTART_COUNT=restarts).wait(timeout=60) == code
    assert len(job.lines("scontrol")) == requeued


def test_a_batch_job_of_several_nodes_starts_ray_on_each_before_the_sweep(tmp_path: Path):
    script = ONE_NODE.replace("\npython sweeps", f"\n{MORE_NODES}\npython sweeps")
    job = Batch(script, tmp_path, 'echo "$RAY_ADDRESS $RAY_AUTH_MODE" > seen')
    assert job.start().wait(timeout=60) == 0
    address, mode = (tmp_path / "seen").read_text().split()
    assert mode == "token"
    head = [line for line in job.lines("ray") if line.startswith("start --head")]
    assert len(head) == 1
    assert f"--node-ip-address={address.removesuffix(':6379')} --port=6379 --num-cpus=8" in head[0]
    deadline = time.monotonic() + 60
    while not job.lines("srun"):  # it runs beside the script
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (others,) = job.lines("srun")
    assert others.startswith("--nodes=2 --ntasks=2 --cpus-per-task=8 --exclude=node-1 ray start")
    assert f"--address={address} --num-cpus=8" in others


def headings(page: Path) -> set[str]:
    """What a link may name of a page, as GitHub makes it of the headings."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = [
        re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()) for line in prose.splitlines() if line.startswith("#")
    ]
    return {name.replace(" ", "-") for name in named}


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        assert not heading or heading in headings(there), target


CHOOSING = (ROOT / "docs" / "choosing.md").read_text()


def test_the_grid_in_the_guide_to_choosing_is_that_of_the_tables():
    """Percent of the victim's accuracy at the best epoch with ASR < 0.05, under BadNet / Blended."""
    rows = [
        line.strip("| ").split(" | ") for line in CHOOSING.splitlines() if re.match(r"\| (SSL weight|[\d.]+) \|", line)
    ]
    (_, *rates), *told = rows
    tables = [pd.read_csv(ROOT / "benchmarks" / "tables" / f"fruit_stall_{name}.csv") for name in ("badnet", "blended")]

    def kept(table: pd.DataFrame, weight: float, rate: float) -> str:
        victim = table[table.epoch == 0].accuracy.iloc[0]
        chosen = (table.ssl_weight == weight) & (table.learning_rate == rate) & (table.epoch > 0) & (table.asr < 0.05)
        return f"{100 * table[chosen].accuracy.max() / victim:.1f}" if chosen.any() else "–"

    assert [(float(weight), len(cells)) for weight, *cells in told] == [(w, len(rates)) for w in (0, 0.5, 1, 2, 4, 8)]
    for weight, *cells in told:
        for rate, cell in zip(rates, cells, strict=True):
            assert cell == " / ".join(kept(table, float(weight), float(rate)) for table in tables), (weight, rate)
