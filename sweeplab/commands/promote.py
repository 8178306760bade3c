"""Promote: a trial's cleaned model as a folder that open_clip or transformers loads, measured again from its files."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sweeplab.clip_folders import folder_architecture, hugging_face_files, with_hugging_faces_names
from sweeplab.clip_model import LOCAL_CONFIG, LOCAL_WEIGHTS, Architecture, load_local, local_config
from sweeplab.commands.model_card import Evidence, model_card
from sweeplab.evaluation.measure import Measure
from sweeplab.evaluation.retention import best_cleaned_point
from sweeplab.experiment import CleaningSweep
from sweeplab.ranking.kept_weights import find_weights
from sweeplab.ranking.leaderboard import Leaderboard, rank_trials, result_lines
from sweeplab.records import Measurement, Outcomes, Point, SweepRecord, TrialRecord, percent
from sweeplab.specs import Failed, InvalidInput, file_digest
from sweeplab.storage.home import home_folder
from sweeplab.storage.node_cache import content_of, local_copy
from sweeplab.sweep_folder import SweepFolder
from sweeplab.tracking.registry import Registration, Registry
from sweeplab.training.objective import has_classifier
from sweeplab.worker.input_paths import recorded_sweep
from sweeplab.worker.inputs import measure_for, victim_model
from sweeplab.worker.jobs import whole_machine
from sweeplab.worker.run import blaming, prepare_process

Format = Literal["open_clip", "pt", "hf"]
"""How the model is written: for open_clip with weights as safetensors, or as a state dict by torch.save; or for
transformers."""

WEIGHTS: dict[Format, str] = {"open_clip": LOCAL_WEIGHTS, "pt": "model.pth", "hf": "model.safetensors"}
"""The file of weights: names by which the libraries find it."""

CARD = "README.md"


NEAR_TIE = 1e-5
"""Of the two best cosines of an image: closer ones may round the other way on another machine."""


@dataclass(frozen=True)
class Promoted:
    """What was measured from the written files."""

    measurement: Measurement
    other_clean: tuple[int, ...] = ()
    """Rows of the test images that this machine classifies otherwise than the one that ran the sweep: near-ties all."""
    other_triggered: tuple[int, ...] = ()
    """The same of triggered images; under targeted poisoning the target images count."""
    version: int | None = None
    """In MLflow, where it was registered."""

    def notes(self) -> list[str]:
        """A sentence on each kind of image that was classified otherwise."""
        kinds = (("clean", self.other_clean), ("triggered", self.other_triggered))
        return [
            f"{len(rows)} {kind} image{'s' * (len(rows) > 1)} (row {', '.join(map(str, rows))} of the test set, from "
            f"0) counted otherwise in the sweep: the two best cosines lie within {NEAR_TIE:g}, and machines round "
            "differently"
            for kind, rows in kinds
            if rows
        ]


@dataclass(frozen=True)
class Chosen:
    """The point whose model is taken away."""

    trial: TrialRecord
    point: Point
    location: str
    """Path or URL of its weights."""


def promote(
    folder: SweepFolder,
    number: int | None,
    to: Path,
    layout: str = "open_clip",
    registration: Registration | None = None,
) -> Promoted:
    """Write a trial's model and its card to a folder, and measure it from there.

    Args:
        folder: the sweep's, which is only read.
        number: the trial, whose best cleaned point is taken; None: the leaderboard's best.
        to: a folder that is not there yet, or empty.
        layout: see `Format`.
        registration: under which name the folder is registered in the home's MLflow too; None: it is not.

    Returns:
        What was measured from the written files: the ledger's own counts, but for near-ties.

    Raises:
        InvalidInput: if there is no such point, its weights are not kept or not CLIP's alone, the format has no such
            model, the sweep's record does not say how to measure it or its test images are other ones now, or the
            folder is none to write to.
        Failed: if the written model is not the one that the sweep measured; nothing is left behind. If MLflow does not
            take it; then the folder stays.
    """
    if layout not in get_args(Format):
        raise InvalidInput(f"--format={layout!r} is unknown; known: {', '.join(get_args(Format))}")
    _check_target(to)
    sweep, record = _spec_of(folder), folder.record()
    board = rank_trials(record, folder.outcomes, find_weights(record))
    chosen = choose(record, board, number)
    _check_zero_shot(sweep, chosen)
    registry = None
    if registration is not None:
        registry = Registry(folder.home, record, str(folder.header()["identity"]), chosen.trial.number)
    kind, architecture = cast(Format, layout), sweep.victim.architecture
    files = _files_beside(architecture, kind)
    measure = _measure_of(sweep, chosen.point)
    try:
        source = local_copy(chosen.location, content_of(chosen.location), None)
        weights = {
            name: tensor.contiguous() for name, tensor in victim_model(architecture, source).state_dict().items()
        }
        of_source = file_digest(source)
    except FileNotFoundError as error:  # a running sweep keeps the weights of its best points alone
        raise InvalidInput(
            f"{chosen.location} is gone: the sweep has better points by now; run promote again"
        ) from error
    with _aside(to) as place:
        _write_model(files, weights, place, kind)
        known = folder.outcomes(chosen.trial.number, chosen.point.index)
        promoted = _measured_again(_loaded(place, kind), weights, measure, chosen, known)
        digests = {"checkpoint": of_source} | {name: file_digest(place / name) for name in os.listdir(place)}
        row = next(row for row in board.rows if row.trial == chosen.trial.number)
        facts = (sweep, folder.header(), record, board, row, chosen.point)
        evidence = Evidence(*facts, promoted.measurement, promoted.notes(), digests, for_transformers=kind == "hf")
        (place / CARD).write_text(model_card(evidence), encoding="utf-8", errors="backslashreplace")
    if registry is not None and registration is not None:
        tags = _tags(record, chosen, promoted.measurement, kind, digests)
        version = registry.register(to.absolute(), registration, tags)
        promoted = dataclasses.replace(promoted, version=version)
    return promoted


def _tags(
    record: SweepRecord, chosen: Chosen, measured: Measurement, layout: Format, digests: dict[str, str]
) -> dict[str, str]:
    """What MLflow tells of a registered version."""
    return {
        "sweeplab.sweep": record.name,
        "sweeplab.trial": str(chosen.trial.number),
        "sweeplab.epoch": f"{chosen.point.epoch:g}",
        "sweeplab.victim": record.victim_name,
        "sweeplab.target": str(record.target),
        "sweeplab.format": layout,
        "sweeplab.weights": digests[WEIGHTS[layout]],
        "accuracy": f"{measured.accuracy_k}/{measured.accuracy_n}",
        "asr": f"{measured.asr_k}/{measured.asr_n}",
    }


def choose(record: SweepRecord, board: Leaderboard, number: int | None) -> Chosen:
    """The point to take away.

    Raises:
        InvalidInput: where there is none, or its weights are not kept; it says what remains and what to do.
    """
    if number is None:
        if board.winner is None:
            raise InvalidInput(f"sweep {record.name!r} has no cleaned trial to promote; {_what_remains(record, board)}")
        number = board.winner.trial
    row = next((row for row in board.rows if row.trial == number), None)
    trial = next((trial for trial in record.trials if trial.number == number), None)
    if row is None or trial is None:
        raise InvalidInput(
            f"sweep {record.name!r} has no trial {number}; `sweeplab leaderboard {record.name}` lists {len(board.rows)}"
        )
    point = best_cleaned_point(trial.points, record.asr_ceiling, start_counts=trial.start_counts)
    if point is None:
        ceiling, lowest = percent(record.asr_ceiling, None), "nothing was measured yet"
        if row.min_asr is not None:
            lowest = f"its lowest ASR is {percent(row.min_asr, ceiling=record.asr_ceiling)}"
        raise InvalidInput(
            f"trial {number} of {record.name} has no point below the ASR ceiling of {ceiling} "
            f"({lowest}), so there is no cleaned model to promote; {_what_remains(record, board)}"
        )
    if row.checkpoint is None:
        raise InvalidInput(
            f"the weights of trial {number} of {record.name} are not kept; {_what_remains(record, board)}; to make "
            f"them again raise resources.keep_checkpoints, `sweeplab rerun {record.name} {number}`, and run the sweep"
        )
    return Chosen(trial, point, row.checkpoint)


def _what_remains(record: SweepRecord, board: Leaderboard) -> str:
    """Which weights the sweep still has."""
    kept = [str(row.trial) for row in board.rows if row.checkpoint is not None]
    if kept:
        return f"the weights of trial {', '.join(kept)} are kept, the best first"
    if board.closest:
        return "\n".join(result_lines(board))
    return f"sweep {record.name!r} keeps no weights"


def _spec_of(folder: SweepFolder) -> CleaningSweep:
    """The sweep's spec, by which its model is built and measured.

    Raises:
        InvalidInput: if the record does not hold all of it.
    """
    header = folder.header()
    if "imported" in header:
        raise InvalidInput(
            f"sweep {folder.name!r} was imported from {header['imported']['file']}, a table without weights; promote "
            "where it was run"
        )
    if own := header.get("own_code"):
        raise InvalidInput(
            f"sweep {folder.name!r} uses {', '.join(own)}, which its script defines and its record does not hold, so "
            "it cannot be measured again from the record; `evaluate` with that script measures its weights, whose path "
            "the leaderboard names"
        )
    return recorded_sweep(header)


def _check_zero_shot(sweep: CleaningSweep, chosen: Chosen) -> None:
    method = sweep.setting(chosen.trial.params).method
    if has_classifier(method):
        raise InvalidInput(
            f"method {getattr(method, 'kind', '?')!r} is measured by the classifier that it trains, which open_clip's "
            f"layout does not hold: without it the model is another one than was measured. Its checkpoint holds both: "
            f"{chosen.location}"
        )


# --- the folder


def _check_target(to: Path) -> None:
    if to.resolve() == Path.cwd() or to.name == "..":
        raise InvalidInput(f"--to {to} is the folder that you are in; give one that is new or empty")
    try:
        is_free = not os.path.lexists(to) or (not to.is_symlink() and to.is_dir() and not any(to.iterdir()))
    except OSError as error:
        raise InvalidInput(f"--to {to} cannot be looked at ({error.strerror}); choose another folder") from error
    if not is_free:
        raise InvalidInput(f"--to {to} is there already; give a folder that is new or empty")


@contextmanager
def _aside(to: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its place once all is well, and is removed otherwise.

    Raises:
        InvalidInput: if the folder cannot be written.
    """
    place = to.absolute().with_name(f".{to.absolute().name}.{os.getpid()}.part")
    try:
        with _as_bad_target(to):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir()
        yield place
        with _as_bad_target(to):
            os.replace(place, to)  # an empty folder of that name gives way
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _as_bad_target(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"cannot write to {to} ({error.strerror}); choose another folder") from error


def _files_beside(architecture: Architecture, layout: Format) -> dict[str, str]:
    """The files of text beside the weights, by name."""
    if layout == "hf":
        return hugging_face_files(architecture)
    return {LOCAL_CONFIG: json.dumps(local_config(architecture), indent=2, allow_nan=False) + "\n"}


def _write_model(files: dict[str, str], weights: dict[str, Tensor], place: Path, layout: Format) -> None:
    for name, text in files.items():
        (place / name).write_text(text, encoding="utf-8")
    named = with_hugging_faces_names(weights) if layout == "hf" else weights
    if layout == "pt":
        torch.save(named, place / WEIGHTS[layout])
    else:
        save_file(named, place / WEIGHTS[layout], metadata={"format": "pt"})
    shutil.copymode(place / next(iter(files)), place / WEIGHTS[layout])  # safetensors makes files for this user alone


def _loaded(place: Path, layout: Format) -> nn.Module:
    """The model of a folder: as open_clip loads it, or, of transformers' layout, as SweepLab does."""
    if layout != "hf":
        return load_local(place)
    return victim_model(folder_architecture(place), place).eval()


# --- the numbers


def _measure_of(sweep: CleaningSweep, point: Point) -> Measure:
    """The sweep's own measure.

    Raises:
        InvalidInput: if the test images, classes or trigger are not those that it measured.
    """
    machine = whole_machine(home_folder(to_read=True))
    measure = measure_for(sweep.victim.architecture, sweep.evaluation, sweep.trigger(), machine, sweep.protocol)
    if measure.digest != (known := point.measurement.evaluation_digest):
        raise InvalidInput(
            f"the test images, classes or trigger are not those that sweep {sweep.name!r} measured (digest {known} -> "
            f"{measure.digest}), so its numbers cannot be measured again; restore the files"
        )
    return measure


def _measured_again(
    model: nn.Module, weights: dict[str, Tensor], measure: Measure, chosen: Chosen, outcomes: Outcomes | None
) -> Promoted:
    """What the model that was loaded from a folder is measured at.

    Args:
        model: in evaluation mode.
        weights: that it must have.
        measure: the sweep's own.
        chosen: the point, with what the sweep measured.
        outcomes: that image by image; None where they were not kept: then the counts must be equal.

    Raises:
        Failed: if it holds other weights, or another image than a near-tie is classified otherwise.
    """
    written = model.state_dict()
    other = [name for name in weights if name not in written or not torch.equal(written[name], weights[name])]
    if other or len(written) != len(weights):
        raise Failed(f"other weights are read than were written, first {(other or sorted(written))[0]!r}")
    device = prepare_process(whole_machine(home_folder(to_read=True)))
    with blaming(chosen.location):
        measured, found = measure(model.to(device))
        names = ("accuracy_k", "accuracy_n", "asr_k", "asr_n")
        ours, theirs = ([getattr(values, name) for name in names] for values in (measured, chosen.point.measurement))
        rows = places = np.empty(0, np.int64)
        is_other = ours != theirs
        if outcomes is not None and _counts(outcomes) == theirs and found != outcomes:
            rows = np.flatnonzero(found.correct_mask() != outcomes.correct_mask())
            places = np.flatnonzero(found.hit_mask() != outcomes.hit_mask())
            is_other = bool((torch.cat(measure.margins(model, rows.tolist(), places.tolist())) >= NEAR_TIE).any())
    if is_other:
        raise Failed(
            "the written model is measured at accuracy {}/{} and ASR {}/{}, ".format(*ours)
            + "and the sweep measured {}/{} and {}/{}: nothing was kept. ".format(*theirs)
            + "Its weights are the checkpoint's, so this machine computes otherwise than the one that ran the sweep "
            "(another device, or versions); promote there"
        )
    triggered = measure.triggered_rows[places] if len(measure.triggered_rows) else places
    return Promoted(measured, tuple(rows.tolist()), tuple(triggered.tolist()))


def _counts(outcomes: Outcomes) -> list[int]:
    correct, hits = outcomes.correct_mask(), outcomes.hit_mask()
    return [int(correct.sum()), len(correct), int(hits.sum()), len(hits)]
