"""What a process takes of its machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fabricated import SWEEP

from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR
from sweeplab.orchestration.workers import has_cleanclips_trainer, whole_machine
from sweeplab.search_space import LogUniform, SearchSpace


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


@pytest.mark.parametrize("protocol", ["paper", "authors"])
def test_par_never_has_cleanclips_trainer(protocol: str):
    rates = SearchSpace(dimensions={"learning_rate": LogUniform(low=1e-4, high=1e-2)}, source="made up")
    sweep = SWEEP.replace(protocol=protocol, space=rates, grid=None)
    assert has_cleanclips_trainer(sweep.replace(method=CleanCLIP())) == (protocol == "authors")
    assert not has_cleanclips_trainer(sweep.replace(method=PAR()))
