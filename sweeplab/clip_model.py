"""The only door to open_clip: architectures, models, tokens, templates and class names."""

import copy
import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, cast
from typing import Protocol as Interface

import ftfy
import open_clip
import regex  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import Bottleneck
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, TextTransformer
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sweeplab.protocol import Protocol
from sweeplab.specs import InvalidInput, Spec, first_line

IMAGE_MEAN: tuple[float, float, float] = open_clip.OPENAI_DATASET_MEAN
"""Per-channel mean of CLIP's pixel normalisation, pixels in [0, 1]."""
IMAGE_STD: tuple[float, float, float] = open_clip.OPENAI_DATASET_STD
"""Per-channel standard deviation of CLIP's pixel normalisation."""
MAX_LOG_SCALE = math.log(100)
"""The logarithm of the largest logit scale; Radford et al. 2021, Sec. 2.5 clip the scale at 100."""


FOREIGN_TEXT = frozenset({"hf_model_name", "hf_tokenizer_name"})
"""Entries of a text tower that is another library's."""


class Architecture(Spec):
    """An open_clip architecture, by name or by an own configuration in open_clip's JSON layout."""

    name: str | None = None
    """A name from `open_clip.list_models()`; the papers' RN50 is `RN50-quickgelu`."""
    config: dict[str, Any] | None = None
    """`embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`: the content of one of open_clip's model_configs files."""

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: dict[str, Any] | None) -> dict[str, Any] | None:
        if config is None:
            return None
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
        if missing:
            raise ValueError(f"config lacks {', '.join(sorted(missing))}")
        try:
            text = json.dumps(config, allow_nan=False, ensure_ascii=False, sort_keys=True)
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"config is no JSON object ({error}); give finite numbers, texts and lists") from None
        _check_buildable(text)
        plain: dict[str, Any] = json.loads(text)
        return plain

    @model_validator(mode="after")
    def _check(self) -> "Architecture":
        if (self.name is None) == (self.config is None):
            raise ValueError("give either `name` (an open_clip model) or `config` (its own layout), not both")
        if self.name is not None and self.name not in open_clip.list_models():
            raise ValueError(f"unknown architecture name={self.name!r}; {_suggest(self.name)}")
        if self.context_length < 3:
            raise ValueError(
                f"context_length={self.context_length} leaves no token of a text between its start and end; at least 3"
            )
        foreign = FOREIGN_TEXT & set(self.resolved()["text_cfg"])
        if foreign or "multimodal_cfg" in self.resolved():
            raise ValueError(
                f"{self.name or 'config'} has a text tower or tokeniser of another library; "
                "choose an architecture with CLIP's own (RN50-quickgelu, ViT-B-32-quickgelu, ...)"
            )
        return self

    def resolved(self) -> dict[str, Any]:
        """The full configuration in open_clip's layout."""
        if self.config is not None:
            return copy.deepcopy(self.config)
        config: dict[str, Any] = open_clip.get_model_config(self.name)
        return config

    @property
    def image_size(self) -> int:
        """Side of the square input image, pixels."""
        return _image_size(self.resolved())

    @property
    def context_length(self) -> int:
        """Tokens of a text input."""
        return _context_length(self.resolved())


LARGEST_SIZE, MOST_LAYERS = 100_000, 200
"""Of a number in an own configuration: widths, pixels, tokens, words; and of layers, whose modules are made to check
it."""


@lru_cache(maxsize=16)
def _check_buildable(text: str) -> None:
    """Refuse a configuration of which open_clip makes no model; none takes memory here.

    Args:
        text: the configuration as JSON.

    Raises:
        ValueError: with open_clip's own reason.
    """
    config = json.loads(text)
    for name in ("vision_cfg", "text_cfg"):
        if not isinstance(config[name], dict):
            raise ValueError(f"config.{name}={config[name]!r} is no object; give the sizes of that tower by name")
    layers = [config[name].get("layers") for name in ("vision_cfg", "text_cfg")]
    for values, most, what in ((layers, MOST_LAYERS, "layers"), (config, LARGEST_SIZE, "sizes")):
        large = next((number for number in _numbers(values) if abs(number) > most), None)
        if large is not None:
            raise ValueError(f"config holds {str(large)[:24]}, and {what} of a model are at most {most}")
    if any(name in config["text_cfg"] for name in FOREIGN_TEXT) or "multimodal_cfg" in config:
        return  # is refused for that
    try:
        _on_meta(config)
        sizes = (config["embed_dim"], _image_size(config), _context_length(config))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"open_clip makes no model of config ({type(error).__name__}: {first_line(error)}); give the content of "
            "one of its model_configs files"
        ) from None
    if not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"embed_dim, image_size, context_length={sizes} in config must be whole numbers from 1")


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value."""
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)
    elif isinstance(value, (int, float)):
        yield value


def _image_size(config: dict[str, Any]) -> int:
    size = config["vision_cfg"].get("image_size", 224)
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _context_length(config: dict[str, Any]) -> int:
    return int(config["text_cfg"].get("context_length", 77))


Size = Annotated[int, Field(ge=1, le=4096)]


class SmallCLIP(Spec):
    """Sizes of a small ModifiedResNet CLIP for experiments without a GPU."""

    image_size: int = Field(default=48, ge=16, le=4096)
    layers: tuple[Size, Size, Size, Size] = (1, 1, 1, 1)
    width: Size = 16
    head_width: Size = 32
    embed_dim: Size = 64
    text_width: Size = 64
    text_layers: Size = 2
    text_heads: Size = 2
    context_length: Size = 16

    def architecture(self) -> Architecture:
        """As an architecture that open_clip builds."""
        return Architecture(
            config={
                "embed_dim": self.embed_dim,
                "quick_gelu": False,
                "vision_cfg": {
                    "image_size": self.image_size,
                    "layers": list(self.layers),
                    "width": self.width,
                    "head_width": self.head_width,
                    "patch_size": None,
                },
                "text_cfg": {
                    "context_length": self.context_length,
                    "vocab_size": 49408,
                    "width": self.text_width,
                    "heads": self.text_heads,
                    "layers": self.text_layers,
                },
            }
        )


def _suggest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, open_clip.list_models(), n=4)
    return f"did you mean {', '.join(close)}?" if close else "open_clip.list_models() lists the known ones"


def build(architecture: Architecture, seed: int) -> nn.Module:
    """A randomly initialised model; the same seed gives the same weights, and no other random stream moves.

    Unlike the authors' code, weights make no detour through float16 and nothing is downloaded.
    """
    config = architecture.resolved()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' streams too
        return _make(config).train()


class _NoInitialValues(TorchFunctionMode):
    """Leaves `torch.nn.init` out: nine tenths of the time in which a ResNet-50 is made."""

    def __torch_function__(self, function: Any, types: Any, values: Any = (), named: Any = None) -> Any:
        """Call the function, or give back the tensor that it was to fill."""
        if getattr(function, "__module__", None) == "torch.nn.init":
            return named["tensor"]
        return function(*values, **(named or {}))


def build_unfilled(architecture: Architecture) -> nn.Module:
    """A model whose parameters hold what happened to be in memory, for a state dict that replaces every one of them."""
    with _NoInitialValues():
        return build(architecture, seed=0)


def _make(config: dict[str, Any]) -> nn.Module:
    """open_clip's model of a configuration, freshly initialised from the global random stream."""
    made = dict(config)
    make = open_clip.CustomTextCLIP if made.pop("custom_text", False) else open_clip.CLIP
    make = open_clip.CoCa if "multimodal_cfg" in made else make
    model: nn.Module = make(**made)
    return model


SIZES = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"},
    "text_cfg": {"layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size"},
}
"""Fields of the two towers that say how large they are, and not what is computed."""

TRAINED_WITH = {"patch_dropout", "init_logit_scale"}
"""Fields that make no difference to a trained model."""


def unusual_fields(architecture: Architecture) -> list[str]:
    """What of a configuration makes the model another one than CLIP's own with a ViT, beside sizes and activation."""
    config = architecture.resolved()
    found = [f"{name}={value!r}" for name, value in config.items() if value and name not in {"embed_dim", "quick_gelu"}]
    found = [text for text in found if text.partition("=")[0] not in {*SIZES, *TRAINED_WITH}]
    for tower, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        usual = {field.name: field.default for field in dataclasses.fields(kind)}
        other = {name: value for name, value in config[tower].items() if name not in {*SIZES[tower], *TRAINED_WITH}}
        found += [f"{tower}.{name}={value!r}" for name, value in other.items() if value != usual.get(name)]
    return found


def build_any(config: Mapping[str, Any]) -> nn.Module:
    """A model of any of open_clip's kinds, towers of timm and CoCa among them, in evaluation mode; downloads nothing.

    Victims are CLIP's own kinds alone, see `Architecture`; this is for models that only look at images.

    Args:
        config: in the layout of open_clip's model_configs.

    Raises:
        InvalidInput: if open_clip makes no model of it, or its text tower is one of transformers', whose configuration
            would have to be downloaded.
    """
    made = copy.deepcopy(dict(config))
    try:
        if "hf_model_name" in made["text_cfg"]:
            raise InvalidInput(
                f"text_cfg.hf_model_name={made['text_cfg']['hf_model_name']!r} is a tower of transformers, whose "
                "configuration would be downloaded; give a model with a text tower of open_clip's"
            )
        if "timm_model_name" in made["vision_cfg"]:
            made["vision_cfg"]["timm_model_pretrained"] = False
        with torch.random.fork_rng(devices=[]):
            model = _make(made)
    except InvalidInput:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"open_clip makes no model of the configuration ({type(error).__name__}: {first_line(error)}); give the "
            "content of one of its model_configs files"
        ) from None
    return model.eval()


def any_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of that name, of whatever kind.

    Raises:
        InvalidInput: if there is none.
    """
    if name not in open_clip.list_models():
        raise InvalidInput(f"unknown architecture name={name!r}; {_suggest(name)}")
    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def own_tokenizer(config: Mapping[str, Any], folder: Path) -> Callable[[list[str]], Tensor]:
    """The tokeniser that a configuration names, from local files: list of texts -> (N, context_length) int64.

    Args:
        config: in the layout of open_clip's model_configs.
        folder: that holds the tokeniser's files, where it is none of open_clip's own.

    Raises:
        InvalidInput: if there are no such files, or transformers, which reads them, is not installed.
    """
    text, context_length = config["text_cfg"], _context_length(dict(config))
    options = dict(text.get("tokenizer_kwargs") or {})
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(context_length=context_length, **options)
    try:
        return HFTokenizer(
            folder,
            context_length=context_length,
            tokenizer_mode=text.get("tokenizer_mode"),
            # Whatever a folder of somebody else's asks for: it brings no code, and nothing is downloaded.
            **{**options, "trust_remote_code": False, "local_files_only": True},
        )
    except ImportError as error:
        raise InvalidInput(
            f"the tokeniser {text['hf_tokenizer_name']!r} is read by transformers, which is not installed ({error}); "
            "pip install transformers"
        ) from None
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"{folder} holds no tokeniser that can be read ({first_line(error)}); copy the model's tokenizer.json and "
            "tokenizer_config.json there"
        ) from None


def num_parameters(architecture: Architecture) -> int:
    """Parameters of the model, counted without making any."""
    return sum(parameter.numel() for parameter in _without_weights(architecture_json(architecture)).parameters())


def with_defaults(architecture: Architecture) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the image and of the text tower, open_clip's defaults included."""
    config = architecture.resolved()
    vision, text = open_clip.CLIPVisionCfg(**config["vision_cfg"]), open_clip.CLIPTextCfg(**config["text_cfg"])
    return dataclasses.asdict(vision), dataclasses.asdict(text)


def has_batch_norm(architecture: Architecture) -> bool:
    """Whether the model has BatchNorm layers, as CLIP's ResNets have; a ViT has none."""
    modules = _without_weights(architecture_json(architecture)).modules()
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)


BLOCKS = (ResidualAttentionBlock, CustomResidualAttentionBlock, Bottleneck)
"""What the towers of CLIP's transformers and ResNets repeat."""


def blocks(model: nn.Module) -> list[nn.Module]:
    """Those of both towers, none inside another."""
    return [module for module in model.modules() if isinstance(module, BLOCKS)]


def has_image_blocks(architecture: Architecture) -> bool:
    """Whether the image tower is made of `BLOCKS`, as CLIP's own are; timm's are not."""
    return bool(blocks(_without_weights(architecture_json(architecture)).get_submodule("visual")))


@lru_cache(maxsize=8)
def _without_weights(architecture: str) -> nn.Module:
    """The model of a resolved architecture, given as JSON, of parameters that have shapes and no memory."""
    return _on_meta(json.loads(architecture))


def _on_meta(config: dict[str, Any]) -> nn.Module:
    with torch.device("meta"), _NoInitialValues():
        return _make(config)


def with_directions(embeddings: Tensor, what: str, *, least: float = 1e-12) -> Tensor:
    """The embeddings as they are, each of which has a direction; without one, an argmax over its scores is a class all
    the same.

    Args:
        embeddings: (..., D), any norm.
        what: names them in the message.
        least: norms up to this count as zero; `torch.nn.functional.normalize` brings smaller ones not to unit norm.

    Raises:
        FloatingPointError: if the norm of one is zero or not finite.
    """
    bad = ~have_direction(embeddings, least=least)
    if bool(bad.any()):
        raise FloatingPointError(f"{int(bad.sum())} of {bad.numel()} {what} are not finite or have norm zero")
    return embeddings


def have_direction(embeddings: Tensor, *, least: float = 1e-12) -> Tensor:
    """(...) bool, which of (..., D) embeddings have a norm that is finite and above `least`."""
    norms = embeddings.norm(dim=-1)
    return (norms > least) & norms.isfinite()


def matching_architectures(weights: dict[str, Tensor]) -> list[str]:
    """Names of open_clip's architectures that a state dict fits, name by name and shape by shape, sorted.

    A plain architecture and its `-quickgelu` twin always fit both or not at all.
    """
    projection, positions = weights.get("text_projection"), weights.get("positional_embedding")
    if projection is None or positions is None or projection.ndim != 2:
        return []
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return [name for name in open_clip.list_models() if _fits(name, shapes)]


def _fits(name: str, shapes: dict[str, tuple[int, ...]]) -> bool:
    config = open_clip.get_model_config(name)
    text, vision = config["text_cfg"], config["vision_cfg"]
    if (
        config.get("custom_text")
        or "hf_model_name" in text
        or "timm_model_name" in vision
        or "multimodal_cfg" in config
    ):
        return False
    if shapes["text_projection"] != (text.get("width", 512), config["embed_dim"]):
        return False
    return {key: tuple(tensor.shape) for key, tensor in _on_meta(config).state_dict().items()} == shapes


@lru_cache(maxsize=8)
def _byte_pairs(context_length: int) -> open_clip.SimpleTokenizer:
    """Made once a process: the file of its merges takes a tenth of a second to read."""
    return open_clip.SimpleTokenizer(context_length=context_length)


def byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary, each token's number, and its merges in the order in which they apply."""
    tokenize = _byte_pairs(77)
    merges = sorted(tokenize.bpe_ranks, key=tokenize.bpe_ranks.__getitem__)
    return dict(tokenize.encoder), merges


def tokenizer(architecture: Architecture, protocol: Protocol = "paper") -> Callable[[list[str]], Tensor]:
    """CLIP's byte-pair tokeniser: list of texts -> (N, context_length) int64.

    A longer text is cut and keeps its end token in the last place. The authors' tokeniser drops it: the encoder pools
    at the largest token, which then is the start token, and all such captions get one embedding; `protocol="authors"`
    does the same.
    """
    tokenize = _byte_pairs(architecture.context_length)
    if protocol == "paper":
        return lambda texts: tokenize(texts)

    def without_end(texts: list[str]) -> Tensor:
        tokens = tokenize(texts)
        for row, text in enumerate(texts):
            words = tokenize.encode(text)
            if len(words) + 2 > architecture.context_length:
                tokens[row, -1] = words[architecture.context_length - 2]
        return tokens

    return without_end


def tokeniser_versions() -> tuple[str, ...]:
    """Of open_clip and of what its tokeniser cleans and splits texts with: another may make other tokens of a text."""
    return open_clip.__version__, ftfy.__version__, regex.__version__


def check_prompts(
    architecture: Architecture, class_names: Sequence[str], templates: Sequence[str], protocol: Protocol = "paper"
) -> None:
    """Refuse prompts that do not tell the classes apart once they are cut to the context.

    Args:
        architecture: whose context counts.
        class_names: of the classes; those that two classes share by right (ImageNet's `missile`) are let through.
        templates: texts with one `{}` for the name.
        protocol: see `tokenizer`; under `authors` nothing is left of a text that is cut.

    Raises:
        InvalidInput: if a prompt is cut before its class's name ends, or prompts of two names read the same.
    """
    context_length = architecture.context_length
    tokenize = _byte_pairs(context_length)
    room = context_length - 2  # a start and an end token belong to every text
    _refuse_twins({name: tuple(tokenize.encode(name)) for name in class_names}, "to CLIP's tokeniser; rename one")
    for template in templates:
        before, _, after = template.partition("{}")
        if all(_surely_fits(before + name + after, room) for name in class_names):
            continue
        read: dict[str, tuple[int, ...]] = {}
        for name in class_names:
            tokens = tokenize.encode(before + name + after)
            place = f"template {template!r} with class {name!r} has {len(tokens)} tokens, and"
            kept = f"context_length={context_length} keeps {room} of them"
            if len(tokens) > room and protocol == "authors":
                raise InvalidInput(
                    f"{place} {kept}: under protocol='authors' a text that is cut loses its end token, and all such "
                    "texts get one embedding; shorten the template or the name"
                )
            read[name] = tuple(tokens[:room])
            if len(tokens) > room and not _starts_with(tokenize, read[name], before + name):
                raise InvalidInput(
                    f"{place} {kept}, which cuts it before the class's name ends; shorten the template or the name, "
                    "or choose an architecture with a longer context"
                )
        _refuse_twins(
            read,
            f"under template {template!r} once they are cut to context_length={context_length}; shorten the template",
        )


def _surely_fits(text: str, room: int) -> bool:
    """Whether a text cannot have more tokens than that: none is shorter than a byte. Counting them takes 0.2 ms a
    text, and ImageNet has 80,000 prompts."""
    return text.isascii() and "&" not in text and len("".join(text.split())) <= room


def _starts_with(tokenize: Any, tokens: Sequence[int], text: str) -> bool:
    """Whether the tokens begin with all of the text, wherever its words end."""
    whole, start = ("".join(tokenize.decode(part).split()) for part in (tokens, tokenize.encode(text)))
    return whole.startswith(start)


def _refuse_twins(read: dict[str, tuple[int, ...]], where: str) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for name, tokens in read.items():
        if (twin := seen.setdefault(tokens, name)) != name:
            raise InvalidInput(f"classes {twin!r} and {name!r} read the same {where}")


def imagenet_templates() -> tuple[str, ...]:
    """OpenAI's 80 ImageNet templates, each with one `{}` for the class name."""
    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def imagenet_class_names() -> tuple[str, ...]:
    """OpenAI's 1,000 ImageNet class names in the order of the sorted WordNet ids."""
    return tuple(open_clip.IMAGENET_CLASSNAMES)


@lru_cache(maxsize=1)
def imagenet_names() -> dict[str, str]:
    """OpenAI's ImageNet class name of each of the 1,000 WordNet ids (n01440764 ...), ids ascending.

    The ids are timm's list, a text file that comes with open_clip; timm itself takes seconds to import and is not.

    Raises:
        InvalidInput: if timm's list is not where it was.
    """
    timm = importlib.util.find_spec("timm")
    path = Path((timm.origin if timm else None) or "timm").parent / "data" / "_info" / "imagenet_synsets.txt"
    try:
        ids = path.read_text(encoding="ascii").split()
        return dict(zip(ids, imagenet_class_names(), strict=True))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"ImageNet's ids cannot be read from {path} ({error}); install timm, which open_clip_torch needs"
        ) from None


def architecture_json(architecture: Architecture) -> str:
    """The resolved architecture as text, to be stored beside the weights."""
    return json.dumps(architecture.resolved(), sort_keys=True)


LOCAL_CONFIG, LOCAL_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
"""Files of a folder that open_clip loads by the name `local-dir:FOLDER`."""


def local_config(architecture: Architecture) -> dict[str, Any]:
    """The content of such a folder's configuration: the architecture, and images made as those of all measurements."""
    preprocess = {"mean": IMAGE_MEAN, "std": IMAGE_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    return {"model_cfg": architecture.resolved(), "preprocess_cfg": preprocess}


def load_local(folder: Path) -> nn.Module:
    """The model of such a folder in evaluation mode, as any user of open_clip gets it."""
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = open_clip.create_model_and_transforms(f"local-dir:{folder}")[0]
    return model.eval()


def normalise_pixels(images: Tensor) -> Tensor:
    """CLIP's input from pixels: (B, 3, H, W) uint8 -> float32, per channel (x / 255 - mean) / std; channels last, as
    convolutions are fastest."""
    mean, std = _pixel_statistics(images.device)
    # Turned last: the other way round a CPU takes four times as long.
    return images.to(torch.float32, copy=True).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=64)
def _pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) mean and deviation of pixels in [0, 255]. Made once: to bring them to a GPU waits for all it does."""
    with torch.inference_mode(False):
        return tuple(255 * torch.tensor(each, device=device)[:, None, None] for each in (IMAGE_MEAN, IMAGE_STD))  # type: ignore[return-value]


class CLIPModel(Interface):
    """What open_clip's models have beside what every module has."""

    context_length: int
    logit_scale: Tensor
    """Scalar, the logarithm of 1 / temperature."""

    def encode_image(self, image: Tensor, /) -> Tensor:
        """(B, D) features of (B, 3, S, S) normalised float pixels, not of unit norm."""
        ...

    def encode_text(self, text: Tensor, /) -> Tensor:
        """(B, D) features of (B, context_length) tokens, not of unit norm."""
        ...


def as_clip(model: nn.Module) -> CLIPModel:
    """The model as what it is; torch types every attribute of a module as a tensor or a module."""
    return cast(CLIPModel, model)


def trimmed(tokens: Tensor) -> Tensor:
    """The columns up to the last token of the longest text: a tokeniser fills the context with zeros behind it.

    Args:
        tokens: (B, L) on the CPU; on a GPU this would wait for the device.

    Returns:
        (B, l) with 1 <= l <= L, a view.
    """
    used = (tokens != 0).any(dim=0).nonzero()
    return tokens[:, : int(used[-1]) + 1 if len(used) else 1]


def stacked(*parts: Tensor) -> Tensor:
    """Texts of several batches, (b, l) each, as one (sum of b, longest l), zeros behind the shorter ones."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[1])) for part in parts])


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """Text features, not of unit norm, at the price of the tokens that are there.

    Where attention is causal and the features are those of the end token, what stands behind it plays no part:
    features and gradients are those of the full context up to rounding. Other models get the full context.

    Args:
        model: an open_clip model.
        tokens: (B, l), l up to the context length: see `trimmed`.

    Returns:
        (B, D).
    """
    length, context_length = tokens.shape[1], as_clip(model).context_length
    tower = _causal_text_tower(model) if length < context_length else None
    if tower is None:
        return as_clip(model).encode_text(F.pad(tokens, (0, context_length - length)))
    # As open_clip's encode_text and TextTransformer.forward, which take the full context alone.
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    end = _text_end(tower, tokens)
    pooled = tower.ln_final(x[torch.arange(len(x), device=x.device), end])
    projection = tower.text_projection
    if projection is None:
        return cast(Tensor, pooled)
    return cast(Tensor, projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection)


def _causal_text_tower(model: nn.Module) -> Any | None:
    """What holds the layers of a text tower whose features depend on nothing behind the end token, else None."""
    encode = getattr(type(model), "encode_text", None)
    tower: Any = None
    if encode is open_clip.CLIP.encode_text:
        tower = model
    elif encode is open_clip.CustomTextCLIP.encode_text and type(model.text) is TextTransformer:
        tower = model.text
        if tower.cls_emb is not None or tower.output_tokens:
            return None
    if tower is None or tower.attn_mask is None:
        return None
    pooling, end = _pooling(tower)
    return tower if pooling == "argmax" or (pooling == "eos" and end != 0) else None


def _pooling(tower: Any) -> tuple[str, int]:
    """Kind of pooling and the end token, which open_clip's two classes name differently."""
    if isinstance(tower, TextTransformer):
        return tower.pool_type, tower.eos_id
    return tower.text_pool_type, tower.text_eos_id


def _text_end(tower: Any, tokens: Tensor) -> Tensor:
    """(B,) places of the tokens whose features are a text's."""
    pooling, end = _pooling(tower)
    return tokens.argmax(dim=-1) if pooling == "argmax" else (tokens == end).int().argmax(dim=-1)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for a while, and afterwards in the mode it was in, module by module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def embedding_width(model: nn.Module) -> int:
    """D, the width of the joint embedding; the model's mode and random streams do not matter and do not change."""
    device = next(model.parameters()).device
    tokens = torch.zeros(1, as_clip(model).context_length, dtype=torch.int64, device=device)
    return int(as_clip(model).encode_text(tokens).shape[-1])


class Encoder(nn.Module):
    """What DistributedDataParallel wraps: pixels and tokens in, features and the logit scale out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed a batch.

        Args:
            images: (B, 3, S, S), normalised float pixels.
            tokens: (B, l) int64, l up to the context length.

        Returns:
            (B, D) image features and (B, D) text features, float32, not yet of unit norm; scalar 1 / temperature.
        """
        model = as_clip(self.model)
        scale = model.logit_scale.exp().float()
        return model.encode_image(images).float(), encode_text(self.model, tokens).float(), scale
