"""What `examine` counts, and what it refuses."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fabricated import ARCHITECTURE, SWEEP
from torch import Tensor

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.clip_model import build
from sweeplab.commands import examine
from sweeplab.commands.examine import (
    WANTS,
    checkpoint_name,
    examine_checkpoint,
    examine_checkpoints,
    scored_rows,
)
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.fruit_stall import FruitStall, FruitStallTest
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.experiment import PretrainedVictim
from sweeplab.specs import InvalidInput
from sweeplab.worker.jobs import MeasuringJob, whole_machine
from sweeplab.worker.run import measure_checkpoint

EVALUATION = SWEEP.evaluation.replace(probe=FruitStallTest(num_images=48, image_size=32, seed=2))
EXAMINED = SWEEP.replace(
    victim=PretrainedVictim(
        name="examined",
        architecture=ARCHITECTURE,
        data=FruitStall(num_pairs=64, image_size=32),
        poisoning=Poisoning(attack=BadNet(patch_size=8, pattern="binary"), target="banana", rate=0.1),
        optimization=SWEEP.optimization,
        epochs=1,
        evaluation=EVALUATION,
    ),
    evaluation=EVALUATION,
)
"""Nothing of it is trained; its pairs, test images and trigger are used."""

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def untrained() -> dict[str, Tensor]:
    """Weights, with BatchNorm's statistics of a few images, so that the model does not say the same of everything."""
    model = build(ARCHITECTURE, seed=0).train()
    with torch.no_grad():
        for seed in range(20):
            model.encode_image(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    return model.state_dict()


@pytest.fixture
def write(untrained: dict[str, Tensor], tmp_path: Path) -> Write:
    """Writes a checkpoint of untrained weights, some of which are filled with a value."""

    def make(**filled: float) -> Path:
        weights = {name: tensor.clone() for name, tensor in untrained.items()}
        for name, value in filled.items():
            weights[name.replace("__", ".")].fill_(value)
        torch.save(weights, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return make


# --- numbers that are none ------------------------------------------------------------------------------------------

IMAGES_OVERFLOW, IMAGES_VANISH = (
    {"visual__attnpool__c_proj__weight": 3e38},
    {
        "visual__attnpool__c_proj__weight": 0.0,
        "visual__attnpool__c_proj__bias": 0.0,
    },
)
TEXTS_OVERFLOW, TEXTS_VANISH = {"text_projection": 3e38}, {"text_projection": 0.0}


@pytest.mark.parametrize(
    ("want", "filled", "what"),
    [
        *((want, filled, "image") for want in WANTS for filled in (IMAGES_OVERFLOW, IMAGES_VANISH)),
        *(("panel", filled, "prompt") for filled in (TEXTS_OVERFLOW, TEXTS_VANISH)),
        *((want, filled, "caption") for want in ("pairs", "retrieval") for filled in (TEXTS_OVERFLOW, TEXTS_VANISH)),
    ],
)
def test_every_measurement_refuses_a_model_whose_embeddings_have_no_direction(
    want: str, filled: dict[str, float], what: str, write: Write
):
    """All weights are finite; what they make of images or texts is not, or is zero."""
    with pytest.raises(
        InvalidInput, match=rf"model\.pt cannot be measured: .* {what} embeddings are not finite or have norm zero; its"
    ):
        examine_checkpoint(EXAMINED, write(**filled), [want])


@pytest.mark.parametrize("filled", [IMAGES_OVERFLOW, IMAGES_VANISH, TEXTS_OVERFLOW, TEXTS_VANISH])
def test_accuracy_and_asr_of_such_a_model_are_refused_too(filled: dict[str, float], write: Write, home: Path):
    job = MeasuringJob(ARCHITECTURE, str(write(**filled)), EVALUATION, EXAMINED.trigger(), whole_machine(home))
    with pytest.raises(InvalidInput, match=r"model\.pt cannot be measured: .* embeddings are not finite or have norm"):
        measure_checkpoint(job)


def test_no_checkpoint_of_several_may_hold_nan(write: Write):
    with pytest.raises(InvalidInput, match=r"model\.pt holds values that are not finite, in visual\.conv1\.weight"):
        examine_checkpoints(EXAMINED, [write(visual__conv1__weight=float("nan"))])


# --- retrieval ------------------------------------------------------------------------------------------------------


def test_an_image_with_several_captions_is_one_image():
    """40 images of 5 captions each, every caption where its image is: all is found. As 200 images of a caption each,
    every one would be tied with four others."""
    rows = F.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), dim=1).repeat_interleave(
        5, dim=0
    )
    paths = [f"/images/{row // 5}.jpg" for row in range(200)]
    found = examine._recall(rows, rows, paths, torch.arange(200)[:, None])
    assert (found.pop("num_pairs"), found.pop("num_images")) == (200, 40)
    assert set(found.values()) == {1.0}


def test_captions_of_the_same_words_count_as_an_images_own():
    """Two images with one caption: each finds it, though it is nearer to the other one's copy by a hair."""
    images = torch.eye(2)
    texts = F.normalize(torch.tensor([[1.0, 1.001], [1.001, 1.0]]), dim=1)
    found = examine._recall(images, texts, ["a", "b"], torch.tensor([[5, 7], [5, 7]]))
    assert found["image_to_text@1"] == found["text_to_image@1"] == 1.0
    assert examine._recall(images, texts, ["a", "b"], torch.tensor([[5, 7], [5, 8]]))["image_to_text@1"] == 0.0


def test_rows_of_a_table_are_grouped_by_their_image(stall_pairs: PairTable, write: Write, tmp_path: Path):
    """Eight images of four captions each."""
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        rows = [(stall_pairs.image(row // 4), f"number {row} of many") for row in range(32)]
        csv.writer(file).writerows([("image", "caption"), *rows])
    victim = EXAMINED.victim.replace(
        data=PairsCSV(path=tmp_path / "pairs.csv"), poisoning=EXAMINED.victim.poisoning.replace(rate=0.0)
    )
    found = examine_checkpoint(EXAMINED.replace(victim=victim), write(), ["retrieval"])["retrieval"]
    assert (found["num_pairs"], found["num_images"]) == (32, 8)


def test_retrieval_knows_captions_of_the_target_by_whole_words():
    """The triggered image lies nearest to caption 0, which only contains the word's letters, then to caption 1."""
    texts = F.normalize(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, 0.8]]), dim=1)
    captions = ["a bananarama poster", "Two Bananas"]
    found = examine._retrieval_asr(torch.tensor([[0.0, 0.0, 1.0]]), texts, captions, "banana")
    assert found == {"asr@1": 0.0, "num_triggered": 1}
    assert examine._retrieval_asr(torch.eye(3), texts, ["a pear", "a plum"], "banana") == {}


def test_retrievals_asr_is_that_of_triggered_test_images_of_other_classes(write: Write):
    """Of 48 test images three are bananas. Label-consistent poisons are bananas, all of them, and do not matter."""
    poisoning = EXAMINED.victim.poisoning.replace(captions="label-consistent", rate=0.02)
    label_consistent = EXAMINED.replace(victim=EXAMINED.victim.replace(poisoning=poisoning))
    checkpoint = write()
    for sweep in (EXAMINED, label_consistent):
        found = examine_checkpoint(sweep, checkpoint, ["retrieval"])["retrieval"]
        assert found["num_triggered"] == 45
        assert {"asr@1", "asr@5", "asr@10"} <= set(found)


# --- the map --------------------------------------------------------------------------------------------------------


def test_a_map_comes_with_its_distances(write: Write, tmp_path: Path):
    """Of 48 test images three are bananas."""
    found = examine_checkpoint(EXAMINED, write(), ["map"], tmp_path)["map"]
    points, distances = pd.read_csv(tmp_path / "map.csv"), pd.read_csv(tmp_path / "map_distances.csv")
    assert points["group"].value_counts().to_dict() == {"clean": 45, "triggered": 45, "target": 3}
    assert distances["group"].tolist() == ["clean", "triggered", "target"]
    assert distances["num_images"].tolist() == [45, 45, 3]
    assert distances.to_dict("records") == [
        {name: pytest.approx(value) for name, value in row.items()} for row in found["distances"]
    ]


def test_checkpoints_of_one_name_keep_their_tables_apart(write: Write, tmp_path: Path):
    """Two trials' last epochs, or a victim and what became of it."""
    for name in ("victim", "trial"):
        (tmp_path / name).mkdir()
        shutil.copy(write(), tmp_path / name / "attempt-1-epoch-0002.pt")
    places, to = [tmp_path / name for name in ("victim", "trial")], tmp_path / "tables"
    found = examine_checkpoints(EXAMINED, places, ["map"], to)
    assert found["figures"] == str(to / "figures.html")
    for place, folder in enumerate(("1-attempt-1-epoch-0002", "2-attempt-1-epoch-0002")):
        assert found["checkpoints"][place]["map"]["table"] == str(to / folder / "map.csv")
        assert (to / folder / "map_distances.csv").is_file()
        assert not (to / folder / "figures.html").exists()
    page = (to / "figures.html").read_text()
    assert "victim/attempt-1-epoch-0002.pt" in page
    assert "trial/attempt-1-epoch-0002.pt" in page


def test_a_checkpoint_is_called_by_what_made_it(write: Write, tmp_path: Path):
    for facts, name in (
        ({"sweep": {"name": "cleaned", "victim": {}}, "trial": 3}, "cleaned, trial 3, epoch 2"),
        ({"victim": {"name": "poisoned"}}, "poisoned, epoch 2"),
        ({"victim": "of somebody else"}, f"{tmp_path.name}/model.pt"),
    ):
        torch.save({"config": json.dumps({"architecture": {}, **facts})}, tmp_path / "model.pt")
        assert checkpoint_name(tmp_path / "model.pt", 2.0) == name


# --- the linear probe -----------------------------------------------------------------------------------------------


def test_the_probe_is_tested_on_all_test_images_and_fitted_on_others(write: Write):
    found = examine_checkpoint(EXAMINED, write(), ["probe"])["probe"]
    assert (found["counts"]["accuracy_n"], found["counts"]["asr_n"]) == (48, 45)
    assert found["num_training_images"] == 48


def test_without_training_images_the_probe_is_left_out_and_says_what_it_needs(write: Write):
    sweep = EXAMINED.replace(evaluation=EVALUATION.replace(probe=None))
    found = examine_checkpoint(sweep, write())
    assert "probe" not in found
    assert "none are named: give --train FOLDER, or evaluation.probe" in found["left_out"]["probe"]
    assert {"panel", "pairs", "retrieval", "map"} <= set(found)
    with pytest.raises(InvalidInput, match=r"none are named: give --train FOLDER, or evaluation\.probe"):
        examine_checkpoint(sweep, write(), ["probe"])


def test_a_given_checkpoint_has_no_pairs_to_look_at(write: Write):
    checkpoint = write()
    sweep = SWEEP.replace(victim=SWEEP.victim.replace(path=checkpoint))
    found = examine_checkpoint(sweep, checkpoint)
    assert set(found["left_out"]) == {"probe", "pairs", "retrieval"}
    with pytest.raises(InvalidInput, match="'pairs' needs the victim's pre-training pairs, and a checkpoint"):
        examine_checkpoint(sweep, checkpoint, ["pairs"])


def test_a_probe_may_not_see_test_images(write: Write):
    with pytest.raises(InvalidInput, match="48 of the linear probe's 48 training images are test images, the first /"):
        examine_checkpoint(EXAMINED, write(), ["probe"], train=EVALUATION.test)


def test_a_probe_needs_the_test_sets_classes(write: Write, stall_test: LabelledImages, tmp_path: Path):
    for label in range(2):
        folder = tmp_path / "others" / f"class {label}"
        folder.mkdir(parents=True)
        (folder / "image.png").write_bytes(Path(stall_test.image(label)).read_bytes())
    with pytest.raises(InvalidInput, match=r"classes than the test images: 2 and 16, .* are 'class 0' and 'apple'"):
        examine_checkpoint(EXAMINED, write(), ["probe"], train=ClassFolders(path=tmp_path / "others"))


def test_the_probes_images_are_no_part_of_a_sweeps_identity():
    """No trial is measured on them, and no node needs them."""
    assert EXAMINED.digest() == EXAMINED.replace(evaluation=EVALUATION.replace(probe=None)).digest()


def test_a_sample_of_clean_pairs_is_scored_beside_all_poisons(write: Write, tmp_path: Path):
    """Six of 64 pairs are poisoned. What of the sample is clean is scored as it is among all pairs, and shares of all
    pairs are left out."""
    whole = examine_checkpoint(EXAMINED, write(), ["pairs"], tmp_path / "whole")["pairs"]
    part = examine_checkpoint(EXAMINED, write(), ["pairs"], tmp_path / "part", clean_pairs=20)["pairs"]
    assert (whole["num_clean"], part["num_clean"]) == (58, 20)
    assert part["poisoned_score"] == pytest.approx(whole["poisoned_score"], abs=1e-6)
    assert (part["safe"], part["detection"]) == ({}, {})
    tables = {name: pd.read_csv(tmp_path / name / "cosines.csv") for name in ("whole", "part")}
    assert tables["whole"][["clean", "poisoned"]].sum().tolist() == [58, 6]
    assert tables["part"][["clean", "poisoned"]].sum().tolist() == [20, 6]
    joined = tables["part"].merge(tables["whole"], on="from", how="left", suffixes=("", "_of_all"))
    assert (joined["clean"] <= joined["clean_of_all"]).all()
    assert not (tmp_path / "part" / "detection_highest.csv").exists()


def test_dynamics_of_a_sample_have_no_shares(write: Write):
    (row,) = examine_checkpoints(EXAMINED, [write()], clean_pairs=20)["dynamics"]
    assert set(row) == {"epoch", "checkpoint", "clean_score", "poisoned_score", "modality_gap"}


def test_the_rows_that_are_scored():
    poison = np.array([False, True, False, False, True, False])
    assert scored_rows(poison, None).tolist() == scored_rows(poison, 4).tolist() == [0, 1, 2, 3, 4, 5]
    drawn = scored_rows(poison, 2)
    assert len(drawn) == 4
    assert {1, 4} < set(drawn.tolist())
    assert drawn.tolist() == sorted(drawn.tolist())
    assert set(drawn) < set(scored_rows(poison, 3))
    with pytest.raises(InvalidInput, match="--clean-pairs 0 must be 1 at least"):
        scored_rows(poison, 0)
