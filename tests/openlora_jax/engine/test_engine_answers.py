"""Each answer is what it must be, alone and together, on the fake device of `fakes`, stepped by hand."""

import pytest

from openlora_jax.engine.request import Finished, GenerateRequest, Scored
from tests.openlora_jax.engine.answers import collect, expected_sample, expected_scores
from tests.openlora_jax.engine.cases import REQUESTS, SCORES, answer_of, check
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate, small_config


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize(("tile", "kv_block"), [(16, 16), (16, 48), (32, 32)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_alone(name: str, tile: int, kv_block: int, deterministic: bool) -> None:
    request = REQUESTS[name]
    config = small_config(prefill_tile=tile, kv_block=kv_block, deterministic=deterministic)
    answer = answer_of(request, Bench(config))
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
    assert timings.room == 0.0


def test_who_needs_no_load_waits_for_the_step_that_runs_in_the_queue() -> None:
    bench = Bench(small_config())
    streams = [bench.submit(generate([5], mix, max_tokens=1)) for mix in ({"a1": 1.0}, {})]
    bench.clock.now += 3
    bench.settle()
    for stream in streams:
        last = collect(stream).last
        assert isinstance(last, Finished)
        assert (last.timings.load, last.timings.queue) == (0.0, 3.0)


def test_the_wait_for_room_is_a_part_of_the_queue() -> None:
    bench = Bench(small_config(), FakeAdapters(num_pages=3, rank_pages=lambda number: 2))
    first = bench.submit(generate([5], {"a1": 1.0}, max_tokens=100))
    bench.engine.step()
    second = bench.submit(generate([5], {"a2": 1.0}, max_tokens=1))
    bench.engine.step()
    bench.clock.now += 3
    first.cancel()
    bench.settle()
    last = collect(second).last
    assert isinstance(last, Finished)
    assert (last.timings.load, last.timings.queue, last.timings.room) == (0.0, 3.0, 3.0)
