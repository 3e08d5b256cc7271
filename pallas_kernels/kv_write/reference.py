"""The plain form, and the oracle of the others."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from pallas_kernels.kv_cache import KvCache, Stored, stored
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
    return put(kv, stored(kv, k, v), layer, block, place)


def put(
    kv: KvCache,
    new: Stored,
    layer: LayerIndex,
    block: Int[Array, "T L"],
    place: Int[Array, "T L"],
    unique: bool = False,
) -> KvCache:
    """One scatter for each array; what goes to no block of the cache is dropped. `unique`: no index comes twice."""
    how: dict[str, Any] = {"mode": "drop", "unique_indices": unique, "wrap_negative_indices": False}
    return KvCache(
        keys=kv.keys.at[layer, block, :, :, place].set(new.keys, **how),
        values=kv.values.at[layer, block, :, place].set(new.values, **how),
        scales=None if kv.scales is None else kv.scales.at[layer, block, :, :, place].set(new.scales, **how),
    )
