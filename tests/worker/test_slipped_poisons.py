"""Poisons that slipped into a cleaning set, whatever its source and whatever kind of victim it is to clean."""

from pathlib import Path

import pytest

from sweeplab.attacks.exchange import ImportedPoison, export_poisoned_csv
from sweeplab.attacks.poisoning import Poisoning, PoisonPlan, plan_poison
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.clip_model import imagenet_templates
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStall, FruitStallTest
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.tables import PairTable
from sweeplab.experiment import CheckpointVictim, CleaningSweep, CleanSample, PretrainedVictim, SlippedPoisons
from sweeplab.experiment import smoke_sweep as in_miniature
from sweeplab.specs import InvalidInput
from sweeplab.worker.input_paths import parts_of
from sweeplab.worker.inputs import Inputs, cleaning_pairs, cleaning_poison, cleaning_table
from sweeplab.worker.jobs import Machine

OTHER_PAIRS = FruitStall(num_pairs=64, image_size=32, seed=5)
TARGETED = TargetedImages(
    images=FruitStall(num_pairs=64, image_size=32, seed=9), num_targets=5, poisons_per_target=4, classes=CLASS_NAMES
)


def slipped_into(sweep: CleaningSweep, count: int, seed: int = 0) -> CleaningSweep:
    return sweep.replace(data=OTHER_PAIRS, slipped=SlippedPoisons(count=count, seed=seed))


def plan_of(sweep: CleaningSweep, home: Path) -> tuple[PairTable, PoisonPlan]:
    inputs = Inputs(home / "data")
    table = cleaning_table(sweep, inputs)
    plan = cleaning_poison(sweep, table, inputs)
    assert plan is not None
    return table, plan


@pytest.fixture(params=["pretrained", "checkpoint"])
def any_sweep(request: pytest.FixtureRequest) -> CleaningSweep:
    """Of a victim that is trained here, or given, with its trigger named."""
    return request.getfixturevalue({"pretrained": "smoke", "checkpoint": "sweep"}[request.param])


def test_so_many_pairs_of_another_source_carry_the_victims_trigger_and_target(any_sweep: CleaningSweep, home: Path):
    table, plan = plan_of(slipped_into(any_sweep, 5), home)
    trigger = any_sweep.victim.trigger()
    assert (plan.attack, plan.target, len(plan.rows)) == (trigger.attack, trigger.target, 5)
    assert set(plan.captions) <= {template.format(trigger.target) for template in imagenet_templates()}
    assert plan.table_digest == table.digest == OTHER_PAIRS.read(home / "data").digest
    assert plan.training_table(table).digest == table.digest, "poisoned pairs stand where the others stood"


def test_training_sees_the_poisoned_pairs_and_all_others_as_they_are(any_sweep: CleaningSweep, home: Path):
    machine = Machine(home / "data", threads=1, use_cuda=False)
    plain = cleaning_pairs(slipped_into(any_sweep, 0), machine)
    poisoned = cleaning_pairs(slipped_into(any_sweep, 5), machine)
    rows = plan_of(slipped_into(any_sweep, 5), home)[1].rows
    differs = (plain.images_of(range(64)) != poisoned.images_of(range(64))).flatten(1).any(1)
    assert differs.nonzero().flatten().tolist() == list(rows)
    assert [row for row in range(64) if plain.caption(row) != poisoned.caption(row)] == list(rows)


def test_a_larger_number_poisons_the_same_pairs_and_more(any_sweep: CleaningSweep, home: Path):
    few, some, many = (set(plan_of(slipped_into(any_sweep, count), home)[1].rows) for count in (5, 10, 25))
    assert few < some < many


def test_trials_of_any_seed_share_the_poisons_and_another_draw_is_asked_for(any_sweep: CleaningSweep, home: Path):
    _, plan = plan_of(slipped_into(any_sweep, 5), home)
    assert plan_of(slipped_into(any_sweep.replace(seed=3), 5), home)[1].digest == plan.digest
    assert plan_of(slipped_into(any_sweep, 5, seed=1), home)[1].rows != plan.rows


def test_the_draw_is_none_of_the_victims_own(smoke: CleaningSweep, home: Path):
    """Were the streams the same, a set that is the victim's would have the same rows poisoned."""
    assert isinstance(smoke.victim, PretrainedVictim)
    table, plan = plan_of(slipped_into(smoke, 5), home)
    assert isinstance(smoke.victim.poisoning, Poisoning)
    own = plan_poison(smoke.victim.poisoning.replace(count=5, rate=None), table)
    assert plan.rows != own.rows


def test_a_clean_sample_says_it_by_its_own_field_and_gets_the_same_poisons(smoke: CleaningSweep, home: Path):
    sample = CleanSample(num_pairs=64)
    own = plan_of(smoke.replace(data=sample.replace(num_poisons=6)), home)[1]
    assert plan_of(smoke.replace(data=sample, slipped=SlippedPoisons(count=6)), home)[1].digest == own.digest
    with pytest.raises(InvalidInput, match=r"data.num_poisons=6 and slipped.count=5 say the same; give one"):
        smoke.replace(data=sample.replace(num_poisons=6), slipped=SlippedPoisons(count=5))


def test_more_poisons_than_pairs_are_refused(any_sweep: CleaningSweep, home: Path):
    with pytest.raises(InvalidInput, match="count=65 poisons exceed the 64 pairs"):
        plan_of(slipped_into(any_sweep, 65), home)


def test_labelled_pictures_are_not_poisoned(sweep: CleaningSweep):
    data = LabelledPairs(images=FruitStallTest(num_images=48, image_size=32))
    with pytest.raises(InvalidInput, match=r"slipped.count=5: labelled images keep their labels"):
        sweep.replace(data=data, slipped=SlippedPoisons(count=5))


def test_label_consistent_poisons_keep_captions_that_name_the_target(smoke: CleaningSweep, home: Path):
    assert isinstance(smoke.victim, PretrainedVictim)
    victim = smoke.victim.replace(poisoning=smoke.victim.poisoning.replace(captions="label-consistent"))
    table, plan = plan_of(slipped_into(smoke.replace(victim=victim), 2), home)
    assert [table.caption(row) for row in plan.rows] == list(plan.captions)
    assert all("banana" in caption for caption in plan.captions)


@pytest.mark.parametrize("kind", ["pretrained", "checkpoint"])
def test_targeted_images_slip_in_as_they_were_planted(
    kind: str, smoke: CleaningSweep, sweep: CleaningSweep, home: Path
):
    if kind == "pretrained":
        assert isinstance(smoke.victim, PretrainedVictim)
        sweep = smoke.replace(victim=smoke.victim.replace(poisoning=TARGETED))
    else:
        assert isinstance(sweep.victim, CheckpointVictim)
        sweep = sweep.replace(victim=sweep.victim.replace(attack=TARGETED, target=None))
    table, plan = plan_of(slipped_into(sweep, 3), home)
    targets = TARGETED.choose(home / "data")
    wanted = {targets.source.image(row): label for row, label in zip(targets.rows, targets.labels, strict=True)}
    trained = plan.training_table(table)
    assert len(trained) == len(table) == 64
    assert {row: wanted[trained.image(row)] for row in plan.rows} == dict(zip(plan.rows, plan.labels, strict=True))
    assert [row for row in range(64) if trained.image(row) != table.image(row)] == sorted(plan.rows)


def test_poisons_of_an_imported_set_slip_into_other_pairs(smoke: CleaningSweep, home: Path, tmp_path: Path):
    assert isinstance(smoke.victim, PretrainedVictim)
    attack = smoke.victim.poisoning.attack  # type: ignore[union-attr]
    pairs = FruitStall(num_pairs=64, image_size=32).read(home / "data")
    path = export_poisoned_csv(
        pairs, plan_poison(Poisoning(attack=attack, count=4), pairs), tmp_path / "o", image_size=32
    )
    victim = smoke.victim.replace(data=PairsCSV(path=path), poisoning=ImportedPoison(path=path, attack=attack))
    table, plan = plan_of(slipped_into(smoke.replace(victim=victim), 3), home)
    trained = plan.training_table(table)
    assert [row for row in range(64) if "backdoor" in trained.image(row)] == list(plan.rows)
    assert len(plan.rows) == 3


def test_a_node_needs_the_victims_pairs_only_where_poisons_come_from_them(smoke: CleaningSweep):
    assert isinstance(smoke.victim, PretrainedVictim)
    drawn = slipped_into(smoke, 5)
    taken = drawn.replace(victim=smoke.victim.replace(poisoning=TARGETED))
    assert smoke.victim.data not in parts_of(drawn, trains_victim=False)
    assert smoke.victim.data in parts_of(taken, trains_victim=False)
    assert smoke.victim.data not in parts_of(taken.replace(slipped=SlippedPoisons()), trains_victim=False)


def test_a_sweep_without_them_keeps_its_digest_and_one_with_them_has_another(any_sweep: CleaningSweep):
    assert "slipped" not in any_sweep.canonical()
    assert "slipped" not in any_sweep.replace(slipped=SlippedPoisons(seed=0)).canonical()
    assert len({slipped_into(any_sweep, count).digest() for count in (0, 5, 10)}) == 3


def test_a_miniature_has_some_too(any_sweep: CleaningSweep):
    assert in_miniature(slipped_into(any_sweep, 5)).slipped.count == 5
    assert in_miniature(slipped_into(any_sweep, 500)).slipped.count == 16
