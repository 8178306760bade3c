"""Labelled images of torchvision's data sets, from files that are already there."""

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from sweeplab.data.clip_prompts import CALTECH101, FLOWERS102, NUMBERED, TEMPLATES
from sweeplab.data.labels import check_class_names, check_count, check_numbers, empty_classes, file_sizes, some
from sweeplab.data.tables import LabelledImages
from sweeplab.data.unpacked import PackedImage, unpacked
from sweeplab.specs import InvalidInput, Spec, first_line


@dataclass(frozen=True)
class Layout:
    """Where torchvision keeps a data set, and how it is asked for."""

    name: str
    """Of the class in `torchvision.datasets`."""
    folder: str
    """Below the root; of all that belongs to the set."""
    splits: Mapping[str, tuple[Mapping[str, Any], ...]]
    """By our name of a split, the arguments of each part of it. `train` is all that has a label and is no test image,
    as in Table 9 of CLIP's paper."""
    takes_loader: bool = True
    """Whether the class has a `loader`, which can give the path in place of the image."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of classes that are not the set's own."""

    def made(self, root: Path, split: str) -> list[Any]:
        """The parts of a split as torchvision's objects; nothing is downloaded.

        Raises:
            InvalidInput: if files are missing, or their checksums are not those that torchvision knows.
        """
        if not (root / self.folder).is_dir():  # first, since Caltech101's class makes its folder
            raise InvalidInput(f"path={root} has no folder {self.folder}, which holds {self.name}; {self.remedy(root)}")
        loader = {"loader": str} if self.takes_loader else {}
        try:
            parts = self.splits[split]
            return [self.made_by()(root=str(root), download=False, **part, **loader) for part in parts]
        except (OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
            raise InvalidInput(
                f"{root / self.folder} is not {self.name} as torchvision knows it ({type(error).__name__}: "
                f"{first_line(error)}): files are missing, or damaged where they have checksums; {self.remedy(root)}"
            ) from None

    def made_by(self) -> Any:
        """torchvision's class; STL-10's without the unlabelled images, 2.6 GB that nothing here reads."""
        from torchvision import datasets

        made_by = getattr(datasets, self.name)
        if self.name != "STL10":
            return made_by
        return type(self.name, (made_by,), {"train_list": [one for one in made_by.train_list if one[0] != UNLABELLED]})

    def remedy(self, root: Path) -> str:
        """How the files get there."""
        code = f"from torchvision.datasets import {self.name}; {self.name}({str(root)!r}, download=True)"
        return f"copy it there, or have torchvision download it: {shlex.join(['python', '-c', code])}"


BY_NAME = {"train": ({"split": "train"},), "test": ({"split": "test"},)}
WITH_VALIDATION = {"train": ({"split": "train"}, {"split": "val"}), "test": ({"split": "test"},)}
WITH_TRAINVAL = {"train": ({"split": "trainval"},), "test": ({"split": "test"},)}
BY_TRAIN = {"train": ({"train": True},), "test": ({"train": False},)}

LAYOUTS = {
    "cifar10": Layout("CIFAR10", "cifar-10-batches-py", BY_TRAIN, False),
    "cifar100": Layout("CIFAR100", "cifar-100-python", BY_TRAIN, False),
    "food101": Layout("Food101", "food-101", BY_NAME),
    "pets": Layout("OxfordIIITPet", "oxford-iiit-pet", WITH_TRAINVAL, False),
    "stl10": Layout("STL10", "stl10_binary", BY_NAME, False),
    "flowers102": Layout("Flowers102", "flowers-102", WITH_VALIDATION, names=FLOWERS102),
    "dtd": Layout("DTD", "dtd", WITH_VALIDATION),
    "caltech101": Layout("Caltech101", "caltech101", {"all": ({},)}, False, CALTECH101),
    "fgvc-aircraft": Layout("FGVCAircraft", "fgvc-aircraft-2013b", WITH_TRAINVAL),
    "svhn": Layout("SVHN", ".", BY_NAME, False),
}
"""By our name. Those of `NUMBERED` keep their images as arrays, the others as files."""

DataSet = Literal[
    "cifar10", "cifar100", "food101", "pets", "stl10", "flowers102", "dtd", "caltech101", "fgvc-aircraft", "svhn"
]

UNLABELLED = "unlabeled_X.bin"
"""Of STL-10."""
PICTURES = (".jpg", ".jpeg", ".png")


class TorchvisionSet(Spec):
    """A data set of CLIP's paper, or SVHN, as torchvision's class of that name keeps it; nothing is downloaded.

    Classes, splits and checksums are torchvision's (which knows some of archives alone, and then checks none here).
    CIFAR's files are pickles, which are read only where their checksums are the published ones. Images that lie in
    arrays (CIFAR, STL-10, SVHN) are written into the home as PNG, once; the others are read where they are.
    """

    NOT_IN_DIGEST = frozenset({"path", "num_images"})

    kind: Literal["torchvision"] = "torchvision"
    dataset: DataSet
    path: Path
    """The root that torchvision's class is given: the folder above the data set's own."""
    split: Literal["train", "test", "all"] = "test"
    """`train`: all labelled images that are not for testing, those for validation too. Caltech-101 has `all` alone."""
    class_names: Literal["clip"] | tuple[str, ...] = "clip"
    """`clip`: the names of CLIP's paper; or names in the order of torchvision's classes."""
    num_images: int | None = Field(default=None, ge=1)
    """Images that are expected, for planning; None: whatever is found."""

    @model_validator(mode="after")
    def _check_split(self) -> "TorchvisionSet":
        known = LAYOUTS[self.dataset].splits
        if self.split not in known:
            raise ValueError(f"split={self.split!r} is none of {self.dataset}'s; known: {', '.join(known)}")
        return self

    def read(self, data_home: Path) -> LabelledImages:
        """The images in torchvision's order.

        Args:
            data_home: where images that lie in arrays are written to, once.

        Raises:
            InvalidInput: if files are missing or damaged, a path leads out of the data set's folder, or the numbers
                differ from what is declared.
        """
        where = f"{self.dataset} in {self._folder()}"
        if self.dataset in NUMBERED:
            found = unpacked(data_home, self.dataset, self._arrays(), self._packed)
            root, images, sizes = found.root, found.images, found.sizes
            numbers, own = [int(label) for label in found.labels], NUMBERED[self.dataset]
        else:
            names, numbers, own = self._located()
            root, images = str(self._folder()), pa.array(names, pa.large_string())
            sizes = file_sizes(root, names, where)
        check_count(self.num_images, len(images), where)
        if isinstance(self.class_names, tuple) and len(self.class_names) != len(own):
            raise InvalidInput(
                f"class_names has {len(self.class_names)} names, but {self.dataset} has {len(own)} classes "
                f"({some(own)}); give one for each, in that order"
            )
        class_names = check_class_names(self.class_names if isinstance(self.class_names, tuple) else own, where)
        labels = check_numbers(np.array(numbers, dtype=np.int64), len(class_names), where)
        return LabelledImages.of(
            root,
            images,
            sizes=sizes,
            labels=labels,
            class_names=class_names,
            notes=empty_classes(labels, class_names, where),
            templates=TEMPLATES.get(self.dataset, ()),
        )

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs: what torchvision looks for, and the images of the split.

        Raises:
            InvalidInput: as `read` does.
        """
        folder = self._folder()
        if self.dataset == "svhn":  # its files lie in the root itself, beside whatever else is there
            return list(map(str, self._arrays()))
        inside = sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
        if self.dataset in NUMBERED or self.dataset == "caltech101":  # whose class looks for its background images too
            return [file for file in inside if os.path.basename(file) != UNLABELLED]
        images = {str(folder / name) for name in self._located()[0]}
        return [file for file in inside if file in images or not file.lower().endswith(PICTURES)]

    def example(self) -> str:
        """Absolute path of one of the files that hold images.

        Raises:
            InvalidInput: as `read` does.
        """
        return str(self._arrays()[0] if self.dataset in NUMBERED else self._folder() / self._located()[0][0])

    def has_templates(self) -> bool:
        """Whether prompts come with the images."""
        return self.dataset in TEMPLATES

    def _root(self) -> Path:
        return Path(os.path.abspath(self.path.expanduser()))

    def _folder(self) -> Path:
        return self._root() / LAYOUTS[self.dataset].folder

    def _arrays(self) -> list[Path]:
        """The files that hold the split's images and labels."""
        layout = LAYOUTS[self.dataset]
        made_by = layout.made_by()
        if self.dataset == "svhn":
            names = [made_by.split_list[self.split][1]]
        else:
            listed = made_by.train_list if self.split == "train" else made_by.test_list
            names = [name for name, _ in listed]
        files = [self._folder() / name for name in names]
        if lacking := [file for file in files if not file.is_file()]:
            raise InvalidInput(f"{lacking[0]} does not exist, a file of {layout.name}; {layout.remedy(self._root())}")
        return files

    def _packed(self) -> Iterator[PackedImage]:
        """The images that lie in arrays."""
        for part in LAYOUTS[self.dataset].made(self._root(), self.split):
            for row in range(len(part)):
                image, label = part[row]
                yield PackedImage.of_pixels(image, str(int(label)))

    def _located(self) -> tuple[list[str], list[int], tuple[str, ...]]:
        """Paths below the data set's folder, the numbers of the classes, and the classes' names."""
        layout, folder = LAYOUTS[self.dataset], self._folder()
        names, labels, classes = [], [], list[str]()
        for part in layout.made(self._root(), self.split):
            found = [str(name) for name in (part.categories if self.dataset == "caltech101" else part.classes)]
            if classes and found != classes:
                raise InvalidInput(f"{folder} has other classes in its parts of split={self.split!r}; copy it again")
            classes = found
            for path, label in self._rows(part):
                name = os.path.relpath(path, folder)
                if name.startswith("../"):
                    raise InvalidInput(f"{folder} names the image {path}, which lies outside of it; copy it again")
                names.append(name)
                labels.append(label)
        return names, labels, tuple(layout.names.get(name, name.replace("_", " ")) for name in classes)

    def _rows(self, part: Any) -> Iterator[tuple[str, int]]:
        """Path and class of each image."""
        if self.dataset == "caltech101":  # which gives images alone; its `__getitem__` makes the path so
            for label, number in zip(part.y, part.index, strict=True):
                name = f"image_{number:04d}.jpg"
                yield os.path.join(part.root, "101_ObjectCategories", part.categories[label], name), label
        elif self.dataset == "pets":  # gives images alone, too, and has no public name for their paths
            yield from zip(map(str, part._images), part._labels, strict=True)
        else:
            yield from (part[row] for row in range(len(part)))
