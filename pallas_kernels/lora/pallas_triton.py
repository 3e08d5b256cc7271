"""For CUDA: one launch adds all items of all tiles to the outputs of the modules that share an input.

A program owns some rows of one tile and a span of one module's columns, so nothing is summed by two and no order depends
on timing. It takes the tile's items in passes of n pages each. Pages lie anywhere in the pool and are gathered into one
operand, so a pass is two products:

    h[L, 16 n]  = x[L, I] A[16 n, I]^T * scale      over blocks of I
    y[L, O]    += h[L, 16 n] B[16 n, O]             for each block of the program's span

Decode (L = 1) is the same code: tensor cores pad its one row, which costs fewer instructions than sums on plain cores.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Bool, Float, Int

from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora.api import PagePair, WorkList
from pallas_kernels.lora.config import PAGE_RANKS, Pass, lora_config
from pallas_kernels.lora.shapes import check_embedding_lora, check_lora
from pallas_kernels.triton_call import triton_call

Ref = Any


class _Items(NamedTuple):
    """The ranks of one pass, page by page; of those that are not live nothing is read."""

    page: Int[Array, "R"]
    rank: Int[Array, "R"]
    live: Bool[Array, "R"]
    scale: Float[Array, "R"]


class _Share(NamedTuple):
    """What a program owns: rows of a tile, and the columns `first..end` of a module that begins at `column` of y."""

    tile: Array
    rows: Int[Array, "L"]
    column: int
    first: Array
    end: Array


class _WorkRefs(NamedTuple):
    start: Ref
    page: Ref
    scale: Ref


Shrink = Callable[[_Items, int], Float[Array, "L R"]]
Expand = Callable[[Float[Array, "L R"], _Items, int], None]


def lora(
    x: Float[Array, "T L I"],
    y: Float[Array, "T L O"],
    pools: tuple[PagePair, ...],
    layer: LayerIndex,
    work: WorkList,
    modules: tuple[int, ...],
    *,
    interpret: bool = False,
) -> Float[Array, "T L O"]:
    """y[t] += sum over items n of tile t: scale[n] (x[t] A[layer, page[n]]^T) B[layer, page[n]].

    Written over y. Pages are read where they lie in the stacked pools. Accumulated in float32 for up to 256 ranks a
    tile; beyond, y is rounded to its dtype between passes. x A^T is rounded to the dtype of x. An item whose page is not
    in the pool adds nothing.

    Raises:
        ValueError: shapes or dtypes that the kernel does not serve.
    """
    check_lora(x, y, pools, work, modules)
    tiles, tokens, width_in = x.shape
    widths = tuple(b.shape[3] for _, b in pools)
    config = lora_config(tiles, tokens, width_in, widths, x.dtype.itemsize)
    spans = tuple(pl.cdiv(width, config.span) for width in widths)

    def lora_kernel(
        layer_ref: Ref, start_ref: Ref, page_ref: Ref, scale_ref: Ref, x_ref: Ref, _: Ref, *refs: Ref
    ) -> None:
        *pool_refs, y_ref = refs
        layer = layer_ref[0]
        rows = pl.program_id(2) * config.rows + jnp.arange(config.rows, dtype=jnp.int32)
        for place, module in enumerate(modules):
            a_ref, b_ref = pool_refs[2 * place : 2 * place + 2]
            span = pl.program_id(1) - sum(spans[:place])
            first = span * config.span
            share = _Share(
                pl.program_id(0), rows, sum(widths[:place]), first, jnp.minimum(first + config.span, widths[place])
            )
            shrink = functools.partial(_shrink, x_ref, a_ref, layer, share)
            expand = functools.partial(_expand, b_ref, y_ref, layer, share)
            add = functools.partial(
                _add_items,
                _WorkRefs(start_ref, page_ref, scale_ref),
                module,
                share.tile,
                b_ref.shape[1],
                config.passes,
                shrink,
                expand,
            )
            pl.when((span >= 0) & (span < spans[place]))(add)

    call = triton_call(
        lora_kernel,
        ShapeDtypeStruct(y.shape, y.dtype),
        grid=(tiles, sum(spans), tokens // config.rows),
        warps=config.warps,
        stages=config.stages,
        input_output_aliases={5: 0},
        interpret=interpret,
    )
    added: Array = call(jnp.full((1,), layer, jnp.int32), work.start, work.page, work.scale, x, y, *jax.tree.leaves(pools))
    return added


def _add_items(
    work: _WorkRefs, module: int, tile: Array, pages: int, passes: tuple[Pass, ...], shrink: Shrink, expand: Expand
) -> None:
    """All items of a tile: as many of the widest passes as it takes until a narrower one holds the rest."""
    item = jnp.maximum(work.start[module, tile], 0)
    end = jnp.minimum(work.start[module, tile + 1], work.page.shape[1])
    for each, narrower in zip(passes, (*(p.pages for p in passes[1:]), 0), strict=True):
        left = jnp.maximum(end - item - narrower, 0)
        count = lax.div(left + (each.pages - 1), jnp.int32(each.pages))

        def add_pass(turn: Array, _: None, each: Pass = each, item: Array = item) -> None:
            items = _items(work, module, item + turn * each.pages, end, each.pages, pages)
            expand(shrink(items, each.block) * items.scale[None, :], items, each.block)

        lax.fori_loop(jnp.int32(0), count, add_pass, None)
        item += count * each.pages


def _items(work: _WorkRefs, module: int, first: Array, end: Array, count: int, pages: int) -> _Items:
    rank = jnp.arange(count * PAGE_RANKS, dtype=jnp.int32)
    item = first + lax.div(rank, jnp.int32(PAGE_RANKS))
    listed = item < end
    page = plgpu.load(work.page.at[module, item], mask=listed, other=0)
    scale = plgpu.load(work.scale.at[module, item], mask=listed, other=0.0)
    live = listed & (page >= 0) & (page < pages)
    return _Items(page, lax.rem(rank, jnp.int32(PAGE_RANKS)), live, scale)


def _shrink(x_ref: Ref, a_ref: Ref, layer: Array, share: _Share, items: _Items, block: int) -> Float[Array, "L R"]:
    """H = x A^T."""
    width = x_ref.shape[2]

    def add_block(turn: Array, h: Array) -> Array:
        column = turn * block + jnp.arange(block, dtype=jnp.int32)
        inside = (column < width)[None, :]
        x = plgpu.load(x_ref.at[share.tile, share.rows[:, None], column[None, :]], mask=inside, other=0)
        a_at = a_ref.at[layer, items.page[:, None], items.rank[:, None], column[None, :]]
        a = plgpu.load(a_at, mask=items.live[:, None] & inside, other=0)
        return h + _dot(x, a.T)

    zeros = jnp.zeros((share.rows.shape[0], items.page.shape[0]), jnp.float32)
    h: Array = lax.fori_loop(jnp.int32(0), jnp.int32(pl.cdiv(width, block)), add_block, zeros)
    return h


def _expand(
    b_ref: Ref, y_ref: Ref, layer: Array, share: _Share, h: Float[Array, "L R"], items: _Items, block: int
) -> None:
    """Y += h B, for the share's columns."""
    h = h.astype(b_ref.dtype)

    def add_block(turn: Array, _: None) -> None:
        column = share.first + turn * block + jnp.arange(block, dtype=jnp.int32)
        inside = (column < share.end)[None, :]
        b_at = b_ref.at[layer, items.page[:, None], items.rank[:, None], column[None, :]]
        b = plgpu.load(b_at, mask=items.live[:, None] & inside, other=0)
        y_at = y_ref.at[share.tile, share.rows[:, None], share.column + column[None, :]]
        y = plgpu.load(y_at, mask=inside, other=0)
        plgpu.store(y_at, (y.astype(jnp.float32) + _dot(h, b)).astype(y.dtype), mask=inside)

    turns = lax.div(share.end - share.first + (block - 1), jnp.int32(block))
    lax.fori_loop(jnp.int32(0), turns, add_block, None)


def _dot(left: Array, right: Array) -> Array:
    """In float32: products of bfloat16 are exact in it, those of float32 would lose bits without being told not to."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT
    return jnp.dot(left, right, precision=precision, preferred_element_type=jnp.float32)
