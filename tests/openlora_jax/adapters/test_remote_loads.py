"""Loads out of a store behind a local one: as often as they must be, side by side, and none that cannot be of use."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from openlora_jax.adapters.artifact import artifact_digest
from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.adapters.reader import AdapterReader
from openlora_jax.adapters.remote_store import RemoteStore
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic, synthetic_manifest
from tests.openlora_jax.adapters.fakes import open_cache
from tests.openlora_jax.adapters.published import BASE, loads
from tests.openlora_jax.tiny import MODEL


@pytest.fixture
def open_reader() -> Callable[[RemoteStore], AdapterReader]:
    """Reads for a pool with room for four pages."""
    capacities = {"q_proj": 4, "v_proj": 4}
    pool = AdapterPool.create(MODEL, capacities, jnp.dtype("float32"))
    return lambda store: AdapterReader(store, pool, capacities, BASE, Counters())


def test_a_manifest_that_is_damaged_here_is_fetched_again(
    open_store: Callable[..., RemoteStore],
    open_reader: Callable[[RemoteStore], AdapterReader],
    here: AdapterStore,
    there: AdapterStore,
) -> None:
    store, digest = open_store(), there.resolve("a")
    reader = open_reader(store)
    reader.read(digest)
    (here.path / "fetched" / "artifacts" / digest / "manifest.json").write_text("{")
    assert reader.read(digest).counts == there.manifest(digest).pages
    assert loads(store) == {"ok": 2}


@pytest.mark.parametrize(
    ("stated", "put"), [(b'"d_in": 32', b'"d_in": 16'), (BASE.encode(), b"1" * 64)], ids=["size", "base"]
)
def test_a_manifest_that_was_refused_is_asked_for_again(
    open_store: Callable[..., RemoteStore],
    open_reader: Callable[[RemoteStore], AdapterReader],
    there: AdapterStore,
    stated: bytes,
    put: bytes,
) -> None:
    digest = there.resolve("a")
    path = there.folder(digest) / "manifest.json"
    sound = path.read_bytes()
    path.write_bytes(sound.replace(stated, put))
    reader = open_reader(open_store())
    with pytest.raises(ValueError, match="base"):
        reader.read(digest)
    path.write_bytes(sound)
    assert reader.read(digest).counts == there.manifest(digest).pages


def test_a_fetch_that_hangs_does_not_keep_the_next_one_from_it(
    open_store: Callable[..., RemoteStore], there: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    digest = there.resolve("a")
    hanging, go = threading.Event(), threading.Event()

    def fetch(*arguments: Any) -> None:
        original(*arguments)
        if not hanging.is_set():
            hanging.set()
            assert go.wait(30)

    original = store._remote.fetch
    monkeypatch.setattr(store._remote, "fetch", fetch)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(store.read, digest)
        assert hanging.wait(30)
        try:
            assert artifact_digest(*store.read(digest)) == digest
        finally:
            go.set()
        assert artifact_digest(*first.result(30)) == digest
    assert store._fetched.nbytes == there.manifest(digest).nbytes + 8192 * 5


def test_requests_for_one_adapter_fetch_it_once(
    open_store: Callable[..., RemoteStore], there: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    asked, go = list[str](), threading.Event()

    def fetch(digest: str, manifest: Manifest, text: bytes, folder: Path) -> None:
        asked.append(digest)
        assert go.wait(30)
        original(digest, manifest, text, folder)

    original = store._remote.fetch
    monkeypatch.setattr(store._remote, "fetch", fetch)
    capacities = {"q_proj": 4, "v_proj": 4}
    pool = AdapterPool.create(MODEL, capacities, jnp.dtype("float32"))
    cache = open_cache(store, pool, capacities, BASE)
    try:
        leases = [cache.acquire(("a", there.resolve("a")))[0] for _ in range(5)]
        foreign = install_synthetic(there, MODEL, "1" * 64, {"foreign": 1})["foreign"]
        [refused] = cache.acquire(("foreign", foreign))
        assert refused.wait(30.0)
        assert "1" * 64 in str(refused.error)
        go.set()
        assert all(lease.wait(30.0) for lease in leases)
        assert [lease.error for lease in leases] == [None] * 5
        assert cache.place(*leases[:1])
        assert asked == [there.resolve("a")], "what is for another base is not even fetched"
    finally:
        go.set()
        cache.close()


def test_a_huge_adapter_is_not_even_asked_for(
    open_store: Callable[..., RemoteStore], there: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = there.resolve("a")
    manifest = synthetic_manifest(MODEL, BASE, ("q_proj",), 256).to_fields()
    manifest["modules"]["q_proj"].update(layers=1 << 20, d_in=1 << 20)
    (there.folder(digest) / "manifest.json").write_text(json.dumps(manifest))
    store = open_store()
    monkeypatch.setattr(store._remote, "fetch", None)
    with pytest.raises(ValueError, match="disk_cache_bytes"):
        store.read(digest)


def test_an_adapter_that_fits_no_page_is_not_even_asked_for(
    open_store: Callable[..., RemoteStore],
    open_reader: Callable[[RemoteStore], AdapterReader],
    there: AdapterStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = there.resolve("a")
    manifest = there.manifest(digest).to_fields()
    manifest["modules"]["q_proj"]["d_in"] = 1 << 20
    (there.folder(digest) / "manifest.json").write_text(json.dumps(manifest))
    store = open_store(budget=1 << 40)
    monkeypatch.setattr(store._remote, "fetch", None)
    with pytest.raises(ValueError, match=r"1048576.* where this base model takes"):
        open_reader(store).read(digest)
