"""The store: whole changes or none, under kill -9 as well; names and content are kept apart."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openlora_jax.adapters.artifact import Tensor
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic, synthetic_manifest, synthetic_tensors
from openlora_jax.errors import (
    AdapterExists,
    BadCheckpoint,
    CannotInstall,
    InvalidConfig,
    InvalidRequest,
    UnknownAdapter,
)
from tests.openlora_jax.tiny import MODEL

TINY = replace(MODEL, vocab_size=40, max_position=64, bos_token_id=None, eos_token_ids=(0,))
BASE = "0" * 64


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore.create(tmp_path / "store")


def adapter(seed: int) -> tuple[Manifest, dict[str, Tensor]]:
    modules = ("q_proj", "down_proj")
    return synthetic_manifest(TINY, BASE, modules, 3), synthetic_tensors(TINY, modules, 3, seed)


def artifacts(store: AdapterStore) -> set[str]:
    return {entry.name for entry in (store.path / "artifacts").iterdir()}


def test_install_resolve_read(store: AdapterStore) -> None:
    manifest, tensors = adapter(1)
    digest = store.install("x", manifest, tensors)
    other = AdapterStore(store.path)
    assert other.resolve("x") == digest
    assert other.manifest(digest) == manifest
    np.testing.assert_array_equal(other.read(digest)[1]["q_proj.B"], tensors["q_proj.B"])
    assert other.verify() == {digest: None}
    assert artifacts(store) == {digest}


def test_installing_the_same_again_changes_nothing(store: AdapterStore) -> None:
    store.install("x", *adapter(1))
    before = (store.path / "registry.jsonl").read_bytes()
    store.install("x", *adapter(1))
    assert (store.path / "registry.jsonl").read_bytes() == before


def test_a_taken_name_is_refused_unless_replaced(store: AdapterStore) -> None:
    first = store.install("x", *adapter(1))
    with pytest.raises(AdapterExists, match=first):
        store.install("x", *adapter(2))
    assert artifacts(store) == {first}
    second = store.install("x", *adapter(2), replace=True)
    assert store.resolve("x") == second != first


def test_content_outlives_its_last_name_for_requests_under_way(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = store.install("x", *adapter(1))
    named = store.install("x", *adapter(2), replace=True)
    removed = store.install("y", *adapter(3))
    store.remove("y")
    assert artifacts(store) == {replaced, named, removed}
    for digest in (replaced, removed):
        assert store.read(digest)
    monkeypatch.setattr("openlora_jax.adapters.store.KEPT", timedelta())
    late = store.install("z", *adapter(4))
    assert artifacts(store) == {named, late}
    store.remove("z")
    assert artifacts(store) == {named}


def test_how_long_content_was_without_a_name_is_told_by_the_last_line_of_it(store: AdapterStore) -> None:
    """A name was taken from `old` an hour ago; one that `new` has had for an hour is taken now."""
    times = [datetime.now(UTC) - timedelta(minutes=minutes) for minutes in (120, 60)]
    old, new = store.install("x", *adapter(1)), store.install("x", *adapter(2), replace=True)
    lines = [
        json.dumps({"name": "x", "digest": digest, "time": time.isoformat(timespec="seconds")}) + "\n"
        for digest, time in zip((old, new), times, strict=True)
    ]
    (store.path / "registry.jsonl").write_text("".join(lines))
    AdapterStore(store.path).remove("x")
    assert artifacts(store) == {new}


def test_content_without_a_name_makes_room_on_a_full_disk(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    removed = store.install("x", *adapter(1))
    store.remove("x")
    usage = shutil.disk_usage(store.path)
    folder = store.folder(removed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000) if folder.exists() else usage)
    assert artifacts(store) == {removed}
    named = store.install("y", *adapter(2))
    assert artifacts(store) == {named}


def test_a_name_that_is_removed_stands_for_nothing_at_once(store: AdapterStore) -> None:
    digest = store.install("x", *adapter(1))
    assert store.install("y", *adapter(1)) == digest
    store.remove("x")
    with pytest.raises(UnknownAdapter):
        store.resolve("x")
    assert store.read(store.resolve("y"))
    store.remove("y")
    with pytest.raises(UnknownAdapter, match="'y'"):
        store.remove("y")
    assert store.install("y", *adapter(1)) == digest


def test_names_that_are_none_are_refused(store: AdapterStore) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        store.install("../x", *adapter(1))
    assert artifacts(store) == set()


@pytest.mark.parametrize("digest", ["", "..", "../../etc", "0" * 63, "0" * 64 + "/..", "0" * 64 + "\n"])
def test_what_is_no_digest_never_becomes_a_path(store: AdapterStore, digest: str) -> None:
    for use in (store.folder, store.manifest, store.read):
        with pytest.raises(BadCheckpoint, match="is no digest"):
            use(digest)


def test_a_store_that_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="not a directory"):
        AdapterStore(tmp_path / "absent")


def test_verify_finds_a_flipped_bit_and_installing_again_mends_it(store: AdapterStore) -> None:
    digest, sound = store.install("x", *adapter(1)), store.install("y", *adapter(2))
    chunk = store.path / "artifacts" / digest / "tensors" / "q_proj.A" / "0.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    damage = store.verify()
    assert isinstance(damage[digest], BadCheckpoint)
    assert damage[sound] is None
    store.install("x", *adapter(1))
    assert store.verify() == {digest: None, sound: None}


def test_a_full_disk_leaves_the_store_as_it_was(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store.install("x", *adapter(1))
    usage = shutil.disk_usage(store.path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(CannotInstall, match="1,000 are free"):
            store.install("x", *adapter(2), replace=True)
    assert store.resolve("x") == digest
    assert artifacts(store) == {digest}


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotInstall, match="Not a directory"):
        AdapterStore.create(tmp_path / "file" / "store")


def test_leftovers_of_killed_writers_are_cleaned(store: AdapterStore) -> None:
    for name in (".abc.partial-1", ".abc.deleted"):
        (store.path / "artifacts" / name / "deep").mkdir(parents=True)
    digest = store.install("x", *adapter(1))
    assert artifacts(store) == {digest}


def test_what_others_leave_among_the_artifacts_is_left_alone(store: AdapterStore, tmp_path: Path) -> None:
    (store.path / "artifacts" / ".DS_Store").touch()
    (store.path / "artifacts" / ".link").symlink_to(tmp_path)
    digest = store.install("x", *adapter(1))
    assert artifacts(store) == {digest, ".DS_Store", ".link"}
    assert store.resolve("x") == digest


def test_a_second_name_for_an_artifact(store: AdapterStore) -> None:
    first, second = store.install("x", *adapter(1)), store.install("y", *adapter(2))
    store.register({"z": first, "x": first})
    assert store.resolve("z") == first
    with pytest.raises(AdapterExists, match="'y'"):
        store.register({"free": first, "y": first})
    with pytest.raises(UnknownAdapter):
        store.resolve("free")
    store.register({"y": first}, replace=True)
    assert store.resolve("y") == first
    with pytest.raises(BadCheckpoint):
        store.register({"z": "0" * 64}, replace=True)
    with pytest.raises(InvalidRequest):
        store.register({"../z": second})


def test_many_synthetic_adapters(store: AdapterStore) -> None:
    digests = install_synthetic(store, TINY, BASE, {f"a{seed}": seed for seed in range(5)}, rank=20, dtype="bfloat16")
    assert len(set(digests.values())) == 5
    assert store.manifest(digests["a3"]).pages == {"q_proj": 2, "v_proj": 2}
    assert store.verify() == dict.fromkeys(sorted(digests.values()))
    tensor = store.read(digests["a3"])[1]["q_proj.A"].astype(np.float32)
    assert np.abs(tensor[:, 1, :4]).min() > 0
    assert not tensor[:, 1, 4:].any()


def test_synthetic_adapters_are_copied_under_the_lock(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: set[Path] = set()

    def copytree(source: Any, target: Any, *rest: Any, **options: Any) -> Any:
        with open(store.path / "lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copied.add(Path(target))
        return original(source, target, *rest, **options)

    original = shutil.copytree
    monkeypatch.setattr(shutil, "copytree", copytree)
    install_synthetic(store, TINY, BASE, {"a": 0, "b": 1, "c": 2})
    assert len({path for path in copied if path.parent.name == "artifacts"}) == 2


CHANGES_FOR_EVER = """
import itertools, sys
from tests_store import adapter, AdapterStore
store = AdapterStore(sys.argv[1])
print("ready", flush=True)
for turn in itertools.count():
    store.install("x", *adapter(turn % 2), replace=True)
    store.install("y", *adapter(3 + turn % 3), replace=True)
    store.remove("y")
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_store_is_whole(store: AdapterStore, tmp_path: Path) -> None:
    (tmp_path / "tests_store.py").symlink_to(__file__)
    delays = random.Random(0)
    store.install("x", *adapter(0))
    known = {store.resolve("x"), store.install("probe", *adapter(1))}
    store.remove("probe")
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", CHANGES_FOR_EVER, store.path],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
        )
        assert writer.stdout
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delays.uniform(0, 0.25))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        reopened = AdapterStore(store.path)
        assert all(damage is None for damage in reopened.verify().values())
        assert reopened.resolve("x") in known
        digest = reopened.install("after", *adapter(9))
        assert not any(name.startswith(".") for name in artifacts(reopened))
        assert reopened.resolve("after") == digest
