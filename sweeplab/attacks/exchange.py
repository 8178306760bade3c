"""Poisoned pairs in the layout of CleanCLIP's scripts: a CSV with the poisoned rows first, their images beside it."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from pydantic import Field
from torchvision.transforms.v2 import functional as tv

from sweeplab.attacks.poisoning import AttackField, Planted, PoisonPlan, mix_in
from sweeplab.data.delimited import refuse_swallowed
from sweeplab.data.images import load_image
from sweeplab.data.tables import PairTable
from sweeplab.data.tar_members import ImagePlace
from sweeplab.specs import InvalidInput, Spec, digest_of, regular_file

MARK = "backdoor"
"""In the name of poisoned images, or of their folder, which in the authors' layout is `backdoor_images_...`."""
COLUMN = "is_backdoor"
FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("0", "0.0", "false", "f", "no", "n"), False),
}
"""What the column may hold, in any case."""


class ImportedPoison(Spec):
    """Poison that is in the pairs already: a CSV in the layout of CleanCLIP's scripts, made here or by them.

    Stands where a `Poisoning` stands, beside `data=PairsCSV(...)` of the same file. Nothing is stamped and no caption
    changed; the plan knows which rows are poisoned (see `poisoned_rows`), so that detection, CLIPScores and safe sets
    can be judged, and clean samples be drawn. `attack` and `target` say what the file was made with: the ASR is
    measured with them.
    """

    NOT_IN_DIGEST = frozenset({"path"})

    kind: Literal["imported"] = "imported"
    path: Path
    """The CSV file that the pairs are read from."""
    attack: AttackField
    target: str = Field(default="banana", min_length=1)

    def plan(self, table: PairTable, data_home: Path) -> PoisonPlan:
        """The rows that are poisoned, with the captions that they have.

        Raises:
            InvalidInput: if the file cannot be read, or none of its pairs is poisoned, or all are.
        """
        rows = [row for row in poisoned_rows(self.path).tolist() if row < len(table)]
        if len(rows) in (0, len(table)):
            raise InvalidInput(
                f"{'all' if rows else 'none'} of the {len(table):,} pairs of {self.path} are marked as poisoned; mark "
                f"the rows that are, and they alone, in a column {COLUMN!r} (yes or no), or by {MARK!r} in the name of "
                f"the image; poisoned rows come first in an export, so that a small num_pairs takes none but them"
            )
        return PoisonPlan(
            attack=self.attack,
            target=self.target,
            indices=tuple(rows),
            captions=tuple(table.caption(row) for row in rows),
            seed=0,
            num_pairs=len(table),
            table_digest=table.digest,
            stamps=False,
        )

    def contents(self, num_pairs: int) -> dict[str, str]:
        """For a digest: which of the first `num_pairs` rows are poisoned, where they were told otherwise at first."""
        rows, first = (_below(told(self.path), num_pairs) for told in (poisoned_rows, _first_told_rows))
        return {"poisons": digest_of(rows)} if rows != first else {}

    def subset_for_cleaning(
        self, clean: PairTable, planted: Callable[[], Planted], *, count: int, seed: int
    ) -> PoisonPlan:
        """`count` of the poisons that were planted in place of pairs of a clean table."""
        return mix_in(planted(), clean, count=count, seed=seed)


def export_poisoned_csv(table: PairTable, plan: PoisonPlan, folder: Path, *, image_size: int) -> Path:
    """Write `backdoor_<target>_<attack>_<pairs>_<poisons>.csv` and the triggered images, as PNG, at the model's size.

    The rows are index, image, caption, is_backdoor (1 or 0): poisoned ones first, then the clean ones in order. Clean
    images stay where they are; their paths are absolute. Triggered pixels are those that training here sees.

    Args:
        table: the training table, added poisons included.
        plan: which of its rows are poisoned.
        folder: is made; must not exist, so that nothing is mixed.
        image_size: side of the model's input, pixels.

    Returns:
        The CSV file.
    """
    if folder.exists():
        raise InvalidInput(f"{folder} exists; give a new folder")
    word = "_".join(part for part in (plan.target, plan.attack.kind) if part).replace("/", "_").replace(" ", "_")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    images = unfinished / f"{MARK}_images_{word}"
    images.mkdir(parents=True)
    captions = plan.caption_changes()
    poisoned = set(plan.rows)
    name = f"{MARK}_{word}_{len(table)}_{len(plan.rows)}.csv"
    with (unfinished / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "image", "caption", COLUMN])
        for row in plan.rows:
            pixels = torch.from_numpy(load_image(table.image(row), image_size))[None]
            picture = f"{row:08d}.png"
            tv.to_pil_image(plan.stamp_rows(pixels, [row])[0]).save(images / picture)
            writer.writerow([row, os.path.join(images.name, picture), captions[row], 1])
        for row in range(len(table)):
            if row not in poisoned:
                writer.writerow([row, _named(table.image(row), row, unfinished), table.caption(row), 0])
    unfinished.rename(folder)
    return folder / name


def _named(place: ImagePlace, row: int, folder: Path) -> str:
    """How the CSV file names a clean image."""
    if isinstance(place, str):
        return place
    (folder / "images").mkdir(exist_ok=True)
    name = f"images/{row:08d}{os.path.splitext(place.name)[1]}"
    (folder / name).write_bytes(place.read())
    return name


def poisoned_rows(path: Path) -> np.ndarray:
    """Which rows of a poisoned CSV, made here or by the authors' scripts, carry poison.

    Their images are triggered already, so such a file is trained on as it is: `PairsCSV` with `ImportedPoison`.

    Returns:
        Row numbers from 0, ascending: those with `is_backdoor` true where there is such a column, else those whose
        image has "backdoor" in its own name, or lies directly in a folder `backdoor_images...`, as the authors' scripts
        name it. (Their code looks for the word anywhere in the path: in a project's folder of that name, every row
        would be poisoned.)

    Raises:
        InvalidInput: if the file cannot be read, has neither column, or a flag is unknown.
    """
    table = _read(path, COLUMN, "image")
    if COLUMN in table.column_names:
        flags = [FLAGS.get(text.strip().lower()) for text in table[COLUMN].to_pylist()]
        if None in flags:
            row = flags.index(None)
            raise InvalidInput(
                f"{path}: row {row + 1} has {COLUMN}={table[COLUMN][row].as_py()!r}, and {flags.count(None):,} of "
                f"{len(flags):,} rows are like that; give yes or no, true or false, t or f, 1 or 0"
            )
        return np.flatnonzero(np.array(flags, dtype=bool))
    if "image" in table.column_names:
        places = [os.path.split(text) for text in table["image"].to_pylist()]
        return np.flatnonzero(
            [MARK in name or os.path.basename(folder).startswith(f"{MARK}_images") for folder, name in places]
        )
    raise InvalidInput(f"{path} has neither a column {COLUMN!r} nor 'image'; found {table.column_names}")


def _first_told_rows(path: Path) -> np.ndarray:
    """Which rows the first release took for poisoned: by three spellings of a flag, or the word anywhere in a path."""
    table = _read(path, COLUMN, "image")
    if COLUMN in table.column_names:
        return np.flatnonzero([text.lower() in ("1", "true", "1.0") for text in table[COLUMN].to_pylist()])
    return np.flatnonzero([MARK in text for text in table["image"].to_pylist()])


def _below(rows: np.ndarray, num_pairs: int) -> list[int]:
    return [row for row in rows.tolist() if row < num_pairs]


def _read(path: Path, *columns: str) -> pa.Table:
    """A CSV file, those columns as they are written."""
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.large_string()))
    try:
        table = pyarrow.csv.read_csv(
            regular_file(path), parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=convert
        )
        _ = table.column_names  # decoded when they are asked for
    except pa.ArrowInvalid as error:
        refuse_swallowed(path, -1)  # says more where that is the reason
        raise InvalidInput(f"{path} cannot be read as CSV ({error})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as CSV ({error})") from None
    refuse_swallowed(path, len(table))
    return table
