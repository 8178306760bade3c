"""Labellers: zero-shot models of any of open_clip's kinds, SigLIP among them, that say what class an image is of.

Their tokeniser, and the way in which they want their images prepared, come from the model's own files. Victims are of
CLIP's own kinds alone (`Architecture`), which all share both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sweeplab.clip_checkpoints import checkpoint_architecture, load_into, load_weights, quick_gelu_of
from sweeplab.clip_folders import OPEN_CLIP, json_object
from sweeplab.clip_model import IMAGE_MEAN, IMAGE_STD, any_config, as_clip, build_any, own_tokenizer
from sweeplab.specs import InvalidInput

SQUASHES = {"shortest": False, "squash": True}
"""Whether a way of resizing ignores the aspect ratio."""
CLIPS_OWN = {"mean": IMAGE_MEAN, "std": IMAGE_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
"""open_clip's defaults, which a configuration need not repeat."""


@dataclass(frozen=True)
class Labeller:
    """A model in evaluation mode, and what it takes."""

    model: nn.Module
    tokenize: Callable[[list[str]], Tensor]
    """List of texts -> (N, context_length) int64."""
    num_tokens: int
    """Of its vocabulary."""
    image_size: int
    """Side of the square image, pixels."""
    squash: bool
    """Whether all of an image is made square; else its middle is taken. See `load_image`."""
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]

    @property
    def scale(self) -> float:
        """1 / temperature."""
        return float(as_clip(self.model).logit_scale.exp())

    @torch.inference_mode()
    def embed(self, pixels: Tensor) -> Tensor:
        """(B, D) features, not of unit norm, of (B, 3, S, S) uint8 on the model's device."""
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))
        return as_clip(self.model).encode_image((pixels.float() / 255 - mean) / std).float()


def labeller_at(path: Path, architecture: str | None = None) -> Labeller:
    """A model from local files; nothing is downloaded.

    Args:
        path: a folder of open_clip's (`local-dir:`) or of transformers' CLIPModel, or a file of weights.
        architecture: open_clip's name, or a .json file in the layout of its model_configs or of a model's folder, for
            weights that do not say it. The files of a tokeniser lie beside the .json file, else beside the weights.

    Raises:
        InvalidInput: if files are lacking or cannot be read, weights are of another architecture, or a model that is
            none of CLIP's own does not say how its images are prepared, or says what is not known here.
    """
    if not path.exists():
        raise InvalidInput(f"model {path} does not exist; give a model's folder, or a file of weights")
    config, preprocessing, folder = _described(path, architecture)
    prepared = _checked_preprocessing(config, preprocessing, path)
    if not path.is_dir() and quick_gelu_of(path) not in (None, bool(config.get("quick_gelu", False))):
        raise InvalidInput(
            f"checkpoint {path} was trained with the other activation than {architecture or 'its architecture'} has; "
            "choose the variant with or without '-quickgelu' in its name"
        )
    tokenize, model, weights = own_tokenizer(config, folder), build_any(config), load_weights(path)
    for name in ("logit_scale", "logit_bias"):  # numbers, or lists of one
        if name in weights and (own := getattr(model, name, None)) is not None and weights[name].numel() == 1:
            weights[name] = weights[name].reshape(own.shape)
    load_into(model, weights, str(path))
    size = config["vision_cfg"].get("image_size", 224)
    return Labeller(
        model,
        tokenize,
        num_tokens=int(config["text_cfg"].get("vocab_size", 49408)),
        image_size=int(size[0] if isinstance(size, (list, tuple)) else size),
        squash=SQUASHES[prepared["resize_mode"]],
        mean=tuple(prepared["mean"]),
        std=tuple(prepared["std"]),
    )


def _described(path: Path, architecture: str | None) -> tuple[dict[str, Any], Any, Path]:
    """Configuration of a model, how its images are prepared, and the folder with the files of its tokeniser."""
    beside = path if path.is_dir() else path.parent
    if architecture is not None and architecture.endswith(".json"):
        file, beside = Path(architecture), Path(architecture).parent
    elif architecture is not None:
        return any_config(architecture), None, beside
    elif (path / OPEN_CLIP).is_file():
        file = path / OPEN_CLIP
    else:
        found = checkpoint_architecture(path)
        if found is None:
            raise InvalidInput(f"{path} does not say its architecture; give --architecture NAME or FILE.json")
        return found.resolved(), CLIPS_OWN, beside
    content = json_object(file)
    config = content.get("model_cfg", content)
    towers = [config.get(name) for name in ("vision_cfg", "text_cfg")] if isinstance(config, dict) else [None]
    if not all(isinstance(tower, dict) for tower in towers):
        raise InvalidInput(f"{file} describes no model: it lacks vision_cfg or text_cfg; copy it again")
    return config, content.get("preprocess_cfg"), beside


def _checked_preprocessing(config: Mapping[str, Any], preprocessing: Any, path: Path) -> dict[str, Any]:
    """How images are prepared.

    Raises:
        InvalidInput: if it is not known.
    """
    if preprocessing is None:
        is_clips = not config["text_cfg"].get("hf_tokenizer_name") and "timm_model_name" not in config["vision_cfg"]
        if not is_clips:
            raise InvalidInput(
                f"{path}: a model with towers or a tokeniser of another library, and nothing says how its images are "
                f"prepared; give the folder with its {OPEN_CLIP}, which has a `preprocess_cfg`"
            )
        preprocessing = {}
    if not isinstance(preprocessing, dict):
        raise InvalidInput(f"{path}: preprocess_cfg={preprocessing!r} is no object; copy it again")
    prepared = CLIPS_OWN | {name: value for name, value in preprocessing.items() if value is not None}
    for name in ("mean", "std"):
        values = prepared[name]
        numbers = isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)
        if not numbers or len(values) != 3:
            raise InvalidInput(f"{path}: preprocess_cfg.{name}={values!r}; three numbers are needed, one a channel")
    if prepared["interpolation"] != "bicubic" or prepared["resize_mode"] not in SQUASHES:
        raise InvalidInput(
            f"{path} wants its images resized with interpolation={prepared['interpolation']!r}, "
            f"resize_mode={prepared['resize_mode']!r}; known: bicubic, {' or '.join(SQUASHES)}"
        )
    return prepared
