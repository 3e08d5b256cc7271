"""With `deterministic: true` a request's tokens and log-probabilities are the same to the last bit in any company."""

import pytest

from openlora_jax import LLM, SamplingParams
from openlora_jax.inputs import Adapter
from openlora_jax.outputs import Generation
from tests.system.compare import tokens
from tests.system.crowd import Crowd

COMPANY = 15
LONG = "the sea is " * 9
"""More than one chunk."""

SAMPLED = SamplingParams(max_tokens=40, temperature=1.2, top_p=0.95, logprobs=5, ignore_eos=True)
Case = tuple[str, SamplingParams, Adapter]
CASES: list[Case] = [
    (LONG, SAMPLED.model_copy(update={"seed": 1}), "adapter-3"),
    ("a", SAMPLED.model_copy(update={"seed": 2, "top_k": 40}), None),
    (
        "hello there",
        SAMPLED.model_copy(update={"seed": 3, "n": 2, "frequency_penalty": 0.5}),
        {"adapter-5": 0.7, "adapter-9": -0.4},
    ),
    (LONG, SAMPLED.model_copy(update={"temperature": 0.0, "repetition_penalty": 1.2}), "adapter-7"),
    ("b" * 31, SAMPLED.model_copy(update={"seed": 4, "min_p": 0.02, "logit_bias": {40: 2.0}}), "adapter-3"),
]


def answer(llm: LLM, case: Case) -> Generation:
    prompt, params, adapter = case
    return llm.generate([prompt], params, [adapter])[0]


@pytest.mark.parametrize("case", CASES)
def test_company_changes_not_one_bit(exact_llm: LLM, names: list[str], case: Case) -> None:
    alone = answer(exact_llm, case)
    with Crowd(exact_llm, names, COMPANY, seed=len(case[0])) as crowd:
        crowd.wait(COMPANY)
        company = [answer(exact_llm, case) for _ in range(3)]
        crowd.wait(COMPANY)
    assert crowd.finished
    assert crowd.cancelled
    for found in company:
        assert found.outputs == alone.outputs
        assert found.adapter_digests == alone.adapter_digests
    assert exact_llm.engine.stats.preemptions == 0


def test_company_changes_not_one_bit_of_a_score(exact_llm: LLM, names: list[str]) -> None:
    alone = exact_llm.score([LONG], ["and so is the sky"], "adapter-3")[0].logprobs
    with Crowd(exact_llm, names, COMPANY, seed=0) as crowd:
        crowd.wait(COMPANY)
        for _ in range(3):
            assert exact_llm.score([LONG], ["and so is the sky"], "adapter-3")[0].logprobs == alone


def test_another_seed_or_adapter_is_another_answer(exact_llm: LLM) -> None:
    prompt, params, adapter = CASES[0]
    other_seed = (prompt, params.model_copy(update={"seed": 99}), adapter)
    other_adapter = (prompt, params, "adapter-4")
    answers = [answer(exact_llm, case) for case in (CASES[0], other_seed, other_adapter)]
    assert len(set(tokens(answers))) == 3


def test_without_it_a_bit_may_change(llm: LLM, names: list[str]) -> None:
    """What the tests above would see: alone and in company, other programs run."""
    alone = answer(llm, CASES[0])
    with Crowd(llm, names[:4], 7, seed=0) as crowd:
        crowd.wait(7)
        company = answer(llm, CASES[0])
    assert company.outputs != alone.outputs
    logprobs = [[token.logprob for token in each.outputs[0].logprobs][:1] for each in (alone, company)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
