"""Decode for CUDA by Mosaic, Pallas' other backend for GPUs: one launch for the modules that share an input.

A program owns one row and a span of one module's columns, and takes the row's items in passes. Of each page of a pass
it first computes h[R] = x A^T * scale, into shared memory; then, block by block of its span, the sum of all h B. It
multiplies on plain cores: a row is too little for `wgmma` and `tcgen05`, which each generation has of its own, and
memory is what bounds it. Nothing is read twice, so pages go from where they lie straight into registers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Bool, Float, Int

from pallas_kernels.layers import LayerIndex
from pallas_kernels.lora import pallas_triton
from pallas_kernels.lora.api import PagePair, WorkList
from pallas_kernels.lora.config import columns_of_step, mosaic_spans
from pallas_kernels.lora.shapes import PAGE_RANKS, STEP_COLUMNS, check_columns, check_lora
from pallas_kernels.mosaic_call import Layout, Ref, load, mosaic_call

PASS_ITEMS = 16
"""As many as the Triton kernel adds up before it rounds."""

_TILE = (PAGE_RANKS, STEP_COLUMNS)
RANKS_APART = plgpu.Layout.TILED(
    plgpu.Tiling((_TILE, (PAGE_RANKS // 4, STEP_COLUMNS), (2,))), warp_dims=(-5,), lane_dims=(-2,), vector_dim=-1
)
"""Of a page, to sum over columns: each of four warps holds four ranks, and a thread two columns of each of them."""
COLUMNS_APART = plgpu.Layout.TILED(
    plgpu.Tiling((_TILE, (PAGE_RANKS, STEP_COLUMNS // 4), (4, STEP_COLUMNS // 4), (2,))),
    warp_dims=(-6,),
    lane_dims=(-3, -2),
    vector_dim=-1,
)
"""To sum over ranks: each warp holds 16 columns, and a thread two of them, of every fourth rank."""


class _Share(NamedTuple):
    """What a program works with, by reference.

    Attributes:
        x: "I", its row.
        a: "P R I", its module's pages of the layer.
        b: "P R O", likewise.
        added: "O", its row of the module's output.
        page: "N", of its module's items.
        scale: "N", likewise.
        products: "N R" of a pass, in shared memory.
        first: where its columns begin.
        end: where they end.
    """

    x: Ref
    a: Ref
    b: Ref
    added: Ref
    page: Ref
    scale: Ref
    products: Ref
    first: Array
    end: Array


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

    Tiles of more than one row are left to the Triton kernel. Summed in float32, apart, and added to y by XLA; a mix of
    more than 256 ranks rounds the sum after each 256. An item whose page is not in the pool adds nothing.

    Raises:
        ValueError: shapes or dtypes that the kernel does not serve.
    """
    if x.shape[1] > 1:
        return pallas_triton.lora(x, y, pools, layer, work, modules)
    check_lora(x, y, pools, layer, work, modules)
    tiles, _, width_in = x.shape
    widths = tuple(b.shape[3] for _, b in pools)
    check_columns(width_in, *widths)
    spans = mosaic_spans(tiles, width_in, widths, x.dtype.itemsize)
    programs = tuple(pl.cdiv(width, span) for width, span in zip(widths, spans, strict=True))

    def lora_mosaic_kernel(
        layer_ref: Ref, start_ref: Ref, page_ref: Ref, scale_ref: Ref, x_ref: Ref, *refs: Ref
    ) -> None:
        *pool_refs, added_ref, products_ref = refs
        layer, tile = layer_ref[0], lax.axis_index("tile")
        for place, module in enumerate(modules):
            nth = lax.axis_index("share") - sum(programs[:place])
            share = _Share(
                x=x_ref.at[tile, 0],
                a=pool_refs[2 * place].at[layer],
                b=pool_refs[2 * place + 1].at[layer],
                added=added_ref.at[tile, 0, pl.ds(sum(widths[:place]), widths[place])],
                page=page_ref.at[module],
                scale=scale_ref.at[module],
                products=products_ref,
                first=nth * spans[place],
                end=jnp.minimum((nth + 1) * spans[place], widths[place]),
            )
            mine = (nth >= 0) & (nth < programs[place])
            pl.when(mine)(functools.partial(_add_items, share, start_ref.at[module, pl.ds(tile, 2)]))

    launch = mosaic_call(
        lora_mosaic_kernel,
        ShapeDtypeStruct(y.shape, y.dtype),
        grid={"tile": tiles, "share": sum(programs)},
        scratch=(plgpu.SMEM((PASS_ITEMS, PAGE_RANKS), jnp.float32),),
        interpret=interpret,
    )
    # The layer is data, not part of the kernel: so all layers of a model are one kernel, compiled once.
    operands = (jnp.full((1,), layer, jnp.int32), work.start, work.page, work.scale, x, *jax.tree.leaves(pools))
    return y + launch(*map(jnp.asarray, operands))


def _add_items(share: _Share, start: Ref) -> None:
    """All items of the row; what is there before is not read."""
    item, end = jnp.maximum(start[0], 0), jnp.minimum(start[1], share.page.shape[0])

    def add_pass(turn: Array, _: None) -> None:
        first = item + turn * PASS_ITEMS
        count = jnp.minimum(end - first, PASS_ITEMS)
        _shrink(share, first, count)
        _expand(share, first, count, turn > 0)

    turns = jnp.maximum(lax.div(end - item + (PASS_ITEMS - 1), jnp.int32(PASS_ITEMS)), 1)
    lax.fori_loop(jnp.int32(0), turns, add_pass, None)


def _shrink(share: _Share, first: Array, count: Array) -> None:
    """products[n] = x A^T * scale, of so many items; 0 of one whose page is not in the pool."""
    width = share.x.shape[0]
    step = columns_of_step(width)

    def shrink_item(nth: Array, _: None) -> None:
        page, live = _page(share, first + nth)

        def add_step(turn: Array, sums: Float[Array, "R I"]) -> Float[Array, "R I"]:
            columns = pl.ds(turn * step, step)
            x = load(share.x.at[columns], RANKS_APART.reduce(0)).astype(jnp.float32)
            a = load(share.a.at[page, :, columns], RANKS_APART).astype(jnp.float32)
            return sums + _spread(x, 1, a.shape, RANKS_APART) * a

        turns = jnp.where(live, jnp.int32(width // step), jnp.int32(0))
        sums = lax.fori_loop(jnp.int32(0), turns, add_step, _zeros((PAGE_RANKS, step), RANKS_APART))
        share.products[nth] = jnp.sum(sums, axis=1) * jnp.where(live, share.scale[first + nth], jnp.float32(0))

    lax.fori_loop(jnp.int32(0), count, shrink_item, None)


def _expand(share: _Share, first: Array, count: Array, again: Bool[Array, ""]) -> None:
    """The products times B, in the program's columns; added to what is there, if this is not the first pass."""
    step = columns_of_step(share.b.shape[2])

    def expand_step(turn: Array, _: None) -> None:
        columns = pl.ds(share.first + turn * step, step)

        def add_item(nth: Array, sums: Float[Array, "R O"]) -> Float[Array, "R O"]:
            page, live = _page(share, first + nth)

            def add() -> Float[Array, "R O"]:
                products = load(share.products.at[nth], COLUMNS_APART.reduce(1))
                b = load(share.b.at[page, :, columns], COLUMNS_APART).astype(jnp.float32)
                return sums + _spread(products, 0, b.shape, COLUMNS_APART) * b

            added: Array = lax.cond(live, add, lambda: sums)
            return added

        def add_items() -> Float[Array, "O"]:
            zeros = _zeros((PAGE_RANKS, step), COLUMNS_APART)
            return jnp.sum(lax.fori_loop(jnp.int32(0), count, add_item, zeros), axis=0)

        place, layout = share.added.at[columns], COLUMNS_APART.reduce(0)
        nothing = functools.partial(_zeros, (step,), layout)
        before = lax.cond(again, lambda: load(place, layout).astype(jnp.float32), nothing)
        place[...] = (before + lax.cond(count > 0, add_items, nothing)).astype(place.dtype)

    lax.fori_loop(jnp.int32(0), lax.div(share.end - share.first, jnp.int32(step)), expand_step, None)


def _page(share: _Share, item: Array) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """An item's page, and whether the pool has it."""
    page = share.page[item]
    return page, (page >= 0) & (page < share.b.shape[0])


def _spread(numbers: Array, axis: int, shape: tuple[int, ...], layout: Layout) -> Float[Array, "R _"]:
    """Numbers along one axis of a shape, the same all along the other."""
    spread: Array = plgpu.layout_cast(lax.broadcast_in_dim(numbers, shape, (axis,)), layout)
    return spread


def _zeros(shape: tuple[int, ...], layout: Layout) -> Float[Array, "..."]:
    zeros: Array = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)
    return zeros
