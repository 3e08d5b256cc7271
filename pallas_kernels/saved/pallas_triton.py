"""For CUDA: one launch puts products with saved matrices in the place of what the base computed for those tiles.

A program owns some columns of up to 64 rows of y. It takes the pages that its rows have one after the other, computes
all rows with each as W x^T, and stores those that have it: so a matrix is read once for all of them. Where no row has a
page it does nothing; a loop of XLA's would have the host ask the device whether one has.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Bool, Float, Int

from pallas_kernels.lora.api import WorkList
from pallas_kernels.saved.api import NONE, SavedPages
from pallas_kernels.saved.config import SavedLinearConfig, saved_linear_config
from pallas_kernels.saved.shapes import check_saved_linear
from pallas_kernels.triton_call import dot, triton_call

Ref = Any


def saved_linear(
    x: Float[Array, "T L D"],
    y: Float[Array, "T L V"],
    pool: SavedPages,
    work: WorkList,
    module: int,
    *,
    interpret: bool = False,
) -> Float[Array, "T L V"]:
    """y[t] = x[t] pool[0, page[n]]^T for the item n of tile t, in place. A page that is not there changes nothing.

    Raises:
        ValueError: shapes or dtypes that the kernel does not serve.
    """
    check_saved_linear(x, y, pool, work, module)
    tokens, width = x.shape[1:]
    outs = y.shape[2]
    rows = x.shape[0] * tokens
    config = saved_linear_config(rows)

    def saved_linear_kernel(start_ref: Ref, page_ref: Ref, x_ref: Ref, pool_ref: Ref, _: Ref, y_ref: Ref) -> None:
        row = pl.program_id(0) * config.rows + jnp.arange(config.rows, dtype=jnp.int32)
        out = pl.program_id(1) * config.outs + jnp.arange(config.outs, dtype=jnp.int32)
        inside, out_inside = row < rows, out < outs

        def replace(waiting: Int[Array, "X"]) -> Int[Array, "X"]:
            page = jnp.max(waiting)
            theirs = waiting == page
            saved = _product(config, x_ref, pool_ref, page, (row, theirs), (out, out_inside))
            place = y_ref.at[row[None, :], out[:, None]]
            plgpu.store(place, saved.astype(y_ref.dtype), mask=out_inside[:, None] & theirs[None, :])
            return jnp.where(theirs, NONE, waiting)

        pages = _pages(start_ref, page_ref, module, lax.div(row, jnp.int32(tokens)), inside)
        known = (pages >= 0) & (pages < pool_ref.shape[1])
        lax.while_loop(lambda waiting: jnp.max(waiting) != NONE, replace, jnp.where(known, pages, NONE))

    call = triton_call(
        saved_linear_kernel,
        ShapeDtypeStruct((rows, outs), y.dtype),
        grid=(pl.cdiv(rows, config.rows), pl.cdiv(outs, config.outs)),
        warps=config.warps,
        stages=config.stages,
        input_output_aliases={4: 0},
        interpret=interpret,
    )
    replaced: Array = call(work.start, work.page, x.reshape(rows, width), pool, y.reshape(rows, outs))
    return replaced.reshape(y.shape)


def _pages(
    start_ref: Ref, page_ref: Ref, module: int, tile: Int[Array, "X"], inside: Bool[Array, "X"]
) -> Int[Array, "X"]:
    """The page of each row's tile; `NONE` for a row past the end, or a tile without an item."""
    first = plgpu.load(start_ref.at[module, tile], mask=inside, other=0)
    end = plgpu.load(start_ref.at[module, tile + 1], mask=inside, other=0)
    listed = inside & (first >= 0) & (first < jnp.minimum(end, page_ref.shape[1]))
    pages: Array = plgpu.load(page_ref.at[module, first], mask=listed, other=NONE)
    return pages


def _product(
    config: SavedLinearConfig,
    x_ref: Ref,
    pool_ref: Ref,
    page: Array,
    rows: tuple[Int[Array, "X"], Bool[Array, "X"]],
    outs: tuple[Int[Array, "W"], Bool[Array, "W"]],
) -> Float[Array, "W X"]:
    """W x^T of some rows of a page and some of x, each with which of them count."""
    (row, row_counts), (out, out_counts) = rows, outs
    width = x_ref.shape[1]

    def add_block(turn: Array, sums: Float[Array, "W X"]) -> Float[Array, "W X"]:
        column = turn * config.block + jnp.arange(config.block, dtype=jnp.int32)
        inside = (column < width)[None, :]
        x = plgpu.load(x_ref.at[row[:, None], column[None, :]], mask=row_counts[:, None] & inside, other=0)
        w = plgpu.load(pool_ref.at[0, page, out[:, None], column[None, :]], mask=out_counts[:, None] & inside, other=0)
        return sums + dot(w, x.T)

    zeros = jnp.zeros((config.outs, config.rows), jnp.float32)
    sums: Array = lax.fori_loop(jnp.int32(0), jnp.int32(pl.cdiv(width, config.block)), add_block, zeros)
    return sums
