"""Input paths: the files that an experiment reads, and where a node finds them."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sweeplab.attacks.targeted import TargetedImages
from sweeplab.experiment import CleaningSweep, PretrainedVictim
from sweeplab.specs import Spec

S = TypeVar("S")


@dataclass(frozen=True)
class InputPaths:
    """Paths that an experiment reads, as the driver's node sees them."""

    places: dict[str, str]
    """Absolute path of every path in the specs, which may be relative to where the driver was started."""
    probes: tuple[str, ...]
    """Some of the files, absolute: a node that sees these is taken to see all."""

    def missing(self) -> list[str]:
        """Those of the probes that this node does not see."""
        return [path for path in self.probes if not os.path.exists(path)]

    def on_this_node(self, spec: S, node_copy: Callable[[], Path]) -> S:
        """The spec with the paths under which this node has the files.

        Args:
            spec: one of those that the input paths were made of.
            node_copy: gives the folder below which copies of all files lie; called where this node does not see them.
        """
        spec = with_paths(spec, lambda path: Path(self.places.get(str(path), path)))
        if not self.missing():
            return spec
        root, known = node_copy(), set(self.places.values())
        return with_paths(spec, lambda path: root / str(path)[1:] if str(path) in known else path, below=root)


def parts_of(spec: CleaningSweep | PretrainedVictim, *, trains_victim: bool = True) -> list[Any]:
    """What of a spec names files to be read: data, test images, pictures of triggers, files of a method. Not the
    weights of victims, which are brought by themselves, nor the linear probe's images, which no worker reads.

    Args:
        spec: a sweep or a victim.
        trains_victim: whether a sweep's victim is to be trained; else its data are needed for cleaning pairs alone.
    """
    if isinstance(spec, PretrainedVictim):
        parts: list[Any] = [spec.data, spec.evaluation.replace(probe=None), spec.poisoning, spec.objective]
        if (reference := spec.reference()) is not None:
            parts += parts_of(reference)
        return parts
    victim = spec.original_victim()
    attack = victim.trigger().attack
    if isinstance(victim, PretrainedVictim) and isinstance(attack, TargetedImages):
        attack = attack.replace(mentioned_in=None)  # which is read where the poisons are planned
    parts = [spec.data, spec.evaluation.replace(probe=None), spec.method, attack]
    if isinstance(victim, PretrainedVictim) and (trains_victim or spec.needs_victims_pairs()):
        parts += parts_of(victim)
    return parts


NO_PATHS = InputPaths({}, ())


def input_paths_of(parts: list[Any]) -> InputPaths:
    """The files that parts of a spec read. They have been looked at before: a fault is a bug."""
    places = {str(path): absolute_path(path) for path in _paths_in(parts)}
    there = filter(os.path.exists, places.values())  # a pattern of several files is no file itself
    return InputPaths(places, tuple(sorted({*there, *_examples_in(parts)})))


def _examples_in(value: Any) -> Iterator[str]:
    """One file of each kind that a spec reads: a folder may be there and be an empty mount point."""
    if isinstance(value, Spec) and hasattr(value, "example"):
        if (example := value.example()) is not None:
            yield example
    elif isinstance(value, Path) and os.path.isdir(absolute_path(value)):
        yield from islice(files_of(value), 1)
    else:
        for item in _inside(value):
            yield from _examples_in(item)


def absolute_path(path: Path) -> str:
    """Absolute and normalised, `~` expanded; links stay."""
    return os.path.abspath(path.expanduser())


def _inside(value: Any) -> Iterable[Any]:
    """The values of a spec's fields, or of a sequence; of anything else, nothing."""
    if isinstance(value, Spec):
        return [getattr(value, name) for name in type(value).model_fields]
    return value if isinstance(value, (tuple, list)) else ()


def paths_of(value: Any) -> list[str]:
    """Absolute paths that a spec, or parts of one, names, sorted, each once."""
    return sorted({absolute_path(path) for path in _paths_in(value)})


def _paths_in(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    for item in _inside(value):
        yield from _paths_in(item)


def with_paths(value: Any, where: Callable[[Path], Path], below: Path | None = None) -> Any:
    """A copy of a spec with other paths; what names further files in its own way has a method `below`."""
    if isinstance(value, Path):
        return where(value)
    if isinstance(value, (tuple, list)):
        return type(value)(with_paths(item, where, below) for item in value)
    if not isinstance(value, Spec):
        return value
    if below is not None and hasattr(value, "below"):
        return value.below(below)
    held = {name: getattr(value, name) for name in type(value).model_fields}
    changed = {name: new for name, old in held.items() if (new := with_paths(old, where, below)) != old}
    return value.replace(**changed) if changed else value


def recorded_sweep(header: Mapping[str, Any]) -> CleaningSweep:
    """The sweep of a record, whose relative paths lead to where its command found them, from whatever folder.

    Args:
        header: what sweep.json says.

    Returns:
        The sweep; what is not there any more is looked for in this process's folder, as before 0.2.0.

    Raises:
        InvalidInput: if the record holds no sweep.
    """
    began_in = header.get("working_folder")
    if not isinstance(began_in, str) or not os.access(began_in, os.X_OK):
        return CleaningSweep.model_validate(header["spec"])
    with contextlib.chdir(began_in):  # a trigger's picture is read on construction
        sweep = CleaningSweep.model_validate(header["spec"])

    def where(path: Path) -> Path:
        place = Path(began_in, path.expanduser())
        return place if os.path.exists(place) else path

    found: CleaningSweep = with_paths(sweep, where)
    return found


def files_of(value: Any) -> Iterator[str]:
    """Absolute paths of all files that a spec reads: what its parts with a method `files` say, else its paths, folders
    with all that is in them."""
    if isinstance(value, Spec) and hasattr(value, "files"):
        yield from value.files()
    elif isinstance(value, Path):
        path = absolute_path(value)
        if not os.path.isdir(path):
            yield path
        for folder, _, names in os.walk(path, followlinks=True):
            yield from (os.path.join(folder, name) for name in names)
    else:
        for item in _inside(value):
            yield from files_of(item)
