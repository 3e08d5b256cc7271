"""Who waits for an adapter, who passes, and what is refused."""

import pytest

from openlora_jax.engine.policy import PATIENCE
from openlora_jax.engine.request import Finished
from openlora_jax.engine.scheduling_params import SchedulingParams
from openlora_jax.errors import AdapterUnavailable, InvalidRequest, UnknownAdapter
from tests.openlora_jax.engine.answers import collect
from tests.openlora_jax.engine.cases import REQUESTS, check, until
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate, small_config


def test_others_pass_who_waits_for_a_load() -> None:
    bench = Bench(small_config(), FakeAdapters(automatic=False))
    slow = generate([5], {"a1": 1.0, "a2": 1.0})
    quick = generate([5], {"a3": 1.0})
    bench.adapters.finish_load("d1")
    bench.adapters.finish_load("d3")
    streams = [bench.submit(request) for request in (slow, quick, REQUESTS["base"])]
    bench.settle()
    check(quick, collect(streams[1]))
    check(REQUESTS["base"], collect(streams[2]))
    bench.adapters.finish_load("d2")
    bench.settle()
    check(slow, collect(streams[0]))
    bench.check_idle()


def test_a_failed_load_fails_who_waits_for_it_and_nobody_else() -> None:
    bench = Bench(small_config(), FakeAdapters(automatic=False))
    bench.adapters.finish_load("d1")
    waiting = [bench.submit(generate([5], {"a1": 1.0, "a2": 1.0})) for _ in range(2)]
    other = bench.submit(REQUESTS["base"])
    bench.engine.step()
    bench.adapters.fail_load("d2")
    bench.settle()
    for stream in waiting:
        assert isinstance(collect(stream).error, AdapterUnavailable)
    check(REQUESTS["base"], collect(other))
    bench.check_idle()


def test_an_unknown_adapter_is_refused_and_holds_nothing() -> None:
    bench = Bench(small_config())
    with pytest.raises(UnknownAdapter):
        bench.submit(generate([5], {"a1": 1.0, "b2": 1.0}))
    bench.check_idle()


def test_who_finds_no_room_is_passed_for_a_while_but_does_not_starve() -> None:
    bench = Bench(small_config(), FakeAdapters(num_pages=4, rank_pages=lambda number: 3 if number == 9 else 1))
    running = [bench.submit(generate([5], {f"a{number}": 1.0}, max_tokens=10)) for number in (1, 2)]
    bench.engine.step()
    large = bench.submit(generate([5], {"a9": 1.0}, max_tokens=10))
    finished = 0
    for _ in range(200):
        bench.engine.step()
        bench.clock.now += PATIENCE / 40
        running.append(bench.submit(generate([5], {f"a{1 + finished % 2}": 1.0}, max_tokens=10)))
        finished += 1
        if large._closed:
            break
    assert 40 < finished < 80
    for stream in running:
        stream.cancel()
    bench.settle()
    assert collect(large).samples[0].finish_reason == "length"
    bench.check_idle()


def test_base_requests_pass_even_who_is_out_of_patience() -> None:
    bench = Bench(small_config(), FakeAdapters(num_pages=3, rank_pages=lambda number: 2))
    first = bench.submit(generate([5], {"a1": 1.0}, max_tokens=100))
    bench.engine.step()
    bench.submit(generate([5], {"a2": 1.0}))
    bench.engine.step()
    bench.clock.now += PATIENCE
    late, base = bench.submit(generate([5], {"a1": 1.0}, max_tokens=1)), bench.submit(REQUESTS["base"])
    until(lambda: base._closed, bench)
    assert not late._closed
    first.cancel()
    bench.settle()
    bench.check_idle()


def test_who_must_be_read_again_is_passed_whatever_it_has_waited() -> None:
    """It was ready by the device alone, and left that for room: it waits for a load, not for pages."""
    bench = Bench(small_config(), FakeAdapters(num_pages=4, automatic=False, rank_pages=lambda number: 2))
    bench.adapters.finish_load("d1")
    bench.adapters.finish_load("d2")
    lost = bench.submit(generate([5], {"a1": 1.0}))
    bench.adapters.loaded.discard("d1")
    bench.engine.step()
    bench.clock.now += 2 * PATIENCE
    bench.engine.step()
    other = bench.submit(generate([5], {"a2": 1.0}))
    bench.settle()
    assert other._closed
    bench.adapters.finish_load("d1")
    bench.settle()
    last = collect(lost).last
    assert isinstance(last, Finished)
    assert last.timings.room == 0.0
    bench.check_idle()


def test_who_had_to_give_way_has_its_patience_again() -> None:
    """It had waited for room before it started first."""
    pages = {4: 2, 2: 4, 3: 3, 1: 1}
    bench = Bench(small_config(), FakeAdapters(num_pages=5, rank_pages=pages.__getitem__))
    first = bench.submit(generate([5], {"a4": 1.0}, max_tokens=100))
    bench.engine.step()
    large = bench.submit(generate([5], {"a2": 1.0}, max_tokens=100))
    bench.engine.step()
    bench.clock.now += PATIENCE / 2
    first.cancel()
    for _ in range(3):
        bench.engine.step()
    bench.clock.now += PATIENCE
    high = generate([5], {"a3": 1.0}, max_tokens=100, scheduling=SchedulingParams(priority="high"))
    bench.submit(high)
    bench.engine.step()
    assert bench.engine.stats.preemptions == 1
    small = bench.submit(generate([5], {"a1": 1.0}, max_tokens=1))
    for _ in range(5):
        bench.engine.step()
    assert small._closed
    bench.settle()
    last = collect(large).last
    assert isinstance(last, Finished)
    assert last.timings.room == PATIENCE / 2
    bench.check_idle()


def test_an_adapter_too_large_for_the_work_list_fails_alone() -> None:
    bench = Bench(small_config(work_items=4), FakeAdapters(rank_pages=lambda number: number))
    streams = [bench.submit(generate([5], {f"a{number}": 1.0}, n=2)) for number in (3, 2)]
    bench.settle()
    error = collect(streams[0]).error
    assert isinstance(error, InvalidRequest)
    assert "6 for n = 2; a step takes at most 4" in str(error)
    assert [sample.finish_reason for sample in collect(streams[1]).samples] == ["length"] * 2
    bench.settle()
    bench.check_idle()
