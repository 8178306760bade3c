"""A trigger panel: one model against many attacks in one pass, for models whose attack is not known too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from sweeplab.attacks.poisoning import Attack, attack_name, triggered_copies
from sweeplab.clip_model import evaluation_mode
from sweeplab.evaluation.measure import Measure, Trigger, triggered_rows
from sweeplab.evaluation.zero_shot import predict, zero_shot_classifier
from sweeplab.records import Measurement
from sweeplab.training.precision import float32_products
from sweeplab.training.randomness import stream_seed

NOT_CERTIFIED = (
    "A panel only tries the triggers it lists: a model that resists all of them may still carry another one, so "
    "nothing is certified."
)


@dataclass(frozen=True)
class PanelRow:
    """One attack's success on the model."""

    attack: str
    """Kind and fields that differ from the defaults."""
    target: str
    """The class that the triggered images are counted for."""
    asr_k: int
    asr_n: int
    correct_k: int
    """Of the same images, those that are still classified as their own class: what the trigger leaves of the picture
    for a model that does not know it."""
    changed_k: int
    """Triggered images whose prediction differs from that of the clean image, whatever the class."""
    most_common: str
    """The class that most of the changed images go to; the target itself where the trigger works."""


def run_panel(
    model: nn.Module, measure: Measure, attacks: Sequence[Attack], target: str | None
) -> tuple[Measurement, list[PanelRow]]:
    """Measure accuracy once, and the success of each attack, over all test images.

    Text embeddings and clean predictions are made once. With `target` an attack's ASR counts triggered images, the
    target class's own left out, that are classified as the target. Without one the target of each attack is guessed:
    the class, not its own, that attracts most images changed by the trigger; images of that class are left out. A guess
    inflates chance level: the best of C classes is reported.

    Args:
        model: an open_clip model.
        measure: of a test set; its own trigger plays no part.
        attacks: the panel.
        target: a class name, or None for a model whose attack is unknown.
    """
    device = next(model.parameters()).device
    precision = measure.evaluation.precision
    with evaluation_mode(model), float32_products(precision):
        names = measure.images.class_names
        classify = zero_shot_classifier(measure.class_weights(model, device))
        labels = measure.images.labels
        if target is not None:
            triggered_rows(measure.images, Trigger(attacks[0], target))  # refuses a target that is no class
        clean = np.empty(len(labels), dtype=np.int64)
        triggered = np.empty((len(attacks), len(labels)), dtype=np.int64)
        for start in range(0, len(labels), measure.evaluation.batch_size):
            rows = range(start, min(start + measure.evaluation.batch_size, len(labels)))
            pixels = measure.clean_pixels(rows)
            clean[start : rows.stop] = predict(model, [pixels], classify, device=device, precision=precision)
            seeds = [stream_seed(measure.evaluation.seed, "test trigger", row) for row in rows]
            for index, attack in enumerate(attacks):
                stamped = [triggered_copies(attack, pixels, seeds)]
                found = predict(model, stamped, classify, device=device, precision=precision)
                triggered[index, start : rows.stop] = found
    measurement = Measurement(int((clean == labels).sum()), len(labels), 0, 0, measure.digest)
    rows_of_panel = [
        _row(attack, labels, clean, hits, names, target) for attack, hits in zip(attacks, triggered, strict=True)
    ]
    return measurement, rows_of_panel


def _row(
    attack: Attack, labels: np.ndarray, clean: np.ndarray, hits: np.ndarray, names: Sequence[str], target: str | None
) -> PanelRow:
    changed = hits != clean
    counts = np.bincount(hits[changed & (hits != labels)], minlength=len(names))
    favourite = int(counts.argmax())
    aimed = names.index(target) if target is not None else favourite
    others = labels != aimed
    return PanelRow(
        attack=attack_name(attack),
        target=names[aimed],
        asr_k=int((hits[others] == aimed).sum()),
        asr_n=int(others.sum()),
        correct_k=int((hits[others] == labels[others]).sum()),
        changed_k=int(changed.sum()),
        most_common=names[favourite] if counts[favourite] else "none",
    )
