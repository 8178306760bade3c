"""Training sets: the pairs of a run and their poisons, put together once a node and mapped by its other processes."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sweeplab.attacks.poisoning import PoisonPlan
from sweeplab.data.table_files import FEW_ROWS, TableFiles
from sweeplab.data.tables import PairTable
from sweeplab.specs import InvalidInput, Spec, StorageFault, digest_of
from sweeplab.storage.files import read_object, write_json
from sweeplab.storage.locks import lock_path, locked_with_retry
from sweeplab.storage.node_cache import use


@dataclass(frozen=True)
class TrainingSet:
    """What a run trains on."""

    table: PairTable
    """Poisons that come with the pairs included."""
    plan: PoisonPlan | None
    """Which of them are poisoned; None: none. Of one that a node has kept the source is left out: its images are in the
    table."""

    @property
    def state(self) -> str:
        """Sixteen hexadecimal digits of rows, files and poisons, as they were when they were put together."""
        return digest_of([self.table.state, self.plan.digest if self.plan is not None else None])


def kept_training_set(
    tables: TableFiles, name: str, attack: Spec, make: Callable[[], TrainingSet], heartbeat: Callable[[], None]
) -> TrainingSet:
    """A training set as this node keeps it; where it does not yet, one of its processes puts it together.

    Args:
        tables: where the node keeps tables.
        name: tells it from others, and from the same one at other places.
        attack: of its poisons.
        make: puts it together.
        heartbeat: called now and then while another process does that.
    """
    record = tables.folder / f"training-{name}.json"
    found = _find(tables, record, attack)
    if found is None:
        with locked_with_retry(lock_path(record), heartbeat):
            found = _find(tables, record, attack)  # another process was quicker
            if found is None:
                found = keep_training_set(tables, name, make())
    return found


def keep_training_set(tables: TableFiles, name: str, training: TrainingSet) -> TrainingSet:
    """Have a node keep a training set; the same one, mapped where that is worth it and there is room."""
    table = tables.mapped(training.table)
    if len(table) >= FEW_ROWS:
        plan = None if training.plan is None else training.plan.to_json()
        with contextlib.suppress(StorageFault):  # whoever finds none puts it together
            write_json(tables.folder / f"training-{name}.json", {"table": table.state, "plan": plan}, durable=False)
    return TrainingSet(table, training.plan)


def _find(tables: TableFiles, record: Path, attack: Spec) -> TrainingSet | None:
    with contextlib.suppress(InvalidInput, OSError, KeyError, TypeError, ValueError):
        # A cache: whatever is damaged is made anew.
        values = read_object(record, table=str)
        plan = None if values["plan"] is None else PoisonPlan.from_json(values["plan"], attack)
        if use(record) and (table := tables.find(values["table"])) is not None:
            return TrainingSet(table, plan)
    return None
