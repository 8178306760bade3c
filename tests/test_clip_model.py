"""The door to open_clip: seeded builds, checkpoints of known layouts, tokens, pixels."""

import argparse
import json
import math
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.clip_checkpoints import (
    OPENAI_ENTRIES,
    check_activation,
    checkpoint_architecture,
    load_into,
    load_model,
    load_weights,
    not_finite,
    quick_gelu_of,
)
from sweeplab.clip_model import (
    IMAGE_MEAN,
    IMAGE_STD,
    MAX_LOG_SCALE,
    Architecture,
    Encoder,
    SmallCLIP,
    architecture_json,
    build,
    check_prompts,
    encode_text,
    imagenet_class_names,
    imagenet_templates,
    matching_architectures,
    normalise_pixels,
    num_parameters,
    stacked,
    tokenizer,
    trimmed,
    with_directions,
)
from sweeplab.specs import InvalidInput

CONFIG = SmallCLIP().architecture().config


@pytest.fixture(scope="module")
def model(tiny: Architecture) -> nn.Module:
    return build(tiny, seed=0)


def same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- architectures --------------------------------------------------------------------------------------------------


def test_an_unknown_name_suggests_close_ones():
    with pytest.raises(InvalidInput, match="unknown architecture name='RN50-quickgellu'; did you mean RN50-quickgelu"):
        Architecture(name="RN50-quickgellu")


def test_a_name_like_no_other_says_where_the_known_ones_are():
    with pytest.raises(InvalidInput, match="list_models"):
        Architecture(name="qqqqqqqqqqqq")


@pytest.mark.parametrize("fields", [{}, {"name": "RN50", "config": CONFIG}], ids=["none", "both"])
def test_an_architecture_has_a_name_or_a_configuration(fields: dict[str, object]):
    with pytest.raises(InvalidInput, match=r"either `name` .* or `config`"):
        Architecture(**fields)


def test_a_configuration_without_towers_is_refused():
    with pytest.raises(InvalidInput, match="config lacks text_cfg, vision_cfg"):
        Architecture(config={"embed_dim": 8})


def test_a_text_tower_of_another_library_is_refused():
    with pytest.raises(InvalidInput, match=r"text tower.*choose an architecture"):
        Architecture(name="roberta-ViT-B-32")


@pytest.mark.parametrize(
    ("architecture", "image_size", "context_length"),
    [
        (Architecture(name="RN50-quickgelu"), 224, 77),
        (Architecture(name="ViT-L-14-336"), 336, 77),
        (SmallCLIP(image_size=48, context_length=12).architecture(), 48, 12),
    ],
    ids=["RN50", "ViT-L-14-336", "small"],
)
def test_an_architecture_knows_its_input_sizes(architecture: Architecture, image_size: int, context_length: int):
    assert (architecture.image_size, architecture.context_length) == (image_size, context_length)


@pytest.mark.parametrize("length", [1, 2])
def test_a_context_without_room_for_a_text_is_refused(length: int):
    with pytest.raises(InvalidInput, match=f"context_length={length} leaves no token of a text .* at least 3"):
        SmallCLIP(context_length=length).architecture()


def test_the_resolved_configuration_is_a_copy(tiny: Architecture):
    tiny.resolved()["embed_dim"] = 1
    tiny.resolved()["vision_cfg"]["image_size"] = 1
    assert (tiny.resolved()["embed_dim"], tiny.image_size) == (16, 32)


def test_parameters_are_counted_without_making_any(tiny: Architecture, model: nn.Module):
    assert num_parameters(tiny) == sum(parameter.numel() for parameter in model.parameters())


# --- building -------------------------------------------------------------------------------------------------------


def test_the_same_seed_builds_the_same_weights(tiny: Architecture, model: nn.Module):
    assert same_weights(build(tiny, seed=0).state_dict(), model.state_dict())
    assert not same_weights(build(tiny, seed=1).state_dict(), model.state_dict())


def test_building_moves_no_other_random_stream(tiny: Architecture, monkeypatch: pytest.MonkeyPatch):
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(7)
    seeded.clear()
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    build(tiny, seed=0)
    after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert seeded == [], "the GPUs' streams were seeded anew"


def test_the_global_stream_does_not_change_what_is_built(tiny: Architecture, model: nn.Module):
    torch.manual_seed(123)
    assert same_weights(build(tiny, seed=0).state_dict(), model.state_dict())


def test_a_built_model_starts_at_clips_temperature_in_training_mode(model: nn.Module):
    assert float(model.logit_scale.detach().exp()) == pytest.approx(1 / 0.07)
    assert model.training


def test_the_largest_logit_scale_is_100():
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(100)


def test_the_encoder_gives_the_models_features_and_the_scale(tiny: Architecture, model: nn.Module):
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = tokenizer(tiny)(["an apple", "a pear"] * 3)
    images, texts, scale = Encoder(model.eval())(pixels, tokens)
    assert images.shape == texts.shape == (6, 16)
    assert_close(F.normalize(images, dim=1), model.encode_image(pixels, normalize=True))
    assert_close(F.normalize(texts, dim=1), model.encode_text(tokens, normalize=True))
    assert float(scale.detach()) == pytest.approx(1 / 0.07)


# --- trimmed text ---------------------------------------------------------------------------------------------------

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
END_OF_TEXT = {"pool_type": "eos", "eos_id": 49407}
CAUSAL = {
    "open_clip's CLIP": {},
    "its end token": {"text_cfg": END_OF_TEXT},
    "CustomTextCLIP": {"custom_text": True},
    "a biased projection": {"custom_text": True, "text_cfg": {**END_OF_TEXT, "proj_bias": True}},
}
SEES_ALL = {
    "no causal mask": {"custom_text": True, "text_cfg": {"no_causal_mask": True}},
    "the last token": {"text_cfg": {"pool_type": "last"}},
    "an end token that is the padding": {"text_cfg": {"pool_type": "eos", "eos_id": 0}},
    "a class token": {"custom_text": True, "text_cfg": {"embed_cls": True}},
}


def text_model(changes: dict) -> nn.Module:
    text = {**TEXT, **changes.get("text_cfg", {})}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": 16, "vision_cfg": vision, **changes, "text_cfg": text}
    return build(Architecture(config=config), seed=0)


def drawn_texts(*lengths: int, columns: int = 20) -> Tensor:
    """Start, words, end and zeros."""
    tokens = torch.zeros(len(lengths), columns, dtype=torch.int64)
    draw = torch.Generator().manual_seed(0)
    for row, length in zip(tokens, lengths, strict=True):
        row[0], row[length - 1] = 49406, 49407
        row[1 : length - 1] = torch.randint(1, 49000, (length - 2,), generator=draw)
    return tokens


def features_and_gradients(
    model: nn.Module, encode: Callable[[Tensor], Tensor], tokens: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    features = encode(tokens)
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("name", CAUSAL)
def test_trimmed_text_has_features_and_gradients_of_the_full_context(name: str):
    model, tokens = text_model(CAUSAL[name]), drawn_texts(5, 9, 3, 7)
    lengths: list[int] = []
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    embedding.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    expected, theirs = features_and_gradients(model, model.encode_text, tokens)
    found, ours = features_and_gradients(model, lambda rows: encode_text(model, rows), trimmed(tokens))
    assert lengths == [20, 9]
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert_close(ours[key], gradient, rtol=1e-5, atol=1e-6 * max(1.0, float(gradient.abs().max())), msg=key)
    positions = ours.get("positional_embedding", ours.get("text.positional_embedding"))
    assert positions.shape == (20, 16)
    assert not positions[9:].any(), "weight decay finds a gradient of zero there, as before"


@pytest.mark.parametrize("name", SEES_ALL)
def test_a_model_that_looks_behind_a_texts_end_gets_the_full_context(name: str):
    model, tokens = text_model(SEES_ALL[name]).eval(), drawn_texts(5, 9, 3, 7)
    with torch.no_grad():
        assert torch.equal(encode_text(model, trimmed(tokens)), model.encode_text(tokens))


def test_texts_that_fill_the_context_go_through_open_clips_own_forward(tiny: Architecture, model: nn.Module):
    tokens = drawn_texts(16, 9, columns=16)
    with torch.no_grad():
        assert torch.equal(encode_text(model, trimmed(tokens)), model.encode_text(tokens))


def test_tokens_are_trimmed_to_the_longest_text_and_stacked_with_zeros():
    tokens = torch.tensor([[7, 0, 9, 0, 0], [7, 9, 0, 0, 0]])
    assert trimmed(tokens).tolist() == [[7, 0, 9], [7, 9, 0]]
    assert trimmed(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 1)
    assert stacked(trimmed(tokens), torch.tensor([[1]])).tolist() == [[7, 0, 9], [7, 9, 0], [1, 0, 0]]


# --- checkpoints ----------------------------------------------------------------------------------------------------


def prefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def renamed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


LAYOUTS = {
    "of torch.compile": renamed("_orig_mod."),
    "of a compiled tower": lambda weights: {
        name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in weights.items()
    },
    "of Lightning": lambda weights: {"state_dict": renamed("model.")(weights), "pytorch-lightning_version": "2.5"},
    "nested prefixes": renamed("model.module._orig_mod.clip."),
    "beside a loss's parameter": lambda weights: {
        "state_dict": {**renamed("model.")(weights), "loss.scale": torch.ones(1)}
    },
    "under a name of one's own": renamed("net.student."),
    "nested containers": lambda weights: {"model": {"state_dict": prefixed(weights)}, "epoch": 3},
    "under model_state_dict": lambda weights: {"model_state_dict": weights},
    "bare": lambda weights: weights,
    "bare with module.": prefixed,
    "under model": lambda weights: {"model": weights, "epoch": 3},
    "under state_dict": lambda weights: {"state_dict": weights, "epoch": 3, "name": "run"},
    "under state_dict with module.": lambda weights: {"state_dict": prefixed(weights), "optimizer": {"state": {}}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_load_from_known_layouts(layout: str, model: nn.Module, tmp_path: Path):
    torch.save(LAYOUTS[layout](model.state_dict()), tmp_path / "victim.pt")
    assert same_weights(load_weights(tmp_path / "victim.pt"), model.state_dict())


@pytest.mark.parametrize("layout", ["bare", "bare with module.", "nested prefixes"])
def test_weights_load_from_safetensors(layout: str, model: nn.Module, tmp_path: Path):
    save_file(LAYOUTS[layout](model.state_dict()), tmp_path / "victim.safetensors")
    assert same_weights(load_weights(tmp_path / "victim.safetensors"), model.state_dict())


def test_loaded_weights_make_the_same_model(tiny: Architecture, model: nn.Module, tmp_path: Path):
    torch.save({"state_dict": prefixed(model.state_dict())}, tmp_path / "victim.pt")
    other = build(tiny, seed=5)
    load_into(other, load_weights(tmp_path / "victim.pt"), "victim.pt")
    assert same_weights(other.state_dict(), model.state_dict())


def test_a_missing_checkpoint_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"nowhere.pt does not exist"):
        load_weights(tmp_path / "nowhere.pt")


class Mischief:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_checkpoint_that_would_execute_code_is_refused_unread(save, tmp_path: Path):
    save({"model": {"a": Mischief(tmp_path / "done")}}, tmp_path / "victim.pt")
    with pytest.raises(InvalidInput, match=r"cannot be read(: it is damaged| safely: beside tensors it holds Python)"):
        load_weights(tmp_path / "victim.pt")
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_a_damaged_checkpoint_is_invalid_input(suffix: str, content: bytes, tmp_path: Path):
    (tmp_path / f"victim{suffix}").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"cannot be read|is empty"):
        load_weights(tmp_path / f"victim{suffix}")


OTHER_FILES = {
    "a git-LFS pointer, which stands for the file; fetch the file itself with `git lfs pull`": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605143316\n"
    ),
    "a web page or a server's message": b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Sign in</body></html>",
    "empty": b"",
}


def test_a_servers_message_in_json_is_named(tmp_path: Path):
    (tmp_path / "victim.pt").write_text('{"error": "Invalid credentials"}')
    with pytest.raises(InvalidInput, match=r"victim\.pt is a web page or a server's message"):
        load_weights(tmp_path / "victim.pt")


def test_a_safetensors_file_whose_length_looks_like_a_sign_is_read(tmp_path: Path):
    """Its first bytes are the length of its header: 0x3c20 are a blank and a `<`."""
    save_file({"weight": torch.ones(1)}, tmp_path / "plain.safetensors")
    content = (tmp_path / "plain.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, wanted = content[8 : 8 + size], 0x3C20
    padded = wanted.to_bytes(8, "little") + header + b" " * (wanted - size) + content[8 + size :]
    (tmp_path / "victim.safetensors").write_bytes(padded)
    assert load_weights(tmp_path / "victim.safetensors").keys() == {"weight"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("what", OTHER_FILES)
def test_a_file_that_is_something_else_is_named_as_that(what: str, suffix: str, tmp_path: Path):
    (tmp_path / f"victim{suffix}").write_bytes(OTHER_FILES[what])
    with pytest.raises(InvalidInput, match=re.escape(f"victim{suffix} is {what}")):
        load_weights(tmp_path / f"victim{suffix}")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (nn.Linear(2, 2), r"a whole pickled model (torch.nn.modules.linear.Linear)"),
        ({"state_dict": {}, "args": argparse.Namespace(lr=1e-3)}, "a training script's options (argparse.Namespace)"),
    ],
    ids=["model", "options"],
)
def test_objects_beside_tensors_are_named_without_advice_to_run_them(content: object, what: str, tmp_path: Path):
    torch.save(content, tmp_path / "victim.pt")
    with pytest.raises(InvalidInput, match=re.escape(what)) as refused:
        load_weights(tmp_path / "victim.pt")
    assert "weights_only" not in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, device="meta"), "meta"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
    ids=["complex", "meta", "sparse", "quantized", "float8"],
)
def test_a_tensor_that_no_model_computes_with_is_named(
    tensor: Tensor, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "load", lambda *arguments, **named: {"visual.weight": tensor})
    (tmp_path / "victim.pt").write_bytes(b"PK not read")
    with pytest.raises(InvalidInput, match=rf"visual\.weight is no dense tensor of real numbers \(.*{kind}"):
        load_weights(tmp_path / "victim.pt")


def test_names_that_are_no_texts_are_refused(tmp_path: Path):
    torch.save({0: torch.ones(1)}, tmp_path / "victim.pt")
    with pytest.raises(InvalidInput, match="holds no state dict of tensors"):
        load_weights(tmp_path / "victim.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(1)], {"model": {"a": "b"}}, 3], ids=str)
def test_a_file_without_weights_is_refused(content: object, tmp_path: Path):
    torch.save(content, tmp_path / "victim.pt")
    with pytest.raises(InvalidInput, match="holds no state dict of tensors"):
        load_weights(tmp_path / "victim.pt")


def test_another_architecture_gives_one_message_with_all_differences(model: nn.Module, tiny: Architecture):
    weights = dict(model.state_dict())
    weights["visual.conv1.weight"] = torch.zeros(1, 3, 3, 3)
    weights["extra.weight"] = torch.zeros(1)
    del weights["logit_scale"]
    with pytest.raises(
        InvalidInput,
        match=r"victim.pt is of another architecture: lacks logit_scale; has unknown extra.weight; "
        r"other shapes: visual.conv1.weight \(1, 3, 3, 3\) instead of \(4, 3, 3, 3\); name the one",
    ):
        load_into(build(tiny, seed=1), weights, "victim.pt")


def test_a_long_list_of_differences_is_cut(model: nn.Module):
    with pytest.raises(InvalidInput, match=r"lacks \S+, \S+, \S+ and \d+ more; name the one"):
        load_into(model, {}, "victim.pt")


def test_a_refused_checkpoint_leaves_the_model(tiny: Architecture, model: nn.Module):
    other = build(tiny, seed=1)
    weights = {**model.state_dict(), "extra": torch.zeros(1)}
    with pytest.raises(InvalidInput, match="has unknown extra"):
        load_into(other, weights, "victim.pt")
    assert same_weights(other.state_dict(), build(tiny, seed=1).state_dict())


VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize("config", [CONFIG, VIT, {**VIT, "custom_text": True}], ids=["ResNet", "ViT", "custom text"])
def test_a_model_of_given_weights_is_whole_though_none_was_drawn(config: dict):
    """Buffers that a state dict leaves out too, such as the text tower's mask; and no random stream moves."""
    architecture = Architecture(config=config)
    drawn = build(architecture, seed=3)
    before = torch.get_rng_state()
    loaded = load_model(architecture, drawn.state_dict(), "victim.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.training
    assert any(name.endswith("attn_mask") and name not in loaded.state_dict() for name, _ in loaded.named_buffers())
    assert same_weights(dict(drawn.named_parameters()), dict(loaded.named_parameters()))
    assert same_weights(dict(drawn.named_buffers()), dict(loaded.named_buffers()))


def test_a_checkpoint_of_ours_names_its_architecture(tiny: Architecture, tmp_path: Path):
    config = json.dumps({"architecture": tiny.resolved()})
    torch.save({"model": {}, "config": config}, tmp_path / "epoch.pt")
    assert checkpoint_architecture(tmp_path / "epoch.pt").resolved() == tiny.resolved()
    assert json.loads(architecture_json(tiny)) == tiny.resolved()


def test_other_files_name_no_architecture(model: nn.Module, tmp_path: Path):
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    (tmp_path / "torn.pt").write_bytes(b"torn")
    for name in ("bare.pt", "torn.pt", "missing.pt", "victim.safetensors"):
        assert checkpoint_architecture(tmp_path / name) is None


# --- texts and pixels -----------------------------------------------------------------------------------------------


def test_tokens_have_the_context_length_and_keep_the_end(tiny: Architecture):
    tokens = tokenizer(tiny)(["a banana", "banana " * 50])
    assert tokens.shape == (2, 16)
    assert tokens.dtype == torch.int64
    assert tokens[0].tolist()[:4] == [49406, 320, 8922, 49407]
    assert tokens[0, 4:].sum() == 0
    assert (tokens[1, 0], tokens[1, -1]) == (49406, 49407)


def test_imagenet_has_80_templates_and_1000_names():
    assert len(imagenet_templates()) == 80
    assert all(template.count("{}") == 1 for template in imagenet_templates())
    assert len(imagenet_class_names()) == 1000
    assert imagenet_class_names()[954] == "banana"


def test_pixels_are_normalised_by_hand():
    """A grey of 51 is 0.2 of white: (0.2 - mean) / std in each channel."""
    pixels = normalise_pixels(torch.full((1, 3, 2, 2), 51, dtype=torch.uint8))
    expected = torch.tensor([(0.2 - mean) / std for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True)])
    assert pixels.dtype == torch.float32
    assert_close(pixels[0, :, 1, 0], expected)


def test_normalised_pixels_keep_their_places_and_lie_channels_last():
    """Equal to the last bit to (x - 255 mean) / (255 std), value by value."""
    images = torch.randint(256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels = normalise_pixels(images)
    for channel in range(3):
        mean, std = (255 * torch.tensor(each[channel]) for each in (IMAGE_MEAN, IMAGE_STD))
        assert torch.equal(pixels[:, channel], (images[:, channel].float() - mean) / std)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


# --- layouts that people have ----------------------------------------------------------------------------------------


def openai_layout(model: nn.Module) -> dict[str, Tensor]:
    """OpenAI's: half precision, and three numbers among the weights."""
    numbers = {name: torch.tensor(32) for name in OPENAI_ENTRIES}
    return {**{name: tensor.half() for name, tensor in model.state_dict().items()}, **numbers}


def test_openais_layout_is_read_in_full_precision(tiny: Architecture, model: nn.Module, tmp_path: Path):
    torch.save(openai_layout(model), tmp_path / "openai.pt")
    other = build(tiny, seed=9)
    load_into(other, load_weights(tmp_path / "openai.pt"), "openai.pt")
    assert other.visual.conv1.weight.dtype == torch.float32
    assert_close(other.visual.conv1.weight, model.visual.conv1.weight, rtol=1e-3, atol=1e-4)


def test_the_papers_layout_is_read(tiny: Architecture, model: nn.Module, tmp_path: Path):
    content = {"epoch": 10, "name": "run", "state_dict": prefixed(model.state_dict()), "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "epoch_10.pt")
    load_into(build(tiny, seed=9), load_weights(tmp_path / "epoch_10.pt"), "epoch_10.pt")
    assert quick_gelu_of(tmp_path / "epoch_10.pt") is None


def test_openais_weights_go_into_a_quickgelu_architecture_only(tiny: Architecture, model: nn.Module, tmp_path: Path):
    torch.save(openai_layout(model), tmp_path / "openai.pt")
    assert quick_gelu_of(tmp_path / "openai.pt") is True
    with pytest.raises(InvalidInput, match="was trained with QuickGELU, and the architecture has GELU"):
        check_activation(tiny, tmp_path / "openai.pt")
    check_activation(Architecture(config={**tiny.resolved(), "quick_gelu": True}), tmp_path / "openai.pt")


def test_a_torchscript_archive_is_refused_with_the_way_to_convert_it(tmp_path: Path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(InvalidInput, match="TorchScript archive, which is code"):
        load_weights(tmp_path / "model.pt")


def test_shapes_name_the_architecture_and_its_quickgelu_twin():
    with torch.device("meta"):
        weights = build(Architecture(name="RN50-quickgelu"), seed=0).state_dict()
    assert matching_architectures(weights) == ["RN50", "RN50-quickgelu"]


def test_a_state_dict_of_something_else_matches_nothing(model: nn.Module):
    assert matching_architectures(nn.Linear(2, 2).state_dict()) == []
    assert matching_architectures(model.state_dict()) == []


def test_the_authors_cut_long_captions_without_their_end_token(tiny: Architecture):
    """Sixteen places: start, then words; by the paper's protocol the last place is the end token."""
    long, short = "banana " * 40, "a banana"
    paper, authors = (tokenizer(tiny, protocol)([long, short]) for protocol in ("paper", "authors"))
    assert int(paper[0, -1]) == 49407
    assert int(authors[0, -1]) == 8922, "the token of banana"
    assert int(authors[0].argmax()) == 0, "the encoder pools at the start token"
    assert torch.equal(paper[0, :-1], authors[0, :-1])
    assert torch.equal(paper[1], authors[1])


# --- numbers that are none ------------------------------------------------------------------------------------------


@given(data=st.data(), value=st.sampled_from([math.nan, math.inf, -math.inf]), suffix=st.sampled_from([".pt", ".st"]))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_value_that_is_not_finite_anywhere_in_the_weights_is_refused(
    data: st.DataObject, value: float, suffix: str, model: nn.Module, tmp_path: Path
):
    """Parameters and BatchNorm's statistics alike, those that no measurement reads (the logit scale) too."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = data.draw(st.sampled_from([name for name, tensor in weights.items() if tensor.is_floating_point()]))
    place = data.draw(st.integers(0, weights[name].numel() - 1))
    weights[name].view(-1)[place] = value
    path = tmp_path / ("victim.pt" if suffix == ".pt" else "victim.safetensors")
    (torch.save if suffix == ".pt" else save_file)(weights, path)
    with pytest.raises(InvalidInput, match=f"victim.* holds values that are not finite, in {re.escape(name)};"):
        load_weights(path)
    assert not_finite(weights) == [name]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_finite_weights_of_any_precision_are_taken(dtype: torch.dtype, model: nn.Module, tmp_path: Path):
    torch.save({name: tensor.to(dtype) for name, tensor in model.state_dict().items()}, tmp_path / "victim.pt")
    assert load_weights(tmp_path / "victim.pt").keys() == model.state_dict().keys()


@pytest.mark.parametrize("row", [[math.nan, 1.0], [math.inf, 1.0], [0.0, 0.0], [1e30, 1e30], [1e-30, 0.0]])
def test_an_embedding_without_a_direction_is_refused(row: list[float]):
    """The last two overflow and underflow when they are squared, so that they could not be brought to unit norm."""
    with pytest.raises(FloatingPointError, match="1 of 3 image embeddings are not finite or have norm zero"):
        with_directions(torch.tensor([[3.0, 4.0], row, [0.0, 1e-6]]), "image embeddings")


# --- prompts --------------------------------------------------------------------------------------------------------

FRUITS = ("apple", "banana", "cherry", "dragon fruit")
LONG = "a picture that somebody took early in the morning on the way to the market of a {}"
BEHIND = "a photo of many {}s, which lie on a stall of the market of the old town on the river"


def test_a_template_that_the_context_cuts_before_the_name_is_refused(tiny: Architecture):
    """14 of the 18 tokens are kept, and the name is the last: all classes would have one weight row."""
    weights = tokenizer(tiny)([LONG.format(name) for name in FRUITS])
    assert len(weights.unique(dim=0)) == 1
    with pytest.raises(
        InvalidInput,
        match=r"template 'a picture that .* of a \{\}' with class 'apple' has 18 tokens, and context_length=16 keeps "
        "14 of them, which cuts it before the class's name ends; shorten",
    ):
        check_prompts(tiny, FRUITS, ("a photo of a {}.", LONG))


def test_a_template_that_is_cut_inside_a_name_is_refused(tiny: Architecture):
    """12 tokens stand before the name, so `apple` and `banana` fit and `dragon fruit` keeps only its first word."""
    template = "one two three four five six seven eight nine ten eleven twelve thirteen {}"
    check_prompts(tiny, FRUITS[:3], (template,))
    with pytest.raises(InvalidInput, match="with class 'dragon fruit' has 15 tokens, and context_length=16 keeps 14"):
        check_prompts(tiny, FRUITS, (template,))


def test_a_template_that_is_cut_behind_the_name_is_taken(tiny: Architecture):
    check_prompts(tiny, FRUITS, (BEHIND,))


def test_names_that_differ_in_what_is_cut_are_refused(tiny: Architecture):
    """Both prompts are `tree` and 13 times `tree` once they are cut to 14 tokens."""
    template = "{}" + " tree" * 13
    with pytest.raises(
        InvalidInput, match=r"classes 'tree' and 'tree tree' read the same under template .* once they are"
    ):
        check_prompts(tiny, ("tree", "tree tree"), (template,))


def test_names_that_the_tokeniser_cannot_tell_apart_are_refused(tiny: Architecture):
    with pytest.raises(InvalidInput, match="classes 'Apple' and 'apple' read the same to CLIP's tokeniser; rename one"):
        check_prompts(tiny, ("Apple", "pear", "apple"), ("a photo of a {}.",))


def test_under_the_authors_protocol_no_prompt_may_be_cut(tiny: Architecture):
    """Their tokeniser drops the end token of what it cuts, and the encoder then pools at the start token."""
    with pytest.raises(InvalidInput, match="under protocol='authors' a text that is cut loses its end token"):
        check_prompts(tiny, FRUITS, (BEHIND,), "authors")
    check_prompts(tiny, FRUITS, ("a photo of a {}.",), "authors")


def test_the_prompts_of_imagenet_fit_clips_context():
    for protocol in ("paper", "authors"):
        check_prompts(Architecture(name="RN50-quickgelu"), imagenet_class_names(), imagenet_templates(), protocol)


@given(name=st.text(min_size=1, max_size=60), after=st.text(max_size=80).filter(lambda text: not set(text) & set("{}")))
@settings(max_examples=100)
def test_prompts_that_pass_are_told_apart(name: str, after: str):
    """Whatever the names and templates: two classes whose prompts are let through never have the same tokens."""
    architecture, template, names = SmallCLIP().architecture(), "a {}" + after, ("apple", name)
    try:
        check_prompts(architecture, names, (template,))
    except InvalidInput:
        return
    first, second = tokenizer(architecture)([template.format(each) for each in names])
    assert name == "apple" or not torch.equal(first, second)
