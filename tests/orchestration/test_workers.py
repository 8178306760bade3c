"""What a process takes of its machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sweeplab.orchestration.workers import whole_machine


def test_a_lone_process_takes_the_threads_that_torch_chose(tmp_path: Path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        machine = whole_machine(tmp_path)
    finally:
        torch.set_num_threads(before)
    assert (machine.data_home, machine.threads, machine.use_cuda) == (tmp_path / "data", 3, torch.cuda.is_available())


@pytest.mark.slow
def test_the_environment_can_ask_for_one_thread(tmp_path: Path):
    """In a process of its own, since torch reads it when it is imported."""
    code = (
        "from pathlib import Path; from sweeplab.orchestration.workers import whole_machine;"
        "print(whole_machine(Path('.')).threads)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"
