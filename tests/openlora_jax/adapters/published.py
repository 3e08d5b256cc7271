"""What the fixture `there` publishes, and what a store that fetches it into `here` has of it."""

from typing import Any

from openlora_jax.adapters.remote_store import RemoteStore
from openlora_jax.adapters.store import AdapterStore

BASE = "0" * 64
NAMES = "abc"


def names_of(store: RemoteStore) -> dict[str, str]:
    return {name: registration.digest for name, registration in store.registrations().items()}


def loads(store: RemoteStore) -> dict[Any, int]:
    return {result: count for (source, result), count in store._counters.snapshot().loads.items() if source == "remote"}


def fetched(here: AdapterStore) -> set[str]:
    return {path.name for path in (here.path / "fetched" / "artifacts").iterdir()}
