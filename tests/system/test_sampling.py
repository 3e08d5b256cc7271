"""Sampling features through the real model, several at once."""

import pytest

from openlora_jax import LLM, SamplingParams
from openlora_jax.outputs import Sample
from tests.system.compare import GREEDY, assert_same

PENALISED = SamplingParams(
    max_tokens=24, ignore_eos=True, presence_penalty=0.7, frequency_penalty=0.9, logprobs=20, n=4
)
SAMPLED = PENALISED.model_copy(update={"temperature": 1.3, "seed": 5})
ADAPTERS = ["adapter-1", None, "adapter-2"]
PROMPT = "x" * 37
"""Two full KV blocks that the samples share, and a third that each of them copies."""


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_penalties_choose_what_they_should(llm: LLM, adapter: str | None) -> None:
    for sample in llm.generate([PROMPT], PENALISED, [adapter])[0].outputs:
        plain = [max(token.top, key=token.top.__getitem__) for token in sample.logprobs]
        assert list(sample.token_ids) != plain, "or the penalties change nothing"
        for index, token in enumerate(sample.logprobs):
            allowed = {id_: value - _penalty(sample.token_ids[:index], id_) for id_, value in token.top.items()}
            best = max(allowed.values())
            chosen = token.logprob - _penalty(sample.token_ids[:index], token.token_id)
            assert chosen >= best - 1e-4


def _penalty(before: tuple[int, ...], token_id: int) -> float:
    count = before.count(token_id)
    return 0.7 * (count > 0) + 0.9 * count


@pytest.mark.parametrize("params", [PENALISED, SAMPLED])
def test_samples_of_one_request_are_those_of_requests_of_their_own(llm: LLM, params: SamplingParams) -> None:
    batch = llm.generate([PROMPT] * 3, params, ADAPTERS)
    for answer, adapter in zip(batch, ADAPTERS, strict=True):
        [alone] = llm.generate([PROMPT], params, [adapter])
        first = llm.generate([PROMPT], params.model_copy(update={"n": 1, "seed": answer.seed}), [adapter])
        assert _chosen(answer.outputs) == _chosen(alone.outputs)
        assert _chosen(first[0].outputs) == _chosen(answer.outputs[:1])
        assert answer.completion_tokens == 4 * 24
        assert all(len(token.top) == 20 for sample in answer.outputs for token in sample.logprobs)
        assert len(set(_chosen(answer.outputs))) == (4 if params.temperature else 1)


def _chosen(samples: tuple[Sample, ...]) -> list[tuple[int, ...]]:
    return [sample.token_ids for sample in samples]


def test_a_stop_string_across_tokens_ends_the_text_before_it(llm: LLM) -> None:
    ascii_alone = {token_id: -100.0 for token_id in range(256) if len(llm.tokenizer.decode([token_id]).encode()) != 1}
    params = SAMPLED.model_copy(update={"n": 1, "logit_bias": ascii_alone, "logprobs": None})
    [whole] = llm.generate(["a"], params)[0].outputs
    assert len(whole.text) == len(whole.token_ids) == 24
    for start in range(1, 20, 3):
        stop = whole.text[start : start + 4]
        [cut] = llm.generate(["a"], params.model_copy(update={"stop": ("never", stop)}))[0].outputs
        end = whole.text.index(stop)
        assert (cut.text, cut.finish_reason) == (whole.text[:end], "stop")
        assert cut.token_ids == whole.token_ids[: end + 4]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED.model_copy(update={"n": 2})])
def test_running_out_of_kv_blocks_shows_in_no_answer(llm: LLM, names: list[str], params: SamplingParams) -> None:
    params = params.model_copy(update={"max_tokens": 40})
    prompts = ["y" * length for length in range(3, 33, 6)]
    adapters = [*names[:3], *[None] * 2]
    plenty = llm.generate(prompts, params, adapters)
    blocks = llm.engine._scheduler.blocks
    before = llm.engine.stats.preemptions
    taken = blocks.allocate(blocks.num_free - 10)  # nothing runs now, so this thread may
    assert taken is not None
    scarce = llm.generate(prompts, params, adapters)
    blocks.release(taken)
    assert llm.engine.stats.preemptions > before
    assert llm.engine.stats.free_kv_blocks == blocks.usable
    for found, expected in zip(scarce, plenty, strict=True):
        assert found.adapter_digests == expected.adapter_digests
        if params.temperature:
            assert _chosen(found.outputs) == _chosen(expected.outputs)
        else:
            assert_same(found, expected)
