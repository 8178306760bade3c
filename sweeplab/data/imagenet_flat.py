"""ImageNet's validation images in one folder, labelled by Kaggle's table, by Caffe's list, or by ILSVRC's devkit."""

import csv
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from sweeplab.data.labels import check_count, empty_classes, imagenet_names, some
from sweeplab.data.tables import LabelledImages
from sweeplab.specs import InvalidInput, Spec

IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
TABLE, LIST, GROUND_TRUTH, META = (
    *("LOC_val_solution.csv", "val.txt"),
    *("ILSVRC2012_validation_ground_truth.txt", "meta.mat"),
)
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"
"""Where the devkit's archive puts the last two."""
PLACES = (TABLE, LIST, GROUND_TRUTH, str(DEVKIT / GROUND_TRUTH))
"""Of labels, below the folder of images or the one above it."""


class ImageNetFlat(Spec):
    """ILSVRC2012_val_00000001.JPEG ... in one folder, with a file that says their classes; the classes are ImageNet's
    thousand by OpenAI's names, in the order of the sorted WordNet ids."""

    NOT_IN_DIGEST = frozenset({"path", "labels", "num_images"})

    kind: Literal["imagenet-flat"] = "imagenet-flat"
    path: Path
    """The folder of the images."""
    labels: Path | None = None
    """`LOC_val_solution.csv` (Kaggle), `val.txt` (Caffe: a name and the place among the sorted ids, from 0, or the id
    itself) or `ILSVRC2012_validation_ground_truth.txt` (the devkit's, with `meta.mat` beside it). None: the one of them
    that lies in the folder, or in the folder above it, or there in `ILSVRC2012_devkit_t12/data`."""
    num_images: int | None = Field(default=None, ge=1)
    """Images that are expected, for planning; None: whatever is found."""

    def read(self, data_home: Path) -> LabelledImages:
        """List the images, sorted; decodes none.

        Args:
            data_home: not used, the images lie where `path` says.

        Raises:
            InvalidInput: if images or labels are missing, or do not belong together.
        """
        root, found = self._images()
        file = self._labels(root)
        known = imagenet_names()
        place = {wordnet_id: number for number, wordnet_id in enumerate(known)}
        classes = _classes(file, list(known))
        images = sorted(found)
        stems = [image.partition(".")[0] for image in images]
        if lacking := [stem for stem in stems if stem not in classes]:
            raise InvalidInput(
                f"{len(lacking):,} of the {len(stems):,} images in {root} have no label in {file} ({some(lacking)}); "
                "give the labels of these images"
            )
        if absent := sorted(set(classes) - set(stems)):
            raise InvalidInput(
                f"{len(absent):,} of the {len(classes):,} images that {file} names are not in {root} ({some(absent)}); "
                "copy them there, or give the labels of the images that are there"
            )
        check_count(self.num_images, len(images), str(root))
        if strange := sorted(set(classes.values()) - set(place)):
            raise InvalidInput(f"{file} names {len(strange)} classes that are not ImageNet's ({some(strange)})")
        labels = np.array([place[classes[stem]] for stem in stems], dtype=np.int64)
        return LabelledImages.of(
            str(root),
            pa.array(images, pa.large_string()),
            sizes=np.array([found[image] for image in images], dtype=np.int64),
            labels=labels,
            class_names=tuple(known.values()),
            notes=empty_classes(labels, tuple(known.values()), str(root)),
        )

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs.

        Raises:
            InvalidInput: if images or labels are missing.
        """
        root, found = self._images()
        file = self._labels(root)
        meta = [str(file.with_name(META))] if file.name == GROUND_TRUTH else []
        return [str(file), *meta, *(str(root / image) for image in sorted(found))]

    def example(self) -> str:
        """Absolute path of the first image.

        Raises:
            InvalidInput: if there is none.
        """
        root, found = self._images()
        return str(root / min(found))

    def _images(self) -> tuple[Path, dict[str, int]]:
        """The folder, and bytes by name of the validation images in it."""
        root = Path(os.path.abspath(self.path.expanduser()))
        try:
            found = {entry.name: entry.stat().st_size for entry in os.scandir(root) if IMAGE.fullmatch(entry.name)}
        except OSError as error:
            raise InvalidInput(f"path={root} cannot be read ({error}); give the folder of ImageNet's images") from None
        if not found:
            raise InvalidInput(
                f"path={root} holds no ILSVRC2012_val_00000001.JPEG ...; give the folder of ImageNet's validation "
                "images, or ClassFolders for one folder per class"
            )
        return root, found

    def _labels(self, root: Path) -> Path:
        """The file that says the classes."""
        if self.labels is not None:
            file = Path(os.path.abspath(self.labels.expanduser()))
            if not file.is_file():
                raise InvalidInput(f"labels={file} is no file; give {TABLE}, {LIST} or the devkit's {GROUND_TRUTH}")
            return file
        found = [folder / name for folder in (root, root.parent) for name in PLACES if (folder / name).is_file()]
        if len(found) != 1:
            what = f"{len(found)} files of labels ({some(list(map(str, found)))})" if found else "no file of labels"
            raise InvalidInput(
                f"path={root} has {what} in it or beside it; name one as labels: {TABLE}, {LIST} or the devkit's "
                f"{GROUND_TRUTH}"
            )
        return found[0]


def _classes(file: Path, sorted_ids: list[str]) -> dict[str, str]:
    """WordNet id by image, without suffix.

    Args:
        file: of labels.
        sorted_ids: ImageNet's thousand.
    """
    try:
        if file.name == GROUND_TRUTH:
            return _of_devkit(file)
        if file.suffix.lower() == ".csv":
            return _of_table(file)
        return _of_list(file, sorted_ids)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read ({error}); check its permissions") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{file} is no text; give {TABLE}, {LIST} or the devkit's {GROUND_TRUTH}") from None


def _of_table(file: Path) -> dict[str, str]:
    """Kaggle's: `ImageId,PredictionString`, the latter an id and a box for each object, all of one class."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if not {"ImageId", "PredictionString"} <= set(rows.fieldnames or ()):
            raise InvalidInput(f"{file} lacks the columns ImageId and PredictionString; give Kaggle's {TABLE}")
        found: dict[str, str] = {}
        for number, row in enumerate(rows, start=1):
            image, ids = row["ImageId"] or "", set((row["PredictionString"] or "").split()[::5])
            if len(ids) != 1:
                raise InvalidInput(f"{file}: row {number} ({image}) names {len(ids)} classes; give Kaggle's {TABLE}")
            _add(found, image, ids.pop(), file)
    return found


def _of_list(file: Path, sorted_ids: list[str]) -> dict[str, str]:
    """Caffe's: a name and the place of its class among the sorted ids, or the id itself."""
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        image, _, label = line.strip().partition(" ")
        label = label.strip()
        if label.isdecimal() and int(label) < len(sorted_ids):
            label = sorted_ids[int(label)]
        elif label not in sorted_ids:
            raise InvalidInput(
                f"{file}: line {number} is {line.strip()[:80]!r}; a line is a name and the place of its class among "
                f"the sorted WordNet ids, 0 ... {len(sorted_ids) - 1}, or the id (ImageSets/CLS-LOC/val.txt of "
                f"Kaggle's archive counts images and holds no classes: there it is {TABLE})"
            )
        _add(found, image, label, file)
    return found


def _add(found: dict[str, str], image: str, label: str, file: Path) -> None:
    """Note an image's class, of which a file may say one alone."""
    if (other := found.setdefault(Path(image).stem, label)) != label:
        raise InvalidInput(f"{file} names {image} as {other} and as {label}; keep the right one of the two")


def _of_devkit(file: Path) -> dict[str, str]:
    """The devkit's: line i is the ILSVRC id of image i. These ids are not in the order of the WordNet ids; `meta.mat`
    says which is which."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    meta = file.with_name(META)
    if not meta.is_file():
        raise InvalidInput(
            f"{meta} does not exist, without which the numbers in {file.name} say no class; copy it from the devkit"
        )
    try:
        synsets = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        ids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in np.atleast_1d(synsets)}
    except (MatReadError, OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:
        raise InvalidInput(
            f"{meta} cannot be read as the devkit's table of classes ({error}); copy it from the devkit"
        ) from None
    lines = file.read_text(encoding="utf-8").split()
    unknown = [line for line in lines if not line.isdecimal() or int(line) not in ids]
    if unknown:
        raise InvalidInput(f"{file}: {some(unknown)} stand for no class in {meta.name}; copy both from one devkit")
    return {f"ILSVRC2012_val_{number:08d}": ids[int(line)] for number, line in enumerate(lines, start=1)}
