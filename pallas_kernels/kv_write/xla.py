"""For XLA:CPU: one slice update a tile, which it does in place; a scatter would walk element by element."""

import jax.numpy as jnp
from jax import Array, lax
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
) -> KvCache:
    """The cache with k[t, l] and v[t, l] at position start[t] + l of tile t."""
    blocks = jnp.take_along_axis(table, (start // kv.block_tokens)[:, None], axis=1)[:, 0]
    places = start % kv.block_tokens
    new_keys = k.transpose(0, 2, 3, 1).astype(kv.keys.dtype)[:, None, None]
    new_values = v.transpose(0, 2, 1, 3).astype(kv.values.dtype)[:, None, None]
    keys, values = kv
    for tile in range(k.shape[0]):
        keys = lax.dynamic_update_slice(keys, new_keys[tile], (layer, blocks[tile], 0, 0, places[tile]))
        values = lax.dynamic_update_slice(values, new_values[tile], (layer, blocks[tile], 0, places[tile], 0))
    return KvCache(keys, values)
