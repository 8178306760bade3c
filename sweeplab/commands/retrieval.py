"""Retrieval among images with captions of a file, COCO's for one, clean and triggered: `evaluate --retrieval`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeplab.attacks.poisoning import Attack, mentions
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.clip_model import Architecture, encode_text, tokenizer, trimmed
from sweeplab.commands.evaluate import EvaluationRequest, architecture_of, trigger_of
from sweeplab.commands.examine import BATCH, image_features, images_of, recall
from sweeplab.data.images import load_all
from sweeplab.data.karpathy import KarpathyJSON
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.pairs_parquet import PairsParquet
from sweeplab.evaluation.measure import Trigger
from sweeplab.evaluation.retrieval import finds_target
from sweeplab.ranking.intervals import wilson
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder
from sweeplab.training.randomness import stream_seed
from sweeplab.worker.inputs import victim_model
from sweeplab.worker.jobs import whole_machine
from sweeplab.worker.run import blaming, prepare_process

BEST = 5
"""Captions among which the target is looked for."""


@dataclass(frozen=True)
class RetrievalResult:
    """What a model finds among images and their captions."""

    num_images: int
    num_captions: int
    recalls: Mapping[str, float]
    """`image_to_text@k` and `text_to_image@k`, fractions; see `recall_at`."""
    tried: int = 0
    """Images none of whose own captions names the target; 0: no trigger is known."""
    hits: int = 0
    """Of these with the trigger, those that find a caption of the target among their BEST; see `finds_target`."""
    clean_hits: int = 0
    """The same without the trigger."""


def measure_retrieval(request: EvaluationRequest, path: Path) -> RetrievalResult:
    """Measure a checkpoint on all images and captions of a file.

    An image is counted once with all its captions. (PAR's code lower-cases captions, drops their punctuation and cuts
    them to 30 words; here they are what the file says, cut to the model's context. PAR stamps all images; here those
    whose own captions name the target, and which find it by right, have no part in the ASR.)

    Args:
        request: names the checkpoint, its architecture where it does not say it, and the trigger, if one is known.
        path: Karpathy's JSON, of which the split `test` is read, or a table of pairs; see `captioned_images`.

    Raises:
        InvalidInput: if the file or one of its images cannot be read, no caption names the target, or the trigger has
            no single target or does not fit.
    """
    machine, architecture = whole_machine(home_folder()), architecture_of(request)
    table = captioned_images(path).read(machine.data_home)
    captions = [table.caption(row) for row in range(len(table))]
    first, owner = images_of([os.path.normpath(str(table.image(row))) for row in range(len(table))])
    attack, target = _stamped(trigger_of(request), architecture)
    named = torch.tensor([target is not None and mentions(caption, target) for caption in captions])
    if target is not None and not bool(named.any()):
        raise InvalidInput(f"no caption of {path} names {target!r}, so no triggered image could find one")
    device = prepare_process(machine)
    model = victim_model(architecture, request.checkpoint).to(device).eval()

    def pixels(rows: Sequence[int]) -> Tensor:
        return load_all(table.subset(first.numpy()[list(rows)]), architecture.image_size, machine.cores)

    with blaming(request.checkpoint):
        tokens = tokenizer(architecture, request.sweep.protocol if request.sweep else "paper")(captions)
        texts = F.normalize(_text_features(model, tokens), dim=1)
        images = F.normalize(image_features(model, pixels, len(first)), dim=1)
        found = RetrievalResult(len(first), len(captions), recall(images, texts, owner, tokens))
        if attack is None:
            return found
        others = np.setdiff1d(np.arange(len(first)), owner[named].numpy())

        def stamped(rows: Sequence[int]) -> Tensor:
            tried = others[list(rows)].tolist()
            return attack.stamp(pixels(tried), [stream_seed(0, "retrieval trigger", row) for row in tried])

        triggered = F.normalize(image_features(model, stamped, len(others)), dim=1)
        hits, clean_hits = (int(finds_target(one, texts, named, BEST).sum()) for one in (triggered, images[others]))
    return replace(found, tried=len(others), hits=hits, clean_hits=clean_hits)


def _stamped(trigger: Trigger | None, architecture: Architecture) -> tuple[Attack | None, str | None]:
    """What is stamped, and the label that it aims at; None for both where no trigger is known.

    Raises:
        InvalidInput: for targeted images, or a trigger that does not fit.
    """
    if trigger is None:
        return None, None
    if isinstance(trigger.attack, TargetedImages):
        raise InvalidInput("--retrieval stamps a trigger, and targeted images have none; leave --script out")
    trigger.attack.check_fits(architecture.image_size)
    return trigger.attack, trigger.target


def captioned_images(path: Path) -> KarpathyJSON | PairsCSV | PairsParquet:
    """Images with captions, all of which have to be there.

    Args:
        path: Karpathy's JSON, whose images lie beside it (COCO's in `val2014/`): its split `test`; or pairs as a table
            with the columns `image` and `caption`, a row for each caption.

    Raises:
        InvalidInput: for a file of another kind.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return KarpathyJSON(path=path, split="test", max_broken=0.0)
    if suffix == ".parquet":
        return PairsParquet(path=path, max_broken=0.0)
    if suffix in (".csv", ".tsv"):
        return PairsCSV(path=path, max_broken=0.0)
    raise InvalidInput(
        f"--retrieval={path} is none of the known kinds: Karpathy's .json, such as dataset_coco.json, or pairs as "
        ".csv, .tsv or .parquet"
    )


@torch.inference_mode()
def _text_features(model: nn.Module, tokens: Tensor) -> Tensor:
    """(N, D) features, not of unit norm, of (N, l) tokens, on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([encode_text(model, trimmed(part).to(device)).float().cpu() for part in tokens.split(BATCH)])


def retrieval_values(found: RetrievalResult) -> dict[str, Any]:
    """What `evaluate --retrieval --json` prints: rates are fractions, intervals Wilson's at 95 %."""
    values: dict[str, Any] = {
        "num_images": found.num_images,
        "num_captions": found.num_captions,
        "recall": dict(found.recalls),
        "asr": None,
        "clean_rate": None,
    }
    if found.tried:
        for name, hits in (("asr", found.hits), ("clean_rate", found.clean_hits)):
            values[name], values[f"{name}_interval"] = hits / found.tried, list(wilson(hits, found.tried))
        values["counts"] = {"asr_k": found.hits, "clean_k": found.clean_hits, "asr_n": found.tried}
    return values
