"""Adapters in host memory, bounded in bytes: least recently used ones leave, unless a request waits for them."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlora_jax.adapters.counters import Counters, Reason
from openlora_jax.arrays import AnyArray

AdapterTensors = Mapping[str, NDArray[np.generic]]
"""An adapter's arrays, scale in B: `MODULE.A` `[layers, pages, 16, d_in]`, `MODULE.B` `[layers, pages, 16, d_out]`."""

StagedPages = Mapping[str, Sequence[AnyArray]]
"""The same, each array page by page as a write takes them: `[layers, 16, width]`."""


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter ready to be written: module name -> how many pages it has, and the pages."""

    counts: Mapping[str, int]
    pages: StagedPages

    @property
    def nbytes(self) -> int:
        return sum(page.nbytes for pages in self.pages.values() for page in pages)


class HostCache:
    """Not thread-safe: the owner calls every method under its lock.

    The following conditions hold: what is held is here; what is not held fits `budget` together with what is held, or
    nothing but held adapters is here.

    Attributes:
        budget: of all adapters here, in bytes; only adapters that requests wait for may exceed it.
        nbytes: of all adapters here.
        held_bytes: of those that requests wait for.
    """

    def __init__(self, budget: int, counters: Counters | None = None) -> None:
        self._counters = counters or Counters()
        self.budget = budget
        self.nbytes = 0
        self.held_bytes = 0
        self._adapters: OrderedDict[str, HostAdapter] = OrderedDict()  # least recently used first
        self._held: set[str] = set()

    @property
    def has_room(self) -> bool:
        """Whether more could be held within the budget."""
        return self.held_bytes < self.budget

    def digests(self) -> Iterable[str]:
        return self._adapters.keys()

    def get(self, digest: str) -> HostAdapter | None:
        """The adapter, now the most recently used."""
        if digest in self._adapters:
            self._adapters.move_to_end(digest)
        return self._adapters.get(digest)

    def put(self, digest: str, adapter: HostAdapter, *, held: bool) -> None:
        """Takes an adapter in, and drops others for it."""
        self._remove(digest)
        self._adapters[digest] = adapter
        self.nbytes += adapter.nbytes
        if held:
            self.hold(digest)
        self._trim()

    def size(self, digest: str) -> int:
        """Bytes of one adapter; 0 when it is not here."""
        return self._adapters[digest].nbytes if digest in self._adapters else 0

    def held(self, digest: str) -> bool:
        return digest in self._held

    def hold(self, digest: str) -> None:
        """Keeps an adapter that is here until `unhold`."""
        if digest not in self._held:
            self._held.add(digest)
            self.held_bytes += self._adapters[digest].nbytes

    def unhold(self, digest: str) -> None:
        """Ends `hold`; one that was not held stays so."""
        if digest in self._held:
            self._held.discard(digest)
            self.held_bytes -= self._adapters[digest].nbytes
            self._trim()

    def drop(self, digest: str) -> None:
        """Forgets an adapter that is to be unloaded, held or not; one that is not here stays so."""
        self._evict(digest, "unload")

    def _evict(self, digest: str, reason: Reason) -> None:
        if digest in self._adapters:
            self._remove(digest)
            self._counters.evicted("host", reason)

    def _remove(self, digest: str) -> None:
        self.unhold(digest)
        adapter = self._adapters.pop(digest, None)
        if adapter is not None:
            self.nbytes -= adapter.nbytes

    def _trim(self) -> None:
        for digest in [digest for digest in self._adapters if digest not in self._held]:
            if self.nbytes <= self.budget:
                return
            self._evict(digest, "room")
