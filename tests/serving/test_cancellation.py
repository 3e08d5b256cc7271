import asyncio
import time
from typing import Any

import grpc
import pytest

from openlora_jax.engine.request import Delta
from openlora_jax.engine.stream import EventStream
from serving.proto import openlora_pb2 as pb
from serving.service import LOAD_THREADS
from tests.serving.fakes import FakeLLM, generate, until


@pytest.mark.parametrize("llm", [FakeLLM(step=0.05)])
async def test_a_client_that_cancels_frees_its_request_within_a_step(stub: Any, llm: FakeLLM) -> None:
    whole = asyncio.ensure_future(stub.Generate(generate("\0", max_tokens=100)))
    stream = stub.GenerateStream(generate("\0", max_tokens=100))
    await stream.read()
    await until(lambda: llm.engine.live == 2)
    whole.cancel()
    stream.cancel()
    await until(lambda: llm.engine.live == 0, seconds=0.5)


@pytest.mark.parametrize("llm", [FakeLLM(step=0.02)])
async def test_a_deadline_ends_the_request_within_a_step(stub: Any, llm: FakeLLM) -> None:
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(generate("\0", max_tokens=100), timeout=0.2)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: llm.engine.live == 0, seconds=0.5)
    deadline = llm.engine.submitted[0].deadline
    assert deadline is not None
    assert 0.0 < deadline - started < 0.3


@pytest.mark.parametrize("timeout", [None, 0.2], ids=["cancelled", "deadline"])
async def test_a_load_that_nobody_waits_for_any_more_gives_its_thread_back(
    stub: Any, llm: FakeLLM, timeout: float | None
) -> None:
    llm.adapters.stalled = "sql"
    request = pb.LoadAdapterRequest(name="sql")
    loads = [asyncio.ensure_future(stub.LoadAdapter(request, timeout=timeout)) for _ in range(2 * LOAD_THREADS)]
    await until(lambda: llm.adapters.loading == LOAD_THREADS)
    if timeout is None:
        for load in loads:
            load.cancel()
    await until(lambda: llm.adapters.loading == 0)
    await asyncio.gather(*loads, return_exceptions=True)
    assert (await stub.LoadAdapter(pb.LoadAdapterRequest(name="json"))).state == pb.ADAPTER_STATE_HOST


async def test_64_streams_at_once_get_their_own_tokens(stub: Any, llm: FakeLLM) -> None:
    async def run(index: int) -> str:
        request = generate(chr(33 + index % 60), max_tokens=20)
        if index % 3:
            request.adapter = ("", "json", "sql")[index % 3]
        return "".join([event.delta.text async for event in stub.GenerateStream(request)])

    texts = await asyncio.gather(*[run(index) for index in range(64)])
    for index, text in enumerate(texts):
        expected = "".join(chr(33 + index % 60 + step) for step in range(1, 21))
        assert text == (expected.upper() if index % 3 else expected)
    assert llm.engine.live == 0


async def test_a_client_that_does_not_read_loses_its_request(
    stub: Any, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = EventStream(lambda: None, limit=10**6)
    for _ in range(20_000):  # more than the connection's window, which grows to a few megabytes
        events.put(Delta(index=0, token_ids=(1,), text="x" * 1000))
    monkeypatch.setattr(llm.engine, "submit", lambda request: events)
    stream = stub.GenerateStream(generate()).__aiter__()
    await anext(stream)
    await until(lambda: events.cancelled, seconds=10.0)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        [event async for event in stream]
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
