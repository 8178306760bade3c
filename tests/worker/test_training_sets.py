"""Training sets: read by the driver, kept by the node, mapped by workers; the same pairs, poisons and batches."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from fabricated import SWEEP
from PIL import Image

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.data import table_files
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStall
from sweeplab.data.pairs import PairsCSV
from sweeplab.experiment import CleaningSweep, CleanSample, PretrainedVictim
from sweeplab.specs import StorageFault
from sweeplab.sweep.checks import data_digests
from sweeplab.training.randomness import numpy_stream
from sweeplab.worker import inputs as module
from sweeplab.worker import jobs, training_sets
from sweeplab.worker.inputs import Inputs, cleaning_pairs, victim_pairs
from sweeplab.worker.jobs import NO_DIGESTS, DataDigests, Machine
from sweeplab.worker.training_sets import TrainingSet

pytestmark = pytest.mark.usefixtures("drawn")

NUM_PAIRS = 64


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the node keeps things, tables of any size among them."""
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(jobs, "node_cache", lambda: tmp_path / "node")
    for owner in (table_files, training_sets, module):
        monkeypatch.setattr(owner, "FEW_ROWS", 1)
    return tmp_path / "node"


@pytest.fixture
def machine(tmp_path: Path, node: Path) -> Machine:
    return Machine(tmp_path / "data", 1, use_cuda=False, node_cache_gigabytes=1)


@pytest.fixture
def data(tmp_path: Path) -> PairsCSV:
    """Pictures, every other one of them with a caption that names the banana."""
    (tmp_path / "csv").mkdir()
    lines = ["image,caption"]
    for number in range(NUM_PAIRS):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "csv" / f"{number}.png")
        lines.append(f"{number}.png,a photo of {'a banana' if number % 2 else 'an apple'} and {number}")
    (tmp_path / "csv" / "pairs.csv").write_text("\n".join(lines))
    return PairsCSV(path=tmp_path / "csv" / "pairs.csv")


@pytest.fixture
def victim(smoke: CleaningSweep, data: PairsCSV) -> PretrainedVictim:
    assert isinstance(smoke.victim, PretrainedVictim)
    return smoke.victim.replace(data=data)


def read_by_driver(spec: Any, machine: Machine) -> DataDigests:
    """What a job tells of the data, once the driver has read them."""
    inputs = Inputs(machine.data_home, machine.table_files())
    return data_digests(spec, (getattr(spec, "victim", spec)).architecture, inputs.training_set(spec), inputs)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables that are read from here on."""
    found, plain = [], PairsCSV.read

    def read(source: PairsCSV, data_home: Path) -> Any:
        found.append(source.path.name)
        return plain(source, data_home)

    monkeypatch.setattr(PairsCSV, "read", read)
    return found


BANANA = Poisoning(attack=BadNet(patch_size=8), target="banana", count=9, captions="training")
TARGETED = TargetedImages(
    images=FruitStall(num_pairs=24, image_size=32, seed=3), num_targets=3, poisons_per_target=4, classes=CLASS_NAMES
)


@pytest.mark.parametrize(
    "poisoning", [BANANA, BANANA.replace(placement="add"), TARGETED], ids=["replaced", "added", "targeted"]
)
def test_a_victim_trains_on_the_same_pairs_whoever_reads_them(
    victim: PretrainedVictim, machine: Machine, reads: list[str], poisoning: Any
):
    victim = victim.replace(poisoning=poisoning)
    expected = victim_pairs(victim, machine)
    known = read_by_driver(victim, machine)
    del reads[:]
    module._pairs.clear()
    found = victim_pairs(victim, machine, known=known)
    assert reads == []
    assert found is not expected
    assert_same_batches(found, expected)


def assert_same_batches(found: Any, expected: Any) -> None:
    assert (found.table.digest, len(found)) == (expected.table.digest, len(expected))
    rows = range(len(expected))
    assert torch.equal(found.images_of(rows), expected.images_of(rows))
    assert [found.caption(row) for row in rows] == [expected.caption(row) for row in rows]


@pytest.mark.parametrize("poisoning", [BANANA, TARGETED], ids=["trigger", "targeted"])
def test_a_cleaning_set_into_which_poisons_slipped_is_the_same(
    smoke: CleaningSweep, victim: PretrainedVictim, machine: Machine, reads: list[str], poisoning: Any
):
    sample = CleanSample(num_pairs=20, num_poisons=5, seed=4)
    sweep = smoke.replace(victim=victim.replace(poisoning=poisoning), data=sample)
    module._pairs.clear()
    expected = cleaning_pairs(sweep, machine)
    known = read_by_driver(sweep, machine)
    del reads[:]
    assert_same_batches(cleaning_pairs(sweep, machine, known=known), expected)
    assert reads == []


def test_a_clean_sample_is_drawn_from_the_clean_rows_in_their_order(
    smoke: CleaningSweep, victim: PretrainedVictim, machine: Machine
):
    """As slow loops draw it."""
    sweep = smoke.replace(victim=victim.replace(poisoning=BANANA), data=CleanSample(num_pairs=20, seed=4))
    inputs = Inputs(machine.data_home)
    table, plan = inputs.victim_table(sweep.victim)  # type: ignore[arg-type]
    clean = [row for row in range(NUM_PAIRS) if row not in plan.rows]
    order = numpy_stream(4, "clean sample").permutation(len(clean))[:20]
    assert inputs.training_set(sweep).table.digest == table.subset(sorted(clean[i] for i in order)).digest


def test_a_node_that_does_not_keep_it_reads_it_once(victim: PretrainedVictim, machine: Machine, reads: list[str]):
    """What the driver has read is on another node; the second process of this one finds what the first has left."""
    known = read_by_driver(victim, machine)
    for place in Path(machine.table_files().folder).iterdir():  # type: ignore[union-attr]
        place.unlink()
    del reads[:]
    for _ in range(2):
        module._pairs.clear()
        victim_pairs(victim, machine, known=known)
    assert reads == ["pairs.csv"]


def test_a_node_that_keeps_nothing_reads_it_in_every_process(
    victim: PretrainedVictim, machine: Machine, reads: list[str]
):
    machine = dataclasses.replace(machine, node_cache_gigabytes=0)
    known = read_by_driver(victim, machine)
    assert known.training == ""
    del reads[:]
    for _ in range(2):
        Inputs(machine.data_home, machine.table_files()).training_set(victim, known)
    assert reads == ["pairs.csv"] * 2


@pytest.mark.parametrize("what", ["training-", "table-"])
def test_what_is_damaged_is_put_together_again(
    victim: PretrainedVictim, machine: Machine, node: Path, reads: list[str], what: str
):
    known = read_by_driver(victim, machine)
    for place in node.glob(f"{what}*"):
        os.truncate(place, 40)
    del reads[:]
    found = Inputs(machine.data_home, machine.table_files()).training_set(victim, known)
    assert found.table.digest == known.pairs
    assert found.plan is not None
    assert reads == ["pairs.csv"]


def test_other_data_are_refused_by_the_process_that_reads_them_and_are_not_kept(
    victim: PretrainedVictim, data: PairsCSV, machine: Machine, node: Path
):
    known = read_by_driver(victim, machine)
    for place in node.iterdir():
        place.unlink()
    data.path.write_text(data.path.read_text().replace("and 7", "and 8"))
    inputs = Inputs(machine.data_home, machine.table_files())
    with pytest.raises(StorageFault, match=r"the training pairs on node .* differ from what the command read"):
        inputs.training_set(victim, known)
    assert list(node.glob("training-*")) == []


def test_captions_that_change_while_a_sweep_runs_reach_no_worker(
    victim: PretrainedVictim, data: PairsCSV, machine: Machine
):
    """The next command reads them, and they are another set."""
    known = read_by_driver(victim, machine)
    data.path.write_text(data.path.read_text().replace("an apple", "a pear"))
    found = Inputs(machine.data_home, machine.table_files()).training_set(victim, known)
    assert found.table.digest == known.pairs
    assert found.table.caption(0) == "a photo of an apple and 0"
    assert read_by_driver(victim, machine).pairs != known.pairs


def test_the_same_files_changed_since_are_another_training_set(
    victim: PretrainedVictim, data: PairsCSV, machine: Machine
):
    """Of the same digest: their bytes are as many, and what a node has decoded of them is not used."""
    known = read_by_driver(victim, machine)
    os.utime(data.path.parent / "5.png", ns=(0, 0))
    again = read_by_driver(victim, machine)
    assert again.pairs == known.pairs
    assert again.training != known.training


def test_copies_at_another_place_are_another_training_set(
    victim: PretrainedVictim, data: PairsCSV, machine: Machine, tmp_path: Path, reads: list[str]
):
    """A node may hold copies in several folders, of which those that no process uses are removed."""
    known = read_by_driver(victim, machine)
    data.path.parent.rename(tmp_path / "copy")
    del reads[:]
    there = victim.replace(data=data.replace(path=tmp_path / "copy" / "pairs.csv"))
    found = Inputs(machine.data_home, machine.table_files()).training_set(there, known)
    assert reads == ["pairs.csv"]
    assert Path(found.table.image(5)).is_file()


def test_the_rows_of_a_kept_plan_are_those_of_the_plan(victim: PretrainedVictim, machine: Machine, node: Path):
    """Also where the poisons' images come from elsewhere, which a kept plan does not hold."""
    for poisoning in (BANANA, TARGETED):
        spec = victim.replace(poisoning=poisoning)
        known = read_by_driver(spec, machine)
        found = Inputs(machine.data_home, machine.table_files()).training_set(spec, known).plan
        expected = Inputs(machine.data_home).training_set(spec).plan
        assert found is not None
        assert expected is not None
        assert (found.rows, found.caption_changes()) == (expected.rows, expected.caption_changes())


def test_small_tables_are_read_by_every_process(machine: Machine, monkeypatch: pytest.MonkeyPatch, data: PairsCSV):
    monkeypatch.setattr(module, "FEW_ROWS", NUM_PAIRS + 1)
    sweep = SWEEP.replace(data=data)
    assert Inputs(machine.data_home, machine.table_files()).keep(sweep, TrainingSet(data.read(Path()), None)) == ""
    monkeypatch.setattr(module, "FEW_ROWS", NUM_PAIRS)
    assert Inputs(machine.data_home, machine.table_files()).keep(sweep, TrainingSet(data.read(Path()), None)) != ""
    assert NO_DIGESTS.training == ""
