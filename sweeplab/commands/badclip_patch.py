"""Optimise BadCLIP's patch with a sweep's own pairs: what `sweeplab attack badclip` does."""

import logging
from pathlib import Path

from sweeplab.attacks.badclip import BadCLIP, optimise_patch, save_patch
from sweeplab.attacks.poisoning import mentioning
from sweeplab.clip_model import tokenizer
from sweeplab.data.images import load_all
from sweeplab.data.tables import PairTable
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder
from sweeplab.training.randomness import numpy_stream
from sweeplab.worker.inputs import victim_model
from sweeplab.worker.jobs import whole_machine
from sweeplab.worker.run import blaming, prepare_process

logger = logging.getLogger("sweeplab")

MAX_IMAGES = 10_000
"""Images that the patch is optimised on; about as many as the authors use."""

MAX_TARGETS = 1_000
"""True target images, and captions."""


def optimise_for(sweep: CleaningSweep, checkpoint: Path, settings: BadCLIP, to: Path) -> None:
    """Optimise a patch on the victim's clean pairs and write it.

    Pairs whose caption mentions the target give target images and captions, the others the images to be patched.

    Args:
        sweep: names the architecture, the pairs and the target.
        checkpoint: a clean model of that architecture.
        settings: of the optimisation.
        to: a .png file.
    """
    victim = sweep.original_victim()
    if not isinstance(victim, PretrainedVictim):
        raise InvalidInput(f"{sweep.name}: its victim is a given checkpoint, which names no pairs to optimise on")
    if to.suffix.lower() != ".png":
        raise InvalidInput(f"--to={to} must end in .png: other formats lose pixels")
    machine = whole_machine(home_folder())
    device = prepare_process(machine)
    target, size = sweep.trigger().target, sweep.victim.architecture.image_size
    if target is None:
        raise InvalidInput(f"{sweep.name}: targeted poisoning has no single target; BadCLIP needs one")
    table: PairTable = victim.data.read(machine.data_home)  # type: ignore[attr-defined]
    named = set(mentioning(table, target).tolist())
    if not named:
        raise InvalidInput(f"no caption mentions target={target!r}; BadCLIP needs true images of the target")
    # Drawn and not taken from the top, since files are often sorted by source or class.
    order = numpy_stream(settings.seed, "badclip pairs").permutation(len(table)).tolist()
    others = [row for row in order if row not in named][:MAX_IMAGES]
    targets = [row for row in order if row in named][:MAX_TARGETS]

    # Numbers that are none come from the checkpoint here, not from the optimisation.
    with blaming(checkpoint):
        patch = optimise_patch(
            victim_model(sweep.victim.architecture, checkpoint).to(device),
            settings,
            images=load_all(table.subset(others), size),
            target_tokens=tokenizer(sweep.victim.architecture)([table.caption(row) for row in targets]),
            target_images=load_all(table.subset(targets), size),
            report=lambda epoch, loss: logger.info(f"epoch {epoch}/{settings.epochs}: loss {loss:.4f}"),
        )
    save_patch(patch, to)
