"""What `sweeplab compare` is asked to compare: sweeps and victims of the home by name, tables by path."""

import contextlib
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from sweeplab.evaluation.measure import Evaluation
from sweeplab.ranking.compared import (
    TEST_IMAGES,
    TEST_SETS,
    Compared,
    ComparedSweep,
    ComparedTable,
    ComparedVictim,
    fields_of,
)
from sweeplab.ranking.leaderboard import rank_trials
from sweeplab.ranking.victims import VictimRow, victims_of
from sweeplab.records import MINIATURE, Sampler, SweepRecord, is_miniature
from sweeplab.specs import InvalidInput, digest_of
from sweeplab.storage.files import read_object
from sweeplab.storage.sweep_records import original_victim
from sweeplab.sweep_folder import SweepFolder, is_set_aside, sweeps_of

DYNAMICS = "dynamics.csv"
"""What `sweeplab examine --to` writes over checkpoints."""


def gather(home: Path, names: Sequence[str]) -> tuple[list[Compared], list[str]]:
    """What was asked for, each once, in the order of the names; of a pattern by name, numbers in it as numbers. And
    notes of what the patterns left out: see `_is_meant`.

    Args:
        home: where the sweeps and victims are.
        names: of sweeps and victims, as patterns too; paths of tables, or of folders that hold a `dynamics.csv`.

    Raises:
        InvalidInput: for a name that nothing has, a sweep or victim of which nothing is measured yet, or a table that
            cannot be read.
    """
    folders, victims = sweeps_of(home)[0], victims_of(home)[0]
    known = {folder.name for folder in folders}
    found: dict[str, Compared] = {}
    imported: dict[Any, str] = {}
    notes: list[str] = []
    for pattern in names:
        path = Path(pattern)
        if path.exists() and (path.suffix in TABLES or (path / DYNAMICS).exists()):
            one = _table(path)
            found[f"table {one.name}"] = one
            continue
        sweeps = {folder.name: folder for folder in folders if _matches(folder, pattern)}
        rows = {row.folder.name: row for row in victims if any(fnmatchcase(n, pattern) for n in _names(row))}
        left = [name for name in sweeps if not _is_meant(pattern, name, known)]
        left += [name for name, row in rows.items() if pattern != name and not _is_meant(pattern, row.victim)]
        chosen = sorted((f for name, f in sweeps.items() if name not in left), key=lambda f: _in_number_order(f.name))
        trained = [row for name, row in rows.items() if name not in left]
        trained.sort(key=lambda row: _in_number_order(row.victim))
        shown = [rows[name].victim if name in rows else name for name in left]
        if not chosen and not trained:
            raise InvalidInput(_nothing(home, pattern, shown, _known(folders, victims)))
        if left:
            notes.append(f"{pattern!r} leaves out {', '.join(shown)}: {ONLY_NAMED}")
        for folder in chosen:
            found.setdefault(f"sweep {folder.name}", _sweep(folder, imported))
        for row in trained:
            found.setdefault(f"victim {row.folder.name}", _victim(row, is_one_of_several(row, victims)))
    return list(found.values()), notes


ONLY_NAMED = (
    "a pattern takes miniatures only if it says `-smoke`, and other searches of a sweep only if it ends as they do"
)


def _is_meant(pattern: str, name: str, sweeps: Collection[str] = ()) -> bool:
    """Whether a pattern that fits a name means what has it: a miniature only if it says so, and what `--search` made of
    a sweep only if it ends in that, where the sweep is there as its script has it too.

    With them the figure of a family would be refused, since a miniature has other test images, or show a sweep twice.

    Args:
        pattern: or the name itself.
        name: of a sweep or victim.
        sweeps: the names of all.
    """
    if pattern == name:
        return True
    if is_miniature(name):
        return MINIATURE in pattern
    base, dash, word = name.rpartition("-")
    return pattern.endswith(dash + word) if word in get_args(Sampler) and base in sweeps else True


def _nothing(home: Path, pattern: str, left: Collection[str], known: str) -> str:
    """Why nothing is compared."""
    path = Path(pattern)
    if left:
        return f"{pattern!r} fits {', '.join(left)} alone: {ONLY_NAMED}"
    if path.is_dir():
        return f"{path} holds no {DYNAMICS}, which `sweeplab examine FOLDER --to` writes over a victim's epochs"
    if path.exists():
        return f"{path} is no table: its name ends in none of {', '.join(TABLES)}"
    return (
        f"no sweep and no victim is named {pattern!r}, and it is no table: give names of {home}, patterns such "
        f"as 'verma-fig6-*', or folders that `sweeplab examine --to` wrote; known: {known}"
    )


def _known(folders: Sequence[SweepFolder], victims: Sequence[VictimRow]) -> str:
    names = dict.fromkeys([*(folder.name for folder in folders), *(row.victim for row in victims)])
    return ", ".join(names) or "none yet"


def _names(row: VictimRow) -> tuple[str, str]:
    """By which a victim is asked for: its own, and its folder's."""
    return row.victim, row.folder.name


def _in_number_order(name: str) -> list[str | float]:
    """Sorts fig4-5 before fig4-10, and fig4-0.05 before fig4-0.1."""
    return [float(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", name))]


def _matches(folder: SweepFolder, pattern: str) -> bool:
    """A sweep that `--fresh` set aside has to be named in full."""
    return folder.name == pattern or (fnmatchcase(folder.name, pattern) and not is_set_aside(folder))


def is_one_of_several(row: VictimRow, victims: Sequence[VictimRow]) -> bool:
    """Whether another victim has its name, and another digest."""
    return sum(other.victim == row.victim for other in victims) > 1


def _sweep(folder: SweepFolder, imported: dict[Any, str]) -> ComparedSweep:
    """A sweep; `imported` gives the victims of tables from elsewhere a name, one to those of equal accuracy and ASR,
    of equally many images."""
    header, record = folder.header(), folder.record()
    spec, contents = header["spec"], header["contents"]
    name, is_imported = record.victim_name, "imported" in header
    if is_imported:  # its victim has no name, and of the images nobody knows more than their numbers
        measured = _counts(record)
        rates = record.victim.accuracy, record.victim.asr
        name = imported.setdefault((*rates, *measured.values()), f"victim of {folder.name}")
    else:
        measured = _measured(spec["evaluation"], record.victim.accuracy_n, record.protocol)
        measured |= {TEST_IMAGES: contents["test"]} if "test" in contents else {}
    victim = original_victim(spec.get("victim"))
    fields = dict(fields_of({**spec, "victim": victim} if victim else spec))
    board = rank_trials(record, folder.outcomes)
    return ComparedSweep(
        name=folder.name,
        victim=name,
        fields=fields,
        measured=measured,
        record=record,
        board=board,
        is_imported=is_imported,
    )


def _counts(record: SweepRecord) -> dict[str, str]:
    """Of a table from elsewhere, as far as it has counts."""
    measurements = [record.victim, *(point.measurement for trial in record.trials for point in trial.points)]
    for one in measurements:
        if one.is_counted:
            return {IMAGE_COUNTS: f"{one.accuracy_n:,}", "numbers of triggered images": f"{one.asr_n:,}"}
    return {}


def _victim(row: VictimRow, is_ambiguous: bool) -> ComparedVictim:
    if row.measurement is None:
        raise InvalidInput(f"victim {row.victim!r} has not been measured yet; its script's command goes on")
    spec = read_object(row.folder / "victim.json", spec=dict)["spec"]
    measured = _measured(spec["evaluation"], row.measurement.accuracy_n, spec["protocol"])
    return ComparedVictim(
        name=row.folder.name if is_ambiguous else row.victim,
        victim=row.victim,
        fields=dict(fields_of(spec, "victim")),
        measured=measured,
        row=row,
    )


def _measured(evaluation: Any, num_images: int, protocol: str) -> dict[str, str]:
    """What has to be equal beside the content of the test images."""
    known = {IMAGE_COUNTS: f"{num_images:,}", "protocols": protocol}
    with contextlib.suppress(InvalidInput):  # of an older version
        spec = Evaluation.model_validate(evaluation)
        known["prompts"] = digest_of(spec.templates)
        known["precisions"] = spec.precision
        known[TEST_SETS] = digest_of(Evaluation(test=spec.test, sample=spec.sample).canonical())
    return known


IMAGE_COUNTS = "numbers of test images"

TABLES = (".csv", ".parquet")


def _table(path: Path) -> ComparedTable:
    """A table over checkpoints, with the fields of the victim whose checkpoints they are, where it is still there."""
    file = path / DYNAMICS if path.is_dir() else path
    try:
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file} is no table that can be read ({error})") from None
    if "epoch" not in table or table.empty:
        raise InvalidInput(f"{file} has no column epoch, or no rows; `sweeplab examine FOLDER --to` writes {DYNAMICS}")
    name = path.name if path.is_dir() else path.stem if path.name != DYNAMICS else path.absolute().parent.name
    checkpoint = Path(str(table["checkpoint"].iloc[0])) if "checkpoint" in table else Path()
    record = next((parent / "victim.json" for parent in checkpoint.parents if (parent / "victim.json").exists()), None)
    spec = read_object(record, spec=dict)["spec"] if record is not None else {}
    return ComparedTable(
        name=name, victim=str(spec.get("name", "")), fields=dict(fields_of(spec, "victim")) if spec else {}, table=table
    )
