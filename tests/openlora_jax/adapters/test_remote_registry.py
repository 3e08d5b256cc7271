"""The names of a store behind a local one: they follow, nobody waits for them, and what is none is refused."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from openlora_jax.adapters.registry import Registry
from openlora_jax.adapters.remote_store import RemoteStore
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.errors import BadCheckpoint, InvalidConfig
from tests.openlora_jax.adapters.published import BASE, names_of
from tests.openlora_jax.tiny import MODEL


def test_names_follow_the_other_side(open_store: Callable[..., RemoteStore], there: AdapterStore) -> None:
    store = open_store()
    before = store.registrations()
    assert store.registrations() is before
    install_synthetic(there, MODEL, BASE, {"late": 7})
    there.remove("a")
    store._registry.refresh()
    assert names_of(store) == {name: there.resolve(name) for name in ("b", "c", "late")}
    (there.path / "registry.jsonl").write_text('{"name": "../x", "digest": null, "time": ""}\n')
    with pytest.raises(BadCheckpoint, match="line 1"):
        store._registry.refresh()
    assert "late" in store.registrations()


def test_names_are_read_once_and_nobody_waits_for_it(
    open_store: Callable[..., RemoteStore], there: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    before, read = store.names(), list[int]()

    def apply(registry: Registry, lines: list[bytes]) -> None:
        read.append(len(lines))
        assert threads.submit(store.names).result(10) is before
        original(registry, lines)

    original = Registry._apply
    there.remove("a")
    monkeypatch.setattr(Registry, "_apply", apply)
    with ThreadPoolExecutor(1) as threads:
        store._registry.refresh()
    assert set(names_of(store)) == {"b", "c"}
    assert read == [4]


def test_names_that_did_not_change_are_not_fetched_again(
    open_store: Callable[..., RemoteStore], there: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    fetches = list[bytes]()

    def fetch() -> bytes:
        fetches.append(original())
        return fetches[-1]

    original = store._remote.registry
    monkeypatch.setattr(store._remote, "registry", fetch)
    for _ in range(3):
        store._registry.refresh()
    assert fetches == []
    there.remove("a")
    for _ in range(3):
        store._registry.refresh()
    assert len(fetches) == 1
    assert "a" not in store.registrations()


def test_names_are_followed_where_a_file_system_knows_no_versions(
    open_store: Callable[..., RemoteStore], there: AdapterStore
) -> None:
    files = fsspec.filesystem("memory")
    path = "/versionless/registry.jsonl"
    files.pipe(path, (there.path / "registry.jsonl").read_bytes())
    store = open_store("memory://versionless")
    before = store.registrations()
    store._registry.refresh()
    assert store.registrations() is before
    text = files.cat(path).replace(b'"a"', b'"z"')
    files.pipe(path, text)
    store._registry.refresh()
    assert set(names_of(store)) == set("zbc")


LINES: list[dict[str, object]] = [
    {"name": "../x"},
    {"digest": "../../etc"},
    {"name": "x" * 200},
    {"time": 3},
    {"digest": None, "mix": {"y": 10**400}},
]


@pytest.mark.parametrize(
    "line",
    [json.dumps({"name": "x", "digest": "0" * 64, "time": "", **line}) for line in LINES] + ['{"name":' * 100_000],
    ids=lambda line: line[:40],
)
def test_a_registry_that_is_none_is_refused_at_the_start(
    open_store: Callable[..., RemoteStore], there: AdapterStore, line: str
) -> None:
    (there.path / "registry.jsonl").write_text(line + "\n")
    with pytest.raises(InvalidConfig, match="line 1 is no registration"):
        open_store()
