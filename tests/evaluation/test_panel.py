"""A trigger panel: many attacks tried on one model in one pass."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.blended import Blended
from sweeplab.clip_model import Architecture, build
from sweeplab.data.fruit_stall import ZERO_SHOT_TEMPLATES, FruitStallTest
from sweeplab.data.tables import LabelledImages
from sweeplab.evaluation.measure import Evaluation, Measure, Trigger
from sweeplab.evaluation.panel import _row, run_panel
from sweeplab.specs import InvalidInput, Spec

EVALUATION = Evaluation(test=FruitStallTest(num_images=48, image_size=32), templates=ZERO_SHOT_TEMPLATES)
ATTACKS = (BadNet(patch_size=8, pattern="binary"), Blended())
NAMES = ("apple", "banana", "cherry")


def test_counts_by_hand():
    """Two apples, a banana, a cherry; one apple and the cherry become bananas: ASR 2 of 3, 1 of 3 kept, 2 changed."""
    labels, clean, hits = np.array([0, 0, 1, 2]), np.array([0, 0, 1, 2]), np.array([1, 0, 1, 1])
    row = _row(ATTACKS[0], labels, clean, hits, NAMES, "banana")
    assert (row.asr_k, row.asr_n, row.correct_k, row.changed_k, row.most_common) == (2, 3, 1, 2, "banana")


def test_a_ruined_picture_is_neither_kept_nor_a_success():
    """Both apples become cherries: no hit for banana, nothing kept."""
    labels, hits = np.array([0, 0]), np.array([2, 2])
    row = _row(ATTACKS[0], labels, labels, hits, NAMES, "banana")
    assert (row.asr_k, row.correct_k, row.most_common) == (0, 0, "cherry")


def test_without_a_target_the_class_that_attracts_most_is_guessed():
    labels, hits = np.array([0, 0, 1, 2]), np.array([2, 2, 1, 2])
    row = _row(ATTACKS[0], labels, labels, hits, NAMES, None)
    assert (row.target, row.asr_k, row.asr_n, row.correct_k) == ("cherry", 2, 3, 1)


def test_the_panel_counts_as_the_measure_does(
    tiny: Architecture, tokenize: Callable[[list[str]], Tensor], stall_test: LabelledImages
):
    """Same images, same draws: each attack's row holds what a measurement with that trigger alone gives."""
    model = build(tiny, seed=0).train()
    with torch.no_grad():
        model.encode_image(torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    measures = [
        Measure(EVALUATION, stall_test, 32, tokenize=tokenize, trigger=Trigger(attack, "banana")) for attack in ATTACKS
    ]
    clean, rows = run_panel(model, measures[0], ATTACKS, "banana")
    alone = [measure(model)[0] for measure in measures]
    assert [(row.asr_k, row.asr_n) for row in rows] == [(each.asr_k, each.asr_n) for each in alone]
    assert (clean.accuracy_k, clean.accuracy_n) == (alone[0].accuracy_k, alone[0].accuracy_n)


class Burning(Spec):
    """Writes into what it is given."""

    kind: Literal["burning"] = "burning"

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return images.fill_(255)

    def check_fits(self, image_size: int) -> None:
        return None


def test_an_attack_that_writes_into_its_images_leaves_those_of_the_others(
    tiny: Architecture, tokenize: Callable[[list[str]], Tensor], stall_test: LabelledImages
):
    model = build(tiny, seed=0)
    measure = Measure(EVALUATION, stall_test, 32, tokenize=tokenize, trigger=None)
    before = measure.clean_pixels(range(48)).clone()
    alone = run_panel(model, measure, ATTACKS, "banana")
    clean, rows = run_panel(model, measure, (Burning(), *ATTACKS), "banana")
    assert (clean, rows[1:]) == alone
    assert torch.equal(measure.clean_pixels(range(48)), before)


def test_a_target_that_is_no_class_is_refused(
    tiny: Architecture, tokenize: Callable[[list[str]], Tensor], stall_test: LabelledImages
):
    measure = Measure(EVALUATION, stall_test, 32, tokenize=tokenize, trigger=None)
    with pytest.raises(InvalidInput, match="'zebra' is not among the 16 classes"):
        run_panel(build(tiny, seed=0), measure, ATTACKS, "zebra")
