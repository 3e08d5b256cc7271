"""The adapter cache with a fake store that reads when the test says so, and a fake pool that records what it was told.

An adapter named `x` is one float32 array of `SIZE` bytes per page, filled with a number of its own: what is read back
from the fake pool's pages says whose they are.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np

from openlora_jax.adapters.cache import AdapterCache
from openlora_jax.adapters.host_cache import AdapterTensors, StagedPages
from openlora_jax.adapters.lease import Lease
from openlora_jax.adapters.pages import AdapterPages
from openlora_jax.adapters.reader import AdapterSource, PagePool
from openlora_jax.adapters.registry import Registration
from openlora_jax.adapters.traits import PLAIN, Traits

TIMEOUT = 30.0
LOAD_TIMEOUT = 10.0
BASE = "base"
SIZE = 64
CAPACITIES = {"q_proj": 4, "v_proj": 3}
SMALL = "abcdefgh"
"""Adapters of one page."""


@dataclass(frozen=True)
class Facts:
    pages: Mapping[str, int]
    base_digest: str = BASE
    traits: Traits = PLAIN

    @property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {module: (count, SIZE // 4) for module, count in self.pages.items()}


@dataclass
class FakeSource:
    """Adapters by digest, those in `remote` elsewhere; a read in `stalled` waits for its event, in `broken` raises."""

    facts: dict[str, Facts] = field(default_factory=dict)
    stalled: dict[str, threading.Event] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    remote: set[str] = field(default_factory=set)
    begun: SimpleQueue[str] = field(default_factory=SimpleQueue)
    names: dict[str, str] = field(default_factory=dict)

    def registrations(self) -> Mapping[str, Registration]:
        return {name: Registration(digest, "") for name, digest in self.names.items()}

    def is_remote(self, digest: str) -> bool:
        return digest in self.remote

    def manifest(self, digest: str) -> Facts:
        return self.facts[digest]

    def read(self, digest: str) -> tuple[Facts, AdapterTensors]:
        self.reads.append(digest)
        self.begun.put(digest)
        if digest in self.stalled:
            assert self.stalled[digest].wait(TIMEOUT)
        if digest in self.broken:
            raise self.broken[digest]
        facts = self.facts[digest]
        value = sorted(self.facts).index(digest) + 1
        return facts, {module: np.full((count, SIZE // 4), value, np.float32) for module, count in facts.pages.items()}

    def stall(self, digest: str) -> threading.Event:
        return self.stalled.setdefault(digest, threading.Event())


@dataclass
class FakePool:
    contents: dict[tuple[str, int], float] = field(default_factory=dict)
    error: Exception | None = None
    lost: bool = False

    def check(self, counts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Takes whatever there is."""

    def stage(self, counts: Mapping[str, int], tensors: AdapterTensors) -> StagedPages:
        return {name: list(tensor) for name, tensor in tensors.items()}

    def write(self, pages: AdapterPages, staged: StagedPages) -> None:
        if self.error:
            raise self.error
        for module, ids in pages.items():
            for source, page in enumerate(ids):
                self.contents[module, page] = float(staged[module][source][0])


def open_cache(
    source: AdapterSource, pool: PagePool, capacities: Mapping[str, int], base_digest: str = BASE, **settings: Any
) -> AdapterCache:
    """A cache that keeps to what it is asked for, unless the settings say otherwise."""
    quiet = {"host_bytes": 1 << 20, "threads": 2, "load_timeout": TIMEOUT, "min_residency": 0.0, "prefetch": False}
    return AdapterCache(source, pool, capacities, base_digest=base_digest, **(quiet | settings))


@dataclass
class World:
    source: FakeSource = field(default_factory=FakeSource)
    pool: FakePool = field(default_factory=FakePool)
    now: float = 0.0
    told: SimpleQueue[str] = field(default_factory=SimpleQueue)

    def open(
        self, host_bytes: int = 1 << 20, threads: int = 2, min_residency: float = 0.0, prefetch: bool = False
    ) -> None:
        self.cache = open_cache(
            self.source,
            self.pool,
            CAPACITIES,
            host_bytes=host_bytes,
            threads=threads,
            load_timeout=LOAD_TIMEOUT,
            min_residency=min_residency,
            prefetch=prefetch,
            clock=lambda: self.now,
        )
        self.cache.on_ready = self.told.put

    def asked(self, digest: str) -> Lease:
        """A request for one adapter."""
        [lease] = self.cache.acquire((digest.upper(), digest))
        return lease

    def ready(self, digest: str) -> Lease:
        lease = self.asked(digest)
        assert lease.wait(TIMEOUT)
        return lease

    def placed(self, digest: str) -> Lease:
        lease = self.ready(digest)
        assert self.cache.place(lease)
        return lease

    def owner(self, lease: Lease) -> set[float]:
        """Whose numbers lie in a lease's pages."""
        return {self.pool.contents[module, page] for module, ids in lease.pages.items() for page in ids}

    def states(self) -> dict[str, str]:
        return {status.digest: status.state for status in self.cache.status()}
