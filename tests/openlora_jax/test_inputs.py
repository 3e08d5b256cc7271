from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_jax.engine.request import GenerateRequest, MixItem, ScoreRequest
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.scheduling_params import SchedulingParams
from openlora_jax.errors import InvalidRequest
from openlora_jax.inputs import (
    Adapter,
    completion_ids,
    edit_distance,
    ensemble,
    mix_of,
    parse_generate,
    parse_score,
    prompt_ids,
)

MESSAGES = [{"role": "user", "content": "hi"}]


class Letters:
    """One id a letter; 1 goes before a text and 2 before messages."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [1] * special + [ord(letter) for letter in text]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [2] + [ord(letter) for message in messages for letter in message["content"]]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "a"}, (1, 97)),
        ({"prompt": ""}, (1,)),
        ({"prompt_ids": [5, 6]}, (5, 6)),
        ({"messages": MESSAGES}, (2, 104, 105)),
        ({"messages": MESSAGES, "prompt": None, "adapter": None}, (2, 104, 105)),
    ],
)
def test_prompts(fields: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert parse_generate(fields).request(Letters()).prompt_ids == expected
    assert parse_score(fields | {"completion": "b"}).request(Letters()).prompt_ids == expected


def test_a_whole_row_to_generate() -> None:
    fields = {"prompt": "a", "max_tokens": 3, "stop": "x", "logit_bias": {"4": 2}, "adapter": "a1", "id": 7, "n": 2}
    row = parse_generate(fields)
    params = SamplingParams(max_tokens=3, stop=("x",), logit_bias={4: 2.0}, n=2)
    assert row.request(Letters()) == GenerateRequest(prompt_ids=(1, 97), params=params, mix=(MixItem("a1"),))
    assert row.extra == {"id": 7}


SCHEDULING: dict[str, Any] = {"priority": "high", "tenant": "blue", "ttft_deadline": 0.5}


def test_rows_say_how_they_are_scheduled() -> None:
    fields = {"prompt": "a"} | SCHEDULING
    expected = SchedulingParams(priority="high", tenant="blue", ttft_deadline=0.5)
    assert parse_score(fields | {"completion": "b"}).request(Letters()).scheduling == expected
    generated = parse_generate(fields | {"tpot_deadline": 0.1})
    assert generated.request(Letters()).scheduling == expected.model_copy(update={"tpot_deadline": 0.1})
    assert generated.extra == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"priority": "urgent"}, "priority: input should be 'low', 'normal' or 'high'"),
        ({"tenant": "x" * 129}, "tenant: string should have at most 128 characters"),
        ({"ttft_deadline": 0}, "ttft_deadline: input should be greater than 0"),
        ({"tpot_deadline": float("inf")}, "tpot_deadline: input should be a finite number"),
    ],
)
def test_how_it_is_scheduled_is_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_generate({"prompt": "a"} | fields)


def test_an_ensemble() -> None:
    members = ["x", None, [{"adapter": "x", "weight": -0.5}, {"adapter": "y"}]]
    spelt = {"members": members, "weights": [0.5, 0.2, 0.3], "method": "mean_probs"}
    request = parse_generate({"prompt": "a", "ensemble": spelt}).request(Letters())
    assert request.mix == ()
    assert request.ensemble == ensemble(["x", None, {"x": -0.5, "y": 1.0}], [0.5, 0.2, 0.3], "mean_probs")
    assert parse_generate({"prompt": "a", "ensemble": {"members": ["x"]}}).ensemble == ensemble(["x"])


def test_a_whole_row_to_score() -> None:
    mix = [{"adapter": "a", "weight": -0.5}, {"adapter": "b"}]
    row = parse_score({"prompt": "a", "completion": "b", "mix": mix, "label": [1], "max_tokens": 9})
    assert row.request(Letters()) == ScoreRequest(
        prompt_ids=(1, 97), completion_ids=(98,), mix=(MixItem("a", -0.5), MixItem("b", 1.0))
    )
    assert row.extra == {"label": [1], "max_tokens": 9}


def test_completion_ids_are_verbatim() -> None:
    assert parse_score({"prompt": "a", "completion_ids": [9]}).request(Letters()).completion_ids == (9,)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({}, "prompt", "give one of prompt, messages, prompt_ids"),
        ({"prompt": "a", "prompt_ids": [1]}, "prompt", "prompt and prompt_ids are given"),
        ({"prompt": 3}, "prompt", "valid string"),
        ({"prompt": "a", "prompt_ids": "abc"}, "prompt_ids", "valid list"),
        ({"prompt_ids": [1, True]}, "prompt_ids.1", "valid integer"),
        ({"prompt_ids": [1.5]}, "prompt_ids.0", "valid integer"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name", "not permitted"),
        ({"prompt": "a", "adapter": 3}, "adapter", "valid string"),
        ({"prompt": "a", "adapter": "x", "mix": [{"adapter": "y"}]}, "mix", "beside adapter"),
        ({"prompt": "a", "mix": []}, "mix", "at least 1"),
        ({"prompt": "a", "mix": [{"adapter": "y", "weight": float("nan")}]}, "mix.0.weight", "finite"),
        ({"prompt": "a", "mix": [{"adapter": "y", "weight": "1"}]}, "mix.0.weight", "valid number"),
        ({"prompt": "a", "mix": [{"adapter": "y"}, {"adapter": "y", "weight": 2}]}, "mix", "named twice"),
        ({"prompt": "a", "mix": [{"adaptor": "y"}]}, "mix.0.adapter", "required"),
        ({"prompt": "a", "ensemble": {"members": []}}, "ensemble.members", "at least 1"),
        ({"prompt": "a", "ensemble": {"members": ["y"], "wieghts": [1]}}, "ensemble.wieghts", "not permitted"),
        ({"prompt": "a", "ensemble": {"members": ["y"], "weights": [float("nan")]}}, "ensemble.weights.0", "finite"),
        ({"prompt": "a", "ensemble": {"members": ["y"], "method": "median"}}, "ensemble.method", "mean_logits"),
        ({"prompt": "a", "ensemble": {"members": [[{"adapter": "y"}] * 2]}}, "mix", "named twice"),
        ({"prompt": "a", "ensemble": {"members": [[]]}}, "ensemble.members.0", "valid string"),
        ({"prompt": "a", "ensemble": {"members": ["y"]}, "adapter": "x"}, "ensemble", "beside adapter or mix"),
        ({"prompt": "a", "ensemble": None, "ensembles": 1}, "ensembles", "'ensemble'"),
        ({"prompt": "a", "temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature", "finite"),
        ({"prompt": "a", "top_p": 0}, "top_p", "greater than 0"),
        ({"prompt": "a", "max_tokens": "many"}, "max_tokens", "valid integer"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias.x", "valid integer"),
        ({"prompt": "a", "promt_ids": [1]}, "promt_ids", "'prompt_ids'"),
        ({"prompt": "a", "max_token": 3}, "max_token", "'max_tokens'"),
        ({"prompt": "a", "adpater": "x"}, "adpater", "'adapter'"),
        ({"prompt": "a", "stpo": "x"}, "stpo", "'stop'"),
        ({"prompt": "a", "mx": []}, "mx", "'mix'"),
        ({"prompt": "a", "outputs": 1}, "outputs", "key of the output"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        parse_generate(fields)
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "a"}, "completion"),
        ({"prompt": "a", "completion": "b", "completion_ids": [1]}, "completion"),
        ({"prompt": "a", "completion": "b", "complation": "c"}, "complation"),
        ({"prompt": "a", "completion": "b", "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "completion": "b", "ensemble": {"members": ["x"]}}, "ensemble"),
    ],
)
def test_mistakes_in_scoring(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_score(fields)
    assert caught.value.field == field


@pytest.mark.parametrize("key", ["id", "i", "x", "label", "name", "expected", "completion", "category", "k" * 10**6])
def test_other_keys_are_carried_through(key: str) -> None:
    assert parse_generate({"prompt": "a", key: {"any": [1]}}).extra == {key: {"any": [1]}}


@pytest.mark.parametrize(
    ("adapter", "mix"),
    [(None, ()), ("a", (MixItem("a", 1.0),)), ({"a": 0.6, "b": 0.4}, (MixItem("a", 0.6), MixItem("b", 0.4)))],
)
def test_adapters_as_mixes(adapter: Adapter, mix: tuple[MixItem, ...]) -> None:
    assert mix_of(adapter) == mix


def test_ids_may_be_numpy_integers() -> None:
    ids = list(np.arange(3))
    assert (prompt_ids(ids, Letters()), completion_ids(ids, Letters())) == ((0, 1, 2), (0, 1, 2))


@pytest.mark.parametrize(
    ("prompt", "field", "message"),
    [
        (1, "prompt", "'int' object is not iterable; give a text or a list of token ids"),
        (None, "prompt", "'NoneType' object is not iterable"),
        ([1, "a"], "prompt", "'str' object cannot be interpreted as an integer"),
        (MESSAGES[0], "prompt", "is a single message"),
        ([{"role": "user"}], "messages.0.content", "field required"),
        ([*MESSAGES, 3], "messages.1", "valid dictionary"),
        ([{"role": "user", "content": None}], "messages.0.content", "valid string"),
    ],
)
def test_what_is_no_prompt_is_named(prompt: object, field: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        prompt_ids(prompt, Letters())
    assert caught.value.field == field


def test_what_is_no_completion_is_named() -> None:
    with pytest.raises(InvalidRequest, match="completion: 'int' object is not iterable"):
        completion_ids(3, Letters())


def test_messages_may_be_any_mappings_in_any_sequence() -> None:
    assert prompt_ids(tuple(map(MappingProxyType, MESSAGES)), Letters()) == (2, 104, 105)


words = st.text("abc", max_size=6)


@given(words, words, words)
def test_edit_distance(one: str, other: str, third: str) -> None:
    distance = edit_distance(one, other)
    assert (distance == 0) == (one == other)
    assert distance == edit_distance(other, one)
    assert distance <= edit_distance(one, third) + edit_distance(third, other)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))
