"""NaN in all memory that belongs to nobody, before every step: it would show in any answer that reads it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openlora_jax import LLM
from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.engine.plan import StepPlan, StepResult
from openlora_jax.engine.runner import DeviceRunner
from openlora_jax.errors import NotFinite
from openlora_jax.inputs import Adapter
from tests.openlora_jax.adapters.poison import poison_free
from tests.system.compare import GREEDY, assert_same
from tests.system.crowd import Crowd

PROMPTS = ["the sea is", "a", "x" * 70, "hello", "y" * 16, "z" * 33]
ADAPTERS: list[Adapter] = ["adapter-11", None, "adapter-12", {"adapter-11": 0.5, "adapter-13": 0.5}, None, "adapter-14"]
LONG = GREEDY.model_copy(update={"max_tokens": 40})


class Poisoned:
    """Poisons an engine's free memory before every step that it dispatches; everything here is on its own thread.

    Attributes:
        steps: that ran on poisoned memory.
    """

    def __init__(self, llm: LLM) -> None:
        self.steps = 0
        self._runner = llm.runner
        self._blocks = llm.engine._scheduler.blocks
        self._residency = llm.adapters._residency

    def run(self, plan: StepPlan) -> StepResult:
        free = np.zeros(self._blocks.usable + 1, np.bool_)
        free[self._blocks._free] = True
        self._runner._kv = jax.tree.map(partial(_poison_blocks, free), self._runner._kv)
        poison_free(self._runner.pool, self._owned())
        self.steps += 1
        return DeviceRunner.run(self._runner, plan)

    def _owned(self) -> list[AdapterPages]:
        return [residence.pages for residence in list(self._residency.all()) if residence.pages]


def _poison_blocks(free: np.ndarray, kv: jax.Array) -> jax.Array:
    """NaN in the free blocks of an array whose second axis they are."""
    return jnp.where(free.reshape(1, -1, *[1] * (kv.ndim - 2)), jnp.float32(math.nan), kv)


@contextmanager
def poisoned(llm: LLM, patch: pytest.MonkeyPatch) -> Iterator[Poisoned]:
    poison = Poisoned(llm)
    with patch.context() as context:
        context.setattr(llm.runner, "run", poison.run)
        yield poison


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
