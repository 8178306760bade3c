"""Labelled images as pairs: each image with a caption made from its class, for supervised finetuning."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from sweeplab.data.labelled_sources import LABELLED_SOURCES
from sweeplab.data.sampling import Sample
from sweeplab.data.tables import LabelledImages, PairTable
from sweeplab.specs import AnySpec, InvalidInput, Spec, one_of
from sweeplab.training.randomness import numpy_stream


class LabelledPairs(Spec):
    """Labelled images, each paired with a caption of its class; the classes are kept for methods that want
    them.

    CleanCLIP (App. C.3) finetunes on 5, 10 or 50 ImageNet images a class. These must not be the test images: give
    another folder than the evaluation's.
    """

    kind: Literal["labelled"] = "labelled"
    images: Annotated[AnySpec, one_of(lambda: LABELLED_SOURCES, "read", "source of labelled images")]
    per_class: int | None = Field(default=None, ge=1)
    """Images of each class, drawn by `seed`; None: all."""
    sample: Sample | None = None
    """So many images, as many of each class; None: as `per_class` says."""
    template: str = "a photo of a {}."
    """Caption, with `{}` for the class name."""
    seed: int = Field(default=0, ge=0)

    @field_validator("template")
    @classmethod
    def _one_place(cls, text: str) -> str:
        if text.count("{}") != 1:
            raise ValueError("needs one {} for the class name")
        return text

    @model_validator(mode="after")
    def _check(self) -> "LabelledPairs":
        if self.sample is not None and self.per_class is not None:
            raise ValueError("per_class and sample exclude each other; give one of them")
        return self

    def labelled(self, data_home: Path) -> LabelledImages:
        """The chosen images and their classes.

        Raises:
            InvalidInput: if a class has fewer than `per_class` images, or than the sample takes of it.
        """
        images: LabelledImages = self.images.read(data_home)  # type: ignore[attr-defined]
        if self.sample is not None:
            return images.subset(self.sample.balanced_rows(images.labels, images.class_names))
        if self.per_class is None:
            return images
        draw = numpy_stream(self.seed, "labelled pairs")
        rows = []
        for label, name in enumerate(images.class_names):
            own = np.flatnonzero(images.labels == label)
            if len(own) < self.per_class:
                raise InvalidInput(
                    f"class {name!r} has {len(own)} images, fewer than per_class={self.per_class}; choose fewer"
                )
            rows.append(draw.permutation(own)[: self.per_class])
        return images.subset(np.sort(np.concatenate(rows)))

    def read(self, data_home: Path) -> PairTable:
        """The images with their captions."""
        images = self.labelled(data_home)
        texts = [self.template.replace("{}", images.class_names[label]) for label in images.labels]
        captions = pa.array(texts, pa.large_string())
        return PairTable.of(images.root, images.images, captions, images.sizes, deep_grey=images.deep_grey)
