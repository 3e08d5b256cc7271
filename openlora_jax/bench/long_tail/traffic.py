"""Who asks for which adapter, and when: fixed before a run begins, and a function of its arguments alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DECILES = 10


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come.

    Attributes:
        due: seconds after the run begins, however far the answers to earlier ones are.
        adapter: its number; the most popular one is 0.
    """

    due: float
    adapter: int


def zipf(adapters: int, exponent: float) -> list[float]:
    """The share of requests of each adapter, the most popular first: as 1 / place ** exponent."""
    weights = np.arange(1, adapters + 1, dtype=np.float64) ** -exponent
    return [float(share) for share in weights / weights.sum()]


def poisson(count: int, rate: float, seed: int) -> list[float]:
    """So many due times of a Poisson process with `rate` arrivals a second."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return [float(due) for due in np.cumsum(gaps)]


def arrivals(count: int, rate: float, shares: Sequence[float], seed: int) -> list[Arrival]:
    """Poisson arrivals, each for an adapter drawn by its share."""
    due, draw = poisson(count, rate, seed), np.random.default_rng([seed, 1])
    adapters = draw.choice(len(shares), count, p=shares)
    return [Arrival(at, int(adapter)) for at, adapter in zip(due, adapters, strict=True)]


def deciles(adapters: Sequence[int]) -> list[int]:
    """Which tenth of the requests each of them is in: 0 for the most popular adapters, 9 for the least.

    Requests for one adapter are divided in their order where a border falls among them.
    """
    order = sorted(range(len(adapters)), key=lambda index: (adapters[index], index))
    tenths = [0] * len(adapters)
    for place, index in enumerate(order):
        tenths[index] = place * DECILES // len(adapters)
    return tenths


def resident(adapter: int, residents: int) -> int:
    """Who stands in for an adapter in the control: one of the first `residents`, of the same rank.

    Ranks are given to adapters in turn, and `residents` is a whole number of turns.
    """
    return adapter % residents
