"""Comparison: what differs between the spec of a sweep that was begun and the one that is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeplab.specs import InvalidInput, Spec, changes_since


@dataclass(frozen=True)
class Comparison:
    """How a spec differs from that of a record."""

    since: tuple[str, ...]
    """What has changed in the behaviour of what it holds since the record was made."""
    defaults: list[str]
    """Fields that have today's default, and in the record the one of an older version."""
    fields: list[str]
    """All other fields that differ."""


def compare(record: dict[str, Any], spec: Spec) -> Comparison:
    """Compare a spec with that of sweep.json or victim.json."""
    try:
        before = type(spec).model_validate(record["spec"]).to_json()  # with the fields that are new since then
    except InvalidInput:
        before = record["spec"]
    lines = differences(before, spec.to_json(), spec)
    moved = tuple(f"{path}{end}" for path in changed_defaults(before, spec) for end in (":", "."))
    return Comparison(
        changes_since(spec, record.get("changes", {})),
        [f"{line} (the default has changed)" for line in lines if line.startswith(moved)],
        [line for line in lines if not line.startswith(moved)],
    )


def changed_defaults(before: Any, spec: Any, path: str = "") -> list[str]:
    """Paths of fields that have today's default, where plain JSON values of before have the first one."""
    if not isinstance(spec, (Spec, Mapping)) or not isinstance(before, dict):
        return []
    values = {name: getattr(spec, name) for name in type(spec).model_fields} if isinstance(spec, Spec) else spec
    found = []
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if isinstance(spec, Spec) and name in spec.FIRST_DEFAULTS:
            first, field = spec.FIRST_DEFAULTS[name], type(spec).model_fields[name]
            was_first = before.get(name) == (first.to_json() if isinstance(first, Spec) else first)
            if was_first and value == field.get_default(call_default_factory=True) != first:
                found.append(where)
                continue
        found += changed_defaults(before.get(name), value, where)
    return found


def differences(old: Any, new: Any, spec: Any = None, path: str = "") -> list[str]:
    """Paths at which two JSON values differ, with both values.

    Args:
        old: of the record.
        new: of what is asked for.
        spec: what `new` was made of: fields that its specs leave out of their digests, places among them, are left out.
        path: of the values.
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
    hidden = spec.NOT_IN_DIGEST if isinstance(spec, Spec) else frozenset()
    lines = []
    for name in sorted((set(old) | set(new)) - hidden):
        inner = spec.get(name) if isinstance(spec, Mapping) else getattr(spec, name, None)
        lines += differences(old.get(name), new.get(name), inner, f"{path}.{name}" if path else name)
    return lines
