"""For XLA, in place: slice updates for a CPU, a scatter for a GPU."""

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
    first: Int[Array, "T"],
    length: Int[Array, "T"],
) -> KvCache:
    """A slice update for each tile. A CPU would go through a scatter element by element."""
    column = jnp.arange(k.shape[1], dtype=jnp.int32)
    blocks = jnp.take_along_axis(table, (start // kv.block_tokens)[:, None], axis=1)[:, 0]
    places = start % kv.block_tokens
    new_keys = k.transpose(0, 2, 3, 1).astype(kv.keys.dtype)[:, None, None]
    new_values = v.transpose(0, 2, 1, 3).astype(kv.values.dtype)[:, None, None]
    keys, values = kv
    for tile in range(k.shape[0]):
        key_place, value_place = (layer, blocks[tile], 0, 0, places[tile]), (layer, blocks[tile], 0, places[tile], 0)
        key, value = new_keys[tile], new_values[tile]
        if k.shape[1] > 1:
            own = (column >= first[tile]) & (column < length[tile])
            old_key, old_value = (
                lax.dynamic_slice(cached, place, new.shape)
                for cached, place, new in ((keys, key_place, key), (values, value_place, value))
            )
            key = jnp.where(own.reshape(1, 1, 1, 1, -1), key, old_key)
            value = jnp.where(own.reshape(1, 1, 1, -1, 1), value, old_value)
        keys = lax.dynamic_update_slice(keys, key, key_place)
        values = lax.dynamic_update_slice(values, value, value_place)
    return KvCache(keys, values)


def kv_write_scatter(
    kv: KvCache,
    k: Float[Array, "T L K E"],
    v: Float[Array, "T L K E"],
    layer: LayerIndex,
    table: Int[Array, "T C"],
    start: Int[Array, "T"],
    first: Int[Array, "T"],
    length: Int[Array, "T"],
) -> KvCache:
    """A scatter each for keys and values: two launches, with what computes k and v fused into them.

    Were an index to come twice, a GPU would have to scatter 16-bit floats by compare-and-swap. Only those of what is
    not to be written do, such as padding in block 0: they move past the cache's end, each tile's to a block of its own,
    and are dropped there.
    """
    tiles, tokens = k.shape[:2]
    column = jnp.arange(tokens, dtype=jnp.int32)[None, :]
    positions = start[:, None] + column
    block, place = jnp.take_along_axis(table, positions // kv.block_tokens, axis=1), positions % kv.block_tokens
    past_end = kv.values.shape[1] + jnp.arange(tiles, dtype=jnp.int32)[:, None]
    written = (column >= first[:, None]) & (column < length[:, None])
    block = jnp.where(written, block, past_end)
    keys, values = kv.keys.at[layer, block, :, :, place], kv.values.at[layer, block, :, place]
    return KvCache(
        keys=keys.set(k.astype(kv.keys.dtype), mode="drop", unique_indices=True),
        values=values.set(v.astype(kv.values.dtype), mode="drop", unique_indices=True),
    )
