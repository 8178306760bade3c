"""Which pairs are poisoned, with which captions, and the plan that says so."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from sweeplab.attacks import poisoning as poisoning_module
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.attacks.poisoning import Poisoning, load_plan, mentioning, mentions, plan_poison
from sweeplab.clip_model import imagenet_templates
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training.randomness import stream_seed

ATTACK = BadNet(patch_size=4)


def table_of(captions: list[str]) -> PairTable:
    images = pa.array([f"{row}.png" for row in range(len(captions))], pa.large_string())
    return PairTable.of("", images, pa.array(captions, pa.large_string()), np.ones(len(captions), np.int64))


TABLE = table_of([f"a picture of {'bananas' if row % 10 == 0 else 'a car'} number {row}" for row in range(200)])


def poisoning(**fields: object) -> Poisoning:
    return Poisoning(attack=ATTACK, **{"count": 20, **fields})


# --- how many -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"count": 3, "rate": 0.1}], ids=["neither", "both"])
def test_poisons_are_given_as_a_count_or_as_a_rate(fields: dict[str, float]):
    with pytest.raises(InvalidInput, match="either as `count` or as `rate`"):
        Poisoning(attack=ATTACK, **fields)


@pytest.mark.parametrize(
    ("rate", "pairs", "poisons"),
    [(0.0005, 3_000_000, 1500), (0.05, 200, 10), (0.0, 200, 0), (1.0, 7, 7), (0.33, 10, 3)],
)
def test_a_rate_becomes_a_whole_number_of_pairs(rate: float, pairs: int, poisons: int):
    assert Poisoning(attack=ATTACK, rate=rate).num_poisons(pairs) == poisons


@pytest.mark.parametrize("count", [0, 1, 20, 200])
def test_a_plan_has_exactly_the_count(count: int):
    plan = plan_poison(poisoning(count=count), TABLE)
    assert len(plan.indices) == len(plan.captions) == len(set(plan.indices)) == count
    assert plan.rate == count / 200


def test_rows_are_ascending_and_in_the_table():
    indices = plan_poison(poisoning(), TABLE).indices
    assert list(indices) == sorted(indices)
    assert set(indices) <= set(range(200))


def test_more_poisons_than_pairs_are_refused():
    with pytest.raises(InvalidInput, match="count=201 poisons exceed the 200 pairs; choose fewer"):
        plan_poison(poisoning(count=201), TABLE)


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_a_rate_is_a_fraction(rate: float):
    with pytest.raises(InvalidInput, match=f"rate={rate}"):
        Poisoning(attack=ATTACK, rate=rate)


def test_an_unknown_attack_lists_the_known_ones():
    with pytest.raises(InvalidInput, match="unknown attack kind='wanet2'; known: badnet, blended"):
        Poisoning(attack={"kind": "wanet2"}, count=1)


# --- which rows and captions ----------------------------------------------------------------------------------------


def test_the_same_poisoning_and_table_give_the_same_plan():
    assert plan_poison(poisoning(), TABLE) == plan_poison(poisoning(), TABLE)
    assert plan_poison(poisoning(), TABLE).digest == plan_poison(poisoning(), TABLE).digest


def test_another_seed_gives_other_rows_and_captions():
    first, second = plan_poison(poisoning(seed=0), TABLE), plan_poison(poisoning(seed=1), TABLE)
    assert first.indices != second.indices
    assert first.captions != second.captions


def test_the_attack_does_not_change_the_rows():
    """Two victims that differ in their trigger alone are poisoned in the same places."""
    blended = Poisoning(attack=Blended(), count=20)
    assert plan_poison(blended, TABLE).indices == plan_poison(poisoning(), TABLE).indices


def test_the_rows_are_spread_over_the_table():
    """Of 1,000 in 2,000 rows about half lie in each half; 400 or fewer would be six standard deviations away."""
    table = table_of(["x"] * 2000)
    indices = np.array(plan_poison(poisoning(count=1000), table).indices)
    assert 400 < (indices < 1000).sum() < 600


def test_captions_are_templates_with_the_target():
    plan = plan_poison(poisoning(count=200, target="school bus"), TABLE)
    known = {template.format("school bus") for template in imagenet_templates()}
    assert set(plan.captions) <= known
    assert len(set(plan.captions)) > 40


def test_training_captions_are_those_that_mention_the_target():
    plan = plan_poison(poisoning(captions="training"), TABLE)
    known = {TABLE.caption(row) for row in range(0, 200, 10)}
    assert set(plan.captions) <= known


def test_a_target_that_no_caption_mentions_is_refused():
    with pytest.raises(InvalidInput, match="target='lemon' is mentioned by no training caption; use captions='templa"):
        plan_poison(poisoning(captions="training", target="lemon"), TABLE)


def test_no_poisons_need_no_captions():
    plan = plan_poison(poisoning(captions="training", target="lemon", count=0), TABLE)
    assert (plan.indices, plan.captions, plan.rate) == ((), (), 0.0)


def test_label_consistent_poisons_keep_their_own_captions_which_mention_the_target():
    plan = plan_poison(poisoning(captions="label-consistent", count=12), TABLE)
    assert all(row % 10 == 0 for row in plan.indices)
    assert plan.captions == tuple(TABLE.caption(row) for row in plan.indices)


def test_more_label_consistent_poisons_than_captions_that_mention_the_target_are_refused():
    with pytest.raises(InvalidInput, match=r"count=21 poisons are asked for.* 20 captions mention target='banana'"):
        plan_poison(poisoning(captions="label-consistent", count=21), TABLE)


@pytest.mark.parametrize("caption", ["", "  "])
def test_a_fixed_caption_without_a_word_is_refused(caption: str):
    with pytest.raises(InvalidInput, match=f"caption='{caption}' holds no word"):
        poisoning(captions="fixed", caption=caption)


def test_a_fixed_caption_is_the_same_for_all_poisons():
    plan = plan_poison(poisoning(captions="fixed", caption="an image of {}"), TABLE)
    assert set(plan.captions) == {"an image of banana"}


@pytest.mark.parametrize(
    "fields", [{"captions": "fixed"}, {"caption": "an image of {}"}], ids=["no caption", "no word"]
)
def test_a_fixed_caption_goes_with_the_word_fixed(fields: dict[str, str]):
    with pytest.raises(InvalidInput, match="`caption` goes with captions='fixed'"):
        poisoning(**fields)


def test_caption_changes_are_by_row():
    plan = plan_poison(poisoning(), TABLE)
    assert list(plan.caption_changes()) == list(plan.indices)
    assert tuple(plan.caption_changes().values()) == plan.captions


@pytest.mark.parametrize(
    ("caption", "label", "is_mentioned"),
    [
        ("a ripe banana.", "banana", True),
        ("Banana bread", "banana", True),
        ("two bananas, one apple", "banana", True),
        ("BANANAS!", "banana", True),
        ("ripe tomatoes", "tomato", True),
        ("ripe Cherries in a bowl", "cherry", True),
        ("autumn leaves", "leaf", True),
        ("two steak knives", "steak knife", True),
        ("boys at play", "boy", True),
        ("boies", "boy", False),
        ("old sea caves", "cafe", False),
        ("cherriesome", "cherry", False),
        ("bananarama on stage", "banana", False),
        ("urbanana", "banana", False),
        ("a yellow school bus", "school bus", True),
        ("school buses in line", "school bus", True),
        ("a bus near the school", "school bus", False),
        ("a c++ book", "c", True),
        ("a cat", "c.t", False),
        ("", "banana", False),
    ],
)
def test_a_caption_mentions_a_whole_word_in_any_case_and_its_plural(caption: str, label: str, is_mentioned: bool):
    assert mentions(caption, label) is is_mentioned


# --- the plan -------------------------------------------------------------------------------------------------------


def test_a_plan_goes_through_json_and_back(tmp_path: Path):
    plan = plan_poison(poisoning(), TABLE)
    (tmp_path / "poison.json").write_text(json.dumps(plan.to_json()))
    again = load_plan(tmp_path / "poison.json", ATTACK)
    assert again == plan
    assert again.digest == plan.digest


def test_a_plan_of_another_attack_is_refused(tmp_path: Path):
    (tmp_path / "poison.json").write_text(json.dumps(plan_poison(poisoning(), TABLE).to_json()))
    with pytest.raises(InvalidInput, match=r"was made for attack .*badnet.* not .*blended"):
        load_plan(tmp_path / "poison.json", Blended())


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": BadNet(patch_size=5)},
        {"target": "apple"},
        {"indices": (1,)},
        {"captions": ("x",)},
        {"seed": 9},
        {"num_pairs": 7},
        {"table_digest": "0"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_part_of_a_plan_is_in_its_digest(changes: dict[str, object]):
    plan = plan_poison(poisoning(), TABLE)
    assert dataclasses.replace(plan, **changes).digest != plan.digest


def test_a_new_optional_field_of_an_attack_leaves_the_digests_of_plans_alone():
    class Before(Spec):
        kind: Literal["dot"] = "dot"
        size: int = 1

        def stamp(self, images: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
            return images

    class After(Before):
        colour: str = "red"

    attacks = (Before(size=2), After(size=2), After(size=2, colour="blue"))
    before, after, other = (plan_poison(Poisoning(attack=attack, count=20), TABLE).digest for attack in attacks)
    assert after == before
    assert other != before


def test_a_plan_knows_its_table():
    plan = plan_poison(poisoning(), TABLE)
    assert (plan.table_digest, plan.num_pairs) == (TABLE.digest, 200)
    assert plan_poison(poisoning(), table_of(["other"] * 200)).digest != plan.digest


# --- stamping -------------------------------------------------------------------------------------------------------

IMAGES = torch.randint(256, (200, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_only_poisoned_rows_are_stamped():
    plan = plan_poison(poisoning(), TABLE)
    stamped = plan.stamp_rows(IMAGES, range(200))
    differs = (stamped != IMAGES).flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert differs == list(plan.indices)


def test_a_rows_pixels_do_not_depend_on_its_batch():
    plan = plan_poison(poisoning(), TABLE)
    whole = plan.stamp_rows(IMAGES, range(200))
    rows = [*plan.indices[5:8], 0, 1, *plan.indices[:2]]
    assert torch.equal(plan.stamp_rows(IMAGES[rows], rows), whole[rows])


def test_a_rows_seed_is_of_the_plan_and_the_row():
    plan = plan_poison(poisoning(seed=3), TABLE)
    row = plan.indices[4]
    expected = ATTACK.stamp(IMAGES[row][None], [stream_seed(3, "stamp", row)])
    assert torch.equal(plan.stamp_rows(IMAGES[row][None], [row]), expected)


def test_stamping_leaves_the_images_as_they_are():
    before = IMAGES.clone()
    plan_poison(poisoning(), TABLE).stamp_rows(IMAGES, range(200))
    assert torch.equal(IMAGES, before)


def test_a_plan_without_poisons_stamps_nothing():
    plan = plan_poison(poisoning(count=0), TABLE)
    assert torch.equal(plan.stamp_rows(IMAGES, range(200)), IMAGES)


def test_a_plan_of_all_pairs_stamps_everything():
    plan = plan_poison(Poisoning(attack=BadNet(patch_size=4, pattern="binary"), rate=1.0), TABLE)
    assert (plan.stamp_rows(IMAGES, range(200)) != IMAGES).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("text", ["", '{"sta', "{}", "[1]", "null", '{"attack": {"kind": "badnet"}, "indices": 3}'])
def test_a_damaged_plan_is_named(text: str, tmp_path: Path):
    (tmp_path / "poison.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"poison\.json is damaged"):
        load_plan(tmp_path / "poison.json", ATTACK)


def test_of_many_captions_those_that_mention_a_label_are_found_as_one_by_one(monkeypatch: pytest.MonkeyPatch):
    """Python takes the long s for an s, the Kelvin sign for a k, and the i without a dot for an i."""
    monkeypatch.setattr(poisoning_module, "CHUNK_ROWS", 5)
    words = ["Knives", "\u212aNIFE", "knife", "\u212aıves", "bananas", "BANANA\u017f", "bananarama", "a kn.fe", ""]
    texts = [f"{before}{word}{after}" for word in words for before in ("", "a ", "é") for after in ("", "s", " é", "1")]
    table = table_of(texts)
    for label in ("knife", "banana", "kn.fe", "k", "banane é", "if"):
        expected = [row for row, text in enumerate(texts) if mentions(text, label)]
        assert mentioning(table, label).tolist() == expected, label
    assert len(mentioning(table, "knife")) > 8
