import pytest

from openlora_jax.engine.row_sampling import RowSampling
from openlora_jax.engine.sampling_params import SamplingParams


def test_every_field_arrives() -> None:
    params = SamplingParams(
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.4,
        logit_bias={1: 2.0},
        logprobs=4,
    )
    assert RowSampling.of(params, seed=9, sample=2) == RowSampling(
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.4,
        biased=True,
        seed=9,
        sample=2,
        logprobs=4,
    )


@pytest.mark.parametrize(
    ("fields", "uses_slot"),
    [
        ({}, False),
        ({"temperature": 1.0, "top_k": 5}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": -1.0}, True),
        ({"frequency_penalty": 0.1}, True),
        ({"logit_bias": {3: 1.0}}, True),
    ],
)
def test_only_penalties_and_bias_use_the_slot(fields: dict[str, object], uses_slot: bool) -> None:
    assert RowSampling.of(SamplingParams.model_validate(fields), seed=0).uses_slot is uses_slot


def test_forbidding_replaces() -> None:
    row = RowSampling(top_k=4).forbidding([1, 2])
    assert row == RowSampling(top_k=4, forbidden=(1, 2))
    assert row.forbidding([]).forbidden == ()
