"""Data check: decode all that a script's sweep names before any GPU is taken, and say what is wrong or odd with it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sweeplab.attacks.poisoning import mentions
from sweeplab.clip_model import tokenizer
from sweeplab.data.broken import num_tolerated
from sweeplab.data.cores import usable_cores
from sweeplab.data.images import BrokenImage, Images, load_image
from sweeplab.data.tables import PairTable
from sweeplab.data.tar_members import content_at, openable
from sweeplab.experiment import CleaningSweep, CleanSample, PretrainedVictim, SelectedTrial
from sweeplab.specs import InvalidInput
from sweeplab.worker.inputs import Inputs

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Shows a bar: what is iterated over, what it is, and how many there are."""

AT_A_TIME = 4096
"""Images that wait to be decoded: each takes memory."""

TOKENISED = 4096
"""Captions that are tokenised at a time."""


@dataclass(frozen=True)
class Broken:
    """A row whose image is missing or cannot be decoded, or that has no caption."""

    row: int
    """From 1."""
    path: str
    reason: str


@dataclass(frozen=True)
class CaptionFacts:
    """Of the captions of a set of pairs."""

    tokens: tuple[int, int, int]
    """Fewest, median and most, the begin and the end among them."""
    num_full: int
    """Captions that fill the model's context, or are cut at its end."""
    num_naming_target: int | None
    """Captions that name the target label as a whole word; None where there is none."""
    num_repeated: int
    """Rows whose caption stands in an earlier row."""


@dataclass(frozen=True)
class SetReport:
    """What was found in one set of images."""

    name: str
    """The field that names it."""
    num_rows: int
    broken: tuple[Broken, ...]
    num_repeated: int
    """Rows whose file holds the same bytes as an earlier row's."""
    sizes: dict[str, int] = field(default_factory=dict)
    """How many files have each of the most frequent sizes, "500 x 375"."""
    captions: CaptionFacts | None = None
    """None for labelled images."""
    num_tolerated: int = 0
    """Rows that may be broken: see `max_broken` of sources of pairs."""

    @property
    def is_refused(self) -> bool:
        """Whether a sweep would not run on this set."""
        return len(self.broken) > self.num_tolerated

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        most = ", ".join(f"{size} ({count:,})" for size, count in self.sizes.items())
        lines = [
            f"{self.name}: {self.num_rows:,} rows, {len(self.broken):,} broken ({self.num_tolerated:,} tolerated), "
            f"{self.num_repeated:,} with the content of an earlier row; sizes: {most or 'none'}"
        ]
        if (found := self.captions) is not None:
            low, middle, high = found.tokens
            naming = "" if found.num_naming_target is None else f"; {found.num_naming_target:,} name the target"
            lines.append(
                f"  captions of {low} to {high} tokens (median {middle}), {found.num_full:,} fill or exceed the "
                f"context; {found.num_repeated:,} repeat an earlier one{naming}"
            )
        return lines + [f"  row {broken.row}: {broken.reason}" for broken in self.broken]


def check_data(sweep: CleaningSweep, data_home: Path, track: Track) -> list[SetReport]:
    """Decode every image of a sweep's pre-training pairs, cleaning pairs, test set, linear probe and targets, over all
    cores, and of those of the sweeps whose selected trials it cleans.

    Args:
        sweep: whose data are checked.
        data_home: where made and cached data lie.
        track: shows how far it is.

    Returns:
        A report a set, in the order in which they are used.

    Raises:
        InvalidInput: for what reading the tables alone refuses, missing files among it.
    """
    inputs = Inputs(data_home)
    architecture, protocol = sweep.victim.architecture, sweep.protocol
    sets: dict[str, PairTable | Images] = {}
    tolerated: dict[str, float] = {}
    for prefix, stage in _stages(sweep):
        if isinstance(stage.victim, PretrainedVictim):
            name = f"{prefix}victim.data"
            sets[name], tolerated[name] = _pairs(stage.victim.data, inputs)
        if not isinstance(stage.data, CleanSample) and (not prefix or stage.data != sweep.data):
            name = f"{prefix}data"
            sets[name], tolerated[name] = _pairs(stage.data, inputs)
        if not prefix or stage.evaluation != sweep.evaluation:
            sets[f"{prefix}evaluation.test"] = inputs.test(stage.evaluation)
            if stage.evaluation.probe is not None:
                sets[f"{prefix}evaluation.probe"] = stage.evaluation.probe.read(data_home)  # type: ignore[attr-defined]
        if (targets := inputs.targets(stage.trigger())) is not None:
            sets[f"{prefix}targeted images"] = targets.table
    tokenize = tokenizer(architecture, protocol)
    reports = []
    for name, images in sets.items():
        facts = None
        if isinstance(images, PairTable):
            facts = _captions(images, tokenize, sweep.victim.trigger().target)
        found = _images(name, images, architecture.image_size, track, facts)
        reports.append(replace(found, num_tolerated=num_tolerated(tolerated.get(name, 0.0), len(images))))
    return reports


def _stages(sweep: CleaningSweep) -> list[tuple[str, CleaningSweep]]:
    """The sweep and those whose selected trials it starts from, first what runs first, each with its fields' prefix."""
    stages = [("", sweep)]
    while isinstance(victim := stages[0][1].victim, SelectedTrial):
        stages.insert(0, (f"{stages[0][0]}victim.sweep.", victim.sweep))
    return stages


def _pairs(source: Any, inputs: Inputs) -> tuple[PairTable, float]:
    """All pairs of a source, however many are missing, and which share of them may be broken."""
    tolerated = getattr(source, "max_broken", None)
    if tolerated is None:
        return inputs.pairs(source), 0.0
    return inputs.pairs(source.replace(max_broken=1.0)), tolerated


def batched(rows: range, size: int) -> Iterable[range]:
    """Parts of at most so many rows."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _images(name: str, images: Images, size: int, track: Track, facts: CaptionFacts | None) -> SetReport:
    """Decode one set."""
    seen: set[bytes] = set()
    sizes: Counter[str] = Counter()
    broken: list[Broken] = []
    repeated = 0
    known = images.reasons() if isinstance(images, PairTable) else {}

    def look(row: int) -> tuple[int, bytes | None, str, str]:
        """Row, digest of its file, its size, and what is wrong with it."""
        if row in known:
            return row, None, "", known[row]
        path = images.image(row)
        try:
            content = hashlib.blake2b(content_at(path), digest_size=16).digest()
            with Image.open(openable(path)) as file:
                measured = f"{file.width} x {file.height}"
            load_image(path, size)
        except BrokenImage as error:
            return row, None, "", error.args[0]
        except InvalidInput as error:
            return row, None, "", str(error)
        except Exception as error:  # noqa: BLE001 - Pillow's decoders raise many kinds; each is told with its row
            return row, None, "", f"{path} cannot be decoded as an image ({error})"
        return row, content, measured, ""

    with ThreadPoolExecutor(usable_cores()) as pool:
        looked = (found for rows in batched(range(len(images)), AT_A_TIME) for found in pool.map(look, rows))
        for row, content, measured, reason in track(looked, name, len(images)):
            if content is None:
                broken.append(Broken(row + 1, str(images.image(row)), reason))
                continue
            sizes[measured] += 1
            repeated += content in seen
            seen.add(content)
    return SetReport(name, len(images), tuple(broken), repeated, dict(sizes.most_common(5)), facts)


def _captions(table: PairTable, tokenize: Callable[[list[str]], Any], target: str | None) -> CaptionFacts:
    """Look at the captions of one set."""
    lengths, texts = [], table.captions.to_pylist()
    context = 0
    for start in range(0, len(texts), TOKENISED):
        tokens = tokenize(texts[start : start + TOKENISED])
        context = tokens.shape[1]
        lengths.append(tokens.argmax(1).numpy() + 1)  # the end has the largest number of all tokens
    counts = np.concatenate(lengths)
    naming = None if target is None else sum(mentions(text, target) for text in texts)
    return CaptionFacts(
        (int(counts.min()), int(np.median(counts)), int(counts.max())),
        int((counts >= context).sum()),
        naming,
        len(texts) - len(set(texts)),
    )
