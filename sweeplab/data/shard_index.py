"""Shard index: where the images of a tar lie and what their captions are, read once and kept in the data home."""

import io
import json
import os
import posixpath
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sweeplab.data.images import NEVER_DEEP, holds_deep_grey
from sweeplab.data.tar_members import (
    IMAGE_MEMBERS,
    Shard,
    TarMember,
    check_end,
    check_member,
    key_and_extension,
)
from sweeplab.specs import InvalidInput, digest_of
from sweeplab.storage.checkpoint_store import MARK
from sweeplab.storage.files import write_atomically
from sweeplab.storage.locks import file_lock, lock_path

FOLDER = "shard-index"
"""Below the data home."""
LAYOUT = 1
"""Of the files there, part of their names. Raise it when that changes."""
SCHEMA = pa.schema(
    [
        ("name", pa.large_string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("caption", pa.large_string()),
        ("deep_grey", pa.bool_()),
    ]
)
PROCESS_BYTES = 2 * 2**30
"""Tars of so many bytes take about as long to index as a process to start: 10,000 pairs of 30 KB a second."""
DOWNLOADS = 8
"""Remote shards that are fetched at a time."""


@dataclass(frozen=True)
class ShardIndex:
    """The pairs of one tar."""

    table: pa.Table
    """Of `SCHEMA`, mapped: a member's name, the place of its content and its bytes; the caption; whether it is a grey
    picture of more than 8 bits."""
    num_without_image: int
    """Samples that are left out."""
    num_without_caption: int
    """Likewise."""


def indexes_of(shards: Sequence[Shard], data_home: Path, what: str) -> list[ShardIndex]:
    """The indexes of tars, in order. Those that are lacking are made first, over all cores, with a progress bar where
    somebody looks; a process that is killed is followed by one that makes the rest.

    Args:
        shards: to be read; remote ones are fetched for it, once a node.
        data_home: where indexes are kept.
        what: the source, for the progress bar.

    Raises:
        InvalidInput: if a tar is damaged or holds what does not belong there, or the home may not be written.
        StorageFault: if the disk is full, or a tar cannot be fetched.
    """
    folder = Path(os.path.abspath(data_home.expanduser())) / FOLDER
    places = [folder / f"{digest_of([LAYOUT, shard.location, shard.version])}.arrow" for shard in shards]
    if missing := _missing(shards, places):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"data_home={folder.parent} cannot hold the index of {what} ({error}); mend the permissions there, or "
                "choose another home with SWEEPLAB_HOME"
            ) from None
        with file_lock(lock_path(folder / digest_of([place.name for place in places]))):
            if missing := _missing(shards, places):  # no other process was quicker
                _make(missing, what)
    found = [_known(place) for place in places]
    return [index if index is not None else _index(shard) for index, shard in zip(found, shards, strict=True)]


def _missing(shards: Sequence[Shard], places: list[Path]) -> dict[Path, Shard]:
    return {place: shard for place, shard in zip(places, shards, strict=True) if _known(place) is None}


def _make(missing: dict[Path, Shard], what: str) -> None:
    """Write indexes: of remote shards in threads, which wait for the network; of others in processes where there is
    much to read, since tarfile holds the interpreter's lock."""
    # Here, so that training needs neither.
    import joblib
    from joblib.externals.loky import get_reusable_executor

    from sweeplab.terminal import tracked

    if any(MARK in shard.location for shard in missing.values()):
        workers, prefer = DOWNLOADS, "threads"
    else:
        num_bytes = sum(os.path.getsize(shard.location) for shard in missing.values())
        workers, prefer = max(1, min(joblib.cpu_count(), num_bytes // PROCESS_BYTES)), "processes"
    parallel = joblib.Parallel(n_jobs=workers, prefer=prefer, return_as="generator_unordered")
    made = parallel(joblib.delayed(_write)(shard, place) for place, shard in missing.items())
    try:
        for _ in tracked(made, f"indexing {what}", len(missing)):
            pass
    finally:
        if workers > 1 and prefer == "processes":
            get_reusable_executor().shutdown(wait=True)  # else they wait for more work


def _write(shard: Shard, place: Path) -> None:
    index = _index(shard)
    facts = {"without_image": index.num_without_image, "without_caption": index.num_without_caption}
    table = index.table.replace_schema_metadata({"facts": json.dumps(facts)})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomically(place, sink.getvalue(), durable=False)


def _known(place: Path) -> ShardIndex | None:
    """What a file holds; None where it is not there, or of another shape, as a home that was copied here may hold."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(place))).read_all()
        facts = json.loads((table.schema.metadata or {})[b"facts"])
        found = ShardIndex(table, int(facts["without_image"]), int(facts["without_caption"]))
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None
    has_nulls = any(column.null_count for column in table.columns)
    return found if table.schema.equals(SCHEMA) and not has_nulls else None


def _index(shard: Shard) -> ShardIndex:
    """Read a tar's headers and captions."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    ends = False
    try:
        with shard.open() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            # Not compressed: so members can be read from where they lie, and none is larger than the tar.
            for member in tar:
                check_member(member, shard.location)
                if member.isreg():
                    _add(samples, member, shard)
            ends = True
            check_end(tar)
            return _read(tar, samples, shard)
    except (tarfile.TarError, EOFError, OSError, OverflowError) as error:
        # Where it breaks off inside a sample, the one before is the last good one.
        good = list(samples) if ends else list(samples)[:-1]
        last = f"after sample {good[-1]!r}" if good else "at its beginning"
        raise InvalidInput(
            f"{shard.location} cannot be read {last} ({error}); copy or download it again, or leave it out. Tars must "
            "not be compressed"
        ) from None


def _add(samples: dict[str, dict[str, tarfile.TarInfo]], member: tarfile.TarInfo, shard: Shard) -> None:
    """Put a member to its sample."""
    key, extension = key_and_extension(posixpath.normpath(member.name))
    parts = samples.setdefault(key, {})
    if extension in parts:
        raise InvalidInput(f"{shard.location}: sample {key!r} has two members .{extension}; write the tar again")
    parts[extension] = member


def _read(tar: tarfile.TarFile, samples: dict[str, dict[str, tarfile.TarInfo]], shard: Shard) -> ShardIndex:
    """The samples that have an image and a caption."""
    rows: list[tuple[str, int, int, str, bool]] = []
    without_image = without_caption = 0
    for key, parts in samples.items():
        images = [extension for extension in IMAGE_MEMBERS if extension in parts]
        if len(images) > 1:
            raise InvalidInput(
                f"{shard.location}: sample {key!r} has {len(images)} images (.{', .'.join(images)}); each needs one"
            )
        if not images:
            without_image += 1
            continue
        if not (caption := _caption(tar, key, parts, shard)).strip():
            without_caption += 1
            continue
        found = parts[images[0]]
        member = TarMember(shard, posixpath.normpath(found.name), found.offset_data, found.size)
        is_deep = f".{images[0]}" not in NEVER_DEEP and holds_deep_grey(member)
        rows.append((member.name, member.offset, member.size, caption, is_deep))
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    try:
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{shard.location} holds the text {error.object!r}, which is not Unicode; mend or remove its sample"
        ) from None
    return ShardIndex(pa.table(arrays, SCHEMA), without_image, without_caption)


def _caption(tar: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo], shard: Shard) -> str:
    """The text of the .txt member, else `caption` in the .json member; empty where there is none."""
    try:
        if "txt" in parts:
            return _content(tar, parts["txt"]).decode("utf-8-sig")
        if "json" in parts:
            caption = json.loads(_content(tar, parts["json"])).get("caption")
            return caption if isinstance(caption, str) else ""
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidInput(
            f"{shard.location}: the caption of sample {key!r} cannot be read ({error}); captions are UTF-8"
        ) from None
    return ""


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None  # a regular file
    return content.read()
