"""The adapters' work list of a step, from the pages of its tiles' mixes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from openlora_jax.adapters.modules import POOLS
from openlora_jax.engine.plan import Tile
from pallas_kernels.lora.api import WorkList


def work_list(tiles: Sequence[Tile], rows: int, capacity: int, pool_pages: Mapping[str, int]) -> WorkList:
    """The items of `tiles` in the order of `POOLS`, padded to `rows` tiles and `capacity` items a pool.

    `pool_pages` is the number of pages of each pool that has items.

    Raises:
        ValueError: some pool has more items than `capacity`, or an item names a page that is not in its pool.
    """
    work = WorkList(
        start=np.zeros((len(POOLS), rows + 1), np.int32),
        tile=np.zeros((len(POOLS), capacity), np.int32),
        page=np.zeros((len(POOLS), capacity), np.int32),
        scale=np.zeros((len(POOLS), capacity), np.float32),
    )
    for index, pool in enumerate(POOLS):
        items = list(_items(tiles, pool))
        if len(items) > capacity:
            raise ValueError(f"{len(items)} items of {pool} in one step, where work_items is {capacity}")
        if items:
            of_tile, pages, scales = zip(*items, strict=True)
            check_ids(f"page of {pool}", pages, pool_pages[pool])
            work.tile[index, : len(items)] = of_tile
            work.page[index, : len(items)] = pages
            work.scale[index, : len(items)] = scales
            work.start[index, 1:] = np.cumsum(np.bincount(of_tile, minlength=rows))
    return work


def check_ids(what: str, ids: Sequence[int], count: int) -> None:
    """That what a step names exists.

    Raises:
        ValueError: names one that does not, and how many there are.
    """
    outside = next((each for each in (min(ids), max(ids)) if not 0 <= each < count), None)
    if outside is not None:
        raise ValueError(f"{what} {outside} in one step, where there are {count}")


def _items(tiles: Sequence[Tile], pool: str) -> Iterable[tuple[int, int, float]]:
    for index, tile in enumerate(tiles):
        for pages, weight in tile.pages:
            for page in pages.get(pool, ()):
                yield index, page, weight
