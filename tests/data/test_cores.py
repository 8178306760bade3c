import os
from pathlib import Path

import pytest

from sweeplab.data import cores
from sweeplab.data.cores import for_rows
from sweeplab.data.fruit_stall import FruitStall, FruitStallTest

FEWEST_ROWS = 16
"""In place of the true number, which would take a while to do."""


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "FEWEST_ROWS", FEWEST_ROWS)


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process with three cores and no other thread, which a process of pytest-xdist has."""
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    monkeypatch.setattr(cores.threading, "active_count", lambda: 1)


def workers_of(folder: Path, num_rows: int) -> list[str]:
    """The process that did each row."""

    def work(row: int) -> None:
        (folder / str(row)).write_text(str(os.getpid()))

    for_rows(work, num_rows)
    return [(folder / str(row)).read_text() for row in range(num_rows)]


@pytest.mark.usefixtures("three_cores")
def test_many_rows_are_split_over_the_cores(tmp_path: Path):
    """Two cores are enough for the rows of two; this process takes its share."""
    workers = workers_of(tmp_path, 2 * FEWEST_ROWS + 1)
    assert len(set(workers)) == 2
    assert workers.count(str(os.getpid())) == FEWEST_ROWS + 1


@pytest.mark.usefixtures("three_cores")
@pytest.mark.parametrize("num_rows", [0, 5])
def test_few_rows_stay_in_this_process(tmp_path: Path, num_rows: int):
    assert set(workers_of(tmp_path, num_rows)) <= {str(os.getpid())}


def test_no_process_is_forked_beside_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    monkeypatch.setattr(cores.threading, "active_count", lambda: 2)
    assert set(workers_of(tmp_path, 2 * FEWEST_ROWS)) == {str(os.getpid())}


@pytest.mark.usefixtures("three_cores")
def test_a_fault_in_another_process_is_raised_here(capfd: pytest.CaptureFixture[str]):
    """Row 1 is another process's; nothing but the error tells of it."""

    def work(row: int) -> None:
        if row == 1:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        for_rows(work, 2 * FEWEST_ROWS)
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("three_cores")
def test_what_a_killed_process_left_is_done_here(tmp_path: Path):
    here = os.getpid()

    def work(row: int) -> None:
        if os.getpid() != here:
            os._exit(9)
        (tmp_path / str(row)).touch()

    for_rows(work, 2 * FEWEST_ROWS)
    assert len(list(tmp_path.iterdir())) == 2 * FEWEST_ROWS


@pytest.mark.usefixtures("three_cores")
@pytest.mark.parametrize(
    "spec", [FruitStall(num_pairs=2 * FEWEST_ROWS, image_size=16), FruitStallTest(num_images=2 * FEWEST_ROWS)]
)
def test_pictures_drawn_by_several_processes_are_those_of_one(
    tmp_path: Path, spec: FruitStall | FruitStallTest, monkeypatch: pytest.MonkeyPatch
):
    spec.read(tmp_path / "several")
    monkeypatch.setattr(cores, "usable_cores", lambda: 1)
    spec.read(tmp_path / "one")
    several, one = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.suffix in (".png", ".csv")}
        for root in (tmp_path / "several", tmp_path / "one")
    )
    assert len(several) >= 2 * FEWEST_ROWS
    assert several == one
