"""Zero-shot classification by hand and on a tiny model."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.clip_model import IMAGE_MEAN, IMAGE_STD, Architecture, SmallCLIP, build, tokenizer
from sweeplab.evaluation.zero_shot import (
    class_weights,
    class_weights_from,
    predict,
    prompt_tokens,
    rank_of_own,
    zero_shot_classifier,
)

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
    """Stands in for a text tower: remembers what it was asked, embeds a text as its tokens."""

    context_length = 3

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.sizes.append(len(tokens))
        return tokens.double()


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([[len(text), ord(text[0]), ord(text[-1])] for text in texts])


def weights_of(model: nn.Module, names: tuple[str, ...], templates: tuple[str, ...], batch_size: int = 1024) -> Tensor:
    return class_weights(model, prompt_tokens(tokenize, names, templates), device=CPU, batch_size=batch_size)


def test_every_class_gets_every_template_in_order():
    names, templates = ("ab", "c"), ("x{}", "y{}z", "{}")
    weights = weights_of(Words(), names, templates)
    expected = torch.stack([tokenize([t.format(name) for t in templates]).float() for name in names])
    assert weights.shape == (2, 3)
    assert_close(weights, class_weights_from(expected))


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 6), (4, [4, 2]), (6, [6]), (1024, [6])])
def test_texts_are_encoded_in_batches_that_do_not_change_the_weights(batch_size: int, sizes: list[int]):
    model, names, templates = Words(), ("ab", "c"), ("x{}", "y{}z", "{}")
    weights = weights_of(model, names, templates, batch_size)
    assert model.sizes == sizes
    assert_close(weights, weights_of(Words(), names, templates))


def test_prompts_are_encoded_by_length_each_batch_trimmed_to_its_longest():
    """Of 8, 3, 5 and 4 tokens in batches of two: 3 and 4, then 5 and 8; 2 * 4 + 2 * 8 tokens in place of 4 * 16."""
    tokens = torch.zeros(2, 2, 16, dtype=torch.int64)
    for place, length in enumerate((8, 3, 5, 4)):
        tokens.view(4, 16)[place, :length] = 1 + torch.arange(length)

    model, asked = build(SmallCLIP(context_length=16, text_layers=1).architecture(), seed=0).eval(), []
    model.token_embedding.register_forward_pre_hook(lambda module, inputs: asked.append(tuple(inputs[0].shape)))
    weights = class_weights(model, tokens, device=CPU, batch_size=2)
    assert asked == [(2, 4), (2, 8)]
    with torch.no_grad():
        expected = class_weights_from(model.encode_text(tokens.view(4, 16)).view(2, 2, -1))
    assert_close(weights, expected, rtol=1e-5, atol=1e-6)


def test_a_models_class_weights_are_unit_rows_without_gradient(tiny: Architecture):
    model = build(tiny, seed=0).eval()
    prompts = prompt_tokens(tokenizer(tiny), ("apple", "pear"), ("a {}.", "the {}"))
    assert prompts.shape == (2, 2, 5)  # start, a, apple, full stop, end
    weights = class_weights(model, prompts, device=CPU)
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


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_prompt_without_a_direction_is_refused(value: float):
    embeddings = torch.tensor([[[3.0, 0.0]], [[value, 0.0]]])
    with pytest.raises(FloatingPointError, match="1 of 2 prompt embeddings are not finite or have norm zero"):
        class_weights_from(embeddings)


def test_templates_that_cancel_out_are_refused():
    """(3, 4) and (-6, -8) are opposite on the sphere: their mean is zero up to rounding."""
    with pytest.raises(FloatingPointError, match="1 of 2 class weights are not finite or have norm zero"):
        class_weights_from(torch.tensor([[[3.0, 4.0], [-6.0, -8.0]], [[1.0, 0.0], [1.0, 0.0]]]))


class Fixed(nn.Module):
    """Stands in for an image tower: embeds every image as the same row."""

    def __init__(self, row: list[float]) -> None:
        super().__init__()
        self.row = torch.tensor(row)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.row.expand(len(pixels), -1)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_images_without_a_direction_are_refused(value: float):
    """Without the check the first class would be predicted for all of them."""
    model, images, classify = Fixed([value, 0.0]), plain((1, 2, 3), (4, 5, 6)), zero_shot_classifier(torch.eye(2))
    with pytest.raises(FloatingPointError, match="2 of 2 image embeddings are not finite or have norm zero"):
        predict(model, iter([images]), classify, device=CPU)
    with pytest.raises(FloatingPointError, match="2 of 2 image embeddings are not finite or have norm zero"):
        rank_of_own(model, iter([(images, torch.tensor([0, 1]))]), classify, device=CPU)


def test_scores_of_a_classifier_that_are_not_finite_are_refused():
    """Such as those of a trained head that diverged."""
    with pytest.raises(FloatingPointError, match="1 of 2 class scores are not finite"):
        predict(
            Fixed([1.0, 1.0]), iter([plain((1, 2, 3))]), lambda rows: rows * torch.tensor([1.0, math.nan]), device=CPU
        )
