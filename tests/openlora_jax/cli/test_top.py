import asyncio
import threading
from collections.abc import Iterator

import pytest

from openlora_jax.cli import top
from serving.client import Client
from serving.server import Server
from tests.openlora_jax.cli.conftest import RunCli
from tests.serving.fakes import FakeLLM, FakeStatus, digest_of


@pytest.fixture
def llm() -> FakeLLM:
    llm = FakeLLM("json", "pirate", "sql", "unused")
    for status in (
        FakeStatus(digest_of("json"), "host", 0, host_bytes=1_500_000),
        FakeStatus(digest_of("pirate"), "resident", 2, host_bytes=1_500_000),
        FakeStatus(digest_of("sql"), "draining", 1, host_bytes=1_500_000),
    ):
        llm.adapters.known[status.digest] = status
    for found in (None, "device", "device", "host"):
        llm.adapters.counters.asked(digest_of("pirate"), found)
    with llm.adapters.counters.load(digest_of("pirate"), "disk") as load:
        load.lap("read")
    return llm


@pytest.fixture
def address(llm: FakeLLM) -> Iterator[str]:
    """A server on a thread of its own, as the command blocks this one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[Server, str]:
        server = Server("127.0.0.1:0")
        address = await server.start()
        await server.open(llm)
        return server, address

    server, address = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield address
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_once_where_there_is_no_terminal(openlora: RunCli, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    ended = openlora("top", "--server", address)
    assert ended.status == 0
    lines = [line.split() for line in ended.out.splitlines()]
    assert "0 running, 0 waiting" in ended.out
    assert "device pages 7 of 10, KV blocks 0 of 50" in ended.out
    assert "3 of 4 adapters in memory" in ended.out
    assert [line[0] for line in lines[-3:]] == ["pirate", "sql", "json"], "those in use first"
    assert lines[-3][1:9] == ["device", "20", "4", "1.5", "2", "4", "75%", "0"]
    assert float(lines[-3][9]) < 1000
    assert lines[-1][1:] == ["host", "20", "4", "1.5", "0", "0"]


def test_no_more_rows_than_asked_for(openlora: RunCli, address: str) -> None:
    out = openlora("top", "--server", address, "--rows", 1).out
    assert "pirate" in out
    assert "sql" not in out


def test_a_server_that_is_not_there(openlora: RunCli) -> None:
    ended = openlora("top", "--server", "127.0.0.1:1")
    assert ended.status == 2
    assert len(ended.err.splitlines()) == 1


def test_looks_tell_the_speed(llm: FakeLLM, address: str) -> None:
    with Client(address) as client:
        looks = top._looks(client)
        assert next(looks).tokens is None
        llm.engine._generated += 50
        tokens = next(looks).tokens
    assert tokens is not None
    assert tokens > 0
