"""The engine on a fake device whose tokens can be worked out by hand (see `fakes`), stepped by hand."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from openlora_jax.engine.plan import StepPlan
from openlora_jax.engine.request import Finished, GenerateRequest, MixItem, Scored, ScoreRequest
from openlora_jax.engine.scheduler import PATIENCE
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import (
    AdapterUnavailable,
    DeadlineExceeded,
    EngineStopped,
    InvalidRequest,
    Overloaded,
    UnknownAdapter,
)
from tests.openlora_jax.engine.fakes import (
    Answer,
    Bench,
    FakeAdapters,
    collect,
    expected_sample,
    expected_scores,
    generate,
    small_config,
)

REQUESTS = {
    "one token": generate([5], max_tokens=1),
    "base": generate([5, 6, 7], max_tokens=20),
    "tile border": generate(range(1, 17), max_tokens=20),
    "chunk border": generate(range(1, 33), max_tokens=2),
    "several chunks": generate((n % 90 for n in range(100)), max_tokens=20),
    "adapter": generate([5, 6, 7], {"a3": 1.0}),
    "mix": generate([5, 6, 7], {"a3": 0.5, "a5": -1.5}),
    "seed": generate([5, 6, 7], seed=123, temperature=1.0),
    "n": generate(range(1, 12), n=4, max_tokens=40),
    "n over blocks": generate(range(1, 40), {"a2": 1.0}, n=3, max_tokens=30),
    "n at a block border": generate(range(1, 33), n=2, max_tokens=30),
    "eos": generate([5, 6, 4], ignore_eos=False, max_tokens=90),
    "stop id": generate([5, 6, 7], stop_token_ids=(12, 24, 36, 48, 60, 72, 84), max_tokens=90),
    "min tokens": generate([5, 6, 7], stop_token_ids=range(0, 97, 7), min_tokens=30, max_tokens=90),
    "stop string": generate([5, 6, 7], stop=("abc", "eab", "cc"), max_tokens=90),
    "min tokens, stop string": generate([5, 6, 7], stop=("ab",), min_tokens=30, max_tokens=90),
}

SCORES = {
    "one of each": ScoreRequest(prompt_ids=(5,), completion_ids=(6,)),
    "first tile": ScoreRequest(prompt_ids=(5, 6), completion_ids=(7, 8, 9)),
    "completion begins with a tile": ScoreRequest(prompt_ids=tuple(range(16)), completion_ids=tuple(range(20))),
    "completion begins a position later": ScoreRequest(prompt_ids=tuple(range(17)), completion_ids=tuple(range(20))),
    "prompt of several chunks": ScoreRequest(prompt_ids=tuple(range(70)), completion_ids=tuple(range(40))),
    "mix": ScoreRequest(prompt_ids=(5,), completion_ids=(6, 7), mix=(MixItem("a1", 0.5), MixItem("a2", 2.0))),
}


def answer_of(request: GenerateRequest | ScoreRequest, bench: Bench) -> Answer:
    """The answer to one request alone."""
    stream = bench.submit(request)
    bench.settle()
    bench.check_idle()
    return collect(stream)


def check(request: GenerateRequest, answer: Answer) -> None:
    assert answer.error is None
    assert answer.samples == [expected_sample(request, index) for index in range(request.params.n)]


def until(condition: Callable[[], bool], bench: Bench) -> None:
    for _ in range(1000):
        if condition():
            return
        bench.engine.step()
    raise AssertionError("it never came true")


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("kv_block", [16, 48])
@pytest.mark.parametrize("deterministic", [False, True])
def test_alone(name: str, kv_block: int, deterministic: bool) -> None:
    request = REQUESTS[name]
    answer = answer_of(request, Bench(small_config(kv_block=kv_block, deterministic=deterministic)))
    check(request, answer)
    assert isinstance(answer.last, Finished)
    assert answer.last.seed == request.params.seed
    assert answer.last.adapter_digests == tuple("d" + item.adapter[1:] for item in request.mix)
    assert answer.last.prompt_tokens == len(request.prompt_ids)
    assert answer.last.completion_tokens == sum(len(sample.token_ids) for sample in answer.samples)


def test_the_table_has_every_way_to_end() -> None:
    ends = {name: expected_sample(request, 0) for name, request in REQUESTS.items()}
    assert {name for name, sample in ends.items() if sample.finish_reason == "stop"} == {
        "eos",
        "stop id",
        "min tokens",
        "stop string",
        "min tokens, stop string",
    }
    assert len(ends["min tokens"].token_ids) > 30
    assert len(ends["min tokens, stop string"].token_ids) >= 30


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_score_alone(name: str, deterministic: bool) -> None:
    request = SCORES[name]
    answer = answer_of(request, Bench(small_config(deterministic=deterministic)))
    assert isinstance(answer.last, Scored)
    assert list(zip(answer.last.logprobs, answer.last.greedy, strict=True)) == expected_scores(request)
    assert answer.last.adapter_digests == tuple("d" + item.adapter[1:] for item in request.mix)


@pytest.mark.parametrize("blocks", [9, 12, 33])
def test_all_together(blocks: int) -> None:
    bench = Bench(small_config(kv_blocks=blocks))
    streams = {name: bench.submit(request) for name, request in REQUESTS.items()}
    scores = {name: bench.submit(request) for name, request in SCORES.items()}
    bench.settle()
    bench.check_idle()
    assert (bench.engine.stats.preemptions > 0) == (blocks < 33)
    for name, stream in streams.items():
        check(REQUESTS[name], collect(stream))
    for name, stream in scores.items():
        last = collect(stream).last
        assert isinstance(last, Scored)
        assert list(zip(last.logprobs, last.greedy, strict=True)) == expected_scores(SCORES[name])


def own_chunks(plans: list[StepPlan], prompt: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """The chunks that hold tokens of this prompt: start and length of each of their tiles."""
    chunks = [plan.tiles for plan in plans if plan.kind == "prefill"]
    return [
        [(tile.start, len(tile.tokens or ())) for tile in tiles]
        for tiles in chunks
        if any(tile.tokens == prompt[tile.start :][: len(tile.tokens or ())] for tile in tiles)
    ]


def test_deterministic_engines_compute_a_request_with_the_same_calls_in_any_company() -> None:
    request = generate((89 - n % 90 for n in range(70)), {"a5": 1.0}, n=2, max_tokens=30)
    config = small_config(deterministic=True, kv_blocks=33, max_rows=8, prefill_chunk=64, work_items=9)
    alone, busy = Bench(config), Bench(config)
    check(request, answer_of(request, alone))
    others = [busy.submit(other) for other in list(REQUESTS.values())[:4]]
    stream = busy.submit(request)
    others += [busy.submit(other) for other in REQUESTS.values()]
    until(lambda: bool(own_chunks(busy.runner.plans, request.prompt_ids)), busy)
    others[0].cancel()
    busy.settle()
    check(request, collect(stream))
    assert busy.engine.stats.preemptions == 0
    calls = own_chunks(busy.runner.plans, request.prompt_ids)
    assert calls == own_chunks(alone.runner.plans, request.prompt_ids)
    assert calls == [[(0, 16), (16, 16), (32, 16)], [(48, 16), (64, 6)], [(64, 6)]]


def test_runs_one_step_ahead() -> None:
    bench = Bench(small_config())
    answer_of(generate([5], max_tokens=4), bench)
    runs = ["run prefill", "run decode", "run decode", "read prefill", "read decode", "run decode"]
    assert bench.runner.log == [*runs, "read decode", "read decode"]


def test_a_long_prompt_does_not_stall_the_others() -> None:
    bench = Bench(small_config(max_model_len=512))
    short = bench.submit(generate([5], max_tokens=60))
    bench.engine.step()
    bench.submit(generate([n % 90 for n in range(320)]))
    until(lambda: bench.engine.stats.steps == 11, bench)
    assert [plan.kind for plan in bench.runner.plans[2:]] == ["prefill", "decode"] * 10
    short.cancel()


def test_the_first_token_is_decoded_in_the_iteration_of_its_prompt() -> None:
    bench = Bench(small_config())
    bench.submit(generate([5, 6]))
    bench.engine.step()
    prompt, decode = (plan.tiles[0] for plan in bench.runner.plans)
    assert (prompt.start, prompt.tokens, decode.start, decode.tokens) == (0, (5, 6), 2, None)


def test_short_prompts_share_a_chunk() -> None:
    bench = Bench(small_config())
    for _ in range(3):
        bench.submit(generate([5, 6]))
    bench.engine.step()
    assert [len(plan.tiles) for plan in bench.runner.plans] == [2, 2]


def test_a_chunk_and_a_step_keep_to_the_work_list() -> None:
    bench = Bench(small_config(work_items=7, prefill_chunk=128), FakeAdapters(rank_pages=lambda number: 2))
    requests = [generate(range(1, 60), {f"a{number}": 1.0}) for number in range(1, 6)]
    streams = [bench.submit(request) for request in requests]
    bench.settle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))
    assert {len(plan.tiles) for plan in bench.runner.plans} == {1, 2, 3}


def test_a_deterministic_engine_never_recomputes() -> None:
    bench = Bench(small_config(kv_blocks=18, deterministic=True))
    requests = [generate([5, number], max_tokens=90) for number in range(4)]
    streams = [bench.submit(request) for request in requests]
    bench.settle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))
    assert bench.engine.stats.preemptions == 0


def test_a_text_to_score_is_never_recomputed() -> None:
    bench = Bench(small_config(prefill_chunk=16, max_model_len=512, kv_blocks=23))
    sample = generate([1], max_tokens=60)
    stream = bench.submit(sample)
    until(lambda: bench.engine.stats.steps == 14, bench)
    text = ScoreRequest(prompt_ids=(3,) * 20, completion_ids=(4,) * 301)
    scored = bench.submit(text)
    bench.settle()
    check(sample, collect(stream))
    last = collect(scored).last
    assert isinstance(last, Scored)
    assert list(zip(last.logprobs, last.greedy, strict=True)) == expected_scores(text)
    assert bench.engine.stats.preemptions == 1


def test_a_start_leaves_room_to_grow() -> None:
    bench = Bench(small_config(kv_blocks=4))
    requests = [generate(range(1, 16), max_tokens=8), generate(range(1, 32))]
    streams = [bench.submit(request) for request in requests]
    bench.settle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))
    assert bench.engine.stats.preemptions == 0


def test_a_sequence_preempted_with_a_token_in_flight_waits_for_it() -> None:
    bench = Bench(small_config(kv_blocks=4))
    older = bench.submit(generate(range(1, 13), max_tokens=20))
    for _ in range(4):
        bench.engine.step()
    request = generate(range(1, 17))
    younger = bench.submit(request)
    bench.engine.step()
    older.cancel()
    bench.settle()
    check(request, collect(younger))
    assert bench.engine.stats.preemptions == 1
    bench.check_idle()


def test_samples_share_the_full_blocks_of_their_prompt() -> None:
    bench = Bench(small_config())
    bench.submit(generate(range(1, 50), n=4))
    bench.engine.step()
    bench.engine.step()
    stats = bench.engine.stats
    assert stats.kv_blocks - stats.free_kv_blocks == 3 + 4


def test_without_a_seed_one_is_drawn_and_reported() -> None:
    bench = Bench(small_config())
    request = generate([5, 6], seed=None)
    answer = answer_of(request, bench)
    assert isinstance(answer.last, Finished)
    params = request.params.model_copy(update={"seed": answer.last.seed})
    check(GenerateRequest(prompt_ids=request.prompt_ids, params=params), answer)
    again = answer_of(request, bench)
    assert isinstance(again.last, Finished)
    assert again.last.seed != answer.last.seed


def test_logprobs_come_with_their_tokens() -> None:
    bench = Bench(small_config())
    streams = [bench.submit(generate([5], max_tokens=2, logprobs=count)) for count in (None, 0, 3)]
    bench.settle()
    tops = [[[len(entry.top) for entry in event.logprobs] for event in list(stream)[:-1]] for stream in streams]  # type: ignore[union-attr]
    assert tops == [[[], []], [[0], [0]], [[1], [1]]]


def test_timings_add_up() -> None:
    bench = Bench(small_config(), FakeAdapters(automatic=False))
    stream = bench.submit(generate([5], {"a1": 1.0}, max_tokens=2))
    bench.clock.now += 1
    bench.adapters.finish_load("d1")
    for _ in range(3):
        bench.engine.step()
        bench.clock.now += 2
    bench.settle()
    last = collect(stream).last
    assert isinstance(last, Finished)
    timings = last.timings
    assert (timings.load, timings.queue, timings.prefill, timings.decode) == (1.0, 0.0, 2.0, 0.0)


# Ends before time.


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


# Adapters.


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


# Limits and failures.


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


# Threads.


def test_many_readers_at_once() -> None:
    bench = Bench(small_config(kv_blocks=20))
    bench.engine.start()
    answers: dict[str, Answer] = {}

    def read(name: str) -> None:
        answers[name] = collect(bench.submit(REQUESTS[name]))

    readers = [threading.Thread(target=read, args=[name]) for name in REQUESTS]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    bench.engine.stop(grace=0.0)
    bench.check_idle()
    for name, answer in answers.items():
        check(REQUESTS[name], answer)


async def test_coroutines_read_while_the_engine_runs() -> None:
    bench = Bench(small_config())
    bench.engine.start()

    async def read(request: GenerateRequest) -> Answer:
        return collect([event async for event in bench.submit(request)])

    answers = await asyncio.gather(*map(read, REQUESTS.values()))
    await asyncio.to_thread(bench.engine.stop, 0.0)
    for request, answer in zip(REQUESTS.values(), answers, strict=True):
        check(request, answer)


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
