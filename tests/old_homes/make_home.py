"""Make a small home with the code of version 0.1.0 and pack it, for the tests that old homes are read and guarded.

With that version's code, and its distribution installed (`sweep.json` names it):

    git worktree add --detach ../sweeplab-0.1.0 e1fb00b
    PYTHONPATH=../sweeplab-0.1.0 python tests/old_homes/make_home.py tests/old_homes/home-0.1.0.tar.xz

takes some minutes. Weights are kept only where a sweep goes on from them; drawn data are left out, as the specs draw
them again, and so is MLflow's store, which is made again from the ledger. The models' token embeddings of words that no
text has are zero, so that weights and moments pack well. Paths and the machine's name are replaced; nothing of them
matters.
"""

import importlib.metadata
import os
import shutil
import signal
import socket
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.poisoning import Poisoning
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.par import PAR
from sweeplab.clip_checkpoints import load_weights
from sweeplab.clip_model import SmallCLIP, build, tokenizer
from sweeplab.data.fruit_stall import CLASS_NAMES, ZERO_SHOT_TEMPLATES, FruitStall, FruitStallTest
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import CleaningSweep, PretrainedVictim, Resources, Search
from sweeplab.pretraining.safeclip import SafeCLIP
from sweeplab.search_space import Choice, LogUniform, SearchSpace, Uniform
from sweeplab.sweep.controller import SweepController
from sweeplab.sweep.prepare import prepare
from sweeplab.sweep.pretraining import pretrain_victim
from sweeplab.sweep.run import Options, run_sweep
from sweeplab.sweep.session import Session
from sweeplab.training.optimisation import Optimization

ARCHITECTURE = SmallCLIP(
    image_size=32, width=2, embed_dim=8, text_width=8, text_layers=1, text_heads=1, context_length=16
).architecture()
INITIAL = Path("initial.pt")
"""Relative, so that a command finds it in the home, wherever that is unpacked, when it is run there."""
PAIRS = FruitStall(num_pairs=512, image_size=32)
CLEAN_PAIRS = FruitStall(num_pairs=128, image_size=32, seed=1)
EVALUATION = Evaluation(test=FruitStallTest(num_images=160, image_size=32), templates=ZERO_SHOT_TEMPLATES)
RATES = {"learning_rate": LogUniform(low=1e-4, high=1e-2)}
FAST = Optimization(learning_rate=1e-2, warmup_steps=2, global_batch_size=32)
POISON = Poisoning(attack=BadNet(patch_size=8), target="banana", rate=0.5, captions="training")


def victim(name: str = "mmcl-victim", **changes: object) -> PretrainedVictim:
    """Pre-trained with MMCL alone, which augments no caption."""
    values = {
        "name": name,
        "architecture": ARCHITECTURE,
        "data": PAIRS,
        "poisoning": POISON,
        "optimization": FAST,
        "epochs": 4,
        "initial": INITIAL,
        "evaluation": EVALUATION,
        "text_augmentation": "swap+delete",  # whether or not the machine has WordNet
    }
    return PretrainedVictim(**{**values, **changes})


def sweep(name: str, **changes: object) -> CleaningSweep:
    """MMCL cleaning, drawn at random: nothing that has changed since plays a part."""
    values = {
        "name": name,
        "victim": victim(),
        "method": CleanCLIP(ssl_weight=0.0),
        "optimization": FAST,
        "epochs": 1,
        "data": CLEAN_PAIRS,
        "evaluation": EVALUATION,
        "space": SearchSpace(dimensions=RATES, source="made up"),
        "search": Search(sampler="random", trials=2),
        "resources": Resources(executor="inline"),
        "text_augmentation": "swap+delete",
    }
    return CleaningSweep(**{**values, **changes})


def mmcl_cleaning() -> CleaningSweep:
    """Ended in the middle: trial 0 is finished, trial 1 has an epoch of two, trial 2 is not begun."""
    return sweep("mmcl-cleaning", epochs=2, search=Search(sampler="random", trials=3))


def cleanclip() -> CleaningSweep:
    """Finished; its text views are augmented captions."""
    return sweep("cleanclip", method=CleanCLIP())


def par() -> CleaningSweep:
    """Ended after trial 0; its `augmentation` is left out."""
    return sweep("par", method=PAR())


def over_safeclip() -> CleaningSweep:
    """Finished; its victim has been through all phases of SafeCLIP."""
    defence = SafeCLIP(warmup_epochs=1, slow_epochs=1)
    slow = FAST.replace(learning_rate=1e-3)
    return sweep("over-safeclip", victim=victim("safeclip-victim", objective=defence, optimization=slow))


def gp_conditional() -> CleaningSweep:
    """Ended after trial 0; `ssl_weight` of its Gaussian process's space is not always drawn."""
    start = {
        "shrink_perturb": Choice(values=(True, False)),
        "shrink": Uniform(low=0.5, high=1.0, when={"shrink_perturb": True}),
    }
    space = SearchSpace(dimensions={**RATES, **start}, source="made up")
    return sweep("gp-conditional", space=space, search=Search(sampler="gp", trials=2, startup_trials=1))


def gp_plain() -> CleaningSweep:
    """Ended after trial 0; a Gaussian process over a space without conditions."""
    return sweep("gp-plain", search=Search(sampler="gp", trials=2, startup_trials=1))


def tpe_startup() -> CleaningSweep:
    """Ended after trial 0; its `startup_trials` is left out."""
    return sweep("tpe-startup", search=Search(sampler="tpe", trials=2))


SWEEPS: tuple[Callable[[], CleaningSweep], ...] = (
    mmcl_cleaning,
    cleanclip,
    par,
    over_safeclip,
    gp_conditional,
    gp_plain,
    tpe_startup,
)
"""As functions: a later version may refuse a spec."""


def write_initial(home: Path) -> None:
    """A clean model, from which the victims start: trained here, and rounded to the precision of bfloat16."""
    table = FruitStall(num_pairs=3000, image_size=32, seed=2)
    texts = [str(caption) for caption in table.read(home / "data").captions]
    texts += [template.format(name) for template in ZERO_SHOT_TEMPLATES for name in CLASS_NAMES]
    fresh = build(ARCHITECTURE, seed=0).state_dict()
    unused = torch.ones(len(fresh["token_embedding.weight"]), dtype=torch.bool)
    unused[tokenizer(ARCHITECTURE)(texts).flatten().unique()] = False
    fresh["token_embedding.weight"][unused] = 0.0
    torch.save(fresh, home / "fresh.pt")
    clean = victim(
        "clean",
        data=table,
        poisoning=POISON.replace(rate=0.0),
        optimization=Optimization(learning_rate=2e-2, beta2=0.98, epsilon=1e-6, global_batch_size=64),
        epochs=15,
        initial=Path("fresh.pt"),
    )
    prepared = prepare(sweep("clean", victim=clean), home)
    run = pretrain_victim(clean, prepared.victim_digest, Session(home, inline=True))
    path = run.checkpoint_path(run.points()[-1])
    assert path is not None
    weights = {
        name: value.bfloat16().float() if value.is_floating_point() else value
        for name, value in load_weights(path).items()
    }
    torch.save(weights, home / INITIAL)
    shutil.rmtree(run.path)
    (home / "fresh.pt").unlink()


def make(home: Path) -> None:
    """Run every sweep, most of them interrupted as by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # of a background job it is ignored
    write_initial(home)
    point, finished = SweepController.point, SweepController.finished
    ends: set[tuple[str, int, int | None]] = {
        ("mmcl-cleaning", 1, 1),
        *((name, 0, None) for name in ("par", "gp-conditional", "gp-plain", "tpe-startup")),
    }

    def then_end(controller: SweepController, number: int, index: int | None) -> None:
        if (controller.sweep.name, number, index) in ends:
            os.kill(os.getpid(), signal.SIGINT)

    def point_then_end(controller, number, made, outcomes):  # type: ignore[no-untyped-def]
        point(controller, number, made, outcomes)
        then_end(controller, number, made.index)

    def finished_then_end(controller, number):  # type: ignore[no-untyped-def]
        finished(controller, number)
        then_end(controller, number, None)

    with (
        patch.object(SweepController, "point", point_then_end),
        patch.object(SweepController, "finished", finished_then_end),
    ):
        for made in SWEEPS:
            try:
                run_sweep(made(), home, Options(inline=True))
            except KeyboardInterrupt:
                print(f"{made().name}: interrupted")


def thin_out(home: Path) -> None:
    """Leave out what is made again, and weights from which nothing goes on."""
    for name in ("data", "ray", "mlartifacts"):
        shutil.rmtree(home / name, ignore_errors=True)
    for place in home.glob("mlflow.db*"):
        place.unlink()
    for place in home.glob("**/checkpoints/*.pt"):
        of = place.relative_to(home).parts
        if not (of[1].startswith("mmcl-victim") or of[1:4] == ("mmcl-cleaning", "trials", "0001")):
            place.unlink()
    for place in home.rglob("*"):
        if place.suffix in (".json", ".jsonl", ".journal", ".txt"):
            text = place.read_text().replace(str(home), "/home/of/before")
            place.write_text(text.replace(f'"{socket.gethostname()}"', '"maker"'))


def pack(home: Path, archive: Path) -> None:
    """In order and without owners."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(archive, "w:xz", preset=9) as file:
        for place in sorted(home.rglob("*")):
            if not place.name.endswith("lock"):
                file.add(place, place.relative_to(home), recursive=False, filter=plain)


def main() -> None:
    """Make the home and pack it."""
    version = importlib.metadata.version("sweeplab")
    if version != "0.1.0":
        raise SystemExit(f"sweeplab {version} is installed; install version 0.1.0 beside its code")
    archive = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        os.chdir(home)
        torch.set_num_threads(1)
        make(home)
        thin_out(home)
        pack(home, archive)
        print(f"{archive}: {archive.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
