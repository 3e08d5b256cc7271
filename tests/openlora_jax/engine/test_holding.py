"""An idle engine waits a little for adapters that are about to come, so that their requests are one chunk."""

import pytest

from openlora_jax.engine.deadlines import Deadlines
from openlora_jax.engine.holding import LEAST, hold
from openlora_jax.engine.policy import LEVELS
from openlora_jax.engine.rates import Rates
from openlora_jax.engine.scheduling_params import Priority, SchedulingParams
from openlora_jax.engine.sequence import LiveRequest
from openlora_jax.engine.stream import EventStream
from tests.openlora_jax.engine.answers import collect
from tests.openlora_jax.engine.cases import check
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate, small_config

CHUNK, LOAD = 0.1, 0.01


def rates() -> Rates:
    rates = Rates()
    rates.iterated(CHUNK, chunk=True, rows=0)
    rates.loaded(LOAD, idle=True)
    rates.loaded(50 * LOAD, idle=False)
    return rates


def alike(_: LiveRequest) -> int:
    return 0


@pytest.mark.parametrize(
    ("ready", "loading_since", "seconds"),
    [
        (1, [0.004], 0.006),
        (8, [0.004], 0.006),
        (16, [0.004], 0.0),
        (1, [0.01], LEAST),
        (1, [0.03], 0.02),
        (1, [0.07], 0.0),
        (1, [0.004, 0.008, 0.5], 0.002),
        (0, [0.004], 0.0),
        (3, [], 0.0),
    ],
)
def test_it_is_worth_it_while_the_ready_lose_less_than_who_comes_gains(
    ready: int, loading_since: list[float], seconds: float
) -> None:
    now, stream = 100.0, EventStream(lambda: None)
    waiting = [LiveRequest(generate([5]), stream, now, ready=now) for _ in range(ready)]
    waiting += [LiveRequest(generate([5]), stream, now - since) for since in loading_since]
    assert hold(waiting, alike, rates(), now) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("ready", "loading", "seconds"), [("normal", "low", 0.0), ("normal", "normal", 0.006), ("normal", "high", 0.006)]
)
def test_nobody_waits_for_a_lower_class(ready: Priority, loading: Priority, seconds: float) -> None:
    now, stream = 100.0, EventStream(lambda: None)
    waiting = [
        LiveRequest(generate([5], scheduling=SchedulingParams(priority=ready)), stream, now, ready=now),
        LiveRequest(generate([5], scheduling=SchedulingParams(priority=loading)), stream, now - 0.004),
    ]

    def level(live: LiveRequest) -> int:
        return LEVELS[live.request.scheduling.priority]

    assert hold(waiting, level, rates(), now) == pytest.approx(seconds)


def test_nothing_is_waited_for_before_anything_was_measured() -> None:
    stream = EventStream(lambda: None)
    waiting = [LiveRequest(generate([5]), stream, 0.0, ready=0.0), LiveRequest(generate([5]), stream, 0.0)]
    assert hold(waiting, alike, Rates(), 0.0) == 0.0


def test_loads_that_end_one_after_the_other_start_together() -> None:
    bench = Bench(small_config(prefill_chunk=64), FakeAdapters(automatic=False))
    bench.engine._deadlines = Deadlines(rates(), bench.config.prefill_chunk)
    requests = [generate([5], {f"a{number}": 1.0}) for number in (1, 2, 3)]
    streams = [bench.submit(request) for request in requests]
    for number in (1, 2):
        bench.adapters.finish_load(f"d{number}")
        assert not bench.engine.step()
        bench.clock.now += 0.004
    assert not bench.runner.plans
    bench.adapters.finish_load("d3")
    assert bench.engine.step()
    assert len(bench.runner.plans[0].tiles) == 3
    bench.settle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))


def test_a_load_that_does_not_come_holds_nobody_up() -> None:
    bench = Bench(small_config(), FakeAdapters(automatic=False))
    bench.engine._deadlines = Deadlines(rates(), bench.config.prefill_chunk)
    ready, late = generate([5], {"a1": 1.0}), bench.submit(generate([5], {"a2": 1.0}))
    stream = bench.submit(ready)
    bench.adapters.finish_load("d1")
    bench.engine.step()
    while not bench.runner.plans:
        bench.clock.now += bench.engine._pause
        bench.engine.step()
    assert bench.clock.now < 100.0 + LOAD + CHUNK
    bench.settle()
    check(ready, collect(stream))
    late.cancel()
    bench.settle()
