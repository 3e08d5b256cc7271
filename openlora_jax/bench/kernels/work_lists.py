"""Work lists as a step has them, without the padding: each tile's adapter, its pages anywhere in the pool."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from openlora_jax.bench.kernels.workload import Workload, distinct
from pallas_kernels.lora.api import WorkList

MOST_LISTS = 32
"""Of one mix. Each names other pages, until all of the pool's have had their turn."""


def pool_pages(workload: Workload, tiles: int) -> int:
    """Pages of a module's pool, the zero page included: those of a batch of distinct adapters, and no others."""
    return 1 + distinct_pages(workload, distinct(tiles))


def distinct_pages(workload: Workload, adapters: Sequence[int]) -> int:
    """Pages of a module that tiles with these adapters have together."""
    return sum(map(workload.pages, set(adapters)))


def work_lists(workload: Workload, adapters: Sequence[int], modules: int) -> list[WorkList]:
    """Lists for tiles with these adapters on so many modules: alike but for their pages."""
    pool = pool_pages(workload, len(adapters))
    generator = np.random.default_rng(0)
    number = min(MOST_LISTS, -(-(pool - 1) // distinct_pages(workload, adapters)))
    lists = [_work_list(workload, adapters, modules, pool, generator) for _ in range(number)]
    return [jax.tree.map(jnp.asarray, each) for each in lists]


def _work_list(
    workload: Workload, adapters: Sequence[int], modules: int, pool: int, generator: np.random.Generator
) -> WorkList:
    counts = [workload.pages(adapter) for adapter in adapters]
    tile = np.repeat(np.arange(len(adapters)), counts)
    page = np.stack([_pages(workload, adapters, 1 + generator.permutation(pool - 1)) for _ in range(modules)])
    return WorkList(
        start=np.tile(np.cumsum([0, *counts]), (modules, 1)).astype(np.int32),
        tile=np.tile(tile, (modules, 1)).astype(np.int32),
        page=page.astype(np.int32),
        scale=generator.uniform(0.5, 1.5, page.shape).astype(np.float32),
    )


def _pages(workload: Workload, adapters: Sequence[int], free: np.ndarray) -> np.ndarray:
    """The pages of the items of one module."""
    taken, of = 0, {}
    for adapter in sorted(set(adapters)):
        of[adapter] = free[taken : taken + workload.pages(adapter)]
        taken += workload.pages(adapter)
    return np.concatenate([of[adapter] for adapter in adapters])
