"""What else can be measured of one checkpoint, on demand: what `sweeplab examine` does."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweeplab.attacks import ATTACKS
from sweeplab.attacks.poisoning import Attack, mentions
from sweeplab.clip_checkpoints import checkpoint_facts
from sweeplab.clip_folders import is_model_folder
from sweeplab.clip_model import Encoder, as_clip, normalise_pixels
from sweeplab.commands.evaluate import EvaluationRequest, architecture_of, evaluation_of
from sweeplab.data.images import load_image
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import LabelledImages
from sweeplab.evaluation import similarity
from sweeplab.evaluation.linear_probe import linear_probe
from sweeplab.evaluation.measure import Measure, Pixels, Trigger
from sweeplab.evaluation.panel import NOT_CERTIFIED, run_panel
from sweeplab.evaluation.retrieval import recall_at, retrieval_asr
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.pretraining.safeclip import SafeCLIP, mixture_posterior
from sweeplab.ranking.intervals import wilson
from sweeplab.specs import InvalidInput
from sweeplab.storage.files import write_atomically
from sweeplab.storage.home import home_folder
from sweeplab.storage.run_folder import RunFolder
from sweeplab.storage.sweep_records import section
from sweeplab.training.randomness import stream_seed
from sweeplab.worker.inputs import measure_for, victim_model, victim_pairs, victim_table
from sweeplab.worker.jobs import Machine, whole_machine
from sweeplab.worker.run import blaming, prepare_process

WANTS = ("panel", "probe", "pairs", "retrieval", "map")

SHARES = (0.01, 0.05, 0.1, 0.2, 0.3)
"""Of the pairs, in the detection table."""

MAP_IMAGES = 200
"""Images of each group in a map."""

RETRIEVAL_PAIRS = 5000
"""Pairs that retrieval ranks against each other."""

BATCH = 256


def examine_checkpoint(
    sweep: CleaningSweep,
    checkpoint: Path,
    wants: Iterable[str] | None = None,
    to: Path | None = None,
    train: Any = None,
    clean_pairs: int | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint with the data and the trigger of a sweep.

    Args:
        sweep: names architecture, test set, trigger, and the victim's pairs.
        checkpoint: the weights.
        wants: some of WANTS; None: all for which the sweep has what they need, `left_out` tells why the others are not
            there.
        to: folder for tables (`map.csv`, `map_distances.csv`, `detection_highest.csv`, `detection_lowest.csv`,
            `cosines.csv`) and `figures.html`, which draws histograms and map; None: they are not written.
        train: source of labelled images on which the linear probe is fitted; None: `sweep.evaluation.probe`.
        clean_pairs: so many of the clean pairs, drawn at random, stand for all of them beside all poisons. What is a
            share of all pairs (detection, the safe set) is then left out. None: all.

    Returns:
        Plain JSON values by what was wanted. Targeted poisoning stamps no trigger: the panel then guesses the targets
        of others, the probe and retrieval have no ASR, and there is no map.

    Raises:
        InvalidInput: for weights of another architecture, weights or embeddings that are not finite, prompts that do
            not tell the classes apart, or something wanted that needs what the sweep does not name.
    """
    found = _measured(sweep, checkpoint, wants, to, train, clean_pairs)
    return found | _figures(sweep, [(_epoch_of(checkpoint), found, to)], to)


def _measured(
    sweep: CleaningSweep,
    checkpoint: Path,
    wants: Iterable[str] | None,
    to: Path | None,
    train: Any,
    clean_pairs: int | None,
) -> dict[str, Any]:
    """What `examine_checkpoint` returns, with the tables written and without the figures."""
    train = train or sweep.evaluation.probe
    lacking = _lacking(sweep, train)
    wanted = [want for want in WANTS if want not in lacking] if wants is None else _known(wants)
    # Refused before the model and the data are loaded, which takes minutes.
    if missing := next((lacking[want] for want in wanted if want in lacking), None):
        raise InvalidInput(missing)
    machine = whole_machine(home_folder())
    device = prepare_process(machine)
    trigger = sweep.trigger()
    model = victim_model(sweep.victim.architecture, checkpoint).to(device).eval()
    found: dict[str, Any] = {"checkpoint": str(checkpoint), "protocol": sweep.protocol}
    if wants is None and lacking:
        found["left_out"] = lacking
    with blaming(checkpoint):
        # The test images are embedded once for all that looks at them, and not where only pairs are wanted.
        seen = None
        if set(wanted) & {"panel", "probe", "map", "retrieval"}:
            seen = Seen(
                model, measure_for(sweep.victim.architecture, sweep.evaluation, trigger, machine, sweep.protocol)
            )
            if "panel" in wanted:
                found["panel"] = _panel(model, seen.measure, trigger)
            if "probe" in wanted:
                found["probe"] = probe(seen, training_images(seen.measure.images, train, machine), trigger.target)
            if "map" in wanted and trigger.target is not None:
                found["map"] = _map(seen, trigger.target, to)
        if "pairs" in wanted or "retrieval" in wanted:
            found |= _pairs(model, sweep, machine, wanted, to, seen, clean_pairs)
    return found


def _lacking(sweep: CleaningSweep, train: Any) -> dict[str, str]:
    """What cannot be measured with what a sweep names, and why."""
    lacking = {}
    if train is None:
        lacking["probe"] = (
            "the linear probe is fitted on labelled images that are not the test set's, and none are named: give "
            "--train FOLDER, or evaluation.probe in the script"
        )
    if not isinstance(sweep.original_victim(), PretrainedVictim):
        for want in ("pairs", "retrieval"):
            lacking[want] = f"{want!r} needs the victim's pre-training pairs, and a checkpoint names none"
    return lacking


class Seen:
    """A model's image embeddings of the test set, made when first asked for."""

    def __init__(self, model: nn.Module, measure: Measure) -> None:
        self.model, self.measure = model, measure

    @cached_property
    def clean(self) -> Tensor:
        """(N, D), not of unit norm, of the clean test images."""
        return image_features(self.model, self.measure.clean_pixels, len(self.measure.images))

    @cached_property
    def triggered(self) -> Tensor:
        """(M, D), not of unit norm, of the triggered test images, which are not of the target class."""
        return image_features(self.model, self.measure.triggered_pixels, len(self.measure.triggered_rows))


def examine_checkpoints(
    sweep: CleaningSweep,
    places: Sequence[Path],
    wants: Iterable[str] = ("pairs",),
    to: Path | None = None,
    train: Any = None,
    clean_pairs: int | None = None,
) -> dict[str, Any]:
    """Measure several states of a model, such as the epochs of a victim (CleanCLIP, App. H and I; SafeCLIP, Fig. 2).

    Args:
        sweep: as for `examine_checkpoint`.
        places: checkpoints, or folders that hold some (a victim's, a trial's).
        wants: some of WANTS.
        to: folder for tables: `dynamics.csv`, and those of each checkpoint in a folder named after it; and for
            `figures.html`, which draws all their histograms and maps.
        train, clean_pairs: as for `examine_checkpoint`.

    Returns:
        `checkpoints`: what `examine_checkpoint` gives for each, with its epoch. `dynamics`: with `pairs` wanted, one
        row a checkpoint, by epoch; see `dynamics_table`.
    """
    states, wanted, found = states_in(places), _known(wants), []
    for (path, epoch), folder in zip(states, _folders([path for path, _ in states]), strict=True):
        inside = to / folder if to is not None else None
        measured = _measured(sweep, path, wanted, inside, train, clean_pairs)
        found.append((epoch, measured, inside))
    result: dict[str, Any] = {"checkpoints": [{**measured, "epoch": epoch} for epoch, measured, _ in found]}
    if "pairs" in wanted:
        table = dynamics_table(result["checkpoints"])
        result["dynamics"] = table.astype(object).where(table.notna(), None).to_dict("records")
        _write(table, to, "dynamics.csv")
    return result | _figures(sweep, found, to)


def _folders(checkpoints: Sequence[Path]) -> list[str]:
    """The folder of each checkpoint's tables: its name, numbered where trials have checkpoints of one name."""
    names = [path.stem for path in checkpoints]
    if len(set(names)) == len(names):
        return names
    return [f"{place}-{name}" for place, name in enumerate(names, start=1)]


def _figures(
    sweep: CleaningSweep, found: Sequence[tuple[float | None, dict[str, Any], Path | None]], to: Path | None
) -> dict[str, str]:
    """Write the page that draws histograms and maps, where any were asked for, and name it.

    Args:
        sweep: with whose data they were measured.
        found: of each checkpoint its epoch, what was found, and the folder of its tables.
        to: folder of the page; None: none is written.
    """
    drawn = [one for one in found if {"pairs", "map"} & set(one[1])]
    if to is None or not drawn:
        return {}
    from dashboards.examined import Examined, render_examined  # plotly takes a second to import

    page = render_examined(
        sweep.name,
        [
            Examined(
                name=checkpoint_name(Path(measured["checkpoint"]), epoch),
                cosines=pd.read_csv(folder / "cosines.csv") if "pairs" in measured else None,
                points=pd.read_csv(folder / "map.csv") if "map" in measured else None,
                distances=pd.read_csv(folder / "map_distances.csv") if "map" in measured else None,
            )
            for epoch, measured, folder in drawn
            if folder is not None
        ],
    )
    write_atomically(to / "figures.html", page.encode(), durable=False)
    return {"figures": str(to / "figures.html")}


def checkpoint_name(path: Path, epoch: float | None) -> str:
    """What a checkpoint is called in figures: its sweep and trial, or its victim, and its epoch; of other files the
    path's last two parts."""
    facts = checkpoint_facts(path) or {}
    victim, sweep = section(facts, "victim").get("name"), section(facts, "sweep").get("name")
    if not (name := sweep or victim):
        return "/".join(path.absolute().parts[-2:])
    parts = [f"trial {facts.get('trial')}"] if sweep else []
    parts += [f"epoch {epoch:g}"] if epoch is not None else []
    return ", ".join([str(name), *parts])


def _write(table: pd.DataFrame, to: Path | None, name: str) -> None:
    """Write a table into a folder; None: it is not written."""
    if to is not None:
        to.mkdir(parents=True, exist_ok=True)
        table.to_csv(to / name, index=False)


def dynamics_table(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """CLIPScores, detection, safe set and modality gap over checkpoints.

    Args:
        found: of `examine_checkpoint` with `pairs`, and `epoch`.

    Returns:
        Columns `epoch` (None where a checkpoint does not say), `checkpoint`, `clean_score`, `poisoned_score`,
        `modality_gap`; where all pairs were scored, `safe_size`, `safe_share`, `safe_poisons`, `safe_poison_share`, and
        for each share of the pairs looked at `recall_highest@SHARE` and `recall_lowest@SHARE`; by epoch, those without
        one last.
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


def states_in(places: Sequence[Path]) -> list[tuple[Path, float | None]]:
    """The checkpoints that files and folders name, each with the epoch after which it was written, where that is known.

    A run's folder (a victim's or a trial's) gives the checkpoints of its points that are still there; any other folder
    its .pt and .safetensors files.

    Raises:
        InvalidInput: if a place does not exist or holds none.
    """
    states: list[tuple[Path, float | None]] = []
    for place in places:
        if is_model_folder(place):
            states.append((place, None))
        elif place.is_dir():
            run = RunFolder(place)
            kept = {run.checkpoint_path(point): point.epoch for point in run.points()}
            files = sorted(path for path in place.iterdir() if path.suffix in (".pt", ".pth", ".safetensors"))
            found: list[tuple[Path, float | None]] = [(path, kept[path]) for path in kept if path is not None]
            found = found or [(path, _epoch_of(path)) for path in files]
            if not found:
                raise InvalidInput(
                    f"{place} holds no checkpoint; a victim keeps those of its selected epoch and of `keep_epochs`"
                )
            states += found
        elif place.is_file():
            states.append((place, _epoch_of(place)))
        else:
            raise InvalidInput(f"checkpoint {place} does not exist; give files or folders")
    return states


def _epoch_of(path: Path) -> float | None:
    """What the file says; checkpoints of SweepLab and of CleanCLIP's family have an `epoch`. (Safetensors files, which
    torch does not read, have none.)"""
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
    model = victim_model(architecture, request.checkpoint).to(device).eval()
    measure = measure_for(architecture, evaluation_of(request), None, machine)
    with blaming(request.checkpoint):
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
    target = planted.target if planted is not None else None
    # Targeted images carry no trigger that could be stamped on others.
    attacks = [cast(Attack, planted.attack)] if planted is not None and target is not None else []
    for member in ATTACKS:
        if not any(field.is_required() for field in member.model_fields.values()):
            with contextlib.suppress(InvalidInput):  # it does not fit into the images
                attack = member.model_validate({})
                attack.check_fits(measure.image_size)
                attacks.append(attack)
    measurement, rows = run_panel(model, measure, attacks, target)
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


def training_images(test: LabelledImages, train: Any, machine: Machine) -> LabelledImages:
    """The labelled images on which the linear probe is fitted.

    Raises:
        InvalidInput: if their classes are not the test set's, in the same order, or test images are among them.
    """
    images: LabelledImages = train.read(machine.data_home)
    if images.class_names != test.class_names:
        differing = zip_longest(images.class_names, test.class_names)
        theirs, ours = next(pair for pair in differing if pair[0] != pair[1])
        raise InvalidInput(
            f"the linear probe's training images have other classes than the test images: {len(images.class_names):,} "
            f"and {len(test.class_names):,}, the first that differ are {theirs!r} and {ours!r}; use folders of the "
            "same classes"
        )
    known = {test.image(row) for row in range(len(test))}
    shared = [path for row in range(len(images)) if (path := images.image(row)) in known]
    if shared:
        raise InvalidInput(
            f"{len(shared):,} of the linear probe's {len(images):,} training images are test images, the first "
            f"{shared[0]}; a probe that has seen them measures nothing: give others"
        )
    return images


def probe(seen: Seen, train: LabelledImages, target: str | None) -> dict[str, Any]:
    """Fitted on the training images, tested on all test images; an ASR where there is a trigger."""
    measure = seen.measure
    clean = seen.clean.numpy()
    triggered = None
    if target is not None:
        triggered = np.zeros_like(clean)
        triggered[measure.triggered_rows] = seen.triggered.numpy()

    def pixels(rows: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([load_image(train.image(row), measure.image_size) for row in rows]))

    result = linear_probe(
        (image_features(seen.model, pixels, len(train)).numpy(), train.labels),
        (clean, measure.images.labels),
        triggered=triggered,
        target=measure.images.class_names.index(target) if target is not None else None,
    )
    return {
        "accuracy": result.accuracy_k / result.accuracy_n,
        "asr": result.asr_k / result.asr_n if result.asr_n else None,
        "counts": dataclasses.asdict(result),
        "num_training_images": len(train),
    }


def _pairs(
    model: nn.Module,
    sweep: CleaningSweep,
    machine: Machine,
    wanted: list[str],
    to: Path | None,
    seen: Seen | None,
    clean_pairs: int | None,
) -> dict[str, Any]:
    victim = sweep.original_victim()
    assert isinstance(victim, PretrainedVictim)
    _, plan = victim_table(victim, machine)
    pairs = victim_pairs(victim, machine)
    # Pairs as the victim saw them: views are the objective's own changes.
    pairs.use_views(None)
    poison = np.zeros(len(pairs), dtype=bool)
    poison[list(plan.rows)] = True
    examined = scored_rows(poison, clean_pairs)
    poison, is_whole = poison[examined], len(examined) == len(pairs)
    images, texts = _embed_pairs(model, pairs, examined)
    found: dict[str, Any] = {}
    if "pairs" in wanted:
        scores = similarity.clip_scores(images, texts).numpy()
        tables = {
            word: similarity.detection_recall(scores, poison, SHARES, word)
            for word in (("highest", "lowest") if poison.any() and is_whole else ())
        }
        found["pairs"] = {
            "clean_score": float(scores[~poison].mean()),
            "poisoned_score": float(scores[poison].mean()) if poison.any() else None,
            "modality_gap": similarity.modality_gap(images[~poison], texts[~poison]),
            "num_clean": int((~poison).sum()),
            "safe": dataclasses.asdict(_safe_set(scores, poison)) if is_whole else {},
            "detection": {word: table.to_dict("records") for word, table in tables.items()},
        }
        for word, table in tables.items():
            _write(table, to, f"detection_{word}.csv")
        _write(similarity.histogram(scores, poison), to, "cosines.csv")
    if "retrieval" in wanted:
        assert seen is not None
        # Retrieval is asked of pairs that belong together; poisoned captions belong to no image.
        clean = np.flatnonzero(~poison)[:RETRIEVAL_PAIRS]
        captions = [pairs.caption(int(row)) for row in examined[clean]]
        paths = [os.path.normpath(str(pairs.table.image(int(row)))) for row in examined[clean]]
        rows = torch.from_numpy(clean)
        found["retrieval"] = _recall(images[rows], texts[rows], paths, pairs.tokenize(captions))
        target = sweep.trigger().target
        if target is not None:
            triggered = F.normalize(seen.triggered, dim=1)
            found["retrieval"] |= _retrieval_asr(triggered, texts[rows], captions, target)
    return found


def scored_rows(poison: np.ndarray, clean_pairs: int | None) -> np.ndarray:
    """Rows that are scored: all, or all poisons and so many of the others, drawn at random.

    Args:
        poison: (N,) bool.
        clean_pairs: see `examine_checkpoint`; more than there are: all.

    Returns:
        Ascending row numbers.

    Raises:
        InvalidInput: if fewer than one clean pair is asked for.
    """
    clean = np.flatnonzero(~poison)
    if clean_pairs is None or clean_pairs >= len(clean):
        return np.arange(len(poison))
    if clean_pairs < 1:
        raise InvalidInput(f"--clean-pairs {clean_pairs} must be 1 at least; leave it out for all pairs")
    return np.sort(np.concatenate([np.flatnonzero(poison), clean[Sample(num=clean_pairs).rows(len(clean))]]))


def _recall(images: Tensor, texts: Tensor, paths: Sequence[str], tokens: Tensor) -> dict[str, Any]:
    """Recall over pairs, each image once with all its captions.

    Args:
        images, texts: (N, D), rows of unit norm, paired row by row.
        paths: N, of the images.
        tokens: (N, context_length), of the captions: those that the model cannot tell apart read the same.
    """
    first, owner = images_of(paths)
    return {"num_pairs": len(paths), "num_images": len(first), **recall(images[first], texts, owner, tokens)}


def images_of(paths: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The images behind pairs: (M,) int64, the first row of each, and (N,) int64, which of them each row has.

    Args:
        paths: N, of the pairs' images.
    """
    _, first, owner = np.unique(np.array(paths), return_index=True, return_inverse=True)
    return torch.from_numpy(first), torch.from_numpy(owner)


def recall(images: Tensor, texts: Tensor, owner: Tensor, tokens: Tensor) -> dict[str, float]:
    """`recall_at`, where captions of the same tokens read the same."""
    return recall_at(images, texts, owner, wording=torch.unique(tokens, dim=0, return_inverse=True)[1])


def _retrieval_asr(triggered: Tensor, texts: Tensor, captions: Sequence[str], target: str) -> dict[str, Any]:
    """`asr@k`: triggered test images of other classes that retrieve captions of the target; nothing where no caption
    mentions it."""
    named = torch.tensor([mentions(caption, target) for caption in captions])  # as poisoning tells them
    if not bool(named.any()):
        return {}
    ks = [k for k in (1, 5, 10) if k <= len(captions)]
    return {f"asr@{k}": retrieval_asr(triggered, texts, named, k) for k in ks} | {"num_triggered": len(triggered)}


def _safe_set(scores: np.ndarray, poison: np.ndarray) -> similarity.SafeSet:
    """What SafeCLIP's rule would call safe at this state: the first time's, on pairs without augmentation (the method
    itself scores augmented copies, and later takes a growing share)."""
    posterior = mixture_posterior(torch.from_numpy(scores), stream_seed(0, "safeclip mixture"))
    return similarity.safe_set((posterior > SafeCLIP().safe_posterior).numpy(), poison)


def _map(seen: Seen, target: str, to: Path | None) -> dict[str, Any]:
    """A map of target and other images, these with and without the trigger, and how far they lie from the target."""
    images, rows = seen.measure.images, torch.from_numpy(seen.measure.triggered_rows)
    clean, triggered = F.normalize(seen.clean, dim=1), F.normalize(seen.triggered, dim=1)
    own = torch.from_numpy(images.labels == images.class_names.index(target))
    groups = {"clean": clean[rows], "triggered": triggered, "target": clean[own]}
    points = similarity.two_dimensions({name: _spread(part) for name, part in groups.items()}, seed=0)
    distances = similarity.target_distances(groups, points)
    _write(points, to, "map.csv")
    _write(distances, to, "map_distances.csv")
    return {
        "distances": distances.to_dict("records"),
        "table": str(to / "map.csv") if to is not None else None,
    }


def _spread(rows: Tensor) -> Tensor:
    """At most MAP_IMAGES rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(MAP_IMAGES, len(rows))).astype(int)]


@torch.inference_mode()
def image_features(model: nn.Module, pixels: Pixels, count: int) -> Tensor:
    """(count, D) un-normalised features of images, on the CPU."""
    device = next(model.parameters()).device
    batches = (pixels(rows.tolist()).to(device) for rows in torch.arange(count).split(BATCH))
    return torch.cat([as_clip(model).encode_image(normalise_pixels(batch)).float().cpu() for batch in batches])


@torch.inference_mode()
def _embed_pairs(model: nn.Module, pairs: Any, examined: np.ndarray) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    images, texts = [], []
    for rows in torch.from_numpy(examined).split(BATCH):
        batch = pairs.first_copies(1, rows.tolist()).to(device)
        image_rows, text_rows, _ = Encoder(model)(normalise_pixels(batch.images), batch.tokens)
        images.append(F.normalize(image_rows, dim=1).cpu())
        texts.append(F.normalize(text_rows, dim=1).cpu())
    return torch.cat(images), torch.cat(texts)
