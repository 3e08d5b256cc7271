"""What each step runs: one step ahead, chunks, blocks and the work list, preemption, determinism."""

from openlora_jax.engine.plan import StepPlan
from openlora_jax.engine.request import Scored, ScoreRequest
from tests.openlora_jax.engine.answers import collect, expected_scores
from tests.openlora_jax.engine.cases import REQUESTS, answer_of, check, until
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate, small_config


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
