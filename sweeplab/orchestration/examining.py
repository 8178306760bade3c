"""What else can be measured of one checkpoint, on demand: what `sweeplab examine` does."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeplab.attacks import ATTACKS
from sweeplab.clip_model import normalise_pixels
from sweeplab.evaluation.linear_probe import linear_probe
from sweeplab.evaluation.measure import Measure
from sweeplab.evaluation.panel import NOT_CERTIFIED, run_panel
from sweeplab.evaluation.retrieval import recall_at, retrieval_asr
from sweeplab.evaluation.similarity import (
    clip_scores,
    detection_recall,
    modality_gap,
    target_distance,
    two_dimensions,
)
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.orchestration.files import home_folder
from sweeplab.orchestration.workers import (
    Machine,
    measure_for,
    prepare_process,
    victim_model,
    victim_pairs,
    victim_table,
    whole_machine,
)
from sweeplab.ranking.intervals import wilson
from sweeplab.specs import InvalidInput

WANTS = ("panel", "probe", "pairs", "retrieval", "map")
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3)
"""Of the pairs, in the detection table."""
MAP_IMAGES = 200
"""Images of each group in a map."""
RETRIEVAL_PAIRS = 5000
"""Pairs that retrieval ranks against each other."""
BATCH = 256


def examine_checkpoint(
    sweep: CleaningSweep, checkpoint: Path, wants: Iterable[str], to: Path | None = None
) -> dict[str, Any]:
    """Measure a checkpoint with the data and the trigger of a sweep.

    Args:
        sweep: names architecture, test set, trigger, and the victim's pairs.
        checkpoint: the weights.
        wants: some of WANTS.
        to: folder for tables (`map.csv`, `detection.csv`); None: they are not written.

    Returns:
        Plain JSON values by what was wanted.
    """
    wanted = list(wants)
    unknown = [want for want in wanted if want not in WANTS]
    if unknown or not wanted:
        raise InvalidInput(f"{unknown[0] if unknown else 'nothing'!r} cannot be examined; known: {', '.join(WANTS)}")
    machine = whole_machine(home_folder())
    device = prepare_process(machine)
    trigger = sweep.trigger()
    measure = measure_for(sweep.victim.architecture, sweep.evaluation, trigger, machine, sweep.protocol)
    model = victim_model(sweep.victim.architecture, checkpoint).to(device).eval()
    found: dict[str, Any] = {"checkpoint": str(checkpoint), "protocol": sweep.protocol}
    if "panel" in wanted:
        found["panel"] = _panel(model, measure, sweep)
    if "probe" in wanted:
        found["probe"] = _probe(model, measure, trigger.target)
    if "pairs" in wanted or "retrieval" in wanted:
        found |= _pairs(model, sweep, machine, wanted, to)
    if "map" in wanted:
        found["map"] = _map(model, measure, trigger.target, to)
    return found


def _panel(model: nn.Module, measure: Measure, sweep: CleaningSweep) -> dict[str, Any]:
    planted = sweep.trigger().attack
    ready = [member for member in ATTACKS if not any(field.is_required() for field in member.model_fields.values())]
    others = [member.model_validate({"kind": member.model_fields["kind"].default}) for member in ready]
    fitting = []
    for attack in others:
        try:
            attack.check_fits(sweep.victim.architecture.image_size)
        except InvalidInput:
            continue
        fitting.append(attack)
    measurement, rows = run_panel(model, measure, [planted, *fitting], sweep.trigger().target)
    return {
        "accuracy": measurement.accuracy,
        "attacks": [
            {
                "attack": row.attack,
                "target": row.target,
                "asr": row.asr_k / row.asr_n,
                "interval": list(wilson(row.asr_k, row.asr_n)),
                "triggered_accuracy": row.correct_k / row.asr_n,
                "changed": row.changed_k / len(measure.images),
                "most_common": row.most_common,
            }
            for row in rows
        ],
        "note": NOT_CERTIFIED,
    }


def _probe(model: nn.Module, measure: Measure, target: str) -> dict[str, Any]:
    """Trained on every second test image of each class, tested on the others."""
    labels = measure.images.labels
    rank_in_class = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rank_in_class[own] = np.arange(len(own))
    clean = _features(model, measure, triggered=False).numpy()
    train, test = rank_in_class % 2 == 0, rank_in_class % 2 == 1
    triggered = np.zeros_like(clean)
    triggered[measure.triggered_rows] = _features(model, measure, triggered=True).numpy()
    result = linear_probe(
        (clean[train], labels[train]),
        (clean[test], labels[test]),
        triggered=triggered[test],
        target=measure.images.class_names.index(target),
    )
    return {
        "accuracy": result.accuracy_k / result.accuracy_n,
        "asr": result.asr_k / result.asr_n if result.asr_n else None,
        "counts": {name: getattr(result, name) for name in ("accuracy_k", "accuracy_n", "asr_k", "asr_n")},
        "note": "trained on half of the test images, tested on the other half",
    }


def _pairs(
    model: nn.Module, sweep: CleaningSweep, machine: Machine, wanted: list[str], to: Path | None
) -> dict[str, Any]:
    if not isinstance(sweep.victim, PretrainedVictim):
        raise InvalidInput("'pairs' and 'retrieval' need the victim's pre-training pairs, and a checkpoint names none")
    _, plan = victim_table(sweep.victim, machine)
    pairs = victim_pairs(sweep.victim, machine)
    pairs.use_views(None)
    images, texts = _embed_pairs(model, pairs)
    poison = np.zeros(len(pairs), dtype=bool)
    poison[list(plan.rows)] = True
    found: dict[str, Any] = {}
    if "pairs" in wanted:
        scores = clip_scores(images, texts).numpy()
        tables = {
            word: detection_recall(scores, poison, SHARES, word)
            for word in (("highest", "lowest") if poison.any() else ())
        }
        found["pairs"] = {
            "clean_score": float(scores[~poison].mean()),
            "poisoned_score": float(scores[poison].mean()) if poison.any() else None,
            "modality_gap": modality_gap(images[~poison], texts[~poison]),
            "detection": {word: table.to_dict("records") for word, table in tables.items()},
        }
        if to is not None:
            to.mkdir(parents=True, exist_ok=True)
            for word, table in tables.items():
                table.to_csv(to / f"detection_{word}.csv", index=False)
    if "retrieval" in wanted:
        clean = np.flatnonzero(~poison)[:RETRIEVAL_PAIRS]
        rows = torch.from_numpy(clean)
        own = torch.arange(len(clean))
        found["retrieval"] = {"num_pairs": len(clean), **recall_at(images[rows], texts[rows], own)}
        if poison.any():
            target = sweep.trigger().target.lower()
            named = torch.tensor([target in pairs.caption(int(row)).lower() for row in clean])
            if bool(named.any()):
                hits = retrieval_asr(images[torch.from_numpy(np.flatnonzero(poison))], texts[rows], named, 10)
                found["retrieval"]["asr@10"] = hits
    return found


def _map(model: nn.Module, measure: Measure, target: str, to: Path | None) -> dict[str, Any]:
    label = measure.images.class_names.index(target)
    clean = F.normalize(_features(model, measure, triggered=False), dim=1)
    triggered = F.normalize(_features(model, measure, triggered=True), dim=1)
    own = torch.from_numpy(measure.images.labels == label)
    spread = np.linspace(0, len(triggered) - 1, min(MAP_IMAGES, len(triggered))).astype(int)
    others = torch.from_numpy(measure.triggered_rows[spread])
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        groups = {"clean": clean[others], "triggered": triggered[spread], "target": clean[own][:MAP_IMAGES]}
        two_dimensions(groups, seed=0).to_csv(to / "map.csv", index=False)
    return {
        "triggered_to_target": target_distance(triggered, clean[own]),
        "clean_to_target": target_distance(clean[torch.from_numpy(measure.triggered_rows)], clean[own]),
        "table": str(to / "map.csv") if to is not None else None,
    }


@torch.inference_mode()
def _features(model: nn.Module, measure: Measure, *, triggered: bool) -> Tensor:
    """(N, D) un-normalised features of the clean, or of the triggered, test images, on the CPU."""
    device = next(model.parameters()).device
    count = len(measure.triggered_rows) if triggered else len(measure.images)
    pixels = measure.triggered_pixels if triggered else measure.clean_pixels
    parts = []
    for start in range(0, count, BATCH):
        images = pixels(list(range(start, min(start + BATCH, count)))).to(device)
        parts.append(model.encode_image(normalise_pixels(images)).float().cpu())  # type: ignore[operator]
    return torch.cat(parts)


@torch.inference_mode()
def _embed_pairs(model: nn.Module, pairs: Any) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    images, texts = [], []
    for rows in torch.arange(len(pairs)).split(BATCH):
        batch = pairs.first_copies(1, rows.tolist()).to(device)
        images.append(F.normalize(model.encode_image(normalise_pixels(batch.images)).float(), dim=1).cpu())  # type: ignore[operator]
        texts.append(F.normalize(model.encode_text(batch.tokens).float(), dim=1).cpu())  # type: ignore[operator]
    return torch.cat(images), torch.cat(texts)
