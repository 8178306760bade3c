"""The gallery of a sweep: a few test images, clean and triggered, and what the victim and the winner take them for."""

import base64
import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sweeplab.attacks.poisoning import triggered_copies
from sweeplab.attacks.preview import magnified
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.clip_model import as_clip, evaluation_mode, tokenizer
from sweeplab.evaluation.measure import Measure, triggered_rows
from sweeplab.evaluation.zero_shot import Faults, scores_of
from sweeplab.ranking.leaderboard import Leaderboard
from sweeplab.specs import InvalidInput
from sweeplab.storage.files import read_object, write_json
from sweeplab.storage.node_cache import content_of, local_copy
from sweeplab.sweep_folder import SweepFolder
from sweeplab.training.objective import has_classifier
from sweeplab.training.precision import float32_products
from sweeplab.training.randomness import stream_seed
from sweeplab.worker.input_paths import recorded_sweep
from sweeplab.worker.inputs import victim_model
from sweeplab.worker.jobs import whole_machine

IMAGES = 4
"""Of as many classes as there are, none of them the target."""

SIDE = 160
"""Pixels of a picture in the page, at most."""

NAMES = 3
"""Classes that are named of each prediction, the likeliest first."""


def make_gallery(folder: SweepFolder, board: Leaderboard) -> Path:
    """Write the gallery beside the sweep's ledger; returns the file.

    Triggers are drawn as the sweep's evaluation draws them for the same images under `paper`, under `authors` too,
    where it draws others for every model, on squashed images. Shares are softmax's at the model's own temperature.

    Args:
        folder: of the sweep.
        board: its leaderboard.

    Raises:
        InvalidInput: if the sweep has no trigger or no winner whose weights are kept, or its record does not say how it
            was measured.
    """
    header, winner = folder.header(), board.winner
    if "imported" in header or header.get("own_code"):
        raise InvalidInput(
            f"sweep {folder.name!r} has no gallery: its record alone does not hold its images and models"
        )
    if winner is None or winner.checkpoint is None:
        raise InvalidInput(f"sweep {folder.name!r} has no cleaned trial whose weights are kept, so no gallery yet")
    sweep = recorded_sweep(header)
    if has_classifier(sweep.method):
        raise InvalidInput(f"sweep {folder.name!r} has no gallery: its trials are classifiers, and it asks by prompts")
    trigger = sweep.trigger()
    if trigger is None or isinstance(trigger.attack, TargetedImages):
        raise InvalidInput(f"sweep {folder.name!r} has no gallery: its victim knows no trigger")
    architecture, evaluation = sweep.victim.architecture, sweep.evaluation
    images = evaluation.load(folder.home / "data")
    rows = chosen_rows(images.labels, triggered_rows(images, trigger))
    measure = Measure(
        evaluation,
        images.subset(rows),
        architecture.image_size,
        tokenize=tokenizer(architecture, sweep.protocol),
        trigger=None,
    )
    clean = measure.clean_pixels(range(len(rows)))
    seeds = [stream_seed(evaluation.seed, "test trigger", int(row)) for row in rows]
    triggered = triggered_copies(trigger.attack, clean, seeds)
    victim = read_object(folder.victim_run().path / "victim.json", checkpoint=str)["checkpoint"]
    device = torch.device("cuda" if whole_machine(folder.home).use_cuda else "cpu")
    said = {}
    for who, place in (("victim", victim), ("winner", winner.checkpoint)):
        model = victim_model(architecture, local_copy(place, content_of(place), None)).to(device)
        said[who] = [predictions(model, measure, pixels) for pixels in (clean, triggered)]
    found = [
        {
            "label": images.class_names[int(images.labels[row])],
            "clean": picture(clean[index]),
            "triggered": picture(triggered[index]),
            "difference": picture(magnified(clean[index], triggered[index])),
            **{f"{who}_{kind}": both[place][index] for who, both in said.items() for place, kind in enumerate(KINDS)},
        }
        for index, row in enumerate(rows)
    ]
    path = folder.gallery
    write_json(path, {"trial": winner.trial, "epoch": winner.epoch, "target": trigger.target, "images": found})
    return path


KINDS = ("clean", "triggered")


def chosen_rows(labels: np.ndarray, candidates: np.ndarray, most: int = IMAGES) -> np.ndarray:
    """The first image of each of several classes, these evenly spread over all that have one.

    Args:
        labels: (N,) of the test images.
        candidates: rows that may be chosen, ascending.
        most: rows.
    """
    _, first = np.unique(labels[candidates], return_index=True)
    spread = np.linspace(0, len(first) - 1, min(most, len(first))).round().astype(int)
    return np.asarray(candidates)[first[spread]]


def predictions(model: nn.Module, measure: Measure, pixels: Tensor) -> list[list[tuple[str, float]]]:
    """Of each image the likeliest classes, each with its share.

    Args:
        model: an open_clip model.
        measure: of a test set; its prompts and classes are taken.
        pixels: (b, 3, S, S) uint8.
    """
    device, faults = next(model.parameters()).device, Faults()
    precision, names = measure.evaluation.precision, measure.images.class_names
    with evaluation_mode(model), float32_products(precision), torch.inference_mode():
        weights = measure.class_weights(model, device)
        scale = as_clip(model).logit_scale.exp()

        def logits(features: Tensor) -> Tensor:
            return scale * F.normalize(features, dim=-1) @ weights.T

        scores = scores_of(model, pixels, logits, faults, device=device, precision=precision)
        best = scores.softmax(dim=-1).topk(min(NAMES, len(names)))
    faults.check()
    found: list[list[tuple[str, float]]] = [
        [(names[place], round(share, 4)) for place, share in zip(places, shares, strict=True)]
        for places, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return found


def picture(pixels: Tensor) -> str:
    """A (3, S, S) uint8 image as the address of a small picture."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    kind, options = "png", {}
    if image.width > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if image.width > 64:  # photographs; small pictures stay exact
        kind, options = "jpeg", {"quality": 88}
    buffer = io.BytesIO()
    image.save(buffer, kind.upper(), **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
