"""Pseudo-labels for deep clustering: each cleaning pair's zero-shot class by a model (Verma et al., App. D.11)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sweeplab.attacks.poisoning import PoisonPlan
from sweeplab.cleaning.deep_clustering import DeepClustering, write_pseudo_labels
from sweeplab.clip_labeller import Labeller, labeller_at
from sweeplab.clip_model import imagenet_class_names, imagenet_templates, with_directions
from sweeplab.data.broken import refuse_too_many
from sweeplab.data.cores import usable_cores
from sweeplab.data.images import BrokenImage, load_image
from sweeplab.data.labels import check_class_names, lines_of
from sweeplab.data.tables import PairTable
from sweeplab.evaluation.zero_shot import class_weights, prompt_tokens
from sweeplab.experiment import CleaningSweep, CleanSample, PretrainedVictim
from sweeplab.records import percent
from sweeplab.specs import InvalidInput
from sweeplab.worker.inputs import Inputs, cleaning_poison, cleaning_table
from sweeplab.worker.jobs import whole_machine
from sweeplab.worker.run import blaming, prepare_process

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Shows a bar: what is iterated over, what it is, and how many there are."""

BATCH_SIZE = 64
"""Images of a forward pass."""
AT_A_TIME = 512
"""Images that are decoded ahead, 0.2 GB at 384 pixels."""


@dataclass(frozen=True)
class LabelRequest:
    """What was asked for."""

    sweep: CleaningSweep
    """Whose cleaning pairs are labelled; its method is deep clustering."""
    model: Path
    """See `labeller_at`, as for `architecture`."""
    to: Path
    """The .npy file that is written."""
    architecture: str | None = None
    classes: str = "imagenet"
    """`imagenet`, or a text file of names, one a line."""
    templates: str = "imagenet"
    """`imagenet`: OpenAI's 80; or a text file, one a line with `{}` for the name."""


@dataclass(frozen=True)
class LabelReport:
    """What was written."""

    path: str
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    """Pairs of each class."""
    mean_probability: float
    """Of the chosen class, the mean over the pairs: the softmax over all classes at the model's temperature."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "path": self.path,
            "pairs": sum(self.counts),
            "mean_probability": self.mean_probability,
            "classes": [
                {"label": label, "name": name, "pairs": count}
                for label, (name, count) in enumerate(zip(self.class_names, self.counts, strict=True))
            ],
        }

    def lines(self) -> list[str]:
        """For people."""
        total, used = sum(self.counts), [count for count in self.counts if count]
        order = sorted(range(len(self.counts)), key=lambda label: -self.counts[label])[:5]
        most = ", ".join(f"{self.class_names[k]} {percent(self.counts[k] / total)}" for k in order if self.counts[k])
        return [
            f"{total:,} pairs: {len(used):,} of {len(self.counts):,} classes, {min(used):,} to {max(used):,} pairs "
            f"each (median {int(np.median(used)):,}); most: {most}",
            f"mean probability of the class that was chosen: {percent(self.mean_probability)} "
            f"(chance: {percent(1 / len(self.counts))})",
        ]


def label_pairs(request: LabelRequest, home: Path, track: Track) -> LabelReport:
    """Write the file that `DeepClustering(pseudo_labels=...)` reads, and beside it for which pairs it was made.

    The pairs are those that the sweep trains on, in their order; poisoned ones carry their triggers. Broken ones have
    the label 0, which nothing learns: the pair that stands in for one comes with its own label.

    Raises:
        InvalidInput: if the sweep clusters nothing, the number of classes is not that of its clusters, or a file cannot
            be read.
    """
    sweep, method = request.sweep, request.sweep.method
    names, templates = _names(request.classes), _templates(request.templates)
    if not isinstance(method, DeepClustering):
        raise InvalidInput(f"{sweep.name}: method={method.kind!r} takes no labels; give a sweep of deep-clustering")  # type: ignore[attr-defined]
    if len(names) != method.num_clusters:
        raise InvalidInput(
            f"--classes has {len(names)} names, and {sweep.name} has method.num_clusters={method.num_clusters}; give "
            f"as many, or set method.num_clusters={len(names)}"
        )
    if request.to.suffix != ".npy" or not request.to.absolute().parent.is_dir():
        raise InvalidInput(f"--to={request.to} must be a .npy file in a folder that exists")
    machine = whole_machine(home)
    device, inputs = prepare_process(machine), Inputs(machine.data_home)
    # The labeller comes first: a wrong file is found before millions of rows are read.
    labeller = labeller_at(request.model, request.architecture)
    pairs = cleaning_table(sweep, inputs)
    poison = cleaning_poison(sweep, pairs, inputs)
    pairs = poison.training_table(pairs) if poison is not None else pairs
    labeller.model.to(device)
    with blaming(request.model):
        weights = class_weights(labeller.model, _prompts(labeller, names, templates), device=device)
        pictures = _pictures(pairs, poison, sweep.victim.architecture.image_size, labeller)
        tracked = track(pictures, "labels", len(pairs))
        labels, probabilities, broken = _classified(labeller, iter(tracked), weights, device)
    if broken:
        refuse_too_many(broken, len(pairs), _max_broken(sweep), f"the cleaning pairs of {sweep.name}")
    write_pseudo_labels(request.to, labels, pairs.digest)
    counts = tuple(np.bincount(np.delete(labels, list(broken)), minlength=len(names)).tolist())
    return LabelReport(str(request.to.absolute()), names, counts, float(probabilities.mean()))


def _names(classes: str) -> tuple[str, ...]:
    if classes == "imagenet":
        return imagenet_class_names()
    return check_class_names(lines_of(_text_file(classes, "--classes")), f"--classes={classes}")


def _templates(templates: str) -> tuple[str, ...]:
    if templates == "imagenet":
        return imagenet_templates()
    lines = lines_of(_text_file(templates, "--templates"))
    if bad := [line for line in lines if line.count("{}") != 1]:
        raise InvalidInput(f"--templates={templates}: {bad[0]!r} must have one {{}} for the class's name")
    if not lines:
        raise InvalidInput(
            f"--templates={templates} is empty; give one template a line, with {{}} for the class's name"
        )
    return lines


def _text_file(name: str, option: str) -> Path:
    if not Path(name).is_file():
        raise InvalidInput(f"{option}={name!r} is unknown; known: imagenet, or a text file with one a line")
    return Path(name)


def _prompts(labeller: Labeller, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C, T, l) tokens.

    Raises:
        InvalidInput: if the tokeniser is another model's, or two names read the same.
    """
    prompts = prompt_tokens(labeller.tokenize, names, templates)
    if int(prompts.max()) >= labeller.num_tokens:
        raise InvalidInput(
            f"the tokeniser gives token {int(prompts.max())}, and the model knows {labeller.num_tokens}; give the "
            "tokeniser that the model was trained with"
        )
    for template, tokens in zip(templates, prompts.unbind(1), strict=True):
        if len(torch.unique(tokens, dim=0)) < len(set(names)):
            raise InvalidInput(
                f"under template {template!r} some names of --classes read the same to the model's tokeniser, or once "
                "they are cut to its context; rename them or shorten the template"
            )
    return prompts


def _max_broken(sweep: CleaningSweep) -> float:
    """The share of the cleaning pairs that may be broken."""
    victim = sweep.original_victim()
    source = victim.data if isinstance(sweep.data, CleanSample) and isinstance(victim, PretrainedVictim) else sweep.data
    return getattr(source, "max_broken", None) or 0.0


def _pictures(
    pairs: PairTable, poison: PoisonPlan | None, victims_size: int, labeller: Labeller
) -> Iterator[Tensor | str]:
    """(3, S, S) uint8 of every row, in order, as the labeller takes them; of broken ones the reason."""
    stamped = set(poison.rows) if poison is not None and poison.stamps else set()
    known = pairs.reasons()

    def picture(row: int) -> Tensor | str:
        if row in known:
            return known[row]
        try:
            if row not in stamped:
                return torch.from_numpy(load_image(pairs.image(row), labeller.image_size, squash=labeller.squash))
            pixels = torch.from_numpy(load_image(pairs.image(row), victims_size))[None]
        except BrokenImage as error:
            return str(error)
        # A trigger is made for the victim's input, and belongs to what the labeller has to look at.
        assert poison is not None
        size = [labeller.image_size, labeller.image_size]
        resized: Tensor = tv.resize(poison.stamp_rows(pixels, [row]), size, tv.InterpolationMode.BICUBIC)
        return resized[0]

    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(pairs), AT_A_TIME):
            yield from pool.map(picture, range(start, min(start + AT_A_TIME, len(pairs))))


@torch.inference_mode()
def _classified(
    labeller: Labeller, pictures: Iterator[Tensor | str], weights: Tensor, device: torch.device
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """(N,) int64 classes, 0 for broken rows; (n,) float32 probabilities of those of the others; and why, by row, of the
    broken ones."""
    labels: list[int] = []
    probabilities: list[float] = []
    broken: dict[int, str] = {}
    while batch := list(islice(pictures, BATCH_SIZE)):
        place = len(labels)
        broken |= {place + i: picture for i, picture in enumerate(batch) if isinstance(picture, str)}
        labels += [0] * len(batch)
        whole = {place + i: picture for i, picture in enumerate(batch) if not isinstance(picture, str)}
        if not whole:
            continue
        pixels = torch.stack(list(whole.values())).to(device)
        features = with_directions(labeller.embed(pixels), "image embeddings")
        logits = labeller.scale * F.normalize(features, dim=-1) @ weights.T
        chances, classes = logits.softmax(dim=1).max(dim=1)
        probabilities += chances.tolist()
        for row, label in zip(whole, classes.tolist(), strict=True):
            labels[row] = label
    return np.array(labels, dtype=np.int64), np.array(probabilities, dtype=np.float32), broken
