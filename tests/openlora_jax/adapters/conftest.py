from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.remote_store import RemoteStore
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from tests.openlora_jax.adapters.fakes import SMALL, Facts, World
from tests.openlora_jax.adapters.published import BASE, NAMES
from tests.openlora_jax.tiny import MODEL


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    for digest in SMALL:
        world.source.facts[digest] = Facts({"q_proj": 1})
    world.source.facts["wide"] = Facts({"q_proj": 3, "v_proj": 2})
    world.source.facts["huge"] = Facts({"q_proj": 4})
    world.source.names = {digest.upper(): digest for digest in world.source.facts}
    world.open()
    yield world
    for event in world.source.stalled.values():
        event.set()
    world.cache.validate()
    world.cache.close()


@pytest.fixture
def there(tmp_path: Path) -> AdapterStore:
    """What is published, as a directory."""
    store = AdapterStore.create(tmp_path / "there")
    install_synthetic(store, MODEL, BASE, {name: seed for seed, name in enumerate(NAMES)})
    return store


@pytest.fixture
def here(tmp_path: Path) -> AdapterStore:
    return AdapterStore.create(tmp_path / "here")


@pytest.fixture
def open_store(here: AdapterStore, there: AdapterStore) -> Iterator[Callable[..., RemoteStore]]:
    opened: list[RemoteStore] = []

    def open_store(url: str = str(there.path), budget: int = 1 << 20) -> RemoteStore:
        opened.append(RemoteStore(here, url, budget, Counters()))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()
