"""A sweep's own records as every look at it needs them: sweep.json and events.jsonl, told from damaged ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sweeplab.specs import InvalidInput
from sweeplab.storage.files import ANOTHER_COPY, read_lines, read_object


def section(whole: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a record of which nothing but words for people depends; empty where it is none."""
    part = whole.get(name)
    return part if isinstance(part, dict) else {}


def original_victim(victim: Any) -> dict[str, Any]:
    """The victim of a record, or, where a sweep cleans the best trial of another one, the victim behind it."""
    found = victim if isinstance(victim, dict) else {}
    while inner := section(found, "sweep"):
        found = section(inner, "victim")
    return found


class _Part(BaseModel):
    """Other fields are there too, and are read as specs where they are needed."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Search(_Part):
    asr_ceiling: float


class _Method(_Part):
    kind: str


class _Resources(_Part):
    keep_checkpoints: int = 0


class _SweepSpec(_Part):
    search: _Search
    method: _Method
    epochs: int
    resources: _Resources = _Resources()


class _Images(_Part):
    target_rows: list[int]
    num_classes: int | None = Field(default=None, ge=1)


class _Header(_Part):
    """Fields with a default may be lacking: older versions, and imported tables, have none."""

    name: str
    digest: str
    spec: _SweepSpec
    contents: dict[str, str]
    planned_trials: int
    parameters: list[str]
    log_parameters: list[str]
    protocol: str
    target: str
    victim_name: str
    identity: str = ""
    environment: dict[str, str] = {}
    changes: dict[str, int] = {}
    reruns: list[int] = []
    images: _Images = _Images(target_rows=[])


def read_header(path: Path) -> dict[str, Any]:
    """A sweep.json, once its shape is known to be right.

    Raises:
        InvalidInput: where it is damaged; the message names the file and the first field.
    """
    header = read_object(path)
    try:
        _Header.model_validate(header)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise InvalidInput(f"{path} is damaged ({place}: {fault['msg']}); {ANOTHER_COPY}") from None
    return header


EVENT_FIELDS = {"time_ms": int, "event": str, "trial": int, "attempt": int, "before_until_ms": int, "workers": int}
"""Types of what is read of events, where it is there."""

OF_TRIALS = ("trial began", "trial ended", "attempt failed", "stop decided", "points lost")


def _is_event(line: dict[str, Any]) -> bool:
    """Whether a line of events.jsonl is one; any other was damaged, and is passed over like a torn one."""
    needed = {"time_ms", "event"} | ({"trial"} if line.get("event") in OF_TRIALS else set())
    if line.get("event") == "stop decided":
        needed |= {"point", "reason"}
    has_types = all(type(line[name]) is kind for name, kind in EVENT_FIELDS.items() if name in line)
    return needed <= set(line) and has_types


def read_events(path: Path) -> list[dict[str, Any]]:
    """The whole lines of an events.jsonl, in order; empty where there is no file."""
    return [line for line in read_lines(path) if _is_event(line)]
