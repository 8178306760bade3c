"""The command line: one message and exit code 2 for bad input, and the shapes that scripts rely on."""

import contextlib
import csv
import dataclasses
import html
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import pandas as pd
import pytest
import torch
import typer
from fabricated import SWEEP
from optuna.trial import TrialState
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from dashboards.build import render_page
from sweeplab import cli
from sweeplab.attacks import ATTACKS
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.cli import program, running, sweeps
from sweeplab.cli.running import ranked
from sweeplab.cli.scripts import resolve
from sweeplab.clip_checkpoints import checkpoint_architecture, load_weights
from sweeplab.clip_model import SmallCLIP, architecture_json, build
from sweeplab.commands import status as status_module
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStallTest
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.pairs_parquet import PairsParquet
from sweeplab.data.pairs_shards import PairsShards
from sweeplab.evaluation.retention import CleanedTrials
from sweeplab.experiment import CleaningSweep, ClosestTo, PretrainedVictim, Search
from sweeplab.records import (
    MeasuredImages,
    PointColumns,
    TrialColumns,
    TrialRecord,
    duration,
    percent,
)
from sweeplab.search.study import open_study
from sweeplab.search_space import Choice, Grid, LogUniform, SearchSpace
from sweeplab.specs import InvalidInput, Spec, Unfinished
from sweeplab.storage.ownership import write_signed
from sweeplab.sweep import prepare, victims
from sweeplab.sweep import run as run_module
from sweeplab.sweep.controller import SweepController
from sweeplab.sweep.progress import SweepProgress
from sweeplab.sweep.run import Options
from sweeplab.sweep_folder import SweepFolder
from sweeplab.tracking.runs import Tracker
from sweeplab.versions import installed_version
from sweeplab.worker.inputs import checkpoint_config

pytestmark = pytest.mark.usefixtures("drawn")

ROOT = Path(__file__).parents[1]
CC6M, OWN_MODEL = ROOT / "sweeps" / "cleanclip_cc6m.py", ROOT / "sweeps" / "own_model.py"

RunScript = Callable[..., int]


@pytest.fixture
def refusal(run_script: RunScript, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one message with which a script refuses its input."""

    def run(flags: list[str], *sweeps: CleaningSweep) -> str:
        code = run_script(flags, *sweeps)
        return one_message(code, capsys.readouterr().err)

    return run


def one_message(code: int, stderr: str) -> str:
    """The message of a refusal: exit code 2, one message, no traceback."""
    assert code == 2
    assert "Traceback" not in stderr
    assert stderr.startswith("error: ")
    assert stderr.count("error: ") == 1
    return stderr.removeprefix("error: ").rstrip("\n")


def command(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a `sweeplab` command."""
    result = CliRunner().invoke(cli.app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*words: str) -> str:
    """The one message with which a command refuses its input."""
    code, _, stderr = command(*words)
    return one_message(code, stderr)


def pairs_csv(folder: Path, *, header: tuple[str, str] = ("image", "caption"), missing: int | None = None) -> Path:
    """32 drawn pairs; `missing`: number of an image that is not there."""
    rows = [(f"{number}.png", f"a photo of apple {number}") for number in range(32)]
    for number, (image, _) in enumerate(rows):
        if number != missing:
            Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / image)
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder / "pairs.csv"


# --- bad input of scripts


def test_a_csv_without_a_caption_column_is_refused(sweep: CleaningSweep, refusal, tmp_path: Path):
    path = pairs_csv(tmp_path, header=("image", "text"))
    message = refusal(["--inline"], sweep.replace(data=PairsCSV(path=path)))
    assert "has no column 'caption'; columns found: 'image', 'text'" in message


def test_a_missing_image_is_refused_with_its_row(sweep: CleaningSweep, refusal, tmp_path: Path):
    path = pairs_csv(tmp_path, missing=4)
    message = refusal(["--inline"], sweep.replace(data=PairsCSV(path=path)))
    assert "1 of 32 pairs are broken" in message
    assert f"row 5: {tmp_path / '4.png'} is missing or empty" in message


def test_a_target_that_is_no_class_is_refused_with_close_names(sweep: CleaningSweep, refusal):
    message = refusal(["--inline", "victim.target=bananna"], sweep)
    assert "target='bananna' is not among the 16 classes (closest: banana" in message


def test_a_batch_that_the_workers_do_not_divide_is_refused(sweep: CleaningSweep, refusal):
    message = refusal(["resources.workers=3"], sweep)
    assert "global_batch_size=16 does not split over world_size=3; choose a multiple of 3" in message


def test_an_unknown_parameter_in_a_space_is_refused_with_the_known_ones(sweep: CleaningSweep, refusal):
    dimensions = {"learning_speed": {"kind": "uniform", "low": 0, "high": 1}}
    message = refusal([f"space.dimensions={json.dumps(dimensions)}"], sweep)
    assert "unknown parameter 'learning_speed' in the space; known are fields of method: mmcl_weight" in message


def test_an_unknown_field_in_an_override_is_refused_with_the_known_ones(sweep: CleaningSweep, refusal):
    message = refusal(["optimization.learning_speed=1"], sweep)
    assert "unknown field 'learning_speed'; known: learning_rate, schedule, weight_decay" in message


def test_an_override_without_a_value_is_refused(sweep: CleaningSweep, refusal):
    assert "override 'epochs' is not of the form field.subfield=value" in refusal(["epochs"], sweep)


def test_an_override_that_breaks_a_rule_is_refused(sweep: CleaningSweep, refusal):
    assert "learning_rate" in refusal(["optimization.learning_rate=-1"], sweep)


def test_an_unknown_sampler_is_refused(sweep: CleaningSweep, refusal):
    assert "'tpe', 'gp', 'random', 'qmc', 'grid' or 'nsga2'" in refusal(["--search", "optuna-best"], sweep)


def test_another_spec_under_an_existing_name_is_refused_with_what_differs(
    sweep: CleaningSweep, refusal, own_home: Path
):
    prepared = prepare.prepare(sweep, own_home)
    folder = SweepFolder(own_home / "sweeps" / sweep.name)
    folder.write_header(sweep, prepared.digest, prepared.contents)
    before = (folder.path / "sweep.json").read_bytes()
    message = refusal(["--inline", "epochs=7", "optimization.weight_decay=0.3"], sweep)
    assert "sweep 'made-up' exists with another spec" in message
    assert "epochs: 2 -> 7\n  optimization.weight_decay: 0.1 -> 0.3\n" in message
    assert "use --fresh to set the old one aside, or give this one another name" in message
    assert (folder.path / "sweep.json").read_bytes() == before


def test_of_the_resources_the_number_of_workers_is_part_of_the_spec(sweep: CleaningSweep, refusal, own_home: Path):
    prepared = prepare.prepare(sweep, own_home)
    SweepFolder(own_home / "sweeps" / sweep.name).write_header(sweep, prepared.digest, prepared.contents)
    message = refusal(["--inline", "resources.workers=2", "resources.loader_workers=3"], sweep)
    assert "exists with another spec:\n  resources.workers: 1 -> 2\n" in message


def test_a_home_that_cannot_be_written_is_refused(
    sweep: CleaningSweep, refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path / "file" / "home"))
    assert "file is a file; set it to a folder" in refusal(["--inline"], sweep)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_without_write_permission_is_refused(
    sweep: CleaningSweep, refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path))
    assert "Permission denied" in refusal(["--inline"], sweep)


def test_resume_insists_on_something_to_resume(sweep: CleaningSweep, refusal, own_home: Path):
    assert "--resume: there is no sweep 'made-up'" in refusal(["--inline", "--resume"], sweep)


def test_resume_and_fresh_exclude_each_other(sweep: CleaningSweep, refusal):
    assert "--resume and --fresh exclude each other" in refusal(["--resume", "--fresh"], sweep)


def test_a_scripts_own_sweeps_count_and_not_those_it_imports(sweep: CleaningSweep, tmp_path: Path):
    (tmp_path / "base_of_scripts.py").write_text(
        f"from sweeplab.experiment import CleaningSweep\n"
        f"SWEEP = CleaningSweep.model_validate_json({sweep.model_dump_json()!r})\n"
    )
    derived, same = tmp_path / "derived.py", tmp_path / "same.py"
    derived.write_text("from base_of_scripts import SWEEP as BASE\nMINE = BASE.replace(name='mine')\n")
    same.write_text("from base_of_scripts import SWEEP\n")
    assert [found.name for found in cli.load_script(derived)] == ["mine"]
    assert [found.name for found in cli.load_script(same)] == [sweep.name]


def test_what_a_script_makes_of_an_imported_sweep_for_main_is_what_it_would_run(sweep: CleaningSweep, tmp_path: Path):
    (tmp_path / "other_base.py").write_text(
        f"from sweeplab.experiment import CleaningSweep\n"
        f"SWEEP = CleaningSweep.model_validate_json({sweep.model_dump_json()!r})\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from other_base import SWEEP\nfrom sweeplab.cli import main\n"
        "if __name__ == '__main__':\n    main(SWEEP.replace(name='mine'))\n"
    )
    assert [found.name for found in cli.load_script(script)] == ["mine"]


FAULTY = {
    "# Read me\n\nsome `words`\n": r"script \S+faulty: SyntaxError: .*\(faulty, line 3\); -v shows the traceback",
    "def f():\n    return 1 / 0\n\nf()\n": r"script \S+faulty, line 2: ZeroDivisionError: division by zero; .*",
    "import nowhere_to_be_found\n": r"script \S+faulty, line 1: ModuleNotFoundError: No module named .*; .*",
}
"""What a file holds, and the message."""


@pytest.mark.parametrize("words", [("data", "check"), ("clean",), ("run",), ("evaluate", "v.pt", "--sets")])
@pytest.mark.parametrize(("text", "message"), FAULTY.items())
def test_a_script_with_an_error_is_one_message_with_its_line(
    words: tuple[str, ...], text: str, message: str, tmp_path: Path
):
    (tmp_path / "faulty").write_text(text)
    assert re.fullmatch(message, refused(*words, str(tmp_path / "faulty")))


def test_the_traceback_of_a_faulty_script_is_shown_with_v(tmp_path: Path):
    (tmp_path / "faulty.py").write_text("1 / 0\n")
    code, _, stderr = command("data", "check", str(tmp_path / "faulty.py"), "-v")
    assert (code, "ZeroDivisionError: division by zero" in stderr, "Traceback" in stderr) == (2, True, True)


def test_what_was_asked_for_stands_in_a_smoke_run_too(sweep: CleaningSweep, capsys: pytest.CaptureFixture[str]):
    words = ["epochs=1", "search.trials=3", "resources.max_attempts=7", "optimization.global_batch_size=16"]
    small = cli.resolve(sweep, words, None, True)
    assert (small.epochs, small.search.trials, small.resources.max_attempts) == (1, 3, 7)
    assert small.name == f"{sweep.name}-smoke"
    noted = capsys.readouterr().err
    assert noted == "note: --smoke sets these fields itself, and leaves out optimization.global_batch_size=16\n"


def test_notes_command_no_terminal(capsys: pytest.CaptureFixture[str]):
    program.say_notes(["pear/a\x1b[31mred.txt"])
    assert capsys.readouterr().err == "note: pear/a\ufffd[31mred.txt\n"


def test_a_sweep_that_was_set_aside_cannot_go_on(sweep: CleaningSweep, own_home: Path):
    from sweeplab.sweep.resume import set_aside

    folder = fabricated.finished_sweep(own_home / "sweeps")
    aside = set_aside(folder)
    code, _, stderr = command("resume", aside.name)
    assert f"'{aside.name}' is what --fresh set aside of sweep 'made-up'" in one_message(code, stderr)


def test_in_a_submitted_job_missing_data_are_asked_for_by_absolute_paths(refusal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    message = refusal(["--inline"], *cli.load_script(OWN_MODEL))
    assert f"relative paths are looked for in {os.getcwd()}; put them there, or name other places" in message
    assert "absolute ones: that folder is the job's copy of its working directory" in message


def test_all_missing_paths_are_in_one_message(refusal):
    message = refusal(["--inline"], *cli.load_script(OWN_MODEL))
    assert message.startswith("missing inputs (3):")
    for path in ("MY_PAIRS.csv: a CSV file", "MY_TEST_IMAGES: a folder", "MY_CHECKPOINT.pt: a checkpoint"):
        assert path in message


def test_a_missing_folder_of_images_is_called_one(sweep: CleaningSweep, refusal, tmp_path: Path):
    data = PairsParquet(path=tmp_path / "pairs.parquet", root=tmp_path / "images")
    message = refusal(["--inline"], sweep.replace(data=data))
    assert "pairs.parquet: a Parquet file, or a folder of them, with the columns" in message
    assert "images: the folder that the images are in; field `data.root` of made-up" in message


def test_of_a_pattern_the_shards_that_are_missing_are_counted(sweep: CleaningSweep, refusal, tmp_path: Path):
    message = refusal(["--inline"], sweep.replace(data=PairsShards(path=tmp_path / "{0..2}.tar")))
    assert "{0..2}.tar is not all there: 3 of 3 shards are missing, the first" in message
    message = refusal(["--inline"], sweep.replace(data=PairsShards(path=tmp_path / "cc3m")))
    assert "cc3m: tar files of images and captions: a folder of them, or a pattern" in message


def test_only_with_an_unknown_name_is_refused_with_the_known_ones(sweep: CleaningSweep, refusal):
    message = refusal(["--only", "other"], sweep, sweep.replace(name="second"))
    assert message == "--only other: the script has no such sweep or victim; it has made-up, second"
    assert refusal(["--only", ""], sweep) == "--only '': the script has no such sweep or victim; it has made-up"


def test_a_checkpoint_of_another_architecture_is_refused(sweep: CleaningSweep, refusal, tmp_path: Path):
    other = SmallCLIP(image_size=32, width=16, embed_dim=16, text_width=16, text_layers=1, context_length=16)
    torch.save(build(other.architecture(), seed=0).state_dict(), tmp_path / "other.pt")
    message = refusal(["--inline"], sweep.replace(victim=sweep.victim.replace(path=tmp_path / "other.pt")))
    assert "other.pt is of another architecture: " in message


def test_a_file_that_is_no_checkpoint_is_refused(sweep: CleaningSweep, refusal, tmp_path: Path):
    (tmp_path / "other.pt").write_text("weights")
    message = refusal(["--inline"], sweep.replace(victim=sweep.victim.replace(path=tmp_path / "other.pt")))
    assert "cannot be read: it is damaged, or torch.save did not write it" in message


def test_a_trigger_larger_than_the_image_is_refused(sweep: CleaningSweep, refusal):
    victim = sweep.victim.replace(attack=BadNet(patch_size=33))
    message = refusal(["--inline"], sweep.replace(victim=victim))
    assert "patch_size=33 is larger than the image of 32 pixels" in message


def test_a_warm_up_longer_than_the_training_is_refused(sweep: CleaningSweep, refusal):
    """64 pairs in batches of 16 are 4 steps an epoch, 8 in all."""
    message = refusal(["--inline", "optimization.warmup_steps=8"], sweep)
    assert "warmup_steps=8 must be below the total of 8 steps" in message


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (DeepClustering(num_clusters=65), "num_clusters=65 exceeds the 64 cleaning pairs; choose fewer"),
        (SupervisedFinetuning(), "method 'supervised' needs labelled images"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_method_that_does_not_fit_its_data_is_refused_before_anything_starts(
    method: Spec, message: str, sweep: CleaningSweep, own_home: Path
):
    rates = SearchSpace(dimensions={"learning_rate": LogUniform(low=1e-4, high=1e-2)}, source="made up")
    with pytest.raises(InvalidInput, match=message):
        prepare.prepare(sweep.replace(method=method, space=rates, grid=None), own_home)


def test_a_searched_count_is_not_judged_by_the_sweeps_own_value(sweep: CleaningSweep, own_home: Path):
    space = SearchSpace(dimensions={"num_clusters": Choice(values=(2, 8))}, source="made up")
    prepare.prepare(sweep.replace(method=DeepClustering(num_clusters=65), space=space, grid=None), own_home)


def test_the_authors_protocol_wants_a_checkpoint_with_its_optimizer(sweep: CleaningSweep, refusal):
    message = refusal(["--inline", "protocol=authors"], sweep)
    assert "protocol='authors' goes on with the victim's optimizer, and " in message
    assert "holds none; use protocol='paper'" in message


def test_an_optimizer_of_another_layout_is_refused(sweep: CleaningSweep, refusal, checkpoint: Path, tmp_path: Path):
    """The authors' checkpoints hold one: exempt parameters first, and by another rule."""
    model = build(fabricated.ARCHITECTURE, seed=0)
    optimizer = torch.optim.AdamW([{"params": [model.logit_scale]}, {"params": [model.text_projection]}])
    both = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(both, tmp_path / "theirs.pt")
    victim = sweep.victim.replace(path=tmp_path / "theirs.pt")
    message = refusal(["--inline", "protocol=authors"], sweep.replace(victim=victim))
    assert "the optimizer state has parameter groups of [1, 1] tensors, and this model's are " in message


def test_a_sweep_that_another_process_runs_is_refused(sweep: CleaningSweep, refusal, own_home: Path):
    with SweepFolder(own_home / "sweeps" / sweep.name).lock():
        message = refusal(["--inline"], sweep)
    assert f"'made-up' is being run by process {os.getpid()}" in message


# --- bad input of commands


@pytest.mark.parametrize("words", [["leaderboard"], ["status"], ["report"], ["resume"], ["export", "--to", "there"]])
def test_an_unknown_sweep_is_refused_with_the_known_ones(words: list[str], own_home: Path):
    fabricated.prepared_folder(own_home / "sweeps")
    message = refused(words[0], "other", *words[1:])
    assert message.startswith(f"no sweep named 'other' in {own_home / 'sweeps'}; known: made-up")


@pytest.mark.parametrize("words", [["run"], ["pretrain"], ["clean"], ["evaluate", "weights.pt", "--script"]])
def test_a_script_that_does_not_exist_is_refused(words: list[str], own_home: Path):
    assert refused(*words, "nowhere.py") == (
        "script nowhere.py does not exist, and no sweep of the home has that name; `sweeplab list --scripts` shows the "
        "scripts in ./sweeps, `sweeplab list` the sweeps"
    )


def test_sets_are_those_of_a_script_and_of_no_sweep(own_home: Path):
    fabricated.prepared_folder(own_home / "sweeps")
    assert refused("evaluate", "weights.pt", "--sets", "made-up") == (
        "--sets: there is no file made-up; give a script with a variable SETS, a dict of `Evaluation` by the name of "
        "the set"
    )


def test_one_name_for_several_sweeps_is_refused(refusal):
    assert refusal(["--dry-run", "name=other"], *cli.load_script(CC6M)) == (
        "name='other' would be that of cleanclip-cc6m-mmcl and of cleanclip-cc6m-mmcl-ssl; choose one with --only"
    )


def test_another_search_of_a_sweep_with_a_long_name_has_one_too(sweep: CleaningSweep):
    assert resolve(sweep.replace(name="n" * 80), [], "qmc", False).name == "n" * 76 + "-qmc"


def test_a_given_checkpoint_cannot_be_pre_trained():
    assert "its victim is a given checkpoint" in refused("pretrain", str(OWN_MODEL))


def test_a_single_setting_with_an_unknown_parameter_is_refused():
    assert "unknown parameter 'learning_speed'" in refused("clean", str(OWN_MODEL), "learning_speed=1")


def test_a_script_of_several_sweeps_needs_a_choice():
    message = refused("pretrain", str(CC6M))
    assert message.endswith("choose with --only: cleanclip-cc6m-mmcl, cleanclip-cc6m-mmcl-ssl")


def test_an_export_below_a_regular_file_is_refused(own_home: Path, tmp_path: Path):
    fabricated.finished_sweep(own_home / "sweeps")
    (tmp_path / "file").write_text("")
    assert "cannot write to" in refused("export", "made-up", "--to", str(tmp_path / "file" / "tables"))


BAD_SCRIPT = """
from sweeplab.cli import main
from sweeplab.experiment import Search
Search(trials=0)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("through_run", [False, True], ids=["python SCRIPT", "sweeplab run SCRIPT"])
def test_a_script_whose_specs_break_a_rule_ends_with_one_message(through_run: bool, tmp_path: Path):
    (tmp_path / "script.py").write_text(BAD_SCRIPT)
    # As the installed `sweeplab` does.
    words = ["-c", "from sweeplab.cli import app; app()", "run", "script.py"] if through_run else ["script.py"]
    result = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    message = one_message(result.returncode, result.stderr)
    assert message == "Search: trials=0: Input should be greater than or equal to 1"


def test_bad_input_outside_a_command_does_not_end_an_interactive_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr(program, "_hook_before", lambda kind, error, trace: print(f"shown: {error}"))
    program._explain(InvalidInput, InvalidInput("trials=0"), None)
    assert capsys.readouterr().out == "shown: trials=0\n"


def test_a_command_stays_the_function_that_it_was():
    """Its parameters are read through the wrapper, -q and -v are taken out, and its exit code is the process's."""
    toy = typer.Typer()

    @program.command(toy, "answer")
    def answer(number: int, as_json: program.AsJson = False) -> int:
        """Exit with a number."""
        return number + as_json

    assert answer(3) == 3
    assert CliRunner().invoke(toy, ["3", "--json", "-q"]).exit_code == 4
    assert "Exit with a number." in CliRunner().invoke(toy, ["--help"]).output


# --- exit codes


def broken() -> None:
    raise RuntimeError("a defect")


def test_work_that_is_interrupted_and_resumable_exits_with_75():
    def unfinished() -> None:
        raise Unfinished("toy: interrupted")

    def stopped() -> None:
        raise KeyboardInterrupt

    assert [cli.guarded(unfinished), cli.guarded(stopped)] == [75, 75]


def test_a_defect_exits_with_1_and_shows_where(capsys: pytest.CaptureFixture[str]):
    assert cli.guarded(broken) == 1
    assert "RuntimeError: a defect" in capsys.readouterr().err


def test_work_that_is_done_exits_with_0():
    assert cli.guarded(lambda: None) == 0


# --- plans


@pytest.mark.parametrize(
    ("weights", "seeds", "flags", "trials"),
    [
        ((1.0,), 1, [], 1),
        ((1.0, 2.0, 4.0), 1, [], 3),
        ((1.0, 2.0, 4.0), 2, [], 6),
        ((1.0,), 1, ["search.trials=16"], 16),
        (tuple(range(1, 21)), 1, [], 16),
    ],
)
def test_another_sampler_runs_no_more_trials_than_the_grid_has_settings(
    weights: tuple[float, ...], seeds: int, flags: list[str], trials: int, sweep: CleaningSweep
):
    search = Search(trials=16, seeds_per_configuration=seeds)
    grid = sweep.replace(search=search).with_grid(Grid(axes={"ssl_weight": weights}, source=""))
    assert grid.num_trials() == len(weights) * seeds
    assert resolve(grid, flags, "tpe", False).num_trials() == trials


def test_the_plan_of_one_setting_draws_nothing(
    sweep: CleaningSweep, run_script: RunScript, capsys: pytest.CaptureFixture[str]
):
    grid = sweep.with_grid(Grid(axes={"ssl_weight": (1.0,)}, source=""))
    assert run_script(["--dry-run", "--search", "tpe", "epochs=1"], grid) == 0
    out = capsys.readouterr().out
    assert "trials            1, 1 epoch each\n" in out
    assert "search            tpe, of one setting: nothing is drawn\n" in out


def test_an_override_of_what_the_search_sets_is_noted(
    sweep: CleaningSweep, run_script: RunScript, capsys: pytest.CaptureFixture[str]
):
    grid = sweep.with_grid(Grid(axes={"learning_rate": (1e-4, 1e-3)}, source=""))
    assert run_script(["--dry-run", "optimization.learning_rate=1e-2", "method.ssl_weight=3"], grid) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(
        "note: override 'optimization.learning_rate=1e-2': the search of made-up sets learning_rate in every trial"
    )


@pytest.mark.parametrize(("flags", "trials"), [([], [48, 48]), (["--search", "grid"], [12, 23])])
def test_the_plan_of_the_cc6m_sweeps_needs_no_data(
    flags: list[str], trials: list[int], run_script: RunScript, own_home: Path, capsys: pytest.CaptureFixture[str]
):
    assert run_script(["--dry-run", *flags], *cli.load_script(CC6M)) == 0
    shown = [int(line.split()[1].rstrip(",")) for line in capsys.readouterr().out.splitlines() if "trials   " in line]
    assert shown == trials
    assert not own_home.exists()


@pytest.mark.parametrize(
    ("limit", "shown"),
    [
        (64, "30.1 GB of decoded images"),
        (23, "22.6 GB of"),
        (22, "15.1 GB of"),
        (10, "7.5 GB of"),
        (0, "checkpoints\n"),
    ],
)
def test_a_plan_says_what_is_decoded_to_disk(
    limit: int, shown: str, run_script: RunScript, capsys: pytest.CaptureFixture[str]
):
    """100,000 cleaning pairs of 224 pixels are 15.1 GB, 50,000 test images 7.5, as many again with their triggers; six
    million pairs are too many."""
    words = ["--dry-run", "--only", "cleanclip-cc6m-mmcl", f"resources.node_cache_gigabytes={limit}"]
    assert run_script(words, *cli.load_script(CC6M)) == 0
    assert shown in capsys.readouterr().out


def test_only_plans_the_sweep_that_was_asked_for(run_script: RunScript, capsys: pytest.CaptureFixture[str]):
    assert run_script(["--dry-run", "--only", "cleanclip-cc6m-mmcl"], *cli.load_script(CC6M)) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")] == [
        "cleanclip-cc6m-mmcl"
    ]


def test_another_sampler_gives_the_sweep_another_name(sweep: CleaningSweep):
    assert cli.resolve(sweep, [], "grid", False).name == "made-up-grid"
    assert cli.resolve(sweep, ["name=mine"], "grid", False).name == "mine"
    assert cli.resolve(sweep, [], "tpe", False) == sweep


# --- what scripts rely on


@pytest.fixture(scope="module")
def finished_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one finished sweep."""
    home = tmp_path_factory.mktemp("finished")
    fabricated.finished_sweep(home / "sweeps")
    return home


@pytest.fixture
def at_finished(finished_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That home, in use."""
    monkeypatch.setenv("SWEEPLAB_HOME", str(finished_home))
    return finished_home


def json_of(*words: str) -> Any:
    code, stdout, _ = command(*words, "--json")
    assert code == 0
    return json.loads(stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def give_attempts(folder: SweepFolder, milliseconds: int) -> None:
    """Have each attempt of a sweep's trials, one after another, take so long."""
    events = folder.events()
    ended = itertools.accumulate(event["event"] == "trial ended" for event in events)
    for event, num in zip(events, ended, strict=True):
        event["time_ms"] = 1_700_000_000_000 + milliseconds * num
    (folder.path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_terminal_page_json_and_mlflow_show_the_same_numbers(
    finished_home: Path, tmp_path: Path, mlflow_tables: Path, monkeypatch: pytest.MonkeyPatch
):
    """JSON and MLflow to the last digit, terminal and page as percentages with one; parameters in the notation of all
    trials, also where one is shown; 6 x 7.577 s = 45.462 s are 45 s of workers, and not 46 by way of 45.5."""
    shutil.copytree(finished_home, tmp_path / "home")
    shutil.copy(mlflow_tables, tmp_path / "home")
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path / "home"))
    folder = SweepFolder(tmp_path / "home" / "sweeps" / "made-up")
    give_attempts(folder, 7577)
    record = folder.record()
    tracker = Tracker(folder.home, record, folder.header())
    tracker.sync({trial.number: trial.params for trial in record.trials}, record.trials)
    runs = {run.data.tags.get("sweeplab.trial"): run.data for run in tracker.client.search_runs(["1"])}
    rows = json_of("leaderboard", "made-up")["trials"]
    page = Path(command("report", "made-up")[1].strip()).read_text().replace("\u00a0", " ")
    lines = [line.split() for line in command("leaderboard", "made-up")[1].splitlines()]
    seen = 0
    for row in rows:
        metrics, logged = runs[str(row["trial"])].metrics, runs[str(row["trial"])].params
        assert {name: float(logged[name]) for name in row["params"]} == pytest.approx(row["params"], rel=1e-5)
        assert metrics["min/asr"] == row["min_asr"]
        found = {name: metrics.get(f"best/{name}") for name in ("retention", "accuracy", "asr", "epoch")}
        assert found == {name: row[name] for name in found}
        assert (metrics["best/feasible"] == 1.0) == row["feasible"]
        (shown,) = [words[2:5] for words in lines if words[:2] == [str(row["rank"]), str(row["trial"])]]
        (written,) = re.findall(f'<tr[^>]* data-trial="{row["trial"]}">(.*?)</tr>', page)
        cells = [re.sub("<small>.*|<[^>]*>", "", cell) for cell in re.findall("<td[^>]*>(.*?)</td>", written)]
        (one,) = [words for words in lines if words[:2] == [str(row["rank"]), str(row["trial"])]]
        params = re.findall('<td class="param">(.*?)</td>', written)
        assert one[-2:] == params
        if row["feasible"]:
            seen += 1
            percentages = [f"{100 * row[name]:.1f}" for name in ("retention", "accuracy", "asr")]
            assert shown == cells[1:4] == percentages
            if row["rank"] == 1:
                kept, accuracy, asr = percentages
                best, setting = row, dict(zip(row["params"], params, strict=True))
    assert seen == 2
    alone = command("leaderboard", "made-up", "--limit", "1")[1]
    assert list(setting.values()) == next(line.split()[-2:] for line in alone.splitlines() if line.split()[:1] == ["1"])
    best_setting = f"<dd>{', '.join(f'{name} {word}' for name, word in setting.items())}: trial {best['trial']}, "
    assert best_setting in re.sub('<span class="number">(.*?)</span>', r"\1", page)
    assert re.search(rf'class="lead">[^<]*keeps {kept} %[^<]*\({accuracy} % of [^<]* at {asr} % ASR', page)
    assert f"<dt>Best retention</dt><dd>{kept} %</dd>" in page
    assert f"<dt>At ASR</dt><dd>{asr} %</dd>" in page
    status = command("status", "made-up")[1]
    assert f"best: keeps {kept} % at ASR {asr} % (trial {best['trial']}, epoch {best['epoch']:g})" in status
    cleaned = CleanedTrials.of(row["retention"] for row in rows)
    assert (cleaned.cleaned, cleaned.in_words("below 5 % ASR") in " ".join(itertools.chain(*lines))) == (2, True)
    assert f"{cleaned.in_words()}\n" in status
    assert json_of("status", "made-up")["cleaned"] == dataclasses.asdict(cleaned)
    assert f"<dt>Cleaned trials</dt><dd>2<small> of {cleaned.trials}</small></dd>" in page
    points = command("logs", "made-up", str(best["trial"]))[1]
    assert f"epoch {best['epoch']:g}: accuracy {accuracy} %, ASR {asr} %" in points
    assert json_of("status", "made-up")["costs"]["worker_seconds"] == pytest.approx(6 * 7.577)
    assert re.search(r"cost: 12 trial-epochs, 45 s of workers$", status, re.MULTILINE)
    assert page.count("45 s of workers") == 2  # in the costs and above the time line


ROW_KEYS = (
    "rank trial state feasible certified epoch accuracy asr retention min_asr configuration seed params epochs seconds"
)


def test_leaderboard_json_has_the_promised_keys(at_finished: Path):
    board = json_of("leaderboard", "made-up")
    assert (board["sweep"], board["asr_ceiling"]) == ("made-up", 0.05)
    assert board["victim"] == {"accuracy": 0.9, "asr": 79 / 80}
    assert [row["rank"] for row in board["trials"]] == [1, 2, 3, 4, 5, 6]
    for row in board["trials"]:
        assert set(ROW_KEYS.split()) <= set(row)
        assert set(row["params"]) == {"learning_rate", "ssl_weight"}


def test_leaderboard_json_has_nulls_exactly_where_nothing_is_cleaned(at_finished: Path):
    rows = json_of("leaderboard", "made-up")["trials"]
    assert {row["feasible"] for row in rows} == {True, False}
    for row in rows:
        nulls = {row[name] is None for name in ("epoch", "accuracy", "asr", "retention")}
        assert nulls == {not row["feasible"]}


def test_status_json_has_the_promised_keys(at_finished: Path):
    status = json_of("status", "made-up")
    assert (status["sweep"], status["state"], status["trial_epochs"]) == ("made-up", "finished", 12)
    assert status["trials"] == {"finished": 6, "running": 0, "waiting": 0, "pruned": 0, "failed": 0}
    assert status["seconds"] == 6 * 9.0


def test_status_of_an_interrupted_sweep_counts_what_waits(own_home: Path):
    folder = fabricated.prepared_folder(own_home / "sweeps")
    player = fabricated.Player(fabricated.open_controller(folder))
    player.play(player.controller.next_job())
    player.play(player.controller.next_job(), num_points=2)
    status = json_of("status", "made-up")
    assert (status["state"], status["trial_epochs"]) == ("interrupted", 3)
    assert (status["trials"]["finished"], status["trials"]["waiting"]) == (1, 5)


def test_status_of_a_sweep_that_runs_says_so(own_home: Path):
    folder = fabricated.prepared_folder(own_home / "sweeps")
    player = fabricated.Player(fabricated.open_controller(folder))
    player.play(player.controller.next_job(), num_points=2)
    with folder.lock():
        status = json_of("status", "made-up")
    assert (status["state"], status["trials"]["running"]) == ("running", 1)


def test_status_of_a_sweep_whose_victim_is_still_being_made(own_home: Path):
    SweepFolder(own_home / "sweeps" / "made-up").write_header(SWEEP, "0" * 16, {})
    assert json_of("status", "made-up")["trials"]["waiting"] == 6


def test_list_json_has_a_row_for_every_sweep(at_finished: Path):
    (row,) = json_of("list")
    assert (row["sweep"], row["state"]) == ("made-up", "finished")


def test_scripts_are_listed_without_running_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    rows = json_of("list", "--scripts")
    assert {"sweeps/quickstart.py", "sweeps/cleanclip_cc6m.py", "sweeps/own_model.py"} <= {r["script"] for r in rows}


def test_tables_for_people_name_the_best_trial(at_finished: Path):
    code, stdout, _ = command("leaderboard", "made-up")
    assert code == 0
    assert "victim accuracy 90.0 %" in stdout
    assert "6 trials, " in stdout


def test_export_writes_every_point_with_its_parameters(at_finished: Path, tmp_path: Path):
    code, stdout, _ = command("export", "made-up", "--to", str(tmp_path))
    assert code == 0
    assert sorted(Path(line).name for line in stdout.splitlines()) == [
        "epochs.csv",
        "epochs.parquet",
        "trials.csv",
        "trials.parquet",
    ]
    table = pd.read_csv(tmp_path / "epochs.csv")
    assert {"trial", "epoch", "accuracy", "asr", "learning_rate", "ssl_weight"} <= set(table.columns)
    assert len(table) == 18
    start = table[table.epoch == 0]
    assert (start.accuracy.tolist(), start.asr.tolist()) == ([0.9] * 6, [79 / 80] * 6)


def test_parquet_and_csv_hold_the_same(at_finished: Path, tmp_path: Path):
    command("export", "made-up", "--to", str(tmp_path))
    for name in ("epochs", "trials"):
        one, other = pd.read_csv(tmp_path / f"{name}.csv"), pd.read_parquet(tmp_path / f"{name}.parquet")
        pd.testing.assert_frame_equal(one, other, check_dtype=False)


@pytest.mark.usefixtures("mlflow_is_there")
def test_a_finished_sweep_is_shown_again_and_not_run(
    sweep: CleaningSweep, run_script: RunScript, own_home: Path, capsys: pytest.CaptureFixture[str]
):
    prepared = prepare.prepare(sweep, own_home)
    folder = fabricated.finished_sweep(own_home / "sweeps", sweep)
    folder.write_header(sweep, prepared.digest, prepared.contents)
    assert run_script([], sweep) == 0
    shown = capsys.readouterr().out
    assert "made-up: all 6 trials are there already; nothing to run" in shown
    assert f"page:   {folder.page}" in shown
    assert folder.page.exists()
    assert f"{folder.trial(1).checkpoints}/attempt-1-epoch-0002.pt" in shown
    assert "sweeplab promote made-up 1 --to FOLDER" in shown


@pytest.mark.usefixtures("mlflow_is_there", "undrawn")
@pytest.mark.parametrize("lost", ["study.journal", "mlflow.db"])
def test_optuna_and_mlflow_are_derived_again_where_they_were_removed(
    sweep: CleaningSweep, run_script: RunScript, own_home: Path, lost: str
):
    prepared = prepare.prepare(sweep, own_home)
    folder = fabricated.finished_sweep(own_home / "sweeps", sweep)
    folder.write_header(sweep, prepared.digest, prepared.contents)
    next(own_home.rglob(lost)).unlink()
    assert run_script([], sweep) == 0
    trials = open_study(folder, sweep.name).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert [trial.params for trial in trials] == [folder.trial_header(number)["params"] for number in range(6)]
    with sqlite3.connect(own_home / "mlflow.db") as store:
        (count,) = store.execute("select count(*) from tags where key = 'sweeplab.key'").fetchone()
    assert count == 7


def runs_in(store: Path) -> int:
    """The runs of sweeps that an MLflow store holds."""
    with sqlite3.connect(store) as connection:
        (count,) = connection.execute("select count(*) from tags where key = 'sweeplab.key'").fetchone()
    return int(count)


@pytest.mark.usefixtures("undrawn")
def test_another_store_gets_the_whole_of_a_finished_sweep_and_the_homes_own_stays(
    sweep: CleaningSweep,
    run_script: RunScript,
    own_home: Path,
    tmp_path: Path,
    mlflow_tables: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The same command brings it there, once; its page lies among the files that MLflow shows."""
    prepared = prepare.prepare(sweep, own_home)
    folder = fabricated.finished_sweep(own_home / "sweeps", sweep)
    folder.write_header(sweep, prepared.digest, prepared.contents)
    other = tmp_path / "other.db"
    for store in (own_home / "mlflow.db", other):
        shutil.copy(mlflow_tables, store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    assert run_script([], sweep) == 0
    news = f"MLflow: the whole sweep is now in sqlite:///{other} too; before, it went to the home itself"
    shown = capsys.readouterr().out
    assert news in shown
    assert (
        f"MLflow: MLFLOW_TRACKING_URI=sqlite:///{other} sweeplab mlflow, then http://127.0.0.1:5000/#/experi" in shown
    )
    (page,) = (own_home / "mlartifacts" / "made-up").rglob("report.html")
    assert page.samefile(folder.page)
    assert run_script([], sweep) == 0
    assert news not in capsys.readouterr().out
    assert (runs_in(other), runs_in(own_home / "mlflow.db")) == (7, 0)


def test_an_mlflow_store_that_cannot_be_is_refused_before_anything_is_read(
    sweep: CleaningSweep,
    run_script: RunScript,
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://user:secret@host")
    assert run_script(["--inline"], sweep) == 2
    assert "begins with 'htp:'" in one_message(2, (said := capsys.readouterr()).err)
    assert "secret" not in said.out + said.err
    assert not (own_home / "sweeps").exists()


def test_mlflows_pages_are_opened_by_a_command(own_home: Path, monkeypatch: pytest.MonkeyPatch):
    own_home.mkdir()
    (own_home / "mlflow.db").touch()
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda *words: started.append(words[1]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code, stdout, _ = command("mlflow", "--port", str(port))
    assert (code, started[0][-2:], len(started)) == (0, ["--port", str(port)], 1)
    address = f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
    assert stdout.splitlines() == [address, "Ctrl-C ends it."]


def test_mlflows_address_is_printed_only_where_its_server_can_start(own_home: Path):
    code, stdout, stderr = command("mlflow")
    assert (code, stdout) == (2, "")
    assert "holds no mlflow.db" in stderr


@pytest.mark.usefixtures("mlflow_is_there")
@pytest.mark.usefixtures("undrawn")
def test_the_same_command_tells_a_finished_sweep_of_an_older_version_which_images_it_measured(
    sweep: CleaningSweep, run_script: RunScript, own_home: Path
):
    """48 test images of 16 classes, three a class; bananas are the second."""
    prepared = prepare.prepare(sweep, own_home)
    folder = fabricated.finished_sweep(own_home / "sweeps", sweep)
    folder.write_header(sweep, prepared.digest, prepared.contents)
    header = folder.header()
    del header["images"]
    write_signed(folder.path / "sweep.json", header, folder.home)
    assert run_script([], sweep) == 0
    target = 3 * CLASS_NAMES.index("banana")
    assert folder.record().images == MeasuredImages((target, target + 1, target + 2), 16) == prepared.images


def test_a_checkpoint_that_says_it_was_poisoned_towards_another_target_is_noted(
    sweep: CleaningSweep,
    run_script: RunScript,
    own_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Its weights are untrained, so that their ASR is none of a backdoor either."""
    path, weights = tmp_path / "apple.pt", torch.load(sweep.victim.path, weights_only=True)
    metadata = {"sweep": {"victim": sweep.victim.replace(target="apple").to_json()}}
    torch.save({"model": weights, "config": checkpoint_config(fabricated.ARCHITECTURE, metadata)}, path)

    def stop_here(*arguments: object, **named: object) -> None:
        raise Unfinished("stopped before the first trial")

    monkeypatch.setattr(run_module, "_run_trials", stop_here)
    assert run_script(["--inline"], sweep.replace(victim=sweep.victim.replace(path=path))) == 75
    planted, missing = SweepFolder(own_home / "sweeps" / sweep.name).record().notes
    assert "poisoned towards 'apple'; the ASR is measured towards 'banana'" in planted
    assert "there is no backdoor to clean" in missing
    shown = capsys.readouterr().out
    assert f"note: {planted}" in shown
    assert f"note: {missing}" in shown


@pytest.mark.slow
def test_a_kill_after_the_last_result_is_mended_by_the_same_command(
    sweep: CleaningSweep, run_script: RunScript, own_home: Path, monkeypatch: pytest.MonkeyPatch
):
    prepared = prepare.prepare(sweep, own_home)
    folder = fabricated.prepared_folder(own_home / "sweeps", sweep)
    folder.write_header(sweep, prepared.digest, prepared.contents)
    folder.event("driver began")
    player = fabricated.Player(fabricated.open_controller(folder, sweep))
    for _ in range(5):
        player.play(player.controller.next_job())
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(SweepController, "_tell", kill)
        player.play(player.controller.next_job())
    assert run_script([], sweep) == 0
    assert {trial.state for trial in open_study(folder, sweep.name).get_trials()} == {TrialState.COMPLETE}
    with sqlite3.connect(own_home / "mlflow.db") as store:
        assert store.execute("select status, count(*) from runs group by status").fetchall() == [("FINISHED", 7)]


def kill(*arguments: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_a_sweep_begun_anew_sets_the_old_one_aside(
    sweep: CleaningSweep,
    run_script: RunScript,
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    prepared = prepare.prepare(sweep, own_home)
    folder = fabricated.finished_sweep(own_home / "sweeps", sweep)
    folder.write_header(sweep, prepared.digest, prepared.contents)

    def stop_here(*arguments: object, **named: object) -> None:
        raise Unfinished("stopped before the first trial")

    monkeypatch.setattr(victims.GivenVictim, "ensure", stop_here)
    assert run_script(["--fresh", "--inline"], sweep) == 75
    assert not folder.trial_numbers()
    (old,) = (path for path in folder.path.parent.iterdir() if path != folder.path)
    assert SweepFolder(old).trial_numbers() == [0, 1, 2, 3, 4, 5]


def test_help_names_every_flag_of_a_script(
    sweep: CleaningSweep, run_script: RunScript, capsys: pytest.CaptureFixture[str]
):
    assert run_script(["--help"], sweep) == 0
    shown = capsys.readouterr().out
    for flag in ("--dry-run", "--probe", "--smoke", "--resume", "--fresh", "--search", "--inline", "--only", "--json"):
        assert flag in shown


def test_run_hands_what_follows_the_script_to_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Its flags and --help too; `run`'s own help says so."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(sys.argv[1:])\nsys.exit(3)\n")
    words = ["--help", "--json", "-q", "epochs=1", "--only", "x"]
    code, out, _ = command("run", str(script), *words)
    assert (code, out.strip()) == (3, str(words))
    assert "script [FLAGS AND OVERRIDES]..." in " ".join(command("run", "-h")[1].split()).replace("{script}", "script")


def test_every_command_has_help():
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert {"run", "resume", "leaderboard", "status", "list", "export", "report", "doctor"} <= set(commands)
    assert all(entry.help for entry in commands.values())


@pytest.mark.parametrize(
    "words",
    [
        ["status", "-h"],
        ["-q", "list", "-h"],
        ["attack", "list", "-h"],
        ["-h"],
        ["-h", "clean"],
        ["--help", "list"],
        ["statsu"],
        ["status", "--al"],
    ],
)
def test_the_command_that_is_asked_for_is_what_it_is_among_all(words: list[str], capsys: pytest.CaptureFixture[str]):
    """The test's runner makes all commands, and a process the one that it begins with alone: same text, same code."""
    expected = command(*words)
    with pytest.raises(SystemExit) as ended:
        cli.app(words, prog_name="root")
    out, err = capsys.readouterr()
    assert (ended.value.code, out.split(), err.split()) == (expected[0], expected[1].split(), expected[2].split())
    assert "list" in {entry.name for entry in cli.app.registered_commands}  # they are all there for the next one


# --- attacks ----------------------------------------------------------------------------------------------------------


def test_an_attack_is_previewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from PIL import Image

    Image.new("RGB", (60, 50), (10, 120, 200)).save(tmp_path / "photo.png")
    words = ["attack", "preview", "badnet", str(tmp_path / "photo.png"), "--set", "patch_size=9"]
    result = CliRunner().invoke(cli.app, [*words, "--to", str(tmp_path / "out.png"), "--image-size", "48"])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (3 * 48 + 16, 48)
    words = ["attack", "preview", "badnet", '{"kind": "blended", "alpha": 0.5}', "sig", str(tmp_path / "photo.png")]
    result = CliRunner().invoke(cli.app, [*words, "--to", str(tmp_path / "out.png"), "--image-size", "48"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("3 attacks: ")


def test_the_poisoned_pairs_of_a_victim_are_shown_with_their_captions(home: Path, tmp_path: Path):
    from PIL import Image

    words = ["attack", "preview", "--script", "sweeps/quickstart.py", "--smoke", "--num", "4"]
    result = CliRunner().invoke(cli.app, [*words, "--to", str(tmp_path / "out.png")])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width == 2 * 160 + 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "attack 'nope' is unknown; known: badnet"),
        (["badnet", "--set", "patch_size=300"], "patch_size=300 is larger than the image of 224 pixels"),
        (["badnet", "--set", "colour=1"], "colour: unknown field"),
        (["image"], "path"),
        (["badnet", "blnded"], "attack 'blnded' is unknown; known: badnet"),
        (["badnet", "blended", "--set", "patch_size=9"], "--set is for one attack; of several, give JSON objects"),
        (["none.png"], "no attack was given; name kinds such as badnet"),
        (["badnet", "none.png"], "none.png is no file; name image files"),
        (["badnet", "--script", "sweeps/quickstart.py"], "--script shows the attack of its sweep; leave out kinds"),
    ],
)
def test_a_preview_that_cannot_be_made_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from PIL import Image

    Image.new("RGB", (60, 50)).save(tmp_path / "photo.png")
    result = CliRunner().invoke(cli.app, ["attack", "preview", *words, str(tmp_path / "photo.png")])
    assert result.exit_code == 2
    assert message in result.output + result.stderr


def test_attacks_are_listed():
    result = CliRunner().invoke(cli.app, ["attack", "list"])
    assert result.exit_code == 0
    assert "wanet" in result.output
    assert "path=required" in result.output


# --- examine --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def own_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights in a checkpoint that says its architecture."""
    path = tmp_path_factory.mktemp("own") / "model.pt"
    config = json.dumps({"architecture": json.loads(architecture_json(fabricated.ARCHITECTURE))})
    torch.save({"model": build(fabricated.ARCHITECTURE, seed=0).state_dict(), "config": config, "epoch": 3}, path)
    return path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two images."""
    root = tmp_path_factory.mktemp("folders")
    for shade, name in enumerate(("apple", "pear", "plum")):
        (root / name).mkdir()
        for number in range(2):
            Image.new("RGB", (40, 40), (60 * shade, 30 * number, 90)).save(root / name / f"{number}.png")
    return root


def test_a_model_of_unknown_attack_is_examined_without_a_script(own_home: Path, own_weights: Path, folders: Path):
    code, stdout, stderr = command("examine", str(own_weights), "--test", str(folders))
    assert code == 0, stderr
    panel = json.loads(stdout)["panel"]
    assert 0 <= panel["accuracy"] <= 1
    assert len(panel["accuracy_interval"]) == 2
    assert len(panel["attacks"]) > 5
    assert all(row["target_is_guessed"] for row in panel["attacks"])
    assert {row["target"] for row in panel["attacks"]} <= {"apple", "pear", "plum"}
    assert "nothing is certified" in panel["note"]
    assert "each target is a guess" in panel["note"]


@pytest.mark.parametrize("verb", ["examine", "evaluate"])
def test_a_folder_of_ids_is_measured_by_their_names_unasked(
    verb: str, own_home: Path, own_weights: Path, folders: Path, tmp_path: Path
):
    """Known ids give what folders of their names give; unknown ids are refused, where the prompts would be `n0...`."""
    names, ids = tmp_path / "names", tmp_path / "ids"
    for name, number, source in (("banana", "n07753592", "apple"), ("tench", "n01440764", "pear")):
        shutil.copytree(folders / source, names / name)
        shutil.copytree(folders / source, ids / number)
    flags = ["--json"] if verb == "evaluate" else []
    by_name = command(verb, str(own_weights), "--test", str(names), *flags)
    by_id = command(verb, str(own_weights), "--test", str(ids), *flags)
    assert by_id[0] == by_name[0] == 0, by_id[2] + by_name[2]
    found, expected = (json.loads(result[1]) for result in (by_id, by_name))
    if verb == "examine":
        assert {row["target"] for row in found["panel"]["attacks"]} <= {"tench", "banana"}
        found, expected = found["panel"], expected["panel"]
    assert found["accuracy"] == expected["accuracy"]
    (ids / "n01440764").rename(ids / "n99999999")
    assert "(n99999999), and an id is no name" in refused(verb, str(own_weights), "--test", str(ids))


@pytest.mark.parametrize("verb", ["examine", "evaluate"])
def test_what_is_odd_about_a_test_folder_is_noted_beside_the_output(
    verb: str, own_home: Path, own_weights: Path, folders: Path, tmp_path: Path
):
    shutil.copytree(folders, tmp_path / "set")
    (tmp_path / "set" / "plum" / "3.heic").write_bytes(b"x")
    code, stdout, stderr = command(
        verb, str(own_weights), "--test", str(tmp_path / "set"), *(["--json"] if verb == "evaluate" else [])
    )
    assert code == 0, stderr
    assert json.loads(stdout)
    assert "note: 1 files or folders in" in stderr
    assert "(.heic 1), the first: plum/3.heic" in stderr


def test_the_pages_command_measures_the_winner_from_any_folder(
    own_home: Path, own_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = fabricated.finished_sweep(own_home / "sweeps")
    record, board = ranked(folder)
    weights = board.winner.checkpoint
    shutil.copy(own_weights, weights)
    page = html.unescape(render_page(record, board))
    words = shlex.split(re.sub("<.*?>", "", re.search(r"<code>sweeplab (evaluate .*?)</code>", page)[1]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, stdout, stderr = command(*words, "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["counts"]["accuracy_n"] == 48


def test_a_sweep_that_names_no_test_set_is_no_measure(own_home: Path, tmp_path: Path):
    (tmp_path / "table.csv").write_text("trial,epoch,accuracy,asr\n0,0,0.9,0.9\n0,1,0.8,0.01\n")
    assert command("import", str(tmp_path / "table.csv"), "--sweep", "elsewhere")[0] == 0
    assert "was imported from table.csv" in refused("evaluate", "x.pt", "--sweep", "elsewhere")
    assert "give one of them" in refused("evaluate", "x.pt", "--sweep", "elsewhere", "--script", str(CC6M))


def as_table(folders: Path, place: Path) -> Path:
    shutil.copytree(folders, place)
    rows = [f"{image.relative_to(place.parent)},{image.parent.name}" for image in sorted(place.glob("*/*.png"))]
    place.with_suffix(".csv").write_text("\n".join(["image,label", *rows]))
    return place.with_suffix(".csv")


def as_shards(folders: Path, place: Path) -> Path:
    names = sorted(folder.name for folder in folders.iterdir())
    (place / "test").mkdir(parents=True)
    (place / "classnames.txt").write_text("\n".join(names))
    with tarfile.open(place / "test" / "0.tar", "w") as tar:
        for row, image in enumerate(sorted(folders.glob("*/*.png"))):
            tar.add(image, f"s{row}.png")
            (place / "label").write_text(str(names.index(image.parent.name)))
            tar.add(place / "label", f"s{row}.cls")
    return place


def as_dtd(folders: Path, place: Path) -> Path:
    shutil.copytree(folders, place / "dtd" / "dtd" / "images")
    (place / "dtd" / "dtd" / "labels").mkdir()
    rows = [str(image.relative_to(folders)) for image in sorted(folders.glob("*/*.png"))]
    (place / "dtd" / "dtd" / "labels" / "test1.txt").write_text("\n".join(rows))
    return place


@pytest.mark.parametrize("verb", ["examine", "evaluate"])
@pytest.mark.parametrize("layout", [as_table, as_shards, as_dtd])
def test_a_test_set_of_another_layout_is_told_from_its_files(
    verb: str, layout, own_home: Path, own_weights: Path, folders: Path, tmp_path: Path
):
    """And gives what its class folders give; but for DTD, which has prompts of its own."""
    flags = ["--json"] if verb == "evaluate" else []
    place = layout(folders, tmp_path / "other")
    by_folders = command(verb, str(own_weights), "--test", str(folders), *flags)
    other = command(verb, str(own_weights), "--test", str(place), *flags)
    assert other[0] == by_folders[0] == 0, other[2] + by_folders[2]
    if layout is not as_dtd:
        assert json.loads(other[1]) == json.loads(by_folders[1])


def test_a_script_names_several_test_sets(own_home: Path, own_weights: Path, folders: Path, tmp_path: Path):
    script = tmp_path / "sets.py"
    script.write_text(
        "from sweeplab.data.class_folders import ClassFolders\n"
        "from sweeplab.evaluation.measure import Evaluation\n"
        f"SETS = {{'fruit': Evaluation(test=ClassFolders(path={str(folders)!r}))}}\n"
    )
    alone = json.loads(command("evaluate", str(own_weights), "--test", str(folders), "--json")[1])
    code, stdout, stderr = command("evaluate", str(own_weights), "--sets", str(script), "--json")
    assert code == 0, stderr
    values = json.loads(stdout)
    assert (values["sets"][0]["set"], values["mean"]["accuracy"]) == ("fruit", alone["accuracy"])
    assert "fruit" in command("evaluate", str(own_weights), "--sets", str(script))[1]
    told = refused("evaluate", str(own_weights), "--sets", str(script), "--test", str(folders))
    assert "leave --test out" in told
    script.write_text("SETS = ['fruit']\n")
    assert refused("evaluate", "x.pt", "--sets", str(script)).endswith(
        "has no variable SETS; give a script with a variable SETS, a dict of `Evaluation` by the name of the set"
    )


@pytest.mark.parametrize("verb", ["examine", "evaluate"])
def test_a_folder_of_open_clip_is_measured_as_its_weights_are(
    verb: str, own_home: Path, own_weights: Path, folders: Path, tmp_path: Path
):
    architecture = checkpoint_architecture(own_weights)
    assert architecture is not None
    weights, config = tmp_path / "model" / "open_clip_model.safetensors", tmp_path / "model" / "open_clip_config.json"
    weights.parent.mkdir()
    save_file(load_weights(own_weights), weights)
    config.write_text(json.dumps({"model_cfg": architecture.resolved()}))
    words = ("--test", str(folders), *(["--json"] if verb == "evaluate" else []))
    by_file = command(verb, str(own_weights), *words)
    by_folder = command(verb, str(weights.parent), *words)
    by_name = command(verb, str(weights), *words, "--architecture", str(config))
    assert [result[0] for result in (by_file, by_folder, by_name)] == [0, 0, 0], by_folder[2] + by_name[2]
    found = [json.loads(result[1]) for result in (by_file, by_folder, by_name)]
    for one in found:
        one.pop("checkpoint", None)
    assert found[0] == found[1] == found[2]
    assert "give --architecture FILE.json" in refused(verb, str(weights), *words)


@pytest.mark.usefixtures("mlflow_is_there")
@pytest.mark.usefixtures("undrawn")
def test_clean_takes_an_own_configuration_by_file(own_home: Path, own_weights: Path, tmp_path: Path):
    """The sweep names RN50; the file, what the weights were made with."""
    script, config = tmp_path / "experiment.py", tmp_path / "mine.json"
    script.write_text(EXPERIMENT.format(path=str(own_weights)))
    architecture = checkpoint_architecture(own_weights)
    assert architecture is not None
    wrong = {**architecture.resolved(), "embed_dim": 32}
    config.write_text(json.dumps(wrong))
    words = ("clean", str(script), "--inline", "epochs=0", "--architecture", str(config))
    assert "is of another architecture: other shapes" in refused(*words)
    config.write_text(json.dumps(architecture.resolved()))
    code, stdout, stderr = command(*words)
    assert code == 0, stdout + stderr


def test_class_names_may_come_from_a_file(own_home: Path, own_weights: Path, folders: Path, tmp_path: Path):
    (tmp_path / "names.txt").write_text("pear\nplum\napple\n")
    words = ("evaluate", str(own_weights), "--test", str(as_table(folders, tmp_path / "other")), "--json", "--classes")
    code, stdout, stderr = command(*words, str(tmp_path / "names.txt"))
    assert code == 0, stderr
    assert json.loads(stdout)["counts"]["accuracy_n"] == len(list(folders.glob("*/*.png")))
    (tmp_path / "names.txt").write_text("pear\nplum\n")
    assert "1 labels in 'label' are none of the 2 classes (apple)" in refused(*words, str(tmp_path / "names.txt"))
    assert "known: folders, imagenet, or a text file" in refused(*words, "nowhere.txt")


def with_nan(checkpoint: Path, path: Path) -> Path:
    """A copy of a checkpoint with one value that is none, in a weight that no measurement reads."""
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["logit_scale"].fill_(float("nan"))
    torch.save(content, path)
    return path


@pytest.mark.parametrize("command_name", ["evaluate", "examine"])
def test_a_checkpoint_with_nan_is_refused(
    command_name: str, own_home: Path, own_weights: Path, folders: Path, tmp_path: Path
):
    broken = with_nan(own_weights, tmp_path / "broken.pt")
    message = refused(command_name, str(broken), "--test", str(folders))
    assert message.startswith(f"checkpoint {broken} holds values that are not finite, in logit_scale;")
    assert "give another checkpoint" in message


def test_a_victim_with_nan_is_refused(sweep: CleaningSweep, refusal, own_weights: Path, own_home: Path, tmp_path: Path):
    broken = with_nan(own_weights, tmp_path / "broken.pt")
    message = refusal(["--inline"], sweep.replace(victim=sweep.victim.replace(path=broken)))
    assert "broken.pt holds values that are not finite, in logit_scale" in message
    assert not (own_home / "sweeps").exists()


EXPERIMENT = """
from pathlib import Path
from fabricated import SWEEP
from sweeplab.cli import main

MINE = SWEEP.replace(victim=SWEEP.victim.replace(path=Path({path!r})))
if __name__ == "__main__":
    main(MINE)
"""


def test_the_linear_probe_is_fitted_on_a_folder_that_is_named(own_home: Path, own_weights: Path, tmp_path: Path):
    script = tmp_path / "experiment.py"
    script.write_text(EXPERIMENT.format(path=str(own_weights)))
    words = ("examine", str(own_weights), "--script", str(script), "--what", "probe")
    assert "give --train FOLDER, or evaluation.probe in the script" in refused(*words)
    train = FruitStallTest(num_images=32, image_size=32, seed=2).read(tmp_path)
    code, stdout, stderr = command(*words, "--train", train.root)
    assert code == 0, stderr
    probe = json.loads(stdout)["probe"]
    assert (probe["num_training_images"], probe["counts"]["accuracy_n"]) == (32, 48)


@pytest.mark.parametrize("command_name", ["evaluate", "examine"])
def test_a_class_whose_name_does_not_fit_into_the_prompts_is_refused(
    command_name: str, own_home: Path, own_weights: Path, tmp_path: Path
):
    for name in ("pear", "a small and rather sour wild apple of the northern woods"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (len(name), 0, 0)).save(tmp_path / "images" / name / "1.png")
    message = refused(command_name, str(own_weights), "--test", str(tmp_path / "images"))
    assert message.startswith("template 'a bad photo of a {}.' with class 'a small and rather sour wild apple of")
    assert "context_length=16 keeps 14 of them, which cuts it before the class's name ends" in message


@pytest.mark.parametrize("field", ["evaluation", "victim"])
def test_a_template_that_is_cut_before_the_name_is_refused_before_anything_runs(
    field: str, sweep: CleaningSweep, refusal, own_home: Path
):
    """Of the sweep's test set, and of that on which its victim is selected."""
    long = sweep.evaluation.replace(
        templates=("a photo that was taken on a market in the early morning light of a {}",)
    )
    if field == "evaluation":
        changed = sweep.replace(evaluation=long)
    else:
        victim = PretrainedVictim(
            name="cut",
            architecture=fabricated.ARCHITECTURE,
            data=sweep.data,
            poisoning=Poisoning(attack=BadNet(patch_size=4), target="banana", rate=0.1),
            optimization=sweep.optimization,
            epochs=1,
            evaluation=sweep.evaluation,
        )
        reference = victim.replace(name="reference", evaluation=long)
        changed = sweep.replace(victim=victim.replace(select=ClosestTo(victim=reference)))
    message = refusal(["--inline"], changed)
    assert "light of a {}' with class 'apple' has 16 tokens, and context_length=16 keeps 14 of them" in message
    assert not (own_home / "sweeps").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("MODEL",), "no test set: give --test PATH"),
        (("MODEL", "--test", "FOLDERS", "--what", "pairs"), "--what pairs needs the pairs or the trigger of a sweep"),
        (("MODEL", "--test", "FOLDERS", "--what", "soul"), "'soul' cannot be examined; known: panel"),
        (("MODEL", "MODEL", "--test", "FOLDERS"), "several checkpoints are compared on a sweep's pairs"),
        (("MODEL", "--script", "SCRIPT", "--test", "FOLDERS"), "--architecture and --test go without --script"),
        (
            ("MODEL", "--test", "FOLDERS", "--train", "FOLDERS"),
            "--train is for the linear probe, which needs a sweep's",
        ),
        (("NOWHERE", "MODEL", "--script", "SCRIPT"), "does not exist; give files or folders"),
        (("FOLDERS", "--script", "SCRIPT"), "holds no checkpoint"),
    ],
)
def test_what_cannot_be_examined_is_said(
    words: tuple[str, ...], message: str, own_home: Path, own_weights: Path, folders: Path, tmp_path: Path
):
    places = {
        "MODEL": own_weights,
        "FOLDERS": folders,
        "SCRIPT": ROOT / "sweeps" / "quickstart.py",
        "NOWHERE": tmp_path / "no.pt",
    }
    assert message in refused("examine", *(str(places.get(word, word)) for word in words))


# --- help and volume -------------------------------------------------------------------------------------------------


def commands_below(group: Any, name: str = "sweeplab") -> list[tuple[str, Any]]:
    """Every command with its full name."""
    if not hasattr(group, "commands"):
        return [(name, group)]
    return [found for key, one in group.commands.items() for found in commands_below(one, f"{name} {key}")]


def test_every_parameter_of_every_command_is_described():
    found = commands_below(typer.main.get_command(cli.app))
    assert len(found) > 20
    lacking = [f"{name} {p.name}" for name, one in found for p in one.params if not getattr(p, "help", "")]
    assert lacking == []


def test_every_command_stands_in_a_group_and_the_home_is_named():
    code, out, _ = command("-h")
    groups = [line.strip("╭─╮ \n") for line in out.splitlines() if line.startswith("╭")]
    assert groups == ["Options", "Run sweeps", "Look at results", "Single models", "Data, attacks, machine"]
    assert "SWEEPLAB_HOME" in out
    assert code == 0


def test_the_version_is_said_with_those_that_change_results():
    code, out, _ = command("--version")
    assert code == 0
    assert out.startswith(f"sweeplab {installed_version('sweeplab')} (python ")
    assert f"torch {torch.__version__.partition('+')[0]}" in out


def test_volume_goes_one_way():
    for words in (("-q", "-v", "list"), ("list", "-q", "-v")):
        assert refused(*words).startswith("-q and -v exclude")


def test_volume_is_taken_before_and_behind_the_command(at_finished: Path):
    for words in (("-q", "status", "made-up"), ("status", "made-up", "-q")):
        assert (command(*words)[0], program.logger.level) == (0, logging.WARNING)
    assert "Traceback" in command("status", "nowhere", "-v")[2]
    assert "Traceback" not in command("status", "nowhere")[2]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["nothing"], "no such command 'nothing'"),
        (["status"], "missing argument 'sweep', of those that `sweeplab list` shows"),
        (["compare"], "missing argument 'names', of those that `sweeplab list` shows"),
        (["clean"], "missing argument 'script'"),
        (["status", "made-up", "--all"], "no such option: --all"),
        (["attak"], "no such command 'attak'. Did you mean 'attack', 'data'?"),
        (["data", "nothing"], "no such command 'nothing'"),
    ],
)
def test_words_that_make_no_command_are_one_message(words: list[str], rule: str):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    joint = "" if rule.endswith("?") else ".*;"
    assert re.fullmatch(rf"error: \S+.*: {re.escape(rule)}{joint} `.* --help` lists what there is\n", err)


def test_verbose_shows_where_an_error_arose():
    code, _, err = command("-v", "status", "nowhere")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in command("status", "nowhere")[2]


def test_quiet_drops_progress_and_keeps_results(run_script: RunScript, capsys: pytest.CaptureFixture[str]):
    plan = ["--dry-run", "-q"]
    assert run_script(plan, SWEEP) == 0
    assert SWEEP.name in capsys.readouterr().out
    assert not program.logger.isEnabledFor(20)
    program.set_volume(quiet=False, verbose=False)


def test_news_leave_stdout_to_json_and_only_there():
    """A command that makes its data on the way says so; with --json on stderr, and not for the next command."""
    program.set_volume(quiet=False, verbose=False)
    group = typer.Typer()

    @program.command(group)
    def tell(as_json: program.AsJson = False) -> None:
        program.logger.info("making something")
        program.say_json([1])

    for words, place in (["--json"], "stderr"), ([], "stdout"):
        result = CliRunner().invoke(group, words)
        assert "making something" in getattr(result, place)
        assert ("making something" in result.stdout) == (place == "stdout")


# --- status for people


def test_status_says_the_best_the_victim_the_cost_and_what_comes_next(at_finished: Path):
    code, out, _ = command("status", "made-up")
    board, status = json_of("leaderboard", "made-up"), json_of("status", "made-up")
    best = next(row for row in board["trials"] if row["feasible"])
    assert code == 0
    assert status["best"] == {name: best[name] for name in ("trial", "epoch", "retention", "asr")}
    assert status["victim"] == {"name": "made-up-victim", **board["victim"]}
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == "made-up: finished"
    assert lines[1] == "trials: 6 of 6 finished"
    assert re.fullmatch(r"last point: \d.* ago", lines[2])
    kept = f"keeps {percent(best['retention'])} at ASR {percent(best['asr'])}"
    assert f"best: {kept} (trial {best['trial']}, epoch {best['epoch']:g}); 2 of 6 cleaned" in lines
    assert any(line.startswith("cost: 12 trial-epochs, ") for line in lines)
    assert lines[-1] == "next: sweeplab leaderboard made-up"


def test_list_says_the_best_the_victim_the_age_and_what_comes_next(at_finished: Path):
    best = json_of("status", "made-up")["best"]["retention"]
    *_, line, last = command("list")[1].splitlines()
    assert re.fullmatch(rf"made-up +finished +6 of 6 +{percent(best).removesuffix(' %')} +made-up-victim +\d.*", line)
    assert last == "next: sweeplab leaderboard made-up"


def test_what_comes_next_in_a_list_is_the_latest_sweep_that_is_not_finished():
    states = {9: "finished", 3: "interrupted", 7: "interrupted"}
    rows = [{"state": state, "last_ms": last} for last, state in states.items()]
    assert max(rows, key=sweeps._urgency) == rows[2]
    assert max(rows[:1], key=sweeps._urgency) == rows[0]


def test_status_of_an_interrupted_sweep_names_the_command_that_goes_on(own_home: Path):
    folder = fabricated.prepared_folder(own_home / "sweeps")
    controller = fabricated.open_controller(folder)
    fabricated.Player(controller, lambda params, index: (90, 70 - index)).play(controller.next_job())
    with folder.lock():
        running = json_of("status", "made-up")
    assert (running["next"], running["best"]) == ("sweeplab logs made-up --follow", None)
    lines = [line.strip() for line in command("status", "made-up")[1].splitlines()]
    assert lines[0] == "made-up: interrupted"
    assert lines[1] == "trials: 1 of 6 finished, 5 waiting"
    assert f"best: none cleaned yet, lowest ASR {percent(running['min_asr'])}" in lines
    assert lines[-1] == "next: sweeplab resume made-up"


def test_what_a_killed_driver_cost_does_not_grow_with_the_clock(own_home: Path):
    """Two workers, 10 s of trial 0 and 15 s of trial 1 until the last heartbeat, are 50 s of workers."""
    folder = fabricated.prepared_folder(own_home / "sweeps")
    controller = fabricated.open_controller(folder)
    player = fabricated.Player(controller)
    player.play(controller.next_job())
    player.play(controller.next_job(), num_points=2)
    story = [
        {"event": "driver began", "workers": 2, "gpus_per_worker": 0.0},
        {"event": "trial began", "trial": 0},
        {"event": "trial ended", "trial": 0},
        {"event": "trial began", "trial": 1},
        {"event": "rerun asked", "trial": 0},
    ]
    began = 1_700_000_000_000
    seconds = (0, 0, 10, 10, 3600)
    lines = ({"time_ms": began + 1000 * at, **event} for at, event in zip(seconds, story, strict=True))
    (folder.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder.path / "alive.json").write_text(json.dumps({"time_ms": began + 25_000}))
    assert json_of("status", "made-up")["costs"]["worker_seconds"] == 50
    assert json_of("list")[0]["costs"]["worker_seconds"] == 50
    page = Path(command("report", "made-up")[1].strip()).read_text().replace("\u00a0", " ")
    assert page.count("50 s of workers") == 2  # in the costs and above the time line
    (folder.path / "alive.json").unlink()  # of a driver that was killed within its first ten seconds
    assert json_of("status", "made-up")["costs"]["worker_seconds"] == 20
    with folder.lock():  # what runs now does cost more by the hour
        assert json_of("status", "made-up")["costs"]["worker_seconds"] > 1e6


def test_status_tells_the_same_time_left_as_the_driver(monkeypatch: pytest.MonkeyPatch):
    """Three points in 30 s; two trials of six are over and two have one of their two points, so that six points are
    left: 60 s, and 10 s later 50. A point from before is no longer to be made, and tells nothing of the rate."""
    began = 1_700_000_000_000

    def at(second: int) -> None:
        monkeypatch.setattr("time.time_ns", lambda: 1_000_000 * (began + 1000 * second))
        monkeypatch.setattr("time.monotonic", lambda: float(second))

    def trial(number: int, state: Any, *seconds: int) -> TrialRecord:
        times = [began + 1000 * second for second in (-10, *seconds)]
        points = [dataclasses.replace(fabricated.point(i, 30, 0), timestamp_ms=ms) for i, ms in enumerate(times)]
        return TrialRecord(number, state, {}, f"c{number}", 7, 1, tuple(points))

    at(0)
    shown = SweepProgress(
        total=6, points_per_trial=2, victim_accuracy=0.4, asr_ceiling=0.05, trials=(trial(0, "running", -5),), ends={}
    )
    heard = [trial(0, "finished", -5, 10), trial(1, "running"), trial(1, "running", 20), trial(2, "failed")]
    heard += [trial(3, "running"), trial(3, "running", 30)]
    for second, one in zip((10, 10, 20, 25, 25, 30), heard, strict=True):
        at(second)
        shown.hear(one)
    trials = [trial(0, "finished", -5, 10), trial(1, "running", 20), trial(2, "failed"), trial(3, "running", 30)]
    header = {"planned_trials": 6, "spec": {"epochs": 2}}
    columns, points = TrialColumns.of(trials), PointColumns.of(trials)
    events = [{"event": "driver began", "time_ms": began - 90_000}, {"event": "driver began", "time_ms": began}]
    for second, left in ((30, 60.0), (40, 50.0)):
        at(second)
        assert status_module._seconds_left(header, columns, points, events) == left
        assert shown.eta() == duration(left)
    assert status_module._seconds_left(header, columns, points, []) is None


def test_every_command_that_prints_a_result_prints_it_as_json(at_finished: Path, monkeypatch: pytest.MonkeyPatch):
    disk = json_of("gc", "--dry-run")
    assert disk["freed"] == 0
    assert any(row["what"] == "sweeps/made-up" for row in disk["disk"])
    attacks = json_of("attack", "list")
    assert {attack.model_fields["kind"].default for attack in ATTACKS} < set(attacks)
    assert attacks["image"]["path"] == "required"
    known = commands_below(typer.main.get_command(cli.app))
    assert {name for name, one in known if not any("--json" in p.opts for p in one.params)} == set(WITHOUT_JSON)
    assert json_of("stop", "made-up") == [{"what": "sweep 'made-up'", "stopped": False}]
    assert {event["event"] for event in json_of("logs", "made-up")["events"]} == {"trial began", "trial ended"}
    assert len(json_of("logs", "made-up", "3")["points"]) == 3
    assert "leave --follow and --tail out" in refused("logs", "made-up", "--json", "--tail", "2")


@pytest.mark.parametrize(("code", "printed"), [(0, 6), (75, None), (1, None)])
def test_what_runs_a_sweep_prints_its_leaderboard_as_json_and_all_else_on_stderr(
    code: int,
    printed: int | None,
    at_finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def each(experiments: Any, work: Any) -> int:
        program.say("home: /home")
        work.keywords["results"].append(ranked(SweepFolder.of(at_finished, "made-up"))[1])
        return code

    monkeypatch.setattr(running, "_each", each)
    assert running.start_one(SWEEP, Options(), as_json=True) == code
    out, err = capsys.readouterr()
    assert err == "home: /home\n"
    assert (len(json.loads(out)["trials"]) if out else None) == printed


def test_a_script_prints_a_list_of_its_results_as_json(
    at_finished: Path, run_script: RunScript, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    board = ranked(SweepFolder.of(at_finished, "made-up"))[1]
    monkeypatch.setattr(running, "_each", lambda experiments, work: work.keywords["results"].append(board) or 0)
    assert run_script(["--json"], SWEEP) == 0
    assert json.loads(capsys.readouterr().out) == [board.to_json()]
    for flag in ("--dry-run", "--plan"):
        assert run_script(["--json", flag], SWEEP) == 2
        assert f"{flag} is a text for people" in one_message(2, capsys.readouterr().err)


def test_files_that_were_written_are_named_as_json(at_finished: Path, tmp_path: Path):
    files = json_of("export", "made-up", "--to", str(tmp_path / "tables"))["files"]
    assert len(files) == 4
    assert all(Path(file).is_file() for file in files)


WITHOUT_JSON = {
    "sweeplab run": "hands its words to the script, whose own --json prints the results",
    "sweeplab mlflow": "becomes a server",
    "sweeplab report": "prints the path of the page that it writes, and nothing else",
    "sweeplab attack preview": "writes the file that --to names",
    "sweeplab attack badclip": "writes the file that --to names",
    "sweeplab attack export": "writes the folder that --to names",
    "sweeplab examine": "prints nothing but JSON",
}
"""Commands that print no result that has to be read, and why."""


def test_scripts_are_listed_in_a_repository_alone(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, _, err = command("list", "--scripts")
    assert "--scripts lists those of a repository" in one_message(code, err)
