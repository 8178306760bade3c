"""Similarity measurements, by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from sweeplab.evaluation.similarity import (
    clip_scores,
    detection_recall,
    histogram,
    modality_gap,
    safe_set,
    target_distance,
    target_distances,
    two_dimensions,
)

EAST, NORTH = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def test_clip_scores_are_cosines():
    diagonal = F.normalize(torch.tensor([[1.0, 1.0]]), dim=1)
    scores = clip_scores(torch.cat([EAST, EAST]), torch.cat([NORTH, diagonal]))
    assert scores.tolist() == pytest.approx([0.0, 2**-0.5])


@pytest.mark.parametrize(("suspicious", "found"), [("highest", [1, 2]), ("lowest", [0, 1])])
def test_detection_recall_by_hand(suspicious: str, found: list[int]):
    """Ten pairs with scores 0 to 9, poisons at 9, 7 and 3. Of the top two (9, 8) one is a poison, of the top three (9,
    8, 7) two: recall 1/3 and 2/3. Of the lowest two none, of the lowest four (0..3) one."""
    poison = np.isin(np.arange(10), [9, 7, 3])
    shares = (0.2, 0.3) if suspicious == "highest" else (0.2, 0.4)
    table = detection_recall(np.arange(10.0), poison, shares, suspicious)
    assert table["num_found"].tolist() == found
    assert table["recall"].tolist() == pytest.approx([count / 3 for count in found])
    assert table["precision"].tolist() == pytest.approx(
        [count / size for count, size in zip(found, table["num_flagged"], strict=True)]
    )


def test_detection_by_chance_finds_the_share_that_is_looked_at():
    """10,000 random scores: recall at 10 % is 0.1 within five standard deviations of 1,000 poisons (0.047)."""
    draw = np.random.default_rng(0)
    table = detection_recall(draw.random(10_000), draw.permutation(10_000) < 1000, (0.1,), "highest")
    assert table["recall"][0] == pytest.approx(0.1, abs=0.047)


def test_detection_without_poisons_is_refused():
    with pytest.raises(ValueError, match="no pair is poisoned"):
        detection_recall(np.zeros(3), np.zeros(3, dtype=bool), (0.1,), "highest")


def test_a_histogram_by_hand():
    """Two bins of width 0.5 on either side of 0: -0.1 and -0.5 lie in the second, 0 and 0.2 in the third, 1 (and what
    rounding made a little more than 1) in the last; the first holds nothing and is left out."""
    scores = np.array([-0.1, 0.0, 0.2, 1.0, 1.0 + 1e-7, -0.5])
    table = histogram(scores, np.array([False, True, False, False, True, False]), bins=4)
    assert table.to_dict("list") == {
        "from": [-0.5, 0.0, 0.5],
        "to": [0.0, 0.5, 1.0],
        "clean": [2, 1, 1],
        "poisoned": [0, 1, 1],
    }


def test_every_pair_is_in_one_bin():
    draw = np.random.default_rng(0)
    scores, poison = draw.uniform(-1, 1, 1000), draw.random(1000) < 0.1
    table = histogram(scores, poison)
    assert (table["clean"].sum(), table["poisoned"].sum()) == ((~poison).sum(), poison.sum())


def test_a_safe_set_by_hand():
    found = safe_set(np.array([True, True, False, True]), np.array([True, False, True, False]))
    assert (found.size, found.share, found.num_poisons, found.poison_share) == (3, 0.75, 1, pytest.approx(1 / 3))


def test_an_empty_safe_set_holds_no_poison():
    assert safe_set(np.zeros(2, dtype=bool), np.ones(2, dtype=bool)).poison_share == 0


def test_the_modality_gap_of_orthogonal_modalities_is_the_root_of_two():
    assert modality_gap(EAST, NORTH) == pytest.approx(2**0.5)
    assert modality_gap(EAST, EAST) == 0


def test_the_distance_from_the_target_averages_all_pairs():
    """East to north is 1, east to east 0, east to west 2; a class that is spread has a distance from itself."""
    both = torch.cat([NORTH, EAST])
    assert target_distance(EAST, both) == pytest.approx(0.5)
    assert target_distance(both, both) == pytest.approx(0.5)
    assert target_distance(torch.cat([both, -EAST]), EAST) == pytest.approx((1 + 0 + 2) / 3)
    assert target_distance(EAST, EAST) == pytest.approx(0)


def test_distances_from_the_target_by_embeddings_and_in_the_plane():
    """The target's points lie at (0, 0) and (6, 0). The clean ones lie 5 from either, the triggered one lies on the
    first."""
    points = pd.DataFrame(
        {
            "group": ["clean", "clean", "triggered", "target", "target"],
            "x": [3.0, 3.0, 0.0, 0.0, 6.0],
            "y": [4.0, -4.0, 0.0, 0.0, 0.0],
        }
    )
    groups = {"clean": torch.cat([NORTH, NORTH, NORTH]), "triggered": torch.cat([NORTH, EAST]), "target": EAST}
    table = target_distances(groups, points)
    assert table["group"].tolist() == ["clean", "triggered", "target"]
    assert table["num_images"].tolist() == [3, 2, 1]
    assert table["cosine_distance"].tolist() == pytest.approx([1, 0.5, 0])
    assert table["plane_distance"].tolist() == pytest.approx([5, 3, 3])


def test_a_map_keeps_groups_apart_that_lie_apart():
    draw = torch.Generator().manual_seed(0)
    near = F.normalize(torch.tensor([5.0, 0, 0]) + 0.1 * torch.randn(30, 3, generator=draw), dim=1)
    far = F.normalize(torch.tensor([0, 5.0, 0]) + 0.1 * torch.randn(30, 3, generator=draw), dim=1)
    table = two_dimensions({"clean": near, "triggered": far}, seed=0)
    assert table["group"].value_counts().to_dict() == {"clean": 30, "triggered": 30}
    centres = table.groupby("group")[["x", "y"]].mean()
    spread = table.groupby("group")[["x", "y"]].std().to_numpy().max()
    assert np.linalg.norm(centres.loc["clean"] - centres.loc["triggered"]) > 2 * spread


def test_a_map_of_too_few_points_is_refused():
    with pytest.raises(ValueError, match="perplexity"):
        two_dimensions({"clean": EAST}, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_embeddings_without_a_direction_are_refused(value: float):
    bad = torch.tensor([[value, 0.0]])
    for measure in (clip_scores, modality_gap, target_distance):
        for pair in ((bad, EAST), (EAST, bad)):
            with pytest.raises(FloatingPointError, match=r"1 of 1 .*embeddings are not finite or have norm zero"):
                measure(*pair)
    with pytest.raises(FloatingPointError, match="1 of 13 image embeddings"):
        two_dimensions({"clean": EAST.expand(12, -1), "triggered": bad}, seed=0)


def test_detection_by_scores_that_are_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match="1 of 3 scores are not finite"):
        detection_recall(np.array([0.1, np.nan, 0.3]), np.array([True, False, False]), (0.5,), "highest")
