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
    """A slice update for each tile. A CPU would go through a scatter element by element.

    A tile that begins in the middle of its columns is written column by column, and its slice goes to block 0, which is
    nobody's: keeping what is there would be a read of the cache, for which XLA copies all of it. Columns past a tile's
    end are written too: who has them comes later.
    """
    blocks = jnp.take_along_axis(table, (start // kv.block_tokens)[:, None], axis=1)[:, 0]
    whole = jnp.where(first > 0, 0, blocks)
    places = start % kv.block_tokens
    new_keys = k.transpose(0, 2, 3, 1).astype(kv.keys.dtype)[:, None, None]
    new_values = v.transpose(0, 2, 1, 3).astype(kv.values.dtype)[:, None, None]
    keys, values = kv
    for tile in range(k.shape[0]):
        keys = lax.dynamic_update_slice(keys, new_keys[tile], (layer, whole[tile], 0, 0, places[tile]))
        values = lax.dynamic_update_slice(values, new_values[tile], (layer, whole[tile], 0, places[tile], 0))
    if k.shape[1] == 1:
        return KvCache(keys, values)

    def write_columns(tile: Array, cache: tuple[Array, Array]) -> tuple[Array, Array]:
        def write_column(column: Array, cache: tuple[Array, Array]) -> tuple[Array, Array]:
            keys, values = cache
            key = lax.dynamic_slice_in_dim(new_keys[tile], column, 1, axis=4)
            value = lax.dynamic_slice_in_dim(new_values[tile], column, 1, axis=3)
            place = places[tile] + column
            return (
                lax.dynamic_update_slice(keys, key, (layer, blocks[tile], 0, 0, place)),
                lax.dynamic_update_slice(values, value, (layer, blocks[tile], 0, place, 0)),
            )

        end = jnp.where(first[tile] > 0, length[tile], first[tile])
        written: tuple[Array, Array] = lax.fori_loop(first[tile], end, write_column, cache)
        return written

    return KvCache(*lax.fori_loop(jnp.int32(0), jnp.int32(k.shape[0]), write_columns, (keys, values)))


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
