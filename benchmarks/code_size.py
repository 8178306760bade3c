"""How much code there is and how it reads: lines without docstrings, comments and blanks; docstrings; comments.

    python benchmarks/code_size.py               # the working tree
    python benchmarks/code_size.py --base REV    # and an older commit beside it

A room is a folder of `sweeplab`. Complexity is McCabe's: a function's branches, plus one.
"""

import argparse
import ast
import io
import subprocess
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("storage", "search", "worker", "execution", "sweep", "commands", "cli", "orchestration")
"""The folders around the stages, the older one among them; `cli` was a file."""
LONGEST_FILE, LONGEST_FUNCTION, MOST_COMPLEX = 500, 60, 12
LONG_FILES = ("sweeplab/training/loop.py", "sweeplab/experiment.py")
"""Allowed to be longer."""


@dataclass
class Counts:
    """Of one tree."""

    code: dict[str, int] = field(default_factory=dict)
    """Lines of code by file."""
    comments: dict[str, int] = field(default_factory=dict)
    docstring_lines: int = 0
    """Of public functions and methods."""
    public_functions: int = 0
    beyond: list[str] = field(default_factory=list)
    """Files and functions above the bounds."""


def python_files(revision: str | None) -> Iterator[tuple[str, str]]:
    """Path and text of every module of `sweeplab`, in the working tree or in a commit."""
    if revision is None:
        for path in sorted((ROOT / "sweeplab").rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text()
        return
    names = subprocess.check_output(["git", "ls-tree", "-r", "--name-only", revision, "sweeplab/"], cwd=ROOT, text=True)
    for name in names.split():
        if name.endswith(".py"):
            yield name, subprocess.check_output(["git", "show", f"{revision}:{name}"], cwd=ROOT, text=True)


def complexity(function: ast.AST) -> int:
    """McCabe's number, as ruff counts it: branches plus one."""
    branches = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
    nodes = list(ast.walk(function))
    inner = sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes)
    return sum(isinstance(node, branches) for node in nodes) + inner


def count(revision: str | None) -> Counts:
    """Count one tree."""
    counts = Counts()
    for name, text in python_files(revision):
        tree = ast.parse(text)
        documented: set[int] = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                documented |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if not node.name.startswith("_"):
                    counts.public_functions += 1
                    counts.docstring_lines += len((ast.get_docstring(node) or "").splitlines())
                if length > LONGEST_FUNCTION:
                    counts.beyond.append(f"{name}:{node.name}, {length} lines")
                if complexity(node) > MOST_COMPLEX:
                    counts.beyond.append(f"{name}:{node.name}, complexity {complexity(node)}")
        used: set[int] = set()
        commented: set[int] = set()
        nothing = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                commented.add(token.start[0])
            elif token.type not in nothing:
                used |= set(range(token.start[0], token.end[0] + 1))
        counts.code[name] = len(used - documented)
        counts.comments[name] = len(commented)
        if len(text.splitlines()) > LONGEST_FILE and name not in LONG_FILES:
            counts.beyond.append(f"{name}, {len(text.splitlines())} lines")
    return counts


def room_of(name: str) -> str:
    """The folder of `sweeplab` that a file lies in, or its own name."""
    return name.split("/")[1].removesuffix(".py")


def show(counts: Counts, title: str) -> None:
    """Print one tree's numbers."""
    inside = [name for name in counts.code if room_of(name) in ROOMS]
    code, comments = sum(counts.code[name] for name in inside), sum(counts.comments[name] for name in inside)
    print(f"{title}: {sum(counts.code.values()):,} lines of code in {len(counts.code)} files")
    print(f"  docstring lines per public function: {counts.docstring_lines / max(1, counts.public_functions):.2f}")
    print(f"  around the stages: {code:,} lines of code, {comments} with a comment ({comments / max(1, code):.1%})")
    for room in ROOMS:
        mine = [name for name in inside if room_of(name) == room]
        if mine:
            lines, with_comment = (sum(kind[name] for name in mine) for kind in (counts.code, counts.comments))
            print(f"    {room}: {lines:,} in {len(mine)} files, {with_comment / max(1, lines):.1%} with a comment")
    for line in counts.beyond:
        print(f"  beyond the bounds: {line}")


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="REV", help="a commit to print first")
    base = parser.parse_args().base
    if base:
        show(count(base), base)
    show(count(None), "working tree")


if __name__ == "__main__":
    main()
