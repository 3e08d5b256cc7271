"""The work list, and what every implementation of the ops promises."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from pallas_kernels.layers import LayerIndex

PagePair = tuple[Float[Array, "Y _ R I"], Float[Array, "Y _ R _"]]
"""One module's pool: A and B of all its pages. Modules differ in their pages and in their width out."""


class WorkList(NamedTuple):
    """The LoRA work of a step, module by module: (page, scale) items sorted by tile. On the host as packed.

    These hold for each module: `start` ascends from 0; `start[T] <= N`; `tile[n]` is the t with
    `start[t] <= n < start[t + 1]`; entries of the other fields from `start[T]` on are never read; every page lies in
    its pool.

    Attributes:
        start: where each tile's items begin.
        tile: each item's tile.
        page: each item's rank page.
        scale: what each item's product is multiplied by: the adapter's weight in the tile's mix.
    """

    start: Int[Array | np.ndarray, "M F"]
    tile: Int[Array | np.ndarray, "M N"]
    page: Int[Array | np.ndarray, "M N"]
    scale: Float[Array | np.ndarray, "M N"]


def scales_of(work: WorkList, module: int, pages: int) -> Float[Array, "N"]:
    """Each item's scale; 0 for a page that is not in a pool of `pages`, where XLA reads another one, of anybody's."""
    page, scale = (jnp.asarray(field)[module] for field in (work.page, work.scale))
    return jnp.where((page >= 0) & (page < pages), scale, 0)


@runtime_checkable
class Lora(Protocol):
    """y[t] += sum over items n of tile t, in list order: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]].

    Modules that read the same x are one call: their outputs lie side by side in y, `pools` are theirs in that order,
    and the items of `pools[i]` are row `modules[i]` of the list. Accumulated in float32. A tile without items is
    returned as it came.
    """

    def __call__(
        self,
        x: Float[Array, "T L I"],
        y: Float[Array, "T L O"],
        pools: tuple[PagePair, ...],
        layer: LayerIndex,
        work: WorkList,
        modules: tuple[int, ...],
    ) -> Float[Array, "T L O"]: ...


@runtime_checkable
class EmbeddingLora(Protocol):
    """The same for an embedding: x[t] is one-hot, given as token ids; A's columns are looked up."""

    def __call__(
        self,
        tokens: Int[Array, "T L"],
        y: Float[Array, "T L O"],
        pool: PagePair,
        work: WorkList,
        module: int,
    ) -> Float[Array, "T L O"]: ...
