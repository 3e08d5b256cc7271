"""`kill -9` at any moment: what was installed before is there, what was not is not, and nothing is in between."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.digest import content_digest
from openlora_jax.errors import OpenLoraError
from openlora_jax.model.checkpoint import BaseManifest, read_weights
from serving.client import Client
from tests.parity.random_adapter import linear_shapes, write_random_adapter
from tests.system.compare import GREEDY
from tests.system.models import TINY, install, write_source
from tests.system.mortal import ROOT, Mortal, moments

KILLS = 12
KILLED = -9
SHAPES = linear_shapes(hidden=64, q=64, kv=32, mlp=96)


@pytest.fixture(scope="module")
def mortal() -> Iterator[Mortal]:
    with Mortal() as mortal:
        yield mortal


@pytest.fixture(scope="module")
def peft(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters in PEFT's form."""
    folders = [tmp_path_factory.mktemp("peft") / name for name in ("old", "new")]
    for seed, folder in enumerate(folders):
        ranks = {module.split(".")[-1]: 8 for module in SHAPES}
        write_random_adapter(folder, SHAPES, ranks, layers=TINY["num_hidden_layers"], size=0.5, seed=seed)
    return folders


def duration(mortal: Mortal, *arguments: object) -> float:
    """Seconds of a command that nobody kills."""
    started = time.monotonic()
    assert mortal.run(*arguments) == 0
    return time.monotonic() - started


def test_conversion_of_an_adapter(mortal: Mortal, base: Path, peft: list[Path], tmp_path: Path) -> None:
    store = tmp_path / "store"

    def command(source: Path) -> list[object]:
        return ["convert", "adapter", source, "--store", store, "--name", "it", "--base", base, "--replace"]

    durations, digests = [], set[str]()
    for folder in peft:
        durations.append(duration(mortal, *command(folder)))
        digests.add(AdapterStore(store).resolve("it"))
    assert len(digests) == 2

    statuses, found = [], []
    for turn, moment in enumerate(moments(1.2 * min(durations), KILLS, seed=1)):
        statuses.append(mortal.run(*command(peft[turn % 2]), kill_after=moment))
        adapters = AdapterStore(store)
        found.append(adapters.resolve("it"))
        assert adapters.verify() == {found[-1]: None}
    assert KILLED in statuses
    assert set(found) == digests, "or every kill came too early or too late"

    assert mortal.run(*command(peft[0])) == 0
    assert mortal.run(*command(peft[1])) == 0
    kept = {path.name for path in (store / "artifacts").iterdir()}
    assert kept == digests, "what killed conversions left behind is swept away"


def test_conversion_of_a_base(mortal: Mortal, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    seconds = duration(mortal, "convert", "base", source, tmp_path / "whole")
    digest = BaseManifest.read(tmp_path / "whole").digest
    statuses, whole = [], 0
    for turn, moment in enumerate(moments(1.2 * seconds, KILLS, seed=2)):
        destination = tmp_path / f"base-{turn}"
        statuses.append(mortal.run("convert", "base", source, destination, kill_after=moment))
        if destination.exists():
            whole += 1
        else:
            assert mortal.run("convert", "base", source, destination) == 0
        manifest = BaseManifest.read(destination)
        values = read_weights(destination, manifest.config, "float32")
        assert manifest.digest == digest
        assert digest == content_digest(
            manifest.config.to_json(), {name: np.asarray(value) for name, value in values.items()}
        )
    assert KILLED in statuses
    assert 0 < whole < KILLS, "or every kill came too early or too late"


SETTINGS_FILE = """
max_rows: 8
row_buckets: [8]
prefill_chunk: 64
chunk_buckets: [64]
kv_block: 16
kv_blocks: 129
pool_pages: 9
wide_pool_pages: 2
host_cache_bytes: 1000000
"""
CLIENTS = 8


@contextmanager
def served(base: Path, store: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own, which is killed in the end if nobody did it before, and its address."""
    config = folder / "server.yaml"
    config.write_text(SETTINGS_FILE)
    command = ["serve", "--config", config, "--base", base, "--store", store, "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "openlora_jax", *map(str, command)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving on "), (folder / "log").read_text()
            yield process, line.split()[-1]
        finally:
            process.kill()


def ask(address: str, name: str) -> tuple[list[int], list[str]]:
    with Client(address, timeout=60) as client:
        answer = client.generate("the sea is", GREEDY, adapter=name)
    return list(answer.outputs[0].token_ids), list(answer.adapter_digests)


def besiege(address: str, names: list[str], answered: list[str]) -> None:
    """One adapter after the other, until the server is gone."""
    with Client(address, timeout=60) as client, suppress(OpenLoraError):
        for name in itertools.cycle(names):
            for _ in client.generate_stream("the sea is", GREEDY, adapter=name):
                answered.append(name)


def test_serving(mortal: Mortal, base: Path, peft: list[Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    names = [f"adapter-{index}" for index in range(60)]
    install(store, base, names)
    command = ["convert", "adapter", peft[0], "--store", store, "--name", "late", "--base", base]
    answered: list[str] = []
    with served(base, store, tmp_path) as (process, address):
        before = {name: ask(address, name) for name in names[:3]}
        threads = [
            threading.Thread(target=besiege, args=(address, names[client:] + names[:client], answered))
            for client in range(0, len(names), len(names) // CLIENTS)
        ]
        for thread in threads:
            thread.start()
        mortal.run(*command, kill_after=0.5)
        while len(set(answered)) < 20:
            time.sleep(0.01)
        process.kill()
        for thread in threads:
            thread.join()
    assert process.returncode == KILLED

    assert set(AdapterStore(store).verify().values()) == {None}
    with served(base, store, tmp_path) as (process, address):
        assert {name: ask(address, name) for name in before} == before
        assert mortal.run(*command) == 0
        assert ask(address, "late")[1] == [AdapterStore(store).resolve("late")]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
