"""The tables that the scripts in benchmarks/ print."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fabricated import SWEEP, VICTIM, finished_sweep, point, prepared_folder

from sweeplab.attacks.poisoning import Poisoning
from sweeplab.attacks.sig import SIG
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.attacks.wanet import WaNet
from sweeplab.clip_model import SmallCLIP
from sweeplab.data.fruit_stall import FruitStall, FruitStallTest
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import Measurement, SweepRecord, TrialRecord
from sweeplab.specs import InvalidInput
from sweeplab.sweep_folder import SweepFolder

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    """A script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


attack_table, method_table, surfaces = script("attack_table"), script("method_table"), script("surfaces")
gpu, speed = script("gpu"), script("speed")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_an_attacks_line_holds_rates_and_counts():
    row = attack_table.AttackRow(
        victim_name="signal",
        attack="sig",
        captions="training",
        num_poisons=400,
        num_pairs=8000,
        victim=Measurement(1980, 2000, 1800, 1875, "one"),
        twin=Measurement(1990, 2000, 15, 1875, "another"),
        kept_k=1500,
    )
    header, _, line = attack_table.markdown([row]).splitlines()
    assert cells(line) == [
        "signal",
        "`sig`",
        "training",
        "400/8000 (5.0%)",
        "0.990 (1980/2000)",
        "0.960 (1800/1875)",
        "0.995 (1990/2000)",
        "0.008 (15/1875)",
        "0.800 (1500/1875)",
    ]
    assert len(cells(header)) == len(cells(line))


def test_the_unpoisoned_twin_differs_by_the_poison_alone():
    triggered = Poisoning(attack=SIG(), target="banana", count=40)
    targeted = TargetedImages(images=FruitStall(num_pairs=64), classes=("apple", "banana"))
    assert attack_table.unpoisoned(triggered) == Poisoning(attack=SIG(), target="banana", rate=0)
    assert attack_table.unpoisoned(targeted) == targeted.replace(poisons_per_target=0)


def test_a_given_checkpoint_has_no_twin(tmp_path: Path):
    with pytest.raises(InvalidInput, match="made-up: its victim is not poisoned here"):
        attack_table.attack_rows([SWEEP], tmp_path)


def record(*trials: TrialRecord) -> SweepRecord:
    """A finished sweep of a victim with 90 of 100 correct and 79 of 80 hit."""
    return SweepRecord(
        name="made-up",
        digest="0" * 16,
        state="finished",
        asr_ceiling=0.05,
        epochs=2,
        protocol="paper",
        method="cleanclip",
        victim_name="made-up-victim",
        victim=point(0, 90, 79).measurement,
        victim_epoch=10,
        target="banana",
        trials=trials,
        planned_trials=len(trials),
        parameters=("learning_rate",),
        log_parameters=("learning_rate",),
    )


def trial(number: int, *rates: tuple[int, int], start_counts: bool = False) -> TrialRecord:
    """One point a pair (correct of 100, hit of 80), from the start on."""
    points = tuple(point(index, *rate) for index, rate in enumerate(rates))
    params = {"learning_rate": 10.0 ** -(number + 2)}
    return TrialRecord(number, "finished", params, f"c{number}", 0, 1, points, start_counts=start_counts)


def line_of(sweep: SweepRecord) -> list[str]:
    return cells(method_table.table_row(sweep, rank_trials(sweep, lambda number, index: None).rows))


def test_a_sweeps_line_shows_its_best_cleaned_point():
    """Trial 0 keeps 81 of 90 at 3 of 80 in epoch 1; its second epoch is less accurate, trial 1 never gets below 5 %."""
    line = line_of(record(trial(0, (90, 79), (81, 3), (72, 1)), trial(1, (90, 79), (90, 40), (90, 4))))
    assert line == ["made-up", "1 of 2", "0.900", "0.810 (81/100)", "0.037 (3/80)", "none", "1", "learning_rate 0.01"]


def test_without_a_cleaned_point_the_lowest_asr_is_shown_and_no_retention():
    """4 of 80 is the ceiling itself, so not below it."""
    line = line_of(record(trial(0, (90, 79), (88, 50), (87, 60)), trial(1, (90, 79), (80, 4), (85, 9))))
    assert line == ["made-up", "0 of 2", "none", "0.800 (80/100)", "0.050 (4/80)", "none", "1", "learning_rate 0.001"]


def test_a_start_that_counts_is_shown_where_there_are_no_epochs():
    line = line_of(record(trial(0, (89, 78), start_counts=True)))
    assert line[1:7] == ["0 of 1", "none", "0.890 (89/100)", "0.975 (78/80)", "none", "0"]


def test_unfinished_sweeps_are_named_below_the_table(tmp_path: Path):
    begun, absent = prepared_folder(tmp_path, SWEEP.replace(name="begun")), SweepFolder(tmp_path / "absent")
    lines = method_table.markdown([finished_sweep(tmp_path), begun, absent]).splitlines()
    assert cells(lines[2])[0] == "made-up"
    assert lines[-1] == "Not finished: begun, absent"
    assert len(lines) == 5


def test_notes_stand_below_the_table(tmp_path: Path):
    folder = finished_sweep(tmp_path)
    folder.commit_victim(VICTIM, planted_target="apple")
    lines = method_table.markdown([folder]).splitlines()
    assert lines[-1].startswith("made-up: the victim's weights say that they were poisoned towards 'apple'")


def test_a_home_without_any_of_the_sweeps_says_what_to_run(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"run sweeps/every_method\.py first"):
        method_table.markdown([SweepFolder(tmp_path / "absent")])


def test_small_simulated_tables_have_12_to_16_configurations_of_20_epochs():
    for surface in surfaces.SMALL_SURFACES:
        table = surfaces.table_of_surface(surface, 0)
        assert 12 <= len(table.rows) <= 16
        assert table.trial_epochs == 20 * len(table.rows)
        assert table.best_retention is not None


# --- speed ------------------------------------------------------------------------------------------------------------


def test_contestants_take_turns_in_changing_order_and_the_first_round_does_not_count():
    turns: list[tuple[str, int]] = []
    seconds = speed.take_turns({name: lambda number, name=name: turns.append((name, number)) for name in "ab"}, 2)
    assert turns == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]
    assert [len(found) for found in seconds.values()] == [2, 2]


def test_without_peers_the_others_take_turns():
    contestants = dict.fromkeys(("ours", "peer", "floor"), lambda number: None)
    assert speed.take_turns(contestants, 1, peers=False).keys() == {"ours", "floor"}


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    """2/1, 3/3 and 12/2: the median is 2, whereas the ratio of the medians is 3/2."""
    assert speed.ratio([2.0, 3.0, 12.0], [1.0, 3.0, 2.0]) == 2.0


def test_the_table_of_speeds_says_what_was_not_run():
    rows = [speed.Row("MMCL", {"small": 2.114, "RN50": 1.5}, {"small": 1.01, "RN50": 1.02}), speed.Row("CleanCLIP")]
    assert [cells(line) for line in speed.markdown(rows, ["small", "RN50"]).splitlines()] == [
        ["", "small: peer / ours", "RN50: peer / ours", "ours / floor (small; RN50)"],
        ["---"] * 4,
        ["MMCL", "2.11", "1.50", "1.01; 1.02"],
        ["CleanCLIP", "not run", "not run", ""],
    ]


@pytest.mark.slow
def test_speed_is_measured_of_the_loop_and_of_the_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In miniature: which is faster cannot be said of it."""
    setting = dataclasses.replace(
        speed.small(tmp_path),
        architecture=SmallCLIP(width=8, embed_dim=16, text_width=16, text_layers=1).architecture(),
        table=FruitStall(num_pairs=32, image_size=48).read(tmp_path),
        test=FruitStallTest(num_images=16, image_size=48).read(tmp_path),
        batch_size=16,
        rounds=1,
    )
    pairs = speed.pairs_of(setting)
    seconds = speed.contest_cleaning(setting, tmp_path, pairs, None)
    assert {name: len(found) for name, found in seconds.items()} == {"ours": 1, "floor": 1}
    speed.tell_pairs(setting, tmp_path, num_pairs=64)
    printed = capsys.readouterr().out
    assert printed.count("small: pairs a second and core, ") == 10
    assert printed.count(" ms a view") == 8
    rows = [speed.Row(name) for name in ("prompts", "images", "full")]
    speed.contest_evaluation(setting, *rows)
    assert all(row.peer["small"] > 0 and row.floor["small"] > 0 for row in rows)
    assert "| full |" in speed.markdown(rows, ["small"])


@pytest.mark.slow
def test_speed_is_measured_of_open_clips_trainer(tmp_path: Path):
    pytest.importorskip("braceexpand")
    setting = dataclasses.replace(
        speed.small(tmp_path), table=FruitStall(num_pairs=32, image_size=48).read(tmp_path), batch_size=16, rounds=1
    )
    seconds = speed.contest_mmcl(setting, tmp_path, speed.pairs_of(setting))
    assert seconds.keys() == {"ours", "peer", "floor"}


@pytest.mark.parametrize(("which", "jobs"), [("clean", ["clean.job"]), ("sample", ["pretrain.job", "clean.job"])])
def test_jobs_on_many_pairs_reach_their_first_batch(
    which: str, jobs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As the benchmark follows them, on a few: what it prints depends on a worker's steps staying as they are."""
    many_pairs = script("many_pairs")
    monkeypatch.setattr(many_pairs.pretraining, "run_inline", None)  # is what it was again after the test
    folder = tmp_path / "rows-10"
    many_pairs.make_data(folder, 10, 3)
    assert many_pairs.measure_prepare(which, folder)["seconds"] > 0
    for job in jobs:
        assert set(many_pairs.measure_worker(job, folder)) == {"start", "trial"}


# --- gpu --------------------------------------------------------------------------------------------------------------


def test_the_peak_is_that_of_the_first_part_of_a_name_that_fits():
    assert gpu.peak_of("NVIDIA H100 PCIe") == 756e12
    assert gpu.peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert gpu.peak_of("NVIDIA L40S") == 362e12
    assert gpu.peak_of("NVIDIA L4") == 121e12
    assert gpu.peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert gpu.peak_of("NVIDIA A40") == 149.7e12
    assert gpu.peak_of("NVIDIA RTX A4000") is None
    assert gpu.peak_of("Tesla T4") is None


def test_what_fails_on_the_gpu_is_a_row_that_says_so_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """An attack, the evaluation, and what the rows of MMCL need; the exit code is 1."""

    def stamp(*values: object) -> Any:
        raise RuntimeError("Expected all tensors to be | on the same device")

    def out_of_memory(*values: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def flops(architecture: object, objective: object, device: object) -> Any:
        return stamp() if isinstance(objective, gpu.MMCL) else 1.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "check_objectives", lambda *values: True)
    monkeypatch.setattr(WaNet, "stamp", stamp)
    monkeypatch.setattr(gpu, "test_set", out_of_memory)
    monkeypatch.setattr(gpu, "flops_of", flops)
    assert gpu.main(["--miniature"]) == 1
    lines = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    seen = {line[0]: line[1] for line in lines}
    assert seen["`wanet`"] == "FAILED: RuntimeError: Expected all tensors to be / on the same device"
    assert seen["`sig`"] == seen["checkpoint"] == seen["`simclr`"] == "as on the CPU"
    assert seen["evaluation"] == "FAILED: OutOfMemoryError: CUDA out of memory"
    assert seen["small, `mmcl`"].startswith("FAILED: RuntimeError: Expected")
    assert [line[1:3] for line in lines if line[0] == "small"] == [["`mmcl+ssl`", "8"], ["`mmcl+ssl`", "16"]]


def test_open_clips_loop_has_what_its_trainer_sets_and_ours_as_before(monkeypatch: pytest.MonkeyPatch):
    """cuDNN's search and TF32 in the peer's turns; the search alone in one row of ours."""
    seen: list[tuple[str, bool, bool]] = []

    def step(name: str) -> Callable[..., Callable[[], None]]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        return lambda *values, **options: lambda: seen.append((name, cudnn.benchmark, matmul.allow_tf32))

    monkeypatch.setattr(gpu, "our_step", step("ours"))
    monkeypatch.setattr(gpu, "open_clips_step", step("theirs"))
    monkeypatch.setattr(gpu, "flops_of", lambda *values, **options: 1.0)
    gpu.train_rows(gpu.miniature(), torch.device("cpu"), gpu.Clock(1.0), None)
    assert list(dict.fromkeys(seen)) == [("ours", False, False), ("theirs", True, True), ("ours", True, False)]
    assert seen[-1] == ("ours", False, False)


def test_views_double_what_a_step_computes_and_chunks_add_a_forward_pass():
    """All but the losses, which are small: pairs and their views pass the network. Backward takes two passes' time."""
    flops = partial(gpu.flops_of, gpu.tiny_architecture(), device=torch.device("cpu"))
    once, views, chunks = flops(gpu.MMCL()), flops(gpu.MMCLWithSSL()), flops(gpu.MMCL(), is_chunked=True)
    assert 1.9 < views / once < 2.1
    assert 1.3 < chunks / once < 1.4


@pytest.mark.parametrize(
    ("fits", "batches"),
    [
        (16, ["16", "16"]),
        (4, ["16", "16 in 2 chunks", "16 in 4 chunks", "16"]),
        (1, ["16", "16 in 2 chunks", "16 in 4 chunks", "16 in 8 chunks", "16"]),
    ],
)
def test_a_batch_that_runs_out_of_memory_is_taken_in_as_few_chunks_as_fit_or_in_8(
    fits: int, batches: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Of a memory for so many pairs of MMCL; the last row is that of MMCL + SSL, which is not tried."""

    def step(*values: object, num_chunks: int = 1) -> Callable[[], None]:
        if 16 // num_chunks > fits and isinstance(values[1], gpu.MMCL):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return lambda: None

    monkeypatch.setattr(gpu, "our_step", step)
    monkeypatch.setattr(gpu, "open_clips_step", lambda *values: lambda: None)
    monkeypatch.setattr(gpu, "flops_of", lambda *values, is_chunked=False: 1.0)
    size = dataclasses.replace(gpu.miniature(), batch_sizes=(16,), searched=("", 0))
    gpu.train_rows(size, torch.device("cpu"), gpu.Clock(1.0), None)
    lines = [cells(line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[2] for line in lines] == batches
    lacking = [line[4] == "out of memory" for line in lines[:-1]]
    assert lacking == [16 // 2**tried > fits for tried in range(len(lacking))]


def test_a_compiled_row_is_a_run_that_compiles_and_without_a_compiler_says_what_is_lacking(
    monkeypatch: pytest.MonkeyPatch,
):
    architecture, device = gpu.tiny_architecture(), torch.device("cpu")
    batch = gpu.noise_batch(architecture, 8, views=False)
    make = partial(gpu.our_step, architecture, gpu.MMCL(), batch, device, compiled=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler is not on the PATH" in gpu.rate_of(make, 8, device, 0.0).words
    monkeypatch.setenv("CXX", sys.executable)
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    assert [make().training.encoder] == compiled


ABSENT = ("ray", "mlflow", "optuna", "plotly", "pandas", "typer", "rich", "scipy", "sklearn", "joblib", "nltk")
ABSENT += ("alembic", "click", "fastapi", "fsspec", "psutil", "requests", "sqlalchemy", "transformers", "webdataset")
ABSENT += ("huggingface_hub", "safetensors", "timm", "yaml")  # open_clip's, for what is not done here
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in {ABSENT} else find(name, *more)
sys.path.insert(0, {str(FOLDER)!r})
import gpu
sys.exit(gpu.main(["--miniature"]))
"""


@pytest.mark.slow
def test_the_gpu_script_needs_no_more_than_it_says():
    """In miniature, in a process without Ray and MLflow and what else the training of most objectives does without."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", WITHOUT]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    lines = [cells(line) for line in ran.stdout.splitlines() if line.startswith("|")]
    for name, allowed in (
        ("`mmcl`", "0.002"),
        ("`mmcl+ssl` in 2 chunks", "0.002"),
        ("`mmcl+ssl`, activation checkpointing", "0.002"),
        ("`mmcl+ssl` in bfloat16", "0.05"),
    ):
        assert [name, "as on the CPU", f"losses 0.0e+00 apart, of {allowed} allowed"] in lines
    assert [line[1] for line in lines if line[0] == "`deep-clustering`"] == ["not run: No module named 'sklearn'"]
    assert [line[1:4] for line in lines if line[0] == "small" and len(line) == 10] == [
        ["`mmcl`", "8", "no"],
        ["`mmcl`", "16", "no"],
        ["`mmcl`", "16, cudnn.benchmark", "no"],
        ["`mmcl+ssl`", "8", "no"],
        ["`mmcl+ssl`", "16", "no"],
    ]
