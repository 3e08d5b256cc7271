"""For XLA:CPU: the loop over the items, with pages in 4 bits.

A page is a seventh of one of float32, and the work is bound by memory; but only if its codes become numbers on the way,
in sums of equal shape, which XLA fuses, as it does no product. So x A^T of one row is written as sums over words, and
h B as a sum over ranks, 16 columns side by side. With more rows a page's numbers are made in the cache and multiplied.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32, Int

from pallas_kernels.int4_lora.api import WORDS, Int4Pages, unpacked
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList
from pallas_kernels.lora.xla import over_items

NIBBLES = range(4)


def int4_lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[Int4Pages, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
) -> Float[Array, "T L O"]:
    """y[t] += sum over items n of tile t: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]]."""
    parts, column = [], 0
    for pool, module in zip(pools, modules, strict=True):
        part = lax.slice_in_dim(y, column, column + pool.width_out, axis=2)
        shrink, expand = partial(_shrink, x, pool, layer), partial(_expand, pool, layer)
        parts.append(over_items(part, shrink, expand, work, module, pool.a_words.shape[1]))
        column += pool.width_out
    return jnp.concatenate(parts, axis=2)


def _shrink(
    x: Float[Array, "T L I"], pool: Int4Pages, layer: LayerIndex, tile: Int[Array, ""], page: Int[Array, ""]
) -> Float32[Array, "L R"]:
    rows = lax.dynamic_index_in_dim(x, tile, keepdims=False).astype(jnp.float32)
    words, scale = _page(pool.a_words, layer, page), _scales(pool.a_scale, layer, page)
    if len(rows) > 1:
        blocks = rows.reshape(len(rows), -1, 4, WORDS)
        numbers = _numbers(words, scale)
        return sum(
            (blocks[:, :, nibble].reshape(len(rows), -1) @ numbers[nibble].T for nibble in NIBBLES),
            jnp.zeros((len(rows), words.shape[0]), jnp.float32),
        )
    sums = jnp.zeros((words.shape[0], WORDS), jnp.float32)
    for block in range(words.shape[1] // WORDS):
        sliced = lax.slice_in_dim(words, block * WORDS, (block + 1) * WORDS, axis=1)
        for nibble in NIBBLES:
            column = 4 * WORDS * block + WORDS * nibble
            of_x = lax.slice_in_dim(rows[0], column, column + WORDS)
            group = 2 * block + nibble // 2
            sums += scale[:, group : group + 1] * (unpacked(sliced, nibble) * of_x[None, :])
    # Fused with the sum over lanes, XLA would compute all of the above one lane at a time.
    return jnp.sum(lax.optimization_barrier(sums), axis=1)[None]


def _expand(
    pool: Int4Pages, layer: LayerIndex, row: Float32[Array, "L O"], h: Float32[Array, "L R"], page: Int[Array, ""]
) -> Float32[Array, "L O"]:
    words, scale = _page(pool.b_words, layer, page), _scales(pool.b_scale, layer, page)
    if len(row) > 1:
        quarters = [h @ numbers for numbers in _numbers(words, scale)]
    else:
        weights = lax.optimization_barrier((h[0][:, None] * scale).T.reshape(-1, 2, len(scale)))
        quarters = [jnp.zeros((words.shape[1] // WORDS, WORDS), jnp.float32) for _ in NIBBLES]
        for rank in range(words.shape[0]):
            of_rank = lax.slice_in_dim(words, rank, rank + 1).reshape(-1, WORDS)
            for nibble in NIBBLES:
                weight = weights[:, nibble // 2, rank : rank + 1]
                quarters[nibble] += weight * unpacked(of_rank, nibble)
        quarters = list(lax.optimization_barrier(tuple(quarters)))
    joined = jnp.stack([quarter.reshape(len(row), -1, WORDS) for quarter in quarters], axis=2)
    return row + joined.reshape(row.shape)


def _page(part: Array, layer: LayerIndex, page: Int[Array, ""]) -> Array:
    return lax.dynamic_slice(part, (layer, page, 0, 0), (1, 1, *part.shape[2:])).reshape(part.shape[2:])


def _scales(part: Array, layer: LayerIndex, page: Int[Array, ""]) -> Float32[Array, "R G"]:
    scales: Array = lax.optimization_barrier(_page(part, layer, page).astype(jnp.float32))
    return scales


def _numbers(words: Array, scale: Float32[Array, "R G"]) -> tuple[Array, ...]:
    """Of each nibble's columns, `[ranks, words]`; in memory, so that no product makes them again."""
    blocks = words.reshape(len(words), -1, WORDS)
    pairs = scale.reshape(len(scale), -1, 2)
    made = [(pairs[:, :, nibble // 2, None] * unpacked(blocks, nibble)).reshape(words.shape) for nibble in NIBBLES]
    return tuple(lax.optimization_barrier(tuple(made)))
