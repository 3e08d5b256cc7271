import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from openlora_jax.errors import EngineStopped, InvalidConfig
from serving.call import QUICK
from serving.proto import openlora_pb2 as pb
from serving.proto import openlora_pb2_grpc as pb_grpc
from serving.server import SERVICE, Server, serve
from serving.service import OpenLoraService
from tests.serving.fakes import FakeLLM, generate

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_taken_port_is_an_error(address: str) -> None:
    with pytest.raises(InvalidConfig, match="cannot be bound"):
        await Server(address).start()


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel


async def health(channel: grpc.aio.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


async def test_health(channel: grpc.aio.Channel) -> None:
    assert await health(channel, "") == SERVING
    assert await health(channel, SERVICE) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await health(channel, "nobody")
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_describes_the_service(channel: grpc.aio.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(
        iter(
            [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
            ]
        )
    )
    listed, described = [answer async for answer in call]
    services = {service.name for service in listed.list_services_response.service}
    assert services == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    file = FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
    assert file.service[0].name == "OpenLora"


def test_every_rpc_runs_inside_the_gate() -> None:
    methods = [method.name for method in pb.DESCRIPTOR.services_by_name["OpenLora"].methods]
    for method in methods:
        assert getattr(OpenLoraService, method).__wrapped__.__name__ == method
    assert set(methods) > QUICK


async def test_large_metadata_is_refused(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(generate(max_tokens=1), metadata=(("x-large", "x" * 32 * 1024),))
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Generate(generate(max_tokens=1))).outputs[0].text == "d"


async def test_a_server_that_starts_says_so_and_refuses_calls() -> None:
    server = Server("127.0.0.1:0")
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        stub: Any = pb_grpc.OpenLoraStub(channel)
        assert await health(channel, "") == NOT_SERVING
        assert await health(channel, SERVICE) == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="it is starting") as failure:
            await stub.ServerInfo(pb.ServerInfoRequest())
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop()


async def test_a_drain_refuses_new_calls_and_lets_the_others_finish() -> None:
    llm, server = FakeLLM(step=0.02), Server("127.0.0.1:0")
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        stub: Any = pb_grpc.OpenLoraStub(channel)
        llm.engine.start()
        await server.open(llm)
        events = stub.GenerateStream(generate("a", max_tokens=20)).__aiter__()
        await anext(events)
        drain = asyncio.ensure_future(server.drain(10.0))
        await asyncio.sleep(0.05)
        assert await health(channel, SERVICE) == NOT_SERVING
        assert await health(channel, "") == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="it is shutting down") as failure:
            await stub.Generate(generate())
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not drain.done()
        assert len([event async for event in events]) == 20
        assert await drain
    llm.close()
    await server.stop()


async def test_what_build_raises_closes_the_port() -> None:
    def build() -> FakeLLM:
        raise InvalidConfig("base", "is missing")

    with pytest.raises(InvalidConfig, match="base"):
        await serve(build, "127.0.0.1:0", grace=1.0, announce=lambda address: None)


async def test_when_the_engine_ends_the_server_leaves_with_its_reason() -> None:
    llm, announced = FakeLLM(step=0.02), asyncio.Event()
    llm.engine.start()
    addresses: list[str] = []

    def announce(address: str) -> None:
        addresses.append(address)
        announced.set()

    serving = asyncio.ensure_future(serve(lambda: llm, "127.0.0.1:0", grace=10.0, announce=announce))
    await announced.wait()
    async with grpc.aio.insecure_channel(addresses[0]) as channel:
        watched: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watched.read()).status == SERVING
        events = pb_grpc.OpenLoraStub(channel).GenerateStream(generate("\0", max_tokens=100)).__aiter__()
        await anext(events)
        llm.engine.fail("its steps fail on the device")
        with pytest.raises(grpc.aio.AioRpcError, match="steps fail") as failure:
            [event async for event in events]
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await watched.read()).status == NOT_SERVING
    with pytest.raises(EngineStopped, match="its steps fail on the device"):
        await serving


PROGRAM = """
import asyncio, sys
from serving.server import serve
from tests.serving.fakes import FakeLLM

def build():
    llm = FakeLLM(step=0.02)
    llm.engine.start()
    return llm

announce = lambda address: print(address, flush=True)
asyncio.run(serve(build, "127.0.0.1:0", grace=float(sys.argv[1]), announce=announce))
print("left", flush=True)
"""


class Process:
    """A server in a process of its own, and a stub for it."""

    def __init__(self, grace: float) -> None:
        root = Path(__file__).parents[2]
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(grace)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stdout is not None
        self.address = self.popen.stdout.readline().strip()
        assert re.fullmatch(r"127\.0\.0\.1:\d+", self.address)

    def leave(self) -> tuple[int, str]:
        """Exit status and what was printed last."""
        out, _ = self.popen.communicate(timeout=10)
        return self.popen.returncode, out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_0(number: signal.Signals) -> None:
    process = Process(grace=10.0)
    async with grpc.aio.insecure_channel(process.address) as channel:
        stub: Any = pb_grpc.OpenLoraStub(channel)
        events = stub.GenerateStream(generate("a", max_tokens=20)).__aiter__()
        await anext(events)
        process.popen.send_signal(number)
        assert len([event async for event in events]) == 20
    assert await asyncio.to_thread(process.leave) == (0, "left\n")


async def test_what_is_left_after_the_grace_is_unavailable() -> None:
    process = Process(grace=0.2)
    async with grpc.aio.insecure_channel(process.address) as channel:
        stub: Any = pb_grpc.OpenLoraStub(channel)
        events = stub.GenerateStream(generate("\0", max_tokens=100)).__aiter__()
        await anext(events)
        process.popen.terminate()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            [event async for event in events]
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the engine has stopped" in (failure.value.details() or "")
    assert await asyncio.to_thread(process.leave) == (0, "left\n")


async def test_a_second_signal_ends_the_process_at_once() -> None:
    process = Process(grace=60.0)
    async with grpc.aio.insecure_channel(process.address) as channel:
        stub: Any = pb_grpc.OpenLoraStub(channel)
        events = stub.GenerateStream(generate("\0", max_tokens=100)).__aiter__()
        await anext(events)
        process.popen.terminate()
        await anext(events)
        await asyncio.sleep(0.1)
        process.popen.terminate()
        assert await asyncio.to_thread(process.leave) == (-signal.SIGTERM, "")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            [event async for event in events]
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
