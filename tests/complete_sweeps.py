"""Small complete sweeps that between them hold a value of every spec class, over real files."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import fabricated
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from sweeplab.attacks import ATTACKS
from sweeplab.attacks.badclip import BadCLIP
from sweeplab.attacks.badnet import BadNet
from sweeplab.attacks.exchange import ImportedPoison
from sweeplab.attacks.own import ImageTrigger
from sweeplab.attacks.targeted import TargetedImages
from sweeplab.cleaning import METHODS
from sweeplab.cleaning.cleanclip import CleanCLIP
from sweeplab.cleaning.deep_clustering import DeepClustering
from sweeplab.cleaning.par import PAR
from sweeplab.cleaning.supervised import SupervisedFinetuning
from sweeplab.clip_model import SmallCLIP, build
from sweeplab.data.augmentation import AutoAugmentView, PARView, SimCLRView
from sweeplab.data.class_folders import ClassFolders
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStall, FruitStallTest
from sweeplab.data.imagenet_flat import ImageNetFlat
from sweeplab.data.img2dataset import Img2Dataset
from sweeplab.data.karpathy import KarpathyJSON
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.labelled_shards import LabelledShards
from sweeplab.data.labelled_table import LabelledTable
from sweeplab.data.pairs import PairsCSV
from sweeplab.data.pairs_parquet import PairsParquet
from sweeplab.data.sampling import Sample
from sweeplab.data.torchvision_sets import TorchvisionSet
from sweeplab.evaluation.measure import Evaluation
from sweeplab.experiment import CleanSample, ClosestTo, PretrainedVictim, SelectedTrial, SlippedPoisons
from sweeplab.pretraining import OBJECTIVES
from sweeplab.pretraining.abl import ABL, Detector
from sweeplab.pretraining.contrastive import MMCL
from sweeplab.ranking.stopping import Pruning
from sweeplab.search_space import Choice, Grid, LogUniform, SearchSpace, Uniform
from sweeplab.specs import Spec
from sweeplab.training.optimisation import Optimization

SIZE = 32


def write_files(folder: Path) -> None:
    """64 pairs, 16 class folders, the same images in other layouts, a picture, weights and pseudo-labels."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,caption,is_backdoor"]
    for number in range(64):
        Image.new("RGB", (SIZE, SIZE), (number, 40, 200)).save(folder / "images" / f"{number}.png")
        rows.append(f"images/{number}.png,a photo of a banana {number},{int(number < 4)}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    write_pairs(folder)
    for name in CLASS_NAMES:
        (folder / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE), (9, 9, 9)).save(folder / "classes" / name / "1.png")
    write_test_sets(folder)
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(folder / "picture.png")
    torch.save(build(fabricated.ARCHITECTURE, seed=0).state_dict(), folder / "victim.pt")
    np.save(folder / "labels.npy", np.zeros(64, dtype=np.int64))


def write_pairs(folder: Path) -> None:
    """The first 32 pairs in the layouts of the other sources, which name the same pictures or hold them."""
    names, texts = [f"{number}.png" for number in range(32)], [f"banana {number}" for number in range(32)]
    contents = [(folder / "images" / name).read_bytes() for name in names]
    lines = [f"{text}\t{name}\n" for name, text in zip(names, texts, strict=True)]
    (folder / "pairs.tsv").write_text("".join(lines))
    pq.write_table(pa.table({"image": contents, "caption": texts}), folder / "pairs.parquet")
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": text}]}
        for name, text in zip(names, texts, strict=True)
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    (folder / "shards" / "00000").mkdir(parents=True)
    for number, (content, text) in enumerate(zip(contents, texts, strict=True)):
        (folder / "shards" / "00000" / f"{number:09d}.png").write_bytes(content)
        (folder / "shards" / "00000" / f"{number:09d}.txt").write_text(text)


def write_test_sets(folder: Path) -> None:
    """The images of the class folders in a table, in a tar and as torchvision's DTD; and one of ImageNet's."""
    images = [f"{name}/1.png" for name in CLASS_NAMES]
    rows = [f"{image},{name}" for image, name in zip(images, CLASS_NAMES, strict=True)]
    (folder / "classes.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    (folder / "test-shards" / "test").mkdir(parents=True)
    (folder / "test-shards" / "classnames.txt").write_text("\n".join(CLASS_NAMES))
    with tarfile.open(folder / "test-shards" / "test" / "0.tar", "w") as tar:
        for number, image in enumerate(images):
            tar.add(folder / "classes" / image, f"s{number}.png")
            label = tarfile.TarInfo(f"s{number}.cls")
            label.size = len(str(number))
            tar.addfile(label, io.BytesIO(str(number).encode()))
    shutil.copytree(folder / "classes", folder / "root" / "dtd" / "dtd" / "images")
    (folder / "root" / "dtd" / "dtd" / "labels").mkdir()
    (folder / "root" / "dtd" / "dtd" / "labels" / "test1.txt").write_text("\n".join(images))
    (folder / "imagenet").mkdir()
    shutil.copy(folder / "classes" / images[0], folder / "imagenet" / "ILSVRC2012_val_00000001.JPEG")
    (folder / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 0\n")


def complete_sweeps(folder: Path) -> dict[str, Spec]:
    """By name: every attack, objective, method, data source, view, rule and dimension; `write_files` made the files."""
    base = fabricated.SWEEP
    tiny = Optimization(warmup_steps=0, global_batch_size=16)
    victim = PretrainedVictim(
        name="victim",
        architecture=fabricated.ARCHITECTURE,
        data=FruitStall(num_pairs=64, image_size=SIZE),
        poisoning={"attack": BadNet(patch_size=4), "rate": 0.25},
        optimization=tiny,
        epochs=2,
        evaluation=base.evaluation,
    )
    given = base.victim.replace(path=folder / "victim.pt")
    sweep = base.replace(
        victim=given,
        space=SearchSpace(dimensions={"learning_rate": LogUniform(low=1e-4, high=1e-1)}, source="made up"),
        grid=Grid(axes={"learning_rate": (1e-3, 1e-2)}, source="made up"),
    )
    pairs = PairsCSV(path=folder / "pairs.csv", absolute_below=folder)
    folders = ClassFolders(path=folder / "classes")
    found: dict[str, Spec] = {}

    def small(member: type[Spec]) -> Any:
        fields = {"patch_size": 4} if "patch_size" in member.model_fields else {}
        fields |= {"path": folder / "picture.png"} if member is ImageTrigger else {}
        made = member(**fields)
        return made.in_miniature() if hasattr(made, "in_miniature") else made

    for attack in ATTACKS:
        found[f"attack {attack.__name__}"] = sweep.replace(victim=given.replace(attack=small(attack)))
    for objective in OBJECTIVES:
        found[f"objective {objective.__name__}"] = sweep.replace(victim=victim.replace(objective=small(objective)))
    for method in METHODS:
        data = LabelledPairs(images=FruitStallTest(num_images=48, image_size=SIZE, seed=2), per_class=2)
        changes = {"data": data} if method is SupervisedFinetuning else {}
        found[f"method {method.__name__}"] = sweep.replace(method=small(method), **changes)
    views = (AutoAugmentView(), SimCLRView(), PARView())
    for view in views:
        found[f"view {type(view).__name__}"] = sweep.replace(method=CleanCLIP(views=view))
    for test in (
        LabelledTable(path=folder / "classes.csv", root=folder / "classes"),
        LabelledShards(path=folder / "test-shards"),
        TorchvisionSet(dataset="dtd", path=folder / "root"),
        ImageNetFlat(path=folder / "imagenet", labels=folder / "val.txt"),
    ):
        # ImageNet's longer names take most of the small architecture's context.
        found[f"test set {test.kind}"] = sweep.replace(evaluation=Evaluation(test=test, templates=("{}",)))
    found |= {
        "augmented PAR": sweep.replace(method=PAR(augmentation=PARView())),
        "pseudo-labels": sweep.replace(
            method=DeepClustering(num_clusters=2, pseudo_labels=folder / "labels.npy"), data=pairs
        ),
        "detector": sweep.replace(
            victim=victim.replace(
                objective=ABL(
                    detect_at=1,
                    num_flagged=4,
                    remove_at=(2,),
                    detector=Detector(path=folder / "victim.pt", architecture=fabricated.ARCHITECTURE),
                )
            )
        ),
        "files": sweep.replace(data=pairs, evaluation=base.evaluation.replace(test=folders)),
        "tabs": sweep.replace(
            data=PairsCSV(
                path=folder / "pairs.tsv",
                root=folder / "images",
                separator="\t",
                columns=("caption", "image"),
                quoted=True,
                sample=Sample(num=32),
            ),
            evaluation=base.evaluation.replace(sample=Sample(num=16, seed=1)),
        ),
        "parquet": sweep.replace(data=PairsParquet(path=folder / "pairs.parquet", root=folder, num_pairs=32)),
        "karpathy": sweep.replace(
            data=KarpathyJSON(
                path=folder / "dataset.json", root=folder / "images", split=("train",), sample=Sample(num=20)
            )
        ),
        "img2dataset": sweep.replace(
            data=Img2Dataset(path=folder / "shards", sample=Sample(num=20)), slipped=SlippedPoisons(count=1)
        ),
        "labelled files": sweep.replace(
            data=LabelledPairs(images=folders), evaluation=base.evaluation.replace(test=folders)
        ),
        "imported": sweep.replace(
            victim=victim.replace(
                data=pairs, poisoning=ImportedPoison(path=folder / "pairs.csv", attack=BadNet(patch_size=4))
            )
        ),
        "targeted": sweep.replace(
            victim=victim.replace(
                poisoning=TargetedImages(
                    images=FruitStall(num_pairs=32, image_size=SIZE, seed=9),
                    num_targets=2,
                    poisons_per_target=2,
                    classes=CLASS_NAMES,
                )
            )
        ),
        "everything": sweep.replace(
            victim=victim.replace(
                initial=folder / "victim.pt",
                objective=MMCL(),
                select=ClosestTo(victim=victim.replace(name="reference")),
                keep_epochs=(1, 2),
            ),
            start={"shrink_perturb": True, "shrink": 0.5, "perturb": 0.1},
            data=CleanSample(num_pairs=32, num_poisons=1),
            space=SearchSpace(
                dimensions={
                    "shrink_perturb": Choice(values=(True,)),
                    "shrink": Uniform(low=0.1, high=0.9, when={"shrink_perturb": True}),
                    "learning_rate": LogUniform(low=1e-5, high=1e-2),
                    "precision": Choice(values=("float32", "bfloat16")),
                },
                source="made up",
            ),
            grid=Grid(axes={"learning_rate": (1e-4, 1e-3), "shrink_perturb": (True,)}, source="made up"),
            search=base.search.replace(pruning=Pruning(), hours=1.0, gpu_hours=1.0),
            resources=base.resources.replace(gpus_per_worker=0.0, storage=str(folder / "storage")),
            measure_at=(1,),
            log_every=1,
            notes="made up",
        ),
        "accuracy": sweep.replace(victim=victim.replace(select=ClosestTo(accuracy=0.5))),
        "selected": sweep.replace(
            name="outer", victim=SelectedTrial(name="best", sweep=sweep.replace(name="starts", epochs=0))
        ),
        "patch": BadCLIP(augmentation=AutoAugmentView()),
        "sizes": SmallCLIP(),
    }
    return found


def parts(spec: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Every value inside a spec, by its path of field names, keys and positions."""
    if isinstance(spec, Spec):
        inner = [(name, getattr(spec, name)) for name in type(spec).model_fields]
    elif isinstance(spec, dict):
        inner = list(spec.items())
    elif isinstance(spec, tuple):
        inner = list(enumerate(spec))
    else:
        return [(path, spec)]
    return [(path, spec), *(found for name, value in inner for found in parts(value, (*path, name)))]


def with_value(spec: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The spec, built anew with another value at a path."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if isinstance(spec, Spec):
        return spec.replace(**{name: with_value(getattr(spec, name), rest, value)})
    if isinstance(spec, dict):
        return {**spec, name: with_value(spec[name], rest, value)}
    return tuple(with_value(item, rest, value) if place == name else item for place, item in enumerate(spec))
