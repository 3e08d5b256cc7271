"""For XLA, in place: slice updates for a CPU, a scatter for a GPU."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from pallas_kernels.kv_cache import KvCache, stored
from pallas_kernels.kv_write.reference import put
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
    new = stored(kv, k, v)
    rows = [new.keys.transpose(0, 2, 3, 1)[:, None, None], new.values.transpose(0, 2, 1, 3)[:, None, None]]
    cache, axes = [kv.keys, kv.values], [4, 3]
    if kv.scales is not None and new.scales is not None:
        rows.append(new.scales.transpose(0, 2, 3, 1)[:, None, None])
        cache, axes = [*cache, kv.scales], [*axes, 4]

    def update(cache: list[Array], rows: list[Array], block: Array, place: Array) -> list[Array]:
        starts = [[layer, block, *(place if each == axis else 0 for each in range(2, 5))] for axis in axes]
        return list(map(lax.dynamic_update_slice, cache, rows, starts))

    for tile in range(k.shape[0]):
        cache = update(cache, [row[tile] for row in rows], whole[tile], places[tile])
    if k.shape[1] == 1:
        return KvCache(*cache)

    def write_columns(tile: Array, cache: list[Array]) -> list[Array]:
        def write_column(column: Array, cache: list[Array]) -> list[Array]:
            columns = [
                lax.dynamic_slice_in_dim(row[tile], column, 1, axis) for row, axis in zip(rows, axes, strict=True)
            ]
            return update(cache, columns, blocks[tile], places[tile] + column)

        end = jnp.where(first[tile] > 0, length[tile], first[tile])
        written: list[Array] = lax.fori_loop(first[tile], end, write_column, cache)
        return written

    return KvCache(*lax.fori_loop(jnp.int32(0), jnp.int32(k.shape[0]), write_columns, cache))


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
    """A scatter each for keys, values and the scales of codes, with what computes k and v fused into them.

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
    return put(kv, stored(kv, k, v), layer, block, place, unique=True)
