"""What the registered adapters need of the pool, and how its memory is divided between the modules by that."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from sys import maxsize
from typing import Protocol, runtime_checkable

from openlora_jax.adapters.mixes import MAX_MIX
from openlora_jax.adapters.modules import INT4, MODULES, SAVED, VECTORS
from openlora_jax.adapters.pages import CAPACITY_KEYS, placed, spared
from openlora_jax.adapters.registry import Registration
from openlora_jax.errors import BadCheckpoint

Kind = tuple[tuple[str, int], ...]
"""The pools that an adapter has something in, and its pages of each."""

LINEAR = tuple(module for module in MODULES if CAPACITY_KEYS[module] == "pool_pages")

SPARE_PAGES = 16
"""Of every linear module, plain and in 4 bits, for adapters registered later: the largest rank takes so many."""

SPARE = dict.fromkeys((*LINEAR, *INT4), SPARE_PAGES) | dict.fromkeys(VECTORS, MAX_MIX)
"""Pool -> spare pages, where there is such a pool at all: with one for the only adapter that has some, a mix of two
would find no place, and adapters that are rarely asked for would displace each other while all else is free."""

FINENESS = 16
"""In steps of what fraction of an adapter the pool grows."""


@runtime_checkable
class Manifest(Protocol):
    @property
    def base_digest(self) -> str: ...
    @property
    def pages(self) -> Mapping[str, int]: ...


@runtime_checkable
class Registered(Protocol):
    """Where adapters are registered; `AdapterStore` is one."""

    def registrations(self) -> Mapping[str, Registration]: ...
    def manifest(self, digest: str) -> Manifest: ...


@dataclass(frozen=True, slots=True)
class Demand:
    """The adapters that may be asked for.

    Attributes:
        kinds: of adapters -> how much they count: one for each, and one for each request for it that was observed.
        saved: pool of saved modules -> the pages that these adapters have in it, each counted once. More are of no use.
    """

    kinds: Mapping[Kind, int]
    saved: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Registered, base_digest: str, uses: Mapping[str, int]) -> "Demand":
        """What is registered for a base model, without what is damaged; `uses` are observed requests by digest.

        Raises:
            BadCheckpoint: the registry is damaged.
        """
        kinds: Counter[Kind] = Counter()
        saved: Counter[str] = Counter()
        for digest in {registration.digest for registration in store.registrations().values()}:
            try:
                manifest = store.manifest(digest)
            except BadCheckpoint:
                continue
            if manifest.base_digest == base_digest:
                kinds[tuple(manifest.pages.items())] += 1 + uses.get(digest, 0)
                saved.update({pool: count for pool, count in manifest.pages.items() if pool in SAVED})
        return cls(kinds, saved) if kinds else UNKNOWN

    def placed(self, room: Mapping[str, int]) -> "Demand":
        """The same where pools can have `room` pages: what is in 4 bits may have to become numbers."""
        kinds: Counter[Kind] = Counter()
        for kind, count in self.kinds.items():
            kinds[tuple(placed(dict(kind), room).items())] += count
        return replace(self, kinds=kinds)

    @property
    def without_saved(self) -> "Demand":
        """The same where there is no room for saved modules."""
        kinds: Counter[Kind] = Counter()
        for kind, count in self.kinds.items():
            kinds[tuple((pool, each) for pool, each in kind if pool not in SAVED)] += count
        return Demand(kinds)

    @property
    def pages(self) -> Counter[str]:
        """Pool -> the pages of all of them together."""
        pages: Counter[str] = Counter()
        for kind, count in self.kinds.items():
            pages.update({module: each * count for module, each in kind})
        return pages

    def fit(self, pages: Mapping[str, int]) -> int:
        """How many of them pools of so many pages hold at once, on average."""
        number = sum(self.kinds.values())
        usable = {pool: count - spared(pool) for pool, count in pages.items()}
        return min((usable.get(pool, 0) * number // wanted for pool, wanted in self.pages.items()), default=0)


NONE = Demand({})
"""No adapter can be asked for."""

UNKNOWN = Demand({tuple((module, 1) for module in LINEAR): 1})
"""Nothing is registered so far: plans for adapters of one page of every linear module."""


def pool_bytes(pages: Mapping[str, int], page_bytes: Mapping[str, int]) -> int:
    return sum(count * page_bytes[module] for module, count in pages.items())


def least_pages(demand: Demand, page_bytes: Mapping[str, int], fixed: Mapping[str, int], room: int) -> dict[str, int]:
    """Module -> pages with which each registered adapter fits alone, the zero page included.

    Where they take more than `room` bytes, the largest adapters are left out. `fixed` modules have what they have.
    """
    pages = {module: fixed.get(module, spared(module)) for module in page_bytes}
    for kind in sorted(demand.kinds, key=lambda kind: (pool_bytes(dict(kind), page_bytes), kind)):
        needed = {module: spared(module) + count for module, count in kind if module not in fixed}
        larger = pages | {module: max(pages[module], count) for module, count in needed.items()}
        if pool_bytes(larger, page_bytes) > room:
            break
        pages = larger
    return pages


def divide(demand: Demand, page_bytes: Mapping[str, int], fixed: Mapping[str, int], room: int) -> dict[str, int]:
    """Module -> pages, the zero page included, that together take no more than `room` bytes, if zero pages do.

    First every registered adapter fits alone, then what `SPARE` says; the rest goes by how many pages of each module a
    registered adapter has on average. A module that none has keeps what it got before. Saved modules get no more than
    the registered adapters have.
    """
    if not demand.kinds:
        return {module: fixed.get(module, spared(module)) for module in page_bytes}
    least = least_pages(demand, page_bytes, fixed, room)
    free = [module for module in page_bytes if module not in fixed]
    weight = FINENESS * sum(demand.kinds.values())
    wanted = demand.pages
    useful = {module: demand.saved.get(module, 0) if module in SAVED else maxsize for module in free}

    def with_spare(spare: int) -> dict[str, int]:
        return least | {pool: max(least[pool], 1 + min(spare, SPARE[pool])) for pool in free if pool in SPARE}

    def with_adapters(number: int) -> dict[str, int]:
        shares = {module: steady(min(number * wanted[module] // weight, useful[module])) for module in free}
        return roomy | {module: max(roomy[module], spared(module) + share) for module, share in shares.items()}

    def fits(pages: dict[str, int]) -> bool:
        return pool_bytes(pages, page_bytes) <= room

    roomy = with_spare(_largest(lambda spare: fits(with_spare(spare)), SPARE_PAGES))
    most = weight * (room // min(page_bytes.values()) + 1) if any(wanted[module] for module in free) else 0
    return with_adapters(_largest(lambda number: fits(with_adapters(number)), most))


def steady(count: int) -> int:
    """A number not above this one, of five binary digits and zeros: small changes of what is registered leave it.

    Programs are compiled for the sizes of pool and KV cache, and need not be again at a start with the same sizes.
    """
    zeros = max(0, count.bit_length() - 5)
    return count >> zeros << zeros


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number from 0 to `most` for which it holds, which it does up to some number and not beyond, or 0."""
    return max(0, bisect_right(range(most + 1), False, key=lambda number: not holds(number)) - 1)
