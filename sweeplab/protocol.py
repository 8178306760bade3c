"""Protocols: `paper`, as the papers state it with defects mended, and `authors`, as their code does it.

What of their code neither protocol follows is listed too.
"""

from dataclasses import dataclass
from typing import Literal

Protocol = Literal["paper", "authors"]
"""`paper` is the default. Every victim, sweep and measurement carries its own, so that like is compared with like."""


@dataclass(frozen=True)
class Difference:
    """One place where the authors' code differs from the papers, or from us."""

    what: str
    paper: str
    authors: str
    source: str
    is_followed: bool = True
    """Whether protocol `authors` does as the authors' code; if not, both protocols do what stands under `paper`."""


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
        "frozen in `PAR_OPTIMIZATION`, as tau was tuned; `batch_norm` may say otherwise, and the plan then warns: "
        "under `local` a batch's own statistics alone set two equal models apart",
        "frozen, whatever `batch_norm` says: an evaluation in the first step of each epoch leaves the model in "
        "evaluation mode",
        "PerturbAndRecover, train.py",
    ),
    Difference(
        "BatchNorm after a measurement inside an epoch",
        "in training mode again",
        "left in evaluation mode to the epoch's end: 62 of 1,562 steps where step 1,500 is measured",
        "attack-cleanclip, src/train.py",
        is_followed=False,
    ),
    Difference(
        "parameters without weight decay",
        "those of fewer than two dimensions, as in open_clip and in PAR's trainer",
        "those whose name has bn, ln, bias or logit_scale in it: the norm weights in RN50's `downsample` and a ViT's "
        "`class_embedding` are decayed",
        "CleanCLIP and attack-cleanclip, src/main.py",
        is_followed=False,
    ),
    Difference(
        "captions that mention a label (label-consistent poison, captions of the training set)",
        "the label as a whole word in any case, or its plural",
        "the label as a case-sensitive substring: `Banana` is missed, `bananarama` found",
        "CleanCLIP, backdoor/create_backdoor_data.py",
        is_followed=False,
    ),
    Difference(
        "synonym that EDA inserts",
        "drawn among all synonyms of the word",
        "the first of a set, whose order Python draws anew in every process: one synonym a word and process",
        "eda_nlp, code/eda.py, as CleanCLIP uses it",
        is_followed=False,
    ),
    Difference(
        "captions without a letter, under EDA",
        "stay as they are",
        "fail; attack-cleanclip leaves them out, and every later augmented caption belongs to the image before its own",
        "eda_nlp, code/eda.py; attack-cleanclip, src/data.py",
        is_followed=False,
    ),
    Difference(
        "regularisation of SafeCLIP's mixture",
        "1e-8 on the variances, so that cosines of a standard deviation below 1e-3 are told apart too",
        "1e-6, scikit-learn's default: of such cosines no pair has a posterior above 0.9",
        "SafeCLIP, src/samplers.py",
        is_followed=False,
    ),
    Difference(
        "pool of past embeddings (SafeCLIP, RoCLIP)",
        "a batch goes on at the first row where the last is filled, so that the pool holds the newest embeddings",
        "what does not fit behind the last row is dropped",
        "lightly's MemoryBankModule, as SafeCLIP and RoCLIP use it",
        is_followed=False,
    ),
)
"""All of them. What both protocols share with the papers: shrink and perturb adds a fresh initialisation, ASR leaves
out images of the target class, and gradients pass the gathering of embeddings exactly (CleanCLIP's gathering scales the
encoders' by 1 / world size, which AdamW hides)."""
