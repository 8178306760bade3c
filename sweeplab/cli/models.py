"""Commands on single models: pre-train, clean, evaluate and examine one; and a look at the machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeplab.cli.program import (
    MODELS,
    SURROUNDINGS,
    AsJson,
    Inline,
    Only,
    Overrides,
    Script,
    Smoke,
    SweepName,
    app,
    command,
    say,
    say_json,
    say_notes,
    say_table,
)
from sweeplab.cli.running import check_sources, start_one
from sweeplab.cli.scripts import one_experiment, one_sweep, sets_of, sweep_of_home
from sweeplab.ranking.intervals import wilson
from sweeplab.records import name_with, number_of, percent
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder
from sweeplab.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from sweeplab.commands.evaluate import EvaluationRequest
    from sweeplab.experiment import CleaningSweep
    from sweeplab.records import Measurement


@command(app, rich_help_panel=MODELS)
def pretrain(
    script: Script,
    overrides: Overrides = None,
    only: Only = None,
    smoke: Smoke = False,
    inline: Inline = False,
    as_json: AsJson = False,
) -> None:
    """Pre-train the victim of a script's sweep, and nothing else.

    `victim.poisoning.rate=0` trains its unpoisoned twin.
    """
    from sweeplab.experiment import PretrainedVictim, SelectedTrial
    from sweeplab.sweep.prepare import with_shared_storage
    from sweeplab.sweep.pretraining import select_epoch
    from sweeplab.sweep.run import Options, run_victim

    sweep = one_sweep(script, only, overrides or [], smoke)
    while isinstance(sweep.victim, SelectedTrial):
        sweep = sweep.victim.sweep
    victim = with_shared_storage(sweep).victim
    assert not isinstance(victim, SelectedTrial)
    if not isinstance(victim, PretrainedVictim):
        raise InvalidInput(
            f"{sweep.name}: its victim is a given checkpoint, {victim.path}; there is nothing to pre-train"
        )
    check_sources([victim])
    folder = run_victim(victim, home_folder(), Options(inline=inline))
    selected = select_epoch(victim, folder)
    weights = str(folder.checkpoint_path(selected))
    if as_json:
        say_json({**_measurement_values(selected.measurement), "epoch": selected.epoch, "checkpoint": weights})
        return
    _say_measurement(selected.measurement)
    say(f"weights: {weights}")


OwnArchitecture = Annotated[
    str | None,
    typer.Option(help="open_clip name, or a .json file with an own configuration, for weights that do not say it."),
]


@command(app, rich_help_panel=MODELS)
def clean(
    script: Script,
    settings: Annotated[
        list[str] | None, typer.Argument(help="parameter=value, setting=SWEEP/TRIAL, field.subfield=value")
    ] = None,
    only: Only = None,
    architecture: OwnArchitecture = None,
    smoke: Smoke = False,
    inline: Inline = False,
    as_json: AsJson = False,
) -> int:
    """Clean a script's victim with one setting, without a search.

    For example `sweeplab clean sweeps/quickstart.py learning_rate=6e-3`, or with what trial 10 of a sweep had,
    `setting=quickstart/10`.
    """
    from sweeplab.experiment import CleaningSweep, PretrainedVictim, apply_overrides
    from sweeplab.search_space import Grid
    from sweeplab.specs import digest_of
    from sweeplab.sweep.run import Options

    if isinstance(one_experiment(script, only, [], False), PretrainedVictim):
        raise InvalidInput(f"{script} runs a victim alone, and names nothing to clean it with; give a script of sweeps")
    given = settings or []
    fields = [s for s in given if "." in s.partition("=")[0] or s.partition("=")[0] in CleaningSweep.model_fields]
    of_search = [s for s in fields if s.startswith("search.")]
    sweep = one_sweep(script, only, [s for s in fields if s not in of_search], smoke)
    if architecture is not None:
        sweep = _with_architecture(sweep, architecture)
    params = parameters_of([text for text in given if text not in fields])
    axes = {name: (value,) for name, value in params.items()} or {"learning_rate": (sweep.optimization.learning_rate,)}
    grid = Grid(axes=axes, source="given on the command line")
    # First the grid, of which the seeds decide how many trials there are: those of the script may be no multiple.
    single = sweep.replace(grid=grid, search=sweep.search.replace(sampler="grid"))
    single = apply_overrides(single, of_search)
    if single.search.sampler != "grid":
        raise InvalidInput(f"search.sampler={single.search.sampler} draws settings, and `clean` runs one; leave it out")
    name = name_with(sweep.name, f"-single-{digest_of(single.canonical())[:8]}")
    return start_one(single.replace(name=name), Options(inline=inline), as_json=as_json)


def _with_architecture(sweep: "CleaningSweep", architecture: str) -> "CleaningSweep":
    """The sweep with a victim of that architecture."""
    from sweeplab.clip_folders import architecture_named
    from sweeplab.experiment import SelectedTrial

    if isinstance(sweep.victim, SelectedTrial):
        raise InvalidInput(
            f"--architecture: {sweep.name} cleans another sweep's best trial, whose architecture is that sweep's; "
            "leave it out"
        )
    return sweep.replace(victim=sweep.victim.replace(architecture=architecture_named(architecture)))


def parameters_of(texts: list[str]) -> dict[str, Any]:
    """The parameters that a command names, and those of a trial, `setting=SWEEP/TRIAL`; what comes later counts.

    Raises:
        InvalidInput: if one has no `=`, or there is no such trial.
    """
    params: dict[str, Any] = {}
    for text in texts:
        name, value = parameter_of(text)
        params |= _setting_of(str(value)) if name == "setting" else {name: value}
    return params


def _setting_of(place: str) -> dict[str, Any]:
    """The parameters of a trial of the home, to the last digit; those that do not apply in it are left out."""
    sweep, _, number = place.rpartition("/")
    if not sweep:
        raise InvalidInput(f"setting={place} is not of the form setting=SWEEP/TRIAL, such as setting=quickstart/10")
    folder = SweepFolder.of(home_folder(to_read=True), sweep)
    known = [str(trial) for trial in folder.trial_numbers()] if folder.header() else []
    if number not in known:
        listed = f"it has {known[0]} to {known[-1]}" if known else "it has none yet"
        raise InvalidInput(f"setting={place}: sweep {sweep!r} has no trial {number!r}; {listed}")
    params = folder.trial_header(int(number))["params"]
    return {name: value for name, value in params.items() if value is not None}


def parameter_of(text: str) -> tuple[str, Any]:
    """Name and value of `name=value`; the value is read as JSON if it is any, else as text.

    Raises:
        InvalidInput: if there is no `=`.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise InvalidInput(f"{text!r} is not of the form parameter=value")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):  # also of a number of thousands of digits
        return name, value


CHECKPOINT = "A .pt or .safetensors file, or a folder of open_clip (local-dir:) or of transformers' CLIPModel."
CLASSES = (
    "Names of the classes. `folders`: those that the test set has, ImageNet ids by OpenAI's names; `imagenet`: "
    "ImageNet's alone; or a text file, one name a line."
)
Classes = Annotated[str, typer.Option(help=CLASSES)]
TEST = (
    "Test set: a folder with one folder of images per class; a table (.csv, .tsv, .parquet) of images and labels; a "
    "folder of CLIP_benchmark's tars, of one of torchvision's data sets, or of ImageNet's flat validation images."
)
Test = Annotated[Path | None, typer.Option(help=TEST)]


@command(app, rich_help_panel=MODELS)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help=CHECKPOINT)],
    script: Annotated[
        Path | None, typer.Option(help="Take architecture, test set, trigger and target from this script's sweep.")
    ] = None,
    only: Only = None,
    sweep: Annotated[
        str | None, typer.Option(help="Take them from a sweep of the home, by its name, as it was run.")
    ] = None,
    architecture: OwnArchitecture = None,
    test: Test = None,
    classes: Classes = "folders",
    attack: Annotated[str | None, typer.Option(help="Kind of attack: badnet, blended, wanet, ...")] = None,
    attack_fields: Annotated[
        str, typer.Option(help='The attack\'s fields as JSON, such as {"patch_size": 16}.')
    ] = "{}",
    target: Annotated[str | None, typer.Option(help="Name of the target label.")] = None,
    sets: Annotated[
        Path | None,
        typer.Option(
            help="Script whose variable SETS names test sets: measure the accuracy on each, zero-shot and by a linear "
            "probe where images are named to fit it on."
        ),
    ] = None,
    retrieval: Annotated[
        Path | None,
        typer.Option(
            help="Images with several captions each: Karpathy's JSON (dataset_coco.json beside val2014/), or a table "
            "of pairs. Measure recall, and with a trigger how many images find a caption of the target among five."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy and ASR of one checkpoint, with 95 % intervals; or its accuracy on several test sets, or
    retrieval."""
    if sets is not None:
        others = {"--script": script, "--sweep": sweep, "--test": test, "--attack": attack, "--target": target}
        others |= {"--retrieval": retrieval}
        if given := next((name for name, value in others.items() if value is not None), None):
            raise InvalidInput(f"--sets names test sets and prompts, and no trigger is tried; leave {given} out")
        _evaluate_sets(checkpoint, architecture, sets, as_json=as_json)
        return
    from sweeplab.commands.evaluate import EvaluationRequest, evaluate_checkpoint, notes_of

    if sweep is not None and script is not None:
        raise InvalidInput("--sweep and --script both name a sweep; give one of them")
    taken = one_sweep(script, only, [], False) if script else None
    request = EvaluationRequest(
        checkpoint=checkpoint,
        sweep=sweep_of_home(sweep) if sweep is not None else taken,
        architecture=architecture,
        test=test,
        classes=classes,
        attack=attack,
        attack_fields=attack_fields,
        target=target,
    )
    if retrieval is not None:
        if test is not None:
            raise InvalidInput("--retrieval names the images that are measured on; leave --test out")
        _evaluate_retrieval(request, retrieval, as_json=as_json)
        return
    say_notes(notes_of(request))
    _say_measurement(evaluate_checkpoint(request), as_json=as_json)


def _evaluate_retrieval(request: "EvaluationRequest", path: Path, *, as_json: bool) -> None:
    from sweeplab.commands.retrieval import BEST, measure_retrieval, retrieval_values

    found = measure_retrieval(request, path)
    if as_json:
        say_json({"checkpoint": str(request.checkpoint), **retrieval_values(found)})
        return
    say(f"{number_of(found.num_images, 'image')} with {number_of(found.num_captions, 'caption')}")
    for name, recall in found.recalls.items():
        say(f"recall {name.replace('_', ' '):18} {percent(recall)}")
    if found.tried:
        say(f"ASR      {_rate_with_interval(found.hits, found.tried)}")
        say(f"         {_rate_with_interval(found.clean_hits, found.tried)} without the trigger")
        say(f"         (images that find a caption of the target among their best {BEST})")


def _evaluate_sets(checkpoint: Path, architecture: str | None, sets: Path, *, as_json: bool) -> None:
    from sweeplab.commands.evaluate import EvaluationRequest
    from sweeplab.commands.several_sets import measure_sets, render_sets, sets_values

    found = measure_sets(EvaluationRequest(checkpoint, architecture=architecture), sets_of(sets))
    if as_json:
        say_json({"checkpoint": str(checkpoint), **sets_values(found)})
    else:
        say_table(lambda width: render_sets(found))


@command(app, prints_json=True, rich_help_panel=MODELS)
def examine(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints, or folders of a victim or a trial.")],
    script: Annotated[
        Path | None, typer.Option(help="Take architecture, test set, trigger and pairs from this script's sweep.")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(
            help="panel, probe, pairs, retrieval or map; may be repeated. By default: for one checkpoint, all that the "
            "script's sweep allows; for several, pairs; without a script, panel."
        ),
    ] = None,
    only: Only = None,
    smoke: Smoke = False,
    architecture: OwnArchitecture = None,
    test: Test = None,
    classes: Classes = "folders",
    train: Annotated[
        Path | None, typer.Option(help="Labelled images to fit the linear probe on, in the layouts of --test.")
    ] = None,
    clean_pairs: Annotated[
        int | None,
        typer.Option(
            help="Score so many random clean pairs and all poisons, instead of all pairs: for millions of them. Shares "
            "of all pairs (detection, safe set) are then left out."
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write tables to (cosines, detection, map, dynamics), and figures.html, which draws "
            "histograms and maps, those of several checkpoints side by side."
        ),
    ] = None,
) -> None:
    """Examine checkpoints beyond accuracy and ASR; prints JSON.

    One checkpoint: a panel of triggers, a linear probe, CLIPScores and detection, retrieval, a map. Several
    checkpoints, or a folder of them: CLIPScores, detection, safe sets and modality gap over the epochs. Without a
    script, for a model whose attack is unknown: accuracy, and a panel that guesses the target of each trigger.
    """
    if script is not None:
        if architecture is not None or test is not None:
            raise InvalidInput("--architecture and --test go without --script, which names both; leave them out")
        found = _examined_with(one_sweep(script, only, [], smoke), checkpoints, what, to, train, clean_pairs)
    elif clean_pairs is not None:
        raise InvalidInput("--clean-pairs is for the pairs of a sweep's victim; give --script SCRIPT")
    elif train is not None:
        raise InvalidInput("--train is for the linear probe, which needs a sweep's test set; give --script SCRIPT")
    elif len(checkpoints) > 1 or _is_run(checkpoints[0]):
        raise InvalidInput("several checkpoints are compared on a sweep's pairs; give --script SCRIPT")
    else:
        from sweeplab.commands.evaluate import EvaluationRequest, notes_of
        from sweeplab.commands.examine import examine_unknown

        request = EvaluationRequest(checkpoints[0], architecture=architecture, test=test, classes=classes)
        say_notes(notes_of(request))
        found = examine_unknown(request, what or ["panel"])
    say_json(found)


def _is_run(path: Path) -> bool:
    """Whether a path is a folder of checkpoints, not of a model."""
    from sweeplab.clip_folders import is_model_folder

    return path.is_dir() and not is_model_folder(path)


def _examined_with(
    sweep: "CleaningSweep",
    checkpoints: list[Path],
    what: list[str] | None,
    to: Path | None,
    train: Path | None,
    clean_pairs: int | None,
) -> dict[str, Any]:
    """What is found in checkpoints with the data and the trigger of a sweep."""
    from sweeplab.commands.examine import examine_checkpoint, examine_checkpoints
    from sweeplab.data.labelled_sources import source_at

    check_sources([sweep])
    names: Any = getattr(sweep.evaluation.test, "class_names", "folders")  # read as those of the test set are
    if not isinstance(names, tuple) and names != "imagenet":
        names = "folders"
    own = source_at(train, names, "train") if train is not None else None
    if len(checkpoints) == 1 and not _is_run(checkpoints[0]):
        return examine_checkpoint(sweep, checkpoints[0], what, to, own, clean_pairs)
    return examine_checkpoints(sweep, checkpoints, what or ["pairs"], to, own, clean_pairs)


@command(app, rich_help_panel=MODELS)
def promote(
    sweep: SweepName,
    to: Annotated[Path, typer.Option(help="Folder to write to, new or empty.")],
    trial: Annotated[
        int | None, typer.Argument(help="Its best cleaned point; by default that of the leaderboard's best.")
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--format",
            help="For open_clip: `open_clip`, weights as safetensors, or `pt`, as a state dict by torch.save. For "
            "transformers' CLIPModel, which is always a ViT: `hf`.",
        ),
    ] = "open_clip",
    register: Annotated[
        str | None, typer.Option(help="Also register it in MLflow, as the newest version of this name.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(help="With --register: moves to that version, such as `cleaned`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take a cleaned model away: a folder that open_clip, or transformers, loads, with a model card.

    Its accuracy and ASR are measured again from the written files, and must be the sweep's own, image by image; images
    whose two best classes are as good as equal may differ, and are listed.
    """
    from sweeplab.commands.promote import promote as write
    from sweeplab.tracking.registry import Registration

    if alias is not None and register is None:
        raise InvalidInput("--alias names a version that is registered; give --register NAME too")
    registration = Registration(register, alias) if register is not None else None
    home = home_folder(to_read=registration is None)
    promoted = write(SweepFolder.of(home, sweep), trial, to, layout, registration)
    say_notes(promoted.notes())
    if as_json:
        say_json({**_measurement_values(promoted.measurement), "folder": str(to.absolute())})
        return
    _say_measurement(promoted.measurement)
    say(f"written and measured again: {to.absolute()}")
    call = f"open_clip.create_model_and_transforms({f'local-dir:{to.absolute()}'!r})"
    if layout == "hf":
        call = f"transformers.CLIPModel.from_pretrained({str(to.absolute())!r})"
    say(f"load it with {call}; README.md is its card")
    if registration is not None:
        named = f", models:/{register}@{alias}" if alias is not None else ""
        say(f"registered in MLflow: models:/{register}/{promoted.version}{named}")


def _say_measurement(measurement: "Measurement", *, as_json: bool = False) -> None:
    """Print accuracy and ASR with their 95 % intervals and counts."""
    if as_json:
        say_json(_measurement_values(measurement))
        return
    say(f"accuracy {_rate_with_interval(measurement.accuracy_k, measurement.accuracy_n)}")
    if measurement.asr is None:
        say("ASR      not measured: no attack was named, so nothing is certified")
    else:
        say(f"ASR      {_rate_with_interval(measurement.asr_k, measurement.asr_n)}")


def _rate_with_interval(k: int, n: int) -> str:
    low, high = wilson(k, n)
    return f"{percent(k / n)}  [{percent(low)}, {percent(high)}]  ({k:,}/{n:,})"


def _measurement_values(measurement: "Measurement") -> dict[str, Any]:
    """What `evaluate --json` prints."""
    values: dict[str, Any] = {
        "accuracy": measurement.accuracy,
        "accuracy_interval": list(wilson(measurement.accuracy_k, measurement.accuracy_n)),
        "asr": measurement.asr,
    }
    if measurement.top5_accuracy is not None:
        values["top5_accuracy"] = measurement.top5_accuracy
    if measurement.asr is not None:
        values["asr_interval"] = list(wilson(measurement.asr_k, measurement.asr_n))
    counts = ("accuracy_k", "accuracy_n", "asr_k", "asr_n")
    return {**values, "counts": {name: getattr(measurement, name) for name in counts}}


@command(app, rich_help_panel=SURROUNDINGS)
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: versions, cores, GPUs, memory, disk, home, Ray and browser."""
    from sweeplab.commands.doctor import examine

    findings = examine()
    if as_json:
        say_json([finding.to_json() for finding in findings])
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            say(f"{finding.mark} {finding.subject:{width}s}  {finding.text}")
    if any(finding.level == "fault" for finding in findings):
        raise InvalidInput("the faults above keep sweeps from running")
