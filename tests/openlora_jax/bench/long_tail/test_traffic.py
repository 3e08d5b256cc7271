"""Arrivals are fixed in advance, popularity is Zipf's, and the control keeps everything but the adapter."""

from collections import Counter
from itertools import pairwise
from statistics import fmean

import pytest

from openlora_jax.bench.long_tail.fleet import Fleet
from openlora_jax.bench.long_tail.traffic import arrivals, deciles, poisson, resident, zipf
from openlora_jax.errors import InvalidConfig


def test_arrivals_are_a_function_of_the_seed() -> None:
    shares = zipf(50, 1.0)
    assert arrivals(200, 2.0, shares, seed=3) == arrivals(200, 2.0, shares, seed=3)
    assert arrivals(200, 2.0, shares, seed=3) != arrivals(200, 2.0, shares, seed=4)


def test_who_asks_does_not_depend_on_the_rate_and_neither_does_the_pattern() -> None:
    slow, fast = arrivals(100, 1.0, zipf(9, 1.0), seed=0), arrivals(100, 4.0, zipf(9, 1.0), seed=0)
    assert [each.adapter for each in slow] == [each.adapter for each in fast]
    assert [each.due / 4 for each in slow] == pytest.approx([each.due for each in fast])


def test_gaps_are_those_of_a_poisson_process() -> None:
    due = poisson(20_000, rate=5.0, seed=1)
    gaps = [after - before for before, after in pairwise(due)]
    mean = fmean(gaps)
    assert mean == pytest.approx(0.2, rel=0.03)
    assert fmean((gap - mean) ** 2 for gap in gaps) == pytest.approx(0.04, rel=0.05)


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0])
def test_popularity_falls_as_a_power_of_the_place(exponent: float) -> None:
    shares = zipf(100, exponent)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] / shares[9] == pytest.approx(10**exponent)
    drawn = Counter(each.adapter for each in arrivals(20_000, 1.0, shares, seed=0))
    assert drawn[0] / 20_000 == pytest.approx(shares[0], abs=0.01)


@pytest.mark.parametrize(
    ("adapters", "tenths"),
    [
        ([5] * 10, list(range(10))),
        (list(range(9, -1, -1)), list(range(9, -1, -1))),
        ([7, 0, 0, 0, 0, 0, 0, 0, 0, 3] * 2, [9, 0, 0, 1, 1, 2, 2, 3, 3, 8, 9, 4, 4, 5, 5, 6, 6, 7, 7, 8]),
    ],
)
def test_deciles_are_of_requests(adapters: list[int], tenths: list[int]) -> None:
    assert deciles(adapters) == tenths


@pytest.mark.parametrize(("pages", "residents"), [(8, 4), (15, 4), (16, 8), (32, 16), (10_000, 100)])
def test_the_control_has_the_same_ranks_and_fits_the_pool(pages: int, residents: int) -> None:
    fleet = Fleet(count=100)
    assert fleet.residents(pages) == residents
    assert sum(-(-fleet.rank(index) // 16) for index in range(residents)) <= pages
    for adapter in range(fleet.count):
        assert fleet.rank(resident(adapter, residents)) == fleet.rank(adapter)
        assert resident(adapter, residents) < residents


def test_a_pool_that_does_not_hold_every_rank_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="7 do not hold an adapter of each rank, which take 8"):
        Fleet(count=100).residents(7)
