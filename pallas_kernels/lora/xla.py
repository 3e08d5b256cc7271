"""For XLA:CPU: a loop over the items, as long as this step's list."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import PagePair, WorkList, scales_of


def lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[PagePair, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> Float[Array, "T L O"]:
    """y[t] += sum over items n of tile t: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]].

    Pages are sliced out of the stacked pool one at a time: gathering all of a step's pages, or multiplying by all
    pages and masking, was never faster and costs memory.
    """
    parts, column = [], 0
    for (a, b), module in zip(pools, modules, strict=True):
        part = lax.slice_in_dim(y, column, column + b.shape[3], axis=2)
        parts.append(_module(x, part, a, b, layer, work, module))
        column += b.shape[3]
    return jnp.concatenate(parts, axis=2)


def embedding_lora(
    tokens: Int[Array, "T L"],
    y: Float[Array, "T L O"],
    pool: PagePair,
    work: WorkList,
    module: int,
) -> Float[Array, "T L O"]:
    """The same with one-hot rows: their products with A are columns of it."""
    a, b = pool

    def shrink(tile: Array, page: Array) -> Array:
        columns: Array = a[0, page, :, tokens[tile]]
        return columns.astype(jnp.float32)

    return over_items(y, shrink, partial(_expand, b, jnp.int32(0)), work, module, a.shape[1])


def _module(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    a: Float[Array, "Y P R I"],
    b: Float[Array, "Y P R O"],
    layer: LayerIndex,
    work: WorkList,
    module: int,
) -> Float[Array, "T L O"]:
    def shrink(tile: Array, page: Array) -> Array:
        rows = lax.dynamic_index_in_dim(x, tile, keepdims=False).astype(jnp.float32)
        sliced = lax.dynamic_slice(a, (layer, page, 0, 0), (1, 1, *a.shape[2:]))
        h: Array = rows @ sliced.reshape(a.shape[2:]).astype(jnp.float32).T
        return h

    return over_items(y, shrink, partial(_expand, b, layer), work, module, a.shape[1])


def over_items(
    y: Float[Array, "T L O"],
    shrink: Callable[[Array, Array], Array],
    expand: Callable[[Array, Array, Array], Array],
    work: WorkList,
    module: int,
    capacity: int,
) -> Float[Array, "T L O"]:
    """A module's loop: `shrink(tile, page)` is x A^T of an item, `expand(row, h, page)` is row + h B."""
    start, tiles, pages, _ = map(jnp.asarray, work)
    scales = scales_of(work, module, capacity)

    def add_item(n: Array, y: Array) -> Array:
        tile, page = tiles[module, n], pages[module, n]
        row = lax.dynamic_index_in_dim(y, tile, keepdims=False)
        row = expand(row, shrink(tile, page) * scales[n], page)
        added: Array = lax.dynamic_update_index_in_dim(y, row, tile, axis=0)
        return added

    items = jnp.minimum(start[module, -1], len(scales))
    summed: Array = lax.fori_loop(jnp.int32(0), items, add_item, y.astype(jnp.float32))
    return summed.astype(y.dtype)


def _expand(
    b: Float[Array, "Y P R O"],
    layer: LayerIndex,
    row: Float[Array, "L O"],
    h: Float[Array, "L R"],
    page: Int[Array, ""],
) -> Float[Array, "L O"]:
    """Row + h B, rank by rank: that fuses into one pass over the page where it lies; a product copies it first."""
    for rank in range(b.shape[2]):
        b_row = lax.dynamic_slice(b, (layer, page, rank, 0), (1, 1, 1, b.shape[3])).reshape(1, -1)
        row = row + h[:, rank : rank + 1] * b_row.astype(jnp.float32)
    return row
