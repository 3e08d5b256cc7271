"""Which page of the pool belongs to whom: one free list per module and kind of page."""

from collections.abc import Mapping

from openlora_jax.adapters.modules import INT4, MODULES, SAVED, VECTORS, module_of
from openlora_jax.config import EngineConfig

AdapterPages = Mapping[str, tuple[int, ...]]
"""Pool -> its pages that one adapter has, in rank order; pools that it has nothing in are absent. See `POOLS`."""

ZERO_PAGE = 0
"""The page that stays all zeros and is never given away, in every pool but those of saved modules."""

CAPACITY_KEYS = {
    **{module: "wide_pool_pages" if module in ("embed_tokens", "lm_head") else "pool_pages" for module in MODULES},
    **dict.fromkeys(VECTORS, "vector_pages"),
    **dict.fromkeys(INT4, "int4_pages"),
    **dict.fromkeys(SAVED, "saved_pages"),
}
"""Pool -> the configuration key that sets how many pages it has."""


def spared(pool: str) -> int:
    """How many pages of a pool are never given away. None of a saved module, where one takes as much as a matrix."""
    return 0 if pool in SAVED else 1


def pool_capacities(config: EngineConfig) -> dict[str, int]:
    """The pages of every pool that has any, in the order of `POOLS`, the zero page included."""
    return {pool: count for pool, key in CAPACITY_KEYS.items() if (count := getattr(config, key))}


def placed(counts: Mapping[str, int], room: Mapping[str, int]) -> dict[str, int]:
    """The pages that an adapter takes, pool by pool: those in 4 bits become plain ones where there is no room."""
    plain = {pool for pool, count in counts.items() if pool in INT4 and count > room.get(pool, 0)}
    return {module_of(pool) if pool in plain else pool: count for pool, count in counts.items()}


def shortage(counts: Mapping[str, int], room: Mapping[str, int], *, several: bool = False) -> str | None:
    """The first pool of which more pages are needed than there is room for, as a reason to show; None if all fit.

    `several` adapters are not planned for: each has room alone.
    """
    for pool, count in counts.items():
        given = room.get(pool, 0)
        if count > given:
            key = CAPACITY_KEYS[pool]
            planned = "" if several else ", or leave it out and start again, which plans for the local store"
            return f"it needs {count} pages of {pool} and the pool can give {given}; raise {key}{planned}"
    return None


class PageAllocator:
    """The free pages of every module.

    The following conditions hold: a page is free or given away, never both; one that is spared is neither.
    Not thread-safe: its owner holds the lock.

    Attributes:
        usable: module name -> pages that can be given away at all.
    """

    def __init__(self, capacities: Mapping[str, int]) -> None:
        self.usable = {module: capacity - spared(module) for module, capacity in capacities.items()}
        self._free = {module: list(reversed(self.pages(module))) for module in capacities}

    def pages(self, module: str) -> range:
        """All that can be given away."""
        return range(spared(module), spared(module) + self.usable[module])

    def num_free(self, module: str) -> int:
        return len(self._free[module])

    def free_pages(self, module: str) -> frozenset[int]:
        return frozenset(self._free[module])

    def allocate(self, counts: Mapping[str, int]) -> AdapterPages | None:
        """Gives away `counts[module]` pages of every module named, or none of any and None if one has too few."""
        if any(count > len(self._free[module]) for module, count in counts.items()):
            return None
        return {module: tuple(self._free[module].pop() for _ in range(count)) for module, count in counts.items()}

    def release(self, pages: AdapterPages) -> None:
        """Takes back what `allocate` gave."""
        for module, ids in pages.items():
            self._free[module].extend(reversed(ids))

    def validate(self) -> None:
        """Raises RuntimeError if a page is free twice or was never the allocator's to give."""
        for module, free in self._free.items():
            if len(set(free)) != len(free):
                raise RuntimeError(f"{module}: a page is free twice: {sorted(free)}")
            if not set(free) <= set(self.pages(module)):
                raise RuntimeError(f"{module}: a free page is outside {self.pages(module)}: {sorted(free)}")
