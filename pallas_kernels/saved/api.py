"""What every implementation of the ops promises."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from pallas_kernels.lora.api import WorkList

SavedPages = Float[Array, "1 _ V D"]
"""The pool of one module, as wide as the vocabulary: a page is a whole matrix, as Hugging Face stores it."""

NONE = -1
"""The page of a tile without an item."""


@runtime_checkable
class SavedLinear(Protocol):
    """y[t] = x[t] pool[0, page[n]]^T for the item n of tile t; a tile without an item is returned as it came.

    The items are row `module` of the list, at most one a tile, whose scale says nothing: what is saved takes the place
    of what the base has, whole. Summed in float32.
    """

    def __call__(
        self, x: Float[Array, "T L D"], y: Float[Array, "T L V"], pool: SavedPages, work: WorkList, module: int
    ) -> Float[Array, "T L V"]: ...


@runtime_checkable
class SavedEmbedding(Protocol):
    """The same for an embedding: x[t] is one-hot, given as token ids, so y[t] is rows of the page."""

    def __call__(
        self, tokens: Int[Array, "T L"], y: Float[Array, "T L D"], pool: SavedPages, work: WorkList, module: int
    ) -> Float[Array, "T L D"]: ...


def pages_of_tiles(work: WorkList, module: int, pages: int) -> Int[Array, "T"]:
    """The page of each tile's item, or `NONE`; also for an item or a page that is not there, of a pool of `pages`."""
    start, page = jnp.asarray(work.start)[module], jnp.asarray(work.page)[module]
    first, end = start[:-1], jnp.minimum(start[1:], page.shape[0])
    found = page[jnp.clip(first, 0, page.shape[0] - 1)]
    return jnp.where((first >= 0) & (first < end) & (found >= 0) & (found < pages), found, NONE)
