"""Metrics as Prometheus finds them: a server on a port, a scrape over HTTP."""

import asyncio
import logging
import re
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from openlora_jax.engine.request import Timings
from openlora_jax.errors import InvalidConfig
from serving.metrics import Metrics, exposed
from serving.proto import openlora_pb2 as pb
from serving.proto import openlora_pb2_grpc as pb_grpc
from serving.server import Server
from tests.serving.fakes import FakeLLM, FakeStatus, digest_of, generate

Series = dict[str, float]


def scrape(url: str) -> Series:
    """Every series by its name and labels, such as `openlora_calls_total{code=OK,method=Score}`."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {_name(sample.name, sample.labels): sample.value for sample in samples}


def _name(name: str, labels: dict[str, str]) -> str:
    inner = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name


def address_in(caplog: pytest.LogCaptureFixture) -> str:
    (url,) = re.findall(r"metrics on (http://\S+)", caplog.text)
    return str(url)


@pytest.fixture
async def scraped(llm: FakeLLM, caplog: pytest.LogCaptureFixture) -> AsyncIterator[tuple[pb_grpc.OpenLoraStub, str]]:
    """A stub for a server, and where its metrics are."""
    server = Server("127.0.0.1:0")
    address = await server.start()
    llm.engine.start()
    with caplog.at_level(logging.INFO), exposed(server.metrics, "127.0.0.1:0"):
        await server.open(llm)
        async with grpc.aio.insecure_channel(address) as channel:
            yield pb_grpc.OpenLoraStub(channel), address_in(caplog)
    llm.close()
    await server.stop()


async def test_calls_and_their_times(scraped: tuple[Any, str]) -> None:
    stub, url = scraped
    for _ in range(3):
        await stub.Generate(generate(max_tokens=2))
    urgent = pb.SchedulingParams(priority=pb.PRIORITY_HIGH)
    await stub.Score(pb.ScoreRequest(prompt=pb.Prompt(text="a"), completion="b", scheduling=urgent))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetAdapter(pb.GetAdapterRequest(name="nobody"))
    found = await asyncio.to_thread(scrape, url)
    assert found["openlora_calls_total{code=OK,method=Generate}"] == 3
    assert found["openlora_calls_total{code=NOT_FOUND,method=GetAdapter}"] == 1
    phases = {"load": 0.5, "queue": 0.25, "prefill": 1.0, "decode": 2.0}
    for phase, seconds in phases.items():
        assert found[f"openlora_request_seconds_count{{phase={phase}}}"] == 4
        assert found[f"openlora_request_seconds_sum{{phase={phase}}}"] == 4 * seconds
    assert found["openlora_time_to_first_token_seconds_sum"] == 4 * 1.75
    assert found["openlora_generated_tokens_total"] == 6
    assert found["openlora_cached_prompt_tokens_total"] == 11
    assert (found["openlora_requests_total{priority=normal}"], found["openlora_requests_total{priority=high}"]) == (
        3,
        1,
    )


async def test_the_wait_for_adapters_is_told_apart() -> None:
    metrics = Metrics()
    metrics.answered(Timings(queue=1.0, load=0.5, prefill=1.0, decode=1.0, room=0.75))
    value = metrics.registry.get_sample_value
    assert value("openlora_adapter_wait_seconds_sum", {"cause": "load"}) == 0.5
    assert value("openlora_adapter_wait_seconds_sum", {"cause": "room"}) == 0.75


async def test_what_adapters_do_by_tier(scraped: tuple[Any, str], llm: FakeLLM) -> None:
    _, url = scraped
    counters = llm.adapters.counters
    for found_in in (None, "host", "device", "device"):
        counters.asked("a", found_in)
    with counters.load("a", "disk") as load:
        load.lap("read")
        load.nbytes = 640
    counters.waited(0.003)
    counters.not_loaded("refused")
    counters.evicted("device", "room", "b")
    for digest in "cd":
        counters.prefetched("host", digest)
    counters.asked("c", "host")
    llm.adapters.known[digest_of("sql")] = FakeStatus(digest_of("sql"), "resident")
    found = await asyncio.to_thread(scrape, url)
    assert (
        found["openlora_adapter_lookups_total{tier=device}"],
        found["openlora_adapter_hits_total{tier=device}"],
    ) == (
        5,
        2,
    )
    assert (found["openlora_adapter_lookups_total{tier=host}"], found["openlora_adapter_hits_total{tier=host}"]) == (
        3,
        2,
    )
    assert found["openlora_adapter_prefetches_total{tier=host}"] == 2
    assert found["openlora_adapter_prefetch_hits_total{tier=host}"] == 1
    assert found["openlora_adapter_loads_total{result=ok,source=disk}"] == 1
    assert found["openlora_adapter_loads_total{result=refused,source=disk}"] == 1
    assert found["openlora_adapter_loaded_bytes_total{source=disk}"] == 640
    assert found["openlora_adapter_load_seconds_bucket{le=0.002,stage=wait}"] == 0
    assert found["openlora_adapter_load_seconds_bucket{le=0.005,stage=wait}"] == 1
    assert found["openlora_adapter_load_seconds_bucket{le=+Inf,stage=read}"] == 1
    assert found["openlora_adapter_load_seconds_count{stage=wait}"] == 1
    assert found["openlora_adapter_evictions_total{reason=room,tier=device}"] == 1
    assert found["openlora_adapter_pages{module=q_proj,state=used}"] == 4
    assert found["openlora_adapter_pages{module=v_proj,state=pinned}"] == 1
    assert (found["openlora_adapter_host_bytes"], found["openlora_adapter_host_budget_bytes"]) == (700, 1000)
    assert (found["openlora_registered_adapters"], found["openlora_adapters{state=resident}"]) == (3, 1)
    assert (found["openlora_kv_blocks{state=free}"], found["openlora_kv_blocks{state=used}"]) == (50, 0)
    assert found["openlora_preemptions_total"] == 3
    assert (found["openlora_device_bytes{part=weights}"], found["openlora_device_bytes{part=adapters}"]) == (1000, 1100)


@pytest.mark.parametrize("llm", [FakeLLM(*(f"adapter-{index}" for index in range(1000)))])
async def test_no_series_has_an_adapters_name(scraped: tuple[Any, str], llm: FakeLLM) -> None:
    for name in llm.store.adapters:
        llm.adapters.known[digest_of(name)] = FakeStatus(digest_of(name), "host")
        llm.adapters.counters.asked(digest_of(name), None)
    found = await asyncio.to_thread(scrape, scraped[1])
    assert found["openlora_adapters{state=host}"] == 1000
    assert len(found) < 200


async def test_metrics_are_there_while_the_server_starts(caplog: pytest.LogCaptureFixture) -> None:
    server = Server("127.0.0.1:0")
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        with caplog.at_level(logging.INFO), exposed(server.metrics, "127.0.0.1:0"):
            stub: Any = pb_grpc.OpenLoraStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.ServerInfo(pb.ServerInfoRequest())
            found = await asyncio.to_thread(scrape, address_in(caplog))
    assert found["openlora_serving"] == 0
    assert found["openlora_calls_total{code=UNAVAILABLE,method=ServerInfo}"] == 1
    await server.stop()


def test_an_address_that_cannot_be_served_on_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), exposed(Metrics(), "127.0.0.1:0"):
        taken = address_in(caplog).removeprefix("http://").removesuffix("/metrics")
        with pytest.raises(InvalidConfig, match=f"metrics: {taken} cannot be bound"), exposed(Metrics(), taken):
            pass
    with pytest.raises(InvalidConfig, match=r"metrics: .* other machines"), exposed(Metrics(), "0.0.0.0:0"):
        pass


def test_two_servers_do_not_share_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.called("Score", "OK")
    labels = {"method": "Score", "code": "OK"}
    assert one.registry.get_sample_value("openlora_calls_total", labels) == 1
    assert other.registry.get_sample_value("openlora_calls_total", labels) is None
