"""Retrieval, by hand and against slow loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sweeplab.evaluation.retrieval import finds_target, recall_at, retrieval_asr


def unit(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_two_captions_an_image_by_hand():
    """Image 0 is best described by its own caption 1; image 1's own captions 2 and 3 rank behind caption 1."""
    images = torch.eye(2)
    texts = F.normalize(torch.tensor([[0.5, 0.5], [1.0, 0.9], [1.0, 0.1], [1.0, 0.2]]), dim=1)
    found = recall_at(images, texts, torch.tensor([0, 0, 1, 1]), ks=(1, 2))
    # Image 0 prefers captions 2 (0.995), 3 (0.98), 1, 0: its best own is third. Image 1 prefers 0 (0.707), 1, 3, 2.
    assert found["image_to_text@1"] == found["image_to_text@2"] == 0
    # Caption 0 is tied between both images, which counts against it; caption 1 finds image 0; captions 2, 3 do not.
    assert found["text_to_image@1"] == pytest.approx(1 / 4)


def test_against_slow_loops():
    images, texts, owner = unit(7, 5, 0), unit(21, 5, 1), torch.arange(21) % 7
    found = recall_at(images, texts, owner, ks=(1, 5))
    for k in (1, 5):
        image_hits = sum(
            any(int(owner[text]) == image for text in (images[image] @ texts.T).argsort(descending=True)[:k].tolist())
            for image in range(7)
        )
        text_hits = sum(
            int(owner[text]) in (texts[text] @ images.T).argsort(descending=True)[:k].tolist() for text in range(21)
        )
        assert found[f"image_to_text@{k}"] == pytest.approx(image_hits / 7)
        assert found[f"text_to_image@{k}"] == pytest.approx(text_hits / 21)


def test_random_embeddings_are_at_chance():
    """Five captions each of 200 images: recall at 1 is about 1/200; the authors' code gives 0.8 here."""
    found = recall_at(unit(200, 16, 2), unit(1000, 16, 3), torch.arange(1000) // 5)
    assert found["image_to_text@1"] < 0.04
    assert found["text_to_image@1"] < 0.02


def test_perfect_embeddings_are_found():
    rows = unit(10, 8, 4)
    assert set(recall_at(rows, rows, torch.arange(10)).values()) == {1.0}


def test_an_image_without_caption_is_refused():
    with pytest.raises(ValueError, match="every image needs a caption"):
        recall_at(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 1]))


def test_retrieval_asr_asks_for_half_of_the_captions():
    """k = 4 needs two target captions: the first image has two among its best four, the second one."""
    triggered = torch.eye(2)
    texts = F.normalize(
        torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0], [0.3, 1.0]]),
        dim=1,
    )
    is_target = torch.tensor([True, True, False, False, True, False, False, False])
    assert retrieval_asr(triggered, texts, is_target, 4) == 0.5
    assert retrieval_asr(triggered, texts, is_target, 1) == 1.0


def test_one_target_caption_among_the_best_is_enough():
    """The target's caption is third for the first image and tied for second with two others for the second one."""
    images = torch.eye(2)
    texts = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [0.3, 1.0], [0.3, 1.0]]), dim=1)
    is_target = torch.tensor([False, False, True, False, False])
    assert finds_target(images, texts, is_target, 2).tolist() == [False, False]
    assert finds_target(images, texts, is_target, 3).tolist() == [True, True]
    tied = torch.tensor([False, False, False, True, False])
    assert finds_target(images, texts, tied, 1).tolist() == [False, False]
    assert finds_target(images, texts, tied, 2).tolist() == [False, True]
    with pytest.raises(ValueError, match="no caption names the target"):
        finds_target(images, texts, torch.zeros(5, dtype=torch.bool))


def test_finding_the_target_against_a_slow_loop():
    images, texts = unit(40, 6, 5), unit(60, 6, 6)
    is_target = torch.rand(60, generator=torch.Generator().manual_seed(7)) < 0.1
    for k in (1, 5):
        found = [
            any(bool(is_target[text]) for text in (texts @ image).argsort(descending=True)[:k].tolist())
            for image in images
        ]
        assert 0 < sum(found) < 40
        assert finds_target(images, texts, is_target, k).tolist() == found


def test_captions_that_read_the_same_are_each_others_images_own():
    """Images 0 and 1 share a wording: caption 1 is image 0's own too, and lies nearest to it; image 2 has its own.

    By the images alone, caption 1 ranks above image 0's caption 0, and caption 0 above image 1's caption 1.
    """
    images = torch.eye(3)
    texts = F.normalize(torch.tensor([[0.5, 0.9, 0.0], [0.9, 0.5, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    owner = torch.arange(3)
    apart = recall_at(images, texts, owner, ks=(1,))
    together = recall_at(images, texts, owner, ks=(1,), wording=torch.tensor([0, 0, 1]))
    assert (apart["image_to_text@1"], apart["text_to_image@1"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (together["image_to_text@1"], together["text_to_image@1"]) == (1.0, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_embeddings_without_a_direction_are_refused(value: float):
    good, bad = torch.eye(2), torch.tensor([[1.0, 0.0], [value, 0.0]])
    for images, texts in ((bad, good), (good, bad)):
        with pytest.raises(FloatingPointError, match=r"1 of 2 .*embeddings are not finite or have norm zero"):
            recall_at(images, texts, torch.arange(2))
        with pytest.raises(FloatingPointError, match=r"1 of 2 .*embeddings are not finite or have norm zero"):
            retrieval_asr(images, texts, torch.tensor([True, False]), 1)
