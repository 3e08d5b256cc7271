from typing import Any

from openlora_jax.engine.request import GenerateRequest, MixItem, ScoreRequest
from serving.proto import openlora_pb2 as pb
from tests.serving.fakes import SEED, FakeLLM, digest_of, generate


async def test_generate_answers_with_text_ids_seed_usage_and_timings(stub: Any) -> None:
    response = await stub.Generate(generate(max_tokens=3))
    assert list(response.outputs) == [
        pb.Output(text="def", token_ids=b"def", finish_reason=pb.FINISH_REASON_LENGTH),
    ]
    assert response.seed == SEED
    assert list(response.adapter_digests) == []
    assert response.usage == pb.Usage(prompt_tokens=3, completion_tokens=3)
    assert response.timings == pb.Timings(queue=0.25, load=0.5, prefill=1.0, decode=2.0)


async def test_samples_come_in_order_and_stop_at_the_end_token(stub: Any) -> None:
    response = await stub.Generate(generate("x", n=2, max_tokens=9))
    assert [output.text for output in response.outputs] == ["yz", "z"]
    assert [output.finish_reason for output in response.outputs] == [pb.FINISH_REASON_STOP] * 2
    assert response.usage.completion_tokens == 5


async def test_logprobs_are_reported_where_asked_for(stub: Any) -> None:
    asked = await stub.Generate(generate(max_tokens=1, logprobs=1))
    top = [pb.TokenAlternative(token_id=0, logprob=-2.0)]
    assert list(asked.outputs[0].logprobs) == [pb.TokenLogprobs(token_id=ord("d"), logprob=-1.0, top=top)]
    assert not (await stub.Generate(generate(max_tokens=1))).outputs[0].logprobs


async def test_a_stream_is_deltas_then_finished(stub: Any) -> None:
    events = [event async for event in stub.GenerateStream(generate("a", max_tokens=2, n=2))]
    deltas = [event.delta for event in events[:-1]]
    assert [(delta.index, delta.text, list(delta.token_ids)) for delta in deltas] == [
        (0, "b", [98]),
        (1, "c", [99]),
        (0, "c", [99]),
        (1, "e", [101]),
    ]
    assert [delta.finish_reason for delta in deltas] == [0, 0, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_LENGTH]
    assert events[-1].finished.usage == pb.Usage(prompt_tokens=1, completion_tokens=4)


async def test_an_adapter_answers_and_its_digest_says_so(stub: Any, llm: FakeLLM) -> None:
    request = generate(max_tokens=2)
    request.adapter = "pirate"
    response = await stub.Generate(request)
    assert response.outputs[0].text == "DE"
    assert list(response.adapter_digests) == [digest_of("pirate")]


async def test_a_mix_keeps_its_order_and_weights(stub: Any, llm: FakeLLM) -> None:
    request = generate(max_tokens=1)
    request.mix.items.extend([pb.MixItem(adapter="sql", weight=-0.5), pb.MixItem(adapter="json")])
    response = await stub.Generate(request)
    assert llm.engine.submitted[0].mix == (MixItem("sql", -0.5), MixItem("json", 1.0))
    assert list(response.adapter_digests) == [digest_of("sql"), digest_of("json")]


async def test_prompts_are_text_chat_or_ids(stub: Any, llm: FakeLLM) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="system", content="x"), pb.ChatMessage(role="user", content="y")])
    for prompt in (pb.Prompt(text="hi"), pb.Prompt(chat=chat), pb.Prompt(token_ids=pb.TokenIds(ids=[5, 0]))):
        await stub.Generate(pb.GenerateRequest(prompt=prompt, sampling=pb.SamplingParams(max_tokens=1)))
    assert [bytes(request.prompt_ids) for request in llm.engine.submitted] == [b"hi", b"s:xu:y", bytes([5, 0])]


async def test_every_sampling_field_reaches_the_engine(stub: Any, llm: FakeLLM) -> None:
    sampling: dict[str, Any] = {
        "max_tokens": 2,
        "min_tokens": 1,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "seed": 0,
        "repetition_penalty": 1.5,
        "presence_penalty": -1.0,
        "frequency_penalty": 2.0,
        "logit_bias": {3: -100.0},
        "stop": ("a", "bc"),
        "stop_token_ids": (4,),
        "ignore_eos": True,
        "logprobs": 0,
        "n": 2,
    }
    assert sampling.keys() == set(pb.SamplingParams.DESCRIPTOR.fields_by_name)
    await stub.Generate(generate(**sampling))
    request = llm.engine.submitted[0]
    assert isinstance(request, GenerateRequest)
    assert request.params.model_dump() == sampling
    assert request.params.model_fields_set == sampling.keys()


async def test_absent_sampling_fields_keep_their_defaults(stub: Any, llm: FakeLLM) -> None:
    await stub.Generate(pb.GenerateRequest(prompt=pb.Prompt(text="y")))
    request = llm.engine.submitted[0]
    assert isinstance(request, GenerateRequest)
    assert request.params.model_fields_set == set()


async def test_score(stub: Any, llm: FakeLLM) -> None:
    request = pb.ScoreRequest(prompt=pb.Prompt(text="ab"), completion="cdx", adapter="sql")
    response = await stub.Score(request)
    assert list(response.logprobs) == [-0.5, -0.5, -8.0]
    assert list(response.greedy) == [True, True, False]
    assert list(response.adapter_digests) == [digest_of("sql")]
    ids = pb.ScoreRequest(prompt=pb.Prompt(text="ab"), completion_ids=pb.TokenIds(ids=b"cdx"))
    assert (await stub.Score(ids)).logprobs == response.logprobs
    first, second = llm.engine.submitted
    assert isinstance(first, ScoreRequest)
    assert isinstance(second, ScoreRequest)
    assert first.completion_ids == second.completion_ids == tuple(b"cdx")
