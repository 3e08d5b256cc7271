"""Deadlines of the first token and of each token: refused at once where they cannot be kept, ended when they pass."""

from typing import Any

import pytest

from openlora_jax.engine.rates import Rates
from openlora_jax.engine.scheduling_params import SchedulingParams
from openlora_jax.errors import CannotMeetDeadline, DeadlineExceeded, OpenLoraError
from tests.openlora_jax.engine.answers import collect
from tests.openlora_jax.engine.cases import check
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate, small_config

STEP = 0.1  # seconds of a chunk, and of a decode step


def run(bench: Bench, iterations: int) -> None:
    for _ in range(iterations):
        bench.engine.step()
        bench.clock.now += STEP * max(1, len(bench.engine._dispatched))


def busy_bench(rows: int = 2, adapters: FakeAdapters | None = None) -> Bench:
    """An engine whose steps have been measured while rows are busy for long."""
    bench = Bench(small_config(), adapters or FakeAdapters())
    for _ in range(rows):
        bench.submit(generate(range(1, 60), max_tokens=60))
    run(bench, 8)
    return bench


def error_of(bench: Bench, prompt_len: int = 5, **params: Any) -> OpenLoraError | None:
    """What a request with this deadline ends with after its first iteration."""
    request = generate(range(prompt_len), scheduling=SchedulingParams.model_validate(params))
    stream = bench.submit(request)
    run(bench, 1)
    if not stream._closed:
        stream.cancel()
        run(bench, 1)
    return collect(stream).error


@pytest.mark.parametrize(
    ("params", "refused"),
    [
        ({"ttft_deadline": 0.15}, True),
        ({"ttft_deadline": 0.5}, False),
        ({"tpot_deadline": 0.05}, True),
        ({"tpot_deadline": 0.15}, False),
    ],
)
def test_a_deadline_that_cannot_be_kept_is_refused_at_once(params: dict[str, Any], refused: bool) -> None:
    bench = busy_bench()
    error = error_of(bench, **params)
    assert isinstance(error, CannotMeetDeadline) == refused
    if isinstance(error, CannotMeetDeadline):
        assert (error.deadline, error.limit) == next(iter(params.items()))
        assert error.estimate == pytest.approx(2 * STEP if "ttft_deadline" in params else STEP)


def test_a_longer_prompt_takes_longer() -> None:
    bench = busy_bench()
    assert error_of(bench, prompt_len=32, ttft_deadline=0.4) is None
    assert isinstance(error_of(bench, prompt_len=96, ttft_deadline=0.4), CannotMeetDeadline)


def test_the_queue_counts() -> None:
    bench = busy_bench(rows=4)
    quick = [bench.submit(generate([5], max_tokens=5)) for _ in range(12)]
    for stream in list(bench.engine._live)[:2]:
        stream.stream.cancel()
    run(bench, 30)
    queued = [bench.submit(generate([5], max_tokens=20)) for _ in range(8)]
    run(bench, 1)
    assert isinstance(error_of(bench, ttft_deadline=1.0), CannotMeetDeadline)
    assert error_of(bench, ttft_deadline=30.0) is None
    assert error_of(bench, priority="high", ttft_deadline=1.0) is None  # it need not wait for the others
    bench.settle()
    assert all(collect(stream).error is None for stream in [*quick, *queued])


def test_a_load_counts() -> None:
    bench = busy_bench(adapters=FakeAdapters(automatic=False))
    slow = bench.submit(generate([5], {"a1": 1.0}))
    run(bench, 10)
    bench.adapters.finish_load("d1")
    run(bench, 1)
    params = SchedulingParams(ttft_deadline=0.5)
    here, absent = (bench.submit(generate([5], {name: 1.0}, scheduling=params)) for name in ("a1", "a2"))
    run(bench, 2)
    assert isinstance(collect(absent).error, CannotMeetDeadline)
    bench.settle()
    assert collect(here).error is None
    assert collect(slow).error is None


def test_an_idle_engine_refuses_nobody() -> None:
    bench = busy_bench()
    bench.settle()
    request = generate([5], scheduling=SchedulingParams(ttft_deadline=0.01, tpot_deadline=0.001))
    stream = bench.submit(request)
    bench.settle()
    check(request, collect(stream))


@pytest.mark.parametrize("automatic", [True, False])
def test_a_first_token_that_is_late_ends_its_request(automatic: bool) -> None:
    bench = Bench(small_config(), FakeAdapters(automatic=automatic))
    params = SchedulingParams(ttft_deadline=0.25)
    stream = bench.submit(generate(range(96), {"a1": 1.0}, scheduling=params))
    run(bench, 4)
    error = collect(stream).error
    assert isinstance(error, DeadlineExceeded)
    assert error.phase == ("prefill" if automatic else "adapter load")
    bench.settle()
    bench.check_idle()


def test_a_first_token_in_time_lets_the_rest_take_its_time() -> None:
    bench = Bench(small_config())
    request = generate([5], max_tokens=40, scheduling=SchedulingParams(ttft_deadline=0.25))
    stream = bench.submit(request)
    run(bench, 60)
    check(request, collect(stream))


def test_rates_are_means_of_what_was_measured() -> None:
    rates = Rates()
    assert (rates.step(4), rates.chunk, rates.load, rates.turn) == (0, 0, 0, 0)
    rates.iterated(1.0, chunk=False, rows=2)
    rates.iterated(2.0, chunk=False, rows=2)
    assert (rates.step(1), rates.step(2), rates.step(9)) == (0, 1.2, 1.2)
    rates.iterated(1.7, chunk=True, rows=2)
    assert rates.chunk == pytest.approx(0.5)
    rates.ended(1.0, others_wait=True)
    rates.ended(3.0, others_wait=False)
    rates.ended(90.0, others_wait=True)
    assert rates.turn == 2.0
