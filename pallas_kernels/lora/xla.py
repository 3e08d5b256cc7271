"""For XLA:CPU: a loop over the items, as long as this step's list."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from pallas_kernels.lora.api import WorkList


def lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    a: Float[Array, "Y P R I"],
    b: Float[Array, "Y P R O"],
    layer: Int[Array, ""],
    work: WorkList,
) -> Float[Array, "T L O"]:
    """y[t] += sum over items n of tile t: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]].

    Pages are sliced out of the stacked pool one at a time: gathering all of a step's pages, or multiplying by all
    pages and masking, was never faster and costs memory.
    """

    def add_item(n: Array, y: Array) -> Array:
        tile, page = work.tile[n], work.page[n]
        rows = lax.dynamic_index_in_dim(x, tile, keepdims=False).astype(jnp.float32)
        h = rows @ _page(a, layer, page).T
        return _add_expanded(y, tile, h * work.scale[n], b, layer, page)

    return _over_items(y, add_item, work)


def embedding_lora(
    tokens: Int[Array, "T L"],
    y: Float[Array, "T L O"],
    a: Float[Array, "1 P R V"],
    b: Float[Array, "1 P R O"],
    work: WorkList,
) -> Float[Array, "T L O"]:
    """The same with one-hot rows: their products with A are columns of it."""

    def add_item(n: Array, y: Array) -> Array:
        tile, page = work.tile[n], work.page[n]
        h = a[0, page, :, tokens[tile]].astype(jnp.float32)
        return _add_expanded(y, tile, h * work.scale[n], b, jnp.int32(0), page)

    return _over_items(y, add_item, work)


def _page(pool: Float[Array, "Y P R W"], layer: Int[Array, ""], page: Int[Array, ""]) -> Float[Array, "R W"]:
    size = (1, 1, *pool.shape[2:])
    sliced: Array = lax.dynamic_slice(pool, (layer, page, 0, 0), size)
    rows: Array = sliced.reshape(size[2:]).astype(jnp.float32)
    return rows


def _add_expanded(
    y: Float[Array, "T L O"],
    tile: Int[Array, ""],
    h: Float[Array, "L R"],
    b: Float[Array, "Y P R O"],
    layer: Int[Array, ""],
    page: Int[Array, ""],
) -> Float[Array, "T L O"]:
    """y[tile] += h B, rank by rank: that fuses into one pass over the page where it lies; a product copies it first."""
    row = lax.dynamic_index_in_dim(y, tile, keepdims=False)
    for rank in range(b.shape[2]):
        b_row = lax.dynamic_slice(b, (layer, page, rank, 0), (1, 1, 1, b.shape[3])).reshape(1, -1)
        row = row + h[:, rank : rank + 1] * b_row.astype(jnp.float32)
    added: Array = lax.dynamic_update_index_in_dim(y, row, tile, axis=0)
    return added


def _over_items(
    y: Float[Array, "T L O"], add_item: Callable[[Array, Array], Array], work: WorkList
) -> Float[Array, "T L O"]:
    summed: Array = lax.fori_loop(jnp.int32(0), work.start[-1], add_item, y.astype(jnp.float32))
    return summed.astype(y.dtype)
