"""What training and evaluation cost beside the bare model, open_clip's trainer and the authors' code.

    python benchmarks/speed.py                                      # both models, about 30 minutes on one core
    python benchmarks/speed.py --only small
    python benchmarks/speed.py --authors ~/src/CleanCLIP            # a checkout of nishadsinghi/CleanCLIP
    python benchmarks/speed.py --only RN50 --contests evaluation --without-peers

Everything runs in this process, with one thread, and is measured in CPU seconds of the process: ours, the peer and the
floor take turns, round after round, and a row shows the median over rounds of the ratio of two turns. Compare ratios,
not seconds. The floor is forward, backward and AdamW of the same model on tensors that lie ready, texts cut to the
longest of their batch; of an evaluation it is the forward passes alone.

`small` is the quickstart's model of 48 pixels on its own pairs; `RN50` that of the papers at 224 pixels, on JPEGs of
500 x 375 made here with captions of 17 tokens on average. open_clip's trainer is its package `open_clip_train`,
which needs `pip install braceexpand webdataset`. What is printed last has no floor: how many pairs a core makes in a
second at 224 pixels, without a model.
Results: benchmarks/RESULTS.md.
"""

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import open_clip
import pandas as pd
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sweeplab.attacks.badnet import BadNet
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.clip_model import (
    Architecture,
    Encoder,
    SmallCLIP,
    build,
    encode_text,
    imagenet_class_names,
    imagenet_templates,
    normalise_pixels,
    stacked,
    tokenizer,
    trimmed,
)
from sweeplab.data.augmentation import AutoAugmentView, SimCLRView
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.fruit_stall import CLASS_NAMES, ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.data.training_pairs import CACHE_BYTES, TrainingPairs
from sweeplab.evaluation.measure import Evaluation, Measure, Trigger
from sweeplab.evaluation.zero_shot import class_weights, prompt_tokens
from sweeplab.losses import in_modal_ssl, mmcl
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.specs import Spec
from sweeplab.training.batches import EpochBatches, ImageViews, PairBatch
from sweeplab.training.loop import Run, Training
from sweeplab.training.optimisation import Optimization, clamp_logit_scale, parameter_groups
from sweeplab.training.probe import Nobody, not_measured

CPU = torch.device("cpu")
PROMPTS, IMAGES = 80_000, 100_000
"""Of a full evaluation on ImageNet: 1,000 classes x 80 templates; 50,000 images, clean and triggered."""
SENTENCE = "a the of on in with two red small old wooden street market bananas apples boats people standing light"
"""Words of made captions."""


@dataclass(frozen=True)
class Setting:
    """What one column of the table is measured on."""

    name: str
    architecture: Architecture
    table: PairTable
    test: LabelledImages
    batch_size: int
    steps: int
    """Of an epoch."""
    rounds: int
    prompt_classes: int
    """Classes whose prompts are encoded; a full evaluation is extrapolated from them where they are not all."""
    templates: tuple[str, ...]
    prompt_batch: int = 1024
    """Prompts of a forward pass, here: as finely sorted by length as 80,000 in batches of 1,024."""
    peers: bool = True
    """Whether they take part; without them a floor is found in a third of the time."""


@dataclass
class Row:
    """A line of the table: ratios of CPU time."""

    name: str
    peer: dict[str, float] = field(default_factory=dict)
    """By setting: peer / ours."""
    floor: dict[str, float] = field(default_factory=dict)
    """By setting: ours / floor."""


def small(folder: Path) -> Setting:
    """The quickstart's model and data."""
    return Setting(
        name="small",
        architecture=SmallCLIP().architecture(),
        table=FruitStall(num_pairs=2048).read(folder),
        test=FruitStallTest(num_images=1024).read(folder),
        batch_size=128,
        steps=16,
        rounds=7,
        prompt_classes=len(CLASS_NAMES),
        templates=ZERO_SHOT_TEMPLATES,
    )


def rn50(folder: Path) -> Setting:
    """The papers' model, on files like those of CC3M."""
    names = write_jpegs(folder / "jpegs", 40)
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(SENTENCE.split(), k=min(36, max(3, round(draw.lognormvariate(2.6, 0.4)))))) for _ in names
    ]
    sizes = np.array([os.path.getsize(folder / "jpegs" / name) for name in names], dtype=np.int64)
    columns = pa.array(names, pa.large_string()), pa.array(texts, pa.large_string())
    labels = np.arange(len(names), dtype=np.int64)
    return Setting(
        name="RN50",
        architecture=Architecture(name="RN50-quickgelu"),
        table=PairTable.of(str(folder / "jpegs"), *columns, sizes),
        test=LabelledImages.of(
            str(folder / "jpegs"), columns[0], sizes=sizes, labels=labels, class_names=imagenet_class_names()[:40]
        ),
        batch_size=8,
        steps=3,
        rounds=3,
        prompt_classes=8,
        templates=imagenet_templates(),
        prompt_batch=32,
    )


def write_jpegs(folder: Path, count: int) -> list[str]:
    """Files of 500 x 375 pixels with soft shapes, about 40 kB each."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(256, size=(47, 63, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=90)
    return [f"{number:04}.jpg" for number in range(count)]


# --- turns ------------------------------------------------------------------------------------------------------------


Turn = Callable[[int], object]
"""One turn of a contestant; it is told the number of the round, from 1."""


def take_turns(contestants: dict[str, Turn], rounds: int, *, peers: bool = True) -> dict[str, list[float]]:
    """CPU seconds of every contestant's turns; a first round, in which memory is laid out, does not count."""
    if not peers:
        contestants = {name: turn for name, turn in contestants.items() if name != "peer"}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(1, rounds + 2):
        order = list(contestants.items())
        for name, turn in order if number % 2 else order[::-1]:
            began = time.process_time()
            turn(number)
            seconds[name].append(time.process_time() - began)
    return {name: found[1:] for name, found in seconds.items()}


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def note(row: Row, setting: Setting, seconds: dict[str, list[float]]) -> None:
    """Put a contest's ratios into a line."""
    if "peer" in seconds:
        row.peer[setting.name] = ratio(seconds["peer"], seconds["ours"])
    if "floor" in seconds:
        row.floor[setting.name] = ratio(seconds["ours"], seconds["floor"])
    medians = ", ".join(f"{name} {statistics.median(found):.3f} s" for name, found in seconds.items())
    print(f"  {setting.name}: {row.name}: {medians}", flush=True)


# --- ours -------------------------------------------------------------------------------------------------------------


def optimization(setting: Setting) -> Optimization:
    """Rates at which nothing diverges; the clock does not depend on them."""
    return Optimization(learning_rate=1e-5, warmup_steps=2, global_batch_size=setting.batch_size)


def pairs_of(setting: Setting) -> TrainingPairs:
    """The setting's pairs, decoded into memory."""
    architecture = setting.architecture
    return TrainingPairs(
        setting.table,
        architecture.image_size,
        tokenize=tokenizer(architecture),
        seed=0,
        text_augmentation="swap+delete",
    )


class Ours:
    """The loop itself, an epoch a turn: batches, views, schedule, checks and the point at its end."""

    def __init__(self, setting: Setting, objective: Spec, pairs: TrainingPairs, rounds: int) -> None:
        run = Run(objective, optimization(setting), epochs=rounds + 2, seed=0)  # type: ignore[arg-type]
        self.training = Training(build(setting.architecture, 0), pairs, run, not_measured, Nobody())
        self.training.encoder = Encoder(self.training.model)

    def __call__(self, number: int) -> None:
        self.training.run_epoch(number)


# --- the floor --------------------------------------------------------------------------------------------------------


class Floor:
    """Forward, backward, AdamW and the clamp, on tensors that lie ready."""

    def __init__(self, setting: Setting, pairs: TrainingPairs, *, views: bool) -> None:
        self.model = build(setting.architecture, 0).to(memory_format=torch.channels_last)
        groups = parameter_groups(self.model, 0.1)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=True)
        order = EpochBatches(len(pairs), global_batch_size=setting.batch_size, epoch=1, seed=0)
        self.batches = [ready(pairs.__getitems__(keys), views) for keys in order]

    def __call__(self, number: int) -> None:
        for images, tokens, size in self.batches:
            image_rows = F.normalize(self.model.encode_image(images), dim=-1).split(size)  # type: ignore[operator]
            text_rows = F.normalize(encode_text(self.model, tokens), dim=-1).split(size)
            scale = self.model.logit_scale.exp()  # type: ignore[operator]
            loss = mmcl(image_rows[0], text_rows[0], scale)
            if len(image_rows) > 1:
                loss = loss + in_modal_ssl(image_rows[0], image_rows[1], text_rows[0], text_rows[1], scale)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            clamp_logit_scale(self.model)


def ready(batch: PairBatch, views: bool) -> tuple[Tensor, Tensor, int]:
    """Pixels normalised, tokens cut, originals and views together, and the number of originals."""
    if not views:
        return normalise_pixels(batch.images), trimmed(batch.tokens), len(batch.rows)
    assert batch.image_views is not None
    assert batch.token_views is not None
    images, tokens = torch.cat([batch.images, batch.image_views]), stacked(batch.tokens, batch.token_views)
    return normalise_pixels(images), tokens, len(batch.rows)


# --- open_clip's trainer ----------------------------------------------------------------------------------------------


def open_clip_model(setting: Setting) -> nn.Module:
    """open_clip's own model, as its trainer wants it."""
    model: nn.Module = open_clip.CLIP(**setting.architecture.resolved(), output_dict=True)
    return model


class OpenClipTrainer:
    """`open_clip_train.train.train_one_epoch` on its own data set of a TSV file, an epoch a turn."""

    def __init__(self, setting: Setting, folder: Path, *, keeps_data: bool) -> None:
        self.setting, self.keeps_data = setting, keeps_data
        table = folder / f"{setting.name}.tsv"
        rows = range(len(setting.table))
        texts, images = [setting.table.caption(row) for row in rows], [setting.table.image(row) for row in rows]
        pd.DataFrame({"filepath": images, "title": texts}).to_csv(table, sep="\t", index=False)
        self.args = types.SimpleNamespace(
            **{"train_data": str(table), "csv_img_key": "filepath", "csv_caption_key": "title", "csv_separator": "\t"},
            **{"distributed": False, "horovod": False, "distill": False, "skip_scheduler": False, "wandb": False},
            **{"batch_size": setting.batch_size, "workers": 0, "device": "cpu", "precision": "fp32", "accum_freq": 1},
            **{"grad_clip_norm": None, "rank": 0, "local_rank": 0, "world_size": 1, "log_every_n_steps": 10**9},
            **{"log_local": False, "save_logs": False},
        )
        self.model = open_clip_model(setting)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.1)
        self.loss = open_clip.ClipLoss(cache_labels=True)
        self.data: dict[str, Any] = {}

    def __call__(self, number: int) -> None:
        from open_clip_train.data import get_csv_dataset
        from open_clip_train.train import train_one_epoch

        if not self.data or not self.keeps_data:
            size = self.setting.architecture.image_size
            transform = open_clip.image_transform(size, is_train=True)
            tokenize = open_clip.SimpleTokenizer(context_length=self.setting.architecture.context_length)
            self.data["train"] = get_csv_dataset(self.args, transform, is_train=True, tokenizer=tokenize)
        train_one_epoch(
            self.model, self.data, self.loss, number, self.optimizer, None, lambda step: None, None, self.args
        )


# --- the authors' trainer ---------------------------------------------------------------------------------------------


class AuthorsTrainer:
    """`src.train.train` of a checkout of nishadsinghi/CleanCLIP with in-modal loss, an epoch a turn.

    wandb and NLTK's WordNet, which it imports, are stood in for where they are not installed: nothing is logged, and
    captions, augmented once before the first turn, get no synonyms.
    """

    def __init__(self, setting: Setting, folder: Path, checkout: Path) -> None:
        modules = load_authors(checkout)
        rows = range(len(setting.table))
        texts, images = [setting.table.caption(row) for row in rows], [setting.table.image(row) for row in rows]
        table = folder / f"{setting.name}.csv"
        pd.DataFrame({"image": images, "caption": texts}).to_csv(table, index=False)
        self.model = modules["model"].CLIP(**authors_sizes(setting.architecture.resolved()))
        processor = modules["clip"].Processor(self.model)
        processor.context_length = setting.architecture.context_length
        self.options = types.SimpleNamespace(
            **{"train_data": str(table), "image_key": "image", "caption_key": "caption", "delimiter": ","},
            **{"inmodal": True, "clip_weight": 1.0, "inmodal_weight": 1.0, "unlearn": False, "wandb": False},
            **{"distributed": False, "num_devices": 1, "device": "cpu", "num_workers": 0, "master": True, "rank": 0},
            batch_size=setting.batch_size,
        )
        self.data = {"train": modules["data"].get_train_dataloader(self.options, processor)}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.1)
        self.train, self.scaler = modules["train"].train, torch.cuda.amp.GradScaler(enabled=False)

    def __call__(self, number: int) -> None:
        self.train(number, self.model, self.data, self.optimizer, lambda step: None, self.scaler, self.options)


def load_authors(checkout: Path) -> dict[str, types.ModuleType]:
    """The modules of a checkout."""
    import importlib
    import importlib.util

    sys.path.insert(0, str(checkout))
    for name in ("wandb", "nltk"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            corpus = types.ModuleType("nltk.corpus")
            corpus.wordnet = types.SimpleNamespace(synsets=lambda word: [])  # type: ignore[attr-defined]
            sys.modules.setdefault("nltk.corpus", corpus)
    places = {"model": "pkgs.openai.model", "clip": "pkgs.openai.clip", "data": "src.data", "train": "src.train"}
    return {name: importlib.import_module(place) for name, place in places.items()}


def authors_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the authors' model for a configuration in open_clip's layout."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    return {
        "embed_dim": config["embed_dim"],
        "image_resolution": vision["image_size"],
        "vision_layers": tuple(vision["layers"]),
        "vision_width": vision["width"],
        "vision_patch_size": None,
        "context_length": text["context_length"],
        "vocab_size": text["vocab_size"],
        "transformer_width": text["width"],
        "transformer_heads": text["heads"],
        "transformer_layers": text["layers"],
    }


# --- evaluation -------------------------------------------------------------------------------------------------------


class Files(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A test set as any user of open_clip writes it: a file is opened, cropped, stamped and normalised."""

    def __init__(self, images: LabelledImages, rows: Sequence[int], size: int, trigger: BadNet | None) -> None:
        self.images, self.rows, self.trigger = images, rows, trigger
        steps = open_clip.image_transform(size, is_train=False).transforms
        self.before, self.after = steps[:-2], steps[-2:]  # the last two make a tensor and normalise it

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        row = self.rows[place]
        image: Any = Image.open(self.images.image(row))
        for step in self.before:
            image = step(image)
        if self.trigger is not None:
            pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
            image = Image.fromarray(self.trigger.stamp(pixels, [row])[0].permute(1, 2, 0).numpy())
        for step in self.after:
            image = step(image)
        return image, int(self.images.labels[row])


def contest_evaluation(setting: Setting, prompts_row: Row, images_row: Row, full_row: Row) -> None:
    """Prompts, images, and a full evaluation from both: measured where the setting has all of it, else extrapolated."""
    model = build(setting.architecture, 0).eval().to(memory_format=torch.channels_last)
    plain = open_clip_model(setting).eval()
    size, target = setting.architecture.image_size, setting.test.class_names[0]
    trigger = BadNet(patch_size=max(6, size // 14))
    evaluation = Evaluation(test=FruitStallTest(num_images=16), templates=setting.templates, batch_size=64)
    tokenize = tokenizer(setting.architecture)
    measure = Measure(evaluation, setting.test, size, tokenize=tokenize, trigger=Trigger(trigger, target))
    names = (imagenet_class_names() if setting.name == "RN50" else CLASS_NAMES)[: setting.prompt_classes]
    prompts = prompt_tokens(tokenize, names, setting.templates)

    # 1. Prompts.
    flat = prompts.flatten(0, 1)
    by_length = flat[(flat != 0).sum(dim=1).argsort()].split(setting.prompt_batch)
    cut = [trimmed(part) for part in by_length]

    def floor_prompts(number: int) -> None:
        with torch.inference_mode():
            for part in cut:
                encode_text(model, part)

    def peer_prompts(number: int) -> None:
        open_clip.build_zero_shot_classifier(plain, tokenize, names, setting.templates)

    of_prompts = take_turns(
        {
            "ours": lambda number: class_weights(model, prompts, device=CPU, batch_size=setting.prompt_batch),
            "peer": peer_prompts,
            "floor": floor_prompts,
        },
        setting.rounds,
        peers=setting.peers,
    )
    note(prompts_row, setting, of_prompts)

    # 2. Images, clean and triggered.
    weights = F.normalize(
        torch.randn(len(setting.test.class_names), setting.architecture.resolved()["embed_dim"]), dim=1
    )
    clean, stamped = range(len(setting.test)), measure.triggered_rows.tolist()
    loaders = [
        torch.utils.data.DataLoader(Files(setting.test, rows, size, attack), batch_size=64)
        for rows, attack in ((clean, None), (stamped, trigger))
    ]
    lying = [
        normalise_pixels(part)
        for pixels in (measure.clean_pixels(clean), measure.triggered_pixels(range(len(stamped))))
        for part in pixels.split(64)
    ]

    def floor_images(number: int) -> None:
        with torch.inference_mode():
            for part in lying:
                model.encode_image(part)  # type: ignore[operator]

    def peer_images(number: int) -> None:
        # As `open_clip_train.zero_shot.run`, whose `accuracy` fails with NumPy 2.
        with torch.inference_mode():
            for loader in loaders:
                found = 0.0
                for images, labels in loader:
                    logits = 100.0 * plain(image=images)["image_features"] @ weights.T
                    found += float((logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1).float().sum())

    of_images = take_turns(
        {
            "ours": lambda number: measure(model, lambda features: features @ weights.T),
            "peer": peer_images,
            "floor": floor_images,
        },
        setting.rounds,
        peers=setting.peers,
    )
    note(images_row, setting, of_images)

    # 3. Together.
    many = setting.name == "RN50"
    per_prompt, per_image = len(flat), len(clean) + len(stamped)
    counts = (PROMPTS, IMAGES) if many else (per_prompt, per_image)
    together = {
        name: [
            counts[0] / per_prompt * prompt + counts[1] / per_image * image
            for prompt, image in zip(of_prompts[name], of_images[name], strict=True)
        ]
        for name in of_prompts
    }
    note(full_row, setting, together)


# --- pairs ------------------------------------------------------------------------------------------------------------


def repeated(table: PairTable, num_rows: int) -> PairTable:
    """A table of so many rows: its own, over and over."""
    rows = np.arange(num_rows) % len(table)
    columns = table.images.take(rows), table.captions.take(rows), table.sizes[rows]
    return PairTable.of(table.root, *columns, deep_grey=np.zeros(num_rows, dtype=bool))


def tell_pairs(setting: Setting, folder: Path, num_pairs: int = 256) -> None:
    """Print how many pairs a core makes in a second, and what the view of an image takes.

    It decodes or copies each image, makes its view where there is one, or draws it for the device that makes it, and
    looks up the tokens; captions' views, which stay for all epochs, are made in the round that does not count.

    From JPEG every image of a batch is decoded, as of data for which the node has no room; else it comes out of the
    node's file of decoded images.

    Args:
        setting: whose files they are.
        folder: for the node's file.
        num_pairs: made in a turn, in batches of 64.
    """
    size = setting.architecture.image_size
    image_bytes = 3 * size**2
    options: dict[str, Any] = {"tokenize": tokenizer(setting.architecture), "seed": 0}
    # So many that no process would keep them decoded for itself, nor their views.
    files = TrainingPairs(repeated(setting.table, CACHE_BYTES // image_bytes + 1), size, **options)
    kept = repeated(setting.table, CACHE_BYTES // 8 // image_bytes + 1)
    node = TrainingPairs(kept, size, decoded=DecodedFiles(folder / "decoded", 1e9, lambda: None), **options)
    makers: dict[str, tuple[ImageViews | None, bool]] = {
        "without views": (None, False),
        "one AutoAugment view": (AutoAugmentView(), False),
        "one AutoAugment view, made on the device": (AutoAugmentView(), True),
        "one SimCLR view": (SimCLRView(), False),
        "one SimCLR view, made on the device": (SimCLRView(), True),
    }

    def turn(pairs: TrainingPairs, views: ImageViews | None, on_device: bool, number: int) -> None:
        pairs.use_views(views, on_device=on_device)
        order = EpochBatches(len(pairs), global_batch_size=64, epoch=1, seed=0)
        for keys in itertools.islice(order, num_pairs // 64):
            pairs.__getitems__([(number, row) for _, row in keys])

    sources = {"from JPEG": files, "from the node's file of decoded images": node}
    turns = {
        f"{what} {source}": partial(turn, pairs, *how)
        for what, how in makers.items()
        for source, pairs in sources.items()
    }
    seconds = take_turns(turns, setting.rounds)
    for what, (views, _) in makers.items():
        for source in sources:
            found = seconds[f"{what} {source}"]
            rate = num_pairs / statistics.median(found)
            more = statistics.median(a - b for a, b in zip(found, seconds[f"without views {source}"], strict=True))
            view = f", {1e3 * more / num_pairs:.2f} ms a view" if views is not None else ""
            print(f"  {setting.name}: pairs a second and core, {what}, {source}: {rate:.0f}{view}", flush=True)


# --- the table --------------------------------------------------------------------------------------------------------


def contest_mmcl(setting: Setting, folder: Path, pairs: TrainingPairs) -> dict[str, list[float]]:
    """Epochs after the first: images are decoded and captions tokenised."""
    pairs.use_views(None)
    contestants: dict[str, Turn] = {
        "ours": Ours(setting, MMCL(), pairs, setting.rounds),
        "peer": OpenClipTrainer(setting, folder, keeps_data=True),
        "floor": Floor(setting, pairs, views=False),
    }
    return take_turns(contestants, setting.rounds, peers=setting.peers)


def contest_first_epoch(setting: Setting, folder: Path) -> dict[str, list[float]]:
    """Data sets made anew, and an epoch on them."""

    def anew(number: int) -> None:
        Ours(setting, MMCL(), pairs_of(setting), 1)(1)

    peer = OpenClipTrainer(setting, folder, keeps_data=False)
    return take_turns({"ours": anew, "peer": peer}, max(1, setting.rounds // 2), peers=setting.peers)


def contest_cleaning(
    setting: Setting, folder: Path, pairs: TrainingPairs, checkout: Path | None
) -> dict[str, list[float]]:
    """CleanCLIP: originals and views in one forward, views made anew in every epoch."""
    method = CleanCLIP()
    pairs.use_views(method.image_views)
    contestants: dict[str, Turn] = {
        "ours": Ours(setting, method, pairs, setting.rounds),
        "floor": Floor(setting, pairs, views=True),
    }
    if checkout is not None and setting.peers:
        contestants["peer"] = AuthorsTrainer(setting, folder, checkout)
    return take_turns(contestants, setting.rounds)


CONTESTS = ("mmcl", "first", "cleaning", "evaluation", "pairs")


def measure_all(
    settings: Sequence[Setting], folder: Path, checkout: Path | None, contests: Sequence[str] = CONTESTS
) -> list[Row]:
    """All contests, or some, one after the other."""
    later, first = Row("MMCL, later epochs, against `open_clip_train`"), Row("MMCL, first epoch (decode, tokenise)")
    cleaning = Row("CleanCLIP epoch against the authors' `train.py`")
    prompts = Row("class weights from prompts, against plain open_clip")
    images = Row("test images, clean and triggered, against plain open_clip")
    full = Row("one accuracy + ASR evaluation against plain open_clip (RN50: a part, extrapolated to ImageNet)")
    for setting in settings:
        if "mmcl" in contests:
            note(later, setting, contest_mmcl(setting, folder, pairs_of(setting)))
        if "first" in contests:
            note(first, setting, contest_first_epoch(setting, folder))
        if "cleaning" in contests:
            note(cleaning, setting, contest_cleaning(setting, folder, pairs_of(setting), checkout))
        if "evaluation" in contests:
            contest_evaluation(setting, prompts, images, full)
        if "pairs" in contests and setting.name == "RN50":
            tell_pairs(setting, folder)
    return [row for row in (later, first, cleaning, prompts, images, full) if row.peer or row.floor]


def markdown(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The table: a column a setting, and one of the ratios to the floor."""
    lines = [
        "| | " + " | ".join(f"{name}: peer / ours" for name in names) + f" | ours / floor ({'; '.join(names)}) |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row in rows:
        peers = [f"{row.peer[name]:.2f}" if name in row.peer else "not run" for name in names]
        floors = "; ".join(f"{row.floor[name]:.2f}" for name in names if name in row.floor)
        lines.append(f"| {row.name} | " + " | ".join(peers) + f" | {floors} |")
    return "\n".join(lines)


def where() -> str:
    """Date, hardware and versions, in a line."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in facts if "model name" in line), "unknown CPU")
    versions = f"torch {torch.__version__}, open_clip {open_clip.__version__}"
    return f"{time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip() or '?'}, {cpu}, one thread, {versions}"


def main(words: Sequence[str] | None = None) -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("small", "RN50"), help="one of the two models")
    parser.add_argument("--rounds", type=int, help="turns of each that count (small: 7, RN50: 3)")
    parser.add_argument("--contests", nargs="+", choices=CONTESTS, default=CONTESTS, help="some of them")
    parser.add_argument("--without-peers", action="store_true", help="ours and the floor alone")
    parser.add_argument("--authors", type=Path, help="a checkout of nishadsinghi/CleanCLIP")
    chosen = parser.parse_args(words)
    if chosen.authors is not None and not (chosen.authors / "src" / "train.py").is_file():
        parser.error(f"{chosen.authors} holds no src/train.py; clone github.com/nishadsinghi/CleanCLIP there")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peers' own
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = [make(folder) for make in (small, rn50) if chosen.only in (None, {small: "small", rn50: "RN50"}[make])]
        if chosen.rounds:
            made = [replace(setting, rounds=chosen.rounds) for setting in made]
        made = [replace(setting, peers=not chosen.without_peers) for setting in made]
        rows = measure_all(made, folder, chosen.authors, chosen.contests)
    print(f"\n{where()}\n\n{markdown(rows, [setting.name for setting in made])}")


if __name__ == "__main__":
    main()
