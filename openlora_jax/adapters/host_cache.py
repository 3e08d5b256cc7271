"""Adapters in host memory, bounded in bytes: who is worth the least leaves first, unless a request waits for it."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.greedy_dual import GreedyDual
from openlora_jax.adapters.traits import PLAIN, Traits

AdapterTensors = Mapping[str, NDArray[np.generic]]
"""An adapter's arrays, `[layers, pages, rows, width]` each; see `PageShape`."""

StagedPages = Mapping[str, Sequence[Any]]
"""Its tensors, page by page as a write takes them: `[layers, rows, width]`; in few bits, all arrays of a page."""

MAX_LEFT = 1024
"""Adapters that could come back."""

LOAD_SECONDS = 0.05
"""What a load takes, where it was not measured."""


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter ready to be written.

    Attributes:
        counts: pool -> how many pages it has.
        pages: the pages.
        load_seconds: what it would cost to read it again.
        traits: how it acts.
        nbytes: of all pages.
    """

    counts: Mapping[str, int]
    pages: StagedPages
    load_seconds: float = LOAD_SECONDS
    traits: Traits = PLAIN
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", sum(part.nbytes for part in jax.tree.leaves([*self.pages.values()])))


class HostCache:
    """Not thread-safe: the owner calls every method under its lock.

    An adapter is worth its requests times its load time, for each byte.

    The following conditions hold: what is held is here; what is not held fits `budget` together with what is held, or
    nothing but held adapters is here.

    Attributes:
        budget: of all adapters here, in bytes; only adapters that requests wait for may exceed it.
        nbytes: of all adapters here.
        held_bytes: of those that requests wait for.
    """

    def __init__(
        self,
        budget: int,
        counters: Counters | None = None,
        frequency: Callable[[str], float] = lambda digest: 1.0,
    ) -> None:
        """`frequency` says how often a digest is asked for, in any unit."""
        self._counters = counters or Counters()
        self._frequency = frequency
        self.budget = budget
        self.nbytes = 0
        self.held_bytes = 0
        self._left: OrderedDict[str, int] = OrderedDict()  # digest -> bytes, or 0 when they are not known
        self._adapters: dict[str, HostAdapter] = {}
        self._values = GreedyDual()
        self._held: set[str] = set()
        self._removed: list[HostAdapter] = []

    @property
    def has_room(self) -> bool:
        """Whether more could be held within the budget."""
        return self.held_bytes < self.budget

    @property
    def free(self) -> int:
        """Bytes of the budget that no adapter takes."""
        return max(0, self.budget - self.nbytes)

    def digests(self) -> Iterable[str]:
        return self._adapters.keys()

    def get(self, digest: str) -> HostAdapter | None:
        """The adapter, which is used by this."""
        adapter = self._adapters.get(digest)
        if adapter is not None:
            self._use(digest, adapter)
        return adapter

    def counts(self, digest: str) -> Mapping[str, int]:
        """Pages by module of an adapter that is here."""
        return self._adapters[digest].counts

    def seed(self, digests: Iterable[str]) -> None:
        """Adapters that were here before a start, those that matter most first: they could come back."""
        self._left.update(dict.fromkeys(islice(digests, MAX_LEFT), 0))

    def could_return(self) -> Iterable[str]:
        """Adapters that had to leave and would find room now, as far as their sizes are known."""
        room = self.free
        return (digest for digest, nbytes in self._left.items() if 0 < room >= nbytes)

    def forget(self, digest: str) -> None:
        """It is not to come back until it was here again."""
        self._left.pop(digest, None)

    def offer(self, digest: str, adapter: HostAdapter) -> bool:
        """Takes in an adapter that came back, if none must leave for it; else none of unknown size is tried again."""
        if adapter.nbytes > self.free:
            self._left = OrderedDict((digest, nbytes) for digest, nbytes in self._left.items() if nbytes)
            return False
        self.put(digest, adapter, held=False)
        return True

    def put(self, digest: str, adapter: HostAdapter, *, held: bool) -> None:
        """Takes an adapter in, and drops others for it."""
        if digest in self._adapters:
            self._remove(digest)
        self._adapters[digest] = adapter
        self.forget(digest)
        self._use(digest, adapter)
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
        self.forget(digest)
        if digest in self._adapters:
            self._values.remove(digest)
            self._remove(digest)
            self._counters.evicted("host", "unload", digest)

    def take_removed(self) -> list[HostAdapter]:
        """The adapters that left since the last call; their memory is free with the last reference to them."""
        removed, self._removed = self._removed, []
        return removed

    def _use(self, digest: str, adapter: HostAdapter) -> None:
        self._values.use(digest, self._frequency(digest) * adapter.load_seconds / max(1, adapter.nbytes))

    def _remove(self, digest: str) -> None:
        adapter = self._adapters.pop(digest)
        self._removed.append(adapter)
        self.nbytes -= adapter.nbytes
        if digest in self._held:
            self._held.discard(digest)
            self.held_bytes -= adapter.nbytes

    def _leave(self, digest: str, nbytes: int) -> None:
        self._left[digest] = nbytes
        if len(self._left) > MAX_LEFT:
            self._left.popitem(last=False)

    def _trim(self) -> None:
        while self.nbytes > self.budget:
            digest = self._values.least(spared=self._held)
            if digest is None:
                return
            self._values.evict(digest)
            self._leave(digest, self._adapters[digest].nbytes)
            self._remove(digest)
            self._counters.evicted("host", "room", digest)
