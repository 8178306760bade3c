"""Clean your own model: copy this file, change the places in capitals.

    python sweeps/own_model.py --dry-run    # the plan; needs no data
    python sweeps/own_model.py              # on this machine, or with `ray job submit` on a cluster

docs/own_model.md goes through it step by step. Needed: a poisoned open_clip checkpoint and its trigger, clean
image-caption pairs, and labelled test images.
"""

from pathlib import Path

from searchspaces import cleanclip
from sweeplab.attacks.badnet import BadNet
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cli import main
from sweeplab.clip_model import Architecture
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.pairs import PairsCSV
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import CheckpointVictim, CleaningSweep, Resources, Search
from sweeplab.training.optimisation import Optimization

SWEEP = CleaningSweep(
    name="my-model",
    victim=CheckpointVictim(
        name="my-model",
        path=Path("MY_CHECKPOINT.pt"),  # or .safetensors
        architecture=Architecture(name="ViT-B-32-quickgelu"),  # open_clip's name of what it was trained with
        attack=BadNet(patch_size=16),
        target="banana",  # by its name among the classes below
    ),
    method=CleanCLIP(),
    optimization=Optimization(warmup_steps=50, global_batch_size=64),
    epochs=10,
    data=PairsCSV(path=Path("MY_PAIRS.csv")),  # columns image,caption; images relative to the file
    evaluation=Evaluation(
        # Folders named after ImageNet's ids; for others, named after their classes, class_names="folders" or a tuple of
        # names
        test=ClassFolders(path=Path("MY_TEST_IMAGES"), class_names="imagenet"),
        templates="imagenet",  # or your own prompts: ("a photo of a {}.", "a drawing of a {}.")
    ),
    space=cleanclip.CC6M,
    search=Search(trials=32),
    resources=Resources(gpus_per_worker=0.5, cpus_per_worker=4, loader_workers=4),  # two trials share a GPU
)

if __name__ == "__main__":
    main(SWEEP)
