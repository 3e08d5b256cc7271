import math
from typing import Any, cast

import grpc
import pytest

from serving.proto import openlora_pb2 as pb
from tests.serving.fakes import FakeLLM, generate

BAD_SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": math.nan}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"seed": 2**31}, "seed"),
    ({"seed": -1}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 2**40}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2**62}, "max_tokens"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    ({"logprobs": 21}, "logprobs"),
    ({"stop": [""]}, "stop.0"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x" * 257]}, "stop.0"),
    ({"stop_token_ids": [128]}, "stop_token_ids"),
    ({"logit_bias": {5: math.nan}}, "logit_bias.5"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias"),
    ({"logit_bias": dict.fromkeys(range(301), 1.0)}, "logit_bias"),
]


@pytest.mark.parametrize(("sampling", "field"), BAD_SAMPLING, ids=lambda value: str(value)[:40])
async def test_bad_sampling_names_the_field(stub: Any, llm: FakeLLM, sampling: dict[str, Any], field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(generate(**sampling))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (failure.value.details() or "").startswith(f"{field}: ")
    assert llm.engine.live == 0


def together(*members: pb.EnsembleMember, count: int = 1, **others: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt=pb.Prompt(text="a"), ensemble=pb.Ensemble(members=members * count, **others))


ITEM = pb.MixItem(adapter="sql")
LONG = pb.TokenIds(ids=[1] * 256)
BAD_REQUESTS: list[tuple[pb.GenerateRequest, str]] = [
    (together(pb.EnsembleMember(), count=9), "ensemble.members"),
    (together(count=0), "ensemble.members"),
    (together(pb.EnsembleMember(mix=pb.Mix())), "mix.items"),
    (together(pb.EnsembleMember(adapter="a" * 129)), "adapter"),
    (together(pb.EnsembleMember(), weights=[math.nan]), "ensemble.weights"),
    (together(pb.EnsembleMember(), weights=[1.0, 2.0]), "ensemble.weights"),
    (together(pb.EnsembleMember(), method=cast(Any, 9)), "ensemble.method"),
    (pb.GenerateRequest(), "prompt"),
    (pb.GenerateRequest(prompt=pb.Prompt()), "prompt"),
    (generate(""), "prompt"),
    (pb.GenerateRequest(prompt=pb.Prompt(token_ids=pb.TokenIds())), "prompt"),
    (pb.GenerateRequest(prompt=pb.Prompt(chat=pb.Chat())), "prompt.chat"),
    (pb.GenerateRequest(prompt=pb.Prompt(chat=pb.Chat(messages=[pb.ChatMessage()] * 257))), "prompt.chat"),
    (pb.GenerateRequest(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[128]))), "prompt"),
    (pb.GenerateRequest(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[-1]))), "prompt"),
    (
        pb.GenerateRequest(prompt=pb.Prompt(text="a"), scheduling=pb.SchedulingParams(priority=cast(Any, 9))),
        "priority",
    ),
    (pb.GenerateRequest(prompt=pb.Prompt(text="a"), scheduling=pb.SchedulingParams(tenant="x" * 129)), "tenant"),
    (pb.GenerateRequest(prompt=pb.Prompt(text="a"), scheduling=pb.SchedulingParams(ttft_deadline=0)), "ttft_deadline"),
    (pb.GenerateRequest(prompt=pb.Prompt(token_ids=LONG)), "prompt"),
    (pb.GenerateRequest(prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[1] * 257))), "prompt.token_ids"),
    (generate("x" * 256), "prompt"),
    (generate("x" * (256 * 128 + 1)), "prompt.text"),
    (pb.GenerateRequest(prompt=pb.Prompt(text="a"), adapter=""), "adapter"),
    (pb.GenerateRequest(prompt=pb.Prompt(text="a"), adapter="x" * 129), "adapter"),
    (pb.GenerateRequest(prompt=pb.Prompt(text="a"), mix=pb.Mix()), "mix.items"),
    (pb.GenerateRequest(prompt=pb.Prompt(text="a"), mix=pb.Mix(items=[ITEM, ITEM])), "mix"),
    (pb.GenerateRequest(prompt=pb.Prompt(text="a"), mix=pb.Mix(items=[ITEM] * 9)), "mix.items"),
    (pb.GenerateRequest(prompt=pb.Prompt(text="a"), mix=pb.Mix(items=[pb.MixItem()])), "mix.items.0.adapter"),
    (
        pb.GenerateRequest(prompt=pb.Prompt(text="a"), mix=pb.Mix(items=[pb.MixItem(adapter="sql", weight=math.nan)])),
        "mix",
    ),
]


@pytest.mark.parametrize(("request_", "field"), BAD_REQUESTS, ids=lambda value: str(value)[:40])
async def test_a_bad_request_names_the_field(stub: Any, request_: pb.GenerateRequest, field: str) -> None:
    for call in (stub.Generate(request_), stub.GenerateStream(request_).read()):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (failure.value.details() or "").startswith(f"{field}: ")


async def test_a_score_without_completion_is_refused(stub: Any) -> None:
    for request in (
        pb.ScoreRequest(prompt=pb.Prompt(text="a")),
        pb.ScoreRequest(prompt=pb.Prompt(text="a"), completion=""),
        pb.ScoreRequest(prompt=pb.Prompt(text="a"), completion_ids=pb.TokenIds(ids=[1] * 300)),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="completion") as failure:
            await stub.Score(request)
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_beyond_the_limit_is_refused_unread(stub: Any, llm: FakeLLM) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(generate("x" * (5 * 1024**2)))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Generate(generate(max_tokens=1))).outputs[0].text == "d"
