"""Zero-shot classification by hand and on a tiny model."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.clip_model import IMAGE_MEAN, IMAGE_STD, Architecture, build, tokenizer
from sweeplab.evaluation.zero_shot import class_weights, class_weights_from, predict, zero_shot_classifier

CPU = torch.device("cpu")


def test_templates_are_averaged_on_the_unit_sphere_by_hand():
    """Templates (3, 0) and (0, 5) become e1 and e2, whose mean (1/2, 1/2) becomes (1, 1) / sqrt 2."""
    embeddings = torch.tensor([[[3.0, 0.0], [0.0, 5.0]], [[2.0, 0.0], [7.0, 0.0]]])
    expected = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [1.0, 0.0]])
    assert_close(class_weights_from(embeddings), expected)


def test_class_weights_are_those_of_slow_loops():
    embeddings = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, templates in zip(class_weights_from(embeddings), embeddings, strict=True):
        mean = sum(template / template.square().sum().sqrt() for template in templates) / 3
        assert_close(row, mean / mean.square().sum().sqrt())


def test_one_template_is_its_own_mean():
    embeddings = torch.tensor([[[0.0, 4.0]]])
    assert_close(class_weights_from(embeddings), torch.tensor([[0.0, 1.0]]))


class Words(nn.Module):
    """Stands in for a text tower: remembers what it was asked, embeds a text by its length and first token."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.sizes.append(len(tokens))
        return tokens.double()


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([[len(text), ord(text[0]), ord(text[-1])] for text in texts])


def test_every_class_gets_every_template_in_order():
    names, templates = ("ab", "c"), ("x{}", "y{}z", "{}")
    weights = class_weights(Words(), tokenize, names, templates, device=CPU)
    expected = torch.stack([tokenize([t.format(name) for t in templates]).float() for name in names])
    assert weights.shape == (2, 3)
    assert_close(weights, class_weights_from(expected))


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 6), (4, [4, 2]), (6, [6]), (1024, [6])])
def test_texts_are_encoded_in_batches_that_do_not_change_the_weights(batch_size: int, sizes: list[int]):
    model, names, templates = Words(), ("ab", "c"), ("x{}", "y{}z", "{}")
    weights = class_weights(model, tokenize, names, templates, device=CPU, batch_size=batch_size)
    assert model.sizes == sizes
    assert_close(weights, class_weights(Words(), tokenize, names, templates, device=CPU))


def test_a_models_class_weights_are_unit_rows_without_gradient(tiny: Architecture):
    model = build(tiny, seed=0).eval()
    weights = class_weights(model, tokenizer(tiny), ("apple", "pear"), ("a {}.", "the {}"), device=CPU)
    assert weights.shape == (2, 16)
    assert_close(weights.norm(dim=1), torch.ones(2))
    assert not weights.requires_grad


class Colours(nn.Module):
    """Stands in for an image tower: embeds an image as its mean colour."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        std, mean = torch.tensor(IMAGE_STD)[:, None, None], torch.tensor(IMAGE_MEAN)[:, None, None]
        return (pixels * std + mean).mean(dim=(2, 3))


def plain(*colours: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, 3, 2, 2)


def test_the_class_with_the_largest_inner_product_is_predicted():
    batches = iter([plain((200, 10, 10), (10, 10, 200)), plain((10, 200, 10))])
    predictions = predict(Colours(), batches, zero_shot_classifier(torch.eye(3)), device=CPU)
    assert predictions.tolist() == [0, 2, 1]
    assert predictions.dtype == torch.int64


def test_of_equal_scores_the_lower_class_number_is_predicted():
    same = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert predict(Colours(), iter([plain((200, 10, 10))]), zero_shot_classifier(same), device=CPU).tolist() == [1]


def test_no_images_have_no_predictions():
    assert predict(Colours(), iter([]), zero_shot_classifier(torch.eye(3)), device=CPU).shape == (0,)
