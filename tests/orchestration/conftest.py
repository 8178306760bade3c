"""Fixtures of the ledger, the search and the executors."""

from pathlib import Path

import fabricated
import pytest

from sweeplab.orchestration.ledger import SweepFolder


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """The folder of a sweep whose first trial may start."""
    return fabricated.prepared_folder(tmp_path / "sweeps")
