"""Simulated tables of the shapes that Verma et al. and their published results show; seeded, and nothing is trained.

A trial's effective strength is its learning rate over a reference rate, more with a larger SSL weight; under the cosine
schedule it acts most in the early epochs. Strength lowers the ASR at once and the accuracy beyond a limit, and part of
the accuracy comes back as the rate decays; an ASR that fell may rise again ("passes through and leaves it"). The
constants of each surface are chosen so that the best retention and the width of its window are those of the paper,
noise is that of 50,000 test images. They are shapes to search in, not reproductions.
"""

from dataclasses import dataclass

import numpy as np

from searchspaces import verma
from searchspaces.cleanclip import CC6M_MMCL_GRID, CC6M_MMCL_SSL_GRID
from sweeplab.records import Measurement, Point
from sweeplab.search.pruner import Goal
from sweeplab.search.replay import Row, Table, spanned_space

EPOCHS = 20
NUM_IMAGES, NUM_TRIGGERED = 50_000, 49_950
SSL_WEIGHTS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Surface:
    """How accuracy and ASR answer to the learning rate; decades are log10 units of the rate."""

    name: str
    accuracy: float
    """Of the victim."""
    asr: float
    """Of the victim."""
    learning_rates: tuple[float, ...]
    cleans_at: float
    """Rate (SSL weight 1) at which half of the log ASR's way down is gone."""
    collapses_at: float
    """Rate at which half of the accuracy is gone."""
    floor: float
    """ASR that even the strongest cleaning leaves."""
    sharpness: float = 3.0
    """Of the two transitions, per decade."""
    recovers: float = 0.3
    """Share of the lost accuracy that comes back by the last epoch."""
    returns: float = 0.0
    """Decades by which the ASR rises again by the last epoch."""
    ssl_weights: tuple[float, ...] = SSL_WEIGHTS
    """Every one with every rate."""


SURFACES = (
    # CC6M, MMCL victim: +1 % at the largest rate of the grid, 3e-5; here the grid goes on to where accuracy falls.
    Surface("cc6m-mmcl", 0.2376, 0.9998, (*CC6M_MMCL_GRID.axes["learning_rate"], 1e-4, 3e-4, 1e-3, 3e-3),
            cleans_at=1.2e-5, collapses_at=6e-4, floor=0.002),
    # CC6M, MMCL + SSL victim: the ASR falls where accuracy has fallen already (best about -45 %), and comes back.
    Surface("cc6m-mmcl-ssl", 0.2386, 0.9945, CC6M_MMCL_SSL_GRID.axes["learning_rate"],
            cleans_at=2.2e-4, collapses_at=2.4e-4, floor=0.003, recovers=0.25, returns=0.8),
    # 200,000 cleaning pairs, the same victim: little is left where the ASR is below 5 % (about -90 %).
    Surface("200k-mmcl-ssl", 0.2386, 0.9945, (*CC6M_MMCL_GRID.axes["learning_rate"], 1e-4, 3e-4, 1e-3, 3e-3),
            cleans_at=1.0e-3, collapses_at=4.5e-4, floor=0.003, recovers=0.1, returns=0.7),
    # CC3M, MMCL victim, 25 poisons among the cleaning pairs: infeasible everywhere, what counts is the lowest ASR.
    Surface("cc3m-mmcl-25-poisons", 0.16, 0.9988, (1e-7, 3e-7, 7e-7, 1e-6, 3e-6, 7e-6, 1e-5, 3e-5, 1e-4, 3e-4),
            cleans_at=3e-5, collapses_at=2e-4, floor=0.3, returns=0.1),
)  # fmt: skip

WITH_WEIGHT_1 = (1.0,)

SMALL_SURFACES = (
    # Grids of one parameter as Verma et al. ran them: 12 to 16 rates. CC3M, MMCL victim: the best keeps all, at 8e-5.
    Surface("small-cc3m-mmcl", 0.16, 0.9988, verma.CC3M_MMCL.axes["learning_rate"],
            cleans_at=4e-5, collapses_at=1.2e-3, floor=0.002, ssl_weights=WITH_WEIGHT_1),
    # CC3M, MMCL + SSL victim: about -17 %, at 2.5e-4.
    Surface("small-cc3m-mmcl-ssl", 0.1704, 0.9903, verma.CC3M_MMCL_SSL.axes["learning_rate"],
            cleans_at=1.6e-4, collapses_at=5e-4, floor=0.003, recovers=0.25, returns=0.4, ssl_weights=WITH_WEIGHT_1),
    # CC6M, MMCL victim: nothing but the largest of twelve rates cleans, and it keeps all.
    Surface("small-cc6m-mmcl", 0.2376, 0.9998, CC6M_MMCL_GRID.axes["learning_rate"],
            cleans_at=1.2e-5, collapses_at=6e-4, floor=0.002, ssl_weights=WITH_WEIGHT_1),
    # CC6M, MMCL + SSL victim, the sixteen rates whose results are published: about -46 %, at 3e-4.
    Surface("small-cc6m-mmcl-ssl", 0.2386, 0.9945, (*CC6M_MMCL_GRID.axes["learning_rate"], 1e-4, 3e-4, 1e-3, 3e-3),
            cleans_at=2.2e-4, collapses_at=2.4e-4, floor=0.003, recovers=0.25, returns=0.8, ssl_weights=WITH_WEIGHT_1),
    # 200,000 cleaning pairs, the same victim, fourteen rates: about -89 %, at the largest.
    Surface("small-200k-mmcl-ssl", 0.2386, 0.9945, verma.LARGER_CLEANING_SET.axes["learning_rate"],
            cleans_at=5e-4, collapses_at=1.3e-4, floor=0.003, recovers=0.1, returns=0.7, ssl_weights=WITH_WEIGHT_1),
    # CC6M, MMCL + SSL victim again, four rates with four SSL weights each.
    Surface("small-ssl-weights", 0.2386, 0.9945, verma.SSL_WEIGHTS.axes["learning_rate"],
            cleans_at=2.2e-4, collapses_at=2.4e-4, floor=0.003, recovers=0.25, returns=0.8,
            ssl_weights=verma.SSL_WEIGHTS.axes["ssl_weight"]),
)  # fmt: skip


def table_of_surface(surface: Surface, seed: int, *, epochs: int = EPOCHS) -> Table:
    """The surface measured on a grid of learning rates and SSL weights; another seed shifts its thresholds a little."""
    rng = np.random.default_rng([seed, *surface.name.encode()])
    shift, tilt = rng.normal(0, 0.1), rng.normal(0, 0.03)
    victim = _measured(surface.accuracy, surface.asr, rng)
    settings, rows = [], []
    for ssl_weight in surface.ssl_weights:
        for learning_rate in surface.learning_rates:
            setting = {"learning_rate": learning_rate, "ssl_weight": ssl_weight}
            settings.append(setting)
            points = _trajectory(surface, learning_rate, ssl_weight, shift, tilt, epochs, victim, rng)
            rows.append((setting, points))
    space = spanned_space(settings, ("learning_rate",))
    return Table(
        f"{surface.name}-{seed}",
        Goal.of(victim, 0.05),
        space,
        tuple(Row({name: setting[name] for name in space.dimensions}, points, False) for setting, points in rows),
    )


def _trajectory(
    surface: Surface,
    learning_rate: float,
    ssl_weight: float,
    shift: float,
    tilt: float,
    epochs: int,
    victim: Measurement,
    rng: np.random.Generator,
) -> tuple[Point, ...]:
    # A larger SSL weight cleans at lower rates, and costs a little accuracy of its own.
    strength = np.log10(learning_rate) + 0.35 * np.log10(ssl_weight)
    floor = np.log(surface.floor / surface.asr)
    points = [Point(0, 0.0, 0, 1, victim)]
    for epoch in range(1, epochs + 1):
        place = epoch / epochs
        done = (1 - np.cos(np.pi * min(1.0, place * 1.6))) / 2  # share of the schedule's work that is behind
        late = max(0.0, place - 0.5) * 2
        fall = _rise(strength - np.log10(surface.cleans_at) + shift + 0.5 * (done - 1), surface.sharpness)
        log_asr = floor * fall + surface.returns * np.log(10) * late * fall * _away_from_one(fall)
        lost = _rise(strength - np.log10(surface.collapses_at) - shift + 0.25 * (done - 1), surface.sharpness)
        lost *= 1 - surface.recovers * late
        ssl_cost = 0.01 * abs(np.log2(ssl_weight)) + tilt * np.log2(ssl_weight) * 0.2
        accuracy = surface.accuracy * (1 + 0.02 * done - ssl_cost * done) * (1 - lost)
        share = np.exp(log_asr) * surface.asr
        asr = _rise(np.log(share / (1 - share)) + rng.normal(0, 0.1), 1.0)
        points.append(Point(epoch, float(epoch), epoch, 1, _measured(accuracy * (1 + rng.normal(0, 0.004)), asr, rng)))
    return tuple(points)


def _rise(decades: float, sharpness: float) -> float:
    return float(1 / (1 + np.exp(-sharpness * decades)))


def _away_from_one(fall: float) -> float:
    """What was cleaned for good stays so."""
    return float(np.clip(2 * (1 - fall), 0, 1))


def _measured(accuracy: float, asr: float, rng: np.random.Generator) -> Measurement:
    return Measurement(
        int(rng.binomial(NUM_IMAGES, np.clip(accuracy, 0.001, 1))),
        NUM_IMAGES,
        int(rng.binomial(NUM_TRIGGERED, np.clip(asr, 0, 1))),
        NUM_TRIGGERED,
        "simulated",
    )
