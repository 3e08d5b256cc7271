"""A server on a real port, in front of the fake library."""

from collections.abc import AsyncIterator

import grpc
import pytest

from serving.proto import openlora_pb2_grpc as pb_grpc
from serving.server import Server
from tests.serving.fakes import FakeLLM


@pytest.fixture
def llm() -> FakeLLM:
    return FakeLLM("json", "pirate", "sql")


@pytest.fixture
async def address(llm: FakeLLM) -> AsyncIterator[str]:
    server = Server("127.0.0.1:0", stall=0.5)
    address = await server.start()
    llm.engine.start()
    await server.open(llm)
    yield address
    llm.close()
    await server.stop()


@pytest.fixture
async def stub(address: str) -> AsyncIterator[pb_grpc.OpenLoraStub]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield pb_grpc.OpenLoraStub(channel)
