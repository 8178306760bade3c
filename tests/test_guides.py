"""The guides: every command of docs/own_model.md is run, in order, on a smaller copy of what it was written with."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "own_model.md").read_text()
SCRIPT, WITHOUT_SWEEPLAB = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, list[str]]]:
    """Each command of the guide with the lines that it is said to print; `...` stands for others."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE):
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
    for command, told in commands():
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
