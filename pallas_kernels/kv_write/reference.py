"""The plain form, and the oracle of the others."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from pallas_kernels.kv_cache import KvCache
from pallas_kernels.layers import LayerIndex


def kv_write(
    kv: KvCache,
    k: Float[Array, "T L K E"],
    v: Float[Array, "T L K E"],
    layer: LayerIndex,
    table: Int[Array, "T C"],
    start: Int[Array, "T"],
    first: Int[Array, "T"],
    length: Int[Array, "T"],
) -> KvCache:
    """The cache with k[t, l] and v[t, l], first[t] <= l < length[t], at position start[t] + l of tile t."""
    column = jnp.arange(k.shape[1])[None, :]
    positions = start[:, None] + column
    block, place = jnp.take_along_axis(table, positions // kv.block_tokens, axis=1), positions % kv.block_tokens
    written = (column >= first[:, None]) & (column < length[:, None])
    block = jnp.where(written, block, kv.values.shape[1])  # past the cache's end, where a scatter drops it
    return KvCache(
        keys=kv.keys.at[layer, block, :, :, place].set(k.astype(kv.keys.dtype), mode="drop"),
        values=kv.values.at[layer, block, :, place].set(v.astype(kv.values.dtype), mode="drop"),
    )
