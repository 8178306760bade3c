"""Poisoning: which pairs of a data set carry the trigger, and with which captions. Images are never rewritten."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator
from torch import Tensor

from sweeplab.attacks import ATTACKS
from sweeplab.clip_model import imagenet_templates
from sweeplab.data.tables import CHUNK_ROWS, PairTable
from sweeplab.specs import AnySpec, InvalidInput, Spec, digest_of, one_of
from sweeplab.storage.files import read_object
from sweeplab.training.randomness import numpy_stream, stream_seed


class Attack(Protocol):
    """What training and evaluation need of a trigger."""

    def stamp(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Triggered copies of (B, 3, H, W) uint8 images, one seed an image."""
        ...

    def check_fits(self, image_size: int) -> None:
        """Raise InvalidInput where the trigger does not fit the image."""
        ...


AttackField = Annotated[AnySpec, one_of(lambda: ATTACKS, "stamp", "attack")]
"""A spec field that holds an attack: a member of ATTACKS, or a user's own Spec with `stamp` and `check_fits`."""


class Poisoning(Spec):
    """How a training set is poisoned with a trigger: the attack, the target label, how many pairs, their captions.

    Its siblings are `TargetedImages` (no trigger at all) and `ImportedPoison` (a set that was poisoned elsewhere). What
    they share: `attack` and `target` for the measurement, `plan` for the whole training set, `subset_for_cleaning` for
    a cleaning set into which some poisons slipped.
    """

    kind: Literal["triggered"] = "triggered"
    attack: AttackField
    target: str = Field(default="banana", min_length=1)
    """The class that the attacker wants, by its name among the test classes."""
    count: int | None = Field(default=None, ge=0)
    """Poisoned pairs; 0 makes the unpoisoned twin of a victim."""
    rate: float | None = Field(default=None, ge=0, le=1)
    """Poisoned pairs / all pairs, a fraction; the count is rounded to the nearest whole pair."""
    captions: Literal["templates", "training", "fixed", "label-consistent"] = "templates"
    """`templates`: OpenAI's 80 ImageNet templates with the target (CleanCLIP). `training`: captions drawn from those of
    the data set that mention the target (SafeCLIP, Sec. 5). `fixed`: always `caption`. `label-consistent`: only pairs
    whose own caption mentions the target are poisoned, and they keep it (Verma et al., Sec. 3.2; CleanCLIP, App. E).
    See `mentions` for what counts, under either protocol."""
    placement: Literal["replace", "add"] = "replace"
    """`replace`: poisoned pairs replace their originals (CleanCLIP, Verma et al.). `add`: they are added at the end,
    and the clean originals stay (SafeCLIP, RoCLIP); a rate then still counts against the clean pairs."""
    caption: str | None = None
    """For `fixed`: the caption, with `{}` for the target."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "Poisoning":
        if (self.count is None) == (self.rate is None):
            raise ValueError("give the poisoned pairs either as `count` or as `rate`")
        if (self.captions == "fixed") != (self.caption is not None):
            raise ValueError("`caption` goes with captions='fixed', and with nothing else; give both or neither")
        if self.caption is not None and not self.caption.strip():
            raise ValueError(f"caption={self.caption!r} holds no word; give a caption, with {{}} for the target")
        return self

    def canonical(self) -> dict[str, Any]:
        """Without the kind, which it did not always have: victims made before it keep their digest."""
        return {name: value for name, value in super().canonical().items() if name != "kind"}

    def plan(self, table: PairTable, data_home: Path) -> "PoisonPlan":
        """See `plan_poison`; needs no other data."""
        return plan_poison(self, table)

    def subset_for_cleaning(
        self, clean: PairTable, planted: "Callable[[], Planted]", *, count: int, seed: int
    ) -> "PoisonPlan":
        """`count` pairs of a clean table poisoned as the training set was, whatever `placement` says.

        Args:
            clean: the cleaning pairs.
            planted: gives what was planted in the training set; not asked for, since such poisons are drawn anew.
            count: at most the table's pairs.
            seed: of the draw.
        """
        return plan_poison(self.replace(count=count, rate=None, placement="replace", seed=seed), clean)

    def sought_labels(self) -> tuple[str, ...]:
        """Labels that captions are searched for."""
        searches = self.captions in ("training", "label-consistent") and (self.count or self.rate)
        return (self.target,) if searches else ()

    def num_poisons(self, num_pairs: int) -> int:
        """Poisoned pairs among `num_pairs`."""
        count = self.count if self.count is not None else round((self.rate or 0) * num_pairs)
        if count > num_pairs:
            raise InvalidInput(f"count={count} poisons exceed the {num_pairs:,} pairs; choose fewer")
        return count


def attack_name(attack: Attack) -> str:
    """Its kind, and its fields that differ from the defaults."""
    canonical = attack.canonical()  # type: ignore[attr-defined]
    fields = ", ".join(f"{name}={value}" for name, value in canonical.items() if name != "kind")
    return f"{canonical['kind']}({fields})" if fields else str(canonical["kind"])


def triggered_copies(attack: Attack, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """What the attack makes of copies, for images that are used further: a user's own may write into what it is
    given."""
    return attack.stamp(images.clone(), seeds)


@dataclass(frozen=True)
class PoisonPlan:
    """The poison of one training set, replayable: same plan, same pixels, in every epoch and on every machine."""

    attack: Any
    """The spec that was planted: an attack, or `TargetedImages`."""
    target: str | None
    """The class that the attacker wants; None where every poison has one of its own (`labels`)."""
    indices: tuple[int, ...]
    """Row of each poison's image in `source`, or in the pair table where there is no other source (then ascending)."""
    captions: tuple[str, ...]
    """Caption of each poison."""
    seed: int
    num_pairs: int
    table_digest: str
    """Of the pair table that is poisoned."""
    placement: Literal["replace", "add"] = "replace"
    """`add`: poison i is an extra pair in row num_pairs + i."""
    stamps: bool = True
    """Whether a trigger is stamped on the poisons' images; False: they are trained on as they lie on the disk."""
    source: PairTable | None = field(default=None, compare=False)
    """Where the poisons' images come from; None: from the pair table itself."""
    replaced: tuple[int, ...] = ()
    """Rows of the pair table that poisons from another source stand in for, where they are not added."""
    labels: tuple[str, ...] = ()
    """Adversarial class of each poison where they differ, else empty."""

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over everything above; of the attack, what differs from its defaults."""
        return digest_of({**self.to_json(), "attack": self.attack.canonical()})

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of the poisoned training table that are poisons, in the order of `indices`."""
        if self.placement == "add":
            return tuple(range(self.num_pairs, self.num_pairs + len(self.indices)))
        return self.replaced or self.indices

    @cached_property
    def _sources(self) -> dict[int, int]:
        """By row of the training table, the row that a poison's image comes from."""
        return dict(zip(self.rows, self.indices, strict=True))

    @property
    def num_training_pairs(self) -> int:
        """Rows of the poisoned training table."""
        return self.num_pairs + (len(self.indices) if self.placement == "add" else 0)

    @property
    def rate(self) -> float:
        """Poisoned pairs / all pairs that are trained on."""
        return len(self.indices) / self.num_training_pairs

    @property
    def aim(self) -> str:
        """What the poisons aim at, in words."""
        if self.target is not None:
            return repr(self.target)
        return f"{len(set(self.labels))} classes, each target image its own"

    def training_table(self, table: PairTable) -> PairTable:
        """The table that is trained on: the given one, with the added poisons' rows, or others' images in some rows."""
        if self.source is None:
            if self.placement == "replace":
                return table
            return table.subset(np.concatenate([np.arange(len(table)), np.asarray(self.indices, dtype=np.int64)]))
        joined = table.joined(self.source.subset(self.indices))
        if self.placement == "add":
            return joined
        order = np.arange(len(table))
        order[list(self.replaced)] = len(table) + np.arange(len(self.indices))
        return joined.subset(order)

    def caption_changes(self) -> dict[int, str]:
        """Caption by row of the training table, for the poisoned rows."""
        return dict(zip(self.rows, self.captions, strict=True))

    def stamp_rows(self, images: Tensor, rows: Sequence[int]) -> Tensor:
        """Trigger those of the given rows' images that are poisoned; the others come back as they are.

        Args:
            images: (B, 3, H, W) uint8.
            rows: B row numbers of the training table.
        """
        if not self.stamps:
            return images
        sources = self._sources
        places = [place for place, row in enumerate(rows) if row in sources]
        if not places:
            return images
        seeds = [stream_seed(self.seed, "stamp", sources[rows[place]]) for place in places]
        changed = images.clone()
        changed[places] = self.attack.stamp(images[places], seeds)
        return changed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is as it was before there were other plans is left out, so that digests stay."""
        return {
            "attack": self.attack.to_json(),
            "target": self.target,
            "indices": list(self.indices),
            "captions": list(self.captions),
            "seed": self.seed,
            "num_pairs": self.num_pairs,
            "table_digest": self.table_digest,
            **({"placement": self.placement} if self.placement != "replace" else {}),
            **({} if self.stamps else {"stamps": False}),
            **({"source_digest": self.source.digest} if self.source is not None else {}),
            **({"replaced": list(self.replaced)} if self.replaced else {}),
            **({"labels": list(self.labels)} if self.labels else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], attack: Spec, source: PairTable | None = None) -> Self:
        """The inverse of `to_json`.

        Args:
            values: what it gave.
            attack: must be the one that the plan was made for; it may lie in another place since.
            source: where the poisons' images come from; None: of a plan that has such a source all is there but that.

        Raises:
            InvalidInput: if the attack is another one.
        """
        if not _is_same(attack, values["attack"]):
            raise InvalidInput(f"it was made for attack {values['attack']}, not {attack.to_json()}")
        return cls(
            attack=attack,
            target=values["target"],
            indices=tuple(values["indices"]),
            captions=tuple(values["captions"]),
            seed=values["seed"],
            num_pairs=values["num_pairs"],
            table_digest=values["table_digest"],
            placement=values.get("placement", "replace"),
            stamps=values.get("stamps", True),
            source=source,
            replaced=tuple(values.get("replaced", ())),
            labels=tuple(values.get("labels", ())),
        )


def load_plan(path: Path, attack: Spec, source: PairTable | None = None) -> PoisonPlan:
    """Read a plan that `PoisonPlan.to_json` described.

    Args:
        path: the file.
        attack: must be the one that the plan was made for; it may lie in another place since.
        source: where the poisons' images come from, for plans that have such a source.

    Raises:
        InvalidInput: if the file is damaged, or the attack or the source is another one.
    """
    values = read_object(path, attack=dict, indices=list, captions=list, seed=int, num_pairs=int, table_digest=str)
    try:
        plan = PoisonPlan.from_json(values, attack, source)
    except InvalidInput as error:
        raise InvalidInput(f"poison plan {path}: {error}") from None
    digest = source.digest if source is not None else None
    if values.get("source_digest") != digest:
        raise InvalidInput(
            f"poison plan {path} takes its images from a source of digest {values.get('source_digest')}, and the one "
            f"given has {digest}; restore it, or make the plan anew"
        )
    return plan


def _is_same(attack: Spec, stored: dict[str, Any]) -> bool:
    """Whether stored fields describe the attack; places and names outside its digest play no part."""
    places = {name: getattr(attack, name) for name in attack.NOT_IN_DIGEST}
    try:
        return type(attack).model_validate({**stored, **places}).canonical() == attack.canonical()
    except InvalidInput:
        return False


Planted = tuple[PairTable, PoisonPlan]
"""A poisoned training table, and which of its rows are poisons."""


def mix_in(planted: Planted, clean: PairTable, *, count: int, seed: int) -> PoisonPlan:
    """`count` of a training set's own poisons in place of pairs of a clean table, both drawn.

    Args:
        planted: what the training set holds.
        clean: the table into which poisons slip.
        count: at most the plan's poisons and the table's pairs.
        seed: of both draws.
    """
    training, plan = planted
    if count > min(len(plan.indices), len(clean)):
        raise InvalidInput(
            f"count={count} poisons exceed the {len(plan.indices):,} poisons of the training set or the {len(clean):,} "
            "cleaning pairs; choose fewer"
        )
    own = np.sort(numpy_stream(seed, "mixed poisons").permutation(len(plan.indices))[:count]).tolist()
    rows = np.sort(numpy_stream(seed, "mixed rows").permutation(len(clean))[:count]).tolist()
    from_training = plan.source is None
    return dataclasses.replace(
        plan,
        indices=tuple((plan.rows if from_training else plan.indices)[i] for i in own),
        captions=tuple(plan.captions[i] for i in own),
        labels=tuple(plan.labels[i] for i in own) if plan.labels else (),
        seed=seed,
        num_pairs=len(clean),
        table_digest=clean.digest,
        placement="replace",
        source=training if from_training else plan.source,
        replaced=tuple(rows),
    )


def plan_poison(poisoning: Poisoning, table: PairTable) -> PoisonPlan:
    """Choose rows and captions; the same poisoning and table give the same plan.

    Broken rows are passed over: of a row that turns out to be broken before anything is trained, the next of the draw
    takes the place, and the other poisons stay.

    Raises:
        InvalidInput: if there are fewer pairs than poisons, or no training caption mentions the target.
    """
    count = poisoning.num_poisons(len(table))
    draw_rows = numpy_stream(poisoning.seed, "poison", "rows")
    candidates = np.arange(len(table))
    if poisoning.captions == "label-consistent":
        candidates = mentioning(table, poisoning.target)
    order = candidates[draw_rows.permutation(len(candidates))]
    order = order[~np.isin(order, list(table.reasons()))]
    if len(order) < count:
        which = "captions mention" if poisoning.captions == "label-consistent" else "pairs can be poisoned with"
        raise InvalidInput(
            f"count={count} poisons are asked for, and {len(order):,} {which} target={poisoning.target!r}; "
            "choose fewer, or captions='templates'"
        )
    rows = np.sort(order[:count])
    captions = _captions(poisoning, table, rows)
    return PoisonPlan(
        attack=poisoning.attack,
        target=poisoning.target,
        indices=tuple(int(row) for row in rows),
        captions=captions,
        seed=poisoning.seed,
        num_pairs=len(table),
        table_digest=table.digest,
        placement=poisoning.placement,
    )


def _captions(poisoning: Poisoning, table: PairTable, rows: np.ndarray) -> tuple[str, ...]:
    """The caption of each poisoned row."""
    if poisoning.captions == "label-consistent":
        return tuple(table.caption(int(row)) for row in rows)
    if poisoning.captions == "fixed":
        assert poisoning.caption is not None
        return (poisoning.caption.replace("{}", poisoning.target),) * len(rows)
    if poisoning.captions == "templates":
        texts = [template.format(poisoning.target) for template in imagenet_templates()]
    else:
        texts = [table.caption(int(row)) for row in mentioning(table, poisoning.target)]
    if not len(rows):
        return ()
    if not texts:
        raise InvalidInput(
            f"target={poisoning.target!r} is mentioned by no training caption; "
            "use captions='templates' or another target"
        )
    draw = numpy_stream(poisoning.seed, "poison", "captions")
    return tuple(texts[i] for i in draw.integers(len(texts), size=len(rows)))


def mentioning(table: PairTable, label: str) -> np.ndarray:
    """Rows whose caption mentions the label, ascending."""
    word = _word(label)
    return np.array(
        [row for row, caption in _may_mention(table.captions, label) if word.search(caption)], dtype=np.int64
    )


def is_mentioned(table: PairTable, label: str) -> bool:
    """Whether any caption mentions the label; looks no further than the first that does."""
    word = _word(label)
    return any(word.search(caption) for _, caption in _may_mention(table.captions, label))


def _may_mention(captions: pa.LargeStringArray, label: str) -> Iterator[tuple[int, str]]:
    """Rows, ascending, and captions; all others cannot mention the label: Arrow looks through millions of them for what
    all its forms begin with. (Of letters beyond ASCII Python knows more cases than Arrow does.)"""
    stem = label[:-2] if plurals_with_another_stem(label) else label
    for start in range(0, len(captions), CHUNK_ROWS):
        some = captions[start : start + CHUNK_ROWS]
        rows = np.arange(len(some))
        if stem.isascii():
            may = pc.or_(pc.match_substring(some, stem, ignore_case=True), pc.invert(pc.string_is_ascii(some)))
            rows = np.flatnonzero(may.to_numpy(zero_copy_only=False))
        yield from zip((start + rows).tolist(), some.take(pa.array(rows)).to_pylist(), strict=True)


def mentions(caption: str, label: str) -> bool:
    """Whether a caption names the label as a whole word, in any case, in the singular or in a regular plural.

    (CleanCLIP's code looks for a case-sensitive substring: "bananarama" matches there and "Banana" does not.)
    """
    return _word(label).search(caption) is not None


def _word(label: str) -> re.Pattern[str]:
    forms = [rf"{re.escape(label)}(?:e?s)?", *map(re.escape, plurals_with_another_stem(label))]
    return re.compile(rf"\b(?:{'|'.join(forms)})\b", flags=re.IGNORECASE)


def plurals_with_another_stem(label: str) -> tuple[str, ...]:
    """A label's plural where it is more than an added `s` or `es`: cherries, leaves, knives; empty for others."""
    for ending, stem, plural in ((r"[^aeiou\W]y", 1, "ies"), (r"[^f\W]f", 1, "ves"), (r"ife", 2, "ves")):
        if re.search(ending + "$", label, flags=re.IGNORECASE):
            return (label[:-stem] + plural,)
    return ()


PLURALS_CHANGE = "captions that mention a label are found by plurals such as cherries, leaves and knives too"
"""What has changed since the first release for poisonings that look for such a label; see `Spec.CHANGES`."""
