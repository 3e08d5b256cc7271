"""The registered adapters are made once, and taken out of the page cache whole."""

from pathlib import Path
from typing import Any

import pytest

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.bench.long_tail import fleet_store, page_cache
from openlora_jax.bench.long_tail.fleet import Fleet
from openlora_jax.bench.long_tail.fleet_store import install

FLEET = Fleet(count=7, ranks=(8, 32))


def silent(stage: str, done: int, total: int) -> None:
    pass


def test_what_is_there_is_not_made_again(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_store, "SLICE", 2)
    path = install(FLEET, tmp_path, tiny_base, silent)
    store = AdapterStore(path)
    before = dict(store.registrations())
    assert sorted(before) == [FLEET.name(index) for index in range(7)]
    assert len({each.digest for each in before.values()}) == 7
    assert store.manifest(before["00003-r32"].digest).pages == {"q_proj": 2, "v_proj": 2}

    store.remove("00003-r32")
    made: list[str] = []

    def made_again(*args: Any, **kwargs: Any) -> dict[str, str]:
        made.extend(args[3])
        return install_synthetic(*args, **kwargs)

    monkeypatch.setattr(fleet_store, "install_synthetic", made_again)
    assert install(FLEET, tmp_path, tiny_base, silent) == path
    assert made == ["00003-r32"]
    assert {name: each.digest for name, each in store.registrations().items()} == {
        name: each.digest for name, each in before.items()
    }


def test_another_recipe_has_another_store(tiny_base: Path, tmp_path: Path) -> None:
    paths = {
        install(each, tmp_path, tiny_base, silent)
        for each in (Fleet(count=1), Fleet(count=2), Fleet(count=1, dtype="float32"))
    }
    assert len(paths) == 3


def test_every_file_of_an_adapter_leaves_the_page_cache(tiny_store: Path, tmp_path: Path) -> None:
    if not _forgets(tmp_path / "file"):
        pytest.skip("this file system keeps its files in memory")
    store = AdapterStore(tiny_store)
    digest, other = store.resolve("one"), store.resolve("two")
    files = list(page_cache.files(store, digest))
    assert store.folder(digest) / "manifest.json" in files
    assert not set(files) & set(page_cache.files(store, other))
    store.read(digest)
    assert all(map(page_cache.is_cached, files))
    assert page_cache.drop(store, [digest]) == 0
    assert not any(map(page_cache.is_cached, files))


def _forgets(file: Path) -> bool:
    """Whether the page cache can be told to, and asked."""
    file.write_bytes(b"x")
    page_cache._drop(file)
    return not page_cache.is_cached(file)
