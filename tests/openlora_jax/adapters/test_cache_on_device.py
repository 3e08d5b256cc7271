"""Store, cache and device pool together: what lies in a lease's pages is that adapter's artifact, bit by bit."""

from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from openlora_jax.adapters.cache import AdapterCache
from openlora_jax.adapters.lease import Lease
from openlora_jax.adapters.modules import MODULES
from openlora_jax.adapters.pages import pool_capacities
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.config import EngineConfig
from tests.openlora_jax.adapters.fakes import open_cache
from tests.openlora_jax.adapters.poison import poison_free
from tests.openlora_jax.adapters.test_pool import CONFIG

BASE = "b" * 64
OTHER_BASE = "c" * 64
CAPACITIES = pool_capacities(EngineConfig(pool_pages=6, wide_pool_pages=3))


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    store = AdapterStore.create(tmp_path / "store")
    install_synthetic(store, CONFIG, BASE, {f"small-{seed}": seed for seed in range(3)}, rank=3)
    install_synthetic(store, CONFIG, BASE, {f"large-{seed}": seed for seed in range(3)}, rank=40, modules=MODULES[:7])
    install_synthetic(store, CONFIG, BASE, {"wide": 9}, rank=17, modules=("embed_tokens", "lm_head"), dtype="bfloat16")
    install_synthetic(store, CONFIG, OTHER_BASE, {"foreign": 9})
    return store


@pytest.fixture
def pool() -> AdapterPool:
    return AdapterPool.create(CONFIG, CAPACITIES, jnp.dtype("float32"))


@pytest.fixture
def cache(store: AdapterStore, pool: AdapterPool) -> Iterator[AdapterCache]:
    cache = open_cache(store, pool, CAPACITIES, BASE, host_bytes=1 << 16)
    yield cache
    cache.validate()
    cache.close()


def assert_on_device(pool: AdapterPool, store: AdapterStore, lease: Lease) -> None:
    for name, stored in store.read(lease.digest)[1].items():
        module, side = name.split(".")
        array = np.array(pool.arrays[module]["AB".index(side)])
        np.testing.assert_array_equal(array[:, list(lease.pages[module])], stored.astype(np.float32))


def test_pages_hold_the_artifact_through_churn(cache: AdapterCache, store: AdapterStore, pool: AdapterPool) -> None:
    names = [name for name in sorted(store.registrations()) if name != "foreign"]
    order = np.random.default_rng(0).choice(names, 40)
    running: list[Lease] = []
    poison_free(pool, [])
    for name in order:
        [lease] = cache.acquire((name, store.resolve(name)))
        assert lease.wait(30.0)
        while not cache.place(lease):
            running.pop(0).release()
        running.append(lease)
        for held in running:
            assert_on_device(pool, store, held)
    for module in MODULES:
        assert not any(np.any(side[:, 0]) for side in pool.arrays[module])


def test_an_adapter_of_another_base_is_refused(cache: AdapterCache, store: AdapterStore) -> None:
    [lease] = cache.acquire(("foreign", store.resolve("foreign")))
    assert lease.wait(30.0)
    assert OTHER_BASE in str(lease.error)


def test_a_damaged_artifact_fails_its_lease(cache: AdapterCache, store: AdapterStore, tmp_path: Path) -> None:
    digest = store.resolve("small-0")
    (tmp_path / "store" / "artifacts" / digest / "manifest.json").write_text("{")
    [lease] = cache.acquire(("small-0", digest))
    assert lease.wait(30.0)
    assert "manifest.json" in str(lease.error)
    [sound] = cache.acquire(("small-1", store.resolve("small-1")))
    assert sound.wait(30.0)
    assert cache.place(sound)
