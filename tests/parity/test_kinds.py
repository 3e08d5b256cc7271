"""Adapters of every kind in one batch answer as each alone, and what cannot be mixed says so."""

import pytest

from openlora_jax import SamplingParams
from openlora_jax.errors import InvalidRequest
from tests.parity.conftest import House
from tests.parity.goldens import MOVED, Goldens, Row, adapter_directory, base_directory, max_difference

BASE = base_directory("llama")
KINDS = (
    *("dora", "dora_embed_head", "lora_bias", "lora_bias_head", "alora", "alora_bias", "token_rows", "rank_17"),
    *("saved_head", "saved_embed", "saved_both"),
)
MIX = {"lora_bias": 0.5, "rank_17": -0.5}
BOUND = 1e-4


@pytest.fixture
def installed(house: House) -> House:
    for name in KINDS:
        house.install(name, adapter_directory(name), BASE)
    return house


def test_scores_of_all_kinds_together_equal_each_alone(installed: House, goldens: Goldens) -> None:
    llm, adapters = installed.llm(BASE), [*({name: 1.0} for name in KINDS), MIX, None]
    row = goldens.rows[5]
    count = len(adapters)
    together = llm.score([row.prompt_ids] * count, [row.completion_ids] * count, adapters=adapters)
    for scored, adapter in zip(together, adapters, strict=True):
        [alone] = installed.score(BASE, (row,), adapter)
        assert max_difference([list(scored.logprobs)], [alone]) <= BOUND
        if adapter:
            assert max_difference([alone], installed.score(BASE, (row,))) >= MOVED / 10


def test_generation_of_all_kinds_together_equals_each_alone(installed: House, goldens: Goldens) -> None:
    llm, row = installed.llm(BASE), goldens.rows[5]
    params = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=1)
    together = llm.generate([row.prompt_ids] * len(KINDS), params, KINDS)
    for answer, name in zip(together, KINDS, strict=True):
        [alone] = llm.generate([row.prompt_ids], params, name)
        assert answer.outputs[0].token_ids == alone.outputs[0].token_ids
        scored = installed.score(BASE, (Row(row.prompt_ids, answer.outputs[0].token_ids),), {name: 1.0})
        generated = [[token.logprob for token in answer.outputs[0].logprobs]]
        assert max_difference(generated, scored) <= BOUND


def test_an_adapter_that_is_not_invoked_answers_as_the_base_and_shares_its_blocks(
    installed: House, goldens: Goldens
) -> None:
    llm, prompt = installed.llm(BASE), (*goldens.rows[6].prompt_ids[21:117], 7)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    [plain] = llm.generate([prompt], params)
    before = llm.engine.stats.cached_tokens
    [same] = llm.generate([prompt], params, "alora")
    assert same.outputs[0].token_ids == plain.outputs[0].token_ids
    assert llm.engine.stats.cached_tokens - before == 96
    [invoked] = llm.generate([(*prompt, 239, 1)], params, "alora")
    assert llm.engine.stats.cached_tokens - before == 2 * 96
    assert invoked.outputs[0].token_ids != plain.outputs[0].token_ids


def test_an_invocation_in_a_completion_changes_no_score_before_or_after_it(installed: House, goldens: Goldens) -> None:
    """As it would change nothing had it been generated; the probability of a token depends on none that follows."""
    invoked, row = goldens.rows[5], goldens.rows[6]
    plain = Row(row.prompt_ids[21:117], (7, 239, 1, 5))
    twice = Row(invoked.prompt_ids, (*invoked.completion_ids, 239, 7))
    [scored] = installed.score(BASE, (twice,), {"alora": 1.0})
    [first] = installed.score(BASE, (invoked,), {"alora": 1.0})
    assert max_difference([scored[: len(first)]], [first]) <= BOUND
    assert max_difference(installed.score(BASE, (plain,), {"alora": 1.0}), installed.score(BASE, (plain,))) <= BOUND
    again = Row((*twice.prompt_ids, *twice.completion_ids[:-1]), twice.completion_ids[-1:])
    assert max_difference(installed.score(BASE, (again,), {"alora": 1.0}), [scored[-1:]]) >= MOVED / 10


def test_biases_are_mixed_and_gains_and_saved_modules_are_not(installed: House, goldens: Goldens) -> None:
    llm, row = installed.llm(BASE), goldens.rows[2]
    for mix in ({"dora": 0.5}, {"dora": 1.0, "rank_17": 1.0}):
        with pytest.raises(InvalidRequest, match=r"'dora' is a DoRA adapter, whose gain .* is not linear"):
            llm.score([row.prompt_ids], [row.completion_ids], adapters=mix)
    for mix in ({"saved_head": 0.5}, {"rank_17": 1.0, "saved_head": 1.0}):
        with pytest.raises(InvalidRequest, match=r"'saved_head' has modules of its own in the place of the base's"):
            llm.score([row.prompt_ids], [row.completion_ids], adapters=mix)


def test_only_those_who_are_invoked_take_part_in_a_mix(installed: House, goldens: Goldens) -> None:
    """Tokens 239 are in rows 3, 5 and 6."""
    mixed = installed.score(BASE, goldens.rows, {"rank_17": 0.5, "alora": 1.0})
    alone = installed.score(BASE, goldens.rows, {"rank_17": 0.5})
    for index, (one, other) in enumerate(zip(mixed, alone, strict=True)):
        moved = max_difference([one], [other])
        assert (moved >= MOVED / 10) if index in (3, 5, 6) else (moved <= BOUND)
