"""The disk cache where the directory changes under it: people delete files, deletions fail, two add the same."""

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from openlora_jax.adapters.artifact import write_artifact
from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.disk_cache import FILE_BYTES, DiskCache
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.errors import BadCheckpoint
from tests.openlora_jax.tiny import MODEL

NAMES = "abc"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    store = AdapterStore.create(tmp_path_factory.mktemp("source"))
    install_synthetic(store, MODEL, "0" * 64, {name: seed for seed, name in enumerate(NAMES)})
    return store


@pytest.fixture
def digests(source: AdapterStore) -> list[str]:
    return [source.resolve(name) for name in NAMES]


@pytest.fixture
def size(source: AdapterStore, digests: list[str]) -> int:
    return footprint(source.manifest(digests[0]))


@pytest.fixture
def cache(tmp_path: Path, size: int) -> Iterator[DiskCache]:
    """With room for two."""
    cache = DiskCache(tmp_path / "fetched", 2 * size, Counters())
    yield cache
    cache.close()


def footprint(manifest: Manifest) -> int:
    return manifest.nbytes + FILE_BYTES * (1 + len(manifest.tensor_shapes))


def add(cache: DiskCache, source: AdapterStore, *digests: str) -> None:
    for digest in digests:
        manifest, tensors = source.read(digest)
        cache.add(digest, manifest, partial(write_artifact, manifest=manifest, tensors=tensors))


def folder(cache: DiskCache, digest: str) -> Path:
    return cache._artifacts.folder(digest)


@pytest.mark.parametrize("leftover", [False, True])
def test_a_folder_that_is_gone_is_in_nobodys_way(
    cache: DiskCache, source: AdapterStore, digests: list[str], size: int, leftover: bool
) -> None:
    a, b, c = digests
    add(cache, source, a, b)
    shutil.rmtree(folder(cache, a))
    if leftover:
        (folder(cache, a).parent / f".{a}.deleted" / "deep").mkdir(parents=True)
    add(cache, source, c)
    assert not cache.holds(a)
    assert cache.nbytes == 2 * size
    shutil.rmtree(folder(cache, c))
    with pytest.raises(BadCheckpoint):
        cache.read(c)
    cache.drop(c)
    assert cache.nbytes == size
    add(cache, source, a)
    assert {path.name for path in folder(cache, a).parent.iterdir()} == {a, b}


def test_a_leftover_of_a_deletion_does_not_stop_the_next(
    cache: DiskCache, source: AdapterStore, digests: list[str]
) -> None:
    a, b, c = digests
    add(cache, source, a, b)
    (folder(cache, a).parent / f".{a}.deleted" / "deep").mkdir(parents=True)
    add(cache, source, c)
    assert {path.name for path in folder(cache, a).parent.iterdir()} == {b, c}


def test_what_cannot_be_deleted_fails_one_fetch_and_no_other(
    cache: DiskCache, source: AdapterStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = digests
    add(cache, source, a, b)

    def refuse(digest: str) -> None:
        assert digest == a
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache._artifacts, "delete", refuse)
    with pytest.raises(PermissionError):
        add(cache, source, c)
    add(cache, source, c)
    assert [cache.holds(digest) for digest in digests] == [False, True, True]


def test_of_two_that_add_the_same_the_later_may_end_first(
    cache: DiskCache, source: AdapterStore, digests: list[str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = digests[0]
    in_place, go = threading.Event(), threading.Event()
    original = cache._artifacts.add

    def pause(*arguments: Any) -> None:
        original(*arguments)
        in_place.set()
        assert go.wait(30)

    monkeypatch.setattr(cache._artifacts, "add", pause)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(add, cache, source, digest)
        try:
            assert in_place.wait(30)
            add(cache, source, digest)
            assert cache.read(digest)
        finally:
            go.set()
        first.result(30)
    assert cache.holds(digest)
    assert cache.nbytes == size


def test_what_was_read_well_is_no_failure(
    cache: DiskCache, source: AdapterStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(cache, source, digests[0])

    def gone(path: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "utime", gone)
    assert cache.read(digests[0])
