"""Quantiles, stages, what the tiers did, and bounds, on numbers that can be checked by hand."""

import pytest

from openlora_jax.adapters.counters import Counters
from openlora_jax.bench.long_tail.client import STAGES, Answer
from openlora_jax.bench.long_tail.figures import Bound, Loads, breakdown, quantile, slowest
from openlora_jax.bench.long_tail.grid import Grid, bounds, ms
from openlora_jax.engine.request import Timings


def answer(first: float) -> Answer:
    timings = Timings(load=0.1, queue=0.2, prefill=0.3, decode=1.0, room=0.15)
    return Answer(due=10.0, submitted=10.05, tokens=(10.0 + first, 10.25 + first, 10.35 + first), timings=timings)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 2.5), (0.99, 3.97), (1.0, 4.0)])
def test_quantiles_are_interpolated(share: float, value: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(value)


def test_nothing_has_a_quantile_of_0() -> None:
    assert quantile([], 0.99) == 0.0


def test_latency_counts_from_the_due_time_and_stages_add_up_to_it() -> None:
    found = answer(0.7)
    assert found.ttft == pytest.approx(0.7)
    assert found.gaps == pytest.approx([0.25, 0.1])
    assert list(found.stages) == list(STAGES)
    assert found.stages["late"] == pytest.approx(0.05)
    assert found.stages["queue"] == pytest.approx(0.05)
    assert found.stages["room"] == pytest.approx(0.15)
    assert found.stages["delivery"] == pytest.approx(0.05)
    assert found.stages["first decode"] == pytest.approx(0.25)
    assert sum(found.stages.values()) - found.stages["first decode"] == pytest.approx(found.ttft)


def test_the_breakdown_is_a_mean_and_the_slowest_are_one_at_least() -> None:
    answers = [answer(0.7), answer(0.9), answer(0.8)]
    assert breakdown(answers)["delivery"] == pytest.approx(0.15)
    assert slowest(answers, 0.01) == [answers[1]]
    assert slowest(answers, 0.67) == [answers[2], answers[1]]


def test_loads_are_what_was_counted_in_between() -> None:
    now = 0.0
    counters = Counters(lambda: now)

    def load(seconds: float) -> None:
        nonlocal now
        with counters.load("d", "disk") as each:
            now += seconds
            each.lap("read")

    load(5.0)
    before = counters.snapshot()
    load(1.0)
    load(3.0)
    counters.not_loaded("refused")
    found = Loads.between(before, counters.snapshot())
    assert (found.ended, found.mean("read"), found.mean("write")) == ({"disk": 2}, 2.0, 0.0)
    both = Loads.together([found, Loads({"host": 1}, {"write": 0.5}, {"write": 1})])
    assert both.as_json() == {"ended": {"disk": 2, "host": 1}, "mean_seconds": {"read": 2.0, "write": 0.5}}


@pytest.mark.parametrize(
    ("bound", "holds"),
    [
        (Bound(what="a", values=(3.0, 1.0, 1.5), limit=1.5), True),
        (Bound(what="a", values=(3.0, 1.0, 1.6), limit=1.5), False),
        (Bound(what="a", values=(0.9, 0.97), limit=0.93, least=True), True),
        (Bound(what="a", values=(0.9, 0.91), limit=0.93, least=True), False),
    ],
)
def test_the_median_is_held_against_the_bound(bound: Bound, holds: bool) -> None:
    assert bound.holds == holds
    assert bounds([bound]).rows[0][-1] == ("pass" if holds else "short")


def test_a_grid_is_shown_and_written() -> None:
    grid = Grid(title="Figures", columns=("", "a"), rows=(("x", ms(0.0123)), ("y", ms(1.5))))
    assert grid.markdown().splitlines() == [
        "**Figures**",
        "",
        "|  | a |",
        "| --- | --: |",
        "| x | 12.3 |",
        "| y | 1,500 |",
    ]
    assert grid.rich().row_count == 2
