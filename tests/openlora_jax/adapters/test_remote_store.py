"""A store behind a local one: what is fetched is what its digest names, within its budget, and nothing else gets in."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import jax.numpy as jnp
import pytest

from openlora_jax.adapters.artifact import array_files, artifact_digest
from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.adapters.reader import AdapterReader
from openlora_jax.adapters.registry import Registry
from openlora_jax.adapters.remote import Remote
from openlora_jax.adapters.remote_store import RemoteStore
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic, synthetic_manifest
from openlora_jax.errors import BadCheckpoint, CannotInstall, InvalidConfig, UnknownAdapter
from tests.openlora_jax.adapters.fakes import open_cache
from tests.openlora_jax.tiny import MODEL

BASE = "0" * 64
BUDGET = 1 << 20
NAMES = "abc"


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

    def open_store(url: str = str(there.path), budget: int = BUDGET) -> RemoteStore:
        opened.append(RemoteStore(here, url, budget, Counters()))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


def names_of(store: RemoteStore) -> dict[str, str]:
    return {name: registration.digest for name, registration in store.registrations().items()}


def loads(store: RemoteStore) -> dict[Any, int]:
    return {result: count for (source, result), count in store._counters.snapshot().loads.items() if source == "remote"}


def fetched(here: AdapterStore) -> set[str]:
    return {path.name for path in (here.path / "fetched" / "artifacts").iterdir()}


@pytest.fixture(params=["path", "file", "memory"])
def url(request: pytest.FixtureRequest, there: AdapterStore) -> str:
    match request.param:
        case "path":
            return str(there.path)
        case "file":
            return f"file://{there.path}"
    files = fsspec.filesystem("memory")
    files.rm("/published", recursive=True) if files.exists("/published") else None
    files.put(f"{there.path}/", "/published/", recursive=True)
    return "memory://published"


def test_what_is_there_is_fetched_once(
    url: str, open_store: Callable[..., RemoteStore], here: AdapterStore, there: AdapterStore
) -> None:
    store = open_store(url)
    assert names_of(store) == {name: there.resolve(name) for name in NAMES}
    digest = store.resolve("b")
    assert store.is_remote(digest)
    assert store.manifest(digest) == there.manifest(digest)
    assert fetched(here) == set()
    for _ in range(2):
        assert artifact_digest(*store.read(digest)) == digest
    assert loads(store) == {"ok": 1}
    assert not store.is_remote(digest)
    assert fetched(here) == {digest}
    with pytest.raises(UnknownAdapter):
        store.resolve("d")
    counts = store._counters.snapshot()
    assert (counts.lookups["disk"], counts.hits["disk"]) == (2, 1)
    assert counts.loaded_bytes["remote"] == there.manifest(digest).nbytes
    assert counts.seconds["fetch"].total > 0


def test_what_is_here_is_used_as_it_is_here(
    open_store: Callable[..., RemoteStore], here: AdapterStore, there: AdapterStore
) -> None:
    own = install_synthetic(here, MODEL, BASE, {"a": 9, "own": 10})
    store = open_store()
    assert names_of(store) == {**{name: there.resolve(name) for name in NAMES}, **own}
    for digest in own.values():
        assert artifact_digest(*store.read(digest)) == digest
    assert loads(store) == {}


def test_a_mix_is_made_of_names_here_or_there(
    open_store: Callable[..., RemoteStore], here: AdapterStore, there: AdapterStore
) -> None:
    there.mix("both", {"a": 0.5, "b": 2.0})
    store = open_store()
    assert store.members("both") == there.members("both")
    own = install_synthetic(here, MODEL, BASE, {"a": 9})
    assert [member.digest for member in store.members("both")] == [own["a"], there.resolve("b")]
    here.mix("c", {"a": 1.0})
    assert [member.adapter for member in store.members("c")] == ["a"], "names of this side go first"
    assert store.registrations().keys() == {"a", "b"}
    with pytest.raises(UnknownAdapter, match="'b'"):
        here.mix("m", {"b": 1.0})


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


def test_the_least_recently_used_leaves_for_the_next(
    open_store: Callable[..., RemoteStore], here: AdapterStore, there: AdapterStore
) -> None:
    a, b, c = (there.resolve(name) for name in NAMES)
    budget = 2 * (there.manifest(a).nbytes + 8192 * 5)
    store = open_store(budget=budget)
    for digest in (a, b, a, c):
        store.read(digest)
        assert store._fetched.nbytes <= budget
    assert fetched(here) == {a, c}
    store.close()
    store = open_store(budget=budget)
    assert store._fetched.nbytes == budget
    with store._fetched.using(a), store._fetched.using(c), pytest.raises(OSError, match="disk_cache_bytes"):
        store.read(b)
    with store._fetched.using(a):
        store.read(b)
    assert fetched(here) == {a, b}
    assert store._counters.snapshot().evictions["disk", "room"] == 1
    store.close()
    store = open_store(budget=budget // 2)
    assert fetched(here) == {b}, "the budget may be smaller at the next start"
    store.close()
    store = open_store(budget=1000)
    with pytest.raises(ValueError, match="disk_cache_bytes is 1,000"):
        store.read(a)
    assert fetched(here) == set()


def flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


DAMAGE: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("tensors/q_proj.A/0.0.0.0", flip),
    ("tensors/q_proj.A/0.0.0.0", lambda content: content[:-1]),
    ("tensors/q_proj.A/0.0.0.0", lambda content: content + b"0"),
    ("manifest.json", lambda content: b"{"),
    ("manifest.json", lambda content: content.replace(b'"d_in": 32', b'"d_in": 16')),
    ("manifest.json", lambda content: content.replace(b'"rank": 8', b'"rank": 9')),
    ("manifest.json", lambda content: content.replace(b"q_proj", b"../q_p")),
    ("manifest.json", lambda content: content + b" " * (1 << 20)),
]


@pytest.mark.parametrize("case", range(len(DAMAGE)))
def test_damage_there_is_refused_until_it_is_put_right(
    open_store: Callable[..., RemoteStore], here: AdapterStore, there: AdapterStore, case: int
) -> None:
    file, change = DAMAGE[case]
    digest = there.resolve("a")
    path = there.folder(digest) / file
    sound = path.read_bytes()
    path.write_bytes(change(sound))
    assert path.read_bytes() != sound
    store = open_store()
    for _ in range(2):
        with pytest.raises(BadCheckpoint):
            store.read(digest)
    path.unlink()
    with pytest.raises(BadCheckpoint, match="not all of this adapter"):
        store.read(digest)
    assert fetched(here) == set()
    assert store._fetched.nbytes == 0
    path.write_bytes(sound)
    assert artifact_digest(*store.read(digest)) == digest
    assert loads(store) == {"failed": 3, "ok": 1}


def test_what_is_damaged_here_is_fetched_again(
    open_store: Callable[..., RemoteStore], here: AdapterStore, there: AdapterStore
) -> None:
    store = open_store()
    digest = there.resolve("a")
    store.read(digest)
    path = here.path / "fetched" / "artifacts" / digest / "tensors" / "v_proj.B" / "0.0.0.0"
    path.write_bytes(flip(path.read_bytes()))
    assert artifact_digest(*store.read(digest)) == digest
    assert loads(store) == {"ok": 2}


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


def test_what_is_looked_at_does_not_leave_meanwhile(
    open_store: Callable[..., RemoteStore], there: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = there.resolve("a"), there.resolve("b")
    store = open_store(budget=there.manifest(a).nbytes + 8192 * 5)
    store.read(a)

    def manifest(digest: str) -> Manifest:
        with pytest.raises(OSError, match="full of adapters that are being loaded"):
            store.read(b)
        return original(digest)

    original = store._fetched.manifest
    monkeypatch.setattr(store._fetched, "manifest", manifest)
    assert store.manifest(a) == there.manifest(a)


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


@pytest.mark.parametrize("digest", ["..", "../../etc", "0" * 63, "0" * 64 + "/.."])
def test_what_is_no_digest_never_becomes_a_path(open_store: Callable[..., RemoteStore], digest: str) -> None:
    store = open_store()
    for use in (store.manifest, store.read, store.is_remote, store._remote.manifest):
        with pytest.raises(BadCheckpoint, match="is no digest"):
            use(digest)


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


def test_another_process_has_it(open_store: Callable[..., RemoteStore]) -> None:
    open_store()
    with pytest.raises(InvalidConfig, match="another process"):
        open_store()


def test_leftovers_of_a_killed_process_are_cleaned(open_store: Callable[..., RemoteStore], here: AdapterStore) -> None:
    (here.path / "fetched" / "artifacts" / ".abc.partial-1" / "deep").mkdir(parents=True)
    (here.path / "fetched" / "artifacts" / ("0" * 64)).mkdir()
    open_store()
    assert fetched(here) == set()


@pytest.mark.parametrize("place", ["artifacts", ".registry.jsonl"])
def test_a_disk_that_cannot_be_used_is_the_callers_mistake(
    open_store: Callable[..., RemoteStore], here: AdapterStore, place: str
) -> None:
    """A file that should be a directory, and the other way round."""
    path = here.path / "fetched" / place
    path.parent.mkdir(parents=True)
    path.touch() if "artifacts" in place else path.mkdir()
    for _ in range(2):
        with pytest.raises(CannotInstall, match="fetched"):
            open_store()
    path.unlink() if "artifacts" in place else path.rmdir()
    assert open_store().registrations()


SECRET = "hunter2"


class Away(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Says too much whenever it is asked."""

    protocol = "away"

    def info(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        raise RuntimeError(f"GET https://key:{SECRET}@host/?token={SECRET} failed")


def test_the_other_side_is_away(
    open_store: Callable[..., RemoteStore], there: AdapterStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    a, b = there.resolve("a"), there.resolve("b")
    store.read(a)
    store.close()
    fsspec.register_implementation("away", Away, clobber=True)
    store = open_store(f"away://key:{SECRET}@bucket/store?token={SECRET}#{SECRET}")
    store._registry.refresh()
    assert names_of(store)["b"] == b, "the names that were known"
    assert artifact_digest(*store.read(a)) == a
    with pytest.raises(ConnectionError, match="away://bucket/store failed: RuntimeError") as failure:
        store.read(b)
    assert SECRET not in str(failure.value) + caplog.text
    assert failure.value.__suppress_context__
    assert caplog.text.count("known before") == 1, "logged once, not at every look"
    assert loads(store) == {"failed": 1}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"nonesuch://user:{SECRET}@bucket", "nonesuch://bucket is no URL of a store"),
        (f"s3://user:{SECRET}@bucket", "s3://bucket needs a package that is not installed"),
        ("memory://nothing/here", "holds no such store"),
    ],
)
def test_urls_that_lead_nowhere(
    open_store: Callable[..., RemoteStore], url: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(InvalidConfig, match=problem) as failure:
        open_store(url)
    assert SECRET not in str(failure.value)


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(InvalidConfig, match=r"openlora-jax\[remote\]"):
        Remote("/srv/store")


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


class Endless(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Ignores ranges, and has no end: only who stops to read ever comes away. Gives a part of what was asked for."""

    protocol = "endless"
    given = 0

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {"name": path, "size": None, "type": "file"}

    def cat_file(self, *arguments: Any, **options: Any) -> bytes:
        pytest.fail("the whole body")

    def _open(self, path: str, *arguments: Any, **options: Any) -> Any:
        files, name = self, path.removeprefix("endless://")

        class Stream(io.RawIOBase):
            text = Path("/", name).read_bytes() if name.endswith("json") else None

            def read(self, size: int = -1) -> bytes:
                assert size > 0
                if self.text is not None:
                    text, self.text = self.text, b""
                    return text
                size = min(size, 1000)
                files.given += size
                return bytes(size)

        return Stream()


def test_no_more_is_taken_than_an_array_may_have(
    open_store: Callable[..., RemoteStore], here: AdapterStore, there: AdapterStore
) -> None:
    fsspec.register_implementation("endless", Endless, clobber=True)
    digest = there.resolve("a")
    remote = Remote(f"endless://{there.path}")
    manifest, text = remote.manifest(digest)
    first = array_files(manifest)[0].size
    with pytest.raises(BadCheckpoint, match="is larger than"):
        remote.fetch(digest, manifest, text, here.path)
    assert remote._files.given == first + 1
