"""NaN in all memory that belongs to nobody, before every step: it would show in any answer that reads it."""

import math

import pytest

from openlora_jax import LLM
from openlora_jax.errors import NotFinite
from openlora_jax.inputs import Adapter
from tests.system.compare import GREEDY, assert_same
from tests.system.crowd import Crowd
from tests.system.poisoned import poisoned

PROMPTS = ["the sea is", "a", "x" * 70, "hello", "y" * 16, "z" * 33]
ADAPTERS: list[Adapter] = ["adapter-11", None, "adapter-12", {"adapter-11": 0.5, "adapter-13": 0.5}, None, "adapter-14"]
LONG = GREEDY.model_copy(update={"max_tokens": 40})


def test_memory_that_belongs_to_nobody_is_in_no_answer(
    llm: LLM, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = llm.generate(PROMPTS, LONG, ADAPTERS)
    with poisoned(llm, monkeypatch) as poison:
        for _ in range(2):
            for found, expected in zip(llm.generate(PROMPTS, LONG, ADAPTERS), clean, strict=True):
                assert_same(found, expected)
        with Crowd(llm, names[:20], 5, seed=3) as crowd:
            crowd.wait(5)
            for found, expected in zip(llm.generate(PROMPTS, LONG, ADAPTERS), clean, strict=True):
                assert_same(found, expected)
        scored = llm.score(PROMPTS, ["and so on"] * len(PROMPTS), ADAPTERS)
    assert poison.steps > 100
    assert all(math.isfinite(value) for each in scored for value in each.logprobs)
    for found, expected in zip(llm.generate(PROMPTS, LONG, ADAPTERS), clean, strict=True):
        assert_same(found, expected)


def test_the_poison_would_show(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with poisoned(llm, monkeypatch) as poison:
        monkeypatch.setattr(poison, "_owned", list)
        with pytest.raises(NotFinite, match="adapter-11"):
            llm.generate(["a"], GREEDY, "adapter-11")
    for status in llm.adapters.status():
        llm.adapters.unload(status.digest)
