"""For CUDA: the kernel of plain pages, with pages in 4 bits, whose codes become numbers in registers.

A step of a loop takes some words of a pass' pages, and does a product with each of their four nibbles: the columns of a
nibble are 16 of every 64.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Bool, Float, Float32, Int

from pallas_kernels.int4_lora.api import WORDS, Int4Pages, unpacked
from pallas_kernels.int4_lora.config import int4_config
from pallas_kernels.int4_lora.shapes import check_int4_lora
from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import WorkList
from pallas_kernels.lora.config import Pass
from pallas_kernels.lora.item_loop import PageKind, Ranks, Share, added, grouped, over_columns, spans_of
from pallas_kernels.triton_call import dot

Ref = Any


class _Columns(NamedTuple):
    """The columns that one nibble of some words has, which are inside, and their numbers."""

    column: Int[Array, "W"]
    inside: Bool[Array, "1 W"]
    numbers: Float32[Array, "Q W"]


def int4_lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[Int4Pages, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
    *,
    interpret: bool = False,
) -> Float[Array, "T L O"]:
    """y[t] += sum over items n of tile t: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]].

    As `lora` of plain pages. Numbers are rounded to the dtype of x; a mix of more than 64 ranks rounds the sum after
    each 64.

    Raises:
        ValueError: shapes or dtypes that the kernel does not serve.
    """
    check_int4_lora(x, y, pools, layer, work, modules)
    tiles, tokens, width_in = x.shape
    widths = tuple(pool.width_out for pool in pools)
    config = int4_config(tiles, tokens, width_in, widths, x.dtype.itemsize)
    kernel = grouped(
        "int4_lora_kernel", config, widths, tokens, modules, PageKind(_shrink, _expand, arrays=2), interpret
    )
    operands = (jnp.full((1,), layer, jnp.int32), work.start, work.page, work.scale, x, *jax.tree.leaves(pools))
    return added(kernel, config, spans_of(config, widths), operands, y, interpret)


def _shrink(
    x_ref: Ref, words_ref: Ref, scale_ref: Ref, layer: Array, share: Share, ranks: Ranks, step: Pass
) -> Float[Array, "L Q"]:
    """H = x A^T."""
    width = x_ref.shape[2]

    def add_block(turn: Array, h: Array) -> Array:
        for column, inside, numbers in _loaded(words_ref, scale_ref, layer, ranks, turn * step.block, width, step):
            x = plgpu.load(x_ref.at[share.tile, share.rows[:, None], column[None, :]], mask=inside, other=0)
            h += dot(x, numbers.astype(x.dtype).T)
        return h

    zeros = jnp.zeros((share.rows.shape[0], ranks.page.shape[0]), jnp.float32)
    h: Array = lax.fori_loop(jnp.int32(0), jnp.int32(pl.cdiv(width, step.block)), add_block, zeros)
    return h


def _expand(
    words_ref: Ref,
    scale_ref: Ref,
    y_ref: Ref,
    layer: Array,
    share: Share,
    h: Float[Array, "L Q"],
    ranks: Ranks,
    step: Pass,
    written: Array | bool,
) -> None:
    """Y += h B, in the program's share of y; Y = h B as long as nothing is written there."""
    h = h.astype(y_ref.dtype)

    def add_block(turn: Array, _: None) -> None:
        first = share.first + turn * step.block
        for column, inside, numbers in _loaded(words_ref, scale_ref, layer, ranks, first, share.end, step):
            place = y_ref.at[share.tile, share.rows[:, None], share.column + column[None, :]]
            y = plgpu.load(place, mask=inside & written, other=0)
            sums = y.astype(jnp.float32) + dot(h, numbers.astype(h.dtype))
            plgpu.store(place, sums.astype(y.dtype), mask=inside)

    over_columns(share, step.block, add_block)


def _loaded(
    words_ref: Ref, scale_ref: Ref, layer: Array, ranks: Ranks, first: Array, end: Array | int, step: Pass
) -> Iterator[_Columns]:
    """`step.block` columns of a pass' pages from `first` on, which is a multiple of 64, as `end` is.

    Shifted, not divided, and compared unscaled: so Triton knows what lies side by side, and loads it together.
    """
    nth = jnp.arange(step.block // 4, dtype=jnp.int32)
    word = (first >> 2) + nth
    column = first + (4 * WORDS * lax.div(nth, jnp.int32(WORDS)) + lax.rem(nth, jnp.int32(WORDS)))
    inside = (nth < (end - first) >> 2)[None, :]
    mask = ranks.live[:, None] & inside
    at = (layer, ranks.page[:, None], ranks.rank[:, None])
    words = plgpu.load(words_ref.at[(*at, word[None, :])], mask=mask, other=0)
    blocks = lax.div(first, jnp.int32(4 * WORDS)) + jnp.arange(step.block // (4 * WORDS), dtype=jnp.int32)
    known = ranks.live[:, None] & (4 * WORDS * blocks < end)[None, :]
    for group in range(2):
        each = plgpu.load(scale_ref.at[(*at, 2 * blocks[None, :] + group)], mask=known, other=0).astype(jnp.float32)
        scale = jnp.broadcast_to(each[:, :, None], (*each.shape, WORDS)).reshape(words.shape)
        for nibble in (2 * group, 2 * group + 1):
            yield _Columns(column + WORDS * nibble, inside, scale * unpacked(words, nibble))
