"""Added poisons, previews, and the authors' CSV layout."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.exchange import ImportedPoison, export_poisoned_csv, poisoned_rows
from sweeplab.attacks.poisoning import Poisoning, load_plan, plan_poison
from sweeplab.attacks.preview import GAP, MOST_LINES, Row, magnified, preview, preview_poisons, sheet
from sweeplab.data.images import load_image
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.tables import PairTable
from sweeplab.experiment import PretrainedVictim
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
        rows = list(csv.reader(file))
    assert rows[0] == ["", "image", "caption", "is_backdoor"]
    assert [row[3] for row in rows[1:]] == ["1"] * 5 + ["0"] * (len(table) - 5)


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


def test_rows_of_an_imported_set_are_not_sampled(tmp_path: Path):
    """The poisoned rows are known by their numbers in the file."""
    path, attack = tmp_path / "pairs.csv", {"kind": "badnet", "patch_size": 4}
    fields = {
        "name": "victim",
        "architecture": {"name": "RN50"},
        "poisoning": ImportedPoison(path=path, attack=attack),
        "optimization": {},
        "epochs": 1,
        "evaluation": {"test": {"kind": "fruit-stall-test"}},
    }
    PretrainedVictim(data=PairsCSV(path=path, num_pairs=7), **fields)
    with pytest.raises(InvalidInput, match=r"poisoning 'imported' counts the rows of its whole file"):
        PretrainedVictim(data=PairsCSV(path=path, sample={"num": 7}), **fields)


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
    read = PairsCSV(path=path, num_pairs=7).read(tmp_path)
    assert ImportedPoison(path=path, attack=ATTACK).plan(read, tmp_path).rows == (0, 1, 2, 3, 4)


def test_a_set_that_is_wholly_poisoned_is_refused(stall_pairs: PairTable, tmp_path: Path):
    path = export_poisoned_csv(
        stall_pairs, plan_poison(Poisoning(attack=ATTACK, count=5), stall_pairs), tmp_path / "out", image_size=32
    )
    first = PairsCSV(path=path, num_pairs=5).read(tmp_path)
    with pytest.raises(InvalidInput, match=r"all of the 5 pairs of .* are marked as poisoned; .* small num_pairs"):
        ImportedPoison(path=path, attack=ATTACK).plan(first, tmp_path)


def test_poisons_of_an_imported_set_slip_into_a_clean_sample(stall_pairs: PairTable, tmp_path: Path):
    path = export_poisoned_csv(
        stall_pairs, plan_poison(Poisoning(attack=ATTACK, count=5), stall_pairs), tmp_path / "out", image_size=32
    )
    imported, read = ImportedPoison(path=path, attack=ATTACK), PairsCSV(path=path).read(tmp_path)
    plan = imported.plan(read, tmp_path)
    clean = read.subset(range(5, 30))
    few = imported.subset_for_cleaning(clean, lambda: (read, plan), count=2, seed=0)
    table = few.training_table(clean)
    assert [("backdoor" in table.image(row)) for row in range(25)] == [row in few.rows for row in range(25)]
    assert set(few.captions) <= set(plan.captions)


def test_a_file_without_marked_rows_is_refused(tmp_path: Path, stall_pairs: PairTable):
    (tmp_path / "a.csv").write_text("image,caption\nx.png,a\n")
    with pytest.raises(InvalidInput, match=r"none of the 64 pairs of .* are marked as poisoned; mark the rows"):
        ImportedPoison(path=tmp_path / "a.csv", attack=ATTACK).plan(stall_pairs, tmp_path)


def test_an_export_is_named_by_its_numbers_of_pairs_and_poisons(stall_pairs: PairTable, tmp_path: Path):
    """Without commas, of which a file's name in the authors' form has none."""
    few = len(stall_pairs)
    times = -(-1000 // few)
    images, captions = (pa.concat_arrays([column] * times) for column in (stall_pairs.images, stall_pairs.captions))
    table = PairTable.of(str(stall_pairs.root), images, captions, np.tile(stall_pairs.sizes, times))
    plan = plan_poison(Poisoning(attack=ATTACK, count=1), table)
    path = export_poisoned_csv(table, plan, tmp_path / "out", image_size=32)
    assert path.name == f"backdoor_banana_badnet_{few * times}_1.csv"


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


@pytest.mark.parametrize("marks_by", ["column", "path"])
def test_an_export_below_a_folder_named_backdoor_comes_back_with_its_own_poisons(
    stall_pairs: PairTable, tmp_path: Path, marks_by: str
):
    place = tmp_path / "my-backdoor-project"
    here = PairTable.of(str(place), stall_pairs.images, stall_pairs.captions, stall_pairs.sizes)
    shutil.copytree(stall_pairs.root, place)
    plan = plan_poison(Poisoning(attack=ATTACK, count=4), here)
    path = export_poisoned_csv(here, plan, place / "out", image_size=32)
    if marks_by == "path":  # as the authors' scripts, and the first release, wrote it
        table = pd.read_csv(path, dtype=str)
        table.drop(columns="is_backdoor").to_csv(path, index=False)
    assert poisoned_rows(path).tolist() == [0, 1, 2, 3]


def test_an_image_with_the_word_in_its_own_name_is_poisoned(tmp_path: Path):
    names = ["backdoor/a.png", "x/backdoor_1.png", "/data/backdoor_images_banana/b.png", "backdoor_images_x/deep/c.png"]
    (tmp_path / "a.csv").write_text("image,caption\n" + "".join(f"{name},a\n" for name in names))
    assert poisoned_rows(tmp_path / "a.csv").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), ("yes", "NO"), ("T", "f"), ("True", "FALSE"), ("1.0", "0.0"), (" true ", "false")]
)
def test_flags_are_read_in_their_usual_spellings(tmp_path: Path, yes: str, no: str):
    (tmp_path / "a.csv").write_text(f"image,caption,is_backdoor\nx.png,a,{no}\ny.png,b,{yes}\nz.png,c,{no}\n")
    assert poisoned_rows(tmp_path / "a.csv").tolist() == [1]


@pytest.mark.parametrize("flag", ["2", "maybe", "", "-1", "banana"])
def test_an_unknown_flag_is_refused_with_its_row(tmp_path: Path, flag: str):
    (tmp_path / "a.csv").write_text(f"image,caption,is_backdoor\nx.png,a,0\ny.png,b,{flag}\nz.png,c,1\n")
    with pytest.raises(InvalidInput, match=rf"row 2 has is_backdoor='{flag}', and 1 of 3 rows .* give yes or no"):
        poisoned_rows(tmp_path / "a.csv")


def test_a_quote_that_is_not_closed_hides_no_flag(tmp_path: Path):
    (tmp_path / "a.csv").write_text('image,caption,is_backdoor\nx.png,"a,0\ny.png,b,1\nz.png,c,1\n')
    with pytest.raises(InvalidInput, match=r"row 1, which begins in line 2, runs on"):
        poisoned_rows(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("rows", "differs"),
    [
        (["image,is_backdoor", "a.png,1", "b.png,0"], False),
        (["image,is_backdoor", "a.png,True", "b.png,False"], False),
        (["image,is_backdoor", "a.png,yes", "b.png,1", "c.png,no"], True),
        (["image", "backdoor_images_x/a.png", "b.png"], False),
        (["image", "backdoor_images_x/a.png", "/my-backdoor/b.png", "c.png"], True),
        (["image", "backdoor_images_x/a.png", "c.png", "/my-backdoor/b.png"], False),
    ],
)
def test_only_sets_whose_poisons_were_told_otherwise_enter_digests(tmp_path: Path, rows: list[str], differs: bool):
    """The last one's first two rows are told as ever, and the third is not used."""
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    used = 2 if rows[-1].endswith("my-backdoor/b.png") else len(rows) - 1
    assert bool(ImportedPoison(path=tmp_path / "a.csv", attack=ATTACK).contents(used)) == differs


def test_a_preview_shows_clean_triggered_and_difference(tmp_path: Path):
    Image.new("RGB", (50, 40), (100, 100, 100)).save(tmp_path / "a.png")
    picture = preview([ATTACK], [tmp_path / "a.png", tmp_path / "a.png"], image_size=32)
    assert picture.size == (3 * 32 + 2 * GAP, 2 * 32 + GAP)
    pixels = np.asarray(picture)
    assert (pixels[:32, :32] == 100).all()
    assert (pixels[:32, 32 + GAP : 64 + GAP] != 100).any(axis=2).sum() == 36
    difference = pixels[:32, 64 + 2 * GAP :]
    assert (difference != 128).any(axis=2).sum() == 36


def test_a_preview_of_an_attack_that_writes_into_its_images_shows_the_clean_one(tmp_path: Path):
    """Darkening by 100: clean grey at the left, black in the middle."""
    Image.new("RGB", (50, 40), (100, 100, 100)).save(tmp_path / "a.png")
    attack = SimpleNamespace(check_fits=lambda size: None, stamp=lambda images, seeds: images.sub_(100))
    pixels = np.asarray(preview([attack], [tmp_path / "a.png"], image_size=32))
    assert (pixels[:, :32] == 100).all()
    assert (pixels[:, 32 + GAP : 64 + GAP] == 0).all()


def test_the_difference_fills_its_range():
    clean = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    triggered = clean.clone()
    triggered[:, 0, 0] = 110
    assert magnified(clean, triggered)[0, 0].tolist() == [255, 128]
    assert magnified(clean, clean)[0, 0].tolist() == [128, 128]


def test_a_preview_of_no_file_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="is no file"):
        preview([ATTACK], [tmp_path / "none.png"])


GREY = torch.full((3, 160, 160), 100, dtype=torch.uint8)


def test_several_attacks_have_a_row_each_below_the_clean_images(tmp_path: Path):
    """Of two grey images: a name of 22 pixels above each row, and a patch of 36 pixels at one corner or another."""
    Image.new("RGB", (120, 120), (100, 100, 100)).save(tmp_path / "a.png")
    attacks = [ATTACK, ATTACK.replace(location="top-left")]
    pixels = np.asarray(preview(attacks, [tmp_path / "a.png", tmp_path / "a.png"], image_size=120))
    assert pixels.shape == (3 * (120 + 22) + 2 * GAP, 4 * 120 + 3 * GAP, 3)
    rows = [pixels[place * (142 + GAP) :][:142] for place in range(3)]
    for row in rows:
        assert (row[:22] < 128).any(), "its name"
    assert (rows[0][22:, :120] == 100).all()
    assert (rows[0][22:, 120:256] == 255).all(), "no difference of what is clean"
    for row in rows[1:]:
        for place, plain in enumerate((100, 128, 100, 128)):
            picture = row[22:, place * (120 + GAP) :][:, :120]
            assert (picture != plain).any(axis=2).sum() == 36
    assert (rows[1][22:, :120] != rows[2][22:, :120]).any()


def test_poisoned_pairs_stand_above_their_captions(stall_pairs: PairTable):
    """Nine of ten, three in a row; pictures of 32 pixels are made five times as large, so that captions have room."""
    plan = Poisoning(attack=ATTACK, target="banana", count=10).plan(stall_pairs, Path())
    picture = preview_poisons(stall_pairs, plan, 9, image_size=32)
    assert picture.width == 3 * 160 + 2 * GAP
    pixels = np.asarray(picture)
    first = load_image(stall_pairs.image(plan.rows[0]), 32)
    stamped = plan.stamp_rows(torch.from_numpy(first)[None], [plan.rows[0]])[0].numpy()
    assert (pixels[:160:5, :160:5] == stamped.transpose(1, 2, 0)).all()
    assert (pixels[160:180, :160] < 128).any(), "its caption"
    assert preview_poisons(stall_pairs, plan, 50, image_size=32).width == 4 * 160 + 3 * GAP


def test_long_captions_are_broken_between_words_and_end():
    short, long = sheet([Row([GREY], captions=["a b"])]), sheet([Row([GREY], captions=["word " * 100])])
    assert short.height == 160 + 22
    assert long.height == 160 + 4 + MOST_LINES * 18
