"""When two answers are the same answer: as many equal tokens as the model itself is sure of."""

from collections.abc import Iterable, Sequence

from openlora_jax import SamplingParams
from openlora_jax.outputs import Generation, Sample

BOUND = 1e-4
"""Between log-probabilities of one token in different company."""
TIE = 1e-3
"""Best and second best token closer than this may change places."""

GREEDY = SamplingParams(max_tokens=16, ignore_eos=True, logprobs=2)


def assert_same(found: Generation, expected: Generation) -> int:
    """Checks a greedy answer made with `logprobs=2` against another one; returns how many tokens it could compare."""
    assert found.adapter_digests == expected.adapter_digests
    compared = 0
    for sample, other in zip(found.outputs, expected.outputs, strict=True):
        count = sure(other)
        assert sample.token_ids[:count] == other.token_ids[:count]
        for token, reference in zip(sample.logprobs[:count], other.logprobs[:count], strict=True):
            assert abs(token.logprob - reference.logprob) <= BOUND
        compared += count
    return compared


def sure(sample: Sample) -> int:
    """Tokens before the first tie."""
    return before_a_tie([list(token.top.values()) for token in sample.logprobs])


def before_a_tie(tops: Sequence[Iterable[float]]) -> int:
    """Tokens before the first whose best two log-probabilities, given for each, are about the same."""
    for index, (best, second) in enumerate(tops):
        if best - second < TIE:
            return index
    return len(tops)


def tokens(answers: Sequence[Generation]) -> list[tuple[int, ...]]:
    """The token ids of the first sample of each answer."""
    return [answer.outputs[0].token_ids for answer in answers]
