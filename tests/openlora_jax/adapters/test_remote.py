"""The other side: it may be away, lead nowhere, say secrets, or never end."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from openlora_jax.adapters.artifact import array_files, artifact_digest
from openlora_jax.adapters.remote import Remote
from openlora_jax.adapters.remote_store import RemoteStore
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.errors import BadCheckpoint, InvalidConfig
from tests.openlora_jax.adapters.published import loads, names_of

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
