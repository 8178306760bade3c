"""Poisoned pairs in the layout of CleanCLIP's scripts: a CSV with the poisoned rows first, their images beside it."""

import csv
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from pydantic import Field
from torchvision.transforms.v2 import functional as tv

from sweeplab.attacks.poisoning import AttackField, PoisonPlan, mix_in
from sweeplab.data.images import load_image
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput, Spec

MARK = "backdoor"
"""What the authors' code looks for in an image's path to tell poisoned rows."""


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
            InvalidInput: if the file cannot be read, has fewer rows than the table, or none is poisoned.
        """
        rows = [row for row in poisoned_rows(self.path).tolist() if row < len(table)]
        if not rows:
            raise InvalidInput(
                f"none of the {len(table)} pairs of {self.path} is marked as poisoned; mark rows by a column "
                f"'is_backdoor' or by {MARK!r} in the image's path"
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

    def few(self, clean: PairTable, training: PairTable, plan: PoisonPlan, *, count: int, seed: int) -> PoisonPlan:
        """`count` of the poisons in place of pairs of a clean table."""
        return mix_in(plan, training, clean, count=count, seed=seed)


def export_poisoned_csv(table: PairTable, plan: PoisonPlan, folder: Path, *, image_size: int) -> Path:
    """Write `backdoor_<target>_<attack>_<pairs>_<poisons>.csv` and the triggered images, as PNG, at the model's size.

    The rows are index, image, caption: poisoned ones first, then the clean ones in order. Clean images stay where
    they are; their paths are absolute. Triggered pixels are those that training here sees.

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
        writer.writerow(["", "image", "caption"])
        for row in plan.rows:
            pixels = torch.from_numpy(load_image(table.image(row), image_size))[None]
            picture = f"{row:08d}.png"
            tv.to_pil_image(plan.stamp_rows(pixels, [row])[0]).save(images / picture)
            writer.writerow([row, os.path.join(images.name, picture), captions[row]])
        for row in range(len(table)):
            if row not in poisoned:
                writer.writerow([row, table.image(row), table.caption(row)])
    unfinished.rename(folder)
    return folder / name


def poisoned_rows(path: Path) -> np.ndarray:
    """Which rows of a poisoned CSV, made here or by the authors' scripts, carry poison.

    Their images are triggered already, so such a file is trained on as it is: `PairsCSV` with `ImportedPoison`.

    Returns:
        Row numbers from 0, ascending: those with `is_backdoor` true where there is such a column, else those whose
        image path contains "backdoor".

    Raises:
        InvalidInput: if the file cannot be read or has neither column.
    """
    try:
        table = pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True))
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidInput(f"{path} cannot be read as CSV ({error})") from None
    if "is_backdoor" in table.column_names:
        values = [str(value).lower() in ("1", "true", "1.0") for value in table["is_backdoor"].to_pylist()]
    elif "image" in table.column_names:
        values = [MARK in str(value) for value in table["image"].to_pylist()]
    else:
        raise InvalidInput(f"{path} has neither a column 'is_backdoor' nor 'image'; found {table.column_names}")
    return np.flatnonzero(values)
