"""Measure: accuracy and ASR of a model on one fixed set of clean and triggered images, every image's outcome kept."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal
from typing import Protocol as Interface

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sweeplab.attacks.poisoning import Attack
from sweeplab.attacks.targeted import TargetedImages, Targets
from sweeplab.clip_model import evaluation_mode, imagenet_templates
from sweeplab.data.decoded import DecodedFiles
from sweeplab.data.images import load_all, load_image
from sweeplab.data.labelled_sources import LABELLED_SOURCES
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import LabelledImages
from sweeplab.data.training_pairs import CACHE_BYTES, OWN_BYTES
from sweeplab.evaluation.zero_shot import (
    Faults,
    class_weights,
    prompt_tokens,
    rank_of_own,
    scores_of,
    zero_shot_classifier,
)
from sweeplab.protocol import Protocol
from sweeplab.records import Measurement, Outcomes
from sweeplab.specs import AnySpec, InvalidInput, Spec, digest_of, one_of, own_code
from sweeplab.training import ranks
from sweeplab.training.batches import prefetched
from sweeplab.training.precision import Precision, float32_products
from sweeplab.training.randomness import stream_seed

logger = logging.getLogger("sweeplab")

TRIED = 64
"""Test images, spread over all of them, whose triggered pixels tell which file of a node holds those of all."""


class Evaluation(Spec):
    """What a model is measured on."""

    NOT_IN_DIGEST = frozenset({"batch_size", "probe"})

    test: Annotated[AnySpec, one_of(lambda: LABELLED_SOURCES, "read", "test set")]
    """Labelled images."""
    sample: Sample | None = None
    """So many of the test images, as many of each class; None: all."""
    templates: Literal["imagenet", "dataset"] | tuple[str, ...] = "imagenet"
    """Prompts with one `{}` for the class name; `imagenet`: OpenAI's 80; `dataset`: those that come with the test set:
    the file beside CLIP_benchmark's tars, the lists of CLIP's paper for torchvision's data sets."""
    seed: int = Field(default=0, ge=0)
    """Of the triggers' draws: the same for every epoch, trial and sweep (common random numbers)."""
    batch_size: int = Field(default=256, ge=1)
    """Images per forward pass on each rank; a matter of memory only."""
    precision: Precision = "float32"
    """Of the forward passes. Measurements in another precision do not compare: near-ties fall otherwise."""
    probe: Annotated[AnySpec, one_of(lambda: LABELLED_SOURCES, "read", "set of labelled images")] | None = None
    """Labelled images of the test set's classes, none of them a test image, on which `sweeplab examine` fits its linear
    probe; no trial is measured on them."""

    @model_validator(mode="after")
    def _check(self) -> "Evaluation":
        if isinstance(self.templates, tuple):
            _check_templates(self.templates)
        return self

    def prompts(self, images: LabelledImages) -> tuple[str, ...]:
        """The templates themselves.

        Args:
            images: the test set.

        Raises:
            InvalidInput: if the test set should bring them, and has none or such as are no templates.
        """
        if isinstance(self.templates, tuple):
            return self.templates
        if self.templates == "imagenet":
            return imagenet_templates()
        if not images.templates:
            raise InvalidInput(
                "templates='dataset', but no prompts come with the test set; give templates of your own, or 'imagenet'"
            )
        try:
            _check_templates(images.templates)
        except ValueError as error:
            raise InvalidInput(f"the test set's {error}; mend its file of templates, or give templates") from None
        return images.templates

    def contents(self, images: LabelledImages) -> dict[str, str]:
        """What a spec's digest takes of the test set beside its own fields, by name.

        Raises:
            InvalidInput: as `prompts` does.
        """
        prompts = {"prompts": digest_of(self.prompts(images))} if self.templates == "dataset" else {}
        return {"test": images.digest, **prompts}

    def load(self, data_home: Path) -> LabelledImages:
        """Read the test set, or the sample of it.

        Raises:
            InvalidInput: if it cannot be read, or a class has fewer images than the sample takes of it.
        """
        images: LabelledImages = self.test.read(data_home)  # type: ignore[attr-defined]
        if self.sample is None:
            return images
        return images.subset(self.sample.balanced_rows(images.labels, images.class_names))


def _check_templates(templates: tuple[str, ...]) -> None:
    bad = [text for text in templates if text.count("{}") != 1 or text.count("{") + text.count("}") != 2]
    if bad or not templates:
        raise ValueError(
            f"templates need one {{}} each, no other brace, and at least one template; {bad[:1] or 'none'} given"
        )


@dataclass(frozen=True)
class Trigger:
    """The attack whose success is measured, and the class it aims at."""

    attack: Attack | TargetedImages
    target: str | None
    """None where every image has a class of its own (`TargetedImages`)."""

    @property
    def aim(self) -> str:
        """What it aims at, in words."""
        if isinstance(self.attack, TargetedImages):
            return f"a class of its own for each of {self.attack.num_targets} images"
        assert self.target is not None
        return self.target

    def targets(self, data_home: Path, labels: Sequence[str] = ()) -> Targets | None:
        """The chosen images of targeted poisoning; None for triggers. See `TargetedImages.choose`."""
        return self.attack.choose(data_home, labels) if isinstance(self.attack, TargetedImages) else None


class Pixels(Interface):
    """Rows of a test set as pixels."""

    def __call__(self, rows: Sequence[int], /) -> Tensor:
        """(b, 3, S, S) uint8."""
        ...


class Measure:
    """Measures models on one test set; built once, called for every point.

    ASR counts triggered images classified as the target label, over the test images that are **not of the target
    class** (attack-cleanclip leaves them out too; PAR's code keeps them in, which adds at most 0.1 points on
    ImageNet). Clean and triggered images have the same geometry: resize of the shorter side, centre crop, then the
    trigger. (The authors squash triggered images and crop clean ones.) Each image's trigger is drawn from (evaluation
    seed, row) alone.

    Under targeted poisoning the PSR takes the ASR's place: the target images, as they are, that are classified as their
    own adversarial class.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        images: LabelledImages,
        image_size: int,
        *,
        tokenize: Callable[[list[str]], Tensor],
        trigger: Trigger | None,
        targets: Targets | None = None,
        decode_workers: int = 1,
        protocol: Protocol = "paper",
        decoded: DecodedFiles | None = None,
    ) -> None:
        """Prepare the test set; decodes and stamps all images now, into memory or files of the node, where there is
        room for them.

        Args:
            evaluation: what is measured on.
            images: its test set.
            image_size: side of the model's input, pixels.
            tokenize: list of texts -> (N, context_length) int64.
            trigger: what was planted; None where nothing is known.
            targets: its chosen images, under targeted poisoning.
            decode_workers: threads that decode.
            protocol: see `sweeplab.protocol`.
            decoded: where the node keeps decoded and stamped images; None: nowhere, and those that do not fit into
                memory are made anew for every measurement.

        Raises:
            InvalidInput: if a target label is not among the classes, or the trigger does not fit the image.
        """
        self.evaluation, self.images, self.image_size = evaluation, images, image_size
        self.tokenize, self.trigger, self.protocol = tokenize, trigger, protocol
        self.decode_workers = decode_workers
        self.prompts = evaluation.prompts(images)
        self.triggered_rows = triggered_rows(images, trigger)
        """Of the test images that the trigger is tried on; empty under targeted poisoning, which has its own images."""
        self.aims = wanted_classes(images, trigger, targets)
        if trigger is not None:
            trigger.attack.check_fits(image_size)
        self.digest = evaluation_digest(evaluation, images, image_size, trigger, protocol, targets)
        self._clean: Tensor | None = None
        self._triggered: Tensor | None = None
        self._squashed: Tensor | None = None
        """(N, 3, S, S) uint8 of the test images as the authors' code triggers them."""
        self._draw: tuple[str, ...] = ()
        self.heartbeat: Callable[[], None] = lambda: None
        """Called with every batch."""
        num_bytes = 2 * len(images) * 3 * image_size**2
        if decoded is not None and num_bytes > min(OWN_BYTES, CACHE_BYTES):
            self._map(decoded)
        if self._clean is None and num_bytes <= CACHE_BYTES:
            self._clean = load_all(images, image_size, workers=decode_workers)
            if protocol == "paper":
                self._triggered = self._stamp(self._clean[self.triggered_rows], self.triggered_rows)
        if targets is not None:
            self._triggered = load_all(targets.table, image_size, workers=decode_workers)

    def _map(self, decoded: DecodedFiles) -> None:
        """Take the images from files of the node, as far as it has room for them."""
        images, size, count, workers = self.images, self.image_size, len(self.triggered_rows), self.decode_workers
        self._clean = decoded.tensor(images, size, workers=workers)
        if self._clean is None and 2 * len(images) * 3 * size**2 > CACHE_BYTES:
            logger.warning(decoded.no_room(len(images), size, "all test images are decoded anew in every measurement"))
        if self._clean is None or self.trigger is None or not count:
            return
        if self.protocol == "authors":  # who stamp another trigger on every model's
            self._squashed = decoded.tensor(images, size, squash=True, workers=workers)
            if self._squashed is None:
                logger.warning(decoded.no_room(count, size, "triggered ones are decoded anew in every measurement"))
        elif all(held["code"] is not None for held in own_code(self.trigger.attack).values()):
            self._triggered = decoded.changed(images, size, count, how=self._stamped_how(), make=self.triggered_pixels)
            if self._triggered is None:
                logger.warning(decoded.no_room(count, size, "triggered ones are stamped anew in every measurement"))

    def _stamped_how(self) -> str:
        """Tells what is stamped on which of the images, by all that the pixels depend on and nothing else: prompts and
        precision change the measurement alone. An attack gets images and seeds; the target chooses the rows."""
        assert self.trigger is not None
        # An attack's digest sees neither modules nor files that a user's takes its pixels from: some pixels tell.
        count = len(self.triggered_rows)
        some = self.triggered_pixels(np.linspace(0, count - 1, min(count, TRIED)).astype(int).tolist())
        return digest_of(
            {
                "attack": self.trigger.attack.canonical(),  # type: ignore[union-attr]
                "seed": self.evaluation.seed,
                "protocol": self.protocol,
                "rows": hashlib.sha256(self.triggered_rows.astype("<i8").tobytes()).hexdigest(),
                "some pixels": hashlib.sha256(some.numpy().tobytes()).hexdigest(),
            }
        )

    @cached_property
    def prompt_tokens(self) -> Tensor:
        """(C, T, l) int64; see `zero_shot.prompt_tokens`."""
        return prompt_tokens(self.tokenize, self.images.class_names, self.prompts)

    def clean_pixels(self, rows: Sequence[int]) -> Tensor:
        """(b, 3, S, S) uint8 of the given test images, not to be written to."""
        if self._clean is not None:
            return _taken(self._clean, rows)
        return self._decoded(rows)

    def triggered_pixels(self, places: Sequence[int]) -> Tensor:
        """(b, 3, S, S) uint8 of the given places among the triggered images, not to be written to."""
        if self._triggered is not None:
            return _taken(self._triggered, places)
        rows = self.triggered_rows[np.asarray(places)]
        if self.protocol == "paper":
            return self._stamp(self.clean_pixels(rows.tolist()), rows)
        if self._squashed is not None:
            return self._stamp(self._squashed.index_select(0, torch.as_tensor(rows)), rows)
        return self._stamp(self._decoded(rows.tolist(), squash=True), rows)

    def _decoded(self, rows: Sequence[int], *, squash: bool = False) -> Tensor:
        """(b, 3, S, S) uint8 of some test images, from their own files."""
        with ThreadPoolExecutor(self.decode_workers) as pool:
            load = partial(load_image, size=self.image_size, squash=squash)
            return torch.from_numpy(np.stack(list(pool.map(load, map(self.images.image, rows)))))

    def _stamp(self, pixels: Tensor, rows: np.ndarray) -> Tensor:
        if self.trigger is None or isinstance(self.trigger.attack, TargetedImages):
            return pixels[:0]
        names = ("test trigger", *self._draw)
        seeds = [stream_seed(self.evaluation.seed, *names, int(row)) for row in rows]
        return self.trigger.attack.stamp(pixels, seeds)

    def __call__(
        self, model: nn.Module, classifier: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Measurement, Outcomes]:
        """Measure a model; the ranks share the images, every rank returns the whole result.

        Args:
            model: an open_clip model.
            classifier: (B, D) un-normalised image features to (B, C) scores, for a model that was finetuned with
                labels; None: zero-shot by the prompts.

        The model is put into evaluation mode and afterwards back into the mode it was in, module by module.

        Raises:
            FloatingPointError: if an embedding is not finite or has norm zero, or a score is not finite.
        """
        device = next(model.parameters()).device
        self._draw = (weights_name(model),) if self.protocol == "authors" else ()
        with evaluation_mode(model), float32_products(self.evaluation.precision):
            classify = classifier or zero_shot_classifier(self.class_weights(model, device))
            labels, aims = torch.from_numpy(self.images.labels), torch.from_numpy(self.aims)
            predicted, above = self._ranked(model, classify, self.clean_pixels, labels, device).unbind(dim=1)
            correct = predicted == labels
            hits = self._ranked(model, classify, self.triggered_pixels, aims, device)[:, 0] == aims
        measurement = Measurement(
            accuracy_k=int(correct.sum()),
            accuracy_n=len(correct),
            asr_k=int(hits.sum()),
            asr_n=len(hits),
            evaluation_digest=self.digest,
            top5_k=int((above < 5).sum()) if len(self.images.class_names) > 5 else None,
        )
        return measurement, Outcomes.of(correct.numpy(), hits.numpy())

    def margins(self, model: nn.Module, rows: Sequence[int], places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """How far apart the two best cosines of some images are, zero-shot: where hardly, rounding decides.

        Args:
            model: an open_clip model, which was measured last.
            rows: of clean test images.
            places: among the triggered images.

        Returns:
            (len(rows),) and (len(places),), float32 on the CPU.
        """
        device = next(model.parameters()).device
        faults, precision = Faults(), self.evaluation.precision
        with evaluation_mode(model), float32_products(precision), torch.inference_mode():
            weights = self.class_weights(model, device)

            def cosines(features: Tensor) -> Tensor:
                return F.normalize(features, dim=-1) @ weights.T

            def margin(pixels: Pixels, chosen: Sequence[int]) -> Tensor:
                found = [torch.empty(0)]
                for start in range(0, len(chosen), self.evaluation.batch_size):
                    images = pixels(chosen[start : start + self.evaluation.batch_size])
                    scores = scores_of(model, images, cosines, faults, device=device, precision=precision)
                    best = scores.topk(2).values
                    found.append((best[:, 0] - best[:, 1]).cpu())
                return torch.cat(found)

            margins = margin(self.clean_pixels, rows), margin(self.triggered_pixels, places)
        faults.check()
        return margins

    def class_weights(self, model: nn.Module, device: torch.device) -> Tensor:
        """(C, D), rows of unit norm; see `zero_shot.class_weights`."""
        return class_weights(model, self.prompt_tokens, device=device, precision=self.evaluation.precision)

    def _ranked(
        self,
        model: nn.Module,
        classify: Callable[[Tensor], Tensor],
        pixels: Pixels,
        labels: Tensor,
        device: torch.device,
    ) -> Tensor:
        """What `rank_of_own` says of all images that there are labels for; every rank does its share."""
        share = _share(len(labels))
        starts = range(share.start, share.stop, self.evaluation.batch_size)
        parts = [range(start, min(start + self.evaluation.batch_size, share.stop)) for start in starts]

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for images, own in prefetched(((pixels(rows), labels[rows.start : rows.stop]) for rows in parts), device):
                self.heartbeat()
                yield images, own

        def ranked() -> Tensor:
            return rank_of_own(model, batches(), classify, device=device, precision=self.evaluation.precision)

        return torch.cat(ranks.gather_computed(ranked))


def _share(count: int) -> range:
    """This rank's part of so many images, in order."""
    each, more = divmod(count, ranks.world_size())
    start = ranks.rank() * each + min(ranks.rank(), more)
    return range(start, start + each + (ranks.rank() < more))


def _taken(images: Tensor, rows: Sequence[int]) -> Tensor:
    """Some of the images; neighbours without a copy."""
    if isinstance(rows, range) and rows.step == 1:
        return images[rows.start : rows.stop]
    return images.index_select(0, torch.as_tensor(rows))


def weights_name(model: nn.Module) -> str:
    """A name that changes with the model's weights: sixteen hexadecimal digits over every parameter's sum."""
    sums = [float(parameter.detach().double().sum()) for parameter in model.parameters()]
    return digest_of(sums)


def evaluation_digest(
    evaluation: Evaluation,
    images: LabelledImages,
    image_size: int,
    trigger: Trigger | None,
    protocol: Protocol = "paper",
    targets: Targets | None = None,
) -> str:
    """Sixteen hexadecimal digits of all that a measurement depends on beside the model.

    Of targeted poisoning that is which images are wanted to be what, not how often and with which captions they were
    trained on: a victim and its unpoisoned twin compare.
    """
    stamps = trigger is not None and targets is None
    return digest_of(
        {
            "images": images.digest,
            "classes": list(images.class_names),
            "prompts": list(evaluation.prompts(images)),
            "image_size": image_size,
            "seed": evaluation.seed if stamps else 0,
            "attack": trigger.attack.canonical() if stamps else None,  # type: ignore[union-attr]
            "target": trigger.target if trigger else None,
            **({"targets": targets.digest} if targets is not None else {}),
            **({"protocol": protocol} if protocol != "paper" else {}),
            **({"precision": evaluation.precision} if evaluation.precision != "float32" else {}),
        }
    )


def wanted_classes(images: LabelledImages, trigger: Trigger | None, targets: Targets | None = None) -> np.ndarray:
    """(M,) int64, the class that the attacker wants for each image on which success is counted.

    Raises:
        InvalidInput: if a wanted class is not among the test classes, or its name is not its own.
    """
    if targets is not None:
        return np.array([_class_of(label, images) for label in targets.labels], dtype=np.int64)
    if trigger is None or trigger.target is None:
        return np.empty(0, dtype=np.int64)
    rows = triggered_rows(images, trigger)
    return np.full(len(rows), images.class_names.index(trigger.target), dtype=np.int64)


def triggered_rows(images: LabelledImages, trigger: Trigger | None) -> np.ndarray:
    """Rows of the test images on which the trigger is tried: those that are not of the target class.

    Raises:
        InvalidInput: if the target label is not among the classes, or every image is of the target class.
    """
    if trigger is None or trigger.target is None:
        return np.empty(0, dtype=np.int64)
    rows = np.flatnonzero(images.labels != _class_of(trigger.target, images))
    if not len(rows):
        raise InvalidInput(
            f"every test image is of the target class {trigger.target!r}; ASR needs images of other classes"
        )
    return rows


def _class_of(target: str, images: LabelledImages) -> int:
    """The class of that name."""
    if target not in images.class_names:
        import difflib

        close = difflib.get_close_matches(target, images.class_names, n=3, cutoff=0.4)
        known = ", ".join(close or images.class_names[:8])
        raise InvalidInput(
            f"target={target!r} is not among the {len(images.class_names)} classes "
            f"({'closest' if close else 'first'}: {known}); name one of them"
        )
    if images.class_names.count(target) > 1:
        raise InvalidInput(
            f"target={target!r} names {images.class_names.count(target)} classes of the test set "
            "(ImageNet has two of `missile` and of `sunglasses`); choose a target whose name is its own"
        )
    return images.class_names.index(target)
