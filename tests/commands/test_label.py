"""Pseudo-labels by another model: made for the rows that are trained on, and by what the model's own files say."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as tv
from typer.testing import CliRunner

from sweeplab import cli
from sweeplab.cleaning.deep_clustering import DeepClustering, pairs_of_labels, write_pseudo_labels
from sweeplab.clip_labeller import labeller_at
from sweeplab.clip_model import build, local_config
from sweeplab.commands.label import LabelReport, LabelRequest, _pictures, label_pairs
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStall
from sweeplab.data.images import load_image
from sweeplab.data.pairs import PairsCSV
from sweeplab.experiment import CleaningSweep, SlippedPoisons
from sweeplab.specs import InvalidInput
from sweeplab.sweep.prepare import prepare
from sweeplab.worker.inputs import Inputs, cleaning_pairs, cleaning_poison, cleaning_table
from sweeplab.worker.jobs import Machine

SIGLIP: dict[str, Any] = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {
        **{"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, "mlp_ratio": 2.0},
        **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
    },
}
"""open_clip's layout of its SigLIP models, of toy sizes, with a tokeniser of open_clip's own."""
SQUASHED = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def siglip_folder(
    folder: Path, config: dict[str, Any] = SIGLIP, preprocessing: dict[str, Any] | None = SQUASHED
) -> Path:
    folder.mkdir()
    made = {name: value for name, value in config.items() if name != "custom_text"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CustomTextCLIP(**made)
    content = {"model_cfg": config, **({"preprocess_cfg": preprocessing} if preprocessing is not None else {})}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model such as `Architecture` refuses: timm's image tower, a bidirectional text tower, squashed images."""
    return siglip_folder(tmp_path_factory.mktemp("siglip") / "model")


@pytest.fixture
def texts(tmp_path: Path) -> Callable[..., str]:
    """Writes a text file, one line an argument."""

    def write(name: str, *lines: str) -> str:
        (tmp_path / name).write_text("\n".join(lines))
        return str(tmp_path / name)

    return write


@pytest.fixture
def clustering(sweep: CleaningSweep) -> CleaningSweep:
    return sweep.replace(method=DeepClustering(num_clusters=16), data=FruitStall(num_pairs=24, image_size=32))


@pytest.fixture
def request_of(
    clustering: CleaningSweep, siglip: Path, tmp_path: Path, texts: Callable[..., str]
) -> Callable[..., LabelRequest]:
    def make(**fields: Any) -> LabelRequest:
        plain: dict[str, Any] = {
            "sweep": clustering,
            "model": siglip,
            "to": tmp_path / "labels.npy",
            "classes": texts("classes.txt", *CLASS_NAMES),
            "templates": texts("templates.txt", "a photo of a {}", "my {}"),
        }
        return LabelRequest(**{**plain, **fields})

    return make


def quiet(items: Any, what: str, total: int) -> Any:
    return items


def plainly(folder: Path, sweep: CleaningSweep, home: Path, templates: list[str]) -> tuple[np.ndarray, float]:
    """Labels and mean probability as a user of open_clip alone gets them, image by image."""
    model, _, prepare_image = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    classify = open_clip.build_zero_shot_classifier(
        model.eval(), open_clip.get_tokenizer(f"local-dir:{folder}"), CLASS_NAMES, templates
    )
    table = cleaning_table(sweep, Inputs(home / "data"))
    rows = []
    with torch.no_grad():
        for row in range(len(table)):
            image = prepare_image(Image.open(table.image(row)))[None]
            features = model.encode_image(image, normalize=True)
            rows.append((model.logit_scale.exp() * features @ classify).softmax(-1)[0])
    chances, labels = torch.stack(rows).max(dim=1)
    return labels.numpy(), float(chances.mean())


TEMPLATES = ["a photo of a {}", "my {}"]


def test_labels_are_those_of_plain_open_clip(
    request_of: Callable[..., LabelRequest], clustering: CleaningSweep, siglip: Path, home: Path
):
    request = request_of()
    report = label_pairs(request, home, quiet)
    labels, chance = plainly(siglip, clustering, home, TEMPLATES)
    written = np.load(request.to)
    assert written.dtype == np.int64
    assert written.tolist() == labels.tolist()
    assert len(set(labels.tolist())) > 1, "one class for all of them would hide an order of rows"
    assert report.mean_probability == pytest.approx(chance, abs=1e-5)
    assert report.counts == tuple(np.bincount(labels, minlength=16))


def test_images_that_are_not_square_are_squashed_or_cut_as_the_model_says(
    request_of: Callable[..., LabelRequest], clustering: CleaningSweep, home: Path, tmp_path: Path
):
    """Wide pictures with their colours at the sides, where cutting the middle out loses them."""
    lines = ["image,caption"]
    for row in range(8):
        picture = Image.new("RGB", (96, 32), "white")
        picture.paste(tuple(np.random.default_rng(row).integers(256, size=3).tolist()), (0, 0, 32, 32))
        picture.save(tmp_path / f"{row}.png")
        lines.append(f"{row}.png,a fruit")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    sweep = clustering.replace(data=PairsCSV(path=tmp_path / "pairs.csv"))
    chances = {}
    for mode in ("squash", "shortest"):
        folder = siglip_folder(tmp_path / mode, preprocessing={**SQUASHED, "resize_mode": mode})
        chances[mode] = label_pairs(request_of(sweep=sweep, model=folder), home, quiet).mean_probability
        assert chances[mode] == pytest.approx(plainly(folder, sweep, home, TEMPLATES)[1], abs=1e-5)
    assert abs(chances["squash"] - chances["shortest"]) > 1e-4


@pytest.mark.parametrize("layout", ["file and architecture", "folder", "own checkpoint"])
def test_a_model_of_clips_own_kind_is_a_labeller_too(
    layout: str, request_of: Callable[..., LabelRequest], clustering: CleaningSweep, home: Path, tmp_path: Path
):
    architecture, named = clustering.victim.architecture, None
    model = build(architecture, seed=3).eval()
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(local_config(architecture)))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    path = folder if layout == "folder" else tmp_path / "model.pt"
    if layout == "file and architecture":
        torch.save(model.state_dict(), path)
        named = str(tmp_path / "architecture.json")
        Path(named).write_text(json.dumps(architecture.resolved()))
    elif layout == "own checkpoint":
        config = json.dumps({"architecture": architecture.resolved()})
        torch.save({"model": model.state_dict(), "config": config}, path)
    request = request_of(model=path, architecture=named)
    report = label_pairs(request, home, quiet)
    labels, chance = plainly(folder, clustering, home, TEMPLATES)
    assert np.load(request.to).tolist() == labels.tolist()
    assert report.mean_probability == pytest.approx(chance, abs=1e-5)


def test_poisoned_rows_are_looked_at_with_their_trigger(clustering: CleaningSweep, siglip: Path, home: Path):
    """Seen by a model of 64 pixels; the trigger is made for the victim's 32."""
    labeller = dataclasses.replace(labeller_at(siglip), image_size=64)
    seen = {}
    for count in (0, 5):
        sweep, inputs = clustering.replace(slipped=SlippedPoisons(count=count)), Inputs(home / "data")
        table = cleaning_table(sweep, inputs)
        plan = cleaning_poison(sweep, table, inputs)
        seen[count] = torch.stack(list(_pictures(table, plan, 32, labeller)))
    assert plan is not None
    changed = (seen[0] != seen[5]).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == list(plan.rows)
    row = changed[0]
    pixels = torch.from_numpy(load_image(table.image(row), 32))[None]
    expected = tv.resize(plan.stamp_rows(pixels, [row]), [64, 64], tv.InterpolationMode.BICUBIC)[0]
    assert torch.equal(seen[5][row], expected)


def test_what_stands_in_for_broken_pairs_comes_with_its_own_label(
    request_of: Callable[..., LabelRequest], clustering: CleaningSweep, home: Path, tmp_path: Path
):
    """Under any seed: which rows stand in depends on it."""
    table = FruitStall(num_pairs=24, image_size=32).read(home / "data")
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(f"{row}.png,a fruit\n" for row in range(24)))
    for row in range(24):
        (tmp_path / f"{row}.png").write_bytes(Path(str(table.image(row))).read_bytes())
    sweep = clustering.replace(data=PairsCSV(path=tmp_path / "pairs.csv", max_broken=0.1))
    label_pairs(request_of(sweep=sweep, to=tmp_path / "whole.npy"), home, quiet)
    whole = np.load(tmp_path / "whole.npy")
    for row in (3, 20):
        (tmp_path / f"{row}.png").write_bytes(b"no picture")
    report = label_pairs(request_of(sweep=sweep), home, quiet)
    found = np.load(tmp_path / "labels.npy")
    assert report.counts == tuple(np.bincount(np.delete(whole, [3, 20]), minlength=16))
    for seed in (0, 1):
        pairs = cleaning_pairs(sweep.replace(seed=seed), Machine(home / "data", threads=1, use_cuda=False))
        batch = pairs.__getitems__([(1, row) for row in range(24)])
        assert [row for row in range(24) if batch.rows[row] != row] == [3, 20]
        expected = [pairs.table.image(int(row)) for row in batch.rows]
        images = torch.stack([torch.from_numpy(load_image(place, batch.images.shape[-1])) for place in expected])
        assert torch.equal(batch.images, images)
        assert found[batch.rows].tolist() == whole[batch.rows].tolist()
    (tmp_path / "9.png").unlink()
    with pytest.raises(InvalidInput, match=r"3 of 24 pairs are broken, and max_broken=0\.1 tolerates 2"):
        label_pairs(request_of(sweep=sweep), home, quiet)


def test_a_sweep_takes_the_labels_of_its_own_pairs_and_refuses_those_of_others(
    request_of: Callable[..., LabelRequest], clustering: CleaningSweep, home: Path, tmp_path: Path
):
    request = request_of()
    label_pairs(request, home, quiet)
    labelled = clustering.replace(method=clustering.method.replace(pseudo_labels=request.to))  # type: ignore[attr-defined]
    assert prepare(labelled, home).num_pairs == 24
    others = labelled.replace(data=FruitStall(num_pairs=24, image_size=32, seed=1))
    with pytest.raises(InvalidInput, match=r"was made for other cleaning pairs .* with `sweeplab data label`"):
        prepare(others, home)
    np.save(request.to, np.load(request.to))  # the same labels: the note still speaks of them
    assert pairs_of_labels(request.to) is not None
    np.save(request.to, (np.load(request.to) + 1) % 16)  # somebody's own by now
    assert pairs_of_labels(request.to) is None
    assert prepare(others, home).num_pairs == 24


def test_a_sweep_does_not_go_on_with_other_labels(clustering: CleaningSweep, home: Path, tmp_path: Path):
    """Labels that say for which pairs they are count by content; those of older sweeps count by their place."""
    path, pairs = tmp_path / "labels.npy", Inputs(home / "data").pairs(clustering.data)
    labelled = clustering.replace(method=DeepClustering(num_clusters=16, pseudo_labels=path))
    found: list[str] = []
    for label, digest in ((0, pairs.digest), (1, pairs.digest), (0, pairs.digest), (0, ""), (1, "")):
        write_pseudo_labels(path, np.full(24, label), digest)
        if not digest:
            (tmp_path / "labels.npy.json").unlink()
        found.append(prepare(labelled, home).digest)
    first, other, again, old, old_too = found
    assert first == again != other
    assert old == old_too
    assert old not in (first, other)


@pytest.mark.parametrize("note", ["", "[1]", '{"labels": 1}', "{" * 10])
def test_a_note_that_says_nothing_is_no_note(note: str, tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros(3, np.int64))
    (tmp_path / "a.npy.json").write_text(note)
    assert pairs_of_labels(tmp_path / "a.npy") is None
    assert pairs_of_labels(tmp_path / "none.npy") is None


def test_what_does_not_fit_is_refused_before_a_pair_is_read(
    request_of: Callable[..., LabelRequest], sweep: CleaningSweep, texts: Callable[..., str], tmp_path: Path
):
    nowhere = tmp_path / "home"
    for fields, message in (
        ({"classes": "imagenet"}, r"--classes has 1000 names, and made-up has method.num_clusters=16"),
        ({"classes": "cifar"}, "--classes='cifar' is unknown"),
        ({"classes": texts("two.txt", "apple", "apple")}, "two.txt"),
        ({"templates": texts("none.txt", "a photo")}, r"'a photo' must have one {} for the class's name"),
        ({"templates": texts("empty.txt")}, "is empty; give one template a line"),
        (
            {"templates": texts("long.txt", "x " * 20 + "{}")},
            "read the same to the model's tokeniser, or once",
        ),
        ({"sweep": sweep}, "made-up: method='cleanclip' takes no labels"),
        ({"to": tmp_path / "labels.txt"}, "must be a .npy file in a folder that exists"),
        ({"to": tmp_path / "no" / "labels.npy"}, "must be a .npy file in a folder that exists"),
    ):
        with pytest.raises(InvalidInput, match=message):
            label_pairs(request_of(**fields), nowhere, quiet)
    assert not (tmp_path / "labels.npy").exists()


def changed(config: dict[str, Any], part: str, **fields: Any) -> dict[str, Any]:
    return {**config, part: {**config[part], **fields}}


@pytest.mark.parametrize(
    ("config", "preprocessing", "message"),
    [
        (SIGLIP, None, "nothing says how its images are prepared; give the folder with its open_clip_config.json"),
        (SIGLIP, {**SQUASHED, "resize_mode": "longest"}, "resize_mode='longest'; known: bicubic, shortest or squash"),
        (SIGLIP, {**SQUASHED, "interpolation": "bilinear"}, "interpolation='bilinear'"),
        (SIGLIP, {**SQUASHED, "mean": 0.5}, r"preprocess_cfg.mean=0.5; three numbers are needed"),
        (changed(SIGLIP, "text_cfg", hf_model_name="xlm-roberta-base"), SQUASHED, "would be downloaded"),
        (changed(SIGLIP, "vision_cfg", timm_model_name="no such"), SQUASHED, "open_clip makes no model"),
        (changed(SIGLIP, "text_cfg", width=64), SQUASHED, "is of another architecture"),
        (changed(SIGLIP, "text_cfg", vocab_size=300), SQUASHED, "is of another architecture"),
        ({"embed_dim": 64}, SQUASHED, "lacks vision_cfg or text_cfg"),
    ],
)
def test_a_folder_that_is_no_labeller_is_refused(
    config: dict[str, Any], preprocessing: Any, message: str, siglip: Path, tmp_path: Path
):
    content = {"model_cfg": config, **({} if preprocessing is None else {"preprocess_cfg": preprocessing})}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    (tmp_path / "open_clip_model.safetensors").symlink_to(siglip / "open_clip_model.safetensors")
    with pytest.raises(InvalidInput, match=message):
        labeller_at(tmp_path)


def test_weights_alone_need_the_name_of_an_architecture(siglip: Path):
    weights = siglip / "open_clip_model.safetensors"
    with pytest.raises(InvalidInput, match=r"model .*nowhere does not exist; give a model's folder, or a file"):
        labeller_at(siglip / "nowhere")
    with pytest.raises(InvalidInput, match="does not say its architecture; give --architecture NAME"):
        labeller_at(weights)
    with pytest.raises(InvalidInput, match="nothing says how its images are prepared"):
        labeller_at(weights, "ViT-B-16-SigLIP")
    with pytest.raises(InvalidInput, match="unknown architecture name='ViT-B-16-SigLIB'; did you mean"):
        labeller_at(weights, "ViT-B-16-SigLIB")
    found = labeller_at(weights, str(siglip / "open_clip_config.json"))
    assert (found.squash, found.mean, found.image_size) == (True, (0.5, 0.5, 0.5), 32)


def test_a_tokeniser_of_its_own_needs_transformers(siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = changed(SIGLIP, "text_cfg", hf_tokenizer_name="timm/ViT-B-16-SigLIP")
    folder = siglip_folder(tmp_path / "own", config)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InvalidInput, match=r"not installed .*; pip install transformers"):
        labeller_at(folder)


def test_a_tokeniser_of_its_own_is_read_from_the_models_folder(
    request_of: Callable[..., LabelRequest], clustering: CleaningSweep, home: Path, tmp_path: Path
):
    """A vocabulary of words, filled up with 1 as SigLIP's is; no code of a folder is run, whatever it asks for."""
    pytest.importorskip("transformers", reason="transformers is no dependency: it reads such tokenisers alone")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["<unk>", "<pad>", "a", "photo", "of", "my", *CLASS_NAMES])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    text = {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "vocab_size": len(words)}
    options = {"clean": "canonicalize", "trust_remote_code": True}
    folder = siglip_folder(tmp_path / "own", changed(SIGLIP, "text_cfg", **text, tokenizer_kwargs=options))
    with pytest.raises(InvalidInput, match="holds no tokeniser that can be read"):
        labeller_at(folder)
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    assert labeller_at(folder).tokenize(["My Banana."])[0].tolist()[:4] == [words["my"], words["banana"], 1, 1]
    report = label_pairs(request_of(model=folder), home, quiet)
    assert report.mean_probability == pytest.approx(plainly(folder, clustering, home, TEMPLATES)[1], abs=1e-5)


def test_a_report_by_hand():
    """3 of 4 classes are used, by 1, 2 and 5 of 8 pairs."""
    report = LabelReport("a.npy", ("apple", "pear", "fig", "kiwi"), (2, 0, 5, 1), 0.75)
    assert report.lines() == [
        "8 pairs: 3 of 4 classes, 1 to 5 pairs each (median 2); most: fig 62.5 %, apple 25.0 %, kiwi 12.5 %",
        "mean probability of the class that was chosen: 75.0 % (chance: 25.0 %)",
    ]
    assert report.to_json()["classes"][2] == {"label": 2, "name": "fig", "pairs": 5}


def test_the_command_writes_and_tells(siglip: Path, texts: Callable[..., str], tmp_path: Path):
    (tmp_path / "script.py").write_text(
        "from sweeplab.cleaning.deep_clustering import DeepClustering\n"
        "from fabricated import SWEEP\n"
        "CLUSTERING = SWEEP.replace(method=DeepClustering(num_clusters=16, pseudo_labels='not/yet.npy'))\n"
    )
    words = ["data", "label", str(tmp_path / "script.py"), "--model", str(siglip), "--to", str(tmp_path / "l.npy")]
    words += ["--classes", texts("classes.txt", *CLASS_NAMES), "data.num_pairs=24"]
    told = CliRunner().invoke(cli.app, words)
    assert told.exit_code == 0, told.output
    assert "24 pairs: " in told.stdout
    assert f"written: {tmp_path / 'l.npy'}; set method.pseudo_labels to it" in told.stdout
    assert len(np.load(tmp_path / "l.npy")) == 24
    as_json = json.loads(CliRunner().invoke(cli.app, [*words, "--json"]).stdout)
    assert (as_json["pairs"], len(as_json["classes"])) == (24, 16)
    refused = CliRunner().invoke(cli.app, [*words, "method.num_clusters=17"])
    assert refused.exit_code == 2
