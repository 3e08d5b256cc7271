"""Seals: what was digested once is not digested again, and nothing else passes for it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openlora_jax.adapters import artifacts as artifacts_module
from openlora_jax.adapters.artifact import CHUNK, artifact_digest, read_artifact, tensor_folder
from openlora_jax.adapters.seal import NAME, Seal
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic, synthetic_manifest, synthetic_tensors
from openlora_jax.errors import BadCheckpoint
from tests.openlora_jax.tiny import MODEL

BASE = "0" * 64
MODULES = ("q_proj", "down_proj")


class Digested(list[str]):
    """Counts what is digested, by what was found."""

    def __call__(self, *arguments: Any) -> str:
        self.append(artifact_digest(*arguments))
        return self[-1]


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore.create(tmp_path / "store")


@pytest.fixture
def digest(store: AdapterStore) -> str:
    return store.install("x", synthetic_manifest(MODEL, BASE, MODULES, 20), synthetic_tensors(MODEL, MODULES, 20, 1))


@pytest.fixture
def digested(digest: str, monkeypatch: pytest.MonkeyPatch) -> Digested:
    """What is digested after the installation."""
    digested = Digested()
    monkeypatch.setattr(artifacts_module, "artifact_digest", digested)
    return digested


def chunk(store: AdapterStore, digest: str) -> Path:
    return tensor_folder(store.folder(digest), "q_proj.B") / CHUNK


def flip(path: Path, bit: int = 5) -> None:
    """One bit of a file in its place, and the old times."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_was_installed_is_read_without_another_digest(
    store: AdapterStore, digest: str, digested: Digested
) -> None:
    manifest, tensors = store.read(digest)
    assert digested == []
    assert artifact_digest(manifest, tensors) == digest
    others = install_synthetic(store, MODEL, BASE, {"a": 1, "b": 2})
    del digested[:]
    assert artifact_digest(*store.read(others["b"])) == others["b"]
    assert digested == []


def touch(folder: Path) -> None:
    (folder / "manifest.json").touch()


def copy(folder: Path) -> None:
    """The same files, times and all, in another place: as if they came from another machine."""
    shutil.copytree(folder, folder.parent / "copy")
    shutil.rmtree(folder)
    (folder.parent / "copy").rename(folder)


def lose(folder: Path) -> None:
    (folder / NAME).unlink()


def cut(folder: Path) -> None:
    (folder / NAME).write_bytes((folder / NAME).read_bytes()[:-1])


def rewrite(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / NAME).write_text(json.dumps({**json.loads((folder / NAME).read_text()), **changes}))

    return change


UNPROVED = [touch, copy, lose, cut, rewrite(digest="f" * 64), rewrite(checksum=0), rewrite(files={}), rewrite(files=3)]


@pytest.mark.parametrize("change", UNPROVED, ids=lambda change: change.__name__)
def test_what_the_seal_does_not_prove_is_digested_once_more(
    store: AdapterStore, digest: str, digested: Digested, change: Callable[[Path], None]
) -> None:
    change(store.folder(digest))
    for _ in range(2):
        assert artifact_digest(*store.read(digest)) == digest
    assert digested == [digest]


@pytest.mark.parametrize("file", ["manifest.json", "tensors/q_proj.B/0.0.0.0"])
def test_a_changed_file_is_refused_whatever_its_times(store: AdapterStore, digest: str, file: str) -> None:
    flip(store.folder(digest) / file, bit=8 * (store.folder(digest) / file).stat().st_size - 30)
    for _ in range(2):
        with pytest.raises(BadCheckpoint, match=digest):
            store.read(digest)


def test_a_disk_that_reads_otherwise_than_it_was_written_is_found_out(store: AdapterStore, digest: str) -> None:
    """The kernel has noticed nothing."""
    folder, path = store.folder(digest), chunk(store, digest)
    for bit in (0, 8 * path.stat().st_size - 1):
        flip(path, bit)
        rewrite(files=read_artifact(folder).files)(folder)
        with pytest.raises(BadCheckpoint, match="its content has the digest"):
            store.read(digest)
        flip(path, bit)
        assert store.read(digest)


@pytest.mark.parametrize("block", [1, 2, 8, 64, 512])
def test_the_checksum_tells_words_and_blocks_in_another_order_apart(
    store: AdapterStore, digest: str, block: int
) -> None:
    artifact = read_artifact(store.folder(digest))
    seal = Seal.of(digest, artifact)
    assert seal.proves(digest, artifact)
    name, tensor = max(artifact.tensors.items(), key=lambda item: item[1].size)
    words = np.copy(tensor.swapaxes(0, 1)).reshape(-1).view(np.uint64)
    assert len(words) >= 2 * block
    words[: 2 * block] = np.roll(words[: 2 * block], block)
    moved = words.view(tensor.dtype).reshape(tensor.swapaxes(0, 1).shape).swapaxes(0, 1)
    assert not np.array_equal(moved, tensor)
    artifact.tensors[name] = moved
    assert not seal.proves(digest, artifact)


def test_a_store_that_cannot_be_written_is_read(
    store: AdapterStore, digest: str, digested: Digested, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(store.folder(digest))

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Seal, "write", refuse)
    for _ in range(2):
        assert store.read(digest)
    assert digested == [digest, digest]


def test_a_link_in_the_seals_place_is_replaced_not_followed(
    store: AdapterStore, digest: str, digested: Digested, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lose(store.folder(digest))
    (store.folder(digest) / NAME).symlink_to(victim)
    for _ in range(2):
        assert store.read(digest)
    assert victim.read_text() == "precious"
    assert digested == [digest], "sealed anew"
    assert {path.name for path in store.folder(digest).iterdir()} == {"manifest.json", "tensors", NAME}


def test_verify_always_digests(store: AdapterStore, digest: str, digested: Digested) -> None:
    assert store.verify() == {digest: None}
    assert digested == [digest]
