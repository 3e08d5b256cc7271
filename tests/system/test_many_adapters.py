"""Far more adapters than fit on the device, or in host memory: each request is answered by its own, as when alone."""

import random

from openlora_jax import LLM
from tests.system.compare import GREEDY, assert_same, tokens
from tests.system.crowd import Crowd

PROMPT = "the sea is"
REQUESTS = 200
SHORT = GREEDY.model_copy(update={"max_tokens": 8})


def test_every_answer_is_that_of_its_adapter_alone(llm: LLM, exact_llm: LLM, names: list[str]) -> None:
    asked = random.Random(1).choices(names, k=REQUESTS)
    before = llm.engine.stats.generated_tokens
    answers = llm.generate([PROMPT] * REQUESTS, SHORT, asked)
    alone = {name: exact_llm.generate([PROMPT], SHORT, name)[0] for name in set(asked)}

    compared = sum(assert_same(answer, alone[name]) for name, answer in zip(asked, answers, strict=True))
    assert compared >= 0.95 * (llm.engine.stats.generated_tokens - before)
    assert len(set(tokens(list(alone.values())))) >= 0.95 * len(alone), "or answers could be anybody's"
    assert [answer.adapter_digests for answer in answers] == [(llm.store.resolve(name),) for name in asked]


def test_memory_stays_within_its_limits(llm: LLM, names: list[str]) -> None:
    loads = llm.generate([PROMPT] * len(names), GREEDY.model_copy(update={"max_tokens": 1}), names)
    assert len({answer.adapter_digests for answer in loads}) == len(names)
    status = llm.adapters.status()
    capacity = llm.config.pool_pages - 1
    assert 0 < sum(adapter.host_bytes for adapter in status) <= llm.config.host_cache_bytes
    assert sum(adapter.pages for adapter in status) == 2 * capacity, "of q_proj and of v_proj"
    assert [adapter for adapter in status if adapter.requests] == []
    llm.adapters.validate()


def test_a_crowd_leaves_nothing_behind(llm: LLM, names: list[str]) -> None:
    with Crowd(llm, names, 24, seed=7) as crowd:
        crowd.wait(200)
    assert crowd.finished
    assert crowd.cancelled
    stats = llm.engine.stats
    assert (stats.running, stats.waiting, stats.free_kv_blocks) == (0, 0, stats.kv_blocks)
    assert [adapter for adapter in llm.adapters.status() if adapter.requests] == []
    llm.adapters.validate()
