"""Specs: frozen, validated values that describe an experiment; JSON both ways; digests of what changes a result."""

import ast
import errno
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

SCHEMA_VERSION = 1
"""How digests are taken; part of every one. A class that comes to behave differently names that in its own `CHANGES`,
which touches the digests of the specs that hold it alone."""


LARGEST = 2**63 - 1
"""Whole numbers in specs lie within plus and minus this, as those of NumPy, torch and Arrow do."""
LONGEST = 100_000
"""Characters of a text in a spec."""
NARROWER: Mapping[str, Mapping[str, Any]] = {
    "bool": {"strict": True},
    "int": {"strict": True, "ge": -LARGEST, "le": LARGEST},
    "float": {"strict": True},
    "str": {"strict": True, "max_length": LONGEST},
}
"""Rules of all fields of specs, by their type. `strict`: no value is taken for one of another type, such as true for 1,
1 for true, or bytes for a text; a whole number is a real one too."""


def _narrow(schema: Any) -> None:
    """Add the rules of `NARROWER` to a core schema and to all schemas inside it; a field's own rules stay."""
    if isinstance(schema, (tuple, list)):
        for inner in schema:
            _narrow(inner)
    elif isinstance(schema, dict):
        kind = schema.get("type")
        for rule, value in NARROWER.get(kind, {}).items() if isinstance(kind, str) else ():
            schema.setdefault(rule, value)
        for key, inner in schema.items():
            if key not in ("default", "expected", "metadata"):
                _narrow(inner)


DONE, FAULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75
"""Exit codes of every command: done; failed; refused, with one message; interrupted, and the same command goes on."""


class InvalidInput(ValueError):
    """The user's input breaks a rule: the message says name, value, rule and remedy. Entry points print it and exit
    2."""


class DamagedCheckpoint(InvalidInput):
    """A checkpoint cannot be read: an earlier one, or the beginning, has to serve."""


class StorageFault(Exception):
    """A disk or object store did not take a write, or lost what it had: not the fault of what was being written. The
    work ends as interrupted, and the same command continues it once the storage is mended."""


class Unfinished(Exception):
    """The work is interrupted, nothing is lost, and the same command continues it. Entry points exit with 75."""


class ClusterLost(Unfinished):
    """The Ray cluster died or does not answer. This process cannot use Ray any more; the next one can."""


class Failed(Exception):
    """The work came to its end and none of it succeeded: every trial failed, or the one run did. Entry points print
    the reason and exit with 1."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class Spec(BaseModel):
    """Base of every value that describes an experiment: immutable, unknown fields refused, all faults in one message.

    A family of specs that can stand in one field (attacks, objectives, methods, data sources) tells its members apart
    by a `kind` field. Fields named in `NOT_IN_DIGEST` (places, names, machine resources) do not change the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False)

    NOT_IN_DIGEST: ClassVar[frozenset[str]] = frozenset()
    CHANGES: ClassVar[tuple[str, ...]] = ()
    """What the class has come to do differently since its first release, a sentence each. Their number is part of the
    digest of every spec that holds such a value, so that no run continues under another recipe than it began with."""
    FIRST_DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    """Defaults that have changed since, as they were at first: a digest leaves out the first default, not today's."""
    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Today's names of fields by those that scripts and records of older versions have for them."""
    CODE: ClassVar[str | None] = None
    """Digest of the source of a class that a user's script defines, part of every digest; None for the classes here."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Read a user's class when it is made: later, in another process, its file may be another one."""
        super().__pydantic_init_subclass__(**options)
        if cls.__module__.split(".")[0] != "sweeplab":
            cls.CODE = source_digest(cls)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler, /) -> CoreSchema:
        """Fields under `NARROWER`, which names no field and so holds for those that a user's class adds too."""
        schema = handler(source)
        _narrow(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: Any) -> Any:
        if not cls.RENAMED or not isinstance(values, Mapping):
            return values
        old = {new: values[name] for name, new in cls.RENAMED.items() if name in values}
        return {**{name: value for name, value in values.items() if name not in cls.RENAMED}, **old}

    @field_validator("*")
    @classmethod
    def _check_path(cls, value: Any) -> Any:
        return usable_path(value) if isinstance(value, Path) else value

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**{name: _plain(value) for name, value in fields.items()})
        except ValidationError as error:
            raise InvalidInput(describe_faults(type(self), error)) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Read plain values, such as `to_json` gave; faults raise InvalidInput, as in the constructor."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise InvalidInput(describe_faults(cls, error)) from None

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def changes(self) -> tuple[str, ...]:
        """The `CHANGES` that touch this value; a class whose changes touch some of its values alone chooses here."""
        return self.CHANGES

    def canonical(self) -> dict[str, Any]:
        """The fields that change a result, defaults left out: what a digest is taken of."""
        fields: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self.NOT_IN_DIGEST:
                continue
            held = _canonical_value(value)
            first = self.FIRST_DEFAULTS.get(name, field.get_default(call_default_factory=True))
            # Canonical forms are compared, so that a part that differs in its name or place alone is left out too.
            if name == "kind" or changes_of(value) or held != _canonical_value(first):
                fields[name] = held
        if self.changes():
            fields["version"] = 1 + len(self.changes())
        return fields if self.CODE is None else {**fields, "code": self.CODE}

    def digest(self, **contents: str) -> str:
        """Sixteen hexadecimal digits over the canonical fields and over `contents` (digests of data by content)."""
        return digest_of({"schema": SCHEMA_VERSION, "spec": self.canonical(), "contents": contents})

    def to_json(self) -> dict[str, Any]:
        """Every field as plain JSON values; `type(spec).model_validate(...)` reads it back."""
        return self.model_dump(mode="json")


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's own, in tuples and lists too; all else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list):
        return type(value)(_plain(item) for item in value)
    return value


LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes of a file's name and of a path, on Linux's file systems."""


def usable_path(path: Path) -> Path:
    """The path with its `~` written out.

    Raises:
        ValueError: if no file could ever be there.
    """
    try:
        path = path.expanduser()
        name = os.fsencode(path).decode()
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} begins in a home that this system does not know ({error})") from None
    except UnicodeError:
        raise ValueError(f"{str(path)!r} is no path: it is not UTF-8") from None
    if "\0" in name:
        raise ValueError(f"{str(path)!r} is no path: it holds a null character")
    if len(name.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise ValueError(
            f"{_short(str(path))} is no path: a name has at most {LONGEST_NAME} bytes, and a path {LONGEST_PATH}"
        )
    return path


def _canonical_value(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.canonical()
    if isinstance(value, Mapping):
        return {str(key): _canonical_value(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_canonical_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _parts(spec: Any, *, in_digest: bool = False) -> list[Any]:
    """The values that a spec or a collection of specs holds; with `in_digest` those that its digest is taken of."""
    if isinstance(spec, Mapping):
        return list(spec.values())
    if isinstance(spec, (tuple, list)):
        return list(spec)
    if isinstance(spec, Spec):
        left_out = spec.NOT_IN_DIGEST if in_digest else frozenset()
        return [getattr(spec, name) for name in type(spec).model_fields if name not in left_out]
    return []


def changes_of(spec: Any) -> dict[str, tuple[str, ...]]:
    """What has changed in the behaviour of a spec and its parts since their first release, by class name."""
    held = [item for part in _parts(spec, in_digest=True) for item in changes_of(part).items()]
    if isinstance(spec, Spec) and spec.changes():
        held.append((type(spec).__qualname__, spec.changes()))
    found: dict[str, tuple[str, ...]] = {}
    for name, sentences in held:  # of two values of a class each may be touched by other ones
        found[name] = tuple(dict.fromkeys((*found.get(name, ()), *sentences)))
    return found


def changes_since(spec: Any, known: Mapping[str, int]) -> tuple[str, ...]:
    """What has changed in the behaviour of a spec and its parts since a record was made, a sentence each.

    Args:
        spec: what the record tells of.
        known: the number of changes that the record's version knew, by class name; those that are left out had none.
    """
    return tuple(
        f"{name}: {sentence}"
        for name, sentences in changes_of(spec).items()
        for sentence in sentences[known.get(name, 0) :]
    )


def own_code(spec: Any) -> dict[str, dict[str, str | None]]:
    """Module and source digest of every class in a spec that a user's script defines, by the class's name."""
    found = {name: held for part in _parts(spec) for name, held in own_code(part).items()}
    if isinstance(spec, Spec) and type(spec).__module__.split(".")[0] != "sweeplab":
        found[type(spec).__qualname__] = {"module": type(spec).__module__, "code": type(spec).CODE}
    return found


def source_digest(cls: type) -> str | None:
    """Sixteen hexadecimal digits over a class's source and what it uses of its own file.

    Taken are the class and, of the same file's functions, classes and constants, those that it names, and those that
    they name in turn. Imported modules are not followed, and the rest of the script plays no part, so that a sweep's
    number of trials may change in the file that also defines its method.

    Returns:
        None where Python knows no source file: a class that was typed into an interactive session.
    """
    module = sys.modules.get(cls.__module__)
    try:
        text = Path(getattr(module, "__file__", None) or "").read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):
        return None
    defined = {name: node for node in tree.body for name in _names(node)}
    first = cls.__qualname__.split(".")[0]
    if first not in defined:
        return None
    used, waiting = {first}, [first]
    while waiting:
        for node in ast.walk(defined[waiting.pop()]):
            if isinstance(node, ast.Name) and node.id in defined and node.id not in used:
                used.add(node.id)
                waiting.append(node.id)
    parts = [ast.get_source_segment(text, defined[name]) or "" for name in sorted(used)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _names(node: ast.stmt) -> list[str]:
    """What a top-level statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def digest_of(value: Any) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a JSON value with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def regular_file(path: Path) -> Path:
    """The path itself.

    Raises:
        OSError: if no file is there, or a folder, a device or a pipe.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path


def file_digest(path: Path) -> str:
    """Sixteen hexadecimal digits of a file's SHA-256.

    Raises:
        OSError: if it cannot be read, or is none: a device may have no end, and a pipe no beginning.
    """
    with regular_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def one_of(known: Callable[[], tuple[type[Spec], ...]], needs: str, what: str) -> Any:
    """Annotation arguments for a field that holds one member of a family.

    Args:
        known: returns the family's tuple; read when a JSON object is resolved by its `kind`.
        needs: attribute that every member has; how a user's own member is recognised.
        what: the family's word in messages.
    """

    def resolve(value: Any) -> Any:
        if isinstance(value, Spec) and hasattr(value, needs):
            return value
        if isinstance(value, Mapping) and "kind" in value:
            for member in known():
                if member.model_fields["kind"].default == value["kind"]:
                    return member.model_validate(dict(value))
            raise ValueError(f"unknown {what} kind={_short(value['kind'])}; known: {', '.join(kinds(known()))}")
        known_ones = ", ".join(kinds(known()))
        raise ValueError(f"{_short(value)} is no {what}; give one of {known_ones}, or a spec with `{needs}`")

    return BeforeValidator(resolve)


def kinds(members: tuple[type[Spec], ...]) -> list[str]:
    """The `kind` words of a family."""
    return [member.model_fields["kind"].default for member in members]


AnySpec = SerializeAsAny[Spec]
"""A field that holds some member of a family; all the member's own fields are serialised."""


def describe_faults(cls: type[BaseModel], error: ValidationError) -> str:
    """All faults of one construction as a message: where, the value, the rule; unknown fields list the known ones."""
    lines = []
    for fault in error.errors(include_url=False):
        place = ".".join(str(part).removeprefix("constrained-") for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ").removeprefix(f"{cls.__name__}: ")
        if fault["type"] == "extra_forbidden":
            message = f"unknown field; known: {', '.join(cls.model_fields)}" if "." not in place else "unknown field"
            lines.append(f"{place}: {message}")
        elif not place:
            lines.append(message)
        elif fault["type"] == "value_error":
            lines.append(f"{place}: {message}")
        else:
            lines.append(f"{place}={_short(fault.get('input'))}: {message}{_example(cls, place, fault['type'])}")
    head = cls.__name__
    return f"{head}: {lines[0]}" if len(lines) == 1 else f"{head}: {len(lines)} faults\n  " + "\n  ".join(lines)


def _example(cls: type[BaseModel], place: str, fault: str) -> str:
    """A field's default, for a value of the wrong type, where it shows what would be right."""
    field = cls.model_fields.get(place)
    is_shown = field is not None and fault.endswith(("_type", "_parsing")) and not field.is_required()
    if field is None or not is_shown or not isinstance(field.default, (bool, int, float, str)):
        return ""
    return f"; its default is {field.default}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        return "a number of more digits than Python prints"
    return text if len(text) <= 80 else text[:77] + "..."


CONTAINER_SCHEMES = ("abfs", "abfss")
"""Their URLs name a container before an `@`: abfs://container@account.dfs.core.windows.net/folder."""


STORAGE_SCHEMES = ("s3", "gs", "gcs", *CONTAINER_SCHEMES, "hdfs", "viewfs", "file")
"""What `pyarrow.fs` opens."""


def check_storage_url(url: str) -> str:
    """The URL, which reaches records and logs, and so must hold no secret.

    Raises:
        ValueError: if it holds credentials, or options, among which they could be; for a scheme that nobody opens.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in STORAGE_SCHEMES:
        raise ValueError(f"{scheme}:// is no kind of storage that can be opened; known: {', '.join(STORAGE_SCHEMES)}")
    if not rest.strip("/"):
        raise ValueError(f"{url} names no bucket or folder")
    user = rest.partition("/")[0].rpartition("@")[0]
    if user and (scheme not in CONTAINER_SCHEMES or ":" in user):
        raise ValueError(
            "a storage URL holds no credentials, which would reach records; use the environment "
            "(AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if "?" in url:
        raise ValueError(
            "a storage URL holds no options after `?`, among which credentials would reach records; use the "
            "environment (AWS_ENDPOINT_URL for a server of your own, AWS_REGION)"
        )
    return url
