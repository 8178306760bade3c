"""The folders of private clusters: what killed drivers leave is removed, what lives stays."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sweeplab.orchestration.cluster import FOLDER_PREFIX, OWNER, remove_abandoned_folders


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_folders_of_dead_processes_are_removed_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name, owner in (("dead", str(dead.pid)), ("alive", str(os.getpid())), ("unknown", "not a number")):
        (tmp_path / f"{FOLDER_PREFIX}{name}").mkdir()
        (tmp_path / f"{FOLDER_PREFIX}{name}" / OWNER).write_text(owner)
    (tmp_path / f"{FOLDER_PREFIX}bare").mkdir()
    remove_abandoned_folders()
    left = sorted(path.name.removeprefix(FOLDER_PREFIX) for path in tmp_path.iterdir())
    assert left == ["alive", "bare", "unknown"]
