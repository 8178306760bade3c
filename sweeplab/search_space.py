"""Search spaces and grids as data: dimensions by parameter name, with their source; translated to Optuna."""

import itertools
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from pydantic import Field, model_validator

from sweeplab.specs import Spec

Scalar = bool | int | float | str
Distribution = FloatDistribution | CategoricalDistribution


class _Dimension(Spec):
    when: dict[str, Scalar] | None = None
    """Only drawn where each named earlier parameter has the given value; None: always."""

    def is_active(self, chosen: dict[str, Any]) -> bool:
        """Whether the dimension applies under the values chosen so far."""
        return self.when is None or all(chosen.get(name) == value for name, value in self.when.items())

    def distribution(self) -> Distribution:
        """As Optuna knows it."""
        raise NotImplementedError

    def ends(self) -> tuple[Scalar, ...]:
        """Its least and its greatest value, or all its choices."""
        distribution = self.distribution()
        if isinstance(distribution, CategoricalDistribution):
            return tuple(distribution.choices)  # type: ignore[arg-type]
        return distribution.low, distribution.high

    def holds(self, value: Any) -> bool:
        """Whether the dimension could draw the value."""
        distribution = self.distribution()
        if isinstance(distribution, CategoricalDistribution):
            return value in distribution.choices
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and distribution.low <= value <= distribution.high


class Uniform(_Dimension):
    """A real number in [low, high], uniformly."""

    kind: Literal["uniform"] = "uniform"
    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> "Uniform":
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"low={self.low} and high={self.high} lie further apart than real numbers reach")
        return self

    def distribution(self) -> FloatDistribution:
        """As Optuna knows it."""
        return FloatDistribution(self.low, self.high)

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> float:
        """Draw a value through Optuna."""
        return trial.suggest_float(name, self.low, self.high)


class LogUniform(_Dimension):
    """A positive real number in [low, high], uniformly in its logarithm."""

    kind: Literal["log-uniform"] = "log-uniform"
    low: float = Field(gt=0)
    high: float

    @model_validator(mode="after")
    def _check(self) -> "LogUniform":
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")
        return self

    def distribution(self) -> FloatDistribution:
        """As Optuna knows it."""
        return FloatDistribution(self.low, self.high, log=True)

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> float:
        """Draw a value through Optuna."""
        return trial.suggest_float(name, self.low, self.high, log=True)


class Choice(_Dimension):
    """One of a few values without order."""

    kind: Literal["choice"] = "choice"
    values: tuple[Scalar, ...] = Field(min_length=1)

    def distribution(self) -> CategoricalDistribution:
        """As Optuna knows it."""
        return CategoricalDistribution(list(self.values))

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Scalar:
        """Draw a value through Optuna."""
        return cast(Scalar, trial.suggest_categorical(name, list(self.values)))


Dimension = Annotated[Uniform | LogUniform | Choice, Field(discriminator="kind")]


class SearchSpace(Spec):
    """What Optuna explores: dimensions by parameter name, in the order in which they are drawn."""

    NOT_IN_DIGEST = frozenset({"source"})

    dimensions: dict[str, Dimension] = Field(min_length=1)
    source: str
    """Where the ranges come from: paper and section, or who chose them and why."""

    @model_validator(mode="after")
    def _check_conditions(self) -> "SearchSpace":
        earlier: set[str] = set()
        for name, dimension in self.dimensions.items():
            unknown = set(dimension.when or {}) - earlier
            if unknown:
                raise ValueError(
                    f"{name}.when names {', '.join(sorted(unknown))}, which no earlier dimension draws; "
                    f"earlier: {', '.join(sorted(earlier)) or 'none'}"
                )
            earlier.add(name)
        return self

    def canonical(self) -> dict[str, Any]:
        """With the order of the dimensions, which decides the draws."""
        return {**super().canonical(), "order": list(self.dimensions)}

    @property
    def is_conditional(self) -> bool:
        """Whether some dimension applies under a condition only."""
        return any(dimension.when is not None for dimension in self.dimensions.values())

    def num_free(self) -> int:
        """Dimensions that have more than one value."""
        return sum(not dimension.distribution().single() for dimension in self.dimensions.values())

    def num_settings(self) -> int | None:
        """At most so many settings can be drawn, conditions fulfilled or not; None: without limit."""
        if not all(isinstance(dimension, Choice) for dimension in self.dimensions.values()):
            return None
        return math.prod(len(set(dimension.ends())) for dimension in self.dimensions.values())

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Scalar]:
        """Draw one setting; parameters whose condition does not hold are absent and keep their default."""
        chosen: dict[str, Scalar] = {}
        for name, dimension in self.dimensions.items():
            if dimension.is_active(chosen):
                chosen[name] = dimension.suggest(trial, name)
        return chosen

    def suggest_rest(self, trial: optuna.trial.BaseTrial, setting: dict[str, Any]) -> dict[str, Scalar]:
        """Draw what does not apply in a setting, too."""
        return {name: dim.suggest(trial, name) for name, dim in self.dimensions.items() if name not in setting}

    def fault_of(self, setting: dict[str, Any]) -> str | None:
        """Why the space could not draw a setting, for a message; None: it could."""
        chosen: dict[str, Any] = {}
        for name, dimension in self.dimensions.items():
            if dimension.is_active(chosen):
                if name not in setting:
                    return f"{name} is missing"
                if not dimension.holds(setting[name]):
                    return f"{name}={setting[name]!r} lies outside the space"
                chosen[name] = setting[name]
        left = sorted(set(setting) - set(chosen))
        return f"{left[0]} is no parameter that the space would draw there" if left else None

    def log_parameters(self) -> tuple[str, ...]:
        """Names that are searched on a logarithmic scale."""
        return tuple(name for name, dimension in self.dimensions.items() if isinstance(dimension, LogUniform))


class Grid(Spec):
    """A finite list of settings: the product of its axes, last axis fastest."""

    NOT_IN_DIGEST = frozenset({"source"})

    axes: dict[str, tuple[Scalar, ...]] = Field(min_length=1)
    source: str

    @model_validator(mode="after")
    def _check_axes(self) -> "Grid":
        for name, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {name} has no values")
            if len(set(values)) != len(values):
                repeated = sorted({str(value) for value in values if values.count(value) > 1})
                raise ValueError(f"axis {name} repeats {', '.join(repeated)}; every setting is run once")
        return self

    def canonical(self) -> dict[str, Any]:
        """With the order of the axes, which numbers the trials."""
        return {**super().canonical(), "order": list(self.axes)}

    def grid_size(self) -> int:
        """How many settings the grid has."""
        return math.prod(len(values) for values in self.axes.values())

    def points(self) -> tuple[dict[str, Scalar], ...]:
        """All settings in order."""
        return tuple(dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values()))

    def log_parameters(self) -> tuple[str, ...]:
        """Numeric axes whose positive values span a factor of ten or more."""
        return tuple(name for name, values in self.axes.items() if spans_magnitudes(values))

    def as_space(self) -> SearchSpace:
        """The axes as dimensions of choices."""
        return SearchSpace(
            dimensions={name: Choice(values=values) for name, values in self.axes.items()}, source=self.source
        )


def spans_magnitudes(values: Iterable[Any]) -> bool:
    """Whether all values are positive numbers and the largest is ten times the smallest or more."""
    values = list(values)
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return len(numbers) == len(values) > 0 and min(numbers) > 0 and max(numbers) >= 10 * min(numbers)


def check_names(names: Iterable[str], owners: dict[str, type[Spec]]) -> None:
    """Refuse parameter names that no owner has as a field, or that two owners share.

    Args:
        names: parameter names of a space or grid.
        owners: spec classes by the word that names them in a message, for example {"method": CleanCLIP}.
    """
    for name in names:
        holders = [word for word, owner in owners.items() if name in owner.model_fields and name != "kind"]
        if not holders:
            known = "; ".join(
                f"{word}: {', '.join(field for field in owner.model_fields if field != 'kind')}"
                for word, owner in owners.items()
            )
            raise ValueError(f"unknown parameter {name!r} in the space; known are fields of {known}")
        if len(holders) > 1:
            raise ValueError(f"parameter {name!r} is a field of {' and of '.join(holders)}; rename one of them")
