"""Image-caption pairs as img2dataset downloads them in its layout `files`: a folder and a table of statuses a shard."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sweeplab.data.broken import MaxBroken
from sweeplab.data.class_folders import IMAGE_SUFFIXES
from sweeplab.data.pair_columns import PairColumns, absolute, below, refuse_outside, strings
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput, Spec

SUCCESS = "success"
"""The status of a row that was downloaded."""


class Img2Dataset(Spec):
    """A folder that img2dataset wrote with `output_format="files"`: 00000/000000000.jpg with .txt and .json beside it,
    and 00000.parquet. Shards and the keys in them are read in the order of their names.

    What was not downloaded, and what has no caption, is left out, and counted in a note.
    """

    NOT_IN_DIGEST = frozenset({"path", "max_broken"})

    kind: Literal["img2dataset"] = "img2dataset"
    path: Path
    """img2dataset's `output_folder`."""
    num_pairs: int | None = Field(default=None, ge=1)
    """Pairs to use, from the top; None: all."""
    sample: Sample | None = None
    """A random part of these pairs; None: all of them."""
    max_broken: MaxBroken = 0.01
    """Share of these rows, a fraction, that may be broken (no caption, or an image that is missing, empty or cannot be
    decoded): others stand in for them."""

    def read(self, data_home: Path) -> PairTable:
        """Read the pairs; looks up every image file, decodes none.

        Args:
            data_home: not used, the folder lies where `path` says.

        Raises:
            InvalidInput: if the folder is of another layout, a table of statuses cannot be read, as an interrupted
                download leaves it, there are fewer pairs than `num_pairs` or the sample, or an image that was
                downloaded is missing or empty.
        """
        columns = self._columns(self._shards())
        return columns.table(columns.used(self.num_pairs, self.sample), self.max_broken)

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs: tables of statuses, captions, and the images that are used.

        Raises:
            InvalidInput: as `read` does.
        """
        shards = self._shards()
        columns = self._columns(shards)
        table = columns.table(columns.used(self.num_pairs, self.sample), self.max_broken)
        needed = [path for shard in shards for path in shard.needed]
        return list(dict.fromkeys([*needed, *table.files()]))

    def example(self) -> str:
        """Absolute path of the first image that is used; without a sample, reads no more shards than that takes.

        Raises:
            InvalidInput: if the folder is of another layout, or holds no pair.
        """
        if self.sample is None:
            for name in self._names():
                if (shard := _read_shard(absolute(self.path), name)).images:
                    paths = [str(absolute(self.path) / image) for image in shard.images]
                    return next(filter(os.path.isfile, paths), paths[0])
        columns = self._columns(self._shards())
        return columns.example(columns.used(self.num_pairs, self.sample))

    def below(self, root: Path) -> Self:
        """The same pairs in a copy of all files that lies below `root`: /data/1.jpg at root/data/1.jpg."""
        return self.replace(path=below(root, self.path))

    def _names(self) -> list[str]:
        """The names of the shards, sorted."""
        path = absolute(self.path)
        try:
            entries = list(os.scandir(path))
        except OSError:
            raise InvalidInput(f"path={path} is no folder that can be read; give img2dataset's output_folder") from None
        names = sorted(entry.name for entry in entries if entry.name.isdecimal() and entry.is_dir())
        if not names:
            if any(entry.name.endswith(".tar") for entry in entries):
                raise InvalidInput(f"path={path} holds tar shards, img2dataset's layout `webdataset`; use PairsShards")
            if any(entry.name.endswith(".parquet") for entry in entries):
                raise InvalidInput(
                    f"path={path} holds Parquet files and no folder of a shard (00000); img2dataset's layout `parquet` "
                    "is read by PairsParquet(path=..., image_column='jpg')"
                )
            raise InvalidInput(
                f"path={path} holds no folder of a shard (00000); give the output of img2dataset with "
                "output_format='files'"
            )
        return names

    def _shards(self) -> "list[_Shard]":
        return [_read_shard(absolute(self.path), name) for name in self._names()]

    def _columns(self, shards: "list[_Shard]") -> PairColumns:
        path = absolute(self.path)
        columns = PairColumns(
            path,
            strings([name for shard in shards for name in shard.images], path),
            strings([text for shard in shards for text in shard.captions], path),
            path,
            notes=tuple(_notes(path, shards)),
        )
        if not len(columns.images):
            why = f": {columns.notes[0]}" if columns.notes else ""
            raise InvalidInput(
                f"path={path} holds no image with a caption{why}; img2dataset takes captions with caption_col"
            )
        return columns


@dataclass(frozen=True)
class _Shard:
    """What is read of a shard."""

    images: list[str]
    """Relative to the output folder, sorted."""
    captions: list[str]
    failed: Counter[str]
    """Rows without an image, by their status."""
    num_without_caption: int
    needed: list[str]
    """Absolute paths of the files, beside the images that are used, without which it cannot be read."""


def _read_shard(path: Path, name: str) -> _Shard:
    """A shard, by its table of statuses, or by its files where that is gone."""
    found = {os.path.splitext(file)[0]: file for file in _image_files(path / name)}
    table = path / f"{name}.parquet"
    failed: Counter[str] = Counter()
    needed = [str(table)]
    if table.is_file():
        rows = sorted(_statuses(table))
        failed.update(status for _, status, _ in rows if status != SUCCESS)
        pairs = [(key, caption) for key, status, caption in rows if status == SUCCESS]
    else:
        pairs, needed = [(key, None) for key in sorted(found)], [str(path / name / file) for file in found.values()]
    refuse_outside([key for key, _ in pairs], table)
    named, without = [], 0
    for key, given in pairs:
        caption, source = (given, None) if given is not None else _caption_beside(path / name / key)
        needed += [source] if source else []
        if caption.strip():
            named.append((f"{name}/{found.get(key, f'{key}.jpg')}", caption))
        else:
            without += 1
    return _Shard([image for image, _ in named], [text for _, text in named], failed, without, needed)


def _image_files(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(IMAGE_SUFFIXES))
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be read ({error}); check its permissions") from None


def _statuses(table: Path) -> Iterator[tuple[str, str, str | None]]:
    """Key, status and caption of a shard's rows; no caption where the table has no such column."""
    try:
        with pq.ParquetFile(table) as parquet:
            names = [name for name in ("key", "status", "caption") if name in parquet.schema_arrow.names]
            rows = parquet.read(columns=names).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{table} is not readable as Parquet ({str(error).strip()}); an interrupted download leaves such a shard: "
            "run img2dataset again, which goes on, or remove the shard"
        ) from None
    for row in rows:
        key, status, caption = row.get("key"), row.get("status"), row.get("caption")
        if not isinstance(key, str) or not isinstance(status, str) or not isinstance(caption, str | None):
            raise InvalidInput(f"{table} has no texts `key`, `status` and `caption`, as img2dataset writes them")
        yield key, status, (caption or "") if "caption" in names else None


def _caption_beside(image: Path) -> tuple[str, str | None]:
    """The caption in the .txt file of an image, else in its .json file, and the file; empty where there is none.

    Args:
        image: path without suffix.
    """
    text, facts = image.with_name(f"{image.name}.txt"), image.with_name(f"{image.name}.json")
    try:
        if text.is_file():
            return text.read_text(encoding="utf-8"), str(text)
        if facts.is_file():
            caption = json.loads(facts.read_bytes()).get("caption")
            return caption if isinstance(caption, str) else "", str(facts)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"the caption of {image} cannot be read ({error}); mend or remove it") from None
    return "", None


def left_out(path: Path | str, failed: Counter[str], num_rows: int) -> str:
    """The note on rows that were not downloaded, counted by their status, of all that were to be."""
    kinds = ", ".join(f"{status} {count:,}" for status, count in failed.most_common())
    return f"{failed.total():,} of the {num_rows:,} rows of {path} were not downloaded and are left out ({kinds})"


def _notes(path: Path, shards: list[_Shard]) -> Iterator[str]:
    """What is left out."""
    kept, failed = sum(len(shard.images) for shard in shards), sum((shard.failed for shard in shards), Counter[str]())
    without = sum(shard.num_without_caption for shard in shards)
    total = kept + without + failed.total()
    if failed:
        yield left_out(path, failed, total)
    if without:
        yield f"{without:,} of the {total:,} rows of {path} have no caption and are left out"
