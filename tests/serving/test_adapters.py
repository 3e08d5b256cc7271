from typing import Any

import grpc
import pytest

from openlora_jax.adapters.lease import AdapterStatus
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.mixes import NamedMix
from openlora_jax.errors import BadCheckpoint
from serving import catalog
from serving.proto import openlora_pb2 as pb
from tests.serving.fakes import FakeCache, FakeLLM, FakeStatus, digest_of


async def test_an_adapter_on_disk(stub: Any) -> None:
    assert await stub.GetAdapter(pb.GetAdapterRequest(name="sql")) == pb.Adapter(
        name="sql", digest=digest_of("sql"), state=pb.ADAPTER_STATE_DISK, rank=20, pages=4
    )


async def test_load_pin_and_unload(stub: Any) -> None:
    loaded = await stub.LoadAdapter(pb.LoadAdapterRequest(name="sql"))
    assert loaded.state == pb.ADAPTER_STATE_HOST
    assert (await stub.PinAdapter(pb.PinAdapterRequest(name="sql"))).pinned
    assert (await stub.GetAdapter(pb.GetAdapterRequest(name="sql"))).pinned
    assert not (await stub.PinAdapter(pb.PinAdapterRequest(name="sql", pinned=False))).pinned
    unloaded = await stub.UnloadAdapter(pb.UnloadAdapterRequest(name="sql"))
    assert unloaded.state == pb.ADAPTER_STATE_DISK


async def test_a_mix_is_shown_by_its_members_and_what_is_asked_of_it_is_asked_of_them(stub: Any, llm: FakeLLM) -> None:
    llm.store.mixes["both"] = NamedMix({"sql": 0.5, "json": -2.0}, "")
    expected = pb.Adapter(name="both")
    expected.mix.items.extend([pb.MixItem(adapter="sql", weight=0.5), pb.MixItem(adapter="json", weight=-2.0)])
    assert await stub.LoadAdapter(pb.LoadAdapterRequest(name="both")) == expected
    assert llm.adapters.known.keys() == {digest_of("sql"), digest_of("json")}
    assert await stub.PinAdapter(pb.PinAdapterRequest(name="both")) == expected
    assert all(status.pinned for status in llm.adapters.known.values())
    everything, in_memory = [
        [adapter.name for adapter in (await stub.ListAdapters(pb.ListAdaptersRequest(in_memory=only))).adapters]
        for only in (False, True)
    ]
    assert (everything, in_memory) == (["both", "json", "pirate", "sql"], ["json", "sql"])
    answer = await stub.Generate(pb.GenerateRequest(prompt=pb.Prompt(text="abc"), adapter="both"))
    assert list(answer.adapter_digests) == [digest_of("sql"), digest_of("json")]
    await stub.UnloadAdapter(pb.UnloadAdapterRequest(name="both"))
    assert not llm.adapters.known


@pytest.mark.parametrize("method", ["GetAdapter", "LoadAdapter", "UnloadAdapter", "PinAdapter"])
async def test_an_unknown_adapter_is_not_found(stub: Any, llm: FakeLLM, method: str) -> None:
    request = getattr(pb, f"{method}Request")(name="nobody")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await getattr(stub, method)(request)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await getattr(stub, method)(getattr(pb, f"{method}Request")())
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not llm.adapters.known


async def test_a_load_that_fails_says_why(stub: Any, llm: FakeLLM) -> None:
    llm.adapters = FakeCache(broken="sql")
    with pytest.raises(grpc.aio.AioRpcError, match="9 pages of q_proj and the pool has 8") as failure:
        await stub.LoadAdapter(pb.LoadAdapterRequest(name="sql"))
    assert failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_every_state_of_the_cache_has_a_name() -> None:
    states = AdapterStatus.__annotations__["state"].__args__
    assert catalog.STATES.keys() == set(states)


async def test_states_and_requests_are_the_caches(stub: Any, llm: FakeLLM) -> None:
    digest = digest_of("pirate")
    llm.adapters.known[digest] = FakeStatus(digest, "draining", requests=3, pinned=True)
    adapter = await stub.GetAdapter(pb.GetAdapterRequest(name="pirate"))
    assert (adapter.state, adapter.requests, adapter.pinned) == (pb.ADAPTER_STATE_DRAINING, 3, True)


async def test_what_an_adapter_was_used_for_is_told(stub: Any, llm: FakeLLM) -> None:
    digest = digest_of("pirate")
    llm.adapters.known[digest] = FakeStatus(digest, "host", host_bytes=640)
    llm.adapters.counters.asked(digest, None)
    asked = await stub.GetAdapter(pb.GetAdapterRequest(name="pirate"))
    assert (asked.lookups, asked.hits, asked.host_bytes) == (1, 0, 640)
    assert 0 <= asked.idle_seconds < 60
    assert not asked.HasField("load_seconds")
    with llm.adapters.counters.load(digest, "disk") as load:
        load.lap("read")
    llm.adapters.counters.asked(digest, "host")
    found = await stub.GetAdapter(pb.GetAdapterRequest(name="pirate"))
    assert (found.lookups, found.hits, found.HasField("load_seconds")) == (2, 1, True)
    assert not (await stub.GetAdapter(pb.GetAdapterRequest(name="sql"))).HasField("idle_seconds")


async def test_what_is_on_disk_alone_can_be_left_out(stub: Any, llm: FakeLLM) -> None:
    for name in ("pirate", "json"):
        llm.adapters.known[digest_of(name)] = FakeStatus(digest_of(name), "host")
    page = await stub.ListAdapters(pb.ListAdaptersRequest(in_memory=True, page_size=1))
    assert ([adapter.name for adapter in page.adapters], page.total) == (["json"], 2)
    page = await stub.ListAdapters(pb.ListAdaptersRequest(in_memory=True, page_token=page.next_page_token))
    assert ([adapter.name for adapter in page.adapters], page.next_page_token) == (["pirate"], "")


@pytest.mark.parametrize("llm", [FakeLLM(*(f"a{index}" for index in range(2500)))])
async def test_thousands_are_listed_a_page_at_a_time(stub: Any, llm: FakeLLM) -> None:
    names, token, sizes = [], "", []
    while True:
        page = await stub.ListAdapters(pb.ListAdaptersRequest(page_size=999, page_token=token))
        assert page.total == 2500
        names += [adapter.name for adapter in page.adapters]
        sizes.append(len(page.adapters))
        token = page.next_page_token
        if not token:
            break
    assert sizes == [999, 999, 502]
    assert names == sorted(llm.store.adapters)
    assert len((await stub.ListAdapters(pb.ListAdaptersRequest())).adapters) == catalog.DEFAULT_PAGE_SIZE


async def test_the_last_page_has_no_token_even_when_it_is_full(stub: Any) -> None:
    page = await stub.ListAdapters(pb.ListAdaptersRequest(page_size=3))
    assert [adapter.name for adapter in page.adapters] == ["json", "pirate", "sql"]
    assert page.next_page_token == ""


@pytest.mark.parametrize("size", [-1, 1001])
async def test_a_page_size_out_of_range_is_refused(stub: Any, size: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="page_size") as failure:
        await stub.ListAdapters(pb.ListAdaptersRequest(page_size=size))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("llm", [FakeLLM("a", "remote")])
async def test_one_that_lies_elsewhere_is_listed_without_asking_there(stub: Any, llm: FakeLLM) -> None:
    page = await stub.ListAdapters(pb.ListAdaptersRequest())
    assert [adapter.state for adapter in page.adapters] == [pb.ADAPTER_STATE_DISK, pb.ADAPTER_STATE_REMOTE]
    assert [adapter.rank for adapter in page.adapters] == [20, 0]


@pytest.mark.parametrize("error", [BadCheckpoint("/srv/store", "is gone"), ConnectionError("away://store failed")])
def test_an_adapter_that_leaves_the_disk_while_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    llm = FakeLLM("a")
    left = list[str]()

    def leave(digest: str) -> Manifest:
        left.append(digest)
        raise error

    monkeypatch.setattr(llm.store, "manifest", leave)
    monkeypatch.setattr(llm.store, "is_remote", left.__contains__)
    assert catalog.Catalog().get(llm, "a").state == pb.ADAPTER_STATE_REMOTE
    left.clear()
    assert catalog.Catalog().page(llm, 0, "").adapters[0].state == pb.ADAPTER_STATE_REMOTE


async def test_a_manifest_is_read_once_however_often_it_is_listed(
    stub: Any, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[str]()

    def manifest(digest: str) -> Manifest:
        read.append(digest)
        return original(digest)

    original = llm.store.manifest
    monkeypatch.setattr(llm.store, "manifest", manifest)
    pages = [await stub.ListAdapters(pb.ListAdaptersRequest()) for _ in range(3)]
    assert pages[0] == pages[1] == pages[2]
    assert [adapter.rank for adapter in pages[2].adapters] == [20, 20, 20]
    assert sorted(read) == sorted(map(digest_of, llm.store.adapters))


@pytest.mark.parametrize("llm", [FakeLLM("a", "b", damaged="a")])
async def test_a_damaged_adapter_hides_no_other(stub: Any, llm: FakeLLM) -> None:
    page = await stub.ListAdapters(pb.ListAdaptersRequest())
    assert [adapter.state for adapter in page.adapters] == [pb.ADAPTER_STATE_DAMAGED, pb.ADAPTER_STATE_DISK]
