"""Protocols: `paper`, as the papers state it with defects mended, and `authors`, as their code does it."""

from dataclasses import dataclass
from typing import Literal

Protocol = Literal["paper", "authors"]
"""`paper` is the default. Every victim, sweep and measurement carries its own, so that like is compared with like."""


@dataclass(frozen=True)
class Difference:
    """One place where the two protocols differ."""

    what: str
    paper: str
    authors: str
    source: str


DIFFERENCES = (
    Difference(
        "learning-rate schedule",
        "starts at step 0: the warm-up runs, and the cosine ends at zero with the last step",
        "epochs are numbered from 1, so it runs one epoch ahead: a warm-up of 50 steps never runs, and the rate rises "
        "again in the last epoch (not in PAR's trainer)",
        "CleanCLIP and attack-cleanclip, src/train.py and src/scheduler.py",
    ),
    Difference(
        "optimizer of a cleaning run",
        "fresh AdamW with the chosen weight decay",
        "the checkpoint's optimizer state is loaded: pre-training's moments, and its weight decay in place of the "
        "chosen one (PAR's trainer starts afresh)",
        "attack-cleanclip, src/main.py",
    ),
    Difference(
        "trigger pixels outside [0, 255]",
        "cut to the range, as an image file holds them",
        "wrapped modulo 256 by an unchecked cast (on x86)",
        "CleanCLIP, backdoor/utils.py",
    ),
    Difference(
        "random triggers at evaluation",
        "the same draws for every image at every point of every trial (common random numbers)",
        "drawn anew at every evaluation (here from a stream named after the model's weights, so that a run repeats)",
        "CleanCLIP, backdoor/utils.py and src/evaluate.py",
    ),
    Difference(
        "geometry of triggered test images",
        "as clean ones: shorter side resized, centre crop",
        "squashed to a square, while clean ones are cropped",
        "CleanCLIP, backdoor/utils.py",
    ),
    Difference(
        "captions longer than the context",
        "cut, and the end token kept",
        "cut without their end token: the encoder then pools at the start token, and all of them get one embedding",
        "CleanCLIP, pkgs/openai/tokenizer",
    ),
    Difference(
        "BatchNorm under PAR",
        "as `batch_norm` says",
        "frozen: an evaluation inside the loop leaves the model in evaluation mode",
        "PerturbAndRecover, train.py",
    ),
)
"""All of them. What both protocols share: shrink and perturb adds a fresh initialisation, ASR leaves out images of the
target class, and gradients pass the gathering of embeddings exactly (CleanCLIP's gathering scales the encoders' by 1 /
world size, which AdamW hides)."""
