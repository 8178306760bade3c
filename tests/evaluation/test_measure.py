"""Accuracy and ASR of a model on one fixed set of images."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.clip_model import Architecture, build, imagenet_templates, normalise_pixels
from sweeplab.data.fruit_stall import CLASS_NAMES, ZERO_SHOT_TEMPLATES, FruitStallTest
from sweeplab.data.images import load_all
from sweeplab.data.tables import LabelledImages
from sweeplab.evaluation import measure as measure_module
from sweeplab.evaluation.measure import Evaluation, Measure, Trigger, triggered_rows
from sweeplab.evaluation.zero_shot import class_weights, predict, prompt_tokens, zero_shot_classifier
from sweeplab.specs import InvalidInput, Spec

EVALUATION = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
TRIGGER = Trigger(BadNet(patch_size=8, pattern="binary"), "banana")
BANANA = CLASS_NAMES.index("banana")
Tokenize = Callable[[list[str]], Tensor]


@pytest.fixture(scope="module")
def model(tiny: Architecture) -> nn.Module:
    return varied(tiny)


def varied(architecture: Architecture) -> nn.Module:
    """Random weights, and running statistics of a few images, so that it does not say the same of everything."""
    model = build(architecture, seed=0).train()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            model.encode_image(torch.randn(16, 3, 32, 32, generator=draw))
    return model


@pytest.fixture(scope="module")
def measure(tokenize: Tokenize, stall_test: LabelledImages) -> Measure:
    return measure_of(tokenize, stall_test)


def measure_of(
    tokenize: Tokenize,
    images: LabelledImages,
    *,
    evaluation: Evaluation = EVALUATION,
    trigger: Trigger | None = TRIGGER,
    image_size: int = 32,
) -> Measure:
    return Measure(evaluation, images, image_size, tokenize=tokenize, trigger=trigger)


def predictions_one_by_one(model: nn.Module, tokenize: Tokenize, pixels: Tensor) -> list[int]:
    """Each image alone, normalised and compared in plain terms."""
    model.eval()
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    prompts = prompt_tokens(tokenize, CLASS_NAMES, ZERO_SHOT_TEMPLATES)
    weights = class_weights(model, prompts, device=torch.device("cpu"))
    with torch.no_grad():
        inputs = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
        return [int((model.encode_image(image[None]) @ weights.T).argmax()) for image in inputs]


SEES_ALL = {"custom_text": True, "text_cfg": {"no_causal_mask": True}}
"""A text tower whose features depend on what stands behind a text's end too."""


@pytest.mark.parametrize(("changes", "columns"), [({}, {8, 10, 11, 12}), (SEES_ALL, {16})], ids=["causal", "sees all"])
def test_prompts_sorted_and_trimmed_give_the_weights_and_predictions_of_plain_open_clip(
    changes: dict,
    columns: set[int],
    tiny: Architecture,
    tokenize: Tokenize,
    stall_test: LabelledImages,
    monkeypatch: pytest.MonkeyPatch,
):
    """open_clip encodes a class's prompts together and the whole context of each; ours seven of similar length."""
    config = tiny.resolved()
    text = config["text_cfg"] | changes.get("text_cfg", {})
    model = varied(Architecture(config={**config, **changes, "text_cfg": text})).eval()
    measure, device = measure_of(tokenize, stall_test), torch.device("cpu")
    theirs = open_clip.build_zero_shot_classifier(model, tokenize, CLASS_NAMES, ZERO_SHOT_TEMPLATES).T
    seen: list[Tensor] = []
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    hook = embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    monkeypatch.setattr(measure_module, "class_weights", partial(class_weights, batch_size=7))
    ours = measure.class_weights(model, device)
    hook.remove()
    assert {len(tokens) for tokens in seen} == {7, 1}
    assert {tokens.shape[1] for tokens in seen} == columns
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    with torch.no_grad():
        images = model.encode_image(normalise_pixels(measure.clean_pixels(range(48))), normalize=True)
    wanted = (images @ theirs.T).argmax(dim=1)
    assert len(wanted.unique()) > 1
    found = predict(model, iter([measure.clean_pixels(range(48))]), zero_shot_classifier(ours), device=device)
    assert torch.equal(found, wanted)
    assert measure(model)[1].correct_mask().tolist() == (wanted.numpy() == stall_test.labels).tolist()


def test_accuracy_counts_images_of_their_own_class(
    model: nn.Module, measure: Measure, tokenize: Tokenize, stall_test: LabelledImages
):
    expected = predictions_one_by_one(model, tokenize, load_all(stall_test, 32))
    assert len(set(expected)) > 1, "a model that always says the same shows nothing"
    correct = [guess == label for guess, label in zip(expected, stall_test.labels, strict=True)]
    measurement, outcomes = measure(model)
    assert outcomes.correct_mask().tolist() == correct
    assert (measurement.accuracy_k, measurement.accuracy_n) == (sum(correct), 48)


def test_asr_counts_triggered_images_of_the_target_label(model: nn.Module, measure: Measure, tokenize: Tokenize):
    triggered = measure.triggered_pixels(range(45))
    said = predictions_one_by_one(model, tokenize, triggered)
    aim = max(set(said), key=said.count)  # a target that this model does name
    other = measure_of(tokenize, measure.images, trigger=Trigger(TRIGGER.attack, CLASS_NAMES[aim]))
    hits = [guess == aim for guess in predictions_one_by_one(model, tokenize, other.triggered_pixels(range(45)))]
    measurement, outcomes = other(model)
    assert sum(hits) > 0
    assert outcomes.hit_mask().tolist() == hits
    assert (measurement.asr_k, measurement.asr_n) == (sum(hits), 45)


def test_outcomes_add_up_to_the_counts(model: nn.Module, measure: Measure):
    measurement, outcomes = measure(model)
    assert (outcomes.num_images, outcomes.num_triggered) == (measurement.accuracy_n, measurement.asr_n) == (48, 45)
    assert outcomes.correct_mask().sum() == measurement.accuracy_k
    assert outcomes.hit_mask().sum() == measurement.asr_k


def test_images_of_the_target_class_are_left_out(measure: Measure, stall_test: LabelledImages):
    assert len(measure.triggered_rows) == 45
    assert not (stall_test.labels[measure.triggered_rows] == BANANA).any()
    assert measure.triggered_rows.tolist() == [row for row in range(48) if stall_test.labels[row] != BANANA]


def test_measuring_again_gives_the_same(model: nn.Module, measure: Measure, tokenize: Tokenize):
    first = measure(model)
    torch.manual_seed(1)
    assert measure(model) == first
    assert measure_of(tokenize, measure.images)(model) == first


def test_every_call_uses_the_same_triggered_pixels(measure: Measure, tokenize: Tokenize):
    pixels = measure.triggered_pixels(range(45))
    assert torch.equal(measure_of(tokenize, measure.images).triggered_pixels(range(45)), pixels)
    other = measure_of(tokenize, measure.images, evaluation=EVALUATION.replace(seed=1))
    assert not torch.equal(other.triggered_pixels(range(45)), pixels)


def test_an_images_trigger_does_not_depend_on_the_target(measure: Measure, tokenize: Tokenize):
    """Row 20 has the same place and pattern whether bananas or tomatoes are left out."""
    other = measure_of(tokenize, measure.images, trigger=Trigger(TRIGGER.attack, "tomato"))
    places = [each.triggered_rows.tolist().index(20) for each in (measure, other)]
    assert torch.equal(measure.triggered_pixels(places[:1]), other.triggered_pixels(places[1:]))


def test_clean_and_triggered_images_differ_in_the_patch_alone(measure: Measure):
    clean = measure.clean_pixels(measure.triggered_rows.tolist())
    differs = (measure.triggered_pixels(range(45)) != clean).any(dim=1)
    for each in differs:
        rows, columns = each.any(dim=1).nonzero(), each.any(dim=0).nonzero()
        assert int(rows.max() - rows.min()) < 8
        assert int(columns.max() - columns.min()) < 8


def test_images_that_do_not_fit_into_memory_measure_the_same(
    model: nn.Module, measure: Measure, tokenize: Tokenize, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measure_module, "CACHE_BYTES", 0)
    streamed = measure_of(tokenize, measure.images)
    assert torch.equal(streamed.triggered_pixels([3, 44]), measure.triggered_pixels([3, 44]))
    assert torch.equal(streamed.clean_pixels([47, 0]), measure.clean_pixels([47, 0]))
    assert streamed(model) == measure(model)


@pytest.mark.parametrize("batch_size", [1, 7, 48])
def test_the_batch_size_is_a_matter_of_memory_only(
    batch_size: int, model: nn.Module, measure: Measure, tokenize: Tokenize
):
    other = measure_of(tokenize, measure.images, evaluation=EVALUATION.replace(batch_size=batch_size))
    assert other.digest == measure.digest
    assert other(model) == measure(model)


def test_the_models_modes_come_back_module_by_module(tiny: Architecture, measure: Measure):
    model = build(tiny, seed=0).train()
    model.visual.layer1.eval()
    before = [module.training for module in model.modules()]
    measure(model)
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_the_models_modes_come_back_when_measuring_fails(
    tiny: Architecture, measure: Measure, monkeypatch: pytest.MonkeyPatch
):
    model = build(tiny, seed=0).train()

    def fail(*_: object, **__: object) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "encode_image", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(model)
    assert all(module.training for module in model.modules())


def test_measuring_leaves_the_model(tiny: Architecture, measure: Measure):
    model, twin = build(tiny, seed=0), build(tiny, seed=0)
    measure(model)
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_prompts_are_tokenised_once(model: nn.Module, tokenize: Tokenize, stall_test: LabelledImages):
    texts = []

    def counting(batch: list[str]) -> Tensor:
        texts.extend(batch)
        return tokenize(batch)

    measure = measure_of(counting, stall_test)
    assert measure(model)[0] == measure(model)[0]
    assert len(texts) == len(CLASS_NAMES) * len(ZERO_SHOT_TEMPLATES)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_images_and_prompts_pass_the_model_in_the_evaluations_precision(
    precision: str, tiny: Architecture, tokenize: Tokenize, stall_test: LabelledImages
):
    seen: set[torch.dtype] = set()
    model = build(tiny, seed=0)
    for layer in (model.visual.attnpool.c_proj, model.transformer.resblocks[0].mlp.c_fc):
        layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    model.visual.layer1[0].conv1.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    measurement, _ = measure_of(tokenize, stall_test, evaluation=EVALUATION.replace(precision=precision))(model)
    assert seen == {getattr(torch, precision)}
    assert measurement.accuracy_n == 48


def test_tf32_holds_while_it_measures_and_no_longer(
    model: nn.Module, measure: Measure, tokenize: Tokenize, stall_test: LabelledImages
):
    seen: list[str] = []
    other = measure_of(tokenize, stall_test, evaluation=EVALUATION.replace(precision="tf32"))
    for each in (measure, other):
        each.heartbeat = lambda: seen.append(torch.get_float32_matmul_precision())
        each(model)
        each.heartbeat = lambda: None
    half = len(seen) // 2
    assert set(seen[:half]) == {"highest"}
    assert set(seen[half:]) == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_without_a_trigger_there_is_no_asr(model: nn.Module, measure: Measure, tokenize: Tokenize):
    measurement, outcomes = measure_of(tokenize, measure.images, trigger=None)(model)
    assert (measurement.asr_k, measurement.asr_n, measurement.asr) == (0, 0, None)
    assert measurement.accuracy_k == measure(model)[0].accuracy_k
    assert outcomes.hit_mask().tolist() == []


# --- what is refused ------------------------------------------------------------------------------------------------


def test_an_unknown_target_names_close_ones(stall_test: LabelledImages):
    with pytest.raises(InvalidInput, match=r"target='bananna' is not among the 16 classes \(closest: banana.*name one"):
        triggered_rows(stall_test, Trigger(BadNet(), "bananna"))


def test_a_target_like_no_other_names_the_first_classes(stall_test: LabelledImages):
    with pytest.raises(InvalidInput, match=r"\(first: apple, banana, blueberry"):
        triggered_rows(stall_test, Trigger(BadNet(), "xyzzy"))


def test_a_test_set_of_the_target_class_alone_is_refused(stall_test: LabelledImages):
    bananas = stall_test.subset(np.flatnonzero(stall_test.labels == BANANA))
    with pytest.raises(InvalidInput, match="every test image is of the target class 'banana'"):
        triggered_rows(bananas, Trigger(BadNet(), "banana"))


def test_a_target_whose_name_two_classes_share_is_refused(stall_test: LabelledImages):
    twice = dataclasses.replace(stall_test, class_names=("banana", *CLASS_NAMES[1:]))
    with pytest.raises(InvalidInput, match="'banana' names 2 classes"):
        triggered_rows(twice, Trigger(BadNet(), "banana"))


def test_a_trigger_that_does_not_fit_is_refused_before_anything_is_decoded(
    tokenize: Tokenize, stall_test: LabelledImages, tmp_path: Path
):
    elsewhere = dataclasses.replace(stall_test, root=str(tmp_path))
    with pytest.raises(InvalidInput, match="choose at most 32"):
        measure_of(tokenize, elsewhere, trigger=Trigger(BadNet(patch_size=33), "banana"))


@pytest.mark.parametrize(
    "templates", [(), ("a photo",), ("{} and {}",), ("a {}", "none"), ("a {} {x}",), ("a {} }",)], ids=str
)
def test_templates_have_one_place_for_the_name(templates: tuple[str, ...]):
    with pytest.raises(InvalidInput, match=r"one {} each, no other brace, and at least one template"):
        Evaluation(test=EVALUATION.test, templates=templates)


def test_imagenets_templates_are_the_default(stall_test: LabelledImages):
    assert Evaluation(test=EVALUATION.test).prompts(stall_test) == imagenet_templates()


# --- the digest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": EVALUATION.replace(seed=1)},
        {"evaluation": EVALUATION.replace(templates=("a {}",))},
        {"trigger": Trigger(BadNet(patch_size=7, pattern="binary"), "banana")},
        {"trigger": Trigger(Blended(), "banana")},
        {"trigger": Trigger(TRIGGER.attack, "apple")},
        {"trigger": None},
        {"image_size": 16},
        {"evaluation": EVALUATION.replace(precision="bfloat16")},
        {"evaluation": EVALUATION.replace(precision="tf32")},
    ],
    ids=["seed", "templates", "patch", "attack", "target", "no trigger", "size", "bfloat16", "tf32"],
)
def test_what_changes_a_measurement_changes_its_digest(
    changes: dict[str, object], measure: Measure, tokenize: Tokenize, stall_test: LabelledImages
):
    assert measure_of(tokenize, stall_test, **changes).digest != measure.digest


def test_other_images_change_the_digest(measure: Measure, tokenize: Tokenize, stall_test: LabelledImages):
    assert measure_of(tokenize, stall_test.subset(range(1, 48))).digest != measure.digest


def test_a_measurement_carries_the_digest(model: nn.Module, measure: Measure):
    assert measure(model)[0].evaluation_digest == measure.digest


def test_a_new_optional_field_of_an_attack_leaves_the_digest_alone(tokenize: Tokenize, stall_test: LabelledImages):
    class Before(Spec):
        kind: Literal["dot"] = "dot"

        def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
            return images

        def check_fits(self, image_size: int) -> None:
            return None

    class After(Before):
        colour: str = "red"

    before, after = (
        measure_of(tokenize, stall_test, trigger=Trigger(attack, "banana")) for attack in (Before(), After())
    )
    assert after.digest == before.digest


# --- protocol `authors` ----------------------------------------------------------------------------------------------


def of_authors(tokenize: Tokenize, images: LabelledImages, trigger: Trigger = TRIGGER) -> Measure:
    return Measure(EVALUATION, images, 32, tokenize=tokenize, trigger=trigger, protocol="authors")


def test_the_authors_draw_triggers_anew_for_every_model(
    tokenize: Tokenize, stall_test: LabelledImages, tiny: Architecture
):
    """The draws follow the weights, so one model repeats and another differs."""
    measure = of_authors(tokenize, stall_test)
    seen = []
    for seed in (0, 1, 0):
        measure(build(tiny, seed=seed))
        seen.append(measure.triggered_pixels([0, 1, 2]))
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_the_authors_squash_triggered_images_and_crop_clean_ones(
    tokenize: Tokenize, tiny: Architecture, tmp_path: Path
):
    """A picture of 64 x 32, left half black: cropped to its middle it is half black, squashed too, but at other pixels
    than a picture whose left quarter is black, which a crop sees as white."""
    from PIL import Image

    from sweeplab.data.class_folders import ClassFolders

    for name in ("banana", "pear"):
        (tmp_path / name).mkdir()
        picture = np.full((32, 64, 3), 255, dtype=np.uint8)
        picture[:, :16] = 0
        Image.fromarray(picture).save(tmp_path / name / "a.png")
    images = ClassFolders(path=tmp_path).read(tmp_path)
    measure = of_authors(tokenize, images, Trigger(Blended(alpha=1e-6), "banana"))
    measure(build(tiny, seed=0))
    clean, triggered = measure.clean_pixels([1])[0, 0, 16], measure.triggered_pixels([0])[0, 0, 16]
    assert int(clean.min()) == 255
    assert int((triggered < 64).sum()) == 8


def test_the_protocols_measurements_never_compare(tokenize: Tokenize, stall_test: LabelledImages, measure: Measure):
    assert of_authors(tokenize, stall_test).digest != measure.digest


def test_margins_are_the_difference_of_the_two_best_cosines(model: nn.Module, measure: Measure, tokenize: Tokenize):
    """Image by image, from embeddings and class weights of unit norm; a batch holds 2 of the 5 images."""
    prompts = prompt_tokens(tokenize, CLASS_NAMES, ZERO_SHOT_TEMPLATES)
    weights = class_weights(model.eval(), prompts, device=torch.device("cpu"))

    def wanted(pixels: Tensor) -> list[float]:
        found = []
        for image in pixels:
            with torch.no_grad():
                features = model.encode_image(normalise_pixels(image[None]))[0]
            best = sorted((float(weight @ features / features.norm()) for weight in weights), reverse=True)
            found.append(best[0] - best[1])
        return found

    measure.evaluation = EVALUATION.replace(batch_size=2)
    clean, triggered = measure.margins(model, [3, 0, 7, 9, 40], [44])
    measure.evaluation = EVALUATION
    torch.testing.assert_close(clean.tolist(), wanted(measure.clean_pixels([3, 0, 7, 9, 40])), rtol=0, atol=1e-6)
    torch.testing.assert_close(triggered.tolist(), wanted(measure.triggered_pixels([44])), rtol=0, atol=1e-6)
    assert [len(part) for part in measure.margins(model, [], [])] == [0, 0]
