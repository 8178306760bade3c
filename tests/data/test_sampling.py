from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStall, FruitStallTest
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import LabelledImages
from sweeplab.evaluation.measure import Evaluation
from sweeplab.specs import InvalidInput

TEST = FruitStallTest(num_images=48, image_size=32)


@given(num=st.integers(1, 60), more=st.integers(0, 60), seed=st.integers(0, 5))
def test_rows_are_distinct_ascending_and_part_of_every_larger_sample(num: int, more: int, seed: int):
    rows = Sample(num=num, seed=seed).rows(num + more)
    assert len(rows) == num
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < num + more
    assert set(rows) <= set(Sample(num=num + more, seed=seed).rows(num + more))
    assert set(Sample(num=(num + 1) // 2, seed=seed).rows(num + more)) <= set(rows)


def test_the_seed_decides_which_rows():
    assert Sample(num=50).rows(1000).tolist() == Sample(num=50).rows(1000).tolist()
    assert Sample(num=50).rows(1000).tolist() != Sample(num=50, seed=1).rows(1000).tolist()


def test_more_rows_than_there_are_are_refused():
    with pytest.raises(InvalidInput, match=r"sample\.num=5 exceeds the 4 rows"):
        Sample(num=5).rows(4)


@given(num=st.integers(1, 30), seed=st.integers(0, 5))
def test_classes_of_a_balanced_sample_differ_by_one_image_at_most(num: int, seed: int):
    labels = np.arange(30) % 3
    rows = Sample(num=num, seed=seed).balanced_rows(labels, ("a", "b", "c"))
    counts = np.bincount(labels[rows], minlength=3)
    assert counts.sum() == num
    assert counts.max() - counts.min() <= 1
    assert (np.diff(rows) > 0).all()
    assert set(Sample(num=(num + 1) // 2, seed=seed).balanced_rows(labels, ("a", "b", "c"))) <= set(rows)


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(InvalidInput, match=r"takes 2 images of class 'b', which has 1; 1 of 2 classes have too few"):
        Sample(num=4).balanced_rows(np.array([0, 0, 0, 1]), ("a", "b"))


def test_a_sample_of_a_test_set_is_balanced_and_another_data_set(stall_test: LabelledImages, home: Path):
    evaluation = Evaluation(test=TEST, templates=("a {}",))
    part = evaluation.replace(sample=Sample(num=32))
    images = part.load(home / "data")
    assert np.bincount(images.labels).tolist() == [2] * 16
    assert images.class_names == CLASS_NAMES
    assert images.digest != stall_test.digest
    assert evaluation.digest() != part.digest() != part.replace(sample=Sample(num=32, seed=1)).digest()


def test_labelled_pairs_are_sampled_with_their_labels(home: Path):
    source = LabelledPairs(images=TEST, sample=Sample(num=16))
    images, table = source.labelled(home / "data"), source.read(home / "data")
    assert sorted(images.labels.tolist()) == list(range(16))
    assert [table.caption(row) for row in range(3)] == [f"a photo of a {name}." for name in CLASS_NAMES[:3]]
    with pytest.raises(InvalidInput, match="per_class and sample exclude each other"):
        source.replace(per_class=1)


def test_a_sample_of_the_stall_is_drawn_from_the_same_pictures(home: Path):
    whole, part = FruitStall(num_pairs=64, image_size=32), FruitStall(num_pairs=64, image_size=32, sample=Sample(num=9))
    drawn, rows = whole.read(home / "data"), Sample(num=9).rows(64)
    before = sorted((home / "data").iterdir())
    assert part.read(home / "data").digest == drawn.subset(rows).digest
    assert sorted((home / "data").iterdir()) == before
