import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from openlora_jax import __version__, ensemble
from openlora_jax.engine.request import GenerateRequest, MixItem
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.scheduling_params import SchedulingParams
from openlora_jax.errors import DeadlineExceeded, InvalidRequest, UnknownAdapter
from serving.client import Client
from serving.proto import openlora_pb2 as pb
from serving.status import CallFailed
from tests.serving.fakes import FakeLLM, digest_of

Result = TypeVar("Result")


async def using(address: str, use: Callable[[Client], Result]) -> Result:
    """What `use` returns of a client, on a thread of its own: the server has this one."""

    def run() -> Result:
        with Client(address) as client:
            return use(client)

    return await asyncio.to_thread(run)


async def test_generate(address: str) -> None:
    response = await using(address, lambda client: client.generate("ab", SamplingParams(max_tokens=2), adapter="sql"))
    assert response.outputs[0].text == "CD"
    assert list(response.adapter_digests) == [digest_of("sql")]


async def test_prompts_and_mixes(address: str, llm: FakeLLM) -> None:
    one = SamplingParams(max_tokens=1)
    await using(address, lambda client: client.generate([104, 105], one, adapter={"sql": 0.25, "json": -1.0}))
    await using(address, lambda client: client.generate([{"role": "user", "content": "y"}], one, adapter={}))
    first, second = llm.engine.submitted
    assert first.prompt_ids == (104, 105)
    assert [(item.adapter, item.weight) for item in first.mix] == [("sql", 0.25), ("json", -1.0)]
    assert bytes(second.prompt_ids) == b"u:y"
    assert second.mix == ()


async def test_an_ensemble_is_sent(address: str, llm: FakeLLM) -> None:
    asked = ensemble(["sql", None, {"json": 0.5, "sql": -1.0}], [0.5, 0.25, 0.25], "mean_probs")
    one = SamplingParams(max_tokens=1)
    response = await using(address, lambda client: client.generate("ab", one, adapter=asked))
    await using(address, lambda client: list(client.generate_stream("ab", one, adapter=ensemble(["json"]))))
    first, second = llm.engine.submitted
    assert isinstance(first, GenerateRequest)
    assert isinstance(second, GenerateRequest)
    assert (first.mix, first.ensemble) == ((), asked)
    assert second.ensemble == ensemble(["json"])
    assert list(response.adapter_digests) == [digest_of("sql"), digest_of("json"), digest_of("sql")]


async def test_what_is_set_is_sent(address: str, llm: FakeLLM) -> None:
    params = SamplingParams(max_tokens=2, temperature=0.0, logit_bias={3: 1.0}, stop=("x",), seed=None)
    await using(address, lambda client: client.generate("ab", params))
    sent: Any = llm.engine.submitted[0]
    assert sent.params == params
    assert sent.params.model_fields_set == {"max_tokens", "temperature", "logit_bias", "stop"}


async def test_how_it_is_scheduled_is_sent(address: str, llm: FakeLLM) -> None:
    params = SchedulingParams(priority="low", tenant="blue", ttft_deadline=60.0)
    one = SamplingParams(max_tokens=1)
    await using(address, lambda client: client.generate("ab", one, scheduling=params))
    await using(address, lambda client: client.score("ab", "c", scheduling=params))
    await using(address, lambda client: list(client.generate_stream("ab", one)))
    assert [request.scheduling for request in llm.engine.submitted] == [params, params, SchedulingParams()]


async def test_a_stream(address: str) -> None:
    params = SamplingParams(max_tokens=3)
    events = await using(address, lambda client: list(client.generate_stream("a", params)))
    assert [event.delta.text for event in events[:-1]] == ["b", "c", "d"]
    assert events[-1].finished.usage.completion_tokens == 3


@pytest.mark.parametrize("llm", [FakeLLM(step=0.02)])
async def test_a_stream_that_is_closed_frees_its_request(address: str, llm: FakeLLM) -> None:
    def first_only(client: Client) -> pb.GenerateEvent:
        stream = client.generate_stream("\0", SamplingParams(max_tokens=100))
        event = next(stream)
        stream.close()  # type: ignore[attr-defined]
        return event

    await using(address, first_only)
    await asyncio.sleep(0.2)
    assert llm.engine.live == 0


async def test_score(address: str) -> None:
    for completion in ("cx", [ord("c"), ord("x")]):
        response = await using(address, lambda client: client.score("ab", completion, adapter="json"))  # noqa: B023
        assert list(response.greedy) == [True, False]


async def test_adapters(address: str) -> None:
    names = await using(address, lambda client: [adapter.name for adapter in client.list_adapters(page_size=2)])
    assert names == ["json", "pirate", "sql"]
    assert (await using(address, lambda client: client.load_adapter("sql"))).state == pb.ADAPTER_STATE_HOST
    assert (await using(address, lambda client: client.pin_adapter("sql"))).pinned
    assert not (await using(address, lambda client: client.pin_adapter("sql", False))).pinned
    assert (await using(address, lambda client: client.unload_adapter("sql"))).state == pb.ADAPTER_STATE_DISK
    assert (await using(address, lambda client: client.get_adapter("sql"))).digest == digest_of("sql")


async def test_server_info(address: str) -> None:
    await using(address, lambda client: client.generate("abc", SamplingParams(max_tokens=5)))
    info = await using(address, lambda client: client.server_info())
    assert info == pb.ServerInfoResponse(
        version=__version__,
        base_digest="f" * 64,
        vocab_size=128,
        max_model_len=256,
        max_rows=16,
        max_queue=1024,
        backend="cpu",
        free_kv_blocks=50,
        kv_blocks=50,
        generated_tokens=5,
        preemptions=3,
        free_pages=3,
        pages=10,
        host_bytes=700,
        host_budget=1000,
        adapters=3,
    )


async def test_errors_are_the_librarys_own(address: str, llm: FakeLLM) -> None:
    with pytest.raises(UnknownAdapter, match="'nobody'") as unknown:
        await using(address, lambda client: client.generate("a", adapter="nobody"))
    assert unknown.value.name == "nobody"
    with pytest.raises(UnknownAdapter):
        await using(address, lambda client: list(client.generate_stream("a", adapter="nobody")))
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        await using(address, lambda client: client.generate([999]))
    twice = (MixItem("sql"), MixItem("sql"))
    with pytest.raises(InvalidRequest, match="named twice"):
        await using(address, lambda client: client.generate("a", adapter=twice))
    for prompt in ([2**40], ["a"], [{"role": "user", "text": "x"}], "\ud800"):
        bad: Any = prompt
        with pytest.raises(InvalidRequest, match="prompt: cannot be sent"):
            await using(address, lambda client: client.generate(bad))  # noqa: B023
    llm.engine.fault = RuntimeError("x")
    with pytest.raises(CallFailed, match="INTERNAL"):
        await using(address, lambda client: client.generate("a"))


@pytest.mark.parametrize("llm", [FakeLLM(step=0.05)])
async def test_a_timeout_is_a_deadline(address: str, llm: FakeLLM) -> None:
    with pytest.raises(DeadlineExceeded):
        await using(address, lambda client: client.generate("\0", SamplingParams(max_tokens=100), timeout=0.1))
