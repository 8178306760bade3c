"""Any value in any field, any path where a path belongs: accepted, or refused in one message; never a traceback."""

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from complete_sweeps import complete_sweeps, parts, with_value, write_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeplab import cli
from sweeplab.experiment import CleaningSweep, apply_overrides
from sweeplab.specs import LARGEST, InvalidInput, Spec
from sweeplab.storage.checkpoint_store import Storage
from sweeplab.sweep import prepare

EXAMPLES = int(os.environ.get("ANY_VALUE_EXAMPLES", "250"))
"""Of each property; more of them by hand."""


@dataclass(frozen=True)
class Place:
    """A value inside a complete sweep."""

    root: Spec
    path: tuple[Any, ...]

    def overriding(self) -> str | None:
        """How an override names it; None where it lies inside a collection."""
        value: Any = self.root
        for name in self.path:
            if not isinstance(value, Spec):
                return None
            value = getattr(value, name)
        return ".".join(self.path)


PLACES: list[Place] = []
"""Of each class one place a field, and inside collections one a position; those that hold something where any do."""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Makes the sweeps, whose places the properties draw from."""
    folder = tmp_path_factory.mktemp("any-value") / "files"
    write_files(folder)
    PLACES[:] = places(complete_sweeps(folder))
    yield folder
    PLACES.clear()


def places(roots: dict[str, Spec]) -> list[Place]:
    found: dict[tuple[Any, ...], Place] = {}
    for root in roots.values():
        for path, inside in parts(root):
            value, key = root, (type(root),)
            for step, name in enumerate(path):
                if isinstance(value, Spec):
                    key = (type(value), *path[step:])
                value = getattr(value, name) if isinstance(value, Spec) else value[name]
            if path and (key not in found or inside is not None):
                found[key] = Place(root, path)
    return list(found.values())


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
"""With control characters and lone surrogates."""
WORDS = st.sampled_from(
    [
        *("", " ", "16", "1e-3", "true", "null", "NaN", "{}", "{", "{}{}", "banana", "all", "imagenet", "x" * 200_000),
        *("[" * 2_000, "1" * 5_000, "\x00", "\x1b[31m", "\ud800", "s3://bucket/folder", "s3://user:secret@host/x"),
        *("file:///tmp/x", "x://", "..", ".", "~", "~nosuchuser/x", "a\x00b", "a" * 300, "/dev/null", "-", "--help"),
    ]
)
NUMBERS = st.sampled_from(
    [
        *(0, 1, -1, 2, 3, 2**31, 2**53, LARGEST, LARGEST + 1, -LARGEST, 10**30, -(10**30), 10**400, 10**5000),
        *(0.0, -0.0, 1.0, 0.5, 1.5, -1.0, 5e-324, 1e-300, 1.7e308, -1.7e308, math.nan, math.inf, -math.inf),
    ]
)
VALUES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.integers(), st.floats(), WORDS, ANY_TEXT, st.binary(max_size=4)
)
quick = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


def drawn(place: int) -> Place:
    return PLACES[place % len(PLACES)]


def held(spec: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        spec = getattr(spec, name) if isinstance(spec, Spec) else spec[name]
    return spec


def one_message(error: InvalidInput) -> None:
    """It can be printed, and is no book."""
    assert len(str(error)) < 20_000
    str(error).encode(errors="backslashreplace")


def told(*words: str, sweep: CleaningSweep) -> int:
    """Exit code of a script's command, which says one thing and shows no traceback where it refuses."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["script.py", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main(sweep)
    finally:
        sys.argv = before
    code = ended.value.code
    assert isinstance(code, int)
    assert "Traceback" not in err.getvalue(), err.getvalue()[-2000:]
    assert code in (0, 2)
    assert (err.getvalue().count("error: ") == 1) == (code == 2)
    return code


@given(place=st.integers(0, 10**6), value=VALUES)
@quick
def test_a_constructor_accepts_any_value_or_refuses_it_in_one_message(place: int, value: Any):
    """What is accepted is held as it was given, has a digest, survives JSON, and can be planned."""
    where = drawn(place)
    try:
        made = with_value(where.root, where.path, value)
    except InvalidInput as error:
        one_message(error)
        return
    kept = held(made, where.path)
    if isinstance(value, (bool, int, float)):  # no boolean becomes a number, and no number a text
        assert kept in (value, float(value))
        assert isinstance(kept, bool) == isinstance(value, bool)
    read = type(made).model_validate(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    assert read == made
    assert read.digest() == made.digest()
    if isinstance(made, CleaningSweep):
        assert told("--dry-run", sweep=made) in (0, 2)


@given(place=st.integers(0, 10**6), value=VALUES)
@quick
def test_an_override_accepts_any_text_or_refuses_it_in_one_message(place: int, value: Any):
    where = drawn(place)
    name = where.overriding()
    if name is None or not isinstance(where.root, CleaningSweep) or isinstance(value, bytes):
        return
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except ValueError:  # Python prints no number of so many digits
        text = value = "9" * 5_000
    code = told("--dry-run", f"{name}={text}", sweep=where.root)
    try:
        made = apply_overrides(where.root, [f"{name}={text}"])
    except InvalidInput as error:
        one_message(error)
        assert code == 2
        return
    if not isinstance(value, str):
        assert made == with_value(where.root, where.path, value)


@pytest.mark.parametrize("value", [True, "16", 16.5, b"16", 10**19], ids=repr)
def test_a_whole_number_is_taken_from_no_other_type(value: Any):
    """`"16"` as text is refused everywhere, in a constructor and in an override's JSON alike."""
    for where in PLACES:
        if type(held(where.root, where.path)) is int and not _takes_more(where):
            with pytest.raises(InvalidInput):
                with_value(where.root, where.path, value)


def _takes_more(where: Place) -> bool:
    """Whether the field is one of real numbers, or holds other scalars too."""
    return bool({"config", "when", "values", "axes", "after_epochs"} & set(where.path))


# --- paths


@pytest.fixture(scope="module")
def oddities(folder: Path) -> list[Any]:
    """Paths at which there is something else than is wanted, or nothing."""
    odd = folder.parent / "odd"
    odd.mkdir()
    os.mkfifo(odd / "pipe")
    (odd / "loop").symlink_to(odd / "loop")
    (odd / "noise").write_bytes(bytes(range(256)) * 16)
    (odd / "unreadable").write_text("secret")
    (odd / "unreadable").chmod(0)
    made = [odd / "missing", odd, odd / "pipe", odd / "loop", odd / "noise", odd / "unreadable"]
    wrong = [folder / name for name in ("pairs.csv", "picture.png", "victim.pt", "labels.npy")]
    impossible = ["~nosuchuser/x", "a\0b", "a" * 300, "\ud800", "", "/dev/zero", folder / "pairs.csv" / "below"]
    return [*made, *wrong, *impossible]


def test_any_path_where_a_path_belongs_is_read_or_refused_in_one_message(oddities: list[Any], tmp_path: Path):
    count = 0
    for where in PLACES:
        is_storage = where.path[-1:] == ("storage",)
        if not isinstance(where.root, CleaningSweep) or not (
            is_storage or isinstance(held(where.root, where.path), Path)
        ):
            continue
        prepare.prepare(where.root, tmp_path)
        count += 1
        for path in oddities:
            try:
                made = with_value(where.root, where.path, str(path) if is_storage else path)
                if is_storage and made.resources.storage:
                    Storage(made.resources.storage).check_writable()
                elif not is_storage:
                    prepare.prepare(made, tmp_path)
            except InvalidInput as error:
                one_message(error)
    assert count == 22
