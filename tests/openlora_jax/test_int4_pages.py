"""Adapters of 4 bits, computed on as they are: in one batch and in mixes with others, as if they were numbers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openlora_jax import LLM
from openlora_jax.adapters.demand import Demand
from openlora_jax.adapters.few_bits import Rounding
from openlora_jax.adapters.modules import INT4
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.config import EngineConfig
from openlora_jax.memory import MemoryPlan
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.weights import random_weights
from tests.openlora_jax.test_tokenizer import byte_level, write_base
from tests.openlora_jax.tiny import DIGEST, MODEL, SETTINGS

WIDE = replace(MODEL, hidden_size=64, intermediate_size=128, num_kv_heads=4, head_dim=16)
"""Every width is a multiple of what 4 bits are packed in."""
EVERYWHERE = tuple(pool.removesuffix(".int4") for pool in INT4)
MIXES: list[dict[str, float] | None] = [{"few": 1.0}, {"more": 1.0}, {"plain": 1.0}, {"few": 0.6, "plain": -0.5}, None]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base, store = (tmp_path_factory.mktemp(name) for name in ("base", "store"))
    write_base(base, byte_level())
    write_weights(base, random_weights(WIDE, seed=0, deviation=0.2))
    BaseManifest(config=WIDE, dtype="float32", digest=DIGEST, source="random").write(base)
    opened = AdapterStore.create(store)
    few_bits = Rounding("int4", dtype="float32")
    install_synthetic(opened, WIDE, DIGEST, {"few": 1}, modules=EVERYWHERE, rank=40, scale=0.5, few_bits=few_bits)
    install_synthetic(opened, WIDE, DIGEST, {"more": 2}, rank=3, scale=0.5, few_bits=few_bits)
    install_synthetic(opened, WIDE, DIGEST, {"plain": 3}, modules=EVERYWHERE, rank=20, scale=0.5)
    return base, store


@pytest.fixture(scope="module")
def llm(paths: tuple[Path, Path]) -> Iterator[LLM]:
    with LLM(base=paths[0], store=paths[1], config=EngineConfig(**SETTINGS)) as llm:
        yield llm


def scores(llm: LLM, mixes: list[dict[str, float] | None]) -> list[list[float]]:
    prompts = [list(range(3, 3 + 7 * (row + 1))) for row in range(len(mixes))]
    found = llm.score(prompts, [list(range(40, 60))] * len(mixes), adapters=mixes)
    return [list(each.logprobs) for each in found]


def test_answers_are_those_of_the_numbers(llm: LLM, paths: tuple[Path, Path]) -> None:
    together = scores(llm, MIXES)
    assert {"q_proj.int4", "down_proj.int4"} <= llm.plan.pages.keys()
    with LLM(base=paths[0], store=paths[1], config=EngineConfig(**SETTINGS, int4_pages=1)) as other:
        np.testing.assert_allclose(scores(other, MIXES), together, atol=1e-4)
    base = scores(llm, [None] * len(MIXES))
    moved = [np.abs(np.subtract(one, two)).max() for one, two in zip(together, base, strict=True)]
    assert min(moved[:-1]) > 1e-2
    assert moved[-1] == 0


def test_generation_in_one_batch_is_that_of_each_alone(llm: LLM) -> None:
    prompts = [[5, 6, 7, 8 + row] for row in range(4)]
    together = llm.generate(prompts, adapters=["few", "more", "plain", None])
    for prompt, answer, name in zip(prompts, together, ["few", "more", "plain", None], strict=True):
        [alone] = llm.generate([prompt], adapters=[name])
        assert answer.outputs[0].token_ids == alone.outputs[0].token_ids


def test_pages_of_4_bits_are_planned_where_an_adapter_has_some(paths: tuple[Path, Path]) -> None:
    store = AdapterStore(paths[1])
    demand = Demand.of(store, DIGEST, {})
    engine = EngineConfig(**SETTINGS)
    planned = MemoryPlan.of(engine, WIDE, demand)
    assert planned.pages["up_proj.int4"] >= 1 + 3
    page = {pool: planned.pools[pool] / planned.pages[pool] for pool in ("up_proj", "up_proj.int4")}
    assert page["up_proj.int4"] / page["up_proj"] == pytest.approx(4.5 / 32)
    none = MemoryPlan.of(engine, WIDE, demand.placed({}))
    assert not set(INT4) & none.pages.keys()
    assert none.pages["up_proj"] >= 1 + 3
    fixed = MemoryPlan.of(EngineConfig(**SETTINGS, int4_pages=2), WIDE, demand)
    assert fixed.pages["up_proj.int4"] == 2
    assert fixed.pages["up_proj"] >= 1 + 3  # what has three pages does not fit, and becomes numbers
    narrow = MemoryPlan.of(engine, MODEL, demand)
    assert not set(INT4) & narrow.pages.keys()
