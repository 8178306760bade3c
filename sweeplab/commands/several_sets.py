"""One checkpoint on several test sets, zero-shot and by a linear probe (SafeCLIP, Table 2): `evaluate --sets`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, TypeVar

from rich.table import Table
from rich.text import Text

from sweeplab.clip_model import Architecture, check_prompts
from sweeplab.commands.evaluate import EvaluationRequest, architecture_of
from sweeplab.commands.examine import Seen, probe, training_images
from sweeplab.data.tables import LabelledImages
from sweeplab.evaluation.measure import Evaluation
from sweeplab.ranking.intervals import wilson
from sweeplab.ranking.leaderboard import in_percent
from sweeplab.records import percent
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder
from sweeplab.worker.inputs import measure_for, victim_model
from sweeplab.worker.jobs import Machine, whole_machine
from sweeplab.worker.run import blaming, prepare_process

logger = logging.getLogger("sweeplab")

T = TypeVar("T")


@dataclass(frozen=True)
class SetResult:
    """What a model does on one test set."""

    name: str
    accuracy_k: int
    accuracy_n: int
    """Test images."""
    probe_k: int | None = None
    """Of the same images; None where no images are named to fit a probe on."""

    @property
    def accuracy(self) -> float:
        """Zero-shot, a fraction."""
        return self.accuracy_k / self.accuracy_n

    @property
    def probe_accuracy(self) -> float | None:
        """Of the linear probe, a fraction."""
        return None if self.probe_k is None else self.probe_k / self.accuracy_n


def measure_sets(request: EvaluationRequest, sets: Mapping[str, Evaluation]) -> list[SetResult]:
    """Measure a checkpoint on each of the sets, in their order.

    Args:
        request: names the checkpoint and, where it does not say it, its architecture.
        sets: by name; with `probe` a linear probe is fitted on those images and counted on all test images.

    Raises:
        InvalidInput: before anything is measured, naming every set that is missing or faulty.
    """
    machine = whole_machine(home_folder())
    read = _each(sets, lambda name: _read(sets[name], machine))
    architecture = architecture_of(request)
    _each(sets, lambda name: _check_prompts(architecture, sets[name], read[name][0]))
    device = prepare_process(machine)
    model = victim_model(architecture, request.checkpoint).to(device).eval()
    found = []
    for name, evaluation in sets.items():
        measure = measure_for(architecture, evaluation, None, machine)
        with blaming(request.checkpoint):
            measurement, probe_k = measure(model)[0], None
            if (train := read[name][1]) is not None:
                probe_k = probe(Seen(model, measure), train, None)["counts"]["accuracy_k"]
        found.append(SetResult(name, measurement.accuracy_k, measurement.accuracy_n, probe_k))
        logger.info(f"{name}: accuracy {percent(found[-1].accuracy)}, probe {percent(found[-1].probe_accuracy)}")
    return found


def _read(evaluation: Evaluation, machine: Machine) -> tuple[LabelledImages, LabelledImages | None]:
    """The test images, and those that the probe is fitted on."""
    test = evaluation.load(machine.data_home)
    return test, training_images(test, evaluation.probe, machine) if evaluation.probe is not None else None


def _check_prompts(architecture: Architecture, evaluation: Evaluation, test: LabelledImages) -> None:
    check_prompts(architecture, test.class_names, evaluation.prompts(test), "paper")


def _each(names: Mapping[str, Any], what: Callable[[str], T]) -> dict[str, T]:
    """What comes of each set; what is wrong with some of them is said in one message."""
    found, faults = {}, []
    for name in names:
        try:
            found[name] = what(name)
        except InvalidInput as error:
            faults.append(f"  {name}: {error}")
    if faults:
        raise InvalidInput("\n".join([f"{len(faults)} of {len(names)} sets cannot be measured:", *faults]))
    return found


def sets_values(found: Sequence[SetResult]) -> dict[str, Any]:
    """What `evaluate --sets --json` prints: rates are fractions, intervals Wilson's at 95 %; means are over the sets,
    each counted once, that of probes over those that have one."""
    rows = []
    for one in found:
        has_probe = one.probe_k is not None
        rows.append(
            {
                "set": one.name,
                "accuracy": one.accuracy,
                "accuracy_interval": list(wilson(one.accuracy_k, one.accuracy_n)),
                "probe_accuracy": one.probe_accuracy,
                "probe_interval": list(wilson(one.probe_k or 0, one.accuracy_n)) if has_probe else None,
                "counts": {"accuracy_k": one.accuracy_k, "accuracy_n": one.accuracy_n, "probe_k": one.probe_k},
            }
        )
    return {"sets": rows, "mean": {name: _mean(rows, name) for name in ("accuracy", "probe_accuracy")}}


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [row[name] for row in rows if row[name] is not None]
    return mean(known) if known else None


def render_sets(found: Sequence[SetResult]) -> Table:
    """The sets for the terminal; percentages with one decimal, and their intervals."""
    values = sets_values(found)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("set", no_wrap=True)
    for heading in ("images", "zero-shot %", "95 %", "probe %", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in values["sets"]:
        shown = [f"{row['counts']['accuracy_n']:,}"]
        for rate, interval in (("accuracy", "accuracy_interval"), ("probe_accuracy", "probe_interval")):
            shown += [in_percent(row[rate]), "-".join(map(in_percent, row[interval])) if row[interval] else ""]
        table.add_row(Text(row["set"]), *shown)
    table.add_row("mean", "", in_percent(values["mean"]["accuracy"]), "", in_percent(values["mean"]["probe_accuracy"]))
    return table
