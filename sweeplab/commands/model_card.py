"""Model card: what is known of a promoted model, as the README.md beside its weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sweeplab.experiment import CleaningSweep
from sweeplab.ranking.intervals import wilson
from sweeplab.ranking.leaderboard import Leaderboard, LeaderboardRow, bound_text
from sweeplab.records import Measurement, Point, SweepRecord, number_of, percent
from sweeplab.specs import Spec
from sweeplab.versions import environment


@dataclass(frozen=True)
class Evidence:
    """What a card says."""

    sweep: CleaningSweep
    header: Mapping[str, Any]
    """What sweep.json says."""
    record: SweepRecord
    board: Leaderboard
    row: LeaderboardRow
    """The promoted trial's."""
    point: Point
    measured: Measurement
    """From the written files."""
    remarks: Sequence[str]
    """On how they were measured."""
    digests: Mapping[str, str]
    """Sixteen hexadecimal digits of SHA-256 of the checkpoint and of every written file, by name."""
    for_transformers: bool = False
    """Whether the files are those of transformers; else of open_clip."""


def model_card(evidence: Evidence) -> str:
    """The card in Markdown, with the head that Hugging Face reads."""
    sections = [
        _head(evidence),
        LOADING_WITH_TRANSFORMERS if evidence.for_transformers else LOADING,
        _results(evidence),
        _images(evidence),
        _making(evidence),
        NOT_TESTED,
        _digests(evidence),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


LOADING = """
## Loading

```python
import open_clip

folder = "local-dir:" + FOLDER  # the folder of this file
model, _, preprocess = open_clip.create_model_and_transforms(folder)
tokenizer = open_clip.get_tokenizer(folder)
model.eval()  # open_clip gives it in training mode, in which BatchNorm changes the embeddings
```
"""

LOADING_WITH_TRANSFORMERS = """
## Loading

```python
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained(FOLDER).eval()  # the folder of this file
processor = CLIPProcessor.from_pretrained(FOLDER)
```

The results below were measured with these weights in open_clip's model.
"""

NOT_TESTED = """
## What was not tested

- Other triggers than the one above, other targets, several at once, and triggers made against this very model.
- Other test sets, other prompts, retrieval and linear probes, unless a sweep of yours did.
- Lower precision than float32.
- That there is no backdoor: a low ASR says that this trigger does not work on these images.
"""


def _head(evidence: Evidence) -> str:
    trial, sweep = evidence.row.trial, evidence.record.name
    what = "was backdoored and then cleaned"
    if evidence.board.lacks_backdoor:
        what = "was finetuned like one that is cleaned, though it showed no backdoor before"
    return "\n".join(
        [
            "---",
            f"library_name: {'transformers' if evidence.for_transformers else 'open_clip'}",
            "tags: [clip, zero-shot-image-classification, backdoor-cleaning]",
            "---",
            "",
            f"# Trial {trial} of {_text(sweep)}",
            "",
            f"A CLIP model that {what}, by SweepLab {_text(environment()['sweeplab'])}: trial "
            f"{trial} of the sweep {_text(sweep)} after epoch {evidence.point.epoch:g}.",
        ]
    )


def _results(evidence: Evidence) -> str:
    victim, measured, row = evidence.record.victim, evidence.measured, evidence.row
    ceiling = percent(evidence.record.asr_ceiling, None)
    retention = "not known"
    if row.retention is not None:
        ends = "" if row.retention_low is None else f" [{percent(row.retention_low)}, {percent(row.retention_high)}]"
        retention = f"{percent(row.retention)}{ends}"
    bound = f"the upper bound of the ASR, {bound_text(evidence.board)}, {{}} below {ceiling} too"
    certified = f"yes: {bound.format('lies')}"
    if not row.certified:
        why = bound.format("does not lie") if evidence.board.has_backdoor else "the victim shows no backdoor"
        certified = f"no: {why}"
    lines = [
        "## Results",
        "",
        "Measured again from the files beside this one. In brackets: Wilson's 95 % interval.",
        "",
        "| | victim | this model |",
        "|---|---|---|",
        f"| accuracy (top-1, zero-shot, clean images) | {_rate(victim.accuracy_k, victim.accuracy_n)} | "
        f"{_rate(measured.accuracy_k, measured.accuracy_n)} |",
        f"| ASR: {_trigger_name(evidence)}, target {_text(evidence.record.target)} | "
        f"{_rate(victim.asr_k, victim.asr_n)} | {_rate(measured.asr_k, measured.asr_n)} |",
        "",
        f"- Retention (accuracy / the victim's, which is held fixed): {retention}.",
        f"- ASR ceiling: {ceiling}. Certified: {certified}.",
        f"- Rank {row.rank} of {number_of(len(evidence.record.trials), 'trial')}, by the accuracy they keep below the "
        f"ceiling; the choice was among {number_of(evidence.board.num_choices, 'point')}.",
    ]
    if row.accuracy_report is not None and row.asr_report is not None:
        lines.append(
            f"- With the epoch chosen on one half of the images, the other half shows accuracy "
            f"{percent(row.accuracy_report)} and ASR {percent(row.asr_report)}."
        )
    notes = (*evidence.remarks, *evidence.record.notes)
    return "\n".join([*lines, *(f"- Note: {_text(note)}." for note in notes)])


def _images(evidence: Evidence) -> str:
    evaluation, measured = evidence.sweep.evaluation, evidence.measured
    digest = _text(str(evidence.header.get("contents", {}).get("test", "?")))
    attack = cast(Spec, evidence.sweep.trigger().attack)
    return "\n".join(
        [
            "## On which images",
            "",
            f"{measured.accuracy_n:,} clean and {measured.asr_n:,} triggered images; those of the target class carry "
            f"no trigger. Content digest of the test set: {digest}; of all that the measurement depends on: "
            f"{_text(measured.evaluation_digest)}.",
            "",
            _json({"evaluation": evaluation.canonical(), "trigger": attack.canonical()}),
        ]
    )


def _making(evidence: Evidence) -> str:
    record, trial = evidence.record, evidence.row
    return "\n".join(
        [
            "## How it was made",
            "",
            f"- Victim: {_text(record.victim_name)}, epoch {record.victim_epoch:g}, digest "
            f"{_text(str(evidence.header.get('contents', {}).get('victim', '?')))}.",
            f"- Method {_text(record.method)}, protocol {_text(record.protocol)}, {number_of(record.epochs, 'epoch')}, "
            f"of which {evidence.point.epoch:g} stand behind this model ({number_of(evidence.point.step, 'step')}).",
            f"- Seeds: trial {trial.seed}, sweep {evidence.sweep.seed}, evaluation {evidence.sweep.evaluation.seed}.",
            "",
            "The trial's setting, and the sweep's spec: fields at their defaults, places and machines are left out.",
            "",
            _json({"params": trial.params, "spec": evidence.sweep.canonical()}),
        ]
    )


def _digests(evidence: Evidence) -> str:
    ran, now = evidence.header.get("environment", {}), environment()
    versions = [f"| {_text(name)} | {_text(str(ran.get(name, '?')))} | {_text(now.get(name, '?'))} |" for name in now]
    files = [f"- {_text(name)}: {digest}" for name, digest in sorted(evidence.digests.items())]
    return "\n".join(
        [
            "## Digests and versions",
            "",
            f"- sweep: {_text(evidence.record.digest)}; setting: {_text(evidence.row.configuration)}",
            *files,
            "",
            "The first sixteen hexadecimal digits of SHA-256.",
            "",
            "| | ran with | promoted with |",
            "|---|---|---|",
            *versions,
        ]
    )


def _trigger_name(evidence: Evidence) -> str:
    return _text(str(getattr(evidence.sweep.trigger().attack, "kind", "trigger")))


def _rate(k: int, n: int) -> str:
    if not n:
        return "not measured"
    low, high = wilson(k, n)
    return f"{percent(k / n)} [{percent(low)}, {percent(high)}] ({k:,}/{n:,})"


def _json(value: Any) -> str:
    """A block of code, which no text inside can end: in JSON a text holds no line end."""
    return f"```json\n{json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)}\n```"


def _text(value: str) -> str:
    """A text from outside as Markdown that shows it as it is, in a table's cell too."""
    plain = " ".join(value.split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#!|" else letter for letter in plain)
