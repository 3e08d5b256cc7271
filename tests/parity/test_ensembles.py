"""Ensembles against members of transformers, combined by hand: greedy tokens and log-probabilities."""

import pytest

from openlora_jax import SamplingParams, ensemble
from openlora_jax.config import EngineConfig
from openlora_jax.engine.request import Method
from openlora_jax.inputs import Target
from openlora_jax.llm import LLM
from openlora_jax.outputs import Generation
from tests.parity.cases import ENSEMBLES
from tests.parity.conftest import CONFIG, House
from tests.parity.goldens import BOUND, MOVED, Goldens, adapter_directory, base_directory

BASE = base_directory("llama")
COUNT = 6
GREEDY = SamplingParams(max_tokens=COUNT, ignore_eos=True, logprobs=1)


@pytest.fixture(scope="module")
def furnished(house: House) -> House:
    for case in ENSEMBLES.values():
        for name in {name for mix in case.members for name in mix}:
            house.install(name, adapter_directory(name), BASE)
    return house


@pytest.fixture(scope="module")
def llm(furnished: House) -> LLM:
    return furnished.llm(BASE)


def targets() -> dict[str, Target]:
    return {name: ensemble(case.members, case.weights, case.method) for name, case in ENSEMBLES.items()}


def check(goldens: Goldens, name: str, answers: list[Generation]) -> None:
    for expected, answer in zip(goldens.ensembles[name], answers, strict=True):
        [output] = answer.outputs
        assert output.token_ids == expected.token_ids
        differences = [abs(a.logprob - b) for a, b in zip(output.logprobs, expected.logprobs, strict=True)]
        assert max(differences) <= BOUND


def test_together_with_each_other_and_plain_rows(llm: LLM, goldens: Goldens) -> None:
    plain: dict[str, Target] = {"base": None, "adapter": "rank_8", "mix": {"rank_17": 0.5, "rank_64": 0.5}}
    every = {**targets(), **plain}
    asked = [(row.prompt_ids, target) for row in goldens.rows for target in every.values()]
    answers = llm.generate([prompt for prompt, _ in asked], GREEDY, [target for _, target in asked])
    found = {name: answers[first :: len(every)] for first, name in enumerate(every)}
    for name in ENSEMBLES:
        check(goldens, name, found[name])
    for name, target in plain.items():
        for row, answer in zip(goldens.rows, found[name], strict=True):
            [alone] = llm.generate([row.prompt_ids], GREEDY, target)
            assert answer.outputs[0].token_ids == alone.outputs[0].token_ids


def test_other_weights_and_the_other_method_are_noticed(llm: LLM, goldens: Goldens) -> None:
    prompt = goldens.rows[0].prompt_ids
    for name, case in ENSEMBLES.items():
        other: Method = "mean_logits" if case.method == "mean_probs" else "mean_probs"
        first_alone = (1.0, *[0.0] * (len(case.members) - 1))
        changed = [ensemble(case.members, first_alone, case.method), ensemble(case.members, (), other)]
        for answer in llm.generate([prompt] * 2, GREEDY, changed):
            [output], expected = answer.outputs, goldens.ensembles[name][0]
            differences = [abs(a.logprob - b) for a, b in zip(output.logprobs, expected.logprobs, strict=True)]
            assert output.token_ids != expected.token_ids or max(differences) >= MOVED


@pytest.mark.slow
def test_deterministic(furnished: House, goldens: Goldens) -> None:
    asked = [(row.prompt_ids, target) for row in goldens.rows for target in targets().values()]
    base, store = furnished.paths(BASE)
    with LLM(base, store, config=EngineConfig.of(CONFIG.model_dump() | {"deterministic": True})) as llm:
        answers = llm.generate([prompt for prompt, _ in asked], GREEDY, [target for _, target in asked])
        [alone] = llm.generate([asked[-1][0]], GREEDY, asked[-1][1])
    assert answers[-1].outputs == alone.outputs, "bit-equal in any company"
    for first, name in enumerate(ENSEMBLES):
        check(goldens, name, answers[first :: len(ENSEMBLES)])
