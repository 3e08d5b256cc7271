"""The LoRA work list of a step, from the pages of its tiles' mixes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from openlora_jax.adapters.modules import MODULES
from openlora_jax.arrays import AnyArray
from openlora_jax.engine.plan import Tile
from pallas_kernels.lora.api import WorkList


class PackedWork(NamedTuple):
    """The work lists of all modules in the order of `MODULES`, in four arrays instead of four a module."""

    start: Int32[AnyArray, "M F"]
    tile: Int32[AnyArray, "M N"]
    page: Int32[AnyArray, "M N"]
    scale: Float32[AnyArray, "M N"]

    @classmethod
    def pack(cls, tiles: Sequence[Tile], rows: int, capacity: int) -> "PackedWork":
        """The lists of `tiles`, padded to `rows` tiles and `capacity` items.

        Raises:
            ValueError: some module has more items than `capacity`.
        """
        work = cls(
            start=np.zeros((len(MODULES), rows + 1), np.int32),
            tile=np.zeros((len(MODULES), capacity), np.int32),
            page=np.zeros((len(MODULES), capacity), np.int32),
            scale=np.zeros((len(MODULES), capacity), np.float32),
        )
        for index, module in enumerate(MODULES):
            items = list(_items(tiles, module))
            if len(items) > capacity:
                raise ValueError(f"{len(items)} items of {module} in one step, where work_items is {capacity}")
            if items:
                of_tile, pages, scales = zip(*items, strict=True)
                work.tile[index, : len(items)] = of_tile
                work.page[index, : len(items)] = pages
                work.scale[index, : len(items)] = scales
                work.start[index, 1:] = np.cumsum(np.bincount(of_tile, minlength=rows))
        return work

    def lists(self) -> dict[str, WorkList]:
        """Each module's list, inside a step."""
        return {
            module: WorkList(self.start[index], self.tile[index], self.page[index], self.scale[index])
            for index, module in enumerate(MODULES)
        }


def _items(tiles: Sequence[Tile], module: str) -> Iterable[tuple[int, int, float]]:
    for index, tile in enumerate(tiles):
        for pages, weight in tile.pages:
            for page in pages.get(module, ()):
                yield index, page, weight
