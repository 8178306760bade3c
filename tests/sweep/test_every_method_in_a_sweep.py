"""Every cleaning method, start and pre-training objective in a whole sweep, without Ray, on the embedded data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from dashboards.build import build_page
from sweeplab.attacks.exchange import ImportedPoison, export_poisoned_csv
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.cleaning import METHODS
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR
from sweeplab.cleaning.start import Start
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.commands.examine import WANTS, examine_checkpoint, examine_checkpoints
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStall, FruitStallTest
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.pairs import PairsCSV
from sweeplab.experiment import (
    CheckpointVictim,
    CleaningSweep,
    CleanSample,
    ClosestTo,
    PretrainedVictim,
    SelectedTrial,
    SlippedPoisons,
    smoke_sweep,
)
from sweeplab.pretraining import OBJECTIVES
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import MeasuredImages, SweepRecord
from sweeplab.search_space import Grid, LogUniform, SearchSpace
from sweeplab.specs import Failed, InvalidInput
from sweeplab.sweep import checks, pretraining
from sweeplab.sweep import run as run_module
from sweeplab.sweep.run import Options
from sweeplab.sweep_folder import SweepFolder
from sweeplab.worker.inputs import victim_table

pytestmark = pytest.mark.slow

RATES = SearchSpace(dimensions={"learning_rate": LogUniform(low=1e-4, high=1e-3)}, source="made for these tests")


def miniature(method: Any) -> Any:
    return method.in_miniature() if hasattr(method, "in_miniature") else method


def run(sweep: CleaningSweep, home: Path) -> SweepRecord:
    return run_module.run_sweep(sweep, home, Options(inline=True))


@pytest.fixture
def home(victim_home: Path, tmp_path: Path) -> Path:
    shutil.copytree(victim_home, tmp_path / "home")
    return tmp_path / "home"


FEW_PAIRS = FruitStall(num_pairs=480, image_size=32)
"""For victims that need not have learned anything; the smoke sweep's own has 1,280."""


@pytest.fixture
def plain(smoke: CleaningSweep) -> CleaningSweep:
    """One trial of two epochs over the learning rate alone."""
    return smoke.replace(name="plain", space=RATES, grid=None, search=smoke.search.replace(trials=1))


@pytest.mark.parametrize("member", METHODS, ids=lambda member: member.model_fields["kind"].default)
def test_a_method_cleans_in_a_sweep(member: type, plain: CleaningSweep, home: Path):
    labelled = LabelledPairs(images=FruitStallTest(num_images=160, image_size=32, seed=5), per_class=8)
    data = labelled if member().kind == "supervised" else plain.data
    record = run(plain.replace(method=miniature(member()), data=data, log_every=2), home)
    assert record.state == "finished"
    points = record.trials[0].points
    assert [point.epoch for point in points] == [0, 1, 2]
    assert points[1].train["loss"] > 0 or member().kind == "par"
    assert points[1].curve
    assert points[1].measurement.top5_k is not None


@pytest.mark.parametrize("member", OBJECTIVES, ids=lambda member: member.model_fields["kind"].default)
def test_an_objective_trains_a_victim(member: type, plain: CleaningSweep, home: Path):
    assert isinstance(plain.victim, PretrainedVictim)
    victim = plain.victim.replace(name="other", data=FEW_PAIRS, objective=miniature(member()), epochs=3)
    record = run(plain.replace(victim=victim, epochs=0, start=Start(recalibrate_batch_norm=True)), home)
    assert record.victim_epoch == 3


ONE_STEP = {"global_batch_size": 320, "warmup_steps": 0}
"""An epoch of all 320 pairs."""


@pytest.mark.parametrize(("rate", "what"), [(1e39, "the weights are not finite"), (1e36, "embeddings are not finite")])
def test_a_trial_that_diverges_in_its_last_step_fails_and_names_its_rate(
    rate: float, what: str, plain: CleaningSweep, home: Path
):
    """Its only loss is that of the victim, and finite; without a look at what came of it, it would be 'cleaned'."""
    grid = Grid(axes={"learning_rate": (1e-4, rate)}, source="made for this test")
    search = plain.search.replace(sampler="grid")
    optimization = plain.optimization.replace(**ONE_STEP)
    record = run(plain.replace(epochs=1, grid=grid, search=search, optimization=optimization), home)
    good, bad = record.trials
    assert (good.state, bad.state, bad.attempts) == ("finished", "failed", 1)
    assert bad.reason.startswith("FloatingPointError: ")
    assert what in bad.reason
    assert f"at step 1 with learning_rate={rate:g}; lower the learning rate" in bad.reason
    assert [point.epoch for point in bad.points] == [0]


def test_a_head_that_diverges_fails_its_trial(plain: CleaningSweep, home: Path):
    """Of supervised finetuning the head's scores are measured."""
    labelled = LabelledPairs(images=FruitStallTest(num_images=160, image_size=32, seed=5), per_class=8)
    optimization = plain.optimization.replace(global_batch_size=128, warmup_steps=0, learning_rate=1e39)
    fixed = Grid(axes={"weight_decay": (0.0,)}, source="made for this test")
    sweep = plain.replace(method=SupervisedFinetuning(), data=labelled, optimization=optimization, epochs=1)
    record = run(sweep.replace(grid=fixed, search=plain.search.replace(sampler="grid")), home)
    assert record.trials[0].state == "failed"
    assert "not finite" in record.trials[0].reason


def test_a_victim_that_diverges_in_its_last_step_is_refused(plain: CleaningSweep, home: Path):
    assert isinstance(plain.victim, PretrainedVictim)
    optimization = plain.victim.optimization.replace(global_batch_size=1280, warmup_steps=0, learning_rate=1e39)
    victim = plain.victim.replace(name="diverged", optimization=optimization, epochs=1)
    with pytest.raises(Failed, match=r"pre-training victim diverged failed: .* not finite .*learning_rate=1e\+39"):
        run(plain.replace(victim=victim), home)


def test_a_victim_whose_weights_are_not_finite_is_not_cleaned(plain: CleaningSweep, home: Path):
    """Such as one that an older version trained and found to have an ASR of 0."""
    checkpoint = next((home / "victims").rglob("*.pt"))
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["visual.conv1.weight"].fill_(float("nan"))
    torch.save(content, checkpoint)
    with pytest.raises(InvalidInput, match=r"holds values that are not finite, in visual\.conv1\.weight"):
        run(plain, home)


def test_new_batch_norm_statistics_alone_are_a_result(plain: CleaningSweep, home: Path):
    record = run(plain.replace(epochs=0, start=Start(recalibrate_batch_norm=True)), home)
    assert record.trials[0].start_counts
    assert record.trials[0].points[0].measurement != record.victim


def test_shrink_and_perturb_cleanclip_and_decay_are_one_value(plain: CleaningSweep, home: Path):
    start = Start(shrink_perturb=True, shrink=0.9, perturb=0.1, recalibrate_batch_norm=True)
    changed = plain.replace(
        start=start,
        method=CleanCLIP(ssl_weight=2.0),
        optimization=plain.optimization.replace(weight_decay=5.0),
        epochs=1,
    )
    assert run(changed, home).state == "finished"


def test_points_inside_epochs_are_recorded(plain: CleaningSweep, home: Path):
    record = run(plain.replace(measure_at=(4,)), home)
    assert [point.epoch for point in record.trials[0].points] == [0, 0.4, 1, 1.4, 2]


def test_a_step_outside_the_epoch_is_refused(plain: CleaningSweep, home: Path):
    with pytest.raises(InvalidInput, match="must lie inside an epoch of 10 steps"):
        run(plain.replace(measure_at=(10,)), home)


def test_the_authors_protocol_carries_the_optimizer_over_and_says_so(plain: CleaningSweep, home: Path):
    record = run(plain.replace(protocol="authors"), home)
    assert record.protocol == "authors"
    paper = run(plain.replace(name="paper"), home)
    assert paper.victim.evaluation_digest != record.victim.evaluation_digest
    assert paper.trials[0].points[1].train["loss"] != record.trials[0].points[1].train["loss"]


def test_par_has_a_trainer_of_its_own_under_the_authors_protocol(plain: CleaningSweep, home: Path):
    """It starts at the schedule's first rate where CleanCLIP's is an epoch ahead; a rate at an epoch's end tells."""
    optimization = plain.optimization.replace(schedule="fall-cosine")
    theirs = plain.replace(protocol="authors", method=PAR(), optimization=optimization, space=RATES, grid=None)
    rates = {}
    for name, protocol in (("par-theirs", "authors"), ("par-paper", "paper")):
        record = run(theirs.replace(name=name, protocol=protocol), home)
        rates[name] = [trial.points[1].train["learning_rate"] for trial in record.trials]
    assert rates["par-theirs"] == rates["par-paper"]


def test_a_slightly_poisoned_cleaning_set_differs_from_a_clean_one(plain: CleaningSweep, home: Path):
    clean = run(plain.replace(name="clean", epochs=1, data=CleanSample(num_pairs=320)), home)
    dirty = run(plain.replace(name="dirty", epochs=1, data=CleanSample(num_pairs=320, num_poisons=40)), home)
    other = run(plain.replace(name="other", epochs=1, slipped=SlippedPoisons(count=40)), home)
    pure = run(plain.replace(name="pure", epochs=1), home)
    for first, second in ((clean, dirty), (pure, other)):
        assert first.trials[0].points[1].train["loss"] != second.trials[0].points[1].train["loss"]
        assert first.digest != second.digest


def test_a_victim_starts_from_a_checkpoint_and_is_chosen_by_another_ones_accuracy(plain: CleaningSweep, home: Path):
    assert isinstance(plain.victim, PretrainedVictim)
    checkpoint = next((home / "victims").rglob("*.pt"))
    finetuned = plain.victim.replace(
        name="finetuned", data=FEW_PAIRS, initial=checkpoint, epochs=2, select=ClosestTo(victim=plain.victim)
    )
    record = run(plain.replace(victim=finetuned, epochs=0, start=Start(recalibrate_batch_norm=True)), home)
    points = pretraining.victim_folder(home, finetuned, _digest(home)).points()
    wanted = run(plain.replace(name="base", epochs=0, start=Start(recalibrate_batch_norm=True)), home).victim.accuracy
    distances = {point.epoch: abs(point.measurement.accuracy - wanted) for point in points if point.epoch > 0}
    assert record.victim_epoch == min(distances, key=lambda epoch: (distances[epoch], epoch))
    assert points[0].measurement.accuracy > 0.15, "chance is 1/16: it did not start from the checkpoint"


def _digest(home: Path) -> str:
    return next(path.name.removeprefix("finetuned-") for path in (home / "victims").glob("finetuned-*"))


def test_another_sweeps_best_trial_is_cleaned_and_compared_with_the_victim_behind_it(
    plain: CleaningSweep, home: Path, news: Callable[[], list[str]]
):
    """The other sweep is run first, reused afterwards, and the trials start from its weights."""
    grid = Grid(
        axes={"shrink_perturb": (True,), "shrink": (0.5, 0.95), "perturb": (0.01,)}, source="made for this test"
    )
    search = plain.search.replace(sampler="grid", asr_ceiling=1.0)
    starts = plain.replace(name="starts", epochs=0, grid=grid, search=search)
    outer = plain.replace(
        name="outer",
        victim=SelectedTrial(name="shrunk", sweep=starts),
        grid=Grid(axes={"learning_rate": (1e-4,)}, source="made for this test"),
        search=plain.search.replace(sampler="grid"),
    )
    record = run(outer, home)
    first = SweepFolder(home / "sweeps" / "starts").record()
    ranks = {t.number: (t.points[0].measurement.accuracy, -t.points[0].measurement.asr_k) for t in first.trials}
    best = max(first.trials, key=lambda trial: ranks[trial.number])
    trial = record.trials[0]
    assert record.victim == first.victim
    assert trial.start_counts
    assert trial.points[0].measurement == best.points[0].measurement
    assert trial.points[0].measurement != record.victim
    run_module.run_sweep(outer, home, Options(inline=True))
    assert news()[-1] == "outer: its one trial is there already; nothing to run"
    again = outer.replace(name="again", epochs=1)
    run_module.run_sweep(again, home, Options(inline=True))
    assert "starts: all 2 trials are there already; nothing to run" in news()
    shutil.rmtree(SweepFolder(home / "sweeps" / "starts").trial(best.number).checkpoints)
    with pytest.raises(InvalidInput, match=f"the weights of trial {best.number} of starts are gone"):
        run(outer.replace(name="third"), home)


def test_epochs_of_a_victim_are_kept_and_examined_together(
    plain: CleaningSweep, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SWEEPLAB_HOME", str(home))
    assert isinstance(plain.victim, PretrainedVictim)
    victim = plain.victim.replace(name="kept", epochs=3, keep_epochs=(1, 2))
    sweep = plain.replace(victim=victim, epochs=0, start=Start(recalibrate_batch_norm=True))
    run(sweep, home)
    folder = next((home / "victims").glob("kept-*"))
    found = examine_checkpoints(sweep, [folder], to=tmp_path / "tables")
    assert [row["epoch"] for row in found["dynamics"]] == [1, 2, 3]
    table = pd.read_csv(tmp_path / "tables" / "dynamics.csv")
    assert table["poisoned_score"].is_monotonic_increasing
    single = examine_checkpoint(sweep, Path(table["checkpoint"][1]), ["pairs"])["pairs"]
    assert table["clean_score"][1] == pytest.approx(single["clean_score"])
    assert table["safe_size"][1] == single["safe"]["size"]
    assert table["recall_highest@0.1"][1] == single["detection"]["highest"][2]["recall"]


TARGETED = TargetedImages(
    images=FruitStall(num_pairs=64, image_size=32, seed=9), num_targets=5, poisons_per_target=24, classes=CLASS_NAMES
)


@pytest.fixture
def targeted(plain: CleaningSweep) -> CleaningSweep:
    assert isinstance(plain.victim, PretrainedVictim)
    victim = plain.victim.replace(name="targeted", data=FEW_PAIRS, poisoning=TARGETED, epochs=2)
    return plain.replace(name="targeted", victim=victim, data=CleanSample(num_pairs=320, num_poisons=8))


def test_targeted_poisoning_goes_the_whole_way(
    targeted: CleaningSweep,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Victim, cleaning, ranking, page, MLflow, examination; the PSR of five images stands where the ASR does."""
    monkeypatch.setenv("SWEEPLAB_HOME", str(home))
    with caplog.at_level("INFO", "sweeplab"):
        record = run(targeted, home)
    told = [line for line in caplog.messages if line.startswith(("  epoch ", "victim targeted: "))]
    assert len(told) > 1
    assert all(", PSR " in line for line in told)
    assert record.state == "finished"
    assert record.target == "a class of its own for each of 5 images"
    assert (record.victim.asr_n, record.victim.accuracy_n) == (5, 160)
    assert record.images == MeasuredImages((), 16)
    assert [point.measurement.asr_n for point in record.trials[0].points] == [5, 5, 5]
    folder = SweepFolder(home / "sweeps" / "targeted")
    assert all(folder.outcomes(0, index).num_triggered == 5 for index in range(3))
    board = rank_trials(record, folder.outcomes)
    assert len(board.rows) == 1
    assert "a class of its own for each of 5 images" in build_page(record, board, folder.page).read_text()
    assert resume_from_json(folder).digest == record.digest
    plan = json.loads(next((home / "victims").glob("targeted-*/poison.json")).read_text())
    assert len(plan["indices"]) == len(plan["labels"]) == 5 * 24
    checkpoint = next((home / "victims").glob("targeted-*/checkpoints/*.pt"))
    found = examine_checkpoint(targeted, checkpoint, WANTS, tmp_path)
    assert found["probe"]["asr"] is None
    assert "map" not in found
    assert found["panel"]["attacks"][0]["target_is_guessed"]
    assert found["pairs"]["poisoned_score"] is not None
    assert not [name for name in found["retrieval"] if name.startswith("asr")]


def resume_from_json(folder: SweepFolder) -> SweepRecord:
    """The sweep as its own record describes it: all is there already."""
    return run(CleaningSweep.model_validate(folder.header()["spec"]), folder.path.parents[1])


def test_a_checkpoint_with_targeted_images_is_measured_as_the_victim_that_it_comes_from(
    targeted: CleaningSweep, home: Path
):
    pretrained = run(targeted.replace(epochs=0, start=Start(recalibrate_batch_norm=True)), home)
    checkpoint = next((home / "victims").glob("targeted-*/checkpoints/*.pt"))
    victim = CheckpointVictim(name="given", path=checkpoint, architecture=targeted.victim.architecture, attack=TARGETED)
    given = targeted.replace(
        name="given", victim=victim, data=FruitStall(num_pairs=320, image_size=32, seed=1), epochs=0
    )
    record = run(given.replace(start=Start(recalibrate_batch_norm=True)), home)
    assert record.victim == pretrained.victim


def test_a_targeted_sweep_has_a_miniature(targeted: CleaningSweep, home: Path):
    small = smoke_sweep(targeted)
    assert run(small.replace(epochs=1, victim=small.victim.replace(epochs=1)), home).victim.asr_n == 4


def test_an_imported_set_is_a_victims_data(plain: CleaningSweep, home: Path, tmp_path: Path):
    """The poisons are known without a plan of our own, and a clean sample can be drawn from it, or a dirty one."""
    assert isinstance(plain.victim, PretrainedVictim)
    machine = checks.machine_for(plain, home)
    first = plain.victim.replace(epochs=1, name="first", data=FEW_PAIRS)
    table, plan = victim_table(first, machine)
    path = export_poisoned_csv(table, plan, tmp_path / "out", image_size=32)
    imported = ImportedPoison(path=path, attack=plain.victim.poisoning.attack)
    second = first.replace(name="second", data=PairsCSV(path=path), poisoning=imported)
    again, again_plan = victim_table(second, machine)
    assert (len(again), again_plan.rows) == (len(table), tuple(range(len(plan.rows))))
    start = Start(recalibrate_batch_norm=True)
    record = run(plain.replace(name="again", victim=second, epochs=0, start=start), home)
    assert record.victim.asr is not None
    clean = run(plain.replace(name="sample", victim=second, data=CleanSample(num_pairs=320, num_poisons=3)), home)
    assert clean.state == "finished"


def test_a_checkpoint_is_examined(plain: CleaningSweep, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWEEPLAB_HOME", str(home))
    checkpoint = next((home / "victims").rglob("*.pt"))
    found = examine_checkpoint(plain, checkpoint, WANTS, tmp_path / "tables")
    assert {"panel", "probe", "pairs", "retrieval", "map"} <= set(found)
    assert found["panel"]["attacks"][0]["attack"].startswith("badnet")
    assert 0 < found["probe"]["accuracy"] <= 1
    assert [row["share"] for row in found["pairs"]["detection"]["highest"]] == [0.01, 0.05, 0.1, 0.2, 0.3]
    assert 0 <= found["retrieval"]["image_to_text@1"] <= found["retrieval"]["image_to_text@10"] <= 1
    assert {"asr@1", "asr@5", "asr@10"} <= set(found["retrieval"])
    assert (found["retrieval"]["num_triggered"], found["probe"]["counts"]["accuracy_n"]) == (150, 160)
    assert (tmp_path / "tables" / "map.csv").is_file()
    with pytest.raises(InvalidInput, match="'x' cannot be examined; known: panel"):
        examine_checkpoint(plain, checkpoint, ["x"])
