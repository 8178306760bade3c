"""Where the files that a record names are found."""

from pathlib import Path

import pytest
from fabricated import SWEEP

from sweeplab.data.pairs import PairsCSV
from sweeplab.worker.input_paths import recorded_sweep

RECORDED = SWEEP.replace(data=PairsCSV(path=Path("pairs.csv"), root=Path("images"))).to_json()


def test_relative_paths_of_a_record_lead_to_where_its_command_found_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The table is there; its folder of images is not, and is looked for here."""
    (tmp_path / "began").mkdir()
    (tmp_path / "began" / "pairs.csv").write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = recorded_sweep({"spec": RECORDED, "working_folder": str(tmp_path / "began")}).data
    assert (data.path, data.root) == (tmp_path / "began" / "pairs.csv", Path("images"))
    assert Path.cwd() == tmp_path / "here"


@pytest.mark.parametrize("where", [{}, {"working_folder": "/nowhere/at/all"}, {"working_folder": 3}], ids=str)
def test_a_record_that_does_not_say_where_it_began_is_read_as_it_is(where: dict[str, object]):
    assert recorded_sweep({"spec": RECORDED, **where}).to_json() == RECORDED
