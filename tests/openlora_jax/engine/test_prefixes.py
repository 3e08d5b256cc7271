"""Prompts that begin alike share KV blocks, within one tenant and one mix, and answers do not change by it."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_jax.adapters.traits import Traits
from openlora_jax.engine.request import GenerateRequest, Scored, ScoreRequest
from openlora_jax.engine.scheduling_params import SchedulingParams
from openlora_jax.errors import InvalidRequest
from tests.openlora_jax.engine.answers import collect, expected_scores
from tests.openlora_jax.engine.cases import REQUESTS, answer_of, check
from tests.openlora_jax.engine.fakes import Bench, FakeAdapters, generate, small_config

PROMPT = tuple(range(1, 41))
"""Two full blocks, and half of a third."""


def found(bench: Bench, request: GenerateRequest | ScoreRequest) -> int:
    """Prompt tokens that a request did not have to compute; its answer is checked."""
    before = bench.engine.stats.cached_tokens
    answer = answer_of(request, bench)
    if isinstance(request, GenerateRequest):
        check(request, answer)
    else:
        assert isinstance(answer.last, Scored)
        assert list(zip(answer.last.logprobs, answer.last.greedy, strict=True)) == expected_scores(request)
    return bench.engine.stats.cached_tokens - before


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (PROMPT, 32),
        (PROMPT[:33], 32),
        (PROMPT[:32], 16),
        (PROMPT[:16], 0),
        ((*PROMPT[:20], 90, *PROMPT[21:]), 16),
        ((90, *PROMPT[1:]), 0),
    ],
)
def test_whole_blocks_are_found_but_the_last_token_is_computed(prompt: tuple[int, ...], tokens: int) -> None:
    bench = Bench(small_config())
    assert found(bench, generate(PROMPT)) == 0
    before = len(bench.runner.plans)
    assert found(bench, generate(prompt)) == tokens
    assert bench.runner.plans[before].tiles[0].start == tokens


@pytest.mark.parametrize(
    ("adapters", "tenant", "tokens"),
    [
        ({"a1": 1.0}, "blue", 32),
        ({"a1": 1.0}, "green", 0),
        ({"a1": 0.5}, "blue", 0),
        ({"a2": 1.0}, "blue", 0),
        ({"a1": 1.0, "a2": 1.0}, "blue", 0),
        ({}, "blue", 0),
    ],
)
def test_only_the_same_tenant_and_mix_find_them(adapters: Mapping[str, float], tenant: str, tokens: int) -> None:
    bench = Bench(small_config())
    found(bench, generate(PROMPT, {"a1": 1.0}, scheduling=SchedulingParams(tenant="blue")))
    assert found(bench, generate(PROMPT, adapters, scheduling=SchedulingParams(tenant=tenant))) == tokens


def invoked_bench() -> Bench:
    """Where adapter 1 acts from tokens 70, 71 on."""
    return Bench(small_config(), FakeAdapters(traits={"d1": Traits(invocation=(70, 71))}))


def test_before_its_invocation_an_adapter_shares_the_base_models_blocks() -> None:
    bench = invoked_bench()
    found(bench, generate(PROMPT))
    invoked = (*PROMPT[:36], 70, 71, 3)
    before = len(bench.runner.plans)
    assert found(bench, generate(invoked, {"a1": 1.0})) == 32
    tiles = [tile for plan in bench.runner.plans[before:] for tile in plan.tiles]
    assert [(tile.start, len(tile.tokens or ()), bool(tile.pages)) for tile in tiles[:3]] == [
        (32, 4, False),
        (36, 3, True),
        (39, 0, True),
    ]
    assert found(bench, generate((*PROMPT[:20], 70, 71, *PROMPT[22:]), {"a1": 1.0})) == 16


@pytest.mark.parametrize(
    ("first", "second", "tokens"),
    [
        ((*PROMPT[:10], 70, 71, *PROMPT[12:]), (*PROMPT[:10], 70, 71, *PROMPT[12:]), 32),
        # What was the last invocation is not any more: the blocks from it on are the base model's.
        ((*PROMPT[:10], 70, 71, *PROMPT[12:]), (*PROMPT[:10], 70, 71, *PROMPT[12:36], 70, 71, 5), 0),
        ((*PROMPT[:10], 70, 71, *PROMPT[12:36], 70, 71, 5), (*PROMPT[:10], 70, 71, *PROMPT[12:]), 0),
    ],
)
def test_from_its_invocation_on_blocks_are_the_adapters(
    first: tuple[int, ...], second: tuple[int, ...], tokens: int
) -> None:
    bench = invoked_bench()
    found(bench, generate(first, {"a1": 1.0}))
    assert found(bench, generate(second, {"a1": 1.0})) == tokens


def test_an_adapter_that_is_not_invoked_is_the_base_model() -> None:
    bench = invoked_bench()
    found(bench, generate(PROMPT))
    before = bench.engine.stats.cached_tokens
    answer = answer_of(generate(PROMPT, {"a1": 1.0}), bench)
    check(generate(PROMPT), answer)
    assert bench.engine.stats.cached_tokens - before == 32
    assert not any(tile.pages for plan in bench.runner.plans for tile in plan.tiles)


def test_samples_of_an_invoked_adapter_fork_within_its_tile() -> None:
    bench = invoked_bench()
    request = generate((*PROMPT[:36], 70, 71, 3), {"a1": 1.0}, n=3, max_tokens=20)
    check(request, answer_of(request, bench))


def test_a_gain_is_in_no_mix() -> None:
    bench = Bench(small_config(), FakeAdapters(traits={"d1": Traits(gains=True)}))
    check(generate(PROMPT, {"a1": 1.0}), answer_of(generate(PROMPT, {"a1": 1.0}), bench))
    for mix in ({"a1": 0.5}, {"a1": 1.0, "a2": 1.0}):
        assert isinstance(error := answer_of(generate(PROMPT, mix), bench).error, InvalidRequest)
        assert "'a1' is a DoRA adapter" in str(error)


def test_scores_and_samples_find_each_others() -> None:
    bench = Bench(small_config())
    score = ScoreRequest(prompt_ids=PROMPT, completion_ids=tuple(range(30)))
    assert found(bench, score) == 0
    assert found(bench, score) == 32
    assert found(bench, generate(PROMPT, n=3, max_tokens=20)) == 32


def test_those_who_come_together_share_from_the_second_step_on() -> None:
    bench = Bench(small_config())
    requests = [generate(PROMPT, max_tokens=20 + number) for number in range(3)]
    streams = [bench.submit(requests[0])]
    bench.engine.step()
    bench.engine.step()
    streams += [bench.submit(request) for request in requests[1:]]
    bench.engine.step()
    assert bench.engine.stats.kv_blocks - bench.engine.stats.free_kv_blocks == 2 + 3
    bench.settle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))


@pytest.mark.parametrize("changes", [{"prefix_cache": False}, {"deterministic": True}])
def test_it_can_be_off(changes: dict[str, Any]) -> None:
    bench = Bench(small_config(**changes))
    assert [found(bench, generate(PROMPT)) for _ in range(2)] == [0, 0]


def test_the_end_of_what_was_released_first_goes_first() -> None:
    bench = Bench(small_config(kv_blocks=9))
    prompts = [tuple((3 * n + start) % 90 for n in range(33)) for start in range(4)]
    for prompt in prompts[:3]:
        found(bench, generate(prompt, max_tokens=2))
    assert found(bench, generate(prompts[0], max_tokens=2)) == 32
    found(bench, generate(prompts[3], max_tokens=2))
    assert found(bench, generate(prompts[0], max_tokens=2)) == 32
    assert found(bench, generate(prompts[1], max_tokens=2)) == 16


def test_a_failed_step_leaves_nothing_to_find() -> None:
    bench = Bench(small_config())
    found(bench, generate(PROMPT))
    lost = bench.submit(REQUESTS["base"])
    bench.runner.fail = RuntimeError("the device is unwell")
    bench.settle()
    assert collect(lost).error is not None
    assert found(bench, generate(PROMPT)) == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 70), st.integers(0, 2), st.sampled_from(["", "blue"]), st.integers(1, 3)), max_size=12
    ),
    st.sampled_from([10, 14, 33]),
)
def test_answers_do_not_change(cases: list[tuple[int, int, str, int]], blocks: int) -> None:
    """Prompts that begin alike, few blocks, several at once: `fakes` read every position back and compare."""
    bench = Bench(small_config(kv_blocks=blocks, prefill_chunk=16), FakeAdapters(num_pages=4))
    requests = [
        generate(
            range(length),
            {f"a{adapter}": 1.0} if adapter else {},
            n=n if length < 40 else 1,
            max_tokens=20,
            scheduling=SchedulingParams(tenant=tenant),
        )
        for length, adapter, tenant, n in cases
    ]
    streams = []
    for request in requests:
        streams.append(bench.submit(request))
        bench.engine.step()
    bench.settle()
    bench.check_idle()
    for request, stream in zip(requests, streams, strict=True):
        check(request, collect(stream))
