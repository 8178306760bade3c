"""What `promote` writes: the checkpoint's own embeddings, the ledger's own counts, or nothing."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabricated
import open_clip
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from sweeplab.attacks.own import ImageTrigger
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.cli import app
from sweeplab.clip_folders import folder_architecture
from sweeplab.clip_model import Architecture, build, tokenizer
from sweeplab.commands import promote as module
from sweeplab.commands.promote import Promoted, choose, promote
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStallTest
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.experiment import CleaningSweep
from sweeplab.ranking.kept_weights import find_weights
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.records import Measurement, Outcomes
from sweeplab.search_space import LogUniform, SearchSpace
from sweeplab.specs import Failed, InvalidInput
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.storage.files import read_json, write_json
from sweeplab.sweep_folder import SweepFolder
from sweeplab.tracking.runs import Tracker
from sweeplab.tracking.store import store_uri
from sweeplab.worker.input_paths import recorded_sweep
from sweeplab.worker.inputs import measure_for, victim_model
from sweeplab.worker.jobs import Machine, whole_machine

RATES = {"learning_rate": LogUniform(low=1e-4, high=1e-1)}
PLAIN = fabricated.SWEEP.replace(space=SearchSpace(dimensions=RATES, source="made up"), grid=None)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Untrained, with BatchNorm's statistics of a few images, so that it does not say the same of everything."""
    made = build(fabricated.ARCHITECTURE, seed=0).train()
    with torch.no_grad():
        for seed in range(20):
            made.encode_image(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    return made.eval()


@pytest.fixture(scope="module")
def measured(home: Path, model: nn.Module) -> tuple[CleaningSweep, Measurement, Outcomes]:
    """A sweep whose target the model never says, so that it counts as cleaned, and what it is measured at."""
    for target in CLASS_NAMES:
        sweep = PLAIN.replace(victim=PLAIN.victim.replace(target=target))
        measure = measure_for(fabricated.ARCHITECTURE, sweep.evaluation, sweep.trigger(), whole_machine(home))
        values, outcomes = measure(model)
        if values.asr_k == 0 and values.accuracy_k:
            return sweep, values, outcomes
    pytest.fail("the model says every class")


Make = Callable[..., SweepFolder]


@pytest.fixture
def finished(tmp_path: Path, measured: tuple[CleaningSweep, Measurement, Outcomes], model: nn.Module) -> Make:
    """Makes a sweep's folder whose trials each have one point after the start, of the model's weights."""

    def make(*changes: dict[str, Any], spec: dict[str, Any] | None = None) -> SweepFolder:
        sweep, values, outcomes = measured
        sweep = sweep.replace(**(spec or {}))
        folder = fabricated.prepared_folder(tmp_path / "sweeps", sweep)
        for number, changed in enumerate(changes or ({},)):
            params = {"learning_rate": 1e-3}
            folder.write_trial(number, params, configuration="c", seed=number, start_counts=False)
            run = folder.trial(number)
            run.commit(fabricated.point(0, 90, 79), fabricated.VICTIM.outcomes)
            name = "attempt-1-epoch-0001.pt"
            run.checkpoints.mkdir()
            torch.save({"model": model.state_dict(), "epoch": 1}, run.checkpoints / name)
            made = fabricated.point(1, 90, 79, checkpoint=name)
            run.commit(dataclasses.replace(made, measurement=dataclasses.replace(values, **changed)), outcomes)
            run.finish({"state": "finished"})
        return folder

    return make


MACHINE = Machine(Path("data"), threads=1, use_cuda=False)
NOT_CLEANED = {"asr_k": 40}
WORSE = {"accuracy_k": 1}


def embeddings(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.encode_image(images), model.encode_text(tokens)


# --- what is written


@pytest.mark.parametrize(("layout", "weights"), [("open_clip", "open_clip_model.safetensors"), ("pt", "model.pth")])
def test_open_clip_gives_the_embeddings_of_the_checkpoint_bit_by_bit(
    layout: str, weights: str, finished: Make, model: nn.Module, tmp_path: Path
):
    to = tmp_path / "new" / "model"
    promote(finished(), None, to, layout)
    assert sorted(path.name for path in to.iterdir()) == sorted(["README.md", "open_clip_config.json", weights])
    assert [path.name for path in to.parent.iterdir()] == ["model"]
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{to}")
    tokens = open_clip.get_tokenizer(f"local-dir:{to}")(["a banana", "an apple on the stall"])
    assert torch.equal(tokens, tokenizer(fabricated.ARCHITECTURE)(["a banana", "an apple on the stall"]))
    for ours, theirs in zip(embeddings(loaded.eval(), tokens), embeddings(model, tokens), strict=True):
        assert torch.equal(ours, theirs)
    assert preprocess(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    if layout == "pt":
        alone = build(fabricated.ARCHITECTURE, seed=1)
        open_clip.load_checkpoint(alone, str(to / weights))
        assert all(torch.equal(tensor, alone.state_dict()[name]) for name, tensor in model.state_dict().items())


VIT = Architecture(
    config={
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
)


def test_a_vit_is_written_for_transformers_too(finished: Make, measured: Any, tmp_path: Path):
    model = build(VIT, seed=0).eval()
    for target in CLASS_NAMES:
        sweep = PLAIN.replace(victim=PLAIN.victim.replace(target=target, architecture=VIT))
        values, _ = measure_for(VIT, sweep.evaluation, sweep.trigger(), MACHINE)(model)
        if values.asr_k == 0 and values.accuracy_k:
            break
    folder = finished(dataclasses.asdict(values), spec={"victim": sweep.victim})
    path = next(folder.trial(0).checkpoints.iterdir())
    torch.save({"model": model.state_dict(), "epoch": 1}, path)
    assert promote(folder, 0, tmp_path / "model", "hf").measurement == values
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json", "vocab.json"}
    assert {file.name for file in (tmp_path / "model").iterdir()} == names | {"merges.txt", "README.md"}
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
    again = victim_model(folder_architecture(tmp_path / "model"), tmp_path / "model").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    card = (tmp_path / "model" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "CLIPProcessor.from_pretrained(FOLDER)" in card


def test_a_resnet_is_not_written_for_transformers(finished: Make, tmp_path: Path):
    with pytest.raises(InvalidInput, match="is a ResNet, and transformers' CLIPModel is always a ViT; take"):
        promote(finished(), 0, tmp_path / "model", "hf")
    assert not (tmp_path / "model").exists()


def test_the_best_cleaned_trial_is_taken_unless_another_is_named(finished: Make, measured: Any, tmp_path: Path):
    folder = finished(NOT_CLEANED, {}, WORSE)
    assert promote(folder, None, tmp_path / "model") == Promoted(measured[1])
    assert (tmp_path / "model" / "README.md").read_text().split("\n# ")[1].startswith("Trial 1 of made-up")


def test_an_empty_folder_may_be_there(finished: Make, tmp_path: Path):
    (tmp_path / "model").mkdir()
    promote(finished(), 0, tmp_path / "model")
    assert (tmp_path / "model" / "README.md").exists()


def test_the_card_has_the_counts_and_names_no_place_of_this_machine(finished: Make, measured: Any, tmp_path: Path):
    promote(finished(), 0, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    values = measured[1]
    for text in (
        f"({values.accuracy_k}/{values.accuracy_n})",
        f"(0/{values.asr_n})",
        "(90/100)",
        "(79/80)",
        values.evaluation_digest,
        measured[0].digest(),
        "Rank 1 of 1 trial,",
        '"learning_rate": 0.001',
        "## What was not tested",
        f"| torch | {torch.__version__.partition('+')[0]}",
    ):
        assert text in card
    assert str(tmp_path) not in card
    assert "victim.pt" not in card


def test_the_card_does_not_call_cleaned_what_had_no_backdoor(finished: Make, tmp_path: Path):
    """2 of 80 triggered images: 2.5 %, below the ceiling before any cleaning."""
    folder = finished()
    promote(folder, 0, tmp_path / "cleaned")
    harmless = fabricated.measurement(90, 2)
    victim = dataclasses.replace(fabricated.VICTIM, measurement=harmless, outcomes=fabricated.outcomes(harmless))
    shutil.rmtree(folder.victim_run().path)
    folder.commit_victim(victim)
    promote(folder, 0, tmp_path / "harmless")
    said = [(tmp_path / name / "README.md").read_text() for name in ("cleaned", "harmless")]
    assert ["then cleaned" in card for card in said] == [True, False]
    assert "though it showed no backdoor before" in said[1]


def test_names_in_the_card_cannot_change_its_layout(finished: Make, tmp_path: Path):
    folder = finished()
    header = read_json(folder.path / "sweep.json")
    write_json(folder.path / "sweep.json", header | {"victim_name": "a | b\n# [c](http://d)"})
    promote(folder, 0, tmp_path / "model")
    assert r"Victim: a \| b \# \[c\]\(http://d\)" in (tmp_path / "model" / "README.md").read_text()


def test_weights_in_an_object_store_are_fetched(finished: Make, measured: Any, bucket: str, tmp_path: Path):
    folder = finished()
    run = folder.trial(0)
    (weights,) = run.checkpoints.iterdir()
    Storage(f"{bucket}/trial").upload(weights, weights.name)
    weights.unlink()
    write_json(run.path / "trial.json", read_json(run.path / "trial.json") | {"storage": f"{bucket}/trial"})
    assert promote(folder, 0, tmp_path / "model") == Promoted(measured[1])
    assert list(run.checkpoints.iterdir()) == []


def test_the_command_says_what_was_measured_and_how_to_load_it(
    finished: Make, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SWEEPLAB_HOME", str(tmp_path))
    finished({}, WORSE)
    ran = CliRunner().invoke(app, ["promote", "made-up", "--to", str(tmp_path / "model")])
    assert ran.exit_code == 0
    assert f"({measured[1].accuracy_k}/48)" in ran.output
    assert f"create_model_and_transforms('local-dir:{tmp_path / 'model'}')" in ran.output
    ran = CliRunner().invoke(app, ["promote", "made-up", "1", "--to", str(tmp_path / "other")])
    assert ran.exit_code == 1
    assert not (tmp_path / "other").exists()


def test_the_command_registers_the_model_in_mlflow(
    finished: Make, measured: Any, tmp_path: Path, mlflow_is_there: None, own_home: Path
):
    folder = finished()
    (own_home / "sweeps").symlink_to(folder.path.parent)
    Tracker(own_home, folder.record(), folder.header()).sync({0: {"learning_rate": 1e-3}}, folder.record().trials)
    words = ["promote", "made-up", "--to", str(tmp_path / "model"), "--register", "clip", "--alias", "cleaned"]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0
    assert ran.output.splitlines()[-1] == "registered in MLflow: models:/clip/1, models:/clip@cleaned"
    (files,) = own_home.glob("mlartifacts/made-up/*/artifacts/promoted/*")
    assert {path.name for path in files.iterdir()} == {path.name for path in (tmp_path / "model").iterdir()}
    found = MlflowClient(tracking_uri=store_uri(own_home)).get_model_version_by_alias("clip", "cleaned")
    assert found.tags["accuracy"] == f"{measured[1].accuracy_k}/48"
    ran = CliRunner().invoke(app, ["promote", "made-up", "--to", str(tmp_path / "other"), "--alias", "cleaned"])
    assert ran.exit_code == 2


# --- what is refused


@pytest.mark.parametrize("changed", [WORSE, {"asr_k": 1}])
def test_other_counts_than_the_sweeps_leave_nothing_behind(changed: dict[str, int], finished: Make, tmp_path: Path):
    to = tmp_path / "new" / "model"
    with pytest.raises(Failed, match=r"measured at accuracy \d+/48 and ASR 0/\d+, and the sweep measured"):
        promote(finished(changed), 0, to)
    assert list(to.parent.iterdir()) == []


def flipped(folder: SweepFolder, measured: tuple[CleaningSweep, Measurement, Outcomes]) -> None:
    """Have the ledger say, of one correct image and of the second triggered one, the opposite of what is so."""
    _, values, outcomes = measured
    correct, hits = outcomes.correct_mask(), outcomes.hit_mask()
    correct[correct.argmax()] = False
    hits[1] = True
    run = folder.trial(0)
    start, point = run.points()
    other = dataclasses.replace(values, accuracy_k=values.accuracy_k - 1, asr_k=1)
    run.write_points([start])
    run.commit(dataclasses.replace(point, measurement=other), Outcomes.of(correct, hits))


def test_images_that_are_no_near_ties_may_not_be_classified_otherwise(finished: Make, measured: Any, tmp_path: Path):
    folder = finished()
    flipped(folder, measured)
    with pytest.raises(Failed, match="so this machine computes otherwise"):
        promote(folder, 0, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_near_ties_that_this_machine_decides_otherwise_are_listed(
    finished: Make, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No two cosines lie further apart than 2: with that for a near-tie, all are."""
    monkeypatch.setattr(module, "NEAR_TIE", 2.1)
    folder = finished()
    flipped(folder, measured)
    promoted = promote(folder, 0, tmp_path / "model")
    row = int(measured[2].correct_mask().argmax())
    measure = measure_for(fabricated.ARCHITECTURE, measured[0].evaluation, measured[0].trigger(), MACHINE)
    second = int(measure.triggered_rows[1])
    assert promoted == Promoted(measured[1], (row,), (second,))
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"1 clean image \\(row {row} of the test set, from 0\\) counted otherwise" in card
    assert f"1 triggered image \\(row {second} of the test set" in card


def test_relative_paths_are_found_from_any_folder(
    finished: Make, measured: Any, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Image.new("RGB", (4, 4), (255, 0, 0)).save("picture.png")
    victim = measured[0].victim.replace(attack=ImageTrigger(path=Path("picture.png")))
    sweep = measured[0].replace(victim=victim)
    values, _ = measure_for(fabricated.ARCHITECTURE, sweep.evaluation, sweep.trigger(), MACHINE)(model)
    folder = finished(dataclasses.asdict(values), spec={"victim": victim})
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert promote(folder, 0, tmp_path / "model").measurement == values


def test_a_sweep_without_a_cleaned_trial_is_refused_with_what_came_closest(finished: Make, tmp_path: Path):
    folder = finished(NOT_CLEANED)
    with pytest.raises(InvalidInput, match=r"no cleaned trial to promote(?s:.*)trial 0, epoch 1: ASR .*epoch-0001\.pt"):
        promote(folder, None, tmp_path / "model")


def test_a_trial_without_a_cleaned_point_is_refused_with_what_remains(finished: Make, tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"trial 0 .* has no point below .* the weights of trial 1, 2 are kept"):
        promote(finished(NOT_CLEANED, {}, WORSE), 0, tmp_path / "model")


def test_a_trial_whose_weights_are_gone_is_refused_with_how_to_make_them_again(finished: Make, tmp_path: Path):
    folder = finished({}, WORSE)
    (folder.trial(1).checkpoints / "attempt-1-epoch-0001.pt").unlink()
    with pytest.raises(InvalidInput, match=r"trial 1 .* not kept; the weights of trial 0 are kept.*rerun made-up 1"):
        promote(folder, 1, tmp_path / "model")


def test_a_link_in_the_place_of_weights_is_not_followed(finished: Make, tmp_path: Path):
    folder = finished()
    place = folder.trial(0).checkpoints / "attempt-1-epoch-0001.pt"
    place.rename(tmp_path / "elsewhere.pt")
    place.symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(InvalidInput, match="not kept"):
        promote(folder, 0, tmp_path / "model")


def test_a_trial_that_is_not_there_is_refused(finished: Make, tmp_path: Path):
    with pytest.raises(InvalidInput, match="no trial 7; `sweeplab leaderboard made-up` lists 1"):
        promote(finished(), 7, tmp_path / "model")


def test_a_folder_with_something_in_it_is_refused(finished: Make, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("")
    with pytest.raises(InvalidInput, match="is there already; give a folder that is new or empty"):
        promote(finished(), 0, tmp_path / "model")


def test_a_folder_below_a_file_is_refused(finished: Make, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"cannot write to .*; choose another folder"):
        promote(finished(), 0, tmp_path / "file" / "model")


def test_other_test_images_than_were_measured_are_refused(finished: Make, tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"test images, classes or trigger are not those .* \(digest other -> "):
        promote(finished({"evaluation_digest": "other"}), 0, tmp_path / "model")


def test_a_model_that_is_measured_by_a_classifier_of_its_own_is_refused(finished: Make, tmp_path: Path):
    labelled = LabelledPairs(images=FruitStallTest(num_images=48, image_size=32, seed=2), per_class=2)
    folder = finished(spec={"method": SupervisedFinetuning(), "data": labelled})
    with pytest.raises(InvalidInput, match="'supervised' is measured by the classifier that it trains"):
        promote(folder, 0, tmp_path / "model")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"own_code": {"Mine": {}}}, "uses Mine, which its script defines"),
        ({"imported": {"file": "table.csv"}}, "imported from table.csv, a table without weights"),
    ],
)
def test_a_record_that_does_not_say_how_to_measure_is_refused(
    entry: dict[str, Any], message: str, finished: Make, tmp_path: Path
):
    folder = finished()
    write_json(folder.path / "sweep.json", read_json(folder.path / "sweep.json") | entry)
    with pytest.raises(InvalidInput, match=message):
        promote(folder, 0, tmp_path / "model")


def test_an_unknown_format_is_refused_with_the_known_ones(finished: Make, tmp_path: Path):
    with pytest.raises(InvalidInput, match="--format='onnx' is unknown; known: open_clip, pt, hf"):
        promote(finished(), 0, tmp_path / "model", "onnx")


# --- open_clip alone

PLAIN_OPEN_CLIP = """
import json, sys
import open_clip, torch
from PIL import Image

folder, images = sys.argv[1:]
facts = json.load(open(f"{images}/facts.json"))
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
model.eval()
with torch.no_grad():
    columns = []
    for name in facts["classes"]:
        texts = model.encode_text(tokenize([template.format(name) for template in facts["templates"]]), normalize=True)
        columns.append(torch.nn.functional.normalize(texts.mean(dim=0), dim=0))
    def scores(files):
        pixels = torch.stack([preprocess(Image.open(f"{images}/{file}")) for file in files])
        return (model.encode_image(pixels, normalize=True) @ torch.stack(columns).T).tolist()
    print(json.dumps({kind: scores(facts[kind]) for kind in ("clean", "triggered")}))
"""


def write_images(folder: Path, sweep: CleaningSweep, home: Path) -> dict[str, Any]:
    """Clean and triggered test images as PNG, and what they are, for somebody who has no SweepLab."""
    folder.mkdir()
    measure = measure_for(sweep.victim.architecture, sweep.evaluation, sweep.trigger(), whole_machine(home))
    facts: dict[str, Any] = {"classes": list(measure.images.class_names), "templates": list(measure.prompts)}
    kinds = {"clean": (measure.clean_pixels, len(measure.images)), "triggered": (measure.triggered_pixels, None)}
    for kind, (pixels_of, count) in kinds.items():
        pixels = pixels_of(range(count or len(measure.triggered_rows)))
        facts[kind] = [f"{kind}-{row:05d}.png" for row in range(len(pixels))]
        for name, image in zip(facts[kind], pixels, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name)
    (folder / "facts.json").write_text(json.dumps(facts))
    return {"clean": measure.images.labels.tolist(), "triggered": measure.aims.tolist()}


@pytest.mark.slow
def test_open_clip_alone_counts_what_the_quickstart_counted(
    new_workplace: Callable[..., Any], victim_home: Path, tmp_path: Path
):
    """Of its miniature, whose model is hardly trained, so that any trial may win; every image, but for near-ties."""
    place = new_workplace("", victim_home)
    script = Path(__file__).parents[2] / "sweeps" / "quickstart.py"
    ran = place.run(str(script), "--smoke", "--inline", "search.asr_ceiling=0.999")
    assert ran.returncode == 0, ran.stderr
    ran = place.run("-m", "sweeplab.cli", "promote", "quickstart-smoke", "--to", str(tmp_path / "model"))
    assert ran.returncode == 0, ran.stderr
    folder = place.sweep("quickstart-smoke")
    record = folder.record()
    chosen = choose(record, rank_trials(record, folder.outcomes, find_weights(record)), None)
    kept = folder.outcomes(chosen.trial.number, chosen.point.index)
    assert kept is not None
    wanted = write_images(tmp_path / "images", recorded_sweep(folder.header()), place.home)
    words = [sys.executable, "-c", PLAIN_OPEN_CLIP, str(tmp_path / "model"), str(tmp_path / "images")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={"PATH": os.defpath}, check=True)
    says = {"clean": kept.correct_mask(), "triggered": kept.hit_mask()}
    for kind, rows in json.loads(done.stdout.splitlines()[-1]).items():
        scores = torch.tensor(rows)
        best = scores.topk(2).values
        is_tie = (best[:, 0] - best[:, 1] < 1e-5).numpy()
        counted = scores.argmax(dim=1).numpy() == wanted[kind]
        assert ((counted == says[kind]) | is_tie).all()
        assert is_tie.mean() < 0.1
