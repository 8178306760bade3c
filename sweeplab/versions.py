"""Versions: what made a record of a sweep or victim, and what has changed since in what it describes."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeplab.specs import Spec, changes_of, changes_since


def num_changes(spec: Spec) -> dict[str, int]:
    """How many changes of behaviour stand behind what a spec gives, by class name: part of the records made of it."""
    return {name: len(sentences) for name, sentences in changes_of(spec).items()}


def made_by_older_version(record: Mapping[str, Any], kind: str) -> str | None:
    """By which older version a record was made, and what has changed since in the behaviour of what its spec holds.

    Args:
        record: content of sweep.json or victim.json.
        kind: the spec's class, `CleaningSweep` or `PretrainedVictim`.

    Returns:
        "made by an older version (0.1.0): SafeCLIP: ..."; None where nothing has changed that touches it.

    Raises:
        InvalidInput: if this version refuses the spec, or its script defines classes of its own.
    """
    version = version_of(record)
    if "changes" in record and version == installed_version("sweeplab"):
        return None  # behaviour changes between versions alone, and to read the spec takes seconds: torch is imported
    from sweeplab import experiment

    spec = getattr(experiment, kind).model_validate(record["spec"])
    since = changes_since(spec, record.get("changes", {}))
    return f"made by an older version ({version}): {'; '.join(since)}" if since else None


def version_of(record: Mapping[str, Any]) -> str:
    """The version of SweepLab that wrote sweep.json or victim.json last."""
    return str(record.get("environment", {}).get("sweeplab", "unknown"))


def environment() -> dict[str, str]:
    """Versions that can change a result."""
    packages = ("sweeplab", "torch", "torchvision", "open_clip_torch", "ray", "optuna", "mlflow", "numpy", "pillow")
    versions = {package: installed_version(package) for package in packages}
    return {"python": sys.version.split()[0], "machine": platform.machine(), "system": platform.system(), **versions}


IS_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the environment of a submitted job."""


def started_script() -> str:
    """Absolute path of the script that this process was started with; empty where it was a command of SweepLab's own.

    In a submitted job the path as it was given, since the job's copy of the script is removed.
    """
    path = Path(sys.argv[0])
    if path.suffix != ".py" or path.resolve().is_relative_to(Path(__file__).resolve().parent):
        return ""
    return sys.argv[0] if IS_JOB in os.environ else os.path.abspath(path)


def commit_of(script: str) -> str:
    """The commit of the git repository that a script lies in; empty where it lies in none, or git is not there."""
    with contextlib.suppress(OSError):
        words = ["git", "-C", str(Path(script).absolute().parent), "rev-parse", "HEAD"]
        ran = subprocess.run(words, capture_output=True, text=True)
        return ran.stdout.strip() if ran.returncode == 0 else ""
    return ""


@functools.cache
def installed_version(package: str) -> str:
    """Of a distribution, or that there is none; looked up once, because its whole description is parsed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
