"""The plain form, and the oracle of the others: every item's product, summed by tile."""

import jax
import jax.numpy as jnp
from jax import Array
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
    """y[t] += sum over items n of tile t: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]]."""
    a_items, b_items = a[layer, work.page].astype(jnp.float32), b[layer, work.page].astype(jnp.float32)
    h = jnp.einsum("nli,nri->nlr", x[work.tile].astype(jnp.float32), a_items)
    return _add_by_tile(y, h, b_items, work)


def embedding_lora(
    tokens: Int[Array, "T L"],
    y: Float[Array, "T L O"],
    a: Float[Array, "1 P R V"],
    b: Float[Array, "1 P R O"],
    work: WorkList,
) -> Float[Array, "T L O"]:
    """The same with one-hot rows: h[n, l, r] = A[page[n], r, token]."""
    a_items, b_items = a[0, work.page].astype(jnp.float32), b[0, work.page].astype(jnp.float32)
    h = jax.vmap(lambda columns, ids: columns[:, ids].T)(a_items, tokens[work.tile])
    return _add_by_tile(y, h, b_items, work)


def _add_by_tile(
    y: Float[Array, "T L O"], h: Float[Array, "N L R"], b: Float[Array, "N R O"], work: WorkList
) -> Float[Array, "T L O"]:
    live = jnp.arange(work.page.shape[0]) < work.start[-1]
    products = jnp.einsum("nlr,nro->nlo", h * work.scale[:, None, None], b)
    # Not a product with zero: entries past the end may point at pages whose content means nothing.
    products = jnp.where(live[:, None, None], products, 0)
    summed = jax.ops.segment_sum(products, jnp.where(live, work.tile, y.shape[0]), num_segments=y.shape[0] + 1)
    return (y.astype(jnp.float32) + summed[:-1]).astype(y.dtype)
