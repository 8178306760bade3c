"""What a CUDA machine makes of training and evaluation, in one run of at most 8 minutes.

    python benchmarks/gpu.py                 # a machine with a GPU
    python benchmarks/gpu.py --miniature     # the same code on small models, on a CPU too: seconds

Needs torch, torchvision, open_clip (with ftfy, regex and tqdm), pydantic, pyarrow, numpy and Pillow alone; nothing is
downloaded. Every row is printed as it comes, so that a run that is cut short is not lost, and rows for which no time is
left, or that fail, say so:

1. contracts: two steps of every objective and cleaning method, of MMCL + SSL also in chunks, with activation
   checkpointing and in bfloat16, every attack, every view that is made where a GPU trains, and a checkpoint are on the
   GPU what they are on the CPU; and what such views cost;
2. one evaluation of 1,000 classes x 80 templates, clean and triggered images, beside plain open_clip;
3. training at 224 pixels in bfloat16, RN50 and ViT-B/16: images/s of our loop's step, its share of the GPU's dense
   bfloat16 peak, the memory at its peak, and images/s of open_clip's own loop with what its trainer sets: cuDNN's
   search and TF32. One RN50 row of ours has cuDNN's search too. A batch that does not fit is taken in 2, 4 or 8
   chunks, which keeps its negatives and costs a second forward pass.

Both loops get batches that lie ready in page-locked memory, as their loaders bring them: ours bytes and tokens cut to
the longest caption of the batch, open_clip's normalised floats and 77 tokens. Images made by augmentation are not
counted among images/s; the share of the peak counts all that is computed.
Results: benchmarks/RESULTS.md.
"""

import argparse
import gc
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from sweeplab.attacks import ATTACKS
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.own import ImageTrigger
from sweeplab.attacks.poisoning import Attack
from sweeplab.cleaning import METHODS
from sweeplab.clip_model import (
    Architecture,
    Encoder,
    SmallCLIP,
    build,
    imagenet_class_names,
    imagenet_templates,
    normalise_pixels,
    tokenizer,
)
from sweeplab.data.augmentation import AutoAugmentView, SimCLRView
from sweeplab.data.fruit_stall import FruitStall, FruitStallTest
from sweeplab.data.tables import LabelledImages
from sweeplab.data.training_pairs import TrainingPairs
from sweeplab.evaluation.measure import Evaluation, Measure, Trigger
from sweeplab.pretraining import OBJECTIVES
from sweeplab.pretraining.contrastive import MMCL, MMCLWithSSL
from sweeplab.specs import InvalidInput, Spec
from sweeplab.training import checkpoints
from sweeplab.training import objective as hooks
from sweeplab.training.batches import PairBatch
from sweeplab.training.loop import Run, Training
from sweeplab.training.objective import Objective
from sweeplab.training.optimisation import Optimization
from sweeplab.training.precision import Precision, float32_products, forward_pass
from sweeplab.training.probe import Nobody, ProbeStep, noise_batch, not_measured
from sweeplab.worker.failures import says_out_of_memory

PEAKS = (
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A40", 149.7),
    ("A6000", 154.8),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("4090", 165.2),
    ("3090", 71.0),
)
"""Dense bfloat16 TFLOP/s by words of the device's name, from the makers' data sheets; the first that fits counts."""
CHUNKS = (2, 4, 8)
"""Into which a batch is cut, one after the other, where the GPU's memory does not hold it."""
OUT_OF_MEMORY = "out of memory"
FAULTS = (InvalidInput, RuntimeError, FloatingPointError)
"""Of one row, CUDA's out of memory among them; the other rows are worth having."""
TOLERANCE = 2e-3
"""Relative difference of a loss between GPU and CPU, both in float32: sums are taken in another order."""
BFLOAT16_TOLERANCE = 5e-2
"""The same, both in bfloat16, which has 8 bits: on a CPU, steps of four seeds were up to 1.4e-2 from float32."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    architectures: tuple[tuple[str, Architecture], ...]
    batch_sizes: tuple[int, ...]
    compiled_batch: int
    """The one at which torch.compile is tried too."""
    searched: tuple[str, int]
    """Architecture and batch size at which ours is timed with cuDNN's search for its quickest algorithms too, which
    open_clip's trainer always has."""
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    test_images: int
    views_side: int
    """Of the images that views are made of, pixels."""
    seconds: float
    """Of each row, after it has warmed up."""


def full() -> Size:
    """The papers' models."""
    return Size(
        architectures=(("RN50", Architecture(name="RN50-quickgelu")), ("ViT-B/16", Architecture(name="ViT-B-16"))),
        batch_sizes=(128, 512, 2048),
        compiled_batch=512,
        searched=("RN50", 512),
        class_names=tuple(imagenet_class_names()),
        templates=tuple(imagenet_templates()),
        test_images=2048,
        views_side=224,
        seconds=4.0,
    )


def miniature() -> Size:
    """Enough to see that everything runs."""
    small = SmallCLIP(image_size=32, width=8, embed_dim=16, text_width=16, text_layers=1)
    return Size(
        architectures=(("small", small.architecture()),),
        batch_sizes=(8, 16),
        compiled_batch=0,
        searched=("small", 16),
        class_names=("banana", "apple", "pear", "plum", "fig", "lime"),
        templates=("a photo of a {}.", "a {}."),
        test_images=12,
        views_side=32,
        seconds=0.0,
    )


class Clock:
    """What is left of the time."""

    def __init__(self, minutes: float) -> None:
        self.ends = time.monotonic() + 60 * minutes

    def has(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        return time.monotonic() + seconds < self.ends


def say(*cells: object) -> None:
    """A row, at once."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def peak_of(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU; None where the table does not know it."""
    return next((1e12 * tera for words, tera in PEAKS if re.search(rf"\b{words}\b", device_name)), None)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(turn: Callable[[], object], device: torch.device, seconds: float, *, least: int = 3) -> float:
    """Seconds of one turn: the mean over as many as fit into the time, and at least some, after 2 that do not count."""
    turn()
    synchronize(device)
    began = time.perf_counter()
    turn()
    synchronize(device)
    count = max(least, min(500, int(seconds / max(1e-6, time.perf_counter() - began))))
    began = time.perf_counter()
    for _ in range(count):
        turn()
    synchronize(device)
    return (time.perf_counter() - began) / count


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], str]]:
    """Gigabytes of the GPU at the peak of what runs inside, and nothing of it left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield lambda: f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}" if device.type == "cuda" else "-"


def reason_of(error: Exception) -> str:
    """An error in a cell."""
    return " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())


def tried(name: str, work: Callable[[], bool]) -> bool:
    """What the work returns; where it fails, a row that says so, and False."""
    try:
        return work()
    except FAULTS as error:
        say(name, f"FAILED: {reason_of(error):.300}", "")
        return False


def precision_of(device: torch.device) -> Precision:
    """bfloat16, which many CPUs only imitate."""
    return "bfloat16" if device.type == "cuda" else "float32"


# --- contracts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How the steps of a contract are taken."""

    words: str = ""
    changes: dict[str, object] = field(default_factory=dict)
    """Fields of the optimization."""
    recomputes: bool = False
    tolerance: float = TOLERANCE


WAYS = (
    Way(" in 2 chunks", {"num_chunks": 2}),
    Way(", activation checkpointing", recomputes=True),
    # At a lower rate, or rounding would grow too large in one step.
    Way(" in bfloat16", {"precision": "bfloat16", "learning_rate": 1e-3}, tolerance=BFLOAT16_TOLERANCE),
)
"""In which MMCL + SSL is checked too."""


def two_steps(objective: Spec, pairs: TrainingPairs, device: torch.device, way: Way) -> dict[str, float]:
    """Losses of a tiny model's first two steps, in the second epoch, where all is in use.

    The second step's tell of the first one's gradients: its rate moves losses by more than rounding does. A large
    epsilon keeps AdamW smooth where a gradient is zero but for rounding.
    """
    optimization = Optimization(learning_rate=1e-2, epsilon=1e-2, warmup_steps=0, global_batch_size=16)
    optimization = optimization.replace(**way.changes)
    run = Run(objective, optimization, epochs=3, seed=0, activation_checkpointing=way.recomputes)  # type: ignore[arg-type]
    training = Training(build(tiny_architecture(), 0).to(device), pairs, run, not_measured, Nobody())
    training.encoder = Encoder(training.model)
    hooks.start_epoch(training.objective, training.state, training.epoch_facts(2))
    training.set_mode()
    walk = next(iter(hooks.passes(training.objective, training.state, 2, len(pairs))))
    batch = pairs.__getitems__([(2, row) for row in range(16)])
    found = [training.step(2, walk, batch) for _ in range(2)]
    return {f"{name} of step {step}": float(value) for step, parts in enumerate(found) for name, value in parts.items()}


def tiny_architecture() -> Architecture:
    """Of the contracts' model."""
    return SmallCLIP(image_size=32, width=8, embed_dim=16, text_width=16, text_layers=1).architecture()


def contract(name: str, check: Callable[[], tuple[bool, str]]) -> bool:
    """Print a contract's row: whether it holds, and what was seen."""

    def row() -> bool:
        try:
            holds, words = check()
        except ImportError as error:
            say(name, f"not run: {error}", "")
            return True
        say(name, "as on the CPU" if holds else "DIFFERS", words)
        return holds

    return tried(name, row)


def check_objectives(folder: Path, device: torch.device) -> bool:
    """Whether every objective and cleaning method, and MMCL + SSL in `WAYS`, compute on the device what they compute
    on the CPU."""
    table = FruitStall(num_pairs=64, image_size=32).read(folder)
    labels, tokenize, good = torch.arange(64) % 5, tokenizer(tiny_architecture()), True

    def check(objective: Spec, way: Way) -> tuple[bool, str]:
        objective = objective.in_miniature() if hasattr(objective, "in_miniature") else objective  # for 64 pairs
        pairs = [TrainingPairs(table, 32, tokenize=tokenize, seed=0, labels=labels, num_classes=5) for _ in range(2)]
        ours = two_steps(objective, pairs[0], device, way)
        theirs = two_steps(objective, pairs[1], torch.device("cpu"), way)
        apart = max(abs(ours[part] - value) / max(1.0, abs(value)) for part, value in theirs.items())
        is_same = ours.keys() == theirs.keys() and apart <= way.tolerance
        return is_same, f"losses {apart:.1e} apart, of {way.tolerance:g} allowed"

    plain = [(member(), Way()) for member in dict.fromkeys((*OBJECTIVES, *METHODS))]  # some are both
    for objective, way in [*plain, *((MMCLWithSSL(), way) for way in WAYS)]:
        good &= contract(f"`{objective.kind}`{way.words}", partial(check, objective, way))
    return good


def check_attacks(folder: Path, device: torch.device) -> bool:
    """Whether every attack stamps on the device, to one level of 255, what it stamps on the CPU."""
    generator, good = torch.Generator().manual_seed(8), True
    images = torch.randint(256, (3, 3, 48, 48), generator=generator, dtype=torch.uint8)
    logo = folder / "logo.png"
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((9, 7)).save(logo)

    def check(attack: Attack) -> tuple[bool, str]:
        stamped = attack.stamp(images.to(device), [1, 2, 3]).cpu()
        apart = int((stamped.int() - attack.stamp(images, [1, 2, 3]).int()).abs().max())
        return apart <= 1, f"pixels {apart} of 255 apart"

    for member in ATTACKS:
        attack = ImageTrigger(path=logo) if member is ImageTrigger else member()
        good &= contract(f"`{attack.kind}`", partial(check, attack))
    return good


def check_checkpoint(folder: Path, device: torch.device) -> tuple[bool, str]:
    """Whether a checkpoint holds the weights of when it was asked for, though they change at once."""
    weights, zeros = torch.full((2048, 2048), 0.5, device=device), torch.zeros((), dtype=torch.uint8)
    content = checkpoints.Checkpoint(
        model={"weight": weights},
        optimizer={},
        state={},
        epoch=1,
        step_in_epoch=0,
        step=1,
        point=1,
        random=zeros,
        tally=None,
        config="{}",
    )
    writing = checkpoints.Writing(content, folder / "checkpoint.pt")
    weights.zero_()
    writing.wait()
    good = bool((checkpoints.load(writing.path)["model"]["weight"] == 0.5).all())
    return good, "written while weights change"


def check_views(size: Size, device: torch.device) -> bool:
    """Whether views are made on the device as on the CPU, to a tenth of a level of 255 on average."""
    draw, good, many, side = torch.Generator().manual_seed(8), True, size.batch_sizes[1], size.views_side
    coarse = torch.randint(256, (64, 3, 14, 14), generator=draw).float()
    images = F.interpolate(coarse, size=side, mode="bilinear").to(torch.uint8)

    def check(view: AutoAugmentView | SimCLRView) -> tuple[bool, str]:
        made = view.drawn((side, side), range(64)).each(lambda tensor: tensor.to(device)).applied(images.to(device))
        apart = (made.cpu().int() - view.views(images, range(64)).int()).abs().float()
        batch = images.repeat(-(-many // 64), 1, 1, 1)[:many].to(device)
        began = time.perf_counter()
        drawn = view.drawn((side, side), range(many)).each(lambda tensor: tensor.to(device))
        words = f"{many} images drawn in {1e3 * (time.perf_counter() - began):.1f} ms"
        seconds = seconds_of(partial(drawn.applied, batch), device, min(1.0, size.seconds))
        same = f"pixels {apart.mean():.1e} of 255 apart on average, {apart.max():.0f} at most"
        return float(apart.mean()) <= 0.1, f"{same}; {words}, made in {1e3 * seconds:.1f} ms"

    for view in (*(AutoAugmentView(policy=policy) for policy in ("imagenet", "cifar10", "svhn")), SimCLRView()):
        good &= contract(f"`{'-'.join(map(str, view.canonical().values()))}`", partial(check, view))
    return good


def check_contracts(size: Size, folder: Path, device: torch.device) -> bool:
    """Whether all of them hold; one that fails leaves the others to be checked."""
    say("contract", f"on {device}", "")
    say(*["---"] * 3)
    # Convolutions in TF32, which torch takes on GPUs by default, would differ by a thousandth.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        good = check_objectives(folder, device)
    good &= check_attacks(folder, device)
    good &= contract("checkpoint", partial(check_checkpoint, folder, device))
    return check_views(size, device) and good


# --- training ---------------------------------------------------------------------------------------------------------


def ready_batch(architecture: Architecture, size: int, device: torch.device, *, views: bool) -> PairBatch:
    """In page-locked memory, as a loader brings it."""
    batch = noise_batch(architecture, size, views=views)
    return batch.pin_memory() if device.type == "cuda" else batch


def our_step(
    architecture: Architecture,
    objective: Objective,
    batch: PairBatch,
    device: torch.device,
    *,
    compiled: bool = False,
    num_chunks: int = 1,
) -> ProbeStep:
    """A step of the loop."""
    optimization = Optimization(
        learning_rate=1e-5,
        warmup_steps=10,
        global_batch_size=len(batch.rows),
        num_chunks=num_chunks,
        precision=precision_of(device),
    )
    return ProbeStep(architecture, objective, optimization, batch, device, compile=compiled)


def open_clips_step(architecture: Architecture, batch: PairBatch, device: torch.device) -> Callable[[], object]:
    """What `open_clip_train` does in a step of `--precision amp_bf16`: normalised floats and whole contexts come from
    the host, its own model and loss, AdamW on two groups of parameters, the clamp."""
    model = open_clip.CLIP(**architecture.resolved(), output_dict=True).to(device).train()
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2]
    exempt = [p for n, p in model.named_parameters() if p.ndim < 2]
    groups = [{"params": exempt, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.1}]
    optimizer, loss = torch.optim.AdamW(groups, lr=1e-5), open_clip.ClipLoss(cache_labels=True)
    images = normalise_pixels(batch.images)
    tokens = F.pad(batch.tokens, (0, architecture.context_length - batch.tokens.shape[1]))
    if device.type == "cuda":
        images, tokens = images.pin_memory(), tokens.pin_memory()

    def step() -> None:
        pixels, words = images.to(device, non_blocking=True), tokens.to(device, non_blocking=True)
        optimizer.zero_grad()
        with forward_pass(device, precision_of(device)):
            value = loss(**model(pixels, words))
        value.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))

    return step


def flops_of(
    architecture: Architecture, objective: Objective, device: torch.device, *, is_chunked: bool = False
) -> float:
    """Of a step, by pair: multiplications and additions of matrices and convolutions, forward (twice where it is taken
    in chunks, however many) and backward."""
    batch = ready_batch(architecture, 4, device, views=isinstance(objective, MMCLWithSSL))
    step = our_step(architecture, objective, batch, device, num_chunks=2 if is_chunked else 1)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 4


@dataclass(frozen=True)
class Rate:
    """How quick a loop was."""

    per_second: float | None
    """Images; None: there are none."""
    gigabytes: str
    """Of the GPU at the peak."""
    words: str = "-"


def rate_of(make: Callable[[], Callable[[], object]], size: int, device: torch.device, seconds: float) -> Rate:
    """Images a second of a step that is made here, so that nothing of it stays."""
    with peak_memory(device) as gigabytes:
        try:
            rate = size / seconds_of(make(), device, seconds)
            return Rate(rate, gigabytes(), f"{rate:,.0f}")
        except FAULTS as error:  # of a lacking compiler, say
            reason = reason_of(error)
            words = OUT_OF_MEMORY if says_out_of_memory(reason) else f"failed: {reason:.150}"
            return Rate(None, gigabytes(), words)


@contextmanager
def open_clips_settings() -> Iterator[None]:
    """What open_clip_train/main.py sets before it trains."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True), float32_products("tf32"):
        yield


def train_rows(size: Size, device: torch.device, clock: Clock, peak: float | None) -> bool:
    """Of every architecture, objective and batch size; whether each had its rows."""
    ours, theirs = ("images/s", "share of peak", "GB"), ("open_clip: images/s", "GB", "ours / open_clip")
    say("model", "objective", "batch", "compiled", *ours, *theirs)
    say(*["---"] * 10)
    row, good = partial(train_row, device=device, clock=clock, peak=peak, seconds=size.seconds), True
    for model in size.architectures:
        for objective in (MMCL(), MMCLWithSSL()):
            rows = partial(objective_rows, size, model, objective, device, row)
            good &= tried(f"{model[0]}, `{objective.kind}`", rows)
    return good


def objective_rows(
    size: Size,
    model: tuple[str, Architecture],
    objective: MMCL | MMCLWithSSL,
    device: torch.device,
    row: Callable[..., Rate],
) -> bool:
    """Of every batch size, compiled and with cuDNN's search too; True once all are printed."""
    (name, architecture), kind, views = model, f"`{objective.kind}`", isinstance(objective, MMCLWithSSL)
    flops = flops_of(architecture, objective, device)
    for batch_size in size.batch_sizes:
        batch = ready_batch(architecture, batch_size, device, views=views)
        make = partial(our_step, architecture, objective, batch, device)
        peer = None if views else partial(open_clips_step, architecture, batch, device)
        found = row(batch_size, (name, kind, batch_size, "no"), make, flops, peer=peer)
        for num_chunks in CHUNKS:
            if found.words != OUT_OF_MEMORY:
                break
            head = (name, kind, f"{batch_size} in {num_chunks} chunks", "no")
            twice = flops_of(architecture, objective, device, is_chunked=True)
            found = row(batch_size, head, partial(make, num_chunks=num_chunks), twice, needed=30)
        if (name, batch_size) == size.searched and not views:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                row(batch_size, (name, kind, f"{batch_size}, cudnn.benchmark", "no"), make, flops, needed=30)
        if batch_size == size.compiled_batch and not views:
            row(batch_size, (name, kind, batch_size, "yes"), partial(make, compiled=True), flops, needed=100)
    return True


def train_row(
    pairs: int,
    head: tuple[object, ...],
    make: Callable[[], Callable[[], object]],
    flops: float,
    *,
    device: torch.device,
    clock: Clock,
    peak: float | None,
    seconds: float,
    peer: Callable[[], Callable[[], object]] | None = None,
    needed: float = 15,
) -> Rate:
    """Measure and print a row, if the seconds that it needs are left; how quick ours was."""
    if not clock.has(needed):
        say(*head, "not run: the time is up", *[""] * 5)
        return Rate(None, "-")
    found = rate_of(make, pairs, device, seconds)
    with open_clips_settings():
        theirs = rate_of(peer, pairs, device, seconds) if peer else Rate(None, "-")
    share = f"{found.per_second * flops / peak:.3f}" if found.per_second and peak else "-"
    quicker = f"{found.per_second / theirs.per_second:.2f}" if found.per_second and theirs.per_second else "-"
    say(*head, found.words, share, found.gigabytes, theirs.words, theirs.gigabytes, quicker)
    return found


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_set(folder: Path, size: Size, side: int) -> LabelledImages:
    """A few files that stand for many images."""
    draw, names = np.random.default_rng(0), [f"{number:03}.png" for number in range(min(32, size.test_images))]
    for name in names:
        Image.fromarray(draw.integers(256, size=(side, side, 3), dtype=np.uint8)).save(folder / name)
    images = [names[row % len(names)] for row in range(size.test_images)]
    return LabelledImages.of(
        str(folder),
        pa.array(images, pa.large_string()),
        sizes=np.array([os.path.getsize(folder / name) for name in images], dtype=np.int64),
        labels=np.arange(size.test_images, dtype=np.int64) % len(size.class_names),
        class_names=size.class_names,
    )


def evaluation_row(size: Size, folder: Path, device: torch.device) -> bool:
    """Accuracy and ASR of the first architecture in bfloat16: prompts, clean and triggered images; True once it is
    printed."""
    name, architecture = size.architectures[0]
    tokenize, side, batch_size = tokenizer(architecture), architecture.image_size, 256
    evaluation = Evaluation(
        test=FruitStallTest(num_images=16),
        templates=size.templates,
        batch_size=batch_size,
        precision=precision_of(device),
    )
    trigger = Trigger(BadNet(patch_size=side // 14 + 2), size.class_names[0])
    images = test_set(folder, size, side)
    measure = Measure(evaluation, images, side, tokenize=tokenize, trigger=trigger, decode_workers=os.cpu_count() or 1)
    model = build(architecture, 0).to(device).eval().to(memory_format=torch.channels_last)
    plain = open_clip.CLIP(**architecture.resolved()).to(device).eval()
    triggered = len(measure.triggered_rows)
    pixels = torch.cat([measure.clean_pixels(range(len(images))), measure.triggered_pixels(range(triggered))])
    floats = [normalise_pixels(part) for part in pixels.split(batch_size)]
    floats = [part.pin_memory() for part in floats] if device.type == "cuda" else floats

    def peer() -> None:
        with torch.inference_mode(), forward_pass(device, precision_of(device)):
            weights = open_clip.build_zero_shot_classifier(
                plain, tokenize, size.class_names, [template.format for template in size.templates], device=device
            )
            found = [
                (plain.encode_image(part.to(device, non_blocking=True), normalize=True) @ weights).argmax(dim=1)
                for part in floats
            ]
            torch.cat(found).cpu()

    say("evaluation", "prompts", "images", "ours: s", "GB", "plain open_clip: s", "open_clip / ours")
    say(*["---"] * 7)
    with peak_memory(device) as gigabytes:
        ours = seconds_of(lambda: measure(model), device, size.seconds, least=1)
        memory = gigabytes()
    theirs = seconds_of(peer, device, size.seconds, least=1)
    counts = (f"{len(size.class_names) * len(size.templates):,}", f"{len(pixels):,}")
    say(name, *counts, f"{ours:.2f}", memory, f"{theirs:.2f}", f"{theirs / ours:.2f}")
    return True


def main(words: Sequence[str] | None = None) -> int:
    """Measure; 1 where a contract does not hold, or a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--miniature", action="store_true", help="small models, on a CPU where there is no GPU")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no further row begins (7.5)")
    chosen = parser.parse_args(words)
    if not torch.cuda.is_available() and not chosen.miniature:
        print("torch sees no GPU; --miniature runs the same code on a CPU", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock, size = Clock(chosen.minutes), miniature() if chosen.miniature else full()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = peak_of(name)
    rated = f"{peak / 1e12:,.0f} TFLOP/s of dense bfloat16" if peak is not None else "its peak is not in the table"
    versions = f"torch {torch.__version__}, open_clip {open_clip.__version__}"
    print(f"{time.strftime('%Y-%m-%d')}, {name} ({rated}), {versions}\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        good = check_contracts(size, folder, device)
        print(flush=True)
        good &= tried("evaluation", partial(evaluation_row, size, folder, device))
        print(flush=True)
        good &= train_rows(size, device, clock, peak)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
