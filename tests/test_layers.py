"""The import rules of the design: data flows one way, and each outside system has one door."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TOOLS = (
    "specs",
    "protocol",
    "records",
    "search_space",
    "losses",
    "clip_model",
    "clip_folders",
    "clip_checkpoints",
    "clip_labeller",
    "terminal",
    "live_line",
    "storage",
    "training",
)
"""Import no stage."""
STAGES = ("data", "attacks", "pretraining", "cleaning", "evaluation", "tracking", "ranking", "dashboards")
"""Import tools, themselves, and stages to their left."""
ROOMS = (
    ("experiment",),
    ("versions",),
    ("sweep_folder",),
    ("adoption", "search", "worker"),
    ("execution",),
    ("sweep",),
    ("commands",),
    ("cli",),
)
"""Describe, run and start what the stages make up; import tools, stages, themselves, and rooms to their left. No stage
imports them, and rooms that stand beside each other do not import each other."""

DOORS = {
    "ray": ("sweeplab/execution/",),
    "optuna": ("sweeplab/search/", "sweeplab/search_space.py"),
    "mlflow": ("sweeplab/tracking/",),
    "open_clip": ("sweeplab/clip_model.py",),
    "plotly": ("dashboards/",),
}
"""An outside system, and the only places that import it."""

PACKAGES = ("sweeplab", "dashboards", "searchspaces")
MODULES = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = sorted((ROOT / "sweeps").glob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


AT_ONCE, LATER, FOR_TYPES = "at once", "later", "for types"
"""When an import runs: with the module, when a function is called, or never, for it serves type checkers alone."""


@cache
def all_imports(text: str) -> tuple[tuple[str, str], ...]:
    """Full name of everything that a module's text imports, and when; of `from a import b` both `a` and `a.b`."""
    found: list[tuple[str, str]] = []

    def visit(node: ast.AST, when: str) -> None:
        if isinstance(node, ast.Import):
            found.extend((name.name, when) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively; imports are absolute"
            found.extend((name, when) for name in (node.module, *(f"{node.module}.{one.name}" for one in node.names)))
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for part, then in ((node.body, FOR_TYPES), (node.orelse, when)):
                for statement in part:
                    visit(statement, then)
        else:
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and when == AT_ONCE
            for inner in ast.iter_child_nodes(node):
                if not isinstance(inner, ast.expr):  # no expression imports
                    visit(inner, LATER if is_function else when)

    visit(ast.parse(text), AT_ONCE)
    return tuple(found)


def imports_of(path: Path, *when: str) -> list[str]:
    """Full names of the imported modules, those inside functions too unless it is said when they are imported."""
    return [name for name, then in all_imports(path.read_text(encoding="utf-8")) if not when or then in when]


def unit_of(module: str) -> str | None:
    """The tool, stage or room that a module belongs to; None for outside modules and for the bare package."""
    parts = module.split(".")
    if parts[0] == "sweeplab":
        return parts[1] if len(parts) > 1 else None
    return parts[0] if parts[0] in ("dashboards", "searchspaces") else None


def module_of(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def allowed(unit: str) -> set[str]:
    """What a unit may import from this repository."""
    if unit in TOOLS:
        return set(TOOLS)
    if unit == "searchspaces":
        return {"searchspaces", *TOOLS}
    if unit in STAGES:
        return {*TOOLS, *STAGES[: STAGES.index(unit) + 1]}
    place = next(index for index, beside in enumerate(ROOMS) if unit in beside)
    return {*TOOLS, *STAGES, *(room for beside in ROOMS[:place] for room in beside), unit}


def faults_of(path: Path, name: str) -> list[str]:
    """What a module, taken for `name` (a path from the root), imports against the order and past the doors."""
    unit, faults = unit_of(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")), []
    for imported in imports_of(path):
        other = unit_of(imported)
        if unit is not None and other is not None and other not in allowed(unit):
            faults.append(f"{name} ({unit}) imports {imported}, which is not upstream of it")
        system = imported.split(".")[0]
        if system in DOORS and not name.startswith(DOORS[system]):
            faults.append(f"{name} imports {imported} past its door")
    return faults


def test_modules_import_what_lies_upstream_and_outside_systems_at_their_doors():
    assert [fault for path in (*MODULES, *SCRIPTS) for fault in faults_of(path, relative(path))] == []


def test_the_packages_own_init_imports_nothing():
    assert imports_of(ROOT / "sweeplab" / "__init__.py") == []


def test_every_module_belongs_to_a_unit_of_the_table():
    rooms = {room for beside in ROOMS for room in beside}
    known = {None, "searchspaces", *TOOLS, *STAGES, *rooms}
    assert [relative(path) for path in MODULES if unit_of(module_of(path)) not in known] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sweeplab/storage/files.py", "from sweeplab.sweep.run import run_sweep"),
        ("sweeplab/worker/run.py", "def later():\n    from sweeplab.execution.pool import Pool"),
        ("sweeplab/execution/pool.py", "from sweeplab.sweep.controller import SweepController"),
        ("sweeplab/search/samplers.py", "from sweeplab.worker.jobs import CleaningJob"),
        ("sweeplab/sweep/run.py", "def later():\n    import ray"),
        ("sweeplab/sweep/controller.py", "import optuna"),
        ("sweeplab/cleaning/par.py", "from sweeplab.evaluation.measure import Measure"),
    ],
)
def test_a_planted_violation_is_found(name: str, text: str, tmp_path: Path):
    planted = tmp_path / "planted.py"
    planted.write_text(text)
    assert len(set(faults_of(planted, name))) >= 1


@pytest.mark.parametrize("path", [*SCRIPTS, *sorted((ROOT / "searchspaces").glob("*.py"))], ids=relative)
def test_scripts_and_spaces_hold_no_logic(path: Path):
    """Assignments, imports and calls; the only condition is whether the file was started as a script."""
    logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While, ast.Lambda, ast.Try)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [f"line {node.lineno}" for node in ast.walk(tree) if isinstance(node, logic)] == []
    conditions = [ast.unparse(node.test) for node in ast.walk(tree) if isinstance(node, ast.If)]
    assert set(conditions) <= {"__name__ == '__main__'"}


def first_circle(graph: dict[str, set[str]]) -> tuple[str, ...] | None:
    """A circle in a graph of modules, if there is one."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if module in path:
            return (*path[path.index(module) :], module)
        if module in done:
            return None
        for following in sorted(graph.get(module, ())):
            if found := visit(following, (*path, module)):
                return found
        done.add(module)
        return None

    return next((found for module in sorted(graph) if (found := visit(module, ()))), None)


def graph_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Which of the modules each one imports, at its top or later."""
    return {
        module: {name for name in imports_of(path, AT_ONCE, LATER) if name in modules and name != module}
        for module, path in modules.items()
    }


def test_modules_do_not_import_each_other_in_a_circle():
    """Nowhere: a circle through an import inside a function is one of purposes, even where it works. The package of
    the command line, which gathers its commands, is left out."""
    assert (
        first_circle(graph_of({module_of(path): path for path in MODULES if module_of(path) != "sweeplab.cli"})) is None
    )
    assert first_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ("a", "b", "c", "a")


@pytest.mark.parametrize("text", ["import b", "def later():\n    from b import x", "if True:\n    import b"])
def test_a_planted_circle_is_found(text: str, tmp_path: Path):
    modules = {"a": tmp_path / "a.py", "b": tmp_path / "b.py"}
    modules["a"].write_text(text)
    modules["b"].write_text("from a import y")
    assert first_circle(graph_of(modules)) == ("a", "b", "a")
    modules["a"].write_text("if TYPE_CHECKING:\n    import b")
    assert first_circle(graph_of(modules)) is None


def test_what_ray_loads_into_its_own_processes_imports_next_to_nothing():
    """Controllers and the mailbox need no torch, which takes seconds and hundreds of megabytes."""
    heavy = "torch", "ray", "pydantic", "optuna", "mlflow", "pyarrow", "numpy"
    code = f"import sys; import sweeplab.execution.loops; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"


def loaded_with(*modules: str) -> set[str]:
    """Full names of what an import of modules imports at once: our own are followed, those of others are named."""
    paths = {module_of(path): path for path in MODULES}
    found: set[str] = set()
    left = list(modules)
    while left:
        name = left.pop()
        if name and name not in found:
            found.add(name)
            left.append(name.rpartition(".")[0])  # the package around it
            left.extend(imports_of(paths[name], AT_ONCE) if name in paths else ())
    return found


A_SWEEPS_BEGINNING = ("sweeplab.sweep.run", "sweeplab.commands.doctor")


def test_none_of_our_modules_that_a_sweep_begins_with_imports_ray():
    """Ray reads its settings when it is imported, the mode of its tokens among them."""
    found = loaded_with(*A_SWEEPS_BEGINNING)
    assert {"sweeplab.execution.cluster", "torch"} <= found
    assert "ray" not in found
    assert "ray" in loaded_with("sweeplab.execution.tune")


@pytest.mark.slow
def test_a_sweep_imports_ray_no_earlier_than_its_session():
    """Nor do the libraries that these import: a process of its own imports them all."""
    code = f"import sys; import {', '.join(A_SWEEPS_BEGINNING)}; print('ray' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "False"


def test_the_command_line_with_all_its_commands_imports_nothing_heavy():
    """`sweeplab status` and `--help` answer at once; a command imports what it needs when it runs."""
    heavy = "torch", "ray", "optuna", "mlflow", "open_clip", "plotly", "pandas", "pyarrow", "scipy"
    code = f"import sys; import sweeplab.cli; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"
