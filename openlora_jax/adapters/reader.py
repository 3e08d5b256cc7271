"""An adapter from disk to host memory, on a loader thread: all that can be known to be wrong with it is found here."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.host_cache import AdapterTensors, HostAdapter, StagedPages
from openlora_jax.adapters.pages import AdapterPages, placed, shortage, spared
from openlora_jax.adapters.registry import Registration
from openlora_jax.adapters.traits import Traits

TensorShapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""


@runtime_checkable
class AdapterFacts(Protocol):
    """What must be known of an adapter before its arrays are read; `Manifest` is one."""

    @property
    def base_digest(self) -> str: ...
    @property
    def pages(self) -> Mapping[str, int]: ...
    @property
    def tensor_shapes(self) -> TensorShapes: ...
    @property
    def traits(self) -> Traits: ...


@runtime_checkable
class AdapterSource(Protocol):
    """Where adapters come from; `AdapterStore` is one.

    `manifest` and `read` are called on loader threads, and what they raise fails the load.
    """

    def registrations(self) -> Mapping[str, Registration]: ...
    def is_remote(self, digest: str) -> bool:
        """Whether its next read fetches it from elsewhere. Quick: looks at this disk at most."""

    def manifest(self, digest: str) -> AdapterFacts: ...
    def read(self, digest: str) -> tuple[AdapterFacts, AdapterTensors]: ...


@runtime_checkable
class PagePool(Protocol):
    """Where pages are written to; `AdapterPool` is one."""

    @property
    def lost(self) -> bool:
        """Whether a write that failed took the memory of other pages with it."""

    def check(self, counts: Mapping[str, int], shapes: TensorShapes) -> None: ...
    def stage(self, counts: Mapping[str, int], tensors: AdapterTensors) -> StagedPages: ...
    def write(self, pages: AdapterPages, staged: StagedPages) -> None: ...


class AdapterReader:
    """Reads one adapter at a time on each of its caller's threads."""

    def __init__(
        self, source: AdapterSource, pool: PagePool, capacities: Mapping[str, int], base_digest: str, counters: Counters
    ) -> None:
        """`capacities` are the pool's; `base_digest` is what adapters must have been converted for."""
        self._source = source
        self._pool = pool
        self._usable = {module: capacity - spared(module) for module, capacity in capacities.items()}
        self._base_digest = base_digest
        self._counters = counters

    def read(self, digest: str) -> HostAdapter:
        """The adapter, ready to be written.

        Raises:
            ValueError: it is for another base model, or larger than the pool; its arrays were not read for that.
            Exception: whatever the source raises.
        """
        with self._counters.load(digest, "disk") as load:
            facts = self._source.manifest(digest)
            if facts.base_digest != self._base_digest:
                raise ValueError(f"it was converted for base {facts.base_digest}, and this one is {self._base_digest}")
            counts = placed(facts.pages, self._usable)
            if reason := shortage(counts, self._usable):
                raise ValueError(reason)
            self._pool.check(counts, facts.tensor_shapes)  # now: they say how much is fetched and held
            load.lap("manifest")
            facts, tensors = self._source.read(digest)
            load.lap("read")
            pages = self._pool.stage(counts, tensors)
            load.lap("stage")
            adapter = HostAdapter(counts, pages, load.seconds, facts.traits)
            load.nbytes = adapter.nbytes
            return adapter
