"""An engine whose keys and values are int8 answers as its own numbers do, whatever becomes of its blocks."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.llm import LLM
from tests.openlora_jax.tiny import SETTINGS

PROMPTS = [[5 + index, *range(20, 40), 7 * index] for index in range(6)]
COMPLETIONS = [[21, 22, 23, 24]] * len(PROMPTS)
ADAPTERS = ["one", None, {"one": 0.5, "two": 0.5}] * 2
ERROR = 0.1
"""Of log-probabilities of this model, which has wide logits and heads of 8 numbers."""


@pytest.fixture(scope="module")
def few(tiny_base: Path, tiny_store: Path) -> Iterator[LLM]:
    """With so few blocks that four rows cannot all end before one gives way."""
    with LLM(tiny_base, tiny_store, **(SETTINGS | {"kv_dtype": "int8", "kv_blocks": 10})) as llm:
        yield llm


def test_it_scores_as_in_float32_but_for_rounding(few: LLM, tiny_llm: LLM) -> None:
    coded, plain = (
        np.array([each.logprobs for each in llm.score(PROMPTS, COMPLETIONS, ADAPTERS)]) for llm in (few, tiny_llm)
    )
    assert 0 < np.abs(coded - plain).max() < ERROR


def test_who_gives_way_and_who_shares_a_prefix_go_on_as_if_alone(few: LLM) -> None:
    """Recomputed, cached and copied blocks hold the same codes, but for what rounds the other way."""
    params = SamplingParams(max_tokens=50, ignore_eos=True)
    alone = [few.generate([prompt], params, [adapter])[0] for prompt, adapter in zip(PROMPTS, ADAPTERS, strict=True)]
    before = few.engine.stats.preemptions
    together = few.generate(PROMPTS, params, ADAPTERS)
    assert few.engine.stats.preemptions > before
    for one, other in zip(alone, together, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
    twice = few.generate(PROMPTS[:1], SamplingParams(max_tokens=6, ignore_eos=True, n=2), "one")[0]
    assert {tuple(output.token_ids) for output in twice.outputs} == {tuple(alone[0].outputs[0].token_ids[:6])}


def test_the_plan_counts_what_is_held(few: LLM, tiny_llm: LLM) -> None:
    held = [sum(leaf.nbytes for leaf in jax.tree.leaves(llm.runner._kv)) for llm in (few, tiny_llm)]
    assert [few.plan.kv, tiny_llm.plan.kv] == held
    assert "10 KV blocks of 16 tokens in int8" in str(few.plan)
