"""What is too much is refused before it costs anything."""

import asyncio
import threading
from typing import Any

import grpc
import pytest

from openlora_jax.adapters.manifest import Manifest
from openlora_jax.engine.stream import EventStream
from serving.proto import openlora_pb2 as pb
from serving.proto import openlora_pb2_grpc as pb_grpc
from tests.serving.fakes import FakeLLM, generate, until


async def test_a_full_queue_refuses_before_it_tokenises(stub: Any, llm: FakeLLM) -> None:
    llm.engine.waiting = llm.config.max_queue
    score = pb.ScoreRequest(prompt=pb.Prompt(text="a"), completion="b")
    for call in (stub.Generate(generate()), stub.GenerateStream(generate()).read(), stub.Score(score)):
        with pytest.raises(grpc.aio.AioRpcError, match="limit of 1024 waiting requests") as failure:
            await call
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert llm.tokenizer.texts == 0
    llm.engine.waiting -= 1
    assert (await stub.Generate(generate(max_tokens=1))).outputs[0].text == "d"


@pytest.mark.parametrize("llm", [FakeLLM("sql", max_queue=2)])
async def test_calls_are_bounded_over_all_connections(
    address: str, stub: Any, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = llm.config.max_queue + llm.config.max_rows
    submit, waiting = llm.engine.submit, EventStream(lambda: None)
    monkeypatch.setattr(llm.engine, "submit", lambda request: waiting)
    calls = [asyncio.ensure_future(stub.Generate(generate())) for _ in range(most)]
    await until(lambda: llm.tokenizer.texts == most)
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        other: Any = pb_grpc.OpenLoraStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match=f"limit of {most} calls in progress") as failure:
            await other.Generate(generate())
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert llm.tokenizer.texts == most
        assert (await other.PinAdapter(pb.PinAdapterRequest(name="sql", pinned=False))).name == "sql"
        monkeypatch.setattr("serving.call.MAX_QUICK", 0)
        with pytest.raises(grpc.aio.AioRpcError, match="limit of 0 calls in progress"):
            await other.ServerInfo(pb.ServerInfoRequest())
        for call in calls:
            call.cancel()
        await until(lambda: waiting.cancelled)
        monkeypatch.setattr(llm.engine, "submit", submit)
        async with asyncio.timeout(5.0):
            while not await is_answered(other):
                await asyncio.sleep(0.01)


async def test_looking_at_adapters_holds_up_no_prompt(stub: Any, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    looking, go = threading.Event(), threading.Event()

    def manifest(digest: str) -> Manifest:
        looking.set()
        assert go.wait(30.0)
        return original(digest)

    original = llm.store.manifest
    monkeypatch.setattr(llm.store, "manifest", manifest)
    looks = [stub.ListAdapters(pb.ListAdaptersRequest()) for _ in range(30)]
    looks += [stub.GetAdapter(pb.GetAdapterRequest(name="sql")) for _ in range(30)]
    try:
        await until(looking.is_set)
        async with asyncio.timeout(10.0):
            assert (await stub.Generate(generate(max_tokens=1))).outputs[0].text == "d"
    finally:
        go.set()
    await asyncio.gather(*looks)


async def is_answered(stub: Any) -> bool:
    try:
        await stub.Generate(generate(max_tokens=1))
    except grpc.aio.AioRpcError:
        return False
    return True
