"""Broken pairs: how many are tolerated, which rows stand in for them, and that a table stays what it was."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning, plan_poison
from sweeplab.clip_model import trimmed
from sweeplab.data import training_pairs
from sweeplab.data.augmentation import AutoAugmentView
from sweeplab.data.broken import StandIns, num_tolerated
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.tables import PairTable
from sweeplab.data.training_pairs import TrainingPairs
from sweeplab.specs import InvalidInput
from sweeplab.storage.broken_rows import BrokenRow, BrokenRows
from sweeplab.training.batches import EpochBatches, Loader, PairBatch
from sweeplab.training.randomness import numpy_stream

Tokenize = Callable[[list[str]], Tensor]
FIELDS = ("rows", "images", "tokens", "image_views", "token_views")


# --- how many


@pytest.mark.parametrize(
    ("share", "rows", "tolerated"), [(0.01, 1000, 10), (0.01, 999, 9), (0.01, 99, 0), (0.29, 100, 29), (0.0, 10**6, 0)]
)
def test_so_many_rows_may_be_broken(share: float, rows: int, tolerated: int):
    """0.29 * 100 is 28.999999999999996 in floating point."""
    assert num_tolerated(share, rows) == tolerated


@pytest.fixture
def source(tmp_path: Path) -> PairsCSV:
    """40 pairs, of which two may be broken."""
    for row in range(40):
        Image.new("RGB", (32, 32), (6 * row, 50, 100)).save(tmp_path / f"{row}.png")
    write(tmp_path, [(f"{row}.png", f"a photo of fruit {row}") for row in range(40)])
    return PairsCSV(path=tmp_path / "pairs.csv", max_broken=0.05)


def write(folder: Path, rows: list[tuple[str, str]]) -> None:
    (folder / "pairs.csv").write_text("\n".join(["image,caption", *(f"{image},{text}" for image, text in rows)]))


def test_the_share_is_the_boundary_and_all_kinds_of_faults_count_together(source: PairsCSV, tmp_path: Path):
    rows = [(f"{row}.png", f"a photo of fruit {row}") for row in range(40)]
    rows[3] = ("3.png", " ")
    write(tmp_path, rows)
    (tmp_path / "7.png").unlink()
    table = source.read(tmp_path)
    assert [(one.row, one.image, one.size > 0) for one in table.broken] == [(3, "3.png", True), (7, "7.png", False)]
    assert str(tmp_path / "7.png") not in source.files()
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(InvalidInput) as refused:
        source.read(tmp_path)
    assert str(refused.value).splitlines() == [
        f"{source.path}: 3 of 40 pairs are broken, and max_broken=0.05 tolerates 2:",
        f"  row 1: {tmp_path}/0.png is missing or empty",
        f"  row 4: {tmp_path}/3.png has no 'caption'",
        f"  row 8: {tmp_path}/7.png is missing or empty",
        f"paths are relative to {tmp_path} unless absolute; mend them, remove their rows, or raise max_broken so that "
        "other pairs stand in for them",
    ]


def test_of_many_faults_the_first_are_named_with_the_command_that_lists_all(source: PairsCSV, tmp_path: Path):
    for row in range(10, 40):
        (tmp_path / f"{row}.png").unlink()
    with pytest.raises(InvalidInput) as refused:
        source.read(tmp_path)
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:25]] == [f"  row {row}" for row in range(11, 35)]
    assert lines[25] == "  and 6 more; `sweeplab data check SCRIPT` lists all"


def test_a_row_without_a_path_among_absolute_ones_ties_the_digest_to_no_folder(source: PairsCSV, tmp_path: Path):
    tables = []
    (tmp_path / "csv").mkdir()
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        for row in range(40):
            (folder / f"{row}.png").write_bytes((tmp_path / f"{row}.png").read_bytes())
        rows = [(f"{folder}/{row}.png" if row != 5 else "", f"fruit {row}") for row in range(40)]
        write(tmp_path / "csv", rows)
        tables.append(source.replace(path=tmp_path / "csv" / "pairs.csv").read(tmp_path))
    assert tables[0].digest == tables[1].digest
    assert [one.reason for one in tables[0].broken] == ["it has no 'image'"]


def test_the_first_image_that_is_there_tells_whether_a_node_sees_the_data(source: PairsCSV, tmp_path: Path):
    (tmp_path / "0.png").unlink()
    assert source.example() == str(tmp_path / "1.png")


def test_a_tolerance_changes_no_digest(source: PairsCSV):
    assert source.digest() == source.replace(max_broken=0.0).digest()


# --- a table stays what it was


def record_of(table: PairTable) -> BrokenRows:
    return BrokenRows(table.digest, len(table), table.broken)


def test_a_recorded_row_stays_broken_and_the_digest_stays_once_it_is_mended(source: PairsCSV, tmp_path: Path):
    whole = (tmp_path / "7.png").read_bytes()
    (tmp_path / "7.png").unlink()
    (tmp_path / "9.png").write_bytes(b"<html>")
    table = source.read(tmp_path).with_broken({9: "no image"})
    for row in (7, 9):
        (tmp_path / f"{row}.png").write_bytes(whole)
    now = source.read(tmp_path)
    assert now.digest != table.digest
    then = now.frozen(record_of(table))
    assert then is not None
    assert (then.digest, then.broken) == (table.digest, table.broken)


def test_a_caption_that_is_filled_in_later_is_still_missing(source: PairsCSV, tmp_path: Path):
    rows = [(f"{row}.png", f"fruit {row}") for row in range(40)]
    write(tmp_path, [*rows[:3], ("", "fruit 3"), ("4.png", ""), *rows[5:]])
    table = source.read(tmp_path)
    write(tmp_path, rows)
    then = source.read(tmp_path).frozen(record_of(table))
    assert then is not None
    assert (then.digest, then.caption(4), [one.row for one in then.broken]) == (table.digest, "", [3, 4])


def test_a_record_of_another_table_does_not_fit(source: PairsCSV, tmp_path: Path):
    (tmp_path / "7.png").unlink()
    record = record_of(source.read(tmp_path))
    assert source.replace(num_pairs=39, max_broken=0.5).read(tmp_path).frozen(record) is None
    (tmp_path / "8.png").write_bytes(b"another size")
    assert source.read(tmp_path).frozen(record) is None
    far = dataclasses.replace(record.rows[0], row=40)
    assert source.read(tmp_path).frozen(dataclasses.replace(record, rows=(far,))) is None


def test_a_deep_grey_file_that_is_mended_later_changes_no_digest(source: PairsCSV, tmp_path: Path):
    """16-bit greys have a part in the digest; of a broken row it is what it was."""
    Image.new("I;16", (32, 32), 7).save(tmp_path / "7.png")
    content = (tmp_path / "7.png").read_bytes()
    (tmp_path / "7.png").write_bytes(content[: len(content) // 2])
    table = source.read(tmp_path).with_broken({7: "cut short"})
    assert table.broken[0].deep_grey
    Image.new("RGB", (32, 32), 7).save(tmp_path / "7.png")
    then = source.read(tmp_path).frozen(record_of(table))
    assert then is not None
    assert then.digest == table.digest


def test_rows_of_a_part_and_of_joined_tables_are_told_by_their_new_places(stall_pairs: PairTable):
    table = stall_pairs.with_broken({2: "two", 5: "five"})
    part = table.subset([5, 0, 2, 5])
    assert [(one.row, one.reason) for one in part.broken] == [(0, "five"), (2, "two"), (3, "five")]
    assert [one.row for one in table.joined(part).broken] == [2, 5, 64, 66, 67]
    assert stall_pairs.subset([5, 0, 2, 5]).digest == part.digest


# --- which rows stand in


def test_a_stand_in_is_the_first_of_its_own_stream_that_is_neither_broken_nor_poisoned():
    broken, poisoned = dict.fromkeys((3, 8, 11), "broken"), (5, 6, 7)
    stand_ins = StandIns(12, broken, poisoned)
    for seed in range(20):
        for row in range(12):
            expected = row
            draw = numpy_stream(seed, "stand-in", row)
            while expected in broken or (row in broken and expected in poisoned):
                expected = int(draw.integers(12))
            assert stand_ins.of(seed, row) == expected
    assert {stand_ins.of(seed, 3) for seed in range(200)} == {0, 1, 2, 4, 9, 10}


def test_who_stands_in_for_a_row_moves_only_where_it_turns_out_to_be_broken_itself():
    """The order in which they are found plays no part."""
    known = StandIns(1000, dict.fromkeys((3, 8), ""))
    before = known.of(0, 3), known.of(0, 8)
    known.add({500: ""})
    assert (known.of(0, 3), known.of(0, 8)) == before
    known.add({before[0]: ""})
    assert known.of(0, 3) != before[0]
    assert known.of(0, 8) == before[1]
    at_once = StandIns(1000, dict.fromkeys((before[0], 500, 8, 3), ""))
    assert [at_once.of(0, row) for row in range(1000)] == [known.of(0, row) for row in range(1000)]


def test_a_broken_poison_is_refused_with_its_row():
    with pytest.raises(InvalidInput, match=r"1 poisoned pairs are broken.*\n  row 6: cut short\n"):
        StandIns(12, {3: "gone", 5: "cut short"}, (5, 6))


def test_with_nobody_to_stand_in_the_table_is_refused():
    with pytest.raises(InvalidInput, match=r"2 of 3 pairs are broken.*\(1 are poisoned\)"):
        StandIns(3, {0: "", 1: ""}, (2,))


@pytest.mark.parametrize("captions", ["templates", "label-consistent"])
def test_poisons_pass_over_broken_rows_and_the_others_stay(stall_pairs: PairTable, captions: Any):
    """What turns out to be broken before anything is trained costs one poison its place, not all of them."""
    poisoning = Poisoning(attack=BadNet(patch_size=6), count=2, target="apple", captions=captions)
    plan = plan_poison(poisoning, stall_pairs)
    free = next(row for row in range(64) if row not in plan.rows)
    assert plan_poison(poisoning, stall_pairs.with_broken({free: ""})).rows == plan.rows
    hit = plan.rows[1]
    moved = plan_poison(poisoning, stall_pairs.with_broken({hit: ""}))
    assert hit not in moved.rows
    assert len(moved.rows) == 2
    assert set(plan.rows) - {hit} < set(moved.rows)


# --- batches


def pairs_of(table: PairTable, tokenize: Tokenize, **fields: Any) -> TrainingPairs:
    pairs = TrainingPairs(table, 32, tokenize=tokenize, **{"seed": 0, "report": lambda rows: None, **fields})
    pairs.use_views(AutoAugmentView())
    return pairs


def all_rows(pairs: TrainingPairs, epoch: int = 1) -> PairBatch:
    return pairs.__getitems__([(epoch, row) for row in range(len(pairs))])


def assert_same(first: PairBatch, second: PairBatch) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.fixture
def damaged(source: PairsCSV, tmp_path: Path) -> PairTable:
    """40 pairs, of which rows 3 and 17 cannot be decoded."""
    table = source.read(tmp_path)
    for row in (3, 17):
        (tmp_path / f"{row}.png").write_bytes(b"no image")
    return table


def test_image_and_caption_of_the_stand_in_are_used_in_the_place_of_a_broken_pair(
    damaged: PairTable, tokenize: Tokenize
):
    pairs = pairs_of(damaged, tokenize, seed=5)
    other = StandIns(40, {3: "", 17: ""}).of(5, 3)
    batch = pairs.__getitems__([(1, 3), (1, other)])
    assert batch.rows.tolist() == [other, other], "labels go by rows: those of the stand-in belong to its image"
    assert torch.equal(batch.images[0], batch.images[1])
    assert torch.equal(batch.tokens[0], trimmed(tokenize([damaged.caption(other)]))[0])
    assert pairs.caption(3) == damaged.caption(other)
    assert not torch.equal(batch.image_views[0], batch.image_views[1])  # each row's views are its own


def test_a_stand_in_that_turns_out_to_be_broken_gives_its_place_up_in_views_of_captions_too(
    source: PairsCSV, tokenize: Tokenize, tmp_path: Path
):
    write(tmp_path, [(f"{row}.png", f"{row} {row} {row} {row}") for row in range(40)])
    table = source.read(tmp_path)
    seed = next(seed for seed in range(1000) if StandIns(40, {3: ""}).of(seed, 3) == 17)
    pairs = pairs_of(table.with_broken({3: ""}), tokenize, seed=seed)
    before = all_rows(pairs)
    assert before.rows[3] == 17
    pairs.found_broken([table.broken_row(17, "")])
    expected = all_rows(pairs_of(table.with_broken({3: "", 17: ""}), tokenize, seed=seed))
    assert before.token_views is not None
    assert expected.token_views is not None
    assert not torch.equal(before.token_views[3], expected.token_views[3])
    assert_same(all_rows(pairs), expected)


def test_another_seed_has_other_stand_ins_and_the_decoded_images_stay(damaged: PairTable, tokenize: Tokenize):
    pairs = pairs_of(damaged, tokenize)
    all_rows(pairs)
    pairs.use_seed(1)
    assert_same(all_rows(pairs), all_rows(pairs_of(damaged, tokenize, seed=1)))
    others = {StandIns(40, {3: "", 17: ""}).of(seed, 3) for seed in (0, 1)}
    assert len(others) == 2


@pytest.mark.parametrize("held", ["memory", "file", "nowhere"])
@pytest.mark.parametrize("is_known", [True, False])
def test_batches_are_the_same_wherever_images_are_held_and_whoever_finds_what_is_broken(
    held: str, is_known: bool, damaged: PairTable, tokenize: Tokenize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = all_rows(pairs_of(damaged.with_broken({3: "", 17: ""}), tokenize))
    if held != "memory":
        monkeypatch.setattr(training_pairs, "CACHE_BYTES", 0)
    told: list[BrokenRow] = []
    fields: dict[str, Any] = {"decoded": DecodedFiles(tmp_path / "node", 1e9) if held == "file" else None}
    table = damaged.with_broken({3: "", 17: ""}) if is_known else damaged
    pairs = pairs_of(table, tokenize, report=told.extend, **fields)
    for _ in range(2):
        assert_same(all_rows(pairs), expected)
    if held != "file" or not is_known:
        assert sorted(one.row for one in told) == ([] if is_known else [3, 17])
    if not is_known:
        assert all("cannot be decoded as an image" in one.reason for one in told)
        assert {one.size for one in told} == {damaged.sizes[3], damaged.sizes[17]}  # as the table knows them


def test_two_ranks_have_the_batches_of_one_process(
    damaged: PairTable, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
):
    """Each meets broken rows of its own, and knows nothing of the other's."""
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", 0)
    places = {"global_batch_size": 10, "epoch": 1, "seed": 0}
    whole = [pairs_of(damaged, tokenize).__getitems__(keys) for keys in EpochBatches(40, **places)]
    halves = []
    for rank in range(2):
        told: list[BrokenRow] = []
        pairs = pairs_of(damaged, tokenize, report=told.extend)
        halves.append([pairs.__getitems__(keys) for keys in EpochBatches(40, **places, rank=rank, world_size=2)])
        assert {one.row for one in told} <= {3, 17}
    for step, batch in enumerate(whole):
        for name in FIELDS:
            parts = [getattr(half[step], name) for half in halves]
            assert torch.equal(torch.cat(parts), getattr(batch, name))


def test_what_a_loading_process_finds_is_told_by_the_main_one(
    damaged: PairTable, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training_pairs, "CACHE_BYTES", 0)
    told: list[BrokenRow] = []
    pairs = pairs_of(damaged, tokenize, report=told.extend)
    places = {"global_batch_size": 10, "epoch": 1, "seed": 0}
    batches = list(Loader(pairs, num_workers=1, pin=False).batches(EpochBatches(40, **places)))
    assert not told
    for batch in batches:
        pairs.found_broken(batch.broken)
    assert sorted(one.row for one in told) == [3, 17]
    again = list(Loader(pairs, num_workers=1, pin=False).batches(EpochBatches(40, **places)))
    assert not any(batch.broken for batch in again)
    for first, second in zip(batches, again, strict=True):
        assert_same(first, second)


def test_what_others_have_recorded_holds_for_pairs_that_are_there_already(
    damaged: PairTable, tokenize: Tokenize, tmp_path: Path
):
    """Also where the file was mended before this process saw it; text views that were made are made anew."""
    table = damaged.subset(range(40))
    for row in (3, 17):
        Image.new("RGB", (32, 32), row).save(tmp_path / f"{row}.png")
    pairs = pairs_of(table, tokenize)
    all_rows(pairs)
    record = damaged.with_broken({3: "", 17: ""}).broken
    pairs.use_broken(record, None)
    assert_same(all_rows(pairs), all_rows(pairs_of(damaged.with_broken({3: "", 17: ""}), tokenize)))


def test_where_nobody_is_told_all_broken_rows_are_refused_in_one_message(damaged: PairTable, tokenize: Tokenize):
    with pytest.raises(InvalidInput, match=r"2 of 40 images are broken, and none may be:\n  row 4: .*\n  row 18: "):
        pairs_of(damaged, tokenize, report=None)


def test_a_poison_that_turns_out_to_be_broken_is_refused_before_anybody_is_told(damaged: PairTable, tokenize: Tokenize):
    told: list[BrokenRow] = []
    with pytest.raises(InvalidInput, match=r"1 poisoned pairs are broken.*\n  row 18: "):
        pairs_of(damaged, tokenize, poisoned=(17,), report=told.extend)
    assert not told
