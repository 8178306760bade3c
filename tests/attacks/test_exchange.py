"""Added poisons, previews, and the authors' CSV layout."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.exchange import ImportedPoison, export_poisoned_csv, poisoned_rows
from sweeplab.attacks.poisoning import Poisoning, load_plan, plan_poison
from sweeplab.attacks.preview import GAP, magnified, preview
from sweeplab.data.images import load_image
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput

ATTACK = BadNet(patch_size=6, pattern="binary")


def test_added_poisons_are_extra_rows_and_originals_stay(stall_pairs: PairTable):
    plan = plan_poison(Poisoning(attack=ATTACK, count=5, placement="add"), stall_pairs)
    table = plan.training_table(stall_pairs)
    assert len(table) == 69
    assert plan.rows == (64, 65, 66, 67, 68)
    assert plan.rate == pytest.approx(5 / 69)
    for row, source in zip(plan.rows, plan.indices, strict=True):
        assert table.image(row) == stall_pairs.image(source)
        assert table.caption(source) == stall_pairs.caption(source)
    pixels = torch.stack([torch.from_numpy(load_image(table.image(row), 32)) for row in range(69)])
    stamped = plan.stamp_rows(pixels, range(69))
    changed = (stamped != pixels).flatten(1).any(dim=1).nonzero().flatten()
    assert changed.tolist() == list(plan.rows)


def test_replacing_and_adding_differ_in_their_digest_and_replacing_is_as_before(stall_pairs: PairTable):
    replaced, added = (
        plan_poison(Poisoning(attack=ATTACK, count=5, placement=placement), stall_pairs)
        for placement in ("replace", "add")
    )
    assert replaced.digest != added.digest
    assert "placement" not in replaced.to_json()
    assert replaced.training_table(stall_pairs) is stall_pairs


def test_a_plan_of_added_poisons_is_read_back(stall_pairs: PairTable, tmp_path: Path):
    import json

    plan = plan_poison(Poisoning(attack=ATTACK, count=5, placement="add"), stall_pairs)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    assert load_plan(tmp_path / "plan.json", ATTACK) == plan


@pytest.mark.parametrize("placement", ["replace", "add"])
def test_an_exported_set_is_read_by_the_csv_reader_with_the_pixels_that_training_sees(
    placement: str, stall_pairs: PairTable, tmp_path: Path
):
    plan = plan_poison(Poisoning(attack=ATTACK, count=5, placement=placement), stall_pairs)
    table = plan.training_table(stall_pairs)
    path = export_poisoned_csv(table, plan, tmp_path / "out", image_size=32)
    read = PairsCSV(path=path).read(tmp_path)
    assert len(read) == len(table)
    assert poisoned_rows(path).tolist() == [0, 1, 2, 3, 4]
    for place, row in enumerate(plan.rows):
        pixels = torch.from_numpy(load_image(table.image(row), 32))[None]
        assert np.array_equal(load_image(read.image(place), 32), plan.stamp_rows(pixels, [row])[0].numpy())
        assert read.caption(place) == plan.caption_changes()[row]
    with path.open() as file:
        assert next(csv.reader(file)) == ["", "image", "caption"]


@pytest.mark.parametrize("placement", ["replace", "add"])
def test_an_exported_set_comes_back_as_a_plan(placement: str, stall_pairs: PairTable, tmp_path: Path):
    """Rows, captions, pixels and share are those of the plan that was exported; the poisons come first in the file."""
    plan = plan_poison(Poisoning(attack=ATTACK, count=5, placement=placement), stall_pairs)
    table = plan.training_table(stall_pairs)
    path = export_poisoned_csv(table, plan, tmp_path / "out", image_size=32)
    read = PairsCSV(path=path).read(tmp_path)
    back = ImportedPoison(path=path, attack=ATTACK).plan(read, tmp_path)
    assert back.rows == back.indices == (0, 1, 2, 3, 4)
    assert back.captions == plan.captions
    assert (back.rate, back.num_training_pairs) == (plan.rate, plan.num_training_pairs)
    assert back.training_table(read) is read
    pixels = torch.stack([torch.from_numpy(load_image(read.image(row), 32)) for row in range(6)])
    assert torch.equal(back.stamp_rows(pixels, range(6)), pixels), "they are triggered already"
    originals = torch.stack([torch.from_numpy(load_image(table.image(row), 32)) for row in plan.rows])
    assert torch.equal(pixels[:5], plan.stamp_rows(originals, plan.rows))


def test_an_imported_plan_is_saved_and_read_back(stall_pairs: PairTable, tmp_path: Path):
    import json

    path = export_poisoned_csv(
        stall_pairs, plan_poison(Poisoning(attack=ATTACK, count=5), stall_pairs), tmp_path / "out", image_size=32
    )
    plan = ImportedPoison(path=path, attack=ATTACK).plan(PairsCSV(path=path).read(tmp_path), tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    assert load_plan(tmp_path / "plan.json", ATTACK) == plan


def test_the_first_rows_of_an_imported_set_count_the_poisons_among_them(stall_pairs: PairTable, tmp_path: Path):
    path = export_poisoned_csv(
        stall_pairs, plan_poison(Poisoning(attack=ATTACK, count=5), stall_pairs), tmp_path / "out", image_size=32
    )
    read = PairsCSV(path=path, num_pairs=3).read(tmp_path)
    assert ImportedPoison(path=path, attack=ATTACK).plan(read, tmp_path).rows == (0, 1, 2)


def test_poisons_of_an_imported_set_slip_into_a_clean_sample(stall_pairs: PairTable, tmp_path: Path):
    path = export_poisoned_csv(
        stall_pairs, plan_poison(Poisoning(attack=ATTACK, count=5), stall_pairs), tmp_path / "out", image_size=32
    )
    imported, read = ImportedPoison(path=path, attack=ATTACK), PairsCSV(path=path).read(tmp_path)
    plan = imported.plan(read, tmp_path)
    clean = read.subset(range(5, 30))
    few = imported.few(clean, read, plan, count=2, seed=0)
    table = few.training_table(clean)
    assert [("backdoor" in table.image(row)) for row in range(25)] == [row in few.rows for row in range(25)]
    assert set(few.captions) <= set(plan.captions)


def test_a_file_without_marked_rows_is_refused(tmp_path: Path, stall_pairs: PairTable):
    (tmp_path / "a.csv").write_text("image,caption\nx.png,a\n")
    with pytest.raises(InvalidInput, match=r"none of the 64 pairs of .* is marked as poisoned; mark rows by a column"):
        ImportedPoison(path=tmp_path / "a.csv", attack=ATTACK).plan(stall_pairs, tmp_path)


def test_an_export_never_mixes_with_what_is_there(stall_pairs: PairTable, tmp_path: Path):
    plan = plan_poison(Poisoning(attack=ATTACK, count=1), stall_pairs)
    with pytest.raises(InvalidInput, match="give a new folder"):
        export_poisoned_csv(stall_pairs, plan, tmp_path, image_size=32)


def test_poisoned_rows_are_told_by_their_column_first(tmp_path: Path):
    (tmp_path / "a.csv").write_text("image,caption,is_backdoor\nbackdoor/x.png,a,0\ny.png,b,1\n")
    assert poisoned_rows(tmp_path / "a.csv").tolist() == [1]
    (tmp_path / "b.csv").write_text("path,caption\nx,a\n")
    with pytest.raises(InvalidInput, match="neither a column"):
        poisoned_rows(tmp_path / "b.csv")


def test_a_preview_shows_clean_triggered_and_difference(tmp_path: Path):
    Image.new("RGB", (50, 40), (100, 100, 100)).save(tmp_path / "a.png")
    picture = preview(ATTACK, [tmp_path / "a.png", tmp_path / "a.png"], image_size=32)
    assert picture.size == (3 * 32 + 2 * GAP, 2 * 32 + GAP)
    pixels = np.asarray(picture)
    assert (pixels[:32, :32] == 100).all()
    assert (pixels[:32, 32 + GAP : 64 + GAP] != 100).any(axis=2).sum() == 36
    difference = pixels[:32, 64 + 2 * GAP :]
    assert (difference != 128).any(axis=2).sum() == 36


def test_the_difference_fills_its_range():
    clean = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    triggered = clean.clone()
    triggered[:, 0, 0] = 110
    assert magnified(clean, triggered)[0, 0].tolist() == [255, 128]
    assert magnified(clean, clean)[0, 0].tolist() == [128, 128]


def test_a_preview_of_no_file_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="is no file"):
        preview(ATTACK, [tmp_path / "none.png"])
