"""Models as folders: open_clip's own, and Hugging Face's CLIPModel against its forward pass written out."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from sweeplab.clip_checkpoints import checkpoint_architecture, load_into, load_weights, quick_gelu_of
from sweeplab.clip_folders import (
    architecture_named,
    checkpoint_file,
    folder_architecture,
    hugging_face_files,
    is_model_folder,
    with_hugging_faces_names,
)
from sweeplab.clip_model import IMAGE_MEAN, IMAGE_STD, Architecture, as_clip, build, byte_pairs, tokenizer
from sweeplab.specs import InvalidInput
from sweeplab.worker.inputs import victim_model

TEXT = {
    **{"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 48},
    **{"max_position_embeddings": 16, "hidden_act": "quick_gelu"},
}
VISION = {
    **{"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64},
    **{"image_size": 32, "patch_size": 16, "hidden_act": "quick_gelu"},
}
CONFIG = {"model_type": "clip", "projection_dim": 20, "text_config": TEXT, "vision_config": VISION}


def hugging_face_weights() -> dict[str, Tensor]:
    """Random weights by the names and in the shapes of transformers' CLIPModel."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (49408, 24),
        "text_model.embeddings.position_embedding.weight": (16, 24),
        "text_projection.weight": (20, 24),
        "vision_model.embeddings.class_embedding": (32,),
        "vision_model.embeddings.patch_embedding.weight": (32, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": (5, 32),
        "visual_projection.weight": (20, 32),
    }
    norms = {"text_model.final_layer_norm": 24, "vision_model.pre_layrnorm": 32, "vision_model.post_layernorm": 32}
    linear: dict[str, tuple[int, int]] = {}
    for tower, config in (("text_model", TEXT), ("vision_model", VISION)):
        width, inner = config["hidden_size"], config["intermediate_size"]
        for layer in range(2):
            name = f"{tower}.encoder.layers.{layer}"
            norms |= {f"{name}.layer_norm1": width, f"{name}.layer_norm2": width}
            linear |= {f"{name}.self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            linear |= {f"{name}.mlp.fc1": (inner, width), f"{name}.mlp.fc2": (width, inner)}
    shapes |= {f"{name}.{part}": (width,) for name, width in norms.items() for part in ("weight", "bias")}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    stream = torch.Generator().manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape, generator=stream) for name, shape in shapes.items()}
    weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]  # of older files
    return weights


class Reference:
    """transformers' modeling_clip, written out: what its CLIPModel computes from these weights."""

    def __init__(self, weights: dict[str, Tensor], activation: str = "quick_gelu") -> None:
        self.weights, self.activation = weights, activation

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", torch.tensor(0.0))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5)

    def encoder(self, x: Tensor, tower: str, heads: int, mask: Tensor | float) -> Tensor:
        for layer in range(2):
            name = f"{tower}.encoder.layers.{layer}"
            h = self.norm(x, f"{name}.layer_norm1")
            q, k, v = (self.linear(h, f"{name}.self_attn.{part}_proj").unflatten(-1, (heads, -1)) for part in "qkv")
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5 + mask
            mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(-2)
            x = x + self.linear(mixed, f"{name}.self_attn.out_proj")
            h = self.linear(self.norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
            h = h * torch.sigmoid(1.702 * h) if self.activation == "quick_gelu" else F.gelu(h)
            x = x + self.linear(h, f"{name}.mlp.fc2")
        return x

    def image(self, pixels: Tensor) -> Tensor:
        patches = F.conv2d(pixels, self.weights["vision_model.embeddings.patch_embedding.weight"], stride=16)
        first = self.weights["vision_model.embeddings.class_embedding"].expand(len(pixels), 1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        x = self.norm(
            x + self.weights["vision_model.embeddings.position_embedding.weight"], "vision_model.pre_layrnorm"
        )
        x = self.encoder(x, "vision_model", 2, 0.0)
        return self.linear(self.norm(x[:, 0], "vision_model.post_layernorm"), "visual_projection")

    def text(self, tokens: Tensor) -> Tensor:
        x = self.weights["text_model.embeddings.token_embedding.weight"][tokens]
        x = x + self.weights["text_model.embeddings.position_embedding.weight"]
        mask = torch.full((16, 16), float("-inf")).triu(1)
        x = self.norm(self.encoder(x, "text_model", 3, mask), "text_model.final_layer_norm")
        return self.linear(x[torch.arange(len(x)), tokens.argmax(-1)], "text_projection")


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    processor = {"image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD), "resample": 3, "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file(hugging_face_weights(), folder / "model.safetensors")
    return folder


@pytest.fixture
def own(tiny: Architecture, tmp_path: Path) -> Path:
    """As open_clip's `push_to_hf_hub` writes a folder."""
    folder = tmp_path / "own"
    folder.mkdir()
    preprocess = {"mean": IMAGE_MEAN, "std": IMAGE_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    content = {"model_cfg": tiny.resolved(), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(build(tiny, seed=3).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def changed(file: Path, *place: str, value: Any) -> None:
    content = json.loads(file.read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    file.write_text(json.dumps(content))


def embedded(model: nn.Module, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return as_clip(model.eval()).encode_image(pixels), as_clip(model).encode_text(tokens)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_model_of_hugging_face_embeds_as_its_own_library_does(activation: str, hugging_face: Path):
    for tower in ("text_config", "vision_config"):
        changed(hugging_face / "config.json", tower, "hidden_act", value=activation)
    architecture = checkpoint_architecture(hugging_face)
    assert architecture is not None
    assert quick_gelu_of(hugging_face) == (activation == "quick_gelu")
    model, theirs = victim_model(architecture, hugging_face), Reference(hugging_face_weights(), activation)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = tokenizer(architecture)(["a banana", "an apple on the stall", "x" * 200])
    images, texts = embedded(model, pixels, tokens)
    assert_close(images, theirs.image(pixels), rtol=1e-4, atol=1e-5)
    assert_close(texts, theirs.text(tokens), rtol=1e-4, atol=1e-5)
    assert_close(as_clip(model).logit_scale.detach(), theirs.weights["logit_scale"])


def test_what_a_configuration_of_hugging_face_leaves_out_is_vit_b_32(hugging_face: Path):
    """openai/clip-vit-base-patch32 has transformers' defaults, and open_clip's name for it is known."""
    (hugging_face / "config.json").write_text(json.dumps({"model_type": "clip"}))
    architecture = checkpoint_architecture(hugging_face)
    assert architecture is not None
    ours, theirs = architecture.resolved(), Architecture(name="ViT-B-32-quickgelu")
    with torch.device("meta"):
        shapes = [
            {name: tensor.shape for name, tensor in build(one, seed=0).state_dict().items()}
            for one in (Architecture(config=ours), theirs)
        ]
    assert shapes[0] == shapes[1]
    assert (ours["quick_gelu"], ours["text_cfg"]["heads"], ours["vision_cfg"]["head_width"]) == (True, 8, 64)


def test_a_folder_of_open_clip_is_read_as_open_clip_reads_it(own: Path, tiny: Architecture):
    assert is_model_folder(own)
    architecture = checkpoint_architecture(own)
    assert architecture == Architecture(config=tiny.resolved())
    theirs = open_clip.create_model_and_transforms(f"local-dir:{own}")[0].eval()
    size = architecture.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokens = tokenizer(architecture)(["a banana", "an apple"])
    for a, b in zip(
        embedded(victim_model(architecture, own), pixels, tokens), embedded(theirs, pixels, tokens), strict=True
    ):
        assert torch.equal(a, b)


def test_the_file_in_a_folder_is_a_checkpoint_too(own: Path, hugging_face: Path, tiny: Architecture):
    assert checkpoint_file(own) == own / "open_clip_model.safetensors"
    assert checkpoint_file(checkpoint_file(own)) == checkpoint_file(own)
    architecture = checkpoint_architecture(hugging_face)
    assert architecture is not None
    load_into(build(architecture, seed=0), load_weights(checkpoint_file(hugging_face)), "the file")


def test_another_activation_than_the_folders_is_refused(own: Path, tiny: Architecture):
    other = Architecture(config={**tiny.resolved(), "quick_gelu": True})
    with pytest.raises(InvalidInput, match="was trained with GELU, and the architecture has QuickGELU"):
        victim_model(other, own)


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (("model_type",), "siglip", r"model_type='siglip'; .* CLIPModel \(clip\) alone can be read, which is a ViT"),
        (("text_config", "vocab_size"), 30522, "vocab_size=30522; CLIP's tokeniser has 49408 tokens"),
        (("text_config", "hidden_act"), "gelu", r"hidden_act=\['gelu', 'quick_gelu'\]; both towers"),
        (("vision_config", "layer_norm_eps"), 1e-6, "layer_norm_eps=1e-06; CLIP's is 1e-5"),
        (("vision_config", "hidden_size"), "wide", r"vision_config\.hidden_size='wide' must be a whole number"),
        (("vision_config", "num_hidden_layers"), 10**6, "describes no model that can be built: .* layers of a model"),
        (("text_config",), [1], r"text_config=\[1\] is no object"),
    ],
)
def test_other_models_of_hugging_face_are_refused_with_the_reason(place, value, match: str, hugging_face: Path):
    changed(hugging_face / "config.json", *place, value=value)
    with pytest.raises(InvalidInput, match=match):
        checkpoint_architecture(hugging_face)


@pytest.mark.parametrize(
    ("place", "value"),
    [(("mean",), [0.5, 0.5, 0.5]), (("resize_mode",), "squash"), (("interpolation",), "bilinear"), (("std",), "x")],
)
def test_a_model_that_wants_other_pixels_is_refused(place, value, own: Path, hugging_face: Path):
    changed(own / "open_clip_config.json", "preprocess_cfg", *place, value=value)
    with pytest.raises(InvalidInput, match=rf"says {place[0]}=.*images are prepared as CLIP's are"):
        checkpoint_architecture(own)
    changed(hugging_face / "preprocessor_config.json", "image_mean", value=[0.5, 0.5, 0.5])
    with pytest.raises(InvalidInput, match=r"preprocessor_config\.json says image_mean=\[0\.5, 0\.5, 0\.5\]"):
        checkpoint_architecture(hugging_face)


def test_a_folder_without_weights_or_of_nothing_is_named(own: Path, hugging_face: Path, tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"is a folder without open_clip_config.json or config.json"):
        load_weights(tmp_path)
    (own / "open_clip_model.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"but no open_clip_model\.safetensors or .*; copy it there"):
        load_weights(own)
    (hugging_face / "model.safetensors").rename(hugging_face / "model.safetensors.index.json")
    with pytest.raises(InvalidInput, match=r"weights in several parts .* save them as one file"):
        load_weights(hugging_face)
    (own / "open_clip_config.json").write_text("[")
    with pytest.raises(InvalidInput, match=r"open_clip_config\.json cannot be read as JSON"):
        checkpoint_architecture(own)


def test_weights_without_their_keys_are_refused(hugging_face: Path):
    weights = hugging_face_weights()
    weights.pop("text_model.encoder.layers.1.self_attn.k_proj.weight")
    save_file(weights, hugging_face / "model.safetensors")
    with pytest.raises(InvalidInput, match="but not its keys or values"):
        load_weights(hugging_face)


def test_an_architecture_is_named_by_a_file(own: Path, tiny: Architecture, tmp_path: Path):
    (tmp_path / "mine.json").write_text(json.dumps(tiny.resolved()))
    expected = Architecture(config=tiny.resolved())
    assert architecture_named(str(tmp_path / "mine.json")) == expected
    assert architecture_named(str(own / "open_clip_config.json")) == expected
    assert architecture_named("RN50-quickgelu") == Architecture(name="RN50-quickgelu")
    with pytest.raises(InvalidInput, match=r"none.json cannot be read \(No such file"):
        architecture_named(str(tmp_path / "none.json"))
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"mine\.json describes no model .*lacks embed_dim"):
        architecture_named(str(tmp_path / "mine.json"))


# --- written for transformers

VIT = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2, "mlp_ratio": 2.0},
    "text_cfg": {
        **{"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 3, "layers": 2, "mlp_ratio": 2.0},
    },
}


def write_for_transformers(folder: Path, config: dict[str, Any] = VIT) -> nn.Module:
    """A model with random weights, none of them at its initial zero, in the layout of `CLIPModel`."""
    architecture = Architecture(config=config)
    model = build(architecture, seed=5).eval()
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=stream)
    folder.mkdir()
    for name, text in hugging_face_files(architecture).items():
        (folder / name).write_text(text)
    save_file(with_hugging_faces_names(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_what_is_written_for_transformers_is_the_same_model_there_and_here(quick_gelu: bool, tmp_path: Path):
    model = write_for_transformers(tmp_path / "out", {**VIT, "quick_gelu": quick_gelu})
    architecture = folder_architecture(tmp_path / "out")
    again = victim_model(architecture, tmp_path / "out").state_dict()
    assert model.state_dict().keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == hugging_face_weights().keys() - {"vision_model.embeddings.position_ids"}
    theirs = Reference(weights, "quick_gelu" if quick_gelu else "gelu")
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = tokenizer(architecture)(["a banana", "an apple on the stall"])
    images, texts = embedded(model, pixels, tokens)
    assert_close(images, theirs.image(pixels), rtol=1e-4, atol=1e-5)
    assert_close(texts, theirs.text(tokens), rtol=1e-4, atol=1e-5)


def test_transformers_loads_what_is_written_for_it(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = write_for_transformers(tmp_path / "out")
    theirs, loading = transformers.CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    captions = ["a banana", "it's 20 % cheaper", "naïve café ÜBER", "x y z " * 20]
    tokens = tokenizer(Architecture(config=VIT))(captions)
    made = processor(text=captions, return_tensors="pt", padding="max_length", truncation=True)
    for ours, other in zip(tokens, made["input_ids"], strict=True):
        count = int(ours.argmax()) + 1  # what stands behind the end token plays no part
        assert torch.equal(ours[:count], other[:count])
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = theirs.eval()(pixel_values=pixels, **made)
    images, texts = embedded(model, pixels, tokens)
    assert_close(found.image_embeds, F.normalize(images, dim=-1), rtol=1e-4, atol=1e-5)
    assert_close(found.text_embeds, F.normalize(texts, dim=-1), rtol=1e-4, atol=1e-5)


def test_the_vocabulary_is_clips_in_its_order(tmp_path: Path):
    write_for_transformers(tmp_path / "out")
    vocabulary = json.loads((tmp_path / "out" / "vocab.json").read_text())
    merges = (tmp_path / "out" / "merges.txt").read_text().splitlines()
    assert sorted(vocabulary.values()) == list(range(49408))
    assert (vocabulary["banana</w>"], vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (
        *(byte_pairs()[0]["banana</w>"], 49406, 49407),
    )
    assert merges[:3] == ["#version: 0.2", "i n", "t h"]
    assert len(merges) == 1 + 48894


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"vision_cfg": {"layers": [1, 1, 1, 1], "patch_size": None}}, "is a ResNet, and transformers' CLIPModel is"),
        ({"vision_cfg": {"pool_type": "avg"}}, r"CLIPModel has no vision_cfg\.pool_type='avg'"),
        ({"text_cfg": {"no_causal_mask": True}}, r"has no text_cfg\.no_causal_mask=True"),
        ({"custom_text": True}, "has no custom_text=True"),
        ({"vision_cfg": {"image_size": [32, 48]}}, r"image_size=\[32, 48\].* images are square"),
        ({"text_cfg": {"vocab_size": 512}}, r"vocab_size=512.* CLIP's tokens are 49408"),
    ],
)
def test_what_has_no_such_form_is_refused_with_the_reason(change: dict[str, Any], match: str):
    config = {**VIT, **{name: {**VIT[name], **v} if isinstance(v, dict) else v for name, v in change.items()}}
    with pytest.raises(InvalidInput, match=rf"--format hf: .*{match}.*--format open_clip"):
        hugging_face_files(Architecture(config=config))


def test_fields_that_make_no_difference_to_a_trained_model_are_let_through():
    vision = {**VIT["vision_cfg"], "patch_dropout": 0.5}
    config = {**VIT, "vision_cfg": vision, "init_logit_scale": 3.0, "custom_text": False}
    assert hugging_face_files(Architecture(config=config))
    assert hugging_face_files(Architecture(name="ViT-L-14-quickgelu"))
