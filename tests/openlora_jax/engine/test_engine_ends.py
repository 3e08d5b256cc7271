"""Requests that end before their time: deadlines, cancellation, failing steps, a full queue, the end of the engine."""

import pytest

from openlora_jax.engine.plan import StepPlan
from openlora_jax.engine.request import Finished
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import DeadlineExceeded, EngineStopped, Overloaded
from tests.openlora_jax.engine.answers import Answer, collect
from tests.openlora_jax.engine.cases import REQUESTS, SCORES, answer_of, check
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate, small_config


def hold(bench: Bench, phase: str, deadline: float | None = None) -> EventStream:
    """Brings a request into a phase and holds it there."""
    if phase == "queue":
        for _ in range(bench.config.max_rows):
            bench.submit(generate([5], max_tokens=100))
    request = generate(range(1, 90), {"a1": 1.0}, n=2 if phase == "prefill" else 1, max_tokens=30, deadline=deadline)
    stream = bench.submit(request)
    if phase != "adapter load":
        bench.adapters.finish_load("d1")
    for _ in range({"decode": 6}.get(phase, 2)):
        bench.engine.step()
    return stream


PHASES = ["queue", "adapter load", "prefill", "decode"]


@pytest.mark.parametrize("phase", PHASES)
def test_a_deadline_is_kept_within_one_step(phase: str) -> None:
    bench = Bench(small_config(), FakeAdapters(automatic=False))
    stream = hold(bench, phase, deadline=bench.clock.now + 5)
    bench.clock.now += 5
    bench.engine.step()
    answer = collect(stream)
    assert isinstance(answer.error, DeadlineExceeded)
    assert answer.error.phase == phase
    assert not bench.adapters.leases
    bench.settle()
    bench.check_idle()


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancelled_request_ends_within_one_step(phase: str) -> None:
    bench = Bench(small_config(), FakeAdapters(automatic=False))
    stream = hold(bench, phase)
    stream.cancel()
    stream.cancel()
    bench.engine.step()
    answer = collect(stream)
    assert {sample.finish_reason for sample in answer.samples} == {"cancelled"}
    assert isinstance(answer.last, Finished)
    assert bool(answer.last.completion_tokens) == (phase == "decode")
    assert not bench.adapters.leases
    bench.settle()
    bench.check_idle()


def test_a_cancelled_score_ends_without_an_event() -> None:
    bench = Bench(small_config())
    stream = bench.submit(SCORES["prompt of several chunks"])
    bench.engine.step()
    stream.cancel()
    bench.settle()
    assert collect(stream) == Answer()
    bench.check_idle()


def test_a_reader_that_stalls_loses_its_request() -> None:
    bench = Bench(small_config())
    stream = bench.submit(generate([5], max_tokens=100))
    stream._limit = 20
    bench.settle()
    bench.check_idle()
    answer = collect(stream)
    assert answer.samples[0].finish_reason == "cancelled"
    assert 20 < len(answer.samples[0].token_ids) < 25


def test_the_queue_is_bounded() -> None:
    bench = Bench(small_config(max_queue=2))
    streams = [bench.submit(REQUESTS["base"]) for _ in range(2)]
    with pytest.raises(Overloaded):
        bench.submit(generate([5], {"a1": 1.0}))
    assert not bench.adapters.leases
    bench.engine.step()
    streams.append(bench.submit(REQUESTS["base"]))
    bench.settle()
    for stream in streams:
        check(REQUESTS["base"], collect(stream))


@pytest.mark.parametrize("where", ["fail", "fail_read"])
def test_a_failing_step_ends_who_runs_and_the_engine_goes_on(where: str) -> None:
    bench = Bench(small_config())
    lost = [bench.submit(generate([5], {"a1": 1.0}, max_tokens=100)) for _ in range(4)]
    bench.engine.step()
    waiting = bench.submit(REQUESTS["base"])
    setattr(bench.runner, where, RuntimeError("the device is unwell"))
    bench.settle()
    assert all(isinstance(collect(stream).error, EngineStopped) for stream in lost)
    check(REQUESTS["base"], collect(waiting))
    check(REQUESTS["n"], answer_of(REQUESTS["n"], bench))


def test_after_a_failed_step_adapters_are_written_anew() -> None:
    """Of those who wait too, be it that they had found room for their adapters, and not for their rows."""
    bench = Bench(small_config(work_items=8))
    bench.submit(generate([5], {"a5": 1.0}, n=2, max_tokens=100))
    bench.engine.step()
    requests = [generate([5], {"a5": 1.0}), generate([6], {"a2": 1.0}), generate([7], {"a5": 0.5, "a2": 0.5})]
    streams = [bench.submit(request) for request in requests]
    bench.engine.step()
    assert [lease.placed for lease in bench.adapters.leases] == [True, True, False, False, False]
    bench.runner.fail_read = RuntimeError("a page write has failed")
    bench.settle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))
    assert bench.adapters.writes == 3


def test_a_step_that_keeps_failing_stops_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(small_config())
    streams = [bench.submit(generate([5], max_tokens=100)) for _ in range(9)]
    bench.engine.start()
    next(streams[0])
    monkeypatch.setattr(bench.runner, "run", _broken)
    assert all(isinstance(collect(stream).error, EngineStopped) for stream in streams)
    assert bench.engine.ended.result(timeout=10) == "its steps fail on the device"
    bench.check_idle()
    with pytest.raises(EngineStopped, match="steps fail on the device"):
        bench.submit(REQUESTS["base"])


def _broken(plan: StepPlan) -> None:
    raise RuntimeError("the device is unwell")


def test_stop_lets_requests_finish_within_the_grace() -> None:
    bench = Bench(small_config())
    streams = [bench.submit(request) for request in REQUESTS.values()]
    bench.engine.start()
    bench.engine.stop(grace=60.0)
    for request, stream in zip(REQUESTS.values(), streams, strict=True):
        check(request, collect(stream))
    with pytest.raises(EngineStopped):
        bench.submit(REQUESTS["base"])


@pytest.mark.parametrize("started", [False, True])
def test_stop_ends_who_is_left(started: bool) -> None:
    bench = Bench(small_config(), FakeAdapters(automatic=False))
    stream = bench.submit(generate([5], {"a1": 1.0}))
    if started:
        bench.engine.start()
    bench.engine.stop(grace=0.0)
    bench.engine.stop(grace=0.0)
    assert isinstance(collect(stream).error, EngineStopped)
    bench.check_idle()
