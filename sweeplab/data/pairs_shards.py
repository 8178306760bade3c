"""Image-caption pairs in tar shards, as img2dataset's layout `webdataset` and webdataset itself write them."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field

from sweeplab.data.broken import MaxBroken, refuse_too_many
from sweeplab.data.img2dataset import left_out
from sweeplab.data.pair_columns import absolute, below, texts, used_rows
from sweeplab.data.sampling import Sample
from sweeplab.data.shard_index import ShardIndex, indexes_of
from sweeplab.data.tables import PairTable
from sweeplab.data.tar_members import Members, Shard, in_number_order
from sweeplab.specs import InvalidInput, Spec, usable_path
from sweeplab.storage.checkpoint_store import MARK, Storage
from sweeplab.storage.remote_files import check_file_url, is_web

MOST_SHARDS = 1_000_000
"""That a pattern stands for."""


def _place(value: Any) -> Any:
    """A URL as text, anything else as a path."""
    if isinstance(value, str):
        return check_file_url(value) if MARK in value else usable_path(Path(value))
    return value


Place = Annotated[Path | str, BeforeValidator(_place)]
"""A path, or a URL."""


class PairsShards(Spec):
    """Tar files of samples: an image (.jpg, .png or .webp) and its caption in a .txt, or as `caption` in a .json, of
    the same name. Shards are read in the order of their names, of a list in its order.

    Images stay in the tars and are read from where they lie. Nothing is unpickled or written out; links, and paths that
    lead out of a tar, are refused. What has no image, as downloads that failed, or no caption, is left out, and counted
    in a note. An epoch takes the shards in a random order, see `EpochBatches`.
    """

    NOT_IN_DIGEST = frozenset({"path", "max_broken"})

    kind: Literal["shards"] = "shards"
    path: Place | tuple[Place, ...]
    """A folder of .tar files, or a pattern of them such as cc3m/{00000..00331}.tar, or several of either. Each may be a
    URL: s3://, gs:// or abfs://, and https:// for patterns and single tars; credentials come from the environment."""
    num_pairs: int | None = Field(default=None, ge=1)
    """Pairs to use, from the top; None: all."""
    sample: Sample | None = None
    """A random part of these pairs; None: all of them."""
    max_broken: MaxBroken = 0.01
    """Share of these rows, a fraction, that may be broken (no caption, or an image that is missing, empty or cannot be
    decoded): others stand in for them."""

    def read(self, data_home: Path) -> PairTable:
        """Read the pairs; decodes no image.

        Args:
            data_home: where the index of each shard is kept, so that a shard is read through once.

        Raises:
            InvalidInput: if there is no shard, one is damaged or holds what does not belong there, there are fewer
                pairs than `num_pairs` or the sample, or the images of more than `max_broken` of them are empty.
            StorageFault: if an object store or server does not answer, or the disk is full.
        """
        with ThreadPoolExecutor(16) as pool:
            shards = list(pool.map(Shard.at, self._locations()))
        what = self._said()
        indexes = indexes_of(shards, data_home, what)
        notes = tuple(_notes(what, shards, indexes))
        counts = [len(index.table) for index in indexes]
        if not sum(counts):
            why = f": {notes[0]}" if notes else ""
            raise InvalidInput(
                f"path={what} holds no image with a caption{why}; a sample is a .jpg, .png or .webp and a .txt or "
                ".json of the same name (img2dataset takes captions with caption_col)"
            )
        rows = used_rows(sum(counts), what, self.num_pairs, self.sample)
        table = pa.concat_tables([index.table.replace_schema_metadata() for index in indexes])
        numbers = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
        if len(rows) < len(table):
            table, numbers = table.take(rows), numbers[rows]
        sizes = table["size"].to_numpy()
        names = texts(table["name"].chunks)
        empty = {
            int(row): f"{shards[numbers[row]].location}/{names[int(row)]} is empty"
            for row in np.flatnonzero(sizes == 0)
        }
        refuse_too_many(empty, len(table), self.max_broken, what)
        pairs = PairTable.of(
            "",
            _with_shards(names, shards, numbers),
            texts(table["caption"].chunks),
            sizes,
            deep_grey=table["deep_grey"].to_numpy(),
            notes=notes,
            members=Members.of(shards, numbers, table["offset"].to_numpy()),
        )
        return pairs.with_broken(empty)

    def files(self) -> list[str]:
        """Absolute paths of all that `read` needs: the shards, but for those that every node fetches itself.

        Raises:
            InvalidInput: if there is no shard.
        """
        return [place for place in dict.fromkeys(self._locations()) if MARK not in place]

    def example(self) -> str | None:
        """Absolute path of the first shard that is a file; None where all are remote.

        Raises:
            InvalidInput: as `files` does.
        """
        return next(iter(self.files()), None)

    def below(self, root: Path) -> Self:
        """The same pairs in a copy of all files that lies below `root`: /data/1.tar at root/data/1.tar."""
        places = [place if isinstance(place, str) else below(root, place) for place in self._places()]
        return self.replace(path=tuple(places) if isinstance(self.path, tuple) else places[0])

    def _places(self) -> tuple[Path | str, ...]:
        return self.path if isinstance(self.path, tuple) else (self.path,)

    def _said(self) -> str:
        """The places, for messages."""
        first, *others = self._places()
        return f"{first}" + (f" and {len(others):,} more" if others else "")

    def _locations(self) -> list[str]:
        """Absolute path or URL of every shard, in order."""
        places = self._places()
        if not places:
            raise InvalidInput("path=() names no shard; give a folder of .tar files, or a pattern such as {00..31}.tar")
        return [location for place in places for location in _shards_at(place)]


def _shards_at(place: Path | str) -> list[str]:
    """The tars that a place stands for: a tar, a folder of them, or a pattern of either."""
    where = place.rstrip("/") if isinstance(place, str) else str(absolute(place))
    is_remote = MARK in where
    named = [where] if not is_remote and os.path.exists(where) else expanded(where)
    tars = [tar for one in named for tar in ([one] if _is_tar(one) else _tars_in(one))]
    if not is_remote and (gone := [tar for tar in tars if not os.path.isfile(tar)]):
        patterns = "; of patterns only braces are known: give the folder, or {00000..00331}.tar" if "*" in where else ""
        raise InvalidInput(
            f"path={place} is not all there: {len(gone):,} of {len(tars):,} shards are missing, the first {gone[0]}; "
            f"give those that are there, or restore them{patterns}"
        )
    return tars


def _is_tar(where: str) -> bool:
    return where.endswith(".tar") and (MARK in where or not os.path.isdir(where))


def _tars_in(folder: str) -> list[str]:
    """The tars in a folder, in the order of their numbers."""
    if is_web(folder):
        raise InvalidInput(
            f"path={folder} is a web address that names no .tar, and nobody lists what a web server has; give the "
            "shards, as in .../{00000..00331}.tar"
        )
    try:
        names = Storage(folder).names() if MARK in folder else os.listdir(folder)
    except OSError:
        raise InvalidInput(
            f"path={folder} is neither a .tar file nor a folder that can be read; give a folder of .tar files, or a "
            "pattern such as cc3m/{00000..00331}.tar"
        ) from None
    tars = sorted((name for name in names if name.endswith(".tar") and name[0] not in "._"), key=in_number_order)
    if not tars:
        raise InvalidInput(f"path={folder} is a folder without .tar files; give the folder that holds them")
    return [f"{folder}/{name}" for name in tars]


def expanded(pattern: str) -> list[str]:
    """What braces stand for, as in a shell: {00000..00331} for the numbers between, {train,val} for each.

    Raises:
        InvalidInput: if they stand for too many.
    """
    inner = re.search(r"\{([^{}]*)\}", pattern)
    if inner is None:
        return [pattern]
    before, after = pattern[: inner.start()], pattern[inner.end() :]
    if bounds := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inner[1]):
        first, last = int(bounds[1]), int(bounds[2])
        width = max(map(len, bounds.groups())) if any(len(b) > 1 and b[0] == "0" for b in bounds.groups()) else 0
        if abs(last - first) >= MOST_SHARDS:
            raise InvalidInput(f"{pattern} stands for more than {MOST_SHARDS} shards; mend the numbers")
        step = 1 if last >= first else -1
        words = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    elif "," in inner[1]:
        words = inner[1].split(",")
    else:
        raise InvalidInput(f"{pattern}: {inner[0]} is neither numbers, as {{00..31}}, nor a list, as {{train,val}}")
    rest = expanded(after)
    if len(words) * len(rest) > MOST_SHARDS:
        raise InvalidInput(f"{pattern} stands for more than {MOST_SHARDS} shards; mend the numbers")
    return [before + word + end for word in words for end in rest]


def _with_shards(names: pa.LargeStringArray, shards: Sequence[Shard], numbers: np.ndarray) -> pa.LargeStringArray:
    """SHARD/MEMBER, the same wherever shards lie."""
    files = pa.array([shard.name for shard in shards], pa.large_string())
    return pc.binary_join_element_wise(files.take(pa.array(numbers)), names, pa.scalar("/", pa.large_string()))


def _notes(what: str, shards: Sequence[Shard], indexes: Sequence[ShardIndex]) -> Iterator[str]:
    """What is left out."""
    failed: Counter[str] = Counter()
    for shard in shards:
        failed.update(_failures(shard))
    without_image = sum(index.num_without_image for index in indexes)
    without_caption = sum(index.num_without_caption for index in indexes)
    samples = sum(len(index.table) for index in indexes) + without_image + without_caption
    if failed:
        yield left_out(what, failed, samples + failed.total())
    if without_image:
        yield f"{without_image} of the {samples} samples of {what} have no image and are left out"
    if without_caption:
        yield f"{without_caption} of the {samples} samples of {what} have no caption and are left out"


def _failures(shard: Shard) -> dict[str, int]:
    """How many downloads failed, by the file 00000_stats.json that img2dataset leaves beside 00000.tar; nothing where
    there is none, or for a remote shard."""
    if MARK in shard.location:
        return {}
    try:
        with open(f"{shard.location.removesuffix('.tar')}_stats.json", encoding="utf-8") as file:
            found = json.load(file)
        counts = {name: found.get(name, 0) for name in ("failed_to_download", "failed_to_resize")}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: count for name, count in counts.items() if isinstance(count, int) and count > 0}
