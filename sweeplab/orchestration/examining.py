"""What else can be measured of one checkpoint, on demand: what `sweeplab examine` does."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeplab.attacks import ATTACKS
from sweeplab.attacks.poisoning import Attack, mentions
from sweeplab.clip_model import normalise_pixels
from sweeplab.evaluation.linear_probe import linear_probe
from sweeplab.evaluation.measure import Measure, Trigger
from sweeplab.evaluation.panel import NOT_CERTIFIED, run_panel
from sweeplab.evaluation.retrieval import recall_at, retrieval_asr
from sweeplab.evaluation.similarity import (
    SafeSet,
    clip_scores,
    detection_recall,
    modality_gap,
    safe_set,
    target_distance,
    two_dimensions,
)
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.orchestration.evaluating import EvaluationRequest, architecture_of, evaluation_of
from sweeplab.orchestration.files import home_folder
from sweeplab.orchestration.run_folder import RunFolder
from sweeplab.orchestration.workers import (
    Machine,
    measure_for,
    prepare_process,
    victim_model,
    victim_pairs,
    victim_table,
    whole_machine,
)
from sweeplab.pretraining.safeclip import SafeCLIP, mixture_posterior
from sweeplab.ranking.intervals import wilson
from sweeplab.specs import InvalidInput
from sweeplab.training.randomness import stream_seed

WANTS = ("panel", "probe", "pairs", "retrieval", "map")
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3)
"""Of the pairs, in the detection table."""
MAP_IMAGES = 200
"""Images of each group in a map."""
RETRIEVAL_PAIRS = 5000
"""Pairs that retrieval ranks against each other."""
BATCH = 256


DYNAMICS = "dynamics.csv"


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
        Plain JSON values by what was wanted. Targeted poisoning stamps no trigger: the panel then guesses the targets
        of others, the probe has no ASR, and there is no map.
    """
    wanted = _known(wants)
    machine = whole_machine(home_folder())
    device = prepare_process(machine)
    trigger = sweep.trigger()
    model = victim_model(sweep.victim.architecture, checkpoint).to(device).eval()
    found: dict[str, Any] = {"checkpoint": str(checkpoint), "protocol": sweep.protocol}
    if set(wanted) & {"panel", "probe", "map"}:
        measure = measure_for(sweep.victim.architecture, sweep.evaluation, trigger, machine, sweep.protocol)
        if "panel" in wanted:
            found["panel"] = _panel(model, measure, trigger)
        if "probe" in wanted:
            found["probe"] = _probe(model, measure, trigger.target)
        if "map" in wanted and trigger.target is not None:
            found["map"] = _map(model, measure, trigger.target, to)
    if "pairs" in wanted or "retrieval" in wanted:
        found |= _pairs(model, sweep, machine, wanted, to)
    return found


def examine_checkpoints(
    sweep: CleaningSweep, places: Sequence[Path], wants: Iterable[str] = ("pairs",), to: Path | None = None
) -> dict[str, Any]:
    """Measure several states of a model, such as the epochs of a victim (CleanCLIP, App. H and I; SafeCLIP, Fig. 2).

    Args:
        sweep: as for `examine_checkpoint`.
        places: checkpoints, or folders that hold some (a victim's, a trial's).
        wants: some of WANTS.
        to: folder for tables: `dynamics.csv`, and those of each checkpoint in a folder named after it.

    Returns:
        `checkpoints`: what `examine_checkpoint` gives for each, with its epoch. `dynamics`: with `pairs` wanted, one
        row a checkpoint, by epoch; see `dynamics_table`.
    """
    states = states_in(places)
    wanted = _known(wants)
    found = [
        {
            **examine_checkpoint(sweep, state.path, wanted, to / state.path.stem if to is not None else None),
            "epoch": state.epoch,
        }
        for state in states
    ]
    result: dict[str, Any] = {"checkpoints": found}
    if "pairs" in wanted:
        table = dynamics_table(found)
        result["dynamics"] = [
            {name: None if pd.isna(value) else value for name, value in row.items()} for row in table.to_dict("records")
        ]
        if to is not None:
            to.mkdir(parents=True, exist_ok=True)
            table.to_csv(to / DYNAMICS, index=False)
    return result


def dynamics_table(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """CLIPScores, detection, safe set and modality gap over checkpoints.

    Args:
        found: of `examine_checkpoint` with `pairs`, and `epoch`.

    Returns:
        Columns `epoch` (None where a checkpoint does not say), `checkpoint`, `clean_score`, `poisoned_score`,
        `modality_gap`, `safe_size`, `safe_share`, `safe_poisons`, `safe_poison_share`, and for each share of the pairs
        looked at `recall_highest@SHARE` and `recall_lowest@SHARE`; by epoch, those without one last.
    """
    rows = []
    for one in found:
        pairs = one["pairs"]
        safe = {f"safe_{name.removeprefix('num_')}": value for name, value in pairs["safe"].items()}
        recalls = {
            f"recall_{word}@{row['share']:g}": row["recall"]
            for word, table in pairs["detection"].items()
            for row in table
        }
        numbers = {name: pairs[name] for name in ("clean_score", "poisoned_score", "modality_gap")}
        rows.append({"epoch": one["epoch"], "checkpoint": one["checkpoint"], **numbers, **safe, **recalls})
    return pd.DataFrame(rows).sort_values("epoch", kind="stable", na_position="last", ignore_index=True)


@dataclass(frozen=True)
class State:
    """A checkpoint and the epoch after which it was written; None where that is not known."""

    path: Path
    epoch: float | None


def states_in(places: Sequence[Path]) -> list[State]:
    """The checkpoints that files and folders name.

    A run's folder (a victim's or a trial's) gives the checkpoints of its points that are still there; any other folder
    its .pt and .safetensors files.

    Raises:
        InvalidInput: if a place does not exist or holds none.
    """
    states: list[State] = []
    for place in places:
        if place.is_dir():
            run = RunFolder(place)
            kept = [(run.checkpoint_path(point), point.epoch) for point in run.points()]
            own = [State(path, epoch) for path, epoch in kept if path is not None]
            files = sorted(path for path in place.iterdir() if path.suffix in (".pt", ".pth", ".safetensors"))
            found = own or [State(path, _epoch_of(path)) for path in files]
            if not found:
                raise InvalidInput(
                    f"{place} holds no checkpoint; a victim keeps those of its selected epoch and of `keep_epochs`"
                )
            states += found
        elif place.is_file():
            states.append(State(place, _epoch_of(place)))
        else:
            raise InvalidInput(f"checkpoint {place} does not exist; give files or folders")
    return states


def _epoch_of(path: Path) -> float | None:
    """What the file says; checkpoints of SweepLab and of CleanCLIP's family have an `epoch`."""
    if path.suffix == ".safetensors":
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001 - whether it can be read at all is told when its weights are
        return None
    epoch = content.get("epoch") if isinstance(content, dict) else None
    return float(epoch) if isinstance(epoch, (int, float)) else None


def examine_unknown(request: EvaluationRequest, wants: Iterable[str] = ("panel",)) -> dict[str, Any]:
    """Measure a checkpoint whose attack nobody knows: accuracy, and a panel that guesses each trigger's target.

    Args:
        request: names the checkpoint, and where the file does not tell, architecture and test set.
        wants: `panel`, which is all that can be measured without pairs and trigger.
    """
    others = [want for want in _known(wants) if want != "panel"]
    if others:
        raise InvalidInput(f"--what {others[0]} needs the pairs or the trigger of a sweep; give --script SCRIPT")
    machine = whole_machine(home_folder())
    device = prepare_process(machine)
    architecture = architecture_of(request)
    measure = measure_for(architecture, evaluation_of(request), None, machine)
    model = victim_model(architecture, request.checkpoint).to(device).eval()
    panel = _panel(model, measure, None)
    panel["note"] = f"{panel['note']} {GUESSED}"
    return {"checkpoint": str(request.checkpoint), "panel": panel}


GUESSED = (
    "The attack is not known, so each target is a guess: the class that draws most of the images that the trigger "
    "changed. An untouched model has such a class too; compare with the ASR of a clean model of the same kind."
)


def _known(wants: Iterable[str]) -> list[str]:
    wanted = list(wants)
    unknown = [want for want in wanted if want not in WANTS]
    if unknown or not wanted:
        raise InvalidInput(f"{unknown[0] if unknown else 'nothing'!r} cannot be examined; known: {', '.join(WANTS)}")
    return wanted


def _panel(model: nn.Module, measure: Measure, planted: Trigger | None) -> dict[str, Any]:
    ready = [member for member in ATTACKS if not any(field.is_required() for field in member.model_fields.values())]
    others = [member.model_validate({"kind": member.model_fields["kind"].default}) for member in ready]
    fitting = []
    for attack in others:
        try:
            attack.check_fits(measure.image_size)
        except InvalidInput:
            continue
        fitting.append(attack)
    target = planted.target if planted is not None else None
    # Targeted images carry no trigger that could be stamped on others.
    stamped = [cast(Attack, planted.attack)] if planted is not None and target is not None else []
    measurement, rows = run_panel(model, measure, [*stamped, *fitting], target)
    return {
        "accuracy": measurement.accuracy,
        "accuracy_interval": list(wilson(measurement.accuracy_k, measurement.accuracy_n)),
        "attacks": [
            {
                "attack": row.attack,
                "target": row.target,
                "target_is_guessed": target is None,
                "asr": row.asr_k / row.asr_n if row.asr_n else None,
                "interval": list(wilson(row.asr_k, row.asr_n)) if row.asr_n else None,
                "triggered_accuracy": row.correct_k / row.asr_n if row.asr_n else None,
                "changed": row.changed_k / len(measure.images),
                "most_common": row.most_common,
            }
            for row in rows
        ],
        "note": NOT_CERTIFIED,
    }


def _probe(model: nn.Module, measure: Measure, target: str | None) -> dict[str, Any]:
    """Trained on every second test image of each class, tested on the others; an ASR where there is a trigger."""
    labels = measure.images.labels
    rank_in_class = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rank_in_class[own] = np.arange(len(own))
    clean = _features(model, measure, triggered=False).numpy()
    train, test = rank_in_class % 2 == 0, rank_in_class % 2 == 1
    triggered = None
    if target is not None:
        triggered = np.zeros_like(clean)
        triggered[measure.triggered_rows] = _features(model, measure, triggered=True).numpy()
    result = linear_probe(
        (clean[train], labels[train]),
        (clean[test], labels[test]),
        triggered=triggered[test] if triggered is not None else None,
        target=measure.images.class_names.index(target) if target is not None else None,
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
    victim = sweep.original_victim()
    if not isinstance(victim, PretrainedVictim):
        raise InvalidInput("'pairs' and 'retrieval' need the victim's pre-training pairs, and a checkpoint names none")
    _, plan = victim_table(victim, machine)
    pairs = victim_pairs(victim, machine)
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
            "safe": dataclasses.asdict(_safe_set(scores, poison)),
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
            found["retrieval"] |= _retrieval_asr(sweep, pairs, images, texts, poison, clean)
    return found


def _retrieval_asr(
    sweep: CleaningSweep, pairs: Any, images: Tensor, texts: Tensor, poison: np.ndarray, clean: np.ndarray
) -> dict[str, float]:
    """`asr@k`: poisoned images that retrieve captions of the target; nothing where there is no single target, or no
    caption of it."""
    target = sweep.trigger().target
    if target is None:
        return {}
    named = torch.tensor([mentions(pairs.caption(int(row)), target) for row in clean])  # as poisoning tells them
    if not bool(named.any()):
        return {}
    own, rows = torch.from_numpy(np.flatnonzero(poison)), torch.from_numpy(clean)
    return {f"asr@{k}": retrieval_asr(images[own], texts[rows], named, k) for k in (1, 5, 10) if k <= len(clean)}


def _safe_set(scores: np.ndarray, poison: np.ndarray) -> SafeSet:
    """What SafeCLIP's rule would call safe at this state: the first time's, on pairs without augmentation (the method
    itself scores augmented copies, and later takes a growing share)."""
    posterior = mixture_posterior(torch.from_numpy(scores), stream_seed(0, "safeclip mixture"))
    return safe_set((posterior > SafeCLIP().safe_posterior).numpy(), poison)


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
