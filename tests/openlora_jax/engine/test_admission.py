import pytest

from openlora_jax.engine.admission import Admission
from openlora_jax.engine.request import GenerateRequest, MixItem, ScoreRequest
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.scheduling_params import SchedulingParams
from openlora_jax.errors import InvalidRequest
from tests.openlora_jax.engine.answers import VOCAB
from tests.openlora_jax.engine.fakes import generate, small_config

ADMISSION = Admission(small_config(kv_blocks=8), VOCAB)
LONG = range(60)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (generate([]), "prompt: is empty"),
        (generate([1, 97]), "prompt: token id 97 is outside the vocabulary, 0..96"),
        (generate([-1]), "prompt: token id -1 is outside"),
        (generate(n % 90 for n in range(128)), "prompt: 128 tokens leave no room .* 128 served"),
        (generate(LONG, max_tokens=69), "max_tokens: 60 prompt tokens and max_tokens 69 .* 128 served.* 68 at most"),
        (generate(LONG, max_tokens=60), "max_tokens: .* 8 KV blocks of 16 tokens, but the engine has 7"),
        (generate(range(90), n=3), "max_tokens: .* 8 KV blocks of 16 tokens, but the engine has 7"),
        (generate([1], n=5), "n: 5 samples, but the engine runs 4"),
        (generate([1], min_tokens=9), "min_tokens: 9 is more than max_tokens, 8"),
        (generate([1], stop_token_ids=(97,)), "stop_token_ids: token id 97"),
        (generate([1], logit_bias={-1: 1.0}), "logit_bias: token id -1"),
        (generate([1], {f"a{n}": 1.0 for n in range(9)}), "mix: 9 adapters are more than the 8"),
        (generate([1], {"a1": float("nan")}), "mix: the weight nan of adapter 'a1'"),
        (generate([1], {"a1": float("inf")}), "mix: the weight inf of adapter 'a1'"),
        (generate([1], {"a1": -3.41e38}), r"weight -3\.41e\+38 of adapter 'a1' is not a number within 3\.4"),
    ],
)
def test_refuses_to_generate(request_: GenerateRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        ADMISSION.generate(request_)


def test_refuses_an_adapter_named_twice() -> None:
    request = ScoreRequest(prompt_ids=(1,), completion_ids=(2,), mix=(MixItem("a1"), MixItem("a2"), MixItem("a1", 0.5)))
    with pytest.raises(InvalidRequest, match="mix: adapter 'a1' is named twice"):
        ADMISSION.score(request)


def test_a_score_has_no_time_per_token() -> None:
    params = SchedulingParams(tpot_deadline=0.1)
    with pytest.raises(InvalidRequest, match="tpot_deadline: a text to score has no tokens to come"):
        ADMISSION.score(ScoreRequest(prompt_ids=(1,), completion_ids=(2,), scheduling=params))


@pytest.mark.parametrize(
    ("prompt", "completion", "message"),
    [
        ([], [1], "prompt: is empty"),
        ([1], [], "completion: is empty"),
        ([1], [97], "completion: token id 97"),
        ([1] * 64, [1] * 65, "completion: 64 prompt tokens and 65 of the completion .* 128 served"),
        ([1] * 60, [1] * 60, "completion: .* 8 KV blocks of 16 tokens, but the engine has 7"),
    ],
)
def test_refuses_to_score(prompt: list[int], completion: list[int], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        ADMISSION.score(ScoreRequest(prompt_ids=tuple(prompt), completion_ids=tuple(completion)))


@pytest.mark.parametrize(("prompt_len", "max_tokens"), [(60, 53), (112, 1), (1, 112)])
def test_takes_what_just_fits(prompt_len: int, max_tokens: int) -> None:
    request = generate([1] * prompt_len, max_tokens=max_tokens)
    assert ADMISSION.generate(request) == request


def test_the_default_length_is_cut_to_what_is_left() -> None:
    admission = Admission(small_config(), VOCAB)
    request = GenerateRequest(prompt_ids=(1,) * 100, params=SamplingParams())
    assert admission.generate(request).params.max_tokens == 28


def test_deterministic_engines_reserve_every_sample_to_its_end() -> None:
    admission = Admission(small_config(kv_blocks=8, deterministic=True), VOCAB)
    assert admission.generate(generate([1] * 17, max_tokens=32, n=3))
    with pytest.raises(InvalidRequest, match="9 KV blocks"):
        admission.generate(generate([1] * 17, max_tokens=32, n=4))
