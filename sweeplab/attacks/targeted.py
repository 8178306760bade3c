"""Targeted data poisoning: chosen images, left as they are, paired with captions of another class (SafeCLIP, 3.2)."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from sweeplab.attacks.poisoning import Planted, PoisonPlan, is_mentioned, mentioning, mentions, mix_in
from sweeplab.clip_model import imagenet_class_names, imagenet_templates
from sweeplab.data import PAIR_SOURCES
from sweeplab.data.fruit_stall import CLASS_NAMES, FruitStall
from sweeplab.data.labelled_pairs import LabelledPairs
from sweeplab.data.tables import PairTable
from sweeplab.specs import AnySpec, InvalidInput, Spec, digest_of, one_of
from sweeplab.training.randomness import numpy_stream


@dataclass(frozen=True, eq=False)
class Targets:
    """The target images and what the attacker wants each of them to be called."""

    source: PairTable
    """The table that they are drawn from."""
    rows: tuple[int, ...]
    """Their rows in it, ascending."""
    labels: tuple[str, ...]
    """The adversarial class of each."""

    @property
    def table(self) -> PairTable:
        """The target images with their own captions."""
        return self.source.subset(self.rows)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of images and classes."""
        return digest_of([self.table.digest, list(self.labels)])


class TargetedImages(Spec):
    """Targeted data poisoning (TDPA): no trigger; single images are to be misclassified.

    `num_targets` images are drawn from a source that is no part of the training set (the paper: 16 of CC3M's
    validation set); each gets a random adversarial class, not its own where that is known (from labelled images, or
    because its caption mentions it). Each target adds `poisons_per_target` pairs: the same unmodified image with
    different captions of its adversarial class. What is measured in place of the ASR is the **PSR**: the share of the
    target images whose zero-shot top-1 class is their adversarial class; every image is one outcome. It takes the
    place of the ASR at the ceiling, in the ranking and in every table (SafeCLIP, Sec. 5; 16 images can tell 0 from
    6.25 %, and no PSR of 16 images has an upper bound below 5 %).

    It stands where a `Poisoning` stands, and where the attack of a `CheckpointVictim` stands.
    """

    kind: Literal["targeted-images"] = "targeted-images"
    images: Annotated[AnySpec, one_of(lambda: PAIR_SOURCES, "read", "source of pairs")]
    """Where the target images come from."""
    num_targets: int = Field(default=16, ge=1)
    poisons_per_target: int = Field(default=100, ge=0)
    """Added pairs of each target; 100 or 500 in 1 M pairs in the paper. 0 makes the unpoisoned twin."""
    captions: Literal["templates", "training"] = "templates"
    """`templates`: OpenAI's 80 with the adversarial class (RoCLIP's script). `training`: captions of the training set
    that mention it (as the paper states). Each caption is used once before any is used again."""
    classes: Literal["imagenet"] | tuple[str, ...] = "imagenet"
    """Names of which adversarial classes are drawn; all of them must be test classes."""
    mentioned_in: Annotated[AnySpec, one_of(lambda: PAIR_SOURCES, "read", "source of pairs")] | None = None
    """Pairs, as a rule the training set's own, by whose captions a class must be mentioned to be drawn: most of
    ImageNet's are mentioned by few captions of a million, or by none. None: any class is drawn."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "TargetedImages":
        if len(self.candidates()) < 2:
            raise ValueError("classes needs two names at least that occur once; give the test set's")
        return self

    @property
    def attack(self) -> "TargetedImages":
        """What is planted: itself."""
        return self

    @property
    def target(self) -> None:
        """None: every image has a class of its own."""
        return None

    def in_miniature(self) -> "TargetedImages":
        """Four drawn fruits with 16 poisons each."""
        return TargetedImages(
            images=FruitStall(num_pairs=64, image_size=32, seed=77),
            num_targets=4,
            poisons_per_target=16,
            captions=self.captions,
            classes=CLASS_NAMES,
            mentioned_in=FruitStall(num_pairs=64, image_size=32) if self.mentioned_in is not None else None,
            seed=self.seed,
        )

    def check_fits(self, image_size: int) -> None:
        """Images of every size do."""

    def sought_labels(self) -> tuple[str, ...]:
        """Labels that captions are searched for."""
        return self.candidates() if self.poisons_per_target else ()

    def candidates(self) -> tuple[str, ...]:
        """Classes that may be drawn; names that two classes share (ImageNet's `missile`) are left out."""
        names = imagenet_class_names() if self.classes == "imagenet" else self.classes
        counts = Counter(names)
        return tuple(name for name in names if counts[name] == 1)

    def choose(self, data_home: Path, labels: Sequence[str] = ()) -> Targets:
        """The targets: a matter of the fields and of the sources that they name.

        Args:
            data_home: where made and cached data lie.
            labels: the adversarial classes, where another process has drawn them; empty: they are drawn.

        Raises:
            InvalidInput: if the source has fewer images than are wanted, or an image can be given no class.
        """
        source: PairTable = self.images.read(data_home)  # type: ignore[attr-defined]
        if self.num_targets > len(source):
            raise InvalidInput(
                f"num_targets={self.num_targets} exceeds the {len(source):,} images of the source; choose fewer"
            )
        order = numpy_stream(self.seed, "target images").permutation(len(source))
        rows = np.sort(order[: self.num_targets]).tolist()
        return Targets(source, tuple(rows), tuple(labels or self._adversarial(rows, source, data_home)))

    def _adversarial(self, rows: list[int], source: PairTable, data_home: Path) -> list[str]:
        """A class for each of the images, not its own where that is known."""
        own = self._own_classes(rows, data_home)
        others = []
        for row in rows:
            caption, mine = source.caption(row), own.get(row)
            others.append([name for name in self.candidates() if name != mine and not mentions(caption, name)])
            if not others[-1]:
                raise InvalidInput(
                    f"classes: the caption {caption!r} of a target image mentions all of them; give others"
                )
        if self.mentioned_in is None:
            streams = [numpy_stream(self.seed, "adversarial class", row) for row in rows]
            return [names[int(draw.integers(len(names)))] for names, draw in zip(others, streams, strict=True)]
        captions: PairTable = self.mentioned_in.read(data_home)  # type: ignore[attr-defined]
        known = cache(lambda name: is_mentioned(captions, name))
        drawn = []
        for row, names in zip(rows, others, strict=True):
            # The first of a random order that is mentioned: each mentioned class is as likely, and few are looked for.
            order = numpy_stream(self.seed, "mentioned class", row).permutation(len(names))
            drawn.append(next((names[i] for i in order if known(names[i])), None))
        if None in drawn:
            raise InvalidInput(
                f"mentioned_in: its {len(captions):,} captions mention no class that {drawn.count(None):,} of the "
                f"{len(rows):,} target images could get; give a larger source, or `classes` that it mentions"
            )
        return drawn  # type: ignore[return-value]

    def _own_classes(self, rows: list[int], data_home: Path) -> dict[int, str]:
        if not isinstance(self.images, LabelledPairs):
            return {}
        labelled = self.images.labelled(data_home)
        return {row: labelled.class_names[labelled.labels[row]] for row in rows}

    def plan(self, table: PairTable, data_home: Path) -> PoisonPlan:
        """Which pairs are added to a training set.

        Raises:
            InvalidInput: if a target image is in the training set, or no training caption mentions an adversarial
                class.
        """
        targets = self.choose(data_home)
        self._refuse_training_images(targets, table)
        captions: list[str] = []
        for row, label in zip(targets.rows, targets.labels, strict=True):
            captions += self._captions(row, label, table)
        return PoisonPlan(
            attack=self,
            target=None,
            indices=tuple(row for row in targets.rows for _ in range(self.poisons_per_target)),
            captions=tuple(captions),
            seed=self.seed,
            num_pairs=len(table),
            table_digest=table.digest,
            placement="add",
            stamps=False,
            source=targets.source,
            labels=tuple(label for label in targets.labels for _ in range(self.poisons_per_target)),
        )

    def subset_for_cleaning(
        self, clean: PairTable, planted: Callable[[], Planted], *, count: int, seed: int
    ) -> PoisonPlan:
        """`count` of the poisons that were planted in place of pairs of a clean table."""
        return mix_in(planted(), clean, count=count, seed=seed)

    def _captions(self, row: int, label: str, table: PairTable) -> list[str]:
        if not self.poisons_per_target:
            return []
        if self.captions == "templates":
            texts = [template.format(label) for template in imagenet_templates()]
        else:
            texts = list(dict.fromkeys(table.caption(int(i)) for i in mentioning(table, label)))
        if not texts:
            raise InvalidInput(
                f"no training caption mentions the adversarial class {label!r}; use captions='templates', or have "
                "classes drawn that captions mention: set `mentioned_in` to the training pairs"
            )
        order = numpy_stream(self.seed, "adversarial captions", row).permutation(len(texts))
        return [texts[order[i % len(texts)]] for i in range(self.poisons_per_target)]

    def _refuse_training_images(self, targets: Targets, table: PairTable) -> None:
        chosen = targets.table
        if table.holds_any(chosen.image(row) for row in range(len(chosen))):
            raise InvalidInput(
                "a target image is in the training set; give `images` another source (the paper: CC3M's validation set)"
            )
