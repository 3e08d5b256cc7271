"""The plain form, and the oracle of the others: every item's product, summed by tile."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import PagePair, WorkList


def lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[PagePair, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> Float[Array, "T L O"]:
    """y[t] += sum over items n of tile t: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]]."""
    sums = []
    for (a, b), module in zip(pools, modules, strict=True):
        tile, page = jnp.asarray(work.tile)[module], jnp.asarray(work.page)[module]
        a_items, b_items = a[layer, page].astype(jnp.float32), b[layer, page].astype(jnp.float32)
        h = jnp.einsum("nli,nri->nlr", x[tile].astype(jnp.float32), a_items)
        sums.append(_sum_by_tile(h, b_items, work, module, a.shape[1]))
    return (y.astype(jnp.float32) + jnp.concatenate(sums, axis=-1)).astype(y.dtype)


def embedding_lora(
    tokens: Int[Array, "T L"],
    y: Float[Array, "T L O"],
    pool: PagePair,
    work: WorkList,
    module: int,
) -> Float[Array, "T L O"]:
    """The same with one-hot rows: h[n, l, r] = A[page[n], r, token]."""
    tile, page = jnp.asarray(work.tile)[module], jnp.asarray(work.page)[module]
    a_items, b_items = (part[0, page].astype(jnp.float32) for part in pool)
    h = jax.vmap(lambda columns, ids: columns[:, ids].T)(a_items, tokens[tile])
    return (y.astype(jnp.float32) + _sum_by_tile(h, b_items, work, module, pool[0].shape[1])).astype(y.dtype)


def _sum_by_tile(
    h: Float[Array, "N L R"], b: Float[Array, "N R O"], work: WorkList, module: int, pages: int
) -> Float[Array, "T L O"]:
    start, tile, page, scale = (jnp.asarray(field)[module] for field in work)
    tiles = start.shape[0] - 1
    live = (jnp.arange(tile.shape[0]) < start[-1]) & (page >= 0) & (page < pages)
    products = jnp.einsum("nlr,nro->nlo", h * scale[:, None, None], b)
    # Not a product with zero: entries past the end may point at pages whose content means nothing.
    products = jnp.where(live[:, None, None], products, 0)
    return jax.ops.segment_sum(products, jnp.where(live, tile, tiles), num_segments=tiles + 1)[:-1]
