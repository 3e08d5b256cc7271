"""NaN in every page that nobody owns: if a computation reads one, it shows. And writes that do not go well."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Array

from openlora_jax.adapters.pages import ZERO_PAGE, AdapterPages
from openlora_jax.adapters.pool import AdapterPool


def poison_free(pool: AdapterPool, owned: Iterable[AdapterPages], poisoned: AdapterPages | None = None) -> AdapterPages:
    """Fills all pages of `pool` with NaN but the zero page and those in `owned`, the idle residents' among them.

    Args:
        pool: on the thread that uses it.
        owned: by whom pages are held.
        poisoned: what an earlier call returned: those pages are filled already, as long as they stayed free.

    Returns:
        All the pages that belong to nobody.
    """
    kept, found = list(owned), {}
    for name, parts in pool.arrays.items():
        used = {ZERO_PAGE, *(page for pages in kept for page in pages.get(name, ()))}
        found[name] = tuple(page for page in range(parts[0].shape[1]) if page not in used)
        free = tuple(page for page in found[name] if page not in (poisoned or {}).get(name, ()))
        if not free:
            continue
        tensors = zip(pool._shapes[name].parts, parts, strict=True)
        nans = {tensor: np.full_like(part[:, : len(free)], np.nan) for tensor, part in tensors}
        pool.write({name: free}, pool.stage({name: len(free)}, nans))
    return found


def write_that_fails_when_it_runs(pool: tuple[Array, ...], *_: object) -> tuple[Array, ...]:
    """Is dispatched; whoever does anything with what it returns gets an error."""
    for part in pool:
        part.delete()
    return pool


def write_that_takes_the_pool_with_it(pool: tuple[Array, ...], *_: object) -> tuple[Array, ...]:
    """Fails at its dispatch, when it has its arguments' memory."""
    write_that_fails_when_it_runs(pool)
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
