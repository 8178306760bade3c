"""Poisoned pairs in the layout of CleanCLIP's scripts: a CSV with the poisoned rows first, their images beside it."""

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from torchvision.transforms.v2 import functional as tv

from sweeplab.attacks.poisoning import PoisonPlan
from sweeplab.data.images import load_image
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput

MARK = "backdoor"
"""What the authors' code looks for in an image's path to tell poisoned rows."""


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
    word = f"{plan.target}_{plan.attack.kind}".replace("/", "_").replace(" ", "_")
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

    Their images are triggered already, so such a file is trained on as it is (`PairsCSV`), with `count=0` poisons of
    our own; these rows say which pairs a detection has to find.

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
