"""The import rules of the design: data flows one way, and each outside system has one door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TOOLS = ("specs", "protocol", "records", "search_space", "losses", "clip_model", "training", "patience", "terminal")
"""Import no stage."""
STAGES = ("data", "attacks", "pretraining", "cleaning", "evaluation", "tracking", "ranking", "dashboards")
"""Import tools, themselves, and stages to their left."""
JOINTS = ("experiment", "orchestration", "cli")
"""Describe, run and start what the stages make up; import stages, and joints to their left. No stage imports them."""

DOORS = {
    "ray": "sweeplab/orchestration/",
    "mlflow": "sweeplab/tracking.py",
    "open_clip": "sweeplab/clip_model.py",
    "plotly": "dashboards/",
}
"""An outside system, and the only place that imports it."""

PACKAGES = ("sweeplab", "dashboards", "searchspaces")
MODULES = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = sorted((ROOT / "sweeps").glob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[str]:
    """Full names of the imported modules, those inside functions too; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno} imports relatively; imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def unit_of(module: str) -> str | None:
    """The tool, stage or joint that a module belongs to; None for outside modules and for the bare package."""
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
    return {*TOOLS, *STAGES, *JOINTS[: JOINTS.index(unit) + 1]}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_imports_only_tools_and_what_lies_upstream(path: Path):
    unit = unit_of(module_of(path))
    if unit is None:
        assert set(imports_of(path)) == set(), "the package's own __init__.py imports nothing"
        return
    found = {imported for name in imports_of(path) if (imported := unit_of(name)) is not None}
    assert found - allowed(unit) == set(), f"{relative(path)} ({unit}) imports what is not upstream of it"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_belongs_to_a_unit_of_the_table(path: Path):
    assert unit_of(module_of(path)) in {None, "searchspaces", *TOOLS, *STAGES, *JOINTS}


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=relative)
def test_an_outside_system_is_imported_at_its_door_alone(path: Path):
    strangers = {
        name
        for name in imports_of(path)
        for system, door in DOORS.items()
        if name.split(".")[0] == system and not relative(path).startswith(door)
    }
    assert strangers == set(), f"{relative(path)} imports {', '.join(sorted(strangers))}"


@pytest.mark.parametrize("path", [p for p in MODULES if "orchestration" in p.parts], ids=relative)
def test_orchestration_draws_no_figures(path: Path):
    """What is done with a sweep's records is the command line's business."""
    assert not [name for name in imports_of(path) if unit_of(name) == "dashboards"]


@pytest.mark.parametrize("path", [*SCRIPTS, *sorted((ROOT / "searchspaces").glob("*.py"))], ids=relative)
def test_scripts_and_spaces_hold_no_logic(path: Path):
    """Assignments, imports and calls; the only condition is whether the file was started as a script."""
    logic = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While, ast.Lambda, ast.Try)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [f"line {node.lineno}" for node in ast.walk(tree) if isinstance(node, logic)] == []
    conditions = [ast.unparse(node.test) for node in ast.walk(tree) if isinstance(node, ast.If)]
    assert set(conditions) <= {"__name__ == '__main__'"}


def test_modules_do_not_import_each_other_in_a_circle():
    """At the top of a file; an import inside a function happens when both modules are there."""
    known = {module_of(path): path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        top = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
        names = {name for node in top for name in (node.module, *(f"{node.module}.{n.name}" for n in node.names))}
        graph[module] = {name for name in names if name in known and name != module}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for following in sorted(graph[module]):
                visit(following, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
