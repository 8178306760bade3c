"""Victims as results: what their folders say of accuracy, ASR or PSR, and of what the objective found, as a table."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from sweeplab.ranking.leaderboard import in_percent
from sweeplab.records import Measurement, Point
from sweeplab.specs import InvalidInput
from sweeplab.storage.files import read_object
from sweeplab.storage.locks import victim_work
from sweeplab.storage.run_folder import RunFolder
from sweeplab.terminal import Name

VictimState = Literal["running", "interrupted", "finished"]


COUNTS = ("accuracy_k", "accuracy_n", "asr_k", "asr_n")


@dataclass(frozen=True)
class VictimRow:
    """One victim; epoch and numbers are those of the selected epoch, or, before it is selected, of the last one."""

    victim: str
    """Its name."""
    digest: str
    state: VictimState
    epoch: float
    """0 before the first is done."""
    epochs: int
    """Of its schedule."""
    trained_epochs: float
    """So many are done."""
    measurement: Measurement | None
    """None before the start was measured."""
    measures: Literal["ASR", "PSR"]
    """What stands in the place of the ASR."""
    found: dict[str, float]
    """Counts at that epoch of the pairs that the objective treats apart, and of poisons among them; see `Point.train`.
    """
    seconds: float
    """Of training and measuring, over all epochs."""
    points: tuple[Point, ...]
    """All of them: accuracy, ASR and counts over pre-training."""
    folder: Path

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; rates are fractions."""
        values = {**dataclasses.asdict(self), "folder": str(self.folder)}
        del values["measurement"]
        known = self.measurement
        return {
            **values,
            "points": [
                {
                    "epoch": point.epoch,
                    "accuracy": point.measurement.accuracy,
                    "asr": point.measurement.asr,
                    **found_in(point),
                }
                for point in self.points
            ],
            "accuracy": known.accuracy if known else None,
            "asr": known.asr if known else None,
            "counts": {name: getattr(known, name) for name in COUNTS} if known else None,
        }


def read_victim(folder: Path) -> VictimRow:
    """A victim by its folder.

    Raises:
        InvalidInput: if its records are damaged.
    """
    record = read_object(folder / "victim.json", spec=dict, digest=str)
    spec, run = record["spec"], RunFolder(folder)
    try:
        name, epochs, poisoning = str(spec["name"]), int(spec["epochs"]), spec["poisoning"].get("kind")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(
            f"{folder / 'victim.json'} is damaged ({error!r}); restore it or remove the folder"
        ) from None
    result, points = run.result(), run.points()
    chosen = points[-1] if points else None
    if result is not None:
        chosen = next((point for point in points if point.epoch == result.get("selected_epoch")), chosen)
    is_over, is_locked = result is not None, victim_work(folder).is_locked()
    return VictimRow(
        victim=name,
        digest=record["digest"],
        state="running" if is_locked else "finished" if is_over else "interrupted",
        epoch=chosen.epoch if chosen is not None else 0.0,
        epochs=epochs,
        trained_epochs=points[-1].epoch if points else 0.0,
        measurement=chosen.measurement if chosen is not None else None,
        measures="PSR" if poisoning == "targeted-images" else "ASR",
        found=found_in(chosen) if chosen is not None else {},
        seconds=sum(point.train_seconds + point.evaluate_seconds for point in points),
        points=tuple(points),
        folder=folder,
    )


def found_in(point: Point) -> dict[str, float]:
    """Counts of the pairs that the objective treats apart; see `Point.train`."""
    return {name: count for name, count in point.train.items() if name.endswith(("_pairs", "_poisons"))}


def victims_of(home: Path) -> tuple[list[VictimRow], dict[Path, str]]:
    """All victims of a home by name: those whose records can be read, and the damaged ones with what is wrong."""
    sound, damaged = [], {}
    for file in sorted((home / "victims").glob("[!.]*/victim.json")):
        try:
            sound.append(read_victim(file.parent))
        except InvalidInput as error:
            damaged[file.parent] = str(error)
    return sound, damaged


def render_victims(rows: Sequence[VictimRow]) -> Table:
    """Victims for the terminal; percentages with one decimal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("victim")
    table.add_column("state", no_wrap=True)
    for heading in ("acc. %", "ASR %", "epoch"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("found")
    for row in rows:
        known = row.measurement
        table.add_row(
            Name(row.victim),
            row.state,
            in_percent(known.accuracy if known else None),
            in_percent(known.asr if known else None) + (" (PSR)" if row.measures == "PSR" else ""),
            f"{row.epoch:g} of {row.trained_epochs if row.state == 'finished' else row.epochs:g}",
            Text(found_in_words(row.found)),
        )
    return table


def found_in_words(found: dict[str, float]) -> str:
    """Such as `368 poisons among 5,000 flagged pairs`; empty where the objective treats all pairs alike."""
    words = []
    for name, count in found.items():
        if not name.endswith("_pairs"):
            continue
        what = name.removesuffix("_pairs")
        poisons = found.get(f"{what}_poisons")
        among = "" if poisons is None else f"{poisons:,.0f} poisons among "
        words.append(f"{among}{count:,.0f} {what} pairs")
    return "; ".join(words)
