"""Labelled images in tar files, as webdataset writes them and CLIP_benchmark lays them out."""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from sweeplab.data.labels import check_class_names, check_count, check_numbers, empty_classes, lines_of
from sweeplab.data.pair_columns import SPLITS
from sweeplab.data.tables import LabelledImages
from sweeplab.data.tar_members import IMAGE_MEMBERS, check_end, check_member, in_number_order, key_and_extension
from sweeplab.data.unpacked import PackedImage, unpacked
from sweeplab.specs import InvalidInput, Spec

LONGEST_LABEL = 32
"""Bytes of a `.cls` member."""
NAMES, TEMPLATES, KIND = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
"""Text files beside the folders of splits."""


class LabelledShards(Spec):
    """Tars of images and numbers, FOLDER/test/0.tar ... with `nshards.txt`, and the names in FOLDER/classnames.txt.

    `clip_benchmark_export_wds` writes this layout, and Hugging Face's `clip-benchmark/wds_...` have it. A sample is a
    `.webp`, `.png` or `.jpg` and a `.cls` of the same name. Members are copied into the home once, under names of our
    own; none is unpickled, and links and paths that lead out of the tar are refused.
    """

    NOT_IN_DIGEST = frozenset({"path", "num_images"})

    kind: Literal["labelled-shards"] = "labelled-shards"
    path: Path
    """FOLDER, or a folder of tars itself; the text files are looked for there, and in the folder above the tars."""
    split: str = "test"
    """Name of the folder that the tars are in."""
    class_names: Literal["classnames.txt"] | tuple[str, ...] = "classnames.txt"
    """Names in the order of the numbers; `classnames.txt`: the lines of that file."""
    num_images: int | None = Field(default=None, ge=1)
    """Images that are expected, for planning; None: whatever is found."""

    @field_validator("split")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"split={name!r} is no folder's name; give that of the folder with the tars, such as test")
        return name

    def read(self, data_home: Path) -> LabelledImages:
        """The images in the order of the tars and of their samples.

        Args:
            data_home: where the images are written to, once.

        Raises:
            InvalidInput: if a tar is missing or damaged, a sample lacks its image or label, a member is none that
                belongs there, or labels and class names do not fit.
        """
        shards = self._shards()
        self._check_kind(shards)
        names, where = self._names(shards), str(shards[0].parent)
        found = unpacked(data_home, "shard-images", shards, lambda: _packed(shards))
        check_count(self.num_images, len(found.images), where)
        labels = check_numbers(np.array(found.labels, dtype=np.int64), len(names), where)
        return LabelledImages.of(
            found.root,
            found.images,
            sizes=found.sizes,
            labels=labels,
            class_names=names,
            notes=empty_classes(labels, names, where),
            templates=self._templates(shards),
        )

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs.

        Raises:
            InvalidInput: if there are no tars.
        """
        shards = self._shards()
        texts = [self._text(shards, name) for name in (NAMES, TEMPLATES, KIND)]
        count = shards[0].parent / "nshards.txt"
        return [str(path) for path in (*shards, *texts, count) if path is not None and path.is_file()]

    def example(self) -> str:
        """Absolute path of the first tar.

        Raises:
            InvalidInput: as `files` does.
        """
        return str(self._shards()[0])

    def has_templates(self) -> bool:
        """Whether prompts come with the images."""
        return self._text(self._shards(), TEMPLATES) is not None

    def _shards(self) -> list[Path]:
        """The tars, absolute, in the order of their numbers."""
        root = Path(os.path.abspath(self.path.expanduser()))
        folder = root / self.split if (root / self.split).is_dir() else root
        if folder == root and root.name in SPLITS and root.name != self.split:
            raise InvalidInput(
                f"path={root} holds the tars of split {root.name!r}, not of {self.split!r}; give {root.parent}"
            )
        found = sorted(folder.glob("*.tar"), key=lambda tar: in_number_order(tar.name))
        if not found:
            raise InvalidInput(
                f"path={root} holds no .tar files, neither itself nor in {self.split}/; give the folder that "
                f"{NAMES} is in, and the split"
            )
        count = folder / "nshards.txt"
        if count.is_file() and (said := lines_of(count)[:1]) != (str(len(found)),):
            raise InvalidInput(
                f"{count} says {said[0] if said else 'nothing'}, but {folder} holds {len(found)} tars; copy those that "
                "are lacking, or mend the file"
            )
        return found

    def _text(self, shards: list[Path], name: str) -> Path | None:
        """A text file beside the tars or above them; None where there is none."""
        places = (Path(os.path.abspath(self.path.expanduser())), shards[0].parent.parent)
        return next((place / name for place in places if (place / name).is_file()), None)

    def _check_kind(self, shards: list[Path]) -> None:
        file = self._text(shards, KIND)
        said = "".join(lines_of(file)[:1]).lower() if file is not None else "classification"
        if said not in ("", "classification"):
            raise InvalidInput(f"{file} says {said!r}, and a test set has one class for each image; give another one")

    def _names(self, shards: list[Path]) -> tuple[str, ...]:
        if isinstance(self.class_names, tuple):
            return check_class_names(self.class_names, "class_names")
        file = self._text(shards, NAMES)
        if file is None:
            raise InvalidInput(
                f"path={self.path} has no {NAMES}; put it there, one name a line in the order of the labels, or give "
                "class_names"
            )
        return check_class_names(lines_of(file), str(file))

    def _templates(self, shards: list[Path]) -> tuple[str, ...]:
        """Prompts with `{}` for the name, where CLIP_benchmark writes `{c}`."""
        file = self._text(shards, TEMPLATES)
        return tuple(line.replace("{c}", "{}") for line in lines_of(file) if line) if file is not None else ()


def _packed(shards: list[Path]) -> Iterator[PackedImage]:
    """The samples of all tars."""
    for shard in shards:
        key = ""
        try:
            # Not compressed: so no member is larger than the tar that it lies in.
            with tarfile.open(shard, "r:") as tar:
                for key, parts in _samples(tar, shard):
                    yield _image(shard, key, parts)
                check_end(tar)
        except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
            last = f"after sample {key!r}" if key else "at its beginning"
            raise InvalidInput(f"{shard} cannot be read {last} ({error}); copy or download it again") from None


def _samples(tar: tarfile.TarFile, shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members, by extension, of each sample: members that follow each other and have one name up to its first
    dot."""
    key, parts = "", dict[str, bytes]()
    for member in tar:
        check_member(member, shard)
        if not member.isreg():
            continue
        name, extension = key_and_extension(member.name)
        if name != key and parts:
            yield key, parts
            parts = {}
        key = name
        if extension in parts:
            raise InvalidInput(f"{shard}: sample {key!r} has two members .{extension}; write the tar again")
        if extension == "cls" or extension in IMAGE_MEMBERS:
            content = tar.extractfile(member)
            assert content is not None  # a regular file
            parts[extension] = content.read()
        else:
            parts.setdefault(extension, b"")  # of no use here: not read, only counted as a part of its sample
    if parts:
        yield key, parts


def _image(shard: Path, key: str, parts: dict[str, bytes]) -> PackedImage:
    images = [name for name in IMAGE_MEMBERS if name in parts]
    if len(images) != 1 or "cls" not in parts:
        raise InvalidInput(
            f"{shard}: sample {key!r} has the members {', '.join(f'.{name}' for name in parts)}; each needs one image "
            f"({', '.join(IMAGE_MEMBERS)}) and a .cls with the number of its class"
        )
    label = parts["cls"][: LONGEST_LABEL + 1].strip()
    if not re.fullmatch(rb"\d{1,9}", label):
        raise InvalidInput(f"{shard}: sample {key!r} has the .cls {label[:LONGEST_LABEL]!r}; give the class's number")
    return PackedImage.of_file(parts[images[0]], label.decode())
