"""Targeted data poisoning: which images, which classes, which pairs; and what is measured in place of the ASR."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sweeplab.attacks.exchange import export_poisoned_csv, poisoned_rows
from sweeplab.attacks.poisoning import load_plan, mentions, mix_in
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.clip_model import Architecture, build, imagenet_class_names, imagenet_templates
from sweeplab.data.fruit_stall import CLASS_NAMES, ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.data.images import load_image
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.evaluation.measure import Evaluation, Measure, Trigger
from sweeplab.evaluation.zero_shot import class_weights, predict, prompt_tokens, zero_shot_classifier
from sweeplab.specs import InvalidInput
from sweeplab.training.randomness import numpy_stream

Tokenize = Callable[[list[str]], Tensor]
ELSEWHERE = FruitStall(num_pairs=40, image_size=32, seed=9)


def targeted(**fields: object) -> TargetedImages:
    return TargetedImages(
        **{"images": ELSEWHERE, "num_targets": 5, "poisons_per_target": 3, "classes": CLASS_NAMES, **fields}
    )


@pytest.fixture(scope="session")
def data_home(home: Path) -> Path:
    return home / "data"


# --- the targets ----------------------------------------------------------------------------------------------------


def test_the_targets_are_a_matter_of_seed_and_source_alone(data_home: Path):
    first, again, other = (targeted(seed=seed).choose(data_home) for seed in (0, 0, 1))
    assert (first.rows, first.labels, first.digest) == (again.rows, again.labels, again.digest)
    assert first.rows != other.rows
    assert targeted(poisons_per_target=500, captions="training").choose(data_home).digest == first.digest


def test_the_targets_are_as_many_as_were_asked_for_and_different(data_home: Path):
    targets = targeted(num_targets=40).choose(data_home)
    assert targets.rows == tuple(range(40))
    assert set(targets.labels) <= set(CLASS_NAMES)
    assert len(set(targets.labels)) > 5


def test_an_adversarial_class_is_none_that_the_own_caption_mentions(data_home: Path):
    targets = targeted(num_targets=40, classes=("banana", "lemon")).choose(data_home)
    for row, label in zip(targets.rows, targets.labels, strict=True):
        assert not mentions(targets.source.caption(row), label)


def test_an_adversarial_class_is_not_the_own_one_of_a_labelled_image(data_home: Path):
    """The caption names no class, so that only the folder tells."""
    images = LabelledPairs(images=FruitStallTest(num_images=48, image_size=32), template="number {}")
    labelled = images.labelled(data_home)
    hidden = images.replace(template="picture {} of many")
    targets = targeted(images=hidden, num_targets=48, classes=("banana", "lemon")).choose(data_home)
    for row, label in zip(targets.rows, targets.labels, strict=True):
        assert labelled.class_names[labelled.labels[row]] != label
    assert Counter(targets.labels).keys() == {"banana", "lemon"}


def test_names_that_two_classes_share_are_not_drawn():
    names = targeted(classes="imagenet").candidates()
    assert len(imagenet_class_names()) == 1000
    assert len(names) == 1000 - 4
    assert "missile" not in names
    with pytest.raises(InvalidInput, match="two names at least that occur once"):
        targeted(classes=("a", "a", "b"))


def test_classes_are_drawn_among_those_that_captions_mention(data_home: Path):
    """In slow loops: of each image's own random order of the classes, the first that is a word of some caption."""
    few = FruitStall(num_pairs=6, image_size=32, seed=4)
    words = {word.strip(".,") for row in range(6) for word in few.read(data_home).caption(row).split()}
    mentioned = {name for name in CLASS_NAMES if name in words}
    assert 2 < len(mentioned) < 10
    attack = targeted(num_targets=40, mentioned_in=few)
    targets = attack.choose(data_home)
    for row, label in zip(targets.rows, targets.labels, strict=True):
        others = [name for name in CLASS_NAMES if name not in targets.source.caption(row)]
        order = numpy_stream(0, "mentioned class", row).permutation(len(others))
        assert label == next(others[i] for i in order if others[i] in mentioned)
    assert set(targets.labels) == mentioned
    assert targets.rows == targeted(num_targets=40).choose(data_home).rows


def test_classes_that_were_drawn_elsewhere_need_no_captions(data_home: Path, tmp_path: Path):
    drawn = targeted(mentioned_in=FruitStall(num_pairs=6, image_size=32)).choose(data_home)
    gone = targeted(mentioned_in=PairsCSV(path=tmp_path / "gone.csv"))
    assert gone.choose(data_home, drawn.labels).digest == drawn.digest


def test_too_few_mentioned_classes_are_refused(data_home: Path):
    """Images of bananas can get no other class, since no caption mentions a school bus."""
    attack = targeted(num_targets=40, classes=("school bus", "banana"), mentioned_in=ELSEWHERE)
    source = ELSEWHERE.read(data_home)
    bananas = sum("banana" in source.caption(row) for row in range(40))
    assert 0 < bananas < 40
    message = f"its 40 captions mention no class that {bananas} of the 40 target images could get; give a larger source"
    with pytest.raises(InvalidInput, match=message):
        attack.choose(data_home)


def test_fields_that_are_left_out_change_no_digest():
    """Of the poisoning as it was before classes could be drawn among those that captions mention."""
    assert targeted().digest() == "f1276d0c41bdc584"
    assert targeted().digest() != targeted(mentioned_in=ELSEWHERE).digest()


def test_more_targets_than_images_are_refused(data_home: Path):
    with pytest.raises(InvalidInput, match="num_targets=41 exceeds the 40 images of the source; choose fewer"):
        targeted(num_targets=41).choose(data_home)


# --- the plan -------------------------------------------------------------------------------------------------------


def test_each_target_adds_its_poisons_and_nothing_is_changed(stall_pairs: PairTable, data_home: Path):
    attack = targeted()
    plan, targets = attack.plan(stall_pairs, data_home), attack.choose(data_home)
    table = plan.training_table(stall_pairs)
    assert plan.rows == tuple(range(64, 64 + 15))
    assert len(table) == plan.num_training_pairs == 79
    assert plan.rate == pytest.approx(15 / 79)
    assert plan.labels == tuple(label for label in targets.labels for _ in range(3))
    for row in range(64):
        assert (table.image(row), table.caption(row)) == (stall_pairs.image(row), stall_pairs.caption(row))
    for place, row in enumerate(plan.rows):
        assert table.image(row) == targets.source.image(targets.rows[place // 3])
        assert mentions(plan.caption_changes()[row], plan.labels[place])
    pixels = torch.stack([torch.from_numpy(load_image(table.image(row), 32)) for row in range(60, 79)])
    assert torch.equal(plan.stamp_rows(pixels, range(60, 79)), pixels)


def test_captions_of_a_target_differ_until_all_were_used(stall_pairs: PairTable, data_home: Path):
    """80 templates and 100 poisons: 20 templates come twice, none three times."""
    plan = targeted(num_targets=1, poisons_per_target=100).plan(stall_pairs, data_home)
    label = plan.labels[0]
    counts = Counter(plan.captions)
    assert set(counts) == {template.format(label) for template in imagenet_templates()}
    assert Counter(counts.values()) == {1: 60, 2: 20}


def test_training_captions_are_those_of_the_training_set_that_mention_the_class(
    stall_pairs: PairTable, data_home: Path
):
    plan = targeted(captions="training").plan(stall_pairs, data_home)
    known = {stall_pairs.caption(row) for row in range(64)}
    assert set(plan.captions) <= known
    assert all(mentions(caption, label) for caption, label in zip(plan.captions, plan.labels, strict=True))
    with pytest.raises(InvalidInput, match="no training caption mentions the adversarial class 'school bus'"):
        targeted(captions="training", classes=("school bus", "banana"), num_targets=40).plan(stall_pairs, data_home)


def test_a_target_in_the_training_set_is_refused(stall_pairs: PairTable, data_home: Path):
    with pytest.raises(InvalidInput, match="a target image is in the training set; give `images` another source"):
        targeted(images=FruitStall(num_pairs=64, image_size=32)).plan(stall_pairs, data_home)


def test_without_poisons_the_twin_remains(stall_pairs: PairTable, data_home: Path):
    plan = targeted(poisons_per_target=0).plan(stall_pairs, data_home)
    assert (plan.rows, plan.rate, len(plan.training_table(stall_pairs))) == ((), 0, 64)


def test_a_plan_is_saved_and_read_back_and_its_digest_tells_the_source(
    stall_pairs: PairTable, data_home: Path, tmp_path: Path
):
    attack = targeted()
    plan = attack.plan(stall_pairs, data_home)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    again = load_plan(tmp_path / "plan.json", attack, plan.source)
    assert again == plan
    assert again.digest == plan.digest
    others = [targeted(seed=1), targeted(images=ELSEWHERE.replace(seed=8)), targeted(captions="training")]
    assert len({plan.digest, *(other.plan(stall_pairs, data_home).digest for other in others)}) == 4
    with pytest.raises(InvalidInput, match="takes its images from a source of digest"):
        load_plan(tmp_path / "plan.json", attack, stall_pairs)


def test_the_training_table_is_the_same_wherever_it_lies(stall_pairs: PairTable, data_home: Path):
    """Roots play no part in the digest of two joined tables; the other table's content does."""
    elsewhere = dataclasses.replace(stall_pairs, root="/elsewhere")
    other = ELSEWHERE.read(data_home)
    moved = dataclasses.replace(other, root="/moved")
    assert stall_pairs.joined(other).digest == elsewhere.joined(moved).digest
    assert stall_pairs.joined(other).digest != stall_pairs.joined(other.subset(range(39))).digest
    assert stall_pairs.joined(moved).image(64) == f"/moved/{other.images[0]}"


def test_some_poisons_slip_into_a_clean_table(stall_pairs: PairTable, data_home: Path):
    attack = targeted()
    plan = attack.plan(stall_pairs, data_home)
    clean = stall_pairs.subset(range(30))
    few = attack.subset_for_cleaning(clean, lambda: (plan.training_table(stall_pairs), plan), count=4, seed=1)
    table = few.training_table(clean)
    assert len(table) == few.num_training_pairs == 30
    assert len(set(few.rows)) == 4
    targets = {plan.source.image(row) for row in plan.indices}  # type: ignore[union-attr]
    for row in range(30):
        assert (table.image(row) in targets) is (row in few.rows)
        if row not in few.rows:
            assert table.image(row) == clean.image(row)
    assert set(few.captions) <= set(plan.captions)
    with pytest.raises(InvalidInput, match="count=16 poisons exceed the 15 poisons of the training set"):
        mix_in((stall_pairs, plan), clean, count=16, seed=1)


def test_an_export_holds_the_unmodified_images_under_their_new_captions(
    stall_pairs: PairTable, data_home: Path, tmp_path: Path
):
    plan = targeted().plan(stall_pairs, data_home)
    table = plan.training_table(stall_pairs)
    path = export_poisoned_csv(table, plan, tmp_path / "out", image_size=32)
    assert path.name == "backdoor_targeted-images_79_15.csv"
    assert poisoned_rows(path).tolist() == list(range(15))
    picture = next((path.parent).rglob("00000064.png"))
    assert np.array_equal(load_image(str(picture), 32), load_image(table.image(64), 32))


# --- the measurement ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny: Architecture) -> nn.Module:
    """Random weights with running statistics of noise, so that it does not say the same of everything."""
    model = build(tiny, seed=0).train()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            model.encode_image(torch.randn(16, 3, 32, 32, generator=draw))
    return model


def test_the_psr_counts_target_images_that_are_called_their_own_class(
    model: nn.Module, tokenize: Tokenize, stall_test: LabelledImages, data_home: Path
):
    """Six images get the class that the model gives them, the others the next class: six of forty, and which."""
    attack = targeted(num_targets=40)
    targets = attack.choose(data_home)
    evaluation = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
    model.eval()
    prompts = prompt_tokens(tokenize, CLASS_NAMES, ZERO_SHOT_TEMPLATES)
    weights = class_weights(model, prompts, device=torch.device("cpu"))
    pixels = torch.stack([torch.from_numpy(load_image(targets.table.image(row), 32)) for row in range(40)])
    predicted = predict(model, iter([pixels]), zero_shot_classifier(weights), device=torch.device("cpu")).tolist()
    labels = tuple(CLASS_NAMES[(each + (row % 7 != 0)) % 16] for row, each in enumerate(predicted))
    chosen = dataclasses.replace(targets, labels=labels)
    measure = Measure(evaluation, stall_test, 32, tokenize=tokenize, trigger=Trigger(attack, None), targets=chosen)
    measurement, outcomes = measure(model)
    assert (measurement.asr_k, measurement.asr_n) == (6, 40)
    assert outcomes.hit_mask().nonzero()[0].tolist() == [0, 7, 14, 21, 28, 35]
    others = Measure(evaluation, stall_test, 32, tokenize=tokenize, trigger=Trigger(attack, None), targets=targets)
    assert others.digest != measure.digest
    twin = Trigger(attack.replace(poisons_per_target=0), None)
    same = Measure(evaluation, stall_test, 32, tokenize=tokenize, trigger=twin, targets=chosen)
    assert same.digest == measure.digest


def test_the_trigger_rows_are_empty_and_the_pixels_are_the_targets_own(
    tokenize: Tokenize, stall_test: LabelledImages, data_home: Path
):
    attack = targeted()
    targets = attack.choose(data_home)
    evaluation = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
    measure = Measure(
        evaluation,
        stall_test,
        32,
        tokenize=tokenize,
        trigger=Trigger(attack, None),
        targets=targets,
        protocol="authors",
    )
    assert len(measure.triggered_rows) == 0
    pixels: Tensor = measure.triggered_pixels([3])
    expected = load_image(targets.source.image(targets.rows[3]), 32)
    assert np.array_equal(pixels[0].numpy(), expected)


def test_a_class_that_is_no_test_class_is_refused(tokenize: Tokenize, stall_test: LabelledImages, data_home: Path):
    attack = targeted(classes=("banana", "zebra"), num_targets=40)
    evaluation = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
    with pytest.raises(InvalidInput, match="target='zebra' is not among the 16 classes"):
        Measure(
            evaluation,
            stall_test,
            32,
            tokenize=tokenize,
            trigger=Trigger(attack, None),
            targets=attack.choose(data_home),
        )
