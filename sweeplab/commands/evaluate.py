"""One checkpoint, one evaluation: what `sweeplab evaluate` does."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeplab.attacks import ATTACKS
from sweeplab.clip_checkpoints import checkpoint_architecture, checkpoint_facts, load_weights, quick_gelu_of
from sweeplab.clip_folders import architecture_named
from sweeplab.clip_model import Architecture, matching_architectures
from sweeplab.data.labelled_sources import source_at
from sweeplab.data.labels import lines_of
from sweeplab.evaluation.measure import Evaluation, Trigger
from sweeplab.experiment import CleaningSweep
from sweeplab.records import Measurement
from sweeplab.specs import InvalidInput, kinds
from sweeplab.storage.home import home_folder
from sweeplab.training.objective import has_classifier
from sweeplab.worker.jobs import MeasuringJob, whole_machine
from sweeplab.worker.run import measure_checkpoint


@dataclass(frozen=True)
class EvaluationRequest:
    """What was asked for; a sweep gives what the other fields leave open."""

    checkpoint: Path
    sweep: CleaningSweep | None = None
    architecture: str | None = None
    test: Path | None = None
    classes: str = "folders"
    attack: str | None = None
    attack_fields: str = "{}"
    target: str | None = None


def evaluate_checkpoint(request: EvaluationRequest) -> Measurement:
    """Measure a checkpoint in this process: by prompts, and where a sweep is named as the sweep does.

    Raises:
        InvalidInput: if the architecture, the test set or half of the trigger is missing, the attack is unknown, or
            the sweep measures its trials by a classifier that they train.
    """
    _check_zero_shot(request)
    job = MeasuringJob(
        architecture_of(request),
        str(request.checkpoint),
        evaluation_of(request),
        trigger_of(request),
        whole_machine(home_folder()),
        request.sweep.protocol if request.sweep is not None else "paper",
    )
    return measure_checkpoint(job)[0]


def _check_zero_shot(request: EvaluationRequest) -> None:
    sweep = request.sweep
    if sweep is None or not has_classifier(sweep.method):
        return
    if "sweep" in (checkpoint_facts(request.checkpoint) or {}):  # a trial's, not the victim's
        raise InvalidInput(
            f"checkpoint {request.checkpoint} is of a trial whose method, {getattr(sweep.method, 'kind', '?')!r}, is "
            "measured by the classifier that it trains: by prompts it is another model than the sweep measured; name a "
            "test set with --test, and no sweep, to measure that one"
        )


def evaluation_of(request: EvaluationRequest) -> Evaluation:
    """What is measured on: the test set that was named, else the sweep's.

    Prompts are the sweep's, if there is one, else those that come with the test set, else ImageNet's.
    """
    sweep = request.sweep
    if request.test is None:
        if sweep is None:
            raise InvalidInput("no test set: give --test PATH, or --script SCRIPT or --sweep NAME to take a sweep's")
        return sweep.evaluation
    test = labelled_source(request.test, request.classes)
    if sweep is not None:
        return Evaluation(test=test, templates=sweep.evaluation.templates)
    has_templates = hasattr(test, "has_templates") and test.has_templates()
    return Evaluation(test=test, templates="dataset" if has_templates else "imagenet")


def labelled_source(path: Path, classes: str, split: str = "test") -> Any:
    """The labelled images that a path of the command line names.

    Args:
        path: see `source_at`.
        classes: `folders`, `imagenet`, or a text file of names.
        split: of sources that have splits.
    """
    if classes in ("folders", "imagenet"):
        return source_at(path, classes, split)  # type: ignore[arg-type]
    if not Path(classes).is_file():
        raise InvalidInput(
            f"--classes={classes!r} is unknown; known: folders, imagenet, or a text file with one name a line"
        )
    return source_at(path, lines_of(Path(classes)), split)


def notes_of(request: EvaluationRequest) -> tuple[str, ...]:
    """What to look at in the test set before anything is measured: odd names, files that are left out."""
    return evaluation_of(request).load(home_folder() / "data").notes


def architecture_of(request: EvaluationRequest) -> Architecture:
    """The one that was named, else the sweep's, else what the checkpoint says or its shapes leave no doubt about."""
    if request.architecture is not None:
        return architecture_named(request.architecture)
    if request.sweep is not None:
        return request.sweep.victim.architecture
    found = checkpoint_architecture(request.checkpoint)
    return found if found is not None else _detected(request.checkpoint)


def _detected(checkpoint: Path) -> Architecture:
    """The architecture that the weights' shapes, and the file's layout, leave no doubt about.

    Raises:
        InvalidInput: if none of open_clip's fits, or the activation cannot be told.
    """
    names = matching_architectures(load_weights(checkpoint))
    # Shapes are the same with either activation; some files tell which one it was.
    if quick_gelu_of(checkpoint):
        names = [name for name in names if Architecture(name=name).resolved().get("quick_gelu")]
    if len(names) == 1:
        return Architecture(name=names[0])
    if not names:
        raise InvalidInput(
            f"checkpoint {checkpoint} fits none of open_clip's architectures; give --architecture FILE.json with "
            "its own configuration"
        )
    raise InvalidInput(
        f"checkpoint {checkpoint} fits {', '.join(names)}: shapes do not tell the activation; give --architecture NAME "
        "(OpenAI's weights and those of CleanCLIP, attack-cleanclip, SafeCLIP and RoCLIP use QuickGELU)"
    )


def trigger_of(request: EvaluationRequest) -> Trigger | None:
    """The one that was named, else the sweep's; None where neither says one."""
    planted = request.sweep.trigger() if request.sweep is not None else None
    if request.attack is None:
        if planted is None and request.target is not None:
            raise InvalidInput("--target needs --attack: say which trigger to stamp")
        if request.target is None or planted is None:
            return planted
        if planted.target is None:
            raise InvalidInput("--target: the sweep's targeted images have one class each; leave it out")
        return Trigger(planted.attack, request.target)
    target = request.target or (planted.target if planted else None)
    if target is None:
        raise InvalidInput("--attack needs --target: the class that the attacker wants, by name")
    return Trigger(attack_class(request.attack, "--attack=")(**_fields(request.attack_fields)), target)


def attack_class(kind: Any, name: str) -> Any:
    """The attack of that kind.

    Args:
        kind: as the user gave it.
        name: what the message calls it where there is no such attack.
    """
    for member in ATTACKS:
        if member.model_fields["kind"].default == kind:
            return member
    raise InvalidInput(f"{name}{kind!r} is unknown; known: {', '.join(kinds(ATTACKS))}")


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"--attack-fields={text!r} is no JSON object ({error})") from error
    if not isinstance(fields, dict):
        raise InvalidInput(f"--attack-fields={text!r} is no JSON object")
    return fields
