"""Folders of CLIP models: open_clip's `local-dir:` layout and Hugging Face's `CLIPModel`, as a configuration and a file
of weights, read and written; and the configuration of an architecture in a file."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sweeplab.clip_model import (
    IMAGE_MEAN,
    IMAGE_STD,
    LOCAL_CONFIG,
    LOCAL_WEIGHTS,
    Architecture,
    byte_pairs,
    unusual_fields,
    with_defaults,
)
from sweeplab.specs import InvalidInput

OPEN_CLIP, HUGGING_FACE, PREPROCESSOR = LOCAL_CONFIG, "config.json", "preprocessor_config.json"
WEIGHTS = {
    OPEN_CLIP: (LOCAL_WEIGHTS, "open_clip_pytorch_model.bin"),
    HUGGING_FACE: ("model.safetensors", "pytorch_model.bin"),
}
"""Names of the file of weights beside each configuration, the one that is taken first."""

TEXT_DEFAULTS: dict[str, Any] = {
    **{"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12},
    **{"num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}
VISION_DEFAULTS: dict[str, Any] = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}
"""Of transformers' CLIPTextConfig and CLIPVisionConfig: its files leave out what is as here."""

HUGGING_FACE_NAMES = (
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
"""Parts of names in transformers' CLIPModel and in open_clip."""
TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
"""Linear layers there, matrices that features are multiplied with here."""
QUERY = re.compile(r"\.self_attn\.q_proj\.(weight|bias)$")


def is_model_folder(path: Path) -> bool:
    """Whether a path is a folder that holds the configuration of a model."""
    return any((path / name).is_file() for name in WEIGHTS)


def checkpoint_file(path: Path) -> Path:
    """The file of weights that a path names: itself, or that of a folder of a model.

    Raises:
        InvalidInput: if the folder holds none, or several parts of one.
    """
    if not path.is_dir():
        return path
    kind = next((name for name in WEIGHTS if (path / name).is_file()), None)
    if kind is None:
        raise InvalidInput(
            f"checkpoint {path} is a folder without {OPEN_CLIP} or {HUGGING_FACE}; give a .pt or .safetensors file, or "
            "a folder that open_clip (local-dir:) or transformers' CLIPModel has saved"
        )
    found = next((path / name for name in WEIGHTS[kind] if (path / name).is_file()), None)
    if found is None:
        parts = f"; weights in several parts ({WEIGHTS[kind][0]}.index.json) are not read: save them as one file"
        raise InvalidInput(
            f"checkpoint {path} has {kind}, but no {' or '.join(WEIGHTS[kind])}"
            + (parts if (path / f"{WEIGHTS[kind][0]}.index.json").is_file() else "; copy it there")
        )
    return found


def folder_architecture(folder: Path) -> Architecture:
    """The architecture that a folder's configuration describes.

    Raises:
        InvalidInput: if it is none of CLIP's own, such as another library's text tower, or images are prepared for it
            in another way than CLIP's, which all measurements take.
    """
    if (folder / OPEN_CLIP).is_file():
        file = folder / OPEN_CLIP
        content = json_object(file)
        _check_preprocessing(content.get("preprocess_cfg", {}), file, "mean", "std")
        return _architecture(content, file)
    config, file = json_object(folder / HUGGING_FACE), folder / HUGGING_FACE
    if (folder / PREPROCESSOR).is_file():
        _check_preprocessing(json_object(folder / PREPROCESSOR), folder / PREPROCESSOR, "image_mean", "image_std")
    return _described(_from_hugging_face(config, file), file)


def architecture_named(text: str) -> Architecture:
    """An architecture by open_clip's name, or by a file in the layout of its model_configs or of a model's folder.

    Raises:
        InvalidInput: if the name is unknown, the file cannot be read, or no model can be made of it.
    """
    if not text.endswith(".json"):
        return Architecture(name=text)
    return _architecture(json_object(Path(text)), Path(text))


def _architecture(content: dict[str, Any], file: Path) -> Architecture:
    return _described(content.get("model_cfg", content), file)


def _described(config: Any, file: Path) -> Architecture:
    try:
        return Architecture(config=config)
    except InvalidInput as error:
        raise InvalidInput(f"{file} describes no model that can be built: {error}") from None


def json_object(file: Path) -> dict[str, Any]:
    """What a configuration's file holds.

    Raises:
        InvalidInput: if it cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(
            f"{file} cannot be read ({error.strerror}); give the model's configuration (a relative path starts from "
            "the folder in which the command is started)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"{file} holds no JSON object; give the configuration of a model")
    return content


def _check_preprocessing(config: Any, file: Path, mean: str, std: str) -> None:
    """Refuse a model that wants its pixels otherwise than CLIP's: its numbers would be wrong, unseen."""
    expected = {mean: IMAGE_MEAN, std: IMAGE_STD, "interpolation": "bicubic", "resize_mode": "shortest", "resample": 3}
    for name, wanted in expected.items():
        found = config.get(name, wanted) if isinstance(config, dict) else config
        same = found == wanted
        if isinstance(wanted, tuple):
            numbers = isinstance(found, (list, tuple)) and all(isinstance(one, (int, float)) for one in found)
            same = numbers and len(found) == 3 and all(abs(a - b) < 1e-4 for a, b in zip(found, wanted, strict=True))
        if not same:
            raise InvalidInput(
                f"{file} says {name}={found!r}, and images are prepared as CLIP's are, with {wanted!r}; give a model "
                "that was trained so"
            )


def _from_hugging_face(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """open_clip's configuration of a `CLIPModel`."""
    if config.get("model_type") != "clip":
        raise InvalidInput(
            f"{file} is of model_type={config.get('model_type')!r}; of Hugging Face's models CLIPModel (clip) alone "
            "can be read, which is a ViT: give an open_clip checkpoint of the others"
        )
    towers = {}
    for name, defaults in (("text_config", TEXT_DEFAULTS), ("vision_config", VISION_DEFAULTS)):
        given = config.get(name) or {}
        if not isinstance(given, dict):
            raise InvalidInput(f"{file}: {name}={given!r} is no object; save the model again")
        towers[name] = {key: given.get(key, value) for key, value in defaults.items()}
        whole = [key for key, value in defaults.items() if isinstance(value, int)]
        if bad := [key for key in whole if not isinstance(towers[name][key], int) or towers[name][key] < 1]:
            raise InvalidInput(f"{file}: {name}.{bad[0]}={towers[name][bad[0]]!r} must be a whole number from 1")
    text, vision = towers["text_config"], towers["vision_config"]
    _check_towers(text, vision, file)
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": text["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }


def _check_towers(text: dict[str, Any], vision: dict[str, Any], file: Path) -> None:
    """Refuse what open_clip's CLIP cannot express."""
    activations = {text["hidden_act"], vision["hidden_act"]}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        raise InvalidInput(f"{file}: hidden_act={sorted(map(str, activations))}; both towers need quick_gelu, or gelu")
    if text["vocab_size"] != TEXT_DEFAULTS["vocab_size"]:
        raise InvalidInput(f"{file}: vocab_size={text['vocab_size']}; CLIP's tokeniser has 49408 tokens")
    for tower in (text, vision):
        if tower["layer_norm_eps"] != 1e-5:
            raise InvalidInput(f"{file}: layer_norm_eps={tower['layer_norm_eps']!r}; CLIP's is 1e-5")


def with_open_clips_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `CLIPModel` by open_clip's names, queries, keys and values in one matrix; others as they are."""
    if "vision_model.embeddings.patch_embedding.weight" not in weights:
        return dict(weights)
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in TRANSPOSED:
            found[TRANSPOSED[name]] = tensor.t().contiguous()
        elif QUERY.search(name):
            three = [weights.get(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            if any(one is None for one in three):
                raise InvalidInput(f"the checkpoint has {name}, but not its keys or values; copy it again")
            where = QUERY.sub(r".attn.in_proj_\1", name)
            found[_renamed(where)] = torch.cat([one for one in three if one is not None])
        elif not re.search(r"\.(k_proj|v_proj)\.|\.position_ids$", name):
            found[_renamed(name)] = tensor
    return found


def _renamed(name: str) -> str:
    for theirs, ours in HUGGING_FACE_NAMES:
        name = name.replace(theirs, ours)
    return name


# --- written for transformers


def hugging_face_files(architecture: Architecture) -> dict[str, str]:
    """What lies beside the weights in a folder that transformers loads as CLIPModel and CLIPProcessor, by file name.

    Raises:
        InvalidInput: if that has no such model: it is always a ViT, without anything that CLIP's own does not have.
    """
    vision, text = with_defaults(architecture)
    name, remedy = architecture.name or "the architecture", "take open_clip's layout, --format open_clip"
    if not isinstance(vision["layers"], int):
        raise InvalidInput(f"--format hf: {name} is a ResNet, and transformers' CLIPModel is always a ViT; {remedy}")
    size = vision["image_size"] if isinstance(vision["image_size"], int) else set(vision["image_size"])
    if unusual := unusual_fields(architecture):
        raise InvalidInput(f"--format hf: transformers' CLIPModel has no {', '.join(unusual)} ({name}); {remedy}")
    if (isinstance(size, set) and len(size) > 1) or text["vocab_size"] != TEXT_DEFAULTS["vocab_size"]:
        raise InvalidInput(
            f"--format hf: {name} has image_size={vision['image_size']}, vocab_size={text['vocab_size']}; of "
            f"transformers' CLIPModel images are square and CLIP's tokens are {TEXT_DEFAULTS['vocab_size']}; {remedy}"
        )
    side = size if isinstance(size, int) else size.pop()
    vocabulary, merges = byte_pairs()
    ends = ("<|startoftext|>", "<|endoftext|>")  # its names; they are the last two, as in open_clip
    numbers = dict(zip([*list(vocabulary)[: -len(ends)], *ends], vocabulary.values(), strict=True))
    files = {
        HUGGING_FACE: _to_hugging_face(architecture, vision | {"image_size": side}, text),
        PREPROCESSOR: {
            "image_processor_type": "CLIPImageProcessor",
            **{"do_convert_rgb": True, "do_resize": True, "size": {"shortest_edge": side}, "resample": 3},
            **{"do_center_crop": True, "crop_size": {"height": side, "width": side}},
            **{"do_rescale": True, "rescale_factor": 1 / 255},
            **{"do_normalize": True, "image_mean": IMAGE_MEAN, "image_std": IMAGE_STD},
        },
        "tokenizer_config.json": {
            **{"tokenizer_class": "CLIPTokenizer", "model_max_length": text["context_length"], "do_lower_case": True},
            **{"bos_token": ends[0], "eos_token": ends[1], "unk_token": ends[1], "pad_token": ends[1]},
        },
        "vocab.json": numbers,
    }
    texts = {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in files.items()}
    return texts | {"merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n"}


def _to_hugging_face(architecture: Architecture, vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_from_hugging_face`."""
    width, activation = architecture.resolved()["embed_dim"], architecture.resolved().get("quick_gelu", False)
    shared = {"hidden_act": "quick_gelu" if activation else "gelu", "projection_dim": width, "layer_norm_eps": 1e-5}
    start, end = TEXT_DEFAULTS["vocab_size"] - 2, TEXT_DEFAULTS["vocab_size"] - 1
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": width,
        "text_config": {
            **{"model_type": "clip_text_model", **shared},
            **{"vocab_size": text["vocab_size"], "max_position_embeddings": text["context_length"]},
            **{"hidden_size": text["width"], "intermediate_size": int(text["width"] * text["mlp_ratio"])},
            **{"num_hidden_layers": text["layers"], "num_attention_heads": text["heads"]},
            **{"bos_token_id": start, "eos_token_id": end, "pad_token_id": end},
        },
        "vision_config": {
            **{"model_type": "clip_vision_model", **shared},
            **{"image_size": vision["image_size"], "patch_size": vision["patch_size"], "num_channels": 3},
            **{"hidden_size": vision["width"], "intermediate_size": int(vision["width"] * vision["mlp_ratio"])},
            **{"num_hidden_layers": vision["layers"]},
            **{"num_attention_heads": vision["width"] // vision["head_width"]},
        },
    }


def with_hugging_faces_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `with_open_clips_names`: open_clip's weights of a ViT by the names of transformers' CLIPModel."""
    theirs = {ours: name for name, ours in TRANSPOSED.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in theirs:
            found[theirs[name]] = tensor.t().contiguous()
        elif ".attn.in_proj_" in name:
            place, kind = _renamed_back(name).split(".attn.in_proj_")
            for part, one in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{place}.self_attn.{part}_proj.{kind}"] = one.clone()
        else:
            found[_renamed_back(name)] = tensor
    return found


def _renamed_back(name: str) -> str:
    # The longest first: the text tower's names are ends of the image tower's.
    for theirs, ours in sorted(HUGGING_FACE_NAMES, key=lambda pair: -len(pair[1])):
        name = name.replace(ours, theirs)
    return name
