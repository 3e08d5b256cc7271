"""A store behind a local one: what is fetched is what its digest names, within its budget, and nothing else gets in."""

from collections.abc import Callable

import fsspec
import pytest

from openlora_jax.adapters.artifact import artifact_digest
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.remote_store import RemoteStore
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.errors import BadCheckpoint, CannotInstall, InvalidConfig, UnknownAdapter
from tests.openlora_jax.adapters.published import BASE, NAMES, fetched, loads, names_of
from tests.openlora_jax.tiny import MODEL


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


@pytest.mark.parametrize("digest", ["..", "../../etc", "0" * 63, "0" * 64 + "/.."])
def test_what_is_no_digest_never_becomes_a_path(open_store: Callable[..., RemoteStore], digest: str) -> None:
    store = open_store()
    for use in (store.manifest, store.read, store.is_remote, store._remote.manifest):
        with pytest.raises(BadCheckpoint, match="is no digest"):
            use(digest)


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
