"""Checkpoint files of CLIP models in the layouts that are known: their weights, and what they say of their making."""

import codecs
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sweeplab.clip_folders import checkpoint_file, folder_architecture, is_model_folder, with_open_clips_names
from sweeplab.clip_model import Architecture, build_unfilled
from sweeplab.specs import InvalidInput, first_line

CONTAINERS = ("state_dict", "model_state_dict", "model")
"""Under which training scripts put the weights."""

TEMPERATURE = "logit_scale"
"""A parameter that every CLIP has once, at its top. What stands before it stands before all names where a model was
saved from inside another: DistributedDataParallel, torch.compile, Lightning, a class of one's own."""

OPENAI_ENTRIES = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the weights; only theirs do."""


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The model's state dict from a checkpoint file, or from a folder of a model; never executes code from it.

    Accepts SweepLab's own checkpoints, open_clip's training checkpoints and those of CleanCLIP, attack-cleanclip,
    SafeCLIP and RoCLIP (`state_dict` beside `epoch`, `name` and `optimizer`), OpenAI's state dicts (float16, with
    `input_resolution`, `context_length` and `vocab_size` among the weights), transformers' CLIPModel (its ViTs), bare
    state dicts and .safetensors; the weights may stand under `CONTAINERS`, one inside the other, and carry the prefix
    of what the model was wrapped in.

    Returns:
        Tensors by open_clip's names, in the file's own precision.

    Raises:
        InvalidInput: if the file is missing, is no checkpoint, would need code to be executed, or holds values that are
            not finite.
    """
    content = _read_weights(Path(path))
    weights = {name: tensor for name, tensor in content.items() if name not in OPENAI_ENTRIES}
    _check_tensors(Path(path), weights)
    if names := not_finite(weights):
        raise InvalidInput(
            f"checkpoint {path} holds values that are not finite, in {_some(names)}; its training diverged or the file "
            "is damaged: give another checkpoint"
        )
    return weights


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity, buffers such as BatchNorm's statistics included."""
    # The extremes of a tensor that holds a NaN are NaN; finding them takes an eighth of the time of `isfinite().all()`.
    extremes = {name: torch.stack(torch.aminmax(tensor)) for name, tensor in weights.items() if tensor.numel()}
    return [name for name, pair in extremes.items() if not bool(pair.isfinite().all())]


def quick_gelu_of(path: str | Path) -> bool | None:
    """Whether a checkpoint was trained with QuickGELU, as far as the file tells; shapes cannot.

    Returns:
        True for OpenAI's layout; what a SweepLab checkpoint records, or the configuration of a model's folder; None for
        all others.
    """
    path = Path(path)
    own = checkpoint_architecture(path)
    if own is not None:
        return bool(own.resolved().get("quick_gelu", False))
    return True if set(OPENAI_ENTRIES) <= set(_read_weights(path)) else None


def check_activation(architecture: Architecture, path: str | Path) -> None:
    """Refuse an architecture whose activation is not the one that the checkpoint was trained with.

    Raises:
        InvalidInput: if the file tells, and the architecture says otherwise.
    """
    found, said = quick_gelu_of(path), bool(architecture.resolved().get("quick_gelu", False))
    if found is not None and found != said:
        words = {True: "QuickGELU", False: "GELU"}
        raise InvalidInput(
            f"checkpoint {path} was trained with {words[found]}, and {architecture.name or 'the architecture'} has "
            f"{words[said]}; choose the variant {'with' if found else 'without'} '-quickgelu' in its name"
        )


def checkpoint_architecture(path: Path) -> Architecture | None:
    """The architecture that a SweepLab checkpoint names, or a folder of a model describes; None for other files."""
    if is_model_folder(path):
        return folder_architecture(path)
    facts = checkpoint_facts(path)
    return Architecture(config=facts["architecture"]) if facts is not None else None


def checkpoint_facts(path: Path) -> dict[str, Any] | None:
    """What a SweepLab checkpoint says of its making (`Checkpoint.config`); None for other files."""
    if path.suffix == ".safetensors" or not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
        return None
    text = content.get("config") if isinstance(content, dict) else None
    try:
        facts = json.loads(text) if isinstance(text, str) else None
    except (json.JSONDecodeError, RecursionError):  # somebody else's idea of a configuration
        return None
    return facts if isinstance(facts, dict) and "architecture" in facts else None


def _read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint's state dict, OpenAI's numbers among them."""
    path = checkpoint_file(path)
    if not os.path.isfile(path):  # False too where it cannot be seen
        raise InvalidInput(f"checkpoint {path} does not exist; give the path of a .pt or .safetensors file")
    if (what := _something_else(path)) is not None:
        raise InvalidInput(f"checkpoint {path} is {what}")
    if path.suffix == ".safetensors":
        return _unwrapped(_load_safetensors(path))
    if _is_torchscript(path):
        raise InvalidInput(
            f"checkpoint {path} is a TorchScript archive, which is code; in a place that you trust, save its weights: "
            f"torch.save(torch.jit.load('{path.name}', map_location='cpu').state_dict(), 'weights.pt')"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise InvalidInput(f"checkpoint {path} {_why_unreadable(error)}") from error
    while isinstance(content, dict):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    is_dict = isinstance(content, dict) and bool(content)
    if not is_dict or not all(isinstance(name, str) and torch.is_tensor(v) for name, v in content.items()):
        raise InvalidInput(
            f"checkpoint {path} holds no state dict of tensors, neither bare nor under {', '.join(CONTAINERS)}"
        )
    return _unwrapped(content)


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the model's own names, whatever it was wrapped in when they were saved.

    Every CLIP has one temperature, so its name tells what stands before all names; what does not carry that belongs to
    a loss or another model beside it. Where there are several, nobody can tell which is meant.
    """
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}  # of compiled parts, too
    ends = [name for name in found if name.rpartition(".")[2] == TEMPERATURE]
    if len(ends) != 1:
        return with_open_clips_names(found)
    prefix = ends[0].removesuffix(TEMPERATURE)
    own = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    return with_open_clips_names(own)


def _check_tensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no dense arrays of numbers that a model computes with.

    Raises:
        InvalidInput: naming the first.
    """
    for name, tensor in weights.items():
        is_plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
        if not is_plain or tensor.is_complex() or "float8" in str(tensor.dtype):
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}".replace("torch.", "")
            raise InvalidInput(
                f"checkpoint {path}: {name} is no dense tensor of real numbers ({kind}); save the model's weights as "
                "float32 or float16"
            )


def _something_else(path: Path) -> str | None:
    """What a file is that is taken for a checkpoint and is none; None where nothing speaks against it."""
    with path.open("rb") as file:
        start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if not start:
        return "empty; write or copy it again"
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, which stands for the file; fetch the file itself with `git lfs pull`"
    # A .safetensors file begins with the length of its header, which may look like a sign or two.
    signs = (b"<!doctype", b"<html", b"<?xml") if path.suffix == ".safetensors" else (b"<", b'{"', b"{\n")
    if start.startswith(signs):
        return "a web page or a server's message, as failed downloads leave it; download it again"
    return None


def _why_unreadable(error: Exception) -> str:
    """What stands in the way where torch refuses a file: objects of code, or damage."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return "cannot be read: it is damaged, or torch.save did not write it; write or copy it again"
    name = found[1]
    what = "Python objects"
    if name.startswith(("torch.nn.", "open_clip.", "clip.", "transformers.")):
        what = "a whole pickled model"
    elif name == "argparse.Namespace":
        what = "a training script's options"
    return (
        f"cannot be read safely: beside tensors it holds {what} ({name}), and to read such objects can run any code; "
        "in a place where you trust it, save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InvalidInput(
            f"checkpoint {path} cannot be read as safetensors ({first_line(error)}); write or copy it again"
        ) from error


def load_model(architecture: Architecture, weights: dict[str, Tensor], origin: str) -> nn.Module:
    """A new model with these weights.

    Raises:
        InvalidInput: as `load_into`.
    """
    model = build_unfilled(architecture)
    load_into(model, weights, origin)
    return model


def load_into(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Copy weights into a model of the same architecture.

    Raises:
        InvalidInput: if names or shapes differ; the message names the first few of each.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    surplus = sorted(set(weights) - set(own))
    shapes = sorted(name for name in set(own) & set(weights) if own[name].shape != weights[name].shape)
    if missing or surplus or shapes:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"has unknown {_some(surplus)}"] if surplus else []
        parts += (
            [
                "other shapes: "
                + _some([f"{n} {tuple(weights[n].shape)} instead of {tuple(own[n].shape)}" for n in shapes])
            ]
            if shapes
            else []
        )
        raise InvalidInput(
            f"checkpoint {origin} is of another architecture: {'; '.join(parts)}; name the one it was trained with"
        )
    model.load_state_dict(weights)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
