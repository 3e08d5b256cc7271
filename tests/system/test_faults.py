"""Adapters whose loads fail, at every stage: who asked is told why, and nobody else notices anything."""

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from openlora_jax import LLM
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.engine.request import GenerateRequest, MixItem
from openlora_jax.errors import (
    AdapterDamaged,
    AdapterOutOfMemory,
    AdapterUnavailable,
    AdapterUnreachable,
    OpenLoraError,
)
from openlora_jax.inputs import Adapter
from openlora_jax.outputs import Generation, collect
from tests.system.compare import GREEDY

PROMPTS = ["the sea is", "a", "x" * 70, "hello", "y" * 16]
ADAPTERS: list[Adapter] = ["adapter-31", None, "adapter-32", {"adapter-31": 0.5, "adapter-33": 0.5}, "adapter-34"]
KINDS: dict[str, type[AdapterUnavailable]] = {
    "missing": AdapterDamaged,
    "truncated": AdapterDamaged,
    "altered": AdapterDamaged,
    "foreign": AdapterUnavailable,
    "io-error": AdapterUnreachable,
    "hanging": AdapterUnreachable,
    "no-memory": AdapterOutOfMemory,
}
LASTING = {"missing", "truncated", "altered", "foreign"}


def damage(folder: Path, how: Callable[[bytes], bytes]) -> None:
    """Changes every file that holds numbers."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(how(path.read_bytes()))


def altered(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@dataclass
class Faults:
    """A store and a pool that fail for some digests."""

    llm: LLM
    digests: dict[str, str]
    healed: bool = False
    returned: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._read, self._write = self.llm.store.read, self.llm.runner.pool.write

    def read(self, digest: str) -> Any:
        if not self.healed and digest == self.digests["io-error"]:
            raise OSError(5, "Input/output error")
        if not self.healed and digest == self.digests["hanging"]:
            assert self.returned.wait(60)
        return self._read(digest)

    def write(self, pages: Any, staged: Any) -> None:
        refused = self.llm.adapters._host._adapters.get(self.digests["no-memory"])
        if not self.healed and refused and staged is refused.pages:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
        self._write(pages, staged)


@pytest.fixture
def faults(exact_llm: LLM, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    adapters, llm = AdapterStore(store), exact_llm
    seeds = {name: 9000 + seed for seed, name in enumerate(KINDS) if name != "foreign"}
    install_synthetic(adapters, llm.model, llm.base_digest, seeds, scale=1.0)
    install_synthetic(adapters, llm.model, "a" * 64, {"foreign": 9999}, scale=1.0)
    digests = {name: adapters.resolve(name) for name in KINDS}
    shutil.rmtree(adapters.folder(digests["missing"]))
    damage(adapters.folder(digests["truncated"]), lambda content: content[:-1])
    damage(adapters.folder(digests["altered"]), altered)
    faults = Faults(llm, digests)
    monkeypatch.setattr(llm.store, "read", faults.read)
    monkeypatch.setattr(llm.runner.pool, "write", faults.write)
    monkeypatch.setattr(llm.adapters._loader, "timeout", 2.0)
    yield faults
    faults.returned.set()
    for name, digest in digests.items():
        llm.adapters.unload(digest)
        adapters.remove(name)
        shutil.rmtree(adapters.folder(digest), ignore_errors=True)  # not to be there, damaged, when it is made again


def error_of(llm: LLM, name: str) -> OpenLoraError:
    stream = llm.engine.submit(GenerateRequest(prompt_ids=(5, 6, 7), params=GREEDY, mix=(MixItem(name),)))
    with pytest.raises(OpenLoraError) as failure:
        collect(stream)
    return failure.value


def exact(answers: list[Generation]) -> list[Any]:
    return [(answer.adapter_digests, answer.outputs[0].token_ids, answer.outputs[0].logprobs) for answer in answers]


def test_who_asked_is_told_why_and_others_get_the_same_bits(exact_llm: LLM, faults: Faults) -> None:
    llm, found = exact_llm, dict[str, OpenLoraError]()
    undisturbed = exact(llm.generate(PROMPTS, GREEDY, ADAPTERS))
    for name in ("adapter-31", "adapter-34"):
        llm.adapters.unload(llm.store.resolve(name))
    threads = [threading.Thread(target=lambda n=name: found.update({n: error_of(llm, n)})) for name in KINDS]
    for thread in threads:
        thread.start()
    disturbed = [exact(llm.generate(PROMPTS, GREEDY, ADAPTERS)) for _ in range(2)]
    for thread in threads:
        thread.join(60)
    assert {name: type(error) for name, error in found.items()} == KINDS
    assert disturbed == [undisturbed] * 2
    for error in found.values():
        assert isinstance(error, AdapterUnavailable)
        assert error.retry_after > 0
        assert "it is tried again in" in str(error)


def test_nothing_is_left_behind_and_what_heals_is_served(exact_llm: LLM, faults: Faults) -> None:
    llm = exact_llm
    for name in KINDS:
        error_of(llm, name)
        assert isinstance(error_of(llm, name), KINDS[name]), "refused at once, for the same reason"
    llm.adapters.validate()
    statuses, memory = llm.adapters.status(), llm.adapters.memory()
    assert not sum(status.requests for status in statuses)
    in_host = {faults.digests["no-memory"]}
    assert {status.digest for status in statuses} & set(faults.digests.values()) == in_host
    assert memory.host_bytes == sum(status.host_bytes for status in statuses)
    assert not sum(by_state["used"] for by_state in memory.pages.values())
    assert len(llm.adapters._loader._threads) <= llm.config.loader_threads + 1, "one hangs"
    faults.healed = True
    faults.returned.set()
    for name in KINDS.keys() - LASTING:
        llm.adapters.unload(faults.digests[name])
        while llm.adapters._loader.hangs(faults.digests[name]):
            pass
        [answer] = llm.generate(["a"], GREEDY, name)
        assert answer.adapter_digests == (faults.digests[name],)
    assert llm.adapters._loader.idle
